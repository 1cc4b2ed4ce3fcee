//! RMSprop (Hinton, <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>).

use super::rule::{Rule, average_square, optimizer, with_decay};
use super::state;
use super::{Memory, ParamGroup};
use orkest_core::Tensor;

optimizer! {
    /// RMSprop: `v ← alpha v + (1 - alpha) g²`, `p ← p - lr · g / (√v + eps)`.
    ///
    /// ```
    /// # use orkest_core::{Device, Param, Tensor};
    /// # use orkest_nn::optim::{Optimizer, RMSprop};
    /// let weight = Param::new(Tensor::ones(3, &Device::cpu()));
    /// let mut optimizer = RMSprop::new([weight.clone()], 1e-2).momentum(0.9).centered(true);
    /// weight.tensor().square().sum(..).backward();
    /// optimizer.step();
    /// ```
    RMSprop(Averages) {
        /// How much of the average of squares stays from step to step; 0.99 by default.
        alpha: f64 = 0.99,
        /// Added to the root; 1e-8 by default.
        eps: f64 = 1e-8,
        /// How strongly weights are pulled to zero, through the gradient; 0 by default.
        weight_decay: f64 = 0.0,
        /// How much of the last step's direction stays; 0 (none) by default.
        momentum: f64 = 0.0,
        /// Divide by the standard deviation of the gradient instead: by `√(v - ḡ²)`, `ḡ` the gradient's average.
        centered: bool = false,
        /// Ascend instead of descend.
        maximize: bool = false,
    }
}

/// What RMSprop remembers about one parameter.
#[derive(Debug)]
struct Averages {
    step: u64,
    square_avg: Tensor,
    /// With momentum only.
    momentum_buffer: Option<Tensor>,
    /// When centered only.
    grad_avg: Option<Tensor>,
}

impl Memory for Averages {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        let mut tensors = vec![("step", state::count(self.step)), ("square_avg", self.square_avg.clone())];
        tensors.extend(self.momentum_buffer.clone().map(|b| ("momentum_buffer", b)));
        tensors.extend(self.grad_avg.clone().map(|g| ("grad_avg", g)));
        tensors
    }

    fn from_tensors(saved: &mut state::Saved<'_>, group: &ParamGroup) -> Averages {
        let mut wanted = |name, needed| (needed || saved.has(name)).then(|| saved.tensor(name));
        Averages {
            momentum_buffer: wanted("momentum_buffer", group.number("momentum") > 0.0),
            grad_avg: wanted("grad_avg", group.flag("centered")),
            step: saved.count("step"),
            square_avg: saved.tensor("square_avg"),
        }
    }
}

impl Rule for Averages {
    fn new(value: &Tensor, _: &ParamGroup) -> Averages {
        Averages { step: 0, square_avg: value.zeros_like(), momentum_buffer: None, grad_avg: None }
    }

    fn like_param(&mut self) -> Vec<&mut Tensor> {
        [Some(&mut self.square_avg), self.momentum_buffer.as_mut(), self.grad_avg.as_mut()]
            .into_iter()
            .flatten()
            .collect()
    }

    #[track_caller]
    fn step(&mut self, grad: Tensor, value: &mut Tensor, group: &ParamGroup) {
        let (alpha, momentum) = (group.number("alpha"), group.number("momentum"));
        self.step += 1;
        let grad = with_decay(grad, value, group);
        average_square(&mut self.square_avg, &grad, alpha);
        let variance = if group.flag("centered") {
            let average = self.grad_avg.get_or_insert_with(|| value.zeros_like());
            *average = average.lerp(&grad, 1.0 - alpha);
            &self.square_avg - average.square()
        } else {
            self.square_avg.clone()
        };
        let root = variance.sqrt() + group.number("eps");
        if momentum > 0.0 {
            let buffer = self.momentum_buffer.get_or_insert_with(|| value.zeros_like());
            *buffer = &*buffer * momentum + grad / root;
            value.sub_(&(&*buffer * group.lr()));
        } else {
            value.sub_(&(grad * group.lr() / root));
        }
    }
}
