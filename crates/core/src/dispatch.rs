//! From checked operands to the backend: one place where every operation passes.

use crate::autograd::{History, is_grad_enabled};
use crate::backend::{Buffer, Output, View};
use crate::caller::Running;
use crate::device::Device;
use crate::dtype::{DType, Scalar};
use crate::error::Error;
use crate::layout::Layout;
use crate::op::{Op, Reduce};
use crate::profile;
use crate::shape::Shape;
use crate::tensor::{Inner, Tensor, empty_buffer};
use smallvec::{Array, SmallVec};
use std::panic::Location;
use std::sync::Arc;

/// Runs an operation with one output.
#[track_caller]
pub(crate) fn run(name: &'static str, op: Op, inputs: &[&Tensor], shape: Shape, dtype: DType) -> Tensor {
    let device = same_device(name, inputs);
    let mut output = [Output::new(shape, dtype)];
    execute(name, &op, device, inputs, &mut output);
    made(&mut output[0], device, name, Location::caller())
}

/// Runs an operation with several outputs.
#[track_caller]
pub(crate) fn run_many<const N: usize>(
    name: &'static str,
    op: Op,
    inputs: &[&Tensor],
    outputs: [(Shape, DType); N],
) -> [Tensor; N] {
    let device = same_device(name, inputs);
    let mut outputs = outputs.map(|(shape, dtype)| Output::new(shape, dtype));
    execute(name, &op, device, inputs, &mut outputs);
    let at = Location::caller(); // a closure has a caller of its own
    outputs.each_mut().map(|o| made(o, device, name, at))
}

/// Runs an elementwise operation, which sees its inputs expanded to `shape`: they broadcast to it.
#[track_caller]
pub(crate) fn run_expanded(
    name: &'static str,
    op: Op,
    inputs: &[&Tensor],
    shape: Shape,
    dtype: DType,
) -> Tensor {
    run_over(name, op, inputs, shape, dtype, None)
}

/// As [`run_expanded`], with an output at the place of an input if there is one: see [`Tensor::give_up`].
#[track_caller]
pub(crate) fn run_over(
    name: &'static str,
    op: Op,
    inputs: &[&Tensor],
    shape: Shape,
    dtype: DType,
    place: Option<Buffer>,
) -> Tensor {
    let device = same_device(name, inputs);
    let mut output = [Output { layout: Layout::contiguous(shape), dtype, buffer: place }];
    if inputs.iter().all(|t| *t.shape() == shape) {
        execute(name, &op, device, inputs, &mut output);
        return made(&mut output[0], device, name, Location::caller());
    }
    if has_elements(name, &mut output) {
        let expanded = |t: &&Tensor| match t.layout().broadcast_to(&shape) {
            Some(layout) => layout,
            None => unreachable!("{name}: {} does not broadcast to {shape}", t.shape()),
        };
        let layouts: SmallVec<[Layout; 3]> = pushed(inputs.iter().map(expanded));
        let pairs = inputs.iter().zip(&layouts);
        let views: Views<'_> = pushed(pairs.map(|(t, layout)| View { layout, ..t.view_of() }));
        execute_views(name, &op, device, inputs, &views, &mut output);
    }
    made(&mut output[0], device, name, Location::caller())
}

/// Runs an operation without tensor inputs.
#[track_caller]
pub(crate) fn run_source(name: &'static str, op: Op, shape: Shape, dtype: DType, device: &Device) -> Tensor {
    let mut output = [Output::new(shape, dtype)];
    execute(name, &op, device, &[], &mut output);
    made(&mut output[0], device, name, Location::caller())
}

/// An output as a tensor.
#[inline]
fn made(output: &mut Output, device: &Device, name: &'static str, at: &'static Location<'static>) -> Tensor {
    let Some(buffer) = output.buffer.take() else {
        panic!("{name}: backend {device} left an output without memory");
    };
    Tensor(Arc::new(Inner {
        buffer,
        layout: output.layout,
        dtype: output.dtype,
        device: device.clone(),
        history: History::None,
        op: name,
        at,
    }))
}

/// Runs a fused operation where the backend has a kernel for it; `None` says: take the lowering.
#[track_caller]
pub(crate) fn run_fused<const N: usize>(
    name: &'static str,
    op: Op,
    inputs: &[&Tensor],
    outputs: [(Shape, DType); N],
) -> Option<[Tensor; N]> {
    let mut outputs = std::array::from_fn(|i| {
        let (shape, dtype) = outputs[i];
        Output::new(shape, dtype)
    });
    run_fused_over(name, op, inputs, &mut outputs)
}

