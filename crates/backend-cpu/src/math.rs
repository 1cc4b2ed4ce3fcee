//! Elementary functions that vectorise: no branches, no table look-ups, only arithmetic and selects.
//!
//! Errors are the largest found against f64 over a dense sample of all f32 (see the tests), in units in the last place. The
//! polynomials are weighted minimax fits made for these intervals. f64 takes the standard library's functions: exact to the last
//! place or so, one element at a time.

use crate::simd::{Simd, simd_fn};
use orkest_core::{Element, special};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// `1.5 · 2²³`: adding it rounds a small number to an integer, which the low bits of the sum then hold.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has few enough bits that a small integer times it is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Evaluates a polynomial, coefficients from the constant term up, by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for c in coefficients.iter().rev().skip(1) {
        sum = S::mul_add(sum, x, *c);
    }
    sum
}

#[inline(always)]
fn polynomial_f64<S: Simd, const N: usize>(x: f64, coefficients: [f64; N]) -> f64 {
    let mut sum = coefficients[N - 1];
    for c in coefficients.iter().rev().skip(1) {
        sum = S::mul_add_f64(sum, x, *c);
    }
    sum
}

/// `2ᵏ` for `-126 <= k <= 127`.
#[inline(always)]
fn power_of_two(k: i32) -> f32 {
    f32::from_bits((k.wrapping_add(127) << 23) as u32)
}

/// `x` not above `limit`; NaN stays.
#[inline(always)]
fn at_most(x: f32, limit: f32) -> f32 {
    if x > limit { limit } else { x }
}

/// `x` not below `limit`; NaN stays.
#[inline(always)]
fn at_least(x: f32, limit: f32) -> f32 {
    if x < limit { limit } else { x }
}

/// `k`, and `eʳ - 1` where `x = k ln 2 + r` with `|r| <= ln 2 / 2`.
#[inline(always)]
fn exp_parts<S: Simd>(x: f32) -> (i32, f32) {
    let shifted = S::mul_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let k = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let r = S::mul_add(n, -LN2_LOW, S::mul_add(n, -LN2_HIGH, x));
    let q = polynomial::<S, 6>(
        r,
        [0.5, 1.666_666_6e-1, 4.166_636e-2, 8.333_39e-3, 1.394_082_3e-3, 1.984_589_2e-4],
    );
    (k, S::mul_add(r * r, q, r))
}

/// `eˣ`, within 1 ulp; subnormal results included.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: f32) -> f32 {
    let (k, em1) = exp_parts::<S>(at_least(at_most(x, 89.0), -104.0));
    // Two factors, because 2ᵏ itself can be out of range.
    let half = k >> 1;
    (1.0 + em1) * power_of_two(half) * power_of_two(k.wrapping_sub(half))
}

/// `eˣ - 1`, within 2 ulp.
#[inline(always)]
pub(crate) fn expm1<S: Simd>(x: f32) -> f32 {
    let (k, em1) = exp_parts::<S>(at_least(at_most(x, 89.0), -18.0));
    // 2ᵏ em1 + (2ᵏ - 1), with half of it, so that k = 128 does not overflow too early.
    let scale = power_of_two(k.wrapping_sub(1));
    let y = 2.0 * S::mul_add(scale, em1, scale - 0.5);
    if x == 0.0 { x } else { y }
}

/// `k` and `f` where `x = 2ᵏ (1 + f)` with `1 + f` between √½ and √2. For positive finite `x`.
#[inline(always)]
fn ln_parts(x: f32) -> (f32, f32) {
    let subnormal = x < f32::MIN_POSITIVE;
    let bits = (if subnormal { x * 8_388_608.0 } else { x }).to_bits() as i32;
    let k = bits.wrapping_sub(std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32) >> 23;
    let mantissa = f32::from_bits(bits.wrapping_sub(k << 23) as u32);
    (k as f32 - if subnormal { 23.0 } else { 0.0 }, mantissa - 1.0)
}

/// `ln(1 + f) - f` for the `f` of [`ln_parts`].
#[inline(always)]
fn ln_tail<S: Simd>(f: f32) -> f32 {
    let p = polynomial::<S, 9>(
        f,
        [
            3.333_331_3e-1,
            -2.500_001e-1,
            2.000_211_9e-1,
            -1.666_799_6e-1,
            1.421_955_1e-1,
            -1.240_559_2e-1,
            1.188_817_8e-1,
            -1.167_563_9e-1,
            6.746_592e-2,
        ],
    );
    let square = f * f;
    S::mul_add(square * f, p, -0.5 * square)
}

