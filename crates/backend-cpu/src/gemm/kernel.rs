//! The innermost loops of matrix multiplication, written once over a vector type and compiled for each instruction set.
//!
//! Nothing here knows of threads, cache sizes or tensors.

/// The operations on one vector register that the kernels need.
///
/// Methods are `inline(always)`, so that they take the target features of the kernel they end up in.
///
/// # Safety
/// Every method needs the instruction set of the implementing type, and pointers good for the lanes it touches.
pub(crate) trait Vector<T>: Copy {
    const LANES: usize;
    /// Some of the lanes.
    type Mask: Copy;
    /// Lanes `first` to `end`, without `end`; none if there are none between them.
    unsafe fn mask(first: usize, end: usize) -> Self::Mask;
    /// These lanes of what begins at `from`, zero in the others, whose memory is not touched.
    unsafe fn load_masked(from: *const T, mask: Self::Mask) -> Self;
    /// These lanes; the memory of the others is not touched.
    unsafe fn store_masked(self, to: *mut T, mask: Self::Mask);
    /// Of two vectors in a row every second lane: the even ones, the odd ones.
    unsafe fn unzip(first: Self, second: Self) -> [Self; 2];
    /// Two vectors in a row whose even and odd lanes these are.
    unsafe fn zip(even: Self, odd: Self) -> [Self; 2];
    unsafe fn splat(value: T) -> Self;
    unsafe fn load(from: *const T) -> Self;
    /// The first `count` lanes (at most `LANES`), zero in the others, whose memory is not touched.
    unsafe fn load_first(from: *const T, count: usize) -> Self;
    unsafe fn store(self, to: *mut T);
    /// The first `count` lanes (at most `LANES`).
    unsafe fn store_first(self, to: *mut T, count: usize);
    /// `count` lanes from lane `first` on, to `to` and what follows.
    unsafe fn store_lanes(self, to: *mut T, first: usize, count: usize);
    unsafe fn add(self, other: Self) -> Self;
    /// `a * b + self`
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// The sums of all lanes of four vectors, each added in the same order whatever the others are.
    unsafe fn sums(four: [Self; 4]) -> [T; 4];
}

/// Lanes as an array: what the compiler makes of it on a target without a hand-written vector type (NEON, SSE2).
#[derive(Clone, Copy)]
pub(crate) struct Portable<T, const N: usize>([T; N]);

