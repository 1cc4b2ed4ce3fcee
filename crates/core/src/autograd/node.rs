//! The graph: nodes, what they save, and how they go away.

use super::checkpoint::{Segment, keep, with_histories};
use super::hooks::{GradHook, Hooks, run_hooks};
use super::mode::is_grad_enabled;
use crate::device::Device;
use crate::dispatch::pushed;
use crate::dtype::DType;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Where a tensor comes from, as far as gradients care.
#[derive(Clone)]
pub(crate) enum History {
    /// A constant.
    None,
    /// Collects its own gradient.
    Leaf(Arc<Leaf>),
    /// Output number `.1` of a recorded operation.
    Node(Arc<Node>, u32),
}

/// The gradient slot of a leaf tensor or parameter.
pub(crate) struct Leaf {
    grad: Mutex<Option<Tensor>>,
    name: OnceLock<String>,
    hooks: OnceLock<Hooks<GradHook>>,
}

impl Leaf {
    pub fn new() -> Leaf {
        Leaf { grad: Mutex::new(None), name: OnceLock::new(), hooks: OnceLock::new() }
    }

    /// The slot of the same leaf after its value was changed: what was collected, watches it and names it stays.
    pub fn of_changed_value(&self) -> Leaf {
        Leaf { grad: Mutex::new(self.grad()), name: self.name.clone(), hooks: self.hooks.clone() }
    }

    pub fn grad(&self) -> Option<Tensor> {
        self.lock().clone()
    }

    pub fn set_grad(&self, grad: Option<Tensor>) {
        // The old gradient is dropped after the lock is released.
        let _old = std::mem::replace(&mut *self.lock(), grad);
    }

    /// Adds to the collected gradient; the first one is moved in.
    #[track_caller]
    pub fn accumulate(&self, grad: Tensor) {
        match &mut *self.lock() {
            Some(sum) => sum.accumulate(&grad),
            empty => *empty = Some(grad),
        }
    }

    pub fn hooks(&self) -> &Hooks<GradHook> {
        self.hooks.get_or_init(Hooks::default)
    }

    pub fn has_hooks(&self) -> bool {
        self.hooks.get().is_some_and(|hooks| !hooks.is_empty())
    }

    pub fn name(&self) -> Option<&str> {
        self.name.get().map(String::as_str)
    }

