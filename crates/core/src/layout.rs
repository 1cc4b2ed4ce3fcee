//! Where a tensor's elements lie in its buffer: shape, strides, offset, and the algebra of views.
//!
//! Everything here is arithmetic on sizes; no element is ever touched.

use crate::shape::{MAX_RANK, Shape};
use std::fmt;

/// Shape, strides (in elements, possibly zero or negative) and offset of a view into a buffer.
#[derive(Clone, Copy, PartialEq)]
pub struct Layout {
    shape: Shape,
    strides: [isize; MAX_RANK],
    offset: usize,
}

impl Layout {
    /// Row-major, without gaps, from the start of the buffer.
    #[track_caller]
    #[inline]
    pub fn contiguous(shape: Shape) -> Layout {
        let mut strides = [0; MAX_RANK];
        let mut step = 1isize;
        for d in (0..shape.rank()).rev() {
            strides[d] = step;
            step = step.wrapping_mul(shape[d].max(1) as isize);
        }
        Layout { shape, strides, offset: 0 }
    }

    /// From its parts.
    ///
    /// # Panics
    /// If there are not as many strides as dimensions.
    #[inline]
    pub fn new(shape: Shape, strides: &[isize], offset: usize) -> Layout {
        assert_eq!(shape.rank(), strides.len(), "one stride per dimension");
        let mut all = [0; MAX_RANK];
        all[..strides.len()].copy_from_slice(strides);
        Layout { shape, strides: all, offset }
    }

    /// The sizes.
    #[inline]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Elements between neighbours along each dimension.
    #[inline]
    pub fn strides(&self) -> &[isize] {
        &self.strides[..self.shape.rank()]
    }

    /// The position of element `[0, 0, ..]` in the buffer.
    #[inline]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The number of dimensions.
    #[inline]
    pub fn rank(&self) -> usize {
        self.shape.rank()
    }