macro_rules! portable {
    ($t:ty, $n:literal) => {
        impl Vector<$t> for Portable<$t, $n> {
            const LANES: usize = $n;
            type Mask = [usize; 2];
            #[inline(always)]
            unsafe fn mask(first: usize, end: usize) -> [usize; 2] {
                [first, end]
            }
            #[inline(always)]
            unsafe fn load_masked(from: *const $t, [first, end]: [usize; 2]) -> Self {
                if first == 0 && end >= $n {
                    // SAFETY: all lanes are asked for, so all are there.
                    return unsafe { Self::load(from) };
                }
                let mut lanes = [0.0; $n];
                for i in 0..$n {
                    if i >= first && i < end {
                        // SAFETY: a lane that is asked for.
                        lanes[i] = unsafe { *from.wrapping_add(i) };
                    }
                }
                Portable(lanes)
            }
            #[inline(always)]
            unsafe fn store_masked(self, to: *mut $t, [first, end]: [usize; 2]) {
                for i in 0..$n {
                    if i >= first && i < end {
                        // SAFETY: a lane that is asked for.
                        unsafe { *to.wrapping_add(i) = self.0[i] };
                    }
                }
            }
            #[inline(always)]
            unsafe fn unzip(first: Self, second: Self) -> [Self; 2] {
                let (mut even, mut odd) = ([0.0; $n], [0.0; $n]);
                for i in 0..$n / 2 {
                    (even[i], odd[i]) = (first.0[2 * i], first.0[2 * i + 1]);
                    (even[$n / 2 + i], odd[$n / 2 + i]) = (second.0[2 * i], second.0[2 * i + 1]);
                }
                [Portable(even), Portable(odd)]
            }
            #[inline(always)]
            unsafe fn zip(even: Self, odd: Self) -> [Self; 2] {
                let (mut first, mut second) = ([0.0; $n], [0.0; $n]);
                for i in 0..$n / 2 {
                    (first[2 * i], first[2 * i + 1]) = (even.0[i], odd.0[i]);
                    (second[2 * i], second[2 * i + 1]) = (even.0[$n / 2 + i], odd.0[$n / 2 + i]);
                }
                [Portable(first), Portable(second)]
            }
            #[inline(always)]
            unsafe fn splat(value: $t) -> Self {
                Portable([value; $n])
            }
            #[inline(always)]
            unsafe fn load(from: *const $t) -> Self {
                // SAFETY: the caller gives a pointer to LANES elements.
                unsafe { Portable(from.cast::<[$t; $n]>().read_unaligned()) }
            }
            #[inline(always)]
            unsafe fn load_first(from: *const $t, count: usize) -> Self {
                if count >= $n {
                    // SAFETY: all lanes are asked for, so all are there.
                    return unsafe { Self::load(from) };
                }
                let mut lanes = [0.0; $n];
                for i in 0..count {
                    // SAFETY: the caller gives a pointer to `count` elements.
                    lanes[i] = unsafe { *from.add(i) };
                }
                Portable(lanes)
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $t) {
                // SAFETY: the caller gives a pointer to LANES elements.
                unsafe { to.cast::<[$t; $n]>().write_unaligned(self.0) }
            }
            #[inline(always)]
            unsafe fn store_first(self, to: *mut $t, count: usize) {
                if count >= $n {
                    // SAFETY: all lanes are asked for, so all are there.
                    return unsafe { self.store(to) };
                }
                for i in 0..count {
                    // SAFETY: the caller gives a pointer to `count` elements.
                    unsafe { *to.add(i) = self.0[i] };
                }
            }
            #[inline(always)]
            unsafe fn store_lanes(self, to: *mut $t, first: usize, count: usize) {
                for i in 0..count {
                    // SAFETY: the caller gives a pointer to `count` elements.
                    unsafe { *to.add(i) = self.0[first + i] };
                }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                Portable(std::array::from_fn(|i| self.0[i] + other.0[i]))
            }
            #[inline(always)]
            unsafe fn mul_add(self, a: Self, b: Self) -> Self {
                // A fused multiply-add is one instruction on Arm, but a library call on baseline x86-64.
                if cfg!(target_arch = "aarch64") {
                    Portable(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], self.0[i])))
                } else {
                    Portable(std::array::from_fn(|i| a.0[i] * b.0[i] + self.0[i]))
                }
            }
            #[inline(always)]
            unsafe fn sums(four: [Self; 4]) -> [$t; 4] {
                four.map(|v| {
                    let mut lanes = v.0;
                    let mut half = $n / 2;
                    while half > 0 {
                        for i in 0..half {
                            lanes[i] += lanes[i + half];
                        }
                        half /= 2;
                    }
                    lanes[0]
                })
            }
        }
    };
}
portable!(f32, 4);
portable!(f64, 2);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;

    // The first LANES entries from `8 - count` on are a mask of `count` lanes.
    static MASKS_32: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    static MASKS_64: [i64; 8] = [-1, -1, -1, -1, 0, 0, 0, 0];

    macro_rules! avx2 {
        ($t:ty, $v:ident, $lanes:literal, $set1:ident, $load:ident, $store:ident, $maskload:ident, $maskstore:ident,
         $add:ident, $fma:ident, $mask:expr, $sums:expr, $unzip:expr, $zip:expr) => {
            impl Vector<$t> for $v {
                const LANES: usize = $lanes;
                type Mask = __m256i;
                #[inline(always)]
                unsafe fn mask(first: usize, end: usize) -> __m256i {
                    // SAFETY: see splat.
                    unsafe { _mm256_andnot_si256($mask(first.min($lanes)), $mask(end.min($lanes))) }
                }
                #[inline(always)]
                unsafe fn load_masked(from: *const $t, mask: __m256i) -> Self {
                    // SAFETY: see splat; masked lanes are not touched.
                    unsafe { $maskload(from, mask) }
                }
                #[inline(always)]
                unsafe fn store_masked(self, to: *mut $t, mask: __m256i) {
                    // SAFETY: see splat; masked lanes are not touched.
                    unsafe { $maskstore(to, mask, self) }
                }
                #[inline(always)]
                unsafe fn unzip(first: Self, second: Self) -> [Self; 2] {
                    // SAFETY: see splat.
                    unsafe { $unzip(first, second) }
                }
                #[inline(always)]
                unsafe fn zip(even: Self, odd: Self) -> [Self; 2] {
                    // SAFETY: see splat.
                    unsafe { $zip(even, odd) }
                }
                #[inline(always)]
                unsafe fn splat(value: $t) -> Self {
                    // SAFETY: the caller has AVX2 and FMA; so for all below, with pointers as the trait asks.
                    unsafe { $set1(value) }
                }
                #[inline(always)]
                unsafe fn load(from: *const $t) -> Self {
                    // SAFETY: see splat.
                    unsafe { $load(from) }
                }
                #[inline(always)]
                unsafe fn load_first(from: *const $t, count: usize) -> Self {
                    // SAFETY: see splat; masked lanes are not touched.
                    unsafe { $maskload(from, $mask(count)) }
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut $t) {
                    // SAFETY: see splat.
                    unsafe { $store(to, self) }
                }
                #[inline(always)]
                unsafe fn store_first(self, to: *mut $t, count: usize) {
                    // SAFETY: see splat; masked lanes are not touched. Masked stores are microcode on some processors.
                    unsafe {
                        if count >= $lanes { $store(to, self) } else { $maskstore(to, $mask(count), self) }
                    }
                }
                #[inline(always)]
                unsafe fn store_lanes(self, to: *mut $t, first: usize, count: usize) {
                    // SAFETY: see splat; `count` elements at `to`.
                    unsafe {
                        if count >= $lanes {
                            return $store(to, self);
                        }
                        let mut lanes: [$t; $lanes] = [0.0; $lanes];
                        $store(lanes.as_mut_ptr(), self);
                        for i in 0..count {
                            *to.add(i) = lanes[first + i];
                        }
                    }
                }
                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: see splat.
                    unsafe { $add(self, other) }
                }
                #[inline(always)]
                unsafe fn mul_add(self, a: Self, b: Self) -> Self {
                    // SAFETY: see splat.
                    unsafe { $fma(a, b, self) }
                }
                #[inline(always)]
                unsafe fn sums(four: [Self; 4]) -> [$t; 4] {
                    // SAFETY: see splat.
                    unsafe { $sums(four) }
                }
            }
        };
    }
    #[inline(always)]
    unsafe fn mask_32(count: usize) -> __m256i {
        debug_assert!(count <= 8);
        // SAFETY: the caller has AVX2; 8 entries from `8 - count` on lie in the table.
        unsafe { _mm256_loadu_si256(MASKS_32.as_ptr().add(8 - count).cast()) }
    }
    #[inline(always)]
    unsafe fn mask_64(count: usize) -> __m256i {
        debug_assert!(count <= 4);
        // SAFETY: the caller has AVX2; 4 entries from `4 - count` on lie in the table.
        unsafe { _mm256_loadu_si256(MASKS_64.as_ptr().add(4 - count).cast()) }
    }
    #[inline(always)]
    unsafe fn sums_32(four: [__m256; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: the caller has AVX2; the array has room for four.
        unsafe {
            let pairs = (_mm256_hadd_ps(four[0], four[1]), _mm256_hadd_ps(four[2], four[3]));
            let quads = _mm256_hadd_ps(pairs.0, pairs.1);
            let sums = _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps::<1>(quads));
            _mm_storeu_ps(out.as_mut_ptr(), sums);
        }
        out
    }
    #[inline(always)]
    unsafe fn sums_64(four: [__m256d; 4]) -> [f64; 4] {
        let mut out = [0.0; 4];
        // SAFETY: the caller has AVX2; the array has room for four.
        unsafe {
            let (low, high) = (_mm256_hadd_pd(four[0], four[1]), _mm256_hadd_pd(four[2], four[3]));
            let left = _mm256_permute2f128_pd::<0x20>(low, high);
            let right = _mm256_permute2f128_pd::<0x31>(low, high);
            _mm256_storeu_pd(out.as_mut_ptr(), _mm256_add_pd(left, right));
        }
        out
    }
    #[inline(always)]
    unsafe fn unzip_32(first: __m256, second: __m256) -> [__m256; 2] {
        // SAFETY: the caller has AVX2; so for the three below.
        unsafe {
            let even = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(first, second));
            let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0xdd>(first, second));
            [
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(even)),
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(odd)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn zip_32(even: __m256, odd: __m256) -> [__m256; 2] {
        // SAFETY: see unzip_32.
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
            [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
        }
    }
    #[inline(always)]
    unsafe fn unzip_64(first: __m256d, second: __m256d) -> [__m256d; 2] {
        // SAFETY: see unzip_32.
        unsafe {
            [
                _mm256_permute4x64_pd::<0xd8>(_mm256_unpacklo_pd(first, second)),
                _mm256_permute4x64_pd::<0xd8>(_mm256_unpackhi_pd(first, second)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn zip_64(even: __m256d, odd: __m256d) -> [__m256d; 2] {
        // SAFETY: see unzip_32.
        unsafe {
            let (low, high) = (_mm256_unpacklo_pd(even, odd), _mm256_unpackhi_pd(even, odd));
            [_mm256_permute2f128_pd::<0x20>(low, high), _mm256_permute2f128_pd::<0x31>(low, high)]
        }
    }
    avx2!(
        f32,
        __m256,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_maskload_ps,
        _mm256_maskstore_ps,
        _mm256_add_ps,
        _mm256_fmadd_ps,
        mask_32,
        sums_32,
        unzip_32,
        zip_32
    );
    avx2!(
        f64,
        __m256d,
        4,
        _mm256_set1_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_maskload_pd,
        _mm256_maskstore_pd,
        _mm256_add_pd,
        _mm256_fmadd_pd,
        mask_64,
        sums_64,
        unzip_64,
        zip_64
    );

    /// AVX-512F extracts 256 bits as f64 only.
    #[inline(always)]
    unsafe fn high_32<const HALF: i32>(v: __m512) -> __m256 {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<HALF>(_mm512_castps_pd(v))) }
    }

    /// Which lanes of two vectors `unzip` and `zip` take.
    macro_rules! lanes_of {
        ($name:ident, $int:ty, $count:literal) => {
            mod $name {
                use std::arch::x86_64::__m512i;

                const fn unzip(odd: usize) -> __m512i {
                    let (mut lanes, mut i) = ([0; $count], 0);
                    while i < $count {
                        lanes[i] = (2 * i + odd) as $int;
                        i += 1;
                    }
                    // SAFETY: both are 64 bytes, and all bits are numbers.
                    unsafe { std::mem::transmute::<[$int; $count], __m512i>(lanes) }
                }

                const fn zip(first: usize) -> __m512i {
                    let (mut lanes, mut i) = ([0; $count], 0);
                    while i < $count {
                        lanes[i] = (first + i / 2 + i % 2 * $count) as $int;
                        i += 1;
                    }
                    // SAFETY: as above.
                    unsafe { std::mem::transmute::<[$int; $count], __m512i>(lanes) }
                }

                pub const UNZIP: [__m512i; 2] = [unzip(0), unzip(1)];
                pub const ZIP: [__m512i; 2] = [zip(0), zip($count / 2)];
            }
        };
    }
    lanes_of!(lanes_32, i32, 16);
    lanes_of!(lanes_64, i64, 8);

    macro_rules! avx512 {
        ($t:ty, $v:ident, $mask:ty, $lanes:literal, $set1:ident, $load:ident, $store:ident, $maskload:ident,
         $maskstore:ident, $add:ident, $fma:ident, $low:ident, $high:ident, $halve:ident, $sums:expr,
         $permute:ident, $lanes_of:ident) => {
            impl Vector<$t> for $v {
                const LANES: usize = $lanes;
                type Mask = $mask;
                #[inline(always)]
                unsafe fn mask(first: usize, end: usize) -> $mask {
                    let below = |lane: usize| (1u32 << lane.min($lanes)) - 1;
                    (below(end) & !below(first)) as $mask
                }
                #[inline(always)]
                unsafe fn load_masked(from: *const $t, mask: $mask) -> Self {
                    // SAFETY: see splat; masked lanes are not touched.
                    unsafe { $maskload(mask, from) }
                }
                #[inline(always)]
                unsafe fn store_masked(self, to: *mut $t, mask: $mask) {
                    // SAFETY: see splat; masked lanes are not touched.
                    unsafe { $maskstore(to, mask, self) }
                }
                #[inline(always)]
                unsafe fn unzip(first: Self, second: Self) -> [Self; 2] {
                    // SAFETY: see splat.
                    unsafe {
                        let [even, odd] = $lanes_of::UNZIP;
                        [$permute(first, even, second), $permute(first, odd, second)]
                    }
                }
                #[inline(always)]
                unsafe fn zip(even: Self, odd: Self) -> [Self; 2] {
                    // SAFETY: see splat.
                    unsafe {
                        let [low, high] = $lanes_of::ZIP;
                        [$permute(even, low, odd), $permute(even, high, odd)]
                    }
                }
                #[inline(always)]
                unsafe fn splat(value: $t) -> Self {
                    // SAFETY: the caller has AVX-512F; so for all below, with pointers as the trait asks.
                    unsafe { $set1(value) }
                }
                #[inline(always)]
                unsafe fn load(from: *const $t) -> Self {
                    // SAFETY: see splat.
                    unsafe { $load(from) }
                }
                #[inline(always)]
                unsafe fn load_first(from: *const $t, count: usize) -> Self {
                    debug_assert!(count <= $lanes);
                    // SAFETY: see splat; masked lanes are not touched.
                    unsafe { $maskload(((1u32 << count) - 1) as $mask, from) }
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut $t) {
                    // SAFETY: see splat.
                    unsafe { $store(to, self) }
                }
                #[inline(always)]
                unsafe fn store_first(self, to: *mut $t, count: usize) {
                    debug_assert!(count <= $lanes);
                    // SAFETY: see splat; masked lanes are not touched.
                    unsafe { $maskstore(to, ((1u32 << count) - 1) as $mask, self) }
                }
                #[inline(always)]
                unsafe fn store_lanes(self, to: *mut $t, first: usize, count: usize) {
                    debug_assert!(first + count <= $lanes);
                    // SAFETY: see splat; masked lanes are not touched.
                    unsafe {
                        $maskstore(to.wrapping_sub(first), (((1u32 << count) - 1) << first) as $mask, self)
                    }
                }
                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: see splat.
                    unsafe { $add(self, other) }
                }
                #[inline(always)]
                unsafe fn mul_add(self, a: Self, b: Self) -> Self {
                    // SAFETY: see splat.
                    unsafe { $fma(a, b, self) }
                }
                #[inline(always)]
                unsafe fn sums(four: [Self; 4]) -> [$t; 4] {
                    let [a, b, c, d] = four;
                    // SAFETY: see splat; AVX-512F includes AVX2. (In a closure given to `map` the intrinsics would be calls.)
                    unsafe {
                        $sums([
                            $halve($low(a), $high::<1>(a)),
                            $halve($low(b), $high::<1>(b)),
                            $halve($low(c), $high::<1>(c)),
                            $halve($low(d), $high::<1>(d)),
                        ])
                    }
                }
            }
        };
    }
    avx512!(
        f32,
        __m512,
        __mmask16,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_maskz_loadu_ps,
        _mm512_mask_storeu_ps,
        _mm512_add_ps,
        _mm512_fmadd_ps,
        _mm512_castps512_ps256,
        high_32,
        _mm256_add_ps,
        sums_32,
        _mm512_permutex2var_ps,
        lanes_32
    );
    avx512!(
        f64,
        __m512d,
        __mmask8,
        8,
        _mm512_set1_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_maskz_loadu_pd,
        _mm512_mask_storeu_pd,
        _mm512_add_pd,
        _mm512_fmadd_pd,
        _mm512_castpd512_pd256,
        _mm512_extractf64x4_pd,
        _mm256_add_pd,
        sums_64,
        _mm512_permutex2var_pd,
        lanes_64
    );
}

