//! Functions that are called when something passes by: a gradient, or a layer's input and output.

use super::node::History;
use crate::tensor::Tensor;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Functions in the order in which they were added.
pub struct Hooks<F: ?Sized> {
    list: Arc<Mutex<List<F>>>,
}

struct List<F: ?Sized> {
    next_id: u64,
    hooks: Vec<(u64, Arc<F>)>,
}

impl<F: ?Sized + Send + Sync + 'static> Hooks<F> {
    /// Adds a function; it stays until its handle is dropped.
    pub fn add(&self, hook: Arc<F>) -> HookHandle {
        let mut list = self.lock();
        let id = list.next_id;
        list.next_id += 1;
        list.hooks.push((id, hook));
        let weak = Arc::downgrade(&self.list);
        HookHandle {
            remove: Some(Box::new(move || {
                let Some(list) = weak.upgrade() else { return };
                let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
                let place = list.hooks.iter().position(|(other, _)| *other == id);
                let removed = place.map(|i| list.hooks.remove(i));
                drop(list); // what the function holds may have hooks of its own
                drop(removed);
            })),
        }
    }

    /// The functions that are there now.
    pub fn current(&self) -> Vec<Arc<F>> {
        self.lock().hooks.iter().map(|(_, hook)| hook.clone()).collect()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.lock().hooks.is_empty()
    }
}

impl<F: ?Sized> Hooks<F> {
    fn lock(&self) -> MutexGuard<'_, List<F>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: ?Sized> Default for Hooks<F> {
    fn default() -> Self {
        Hooks { list: Arc::new(Mutex::new(List { next_id: 0, hooks: Vec::new() })) }
    }
}

impl<F: ?Sized> Clone for Hooks<F> {
    /// The same functions: who adds one to the clone adds it here.
    fn clone(&self) -> Self {
        Hooks { list: self.list.clone() }
    }
}

impl<F: ?Sized> fmt::Debug for Hooks<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hooks({})", self.lock().hooks.len())
    }
}

/// Takes a hook away when it is dropped. [`HookHandle::forever`] leaves the hook where it is.
#[must_use = "the hook is removed when its handle is dropped; .forever() leaves it"]
pub struct HookHandle {
    remove: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl HookHandle {
    /// Takes the hook away now.
    pub fn remove(self) {}

    /// Leaves the hook as long as what it watches.
    pub fn forever(mut self) {
        self.remove = None;
    }
}

impl Drop for HookHandle {
    fn drop(&mut self) {
        if let Some(remove) = self.remove.take() {
            remove();
        }
    }
}

impl fmt::Debug for HookHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookHandle")
    }
}

/// A function of a gradient, which may give another one to go on with.
pub(crate) type GradHook = dyn Fn(&Tensor) -> Option<Tensor> + Send + Sync;

/// Lets every hook see the gradient that the one before left.
#[track_caller]
pub(crate) fn run_hooks(hooks: &Hooks<GradHook>, grad: Tensor) -> Tensor {
    hooks.current().iter().fold(grad, |grad, hook| match hook(&grad) {
        None => grad,
        Some(other) => {
            assert!(
                other.shape() == grad.shape(),
                "register_hook: a hook gave a gradient of shape {} for one of shape {}",
                other.shape(),
                grad.shape()
            );
            other.to_dtype(grad.dtype()).to(grad.device())
        }
    })
}

impl Tensor {
    /// Calls `hook` with this tensor's gradient in every backward pass, once it is complete; what the hook gives (if it gives
    /// something) takes its place.
    ///
    /// ```
    /// # use orkest_core::tensor;
    /// let x = tensor![1.0, 2.0].requires_grad_(true);
    /// let y = &x * 3.0;
    /// let halved = y.register_hook(|grad| Some(grad / 2.0));
    /// y.sum(..).backward();
    /// assert_eq!(x.grad().unwrap().to_vec::<f32>().unwrap(), [1.5, 1.5]);
    /// halved.remove();
    /// ```
    ///
    /// # Panics
    /// If the tensor does not require a gradient; in `backward`, if the hook gives a gradient of another shape.
    #[track_caller]
    pub fn register_hook(
        &self,
        hook: impl Fn(&Tensor) -> Option<Tensor> + Send + Sync + 'static,
    ) -> HookHandle {
        let hook: Arc<GradHook> = Arc::new(hook);
        match self.history() {
            History::None => {
                panic!("register_hook: this tensor requires no gradient. tensor: {}", self.describe())
            }
            History::Leaf(leaf) => leaf.hooks().add(hook),
            History::Node(node, output) => node.hooks(*output).add(hook),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{BackwardOptions, Device, Param, Tensor, grad};
    use std::sync::{Arc, Mutex};

    fn leaf(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::reference()).requires_grad_(true)
    }

    fn values(t: &Tensor) -> Vec<f64> {
        t.to_vec().unwrap()
    }

    #[test]
    fn a_hook_sees_the_whole_gradient_once() {
        // torch: x.register_hook and y.register_hook print [5.] and [1.] once each
        let seen = Arc::new(Mutex::new(Vec::new()));
        let see = |name: &'static str| {
            let seen = seen.clone();
            move |g: &Tensor| {
                seen.lock().unwrap().push((name, values(g)));
                None
            }
        };
        let x = leaf(&[2.0]);
        let y = &x * 3.0 + &x * 2.0;
        let _handles = [x.register_hook(see("x")), y.register_hook(see("y"))];
        y.sum(..).backward();
        assert_eq!(*seen.lock().unwrap(), [("y", vec![1.0]), ("x", vec![5.0])]);
        assert_eq!(values(&x.grad().unwrap()), [5.0]);
    }

    #[test]
    fn hooks_change_gradients_in_their_order_until_removed() {
        let x = leaf(&[2.0]);
        let run = || {
            x.zero_grad();
            x.square().sum(..).backward();
            values(&x.grad().unwrap())[0]
        };
        let first = x.register_hook(|g| Some(g + 1.0));
        let second = x.register_hook(|g| Some(g * 10.0));
        assert_eq!(run(), 50.0);
        first.remove();
        assert_eq!(run(), 40.0);
        drop(second);
        assert_eq!(run(), 4.0);
        x.register_hook(|g| Some(-g)).forever();
        assert_eq!(run(), -4.0);
    }

    #[test]
    fn grad_gives_what_the_hooks_leave() {
        let x = leaf(&[3.0]);
        let y = x.square();
        let _double = y.register_hook(|g| Some(g * 2.0));
        let _negate = x.register_hook(|g| Some(-g));
        let z = y.sum(..);
        let options = BackwardOptions { retain_graph: true, ..Default::default() };
        let grads = grad(&[&z], &[&y, &x], options);
        assert_eq!(values(grads[0].as_ref().unwrap()), [2.0]);
        assert_eq!(values(grads[1].as_ref().unwrap()), [-12.0]);
        assert!(x.grad().is_none());
    }

    #[test]
    fn parameters_have_hooks_too() {
        let param = Param::new(Tensor::new([2.0], &Device::reference()));
        let _hooks =
            [param.register_hook(|g| Some(g * 100.0)), param.tensor().register_hook(|g| Some(g + 1.0))];
        (param.tensor() * 3.0).sum(..).backward();
        assert_eq!(values(&param.grad().unwrap()), [301.0]);
    }

    #[test]
    #[should_panic = "a hook gave a gradient of shape [2] for one of shape [1]"]
    fn a_gradient_of_another_shape_is_refused() {
        let x = leaf(&[1.0]);
        let _hook = x.register_hook(|_| Some(leaf(&[1.0, 2.0])));
        x.sum(..).backward();
    }
}
