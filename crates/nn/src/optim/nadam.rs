//! NAdam (<https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ>).

use super::radam::decayed;
use super::rule::{Rule, average_square, bias_correction, optimizer};
use super::state;
use super::{Memory, ParamGroup};
use orkest_core::Tensor;

optimizer! {
    /// NAdam: [`Adam`](super::Adam) with Nesterov's momentum, which warms up: `μₜ = β₁ (1 - 0.96^(t · momentum_decay) / 2)`.
    /// PyTorch's `lr` is 2e-3.
    NAdam(Moments) {
        /// How much of the running averages of the gradient and its square stays from step to step; (0.9, 0.999) by default.
        betas: (f64, f64) = (0.9, 0.999),
        /// Added to the root; 1e-8 by default.
        eps: f64 = 1e-8,
        /// How strongly weights are pulled to zero; 0 by default.
        weight_decay: f64 = 0.0,
        /// How fast the momentum warms up; 4e-3 by default.
        momentum_decay: f64 = 4e-3,
        /// Decay the weights themselves as [`AdamW`](super::AdamW), not through the gradient.
        decoupled_weight_decay: bool = false,
        /// Ascend instead of descend.
        maximize: bool = false,
    }
}

/// What NAdam remembers about one parameter.
#[derive(Debug)]
struct Moments {
    step: u64,
    /// The product of all momenta so far; f32, as in PyTorch.
    mu_product: f32,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl Memory for Moments {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        vec![
            ("step", state::count(self.step)),
            ("mu_product", state::scalar(self.mu_product.into())),
            ("exp_avg", self.exp_avg.clone()),
            ("exp_avg_sq", self.exp_avg_sq.clone()),
        ]
    }

    fn from_tensors(saved: &mut state::Saved<'_>, _: &ParamGroup) -> Moments {
        Moments {
            step: saved.count("step"),
            mu_product: saved.scalar("mu_product") as f32,
            exp_avg: saved.tensor("exp_avg"),
            exp_avg_sq: saved.tensor("exp_avg_sq"),
        }
    }
}

impl Rule for Moments {
    fn new(value: &Tensor, _: &ParamGroup) -> Moments {
        Moments { step: 0, mu_product: 1.0, exp_avg: value.zeros_like(), exp_avg_sq: value.zeros_like() }
    }

    fn like_param(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.exp_avg, &mut self.exp_avg_sq]
    }

    #[track_caller]
    fn step(&mut self, grad: Tensor, value: &mut Tensor, group: &ParamGroup) {
        let (lr, (beta1, beta2)) = (group.lr(), group.pair("betas"));
        self.step += 1;
        let grad = decayed(grad, value, group);

        let decay = group.number("momentum_decay");
        let momentum = |step: u64| beta1 * (1.0 - 0.5 * 0.96f64.powf(step as f64 * decay));
        let (mu, next) = (momentum(self.step), momentum(self.step + 1));
        self.mu_product *= mu as f32;
        let product = f64::from(self.mu_product);

        self.exp_avg = self.exp_avg.lerp(&grad, 1.0 - beta1);
        average_square(&mut self.exp_avg_sq, &grad, beta2);
        let root = (&self.exp_avg_sq / bias_correction(beta2, self.step)).sqrt() + group.number("eps");
        let along_grad = grad * (lr * (1.0 - mu) / (1.0 - product)) / &root;
        let along_average = &self.exp_avg * (lr * next / (1.0 - product * next)) / root;
        value.sub_(&along_grad);
        value.sub_(&along_average);
    }
}
