//! Cross-entropy of rows of logits and class numbers, without storing the probabilities.

use crate::chunks::GRAIN_MATH;
use crate::math::Float;
use crate::parallel;
use crate::rows::{Dense, RowsMut, max_lanes, rows_of, sum_lanes, sum_of};
use crate::simd::simd_fn;
use orkest_core::{DType, Error, Output, Result, View};

pub(crate) fn cross_entropy(
    ignore: i64,
    smoothing: f64,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => forward::<f64>(ignore, smoothing, inputs, outputs),
        _ => forward::<f32>(ignore, smoothing, inputs, outputs),
    }
}

pub(crate) fn cross_entropy_grad(
    ignore: i64,
    smoothing: f64,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => backward::<f64>(ignore, smoothing, inputs, outputs),
        _ => backward::<f32>(ignore, smoothing, inputs, outputs),
    }
}

fn forward<T: Float>(ignore: i64, smoothing: f64, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let (rows, classes) = rows_of(&inputs[0]);
    let (x, target) = (Dense::<T>::new(&inputs[0])?, Dense::<i64>::new(&inputs[1])?);
    let outside = |t: i64| t != ignore && !(0..classes as i64).contains(&t);
    if let Some(&index) = target.all().iter().find(|&&t| outside(t)) {
        return Err(Error::IndexOutOfRange { op: "cross_entropy", index, size: classes, at: None });
    }
    let (losses, lses) = (RowsMut::<T>::new(&outputs[0]), RowsMut::<T>::new(&outputs[1]));
    let (hit, spread) = (T::from_f64(1.0 - smoothing), T::from_f64(smoothing));
    parallel::ranges(rows, (GRAIN_MATH / classes).max(1), |range| {
        for i in range {
            let (row, target) = (x.row(i, classes), target.all()[i]);
            let lse = log_sum_exp(row);
            let mut loss = T::ZERO;
            if target != ignore {
                loss = (lse - row[target as usize]) * hit;
                if smoothing > 0.0 {
                    loss = loss + (lse - mean(row)) * spread;
                }
            }
            // SAFETY: every row belongs to one range.
            unsafe { (losses.row(i, 1)[0], lses.row(i, 1)[0]) = (loss, lse) };
        }
    });
    Ok(())
}

fn backward<T: Float>(
    ignore: i64,
    smoothing: f64,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let (rows, classes) = rows_of(&inputs[0]);
    let (x, target) = (Dense::<T>::new(&inputs[0])?, Dense::<i64>::new(&inputs[1])?);
    let (lse, grad) = (Dense::<T>::new(&inputs[2])?, Dense::<T>::new(&inputs[3])?);
    let dx = RowsMut::<T>::new(&outputs[0]);
    let (hit, spread) = (T::from_f64(1.0 - smoothing), T::from_f64(smoothing / classes as f64));
    parallel::ranges(rows, (GRAIN_MATH / classes).max(1), |range| {
        for i in range {
            let (target, g) = (target.all()[i], grad.all()[i]);
            // SAFETY: every row belongs to one range.
            let dx = unsafe { dx.row(i, classes) };
            if target == ignore {
                dx.fill(T::ZERO);
                continue;
            }
            probabilities_less(x.row(i, classes), lse.all()[i], spread, g, dx);
            let at = target as usize;
            dx[at] = dx[at] - hit * g;
        }
    });
    Ok(())
}

simd_fn! {
    fn log_sum_exp<S: Simd, T: Float>(x: &[T]) -> T {
        let max = max_lanes(x);
        sum_lanes([x], |sum, [x]| sum + (x - max).exp::<S>()).ln::<S>() + max
    }

    fn mean<S: Simd, T: Float>(x: &[T]) -> T {
        sum_of(x) / T::from_f64(x.len() as f64)
    }

    /// `dx = (exp(x - lse) - spread) g`
    fn probabilities_less<S: Simd, T: Float>(x: &[T], lse: T, spread: T, g: T, dx: &mut [T]) {
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = ((x - lse).exp::<S>() - spread) * g;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Data, Draw, LAYS, assert_close, run};
    use orkest_core::{DType, Error, Op};

    #[test]
    fn losses_and_gradients_follow_the_definition() {
        let mut draw = Draw(3);
        let (n, c) = (6, 11);
        let x: Vec<f64> = draw.values(n * c).iter().map(|v| v * 5.0).collect();
        let g = draw.values(n);
        let target = [3.0, 0.0, 10.0, -100.0, 3.0, 7.0];
        for (smoothing, lay) in [0.0, 0.1].into_iter().flat_map(|s| LAYS.map(|lay| (s, lay))) {
            let (ignore_index, label_smoothing) = (-100, smoothing);
            let (mut losses, mut lses, mut dx) = (vec![], vec![], vec![]);
            for (i, row) in x.chunks(c).enumerate() {
                let lse = row.iter().map(|v| v.exp()).sum::<f64>().ln();
                let weight = |j: usize| {
                    let hit = if j as f64 == target[i] { 1.0 - smoothing } else { 0.0 };
                    if target[i] < 0.0 { 0.0 } else { hit + smoothing / c as f64 }
                };
                losses.push((0..c).map(|j| weight(j) * (lse - row[j])).sum::<f64>());
                lses.push(lse);
                let total: f64 = (0..c).map(weight).sum();
                dx.extend((0..c).map(|j| (total * (row[j] - lse).exp() - weight(j)) * g[i]));
            }
            let logits = Data::laid(lay, DType::F64, &[n, c], &x);
            let target = Data::laid(lay, DType::I64, &[n], &target);
            let op = Op::CrossEntropy { ignore_index, label_smoothing };
            let out = run(&op, &[&logits, &target], &[(&[n], DType::F64), (&[n], DType::F64)]).unwrap();
            assert_close(&out[0].values(), &losses, 1e-13, "losses");
            assert_close(&out[1].values(), &lses, 1e-13, "log-sum-exp");
            let op = Op::CrossEntropyGrad { ignore_index, label_smoothing };
            let g = Data::laid(lay, DType::F64, &[n], &g);
            let got = run(&op, &[&logits, &target, &out[1], &g], &[(&[n, c], DType::F64)]).unwrap();
            assert_close(&got[0].values(), &dx, 1e-13, "gradient");
        }
    }

    #[test]
    fn a_class_that_is_not_there_is_an_error() {
        let (x, t) = (Data::new(DType::F32, &[1, 2], &[0.0, 0.0]), Data::new(DType::I64, &[1], &[2.0]));
        let op = Op::CrossEntropy { ignore_index: -100, label_smoothing: 0.0 };
        let error = run(&op, &[&x, &t], &[(&[1], DType::F32), (&[1], DType::F32)]).err();
        assert_eq!(error, Some(Error::IndexOutOfRange { op: "cross_entropy", index: 2, size: 2, at: None }));
    }
}
