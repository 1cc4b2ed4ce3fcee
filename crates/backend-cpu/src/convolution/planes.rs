//! Planes as windows see them: with zeros around them, and such that neighbouring windows see neighbouring elements.
//!
//! With a stride of `s`, rows and columns of one remainder modulo `s` lie together, which makes every convolution one with a stride of 1.
//! Rows share the zeros between them, so all windows of a plane can be computed as one long row; what comes out between two rows is dropped.

use crate::chunks::GRAIN_MEMORY;
use crate::gemm::{Real, Tiles, workspace};
use crate::memory::{Scratch, SyncPtr};
use crate::simd::simd_fn;
use crate::{copy, memory, parallel};
use orkest_core::{Element, Layout, Result, View};
use std::ops::Range;

/// Elements that a copy may write too much, all of which are written again.
const CHUNK: usize = 16;
/// Elements behind a plane that may be read.
const SLACK: usize = 64;

/// Planes whose rows have neighbouring elements: where they lie, or a copy.
pub(super) struct Lines<T> {
    start: SyncPtr<T>,
    /// From one image, plane, row to the next.
    strides: [usize; 3],
    _copy: Option<Scratch<T>>,
}

impl<T: Real + Element> Lines<T> {
    pub fn new(x: &View<'_>) -> Result<Lines<T>> {
        let mut start = memory::input_ptr::<T>(x).wrapping_add(x.layout.offset()).cast_mut();
        let mut strides: [isize; 4] = std::array::from_fn(|d| x.layout.strides()[d]);
        let mut copied = None;
        if (strides[3] != 1 && x.layout.shape()[3] > 1) || strides.iter().any(|&stride| stride < 0) {
            let copy = Scratch::<T>::new(x.layout.numel())?;
            let layout = Layout::contiguous(*x.layout.shape());
            // SAFETY: the scratch is as large as the layout, which lies within the buffer.
            unsafe { copy::copy_raw(memory::input_ptr::<T>(x), x.layout, copy.as_ptr(), &layout) };
            start = copy.as_ptr();
            strides = std::array::from_fn(|d| layout.strides()[d]);
            copied = Some(copy);
        }
        let strides = [0, 1, 2].map(|d| strides[d] as usize);
        Ok(Lines { start: SyncPtr::new(start), strides, _copy: copied })
    }

    /// Where a plane begins.
    pub fn plane(&self, image: usize, channel: usize) -> *const T {
        self.start.at((image * self.strides[0] + channel * self.strides[1]) as isize)
    }

    /// From one row to the next.
    pub fn row(&self) -> usize {
        self.strides[2]
    }
}

/// Planes, and which part of them is seen how.
pub(super) struct Planes<T> {
    lines: Lines<T>,
    pub images: usize,
    channels: usize,
    size: [usize; 2],
    /// Where the first window begins.
    first: [isize; 2],
    step: [usize; 2],
    /// The remainders modulo `step` that are seen, ascending.
    remainders: [Vec<usize>; 2],
    /// Windows, and how much further the last of them sees.
    pub windows: [usize; 2],
    reach: [usize; 2],
}

/// What rows of windows of some images see.
#[derive(Clone, Copy)]
pub(super) struct Seen<T> {
    pub x: *const T,
    /// From one image to the next, from one row of windows to the next.
    pub image: usize,
    pub row: usize,
    plane: usize,
    /// May more be read than what is seen?
    pub slack: bool,
}

// SAFETY: an address and numbers; who reads what is seen promises that it is there.
unsafe impl<T> Sync for Seen<T> {}

impl<T: Real + Element> Planes<T> {
    /// `taps` are the distances that points of a window have from its beginning, for each axis.
    pub fn new(
        x: &View<'_>,
        first: [isize; 2],
        step: [usize; 2],
        taps: [&[usize]; 2],
        windows: [usize; 2],
    ) -> Result<Planes<T>> {
        let [images, channels, height, width] = **x.layout.shape() else { unreachable!("[n, c, h, w]") };
        let lines = Lines::new(x)?;
        let reach = [0, 1].map(|d| taps[d].iter().map(|tap| tap / step[d]).max().unwrap_or(0));
        let remainders = [0, 1].map(|d| {
            let mut all: Vec<usize> = taps[d].iter().map(|tap| tap % step[d]).collect();
            all.sort_unstable();
            all.dedup();
            all
        });
        Ok(Planes { lines, images, channels, size: [height, width], first, step, remainders, windows, reach })
    }

