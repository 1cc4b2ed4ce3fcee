//! Maxima put back where they came from.

use crate::Module;
use crate::repr::python_tuple;
use orkest_core::{Size2, Tensor};

/// The maxima of a [`MaxPool2d`](crate::MaxPool2d) at their positions, and zeros elsewhere: PyTorch's
/// [`MaxUnpool2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.MaxUnpool2d.html).
///
/// # Shapes
/// - input and indices: `[batch, channels, height, width]`, the batch may be left out
/// - output: `[batch, channels, out_height, out_width]` with `out = (in - 1) stride - 2 padding + kernel`, or as asked for
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{MaxPool2d, MaxUnpool2d};
/// let x = Tensor::randn([1, 2, 5, 5], &Device::cpu());
/// let (y, indices) = MaxPool2d::new(2).forward_with_indices(&x);
/// let sparse = MaxUnpool2d::new(2).forward(&y, &indices, Some([5, 5]));
/// assert_eq!(sparse.shape(), x.shape());
/// ```
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct MaxUnpool2d {
    kernel_size: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
}

impl MaxUnpool2d {
    /// With the kernel's size as stride.
    pub fn new(kernel_size: impl Into<Size2>) -> MaxUnpool2d {
        let kernel_size = kernel_size.into().0;
        MaxUnpool2d { kernel_size, stride: kernel_size, padding: [0, 0] }
    }

    /// Steps between the windows of the pool.
    pub fn stride(mut self, stride: impl Into<Size2>) -> MaxUnpool2d {
        self.stride = stride.into().0;
        self
    }

    /// The padding of the pool.
    pub fn padding(mut self, padding: impl Into<Size2>) -> MaxUnpool2d {
        self.padding = padding.into().0;
        self
    }

    /// The planes; `output_size` is their height and width where the pool has rounded it down.
    ///
    /// # Panics
    /// If the shapes differ, or a position lies outside of the output.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, indices: &Tensor, output_size: Option<[usize; 2]>) -> Tensor {
        unpool("MaxUnpool2d", input, indices, [self.kernel_size, self.stride, self.padding], output_size)
    }

    fn extra_repr(&self) -> String {
        settings(&self.kernel_size, &self.stride, &self.padding)
    }
}

/// The maxima of a [`MaxPool1d`](crate::MaxPool1d) at their positions, and zeros elsewhere: PyTorch's
/// [`MaxUnpool1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.MaxUnpool1d.html).
///
/// # Shapes
/// - input and indices: `[batch, channels, length]`, the batch may be left out
/// - output: `[batch, channels, out_length]`, sizes as in [`MaxUnpool2d`]
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct MaxUnpool1d {
    kernel_size: usize,
    stride: usize,
    padding: usize,
}

impl MaxUnpool1d {
    /// With the kernel's size as stride.
    pub fn new(kernel_size: usize) -> MaxUnpool1d {
        MaxUnpool1d { kernel_size, stride: kernel_size, padding: 0 }
    }

    /// Steps between the windows of the pool.
    pub fn stride(mut self, stride: usize) -> MaxUnpool1d {
        self.stride = stride;
        self
    }

    /// The padding of the pool.
    pub fn padding(mut self, padding: usize) -> MaxUnpool1d {
        self.padding = padding;
        self
    }

    /// The sequences; `output_size` is their length where the pool has rounded it down.
    ///
    /// # Panics
    /// If the shapes differ, or a position lies outside of the output.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, indices: &Tensor, output_size: Option<usize>) -> Tensor {
        unpool(
            "MaxUnpool1d",
            input,
            indices,
            [[self.kernel_size], [self.stride], [self.padding]],
            output_size.map(|n| [n]),
        )
    }

    fn extra_repr(&self) -> String {
        settings(&[self.kernel_size], &[self.stride], &[self.padding])
    }
}

fn settings(kernel: &[usize], stride: &[usize], padding: &[usize]) -> String {
    let [kernel, stride, padding] = [kernel, stride, padding].map(python_tuple);
    format!("kernel_size={kernel}, stride={stride}, padding={padding}")
}

#[track_caller]
fn unpool<const N: usize>(
    layer: &str,
    input: &Tensor,
    indices: &Tensor,
    [kernel, stride, padding]: [[usize; N]; 3],
    output_size: Option<[usize; N]>,
) -> Tensor {
    if !(N + 1..=N + 2).contains(&input.rank()) || input.shape() != indices.shape() {
        panic!(
            "{layer}: an input of {} or {} dimensions and indices of its shape are needed. input: {}; indices: {}",
            N + 1,
            N + 2,
            input.describe(),
            indices.describe()
        );
    }
    let leading = input.rank() - N;
    let sizes = output_size.unwrap_or_else(|| {
        let size = |d: usize| {
            (input.shape()[leading + d].saturating_sub(1) * stride[d] + kernel[d])
                .saturating_sub(2 * padding[d])
        };
        std::array::from_fn(size)
    });
    let flat = |t: &Tensor| t.flatten(leading as isize, -1);
    let shape = [&input.shape()[..leading], &[sizes.iter().product()]].concat();
    let planes =
        Tensor::zeros(shape, (input.dtype(), input.device())).scatter(-1, &flat(indices), &flat(input));
    planes.reshape([&input.shape()[..leading], &sizes].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::tensor;

    #[test]
    fn texts_are_pytorchs() {
        assert_eq!(
            MaxUnpool2d::new(2).to_string(),
            "MaxUnpool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))"
        );
        assert_eq!(
            MaxUnpool1d::new(3).stride(2).padding(1).to_string(),
            "MaxUnpool1d(kernel_size=(3,), stride=(2,), padding=(1,))"
        );
    }

    #[test]
    #[should_panic(
        expected = "MaxUnpool1d: an input of 2 or 3 dimensions and indices of its shape are needed"
    )]
    fn every_maximum_has_a_position() {
        MaxUnpool1d::new(2).forward(&tensor![[1.0, 2.0]], &tensor![[0]], None);
    }
}
