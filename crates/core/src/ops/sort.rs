//! Order: sorting, the k largest, medians and distinct values.

use crate::autograd::{Context, Gradients, Save};
use crate::dispatch::run_many;
use crate::dtype::{DType, Element};
use crate::error::Result;
use crate::op::Op;
use crate::tensor::Tensor;
use crate::with_dtype;
use std::cmp::Ordering;

impl Tensor {
    /// The values along `dim` in order, and the (i64) positions they come from.
    ///
    /// Equal values keep their order; NaN counts as larger than every number.
    ///
    /// ```
    /// # use orkest_core::{Device, Tensor};
    /// let (values, indices) = Tensor::new([3.0f32, 1.0, 2.0], &Device::cpu()).sort(-1, true);
    /// assert_eq!(values.to_vec::<f32>().unwrap(), [3.0, 2.0, 1.0]);
    /// assert_eq!(indices.to_vec::<i64>().unwrap(), [0, 2, 1]);
    /// ```
    ///
    /// # Panics
    /// If `dim` is out of range.
    #[track_caller]
    pub fn sort(&self, dim: isize, descending: bool) -> (Tensor, Tensor) {
        if self.rank() == 0 {
            let (values, indices) = self.unsqueeze(0).sort(dim, descending);
            return (values.squeeze(0), indices.squeeze(0));
        }
        let dim = self.dim_index("sort", dim);
        let outputs = [(*self.shape(), self.dtype()), (*self.shape(), DType::I64)];
        let [values, indices] = run_many("sort", Op::Sort { dim, descending }, &[self], outputs);
        let values = values.recorded("sort", &[self], &[Save::Other(&indices)], move |c| put_back(c, dim));
        (values, indices)
    }

    /// The positions that would sort `dim`: the second result of [`Tensor::sort`].
    ///
    /// # Panics
    /// If `dim` is out of range.
    #[track_caller]
    pub fn argsort(&self, dim: isize, descending: bool) -> Tensor {
        self.detach().sort(dim, descending).1
    }

    /// The `k` largest (or smallest) values along `dim`, best first, and the (i64) positions they come from.
    ///
    /// # Shapes
    /// - input: `[.., n, ..]`
    /// - outputs: `[.., k, ..]`
    ///
    /// # Panics
    /// If `dim` is out of range or `k` exceeds its size.
    #[track_caller]
    pub fn topk(&self, k: usize, dim: isize, largest: bool) -> (Tensor, Tensor) {
        if self.rank() == 0 {
            let (values, indices) = self.unsqueeze(0).topk(k, dim, largest);
            return if k == 1 { (values.squeeze(0), indices.squeeze(0)) } else { (values, indices) };
        }
        let dim = self.dim_index("topk", dim);
        let size = self.shape()[dim];
        assert!(k <= size, "topk: {k} of {size} elements along dimension {dim}. tensor: {}", self.describe());
        let shape = self.shape().with(dim, k);
        let outputs = [(shape, self.dtype()), (shape, DType::I64)];
        let [values, indices] = run_many("topk", Op::TopK { k, dim, largest }, &[self], outputs);
        let values = values.recorded("topk", &[self], &[Save::Other(&indices)], move |c| put_back(c, dim));
        (values, indices)
    }

    /// The median along `dim`, which disappears, and the (i64) position it comes from.
    ///
    /// Of an even number of values, the lower of the two in the middle; NaN if any value is NaN.
    ///
    /// # Panics
    /// If `dim` is out of range or has size 0.
    #[track_caller]
    pub fn median(&self, dim: isize) -> (Tensor, Tensor) {
        if self.rank() == 0 {
            return self.unsqueeze(0).median(dim);
        }
        let dim = self.dim_index("median", dim) as isize;
        let size = self.size(dim);
        assert!(size > 0, "median: dimension {dim} has no elements. tensor: {}", self.describe());
        let (sorted, order) = self.detach().sort(dim, false);
        let (last, middle) = (size - 1, (size - 1) / 2);
        let mut indices = order.narrow(dim, middle, 1);
        if self.dtype().is_float() {
            // NaN sorts last.
            indices = sorted.narrow(dim, last, 1).isnan().where_(order.narrow(dim, last, 1), indices);
        }
        (self.gather(dim, &indices).squeeze(dim), indices.squeeze(dim))
    }

