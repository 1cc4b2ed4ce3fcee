//! Pooling: the largest or the mean of each window, plane by plane.

use crate::chunks::{self, GRAIN_MEMORY, Stored};
use crate::indexing::position;
use crate::math::Float;
use crate::memory::{self, SyncPtr};
use crate::simd::simd_fn;
use crate::{conv, parallel};
use orkest_core::op::Window;
use orkest_core::{DType, Error, Layout, Output, Result, View, bf16, f16};
use std::ops::Range;

macro_rules! with_float {
    ($dtype:expr, $op:literal, $T:ident => $body:expr) => {
        match $dtype {
            DType::F16 => {
                type $T = f16;
                $body
            }
            DType::BF16 => {
                type $T = bf16;
                $body
            }
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            dtype => return Err(Error::Unsupported { op: $op.into(), dtype, device: "cpu".into() }),
        }
    };
}

pub(crate) fn max_pool(window: &Window, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    with_float!(inputs[0].dtype, "max_pool2d", T => {
        let positions = SyncPtr::new(memory::output_ptr::<i64>(&outputs[1]));
        let across = Across::new(window);
        for_each_plane::<T>(window.input, window.output(), &inputs[0], &outputs[0], |i, from, to| {
            // SAFETY: the positions of plane `i` of a row-major output, which belongs to this task.
            let positions = unsafe { std::slice::from_raw_parts_mut(positions.at((i * to.len()) as isize), to.len()) };
            max_plane(window, &across, from, to, positions);
        });
    });
    Ok(())
}

pub(crate) fn avg_pool(
    window: &Window,
    count_padding: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let across = Across::new(window);
    with_float!(inputs[0].dtype, "avg_pool2d", T => {
        for_each_plane::<T>(window.input, window.output(), &inputs[0], &outputs[0], |_, from, to| {
            mean_plane(window, &across, count_padding, from, to);
        });
    });
    Ok(())
}

pub(crate) fn avg_pool_grad(
    window: &Window,
    count_padding: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let across = Across::new(window);
    with_float!(inputs[0].dtype, "avg_pool2d_grad", T => {
        for_each_plane::<T>(window.output(), window.input, &inputs[0], &outputs[0], |_, from, to| {
            mean_plane_grad(window, &across, count_padding, from, to);
        });
    });
    Ok(())
}

/// What windows see along a row, which is the same for all rows and planes.
struct Across {
    /// For each point of the window that lies inside the plane anywhere: in which windows, and what column the first of these sees there.
    points: Vec<(Range<usize>, usize)>,
    /// For each window its first column inside the plane, if there is one, and how many there are.
    first: Vec<Option<usize>>,
    counts: Vec<usize>,
}

impl Across {
    fn new(window: &Window) -> Across {
        let points = (0..window.kernel[1]).filter_map(|point| {
            let windows = conv::inside(window, 1, point);
            let x = windows.start * window.stride[1] + point * window.dilation[1];
            (!windows.is_empty()).then(|| (windows, x - window.padding[1]))
        });
        let cells = || (0..window.output()[1]).map(|at| cells_inside(window, 1, at));
        Across {
            points: points.collect(),
            first: cells().map(|cells| (!cells.is_empty()).then_some(cells.start)).collect(),
            counts: cells().map(|cells| cells.len().div_ceil(window.dilation[1])).collect(),
        }
    }

    /// Divides what belongs to a row of windows, of which `rows` rows lie inside the plane, by how many cells count in each.
    #[inline(always)]
    fn divide<T: Float>(&self, window: &Window, count_padding: bool, rows: usize, sums: &mut [T]) {
        if count_padding {
            let area = T::from_i64((window.kernel[0] * window.kernel[1]) as i64);
            sums.iter_mut().for_each(|sum| *sum = *sum / area);
        } else {
            for (sum, columns) in sums.iter_mut().zip(&self.counts) {
                *sum = *sum / T::from_i64((rows * columns) as i64);
            }
        }
    }
}

