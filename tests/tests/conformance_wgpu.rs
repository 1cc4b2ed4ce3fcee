//! The GPU backend in the suite that any backend must pass.

use orkest_core::Device;
use orkest_tests::conformance::{Report, errors, fused, literals, primitives, public_operations, turn};

/// The first adapter, if there is one. With `ORKEST_REQUIRE_GPU=1` there must be.
fn check(part: fn(&Device) -> Report) {
    let _turn = turn();
    match Device::wgpu(0) {
        Ok(device) => {
            let report = part(&device);
            println!("gpu: {} operations on {:?}", report.variants.len(), device.backend().name());
            report.assert();
        }
        Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(_) => println!("skipped: no adapter"),
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
