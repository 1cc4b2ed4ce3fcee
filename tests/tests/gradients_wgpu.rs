//! Every differentiable operation on the GPU: its gradient, and the gradient of its gradient, against those of the CPU in f64, which
//! are themselves compared with finite differences in `gradients.rs`.

use orkest_core::{BackwardOptions, DType, Device, Tensor, grad};
use orkest_tests::compare::{Allowed, compare, tolerances};
use orkest_tests::gradients::entries;
use orkest_tests::operations::{Call, Operation, operation};
use serde_json::Value;

/// The first adapter. With `ORKEST_REQUIRE_GPU=1` there must be one.
fn gpu() -> Option<Device> {
    match Device::wgpu(0) {
        Ok(device) => Some(device),
        Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(_) => {
            println!("skipped: no adapter");
            None
        }
    }
}

/// One operation with its arguments.
struct Function<'a> {
    name: &'a str,
    call: Operation,
    args: Value,
}

/// Float results, the gradients of the float inputs, and the gradients of these; `None` where there is none.
struct Derivatives {
    results: Vec<Tensor>,
    first: Vec<Option<Tensor>>,
    second: Vec<Option<Tensor>>,
}

/// The sum of all elements, each times a number of its own.
fn weighted_sum(tensors: &[&Tensor]) -> Tensor {
    let weight = |i: usize| 0.5 + (i as f64 * 0.618_033_988_75 + 0.2).fract();
    let project = |(stream, t): (usize, &&Tensor)| {
        let weights: Vec<f64> = (0..t.numel()).map(|i| weight(i + 31 * stream)).collect();
        let weights = Tensor::from_slice(&weights, *t.shape(), &Device::cpu());
        (*t * weights.to_dtype(t.dtype()).to(t.device())).sum(..)
    };
    let sums: Vec<Tensor> = tensors.iter().enumerate().map(project).collect();
    sums.into_iter().reduce(|a, b| a + b).expect("there is something to add up")
}

impl Function<'_> {
    /// With floats of this dtype, on this device.
    fn derivatives(&self, inputs: &[Tensor], dtype: DType, device: &Device) -> Derivatives {
        let place = |t: &Tensor| match t.dtype().is_float() {
            true => t.to_dtype(dtype).to(device).requires_grad_(true),
            false => t.to(device),
        };
        let inputs: Vec<Tensor> = inputs.iter().map(place).collect();
        let leaves: Vec<&Tensor> = inputs.iter().filter(|t| t.requires_grad()).collect();
        let mut results = (self.call)(&Call {
            op: self.name,
            inputs: &inputs,
            args: &self.args,
            device,
            params: Default::default(),
        });
        results.retain(|t| t.dtype().is_float());
        let differentiable = |tensors: &[Tensor]| -> Vec<Tensor> {
            tensors.iter().filter(|t| t.requires_grad()).cloned().collect()
        };
        let gradients = |of: &[Tensor], options: BackwardOptions| match of {
            [] => vec![None; leaves.len()],
            of => grad(&[&weighted_sum(&of.iter().collect::<Vec<_>>())], &leaves, options),
        };
        let options = BackwardOptions { create_graph: true, ..Default::default() };
        let first = gradients(&differentiable(&results), options);
        let again: Vec<Tensor> = first.iter().flatten().cloned().collect();
        let second = gradients(&differentiable(&again), BackwardOptions::default());
        Derivatives { results, first, second }
    }
}

fn same(
    what: &str,
    actual: &[Option<Tensor>],
    expected: &[Option<Tensor>],
    limit: f64,
) -> Result<(), String> {
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        match (a, e) {
            (None, None) => {}
            (Some(a), Some(e)) => {
                let (a, e) = (a.detach().to(&Device::cpu()).to_dtype(DType::F64), e.detach());
                compare(&a, &e, Allowed::Relative(limit)).map_err(|e| format!("{what} of input {i}: {e}"))?;
            }
            _ => return Err(format!("{what} of input {i}: there on one device only")),
        }
    }
    Ok(())
}

/// All entries with floats of one dtype on the GPU, within `times` the usual tolerances.
fn check(dtype: DType, times: f64) {
    let Some(gpu) = gpu() else { return };
    let cpu = Device::cpu();
    let (forward, backward) = tolerances(dtype);
    let mut failures = Vec::new();
    let mut compared = 0;
    for (name, args, inputs) in entries() {
        if name == "to_dtype" {
            continue; // to f64, which the device does not have
        }
        let call = operation(name).unwrap_or_else(|| panic!("no operation {name}"));
        let function = Function { name, call, args };
        // Both devices get the same numbers.
        let round = |t: &Tensor| {
            if t.dtype().is_float() { t.to_dtype(dtype).to_dtype(DType::F64) } else { t.clone() }
        };
        let inputs: Vec<Tensor> = inputs.iter().map(round).collect();
        let actual = function.derivatives(&inputs, dtype, &gpu);
        let expected = function.derivatives(&inputs, DType::F64, &cpu);
        let results =
            |d: &Derivatives| -> Vec<Option<Tensor>> { d.results.iter().cloned().map(Some).collect() };
        compared += expected.first.iter().flatten().count();
        // Rounded states are fed back through time.
        let times = if name == "recurrent" { 2.0 * times } else { times };
        let outcome = same("result", &results(&actual), &results(&expected), forward * times)
            .and_then(|()| same("gradient", &actual.first, &expected.first, backward * times))
            .and_then(|()| same("second gradient", &actual.second, &expected.second, 2.0 * backward * times));
        if let Err(error) = outcome {
            let shapes: Vec<String> = inputs.iter().map(|t| t.shape().to_string()).collect();
            failures.push(format!("{name}({}) with {}: {error}", shapes.join(", "), function.args));
        }
    }
    assert!(failures.is_empty(), "{dtype}:\n{}", failures.join("\n"));
    assert!(compared > 200, "only {compared} gradients");
}

#[test]
fn gradients_in_f32_are_those_of_the_cpu_in_f64() {
    check(DType::F32, 1.0);
}

#[test]
fn gradients_in_f16_are_those_of_the_cpu_in_f64() {
    check(DType::F16, 2.0);
}

#[test]
fn gradients_in_bf16_are_those_of_the_cpu_in_f64() {
    check(DType::BF16, 2.0);
}