    /// The distinct values in ascending order, for every element the (i64) position of its value among them, and how often
    /// each value occurs (i64).
    ///
    /// Every NaN is a value of its own. Looks at the data on the host; no gradient.
    ///
    /// # Shapes
    /// - input: any
    /// - outputs: `[values]`, the input's shape, `[values]`
    ///
    /// # Errors
    /// If the device reports what went wrong in an earlier operation.
    #[track_caller]
    pub fn unique(&self) -> Result<(Tensor, Tensor, Tensor)> {
        with_dtype!(self.dtype(), T => self.unique_as::<T>())
    }

    #[track_caller]
    fn unique_as<T: Element>(&self) -> Result<(Tensor, Tensor, Tensor)> {
        let data = self.to_vec::<T>()?;
        let mut order: Vec<usize> = (0..data.len()).collect();
        order.sort_by(|&a, &b| nan_last(data[a], data[b]));
        let (mut values, mut counts): (Vec<T>, Vec<i64>) = Default::default();
        let mut inverse = vec![0i64; data.len()];
        for &i in &order {
            if values.last() == Some(&data[i]) {
                *counts.last_mut().expect("one count per value") += 1;
            } else {
                values.push(data[i]);
                counts.push(1);
            }
            inverse[i] = values.len() as i64 - 1;
        }
        let n = values.len();
        Ok((
            Tensor::from_slice(&values, n, self.device()),
            Tensor::from_slice(&inverse, *self.shape(), self.device()),
            Tensor::from_slice(&counts, n, self.device()),
        ))
    }
}

/// Ascending, NaN after all numbers.
fn nan_last<T: Element>(a: T, b: T) -> Ordering {
    // A NaN is the only value that differs from itself.
    let is_nan = |x: T| x.partial_cmp(&x).is_none();
    a.partial_cmp(&b).unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)))
}

/// Gradients go to where the values came from; no position occurs twice.
fn put_back(c: &Context<'_>, dim: usize) -> Gradients {
    let g = c.grad();
    let mut x_grad = Tensor::zeros(*c.input_shape(0), (g.dtype(), g.device()));
    x_grad.scatter_(dim as isize, c.saved(0), g);
    crate::grads![x_grad]
}

#[cfg(test)]
mod tests {
    use crate::{DType, Device, Tensor, gradcheck, gradgradcheck};

    fn sample() -> Tensor {
        Tensor::new([[3.0f64, 1.0, 2.0, 1.5], [-1.0, 5.0, 0.5, 4.0]], &Device::reference())
    }

    #[test]
    fn sorting_is_stable_and_puts_nan_at_the_large_end() {
        let device = Device::reference();
        let (values, indices) = Tensor::new([2i64, 1, 2, 1], &device).sort(0, true);
        assert_eq!(values.to_vec::<i64>().unwrap(), [2, 2, 1, 1]);
        assert_eq!(indices.to_vec::<i64>().unwrap(), [0, 2, 1, 3]);
        let x = Tensor::new([1.0f32, f32::NAN, f32::INFINITY, -2.0], &device);
        assert_eq!(x.argsort(-1, false).to_vec::<i64>().unwrap(), [3, 0, 2, 1]);
        assert_eq!(x.argsort(-1, true).to_vec::<i64>().unwrap(), [1, 2, 0, 3]);
        let (values, indices) = sample().transpose(0, 1).sort(0, false);
        assert_eq!(values.to_vec::<f64>().unwrap(), [1., -1., 1.5, 0.5, 2., 4., 3., 5.]);
        assert_eq!(indices.to_vec::<i64>().unwrap(), [1, 0, 3, 2, 2, 3, 0, 1]);
    }

