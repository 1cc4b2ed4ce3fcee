//! Layer norm and RMS norm of rows, and their gradients in one pass each.
//!
//! The gradients of weight and bias are sums over all rows: every block of a fixed number of rows makes a partial sum, and these
//! are added in order, so that the result does not depend on the number of threads.

use crate::chunks::GRAIN_MATH;
use crate::math::Float;
use crate::memory::Scratch;
use crate::parallel;
use crate::rows::{Dense, RowsMut, add_into, map_and_sum, rows_of, sum_lanes, sum_of};
use crate::simd::simd_fn;
use orkest_core::{DType, Output, Result, View};

pub(crate) fn layer_norm(
    eps: f64,
    weight: bool,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => layer_norm_as::<f64>(eps, weight, bias, inputs, outputs),
        _ => layer_norm_as::<f32>(eps, weight, bias, inputs, outputs),
    }
}

pub(crate) fn layer_norm_grad(weight: bool, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => layer_norm_grad_as::<f64>(weight, inputs, outputs),
        _ => layer_norm_grad_as::<f32>(weight, inputs, outputs),
    }
}

pub(crate) fn rms_norm(eps: f64, weight: bool, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => rms_norm_as::<f64>(eps, weight, inputs, outputs),
        _ => rms_norm_as::<f32>(eps, weight, inputs, outputs),
    }
}

pub(crate) fn rms_norm_grad(weight: bool, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => rms_norm_grad_as::<f64>(weight, inputs, outputs),
        _ => rms_norm_grad_as::<f32>(weight, inputs, outputs),
    }
}

/// The weight or bias of the norm, if there is one: the next of `inputs`.
fn next_of<T: Float>(inputs: &mut std::slice::Iter<'_, View<'_>>, there: bool) -> Result<Option<Dense<T>>> {
    if there { inputs.next().map(Dense::new).transpose() } else { Ok(None) }
}

fn layer_norm_as<T: Float>(
    eps: f64,
    weight: bool,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let (rows, width) = rows_of(&inputs[0]);
    let x = Dense::<T>::new(&inputs[0])?;
    let mut rest = inputs[1..].iter();
    let (weight, bias) = (next_of::<T>(&mut rest, weight)?, next_of::<T>(&mut rest, bias)?);
    let (weight, bias) = (weight.as_ref().map(Dense::all), bias.as_ref().map(Dense::all));
    let [y, means, rstds] = [0, 1, 2].map(|i| RowsMut::<T>::new(&outputs[i]));
    parallel::ranges(rows, (GRAIN_MATH / width).max(1), |range| {
        for i in range {
            let row = x.row(i, width);
            let (mean, variance) = moments(row);
            let rstd = T::ONE / (variance + T::from_f64(eps)).sqrt();
            // SAFETY: every row belongs to one range.
            unsafe {
                (means.row(i, 1)[0], rstds.row(i, 1)[0]) = (mean, rstd);
                scale_and_shift(row, mean, rstd, weight, bias, y.row(i, width));
            }
        }
    });
    Ok(())
}

fn layer_norm_grad_as<T: Float>(weight: bool, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let (rows, width) = rows_of(&inputs[0]);
    let [x, mean, rstd] = [0, 1, 2].map(|i| Dense::<T>::new(&inputs[i]));
    let (x, mean, rstd) = (x?, mean?, rstd?);
    let mut rest = inputs[3..].iter();
    let weight = next_of::<T>(&mut rest, weight)?;
    let g = Dense::<T>::new(&inputs[inputs.len() - 1])?;
    let dx = RowsMut::<T>::new(&outputs[0]);
    let weight = weight.as_ref().map(Dense::all);
    gradient_rows(rows, width, &outputs[1..], |i, sums| {
        let (row, g, mean, rstd) = (x.row(i, width), g.row(i, width), mean.all()[i], rstd.all()[i]);
        // SAFETY: every row belongs to one task.
        let dx = unsafe { dx.row(i, width) };
        layer_norm_grad_row(row, mean, rstd, weight, g, dx);
        if let [dw, db] = sums {
            add_products(row, mean, rstd, g, dw);
            add_into(g, db);
        }
    })
}

