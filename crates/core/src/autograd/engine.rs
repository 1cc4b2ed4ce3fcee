//! The backward pass: one sweep over the graph, deepest node first.
//!
//! A node's depth exceeds that of everything it was computed from, so a node taken from a heap by depth has received all its
//! gradients. Only the histories that the roots reach are visited, in a loop, whatever their length.

use super::hooks::run_hooks;
use super::mode::{GradMode, is_detecting};
use super::node::{Edge, Gradients, History, Leaf, Node};
use crate::autocast::Autocast;
use crate::caller::GradientOf;
use crate::tensor::Tensor;
use smallvec::{SmallVec, smallvec};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// What `backward` leaves behind.
#[derive(Clone, Copy, Default, Debug)]
pub struct BackwardOptions {
    /// Keep what the operations saved, so that the graph can be walked again.
    pub retain_graph: bool,
    /// Record the backward pass itself, for gradients of gradients. Implies `retain_graph`.
    pub create_graph: bool,
}

impl Tensor {
    /// Adds the gradient of this one-element tensor to every leaf and parameter it depends on.
    ///
    /// The graph is freed on the way; [`Tensor::backward_with`] can keep it.
    ///
    /// # Panics
    /// If the tensor has more than one element, has no history, or its graph was freed by an earlier call.
    #[track_caller]
    pub fn backward(&self) {
        self.backward_with(None, BackwardOptions::default());
    }

    /// As [`Tensor::backward`], from a gradient given for this tensor (needed unless it has one element), with options.
    ///
    /// # Panics
    /// As [`Tensor::backward`]; also if the gradient's shape differs from the tensor's.
    #[track_caller]
    pub fn backward_with(&self, gradient: Option<&Tensor>, options: BackwardOptions) {
        run(&[self], &[gradient], None, options);
    }
}

/// The gradients of `outputs` (each of one element) with respect to `inputs`, without touching any gradient slot.
///
/// `None` where an input has no influence. Inputs may be leaves or results in the middle of the graph.
///
/// ```
/// # use orkest_core::{grad, BackwardOptions, Device, Tensor};
/// let x = Tensor::new([2.0f64], &Device::cpu()).requires_grad_(true);
/// let y = (&x * &x * &x).sum(..);
/// let options = BackwardOptions { create_graph: true, ..Default::default() };
/// let dy = grad(&[&y], &[&x], options)[0].clone().unwrap(); // 3x²
/// let ddy = grad(&[&dy.sum(..)], &[&x], Default::default())[0].clone().unwrap(); // 6x
/// assert_eq!((dy.item().unwrap(), ddy.item().unwrap()), (12.0, 12.0));
/// ```
///
/// # Panics
/// As [`Tensor::backward`].
#[track_caller]
pub fn grad(outputs: &[&Tensor], inputs: &[&Tensor], options: BackwardOptions) -> Vec<Option<Tensor>> {
    run(outputs, &vec![None; outputs.len()], Some(inputs), options)
}

/// As [`grad`], from given gradients of the outputs.
#[track_caller]
pub(crate) fn grad_from(
    outputs: &[&Tensor],
    gradients: &[Option<&Tensor>],
    inputs: &[&Tensor],
    options: BackwardOptions,
) -> Vec<Option<Tensor>> {
    run(outputs, gradients, Some(inputs), options)
}

