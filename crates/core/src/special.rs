//! Special functions that Rust's standard library lacks.

#![allow(clippy::excessive_precision)] // coefficients as published

use std::f64::consts::{FRAC_2_SQRT_PI, PI};

/// The error function, `2/√π ∫₀ˣ e^(-t²) dt`, to within one or two units in the last place.
///
/// Rational approximations of W. J. Cody, "Rational Chebyshev approximations for the error function", Mathematics of
/// Computation 23 (1969): of `erf(x) / x` in `x²` near zero, of `e^(x²) erfc(x)` further out.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a <= 0.5 {
        let square = x * x;
        return x * polynomial(square, &NEAR.0) / polynomial(square, &NEAR.1);
    }
    (1.0 - tail(a)).copysign(x)
}

/// `1 - erf(x)` for x above ½, without cancellation.
fn tail(a: f64) -> f64 {
    // From 5.93 on, erf differs from 1 by less than half a unit in the last place. NaN comes out as NaN.
    if a <= 4.0 {
        (-a * a).exp() * polynomial(a, &MIDDLE.0) / polynomial(a, &MIDDLE.1)
    } else if a < 6.0 {
        let inverse = 1.0 / (a * a);
        let correction = inverse * polynomial(inverse, &FAR.0) / polynomial(inverse, &FAR.1);
        (-a * a).exp() / a * (0.5 * FRAC_2_SQRT_PI - correction)
    } else if a.is_nan() {
        a
    } else {
        0.0
    }
}

/// The inverse of [`erf`]: ±∞ at ±1, NaN beyond. Halley's method from an estimate by Winitzki that is off by less than 1 %.
pub fn erfinv(x: f64) -> f64 {
    let a = x.abs();
    if a == 0.0 || a == 1.0 || a > 1.0 || a.is_nan() {
        return match a {
            0.0 => x,
            1.0 => f64::INFINITY.copysign(x),
            _ => f64::NAN,
        };
    }
    const SHAPE: f64 = 0.147;
    let log = ((1.0 - a) * (1.0 + a)).ln();
    let half = 2.0 / (PI * SHAPE) + log / 2.0;
    let mut y = ((half * half - log / SHAPE).sqrt() - half).sqrt();
    for _ in 0..4 {
        // Near 1 what is missing to it has more digits.
        let off = if a > 0.5 && y > 0.5 { (1.0 - a) - tail(y) } else { erf(y) - a };
        let step = off / (FRAC_2_SQRT_PI * (-y * y).exp());
        y -= step / (1.0 + y * step);
    }
    y.copysign(x)
}

/// The Bernoulli numbers B₂, B₄, .. of the expansions below.
const BERNOULLI: [f64; 8] = [
    1.0 / 6.0,
    -1.0 / 30.0,
    1.0 / 42.0,
    -1.0 / 30.0,
    5.0 / 66.0,
    -691.0 / 2730.0,
    7.0 / 6.0,
    -3617.0 / 510.0,
];

/// From here on the expansions below are exact to the last digits.
const LARGE: f64 = 12.0;

/// The logarithm of the size of the gamma function, infinite at 0, -1, -2, ..: Stirling's series after steps to large numbers,
/// Euler's reflection for negative ones.
pub fn lgamma(x: f64) -> f64 {
    if x.is_infinite() || x <= 0.0 && x == x.trunc() {
        return f64::INFINITY;
    }
    if x == 1.0 || x == 2.0 {
        return 0.0; // of which rounding would leave nothing but errors
    }
    if x < 0.0 {
        return (PI / (PI * (x - x.round())).sin().abs()).ln() - lgamma(1.0 - x);
    }
    let (mut z, mut product) = (x, 1.0);
    while z < LARGE {
        product *= z;
        z += 1.0;
    }
    let series = BERNOULLI.iter().zip(1..).fold(0.0, |sum, (b, k)| {
        let n = 2 * k;
        sum + b / f64::from(n * (n - 1)) / z.powi(n - 1)
    });
    (z - 0.5) * z.ln() - z + 0.5 * (2.0 * PI).ln() + series - f64::ln(product)
}

/// The logarithmic derivative of the gamma function; NaN at -1, -2, .., infinite with the other sign at ±0.
pub fn digamma(x: f64) -> f64 {
    if x == 0.0 {
        return f64::INFINITY.copysign(-x);
    }
    if x < 0.0 {
        if x == x.trunc() {
            return f64::NAN;
        }
        return digamma(1.0 - x) - PI / (PI * (x - x.round())).tan();
    }
    let (mut z, mut steps) = (x, 0.0);
    while z < LARGE {
        steps += 1.0 / z;
        z += 1.0;
    }
    let series =
        BERNOULLI.iter().zip(1..).fold(0.0, |sum, (b, k)| sum + b / f64::from(2 * k) / z.powi(2 * k));
    z.ln() - 0.5 / z - series - steps
}

