//! Whether operations are recorded, per thread.

use std::cell::Cell;

thread_local! {
    static ENABLED: Cell<bool> = const { Cell::new(true) };
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

/// Sets whether operations are recorded until it is dropped. Inside the library this is used instead of [`no_grad`]: a closure
/// would hide the user's line from `#[track_caller]`.
pub(crate) struct GradMode {
    before: bool,
}

impl GradMode {
    #[must_use]
    pub fn set(enabled: bool) -> GradMode {
        GradMode { before: ENABLED.with(|e| e.replace(enabled)) }
    }
}

impl Drop for GradMode {
    fn drop(&mut self) {
        ENABLED.with(|e| e.set(self.before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_comes_back_after_a_panic() {
        let _ = std::panic::catch_unwind(|| no_grad(|| panic!("inside")));
        assert!(is_grad_enabled());
        no_grad(|| assert!(enable_grad(is_grad_enabled)));
    }
}
