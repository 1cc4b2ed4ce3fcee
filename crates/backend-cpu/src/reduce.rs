//! Reductions over any set of dimensions, and positions of extrema.
//!
//! Floats are summed in f64, which makes the result exact but for its last rounding in all but contrived cases. What is
//! contiguous is read along rows; where the kept dimension is the contiguous one, rows are added to a row of accumulators.
//! Long reductions are cut into segments of fixed size, whose results are combined in order: they do not depend on the number
//! of threads.

use crate::chunks::{CHUNK, GRAIN_MEMORY, Space, Stored, for_each_run, gather};
use crate::memory::{self, Scratch, SyncPtr};
use crate::parallel;
use crate::simd::{prefetch, simd_fn};
use orkest_core::op::{ArgReduce, Reduce};
use orkest_core::{
    DType, DimSet, Element, Error, Layout, MAX_RANK, Output, Result, Shape, View, bf16, f16, with_dtype,
};
use std::marker::PhantomData;
use std::ops::Range;

/// Elements that are reduced together before results are combined.
const SEGMENT: usize = 64 << 10;
/// Accumulators side by side, so that additions need not wait for one another.
const LANES: usize = 32;
/// Bytes that reading runs ahead of folding. The processor's own prefetcher stops at the end of each page (a sum of 64 MiB takes a
/// tenth less time with this).
const AHEAD: usize = 32 << 10;

/// Rows that a reduction by columns takes together.
const ROWS: usize = 8;

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

/// In as many lanes as fill four of the widest registers: picking the larger of two numbers takes several steps that wait for one
/// another.
#[inline(always)]
fn fold_with<F: Fold>(x: &[F::In]) -> F::Acc {
    match size_of::<F::Acc>() {
        4 => fold_lanes::<F, { 2 * LANES }>(x),
        _ => fold_lanes::<F, LANES>(x),
    }
}

