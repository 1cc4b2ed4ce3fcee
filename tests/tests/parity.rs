//! Orkest against PyTorch: `ORKEST_PARITY_DIR=DIR ORKEST_PARITY_DEVICE=cpu cargo test -p orkest-tests parity`.
//!
//! Without `ORKEST_PARITY_DIR` the committed set is run; `parity/generate.py` writes others.

use orkest_core::Device;
use orkest_tests::fixtures::Fixtures;
use orkest_tests::parity::{Report, committed, directory, run};
use std::io::Write;

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

fn check(report: &Report, device: &Device) {
    if report.skipped > 0 {
        say(&format!("parity: {} cases skipped, {device} does not have their dtype", report.skipped));
    }
    for failure in &report.failures {
        say(&format!("parity: {failure}"));
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
    let report = without_panic_messages(|| run(&fixtures, &device, |c| c.op.contains(&filter)));
    check(&report, &device);
}
