//! The focal loss (<https://arxiv.org/abs/1708.02002>).

use super::options::loss;
use super::reduction::{Reduction, same_shape};
use crate::Module;
use orkest_core::Tensor;

loss! {
    /// Binary cross entropy in which what is classified well already hardly counts: `αₜ (1 - pₜ)^γ · bce`, where `pₜ` is the probability
    /// of the target. For few positives among many negatives; torchvision's
    /// [`sigmoid_focal_loss`](https://docs.pytorch.org/vision/stable/generated/torchvision.ops.sigmoid_focal_loss.html).
    ///
    /// # Shapes
    /// - input (logits) and target (0 to 1): any, the same
    /// - output: a scalar, or that shape with [`Reduction::None`], the default as in torchvision
    SigmoidFocalLoss {
        /// The weight of positives (that of negatives is `1 - alpha`); 0.25 by default, negative for no weights.
        alpha: f64 = 0.25,
        /// How little well-classified ones count: 0 gives cross entropy; 2 by default.
        gamma: f64 = 2.0,
    } reduction: None
}

impl SigmoidFocalLoss {
    /// The loss.
    ///
    /// # Panics
    /// If the shapes differ.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        same_shape("SigmoidFocalLoss", input, target);
        let target = target.to_dtype(input.dtype());
        let p = input.sigmoid();
        // 1 - pₜ, without the difference of nearly equal numbers for certain ones.
        let missed = &target * (-input).sigmoid() + (1.0 - &target) * p;
        let cross_entropy = (1.0 - &target) * input - input.log_sigmoid();
        let mut losses = cross_entropy * missed.pow(self.gamma);
        if self.alpha >= 0.0 {
            losses *= &target * (2.0 * self.alpha - 1.0) + (1.0 - self.alpha);
        }
        self.reduction.apply(&losses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BCEWithLogitsLoss;
    use orkest_core::{DType, gradcheck, tensor};

    #[test]
    fn without_focus_it_is_cross_entropy() {
        let (x, y) = (tensor![2.0, -1.0, 0.5], tensor![1.0, 0.0, 0.25]);
        let focal = SigmoidFocalLoss::new().gamma(0.0).alpha(-1.0).reduction(Reduction::Mean);
        let expected = BCEWithLogitsLoss::new().forward(&x, &y).item().unwrap();
        assert!((focal.forward(&x, &y).item().unwrap() - expected).abs() < 1e-6);
    }

    #[test]
    fn gradients_are_right() {
        let x = tensor![2.0, -1.0, 0.5].to_dtype(DType::F64).requires_grad_(true);
        let y = tensor![1.0, 0.0, 0.25];
        gradcheck(|x| SigmoidFocalLoss::new().gamma(1.5).forward(&x[0], &y), &[x]).unwrap();
    }
}
