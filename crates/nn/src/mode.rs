//! Training or evaluation, as a layer remembers it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a layer is in training mode. A layer that behaves differently in evaluation has one as a field, and
/// [`Module::train`](crate::Module::train) and [`Module::eval`](crate::Module::eval) switch it.
///
/// A clone is the same switch, as a clone of a model is the same model; [`Module::deep_clone`](crate::Module::deep_clone) makes a
/// switch of its own.
///
/// ```
/// use orkest_core::Tensor;
/// use orkest_nn::{Mode, Module};
///
/// #[derive(Module)]
/// struct Noise {
///     std: f64,
///     mode: Mode,
/// }
///
/// impl Noise {
///     fn forward(&self, x: &Tensor) -> Tensor {
///         if self.mode.is_training() { x + x.randn_like() * self.std } else { x.clone() }
///     }
/// }
///
/// let noise = Noise { std: 0.1, mode: Mode::new() };
/// noise.eval();
/// assert!(!noise.mode.is_training());
/// ```
#[derive(Clone, Debug)]
pub struct Mode(Arc<AtomicBool>);

impl Mode {
    /// In training mode.
    pub fn new() -> Mode {
        Mode(Arc::new(AtomicBool::new(true)))
    }

    /// True in training mode.
    pub fn is_training(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Switches to training (`true`) or evaluation (`false`).
    pub fn set_training(&self, training: bool) {
        self.0.store(training, Ordering::Relaxed);
    }

    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }
}

impl Default for Mode {
    fn default() -> Mode {
        Mode::new()
    }
}
