//! When two results count as equal. One table for everything that is compared with PyTorch or between backends.

use orkest_core::{DType, Tensor, with_dtype};

/// Relative tolerances of a dtype: for results and for gradients.
///
/// `parity/draw.py` has the same table; it names the cases in which PyTorch itself is not that exact.
pub fn tolerances(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F64 => (1e-10, 1e-10),
        DType::F32 => (1e-5, 1e-4),
        DType::F16 => (5e-3, 3e-2),
        DType::BF16 => (2e-2, 1e-1),
        _ => (0.0, 0.0),
    }
}

/// Errors are relative to the expected value, but to no less than this part of the largest one in the tensor: where numbers
/// cancel, the small ones carry the rounding of the large ones.
pub const FLOOR: f64 = 0.1;

/// As [`FLOOR`], for f64 whatever the largest one is: where everything cancels, roundings of 1e-16 would be all that is compared.
/// (f32 needs no such rule, because the fixtures know how far PyTorch itself is from f64 there.)
const SMALLEST_FLOOR: f64 = 1e-3;

/// As [`FLOOR`], where nothing but zeros is expected: numbers around 1 that cancel exactly in one order of adding do not in another.
const FLOOR_OF_ZEROS: f64 = 0.02;

/// How far two numbers may be apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Allowed {
    /// Relative to the expected value, see [`FLOOR`].
    Relative(f64),
    /// Relative to the expected value, but to no less than 0.05: for functions of one element, where every element has to be right.
    Each(f64),
    /// Units in the last place; 0 means equal bits (but any NaN equals any NaN).
    Ulp(u64),
}

/// Nothing if `actual` is `expected` within what is allowed, else what differs, how much, and where.
///
/// Shape and dtype must agree; integers, bools, NaN and infinities must be the same.
pub fn compare(actual: &Tensor, expected: &Tensor, allowed: Allowed) -> Result<(), String> {
    if actual.shape() != expected.shape() {
        return Err(format!("shape {} instead of {}", actual.shape(), expected.shape()));
    }
    if actual.dtype() != expected.dtype() {
        return Err(format!("dtype {} instead of {}", actual.dtype(), expected.dtype()));
    }
    if !actual.dtype().is_float() {
        return compare_integers(actual, expected);
    }
    let (a, b) = (floats(actual)?, floats(expected)?);
    let largest = b.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    let mut worst: Option<(f64, usize)> = None;
    for (i, (&a, &b)) in a.iter().zip(&b).enumerate() {
        let error = match allowed {
            _ if a.is_nan() && b.is_nan() => continue,
            _ if a == b && (a != 0.0 || allowed != Allowed::Ulp(0)) => continue,
            _ if !a.is_finite() || !b.is_finite() => f64::INFINITY,
            Allowed::Relative(limit) | Allowed::Each(limit) => {
                let floor = match (allowed, expected.dtype()) {
                    (Allowed::Each(_), _) => 0.05,
                    (_, DType::F64) => (largest * FLOOR).max(SMALLEST_FLOOR),
                    _ if largest == 0.0 => FLOOR_OF_ZEROS,
                    _ => largest * FLOOR,
                };
                let error = (a - b).abs() / b.abs().max(floor);
                if error <= limit {
                    continue;
                }
                error
            }
            Allowed::Ulp(limit) => {
                let apart = ulps(a, b, expected.dtype());
                if apart <= limit {
                    continue;
                }
                apart as f64
            }
        };
        if worst.is_none_or(|(w, _)| error > w) {
            worst = Some((error, i));
        }
    }
    match worst {
        None => Ok(()),
        Some((error, i)) => {
            let unit = if matches!(allowed, Allowed::Ulp(_)) { "ulp" } else { "relative" };
            let place = position(i, expected.shape());
            Err(format!(
                "{} instead of {} at {place:?}: error {error:.3e} {unit}, {allowed:?} allowed",
                a[i], b[i]
            ))
        }
    }
}

