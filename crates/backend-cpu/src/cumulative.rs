//! Running sums and products.

use crate::chunks::{CHUNK, GRAIN_MATH, Space};
use crate::indexing::position;
use crate::memory::{self, SyncPtr};
use crate::parallel;
use crate::rows::{Dense, RowsMut};
use orkest_core::op::Cumulative;
use orkest_core::{DType, Element, Error, Layout, Output, Result, View, with_dtype};

/// [`orkest_core::Op::Cumulative`]
pub(crate) fn cumulative(
    kind: Cumulative,
    dim: usize,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let (x, y) = (&inputs[0], &outputs[0]);
    with_dtype!(x.dtype, T => match y.dtype {
        same if same == x.dtype => run::<T, T>(kind, dim, x, y),
        DType::I64 => run::<T, i64>(kind, dim, x, y),
        dtype => Err(Error::Unsupported { op: "cumsum".into(), dtype, device: "cpu".into() }),
    })
}

fn run<T: Element, O: Element>(kind: Cumulative, dim: usize, x: &View<'_>, y: &Output) -> Result<()> {
    let product = kind == Cumulative::Prod;
    // Floats run in f64 as in PyTorch, everything else in i64.
    if T::DTYPE.is_float() {
        let step = |a, x| if product { a * x } else { a + x };
        scan::<T, O, f64>(dim, x, y, product as u8 as f64, T::to_f64, step, O::from_f64)
    } else {
        let step = |a: i64, x| if product { a.wrapping_mul(x) } else { a.wrapping_add(x) };
        scan::<T, O, i64>(dim, x, y, product as i64, T::to_i64, step, O::from_i64)
    }
}

fn scan<T: Element, O: Element, A: Copy + Send + Sync>(
    dim: usize,
    x: &View<'_>,
    y: &Output,
    start: A,
    read: impl Fn(T) -> A + Sync,
    step: impl Fn(A, A) -> A + Sync,
    write: impl Fn(A) -> O + Sync,
) -> Result<()> {
    let shape = x.layout.shape();
    if shape[dim + 1..].iter().all(|&n| n == 1) {
        return scan_rows(
            x.layout,
            memory::input_ptr::<T>(x),
            dim,
            y,
            start,
            &|a, x| step(a, read(x)),
            &write,
        );
    }
    let (x, y) = (Dense::<T>::new(x)?, RowsMut::<O>::new(y));
    let (len, inner) = (shape[dim], shape[dim + 1..].iter().product::<usize>());
    let planes: usize = shape[..dim].iter().product();
    let blocks = inner.div_ceil(CHUNK);
    let grain = (GRAIN_MATH / (len * inner.min(CHUNK))).max(1);
    parallel::ranges(planes * blocks, grain, |tasks| {
        let mut sums = Space::<A>::new();
        for task in tasks {
            let col = task % blocks * CHUNK;
            let sums = sums.slice(CHUNK.min(inner - col));
            sums.fill(start);
            for row in 0..len {
                let at = (task / blocks * len + row) * inner + col;
                let x = &x.all()[at..at + sums.len()];
                // SAFETY: each task writes its own columns.
                let y = unsafe { y.part(at, sums.len()) };
                for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
                    *sum = step(*sum, read(*x));
                    *y = write(*sum);
                }
            }
        }
    });
    Ok(())
}

/// Rows that are scanned side by side: an addition takes four cycles, and none along a row can begin before the last one has ended.
/// Not more: rows that are a power of two apart share the few lines of one place in the cache (eight of 1024 floats take four times
/// as long as four).
const TOGETHER: usize = 4;

