//! Tensors as rows: what softmax, the norms and the losses work on.

use crate::copy;
use crate::indexing::position;
use crate::math::Float;
use crate::memory::{self, Scratch, SyncPtr};
use crate::simd::simd_fn;
use crate::transpose::{self, Tiles};
use orkest_core::{Element, Layout, Output, Result, View};
use std::ops::Range;

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

/// An input's rows to be read in order: where they lie, or turned a few at a time if it is the rows that lie side by side.
pub(crate) struct Rows<T> {
    width: usize,
    kind: Kind<T>,
}

enum Kind<T> {
    Dense(Dense<T>),
    /// Where the rows begin, which are next to each other along the last dimension, and how far apart their elements are.
    Columns(SyncPtr<T>, Layout, isize),
}

impl<T: Element> Rows<T> {
    /// Rows that are turned together: a cache line of each of their columns.
    const TILE: usize = 64 / size_of::<T>();

    /// # Panics
    /// If there are no dimensions.
    pub fn new(view: &View<'_>) -> Result<Rows<T>> {
        let (layout, last) = (view.layout, view.layout.rank() - 1);
        let (width, step) = (layout.shape()[last], layout.strides()[last]);
        let starts =
            Layout::new((&layout.shape()[..last]).into(), &layout.strides()[..last], layout.offset());
        let starts = starts.collapse();
        let side_by_side =
            starts.strides().last() == Some(&1) && starts.shape()[starts.rank() - 1] >= Self::TILE;
        let kind = if side_by_side && step != 1 && width > 1 {
            Kind::Columns(SyncPtr::new(memory::input_ptr::<T>(view).cast_mut()), starts, step)
        } else {
            Kind::Dense(Dense::new(view)?)
        };
        Ok(Rows { width, kind })
    }

