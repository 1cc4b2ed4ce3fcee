//! Elements and slices by position: gather, scatter, index-select, index-add.
//!
//! Indices are checked before anything is written. Threads split what the indexed dimension does not touch (or the places
//! written to), so that colliding indices meet in one thread, in ascending order.

use crate::chunks::{self, GRAIN_MEMORY};
use crate::memory::{self, SyncPtr};
use crate::parallel;
use crate::simd::simd_fn;
use orkest_core::{DType, Error, Layout, MAX_RANK, Output, Result, View, bf16, f16, with_dtype};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Elements of a slice that one thread adds to at least, where threads share slices.
const STRIP: usize = 64;

/// Runs `$body` with `$T` bound to an unsigned integer as large as the dtype's elements: for moving them unseen.
macro_rules! with_bits {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype.size() {
            1 => {
                type $T = u8;
                $body
            }
            2 => {
                type $T = u16;
                $body
            }
            4 => {
                type $T = u32;
                $body
            }
            _ => {
                type $T = u64;
                $body
            }
        }
    };
}

pub(crate) use with_bits;

pub(crate) fn gather(dim: usize, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let [x, index] = inputs else { unreachable!("gather takes two inputs") };
    let (y, size) = (&outputs[0], x.layout.shape()[dim]);
    // Where place 0 of each element is.
    let mut strides = [0; MAX_RANK];
    let strides = &mut strides[..x.layout.rank()];
    strides.copy_from_slice(x.layout.strides());
    let place_step = std::mem::take(&mut strides[dim]);
    let starts = Layout::new(*index.layout.shape(), strides, x.layout.offset());
    let [starts, to_layout, index_layout] = Layout::collapse_all([&starts, &y.layout, index.layout]);
    let indices = SyncPtr::new(memory::input_ptr::<i64>(index).cast_mut());
    let bad = AtomicBool::new(false);
    with_bits!(x.dtype, T => {
        let from = SyncPtr::new(memory::input_ptr::<T>(x).cast_mut());
        let to = SyncPtr::new(memory::output_ptr::<T>(y));
        parallel::ranges(starts.numel(), GRAIN_MEMORY, |range| {
            walk([&starts, &to_layout, &index_layout], range.start, range.len(), |at, steps, len| {
                // SAFETY: elements of the index, which nobody writes while the operation runs.
                let run = unsafe { Run::new(indices, at, steps, place_step, len) };
                if run.leaves(size) {
                    return bad.store(true, Relaxed);
                }
                // SAFETY: the indices have been checked, the other coordinates are those of elements of x and y.
                run.for_each(|x_at, y_at| unsafe { *to.at(y_at) = *from.at(x_at) });
            });
        });
    });
    if bad.into_inner() { check("gather", index, size) } else { Ok(()) }
}

pub(crate) fn scatter(dim: usize, add: bool, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let [index, src] = inputs else { unreachable!("scatter takes two inputs") };
    let y = &outputs[0];
    check(if add { "scatter_add" } else { "scatter" }, index, y.layout.shape()[dim])?;
    if add {
        with_dtype!(src.dtype, T => {
            let from = SyncPtr::new(memory::input_ptr::<T>(src).cast_mut());
            let to = SyncPtr::new(memory::output_ptr::<T>(y));
            for_each_lane(dim, index, &y.layout, src.layout, |run| {
                // SAFETY: as in `gather`; elements that collide belong to one task.
                run.for_each(|y_at, src_at| unsafe { *to.at(y_at) = (*to.at(y_at)).plus(*from.at(src_at)) });
            });
        });
    } else {
        with_bits!(src.dtype, T => {
            let from = SyncPtr::new(memory::input_ptr::<T>(src).cast_mut());
            let to = SyncPtr::new(memory::output_ptr::<T>(y));
            for_each_lane(dim, index, &y.layout, src.layout, |run| {
                // SAFETY: as in `gather`; elements that collide belong to one task.
                run.for_each(|y_at, src_at| unsafe { *to.at(y_at) = *from.at(src_at) });
            });
        });
    }
    Ok(())
}

