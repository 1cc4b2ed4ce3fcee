//! Convolution and the gradient of its weight.
//!
//! Patches become the columns of a matrix, which is never stored as a whole: a task pads a few planes and copies from them, for
//! each product, the panel that the innermost loops read. The padded planes keep columns with one remainder modulo the stride together,
//! so that what neighbouring windows see lies side by side. Depthwise convolution does without a matrix: every point of the
//! window adds a shifted plane.

use crate::chunks::GRAIN_MEMORY;
use crate::gemm::{Gemm, PARALLEL, Packed, Real, SLACK, Source, Target, workspace};
use crate::indexing::Plus;
use crate::math::Float;
use crate::memory::{self, Scratch, SyncPtr};
use crate::rows::{Dense, RowsMut, add_into, sum_lanes};
use crate::simd::simd_fn;
use crate::{copy, parallel};
use orkest_core::op::Window;
use orkest_core::{DType, Element, Layout, Output, Result, View};
use std::ops::Range;

/// Elements of the patches of a task, and bounds on its columns.
const BLOCK: usize = 128 << 10;
const FEWEST_COLUMNS: usize = 512;
const MOST_COLUMNS: usize = 4096;
/// So many windows fill panels well enough.
const ENOUGH_COLUMNS: usize = 128;
/// At most this many partial gradients of a weight, of this many elements together.
const PARTS: usize = 32;
const PART_ELEMENTS: usize = 4 << 20;

pub(crate) fn supports(inputs: &[View<'_>]) -> bool {
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

pub(crate) fn conv2d_weight_grad(
    window: &Window,
    groups: usize,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F32 => weight_grad_of::<f32>(window, groups, inputs, outputs),
        _ => weight_grad_of::<f64>(window, groups, inputs, outputs),
    }
}

fn conv2d_of<T: Real + Float + Plus>(
    window: &Window,
    groups: usize,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let weight = &inputs[1];
    let [out, channels, kernel_height, kernel_width] = **weight.layout.shape() else {
        unreachable!("the weight is [o, c, kh, kw]")
    };
    let depth = channels * kernel_height * kernel_width;
    // The weight as a matrix, copied if its strides do not allow that.
    let mut copied = [Output::new([out, depth], weight.dtype)];
    let (start, layout) = match weight.layout.view(&[out, depth].into()) {
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
    let convolution = Convolution {
        planes: Planes::new(window, &inputs[0], channels),
        groups,
        out_channels: out / groups,
        weight: Source { at: start.wrapping_add(layout.offset()), row, col },
        bias,
        y: SyncPtr::new(memory::output_ptr(&outputs[0])),
    };
    if convolution.planes.are_seen_alone(groups) {
        convolution.depthwise();
    } else {
        convolution.run()?;
    }
    Ok(())
}

/// The input, and what windows see of it.
struct Planes<'a, T> {
    window: &'a Window,
    /// Channels of a group.
    channels: usize,
    images: usize,
    start: SyncPtr<T>,
    strides: [isize; 4],
}

/// Some images of a group, and rows of windows in each of them.
#[derive(Clone)]
struct Part {
    images: Range<usize>,
    group: usize,
    rows: Range<usize>,
}

/// The elements that the windows of a part see, padding included.
struct Seen<'a, T> {
    x: &'a [T],
    /// For each point of each channel, where what the first window sees lies.
    points: Vec<usize>,
    /// From one image to the next, and from one row of windows to the next.
    image: usize,
    row: usize,
    /// Windows of the part: rows of an image and windows of a row.
    shape: [usize; 2],
}

/// Neighbouring columns of the matrix of patches: where they lie, relative to `points`, and which they are.
struct Run {
    from: usize,
    to: usize,
    len: usize,
}

