//! Products tile by tile, whose right operand lies anywhere: the caller packs the left one, says where each row of the right one begins, and
//! takes what comes out. What convolutions are made of.

use super::kernel::{Gathered, Laying, MOST_RUNS, Places, Shifted};
use super::{DEPTH, Implementation, Packed, Panels, Real, pack, panels};
use std::ops::Range;

/// The left operand: row `i` has in column `(o, t)` the element at `at + i * row + o * outer` and step `t` of `steps`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, T> {
    pub at: *const T,
    pub row: isize,
    pub outer: isize,
    pub outers: usize,
    pub steps: Steps<'a>,
}

// SAFETY: only an address and numbers; who packs promises that it is good.
unsafe impl<T> Sync for Left<'_, T> {}
// SAFETY: as above.
unsafe impl<T> Send for Left<'_, T> {}

/// Distances from a start.
#[derive(Clone, Copy)]
pub(crate) enum Steps<'a> {
    /// 0, `step`, 2 `step` ..
    Even {
        count: usize,
        step: isize,
    },
    Listed(&'a [isize]),
}

impl<'a, T> Left<'a, T> {
    /// Some of its columns.
    pub fn of_outers(&self, outers: Range<usize>) -> Left<'a, T> {
        let at = self.at.wrapping_offset(outers.start as isize * self.outer);
        Left { at, outers: outers.len(), ..*self }
    }

    pub fn depth(&self) -> usize {
        self.outers
            * match self.steps {
                Steps::Even { count, .. } => count,
                Steps::Listed(steps) => steps.len(),
            }
    }
}

/// The tiles of this machine.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<T: 'static> {
    with: Implementation<T>,
}

impl<T: Real> Tiles<T> {
    /// At most so many vectors side by side.
    pub const VECTORS: usize = 2;

    pub fn new() -> Tiles<T> {
        Tiles { with: T::kernels(crate::simd::level()) }
    }

    /// Elements of a vector.
    pub fn lanes(&self) -> usize {
        self.with.kernels.lanes
    }

    /// `m` rows cut into those of tiles.
    pub fn rows(&self, m: usize) -> Panels {
        panels(m, self.with.kernels.tile_rows())
    }

    /// Elements of a packed column.
    pub fn width(&self) -> usize {
        self.with.kernels.tile_rows().next_power_of_two()
    }

    /// Packs rows of `left`, `[depth, width]`.
    ///
    /// # Safety
    /// Every element of these rows lies in memory that is valid for the call, and so does `to`.
    pub unsafe fn pack(&self, left: &Left<'_, T>, rows: Range<usize>, to: *mut T) {
        let Left { row, outer, outers, steps, .. } = *left;
        let from = left.at.wrapping_offset(rows.start as isize * row);
        let width = self.width();
        let panel = |depth: usize, deep: isize, from: *const T, to: *mut T| {
            // SAFETY: the caller's promise.
            unsafe { pack::panel(width, depth, rows.len(), from, row, deep, to, self.with.transpose) }
        };
        match steps {
            Steps::Even { count: 1, .. } => panel(outers, outer, from, to),
            Steps::Even { count, step } if outers == 1 || outer == count as isize * step => {
                panel(outers * count, step, from, to);
            }
            Steps::Even { count, step } => {
                for o in 0..outers {
                    panel(
                        count,
                        step,
                        from.wrapping_offset(o as isize * outer),
                        to.wrapping_add(o * count * width),
                    );
                }
            }
            Steps::Listed(steps) => {
                for o in 0..outers {
                    let from = from.wrapping_offset(o as isize * outer);
                    for (t, step) in steps.iter().enumerate() {
                        let to = to.wrapping_add((o * steps.len() + t) * width);
                        for i in 0..rows.len() {
                            // SAFETY: an element of the rows, and one of a packed column.
                            unsafe { *to.add(i) = *from.offset(i as isize * row + step) };
                        }
                    }
                }
            }
        }
    }

