//! Normalisation over the last dimensions, and over neighbouring channels.

use crate::repr::{python_bool, python_float};
use crate::{Layer, Module};
use orkest_core::{Device, Param, Shape, Tensor};

/// `(x - mean) / sqrt(var + eps) * weight + bias` over the last dimensions: PyTorch's
/// [`LayerNorm`](https://docs.pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html).
///
/// # Shapes
/// - input and output: `[.., normalized_shape]`
/// - `weight` (starts at 1), `bias` (starts at 0): `normalized_shape`
///
/// ```
/// use orkest_core::tensor;
/// use orkest_nn::{Layer, LayerNorm};
/// let y = LayerNorm::new(2).eps(0.0).forward(&tensor![[1.0, 3.0]]);
/// assert_eq!(y.to_vec::<f32>().unwrap(), [-1.0, 1.0]);
/// ```
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct LayerNorm {
    /// `normalized_shape`
    pub weight: Option<Param>,
    /// `normalized_shape`
    pub bias: Option<Param>,
    normalized_shape: Shape,
    eps: f64,
}

impl LayerNorm {
    /// With weight and bias and an `eps` of 1e-5, on the CPU.
    #[track_caller]
    pub fn new(normalized_shape: impl Into<Shape>) -> LayerNorm {
        let shape = normalized_shape.into();
        LayerNorm {
            weight: Some(Param::new(Tensor::ones(shape, &Device::cpu()))),
            bias: Some(Param::new(Tensor::zeros(shape, &Device::cpu()))),
            normalized_shape: shape,
            eps: 1e-5,
        }
    }

    /// What is added to the variance.
    pub fn eps(mut self, eps: f64) -> LayerNorm {
        self.eps = eps;
        self
    }

    /// With `false`: neither weight nor bias.
    pub fn elementwise_affine(self, affine: bool) -> LayerNorm {
        if affine { self } else { LayerNorm { weight: None, bias: None, ..self } }
    }

    /// With `false`: no bias.
    pub fn bias(self, bias: bool) -> LayerNorm {
        if bias { self } else { LayerNorm { bias: None, ..self } }
    }

    fn extra_repr(&self) -> String {
        let affine = python_bool(self.weight.is_some());
        format!("{}, eps={:e}, elementwise_affine={affine}", self.normalized_shape, self.eps)
    }
}

impl Layer for LayerNorm {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        let (weight, bias) = (self.weight.as_ref().map(Param::tensor), self.bias.as_ref().map(Param::tensor));
        input.layer_norm(self.normalized_shape, weight.as_ref(), bias.as_ref(), self.eps)
    }
}

/// `x / sqrt(mean(x²) + eps) * weight` over the last dimensions: PyTorch's
/// [`RMSNorm`](https://docs.pytorch.org/docs/stable/generated/torch.nn.RMSNorm.html).
///
/// # Shapes
/// - input and output: `[.., normalized_shape]`
/// - `weight` (starts at 1): `normalized_shape`
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct RMSNorm {
    /// `normalized_shape`
    pub weight: Option<Param>,
    normalized_shape: Shape,
    eps: Option<f64>,
}

impl RMSNorm {
    /// With a weight, on the CPU. Without a given `eps` it is the machine epsilon of the dtype computed in.
    #[track_caller]
    pub fn new(normalized_shape: impl Into<Shape>) -> RMSNorm {
        let shape = normalized_shape.into();
        let weight = Some(Param::new(Tensor::ones(shape, &Device::cpu())));
        RMSNorm { weight, normalized_shape: shape, eps: None }
    }

    /// What is added to the mean of squares.
    pub fn eps(mut self, eps: f64) -> RMSNorm {
        self.eps = Some(eps);
        self
    }

    /// With `false`: no weight.
    pub fn elementwise_affine(self, affine: bool) -> RMSNorm {
        if affine { self } else { RMSNorm { weight: None, ..self } }
    }

