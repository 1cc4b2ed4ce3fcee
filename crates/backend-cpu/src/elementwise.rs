//! Functions of two elements, comparisons, and choice.

use crate::chunks::{self, CHUNK, GRAIN_CALL, GRAIN_MATH, GRAIN_MEMORY, Space, Stored};
use crate::math::Float;
use crate::simd::simd_fn;
use orkest_core::op::{Binary, Compare};
use orkest_core::{DType, Element, Error, Output, Result, Scalar, View, bf16, f16, with_dtype};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

trait Function: Copy {
    fn apply<T: Float>(self, a: T, b: T) -> T;
}

macro_rules! functions {
    ($($name:ident: |$a:ident, $b:ident| $value:expr;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name;
        impl Function for $name {
            #[inline(always)]
            fn apply<T: Float>(self, $a: T, $b: T) -> T {
                $value
            }
        }
    )*};
}

functions! {
    Add: |a, b| a + b;
    Sub: |a, b| a - b;
    Mul: |a, b| a * b;
    Div: |a, b| a / b;
    Remainder: |a, b| {
        let r = a.fmod(b);
        if r != T::ZERO && (r < T::ZERO) != (b < T::ZERO) { r + b } else { r }
    };
    // A NaN on either side fails the comparison that would discard it.
    Maximum: |a, b| if a > b || is_nan(a) { a } else { b };
    Minimum: |a, b| if a < b || is_nan(a) { a } else { b };
    Atan2: |a, b| a.atan2(b);
}

#[inline(always)]
fn is_nan<T: Float>(x: T) -> bool {
    x.partial_cmp(&x).is_none()
}

simd_fn! {
    fn map<S: Simd, T: Float, F: Function>(f: F, a: &[T], b: &[T], y: &mut [T]) {
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = f.apply(*a, *b);
        }
    }
}

simd_fn! {
    fn map_scalar<S: Simd, T: Float, F: Function>(f: F, a: &[T], b: T, y: &mut [T]) {
        for (y, a) in y.iter_mut().zip(a) {
            *y = f.apply(*a, b);
        }
    }

    fn map_update<S: Simd, T: Float, F: Function>(f: F, y: &mut [T], b: &[T]) {
        for (y, b) in y.iter_mut().zip(b) {
            *y = f.apply(*y, *b);
        }
    }

    fn map_update_scalar<S: Simd, T: Float, F: Function>(f: F, y: &mut [T], b: T) {
        for y in y {
            *y = f.apply(*y, b);
        }
    }
}

/// The same function of `b` and `a`.
#[derive(Clone, Copy)]
struct Swapped<F>(F);

impl<F: Function> Function for Swapped<F> {
    #[inline(always)]
    fn apply<T: Float>(self, a: T, b: T) -> T {
        self.0.apply(b, a)
    }
}

/// Runs `$body` with `$f` bound to the function of a kind that waits for memory more than it computes; `$other` for the others.
macro_rules! with_quick_function {
    ($kind:expr, $f:ident => $body:expr, $other:expr) => {
        with_quick_function!(@plain $kind, $f, $body, $other, Add Sub Mul Div Maximum Minimum)
    };
    (@plain $kind:expr, $f:ident, $body:expr, $other:expr, $($name:ident)*) => {
        match $kind {
            $(Binary::$name => { let $f = $name; $body })*
            _ => $other,
        }
    };
    ($kind:expr, $swapped:expr, $f:ident => $body:expr, $other:expr) => {
        with_quick_function!(@each $kind, $swapped, $f, $body, $other, Add Sub Mul Div Maximum Minimum)
    };
    (@each $kind:expr, $swapped:expr, $f:ident, $body:expr, $other:expr, $($name:ident)*) => {
        match ($kind, $swapped) {
            $((Binary::$name, false) => { let $f = $name; $body })*
            $((Binary::$name, true) => { let $f = Swapped($name); $body })*
            _ => $other,
        }
    };
}

fn apply<T: Float>(kind: Binary, a: &[T], b: &[T], y: &mut [T]) {
    match kind {
        Binary::Add => map(Add, a, b, y),
        Binary::Sub => map(Sub, a, b, y),
        Binary::Mul => map(Mul, a, b, y),
        Binary::Div => map(Div, a, b, y),
        Binary::Pow => T::pow_slice(a, b, y),
        Binary::Remainder => map(Remainder, a, b, y),
        Binary::Maximum => map(Maximum, a, b, y),
        Binary::Minimum => map(Minimum, a, b, y),
        Binary::Atan2 => map(Atan2, a, b, y),
    }
}

