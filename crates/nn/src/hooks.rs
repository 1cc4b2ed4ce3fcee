//! Watching what goes into and comes out of a layer.
//!
//! `forward` is a plain method that a model calls, so nothing stands between the caller and a layer, and nothing has to: a layer that
//! is to be watched is wrapped. The wrapper is invisible in state dicts and printed models.

use crate::{Layer, Module, Rebuild, Visitor};
use orkest_core::{Function, HookHandle, Hooks, Tensor, is_grad_enabled};
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// A layer with hooks: functions that see its inputs, outputs and gradients, and may replace them.
///
/// It has the names and the text of the layer inside, so weights fit with and without it.
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{Hooked, Layer, Linear, Module};
/// use std::sync::{Arc, Mutex};
///
/// #[derive(Module)]
/// struct Net {
///     fc1: Hooked<Linear>,
///     fc2: Linear,
/// }
///
/// let net = Net { fc1: Hooked::new(Linear::new(4, 8)), fc2: Linear::new(8, 2) };
/// assert_eq!(net.state_dict().keys().next(), Some("fc1.weight"));
///
/// let activations = Arc::new(Mutex::new(Vec::new()));
/// let seen = activations.clone();
/// let watch = net.fc1.register_forward_hook(move |_input, output| {
///     seen.lock().unwrap().push(output.detach());
///     None
/// });
/// net.fc2.forward(&net.fc1.forward(&Tensor::zeros([3, 4], &Device::cpu())));
/// assert_eq!(activations.lock().unwrap()[0].shape(), &[3, 8]);
/// watch.remove();
/// ```
pub struct Hooked<L> {
    layer: L,
    forward_pre: Hooks<ForwardPre>,
    forward: Hooks<Forward>,
    backward: Hooks<Backward>,
}

type ForwardPre = dyn Fn(&Tensor) -> Option<Tensor> + Send + Sync;
type Forward = dyn Fn(&Tensor, &Tensor) -> Option<Tensor> + Send + Sync;
type Backward = dyn Fn(Option<&Tensor>, &Tensor) -> Option<Tensor> + Send + Sync;

impl<L: Layer> Hooked<L> {
    /// The layer, without hooks yet.
    pub fn new(layer: L) -> Hooked<L> {
        Hooked { layer, forward_pre: Hooks::default(), forward: Hooks::default(), backward: Hooks::default() }
    }

    /// Calls `hook` with the input before each forward pass; what it gives takes the input's place.
    pub fn register_forward_pre_hook(
        &self,
        hook: impl Fn(&Tensor) -> Option<Tensor> + Send + Sync + 'static,
    ) -> HookHandle {
        self.forward_pre.add(Arc::new(hook))
    }

    /// Calls `hook` with input and output after each forward pass; what it gives takes the output's place.
    pub fn register_forward_hook(
        &self,
        hook: impl Fn(&Tensor, &Tensor) -> Option<Tensor> + Send + Sync + 'static,
    ) -> HookHandle {
        self.forward.add(Arc::new(hook))
    }

    /// Calls `hook` with the gradients of input and output when the backward pass has gone through; what it gives takes the place of
    /// the input's gradient. That is `None` where the input wants no gradient.
    ///
    /// It counts for forward passes from now on.
    pub fn register_full_backward_hook(
        &self,
        hook: impl Fn(Option<&Tensor>, &Tensor) -> Option<Tensor> + Send + Sync + 'static,
    ) -> HookHandle {
        self.backward.add(Arc::new(hook))
    }
}

impl<L: Layer> Layer for Hooked<L> {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        let mut input = input.clone();
        for hook in self.forward_pre.current() {
            input = hook(&input).unwrap_or(input);
        }
        let backward = is_grad_enabled() && !self.backward.is_empty();
        if backward && input.requires_grad() {
            input = Tensor::apply(Pass, &[&input]); // whose gradient is that of this layer's input alone
        }
        let mut output = self.layer.forward(&input);
        for hook in self.forward.current() {
            output = hook(&input, &output).unwrap_or(output);
        }
        if backward && output.requires_grad() {
            output = Tensor::apply(Pass, &[&output]);
            watch_gradients(&input, &output, self.backward.clone());
        }
        output
    }
}

/// Calls the hooks when the gradients of both have been there.
fn watch_gradients(input: &Tensor, output: &Tensor, hooks: Hooks<Backward>) {
    if !input.requires_grad() {
        let call = move |grad_output: &Tensor| {
            for hook in hooks.current() {
                hook(None, grad_output);
            }
            None
        };
        return output.register_hook(call).forever();
    }
    let passing = Arc::new(Mutex::new(None));
    let kept = passing.clone();
    let keep = move |grad_output: &Tensor| {
        *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(grad_output.clone());
        None
    };
    let call = move |grad_input: &Tensor| {
        let grad_output = passing.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let mut replaced = None;
        for hook in hooks.current() {
            replaced = hook(Some(replaced.as_ref().unwrap_or(grad_input)), &grad_output).or(replaced);
        }
        replaced
    };
    output.register_hook(keep).forever();
    input.register_hook(call).forever();
}