/// `y`, corrected for the `x` whose logarithm is special.
#[inline(always)]
fn ln_specials(x: f32, y: f32) -> f32 {
    let y = if x > 0.0 { y } else { f32::NAN };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x == f32::INFINITY { x } else { y }
}

/// Natural logarithm, within 1 ulp.
#[inline(always)]
pub(crate) fn ln<S: Simd>(x: f32) -> f32 {
    let (k, f) = ln_parts(x);
    let tail = S::mul_add(k, LN2_LOW, ln_tail::<S>(f));
    ln_specials(x, S::mul_add(k, LN2_HIGH, f + tail))
}

/// Logarithm to base 2, within 2 ulp; exact for powers of two.
#[inline(always)]
pub(crate) fn log2<S: Simd>(x: f32) -> f32 {
    let (k, f) = ln_parts(x);
    let tail = ln_tail::<S>(f);
    // log₂ e = 1 + 0.4427; the large part of the product is f itself.
    const REST: f32 = 0.442_695_04;
    let y = S::mul_add(tail, REST, S::mul_add(f, REST, tail)) + f;
    ln_specials(x, k + y)
}

/// Logarithm to base 10, within 2 ulp.
#[inline(always)]
pub(crate) fn log10<S: Simd>(x: f32) -> f32 {
    let (k, f) = ln_parts(x);
    // log₁₀ 2 in two parts, as for ln 2.
    const HIGH: f32 = 0.300_781_25;
    const LOW: f32 = 2.487_456_6e-4;
    let ln = f + ln_tail::<S>(f);
    let y = S::mul_add(ln, std::f32::consts::LOG10_E, k * LOW);
    ln_specials(x, S::mul_add(k, HIGH, y))
}

/// `ln(1 + x)`, within 2 ulp.
#[inline(always)]
pub(crate) fn log1p<S: Simd>(x: f32) -> f32 {
    let u = 1.0 + x;
    // What rounding `1 + x` lost, exactly.
    let lost = if x > 1.0 { 1.0 - (u - x) } else { x - (u - 1.0) };
    let y = ln::<S>(u) + lost / u;
    let y = if u == 0.0 { f32::NEG_INFINITY } else { y };
    let y = if u == f32::INFINITY { u } else { y };
    if x == 0.0 { x } else { y }
}

/// Hyperbolic tangent, within 3 ulp.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(x: f32) -> f32 {
    // From 9.02 on the result is 1.
    let e = expm1::<S>(2.0 * at_most(x.abs(), 10.0));
    (e / (e + 2.0)).copysign(x)
}

/// `1 / (1 + e⁻ˣ)`, within 2.5 ulp, down to subnormal results.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(x: f32) -> f32 {
    let e = exp::<S>(-x.abs());
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// The error function, within 1.5 ulp.
#[inline(always)]
pub(crate) fn erf<S: Simd>(x: f32) -> f32 {
    let a = x.abs();
    let p = [
        1.283_791_7e-1,
        -3.761_263_5e-1,
        1.128_369_7e-1,
        -2.685_95e-2,
        5.201_286e-3,
        -8.145_597e-4,
        8.382_388e-5,
    ];
    let near = S::mul_add(a, polynomial::<S, 7>(a * a, p), a);
    // 1 - erf = e^(-q); it is small here, so that its error hardly matters.
    let q = [
        -1.692_051_3e-4,
        1.129_488_4,
        6.334_008_6e-1,
        1.082_203_8e-1,
        -2.508_061_6e-2,
        4.156_254_7e-3,
        -4.313_935_6e-4,
        2.082_861_8e-5,
    ];
    let far = 1.0 - exp::<S>(-polynomial::<S, 8>(at_most(a, 4.0), q));
    (if a < 0.92 { near } else { far }).copysign(x)
}