simd_fn! {
    /// Point by point of the window, for all windows of a row.
    fn mean_plane<S: Simd, T: Float>(window: &Window, across: &Across, count_padding: bool, from: &[T], to: &mut [T]) {
        for (row, sums) in to.chunks_exact_mut(across.counts.len()).enumerate() {
            sums.fill(T::ZERO);
            let rows = cells_inside(window, 0, row);
            let count = rows.len().div_ceil(window.dilation[0]);
            for y in rows.step_by(window.dilation[0]) {
                for (windows, x) in &across.points {
                    let (sums, from) = (&mut sums[windows.clone()], &from[y * window.input[1] + x..]);
                    match window.stride[1] {
                        1 => add_every::<T, 1>(from, sums),
                        2 => add_every::<T, 2>(from, sums),
                        stride => sums.iter_mut().zip(from.chunks(stride)).for_each(|(sum, x)| *sum = *sum + x[0]),
                    }
                }
            }
            across.divide(window, count_padding, count, sums);
        }
    }

    fn mean_plane_grad<S: Simd, T: Float>(
        window: &Window,
        across: &Across,
        count_padding: bool,
        from: &[T],
        to: &mut [T]
    ) {
        to.fill(T::ZERO);
        let mut shares = vec![T::ZERO; across.counts.len()];
        for (row, from) in from.chunks_exact(shares.len()).enumerate() {
            shares.copy_from_slice(from);
            let rows = cells_inside(window, 0, row);
            let count = rows.len().div_ceil(window.dilation[0]);
            across.divide(window, count_padding, count, &mut shares);
            for y in rows.step_by(window.dilation[0]) {
                for (windows, x) in &across.points {
                    let (shares, to) = (&shares[windows.clone()], &mut to[y * window.input[1] + x..]);
                    match window.stride[1] {
                        1 => add_to_every::<T, 1>(shares, to),
                        2 => add_to_every::<T, 2>(shares, to),
                        stride => to.chunks_mut(stride).zip(shares).for_each(|(to, share)| to[0] = to[0] + *share),
                    }
                }
            }
        }
    }

    /// Point by point of the window, for all windows of a row: a choice per element, where window by window each comparison would be a
    /// branch that cannot be predicted.
    fn max_plane<S: Simd, T: Float>(window: &Window, across: &Across, from: &[T], to: &mut [T], positions: &mut [i64]) {
        let width = across.first.len();
        if window.kernel == [2, 2] && window.stride == [2, 2] && window.padding == [0, 0] && window.dilation == [1, 1] {
            return max_of_squares(window.input[1], width, from, to, positions);
        }
        let rows_of_windows = to.chunks_exact_mut(width).zip(positions.chunks_exact_mut(width));
        for (row, (best, positions)) in rows_of_windows.enumerate() {
            let rows = cells_inside(window, 0, row);
            best.fill(-T::INFINITY);
            for (position, first) in positions.iter_mut().zip(&across.first) {
                // Where nothing is larger than -∞, the first cell is the largest.
                let first = first.filter(|_| !rows.is_empty());
                *position = first.map_or(0, |x| (rows.start * window.input[1] + x) as i64);
            }
            for y in rows.step_by(window.dilation[0]) {
                for (windows, x) in &across.points {
                    let first = y * window.input[1] + x;
                    let (best, positions) = (&mut best[windows.clone()], &mut positions[windows.clone()]);
                    match window.stride[1] {
                        1 => keep_larger::<T, 1>(&from[first..], first, best, positions),
                        2 => keep_larger::<T, 2>(&from[first..], first, best, positions),
                        stride => {
                            let cells = from[first..].chunks(stride).enumerate();
                            for ((best, position), (i, cells)) in best.iter_mut().zip(positions).zip(cells) {
                                keep_one(cells[0], first + i * stride, best, position);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Adds every `STEP`th element. Steps are whole but for the last one, so that the compiler sees a loop without conditions.
#[inline(always)]
fn add_every<T: Float, const STEP: usize>(from: &[T], sums: &mut [T]) {
    let (steps, rest) = from.as_chunks::<STEP>();
    let (sums, last) = sums.split_at_mut(steps.len().min(sums.len()));
    sums.iter_mut().zip(steps).for_each(|(sum, cells)| *sum = *sum + cells[0]);
    last.iter_mut().zip(rest).for_each(|(sum, cell)| *sum = *sum + *cell);
}

/// The other way round.
#[inline(always)]
fn add_to_every<T: Float, const STEP: usize>(shares: &[T], to: &mut [T]) {
    let (steps, rest) = to.as_chunks_mut::<STEP>();
    let (shares, last) = shares.split_at(steps.len().min(shares.len()));
    steps.iter_mut().zip(shares).for_each(|(cells, share)| cells[0] = cells[0] + *share);
    rest.iter_mut().zip(last).for_each(|(cell, share)| *cell = *cell + *share);
}

/// Where element `i * STEP` is larger than `best[i]`, it and its position `first + i * STEP` take its place.
#[inline(always)]
fn keep_larger<T: Float, const STEP: usize>(from: &[T], first: usize, best: &mut [T], positions: &mut [i64]) {
    let (steps, rest) = from.as_chunks::<STEP>();
    let whole = steps.len().min(best.len());
    let (best, last) = best.split_at_mut(whole);
    let (positions, last_position) = positions.split_at_mut(whole);
    for (i, ((best, position), cells)) in best.iter_mut().zip(positions).zip(steps).enumerate() {
        keep_one(cells[0], first + i * STEP, best, position);
    }
    for ((best, position), cell) in last.iter_mut().zip(last_position).zip(rest) {
        keep_one(*cell, first + whole * STEP, best, position);
    }
}

/// NaN (which differs from itself) is larger than everything; of equal values the first wins.
#[inline(always)]
fn keep_one<T: Float>(value: T, at: usize, best: &mut T, position: &mut i64) {
    let larger = value > *best || value.partial_cmp(&value).is_none();
    *position = if larger { at as i64 } else { *position };
    *best = if larger { value } else { *best };
}

/// The usual windows, 2 by 2 side by side: all four elements at a time.
#[inline(always)]
fn max_of_squares<T: Float>(row: usize, width: usize, from: &[T], to: &mut [T], positions: &mut [i64]) {
    let rows_of_windows = to.chunks_exact_mut(width).zip(positions.chunks_exact_mut(width));
    for (i, ((best, positions), from)) in rows_of_windows.zip(from.chunks_exact(2 * row)).enumerate() {
        let (above, below) = (from[..row].as_chunks::<2>().0, from[row..].as_chunks::<2>().0);
        for (j, (((best, position), above), below)) in
            best.iter_mut().zip(positions).zip(above).zip(below).enumerate()
        {
            let (mut largest, mut step) = (above[0], 0);
            for (value, at) in [(above[1], 1), (below[0], row), (below[1], row + 1)] {
                let larger = value > largest || value.partial_cmp(&value).is_none();
                step = if larger { at } else { step };
                largest = if larger { value } else { largest };
            }
            *best = largest;
            *position = (2 * i * row + 2 * j + step) as i64;
        }
    }
}

/// The cells along `axis` of window number `at` that lie inside the plane, from the first one on.
#[inline(always)]
fn cells_inside(window: &Window, axis: usize, at: usize) -> Range<usize> {
    let dilation = window.dilation[axis];
    let (start, reach) = (at * window.stride[axis], (window.kernel[axis] - 1) * dilation + 1);
    let padding = window.padding[axis];
    // The first cell that is not in the padding, a whole number of dilations from the start.
    let skipped = if start < padding { (padding - start).div_ceil(dilation) * dilation } else { 0 };
    let first = start + skipped - padding;
    let end = (start + reach).min(window.input[axis] + padding).saturating_sub(padding);
    first..end.max(first)
}

/// Calls `run(number, plane of x, plane of y)` for every plane of `[n, c, .., ..]`, in the precision of computation.
fn for_each_plane<T: Stored>(
    from_size: [usize; 2],
    to_size: [usize; 2],
    x: &View<'_>,
    y: &Output,
    run: impl Fn(usize, &[T::Compute], &mut [T::Compute]) + Sync,
) {
    let (from_len, to_len) = (from_size[0] * from_size[1], to_size[0] * to_size[1]);
    let planes = Layout::new((&x.layout.shape()[..2]).into(), &x.layout.strides()[..2], x.layout.offset());
    let plane = Layout::new((&x.layout.shape()[2..]).into(), &x.layout.strides()[2..], 0).collapse();
    let from = SyncPtr::new(memory::input_ptr::<T>(x).cast_mut());
    let to = SyncPtr::new(memory::output_ptr::<T>(y));
    // Where both types are one, and a plane lies together, neither is copied.
    let as_it_lies = T::DIRECT && matches!(plane.strides(), [] | [1]);
    parallel::ranges(planes.numel(), GRAIN_MEMORY.div_ceil(from_len.max(to_len)), |range| {
        let mut stored = vec![T::default(); if T::DIRECT { 0 } else { from_len }];
        let mut wide = vec![T::Compute::default(); if as_it_lies { 0 } else { from_len }];
        let mut result = vec![T::Compute::default(); if T::DIRECT { 0 } else { to_len }];
        for i in range {
            let from = from.at(position(&planes, i));
            let to = to.at((i * to_len) as isize);
            // SAFETY: plane `i` of x, and of the row-major y, which belongs to this task; where `DIRECT`, both types are one.
            unsafe {
                let from = if as_it_lies {
                    std::slice::from_raw_parts(from.cast_const().cast(), from_len)
                } else {
                    let plane_of = if T::DIRECT { wide.as_mut_ptr().cast() } else { stored.as_mut_ptr() };
                    chunks::gather(from, &plane, 0, from_len, plane_of);
                    if !T::DIRECT {
                        T::widen(&stored, &mut wide);
                    }
                    &wide
                };
                if T::DIRECT {
                    run(i, from, std::slice::from_raw_parts_mut(to.cast(), to_len));
                } else {
                    run(i, from, &mut result);
                    T::narrow(&result, std::slice::from_raw_parts_mut(to, to_len));
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::testing::{Data, Draw, LAYS, assert_close, run};
    use orkest_core::op::Window;
    use orkest_core::{DType, Op};

    fn windows() -> Vec<Window> {
        let w =
            |input, kernel, stride, padding, dilation| Window { input, kernel, stride, padding, dilation };
        vec![
            w([4, 6], [2, 2], [2, 2], [0, 0], [1, 1]),
            w([5, 6], [3, 2], [1, 2], [1, 1], [1, 1]),
            w([7, 5], [3, 3], [2, 1], [1, 1], [2, 2]),
            w([1, 9], [1, 4], [1, 3], [0, 2], [1, 1]),
            w([3, 3], [3, 3], [1, 1], [0, 0], [1, 1]),
            w([60, 50], [3, 3], [2, 2], [1, 1], [1, 1]),
        ]
    }

    /// Positions in the plane that window `at` sees.
    fn cells(w: &Window, at: usize) -> Vec<usize> {
        let [_, width] = w.output();
        let mut out = Vec::new();
        for i in 0..w.kernel[0] {
            for j in 0..w.kernel[1] {
                let y = (at / width * w.stride[0] + i * w.dilation[0]) as isize - w.padding[0] as isize;
                let x = (at % width * w.stride[1] + j * w.dilation[1]) as isize - w.padding[1] as isize;
                if (0..w.input[0] as isize).contains(&y) && (0..w.input[1] as isize).contains(&x) {
                    out.push(y as usize * w.input[1] + x as usize);
                }
            }
        }
        out
    }

    #[test]
    fn pooling_follows_its_definition() {
        let mut draw = Draw(1);
        for w in windows() {
            for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
                for lay in LAYS {
                    let ([height, width], [h, wd]) = (w.output(), w.input);
                    let (n, c, count) = (2, 3, height * width);
                    // Few values: ties are frequent. No zero, which padding would bring.
                    let x_values: Vec<f64> =
                        (0..n * c * h * wd).map(|_| draw.below(5) as f64 - 6.0).collect();
                    let x = Data::laid(lay, dtype, &[n, c, h, wd], &x_values);
                    let what = format!("{w:?} {dtype} {lay:?}");
                    let tolerance = [(DType::F16, 1e-3), (DType::BF16, 8e-3)];
                    let tolerance = tolerance.iter().find(|t| t.0 == dtype).map_or(1e-6, |t| t.1);

                    let (mut largest, mut places) = (Vec::new(), Vec::new());
                    for plane in x_values.chunks(h * wd) {
                        for at in 0..count {
                            let cells = cells(&w, at);
                            let best = cells.iter().map(|&p| plane[p]).fold(f64::NEG_INFINITY, f64::max);
                            largest.push(best);
                            places.push(*cells.iter().find(|p| plane[**p] == best).unwrap() as f64);
                        }
                    }
                    let shape = [n, c, height, width];
                    let y = run(&Op::MaxPool(w), &[&x], &[(&shape, dtype), (&shape, DType::I64)]).unwrap();
                    assert_eq!(y[0].values(), largest, "max {what}");
                    assert_eq!(y[1].values(), places, "max {what}");

                    for count_padding in [false, true] {
                        let weight = |at: usize| {
                            1.0 / if count_padding { w.kernel[0] * w.kernel[1] } else { cells(&w, at).len() }
                                as f64
                        };
                        let mut means = Vec::new();
                        for plane in x_values.chunks(h * wd) {
                            for at in 0..count {
                                means.push(cells(&w, at).iter().map(|&p| plane[p]).sum::<f64>() * weight(at));
                            }
                        }
                        let y = run(&Op::AvgPool(w, count_padding), &[&x], &[(&shape, dtype)]).unwrap();
                        assert_close(&y[0].values(), &means, tolerance, &format!("mean {what}"));

                        let grad_values: Vec<f64> =
                            (0..n * c * count).map(|_| draw.below(5) as f64 - 2.0).collect();
                        let mut dx = vec![0.0; n * c * h * wd];
                        for (plane, grad) in dx.chunks_mut(h * wd).zip(grad_values.chunks(count)) {
                            for at in 0..count {
                                cells(&w, at).iter().for_each(|&p| plane[p] += grad[at] * weight(at));
                            }
                        }
                        let grad = Data::laid(lay, dtype, &shape, &grad_values);
                        let y = run(&Op::AvgPoolGrad(w, count_padding), &[&grad], &[(&[n, c, h, wd], dtype)])
                            .unwrap();
                        assert_close(&y[0].values(), &dx, tolerance, &format!("mean gradient {what}"));
                    }
                }
            }
        }
    }

    #[test]
    fn nan_always_wins_and_padding_never() {
        let w = Window { input: [2, 2], kernel: [2, 2], stride: [1, 1], padding: [1, 1], dilation: [1, 1] };
        let x = Data::new(DType::F32, &[1, 1, 2, 2], &[f64::NEG_INFINITY, -3.0, f64::NAN, -1.0]);
        let y =
            run(&Op::MaxPool(w), &[&x], &[(&[1, 1, 3, 3], DType::F32), (&[1, 1, 3, 3], DType::I64)]).unwrap();
        let values = y[0].values();
        assert_eq!(values[..3], [f64::NEG_INFINITY, -3.0, -3.0]);
        assert!(values[3].is_nan() && values[4].is_nan() && values[6].is_nan() && values[7].is_nan());
        assert_eq!([values[5], values[8]], [-1.0, -1.0]);
        assert_eq!(y[1].values(), [0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 2.0, 2.0, 3.0]);
    }
}