impl<'a, T: Real + Element> Planes<'a, T> {
    fn new(window: &'a Window, x: &View<'_>, channels: usize) -> Planes<'a, T> {
        let start = memory::input_ptr::<T>(x).wrapping_add(x.layout.offset()).cast_mut();
        let strides = std::array::from_fn(|d| x.layout.strides()[d]);
        Planes { window, channels, images: x.layout.shape()[0], start: SyncPtr::new(start), strides }
    }

    /// Every output channel sees one channel only.
    fn are_seen_alone(&self, groups: usize) -> bool {
        self.channels == 1 && groups > 1
    }

    fn area(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }

    fn depth(&self) -> usize {
        self.channels * self.area()
    }

    /// Cuts all windows of all images and groups into parts of about `columns` windows.
    fn parts(&self, groups: usize, columns: usize, parts_at_least: usize) -> Vec<Part> {
        let [height, width] = self.window.output();
        let windows = height * width;
        // Parts of an image, where there are too few images.
        let wanted = parts_at_least.div_ceil((self.images * groups).max(1)).min(windows / ENOUGH_COLUMNS);
        let (rows, images) = if windows > columns || wanted > 1 {
            let blocks = height.div_ceil((columns / width).max(1)).max(wanted).min(height);
            (height.div_ceil(blocks), 1)
        } else if windows >= ENOUGH_COLUMNS {
            (height, 1)
        } else {
            let fair = (self.images * groups).div_ceil(parts_at_least);
            (height, (columns / windows).min(fair).min(self.images).max(1))
        };
        let cut = |len: usize, step: usize| (0..len).step_by(step).map(move |i| i..len.min(i + step));
        let parts = cut(self.images, images).flat_map(|images| {
            (0..groups).flat_map(move |group| {
                let images = images.clone();
                cut(height, rows).map(move |rows| Part { images: images.clone(), group, rows })
            })
        });
        parts.collect()
    }

    /// Room for [`Planes::see`] of a part of that many images and rows of windows.
    fn room(&self, images: usize, rows: usize) -> usize {
        let (height, _, row) = self.padded(rows);
        images * self.channels * height * row
    }

    /// Of the padded planes that `rows` rows of windows see: rows, columns of one remainder, and elements of a row.
    fn padded(&self, rows: usize) -> (usize, usize, usize) {
        let Window { input, kernel, stride, padding, dilation } = *self.window;
        let height = (rows - 1) * stride[0] + (kernel[0] - 1) * dilation[0] + 1;
        let columns = (input[1] + 2 * padding[1]).div_ceil(stride[1]);
        (height, columns, columns * stride[1])
    }

    /// Shows a part: where it lies, if nothing needs padding or sorting, else in `room`.
    fn see<'b>(&self, part: &Part, room: &'b mut [T]) -> Seen<'b, T> {
        let Window { input, kernel, stride, padding, dilation } = *self.window;
        let shape = [part.rows.len(), self.window.output()[1]];
        let points = |plane: usize, row: usize, column: &dyn Fn(usize) -> usize| {
            (0..self.depth())
                .map(|p| {
                    let (channel, y, x) = (p / self.area(), p / kernel[1] % kernel[0], p % kernel[1]);
                    channel * plane + y * dilation[0] * row + column(x * dilation[1])
                })
                .collect()
        };
        let [_, plane, row, column] = self.strides;
        let in_place =
            padding == [0, 0] && stride[1] == 1 && column == 1 && self.strides.iter().all(|&s| s > 0);
        if in_place {
            let [image, plane, row] = [self.strides[0] as usize, plane as usize, row as usize];
            let start = part.images.start * image
                + part.group * self.channels * plane
                + part.rows.start * stride[0] * row;
            let seen_rows = (part.rows.len() - 1) * stride[0] + (kernel[0] - 1) * dilation[0] + 1;
            let len = (part.images.len() - 1) * image
                + (self.channels - 1) * plane
                + (seen_rows - 1) * row
                + input[1];
            // SAFETY: the first and the last element lie in the input, which nobody writes meanwhile.
            let x = unsafe { std::slice::from_raw_parts(self.start.at(start as isize), len) };
            return Seen { x, points: points(plane, row, &|x| x), image, row: row * stride[0], shape };
        }
        let (height, sorted, row) = self.padded(part.rows.len());
        let plane = height * row;
        self.pad(part, room);
        Seen {
            x: room,
            points: points(plane, row, &|x| x % stride[1] * sorted + x / stride[1]),
            image: self.channels * plane,
            row: row * stride[0],
            shape,
        }
    }

    /// Copies the planes of a part and the zeros around them; of a row first the columns 0, s, 2 s .., then 1, s + 1 .. for a stride of s.
    fn pad(&self, part: &Part, to: &mut [T]) {
        let Window { input, stride, padding, .. } = *self.window;
        let (height, sorted, row) = self.padded(part.rows.len());
        let first = part.rows.start * stride[0];
        to.fill(T::default());
        let channels = part.group * self.channels..(part.group + 1) * self.channels;
        let planes =
            part.images.clone().flat_map(|image| channels.clone().map(move |channel| (image, channel)));
        for ((image, channel), to) in planes.zip(to.chunks_exact_mut(height * row)) {
            let plane = self.start.at(image as isize * self.strides[0] + channel as isize * self.strides[1]);
            for (i, to) in to.chunks_exact_mut(row).enumerate() {
                let Some(y) = (first + i).checked_sub(padding[0]).filter(|&y| y < input[0]) else { continue };
                let from = plane.wrapping_offset(y as isize * self.strides[2]);
                if stride[1] == 1 && self.strides[3] == 1 {
                    // SAFETY: as above.
                    let from = unsafe { std::slice::from_raw_parts(from, input[1]) };
                    to[padding[1]..padding[1] + input[1]].copy_from_slice(from);
                    continue;
                }
                for (remainder, to) in to.chunks_exact_mut(sorted).enumerate() {
                    // Column `i` of these is column `i * stride + remainder - padding` of the input.
                    let skipped = padding[1].saturating_sub(remainder).div_ceil(stride[1]);
                    let columns = (skipped * stride[1] + remainder - padding[1]..input[1]).step_by(stride[1]);
                    for (to, x) in to[skipped..].iter_mut().zip(columns) {
                        // SAFETY: an element of the row.
                        *to = unsafe { *from.wrapping_offset(x as isize * self.strides[3]) };
                    }
                }
            }
        }
    }
}

