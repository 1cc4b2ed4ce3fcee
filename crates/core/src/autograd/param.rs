//! Parameters: tensors that a model and its optimizer share.

use super::hooks::HookHandle;
use super::node::{History, Leaf};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

/// A trainable tensor, shared by everyone who clones it.
///
/// A model and an optimizer hold the same parameter; moving a model or loading weights replaces the value inside, so that an
/// optimizer built earlier stays valid. Using one parameter in two places of a model is weight tying.
#[derive(Clone)]
pub struct Param(Arc<Shared>);

// The value is replaced whole or changed under a lock that shrugs off poisoning.
impl std::panic::UnwindSafe for Param {}
impl std::panic::RefUnwindSafe for Param {}

struct Shared {
    leaf: Arc<Leaf>,
    requires_grad: AtomicBool,
    value: RwLock<Tensor>,
}

impl Param {
    /// A parameter with this value.
    pub fn new(value: Tensor) -> Param {
        Param(Arc::new(Shared {
            leaf: Arc::new(Leaf::new()),
            requires_grad: AtomicBool::new(true),
            value: RwLock::new(value.detach()),
        }))
    }

    /// The value, as a leaf whose gradient is collected here.
    pub fn tensor(&self) -> Tensor {
        let value = self.0.value.read().unwrap_or_else(PoisonError::into_inner);
        if self.requires_grad() {
            value.with_history(History::Leaf(self.0.leaf.clone()))
        } else {
            value.clone()
        }
    }

    /// The value as a constant.
    pub fn value(&self) -> Tensor {
        self.0.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the value.
    pub fn set_value(&self, value: &Tensor) {
        let _old = std::mem::replace(&mut *self.write(), value.detach());
    }

    /// Changes the value in place: written where it lies if nothing else shares its memory, else copied first.
    pub fn update<R>(&self, f: impl FnOnce(&mut Tensor) -> R) -> R {
        f(&mut self.write())
    }

    /// The value, to be changed until the guard is dropped: [`Param::update`] without a closure, in which `#[track_caller]` would lose
    /// the line of the program. Whoever reads the parameter meanwhile waits.
    pub fn write(&self) -> RwLockWriteGuard<'_, Tensor> {
        self.0.value.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the value (and the gradient, if there is one) to a device.
    ///
    /// # Errors
    /// If the device cannot hold it.
    pub fn to_device(&self, device: &Device) -> Result<()> {
        let moved = self.value().try_to(device)?;
        if let Some(grad) = self.grad() {
            self.set_grad(Some(grad.detach().try_to(device)?));
        }
        self.set_value(&moved);
        Ok(())
    }

    /// The collected gradient.
    pub fn grad(&self) -> Option<Tensor> {
        self.0.leaf.grad()
    }

    /// Replaces the collected gradient.
    pub fn set_grad(&self, grad: Option<Tensor>) {
        self.0.leaf.set_grad(grad);
    }

    /// Forgets the collected gradient.
    pub fn zero_grad(&self) {
        self.set_grad(None);
    }

    /// Calls `hook` with the gradient of every backward pass, see [`Tensor::register_hook`].
    pub fn register_hook(
        &self,
        hook: impl Fn(&Tensor) -> Option<Tensor> + Send + Sync + 'static,
    ) -> HookHandle {
        self.0.leaf.hooks().add(Arc::new(hook))
    }

    /// Whether gradients are collected.
    pub fn requires_grad(&self) -> bool {
        self.0.requires_grad.load(Ordering::Relaxed)
    }

    /// Freezes (`false`) or unfreezes the parameter.
    pub fn set_requires_grad(&self, requires_grad: bool) {
        self.0.requires_grad.store(requires_grad, Ordering::Relaxed);
    }

    /// The name a model gave it, e.g. `fc2.weight`; the first one sticks.
    pub fn name(&self) -> Option<&str> {
        self.0.leaf.name()
    }

    /// Gives it the name that messages use.
    pub fn set_name(&self, name: &str) {
        self.0.leaf.set_name(name);
    }

    /// True if both are the same shared parameter.
    pub fn is(&self, other: &Param) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A number that identifies this parameter while it lives.
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// The value's sizes.
    pub fn shape(&self) -> Shape {
        *self.0.value.read().unwrap_or_else(PoisonError::into_inner).shape()
    }

    /// The value's dtype.
    pub fn dtype(&self) -> DType {
        self.value().dtype()
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape().numel()
    }
}

impl fmt::Debug for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Param({:?}, {} {})", self.name().unwrap_or("unnamed"), self.dtype(), self.shape())
    }
}
