//! The innermost loops of depthwise convolution: one plane and one kernel of `K` by `K`, read where they lie.
//!
//! A vector holds neighbours of a row. Lanes beyond a row are masked, so that no plane needs zeros around it; what a whole vector writes
//! beyond a row is written again with the next one.

use crate::gemm::{Portable, Vector};
use crate::simd::{Level, prefetch};

/// Windows over a plane, `S` apart.
#[derive(Clone, Copy)]
pub(super) struct Plane {
    pub x: *const f32,
    /// From one row to the next; elements of a row are neighbours.
    pub row: usize,
    pub size: [usize; 2],
    /// How far the first window begins before the plane.
    pub padding: [isize; 2],
}

/// For each column of the kernel where a vector of windows begins to see, and which of its lanes see the plane: of two vectors, where every
/// second element is seen.
struct Columns<M, const K: usize> {
    offset: [isize; K],
    seen: [[M; 2]; K],
}

impl<M: Copy, const K: usize> Columns<M, K> {
    /// For `count` windows from number `first` on.
    ///
    /// # Safety
    /// `V`'s instruction set.
    #[inline(always)]
    unsafe fn new<V: Vector<f32, Mask = M>, const S: usize>(
        plane: &Plane,
        first: usize,
        count: usize,
    ) -> Self {
        let offset = (first * S) as isize - plane.padding[1];
        if offset >= 0 && offset as usize + K - 1 + V::LANES * S <= plane.size[1] && count == V::LANES {
            // All windows of a vector in the midst of a row. SAFETY: the caller's promise.
            let all = unsafe { V::mask(0, V::LANES) };
            return Columns { offset: std::array::from_fn(|k| offset + k as isize), seen: [[all; 2]; K] };
        }
        // SAFETY: the caller's promise.
        let mut columns = Columns { offset: [0; K], seen: [[unsafe { V::mask(0, 0) }; 2]; K] };
        for k in 0..K {
            let offset = (first * S + k) as isize - plane.padding[1];
            let begin = (-offset).max(0) as usize;
            let end = (plane.size[1] as isize - offset).clamp(0, (count * S) as isize) as usize;
            columns.offset[k] = offset;
            // SAFETY: as above.
            columns.seen[k] = unsafe {
                let second = |lane: usize| lane.saturating_sub(V::LANES);
                [V::mask(begin, end), V::mask(second(begin), second(end))]
            };
        }
        columns
    }

    /// What the windows see of a row, for each column of the kernel.
    ///
    /// # Safety
    /// `V`'s instruction set, and a row of the plane.
    #[inline(always)]
    unsafe fn read<V: Vector<f32, Mask = M>, const S: usize>(&self, row: *const f32) -> [V; K] {
        // SAFETY: the caller's promise; masked lanes are not touched.
        unsafe {
            let mut seen = [V::splat(0.0); K];
            if S == 1 {
                for k in 0..K {
                    seen[k] = V::load_masked(row.wrapping_offset(self.offset[k]), self.seen[k][0]);
                }
                return seen;
            }
            for pair in 0..K.div_ceil(2) {
                let k = 2 * pair;
                let from = row.wrapping_offset(self.offset[k]);
                let first = V::load_masked(from, self.seen[k][0]);
                let second = V::load_masked(from.wrapping_add(V::LANES), self.seen[k][1]);
                let [even, odd] = V::unzip(first, second);
                seen[k] = even;
                if k + 1 < K {
                    seen[k + 1] = odd;
                }
            }
            seen
        }
    }
}

/// Writes the first `count` lanes to column `x` of row `y` of a plane, or more of what is written later.
///
/// # Safety
/// `V`'s instruction set, and the plane.
#[inline(always)]
unsafe fn put<V: Vector<f32>>(
    v: V,
    plane: *mut f32,
    [height, width]: [usize; 2],
    y: usize,
    x: usize,
    count: usize,
) {
    let at = y * width + x;
    // SAFETY: the caller's promise.
    unsafe {
        if at + V::LANES <= height * width {
            v.store(plane.add(at));
        } else {
            v.store_masked(plane.wrapping_add(at), V::mask(0, count));
        }
    }
}

