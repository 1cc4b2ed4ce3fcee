//! Gradients against finite differences.

use super::engine::{BackwardOptions, grad_from};
use crate::dtype::DType;
use crate::tensor::Tensor;

/// Step of the central differences, as in PyTorch.
const EPS: f64 = 1e-6;
/// Absolute and relative tolerance, as in PyTorch.
const ATOL: f64 = 1e-5;
const RTOL: f64 = 1e-3;

/// What a checked function may return: one tensor or several.
pub trait Outputs {
    /// As a list.
    fn into_list(self) -> Vec<Tensor>;
}

impl Outputs for Tensor {
    fn into_list(self) -> Vec<Tensor> {
        vec![self]
    }
}

impl Outputs for Vec<Tensor> {
    fn into_list(self) -> Vec<Tensor> {
        self
    }
}

impl Outputs for (Tensor, Tensor) {
    fn into_list(self) -> Vec<Tensor> {
        vec![self.0, self.1]
    }
}

/// Compares the gradients of `f` with central differences (step 1e-6, tolerances 1e-5 absolute and 1e-3 relative).
///
/// Float inputs are converted to f64 and checked, whether they require a gradient or not; others are passed on. Float outputs
/// are each multiplied with fixed weights and summed; others are ignored. Inputs should lie away from kinks, where differences mean
/// nothing, and on a device that has f64.
///
/// ```
/// # use orkest_core::{Device, Tensor, gradcheck};
/// let x = Tensor::new([0.5f64, -1.5], &Device::cpu());
/// gradcheck(|x| x[0].tanh(), &[x.clone()]).unwrap();
/// assert!(gradcheck(|x| &x[0] * x[0].detach(), &[x]).is_err());
/// ```
///
/// # Errors
/// A message that names output, input, element, and both values where they disagree most. A missing gradient counts as zero.
pub fn gradcheck<O: Outputs>(f: impl Fn(&[Tensor]) -> O, inputs: &[Tensor]) -> Result<(), String> {
    check("gradcheck", &|x| f(x).into_list(), inputs)
}

/// Compares the gradients of `f`'s gradients with central differences, as [`gradcheck`].
///
/// What is checked is the map from inputs and output gradients to input gradients.
///
/// # Errors
/// A message that names output (the number of the float input whose gradient it is), input (numbers beyond `inputs` are gradients of
/// outputs), element, and both values.
pub fn gradgradcheck<O: Outputs>(f: impl Fn(&[Tensor]) -> O, inputs: &[Tensor]) -> Result<(), String> {
    let mut all = in_f64(inputs);
    let outputs = differentiable(f(&leaves(&all)).into_list());
    if outputs.is_empty() {
        return Err("gradgradcheck: no output requires a gradient".into());
    }
    for (i, y) in outputs.iter().enumerate() {
        all.push(Tensor::from_slice(&weights(y.numel(), i as u64 + 100), *y.shape(), y.device()));
    }
    let gradients = |x: &[Tensor]| {
        let (x, from) = x.split_at(inputs.len());
        let x = leaves(x);
        let wanted: Vec<&Tensor> = x.iter().filter(|t| t.requires_grad()).collect();
        let outputs = differentiable(f(&x).into_list());
        let from: Vec<Option<&Tensor>> = from.iter().map(Some).collect();
        let options = BackwardOptions { create_graph: true, ..Default::default() };
        let gradients = grad_from(&outputs.iter().collect::<Vec<_>>(), &from, &wanted, options);
        gradients.into_iter().zip(wanted).map(|(g, x)| g.unwrap_or_else(|| x.zeros_like())).collect()
    };
    check("gradgradcheck", &gradients, &all)
}

