//! Which results the lanes of vectors are, and panels of what windows see.

use super::planes::Seen;
use crate::gemm::Run;
use crate::memory::SyncPtr;
use crate::simd::simd_fn;
use orkest_core::Element;

/// Vectors that cover rows of windows of an image.
pub(super) struct Columns {
    /// Where each begins, relative to what the first window sees, and where its runs end.
    vectors: Vec<(usize, usize)>,
    runs: Vec<Run>,
}

impl Columns {
    /// For `[rows, columns]` windows, whose results lie together.
    pub fn new<T>(seen: &Seen<T>, [rows, columns]: [usize; 2], lanes: usize) -> Columns {
        let results = rows * columns;
        // Without gaps all rows are one.
        let [rows, columns, row] =
            if seen.row == columns { [1, results, results] } else { [rows, columns, seen.row] };
        let flat = (rows - 1) * row + columns;
        let mut all = Columns { vectors: vec![], runs: vec![] };
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
                all.runs.push(Run { lane: at - start, len, to: y * columns + x });
                at += len;
            }
            all.vectors.push((start, all.runs.len()));
        }
        all
    }

    /// How many vectors there are.
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Where vector `i` begins, and its runs.
    pub fn vector(&self, i: usize) -> (usize, &[Run]) {
        let begin = if i == 0 { 0 } else { self.vectors[i - 1].1 };
        (self.vectors[i].0, &self.runs[begin..self.vectors[i].1])
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
    /// that writes too much is written again or has no meaning.
    fn lay_pieces<S: Simd, T: Element>(x: SyncPtr<T>, slack: bool, offsets: &[usize], pieces: &[Piece], wide: usize, to: &mut [T]) {
        assert!(offsets.len() * wide <= to.len());
        // Rows behind which there is room for a piece.
        let easy = if slack { (to.len().saturating_sub(PIECE) / wide).min(offsets.len()) } else { 0 };
        let (first, last) = offsets.split_at(easy);
        // SAFETY: the windows see these elements, with slack behind them where there are easy rows.
        unsafe {
            match pieces.len() {
                1 => lay_whole::<T, 1>(x, first, pieces, wide, to),
                2 => lay_whole::<T, 2>(x, first, pieces, wide, to),
                3 => lay_whole::<T, 3>(x, first, pieces, wide, to),
                4 => lay_whole::<T, 4>(x, first, pieces, wide, to),
                5 => lay_whole::<T, 5>(x, first, pieces, wide, to),
                6 => lay_whole::<T, 6>(x, first, pieces, wide, to),
                _ => lay_exactly(x, first, pieces, wide, to),
            }
            lay_exactly(x, last, pieces, wide, &mut to[easy * wide..]);
        }
    }
}

/// Whole pieces for each row, what is too much of which is written again.
///
/// # Safety
/// There are `P` pieces, elements for whole ones at all offsets, and room for a piece behind the rows.
#[inline(always)]
unsafe fn lay_whole<T: Element, const P: usize>(
    x: SyncPtr<T>,
    offsets: &[usize],
    pieces: &[Piece],
    wide: usize,
    to: &mut [T],
) {
    let (mut from, mut places) = ([0; P], [0; P]);
    for ((from, place), piece) in from.iter_mut().zip(&mut places).zip(pieces) {
        (*from, *place) = (piece.from, piece.to);
    }
    for (i, offset) in offsets.iter().enumerate() {
        for p in 0..P {
            // SAFETY: the caller's promise.
            unsafe {
                let piece = x.at((offset + from[p]) as isize).cast_const().cast::<[T; PIECE]>();
                let to = to.as_mut_ptr().add(i * wide + places[p]).cast::<[T; PIECE]>();
                to.write_unaligned(piece.read_unaligned());
            }
        }
    }
}

/// Pieces for each row, no element too much.
///
/// # Safety
/// There are elements at all offsets, and room for the rows.
#[inline(always)]
unsafe fn lay_exactly<T: Element>(
    x: SyncPtr<T>,
    offsets: &[usize],
    pieces: &[Piece],
    wide: usize,
    to: &mut [T],
) {
    for (i, offset) in offsets.iter().enumerate() {
        for piece in pieces {
            // SAFETY: the caller's promise.
            unsafe {
                let from = x.at((offset + piece.from) as isize).cast_const();
                let to = to.as_mut_ptr().add(i * wide + piece.to);
                if piece.len == PIECE {
                    to.cast::<[T; PIECE]>().write_unaligned(from.cast::<[T; PIECE]>().read_unaligned());
                } else {
                    from.copy_to_nonoverlapping(to, piece.len);
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
