//! Functions of one element, operations of two, comparisons and selection.

use super::lowering::wide;
use crate::autocast::autocast_dtype;
use crate::autograd::{Save, is_grad_enabled};
use crate::backend::Buffer;
use crate::device::Device;
use crate::dispatch::{run, run_expanded, run_fused, run_over};
use crate::dtype::{Category, DType, Scalar};
use crate::grads;
use crate::op::{Binary, Compare, Op, Unary};
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::borrow::Cow;
use std::f64::consts::{LN_2, LN_10, PI};

/// The other operand of an operation: a tensor (owned or borrowed) or a plain number.
pub enum Operand<'a> {
    /// A borrowed tensor.
    Ref(&'a Tensor),
    /// An owned tensor.
    Own(Tensor),
    /// A number or truth value.
    Scalar(Scalar),
}

impl<'a> From<&'a Tensor> for Operand<'a> {
    fn from(t: &'a Tensor) -> Self {
        Operand::Ref(t)
    }
}

impl From<Tensor> for Operand<'_> {
    fn from(t: Tensor) -> Self {
        Operand::Own(t)
    }
}

macro_rules! operand_scalar {
    ($($t:ty),*) => {$(
        impl From<$t> for Operand<'_> { fn from(v: $t) -> Self { Operand::Scalar(v.into()) } }
    )*};
}
operand_scalar!(f32, f64, i32, i64, u8, usize, bool, crate::f16, crate::bf16, Scalar);

impl<'a> Operand<'a> {
    pub(crate) fn tensor(&self) -> Result<&Tensor, Scalar> {
        match self {
            Operand::Ref(t) => Ok(t),
            Operand::Own(t) => Ok(t),
            Operand::Scalar(s) => Err(*s),
        }
    }

    /// A tensor, owned if nobody needs it after this operation.
    fn into_tensor(self) -> Result<Cow<'a, Tensor>, Scalar> {
        match self {
            Operand::Ref(t) => Ok(Cow::Borrowed(t)),
            Operand::Own(t) => Ok(Cow::Owned(t)),
            Operand::Scalar(s) => Err(s),
        }
    }

    /// As a tensor that takes part in promotion like the scalar it may be.
    #[track_caller]
    pub(crate) fn to_tensor(&self, dtype: DType, device: &Device) -> Cow<'_, Tensor> {
        match self.tensor() {
            Ok(t) => t.as_dtype(dtype),
            Err(s) => Cow::Owned(Tensor::full((), s, (dtype, device))),
        }
    }
}

/// PyTorch's `result_type`: a 0-dim tensor decides only when its category is higher.
pub(crate) fn result_dtype(a: &Tensor, b: &Tensor) -> DType {
    let (x, y) = (a.dtype(), b.dtype());
    match (a.rank(), b.rank()) {
        (1.., 0) if x.category() >= y.category() => x,
        (0, 1..) if y.category() >= x.category() => y,
        _ => x.promote(y),
    }
}

/// The shape both broadcast to.
///
/// # Panics
/// If there is none, naming both operands.
#[track_caller]
pub(crate) fn broadcast_shape(op: &str, a: &Tensor, b: &Tensor) -> Shape {
    match a.shape().broadcast(b.shape()) {
        Some(shape) => shape,
        None => shapes_differ(op, a, b),
    }
}

#[cold]
#[track_caller]
fn shapes_differ(op: &str, a: &Tensor, b: &Tensor) -> ! {
    panic!(
        "{op}: shapes {} and {} do not broadcast: sizes must be equal or 1, compared from the right. left: {}; right: {}",
        a.shape(),
        b.shape(),
        a.describe(),
        b.describe()
    )
}

impl Tensor {
    /// Expanded as a constant, for the backend's eyes only: gradients are taken care of by the operation itself.
    #[track_caller]
    pub(crate) fn broadcast_view(&self, shape: &Shape) -> Cow<'_, Tensor> {
        if self.shape() == shape {
            return Cow::Borrowed(self);
        }
        if shape.checked_numel().is_none() {
            panic!("expand: shape {shape} has too many elements. tensor: {}", self.describe());
        }
        match self.layout().broadcast_to(shape) {
            Some(layout) => Cow::Owned(self.with_layout(layout, "expand")),
            None => panic!(
                "expand: shape {} does not broadcast to {shape}. tensor: {}",
                self.shape(),
                self.describe()
            ),
        }
    }
}

