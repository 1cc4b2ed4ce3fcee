//! Convolution layers.

use crate::repr::python_tuple;
use crate::{Field, Layer, Module, Rebuild, Visitor};
use orkest_core::{Device, PadMode, Param, Size2, Tensor};

/// How much a convolution pads its input: as given on both sides of each axis, or `"same"`, so that the output has the input's size
/// (for a stride of 1), or `"valid"`, not at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Padding {
    /// This many zeros above and below, left and right.
    Sizes([usize; 2]),
    /// As many as keep the size; an odd one goes behind.
    Same,
}

impl From<usize> for Padding {
    fn from(size: usize) -> Padding {
        Padding::Sizes([size, size])
    }
}

impl From<[usize; 2]> for Padding {
    fn from(sizes: [usize; 2]) -> Padding {
        Padding::Sizes(sizes)
    }
}

impl From<&str> for Padding {
    /// # Panics
    /// If the text is neither `"same"` nor `"valid"`.
    #[track_caller]
    fn from(name: &str) -> Padding {
        match name {
            "same" => Padding::Same,
            "valid" => Padding::Sizes([0, 0]),
            _ => panic!("padding {name:?} is not known; it can be \"same\", \"valid\" or numbers"),
        }
    }
}

impl Field for Padding {
    fn visit_field<'a>(&'a self, _name: &str, _visitor: &mut Visitor<'_, 'a>) {}
    fn rebuild_field(&self, _rebuild: &mut Rebuild) -> Padding {
        *self
    }
}

/// Convolution of planes: PyTorch's [`Conv2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html), with
/// [`Tensor::conv2d`].
///
/// Weight and bias start uniform in ±1/√fan_in with `fan_in = in_channels / groups * kernel_height * kernel_width`, with PyTorch's
/// numbers for the same `manual_seed`.
///
/// # Shapes
/// - input: `[batch, in_channels, height, width]`, the batch may be left out
/// - output: `[batch, out_channels, out_height, out_width]` with
///   `out = (in + 2 padding - dilation (kernel - 1) - 1) / stride + 1`, rounded down
/// - `weight`: `[out_channels, in_channels / groups, kernel_height, kernel_width]`, `bias`: `[out_channels]`
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{Conv2d, Layer};
/// let conv = Conv2d::new(1, 8, 3).stride(2).padding(1);
/// assert_eq!(conv.forward(&Tensor::zeros([4, 1, 28, 28], &Device::cpu())).shape(), &[4, 8, 14, 14]);
/// println!("{conv}");
/// ```
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct Conv2d {
    /// `[out_channels, in_channels / groups, kernel_height, kernel_width]`
    pub weight: Param,
    /// `[out_channels]`
    pub bias: Option<Param>,
    stride: [usize; 2],
    padding: Padding,
    padding_mode: PadMode,
    dilation: [usize; 2],
    groups: usize,
}

impl Conv2d {
    /// With a bias and one group, on the CPU.
    #[track_caller]
    pub fn new(in_channels: usize, out_channels: usize, kernel_size: impl Into<Size2>) -> Conv2d {
        Conv2d::grouped(in_channels, out_channels, kernel_size, 1, true)
    }

    /// Without a bias, on the CPU. No random numbers are drawn for one.
    #[track_caller]
    pub fn without_bias(in_channels: usize, out_channels: usize, kernel_size: impl Into<Size2>) -> Conv2d {
        Conv2d::grouped(in_channels, out_channels, kernel_size, 1, false)
    }

