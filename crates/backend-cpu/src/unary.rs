//! Functions of one element and their derivatives.

use crate::chunks::{self, CHUNK, GRAIN_CALL, GRAIN_MATH, GRAIN_MEMORY, Space, Stored};
pub(crate) use crate::math::Float;
use crate::simd::{Simd, simd_fn};
use orkest_core::op::Unary;
use orkest_core::{DType, Element, Error, Output, Result, View, bf16, f16, with_dtype};
use std::f64::consts;

/// A function, and its gradient next to it.
trait Function: Copy {
    fn apply<S: Simd, T: Float>(self, x: T) -> T;

    /// The derivative times `g`, from the function's input `v`, or its output where [`Unary::grad_uses_output`] says so.
    fn grad<S: Simd, T: Float>(self, v: T, g: T) -> T;
}

/// A constant of type `T`.
#[inline(always)]
fn c<T: Float>(value: f64) -> T {
    T::from_f64(value)
}

/// Defines unit structs that implement [`Function`].
macro_rules! functions {
    ($($name:ident: |$x:ident| $value:expr, |$v:ident, $g:ident| $grad:expr;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name;
        impl Function for $name {
            #[inline(always)]
            fn apply<S: Simd, T: Float>(self, $x: T) -> T {
                $value
            }
            #[inline(always)]
            fn grad<S: Simd, T: Float>(self, $v: T, $g: T) -> T {
                $grad
            }
        }
    )*};
}

functions! {
    Neg: |x| -x, |_v, g| -g;
    Abs: |x| x.abs(), |v, g| g * Sign.apply::<S, T>(v);
    Sign: |x| if x > T::ZERO { T::ONE } else if x < T::ZERO { -T::ONE } else { T::ZERO }, |_v, _g| T::ZERO;
    Exp: |x| x.exp::<S>(), |v, g| g * v;
    Expm1: |x| x.expm1::<S>(), |v, g| g * (v + T::ONE);
    Log: |x| x.ln::<S>(), |v, g| g / v;
    Log1p: |x| x.log1p::<S>(), |v, g| g / (v + T::ONE);
    Log2: |x| x.log2::<S>(), |v, g| g / (v * c(consts::LN_2));
    Log10: |x| x.log10::<S>(), |v, g| g / (v * c(consts::LN_10));
    Sqrt: |x| x.sqrt(), |v, g| g / (v + v);
    Rsqrt: |x| T::ONE / x.sqrt(), |v, g| c::<T>(-0.5) * g * v * v * v;
    Reciprocal: |x| T::ONE / x, |v, g| -g * v * v;
    Square: |x| x * x, |v, g| g * (v + v);
    Tan: |x| x.tan(), |v, g| { let t = v.tan(); g * (t * t + T::ONE) };
    Atan: |x| x.atan(), |v, g| g / (v * v + T::ONE);
    Tanh: |x| x.tanh::<S>(), |v, g| g * (T::ONE - v * v);
    Sigmoid: |x| x.sigmoid::<S>(), |v, g| g * v * (T::ONE - v);
    LogSigmoid: |x| (if x < T::ZERO { x } else { T::ZERO }) - (-x.abs()).exp::<S>().log1p::<S>(),
        |v, g| g * (-v).sigmoid::<S>();
    Erf: |x| x.erf::<S>(), |v, g| g * (c::<T>(consts::FRAC_2_SQRT_PI) * (-v * v).exp::<S>());
    Relu: |x| if x <= T::ZERO { T::ZERO } else { x }, |v, g| if v <= T::ZERO { T::ZERO } else { g };
    Gelu: |x| x * x.normal_cdf::<S>(),
        |v, g| {
            let pdf = c::<T>(0.5 * consts::FRAC_2_SQRT_PI * consts::FRAC_1_SQRT_2) * (c::<T>(-0.5) * v * v).exp::<S>();
            g * (v.normal_cdf::<S>() + v * pdf)
        };
    GeluTanh: |x| c::<T>(0.5) * x * (T::ONE + gelu_inner(x).tanh::<S>()),
        |v, g| {
            let t = gelu_inner(v).tanh::<S>();
            let inner = c::<T>(SQRT_2_PI) * (T::ONE + c::<T>(3.0 * GELU_CUBE) * v * v);
            g * c(0.5) * (T::ONE + t + v * (T::ONE - t * t) * inner)
        };
    Silu: |x| x * x.sigmoid::<S>(), |v, g| { let s = v.sigmoid::<S>(); g * (s * (T::ONE + v * (T::ONE - s))) };
    Floor: |x| x.floor(), |_v, _g| T::ZERO;
    Ceil: |x| x.ceil(), |_v, _g| T::ZERO;
    Round: |x| x.round_ties_even(), |_v, _g| T::ZERO;
    Trunc: |x| x.trunc(), |_v, _g| T::ZERO;
}

