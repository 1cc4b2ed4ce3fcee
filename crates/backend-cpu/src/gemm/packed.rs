//! Products of one matrix with others that are made on the way: the first is packed once, the others panel by panel by the caller.

use super::kernel::Tile;
use super::{DEPTH, Implementation, Panels, Real, Source, Target, pack, panels, workspace};
use crate::memory::Scratch;
use crate::parallel;
use orkest_core::Result;
use std::ops::Range;

/// Elements behind a panel that [`Packed::times`] lets its caller write.
pub(crate) const SLACK: usize = 16;

/// The left operand `A [m, k]` of products, packed.
pub(crate) struct Packed<T: 'static> {
    memory: Scratch<T>,

    with: Implementation<T>,
    rows: Panels,
    depths: Panels,
}

impl<T: Real> Packed<T> {
    /// # Errors
    /// If there is no memory for the copy.
    ///
    /// # Safety
    /// Every element of A lies in memory that is valid for the call.
    pub unsafe fn new(m: usize, k: usize, a: Source<T>) -> Result<Packed<T>> {
        let with = T::kernels(crate::simd::level());
        let (rows, depths) = (panels(m, with.kernels.tile_rows()), panels(k, DEPTH));
        let memory = Scratch::new(rows.count * width(&with) * k)?;
        let packed = Packed { memory, with, rows, depths };
        let (first, grain) = (packed.memory.sync_ptr(), (32 << 10) / (width(&with) * depths.largest()));
        parallel::ranges(depths.count * rows.count, grain.max(1), |range| {
            for (block, panel) in range.map(|i| (i / rows.count, i % rows.count)) {
                let from = a.from(rows.start(panel), depths.start(block));
                let to = first.at(packed.position(block, panel) as isize);
                let (depth, count) = (depths.size(block), rows.size(panel));
                // SAFETY: the caller's A; a panel of the copy that this task alone writes.
                unsafe {
                    pack::panel(width(&with), depth, count, from.at, from.row, from.col, to, with.transpose);
                }
            }
        });
        Ok(packed)
    }

    /// Where a panel begins.
    fn position(&self, block: usize, panel: usize) -> usize {
        let (before, depth) = (self.depths.start(block), self.depths.size(block));
        width(&self.with) * (self.rows.count * before + panel * depth)
    }

    /// `C = A · B` for a B of `n` columns. `pack(rows, columns, width, to)` writes a part of B, `[rows, width]`: at most `width` columns, a row
    /// after the other; what it leaves in further columns and in [`SLACK`] elements more has no meaning.
    ///
    /// # Safety
    /// `c` has neighbouring columns, all of which are valid for the call and written by nobody else.
    pub unsafe fn times(
        &self,
        n: usize,
        c: Target<T>,
        mut pack: impl FnMut(Range<usize>, Range<usize>, usize, &mut [T]),
    ) {
        let kernels = self.with.kernels;
        let wide = kernels.tile_columns();
        workspace(wide * self.depths.largest() + SLACK, |b: *mut T| {
            for block in 0..self.depths.count {
                let (first, depth) = (self.depths.start(block), self.depths.size(block));
                for start in (0..n).step_by(wide) {
                    let columns = start..n.min(start + wide);
                    // SAFETY: the workspace is as large, and all bits are numbers.
                    let panel = unsafe { std::slice::from_raw_parts_mut(b, wide * depth + SLACK) };
                    pack(first..first + depth, columns.clone(), wide, panel);
                    let vectors = columns.len().div_ceil(kernels.lanes);
                    for i in 0..self.rows.count {
                        let tile = Tile {
                            k: depth,
                            a: self.memory.as_ptr().wrapping_add(self.position(block, i)),
                            a_row: 1,
                            a_col: width(&self.with) as isize,
                            b: panel.as_ptr(),
                            b_row: wide as isize,
                            c: c.from(self.rows.start(i), start).at,
                            c_row: c.row,
                            columns: columns.len(),
                            accumulate: block > 0,
                        };
                        // SAFETY: packed panels and a tile of the caller's C.
                        unsafe { kernels.packed[self.rows.size(i) - 1][vectors - 1](&tile) };
                    }
                }
            }
        });
    }
}

/// Elements from one column of a packed panel of rows to the next.
fn width<T>(with: &Implementation<T>) -> usize {
    with.kernels.tile_rows().next_power_of_two()
}