    /// With groups of channels that do not mix; as many as there are input channels make a depthwise convolution.
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
    ) -> Conv2d {
        check_groups("Conv2d", in_channels, out_channels, groups);
        let Size2([height, width]) = kernel_size.into();
        let shape = [out_channels, in_channels / groups, height, width];
        let (weight, bias) = fresh_parameters(&shape, bias.then_some(out_channels));
        Conv2d::from_params(weight, bias, groups)
    }

    /// With this weight `[out_channels, in_channels / groups, kernel_height, kernel_width]` and bias `[out_channels]`.
    pub fn from_params(weight: Param, bias: Option<Param>, groups: usize) -> Conv2d {
        let (padding, padding_mode) = (Padding::Sizes([0, 0]), PadMode::Constant(0.0));
        Conv2d { weight, bias, stride: [1, 1], padding, padding_mode, dilation: [1, 1], groups }
    }

    /// Steps between windows; 1 at first.
    pub fn stride(mut self, stride: impl Into<Size2>) -> Conv2d {
        self.stride = stride.into().0;
        self
    }

    /// Zeros around the planes, or `"same"`; 0 at first.
    #[track_caller]
    pub fn padding(mut self, padding: impl Into<Padding>) -> Conv2d {
        self.padding = padding.into();
        self
    }

    /// What the padding consists of: `"zeros"` at first; `"reflect"`, `"replicate"`, `"circular"`, or a [`PadMode`].
    ///
    /// # Panics
    /// If there is no mode of this name.
    #[track_caller]
    pub fn padding_mode(mut self, mode: impl Into<PadMode>) -> Conv2d {
        self.padding_mode = mode.into();
        self
    }

    /// Distance between the points of the kernel; 1 at first.
    pub fn dilation(mut self, dilation: impl Into<Size2>) -> Conv2d {
        self.dilation = dilation.into().0;
        self
    }

    fn extra_repr(&self) -> String {
        let kernel = [self.weight.shape()[2], self.weight.shape()[3]];
        settings(
            &self.weight,
            self.bias.is_some(),
            &kernel,
            &self.stride,
            (self.padding, self.padding_mode),
            &self.dilation,
            self.groups,
        )
    }
}

impl Layer for Conv2d {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        let (weight, bias) = (self.weight.tensor(), self.bias.as_ref().map(Param::tensor));
        let kernel = [weight.size(2), weight.size(3)];
        let padding = (self.padding, self.padding_mode);
        let (x, padding) = padded("Conv2d", input, padding, kernel, self.stride, self.dilation);
        x.conv2d(&weight, bias.as_ref(), self.stride, padding, self.dilation, self.groups)
    }
}

/// Convolution of sequences: PyTorch's [`Conv1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv1d.html), with
/// [`Tensor::conv1d`].
///
/// Weight and bias start uniform in ±1/√fan_in with `fan_in = in_channels / groups * kernel`, with PyTorch's numbers for the same
/// `manual_seed`.
///
/// # Shapes
/// - input: `[batch, in_channels, length]`, the batch may be left out
/// - output: `[batch, out_channels, out_length]` with `out = (in + 2 padding - dilation (kernel - 1) - 1) / stride + 1`, rounded
///   down
/// - `weight`: `[out_channels, in_channels / groups, kernel]`, `bias`: `[out_channels]`
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct Conv1d {
    /// `[out_channels, in_channels / groups, kernel]`
    pub weight: Param,
    /// `[out_channels]`
    pub bias: Option<Param>,
    stride: usize,
    padding: Padding,
    padding_mode: PadMode,
    dilation: usize,
    groups: usize,
}

impl Conv1d {
    /// With a bias and one group, on the CPU.
    #[track_caller]
    pub fn new(in_channels: usize, out_channels: usize, kernel_size: usize) -> Conv1d {
        Conv1d::grouped(in_channels, out_channels, kernel_size, 1, true)
    }

    /// Without a bias, on the CPU. No random numbers are drawn for one.
    #[track_caller]
    pub fn without_bias(in_channels: usize, out_channels: usize, kernel_size: usize) -> Conv1d {
        Conv1d::grouped(in_channels, out_channels, kernel_size, 1, false)
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
    ) -> Conv1d {
        check_groups("Conv1d", in_channels, out_channels, groups);
        let shape = [out_channels, in_channels / groups, kernel_size];
        let (weight, bias) = fresh_parameters(&shape, bias.then_some(out_channels));
        Conv1d::from_params(weight, bias, groups)
    }

    /// With this weight `[out_channels, in_channels / groups, kernel]` and bias `[out_channels]`.
    pub fn from_params(weight: Param, bias: Option<Param>, groups: usize) -> Conv1d {
        let (padding, padding_mode) = (Padding::Sizes([0, 0]), PadMode::Constant(0.0));
        Conv1d { weight, bias, stride: 1, padding, padding_mode, dilation: 1, groups }
    }

