//! Copies pieces of a matrix into the order in which the kernels read them.

/// `to[p * width + i] = from[i * along + p * deep]` for `p < k`, `i < count`. Elements `count <= i < width` hold
/// no meaning afterwards.
///
/// This packs a panel of A (`i` runs over rows) as well as one of B (`i` runs over columns).
///
/// # Safety
/// `from` is good for all those elements, `to` for `k * width`; `transpose` needs its instruction set.
pub(super) unsafe fn panel<T: Copy>(
    width: usize,
    k: usize,
    count: usize,
    from: *const T,
    along: isize,
    deep: isize,
    to: *mut T,
    transpose: Transpose<T>,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        match width {
            4 => fixed::<T, 4>(k, count, from, along, deep, to, transpose),
            8 => fixed::<T, 8>(k, count, from, along, deep, to, transpose),
            16 => fixed::<T, 16>(k, count, from, along, deep, to, transpose),
            32 => fixed::<T, 32>(k, count, from, along, deep, to, transpose),
            _ => unreachable!("no kernel has panels of width {width}"),
        }
    }
}

/// Copies `count <= block` runs of `k` neighbouring elements, `along` apart, into columns:
/// `to[p * width + i] = from[i * along + p]`. Writes all `block` columns; those past `count` hold no meaning.
#[derive(Clone, Copy)]
pub(super) struct Transpose<T> {
    pub block: usize,
    pub run: unsafe fn(k: usize, count: usize, from: *const T, along: isize, to: *mut T, width: usize),
}

/// # Safety
/// As [`panel`].
unsafe fn fixed<T: Copy, const W: usize>(
    k: usize,
    count: usize,
    from: *const T,
    along: isize,
    deep: isize,
    to: *mut T,
    transpose: Transpose<T>,
) {
    // SAFETY: the caller's promise; `to` is indexed below `k * W`, `from` inside `count x k`.
    unsafe {
        if along == 1 && count >= 4 {
            // Two copies of a fixed size, which overlap where `count` is not twice that, are faster than one of any size.
            let run = match count {
                17.. => copy_runs::<T, 16>,
                9.. => copy_runs::<T, 8>,
                _ => copy_runs::<T, 4>,
            };
            return run(k, count, from, deep, to, W);
        }
        let mut done = 0;
        if deep == 1 {
            while done < count {
                let count = transpose.block.min(count - done);
                (transpose.run)(k, count, from.offset(done as isize * along), along, to.add(done), W);
                done += transpose.block;
            }
        }
        if done >= W {
            return;
        }
        for p in 0..k {
            let (from, to) = (from.offset(p as isize * deep), to.add(p * W));
            for i in done..count {
                *to.add(i) = *from.offset(i as isize * along);
            }
        }
    }
}

/// Copies `k` runs of `count` neighbouring elements, `HALF <= count <= 2 * HALF`.
///
/// # Safety
/// `k` runs of `count` elements to read, `k` rows of `width >= count` to write.
unsafe fn copy_runs<T: Copy, const HALF: usize>(
    k: usize,
    count: usize,
    from: *const T,
    deep: isize,
    to: *mut T,
    width: usize,
) {
    debug_assert!(HALF <= count && count <= 2 * HALF);
    let second = count - HALF;
    for p in 0..k {
        // SAFETY: both halves lie within the run.
        unsafe {
            let (from, to) = (from.offset(p as isize * deep), to.add(p * width));
            let halves = (
                from.cast::<[T; HALF]>().read_unaligned(),
                from.add(second).cast::<[T; HALF]>().read_unaligned(),
            );
            to.cast::<[T; HALF]>().write_unaligned(halves.0);
            to.add(second).cast::<[T; HALF]>().write_unaligned(halves.1);
        }
    }
}

