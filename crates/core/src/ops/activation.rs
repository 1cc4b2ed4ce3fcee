//! The activations that are put together from other operations. Those with kernels of their own are in `elementwise.rs`.
//!
//! Where a function has a kink, its gradient there is PyTorch's.

use crate::autograd::Save;
use crate::grads;
use crate::tensor::Tensor;

impl Tensor {
    /// Limited to `[min_val, max_val]`, -1 and 1 in PyTorch; the gradient at the limits is 0.
    ///
    /// # Panics
    /// If `min_val` is above `max_val`.
    #[track_caller]
    pub fn hardtanh(&self, min_val: f64, max_val: f64) -> Tensor {
        self.require_float("hardtanh");
        assert!(min_val <= max_val, "hardtanh: min_val {min_val} is above max_val {max_val}");
        self.masked_fill(&self.le(min_val), min_val).masked_fill(&self.ge(max_val), max_val)
    }

    /// `min(max(x, 0), 6)`
    #[track_caller]
    pub fn relu6(&self) -> Tensor {
        self.hardtanh(0.0, 6.0)
    }

    /// `min(max(x + 3, 0), 6) / 6`, a sigmoid of straight lines.
    #[track_caller]
    pub fn hardsigmoid(&self) -> Tensor {
        self.require_float("hardsigmoid");
        (self.clamp(-3.0, 3.0) + 3.0) / 6.0
    }

    /// `x hardsigmoid(x)`
    #[track_caller]
    pub fn hardswish(&self) -> Tensor {
        self.require_float("hardswish");
        self * self.hardsigmoid()
    }

    /// `x`, or 0 from `-lambd` to `lambd`, which is 0.5 in PyTorch.
    #[track_caller]
    pub fn hardshrink(&self, lambd: f64) -> Tensor {
        self.require_float("hardshrink");
        self.masked_fill(&self.abs().le(lambd), 0.0)
    }

    /// `x` moved towards 0 by `lambd` (0.5 in PyTorch), but not beyond it.
    ///
    /// # Panics
    /// If `lambd` is negative.
    #[track_caller]
    pub fn softshrink(&self, lambd: f64) -> Tensor {
        self.require_float("softshrink");
        assert!(lambd >= 0.0, "softshrink: lambd must not be negative, it is {lambd}");
        let x = self.detach();
        let y = &x - x.clamp(-lambd, lambd);
        y.recorded("softshrink", &[self], &[Save::Output(0)], |c| {
            grads![c.grad().masked_fill(&c.saved(0).eq(0), 0)]
        })
    }

    /// `x - tanh(x)`
    #[track_caller]
    pub fn tanhshrink(&self) -> Tensor {
        self.require_float("tanhshrink");
        self - self.tanh()
    }

    /// `x / (1 + |x|)`
    #[track_caller]
    pub fn softsign(&self) -> Tensor {
        self.require_float("softsign");
        self / (self.abs() + 1.0)
    }

    /// `x tanh(ln(1 + eˣ))`
    #[track_caller]
    pub fn mish(&self) -> Tensor {
        self.require_float("mish");
        self * self.softplus(1.0, 20.0).tanh()
    }

    /// `scale (max(0, x) + min(0, alpha (eˣ - 1)))` with the constants that keep mean and variance of a deep network
    /// (<https://arxiv.org/abs/1706.02515>).
    #[track_caller]
    pub fn selu(&self) -> Tensor {
        self.elu(1.673_263_242_354_377_2) * 1.050_700_987_355_480_5
    }

    /// `max(0, x) + min(0, alpha (e^(x / alpha) - 1))`; `alpha` is 1 in PyTorch.
    ///
    /// # Panics
    /// If `alpha` is 0.
    #[track_caller]
    pub fn celu(&self, alpha: f64) -> Tensor {
        assert!(alpha != 0.0, "celu: alpha must not be 0");
        (self / alpha).elu(1.0) * alpha
    }

    /// The first half of `dim` (-1 in PyTorch) times the sigmoid of the second: a gated linear unit.
    ///
    /// # Shapes
    /// - input: `[.., 2 n, ..]`, output: `[.., n, ..]`
    ///
    /// # Panics
    /// If the size of `dim` is odd.
    #[track_caller]
    pub fn glu(&self, dim: isize) -> Tensor {
        self.require_float("glu");
        let size = self.shape()[self.dim_index("glu", dim)];
        if !size.is_multiple_of(2) {
            panic!("glu: dimension {dim} cannot be halved, its size is {size}. tensor: {}", self.describe());
        }
        self.narrow(dim, 0, size / 2) * self.narrow(dim, size / 2, size / 2).sigmoid()
    }

