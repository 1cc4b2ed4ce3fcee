//! Matrix products.

use super::elementwise::result_dtype;
use crate::autograd::Save;
use crate::dispatch::run;
use crate::dtype::DType;
use crate::grads;
use crate::op::Op;
use crate::shape::Shape;
use crate::tensor::Tensor;

impl Tensor {
    /// Matrix product, as PyTorch's `matmul`.
    ///
    /// # Shapes
    /// - `[m, k] x [k, n]` → `[m, n]`
    /// - `[.., m, k] x [.., k, n]` → `[.., m, n]`, the leading dimensions broadcast
    /// - a 1-D left operand is a row, a 1-D right operand a column; that dimension is dropped from the result
    ///
    /// # Panics
    /// If an operand has no dimensions, the inner sizes differ, or the leading ones do not broadcast.
    #[track_caller]
    pub fn matmul(&self, other: &Tensor) -> Tensor {
        if self.rank() == 0 || other.rank() == 0 {
            panic!(
                "matmul: operands need at least 1 dimension. left: {}; right: {}",
                self.describe(),
                other.describe()
            );
        }
        let (k, inner) = (self.size(-1), other.shape()[other.rank().saturating_sub(2)]);
        if k != inner {
            inner_sizes_differ(self, other, k, inner);
        }
        let (left, right) = (self.in_low_precision(), other.in_low_precision());
        let dtype = result_dtype(&left, &right);
        if dtype == DType::Bool {
            panic!(
                "matmul: bools have no product; convert with .to_dtype(DType::F32). left: {}",
                self.describe()
            );
        }
        let (a, b) = (left.as_dtype(dtype), right.as_dtype(dtype));
        match (a.rank(), b.rank()) {
            (1, 1) => product(&a.unsqueeze(0), &b.unsqueeze(1)).reshape(()),
            (1, _) => product(&a.unsqueeze(0), &b).squeeze(-2),
            (_, 1) => product(&a, &b.unsqueeze(1)).squeeze(-1),
            _ => product(&a, &b),
        }
    }

    /// The inner product of two 1-D tensors.
    ///
    /// # Panics
    /// If they do not both have 1 dimension of the same size.
    #[track_caller]
    pub fn dot(&self, other: &Tensor) -> Tensor {
        if self.rank() != 1 || other.rank() != 1 {
            panic!(
                "dot: two 1-D tensors are expected. left: {}; right: {}",
                self.describe(),
                other.describe()
            );
        }
        self.matmul(other)
    }

    /// The outer product of two 1-D tensors: `[m], [n]` → `[m, n]`.
    ///
    /// # Panics
    /// If they do not both have 1 dimension.
    #[track_caller]
    pub fn outer(&self, other: &Tensor) -> Tensor {
        if self.rank() != 1 || other.rank() != 1 {
            panic!(
                "outer: two 1-D tensors are expected. left: {}; right: {}",
                self.describe(),
                other.describe()
            );
        }
        self.unsqueeze(1) * other.unsqueeze(0)
    }
}

#[cold]
#[track_caller]
fn inner_sizes_differ(a: &Tensor, b: &Tensor, k: usize, inner: usize) -> ! {
    let hint =
        if b.rank() >= 2 && b.size(-1) == k { "; the right operand may need .transpose(-2, -1)" } else { "" };
    panic!(
        "matmul: inner dimensions differ: {} x {} ({k} != {inner}){hint}. left: {}; right: {}",
        a.shape(),
        b.shape(),
        a.describe(),
        b.describe()
    )
}

/// Both operands have at least 2 dimensions, one dtype and agreeing inner sizes.
#[track_caller]
fn product(a: &Tensor, b: &Tensor) -> Tensor {
    if a.rank() > 2 && b.rank() == 2 {
        // Many matrices times the same one are one tall matrix times it.
        let mut shape = *a.shape();
        shape[a.rank() - 1] = b.size(-1);
        return product(&a.flatten(0, -2), b).with_shape(shape);
    }
    let (batch_a, batch_b) = (Shape::new(&a.shape()[..a.rank() - 2]), Shape::new(&b.shape()[..b.rank() - 2]));
    let Some(batch) = batch_a.broadcast(&batch_b) else {
        panic!(
            "matmul: leading dimensions {batch_a} and {batch_b} do not broadcast. left: {}; right: {}",
            a.describe(),
            b.describe()
        );
    };
    let with_batch =
        |rows: usize, columns: usize| batch.iter().copied().chain([rows, columns]).collect::<Shape>();
    let (m, k, n) = (a.size(-2), a.size(-1), b.size(-1));
    let views = [a.broadcast_view(&with_batch(m, k)), b.broadcast_view(&with_batch(k, n))];
    let y = run("matmul", Op::Matmul, &[&views[0], &views[1]], with_batch(m, n), a.dtype());
    y.recorded("matmul", &[a, b], &[Save::Input(0), Save::Input(1)], |c| {
        let (a, b, g) = (c.saved(0), c.saved(1), c.grad());
        grads![
            c.needs(0).then(|| g.matmul(&b.transpose(-2, -1))),
            c.needs(1).then(|| a.transpose(-2, -1).matmul(g))
        ]
    })
}
