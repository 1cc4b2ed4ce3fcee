//! Transposed convolution layers.

use super::conv::{check_groups, fresh_parameters};
use crate::repr::python_tuple;
use crate::{Layer, Module};
use orkest_core::{Param, Size2, Tensor};

/// Transposed convolution of planes, which makes them larger: PyTorch's
/// [`ConvTranspose2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.ConvTranspose2d.html), with
/// [`Tensor::conv_transpose2d`].
///
/// Weight and bias start uniform in ±1/√fan_in with `fan_in = out_channels / groups * kernel_height * kernel_width` (as PyTorch
/// counts it), with PyTorch's numbers for the same `manual_seed`.
///
/// # Shapes
/// - input: `[batch, in_channels, height, width]`, the batch may be left out
/// - output: `[batch, out_channels, out_height, out_width]` with
///   `out = (in - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1`
/// - `weight`: `[in_channels, out_channels / groups, kernel_height, kernel_width]`, `bias`: `[out_channels]`
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{ConvTranspose2d, Layer};
/// let up = ConvTranspose2d::new(8, 4, 2).stride(2);
/// assert_eq!(up.forward(&Tensor::zeros([1, 8, 7, 7], &Device::cpu())).shape(), &[1, 4, 14, 14]);
/// ```
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct ConvTranspose2d {
    /// `[in_channels, out_channels / groups, kernel_height, kernel_width]`
    pub weight: Param,
    /// `[out_channels]`
    pub bias: Option<Param>,
    stride: [usize; 2],
    padding: [usize; 2],
    output_padding: [usize; 2],
    groups: usize,
    dilation: [usize; 2],
}

impl ConvTranspose2d {
    /// With a bias and one group, on the CPU.
    #[track_caller]
    pub fn new(in_channels: usize, out_channels: usize, kernel_size: impl Into<Size2>) -> ConvTranspose2d {
        ConvTranspose2d::grouped(in_channels, out_channels, kernel_size, 1, true)
    }

    /// Without a bias, on the CPU. No random numbers are drawn for one.
    #[track_caller]
    pub fn without_bias(
        in_channels: usize,
        out_channels: usize,
        kernel_size: impl Into<Size2>,
    ) -> ConvTranspose2d {
        ConvTranspose2d::grouped(in_channels, out_channels, kernel_size, 1, false)
    }

    /// With groups of channels that do not mix.
    ///
    /// # Panics
    /// If the channels cannot be divided into `groups`.
    #[track_caller]
    pub fn grouped(
        in_channels: usize,
        out_channels: usize,
        kernel_size: impl Into<Size2>,
        groups: usize,
        bias: bool,
    ) -> ConvTranspose2d {
        check_groups("ConvTranspose2d", in_channels, out_channels, groups);
        let Size2([height, width]) = kernel_size.into();
        let shape = [in_channels, out_channels / groups, height, width];
        let (weight, bias) = fresh_parameters(&shape, bias.then_some(out_channels));
        ConvTranspose2d::from_params(weight, bias, groups)
    }

    /// With this weight `[in_channels, out_channels / groups, kernel_height, kernel_width]` and bias `[out_channels]`.
    pub fn from_params(weight: Param, bias: Option<Param>, groups: usize) -> ConvTranspose2d {
        let (stride, padding, output_padding, dilation) = ([1, 1], [0, 0], [0, 0], [1, 1]);
        ConvTranspose2d { weight, bias, stride, padding, output_padding, groups, dilation }
    }

    /// Steps between the windows that the input's elements are added to; 1 at first.
    pub fn stride(mut self, stride: impl Into<Size2>) -> ConvTranspose2d {
        self.stride = stride.into().0;
        self
    }

    /// How much of the output is cut off on each side; 0 at first.
    pub fn padding(mut self, padding: impl Into<Size2>) -> ConvTranspose2d {
        self.padding = padding.into().0;
        self
    }

    /// How much larger the output is below and on the right, to tell sizes apart that a strided convolution maps to one; 0 at first.
    pub fn output_padding(mut self, output_padding: impl Into<Size2>) -> ConvTranspose2d {
        self.output_padding = output_padding.into().0;
        self
    }

    /// Distance between the points of the kernel; 1 at first.
    pub fn dilation(mut self, dilation: impl Into<Size2>) -> ConvTranspose2d {
        self.dilation = dilation.into().0;
        self
    }

    fn extra_repr(&self) -> String {
        let kernel = [self.weight.shape()[2], self.weight.shape()[3]];
        let sizes = [&kernel[..], &self.stride, &self.padding, &self.output_padding, &self.dilation];
        settings(&self.weight, self.bias.is_some(), sizes, self.groups)
    }
}

impl Layer for ConvTranspose2d {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        input.conv_transpose2d(
            &self.weight.tensor(),
            self.bias.as_ref().map(Param::tensor).as_ref(),
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )
    }
}

