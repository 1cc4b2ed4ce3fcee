//! The gamma function's logarithm and its derivatives, and the inverse of the error function: computed on the host in f64, one number
//! after the other, and rounded to the tensor's dtype, so that devices agree.

use super::creation::ok;
use crate::autograd::Save;
use crate::device::Device;
use crate::dtype::DType;
use crate::grads;
use crate::special;
use crate::tensor::Tensor;
use std::f64::consts::PI;

impl Tensor {
    /// The natural logarithm of the size of the gamma function, `ln |Γ(x)|`; infinite at 0, -1, -2, ... Integers become f32 first.
    ///
    /// ```
    /// # use orkest_core::tensor;
    /// assert_eq!(tensor![1.0, 5.0].lgamma().exp().round().to_vec::<f32>().unwrap(), [1.0, 24.0]); // 0! and 4!
    /// ```
    #[track_caller]
    pub fn lgamma(&self) -> Tensor {
        let x = self.for_host();
        let y = x.on_host("lgamma", special::lgamma);
        y.recorded("lgamma", &[&x], &[Save::Input(0)], |c| grads![c.grad() * c.saved(0).digamma()])
    }

    /// The derivative of [`Tensor::lgamma`], `Γ'(x) / Γ(x)`; NaN at -1, -2, ... Integers become f32 first.
    #[track_caller]
    pub fn digamma(&self) -> Tensor {
        self.polygamma_as("digamma", 0)
    }

    /// The `n`-th derivative of [`Tensor::digamma`]. Integers become f32 first.
    #[track_caller]
    pub fn polygamma(&self, n: u32) -> Tensor {
        self.polygamma_as("polygamma", n)
    }

    #[track_caller]
    fn polygamma_as(&self, name: &'static str, n: u32) -> Tensor {
        let x = self.for_host();
        let y = x.on_host(name, |x| special::polygamma(n, x));
        y.recorded(name, &[&x], &[Save::Input(0)], move |c| grads![c.grad() * c.saved(0).polygamma(n + 1)])
    }

    /// The inverse of [`Tensor::erf`]: ±∞ at ±1, NaN beyond. Integers become f32 first.
    #[track_caller]
    pub fn erfinv(&self) -> Tensor {
        let x = self.for_host();
        let y = x.on_host("erfinv", special::erfinv);
        y.recorded("erfinv", &[&x], &[Save::Output(0)], |c| {
            grads![c.grad() * c.saved(0).square().exp() * (PI.sqrt() / 2.0)]
        })
    }

    #[track_caller]
    fn for_host(&self) -> Tensor {
        if self.dtype().is_float() { self.clone() } else { self.to_dtype(DType::F32) }
    }

    #[track_caller]
    fn on_host(&self, name: &'static str, function: impl Fn(f64) -> f64) -> Tensor {
        let host = self.detach().to(&Device::cpu()).to_dtype(DType::F64);
        let mut values = ok(name, host.to_vec::<f64>());
        values.iter_mut().for_each(|x| *x = function(*x));
        Tensor::from_slice(&values, *self.shape(), (self.dtype(), self.device()))
    }
}
