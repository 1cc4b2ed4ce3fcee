//! Pooling layers.

use crate::repr::{one_or_two, python_bool, python_tuple};
use crate::{Layer, Module};
use orkest_core::{AvgPoolOptions, MaxPoolOptions, Size2, Tensor};

/// The largest element of each window: PyTorch's
/// [`MaxPool2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.MaxPool2d.html), with [`Tensor::max_pool2d`].
///
/// # Shapes
/// - input: `[batch, channels, height, width]`, the batch may be left out
/// - output: `[batch, channels, out_height, out_width]` with `out = (in + 2 padding - kernel) / stride + 1`, rounded down
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct MaxPool2d {
    kernel_size: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    ceil_mode: bool,
}

impl MaxPool2d {
    /// With the kernel's size as stride.
    pub fn new(kernel_size: impl Into<Size2>) -> MaxPool2d {
        let kernel_size = kernel_size.into().0;
        MaxPool2d { kernel_size, stride: kernel_size, padding: [0, 0], dilation: [1, 1], ceil_mode: false }
    }

    /// Steps between windows.
    pub fn stride(mut self, stride: impl Into<Size2>) -> MaxPool2d {
        self.stride = stride.into().0;
        self
    }

    /// Places around the planes that never win; 0 at first, at most half the kernel.
    pub fn padding(mut self, padding: impl Into<Size2>) -> MaxPool2d {
        self.padding = padding.into().0;
        self
    }

    /// Distance between the points of a window; 1 at first.
    pub fn dilation(mut self, dilation: impl Into<Size2>) -> MaxPool2d {
        self.dilation = dilation.into().0;
        self
    }

    /// With `true`, also the windows that begin inside and end outside: sizes are rounded up.
    pub fn ceil_mode(mut self, ceil_mode: bool) -> MaxPool2d {
        self.ceil_mode = ceil_mode;
        self
    }

    /// The output, and the i64 positions of the maxima in their planes, as PyTorch's `return_indices=True`: what
    /// [`MaxUnpool2d`](crate::MaxUnpool2d) takes.
    #[track_caller]
    pub fn forward_with_indices(&self, input: &Tensor) -> (Tensor, Tensor) {
        input.max_pool2d_with(self.kernel_size, &self.options())
    }

    fn options(&self) -> MaxPoolOptions {
        MaxPoolOptions {
            stride: Some(Size2(self.stride)),
            padding: Size2(self.padding),
            dilation: Size2(self.dilation),
            ceil_mode: self.ceil_mode,
        }
    }

    fn extra_repr(&self) -> String {
        let sizes = [self.kernel_size, self.stride, self.padding, self.dilation];
        settings(sizes.map(one_or_two), self.ceil_mode)
    }
}

impl Layer for MaxPool2d {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        self.forward_with_indices(input).0
    }
}

/// The largest element of each window of a sequence: PyTorch's
/// [`MaxPool1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.MaxPool1d.html), with [`Tensor::max_pool1d`].
///
/// # Shapes
/// - input: `[batch, channels, length]`, the batch may be left out
/// - output: `[batch, channels, out_length]`, sizes as in [`MaxPool2d`]
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct MaxPool1d {
    kernel_size: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
    ceil_mode: bool,
}

impl MaxPool1d {
    /// With the kernel's size as stride.
    pub fn new(kernel_size: usize) -> MaxPool1d {
        MaxPool1d { kernel_size, stride: kernel_size, padding: 0, dilation: 1, ceil_mode: false }
    }

    /// Steps between windows.
    pub fn stride(mut self, stride: usize) -> MaxPool1d {
        self.stride = stride;
        self
    }

    /// Places on both sides that never win; 0 at first, at most half the kernel.
    pub fn padding(mut self, padding: usize) -> MaxPool1d {
        self.padding = padding;
        self
    }

    /// Distance between the points of a window; 1 at first.
    pub fn dilation(mut self, dilation: usize) -> MaxPool1d {
        self.dilation = dilation;
        self
    }

    /// With `true`, also the windows that begin inside and end outside: the length is rounded up.
    pub fn ceil_mode(mut self, ceil_mode: bool) -> MaxPool1d {
        self.ceil_mode = ceil_mode;
        self
    }

    /// The output, and the i64 positions of the maxima, as PyTorch's `return_indices=True`: what
    /// [`MaxUnpool1d`](crate::MaxUnpool1d) takes.
    #[track_caller]
    pub fn forward_with_indices(&self, input: &Tensor) -> (Tensor, Tensor) {
        let options = MaxPoolOptions {
            stride: Some(self.stride.into()),
            padding: self.padding.into(),
            dilation: self.dilation.into(),
            ceil_mode: self.ceil_mode,
        };
        input.max_pool1d_with(self.kernel_size, &options)
    }

    fn extra_repr(&self) -> String {
        let sizes = [self.kernel_size, self.stride, self.padding, self.dilation];
        settings(sizes.map(|size| size.to_string()), self.ceil_mode)
    }
}

