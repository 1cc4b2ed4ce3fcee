//! Small formulas for which PyTorch has names.

use super::elementwise::{Operand, binary_scalar, broadcast_shape, result_dtype};
use super::lowering::wide;
use crate::autograd::Save;
use crate::dispatch::run;
use crate::dtype::{Category, DType, Scalar};
use crate::grads;
use crate::op::{Binary, Op};
use crate::tensor::Tensor;
use std::borrow::Cow;

impl Tensor {
    /// `a / b` rounded towards -∞, Python's `//`; exact for integers. No gradient.
    ///
    /// ```
    /// # use orkest_core::tensor;
    /// let flat = tensor![0, 5, 11]; // positions in a [3, 4] matrix
    /// assert_eq!(flat.floor_divide(4).to_vec::<i64>().unwrap(), [0, 1, 2]);
    /// assert_eq!((&flat % 4).to_vec::<i64>().unwrap(), [0, 1, 3]);
    /// ```
    ///
    /// # Panics
    /// If the shapes do not broadcast, the devices differ, or (on the CPU; a GPU reports it at the next read) an integer is divided by
    /// zero.
    #[track_caller]
    pub fn floor_divide<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor {
        let (a, b) = self.same_kind("floor_divide", &other.into());
        if a.dtype().is_float() {
            // What is left of a rounded quotient decides, not the quotient: 6 // 0.1 is 59.
            let rest = a.fmod(&b);
            let below = rest.ne(0).logical_and(rest.lt(0).ne(b.lt(0)));
            let whole = ((&a - rest) / &b).round() - below.to_dtype(a.dtype());
            return b.eq(0).where_(&a / &b, whole);
        }
        run("floor_divide", Op::Binary(Binary::Div), &[&a, &b], *a.shape(), a.dtype())
    }

    /// The remainder with the sign of the dividend, C's `fmod`: `a - trunc(a / b) * b`. For Python's see [`Tensor::remainder`].
    ///
    /// # Panics
    /// If the shapes do not broadcast or the devices differ.
    #[track_caller]
    pub fn fmod<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor {
        let other = other.into();
        let b = match other.tensor() {
            Ok(b) => b.clone(),
            Err(s) => Tensor::full((), s, (s.promote(self.dtype()), self.device())),
        };
        let (a, b) = promote_pair("fmod", self, &b);
        // Between positive numbers both remainders are one, and exact.
        let magnitude = |x: &Tensor| match x.dtype() {
            DType::Bool => x.to_dtype(DType::I64),
            _ => x.detach().abs(),
        };
        let r = magnitude(&a).remainder(magnitude(&b));
        let y = a.lt(0).where_(-&r, &r);
        y.recorded("fmod", &[&a, &b], &[Save::Input(0), Save::Input(1)], |c| {
            let slope = || c.grad() * (c.saved(0).detach() / c.saved(1).detach()).trunc();
            grads![c.grad().clone(), c.needs(1).then(|| -slope())]
        })
    }

    /// What is behind the point, with the sign of the number: `x - trunc(x)`.
    #[track_caller]
    pub fn frac(&self) -> Tensor {
        self.require_float("frac");
        self - self.trunc()
    }

    /// `2ˣ`. Integers become f32 first.
    #[track_caller]
    pub fn exp2(&self) -> Tensor {
        let x = if self.dtype().is_float() { self.clone() } else { self.to_dtype(DType::F32) };
        binary_scalar(Binary::Pow, Cow::Owned(x), Scalar::Float(2.0), true)
    }

    /// `self + value * a * b`. PyTorch's default `value` is 1.
    ///
    /// # Panics
    /// If the shapes do not broadcast or the devices differ.
    #[track_caller]
    pub fn addcmul(&self, a: &Tensor, b: &Tensor, value: impl Into<Scalar>) -> Tensor {
        self + a * b * value.into()
    }

