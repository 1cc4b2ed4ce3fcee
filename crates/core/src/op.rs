//! Every operation a backend can be asked to run. This enum is the specification of a backend.
//!
//! *Primitives* must be there on every backend. *Fused* operations are optional: each has a lowering, a function over public
//! `Tensor` operations, which runs where [`Backend::supports`](crate::Backend::supports) says no. The doc line of a variant gives
//! inputs → outputs with shapes; `core` has checked them, expanded broadcasts (as stride 0) and cast operands to one dtype.
//! Every input may have any strides. New outputs are row-major; outputs given in place may have any strides where the variant
//! says "in place", and an elementwise operation may find its output to be the very same view as one of its inputs.
//!
//! Statistics that a fused operation hands to its backward (mean, rstd, rrms, log-sum-exp) are f32 where the input is f16 or
//! bf16, else of the input's dtype.

pub use crate::sampling::{Axis, Filter, Taps};

use crate::dtype::Scalar;
use crate::kernel::Kernel;
use crate::shape::DimSet;
use std::sync::Arc;

/// An operation with its parameters.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Op {
    // ---- primitives: data ------------------------------------------------------------------------------------------------
    /// `x` → `y` of the same shape: copies, and casts when the dtypes differ (floats to integers cut towards zero; anything
    /// to bool is `!= 0`). The output may be given in place with any strides.
    Copy,
    /// → `y`, every element `value`. The output may be given in place with any strides.
    Fill(Scalar),
    /// → `y [n]`: `start + i * step`, computed in f64 for floats and i64 for integers.
    Arange {
        /// First value.
        start: Scalar,
        /// Difference between neighbours.
        step: Scalar,
    },
    /// → `y`: counter-based Philox 4x32-10 numbers, element `i` from counter `offset + i / 4`, word `i % 4`
    /// (see [`crate::random::philox`]). The same on every backend.
    Random {
        /// What to draw.
        kind: RandomKind,
        /// The Philox key.
        seed: u64,
        /// The first counter.
        offset: u64,
    },

    // ---- primitives: elementwise -----------------------------------------------------------------------------------------
    /// `x` → `y`: one function of one element, same dtype (bool for the tests `IsNan`, `IsInf`, `IsFinite`, `LogicalNot`).
    Unary(Unary),
    /// `a, b` → `y`, all of one shape and dtype.
    Binary(Binary),
    /// `a` → `y = a op scalar`, or `scalar op a` if `swapped`; dtype of `a`.
    BinaryScalar {
        /// The operation.
        op: Binary,
        /// The other operand.
        scalar: Scalar,
        /// Whether the scalar is the left operand.
        swapped: bool,
    },
    /// `a, b` → bool, all of one shape, `a` and `b` of one dtype. NaN compares as IEEE says.
    Compare(Compare),
    /// `a` → bool: `a op scalar`.
    CompareScalar(Compare, Scalar),
    /// `condition (bool), a, b` → `y`: `a` where the condition holds, else `b`.
    Where,

    // ---- primitives: reductions ------------------------------------------------------------------------------------------
    /// `x` → `y` with the reduced dimensions of size 1. Integer and bool sums and products arrive with an i64 output dtype,
    /// `Any` and `All` with bool. Sums of f16, bf16 and f32 accumulate in at least f32, blockwise, so that the error grows with
    /// the logarithm of the length. `Max` and `Min` propagate NaN.
    Reduce(Reduce, DimSet),
    /// `x` → i64 with `dim` of size 1: position of the first largest (smallest) element; NaN counts as the largest (smallest).
    ArgReduce(ArgReduce, usize),
    /// `x` → `y` of the same shape: running sum or product along `dim`.
    Cumulative(Cumulative, usize),

    // ---- primitives: linear algebra --------------------------------------------------------------------------------------
    /// `a [.., m, k], b [.., k, n]` → `[.., m, n]`, same leading sizes (broadcast ones have stride 0). f16 and bf16 accumulate
    /// in f32.
    Matmul,

    // ---- primitives: indexing --------------------------------------------------------------------------------------------
    /// `x, index (i64)` → `y` of the index's shape: `y[i][j] = x[index[i][j]][j]` along `dim`. The other sizes of the index are
    /// at most those of `x`.
    Gather {
        /// The indexed dimension.
        dim: usize,
    },
    /// `index (i64), src` → in place on `y`: `y[index[i][j]][j] = src[i][j]` along `dim`, or `+=` if `add`. Index and `src` have one
    /// shape. With `add`, colliding indices add in ascending order of position; without, the last one wins.
    Scatter {
        /// The indexed dimension.
        dim: usize,
        /// Add instead of replace.
        add: bool,
    },
    /// `x, index (i64) [n]` → `y` with size `n` along `dim`: whole slices by number. An embedding is this with `dim` 0.
    IndexSelect {
        /// The indexed dimension.
        dim: usize,
    },
    /// `index (i64) [n], src` → in place on `y`: slice `index[i]` of `y` along `dim` += slice `i` of `src`, in ascending order of `i`.
    IndexAdd {
        /// The indexed dimension.
        dim: usize,
    },
    /// `x` → sorted values, i64 positions. Stable; NaN sorts last when ascending and first when descending.
    Sort {
        /// The sorted dimension.
        dim: usize,
        /// Largest first.
        descending: bool,
    },
    /// `x` → the `k` largest (smallest) values along `dim`, best first, and their i64 positions; of equal values the first wins.
    TopK {
        /// How many.
        k: usize,
        /// The dimension.
        dim: usize,
        /// Largest or smallest.
        largest: bool,
    },

    // ---- primitives: windows ---------------------------------------------------------------------------------------------
    /// `x [n, c, h, w]` → `[n, c * kh * kw, oh * ow]`: the patches a 2-D convolution multiplies (im2col), zero where padded.
    Unfold(Window),
    /// `x [n, c * kh * kw, oh * ow]` → `[n, c, h, w]`: overlapping patches summed back; the adjoint of `Unfold`.
    Fold(Window),
    /// `x [n, c, h, w]` → maxima `[n, c, oh, ow]` and their i64 positions in the `h * w` plane; padding never wins, NaN always does.
    MaxPool(Window),
    /// `x [n, c, h, w]` → means `[n, c, oh, ow]`; padding counts as zeros in the mean if the flag is set, else only what is inside.
    AvgPool(Window, bool),
    /// `grad [n, c, oh, ow]` → `[n, c, h, w]` (the output's layout gives h and w): the adjoint of `AvgPool`.
    AvgPoolGrad(Window, bool),

    // ---- fused -----------------------------------------------------------------------------------------------------------
    /// `x or y, grad` → `dx`: the derivative of a unary function times `grad` in one pass. The first input is the function's output
    /// where [`Unary::grad_uses_output`] says so, else its input.
    UnaryGrad(Unary),
    /// `x` → softmax (or log-softmax) along the last dimension.
    Softmax {
        /// The logarithm of it.
        log: bool,
    },
    /// `y, grad` → `dx` of softmax (or log-softmax) along the last dimension.
    SoftmaxGrad {
        /// Of the logarithm.
        log: bool,
    },
    /// `x [.., d], weight [d]?, bias [d]?` → `y`, and mean and reciprocal standard deviation `[.., 1]` of every row.
    LayerNorm {
        /// Added to the variance.
        eps: f64,
        /// Is there a weight?
        weight: bool,
        /// Is there a bias?
        bias: bool,
    },
    /// `x, mean, rstd, weight?, grad` → `dx`, `dweight [d]?`, `dbias [d]?` (the bias gradient comes with the weight's).
    LayerNormGrad {
        /// Is there a weight? Then its and the bias's gradient are computed.
        weight: bool,
    },
    /// `x [.., d], weight [d]?` → `y`, and the reciprocal root mean square `[.., 1]` of every row.
    RmsNorm {
        /// Added to the mean square.
        eps: f64,
        /// Is there a weight?
        weight: bool,
    },
    /// `x, rrms, weight?, grad` → `dx`, `dweight [d]?`.
    RmsNormGrad {
        /// Is there a weight? Then its gradient is computed.
        weight: bool,
    },
    /// `x [n, c, s], weight [c]?, bias [c]?` → `y`, and mean and (biased) variance `[c]` of every channel.
    BatchNorm {
        /// Added to the variance.
        eps: f64,
        /// Is there a weight?
        weight: bool,
        /// Is there a bias?
        bias: bool,
    },
    /// `x, mean, variance, weight?, grad` → `dx`, `dweight [c]`, `dbias [c]`.
    BatchNormGrad {
        /// Added to the variance.
        eps: f64,
        /// Is there a weight?
        weight: bool,
    },
    /// `x [n, c, s], scale [c], shift [c]` → `x * scale + shift`, channel by channel.
    ScaleChannels,
    /// `x, scale, grad` → `dx`, `dscale [c]`, `dshift [c]`.
    ScaleChannelsGrad,
    /// `x [.., r, c]` → `x`, zero where the column less the row is more than `diagonal`; if `upper`, where it is less.
    Triangle {
        /// The last diagonal that is kept; if `upper`, the first.
        diagonal: i64,
        /// Keep what is above.
        upper: bool,
    },
    /// `logits [n, c], target (i64) [n]` → losses `[n]` (0 where the target is `ignore_index`) and log-sum-exp `[n]` of every row.
    CrossEntropy {
        /// The target value that takes no part.
        ignore_index: i64,
        /// Share of the target spread evenly over all classes.
        label_smoothing: f64,
    },
    /// `logits [n, c], target (i64) [n], lse [n], grad [n]` → `dlogits [n, c]`.
    CrossEntropyGrad {
        /// The target value that takes no part.
        ignore_index: i64,
        /// Share of the target spread evenly over all classes.
        label_smoothing: f64,
    },
    /// `x, y` of one shape → the loss of every element, or their sum or mean, without dimensions.
    ElementLoss {
        /// The loss.
        loss: ElementLoss,
        /// `Sum` or `Mean` of all elements, if any.
        reduce: Option<Reduce>,
    },
    /// `x, y, grad`, the gradient expanded to their shape → `dx, dy?`.
    ElementLossGrad {
        /// The loss.
        loss: ElementLoss,
        /// What was made of the losses.
        reduce: Option<Reduce>,
        /// Is the gradient of `y` wanted?
        target: bool,
    },
    /// `x [.., k], weight [n, k], bias [n]?` → `activation(x @ weightᵀ + bias)`.
    Linear {
        /// Is there a bias?
        bias: bool,
        /// Applied to the sum, if any.
        activation: Option<Unary>,
    },
    /// `x` → `x * mask / (1 - p)`, the mask drawn as `Random(Bernoulli(1 - p))` with this seed and offset.
    Dropout {
        /// Probability of a zero.
        p: f64,
        /// The Philox key.
        seed: u64,
        /// The first counter.
        offset: u64,
    },
    /// `q [b, h, t, d], k [b, h, s, d], v [b, h, s, e], mask? (broadcast to [b, h, t, s]; bool: take part, float: added)`
    /// → `y [b, h, t, e]` and the log-sum-exp `[b, h, t]` of every score row.
    Attention {
        /// Factor on the scores.
        scale: f64,
        /// Position `i` sees positions `0..=i` only.
        causal: bool,
        /// Is there a mask?
        mask: bool,
    },
    /// `q, k, v, mask?, y, lse, grad` → `dq, dk, dv`.
    AttentionGrad {
        /// Factor on the scores.
        scale: f64,
        /// Position `i` sees positions `0..=i` only.
        causal: bool,
        /// Is there a mask?
        mask: bool,
    },
    /// `x [n, c, h, w], weight [o, c / groups, kh, kw], bias [o]?` → `[n, o, oh, ow]`.
    Conv2d {
        /// Kernel, stride, padding, dilation.
        window: Window,
        /// Channel groups that do not mix.
        groups: usize,
        /// Is there a bias?
        bias: bool,
    },
    /// `weight [o, c / groups, kh, kw], grad [n, o, oh, ow]` → `dx [n, c, h, w]`. Also the transposed
    /// convolution of `grad`.
    Conv2dInputGrad {
        /// Kernel, stride, padding, dilation.
        window: Window,
        /// Channel groups that do not mix.
        groups: usize,
    },
    /// `x [n, c, h, w], grad [n, o, oh, ow]` → `dweight [o, c / groups, kh, kw]`.
    Conv2dWeightGrad {
        /// Kernel, stride, padding, dilation.
        window: Window,
        /// Channel groups that do not mix.
        groups: usize,
    },
    /// `x [n, c, h, w]` → `[n, c, oh, ow]`: every element the weighted sum that [`Axis::taps`] says, along both axes; with `adjoint` the
    /// transposed sums, `[n, c, oh, ow]` → `[n, c, h, w]`. A backend has both or neither.
    Resample {
        /// Rows and columns.
        axes: [Axis; 2],
        /// From the new axes to the old ones: the gradient.
        adjoint: bool,
    },
    /// `x [n, c, h, w]` → the maxima `[n, c, oh, ow]` of the windows of [`Filter::Mean`] and their i64 positions in the `h * w` plane; as
    /// `MaxPool`.
    AdaptiveMaxPool {
        /// Rows and columns of windows.
        output: [usize; 2],
    },
    /// A recurrent layer in one direction over the rows of all steps, one step after the other: `x [n, i], weight_ih [g h, i],
    /// weight_hh [g h, h], bias_ih [g h]?, bias_hh [g h]?, h0 [b, h], c0 [b, h] (LSTM)` → `y [n, h], h_n [b, h], c_n [b, h] (LSTM)`,
    /// and for the gradient `gates [n, 4 h]` (LSTM, GRU) and `cells [n, h]` (LSTM), laid out as the backend likes.
    Recurrent {
        /// The cell, the direction and the rows of each step.
        recurrence: Recurrence,
        /// Are there biases?
        bias: bool,
    },
    /// `x, weight_ih, weight_hh, h0, c0 (LSTM), y, gates (LSTM, GRU), cells (LSTM), dh_n, dc_n (LSTM), dy?`
    /// → `dweight_ih, dweight_hh, dbias_ih?, dbias_hh?, dh0, dc0 (LSTM), dx?`.
    RecurrentGrad {
        /// The cell, the direction and the rows of each step.
        recurrence: Recurrence,
        /// Are there biases?
        bias: bool,
        /// Does anything depend on `y`?
        output: bool,
        /// Is the gradient of `x` wanted?
        input: bool,
    },
    /// `grads...` → in place on `params..., exp_avgs..., exp_avg_sqs..., max_exp_avg_sqs...?`: one Adam step over all parameters.
    AdamStep(AdamStep),
    /// `grads...` → in place on `params..., momentum_buffers...?`: one SGD step over all parameters.
    SgdStep(SgdStep),

    /// inputs → `y`: a user's kernel.
    Custom(Arc<Kernel>),
}