const SQRT_2_PI: f64 = consts::FRAC_2_SQRT_PI * consts::FRAC_1_SQRT_2;
const GELU_CUBE: f64 = 0.044715;

#[inline(always)]
fn gelu_inner<T: Float>(x: T) -> T {
    c::<T>(SQRT_2_PI) * (x + c::<T>(GELU_CUBE) * x * x * x)
}

#[derive(Clone, Copy)]
struct Softplus {
    beta: f64,
    threshold: f64,
}

impl Function for Softplus {
    #[inline(always)]
    fn apply<S: Simd, T: Float>(self, x: T) -> T {
        let scaled = x * c(self.beta);
        if scaled > c(self.threshold) { x } else { scaled.exp::<S>().log1p::<S>() / c(self.beta) }
    }
    #[inline(always)]
    fn grad<S: Simd, T: Float>(self, v: T, g: T) -> T {
        let scaled = v * c(self.beta);
        if scaled > c(self.threshold) { g } else { g * scaled.sigmoid::<S>() }
    }
}

#[derive(Clone, Copy)]
struct LeakyRelu(f64);

impl Function for LeakyRelu {
    #[inline(always)]
    fn apply<S: Simd, T: Float>(self, x: T) -> T {
        if x > T::ZERO { x } else { x * c(self.0) }
    }
    #[inline(always)]
    fn grad<S: Simd, T: Float>(self, v: T, g: T) -> T {
        if v > T::ZERO { g } else { g * c(self.0) }
    }
}

#[derive(Clone, Copy)]
struct Elu(f64);

impl Function for Elu {
    #[inline(always)]
    fn apply<S: Simd, T: Float>(self, x: T) -> T {
        let negative = x.expm1::<S>() * c(self.0);
        if x > T::ZERO { x } else { negative }
    }
    #[inline(always)]
    fn grad<S: Simd, T: Float>(self, v: T, g: T) -> T {
        let negative = g * c(self.0) * v.exp::<S>();
        if v > T::ZERO { g } else { negative }
    }
}

#[derive(Clone, Copy)]
struct Clamp {
    min: f64,
    max: f64,
}

impl Function for Clamp {
    /// The upper limit wins where the limits cross; NaN stays.
    #[inline(always)]
    fn apply<S: Simd, T: Float>(self, x: T) -> T {
        let x = if x < c(self.min) { c(self.min) } else { x };
        if x > c(self.max) { c(self.max) } else { x }
    }
    #[inline(always)]
    fn grad<S: Simd, T: Float>(self, v: T, g: T) -> T {
        // Nothing passes at a limit, only where there is none.
        let above = if self.min == f64::NEG_INFINITY { v >= c(self.min) } else { v > c(self.min) };
        let below = if self.max == f64::INFINITY { v <= c(self.max) } else { v < c(self.max) };
        if above && below { g } else { T::ZERO }
    }
}

simd_fn! {
    fn map<S: Simd, T: Float, F: Function>(f: F, x: &[T], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = f.apply::<S, T>(*x);
        }
    }

    fn map_update<S: Simd, T: Float, F: Function>(f: F, x: &mut [T]) {
        for x in x {
            *x = f.apply::<S, T>(*x);
        }
    }

    fn map_grad<S: Simd, T: Float, F: Function>(f: F, v: &[T], g: &[T], dx: &mut [T]) {
        for ((dx, v), g) in dx.iter_mut().zip(v).zip(g) {
            *dx = f.grad::<S, T>(*v, *g);
        }
    }
}