    /// The number of elements.
    #[inline]
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if the elements lie in row-major order without gaps (from any offset).
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        for d in (0..self.rank()).rev() {
            if self.shape[d] != 1 {
                if self.strides[d] != step {
                    return self.numel() == 0;
                }
                step *= self.shape[d] as isize;
            }
        }
        true
    }

    /// Dimensions reordered: dimension `i` of the result is `dims[i]` of this layout.
    pub fn permute(&self, dims: &[usize]) -> Layout {
        let mut out = *self;
        for (i, &d) in dims.iter().enumerate() {
            out.shape[i] = self.shape[d];
            out.strides[i] = self.strides[d];
        }
        out
    }

    /// Two dimensions exchanged.
    pub fn transpose(&self, a: usize, b: usize) -> Layout {
        let mut out = *self;
        out.shape.swap(a, b);
        out.strides.swap(a, b);
        out
    }

    /// `len` elements along `dim` from `start`, every `step`-th. The caller has checked the range.
    pub fn slice(&self, dim: usize, start: usize, len: usize, step: usize) -> Layout {
        let mut out = *self;
        if len > 0 {
            out.offset = out.offset.wrapping_add_signed(start as isize * self.strides[dim]);
        }
        out.strides[dim] *= step as isize;
        out.shape[dim] = len;
        out
    }

    /// One position along `dim`, whose dimension disappears. The caller has checked the index.
    pub fn select(&self, dim: usize, index: usize) -> Layout {
        self.slice(dim, index, 1, 1).squeeze(dim)
    }

    /// `dim` in reverse order.
    pub fn flip(&self, dim: usize) -> Layout {
        let mut out = *self;
        let last = self.shape[dim].saturating_sub(1) as isize;
        out.offset = out.offset.wrapping_add_signed(last * self.strides[dim]);
        out.strides[dim] = -self.strides[dim];
        out
    }

    /// Without dimension `dim`, which has size 1.
    pub fn squeeze(&self, dim: usize) -> Layout {
        let mut out = *self;
        out.shape = self.shape.without(dim);
        for d in dim..out.rank() {
            out.strides[d] = self.strides[d + 1];
        }
        out.strides[out.rank()] = 0;
        out
    }

    /// With a new dimension of size 1 before `dim`.
    #[track_caller]
    pub fn unsqueeze(&self, dim: usize) -> Layout {
        let mut out = Layout { shape: self.shape.inserted(dim, 1), ..*self };
        for d in (dim + 1..out.rank()).rev() {
            out.strides[d] = self.strides[d - 1];
        }
        out.strides[dim] = if dim < self.rank() { self.strides[dim] * self.shape[dim] as isize } else { 1 };
        out
    }

    /// Expanded to `shape` with stride 0 where a size of 1 (or nothing) grows. `None` if the shapes do not broadcast.
    pub fn broadcast_to(&self, shape: &Shape) -> Option<Layout> {
        if self.shape == *shape {
            return Some(*self);
        }
        let lead = shape.rank().checked_sub(self.rank())?;
        let mut out = Layout { shape: *shape, strides: [0; MAX_RANK], offset: self.offset };
        for d in 0..self.rank() {
            if self.shape[d] == shape[lead + d] {
                out.strides[lead + d] = self.strides[d];
            } else if self.shape[d] != 1 {
                return None;
            }
        }
        Some(out)
    }

    /// The same elements in the same row-major order under another shape, if that needs no copy.
    pub fn view(&self, shape: &Shape) -> Option<Layout> {
        if self.numel() == 0 || self.is_contiguous() {
            return Some(Layout { offset: self.offset, ..Layout::contiguous(*shape) });
        }
        // Merge neighbouring dimensions that form one arithmetic run, then cut each run into the new sizes.
        let mut out = Layout { shape: *shape, strides: [0; MAX_RANK], offset: self.offset };
        let mut new = shape.rank();
        let mut old = self.rank();
        while old > 0 {
            let (mut size, stride) = (self.shape[old - 1], self.strides[old - 1]);
            old -= 1;
            if size == 1 {
                continue;
            }
            while old > 0 && (self.shape[old - 1] == 1 || self.strides[old - 1] == stride * size as isize) {
                size *= self.shape[old - 1];
                old -= 1;
            }
            let mut step = stride;
            let mut left = size;
            while left > 1 {
                if new == 0 || !left.is_multiple_of(shape[new - 1]) {
                    return None;
                }
                new -= 1;
                out.strides[new] = step;
                step *= shape[new] as isize;
                left /= shape[new];
            }
        }
        // Sizes of 1 that are left over can have any stride.
        shape[..new].iter().all(|&d| d == 1).then_some(out)
    }

    /// The same elements with size-1 dimensions dropped and mergeable neighbours merged: the form kernels loop over.
    ///
    /// Layouts that are to be walked together must be collapsed together: [`Layout::collapse_all`].
    pub fn collapse(&self) -> Layout {
        Layout::collapse_all([self])[0]
    }

    /// Collapses layouts of one shape together, so that they can still be walked in step.
    pub fn collapse_all<const N: usize>(layouts: [&Layout; N]) -> [Layout; N] {
        let mut out = layouts.map(|l| Layout { shape: Shape::new(&[]), ..*l });
        let shape = layouts[0].shape;
        let mut sizes = Shape::new(&[]);
        for d in 0..shape.rank() {
            if shape[d] == 1 {
                continue;
            }
            let last = sizes.rank().wrapping_sub(1);
            let merges = !sizes.is_empty()
                && (0..N).all(|i| out[i].strides[last] == layouts[i].strides[d] * shape[d] as isize);
            if merges {
                sizes[last] *= shape[d];
            } else {
                sizes.push(shape[d]);
            }
            for i in 0..N {
                out[i].strides[sizes.rank() - 1] = layouts[i].strides[d];
            }
        }
        for o in &mut out {
            o.shape = sizes;
        }
        out
    }

    /// The smallest and largest buffer position this layout touches; `None` if it has no elements.
    pub fn bounds(&self) -> Option<(usize, usize)> {
        if self.numel() == 0 {
            return None;
        }
        let (mut low, mut high) = (self.offset as isize, self.offset as isize);
        for (&size, &stride) in self.shape.iter().zip(self.strides()) {
            let reach = (size as isize - 1) * stride;
            if reach < 0 { low += reach } else { high += reach }
        }
        Some((low as usize, high as usize))
    }

    /// The buffer position of every element, in row-major order.
    pub fn positions(&self) -> Positions {
        Positions { layout: *self, index: [0; MAX_RANK], at: self.offset as isize, left: self.numel() }
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} strides {:?} offset {}", self.shape, self.strides(), self.offset)
    }
}

