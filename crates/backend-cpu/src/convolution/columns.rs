//! Which results the lanes of vectors are, and which lanes of a panel see what.

use super::planes::Seen;
use crate::gemm::{Lanes, Run};

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

/// For each panel of two vectors side by side which of their lanes see what: the windows of `images` images of `[rows, columns]`, one after
/// the other.
pub(super) fn panels<T>(
    seen: &Seen<T>,
    images: usize,
    [rows, columns]: [usize; 2],
    lanes: usize,
) -> Vec<[Vec<Lanes>; 2]> {
    let results = rows * columns;
    // Without gaps all rows are one.
    let (columns, row) = if seen.row == columns { (results, results) } else { (columns, seen.row) };
    let all = images * results;
    let vector = |first: usize| {
        let (mut runs, mut at) = (vec![], first);
        let end = all.min(first + lanes);
        while at < end {
            let (image, y, x) = (at / results, at % results / columns, at % columns);
            let len = (columns - x).min(end - at);
            let (lane, from) = (at - first, image * seen.image + y * row + x);
            runs.push(Lanes { first: lane, end: lane + len, from: from as isize - lane as isize });
            at += len;
        }
        runs
    };
    (0..all).step_by(2 * lanes).map(|first| [vector(first), vector(first + lanes)]).collect()
}