impl Op {
    /// The name in messages and profiles.
    pub fn name(&self) -> &str {
        match self {
            Op::Copy => "copy",
            Op::Fill(_) => "fill",
            Op::Arange { .. } => "arange",
            Op::Random { .. } => "random",
            Op::Unary(u) => u.name(),
            Op::Binary(b) | Op::BinaryScalar { op: b, .. } => b.name(),
            Op::Compare(c) | Op::CompareScalar(c, _) => c.name(),
            Op::Where => "where",
            Op::Reduce(r, _) => r.name(),
            Op::ArgReduce(ArgReduce::Max, _) => "argmax",
            Op::ArgReduce(ArgReduce::Min, _) => "argmin",
            Op::Cumulative(Cumulative::Sum, _) => "cumsum",
            Op::Cumulative(Cumulative::Prod, _) => "cumprod",
            Op::Matmul => "matmul",
            Op::Gather { .. } => "gather",
            Op::Scatter { add: false, .. } => "scatter",
            Op::Scatter { add: true, .. } => "scatter_add",
            Op::IndexSelect { .. } => "index_select",
            Op::IndexAdd { .. } => "index_add",
            Op::Sort { .. } => "sort",
            Op::TopK { .. } => "topk",
            Op::Unfold(_) => "unfold",
            Op::Fold(_) => "fold",
            Op::MaxPool(_) => "max_pool2d",
            Op::AvgPool(..) => "avg_pool2d",
            Op::AvgPoolGrad(..) => "avg_pool2d_grad",
            Op::UnaryGrad(_) => "unary_grad",
            Op::Softmax { log: false } => "softmax",
            Op::Softmax { log: true } => "log_softmax",
            Op::SoftmaxGrad { log: false } => "softmax_grad",
            Op::SoftmaxGrad { log: true } => "log_softmax_grad",
            Op::LayerNorm { .. } => "layer_norm",
            Op::LayerNormGrad { .. } => "layer_norm_grad",
            Op::RmsNorm { .. } => "rms_norm",
            Op::RmsNormGrad { .. } => "rms_norm_grad",
            Op::BatchNorm { .. } => "batch_norm",
            Op::BatchNormGrad { .. } => "batch_norm_grad",
            Op::ScaleChannels => "scale_channels",
            Op::ScaleChannelsGrad => "scale_channels_grad",
            Op::Triangle { upper: false, .. } => "tril",
            Op::Triangle { upper: true, .. } => "triu",
            Op::AdaptiveMaxPool { .. } => "adaptive_max_pool2d",
            Op::CrossEntropy { .. } => "cross_entropy",
            Op::CrossEntropyGrad { .. } => "cross_entropy_grad",
            Op::ElementLoss { loss, .. } => loss.name(),
            Op::ElementLossGrad { loss, .. } => loss.grad_name(),
            Op::Linear { .. } => "linear",
            Op::Dropout { .. } => "dropout",
            Op::Attention { .. } => "attention",
            Op::AttentionGrad { .. } => "attention_grad",
            Op::Conv2d { .. } => "conv2d",
            Op::Resample { adjoint: false, .. } => "resample",
            Op::Resample { adjoint: true, .. } => "resample_grad",
            Op::Conv2dInputGrad { .. } => "conv2d_input_grad",
            Op::Conv2dWeightGrad { .. } => "conv2d_weight_grad",
            Op::Recurrent { recurrence, .. } => recurrence.cell.name(),
            Op::RecurrentGrad { recurrence, .. } => recurrence.cell.grad_name(),
            Op::AdamStep(_) => "adam_step",
            Op::SgdStep(_) => "sgd_step",
            Op::Custom(k) => k.name(),
        }
    }
}