/// In i64, which the element type then wraps (or, for bool, asks whether it is zero). `None` where it is not defined.
#[inline(always)]
fn apply_integer(kind: Binary, a: i64, b: i64) -> Option<i64> {
    Some(match kind {
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::Mul => a.wrapping_mul(b),
        Binary::Pow => integer_power(a, b),
        Binary::Div | Binary::Remainder if b == 0 => return None,
        Binary::Div => {
            let (q, r) = (a.wrapping_div(b), a.wrapping_rem(b));
            if r != 0 && (r < 0) != (b < 0) { q - 1 } else { q }
        }
        Binary::Remainder => {
            let r = a.wrapping_rem(b);
            if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
        }
        Binary::Maximum => a.max(b),
        Binary::Minimum => a.min(b),
        Binary::Atan2 => return None,
    })
}

/// Negative powers are cut towards zero.
fn integer_power(base: i64, exponent: i64) -> i64 {
    if exponent < 0 {
        return match base {
            1 => 1,
            -1 => 1 - 2 * (exponent & 1),
            _ => 0,
        };
    }
    let (mut power, mut square, mut left) = (1i64, base, exponent);
    while left > 0 {
        if left & 1 == 1 {
            power = power.wrapping_mul(square);
        }
        square = square.wrapping_mul(square);
        left >>= 1;
    }
    power
}

fn grain(kind: Binary, dtype: DType) -> usize {
    match kind {
        Binary::Remainder | Binary::Atan2 => GRAIN_CALL,
        Binary::Pow if dtype == DType::F64 => GRAIN_CALL,
        Binary::Pow => GRAIN_MATH,
        _ => GRAIN_MEMORY,
    }
}

/// [`orkest_core::Op::Binary`]
pub(crate) fn binary(kind: Binary, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let (a, b) = (&inputs[0], &inputs[1]);
    match a.dtype {
        DType::F32 => float::<f32>(kind, a, b, outputs),
        DType::F64 => float::<f64>(kind, a, b, outputs),
        DType::F16 => float::<f16>(kind, a, b, outputs),
        DType::BF16 => float::<bf16>(kind, a, b, outputs),
        DType::Bool => integer::<bool>(kind, a, b, outputs),
        DType::U8 => integer::<u8>(kind, a, b, outputs),
        DType::I32 => integer::<i32>(kind, a, b, outputs),
        DType::I64 => integer::<i64>(kind, a, b, outputs),
    }
}

fn float<T: Stored<Compute: Float>>(kind: Binary, a: &View<'_>, b: &View<'_>, y: &[Output]) -> Result<()> {
    for (x, other, swapped) in [(a, b, false), (b, a, true)] {
        if chunks::is_update::<T>(x, y) {
            with_quick_function!(kind, swapped, f => {
                return chunks::update2::<T>(other, y, GRAIN_MEMORY, |y, b| match b {
                    &[b] => map_update_scalar(f, y, b),
                    _ => map_update(f, y, b),
                });
            }, {});
        }
    }
    if a.layout.numel() > CHUNK && !(a.layout.is_contiguous() && b.layout.is_contiguous()) {
        with_quick_function!(kind, f => {
            return chunks::map2_broadcasting::<T, T, T>(a, b, y, GRAIN_MEMORY, |a, b, y| match (a, b) {
                (&[a], &[b]) => y.fill(f.apply(a, b)),
                (a, &[b]) => map_scalar(f, a, b, y),
                (&[a], b) => map_scalar(Swapped(f), b, a, y),
                _ => map(f, a, b, y),
            });
        }, {});
    }
    chunks::map2::<T, T, T>(a, b, y, grain(kind, a.dtype), |a, b, y| apply(kind, a, b, y))
}

fn integer<T: Stored<Compute = T>>(kind: Binary, a: &View<'_>, b: &View<'_>, y: &[Output]) -> Result<()> {
    let undefined = AtomicBool::new(false);
    chunks::map2::<T, T, T>(a, b, y, grain(kind, a.dtype), |a, b, y| {
        integer_slices(kind, a, b, y, &undefined);
    })?;
    defined(kind, undefined, a.dtype)
}