/// The same tensor as a node of its own in the graph.
struct Pass;

impl Function for Pass {
    fn name(&self) -> &'static str {
        "hooked"
    }
    fn forward(&self, inputs: &[Tensor]) -> Tensor {
        inputs[0].clone()
    }
    fn backward(&self, _inputs: &[Tensor], _output: &Tensor, grad: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(grad.clone())]
    }
}

impl<L: Module> Module for Hooked<L> {
    fn type_name(&self) -> &str {
        self.layer.type_name()
    }
    fn extra_repr(&self) -> String {
        self.layer.extra_repr()
    }
    fn visit<'a>(&'a self, visitor: &mut Visitor<'_, 'a>) {
        self.layer.visit(visitor);
    }
    /// The copy has the same hooks.
    fn rebuild(&self, rebuild: &mut Rebuild) -> Self {
        Hooked {
            layer: self.layer.rebuild(rebuild),
            forward_pre: self.forward_pre.clone(),
            forward: self.forward.clone(),
            backward: self.backward.clone(),
        }
    }
}

impl<L> Deref for Hooked<L> {
    type Target = L;

    fn deref(&self) -> &L {
        &self.layer
    }
}

impl<L: Module> Clone for Hooked<L> {
    fn clone(&self) -> Hooked<L> {
        self.rebuild(&mut Rebuild::shared())
    }
}

impl<L: Module> fmt::Display for Hooked<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::repr(self))
    }
}

impl<L: Module> fmt::Debug for Hooked<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Linear, ReLU, sequential};
    use orkest_core::{Device, tensor};

    fn values(t: &Tensor) -> Vec<f32> {
        t.to_vec().unwrap()
    }

    #[test]
    fn hooks_replace_input_and_output() {
        let layer = Hooked::new(ReLU);
        let x = tensor![-1.0, 2.0];
        let pre = layer.register_forward_pre_hook(|x| Some(x + 1.0));
        let post = layer.register_forward_hook(|x, y| Some(x * 10.0 + y));
        assert_eq!(values(&layer.forward(&x)), [0.0, 33.0]);
        pre.remove();
        assert_eq!(values(&layer.forward(&x)), [-10.0, 22.0]);
        drop(post);
        assert_eq!(values(&layer.forward(&x)), [0.0, 2.0]);
    }

    #[test]
    fn backward_hooks_see_both_gradients() {
        // As in torch: y = relu(x), grad_output (3, 3), grad_input (0, 3), and what is returned goes on.
        let layer = Hooked::new(ReLU);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let list = seen.clone();
        let _hook = layer.register_full_backward_hook(move |grad_input, grad_output| {
            list.lock().unwrap().push((grad_input.map(values), values(grad_output)));
            grad_input.map(|g| g * 100.0)
        });
        let x = tensor![-1.0, 2.0].requires_grad_(true);
        let y = layer.forward(&x);
        (y * 3.0 + &x).sum(..).backward();
        assert_eq!(*seen.lock().unwrap(), [(Some(vec![0.0, 3.0]), vec![3.0, 3.0])]);
        assert_eq!(values(&x.grad().unwrap()), [1.0, 301.0]);
    }

    #[test]
    fn an_input_without_gradient_is_none() {
        let layer = Hooked::new(Linear::new(2, 1));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let list = seen.clone();
        let _hook = layer.register_full_backward_hook(move |grad_input, grad_output| {
            list.lock().unwrap().push((grad_input.is_some(), values(grad_output)));
            None
        });
        (layer.forward(&tensor![[1.0, 2.0]]) * 5.0).sum(..).backward();
        assert_eq!(*seen.lock().unwrap(), [(false, vec![5.0])]);
        assert!(layer.parameters().iter().all(|p| p.grad().is_some()));
    }

    #[test]
    fn the_wrapper_is_invisible() {
        let plain = sequential![Linear::new(2, 3), ReLU];
        let hooked = sequential![Hooked::new(Linear::new(2, 3)), ReLU];
        assert_eq!(plain.to_string(), hooked.to_string());
        hooked.load_state_dict(&plain.state_dict(), true).unwrap();
        let x = Tensor::ones([1, 2], &Device::cpu());
        assert_eq!(values(&plain.forward(&x)), values(&hooked.forward(&x)));
        let moved = Hooked::new(Linear::new(2, 3));
        let _hook = moved.register_forward_hook(|_, y| Some(y.zeros_like()));
        assert_eq!(values(&moved.to(&Device::cpu()).forward(&x)), [0.0; 3]);
    }
}
