//! Reductions over any set of dimensions, and positions of extrema.
//!
//! Floats are summed in f64, which makes the result exact but for its last rounding in all but contrived cases. What is
//! contiguous is read along rows; where the kept dimension is the contiguous one, rows are added to a row of accumulators.
//! Long reductions are cut into segments of fixed size, whose results are combined in order: they do not depend on the number
//! of threads.

use crate::chunks::{CHUNK, GRAIN_MEMORY, Space, Stored, for_each_run, gather};
use crate::memory::{self, Scratch, SyncPtr};
use crate::parallel;
use crate::simd::simd_fn;
use orkest_core::op::{ArgReduce, Reduce};
use orkest_core::{DType, DimSet, Element, Error, Layout, Output, Result, Shape, View, with_dtype};
use std::marker::PhantomData;
use std::ops::Range;

/// Elements that are reduced together before results are combined.
const SEGMENT: usize = 32 << 10;
/// Accumulators side by side, so that additions need not wait for one another.
const LANES: usize = 32;

/// How elements come together.
trait Fold: 'static {
    type In: Element;
    type Acc: Copy + Send + Sync;
    fn start() -> Self::Acc;
    fn step(acc: Self::Acc, x: Self::In) -> Self::Acc;
    fn merge(a: Self::Acc, b: Self::Acc) -> Self::Acc;
}

struct FloatSum<T>(PhantomData<T>);
struct FloatProduct<T>(PhantomData<T>);
struct IntegerSum<T>(PhantomData<T>);
struct IntegerProduct<T>(PhantomData<T>);
struct Largest<T>(PhantomData<T>);
struct Smallest<T>(PhantomData<T>);
struct AnyTrue<T>(PhantomData<T>);
struct AllTrue<T>(PhantomData<T>);

macro_rules! folds {
    ($($name:ident: $acc:ty = $start:expr, |$a:ident, $x:ident| $step:expr, |$b:ident, $c:ident| $merge:expr;)*) => {$(
        impl<T: Element> Fold for $name<T> {
            type In = T;
            type Acc = $acc;
            #[inline(always)]
            fn start() -> $acc {
                $start
            }
            #[inline(always)]
            fn step($a: $acc, $x: T) -> $acc {
                $step
            }
            #[inline(always)]
            fn merge($b: $acc, $c: $acc) -> $acc {
                $merge
            }
        }
    )*};
}

folds! {
    FloatSum: f64 = 0.0, |a, x| a + x.to_f64(), |a, b| a + b;
    FloatProduct: f64 = 1.0, |a, x| a * x.to_f64(), |a, b| a * b;
    IntegerSum: i64 = 0, |a, x| a.wrapping_add(x.to_i64()), |a, b| a.wrapping_add(b);
    IntegerProduct: i64 = 1, |a, x| a.wrapping_mul(x.to_i64()), |a, b| a.wrapping_mul(b);
    Largest: T = least::<T>(), |a, x| if x > a || is_nan(x) { x } else { a }, |a, b| Self::step(a, b);
    Smallest: T = greatest::<T>(), |a, x| if x < a || is_nan(x) { x } else { a }, |a, b| Self::step(a, b);
    AnyTrue: bool = false, |a, x| a | (x != T::default()), |a, b| a | b;
    AllTrue: bool = true, |a, x| a & (x != T::default()), |a, b| a & b;
}

#[inline(always)]
fn is_nan<T: Element>(x: T) -> bool {
    x.partial_cmp(&x).is_none()
}

fn least<T: Element>() -> T {
    if T::DTYPE.is_float() { T::from_f64(f64::NEG_INFINITY) } else { T::DTYPE.min_value().to() }
}

fn greatest<T: Element>() -> T {
    if T::DTYPE.is_float() { T::from_f64(f64::INFINITY) } else { T::DTYPE.max_value().to() }
}

simd_fn! {
    fn fold_slice<S: Simd, F: Fold>(x: &[F::In]) -> F::Acc {
        let mut lanes = [F::start(); LANES];
        let (blocks, rest) = x.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                lanes[lane] = F::step(lanes[lane], block[lane]);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane = F::step(*lane, *x);
        }
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for lane in 0..width {
                lanes[lane] = F::merge(lanes[lane], lanes[lane + width]);
            }
        }
        lanes[0]
    }

    /// One more row for a row of accumulators.
    fn fold_row<S: Simd, F: Fold>(acc: &mut [F::Acc], x: &[F::In]) {
        for (acc, x) in acc.iter_mut().zip(x) {
            *acc = F::step(*acc, *x);
        }
    }
}

