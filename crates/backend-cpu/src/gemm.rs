//! Matrix multiplication of f32 and f64: blocking for the caches, packing, threads, and the choice of kernel.
//!
//! `C (+)= A · B` with any strides. Large products follow the scheme of BLIS: panels of A and B are packed into the order in
//! which the kernels read them, a panel of B stays in the first-level cache while a block of A streams past it from the second.
//! Products with few rows or columns, and small ones, are read where they lie.
//!
//! The order in which the terms of one element are added depends on the shapes and strides alone, so results do not depend on
//! the number of threads: k is never split among them.

mod kernel;
mod pack;
mod tiles;

use crate::parallel;
use crate::simd::Level;
use kernel::{Dots, Kernels, STREAMS, Tile, TileKernel};
use pack::Transpose;
use std::cell::RefCell;
use std::ops::Range;

pub(crate) use kernel::{Lanes, Laying, Places, Portable, Run, Vector};
pub(crate) use tiles::{Left, Steps, Tiles};

/// A matrix to read: the address of its first element and the distances between rows and columns, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Source<T> {
    pub at: *const T,
    pub row: isize,
    pub col: isize,
}

/// A matrix to write.
#[derive(Clone, Copy)]
pub(crate) struct Target<T> {
    pub at: *mut T,
    pub row: isize,
    pub col: isize,
}

// SAFETY: only addresses; `Gemm::run` asks its caller for what makes their use sound.
unsafe impl<T> Sync for Source<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Source<T> {}
// SAFETY: as above; tasks write disjoint parts.
unsafe impl<T> Sync for Target<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Target<T> {}

impl<T> Source<T> {
    fn transposed(self) -> Source<T> {
        Source { at: self.at, row: self.col, col: self.row }
    }

    /// The matrix from this row and column on.
    pub fn from(self, row: usize, col: usize) -> Source<T> {
        let at = self.at.wrapping_offset(row as isize * self.row + col as isize * self.col);
        Source { at, ..self }
    }
}

impl<T> Target<T> {
    fn transposed(self) -> Target<T> {
        Target { at: self.at, row: self.col, col: self.row }
    }

    fn from(self, row: usize, col: usize) -> Target<T> {
        let at = self.at.wrapping_offset(row as isize * self.row + col as isize * self.col);
        Target { at, ..self }
    }

    /// To be read.
    pub fn source(self) -> Source<T> {
        Source { at: self.at, row: self.row, col: self.col }
    }
}

/// What happens to a finished piece of C while it is still in the cache: gets the row, the first column and the elements.
pub(crate) type Finish<'a, T> = &'a (dyn Fn(usize, usize, &mut [T]) + Sync);

/// `C (+)= A · B` with `A [m, k]`, `B [k, n]`, `C [m, n]`.
#[derive(Clone, Copy)]
pub(crate) struct Gemm<'a, T> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Source<T>,
    pub b: Source<T>,
    pub c: Target<T>,
    /// Add to C instead of replacing it.
    pub accumulate: bool,
    /// Use all threads if there is enough to do.
    pub parallel: bool,
    /// Needs a C with neighbouring columns.
    pub finish: Option<Finish<'a, T>>,
}

/// Packs rows of A or columns of B, `[k, width of a tile]`, for a range of k.
pub(crate) type Pack<'a, T> = &'a (dyn Fn(Range<usize>, Range<usize>, *mut T) + Sync);

/// `C (+)= A · B` whose operands are whatever two functions pack. C's columns are neighbours.
pub(crate) struct Packed<'a, T> {
    pub m: usize,
    pub n: usize,
    /// k, cut into pieces that are packed at a time, each so many times `unit`.
    pub depths: Panels,
    pub unit: usize,
    pub pack_a: Pack<'a, T>,
    pub pack_b: Pack<'a, T>,
    pub c: Target<T>,
    /// Add to C instead of replacing it.
    pub accumulate: bool,
    /// Use all threads if there is enough to do.
    pub parallel: bool,
    pub finish: Option<Finish<'a, T>>,
}

/// The element types that have kernels.
pub(crate) trait Real: Copy + Default + Send + Sync + std::ops::AddAssign + 'static {
    #[doc(hidden)]
    fn kernels(level: Level) -> Implementation<Self>;
}