    /// `self + value * a / b`. PyTorch's default `value` is 1.
    ///
    /// # Panics
    /// If the shapes do not broadcast or the devices differ.
    #[track_caller]
    pub fn addcdiv(&self, a: &Tensor, b: &Tensor, value: impl Into<Scalar>) -> Tensor {
        self + a / b * value.into()
    }

    /// `√(a² + b²)`; at (0, 0) the gradient is NaN, as in PyTorch.
    ///
    /// # Panics
    /// If the shapes do not broadcast or the devices differ, or no operand is a float.
    #[track_caller]
    pub fn hypot(&self, other: &Tensor) -> Tensor {
        self.require_float("hypot");
        other.require_float("hypot");
        let (a, b) = promote_pair("hypot", self, other);
        let (x, y) = (a.detach().abs(), b.detach().abs());
        let (x, y) = (x.to_dtype(wide(a.dtype())), y.to_dtype(wide(a.dtype())));
        let (large, small) = (x.maximum(&y), x.minimum(&y));
        // The squares of the numbers themselves would overflow or vanish.
        let ratio = (small / &large).masked_fill(&large.eq(0), 0);
        let length = large * (ratio.square() + 1).sqrt();
        let length = length.masked_fill(&x.isinf().logical_or(y.isinf()), f64::INFINITY).to_dtype(a.dtype());
        length.recorded("hypot", &[&a, &b], &[Save::Input(0), Save::Input(1), Save::Output(0)], |c| {
            let length = c.saved(2);
            let slope = |x: &Tensor| c.grad() * (x / length);
            grads![c.needs(0).then(|| slope(c.saved(0))), c.needs(1).then(|| slope(c.saved(1)))]
        })
    }

    /// `ln(eᵃ + eᵇ)`, without overflow. Of two equal infinities the gradient is NaN, as in PyTorch.
    ///
    /// # Panics
    /// If the shapes do not broadcast, the devices differ, or an operand is not a float.
    #[track_caller]
    pub fn logaddexp(&self, other: &Tensor) -> Tensor {
        self.require_float("logaddexp");
        other.require_float("logaddexp");
        let (a, b) = promote_pair("logaddexp", self, other);
        let y = a.detach().log_add_exp(&b.detach());
        y.recorded("logaddexp", &[&a, &b], &[Save::Input(0), Save::Input(1)], |c| {
            let (a, b, g) = (c.saved(0), c.saved(1), c.grad());
            grads![c.needs(0).then(|| g / ((b - a).exp() + 1)), c.needs(1).then(|| g / ((a - b).exp() + 1))]
        })
    }

    /// [`Tensor::logaddexp`] of one dtype, with gradients of its steps, in which two infinities of running sums do no harm.
    #[track_caller]
    pub(super) fn log_add_exp(&self, b: &Tensor) -> Tensor {
        let a = self;
        let larger = a.maximum(b);
        // Equal infinities have no difference.
        let same = a.eq(b).logical_and(a.isinf());
        let distance = (a.masked_fill(&same, 0) - b.masked_fill(&same, 0)).abs();
        let gap = distance.neg().exp().log1p();
        same.where_(&larger, &larger + gap)
    }

    /// `a ln(b)`, and 0 where `a` is 0 (unless `b` is NaN).
    ///
    /// # Panics
    /// If the shapes do not broadcast or the devices differ.
    #[track_caller]
    pub fn xlogy<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor {
        let other = other.into();
        let b = match other.tensor() {
            Ok(b) => b.clone(),
            Err(s) => Tensor::full((), s.as_f64(), (Scalar::Float(0.0).promote(self.dtype()), self.device())),
        };
        let zero = self.eq(0).logical_and(b.isnan().logical_not());
        let y = zero.where_(0, self.detach() * b.detach().log());
        y.recorded("xlogy", &[self, &b], &[Save::Input(0), Save::Input(1)], |c| {
            let (a, b, g) = (c.saved(0), c.saved(1), c.grad());
            grads![
                c.needs(0).then(|| g.xlogy(b).masked_fill(&a.eq(0).logical_and(b.le(0)), 0)),
                c.needs(1).then(|| g * a / b)
            ]
        })
    }