/// As [`run_fused`], with outputs that may be the memory of inputs: see [`Tensor::give_up`].
#[track_caller]
pub(crate) fn run_fused_over<const N: usize>(
    name: &'static str,
    op: Op,
    inputs: &[&Tensor],
    outputs: &mut [Output; N],
) -> Option<[Tensor; N]> {
    let (device, views) = (same_device(name, inputs), views(inputs));
    if !has_kernel(&op, device, &views, outputs.iter().map(|o| o.layout.shape())) {
        return None;
    }
    has_elements(name, outputs);
    execute_views(name, &op, device, inputs, &views, outputs);
    let at = Location::caller();
    Some(outputs.each_mut().map(|o| made(o, device, name, at)))
}

/// As [`run_fused`], for operations whose number of outputs depends on their parameters.
#[track_caller]
pub(crate) fn run_fused_list(
    name: &'static str,
    op: Op,
    inputs: &[&Tensor],
    outputs: &[(Shape, DType)],
) -> Option<Vec<Tensor>> {
    let (device, views) = (same_device(name, inputs), views(inputs));
    if !has_kernel(&op, device, &views, outputs.iter().map(|(shape, _)| shape)) {
        return None;
    }
    let mut outputs: Vec<Output> = outputs.iter().map(|&(shape, dtype)| Output::new(shape, dtype)).collect();
    has_elements(name, &mut outputs);
    execute_views(name, &op, device, inputs, &views, &mut outputs);
    let at = Location::caller();
    Some(outputs.iter_mut().map(|o| made(o, device, name, at)).collect())
}

/// Is this a problem with elements, and has the backend a kernel for it?
fn has_kernel<'a>(
    op: &Op,
    device: &Device,
    views: &[View<'_>],
    mut outputs: impl Iterator<Item = &'a Shape>,
) -> bool {
    let empty = views.iter().any(|v| v.layout.shape().contains(&0)) || outputs.any(|s| s.contains(&0));
    !empty && device.backend().supports(op, views)
}

/// Runs a fused operation that writes into `targets`, which are made unshared and row-major first. False if the backend has no
/// kernel for it; then nothing was changed.
///
/// This is how optimizers update parameters and their state in one pass.
///
/// # Panics
/// If devices differ or the device fails.
#[track_caller]
pub fn run_in_place(name: &'static str, op: Op, inputs: &[&Tensor], targets: &mut [&mut Tensor]) -> bool {
    let views: Vec<View<'_>> = inputs.iter().map(|t| t.view_of()).collect(); // an optimizer has many
    let Some(device) = targets.first().map(|t| t.device().clone()) else { return false };
    require_device(name, &device, inputs);
    if inputs.iter().any(|t| t.numel() == 0) || !device.backend().supports(&op, &views) {
        return false;
    }
    for t in targets.iter_mut() {
        t.make_unique();
    }
    let mut outputs: Vec<Output> = targets
        .iter()
        .map(|t| Output { layout: t.0.layout, dtype: t.0.dtype, buffer: Some(t.0.buffer.clone()) })
        .collect();
    if has_elements(name, &mut outputs) {
        execute_views(name, &op, &device, inputs, &views, &mut outputs);
    }
    true
}

/// Runs a primitive that writes into `target` under `layout`; the target's memory must be unshared already (it may be an input too).
#[track_caller]
pub(crate) fn run_into(name: &'static str, op: Op, inputs: &[&Tensor], target: &Tensor, layout: Layout) {
    if layout.numel() == 0 {
        return;
    }
    let device = target.device();
    require_device(name, device, inputs);
    let mut outputs = [Output { layout, dtype: target.dtype(), buffer: Some(target.0.buffer.clone()) }];
    execute(name, &op, device, inputs, &mut outputs);
}

#[track_caller]
fn execute(name: &'static str, op: &Op, device: &Device, inputs: &[&Tensor], outputs: &mut [Output]) {
    if !has_elements(name, outputs) {
        return;
    }
    if inputs.iter().any(|t| t.shape().contains(&0)) {
        // Something is computed from nothing: the operation's neutral element.
        let identity = Op::Fill(neutral(name, op, inputs));
        return execute_views(name, &identity, device, &[], &[], outputs);
    }
    execute_views(name, op, device, inputs, &views(inputs), outputs);
}

/// The backend's part. `inputs` are what `views` show, as messages name it.
#[track_caller]
fn execute_views(
    name: &'static str,
    op: &Op,
    device: &Device,
    inputs: &[&Tensor],
    views: &[View<'_>],
    outputs: &mut [Output],
) {
    let running = Running::new(name, Location::caller());
    let result =
        profile::timed(name, device, views, outputs, |outputs| device.backend().execute(op, views, outputs));
    drop(running);
    if let Err(e) = result {
        fail(name, &e, inputs, outputs);
    }
}

/// Operands on the stack: nearly all operations have few.
type Views<'a> = SmallVec<[View<'a>; 6]>;

#[inline(always)]
fn views<'a>(inputs: &[&'a Tensor]) -> Views<'a> {
    pushed(inputs.iter().map(|t| t.view_of()))
}

