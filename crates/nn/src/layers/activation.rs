//! Activations (and two reshapes) as layers.
//!
//! Each is a tensor method too, which reads better inside a `forward`; as layers they go into a [`Sequential`](crate::Sequential).

#![allow(clippy::upper_case_acronyms)]

use crate::{Layer, Mode, Module};
use orkest_core::op::Unary;
use orkest_core::{Device, Param, Tensor};

macro_rules! plain_activations {
    ($($(#[$doc:meta])* $name:ident => |$x:ident| $forward:expr $(, $unary:expr)?;)*) => {$(
        $(#[$doc])*
        ///
        /// # Shapes
        /// - input and output: any
        #[derive(Module, Clone, Copy, Debug, Default)]
        pub struct $name;

        impl $name {
            #[doc = concat!("The same as `", stringify!($name), "`.")]
            pub fn new() -> $name {
                $name
            }
        }

        impl Layer for $name {
            #[track_caller]
            fn forward(&self, $x: &Tensor) -> Tensor {
                $forward
            }
            $(
                #[track_caller]
                fn forward_owned(&self, input: Tensor) -> Tensor {
                    input.into_unary($unary)
                }
            )?
        }
    )*};
}

plain_activations! {
    /// `max(x, 0)`: [`Tensor::relu`].
    ReLU => |x| x.relu(), Unary::Relu;
    /// `1 / (1 + e⁻ˣ)`: [`Tensor::sigmoid`].
    Sigmoid => |x| x.sigmoid(), Unary::Sigmoid;
    /// Hyperbolic tangent: [`Tensor::tanh`].
    Tanh => |x| x.tanh(), Unary::Tanh;
    /// `x sigmoid(x)`: [`Tensor::silu`].
    SiLU => |x| x.silu(), Unary::Silu;
    /// `ln(sigmoid(x))`: [`Tensor::log_sigmoid`].
    LogSigmoid => |x| x.log_sigmoid(), Unary::LogSigmoid;
    /// `min(max(x, 0), 6)`: [`Tensor::relu6`].
    ReLU6 => |x| x.relu6();
    /// `min(max(x + 3, 0), 6) / 6`: [`Tensor::hardsigmoid`].
    Hardsigmoid => |x| x.hardsigmoid();
    /// `x hardsigmoid(x)`: [`Tensor::hardswish`].
    Hardswish => |x| x.hardswish();
    /// `x - tanh(x)`: [`Tensor::tanhshrink`].
    Tanhshrink => |x| x.tanhshrink();
    /// `x / (1 + |x|)`: [`Tensor::softsign`].
    Softsign => |x| x.softsign();
    /// `x tanh(ln(1 + eˣ))`: [`Tensor::mish`].
    Mish => |x| x.mish();
    /// `x` where positive, else a falling exponential, scaled so that mean and variance stay: [`Tensor::selu`].
    SELU => |x| x.selu();
    /// The input itself.
    Identity => |x| x.clone();
}

macro_rules! activations {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $t:ty),* } $repr:literal =>
      |$self:ident, $x:ident| $forward:expr $(, $unary:expr)?;)*) => {$(
        $(#[$doc])*
        #[derive(Module, Clone, Copy, Debug)]
        #[module(extra_repr)]
        pub struct $name { $($field: $t),* }

        impl $name {
            fn extra_repr(&self) -> String {
                let $name { $($field),* } = self;
                format!($repr)
            }
        }

        impl Layer for $name {
            #[track_caller]
            fn forward(&$self, $x: &Tensor) -> Tensor {
                $forward
            }
            $(
                #[track_caller]
                fn forward_owned(&$self, input: Tensor) -> Tensor {
                    input.into_unary($unary)
                }
            )?
        }
    )*};
}

