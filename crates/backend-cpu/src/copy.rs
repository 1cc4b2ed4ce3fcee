//! Copies and casts between any layouts, and tensors made from nothing: fill and arange.

use crate::chunks::{self, GRAIN_MEMORY, Stored, for_each_run};
use crate::indexing::{position, with_bits};
use crate::memory::{self, SyncPtr};
use crate::parallel;
use crate::simd::{prefetch, simd_fn};
use crate::transpose::{self, Tiles};
use orkest_core::{Category, DType, Element, Layout, Output, Result, Scalar, View, bf16, f16, with_dtype};
use std::ops::{Range, RangeInclusive};

/// Tensors smaller than this are walked row by row even if that jumps from cache line to cache line: they stay in the cache.
const TRANSPOSE_FROM: usize = 1 << 10;
/// What a kernel reads in chunks is not worth a copy of its own below this.
const COPY_FROM: usize = 16 << 10;
/// Bytes of each row that a transpose reads together: the processor fetches lines in pairs, and neighbours of pairs.
const STRIP: usize = 256;
/// Rows that a task reads: as many neighbours in each row that it writes.
const DEPTH: usize = 512;
/// Bytes from which a transposed tensor is written past the caches, which hold nothing of it when somebody reads it.
const STREAM_FROM: usize = 8 << 20;

/// Lengths of rows that take less time to copy than a call of the system's `memmove`.
const ROW_BYTES: RangeInclusive<usize> = 16..=512;

/// [`orkest_core::Op::Copy`]
pub(crate) fn copy(inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let (x, y) = (&inputs[0], &outputs[0]);
    match (x.dtype, y.dtype) {
        (DType::F32, DType::F16) => return chunks::convert::<f32, f16>(x, outputs),
        (DType::F32, DType::BF16) => return chunks::convert::<f32, bf16>(x, outputs),
        (DType::F16, DType::F32) => return chunks::convert::<f16, f32>(x, outputs),
        (DType::F16, DType::BF16) => return chunks::convert::<f16, bf16>(x, outputs),
        (DType::BF16, DType::F32) => return chunks::convert::<bf16, f32>(x, outputs),
        (DType::BF16, DType::F16) => return chunks::convert::<bf16, f16>(x, outputs),
        _ => {}
    }
    if x.dtype != y.dtype {
        return with_dtype!(x.dtype, X => with_dtype!(y.dtype, Y => cast::<X, Y>(x, outputs)));
    }
    // SAFETY: `core` has checked both layouts against their buffers, and nobody else uses the output.
    unsafe {
        match x.dtype.size() {
            1 => copy_raw::<u8>(memory::input_ptr(x), x.layout, memory::output_ptr(y), &y.layout),
            2 => copy_raw::<u16>(memory::input_ptr(x), x.layout, memory::output_ptr(y), &y.layout),
            4 => copy_raw::<u32>(memory::input_ptr(x), x.layout, memory::output_ptr(y), &y.layout),
            _ => copy_raw::<u64>(memory::input_ptr(x), x.layout, memory::output_ptr(y), &y.layout),
        }
    }
    Ok(())
}

fn cast<X: Stored, Y: Stored>(x: &View<'_>, y: &[Output]) -> Result<()> {
    chunks::map1::<X, Y>(x, y, GRAIN_MEMORY, |x, y| {
        for (y, x) in y.iter_mut().zip(x) {
            *y = match <X::Compute as Element>::DTYPE.category() {
                Category::Float => Element::from_f64(x.to_f64()),
                Category::Int | Category::Bool => Element::from_i64(x.to_i64()),
            };
        }
    })
}

