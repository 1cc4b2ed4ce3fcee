//! Square tiles of a matrix, turned over in registers.
//!
//! A tile has as many rows as a vector has lanes. To put row `i` and row `i + n / 2` together lane by lane, for all `i`, moves the
//! leading bit of the row behind the bits of the column; after as many rounds as a lane's number has bits, rows and columns
//! have changed places. So all that a kernel needs is an instruction that interleaves two vectors, for each size of element.

use crate::simd::Level;

/// A kernel for elements of one size.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Rows and columns.
    pub side: usize,
    /// Turns over some tiles that lie side by side.
    pub run: unsafe fn(&Tiles),
}

/// `count` tiles side by side, all distances in bytes: element `(i, j)` of them is read at `from + i * from_row` in column `j` and
/// written at `to + j * to_row` in column `i`.
pub(crate) struct Tiles {
    pub count: usize,
    pub from: *const u8,
    pub from_row: isize,
    pub to: *mut u8,
    pub to_row: isize,
    /// Past the caches: rows of tiles are written at multiples of their own size.
    pub stream: bool,
}

/// The kernel for elements of 1, 2, 4 or 8 bytes.
pub(crate) fn tile(element: usize) -> Tile {
    #[cfg(target_arch = "x86_64")]
    match crate::simd::level() {
        Level::Avx512 => return x86::avx512(element),
        Level::Avx2 => return x86::avx2(element),
        Level::Baseline => {}
    }
    baseline(element)
}

#[cfg(target_arch = "x86_64")]
fn baseline(element: usize) -> Tile {
    x86::sse2(element)
}

#[cfg(not(target_arch = "x86_64"))]
fn baseline(element: usize) -> Tile {
    match element {
        1 => Tile { side: 16, run: turn::<Lanes<u8, 16>, 16> },
        2 => Tile { side: 8, run: turn::<Lanes<u16, 8>, 8> },
        4 => Tile { side: 4, run: turn::<Lanes<u32, 4>, 4> },
        _ => Tile { side: 2, run: turn::<Lanes<u64, 2>, 2> },
    }
}

/// After the last tile that was written past the caches: other threads see what was written as after ordinary stores.
pub(crate) fn finish_streaming() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// A vector of elements of some size.
///
/// # Safety
/// Every method needs the instruction set of the implementing type, and pointers good for all lanes.
trait Vector: Copy {
    unsafe fn load(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut u8);
    /// Past the caches; `to` is a multiple of the vector's size.
    unsafe fn stream(self, to: *mut u8);
    /// `a0 b0 a1 b1 ..`, first half and second half.
    unsafe fn interleave(a: Self, b: Self) -> (Self, Self);
}

/// # Safety
/// `V`'s instruction set, and pointers good for the tiles.
#[inline(always)]
unsafe fn turn<V: Vector, const SIDE: usize>(tiles: &Tiles) {
    let &Tiles { count, from, from_row, to, to_row, stream } = tiles;
    for tile in 0..count {
        let from = from.wrapping_add(tile * size_of::<V>());
        let to = to.wrapping_offset((tile * SIDE) as isize * to_row);
        // SAFETY: the caller's promise: rows of this tile, and of the same tile turned over.
        unsafe {
            let mut rows = [V::load(from); SIDE];
            for i in 1..SIDE {
                rows[i] = V::load(from.wrapping_offset(i as isize * from_row));
            }
            for _ in 0..SIDE.ilog2() {
                let old = rows;
                for i in 0..SIDE / 2 {
                    (rows[2 * i], rows[2 * i + 1]) = V::interleave(old[i], old[i + SIDE / 2]);
                }
            }
            for i in 0..SIDE {
                let to = to.wrapping_offset(i as isize * to_row);
                if stream { rows[i].stream(to) } else { rows[i].store(to) }
            }
        }
    }
}

/// Lanes as an array, of which the compiler makes what the target has.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy)]
struct Lanes<T, const N: usize>([T; N]);