/// Iterator over buffer positions; see [`Layout::positions`].
pub struct Positions {
    layout: Layout,
    index: [usize; MAX_RANK],
    at: isize,
    left: usize,
}

impl Iterator for Positions {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let here = self.at as usize;
        for d in (0..self.layout.rank()).rev() {
            self.index[d] += 1;
            self.at += self.layout.strides[d];
            if self.index[d] < self.layout.shape[d] {
                break;
            }
            self.at -= self.layout.strides[d] * self.layout.shape[d] as isize;
            self.index[d] = 0;
        }
        Some(here)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Positions {}

#[cfg(test)]
mod tests {
    use super::*;

    fn contiguous(dims: &[usize]) -> Layout {
        Layout::contiguous(Shape::new(dims))
    }

    #[test]
    fn a_transposed_matrix_is_walked_in_its_own_order() {
        let t = contiguous(&[2, 3]).transpose(0, 1);
        assert_eq!(t.positions().collect::<Vec<_>>(), [0, 3, 1, 4, 2, 5]);
        assert!(!t.is_contiguous());
        assert_eq!(t.flip(0).positions().collect::<Vec<_>>(), [2, 5, 1, 4, 0, 3]);
    }

    #[test]
    fn views_that_need_no_copy_are_found() {
        let x = contiguous(&[4, 6]);
        assert!(x.transpose(0, 1).view(&Shape::new(&[24])).is_none());
        // Rows cut short: the last dimension can still be split, rows cannot be joined.
        let cut = x.slice(1, 0, 4, 1);
        let split = cut.view(&Shape::new(&[4, 2, 2])).unwrap();
        assert_eq!(split.strides(), [6, 2, 1]);
        assert!(cut.view(&Shape::new(&[16])).is_none());
        // A broadcast dimension is a run of stride 0.
        let wide = contiguous(&[1, 3]).broadcast_to(&Shape::new(&[4, 3])).unwrap();
        assert_eq!(wide.view(&Shape::new(&[2, 2, 3])).unwrap().strides(), [0, 0, 1]);
        assert!(wide.view(&Shape::new(&[12])).is_none());
    }

    #[test]
    fn views_keep_the_order_of_elements() {
        let x = contiguous(&[2, 3, 4]).permute(&[2, 0, 1]).slice(0, 1, 2, 2);
        if let Some(v) = x.view(&Shape::new(&[2, 6])) {
            assert_eq!(v.positions().collect::<Vec<_>>(), x.positions().collect::<Vec<_>>());
        }
        let y = contiguous(&[5, 1, 4]).slice(0, 0, 3, 2).view(&Shape::new(&[3, 2, 1, 2])).unwrap();
        assert_eq!(y.positions().collect::<Vec<_>>(), [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]);
    }

    #[test]
    fn collapsing_keeps_the_order_of_elements() {
        let a = contiguous(&[2, 3, 1, 4]);
        let b = contiguous(&[3, 1, 4]).broadcast_to(a.shape()).unwrap();
        let [ca, cb] = Layout::collapse_all([&a, &b]);
        assert_eq!(ca.shape(), &[2, 12]);
        assert_eq!(ca.positions().collect::<Vec<_>>(), a.positions().collect::<Vec<_>>());
        assert_eq!(cb.positions().collect::<Vec<_>>(), b.positions().collect::<Vec<_>>());
    }

    #[test]
    fn bounds_cover_negative_strides() {
        assert_eq!(contiguous(&[3, 4]).flip(0).flip(1).bounds(), Some((0, 11)));
        assert_eq!(contiguous(&[0, 4]).bounds(), None);
    }
}