fn rms_norm_as<T: Float>(eps: f64, weight: bool, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let (rows, width) = rows_of(&inputs[0]);
    let x = Dense::<T>::new(&inputs[0])?;
    let weight = next_of::<T>(&mut inputs[1..].iter(), weight)?;
    let weight = weight.as_ref().map(Dense::all);
    let [y, rrms] = [0, 1].map(|i| RowsMut::<T>::new(&outputs[i]));
    parallel::ranges(rows, (GRAIN_MATH / width).max(1), |range| {
        for i in range {
            let row = x.row(i, width);
            let scale = T::ONE / (mean_square(row) + T::from_f64(eps)).sqrt();
            // SAFETY: every row belongs to one range.
            unsafe {
                rrms.row(i, 1)[0] = scale;
                scale_and_shift(row, T::ZERO, scale, weight, None, y.row(i, width));
            }
        }
    });
    Ok(())
}

fn rms_norm_grad_as<T: Float>(weight: bool, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let (rows, width) = rows_of(&inputs[0]);
    let (x, rrms) = (Dense::<T>::new(&inputs[0])?, Dense::<T>::new(&inputs[1])?);
    let weight = next_of::<T>(&mut inputs[2..].iter(), weight)?;
    let g = Dense::<T>::new(&inputs[inputs.len() - 1])?;
    let dx = RowsMut::<T>::new(&outputs[0]);
    let weight = weight.as_ref().map(Dense::all);
    gradient_rows(rows, width, &outputs[1..], |i, sums| {
        let (row, g, rrms) = (x.row(i, width), g.row(i, width), rrms.all()[i]);
        // SAFETY: every row belongs to one task.
        let dx = unsafe { dx.row(i, width) };
        rms_norm_grad_row(row, rrms, weight, g, dx);
        if let [dw] = sums {
            add_products(row, T::ZERO, rrms, g, dw);
        }
    })
}

/// Runs `f(row, partial sums)` on all rows and adds the partial sums of all blocks up into `sums`, outputs of `[width]`.
pub(crate) fn gradient_rows<T: Float>(
    rows: usize,
    width: usize,
    sums: &[Output],
    f: impl Fn(usize, &mut [&mut [T]]) + Sync,
) -> Result<()> {
    /// At most this many blocks, whatever the number of rows: the partial sums stay small.
    const BLOCKS: usize = 64;
    let per_block = rows.div_ceil(BLOCKS).max((GRAIN_MATH / width).max(1));
    let blocks = rows.div_ceil(per_block);
    let stride = width * sums.len();
    let partial = Scratch::<T>::new(blocks * stride)?;
    let start = partial.sync_ptr();
    parallel::for_each(blocks, |block| {
        // SAFETY: the block's own part of the scratch, zeroed before it is read; all-zero bits are 0.0.
        let part = unsafe {
            let part = start.at((block * stride) as isize);
            part.write_bytes(0, stride);
            std::slice::from_raw_parts_mut(part, stride)
        };
        let mut part: Vec<&mut [T]> = part.chunks_exact_mut(width).collect();
        for row in block * per_block..((block + 1) * per_block).min(rows) {
            f(row, &mut part);
        }
    });
    for (k, output) in sums.iter().enumerate() {
        let total = RowsMut::<T>::new(output);
        // SAFETY: the only use of this output; every block has written its part of the scratch.
        let (total, partial) =
            unsafe { (total.part(0, width), std::slice::from_raw_parts(start.get(), blocks * stride)) };
        total.fill(T::ZERO);
        for block in 0..blocks {
            add_into(&partial[block * stride + k * width..][..width], total);
        }
    }
    Ok(())
}