/// Addresses are already spread well enough once the low bits are mixed in.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only addresses are hashed")
    }
    fn write_usize(&mut self, address: usize) {
        self.0 = (address as u64 >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type AddressMap<V> = HashMap<usize, V, BuildHasherDefault<AddressHasher>>;
type AddressSet = HashSet<usize, BuildHasherDefault<AddressHasher>>;

fn address(node: &Arc<Node>) -> usize {
    Arc::as_ptr(node).cast::<()>() as usize
}

fn leaf_address(leaf: &Arc<Leaf>) -> usize {
    Arc::as_ptr(leaf) as usize
}

struct Pending {
    node: Arc<Node>,
    grads: SmallVec<[Option<Tensor>; 1]>,
}

/// The inputs whose gradients are asked for, and the nodes that lead to them.
struct Targets {
    leaves: AddressMap<SmallVec<[usize; 1]>>,
    nodes: AddressMap<SmallVec<[(u32, usize); 1]>>,
    leading: AddressSet,
}

#[track_caller]
fn run(
    outputs: &[&Tensor],
    gradients: &[Option<&Tensor>],
    inputs: Option<&[&Tensor]>,
    options: BackwardOptions,
) -> Vec<Option<Tensor>> {
    let keep = options.retain_graph || options.create_graph;
    #[allow(clippy::manual_map)] // A closure would hide the user's line.
    let targets = match inputs {
        Some(inputs) => Some(Targets::new(outputs, inputs)),
        None => None,
    };
    let mut captured: Vec<Option<Tensor>> = vec![None; inputs.map_or(0, <[_]>::len)];
    let _mode = GradMode::set(options.create_graph);
    let _autocast = Autocast::set(None); // every operation runs in the dtypes of its forward pass
    let mut sweep = Sweep {
        pending: AddressMap::default(),
        heap: BinaryHeap::new(),
        arrivals: 0,
        watched: Vec::new(),
        targets,
        captured: &mut captured,
    };
    for (output, gradient) in outputs.iter().zip(gradients) {
        let gradient = root_gradient(output, *gradient);
        sweep.send(output.history(), gradient);
    }
    while let Some((_, _, key)) = sweep.heap.pop() {
        let Some(Pending { node, mut grads }) = sweep.pending.remove(&key) else { continue };
        node.run_hooks(&mut grads, sweep.targets.is_none());
        sweep.capture(&node, &grads);
        if sweep.targets.as_ref().is_some_and(|t| !t.leading.contains(&key)) {
            continue;
        }
        let _gradient = GradientOf::new(node.at());
        let gradients = node.backward(&grads, keep);
        drop(grads);
        if is_detecting() {
            refuse_nan(&node, &gradients);
        }
        for (edge, gradient) in node.edges().iter().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            if matches!(edge.to, History::None) {
                continue;
            }
            sweep.send(&edge.to, fitted(gradient, edge));
        }
    }
    sweep.finish();
    captured
}

/// # Panics
/// If a gradient has a NaN, naming whose it is.
#[cold]
#[track_caller]
fn refuse_nan(node: &Node, gradients: &Gradients) {
    let _mode = GradMode::set(false);
    for (i, gradient) in gradients.iter().enumerate() {
        let Some(gradient) = gradient.as_ref().filter(|g| g.numel() > 0) else { continue };
        let (op, at) = (node.op(), node.at());
        match gradient.detach().isnan().any(..).item() {
            Ok(0.0) => {}
            Ok(_) => panic!(
                "backward: the gradient of input {i} of {op} (at {}:{}) has NaN in it. gradient: {} {}",
                at.file(),
                at.line(),
                gradient.dtype(),
                gradient.shape()
            ),
            Err(e) => panic!("backward: the gradient of input {i} of {op} cannot be read: {e}"),
        }
    }
}

/// Un-broadcasting, un-casting and un-moving happen here, once for all operations.
#[track_caller]
fn fitted(mut gradient: Tensor, edge: &Edge) -> Tensor {
    if *gradient.device() != edge.device {
        gradient = gradient.to(&edge.device);
    }
    if *gradient.shape() != edge.shape {
        gradient = gradient.sum_to(&edge.shape);
    }
    if gradient.dtype() != edge.dtype {
        gradient = gradient.to_dtype(edge.dtype);
    }
    gradient
}

#[track_caller]
fn root_gradient(output: &Tensor, gradient: Option<&Tensor>) -> Tensor {
    if !output.requires_grad() {
        panic!(
            "backward: nothing that requires a gradient leads to this tensor (was it made inside no_grad, or detached?). \
             tensor: {}",
            output.describe()
        );
    }
    match gradient {
        Some(g) if g.shape() == output.shape() => g.to_dtype(output.dtype()),
        Some(g) => panic!(
            "backward: the gradient's shape {} differs from the tensor's. tensor: {}",
            g.shape(),
            output.describe()
        ),
        None if output.numel() == 1 => output.ones_like(),
        None => panic!(
            "backward: the tensor must have one element, or a gradient must be given (reduce it with .sum(..) or .mean(..)). \
             tensor: {}",
            output.describe()
        ),
    }
}

struct Sweep<'a> {
    pending: AddressMap<Pending>,
    /// Depth, arrival and address. Of equally deep nodes the first to receive a gradient goes first: an order of the addresses
    /// would change the order of sums from run to run.
    heap: BinaryHeap<(u32, Reverse<usize>, usize)>,
    arrivals: usize,
    /// Leaves with hooks, which want to see the whole gradient.
    watched: Vec<(Arc<Leaf>, Tensor)>,
    targets: Option<Targets>,
    captured: &'a mut Vec<Option<Tensor>>,
}

