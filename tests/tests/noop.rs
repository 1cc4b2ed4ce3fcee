//! Every launch of the GPU backend through wgpu's validation, without any GPU: the backend "noop" checks and does nothing.

use orkest_core::Device;
use orkest_tests::conformance::launches;
use std::process::Command;

/// Set in the child processes.
const CHILD: &str = "ORKEST_TESTS_NOOP";

/// Everything the conformance suite does, on a device with all features or with none.
fn validates(test: &str, features: &str, fuse: &str) {
    if std::env::var_os(CHILD).is_some() {
        let device = Device::wgpu(0).unwrap();
        let report = launches(&device);
        println!("validated: {} launches on {:?}", report.checks, device.backend().name());
        return report.assert();
    }
    // In a process of its own: adapters are looked for once.
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .env("WGPU_BACKEND", "noop")
        .env("WGPU_NOOP_BACKEND", "1")
        .env("ORKEST_WGPU_FEATURES", features)
        .env("ORKEST_FUSE", fuse)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.contains("validated: "), "{said}");
}

#[test]
fn with_every_feature() {
    validates("with_every_feature", "all", "");
}

#[test]
fn with_no_feature() {
    validates("with_no_feature", "base", "");
}

#[test]
fn with_every_feature_and_fused() {
    validates("with_every_feature_and_fused", "all", "1");
}

#[test]
fn with_no_feature_and_fused() {
    validates("with_no_feature_and_fused", "base", "1");
}