simd_fn! {
    /// Mean and (biased) variance, the variance from the distances: two passes over a row that the first brings into the cache.
    fn moments<S: Simd, T: Float>(x: &[T]) -> (T, T) {
        let n = T::from_f64(x.len() as f64);
        let mean = sum_of(x) / n;
        let squares = sum_lanes([x], |sum, [x]| (x - mean).mul_add::<S>(x - mean, sum));
        (mean, squares / n)
    }

    fn mean_square<S: Simd, T: Float>(x: &[T]) -> T {
        sum_lanes([x], |sum, [x]| x.mul_add::<S>(x, sum)) / T::from_f64(x.len() as f64)
    }

    /// `y = (x - mean) scale weight + bias`
    fn scale_and_shift<S: Simd, T: Float>(x: &[T], mean: T, scale: T, weight: Option<&[T]>, bias: Option<&[T]>, y: &mut [T]) {
        match (weight, bias) {
            (Some(w), Some(b)) => {
                for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
                    *y = ((x - mean) * scale).mul_add::<S>(w, b);
                }
            }
            (Some(w), None) => {
                for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                    *y = (x - mean) * scale * w;
                }
            }
            (None, b) => {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = (x - mean) * scale;
                }
                for (y, &b) in y.iter_mut().zip(b.unwrap_or(&[])) {
                    *y = *y + b;
                }
            }
        }
    }

    /// `dx = rstd (gw - mean(gw) - x̂ mean(gw x̂))` with `gw = g weight` and `x̂ = (x - mean) rstd`.
    fn layer_norm_grad_row<S: Simd, T: Float>(x: &[T], mean: T, rstd: T, weight: Option<&[T]>, g: &[T], dx: &mut [T]) {
        let n = T::from_f64(x.len() as f64);
        let average = scaled(g, weight, dx) / n;
        let slope = sum_lanes([&*dx, x], |sum, [gw, x]| gw.mul_add::<S>(x - mean, sum)) * rstd / n;
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = rstd * (*dx - average - (x - mean) * rstd * slope);
        }
    }

    /// `dx = rrms (gw - x̂ mean(gw x̂))` with `gw = g weight` and `x̂ = x rrms`.
    fn rms_norm_grad_row<S: Simd, T: Float>(x: &[T], rrms: T, weight: Option<&[T]>, g: &[T], dx: &mut [T]) {
        scaled(g, weight, dx);
        let slope = sum_lanes([&*dx, x], |sum, [gw, x]| gw.mul_add::<S>(x, sum)) * rrms / T::from_f64(x.len() as f64);
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = rrms * (*dx - x * rrms * slope);
        }
    }

    /// `sum += g x̂`
    fn add_products<S: Simd, T: Float>(x: &[T], mean: T, scale: T, g: &[T], sum: &mut [T]) {
        for ((sum, &x), &g) in sum.iter_mut().zip(x).zip(g) {
            *sum = g.mul_add::<S>((x - mean) * scale, *sum);
        }
    }
}

