//! Watching what goes into and comes out of a module.
//!
//! `forward` is a plain method that a model calls, so nothing stands between the caller and a module, and nothing has to: a module
//! that is to be watched is wrapped. The wrapper is invisible in state dicts and printed models.

use crate::layers::{
    AttentionOptions, GRU, GRUCell, LSTM, LSTMCell, MultiheadAttention, PackedSequence, RNN, RNNCell,
    RecurrentInput, Transformer, TransformerDecoder, TransformerDecoderLayer, TransformerEncoder,
    TransformerEncoderLayer, TransformerMasks,
};
use crate::{Layer, Module, Rebuild, Visitor};
use orkest_core::{DType, Device, HookHandle, Hooks, Shape, Tensor, is_grad_enabled, joint_hook};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A module with hooks: functions that see its inputs, outputs and gradients, and may replace them.
///
/// Any module can be watched, a layer as well as a whole model. It keeps its names and its text, so weights fit with and without the
/// wrapper. Hooks see lists of tensors, as in PyTorch: those of tuples and packed sequences one after the other.
///
/// A wrapped [`Layer`] is one, and the modules of this crate that take or give more keep their `forward`:
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{Hooked, LSTM, Layer, Linear, Module};
/// use std::sync::{Arc, Mutex};
///
/// #[derive(Module)]
/// struct Net {
///     lstm: Hooked<LSTM>,
///     head: Linear,
/// }
///
/// let net = Net { lstm: Hooked::new(LSTM::new(4, 8)), head: Linear::new(8, 2) };
/// assert_eq!(net.state_dict().keys().next(), Some("lstm.weight_ih_l0"));
///
/// let shapes = Arc::new(Mutex::new(Vec::new()));
/// let seen = shapes.clone();
/// let watch = net.lstm.register_forward_hook(move |_inputs, outputs| {
///     seen.lock().unwrap().extend(outputs.iter().map(|t| t.shape().to_vec()));
///     None
/// });
/// let (output, (hidden, _)) = net.lstm.forward(&Tensor::zeros([5, 3, 4], &Device::cpu()), None);
/// net.head.forward(&hidden.squeeze(0));
/// assert_eq!(*shapes.lock().unwrap(), [vec![5, 3, 8], vec![1, 3, 8], vec![1, 3, 8]]);
/// watch.remove();
/// ```
///
/// A module of your own is called with [`Hooked::call`], which names the inputs that the hooks shall see:
///
/// ```
/// # use orkest_core::{Device, Tensor};
/// # use orkest_nn::{Hooked, Layer, Linear, Module};
/// #[derive(Module)]
/// struct Scorer {
///     left: Linear,
///     right: Linear,
/// }
///
/// impl Scorer {
///     fn forward(&self, a: &Tensor, b: &Tensor, scale: f64) -> Tensor {
///         (self.left.forward(a) * self.right.forward(b)).sum(-1) * scale
///     }
/// }
///
/// let model = Hooked::new(Scorer { left: Linear::new(4, 8), right: Linear::new(4, 8) });
/// let _gradients = model.register_full_backward_hook(|grad_inputs, grad_outputs| {
///     assert_eq!((grad_inputs.len(), grad_outputs.len()), (2, 1));
///     None
/// });
/// let x = Tensor::ones([3, 4], &Device::cpu());
/// let y = model.call([&x, &x], |model, [a, b]| model.forward(a, b, 0.5));
/// y.sum(..).backward();
/// ```
pub struct Hooked<M> {
    module: M,
    forward_pre: Hooks<ForwardPre>,
    forward: Hooks<Forward>,
    backward: Hooks<Backward>,
}

type ForwardPre = dyn Fn(&[Tensor]) -> Option<Vec<Tensor>> + Send + Sync;
type Forward = dyn Fn(&[Tensor], &[Tensor]) -> Option<Vec<Tensor>> + Send + Sync;
type Gradient = Option<Tensor>;
type Backward = dyn Fn(&[Gradient], &[Gradient]) -> Option<Vec<Gradient>> + Send + Sync;

impl<M: Module> Hooked<M> {
    /// The module, without hooks yet.
    pub fn new(module: M) -> Hooked<M> {
        let (forward_pre, forward, backward) = (Hooks::default(), Hooks::default(), Hooks::default());
        Hooked { module, forward_pre, forward, backward }
    }

