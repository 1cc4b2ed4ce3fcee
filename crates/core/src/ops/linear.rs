//! The affine map of a fully connected layer.

use super::elementwise::unary_grad;
use crate::autocast::low_precision;
use crate::autograd::{Context, GradMode, Gradients, Save, is_grad_enabled};
use crate::dispatch::run_fused;
use crate::grads;
use crate::op::{Op, Unary};
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::borrow::Cow;

impl Tensor {
    /// `x @ weightᵀ + bias`, as PyTorch's
    /// [`linear`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.linear.html).
    ///
    /// # Shapes
    /// - input: `[.., in_features]`
    /// - `weight`: `[out_features, in_features]`
    /// - `bias`: `[out_features]`
    /// - output: `[.., out_features]`
    ///
    /// # Panics
    /// If the shapes do not fit or a dtype is not a float.
    #[track_caller]
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let operands = Operands::new("linear", self, weight, bias);
        let y = {
            let _off = GradMode::set(false);
            operands.run(None)
        };
        let has_bias = bias.is_some();
        y.recorded("linear", &operands.refs(), &[Save::Input(0), Save::Input(1)], move |c| {
            gradients(c, c.grad(), has_bias)
        })
    }

    /// `activation(x @ weightᵀ + bias)`: in one pass over memory, unless the gradient needs what goes into the activation (as that of
    /// `gelu`, and not of `relu`); then as [`Tensor::linear`] followed by it.
    ///
    /// # Shapes
    /// As [`Tensor::linear`].
    ///
    /// # Panics
    /// As [`Tensor::linear`].
    #[track_caller]
    pub fn linear_act(&self, weight: &Tensor, bias: Option<&Tensor>, activation: Unary) -> Tensor {
        let operands = Operands::new("linear", self, weight, bias);
        let records = is_grad_enabled() && operands.refs().iter().any(|t| t.requires_grad());
        if activation.is_test() || (records && !activation.grad_uses_output()) {
            return self.linear(weight, bias).into_unary(activation);
        }
        let y = {
            let _off = GradMode::set(false);
            operands.run(Some(activation))
        };
        let (has_bias, save) = (bias.is_some(), [Save::Input(0), Save::Input(1), Save::Output(0)]);
        y.recorded("linear", &operands.refs(), &save, move |c| {
            gradients(c, &unary_grad(activation, c.saved(2), c.grad()), has_bias)
        })
    }
}

/// Those of input, weight and bias, given that of what the activation got.
#[track_caller]
fn gradients(c: &Context<'_>, g: &Tensor, has_bias: bool) -> Gradients {
    let (x, weight) = (c.saved(0), c.saved(1));
    let dx = c.needs(0).then(|| g.matmul(weight));
    let dw = c.needs(1).then(|| as_matrix(g).t().matmul(&as_matrix(x)));
    let mut gradients = grads![dx, dw];
    if has_bias {
        gradients.push(Some(g.clone())); // The engine sums over the leading dimensions.
    }
    gradients
}

/// Checked, and of one dtype.
struct Operands<'a> {
    x: Cow<'a, Tensor>,
    weight: Cow<'a, Tensor>,
    bias: Option<Cow<'a, Tensor>>,
}

impl<'a> Operands<'a> {
    #[track_caller]
    fn new(op: &str, x: &'a Tensor, weight: &'a Tensor, bias: Option<&'a Tensor>) -> Operands<'a> {
        let describe = || {
            let bias = bias.map_or(String::new(), |b| format!("; bias: {}", b.describe()));
            format!("input: {}; weight: {}{bias}", x.describe(), weight.describe())
        };
        for t in [Some(x), Some(weight), bias].into_iter().flatten() {
            t.require_float(op);
        }
        if x.rank() == 0 || weight.rank() != 2 {
            panic!(
                "{op}: input [.., in_features] and weight [out_features, in_features] are needed. {}",
                describe()
            );
        }
        let [out_features, in_features] = weight.dims();
        if x.size(-1) != in_features {
            panic!(
                "{op}: the input has {} features, the weight takes {in_features}. {}",
                x.size(-1),
                describe()
            );
        }
        if bias.is_some_and(|b| *b.shape() != [out_features]) {
            panic!("{op}: the bias must have shape [{out_features}]. {}", describe());
        }
        let mut dtype = low_precision(x.dtype()).promote(low_precision(weight.dtype()));
        if let Some(b) = bias {
            dtype = dtype.promote(low_precision(b.dtype()));
        }
        Operands {
            x: x.as_dtype(dtype),
            weight: weight.as_dtype(dtype),
            bias: bias.map(|b| b.as_dtype(dtype)),
        }
    }

    fn refs(&self) -> SmallVec<[&Tensor; 3]> {
        [Some(&*self.x), Some(&*self.weight), self.bias.as_deref()].into_iter().flatten().collect()
    }

    #[track_caller]
    fn run(&self, activation: Option<Unary>) -> Tensor {
        let shape = self.x.shape().with(self.x.rank() - 1, self.weight.size(0));
        let op = Op::Linear { bias: self.bias.is_some(), activation };
        if let Some([y]) = run_fused("linear", op, &self.refs(), [(shape, self.x.dtype())]) {
            return y;
        }
        let mut y = self.x.matmul(&self.weight.t());
        if let Some(bias) = &self.bias {
            y += &**bias;
        }
        match activation {
            Some(activation) => y.unary(activation),
            None => y,
        }
    }
}

/// All leading dimensions as one.
fn as_matrix(x: &Tensor) -> Tensor {
    let columns = x.size(-1);
    let rows: usize = x.shape()[..x.rank() - 1].iter().product();
    x.with_shape([rows, columns].into())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, assert_with_gradients, everywhere, wave};
    use crate::op::Unary;
    use crate::{DType, Tensor, gradcheck, gradgradcheck, no_grad};