    /// Calls `f(number, row)` for every row of a range.
    pub fn for_each(&self, range: Range<usize>, mut f: impl FnMut(usize, &[T])) {
        let width = self.width;
        let (base, starts, step) = match &self.kind {
            Kind::Dense(x) => return range.for_each(|i| f(i, x.row(i, width))),
            Kind::Columns(base, starts, step) => (base, starts, *step),
        };
        let height = starts.shape()[starts.rank() - 1];
        let turn = transpose::tile(size_of::<T>());
        let mut tile = vec![T::default(); Self::TILE * width];
        let mut row = range.start;
        while row < range.end {
            let count = Self::TILE.min(height - row % height).min(range.end - row);
            let start = position(starts, row);
            let from = |column: usize| base.at(start + column as isize * step);
            let mut whole = 0;
            if count == Self::TILE {
                whole = width - width % turn.side;
                for column in (0..whole).step_by(turn.side) {
                    let tiles = Tiles {
                        count: Self::TILE / turn.side,
                        from: from(column).cast_const().cast(),
                        from_row: step * size_of::<T>() as isize,
                        to: tile[column..].as_mut_ptr().cast(),
                        to_row: (width * size_of::<T>()) as isize,
                        stream: false,
                    };
                    // SAFETY: these columns of all rows of the tile, which nobody writes meanwhile.
                    unsafe { (turn.run)(&tiles) };
                }
            }
            for column in whole..width {
                let to = &mut tile[column..];
                for i in 0..count {
                    // SAFETY: element `column` of row `row + i`, which nobody writes meanwhile.
                    to[i * width] = unsafe { *from(column).add(i) };
                }
            }
            tile.chunks_exact(width).take(count).enumerate().for_each(|(i, x)| f(row + i, x));
            row += count;
        }
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

/// Elements that are computed together where fewer than [`LANES`] are left: one vector register of f32 at the widest level. What is
/// shorter is filled up, so that rows of any length are computed by vectors.
const PART: usize = 16;

/// Folds the elements of slices of one length: `step(lane, [x[0][i], x[1][i], ..])`, starting from zero, with [`LANES`] partial sums
/// that are added up pairwise, so that the error grows slowly.
///
/// Slices instead of a function of the index: bounds checks would keep the loop from being vectorised.
#[inline(always)]
pub(crate) fn sum_lanes<T: Float, const N: usize>(x: [&[T]; N], step: impl Fn(T, [T; N]) -> T) -> T {
    let len = x[0].len();
    let blocks = x.map(|x| x[..len].as_chunks::<LANES>());
    let mut lanes = [T::ZERO; LANES];
    for i in 0..len / LANES {
        for l in 0..LANES {
            lanes[l] = step(lanes[l], blocks.map(|(whole, _)| whole[i][l]));
        }
    }
    let parts = blocks.map(|(_, rest)| rest.as_chunks::<PART>());
    for i in 0..len % LANES / PART {
        for l in 0..PART {
            lanes[l] = step(lanes[l], parts.map(|(whole, _)| whole[i][l]));
        }
    }
    let short = len % PART;
    if short > 0 {
        let filled = parts.map(|(_, rest)| filled_up(rest));
        for l in 0..PART {
            let next = step(lanes[l], filled.map(|x| x[l]));
            lanes[l] = if l < short { next } else { lanes[l] };
        }
    }
    join_lanes(lanes, |a, b| a + b)
}

/// Fewer than [`PART`] elements, and zeros.
#[inline(always)]
fn filled_up<T: Float>(x: &[T]) -> [T; PART] {
    let mut part = [T::ZERO; PART];
    part[..x.len()].copy_from_slice(x);
    part
}

/// The sum of all elements, in the way of [`sum_lanes`].
#[inline(always)]
pub(crate) fn sum_of<T: Float>(x: &[T]) -> T {
    sum_lanes([x], |sum, [x]| sum + x)
}

/// Replaces every `y` by `f(y, [x[0][i], ..])` and gives the sum of these, in the way of [`sum_lanes`].
#[inline(always)]
pub(crate) fn map_and_sum<T: Float, const N: usize>(
    y: &mut [T],
    x: [&[T]; N],
    f: impl Fn(T, [T; N]) -> T,
) -> T {
    let blocks = x.map(|x| x[..y.len()].as_chunks::<LANES>());
    let mut lanes = [T::ZERO; LANES];
    let (whole, rest) = y.as_chunks_mut::<LANES>();
    for (i, y) in whole.iter_mut().enumerate() {
        for l in 0..LANES {
            y[l] = f(y[l], blocks.map(|(whole, _)| whole[i][l]));
            lanes[l] = lanes[l] + y[l];
        }
    }
    let parts = blocks.map(|(_, rest)| rest.as_chunks::<PART>());
    let (whole, rest) = rest.as_chunks_mut::<PART>();
    for (i, y) in whole.iter_mut().enumerate() {
        for l in 0..PART {
            y[l] = f(y[l], parts.map(|(whole, _)| whole[i][l]));
            lanes[l] = lanes[l] + y[l];
        }
    }
    if !rest.is_empty() {
        let short = rest.len();
        let (mut y, filled) = (filled_up(rest), parts.map(|(_, rest)| filled_up(rest)));
        for l in 0..PART {
            y[l] = f(y[l], filled.map(|x| x[l]));
            lanes[l] = lanes[l] + if l < short { y[l] } else { T::ZERO };
        }
        rest.copy_from_slice(&y[..short]);
    }
    join_lanes(lanes, |a, b| a + b)
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
    let (parts, rest) = rest.as_chunks::<PART>();
    for part in parts {
        for l in 0..PART {
            lanes[l] = larger(lanes[l], part[l]);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, v);
    }
    join_lanes(lanes, larger)
}

/// Combines all lanes pairwise.
#[inline(always)]
fn join_lanes<T: Float>(lanes: [T; LANES], join: impl Fn(T, T) -> T) -> T {
    const QUARTER: usize = LANES / 4;
    let quarters = |l: usize| [0, 1, 2, 3].map(|q| lanes[q * QUARTER + l]);
    let mut lanes: [T; QUARTER] = std::array::from_fn(|l| {
        let [a, b, c, d] = quarters(l);
        join(join(a, b), join(c, d))
    });
    let mut width = QUARTER / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = join(lanes[l], lanes[l + width]);
        }
        width /= 2;
    }
    lanes[0]
}

simd_fn! {
    /// `y += x`
    pub(crate) fn add_into<S: Simd, T: Float>(x: &[T], y: &mut [T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = *y + x;
        }
    }
}
