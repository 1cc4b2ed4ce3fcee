//! Convolution as a product: the weight times what the windows see, which is read where it lies in the planes. No patches are stored.
//!
//! The gradient of the input is such a convolution as well. With a stride of `s` it is `s` by `s` of them: results whose positions have one
//! remainder modulo `s` see the same points of the kernel. They are computed side by side and then put together.

use super::columns::{Columns, PIECE, lay_panel, pieces};
use super::planes::{Planes, Seen};
use crate::gemm::{Left, PARALLEL, Places, Real, Steps, Tiles, workspace};
use crate::indexing::Plus;
use crate::math::Float;
use crate::memory::{Scratch, SyncPtr};
use crate::parallel;
use crate::simd::simd_fn;
use orkest_core::Result;
use orkest_core::op::Window;
use std::ops::Range;

/// Elements of padded planes that a task works on: they stay in a second-level cache beside a tile's part of the weight.
const ROOM: usize = 96 << 10;
/// The fewest windows for which a plane is cut.
const FEWEST_WINDOWS: usize = 256;
/// So many windows of small planes are enough for a task.
const ENOUGH_WINDOWS: usize = 384;

/// Lanes that compute nothing, times channels, for each lane that does, from which panels are worth their copies.
const IDLE: usize = 12;

/// A point of the kernel: how far it lies from the beginning of a window, and its position in the weight.
pub(super) struct Tap {
    pub distance: [usize; 2],
    pub weight: isize,
}

/// Results of one remainder: what they see.
pub(super) struct Phase {
    pub taps: Vec<Tap>,
}

/// Where results belong: window `q` of phase `r` at `q * step + r - offset` along each axis, if that is inside.
pub(super) struct Place<T> {
    pub y: SyncPtr<T>,
    pub size: [usize; 2],
    pub step: [usize; 2],
    pub offset: [usize; 2],
}

/// A convolution, forwards or backwards.
pub(super) struct Product<'a, T> {
    pub planes: Planes<T>,
    pub groups: usize,
    /// Channels of a group: of the planes, and of the result.
    pub channels: usize,
    pub out_channels: usize,
    /// `step[0] * step[1]` of them.
    pub phases: Vec<Phase>,
    pub weight: *const T,
    /// In the weight, from one group, channel of the result, channel of the planes to the next.
    pub strides: [isize; 3],
    pub bias: Option<&'a [T]>,
    pub place: Place<T>,
}

// SAFETY: the weight is only read.
unsafe impl<T> Sync for Product<'_, T> {}

/// Some images of a group, rows of windows in each of them, and tiles of channels.
struct Part {
    images: Range<usize>,
    group: usize,
    rows: Range<usize>,
    tiles: Range<usize>,
}

/// What windows see: all points of the kernel. `strides` are those of its rows and columns in the weight.
pub(super) fn forward_taps(window: &Window, strides: [isize; 2]) -> Phase {
    let [height, width] = window.kernel;
    let taps = (0..height).flat_map(|y| {
        (0..width).map(move |x| Tap {
            distance: [y * window.dilation[0], x * window.dilation[1]],
            weight: y as isize * strides[0] + x as isize * strides[1],
        })
    });
    Phase { taps: taps.collect() }
}

/// What is seen backwards: for each remainder of the position the points of the kernel that lead there. Also how many windows there are
/// along each axis, and where the first begins.
pub(super) fn backward_taps(window: &Window, strides: [isize; 2]) -> (Vec<Phase>, [usize; 2], [isize; 2]) {
    let Window { input, kernel, stride, padding, dilation } = *window;
    let reach = [0, 1].map(|d| (kernel[d] - 1) * dilation[d] / stride[d]);
    let first = [0, 1].map(|d| padding[d] / stride[d]);
    let count = [0, 1].map(|d| (input[d] - 1 + padding[d]) / stride[d] - first[d] + 1);
    let begin = [0, 1].map(|d| first[d] as isize - reach[d] as isize);
    let phases = (0..stride[0] * stride[1]).map(|phase| {
        let phase = [phase / stride[1], phase % stride[1]];
        let along = |d: usize| {
            (0..kernel[d]).filter(move |k| k * dilation[d] % stride[d] == phase[d]).map(move |k| {
                // A point further on is reached from a window further back.
                (k, reach[d] - k * dilation[d] / stride[d])
            })
        };
        let taps = along(0).flat_map(|(ky, y)| {
            along(1).map(move |(kx, x)| Tap {
                distance: [y, x],
                weight: ky as isize * strides[0] + kx as isize * strides[1],
            })
        });
        Phase { taps: taps.collect() }
    });
    (phases.collect(), count, begin)
}

