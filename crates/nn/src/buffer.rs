//! Buffers: tensors that belong to a model but are not trained.

use orkest_core::Tensor;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// State of a model that is not trained: running statistics, tables, masks. It moves with the model and is saved with it.
///
/// Shared by everyone who clones it, as a [`Param`](crate::Param) is.
#[derive(Clone)]
pub struct Buffer(Arc<Shared>);

struct Shared {
    value: RwLock<Tensor>,
    persistent: bool,
}

impl Buffer {
    /// A buffer that is part of the state dict.
    pub fn new(value: Tensor) -> Buffer {
        Buffer(Arc::new(Shared { value: RwLock::new(value.detach()), persistent: true }))
    }

    /// A buffer that moves with the model but is not saved: a table that can be computed again.
    pub fn non_persistent(value: Tensor) -> Buffer {
        Buffer(Arc::new(Shared { value: RwLock::new(value.detach()), persistent: false }))
    }

    /// The value, a constant.
    pub fn tensor(&self) -> Tensor {
        self.0.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the value.
    pub fn set(&self, value: &Tensor) {
        self.update(|old| *old = value.detach());
    }

    /// Changes the value, in place where nothing else shares its memory.
    pub fn update<R>(&self, f: impl FnOnce(&mut Tensor) -> R) -> R {
        f(&mut self.0.value.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// True if it is part of the state dict.
    pub fn is_persistent(&self) -> bool {
        self.0.persistent
    }

    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.tensor();
        write!(f, "Buffer({} {})", value.dtype(), value.shape())
    }
}
