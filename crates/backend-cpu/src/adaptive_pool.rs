//! The largest elements of windows that follow from the sizes before and after.

use crate::chunks::GRAIN_MATH;
use crate::gemm::{Real, Tiles};
use crate::math::Float;
use crate::parallel;
use crate::rows::{Dense, RowsMut};
use crate::simd::simd_fn;
use orkest_core::op::{Axis, Filter};
use orkest_core::{DType, Output, Result, View};
use std::ops::Range;

/// Planes that are turned over such that each is a lane: a comparison then is one for all of them.
const LANES: usize = 16;
/// Elements of planes for which that stays in a cache.
const SMALL: usize = 4096;

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

fn planes<T: Float + Real>(output: [usize; 2], inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
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
    if n * channels >= LANES && from <= SMALL {
        side_by_side(n * channels, width, &rows, &columns, &x, &y, &positions);
        return Ok(());
    }
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

/// At least [`LANES`] small planes, so many at a time.
fn side_by_side<T: Float + Real>(
    count: usize,
    width: usize,
    rows: &[Range<usize>],
    columns: &[Range<usize>],
    x: &Dense<T>,
    y: &RowsMut<T>,
    positions: &RowsMut<i64>,
) {
    /// Elements that turning planes over may write too much.
    const SLACK: usize = 8;
    let (from, to) = (x.all().len() / count, rows.len() * columns.len());
    let tiles = Tiles::<T>::new();
    let grain = GRAIN_MATH.div_ceil(from.max(to) * LANES);
    parallel::ranges(count.div_ceil(LANES), grain, |groups| {
        let mut turned = vec![T::ZERO; from * LANES + SLACK];
        for group in groups {
            // The last group overlaps the one before, whose planes are left to that.
            let first = (group * LANES).min(count - LANES);
            let mine = group * LANES - first..LANES;
            let planes = &x.all()[first * from..][..LANES * from];
            // SAFETY: so many planes, and room for them.
            unsafe { tiles.transpose(from, LANES, planes.as_ptr(), from, turned.as_mut_ptr()) };
            let windows = rows.iter().flat_map(|rows| columns.iter().map(move |columns| (rows, columns)));
            for (window, (rows, columns)) in windows.enumerate() {
                let (mut best, mut places) = ([T::ZERO; LANES], [0; LANES]);
                largest_of_each(&turned, width, rows, columns, &mut best, &mut places);
                for lane in mine.clone() {
                    let at = (first + lane) * to + window;
                    // SAFETY: every plane belongs to one group.
                    unsafe {
                        y.row(at, 1)[0] = best[lane];
                        positions.row(at, 1)[0] = places[lane].into();
                    }
                }
            }
        }
    });
}

simd_fn! {
    /// [`largest`] of [`LANES`] planes, each a lane.
    fn largest_of_each<S: Simd, T: Float>(
        planes: &[T],
        width: usize,
        rows: &Range<usize>,
        columns: &Range<usize>,
        best: &mut [T; LANES],
        places: &mut [i32; LANES]
    ) {
        let (mut largest, mut at) = ([-T::INFINITY; LANES], [(rows.start * width + columns.start) as i32; LANES]);
        let cells = planes.as_chunks::<LANES>().0;
        for row in rows.clone() {
            for column in columns.clone() {
                let place = row * width + column;
                let values = &cells[place];
                for lane in 0..LANES {
                    let value = values[lane];
                    let larger = value > largest[lane] || value.partial_cmp(&value).is_none();
                    at[lane] = if larger { place as i32 } else { at[lane] };
                    largest[lane] = if larger { value } else { largest[lane] };
                }
            }
        }
        (*best, *places) = (largest, at);
    }
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
    use crate::simd::for_each_level;
    use crate::testing::{Data, Draw, LAYS, assert_close, run};
    use orkest_core::{DType, Op};

    #[test]
    fn windows_reach_from_floor_to_ceiling() {
        for_each_level(|_| windows_are_right());
    }

    fn windows_are_right() {
        let mut draw = Draw(5);
        for ([height, width], output) in
            [([1, 1], [1, 1]), ([7, 7], [1, 1]), ([5, 4], [2, 3]), ([9, 6], [4, 6]), ([2, 3], [5, 4])]
        {
            // Few planes, and enough to be compared side by side.
            for channels in [3, 11] {
                let (shape, after) = ([2, channels, height, width], [2, channels, output[0], output[1]]);
                let mut values = draw.values(shape.iter().product());
                values[height * width / 2] = f64::NAN;
                values[height * width..2 * height * width].fill(f64::NEG_INFINITY);
                let (mut maxima, mut places) = (Vec::new(), Vec::new());
                for plane in values.chunks(height * width) {
                    for i in 0..output[0] {
                        for j in 0..output[1] {
                            let rows = i * height / output[0]..((i + 1) * height).div_ceil(output[0]);
                            let columns = j * width / output[1]..((j + 1) * width).div_ceil(output[1]);
                            let cells =
                                || rows.clone().flat_map(|r| columns.clone().map(move |c| r * width + c));
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
                        assert_close(
                            &got[1].values(),
                            &places,
                            0.0,
                            &format!("positions, {shape:?} {lay:?}"),
                        );
                    }
                }
            }
        }
    }
}
