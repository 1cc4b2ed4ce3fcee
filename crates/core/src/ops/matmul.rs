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

    /// The product of two matrices: [`Tensor::matmul`] without broadcasting.
    ///
    /// # Panics
    /// If they do not both have 2 dimensions or the inner sizes differ.
    #[track_caller]
    pub fn mm(&self, other: &Tensor) -> Tensor {
        self.product_of_ranks("mm", 2, other, 2)
    }

    /// The products of two stacks of matrices: `[b, m, k], [b, k, n]` → `[b, m, n]`.
    ///
    /// # Panics
    /// If they do not both have 3 dimensions of which the first are equal, or the inner sizes differ.
    #[track_caller]
    pub fn bmm(&self, other: &Tensor) -> Tensor {
        if self.rank() == 3 && other.rank() == 3 && self.shape()[0] != other.shape()[0] {
            panic!("bmm: the stacks differ in size. left: {}; right: {}", self.describe(), other.describe());
        }
        self.product_of_ranks("bmm", 3, other, 3)
    }

    /// The product of a matrix and a vector: `[m, k], [k]` → `[m]`.
    ///
    /// # Panics
    /// If they do not have 2 dimensions and 1, or the inner sizes differ.
    #[track_caller]
    pub fn mv(&self, other: &Tensor) -> Tensor {
        self.product_of_ranks("mv", 2, other, 1)
    }

    #[track_caller]
    fn product_of_ranks(&self, op: &str, left: usize, other: &Tensor, right: usize) -> Tensor {
        if self.rank() != left || other.rank() != right {
            panic!(
                "{op}: {left} and {right} dimensions are expected; matmul takes any. left: {}; right: {}",
                self.describe(),
                other.describe()
            );
        }
        self.matmul(other)
    }

    /// `beta * self + alpha * (a @ b)`, with this tensor broadcast. PyTorch's defaults are `beta = 1`, `alpha = 1`; with `beta = 0`
    /// this tensor's values do not matter, not even NaN.
    ///
    /// # Panics
    /// As [`Tensor::mm`].
    #[track_caller]
    pub fn addmm(&self, a: &Tensor, b: &Tensor, beta: f64, alpha: f64) -> Tensor {
        self.plus_product("addmm", a.mm(b), beta, alpha)
    }

    /// `beta * self + alpha * (a @ b)` for stacks of matrices; see [`Tensor::addmm`].
    ///
    /// # Panics
    /// As [`Tensor::bmm`].
    #[track_caller]
    pub fn baddbmm(&self, a: &Tensor, b: &Tensor, beta: f64, alpha: f64) -> Tensor {
        self.plus_product("baddbmm", a.bmm(b), beta, alpha)
    }

    #[track_caller]
    fn plus_product(&self, op: &str, product: Tensor, beta: f64, alpha: f64) -> Tensor {
        if self.shape().broadcast(product.shape()).as_ref() != Some(product.shape()) {
            panic!(
                "{op}: {} does not broadcast to {}. tensor: {}",
                self.shape(),
                product.shape(),
                self.describe()
            );
        }
        let scaled = |x: &Tensor, factor: f64| if factor == 1.0 { x.clone() } else { x * factor };
        let product = scaled(&product, alpha);
        if beta == 0.0 { product } else { scaled(self, beta) + product }
    }

    /// Products summed over the dimensions `left` of this tensor and `right` of `other`, in pairs; what is left of this tensor's
    /// dimensions comes first. PyTorch's `tensordot(a, b, dims=2)` pairs the last two with the first two: `&[-2, -1], &[0, 1]`.
    ///
    /// # Panics
    /// If the lists differ in length, name a dimension twice or one that is not there, or paired sizes differ.
    #[track_caller]
    pub fn tensordot(&self, other: &Tensor, left: &[isize], right: &[isize]) -> Tensor {
        let find = |t: &Tensor, dims: &[isize]| -> Vec<usize> {
            dims.iter().map(|&d| t.dim_index("tensordot", d)).collect()
        };
        let (a, b) = (find(self, left), find(other, right));
        let pairs_fit = a.len() == b.len()
            && a.iter().zip(&b).all(|(&i, &j)| self.shape()[i] == other.shape()[j])
            && [&a, &b].iter().all(|dims| dims.iter().all(|d| dims.iter().filter(|e| *e == d).count() == 1));
        if !pairs_fit {
            panic!(
                "tensordot: dimensions {left:?} and {right:?} do not pair up. left: {}; right: {}",
                self.describe(),
                other.describe()
            );
        }
        let rest = |t: &Tensor, used: &[usize]| -> Vec<usize> {
            (0..t.rank()).filter(|d| !used.contains(d)).collect()
        };
        let (rest_a, rest_b) = (rest(self, &a), rest(other, &b));
        let order = |first: &[usize], then: &[usize]| -> Vec<isize> {
            first.iter().chain(then).map(|&d| d as isize).collect()
        };
        let sizes =
            |t: &Tensor, dims: &[usize]| -> Vec<usize> { dims.iter().map(|&d| t.shape()[d]).collect() };
        let inner: usize = sizes(self, &a).iter().product();
        let (rows, columns) = (sizes(self, &rest_a), sizes(other, &rest_b));
        let x = self.permute(&order(&rest_a, &a)[..]).reshape([rows.iter().product(), inner]);
        let y = other.permute(&order(&b, &rest_b)[..]).reshape([inner, columns.iter().product()]);
        x.matmul(&y).reshape([rows, columns].concat())
    }

    /// The Kronecker product: every element of this tensor times all of `other`, as blocks.
    ///
    /// # Shapes
    /// - `[a, b, ..]` and `[c, d, ..]` → `[a c, b d, ..]`; the shorter shape is filled up with ones in front
    ///
    /// # Panics
    /// If there are more than 4 dimensions.
    #[track_caller]
    pub fn kron(&self, other: &Tensor) -> Tensor {
        let rank = self.rank().max(other.rank());
        if 2 * rank > crate::shape::MAX_RANK {
            panic!(
                "kron: at most 4 dimensions are possible. left: {}; right: {}",
                self.describe(),
                other.describe()
            );
        }
        let (mut wide_a, mut wide_b, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        let size = |t: &Tensor, d: usize| (d + t.rank()).checked_sub(rank).map_or(1, |d| t.shape()[d]);
        for d in 0..rank {
            let (m, n) = (size(self, d), size(other, d));
            wide_a.extend([m, 1]);
            wide_b.extend([1, n]);
            sizes.push(m * n);
        }
        (self.reshape(wide_a) * other.reshape(wide_b)).reshape(sizes)
    }

    /// The cross product of vectors of 3 along `dim`; PyTorch's `torch.linalg.cross`.
    ///
    /// # Panics
    /// If the size along `dim` is not 3 or the shapes do not broadcast.
    #[track_caller]
    pub fn cross(&self, other: &Tensor, dim: isize) -> Tensor {
        if self.size(dim) != 3 || other.size(dim) != 3 {
            panic!(
                "cross: vectors of 3 are expected along dimension {dim}. left: {}; right: {}",
                self.describe(),
                other.describe()
            );
        }
        let (next, last) = (|t: &Tensor| t.roll(-1, dim), |t: &Tensor| t.roll(1, dim));
        next(self) * last(other) - last(self) * next(other)
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