/// Distributions of [`Op::Random`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum RandomKind {
    /// Even over `[0, 1)`: the top 24 bits of a word times 2⁻²⁴.
    Uniform,
    /// 1 with this probability, else 0: `uniform < p`.
    Bernoulli(f64),
}

macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name { $($(#[$doc])* $variant,)* }
        impl $name {
            /// All of them.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];
            /// PyTorch's name.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// Operations of two elements.
    Binary {
        /// `a + b` (bool: or)
        Add = "add",
        /// `a - b`
        Sub = "sub",
        /// `a * b` (bool: and)
        Mul = "mul",
        /// `a / b`; of integers rounded towards -∞, an error where `b` is 0
        Div = "div",
        /// `a` to the power of `b`; integers by repeated multiplication, wrapping
        Pow = "pow",
        /// `a - floor(a / b) * b`: the sign of the divisor, as in Python
        Remainder = "remainder",
        /// The larger; NaN if either is
        Maximum = "maximum",
        /// The smaller; NaN if either is
        Minimum = "minimum",
        /// Angle of the point (b, a)
        Atan2 = "atan2",
    }
}

named! {
    /// Comparisons of two elements.
    Compare {
        /// `==`
        Eq = "eq",
        /// `!=`
        Ne = "ne",
        /// `<`
        Lt = "lt",
        /// `<=`
        Le = "le",
        /// `>`
        Gt = "gt",
        /// `>=`
        Ge = "ge",
    }
}

named! {
    /// Reductions over a set of dimensions.
    Reduce {
        /// Sum
        Sum = "sum",
        /// Mean, floats only
        Mean = "mean",
        /// Product
        Prod = "prod",
        /// Largest
        Max = "max",
        /// Smallest
        Min = "min",
        /// Some element is not zero; bool output
        Any = "any",
        /// No element is zero; bool output
        All = "all",
    }
}

/// Which position to look for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ArgReduce {
    /// Of the largest.
    Max,
    /// Of the smallest.
    Min,
}

/// Running reductions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cumulative {
    /// Running sum.
    Sum,
    /// Running product.
    Prod,
}

/// Functions of one element.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Unary {
    /// `-x`
    Neg,
    /// `|x|`
    Abs,
    /// -1, 0 or 1; 0 for NaN
    Sign,
    /// `eˣ`
    Exp,
    /// `eˣ - 1`
    Expm1,
    /// natural logarithm
    Log,
    /// `ln(1 + x)`
    Log1p,
    /// logarithm to base 2
    Log2,
    /// logarithm to base 10
    Log10,
    /// square root
    Sqrt,
    /// `1 / √x`
    Rsqrt,
    /// `1 / x`
    Reciprocal,
    /// `x²`
    Square,
    /// sine
    Sin,
    /// cosine
    Cos,
    /// tangent
    Tan,
    /// arc tangent
    Atan,
    /// hyperbolic tangent
    Tanh,
    /// `1 / (1 + e⁻ˣ)`
    Sigmoid,
    /// `ln(sigmoid(x))`
    LogSigmoid,
    /// error function
    Erf,
    /// `max(x, 0)`; NaN stays
    Relu,
    /// `0.5 x (1 + erf(x / √2))`
    Gelu,
    /// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`
    GeluTanh,
    /// `x sigmoid(x)`
    Silu,
    /// `ln(1 + e^(beta x)) / beta`, and `x` where `beta x > threshold`
    Softplus {
        /// Sharpness.
        beta: f64,
        /// Where it becomes linear.
        threshold: f64,
    },
    /// `x` if positive, else `slope x`
    LeakyRelu(f64),
    /// `x` if positive, else `alpha (eˣ - 1)`
    Elu(f64),
    /// Limited to `[min, max]`; NaN stays
    Clamp {
        /// Lower limit; −∞ for none.
        min: f64,
        /// Upper limit; +∞ for none.
        max: f64,
    },
    /// towards −∞
    Floor,
    /// towards +∞
    Ceil,
    /// to the nearest integer, halves to even
    Round,
    /// towards zero
    Trunc,
    /// bool: is it NaN?
    IsNan,
    /// bool: is it infinite?
    IsInf,
    /// bool: neither NaN nor infinite?
    IsFinite,
    /// bool: is it zero?
    LogicalNot,
}