pub(crate) fn index_select(dim: usize, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let [x, index] = inputs else { unreachable!("index_select takes two inputs") };
    let index = &*indices("index_select", index, x.layout.shape()[dim])?;
    let y = &outputs[0];
    let (outer, inner) = around(x.layout, dim);
    let inner = inner.collapse();
    let (len, step) = (inner.numel(), x.layout.strides()[dim]);
    with_bits!(x.dtype, T => {
        let from = SyncPtr::new(memory::input_ptr::<T>(x).cast_mut());
        let to = SyncPtr::new(memory::output_ptr::<T>(y));
        parallel::ranges(outer.numel() * index.len(), GRAIN_MEMORY.div_ceil(len), |rows| {
            let mut row = rows.start;
            while row < rows.end {
                let (start, first) = (position(&outer, row / index.len()), row % index.len());
                let places = &index[first..index.len().min(first + rows.end - row)];
                // SAFETY: rows of the row-major y that are in this range alone, and slices of x by checked indices.
                unsafe {
                    let to = to.get().add(row * len);
                    let slices = places.iter().map(|&place| from.at(start + place as isize * step));
                    if len == 1 {
                        slices.enumerate().for_each(|(i, from)| *to.add(i) = *from);
                    } else if inner.is_contiguous() {
                        // A lookup in a table: copy row by row.
                        slices.enumerate().for_each(|(i, from)| from.copy_to_nonoverlapping(to.add(i * len), len));
                    } else {
                        slices.enumerate().for_each(|(i, from)| chunks::gather(from, &inner, 0, len, to.add(i * len)));
                    }
                }
                row += places.len();
            }
        });
    });
    Ok(())
}

pub(crate) fn index_add(dim: usize, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let [index, src] = inputs else { unreachable!("index_add takes two inputs") };
    let y = &outputs[0];
    let size = y.layout.shape()[dim];
    let index = indices("index_add", index, size)?;
    with_dtype!(src.dtype, T => index_add_of::<T>(dim, &index, src, y, size as i64));
    Ok(())
}

fn index_add_of<T: Plus>(dim: usize, index: &[i64], src: &View<'_>, y: &Output, size: i64) {
    let from = SyncPtr::new(memory::input_ptr::<T>(src).cast_mut());
    let to = SyncPtr::new(memory::output_ptr::<T>(y));
    let (y_outer, y_inner) = around(&y.layout, dim);
    let (src_outer, src_inner) = around(src.layout, dim);
    let inner = Layout::collapse_all([&y_inner, &src_inner]);
    let (y_step, src_step) = (y.layout.strides()[dim], src.layout.strides()[dim]);
    let (outer_len, inner_len) = (y_outer.numel(), inner[0].numel());
    let one_run =
        (inner[0].rank() <= 1).then(|| [0, 1].map(|i| inner[i].strides().first().copied().unwrap_or(1)));
    let list = SyncPtr::new(index.as_ptr().cast_mut());
    let run = |outer: usize, places: Range<i64>, columns: Range<usize>| {
        let starts = (position(&y_outer, outer), position(&src_outer, outer));
        if inner_len == 1 && places == (0..size) {
            let at = [starts.0, starts.1, 0];
            // SAFETY: the index, which nobody writes meanwhile.
            let run = unsafe { Run::new(list, at, [0, src_step, 1], y_step, index.len()) };
            // SAFETY: as below.
            return run
                .for_each(|y_at, src_at| unsafe { *to.at(y_at) = (*to.at(y_at)).plus(*from.at(src_at)) });
        }
        for (i, place) in index.iter().enumerate().filter(|(_, place)| places.contains(place)) {
            let y_start = starts.0 + *place as isize * y_step;
            let src_start = starts.1 + i as isize * src_step;
            let add = |[y_at, src_at]: [isize; 2], steps, run| {
                // SAFETY: elements of y, which this task alone writes, and of src; y and src do not overlap.
                unsafe { add_run(to.at(y_start + y_at), from.at(src_start + src_at), steps, run) };
            };
            match one_run {
                Some(steps) => add(steps.map(|step| columns.start as isize * step), steps, columns.len()),
                None => walk([&inner[0], &inner[1]], columns.start, columns.len(), add),
            }
        }
    };
    // Every element of y has one task: split the outer dimensions, else the columns of a slice, else the places written to.
    let work = index.len() * inner_len;
    let tasks = (outer_len * work).div_ceil(GRAIN_MEMORY).min(4 * parallel::num_threads());
    let strips = tasks.min(inner_len / STRIP);
    // Each of them looks at all indices, which has to cost less than the additions.
    let regions = tasks.min(inner_len);
    if tasks > 1 && outer_len >= tasks {
        parallel::ranges(outer_len, GRAIN_MEMORY.div_ceil(work), |outer| {
            outer.for_each(|o| run(o, 0..size, 0..inner_len));
        });
    } else if tasks > 1 && strips >= parallel::num_threads() {
        // Whole cache lines where the slices start at one.
        let units = inner_len.div_ceil(STRIP);
        parallel::for_each(strips, |t| {
            let columns = units * t / strips * STRIP..(units * (t + 1) / strips * STRIP).min(inner_len);
            (0..outer_len).for_each(|o| run(o, 0..size, columns.clone()));
        });
    } else {
        parallel::for_each(regions, |t| {
            let bound = |t: usize| (size as usize * t / regions) as i64;
            (0..outer_len).for_each(|o| run(o, bound(t)..bound(t + 1), 0..inner_len));
        });
    }
}