activations! {
    /// `x Φ(x)` with the normal distribution Φ, exactly or by a tanh: [`Tensor::gelu`], [`Tensor::gelu_tanh`].
    ///
    /// # Shapes
    /// - input and output: any
    GELU { approximate: &'static str } "approximate='{approximate}'" =>
        |self, x| if self.approximate == "tanh" { x.gelu_tanh() } else { x.gelu() },
        if self.approximate == "tanh" { Unary::GeluTanh } else { Unary::Gelu };

    /// `x` where positive, else `negative_slope * x`: [`Tensor::leaky_relu`].
    ///
    /// # Shapes
    /// - input and output: any
    LeakyReLU { negative_slope: f64 } "negative_slope={negative_slope}" =>
        |self, x| x.leaky_relu(self.negative_slope), Unary::LeakyRelu(self.negative_slope);

    /// `x` where positive, else `alpha (eˣ - 1)`: [`Tensor::elu`].
    ///
    /// # Shapes
    /// - input and output: any
    ELU { alpha: f64 } "alpha={alpha:?}" => |self, x| x.elu(self.alpha), Unary::Elu(self.alpha);

    /// `max(0, x) + min(0, alpha (e^(x / alpha) - 1))`: [`Tensor::celu`].
    ///
    /// # Shapes
    /// - input and output: any
    CELU { alpha: f64 } "alpha={alpha:?}" => |self, x| x.celu(self.alpha);

    /// Limited to `[min_val, max_val]`: [`Tensor::hardtanh`].
    ///
    /// # Shapes
    /// - input and output: any
    Hardtanh { min_val: f64, max_val: f64 } "min_val={min_val:?}, max_val={max_val:?}" =>
        |self, x| x.hardtanh(self.min_val, self.max_val);

    /// `x`, or 0 from `-lambd` to `lambd`: [`Tensor::hardshrink`].
    ///
    /// # Shapes
    /// - input and output: any
    Hardshrink { lambd: f64 } "{lambd:?}" => |self, x| x.hardshrink(self.lambd);

    /// `x` moved towards 0 by `lambd`: [`Tensor::softshrink`].
    ///
    /// # Shapes
    /// - input and output: any
    Softshrink { lambd: f64 } "{lambd:?}" => |self, x| x.softshrink(self.lambd);

    /// `x` where it is above `threshold`, else `value`: [`Tensor::threshold`].
    ///
    /// # Shapes
    /// - input and output: any
    Threshold { threshold: f64, value: f64 } "threshold={threshold:?}, value={value:?}" =>
        |self, x| x.threshold(self.threshold, self.value);

    /// The first half along `dim` times the sigmoid of the second: [`Tensor::glu`].
    ///
    /// # Shapes
    /// - input: `[.., 2 n, ..]`, output: `[.., n, ..]`
    GLU { dim: isize } "dim={dim}" => |self, x| x.glu(self.dim);

    /// The softmax of `-x` along `dim`: [`Tensor::softmin`].
    ///
    /// # Shapes
    /// - input and output: any
    Softmin { dim: isize } "dim={dim}" => |self, x| x.softmin(self.dim);

    /// `ln(1 + e^(beta x)) / beta`, and `x` where `beta x > threshold`: [`Tensor::softplus`].
    ///
    /// # Shapes
    /// - input and output: any
    Softplus { beta: f64, threshold: f64 } "beta={beta:?}, threshold={threshold:?}" =>
        |self, x| x.softplus(self.beta, self.threshold);

    /// `exp(x) / sum(exp(x))` along `dim`: [`Tensor::softmax`].
    ///
    /// # Shapes
    /// - input and output: any
    Softmax { dim: isize } "dim={dim}" => |self, x| x.softmax(self.dim);

    /// The logarithm of the softmax along `dim`: [`Tensor::log_softmax`].
    ///
    /// # Shapes
    /// - input and output: any
    LogSoftmax { dim: isize } "dim={dim}" => |self, x| x.log_softmax(self.dim);

    /// The dimensions from `start_dim` to `end_dim` as one: [`Tensor::flatten`].
    ///
    /// # Shapes
    /// - input: `[batch, a, b, ..]`, output: `[batch, a * b * ..]` with the default dimensions 1 and -1
    Flatten { start_dim: isize, end_dim: isize } "start_dim={start_dim}, end_dim={end_dim}" =>
        |self, x| x.flatten(self.start_dim, self.end_dim);
}

impl GELU {
    /// The exact form, with the error function.
    pub fn new() -> GELU {
        GELU { approximate: "none" }
    }

    /// PyTorch's `GELU(approximate='tanh')`.
    pub fn tanh() -> GELU {
        GELU { approximate: "tanh" }
    }
}

impl LeakyReLU {
    /// PyTorch's default slope is 0.01.
    pub fn new(negative_slope: f64) -> LeakyReLU {
        LeakyReLU { negative_slope }
    }
}

impl ELU {
    /// PyTorch's default alpha is 1.
    pub fn new(alpha: f64) -> ELU {
        ELU { alpha }
    }
}

/// The softmax over the channels at every place of planes: PyTorch's
/// [`Softmax2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Softmax2d.html).
///
/// # Shapes
/// - input and output: `[batch, channels, height, width]`, the batch may be left out
#[derive(Module, Clone, Copy, Debug, Default)]
pub struct Softmax2d;

impl Layer for Softmax2d {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        if !matches!(input.rank(), 3 | 4) {
            panic!(
                "Softmax2d: an input of [batch, channels, height, width] is needed, batch optional. input: {}",
                input.describe()
            );
        }
        input.softmax(-3)
    }
}