impl Unary {
    /// PyTorch's name.
    pub const fn name(self) -> &'static str {
        match self {
            Unary::Neg => "neg",
            Unary::Abs => "abs",
            Unary::Sign => "sign",
            Unary::Exp => "exp",
            Unary::Expm1 => "expm1",
            Unary::Log => "log",
            Unary::Log1p => "log1p",
            Unary::Log2 => "log2",
            Unary::Log10 => "log10",
            Unary::Sqrt => "sqrt",
            Unary::Rsqrt => "rsqrt",
            Unary::Reciprocal => "reciprocal",
            Unary::Square => "square",
            Unary::Sin => "sin",
            Unary::Cos => "cos",
            Unary::Tan => "tan",
            Unary::Atan => "atan",
            Unary::Tanh => "tanh",
            Unary::Sigmoid => "sigmoid",
            Unary::LogSigmoid => "logsigmoid",
            Unary::Erf => "erf",
            Unary::Relu => "relu",
            Unary::Gelu => "gelu",
            Unary::GeluTanh => "gelu_tanh",
            Unary::Silu => "silu",
            Unary::Softplus { .. } => "softplus",
            Unary::LeakyRelu(_) => "leaky_relu",
            Unary::Elu(_) => "elu",
            Unary::Clamp { .. } => "clamp",
            Unary::Floor => "floor",
            Unary::Ceil => "ceil",
            Unary::Round => "round",
            Unary::Trunc => "trunc",
            Unary::IsNan => "isnan",
            Unary::IsInf => "isinf",
            Unary::IsFinite => "isfinite",
            Unary::LogicalNot => "logical_not",
        }
    }

    /// The output's dtype is bool.
    pub const fn is_test(self) -> bool {
        matches!(self, Unary::IsNan | Unary::IsInf | Unary::IsFinite | Unary::LogicalNot)
    }

    /// Defined for integers too (and gives integers); the others turn integers into f32 first.
    pub const fn keeps_integers(self) -> bool {
        matches!(
            self,
            Unary::Neg
                | Unary::Abs
                | Unary::Sign
                | Unary::Square
                | Unary::Relu
                | Unary::Clamp { .. }
                | Unary::Floor
                | Unary::Ceil
                | Unary::Round
                | Unary::Trunc
        ) || self.is_test()
    }

    /// Under [`autocast`](crate::autocast()), half precision is converted to f32 first.
    pub(crate) const fn in_full_precision(self) -> bool {
        matches!(
            self,
            Unary::Exp
                | Unary::Expm1
                | Unary::Log
                | Unary::Log1p
                | Unary::Log2
                | Unary::Log10
                | Unary::Rsqrt
                | Unary::Reciprocal
                | Unary::Square
                | Unary::Tan
                | Unary::Softplus { .. }
        )
    }

    /// The derivative is cheapest from the function's output: then that is what [`Op::UnaryGrad`] gets as its first input.
    pub const fn grad_uses_output(self) -> bool {
        matches!(
            self,
            Unary::Exp
                | Unary::Expm1
                | Unary::Sqrt
                | Unary::Rsqrt
                | Unary::Reciprocal
                | Unary::Tanh
                | Unary::Sigmoid
                | Unary::Relu
        )
    }
}