/// Adds `run` elements at `from` to those at `to`.
///
/// # Safety
/// They lie within memory, `steps` apart; nobody else uses those at `to`, which are not among those at `from`.
#[inline(always)]
unsafe fn add_run<T: Plus>(to: *mut T, from: *const T, steps: [isize; 2], run: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if run == 1 {
            *to = (*to).plus(*from);
        } else if steps == [1, 1] {
            add_slices(std::slice::from_raw_parts_mut(to, run), std::slice::from_raw_parts(from, run));
        } else {
            for j in 0..run as isize {
                let to = to.offset(j * steps[0]);
                *to = (*to).plus(*from.offset(j * steps[1]));
            }
        }
    }
}

simd_fn! {
    fn add_slices<S: Simd, T: Plus>(to: &mut [T], from: &[T]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = to.plus(*from);
        }
    }
}

/// Addition of elements: wrapping for integers, "or" for bool.
pub(crate) trait Plus: Copy + Send + Sync {
    fn plus(self, other: Self) -> Self;
}

macro_rules! plus {
    ($($t:ty: $a:ident, $b:ident => $sum:expr;)*) => {$(
        impl Plus for $t {
            #[inline(always)]
            fn plus(self, other: $t) -> $t {
                let ($a, $b) = (self, other);
                $sum
            }
        }
    )*};
}
plus! {
    f64: a, b => a + b;
    f32: a, b => a + b;
    f16: a, b => a + b;
    bf16: a, b => a + b;
    i64: a, b => a.wrapping_add(b);
    i32: a, b => a.wrapping_add(b);
    u8: a, b => a.wrapping_add(b);
    bool: a, b => a | b;
}

/// Some elements of an index, side by side. Element `t` names a place in the indexed tensor `a`, at
/// `a_at + place * place_step + t * a_step`, and belongs to element `b_at + t * b_step` of a tensor of the index's shape.
struct Run {
    indices: *const i64,
    index_step: isize,
    place_step: isize,
    a_at: isize,
    a_step: isize,
    b_at: isize,
    b_step: isize,
    len: usize,
}

impl Run {
    /// Positions and steps are those of `a`, `b` and the index.
    ///
    /// # Safety
    /// All are elements of the index, which nobody writes while this lives.
    unsafe fn new(
        indices: SyncPtr<i64>,
        [a_at, b_at, index_at]: [isize; 3],
        [a_step, b_step, index_step]: [isize; 3],
        place_step: isize,
        len: usize,
    ) -> Run {
        Run { indices: indices.at(index_at), index_step, place_step, a_at, a_step, b_at, b_step, len }
    }

