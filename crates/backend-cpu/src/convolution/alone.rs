//! Depthwise convolution: every result sees one channel, so there is nothing to multiply but shifted planes by numbers.

use super::product::{Phase, Product};
use crate::gemm::{PARALLEL, Real, workspace};
use crate::indexing::Plus;
use crate::math::Float;
use crate::parallel;
use crate::simd::simd_fn;

/// Elements of a padded plane that stay in a first-level cache, with what is computed from them.
const ROOM: usize = 6 << 10;
/// The fewest elements that are computed at once.
const LANES: usize = 16;

impl<T: Real + Float + Plus> Product<'_, T> {
    /// Does [`Product::alone`] do it?
    pub fn is_alone(&self) -> bool {
        self.channels == 1 && self.groups > 1
    }

    /// For channels that are seen alone.
    pub fn alone(&self) {
        let planes = &self.planes;
        let [height, width] = planes.windows;
        // Bands of rows.
        let band = (ROOM * height / planes.room(1, 1, height).max(1)).clamp(1, height);
        let room = planes.room(1, 1, band).next_multiple_of(LANES);
        let taps: usize = self.phases.iter().map(|phase| phase.taps.len()).sum();
        let work = self.out_channels * height * width * taps;
        let [one_row, one_column] = self.place.step;
        let direct = one_row * one_column == 1;
        let size = self.place.size[0] * self.place.size[1];
        let images = planes.images;
        // Several planes at a time, first all copies and then all sums: a load that waits for two stores is slow.
        let batch = (ROOM / room.max(band * width)).clamp(1, self.groups);
        let room = planes.room(1, batch, band).next_multiple_of(LANES);
        parallel::ranges(images * self.groups, PARALLEL.div_ceil(8 * work.max(1)), |range| {
            for start in (0..height).step_by(band) {
                let rows = start..height.min(start + band);
                // The distance between rows is known when a plane is seen; it is the same for all planes.
                let mut points: Vec<Vec<(usize, T)>> = vec![];
                let mut sums: Vec<T> = vec![];
                workspace(room, |room: *mut T| {
                    let mut next = range.start;
                    while next < range.end {
                        let (image, first) = (next / self.groups, next % self.groups);
                        let groups = first..self.groups.min(first + batch).min(first + range.end - next);
                        next += groups.len();
                        // SAFETY: the workspace is large enough.
                        let seen =
                            unsafe { planes.see(image..image + 1, groups.clone(), rows.clone(), room) };
                        let flat = ((rows.len() - 1) * seen.row + width).max(LANES);
                        let one = self.out_channels * self.phases.len() * flat;
                        if points.is_empty() {
                            let offset = |phase: &Phase| {
                                let taps = phase.taps.iter();
                                taps.map(|tap| (planes.offset(&seen, tap.distance), T::ZERO)).collect()
                            };
                            points = self.phases.iter().map(offset).collect();
                            sums = vec![T::ZERO; batch * one];
                        }
                        let furthest = points.iter().flatten().map(|point| point.0).max().unwrap_or(0);
                        let channels = groups.start * self.out_channels..groups.end * self.out_channels;
                        let bias = |channel: usize| self.bias.map_or(T::ZERO, |bias| bias[channel]);
                        let each = channels.clone().zip(sums.chunks_exact_mut(self.phases.len() * flat));
                        for (channel, sums) in each {
                            let (group, out) = (channel / self.out_channels, channel % self.out_channels);
                            let at = (group - groups.start) * planes.channel(&seen);
                            // SAFETY: all that is seen; behind it there is slack where there are fewer elements than lanes.
                            let x = unsafe { std::slice::from_raw_parts(seen.x.add(at), flat + furthest) };
                            let weight = self.weight.wrapping_offset(
                                group as isize * self.strides[0] + out as isize * self.strides[1],
                            );
                            let phases = points.iter_mut().zip(&self.phases).zip(sums.chunks_exact_mut(flat));
                            for ((points, phase), sums) in phases {
                                for (point, tap) in points.iter_mut().zip(&phase.taps) {
                                    // SAFETY: an element of the weight.
                                    point.1 = unsafe { *weight.offset(tap.weight) };
                                }
                                add_shifted(x, points, if direct { bias(channel) } else { T::ZERO }, sums);
                            }
                        }
                        for (channel, sums) in channels.zip(sums.chunks_exact(self.phases.len() * flat)) {
                            let plane = image * self.groups * self.out_channels + channel;
                            let y = self.place.y.at((plane * size) as isize);
                            // SAFETY: rows of a plane that belongs to this range.
                            unsafe {
                                if direct {
                                    let y = y.add(rows.start * width);
                                    let y = std::slice::from_raw_parts_mut(y, rows.len() * width);
                                    take_rows(sums, seen.row, width, y);
                                } else {
                                    let phases: Vec<&[T]> = sums.chunks_exact(flat).collect();
                                    let rows = rows.clone();
                                    self.place.put_together(&phases, rows, seen.row, width, bias(channel), y);
                                }
                            }
                        }
                    }
                });
            }
        });
    }
}

simd_fn! {
    /// `y[i] = start + Σ weight · x[point + i]` over points of the window, for at least [`LANES`] elements.
    fn add_shifted<S: Simd, T: Float>(x: &[T], points: &[(usize, T)], start: T, y: &mut [T]) {
        let mut at = 0;
        while at + 4 * LANES <= y.len() {
            add_some::<S, T, { 4 * LANES }>(x, points, start, y, at);
            at += 4 * LANES;
        }
        while at + LANES <= y.len() {
            add_some::<S, T, LANES>(x, points, start, y, at);
            at += LANES;
        }
        if at < y.len() {
            add_some::<S, T, LANES>(x, points, start, y, y.len() - LANES);
        }
    }

    /// Rows that lie `row` apart, one after the other.
    fn take_rows<S: Simd, T: Float>(from: &[T], row: usize, width: usize, to: &mut [T]) {
        let (rows, whole) = (to.len() / width, width.next_multiple_of(LANES));
        // Rows for which pieces end inside both. What they write too much is written again with the next row.
        let easy = match (from.len().checked_sub(whole), to.len().checked_sub(whole)) {
            (Some(from), Some(to)) => (from / row + 1).min(to / width + 1).min(rows),
            _ => 0,
        };
        for i in 0..easy {
            let mut x = 0;
            while x < width {
                // SAFETY: row `i` is one of those.
                unsafe {
                    let piece = from.as_ptr().add(i * row + x).cast::<[T; LANES]>().read_unaligned();
                    to.as_mut_ptr().add(i * width + x).cast::<[T; LANES]>().write_unaligned(piece);
                }
                x += LANES;
            }
        }
        for i in easy..rows {
            to[i * width..][..width].copy_from_slice(&from[i * row..][..width]);
        }
    }
}

#[inline(always)]
fn add_some<S: crate::simd::Simd, T: Float, const N: usize>(
    x: &[T],
    points: &[(usize, T)],
    start: T,
    y: &mut [T],
    at: usize,
) {
    let mut sums = [start; N];
    for &(point, weight) in points {
        let x = &x[point + at..][..N];
        for l in 0..N {
            sums[l] = x[l].mul_add::<S>(weight, sums[l]);
        }
    }
    y[at..][..N].copy_from_slice(&sums);
}
