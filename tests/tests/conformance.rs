//! The CPU backend in the suite that any backend must pass, and the suite's own completeness.

use orkest_core::Device;
use orkest_tests::conformance::{FUSED, primitives};
use std::collections::BTreeSet;

orkest_tests::conformance!(Device::cpu());

/// The variants of `Op` as its source declares them, in order.
fn variants() -> Vec<String> {
    let source = include_str!("../../crates/core/src/op.rs");
    let body = source.split("pub enum Op {").nth(1).expect("op.rs declares Op");
    let body = body.split("\n}").next().unwrap_or_default();
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    lines
        .filter(|line| line.starts_with(char::is_uppercase))
        .map(|line| line.chars().take_while(|c| c.is_alphanumeric()).collect())
        .collect()
}

#[test]
fn the_suite_executes_every_operation() {
    let variants = variants();
    assert!(variants.len() > 35, "only {variants:?}");
    let mut covered: BTreeSet<String> = primitives(&Device::reference()).variants;
    covered.extend(FUSED.iter().map(|(name, _)| name.to_string()));
    let missing: Vec<&String> = variants.iter().filter(|v| !covered.contains(*v)).collect();
    assert!(missing.is_empty(), "add trials to tests/src/conformance for {missing:?}");
    let unknown: Vec<&String> = covered.iter().filter(|v| !variants.contains(v)).collect();
    assert!(unknown.is_empty(), "Op has no {unknown:?}");
}

/// The interpreter is the oracle of the comparisons; what was written down by hand holds for it too.
#[test]
fn the_reference_passes_its_own_suite() {
    orkest_tests::conformance::run(&Device::reference()).assert();
}