/// `x` where positive, else `weight x` with a weight that is learned: PyTorch's
/// [`PReLU`](https://docs.pytorch.org/docs/stable/generated/torch.nn.PReLU.html), with [`Tensor::prelu`].
///
/// # Shapes
/// - input and output: any; channels are dimension 1
/// - `weight` (starts at 0.25): `[num_parameters]`
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct PReLU {
    /// `[num_parameters]`
    pub weight: Param,
}

impl PReLU {
    /// With one weight for all channels (1), or one for each, on the CPU.
    pub fn new(num_parameters: usize) -> PReLU {
        PReLU::from_param(Param::new(Tensor::full(num_parameters, 0.25, &Device::cpu())))
    }

    /// With these weights `[num_parameters]`.
    pub fn from_param(weight: Param) -> PReLU {
        PReLU { weight }
    }

    /// What the weights start at instead of 0.25.
    pub fn init(self, init: f64) -> PReLU {
        self.weight.set_value(&self.weight.value().full_like(init));
        self
    }

    fn extra_repr(&self) -> String {
        format!("num_parameters={}", self.weight.numel())
    }
}

impl Layer for PReLU {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        input.prelu(&self.weight.tensor())
    }
}

/// `x` where positive, else `slope x` with a slope drawn evenly between `lower` and `upper` for each element in training, and their
/// mean in evaluation: PyTorch's [`RReLU`](https://docs.pytorch.org/docs/stable/generated/torch.nn.RReLU.html).
///
/// # Shapes
/// - input and output: any
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct RReLU {
    lower: f64,
    upper: f64,
    mode: Mode,
}

impl RReLU {
    /// PyTorch's defaults are 1/8 and 1/3.
    ///
    /// # Panics
    /// If `lower` is above `upper`.
    #[track_caller]
    pub fn new(lower: f64, upper: f64) -> RReLU {
        assert!(lower <= upper, "RReLU: lower {lower} is above upper {upper}");
        RReLU { lower, upper, mode: Mode::new() }
    }

    fn extra_repr(&self) -> String {
        format!("lower={:?}, upper={:?}", self.lower, self.upper)
    }
}

impl Layer for RReLU {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        if !self.mode.is_training() {
            return input.leaky_relu((self.lower + self.upper) / 2.0);
        }
        let slopes = input.detach().rand_like() * (self.upper - self.lower) + self.lower;
        input.gt(0).where_(input, slopes * input)
    }
}

impl CELU {
    /// PyTorch's default alpha is 1.
    pub fn new(alpha: f64) -> CELU {
        CELU { alpha }
    }
}

impl Hardtanh {
    /// PyTorch's defaults are -1 and 1.
    pub fn new(min_val: f64, max_val: f64) -> Hardtanh {
        Hardtanh { min_val, max_val }
    }
}

impl Hardshrink {
    /// PyTorch's default is 0.5.
    pub fn new(lambd: f64) -> Hardshrink {
        Hardshrink { lambd }
    }
}

impl Softshrink {
    /// PyTorch's default is 0.5.
    pub fn new(lambd: f64) -> Softshrink {
        Softshrink { lambd }
    }
}

impl Threshold {
    /// Whatever is not above `threshold` becomes `value`.
    pub fn new(threshold: f64, value: f64) -> Threshold {
        Threshold { threshold, value }
    }
}

impl GLU {
    /// PyTorch's default dimension is -1.
    pub fn new(dim: isize) -> GLU {
        GLU { dim }
    }
}

impl Softmin {
    /// Along `dim`, which may be negative.
    pub fn new(dim: isize) -> Softmin {
        Softmin { dim }
    }
}

impl Softplus {
    /// PyTorch's defaults are 1 and 20.
    pub fn new(beta: f64, threshold: f64) -> Softplus {
        Softplus { beta, threshold }
    }
}

impl Softmax {
    /// Along `dim`, which may be negative.
    pub fn new(dim: isize) -> Softmax {
        Softmax { dim }
    }
}

