//! Adadelta (<https://arxiv.org/abs/1212.5701>).

use super::rule::{Rule, average_square, optimizer, with_decay};
use super::state;
use super::{Memory, ParamGroup};
use orkest_core::Tensor;

optimizer! {
    /// Adadelta: the step is the gradient times `√(average of squared steps + eps) / √(average of squared gradients + eps)`, so that it
    /// has the parameter's units; PyTorch's `lr` is 1.
    Adadelta(Averages) {
        /// How much of the averages stays from step to step; 0.9 by default.
        rho: f64 = 0.9,
        /// Added inside the roots; 1e-6 by default.
        eps: f64 = 1e-6,
        /// How strongly weights are pulled to zero, through the gradient; 0 by default.
        weight_decay: f64 = 0.0,
        /// Ascend instead of descend.
        maximize: bool = false,
    }
}

/// What Adadelta remembers about one parameter.
#[derive(Debug)]
struct Averages {
    step: u64,
    square_avg: Tensor,
    acc_delta: Tensor,
}

impl Memory for Averages {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        vec![
            ("step", state::count(self.step)),
            ("square_avg", self.square_avg.clone()),
            ("acc_delta", self.acc_delta.clone()),
        ]
    }

    fn from_tensors(saved: &mut state::Saved<'_>, _: &ParamGroup) -> Averages {
        Averages {
            step: saved.count("step"),
            square_avg: saved.tensor("square_avg"),
            acc_delta: saved.tensor("acc_delta"),
        }
    }
}

impl Rule for Averages {
    fn new(value: &Tensor, _: &ParamGroup) -> Averages {
        Averages { step: 0, square_avg: value.zeros_like(), acc_delta: value.zeros_like() }
    }

    fn like_param(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.square_avg, &mut self.acc_delta]
    }

    #[track_caller]
    fn step(&mut self, grad: Tensor, value: &mut Tensor, group: &ParamGroup) {
        let (rho, eps) = (group.number("rho"), group.number("eps"));
        self.step += 1;
        let grad = with_decay(grad, value, group);
        average_square(&mut self.square_avg, &grad, rho);
        let root = (&self.square_avg + eps).sqrt();
        let delta = (&self.acc_delta + eps).sqrt() / root * grad;
        average_square(&mut self.acc_delta, &delta, rho);
        value.sub_(&(delta * group.lr()));
    }
}