fn integer_slices<T: Element>(kind: Binary, a: &[T], b: &[T], y: &mut [T], undefined: &AtomicBool) {
    // The kind is a constant in each call, so that each loop has only its own operation.
    let mut map = |f: &dyn Fn(&[T], &[T], &mut [T]) -> bool| {
        if !f(a, b, y) {
            undefined.store(true, Relaxed);
        }
    };
    macro_rules! each {
        ($($kind:ident),*) => {
            match kind {
                $(Binary::$kind => map(&|a, b, y| {
                    let mut fine = true;
                    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                        let value = apply_integer(Binary::$kind, a.to_i64(), b.to_i64());
                        fine &= value.is_some();
                        *y = T::from_i64(value.unwrap_or(0));
                    }
                    fine
                }),)*
            }
        };
    }
    each!(Add, Sub, Mul, Div, Pow, Remainder, Maximum, Minimum, Atan2);
}

fn defined(kind: Binary, undefined: AtomicBool, dtype: DType) -> Result<()> {
    match kind {
        _ if !undefined.into_inner() => Ok(()),
        Binary::Div | Binary::Remainder if !dtype.is_float() => Err(Error::Data("division by zero".into())),
        _ => Err(Error::Unsupported { op: kind.name().into(), dtype, device: "cpu".into() }),
    }
}

/// A scalar as an operand: some equal elements, of which kernels read a chunk at a time.
struct Repeated<T> {
    space: Space<T>,
    len: usize,
}

impl<T: Copy> Repeated<T> {
    fn new(value: T, numel: usize) -> Repeated<T> {
        let mut space = Space::new();
        let len = numel.min(CHUNK);
        space.slice(len).fill(value);
        Repeated { space, len }
    }

    /// Calls `f` with slices of `x` and `y`, and as much of the repeated scalar.
    fn zip<X, Y>(&self, x: &[X], y: &mut [Y], f: impl Fn(&[X], &[T], &mut [Y])) {
        // SAFETY: `new` has filled as many.
        let repeated = unsafe { self.space.filled(self.len) };
        for (x, y) in x.chunks(self.len).zip(y.chunks_mut(self.len)) {
            f(x, &repeated[..x.len()], y);
        }
    }
}

/// [`orkest_core::Op::BinaryScalar`]
pub(crate) fn binary_scalar(
    kind: Binary,
    scalar: Scalar,
    swapped: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let x = &inputs[0];
    match x.dtype {
        DType::F32 => float_scalar::<f32>(kind, scalar, swapped, x, outputs),
        DType::F64 => float_scalar::<f64>(kind, scalar, swapped, x, outputs),
        DType::F16 => float_scalar::<f16>(kind, scalar, swapped, x, outputs),
        DType::BF16 => float_scalar::<bf16>(kind, scalar, swapped, x, outputs),
        DType::Bool => integer_scalar::<bool>(kind, scalar, swapped, x, outputs),
        DType::U8 => integer_scalar::<u8>(kind, scalar, swapped, x, outputs),
        DType::I32 => integer_scalar::<i32>(kind, scalar, swapped, x, outputs),
        DType::I64 => integer_scalar::<i64>(kind, scalar, swapped, x, outputs),
    }
}

fn float_scalar<T: Stored<Compute: Float>>(
    kind: Binary,
    scalar: Scalar,
    swapped: bool,
    x: &View<'_>,
    y: &[Output],
) -> Result<()> {
    let exponent = scalar.as_f64();
    if kind == Binary::Pow && !swapped && [2.0, 3.0, 0.5, -1.0].contains(&exponent) {
        return chunks::map1::<T, T>(x, y, GRAIN_MEMORY, |x, y| easy_power(exponent, x, y));
    }
    let scalar = scalar.to::<T::Compute>();
    if chunks::is_update::<T>(x, y) {
        with_quick_function!(kind, swapped, f => {
            return chunks::update1::<T>(&y[0], GRAIN_MEMORY, |y| map_update_scalar(f, y, scalar));
        }, {});
    }
    let repeated = Repeated::new(scalar, x.layout.numel());
    chunks::map1::<T, T>(x, y, grain(kind, x.dtype), |x, y| {
        repeated.zip(x, y, |x, s, y| if swapped { apply(kind, s, x, y) } else { apply(kind, x, s, y) });
    })
}