impl Sweep<'_> {
    #[track_caller]
    fn send(&mut self, to: &History, gradient: Tensor) {
        match to {
            History::None => {}
            History::Leaf(leaf) if leaf.has_hooks() => {
                match self.watched.iter_mut().find(|(other, _)| Arc::ptr_eq(other, leaf)) {
                    Some((_, sum)) => sum.accumulate(&gradient),
                    None => self.watched.push((leaf.clone(), gradient)),
                }
            }
            History::Leaf(leaf) => self.arrive(leaf, gradient),
            History::Node(node, output) => {
                let key = address(node);
                if self
                    .targets
                    .as_ref()
                    .is_some_and(|t| !t.leading.contains(&key) && !t.nodes.contains_key(&key))
                {
                    return;
                }
                let pending = self.pending.entry(key).or_insert_with(|| {
                    self.heap.push((node.depth(), Reverse(self.arrivals), key));
                    self.arrivals += 1;
                    Pending { node: node.clone(), grads: smallvec![None; node.output_count()] }
                });
                match &mut pending.grads[*output as usize] {
                    Some(sum) => sum.accumulate(&gradient),
                    empty => *empty = Some(gradient),
                }
            }
        }
    }

    #[track_caller]
    fn arrive(&mut self, leaf: &Arc<Leaf>, gradient: Tensor) {
        match &self.targets {
            None => leaf.accumulate(gradient),
            Some(targets) => {
                for &slot in targets.leaves.get(&leaf_address(leaf)).into_iter().flatten() {
                    add(&mut self.captured[slot], &gradient);
                }
            }
        }
    }

    /// Nothing more will come: the leaves that waited get what their hooks leave.
    #[track_caller]
    fn finish(mut self) {
        for (leaf, gradient) in std::mem::take(&mut self.watched) {
            let gradient = run_hooks(leaf.hooks(), gradient);
            self.arrive(&leaf, gradient);
        }
    }

    #[track_caller]
    fn capture(&mut self, node: &Arc<Node>, grads: &[Option<Tensor>]) {
        let wanted = self.targets.as_ref().and_then(|t| t.nodes.get(&address(node)));
        for &(output, slot) in wanted.into_iter().flatten() {
            if let Some(g) = &grads[output as usize] {
                add(&mut self.captured[slot], g);
            }
        }
    }
}

#[track_caller]
fn add(slot: &mut Option<Tensor>, gradient: &Tensor) {
    match slot {
        Some(sum) => sum.accumulate(gradient),
        None => *slot = Some(gradient.clone()),
    }
}

impl Targets {
    #[track_caller]
    fn new(outputs: &[&Tensor], inputs: &[&Tensor]) -> Targets {
        let mut targets = Targets {
            leaves: AddressMap::default(),
            nodes: AddressMap::default(),
            leading: AddressSet::default(),
        };
        let mut lowest = u32::MAX;
        for (slot, input) in inputs.iter().enumerate() {
            match input.history() {
                History::None => {
                    panic!("grad: input {slot} does not require a gradient. tensor: {}", input.describe())
                }
                History::Leaf(leaf) => {
                    targets.leaves.entry(leaf_address(leaf)).or_default().push(slot);
                    lowest = 0;
                }
                History::Node(node, output) => {
                    targets.nodes.entry(address(node)).or_default().push((*output, slot));
                    lowest = lowest.min(node.depth());
                }
            }
        }
        targets.find_leading(outputs, lowest);
        targets
    }

    /// Marks every node below `outputs` that an input can be reached from: children first, in a loop.
    fn find_leading(&mut self, outputs: &[&Tensor], lowest: u32) {
        let mut seen = AddressSet::default();
        let mut order: Vec<&Arc<Node>> = Vec::new();
        let mut stack: Vec<&Arc<Node>> = outputs.iter().filter_map(|t| t.node().map(|(n, _)| n)).collect();
        while let Some(node) = stack.pop() {
            if node.depth() < lowest || !seen.insert(address(node)) {
                continue;
            }
            order.push(node);
            stack.extend(node.edges().iter().filter_map(|e| match &e.to {
                History::Node(n, _) => Some(n),
                _ => None,
            }));
        }
        order.sort_by_key(|n| n.depth());
        for node in order {
            let leads = node.edges().iter().any(|e| match &e.to {
                History::None => false,
                History::Leaf(leaf) => self.leaves.contains_key(&leaf_address(leaf)),
                History::Node(n, _) => {
                    self.leading.contains(&address(n)) || self.nodes.contains_key(&address(n))
                }
            });
            if leads {
                self.leading.insert(address(node));
            }
        }
    }
}
