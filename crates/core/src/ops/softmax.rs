//! Softmax and its logarithm.

use super::index::inverse_order;
use super::lowering::wide;
use crate::autograd::{GradMode, Save, is_grad_enabled};
use crate::dispatch::run_fused;
use crate::grads;
use crate::op::Op;
use crate::tensor::Tensor;
use std::borrow::Cow;

impl Tensor {
    /// Softmax along `dim`: `exp(x - max) / sum(exp(x - max))`. Where everything is −∞ the result is NaN, as in PyTorch.
    ///
    /// # Shapes
    /// - input and output: any, e.g. `[batch, classes]` with `dim = -1`
    ///
    /// # Panics
    /// If `dim` is out of range or the dtype is not a float.
    #[track_caller]
    pub fn softmax(&self, dim: isize) -> Tensor {
        self.normalised("softmax", dim, false)
    }

    /// Positions drawn from the softmax of these logits, as something with a gradient: the softmax of `(x + g) / tau`, where `g` is
    /// Gumbel's noise. With `hard` the largest is 1 and all others 0, and the gradient is that of the soft numbers. PyTorch's defaults
    /// are a `tau` of 1, soft, and the last dimension; its noise differs. <https://arxiv.org/abs/1611.01144>
    ///
    /// # Panics
    /// If `tau` is not positive, `dim` is out of range or the dtype is not a float.
    #[track_caller]
    pub fn gumbel_softmax(&self, tau: f64, hard: bool, dim: isize) -> Tensor {
        self.require_float("gumbel_softmax");
        assert!(tau > 0.0, "gumbel_softmax: tau must be positive, it is {tau}");
        let d = self.dim_index("gumbel_softmax", dim) as isize;
        let uniform = self.detach().to_dtype(wide(self.dtype())).rand_like();
        let noise = uniform.log().neg().log().neg().to_dtype(self.dtype());
        let soft = ((self + noise) / tau).softmax(d);
        if !hard || self.rank() == 0 {
            return soft;
        }
        let largest = soft.detach().argmax_keepdim(d);
        let one_hot =
            soft.detach().zeros_like().scatter(d, &largest, &largest.ones_like().to_dtype(soft.dtype()));
        one_hot.recorded("gumbel_softmax", &[&soft], &[], |c| grads![c.grad().clone()])
    }

    /// The logarithm of [`Tensor::softmax`], without underflow: `x - max - ln(sum(exp(x - max)))`.
    ///
    /// # Panics
    /// If `dim` is out of range or the dtype is not a float.
    #[track_caller]
    pub fn log_softmax(&self, dim: isize) -> Tensor {
        self.normalised("log_softmax", dim, true)
    }

    #[track_caller]
    fn normalised(&self, name: &'static str, dim: isize, log: bool) -> Tensor {
        self.require_float(name);
        if self.rank() == 0 && (dim == 0 || dim == -1) {
            return self.reshape([1usize]).normalised(name, 0, log).reshape(());
        }
        let d = self.dim_index(name, dim);
        let last = d + 1 == self.rank();
        let x = self.in_full_precision();
        // The other dimensions keep their order, so that what lies side by side in memory is the last but one.
        let order = (!last).then(|| {
            let others = (0..self.rank()).filter(|&i| i != d);
            others.chain([d]).map(|i| i as isize).collect::<Vec<_>>()
        });
        let x = match &order {
            None => x,
            Some(order) => Cow::Owned(x.permute(&order[..])),
        };
        let y = match run_fused(name, Op::Softmax { log }, &[&x], [(*x.shape(), x.dtype())]) {
            Some([y]) => y,
            None => {
                let _off = GradMode::set(false);
                lowering(&x, log)
            }
        };
        let y = y.recorded(name, &[&x], &[Save::Output(0)], move |c| {
            let (y, g) = (c.saved(0), c.grad());
            if !is_grad_enabled()
                && let Some([dx]) =
                    run_fused("softmax_grad", Op::SoftmaxGrad { log }, &[y, g], [(*y.shape(), y.dtype())])
            {
                return grads![dx];
            }
            // In f32 for half precision: the difference cancels. The engine casts the result back.
            let (y, g) = (y.to_dtype(wide(y.dtype())), g.to_dtype(wide(y.dtype())));
            grads![match log {
                false => (&g - (&g * &y).sum_keepdim(-1)) * y,
                true => &g - y.exp() * g.sum_keepdim(-1),
            }]
        });
        match order {
            None => y,
            Some(order) => y.permute(&inverse_order(&order)[..]),
        }
    }
}

#[track_caller]
fn lowering(x: &Tensor, log: bool) -> Tensor {
    if x.numel() == 0 {
        return x.zeros_like();
    }
    // Half precision is computed in f32 and rounded once.
    let x_wide = x.to_dtype(wide(x.dtype()));
    let shifted = &x_wide - x_wide.max_keepdim(-1);
    let exp = shifted.exp();
    let y = if log { shifted - exp.sum_keepdim(-1).log() } else { &exp / exp.sum_keepdim(-1) };
    y.to_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use crate::{Device, Generator, Tensor, manual_seed, tensor, with_generator};

    #[test]
    fn gumbels_noise_draws_from_the_softmax() {
        with_generator(&mut Generator::new(5), || {
            // other tests draw meanwhile
            let logits = tensor![0.0, 1.0, -1.0].to(&Device::reference()).requires_grad_(true);
            let rows = logits.expand([4000, 3]);
            let hard = rows.gumbel_softmax(0.7, true, -1);
            assert!(hard.sum(1).to_vec::<f32>().unwrap().iter().all(|&sum| sum == 1.0));
            assert!(hard.max(1).to_vec::<f32>().unwrap().iter().all(|&max| max == 1.0));
            // Four standard errors of a share of 4000 are 0.03.
            let difference = hard.detach().mean(0) - logits.detach().softmax(0);
            assert!(difference.abs().max(..).item().unwrap() < 0.03, "{difference}");

            manual_seed(5);
            let soft = rows.gumbel_softmax(0.7, false, 1);
            assert!(soft.argmax(1).equal(&hard.argmax(1)).unwrap());
            let weight = tensor![1.0, 2.0, 4.0].to(&Device::reference());
            let of = |y: Tensor| crate::grad(&[&(y * &weight).sum(..)], &[&logits], Default::default());
            let gradients = [of(hard)[0].clone().unwrap(), of(soft)[0].clone().unwrap()];
            assert!(
                gradients[0].equal(&gradients[1]).unwrap()
                    && gradients[0].abs().max(..).item().unwrap() > 1.0
            );
        });
    }
}