/// One tile of `C (+)= A · B` with a fixed number of rows. `C` has neighbouring columns.
#[derive(Clone, Copy)]
pub(super) struct Tile<T> {
    pub k: usize,
    pub a: *const T,
    pub a_row: isize,
    pub a_col: isize,
    /// Row `p` of B starts at `b + p * b_row`; its columns are neighbours.
    pub b: *const T,
    pub b_row: isize,
    pub c: *mut T,
    pub c_row: isize,
    /// Columns of the tile, more than `(VECTORS - 1) * LANES` and at most `VECTORS * LANES`.
    pub columns: usize,
    /// Add to C instead of replacing it.
    pub accumulate: bool,
}

/// Outer products: `ROWS x VECTORS` accumulators stay in registers over the whole of k.
///
/// # Safety
/// `V`'s instruction set, and pointers good for the tile; with `PACKED`, B's rows hold whole vectors.
#[inline(always)]
unsafe fn outer<T: Copy, V: Vector<T>, const ROWS: usize, const VECTORS: usize, const PACKED: bool>(
    tile: &Tile<T>,
    zero: T,
) {
    let Tile { k, mut a, a_row, a_col, mut b, b_row, c, c_row, columns, accumulate } = *tile;
    let last = columns - (VECTORS - 1) * V::LANES;
    // SAFETY: the caller's promise; every pointer below stays inside the tile's operands.
    unsafe {
        let mut sums = [[V::splat(zero); VECTORS]; ROWS];
        for _ in 0..k {
            let mut right = [V::splat(zero); VECTORS];
            for v in 0..VECTORS {
                let from = b.wrapping_add(v * V::LANES);
                right[v] = if PACKED || v + 1 < VECTORS { V::load(from) } else { V::load_first(from, last) };
            }
            for r in 0..ROWS {
                let left = V::splat(*a.offset(if PACKED { r as isize } else { r as isize * a_row }));
                for v in 0..VECTORS {
                    sums[r][v] = sums[r][v].mul_add(left, right[v]);
                }
            }
            a = a.wrapping_offset(a_col);
            b = b.wrapping_offset(b_row);
        }
        for r in 0..ROWS {
            for v in 0..VECTORS {
                let to = c.wrapping_offset(r as isize * c_row).wrapping_add(v * V::LANES);
                let sum = sums[r][v];
                if v + 1 < VECTORS || last == V::LANES {
                    (if accumulate { V::load(to).add(sum) } else { sum }).store(to);
                } else {
                    (if accumulate { V::load_first(to, last).add(sum) } else { sum }).store_first(to, last);
                }
            }
        }
    }
}

