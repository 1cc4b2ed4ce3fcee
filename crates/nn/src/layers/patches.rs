//! Planes as columns of patches, and back.

use crate::repr::one_or_two;
use crate::{Layer, Module};
use orkest_core::{Size2, Tensor};

macro_rules! patch_options {
    ($name:ident) => {
        impl $name {
            /// Distance between the points of a patch; 1 at first.
            pub fn dilation(mut self, dilation: impl Into<Size2>) -> $name {
                self.dilation = dilation.into().0;
                self
            }

            /// Zeros around the planes; 0 at first.
            pub fn padding(mut self, padding: impl Into<Size2>) -> $name {
                self.padding = padding.into().0;
                self
            }

            /// Steps between patches; 1 at first.
            pub fn stride(mut self, stride: impl Into<Size2>) -> $name {
                self.stride = stride.into().0;
                self
            }

            fn settings(&self) -> String {
                let sizes = [self.kernel_size, self.dilation, self.padding, self.stride];
                let [kernel, dilation, padding, stride] = sizes.map(one_or_two);
                format!("kernel_size={kernel}, dilation={dilation}, padding={padding}, stride={stride}")
            }
        }
    };
}

/// The patches that a sliding window sees, one per column: PyTorch's
/// [`Unfold`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Unfold.html), with [`Tensor::unfold`].
///
/// # Shapes
/// - input: `[batch, channels, height, width]`, the batch may be left out
/// - output: `[batch, channels * kernel_height * kernel_width, windows]`
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct Unfold {
    kernel_size: [usize; 2],
    dilation: [usize; 2],
    padding: [usize; 2],
    stride: [usize; 2],
}

patch_options!(Unfold);

impl Unfold {
    /// Patches of this size.
    pub fn new(kernel_size: impl Into<Size2>) -> Unfold {
        Unfold { kernel_size: kernel_size.into().0, dilation: [1, 1], padding: [0, 0], stride: [1, 1] }
    }

    fn extra_repr(&self) -> String {
        self.settings()
    }
}

impl Layer for Unfold {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        input.unfold(self.kernel_size, self.dilation, self.padding, self.stride)
    }
}

/// Patches summed back into planes: PyTorch's [`Fold`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Fold.html), with
/// [`Tensor::fold`].
///
/// # Shapes
/// - input: `[batch, channels * kernel_height * kernel_width, windows]`, the batch may be left out
/// - output: `[batch, channels, output_height, output_width]`
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct Fold {
    output_size: [usize; 2],
    kernel_size: [usize; 2],
    dilation: [usize; 2],
    padding: [usize; 2],
    stride: [usize; 2],
}

patch_options!(Fold);

impl Fold {
    /// Planes of this size, from patches of that.
    pub fn new(output_size: impl Into<Size2>, kernel_size: impl Into<Size2>) -> Fold {
        let (output_size, kernel_size) = (output_size.into().0, kernel_size.into().0);
        Fold { output_size, kernel_size, dilation: [1, 1], padding: [0, 0], stride: [1, 1] }
    }

    fn extra_repr(&self) -> String {
        format!("output_size={}, {}", one_or_two(self.output_size), self.settings())
    }
}

impl Layer for Fold {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        input.fold(self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_pytorchs() {
        assert_eq!(
            Fold::new([4, 5], 2).to_string(),
            "Fold(output_size=(4, 5), kernel_size=2, dilation=1, padding=0, stride=1)"
        );
        assert_eq!(
            Unfold::new([2, 3]).padding(1).to_string(),
            "Unfold(kernel_size=(2, 3), dilation=1, padding=1, stride=1)"
        );
    }
}
