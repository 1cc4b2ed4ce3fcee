//! Runs a set of fixtures on a device and counts what differs from PyTorch.

use crate::compare::{Allowed, compare, tolerances};
use crate::fixtures::{Case, Fixtures};
use crate::operations::{Call, operation};
use orkest_core::{BackwardOptions, DType, Device, Generator, Tensor, with_generator};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// How a run went.
pub struct Report {
    /// How many cases ran.
    pub cases: usize,
    /// A line for every difference: case, what, error, tolerance.
    pub failures: Vec<String>,
    /// How many cases failed (one case can have several lines).
    pub failed: usize,
    /// Cases with dtypes that the device does not have, or without the gradients that were asked for.
    pub skipped: usize,
}

/// The committed set, or the folder that `ORKEST_PARITY_DIR` names (a relative one from the workspace's root).
pub fn directory() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    match std::env::var_os("ORKEST_PARITY_DIR") {
        // Tests run in their package's folder; users type paths in the workspace's.
        Some(dir) => package.parent().unwrap_or(&package).join(dir),
        None => committed(),
    }
}

/// The set in the repository.
pub fn committed() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("parity/fixtures")
}

/// How gradients are computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gradients {
    /// As in training, by kernels of their own where there are any.
    Plain,
    /// So that they have gradients themselves, hence by other formulas; from a strided gradient of the output.
    Recorded,
}

/// Runs all cases whose operation passes `filter`.
pub fn run(
    fixtures: &Fixtures,
    device: &Device,
    gradients: Gradients,
    filter: impl Fn(&Case) -> bool,
) -> Report {
    let mut report = Report { cases: 0, failures: Vec::new(), failed: 0, skipped: 0 };
    let has_f64 = device.backend().upload(&[0; 8], DType::F64).is_ok();
    for case in fixtures.cases.iter().filter(|c| filter(c)) {
        let inputs: Result<Vec<Tensor>, _> = case.inputs.iter().map(|i| fixtures.input(i, device)).collect();
        let Ok(inputs) = inputs else {
            report.skipped += 1;
            continue;
        };
        // A generator of its own: other tests draw at the same time.
        let check = || {
            with_generator(&mut Generator::new(0), || differences(fixtures, case, &inputs, device, gradients))
        };
        let found = match catch_unwind(AssertUnwindSafe(check)) {
            Ok(found) => found,
            Err(panic) => vec![format!("panic: {}", message(&*panic))],
        };
        // Some cases make f64 tensors on their way, or draw numbers of more than 32 bits.
        let lacks = |panic: &str| {
            panic.contains("f64 tensors cannot live on") || panic.contains("held as 32-bit integers")
        };
        if !found.is_empty() {
            device.clear_error(); // it would be every later case's, too
        }
        if !has_f64 && !found.is_empty() && found.iter().all(|line| lacks(line)) {
            report.skipped += 1;
            continue;
        }
        // As in PyTorch.
        let once = |panic: &str| panic.contains("its gradient cannot be differentiated again");
        if gradients == Gradients::Recorded && matches!(&found[..], [panic] if once(panic)) {
            report.skipped += 1;
            continue;
        }
        report.cases += 1;
        report.failed += usize::from(!found.is_empty());
        report.failures.extend(found.into_iter().map(|d| format!("{}: {d}", case.name)));
    }
    report
}

/// The text of a panic.
pub fn message(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (_, Some(text)) => text.to_string(),
        _ => "without a text".into(),
    }
}

fn differences(
    fixtures: &Fixtures,
    case: &Case,
    inputs: &[Tensor],
    device: &Device,
    gradients: Gradients,
) -> Vec<String> {
    let Some(operation) = operation(case.base_op()) else {
        return vec!["there is no such operation in tests/src/operations.rs".into()];
    };
    let call = Call { op: &case.op, inputs, args: &case.args, device, params: Default::default() };
    let outputs = operation(&call);
    if outputs.len() != case.outputs.len() {
        return vec![format!("{} outputs instead of {}", outputs.len(), case.outputs.len())];
    }
    let mut found = Vec::new();
    for (i, (y, expected)) in outputs.iter().zip(&case.outputs).enumerate() {
        let value = fixtures.tensor(&expected.key);
        if let Err(difference) = compare(&y.detach(), &value, allowed(case, "forward", value.dtype())) {
            found.push(format!("output {i}: {difference}"));
        }
    }
    if case.grads.is_empty() || !found.is_empty() {
        return found;
    }
    for (y, expected) in outputs.iter().zip(&case.outputs) {
        if let Some(from) = &expected.from {
            let create_graph = gradients == Gradients::Recorded;
            let mut from = fixtures.tensor(from).to(device);
            if create_graph {
                from = Tensor::stack(&[&from, &from], -1).select(-1, 0);
            }
            let options = BackwardOptions { retain_graph: true, create_graph };
            y.backward_with(Some(&from), options);
        }
    }
    for (i, (x, expected)) in inputs.iter().zip(&case.grads).enumerate() {
        if !x.requires_grad() {
            continue;
        }
        let params = call.params.borrow();
        let grad = match params.iter().find(|(input, _)| *input == i) {
            Some((_, param)) => param.grad(),
            None => x.grad(),
        };
        let actual = grad.unwrap_or_else(|| x.zeros_like());
        let expected = expected
            .as_ref()
            .map_or_else(|| x.detach().to(&Device::reference()).zeros_like(), |key| fixtures.tensor(key));
        if let Err(difference) = compare(&actual, &expected, allowed(case, "backward", expected.dtype())) {
            found.push(format!("gradient of input {i}: {difference}"));
        }
    }
    found
}

/// The table's tolerance, or the case's own.
fn allowed(case: &Case, direction: &str, dtype: DType) -> Allowed {
    if let Some(ulp) = case.tolerance["ulp"].as_u64() {
        return Allowed::Ulp(ulp);
    }
    let (forward, backward) = tolerances(dtype);
    let general = if direction == "forward" { forward } else { backward };
    Allowed::Relative(case.tolerance[direction].as_f64().map_or(general, |own| own.max(general)))
}