impl Layer for MaxPool1d {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        self.forward_with_indices(input).0
    }
}

fn settings([kernel, stride, padding, dilation]: [String; 4], ceil_mode: bool) -> String {
    let ceil_mode = python_bool(ceil_mode);
    format!(
        "kernel_size={kernel}, stride={stride}, padding={padding}, dilation={dilation}, ceil_mode={ceil_mode}"
    )
}

/// The mean of each window: PyTorch's [`AvgPool2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.AvgPool2d.html), with
/// [`Tensor::avg_pool2d`].
///
/// # Shapes
/// As [`MaxPool2d`].
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct AvgPool2d {
    kernel_size: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: Option<usize>,
}

impl AvgPool2d {
    /// With the kernel's size as stride.
    pub fn new(kernel_size: impl Into<Size2>) -> AvgPool2d {
        let kernel_size = kernel_size.into().0;
        AvgPool2d {
            kernel_size,
            stride: kernel_size,
            padding: [0, 0],
            ceil_mode: false,
            count_include_pad: true,
            divisor_override: None,
        }
    }

    /// Steps between windows.
    pub fn stride(mut self, stride: impl Into<Size2>) -> AvgPool2d {
        self.stride = stride.into().0;
        self
    }

    /// Zeros around the planes; 0 at first, at most half the kernel.
    pub fn padding(mut self, padding: impl Into<Size2>) -> AvgPool2d {
        self.padding = padding.into().0;
        self
    }

    /// With `false`, the padding does not count in the mean.
    pub fn count_include_pad(mut self, count: bool) -> AvgPool2d {
        self.count_include_pad = count;
        self
    }

    /// With `true`, also the windows that begin inside and end outside: sizes are rounded up.
    pub fn ceil_mode(mut self, ceil_mode: bool) -> AvgPool2d {
        self.ceil_mode = ceil_mode;
        self
    }

    /// What sums are divided by, instead of what counts in the mean.
    pub fn divisor_override(mut self, divisor: impl Into<Option<usize>>) -> AvgPool2d {
        self.divisor_override = divisor.into();
        self
    }

    fn extra_repr(&self) -> String {
        let [kernel, stride, padding] = [self.kernel_size, self.stride, self.padding].map(one_or_two);
        format!(
            "kernel_size={kernel}, stride={stride}, padding={padding}{}",
            uncommon(self.ceil_mode, self.count_include_pad, self.divisor_override)
        )
    }
}

impl Layer for AvgPool2d {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        let options = AvgPoolOptions {
            stride: Some(Size2(self.stride)),
            padding: Size2(self.padding),
            ceil_mode: self.ceil_mode,
            count_include_pad: self.count_include_pad,
            divisor_override: self.divisor_override,
        };
        input.avg_pool2d_with(self.kernel_size, &options)
    }
}

/// The mean of each window of a sequence: PyTorch's
/// [`AvgPool1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.AvgPool1d.html), with [`Tensor::avg_pool1d`].
///
/// # Shapes
/// As [`MaxPool1d`].
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct AvgPool1d {
    kernel_size: usize,
    stride: usize,
    padding: usize,
    ceil_mode: bool,
    count_include_pad: bool,
}

impl AvgPool1d {
    /// With the kernel's size as stride.
    pub fn new(kernel_size: usize) -> AvgPool1d {
        AvgPool1d { kernel_size, stride: kernel_size, padding: 0, ceil_mode: false, count_include_pad: true }
    }

    /// Steps between windows.
    pub fn stride(mut self, stride: usize) -> AvgPool1d {
        self.stride = stride;
        self
    }

    /// Zeros on both sides; 0 at first, at most half the kernel.
    pub fn padding(mut self, padding: usize) -> AvgPool1d {
        self.padding = padding;
        self
    }

    /// With `false`, the padding does not count in the mean.
    pub fn count_include_pad(mut self, count: bool) -> AvgPool1d {
        self.count_include_pad = count;
        self
    }

    /// With `true`, also the windows that begin inside and end outside: sizes are rounded up.
    pub fn ceil_mode(mut self, ceil_mode: bool) -> AvgPool1d {
        self.ceil_mode = ceil_mode;
        self
    }

    fn extra_repr(&self) -> String {
        let [kernel, stride, padding] =
            [self.kernel_size, self.stride, self.padding].map(|size| python_tuple(&[size]));
        format!(
            "kernel_size={kernel}, stride={stride}, padding={padding}{}",
            uncommon(self.ceil_mode, self.count_include_pad, None)
        )
    }
}

impl Layer for AvgPool1d {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        let options = AvgPoolOptions {
            stride: Some(self.stride.into()),
            padding: self.padding.into(),
            ceil_mode: self.ceil_mode,
            count_include_pad: self.count_include_pad,
            divisor_override: None,
        };
        input.avg_pool1d_with(self.kernel_size, &options)
    }
}

