//! Softmax and log-softmax along rows: one read for the maximum, one for the exponentials, one write.

use crate::chunks::GRAIN_MATH;
use crate::math::Float;
use crate::parallel;
use crate::rows::{Dense, Rows, RowsMut, map_and_sum, max_lanes, rows_of, sum_lanes, sum_of};
use crate::simd::simd_fn;
use orkest_core::{DType, Output, Result, View};

pub(crate) fn softmax(log: bool, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => forward::<f64>(log, inputs, outputs),
        _ => forward::<f32>(log, inputs, outputs),
    }
}

pub(crate) fn softmax_grad(log: bool, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => backward::<f64>(log, inputs, outputs),
        _ => backward::<f32>(log, inputs, outputs),
    }
}

fn forward<T: Float>(log: bool, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let (rows, width) = rows_of(&inputs[0]);
    let (x, y) = (Rows::<T>::new(&inputs[0])?, RowsMut::<T>::new(&outputs[0]));
    parallel::ranges(rows, (GRAIN_MATH / width).max(1), |range| {
        x.for_each(range, |i, x| {
            // SAFETY: every row belongs to one range.
            let y = unsafe { y.row(i, width) };
            if log { log_softmax_row(x, y) } else { softmax_row(x, y) }
        });
    });
    Ok(())
}

fn backward<T: Float>(log: bool, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let (rows, width) = rows_of(&inputs[0]);
    let (y, g) = (Dense::<T>::new(&inputs[0])?, Rows::<T>::new(&inputs[1])?);
    let dx = RowsMut::<T>::new(&outputs[0]);
    parallel::ranges(rows, (GRAIN_MATH / width).max(1), |range| {
        g.for_each(range, |i, g| {
            let y = y.row(i, width);
            // SAFETY: every row belongs to one range.
            let dx = unsafe { dx.row(i, width) };
            if log { log_softmax_grad_row(y, g, dx) } else { softmax_grad_row(y, g, dx) }
        });
    });
    Ok(())
}