impl<T> Seen<'_, T> {
    /// The columns in runs of at most [`SLACK`].
    fn runs(&self, columns: Range<usize>, runs: &mut Vec<Run>) {
        // Where a row of windows begins right after the last window of the one before, all are one row.
        let [rows, width] = self.shape;
        let [rows, width] = if self.row == width { [1, rows * width] } else { [rows, width] };
        runs.clear();
        let mut column = columns.start;
        while column < columns.end {
            let (image, y, x) = (column / (rows * width), column / width % rows, column % width);
            let len = (width - x).min(columns.end - column).min(SLACK);
            let from = image * self.image + y * self.row + x;
            runs.push(Run { from, to: column - columns.start, len });
            column += len;
        }
    }
}

/// Sizes and addresses of a convolution.
struct Convolution<'a, T> {
    planes: Planes<'a, T>,
    groups: usize,
    /// Output channels of a group.
    out_channels: usize,
    /// `[out_channels * groups, depth]`
    weight: Source<T>,
    bias: Option<Vec<T>>,
    y: SyncPtr<T>,
}

impl<T: Real + Float + Plus> Convolution<'_, T> {
    fn run(&self) -> Result<()> {
        let (planes, depth) = (&self.planes, self.planes.depth());
        let weights = (0..self.groups).map(|group| {
            let rows = group * self.out_channels;
            // SAFETY: a group's rows of the weight.
            unsafe { Packed::new(self.out_channels, depth, self.weight.from(rows, 0)) }
        });
        let weights = weights.collect::<Result<Vec<_>>>()?;
        let columns = (BLOCK / depth).clamp(FEWEST_COLUMNS, MOST_COLUMNS);
        let parts = planes.parts(self.groups, columns, 4 * parallel::num_threads());
        let Some(most) = parts.first() else { return Ok(()) };
        let windows = most.images.len() * most.rows.len() * planes.window.output()[1];
        let room = planes.room(most.images.len(), most.rows.len());
        parallel::ranges(parts.len(), PARALLEL.div_ceil(self.out_channels * windows * depth), |range| {
            workspace(room, |room_start: *mut T| {
                for part in &parts[range] {
                    let room = planes.room(part.images.len(), part.rows.len());
                    // SAFETY: the workspace is large enough for the largest part, and all bits are numbers.
                    let room = unsafe { std::slice::from_raw_parts_mut(room_start, room) };
                    self.multiply(&weights[part.group], part, &planes.see(part, room));
                }
            });
        });
        Ok(())
    }

    /// The output of a part: the weight times what it sees.
    fn multiply(&self, weight: &Packed<T>, part: &Part, seen: &Seen<'_, T>) {
        let [height, width] = self.planes.window.output();
        let windows = height * width;
        let columns = part.rows.len() * width;
        let mut runs = vec![];
        let pack = |rows: Range<usize>, columns: Range<usize>, width: usize, to: &mut [T]| {
            seen.runs(columns, &mut runs);
            copy_runs(seen.x, &seen.points[rows], &runs, width, to);
        };
        let output = |image: usize, channel: usize| {
            let plane = (image * self.groups + part.group) * self.out_channels + channel;
            self.y.at((plane * windows + part.rows.start * width) as isize)
        };
        let bias = |channel: usize| self.bias.as_ref().map(|b| b[part.group * self.out_channels + channel]);
        if part.images.len() == 1 {
            let image = part.images.start;
            let target = Target { at: output(image, 0), row: windows as isize, col: 1 };
            // SAFETY: the rows of all channels of the part.
            unsafe { weight.times(columns, target, pack) };
            for (channel, bias) in (0..self.out_channels).filter_map(|c| Some((c, bias(c)?))) {
                // SAFETY: these rows of a plane of the output belong to this part.
                let y = unsafe { std::slice::from_raw_parts_mut(output(image, channel), columns) };
                y.iter_mut().for_each(|y| *y += bias);
            }
            return;
        }
        let all = part.images.len() * columns;
        workspace(self.out_channels * all, |product: *mut T| {
            let target = Target { at: product, row: all as isize, col: 1 };
            // SAFETY: the workspace has room for the product, which is all written then.
            let product = unsafe {
                weight.times(all, target, pack);
                std::slice::from_raw_parts(product, self.out_channels * all)
            };
            for (channel, product) in product.chunks_exact(all).enumerate() {
                for (image, from) in part.images.clone().zip(product.chunks_exact(columns)) {
                    // SAFETY: as above.
                    let to = unsafe { std::slice::from_raw_parts_mut(output(image, channel), columns) };
                    match bias(channel) {
                        Some(bias) => to.iter_mut().zip(from).for_each(|(to, from)| *to = from.plus(bias)),
                        None => to.copy_from_slice(from),
                    }
                }
            }
        });
    }

    /// One channel to a group: no sums over channels.
    fn depthwise(&self) {
        let (planes, [height, width]) = (&self.planes, self.planes.window.output());
        let windows = height * width;
        let work = self.out_channels * windows * planes.area();
        // Windows of one row follow one another, so all rows can be computed as one, with some windows in between that do not exist.
        let (_, _, row) = planes.padded(height);
        let whole = planes.window.stride[0] == 1;
        let flat = if whole { (height - 1) * row + width } else { 0 };
        let room = planes.room(1, height);
        parallel::ranges(planes.images * self.groups, PARALLEL.div_ceil(work), |range| {
            workspace(room + flat, |start: *mut T| {
                // SAFETY: the workspace is as large, and all bits are numbers.
                let memory = unsafe { std::slice::from_raw_parts_mut(start, room + flat) };
                let (room, sums) = memory.split_at_mut(room);
                for (image, group) in range.map(|i| (i / self.groups, i % self.groups)) {
                    let seen = planes.see(&Part { images: image..image + 1, group, rows: 0..height }, room);
                    for channel in group * self.out_channels..(group + 1) * self.out_channels {
                        let bias = self.bias.as_ref().map_or(T::ZERO, |b| b[channel]);
                        let points = seen.points.iter().enumerate();
                        // SAFETY: an element of the weight.
                        let points: Vec<(usize, T)> =
                            points.map(|(i, &p)| (p, unsafe { *self.weight.from(channel, i).at })).collect();
                        let plane = image * self.groups * self.out_channels + channel;
                        let y = self.y.at((plane * windows) as isize);
                        // SAFETY: a plane of the output that belongs to this range.
                        let y = unsafe { std::slice::from_raw_parts_mut(y, windows) };
                        let whole = whole && seen.row == row;
                        if whole {
                            add_shifted(seen.x, &points, bias, sums);
                        }
                        for (i, y) in y.chunks_exact_mut(width).enumerate() {
                            match whole {
                                true => y.copy_from_slice(&sums[i * row..][..width]),
                                false => add_shifted(&seen.x[i * seen.row..], &points, bias, y),
                            }
                        }
                    }
                }
            });
        });
    }
}