/// Kernels and what goes with them.
#[derive(Clone, Copy)]
pub(crate) struct Implementation<T: 'static> {
    kernels: &'static Kernels<T>,
    transpose: Transpose<T>,
}

macro_rules! real {
    ($t:ty, $avx512:ident, $avx2:ident, $portable:ident, $transpose:ident, $block:literal) => {
        impl Real for $t {
            fn kernels(level: Level) -> Implementation<$t> {
                match level {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => Implementation {
                        kernels: &kernel::$avx512::KERNELS,
                        transpose: Transpose { block: $block, run: pack::x86::$transpose },
                    },
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => Implementation {
                        kernels: &kernel::$avx2::KERNELS,
                        transpose: Transpose { block: $block, run: pack::x86::$transpose },
                    },
                    _ => Implementation {
                        kernels: &kernel::$portable::KERNELS,
                        transpose: Transpose { block: 4, run: pack::portable },
                    },
                }
            }
        }
    };
}
real!(f32, avx512_f32, avx2_f32, portable_f32, f32x8, 8);
real!(f64, avx512_f64, avx2_f64, portable_f64, f64x4, 4);

/// Depth of a block: 32 columns of f32 make a panel of B of 32 KiB, two thirds of a first-level cache.
const DEPTH: usize = 256;
/// Depth of a block of a deep product. C is read and written once per block, which costs such a product more than panels of B
/// that come from the second-level cache (k = 2048: 8 % less time; k = 512: 5 % more).
const DEEP: usize = 512;
/// Rows of A packed at a time, columns of B packed at a time.
const ROWS: usize = 4096;
const COLUMNS: usize = 4096;
/// Bytes of packed A that a task works through for each panel of B: a fraction of a second-level cache.
const BLOCK_BYTES: usize = 192 * 1024;
/// Columns of a task.
const TASK_COLUMNS: usize = 512;
/// Multiply-adds up to which B is turned over instead of packed.
const TURNED: usize = 1 << 15;
/// Multiply-adds below which waking threads costs more than it saves.
pub(crate) const PARALLEL: usize = 1 << 20;

