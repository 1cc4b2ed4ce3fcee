//! Planes of another size: interpolation, and channels exchanged for resolution.

use super::lowering::wide;
use crate::dispatch::{run, run_fused};
use crate::dtype::DType;
use crate::grads;
use crate::op::{Axis, Filter, Op};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// How [`Tensor::interpolate`] finds values between elements: PyTorch's modes by name.
///
/// With `align_corners` the centres of the first and last elements stay where they are, else the outer edges do (PyTorch's default).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interpolation {
    /// The element at `⌊i in / out⌋`.
    Nearest,
    /// The element whose centre is nearest: `⌊(i + ½) in / out⌋`.
    NearestExact,
    /// Between the two neighbours in a sequence.
    Linear {
        /// Keep the first and last centres.
        align_corners: bool,
    },
    /// Between the four neighbours in a plane.
    Bilinear {
        /// Keep the corner elements' centres.
        align_corners: bool,
    },
    /// A cubic through 16 neighbours in a plane (Keys's kernel with `a = -0.75`).
    Bicubic {
        /// Keep the corner elements' centres.
        align_corners: bool,
    },
}

/// The size that [`Tensor::interpolate`] aims at: whole numbers are sizes (PyTorch's `size`), fractions factors
/// (`scale_factor`); one number goes for height and width.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Resize {
    /// This many elements along every axis.
    Size(usize),
    /// Height and width.
    Sizes([usize; 2]),
    /// `⌊size · factor⌋` along every axis.
    Factor(f64),
    /// Factors of height and width.
    Factors([f64; 2]),
}

impl From<usize> for Resize {
    fn from(size: usize) -> Resize {
        Resize::Size(size)
    }
}

impl From<[usize; 2]> for Resize {
    fn from(sizes: [usize; 2]) -> Resize {
        Resize::Sizes(sizes)
    }
}

impl From<f64> for Resize {
    fn from(factor: f64) -> Resize {
        Resize::Factor(factor)
    }
}

impl From<[f64; 2]> for Resize {
    fn from(factors: [f64; 2]) -> Resize {
        Resize::Factors(factors)
    }
}

impl Tensor {
    /// Planes or sequences of another size, as PyTorch's
    /// [`interpolate`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.interpolate.html). A whole number as `size`
    /// is a size, a fraction a factor.
    ///
    /// ```
    /// # use orkest_core::{Device, Interpolation, Tensor};
    /// let x = Tensor::new([[[1.0f32, 2.0]]], &Device::cpu());
    /// assert_eq!(x.interpolate(2.0, Interpolation::Nearest).to_vec::<f32>().unwrap(), [1.0, 1.0, 2.0, 2.0]);
    /// let between = Interpolation::Linear { align_corners: true };
    /// assert_eq!(x.interpolate(3, between).to_vec::<f32>().unwrap(), [1.0, 1.5, 2.0]);
    /// ```
    ///
    /// # Shapes
    /// - input: `[batch, channels, height, width]` or `[batch, channels, length]`
    /// - output: the same with other sizes
    ///
    /// # Panics
    /// If the rank or the number of sizes does not suit the mode, a size is or becomes zero, or the dtype is not a float.
    #[track_caller]
    pub fn interpolate(&self, size: impl Into<Resize>, mode: Interpolation) -> Tensor {
        self.require_float("interpolate");
        let size = size.into();
        check_rank(self, size, mode);
        let dtype = match mode {
            Interpolation::Nearest | Interpolation::NearestExact => self.dtype(),
            _ => wide(self.dtype()),
        };
        let axis = |d: usize| {
            let (output, factor) = target(self, d, size);
            Axis { input: self.shape()[d], output, filter: filter(mode, factor) }
        };
        let x = self.to_dtype(dtype);
        let y = if self.rank() == 4 {
            resample_planes("interpolate", &x, [axis(2), axis(3)])
        } else {
            let same = Axis { input: 1, output: 1, filter: filter(Interpolation::Nearest, None) };
            resample_planes("interpolate", &x.unsqueeze(2), [same, axis(2)]).map(|y| y.squeeze(2))
        };
        // Else the last axis first: the others are then done on what it has made, in whole rows.
        let y = y.unwrap_or_else(|| (2..self.rank()).rev().fold(x, |x, d| resample_axis(&x, d, axis(d))));
        y.to_dtype(self.dtype())
    }