/// The gradient of the weight: `grad` of each channel times the patches, added up over all windows of all images. Images form a
/// fixed number of blocks, whose sums are added in order.
fn weight_grad_of<T: Real + Float + Plus>(
    window: &Window,
    groups: usize,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let [out, channels, ..] = **outputs[0].layout.shape() else {
        unreachable!("the weight is [o, c, kh, kw]")
    };
    let planes = Planes::<T>::new(window, &inputs[0], channels);
    let grad = Dense::<T>::new(&inputs[1])?;
    let (depth, out_channels) = (planes.depth(), out / groups);
    let size = out_channels * depth;
    let columns = (BLOCK / depth).clamp(FEWEST_COLUMNS, MOST_COLUMNS);
    let parts = planes.parts(groups, columns, PARTS);
    let steps = parts.len() / groups;
    let blocks = steps.max(1).min((PART_ELEMENTS / (size * groups)).clamp(4, PARTS));
    let partial = Scratch::<T>::new(blocks * groups * size)?;
    let sums = partial.sync_ptr();
    let windows = window.output()[0] * window.output()[1];
    let work = (out_channels * depth * windows * planes.images / blocks).max(1);
    parallel::ranges(blocks * groups, PARALLEL.div_ceil(work), |range| {
        for (block, group) in range.map(|task| (task / groups, task % groups)) {
            // SAFETY: this task's own sums, zeroed before they are read; all-zero bits are 0.0.
            let sums = unsafe {
                let sums = sums.at(((block * groups + group) * size) as isize);
                sums.write_bytes(0, size);
                std::slice::from_raw_parts_mut(sums, size)
            };
            let mine = parts.iter().filter(|part| part.group == group);
            for part in
                mine.skip(steps * block / blocks).take(steps * (block + 1) / blocks - steps * block / blocks)
            {
                workspace(planes.room(part.images.len(), part.rows.len()), |room: *mut T| {
                    let len = planes.room(part.images.len(), part.rows.len());
                    // SAFETY: the workspace is as large, and all bits are numbers.
                    let seen = planes.see(part, unsafe { std::slice::from_raw_parts_mut(room, len) });
                    if planes.are_seen_alone(groups) {
                        add_alone(&planes, part, &seen, grad.all(), out_channels, groups, sums);
                    } else {
                        add_part(&planes, part, &seen, grad.all(), out_channels, groups, sums);
                    }
                });
            }
        }
    });
    let total = RowsMut::<T>::new(&outputs[0]);
    parallel::ranges(groups * size, GRAIN_MEMORY.div_ceil(blocks), |range| {
        // SAFETY: ranges of the output are disjoint; all sums have been written.
        unsafe {
            let total = total.part(range.start, range.len());
            total.fill(T::ZERO);
            for block in 0..blocks {
                let from = sums.at((block * groups * size + range.start) as isize);
                add_into(std::slice::from_raw_parts(from, range.len()), total);
            }
        }
    });
    Ok(())
}

