//! Activations (and two reshapes) as layers.
//!
//! Each is a tensor method too, which reads better inside a `forward`; as layers they go into a [`Sequential`](crate::Sequential).

#![allow(clippy::upper_case_acronyms)]

use crate::{Layer, Module};
use orkest_core::Tensor;

macro_rules! plain_activations {
    ($($(#[$doc:meta])* $name:ident => |$x:ident| $forward:expr;)*) => {$(
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
        }
    )*};
}

plain_activations! {
    /// `max(x, 0)`: [`Tensor::relu`].
    ReLU => |x| x.relu();
    /// `1 / (1 + e⁻ˣ)`: [`Tensor::sigmoid`].
    Sigmoid => |x| x.sigmoid();
    /// Hyperbolic tangent: [`Tensor::tanh`].
    Tanh => |x| x.tanh();
    /// `x sigmoid(x)`: [`Tensor::silu`].
    SiLU => |x| x.silu();
    /// `ln(sigmoid(x))`: [`Tensor::log_sigmoid`].
    LogSigmoid => |x| x.log_sigmoid();
    /// The input itself.
    Identity => |x| x.clone();
}

macro_rules! activations {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $t:ty),* } $repr:literal => |$self:ident, $x:ident| $forward:expr;)*) => {$(
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
        }
    )*};
}

activations! {
    /// `x Φ(x)` with the normal distribution Φ, exactly or by a tanh: [`Tensor::gelu`], [`Tensor::gelu_tanh`].
    ///
    /// # Shapes
    /// - input and output: any
    GELU { approximate: &'static str } "approximate='{approximate}'" =>
        |self, x| if self.approximate == "tanh" { x.gelu_tanh() } else { x.gelu() };

    /// `x` where positive, else `negative_slope * x`: [`Tensor::leaky_relu`].
    ///
    /// # Shapes
    /// - input and output: any
    LeakyReLU { negative_slope: f64 } "negative_slope={negative_slope}" => |self, x| x.leaky_relu(self.negative_slope);

    /// `x` where positive, else `alpha (eˣ - 1)`: [`Tensor::elu`].
    ///
    /// # Shapes
    /// - input and output: any
    ELU { alpha: f64 } "alpha={alpha:?}" => |self, x| x.elu(self.alpha);

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
        ];
        assert_eq!(
            texts,
            ["GELU(approximate='tanh')", "ELU(alpha=1.0)", "LeakyReLU(negative_slope=0.01)", "ReLU()"]
        );
    }
}