/// Neighbouring results: lanes of a vector, and where they belong.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub lane: usize,
    pub len: usize,
    pub to: usize,
}

/// Where the results of a tile belong that are no matrix: for each of two vectors runs, for each row `row` further on; and what is added
/// to each row.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a, T> {
    pub to: *mut T,
    pub row: usize,
    pub runs: [&'a [Run]; 2],
    pub bias: Option<&'a [T]>,
}

/// Lanes of a vector that see neighbouring elements: lane `l` what lies `from + l` behind a beginning.
#[derive(Clone, Copy)]
pub(crate) struct Lanes {
    pub first: usize,
    pub end: usize,
    pub from: isize,
}

/// A panel of two vectors side by side: row `p` has in the lanes of `vectors` what they see behind `x + offsets[p]`, and zeros in the others.
pub(crate) struct Laying<'a, T> {
    pub x: *const T,
    pub offsets: &'a [usize],
    pub vectors: [&'a [Lanes]; 2],
    pub to: *mut T,
}

/// At most so many runs of lanes in each vector, which sets of masks there are kernels for.
pub(super) const MOST_RUNS: [usize; 6] = [1, 2, 3, 4, 6, 16];

/// # Safety
/// `V`'s instruction set, at most `RUNS` runs of lanes in each vector, elements where they see, and room for the panel.
#[inline(always)]
unsafe fn lay<T: Copy, V: Vector<T>, const RUNS: usize>(laying: &Laying<'_, T>) {
    let Laying { x, offsets, vectors, to } = *laying;
    // SAFETY: the caller's promise; masked lanes are not touched.
    unsafe {
        let mut masks = [[V::mask(0, 0); RUNS]; 2];
        let mut from = [[x; RUNS]; 2];
        for v in 0..2 {
            for (r, lanes) in vectors[v].iter().enumerate() {
                masks[v][r] = V::mask(lanes.first, lanes.end);
                from[v][r] = x.wrapping_offset(lanes.from);
            }
        }
        for (p, &offset) in offsets.iter().enumerate() {
            for v in 0..2 {
                let mut row = V::load_masked(from[v][0].wrapping_add(offset), masks[v][0]);
                for r in 1..RUNS {
                    row = row.add(V::load_masked(from[v][r].wrapping_add(offset), masks[v][r]));
                }
                row.store(to.add((2 * p + v) * V::LANES));
            }
        }
    }
}

