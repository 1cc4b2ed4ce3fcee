//! The patches that sliding windows see, as a matrix, and their sum back into planes.

use crate::chunks::{self, GRAIN_MEMORY, Stored};
use crate::indexing::{Plus, position, with_bits};
use crate::memory::{self, SyncPtr};
use crate::parallel;
use orkest_core::op::Window;
use orkest_core::{Layout, Output, Result, View, with_dtype};
use std::ops::Range;

pub(crate) fn unfold(window: &Window, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let (x, y) = (&inputs[0], &outputs[0]);
    let channels = x.layout.shape()[1];
    let points = window.kernel[0] * window.kernel[1];
    let rows = x.layout.shape()[0] * channels * points;
    let [height, width] = window.output();
    let planes = Layout::new((&x.layout.shape()[..2]).into(), &x.layout.strides()[..2], x.layout.offset());
    let steps = [x.layout.strides()[2], x.layout.strides()[3]];
    with_bits!(x.dtype, T => {
        let from = SyncPtr::new(memory::input_ptr::<T>(x).cast_mut());
        let to = SyncPtr::new(memory::output_ptr::<T>(y));
        parallel::ranges(rows, GRAIN_MEMORY.div_ceil(height * width), |range| {
            for row in range {
                let plane = from.at(position(&planes, row / points));
                let point = [row % points / window.kernel[1], row % window.kernel[1]];
                let to = to.at((row * height * width) as isize);
                // SAFETY: a plane of x, and row `row` of the row-major y.
                unsafe { patch_row::<T>(window, plane, steps, point, 0..height, to) };
            }
        });
    });
    Ok(())
}

/// For one point of the window, what it sees in every window of the given output rows, one after the other.
///
/// # Safety
/// `plane` is good for the window's input plane, `to` for the windows.
unsafe fn patch_row<T: Copy + Default>(
    window: &Window,
    plane: *const T,
    steps: [isize; 2],
    point: [usize; 2],
    rows: Range<usize>,
    mut to: *mut T,
) {
    let width = window.output()[1];
    let columns = inside(window, 1, point[1]);
    // SAFETY: `columns` and the check of `y` keep to the plane; every row of windows writes `width` elements.
    unsafe {
        for row in rows {
            let y = (row * window.stride[0] + point[0] * window.dilation[0]).wrapping_sub(window.padding[0]);
            if y >= window.input[0] || columns.is_empty() {
                std::slice::from_raw_parts_mut(to, width).fill(T::default());
            } else {
                std::slice::from_raw_parts_mut(to, columns.start).fill(T::default());
                std::slice::from_raw_parts_mut(to.add(columns.end), width - columns.end).fill(T::default());
                let x = columns.start * window.stride[1] + point[1] * window.dilation[1] - window.padding[1];
                let from = plane.wrapping_offset(y as isize * steps[0] + x as isize * steps[1]);
                let step = window.stride[1] as isize * steps[1];
                let to = to.add(columns.start);
                if step == 1 {
                    from.copy_to_nonoverlapping(to, columns.len());
                } else {
                    for i in 0..columns.len() {
                        *to.add(i) = *from.wrapping_offset(i as isize * step);
                    }
                }
            }
            to = to.add(width);
        }
    }
}

/// The windows along `axis` in which this point of the window lies inside the plane.
pub(crate) fn inside(window: &Window, axis: usize, point: usize) -> Range<usize> {
    let (stride, offset) = (window.stride[axis], point * window.dilation[axis]);
    let (padding, size, count) = (window.padding[axis], window.input[axis], window.output()[axis]);
    let start = padding.saturating_sub(offset).div_ceil(stride).min(count);
    let end = (size + padding).saturating_sub(offset).div_ceil(stride).min(count);
    start..end.max(start)
}

pub(crate) fn fold(window: &Window, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    with_dtype!(inputs[0].dtype, T => fold_of::<T>(window, &inputs[0], &outputs[0]));
    Ok(())
}

