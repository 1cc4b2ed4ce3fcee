//! Whether operations are recorded, and gradients looked at, per thread.

use std::cell::Cell;
use std::thread::LocalKey;

thread_local! {
    static ENABLED: Cell<bool> = const { Cell::new(true) };
    static DETECTING: Cell<bool> = const { Cell::new(false) };
}

/// True if operations on this thread are recorded for `backward`.
#[inline]
pub fn is_grad_enabled() -> bool {
    ENABLED.with(Cell::get)
}

/// Runs `f` without recording: evaluation, weight updates. Per thread, and restored if `f` panics.
///
/// ```
/// # use orkest_core::{Device, Tensor, no_grad};
/// let x = Tensor::new([1.0f32], &Device::cpu()).requires_grad_(true);
/// let y = no_grad(|| &x * 2.0);
/// assert!(!y.requires_grad());
/// ```
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    with_grad_mode(false, f)
}

/// Runs `f` with recording, inside a [`no_grad`].
pub fn enable_grad<R>(f: impl FnOnce() -> R) -> R {
    with_grad_mode(true, f)
}

fn with_grad_mode<R>(enabled: bool, f: impl FnOnce() -> R) -> R {
    let _mode = GradMode::set(enabled);
    f()
}

/// Runs `f` so that a backward pass in it panics at the first gradient with a NaN, and names the operation whose gradient it is and
/// its line: PyTorch's `torch.autograd.detect_anomaly`. Every gradient is read, so this is for finding a mistake, not for training.
///
/// ```should_panic
/// # use orkest_core::{detect_anomaly, tensor};
/// let x = tensor![0.0, 4.0].requires_grad_(true);
/// let y = x.sqrt() * tensor![0.0, 1.0]; // the slope of the root at 0 is infinite, and 0 times that is no number
/// detect_anomaly(|| y.sum(..).backward()); // "backward: the gradient of input 0 of sqrt (at src/main.rs:2) has NaN in it"
/// ```
pub fn detect_anomaly<R>(f: impl FnOnce() -> R) -> R {
    let _detecting = Switched::set(&DETECTING, true);
    f()
}

/// Are gradients looked at?
pub(crate) fn is_detecting() -> bool {
    DETECTING.with(Cell::get)
}

/// Sets whether operations are recorded until it is dropped: [`no_grad`] for libraries, in whose closures `#[track_caller]` would lose
/// the line of the program that called them.
///
/// ```
/// # use orkest_core::{GradMode, is_grad_enabled};
/// #[track_caller]
/// fn of_a_library() {
///     let _off = GradMode::set(false);
///     assert!(!is_grad_enabled()); // what panics here names the caller's line
/// }
/// of_a_library();
/// assert!(is_grad_enabled());
/// ```
#[derive(Debug)]
pub struct GradMode(#[expect(dead_code, reason = "it works when it is dropped")] Switched);

impl GradMode {
    /// Records operations on this thread, or does not, until the result is dropped.
    #[must_use]
    pub fn set(enabled: bool) -> GradMode {
        GradMode(Switched::set(&ENABLED, enabled))
    }
}

/// Gives a switch back its position when it is dropped.
#[derive(Debug)]
struct Switched {
    switch: &'static LocalKey<Cell<bool>>,
    before: bool,
}

impl Switched {
    fn set(switch: &'static LocalKey<Cell<bool>>, on: bool) -> Switched {
        Switched { switch, before: switch.with(|s| s.replace(on)) }
    }
}

impl Drop for Switched {
    fn drop(&mut self) {
        self.switch.with(|s| s.set(self.before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_that_is_no_number_is_traced_to_its_operation() {
        let x = crate::tensor![0.0, 4.0].requires_grad_(true);
        let (y, line) = (x.sqrt(), line!());
        let loss = (y * crate::tensor![0.0, 1.0]).sum(..);
        let panic = std::panic::catch_unwind(|| detect_anomaly(|| loss.backward())).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        let expected =
            format!("backward: the gradient of input 0 of sqrt (at {}:{line}) has NaN in it", file!());
        assert!(text.starts_with(&expected), "{text}");
        assert!(!is_detecting());
        x.sqrt().sum(..).backward(); // outside nobody looks
    }

    #[test]
    fn the_mode_comes_back_after_a_panic() {
        let _ = std::panic::catch_unwind(|| no_grad(|| panic!("inside")));
        assert!(is_grad_enabled());
        no_grad(|| assert!(enable_grad(is_grad_enabled)));
    }
}
