//! Convolution: patches become the columns of a matrix, a few hundred at a time, and the weight multiplies them while they are in
//! the cache. Also the patches of a whole tensor, and their sum back.

use crate::chunks::{self, GRAIN_MEMORY, Stored};
use crate::gemm::{Finish, Gemm, Real, Source, Target};
use crate::indexing::{Plus, position, with_bits};
use crate::memory::{self, SyncPtr};
use crate::{copy, parallel};
use orkest_core::op::Window;
use orkest_core::{DType, Layout, Output, Result, View, with_dtype};
use std::ops::Range;

/// Elements of a block of patches, and bounds on its columns. Blocks do not depend on the number of threads.
const BLOCK: usize = 64 << 10;
const FEWEST_COLUMNS: usize = 256;
const MOST_COLUMNS: usize = 4096;

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

pub(crate) fn supports_conv2d(inputs: &[View<'_>]) -> bool {
    let dtype = inputs[0].dtype;
    matches!(dtype, DType::F32 | DType::F64) && inputs.iter().all(|v| v.dtype == dtype)
}

pub(crate) fn conv2d(
    window: &Window,
    groups: usize,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F32 => conv2d_of::<f32>(window, groups, bias, inputs, outputs),
        _ => conv2d_of::<f64>(window, groups, bias, inputs, outputs),
    }
}

/// Sizes and addresses of a convolution.
struct Convolution<'a, T> {
    window: &'a Window,
    groups: usize,
    /// Channels of a group that go in and that come out.
    channels: usize,
    out_channels: usize,
    /// Windows of an image.
    windows: usize,
    x: SyncPtr<T>,
    x_layout: Layout,
    /// `[out_channels * groups, channels * kernel]`
    weight: Source<T>,
    bias: Option<Vec<T>>,
    y: SyncPtr<T>,
}

fn conv2d_of<T: Real + Plus>(
    window: &Window,
    groups: usize,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let (x, weight) = (&inputs[0], &inputs[1]);
    let [out, channels, kernel_height, kernel_width] = **weight.layout.shape() else {
        unreachable!("the weight is [o, c, kh, kw]")
    };
    let depth = channels * kernel_height * kernel_width;
    // The weight as a matrix, copied if its strides do not allow that.
    let mut copied = [Output::new([out, depth], weight.dtype)];
    let as_matrix = weight.layout.view(&[out, depth].into());
    let (start, layout) = match as_matrix {
        Some(layout) => (memory::input_ptr::<T>(weight), layout),
        None => {
            copied[0].layout = Layout::contiguous(*weight.layout.shape());
            memory::allocate_outputs(&mut copied)?;
            copy::copy(&[*weight], &mut copied)?;
            (memory::output_ptr::<T>(&copied[0]).cast_const(), Layout::contiguous([out, depth].into()))
        }
    };
    let (row, col) = (layout.strides()[0], layout.strides()[1]);
    let bias = bias.then(|| {
        let start = memory::input_ptr::<T>(&inputs[2]);
        // SAFETY: positions of the layout lie within the buffer.
        inputs[2].layout.positions().map(|p| unsafe { *start.add(p) }).collect()
    });
    let [height, width] = window.output();
    let convolution = Convolution {
        window,
        groups,
        channels,
        out_channels: out / groups,
        windows: height * width,
        x: SyncPtr::new(memory::input_ptr::<T>(x).cast_mut()),
        x_layout: *x.layout,
        weight: Source { at: start.wrapping_add(layout.offset()), row, col },
        bias,
        y: SyncPtr::new(memory::output_ptr(&outputs[0])),
    };
    convolution.run();
    Ok(())
}

