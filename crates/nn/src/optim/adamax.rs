//! Adamax (<https://arxiv.org/abs/1412.6980>, section 7.1).

use super::rule::{Rule, bias_correction, optimizer, with_decay};
use super::state;
use super::{Memory, ParamGroup};
use orkest_core::Tensor;

optimizer! {
    /// Adamax: as [`Adam`](super::Adam), scaled by the largest gradient of late instead of the average square:
    /// `u ← max(β₂ u, |g| + eps)`, `p ← p - lr / (1 - β₁ᵗ) · m / u`. PyTorch's `lr` is 2e-3.
    Adamax(Moments) {
        /// How much of the gradient's average and of its largest size stays from step to step; (0.9, 0.999) by default.
        betas: (f64, f64) = (0.9, 0.999),
        /// Added to the gradient's size; 1e-8 by default.
        eps: f64 = 1e-8,
        /// How strongly weights are pulled to zero, through the gradient; 0 by default.
        weight_decay: f64 = 0.0,
        /// Ascend instead of descend.
        maximize: bool = false,
    }
}

/// What Adamax remembers about one parameter.
#[derive(Debug)]
struct Moments {
    step: u64,
    exp_avg: Tensor,
    exp_inf: Tensor,
}

impl Memory for Moments {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        vec![
            ("step", state::count(self.step)),
            ("exp_avg", self.exp_avg.clone()),
            ("exp_inf", self.exp_inf.clone()),
        ]
    }

    fn from_tensors(saved: &mut state::Saved<'_>, _: &ParamGroup) -> Moments {
        Moments {
            step: saved.count("step"),
            exp_avg: saved.tensor("exp_avg"),
            exp_inf: saved.tensor("exp_inf"),
        }
    }
}

impl Rule for Moments {
    fn new(value: &Tensor, _: &ParamGroup) -> Moments {
        Moments { step: 0, exp_avg: value.zeros_like(), exp_inf: value.zeros_like() }
    }

    fn like_param(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.exp_avg, &mut self.exp_inf]
    }

    #[track_caller]
    fn step(&mut self, grad: Tensor, value: &mut Tensor, group: &ParamGroup) {
        let (beta1, beta2) = group.pair("betas");
        self.step += 1;
        let grad = with_decay(grad, value, group);
        self.exp_avg = self.exp_avg.lerp(&grad, 1.0 - beta1);
        self.exp_inf = (&self.exp_inf * beta2).maximum(grad.abs() + group.number("eps"));
        let step_size = group.lr() / bias_correction(beta1, self.step);
        value.sub_(&(&self.exp_avg * step_size / &self.exp_inf));
    }
}