#[cfg(not(target_arch = "x86_64"))]
impl<T: Copy, const N: usize> Vector for Lanes<T, N> {
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller gives a pointer to N elements.
        unsafe { Lanes(from.cast::<[T; N]>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: as above.
        unsafe { to.cast::<[T; N]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, to: *mut u8) {
        // SAFETY: as above.
        unsafe { self.store(to) }
    }
    #[inline(always)]
    unsafe fn interleave(a: Self, b: Self) -> (Self, Self) {
        let pick = |i: usize| if i % 2 == 0 { a.0[i / 2] } else { b.0[i / 2] };
        (Lanes(std::array::from_fn(pick)), Lanes(std::array::from_fn(|i| pick(i + N))))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Tile, Tiles, Vector, turn};
    use std::arch::x86_64::*;

    /// A vector type of its own for each size of element, and the kernels of a level.
    macro_rules! level {
        ($level:ident, $features:literal, $v:ty, $load:ident, $store:ident, $stream:ident,
         $($element:literal: $name:ident, $kernel:ident, $side:literal, |$a:ident, $b:ident| $interleave:expr;)*) => {
            $(
                #[derive(Clone, Copy)]
                struct $name($v);

                impl Vector for $name {
                    #[inline(always)]
                    unsafe fn load(from: *const u8) -> Self {
                        // SAFETY: the caller has the instructions; so for all below, with pointers as the trait asks.
                        unsafe { $name($load(from.cast())) }
                    }
                    #[inline(always)]
                    unsafe fn store(self, to: *mut u8) {
                        // SAFETY: see load.
                        unsafe { $store(to.cast(), self.0) }
                    }
                    #[inline(always)]
                    unsafe fn stream(self, to: *mut u8) {
                        // SAFETY: see load.
                        unsafe { $stream(to.cast(), self.0) }
                    }
                    #[inline(always)]
                    unsafe fn interleave(a: Self, b: Self) -> (Self, Self) {
                        let ($a, $b) = (a.0, b.0);
                        // SAFETY: see load.
                        let (low, high) = unsafe { $interleave };
                        ($name(low), $name(high))
                    }
                }

                /// # Safety
                /// As [`turn`].
                #[target_feature(enable = $features)]
                unsafe fn $kernel(tiles: &Tiles) {
                    // SAFETY: the features are on; the rest is the caller's promise.
                    unsafe { turn::<$name, $side>(tiles) }
                }
            )*

            pub fn $level(element: usize) -> Tile {
                match element {
                    $($element => Tile { side: $side, run: $kernel },)*
                    _ => unreachable!("no element has {element} bytes"),
                }
            }
        };
    }

    level! {
        sse2, "sse2", __m128i, _mm_loadu_si128, _mm_storeu_si128, _mm_stream_si128,
        1: Sse2U8, sse2_u8, 16, |a, b| (_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b));
        2: Sse2U16, sse2_u16, 8, |a, b| (_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b));
        4: Sse2U32, sse2_u32, 4, |a, b| (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
        8: Sse2U64, sse2_u64, 2, |a, b| (_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b));
    }

    /// AVX2 interleaves within its halves only.
    macro_rules! across {
        ($low:expr, $high:expr) => {{
            let (low, high) = ($low, $high);
            (_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high))
        }};
    }

    level! {
        avx2, "avx2", __m256i, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_stream_si256,
        1: Avx2U8, avx2_u8, 32, |a, b| across!(_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
        2: Avx2U16, avx2_u16, 16, |a, b| across!(_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
        4: Avx2U32, avx2_u32, 8, |a, b| across!(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        8: Avx2U64, avx2_u64, 4, |a, b| across!(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    }

    /// Which lanes of two vectors (the second's from `N` on) make the first (`start` 0) or the second half (`start` N / 2).
    const fn places<const N: usize>(start: usize) -> [usize; N] {
        let (mut places, mut i) = ([0; N], 0);
        while i < N {
            places[i] = start + i / 2 + i % 2 * N;
            i += 1;
        }
        places
    }

    macro_rules! permutation {
        ($n:literal, $t:ty, $start:expr) => {{
            const PLACES: [$t; $n] = {
                let (places, mut lanes, mut i) = (places::<$n>($start), [0; $n], 0);
                while i < $n {
                    lanes[i] = places[i] as $t;
                    i += 1;
                }
                lanes
            };
            _mm512_loadu_si512(PLACES.as_ptr().cast())
        }};
    }

    macro_rules! permuted {
        ($permute:ident, $n:literal, $t:ty, $a:ident, $b:ident) => {
            ($permute($a, permutation!($n, $t, 0), $b), $permute($a, permutation!($n, $t, $n / 2), $b))
        };
    }

    // Bytes would need VBMI: they go as with AVX2.
    level! {
        avx512_wide, "avx512f,avx512bw", __m512i, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_stream_si512,
        2: Avx512U16, avx512_u16, 32, |a, b| permuted!(_mm512_permutex2var_epi16, 32, u16, a, b);
        4: Avx512U32, avx512_u32, 16, |a, b| permuted!(_mm512_permutex2var_epi32, 16, u32, a, b);
        8: Avx512U64, avx512_u64, 8, |a, b| permuted!(_mm512_permutex2var_epi64, 8, u64, a, b);
    }

    pub fn avx512(element: usize) -> Tile {
        if element == 1 { avx2(1) } else { avx512_wide(element) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::for_each_level;

    #[test]
    fn rows_become_columns_at_every_level() {
        for_each_level(|level| {
            for element in [1, 2, 4, 8] {
                for stream in [false, true] {
                    let Tile { side, run } = tile(element);
                    let (count, from_row) = (3, (3 * side + 5) * element);
                    let from: Vec<u8> = (0..side * from_row).map(|i| (i * 7 + i / 251) as u8).collect();
                    // Rows of vectors that are aligned to their size.
                    let to_row = (side * element).next_multiple_of(64);
                    let mut to = vec![0u8; count * side * to_row + 64];
                    let start = to.as_ptr().align_offset(64);
                    let tiles = Tiles {
                        count,
                        from: from.as_ptr(),
                        from_row: from_row as isize,
                        to: to[start..].as_mut_ptr(),
                        to_row: to_row as isize,
                        stream,
                    };
                    // SAFETY: as many rows and columns lie in both vectors.
                    unsafe { run(&tiles) };
                    finish_streaming();
                    for i in 0..side {
                        for j in 0..count * side {
                            let read = &from[i * from_row + j * element..][..element];
                            let written = &to[start + j * to_row + i * element..][..element];
                            assert_eq!(read, written, "{level:?}, {element} bytes, ({i}, {j})");
                        }
                    }
                }
            }
        });
    }
}