    /// The module inside. What is called on it passes the hooks by.
    pub fn module(&self) -> &M {
        &self.module
    }

    /// Calls `hook` with the inputs before each forward pass; what it gives takes their place.
    pub fn register_forward_pre_hook(
        &self,
        hook: impl Fn(&[Tensor]) -> Option<Vec<Tensor>> + Send + Sync + 'static,
    ) -> HookHandle {
        self.forward_pre.add(Arc::new(hook))
    }

    /// Calls `hook` with inputs and outputs after each forward pass; what it gives takes the outputs' place.
    pub fn register_forward_hook(
        &self,
        hook: impl Fn(&[Tensor], &[Tensor]) -> Option<Vec<Tensor>> + Send + Sync + 'static,
    ) -> HookHandle {
        self.forward.add(Arc::new(hook))
    }

    /// Calls `hook` with the gradients of inputs and outputs when the backward pass has gone through; what it gives takes the place
    /// of the inputs' gradients. As in PyTorch, there is `None` for an output that nothing used, and zeros for an input that nothing
    /// depended on or that wants no gradient; only if no input wants one, all are `None`.
    ///
    /// It counts for forward passes from now on.
    pub fn register_full_backward_hook(
        &self,
        hook: impl Fn(&[Option<Tensor>], &[Option<Tensor>]) -> Option<Vec<Option<Tensor>>> + Send + Sync + 'static,
    ) -> HookHandle {
        self.backward.add(Arc::new(hook))
    }

    /// Calls the module as `forward` says, with the hooks around it: they see `inputs`, and `forward` gets what they leave.
    ///
    /// # Panics
    /// If a hook gives more or fewer tensors than there are.
    #[track_caller]
    pub fn call<const N: usize, O: Tensors>(
        &self,
        inputs: [&Tensor; N],
        forward: impl FnOnce(&M, [&Tensor; N]) -> O,
    ) -> O {
        self.run(inputs.map(Tensor::clone), |module, inputs| forward(module, inputs.each_ref()))
    }

    #[track_caller]
    fn run<I: Tensors, O: Tensors>(&self, inputs: I, forward: impl FnOnce(&M, &I) -> O) -> O {
        let mut input_list = list(&inputs);
        for hook in self.forward_pre.current() {
            let given = hook(&input_list);
            replace("forward_pre", "inputs", &mut input_list, given);
        }
        let watched = (is_grad_enabled() && !self.backward.is_empty()).then(|| Watch::new(&self.backward));
        if let Some(watch) = &watched {
            input_list = watch.inputs(&input_list);
        }
        let output = forward(&self.module, &with_list(&inputs, &input_list));
        let mut output_list = list(&output);
        for hook in self.forward.current() {
            let given = hook(&input_list, &output_list);
            replace("forward", "outputs", &mut output_list, given);
        }
        if let Some(watch) = &watched {
            output_list = watch.outputs(&input_list, &output_list);
        }
        with_list(&output, &output_list)
    }
}

/// What goes into and comes out of a module: a tensor, or tensors in tuples, lists, options and packed sequences.
///
/// A result type of your own that shall pass through [`Hooked::call`] implements it by giving back itself, changed.
pub trait Tensors {
    /// The same with every tensor, in order, as `change` gives it back.
    #[must_use]
    fn map_tensors(&self, change: &mut dyn FnMut(&Tensor) -> Tensor) -> Self
    where
        Self: Sized;
}

impl Tensors for Tensor {
    fn map_tensors(&self, change: &mut dyn FnMut(&Tensor) -> Tensor) -> Tensor {
        change(self)
    }
}

impl Tensors for PackedSequence {
    fn map_tensors(&self, change: &mut dyn FnMut(&Tensor) -> Tensor) -> PackedSequence {
        self.with_data(change(self.data()))
    }
}

impl<T: Tensors> Tensors for Option<T> {
    fn map_tensors(&self, change: &mut dyn FnMut(&Tensor) -> Tensor) -> Option<T> {
        self.as_ref().map(|t| t.map_tensors(change))
    }
}

impl<T: Tensors> Tensors for Vec<T> {
    fn map_tensors(&self, change: &mut dyn FnMut(&Tensor) -> Tensor) -> Vec<T> {
        self.iter().map(|t| t.map_tensors(change)).collect()
    }
}

