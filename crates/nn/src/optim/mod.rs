//! Optimizers: they change parameters along their gradients.
//!
//! Names, defaults, formulas and state are PyTorch's. A step of [`SGD`], [`Adam`] and [`AdamW`] is one fused pass over all parameters
//! of a group where the device has a kernel for it (one pass per device, dtype and step count, to be exact), and tensor operations
//! elsewhere; the others are tensor operations.
//!
//! | optimizer | how it steps |
//! |---|---|
//! | [`SGD`] | along the gradient, with momentum |
//! | [`Adam`], [`AdamW`], [`NAdam`], [`RAdam`], [`Adamax`] | along an average of the gradient, scaled by its size so far |
//! | [`RMSprop`], [`Adagrad`], [`Adadelta`] | along the gradient, scaled by its size so far |
//! | [`Adafactor`] | the same with one row and one column of memory for a matrix |
//! | [`Lion`], [`Rprop`] | by the sign only |
//! | [`Muon`] | along the nearest orthogonal matrix |
//! | [`LBFGS`] | with an estimate of the curvature, for small smooth problems; it evaluates the loss itself |
//!
//! ```
//! use orkest_core::{Device, Param, Tensor};
//! use orkest_nn::optim::{Adam, Optimizer};
//!
//! let weight = Param::new(Tensor::new([1.0f32, -2.0], &Device::cpu()));
//! let mut optimizer = Adam::new([weight.clone()], 0.1);
//! for _ in 0..200 {
//!     optimizer.zero_grad();
//!     weight.tensor().square().sum(..).backward();
//!     optimizer.step();
//! }
//! assert!(weight.value().abs().max(..).item().unwrap() < 0.01);
//! ```

mod adadelta;
mod adafactor;
mod adagrad;
mod adam;
mod adamax;
mod asgd;
mod group;
mod lbfgs;
mod line_search;
mod lion;
mod muon;
mod nadam;
mod radam;
mod rmsprop;
mod rprop;
mod rule;
mod sgd;
mod state;

pub use adadelta::Adadelta;
pub use adafactor::Adafactor;
pub use adagrad::Adagrad;
pub use adam::{Adam, AdamW};
pub use adamax::Adamax;
pub use asgd::ASGD;
pub use group::{OptionValue, ParamGroup, ParamGroups};
pub use lbfgs::{LBFGS, LineSearch};
pub use lion::Lion;
pub use muon::{AdjustLr, Muon};
pub use nadam::NAdam;
pub use radam::RAdam;
pub use rmsprop::RMSprop;
pub use rprop::Rprop;
pub use sgd::SGD;
pub use state::{GroupState, OptimizerState};
pub(crate) use state::{as_number, number};

use orkest_core::{DType, Device, Error, Op, Param, Result, Tensor, run_in_place};
use std::path::Path;

/// Changes parameters along their gradients.
///
/// Parameters without a gradient are skipped: neither they nor their state change.
pub trait Optimizer {
    /// Takes one step with the gradients that the parameters hold.
    fn step(&mut self);

    /// The groups of parameters with their options.
    fn param_groups(&self) -> &[ParamGroup];

    /// The groups, to change their options.
    fn param_groups_mut(&mut self) -> &mut [ParamGroup];

    /// Adds a group, e.g. layers that have been unfrozen.
    ///
    /// # Panics
    /// If a parameter is in another group already, or an option is unknown or invalid.
    fn add_param_group(&mut self, group: ParamGroup);

    /// Everything that is needed to continue later: the state of each parameter, and the options.
    fn state_dict(&self) -> OptimizerState;

    /// Continues from a saved state. The tensors go to the devices and dtypes of the parameters they belong to.
    ///
    /// # Errors
    /// If the state belongs to other parameters or another optimizer; the message lists everything that does not fit, and
    /// nothing has changed.
    fn load_state_dict(&mut self, state: &OptimizerState) -> Result<()>;

    /// Forgets all gradients.
    fn zero_grad(&self) {
        self.param_groups().iter().flat_map(ParamGroup::params).for_each(Param::zero_grad);
    }

    /// The learning rate of the first group.
    fn lr(&self) -> f64 {
        self.param_groups()[0].lr()
    }

    /// Sets the learning rate of all groups.
    fn set_lr(&mut self, lr: f64) {
        for group in self.param_groups_mut() {
            group.set_lr(lr);
        }
    }

    /// Writes [`Optimizer::state_dict`] to a safetensors file.
    ///
    /// # Errors
    /// If the file cannot be written; a file that was there before is left alone then.
    fn save(&self, path: impl AsRef<Path>) -> Result<()>
    where
        Self: Sized,
    {
        self.state_dict().save(path)
    }

    /// Continues from a file that [`Optimizer::save`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read, or as [`Optimizer::load_state_dict`].
    fn load(&mut self, path: impl AsRef<Path>) -> Result<()>
    where
        Self: Sized,
    {
        self.load_state_dict(&OptimizerState::load(path)?)
    }
}

/// `Box<dyn Optimizer>` is an optimizer too, with `save` and `load`, and names the line that calls `step` where a gradient does not
/// fit: a call through `dyn` alone forgets who called.
impl<O: Optimizer + ?Sized> Optimizer for Box<O> {
    #[track_caller]
    fn step(&mut self) {
        check_gradients("step", self.param_groups());
        (**self).step();
    }

    fn param_groups(&self) -> &[ParamGroup] {
        (**self).param_groups()
    }

    fn param_groups_mut(&mut self) -> &mut [ParamGroup] {
        (**self).param_groups_mut()
    }

    #[track_caller]
    fn add_param_group(&mut self, group: ParamGroup) {
        (**self).add_param_group(group);
    }

    fn state_dict(&self) -> OptimizerState {
        (**self).state_dict()
    }

