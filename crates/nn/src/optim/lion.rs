//! Lion (<https://arxiv.org/abs/2302.06675>).

use super::radam::shrink;
use super::rule::{Rule, optimizer};
use super::state;
use super::{Memory, ParamGroup};
use orkest_core::Tensor;

optimizer! {
    /// Lion: every weight moves by `lr`, in the direction of the sign of `β₁ m + (1 - β₁) g`, where `m` is an average of the gradient:
    /// `m ← β₂ m + (1 - β₂) g`. Weight decay is decoupled, as in [`AdamW`](super::AdamW).
    ///
    /// As every weight takes the full step, `lr` is 3 to 10 times smaller than Adam's (the paper's is 1e-4) and `weight_decay` as much
    /// larger.
    Lion(Average) {
        /// How much of the average stays in the step's direction, and from step to step; (0.9, 0.99) by default.
        betas: (f64, f64) = (0.9, 0.99),
        /// How strongly weights are pulled to zero; 0 by default.
        weight_decay: f64 = 0.0,
        /// Ascend instead of descend.
        maximize: bool = false,
    }
}

/// What Lion remembers about one parameter.
#[derive(Debug)]
struct Average {
    exp_avg: Tensor,
}

impl Memory for Average {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        vec![("exp_avg", self.exp_avg.clone())]
    }

    fn from_tensors(saved: &mut state::Saved<'_>, _: &ParamGroup) -> Average {
        Average { exp_avg: saved.tensor("exp_avg") }
    }
}

impl Rule for Average {
    fn new(value: &Tensor, _: &ParamGroup) -> Average {
        Average { exp_avg: value.zeros_like() }
    }

    fn like_param(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.exp_avg]
    }

    #[track_caller]
    fn step(&mut self, grad: Tensor, value: &mut Tensor, group: &ParamGroup) {
        let (beta1, beta2) = group.pair("betas");
        shrink(value, group);
        let direction = &self.exp_avg * beta1 + &grad * (1.0 - beta1);
        value.sub_(&(direction.sign() * group.lr()));
        self.exp_avg = &self.exp_avg * beta2 + grad * (1.0 - beta2);
    }
}