/// Rows of results that are computed at once, and how many of the last ones: planes of usual networks have multiples of seven.
const ROWS: usize = 7;
const LAST_ROWS: usize = 2;
/// What the processor does not foresee: rows are read a few columns at a time, and these so many rows further on are asked for.
const AHEAD: usize = 4 * ROWS;

/// `y = bias + weight * x`, `y` of `size`.
///
/// # Safety
/// `V`'s instruction set, `K * K` weights, and the planes.
#[inline(always)]
unsafe fn forward<V: Vector<f32>, const K: usize, const S: usize>(
    plane: &Plane,
    weight: *const f32,
    bias: f32,
    y: *mut f32,
    size: [usize; 2],
) {
    let [height, width] = size;
    // From the right, so that what is written beyond a row is the beginning of the next one, which comes last.
    let last = (width - 1) / V::LANES;
    for band in (0..height).step_by(ROWS) {
        let end = height.min(band + ROWS);
        for x in (0..=last).rev().map(|i| i * V::LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let columns = Columns::<V::Mask, K>::new::<V, S>(plane, x, V::LANES.min(width - x));
                let mut row = band;
                while row < end {
                    if end - row > 2 * LAST_ROWS {
                        forward_rows::<V, K, S, ROWS>(plane, &columns, weight, bias, y, size, [row, x]);
                        row += ROWS;
                    } else {
                        forward_rows::<V, K, S, LAST_ROWS>(plane, &columns, weight, bias, y, size, [row, x]);
                        row += LAST_ROWS;
                    }
                }
            }
        }
    }
}

/// A vector of each of `R` rows of results, if there are so many, from row and column `first` on.
///
/// # Safety
/// As [`forward`].
#[inline(always)]
unsafe fn forward_rows<V: Vector<f32>, const K: usize, const S: usize, const R: usize>(
    plane: &Plane,
    columns: &Columns<V::Mask, K>,
    weight: *const f32,
    bias: f32,
    y: *mut f32,
    size: [usize; 2],
    [row, x]: [usize; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [V::splat(bias); R];
        let first = (row * S) as isize - plane.padding[0];
        // Written out: an index that is not a constant would keep the sums in memory.
        const { assert!((R - 1) * S + K <= 19) };
        macro_rules! rows_seen {
            ($($i:literal)*) => {
                $(if $i < (R - 1) * S + K && ((first + $i) as usize) < plane.size[0] {
                    let seen_row = plane.x.wrapping_add((first + $i) as usize * plane.row);
                    if $i < R * S {
                        let ahead = seen_row.wrapping_add(AHEAD * S * plane.row + x * S);
                        for v in 0..S {
                            prefetch(ahead.wrapping_add(v * V::LANES).cast());
                        }
                    }
                    let seen = columns.read::<V, S>(seen_row);
                    for r in 0..R {
                        if r * S <= $i && $i < r * S + K {
                            for k in 0..K {
                                let weight = V::splat(*weight.add(($i - r * S) * K + k));
                                sums[r] = sums[r].mul_add(seen[k], weight);
                            }
                        }
                    }
                })*
            };
        }
        rows_seen!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18);
        let count = V::LANES.min(size[1] - x);
        for r in 0..R {
            if row + r < size[0] {
                put(sums[r], y, size, row + r, x, count);
            }
        }
    }
}

