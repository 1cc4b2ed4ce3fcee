//! Rows of tensors as a data set.

use crate::dataset::out_of_range;
use crate::{Collate, Dataset, Result};
use orkest_core::Tensor;

/// A data set whose item `i` is row `i` of one or several tensors.
///
/// A batch is one indexing operation per tensor, on the tensor's own device: nothing is done row by row.
///
/// ```
/// # use orkest_core::{DType, Device, Tensor};
/// use orkest_data::{DataLoader, TensorDataset};
/// let dataset = TensorDataset::new((Tensor::rand([100, 3], ()), Tensor::zeros(100, DType::I64)));
/// for (inputs, labels) in &DataLoader::new(dataset).batch_size(50) {
///     assert_eq!((inputs.shape(), labels.shape()), (&[50, 3].into(), &[50].into()));
/// }
/// ```
///
/// # Shapes
/// - tensors: the same number of rows, `[items, ..]`
/// - item: the tensors without their first dimension; scalars from `[items]`
/// - batch: `[batch, ..]`
#[derive(Clone)]
pub struct TensorDataset<T = (Tensor, Tensor)> {
    tensors: T,
    len: usize,
}

impl<T: TensorRows> TensorDataset<T> {
    /// Of a tensor or a tuple of tensors.
    ///
    /// # Panics
    /// If a tensor has no dimensions, or the numbers of rows differ.
    #[track_caller]
    pub fn new(tensors: T) -> TensorDataset<T> {
        let lens: Vec<usize> = tensors
            .tensors()
            .into_iter()
            .map(|t| {
                assert!(t.rank() > 0, "TensorDataset: a tensor without dimensions has no rows. {t:?}");
                t.size(0)
            })
            .collect();
        assert!(
            lens.iter().all(|&len| len == lens[0]),
            "TensorDataset: tensors must have the same number of rows, got {lens:?}"
        );
        TensorDataset { tensors, len: lens[0] }
    }

    /// The tensors.
    pub fn tensors(&self) -> &T {
        &self.tensors
    }
}

impl<T: TensorRows> Dataset for TensorDataset<T> {
    type Item = T;

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, index: usize) -> Result<T> {
        if index >= self.len {
            return Err(out_of_range("TensorDataset", index, self.len));
        }
        Ok(self.tensors.each(|t| t.select(0, index as isize)))
    }

    fn batch(&self, indices: &[usize]) -> Result<T::Batch> {
        if let Some(&index) = indices.iter().find(|&&i| i >= self.len) {
            return Err(out_of_range("TensorDataset", index, self.len));
        }
        let start = indices.first().copied().unwrap_or(0);
        if indices.iter().enumerate().all(|(i, &index)| index == start + i) {
            return Ok(self.tensors.each(|t| t.narrow(0, start, indices.len())).into_batch()); // a view
        }
        let rows: Vec<i64> = indices.iter().map(|&i| i as i64).collect();
        let mut index: Option<Tensor> = None; // sent to a device once, not once for each tensor there
        let batch = self.tensors.each(|t| {
            let there = index.take().filter(|rows| rows.device() == t.device());
            let there = there.unwrap_or_else(|| Tensor::from_slice(&rows, rows.len(), t.device()));
            t.index_select(0, index.insert(there))
        });
        Ok(batch.into_batch())
    }
}

/// A tensor or a tuple of tensors, which [`TensorDataset`] takes rows of.
pub trait TensorRows: Clone + Send + Sync + Collate {
    /// All tensors in order.
    fn tensors(&self) -> Vec<&Tensor>;
    /// The same with `f` applied to each tensor.
    fn each(&self, f: impl FnMut(&Tensor) -> Tensor) -> Self;
    /// Tensors that hold a batch already, as the type of a batch.
    fn into_batch(self) -> Self::Batch;
}

impl TensorRows for Tensor {
    fn tensors(&self) -> Vec<&Tensor> {
        vec![self]
    }
    fn each(&self, mut f: impl FnMut(&Tensor) -> Tensor) -> Tensor {
        f(self)
    }
    fn into_batch(self) -> Tensor {
        self
    }
}

macro_rules! tensor_rows {
    ($(($($t:ident $at:tt),*)),*) => {$(
        impl TensorRows for ($($t,)*) {
            fn tensors(&self) -> Vec<&Tensor> {
                vec![$(&self.$at),*]
            }
            fn each(&self, mut f: impl FnMut(&Tensor) -> Tensor) -> Self {
                ($(f(&self.$at),)*)
            }
            fn into_batch(self) -> Self {
                self
            }
        }
    )*};
}
tensor_rows!(
    (Tensor 0),
    (Tensor 0, Tensor 1),
    (Tensor 0, Tensor 1, Tensor 2),
    (Tensor 0, Tensor 1, Tensor 2, Tensor 3),
    (Tensor 0, Tensor 1, Tensor 2, Tensor 3, Tensor 4)
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_the_stacked_items() {
        let x = Tensor::arange(0, 24, 1, ()).reshape([6, 2, 2]);
        let dataset = TensorDataset::new((x, Tensor::arange(10, 16, 1, ())));
        for indices in [vec![4, 1, 1], vec![2, 3, 4], vec![5]] {
            let items = indices.iter().map(|&i| dataset.get(i).unwrap()).collect();
            let expected = <(Tensor, Tensor)>::collate(items).unwrap();
            let (x, y) = dataset.batch(&indices).unwrap();
            assert_eq!(x.shape(), expected.0.shape());
            assert_eq!(x.to_vec::<i64>().unwrap(), expected.0.to_vec::<i64>().unwrap());
            assert_eq!(y.to_vec::<i64>().unwrap(), expected.1.to_vec::<i64>().unwrap());
        }
        assert!(dataset.batch(&[6]).is_err());
        assert!(dataset.get(6).is_err());
    }

    #[test]
    #[should_panic = "the same number of rows, got [2, 3]"]
    fn rows_must_match() {
        TensorDataset::new((Tensor::zeros(2, ()), Tensor::zeros(3, ())));
    }
}