fn check(name: &str, f: &dyn Fn(&[Tensor]) -> Vec<Tensor>, inputs: &[Tensor]) -> Result<(), String> {
    let inputs = in_f64(inputs);
    let checked: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].dtype().is_float()).collect();
    if checked.is_empty() {
        return Err(format!("{name}: there is no float input to check"));
    }
    let base = projections(f(&inputs))?;
    // Bits, so that NaN equals itself.
    if projections(f(&inputs))?.iter().map(|v| v.to_bits()).ne(base.iter().map(|v| v.to_bits())) {
        return Err(format!("{name}: the function gives different results for the same inputs"));
    }
    let analytic = analytic_gradients(f, &inputs, &checked)?;

    let mut wrong = 0;
    let mut worst: Option<(f64, String)> = None;
    for (slot, &i) in checked.iter().enumerate() {
        let values = host(&inputs[i])?;
        for e in 0..values.len() {
            let at = |step: f64| {
                let mut moved = values.clone();
                moved[e] += step;
                let mut inputs = inputs.clone();
                inputs[i] = Tensor::from_slice(&moved, *inputs[i].shape(), inputs[i].device());
                projections(f(&inputs))
            };
            for (o, (up, down)) in at(EPS)?.into_iter().zip(at(-EPS)?).enumerate() {
                let numeric = (up - down) / (2.0 * EPS);
                let gradient = analytic[o][slot].as_ref().map(|g| g[e]);
                let difference = (numeric - gradient.unwrap_or(0.0)).abs();
                if difference <= ATOL + RTOL * numeric.abs() {
                    continue;
                }
                wrong += 1;
                // A NaN is as bad as can be.
                let size = if difference.is_nan() { f64::INFINITY } else { difference };
                if worst.as_ref().is_none_or(|(w, _)| size > *w) {
                    let element = position(e, inputs[i].shape());
                    let gradient = gradient.map_or("missing".into(), |g| g.to_string());
                    let place = format!("output {o}, input {i}, element {element:?}");
                    worst = Some((size, format!("{place}: numeric {numeric}, analytic {gradient}")));
                }
            }
        }
    }
    match worst {
        Some((_, message)) => Err(format!("{name}: {message} (the worst of {wrong})")),
        None => Ok(()),
    }
}

/// For every float output and checked input the gradient of the weighted sum, if there is one.
fn analytic_gradients(
    f: &dyn Fn(&[Tensor]) -> Vec<Tensor>,
    inputs: &[Tensor],
    checked: &[usize],
) -> Result<Vec<Vec<Option<Vec<f64>>>>, String> {
    let leaves = leaves(inputs);
    let wanted: Vec<&Tensor> = checked.iter().map(|&i| &leaves[i]).collect();
    let mut all = Vec::new();
    for (o, y) in floats(f(&leaves)).iter().enumerate() {
        if !y.requires_grad() {
            all.push(vec![None; checked.len()]);
            continue;
        }
        let from = Tensor::from_slice(&weights(y.numel(), o as u64), *y.shape(), y.device());
        let options = BackwardOptions { retain_graph: true, ..Default::default() };
        let gradients = grad_from(&[y], &[Some(&from)], &wanted, options);
        for (g, x) in gradients.iter().zip(&wanted) {
            if let Some(g) = g
                && g.shape() != x.shape()
            {
                return Err(format!(
                    "the gradient of an input of shape {} has shape {}",
                    x.shape(),
                    g.shape()
                ));
            }
        }
        all.push(gradients.iter().map(|g| g.as_ref().map(host).transpose()).collect::<Result<_, _>>()?);
    }
    Ok(all)
}

fn in_f64(inputs: &[Tensor]) -> Vec<Tensor> {
    let convert = |t: &Tensor| if t.dtype().is_float() { t.detach().to_dtype(DType::F64) } else { t.clone() };
    inputs.iter().map(convert).collect()
}

/// Float inputs as leaves, unless they have a history already.
fn leaves(inputs: &[Tensor]) -> Vec<Tensor> {
    let leaf = |t: &Tensor| {
        if t.dtype().is_float() && !t.requires_grad() { t.clone().requires_grad_(true) } else { t.clone() }
    };
    inputs.iter().map(leaf).collect()
}

fn floats(mut outputs: Vec<Tensor>) -> Vec<Tensor> {
    outputs.retain(|t| t.dtype().is_float());
    outputs
}

fn differentiable(mut outputs: Vec<Tensor>) -> Vec<Tensor> {
    outputs.retain(Tensor::requires_grad);
    outputs
}

/// The weighted sum of each float output.
fn projections(outputs: Vec<Tensor>) -> Result<Vec<f64>, String> {
    let project = |(o, y): (usize, &Tensor)| {
        let values = host(y)?;
        Ok(values.iter().zip(weights(values.len(), o as u64)).map(|(v, w)| v * w).sum())
    };
    floats(outputs).iter().enumerate().map(project).collect()
}

fn host(t: &Tensor) -> Result<Vec<f64>, String> {
    t.detach().to_dtype(DType::F64).to_vec::<f64>().map_err(|e| e.to_string())
}

