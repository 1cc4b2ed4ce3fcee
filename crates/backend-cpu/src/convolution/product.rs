//! Convolution as a product: the weight times what the windows see, which is read where it lies in the planes. No patches are stored.
//!
//! The gradient of the input is such a convolution as well. With a stride of `s` it is `s` by `s` of them: results whose positions have one
//! remainder modulo `s` see the same points of the kernel. They are computed side by side and then put together.

use super::columns::{Columns, panels};
use super::planes::{Planes, Seen};
use crate::chunks::GRAIN_MEMORY;
use crate::gemm::{
    Finish, Laying, Left, PARALLEL, Packed, Places, Real, Steps, Target, Tiles, depths, workspace,
};
use crate::indexing::Plus;
use crate::math::Float;
use crate::memory::{Scratch, SyncPtr};
use crate::parallel;
use crate::simd::simd_fn;
use orkest_core::Result;
use orkest_core::op::Window;
use std::ops::Range;

/// Elements of padded planes that a task works on: they stay in a second-level cache beside a tile's part of the weight.
const ROOM: usize = 112 << 10;
/// The fewest windows for which a plane is cut.
const FEWEST_WINDOWS: usize = 256;
/// So many windows of small planes are enough for a task.
const ENOUGH_WINDOWS: usize = 384;

/// Lanes that compute nothing, times channels, for each lane that does, from which panels are worth their copies.
const IDLE: usize = 12;
/// Windows that are laid into panels at a time, or those of one image.
const COLUMNS: usize = 4096;

/// A point of the kernel: how far it lies from the beginning of a window, and its position in the weight.
pub(super) struct Tap {
    pub distance: [usize; 2],
    pub weight: isize,
}

/// Results of one remainder: what they see.
pub(super) struct Phase {
    pub taps: Vec<Tap>,
}