/// A few items on the stack. Its own loop: what `collect` does for any number costs more than such a list.
#[inline(always)]
pub(crate) fn pushed<A: Array>(items: impl Iterator<Item = A::Item>) -> SmallVec<A> {
    let mut list = SmallVec::new();
    items.for_each(|item| list.push(item));
    list
}

#[cold]
#[track_caller]
fn fail(name: &str, error: &Error, inputs: &[&Tensor], outputs: &[Output]) -> ! {
    let operands: Vec<_> = inputs.iter().map(|t| t.describe()).collect();
    let error = match error {
        // The backend names the primitive; the user knows the public operation.
        Error::IndexOutOfRange { index, size, .. } => {
            format!("index {index} is out of range for a dimension of size {size}")
        }
        other => other.to_string(),
    };
    let results: Vec<_> = outputs.iter().map(|o| format!("{} {}", o.dtype, o.layout.shape())).collect();
    panic!("{name}: {error}; operands: [{}]; result: {}", operands.join("; "), results.join(", "));
}

/// Has any output elements? Those that have none get their memory here.
///
/// # Panics
/// If one does not fit in the address space.
#[track_caller]
fn has_elements(name: &str, outputs: &mut [Output]) -> bool {
    let mut any = false;
    for o in outputs {
        let shape = o.layout.shape();
        match shape.checked_numel().and_then(|n| n.checked_mul(o.dtype.size())) {
            Some(0) => o.buffer = Some(empty_buffer()),
            Some(bytes) if bytes <= isize::MAX as usize => any = true,
            _ => panic!("{name}: a {} tensor of shape {shape} does not fit in the address space", o.dtype),
        }
    }
    any
}

#[track_caller]
fn neutral(name: &str, op: &Op, inputs: &[&Tensor]) -> Scalar {
    match op {
        Op::Reduce(Reduce::Sum, _) | Op::Matmul => Scalar::Int(0),
        Op::Reduce(Reduce::Prod, _) => Scalar::Int(1),
        Op::Reduce(Reduce::Mean, _) => Scalar::Float(f64::NAN),
        Op::Reduce(Reduce::Any, _) => Scalar::Bool(false),
        Op::Reduce(Reduce::All, _) => Scalar::Bool(true),
        _ => panic!(
            "{name}: not defined for a tensor without elements. operands: [{}]",
            inputs.iter().map(|t| t.describe()).collect::<Vec<_>>().join("; ")
        ),
    }
}

/// What is written into decides about the device.
#[track_caller]
fn require_device(name: &str, device: &Device, inputs: &[&Tensor]) {
    if let Some(other) = inputs.iter().find(|t| t.device() != device) {
        panic!(
            "{name}: operands on different devices: {} is on {}, the tensor to change on {device}; move one with .to(&device)",
            other.describe(),
            other.device()
        );
    }
}

#[track_caller]
fn same_device<'a>(name: &str, inputs: &[&'a Tensor]) -> &'a Device {
    let device = inputs[0].device();
    if let Some(other) = inputs.iter().find(|t| t.device() != device) {
        panic!(
            "{name}: operands on different devices: {} is on {device}, {} is on {}; move one with .to(&device)",
            inputs[0].describe(),
            other.describe(),
            other.device()
        );
    }
    device
}

impl Tensor {
    /// True if nobody else can see this tensor's memory.
    pub(crate) fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.0).is_some_and(|inner| Arc::get_mut(&mut inner.buffer).is_some())
    }

    /// The memory of a tensor that is about to go, for a row-major result that fits into it exactly; where the device wants that and
    /// nobody else can see the memory.
    pub(crate) fn give_up(&mut self, shape: &Shape, dtype: DType) -> Option<Buffer> {
        let fits = self.dtype() == dtype
            && *self.layout() == Layout::contiguous(*shape)
            && self.0.buffer.size() == shape.numel() * dtype.size();
        (fits && self.device().backend().reuses_operands() && self.is_unique()).then(|| self.0.buffer.clone())
    }

    /// Makes the memory unshared and row-major, by copying if need be. Drops the history; but under `no_grad`, where a leaf is
    /// updated, it goes on as a leaf.
    #[track_caller]
    pub(crate) fn make_unique(&mut self) {
        let leaf = match self.history() {
            History::Leaf(leaf) if !is_grad_enabled() => Some(leaf.of_changed_value()),
            _ => None,
        };
        self.own_memory();
        if let Some(leaf) = leaf {
            self.set_history(History::Leaf(Arc::new(leaf)));
        }
    }

    #[track_caller]
    fn own_memory(&mut self) {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.history = History::None;
            if inner.layout.is_contiguous() && Arc::get_mut(&mut inner.buffer).is_some() {
                return;
            }
        }
        *self = if self.numel() > 0 { self.detach().copy() } else { self.detach() };
    }
}
