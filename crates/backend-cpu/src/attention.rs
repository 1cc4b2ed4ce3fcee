//! Attention: a block of queries at a time, against all keys, so that scores stay in the cache and are never stored.
//!
//! Blocks and groups of blocks depend on the shapes alone, and every sum over blocks has one owner: results do not depend on the number
//! of threads.

use crate::chunks;
use crate::gemm::{Gemm, Real, Source, Target};
use crate::indexing::position;
use crate::math::Float;
use crate::memory::{self, Scratch, SyncPtr};
use crate::parallel;
use crate::rows::{Dense, RowsMut, add_into, map_and_sum, max_lanes, sum_lanes};
use crate::simd::simd_fn;
use orkest_core::{DType, Layout, Output, Result, View};
use std::ops::Range;

/// Scores of a block of queries: 1 MiB of f32, half of it in the backward pass, which has two such blocks.
const SCORES: usize = 256 << 10;
const FEWEST_ROWS: usize = 16;
const MOST_ROWS: usize = 256;
/// Pieces of work to aim at where there are few heads.
const PIECES: usize = 64;
/// What a score costs besides its products, in multiplications: its exponential, its mask, and what small products take longer (measured:
/// 6 ns with 32 multiplications per score).
const SCORE: usize = 512;

pub(crate) fn supports_attention(inputs: &[View<'_>]) -> bool {
    let dtype = inputs[0].dtype;
    // The mask may be bool.
    let same = inputs.iter().enumerate().all(|(i, v)| v.dtype == dtype || (i == 3 && v.dtype == DType::Bool));
    matches!(dtype, DType::F32 | DType::F64) && same
}

pub(crate) fn attention(
    scale: f64,
    causal: bool,
    mask: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F32 => forward::<f32>(scale, causal, mask, inputs, outputs),
        _ => forward::<f64>(scale, causal, mask, inputs, outputs),
    }
}

pub(crate) fn attention_grad(
    scale: f64,
    causal: bool,
    mask: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F32 => backward::<f32>(scale, causal, mask, inputs, outputs),
        _ => backward::<f64>(scale, causal, mask, inputs, outputs),
    }
}

/// `[b, h, rows, columns]`, one matrix per head.
struct Heads<T> {
    start: SyncPtr<T>,
    heads: Layout,
    row: isize,
    col: isize,
}

impl<T> Heads<T> {
    fn new(view: &View<'_>) -> Heads<T> {
        let (shape, strides) = (view.layout.shape(), view.layout.strides());
        Heads {
            start: SyncPtr::new(memory::input_ptr::<T>(view).cast_mut()),
            heads: Layout::new((&shape[..2]).into(), &strides[..2], view.layout.offset()),
            row: strides[2],
            col: strides[3],
        }
    }

    /// The matrix of a head from `row` on.
    fn matrix(&self, head: usize, row: usize) -> Source<T> {
        let at = position(&self.heads, head) + row as isize * self.row;
        Source { at: self.start.at(at), row: self.row, col: self.col }
    }
}

enum Mask<T> {
    None,
    /// True takes part.
    Bool(Heads<bool>),
    /// Added.
    Float(Heads<T>),
}

/// What forward and backward share: the scores of a block of queries.
struct Scores<T> {
    q: Heads<T>,
    k: Heads<T>,
    mask: Mask<T>,
    scale: T,
    causal: bool,
    /// Queries, keys, and the size of both.
    t: usize,
    s: usize,
    d: usize,
}