/// One tile of `C (+)= A · B` whose B may lie anywhere: row `p` of its vector `v` begins at `b[v] + rows[p]`.
#[derive(Clone, Copy)]
pub(super) struct Gathered<'a, T> {
    pub k: usize,
    /// Packed, from one column to the next `a_col`.
    pub a: *const T,
    pub a_col: usize,
    pub b: [*const T; 2],
    pub rows: *const usize,
    pub c: *mut T,
    pub c_row: usize,
    /// Add to C instead of replacing it.
    pub accumulate: bool,
    /// Where the results go instead of C.
    pub places: Option<Places<'a, T>>,
}

/// As [`outer`], with whole vectors only.
///
/// # Safety
/// `V`'s instruction set, and pointers good for the tile.
#[inline(always)]
unsafe fn gathered<T: Copy, V: Vector<T>, const ROWS: usize, const VECTORS: usize>(
    tile: &Gathered<'_, T>,
    zero: T,
) {
    let Gathered { k, mut a, a_col, b, rows, c, c_row, accumulate, places } = *tile;
    // SAFETY: the caller's promise; every pointer below stays inside the tile's operands.
    unsafe {
        let mut sums = [[V::splat(zero); VECTORS]; ROWS];
        for p in 0..k {
            let row = *rows.add(p);
            let mut right = [V::splat(zero); VECTORS];
            for v in 0..VECTORS {
                right[v] = V::load(b[v].wrapping_add(row));
            }
            for r in 0..ROWS {
                let left = V::splat(*a.add(r));
                for v in 0..VECTORS {
                    sums[r][v] = sums[r][v].mul_add(left, right[v]);
                }
            }
            a = a.wrapping_add(a_col);
        }
        if accumulate {
            for r in 0..ROWS {
                for v in 0..VECTORS {
                    sums[r][v] = V::load(c.add(r * c_row + v * V::LANES)).add(sums[r][v]);
                }
            }
        }
        let Some(Places { to, row, runs, bias }) = places else {
            for r in 0..ROWS {
                for v in 0..VECTORS {
                    sums[r][v].store(c.add(r * c_row + v * V::LANES));
                }
            }
            return;
        };
        if let Some(bias) = bias {
            for r in 0..ROWS {
                let bias = V::splat(*bias.as_ptr().add(r));
                for v in 0..VECTORS {
                    sums[r][v] = sums[r][v].add(bias);
                }
            }
        }
        // Written out: an index that is not a constant would keep the sums in memory.
        const { assert!(ROWS <= 14 && VECTORS <= 2) };
        macro_rules! put {
            ($v:literal: $($r:literal)*) => {
                if $v < VECTORS {
                    for run in runs[$v] {
                        let to = to.add(run.to);
                        $(if $r < ROWS {
                            sums[$r % ROWS][$v % VECTORS].store_lanes(to.add($r * row), run.lane, run.len);
                        })*
                    }
                }
            };
        }
        put!(0: 0 1 2 3 4 5 6 7 8 9 10 11 12 13);
        put!(1: 0 1 2 3 4 5 6 7 8 9 10 11 12 13);
    }
}

