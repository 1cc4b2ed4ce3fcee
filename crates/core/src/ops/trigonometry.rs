//! Inverse and hyperbolic functions, computed from the ones that backends know.

use super::lowering::wide;
use crate::autograd::Save;
use crate::dtype::DType;
use crate::grads;
use crate::tensor::Tensor;
use std::f64::consts::LN_2;

/// Above this the terms that are left out are smaller than f64 can tell, and squares would overflow f32 soon.
const LARGE: f64 = 1e10;

impl Tensor {
    /// Arc sine in radians; NaN outside `[-1, 1]`. Integers become f32 first.
    #[track_caller]
    pub fn asin(&self) -> Tensor {
        self.composed("asin", |x| x.atan2(((1 - x) * (x + 1)).sqrt()), |x| (1 - x.square()).rsqrt())
    }

    /// Arc cosine in radians; NaN outside `[-1, 1]`. Integers become f32 first.
    #[track_caller]
    pub fn acos(&self) -> Tensor {
        self.composed("acos", |x| ((1 - x) * (x + 1)).sqrt().atan2(x), |x| -(1 - x.square()).rsqrt())
    }

    /// Hyperbolic sine. Integers become f32 first.
    #[track_caller]
    pub fn sinh(&self) -> Tensor {
        self.composed("sinh", |x| odd(x, sinh_of_positive), Tensor::cosh)
    }

    /// Hyperbolic cosine. Integers become f32 first.
    #[track_caller]
    pub fn cosh(&self) -> Tensor {
        self.composed("cosh", cosh, Tensor::sinh)
    }

    /// Inverse of [`Tensor::sinh`]. Integers become f32 first.
    #[track_caller]
    pub fn asinh(&self) -> Tensor {
        self.composed("asinh", |x| odd(x, asinh_of_positive), |x| (x.square() + 1).rsqrt())
    }

    /// Inverse of [`Tensor::cosh`]; NaN below 1. Integers become f32 first.
    #[track_caller]
    pub fn acosh(&self) -> Tensor {
        let value = |x: &Tensor| {
            let above = x - 1;
            let near = (&above + (&above * 2 + above.square()).sqrt()).log1p();
            x.gt(LARGE).where_(x.log() + LN_2, near)
        };
        self.composed("acosh", value, |x| (x - 1).rsqrt() * (x + 1).rsqrt())
    }

    /// Inverse of [`Tensor::tanh`]; NaN outside `[-1, 1]`. Integers become f32 first.
    #[track_caller]
    pub fn atanh(&self) -> Tensor {
        self.composed("atanh", |x| odd(x, |x| (x * 2 / (1 - x)).log1p() * 0.5), |x| 1 / (1 - x.square()))
    }

    /// `value` of this tensor with `slope` as its derivative, both in at least f32.
    #[track_caller]
    fn composed(
        &self,
        name: &'static str,
        value: fn(&Tensor) -> Tensor,
        slope: fn(&Tensor) -> Tensor,
    ) -> Tensor {
        let x = if self.dtype().is_float() { self.clone() } else { self.to_dtype(DType::F32) };
        let y = value(&x.detach().to_dtype(wide(x.dtype()))).to_dtype(x.dtype());
        y.recorded(name, &[&x], &[Save::Input(0)], move |c| grads![c.grad() * slope(c.saved(0))])
    }
}

/// A function with `f(-x) = -f(x)` from its positive half.
#[track_caller]
fn odd(x: &Tensor, positive: fn(&Tensor) -> Tensor) -> Tensor {
    let y = positive(&x.abs());
    x.lt(0).where_(-&y, &y)
}

#[track_caller]
fn sinh_of_positive(x: &Tensor) -> Tensor {
    // Near 0 the two exponentials would cancel.
    let e = x.expm1();
    let near = (&e + &e / (&e + 1)) * 0.5;
    // The square of the root, because the exponential itself overflows before the result does.
    let root = (x * 0.5).exp();
    x.lt(1).where_(near, &root * 0.5 * &root - 0.5 / root.square())
}

#[track_caller]
fn cosh(x: &Tensor) -> Tensor {
    let root = (x.abs() * 0.5).exp();
    &root * 0.5 * &root + 0.5 / root.square()
}

#[track_caller]
fn asinh_of_positive(x: &Tensor) -> Tensor {
    let square = x.square();
    let near = (x + &square / ((&square + 1).sqrt() + 1)).log1p();
    x.gt(LARGE).where_(x.log() + LN_2, near)
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tensor};

    #[test]
    fn values_agree_with_the_standard_library() {
        type Case = (fn(&Tensor) -> Tensor, fn(f64) -> f64, &'static [f64]);
        let cases: [Case; 7] = [
            (Tensor::asin, f64::asin, &[-1.0, -0.999999, -1e-9, 0.0, 0.3, 1.0, 1.5]),
            (Tensor::acos, f64::acos, &[-1.0, -0.4, 0.0, 1e-9, 0.999999, 1.0, -1.5]),
            (Tensor::sinh, f64::sinh, &[-710.0, -1.0, -1e-9, 0.0, 0.5, 3.0, 710.0, f64::INFINITY]),
            (Tensor::cosh, f64::cosh, &[-710.0, -1.0, 0.0, 1e-9, 3.0, 710.0, f64::NEG_INFINITY]),
            (Tensor::asinh, f64::asinh, &[-1e300, -3.0, -1e-9, 0.0, 0.1, 1e5, 1e300]),
            (Tensor::acosh, f64::acosh, &[0.5, 1.0, 1.5, 2.0, 1e5, 1e300]),
            (Tensor::atanh, f64::atanh, &[-1.0, -0.5, -1e-9, 0.0, 0.9999, 1.0, 2.0]),
        ];
        for (function, expected, values) in cases {
            let y = function(&Tensor::new(values, &Device::reference())).to_vec::<f64>().unwrap();
            for (&x, y) in values.iter().zip(y) {
                let e = expected(x);
                let close = y == e || y.is_nan() && e.is_nan() || (y - e).abs() <= 1e-14 * e.abs();
                assert!(close, "f({x}) = {y}, expected {e}");
            }
        }
    }
}