/// The standard normal distribution function, within 3 · 2⁻²⁴ of 1: for products with numbers of the size of `x`, as in gelu, where an
/// error of that size is one of the last place. Half the time of [`erf`].
#[inline(always)]
pub(crate) fn normal_cdf<S: Simd>(x: f32) -> f32 {
    let p = [3.989_422_3e-1, 3.385_238_7e-2, 4.677_244e-3, 1.688_23e-4, 6.352_095_6e-6, 2.274_957_5e-8];
    let q = [1.0, 2.515_212_6e-1, 2.864_572_2e-2, 1.884_429_5e-3, 7.364_662_5e-5, 1.197_508_5e-6];
    // Beyond 5.5 it is 0 or 1 but for 2e-8.
    let a = at_most(at_least(x, -5.5), 5.5);
    let u = a * a;
    let ratio = polynomial::<S, 6>(u, p) / polynomial::<S, 6>(u, q);
    let cdf = at_most(at_least(S::mul_add(a, ratio, 0.5), 0.0), 1.0);
    let cdf = if x < -5.5 { 0.0 } else { cdf };
    if x > 5.5 { 1.0 } else { cdf }
}

/// Beyond this, [`sin_cos`] loses accuracy.
pub(crate) const SIN_COS_LIMIT: f32 = 16_777_216.0;

/// Sine and cosine for `|x| <= `[`SIN_COS_LIMIT`], within 1 ulp.
#[inline(always)]
pub(crate) fn sin_cos<S: Simd>(x: f32) -> (f32, f32) {
    // In f64, where π/2 in two parts is enough for every f32 in range. The first part has 28 bits: times n it is exact.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const HIGH: f64 = 1.570_796_310_901_641_8;
    const LOW: f64 = 1.589_325_477_352_819_6e-8;
    let x = x as f64;
    let shifted = S::mul_add_f64(x, std::f64::consts::FRAC_2_PI, ROUND);
    let n = shifted - ROUND;
    let r = S::mul_add_f64(n, -LOW, S::mul_add_f64(n, -HIGH, x));
    let t = r * r;
    let s = [
        -1.666_666_666_663_159_7e-1,
        8.333_333_325_271_256e-3,
        -1.984_126_382_249_81e-4,
        2.755_535_762_135_537_6e-6,
        -2.476_164_010_356_02e-8,
    ];
    let c = [
        4.166_666_666_660_219e-2,
        -1.388_888_887_826_195_6e-3,
        2.480_158_096_548_404_6e-5,
        -2.755_556_585_770_8e-7,
        2.064_764_492_749_485_2e-9,
    ];
    let sine = S::mul_add_f64(t * r, polynomial_f64::<S, 5>(t, s), r);
    let cosine = S::mul_add_f64(t * t, polynomial_f64::<S, 5>(t, c), S::mul_add_f64(t, -0.5, 1.0));
    let quadrant = shifted.to_bits();
    let (a, b) = if quadrant & 1 == 0 { (sine, cosine) } else { (cosine, sine) };
    let negated = |v: f64, flip: u64| f64::from_bits(v.to_bits() ^ ((flip & 2) << 62)) as f32;
    (negated(a, quadrant), negated(b, quadrant.wrapping_add(1)))
}

/// `xʸ` for positive finite `x` and finite `y`, within 1 ulp.
#[inline(always)]
fn pow_positive<S: Simd>(x: f32, y: f32) -> f32 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const SQRT_HALF: u64 = std::f64::consts::FRAC_1_SQRT_2.to_bits();
    const ONE: u64 = 1f64.to_bits();
    const TWO_52: f64 = 4_503_599_627_370_496.0;
    // x = 2ᵏ m with m between √½ and √2; log₂ m by the series in (m - 1) / (m + 1).
    let bits = (x as f64).to_bits().wrapping_add(ONE - SQRT_HALF);
    let k = f64::from_bits(bits >> 52 | TWO_52.to_bits()) - (TWO_52 + 1023.0);
    let m = f64::from_bits((bits & ((1 << 52) - 1)).wrapping_add(SQRT_HALF));
    let s = (m - 1.0) / (m + 1.0);
    let log = [
        2.885_390_081_777_927,
        9.617_966_939_244_538e-1,
        5.770_780_171_927_297e-1,
        4.121_984_111_334_727e-1,
        3.206_156_890_482_739e-1,
        2.614_685_545_852_435e-1,
        2.426_061_694_538_007_6e-1,
    ];
    let log = S::mul_add_f64(s, polynomial_f64::<S, 7>(s * s, log), k);
    let z = (y as f64 * log).clamp(-200.0, 200.0);
    let shifted = z + ROUND;
    let r = z - (shifted - ROUND);
    let exp2 = [
        9.999_999_999_997_617e-1,
        6.931_471_805_465_128e-1,
        2.402_265_069_888_255_3e-1,
        5.550_410_939_338_846e-2,
        9.618_128_542_469_587e-3,
        1.333_345_206_614_749_3e-3,
        1.540_385_199_177_985e-4,
        1.530_973_636_754_14e-5,
        1.317_580_943_904_772_5e-6,
    ];
    let power = polynomial_f64::<S, 9>(r, exp2);
    (power * f64::from_bits((shifted.to_bits() << 52).wrapping_add(ONE))) as f32
}

