//! Writing to positions that tensors name. None of these changes the tensor: assign the result, `x = x.index_copy(..)`.

use super::elementwise::Operand;
use super::index::inverse_order;
use crate::dtype::DType;
use crate::error::Result;
use crate::shape::Shape;
use crate::tensor::Tensor;

impl Tensor {
    /// This tensor with slice `index[i]` along `dim` replaced by slice `i` of `source`. Of equal numbers the last wins.
    ///
    /// # Panics
    /// If the index is not 1-D i64, `source` has other sizes, or (on the CPU) the index is out of range.
    #[track_caller]
    pub fn index_copy(&self, dim: isize, index: &Tensor, source: &Tensor) -> Tensor {
        let d = self.dim_index("index_copy", dim);
        let sizes = self.shape().with(d, index.numel());
        if index.rank() != 1 || *source.shape() != sizes {
            panic!(
                "index_copy: the source must have this tensor's sizes and the index's along dimension {d}. tensor: {}; index: \
                 {}; source: {}",
                self.describe(),
                index.describe(),
                source.describe()
            );
        }
        self.scatter(dim, &index.along(d, self.rank()).broadcast_to(&sizes), source)
    }

    /// This tensor with `value` in the slices along `dim` that the 1-D `index` names.
    ///
    /// # Panics
    /// If the index is not 1-D i64 or (on the CPU) out of range, or `value` does not fit the dtype's kind.
    #[track_caller]
    pub fn index_fill<'a>(&self, dim: isize, index: &Tensor, value: impl Into<Operand<'a>>) -> Tensor {
        let d = self.dim_index("index_fill", dim);
        let sizes = self.shape().with(d, index.numel());
        let value = value.into().to_own_tensor(self);
        if index.rank() != 1 || value.rank() != 0 {
            panic!(
                "index_fill: a 1-D index and one value are expected. index: {}; value: {}",
                index.describe(),
                value.describe()
            );
        }
        let value = self.accepts("index_fill", &value);
        self.scatter(dim, &index.along(d, self.rank()).broadcast_to(&sizes), &value.broadcast_to(&sizes))
    }

    /// This tensor with `values` (broadcast) at the positions that [`Tensor::index`] would read with the same `indices`: Python's
    /// `x[rows, columns] = values`, or `+=` (every collision counts) if `accumulate`; else of colliding positions the last wins.
    ///
    /// ```
    /// # use orkest_core::tensor;
    /// let (rows, columns) = (tensor![0, 1, 1], tensor![2, 0, 0]);
    /// let x = tensor![[0, 0, 0], [0, 0, 0]].index_put(&[Some(&rows), Some(&columns)], 1, true);
    /// assert_eq!(x.to_vec::<i64>().unwrap(), [0, 0, 1, 2, 0, 0]);
    /// ```
    ///
    /// # Shapes
    /// - `values`: broadcasts to the index tensors' common shape followed by the dimensions that are not indexed
    ///
    /// # Panics
    /// If there are more entries than dimensions, the index tensors do not broadcast, `values` does not fit in shape or kind, or
    /// (on the CPU) a position is out of range.
    #[track_caller]
    pub fn index_put<'a>(
        &self,
        indices: &[Option<&Tensor>],
        values: impl Into<Operand<'a>>,
        accumulate: bool,
    ) -> Tensor {
        let at = self.addressed("index_put", indices);
        let values = self.accepts("index_put", &values.into().to_own_tensor(self));
        let back = if at.back.is_empty() { (0..at.found.rank() as isize).collect() } else { at.back };
        let sizes: Vec<usize> = back.iter().map(|&d| at.found[d as usize]).collect();
        let sizes = Shape::new(&sizes);
        if values.shape().broadcast(&sizes) != Some(sizes) {
            panic!("index_put: values do not broadcast to {sizes}. values: {}", values.describe());
        }
        let moved = self.permute(&at.order[..]);
        let table = moved.flatten(0, at.indexed as isize - 1);
        let values = values.broadcast_to(&sizes).permute(&inverse_order(&back)[..]);
        let values = values.reshape(table.shape().with(0, at.flat.numel()));
        let table = match accumulate {
            true => table.index_add(0, &at.flat, &values),
            false => table.index_copy(0, &at.flat, &values),
        };
        table.reshape(moved.shape()).permute(&inverse_order(&at.order)[..])
    }

    /// This tensor with the elements where the bool `mask` holds replaced by those of `source`, one after the other. Reads the mask.
    ///
    /// # Errors
    /// If the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// If the mask is not bool, the shapes do not broadcast, or `source` has too few elements.
    #[track_caller]
    pub fn masked_scatter(&self, mask: &Tensor, source: &Tensor) -> Result<Tensor> {
        let shape = super::elementwise::broadcast_shape("masked_scatter", self, mask);
        if mask.dtype() != DType::Bool {
            panic!("masked_scatter: the mask must be bool; compare with .ne(0). mask: {}", mask.describe());
        }
        let hits = mask.broadcast_view(&shape).true_positions()?;
        if source.numel() < hits.len() {
            panic!(
                "masked_scatter: {} elements for {} places. source: {}",
                source.numel(),
                hits.len(),
                source.describe()
            );
        }
        let index = Tensor::from_slice(&hits, hits.len(), self.device());
        let values = self.accepts("masked_scatter", source).reshape(-1isize).narrow(0, 0, hits.len());
        Ok(self.broadcast_to(&shape).reshape(-1isize).index_copy(0, &index, &values).reshape(shape))
    }

    /// The elements with these numbers in row-major order; the index (i64, any shape; negative ones count from the end) gives the
    /// shape.
    ///
    /// # Panics
    /// If the index is not i64 or (on the CPU) out of range.
    #[track_caller]
    pub fn take(&self, index: &Tensor) -> Tensor {
        self.reshape(-1isize).index(&[Some(index)])
    }

    /// A 1-D tensor as dimension `dim` of `rank`.
    #[track_caller]
    fn along(&self, dim: usize, rank: usize) -> Tensor {
        let mut sizes = vec![1; rank];
        sizes[dim] = self.numel();
        self.reshape(sizes)
    }
}