    /// From one row of windows to the next.
    fn row(&self) -> usize {
        let needed = self.windows[1] + self.reach[1];
        if self.step[1] > 1 {
            return needed;
        }
        let (left, data) = self.columns();
        (data + left.max(needed - left - data)).max(self.windows[1])
    }

    /// Zeros before a row, and how much of it is seen; where columns are not sorted.
    fn columns(&self) -> (usize, usize) {
        let needed = (self.windows[1] - 1) * self.step[1] + self.reach[1] * self.step[1] + self.step[1];
        let left = (-self.first[1]).max(0) as usize;
        let begin = self.first[1].max(0) as usize;
        let left = left.min(needed);
        (left, self.size[1].saturating_sub(begin).min(needed - left))
    }

    /// Elements of a plane of which `rows` rows of windows are seen. An odd number of cache lines, so that planes do not meet in the
    /// same places of a cache.
    fn plane(&self, rows: usize) -> usize {
        let left = if self.step[1] > 1 { 0 } else { self.columns().0 };
        let len = left + (rows + self.reach[0]) * self.row() + self.reach[1];
        (len.div_ceil(CHUNK) | 1) * CHUNK
    }

    /// Elements that `rows` rows of windows take where they are computed as one, with what lies between them.
    pub fn flat(&self, rows: usize) -> usize {
        let row = if self.in_place(rows) { self.lines.strides[2] } else { self.row() };
        (rows - 1) * row + self.windows[1]
    }

    /// Planes are read where they lie.
    fn in_place(&self, rows: usize) -> bool {
        let inside = |d: usize| {
            self.first[d] == 0 && self.windows[d] + self.reach[d] <= self.size[d] && self.step[d] == 1
        };
        // Planes a power of two apart would meet in the same places of a cache.
        let aligned = (self.lines.strides[1] * size_of::<T>()).is_multiple_of(2048) && self.channels > 8;
        let windows = (rows - 1) * self.lines.strides[2] + self.windows[1];
        inside(0) && inside(1) && !aligned && windows >= CHUNK && self.lines.strides[2] >= self.windows[1]
    }

    fn sorted(&self) -> usize {
        self.remainders[0].len() * self.remainders[1].len()
    }

    /// Room for [`Planes::see`] of so many images, channels and rows of windows.
    pub fn room(&self, images: usize, channels: usize, rows: usize) -> usize {
        if self.in_place(rows) {
            return 0;
        }
        images * channels * self.sorted() * self.plane(rows) + SLACK
    }

    /// Shows a part, in `room` if it cannot be seen where it lies. Threads share the work if there is enough and they have nothing else to
    /// do.
    ///
    /// # Safety
    /// `room` has as many elements as [`Planes::room`] says.
    pub unsafe fn see(
        &self,
        images: Range<usize>,
        channels: Range<usize>,
        rows: Range<usize>,
        room: *mut T,
    ) -> Seen<T> {
        let [image, channel, row] = self.lines.strides;
        if self.in_place(rows.len()) {
            let first = images.start * image + channels.start * channel + rows.start * row;
            return Seen { x: self.lines.start.at(first as isize), image, row, plane: channel, slack: false };
        }
        let (plane, sorted) = (self.plane(rows.len()), self.sorted());
        let count = channels.len();
        let to = SyncPtr::new(room);
        let stage = if self.step[1] == 2 { 2 * plane + self.columns().0 } else { 0 };
        parallel::ranges(images.len() * count, GRAIN_MEMORY.div_ceil(sorted * plane), |range| {
            workspace(stage, |stage_at: *mut T| {
                for i in range.clone() {
                    let from = self.lines.plane(images.start + i / count, channels.start + i % count);
                    // SAFETY: a plane of the input, this plane's part of the room, and the workspace; all bits are numbers.
                    unsafe {
                        let to = to.at((i * sorted * plane) as isize);
                        let to = std::slice::from_raw_parts_mut(to, sorted * plane);
                        let stage = std::slice::from_raw_parts_mut(stage_at, stage);
                        for (r, to) in to.chunks_exact_mut(self.remainders[1].len() * plane).enumerate() {
                            self.lay_plane(from, self.remainders[0][r], rows.clone(), to, plane, stage);
                        }
                    }
                }
            });
        });
        Seen { x: room, image: count * sorted * plane, row: self.row(), plane, slack: true }
    }