    #[test]
    fn linear_is_pytorchs() {
        everywhere(|| {
            let (x, w, b) = (wave([2, 2, 3], 0.0), wave([2, 3], 1.0), wave(2, 2.0));
            assert_with_gradients(
                &x.linear(&w, Some(&b)),
                &[&x, &w, &b],
                &[1.576288, 0.479588, -0.418417, 0.072199, -0.761386, -1.084149, 0.974049, -1.550907],
                &[
                    &[
                        0.256145, 1.012216, -0.516982, -0.463742, -0.924285, 0.70192, 0.640545, 0.774978,
                        -0.840248, -0.774814, -0.57421, 0.922781,
                    ],
                    &[-0.337991, 0.529615, 0.201515, 0.230303, 0.394306, -0.331911],
                    &[-0.314539, 0.423744],
                ],
            );
        });
    }

    #[test]
    fn a_single_row_needs_no_batch() {
        everywhere(|| {
            let (x, w, b) = (wave(3, 0.0), wave([2, 3], 1.0), wave(2, 2.0));
            assert_with_gradients(
                &x.linear(&w, Some(&b)),
                &[&x, &w, &b],
                &[1.576288, 0.479588],
                &[
                    &[0.256145, 1.012216, -0.516982],
                    &[0.0, 0.475429, -0.122513, 0.0, 0.801757, -0.206604],
                    &[0.479426, 0.808496],
                ],
            );
            assert_with_gradients(
                &x.linear(&w, None),
                &[&x, &w],
                &[0.666991, 1.009424],
                &[&[0.256145, 1.012216, -0.516982], &[0.0, 0.475429, -0.122513, 0.0, 0.801757, -0.206604]],
            );
        });
    }

    #[test]
    fn an_activation_gives_the_same_with_and_without_a_graph() {
        everywhere(|| {
            let (x, w, b) = (wave([2, 2, 3], 0.0), wave([2, 3], 1.0), wave(2, 2.0));
            let expected =
                [1.485684, 0.328154, -0.14135, 0.038177, -0.169951, -0.150859, 0.813315, -0.093771];
            assert_close(&no_grad(|| x.linear_act(&w, Some(&b), Unary::Gelu)), &expected);
            let y = x.linear_act(&w, Some(&b), Unary::Gelu);
            assert!(y.requires_grad());
            assert_close(&y, &expected);
        });
    }

    #[test]
    fn operands_meet_in_the_wider_dtype_and_gradients_go_back() {
        everywhere(|| {
            let (x, w) =
                (wave([2, 3], 0.0), wave([2, 3], 1.0).detach().to_dtype(DType::F32).requires_grad_(true));
            let y = x.linear(&w, None);
            assert_eq!(y.dtype(), DType::F64);
            y.sum(..).backward();
            assert_eq!(w.grad().unwrap().dtype(), DType::F32);
        });
    }

    #[test]
    fn an_empty_batch_is_a_batch() {
        everywhere(|| {
            let (x, w) = (wave([0, 3], 0.0), wave([2, 3], 1.0));
            let y = x.linear(&w, None);
            assert_eq!(*y.shape(), [0, 2]);
            y.sum(..).backward();
            assert_close(&w.grad().unwrap(), &[0.0; 6]);
        });
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        everywhere(|| {
            let inputs = [wave([2, 2, 3], 0.0), wave([2, 3], 1.0), wave(2, 2.0)];
            let linear = |t: &[Tensor]| t[0].linear_act(&t[1], Some(&t[2]), Unary::Tanh);
            gradcheck(linear, &inputs).unwrap();
            gradgradcheck(linear, &inputs).unwrap();
        });
    }

    #[test]
    #[should_panic(expected = "linear: the input has 4 features, the weight takes 3. input: f64 [2, 4]")]
    fn features_that_differ_are_named() {
        wave([2, 4], 0.0).linear(&wave([2, 3], 0.0), None);
    }
}