/// A sliding 2-D window. One-dimensional operations use height 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Sizes of the input plane: height, width.
    pub input: [usize; 2],
    /// Sizes of the window.
    pub kernel: [usize; 2],
    /// Steps between windows.
    pub stride: [usize; 2],
    /// Zeros (or nothing) assumed on both sides.
    pub padding: [usize; 2],
    /// Distance between the window's points.
    pub dilation: [usize; 2],
}

impl Window {
    /// How many windows fit: output height and width; 0 if none does.
    pub fn output(&self) -> [usize; 2] {
        [0, 1].map(|i| {
            let reach = self.dilation[i] * (self.kernel[i] - 1) + 1;
            (self.input[i] + 2 * self.padding[i])
                .checked_sub(reach)
                .map_or(0, |free| free / self.stride[i] + 1)
        })
    }
}

/// How the layers of [`Op::Recurrent`] walk through their steps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recurrence {
    /// What happens in a step.
    pub cell: RecurrentCell,
    /// From the last step to the first.
    pub reverse: bool,
    /// The rows of each step, never more than of the step before: the longest text comes first, and row `i` of every step belongs to
    /// text `i`.
    pub batch_sizes: Arc<[usize]>,
}

impl Recurrence {
    /// The number of rows of all steps.
    pub fn rows(&self) -> usize {
        self.batch_sizes.iter().sum()
    }

