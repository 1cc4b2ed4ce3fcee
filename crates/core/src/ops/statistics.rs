//! What is known of many values at once: order statistics, counts, moments without the values that are missing.

use super::arithmetic::promote_pair;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::ReduceDims;
use crate::tensor::Tensor;

impl Tensor {
    /// The value below which the share `q` of the values along one dimension (`-1`) or all (`..`) lies, between two values by
    /// linear interpolation; NaN if a value is NaN. `q = 0.5` is the median of statistics.
    ///
    /// # Panics
    /// If `q` is not between 0 and 1, the dtype is not a float, there are no values, or more than one dimension is given.
    #[track_caller]
    pub fn quantile(&self, q: f64, dim: impl ReduceDims) -> Tensor {
        let (x, dim) = self.one_or_all("quantile", &dim);
        let at = x.quantile_along(q, dim);
        at.squeeze(dim)
    }

    /// As [`Tensor::quantile`], with the dimensions kept at size 1.
    #[track_caller]
    pub fn quantile_keepdim(&self, q: f64, dim: impl ReduceDims) -> Tensor {
        let set = self.dim_set("quantile", &dim);
        let (x, dim) = self.one_or_all("quantile", &dim);
        x.quantile_along(q, dim).reshape(set.keep(*self.shape()))
    }

    #[track_caller]
    fn quantile_along(&self, q: f64, dim: isize) -> Tensor {
        self.require_float("quantile");
        assert!((0.0..=1.0).contains(&q), "quantile: q must lie between 0 and 1, not {q}");
        let n = self.size(dim);
        assert!(n > 0, "quantile: dimension {dim} has no elements. tensor: {}", self.describe());
        let sorted = self.sort(dim, false).0;
        let place = q * (n - 1) as f64;
        let (below, above) = (place.floor() as usize, place.ceil() as usize);
        let value = sorted.narrow(dim, below, 1).lerp(&sorted.narrow(dim, above, 1), place.fract());
        // NaN sorts last.
        let missing = sorted.narrow(dim, n - 1, 1).isnan();
        value.masked_fill(&missing, f64::NAN)
    }

    /// This tensor and the dimension, or all its elements in a row and dimension 0.
    #[track_caller]
    fn one_or_all(&self, op: &str, dim: &impl ReduceDims) -> (Tensor, isize) {
        match dim.dims() {
            None => (self.reshape(-1isize), 0),
            Some(_) if self.rank() == 0 => (self.reshape(-1isize), 0),
            Some([dim]) => (self.clone(), self.dim_index(op, *dim) as isize),
            Some(dims) => {
                panic!(
                    "{op}: one dimension or all (..) are expected, not {dims:?}. tensor: {}",
                    self.describe()
                )
            }
        }
    }

    /// The `k`-th smallest value along `dim` (from 1) and its i64 position. NaN counts as the largest.
    ///
    /// # Panics
    /// If `dim` is out of range or `k` is not between 1 and its size.
    #[track_caller]
    pub fn kthvalue(&self, k: usize, dim: isize) -> (Tensor, Tensor) {
        let d = self.dim_index("kthvalue", dim);
        let size = self.shape()[d];
        assert!(
            (1..=size).contains(&k),
            "kthvalue: {k} is not between 1 and {size}. tensor: {}",
            self.describe()
        );
        let (values, indices) = self.sort(dim, false);
        (values.select(dim, k as isize - 1), indices.select(dim, k as isize - 1))
    }

    /// Variance and mean over `dims`; see [`Tensor::var`].
    #[track_caller]
    pub fn var_mean(&self, dims: impl ReduceDims, correction: f64) -> (Tensor, Tensor) {
        (self.var(&dims, correction), self.mean(&dims))
    }

    /// Standard deviation and mean over `dims`; see [`Tensor::std`].
    #[track_caller]
    pub fn std_mean(&self, dims: impl ReduceDims, correction: f64) -> (Tensor, Tensor) {
        (self.std(&dims, correction), self.mean(&dims))
    }

    /// How many elements over `dims` are not zero; i64.
    #[track_caller]
    pub fn count_nonzero(&self, dims: impl ReduceDims) -> Tensor {
        self.ne(0).sum(dims)
    }

    /// Sum over `dims` of what is not NaN.
    #[track_caller]
    pub fn nansum(&self, dims: impl ReduceDims) -> Tensor {
        self.nan_to_zero().sum(dims)
    }

    /// Mean over `dims` of what is not NaN; NaN if nothing is.
    ///
    /// # Panics
    /// If the dtype is not a float.
    #[track_caller]
    pub fn nanmean(&self, dims: impl ReduceDims) -> Tensor {
        self.require_float("nanmean");
        let count = self.isnan().logical_not().sum(&dims);
        self.nan_to_zero().sum(&dims) / count
    }

    #[track_caller]
    fn nan_to_zero(&self) -> Tensor {
        if self.dtype().is_float() { self.masked_fill(&self.isnan(), 0) } else { self.clone() }
    }

