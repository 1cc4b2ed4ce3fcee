//! The suite that makes a backend a backend.
//!
//! ```ignore
//! // tests/conformance.rs of a crate with a backend of its own
//! orkest_tests::conformance!(orkest_core::Device::open("mine", 0).unwrap());
//! ```
//!
//! `ORKEST_CONFORMANCE_SEED=n` draws other operands.
//!
//! - [`primitives`]: every primitive of [`Op`](orkest_core::Op) is executed on the device and on the reference interpreter, on random
//!   shapes, dtypes and memory layouts (transposed, with steps, reversed, broadcast), with NaN and infinities, into new and into
//!   given outputs, and the results are compared.
//!   [`primitives_beside`] does the same with two devices.
//! - [`literals`]: values written down by hand, so that interpreter and backend cannot be wrong together.
//! - [`fused`]: what the device may compute in one pass equals its lowering, forward and backward.
//! - [`public_operations`]: the fixtures of PyTorch's results, through the methods of `Tensor`.
//! - [`errors`]: indices out of range are reported; memory goes up and down unchanged; threads may use the device together.

mod draw;
mod errors;
mod exactness;
mod fused;
mod literals;
mod primitives;

pub use draw::Draw;
pub use errors::errors;
pub use exactness::{Exactness, TABLE, exactness_table};
pub use fused::{FUSED, fused};
pub use literals::literals;
pub use primitives::{primitives, primitives_beside, unary_functions};

use crate::fixtures::Fixtures;
use crate::parity;
use orkest_core::{DType, Device};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How a device did.
#[derive(Default)]
pub struct Report {
    /// How many comparisons were made.
    pub checks: usize,
    /// What differed.
    pub failures: Vec<String>,
    /// The variants of [`Op`](orkest_core::Op) that were executed directly.
    pub variants: BTreeSet<String>,
}

impl Report {
    fn check(&mut self, what: impl FnOnce() -> String, result: Result<(), String>) {
        self.checks += 1;
        if let Err(difference) = result {
            self.failures.push(format!("{}: {difference}", what()));
        }
    }

    /// Adds another report to this one.
    pub fn add(&mut self, other: Report) {
        self.checks += other.checks;
        self.failures.extend(other.failures);
        self.variants.extend(other.variants);
    }

    /// Panics with the failures, if there are any, or if nothing was checked.
    ///
    /// # Panics
    /// If the device failed.
    pub fn assert(&self) {
        let shown: Vec<&str> = self.failures.iter().take(40).map(String::as_str).collect();
        let (failed, checks) = (self.failures.len(), self.checks);
        assert!(self.failures.is_empty(), "{failed} of {checks} checks failed:\n{}", shown.join("\n"));
        assert!(checks > 0, "nothing was checked");
    }
}

/// The whole suite.
pub fn run(device: &Device) -> Report {
    let mut report = primitives(device);
    for part in [literals, fused, public_operations, errors] {
        report.add(part(device));
    }
    report
}

/// Everything of [`primitives`] and [`fused`] is executed on the device, and nothing looked at: for a device that only checks what
/// it is asked to do.
pub fn launches(device: &Device) -> Report {
    let mut report = primitives::launched_primitives(device);
    report.add(fused::launched_fused(device));
    report
}

/// The committed fixtures on this device.
///
/// # Panics
/// If they cannot be read.
pub fn public_operations(device: &Device) -> Report {
    let fixtures =
        Fixtures::read(&parity::committed()).unwrap_or_else(|e| panic!("the committed fixtures: {e}"));
    let found = parity::run(&fixtures, device, parity::Gradients::Plain, |_| true);
    Report { checks: found.cases, failures: found.failures, ..Report::default() }
}

/// What the random operands are drawn from: `ORKEST_CONFORMANCE_SEED`, or the same number every time.
fn seed() -> u64 {
    std::env::var("ORKEST_CONFORMANCE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7)
}

/// The dtypes that the device can hold: a GPU may lack f64.
fn dtypes(device: &Device) -> Vec<DType> {
    DType::ALL.iter().copied().filter(|d| device.backend().upload(&[0; 8][..d.size()], *d).is_ok()).collect()
}

/// Held by one test of a device at a time: where bad indices are found only later, every reader hears of them.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tests that put a device through the suite: `conformance!(Device::cpu());`
#[macro_export]
macro_rules! conformance {
    ($device:expr) => {
        #[test]
        fn primitives_equal_the_reference() {
            let _turn = $crate::conformance::turn();
            $crate::conformance::primitives(&$device).assert();
        }

        #[test]
        fn literal_values_are_right() {
            let _turn = $crate::conformance::turn();
            $crate::conformance::literals(&$device).assert();
        }

        #[test]
        fn fused_operations_equal_their_lowerings() {
            let _turn = $crate::conformance::turn();
            $crate::conformance::fused(&$device).assert();
        }

        #[test]
        fn public_operations_equal_pytorch() {
            let _turn = $crate::conformance::turn();
            $crate::conformance::public_operations(&$device).assert();
        }

        #[test]
        fn errors_are_reported() {
            let _turn = $crate::conformance::turn();
            $crate::conformance::errors(&$device).assert();
        }
    };
}