    /// The numbers of the steps in the order in which they are walked.
    pub fn order(&self) -> impl DoubleEndedIterator<Item = usize> + ExactSizeIterator + use<> {
        let (steps, reverse) = (self.batch_sizes.len(), self.reverse);
        (0..steps).map(move |i| if reverse { steps - 1 - i } else { i })
    }
}

/// The recurrent cells, with PyTorch's order of gates. `x` and `h` stand for what the weights and biases of the input and of the state
/// make of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RecurrentCell {
    /// `h' = tanh(x + h)`
    RnnTanh,
    /// `h' = relu(x + h)`
    RnnRelu,
    /// `i, f, g, o = x + h`: `c' = σ(f) c + σ(i) tanh(g)`, `h' = σ(o) tanh(c')`
    Lstm,
    /// `r = σ(x_r + h_r)`, `z = σ(x_z + h_z)`, `n = tanh(x_n + r h_n)`: `h' = (1 - z) n + z h`
    Gru,
}

impl RecurrentCell {
    /// PyTorch's name.
    pub const fn name(self) -> &'static str {
        match self {
            RecurrentCell::RnnTanh => "rnn_tanh",
            RecurrentCell::RnnRelu => "rnn_relu",
            RecurrentCell::Lstm => "lstm",
            RecurrentCell::Gru => "gru",
        }
    }

    /// The name of its gradient in messages and profiles.
    pub const fn grad_name(self) -> &'static str {
        match self {
            RecurrentCell::RnnTanh => "rnn_tanh_grad",
            RecurrentCell::RnnRelu => "rnn_relu_grad",
            RecurrentCell::Lstm => "lstm_grad",
            RecurrentCell::Gru => "gru_grad",
        }
    }

    /// The number of blocks of rows in its weights.
    pub const fn gates(self) -> usize {
        match self {
            RecurrentCell::RnnTanh | RecurrentCell::RnnRelu => 1,
            RecurrentCell::Lstm => 4,
            RecurrentCell::Gru => 3,
        }
    }

    /// The number of tensors it passes from step to step.
    pub const fn states(self) -> usize {
        match self {
            RecurrentCell::Lstm => 2,
            _ => 1,
        }
    }
}