/// The gradient of the plane `dx` of `size`, of which windows two apart were seen, whose gradients `plane` has; `ODD` is the remainder of
/// their padding modulo two.
///
/// # Safety
/// `V`'s instruction set, `K * K` weights, and the planes.
#[inline(always)]
unsafe fn backward<V: Vector<f32>, const K: usize, const ODD: usize>(
    plane: &Plane,
    weight: *const f32,
    dx: *mut f32,
    size: [usize; 2],
) {
    let [height, width] = size;
    let last = (width - 1) / (2 * V::LANES);
    for band in (0..height).step_by(AHEAD) {
        for x in (0..=last).rev().map(|i| i * 2 * V::LANES) {
            // Column `k` of the kernel leads to columns of one remainder, each from a window.
            let mut offset = [0; K];
            // SAFETY: the caller's promise; so for the two below.
            let mut seen = [unsafe { V::mask(0, 0) }; K];
            for k in 0..K {
                let remainder = (k + ODD) % 2;
                offset[k] = (x as isize + remainder as isize + plane.padding[1] - k as isize) / 2;
                let begin = (-offset[k]).max(0) as usize;
                let end = (plane.size[1] as isize - offset[k]).max(0) as usize;
                // SAFETY: as above.
                seen[k] = unsafe { V::mask(begin, end) };
            }
            let count = width - x;
            for y in band..height.min(band + AHEAD) {
                // SAFETY: as above; masked lanes are not touched.
                unsafe {
                    let mut sums = [V::splat(0.0); 2];
                    if y % 2 == 0 {
                        prefetch(plane.x.wrapping_add((y + AHEAD) / 2 * plane.row + x / 2).cast());
                    }
                    for ky in 0..K {
                        let window = y as isize + plane.padding[0] - ky as isize;
                        if window < 0 || window % 2 != 0 || window as usize / 2 >= plane.size[0] {
                            continue;
                        }
                        let row = plane.x.wrapping_add(window as usize / 2 * plane.row);
                        for k in 0..K {
                            let g = V::load_masked(row.wrapping_offset(offset[k]), seen[k]);
                            let weight = V::splat(*weight.add(ky * K + k));
                            sums[(k + ODD) % 2] = sums[(k + ODD) % 2].mul_add(g, weight);
                        }
                    }
                    let [left, right] = V::zip(sums[0], sums[1]);
                    put(left, dx, size, y, x, count.min(V::LANES));
                    if count > V::LANES {
                        put(right, dx, size, y, x + V::LANES, (count - V::LANES).min(V::LANES));
                    }
                }
            }
        }
    }
}

/// Rows of a plane whose products are added before they are added to what other rows give: they stay in the first-level cache, and the
/// error grows slowly.
const ROWS_TOGETHER: usize = 32;

/// Adds to `sums`, `[K * K][LANES]`, the products of what windows see and their gradients `g` of `size`, for `KY` rows of the kernel at a time.
///
/// # Safety
/// `V`'s instruction set, the planes, and the sums.
#[inline(always)]
unsafe fn weight_grad<V: Vector<f32>, const K: usize, const S: usize, const KY: usize>(
    plane: &Plane,
    g: *const f32,
    size: [usize; 2],
    sums: *mut f32,
) {
    let [height, width] = size;
    for band in (0..plane.size[0]).step_by(ROWS_TOGETHER) {
        let rows = band..plane.size[0].min(band + ROWS_TOGETHER);
        for x in (0..width).step_by(V::LANES) {
            let count = V::LANES.min(width - x);
            // SAFETY: the caller's promise.
            unsafe {
                let columns = Columns::<V::Mask, K>::new::<V, S>(plane, x, count);
                let mask = V::mask(0, count);
                for first in (0..K).step_by(KY) {
                    let mut products = [[V::splat(0.0); K]; KY];
                    for y in rows.clone() {
                        let row = plane.x.wrapping_add(y * plane.row);
                        if first == 0 {
                            for v in 0..S {
                                let ahead = ROWS_TOGETHER * plane.row + x * S + v * V::LANES;
                                prefetch(row.wrapping_add(ahead).cast());
                            }
                            prefetch(g.wrapping_add((y + ROWS_TOGETHER) / S * width + x).cast());
                        }
                        let seen = columns.read::<V, S>(row);
                        for ky in 0..KY {
                            let window = (y as isize + plane.padding[0]) - (first + ky) as isize;
                            let step = S as isize;
                            if window < 0 || window % step != 0 || window / step >= height as isize {
                                continue;
                            }
                            let at = (window / step) as usize * width + x;
                            let g = V::load_masked(g.wrapping_add(at), mask);
                            for k in 0..K {
                                products[ky][k] = products[ky][k].mul_add(g, seen[k]);
                            }
                        }
                    }
                    for ky in 0..KY {
                        for k in 0..K {
                            let sum = sums.add(((first + ky) * K + k) * V::LANES);
                            V::load(sum).add(products[ky][k]).store(sum);
                        }
                    }
                }
            }
        }
    }
}

