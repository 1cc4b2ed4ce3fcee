//! Averaged stochastic gradient descent (<https://dl.acm.org/doi/10.1137/0330046>).

use super::rule::{Rule, optimizer, with_decay};
use super::state;
use super::{Memory, ParamGroup};
use orkest_core::Tensor;

optimizer! {
    /// ASGD: gradient descent with a falling rate, and beside it the average of the weights from step `t0` on, which is kept in the
    /// state under `ax`. The usual `lr` is 0.01.
    ASGD(Average) {
        /// How fast the rate falls and weights decay; 1e-4 by default.
        lambd: f64 = 1e-4,
        /// The power by which the rate falls; 0.75 by default.
        alpha: f64 = 0.75,
        /// The step from which weights are averaged; 1e6 by default.
        t0: f64 = 1e6,
        /// How strongly weights are pulled to zero, through the gradient; 0 by default.
        weight_decay: f64 = 0.0,
        /// Ascend instead of descend.
        maximize: bool = false,
    }
}

/// What ASGD remembers about one parameter.
#[derive(Debug)]
struct Average {
    step: u64,
    /// The rate of the next step, and the part of the weights in the average; f32, as in PyTorch.
    eta: f32,
    mu: f32,
    ax: Tensor,
}

impl Memory for Average {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        vec![
            ("step", state::count(self.step)),
            ("eta", state::scalar(self.eta.into())),
            ("mu", state::scalar(self.mu.into())),
            ("ax", self.ax.clone()),
        ]
    }

    fn from_tensors(saved: &mut state::Saved<'_>, _: &ParamGroup) -> Average {
        Average {
            step: saved.count("step"),
            eta: saved.scalar("eta") as f32,
            mu: saved.scalar("mu") as f32,
            ax: saved.tensor("ax"),
        }
    }
}

impl Rule for Average {
    fn new(value: &Tensor, group: &ParamGroup) -> Average {
        Average { step: 0, eta: group.lr() as f32, mu: 1.0, ax: value.zeros_like() }
    }

    fn like_param(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.ax]
    }

    #[track_caller]
    fn step(&mut self, grad: Tensor, value: &mut Tensor, group: &ParamGroup) {
        let (lambd, eta) = (group.number("lambd"), f64::from(self.eta));
        self.step += 1;
        let grad = with_decay(grad, value, group);
        *value = &*value * (1.0 - lambd * eta) - grad * eta;
        self.ax = match self.mu {
            1.0 => value.copy(),
            mu => &self.ax + (&*value - &self.ax) * f64::from(mu),
        };
        let (lr, step) = (group.lr(), self.step as f64);
        self.eta = (lr / (1.0 + lambd * lr * step).powf(group.number("alpha"))) as f32;
        self.mu = (1.0 / (step - group.number("t0")).max(1.0)) as f32;
    }
}
