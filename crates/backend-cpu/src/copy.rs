//! Copies and casts between any layouts, and tensors made from nothing: fill and arange.

use crate::chunks::{self, CHUNK, GRAIN_MEMORY, Stored, for_each_run};
use crate::memory::{self, SyncPtr};
use crate::parallel;
use orkest_core::{Category, DType, Element, Layout, Output, Result, Scalar, View, bf16, f16, with_dtype};

/// Tensors smaller than this stay in the cache whichever way they are walked.
const TRANSPOSE_FROM: usize = 16 << 10;
/// Side of the square tiles of a transpose: a row of f32 is one cache line.
const TILE: usize = 16;

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
        // SAFETY: the caller's promise.
        return unsafe { transpose(x, &from, y, &to, dim) };
    }
    let inner = |l: &Layout| l.strides().last().copied().unwrap_or(1);
    let strides = (inner(&from), inner(&to));
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

/// True if reading this collapsed layout in row-major order would jump from cache line to cache line, while some other
/// dimension has neighbours next to each other.
pub(crate) fn is_transposed(layout: &Layout) -> bool {
    layout.numel() >= TRANSPOSE_FROM && transposed_dim(layout).is_some()
}

/// The dimension whose neighbours are adjacent in memory, if it is not the last and long enough to matter.
fn transposed_dim(layout: &Layout) -> Option<usize> {
    let (&inner, outer) = layout.strides().split_last()?;
    if inner.abs() <= 1 || layout.shape()[layout.rank() - 1] < 4 {
        return None;
    }
    (0..outer.len()).find(|&d| outer[d] == 1 && layout.shape()[d] >= 4)
}

/// Copies in square tiles of the last dimension and `dim`, through a buffer, so that every cache line is touched once on
/// either side even when a power of two as row length maps all of them to the same place in the cache.
unsafe fn transpose<T: Copy + Send>(x: SyncPtr<T>, from: &Layout, y: SyncPtr<T>, to: &Layout, dim: usize) {
    let last = from.rank() - 1;
    let (rows, cols) = (from.shape()[dim], from.shape()[last]);
    let rest = [from, to].map(|l| l.squeeze(last).squeeze(dim));
    let planes = rest[0].numel();
    let strips = rows.div_ceil(TILE);
    let of = |l: &Layout| (l.strides()[dim], l.strides()[last]);
    let ((from_row, from_col), (to_row, to_col)) = (of(from), of(to));
    let grain = (GRAIN_MEMORY / (TILE * cols)).max(1);
    parallel::ranges(planes * strips, grain, |range| {
        let mut tile = chunks::Space::<T>::new();
        const { assert!(TILE * TILE <= CHUNK) };
        let tile = tile.as_mut_ptr();
        for strip in range {
            let mut start = [0; 2];
            for_each_run([&rest[0], &rest[1]], strip / strips, 1, |at, _, _| start = at);
            let row = strip % strips * TILE;
            let height = TILE.min(rows - row);
            for col in (0..cols).step_by(TILE) {
                let width = TILE.min(cols - col);
                let f = x.at(start[0] + row as isize * from_row + col as isize * from_col);
                let t = y.at(start[1] + row as isize * to_row + col as isize * to_col);
                // SAFETY: the caller's promise; tiles stay within the layouts and are disjoint.
                unsafe {
                    for j in 0..width {
                        let f = f.offset(j as isize * from_col);
                        (0..height).for_each(|i| *tile.add(i * TILE + j) = *f.offset(i as isize * from_row));
                    }
                    for i in 0..height {
                        let t = t.offset(i as isize * to_row);
                        (0..width).for_each(|j| *t.offset(j as isize * to_col) = *tile.add(i * TILE + j));
                    }
                }
            }
        }
    });
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