impl<T: Real> Gemm<'_, T> {
    /// Computes it.
    ///
    /// # Safety
    /// Every element of A, B and C lies in memory that is valid for the call, C's are distinct and written by nobody else.
    pub unsafe fn run(&self) {
        // SAFETY: the level is what this processor has; the rest is the caller's promise.
        unsafe { self.run_at(crate::simd::level()) }
    }

    /// # Safety
    /// As [`Gemm::run`]; the processor has the level.
    unsafe fn run_at(&self, level: Level) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        let with = T::kernels(level);
        // Few columns, whose rows of A lie apart but whose columns do not: better seen as few rows of results.
        let few = self.n <= with.kernels.direct.len() && self.m >= 4 * self.n;
        let narrow = self.m > 1 && (self.n == 1 || (few && self.a.row == 1 && self.a.col != 1));
        // SAFETY: passed on; `plain` writes what `self` would, `finish_rows` runs after it.
        unsafe {
            if self.k == 0 {
                if !self.accumulate {
                    self.clear();
                }
                self.finish_rows();
                return;
            }
            if (self.c.col == 1 || self.n == 1) && !narrow {
                return self.oriented(&with);
            }
            // A column of results, or a column-major C: compute the transpose, C' = B' A'.
            let plain = Gemm {
                m: self.n,
                n: self.m,
                a: self.b.transposed(),
                b: self.a.transposed(),
                c: self.c.transposed(),
                finish: None,
                ..*self
            };
            if self.c.row == 1 {
                plain.oriented(&with);
            } else if narrow {
                plain.through_scratch(&with);
            } else {
                Gemm { finish: None, ..*self }.through_scratch(&with);
            }
            self.finish_rows();
        }
    }

    /// For a C whose columns are not neighbours: into a scratch matrix, then out.
    unsafe fn through_scratch(&self, with: &Implementation<T>) {
        let Gemm { m, n, c, .. } = *self;
        workspace(m * n, |scratch: *mut T| {
            // SAFETY: the scratch matrix has m x n elements; C is the caller's.
            unsafe {
                let whole = Target { at: scratch, row: n as isize, col: 1 };
                Gemm { c: whole, accumulate: false, ..*self }.oriented(with);
                for i in 0..m {
                    for j in 0..n {
                        let to = c.from(i, j).at;
                        let mut value = *scratch.add(i * n + j);
                        if self.accumulate {
                            value += *to;
                        }
                        *to = value;
                    }
                }
            }
        });
    }

    unsafe fn clear(&self) {
        for i in 0..self.m {
            for j in 0..self.n {
                // SAFETY: an element of C.
                unsafe { *self.c.from(i, j).at = T::default() };
            }
        }
    }

    /// Runs `finish` over all of C.
    unsafe fn finish_rows(&self) {
        let Some(finish) = self.finish else { return };
        for i in 0..self.m {
            // SAFETY: C's columns are neighbours, or there is only one.
            finish(i, 0, unsafe { std::slice::from_raw_parts_mut(self.c.from(i, 0).at, self.n) });
        }
    }

    /// C's columns are neighbours here: choose the method.
    unsafe fn oriented(&self, with: &Implementation<T>) {
        let Gemm { m, n, k, a, b, .. } = *self;
        let size = size_of::<T>();
        let few = with.kernels.dots.len();
        let some = 6 * few;
        // SAFETY: passed on.
        unsafe {
            // Dot products, if k runs along memory in both operands or a copy makes it so in a small one.
            let deep = (a.col == 1 || m <= some) && (b.row == 1 || n <= some);
            let rows_of_b = m <= few && b.col == 1 && n > few;
            if deep && !rows_of_b && (m.min(n) <= few || (m.min(n) <= some && k >= 256)) {
                return self.dot_products(with);
            }
            if m == 1 && b.col == 1 {
                return self.row_times_matrix(with);
            }
            let small = m * k * size <= 96 * 1024 && k * n * size <= 192 * 1024;
            if b.col == 1 && (m <= 2 * with.kernels.direct.len() || small) {
                return self.in_place(with);
            }
            if b.row == 1 && small && m * n * k <= TURNED {
                return self.turned(with);
            }
            self.packed(with);
        }
    }

    /// Splits `0..items` over the threads if the product is large enough. Each part is a multiple of `unit`.
    fn split(&self, items: usize, unit: usize, run: impl Fn(Range<usize>) + Sync) {
        let units = items.div_ceil(unit);
        let threads =
            if self.parallel && self.m * self.n * self.k >= PARALLEL { parallel::num_threads() } else { 1 };
        if threads == 1 || units == 1 {
            return run(0..items);
        }
        let parts = units.min(4 * threads);
        parallel::for_each(parts, |i| {
            let range = units * i / parts * unit..(units * (i + 1) / parts * unit).min(items);
            run(range);
        });
    }

    /// Few rows or columns, k contiguous in both operands (or made so in the small one).
    unsafe fn dot_products(&self, with: &Implementation<T>) {
        let Gemm { m, n, k, a, b, .. } = *self;
        // The operand that lies across k is one with few rows or columns: a small copy.
        let copy_a = a.col != 1;
        let copy_b = b.row != 1;
        let len = if copy_a { m * k } else { 0 } + if copy_b { n * k } else { 0 };
        if len == 0 {
            // SAFETY: passed on.
            return unsafe { self.dot_blocks(with) };
        }
        workspace(len, |scratch: *mut T| {
            let mut next = scratch;
            let mut gemm = *self;
            // SAFETY: the scratch memory holds both copies.
            unsafe {
                if copy_a {
                    copy_transposed(m, k, a.transposed(), next, with.transpose);
                    gemm.a = Source { at: next, row: k as isize, col: 1 };
                    next = next.add(m * k);
                }
                if copy_b {
                    copy_transposed(n, k, b, next, with.transpose);
                    gemm.b = Source { at: next, row: 1, col: k as isize };
                }
                gemm.dot_blocks(with);
            }
        });
    }

    unsafe fn dot_blocks(&self, with: &Implementation<T>) {
        let Gemm { m, n, k, a, b, c, accumulate, .. } = *self;
        let kernels = with.kernels.dots;
        let block = |rows: Range<usize>, cols: Range<usize>| {
            let heights = panels(rows.len(), kernels.len());
            let width = kernels[heights.largest() - 1].len();
            let widths = panels(cols.len(), width);
            // A group of columns stays in the cache while the rows pass by.
            for jj in 0..widths.count {
                for ii in 0..heights.count {
                    let (i, j) = (rows.start + heights.start(ii), cols.start + widths.start(jj));
                    let dots = Dots {
                        k,
                        a: a.from(i, 0).at,
                        a_row: a.row,
                        b: b.from(0, j).at,
                        b_col: b.col,
                        c: c.from(i, j).at,
                        c_row: c.row,
                        c_col: c.col,
                        accumulate,
                    };
                    // SAFETY: the block lies inside the matrices.
                    unsafe { kernels[heights.size(ii) - 1][widths.size(jj) - 1](&dots) };
                }
            }
            // SAFETY: this part of C belongs to this task and is complete.
            unsafe { self.finish_block(rows, cols) };
        };
        if n >= m {
            self.split(n, 8, |cols| block(0..m, cols));
        } else {
            self.split(m, 8, |rows| block(rows, 0..n));
        }
    }

    /// One row times a row-major matrix: adds up scaled rows, several at once.
    unsafe fn row_times_matrix(&self, with: &Implementation<T>) {
        let Gemm { n, k, a, b, c, accumulate, .. } = *self;
        // A piece of the result that stays in the first-level cache.
        const PIECE: usize = 1024;
        self.split(n, 64, |cols| {
            for j in cols.clone().step_by(PIECE) {
                let len = PIECE.min(cols.end - j);
                let y = c.from(0, j).at;
                // SAFETY: columns `j..j + len` of C, and of rows of B below k.
                unsafe {
                    if !accumulate {
                        std::slice::from_raw_parts_mut(y, len).fill(T::default());
                    }
                    let mut p = 0;
                    while p + STREAMS <= k {
                        let x = std::array::from_fn(|s| *a.from(0, p + s).at);
                        let rows = std::array::from_fn(|s| b.from(p + s, j).at);
                        (with.kernels.axpy)(len, &x, &rows, y);
                        p += STREAMS;
                    }
                    if p < k {
                        let tile = Tile {
                            k: k - p,
                            a: a.from(0, p).at,
                            a_row: 0,
                            a_col: a.col,
                            b: b.from(p, j).at,
                            b_row: b.row,
                            c: y,
                            c_row: 0,
                            columns: len,
                            accumulate: true,
                        };
                        strips(tile, with.kernels.direct[0], with.kernels.lanes);
                    }
                }
            }
            // SAFETY: this part of C belongs to this task and is complete.
            unsafe { self.finish_block(0..1, cols) };
        });
    }

    /// Small, or few rows: no packing, B's rows are contiguous.
    unsafe fn in_place(&self, with: &Implementation<T>) {
        let Gemm { m, n, k, a, b, c, accumulate, .. } = *self;
        let heights = panels(m, with.kernels.direct.len());
        let kernels = with.kernels.direct[heights.largest() - 1];
        let depths = panels(k, DEPTH);
        self.split(n, kernels.len() * with.kernels.lanes, |cols| {
            let widest = kernels.len() * with.kernels.lanes;
            for pp in 0..depths.count {
                let p = depths.start(pp);
                for j in cols.clone().step_by(widest) {
                    for ii in 0..heights.count {
                        let i = heights.start(ii);
                        let tile = Tile {
                            k: depths.size(pp),
                            a: a.from(i, p).at,
                            a_row: a.row,
                            a_col: a.col,
                            b: b.from(p, j).at,
                            b_row: b.row,
                            c: c.from(i, j).at,
                            c_row: c.row,
                            columns: widest.min(cols.end - j),
                            accumulate: accumulate || pp > 0,
                        };
                        let kernels = with.kernels.direct[heights.size(ii) - 1];
                        // SAFETY: rows `i..` and columns `j..` of the matrices.
                        unsafe { strips(tile, kernels, with.kernels.lanes) };
                    }
                }
            }
            // SAFETY: this part of C belongs to this task and is complete.
            unsafe { self.finish_block(0..m, cols) };
        });
    }

    /// Small, with neighbours along B's columns: a copy of B that lies along its rows costs less than to pack both operands.
    unsafe fn turned(&self, with: &Implementation<T>) {
        let Gemm { n, k, b, .. } = *self;
        workspace(k * n, |scratch: *mut T| {
            // SAFETY: the scratch memory holds the copy.
            unsafe {
                copy_transposed(k, n, b.transposed(), scratch, with.transpose);
                Gemm { b: Source { at: scratch, row: n as isize, col: 1 }, ..*self }.in_place(with);
            }
        });
    }

    /// The general method.
    unsafe fn packed(&self, with: &Implementation<T>) {
        let Gemm { m, n, k, a, b, c, accumulate, parallel, finish } = *self;
        let (tile_rows, tile_columns) = (with.kernels.tile_rows(), with.kernels.tile_columns());
        let a_width = tile_rows.next_power_of_two();
        let pack_a = |rows: Range<usize>, depth: Range<usize>, to: *mut T| {
            let from = a.from(rows.start, depth.start);
            // SAFETY: rows of A, and room for them.
            unsafe {
                pack::panel(
                    a_width,
                    depth.len(),
                    rows.len(),
                    from.at,
                    from.row,
                    from.col,
                    to,
                    with.transpose,
                );
            }
        };
        let pack_b = |cols: Range<usize>, depth: Range<usize>, to: *mut T| {
            let from = b.from(depth.start, cols.start);
            // SAFETY: columns of B, and room for them.
            unsafe {
                pack::panel(
                    tile_columns,
                    depth.len(),
                    cols.len(),
                    from.at,
                    from.col,
                    from.row,
                    to,
                    with.transpose,
                );
            }
        };
        let packed = Packed {
            m,
            n,
            depths: depths(k, 1),
            unit: 1,
            pack_a: &pack_a,
            pack_b: &pack_b,
            c,
            accumulate,
            parallel,
            finish,
        };
        // SAFETY: passed on.
        unsafe { packed.run(with) }
    }

    /// Runs `finish` over a part of C.
    unsafe fn finish_block(&self, rows: Range<usize>, cols: Range<usize>) {
        if let Some(finish) = self.finish {
            // SAFETY: the caller owns this part of C, whose columns are neighbours.
            unsafe { finish_block(finish, self.c, rows, cols) }
        }
    }
}