    /// Rows of one remainder, and of them the columns of each remainder.
    ///
    /// # Safety
    /// `from` is a plane of the input.
    unsafe fn lay_plane(
        &self,
        from: *const T,
        remainder: usize,
        rows: Range<usize>,
        to: &mut [T],
        plane: usize,
        stage: &mut [T],
    ) {
        // Of all rows that are seen, those inside the plane.
        let seen = rows.len() + self.reach[0];
        let y = |i: usize| self.first[0] + (remainder + (rows.start + i) * self.step[0]) as isize;
        let reaches = |row: usize| {
            let rest = row as isize - self.first[0] - remainder as isize;
            (rest.max(0) as usize).div_ceil(self.step[0]).saturating_sub(rows.start).min(seen)
        };
        let (above, end) = (reaches(0), reaches(self.size[0]));
        let count = end - above;
        let (left, data) = self.columns();
        let begin = self.first[1].max(0) as usize;
        let from_row = self.lines.strides[2] * self.step[0];
        let row = self.row();
        let rows_of = |count: usize| {
            let start = from.wrapping_add(if count == 0 {
                0
            } else {
                y(above) as usize * self.lines.strides[2] + begin
            });
            let len = if count == 0 || data == 0 { 0 } else { (count - 1) * from_row + data };
            // SAFETY: rows of the plane, from the first to the last that is seen.
            unsafe { std::slice::from_raw_parts(start, len) }
        };
        let count = if data == 0 { 0 } else { count };
        match self.step[1] {
            1 => {
                let (before, to) = to.split_at_mut(left + above * row);
                before.fill(T::default());
                lay(rows_of(count), from_row, count, data, to, row);
                to[count * row..].fill(T::default());
            }
            2 => {
                let (before, rest) = stage[..2 * plane + left].split_at_mut(left + above * 2 * row);
                before.fill(T::default());
                lay(rows_of(count), from_row, count, data, rest, 2 * row);
                rest[count * 2 * row..].fill(T::default());
                match *self.remainders[1] {
                    [0, 1] => {
                        let (even, odd) = to.split_at_mut(plane);
                        sort_pairs(stage, even, odd);
                    }
                    [remainder] => every_second(&stage[remainder..], to),
                    _ => unreachable!("two remainders at most"),
                }
            }
            step => {
                to.fill(T::default());
                let all = rows_of(count);
                for i in 0..count {
                    let from = &all[i * from_row..][..data];
                    for (to, &remainder) in to.chunks_exact_mut(plane).zip(&self.remainders[1]) {
                        let to = &mut to[(above + i) * row..][..row];
                        // Column `j` of these is column `j * step + remainder - left` of what is seen.
                        let skipped = left.saturating_sub(remainder).div_ceil(step);
                        let columns = (skipped * step + remainder).checked_sub(left);
                        let (Some(to), Some(columns)) = (to.get_mut(skipped..), columns) else { continue };
                        for (to, from) in to.iter_mut().zip(from.iter().skip(columns).step_by(step)) {
                            *to = *from;
                        }
                    }
                }
            }
        }
    }