/// Calls `$go!(function)` with the [`Function`] of a kind.
macro_rules! with_function {
    ($kind:expr, $f:ident => $run:expr, $otherwise:expr) => {
        with_function!(@arms $kind, $f => $run, $otherwise;
            Neg, Abs, Sign, Exp, Expm1, Log, Log1p, Log2, Log10, Sqrt, Rsqrt, Reciprocal, Square, Tan, Atan, Tanh, Sigmoid,
            LogSigmoid, Erf, Relu, Gelu, GeluTanh, Silu, Floor, Ceil, Round, Trunc)
    };
    (@arms $kind:expr, $f:ident => $run:expr, $otherwise:expr; $($name:ident),*) => {
        match $kind {
            $(Unary::$name => { let $f = $name; $run })*
            Unary::Softplus { beta, threshold } => { let $f = Softplus { beta, threshold }; $run }
            Unary::LeakyRelu(slope) => { let $f = LeakyRelu(slope); $run }
            Unary::Elu(alpha) => { let $f = Elu(alpha); $run }
            Unary::Clamp { min, max } => { let $f = Clamp { min, max }; $run }
            Unary::Sin | Unary::Cos | Unary::IsNan | Unary::IsInf | Unary::IsFinite | Unary::LogicalNot => $otherwise,
        }
    };
}

/// `y = kind(x)` for a function that gives floats.
pub(crate) fn apply_to<T: Float>(kind: Unary, x: &[T], y: &mut [T]) {
    with_function!(kind, f => map(f, x, y), match kind {
        Unary::Sin => T::sin_slice(x, y),
        Unary::Cos => T::cos_slice(x, y),
        _ => unreachable!("{} gives truth values", kind.name()),
    });
}

/// `x = kind(x)` for a function that gives floats.
pub(crate) fn apply<T: Float>(kind: Unary, values: &mut [T]) {
    with_function!(kind, f => map_update(f, values), {
        let mut space = Space::<T>::new();
        for values in values.chunks_mut(CHUNK) {
            let x = space.slice(values.len());
            x.copy_from_slice(values);
            apply_to(kind, x, values);
        }
    });
}

/// `dx = kind'(v) g`.
fn apply_grad<T: Float>(kind: Unary, v: &[T], g: &[T], dx: &mut [T]) {
    with_function!(kind, f => map_grad(f, v, g, dx), match kind {
        Unary::Sin | Unary::Cos => {
            let sign = if kind == Unary::Sin { T::cos_slice(v, dx); T::ONE } else { T::sin_slice(v, dx); -T::ONE };
            for (dx, g) in dx.iter_mut().zip(g) {
                *dx = *dx * (*g * sign);
            }
        }
        _ => dx.fill(T::ZERO),
    });
}

/// How much work has to come together before it is shared among threads.
fn grain(kind: Unary, dtype: DType) -> usize {
    match kind {
        Unary::Neg
        | Unary::Abs
        | Unary::Sign
        | Unary::Sqrt
        | Unary::Rsqrt
        | Unary::Reciprocal
        | Unary::Square
        | Unary::Relu
        | Unary::LeakyRelu(_)
        | Unary::Clamp { .. }
        | Unary::Floor
        | Unary::Ceil
        | Unary::Round
        | Unary::Trunc => GRAIN_MEMORY,
        Unary::Tan | Unary::Atan => GRAIN_CALL,
        _ if kind.is_test() => GRAIN_MEMORY,
        _ if dtype == DType::F64 => GRAIN_CALL,
        _ => GRAIN_MATH,
    }
}

