//! Negative log-likelihoods of numbers that were counted or measured.

use super::options::loss;
use super::reduction::{Reduction, same_shape};
use crate::Module;
use orkest_core::op::ElementLoss;
use orkest_core::{Tensor, no_grad};
use std::f64::consts::TAU;

loss! {
    /// Counts, from a Poisson distribution with the predicted mean: `exp(x) - y x`, or `x - y ln(x + eps)` with `log_input(false)`.
    /// PyTorch's [`PoissonNLLLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.PoissonNLLLoss.html).
    ///
    /// # Shapes
    /// - input and target: any, the same
    /// - output: a scalar, or that shape with [`Reduction::None`]
    PoissonNLLLoss {
        /// Whether the input is the logarithm of the mean; true by default.
        log_input: bool = true,
        /// Add Stirling's approximation of `ln y!` where `y > 1`.
        full: bool = false,
        /// Added inside the logarithm if the input is the mean; 1e-8 by default.
        eps: f64 = 1e-8,
    } reduction: Mean
}

impl PoissonNLLLoss {
    /// The loss.
    ///
    /// # Panics
    /// If the shapes differ.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        same_shape("PoissonNLLLoss", input, target);
        if self.log_input && !self.full {
            return self.reduction.element_loss(input, target, ElementLoss::Poisson);
        }
        let mut losses = if self.log_input {
            input.exp() - target * input
        } else {
            input - target * (input + self.eps).log()
        };
        if self.full {
            let counted = target.gt(1);
            let y = counted.where_(target, 1.0).to_dtype(input.dtype()); // the logarithm of 0 would spoil the gradient
            let stirling = &y * y.log() - &y + (&y * TAU).log() * 0.5;
            losses += counted.where_(stirling, 0.0);
        }
        self.reduction.apply(&losses)
    }
}

loss! {
    /// Measurements, from normal distributions with the predicted means and variances: `(ln v + (x - y)² / v) / 2`. PyTorch's
    /// [`GaussianNLLLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.GaussianNLLLoss.html).
    ///
    /// # Shapes
    /// - input and target: any, the same
    /// - `var`: that shape, or with a last dimension of 1 or none (one variance for all of it)
    /// - output: a scalar, or that shape with [`Reduction::None`]
    GaussianNLLLoss {
        /// Add the constant `ln(2π) / 2`.
        full: bool = false,
        /// No variance is smaller; 1e-6 by default.
        eps: f64 = 1e-6,
    } reduction: Mean
}

impl GaussianNLLLoss {
    /// The loss.
    ///
    /// # Panics
    /// If the shapes do not fit or a variance is negative.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor, var: &Tensor) -> Tensor {
        same_shape("GaussianNLLLoss", input, target);
        let (sizes, n) = (input.shape(), input.rank());
        let var = match &var.shape()[..] {
            same if same == &sizes[..] => var.clone(),
            shorter if n > 0 && shorter == &sizes[..n - 1] => var.unsqueeze(-1),
            one if n > 0 && one.len() == n && one[..n - 1] == sizes[..n - 1] && one[n - 1] == 1 => {
                var.clone()
            }
            _ => panic!(
                "GaussianNLLLoss: the variance does not fit. input: {}; var: {}",
                input.describe(),
                var.describe()
            ),
        };
        let smallest = if var.numel() == 0 { Ok(0.0) } else { var.detach().min(..).item() };
        assert!(
            !smallest.is_ok_and(|v| v < 0.0),
            "GaussianNLLLoss: a variance is negative; predict its logarithm and pass exp() of it. var: {}",
            var.describe()
        );
        // Raised to eps as a constant: a variance that is too small still has a gradient.
        let missing = no_grad(|| (self.eps - var.detach()).clamp_min(0.0));
        let var = var + missing;
        let mut losses = (var.log() + (input - target).square() / var) * 0.5;
        if self.full {
            losses += 0.5 * TAU.ln();
        }
        self.reduction.apply(&losses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::{DType, gradcheck, tensor};

    #[test]
    fn gradients_are_right() {
        let wide = |t: Tensor| t.to_dtype(DType::F64).requires_grad_(true);
        let (x, y, v) = (wide(tensor![0.5, 2.0]), wide(tensor![1.5, 4.0]), wide(tensor![0.3, 1.2]));
        let full = GaussianNLLLoss::new().full(true);
        gradcheck(|x| full.forward(&x[0], &x[1], &x[2]), &[x.clone(), y.clone(), v]).unwrap();
        for loss in [PoissonNLLLoss::new().full(true), PoissonNLLLoss::new().log_input(false)] {
            gradcheck(|x| loss.forward(&x[0], &x[1]), &[x.clone(), y.clone()]).unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "a variance is negative")]
    fn variances_are_positive() {
        GaussianNLLLoss::new().forward(&tensor![1.0], &tensor![1.0], &tensor![-1.0]);
    }
}