    /// Does one of the indices lie outside of `0..size`?
    fn leaves(&self, size: usize) -> bool {
        // SAFETY: elements of the index.
        unsafe {
            match self.index_step {
                1 => any_outside(std::slice::from_raw_parts(self.indices, self.len), size as u64),
                0 => *self.indices as u64 >= size as u64,
                step => (0..self.len as isize).any(|t| *self.indices.offset(t * step) as u64 >= size as u64),
            }
        }
    }

    /// Calls `f(position in a, position in b)`.
    #[inline(always)]
    fn for_each(&self, f: impl Fn(isize, isize)) {
        // Loops whose steps the compiler knows, for the usual ways to lie.
        match (self.index_step, self.place_step, self.a_step, self.b_step) {
            // Along rows, and across them: by numbers of their own, or by one.
            (1, 1, 0, 1) => self.each([1, 1, 0, 1], f),
            (1, place_step, 1, 1) => self.each([1, place_step, 1, 1], f),
            (0, place_step, 1, 1) => self.each([0, place_step, 1, 1], f),
            (index_step, place_step, a_step, b_step) => {
                self.each([index_step, place_step, a_step, b_step], f);
            }
        }
    }

    #[inline(always)]
    fn each(&self, [index_step, place_step, a_step, b_step]: [isize; 4], f: impl Fn(isize, isize)) {
        // SAFETY: elements of the index.
        let place = |t: isize| unsafe { *self.indices.offset(t * index_step) } as isize * place_step;
        // One index for all is read once: for all that the compiler knows, `f` may write it.
        let only = place(0);
        for t in 0..self.len as isize {
            let place = if index_step == 0 { only } else { place(t) };
            f(self.a_at + place + t * a_step, self.b_at + t * b_step);
        }
    }
}

/// Calls `f` with runs that make up all of `index`, `a` being the indexed tensor and `b` one of the index's shape. Ascending along `dim`,
/// and one task has all of that.
fn for_each_lane(dim: usize, index: &View<'_>, a: &Layout, b: &Layout, f: impl Fn(Run) + Sync) {
    let shape = index.layout.shape();
    // The lanes along `dim`: the shape of the index without it, with the strides of each tensor.
    let lanes = |layout: &Layout| {
        let mut strides = [0; MAX_RANK];
        let rest = layout.strides().iter().enumerate().filter(|(d, _)| *d != dim);
        rest.zip(&mut strides).for_each(|((_, stride), s)| *s = *stride);
        Layout::new(shape.without(dim), &strides[..shape.rank() - 1], layout.offset())
    };
    let lanes = Layout::collapse_all([&lanes(a), &lanes(b), &lanes(index.layout)]);
    let [place_step, b_step, index_step] = [a, b, index.layout].map(|l| l.strides()[dim]);
    let indices = SyncPtr::new(memory::input_ptr::<i64>(index).cast_mut());
    let length = shape[dim];
    parallel::ranges(lanes[0].numel(), GRAIN_MEMORY.div_ceil(length), |range| {
        walk(lanes.each_ref(), range.start, range.len(), |at, steps, lanes| {
            // Neighbours in memory one after the other.
            let along = place_step.abs() + b_step.abs() + index_step.abs();
            let lane_by_lane = lanes == 1 || along <= steps.iter().map(|step| step.abs()).sum();
            let (count, len, next, steps) = match lane_by_lane {
                true => (lanes, length, steps, [0, b_step, index_step]),
                false => (length, lanes, [0, b_step, index_step], steps),
            };
            for i in 0..count as isize {
                let at = [0, 1, 2].map(|n| at[n] + i * next[n]);
                // SAFETY: elements of the index, which nobody writes while the operation runs.
                f(unsafe { Run::new(indices, at, steps, place_step, len) });
            }
        });
    });
}

/// The layouts of the dimensions before (with the offset) and after `dim`.
fn around(layout: &Layout, dim: usize) -> (Layout, Layout) {
    let (shape, strides) = (layout.shape(), layout.strides());
    let outer = Layout::new((&shape[..dim]).into(), &strides[..dim], layout.offset());
    let inner = Layout::new((&shape[dim + 1..]).into(), &strides[dim + 1..], 0);
    (outer, inner)
}