/// Copies `x` to `y`, which have one shape.
///
/// # Safety
/// The layouts lie within the memory, and nobody else uses what is written.
pub(crate) unsafe fn copy_raw<T: Copy + Send>(x: *const T, x_layout: &Layout, y: *mut T, y_layout: &Layout) {
    let [from, to] = Layout::collapse_all([x_layout, y_layout]);
    let (x, y) = (SyncPtr::new(x.cast_mut()), SyncPtr::new(y));
    if from.numel() >= TRANSPOSE_FROM
        && let Some(dim) = transposed_dim(&from).or_else(|| transposed_dim(&to))
    {
        let plan = Transposition::new(&from, &to, dim);
        // SAFETY: the caller's promise.
        return unsafe { plan.run(x, y) };
    }
    let inner = |l: &Layout| l.strides().last().copied().unwrap_or(1);
    let strides = (inner(&from), inner(&to));
    let width = from.shape().last().map_or(0, |width| width * size_of::<T>());
    if from.rank() > 1 && strides == (1, 1) && ROW_BYTES.contains(&width) {
        // SAFETY: the caller's promise.
        return unsafe { copy_rows_of([&from, &to], x, y, width) };
    }
    parallel::ranges(from.numel(), GRAIN_MEMORY, |range| {
        for_each_run([&from, &to], range.start, range.len(), |[f, t], _, run| {
            let (f, t) = (x.at(f), y.at(t));
            // SAFETY: the caller's promise; runs stay within the layouts, ranges are disjoint.
            unsafe {
                match strides {
                    (1, 1) => f.copy_to(t, run),
                    (0, 1) => {
                        let value = *f;
                        (0..run).for_each(|i| *t.add(i) = value);
                    }
                    (sf, st) => (0..run as isize).for_each(|i| *t.offset(i * st) = *f.offset(i * sf)),
                }
            }
        });
    });
}

/// Copies what consists of short rows without gaps on either side.
///
/// # Safety
/// As for [`copy_raw`]; rows are `width` bytes.
unsafe fn copy_rows_of<T>(layouts: [&Layout; 2], x: SyncPtr<T>, y: SyncPtr<T>, width: usize) {
    let last = layouts[0].rank() - 1;
    let starts = layouts.map(|l| l.select(last, 0));
    let [from_step, to_step] = starts.map(|l| l.strides()[last - 1] * size_of::<T>() as isize);
    let grain = GRAIN_MEMORY.div_ceil(layouts[0].shape()[last]);
    parallel::ranges(starts[0].numel(), grain, |range| {
        for_each_run(starts.each_ref(), range.start, range.len(), |[from, to], _, count| {
            let (from, to) = (x.at(from).cast_const().cast(), y.at(to).cast());
            copy_rows(&Rows { from, to, from_step, to_step, width, count });
        });
    });
}

/// `count` rows of `width` bytes, all distances in bytes; `width` is one of [`ROW_BYTES`]. Whoever makes one promises that the rows lie
/// within memory that is his, and that what is written is nobody else's.
struct Rows {
    from: *const u8,
    to: *mut u8,
    from_step: isize,
    to_step: isize,
    width: usize,
    count: usize,
}

simd_fn! {
    fn copy_rows<S: Simd>(rows: &Rows) {
        if rows.width >= 64 { copy_by::<[u64; 8]>(rows) } else { copy_by::<[u64; 2]>(rows) }
    }
}

/// By vectors, the last of which begins where the row has as many bytes left.
#[inline(always)]
fn copy_by<V: Copy>(rows: &Rows) {
    let &Rows { from, to, from_step, to_step, width, count } = rows;
    let whole = width / size_of::<V>();
    for i in 0..count as isize {
        let (from, to) = (from.wrapping_offset(i * from_step), to.wrapping_offset(i * to_step));
        // SAFETY: a row, which is at least as long as a vector.
        let copy = |at: usize| unsafe {
            to.add(at).cast::<V>().write_unaligned(from.add(at).cast::<V>().read_unaligned());
        };
        (0..whole).for_each(|j| copy(j * size_of::<V>()));
        if width % size_of::<V>() != 0 {
            copy(width - size_of::<V>());
        }
    }
}

/// True if reading this collapsed layout in row-major order would jump from cache line to cache line, while some other
/// dimension has neighbours next to each other.
pub(crate) fn is_transposed(layout: &Layout) -> bool {
    layout.numel() >= COPY_FROM && transposed_dim(layout).is_some()
}

/// The dimension whose neighbours are adjacent in memory, if it is not the last and long enough to matter.
fn transposed_dim(layout: &Layout) -> Option<usize> {
    let (&inner, outer) = layout.strides().split_last()?;
    if inner.abs() <= 1 || layout.shape()[layout.rank() - 1] < 4 {
        return None;
    }
    (0..outer.len()).find(|&d| outer[d] == 1 && layout.shape()[d] >= 4)
}

/// A copy in which two dimensions change places: it reads along one and writes along the other.
struct Transposition {
    /// Sizes of the dimension that is read along, the columns, and of the one that is written along, the rows.
    cols: usize,
    rows: usize,
    /// Steps of source and target from column to column and from row to row.
    col_steps: [isize; 2],
    row_steps: [isize; 2],
    /// Where the matrices begin.
    starts: [Layout; 2],
}