/// k cut into pieces of whole `unit`s, as deep as panels should be.
pub(crate) fn depths(k: usize, unit: usize) -> Panels {
    panels(k / unit, (if k > 2 * DEEP { DEEP } else { DEPTH } / unit).max(1))
}

/// Runs `finish` over a part of C.
///
/// # Safety
/// The caller owns this part of C, whose columns are neighbours.
unsafe fn finish_block<T: Copy>(finish: Finish<'_, T>, c: Target<T>, rows: Range<usize>, cols: Range<usize>) {
    for i in rows {
        let at = c.from(i, cols.start).at;
        // SAFETY: the caller's promise.
        finish(i, cols.start, unsafe { std::slice::from_raw_parts_mut(at, cols.len()) });
    }
}

impl<T: Real> Packed<'_, T> {
    /// # Safety
    /// Both functions pack what lies in valid memory, C's elements are valid, distinct and written by nobody else.
    unsafe fn run(&self, with: &Implementation<T>) {
        let Packed { m, n, depths, unit, c, accumulate, .. } = *self;
        let kernels = with.kernels;
        let (tile_rows, tile_columns) = (kernels.tile_rows(), kernels.tile_columns());
        let a_width = tile_rows.next_power_of_two();
        let deepest = depths.largest() * unit;
        let row_blocks = panels(m, ROWS);
        let column_blocks = panels(n, COLUMNS);
        let a_len = panels(row_blocks.largest(), tile_rows).count * a_width * deepest;
        let b_len = column_blocks.largest().next_multiple_of(tile_columns) * deepest;
        let work = m * n * depths.len * unit;
        let threads = if self.parallel && work >= PARALLEL { parallel::num_threads() } else { 1 };
        let for_each = |tasks: usize, run: &(dyn Fn(usize) + Sync)| {
            if threads == 1 || tasks == 1 {
                (0..tasks).for_each(run);
            } else {
                parallel::for_each(tasks, run);
            }
        };
        // Both pieces start on a cache line.
        let a_len = a_len.next_multiple_of(64);
        workspace(a_len + b_len, |scratch: *mut T| {
            let packed_a = Target { at: scratch, row: 0, col: 0 };
            let packed_b = Target { at: scratch.wrapping_add(a_len), row: 0, col: 0 };
            for jb in 0..column_blocks.count {
                let (j0, columns) = (column_blocks.start(jb), column_blocks.size(jb));
                let b_panels = columns.div_ceil(tile_columns);
                for pp in 0..depths.count {
                    let (p0, depth) = (depths.start(pp) * unit, depths.size(pp) * unit);
                    for ib in 0..row_blocks.count {
                        let (i0, rows) = (row_blocks.start(ib), row_blocks.size(ib));
                        let a_panels = panels(rows, tile_rows);
                        let pack_a = |i: usize| {
                            let to = { packed_a }.at.wrapping_add(i * a_width * depth);
                            let rows = i0 + a_panels.start(i)..i0 + a_panels.start(i + 1);
                            (self.pack_a)(rows, p0..p0 + depth, to);
                        };
                        let pack_b = |j: usize| {
                            let to = { packed_b }.at.wrapping_add(j * tile_columns * depth);
                            let column = j * tile_columns;
                            let cols = j0 + column..j0 + columns.min(column + tile_columns);
                            (self.pack_b)(cols, p0..p0 + depth, to);
                        };
                        // Panels of B are packed once for all blocks of rows.
                        let b_panels_now = if ib == 0 { b_panels } else { 0 };
                        let groups =
                            (a_panels.count + b_panels_now).min(if threads == 1 { 1 } else { 4 * threads });
                        for_each(groups, &|group| {
                            for i in part(a_panels.count, groups, group) {
                                pack_a(i);
                            }
                            for j in part(b_panels_now, groups, group) {
                                pack_b(j);
                            }
                        });

                        let tasks = Tasks::new(
                            a_panels.count,
                            b_panels,
                            depth,
                            a_width * size_of::<T>(),
                            tile_columns,
                            threads,
                        );
                        let finish = self.finish.filter(|_| pp + 1 == depths.count);
                        for_each(tasks.count(), &|task| {
                            let (ii, jj) = tasks.ranges(task);
                            for j in jj.clone() {
                                let column = j * tile_columns;
                                let width = tile_columns.min(columns - column);
                                let vectors = width.div_ceil(kernels.lanes);
                                for i in ii.clone() {
                                    let row = a_panels.start(i);
                                    let tile = Tile {
                                        k: depth,
                                        a: { packed_a }.at.wrapping_add(i * a_width * depth),
                                        a_row: 1,
                                        a_col: a_width as isize,
                                        b: { packed_b }.at.wrapping_add(column * depth),
                                        b_row: tile_columns as isize,
                                        c: c.from(i0 + row, j0 + column).at,
                                        c_row: c.row,
                                        columns: width,
                                        accumulate: accumulate || pp > 0,
                                    };
                                    // SAFETY: packed panels and a tile of C that this task alone writes.
                                    unsafe { kernels.packed[a_panels.size(i) - 1][vectors - 1](&tile) };
                                }
                            }
                            if let Some(finish) = finish {
                                let rows = i0 + a_panels.start(ii.start)..i0 + a_panels.start(ii.end);
                                let cols =
                                    j0 + jj.start * tile_columns..j0 + (jj.end * tile_columns).min(columns);
                                // SAFETY: the same tiles.
                                unsafe { finish_block(finish, c, rows, cols) };
                            }
                        });
                    }
                }
            }
        });
    }
}