pub(super) type Forward = unsafe fn(&Plane, *const f32, f32, *mut f32, [usize; 2]);
pub(super) type Backward = unsafe fn(&Plane, *const f32, *mut f32, [usize; 2]);
pub(super) type WeightGrad = unsafe fn(&Plane, *const f32, [usize; 2], *mut f32);

/// The sides of kernels that there are loops for.
pub(super) const SIDES: [usize; 3] = [3, 5, 7];

/// The loops of an instruction set, for each of [`SIDES`].
pub(super) struct Kernels {
    pub lanes: usize,
    /// For a stride of 1 and of 2.
    pub forward: [[Forward; 2]; 3],
    /// For a stride of 2, with an even and an odd padding.
    pub backward: [[Backward; 2]; 3],
    /// For a stride of 1 and of 2.
    pub weight_grad: [[WeightGrad; 2]; 3],
}

macro_rules! kernels {
    ($name:ident, $v:ty $(, #[$feature:meta])?) => {
        mod $name {
            use super::*;

            $(#[$feature])?
            unsafe fn forward<const K: usize, const S: usize>(
                plane: &Plane, weight: *const f32, bias: f32, y: *mut f32, size: [usize; 2],
            ) {
                // SAFETY: the caller has the instruction set and keeps the promise about the pointers; so for the others.
                unsafe { super::forward::<$v, K, S>(plane, weight, bias, y, size) }
            }
            $(#[$feature])?
            unsafe fn backward<const K: usize, const ODD: usize>(
                plane: &Plane, weight: *const f32, dx: *mut f32, size: [usize; 2],
            ) {
                // SAFETY: see forward.
                unsafe { super::backward::<$v, K, ODD>(plane, weight, dx, size) }
            }
            $(#[$feature])?
            unsafe fn weight_grad<const K: usize, const S: usize, const KY: usize>(
                plane: &Plane, g: *const f32, size: [usize; 2], sums: *mut f32,
            ) {
                // SAFETY: see forward.
                unsafe { super::weight_grad::<$v, K, S, KY>(plane, g, size, sums) }
            }
            pub(super) static KERNELS: Kernels = Kernels {
                lanes: <$v as Vector<f32>>::LANES,
                forward: [
                    [forward::<3, 1>, forward::<3, 2>],
                    [forward::<5, 1>, forward::<5, 2>],
                    [forward::<7, 1>, forward::<7, 2>],
                ],
                backward: [
                    [backward::<3, 0>, backward::<3, 1>],
                    [backward::<5, 0>, backward::<5, 1>],
                    [backward::<7, 0>, backward::<7, 1>],
                ],
                weight_grad: [
                    [weight_grad::<3, 1, 3>, weight_grad::<3, 2, 3>],
                    [weight_grad::<5, 1, 1>, weight_grad::<5, 2, 1>],
                    [weight_grad::<7, 1, 1>, weight_grad::<7, 2, 1>],
                ],
            };
        }
    };
}
#[cfg(target_arch = "x86_64")]
kernels!(avx512, std::arch::x86_64::__m512, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]);
#[cfg(target_arch = "x86_64")]
kernels!(avx2, std::arch::x86_64::__m256, #[target_feature(enable = "avx2,fma")]);
kernels!(portable, Portable<f32, 4>);

pub(super) fn kernels(level: Level) -> &'static Kernels {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => &avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => &avx2::KERNELS,
        _ => &portable::KERNELS,
    }
}