impl<T: Real + Float> Scores<T> {
    fn new(scale: f64, causal: bool, mask: bool, inputs: &[View<'_>]) -> Scores<T> {
        let (q, k) = (&inputs[0], &inputs[1]);
        let mask = match mask {
            false => Mask::None,
            true if inputs[3].dtype == DType::Bool => Mask::Bool(broadcast(&inputs[3], q, k)),
            true => Mask::Float(broadcast(&inputs[3], q, k)),
        };
        Scores {
            q: Heads::new(q),
            k: Heads::new(k),
            mask,
            scale: T::from_f64(scale),
            causal,
            t: q.layout.shape()[2],
            s: k.layout.shape()[2],
            d: q.layout.shape()[3],
        }
    }

    /// Queries of a block, in blocks of at most `scores` elements.
    fn block_rows(&self, scores: usize, heads: usize) -> usize {
        let rows = (scores / self.s).clamp(FEWEST_ROWS, MOST_ROWS);
        // With few heads, smaller blocks: something for every thread.
        rows.min(self.t.div_ceil(PIECES.div_ceil(heads)).next_multiple_of(FEWEST_ROWS))
    }

    /// Keys that some query below `end` sees.
    fn keys(&self, end: usize) -> usize {
        if self.causal { self.s.min(end) } else { self.s }
    }

    /// Writes `q kᵀ`, not scaled yet, row-major: `rows` by `keys(rows.end)`.
    ///
    /// # Safety
    /// `to` has room for it.
    unsafe fn raw(&self, head: usize, rows: &Range<usize>, to: *mut T) {
        let keys = self.keys(rows.end);
        let q = self.q.matrix(head, rows.start);
        let k = self.k.matrix(head, 0);
        let k = Source { at: k.at, row: k.col, col: k.row };
        // SAFETY: the matrices of a head, and the caller's promise.
        unsafe {
            product(rows.len(), keys, self.d, q, k, Target { at: to, row: keys as isize, col: 1 }, false);
        };
    }

    /// Masks a row of raw scores; what they are to be multiplied by yet, or `None` if the mask leaves nothing to see. `space` holds a
    /// row of the mask.
    fn finish_row(&self, head: usize, row: usize, scores: &mut [T], space: &mut Space<T>) -> Option<T> {
        let keys = scores.len();
        // Multiplied where the exponentials are taken, which saves a pass. The largest score is the largest product then.
        let later = matches!(self.mask, Mask::None) && self.scale > T::ZERO;
        match &self.mask {
            Mask::None if later => {}
            Mask::None => scale_row(scores, self.scale),
            Mask::Bool(mask) => {
                gather_row(mask.matrix(head, row), &mut space.truths[..keys]);
                scale_and_choose(scores, self.scale, &space.truths[..keys]);
            }
            Mask::Float(mask) => {
                gather_row(mask.matrix(head, row), &mut space.addends[..keys]);
                scale_and_add(scores, self.scale, &space.addends[..keys]);
            }
        }
        if self.causal && row + 1 < keys {
            scores[row + 1..].fill(-T::INFINITY);
        }
        let blind = !matches!(self.mask, Mask::None) && scores.iter().all(|&x| x == -T::INFINITY);
        (!blind).then_some(if later { self.scale } else { T::ONE })
    }
}

/// Room for a row of the mask.
struct Space<T> {
    truths: Vec<bool>,
    addends: Vec<T>,
}

impl<T: Real> Space<T> {
    fn new(scores: &Scores<T>) -> Space<T> {
        let (truths, addends) = match scores.mask {
            Mask::None => (0, 0),
            Mask::Bool(_) => (scores.s, 0),
            Mask::Float(_) => (0, scores.s),
        };
        Space { truths: vec![false; truths], addends: vec![T::default(); addends] }
    }
}

/// The mask as `[b, h, t, s]`.
fn broadcast<T>(mask: &View<'_>, q: &View<'_>, k: &View<'_>) -> Heads<T> {
    let shape = q.layout.shape().with(3, k.layout.shape()[2]);
    let layout = mask.layout.broadcast_to(&shape).unwrap_or(*mask.layout);
    Heads::new(&View { layout: &layout, ..*mask })
}

fn gather_row<T: Copy>(from: Source<T>, to: &mut [T]) {
    let layout = Layout::new(to.len().into(), &[from.col], 0);
    // SAFETY: a row of a matrix with at least as many columns as `to` is long.
    unsafe { chunks::gather(from.at, &layout, 0, to.len(), to.as_mut_ptr()) };
}

/// # Safety
/// As [`Gemm::run`].
unsafe fn product<T: Real>(
    m: usize,
    n: usize,
    k: usize,
    a: Source<T>,
    b: Source<T>,
    c: Target<T>,
    accumulate: bool,
) {
    // SAFETY: the caller's promise.
    unsafe { Gemm { m, n, k, a, b, c, accumulate, parallel: false, finish: None }.run() };
}

simd_fn! {
    fn scale_row<S: Simd, T: Float>(scores: &mut [T], scale: T) {
        for x in scores.iter_mut() {
            *x = *x * scale;
        }
    }

    fn scale_and_add<S: Simd, T: Float>(scores: &mut [T], scale: T, mask: &[T]) {
        for (x, &m) in scores.iter_mut().zip(mask) {
            *x = *x * scale + m;
        }
    }

    fn scale_and_choose<S: Simd, T: Float>(scores: &mut [T], scale: T, mask: &[bool]) {
        for (x, &m) in scores.iter_mut().zip(mask) {
            let scaled = *x * scale;
            *x = if m { scaled } else { -T::INFINITY };
        }
    }

    /// Replaces scores by `exp(scale (score - largest))`; gives their sum and the largest product.
    fn exponentials<S: Simd, T: Float>(scores: &mut [T], scale: T) -> (T, T) {
        let max = max_lanes(scores);
        (map_and_sum(scores, [], |x, []| ((x - max) * scale).exp::<S>()), max * scale)
    }

    /// Of some rows: replaces the sums by their reciprocals and the largest products by the logarithms of the sums of exponentials.
    fn finish_sums<S: Simd, T: Float>(sums: &mut [T], largest: &mut [T]) {
        for (sum, largest) in sums.iter_mut().zip(largest) {
            *largest = *largest + sum.ln::<S>();
            *sum = T::ONE / *sum;
        }
    }

    /// Replaces scores by probabilities.
    fn probabilities<S: Simd, T: Float>(scores: &mut [T], scale: T, lse: T) {
        for x in scores.iter_mut() {
            // Not fused: the product must be the one that `lse` was made of.
            *x = (*x * scale - lse).exp::<S>();
        }
    }

    /// The gradient of scores from that of probabilities, in place of the latter.
    fn score_gradients<S: Simd, T: Float>(p: &[T], dp: &mut [T], delta: T, scale: T) {
        for (dp, &p) in dp.iter_mut().zip(p) {
            *dp = p * (*dp - delta) * scale;
        }
    }

    fn dot<S: Simd, T: Float>(a: &[T], b: &[T]) -> T {
        sum_lanes([a, b], |sum, [a, b]| a.mul_add::<S>(b, sum))
    }
}

fn forward<T: Real + Float>(
    scale: f64,
    causal: bool,
    mask: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let scores = Scores::<T>::new(scale, causal, mask, inputs);
    let v = Heads::<T>::new(&inputs[2]);
    let (y, lse) = (RowsMut::<T>::new(&outputs[0]), RowsMut::<T>::new(&outputs[1]));
    let [b, h, t, e] = **outputs[0].layout.shape() else { unreachable!("attention gives [b, h, t, e]") };
    let rows = scores.block_rows(SCORES, b * h);
    let blocks = t.div_ceil(rows);
    let work = rows * scores.s * (scores.d + e + SCORE);
    parallel::ranges(b * h * blocks, crate::gemm::PARALLEL.div_ceil(work), |range| {
        let mut space = Space::new(&scores);
        crate::gemm::workspace(rows * scores.s, |block_scores: *mut T| {
            let mut factors = vec![T::ZERO; rows];
            for block in range {
                let (head, first) = (block / blocks, block % blocks * rows);
                let rows = first..t.min(first + rows);
                let keys = scores.keys(rows.end);
                // SAFETY: the workspace holds a block of scores.
                let block_scores = unsafe {
                    scores.raw(head, &rows, block_scores);
                    std::slice::from_raw_parts_mut(block_scores, rows.len() * keys)
                };
                // SAFETY: these rows of both outputs belong to this task.
                let lse = unsafe { lse.part(head * t + rows.start, rows.len()) };
                for (i, row_scores) in block_scores.chunks_mut(keys).enumerate() {
                    (factors[i], lse[i]) =
                        match scores.finish_row(head, rows.start + i, row_scores, &mut space) {
                            Some(scale) => exponentials(row_scores, scale),
                            None => {
                                row_scores.fill(T::ZERO);
                                (T::ONE, -T::INFINITY)
                            }
                        };
                }
                finish_sums(&mut factors[..lse.len()], lse);
                // SAFETY: as above.
                let y = unsafe { y.part((head * t + rows.start) * e, rows.len() * e) };
                let p = Source { at: block_scores.as_ptr(), row: keys as isize, col: 1 };
                let target = Target { at: y.as_mut_ptr(), row: e as isize, col: 1 };
                // SAFETY: the block's probabilities, the values of the head and the block's rows of y.
                unsafe { product(rows.len(), e, keys, p, v.matrix(head, 0), target, false) };
                for (y, factor) in y.chunks_mut(e).zip(&factors) {
                    scale_row(y, *factor);
                }
            }
        });
    });
    Ok(())
}

fn backward<T: Real + Float>(
    scale: f64,
    causal: bool,
    mask: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let scores = Scores::<T>::new(scale, causal, mask, inputs);
    let v = Heads::<T>::new(&inputs[2]);
    let [_, lse, dy] = &inputs[3 + mask as usize..] else {
        unreachable!("attention_grad ends with y, lse, grad")
    };
    let (lse, dy) = (Dense::<T>::new(lse)?, Dense::<T>::new(dy)?);
    let dq = RowsMut::<T>::new(&outputs[0]);
    let [b, h, t, d] = **outputs[0].layout.shape() else { unreachable!("q is [b, h, t, d]") };
    let (s, e) = (scores.s, outputs[2].layout.shape()[3]);
    let heads = b * h;
    let rows = scores.block_rows(SCORES / 2, heads);
    let blocks = t.div_ceil(rows);
    // The blocks of a head form groups with gradients of keys and values of their own, which are added up afterwards.
    let groups = (PIECES / 2).div_ceil(heads).min(blocks);
    let partial = if groups > 1 { Some(Scratch::<T>::new(heads * groups * s * (d + e))?) } else { None };
    let (dk, dv) = match &partial {
        Some(partial) => {
            (partial.sync_ptr(), SyncPtr::new(partial.sync_ptr().at((heads * groups * s * d) as isize)))
        }
        None => (
            SyncPtr::new(memory::output_ptr::<T>(&outputs[1])),
            SyncPtr::new(memory::output_ptr::<T>(&outputs[2])),
        ),
    };
    let work = t.div_ceil(groups) * s * 2 * (d + e + SCORE);
    parallel::ranges(heads * groups, crate::gemm::PARALLEL.div_ceil(work), |range| {
        let mut space = Space::new(&scores);
        crate::gemm::workspace(2 * rows * s, |memory: *mut T| {
            for task in range {
                let (head, group) = (task / groups, task % groups);
                let (dk, dv) = (dk.at((task * s * d) as isize), dv.at((task * s * e) as isize));
                // SAFETY: this group's gradients of keys and values, which belong to this task.
                unsafe {
                    std::slice::from_raw_parts_mut(dk, s * d).fill(T::ZERO);
                    std::slice::from_raw_parts_mut(dv, s * e).fill(T::ZERO);
                }
                let dk = Target { at: dk, row: d as isize, col: 1 };
                let dv = Target { at: dv, row: e as isize, col: 1 };
                // Every groups-th block: with a causal mask later blocks have more to do.
                for block in (group..blocks).step_by(groups) {
                    let rows = block * rows..t.min((block + 1) * rows);
                    let keys = scores.keys(rows.end);
                    let first = head * t + rows.start;
                    let dy = &dy.all()[first * e..][..rows.len() * e];
                    let lse = &lse.all()[first..][..rows.len()];
                    // SAFETY: the workspace holds two blocks of scores.
                    let (p, dp) = unsafe {
                        scores.raw(head, &rows, memory);
                        let dp = memory.add(rows.len() * keys);
                        let len = rows.len() * keys;
                        (std::slice::from_raw_parts_mut(memory, len), std::slice::from_raw_parts_mut(dp, len))
                    };
                    for (i, p) in p.chunks_mut(keys).enumerate() {
                        match scores.finish_row(head, rows.start + i, p, &mut space) {
                            Some(scale) => probabilities(p, scale, lse[i]),
                            None => p.fill(T::ZERO),
                        }
                    }
                    let dy_matrix = Source { at: dy.as_ptr(), row: e as isize, col: 1 };
                    let p_transposed = Source { at: p.as_ptr(), row: 1, col: keys as isize };
                    let ds = Target { at: dp.as_mut_ptr(), row: keys as isize, col: 1 };
                    let ds_transposed = Source { at: dp.as_ptr(), row: 1, col: keys as isize };
                    let v_matrix = v.matrix(head, 0);
                    let v_transposed = Source { at: v_matrix.at, row: v_matrix.col, col: v_matrix.row };
                    // SAFETY: matrices of this head and of this task; those written overlap nothing that is read.
                    unsafe {
                        product(keys, e, rows.len(), p_transposed, dy_matrix, dv, true);
                        product(rows.len(), keys, e, dy_matrix, v_transposed, ds, false);
                        for (p, dp) in p.chunks(keys).zip(dp.chunks_mut(keys)) {
                            // Equal to dy · y, but exact where one key has all the weight.
                            let delta = dot(p, dp);
                            score_gradients(p, dp, delta, scores.scale);
                        }
                        let dq = dq.part(first * d, rows.len() * d);
                        let dq = Target { at: dq.as_mut_ptr(), row: d as isize, col: 1 };
                        product(rows.len(), d, keys, ds.source(), scores.k.matrix(head, 0), dq, false);
                        product(
                            keys,
                            d,
                            rows.len(),
                            ds_transposed,
                            scores.q.matrix(head, rows.start),
                            dk,
                            true,
                        );
                    }
                }
            }
        });
    });
    if groups > 1 {
        add_groups(groups, s * d, dk, &outputs[1]);
        add_groups(groups, s * e, dv, &outputs[2]);
    }
    Ok(())
}

/// Adds up the groups' gradients, head by head.
fn add_groups<T: Real + Float>(groups: usize, len: usize, from: SyncPtr<T>, to: &Output) {
    let heads = to.layout.numel() / len;
    let to = RowsMut::<T>::new(to);
    parallel::ranges(heads * len, chunks::GRAIN_MEMORY, |range| {
        let mut at = range.start;
        while at < range.end {
            let (head, start) = (at / len, at % len);
            let run = (len - start).min(range.end - at);
            // SAFETY: ranges of the output are disjoint; every group has a gradient of `len` elements.
            unsafe {
                let to = to.part(at, run);
                let part = |group: usize| {
                    let first = (head * groups + group) * len + start;
                    std::slice::from_raw_parts(from.at(first as isize), run)
                };
                to.copy_from_slice(part(0));
                (1..groups).for_each(|group| add_into(part(group), to));
            }
            at += run;
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::testing::{Data, Draw, LAYS, assert_close, run};
    use orkest_core::{DType, Op};

    #[derive(Clone, Copy, PartialEq, Debug)]
    enum MaskKind {
        None,
        Bool,
        /// One row of the mask for all queries.
        SharedBool,
        Float,
        Causal,
    }

    struct Case {
        sizes: [usize; 6],
        q: Vec<f64>,
        k: Vec<f64>,
        v: Vec<f64>,
        grad: Vec<f64>,
        /// Added to the scores, `[b, h, t, s]`.
        mask: Vec<f64>,
        kind: MaskKind,
        scale: f64,
    }

    impl Case {
        fn new(draw: &mut Draw, sizes: [usize; 6], kind: MaskKind) -> Case {
            let [b, h, t, s, d, e] = sizes;
            let shared = draw.values(b * s);
            let blind = draw.below(t);
            let mut mask = vec![0.0; b * h * t * s];
            for (i, m) in mask.iter_mut().enumerate() {
                let (column, row, batch) = (i % s, i / s % t, i / (s * t * h));
                *m = match kind {
                    MaskKind::None => 0.0,
                    // One row sees nothing.
                    MaskKind::Bool if row == blind || draw.below(3) == 0 => f64::NEG_INFINITY,
                    MaskKind::SharedBool if shared[batch * s + column] < -0.5 => f64::NEG_INFINITY,
                    MaskKind::Float if draw.below(5) == 0 => f64::NEG_INFINITY,
                    MaskKind::Float => draw.value(),
                    MaskKind::Causal if column > row => f64::NEG_INFINITY,
                    _ => 0.0,
                };
            }
            let mut values = |count| draw.values(count);
            let (q, k, v) = (values(b * h * t * d), values(b * h * s * d), values(b * h * s * e));
            Case { sizes, q, k, v, grad: values(b * h * t * e), mask, kind, scale: 0.7 }
        }

        /// y, lse, dq, dk, dv from the definition.
        fn expected(&self) -> [Vec<f64>; 5] {
            let [b, h, t, s, d, e] = self.sizes;
            let mut y = vec![0.0; b * h * t * e];
            let mut lse = vec![0.0; b * h * t];
            let (mut dq, mut dk, mut dv) =
                (vec![0.0; b * h * t * d], vec![0.0; b * h * s * d], vec![0.0; b * h * s * e]);
            for head in 0..b * h {
                for i in 0..t {
                    let row = head * t + i;
                    let dot = |j: usize| -> f64 {
                        (0..d).map(|x| self.q[row * d + x] * self.k[(head * s + j) * d + x]).sum()
                    };
                    let scores: Vec<f64> =
                        (0..s).map(|j| dot(j) * self.scale + self.mask[row * s + j]).collect();
                    let sum: f64 = scores.iter().map(|x| x.exp()).sum();
                    lse[row] = sum.ln();
                    if sum == 0.0 {
                        continue;
                    }
                    let p: Vec<f64> = scores.iter().map(|x| x.exp() / sum).collect();
                    for x in 0..e {
                        y[row * e + x] = (0..s).map(|j| p[j] * self.v[(head * s + j) * e + x]).sum();
                    }
                    let dp: Vec<f64> = (0..s)
                        .map(|j| {
                            (0..e).map(|x| self.grad[row * e + x] * self.v[(head * s + j) * e + x]).sum()
                        })
                        .collect();
                    let mean: f64 = (0..s).map(|j| p[j] * dp[j]).sum();
                    for j in 0..s {
                        let ds = p[j] * (dp[j] - mean) * self.scale;
                        let key = head * s + j;
                        for x in 0..d {
                            dq[row * d + x] += ds * self.k[key * d + x];
                            dk[key * d + x] += ds * self.q[row * d + x];
                        }
                        for x in 0..e {
                            dv[key * e + x] += p[j] * self.grad[row * e + x];
                        }
                    }
                }
            }
            [y, lse, dq, dk, dv]
        }

        fn check(&self, dtype: DType, lay: crate::testing::Lay, tolerance: f64) {
            let [b, h, t, s, d, e] = self.sizes;
            let q = Data::laid(lay, dtype, &[b, h, t, d], &self.q);
            let k = Data::laid(lay, dtype, &[b, h, s, d], &self.k);
            let v = Data::laid(lay, dtype, &[b, h, s, e], &self.v);
            let grad = Data::laid(lay, dtype, &[b, h, t, e], &self.grad);
            let truths: Vec<f64> = self.mask.iter().map(|m| (*m == 0.0) as u8 as f64).collect();
            let mask = match self.kind {
                MaskKind::None | MaskKind::Causal => None,
                MaskKind::Bool => Some(Data::laid(lay, DType::Bool, &[b, h, t, s], &truths)),
                MaskKind::SharedBool => {
                    let rows: Vec<f64> =
                        (0..b).flat_map(|batch| truths[batch * h * t * s..][..s].to_vec()).collect();
                    Some(Data::laid(lay, DType::Bool, &[b, 1, 1, s], &rows))
                }
                MaskKind::Float => Some(Data::laid(lay, dtype, &[b, h, t, s], &self.mask)),
            };
            let causal = self.kind == MaskKind::Causal;
            let (scale, has_mask) = (self.scale, mask.is_some());
            let mut inputs = vec![&q, &k, &v];
            inputs.extend(mask.as_ref());
            let what = format!("{:?} {dtype} {lay:?} {:?}", self.kind, self.sizes);
            let [y, lse, dq, dk, dv] = self.expected();

            let op = Op::Attention { scale, causal, mask: has_mask };
            let out = run(&op, &inputs, &[(&[b, h, t, e], dtype), (&[b, h, t], dtype)]).unwrap();
            assert_close(&out[0].values(), &y, tolerance, &format!("y {what}"));
            assert_close(&out[1].values(), &lse, tolerance, &format!("lse {what}"));

            let y = Data::laid(lay, dtype, &[b, h, t, e], &y);
            let lse = Data::laid(lay, dtype, &[b, h, t], &lse);
            inputs.extend([&y, &lse, &grad]);
            let op = Op::AttentionGrad { scale, causal, mask: has_mask };
            let shapes: [(&[usize], DType); 3] =
                [(&[b, h, t, d], dtype), (&[b, h, s, d], dtype), (&[b, h, s, e], dtype)];
            let out = run(&op, &inputs, &shapes).unwrap();
            assert_close(&out[0].values(), &dq, tolerance, &format!("dq {what}"));
            assert_close(&out[1].values(), &dk, tolerance, &format!("dk {what}"));
            assert_close(&out[2].values(), &dv, tolerance, &format!("dv {what}"));
        }
    }

    const KINDS: [MaskKind; 5] =
        [MaskKind::None, MaskKind::Bool, MaskKind::SharedBool, MaskKind::Float, MaskKind::Causal];

    #[test]
    fn small_attention_follows_its_definition() {
        let mut draw = Draw(1);
        for kind in KINDS {
            for sizes in [[1, 1, 1, 1, 1, 1], [2, 3, 4, 5, 6, 7], [1, 2, 33, 20, 8, 3], [2, 1, 20, 33, 5, 16]]
            {
                let case = Case::new(&mut draw, sizes, kind);
                for lay in LAYS {
                    case.check(DType::F64, lay, 1e-12);
                    case.check(DType::F32, lay, 2e-5);
                }
            }
        }
    }

    #[test]
    fn attention_of_several_blocks_follows_its_definition() {
        let mut draw = Draw(2);
        for kind in KINDS {
            for sizes in [[1, 1, 150, 140, 16, 8], [2, 2, 100, 300, 8, 8], [40, 2, 33, 20, 4, 4]] {
                let case = Case::new(&mut draw, sizes, kind);
                case.check(DType::F64, LAYS[0], 1e-12);
                case.check(DType::F32, LAYS[1], 2e-5);
            }
        }
    }
}