impl Operand<'_> {
    /// As a tensor of its own kind on the device of `like`.
    #[track_caller]
    fn to_own_tensor(&self, like: &Tensor) -> Tensor {
        match self.tensor() {
            Ok(t) => t.clone(),
            Err(s) => Tensor::full((), s, (s.promote(like.dtype()), like.device())),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{DType, Device, Tensor, tensor};

    #[test]
    fn writes_go_where_reads_come_from() {
        let x = Tensor::arange(0, 24, 1, ()).reshape([2, 3, 4]);
        let (i, j) = (tensor![1, 0], tensor![-1, 0]);
        for indices in
            [vec![Some(&i)], vec![Some(&i), Some(&j)], vec![None, Some(&j)], vec![Some(&i), None, Some(&j)]]
        {
            let values = Tensor::full_like(&x.index(&indices), 100);
            let y = x.index_put(&indices, 100, false);
            assert!(y.index(&indices).equal(&values).unwrap());
            let changed = y.ne(&x).sum(..).item().unwrap();
            assert_eq!(changed as usize, values.numel(), "{} indices", indices.len());
        }
    }

    #[test]
    fn slices_and_masks_are_replaced() {
        let x = Tensor::zeros([3, 2], ());
        let y = x.index_copy(0, &tensor![2, 0], &tensor![[1.0, 2.0], [3.0, 4.0]]);
        assert_eq!(y.to_vec::<f32>().unwrap(), [3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
        assert_eq!(x.index_fill(1, &tensor![1], 5).to_vec::<f32>().unwrap(), [0.0, 5.0, 0.0, 5.0, 0.0, 5.0]);
        let mask = tensor![[true], [false], [true]];
        let z = x.masked_scatter(&mask, &tensor![1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!(z.to_vec::<f32>().unwrap(), [1.0, 2.0, 0.0, 0.0, 3.0, 4.0]);
        assert_eq!(y.take(&tensor![[0, -1]]).to_vec::<f32>().unwrap(), [3.0, 2.0]);
    }

    #[test]
    #[should_panic(expected = "index_put: a f32 source does not fit into i64")]
    fn a_float_is_not_written_into_integers() {
        Tensor::zeros([2], (DType::I64, &Device::cpu())).index_put(&[Some(&tensor![0])], 0.5, false);
    }
}