/// Transposed convolution of sequences, which makes them longer: PyTorch's
/// [`ConvTranspose1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.ConvTranspose1d.html), with
/// [`Tensor::conv_transpose1d`].
///
/// Weight and bias start uniform in ±1/√fan_in with `fan_in = out_channels / groups * kernel` (as PyTorch counts it), with
/// PyTorch's numbers for the same `manual_seed`.
///
/// # Shapes
/// - input: `[batch, in_channels, length]`, the batch may be left out
/// - output: `[batch, out_channels, out_length]`, sizes as in [`ConvTranspose2d`]
/// - `weight`: `[in_channels, out_channels / groups, kernel]`, `bias`: `[out_channels]`
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct ConvTranspose1d {
    /// `[in_channels, out_channels / groups, kernel]`
    pub weight: Param,
    /// `[out_channels]`
    pub bias: Option<Param>,
    stride: usize,
    padding: usize,
    output_padding: usize,
    groups: usize,
    dilation: usize,
}

impl ConvTranspose1d {
    /// With a bias and one group, on the CPU.
    #[track_caller]
    pub fn new(in_channels: usize, out_channels: usize, kernel_size: usize) -> ConvTranspose1d {
        ConvTranspose1d::grouped(in_channels, out_channels, kernel_size, 1, true)
    }

    /// Without a bias, on the CPU. No random numbers are drawn for one.
    #[track_caller]
    pub fn without_bias(in_channels: usize, out_channels: usize, kernel_size: usize) -> ConvTranspose1d {
        ConvTranspose1d::grouped(in_channels, out_channels, kernel_size, 1, false)
    }

    /// With groups of channels that do not mix.
    ///
    /// # Panics
    /// If the channels cannot be divided into `groups`.
    #[track_caller]
    pub fn grouped(
        in_channels: usize,
        out_channels: usize,
        kernel_size: usize,
        groups: usize,
        bias: bool,
    ) -> ConvTranspose1d {
        check_groups("ConvTranspose1d", in_channels, out_channels, groups);
        let shape = [in_channels, out_channels / groups, kernel_size];
        let (weight, bias) = fresh_parameters(&shape, bias.then_some(out_channels));
        ConvTranspose1d::from_params(weight, bias, groups)
    }

    /// With this weight `[in_channels, out_channels / groups, kernel]` and bias `[out_channels]`.
    pub fn from_params(weight: Param, bias: Option<Param>, groups: usize) -> ConvTranspose1d {
        ConvTranspose1d { weight, bias, stride: 1, padding: 0, output_padding: 0, groups, dilation: 1 }
    }

    /// Steps between the windows that the input's elements are added to; 1 at first.
    pub fn stride(mut self, stride: usize) -> ConvTranspose1d {
        self.stride = stride;
        self
    }

    /// How much of the output is cut off on each side; 0 at first.
    pub fn padding(mut self, padding: usize) -> ConvTranspose1d {
        self.padding = padding;
        self
    }

    /// How much longer the output is at the end; 0 at first.
    pub fn output_padding(mut self, output_padding: usize) -> ConvTranspose1d {
        self.output_padding = output_padding;
        self
    }

    /// Distance between the points of the kernel; 1 at first.
    pub fn dilation(mut self, dilation: usize) -> ConvTranspose1d {
        self.dilation = dilation;
        self
    }

    fn extra_repr(&self) -> String {
        let kernel = self.weight.shape()[2];
        let [kernel, stride, padding, more, dilation] =
            [kernel, self.stride, self.padding, self.output_padding, self.dilation].map(|size| [size]);
        settings(
            &self.weight,
            self.bias.is_some(),
            [&kernel, &stride, &padding, &more, &dilation],
            self.groups,
        )
    }
}

impl Layer for ConvTranspose1d {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        input.conv_transpose1d(
            &self.weight.tensor(),
            self.bias.as_ref().map(Param::tensor).as_ref(),
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )
    }
}

/// `8, 4, kernel_size=(2, 2), stride=(2, 2), ..`: what is not the default is named.
fn settings(
    weight: &Param,
    bias: bool,
    [kernel, stride, padding, output_padding, dilation]: [&[usize]; 5],
    groups: usize,
) -> String {
    let (inputs, out) = (weight.shape()[0], weight.shape()[1] * groups);
    let mut text =
        format!("{inputs}, {out}, kernel_size={}, stride={}", python_tuple(kernel), python_tuple(stride));
    let more = [("padding", padding, 0), ("dilation", dilation, 1), ("output_padding", output_padding, 0)];
    for (name, sizes, default) in more {
        if sizes.iter().any(|&size| size != default) {
            text += &format!(", {name}={}", python_tuple(sizes));
        }
    }
    if groups != 1 {
        text += &format!(", groups={groups}");
    }
    if !bias {
        text += ", bias=False";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_pytorchs() {
        let texts = [
            ConvTranspose2d::new(2, 4, 3).stride(2).padding(1).output_padding(1).to_string(),
            ConvTranspose1d::new(2, 4, 3).to_string(),
        ];
        let expected = [
            "ConvTranspose2d(2, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1))",
            "ConvTranspose1d(2, 4, kernel_size=(3,), stride=(1,))",
        ];
        assert_eq!(texts, expected);
    }
}