/// A block of `C (+)= A · B` whose operands both have neighbouring elements along k: dot products, `ROWS x COLUMNS` at once.
#[derive(Clone, Copy)]
pub(super) struct Dots<T> {
    pub k: usize,
    pub a: *const T,
    pub a_row: isize,
    pub b: *const T,
    /// From one column of B to the next.
    pub b_col: isize,
    pub c: *mut T,
    pub c_row: isize,
    pub c_col: isize,
    pub accumulate: bool,
}

/// # Safety
/// `V`'s instruction set, and pointers good for the block.
#[inline(always)]
unsafe fn inner<T: Copy + std::ops::AddAssign, V: Vector<T>, const ROWS: usize, const COLUMNS: usize>(
    dots: &Dots<T>,
    zero: T,
) {
    let Dots { k, a, a_row, b, b_col, c, c_row, c_col, accumulate } = *dots;
    // SAFETY: the caller's promise; every pointer below stays inside the operands.
    unsafe {
        let mut sums = [[V::splat(zero); COLUMNS]; ROWS];
        let whole = k / V::LANES * V::LANES;
        let mut p = 0;
        while p < whole {
            add_products::<T, V, ROWS, COLUMNS, true>(
                &mut sums,
                a.add(p),
                a_row,
                b.add(p),
                b_col,
                V::LANES,
                zero,
            );
            p += V::LANES;
        }
        if p < k {
            add_products::<T, V, ROWS, COLUMNS, false>(
                &mut sums,
                a.add(p),
                a_row,
                b.add(p),
                b_col,
                k - p,
                zero,
            );
        }
        // Written out: an index that is not a constant would keep the sums in memory instead of registers.
        const { assert!(ROWS <= 4 && COLUMNS <= 8) };
        let bottom = ROWS - 1;
        let put = [c, c.wrapping_offset(c_row), c.wrapping_offset(2 * c_row), c.wrapping_offset(3 * c_row)];
        put_sums(&sums[0], put[0], c_col, accumulate);
        if ROWS > 1 {
            put_sums(&sums[bottom.min(1)], put[1], c_col, accumulate);
        }
        if ROWS > 2 {
            put_sums(&sums[bottom.min(2)], put[2], c_col, accumulate);
        }
        if ROWS > 3 {
            put_sums(&sums[bottom], put[3], c_col, accumulate);
        }
    }
}

/// Adds the products of `count` neighbouring elements (`LANES` of them if `WHOLE`) of every row of A and column of B.
///
/// # Safety
/// `V`'s instruction set, and those elements.
#[inline(always)]
unsafe fn add_products<T: Copy, V: Vector<T>, const ROWS: usize, const COLUMNS: usize, const WHOLE: bool>(
    sums: &mut [[V; COLUMNS]; ROWS],
    a: *const T,
    a_row: isize,
    b: *const T,
    b_col: isize,
    count: usize,
    zero: T,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut left = [V::splat(zero); ROWS];
        for r in 0..ROWS {
            let from = a.offset(r as isize * a_row);
            left[r] = if WHOLE { V::load(from) } else { V::load_first(from, count) };
        }
        for j in 0..COLUMNS {
            let from = b.offset(j as isize * b_col);
            let right = if WHOLE { V::load(from) } else { V::load_first(from, count) };
            for r in 0..ROWS {
                sums[r][j] = sums[r][j].mul_add(left[r], right);
            }
        }
    }
}

/// Writes a row of dot products: sums of four vectors at a time, the last ones together with copies of themselves.
///
/// # Safety
/// `V`'s instruction set; `COLUMNS` elements `step` apart at `to`.
#[inline(always)]
unsafe fn put_sums<T: Copy + std::ops::AddAssign, V: Vector<T>, const COLUMNS: usize>(
    sums: &[V; COLUMNS],
    to: *mut T,
    step: isize,
    accumulate: bool,
) {
    let last = COLUMNS - 1;
    // SAFETY: the caller's promise.
    unsafe {
        let mut values = [V::sums([sums[0], sums[last.min(1)], sums[last.min(2)], sums[last.min(3)]]); 2];
        if COLUMNS > 4 {
            values[1] = V::sums([sums[last.min(4)], sums[last.min(5)], sums[last.min(6)], sums[last]]);
        }
        for j in 0..COLUMNS {
            let to = to.wrapping_offset(j as isize * step);
            let mut value = values[j / 4][j % 4];
            if accumulate {
                value += *to;
            }
            *to = value;
        }
    }
}

/// Dot products of one row with others that begin at `x + points[..]`, as many as the kernel has points.
#[derive(Clone, Copy)]
pub(super) struct Shifted<T> {
    pub len: usize,
    pub row: *const T,
    pub x: *const T,
    pub points: *const usize,
    pub sums: *mut T,
}

