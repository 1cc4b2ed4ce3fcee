//! Layers that change the size of planes: interpolation, pixel shuffling; and the order of channels.

use crate::repr::{python_float, python_tuple};
use crate::{Layer, Module};
use orkest_core::{Interpolation, Resize, Tensor};

/// Planes or sequences of another size: PyTorch's
/// [`Upsample`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Upsample.html), with [`Tensor::interpolate`].
///
/// A whole number is a size, a fraction a factor.
///
/// # Shapes
/// - input: `[batch, channels, height, width]` or `[batch, channels, length]`
/// - output: the same with other sizes
///
/// ```
/// use orkest_core::{Device, Interpolation, Tensor};
/// use orkest_nn::{Layer, Upsample};
/// let up = Upsample::new(2.0).mode(Interpolation::Bilinear { align_corners: false });
/// assert_eq!(up.forward(&Tensor::zeros([1, 3, 4, 5], &Device::cpu())).shape(), &[1, 3, 8, 10]);
/// ```
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct Upsample {
    size: Resize,
    mode: Interpolation,
}

impl Upsample {
    /// By repeating the nearest element.
    pub fn new(size: impl Into<Resize>) -> Upsample {
        Upsample { size: size.into(), mode: Interpolation::Nearest }
    }

    /// How values between elements are found.
    pub fn mode(mut self, mode: Interpolation) -> Upsample {
        self.mode = mode;
        self
    }

    fn extra_repr(&self) -> String {
        let size = match self.size {
            Resize::Size(size) => format!("size={size}"),
            Resize::Sizes(sizes) => format!("size={}", python_tuple(&sizes)),
            Resize::Factor(factor) => format!("scale_factor={}", python_float(factor)),
            Resize::Factors([h, w]) => format!("scale_factor=({}, {})", python_float(h), python_float(w)),
        };
        let mode = match self.mode {
            Interpolation::Nearest => "nearest",
            Interpolation::NearestExact => "nearest-exact",
            Interpolation::Linear { .. } => "linear",
            Interpolation::Bilinear { .. } => "bilinear",
            Interpolation::Bicubic { .. } => "bicubic",
        };
        format!("{size}, mode='{mode}'")
    }
}

impl Layer for Upsample {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        input.interpolate(self.size, self.mode)
    }
}

/// Channels exchanged for resolution: PyTorch's
/// [`PixelShuffle`](https://docs.pytorch.org/docs/stable/generated/torch.nn.PixelShuffle.html), with [`Tensor::pixel_shuffle`].
///
/// # Shapes
/// - input: `[.., channels * r², height, width]`
/// - output: `[.., channels, height * r, width * r]`
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct PixelShuffle {
    upscale_factor: usize,
}

impl PixelShuffle {
    /// With `r = upscale_factor`.
    pub fn new(upscale_factor: usize) -> PixelShuffle {
        PixelShuffle { upscale_factor }
    }

    fn extra_repr(&self) -> String {
        format!("upscale_factor={}", self.upscale_factor)
    }
}

impl Layer for PixelShuffle {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        input.pixel_shuffle(self.upscale_factor)
    }
}

/// Resolution exchanged for channels: PyTorch's
/// [`PixelUnshuffle`](https://docs.pytorch.org/docs/stable/generated/torch.nn.PixelUnshuffle.html), with
/// [`Tensor::pixel_unshuffle`].
///
/// # Shapes
/// - input: `[.., channels, height * r, width * r]`
/// - output: `[.., channels * r², height, width]`
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct PixelUnshuffle {
    downscale_factor: usize,
}

impl PixelUnshuffle {
    /// With `r = downscale_factor`.
    pub fn new(downscale_factor: usize) -> PixelUnshuffle {
        PixelUnshuffle { downscale_factor }
    }

    fn extra_repr(&self) -> String {
        format!("downscale_factor={}", self.downscale_factor)
    }
}

impl Layer for PixelUnshuffle {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        input.pixel_unshuffle(self.downscale_factor)
    }
}

/// Channels in another order, so that those of every group come together with those of the others: PyTorch's
/// [`ChannelShuffle`](https://docs.pytorch.org/docs/stable/generated/torch.nn.ChannelShuffle.html).
///
/// # Shapes
/// - input and output: `[batch, channels, ..]`
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct ChannelShuffle {
    groups: usize,
}

impl ChannelShuffle {
    /// # Panics
    /// If `groups` is 0.
    #[track_caller]
    pub fn new(groups: usize) -> ChannelShuffle {
        assert!(groups > 0, "ChannelShuffle: groups must be at least 1");
        ChannelShuffle { groups }
    }

    fn extra_repr(&self) -> String {
        format!("groups={}", self.groups)
    }
}

impl Layer for ChannelShuffle {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        if input.rank() < 3 || !input.size(1).is_multiple_of(self.groups) {
            panic!(
                "ChannelShuffle: an input of [batch, channels, ..] with channels in {} groups is needed. input: {}",
                self.groups,
                input.describe()
            );
        }
        let grouped = input.unflatten(1, [self.groups, input.size(1) / self.groups]);
        grouped.transpose(1, 2).reshape(input.shape())
    }
}

/// One dimension as several, the inverse of [`Flatten`](crate::Flatten): PyTorch's
/// [`Unflatten`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Unflatten.html), with [`Tensor::unflatten`].
///
/// # Shapes
/// - input: `[.., size, ..]`, output: `[.., unflattened_size, ..]` of the same number of elements
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct Unflatten {
    dim: isize,
    unflattened_size: Vec<usize>,
}

impl Unflatten {
    /// Dimension `dim` becomes these.
    pub fn new(dim: isize, unflattened_size: &[usize]) -> Unflatten {
        Unflatten { dim, unflattened_size: unflattened_size.to_vec() }
    }

    fn extra_repr(&self) -> String {
        format!("dim={}, unflattened_size={}", self.dim, python_tuple(&self.unflattened_size))
    }
}

impl Layer for Unflatten {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        input.unflatten(self.dim, &self.unflattened_size[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::Device;

    #[test]
    fn texts_are_pytorchs() {
        let texts = [
            Upsample::new(2.0).mode(Interpolation::Bilinear { align_corners: true }).to_string(),
            Upsample::new([3, 4]).to_string(),
            Upsample::new([2.0, 3.0]).to_string(),
            PixelShuffle::new(2).to_string(),
            PixelUnshuffle::new(2).to_string(),
            Unflatten::new(1, &[2, 5]).to_string(),
        ];
        let expected = [
            "Upsample(scale_factor=2.0, mode='bilinear')",
            "Upsample(size=(3, 4), mode='nearest')",
            "Upsample(scale_factor=(2.0, 3.0), mode='nearest')",
            "PixelShuffle(upscale_factor=2)",
            "PixelUnshuffle(downscale_factor=2)",
            "Unflatten(dim=1, unflattened_size=(2, 5))",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn one_dimension_becomes_two() {
        let x = Tensor::ones([1, 2, 3], &Device::cpu());
        assert_eq!(Unflatten::new(-1, &[3, 1]).forward(&x).shape(), &[1, 2, 3, 1]);
        assert_eq!(ChannelShuffle::new(2).to_string(), "ChannelShuffle(groups=2)");
    }
}
