//! The gradient of a convolution's weight: for every point of the kernel, the gradients of all windows times what they see there.
//!
//! The sum runs over windows, so what is seen is copied such that the channels of one place lie together: they, and those of neighbouring
//! places, are the columns of a product whose rows are the channels of the gradient. No patches are stored. With few channels that would
//! leave vectors empty; then each number is a dot product of planes.

use super::planes::{Planes, lay};
use crate::chunks::GRAIN_MEMORY;
use crate::gemm::{Left, PARALLEL, Real, Steps, Tiles, workspace};
use crate::indexing::Plus;
use crate::math::Float;
use crate::memory::{Scratch, SyncPtr};
use crate::parallel;
use crate::rows::{Dense, RowsMut, add_into, sum_lanes};
use crate::simd::simd_fn;
use orkest_core::op::Window;
use orkest_core::{Output, Result, View};
use std::ops::Range;

/// Elements that a task copies at a time.
const ROOM: usize = 64 << 10;
/// Partial sums: at most so many of a weight, and of all together at most so many elements.
const BLOCKS: usize = 32;
const BLOCK_ELEMENTS: usize = 512 << 10;
/// A place and those beside it have so many elements at least, or dot products are as good.
const FEWEST_TOGETHER: usize = 9;

pub(super) struct WeightGrad<'a, T> {
    window: &'a Window,
    groups: usize,
    /// Channels of a group.
    channels: usize,
    out_channels: usize,
    /// Few channels: dot products.
    alone: bool,
    planes: Planes<T>,
    grad: Dense<T>,
}

/// Some images, and rows of windows in each of them.
struct Part {
    images: Range<usize>,
    rows: Range<usize>,
}

/// Where sums lie: for each channel of the gradient `rows` rows of `row` elements, the last of which may have no meaning.
#[derive(Clone, Copy)]
struct Sums {
    rows: usize,
    row: usize,
}

pub(super) fn weight_grad_of<T: Real + Float + Plus>(
    window: &Window,
    groups: usize,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let [out, channels, ..] = **outputs[0].layout.shape() else {
        unreachable!("the weight is [o, c, kh, kw]")
    };
    let taps = [0, 1].map(|d| (0..window.kernel[d]).map(|k| k * window.dilation[d]).collect::<Vec<_>>());
    let together = if window.dilation[1] == 1 { window.kernel[1] * channels } else { channels };
    let alone = together < FEWEST_TOGETHER;
    // Channels together need no sorting.
    let step = if alone { window.stride } else { [1, 1] };
    let first = window.padding.map(|padding| -(padding as isize));
    let windows = window.output();
    let grad = WeightGrad::<T> {
        window,
        groups,
        channels,
        out_channels: out / groups,
        alone,
        planes: Planes::<T>::new(&inputs[0], first, step, [&taps[0], &taps[1]], windows)?,
        grad: Dense::new(&inputs[1])?,
    };
    grad.run(&RowsMut::new(&outputs[0]))
}

