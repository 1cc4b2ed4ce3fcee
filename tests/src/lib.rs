//! What the tests of this package share, and the suite that any backend can be put through.
//!
//! - [`parity`]: runs the fixtures that `parity/generate.py` writes, through [`operations`], judged by [`compare`]
//! - [`conformance`](mod@conformance): every primitive of [`orkest_core::Op`] on a device, against the reference interpreter
//! - [`gradients`]: every differentiable operation with arguments and inputs
//! - [`methods`]: the public operations as the sources declare them, so that none goes without a test

pub mod compare;
pub mod conformance;
pub mod fixtures;
pub mod gradients;
pub mod layers;
mod linalg;
pub mod methods;
mod numerics;
pub mod operations;
pub mod parity;

/// The Rust in the pages for readers, as `build.rs` has surrounded it.
#[cfg(doctest)]
mod pages {
    include!(concat!(env!("OUT_DIR"), "/pages.rs"));
}

// Links the CPU backend: `Device::cpu()` in these tests is the real one, not the interpreter.
use orkest as _;