impl LogSoftmax {
    /// Along `dim`, which may be negative.
    pub fn new(dim: isize) -> LogSoftmax {
        LogSoftmax { dim }
    }
}

impl Flatten {
    /// All dimensions but the first become one.
    pub fn new() -> Flatten {
        Flatten::dims(1, -1)
    }

    /// The dimensions from `start_dim` to `end_dim` become one.
    pub fn dims(start_dim: isize, end_dim: isize) -> Flatten {
        Flatten { start_dim, end_dim }
    }
}

impl Default for GELU {
    fn default() -> GELU {
        GELU::new()
    }
}

impl Default for Flatten {
    fn default() -> Flatten {
        Flatten::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AnyLayer;
    use orkest_core::{Device, tensor};

    #[test]
    fn values_are_pytorchs() {
        // torch.nn.<Layer>()(torch.tensor([-1., 0.5]))
        let cases: Vec<(AnyLayer, [f32; 2])> = vec![
            (AnyLayer::new(ReLU), [0.0, 0.5]),
            (AnyLayer::new(Sigmoid), [0.26894143, 0.62245935]),
            (AnyLayer::new(Tanh), [-0.7615942, 0.46211717]),
            (AnyLayer::new(SiLU), [-0.26894143, 0.31122968]),
            (AnyLayer::new(LogSigmoid), [-1.3132616, -0.474077]),
            (AnyLayer::new(Identity), [-1.0, 0.5]),
            (AnyLayer::new(GELU::new()), [-0.15865529, 0.34573123]),
            (AnyLayer::new(GELU::tanh()), [-0.158808, 0.345714]),
            (AnyLayer::new(LeakyReLU::new(0.01)), [-0.01, 0.5]),
            (AnyLayer::new(ELU::new(1.0)), [-0.63212055, 0.5]),
            (AnyLayer::new(Softplus::new(1.0, 20.0)), [0.3132617, 0.974077]),
            (AnyLayer::new(Softmax::new(-1)), [0.18242553, 0.81757444]),
            (AnyLayer::new(LogSoftmax::new(-1)), [-1.7014133, -0.20141329]),
        ];
        for (layer, expected) in cases {
            let y = layer.forward(&tensor![-1.0, 0.5]);
            assert!(
                y.allclose(&Tensor::new(expected, &Device::cpu()), 1e-5, 1e-6, false).unwrap(),
                "{layer}: {y}"
            );
        }
    }

    #[test]
    fn flatten_keeps_the_batch() {
        let x = Tensor::zeros([2, 3, 4], &Device::cpu());
        assert_eq!(Flatten::new().forward(&x).shape(), &[2, 12]);
        assert_eq!(Flatten::dims(0, 1).forward(&x).shape(), &[6, 4]);
    }

    #[test]
    fn texts_are_pytorchs() {
        let texts = [
            GELU::tanh().to_string(),
            ELU::new(1.0).to_string(),
            LeakyReLU::new(0.01).to_string(),
            ReLU.to_string(),
            Hardtanh::new(-1.0, 1.0).to_string(),
            Softshrink::new(0.5).to_string(),
            PReLU::new(3).to_string(),
            RReLU::new(0.125, 1.0 / 3.0).to_string(),
            GLU::new(-1).to_string(),
        ];
        assert_eq!(
            texts,
            [
                "GELU(approximate='tanh')",
                "ELU(alpha=1.0)",
                "LeakyReLU(negative_slope=0.01)",
                "ReLU()",
                "Hardtanh(min_val=-1.0, max_val=1.0)",
                "Softshrink(0.5)",
                "PReLU(num_parameters=3)",
                "RReLU(lower=0.125, upper=0.3333333333333333)",
                "GLU(dim=-1)",
            ]
        );
    }

    #[test]
    fn rrelu_draws_slopes_in_training_only() {
        let (layer, x) = (RReLU::new(0.25, 0.5), -Tensor::ones(1000, &Device::cpu()));
        let y = layer.forward(&x).to_vec::<f32>().unwrap();
        assert!(y.iter().all(|v| (-0.5..=-0.25).contains(v)));
        let mean = y.iter().sum::<f32>() / 1000.0;
        assert!((mean + 0.375).abs() < 0.02, "the mean slope is {mean}");
        layer.eval();
        assert_eq!(layer.forward(&x).to_vec::<f32>().unwrap(), [-0.375; 1000]);
    }
}