    /// Channels exchanged for resolution, as PyTorch's
    /// [`pixel_shuffle`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.pixel_shuffle.html).
    ///
    /// # Shapes
    /// - input: `[.., channels * r², height, width]` with `r = upscale_factor`
    /// - output: `[.., channels, height * r, width * r]`
    ///
    /// # Panics
    /// If there are fewer than three dimensions, or the channels are no multiple of `r²`.
    #[track_caller]
    pub fn pixel_shuffle(&self, upscale_factor: usize) -> Tensor {
        let r = upscale_factor;
        if self.rank() < 3 || r == 0 || !self.size(-3).is_multiple_of(r * r) {
            panic!(
                "pixel_shuffle: an input of [.., channels * {r} * {r}, height, width] is needed. input: {}",
                self.describe()
            );
        }
        let [channels, height, width] = [self.size(-3) / (r * r), self.size(-2), self.size(-1)];
        let images: usize = self.shape()[..self.rank() - 3].iter().product();
        let y = self.reshape([images, channels, r, r, height, width]).permute([0, 1, 4, 2, 5, 3]);
        let mut shape = self.shape().to_vec();
        shape.splice(self.rank() - 3.., [channels, height * r, width * r]);
        y.reshape(shape)
    }

    /// Resolution exchanged for channels, the inverse of [`Tensor::pixel_shuffle`], as PyTorch's
    /// [`pixel_unshuffle`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.pixel_unshuffle.html).
    ///
    /// # Shapes
    /// - input: `[.., channels, height * r, width * r]` with `r = downscale_factor`
    /// - output: `[.., channels * r², height, width]`
    ///
    /// # Panics
    /// If there are fewer than three dimensions, or height or width is no multiple of `r`.
    #[track_caller]
    pub fn pixel_unshuffle(&self, downscale_factor: usize) -> Tensor {
        let r = downscale_factor;
        if self.rank() < 3 || r == 0 || !self.size(-2).is_multiple_of(r) || !self.size(-1).is_multiple_of(r) {
            panic!(
                "pixel_unshuffle: an input of [.., channels, height * {r}, width * {r}] is needed. input: {}",
                self.describe()
            );
        }
        let [channels, height, width] = [self.size(-3), self.size(-2) / r, self.size(-1) / r];
        let images: usize = self.shape()[..self.rank() - 3].iter().product();
        let y = self.reshape([images, channels, height, r, width, r]).permute([0, 1, 3, 5, 2, 4]);
        let mut shape = self.shape().to_vec();
        shape.splice(self.rank() - 3.., [channels * r * r, height, width]);
        y.reshape(shape)
    }
}

#[track_caller]
fn check_rank(x: &Tensor, size: Resize, mode: Interpolation) {
    let fits = match mode {
        Interpolation::Nearest | Interpolation::NearestExact => matches!(x.rank(), 3 | 4),
        Interpolation::Linear { .. } => x.rank() == 3,
        Interpolation::Bilinear { .. } | Interpolation::Bicubic { .. } => x.rank() == 4,
    };
    if !fits {
        panic!(
            "interpolate: {mode:?} does not work on {} dimensions; Linear takes [batch, channels, length], Bilinear and Bicubic \
             [batch, channels, height, width], the others both. input: {}",
            x.rank(),
            x.describe()
        );
    }
    if x.rank() == 3 && matches!(size, Resize::Sizes(_) | Resize::Factors(_)) {
        panic!("interpolate: a sequence has one size, not {size:?}. input: {}", x.describe());
    }
    if x.shape()[2..].contains(&0) {
        panic!("interpolate: there is nothing to interpolate between. input: {}", x.describe());
    }
}

/// The size of dimension `d` afterwards, and the factor if that was given.
#[track_caller]
fn target(x: &Tensor, d: usize, size: Resize) -> (usize, Option<f64>) {
    let (size, factor) = match size {
        Resize::Size(size) => (size, None),
        Resize::Sizes(sizes) => (sizes[d - 2], None),
        Resize::Factor(factor) => ((x.shape()[d] as f64 * factor) as usize, Some(factor)),
        Resize::Factors(factors) => ((x.shape()[d] as f64 * factors[d - 2]) as usize, Some(factors[d - 2])),
    };
    if size == 0 {
        panic!("interpolate: dimension {d} would have no elements left. input: {}", x.describe());
    }
    (size, factor)
}