impl<T: Tensors, const N: usize> Tensors for [T; N] {
    fn map_tensors(&self, change: &mut dyn FnMut(&Tensor) -> Tensor) -> [T; N] {
        self.each_ref().map(|t| t.map_tensors(change))
    }
}

macro_rules! tuples_of_tensors {
    ($($($t:ident $i:tt),*;)*) => {$(
        impl<$($t: Tensors),*> Tensors for ($($t,)*) {
            fn map_tensors(&self, change: &mut dyn FnMut(&Tensor) -> Tensor) -> ($($t,)*) {
                ($(self.$i.map_tensors(change),)*)
            }
        }
    )*};
}
tuples_of_tensors! {
    A 0, B 1;
    A 0, B 1, C 2;
    A 0, B 1, C 2, D 3;
}

fn list<T: Tensors>(tensors: &T) -> Vec<Tensor> {
    let mut list = Vec::new();
    let _ = tensors.map_tensors(&mut |t| {
        list.push(t.clone());
        t.clone()
    });
    list
}

fn with_list<T: Tensors>(tensors: &T, list: &[Tensor]) -> T {
    let mut next = list.iter();
    tensors.map_tensors(&mut |t| next.next().unwrap_or(t).clone())
}

#[track_caller]
fn replace(hook: &str, what: &str, list: &mut Vec<Tensor>, given: Option<Vec<Tensor>>) {
    let Some(given) = given else { return };
    let (count, wanted) = (given.len(), list.len());
    assert!(count == wanted, "register_{hook}_hook: a hook gave {count} tensors for {wanted} {what}");
    *list = given;
}

/// The backward hooks of one forward pass.
struct Watch {
    hooks: Hooks<Backward>,
    /// The gradients of the outputs, from when they have been there until those of the inputs are.
    passing: Arc<Mutex<Option<Vec<Gradient>>>>,
}

impl Watch {
    fn new(hooks: &Hooks<Backward>) -> Watch {
        Watch { hooks: hooks.clone(), passing: Arc::default() }
    }

    /// The inputs as tensors of their own, whose gradients are those of this pass alone.
    #[track_caller]
    fn inputs(&self, inputs: &[Tensor]) -> Vec<Tensor> {
        let (hooks, passing) = (self.hooks.clone(), self.passing.clone());
        let like: Vec<_> = inputs.iter().map(|t| (*t.shape(), t.dtype(), t.device().clone())).collect();
        joint_hook(&inputs.iter().collect::<Vec<_>>(), move |grad_inputs| {
            let grad_outputs = passing.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            let or_zeros = |(grad, (shape, dtype, device)): (&Gradient, &(Shape, DType, Device))| {
                Some(grad.clone().unwrap_or_else(|| Tensor::zeros(*shape, (*dtype, device))))
            };
            let mut current: Vec<Gradient> = grad_inputs.iter().zip(&like).map(or_zeros).collect();
            let mut replaced = false;
            for hook in hooks.current() {
                if let Some(next) = hook(&current, &grad_outputs) {
                    (current, replaced) = (next, true);
                }
            }
            replaced.then_some(current)
        })
    }

    #[track_caller]
    fn outputs(&self, inputs: &[Tensor], outputs: &[Tensor]) -> Vec<Tensor> {
        let (hooks, passing) = (self.hooks.clone(), self.passing.clone());
        let waiting = inputs.iter().any(Tensor::requires_grad);
        let nothing = vec![None; inputs.len()];
        joint_hook(&outputs.iter().collect::<Vec<_>>(), move |grad_outputs| {
            if waiting {
                *passing.lock().unwrap_or_else(PoisonError::into_inner) = Some(grad_outputs.to_vec());
            } else {
                hooks.current().iter().for_each(|hook| drop(hook(&nothing, grad_outputs)));
            }
            None
        })
    }
}

// ---- modules with a `forward` of their own -----------------------------------------------------------------------------------

impl<L: Layer> Layer for Hooked<L> {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        self.call([input], |layer, [input]| layer.forward(input))
    }
}

impl Hooked<LSTM> {
    /// [`LSTM::forward`]. Hooks see the sequence and the states `h` and `c` (as inputs only if given).
    #[track_caller]
    pub fn forward<S: RecurrentInput>(
        &self,
        input: &S,
        state: Option<(&Tensor, &Tensor)>,
    ) -> (S, (Tensor, Tensor)) {
        let state = state.map(|(h, c)| (h.clone(), c.clone()));
        self.run((input.clone(), state), |lstm, (x, state)| {
            lstm.forward(x, state.as_ref().map(|(h, c)| (h, c)))
        })
    }
}