/// The buffer position of element `index` in row-major order.
pub(crate) fn position(layout: &Layout, mut index: usize) -> isize {
    let mut at = layout.offset() as isize;
    for (&size, &stride) in layout.shape().iter().zip(layout.strides()).rev() {
        if index == 0 {
            break;
        }
        at += (index % size) as isize * stride;
        index /= size;
    }
    at
}

/// Walks elements `start..start + len`, in row-major order, of layouts of one shape: calls `f(positions, steps, run)` for runs along
/// the last dimension.
pub(crate) fn walk<const N: usize>(
    layouts: [&Layout; N],
    start: usize,
    len: usize,
    mut f: impl FnMut([isize; N], [isize; N], usize),
) {
    let width = layouts[0].shape().last().copied().unwrap_or(1);
    let steps = layouts.map(|l| l.strides().last().copied().unwrap_or(0));
    let mut done = 0;
    while done < len {
        let run = (width - (start + done) % width).min(len - done);
        f(layouts.map(|l| position(l, start + done)), steps, run);
        done += run;
    }
}

/// The indices of a one-dimensional tensor, checked.
fn indices<'a>(op: &'static str, index: &View<'a>, size: usize) -> Result<Cow<'a, [i64]>> {
    check(op, index, size)?;
    let (start, layout) = (memory::input_ptr::<i64>(index), index.layout);
    if layout.is_contiguous() {
        // SAFETY: the elements of the index, which nobody writes while the operation runs.
        let values = unsafe { std::slice::from_raw_parts(start.add(layout.offset()), layout.numel()) };
        return Ok(Cow::Borrowed(values));
    }
    // SAFETY: an element of the index.
    Ok(layout.positions().map(|p| unsafe { *start.add(p) }).collect())
}

/// Reports the first index that is not in `0..size`.
fn check(op: &'static str, index: &View<'_>, size: usize) -> Result<()> {
    debug_assert_eq!(index.dtype, DType::I64);
    let layout = index.layout.collapse();
    let start = SyncPtr::new(memory::input_ptr::<i64>(index).cast_mut());
    let bad = AtomicBool::new(false);
    parallel::ranges(layout.numel(), GRAIN_MEMORY, |range| {
        walk([&layout], range.start, range.len(), |[at], [step], run| {
            // SAFETY: elements of the index, which nobody writes while the operation runs.
            let outside = unsafe {
                match step {
                    1 => any_outside(std::slice::from_raw_parts(start.at(at), run), size as u64),
                    0 => any_outside(&[*start.at(at)], size as u64),
                    _ => (0..run as isize).any(|j| *start.at(at + j * step) as u64 >= size as u64),
                }
            };
            if outside {
                bad.store(true, Relaxed);
            }
        });
    });
    if !bad.into_inner() {
        return Ok(());
    }
    // SAFETY: elements of the index.
    let mut values = layout.positions().map(|p| unsafe { *start.at(p as isize) });
    let index = values.find(|i| *i < 0 || *i >= size as i64).unwrap_or_default();
    Err(Error::IndexOutOfRange { op, index, size, at: None })
}