    pub fn set_name(&self, name: &str) {
        let _ = self.name.set(name.to_string());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Tensor>> {
        self.grad.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One gradient per input of an operation; `None` where there is none.
pub type Gradients = SmallVec<[Option<Tensor>; 3]>;

/// Collects gradients for the inputs of an operation, in order: `grads![a, b]`.
#[macro_export]
macro_rules! grads {
    ($($g:expr),* $(,)?) => {{
        let mut gradients = $crate::Gradients::new();
        $(gradients.push(Option::<$crate::Tensor>::from($g));)*
        gradients
    }};
}

/// How an operation passes a gradient on.
///
/// Implemented by closures that capture plain sizes and numbers only. `Copy` sees to that: a tensor goes through the saved list,
/// where the engine can free it, never into a closure.
pub trait Rule: Send + Sync + 'static {
    /// The gradients of the operation's inputs, given those of its outputs.
    fn backward(&self, context: &Context<'_>) -> Gradients;
}

impl<F: Fn(&Context<'_>) -> Gradients + Copy + Send + Sync + 'static> Rule for F {
    fn backward(&self, context: &Context<'_>) -> Gradients {
        self(context)
    }
}

/// What a rule works with: gradients of the outputs and what the forward pass saved.
pub struct Context<'a> {
    pub(crate) node: &'a Node,
    pub(crate) grads: &'a [Option<Tensor>],
    pub(crate) saved: &'a [Tensor],
}

impl Context<'_> {
    /// The gradient of the only (or first) output.
    #[track_caller]
    pub fn grad(&self) -> &Tensor {
        self.grads[0]
            .as_ref()
            .unwrap_or_else(|| panic!("{}: its first output has no gradient", self.node.op()))
    }

    /// The gradient of output `i`, if anything depended on it.
    pub fn grad_of(&self, i: usize) -> Option<&Tensor> {
        self.grads[i].as_ref()
    }

    /// The gradient of output `i`, zeros if nothing depended on it.
    #[track_caller]
    pub fn grad_or_zeros(&self, i: usize) -> Tensor {
        let (shape, dtype) = self.node.call.outputs[i];
        self.grads[i].clone().unwrap_or_else(|| Tensor::zeros(shape, (dtype, &self.node.call.device)))
    }

    /// The `i`-th saved tensor.
    pub fn saved(&self, i: usize) -> &Tensor {
        &self.saved[i]
    }

    /// Does input `i` want a gradient?
    pub fn needs(&self, i: usize) -> bool {
        !matches!(self.node.edges()[i].to, History::None)
    }

    /// How many outputs the operation had.
    pub fn output_count(&self) -> usize {
        self.grads.len()
    }

    /// How many inputs the operation had.
    pub fn input_count(&self) -> usize {
        self.node.edges().len()
    }

    /// The shape of input `i`.
    pub fn input_shape(&self, i: usize) -> &Shape {
        &self.node.edges()[i].shape
    }
}

/// What to keep for the rule.
pub(crate) enum Save<'a> {
    /// Input number `i`.
    Input(usize),
    /// Output number `i`. Only the memory is kept, and the history put back when the rule reads it: a node that owned its own
    /// output would own itself.
    Output(usize),
    /// A tensor that is neither.
    Other(&'a Tensor),
}

#[derive(Clone)]
pub(crate) struct Saved {
    pub tensor: Tensor,
    /// The number of the output this is, if it is one.
    pub output: Option<u32>,
}

pub(crate) enum SavedTensors {
    Kept(SmallVec<[Saved; 2]>),
    /// Not kept: a checkpointed segment computes it again. `places` are the histories, and the numbers of outputs.
    Recomputed {
        segment: Arc<Segment>,
        entry: usize,
        places: Box<[(History, Option<u32>)]>,
    },
    Freed,
}

/// An input of a recorded operation.
pub(crate) struct Edge {
    pub to: History,
    pub shape: Shape,
    pub dtype: DType,
    pub device: Device,
}

/// A recorded operation.
pub(crate) struct Node<R: ?Sized = dyn Rule> {
    call: Call,
    rule: R,
}

/// All of a node but its rule.
struct Call {
    op: &'static str,
    at: &'static Location<'static>,
    /// Longer than the longest path to a leaf: consumers always have a greater depth than what they consume.
    depth: u32,
    edges: SmallVec<[Edge; 2]>,
    outputs: SmallVec<[(Shape, DType); 1]>,
    device: Device,
    saved: Mutex<SavedTensors>,
    /// One for each output, made when the first is asked for.
    watched: OnceLock<Box<[Watched]>>,
}

/// What a program wants to know about the gradient of an output.
#[derive(Default)]
struct Watched {
    hooks: Hooks<GradHook>,
    /// Where the gradient is kept, if it is.
    retained: OnceLock<Leaf>,
}

impl Node {
    pub fn op(&self) -> &'static str {
        self.call.op
    }

    /// The line of the program that asked for the operation.
    pub fn at(&self) -> &'static Location<'static> {
        self.call.at
    }

    pub fn depth(&self) -> u32 {
        self.call.depth
    }

    pub fn edges(&self) -> &[Edge] {
        &self.call.edges
    }

    pub fn output_count(&self) -> usize {
        self.call.outputs.len()
    }

    fn watched(&self, output: u32) -> &Watched {
        let all =
            self.call.watched.get_or_init(|| self.call.outputs.iter().map(|_| Watched::default()).collect());
        &all[output as usize]
    }

    /// The functions that see the gradient of an output.
    pub fn hooks(&self, output: u32) -> &Hooks<GradHook> {
        &self.watched(output).hooks
    }

    /// From now on the gradient of an output is kept.
    pub fn retain_grad(&self, output: u32) {
        self.watched(output).retained.get_or_init(Leaf::new);
    }

    /// Where the gradient of an output is kept, if it is.
    pub fn retained(&self, output: u32) -> Option<&Leaf> {
        self.call.watched.get()?[output as usize].retained.get()
    }

    /// Lets the hooks see the gradients. With `retain`, those that are to be kept are, as the hooks leave them.
    #[track_caller]
    pub fn run_hooks(&self, grads: &mut [Option<Tensor>], retain: bool) {
        let Some(watched) = self.call.watched.get() else { return };
        for (Watched { hooks, retained }, grad) in watched.iter().zip(grads) {
            *grad = grad.take().map(|grad| run_hooks(hooks, grad));
            if let (Some(slot), Some(grad), true) = (retained.get(), grad, retain) {
                slot.accumulate(grad.clone());
            }
        }
    }

    /// Runs the rule. Unless `keep`, what was saved is freed.
    #[track_caller]
    pub fn backward(self: &Arc<Node>, grads: &[Option<Tensor>], keep: bool) -> Gradients {
        let saved = self.saved(keep);
        let gradients = self.rule.backward(&Context { node: self, grads, saved: &saved });
        assert_eq!(
            gradients.len(),
            self.edges().len(),
            "the rule of {} must give one gradient per input",
            self.op()
        );
        gradients
    }

    #[track_caller]
    fn saved(self: &Arc<Node>, keep: bool) -> SmallVec<[Tensor; 4]> {
        let mut slot = self.call.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |s: Saved| match s.output {
            Some(i) if is_grad_enabled() => s.tensor.with_history(History::Node(self.clone(), i)),
            _ => s.tensor,
        };
        match &*slot {
            SavedTensors::Kept(list) if list.is_empty() => SmallVec::new(),
            SavedTensors::Kept(list) if keep => pushed(list.iter().cloned().map(read)),
            SavedTensors::Kept(_) => match std::mem::replace(&mut *slot, SavedTensors::Freed) {
                SavedTensors::Kept(list) => pushed(list.into_iter().map(read)),
                _ => unreachable!("looked at under the lock"),
            },
            SavedTensors::Recomputed { segment, entry, places } => {
                let again = with_histories(segment.fetch(*entry, keep), places);
                if !keep {
                    *slot = SavedTensors::Freed;
                }
                again.into_iter().map(read).collect()
            }
            SavedTensors::Freed => panic!(
                "backward: the graph was already walked and what {} (at {}:{}) had saved is gone; pass retain_graph to the \
                 first backward to walk it again",
                self.op(),
                self.at().file(),
                self.at().line()
            ),
        }
    }
}

/// What dropped nodes held of the graph waits here to be dropped itself, so that a chain goes away in a loop, not by recursion.
#[derive(Default)]
struct Dropped {
    nodes: Vec<Arc<Node>>,
    tensors: Vec<Tensor>,
    /// An outer drop on this thread is at it.
    emptying: bool,
}

thread_local! {
    static DROPPED: RefCell<Dropped> = RefCell::default();
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut nodes = SmallVec::<[Arc<Node>; 4]>::new();
        let mut tensors = SmallVec::<[Tensor; 4]>::new();
        let mut take = |history: &mut History| {
            if let History::Node(..) = history
                && let History::Node(node, _) = std::mem::replace(history, History::None)
            {
                nodes.push(node);
            }
        };
        self.edges.iter_mut().for_each(|edge| take(&mut edge.to));
        match self.saved.get_mut().unwrap_or_else(PoisonError::into_inner) {
            SavedTensors::Kept(list) => {
                list.drain(..)
                    .map(|saved| saved.tensor)
                    .filter(|t| t.node().is_some())
                    .for_each(|t| tensors.push(t));
            }
            SavedTensors::Recomputed { places, .. } => {
                places.iter_mut().for_each(|(history, _)| take(history));
            }
            SavedTensors::Freed => {}
        }
        if !nodes.is_empty() || !tensors.is_empty() {
            drop_in_a_loop(nodes, tensors);
        }
    }
}

