//! How dtypes are stored on the device, and the conversions on the way there and back.
//!
//! | dtype | stored as | computed in |
//! |---|---|---|
//! | f32 | f32 | f32 |
//! | f16 | f16, or the low half of a u32 without `SHADER_F16` | f32 |
//! | bf16 | u16, or the low half of a u32 without `SHADER_I16` | f32 |
//! | i32, i64 | i32 (i64 is checked at upload) | i32 |
//! | bool, u8 | u32 | i32 |
//! | f64 | refused | |

use crate::device::Capabilities;
use half::{bf16, f16};
use orkest_core::{DType, Error, Result, Scalar};

/// How one element lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Elem {
    F32,
    F16,
    /// f16 in the low half of a word, where shaders have no f16.
    F16Word,
    BF16,
    /// bf16 in the low half of a word, where shaders have no 16-bit integers.
    BF16Word,
    I32,
    U8,
    Bool,
}

impl Elem {
    #[cfg(test)]
    pub(crate) const ALL: [Elem; 8] =
        [Elem::F32, Elem::F16, Elem::F16Word, Elem::BF16, Elem::BF16Word, Elem::I32, Elem::U8, Elem::Bool];

    pub(crate) fn of(dtype: DType, capabilities: &Capabilities) -> Elem {
        match dtype {
            DType::F32 | DType::F64 => Elem::F32,
            DType::F16 if capabilities.f16 => Elem::F16,
            DType::F16 => Elem::F16Word,
            DType::BF16 if capabilities.i16 => Elem::BF16,
            DType::BF16 => Elem::BF16Word,
            DType::I32 | DType::I64 => Elem::I32,
            DType::U8 => Elem::U8,
            DType::Bool => Elem::Bool,
        }
    }

    /// Bytes in device memory.
    pub(crate) const fn size(self) -> usize {
        match self {
            Elem::F16 | Elem::BF16 => 2,
            _ => 4,
        }
    }

    pub(crate) const fn is_float(self) -> bool {
        !matches!(self, Elem::I32 | Elem::U8 | Elem::Bool)
    }

    /// The WGSL type in memory.
    pub(crate) const fn stored(self) -> &'static str {
        match self {
            Elem::F32 => "f32",
            Elem::F16 => "f16",
            Elem::BF16 => "u16",
            Elem::I32 => "i32",
            Elem::F16Word | Elem::BF16Word | Elem::U8 | Elem::Bool => "u32",
        }
    }

    /// The WGSL type that kernels compute in.
    pub(crate) const fn computed(self) -> &'static str {
        if self.is_float() { "f32" } else { "i32" }
    }

    /// The WGSL type for kernels that only move elements.
    pub(crate) const fn bits(self) -> &'static str {
        match self {
            Elem::F16 => "f16",
            Elem::BF16 => "u16",
            _ => "u32",
        }
    }

    /// The extension that the stored type needs.
    pub(crate) const fn extension(self) -> Option<&'static str> {
        match self {
            Elem::F16 => Some("f16"),
            Elem::BF16 => Some("wgpu_int16"),
            _ => None,
        }
    }

    /// The WGSL expression that turns the stored `x` into a computed value.
    pub(crate) const fn load(self) -> &'static str {
        match self {
            Elem::F32 | Elem::I32 => "x",
            Elem::F16 => "f32(x)",
            Elem::F16Word => "unpack2x16float(x).x",
            Elem::BF16 => "bitcast<f32>(u32(x) << 16u)",
            Elem::BF16Word => "bitcast<f32>(x << 16u)",
            Elem::U8 | Elem::Bool => "i32(x)",
        }
    }

    /// The same for four stored elements in a `vec4`.
    pub(crate) const fn load_wide(self) -> &'static str {
        match self {
            Elem::F32 | Elem::I32 => "x",
            Elem::F16 => "vec4<f32>(x)",
            Elem::F16Word => {
                "vec4<f32>(unpack2x16float(x.x).x, unpack2x16float(x.y).x, unpack2x16float(x.z).x, unpack2x16float(x.w).x)"
            }
            Elem::BF16 => "bitcast<vec4<f32>>(vec4<u32>(x) << vec4<u32>(16u))",
            Elem::BF16Word => "bitcast<vec4<f32>>(x << vec4<u32>(16u))",
            Elem::U8 | Elem::Bool => "vec4<i32>(x)",
        }
    }

    /// The WGSL statements that turn the computed value `x` into what is stored.
    pub(crate) const fn store(self) -> &'static str {
        match self {
            Elem::F32 | Elem::I32 => "return x;",
            Elem::F16 => "return f16(x);",
            Elem::F16Word => "return pack2x16float(vec2<f32>(x, 0.0));",
            Elem::BF16 => {
                "let b = bitcast<u32>(x); \
                 if ((b & 0x7fffffffu) > 0x7f800000u) { return u16(0x7fc0u); } \
                 return u16((b + 0x7fffu + ((b >> 16u) & 1u)) >> 16u);"
            }
            Elem::BF16Word => {
                "let b = bitcast<u32>(x); \
                 if ((b & 0x7fffffffu) > 0x7f800000u) { return 0x7fc0u; } \
                 return (b + 0x7fffu + ((b >> 16u) & 1u)) >> 16u;"
            }
            Elem::U8 => "return u32(x) & 255u;",
            Elem::Bool => "return select(0u, 1u, x != 0);",
        }
    }
}