/// What the difference of an element `x` and its target `y` costs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ElementLoss {
    /// `(x - y)²`
    Squared,
    /// `|x - y|`
    Absolute,
    /// `(x - y)² / 2` where `|x - y| <= delta`, else `delta (|x - y| - delta / 2)`
    Huber {
        /// Where it becomes linear.
        delta: f64,
    },
    /// `(x - y)² / (2 beta)` where `|x - y| < beta`, else `|x - y| - beta / 2`
    SmoothL1 {
        /// Where it becomes linear, not 0.
        beta: f64,
    },
    /// `-(y ln x + (1 - y) ln(1 - x))`, logarithms no less than -100; the divisor of its derivative is at least 1e-12
    CrossEntropy,
    /// The cross-entropy of `sigmoid(x)`, without its rounding
    LogitCrossEntropy,
    /// `y (ln y - x)`, 0 where `y` is
    Divergence,
    /// `eʸ (y - x)`
    LogDivergence,
    /// `eˣ - y x`
    Poisson,
}

impl ElementLoss {
    /// One of each; those with a parameter become linear at 0.4. For whoever has to treat them all, such as tests.
    pub const EACH: [ElementLoss; 9] = [
        ElementLoss::Squared,
        ElementLoss::Absolute,
        ElementLoss::Huber { delta: 0.4 },
        ElementLoss::SmoothL1 { beta: 0.4 },
        ElementLoss::CrossEntropy,
        ElementLoss::LogitCrossEntropy,
        ElementLoss::Divergence,
        ElementLoss::LogDivergence,
        ElementLoss::Poisson,
    ];

