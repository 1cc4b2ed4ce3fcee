//! Operations with a gradient of the user's own.

use super::no_grad;
use super::node::{Context, Gradients, Rule, Save, record};
use crate::tensor::Tensor;

/// An operation with a gradient of its own, as `torch.autograd.Function`. Run it with [`Tensor::apply`].
///
/// ```
/// use orkest_core::{Device, Function, Tensor, gradcheck};
///
/// /// x³, with its derivative written by hand.
/// struct Cube;
///
/// impl Function for Cube {
///     fn name(&self) -> &'static str {
///         "cube"
///     }
///     fn forward(&self, inputs: &[Tensor]) -> Tensor {
///         &inputs[0] * &inputs[0] * &inputs[0]
///     }
///     fn backward(&self, inputs: &[Tensor], _output: &Tensor, grad: &Tensor) -> Vec<Option<Tensor>> {
///         vec![Some(grad * inputs[0].square() * 3.0)]
///     }
/// }
///
/// let x = Tensor::new([2.0f64, -1.0], &Device::cpu()).requires_grad_(true);
/// Tensor::apply(Cube, &[&x]).sum(..).backward();
/// assert_eq!(x.grad().unwrap().to_vec::<f64>().unwrap(), [12.0, 3.0]);
/// gradcheck(|x| Tensor::apply(Cube, &[&x[0]]), &[x]).unwrap();
/// ```
pub trait Function: Send + Sync + 'static {
    /// The name in messages, profiles and printed tensors.
    fn name(&self) -> &'static str;

    /// The result. Runs without recording: what happens here has no gradient but the one [`Function::backward`] gives.
    fn forward(&self, inputs: &[Tensor]) -> Tensor;

    /// The gradient of every input, given that of the output; `None` for an input without one.
    ///
    /// Written with differentiable operations on `inputs`, `output` and `grad`, it can be differentiated again. A gradient may
    /// have the broadcast shape of its input.
    fn backward(&self, inputs: &[Tensor], output: &Tensor, grad: &Tensor) -> Vec<Option<Tensor>>;
}

impl Tensor {
    /// Runs a [`Function`] and records it, with its own gradient.
    ///
    /// # Panics
    /// In `backward`, if the function does not give one gradient per input, each of a shape that its input broadcasts to.
    #[track_caller]
    pub fn apply(function: impl Function, inputs: &[&Tensor]) -> Tensor {
        let name = function.name();
        let constants: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
        let out = no_grad(|| function.forward(&constants));
        // Under the function's own name, whatever operation came last in it.
        let mut outputs = [out.with_layout(*out.layout(), name)];
        let save: Vec<Save<'_>> = (0..inputs.len()).map(Save::Input).chain([Save::Output(0)]).collect();
        record(&mut outputs, name, inputs, &save, Applied(function));
        let [out] = outputs;
        out
    }
}

struct Applied<F>(F);

impl<F: Function> Rule for Applied<F> {
    fn backward(&self, c: &Context<'_>) -> Gradients {
        let name = self.0.name();
        let n = c.saved.len() - 1;
        let gradients = self.0.backward(&c.saved[..n], &c.saved[n], c.grad());
        assert_eq!(gradients.len(), n, "{name}: backward must give one gradient (or None) per input");
        for (i, g) in gradients.iter().enumerate() {
            if let Some(g) = g
                && c.input_shape(i).broadcast(g.shape()).as_ref() != Some(g.shape())
            {
                panic!(
                    "{name}: backward gave a gradient of shape {} for input {i} of shape {}",
                    g.shape(),
                    c.input_shape(i)
                );
            }
        }
        gradients.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BackwardOptions, Device, grad, gradcheck, gradgradcheck};

    /// x * exp(y), from its own output where that is cheapest.
    struct TimesExp;

    impl Function for TimesExp {
        fn name(&self) -> &'static str {
            "times_exp"
        }
        fn forward(&self, inputs: &[Tensor]) -> Tensor {
            &inputs[0] * inputs[1].exp()
        }
        fn backward(&self, inputs: &[Tensor], output: &Tensor, grad: &Tensor) -> Vec<Option<Tensor>> {
            vec![Some(grad * inputs[1].exp()), Some(grad * output)]
        }
    }

    /// Gives its input back, and whatever gradients it is told to.
    struct Wrong(fn(&Tensor) -> Vec<Option<Tensor>>);

    impl Function for Wrong {
        fn name(&self) -> &'static str {
            "wrong"
        }
        fn forward(&self, inputs: &[Tensor]) -> Tensor {
            inputs[0].clone()
        }
        fn backward(&self, _: &[Tensor], _: &Tensor, grad: &Tensor) -> Vec<Option<Tensor>> {
            (self.0)(grad)
        }
    }

    fn leaf(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::reference()).requires_grad_(true)
    }

    #[test]
    fn functions_have_first_and_second_gradients() {
        let inputs = [leaf(&[1.5, -2.0, 0.5]), leaf(&[0.3])];
        gradcheck(|x| Tensor::apply(TimesExp, &[&x[0], &x[1]]), &inputs).unwrap();
        gradgradcheck(|x| Tensor::apply(TimesExp, &[&x[0], &x[1]]), &inputs).unwrap();
        let out = Tensor::apply(TimesExp, &[&inputs[0], &inputs[1]]);
        assert_eq!((out.grad_op(), out.origin().0), (Some("times_exp"), "times_exp"));
        assert!(out.origin().1.file().ends_with("custom.rs"));
    }

    #[test]
    fn the_given_gradient_counts_not_the_true_one() {
        let x = leaf(&[1.0, 2.0]);
        let y = Tensor::apply(Wrong(|g| vec![Some(g * 7.0)]), &[&x]);
        assert!(y.shares_memory(&x));
        y.sum(..).backward();
        assert_eq!(x.grad().unwrap().to_vec::<f64>().unwrap(), [7.0, 7.0]);
        let none = Tensor::apply(Wrong(|_| vec![None]), &[&x]);
        assert!(grad(&[&none.sum(..)], &[&x], BackwardOptions::default())[0].is_none());
    }

    #[test]
    #[should_panic(expected = "wrong: backward must give one gradient (or None) per input")]
    fn too_few_gradients_are_refused() {
        Tensor::apply(Wrong(|_| vec![]), &[&leaf(&[1.0])]).backward();
    }

    #[test]
    #[should_panic(expected = "wrong: backward gave a gradient of shape [3] for input 0 of shape [2]")]
    fn gradients_of_other_shapes_are_refused() {
        let y = Tensor::apply(
            Wrong(|g| vec![Some(Tensor::cat(&[g, &g.narrow(0, 0, 1)], 0))]),
            &[&leaf(&[1.0, 2.0])],
        );
        y.sum(..).backward();
    }
}
