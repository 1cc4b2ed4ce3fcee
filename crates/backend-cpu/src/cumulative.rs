//! Running sums and products.

use crate::chunks::{CHUNK, GRAIN_MATH, Space, Stored};
use crate::parallel;
use crate::rows::{Dense, RowsMut};
use orkest_core::op::Cumulative;
use orkest_core::{Category, DType, Element, Error, Output, Result, View, with_dtype};

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

fn run<T: Stored, O: Element>(kind: Cumulative, dim: usize, x: &View<'_>, y: &Output) -> Result<()> {
    // Floats run in f64 as in PyTorch, everything else in i64.
    match (kind, T::DTYPE.category()) {
        (Cumulative::Sum, Category::Float) => {
            scan::<T, O, f64>(dim, x, y, 0.0, T::to_f64, |a, x| a + x, O::from_f64)
        }
        (Cumulative::Prod, Category::Float) => {
            scan::<T, O, f64>(dim, x, y, 1.0, T::to_f64, |a, x| a * x, O::from_f64)
        }
        (Cumulative::Sum, _) => scan::<T, O, i64>(dim, x, y, 0, T::to_i64, i64::wrapping_add, O::from_i64),
        (Cumulative::Prod, _) => scan::<T, O, i64>(dim, x, y, 1, T::to_i64, i64::wrapping_mul, O::from_i64),
    }
}

fn scan<T: Stored, O: Element, A: Copy + Send + Sync>(
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