    /// Steps between windows; 1 at first.
    pub fn stride(mut self, stride: usize) -> Conv1d {
        self.stride = stride;
        self
    }

    /// Zeros on both sides of the sequences, or `"same"`; 0 at first.
    ///
    /// # Panics
    /// If two different sizes are given.
    #[track_caller]
    pub fn padding(mut self, padding: impl Into<Padding>) -> Conv1d {
        self.padding = padding.into();
        if let Padding::Sizes([a, b]) = self.padding {
            assert_eq!(a, b, "Conv1d: a sequence has one padding, not [{a}, {b}]");
        }
        self
    }

    /// What the padding consists of: `"zeros"` at first; `"reflect"`, `"replicate"`, `"circular"`, or a [`PadMode`].
    ///
    /// # Panics
    /// If there is no mode of this name.
    #[track_caller]
    pub fn padding_mode(mut self, mode: impl Into<PadMode>) -> Conv1d {
        self.padding_mode = mode.into();
        self
    }

    /// Distance between the points of the kernel; 1 at first.
    pub fn dilation(mut self, dilation: usize) -> Conv1d {
        self.dilation = dilation;
        self
    }

    fn extra_repr(&self) -> String {
        let kernel = [self.weight.shape()[2]];
        let (stride, dilation) = ([self.stride], [self.dilation]);
        let padding = (self.padding, self.padding_mode);
        settings(&self.weight, self.bias.is_some(), &kernel, &stride, padding, &dilation, self.groups)
    }
}

impl Layer for Conv1d {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        let (weight, bias) = (self.weight.tensor(), self.bias.as_ref().map(Param::tensor));
        let padding = (self.padding, self.padding_mode);
        let (x, [padding]) =
            padded("Conv1d", input, padding, [weight.size(2)], [self.stride], [self.dilation]);
        x.conv1d(&weight, bias.as_ref(), self.stride, padding, self.dilation, self.groups)
    }
}

#[track_caller]
pub(super) fn check_groups(layer: &str, in_channels: usize, out_channels: usize, groups: usize) {
    assert!(
        groups > 0 && in_channels.is_multiple_of(groups) && out_channels.is_multiple_of(groups),
        "{layer}: {in_channels} input and {out_channels} output channels cannot be divided into {groups} groups"
    );
}

/// PyTorch's initial weight of this shape and bias of this length, drawn in this order.
#[track_caller]
pub(super) fn fresh_parameters(shape: &[usize], bias: Option<usize>) -> (Param, Option<Param>) {
    let fan_in: usize = shape[1..].iter().product();
    // kaiming_uniform with a = √5, computed in these steps; in exact arithmetic it is 1/√fan_in.
    let gain = (2.0 / (1.0 + 5f64.sqrt().powi(2))).sqrt();
    let root = (fan_in.max(1) as f64).sqrt(); // without inputs nothing is drawn
    let weight = even(shape, 3f64.sqrt() * (gain / root));
    #[allow(clippy::manual_map)] // A closure would hide the user's line.
    let bias = match bias {
        Some(len) => Some(even(&[len], 1.0 / root)),
        None => None,
    };
    (weight, bias)
}

#[track_caller]
fn even(shape: &[usize], bound: f64) -> Param {
    Param::new(Tensor::uniform(shape, -bound, bound, &Device::cpu()))
}

/// The input as far as it has to be padded here, and the zeros on both sides that are left to the convolution.
#[track_caller]
fn padded<const N: usize>(
    layer: &str,
    x: &Tensor,
    (padding, mode): (Padding, PadMode),
    kernel: [usize; N],
    stride: [usize; N],
    dilation: [usize; N],
) -> (Tensor, [usize; N]) {
    let sides: [(usize, usize); N] = match padding {
        Padding::Sizes(sizes) => std::array::from_fn(|d| (sizes[2 - N + d], sizes[2 - N + d])),
        Padding::Same => {
            assert!(stride == [1; N], "{layer}: padding \"same\" needs a stride of 1, not {stride:?}");
            std::array::from_fn(|d| {
                let total = dilation[d] * (kernel[d] - 1);
                (total / 2, total - total / 2)
            })
        }
    };
    let pairs = |side: fn((usize, usize)) -> (usize, usize)| -> Vec<(isize, isize)> {
        sides
            .iter()
            .rev()
            .map(|&s| side(s))
            .map(|(before, after)| (before as isize, after as isize))
            .collect()
    };
    if mode != PadMode::Constant(0.0) {
        return (x.pad_mode(&pairs(|side| side), mode), [0; N]);
    }
    // One zero more behind where the sum is odd.
    let more = pairs(|(before, after)| (0, after - before));
    let x = if more.iter().all(|&pair| pair == (0, 0)) { x.clone() } else { x.pad(&more, 0.0) };
    (x, sides.map(|(before, _)| before))
}