/// Which elements come together in which output.
struct Plan {
    /// Where the reductions begin: one position per output, in row-major order.
    outer: Layout,
    /// What is reduced, relative to there.
    inner: Layout,
    /// The last dimension of `outer` is the contiguous one.
    columns: bool,
}

impl Plan {
    fn new(layout: &Layout, dims: DimSet) -> Plan {
        let part = |reduced: bool, offset: usize| {
            let mut chosen: Vec<usize> =
                (0..layout.rank()).filter(|&d| dims.contains(d) == reduced).collect();
            if reduced {
                // The order of what is added is free: the smallest steps last.
                chosen.sort_by_key(|&d| std::cmp::Reverse(layout.strides()[d].unsigned_abs()));
            }
            let shape: Vec<usize> = chosen.iter().map(|&d| layout.shape()[d]).collect();
            let strides: Vec<isize> = chosen.iter().map(|&d| layout.strides()[d]).collect();
            Layout::new(Shape::new(&shape), &strides, offset).collapse()
        };
        let (outer, inner) = (part(false, layout.offset()), part(true, 0));
        let last = |l: &Layout| l.strides().last().map(|s| s.unsigned_abs());
        let columns = last(&outer) == Some(1) && last(&inner).is_some_and(|s| s != 1);
        Plan { outer, inner, columns }
    }
}

/// [`orkest_core::Op::Reduce`]
pub(crate) fn reduce(kind: Reduce, dims: DimSet, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let (x, y) = (&inputs[0], &outputs[0]);
    with_dtype!(x.dtype, T => reduce_of::<T>(kind, dims, x, y))
}

fn reduce_of<T: Stored>(kind: Reduce, dims: DimSet, x: &View<'_>, y: &Output) -> Result<()> {
    type C<T> = <T as Stored>::Compute;
    let plan = Plan::new(x.layout, dims);
    let count = plan.inner.numel() as f64;
    match (kind, y.dtype) {
        (Reduce::Any, _) => run::<T, AnyTrue<C<T>>, bool>(&plan, x, y, |any| any),
        (Reduce::All, _) => run::<T, AllTrue<C<T>>, bool>(&plan, x, y, |all| all),
        (Reduce::Max, _) => run::<T, Largest<C<T>>, T>(&plan, x, y, narrow),
        (Reduce::Min, _) => run::<T, Smallest<C<T>>, T>(&plan, x, y, narrow),
        (Reduce::Sum, DType::I64) => run::<T, IntegerSum<C<T>>, i64>(&plan, x, y, |sum| sum),
        (Reduce::Prod, DType::I64) => run::<T, IntegerProduct<C<T>>, i64>(&plan, x, y, |product| product),
        (Reduce::Sum, _) => run::<T, FloatSum<C<T>>, T>(&plan, x, y, T::from_f64),
        (Reduce::Mean, _) => run::<T, FloatSum<C<T>>, T>(&plan, x, y, |sum| T::from_f64(sum / count)),
        (Reduce::Prod, _) => run::<T, FloatProduct<C<T>>, T>(&plan, x, y, T::from_f64),
    }
}

fn narrow<T: Stored>(x: T::Compute) -> T {
    let mut narrow = [T::default()];
    T::narrow(&[x], &mut narrow);
    narrow[0]
}

fn run<T: Stored, F: Fold<In = T::Compute>, O: Element>(
    plan: &Plan,
    x: &View<'_>,
    y: &Output,
    finish: impl Fn(F::Acc) -> O + Sync,
) -> Result<()> {
    debug_assert_eq!(O::DTYPE, y.dtype);
    let base = SyncPtr::new(memory::input_ptr::<T>(x).cast_mut());
    let out = SyncPtr::new(memory::output_ptr::<O>(y));
    if plan.columns {
        columns::<T, F, O>(plan, base, out, finish)
    } else {
        rows::<T, F, O>(plan, base, out, finish)
    }
}