/// For targets without a hand-written transposition.
///
/// # Safety
/// As [`Transpose`] says: `count` runs of `k` elements to read, `k` rows of `width` to write.
pub(super) unsafe fn portable<T: Copy>(
    k: usize,
    count: usize,
    from: *const T,
    along: isize,
    to: *mut T,
    width: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for p in 0..k {
            for i in 0..count {
                *to.add(p * width + i) = *from.offset(i as isize * along).add(p);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use crate::simd::prefetch;
    use std::arch::x86_64::*;

    /// Runs are short pieces of long rows, which no pattern of the processor's foretells: what the next calls read is asked for so many
    /// runs ahead.
    const AHEAD: isize = 16;

    /// Asks for the cache lines at `from`, `along` apart, one of each of eight runs.
    #[inline(always)]
    fn prefetch_runs<T>(from: *const T, along: isize) {
        for i in AHEAD..AHEAD + 8 {
            prefetch(from.wrapping_offset(i * along).cast());
        }
    }

    /// # Safety
    /// AVX; `count` runs of `k` elements to read, `k` rows of `width` to write.
    #[target_feature(enable = "avx")]
    pub unsafe fn f32x8(k: usize, count: usize, from: *const f32, along: isize, to: *mut f32, width: usize) {
        let whole = k / 8 * 8;
        // SAFETY: the caller's promise.
        unsafe {
            for p in (0..whole).step_by(8) {
                let from = from.add(p);
                if p % 16 == 0 {
                    prefetch_runs(from, along);
                }
                let r: [__m256; 8] =
                    std::array::from_fn(|i| _mm256_loadu_ps(from.offset(i.min(count - 1) as isize * along)));
                // Pairs, then quadruples, then the two halves of the registers.
                let (a0, a1) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
                let (a2, a3) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
                let (a4, a5) = (_mm256_unpacklo_ps(r[4], r[5]), _mm256_unpackhi_ps(r[4], r[5]));
                let (a6, a7) = (_mm256_unpacklo_ps(r[6], r[7]), _mm256_unpackhi_ps(r[6], r[7]));
                let b0 = _mm256_shuffle_ps::<0x44>(a0, a2);
                let b1 = _mm256_shuffle_ps::<0xee>(a0, a2);
                let b2 = _mm256_shuffle_ps::<0x44>(a1, a3);
                let b3 = _mm256_shuffle_ps::<0xee>(a1, a3);
                let b4 = _mm256_shuffle_ps::<0x44>(a4, a6);
                let b5 = _mm256_shuffle_ps::<0xee>(a4, a6);
                let b6 = _mm256_shuffle_ps::<0x44>(a5, a7);
                let b7 = _mm256_shuffle_ps::<0xee>(a5, a7);
                let to = to.add(p * width);
                _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x20>(b0, b4));
                _mm256_storeu_ps(to.add(width), _mm256_permute2f128_ps::<0x20>(b1, b5));
                _mm256_storeu_ps(to.add(2 * width), _mm256_permute2f128_ps::<0x20>(b2, b6));
                _mm256_storeu_ps(to.add(3 * width), _mm256_permute2f128_ps::<0x20>(b3, b7));
                _mm256_storeu_ps(to.add(4 * width), _mm256_permute2f128_ps::<0x31>(b0, b4));
                _mm256_storeu_ps(to.add(5 * width), _mm256_permute2f128_ps::<0x31>(b1, b5));
                _mm256_storeu_ps(to.add(6 * width), _mm256_permute2f128_ps::<0x31>(b2, b6));
                _mm256_storeu_ps(to.add(7 * width), _mm256_permute2f128_ps::<0x31>(b3, b7));
            }
            for p in whole..k {
                for i in 0..count {
                    *to.add(p * width + i) = *from.offset(i as isize * along).add(p);
                }
            }
        }
    }

    /// # Safety
    /// AVX; `count` runs of `k` elements to read, `k` rows of `width` to write.
    #[target_feature(enable = "avx")]
    pub unsafe fn f64x4(k: usize, count: usize, from: *const f64, along: isize, to: *mut f64, width: usize) {
        let whole = k / 4 * 4;
        // SAFETY: the caller's promise.
        unsafe {
            for p in (0..whole).step_by(4) {
                let from = from.add(p);
                let r: [__m256d; 4] =
                    std::array::from_fn(|i| _mm256_loadu_pd(from.offset(i.min(count - 1) as isize * along)));
                let (a0, a1) = (_mm256_unpacklo_pd(r[0], r[1]), _mm256_unpackhi_pd(r[0], r[1]));
                let (a2, a3) = (_mm256_unpacklo_pd(r[2], r[3]), _mm256_unpackhi_pd(r[2], r[3]));
                let to = to.add(p * width);
                _mm256_storeu_pd(to, _mm256_permute2f128_pd::<0x20>(a0, a2));
                _mm256_storeu_pd(to.add(width), _mm256_permute2f128_pd::<0x20>(a1, a3));
                _mm256_storeu_pd(to.add(2 * width), _mm256_permute2f128_pd::<0x31>(a0, a2));
                _mm256_storeu_pd(to.add(3 * width), _mm256_permute2f128_pd::<0x31>(a1, a3));
            }
            for p in whole..k {
                for i in 0..count {
                    *to.add(p * width + i) = *from.offset(i as isize * along).add(p);
                }
            }
        }
    }
}