/// Scans along the dimension that `y` has its neighbours in. `x` is read where it lies, whatever its strides.
fn scan_rows<T: Element, O: Element, A: Copy + Send + Sync>(
    layout: &Layout,
    x: *const T,
    dim: usize,
    y: &Output,
    start: A,
    step: &(impl Fn(A, T) -> A + Sync),
    write: &(impl Fn(A) -> O + Sync),
) -> Result<()> {
    let (len, stride) = (layout.shape()[dim], layout.strides()[dim]);
    let rows = Layout::new((&layout.shape()[..dim]).into(), &layout.strides()[..dim], layout.offset());
    let (x, y) = (SyncPtr::new(x.cast_mut()), RowsMut::<O>::new(y));
    parallel::ranges(rows.numel(), (GRAIN_MATH / len).max(TOGETHER), |range| {
        let mut row = range.start;
        while row < range.end {
            let count = if range.end - row >= TOGETHER { TOGETHER } else { 1 };
            // SAFETY: each task writes its own rows.
            let y = unsafe { y.part(row * len, count * len) };
            // SAFETY: the elements of these rows of x, of which the first `count` are looked at.
            unsafe {
                if count == TOGETHER {
                    let x = std::array::from_fn(|r| x.at(position(&rows, row + r)).cast_const());
                    scan_together::<TOGETHER, _, _, _>(x, stride, len, y, start, step, write);
                } else {
                    let x = [x.at(position(&rows, row)).cast_const()];
                    scan_together::<1, _, _, _>(x, stride, len, y, start, step, write);
                }
            }
            row += count;
        }
    });
    Ok(())
}

/// # Safety
/// `len` elements lie `stride` apart from every `x` on; `y` has room for all of them.
#[inline(always)]
unsafe fn scan_together<const N: usize, T: Copy, O, A: Copy>(
    x: [*const T; N],
    stride: isize,
    len: usize,
    y: &mut [O],
    start: A,
    step: &impl Fn(A, T) -> A,
    write: &impl Fn(A) -> O,
) {
    let mut sums = [start; N];
    let y = &mut y[..N * len];
    for i in 0..len {
        for r in 0..N {
            // SAFETY: the caller's promise; `r * len + i < N * len`.
            unsafe {
                sums[r] = step(sums[r], *x[r].offset(i as isize * stride));
                *y.get_unchecked_mut(r * len + i) = write(sums[r]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Data, Draw, LAYS, run};
    use orkest_core::op::Cumulative;
    use orkest_core::{DType, Op};

    #[test]
    fn every_dimension_of_every_layout_follows_the_definition() {
        let mut draw = Draw(1);
        for shape in [[1, 1, 7], [3, 9, 5], [19, 40, 1], [2, 1030, 3], [70, 3, 200]] {
            for (dtype, kind) in [
                (DType::F32, Cumulative::Sum),
                (DType::F64, Cumulative::Prod),
                (DType::F16, Cumulative::Sum),
                (DType::I64, Cumulative::Sum),
                (DType::U8, Cumulative::Prod),
            ] {
                for (lay, dim) in LAYS.into_iter().flat_map(|lay| [0, 1, 2].map(|dim| (lay, dim))) {
                    let count: usize = shape.iter().product();
                    // Small whole numbers, and few factors of 2: exact in every dtype.
                    let x: Vec<f64> = (0..count)
                        .map(|i| match kind {
                            Cumulative::Sum => draw.below(2) as f64,
                            Cumulative::Prod => 1.0 + (draw.below(2) * (i % 64 == 0) as usize) as f64,
                        })
                        .collect();
                    let step: usize = shape[dim + 1..].iter().product();
                    let mut expected = x.clone();
                    for i in 0..count {
                        if !(i / step).is_multiple_of(shape[dim]) {
                            match kind {
                                Cumulative::Sum => expected[i] += expected[i - step],
                                Cumulative::Prod => expected[i] *= expected[i - step],
                            }
                        }
                    }
                    let out = if dtype.is_float() { dtype } else { DType::I64 };
                    let x = Data::laid(lay, dtype, &shape, &x);
                    let y = run(&Op::Cumulative(kind, dim), &[&x], &[(&shape, out)]).unwrap();
                    assert!(y[0].values() == expected, "{kind:?} {dtype} {lay:?} {shape:?} dim {dim}");
                }
            }
        }
    }
}