/// Where results belong: window `q` of phase `r` at `q * step + r` along each axis, if that is inside.
pub(super) struct Place<T> {
    pub y: SyncPtr<T>,
    pub size: [usize; 2],
    pub step: [usize; 2],
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
    // The window that sees position `r` at point `k`; those of positions a stride further are one further.
    let window = |d: usize, r: usize, k: usize| {
        let begin = (r + padding[d]) as isize - (k * dilation[d]) as isize;
        (begin % stride[d] as isize == 0).then(|| begin / stride[d] as isize)
    };
    let begin = [0, 1].map(|d| {
        let all = (0..stride[d]).flat_map(|r| (0..kernel[d]).filter_map(move |k| window(d, r, k)));
        all.min().unwrap_or(0)
    });
    let count = [0, 1].map(|d| input[d].div_ceil(stride[d]));
    let phases = (0..stride[0] * stride[1]).map(|phase| {
        let phase = [phase / stride[1], phase % stride[1]];
        let along = |d: usize| {
            (0..kernel[d]).filter_map(move |k| Some((k, (window(d, phase[d], k)? - begin[d]) as usize)))
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
        if self.wants_panels(&tiles) {
            return self.multiply_panels(&tiles);
        }
        let rows = tiles.rows(self.out_channels);
        let packed = self.pack(&tiles)?;
        let parts = self.parts(rows.count);
        let Some(most) = parts.first() else { return Ok(()) };
        let height = planes.windows[0];
        // Parts that differ in channels see the same: once for all.
        let all_channels = self.groups * self.channels;
        let shared = match planes.room(planes.images, all_channels, height) {
            room if room > 0 && most.tiles.len() < rows.count => {
                let room = Scratch::<T>::new(room)?;
                // SAFETY: the room is as large.
                let seen = unsafe { planes.see(0..planes.images, 0..all_channels, 0..height, room.as_ptr()) };
                Some((seen, room))
            }
            _ => None,
        };
        let room = match shared {
            Some(_) => 0,
            None => planes.room(most.images.len(), self.channels, most.rows.len()).next_multiple_of(16),
        };
        let work = self.phases.iter().map(|phase| phase.taps.len()).sum::<usize>()
            * self.channels
            * self.out_channels
            * planes.windows[0]
            * planes.windows[1]
            * planes.images
            * self.groups;
        // One by one where each is enough for a thread: they differ in size.
        let grain = PARALLEL.div_ceil((work / parts.len()).max(1));
        let run = |range: Range<usize>| {
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
                    let seen = match &shared {
                        Some((all, _)) => {
                            planes.from(all, part.images.start, channels.start, part.rows.start)
                        }
                        // SAFETY: as above.
                        None => unsafe {
                            planes.see(part.images.clone(), channels, part.rows.clone(), memory)
                        },
                    };
                    self.multiply(&tiles, &packed, part, &seen, tile, side);
                }
            });
        };
        if grain == 1 {
            parallel::for_each(parts.len(), |i| run(i..i + 1));
        } else {
            parallel::ranges(parts.len(), grain, run);
        }
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
                let left = self.left(group, &steps);
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
        let blocks_of_images = planes.images.div_ceil(images.min(planes.images).max(1));
        let images = planes.images.div_ceil(blocks_of_images.max(1)).max(1);
        let count = blocks_of_images * self.groups * height.div_ceil(rows);
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
        let offsets: Vec<Vec<usize>> = self.phases.iter().map(|phase| self.offsets(seen, phase)).collect();
        let all = (0..self.phases.len()).map(|phase| self.packed_len(tiles, phase)).sum::<usize>();
        // What cannot be cut by rows of windows is by vectors.
        let room = planes.room(part.images.len(), self.channels, shape[0]);
        let most = match direct && room > ROOM {
            true => (columns.len() * ROOM / room).max(1).next_multiple_of(Tiles::<T>::VECTORS),
            false => columns.len(),
        };
        let blocks = (0..columns.len()).step_by(most).map(|first| first..columns.len().min(first + most));
        for (vectors, i) in blocks.flat_map(|block| part.tiles.clone().map(move |i| (block.clone(), i))) {
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
                    for first in vectors.clone().step_by(Tiles::<T>::VECTORS) {
                        let last = vectors.end.min(first + Tiles::<T>::VECTORS) - 1;
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
                    self.put_channel(&part.images, part.group, part.rows.clone(), channel, bias, side);
                }
            }
        }
    }

    /// Writes a channel's results, `[phase][image][row][column]`, to where they belong.
    fn put_channel(
        &self,
        images: &Range<usize>,
        group: usize,
        rows: Range<usize>,
        channel: usize,
        bias: T,
        results: &[T],
    ) {
        let width = self.planes.windows[1];
        let (size, one) = (self.place.size[0] * self.place.size[1], rows.len() * width);
        for (n, image) in images.clone().enumerate() {
            let plane = (image * self.groups + group) * self.out_channels + channel;
            let y = self.place.y.at((plane * size) as isize);
            let phases = results.chunks_exact(images.len() * one);
            let phases: Vec<&[T]> = phases.map(|phase| &phase[n * one..][..one]).collect();
            // SAFETY: the plane's rows of this part are its own.
            unsafe { self.place.put_together(&phases, rows.clone(), width, width, bias, y) };
        }
    }

    /// Would vectors across rows be so empty that copies of what windows see are worth their time? That depends on how many channels share
    /// them.
    fn wants_panels(&self, tiles: &Tiles<T>) -> bool {
        let planes = &self.planes;
        let [height, width] = planes.windows;
        let results = planes.images * height * width;
        let computed = planes.images * planes.flat(height).next_multiple_of(tiles.lanes());
        let idle = computed.saturating_sub(results.next_multiple_of(tiles.lanes()));
        idle * self.out_channels > IDLE * results
    }

    /// The same as a product of matrices, one of which is what the windows of all images see, laid side by side panel by panel.
    fn multiply_panels(&self, tiles: &Tiles<T>) -> Result<()> {
        let (planes, phases) = (&self.planes, self.phases.len());
        let direct = self.place.step == [1, 1];
        let shape @ [height, width] = planes.windows;
        let wide = Tiles::<T>::VECTORS * tiles.lanes();
        let most = (COLUMNS / (height * width)).clamp(1, planes.images.max(1));
        let room = Scratch::<T>::new(planes.room(most, self.channels, height))?;
        let products =
            if direct && most == 1 { 0 } else { self.out_channels * phases * most * height * width };
        let products = Scratch::<T>::new(products)?;
        let at = products.sync_ptr();
        for start in (0..planes.images).step_by(most) {
            let images = start..planes.images.min(start + most);
            let results = images.len() * height * width;
            let row = phases * results;
            for group in 0..self.groups {
                let channels = group * self.channels..(group + 1) * self.channels;
                // SAFETY: the room is as large.
                let seen = unsafe { planes.see(images.clone(), channels, 0..height, room.as_ptr()) };
                let panels = panels(&seen, images.len(), shape, tiles.lanes());
                let put = |channel: usize, first: usize, products: &mut [T]| {
                    self.put_results(images.start, group, channel, first, products);
                };
                let add_bias = |channel: usize, _: usize, results: &mut [T]| {
                    let bias = self.bias_of(group, channel);
                    results.iter_mut().for_each(|x| *x = x.plus(bias));
                };
                // The results of one image are a matrix where they belong.
                let alone = direct && images.len() == 1;
                let finish: Option<Finish<'_, T>> = match self.bias {
                    Some(_) if alone => Some(&add_bias),
                    _ if direct && !alone => Some(&put),
                    _ => None,
                };
                for (number, phase) in self.phases.iter().enumerate() {
                    let count = phase.taps.len();
                    let c = if alone {
                        let plane = (images.start * self.groups + group) * self.out_channels;
                        self.place.y.at((plane * results) as isize)
                    } else {
                        at.at((number * results) as isize)
                    };
                    let c = Target { at: c, row: row as isize, col: 1 };
                    if count == 0 {
                        for channel in 0..self.out_channels {
                            // SAFETY: a row of the products; all-zero bits are 0.0.
                            unsafe { c.at.add(channel * row).write_bytes(0, results) };
                        }
                        continue;
                    }
                    let offsets = self.offsets(&seen, phase);
                    let steps: Vec<isize> = phase.taps.iter().map(|tap| tap.weight).collect();
                    let left = self.left(group, &steps);
                    let pack_a = |rows: Range<usize>, depth: Range<usize>, to: *mut T| {
                        let left = left.of_outers(depth.start / count..depth.end / count);
                        // SAFETY: elements of the weight, and room for them.
                        unsafe { tiles.pack(&left, rows, to) };
                    };
                    let pack_b = |columns: Range<usize>, depth: Range<usize>, to: *mut T| {
                        let vectors = panels[columns.start / wide].each_ref().map(Vec::as_slice);
                        // SAFETY: the windows see all taps, and there is room for a panel.
                        unsafe {
                            tiles.lay(&Laying { x: { seen }.x, offsets: &offsets[depth], vectors, to });
                        }
                    };
                    let packed = Packed {
                        m: self.out_channels,
                        n: results,
                        depths: depths(self.channels * count, count),
                        unit: count,
                        pack_a: &pack_a,
                        pack_b: &pack_b,
                        c,
                        accumulate: false,
                        parallel: true,
                        finish,
                    };
                    // SAFETY: the products have room for C.
                    unsafe { tiles.run(&packed) };
                }
                if direct {
                    continue;
                }
                parallel::ranges(self.out_channels, GRAIN_MEMORY.div_ceil(row), |channels| {
                    for channel in channels {
                        let bias = self.bias_of(group, channel);
                        // SAFETY: a row of the products.
                        let products =
                            unsafe { std::slice::from_raw_parts(at.at((channel * row) as isize), row) };
                        self.put_channel(&images, group, 0..height, channel, bias, products);
                    }
                });
            }
        }
        Ok(())
    }

    /// Writes a channel's results for neighbouring windows, counted from the first one of image `start`, to where they belong.
    fn put_results(&self, start: usize, group: usize, channel: usize, first: usize, results: &[T]) {
        let size = self.place.size[0] * self.place.size[1];
        let (bias, channel) = (self.bias_of(group, channel), group * self.out_channels + channel);
        let (mut at, mut rest) = (first, results);
        while !rest.is_empty() {
            let (of_image, after) = rest.split_at(rest.len().min(size - at % size));
            let plane = (start + at / size) * self.groups * self.out_channels + channel;
            let y = self.place.y.at((plane * size + at % size) as isize);
            // SAFETY: results of this channel, of which each is written once.
            let y = unsafe { std::slice::from_raw_parts_mut(y, of_image.len()) };
            y.iter_mut().zip(of_image).for_each(|(y, x)| *y = x.plus(bias));
            (at, rest) = (at + of_image.len(), after);
        }
    }

    /// What is added to a channel of a group.
    fn bias_of(&self, group: usize, channel: usize) -> T {
        self.bias.map_or(T::ZERO, |bias| bias[group * self.out_channels + channel])
    }

    /// Where the first window sees each point of a phase, in each channel.
    fn offsets(&self, seen: &Seen<T>, phase: &Phase) -> Vec<usize> {
        let channel = self.planes.channel(seen);
        let taps: Vec<usize> = phase.taps.iter().map(|tap| self.planes.offset(seen, tap.distance)).collect();
        (0..self.channels).flat_map(|c| taps.iter().map(move |tap| c * channel + tap)).collect()
    }

    /// The weight of a group, for points at these positions.
    fn left<'s>(&self, group: usize, steps: &'s [isize]) -> Left<'s, T> {
        let step = if steps.len() > 1 { steps[1] - steps[0] } else { 1 };
        let even = steps.iter().enumerate().all(|(i, s)| *s == steps[0] + i as isize * step);
        Left {
            at: self
                .weight
                .wrapping_offset(group as isize * self.strides[0] + if even { steps[0] } else { 0 }),
            row: self.strides[1],
            outer: self.strides[2],
            outers: self.channels,
            steps: if even { Steps::Even { count: steps.len(), step } } else { Steps::Listed(steps) },
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
        workspace(width * self.step[1], |line: *mut T| {
            // SAFETY: the workspace is as large, and all bits are numbers.
            let line = unsafe { std::slice::from_raw_parts_mut(line, width * self.step[1]) };
            let count = line.len().min(self.size[1]);
            for (i, q) in rows.enumerate() {
                for (r, phases) in phases.chunks_exact(self.step[1]).enumerate() {
                    let at = q * self.step[0] + r;
                    if at >= self.size[0] {
                        continue;
                    }
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
                    to.copy_from_slice(&line[..count]);
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