simd_fn! {
    /// A NaN or an infinite maximum makes the sum NaN, and so the whole row.
    pub(crate) fn softmax_row<S: Simd, T: Float>(x: &[T], y: &mut [T]) {
        let max = max_lanes(x);
        let scale = T::ONE / map_and_sum(y, [x], |_, [x]| (x - max).exp::<S>());
        for y in y.iter_mut() {
            *y = *y * scale;
        }
    }

    fn log_softmax_row<S: Simd, T: Float>(x: &[T], y: &mut [T]) {
        let max = max_lanes(x);
        let log = sum_lanes([x], |sum, [x]| sum + (x - max).exp::<S>()).ln::<S>();
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (x - max) - log;
        }
    }

    fn softmax_grad_row<S: Simd, T: Float>(y: &[T], g: &[T], dx: &mut [T]) {
        let dot = sum_lanes([y, g], |sum, [y, g]| y.mul_add::<S>(g, sum));
        for ((dx, &y), &g) in dx.iter_mut().zip(y).zip(g) {
            *dx = (g - dot) * y;
        }
    }

    fn log_softmax_grad_row<S: Simd, T: Float>(y: &[T], g: &[T], dx: &mut [T]) {
        let sum = sum_of(g);
        for ((dx, &y), &g) in dx.iter_mut().zip(y).zip(g) {
            *dx = g - y.exp::<S>() * sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Data, Draw, LAYS, assert_close, run};
    use orkest_core::{DType, Op};

    fn definition(x: &[f64], width: usize, log: bool) -> Vec<f64> {
        x.chunks(width)
            .flat_map(|row| {
                let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
                row.iter()
                    .map(move |v| if log { v - max - sum.ln() } else { (v - max).exp() / sum })
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn rows_of_every_width_and_layout_are_normalised() {
        let mut draw = Draw(1);
        for width in [1, 2, 7, 64, 65, 300] {
            let x: Vec<f64> = draw.values(5 * width).iter().map(|v| v * 20.0).collect();
            for (log, lay, dtype) in
                [false, true].into_iter().flat_map(|log| LAYS.map(|lay| (log, lay, DType::F32)))
            {
                let out = run(
                    &Op::Softmax { log },
                    &[&Data::laid(lay, dtype, &[5, width], &x)],
                    &[(&[5, width], dtype)],
                );
                let x32: Vec<f64> = x.iter().map(|&v| v as f32 as f64).collect();
                assert_close(
                    &out.unwrap()[0].values(),
                    &definition(&x32, width, log),
                    3e-6,
                    &format!("{width} {log} {lay:?}"),
                );
            }
            let out = run(
                &Op::Softmax { log: false },
                &[&Data::new(DType::F64, &[5, width], &x)],
                &[(&[5, width], DType::F64)],
            );
            assert_close(&out.unwrap()[0].values(), &definition(&x, width, false), 1e-14, "f64");
        }
    }

    #[test]
    fn rows_that_lie_side_by_side_are_normalised() {
        let mut draw = Draw(3);
        for (planes, width, height) in [(1, 3, 16), (3, 5, 37), (2, 64, 130)] {
            let shape = [planes, height, width];
            let (x, g) = (draw.values(planes * width * height), draw.values(planes * width * height));
            // The same numbers, as the transpose of a tensor whose last dimension runs over the rows.
            let turned = |values: &[f64]| {
                let at = |i: usize| (i / (width * height), i / height % width, i % height);
                let moved: Vec<f64> = (0..values.len())
                    .map(at)
                    .map(|(plane, column, row)| values[(plane * height + row) * width + column])
                    .collect();
                let mut data = Data::new(DType::F64, &[planes, width, height], &moved);
                data.layout = data.layout.transpose(1, 2);
                data
            };
            for log in [false, true] {
                let y = definition(&x, width, log);
                let out = run(&Op::Softmax { log }, &[&turned(&x)], &[(&shape, DType::F64)]).unwrap();
                assert_close(&out[0].values(), &y, 1e-14, &format!("{shape:?} {log}"));
                let y = Data::new(DType::F64, &shape, &y);
                let outputs: [(&[usize], DType); 1] = [(&shape, DType::F64)];
                let dense = Data::new(DType::F64, &shape, &g);
                let expected = run(&Op::SoftmaxGrad { log }, &[&y, &dense], &outputs).unwrap();
                let dx = run(&Op::SoftmaxGrad { log }, &[&y, &turned(&g)], &outputs).unwrap();
                assert!(dx[0].values() == expected[0].values(), "{shape:?} {log}");
            }
        }
    }

    #[test]
    fn a_row_without_a_finite_number_is_nan() {
        let inf = f64::INFINITY;
        let x = Data::new(DType::F32, &[3, 2], &[-inf, -inf, 1.0, f64::NAN, -inf, 0.0]);
        let y = run(&Op::Softmax { log: false }, &[&x], &[(&[3, 2], DType::F32)]).unwrap()[0].values();
        assert!(y[..4].iter().all(|v| v.is_nan()));
        assert_eq!(y[4..], [0.0, 1.0]);
    }

    #[test]
    fn gradients_follow_the_formula() {
        let mut draw = Draw(2);
        let (width, shape) = (37, [4, 37]);
        let (x, g) = (draw.values(4 * width), draw.values(4 * width));
        for log in [false, true] {
            let y = definition(&x, width, log);
            let expected: Vec<f64> = (0..4 * width)
                .map(|i| {
                    let row = i / width * width..(i / width + 1) * width;
                    match log {
                        true => g[i] - y[i].exp() * g[row].iter().sum::<f64>(),
                        false => y[i] * (g[i] - row.map(|j| y[j] * g[j]).sum::<f64>()),
                    }
                })
                .collect();
            for lay in LAYS {
                let inputs = [&Data::new(DType::F64, &shape, &y), &Data::laid(lay, DType::F64, &shape, &g)];
                let dx = run(&Op::SoftmaxGrad { log }, &inputs, &[(&shape, DType::F64)]).unwrap();
                assert_close(&dx[0].values(), &expected, 1e-14, "gradient");
            }
        }
    }
}