impl<T: Real + Float + Plus> WeightGrad<'_, T> {
    fn run(&self, total: &RowsMut<T>) -> Result<()> {
        let tiles = Tiles::<T>::new();
        let [kernel_height, kernel_width] = self.window.kernel;
        let area = kernel_height * kernel_width;
        let depth = self.channels * area;
        let padded = |len: usize| len.next_multiple_of(tiles.lanes());
        let sums = if self.alone {
            Sums { rows: 1, row: depth }
        } else if self.window.dilation[1] == 1 {
            Sums { rows: kernel_height, row: padded(kernel_width * self.channels) }
        } else {
            Sums { rows: area, row: padded(self.channels) }
        };
        let parts = self.parts();
        let size = self.out_channels * sums.rows * sums.row;
        // Neither depends on the number of threads: the sums of a block are added in order, and so are the blocks.
        let blocks =
            (BLOCK_ELEMENTS / (size * self.groups)).min(BLOCKS.div_ceil(self.groups)).min(parts.len());
        let blocks = blocks.max(1);
        let rows = tiles.rows(self.out_channels);
        let cuts = (4 * parallel::num_threads()).div_ceil(blocks * self.groups);
        let cuts = if parallel::num_threads() == 1 { 1 } else { cuts.min(rows.count) };
        let partial = Scratch::<T>::new(blocks * self.groups * size)?;
        let at = partial.sync_ptr();
        let tasks = blocks * self.groups * cuts;
        let work = self.planes.images * self.planes.windows[0] * self.planes.windows[1];
        let work = work * self.groups * self.out_channels * depth / tasks;
        parallel::ranges(tasks, PARALLEL.div_ceil(work.max(1)), |range| {
            for task in range {
                let (block, group, cut) = (task / cuts / self.groups, task / cuts % self.groups, task % cuts);
                let mine = rows.count * cut / cuts..rows.count * (cut + 1) / cuts;
                let outs = if mine.is_empty() { 0..0 } else { rows.start(mine.start)..rows.start(mine.end) };
                let row = sums.rows * sums.row;
                let first = (block * self.groups + group) * size + outs.start * row;
                // SAFETY: this task's own sums, zeroed before they are read; all-zero bits are 0.0.
                let to = unsafe {
                    at.at(first as isize).write_bytes(0, outs.len() * row);
                    std::slice::from_raw_parts_mut(at.at(first as isize), outs.len() * row)
                };
                let block = parts.len() * block / blocks..parts.len() * (block + 1) / blocks;
                for part in &parts[block] {
                    if self.alone {
                        self.add_alone(&tiles, part, group, outs.clone(), to);
                    } else {
                        self.add_product(&tiles, part, group, outs.clone(), sums, to);
                    }
                }
            }
        });
        self.total(sums, blocks, size, at, total);
        Ok(())
    }

    /// Cuts images and their rows such that what is copied of them stays in a cache.
    fn parts(&self) -> Vec<Part> {
        let [height, width] = self.planes.windows;
        let room = |rows: usize| match self.alone {
            true => self.planes.room(1, self.channels, rows).max(rows * width),
            false => self.room(1, rows).max(rows * width * 16),
        };
        let rows = height.div_ceil(room(height).div_ceil(ROOM).min(height));
        let images =
            if rows < height { 1 } else { (ROOM / room(height)).clamp(1, self.planes.images.max(1)) };
        let cut = |len: usize, step: usize| (0..len).step_by(step).map(move |i| i..len.min(i + step));
        let parts = cut(self.planes.images, images)
            .flat_map(|images| cut(height, rows).map(move |rows| Part { images: images.clone(), rows }));
        parts.collect()
    }

    /// Rows and columns of places that `rows` rows of windows see.
    fn places(&self, rows: usize) -> [usize; 2] {
        let Window { kernel, stride, dilation, .. } = *self.window;
        let seen = |d: usize, windows: usize| (windows - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1;
        [seen(0, rows), seen(1, self.planes.windows[1])]
    }

    /// Room for the places of some images, channels together.
    fn room(&self, images: usize, rows: usize) -> usize {
        let [height, width] = self.places(rows);
        images * height * width * self.channels
    }

    /// Adds what a part contributes to the rows `outs` of a group.
    fn add_product(
        &self,
        tiles: &Tiles<T>,
        part: &Part,
        group: usize,
        outs: Range<usize>,
        sums: Sums,
        to: &mut [T],
    ) {
        /// Elements behind the places that may be read or written.
        const SLACK: usize = 64;
        let Window { kernel, stride, dilation, .. } = *self.window;
        let [height, width] = self.places(part.rows.len());
        let (rows_of_windows, line) = (part.rows.len(), self.planes.windows[1]);
        let depth = part.images.len() * rows_of_windows * line;
        let room = (self.room(part.images.len(), part.rows.len()) + SLACK).next_multiple_of(16);
        let rows = tiles.rows(outs.len());
        let windows = self.planes.windows[0] * line;
        let channels = group * self.channels..(group + 1) * self.channels;
        workspace(room + tiles.width() * depth, |memory: *mut T| {
            // SAFETY: the workspace is as large, and all bits are numbers.
            let places = unsafe { std::slice::from_raw_parts_mut(memory, room) };
            let seen_row =
                |row: usize| (0..kernel[0]).any(|k| k * dilation[0] % stride[0] == row % stride[0]);
            let first = part.rows.start * stride[0];
            self.planes.see_together(
                part.images.clone(),
                channels,
                first,
                [height, width],
                seen_row,
                tiles,
                places,
            );
            let packed = memory.wrapping_add(room);
            let offsets: Vec<usize> = (0..part.images.len())
                .flat_map(|n| (0..rows_of_windows).map(move |y| n * height + y * stride[0]))
                .flat_map(|y| (0..line).map(move |x| (y * width + x * stride[1]) * self.channels))
                .collect();
            let row_starts: Vec<usize> = (0..sums.rows)
                .map(|row| match dilation[1] {
                    1 => row * dilation[0] * width * self.channels,
                    _ => {
                        (row / kernel[1] * dilation[0] * width + row % kernel[1] * dilation[1])
                            * self.channels
                    }
                })
                .collect();
            // Vectors that lie side by side in the sums.
            let vectors: Vec<usize> = row_starts
                .iter()
                .flat_map(|start| (0..sums.row).step_by(tiles.lanes()).map(move |i| start + i))
                .collect();
            for i in 0..rows.count {
                let out = outs.start + rows.start(i);
                let image = self.groups * self.out_channels * windows;
                let first = part.images.start * image
                    + (group * self.out_channels + out) * windows
                    + part.rows.start * line;
                let left = Left {
                    at: self.grad.all()[first..].as_ptr(),
                    row: windows as isize,
                    outer: image as isize,
                    outers: part.images.len(),
                    steps: Steps::Even { count: rows_of_windows * line, step: 1 },
                };
                // SAFETY: rows of the gradient, room for them, places and the sums of these rows.
                unsafe { tiles.pack(&left, 0..rows.size(i), packed) };
                let to = &mut to[rows.start(i) * sums.rows * sums.row..];
                for (j, pair) in vectors.chunks(Tiles::<T>::VECTORS).enumerate() {
                    let right = [0, pair.len() - 1].map(|v| places[pair[v]..].as_ptr());
                    let c = to[j * Tiles::<T>::VECTORS * tiles.lanes()..].as_mut_ptr();
                    // SAFETY: as above.
                    unsafe {
                        let c = (c, sums.rows * sums.row);
                        tiles.multiply(rows.size(i), packed, &offsets, &right[..pair.len()], c, true, None);
                    }
                }
            }
        });
    }

    /// The same by dot products of planes.
    fn add_alone(&self, tiles: &Tiles<T>, part: &Part, group: usize, outs: Range<usize>, to: &mut [T]) {
        let planes = &self.planes;
        let [height, width] = planes.windows;
        let (windows, rows) = (height * width, part.rows.len());
        let room = planes.room(part.images.len(), self.channels, rows).next_multiple_of(16);
        workspace(room, |memory: *mut T| {
            let channels = group * self.channels..(group + 1) * self.channels;
            // SAFETY: the workspace is as large.
            let seen = unsafe { planes.see(part.images.clone(), channels, part.rows.clone(), memory) };
            let Window { kernel, dilation, .. } = *self.window;
            let points: Vec<usize> = (0..self.channels * kernel[0] * kernel[1])
                .map(|i| {
                    let (channel, y, x) =
                        (i / kernel[1] / kernel[0], i / kernel[1] % kernel[0], i % kernel[1]);
                    channel * planes.channel(&seen) + planes.offset(&seen, [y * dilation[0], x * dilation[1]])
                })
                .collect();
            let mut products = vec![T::ZERO; points.len()];
            let furthest = points.iter().max().copied().unwrap_or(0);
            // All rows as one, with zeros between them.
            let flat = (rows - 1) * seen.row + width;
            // Spread for all images before they are read: a load that waits for two stores is slow.
            let (spread, count) = (rows * seen.row, part.images.len());
            workspace(count * spread, |memory: *mut T| {
                // SAFETY: the workspace is as large, and all bits are numbers.
                let memory = unsafe { std::slice::from_raw_parts_mut(memory, count * spread) };
                for (out, to) in outs.clone().zip(to.chunks_exact_mut(points.len())) {
                    let grad = |image: usize| {
                        let plane = (image * self.groups + group) * self.out_channels + out;
                        &self.grad.all()[plane * windows + part.rows.start * width..][..rows * width]
                    };
                    for (image, spread) in part.images.clone().zip(memory.chunks_exact_mut(spread)) {
                        lay(grad(image), width, rows, width, spread, seen.row);
                    }
                    for (i, (image, spread)) in
                        part.images.clone().zip(memory.chunks_exact(spread)).enumerate()
                    {
                        // SAFETY: all that is seen of the image.
                        let x = unsafe {
                            std::slice::from_raw_parts(seen.x.add(i * seen.image), furthest + flat)
                        };
                        tiles.dots(&spread[..flat], x, &points, &mut products);
                        for ((sum, product), point) in to.iter_mut().zip(&products).zip(&points) {
                            *sum += if product.to_f64().is_finite() {
                                *product
                            } else {
                                // An infinity between the rows times zero would be NaN.
                                let rows = grad(image).chunks_exact(width).zip(x[*point..].chunks(seen.row));
                                rows.fold(T::ZERO, |sum, (g, x)| sum + dot(g, &x[..width]))
                            };
                        }
                    }
                }
            });
        });
    }

    /// Adds the sums of the blocks, and puts them into the order of the weight.
    fn total(&self, sums: Sums, blocks: usize, size: usize, partial: SyncPtr<T>, total: &RowsMut<T>) {
        let [height, width] = self.window.kernel;
        let (channels, area, row) = (self.channels, height * width, sums.rows * sums.row);
        let outs = self.groups * self.out_channels;
        parallel::ranges(outs, GRAIN_MEMORY.div_ceil(blocks * row), |range| {
            let mut sum = vec![T::ZERO; row];
            for out in range {
                sum.fill(T::ZERO);
                for block in 0..blocks {
                    let at = block * self.groups * size + out * row;
                    // SAFETY: all sums have been written.
                    add_into(unsafe { std::slice::from_raw_parts(partial.at(at as isize), row) }, &mut sum);
                }
                // SAFETY: ranges of the output are disjoint.
                let to = unsafe { total.row(out, channels * area) };
                if self.alone {
                    to.copy_from_slice(&sum);
                    continue;
                }
                for point in 0..area {
                    // Rows of the kernel, and of each its points, or all points; of each all channels.
                    let start = match self.window.dilation[1] {
                        1 => point / width * sums.row + point % width * channels,
                        _ => point * sums.row,
                    };
                    for (to, sum) in to[point..].iter_mut().step_by(area).zip(&sum[start..][..channels]) {
                        *to = *sum;
                    }
                }
            }
        });
    }
}

simd_fn! {
    fn dot<S: Simd, T: Float>(a: &[T], b: &[T]) -> T {
        sum_lanes([a, b], |sum, [a, b]| a.mul_add::<S>(b, sum))
    }
}