/// [`orkest_core::Op::Unary`]
pub(crate) fn unary(kind: Unary, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let dtype = inputs[0].dtype;
    if kind.is_test() {
        return with_dtype!(dtype, T => test::<T>(kind, &inputs[0], outputs));
    }
    match dtype {
        DType::F32 => float::<f32>(kind, &inputs[0], outputs),
        DType::F64 => float::<f64>(kind, &inputs[0], outputs),
        DType::F16 => float::<f16>(kind, &inputs[0], outputs),
        DType::BF16 => float::<bf16>(kind, &inputs[0], outputs),
        _ if !kind.keeps_integers() => {
            Err(Error::Unsupported { op: kind.name().into(), dtype, device: "cpu".into() })
        }
        DType::Bool => integer::<bool>(kind, &inputs[0], outputs),
        DType::U8 => integer::<u8>(kind, &inputs[0], outputs),
        DType::I32 => integer::<i32>(kind, &inputs[0], outputs),
        DType::I64 => integer::<i64>(kind, &inputs[0], outputs),
    }
}

/// [`orkest_core::Op::UnaryGrad`]
pub(crate) fn unary_grad(kind: Unary, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let (v, g) = (&inputs[0], &inputs[1]);
    match v.dtype {
        DType::F32 => float_grad::<f32>(kind, v, g, outputs),
        DType::F64 => float_grad::<f64>(kind, v, g, outputs),
        DType::F16 => float_grad::<f16>(kind, v, g, outputs),
        DType::BF16 => float_grad::<bf16>(kind, v, g, outputs),
        dtype => Err(Error::Unsupported { op: kind.name().into(), dtype, device: "cpu".into() }),
    }
}

fn float<T: Stored<Compute: Float>>(kind: Unary, x: &View<'_>, y: &[Output]) -> Result<()> {
    if chunks::is_update::<T>(x, y) {
        return chunks::update1::<T>(&y[0], grain(kind, x.dtype), |x| apply(kind, x));
    }
    chunks::map1::<T, T>(x, y, grain(kind, x.dtype), |x, y| apply_to(kind, x, y))
}

fn float_grad<T: Stored<Compute: Float>>(
    kind: Unary,
    v: &View<'_>,
    g: &View<'_>,
    dx: &[Output],
) -> Result<()> {
    chunks::map2::<T, T, T>(v, g, dx, grain(kind, v.dtype), |v, g, dx| apply_grad(kind, v, g, dx))
}

fn integer<T: Stored<Compute = T>>(kind: Unary, x: &View<'_>, y: &[Output]) -> Result<()> {
    chunks::map1::<T, T>(x, y, GRAIN_MEMORY, |x, y| {
        let map = |y: &mut [T], f: &dyn Fn(i64) -> i64| {
            for (y, x) in y.iter_mut().zip(x) {
                *y = T::from_i64(f(x.to_i64()));
            }
        };
        match kind {
            Unary::Neg => map(y, &i64::wrapping_neg),
            Unary::Abs => map(y, &i64::wrapping_abs),
            Unary::Sign => map(y, &i64::signum),
            Unary::Square => map(y, &|x| x.wrapping_mul(x)),
            Unary::Relu => map(y, &|x| x.max(0)),
            // Limits are floats: `as` saturates where they are beyond i64.
            Unary::Clamp { min, max } => map(y, &|x| x.max(min.ceil() as i64).min(max.floor() as i64)),
            _ => y.copy_from_slice(x),
        }
    })
}

/// The tests that give truth values.
fn test<T: Stored>(kind: Unary, x: &View<'_>, y: &[Output]) -> Result<()> {
    chunks::map1::<T, bool>(x, y, GRAIN_MEMORY, |x, y| {
        let zero = Default::default();
        let map = |y: &mut [bool], f: fn(f64) -> bool| {
            for (y, x) in y.iter_mut().zip(x) {
                *y = f(x.to_f64());
            }
        };
        match kind {
            Unary::LogicalNot => y.iter_mut().zip(x).for_each(|(y, x)| *y = *x == zero),
            Unary::IsNan => map(y, f64::is_nan),
            Unary::IsInf => map(y, f64::is_infinite),
            _ => map(y, f64::is_finite),
        }
    })
}
