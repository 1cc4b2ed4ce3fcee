//! What becomes of the losses of single elements.

use crate::{Field, Rebuild, Visitor};
use orkest_core::Tensor;
use orkest_core::op::{ElementLoss, Reduce};

/// What a loss does with the losses of single elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reduction {
    /// Nothing: one loss per element (or row).
    None,
    /// Their mean; with class weights the weighted mean.
    #[default]
    Mean,
    /// Their sum.
    Sum,
    /// Their sum, divided by the size of the first dimension: the mathematical mean for [`KLDivLoss`](crate::KLDivLoss).
    BatchMean,
}

impl Reduction {
    /// PyTorch's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Reduction::None => "none",
            Reduction::Mean => "mean",
            Reduction::Sum => "sum",
            Reduction::BatchMean => "batchmean",
        }
    }

    #[track_caller]
    pub(crate) fn apply(self, losses: &Tensor) -> Tensor {
        match self {
            Reduction::None => losses.clone(),
            Reduction::Mean => losses.mean(..),
            Reduction::Sum => losses.sum(..),
            Reduction::BatchMean => losses.sum(..) / first_size(losses),
        }
    }

    /// What it makes of the losses of single elements, which need not be stored for that.
    #[track_caller]
    pub(crate) fn element_loss(self, input: &Tensor, target: &Tensor, loss: ElementLoss) -> Tensor {
        match self {
            Reduction::None => input.element_loss(target, loss, None),
            Reduction::Mean => input.element_loss(target, loss, Some(Reduce::Mean)),
            Reduction::Sum => input.element_loss(target, loss, Some(Reduce::Sum)),
            Reduction::BatchMean => input.element_loss(target, loss, Some(Reduce::Sum)) / first_size(input),
        }
    }
}

impl Field for Reduction {
    fn visit_field<'a>(&'a self, _name: &str, _visitor: &mut Visitor<'_, 'a>) {}
    fn rebuild_field(&self, _rebuild: &mut Rebuild) -> Reduction {
        *self
    }
}

/// The size of the first dimension; 1 for a scalar.
fn first_size(t: &Tensor) -> f64 {
    t.shape().first().map_or(1.0, |&n| n as f64)
}

/// Panics if input and target are not of one shape: broadcasting them is almost always a mistake, as `[n]` against `[n, 1]`.
#[track_caller]
pub(crate) fn same_shape(loss: &str, input: &Tensor, target: &Tensor) {
    if input.shape() != target.shape() {
        panic!(
            "{loss}: input {} and target {} must have one shape. input: {}; target: {}",
            input.shape(),
            target.shape(),
            input.describe(),
            target.describe()
        );
    }
}
