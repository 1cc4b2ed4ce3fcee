//! Tensors as rows: what softmax, the norms and the losses work on.

use crate::copy;
use crate::math::Float;
use crate::memory::{self, Scratch, SyncPtr};
use crate::simd::simd_fn;
use orkest_core::{Element, Layout, Output, Result, View};

/// An input as row-major memory: its own where it lies so, else a copy.
pub(crate) struct Dense<T> {
    start: SyncPtr<T>,
    len: usize,
    _copy: Option<Scratch<T>>,
}

impl<T: Element> Dense<T> {
    pub fn new(view: &View<'_>) -> Result<Dense<T>> {
        let (base, layout) = (memory::input_ptr::<T>(view), view.layout);
        let len = layout.numel();
        if layout.is_contiguous() {
            let start = SyncPtr::new(base.wrapping_add(layout.offset()).cast_mut());
            return Ok(Dense { start, len, _copy: None });
        }
        let copy = Scratch::<T>::new(len)?;
        // SAFETY: the scratch is as large as the layout, which lies within the buffer.
        unsafe { copy::copy_raw(base, layout, copy.as_ptr(), &Layout::contiguous(*layout.shape())) };
        Ok(Dense { start: copy.sync_ptr(), len, _copy: Some(copy) })
    }

    /// All elements.
    pub fn all(&self) -> &[T] {
        // SAFETY: `len` written elements from `start`, which nobody writes while the operation runs.
        unsafe { std::slice::from_raw_parts(self.start.get(), self.len) }
    }

    /// Row `i` of rows of `width`.
    #[inline(always)]
    pub fn row(&self, i: usize, width: usize) -> &[T] {
        &self.all()[i * width..(i + 1) * width]
    }
}

/// A row-major output whose rows are written by different threads.
pub(crate) struct RowsMut<T> {
    start: SyncPtr<T>,
    len: usize,
}

impl<T: Element> RowsMut<T> {
    /// `output` is row-major: new, or made so by `core` before an update in place.
    pub fn new(output: &Output) -> RowsMut<T> {
        debug_assert!(output.layout.is_contiguous());
        let start = memory::output_ptr::<T>(output).wrapping_add(output.layout.offset());
        RowsMut { start: SyncPtr::new(start), len: output.layout.numel() }
    }

    /// Elements `from..from + len`.
    ///
    /// # Safety
    /// Nobody else has a part of them at the same time.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from <= self.len && len <= self.len - from);
        // SAFETY: within the output, and the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.at(from as isize), len) }
    }

    /// Row `i` of rows of `width`.
    ///
    /// # Safety
    /// Nobody else has it at the same time.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row(&self, i: usize, width: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { self.part(i * width, width) }
    }
}

/// Size of the last dimension, and how many rows of it there are.
pub(crate) fn rows_of(view: &View<'_>) -> (usize, usize) {
    let width = view.layout.shape().last().copied().unwrap_or(1);
    (view.layout.numel() / width.max(1), width)
}

/// Independent partial results in a loop over a row: enough for four vector registers of f32 at the widest level.
pub(crate) const LANES: usize = 64;

/// `Σ f(i)` over `0..len` with [`LANES`] partial sums, added up pairwise: vectorises, and the error grows slowly.
#[inline(always)]
pub(crate) fn sum_lanes<T: Float>(len: usize, f: impl Fn(usize) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let whole = len / LANES * LANES;
    let mut at = 0;
    while at < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane = *lane + f(at + l);
        }
        at += LANES;
    }
    for (l, lane) in lanes.iter_mut().enumerate().take(len - whole) {
        *lane = *lane + f(whole + l);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = lanes[l] + lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest element that is not NaN; −∞ if there is none.
#[inline(always)]
pub(crate) fn max_lanes<T: Float>(x: &[T]) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let mut lanes = [-T::INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, v);
    }
    lanes.into_iter().fold(-T::INFINITY, larger)
}

simd_fn! {
    /// `y += x`
    pub(crate) fn add_into<S: Simd, T: Float>(x: &[T], y: &mut [T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = *y + x;
        }
    }
}