/// Each output by itself, one after the other.
fn rows<T: Stored, F: Fold<In = T::Compute>, O: Element>(
    plan: &Plan,
    base: SyncPtr<T>,
    out: SyncPtr<O>,
    finish: impl Fn(F::Acc) -> O + Sync,
) -> Result<()> {
    let (outputs, len) = (plan.outer.numel(), plan.inner.numel());
    let segments = len.div_ceil(SEGMENT);
    let segment = |s: usize| s * SEGMENT..((s + 1) * SEGMENT).min(len);
    if segments <= 1 || outputs >= 4 * parallel::num_threads() {
        parallel::ranges(outputs, (GRAIN_MEMORY / len).max(1), |range| {
            for_each_output(&plan.outer, range, |o, at| {
                let parts = (0..segments).map(|s| fold_strided::<T, F>(base, at, &plan.inner, segment(s)));
                // SAFETY: one task writes output `o`, which lies within the new tensor.
                unsafe { *out.at(o as isize) = finish(parts.reduce(F::merge).unwrap_or_else(F::start)) };
            });
        });
        return Ok(());
    }
    let parts = Scratch::<F::Acc>::new(outputs * segments)?;
    let part = parts.sync_ptr();
    parallel::for_each(outputs * segments, |task| {
        for_each_output(&plan.outer, task / segments..task / segments + 1, |_, at| {
            let folded = fold_strided::<T, F>(base, at, &plan.inner, segment(task % segments));
            // SAFETY: each task writes its own element.
            unsafe { *part.at(task as isize) = folded };
        });
    });
    for o in 0..outputs {
        // SAFETY: all parts have been written; output `o` lies within the new tensor.
        unsafe {
            let parts = std::slice::from_raw_parts(part.get().add(o * segments), segments);
            *out.at(o as isize) = finish(parts.iter().copied().reduce(F::merge).unwrap_or_else(F::start));
        }
    }
    Ok(())
}

/// Calls `f(output, position)`.
#[inline(always)]
fn for_each_output(outer: &Layout, range: Range<usize>, mut f: impl FnMut(usize, isize)) {
    let stride = outer.strides().last().copied().unwrap_or(0);
    for_each_run([outer], range.start, range.len(), |[at], offset, run| {
        (0..run).for_each(|i| f(range.start + offset + i, at + i as isize * stride));
    });
}

/// Elements `range` of `inner`, which begins at position `at`.
fn fold_strided<T: Stored, F: Fold<In = T::Compute>>(
    base: SyncPtr<T>,
    at: isize,
    inner: &Layout,
    range: Range<usize>,
) -> F::Acc {
    let first = base.at(at).cast_const();
    if T::DIRECT && matches!(inner.strides(), [] | [1]) {
        // SAFETY: contiguous, within the tensor; `Compute` = `T`.
        return fold_slice::<F>(unsafe {
            std::slice::from_raw_parts(first.add(range.start).cast(), range.len())
        });
    }
    let mut acc = F::start();
    let mut wide = Space::<T::Compute>::new();
    for start in range.clone().step_by(CHUNK) {
        let len = CHUNK.min(range.end - start);
        let slice = wide.slice(len);
        // SAFETY: within the tensor.
        unsafe { gather_wide::<T>(first, inner, start, slice) };
        acc = F::merge(acc, fold_slice::<F>(slice));
    }
    acc
}

/// Elements from `start` on, as they are computed with.
///
/// # Safety
/// As for [`gather`].
unsafe fn gather_wide<T: Stored>(first: *const T, layout: &Layout, start: usize, wide: &mut [T::Compute]) {
    if T::DIRECT {
        // SAFETY: the caller's promise; `Compute` = `T`.
        return unsafe { gather(first, layout, start, wide.len(), wide.as_mut_ptr().cast()) };
    }
    let mut narrow = Space::<T>::new();
    let narrow = narrow.slice(wide.len());
    // SAFETY: the caller's promise.
    unsafe { gather(first, layout, start, narrow.len(), narrow.as_mut_ptr()) };
    T::widen(narrow, wide);
}