/// Along each axis, all distances of these points.
pub(super) fn distances(phases: &[Phase]) -> [Vec<usize>; 2] {
    [0, 1]
        .map(|d| phases.iter().flat_map(|phase| phase.taps.iter().map(move |tap| tap.distance[d])).collect())
}

impl<T: Real + Float + Plus> Product<'_, T> {
    pub fn run(&self) -> Result<()> {
        if self.is_alone() {
            self.alone();
            return Ok(());
        }
        let (tiles, planes) = (Tiles::<T>::new(), &self.planes);
        let rows = tiles.rows(self.out_channels);
        let packed = self.pack(&tiles)?;
        let parts = self.parts(rows.count);
        let Some(most) = parts.first() else { return Ok(()) };
        let room = planes.room(most.images.len(), self.channels, most.rows.len()).next_multiple_of(16);
        let work = self.phases.iter().map(|phase| phase.taps.len()).sum::<usize>()
            * self.channels
            * self.out_channels
            * planes.windows[0]
            * planes.windows[1]
            * planes.images
            * self.groups;
        parallel::ranges(parts.len(), PARALLEL.div_ceil((work / parts.len()).max(1)), |range| {
            let direct = self.place.step == [1, 1];
            let results = most.images.len() * most.rows.len() * planes.windows[1];
            let side = if direct { 0 } else { rows.largest() * self.phases.len() * results };
            let tile = rows.largest() * Tiles::<T>::VECTORS * tiles.lanes();
            let tile = tile.next_multiple_of(16);
            workspace(room + tile + side, |memory: *mut T| {
                // SAFETY: the workspace has room for the largest part, and all bits are numbers.
                let [tile, side] = unsafe {
                    [
                        std::slice::from_raw_parts_mut(memory.add(room), tile),
                        std::slice::from_raw_parts_mut(memory.add(room + tile), side),
                    ]
                };
                for part in &parts[range] {
                    let channels = part.group * self.channels..(part.group + 1) * self.channels;
                    // SAFETY: as above.
                    let seen =
                        unsafe { planes.see(part.images.clone(), channels, part.rows.clone(), memory) };
                    self.multiply(&tiles, &packed, part, &seen, tile, side);
                }
            });
        });
        Ok(())
    }

    /// Elements of the packed weight of a phase of a group, all channels.
    fn packed_len(&self, tiles: &Tiles<T>, phase: usize) -> usize {
        tiles.rows(self.out_channels).count * tiles.width() * self.channels * self.phases[phase].taps.len()
    }

    /// The weight: for each group, each phase, each tile what it multiplies.
    fn pack(&self, tiles: &Tiles<T>) -> Result<Scratch<T>> {
        let rows = tiles.rows(self.out_channels);
        let phases = self.phases.len();
        let all = (0..phases).map(|phase| self.packed_len(tiles, phase)).sum::<usize>();
        let packed = Scratch::<T>::new(self.groups * all)?;
        let to = packed.sync_ptr();
        let pieces = self.groups * phases * rows.count;
        parallel::ranges(pieces, (32 << 10) / (self.groups * all).div_ceil(pieces).max(1), |range| {
            for piece in range {
                let (group, phase, tile) =
                    (piece / rows.count / phases, piece / rows.count % phases, piece % rows.count);
                let taps = &self.phases[phase].taps;
                if taps.is_empty() {
                    continue;
                }
                let steps: Vec<isize> = taps.iter().map(|tap| tap.weight).collect();
                let step = if steps.len() > 1 { steps[1] - steps[0] } else { 1 };
                let even = steps.iter().enumerate().all(|(i, s)| *s == steps[0] + i as isize * step);
                let left = Left {
                    at: self
                        .weight
                        .wrapping_offset(group as isize * self.strides[0] + if even { steps[0] } else { 0 }),
                    row: self.strides[1],
                    outer: self.strides[2],
                    outers: self.channels,
                    steps: if even {
                        Steps::Even { count: steps.len(), step }
                    } else {
                        Steps::Listed(&steps)
                    },
                };
                let at = self.packed_at(tiles, all, group, phase) + tile * tiles.width() * left.depth();
                // SAFETY: elements of the weight, and a piece of the copy that this task alone writes.
                unsafe { tiles.pack(&left, rows.start(tile)..rows.start(tile + 1), to.at(at as isize)) };
            }
        });
        Ok(packed)
    }

    fn packed_at(&self, tiles: &Tiles<T>, all: usize, group: usize, phase: usize) -> usize {
        group * all + (0..phase).map(|phase| self.packed_len(tiles, phase)).sum::<usize>()
    }

    /// Cuts images and rows of windows such that their planes stay in a cache, and further until every thread has something to do.
    fn parts(&self, tiles: usize) -> Vec<Part> {
        let planes = &self.planes;
        let [height, width] = planes.windows;
        let threads = parallel::num_threads();
        let wanted = if threads > 1 { 4 * threads } else { 1 };
        let room = planes.room(1, self.channels, height).max(self.channels * height * width);
        let each = (planes.images * self.groups).max(1);
        let blocks = room
            .div_ceil(ROOM)
            .max(wanted.div_ceil(each))
            .min(height * width / FEWEST_WINDOWS)
            .clamp(1, height);
        let rows = height.div_ceil(blocks);
        // Small planes are better off together, which leaves the channels to be cut.
        let few = ENOUGH_WINDOWS.div_ceil(height * width);
        let images = match blocks {
            1 => {
                (ROOM / room.max(1)).max(few).min(each.div_ceil(wanted).max(few)).min(each.div_ceil(threads))
            }
            _ => 1,
        };
        let images = images.min(planes.images).max(1);
        let count = planes.images.div_ceil(images) * self.groups * height.div_ceil(rows);
        let cuts = wanted.div_ceil(count.max(1)).min(tiles);
        let cut = |len: usize, step: usize| (0..len).step_by(step).map(move |i| i..len.min(i + step));
        let parts = cut(planes.images, images).flat_map(|images| {
            (0..self.groups).flat_map(move |group| {
                let images = images.clone();
                cut(height, rows).flat_map(move |rows| {
                    let images = images.clone();
                    (0..cuts).map(move |i| Part {
                        images: images.clone(),
                        group,
                        rows: rows.clone(),
                        tiles: tiles * i / cuts..tiles * (i + 1) / cuts,
                    })
                })
            })
        });
        parts.collect()
    }

    /// The results of a part: for each tile of channels and each phase the weight times what the part sees.
    fn multiply(
        &self,
        tiles: &Tiles<T>,
        packed: &Scratch<T>,
        part: &Part,
        seen: &Seen<T>,
        tile: &mut [T],
        side: &mut [T],
    ) {
        let (planes, lanes, rows) = (&self.planes, tiles.lanes(), tiles.rows(self.out_channels));
        let direct = self.place.step == [1, 1];
        let size = self.place.size[0] * self.place.size[1];
        let shape = [part.rows.len(), planes.windows[1]];
        let results = part.images.len() * shape[0] * shape[1];
        // Results go to their place, or side by side: `[channel][phase][image][row][column]`.
        let image = if direct { self.groups * self.out_channels * size } else { shape[0] * shape[1] };
        let columns = Columns::new(seen, shape, lanes);
        let offsets: Vec<Vec<usize>> = self
            .phases
            .iter()
            .map(|phase| {
                let channel = planes.channel(seen);
                let taps: Vec<usize> =
                    phase.taps.iter().map(|tap| planes.offset(seen, tap.distance)).collect();
                (0..self.channels).flat_map(|c| taps.iter().map(move |tap| c * channel + tap)).collect()
            })
            .collect();
        let all = (0..self.phases.len()).map(|phase| self.packed_len(tiles, phase)).sum::<usize>();
        let idle = columns.len() * lanes * part.images.len() - results.next_multiple_of(lanes);
        if idle * self.out_channels > IDLE * results {
            let most = rows.start(part.tiles.end) - rows.start(part.tiles.start);
            let room = self.phases.len() * most * results;
            return workspace(room, |memory: *mut T| {
                // SAFETY: the workspace is as large, and all bits are numbers.
                let memory = unsafe { std::slice::from_raw_parts_mut(memory, room) };
                self.multiply_panels(tiles, packed, part, seen, shape, &offsets, memory);
            });
        }
        for i in part.tiles.clone() {
            let channels = rows.start(i)..rows.start(i + 1);
            let bias = self
                .bias
                .map(|bias| &bias[part.group * self.out_channels + channels.start..][..channels.len()]);
            let plane =
                |channel: usize| (part.images.start * self.groups + part.group) * self.out_channels + channel;
            for (phase, offsets) in offsets.iter().enumerate() {
                if offsets.is_empty() {
                    if !direct {
                        for r in 0..channels.len() {
                            side[(r * self.phases.len() + phase) * results..][..results].fill(T::ZERO);
                        }
                    }
                    continue;
                }
                let at = self.packed_at(tiles, all, part.group, phase) + i * tiles.width() * offsets.len();
                let a = packed.as_ptr().wrapping_add(at).cast_const();
                let (to, channel) = if direct {
                    let at = plane(channels.start) * size + part.rows.start * shape[1];
                    (self.place.y.at(at as isize), size)
                } else {
                    (side.as_mut_ptr().wrapping_add(phase * results), self.phases.len() * results)
                };
                for n in 0..part.images.len() {
                    let (x, to) = (seen.x.wrapping_add(n * seen.image), to.wrapping_add(n * image));
                    for first in (0..columns.len()).step_by(Tiles::<T>::VECTORS) {
                        let last = columns.len().min(first + Tiles::<T>::VECTORS) - 1;
                        let [left, right] = [first, last].map(|i| columns.vector(i));
                        let starts = [x.wrapping_add(left.0), x.wrapping_add(right.0)];
                        let bias = if direct { bias } else { None };
                        let places = Places { to, row: channel, runs: [left.1, right.1], bias };
                        // SAFETY: packed panels, planes with room for whole vectors, and the results of this part, which are its own.
                        unsafe {
                            let c = (tile.as_mut_ptr(), Tiles::<T>::VECTORS * lanes);
                            let starts = &starts[..=last - first];
                            tiles.multiply(channels.len(), a, offsets, starts, c, false, Some(places));
                        }
                    }
                }
            }
            if !direct {
                for (r, channel) in channels.clone().enumerate() {
                    let side = &side[r * self.phases.len() * results..][..self.phases.len() * results];
                    let bias = bias.map_or(T::ZERO, |bias| bias[r]);
                    self.put_channel(part, channel, bias, side);
                }
            }
        }
    }

    /// Writes a channel's results, `[phase][image][row][column]`, to where they belong.
    fn put_channel(&self, part: &Part, channel: usize, bias: T, results: &[T]) {
        let width = self.planes.windows[1];
        let (size, one) = (self.place.size[0] * self.place.size[1], part.rows.len() * width);
        for (n, image) in part.images.clone().enumerate() {
            let plane = (image * self.groups + part.group) * self.out_channels + channel;
            let y = self.place.y.at((plane * size) as isize);
            let phases = results.chunks_exact(part.images.len() * one);
            let phases: Vec<&[T]> = phases.map(|phase| &phase[n * one..][..one]).collect();
            // SAFETY: the plane's rows of this part are its own.
            unsafe {
                if self.place.step == [1, 1] {
                    let y = std::slice::from_raw_parts_mut(y.add(part.rows.start * width), one);
                    y.iter_mut().zip(phases[0]).for_each(|(y, x)| *y = x.plus(bias));
                } else {
                    self.place.put_together(&phases, part.rows.clone(), width, width, bias, y);
                }
            }
        }
    }

    /// The same with what the windows see copied into panels, piece by piece of the depth: worth it where many channels see planes
    /// so small that vectors across rows would be half empty. `sums` has room for all results.
    fn multiply_panels(
        &self,
        tiles: &Tiles<T>,
        packed: &Scratch<T>,
        part: &Part,
        seen: &Seen<T>,
        shape: [usize; 2],
        offsets: &[Vec<usize>],
        sums: &mut [T],
    ) {
        let (lanes, rows) = (tiles.lanes(), tiles.rows(self.out_channels));
        let wide = Tiles::<T>::VECTORS * lanes;
        let panels = pieces(seen, part.images.len(), shape, wide);
        let results = part.images.len() * shape[0] * shape[1];
        let most = rows.start(part.tiles.end) - rows.start(part.tiles.start);
        let all = (0..self.phases.len()).map(|phase| self.packed_len(tiles, phase)).sum::<usize>();
        let deepest =
            offsets.iter().map(|offsets| Tiles::<T>::depths(offsets.len()).largest()).max().unwrap_or(0);
        let of_panel: Vec<usize> = (0..deepest).map(|p| p * wide).collect();
        let padded = panels.len() * wide;
        let room = deepest * wide + PIECE;
        workspace(room + most * padded, |memory: *mut T| {
            // SAFETY: the workspace is as large, and all bits are numbers.
            let memory = unsafe { std::slice::from_raw_parts_mut(memory, room + most * padded) };
            let (panel, products) = memory.split_at_mut(room);
            for (phase, offsets) in offsets.iter().enumerate() {
                let depths = Tiles::<T>::depths(offsets.len());
                if offsets.is_empty() {
                    products.fill(T::ZERO);
                }
                for d in 0..depths.count {
                    let depth = depths.start(d)..depths.start(d + 1);
                    for (j, pieces) in panels.iter().enumerate() {
                        // SAFETY: the windows of the part see all taps.
                        unsafe { lay_panel(seen, &offsets[depth.clone()], pieces, wide, panel) };
                        for i in part.tiles.clone() {
                            let at = self.packed_at(tiles, all, part.group, phase)
                                + tiles.width() * (i * offsets.len() + depth.start);
                            let a = packed.as_ptr().wrapping_add(at).cast_const();
                            let row = rows.start(i) - rows.start(part.tiles.start);
                            let right = [panel.as_ptr(), panel[lanes..].as_ptr()];
                            let count = pieces.last().map_or(0, |last| last.to + last.len).div_ceil(lanes);
                            let c = (products[row * padded + j * wide..].as_mut_ptr(), padded);
                            // SAFETY: packed panels on both sides, and rows of the products.
                            unsafe {
                                let offsets = &of_panel[..depth.len()];
                                tiles.multiply(rows.size(i), a, offsets, &right[..count], c, d > 0, None);
                            }
                        }
                    }
                }
                for (channel, products) in products.chunks_exact(padded).enumerate() {
                    sums[(channel * self.phases.len() + phase) * results..][..results]
                        .copy_from_slice(&products[..results]);
                }
            }
        });
        for (i, sums) in sums.chunks_exact(self.phases.len() * results).enumerate() {
            let channel = rows.start(part.tiles.start) + i;
            let bias = self.bias.map_or(T::ZERO, |bias| bias[part.group * self.out_channels + channel]);
            self.put_channel(part, channel, bias, sums);
        }
    }
}