    /// `to[p * count + i] = from[i * along + p]` for `p < len`, `i < count`; what is written in a few elements more has no meaning.
    ///
    /// # Safety
    /// `from` is good for these elements, `to` for them and eight more.
    pub unsafe fn transpose(&self, len: usize, count: usize, from: *const T, along: usize, to: *mut T) {
        let block = self.with.transpose.block;
        // The last rows first: what they write too much is written again.
        for i in (0..count).step_by(block).rev() {
            let (from, rows) = (from.wrapping_add(i * along), block.min(count - i));
            // SAFETY: the caller's promise.
            unsafe { (self.with.transpose.run)(len, rows, from, along as isize, to.add(i), count) };
        }
    }

    /// A panel of what windows see.
    ///
    /// # Safety
    /// There are elements where the lanes see, and room for two vectors for each offset.
    pub unsafe fn lay(&self, laying: &Laying<'_, T>) {
        let runs = laying.vectors.iter().map(|lanes| lanes.len()).max().unwrap_or(0);
        let kernel = MOST_RUNS.iter().position(|&most| runs <= most);
        let kernel = self.with.kernels.lay[kernel.expect("a vector has no more runs than lanes")];
        // SAFETY: the caller's promise; the level is what this processor has.
        unsafe { kernel(laying) };
    }

    /// `to[i]` = Σ `row` · `x[points[i]..]`
    pub fn dots(&self, row: &[T], x: &[T], points: &[usize], to: &mut [T]) {
        let kernels = &self.with.kernels.shifted;
        let groups = panels(points.len(), kernels.len());
        for i in 0..groups.count {
            let range = groups.start(i)..groups.start(i + 1);
            let furthest = points[range.clone()].iter().max().copied().unwrap_or(0);
            assert!(furthest + row.len() <= x.len());
            let shifted = Shifted {
                len: row.len(),
                row: row.as_ptr(),
                x: x.as_ptr(),
                points: points[range.clone()].as_ptr(),
                sums: to[range.clone()].as_mut_ptr(),
            };
            // SAFETY: the level is what this processor has; the pointers are those of slices that have just been measured.
            unsafe { kernels[range.len() - 1](&shifted) };
        }
    }

    /// A product whose operands are packed by functions: rows of A as wide as [`Tiles::width`], columns of B as wide as a tile.
    ///
    /// # Safety
    /// What they pack, and C, lies in memory that is valid for the call; C's elements are distinct and written by nobody else.
    pub unsafe fn run(&self, packed: &Packed<'_, T>) {
        // SAFETY: the caller's promise; the level is what this processor has.
        unsafe { packed.run(&self.with) }
    }

    /// The pieces in which [`Tiles::multiply`] adds `depth` terms.
    pub fn depths(depth: usize) -> Panels {
        panels(depth, DEPTH)
    }

    /// A tile of `rows` rows and one vector for each of `right`: `c (+)= a · B`, where row `p` of B's vector `v` begins at
    /// `right[v] + offsets[p]`; or to `places`. The terms are added in pieces of a fixed depth, so that the error grows slowly.
    ///
    /// # Safety
    /// `a` is packed as deep as `offsets`; B's vectors, `c`, `c_row` from row to row, and the places are valid for the call.
    pub unsafe fn multiply(
        &self,
        rows: usize,
        a: *const T,
        offsets: &[usize],
        right: &[*const T],
        (c, c_row): (*mut T, usize),
        accumulate: bool,
        places: Option<Places<'_, T>>,
    ) {
        let kernel = self.with.kernels.gathered[rows - 1][right.len() - 1];
        let b = [right[0], right[right.len() - 1]];
        debug_assert!(places.is_none_or(|places| places.bias.is_none_or(|bias| bias.len() >= rows)));
        let depths = Self::depths(offsets.len());
        for i in 0..depths.count {
            let start = depths.start(i);
            let tile = Gathered {
                k: depths.size(i),
                a: a.wrapping_add(start * self.width()),
                a_col: self.width(),
                b,
                rows: offsets[start..].as_ptr(),
                c,
                c_row,
                accumulate: accumulate || i > 0,
                places: if i + 1 == depths.count { places } else { None },
            };
            // SAFETY: the caller's promise; the level is what this processor has.
            unsafe { kernel(&tile) };
        }
    }
}
