//! Distances between vectors, and the losses that bring some of them closer than others.

use super::options::loss;
use super::reduction::Reduction;
use crate::Module;
use orkest_core::{Tensor, no_grad};
use std::fmt;
use std::sync::Arc;

/// The cosine of the angle between vectors: PyTorch's
/// [`CosineSimilarity`](https://docs.pytorch.org/docs/stable/generated/torch.nn.CosineSimilarity.html).
///
/// # Shapes
/// - inputs: any that broadcast to each other, e.g. `[batch, width]`
/// - output: that shape without dimension `dim`
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct CosineSimilarity {
    dim: isize,
    eps: f64,
}

impl CosineSimilarity {
    /// Along dimension 1; no vector counts as shorter than 1e-8.
    pub fn new() -> CosineSimilarity {
        CosineSimilarity { dim: 1, eps: 1e-8 }
    }

    /// The dimension that the vectors lie along.
    pub fn dim(mut self, dim: isize) -> CosineSimilarity {
        self.dim = dim;
        self
    }

    /// The smallest length that a vector is divided by.
    pub fn eps(mut self, eps: f64) -> CosineSimilarity {
        self.eps = eps;
        self
    }

    /// The cosines.
    ///
    /// # Panics
    /// If the shapes do not broadcast or there is no such dimension.
    #[track_caller]
    pub fn forward(&self, x1: &Tensor, x2: &Tensor) -> Tensor {
        let Some(shape) = x1.shape().broadcast(x2.shape()) else {
            panic!(
                "CosineSimilarity: the shapes do not broadcast. x1: {}; x2: {}",
                x1.describe(),
                x2.describe()
            )
        };
        let unit = |x: &Tensor| {
            let x = if *x.shape() == shape { x.clone() } else { x.broadcast_to(&shape) };
            let length = x.norm_keepdim(2.0, self.dim);
            // Raised to eps as a constant, as in PyTorch: a short vector's gradient still knows its length.
            let missing = no_grad(|| (self.eps - length.detach()).clamp_min(0.0));
            x / (length + missing)
        };
        (unit(x1) * unit(x2)).sum(self.dim)
    }

    fn extra_repr(&self) -> String {
        format!("dim={}, eps={:e}", self.dim, self.eps)
    }
}

impl Default for CosineSimilarity {
    fn default() -> CosineSimilarity {
        CosineSimilarity::new()
    }
}

/// The p-norm of the difference of vectors: PyTorch's
/// [`PairwiseDistance`](https://docs.pytorch.org/docs/stable/generated/torch.nn.PairwiseDistance.html).
///
/// # Shapes
/// - inputs: `[width]` or `[.., width]`, broadcasting to each other
/// - output: that shape without the last dimension (or with size 1 there)
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct PairwiseDistance {
    p: f64,
    eps: f64,
    keepdim: bool,
}

impl PairwiseDistance {
    /// Euclidean, with 1e-6 added to every difference.
    pub fn new() -> PairwiseDistance {
        PairwiseDistance { p: 2.0, eps: 1e-6, keepdim: false }
    }

    /// Which norm; 2 by default.
    pub fn p(mut self, p: f64) -> PairwiseDistance {
        self.p = p;
        self
    }

    /// Added to every difference; the root has no gradient at 0.
    pub fn eps(mut self, eps: f64) -> PairwiseDistance {
        self.eps = eps;
        self
    }

    /// Keep the last dimension, with size 1.
    pub fn keepdim(mut self, keepdim: bool) -> PairwiseDistance {
        self.keepdim = keepdim;
        self
    }

    /// The distances.
    ///
    /// # Panics
    /// If the shapes do not broadcast.
    #[track_caller]
    pub fn forward(&self, x1: &Tensor, x2: &Tensor) -> Tensor {
        let difference = x1 - x2 + self.eps;
        if self.keepdim { difference.norm_keepdim(self.p, -1) } else { difference.norm(self.p, -1) }
    }

    fn extra_repr(&self) -> String {
        format!("p={:?}, eps={:e}, keepdim={}", self.p, self.eps, crate::repr::python_bool(self.keepdim))
    }
}

impl Default for PairwiseDistance {
    fn default() -> PairwiseDistance {
        PairwiseDistance::new()
    }
}