impl<T: Real + Float> Place<T> {
    /// Writes rows of windows into the plane at `y`, those of each phase `row` apart; `rows` are their numbers.
    ///
    /// # Safety
    /// The rows of the plane that are meant are valid for the call and nobody else's.
    pub unsafe fn put_together(
        &self,
        phases: &[&[T]],
        rows: Range<usize>,
        row: usize,
        width: usize,
        bias: T,
        y: *mut T,
    ) {
        let skipped = self.offset[1];
        workspace(width * self.step[1], |line: *mut T| {
            // SAFETY: the workspace is as large, and all bits are numbers.
            let line = unsafe { std::slice::from_raw_parts_mut(line, width * self.step[1]) };
            let count = (line.len() - skipped).min(self.size[1]);
            for (i, q) in rows.enumerate() {
                for (r, phases) in phases.chunks_exact(self.step[1]).enumerate() {
                    let at = (q * self.step[0] + r).checked_sub(self.offset[0]);
                    let Some(at) = at.filter(|&at| at < self.size[0]) else { continue };
                    let of = |phase: usize| &phases[phase][i * row..][..width];
                    if phases.len() == 2 {
                        mix_pairs(of(0), of(1), bias, line);
                    } else {
                        for c in 0..phases.len() {
                            for (to, x) in line[c..].iter_mut().step_by(phases.len()).zip(of(c)) {
                                *to = *x + bias;
                            }
                        }
                    }
                    // SAFETY: a row of the plane.
                    let to = unsafe { std::slice::from_raw_parts_mut(y.add(at * self.size[1]), count) };
                    to.copy_from_slice(&line[skipped..][..count]);
                }
            }
        });
    }
}

simd_fn! {
    fn mix_pairs<S: Simd, T: Float>(a: &[T], b: &[T], bias: T, to: &mut [T]) {
        for ((to, &a), &b) in to.as_chunks_mut::<2>().0.iter_mut().zip(a).zip(b) {
            *to = [a + bias, b + bias];
        }
    }
}
