//! Diagonals and triangles.

use crate::dispatch::run_fused;
use crate::dtype::{DType, Scalar};
use crate::grads;
use crate::layout::Layout;
use crate::op::Op;
use crate::tensor::Tensor;

impl Tensor {
    /// Zero above diagonal `k` of the last two dimensions (0 is the main one, positive above it).
    #[track_caller]
    pub fn tril(&self, k: isize) -> Tensor {
        self.triangle("tril", k as i64, false)
    }

    /// Zero below diagonal `k` of the last two dimensions.
    #[track_caller]
    pub fn triu(&self, k: isize) -> Tensor {
        self.triangle("triu", k as i64, true)
    }

    #[track_caller]
    fn triangle(&self, name: &'static str, diagonal: i64, upper: bool) -> Tensor {
        if self.rank() < 2 {
            panic!("{name}: at least 2 dimensions are expected. tensor: {}", self.describe());
        }
        if self.numel() == 0 {
            return self.clone();
        }
        let fused =
            run_fused(name, Op::Triangle { diagonal, upper }, &[self], [(*self.shape(), self.dtype())]);
        let Some([y]) = fused else {
            return self.triangle_lowering(name, diagonal, upper);
        };
        y.recorded(name, &[self], &[], move |c| grads![c.grad().triangle(name, diagonal, upper)])
    }

    #[track_caller]
    fn triangle_lowering(&self, name: &'static str, diagonal: i64, upper: bool) -> Tensor {
        let (rows, columns) = (self.size(-2), self.size(-1));
        // All of a diagonal is cut or none: one truth value for each, which the rows of the mask share.
        let numbers = Tensor::arange(1 - rows as i64, columns as i64, 1, self.device());
        let cut = if upper { numbers.lt(diagonal) } else { numbers.gt(diagonal) };
        let mask = Layout::new([rows, columns].into(), &[-1, 1], rows - 1);
        self.masked_fill(&cut.with_layout(mask, name), Scalar::Bool(false))
    }

    /// The elements where the position along `dim2` is that along `dim1` plus `offset`, as a last dimension; a view. PyTorch's
    /// defaults are `0, 0, 1`.
    ///
    /// # Panics
    /// If a dimension is out of range or both are the same.
    #[track_caller]
    pub fn diagonal(&self, offset: isize, dim1: isize, dim2: isize) -> Tensor {
        let (a, b) = (self.dim_index("diagonal", dim1), self.dim_index("diagonal", dim2));
        if a == b {
            panic!("diagonal: {dim1} and {dim2} are the same dimension. tensor: {}", self.describe());
        }
        let out = self.with_layout(diagonal_of(self.layout(), offset, a, b), "diagonal");
        out.recorded("diagonal", &[self], &[], move |c| {
            let part = diagonal_of(&Layout::contiguous(*c.input_shape(0)), offset, a, b);
            grads![c.grad().placed(c.input_shape(0), part)]
        })
    }

    /// Of a vector, the matrix with it on diagonal `k` and zeros elsewhere; of a matrix, its diagonal `k`.
    ///
    /// # Panics
    /// If there are not 1 or 2 dimensions.
    #[track_caller]
    pub fn diag(&self, k: isize) -> Tensor {
        match self.rank() {
            1 => self.diag_embed(k),
            2 => self.diagonal(k, 0, 1),
            _ => panic!(
                "diag: 1 or 2 dimensions are expected; use diag_embed or diagonal. tensor: {}",
                self.describe()
            ),
        }
    }

    /// Square matrices with the last dimension on diagonal `offset` and zeros elsewhere.
    ///
    /// # Shapes
    /// - `[.., n]` → `[.., n + |offset|, n + |offset|]`
    ///
    /// # Panics
    /// If there are no dimensions.
    #[track_caller]
    pub fn diag_embed(&self, offset: isize) -> Tensor {
        let n = self.size(-1) + offset.unsigned_abs();
        let last = self.rank();
        let shape = self.shape().with(last - 1, n).inserted(last, n);
        let part = |shape| diagonal_of(&Layout::contiguous(shape), offset, last - 1, last);
        let out = self.detach().placed(&shape, part(shape));
        out.recorded("diag_embed", &[self], &[], move |c| grads![c.grad().diagonal(offset, -2, -1)])
    }