/// Adds what a part contributes to the gradient of its group's weight, `[out_channels, depth]`.
fn add_part<T: Real + Float + Plus>(
    planes: &Planes<'_, T>,
    part: &Part,
    seen: &Seen<'_, T>,
    grad: &[T],
    out_channels: usize,
    groups: usize,
    sums: &mut [T],
) {
    let [height, width] = planes.window.output();
    let (windows, columns) = (height * width, part.rows.len() * width);
    let (depth, all) = (planes.depth(), part.images.len() * columns);
    let first =
        |image: usize| (image * groups + part.group) * out_channels * windows + part.rows.start * width;
    let copied = if part.images.len() > 1 { out_channels * all } else { 0 };
    workspace(depth * all + SLACK + copied, |start: *mut T| {
        // SAFETY: the workspace is as large, and all bits are numbers.
        let memory = unsafe { std::slice::from_raw_parts_mut(start, depth * all + SLACK + copied) };
        let (patches, grads) = memory.split_at_mut(depth * all + SLACK);
        let mut runs = vec![];
        seen.runs(0..all, &mut runs);
        copy_runs(seen.x, &seen.points, &runs, all, patches);
        let mut a = Source { at: grad[first(part.images.start)..].as_ptr(), row: windows as isize, col: 1 };
        if copied > 0 {
            for (channel, to) in grads.chunks_exact_mut(all).enumerate() {
                for (image, to) in part.images.clone().zip(to.chunks_exact_mut(columns)) {
                    to.copy_from_slice(&grad[first(image) + channel * windows..][..columns]);
                }
            }
            a = Source { at: grads.as_ptr(), row: all as isize, col: 1 };
        }
        let gemm = Gemm {
            m: out_channels,
            n: depth,
            k: all,
            a,
            b: Source { at: patches.as_ptr(), row: 1, col: all as isize },
            c: Target { at: sums.as_mut_ptr(), row: depth as isize, col: 1 },
            accumulate: true,
            parallel: false,
            finish: None,
        };
        // SAFETY: gradients and patches of this part, and this task's sums.
        unsafe { gemm.run() };
    });
}

