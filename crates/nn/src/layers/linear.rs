//! The fully connected layer.

use crate::repr::python_bool;
use crate::{Layer, Module};
use orkest_core::{Device, Param, Tensor};

/// `y = x weightᵀ + bias`: PyTorch's [`Linear`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html).
///
/// Weight and bias start uniform in ±1/√in_features, with PyTorch's numbers for the same `manual_seed`.
///
/// # Shapes
/// - input: `[.., in_features]`
/// - output: `[.., out_features]`
/// - `weight`: `[out_features, in_features]`, `bias`: `[out_features]`
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{Layer, Linear};
/// let fc = Linear::new(4, 2);
/// assert_eq!(fc.forward(&Tensor::zeros([3, 4], &Device::cpu())).shape(), &[3, 2]);
/// ```
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct Linear {
    /// `[out_features, in_features]`
    pub weight: Param,
    /// `[out_features]`
    pub bias: Option<Param>,
}

impl Linear {
    /// With a bias, on the CPU.
    #[track_caller]
    pub fn new(in_features: usize, out_features: usize) -> Linear {
        let mut linear = Linear::without_bias(in_features, out_features);
        let bound = if in_features > 0 { 1.0 / (in_features as f64).sqrt() } else { 0.0 };
        linear.bias = Some(Param::new(Tensor::uniform(out_features, -bound, bound, &Device::cpu())));
        linear
    }

    /// Without a bias, on the CPU. No random numbers are drawn for one.
    #[track_caller]
    pub fn without_bias(in_features: usize, out_features: usize) -> Linear {
        // PyTorch: kaiming_uniform with a = √5, computed in these steps; in exact arithmetic it is 1/√in_features.
        let gain = (2.0 / (1.0 + 5f64.sqrt().powi(2))).sqrt();
        let bound = if in_features > 0 { 3f64.sqrt() * (gain / (in_features as f64).sqrt()) } else { 0.0 };
        let weight = Tensor::uniform([out_features, in_features], -bound, bound, &Device::cpu());
        Linear { weight: Param::new(weight), bias: None }
    }

    /// With this weight `[out_features, in_features]` and bias `[out_features]`.
    pub fn from_params(weight: Param, bias: Option<Param>) -> Linear {
        Linear { weight, bias }
    }

    fn extra_repr(&self) -> String {
        let shape = self.weight.shape();
        let bias = python_bool(self.bias.is_some());
        format!("in_features={}, out_features={}, bias={bias}", shape[1], shape[0])
    }
}

impl Layer for Linear {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        input.linear(&self.weight.tensor(), self.bias.as_ref().map(Param::tensor).as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::tensor;

    #[test]
    fn it_computes_and_differentiates() {
        let (weight, bias) = (tensor![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], tensor![0.5, 0.0, -0.5]);
        let fc = Linear::from_params(Param::new(weight), Some(Param::new(bias)));
        let y = fc.forward(&tensor![[1.0, -1.0], [2.0, 0.0]]);
        assert_eq!(y.to_vec::<f32>().unwrap(), [-0.5, -1.0, -1.5, 2.5, 6.0, 9.5]);
        y.sum(..).backward();
        let grads: Vec<Vec<f32>> =
            fc.parameters().iter().map(|p| p.grad().unwrap().to_vec().unwrap()).collect();
        assert_eq!(grads, [vec![3.0, -1.0, 3.0, -1.0, 3.0, -1.0], vec![2.0, 2.0, 2.0]]);
    }
}