/// PyTorch prints the same text with and without; here a difference is seen.
fn uncommon(ceil_mode: bool, count_include_pad: bool, divisor_override: Option<usize>) -> String {
    let mut text = String::new();
    if ceil_mode {
        text += &format!(", ceil_mode={}", python_bool(true));
    }
    if !count_include_pad {
        text += &format!(", count_include_pad={}", python_bool(false));
    }
    if let Some(divisor) = divisor_override {
        text += &format!(", divisor_override={divisor}");
    }
    text
}

macro_rules! adaptive_pools {
    ($($(#[$doc:meta])* $name:ident($size:ty) => $method:ident, $text:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Module, Clone, Copy, Debug)]
        #[module(extra_repr)]
        pub struct $name {
            output_size: $size,
        }

        impl $name {
            fn extra_repr(&self) -> String {
                let text: fn($size) -> String = $text;
                format!("output_size={}", text(self.output_size))
            }
        }

        impl Layer for $name {
            #[track_caller]
            fn forward(&self, input: &Tensor) -> Tensor {
                input.$method(self.output_size)
            }
        }
    )*};
}

adaptive_pools! {
    /// The means of as many windows as the output has elements: PyTorch's
    /// [`AdaptiveAvgPool2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveAvgPool2d.html), with
    /// [`Tensor::adaptive_avg_pool2d`].
    ///
    /// # Shapes
    /// - input: `[batch, channels, height, width]`, the batch may be left out
    /// - output: `[batch, channels, output_height, output_width]`
    AdaptiveAvgPool2d([usize; 2]) => adaptive_avg_pool2d, one_or_two;

    /// The largest elements of as many windows as the output has elements: PyTorch's
    /// [`AdaptiveMaxPool2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveMaxPool2d.html), with
    /// [`Tensor::adaptive_max_pool2d`].
    ///
    /// # Shapes
    /// As [`AdaptiveAvgPool2d`].
    AdaptiveMaxPool2d([usize; 2]) => adaptive_max_pool2d, one_or_two;

    /// The means of as many windows as the output has elements: PyTorch's
    /// [`AdaptiveAvgPool1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveAvgPool1d.html), with
    /// [`Tensor::adaptive_avg_pool1d`].
    ///
    /// # Shapes
    /// - input: `[batch, channels, length]`, the batch may be left out
    /// - output: `[batch, channels, output_size]`
    AdaptiveAvgPool1d(usize) => adaptive_avg_pool1d, |size| size.to_string();

    /// The largest elements of as many windows as the output has elements: PyTorch's
    /// [`AdaptiveMaxPool1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveMaxPool1d.html), with
    /// [`Tensor::adaptive_max_pool1d`].
    ///
    /// # Shapes
    /// As [`AdaptiveAvgPool1d`].
    AdaptiveMaxPool1d(usize) => adaptive_max_pool1d, |size| size.to_string();
}

impl AdaptiveAvgPool2d {
    /// To this height and width, or one number for both.
    pub fn new(output_size: impl Into<Size2>) -> AdaptiveAvgPool2d {
        AdaptiveAvgPool2d { output_size: output_size.into().0 }
    }
}

impl AdaptiveMaxPool2d {
    /// To this height and width, or one number for both.
    pub fn new(output_size: impl Into<Size2>) -> AdaptiveMaxPool2d {
        AdaptiveMaxPool2d { output_size: output_size.into().0 }
    }
}

impl AdaptiveAvgPool1d {
    /// To this length.
    pub fn new(output_size: usize) -> AdaptiveAvgPool1d {
        AdaptiveAvgPool1d { output_size }
    }
}

impl AdaptiveMaxPool1d {
    /// To this length.
    pub fn new(output_size: usize) -> AdaptiveMaxPool1d {
        AdaptiveMaxPool1d { output_size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_pytorchs() {
        let texts = [
            MaxPool2d::new(2).to_string(),
            MaxPool2d::new([3, 2]).stride(2).padding(1).to_string(),
            MaxPool2d::new(3).stride(2).padding(1).dilation(2).ceil_mode(true).to_string(),
            MaxPool1d::new(2).to_string(),
            AvgPool2d::new([3, 2]).to_string(),
            AvgPool1d::new(2).to_string(),
            AdaptiveAvgPool2d::new(1).to_string(),
            AdaptiveMaxPool2d::new([2, 3]).to_string(),
            AdaptiveAvgPool1d::new(4).to_string(),
        ];
        let expected = [
            "MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)",
            "MaxPool2d(kernel_size=(3, 2), stride=2, padding=1, dilation=1, ceil_mode=False)",
            "MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=2, ceil_mode=True)",
            "MaxPool1d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)",
            "AvgPool2d(kernel_size=(3, 2), stride=(3, 2), padding=0)",
            "AvgPool1d(kernel_size=(2,), stride=(2,), padding=(0,))",
            "AdaptiveAvgPool2d(output_size=1)",
            "AdaptiveMaxPool2d(output_size=(2, 3))",
            "AdaptiveAvgPool1d(output_size=4)",
        ];
        assert_eq!(texts, expected);
    }
}
