//! From checked operands to the backend: one place where every operation passes.

use crate::autograd::History;
use crate::backend::{Output, View};
use crate::caller::Running;
use crate::device::Device;
use crate::dtype::{DType, Scalar};
use crate::error::Error;
use crate::layout::Layout;
use crate::op::{Op, Reduce};
use crate::profile;
use crate::shape::Shape;
use crate::tensor::{Inner, Tensor, empty_buffer};
use smallvec::SmallVec;
use std::panic::Location;
use std::sync::Arc;

/// Runs an operation with one output.
#[track_caller]
pub(crate) fn run(name: &'static str, op: Op, inputs: &[&Tensor], shape: Shape, dtype: DType) -> Tensor {
    let [out] = run_many(name, op, inputs, [(shape, dtype)]);
    out
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
    execute(name, &op, &device, inputs, &mut outputs);
    let at = Location::caller(); // a closure has a caller of its own
    outputs.map(|o| made(o, &device, name, at))
}

/// Runs an operation without tensor inputs.
#[track_caller]
pub(crate) fn run_source(name: &'static str, op: Op, shape: Shape, dtype: DType, device: &Device) -> Tensor {
    let mut outputs = [Output::new(shape, dtype)];
    execute(name, &op, device, &[], &mut outputs);
    let [o] = outputs;
    made(o, device, name, Location::caller())
}

/// An output as a tensor.
fn made(output: Output, device: &Device, name: &'static str, at: &'static Location<'static>) -> Tensor {
    let Output { layout, dtype, buffer } = output;
    let buffer = buffer.unwrap_or_else(|| panic!("{name}: backend {device} left an output without memory"));
    Tensor(Arc::new(Inner {
        buffer,
        layout,
        dtype,
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
    // No closure: it would be the caller that errors name.
    match has_kernel(name, &op, inputs, &outputs) {
        true => Some(run_many(name, op, inputs, outputs)),
        false => None,
    }
}

/// As [`run_fused`], for operations whose number of outputs depends on their parameters.
#[track_caller]
pub(crate) fn run_fused_list(
    name: &'static str,
    op: Op,
    inputs: &[&Tensor],
    outputs: &[(Shape, DType)],
) -> Option<Vec<Tensor>> {
    if !has_kernel(name, &op, inputs, outputs) {
        return None;
    }
    let device = inputs[0].device();
    let mut made_here: Vec<Output> =
        outputs.iter().map(|&(shape, dtype)| Output::new(shape, dtype)).collect();
    execute(name, &op, device, inputs, &mut made_here);
    let at = Location::caller();
    Some(made_here.into_iter().map(|o| made(o, device, name, at)).collect())
}

/// Is this a problem with elements, and has the backend a kernel for it?
#[track_caller]
fn has_kernel(name: &'static str, op: &Op, inputs: &[&Tensor], outputs: &[(Shape, DType)]) -> bool {
    let device = same_device(name, inputs);
    let views: SmallVec<[View<'_>; 8]> = inputs.iter().map(|t| t.view_of()).collect();
    let empty = inputs.iter().any(|t| t.numel() == 0) || outputs.iter().any(|(s, _)| s.contains(&0));
    !empty && device.backend().supports(op, &views)
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
    let views: Vec<View<'_>> = inputs.iter().map(|t| t.view_of()).collect();
    let Some(device) = targets.first().map(|t| t.device().clone()) else { return false };
    if let Some(other) = inputs.iter().copied().find(|t| *t.device() != device) {
        panic!(
            "{name}: operands on different devices: {} is on {}, not {device}",
            other.describe(),
            other.device()
        );
    }
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
    execute(name, &op, &device, inputs, &mut outputs);
    true
}

/// Runs a primitive that writes into `target` under `layout`; the target must be unshared already.
#[track_caller]
pub(crate) fn run_into(name: &'static str, op: Op, inputs: &[&Tensor], target: &mut Tensor, layout: Layout) {
    if layout.numel() == 0 {
        return;
    }
    let device = target.device().clone();
    if let Some(other) = inputs.iter().find(|t| *t.device() != device) {
        panic!(
            "{name}: operands on different devices: {} is on {}, not {device}",
            other.describe(),
            other.device()
        );
    }
    let mut outputs = [Output { layout, dtype: target.dtype(), buffer: Some(target.0.buffer.clone()) }];
    execute(name, &op, &device, inputs, &mut outputs);
}

#[track_caller]
fn execute(name: &'static str, op: &Op, device: &Device, inputs: &[&Tensor], outputs: &mut [Output]) {
    let mut empty = true;
    for o in outputs.iter_mut() {
        if o.layout.shape().contains(&0) {
            o.buffer = Some(empty_buffer());
        } else {
            check_size(name, o);
            empty = false;
        }
    }
    if empty {
        return;
    }
    let identity;
    let (op, inputs) = if inputs.iter().any(|t| t.numel() == 0) {
        // Something is computed from nothing: the operation's neutral element.
        identity = Op::Fill(neutral(name, op, inputs));
        (&identity, &[][..])
    } else {
        (op, inputs)
    };
    let views: SmallVec<[View<'_>; 8]> = inputs.iter().map(|t| t.view_of()).collect();
    let running = Running::new(name, Location::caller());
    let result = profile::timed(name, device, &views, outputs, |outputs| {
        device.backend().execute(op, &views, outputs)
    });
    drop(running);
    if let Err(e) = result {
        fail(name, &e, inputs, outputs);
    }
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

#[track_caller]
fn check_size(name: &str, output: &Output) {
    let shape = output.layout.shape();
    let bytes = shape.checked_numel().and_then(|n| n.checked_mul(output.dtype.size()));
    if bytes.is_none_or(|b| b > isize::MAX as usize) {
        panic!("{name}: a {} tensor of shape {shape} does not fit in the address space", output.dtype);
    }
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

#[track_caller]
fn same_device(name: &str, inputs: &[&Tensor]) -> Device {
    let device = inputs[0].device();
    for t in &inputs[1..] {
        if t.device() != device {
            panic!(
                "{name}: operands on different devices: {} is on {device}, {} is on {}; move one with .to(&device)",
                inputs[0].describe(),
                t.describe(),
                t.device()
            );
        }
    }
    device.clone()
}

impl Tensor {
    /// True if nobody else can see this tensor's memory.
    pub(crate) fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.0).is_some_and(|inner| Arc::get_mut(&mut inner.buffer).is_some())
    }

    /// Makes the memory unshared and row-major, by copying if need be. Drops the history.
    #[track_caller]
    pub(crate) fn make_unique(&mut self) {
        self.set_history(crate::autograd::History::None);
        if self.numel() > 0 && !(self.is_contiguous() && self.is_unique()) {
            *self = self.copy();
        }
    }
}