/// The same where every output channel sees one channel: a dot product per point of the window.
fn add_alone<T: Real + Float + Plus>(
    planes: &Planes<'_, T>,
    part: &Part,
    seen: &Seen<'_, T>,
    grad: &[T],
    out_channels: usize,
    groups: usize,
    sums: &mut [T],
) {
    let [height, width] = planes.window.output();
    let (windows, rows) = (height * width, part.rows.len());
    // All rows as one, with zeros between them.
    let flat = (rows - 1) * seen.row + width;
    workspace(flat, |start: *mut T| {
        // SAFETY: the workspace is as large, and all bits are numbers.
        let spread = unsafe { std::slice::from_raw_parts_mut(start, flat) };
        spread.fill(T::ZERO);
        for (i, image) in part.images.clone().enumerate() {
            for (channel, sums) in sums.chunks_exact_mut(planes.area()).enumerate() {
                let plane = (image * groups + part.group) * out_channels + channel;
                let grad = &grad[plane * windows + part.rows.start * width..][..rows * width];
                for (grad, to) in grad.chunks_exact(width).zip(spread.chunks_mut(seen.row)) {
                    to[..width].copy_from_slice(grad);
                }
                for (sum, point) in sums.iter_mut().zip(&seen.points) {
                    let x = &seen.x[i * seen.image + point..][..flat];
                    let mut product = dot(spread, x);
                    if !product.to_f64().is_finite() {
                        // An infinity between the rows times zero would be NaN.
                        let rows = grad.chunks_exact(width).zip(x.chunks(seen.row));
                        product = rows.fold(T::ZERO, |sum, (g, x)| sum + dot(g, &x[..width]));
                    }
                    *sum += product;
                }
            }
        }
    });
}

simd_fn! {
    /// A panel of patches: row `i` begins at `i * width`, run by run. A run is copied in a fixed size, and what that writes too much the
    /// next run or row overwrites.
    fn copy_runs<S: Simd, T: Element>(x: &[T], points: &[usize], runs: &[Run], width: usize, to: &mut [T]) {
        let furthest = points.iter().max().zip(runs.iter().map(|run| run.from).max());
        let (Some((point, from)), Some(last)) = (furthest, runs.last()) else { return };
        if point + from + SLACK <= x.len() && (points.len() - 1) * width + last.to + SLACK <= to.len() {
            for (i, point) in points.iter().enumerate() {
                for run in runs {
                    // SAFETY: just checked for the furthest of them; `to` grows from run to run.
                    unsafe {
                        let from = x.as_ptr().add(point + run.from).cast::<[T; SLACK]>();
                        let to = to.as_mut_ptr().add(i * width + run.to).cast::<[T; SLACK]>();
                        to.write_unaligned(from.read_unaligned());
                    }
                }
            }
            return;
        }
        for (i, point) in points.iter().enumerate() {
            let row = &mut to[i * width..];
            for run in runs {
                let (from, to) = (&x[point + run.from..], &mut row[run.to..]);
                match (from.first_chunk::<SLACK>(), to.first_chunk_mut::<SLACK>()) {
                    (Some(from), Some(to)) => *to = *from,
                    _ => to[..run.len].copy_from_slice(&from[..run.len]),
                }
            }
        }
    }

    /// `y[i] = start + Σ weight · x[point + i]` over points of the window.
    fn add_shifted<S: Simd, T: Float>(x: &[T], points: &[(usize, T)], start: T, y: &mut [T]) {
        const LANES: usize = 64;
        let (whole, rest) = y.as_chunks_mut::<LANES>();
        let done = whole.len() * LANES;
        for (i, y) in whole.iter_mut().enumerate() {
            let mut sums = [start; LANES];
            for &(point, weight) in points {
                let x = &x[point + i * LANES..][..LANES];
                for l in 0..LANES {
                    sums[l] = x[l].mul_add::<S>(weight, sums[l]);
                }
            }
            *y = sums;
        }
        rest.fill(start);
        for &(point, weight) in points {
            for (y, &x) in rest.iter_mut().zip(&x[point + done..]) {
                *y = x.mul_add::<S>(weight, *y);
            }
        }
    }

    fn dot<S: Simd, T: Float>(a: &[T], b: &[T]) -> T {
        sum_lanes([a, b], |sum, [a, b]| a.mul_add::<S>(b, sum))
    }
}