fn drop_in_a_loop(nodes: SmallVec<[Arc<Node>; 4]>, tensors: SmallVec<[Tensor; 4]>) {
    let outermost = DROPPED.try_with(|dropped| {
        let mut dropped = dropped.borrow_mut();
        dropped.nodes.extend(nodes);
        dropped.tensors.extend(tensors);
        !std::mem::replace(&mut dropped.emptying, true)
    });
    if outermost != Ok(true) {
        return; // Somebody further out is emptying the queue, or the thread is going away.
    }
    // The borrow ends before what was taken out is dropped.
    while DROPPED.with_borrow_mut(Dropped::next).is_some() {}
    DROPPED.with_borrow_mut(|d| d.emptying = false);
}

impl Dropped {
    fn next(&mut self) -> Option<(Option<Arc<Node>>, Option<Tensor>)> {
        let next = (self.nodes.pop(), self.tensors.pop());
        (next.0.is_some() || next.1.is_some()).then_some(next)
    }
}

impl Tensor {
    /// This fresh result as the output of a recorded operation, if any of `inputs` wants a gradient and recording is on.
    ///
    /// The rule must not depend on anything but what is in its [`Context`] and plain numbers.
    #[track_caller]
    pub(crate) fn recorded<F>(
        self,
        op: &'static str,
        inputs: &[&Tensor],
        save: &[Save<'_>],
        rule: F,
    ) -> Tensor
    where
        F: Fn(&Context<'_>) -> Gradients + Copy + Send + Sync + 'static,
    {
        let mut outputs = [self];
        record(&mut outputs, op, inputs, save, rule);
        let [out] = outputs;
        out
    }
}

/// Would an operation on `inputs` be recorded?
#[inline]
pub(crate) fn records(inputs: &[&Tensor]) -> bool {
    inputs.iter().any(|t| t.requires_grad()) && is_grad_enabled()
}

/// Gives fresh `outputs` a common node, if any of `inputs` wants a gradient and recording is on. Only float outputs take part.
#[track_caller]
pub(crate) fn record<R: Rule>(
    outputs: &mut [Tensor],
    op: &'static str,
    inputs: &[&Tensor],
    save: &[Save<'_>],
    rule: R,
) {
    if !records(inputs) {
        return;
    }
    let call = Call::new(op, Location::caller(), inputs, outputs, save);
    let node: Arc<Node> = Arc::new(Node { call, rule });
    // The first output, mostly the only one, gets the node itself.
    for (i, out) in outputs.iter_mut().enumerate().skip(1) {
        if out.dtype().is_float() {
            out.set_history(History::Node(node.clone(), i as u32));
        }
    }
    if outputs[0].dtype().is_float() {
        outputs[0].set_history(History::Node(node, 0));
    }
}

impl Call {
    fn new(
        op: &'static str,
        at: &'static Location<'static>,
        inputs: &[&Tensor],
        outputs: &[Tensor],
        save: &[Save<'_>],
    ) -> Call {
        let edge = |t: &&Tensor| Edge {
            to: t.history().clone(),
            shape: *t.shape(),
            dtype: t.dtype(),
            device: t.device().clone(),
        };
        let saved = |s: &Save<'_>| match *s {
            Save::Input(i) => Saved { tensor: inputs[i].clone(), output: None },
            Save::Output(i) => {
                Saved { tensor: outputs[i].with_history(History::None), output: Some(i as u32) }
            }
            Save::Other(t) => Saved { tensor: t.clone(), output: None },
        };
        let deepest = inputs.iter().filter_map(|t| t.node()).map(|(node, _)| node.depth()).max().unwrap_or(0);
        Call {
            op,
            at,
            depth: deepest.checked_add(1).expect("a graph has less than four billion operations in a row"),
            edges: pushed(inputs.iter().map(edge)),
            outputs: pushed(outputs.iter().map(|t| (*t.shape(), t.dtype()))),
            device: outputs[0].device().clone(),
            saved: Mutex::new(keep(op, pushed(save.iter().map(saved)))),
            watched: OnceLock::new(),
        }
    }
}