/// # Safety
/// `V`'s instruction set, and pointers good for the products.
#[inline(always)]
unsafe fn shifted<T: Copy, V: Vector<T>, const POINTS: usize>(shifted: &Shifted<T>, zero: T) {
    const { assert!(POINTS <= 4) };
    let Shifted { len, row, x, points, sums: to } = *shifted;
    // SAFETY: the caller's promise; every pointer below stays inside the operands.
    unsafe {
        let mut from = [x; POINTS];
        for i in 0..POINTS {
            from[i] = x.add(*points.add(i));
        }
        let mut sums = [[V::splat(zero); 2]; POINTS];
        let mut at = 0;
        while at + 2 * V::LANES <= len {
            let left = [V::load(row.add(at)), V::load(row.add(at + V::LANES))];
            for i in 0..POINTS {
                sums[i][0] = sums[i][0].mul_add(left[0], V::load(from[i].add(at)));
                sums[i][1] = sums[i][1].mul_add(left[1], V::load(from[i].add(at + V::LANES)));
            }
            at += 2 * V::LANES;
        }
        while at < len {
            let count = V::LANES.min(len - at);
            let left = V::load_first(row.add(at), count);
            for i in 0..POINTS {
                sums[i][0] = sums[i][0].mul_add(left, V::load_first(from[i].add(at), count));
            }
            at += count;
        }
        let last = POINTS - 1;
        let joined = [0, 1, 2, 3].map(|i| if i < POINTS { i } else { last });
        let values = V::sums([
            sums[joined[0]][0].add(sums[joined[0]][1]),
            sums[joined[1]][0].add(sums[joined[1]][1]),
            sums[joined[2]][0].add(sums[joined[2]][1]),
            sums[joined[3]][0].add(sums[joined[3]][1]),
        ]);
        for i in 0..POINTS {
            *to.add(i) = values[i];
        }
    }
}

/// Rows of B that [`Kernels::axpy`] adds at once.
pub(super) const STREAMS: usize = 8;

/// `y += Σ x[s] · b[s]` over [`STREAMS`] rows of B at once, so that `y` is read and written once for all of them.
///
/// # Safety
/// `V`'s instruction set; `len` elements at `y` and at every row.
#[inline(always)]
unsafe fn axpy<T: Copy, V: Vector<T>>(len: usize, x: &[T; STREAMS], rows: &[*const T; STREAMS], y: *mut T) {
    // SAFETY: the caller's promise.
    unsafe {
        let factors = x.map(|x| V::splat(x));
        let whole = len / V::LANES * V::LANES;
        let mut i = 0;
        while i < whole {
            let mut sum = V::load(y.add(i));
            for s in 0..STREAMS {
                sum = sum.mul_add(factors[s], V::load(rows[s].add(i)));
            }
            sum.store(y.add(i));
            i += V::LANES;
        }
        if i < len {
            let mut sum = V::load_first(y.add(i), len - i);
            for s in 0..STREAMS {
                sum = sum.mul_add(factors[s], V::load_first(rows[s].add(i), len - i));
            }
            sum.store_first(y.add(i), len - i);
        }
    }
}

pub(super) type TileKernel<T> = unsafe fn(&Tile<T>);
pub(super) type DotsKernel<T> = unsafe fn(&Dots<T>);
pub(super) type ShiftedKernel<T> = unsafe fn(&Shifted<T>);
pub(super) type LayKernel<T> = unsafe fn(&Laying<'_, T>);
pub(super) type GatheredKernel<T> = unsafe fn(&Gathered<'_, T>);

/// The kernels of one element type and instruction set, and the shapes they come in.
pub(super) struct Kernels<T: 'static> {
    /// Lanes of a vector.
    pub lanes: usize,
    /// Packed tiles: `[rows - 1][vectors - 1]`.
    pub packed: &'static [&'static [TileKernel<T>]],
    /// Tiles whose B lies anywhere, in the same shapes.
    pub gathered: &'static [&'static [GatheredKernel<T>]],
    /// Panels of what windows see, for each of [`MOST_RUNS`].
    pub lay: [LayKernel<T>; 6],
    /// Dot products of one row: `[points - 1]`.
    pub shifted: [ShiftedKernel<T>; 4],
    /// Tiles read where the operands lie: `[rows - 1][vectors - 1]`; fewer rows come with more vectors.
    pub direct: &'static [&'static [TileKernel<T>]],
    /// Dot products: `[rows - 1][columns - 1]`.
    pub dots: &'static [&'static [DotsKernel<T>]],
    pub axpy: unsafe fn(usize, &[T; STREAMS], &[*const T; STREAMS], *mut T),
}

impl<T> Kernels<T> {
    /// Rows of the largest packed tile.
    pub fn tile_rows(&self) -> usize {
        self.packed.len()
    }

    /// Vectors across a packed tile.
    pub fn tile_vectors(&self) -> usize {
        self.packed[0].len()
    }

    /// Columns of the largest packed tile.
    pub fn tile_columns(&self) -> usize {
        self.tile_vectors() * self.lanes
    }
}

