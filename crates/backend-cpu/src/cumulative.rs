//! Running sums and products.

use crate::chunks::{CHUNK, GRAIN_MATH, Space};
use crate::parallel;
use crate::rows::{Dense, RowsMut};
use orkest_core::op::Cumulative;
use orkest_core::{DType, Element, Error, Output, Result, View, with_dtype};

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
