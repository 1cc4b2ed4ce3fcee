//! Element types, PyTorch's promotion rules, and scalars.
//!
//! This file knows nothing of tensors.

use crate::error::Error;
use half::{bf16, f16};
use std::fmt;

/// The type of a tensor's elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum DType {
    /// Truth values, one byte each, 0 or 1.
    Bool,
    /// Unsigned 8-bit integers.
    U8,
    /// Signed 32-bit integers.
    I32,
    /// Signed 64-bit integers: indices, labels and integer literals.
    I64,
    /// IEEE half precision.
    F16,
    /// Brain floating point: the range of f32 with 8 bits of precision.
    BF16,
    /// IEEE single precision, the default.
    F32,
    /// IEEE double precision.
    F64,
}

/// What promotion looks at first: bool < integer < float.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Category {
    /// `bool`
    Bool,
    /// `u8`, `i32`, `i64`
    Int,
    /// `f16`, `bf16`, `f32`, `f64`
    Float,
}

impl DType {
    /// Every dtype, in the order of [`DType`]'s declaration.
    pub const ALL: [DType; 8] =
        [DType::Bool, DType::U8, DType::I32, DType::I64, DType::F16, DType::BF16, DType::F32, DType::F64];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::Bool | DType::U8 => 1,
            DType::F16 | DType::BF16 => 2,
            DType::I32 | DType::F32 => 4,
            DType::I64 | DType::F64 => 8,
        }
    }

    /// The short name: `f32`, `i64`, `bool` ...
    pub const fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::U8 => "u8",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }

    /// Bool, integer or float.
    pub const fn category(self) -> Category {
        match self {
            DType::Bool => Category::Bool,
            DType::U8 | DType::I32 | DType::I64 => Category::Int,
            DType::F16 | DType::BF16 | DType::F32 | DType::F64 => Category::Float,
        }
    }

    /// True for `f16`, `bf16`, `f32` and `f64`.
    pub const fn is_float(self) -> bool {
        matches!(self.category(), Category::Float)
    }

    /// The dtype that holds both: PyTorch's `promote_types`.
    ///
    /// ```
    /// use orkest_core::DType;
    /// assert_eq!(DType::F16.promote(DType::BF16), DType::F32);
    /// assert_eq!(DType::I64.promote(DType::F16), DType::F16);
    /// assert_eq!(DType::U8.promote(DType::Bool), DType::U8);
    /// ```
    pub fn promote(self, other: DType) -> DType {
        use DType::{BF16, F16, F32};
        match (self, other) {
            (F16, BF16) | (BF16, F16) => F32,
            // The declaration order of the enum is the promotion order otherwise.
            (a, b) => a.max(b),
        }
    }

    /// Machine epsilon of a float dtype: the gap between 1 and the next number.
    ///
    /// Zero for integers and bool.
    pub const fn epsilon(self) -> f64 {
        match self {
            DType::F64 => f64::EPSILON,
            DType::F32 => f32::EPSILON as f64,
            DType::F16 => 0.0009765625,
            DType::BF16 => 0.0078125,
            _ => 0.0,
        }
    }

    /// The smallest (most negative) finite value.
    pub fn min_value(self) -> Scalar {
        match self {
            DType::Bool => Scalar::Bool(false),
            DType::U8 => Scalar::Int(0),
            DType::I32 => Scalar::Int(i32::MIN as i64),
            DType::I64 => Scalar::Int(i64::MIN),
            DType::F16 => Scalar::Float(f16::MIN.to_f64()),
            DType::BF16 => Scalar::Float(bf16::MIN.to_f64()),
            DType::F32 => Scalar::Float(f32::MIN as f64),
            DType::F64 => Scalar::Float(f64::MIN),
        }
    }

    /// The largest finite value.
    pub fn max_value(self) -> Scalar {
        match self {
            DType::Bool => Scalar::Bool(true),
            DType::U8 => Scalar::Int(255),
            DType::I32 => Scalar::Int(i32::MAX as i64),
            DType::I64 => Scalar::Int(i64::MAX),
            DType::F16 => Scalar::Float(f16::MAX.to_f64()),
            DType::BF16 => Scalar::Float(bf16::MAX.to_f64()),
            DType::F32 => Scalar::Float(f32::MAX as f64),
            DType::F64 => Scalar::Float(f64::MAX),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A number or truth value that takes part in an operation without a tensor of its own.
///
/// It decides the result's dtype only when its category is higher than the tensor's: `i64 * 0.5` is f32, `f16 * 0.5` stays
/// f16, `u8 + 1` stays u8.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Scalar {
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
}

impl Scalar {
    /// Bool, integer or float.
    pub const fn category(self) -> Category {
        match self {
            Scalar::Bool(_) => Category::Bool,
            Scalar::Int(_) => Category::Int,
            Scalar::Float(_) => Category::Float,
        }
    }

    /// As a float; `true` is 1.
    pub const fn as_f64(self) -> f64 {
        match self {
            Scalar::Bool(b) => b as i64 as f64,
            Scalar::Int(i) => i as f64,
            Scalar::Float(f) => f,
        }
    }

    /// As an integer; floats are cut towards zero.
    pub const fn as_i64(self) -> i64 {
        match self {
            Scalar::Bool(b) => b as i64,
            Scalar::Int(i) => i,
            Scalar::Float(f) => f as i64,
        }
    }

    /// The dtype of a tensor made from this scalar alone: bool, i64 or f32.
    pub const fn default_dtype(self) -> DType {
        match self {
            Scalar::Bool(_) => DType::Bool,
            Scalar::Int(_) => DType::I64,
            Scalar::Float(_) => DType::F32,
        }
    }

    /// Does `dtype` have this number, rounded towards zero for integers? Floats have every number, bools every truth.
    pub fn fits(self, dtype: DType) -> bool {
        let (low, high) = (dtype.min_value(), dtype.max_value());
        match (dtype.category(), self) {
            (Category::Int, Scalar::Float(x)) => (low.as_f64()..=high.as_f64()).contains(&x.trunc()),
            (Category::Int, _) => (low.as_i64()..=high.as_i64()).contains(&self.as_i64()),
            _ => true,
        }
    }

    /// The dtype of `tensor op scalar`.
    pub fn promote(self, tensor: DType) -> DType {
        if self.category() > tensor.category() { self.default_dtype() } else { tensor }
    }

    /// This scalar as an element of type `T`, rounded as a cast would.
    pub fn to<T: Element>(self) -> T {
        match self {
            Scalar::Bool(b) => T::from_i64(b as i64),
            Scalar::Int(i) => T::from_i64(i),
            Scalar::Float(f) => T::from_f64(f),
        }
    }
}

macro_rules! scalar_from {
    ($($t:ty => $variant:ident as $as:ty),*) => {$(
        impl From<$t> for Scalar {
            fn from(value: $t) -> Scalar { Scalar::$variant(value as $as) }
        }
    )*};
}
scalar_from!(f32 => Float as f64, f64 => Float as f64, i32 => Int as i64, i64 => Int as i64, u8 => Int as i64,
             usize => Int as i64, isize => Int as i64, bool => Bool as bool);

impl From<f16> for Scalar {
    fn from(value: f16) -> Scalar {
        Scalar::Float(value.to_f64())
    }
}

impl From<bf16> for Scalar {
    fn from(value: bf16) -> Scalar {
        Scalar::Float(value.to_f64())
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Bool(b) => write!(f, "{b}"),
            Scalar::Int(i) => write!(f, "{i}"),
            Scalar::Float(x) => write!(f, "{x}"),
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that a tensor can hold. Sealed: the eight types of [`DType`].
pub trait Element:
    sealed::Sealed
    + Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + fmt::Debug
    + fmt::Display
    + bytemuck::NoUninit
    + 'static
{
    /// The dtype of this type.
    const DTYPE: DType;
    /// Rounds a float to this type: integers saturate after cutting towards zero, bool is `value != 0`.
    fn from_f64(value: f64) -> Self;
    /// Converts an integer: narrower integers wrap, bool is `value != 0`.
    fn from_i64(value: i64) -> Self;
    /// As a float.
    fn to_f64(self) -> f64;
    /// As an integer; floats are cut towards zero.
    fn to_i64(self) -> i64;
    /// Reads `bytes` as elements, checking alignment, length and (for bool) values.
    ///
    /// # Errors
    /// If the bytes are no whole number of aligned elements, or a bool byte is neither 0 nor 1.
    fn from_bytes(bytes: &[u8]) -> Result<&[Self], Error>;
    /// The same for writing.
    ///
    /// # Errors
    /// As [`Element::from_bytes`].
    fn from_bytes_mut(bytes: &mut [u8]) -> Result<&mut [Self], Error>;
}

macro_rules! element {
    ($t:ty, $dtype:ident, $from_f64:expr, $from_i64:expr, $to_f64:expr, $to_i64:expr) => {
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$dtype;
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                $from_f64(value)
            }
            #[inline(always)]
            fn from_i64(value: i64) -> Self {
                $from_i64(value)
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to_f64(self)
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                $to_i64(self)
            }
            fn from_bytes(bytes: &[u8]) -> Result<&[Self], Error> {
                bytemuck::checked::try_cast_slice(bytes).map_err(|e| {
                    Error::Data(format!("{} bytes are no {} values: {e}", bytes.len(), DType::$dtype))
                })
            }
            fn from_bytes_mut(bytes: &mut [u8]) -> Result<&mut [Self], Error> {
                let len = bytes.len();
                bytemuck::checked::try_cast_slice_mut(bytes)
                    .map_err(|e| Error::Data(format!("{len} bytes are no {} values: {e}", DType::$dtype)))
            }
        }
    };
}

element!(f64, F64, |v| v, |v| v as f64, |v| v, |v| v as i64);
element!(f32, F32, |v| v as f32, |v| v as f32, |v: f32| v as f64, |v: f32| v as i64);
// By way of f32, as in PyTorch; `from_f64` of `half` 2.7 drops bits before it rounds.
element!(
    f16,
    F16,
    |v| f16::from_f32(v as f32),
    |v| f16::from_f32(v as f32),
    f16::to_f64,
    |v: f16| v.to_f32() as i64
);
element!(bf16, BF16, |v| bf16::from_f32(v as f32), |v| bf16::from_f32(v as f32), bf16::to_f64, |v: bf16| {
    v.to_f32() as i64
});
element!(i64, I64, |v| v as i64, |v| v, |v: i64| v as f64, |v| v);
element!(i32, I32, |v| v as i32, |v| v as i32, |v: i32| v as f64, |v: i32| v as i64);
element!(u8, U8, |v: f64| v as i64 as u8, |v| v as u8, |v: u8| v as f64, |v: u8| v as i64);
element!(bool, Bool, |v| v != 0.0, |v| v != 0, |v: bool| v as u8 as f64, |v: bool| v as i64);

/// Runs `$body` with `$T` bound to the Rust type of a [`DType`].
#[macro_export]
macro_rules! with_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::Bool => {
                type $T = bool;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::DType::F16 => {
                type $T = $crate::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $T = $crate::bf16;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promotion_is_pytorchs() {
        // torch.promote_types, from the table in PyTorch's documentation.
        use DType::*;
        let expected = [
            (Bool, U8, U8),
            (U8, I32, I32),
            (I32, I64, I64),
            (I64, F16, F16),
            (I64, BF16, BF16),
            (F16, BF16, F32),
            (F16, F32, F32),
            (BF16, F64, F64),
            (Bool, F32, F32),
            (U8, F64, F64),
        ];
        for (a, b, c) in expected {
            assert_eq!(a.promote(b), c, "{a} {b}");
            assert_eq!(b.promote(a), c, "{b} {a}");
        }
    }

    #[test]
    fn scalars_promote_only_across_categories() {
        assert_eq!(Scalar::from(0.5).promote(DType::I64), DType::F32);
        assert_eq!(Scalar::from(0.5).promote(DType::F16), DType::F16);
        assert_eq!(Scalar::from(1).promote(DType::U8), DType::U8);
        assert_eq!(Scalar::from(1).promote(DType::Bool), DType::I64);
        assert_eq!(Scalar::from(true).promote(DType::Bool), DType::Bool);
    }
}
