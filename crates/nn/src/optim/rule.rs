//! Optimizers whose step is a rule for one parameter, written in tensor operations.

use super::group::Groups;
use super::state::{self, OptimizerState};
use super::{Memory, OptionValue, ParamGroup, ParamGroups, check_gradient, follow};
use orkest_core::{GradMode, Param, Result, Tensor};

/// How one parameter changes, and what is remembered about it.
pub(super) trait Rule: Memory {
    /// Before the first step.
    fn new(value: &Tensor, group: &ParamGroup) -> Self;

    /// The remembered tensors that have the parameter's shape.
    fn like_param(&mut self) -> Vec<&mut Tensor>;

    /// Takes a step. `grad` has the dtype and the device of `value`, and the sign to descend along.
    #[track_caller]
    fn step(&mut self, grad: Tensor, value: &mut Tensor, group: &ParamGroup);
}

/// The parameters and what a rule remembers about them.
#[derive(Debug)]
pub(super) struct ByRule<R> {
    pub groups: Groups,
    name: &'static str,
    /// In the order of the groups and their parameters; made when a parameter gets its first gradient.
    memories: Vec<Option<R>>,
}

impl<R: Rule> ByRule<R> {
    #[track_caller]
    pub fn new(name: &'static str, params: ParamGroups, options: &[(&str, OptionValue)]) -> ByRule<R> {
        let groups = Groups::new(name, params, options);
        let memories = (0..groups.num_params()).map(|_| None).collect();
        ByRule { groups, name, memories }
    }

    #[track_caller]
    pub fn step(&mut self) {
        let _off = GradMode::set(false);
        let mut memories = self.memories.iter_mut();
        for group in self.groups.list() {
            for (param, memory) in group.params().iter().zip(memories.by_ref()) {
                step_param(self.name, param, memory, group);
            }
        }
    }

    #[track_caller]
    pub fn add_param_group(&mut self, group: ParamGroup) {
        self.groups.add(group);
        self.memories.resize_with(self.groups.num_params(), || None);
    }

    pub fn state_dict(&self) -> OptimizerState {
        state::collect(&self.groups, &self.memories)
    }

    pub fn load_state_dict(&mut self, state: &OptimizerState) -> Result<()> {
        self.memories = state::restore(&mut self.groups, state)?;
        Ok(())
    }
}

#[track_caller]
fn step_param<R: Rule>(name: &'static str, param: &Param, memory: &mut Option<R>, group: &ParamGroup) {
    let Some(grad) = param.grad() else { return };
    check_gradient(name, param, &grad);
    let value = &mut *param.write();
    let memory = memory.get_or_insert_with(|| R::new(value, group));
    for tensor in memory.like_param() {
        follow(name, tensor, value);
    }
    let maximize = matches!(group.get("maximize"), Some(OptionValue::Flag(true)));
    let grad = grad.detach().to(value.device()).to_dtype(value.dtype());
    memory.step(if maximize { -grad } else { grad }, value, group);
}

/// The gradient with L2 decay.
pub(super) fn with_decay(grad: Tensor, value: &Tensor, group: &ParamGroup) -> Tensor {
    match group.weight_decay() {
        0.0 => grad,
        decay => grad + value * decay,
    }
}

/// `average ← decay · average + (1 - decay) · grad²`
pub(super) fn average_square(average: &mut Tensor, grad: &Tensor, decay: f64) {
    *average = &*average * decay + grad * (1.0 - decay) * grad;
}

/// `1 - betaᵗ`: what is missing in an average that started at zero. Steps beyond 2³¹ have no bias left to correct.
pub(super) fn bias_correction(beta: f64, step: u64) -> f64 {
    1.0 - beta.powi(step.min(i32::MAX as u64) as i32)
}

/// An optimizer by rule, with its options and their defaults. `extra` options have setters of their own.
macro_rules! optimizer {
    (
        $(#[$doc:meta])*
        $name:ident($memory:ty) {
            $($(#[$option_doc:meta])* $option:ident: $type:ty = $default:expr,)*
        }
        $(extra { $($extra:ident = $value:expr,)* })?
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name($crate::optim::rule::ByRule<$memory>);

        impl $name {
            /// For a model's parameters or several groups of them.
            ///
            /// # Panics
            /// If there are no parameters, one is in two groups, or `lr` is negative or NaN.
            #[track_caller]
            pub fn new(params: impl Into<$crate::optim::ParamGroups>, lr: f64) -> $name {
                let options: &[(&str, $crate::optim::OptionValue)] = &[
                    ("lr", lr.into()),
                    $((stringify!($option), <$type>::into($default)),)*
                    $($((stringify!($extra), $value.into()),)*)?
                ];
                $name($crate::optim::rule::ByRule::new(stringify!($name), params.into(), options))
            }

            $(
                $(#[$option_doc])*
                ///
                /// # Panics
                /// If the value is out of range.
                #[track_caller]
                pub fn $option(self, $option: $type) -> $name {
                    self.with(stringify!($option), $option)
                }
            )*

            #[track_caller]
            fn with(mut self, name: &str, value: impl Into<$crate::optim::OptionValue>) -> $name {
                self.0.groups.set_default(name, value);
                self
            }
        }

        impl $crate::optim::Optimizer for $name {
            #[track_caller]
            fn step(&mut self) {
                self.0.step();
            }

            fn param_groups(&self) -> &[$crate::optim::ParamGroup] {
                self.0.groups.list()
            }

            fn param_groups_mut(&mut self) -> &mut [$crate::optim::ParamGroup] {
                self.0.groups.list_mut()
            }

            #[track_caller]
            fn add_param_group(&mut self, group: $crate::optim::ParamGroup) {
                self.0.add_param_group(group);
            }

            fn state_dict(&self) -> $crate::optim::OptimizerState {
                self.0.state_dict()
            }

            fn load_state_dict(&mut self, state: &$crate::optim::OptimizerState) -> orkest_core::Result<()> {
                self.0.load_state_dict(state)
            }
        }
    };
}

pub(super) use optimizer;