    /// The sum of the main diagonal of a matrix.
    ///
    /// # Panics
    /// If there are not 2 dimensions.
    #[track_caller]
    pub fn trace(&self) -> Tensor {
        if self.rank() != 2 {
            panic!("trace: a matrix is expected. tensor: {}", self.describe());
        }
        self.diagonal(0, 0, 1).sum(..)
    }
}

/// Diagonal `offset` of dimensions `a` and `b`, as a last dimension.
fn diagonal_of(layout: &Layout, offset: isize, a: usize, b: usize) -> Layout {
    let (down, right) = (offset.min(0).unsigned_abs(), offset.max(0).unsigned_abs());
    let left = |dim: usize, skipped: usize| layout.shape()[dim].saturating_sub(skipped);
    let n = left(a, down).min(left(b, right));
    let (mut sizes, mut strides) = (Vec::new(), Vec::new());
    for d in (0..layout.rank()).filter(|&d| d != a && d != b) {
        sizes.push(layout.shape()[d]);
        strides.push(layout.strides()[d]);
    }
    sizes.push(n);
    strides.push(layout.strides()[a] + layout.strides()[b]);
    let first = match n {
        0 => layout.offset() as isize,
        _ => {
            layout.offset() as isize
                + down as isize * layout.strides()[a]
                + right as isize * layout.strides()[b]
        }
    };
    Layout::new(crate::Shape::new(&sizes), &strides, first as usize)
}

/// The positions of the lower triangle of a `rows x columns` matrix up to diagonal `offset`, row by row: i64 `[2, count]`.
pub fn tril_indices(rows: usize, columns: usize, offset: isize, device: &crate::Device) -> Tensor {
    triangle_indices(rows, columns, device, |row, column| column <= row + offset)
}

/// The positions of the upper triangle of a `rows x columns` matrix from diagonal `offset` on, row by row: i64 `[2, count]`.
pub fn triu_indices(rows: usize, columns: usize, offset: isize, device: &crate::Device) -> Tensor {
    triangle_indices(rows, columns, device, |row, column| column >= row + offset)
}

fn triangle_indices(
    rows: usize,
    columns: usize,
    device: &crate::Device,
    inside: impl Fn(isize, isize) -> bool,
) -> Tensor {
    let (rows, columns) = (rows as isize, columns as isize);
    let places = || (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let (rows, columns): (Vec<i64>, Vec<i64>) =
        places().filter(|&(r, c)| inside(r, c)).map(|(r, c)| (r as i64, c as i64)).unzip();
    Tensor::from_slice(&[&rows[..], &columns[..]].concat(), [2, rows.len()], (DType::I64, device))
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tensor, tensor, tril_indices, triu_indices};

    #[test]
    fn diagonals_are_views_at_the_right_places() {
        let x = Tensor::arange(0, 12, 1, ()).reshape([3, 4]);
        let places = |k| x.diagonal(k, 0, 1).to_vec::<i64>().unwrap();
        assert_eq!((places(0), places(1), places(-2)), (vec![0, 5, 10], vec![1, 6, 11], vec![8]));
        assert_eq!((places(4), places(-9)), (vec![], vec![]));
        assert!(x.t().diagonal(1, 0, 1).shares_memory(&x));
        let batch = Tensor::arange(0, 24, 1, ()).reshape([2, 3, 4]);
        assert_eq!(batch.diagonal(0, 2, 0).to_vec::<i64>().unwrap(), [0, 13, 4, 17, 8, 21]);
        assert_eq!(tensor![1, 2].diag(-1).to_vec::<i64>().unwrap(), [0, 0, 0, 1, 0, 0, 0, 2, 0]);
        assert_eq!(x.diag(2).to_vec::<i64>().unwrap(), [2, 7]);
        assert_eq!(x.trace().item().unwrap(), 15.0);
    }

    #[test]
    fn triangles_have_pytorchs_order() {
        let device = Device::cpu();
        // torch.tril_indices(3, 2), torch.triu_indices(2, 3, 1)
        assert_eq!(tril_indices(3, 2, 0, &device).to_vec::<i64>().unwrap(), [0, 1, 1, 2, 2, 0, 0, 1, 0, 1]);
        assert_eq!(triu_indices(2, 3, 1, &device).to_vec::<i64>().unwrap(), [0, 0, 1, 1, 2, 2]);
    }
}
