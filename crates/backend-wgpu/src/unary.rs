//! Functions of one element and their derivatives.

use crate::element::Elem;
use crate::elementwise;
use crate::gpu::Gpu;
use crate::variant::{Value, Variant, variant};
use orkest_core::op::Unary;
use orkest_core::{DType, Error, Output, Result, View};

/// The functions in the order of their numbers in the shaders.
const ORDER: [&str; 36] = [
    "neg",
    "abs",
    "sign",
    "exp",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "square",
    "sin",
    "cos",
    "tan",
    "atan",
    "tanh",
    "sigmoid",
    "logsigmoid",
    "erf",
    "relu",
    "gelu",
    "gelu_tanh",
    "silu",
    "softplus",
    "leaky_relu",
    "elu",
    "clamp",
    "floor",
    "ceil",
    "round",
    "trunc",
    "isnan",
    "isinf",
    "isfinite",
];

/// The number by which shaders know a function (blocks shared with other kernels have the same numbers).
pub(crate) fn code(f: Unary) -> u32 {
    match f {
        // Its kernel is a comparison with zero.
        Unary::LogicalNot => ORDER.len() as u32,
        _ => ORDER.iter().position(|&name| name == f.name()).expect("ORDER has every function") as u32,
    }
}

/// The function's parameters: two floats.
pub(crate) fn parameters(f: Unary) -> [f32; 2] {
    match f {
        Unary::Softplus { beta, threshold } => [beta as f32, threshold as f32],
        Unary::LeakyRelu(x) | Unary::Elu(x) => [x as f32, 0.0],
        Unary::Clamp { min, max } => [min as f32, max as f32],
        _ => [0.0; 2],
    }
}

/// [`orkest_core::Op::Unary`]
pub(crate) fn unary(gpu: &Gpu, f: Unary, x: &View<'_>, y: &Output) -> Result<()> {
    let elem = gpu.elem(x.dtype);
    if !elem.is_float() && !f.keeps_integers() {
        return Err(Error::Unsupported { op: f.name().into(), dtype: x.dtype, device: gpu.name.clone() });
    }
    let words = match f {
        // Limits of integers are integers; `as` saturates where they are beyond them.
        Unary::Clamp { min, max } if !elem.is_float() => {
            [min.ceil() as i32 as u32, max.floor() as i32 as u32]
        }
        _ => parameters(f).map(f32::to_bits),
    };
    let (file, mut variant) = variant_of(f, elem, gpu.elem(y.dtype));
    match file {
        TESTS => elementwise::run(gpu, f.name(), file, variant, [x], y, []),
        INTEGERS => {
            variant.push(("CHECK", Value::Bool(y.dtype == DType::I64)));
            elementwise::run_reporting(gpu, f.name(), file, variant, [x], y, words)
        }
        _ => elementwise::run(gpu, f.name(), file, variant, [x], y, words),
    }
}

const TESTS: &str = "elementwise/test.wgsl";
const INTEGERS: &str = "elementwise/unary_int.wgsl";

fn variant_of(f: Unary, from: Elem, to: Elem) -> (&'static str, Variant) {
    match (f.is_test(), from.is_float()) {
        (true, _) => {
            (TESTS, variant![elem: from, num: Value::Computed(from), IS_FLOAT: from.is_float(), OP: code(f)])
        }
        (false, true) => ("elementwise/unary.wgsl", variant![elem: to, OP: code(f)]),
        (false, false) => (INTEGERS, variant![elem: to, OP: code(f)]),
    }
}

/// [`orkest_core::Op::UnaryGrad`]
pub(crate) fn unary_grad(gpu: &Gpu, f: Unary, v: &View<'_>, g: &View<'_>, dx: &Output) -> Result<()> {
    let variant = variant![elem: gpu.elem(dx.dtype), OP: code(f)];
    let words = parameters(f).map(f32::to_bits);
    elementwise::run(gpu, f.name(), "elementwise/unary_grad.wgsl", variant, [v, g], dx, words)
}

/// Every function once, whatever its parameters.
#[cfg(test)]
pub(crate) const ALL: [Unary; 37] = [
    Unary::Neg,
    Unary::Abs,
    Unary::Sign,
    Unary::Exp,
    Unary::Expm1,
    Unary::Log,
    Unary::Log1p,
    Unary::Log2,
    Unary::Log10,
    Unary::Sqrt,
    Unary::Rsqrt,
    Unary::Reciprocal,
    Unary::Square,
    Unary::Sin,
    Unary::Cos,
    Unary::Tan,
    Unary::Atan,
    Unary::Tanh,
    Unary::Sigmoid,
    Unary::LogSigmoid,
    Unary::Erf,
    Unary::Relu,
    Unary::Gelu,
    Unary::GeluTanh,
    Unary::Silu,
    Unary::Softplus { beta: 2.0, threshold: 3.0 },
    Unary::LeakyRelu(0.1),
    Unary::Elu(0.7),
    Unary::Clamp { min: -0.5, max: 1.5 },
    Unary::Floor,
    Unary::Ceil,
    Unary::Round,
    Unary::Trunc,
    Unary::IsNan,
    Unary::IsInf,
    Unary::IsFinite,
    Unary::LogicalNot,
];

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = Vec::new();
    for elem in Elem::ALL {
        for strided in [false, true] {
            for f in ALL {
                let (file, mut v) = variant_of(f, elem, elem);
                v.push(("STRIDED", Value::Bool(strided)));
                if file == INTEGERS {
                    v.push(("CHECK", Value::Bool(!strided)));
                }
                all.push((file, v));
                if elem.is_float() {
                    let v = variant![elem: elem, OP: code(f), STRIDED: strided];
                    all.push(("elementwise/unary_grad.wgsl", v));
                }
            }
        }
    }
    all
}