fn fold_of<T: Stored>(window: &Window, x: &View<'_>, y: &Output)
where
    T::Compute: Plus,
{
    let [height, width] = window.output();
    let points = window.kernel[0] * window.kernel[1];
    let [_, channels, h, w] = **y.layout.shape() else { unreachable!("fold gives [n, c, h, w]") };
    let planes = y.layout.numel() / (h * w);
    let rows = Layout::new((&x.layout.shape()[..2]).into(), &x.layout.strides()[..2], x.layout.offset());
    let columns = x.layout.slice(0, 0, 1, 1).slice(1, 0, 1, 1);
    let columns = Layout::new((&columns.shape()[2..]).into(), &columns.strides()[2..], 0);
    let from = SyncPtr::new(memory::input_ptr::<T>(x).cast_mut());
    let to = SyncPtr::new(memory::output_ptr::<T>(y));
    debug_assert_eq!(channels * points, x.layout.shape()[1]);
    parallel::ranges(planes, GRAIN_MEMORY.div_ceil(points * height * width), |range| {
        let mut row = vec![T::default(); height * width];
        let mut wide = vec![T::Compute::default(); height * width];
        let mut plane = vec![T::Compute::default(); h * w];
        for i in range {
            plane.fill(T::Compute::default());
            for point in 0..points {
                // Plane `i` is channel `i % channels` of its image, whose patches have `points` rows per channel.
                let start = position(&rows, i * points + point);
                // SAFETY: row `i * points + point` of the patches.
                unsafe { chunks::gather(from.at(start), &columns, 0, height * width, row.as_mut_ptr()) };
                T::widen(&row, &mut wide);
                add_patch_row(
                    window,
                    [point / window.kernel[1], point % window.kernel[1]],
                    &wide,
                    &mut plane,
                );
            }
            // SAFETY: plane `i` of the row-major output.
            let to = unsafe { std::slice::from_raw_parts_mut(to.at((i * h * w) as isize), h * w) };
            T::narrow(&plane, to);
        }
    });
}

/// The adjoint of [`patch_row`].
fn add_patch_row<T: Plus>(window: &Window, point: [usize; 2], from: &[T], plane: &mut [T]) {
    let width = window.output()[1];
    let (rows, columns) = (inside(window, 0, point[0]), inside(window, 1, point[1]));
    if columns.is_empty() {
        return;
    }
    let x = columns.start * window.stride[1] + point[1] * window.dilation[1] - window.padding[1];
    for row in rows {
        let y = row * window.stride[0] + point[0] * window.dilation[0] - window.padding[0];
        let from = &from[row * width..][columns.clone()];
        let to = &mut plane[y * window.input[1] + x..];
        if window.stride[1] == 1 {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = to.plus(*from));
        } else {
            to.iter_mut().step_by(window.stride[1]).zip(from).for_each(|(to, from)| *to = to.plus(*from));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::testing::{Data, Draw, LAYS, run};
    use orkest_core::op::Window;
    use orkest_core::{DType, Op};

    pub(crate) fn windows() -> Vec<Window> {
        let w =
            |input, kernel, stride, padding, dilation| Window { input, kernel, stride, padding, dilation };
        vec![
            w([5, 6], [3, 2], [1, 1], [0, 0], [1, 1]),
            w([5, 6], [3, 3], [1, 1], [1, 1], [1, 1]),
            w([7, 5], [3, 2], [2, 3], [1, 2], [1, 1]),
            w([9, 8], [2, 3], [2, 1], [3, 2], [3, 2]),
            w([1, 9], [1, 4], [1, 2], [0, 3], [1, 1]),
            w([4, 4], [1, 1], [1, 1], [0, 0], [1, 1]),
            w([4, 5], [1, 1], [2, 2], [0, 0], [1, 1]),
            w([1, 1], [3, 3], [1, 1], [2, 2], [1, 1]),
            w([40, 33], [3, 3], [1, 1], [1, 1], [1, 1]),
            w([21, 37], [3, 3], [2, 2], [1, 1], [1, 1]),
            w([6, 19], [1, 3], [3, 4], [0, 5], [1, 2]),
            w([7, 18], [4, 4], [2, 2], [1, 1], [1, 1]),
        ]
    }

    /// Position in the plane that `point` of window `at` sees.
    pub(crate) fn seen(w: &Window, at: usize, point: usize) -> Option<usize> {
        let [_, width] = w.output();
        let (at, point) = ([at / width, at % width], [point / w.kernel[1], point % w.kernel[1]]);
        let mut place = [0; 2];
        for i in 0..2 {
            place[i] = (at[i] * w.stride[i] + point[i] * w.dilation[i]).checked_sub(w.padding[i])?;
            if place[i] >= w.input[i] {
                return None;
            }
        }
        Some(place[0] * w.input[1] + place[1])
    }

    #[test]
    fn unfold_and_fold_follow_their_definitions() {
        let mut draw = Draw(1);
        for w in windows() {
            for dtype in [DType::F32, DType::F64, DType::F16, DType::I64] {
                for lay in LAYS {
                    let ([height, width], [h, wd]) = (w.output(), w.input);
                    let (n, c, points, count) = (2, 3, w.kernel[0] * w.kernel[1], height * width);
                    let x_values: Vec<f64> = (0..n * c * h * wd).map(|_| draw.below(9) as f64).collect();
                    let mut patches = vec![0.0; n * c * points * count];
                    for row in 0..n * c * points {
                        for at in 0..count {
                            if let Some(place) = seen(&w, at, row % points) {
                                patches[row * count + at] = x_values[row / points * h * wd + place];
                            }
                        }
                    }
                    let x = Data::laid(lay, dtype, &[n, c, h, wd], &x_values);
                    let y = run(&Op::Unfold(w), &[&x], &[(&[n, c * points, count], dtype)]).unwrap();
                    assert!(y[0].values() == patches, "unfold {w:?} {dtype} {lay:?}");

                    let mut planes = vec![0.0; n * c * h * wd];
                    for row in 0..n * c * points {
                        for at in 0..count {
                            if let Some(place) = seen(&w, at, row % points) {
                                planes[row / points * h * wd + place] += patches[row * count + at];
                            }
                        }
                    }
                    let patches = Data::laid(lay, dtype, &[n, c * points, count], &patches);
                    let y = run(&Op::Fold(w), &[&patches], &[(&[n, c, h, wd], dtype)]).unwrap();
                    assert!(y[0].values() == planes, "fold {w:?} {dtype} {lay:?}");
                }
            }
        }
    }
}