    fn extra_repr(&self) -> String {
        let eps = self.eps.map_or("None".into(), |eps| format!("{eps:e}"));
        let affine = python_bool(self.weight.is_some());
        format!("{}, eps={eps}, elementwise_affine={affine}", self.normalized_shape)
    }
}

impl Layer for RMSNorm {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        input.rms_norm(self.normalized_shape, self.weight.as_ref().map(Param::tensor).as_ref(), self.eps)
    }
}

/// `x / (k + alpha mean(x² of the neighbouring channels))^beta`: PyTorch's
/// [`LocalResponseNorm`](https://docs.pytorch.org/docs/stable/generated/torch.nn.LocalResponseNorm.html).
///
/// # Shapes
/// - input and output: `[batch, channels, ..]`
#[derive(Module, Clone, Copy, Debug)]
#[module(extra_repr)]
pub struct LocalResponseNorm {
    size: usize,
    alpha: f64,
    beta: f64,
    k: f64,
}

impl LocalResponseNorm {
    /// Over `size` channels; alpha is 1e-4, beta 0.75 and k 1.
    ///
    /// # Panics
    /// If `size` is 0.
    #[track_caller]
    pub fn new(size: usize) -> LocalResponseNorm {
        assert!(size > 0, "LocalResponseNorm: size must be at least 1");
        LocalResponseNorm { size, alpha: 1e-4, beta: 0.75, k: 1.0 }
    }

    /// How much the neighbours count.
    pub fn alpha(mut self, alpha: f64) -> LocalResponseNorm {
        self.alpha = alpha;
        self
    }

    /// The exponent.
    pub fn beta(mut self, beta: f64) -> LocalResponseNorm {
        self.beta = beta;
        self
    }

    /// What is divided by at least.
    pub fn k(mut self, k: f64) -> LocalResponseNorm {
        self.k = k;
        self
    }

    fn extra_repr(&self) -> String {
        let [alpha, beta, k] = [self.alpha, self.beta, self.k].map(python_float);
        format!("{}, alpha={alpha}, beta={beta}, k={k}", self.size)
    }
}

impl Layer for LocalResponseNorm {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        if input.rank() < 3 {
            panic!(
                "LocalResponseNorm: an input of [batch, channels, ..] is needed. input: {}",
                input.describe()
            );
        }
        let (channels, size) = (input.size(1), self.size as isize);
        let mut pairs = vec![(0, 0); input.rank() - 2];
        pairs.push((size / 2, (size - 1) / 2));
        let squares = input.square().pad(&pairs, 0);
        let sum = (0..self.size).map(|i| squares.narrow(1, i, channels)).reduce(|a, b| a + b);
        let mean = sum.map(|sum| sum / self.size as f64).expect("size is at least 1");
        input / (mean * self.alpha + self.k).pow(self.beta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::tensor;

    #[test]
    fn options_decide_about_parameters() {
        let names =
            |m: &dyn Module| m.named_parameters().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&LayerNorm::new([2, 3])), ["weight", "bias"]);
        assert_eq!(names(&LayerNorm::new(3).bias(false)), ["weight"]);
        assert!(names(&LayerNorm::new(3).elementwise_affine(false)).is_empty());
        assert!(names(&RMSNorm::new(3).elementwise_affine(false)).is_empty());
        assert_eq!(
            LayerNorm::new(3).eps(1e-12).to_string(),
            "LayerNorm([3], eps=1e-12, elementwise_affine=True)"
        );
    }

    #[test]
    fn rows_are_normalised() {
        // torch.nn.functional.layer_norm and rms_norm of [1, 2, 4]
        let x = tensor![[1.0, 2.0, 4.0]];
        let close =
            |y: Tensor, expected: Tensor| assert!(y.allclose(&expected, 1e-5, 1e-6, false).unwrap(), "{y}");
        close(LayerNorm::new(3).forward(&x), tensor![[-1.0690416, -0.26726041, 1.3363021]]);
        close(RMSNorm::new(3).forward(&x), tensor![[0.37796447, 0.75592893, 1.5118579]]);
    }
}