macro_rules! kernels {
    ($name:ident, $t:ty, $v:ty, $(#[$feature:meta])?
     packed [$([$($pr:literal $pv:literal),*]),* $(,)?]
     direct [$([$($dr:literal $dv:literal),*]),* $(,)?]
     dots [$([$($ir:literal $ic:literal),*]),* $(,)?]) => {
        pub(super) mod $name {
            use super::*;

            $(#[$feature])?
            unsafe fn tile<const ROWS: usize, const VECTORS: usize, const PACKED: bool>(tile: &Tile<$t>) {
                // SAFETY: the caller has the instruction set and keeps the tile's promise.
                unsafe { outer::<$t, $v, ROWS, VECTORS, PACKED>(tile, 0.0) }
            }
            $(#[$feature])?
            unsafe fn gathered<const ROWS: usize, const VECTORS: usize>(tile: &Gathered<'_, $t>) {
                // SAFETY: the caller has the instruction set and keeps the tile's promise.
                unsafe { super::gathered::<$t, $v, ROWS, VECTORS>(tile, 0.0) }
            }
            $(#[$feature])?
            unsafe fn lay<const RUNS: usize>(laying: &Laying<'_, $t>) {
                // SAFETY: the caller has the instruction set and keeps the panel's promise.
                unsafe { super::lay::<$t, $v, RUNS>(laying) }
            }
            $(#[$feature])?
            unsafe fn shifted<const POINTS: usize>(shifted: &Shifted<$t>) {
                // SAFETY: the caller has the instruction set and keeps the promise about the pointers.
                unsafe { super::shifted::<$t, $v, POINTS>(shifted, 0.0) }
            }
            $(#[$feature])?
            unsafe fn dots<const ROWS: usize, const COLUMNS: usize>(dots: &Dots<$t>) {
                // SAFETY: the caller has the instruction set and keeps the block's promise.
                unsafe { inner::<$t, $v, ROWS, COLUMNS>(dots, 0.0) }
            }
            $(#[$feature])?
            unsafe fn axpy(len: usize, x: &[$t; STREAMS], rows: &[*const $t; STREAMS], y: *mut $t) {
                // SAFETY: the caller has the instruction set and keeps the promise about the pointers.
                unsafe { super::axpy::<$t, $v>(len, x, rows, y) }
            }
            pub(in super::super) static KERNELS: Kernels<$t> = Kernels {
                lanes: <$v as Vector<$t>>::LANES,
                packed: &[$(&[$(tile::<$pr, $pv, true>),*]),*],
                lay: [lay::<1>, lay::<2>, lay::<3>, lay::<4>, lay::<6>, lay::<16>],
                shifted: [shifted::<1>, shifted::<2>, shifted::<3>, shifted::<4>],
                gathered: &[$(&[$(gathered::<$pr, $pv>),*]),*],
                direct: &[$(&[$(tile::<$dr, $dv, false>),*]),*],
                dots: &[$(&[$(dots::<$ir, $ic>),*]),*],
                axpy,
            };
        }
    };
}

// Tiles fill the registers: with 32 of them 14 x 2 accumulators leave two for B and one for A; with 16, 6 x 2 leave two and one.
// Dot products keep room for the operands: with 4 x 6 of them the compiler spilled, which cost a third of the speed of 4 x 4.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512_kernels {
    ($name:ident, $t:ty, $v:ident) => {
        kernels!(
            $name, $t, std::arch::x86_64::$v, #[target_feature(enable = "avx512f")]
            packed [[1 1, 1 2], [2 1, 2 2], [3 1, 3 2], [4 1, 4 2], [5 1, 5 2], [6 1, 6 2], [7 1, 7 2], [8 1, 8 2], [9 1, 9 2],
                    [10 1, 10 2], [11 1, 11 2], [12 1, 12 2], [13 1, 13 2], [14 1, 14 2]]
            direct [[1 1, 1 2, 1 3, 1 4, 1 5, 1 6, 1 7, 1 8], [2 1, 2 2, 2 3, 2 4, 2 5, 2 6, 2 7, 2 8],
                    [3 1, 3 2, 3 3, 3 4, 3 5, 3 6], [4 1, 4 2, 4 3, 4 4, 4 5, 4 6], [5 1, 5 2, 5 3, 5 4], [6 1, 6 2, 6 3, 6 4],
                    [7 1, 7 2, 7 3], [8 1, 8 2, 8 3], [9 1, 9 2], [10 1, 10 2], [11 1, 11 2], [12 1, 12 2]]
            dots [[1 1, 1 2, 1 3, 1 4, 1 5, 1 6, 1 7, 1 8], [2 1, 2 2, 2 3, 2 4, 2 5, 2 6, 2 7, 2 8],
                  [3 1, 3 2, 3 3, 3 4], [4 1, 4 2, 4 3, 4 4]]
        );
    };
}
#[cfg(target_arch = "x86_64")]
avx512_kernels!(avx512_f32, f32, __m512);
#[cfg(target_arch = "x86_64")]
avx512_kernels!(avx512_f64, f64, __m512d);

#[cfg(target_arch = "x86_64")]
macro_rules! avx2_kernels {
    ($name:ident, $t:ty, $v:ident) => {
        kernels!(
            $name, $t, std::arch::x86_64::$v, #[target_feature(enable = "avx2,fma")]
            packed [[1 1, 1 2], [2 1, 2 2], [3 1, 3 2], [4 1, 4 2], [5 1, 5 2], [6 1, 6 2]]
            direct [[1 1, 1 2, 1 3, 1 4, 1 5, 1 6], [2 1, 2 2, 2 3, 2 4], [3 1, 3 2, 3 3], [4 1, 4 2], [5 1, 5 2], [6 1, 6 2]]
            dots [[1 1, 1 2, 1 3, 1 4, 1 5, 1 6], [2 1, 2 2, 2 3, 2 4], [3 1, 3 2, 3 3], [4 1, 4 2]]
        );
    };
}
#[cfg(target_arch = "x86_64")]
avx2_kernels!(avx2_f32, f32, __m256);
#[cfg(target_arch = "x86_64")]
avx2_kernels!(avx2_f64, f64, __m256d);

macro_rules! portable_kernels {
    ($name:ident, $t:ty, $lanes:literal) => {
        kernels!(
            $name, $t, Portable<$t, $lanes>,
            packed [[1 1, 1 2], [2 1, 2 2], [3 1, 3 2], [4 1, 4 2]]
            direct [[1 1, 1 2, 1 3, 1 4], [2 1, 2 2, 2 3, 2 4], [3 1, 3 2], [4 1, 4 2]]
            dots [[1 1, 1 2, 1 3, 1 4], [2 1, 2 2, 2 3, 2 4]]
        );
    };
}
portable_kernels!(portable_f32, f32, 4);
portable_kernels!(portable_f64, f64, 2);