simd_fn! {
    /// True if one of the indices is not in `0..size`.
    fn any_outside<S: Simd>(indices: &[i64], size: u64) -> bool {
        indices.iter().fold(false, |outside, &index| outside | (index as u64 >= size))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Data, Draw, LAYS, run, run_in_place};
    use orkest_core::{DType, Error, Op};

    /// Row-major position of `coords` in `shape`.
    fn at(shape: &[usize], coords: &[usize]) -> usize {
        shape.iter().zip(coords).fold(0, |at, (size, c)| at * size + c)
    }

    fn coords(shape: &[usize], mut at: usize) -> Vec<usize> {
        let mut out = vec![0; shape.len()];
        for d in (0..shape.len()).rev() {
            (out[d], at) = (at % shape[d], at / shape[d]);
        }
        out
    }

    fn numbers(draw: &mut Draw, count: usize, limit: usize) -> Vec<f64> {
        (0..count).map(|_| draw.below(limit) as f64).collect()
    }

    #[test]
    fn gather_and_scatter_follow_their_definitions() {
        let mut draw = Draw(1);
        let cases: [(&[usize], &[usize]); 5] = [
            (&[7], &[4]),
            (&[5, 6], &[5, 3]),
            (&[3, 4, 5], &[2, 4, 4]),
            (&[4, 1, 3], &[2, 1, 3]),
            (&[300, 400], &[200, 390]),
        ];
        for (x_shape, shape) in cases {
            for dtype in DType::ALL {
                for lay in LAYS {
                    for dim in 0..shape.len() {
                        let count = shape.iter().product();
                        let x_values = numbers(&mut draw, x_shape.iter().product(), 2);
                        let index_values = numbers(&mut draw, count, x_shape[dim]);
                        let src_values = numbers(&mut draw, count, 2);
                        let x = Data::laid(lay, dtype, x_shape, &x_values);
                        let index = Data::laid(lay, DType::I64, shape, &index_values);
                        let src = Data::laid(lay, dtype, shape, &src_values);
                        let place = |i: usize| {
                            let mut c = coords(shape, i);
                            c[dim] = index_values[i] as usize;
                            at(x_shape, &c)
                        };
                        let what = format!("{dtype} {lay:?} {x_shape:?} {shape:?} dim {dim}");

                        let y = run(&Op::Gather { dim }, &[&x, &index], &[(shape, dtype)]).unwrap();
                        let expected: Vec<f64> = (0..count).map(|i| x_values[place(i)]).collect();
                        assert_eq!(y[0].values(), expected, "gather {what}");

                        for add in [false, true] {
                            let y = Data::laid(lay, dtype, x_shape, &x_values);
                            run_in_place(&Op::Scatter { dim, add }, &[&index, &src], &y).unwrap();
                            let mut expected = x_values.clone();
                            for i in 0..count {
                                let e = &mut expected[place(i)];
                                *e = if add { *e + src_values[i] } else { src_values[i] };
                                if dtype == DType::Bool {
                                    *e = e.min(1.0);
                                }
                            }
                            assert_eq!(y.values(), expected, "scatter add {add} {what}");
                            assert!(y.surroundings_are_untouched(), "scatter add {add} {what}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn one_index_serves_many_elements() {
        let mut draw = Draw(4);
        let (rows, width, picked) = (7, 300, 40);
        let values = numbers(&mut draw, rows * width, 100);
        let places = numbers(&mut draw, picked, rows);
        let mut index = Data::new(DType::I64, &[picked, 1], &places);
        index.layout = index.layout.broadcast_to(&[picked, width].into()).unwrap();
        let x = Data::new(DType::F32, &[rows, width], &values);
        let y = run(&Op::Gather { dim: 0 }, &[&x, &index], &[(&[picked, width], DType::F32)]).unwrap();
        let row = |place: &f64| values[*place as usize * width..][..width].to_vec();
        let expected: Vec<f64> = places.iter().flat_map(row).collect();
        assert!(y[0].values() == expected);

        let sums = Data::new(DType::F32, &[rows, width], &vec![0.0; rows * width]);
        run_in_place(&Op::Scatter { dim: 0, add: true }, &[&index, &y[0]], &sums).unwrap();
        let count = |row: usize| places.iter().filter(|place| **place as usize == row).count() as f64;
        let expected: Vec<f64> = values.iter().enumerate().map(|(i, v)| v * count(i / width)).collect();
        assert!(sums.values() == expected);
    }

    #[test]
    fn index_select_and_index_add_follow_their_definitions() {
        let mut draw = Draw(2);
        for (x_shape, n) in [
            (&[7][..], 5),
            (&[5, 6], 9),
            (&[3, 4, 5], 2),
            (&[1, 3, 1], 4),
            (&[50, 640], 300),
            (&[900, 3], 40_000),
        ] {
            for dtype in [DType::F32, DType::F64, DType::F16, DType::I64, DType::U8, DType::Bool] {
                for lay in LAYS {
                    for dim in 0..x_shape.len() {
                        let mut shape = x_shape.to_vec();
                        shape[dim] = n;
                        let count: usize = shape.iter().product();
                        if count > 300_000 {
                            continue;
                        }
                        let x_values = numbers(&mut draw, x_shape.iter().product(), 2);
                        let index_values = numbers(&mut draw, n, x_shape[dim]);
                        let src_values = numbers(&mut draw, count, 2);
                        let x = Data::laid(lay, dtype, x_shape, &x_values);
                        let index = Data::laid(lay, DType::I64, &[n], &index_values);
                        let src = Data::laid(lay, dtype, &shape, &src_values);
                        let place = |i: usize| {
                            let mut c = coords(&shape, i);
                            c[dim] = index_values[c[dim]] as usize;
                            at(x_shape, &c)
                        };
                        let what = format!("{dtype} {lay:?} {x_shape:?} n {n} dim {dim}");

                        let y = run(&Op::IndexSelect { dim }, &[&x, &index], &[(&shape, dtype)]).unwrap();
                        let expected: Vec<f64> = (0..count).map(|i| x_values[place(i)]).collect();
                        assert!(y[0].values() == expected, "index_select {what}");

                        let y = Data::laid(lay, dtype, x_shape, &x_values);
                        run_in_place(&Op::IndexAdd { dim }, &[&index, &src], &y).unwrap();
                        let mut expected = x_values.clone();
                        for i in 0..count {
                            let e = &mut expected[place(i)];
                            *e += src_values[i];
                            match dtype {
                                DType::Bool => *e = e.min(1.0),
                                DType::U8 => *e %= 256.0,
                                _ => {}
                            }
                        }
                        assert!(y.values() == expected, "index_add {what}");
                        assert!(y.surroundings_are_untouched(), "index_add {what}");
                    }
                }
            }
        }
    }

    #[test]
    fn colliding_additions_happen_in_ascending_order() {
        // 1e8 + 1 is 1e8 in f32: only the ascending order gives 0 for the first and 1 for the second list.
        for (src, expected) in [([1e8, 1.0, -1e8], 0.0), ([1e8, -1e8, 1.0], 1.0)] {
            let (index, src) = (Data::new(DType::I64, &[3], &[0.0; 3]), Data::new(DType::F32, &[3], &src));
            for op in [Op::Scatter { dim: 0, add: true }, Op::IndexAdd { dim: 0 }] {
                let y = Data::new(DType::F32, &[1], &[0.0]);
                run_in_place(&op, &[&index, &src], &y).unwrap();
                assert_eq!(y.values(), [expected], "{op:?}");
            }
        }
    }

    #[test]
    fn an_index_out_of_range_is_reported_before_anything_is_written() {
        for bad in [-1, 3, i64::MIN, i64::MAX] {
            let expected = |op| Some(Error::IndexOutOfRange { op, index: bad, size: 3, at: None });
            let x = Data::new(DType::F32, &[3], &[1.0, 2.0, 3.0]);
            let index = Data::new(DType::I64, &[2], &[0.0, bad as f64]);
            let src = Data::new(DType::F32, &[2], &[9.0, 9.0]);
            let outputs: [(&[usize], DType); 1] = [(&[2], DType::F32)];
            assert_eq!(run(&Op::Gather { dim: 0 }, &[&x, &index], &outputs).err(), expected("gather"));
            assert_eq!(
                run(&Op::IndexSelect { dim: 0 }, &[&x, &index], &outputs).err(),
                expected("index_select")
            );
            for (op, name) in [
                (Op::Scatter { dim: 0, add: false }, "scatter"),
                (Op::Scatter { dim: 0, add: true }, "scatter_add"),
                (Op::IndexAdd { dim: 0 }, "index_add"),
            ] {
                assert_eq!(run_in_place(&op, &[&index, &src], &x).err(), expected(name));
                assert_eq!(x.values(), [1.0, 2.0, 3.0]);
            }
        }
    }
}