/// Runs a tile of any width in strips as wide as the kernels.
///
/// # Safety
/// As for the kernels.
unsafe fn strips<T>(tile: Tile<T>, kernels: &[TileKernel<T>], lanes: usize) {
    let widest = kernels.len() * lanes;
    let mut column = 0;
    while column < tile.columns {
        let width = widest.min(tile.columns - column);
        let strip =
            Tile { b: tile.b.wrapping_add(column), c: tile.c.wrapping_add(column), columns: width, ..tile };
        // SAFETY: a part of the caller's tile.
        unsafe { kernels[width.div_ceil(lanes) - 1](&strip) };
        column += width;
    }
}

/// Copies `from [depth, width]` to `to [width, depth]`.
///
/// # Safety
/// Both are good for that; `transpose` has its instruction set.
unsafe fn copy_transposed<T: Copy>(
    width: usize,
    depth: usize,
    from: Source<T>,
    to: *mut T,
    transpose: Transpose<T>,
) {
    // Whole blocks only: others would write past the end of a row.
    let blocks = if from.col == 1 { depth / transpose.block * transpose.block } else { 0 };
    // SAFETY: the caller's promise.
    unsafe {
        for p in (0..blocks).step_by(transpose.block) {
            (transpose.run)(width, transpose.block, from.from(p, 0).at, from.row, to.add(p), depth);
        }
        for p in blocks..depth {
            for i in 0..width {
                *to.add(i * depth + p) = *from.from(p, i).at;
            }
        }
    }
}