    /// PyTorch's name.
    pub const fn name(self) -> &'static str {
        match self {
            ElementLoss::Squared => "mse_loss",
            ElementLoss::Absolute => "l1_loss",
            ElementLoss::Huber { .. } => "huber_loss",
            ElementLoss::SmoothL1 { .. } => "smooth_l1_loss",
            ElementLoss::CrossEntropy => "binary_cross_entropy",
            ElementLoss::LogitCrossEntropy => "binary_cross_entropy_with_logits",
            ElementLoss::Divergence | ElementLoss::LogDivergence => "kl_div",
            ElementLoss::Poisson => "poisson_nll_loss",
        }
    }

    /// The name of its gradient in messages and profiles.
    pub const fn grad_name(self) -> &'static str {
        match self {
            ElementLoss::Squared => "mse_loss_grad",
            ElementLoss::Absolute => "l1_loss_grad",
            ElementLoss::Huber { .. } => "huber_loss_grad",
            ElementLoss::SmoothL1 { .. } => "smooth_l1_loss_grad",
            ElementLoss::CrossEntropy => "binary_cross_entropy_grad",
            ElementLoss::LogitCrossEntropy => "binary_cross_entropy_with_logits_grad",
            ElementLoss::Divergence | ElementLoss::LogDivergence => "kl_div_grad",
            ElementLoss::Poisson => "poisson_nll_loss_grad",
        }
    }
}

/// One Adam or AdamW step: `m ← β₁m + (1-β₁)g`, `v ← β₂v + (1-β₂)g²`,
/// `p ← p - lr / (1-β₁ᵗ) · m / (√v / √(1-β₂ᵗ) + eps)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamStep {
    /// Learning rate.
    pub lr: f64,
    /// β₁
    pub beta1: f64,
    /// β₂
    pub beta2: f64,
    /// Added outside the root.
    pub eps: f64,
    /// Weight decay: added to the gradient, or applied to the parameter first if `decoupled`.
    pub weight_decay: f64,
    /// AdamW's decay: `p ← p (1 - lr · weight_decay)` before the step.
    pub decoupled: bool,
    /// Use the largest `v` so far.
    pub amsgrad: bool,
    /// Ascend instead of descend.
    pub maximize: bool,
    /// t, counted from 1.
    pub step: u64,
}

/// One SGD step: `g ← g + weight_decay p`, `b ← momentum b + (1-dampening) g` (`b ← g` in the first step),
/// `p ← p - lr b` (Nesterov: `p ← p - lr (g + momentum b)`).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f64,
    /// 0 for none; then there are no momentum buffers.
    pub momentum: f64,
    /// Damps the gradient's part in the momentum.
    pub dampening: f64,
    /// Added to the gradient, times the parameter.
    pub weight_decay: f64,
    /// Look ahead.
    pub nesterov: bool,
    /// Ascend instead of descend.
    pub maximize: bool,
    /// The momentum buffers are new: take the gradient as it is.
    pub first: bool,
}
