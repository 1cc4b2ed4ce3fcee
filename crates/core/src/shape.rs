//! Shapes, dimension arguments and broadcasting.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut, RangeFull};

/// The most dimensions a tensor can have.
///
/// A fixed bound keeps shapes and strides on the stack and free to copy: no operation allocates for them.
pub const MAX_RANK: usize = 8;

/// The sizes of a tensor's dimensions; `[]` is a scalar tensor.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Zeros beyond the rank.
    dims: [usize; MAX_RANK],
    rank: u8,
}

impl PartialEq for Shape {
    #[inline]
    fn eq(&self, other: &Shape) -> bool {
        // Without branches: a few vector instructions, where the derived one calls a function of the C library.
        let differ = self.dims.iter().zip(&other.dims).fold(0, |differ, (a, b)| differ | (a ^ b));
        differ == 0 && self.rank == other.rank
    }
}

impl Eq for Shape {}

impl Hash for Shape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl Shape {
    /// Copies `dims`.
    ///
    /// # Panics
    /// If there are more than [`MAX_RANK`] dimensions.
    #[track_caller]
    #[inline]
    pub fn new(dims: &[usize]) -> Shape {
        assert!(
            dims.len() <= MAX_RANK,
            "a tensor has at most {MAX_RANK} dimensions, got {}: {dims:?}",
            dims.len()
        );
        let mut out = Shape { dims: [0; MAX_RANK], rank: dims.len() as u8 };
        out.dims[..dims.len()].copy_from_slice(dims);
        out
    }

    /// The number of dimensions.
    #[inline]
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// The number of elements, or `None` if it does not fit in an `isize`.
    #[inline]
    pub fn checked_numel(&self) -> Option<usize> {
        if self.contains(&0) {
            return Some(0);
        }
        let n = self.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        (n <= isize::MAX as usize).then_some(n)
    }

    /// The number of elements.
    ///
    /// # Panics
    /// If it does not fit in an `isize`.
    #[track_caller]
    #[inline]
    pub fn numel(&self) -> usize {
        let mut n = 1usize;
        for &d in self.iter() {
            n = match n.checked_mul(d) {
                Some(n) => n,
                None => {
                    return match self.checked_numel() {
                        Some(n) => n,
                        None => panic!("shape {self} has too many elements"),
                    };
                }
            };
        }
        n
    }

    /// The same sizes with `dim` replaced.
    #[inline]
    pub fn with(mut self, dim: usize, size: usize) -> Shape {
        self[dim] = size;
        self
    }

    /// The same sizes without dimension `dim`.
    pub fn without(&self, dim: usize) -> Shape {
        let mut out = Shape { dims: [0; MAX_RANK], rank: self.rank - 1 };
        for (i, o) in out.iter_mut().enumerate() {
            *o = self[if i < dim { i } else { i + 1 }];
        }
        out
    }

    /// The same sizes with a new dimension of `size` before position `dim`.
    #[track_caller]
    pub fn inserted(&self, dim: usize, size: usize) -> Shape {
        assert!(
            self.rank() < MAX_RANK,
            "a tensor has at most {MAX_RANK} dimensions, {self} has no room for another"
        );
        let mut out = Shape { dims: [0; MAX_RANK], rank: self.rank + 1 };
        for (i, o) in out.iter_mut().enumerate() {
            *o = if i == dim { size } else { self[if i < dim { i } else { i - 1 }] };
        }
        out
    }

    /// One more dimension at the end; there is room for it.
    #[inline]
    pub(crate) fn push(&mut self, size: usize) {
        self.dims[self.rank()] = size;
        self.rank += 1;
    }

    /// The shape both broadcast to by NumPy's rules, if there is one.
    pub fn broadcast(&self, other: &Shape) -> Option<Shape> {
        if self == other {
            return Some(*self);
        }
        let rank = self.rank().max(other.rank());
        let mut out = Shape { dims: [0; MAX_RANK], rank: rank as u8 };
        for i in 0..rank {
            // Sizes are aligned at the right; missing ones count as 1.
            let a = (i + self.rank()).checked_sub(rank).map_or(1, |j| self[j]);
            let b = (i + other.rank()).checked_sub(rank).map_or(1, |j| other[j]);
            out[i] = match (a, b) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => return None,
            };
        }
        Some(out)
    }
}

impl Deref for Shape {
    type Target = [usize];
    #[inline]
    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }
}