/// A cut of `len` into the fewest pieces of at most a given size, as even as possible.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    len: usize,
    pub count: usize,
}

fn panels(len: usize, most: usize) -> Panels {
    Panels { len, count: len.div_ceil(most) }
}

impl Panels {
    pub fn start(self, i: usize) -> usize {
        self.len * i / self.count
    }

    pub fn size(self, i: usize) -> usize {
        self.start(i + 1) - self.start(i)
    }

    pub fn largest(self) -> usize {
        self.len.div_ceil(self.count.max(1))
    }
}

/// Part `i` of `parts` even parts of `0..len`.
fn part(len: usize, parts: usize, i: usize) -> Range<usize> {
    len * i / parts..len * (i + 1) / parts
}

/// The grid of tasks over the packed panels of a block.
struct Tasks {
    a_panels: usize,
    b_panels: usize,
    rows: usize,
    columns: usize,
}

impl Tasks {
    fn new(
        a_panels: usize,
        b_panels: usize,
        depth: usize,
        bytes: usize,
        tile_columns: usize,
        threads: usize,
    ) -> Tasks {
        let mut rows = a_panels.div_ceil((BLOCK_BYTES / (bytes * depth)).max(1));
        let mut columns = b_panels.div_ceil(TASK_COLUMNS / tile_columns);
        // Enough tasks for all threads to end together, as long as a task has a few panels each way: as many for each, or so many that one
        // more for some does not count.
        let enough =
            |tasks: usize| tasks >= 3 * threads && (tasks.is_multiple_of(threads) || tasks >= 8 * threads);
        while threads > 1 && !enough(rows * columns) {
            let (height, width) = (a_panels / rows, b_panels / columns);
            if height >= width && height >= 4 {
                rows += 1;
            } else if width >= 2 {
                columns += 1;
            } else {
                break;
            }
        }
        Tasks { a_panels, b_panels, rows, columns }
    }