/// Bytes in device memory of `len` elements, whole words.
pub(crate) fn stored_size(len: usize, elem: Elem) -> usize {
    len.saturating_mul(elem.size()).next_multiple_of(4)
}

/// A message that says what to do about f64.
pub(crate) fn check_dtype(dtype: DType, device: &str) -> Result<()> {
    if dtype == DType::F64 {
        return Err(Error::Device(format!(
            "f64 tensors cannot live on {device}: shaders have no f64; convert with .to_dtype(DType::F32) first"
        )));
    }
    Ok(())
}

/// Host elements of `dtype` as they are stored.
pub(crate) fn encode(bytes: &[u8], dtype: DType, elem: Elem) -> Result<Vec<u8>> {
    let words = |len: usize| Vec::<u32>::with_capacity(len);
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let out: Vec<u32> = match (dtype, elem) {
        (DType::I64, _) => {
            let mut out = words(bytes.len() / 8);
            for b in bytes.chunks_exact(8) {
                let value = i64::from_le_bytes(b.try_into().expect("chunks of 8"));
                out.push(narrow(value)? as u32);
            }
            out
        }
        (DType::Bool | DType::U8, _) => bytes.iter().map(|&b| u32::from(b)).collect(),
        (_, Elem::F16Word | Elem::BF16Word) => pairs().map(u32::from).collect(),
        _ => {
            let mut out = bytes.to_vec();
            out.resize(bytes.len().next_multiple_of(4), 0);
            return Ok(out);
        }
    };
    Ok(bytemuck::cast_slice(&out).to_vec())
}

/// The inverse of [`encode`]: stored elements as the host has them.
pub(crate) fn decode(stored: &[u8], dtype: DType, elem: Elem) -> Vec<u8> {
    let words = || stored.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("chunks of 4")));
    match (dtype, elem) {
        (DType::I64, _) => words().flat_map(|w| i64::from(w as i32).to_le_bytes()).collect(),
        (DType::Bool, _) => words().map(|w| u8::from(w != 0)).collect(),
        (DType::U8, _) => words().map(|w| w as u8).collect(),
        (_, Elem::F16Word | Elem::BF16Word) => words().flat_map(|w| (w as u16).to_le_bytes()).collect(),
        _ => stored.to_vec(),
    }
}

/// An i64 as this device holds it.
pub(crate) fn narrow(value: i64) -> Result<i32> {
    i32::try_from(value).map_err(|_| {
        Error::Data(format!("{value} does not fit: i64 tensors are held as 32-bit integers on a wgpu device"))
    })
}

/// A scalar as the compute type of `elem`, as the bits of a word.
pub(crate) fn scalar_bits(value: Scalar, elem: Elem) -> Result<u32> {
    Ok(match elem {
        _ if elem.is_float() => (value.as_f64() as f32).to_bits(),
        Elem::Bool => u32::from(value.as_f64() != 0.0),
        Elem::U8 => u32::from(value.to::<u8>()),
        _ => narrow(value.as_i64())? as u32,
    })
}

/// The nearest value that `dtype` has.
pub(crate) fn round_float(value: f64, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f64(value).to_f32(),
        DType::BF16 => bf16::from_f64(value).to_f32(),
        _ => value as f32,
    }
}