/// `1, 32, kernel_size=(3, 3), stride=(1, 1), ..`: what is not the default is named.
pub(super) fn settings(
    weight: &Param,
    bias: bool,
    kernel: &[usize],
    stride: &[usize],
    (padding, mode): (Padding, PadMode),
    dilation: &[usize],
    groups: usize,
) -> String {
    let (out, inputs) = (weight.shape()[0], weight.shape()[1] * groups);
    let mut text =
        format!("{inputs}, {out}, kernel_size={}, stride={}", python_tuple(kernel), python_tuple(stride));
    match padding {
        Padding::Sizes([0, 0]) => {}
        Padding::Sizes(sizes) => {
            text += &format!(", padding={}", python_tuple(&sizes[2 - kernel.len()..]));
        }
        Padding::Same => text += ", padding=same",
    }
    if dilation.iter().any(|&d| d != 1) {
        text += &format!(", dilation={}", python_tuple(dilation));
    }
    if groups != 1 {
        text += &format!(", groups={groups}");
    }
    if !bias {
        text += ", bias=False";
    }
    match mode {
        PadMode::Constant(0.0) => {}
        PadMode::Constant(value) => text += &format!(", padding_value={value}"),
        PadMode::Reflect => text += ", padding_mode=reflect",
        PadMode::Replicate => text += ", padding_mode=replicate",
        PadMode::Circular => text += ", padding_mode=circular",
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_pytorchs() {
        let texts = [
            Conv2d::without_bias(1, 32, 3).padding(1).to_string(),
            Conv2d::grouped(2, 4, [3, 2], 2, true).stride(2).padding([1, 0]).dilation(2).to_string(),
            Conv1d::new(2, 4, 3).padding("same").to_string(),
            Conv2d::new(1, 2, 3).padding(1).padding_mode("reflect").to_string(),
        ];
        let expected = [
            "Conv2d(1, 32, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)",
            "Conv2d(2, 4, kernel_size=(3, 2), stride=(2, 2), padding=(1, 0), dilation=(2, 2), groups=2)",
            "Conv1d(2, 4, kernel_size=(3,), stride=(1,), padding=same)",
            "Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), padding_mode=reflect)",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn same_padding_keeps_every_size() {
        let x = Tensor::ones([1, 2, 5, 7], &Device::cpu());
        for (kernel, dilation) in [([3, 3], 1), ([2, 4], 1), ([1, 2], 3), ([4, 1], 1)] {
            let conv = Conv2d::new(2, 3, kernel).padding("same").dilation(dilation);
            assert_eq!(conv.forward(&x).shape(), &[1, 3, 5, 7], "{conv}");
        }
        let sequence = x.select(2, 0);
        for kernel in 1..5 {
            assert_eq!(Conv1d::new(2, 3, kernel).padding("same").forward(&sequence).shape(), &[1, 3, 7]);
        }
    }

    #[test]
    #[should_panic(expected = "Conv2d: padding \"same\" needs a stride of 1, not [2, 2]")]
    fn same_padding_with_a_stride_is_refused() {
        let conv = Conv2d::new(1, 1, 3).stride(2).padding("same");
        conv.forward(&Tensor::ones([1, 1, 4, 4], &Device::cpu()));
    }

    #[test]
    #[should_panic(expected = "Conv2d: 3 input and 4 output channels cannot be divided into 2 groups")]
    fn groups_that_do_not_fit_are_refused() {
        let _ = Conv2d::grouped(3, 4, 3, 2, true);
    }
}