loss! {
    /// `1 - cos(x1, x2)` where the target is 1, `max(0, cos(x1, x2) - margin)` where it is -1: PyTorch's
    /// [`CosineEmbeddingLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.CosineEmbeddingLoss.html).
    ///
    /// # Shapes
    /// - inputs: `[batch, width]` and target `[batch]`, or `[width]` and a scalar
    /// - output: a scalar, or the target's shape with [`Reduction::None`]
    CosineEmbeddingLoss {
        /// The cosine that is small enough for different things; 0 by default.
        margin: f64 = 0.0,
    } reduction: Mean
}

impl CosineEmbeddingLoss {
    /// The loss. A target other than 1 and -1 costs nothing.
    ///
    /// # Panics
    /// If the shapes do not fit.
    #[track_caller]
    pub fn forward(&self, x1: &Tensor, x2: &Tensor, target: &Tensor) -> Tensor {
        let fits = x1.shape() == x2.shape()
            && (1..=2).contains(&x1.rank())
            && target.shape()[..] == x1.shape()[..x1.rank() - 1];
        if !fits {
            panic!(
                "CosineEmbeddingLoss: inputs [batch, width] and a target [batch] (or [width] and a scalar) are needed. x1: {}; x2: \
                 {}; target: {}",
                x1.describe(),
                x2.describe(),
                target.describe()
            );
        }
        // As PyTorch: here no vector is too short, but its square is never zero.
        let square = |x: &Tensor| x.square().sum(-1) + 1e-12f32 as f64;
        let cosine = (x1 * x2).sum(-1) / (square(x1) * square(x2)).sqrt();
        let alike = target.eq(1).where_(1.0 - &cosine, 0.0);
        let different = target.eq(-1).where_((cosine - self.margin).clamp_min(0.0), 0.0);
        self.reduction.apply(&(alike + different))
    }
}

loss! {
    /// `max(0, d(anchor, positive) - d(anchor, negative) + margin)`: PyTorch's
    /// [`TripletMarginLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.TripletMarginLoss.html).
    ///
    /// # Shapes
    /// - anchor, positive, negative: `[.., width]`, all the same
    /// - output: a scalar, or `[..]` with [`Reduction::None`]
    TripletMarginLoss {
        /// How much farther away the negative has to be; 1 by default.
        margin: f64 = 1.0,
        /// The norm that measures distances; 2 by default.
        p: f64 = 2.0,
        /// Added to every difference; 1e-6 by default.
        eps: f64 = 1e-6,
        /// Measure the negative from the positive where that is nearer than from the anchor.
        swap: bool = false,
    } reduction: Mean
}

impl TripletMarginLoss {
    /// The loss.
    ///
    /// # Panics
    /// If the shapes differ.
    #[track_caller]
    pub fn forward(&self, anchor: &Tensor, positive: &Tensor, negative: &Tensor) -> Tensor {
        if anchor.shape() != positive.shape() || anchor.shape() != negative.shape() {
            panic!(
                "TripletMarginLoss: the inputs must have one shape. anchor: {}; positive: {}; negative: {}",
                anchor.describe(),
                positive.describe(),
                negative.describe()
            );
        }
        let distance = PairwiseDistance::new().p(self.p).eps(self.eps);
        let near = distance.forward(anchor, positive);
        let mut far = distance.forward(anchor, negative);
        if self.swap {
            far = far.minimum(distance.forward(positive, negative));
        }
        self.reduction.apply(&(near - far + self.margin).clamp_min(0.0))
    }
}

/// `max(0, d(anchor, positive) - d(anchor, negative) + margin)` with a distance of your own: PyTorch's
/// [`TripletMarginWithDistanceLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.TripletMarginWithDistanceLoss.html).
///
/// # Shapes
/// - anchor, positive, negative: whatever the distance takes
/// - output: a scalar, or the shape of the distances with [`Reduction::None`]
///
/// ```
/// use orkest_core::tensor;
/// use orkest_nn::TripletMarginWithDistanceLoss;
/// let loss = TripletMarginWithDistanceLoss::new(|a, b| (a - b).abs().max(-1));
/// let (anchor, positive, negative) = (tensor![[0.0, 0.0]], tensor![[1.0, 2.0]], tensor![[3.0, 0.5]]);
/// assert_eq!(loss.forward(&anchor, &positive, &negative).item()?, 0.0);
/// # Ok::<(), orkest_core::Error>(())
/// ```
#[derive(Module, Clone)]
#[module(extra_repr)]
pub struct TripletMarginWithDistanceLoss {
    #[module(skip)]
    distance: Arc<Distance>,
    margin: f64,
    swap: bool,
    reduction: Reduction,
}

