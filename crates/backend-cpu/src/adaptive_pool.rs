//! The largest elements of windows that follow from the sizes before and after.

use crate::chunks::GRAIN_MATH;
use crate::math::Float;
use crate::parallel;
use crate::rows::{Dense, RowsMut};
use orkest_core::op::{Axis, Filter};
use orkest_core::{DType, Output, Result, View};
use std::ops::Range;

/// [`orkest_core::Op::AdaptiveMaxPool`]
pub(crate) fn adaptive_max_pool(
    output: [usize; 2],
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => planes::<f64>(output, inputs, outputs),
        _ => planes::<f32>(output, inputs, outputs),
    }
}

fn planes<T: Float>(output: [usize; 2], inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let [n, channels, height, width] = **inputs[0].layout.shape() else {
        unreachable!("the input is [n, c, h, w]")
    };
    let windows = |input, output| -> Vec<Range<usize>> {
        let axis = Axis { input, output, filter: Filter::Mean };
        (0..output).map(|i| axis.window(i)).collect()
    };
    let (rows, columns) = (windows(height, output[0]), windows(width, output[1]));
    let x = Dense::<T>::new(&inputs[0])?;
    let (y, positions) = (RowsMut::<T>::new(&outputs[0]), RowsMut::<i64>::new(&outputs[1]));
    let (from, to) = (height * width, output[0] * output[1]);
    parallel::ranges(n * channels, GRAIN_MATH.div_ceil(from.max(to)), |range| {
        for i in range {
            // SAFETY: every plane belongs to one range.
            let (y, positions) = unsafe { (y.row(i, to), positions.row(i, to)) };
            let all = rows.iter().flat_map(|rows| columns.iter().map(move |columns| (rows, columns)));
            for ((y, position), (rows, columns)) in y.iter_mut().zip(positions).zip(all) {
                let (largest, at) = largest(x.row(i, from), width, rows, columns);
                (*y, *position) = (largest, at as i64);
            }
        }
    });
    Ok(())
}

/// The largest element of a window and its position; NaN is larger than everything, and of equal ones the first wins.
#[inline(always)]
fn largest<T: Float>(plane: &[T], width: usize, rows: &Range<usize>, columns: &Range<usize>) -> (T, usize) {
    let (mut best, mut at) = (-T::INFINITY, rows.start * width + columns.start);
    for row in rows.clone() {
        let first = row * width + columns.start;
        for (j, &value) in plane[first..][..columns.len()].iter().enumerate() {
            let larger = value > best || value.partial_cmp(&value).is_none();
            at = if larger { first + j } else { at };
            best = if larger { value } else { best };
        }
    }
    (best, at)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Data, Draw, LAYS, assert_close, run};
    use orkest_core::{DType, Op};

    #[test]
    fn windows_reach_from_floor_to_ceiling() {
        let mut draw = Draw(5);
        for ([height, width], output) in
            [([1, 1], [1, 1]), ([7, 7], [1, 1]), ([5, 4], [2, 3]), ([9, 6], [4, 6]), ([2, 3], [5, 4])]
        {
            let (shape, after) = ([2, 3, height, width], [2, 3, output[0], output[1]]);
            let mut values = draw.values(shape.iter().product());
            values[height * width / 2] = f64::NAN;
            values[height * width..2 * height * width].fill(f64::NEG_INFINITY);
            let (mut maxima, mut places) = (Vec::new(), Vec::new());
            for plane in values.chunks(height * width) {
                for i in 0..output[0] {
                    for j in 0..output[1] {
                        let rows = i * height / output[0]..((i + 1) * height).div_ceil(output[0]);
                        let columns = j * width / output[1]..((j + 1) * width).div_ceil(output[1]);
                        let cells = || rows.clone().flat_map(|r| columns.clone().map(move |c| r * width + c));
                        let nan = cells().find(|&cell| plane[cell].is_nan());
                        let first = cells().next().unwrap();
                        let best = cells().fold(first, |a, b| if plane[b] > plane[a] { b } else { a });
                        places.push(nan.unwrap_or(best) as f64);
                        maxima.push(plane[nan.unwrap_or(best)]);
                    }
                }
            }
            for dtype in [DType::F32, DType::F64] {
                for lay in LAYS {
                    let x = Data::laid(lay, dtype, &shape, &values);
                    let outputs: [(&[usize], DType); 2] = [(&after, dtype), (&after, DType::I64)];
                    let got = run(&Op::AdaptiveMaxPool { output }, &[&x], &outputs).unwrap();
                    assert_close(&got[0].values(), &maxima, 0.0, &format!("{shape:?} {lay:?}"));
                    assert_close(&got[1].values(), &places, 0.0, &format!("positions, {shape:?} {lay:?}"));
                }
            }
        }
    }
}
