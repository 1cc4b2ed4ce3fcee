//! Functions that are called when something passes by: a gradient, or a layer's input and output.

use super::node::{Context, Gradients, History, Rule, record};
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

/// The same tensors, whose gradients go through `hook` together: it is called once in a backward pass, when all that will come have
/// come, with `None` for a tensor that nothing depended on. What it gives (if it gives something) takes their place.
///
/// A tensor that requires no gradient has none.
///
/// ```
/// # use orkest_core::{joint_hook, tensor};
/// let (a, b) = (tensor![1.0].requires_grad_(true), tensor![2.0].requires_grad_(true));
/// let both = joint_hook(&[&a, &b], |grads| Some(vec![grads[1].clone(), grads[0].clone()]));
/// (&both[0] * 3.0 + &both[1] * 5.0).sum(..).backward();
/// assert_eq!(a.grad().unwrap().to_vec::<f32>().unwrap(), [5.0]);
/// assert_eq!(b.grad().unwrap().to_vec::<f32>().unwrap(), [3.0]);
/// ```
///
/// # Panics
/// In `backward`, if the hook gives another number of gradients, or one of another shape.
#[track_caller]
pub fn joint_hook(
    tensors: &[&Tensor],
    hook: impl Fn(&[Option<Tensor>]) -> Option<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Vec<Tensor> {
    let fresh = |t: &&Tensor| t.with_layout(*t.layout(), "joint_hook");
    let mut passed: Vec<Tensor> = tensors.iter().map(fresh).collect();
    record(&mut passed, "joint_hook", tensors, &[], Joint(hook));
    let constant = |(t, passed): (&&Tensor, Tensor)| if t.requires_grad() { passed } else { (*t).clone() };
    tensors.iter().zip(passed).map(constant).collect()
}

struct Joint<F>(F);

impl<F> Rule for Joint<F>
where
    F: Fn(&[Option<Tensor>]) -> Option<Vec<Option<Tensor>>> + Send + Sync + 'static,
{
    fn backward(&self, context: &Context<'_>) -> Gradients {
        let Some(replaced) = (self.0)(context.grads) else { return context.grads.iter().cloned().collect() };
        assert!(
            replaced.len() == context.grads.len(),
            "joint_hook: a hook gave {} gradients for {} tensors",
            replaced.len(),
            context.grads.len()
        );
        for (i, grad) in replaced.iter().enumerate() {
            if let Some(grad) = grad
                && grad.shape() != context.input_shape(i)
            {
                panic!(
                    "joint_hook: a hook gave a gradient of shape {} for tensor {i} of shape {}",
                    grad.shape(),
                    context.input_shape(i)
                );
            }
        }
        replaced.into()
    }
}

#[cfg(test)]
mod tests {
    use crate::{BackwardOptions, Device, Param, Tensor, grad, joint_hook};
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

    #[test]
    fn a_joint_hook_sees_all_gradients_at_once() {
        // torch: the same with a BackwardHookFunction of a, b and c
        let (a, b, c) = (leaf(&[1.0, 2.0]), leaf(&[3.0, 4.0]), leaf(&[5.0, 6.0]));
        let constant = leaf(&[7.0, 8.0]).detach();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let list = seen.clone();
        let all = joint_hook(&[&a, &constant, &b, &c], move |grads| {
            list.lock().unwrap().push(grads.iter().map(|g| g.as_ref().map(values)).collect::<Vec<_>>());
            None
        });
        assert_eq!([all[0].requires_grad(), all[1].requires_grad()], [true, false]);
        let y = &all[0] * 2.0 * &all[1] + all[2].square();
        y.sum(..).backward();
        let expected = vec![Some(vec![14.0, 16.0]), None, Some(vec![6.0, 8.0]), None];
        assert_eq!(*seen.lock().unwrap(), [expected]);
        assert_eq!(values(&a.grad().unwrap()), [14.0, 16.0]);
        assert!(c.grad().is_none());
    }

    #[test]
    #[should_panic(expected = "joint_hook: a hook gave 1 gradients for 2 tensors")]
    fn a_joint_hook_gives_as_many_gradients() {
        let x = leaf(&[1.0]);
        let both = joint_hook(&[&x, &x], |grads| Some(vec![grads[0].clone()]));
        (&both[0] + &both[1]).sum(..).backward();
    }
}