    fn count(&self) -> usize {
        self.rows * self.columns
    }

    /// The panels of A and of B of a task.
    fn ranges(&self, task: usize) -> (Range<usize>, Range<usize>) {
        (
            part(self.a_panels, self.rows, task % self.rows),
            part(self.b_panels, self.columns, task / self.rows),
        )
    }
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]);

thread_local! {
    /// Memory that is not lent out, the outermost borrower's last.
    static WORKSPACES: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// The most that a thread keeps in one piece for its next product: what [`Gemm::packed`] needs at most.
const KEPT_BYTES: usize = 24 << 20;

/// Lends `len` elements of aligned memory of this thread, with any contents. Calls may be nested.
pub(crate) fn workspace<T: Real, R>(len: usize, run: impl FnOnce(*mut T) -> R) -> R {
    let mut lines = WORKSPACES.with_borrow_mut(Vec::pop).unwrap_or_default();
    let needed = (len * size_of::<T>()).div_ceil(size_of::<Line>());
    if lines.len() < needed {
        lines = vec![Line([0; 64]); needed];
    }
    let result = run(lines.as_mut_ptr().cast());
    if size_of_val(&lines[..]) <= KEPT_BYTES {
        WORKSPACES.with_borrow_mut(|kept| kept.push(lines));
    }
    result
}

#[cfg(test)]
mod tests;