impl Transposition {
    /// `dim` and the last dimension change places.
    fn new(from: &Layout, to: &Layout, dim: usize) -> Transposition {
        let last = from.rank() - 1;
        // The target of a transposed source has neighbours along the last dimension, a transposed target along `dim`.
        let (col, row) = if from.strides()[dim] == 1 { (dim, last) } else { (last, dim) };
        let both = [from, to];
        Transposition {
            cols: from.shape()[col],
            rows: from.shape()[row],
            col_steps: both.map(|l| l.strides()[col]),
            row_steps: both.map(|l| l.strides()[row]),
            starts: both.map(|l| l.squeeze(last).squeeze(dim)),
        }
    }

    /// Strip by strip of columns, so that every cache line is touched once on either side even when a power of two as row length maps
    /// all of them to the same place in the cache; neighbouring strips of some rows one after another, because lines next to those
    /// that are read arrive with them.
    ///
    /// # Safety
    /// The layouts lie within the memory, and nobody else uses what is written.
    unsafe fn run<T: Copy + Send>(&self, x: SyncPtr<T>, y: SyncPtr<T>) {
        let &Transposition { cols, rows, col_steps, row_steps, ref starts } = self;
        let size = size_of::<T>();
        let tile = transpose::tile(size);
        let strip = (STRIP / size).max(tile.side);
        let (strips, depths) = (cols.div_ceil(strip), rows.div_ceil(DEPTH));
        let tiled = col_steps[0] == 1 && row_steps[1] == 1;
        // A cache line at a time, or every line would go to memory in parts.
        let streams = starts[0].numel() * cols * rows * size >= STREAM_FROM
            && tile.side * size == 64
            && col_steps[1] * size as isize % 64 == 0;
        let grain = (GRAIN_MEMORY / (strip * DEPTH)).max(1);
        parallel::ranges(starts[0].numel() * depths * strips, grain, |range| {
            for task in range {
                let mut at = [0; 2];
                for_each_run([&starts[0], &starts[1]], task / (strips * depths), 1, |start, _, _| at = start);
                let (col, row) = (task % strips * strip, task / strips % depths * DEPTH);
                let (width, height) = (strip.min(cols - col), DEPTH.min(rows - row));
                let read = |i: usize, j: usize| {
                    x.at(at[0] + (row + i) as isize * row_steps[0] + (col + j) as isize * col_steps[0])
                };
                let write = |i: usize, j: usize| {
                    y.at(at[1] + (row + i) as isize * row_steps[1] + (col + j) as isize * col_steps[1])
                };
                let whole = if tiled {
                    (width / tile.side * tile.side, height / tile.side * tile.side)
                } else {
                    (0, 0)
                };
                let stream = streams && (write(0, 0) as usize).is_multiple_of(64);
                for i in (0..whole.1).step_by(tile.side) {
                    // The next tiles' lines, which no pattern of the processor's foretells.
                    for ahead in i + tile.side..(i + 2 * tile.side).min(height) {
                        for line in (0..whole.0 * size).step_by(64) {
                            prefetch(read(ahead, 0).cast::<u8>().wrapping_add(line));
                        }
                    }
                    let tiles = Tiles {
                        count: whole.0 / tile.side,
                        from: read(i, 0).cast(),
                        from_row: row_steps[0] * size as isize,
                        to: write(i, 0).cast(),
                        to_row: col_steps[1] * size as isize,
                        stream,
                    };
                    // SAFETY: the caller's promise: the tiles lie within this task's rows and columns.
                    unsafe { (tile.run)(&tiles) };
                }
                if stream {
                    transpose::finish_streaming();
                }
                // What is left below the tiles and beside them.
                let rest = |rows: Range<usize>, cols: Range<usize>| {
                    for j in cols {
                        for i in rows.clone() {
                            // SAFETY: the caller's promise: this task's rows and columns.
                            unsafe { *write(i, j) = *read(i, j) };
                        }
                    }
                };
                rest(whole.1..height, 0..whole.0);
                rest(0..height, whole.0..width);
            }
        });
    }
}

