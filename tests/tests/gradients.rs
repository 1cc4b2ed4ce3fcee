//! Every differentiable operation against finite differences, in f64: its gradient, and the gradient of its gradient.

use orkest_core::op::Unary;
use orkest_core::{BackwardOptions, Device, Tensor, grad, gradcheck, gradgradcheck};
use orkest_tests::gradients::entries;
use orkest_tests::methods::{NOT_DIFFERENTIABLE, base_name, public_methods};
use orkest_tests::operations::{Call, operation};

fn check(what: &str, run: impl Fn(&dyn Fn(&[Tensor]) -> Vec<Tensor>, &[Tensor]) -> Result<(), String>) {
    let device = Device::cpu();
    let mut failures = Vec::new();
    for (name, args, inputs) in entries() {
        let f = operation(name).unwrap_or_else(|| panic!("no operation {name}"));
        let call = |inputs: &[Tensor]| {
            f(&Call { op: name, inputs, args: &args, device: &device, params: Default::default() })
        };
        let shapes: Vec<_> = inputs.iter().map(|t| t.shape().to_string()).collect();
        if let Err(error) = run(&call, &inputs) {
            failures.push(format!("{name}({}) with {args}: {error}", shapes.join(", ")));
        }
    }
    assert!(failures.is_empty(), "{what}:\n{}", failures.join("\n"));
}

#[test]
fn gradients_are_those_of_finite_differences() {
    check("gradcheck", |f, inputs| gradcheck(f, inputs));
}

#[test]
fn gradients_of_gradients_are_those_of_finite_differences() {
    check("gradgradcheck", |f, inputs| gradgradcheck(f, inputs));
}

#[test]
fn every_differentiable_method_has_an_entry() {
    // `unary` is what the functions of one element are made of; the others are what they are named after, in other memory
    // (`memory.rs` compares gradients), or checked in core for every loss.
    let skipped = ["unary", "into_unary", "into_dropout", "element_loss"];
    let entries: Vec<_> =
        entries().into_iter().map(|(name, args, _)| (name, args["keepdim"] == true)).collect();
    let missing: Vec<String> = public_methods()
        .into_iter()
        .filter(|name| !skipped.contains(&name.as_str()))
        .filter(|name| NOT_DIFFERENTIABLE.iter().all(|(n, _)| *n != base_name(name)))
        .filter(|name| {
            let kept = name != base_name(name);
            !entries.iter().any(|(n, keepdim)| *n == base_name(name) && (*keepdim || !kept))
        })
        .collect();
    assert_eq!(missing, [""; 0], "add entries to the tables of tests/src/gradients.rs");
}

/// The other way round: what is listed as not differentiable must not record a gradient that nobody checks.
#[test]
fn functions_without_gradient_give_results_without_history() {
    let x = Tensor::new([[1.5, -0.5, 0.0], [2.0, -1.0, 0.7]], &Device::cpu()).requires_grad_(true);
    for y in [
        x.eq(0),
        x.isnan(),
        x.logical_not(),
        x.argmax(0),
        x.argsort(0, true),
        x.any(0),
        x.zeros_like(),
        x.rand_like(),
    ] {
        assert!(!y.requires_grad(), "{}", y.describe());
    }
    assert!(!x.unique().unwrap().0.requires_grad());
    assert!(!x.nonzero().unwrap().requires_grad());
    assert!(!x.unary(Unary::IsInf).requires_grad());
}

/// PyTorch's numbers: nothing passes at a limit itself, and nothing for NaN.
#[test]
fn clamp_passes_no_gradient_at_its_limits() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let values = [-inf, -1.0, 0.0, 0.5, 1.0, 6.0, inf, nan];
    type Clamp = fn(&Tensor) -> Tensor;
    let cases: [(Clamp, [f32; 8]); 3] = [
        (|x| x.clamp(0, 1), [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
        (|x| x.clamp_min(0), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]),
        (|x| x.clamp_max(1), [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
    ];
    for device in [Some(Device::cpu()), Device::wgpu(0).ok(), Some(Device::reference())].into_iter().flatten()
    {
        for (clamp, expected) in cases {
            for create_graph in [false, true] {
                let x = Tensor::new(values, &device).requires_grad_(true);
                let options = BackwardOptions { create_graph, ..Default::default() };
                let gradient = grad(&[&clamp(&x).sum(..)], &[&x], options)[0].clone().unwrap();
                assert_eq!(gradient.to_vec::<f32>().unwrap(), expected, "on {device}");
            }
        }
    }
}
