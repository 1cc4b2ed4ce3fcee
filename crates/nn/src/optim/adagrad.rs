//! Adagrad (<https://jmlr.org/papers/v12/duchi11a.html>).

use super::rule::{Rule, optimizer, with_decay};
use super::state;
use super::{Memory, ParamGroup};
use orkest_core::Tensor;

optimizer! {
    /// Adagrad: `s ← s + g²`, `p ← p - lr / (1 + (t - 1) lr_decay) · g / (√s + eps)`. What has seldom had a gradient moves far.
    Adagrad(Total) {
        /// How fast the learning rate falls; 0 by default.
        lr_decay: f64 = 0.0,
        /// How strongly weights are pulled to zero, through the gradient; 0 by default.
        weight_decay: f64 = 0.0,
        /// What the sum of squares starts from; 0 by default.
        initial_accumulator_value: f64 = 0.0,
        /// Added to the root; 1e-10 by default.
        eps: f64 = 1e-10,
        /// Ascend instead of descend.
        maximize: bool = false,
    }
}

/// What Adagrad remembers about one parameter.
#[derive(Debug)]
struct Total {
    step: u64,
    sum: Tensor,
}

impl Memory for Total {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        vec![("step", state::count(self.step)), ("sum", self.sum.clone())]
    }

    fn from_tensors(saved: &mut state::Saved<'_>, _: &ParamGroup) -> Total {
        Total { step: saved.count("step"), sum: saved.tensor("sum") }
    }
}

impl Rule for Total {
    fn new(value: &Tensor, group: &ParamGroup) -> Total {
        Total { step: 0, sum: value.full_like(group.number("initial_accumulator_value")) }
    }

    fn like_param(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.sum]
    }

    #[track_caller]
    fn step(&mut self, grad: Tensor, value: &mut Tensor, group: &ParamGroup) {
        let lr = group.lr() / (1.0 + self.step as f64 * group.number("lr_decay"));
        self.step += 1;
        let grad = with_decay(grad, value, group);
        self.sum.add_(&grad.square());
        value.sub_(&(grad * lr / (self.sum.sqrt() + group.number("eps"))));
    }
}