#[inline(always)]
fn fold_lanes<F: Fold, const N: usize>(x: &[F::In]) -> F::Acc {
    let mut lanes = [F::start(); N];
    let (blocks, rest) = x.as_chunks::<N>();
    for block in blocks {
        for line in (0..size_of_val(block)).step_by(64) {
            prefetch(block.as_ptr().cast::<u8>().wrapping_add(AHEAD + line));
        }
        for lane in 0..N {
            lanes[lane] = F::step(lanes[lane], block[lane]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = F::step(*lane, *x);
    }
    let mut width = N;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = F::merge(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}

simd_fn! {
    fn fold_slice<S: Simd, F: Fold>(x: &[F::In]) -> F::Acc {
        fold_with::<F>(x)
    }

    /// Row after row of `width` elements.
    fn fold_each<S: Simd, F: Fold>(x: &[F::In], width: usize, out: &mut [F::Acc]) {
        for (x, out) in x.chunks_exact(width).zip(out) {
            *out = fold_with::<F>(x);
        }
    }

    /// More rows, one after another, for a row of accumulators.
    fn fold_rows<S: Simd, F: Fold>(acc: &mut [F::Acc], x: &[&[F::In]]) {
        let (eights, rest) = x.as_chunks::<ROWS>();
        for rows in eights {
            fold_together::<F, ROWS>(acc, rows);
        }
        let (pairs, rest) = rest.as_chunks::<2>();
        for rows in pairs {
            fold_together::<F, 2>(acc, rows);
        }
        for row in rest {
            fold_together::<F, 1>(acc, &[*row]);
        }
    }

    fn merge_each<S: Simd, F: Fold>(acc: &mut [F::Acc], other: &[F::Acc]) {
        for (acc, other) in acc.iter_mut().zip(other) {
            *acc = F::merge(*acc, *other);
        }
    }

    fn convert<S: Simd, A: Copy, O: Copy, C: Fn(A) -> O>(acc: &[A], out: &mut [O], finish: C) {
        for (out, acc) in out.iter_mut().zip(acc) {
            *out = finish(*acc);
        }
    }
}

/// The accumulators are read and written once for all rows.
#[inline(always)]
fn fold_together<F: Fold, const N: usize>(acc: &mut [F::Acc], x: &[&[F::In]; N]) {
    let x = x.map(|row| &row[..acc.len()]);
    for j in 0..acc.len() {
        let mut a = acc[j];
        for row in x {
            a = F::step(a, row[j]);
        }
        acc[j] = a;
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
        if dims == DimSet::all(layout.rank()) && layout.is_contiguous() {
            let outer = Layout::new(Shape::new(&[]), &[], layout.offset());
            return Plan { outer, inner: Layout::contiguous(layout.numel().into()), columns: false };
        }
        let part = |reduced: bool, offset: usize| {
            let mut all = [0; MAX_RANK];
            let mut count = 0;
            for d in (0..layout.rank()).filter(|&d| dims.contains(d) == reduced) {
                all[count] = d;
                count += 1;
            }
            let chosen = &mut all[..count];
            if reduced {
                // The order of what is added is free: the smallest steps last.
                chosen.sort_by_key(|&d| std::cmp::Reverse(layout.strides()[d].unsigned_abs()));
            }
            let mut strides = [0; MAX_RANK];
            chosen.iter().zip(&mut strides).for_each(|(&d, stride)| *stride = layout.strides()[d]);
            let shape: Shape = chosen.iter().map(|&d| layout.shape()[d]).collect();
            Layout::new(shape, &strides[..count], offset).collapse()
        };
        let (outer, inner) = (part(false, layout.offset()), part(true, 0));
        let last = |l: &Layout| l.strides().last().copied();
        let columns = last(&outer) == Some(1) && last(&inner).is_some_and(|s| s != 1);
        Plan { outer, inner, columns }
    }

    /// The reductions follow one another without gaps.
    fn lies_in_rows(&self) -> bool {
        matches!(self.inner.strides(), [] | [1])
            && match self.outer.strides() {
                [] => true,
                [step] => *step == self.inner.numel() as isize,
                _ => false,
            }
    }
}

/// The type that elements of a dtype are reduced in.
trait Widen: Stored {
    type Wide: Element;
    const DIRECT: bool = false;
    fn wide(from: &[Self], to: &mut [Self::Wide]);
}

macro_rules! widen {
    ($($t:ty => $wide:ty, $direct:literal, |$from:ident, $to:ident| $convert:expr;)*) => {$(
        impl Widen for $t {
            type Wide = $wide;
            const DIRECT: bool = $direct;
            fn wide($from: &[$t], $to: &mut [$wide]) {
                $convert
            }
        }
    )*};
}

widen! {
    bool => i64, false, |from, to| to.iter_mut().zip(from).for_each(|(to, from)| *to = *from as i64);
    u8 => i64, false, |from, to| to.iter_mut().zip(from).for_each(|(to, from)| *to = *from as i64);
    i32 => i64, false, |from, to| to.iter_mut().zip(from).for_each(|(to, from)| *to = *from as i64);
    i64 => i64, true, |from, to| to.copy_from_slice(from);
    f16 => f32, false, |from, to| Stored::widen(from, to);
    bf16 => f32, false, |from, to| Stored::widen(from, to);
    f32 => f32, true, |from, to| to.copy_from_slice(from);
    f64 => f64, true, |from, to| to.copy_from_slice(from);
}

/// What is reduced. How it is stored is behind a function pointer, as in [`crate::chunks::Source`].
struct Input<C> {
    base: SyncPtr<u8>,
    element: usize,
    /// Stored as `C`.
    direct: bool,
    load: unsafe fn(*const u8, &Layout, usize, &mut [C]),
}

impl<C: Element> Input<C> {
    fn new<T: Widen<Wide = C>>(x: &View<'_>) -> Input<C> {
        let base = SyncPtr::new(memory::input_ptr::<u8>(x).cast_mut());
        Input { base, element: size_of::<T>(), direct: <T as Widen>::DIRECT, load: load::<T> }
    }

    /// The address of the element at a position.
    fn at(&self, position: isize) -> *const u8 {
        self.base.at(position * self.element as isize)
    }

    /// Elements `start..start + len` of `layout`, which begins at position `at`: where they lie, or in `space`.
    ///
    /// # Safety
    /// They are within the tensor; `len` is at most [`CHUNK`] unless they are direct and contiguous.
    #[inline(always)]
    unsafe fn get<'a>(
        &self,
        at: isize,
        layout: &Layout,
        start: usize,
        len: usize,
        space: &'a mut Space<C>,
    ) -> &'a [C] {
        if self.direct && matches!(layout.strides(), [] | [1]) {
            // SAFETY: the caller's promise; nobody writes the input meanwhile.
            return unsafe { std::slice::from_raw_parts(self.at(at).cast::<C>().add(start), len) };
        }
        let space = space.slice(len);
        // SAFETY: the caller's promise.
        unsafe { (self.load)(self.at(at), layout, start, space) };
        space
    }
}

/// # Safety
/// As for [`gather`].
unsafe fn load<T: Widen>(first: *const u8, layout: &Layout, start: usize, wide: &mut [T::Wide]) {
    let first = first.cast::<T>();
    if <T as Widen>::DIRECT {
        // SAFETY: the caller's promise; `Wide` = `T`.
        return unsafe { gather(first, layout, start, wide.len(), wide.as_mut_ptr().cast()) };
    }
    let mut narrow = Space::<T>::new();
    let narrow = narrow.slice(wide.len());
    // SAFETY: the caller's promise.
    unsafe { gather(first, layout, start, narrow.len(), narrow.as_mut_ptr()) };
    T::wide(narrow, wide);
}

/// [`orkest_core::Op::Reduce`]
pub(crate) fn reduce(kind: Reduce, dims: DimSet, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let plan = Plan::new(inputs[0].layout, dims);
    with_dtype!(inputs[0].dtype, T => reduce_of::<T>(kind, &plan, &inputs[0], &outputs[0]))
}

fn reduce_of<T: Widen>(kind: Reduce, plan: &Plan, x: &View<'_>, y: &Output) -> Result<()> {
    let x = &Input::new::<T>(x);
    let count = plan.inner.numel() as f64;
    let narrow =
        |x: T::Wide| if T::DTYPE.is_float() { T::from_f64(x.to_f64()) } else { T::from_i64(x.to_i64()) };
    match (kind, y.dtype) {
        (Reduce::Any, _) => run::<AnyTrue<T::Wide>>(plan, x, &writer(y, |any| any)),
        (Reduce::All, _) => run::<AllTrue<T::Wide>>(plan, x, &writer(y, |all| all)),
        (Reduce::Max, _) => run::<Largest<T::Wide>>(plan, x, &writer(y, narrow)),
        (Reduce::Min, _) => run::<Smallest<T::Wide>>(plan, x, &writer(y, narrow)),
        (Reduce::Sum, DType::I64) => run::<IntegerSum<T::Wide>>(plan, x, &writer(y, |sum| sum)),
        (Reduce::Prod, DType::I64) => run::<IntegerProduct<T::Wide>>(plan, x, &writer(y, |product| product)),
        (Reduce::Sum, _) => run::<FloatSum<T::Wide>>(plan, x, &writer(y, T::from_f64)),
        (Reduce::Mean, _) => run::<FloatSum<T::Wide>>(plan, x, &writer(y, |sum| T::from_f64(sum / count))),
        (Reduce::Prod, _) => run::<FloatProduct<T::Wide>>(plan, x, &writer(y, T::from_f64)),
    }
}

/// A function that writes the results from `o` on, converted by `finish`.
fn writer<A: Copy, O: Element>(
    y: &Output,
    finish: impl Fn(A) -> O + Sync + Copy,
) -> impl Fn(usize, &[A]) + Sync {
    debug_assert_eq!(O::DTYPE, y.dtype);
    let out = SyncPtr::new(memory::output_ptr::<O>(y));
    move |o, acc| {
        // SAFETY: each output is written by one task and lies within the new tensor.
        let out = unsafe { std::slice::from_raw_parts_mut(out.at(o as isize), acc.len()) };
        convert(acc, out, finish);
    }
}

type Write<'a, A> = &'a (dyn Fn(usize, &[A]) + Sync);

fn run<F: Fold>(plan: &Plan, x: &Input<F::In>, write: Write<'_, F::Acc>) -> Result<()> {
    if plan.columns { columns::<F>(plan, x, write) } else { rows::<F>(plan, x, write) }
}

/// Each output by itself, one after the other.
fn rows<F: Fold>(plan: &Plan, x: &Input<F::In>, write: Write<'_, F::Acc>) -> Result<()> {
    let (outputs, len) = (plan.outer.numel(), plan.inner.numel());
    let segments = len.div_ceil(SEGMENT);
    let segment = |s: usize| s * SEGMENT..((s + 1) * SEGMENT).min(len);
    if len <= CHUNK && x.direct && plan.lies_in_rows() {
        // SAFETY: the elements of a row-major tensor, which nobody writes meanwhile.
        let all = unsafe {
            std::slice::from_raw_parts(x.at(plan.outer.offset() as isize).cast::<F::In>(), outputs * len)
        };
        parallel::ranges(outputs, (GRAIN_MEMORY / len).max(1), |range| {
            let mut acc = Space::<F::Acc>::new();
            for start in range.clone().step_by(CHUNK) {
                let acc = acc.slice(CHUNK.min(range.end - start));
                fold_each::<F>(&all[start * len..(start + acc.len()) * len], len, acc);
                write(start, acc);
            }
        });
        return Ok(());
    }
    if segments <= 1 || outputs >= 4 * parallel::num_threads() {
        parallel::ranges(outputs, (GRAIN_MEMORY / len).max(1), |range| {
            for_each_output(&plan.outer, range, |o, at| {
                let mut acc = fold_strided::<F>(x, at, &plan.inner, segment(0));
                for s in 1..segments {
                    acc = F::merge(acc, fold_strided::<F>(x, at, &plan.inner, segment(s)));
                }
                write(o, &[acc]);
            });
        });
        return Ok(());
    }
    let parts = Scratch::<F::Acc>::new(outputs * segments)?;
    let part = parts.sync_ptr();
    parallel::for_each(outputs * segments, |task| {
        for_each_output(&plan.outer, task / segments..task / segments + 1, |_, at| {
            let folded = fold_strided::<F>(x, at, &plan.inner, segment(task % segments));
            // SAFETY: each task writes its own element.
            unsafe { *part.at(task as isize) = folded };
        });
    });
    for o in 0..outputs {
        // SAFETY: all parts have been written.
        let parts = unsafe { std::slice::from_raw_parts(part.get().add(o * segments), segments) };
        write(o, &[parts[1..].iter().fold(parts[0], |a, b| F::merge(a, *b))]);
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
fn fold_strided<F: Fold>(x: &Input<F::In>, at: isize, inner: &Layout, range: Range<usize>) -> F::Acc {
    let mut space = Space::new();
    let step = if x.direct && matches!(inner.strides(), [] | [1]) { range.len() } else { CHUNK };
    let mut acc = F::start();
    for start in range.clone().step_by(step) {
        // SAFETY: within the tensor.
        let x = unsafe { x.get(at, inner, start, step.min(range.end - start), &mut space) };
        acc = F::merge(acc, fold_slice::<F>(x));
    }
    acc
}

/// Neighbouring outputs together: their elements are neighbours too.
fn columns<F: Fold>(plan: &Plan, x: &Input<F::In>, write: Write<'_, F::Acc>) -> Result<()> {
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
            if x.direct {
                // Rows lie in the tensor itself, so several can be looked at together.
                let mut rows: [&[F::In]; ROWS] = [&[]; ROWS];
                let mut count = 0;
                for_each_output(&plan.inner, block.rows.clone(), |_, at| {
                    // SAFETY: a row of the tensor, which nobody writes meanwhile.
                    rows[count] =
                        unsafe { std::slice::from_raw_parts(x.at(block.at + at).cast(), block.width) };
                    count += 1;
                    if count == ROWS {
                        fold_rows::<F>(acc, &rows);
                        count = 0;
                    }
                });
                fold_rows::<F>(acc, &rows[..count]);
            } else {
                block.for_each_row(plan, x, |_, row| fold_rows::<F>(acc, &[row]));
            }
            if segments == 1 {
                write(block.output, acc);
            } else {
                let first = part.at((block.segment * outputs + block.output) as isize);
                // SAFETY: each task writes its own columns of its own segment.
                unsafe { first.copy_from_nonoverlapping(acc.as_ptr(), acc.len()) };
            }
        }
    });
    if segments > 1 {
        parallel::ranges(outputs, GRAIN_MEMORY / segments, |range| {
            // SAFETY: all parts have been written; the outputs of a range belong to it.
            let part = |s: usize| unsafe {
                std::slice::from_raw_parts_mut(part.at((s * outputs + range.start) as isize), range.len())
            };
            let all = part(0);
            (1..segments).for_each(|s| merge_each::<F>(all, part(s)));
            write(range.start, all);
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
}

impl Block {
    /// Calls `f(row, elements)`.
    fn for_each_row<C: Element>(&self, plan: &Plan, x: &Input<C>, mut f: impl FnMut(usize, &[C])) {
        let columns = Layout::contiguous(self.width.into());
        let mut space = Space::new();
        for_each_output(&plan.inner, self.rows.clone(), |row, at| {
            // SAFETY: within the tensor.
            f(row, unsafe { x.get(self.at + at, &columns, 0, self.width, &mut space) });
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
    with_dtype!(x.dtype, T => match kind {
        ArgReduce::Max => positions::<Largest<<T as Widen>::Wide>>(&plan, &Input::new::<T>(x), out),
        ArgReduce::Min => positions::<Smallest<<T as Widen>::Wide>>(&plan, &Input::new::<T>(x), out),
    });
    Ok(())
}

/// Positions of the first element that `F`, which picks one, would pick.
fn positions<F: Pick>(plan: &Plan, x: &Input<F::In>, out: SyncPtr<i64>) {
    if plan.columns {
        let blocks = Blocks::whole(plan);
        return parallel::ranges(blocks.tasks(), blocks.grain(), |tasks| {
            let mut best = Space::<F::In>::new();
            for task in tasks {
                let block = blocks.block(plan, task);
                let best = best.slice(block.width);
                // SAFETY: each task writes its own columns, within the new tensor.
                let found =
                    unsafe { std::slice::from_raw_parts_mut(out.at(block.output as isize), block.width) };
                found.fill(0);
                block.for_each_row(plan, x, |row, x| {
                    if row == 0 { best.copy_from_slice(x) } else { better::<F>(row, x, best, found) }
                });
            }
        });
    }
    let len = plan.inner.numel();
    parallel::ranges(plan.outer.numel(), (GRAIN_MEMORY / len).max(1), |range| {
        for_each_output(&plan.outer, range, |o, at| {
            // SAFETY: one task writes output `o`, which lies within the new tensor.
            unsafe { *out.at(o as isize) = first_best::<F>(x, at, &plan.inner) as i64 };
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

fn first_best<F: Pick>(x: &Input<F::In>, at: isize, inner: &Layout) -> usize {
    let len = inner.numel();
    let mut space = Space::new();
    let mut best: Option<(F::In, usize)> = None;
    for start in (0..len).step_by(CHUNK) {
        // SAFETY: within the tensor.
        let x = unsafe { x.get(at, inner, start, CHUNK.min(len - start), &mut space) };
        let picked = fold_slice::<F>(x);
        if best.is_none_or(|(best, _)| beats::<F>(picked, best)) {
            let position = x.iter().position(|x| *x == picked || is_nan(*x) && is_nan(picked));
            best = Some((picked, start + position.unwrap_or(0)));
        }
    }
    best.map_or(0, |(_, position)| position)
}
