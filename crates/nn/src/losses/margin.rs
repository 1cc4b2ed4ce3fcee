//! Losses for scores that should differ by a margin, and for labels of 1 and -1.

use super::options::loss;
use super::reduction::{Reduction, same_shape};
use crate::{Buffer, Module};
use orkest_core::Tensor;

loss! {
    /// `max(0, -y (x1 - x2) + margin)`: with target 1 the first should rank higher, with -1 the second. PyTorch's
    /// [`MarginRankingLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.MarginRankingLoss.html).
    ///
    /// # Shapes
    /// - inputs and target: any, the same
    /// - output: a scalar, or that shape with [`Reduction::None`]
    MarginRankingLoss {
        /// How much higher it should be; 0 by default.
        margin: f64 = 0.0,
    } reduction: Mean
}

impl MarginRankingLoss {
    /// The loss.
    ///
    /// # Panics
    /// If the shapes differ.
    #[track_caller]
    pub fn forward(&self, x1: &Tensor, x2: &Tensor, target: &Tensor) -> Tensor {
        same_shape("MarginRankingLoss", x1, x2);
        same_shape("MarginRankingLoss", x1, target);
        self.reduction.apply(&(-target * (x1 - x2) + self.margin).clamp_min(0.0))
    }
}

loss! {
    /// `x` where the target is 1, `max(0, margin - x)` where it is -1; `x` is a distance. PyTorch's
    /// [`HingeEmbeddingLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.HingeEmbeddingLoss.html).
    ///
    /// # Shapes
    /// - input and target: any, the same
    /// - output: a scalar, or that shape with [`Reduction::None`]
    HingeEmbeddingLoss {
        /// The distance that is far enough; 1 by default.
        margin: f64 = 1.0,
    } reduction: Mean
}

impl HingeEmbeddingLoss {
    /// The loss.
    ///
    /// # Panics
    /// If the shapes differ.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        same_shape("HingeEmbeddingLoss", input, target);
        let alike = target.ne(-1).where_(input, 0.0);
        let different = target.ne(1).where_((self.margin - input).clamp_min(0.0), 0.0);
        self.reduction.apply(&(alike + different))
    }
}

loss! {
    /// `ln(1 + exp(-y x))` for targets of 1 and -1: PyTorch's
    /// [`SoftMarginLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.SoftMarginLoss.html), without its overflow.
    ///
    /// # Shapes
    /// - input and target: any, the same
    /// - output: a scalar, or that shape with [`Reduction::None`]
    SoftMarginLoss {} reduction: Mean
}

impl SoftMarginLoss {
    /// The loss.
    ///
    /// # Panics
    /// If the shapes differ.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        same_shape("SoftMarginLoss", input, target);
        self.reduction.apply(&-(input * target).log_sigmoid())
    }
}

/// `-mean(w (y log σ(x) + (1 - y) log σ(-x)))` over the classes, each of which may apply or not: PyTorch's
/// [`MultiLabelSoftMarginLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiLabelSoftMarginLoss.html).
///
/// # Shapes
/// - input and target: `[.., classes]`, the same; `weight`: `[classes]`
/// - output: a scalar, or `[..]` with [`Reduction::None`]
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct MultiLabelSoftMarginLoss {
    weight: Option<Buffer>,
    reduction: Reduction,
}

impl MultiLabelSoftMarginLoss {
    /// Without weights; the mean.
    pub fn new() -> MultiLabelSoftMarginLoss {
        MultiLabelSoftMarginLoss { weight: None, reduction: Reduction::Mean }
    }

    /// How much each class counts.
    pub fn weight(mut self, weight: &Tensor) -> MultiLabelSoftMarginLoss {
        self.weight = Some(Buffer::new(weight.clone()));
        self
    }

    /// [`Reduction::Mean`] unless this says otherwise.
    pub fn reduction(mut self, reduction: Reduction) -> MultiLabelSoftMarginLoss {
        self.reduction = reduction;
        self
    }

    /// The loss.
    ///
    /// # Panics
    /// If the shapes differ.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        same_shape("MultiLabelSoftMarginLoss", input, target);
        let target = target.to_dtype(input.dtype());
        let mut losses = -(&target * input.log_sigmoid() + (1.0 - &target) * (-input).log_sigmoid());
        if let Some(weight) = &self.weight {
            losses *= weight.tensor().to_dtype(input.dtype());
        }
        self.reduction.apply(&losses.mean(-1))
    }

    fn extra_repr(&self) -> String {
        format!("reduction='{}'", self.reduction.name())
    }
}

impl Default for MultiLabelSoftMarginLoss {
    fn default() -> MultiLabelSoftMarginLoss {
        MultiLabelSoftMarginLoss::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::tensor;

    #[test]
    fn values_are_those_of_the_formulas() {
        let values = |t: Tensor| t.to_vec::<f32>().unwrap();
        let (x, y) = (tensor![0.5, 0.25, 3.0], tensor![1.0, -1.0, -1.0]);
        let none = Reduction::None;
        let ranking = MarginRankingLoss::new().margin(1.0).reduction(none);
        assert_eq!(values(ranking.forward(&x, &tensor![0.0, 1.0, 0.0], &y)), [0.5, 0.25, 4.0]);
        assert_eq!(values(HingeEmbeddingLoss::new().reduction(none).forward(&x, &y)), [0.5, 0.75, 0.0]);
        // A thousand would be e^1000 in between.
        let soft = SoftMarginLoss::new().reduction(none).forward(&tensor![0.0, -1000.0], &tensor![1.0, 1.0]);
        assert_eq!(values(soft), [std::f32::consts::LN_2, 1000.0]);
    }

    #[test]
    #[should_panic(expected = "SoftMarginLoss: input [2, 1] and target [2] must have one shape")]
    fn shapes_are_not_broadcast() {
        SoftMarginLoss::new().forward(&tensor![[1.0], [2.0]], &tensor![1.0, -1.0]);
    }
}