impl<T: Real + Plus> Convolution<'_, T> {
    fn depth(&self) -> usize {
        self.channels * self.window.kernel[0] * self.window.kernel[1]
    }

    fn run(&self) {
        let images = self.x_layout.shape()[0];
        let [height, width] = self.window.output();
        let columns = (BLOCK / self.depth()).clamp(FEWEST_COLUMNS, MOST_COLUMNS);
        if self.windows > columns {
            let rows = (columns / width).max(1);
            let blocks = height.div_ceil(rows);
            self.for_each_task(images * self.groups * blocks, rows * width, |task, patches| {
                let (image, group, block) =
                    (task / blocks / self.groups, task / blocks % self.groups, task % blocks);
                self.rows_of_image(image, group, block * rows..height.min((block + 1) * rows), patches);
            });
        } else {
            // Small planes: several images share a product, or packing the weight would cost more than multiplying by it.
            let count = (columns / self.windows).min(images);
            let blocks = images.div_ceil(count);
            self.for_each_task(self.groups * blocks, count * self.windows, |task, patches| {
                let (block, group) = (task / self.groups, task % self.groups);
                self.whole_images(block * count..images.min((block + 1) * count), group, patches);
            });
        }
    }

    /// Runs tasks on all threads, each with memory for its patches.
    fn for_each_task(&self, tasks: usize, columns: usize, run: impl Fn(usize, *mut T) + Sync) {
        let work = self.out_channels * columns * self.depth();
        parallel::ranges(tasks, crate::gemm::PARALLEL.div_ceil(work), |range| {
            crate::gemm::workspace(self.depth() * columns, |patches| {
                range.for_each(|task| run(task, patches));
            });
        });
    }

    /// Writes the patches of some output rows of one image and group: `[depth, row_stride]`, starting at column 0 of `to`.
    ///
    /// # Safety
    /// `to` has room for them.
    unsafe fn patches(&self, image: usize, group: usize, rows: Range<usize>, to: *mut T, row_stride: usize) {
        let [kernel_height, kernel_width] = self.window.kernel;
        let strides = self.x_layout.strides();
        for row in 0..self.depth() {
            let channel = group * self.channels + row / (kernel_height * kernel_width);
            let point = [row / kernel_width % kernel_height, row % kernel_width];
            let start = image as isize * strides[0] + channel as isize * strides[1];
            let plane = self.x.at(self.x_layout.offset() as isize + start);
            // SAFETY: a plane of x, and the caller's promise.
            unsafe {
                let to = to.add(row * row_stride);
                patch_row(self.window, plane, [strides[2], strides[3]], point, rows.clone(), to);
            }
        }
    }

    /// The patches of a 1 x 1 kernel that sees every element once are the image itself, if its rows follow one another.
    fn patches_in_place(&self, image: usize, group: usize, first: usize) -> Option<Source<T>> {
        let Window { input, kernel, stride, padding, .. } = *self.window;
        let strides = self.x_layout.strides();
        let plain = kernel == [1, 1] && stride == [1, 1] && padding == [0, 0];
        if !plain || (input[0] > 1 && strides[2] != strides[3] * input[1] as isize) {
            return None;
        }
        let start = image as isize * strides[0] + (group * self.channels) as isize * strides[1];
        let at = self.x.at(self.x_layout.offset() as isize + start + first as isize * strides[3]);
        Some(Source { at, row: strides[1], col: strides[3] })
    }

    fn weight(&self, group: usize) -> Source<T> {
        let rows = (group * self.out_channels) as isize;
        Source { at: self.weight.at.wrapping_offset(rows * self.weight.row), ..self.weight }
    }

    fn output(&self, image: usize, group: usize) -> *mut T {
        self.y.at(((image * self.groups + group) * self.out_channels * self.windows) as isize)
    }

    fn rows_of_image(&self, image: usize, group: usize, rows: Range<usize>, patches: *mut T) {
        let width = self.window.output()[1];
        let columns = rows.len() * width;
        let b = self.patches_in_place(image, group, rows.start * width).unwrap_or_else(|| {
            // SAFETY: the task's memory is for blocks of this size or larger.
            unsafe { self.patches(image, group, rows.clone(), patches, columns) };
            Source { at: patches, row: columns as isize, col: 1 }
        });
        let add_bias = |channel: usize, _: usize, values: &mut [T]| {
            if let Some(bias) = &self.bias {
                let bias = bias[group * self.out_channels + channel];
                values.iter_mut().for_each(|y| *y += bias);
            }
        };
        let finish: Option<Finish<'_, T>> = if self.bias.is_some() { Some(&add_bias) } else { None };
        let at = self.output(image, group).wrapping_add(rows.start * width);
        let c = Target { at, row: self.windows as isize, col: 1 };
        self.multiply(group, columns, b, c, finish);
    }

    fn whole_images(&self, images: Range<usize>, group: usize, patches: *mut T) {
        let height = self.window.output()[0];
        if images.len() == 1 {
            return self.rows_of_image(images.start, group, 0..height, patches);
        }
        let columns = images.len() * self.windows;
        for (i, image) in images.clone().enumerate() {
            // SAFETY: the task's memory is for blocks of this size or larger.
            unsafe { self.patches(image, group, 0..height, patches.add(i * self.windows), columns) };
        }
        let b = Source { at: patches, row: columns as isize, col: 1 };
        crate::gemm::workspace(self.out_channels * columns, |product| {
            self.multiply(group, columns, b, Target { at: product, row: columns as isize, col: 1 }, None);
            for (i, image) in images.enumerate() {
                for channel in 0..self.out_channels {
                    // SAFETY: a row of the product, and a plane of the output that belongs to this task.
                    let (from, to) = unsafe {
                        let to = self.output(image, group).add(channel * self.windows);
                        let from = product.add(channel * columns + i * self.windows);
                        (
                            std::slice::from_raw_parts(from, self.windows),
                            std::slice::from_raw_parts_mut(to, self.windows),
                        )
                    };
                    match &self.bias {
                        Some(bias) => {
                            let bias = bias[group * self.out_channels + channel];
                            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.plus(bias));
                        }
                        None => to.copy_from_slice(from),
                    }
                }
            }
        });
    }

    fn multiply(
        &self,
        group: usize,
        columns: usize,
        b: Source<T>,
        c: Target<T>,
        finish: Option<Finish<'_, T>>,
    ) {
        let gemm = Gemm {
            m: self.out_channels,
            n: columns,
            k: self.depth(),
            a: self.weight(group),
            b,
            c,
            accumulate: false,
            parallel: false,
            finish,
        };
        // SAFETY: the weight, the patches and the part of the output that belongs to this task.
        unsafe { gemm.run() };
    }
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
            w([5, 6], [3, 2], [1, 1], [0, 0], [1, 1]),
            w([5, 6], [3, 3], [1, 1], [1, 1], [1, 1]),
            w([7, 5], [3, 2], [2, 3], [1, 2], [1, 1]),
            w([9, 8], [2, 3], [2, 1], [3, 2], [3, 2]),
            w([1, 9], [1, 4], [1, 2], [0, 3], [1, 1]),
            w([4, 4], [1, 1], [1, 1], [0, 0], [1, 1]),
            w([4, 5], [1, 1], [2, 2], [0, 0], [1, 1]),
            w([1, 1], [3, 3], [1, 1], [2, 2], [1, 1]),
            w([40, 33], [3, 3], [1, 1], [1, 1], [1, 1]),
        ]
    }

    /// Position in the plane that `point` of window `at` sees.
    fn seen(w: &Window, at: usize, point: usize) -> Option<usize> {
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

    #[test]
    fn convolution_follows_its_definition() {
        let mut draw = Draw(2);
        for w in windows() {
            for dtype in [DType::F32, DType::F64] {
                for lay in LAYS {
                    for (n, c, o, groups) in [(1, 2, 3, 1), (3, 4, 6, 2), (2, 3, 3, 3), (40, 2, 5, 1)] {
                        let ([height, width], [h, wd]) = (w.output(), w.input);
                        let (points, count) = (w.kernel[0] * w.kernel[1], height * width);
                        let (group_in, group_out) = (c / groups, o / groups);
                        let x = draw.values(n * c * h * wd);
                        let weight = draw.values(o * group_in * points);
                        let bias = draw.values(o);
                        let mut expected = vec![0.0; n * o * count];
                        for image in 0..n {
                            for out in 0..o {
                                for at in 0..count {
                                    let mut sum = bias[out];
                                    for channel in 0..group_in {
                                        for point in 0..points {
                                            let Some(place) = seen(&w, at, point) else { continue };
                                            let plane = image * c + out / group_out * group_in + channel;
                                            sum += x[plane * h * wd + place]
                                                * weight[(out * group_in + channel) * points + point];
                                        }
                                    }
                                    expected[(image * o + out) * count + at] = sum;
                                }
                            }
                        }
                        let x = Data::laid(lay, dtype, &[n, c, h, wd], &x);
                        let weight =
                            Data::laid(lay, dtype, &[o, group_in, w.kernel[0], w.kernel[1]], &weight);
                        let bias = Data::laid(lay, dtype, &[o], &bias);
                        let op = Op::Conv2d { window: w, groups, bias: true };
                        let y = run(&op, &[&x, &weight, &bias], &[(&[n, o, height, width], dtype)]).unwrap();
                        let what = format!("{w:?} {dtype} {lay:?} n {n} c {c} o {o} groups {groups}");
                        assert_close(&y[0].values(), &expected, 1e-5, &what);
                    }
                }
            }
        }
    }

    #[test]
    fn large_planes_are_convolved_in_blocks() {
        let mut draw = Draw(3);
        let (c, o, h, wd) = (8, 4, 70, 80);
        for (kernel, padding) in [(3, 1), (1, 0)] {
            let w = Window {
                input: [h, wd],
                kernel: [kernel; 2],
                stride: [1, 1],
                padding: [padding; 2],
                dilation: [1, 1],
            };
            let (x, weight) = (draw.values(c * h * wd), draw.values(o * c * kernel * kernel));
            let mut expected = vec![0.0; o * h * wd];
            for (i, e) in expected.iter_mut().enumerate() {
                let (out, at) = (i / (h * wd), i % (h * wd));
                for row in 0..c * kernel * kernel {
                    if let Some(place) = seen(&w, at, row % (kernel * kernel)) {
                        *e += x[row / (kernel * kernel) * h * wd + place]
                            * weight[out * c * kernel * kernel + row];
                    }
                }
            }
            let x = Data::new(DType::F32, &[1, c, h, wd], &x);
            let weight = Data::new(DType::F32, &[o, c, kernel, kernel], &weight);
            let op = Op::Conv2d { window: w, groups: 1, bias: false };
            let y = run(&op, &[&x, &weight], &[(&[1, o, h, wd], DType::F32)]).unwrap();
            assert_close(&y[0].values(), &expected, 1e-5, &format!("kernel {kernel}"));
        }
    }
}