#[cfg(test)]
mod tests {
    use crate::conv::tests::{seen, windows};
    use crate::testing::{Data, Draw, LAYS, assert_close, run};
    use orkest_core::op::Window;
    use orkest_core::{DType, Op};

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
                        let grad = draw.values(n * o * count);
                        let mut expected_grad = vec![0.0; weight.len()];
                        for image in 0..n {
                            for out in 0..o {
                                for (channel, point) in
                                    (0..group_in).flat_map(|c| (0..points).map(move |p| (c, p)))
                                {
                                    let plane = image * c + out / group_out * group_in + channel;
                                    for at in 0..count {
                                        let Some(place) = seen(&w, at, point) else { continue };
                                        expected_grad[(out * group_in + channel) * points + point] +=
                                            x[plane * h * wd + place] * grad[(image * o + out) * count + at];
                                    }
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
                        let grad = Data::laid(lay, dtype, &[n, o, height, width], &grad);
                        let op = Op::Conv2dWeightGrad { window: w, groups };
                        let shape = [o, group_in, w.kernel[0], w.kernel[1]];
                        let dw = run(&op, &[&x, &grad], &[(&shape, dtype)]).unwrap();
                        // Sums of thousands of terms.
                        assert_close(&dw[0].values(), &expected_grad, 1e-4, &format!("gradient {what}"));
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

    /// Neither what lies between rows nor the padding may turn an infinity elsewhere into NaN.
    #[test]
    fn infinities_stay_where_they_are_seen() {
        let w = Window { input: [5, 6], kernel: [3, 3], stride: [1, 1], padding: [1, 1], dilation: [1, 1] };
        for groups in [1, 2] {
            let mut x = vec![1.0; 2 * 30];
            x[5] = f64::INFINITY;
            let weight = vec![1.0; 2 * (2 / groups) * 9];
            let mut grad = vec![0.0; 2 * 30];
            grad[8] = 1.0;
            let x = Data::new(DType::F32, &[1, 2, 5, 6], &x);
            let weight = Data::new(DType::F32, &[2, 2 / groups, 3, 3], &weight);
            let op = Op::Conv2d { window: w, groups, bias: false };
            let y = run(&op, &[&x, &weight], &[(&[1, 2, 5, 6], DType::F32)]).unwrap();
            let seen: Vec<usize> = (0..30).filter(|i| y[0].values()[*i].is_infinite()).collect();
            assert_eq!(seen, [4, 5, 10, 11], "groups {groups}");
            assert!(y[0].values().iter().all(|y| !y.is_nan()));
            let grad = Data::new(DType::F32, &[1, 2, 5, 6], &grad);
            let op = Op::Conv2dWeightGrad { window: w, groups };
            let dw = run(&op, &[&x, &grad], &[(&[2, 2 / groups, 3, 3], DType::F32)]).unwrap();
            if groups == 2 {
                // Where the windows whose gradient is zero see the infinity, their product is NaN, and nowhere else.
                let values = dw[0].values();
                let nan: Vec<usize> = (0..18).filter(|&i| values[i].is_nan()).collect();
                assert_eq!(nan, [1, 2, 4, 5]);
                assert!((0..18).all(|i| nan.contains(&i) || values[i] == if i < 9 { 1.0 } else { 0.0 }));
            }
        }
    }
}