    /// How often each number from 0 on occurs in a 1-D tensor of integers, at least up to `minlength - 1`: i64. Reads the data.
    ///
    /// # Errors
    /// If a number is negative, or the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// If there is not 1 dimension or the dtype is a float.
    #[track_caller]
    pub fn bincount(&self, minlength: usize) -> Result<Tensor> {
        if self.rank() != 1 || self.dtype().is_float() {
            panic!("bincount: a 1-D tensor of integers is expected. tensor: {}", self.describe());
        }
        let values = self.to_dtype(DType::I64).to_vec::<i64>()?;
        if let Some(v) = values.iter().find(|v| **v < 0) {
            return Err(Error::Data(format!("bincount: {v} is negative")));
        }
        let largest = values.iter().copied().max().map_or(0, |v| v as u64 + 1);
        let mut counts: Vec<i64> = Vec::new();
        let length = (largest as usize).max(minlength);
        if counts.try_reserve_exact(length).is_err() {
            return Err(Error::OutOfMemory { bytes: length.saturating_mul(8), device: "cpu".into() });
        }
        counts.resize(length, 0);
        for v in values {
            counts[v as usize] += 1;
        }
        Ok(Tensor::from_slice(&counts, length, self.device()))
    }

    /// Where each value would be put into this sorted tensor so that it stays sorted: before equal elements, or behind them if
    /// `right`; i64. PyTorch's `torch.searchsorted(self, values)`, or with one dimension `torch.bucketize(values, self)`.
    ///
    /// # Shapes
    /// - `self`: `[.., n]`, ascending along the last dimension; `values`: `[.., m]` with the same leading sizes, or any shape if
    ///   this tensor has 1 dimension; output: as `values`
    ///
    /// # Panics
    /// If the leading sizes differ or this tensor has no dimensions.
    #[track_caller]
    pub fn searchsorted(&self, values: &Tensor, right: bool) -> Tensor {
        let flat = self.rank() == 1;
        let lead = |t: &Tensor| t.shape()[..t.rank().saturating_sub(1)].to_vec();
        if self.rank() == 0 || !flat && (values.rank() != self.rank() || lead(self) != lead(values)) {
            panic!(
                "searchsorted: [.., n] and values [.., m] with the same leading sizes are expected. tensor: {}; values: {}",
                self.describe(),
                values.describe()
            );
        }
        let (edges, values) =
            promote_pair("searchsorted", &self.detach().unsqueeze(-2), &values.detach().unsqueeze(-1));
        // NaN counts as the largest number.
        let before = if right { edges.le(&values) } else { edges.lt(&values) };
        let before = match values.dtype().is_float() {
            false => before,
            true => {
                let nan = values.isnan();
                before.logical_or(if right { nan } else { nan.logical_and(edges.isnan().logical_not()) })
            }
        };
        let places = before.sum(-1);
        if flat && values.rank() == 1 { places.reshape(()) } else { places }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tensor, gradcheck, tensor};

    #[test]
    fn order_statistics_agree_with_pytorch() {
        let x = tensor![[3.0, 1.0, 2.0, 10.0], [0.0, f32::NAN, 5.0, 4.0]];
        let q = x.quantile(0.5, 1).to_vec::<f32>().unwrap();
        assert!(q[0] == 2.5 && q[1].is_nan());
        assert_eq!(x.i(0).quantile(0.9, ..).item().unwrap() as f32, 7.899_999_6);
        assert_eq!(x.i(0).quantile_keepdim(0.25, 0).shape(), &[1]);
        let (value, index) = x.kthvalue(2, 1);
        assert_eq!(
            (value.to_vec::<f32>().unwrap(), index.to_vec::<i64>().unwrap()),
            (vec![2.0, 4.0], vec![2, 3])
        );
        let x = [Tensor::new([0.3, 2.0, -1.0, 0.7, 5.0], &Device::reference())];
        gradcheck(|x| x[0].quantile(0.3, 0), &x).unwrap();
    }

    #[test]
    fn counts_and_places_agree_with_pytorch() {
        assert_eq!(tensor![1, 3, 1].bincount(0).unwrap().to_vec::<i64>().unwrap(), [0, 2, 0, 1]);
        assert_eq!(tensor![0].bincount(2).unwrap().to_vec::<i64>().unwrap(), [1, 0]);
        assert!(tensor![-1].bincount(0).is_err());
        assert_eq!(tensor![[0.0, 2.0], [1.0, 1.0]].count_nonzero(1).to_vec::<i64>().unwrap(), [1, 2]);
        let edges = tensor![1.0, 3.0, 5.0];
        let values = tensor![[0.0, 1.0, 4.0], [5.0, 9.0, f32::NAN]];
        assert_eq!(edges.searchsorted(&values, false).to_vec::<i64>().unwrap(), [0, 0, 2, 2, 3, 3]);
        assert_eq!(edges.searchsorted(&values, true).to_vec::<i64>().unwrap(), [0, 1, 2, 3, 3, 3]);
        let x = tensor![[1.0, f32::NAN], [f32::NAN, f32::NAN]];
        assert_eq!(x.nansum(1).to_vec::<f32>().unwrap(), [1.0, 0.0]);
        let mean = x.nanmean(1).to_vec::<f32>().unwrap();
        assert!(mean[0] == 1.0 && mean[1].is_nan());
    }
}
