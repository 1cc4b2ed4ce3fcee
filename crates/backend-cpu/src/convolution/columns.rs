//! Which results the lanes of vectors are, and how they get where they belong.

use super::planes::Seen;
use crate::math::Float;
use crate::memory::SyncPtr;
use crate::simd::simd_fn;
use orkest_core::Element;

/// Vectors that cover rows of windows of an image.
pub(super) struct Columns {
    /// Where each begins, relative to what the first window sees, and its runs.
    vectors: Vec<(usize, usize)>,
    runs: Vec<Run>,
    lanes: usize,
}

/// Neighbouring results: lanes of a vector.
struct Run {
    vector: usize,
    lane: usize,
    len: usize,
    to: usize,
    /// There is room for a whole vector, and what is too much of it will be written again.
    whole: bool,
}

impl Columns {
    /// For `[rows, columns]` windows, whose results lie together.
    pub fn new<T>(seen: &Seen<T>, [rows, columns]: [usize; 2], lanes: usize) -> Columns {
        let results = rows * columns;
        // Without gaps all rows are one.
        let [rows, columns, row] =
            if seen.row == columns { [1, results, results] } else { [rows, columns, seen.row] };
        let flat = (rows - 1) * row + columns;
        let mut all = Columns { vectors: vec![], runs: vec![], lanes };
        for start in (0..flat).step_by(lanes) {
            // Nothing may be read behind the last window in place: there the last vector overlaps the one before.
            let start = if seen.slack { start } else { start.min(flat - lanes) };
            let mut at = start;
            while at < flat.min(start + lanes) {
                let (y, x) = (at / row, at % row);
                if x >= columns {
                    at += row - x;
                    continue;
                }
                let len = (columns - x).min(start + lanes - at);
                let to = y * columns + x;
                let vector = all.vectors.len();
                all.runs.push(Run { vector, lane: at - start, len, to, whole: to + lanes <= results });
                at += len;
            }
            all.vectors.push((start, all.runs.len()));
        }
        all
    }

    /// Lanes of all vectors.
    pub fn lanes(&self) -> usize {
        self.vectors.len() * self.lanes
    }

    /// Groups of at most `most` vectors: the first, how many, and where they begin.
    pub fn groups(&self, most: usize) -> impl Iterator<Item = (usize, &[(usize, usize)])> {
        self.vectors.chunks(most).enumerate().map(move |(i, vectors)| (i * most, vectors))
    }

    /// Writes the results of `count` vectors from the one of number `first` on: `tile` has a row of them for each of some channels, whose
    /// results begin `channel` apart from `to` on.
    ///
    /// # Safety
    /// The results of these channels are valid for the call and written by nobody else.
    pub unsafe fn put<T: Float>(
        &self,
        first: usize,
        count: usize,
        tile: &[T],
        rows: usize,
        bias: Option<&[T]>,
        to: *mut T,
        channel: usize,
    ) {
        let begin = if first == 0 { 0 } else { self.vectors[first - 1].1 };
        let runs = &self.runs[begin..self.vectors[first + count - 1].1];
        put_runs(tile, count * self.lanes, rows, first, self.lanes, runs, bias, to, channel);
    }
}

/// Neighbouring windows and where they go in a panel.
pub(super) struct Piece {
    pub from: usize,
    pub to: usize,
    pub len: usize,
}

/// The most windows of a [`Piece`].
pub(super) const PIECE: usize = 16;

/// The windows of `images` images of `[rows, columns]`, in pieces, `wide` of them to a panel.
pub(super) fn pieces<T>(
    seen: &Seen<T>,
    images: usize,
    [rows, columns]: [usize; 2],
    wide: usize,
) -> Vec<Vec<Piece>> {
    let results = rows * columns;
    let [rows, columns, row] =
        if seen.row == columns { [1, results, results] } else { [rows, columns, seen.row] };
    let all = images * results;
    let panel = |first: usize| {
        let (mut pieces, mut at) = (vec![], first);
        let end = all.min(first + wide);
        while at < end {
            let (image, y, x) = (at / results, at % results / columns, at % columns);
            debug_assert!(y < rows);
            let len = (columns - x).min(end - at).min(PIECE);
            pieces.push(Piece { from: image * seen.image + y * row + x, to: at - first, len });
            at += len;
        }
        pieces
    };
    (0..all).step_by(wide).map(panel).collect()
}

