//! The GPU backend in the suite that any backend must pass.

use orkest_core::Device;
use orkest_tests::conformance::{Report, errors, fused, literals, primitives, public_operations, turn};
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// How many parts there are.
const PARTS: usize = 5;

/// How many parts have run, and the operations they ran.
static DONE: Mutex<(usize, BTreeSet<String>)> = Mutex::new((0, BTreeSet::new()));

/// Past the test harness, which keeps the output of passing tests to itself.
fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "\n{line}").expect("standard output can be written");
}

/// The first adapter, if there is one. With `ORKEST_REQUIRE_GPU=1` there must be.
fn check(part: fn(&Device) -> Report) {
    let _turn = turn();
    match Device::wgpu(0) {
        Ok(device) => {
            let report = part(&device);
            report.assert();
            let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
            done.0 += 1;
            done.1.extend(report.variants);
            if done.0 == PARTS {
                let name = device.backend().name();
                say(&format!(
                    "gpu: {} ops on {:?}",
                    done.1.len(),
                    name.strip_prefix("wgpu: ").unwrap_or(name)
                ));
            }
        }
        Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(_) => say("skipped: no adapter"),
    }
}

#[test]
fn primitives_equal_the_reference() {
    check(primitives);
}

#[test]
fn literal_values_are_right() {
    check(literals);
}

#[test]
fn fused_operations_equal_their_lowerings() {
    check(fused);
}

#[test]
fn public_operations_equal_pytorch() {
    check(public_operations);
}

#[test]
fn errors_are_reported() {
    check(errors);
}