// ---- one operand -------------------------------------------------------------------------------------------------------------

macro_rules! unary_methods {
    ($($(#[$doc:meta])* $name:ident => $unary:expr;)*) => {
        impl Tensor {$(
            $(#[$doc])*
            ///
            /// Integers become f32 first where the result is not an integer.
            #[track_caller]
            pub fn $name(&self) -> Tensor { self.unary($unary) }
        )*}
    };
}

unary_methods! {
    /// `-x`
    neg => Unary::Neg;
    /// `|x|`; the gradient at 0 is 0.
    abs => Unary::Abs;
    /// -1, 0 or 1 (0 for NaN); the gradient is 0.
    sign => Unary::Sign;
    /// `eˣ`
    exp => Unary::Exp;
    /// `eˣ - 1`, accurate near 0.
    expm1 => Unary::Expm1;
    /// Natural logarithm.
    log => Unary::Log;
    /// `ln(1 + x)`, accurate near 0.
    log1p => Unary::Log1p;
    /// Logarithm to base 2.
    log2 => Unary::Log2;
    /// Logarithm to base 10.
    log10 => Unary::Log10;
    /// Square root.
    sqrt => Unary::Sqrt;
    /// `1 / √x`
    rsqrt => Unary::Rsqrt;
    /// `1 / x`
    reciprocal => Unary::Reciprocal;
    /// `x²`
    square => Unary::Square;
    /// Sine of an angle in radians.
    sin => Unary::Sin;
    /// Cosine of an angle in radians.
    cos => Unary::Cos;
    /// Tangent of an angle in radians.
    tan => Unary::Tan;
    /// Arc tangent in radians.
    atan => Unary::Atan;
    /// Hyperbolic tangent.
    tanh => Unary::Tanh;
    /// `1 / (1 + e⁻ˣ)`
    sigmoid => Unary::Sigmoid;
    /// `ln(sigmoid(x))`, without overflow.
    log_sigmoid => Unary::LogSigmoid;
    /// The error function.
    erf => Unary::Erf;
    /// `max(x, 0)`; the gradient at 0 is 0.
    relu => Unary::Relu;
    /// `0.5 x (1 + erf(x / √2))`: PyTorch's `gelu`.
    gelu => Unary::Gelu;
    /// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`: PyTorch's `gelu(approximate="tanh")`.
    gelu_tanh => Unary::GeluTanh;
    /// `x sigmoid(x)`, also called swish.
    silu => Unary::Silu;
    /// Rounded towards −∞; the gradient is 0.
    floor => Unary::Floor;
    /// Rounded towards +∞; the gradient is 0.
    ceil => Unary::Ceil;
    /// Rounded to the nearest integer, halves to even; the gradient is 0.
    round => Unary::Round;
    /// Rounded towards zero; the gradient is 0.
    trunc => Unary::Trunc;
    /// bool: where is NaN?
    isnan => Unary::IsNan;
    /// bool: where is an infinity?
    isinf => Unary::IsInf;
    /// bool: where is neither NaN nor an infinity?
    isfinite => Unary::IsFinite;
    /// bool: where is zero?
    logical_not => Unary::LogicalNot;
}

impl Tensor {
    /// `ln(1 + e^(beta x)) / beta`, and `x` itself where `beta x > threshold`. PyTorch's defaults are 1 and 20.
    #[track_caller]
    pub fn softplus(&self, beta: f64, threshold: f64) -> Tensor {
        self.unary(Unary::Softplus { beta, threshold })
    }

    /// `x` where positive, else `negative_slope * x`. PyTorch's default is 0.01.
    #[track_caller]
    pub fn leaky_relu(&self, negative_slope: f64) -> Tensor {
        self.unary(Unary::LeakyRelu(negative_slope))
    }

    /// `x` where positive, else `alpha (eˣ - 1)`. PyTorch's default is 1.
    #[track_caller]
    pub fn elu(&self, alpha: f64) -> Tensor {
        self.unary(Unary::Elu(alpha))
    }

    /// Limited to `[min, max]`; NaN stays, and a bound that is NaN gives NaN. Where `min > max` the result is `max`.
    ///
    /// Integers stay integers unless a bound is a float. The gradient passes where the value was inside. For bounds that are
    /// tensors, see [`Tensor::maximum`] and [`Tensor::minimum`].
    #[track_caller]
    pub fn clamp(&self, min: impl Into<Scalar>, max: impl Into<Scalar>) -> Tensor {
        let (min, max) = (min.into(), max.into());
        self.clamped(min.as_f64(), max.as_f64(), max.promote(min.promote(self.dtype())))
    }

    /// At least `min`; see [`Tensor::clamp`].
    #[track_caller]
    pub fn clamp_min(&self, min: impl Into<Scalar>) -> Tensor {
        let min = min.into();
        self.clamped(min.as_f64(), f64::INFINITY, min.promote(self.dtype()))
    }

    /// At most `max`; see [`Tensor::clamp`].
    #[track_caller]
    pub fn clamp_max(&self, max: impl Into<Scalar>) -> Tensor {
        let max = max.into();
        self.clamped(f64::NEG_INFINITY, max.as_f64(), max.promote(self.dtype()))
    }

    #[track_caller]
    fn clamped(&self, min: f64, max: f64, dtype: DType) -> Tensor {
        let x = self.to_dtype(dtype);
        if min.is_nan() || max.is_nan() {
            return x * f64::NAN;
        }
        x.unary(Unary::Clamp { min, max })
    }

    /// Applies a function of one element: behind `relu`, `exp` and their kind, and for layers that hold their activation as a value.
    #[track_caller]
    pub fn unary(&self, function: Unary) -> Tensor {
        unary(Cow::Borrowed(self), function)
    }

    /// As [`Tensor::unary`], for a tensor that nobody needs afterwards: where its memory belongs to it alone and the gradient does not
    /// need it, the result takes its place.
    #[track_caller]
    pub fn into_unary(self, function: Unary) -> Tensor {
        unary(Cow::Owned(self), function)
    }
}

#[track_caller]
fn unary(x: Cow<'_, Tensor>, function: Unary) -> Tensor {
    let name = function.name();
    if x.dtype() == DType::Bool && matches!(function, Unary::Neg) {
        panic!("neg: a bool tensor has no negative; use logical_not(). tensor: {}", x.describe());
    }
    let keeps = x.dtype().is_float() || function.keeps_integers();
    let mut x = match function {
        _ if !keeps => Cow::Owned(x.to_dtype(DType::F32)),
        f if f.in_full_precision() => match x.in_full_precision() {
            Cow::Owned(x) => Cow::Owned(x),
            Cow::Borrowed(_) => x,
        },
        _ => x,
    };
    let dtype = if function.is_test() { DType::Bool } else { x.dtype() };
    if function.is_test() {
        return run(name, Op::Unary(function), &[&x], *x.shape(), dtype);
    }
    let flat = matches!(
        function,
        Unary::Neg | Unary::Sign | Unary::Floor | Unary::Ceil | Unary::Round | Unary::Trunc
    );
    let save: &[Save<'_>] = match function {
        _ if flat => &[],
        f if f.grad_uses_output() => &[Save::Output(0)],
        _ => &[Save::Input(0)],
    };
    let shape = *x.shape();
    let place = place(&shape, dtype, save, &mut [&mut x]);
    let y = run_over(name, Op::Unary(function), &[&x], shape, dtype, place);
    y.recorded(name, &[&x], save, move |c| match function {
        Unary::Neg => grads![-c.grad()],
        _ if flat => grads![c.grad().zeros_like()],
        _ => grads![unary_grad(function, c.saved(0), c.grad())],
    })
}

/// `grad` times the derivative; `s` is the function's output where [`Unary::grad_uses_output`] says so, else its input.
#[track_caller]
pub(super) fn unary_grad(function: Unary, s: &Tensor, grad: &Tensor) -> Tensor {
    if !is_grad_enabled() {
        let out = [(*s.shape(), s.dtype())];
        if let Some([dx]) = run_fused("unary_grad", Op::UnaryGrad(function), &[s, grad], out) {
            return dx;
        }
    }
    derivative(function, s, grad)
}

#[track_caller]
fn derivative(function: Unary, s: &Tensor, g: &Tensor) -> Tensor {
    match function {
        // From the output y = s.
        Unary::Exp => g * s,
        Unary::Expm1 => g * (s + 1),
        Unary::Sqrt => g / (s * 2),
        Unary::Rsqrt => g * s.pow(3) * -0.5,
        Unary::Reciprocal => -(g * s.square()),
        Unary::Tanh => g * (1 - s.square()),
        Unary::Sigmoid => g * s * (1 - s),
        Unary::Relu => g.masked_fill(&s.le(0), 0),
        // From the input x = s.
        Unary::Abs => g * s.sign(),
        Unary::Log => g / s,
        Unary::Log1p => g / (s + 1),
        Unary::Log2 => g / (s * LN_2),
        Unary::Log10 => g / (s * LN_10),
        Unary::Square => g * s * 2,
        Unary::Sin => g * s.cos(),
        Unary::Cos => -(g * s.sin()),
        Unary::Tan => g * (1 + s.tan().square()),
        Unary::Atan => g / (1 + s.square()),
        Unary::LogSigmoid => g * s.neg().sigmoid(),
        Unary::Erf => g * s.square().neg().exp() * (2.0 / PI.sqrt()),
        Unary::Gelu => {
            // Φ(x) + x φ(x), the normal distribution and its density
            let cdf = (s * 0.5f64.sqrt()).erf() * 0.5 + 0.5;
            let pdf = (s.square() * -0.5).exp() * (0.5 / PI).sqrt();
            g * (cdf + s * pdf)
        }
        Unary::GeluTanh => {
            let k = (2.0 / PI).sqrt();
            let t = ((s + s.pow(3) * 0.044715) * k).tanh();
            let inner = (s.square() * (3.0 * 0.044715) + 1) * k;
            g * ((1 + &t) * 0.5 + s * (1 - t.square()) * inner * 0.5)
        }
        Unary::Silu => {
            let sig = s.sigmoid();
            g * &sig * (1 + s * (1 - &sig))
        }
        Unary::Softplus { beta, threshold } => {
            let scaled = s * beta;
            scaled.gt(threshold).where_(g, g * scaled.sigmoid())
        }
        Unary::LeakyRelu(slope) => s.gt(0).where_(g, g * slope),
        Unary::Elu(alpha) => s.gt(0).where_(g, g * s.clamp_max(0).exp() * alpha),
        // Nothing passes at a limit, only where there is none.
        Unary::Clamp { min, max } => {
            let above = if min == f64::NEG_INFINITY { s.ge(min) } else { s.gt(min) };
            let below = if max == f64::INFINITY { s.le(max) } else { s.lt(max) };
            above.logical_and(below).where_(g, 0)
        }
        _ => panic!("backward: {} has no gradient rule", function.name()),
    }
}

// ---- two operands ------------------------------------------------------------------------------------------------------------

macro_rules! binary_methods {
    ($($(#[$doc:meta])* $name:ident => $binary:expr;)*) => {
        impl Tensor {$(
            $(#[$doc])*
            ///
            /// # Panics
            /// If the shapes do not broadcast or the devices differ.
            #[track_caller]
            pub fn $name<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor {
                binary_operands($binary, self.into(), other.into())
            }
        )*}
    };
}

binary_methods! {
    /// `a + b`; of bools: or.
    add => Binary::Add;
    /// `a - b`
    sub => Binary::Sub;
    /// `a * b`; of bools: and.
    mul => Binary::Mul;
    /// `a / b`; of integers: f32.
    div => Binary::Div;
    /// `a` to the power of `b`.
    pow => Binary::Pow;
    /// The remainder with the sign of the divisor: `a - floor(a / b) * b`.
    remainder => Binary::Remainder;
    /// The larger of both; NaN if either is. Of equals each gets half the gradient.
    maximum => Binary::Maximum;
    /// The smaller of both; NaN if either is. Of equals each gets half the gradient.
    minimum => Binary::Minimum;
    /// The angle of the point `(b, a)` in radians.
    atan2 => Binary::Atan2;
}

#[track_caller]
pub(crate) fn binary(op: Binary, a: &Tensor, b: &Operand<'_>) -> Tensor {
    match b.tensor() {
        Ok(b) => binary_tensors(op, Cow::Borrowed(a), Cow::Borrowed(b)),
        Err(scalar) => binary_scalar(op, Cow::Borrowed(a), scalar, false),
    }
}

/// `a op b`, at the place of an owned operand where that is possible.
#[track_caller]
pub(crate) fn binary_operands(op: Binary, a: Operand<'_>, b: Operand<'_>) -> Tensor {
    match (a.into_tensor(), b.into_tensor()) {
        (Ok(a), Ok(b)) => binary_tensors(op, a, b),
        (Ok(a), Err(scalar)) => binary_scalar(op, a, scalar, false),
        (Err(scalar), Ok(b)) => binary_scalar(op, b, scalar, true),
        (Err(_), Err(_)) => unreachable!("{}: one of the operands is a tensor", op.name()),
    }
}

/// Itself, or a conversion that is owned, so that the result can take its place.
#[track_caller]
fn converted(t: Cow<'_, Tensor>, dtype: DType) -> Cow<'_, Tensor> {
    if t.dtype() == dtype { t } else { Cow::Owned(t.to_dtype(dtype)) }
}

/// Where an owned operand of an elementwise operation lies, for its result; if nothing is saved that this would overwrite.
pub(super) fn place(
    shape: &Shape,
    dtype: DType,
    save: &[Save<'_>],
    operands: &mut [&mut Cow<'_, Tensor>],
) -> Option<Buffer> {
    if operands.iter().all(|t| matches!(**t, Cow::Borrowed(_))) {
        return None;
    }
    let saves = save.iter().any(|s| matches!(s, Save::Input(_)));
    if saves && is_grad_enabled() && operands.iter().any(|t| t.requires_grad()) {
        return None;
    }
    operands.iter_mut().find_map(|t| match &mut **t {
        Cow::Owned(t) => t.give_up(shape, dtype),
        Cow::Borrowed(_) => None,
    })
}

/// The dtype of `a op b`.
#[track_caller]
pub(crate) fn operand_dtype(op: Binary, a: &Tensor, b: &Operand<'_>) -> DType {
    match b.tensor() {
        Ok(b) => compute_dtype(op, result_dtype(a, b), || format!("{}; {}", a.describe(), b.describe())),
        Err(s) => compute_dtype(op, s.promote(a.dtype()), || format!("{}; {s}", a.describe())),
    }
}

/// What the operation computes in, given what promotion says.
#[track_caller]
fn compute_dtype(op: Binary, dtype: DType, describe: impl Fn() -> String) -> DType {
    match op {
        Binary::Div | Binary::Atan2 if !dtype.is_float() => DType::F32,
        Binary::Sub if dtype == DType::Bool => {
            panic!("sub: bools cannot be subtracted; use logical_xor or ne. operands: {}", describe())
        }
        Binary::Pow | Binary::Remainder if dtype == DType::Bool => DType::I64,
        Binary::Pow if autocast_dtype().is_some() && dtype.is_float() => dtype.promote(DType::F32),
        _ => dtype,
    }
}

#[track_caller]
fn binary_tensors(op: Binary, a: Cow<'_, Tensor>, b: Cow<'_, Tensor>) -> Tensor {
    let name = op.name();
    let shape = broadcast_shape(name, &a, &b);
    let dtype = compute_dtype(op, result_dtype(&a, &b), || format!("{}; {}", a.describe(), b.describe()));
    let (mut a, mut b) = (converted(a, dtype), converted(b, dtype));
    let save: &[Save<'_>] = match op {
        Binary::Add | Binary::Sub => &[],
        Binary::Pow => &[Save::Input(0), Save::Input(1), Save::Output(0)],
        _ => &[Save::Input(0), Save::Input(1)],
    };
    let place = place(&shape, dtype, save, &mut [&mut a, &mut b]);
    let y = run_over(name, Op::Binary(op), &[&a, &b], shape, dtype, place);
    y.recorded(name, &[&a, &b], save, move |c| {
        let g = c.grad();
        let (wants_a, wants_b) = (c.needs(0), c.needs(1));
        match op {
            Binary::Add => return grads![g.clone(), g.clone()],
            Binary::Sub => return grads![g.clone(), wants_b.then(|| -g)],
            _ => {}
        }
        let (a, b) = (c.saved(0), c.saved(1));
        match op {
            Binary::Mul => grads![wants_a.then(|| g * b), wants_b.then(|| g * a)],
            Binary::Div => {
                // The square of b would leave the range of f16 early.
                let part = g / b;
                let db = wants_b.then(|| -(&part * (a / b)));
                grads![part, db]
            }
            Binary::Pow => grads![
                // b a^(b-1), and 0 where b is 0 whatever a is
                wants_a.then(|| (g * b * a.pow(b - 1)).masked_fill(&b.eq(0), 0)),
                // a^b ln a, and 0 at 0^b for b >= 0
                wants_b.then(|| {
                    let dead = a.eq(0).logical_and(b.ge(0));
                    (g * c.saved(2) * a.masked_fill(&dead, 1).log()).masked_fill(&dead, 0)
                })
            ],
            Binary::Remainder => grads![g.clone(), wants_b.then(|| -(g * a.floor_divide(b)))],
            Binary::Maximum | Binary::Minimum => {
                let (wins, loses) =
                    if op == Binary::Maximum { (a.gt(b), a.lt(b)) } else { (a.lt(b), a.gt(b)) };
                let half = a.eq(b).where_(g * 0.5, g);
                grads![
                    wants_a.then(|| half.masked_fill(&loses, 0)),
                    wants_b.then(|| half.masked_fill(&wins, 0))
                ]
            }
            Binary::Atan2 => {
                let squares = a.square() + b.square();
                let scaled = (g / &squares).masked_fill(&squares.eq(0), 0);
                grads![wants_a.then(|| &scaled * b), wants_b.then(|| -(&scaled * a))]
            }
            Binary::Add | Binary::Sub => unreachable!("handled above"),
        }
    })
}

/// `a op scalar`, or `scalar op a` if `swapped`.
#[track_caller]
pub(crate) fn binary_scalar(op: Binary, a: Cow<'_, Tensor>, scalar: Scalar, swapped: bool) -> Tensor {
    let name = op.name();
    let dtype = compute_dtype(op, scalar.promote(a.dtype()), || format!("{}; {scalar}", a.describe()));
    let mut a = converted(a, dtype);
    let p = scalar.as_f64();
    if op == Binary::Pow && !swapped {
        if p == 2.0 {
            return a.square();
        }
        // As PyTorch: these are faster, and differ from the general power at -0 and -inf.
        match p {
            0.5 if dtype.is_float() => return a.sqrt(),
            -0.5 if dtype.is_float() => return a.rsqrt(),
            -1.0 if dtype.is_float() => return a.reciprocal(),
            _ => {}
        }
        if p < 0.0 && !dtype.is_float() {
            panic!(
                "pow: integers have no negative integer powers; convert with .to_dtype(DType::F32). tensor: {}",
                a.describe()
            );
        }
    }
    let save: &[Save<'_>] = match (op, swapped) {
        (Binary::Add | Binary::Sub | Binary::Mul, _) | (Binary::Div | Binary::Remainder, false) => &[],
        (Binary::Pow, true) => &[Save::Output(0)],
        _ => &[Save::Input(0)],
    };
    let shape = *a.shape();
    let place = place(&shape, dtype, save, &mut [&mut a]);
    let y = run_over(name, Op::BinaryScalar { op, scalar, swapped }, &[&a], shape, dtype, place);
    y.recorded(name, &[&a], save, move |c| {
        let g = c.grad();
        grads![match (op, swapped) {
            (Binary::Add, _) | (Binary::Sub | Binary::Remainder, false) => g.clone(),
            (Binary::Sub, true) => -g,
            (Binary::Mul, _) => g * scalar,
            (Binary::Div, false) => g / scalar,
            (Binary::Div, true) => {
                let x = c.saved(0);
                -(g / x * binary_scalar(Binary::Div, Cow::Borrowed(x), scalar, true))
            }
            (Binary::Pow, false) if p == 0.0 => g.zeros_like(),
            (Binary::Pow, false) => g * (c.saved(0).pow(p - 1.0) * p),
            // 0^x is infinite for negative x, and its logarithm is too.
            (Binary::Pow, true) if p == 0.0 => {
                let y = c.saved(0);
                g * (y * f64::NEG_INFINITY).masked_fill(&y.isfinite(), 0)
            }
            (Binary::Pow, true) => g * c.saved(0) * p.ln(),
            (Binary::Remainder, true) => -(g * c.saved(0).full_like(scalar).floor_divide(c.saved(0))),
            (Binary::Maximum, _) => {
                let x = c.saved(0);
                x.eq(scalar).where_(g * 0.5, g).masked_fill(&x.lt(scalar), 0)
            }
            (Binary::Minimum, _) => {
                let x = c.saved(0);
                x.eq(scalar).where_(g * 0.5, g).masked_fill(&x.gt(scalar), 0)
            }
            (Binary::Atan2, _) => {
                let squares = c.saved(0).square() + p * p;
                let slope = (g * p / &squares).masked_fill(&squares.eq(0), 0);
                if swapped { -slope } else { slope }
            }
        }]
    })
}

// ---- comparisons and logic ---------------------------------------------------------------------------------------------------

macro_rules! compare_methods {
    ($($(#[$doc:meta])* $name:ident => $compare:expr;)*) => {
        impl Tensor {$(
            $(#[$doc])*
            ///
            /// # Panics
            /// If the shapes do not broadcast or the devices differ.
            #[track_caller]
            pub fn $name<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor { self.compare($compare, &other.into()) }
        )*}
    };
}

compare_methods! {
    /// bool: `a == b`
    eq => Compare::Eq;
    /// bool: `a != b`
    ne => Compare::Ne;
    /// bool: `a < b`
    lt => Compare::Lt;
    /// bool: `a <= b`
    le => Compare::Le;
    /// bool: `a > b`
    gt => Compare::Gt;
    /// bool: `a >= b`
    ge => Compare::Ge;
}

impl Tensor {
    #[track_caller]
    fn compare(&self, op: Compare, other: &Operand<'_>) -> Tensor {
        match other.tensor() {
            Ok(other) => {
                let shape = broadcast_shape(op.name(), self, other);
                let dtype = result_dtype(self, other);
                let (a, b) = (self.as_dtype(dtype), other.as_dtype(dtype));
                run_expanded(op.name(), Op::Compare(op), &[&a, &b], shape, DType::Bool)
            }
            Err(scalar) => {
                let mut dtype = scalar.promote(self.dtype());
                if dtype.category() == Category::Int {
                    let (low, high) = (dtype.min_value().as_i64(), dtype.max_value().as_i64());
                    if !(low..=high).contains(&scalar.as_i64()) {
                        dtype = DType::I64; // 300 is no u8, but it can be compared with one
                    }
                }
                let a = self.as_dtype(dtype);
                run(op.name(), Op::CompareScalar(op, scalar), &[&a], *a.shape(), DType::Bool)
            }
        }
    }

    /// bool: both are not zero.
    #[track_caller]
    pub fn logical_and<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor {
        self.logical(Binary::Mul, &other.into())
    }

    /// bool: at least one is not zero.
    #[track_caller]
    pub fn logical_or<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor {
        self.logical(Binary::Add, &other.into())
    }

    /// bool: exactly one is not zero.
    #[track_caller]
    pub fn logical_xor<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor {
        let other = other.into();
        let other = other.to_tensor(DType::Bool, self.device());
        self.as_dtype(DType::Bool).ne(&*other)
    }

    #[track_caller]
    fn logical(&self, op: Binary, other: &Operand<'_>) -> Tensor {
        let other = other.to_tensor(DType::Bool, self.device());
        binary_tensors(op, self.as_dtype(DType::Bool), other)
    }

    /// With this bool tensor as the condition: `a` where it holds, else `b`. PyTorch's `torch.where(self, a, b)`.
    ///
    /// # Panics
    /// If this tensor is not bool, or the shapes do not broadcast.
    #[track_caller]
    pub fn where_<'a, 'b>(&self, a: impl Into<Operand<'a>>, b: impl Into<Operand<'b>>) -> Tensor {
        let (a, b) = (a.into(), b.into());
        if self.dtype() != DType::Bool {
            panic!("where: the condition must be bool; compare with .ne(0). condition: {}", self.describe());
        }
        let dtype = match (a.tensor(), b.tensor()) {
            (Ok(a), Ok(b)) => result_dtype(a, b),
            (Ok(a), Err(s)) => s.promote(a.dtype()),
            (Err(s), Ok(b)) => s.promote(b.dtype()),
            (Err(s), Err(t)) => s.default_dtype().promote(t.default_dtype()),
        };
        let (a, b) = (a.to_tensor(dtype, self.device()), b.to_tensor(dtype, self.device()));
        let shape = broadcast_shape("where", &a, &b);
        let Some(shape) = self.shape().broadcast(&shape) else { shapes_differ("where", self, &a) };
        let y = run_expanded("where", Op::Where, &[self, &a, &b], shape, dtype);
        y.recorded("where", &[self, &a, &b], &[Save::Input(0)], |c| {
            let (condition, g) = (c.saved(0), c.grad());
            let inverse = condition.logical_not();
            grads![
                None,
                c.needs(1).then(|| g.masked_fill(&inverse, 0)),
                c.needs(2).then(|| g.masked_fill(condition, 0))
            ]
        })
    }

    /// `value` where the bool `mask` holds, this tensor elsewhere; the dtype stays.
    ///
    /// # Panics
    /// If the mask is not bool, the shapes do not broadcast, or `value` does not fit the dtype's kind.
    #[track_caller]
    pub fn masked_fill(&self, mask: &Tensor, value: impl Into<Scalar>) -> Tensor {
        let value = value.into();
        if mask.dtype() != DType::Bool {
            panic!("masked_fill: the mask must be bool; compare with .ne(0). mask: {}", mask.describe());
        }
        if value.category() > self.dtype().category() {
            panic!("masked_fill: {value} does not fit into {}. tensor: {}", self.dtype(), self.describe());
        }
        let shape = broadcast_shape("masked_fill", self, mask);
        let fill = Tensor::full((), value, (self.dtype(), self.device()));
        let y = run_expanded("masked_fill", Op::Where, &[mask, &fill, self], shape, self.dtype());
        y.recorded("masked_fill", &[self, mask], &[Save::Input(1)], |c| {
            grads![c.grad().masked_fill(c.saved(0), 0), None]
        })
    }

    /// `self + weight * (end - self)`
    #[track_caller]
    pub fn lerp<'a>(&self, end: &Tensor, weight: impl Into<Operand<'a>>) -> Tensor {
        let weight = weight.into();
        let dtype = result_dtype(self, end);
        let (a, b) = (self.to_dtype(wide(dtype)), end.to_dtype(wide(dtype)));
        let apart = &b - &a;
        // From the nearer end: a weight of 1 gives `end` itself.
        let y = match weight.tensor() {
            Err(w) if w.as_f64().abs() < 0.5 => &a + apart.mul(w),
            Err(w) => &b - apart.mul(1.0 - w.as_f64()),
            Ok(w) => w.abs().lt(0.5).where_(&a + apart.mul(w), &b - apart.mul(1 - w)),
        };
        // In half precision the difference would be rounded before it is scaled.
        if dtype == wide(dtype) { y } else { y.to_dtype(dtype) }
    }
}