fn filter(mode: Interpolation, factor: Option<f64>) -> Filter {
    match mode {
        Interpolation::Nearest => Filter::Nearest { factor, shift: 0.0 },
        Interpolation::NearestExact => Filter::Nearest { factor, shift: 0.5 },
        Interpolation::Linear { align_corners } | Interpolation::Bilinear { align_corners } => {
            Filter::Linear { factor, align_corners }
        }
        Interpolation::Bicubic { align_corners } => Filter::Cubic { factor, align_corners },
    }
}

/// `[n, c, h, w]` with both axes resampled at once, where the backend has a kernel for it.
#[track_caller]
pub(super) fn resample_planes(op: &'static str, x: &Tensor, axes: [Axis; 2]) -> Option<Tensor> {
    let shape = Shape::from([x.size(0), x.size(1), axes[0].output, axes[1].output]);
    let [y] = run_fused(op, Op::Resample { axes, adjoint: false }, &[x], [(shape, x.dtype())])?;
    Some(recorded(op, y, x, axes, false))
}

/// The gradient of the sums is the transposed sums, whose gradient is the sums again.
#[track_caller]
fn recorded(op: &'static str, y: Tensor, x: &Tensor, axes: [Axis; 2], adjoint: bool) -> Tensor {
    y.recorded(op, &[x], &[], move |c| {
        let sizes = axes.map(|axis| if adjoint { axis.output } else { axis.input });
        let [n, channels, _, _] = c.grad().dims();
        let shape = Shape::from([n, channels, sizes[0], sizes[1]]);
        let transposed = Op::Resample { axes, adjoint: !adjoint };
        let dx = run(op, transposed, &[c.grad()], shape, c.grad().dtype());
        grads![recorded(op, dx, c.grad(), axes, !adjoint)]
    })
}