/// The `n`-th derivative of [`digamma`], infinite at 0, -1, -2, .. for n above 0.
pub fn polygamma(n: u32, x: f64) -> f64 {
    if n == 0 {
        return digamma(x);
    }
    let sign = if n.is_multiple_of(2) { 1.0 } else { -1.0 };
    let factorial: f64 = (1..=n).map(f64::from).product();
    if x == f64::NEG_INFINITY {
        return f64::NAN;
    }
    if x > 0.0 || x.is_nan() {
        return -sign * factorial * zeta(n + 1, x);
    }
    if x == x.trunc() {
        return if n.is_multiple_of(2) { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    // The n-th derivative of π cot(πx) is a polynomial in the cotangent c, because that of c is -π (1 + c²).
    let mut powers = vec![0.0, PI];
    for _ in 0..n {
        let mut next = vec![0.0; powers.len() + 1];
        for (k, coefficient) in powers.iter().enumerate().skip(1) {
            next[k - 1] -= PI * k as f64 * coefficient;
            next[k + 1] -= PI * k as f64 * coefficient;
        }
        powers = next;
    }
    let cotangent = 1.0 / (PI * (x - x.round())).tan();
    let reflected = powers.iter().rev().fold(0.0, |sum, coefficient| sum * cotangent + coefficient);
    sign * polygamma(n, 1.0 - x) - reflected
}

/// Hurwitz' zeta function `Σ (x + k)⁻ˢ` for `s > 1` and `x > 0`: the first terms, and Euler and Maclaurin's formula for the rest.
fn zeta(s: u32, x: f64) -> f64 {
    let power = |z: f64, n: u32| z.powi(-(n as i32));
    let (mut z, mut sum) = (x, 0.0);
    while z < LARGE + f64::from(s) {
        sum += power(z, s);
        z += 1.0;
    }
    sum += power(z, s - 1) / f64::from(s - 1) + power(z, s) / 2.0;
    // s (s + 1) .. (s + 2k - 2) / (2k)! / z^(s + 2k - 1)
    let mut factor = f64::from(s) / 2.0 * power(z, s + 1);
    for (b, k) in BERNOULLI.iter().zip(1u32..) {
        sum += b * factor;
        let (m, n) = (f64::from(s + 2 * k - 1), f64::from(2 * k + 1));
        factor *= m * (m + 1.0) / (n * (n + 1.0)) / (z * z);
    }
    sum
}

/// Coefficients from the highest power down.
fn polynomial(x: f64, coefficients: &[f64]) -> f64 {
    coefficients.iter().fold(0.0, |sum, c| sum * x + c)
}

/// Numerator and denominator for `|x| ≤ ½`.
const NEAR: ([f64; 5], [f64; 5]) = (
    [
        1.857_777_061_846_031_53e-1,
        3.161_123_743_870_565_60e0,
        1.138_641_541_510_501_56e2,
        3.774_852_376_853_020_21e2,
        3.209_377_589_138_469_47e3,
    ],
    [
        1.0,
        2.360_129_095_234_412_09e1,
        2.440_246_379_344_441_73e2,
        1.282_616_526_077_372_28e3,
        2.844_236_833_439_170_62e3,
    ],
);

/// For `½ ≤ |x| ≤ 4`.
const MIDDLE: ([f64; 9], [f64; 9]) = (
    [
        2.153_115_354_744_038_46e-8,
        5.641_884_969_886_700_89e-1,
        8.883_149_794_388_375_94e0,
        6.611_919_063_714_162_95e1,
        2.986_351_381_974_001_31e2,
        8.819_522_212_417_690_90e2,
        1.712_047_612_634_070_58e3,
        2.051_078_377_826_071_47e3,
        1.230_339_354_797_997_25e3,
    ],
    [
        1.0,
        1.574_492_611_070_983_47e1,
        1.176_939_508_913_124_99e2,
        5.371_811_018_620_098_58e2,
        1.621_389_574_566_690_19e3,
        3.290_799_235_733_459_63e3,
        4.362_619_090_143_247_16e3,
        3.439_367_674_143_721_64e3,
        1.230_339_354_803_749_42e3,
    ],
);

/// For `|x| ≥ 4`, in `1/x²`.
const FAR: ([f64; 6], [f64; 6]) = (
    [
        1.631_538_713_730_209_78e-2,
        3.053_266_349_612_323_44e-1,
        3.603_448_999_498_044_39e-1,
        1.257_817_261_112_292_46e-1,
        1.608_378_514_874_227_66e-2,
        6.587_491_615_298_378_03e-4,
    ],
    [
        1.0,
        2.568_520_192_289_822_42e0,
        1.872_952_849_923_467_25e0,
        5.279_051_029_514_284_12e-1,
        6.051_834_131_244_131_91e-2,
        2.335_204_976_268_691_85e-3,
    ],
);

#[cfg(test)]
mod tests {
    use super::{digamma, erf, erfinv, lgamma, polygamma};

    #[track_caller]
    fn close(name: &str, x: f64, found: f64, expected: f64) {
        assert!(
            (found - expected).abs() <= 1e-13 * expected.abs().max(1.0) || found == expected,
            "{name}({x}) = {found} is not {expected}"
        );
    }

    #[test]
    fn gamma_and_its_derivatives_are_pytorchs() {
        // x, torch.lgamma, torch.digamma, torch.polygamma of 1, 2 and 3, in f64
        let expected = [
            (
                0.1,
                2.252712651734206,
                -10.423754940411076,
                101.43329914989455,
                -2001.8614573783439,
                60004.512876790235,
            ),
            (
                0.5,
                0.5723649429247001,
                -1.9635100260214229,
                4.934802202073678,
                -16.828796644234316,
                97.40909103400242,
            ),
            (1.0, 0.0, -0.5772156649015328, 1.6449340676383375, -2.404113806319188, 6.493939402266829),
            (2.0, 0.0, 0.422784335098467, 0.6449340670881899, -0.4041138063191886, 0.4939394022668293),
            (
                2.5,
                0.2846828704729192,
                0.7031566406452431,
                0.4903577562398206,
                -0.23620405164172736,
                0.2239058488172521,
            ),
            (
                11.9,
                17.25847745059552,
                2.4339335368825377,
                0.08766320119017963,
                -0.007679939159328306,
                0.0013447839236959123,
            ),
            (
                50.3,
                145.7372480775525,
                3.9080317836496254,
                0.020079646649236928,
                -0.0004031786660191467,
                1.6190282677743e-5,
            ),
            (
                -0.5,
                1.2655121234846454,
                0.03648997397857639,
                8.934802200117687,
                -0.82879664423432,
                193.40909103400242,
            ),
            (
                -2.7,
                -0.07140708531564569,
                -1.115347129140689,
                14.769375845089467,
                -68.93293902326377,
                768.9626351155221,
            ),
        ];
        for (x, gamma, d0, d1, d2, d3) in expected {
            close("lgamma", x, lgamma(x), gamma);
            close("digamma", x, digamma(x), d0);
            // PyTorch's own has nine digits.
            assert!((polygamma(1, x) - d1).abs() < 2e-9 * d1.abs());
            close("polygamma 2", x, polygamma(2, x), d2);
            close("polygamma 3", x, polygamma(3, x), d3);
        }
        close("trigamma", 1.0, polygamma(1, 1.0), std::f64::consts::PI.powi(2) / 6.0);
        close("lgamma", 1e10, lgamma(1e10), 220258509288.81058);
        for pole in [0.0, -0.0, -1.0, -7.0, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(lgamma(pole), f64::INFINITY);
        }
        assert_eq!((digamma(0.0), digamma(-0.0)), (f64::NEG_INFINITY, f64::INFINITY));
        assert!(digamma(-3.0).is_nan() && lgamma(f64::NAN).is_nan() && polygamma(2, f64::NAN).is_nan());
        assert_eq!((digamma(f64::INFINITY), polygamma(1, f64::INFINITY)), (f64::INFINITY, 0.0));
    }

    #[test]
    fn erfinv_is_pytorchs() {
        // torch.erfinv in f64
        let expected = [
            (0.0, 0.0),
            (1e-300, 8.86226925452758e-301),
            (1e-10, 8.862269254527581e-11),
            (0.1, 0.08885599049425769),
            (0.5, 0.4769362762044699),
            (0.51, 0.4881220505159588),
            (0.7, 0.7328690779592167),
            (0.9, 1.1630871536766743),
            (0.99, 1.8213863677184494),
            (0.999999, 3.458910737275499),
            (1.0, f64::INFINITY),
        ];
        for (x, y) in expected {
            assert!(
                (erfinv(x) - y).abs() <= 2e-15 * y || erfinv(x) == y,
                "erfinv({x}) = {} is not {y}",
                erfinv(x)
            );
            assert_eq!(erfinv(-x), -erfinv(x));
        }
        for x in [1.0 - 1e-10, 1.0 - 1e-15] {
            let tail = 1.0 - erf(erfinv(x));
            assert!((tail - (1.0 - x)).abs() <= 2e-16, "{x}");
        }
        assert!(erfinv(1.1).is_nan() && erfinv(f64::NAN).is_nan());
    }

    #[test]
    fn erf_is_accurate_on_every_piece() {
        // torch.special.erf in f64
        let expected = [
            (0.0, 0.0),
            (1e-10, 1.1283791670955126e-10),
            (0.1, 0.1124629160182849),
            (0.46, 0.4846553900016797),
            (0.49, 0.511668261188523),
            (0.5, 0.5204998778130465),
            (0.51, 0.5292436198411704),
            (0.84375, 0.7672256612323416),
            (1.0, 0.8427007929497149),
            (1.25, 0.9229001282564583),
            (2.0, 0.9953222650189527),
            (2.857, 0.9999466417399131),
            (3.9, 0.9999999652077514),
            (4.0, 0.9999999845827421),
            (4.1, 0.9999999932999724),
            (5.0, 0.9999999999984626),
            (5.9, 0.9999999999999999),
            (30.0, 1.0),
            (f64::INFINITY, 1.0),
        ];
        for (x, y) in expected {
            assert!((erf(x) - y).abs() <= 4e-16 * y, "erf({x}) = {} is not {y}", erf(x));
            assert_eq!(erf(-x), -erf(x), "erf is odd");
        }
        assert!(erf(f64::NAN).is_nan());
    }
}
