//! Resilient propagation (<https://ieeexplore.ieee.org/document/298623>).

use super::rule::{Rule, optimizer};
use super::state;
use super::{Memory, ParamGroup};
use orkest_core::Tensor;

optimizer! {
    /// Rprop: every weight has a step of its own, which grows while the sign of the gradient stays and shrinks (and the weight waits)
    /// when it turns. For whole batches; `lr` is the first step, 0.01 in PyTorch.
    Rprop(Steps) {
        /// Factors on the step when the sign has turned, and when it has stayed; (0.5, 1.2) by default.
        etas: (f64, f64) = (0.5, 1.2),
        /// The smallest and the largest step; (1e-6, 50) by default.
        step_sizes: (f64, f64) = (1e-6, 50.0),
        /// Ascend instead of descend.
        maximize: bool = false,
    }
}

/// What Rprop remembers about one parameter.
#[derive(Debug)]
struct Steps {
    step: u64,
    /// The last gradient; 0 where it was not followed.
    prev: Tensor,
    step_size: Tensor,
}

impl Memory for Steps {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        vec![
            ("step", state::count(self.step)),
            ("prev", self.prev.clone()),
            ("step_size", self.step_size.clone()),
        ]
    }

    fn from_tensors(saved: &mut state::Saved<'_>, _: &ParamGroup) -> Steps {
        Steps { step: saved.count("step"), prev: saved.tensor("prev"), step_size: saved.tensor("step_size") }
    }
}

impl Rule for Steps {
    fn new(value: &Tensor, group: &ParamGroup) -> Steps {
        Steps { step: 0, prev: value.zeros_like(), step_size: value.full_like(group.lr()) }
    }

    fn like_param(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.prev, &mut self.step_size]
    }

    #[track_caller]
    fn step(&mut self, grad: Tensor, value: &mut Tensor, group: &ParamGroup) {
        let ((shrink, grow), (least, most)) = (group.pair("etas"), group.pair("step_sizes"));
        self.step += 1;
        let agreement = &grad * &self.prev;
        let (stayed, turned) = (agreement.gt(0), agreement.lt(0));
        let factor = value.ones_like().masked_fill(&stayed, grow).masked_fill(&turned, shrink);
        self.step_size = (&self.step_size * factor).clamp(least, most);
        let grad = grad.masked_fill(&turned, 0);
        value.sub_(&(grad.sign() * &self.step_size));
        self.prev = grad;
    }
}