simd_fn! {
    /// Powers of the positive, and whether any other was asked for.
    fn pow_fast<S: Simd>(x: &[f32], y: &[f32], out: &mut [f32]) -> bool {
        let mut special = false;
        for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
            *out = pow_positive::<S>(x, y);
            special |= !(x > 0.0 && x < f32::INFINITY && y.abs() < f32::INFINITY);
        }
        special
    }

    /// Sines (or cosines) of what is not too large, and whether anything is.
    fn sin_fast<S: Simd>(x: &[f32], out: &mut [f32], cosine: bool) -> bool {
        let mut special = false;
        for (out, &x) in out.iter_mut().zip(x) {
            let (s, c) = sin_cos::<S>(x);
            *out = if cosine { c } else if x == 0.0 { x } else { s };
            special |= x.abs() > SIN_COS_LIMIT;
        }
        special
    }
}

/// `out = xʸ`, within 1 ulp; special cases as C has them.
pub(crate) fn pow(x: &[f32], y: &[f32], out: &mut [f32]) {
    if pow_fast(x, y, out) {
        for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
            if !(x > 0.0 && x < f32::INFINITY && y.abs() < f32::INFINITY) {
                *out = x.powf(y);
            }
        }
    }
}

/// `out = sin x`, within 1 ulp.
pub(crate) fn sin(x: &[f32], out: &mut [f32]) {
    if sin_fast(x, out, false) {
        for (out, &x) in out.iter_mut().zip(x).filter(|(_, x)| x.abs() > SIN_COS_LIMIT) {
            *out = x.sin();
        }
    }
}

/// `out = cos x`, within 1 ulp.
pub(crate) fn cos(x: &[f32], out: &mut [f32]) {
    if sin_fast(x, out, true) {
        for (out, &x) in out.iter_mut().zip(x).filter(|(_, x)| x.abs() > SIN_COS_LIMIT) {
            *out = x.cos();
        }
    }
}

/// f32 or f64, with the functions kernels need. `S` is the instruction set they are compiled for.
pub(crate) trait Float:
    Element
    + Neg<Output = Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    const ZERO: Self;
    const ONE: Self;
    const INFINITY: Self;

    fn mul_add<S: Simd>(self, b: Self, c: Self) -> Self;
    fn exp<S: Simd>(self) -> Self;
    fn expm1<S: Simd>(self) -> Self;
    fn ln<S: Simd>(self) -> Self;
    fn log2<S: Simd>(self) -> Self;
    fn log10<S: Simd>(self) -> Self;
    fn log1p<S: Simd>(self) -> Self;
    fn tanh<S: Simd>(self) -> Self;
    fn sigmoid<S: Simd>(self) -> Self;
    fn erf<S: Simd>(self) -> Self;
    fn normal_cdf<S: Simd>(self) -> Self;

    fn abs(self) -> Self;
    fn sqrt(self) -> Self;
    fn floor(self) -> Self;
    fn ceil(self) -> Self;
    fn trunc(self) -> Self;
    fn round_ties_even(self) -> Self;
    fn tan(self) -> Self;
    fn atan(self) -> Self;
    fn atan2(self, other: Self) -> Self;
    /// The remainder of division, with the sign of `self`.
    fn fmod(self, other: Self) -> Self;

    fn pow_slice(x: &[Self], y: &[Self], out: &mut [Self]);
    fn sin_slice(x: &[Self], out: &mut [Self]);
    fn cos_slice(x: &[Self], out: &mut [Self]);
}

macro_rules! from_std {
    ($t:ident: $($name:ident),*) => {$(
        #[inline(always)]
        fn $name(self) -> $t {
            $t::$name(self)
        }
    )*};
}