    /// `ln(x / (1 - x))`, the inverse of [`Tensor::sigmoid`]; with `eps` the input is first limited to `[eps, 1 - eps]`.
    #[track_caller]
    pub fn logit(&self, eps: impl Into<Option<f64>>) -> Tensor {
        let eps = eps.into();
        let x = if self.dtype().is_float() { self.clone() } else { self.to_dtype(DType::F32) };
        let inside = x.detach().to_dtype(wide(x.dtype()));
        let inside = eps.map_or_else(|| inside.clone(), |eps| inside.clamp(eps, 1.0 - eps));
        let y = (&inside / (1 - &inside)).log().to_dtype(x.dtype());
        y.recorded("logit", &[&x], &[Save::Input(0)], move |c| {
            let x = c.saved(0);
            let (low, beyond) = eps.map_or((0.0, f64::NAN), |eps| (eps, 0.0));
            let outside = x.lt(low).logical_or(x.gt(1.0 - low));
            grads![(c.grad() / (x * (1 - x))).masked_fill(&outside, beyond)]
        })
    }

    /// NaN, +∞ and -∞ replaced; `None` for an infinity stands for the largest (smallest) number of the dtype. PyTorch's defaults
    /// are 0, `None`, `None`. The gradient passes where nothing was replaced.
    #[track_caller]
    pub fn nan_to_num(
        &self,
        nan: f64,
        posinf: impl Into<Option<f64>>,
        neginf: impl Into<Option<f64>>,
    ) -> Tensor {
        if !self.dtype().is_float() {
            return self.clone();
        }
        let high = posinf.into().unwrap_or(self.dtype().max_value().as_f64());
        let low = neginf.into().unwrap_or(self.dtype().min_value().as_f64());
        let x = self.masked_fill(&self.isnan(), nan);
        x.masked_fill(&self.eq(f64::INFINITY), high).masked_fill(&self.eq(f64::NEG_INFINITY), low)
    }

    /// bool: `|a - b| <= atol + rtol * |b|`, element by element; see [`Tensor::allclose`].
    ///
    /// # Panics
    /// If the shapes do not broadcast or the devices differ.
    #[track_caller]
    pub fn isclose(&self, other: &Tensor, rtol: f64, atol: f64, equal_nan: bool) -> Tensor {
        let (a, b) = promote_pair("isclose", &self.detach(), &other.detach());
        let (a, b) =
            if a.dtype().is_float() { (a, b) } else { (a.to_dtype(DType::F64), b.to_dtype(DType::F64)) };
        let near = (&a - &b).abs().le(b.abs() * rtol + atol).logical_and(b.isfinite());
        let close = near.logical_or(a.eq(&b)); // equal infinities have no difference
        if equal_nan { close.logical_or(a.isnan().logical_and(b.isnan())) } else { close }
    }

    /// bool: is the element one of those of `elements`?
    ///
    /// # Panics
    /// If the devices differ.
    #[track_caller]
    pub fn isin(&self, elements: &Tensor) -> Tensor {
        self.unsqueeze(-1).eq(elements.reshape(-1isize)).any(-1)
    }

    /// True if the shapes agree and `|a - b| <= atol + rtol * |b|` everywhere. NaN equals NaN only if `equal_nan`.
    ///
    /// PyTorch's defaults are `rtol = 1e-5`, `atol = 1e-8`, `equal_nan = false`.
    ///
    /// # Errors
    /// If the device reports what went wrong in an earlier operation.
    #[track_caller]
    pub fn allclose(&self, other: &Tensor, rtol: f64, atol: f64, equal_nan: bool) -> crate::Result<bool> {
        self.isclose(other, rtol, atol, equal_nan).all(..).item_as::<bool>()
    }

    /// True if both have the same shape and equal elements; NaN equals nothing.
    ///
    /// # Errors
    /// If the device reports what went wrong in an earlier operation.
    #[track_caller]
    pub fn equal(&self, other: &Tensor) -> crate::Result<bool> {
        if self.shape() != other.shape() {
            return Ok(false);
        }
        self.eq(other).all(..).item_as::<bool>()
    }