simd_fn! {
    /// Powers that are a few multiplications, a root or a quotient.
    fn easy_power<S: Simd, T: Float>(exponent: f64, x: &[T], y: &mut [T]) {
        let pairs = y.iter_mut().zip(x);
        if exponent == 2.0 {
            pairs.for_each(|(y, x)| *y = *x * *x);
        } else if exponent == 3.0 {
            pairs.for_each(|(y, x)| *y = *x * *x * *x);
        } else if exponent == 0.5 {
            pairs.for_each(|(y, x)| *y = x.sqrt());
        } else {
            pairs.for_each(|(y, x)| *y = T::ONE / *x);
        }
    }
}

fn integer_scalar<T: Stored<Compute = T>>(
    kind: Binary,
    scalar: Scalar,
    swapped: bool,
    x: &View<'_>,
    y: &[Output],
) -> Result<()> {
    let undefined = AtomicBool::new(false);
    let repeated = Repeated::new(scalar.to::<T>(), x.layout.numel());
    chunks::map1::<T, T>(x, y, grain(kind, x.dtype), |x, y| {
        repeated.zip(x, y, |x, s, y| {
            let (a, b) = if swapped { (s, x) } else { (x, s) };
            integer_slices(kind, a, b, y, &undefined);
        });
    })?;
    defined(kind, undefined, x.dtype)
}

simd_fn! {
    fn compare_slices<S: Simd, T: Element>(kind: Compare, a: &[T], b: &[T], y: &mut [bool]) {
        let pairs = y.iter_mut().zip(a).zip(b);
        match kind {
            Compare::Eq => pairs.for_each(|((y, a), b)| *y = a == b),
            Compare::Ne => pairs.for_each(|((y, a), b)| *y = a != b),
            Compare::Lt => pairs.for_each(|((y, a), b)| *y = a < b),
            Compare::Le => pairs.for_each(|((y, a), b)| *y = a <= b),
            Compare::Gt => pairs.for_each(|((y, a), b)| *y = a > b),
            Compare::Ge => pairs.for_each(|((y, a), b)| *y = a >= b),
        }
    }
}

/// [`orkest_core::Op::Compare`]
pub(crate) fn compare(kind: Compare, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    with_dtype!(inputs[0].dtype, T => {
        chunks::map2::<T, T, bool>(&inputs[0], &inputs[1], outputs, GRAIN_MEMORY, |a, b, y| compare_slices(kind, a, b, y))
    })
}

/// [`orkest_core::Op::CompareScalar`]
pub(crate) fn compare_scalar(
    kind: Compare,
    scalar: Scalar,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    with_dtype!(inputs[0].dtype, T => {
        let mut wide = [Default::default()];
        T::widen(&[scalar.to::<T>()], &mut wide);
        let repeated = Repeated::new(wide[0], inputs[0].layout.numel());
        chunks::map1::<T, bool>(&inputs[0], outputs, GRAIN_MEMORY, |x, y| {
            repeated.zip(x, y, |x, s, y| compare_slices(kind, x, s, y));
        })
    })
}

simd_fn! {
    fn choose<S: Simd, T: Element>(condition: &[bool], a: &[T], b: &[T], y: &mut [T]) {
        for (((y, c), a), b) in y.iter_mut().zip(condition).zip(a).zip(b) {
            // Both are read in any case: no branch.
            let (a, b) = (*a, *b);
            *y = if *c { a } else { b };
        }
    }
}

/// [`orkest_core::Op::Where`]
pub(crate) fn where_(inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let inputs = [&inputs[0], &inputs[1], &inputs[2]];
    match outputs[0].dtype {
        // Only the size matters, except for half precision, which passes through f32 unchanged.
        DType::Bool | DType::U8 => chunks::map3::<bool, u8, u8, u8>(inputs, outputs, GRAIN_MEMORY, choose),
        DType::I32 | DType::F32 => chunks::map3::<bool, i32, i32, i32>(inputs, outputs, GRAIN_MEMORY, choose),
        DType::I64 | DType::F64 => chunks::map3::<bool, i64, i64, i64>(inputs, outputs, GRAIN_MEMORY, choose),
        DType::F16 => chunks::map3::<bool, f16, f16, f16>(inputs, outputs, GRAIN_MEMORY, choose),
        DType::BF16 => chunks::map3::<bool, bf16, bf16, bf16>(inputs, outputs, GRAIN_MEMORY, choose),
    }
}