impl Float for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const INFINITY: f32 = f32::INFINITY;

    #[inline(always)]
    fn mul_add<S: Simd>(self, b: f32, c: f32) -> f32 {
        S::mul_add(self, b, c)
    }
    #[inline(always)]
    fn exp<S: Simd>(self) -> f32 {
        exp::<S>(self)
    }
    #[inline(always)]
    fn expm1<S: Simd>(self) -> f32 {
        expm1::<S>(self)
    }
    #[inline(always)]
    fn ln<S: Simd>(self) -> f32 {
        ln::<S>(self)
    }
    #[inline(always)]
    fn log2<S: Simd>(self) -> f32 {
        log2::<S>(self)
    }
    #[inline(always)]
    fn log10<S: Simd>(self) -> f32 {
        log10::<S>(self)
    }
    #[inline(always)]
    fn log1p<S: Simd>(self) -> f32 {
        log1p::<S>(self)
    }
    #[inline(always)]
    fn tanh<S: Simd>(self) -> f32 {
        tanh::<S>(self)
    }
    #[inline(always)]
    fn sigmoid<S: Simd>(self) -> f32 {
        sigmoid::<S>(self)
    }
    #[inline(always)]
    fn erf<S: Simd>(self) -> f32 {
        erf::<S>(self)
    }
    #[inline(always)]
    fn normal_cdf<S: Simd>(self) -> f32 {
        normal_cdf::<S>(self)
    }
    from_std!(f32: abs, sqrt, floor, ceil, trunc, round_ties_even, tan, atan);
    #[inline(always)]
    fn atan2(self, other: f32) -> f32 {
        f32::atan2(self, other)
    }
    #[inline(always)]
    fn fmod(self, other: f32) -> f32 {
        self % other
    }
    fn pow_slice(x: &[f32], y: &[f32], out: &mut [f32]) {
        pow(x, y, out);
    }
    fn sin_slice(x: &[f32], out: &mut [f32]) {
        sin(x, out);
    }
    fn cos_slice(x: &[f32], out: &mut [f32]) {
        cos(x, out);
    }
}