/// One axis: a weighted sum of neighbours, each an `index_select`.
#[track_caller]
fn resample_axis(x: &Tensor, d: usize, axis: Axis) -> Tensor {
    let taps = axis.taps(x.dtype() == DType::F64);
    let count = taps.places.len() / axis.output; // every filter that comes here has as many terms for every element
    let mut along = vec![1; x.rank() - d];
    along[0] = axis.output;
    let term = |k: usize| {
        let places: Vec<i64> = taps.places.iter().skip(k).step_by(count).map(|&place| place as i64).collect();
        let selected = x.index_select(d as isize, &Tensor::from_slice(&places, axis.output, x.device()));
        if count == 1 {
            return selected; // the nearest, with a weight of 1
        }
        let weights: Vec<f64> = taps.weights.iter().skip(k).step_by(count).copied().collect();
        selected * Tensor::from_slice(&weights, &along[..], (x.dtype(), x.device()))
    };
    (1..count).fold(term(0), |sum, k| sum + term(k))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_with_gradients, wave};
    use super::{Interpolation, Resize};
    use crate::{Tensor, gradcheck, gradgradcheck};
    #[test]
    fn every_mode_is_pytorchs() {
        let x = wave([1, 1, 3, 2], 0.0);
        let y = x.interpolate([4, 3], Interpolation::Nearest);
        assert_eq!(*y.shape(), [1, 1, 4, 3]);
        assert_with_gradients(
            &y,
            &[&x],
            &[
                0.0, 0.0, 0.991665, 0.0, 0.0, 0.991665, -0.255541, -0.255541, -0.925815, 0.494113, 0.494113,
                0.798487,
            ],
            &[&[1.507092, -0.275648, -1.122239, 0.999309, -1.067533, 0.343315]],
        );
        let y = x.interpolate([4, 3], Interpolation::NearestExact);
        assert_eq!(*y.shape(), [1, 1, 4, 3]);
        assert_with_gradients(
            &y,
            &[&x],
            &[
                0.0, 0.991665, 0.991665, -0.255541, -0.925815, -0.925815, -0.255541, -0.925815, -0.925815,
                0.494113, 0.798487, 0.798487,
            ],
            &[&[0.479426, 0.12073, -1.587902, 2.09626, -0.091907, -0.632311]],
        );
        let y = x.interpolate([4, 3], Interpolation::Bilinear { align_corners: false });
        assert_eq!(*y.shape(), [1, 1, 4, 3]);
        assert_with_gradients(
            &y,
            &[&x],
            &[
                0.0, 0.495832, 0.991665, -0.159713, -0.183237, -0.20676, 0.025579, -0.126811, -0.279202,
                0.494113, 0.6463, 0.798487,
            ],
            &[&[0.806406, 0.030483, -0.778428, 1.096153, -0.969509, 0.199192]],
        );
        let y = x.interpolate([4, 3], Interpolation::Bicubic { align_corners: false });
        assert_eq!(*y.shape(), [1, 1, 4, 3]);
        assert_with_gradients(
            &y,
            &[&x],
            &[
                -0.078095, 0.573819, 1.225733, -0.230324, -0.335051, -0.439778, 0.030069, -0.264298,
                -0.558666, 0.515428, 0.735087, 0.954747,
            ],
            &[&[1.081654, -0.19743, -1.155025, 1.544951, -1.06498, 0.175126]],
        );
        let y = x.interpolate([1.7, 2.5], Interpolation::Bilinear { align_corners: true });
        assert_eq!(*y.shape(), [1, 1, 5, 5]);
        assert_with_gradients(
            &y,
            &[&x],
            &[
                0.0, 0.247916, 0.495832, 0.743749, 0.991665, -0.127771, -0.087597, -0.047423, -0.007249,
                0.032925, -0.255541, -0.423109, -0.590678, -0.758246, -0.925815, 0.119286, 0.073549,
                0.027811, -0.017926, -0.063664, 0.494113, 0.570207, 0.6463, 0.722394, 0.798487,
            ],
            &[&[0.514932, 0.403035, -0.166177, -0.25444, -0.033782, 0.333673]],
        );
        let x = wave([1, 2, 4], 0.0);
        let y = x.interpolate(0.6, Interpolation::Linear { align_corners: false });
        assert_eq!(*y.shape(), [1, 2, 2]);
        assert_with_gradients(
            &y,
            &[&x],
            &[0.330555, -0.255541, 0.595571, -0.699875],
            &[&[0.319617, 0.159809, 0.808496, 0.0, -0.458511, -0.229255, -0.631267, 0.0]],
        );
    }

    #[test]
    fn shuffling_is_pytorchs() {
        let x = wave([4, 1, 2], 0.0);
        let y = x.pixel_shuffle(2);
        assert_eq!(*y.shape(), [1, 2, 4]);
        assert_with_gradients(
            &y,
            &[&x],
            &[0.0, -0.255541, 0.991665, -0.925815, 0.494113, -0.699875, 0.798487, -0.618137],
            &[&[0.479426, -0.687766, 0.808496, -0.631267, 0.850437, -0.956635, 0.412118, -0.165604]],
        );
        let x = wave([1, 2, 4], 0.0);
        let y = x.pixel_unshuffle(2);
        assert_eq!(*y.shape(), [4, 1, 2]);
        assert_with_gradients(
            &y,
            &[&x],
            &[0.0, -0.255541, 0.991665, -0.925815, 0.494113, -0.699875, 0.798487, -0.618137],
            &[&[0.479426, -0.687766, 0.808496, -0.631267, 0.850437, -0.956635, 0.412118, -0.165604]],
        );
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        let inputs = [wave([1, 2, 3, 2], 0.0)];
        for mode in [
            Interpolation::Nearest,
            Interpolation::Bilinear { align_corners: false },
            Interpolation::Bicubic { align_corners: true },
        ] {
            let f = |t: &[Tensor]| t[0].interpolate([4, 5], mode);
            gradcheck(f, &inputs).unwrap();
            gradgradcheck(f, &inputs).unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "interpolate: Bilinear { align_corners: false } does not work on 3 dimensions")]
    fn a_mode_for_other_ranks_is_named() {
        wave([1, 2, 3], 0.0).interpolate(2.0, Interpolation::Bilinear { align_corners: false });
    }

    #[test]
    #[should_panic(expected = "interpolate: dimension 2 would have no elements left. input: f64 [1, 2, 3]")]
    fn nothing_left_is_refused() {
        wave([1, 2, 3], 0.0).interpolate(Resize::Factor(0.2), Interpolation::Nearest);
    }

    #[test]
    #[should_panic(
        expected = "pixel_shuffle: an input of [.., channels * 2 * 2, height, width] is needed. input: f64 [6, 2, 2]"
    )]
    fn channels_that_do_not_fit_are_named() {
        wave([6, 2, 2], 0.0).pixel_shuffle(2);
    }
}