    #[test]
    fn scalars_and_empty_tensors_can_be_sorted() {
        let (values, indices) = Tensor::new(3.0f32, &Device::reference()).sort(-1, false);
        assert_eq!((values.item().unwrap(), indices.item().unwrap(), values.rank()), (3.0, 0.0, 0));
        let empty = Tensor::zeros([0, 2], &Device::reference());
        assert_eq!(empty.sort(0, false).0.shape(), &[0, 2]);
        assert_eq!(empty.topk(0, 1, true).1.shape(), &[0, 0]);
    }

    #[test]
    fn topk_gives_the_best_first() {
        let (values, indices) = sample().topk(2, 1, true);
        assert_eq!(values.to_vec::<f64>().unwrap(), [3., 2., 5., 4.]);
        assert_eq!(indices.to_vec::<i64>().unwrap(), [0, 2, 1, 3]);
        let (values, _) = sample().topk(1, 0, false);
        assert_eq!(values.to_vec::<f64>().unwrap(), [-1., 1., 0.5, 1.5]);
    }

    #[test]
    #[should_panic(expected = "topk: 5 of 4 elements along dimension 1")]
    fn topk_refuses_more_than_there_is() {
        sample().topk(5, -1, true);
    }

    #[test]
    fn the_median_is_the_lower_middle() {
        let (values, indices) = sample().median(1);
        assert_eq!(values.to_vec::<f64>().unwrap(), [1.5, 0.5]);
        assert_eq!(indices.to_vec::<i64>().unwrap(), [3, 2]);
        let x = Tensor::new([3.0f32, 1.0, f32::NAN, 4.0], &Device::reference());
        let (value, index) = x.median(0);
        assert!(value.item().unwrap().is_nan());
        assert_eq!(index.item().unwrap(), 2.0);
        assert_eq!(Tensor::new(7i64, &Device::reference()).median(0).0.rank(), 0);
    }

    #[test]
    fn unique_counts_and_maps_back() {
        let device = Device::reference();
        let x = Tensor::new([[2i64, 1, 2], [5, 1, 2]], &device);
        let (values, inverse, counts) = x.unique().unwrap();
        assert_eq!(values.to_vec::<i64>().unwrap(), [1, 2, 5]);
        assert_eq!(counts.to_vec::<i64>().unwrap(), [2, 3, 1]);
        assert_eq!(inverse.shape(), &[2, 3]);
        assert_eq!(inverse.to_vec::<i64>().unwrap(), [1, 0, 1, 2, 0, 1]);
        // torch.unique of the same values.
        let x = Tensor::new([f32::NAN, 1.0, f32::NAN, -0.0, 0.0], &device);
        let (values, inverse, counts) = x.unique().unwrap();
        assert!(values.to_vec::<f32>().unwrap()[2..].iter().all(|v| v.is_nan()));
        assert_eq!(inverse.to_vec::<i64>().unwrap(), [2, 1, 3, 0, 0]);
        assert_eq!(counts.to_vec::<i64>().unwrap(), [2, 1, 1, 1]);
        assert_eq!(Tensor::zeros([0], (DType::Bool, &device)).unique().unwrap().0.shape(), &[0]);
    }

    #[test]
    fn gradients_go_back_to_their_places() {
        let weight = Tensor::new([[1.0f64, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], &Device::reference());
        let x = sample().requires_grad_(true);
        (x.sort(1, false).0 * &weight).sum(..).backward();
        assert_eq!(x.grad().unwrap().to_vec::<f64>().unwrap(), [4., 1., 3., 2., 5., 8., 6., 7.]);
        for dim in [0, 1] {
            gradcheck(|x| x[0].sort(dim, true).0.square(), &[sample()]).unwrap();
            gradgradcheck(|x| x[0].sort(dim, true).0.square(), &[sample()]).unwrap();
            gradcheck(|x| x[0].topk(2, dim, true).0.square(), &[sample()]).unwrap();
            gradgradcheck(|x| x[0].topk(2, dim, true).0.square(), &[sample()]).unwrap();
            gradcheck(|x| x[0].median(dim).0, &[sample()]).unwrap();
        }
    }
}