impl Float for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const INFINITY: f64 = f64::INFINITY;

    #[inline(always)]
    fn mul_add<S: Simd>(self, b: f64, c: f64) -> f64 {
        S::mul_add_f64(self, b, c)
    }
    #[inline(always)]
    fn exp<S: Simd>(self) -> f64 {
        f64::exp(self)
    }
    #[inline(always)]
    fn expm1<S: Simd>(self) -> f64 {
        f64::exp_m1(self)
    }
    #[inline(always)]
    fn ln<S: Simd>(self) -> f64 {
        f64::ln(self)
    }
    #[inline(always)]
    fn log2<S: Simd>(self) -> f64 {
        f64::log2(self)
    }
    #[inline(always)]
    fn log10<S: Simd>(self) -> f64 {
        f64::log10(self)
    }
    #[inline(always)]
    fn log1p<S: Simd>(self) -> f64 {
        f64::ln_1p(self)
    }
    #[inline(always)]
    fn tanh<S: Simd>(self) -> f64 {
        f64::tanh(self)
    }
    #[inline(always)]
    fn sigmoid<S: Simd>(self) -> f64 {
        let e = f64::exp(-f64::abs(self));
        (if self < 0.0 { e } else { 1.0 }) / (1.0 + e)
    }
    #[inline(always)]
    fn erf<S: Simd>(self) -> f64 {
        special::erf(self)
    }
    #[inline(always)]
    fn normal_cdf<S: Simd>(self) -> f64 {
        0.5 * (1.0 + special::erf(self * std::f64::consts::FRAC_1_SQRT_2))
    }
    from_std!(f64: abs, sqrt, floor, ceil, trunc, round_ties_even, tan, atan);
    #[inline(always)]
    fn atan2(self, other: f64) -> f64 {
        f64::atan2(self, other)
    }
    #[inline(always)]
    fn fmod(self, other: f64) -> f64 {
        self % other
    }
    fn pow_slice(x: &[f64], y: &[f64], out: &mut [f64]) {
        for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
            *out = x.powf(*y);
        }
    }
    fn sin_slice(x: &[f64], out: &mut [f64]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = f64::sin(*x);
        }
    }
    fn cos_slice(x: &[f64], out: &mut [f64]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = f64::cos(*x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::for_each_level;

    macro_rules! map {
        ($($name:ident = $f:ident)*) => {$(
            simd_fn! {
                fn $name<S: Simd>(x: &[f32], y: &mut [f32]) {
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = $f::<S>(*x);
                    }
                }
            }
        )*};
    }
    map! { map_exp = exp map_expm1 = expm1 map_ln = ln map_log2 = log2 map_log10 = log10 map_log1p = log1p
    map_tanh = tanh map_sigmoid = sigmoid map_erf = erf }

    /// Every 4,093rd f32, and all that functions treat specially.
    fn samples() -> Vec<f32> {
        let special = [
            0.0,
            1.0,
            88.7,
            88.73,
            103.9,
            104.1,
            127.0,
            0.92,
            10.0,
            0.3465,
            f32::MAX,
            f32::MIN_POSITIVE,
            1e-45,
        ];
        let all = (0..=u32::MAX).step_by(4093).map(f32::from_bits).filter(|x| !x.is_nan());
        all.chain(special.iter().flat_map(|&x| [x, -x]))
            .chain([f32::INFINITY, f32::NEG_INFINITY, f32::NAN])
            .collect()
    }

    /// How many units in the last place of an f32 `got` is from `want`.
    fn ulps(got: f32, want: f64) -> f64 {
        let rounded = want as f32;
        if got == rounded || got.is_nan() && want.is_nan() {
            return 0.0;
        }
        if got.is_nan() || want.is_nan() || got.is_infinite() || rounded.is_infinite() {
            // Overflow within one unit of the largest number is rounding.
            let near = |x: f64| x.abs() > f32::MAX as f64 * (1.0 - 3e-7);
            return if near(got as f64) && near(want) { 1.0 } else { f64::INFINITY };
        }
        let exponent = want.abs().max(f32::MIN_POSITIVE as f64).log2().floor();
        (got as f64 - want).abs() / (exponent - 23.0).exp2()
    }

    fn check(name: &str, bound: f64, f: impl Fn(&[f32], &mut [f32]), want: impl Fn(f64) -> f64) {
        let x = samples();
        let want: Vec<f64> = x.iter().map(|&x| want(x as f64)).collect();
        for_each_level(|level| {
            let mut y = vec![0.0; x.len()];
            f(&x, &mut y);
            let worst =
                (0..x.len()).max_by(|&i, &j| ulps(y[i], want[i]).total_cmp(&ulps(y[j], want[j]))).unwrap();
            let error = ulps(y[worst], want[worst]);
            println!("{name} {level:?}: {error:.2} ulp at {:e}", x[worst]);
            assert!(
                error <= bound,
                "{name}({:e}) = {:e}, not {:e} ({level:?})",
                x[worst],
                y[worst],
                want[worst]
            );
        });
    }

    #[test]
    fn elementary_functions_are_accurate() {
        check("exp", 1.0, map_exp, f64::exp);
        check("expm1", 2.0, map_expm1, f64::exp_m1);
        check("ln", 1.0, map_ln, f64::ln);
        check("log2", 2.0, map_log2, f64::log2);
        check("log10", 2.0, map_log10, f64::log10);
        check("log1p", 2.0, map_log1p, f64::ln_1p);
        check("tanh", 3.0, map_tanh, f64::tanh);
        check("sigmoid", 2.5, map_sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
        check("erf", 1.5, map_erf, special::erf);
        check("sin", 1.0, sin, f64::sin);
        check("cos", 1.0, cos, f64::cos);
    }

    #[test]
    fn powers_are_accurate() {
        for y in [-2.5f32, -1.0, -0.3, 0.0, 0.5, 1.0, 2.0, 3.0, 10.7, 60.0, f32::INFINITY, f32::NAN] {
            check("pow", 1.0, |x, out| pow(x, &vec![y; x.len()], out), |x| x.powf(y as f64));
        }
    }

    #[test]
    fn signs_of_zero_survive() {
        for f in [map_expm1 as fn(&[f32], &mut [f32]), map_log1p, map_tanh, map_erf, sin] {
            let mut y = [1.0; 2];
            f(&[0.0, -0.0], &mut y);
            assert!(y[0].to_bits() == 0 && y[1].to_bits() == (-0f32).to_bits(), "{y:?}");
        }
    }

    #[test]
    fn powers_of_two_have_exact_logarithms() {
        let x: Vec<f32> = (-149..128).map(|k| 2f64.powi(k) as f32).collect();
        let mut y = vec![0.0; x.len()];
        map_log2(&x, &mut y);
        assert!(y.iter().zip(-149..128).all(|(y, k)| *y == k as f32));
    }
}
