//! A form of two inputs, linear in each.

use crate::Module;
use crate::repr::python_bool;
use orkest_core::{Device, Param, Tensor};

/// `y_k = x1 weight_k x2ᵀ + bias_k`: PyTorch's
/// [`Bilinear`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Bilinear.html).
///
/// Weight and bias start uniform in ±1/√in1_features, with PyTorch's numbers for the same `manual_seed`.
///
/// # Shapes
/// - inputs: `[.., in1_features]` and `[.., in2_features]`
/// - output: `[.., out_features]`
/// - `weight`: `[out_features, in1_features, in2_features]`, `bias`: `[out_features]`
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::Bilinear;
/// let (a, b) = (Tensor::ones([5, 2], &Device::cpu()), Tensor::ones([5, 3], &Device::cpu()));
/// assert_eq!(Bilinear::new(2, 3, 4).forward(&a, &b).shape(), &[5, 4]);
/// ```
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct Bilinear {
    /// `[out_features, in1_features, in2_features]`
    pub weight: Param,
    /// `[out_features]`
    pub bias: Option<Param>,
}

impl Bilinear {
    /// With a bias, on the CPU.
    ///
    /// # Panics
    /// If `in1_features` is 0.
    #[track_caller]
    pub fn new(in1_features: usize, in2_features: usize, out_features: usize) -> Bilinear {
        let mut bilinear = Bilinear::without_bias(in1_features, in2_features, out_features);
        let bound = 1.0 / (in1_features as f64).sqrt();
        bilinear.bias = Some(Param::new(Tensor::uniform(out_features, -bound, bound, &Device::cpu())));
        bilinear
    }

    /// Without a bias, on the CPU. No random numbers are drawn for one.
    ///
    /// # Panics
    /// If `in1_features` is 0.
    #[track_caller]
    pub fn without_bias(in1_features: usize, in2_features: usize, out_features: usize) -> Bilinear {
        assert!(in1_features > 0, "Bilinear: in1_features must be at least 1");
        let bound = 1.0 / (in1_features as f64).sqrt();
        let shape = [out_features, in1_features, in2_features];
        Bilinear { weight: Param::new(Tensor::uniform(shape, -bound, bound, &Device::cpu())), bias: None }
    }

    /// With this weight `[out_features, in1_features, in2_features]` and bias `[out_features]`.
    pub fn from_params(weight: Param, bias: Option<Param>) -> Bilinear {
        Bilinear { weight, bias }
    }

    /// The output.
    ///
    /// # Panics
    /// If the shapes do not fit.
    #[track_caller]
    pub fn forward(&self, x1: &Tensor, x2: &Tensor) -> Tensor {
        let weight = self.weight.tensor();
        let [out, in1, in2] = weight.dims();
        let leading = |x: &Tensor| x.shape()[..x.rank().saturating_sub(1)].to_vec();
        let fits = x1.rank() > 0 && leading(x1) == leading(x2) && x1.size(-1) == in1 && x2.size(-1) == in2;
        if x1.rank() != x2.rank() || !fits {
            panic!(
                "Bilinear: inputs [.., {in1}] and [.., {in2}] are needed. x1: {}; x2: {}",
                x1.describe(),
                x2.describe()
            );
        }
        let shape = [leading(x1), vec![out]].concat();
        let rows = leading(x1).iter().product();
        let (a, b) = (x1.reshape([rows, in1]), x2.reshape([rows, in2]));
        // [rows, in1] x [in1, out * in2], then a sum over in2
        let left = a.matmul(&weight.transpose(0, 1).reshape([in1, out * in2])).reshape([rows, out, in2]);
        let y = left.matmul(&b.unsqueeze(-1)).squeeze(-1);
        let y = self.bias.as_ref().map_or(y.clone(), |bias| y + bias.tensor());
        y.reshape(shape)
    }

    fn extra_repr(&self) -> String {
        let (shape, bias) = (self.weight.shape(), python_bool(self.bias.is_some()));
        format!(
            "in1_features={}, in2_features={}, out_features={}, bias={bias}",
            shape[1], shape[2], shape[0]
        )
    }
}