    fn load_state_dict(&mut self, state: &OptimizerState) -> Result<()> {
        (**self).load_state_dict(state)
    }

    fn zero_grad(&self) {
        (**self).zero_grad();
    }

    fn lr(&self) -> f64 {
        (**self).lr()
    }

    fn set_lr(&mut self, lr: f64) {
        (**self).set_lr(lr);
    }
}

/// Every gradient has its parameter's shape.
#[track_caller]
pub(crate) fn check_gradients(op: &str, groups: &[ParamGroup]) {
    for param in groups.iter().flat_map(ParamGroup::params) {
        if let Some(grad) = param.grad() {
            check_gradient(op, param, &grad);
        }
    }
}

#[track_caller]
fn check_gradient(op: &str, param: &Param, grad: &Tensor) {
    assert!(
        *grad.shape() == param.shape(),
        "{op}: the gradient of {param:?} has shape {}; replacing a value by one of another shape needs zero_grad()",
        grad.shape()
    );
}

/// What an optimizer remembers about one parameter.
trait Memory: Sized {
    /// The tensors under PyTorch's names.
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)>;

    /// From tensors that were saved. What is missing or does not fit goes into the list of problems.
    fn from_tensors(saved: &mut state::Saved<'_>, group: &ParamGroup) -> Self;
}

/// A memory of steps that one pass can take for many parameters.
trait Prepare: Memory {
    /// Makes or updates the memory for the next step; gives what else the pass depends on.
    #[track_caller]
    fn prepare(slot: &mut Option<Self>, value: &Tensor, group: &ParamGroup) -> u64;
}

/// Parameters that one fused pass can change: same device, same dtype, same `key` (what else the pass depends on).
struct Batch<'a, M> {
    device: Device,
    dtype: DType,
    key: u64,
    params: Vec<Param>,
    grads: Vec<Tensor>,
    memories: Vec<&'a mut M>,
}

/// Sorts the parameters of a group that have gradients into batches, with their memories ready for the step.
#[track_caller]
fn batches<'a, M: Prepare>(
    op: &'static str,
    group: &ParamGroup,
    memories: &'a mut [Option<M>],
) -> Vec<Batch<'a, M>> {
    let mut batches: Vec<Batch<'a, M>> = Vec::new();
    for (param, memory) in group.params().iter().zip(memories) {
        let Some(grad) = param.grad() else { continue };
        check_gradient(op, param, &grad);
        let value = param.value();
        let key = M::prepare(memory, &value, group);
        let Some(memory) = memory.as_mut() else { continue };
        if value.numel() == 0 {
            continue;
        }
        let (device, dtype) = (value.device().clone(), value.dtype());
        let grad = like_value(grad, &value);
        let place = batches.iter().position(|b| b.device == device && b.dtype == dtype && b.key == key);
        let batch = match place {
            Some(i) => &mut batches[i],
            None => {
                let (params, grads, memories) = (Vec::new(), Vec::new(), Vec::new());
                batches.push(Batch { device, dtype, key, params, grads, memories });
                let last = batches.len() - 1;
                &mut batches[last]
            }
        };
        batch.params.push(param.clone());
        batch.grads.push(grad);
        batch.memories.push(memory);
    }
    batches
}

/// The gradient as kernels want it: a row-major constant with the device and dtype of the parameter.
#[track_caller]
fn like_value(grad: Tensor, value: &Tensor) -> Tensor {
    let is_so = !grad.requires_grad()
        && grad.device() == value.device()
        && grad.dtype() == value.dtype()
        && grad.is_contiguous();
    if is_so { grad } else { grad.detach().to(value.device()).to_dtype(value.dtype()).contiguous() }
}

impl<M> Batch<'_, M> {
    /// Runs the fused step, or `lowering` for each parameter where there is no kernel. `fields` names the tensors of a memory
    /// that are changed, in the order of the operation.
    #[track_caller]
    fn run<const N: usize>(
        &mut self,
        name: &'static str,
        op: Op,
        fields: impl Fn(&mut M) -> [Option<&mut Tensor>; N],
        lowering: impl Fn(&Tensor, &mut Tensor, [Option<&mut Tensor>; N]),
    ) {
        let mut values: Vec<_> = self.params.iter().map(Param::write).collect();
        let mut columns: [Vec<&mut Tensor>; N] = std::array::from_fn(|_| Vec::new());
        for memory in &mut self.memories {
            for (column, field) in columns.iter_mut().zip(fields(memory)) {
                column.extend(field);
            }
        }
        let grads: Vec<&Tensor> = self.grads.iter().collect();
        let states = columns.into_iter().flatten();
        let mut targets: Vec<&mut Tensor> = values.iter_mut().map(|v| &mut **v).chain(states).collect();
        if run_in_place(name, op, &grads, &mut targets) {
            return;
        }
        for ((grad, value), memory) in self.grads.iter().zip(&mut values).zip(&mut self.memories) {
            lowering(grad, value, fields(memory));
        }
    }
}

/// Brings a tensor of an optimizer's memory to where its parameter is now.
#[track_caller]
fn follow(op: &'static str, memory: &mut Tensor, value: &Tensor) {
    assert!(
        memory.shape() == value.shape(),
        "{op}: a parameter had shape {} in earlier steps and has {} now; build a new optimizer",
        memory.shape(),
        value.shape()
    );
    if memory.device() != value.device() || memory.dtype() != value.dtype() {
        *memory = memory.to_dtype(value.dtype()).to(value.device());
    }
}

fn mismatch(problems: &[String]) -> Error {
    Error::Data(format!(
        "load_state_dict: the state does not fit this optimizer:\n  {}",
        problems.join("\n  ")
    ))
}

#[cfg(test)]
mod tests;
