//! RAdam (<https://arxiv.org/abs/1908.03265>).

use super::rule::{Rule, average_square, bias_correction, optimizer, with_decay};
use super::state;
use super::{Memory, ParamGroup};
use orkest_core::Tensor;

optimizer! {
    /// RAdam: as [`Adam`](super::Adam), but steps along the bare average of the gradient until enough gradients are known to scale by
    /// their size, and carefully at first.
    RAdam(Moments) {
        /// How much of the running averages of the gradient and its square stays from step to step; (0.9, 0.999) by default.
        betas: (f64, f64) = (0.9, 0.999),
        /// Added to the root; 1e-8 by default.
        eps: f64 = 1e-8,
        /// How strongly weights are pulled to zero; 0 by default.
        weight_decay: f64 = 0.0,
        /// Decay the weights themselves as [`AdamW`](super::AdamW), not through the gradient.
        decoupled_weight_decay: bool = false,
        /// Ascend instead of descend.
        maximize: bool = false,
    }
}

/// What RAdam remembers about one parameter.
#[derive(Debug)]
struct Moments {
    step: u64,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl Memory for Moments {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        vec![
            ("step", state::count(self.step)),
            ("exp_avg", self.exp_avg.clone()),
            ("exp_avg_sq", self.exp_avg_sq.clone()),
        ]
    }

    fn from_tensors(saved: &mut state::Saved<'_>, _: &ParamGroup) -> Moments {
        Moments {
            step: saved.count("step"),
            exp_avg: saved.tensor("exp_avg"),
            exp_avg_sq: saved.tensor("exp_avg_sq"),
        }
    }
}

impl Rule for Moments {
    fn new(value: &Tensor, _: &ParamGroup) -> Moments {
        Moments { step: 0, exp_avg: value.zeros_like(), exp_avg_sq: value.zeros_like() }
    }

    fn like_param(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.exp_avg, &mut self.exp_avg_sq]
    }

    #[track_caller]
    fn step(&mut self, grad: Tensor, value: &mut Tensor, group: &ParamGroup) {
        let (lr, (beta1, beta2)) = (group.lr(), group.pair("betas"));
        self.step += 1;
        let grad = decayed(grad, value, group);
        self.exp_avg = self.exp_avg.lerp(&grad, 1.0 - beta1);
        average_square(&mut self.exp_avg_sq, &grad, beta2);

        let average = &self.exp_avg / bias_correction(beta1, self.step);
        // The length of the average of squares: what it tends to, and what it is now.
        let correction = bias_correction(beta2, self.step);
        let limit = 2.0 / (1.0 - beta2) - 1.0;
        let length = limit - 2.0 * self.step as f64 * (1.0 - correction) / correction;
        if length > 5.0 {
            let rectification =
                ((length - 4.0) * (length - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * length)).sqrt();
            let scale = (self.exp_avg_sq.sqrt() + group.number("eps")).reciprocal() * correction.sqrt();
            value.sub_(&(average * lr * scale * rectification));
        } else {
            value.sub_(&(average * lr));
        }
    }
}

/// Applies the weight decay: to the value if it is decoupled, else to the gradient.
#[track_caller]
pub(super) fn decayed(grad: Tensor, value: &mut Tensor, group: &ParamGroup) -> Tensor {
    if !group.flag("decoupled_weight_decay") {
        return with_decay(grad, value, group);
    }
    shrink(value, group);
    grad
}

/// `value ← value (1 - lr · weight_decay)`
#[track_caller]
pub(super) fn shrink(value: &mut Tensor, group: &ParamGroup) {
    if group.weight_decay() != 0.0 {
        let smaller = &*value * (1.0 - group.lr() * group.weight_decay());
        value.copy_(&smaller);
    }
}