impl DerefMut for Shape {
    #[inline]
    fn deref_mut(&mut self) -> &mut [usize] {
        &mut self.dims[..self.rank as usize]
    }
}

/// Collects sizes, at most [`MAX_RANK`] of them.
impl FromIterator<usize> for Shape {
    #[track_caller]
    fn from_iter<I: IntoIterator<Item = usize>>(sizes: I) -> Shape {
        let mut sizes = sizes.into_iter();
        let mut shape = Shape::new(&[]);
        while let Some(size) = sizes.next() {
            if shape.rank() == MAX_RANK {
                let all: Vec<usize> = shape.iter().copied().chain([size]).chain(sizes).collect();
                return Shape::new(&all); // panics, naming them
            }
            shape.push(size);
        }
        shape
    }
}

impl PartialEq<[usize]> for Shape {
    fn eq(&self, other: &[usize]) -> bool {
        **self == *other
    }
}

impl<const N: usize> PartialEq<[usize; N]> for Shape {
    fn eq(&self, other: &[usize; N]) -> bool {
        **self == *other
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl From<usize> for Shape {
    fn from(size: usize) -> Shape {
        Shape::new(&[size])
    }
}

impl From<()> for Shape {
    fn from((): ()) -> Shape {
        Shape::new(&[])
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    #[track_caller]
    fn from(dims: [usize; N]) -> Shape {
        Shape::new(&dims)
    }
}

impl<const N: usize> From<&[usize; N]> for Shape {
    #[track_caller]
    fn from(dims: &[usize; N]) -> Shape {
        Shape::new(dims)
    }
}

impl From<&[usize]> for Shape {
    #[track_caller]
    fn from(dims: &[usize]) -> Shape {
        Shape::new(dims)
    }
}

impl From<Vec<usize>> for Shape {
    #[track_caller]
    fn from(dims: Vec<usize>) -> Shape {
        Shape::new(&dims)
    }
}

impl From<&Vec<usize>> for Shape {
    #[track_caller]
    fn from(dims: &Vec<usize>) -> Shape {
        Shape::new(dims)
    }
}

impl From<&Shape> for Shape {
    fn from(shape: &Shape) -> Shape {
        *shape
    }
}

/// One size in a [`reshape`](crate::Tensor::reshape): a number, or -1 for "whatever is left".
pub trait IntoDim {
    /// As a signed size.
    fn into_dim(self) -> isize;
}

macro_rules! into_dim {
    // A size beyond isize must not become -1; that no tensor is so large is said elsewhere.
    ($($t:ty),*) => {$(
        impl IntoDim for $t { fn into_dim(self) -> isize { isize::try_from(self).unwrap_or(isize::MAX) } }
    )*};
}
into_dim!(usize, isize, i32, i64);

/// Sizes for `reshape`, `view` and `expand`, where -1 means "inferred" or "unchanged".
///
/// Arrays and slices of one integer type, or tuples that mix them: `(batch, seq, -1)`.
pub trait IntoDims {
    /// As signed sizes.
    fn into_dims(self) -> smallvec::SmallVec<[isize; MAX_RANK]>;
}

impl<T: IntoDim, const N: usize> IntoDims for [T; N] {
    fn into_dims(self) -> smallvec::SmallVec<[isize; MAX_RANK]> {
        self.into_iter().map(IntoDim::into_dim).collect()
    }
}

impl<T: IntoDim + Copy> IntoDims for &[T] {
    fn into_dims(self) -> smallvec::SmallVec<[isize; MAX_RANK]> {
        self.iter().map(|d| d.into_dim()).collect()
    }
}

impl IntoDims for Shape {
    fn into_dims(self) -> smallvec::SmallVec<[isize; MAX_RANK]> {
        (&*self).into_dims()
    }
}

impl IntoDims for &Shape {
    fn into_dims(self) -> smallvec::SmallVec<[isize; MAX_RANK]> {
        (**self).into_dims()
    }
}

impl IntoDims for Vec<usize> {
    fn into_dims(self) -> smallvec::SmallVec<[isize; MAX_RANK]> {
        (&*self).into_dims()
    }
}

impl IntoDims for isize {
    fn into_dims(self) -> smallvec::SmallVec<[isize; MAX_RANK]> {
        smallvec::smallvec![self]
    }
}

impl IntoDims for usize {
    fn into_dims(self) -> smallvec::SmallVec<[isize; MAX_RANK]> {
        smallvec::smallvec![self.into_dim()]
    }
}

impl IntoDims for i32 {
    fn into_dims(self) -> smallvec::SmallVec<[isize; MAX_RANK]> {
        smallvec::smallvec![self as isize]
    }
}

impl IntoDims for () {
    fn into_dims(self) -> smallvec::SmallVec<[isize; MAX_RANK]> {
        smallvec::SmallVec::new()
    }
}

macro_rules! into_dims_tuple {
    ($($t:ident $i:tt),*) => {
        impl<$($t: IntoDim),*> IntoDims for ($($t,)*) {
            fn into_dims(self) -> smallvec::SmallVec<[isize; MAX_RANK]> {
                smallvec::smallvec![$(self.$i.into_dim()),*]
            }
        }
    };
}
into_dims_tuple!(A 0);
into_dims_tuple!(A 0, B 1);
into_dims_tuple!(A 0, B 1, C 2);
into_dims_tuple!(A 0, B 1, C 2, D 3);
into_dims_tuple!(A 0, B 1, C 2, D 3, E 4);
into_dims_tuple!(A 0, B 1, C 2, D 3, E 4, F 5);
into_dims_tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
into_dims_tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);

/// The dimensions a reduction runs over: one (`-1`), several (`[0, 2]`) or all (`..`).
pub trait ReduceDims {
    /// The dimensions named, or `None` for all of them.
    fn dims(&self) -> Option<&[isize]>;
}

impl ReduceDims for isize {
    fn dims(&self) -> Option<&[isize]> {
        Some(std::slice::from_ref(self))
    }
}

impl<const N: usize> ReduceDims for [isize; N] {
    fn dims(&self) -> Option<&[isize]> {
        Some(self)
    }
}

impl ReduceDims for &[isize] {
    fn dims(&self) -> Option<&[isize]> {
        Some(self)
    }
}

impl<D: ReduceDims> ReduceDims for &D {
    fn dims(&self) -> Option<&[isize]> {
        (**self).dims()
    }
}

impl ReduceDims for RangeFull {
    fn dims(&self) -> Option<&[isize]> {
        None
    }
}

/// A set of dimensions, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DimSet(u8);

impl DimSet {
    /// The set of all dimensions of a tensor of `rank`.
    pub fn all(rank: usize) -> DimSet {
        DimSet(((1u16 << rank) - 1) as u8)
    }

    /// The set of one.
    pub fn one(dim: usize) -> DimSet {
        DimSet(1 << dim)
    }

    /// Adds a dimension; false if it was there.
    pub fn insert(&mut self, dim: usize) -> bool {
        let new = !self.contains(dim);
        self.0 |= 1 << dim;
        new
    }

    /// Is `dim` in the set?
    #[inline]
    pub fn contains(self, dim: usize) -> bool {
        self.0 >> dim & 1 == 1
    }

    /// True if nothing is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The dimensions, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_RANK).filter(move |&d| self.contains(d))
    }

    /// `shape` with these dimensions set to 1.
    pub fn keep(self, mut shape: Shape) -> Shape {
        for d in 0..shape.rank() {
            if self.contains(d) {
                shape[d] = 1;
            }
        }
        shape
    }

    /// `shape` without these dimensions.
    pub fn remove(self, shape: &Shape) -> Shape {
        (0..shape.rank()).filter(|&d| !self.contains(d)).map(|d| shape[d]).collect()
    }

    /// How many elements of `shape` fall together in one.
    pub fn count(self, shape: &Shape) -> usize {
        (0..shape.rank()).filter(|&d| self.contains(d)).map(|d| shape[d]).product()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy() {
        let s = |d: &[usize]| Shape::new(d);
        assert_eq!(s(&[3, 1]).broadcast(&s(&[2])), Some(s(&[3, 2])));
        assert_eq!(s(&[]).broadcast(&s(&[4, 5])), Some(s(&[4, 5])));
        assert_eq!(s(&[0, 1]).broadcast(&s(&[1, 3])), Some(s(&[0, 3])));
        assert_eq!(s(&[2]).broadcast(&s(&[3])), None);
        assert_eq!(s(&[0]).broadcast(&s(&[2])), None);
    }

    #[test]
    fn huge_shapes_are_noticed() {
        assert_eq!(Shape::new(&[1 << 40, 1 << 40]).checked_numel(), None);
        assert_eq!(Shape::new(&[1 << 40, 1 << 40, 0]).checked_numel(), Some(0));
    }
}
