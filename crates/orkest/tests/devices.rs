//! A program that names nothing but `orkest` runs on the optimised backend.

use orkest::prelude::*;

#[test]
fn the_cpu_backend_is_linked() {
    // Announced at link time: a linker that drops the crate because nothing calls it would leave the interpreter.
    let expected = if cfg!(feature = "cpu") { "cpu" } else { "reference" };
    assert_eq!(Device::cpu().kind(), expected);
    assert_eq!(tensor![1.0].device().kind(), expected);
}