/// `y = g weight`, and its sum.
#[inline(always)]
fn scaled<T: Float>(g: &[T], weight: Option<&[T]>, y: &mut [T]) -> T {
    match weight {
        Some(w) => map_and_sum(y, [g, w], |_, [g, w]| g * w),
        None => map_and_sum(y, [g], |_, [g]| g),
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Data, Draw, LAYS, Lay, assert_close, run};
    use orkest_core::{DType, Op};

    const N: usize = 5;

    /// `Σ g · norm(x)` for finite differences.
    fn objective(x: &[f64], w: &[f64], b: &[f64], g: &[f64], eps: f64, centre: bool) -> f64 {
        let d = w.len();
        let mut total = 0.0;
        for (i, row) in x.chunks(d).enumerate() {
            let mean = if centre { row.iter().sum::<f64>() / d as f64 } else { 0.0 };
            let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
            for j in 0..d {
                total += g[i * d + j] * ((row[j] - mean) / (var + eps).sqrt() * w[j] + b[j]);
            }
        }
        total
    }

    fn differences(values: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        (0..values.len())
            .map(|i| {
                let shifted = |by: f64| {
                    let mut v = values.to_vec();
                    v[i] += by;
                    f(&v)
                };
                (shifted(1e-5) - shifted(-1e-5)) / 2e-5
            })
            .collect()
    }

    #[test]
    fn norms_and_their_gradients_follow_the_definition() {
        let mut draw = Draw(4);
        for (d, lay) in [3, 64, 70].into_iter().flat_map(|d| LAYS.map(|lay| (d, lay))) {
            let (x, w, b, g) = (draw.values(N * d), draw.values(d), draw.values(d), draw.values(N * d));
            let make = |shape: &[usize], v: &[f64]| Data::laid(lay, DType::F64, shape, v);
            let (xs, ws, bs, gs) = (make(&[N, d], &x), make(&[d], &w), make(&[d], &b), make(&[N, d], &g));
            let zeros = vec![0.0; d];
            let row = (&[N, 1][..], DType::F64);
            let full = (&[N, d][..], DType::F64);
            let param = (&[d][..], DType::F64);

            let out = run(
                &Op::LayerNorm { eps: 1e-3, weight: true, bias: true },
                &[&xs, &ws, &bs],
                &[full, row, row],
            )
            .unwrap();
            let total: f64 = out[0].values().iter().zip(&g).map(|(y, g)| y * g).sum();
            assert_close(&[total], &[objective(&x, &w, &b, &g, 1e-3, true)], 1e-12, "layer norm");
            let grads = run(
                &Op::LayerNormGrad { weight: true },
                &[&xs, &out[1], &out[2], &ws, &gs],
                &[full, param, param],
            )
            .unwrap();
            assert_close(
                &grads[0].values(),
                &differences(&x, |x| objective(x, &w, &b, &g, 1e-3, true)),
                1e-6,
                "dx",
            );
            assert_close(
                &grads[1].values(),
                &differences(&w, |w| objective(&x, w, &b, &g, 1e-3, true)),
                1e-6,
                "dw",
            );
            assert_close(
                &grads[2].values(),
                &differences(&b, |b| objective(&x, &w, b, &g, 1e-3, true)),
                1e-6,
                "db",
            );

            let out = run(&Op::RmsNorm { eps: 1e-3, weight: true }, &[&xs, &ws], &[full, row]).unwrap();
            let total: f64 = out[0].values().iter().zip(&g).map(|(y, g)| y * g).sum();
            assert_close(&[total], &[objective(&x, &w, &zeros, &g, 1e-3, false)], 1e-12, "rms norm");
            let grads =
                run(&Op::RmsNormGrad { weight: true }, &[&xs, &out[1], &ws, &gs], &[full, param]).unwrap();
            assert_close(
                &grads[0].values(),
                &differences(&x, |x| objective(x, &w, &zeros, &g, 1e-3, false)),
                1e-6,
                "dx",
            );
            assert_close(
                &grads[1].values(),
                &differences(&w, |w| objective(&x, w, &zeros, &g, 1e-3, false)),
                1e-6,
                "dw",
            );
        }
    }

    #[test]
    fn many_rows_sum_up_in_blocks() {
        let (n, d) = (3000, 8);
        let x = Draw(5).values(n * d);
        let (xs, ones) = (
            Data::new(DType::F32, &[n, d], &x),
            Data::laid(Lay::Contiguous, DType::F32, &[d], &vec![1.0; d]),
        );
        let (full, row) = ((&[n, d][..], DType::F32), (&[n, 1][..], DType::F32));
        let out =
            run(&Op::LayerNorm { eps: 1e-5, weight: false, bias: false }, &[&xs], &[full, row, row]).unwrap();
        let param = (&[d][..], DType::F32);
        let grads = run(
            &Op::LayerNormGrad { weight: true },
            &[&xs, &out[1], &out[2], &ones, &xs],
            &[full, param, param],
        );
        let expected: Vec<f64> = (0..d).map(|j| (0..n).map(|i| x[i * d + j] as f32 as f64).sum()).collect();
        assert_close(&grads.unwrap()[2].values(), &expected, 1e-5, "bias gradient");
    }
}