type Distance = dyn Fn(&Tensor, &Tensor) -> Tensor + Send + Sync;

impl TripletMarginWithDistanceLoss {
    /// With a margin of 1; the mean.
    pub fn new(
        distance: impl Fn(&Tensor, &Tensor) -> Tensor + Send + Sync + 'static,
    ) -> TripletMarginWithDistanceLoss {
        let distance = Arc::new(distance);
        TripletMarginWithDistanceLoss { distance, margin: 1.0, swap: false, reduction: Reduction::Mean }
    }

    /// How much farther away the negative has to be.
    pub fn margin(mut self, margin: f64) -> TripletMarginWithDistanceLoss {
        self.margin = margin;
        self
    }

    /// Measure the negative from the positive where that is nearer than from the anchor.
    pub fn swap(mut self, swap: bool) -> TripletMarginWithDistanceLoss {
        self.swap = swap;
        self
    }

    /// [`Reduction::Mean`] unless this says otherwise.
    pub fn reduction(mut self, reduction: Reduction) -> TripletMarginWithDistanceLoss {
        self.reduction = reduction;
        self
    }

    /// The loss.
    #[track_caller]
    pub fn forward(&self, anchor: &Tensor, positive: &Tensor, negative: &Tensor) -> Tensor {
        let near = (self.distance)(anchor, positive);
        let mut far = (self.distance)(anchor, negative);
        if self.swap {
            far = far.minimum((self.distance)(positive, negative));
        }
        self.reduction.apply(&(near - far + self.margin).clamp_min(0.0))
    }

    fn extra_repr(&self) -> String {
        format!("margin={:?}, swap={}, reduction='{}'", self.margin, self.swap, self.reduction.name())
    }
}

impl fmt::Debug for TripletMarginWithDistanceLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::{DType, gradcheck, tensor};

    #[test]
    fn a_vector_of_zeros_is_like_nothing() {
        let cosine = CosineSimilarity::new().forward(&tensor![[0.0, 0.0], [3.0, 4.0]], &tensor![[1.0, 0.0]]);
        assert_eq!(cosine.to_vec::<f32>().unwrap(), [0.0, 0.6]);
    }

    #[test]
    fn triplets_cost_what_the_margin_lacks() {
        let (a, p, n) = (tensor![[0.0, 0.0]], tensor![[3.0, 4.0]], tensor![[0.0, 5.5]]);
        let loss = TripletMarginLoss::new().eps(0.0);
        assert_eq!(loss.forward(&a, &p, &n).item().unwrap(), 0.5);
        // From the positive the negative is only √(9 + 2.25) away.
        let swapped = loss.swap(true).forward(&a, &p, &n).item().unwrap();
        assert!((swapped - (6.0 - 11.25f64.sqrt())).abs() < 1e-6);
    }

    #[test]
    fn gradients_are_right() {
        let wide = |t: Tensor| t.to_dtype(DType::F64).requires_grad_(true);
        let (a, b, c) = (
            wide(tensor![[0.3, -0.7, 1.1], [0.2, 0.9, -0.4]]),
            wide(tensor![[0.5, 0.1, -0.6], [-0.8, 0.4, 0.7]]),
            wide(tensor![[-0.2, 0.8, 0.5], [0.6, -0.3, 0.9]]),
        );
        gradcheck(|x| CosineSimilarity::new().forward(&x[0], &x[1]), &[a.clone(), b.clone()]).unwrap();
        let target = tensor![1, -1];
        let embedding = CosineEmbeddingLoss::new().margin(-0.9);
        gradcheck(|x| embedding.forward(&x[0], &x[1], &target), &[a.clone(), b.clone()]).unwrap();
        for triplet in [TripletMarginLoss::new(), TripletMarginLoss::new().p(3.0).swap(true).margin(4.0)] {
            gradcheck(|x| triplet.forward(&x[0], &x[1], &x[2]), &[a.clone(), b.clone(), c.clone()]).unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "CosineEmbeddingLoss: inputs [batch, width] and a target [batch]")]
    fn one_target_per_pair() {
        CosineEmbeddingLoss::new().forward(&tensor![[1.0, 2.0]], &tensor![[1.0, 2.0]], &tensor![1, 1]);
    }
}