    /// Copies places such that their channels lie together, `[images, height, width, channels]`, from row `first` of what is seen on; those
    /// rows (counted from there) for which `seen` says so.
    pub fn see_together(
        &self,
        images: Range<usize>,
        channels: Range<usize>,
        first: usize,
        [height, width]: [usize; 2],
        seen: impl Fn(usize) -> bool,
        tiles: &Tiles<T>,
        to: &mut [T],
    ) {
        let [image, channel, row] = self.lines.strides;
        let count = channels.len();
        let left = ((-self.first[1]).max(0) as usize).min(width);
        let data = self.size[1].min(width - left);
        for (i, n) in images.enumerate() {
            for r in (0..height).filter(|&r| seen(r)) {
                let to = &mut to[(i * height + r) * width * count..];
                let y = self.first[0] + (first + r) as isize;
                if y < 0 || y >= self.size[0] as isize {
                    to[..width * count].fill(T::default());
                    continue;
                }
                let at = n * image + channels.start * channel + y as usize * row;
                to[..left * count].fill(T::default());
                // SAFETY: a row of each channel, and room for one and what is written behind it.
                unsafe {
                    let to = to[left * count..].as_mut_ptr();
                    tiles.transpose(data, count, self.lines.start.at(at as isize), channel, to);
                }
                to[(left + data) * count..width * count].fill(T::default());
            }
        }
    }

    /// Where the first window sees, of the first channel, what lies `tap` from its beginning.
    pub fn offset(&self, seen: &Seen<T>, tap: [usize; 2]) -> usize {
        let place = |d: usize| {
            self.remainders[d].iter().position(|&r| r == tap[d] % self.step[d]).unwrap_or_default()
        };
        let sorted = place(0) * self.remainders[1].len() + place(1);
        sorted * seen.plane + tap[0] / self.step[0] * seen.row + tap[1] / self.step[1]
    }

    /// The same from another image, channel and row of windows on.
    pub fn from(&self, seen: &Seen<T>, image: usize, channel: usize, row: usize) -> Seen<T> {
        let first = image * seen.image + channel * self.channel(seen) + row * seen.row;
        Seen { x: seen.x.wrapping_add(first), ..*seen }
    }

    /// From what is seen of one channel to the next.
    pub fn channel(&self, seen: &Seen<T>) -> usize {
        self.sorted() * seen.plane
    }
}

simd_fn! {
    /// Copies rows of `len` elements that lie `from_row` apart to rows that lie `row` apart, with zeros between them, in pieces of a fixed
    /// size: what a piece writes too much is written again.
    pub(super) fn lay<S: Simd, T: Element>(from: &[T], from_row: usize, rows: usize, len: usize, to: &mut [T], row: usize) {
        let (zeros, whole, gap) = ([T::default(); CHUNK], len.next_multiple_of(CHUNK), row - len);
        // Rows for which pieces end inside both.
        let (read, written) = (whole, whole.max(len + CHUNK));
        let easy = match (from.len().checked_sub(read), to.len().checked_sub(written)) {
            (Some(from), Some(to)) if gap <= CHUNK => (from / from_row.max(1) + 1).min(to / row + 1).min(rows),
            _ => 0,
        };
        for i in 0..easy {
            // SAFETY: row `i` is one of those.
            unsafe {
                let (from, to) = (from.as_ptr().add(i * from_row), to.as_mut_ptr().add(i * row));
                let mut x = 0;
                while x < len {
                    let piece = from.add(x).cast::<[T; CHUNK]>().read_unaligned();
                    to.add(x).cast::<[T; CHUNK]>().write_unaligned(piece);
                    x += CHUNK;
                }
                to.add(len).cast::<[T; CHUNK]>().write_unaligned(zeros);
            }
        }
        for i in easy..rows {
            let (from, to) = (&from[i * from_row..][..len], &mut to[i * row..][..row]);
            to[..len].copy_from_slice(from);
            to[len..].fill(T::default());
        }
    }

    fn sort_pairs<S: Simd, T: Element>(from: &[T], even: &mut [T], odd: &mut [T]) {
        for ((pair, even), odd) in from.as_chunks::<2>().0.iter().zip(even).zip(odd) {
            [*even, *odd] = *pair;
        }
    }

    fn every_second<S: Simd, T: Element>(from: &[T], to: &mut [T]) {
        for (pair, to) in from.as_chunks::<2>().0.iter().zip(to) {
            *to = pair[0];
        }
    }
}
