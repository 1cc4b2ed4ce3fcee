//! Lengths of vectors and the distances between them.

use crate::tensor::Tensor;

impl Tensor {
    /// Vectors along `dim` scaled to the p-norm 1: `x / max(norm, eps)`. PyTorch's defaults are `p = 2`, `dim = 1`, `eps = 1e-12`.
    ///
    /// # Panics
    /// If `dim` is out of range or the dtype is not a float.
    #[track_caller]
    pub fn normalize(&self, p: f64, dim: isize, eps: f64) -> Tensor {
        self / self.norm_keepdim(p, dim).clamp_min(eps)
    }

    /// The p-norm of the difference between each row of this tensor and each row of `other`.
    ///
    /// # Shapes
    /// - `[.., m, d]` and `[.., n, d]` → `[.., m, n]`, the leading dimensions broadcast
    ///
    /// # Panics
    /// If a tensor has less than 2 dimensions, the rows differ in length, or the leading dimensions do not broadcast.
    #[track_caller]
    pub fn cdist(&self, other: &Tensor, p: f64) -> Tensor {
        if self.rank() < 2 || other.rank() < 2 || self.size(-1) != other.size(-1) {
            panic!(
                "cdist: rows of equal length are expected: [.., m, d] and [.., n, d]. left: {}; right: {}",
                self.describe(),
                other.describe()
            );
        }
        (self.unsqueeze(-2) - other.unsqueeze(-3)).norm(p, -1)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Tensor, tensor};

    #[test]
    fn lengths_and_distances_follow_the_definition() {
        let x = tensor![[3.0, 4.0], [0.0, 0.0]];
        assert_eq!(x.normalize(2.0, -1, 1e-12).to_vec::<f32>().unwrap(), [0.6, 0.8, 0.0, 0.0]);
        assert_eq!(x.cdist(&tensor![[0.0, 0.0]], 2.0).to_vec::<f32>().unwrap(), [5.0, 0.0]);
        assert_eq!(x.cdist(&tensor![[0.0, 0.0]], 1.0).to_vec::<f32>().unwrap(), [7.0, 0.0]);
        assert_eq!(Tensor::zeros([4, 2, 3], ()).cdist(&Tensor::zeros([5, 3], ()), 2.0).shape(), &[4, 2, 5]);
    }

    #[test]
    fn equal_rows_have_the_gradient_zero_as_in_pytorch() {
        let x = tensor![[1.0, -0.5, 2.0], [0.3, 0.7, -1.1]];
        let a = x.clone().requires_grad_(true);
        a.cdist(&x, 2.0).diagonal(0, 0, 1).sum(..).backward();
        assert_eq!(a.grad().unwrap().to_vec::<f32>().unwrap(), [0.0; 6]);
    }
}