/// Neighbouring outputs together: their elements are neighbours too.
fn columns<T: Stored, F: Fold<In = T::Compute>, O: Element>(
    plan: &Plan,
    base: SyncPtr<T>,
    out: SyncPtr<O>,
    finish: impl Fn(F::Acc) -> O + Sync,
) -> Result<()> {
    let outputs = plan.outer.numel();
    let blocks = Blocks::new(plan);
    let segments = blocks.segments;
    let parts = Scratch::<F::Acc>::new(if segments > 1 { outputs * segments } else { 1 })?;
    let part = parts.sync_ptr();
    parallel::ranges(blocks.tasks(), blocks.grain(), |tasks| {
        let mut acc = Space::<F::Acc>::new();
        for task in tasks {
            let block = blocks.block(plan, task);
            let acc = acc.slice(block.width);
            acc.fill(F::start());
            blocks.for_each_row::<T>(plan, &block, base, |_, row| fold_row::<F>(acc, row));
            for (i, acc) in acc.iter().enumerate() {
                let o = block.output + i;
                // SAFETY: each task writes its own columns of its own segment.
                unsafe {
                    if segments == 1 {
                        *out.at(o as isize) = finish(*acc);
                    } else {
                        *part.at((block.segment * outputs + o) as isize) = *acc;
                    }
                }
            }
        }
    });
    if segments > 1 {
        parallel::ranges(outputs, GRAIN_MEMORY / segments, |range| {
            for o in range {
                // SAFETY: all parts have been written; output `o` lies within the new tensor.
                unsafe {
                    let parts = (0..segments).map(|s| *part.at((s * outputs + o) as isize));
                    *out.at(o as isize) = finish(parts.reduce(F::merge).unwrap_or_else(F::start));
                }
            }
        });
    }
    Ok(())
}

/// The work of a reduction by columns, cut into blocks of columns and segments of rows.
struct Blocks {
    cols: usize,
    col_blocks: usize,
    rows: usize,
    segment_rows: usize,
    segments: usize,
    planes: usize,
}

struct Block {
    /// The first output.
    output: usize,
    /// The position of its first element.
    at: isize,
    width: usize,
    rows: Range<usize>,
    segment: usize,
}

impl Blocks {
    fn new(plan: &Plan) -> Blocks {
        let cols = plan.outer.shape()[plan.outer.rank() - 1];
        let rows = plan.inner.numel();
        let segment_rows = (SEGMENT / cols.min(CHUNK)).max(64);
        Blocks {
            cols,
            col_blocks: cols.div_ceil(CHUNK),
            rows,
            segment_rows,
            segments: rows.div_ceil(segment_rows),
            planes: plan.outer.numel() / cols,
        }
    }

    /// The same, with all rows in one segment.
    fn whole(plan: &Plan) -> Blocks {
        let blocks = Blocks::new(plan);
        Blocks { segment_rows: blocks.rows, segments: 1, ..blocks }
    }

    fn tasks(&self) -> usize {
        self.planes * self.col_blocks * self.segments
    }

    fn grain(&self) -> usize {
        (GRAIN_MEMORY / (self.cols.min(CHUNK) * self.rows.min(self.segment_rows))).max(1)
    }

    fn block(&self, plan: &Plan, task: usize) -> Block {
        let (rest, segment) = (task / self.segments, task % self.segments);
        let (plane, col) = (rest / self.col_blocks, rest % self.col_blocks * CHUNK);
        let output = plane * self.cols + col;
        let mut at = 0;
        for_each_output(&plan.outer, output..output + 1, |_, position| at = position);
        let first = segment * self.segment_rows;
        let rows = first..(first + self.segment_rows).min(self.rows);
        Block { output, at, width: CHUNK.min(self.cols - col), rows, segment }
    }

    /// Calls `f(row, elements)`.
    fn for_each_row<T: Stored>(
        &self,
        plan: &Plan,
        block: &Block,
        base: SyncPtr<T>,
        mut f: impl FnMut(usize, &[T::Compute]),
    ) {
        let mut wide = Space::<T::Compute>::new();
        for_each_output(&plan.inner, block.rows.clone(), |row, at| {
            // SAFETY: contiguous, within the tensor.
            let narrow =
                unsafe { std::slice::from_raw_parts(base.at(block.at + at).cast_const(), block.width) };
            if T::DIRECT {
                // SAFETY: `Compute` = `T`.
                return f(row, unsafe { std::slice::from_raw_parts(narrow.as_ptr().cast(), narrow.len()) });
            }
            let wide = wide.slice(block.width);
            T::widen(narrow, wide);
            f(row, wide);
        });
    }
}

// ---- positions ---------------------------------------------------------------------------------------------------------