simd_fn! {
    /// A panel: row `i` has what the windows of the pieces see at `offsets[i]`. Where there is slack behind `x`, whole pieces are copied, and what
    /// that writes too much is written again.
    fn lay_pieces<S: Simd, T: Element>(x: SyncPtr<T>, slack: bool, offsets: &[usize], pieces: &[Piece], wide: usize, to: &mut [T]) {
        assert!(offsets.len() * wide + PIECE <= to.len());
        for (i, offset) in offsets.iter().enumerate() {
            for piece in pieces {
                // SAFETY: the windows see these elements, and the panel has room for one more piece.
                unsafe {
                    let from = x.at((offset + piece.from) as isize).cast_const();
                    let to = to.as_mut_ptr().add(i * wide + piece.to);
                    if slack || piece.len == PIECE {
                        let whole = from.cast::<[T; PIECE]>().read_unaligned();
                        to.cast::<[T; PIECE]>().write_unaligned(whole);
                    } else {
                        from.copy_to_nonoverlapping(to, piece.len);
                    }
                }
            }
        }
    }
}

/// [`lay_pieces`]
///
/// # Safety
/// The windows see elements at these offsets.
pub(super) unsafe fn lay_panel<T: Element>(
    seen: &Seen<T>,
    offsets: &[usize],
    pieces: &[Piece],
    wide: usize,
    to: &mut [T],
) {
    lay_pieces(SyncPtr::new(seen.x.cast_mut()), seen.slack, offsets, pieces, wide, to);
}

simd_fn! {
    /// [`Columns::put`], which alone calls it, asks for what makes it sound.
    fn put_runs<S: Simd, T: Float>(
        tile: &[T], width: usize, rows: usize, first: usize, lanes: usize, runs: &[Run], bias: Option<&[T]>, to: *mut T, channel: usize,
    ) {
        // SAFETY: the promise of `put`.
        unsafe {
            match lanes {
                16 => put_some::<T, 16>(tile, width, rows, first, runs, bias, to, channel),
                8 => put_some::<T, 8>(tile, width, rows, first, runs, bias, to, channel),
                4 => put_some::<T, 4>(tile, width, rows, first, runs, bias, to, channel),
                _ => put_some::<T, 2>(tile, width, rows, first, runs, bias, to, channel),
            }
        }
    }
}

/// # Safety
/// As [`Columns::put`].
#[inline(always)]
unsafe fn put_some<T: Float, const LANES: usize>(
    tile: &[T],
    width: usize,
    rows: usize,
    first: usize,
    runs: &[Run],
    bias: Option<&[T]>,
    to: *mut T,
    channel: usize,
) {
    // A run may begin at any lane; a vector from there on ends `LANES - 1` elements behind the tile at most.
    assert!(rows * width + LANES <= tile.len());
    for r in 0..rows {
        let bias = bias.map_or(T::ZERO, |bias| bias[r]);
        for run in runs {
            debug_assert!((run.vector - first) * LANES + run.lane < width);
            // SAFETY: within the tile, and the caller's promise: `whole` says that a vector fits.
            unsafe {
                let from = tile.as_ptr().add(r * width + (run.vector - first) * LANES + run.lane);
                let to = to.add(r * channel + run.to);
                if run.whole {
                    let mut values = from.cast::<[T; LANES]>().read_unaligned();
                    values.iter_mut().for_each(|value| *value = *value + bias);
                    to.cast::<[T; LANES]>().write_unaligned(values);
                } else {
                    for i in 0..run.len {
                        *to.add(i) = *from.add(i) + bias;
                    }
                }
            }
        }
    }
}