    /// Both operands without history, in their common dtype (integers at least) and shape.
    #[track_caller]
    fn same_kind(&self, op: &str, other: &Operand<'_>) -> (Tensor, Tensor) {
        let b = match other.tensor() {
            Ok(b) => b.detach(),
            Err(s) => Tensor::full((), s, (s.promote(self.dtype()), self.device())),
        };
        let (a, b) = promote_pair(op, &self.detach(), &b);
        let dtype = if a.dtype().category() == Category::Bool { DType::I64 } else { a.dtype() };
        let (a, b) = (a.to_dtype(dtype), b.to_dtype(dtype));
        let shape = broadcast_shape(op, &a, &b);
        (a.broadcast_view(&shape).into_owned(), b.broadcast_view(&shape).into_owned())
    }
}

/// Both operands in their common dtype.
///
/// # Panics
/// If their shapes do not broadcast.
#[track_caller]
pub(super) fn promote_pair(op: &str, a: &Tensor, b: &Tensor) -> (Tensor, Tensor) {
    broadcast_shape(op, a, b);
    let dtype = result_dtype(a, b);
    (a.to_dtype(dtype), b.to_dtype(dtype))
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tensor, tensor};

    #[test]
    fn division_rounds_down_as_in_python() {
        let (a, b) = (tensor![7, -7, 7, -7, 6], tensor![2, 2, -2, -2, -3]);
        assert_eq!(a.floor_divide(&b).to_vec::<i64>().unwrap(), [3, -4, -4, 3, -2]);
        // 2^53 + 1 has no place in f64
        assert_eq!(tensor![9007199254740993i64].floor_divide(1).item_as::<i64>().unwrap(), 9007199254740993);
        assert_eq!(tensor![6.0, -1.0, 1.0].floor_divide(0.1).to_vec::<f32>().unwrap()[..2], [59.0, -10.0]);
        assert_eq!(tensor![1.0].floor_divide(0.0).item().unwrap(), f64::INFINITY);
        assert_eq!(tensor![-7.5, 7.5, -6.0].fmod(2.0).to_vec::<f32>().unwrap(), [-1.5, 1.5, 0.0]);
        assert_eq!(tensor![-7, 7].fmod(-4).to_vec::<i64>().unwrap(), [-3, 3]);
    }

    #[test]
    #[should_panic(expected = "floor_divide: division by zero")]
    fn integers_are_not_divided_by_zero() {
        tensor![1, 2].floor_divide(0);
    }

    #[test]
    fn limits_are_right() {
        let inf = f64::INFINITY;
        let t = |v: &[f64]| Tensor::new(v, &Device::reference());
        let sums = t(&[-inf, inf, 1000.0, -inf]).logaddexp(&t(&[-inf, inf, 1000.0, 2.0]));
        assert_eq!(sums.to_vec::<f64>().unwrap(), [-inf, inf, 1000.0 + 2f64.ln(), 2.0]);
        let y = t(&[0.0, 0.0, 2.0]).xlogy(&t(&[0.0, f64::NAN, 1.0])).to_vec::<f64>().unwrap();
        assert!(y[0] == 0.0 && y[1].is_nan() && y[2] == 0.0);
        let y = t(&[f64::NAN, inf, -inf, 1.0]).nan_to_num(0.0, None, -3.0);
        assert_eq!(y.to_vec::<f64>().unwrap(), [0.0, f64::MAX, -3.0, 1.0]);
        assert!(
            t(&[1.0, f64::NAN])
                .isclose(&t(&[1.0 + 1e-7, f64::NAN]), 1e-5, 1e-8, true)
                .all(..)
                .item()
                .unwrap()
                == 1.0
        );
        assert!(t(&[1.0]).equal(&t(&[1.0])).unwrap() && !t(&[1.0]).equal(&t(&[1.0, 1.0])).unwrap());
    }
}