impl Hooked<LSTMCell> {
    /// [`LSTMCell::forward`]. Hooks see the input and the states `h` and `c` (as inputs only if given).
    #[track_caller]
    pub fn forward(&self, input: &Tensor, state: Option<(&Tensor, &Tensor)>) -> (Tensor, Tensor) {
        let state = state.map(|(h, c)| (h.clone(), c.clone()));
        self.run((input.clone(), state), |cell, (x, state)| {
            cell.forward(x, state.as_ref().map(|(h, c)| (h, c)))
        })
    }
}

macro_rules! hooked_recurrent {
    ($($layer:ident, $cell:ident;)*) => {$(
        impl Hooked<$layer> {
            #[doc = concat!("[`", stringify!($layer), "::forward`]. Hooks see the sequence and the state (as input only if given).")]
            #[track_caller]
            pub fn forward<S: RecurrentInput>(&self, input: &S, state: Option<&Tensor>) -> (S, Tensor) {
                self.run((input.clone(), state.cloned()), |layer, (x, state)| layer.forward(x, state.as_ref()))
            }
        }

        impl Hooked<$cell> {
            #[doc = concat!("[`", stringify!($cell), "::forward`]. Hooks see the input and the state (as input only if given).")]
            #[track_caller]
            pub fn forward(&self, input: &Tensor, state: Option<&Tensor>) -> Tensor {
                self.run((input.clone(), state.cloned()), |cell, (x, state)| cell.forward(x, state.as_ref()))
            }
        }
    )*};
}
hooked_recurrent! {
    RNN, RNNCell;
    GRU, GRUCell;
}

impl Hooked<MultiheadAttention> {
    /// [`MultiheadAttention::forward`]. Hooks see query, key and value, and output and weights.
    #[track_caller]
    pub fn forward(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> (Tensor, Tensor) {
        self.call([query, key, value], |attention, [q, k, v]| attention.forward(q, k, v))
    }

    /// [`MultiheadAttention::forward_with`]. Hooks see query, key and value, and output and weights (if asked for).
    #[track_caller]
    pub fn forward_with(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        options: &AttentionOptions<'_>,
    ) -> (Tensor, Option<Tensor>) {
        self.call([query, key, value], |attention, [q, k, v]| attention.forward_with(q, k, v, options))
    }
}

macro_rules! hooked_encoders {
    ($($name:ident),*) => {$(
        impl Hooked<$name> {
            #[doc = concat!("[`", stringify!($name), "::forward_with`]. Hooks see the source.")]
            #[track_caller]
            pub fn forward_with(&self, src: &Tensor, masks: &TransformerMasks<'_>) -> Tensor {
                self.call([src], |module, [src]| module.forward_with(src, masks))
            }
        }
    )*};
}
hooked_encoders!(TransformerEncoderLayer, TransformerEncoder);

macro_rules! hooked_decoders {
    ($($name:ident($a:ident, $b:ident), $seen:literal;)*) => {$(
        impl Hooked<$name> {
            #[doc = concat!("[`", stringify!($name), "::forward`]. Hooks see ", $seen, ".")]
            #[track_caller]
            pub fn forward(&self, $a: &Tensor, $b: &Tensor) -> Tensor {
                self.call([$a, $b], |module, [$a, $b]| module.forward($a, $b))
            }

            #[doc = concat!("[`", stringify!($name), "::forward_with`]. Hooks see ", $seen, ".")]
            #[track_caller]
            pub fn forward_with(&self, $a: &Tensor, $b: &Tensor, masks: &TransformerMasks<'_>) -> Tensor {
                self.call([$a, $b], |module, [$a, $b]| module.forward_with($a, $b, masks))
            }
        }
    )*};
}
hooked_decoders! {
    TransformerDecoderLayer(tgt, memory), "target and memory";
    TransformerDecoder(tgt, memory), "target and memory";
    Transformer(src, tgt), "source and target";
}

// ---- the wrapper as a module -------------------------------------------------------------------------------------------------

impl<M: Module> Module for Hooked<M> {
    fn type_name(&self) -> &str {
        self.module.type_name()
    }
    fn extra_repr(&self) -> String {
        self.module.extra_repr()
    }
    fn visit<'a>(&'a self, visitor: &mut Visitor<'_, 'a>) {
        self.module.visit(visitor);
    }
    /// The copy has the same hooks.
    fn rebuild(&self, rebuild: &mut Rebuild) -> Self {
        Hooked {
            module: self.module.rebuild(rebuild),
            forward_pre: self.forward_pre.clone(),
            forward: self.forward.clone(),
            backward: self.backward.clone(),
        }
    }
}

