//! Losses for scores that should differ by a margin, for one or many classes, and for labels of 1 and -1.

use super::options::loss;
use super::reduction::{Reduction, same_shape};
use crate::{Buffer, Module};
use orkest_core::{DType, Tensor};

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

/// `sum(max(0, margin - x[y] + x[i])^p) / classes` over the classes `i` that are not the target `y`: PyTorch's
/// [`MultiMarginLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiMarginLoss.html).
///
/// # Shapes
/// - input: `[batch, classes]` with an i64 target `[batch]`, or `[classes]` with a scalar; `weight`: `[classes]`
/// - output: a scalar, or the target's shape with [`Reduction::None`]
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct MultiMarginLoss {
    p: u32,
    margin: f64,
    weight: Option<Buffer>,
    reduction: Reduction,
}

impl MultiMarginLoss {
    /// With `p` and margin 1, without weights; the mean.
    pub fn new() -> MultiMarginLoss {
        MultiMarginLoss { p: 1, margin: 1.0, weight: None, reduction: Reduction::Mean }
    }

    /// The power of each difference: 1 or 2.
    ///
    /// # Panics
    /// If it is another.
    #[track_caller]
    pub fn p(mut self, p: u32) -> MultiMarginLoss {
        assert!(matches!(p, 1 | 2), "MultiMarginLoss: p must be 1 or 2, not {p}");
        self.p = p;
        self
    }

    /// How much higher the target's score should be.
    pub fn margin(mut self, margin: f64) -> MultiMarginLoss {
        self.margin = margin;
        self
    }

    /// How much each class counts as a target.
    pub fn weight(mut self, weight: &Tensor) -> MultiMarginLoss {
        self.weight = Some(Buffer::new(weight.clone()));
        self
    }

    /// [`Reduction::Mean`] unless this says otherwise.
    pub fn reduction(mut self, reduction: Reduction) -> MultiMarginLoss {
        self.reduction = reduction;
        self
    }

    /// The loss.
    ///
    /// # Panics
    /// If the shapes do not fit.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        let rank = input.rank();
        if !matches!(rank, 1 | 2) || target.shape()[..] != input.shape()[..rank - 1] {
            panic!(
                "MultiMarginLoss: an input [batch, classes] and a target [batch] (or [classes] and a scalar) are needed. input: {}; \
                 target: {}",
                input.describe(),
                target.describe()
            );
        }
        let chosen = target.unsqueeze(-1);
        let short = (self.margin - input.gather(-1, &chosen) + input).clamp_min(0.0);
        let mut losses = if self.p == 2 { short.square() } else { short };
        if let Some(weight) = &self.weight {
            let weight = weight.tensor().to_dtype(input.dtype());
            losses *= weight.index_select(0, &target.flatten(0, -1)).reshape(chosen.shape());
        }
        let classes = Tensor::arange(0, input.size(-1), 1, input.device());
        let others = losses.masked_fill(&chosen.eq(&classes), 0.0);
        self.reduction.apply(&(others.sum(-1) / input.size(-1) as f64))
    }

    fn extra_repr(&self) -> String {
        format!("p={}, margin={:?}, reduction='{}'", self.p, self.margin, self.reduction.name())
    }
}

impl Default for MultiMarginLoss {
    fn default() -> MultiMarginLoss {
        MultiMarginLoss::new()
    }
}

loss! {
    /// `sum(max(0, 1 - (x[y] - x[i]))) / classes` over all targets `y` and all classes `i` that are none: PyTorch's
    /// [`MultiLabelMarginLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiLabelMarginLoss.html).
    ///
    /// # Shapes
    /// - input: `[batch, classes]` or `[classes]`
    /// - target: i64, the same; the numbers of the target classes, then -1
    /// - output: a scalar, or `[batch]` with [`Reduction::None`]
    MultiLabelMarginLoss {} reduction: Mean
}

impl MultiLabelMarginLoss {
    /// The loss.
    ///
    /// # Panics
    /// If the shapes differ.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        same_shape("MultiLabelMarginLoss", input, target);
        let dtype = input.dtype();
        let ended = target.lt(0).to_dtype(DType::I64).cumsum(-1).gt(0);
        let chosen = target.masked_fill(&ended, 0);
        let counts = (1.0 - ended.to_dtype(dtype)).detach();
        let targets = input.detach().zeros_like().scatter_add(-1, &chosen, &counts).gt(0);
        let distance = input.unsqueeze(-2) - input.gather(-1, &chosen).unsqueeze(-1);
        let short = (distance + 1.0).clamp_min(0.0).masked_fill(&targets.unsqueeze(-2), 0.0);
        let losses = (short * counts.unsqueeze(-1)).sum([-2, -1]) / input.size(-1) as f64;
        self.reduction.apply(&losses)
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