/// [`orkest_core::Op::Triangle`]: of what is cut nothing is read.
pub(crate) fn triangle(
    diagonal: i64,
    upper: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let (x, last) = (&inputs[0], inputs[0].layout.rank() - 1);
    let (rows, columns) = (x.layout.shape()[last - 1], x.layout.shape()[last]);
    let starts = x.layout.select(last, 0);
    let row_layout = Layout::new(columns.into(), &x.layout.strides()[last..], 0);
    with_bits!(x.dtype, T => {
        let from = SyncPtr::new(memory::input_ptr::<T>(x).cast_mut());
        let to = SyncPtr::new(memory::output_ptr::<T>(&outputs[0]));
        parallel::ranges(starts.numel(), GRAIN_MEMORY.div_ceil(columns), |range| {
            for i in range {
                let first = ((i % rows) as i64).saturating_add(diagonal).saturating_add(!upper as i64);
                let edge = first.clamp(0, columns as i64) as usize;
                let kept = if upper { edge..columns } else { 0..edge };
                // SAFETY: row `i` of the new tensor, which belongs to this range.
                let to = unsafe { std::slice::from_raw_parts_mut(to.at((i * columns) as isize), columns) };
                to[..kept.start].fill(0);
                to[kept.end..].fill(0);
                // SAFETY: a part of row `i`, which nobody writes meanwhile.
                unsafe {
                    let to = to[kept.clone()].as_mut_ptr();
                    chunks::gather(from.at(position(&starts, i)), &row_layout, kept.start, kept.len(), to);
                }
            }
        });
    });
    Ok(())
}

/// [`orkest_core::Op::Fill`]
pub(crate) fn fill(value: Scalar, outputs: &mut [Output]) -> Result<()> {
    with_dtype!(outputs[0].dtype, T => {
        // Rounded once, from the scalar to the dtype, whatever the dtype is computed in.
        let mut wide = [Default::default()];
        T::widen(&[value.to::<T>()], &mut wide);
        let [value] = wide;
        chunks::map0::<T>(&outputs[0], GRAIN_MEMORY, |_, y| y.fill(value))
    })
}

/// [`orkest_core::Op::Arange`]
pub(crate) fn arange(start: Scalar, step: Scalar, outputs: &mut [Output]) -> Result<()> {
    let float = outputs[0].dtype.is_float();
    with_dtype!(outputs[0].dtype, T => chunks::map0::<T>(&outputs[0], GRAIN_MEMORY, |first, y| {
        for (i, y) in y.iter_mut().enumerate() {
            let i = first + i;
            *y = if float {
                Element::from_f64(start.as_f64() + i as f64 * step.as_f64())
            } else {
                Element::from_i64(start.as_i64().wrapping_add((i as i64).wrapping_mul(step.as_i64())))
            };
        }
    }))
}

#[cfg(test)]
mod tests {
    use crate::simd::for_each_level;
    use crate::testing::{Data, Draw, run, run_in_place};
    use orkest_core::{DType, Op};

    /// The tensor with dimensions `a` and `b` exchanged.
    fn exchanged(x: &Data, a: usize, b: usize) -> Data {
        Data { buffer: x.buffer.clone(), layout: x.layout.transpose(a, b), dtype: x.dtype }
    }

    #[test]
    fn dimensions_change_places_exactly() {
        let mut draw = Draw(1);
        // Whole tiles and rests, few columns, more rows than a task has, enough of them to be written past the caches.
        let shapes: [(&[usize], usize, usize); 7] = [
            (&[96, 128], 0, 1),
            (&[67, 131], 0, 1),
            (&[5, 1100], 0, 1),
            (&[1100, 5], 0, 1),
            (&[3, 70, 45], 1, 2),
            (&[4, 33, 5, 9], 0, 3),
            (&[1040, 2112], 0, 1),
        ];
        for_each_level(|level| {
            for (shape, a, b) in shapes {
                let numel: usize = shape.iter().product();
                let numbers: Vec<f64> = (0..numel).map(|_| draw.below(120) as f64).collect();
                for dtype in [DType::U8, DType::F16, DType::F32, DType::I64] {
                    let x = exchanged(&Data::new(dtype, shape, &numbers), a, b);
                    let what = format!("{level:?} {dtype} {shape:?}");
                    let y = run(&Op::Copy, &[&x], &[(&x.layout.shape()[..], dtype)]).unwrap();
                    assert!(y[0].values() == x.values(), "{what}, read");
                    // From a row-major tensor into an exchanged one.
                    let zeros = vec![0.0; numel];
                    let target = exchanged(&Data::new(dtype, &x.layout.shape()[..], &zeros), a, b);
                    let plain = Data::new(dtype, shape, &numbers);
                    run_in_place(&Op::Copy, &[&plain], &target).unwrap();
                    assert!(target.values() == numbers, "{what}, written");
                }
            }
        });
    }
}