impl<M: Module> Clone for Hooked<M> {
    fn clone(&self) -> Hooked<M> {
        self.rebuild(&mut Rebuild::shared())
    }
}

impl<M: Module> fmt::Display for Hooked<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::repr(self))
    }
}

impl<M: Module> fmt::Debug for Hooked<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Linear, ReLU, sequential};
    use orkest_core::tensor;

    fn values(t: &Tensor) -> Vec<f32> {
        t.to_vec().unwrap()
    }

    fn all(grads: &[Option<Tensor>]) -> Vec<Option<Vec<f32>>> {
        grads.iter().map(|g| g.as_ref().map(values)).collect()
    }

    #[test]
    fn hooks_replace_input_and_output() {
        let layer = Hooked::new(ReLU);
        let x = tensor![-1.0, 2.0];
        let pre = layer.register_forward_pre_hook(|x| Some(vec![&x[0] + 1.0]));
        let post = layer.register_forward_hook(|x, y| Some(vec![&x[0] * 10.0 + &y[0]]));
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
            list.lock().unwrap().push((all(grad_input), all(grad_output)));
            Some(vec![grad_input[0].as_ref().map(|g| g * 100.0)])
        });
        let x = tensor![-1.0, 2.0].requires_grad_(true);
        let y = layer.forward(&x);
        (y * 3.0 + &x).sum(..).backward();
        assert_eq!(*seen.lock().unwrap(), [(vec![Some(vec![0.0, 3.0])], vec![Some(vec![3.0, 3.0])])]);
        assert_eq!(values(&x.grad().unwrap()), [1.0, 301.0]);
    }

    #[test]
    fn an_input_without_gradient_is_none() {
        let layer = Hooked::new(Linear::new(2, 1));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let list = seen.clone();
        let _hook = layer.register_full_backward_hook(move |grad_input, grad_output| {
            list.lock().unwrap().push((all(grad_input), all(grad_output)));
            None
        });
        (layer.forward(&tensor![[1.0, 2.0]]) * 5.0).sum(..).backward();
        assert_eq!(*seen.lock().unwrap(), [(vec![None], vec![Some(vec![5.0])])]);
        assert!(layer.parameters().iter().all(|p| p.grad().is_some()));
    }

    #[test]
    fn a_module_of_several_inputs_and_outputs_is_called_once() {
        // torch: a Module with forward(a, b) = (a * b, a + b, b.detach()), the second output unused
        #[derive(Module)]
        #[module(crate = crate)]
        struct Both;
        let module = Hooked::new(Both);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let list = seen.clone();
        let _hook = module.register_full_backward_hook(move |grad_input, grad_output| {
            list.lock().unwrap().push((all(grad_input), all(grad_output)));
            Some(vec![grad_input[1].clone(), grad_input[0].clone()])
        });
        let (a, b) = (tensor![2.0].requires_grad_(true), tensor![7.0].requires_grad_(true));
        let (y, (_, _)) = module.call([&a, &b], |_, [a, b]| (a * b, (a + b, b.detach())));
        (y * 3.0).sum(..).backward();
        let expected = (vec![Some(vec![21.0]), Some(vec![6.0])], vec![Some(vec![3.0]), None, None]);
        assert_eq!(*seen.lock().unwrap(), [expected]);
        assert_eq!((values(&a.grad().unwrap()), values(&b.grad().unwrap())), (vec![6.0], vec![21.0]));
    }

    #[test]
    #[should_panic(expected = "register_forward_hook: a hook gave 0 tensors for 1 outputs")]
    fn another_number_of_outputs_is_refused() {
        let layer = Hooked::new(ReLU);
        layer.register_forward_hook(|_, _| Some(Vec::new())).forever();
        layer.forward(&tensor![1.0]);
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
        let _hook = moved.register_forward_hook(|_, y| Some(vec![y[0].zeros_like()]));
        assert_eq!(values(&moved.to(&Device::cpu()).forward(&x)), [0.0; 3]);
    }
}