/// [`orkest_core::Op::ArgReduce`]
pub(crate) fn arg_reduce(
    kind: ArgReduce,
    dim: usize,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let (x, y) = (&inputs[0], &outputs[0]);
    if y.dtype != DType::I64 {
        return Err(Error::Unsupported { op: "argmax".into(), dtype: y.dtype, device: "cpu".into() });
    }
    let plan = Plan::new(x.layout, DimSet::one(dim));
    let out = SyncPtr::new(memory::output_ptr::<i64>(y));
    with_dtype!(x.dtype, T => {
        let base = SyncPtr::new(memory::input_ptr::<T>(x).cast_mut());
        match kind {
            ArgReduce::Max => positions::<T, Largest<<T as Stored>::Compute>>(&plan, base, out),
            ArgReduce::Min => positions::<T, Smallest<<T as Stored>::Compute>>(&plan, base, out),
        }
    });
    Ok(())
}

/// Positions of the first element that `F`, which picks one, would pick.
fn positions<T: Stored, F: Fold<In = T::Compute, Acc = T::Compute>>(
    plan: &Plan,
    base: SyncPtr<T>,
    out: SyncPtr<i64>,
) {
    if plan.columns {
        let blocks = Blocks::whole(plan);
        return parallel::ranges(blocks.tasks(), blocks.grain(), |tasks| {
            let mut best = Space::<T::Compute>::new();
            for task in tasks {
                let block = blocks.block(plan, task);
                let best = best.slice(block.width);
                // SAFETY: each task writes its own columns, within the new tensor.
                let found =
                    unsafe { std::slice::from_raw_parts_mut(out.at(block.output as isize), block.width) };
                found.fill(0);
                blocks.for_each_row::<T>(plan, &block, base, |row, x| {
                    if row == 0 { best.copy_from_slice(x) } else { better::<F>(row, x, best, found) }
                });
            }
        });
    }
    let len = plan.inner.numel();
    parallel::ranges(plan.outer.numel(), (GRAIN_MEMORY / len).max(1), |range| {
        for_each_output(&plan.outer, range, |o, at| {
            // SAFETY: one task writes output `o`, which lies within the new tensor.
            unsafe { *out.at(o as isize) = first_best::<T, F>(base, at, &plan.inner) as i64 };
        });
    });
}

/// True if `F` would pick `x` rather than `best`: a NaN is the best there is.
#[inline(always)]
fn beats<F: Fold<Acc = <F as Fold>::In>>(x: F::In, best: F::In) -> bool {
    let picked = F::step(best, x);
    !is_nan(best) && (is_nan(x) || picked != best)
}

simd_fn! {
    fn better<S: Simd, F: Pick>(row: usize, x: &[F::In], best: &mut [F::In], found: &mut [i64]) {
        for ((x, best), found) in x.iter().zip(best).zip(found) {
            let beats = beats::<F>(*x, *best);
            *found = if beats { row as i64 } else { *found };
            *best = if beats { *x } else { *best };
        }
    }
}

/// A [`Fold`] that picks one of its elements.
trait Pick: Fold<Acc = <Self as Fold>::In> {}
impl<F: Fold<Acc = <F as Fold>::In>> Pick for F {}

fn first_best<T: Stored, F: Fold<In = T::Compute, Acc = T::Compute>>(
    base: SyncPtr<T>,
    at: isize,
    inner: &Layout,
) -> usize {
    let len = inner.numel();
    let first = base.at(at).cast_const();
    let direct = T::DIRECT && matches!(inner.strides(), [] | [1]);
    let mut space = Space::<T::Compute>::new();
    let mut best: Option<(T::Compute, usize)> = None;
    for start in (0..len).step_by(CHUNK) {
        let count = CHUNK.min(len - start);
        let x: &[T::Compute] = if direct {
            // SAFETY: contiguous, within the tensor; `Compute` = `T`.
            unsafe { std::slice::from_raw_parts(first.add(start).cast(), count) }
        } else {
            let wide = space.slice(count);
            // SAFETY: within the tensor.
            unsafe { gather_wide::<T>(first, inner, start, wide) };
            wide
        };
        let picked = fold_slice::<F>(x);
        if best.is_none_or(|(best, _)| beats::<F>(picked, best)) {
            let position = x.iter().position(|x| *x == picked || is_nan(*x) && is_nan(picked));
            best = Some((picked, start + position.unwrap_or(0)));
        }
    }
    best.map_or(0, |(_, position)| position)
}
