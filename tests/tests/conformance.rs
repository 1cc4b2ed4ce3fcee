//! The CPU backend in the suite that any backend must pass, and the suite's own completeness.

use orkest_core::op::Binary;
use orkest_core::reference::Reference;
use orkest_core::{Backend, Buffer, DType, Device, Layout, Op, Output, Result, View};
use orkest_tests::conformance::{FUSED, exactness_table, primitives};
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

/// The interpreter with a mistake that is easily made.
struct Faulty(Fault);

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Functions of one element read their input as if it were row-major.
    IgnoresStrides,
    /// The larger of two numbers is the smaller.
    ConfusesOperations,
    /// Results that should go into given memory go to its start.
    IgnoresTheTarget,
}

const FAULTS: [Fault; 3] = [Fault::IgnoresStrides, Fault::ConfusesOperations, Fault::IgnoresTheTarget];

orkest_core::register_backend!("faulty", open_faulty);

fn open_faulty(index: usize) -> Result<Box<dyn Backend>> {
    Ok(Box::new(Faulty(FAULTS[index])))
}

impl Backend for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }
    fn upload(&self, bytes: &[u8], dtype: DType) -> Result<Buffer> {
        Reference.upload(bytes, dtype)
    }
    fn allocate(&self, len: usize, dtype: DType) -> Result<Buffer> {
        Reference.allocate(len, dtype)
    }
    fn download(&self, view: View<'_>) -> Result<Vec<u8>> {
        Reference.download(view)
    }
    fn execute(&self, op: &Op, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
        match (op, self.0) {
            (Op::Unary(_), Fault::IgnoresStrides) => {
                let plain = Layout::contiguous(*inputs[0].layout.shape());
                let fits = inputs[0].buffer.size() >= plain.numel() * inputs[0].dtype.size();
                Reference.execute(
                    op,
                    &[View { layout: if fits { &plain } else { inputs[0].layout }, ..inputs[0] }],
                    outputs,
                )
            }
            (Op::Binary(Binary::Maximum), Fault::ConfusesOperations) => {
                Reference.execute(&Op::Binary(Binary::Minimum), inputs, outputs)
            }
            (Op::Copy, Fault::IgnoresTheTarget) => {
                outputs[0].layout = Layout::contiguous(*outputs[0].layout.shape());
                Reference.execute(op, inputs, outputs)
            }
            _ => Reference.execute(op, inputs, outputs),
        }
    }
}

/// A suite that passes whatever a backend does would be worth nothing.
#[test]
fn backends_with_mistakes_fail() {
    for (i, op) in ["Unary", "Binary(Maximum)", "Copy"].iter().enumerate() {
        let report = primitives(&Device::open("faulty", i).unwrap());
        assert!(!report.failures.is_empty(), "mistake {i} was not found");
        assert!(report.failures.iter().all(|f| f.starts_with(op)), "{:?}", report.failures);
    }
}

#[test]
fn the_manual_has_the_table_of_exactness() {
    let page = include_str!("../../docs/numerics.md").replace('\r', "");
    let table = exactness_table();
    assert!(page.contains(&table), "docs/numerics.md should have:\n{table}");
}

/// The manual promises a backend in under 300 lines.
#[test]
fn the_tiny_backend_is_tiny() {
    let lines = include_str!("tiny_backend.rs").lines().count();
    assert!(lines < 300, "tiny_backend.rs has {lines} lines");
}
