//! Gradients of fused operations through their lowerings.
//!
//! A fused operation has a kernel for its gradient, but a kernel leaves no history: when the backward pass is itself recorded,
//! or the backend has no such kernel, the gradient is taken through the lowering instead.

use crate::autograd::{BackwardOptions, enable_grad, grad_from, is_grad_enabled};
use crate::dtype::DType;
use crate::grads;
use crate::tensor::Tensor;

/// The gradients of `lowering(inputs)` given that of its result, one per input; `None` for inputs that want none.
///
/// While recording is on they carry the history that gradients of gradients need.
#[track_caller]
pub(crate) fn by_lowering(
    inputs: &[&Tensor],
    lowering: impl Fn(&[Tensor]) -> Tensor,
    grad: &Tensor,
) -> Vec<Option<Tensor>> {
    by_lowering_of_many(inputs, |t| vec![lowering(t)], &[Some(grad)])
}

/// [`by_lowering`] for an operation with several results, each with its gradient if there is one.
#[track_caller]
pub(crate) fn by_lowering_of_many(
    inputs: &[&Tensor],
    lowering: impl Fn(&[Tensor]) -> Vec<Tensor>,
    grads: &[Option<&Tensor>],
) -> Vec<Option<Tensor>> {
    let create_graph = is_grad_enabled();
    let aliases: Vec<Tensor> = inputs.iter().map(|t| alias(t, create_graph)).collect();
    let wanted: Vec<&Tensor> = aliases.iter().filter(|t| t.requires_grad()).collect();
    let results = enable_grad(|| lowering(&aliases));
    let (outputs, grads): (Vec<&Tensor>, Vec<Option<&Tensor>>) =
        results.iter().zip(grads.iter().copied()).filter(|(y, g)| y.requires_grad() && g.is_some()).unzip();
    if outputs.is_empty() {
        return vec![None; inputs.len()];
    }
    let options = BackwardOptions { create_graph, ..Default::default() };
    let mut gradients = grad_from(&outputs, &grads, &wanted, options).into_iter();
    aliases.iter().map(|t| if t.requires_grad() { gradients.next().flatten() } else { None }).collect()
}

/// The same tensor as a place of its own in the graph, so that an operation that got one tensor twice has two gradients.
#[track_caller]
fn alias(tensor: &Tensor, create_graph: bool) -> Tensor {
    if !tensor.requires_grad() {
        tensor.clone()
    } else if create_graph {
        tensor.detach().recorded("alias", &[tensor], &[], |c| grads![c.grad().clone()])
    } else {
        tensor.detach().requires_grad_(true)
    }
}

/// The dtype in which statistics over many elements of `dtype` are kept.
pub(crate) fn wide(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Tensor, grad, no_grad};

    /// x²y, with a gradient that only knows the lowering.
    fn square_times(x: &Tensor, y: &Tensor) -> Tensor {
        use crate::autograd::Save;
        let lowering = |t: &[Tensor]| &t[0] * &t[0] * &t[1];
        let out = no_grad(|| lowering(&[x.clone(), y.clone()]));
        out.recorded("square_times", &[x, y], &[Save::Input(0), Save::Input(1)], move |c| {
            by_lowering(&[c.saved(0), c.saved(1)], lowering, c.grad()).into()
        })
    }

    fn leaf(value: f64) -> Tensor {
        Tensor::new([value], Device::reference()).requires_grad_(true)
    }

    #[test]
    fn gradients_of_every_order_flow_through_the_lowering() {
        let (x, y) = (leaf(3.0), leaf(5.0));
        let create = BackwardOptions { create_graph: true, ..Default::default() };
        let first = grad(&[&square_times(&x, &y)], &[&x, &y], create);
        let dx = first[0].clone().unwrap(); // 2xy
        let dy = first[1].clone().unwrap(); // x²
        assert_eq!((dx.item().unwrap(), dy.item().unwrap()), (30.0, 9.0));
        let second = grad(&[&dx], &[&x, &y], create);
        assert_eq!(second[0].clone().unwrap().item().unwrap(), 10.0); // 2y
        assert_eq!(second[1].clone().unwrap().item().unwrap(), 6.0); // 2x
        let third = grad(&[second[0].as_ref().unwrap()], &[&y], Default::default());
        assert_eq!(third[0].clone().unwrap().item().unwrap(), 2.0);
    }

    #[test]
    fn one_tensor_given_twice_collects_both_gradients() {
        let x = leaf(2.0);
        square_times(&x, &x).backward();
        assert_eq!(x.grad().unwrap().item().unwrap(), 12.0); // d x³ = 3x²
    }

    #[test]
    fn inputs_without_gradient_get_none() {
        let (x, y) = (leaf(3.0), leaf(5.0).detach());
        let out = by_lowering(&[&x, &y], |t| &t[0] * &t[1], &Tensor::new([1.0f64], Device::reference()));
        assert_eq!(out[0].clone().unwrap().item().unwrap(), 5.0);
        assert!(out[1].is_none());
    }

    #[test]
    fn kernels_run_where_there_are_some_and_lowerings_where_a_graph_is_wanted() {
        use super::super::testing::{device, launched, wave};
        let passes = |create_graph| {
            let x = wave([4, 3], 0.0);
            let w = wave([3], 1.0);
            let target = Tensor::new([0i64, 1, 2, 0], device());
            let outputs = [
                x.layer_norm(3, Some(&w), Some(&w), 1e-5),
                x.layer_norm(3, None, None, 1e-5),
                x.rms_norm(3, Some(&w), None),
                x.rms_norm(3, None, None),
                x.cross_entropy_rows(&target, -100, 0.0),
                x.scaled_dot_product_attention(&x, &x, None, 0.0, true, None),
            ];
            for y in outputs {
                grad(&[&y.sum(..)], &[&x], BackwardOptions { create_graph, ..Default::default() });
            }
        };
        let forward = ["layer_norm", "layer_norm", "rms_norm", "rms_norm", "cross_entropy", "attention"]
            .map(String::from);
        let backward = forward.clone().map(|name| format!("{name}_grad"));
        assert_eq!(launched(|| passes(false)), [forward.clone(), backward].concat());
        assert_eq!(launched(|| passes(true)), forward);
    }
}
