//! Orkest against PyTorch: `ORKEST_PARITY_DIR=DIR ORKEST_PARITY_DEVICE=cpu cargo test -p orkest-tests parity`.
//!
//! Without `ORKEST_PARITY_DIR` the committed set is run; `parity/generate.py` writes others.

use orkest_core::Device;
use orkest_tests::fixtures::{Case, Fixtures};
use orkest_tests::methods::{NOT_DIFFERENTIABLE, WITHOUT_FIXTURE, base_name, public_methods};
use orkest_tests::parity::{Gradients, Report, committed, directory, run};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

/// Past the test harness, which keeps the output of passing tests to itself.
fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").expect("standard output can be written");
}

fn without_panic_messages<R>(f: impl FnOnce() -> R) -> R {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let out = f();
    std::panic::set_hook(hook);
    out
}

fn check(report: &Report, gradients: Gradients, device: &Device) {
    if report.skipped > 0 {
        say(&format!(
            "parity: {} cases skipped, {device} does not have their dtype, numbers of their size, or {gradients:?} gradients",
            report.skipped
        ));
    }
    for failure in &report.failures {
        say(&format!("parity: {failure} ({gradients:?})"));
    }
    say(&format!("parity: {} cases, {} failed on {device}", report.cases, report.failed));
    assert!(report.cases > 0, "no case ran");
    assert_eq!(report.failed, 0, "cases failed");
}

#[test]
fn parity_with_pytorch() {
    let fixtures = Fixtures::read(&directory()).unwrap_or_else(|e| panic!("{}: {e}", directory().display()));
    let name = std::env::var("ORKEST_PARITY_DEVICE").unwrap_or_else(|_| "cpu".into());
    let device = Device::parse(&name).unwrap_or_else(|e| panic!("ORKEST_PARITY_DEVICE={name}: {e}"));
    let filter = std::env::var("ORKEST_PARITY_FILTER").unwrap_or_default();
    for gradients in [Gradients::Plain, Gradients::Recorded] {
        let report =
            without_panic_messages(|| run(&fixtures, &device, gradients, |c| c.op.contains(&filter)));
        check(&report, gradients, &device);
    }
}

/// The interpreter is the yardstick of the conformance suite, so it is held to the same cases.
#[test]
fn parity_with_pytorch_on_the_reference_device() {
    let fixtures = Fixtures::read(&committed()).expect("the committed set can be read");
    let report = without_panic_messages(|| run(&fixtures, &Device::reference(), Gradients::Plain, |_| true));
    assert!(report.cases > 600, "only {} cases ran", report.cases);
    assert_eq!(report.failures, [""; 0]);
}

#[test]
fn every_public_method_has_a_case_in_the_committed_set() {
    let fixtures = Fixtures::read(&committed()).expect("the committed set can be read");
    let mut missing = Vec::new();
    for name in public_methods() {
        if WITHOUT_FIXTURE.iter().any(|(n, _)| *n == name) {
            continue;
        }
        let of_it = fixtures.cases.iter().filter(|c| {
            c.base_op() == base_name(&name) && (name == base_name(&name) || c.args["keepdim"] == true)
        });
        let differentiable = NOT_DIFFERENTIABLE.iter().all(|(n, _)| *n != base_name(&name));
        let mut of_it = of_it.peekable();
        if of_it.peek().is_none() {
            missing.push(format!("{name}: no case"));
        } else if differentiable && !of_it.any(|c| c.grads.iter().any(Option::is_some)) {
            missing.push(format!("{name}: no case with gradients"));
        }
    }
    assert_eq!(
        missing, [""; 0],
        "add cases to tests/parity/op_cases.py and a line to tests/src/operations.rs"
    );
}

/// What `orkest_nn` exports beside layers, losses, optimizers and schedules.
const NO_LAYERS: &[&str] = &[
    "AdjustLr",
    "Anneal",
    "AnyLayer",
    "AttentionOptions",
    "BagMode",
    "CyclicMode",
    "CyclicOptions",
    "GroupState",
    "KvCache",
    "Lengths",
    "LineSearch",
    "MultiheadAttentionOptions",
    "OneCycleOptions",
    "OptionValue",
    "OptimizerState",
    "PackedSequence",
    "Padding",
    "ParamGroup",
    "ParamGroups",
    "PlateauMode",
    "RecurrentInput",
    "RecurrentOptions",
    "Reduction",
    "RnnNonlinearity",
    "Sides",
    "ThresholdMode",
    "TransformerMasks",
    "TransformerOptions",
];

/// The layers, losses, optimizers and schedules: all types that their folders export.
fn names_in_nn() -> BTreeSet<String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/nn/src");
    let mut names = BTreeSet::new();
    for folder in ["layers", "losses", "optim", "scheduler"] {
        let exports = std::fs::read_to_string(sources.join(folder).join("mod.rs"))
            .expect("the sources of nn are next to this package");
        for list in exports.split("pub use ").skip(1).filter_map(|rest| rest.split(';').next()) {
            let types =
                list.split(|c: char| !c.is_alphanumeric()).filter(|w| w.starts_with(char::is_uppercase));
            names.extend(types.filter(|name| !NO_LAYERS.contains(name)).map(String::from));
        }
    }
    names
}

#[test]
fn every_layer_loss_optimizer_and_schedule_has_a_case_in_the_committed_set() {
    let fixtures = Fixtures::read(&committed()).expect("the committed set can be read");
    let mut covered: BTreeSet<&str> = fixtures.cases.iter().map(Case::base_op).collect();
    for case in fixtures.cases.iter().filter(|c| c.op == "activations") {
        covered.extend(case.args["names"].as_array().into_iter().flatten().filter_map(|n| n.as_str()));
    }
    let names = names_in_nn();
    for expected in ["Linear", "ReLU", "GELU", "MSELoss", "SGD", "StepLR"] {
        assert!(names.contains(expected), "{expected} was not found in {names:?}");
    }
    let missing: Vec<&String> = names.iter().filter(|n| !covered.contains(n.as_str())).collect();
    assert!(missing.is_empty(), "add cases under tests/parity and tests/src/layers for {missing:?}");
}

/// A name in a list of exceptions that no longer exists would hide a method of the same name later.
#[test]
fn the_lists_of_exceptions_are_up_to_date() {
    let methods = public_methods();
    for (name, _) in NOT_DIFFERENTIABLE.iter().chain(WITHOUT_FIXTURE) {
        assert!(methods.contains(*name), "{name} is no public method");
    }
}