/// Fixed numbers of magnitude 0.5 to 1.5 and either sign, without visible pattern (the SplitMix64 sequence).
fn weights(n: usize, stream: u64) -> Vec<f64> {
    let mut state = stream.wrapping_mul(0xd134_2543_de82_ef95);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..n)
        .map(|_| {
            let bits = next();
            let magnitude = 0.5 + (bits >> 12) as f64 / (1u64 << 52) as f64;
            if bits & 1 == 0 { magnitude } else { -magnitude }
        })
        .collect()
}

fn position(mut e: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for d in (0..shape.len()).rev() {
        at[d] = e % shape[d];
        e /= shape[d];
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Function;
    use crate::{Device, no_grad};
    use std::cell::Cell;

    fn x(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::reference())
    }

    /// x², with a derivative that is right, or wrong in one element only.
    struct Square {
        wrong: bool,
    }

    impl Function for Square {
        fn name(&self) -> &'static str {
            "square"
        }
        fn forward(&self, inputs: &[Tensor]) -> Tensor {
            inputs[0].square()
        }
        fn backward(&self, inputs: &[Tensor], _: &Tensor, grad: &Tensor) -> Vec<Option<Tensor>> {
            let factor = Tensor::new([2.0f64, if self.wrong { 2.1 } else { 2.0 }], inputs[0].device());
            vec![Some(grad * &inputs[0] * factor)]
        }
    }

    #[test]
    fn right_gradients_pass() {
        gradcheck(|x| Tensor::apply(Square { wrong: false }, &[&x[0]]), &[x(&[1.0, 2.0])]).unwrap();
        gradgradcheck(|x| Tensor::apply(Square { wrong: false }, &[&x[0]]), &[x(&[1.0, 2.0])]).unwrap();
        let two = |x: &[Tensor]| vec![&x[0] * &x[1], x[0].exp()];
        gradcheck(two, &[x(&[1.0, 2.0]), x(&[3.0])]).unwrap();
        gradgradcheck(two, &[x(&[1.0, 2.0]), x(&[3.0])]).unwrap();
    }

    #[test]
    fn a_wrong_element_is_named() {
        let error =
            gradcheck(|x| Tensor::apply(Square { wrong: true }, &[&x[0]]), &[x(&[1.0, 2.0])]).unwrap_err();
        assert!(error.starts_with("gradcheck: output 0, input 0, element [1]: numeric "), "{error}");
        assert!(error.ends_with("(the worst of 1)"), "{error}");
    }

    #[test]
    fn a_gradient_that_was_cut_is_noticed() {
        let error = gradcheck(|x| &x[0] + x[1].detach(), &[x(&[1.0]), x(&[2.0])]).unwrap_err();
        assert!(error.contains("input 1") && error.contains("analytic missing"), "{error}");
        let error = gradcheck(|x| no_grad(|| x[0].exp()), &[x(&[1.0])]).unwrap_err();
        assert!(error.contains("analytic missing"), "{error}");
        // An input without influence is fine.
        gradcheck(|x| x[0].exp(), &[x(&[1.0]), x(&[2.0])]).unwrap();
    }

    #[test]
    fn a_second_gradient_that_was_cut_is_noticed() {
        struct Cut;
        impl Function for Cut {
            fn name(&self) -> &'static str {
                "cut"
            }
            fn forward(&self, inputs: &[Tensor]) -> Tensor {
                inputs[0].square()
            }
            fn backward(&self, inputs: &[Tensor], _: &Tensor, grad: &Tensor) -> Vec<Option<Tensor>> {
                vec![Some(grad * inputs[0].detach() * 2.0)]
            }
        }
        gradcheck(|x| Tensor::apply(Cut, &[&x[0]]), &[x(&[1.0, 2.0])]).unwrap();
        let error = gradgradcheck(|x| Tensor::apply(Cut, &[&x[0]]), &[x(&[1.0, 2.0])]).unwrap_err();
        assert!(error.starts_with("gradgradcheck: output 0, input 0"), "{error}");
    }

    #[test]
    fn functions_that_are_none_are_refused() {
        let calls = Cell::new(0.0);
        let error = gradcheck(
            |x| {
                calls.set(calls.get() + 1.0);
                &x[0] * calls.get()
            },
            &[x(&[1.0])],
        );
        assert!(error.unwrap_err().contains("different results"));
        let error = gradcheck(|x| x[0].clone(), &[Tensor::new([1i64], &Device::reference())]);
        assert!(error.unwrap_err().contains("no float input"));
        assert!(gradcheck(|x| &x[0] * f64::NAN, &[x(&[1.0])]).is_err());
    }
}