fn compare_integers(actual: &Tensor, expected: &Tensor) -> Result<(), String> {
    let read = |t: &Tensor| -> Result<Vec<i64>, String> {
        t.to_dtype(DType::I64).to_vec().map_err(|e| format!("it cannot be read: {e}"))
    };
    let (a, b) = (read(actual)?, read(expected)?);
    match a.iter().zip(&b).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(i) => Err(format!("{} instead of {} at {:?}", a[i], b[i], position(i, expected.shape()))),
    }
}

/// The elements, exactly.
pub fn floats(t: &Tensor) -> Result<Vec<f64>, String> {
    let values = with_dtype!(t.dtype(), T => {
        t.to_vec::<T>().map(|v| v.into_iter().map(orkest_core::Element::to_f64).collect::<Vec<f64>>())
    });
    values.map_err(|e| format!("it cannot be read: {e}"))
}

/// How many representable numbers lie between two; 0 only for equal bits.
fn ulps(a: f64, b: f64, dtype: DType) -> u64 {
    let ordered = |v: f64| -> i64 {
        match dtype {
            DType::F64 => {
                let bits = v.to_bits() as i64;
                if bits < 0 { i64::MIN.wrapping_sub(bits) } else { bits }
            }
            _ => {
                let bits = (v as f32).to_bits() as i32;
                i64::from(if bits < 0 { i32::MIN.wrapping_sub(bits) } else { bits })
            }
        }
    };
    if a == 0.0 && b == 0.0 {
        u64::from(a.is_sign_negative() != b.is_sign_negative())
    } else {
        ordered(a).abs_diff(ordered(b))
    }
}

/// The indices of the `i`-th element in row-major order.
pub fn position(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut out = vec![0; shape.len()];
    for d in (0..shape.len()).rev() {
        out[d] = i % shape[d];
        i /= shape[d];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::Device;

    fn t(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, values.len(), &Device::reference())
    }

    #[test]
    fn errors_are_relative_with_a_floor() {
        let allowed = Allowed::Relative(1e-5);
        assert_eq!(compare(&t(&[100.0, 1.0]), &t(&[100.0005, 1.00005]), allowed), Ok(()));
        let message = compare(&t(&[100.0, 1.001]), &t(&[100.0, 1.0]), allowed).unwrap_err();
        assert!(message.contains("at [1]"), "{message}");
        assert!(compare(&t(&[0.0]), &t(&[1e-30]), allowed).is_err());
        assert!(
            compare(&t(&[1.9e-7]), &t(&[0.0]), allowed).is_ok()
                && compare(&t(&[2.1e-7]), &t(&[0.0]), allowed).is_err()
        );
    }

    #[test]
    fn what_is_not_finite_must_be_the_same() {
        let allowed = Allowed::Relative(0.5);
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert_eq!(compare(&t(&[nan, inf, -inf]), &t(&[nan, inf, -inf]), allowed), Ok(()));
        for (a, b) in [(nan, 1.0), (1.0, nan), (inf, 1.0), (1.0, inf), (inf, -inf), (nan, inf)] {
            assert!(compare(&t(&[a]), &t(&[b]), allowed).is_err(), "{a} {b}");
        }
    }

    #[test]
    fn units_in_the_last_place_are_counted() {
        let next = f32::from_bits(1.0f32.to_bits() + 1);
        assert_eq!(compare(&t(&[next]), &t(&[1.0]), Allowed::Ulp(1)), Ok(()));
        assert!(compare(&t(&[next]), &t(&[1.0]), Allowed::Ulp(0)).is_err());
        assert!(compare(&t(&[-0.0]), &t(&[0.0]), Allowed::Ulp(0)).is_err());
        assert_eq!(compare(&t(&[f32::from_bits(1)]), &t(&[-f32::from_bits(1)]), Allowed::Ulp(2)), Ok(()));
    }

    #[test]
    fn shapes_and_dtypes_count() {
        let allowed = Allowed::Relative(1.0);
        assert!(compare(&t(&[1.0]), &t(&[1.0, 1.0]), allowed).unwrap_err().contains("shape"));
        assert!(compare(&t(&[1.0]), &t(&[1.0]).to_dtype(DType::F64), allowed).unwrap_err().contains("dtype"));
        let integers = |v: i64| Tensor::new([v], &Device::reference());
        assert!(compare(&integers(1), &integers(2), allowed).is_err());
    }
}