    /// `x` where it is above `threshold`, else `value`.
    #[track_caller]
    pub fn threshold(&self, threshold: f64, value: f64) -> Tensor {
        self.require_float("threshold");
        self.masked_fill(&self.le(threshold), value)
    }

    /// `x` where positive, else `weight x`, with one weight, or one for each channel.
    ///
    /// # Shapes
    /// - input and output: any; channels are dimension 1
    /// - `weight`: `[]`, `[1]` or `[channels]`
    ///
    /// # Panics
    /// If there are neither one nor as many weights as channels.
    #[track_caller]
    pub fn prelu(&self, weight: &Tensor) -> Tensor {
        self.require_float("prelu");
        let channels = if self.rank() > 1 { self.shape()[1] } else { 1 };
        if weight.rank() > 1 || !(weight.numel() == 1 || weight.numel() == channels) {
            panic!(
                "prelu: one weight is needed, or [{channels}]. weight: {}; input: {}",
                weight.describe(),
                self.describe()
            );
        }
        let trailing = if weight.numel() == 1 { 0 } else { self.rank().saturating_sub(2) };
        let weight = weight.reshape([&[weight.numel()][..], &vec![1; trailing]].concat());
        let positive = self.gt(0);
        positive.where_(self, weight * self.masked_fill(&positive, 0))
    }

    /// The softmax of `-x` along `dim`.
    #[track_caller]
    pub fn softmin(&self, dim: isize) -> Tensor {
        (-self).softmax(dim)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tensor, gradcheck, gradgradcheck};

    fn points() -> Tensor {
        Tensor::new([-4.0f64, -1.1, -0.3, 0.2, 0.7, 2.5, 7.0, 9.0], Device::reference()).requires_grad_(true)
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        let functions: [fn(&[Tensor]) -> Tensor; 14] = [
            |x| x[0].hardtanh(-1.0, 1.0),
            |x| x[0].relu6(),
            |x| x[0].hardsigmoid(),
            |x| x[0].hardswish(),
            |x| x[0].hardshrink(0.5),
            |x| x[0].softshrink(0.5),
            |x| x[0].tanhshrink(),
            |x| x[0].softsign(),
            |x| x[0].mish(),
            |x| x[0].selu(),
            |x| x[0].celu(0.7),
            |x| x[0].glu(0),
            |x| x[0].threshold(0.1, 5.0),
            |x| x[0].softmin(0),
        ];
        for (i, function) in functions.into_iter().enumerate() {
            gradcheck(function, &[points()]).unwrap_or_else(|e| panic!("function {i}: {e}"));
            gradgradcheck(function, &[points()]).unwrap_or_else(|e| panic!("function {i}: {e}"));
        }
        let weight = Tensor::new([0.25f64, -0.5], Device::reference()).requires_grad_(true);
        gradcheck(|x| x[0].reshape([2, 2, 2]).prelu(&x[1]), &[points(), weight]).unwrap();
    }

    #[test]
    fn kinks_have_pytorchs_gradients() {
        // torch.nn.functional, backward of the sum at these points
        let at = |points: &[f64], f: fn(&Tensor) -> Tensor| {
            let x = Tensor::new(points, Device::reference()).requires_grad_(true);
            f(&x).sum(..).backward();
            x.grad().unwrap().to_vec::<f64>().unwrap()
        };
        assert_eq!(at(&[-1.0, 0.0, 1.0], |x| x.hardtanh(-1.0, 1.0)), [0.0, 1.0, 0.0]);
        assert_eq!(at(&[0.0, 6.0], Tensor::relu6), [0.0, 0.0]);
        assert_eq!(at(&[-3.0, 3.0], Tensor::hardsigmoid), [0.0, 0.0]);
        assert_eq!(at(&[-3.0, 3.0], Tensor::hardswish), [0.0, 1.0]);
        assert_eq!(at(&[-0.5, 0.5], |x| x.hardshrink(0.5)), [0.0, 0.0]);
        assert_eq!(at(&[-0.5, 0.5], |x| x.softshrink(0.5)), [0.0, 0.0]);
        assert_eq!(at(&[1.0], |x| x.threshold(1.0, 0.0)), [0.0]);
        assert_eq!(at(&[0.0], |x| x.prelu(&Tensor::new([0.25f64], Device::reference()))), [0.25]);
    }

    #[test]
    #[should_panic(expected = "glu: dimension 0 cannot be halved, its size is 3")]
    fn an_odd_size_has_no_halves() {
        Tensor::ones(3, Device::reference()).glu(0);
    }
}
