//! Learning-rate schedules, with PyTorch's names and numbers.
//!
//! A scheduler sets the rates of the optimizer that it is given: once when it is made (epoch 0), and again in every `step`, which
//! belongs after the optimizer's.
//!
//! ```
//! use orkest_core::{Device, Param, Tensor};
//! use orkest_nn::optim::{Optimizer, SGD};
//! use orkest_nn::scheduler::{LrScheduler, StepLR};
//!
//! let weight = Param::new(Tensor::ones(2, &Device::cpu()));
//! let mut optimizer = SGD::new([weight], 0.1);
//! let mut scheduler = StepLR::new(&mut optimizer, 2, 0.5);
//! let mut rates = Vec::new();
//! for _epoch in 0..4 {
//!     rates.push(optimizer.lr());
//!     optimizer.step();
//!     scheduler.step(&mut optimizer);
//! }
//! assert_eq!(rates, [0.1, 0.1, 0.05, 0.05]);
//! ```
//!
//! Most schedules multiply the rate that is there, as PyTorch's do, so two of them on one optimizer combine. To resume, make
//! optimizer and schedulers as in the first run, and load their states then.

use crate::optim::{Optimizer, ParamGroup, as_number, number};
use orkest_core::{Error, Result};
use serde_json::{Value, json};

/// Sets learning rates from epoch to epoch (or from step to step: whatever the unit of its arguments is).
pub trait LrScheduler {
    /// Goes on to the next epoch and sets the optimizer's rates.
    fn step(&mut self, optimizer: &mut dyn Optimizer);

    /// Goes back to epoch 0 and sets the rates that belong there.
    fn restart(&mut self, optimizer: &mut dyn Optimizer);

    /// The rates set last, one per parameter group.
    fn last_lr(&self) -> Vec<f64>;

    /// What is needed to continue later, as JSON.
    fn state_dict(&self) -> Value;

    /// Continues from a saved state. The optimizer's rates are part of the optimizer's state.
    ///
    /// # Errors
    /// If the state belongs to another kind of scheduler or to other parameter groups; then nothing has changed.
    fn load_state_dict(&mut self, state: &Value) -> Result<()>;
}

impl<S: LrScheduler + ?Sized> LrScheduler for Box<S> {
    fn step(&mut self, optimizer: &mut dyn Optimizer) {
        (**self).step(optimizer);
    }
    fn restart(&mut self, optimizer: &mut dyn Optimizer) {
        (**self).restart(optimizer);
    }
    fn last_lr(&self) -> Vec<f64> {
        (**self).last_lr()
    }
    fn state_dict(&self) -> Value {
        (**self).state_dict()
    }
    fn load_state_dict(&mut self, state: &Value) -> Result<()> {
        (**self).load_state_dict(state)
    }
}

/// Where a scheduler is.
#[derive(Clone, Debug, Default)]
struct Progress {
    epoch: usize,
    base_lrs: Vec<f64>,
    last_lr: Vec<f64>,
}

/// What a formula knows when it is asked for the rate of one parameter group.
struct At {
    epoch: usize,
    group: usize,
    /// The rate before all schedules.
    base: f64,
    /// The rate now.
    lr: f64,
    /// The scheduler is being made: `lr` is the rate that it found.
    first: bool,
}

/// A schedule as formulas.
trait Formula {
    /// The rate at this epoch from the rate before it.
    #[track_caller]
    fn next(&self, at: &At) -> f64;

    /// The rate at this epoch from the rate before all schedules.
    #[track_caller]
    fn jump(&self, at: &At) -> f64;

    /// What else changes in the group.
    fn adjust(&self, _epoch: usize, _group: usize, _options: &mut ParamGroup) {}

    /// PyTorch's name, for messages.
    fn name(&self) -> &'static str;
}

impl Progress {
    /// The start of a new scheduler.
    #[track_caller]
    fn start(formula: &impl Formula, optimizer: &mut dyn Optimizer) -> Progress {
        for group in optimizer.param_groups_mut() {
            initial_lr(group);
        }
        let base_lrs = optimizer.param_groups().iter().map(|g| g.number("initial_lr")).collect();
        let mut progress = Progress { epoch: 0, base_lrs, last_lr: Vec::new() };
        progress.apply(formula, optimizer, |at| formula.next(&At { first: true, ..at }));
        progress
    }

    #[track_caller]
    fn apply(&mut self, formula: &impl Formula, optimizer: &mut dyn Optimizer, rate: impl Fn(At) -> f64) {
        let groups = optimizer.param_groups_mut();
        assert!(
            groups.len() == self.base_lrs.len(),
            "{}: the optimizer has {} parameter groups and had {} when the scheduler was made",
            formula.name(),
            groups.len(),
            self.base_lrs.len()
        );
        for (i, group) in groups.iter_mut().enumerate() {
            let at = At { epoch: self.epoch, group: i, base: self.base_lrs[i], lr: group.lr(), first: false };
            group.set_lr(rate(at));
            formula.adjust(self.epoch, i, group);
        }
        self.last_lr = rates(optimizer);
    }

    fn state_dict(&self) -> Value {
        json!({ "last_epoch": self.epoch, "base_lrs": numbers(&self.base_lrs), "_last_lr": numbers(&self.last_lr) })
    }

    fn load(&self, name: &str, state: &Value) -> Result<Progress> {
        let list = |key: &str| match from_numbers(&state[key]) {
            Some(list) if list.len() == self.base_lrs.len() => Ok(list),
            Some(list) => {
                Err(format!("{key} is for {} parameter groups, not {}", list.len(), self.base_lrs.len()))
            }
            None => Err(format!("{key} is missing or no list of numbers")),
        };
        let read = || {
            let epoch = as_count(&state["last_epoch"]).ok_or("last_epoch is missing or no count")?;
            Ok(Progress { epoch, base_lrs: list("base_lrs")?, last_lr: list("_last_lr")? })
        };
        read().map_err(|e: String| Error::Data(format!("{name}: {e}")))
    }
}

fn initial_lr(group: &mut ParamGroup) {
    if group.get("initial_lr").is_none() {
        group.set("initial_lr", group.lr());
    }
}

fn rates(optimizer: &dyn Optimizer) -> Vec<f64> {
    optimizer.param_groups().iter().map(ParamGroup::lr).collect()
}

fn numbers(list: &[f64]) -> Value {
    list.iter().map(|&x| number(x)).collect()
}

fn from_numbers(json: &Value) -> Option<Vec<f64>> {
    json.as_array()?.iter().map(as_number).collect()
}

fn as_count(json: &Value) -> Option<usize> {
    json.as_u64().and_then(|n| usize::try_from(n).ok())
}

/// The value of a group from a list of one value for all groups or one for each.
fn pick(list: &[f64], group: usize) -> f64 {
    list[group % list.len()]
}

/// Implements [`LrScheduler`] for a struct with a `formula` and a `progress`.
macro_rules! scheduler {
    ($($(#[$doc:meta])* $name:ident($formula:ident);)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name {
            formula: $formula,
            progress: Progress,
        }

        impl $name {
            #[track_caller]
            fn start(optimizer: &mut dyn Optimizer, formula: $formula) -> $name {
                let progress = Progress::start(&formula, optimizer);
                $name { formula, progress }
            }
        }

        impl LrScheduler for $name {
            #[track_caller]
            fn step(&mut self, optimizer: &mut dyn Optimizer) {
                self.progress.epoch += 1;
                let formula = &self.formula;
                self.progress.apply(formula, optimizer, |at| formula.next(&at));
            }

            #[track_caller]
            fn restart(&mut self, optimizer: &mut dyn Optimizer) {
                self.progress.epoch = 0;
                let formula = &self.formula;
                self.progress.apply(formula, optimizer, |at| formula.jump(&at));
            }

            fn last_lr(&self) -> Vec<f64> {
                self.progress.last_lr.clone()
            }

            fn state_dict(&self) -> Value {
                self.progress.state_dict()
            }

            fn load_state_dict(&mut self, state: &Value) -> Result<()> {
                self.progress = self.progress.load(stringify!($name), state)?;
                Ok(())
            }
        }
    )*};
}

// After the macro, which they use.
mod chained;
mod cosine;
mod cyclic;
mod decay;
mod one_cycle;
mod plateau;
mod sequential;
#[cfg(test)]
mod tests;

pub use chained::ChainedScheduler;
pub use cosine::{CosineAnnealingLR, CosineAnnealingWarmRestarts};
pub use cyclic::{CyclicLR, CyclicMode, CyclicOptions};
pub use decay::{
    ConstantLR, ExponentialLR, LambdaLR, LinearLR, MultiStepLR, MultiplicativeLR, PolynomialLR, StepLR,
};
pub use one_cycle::{Anneal, OneCycleLR, OneCycleOptions};
pub use plateau::{PlateauMode, ReduceLROnPlateau, ThresholdMode};
pub use sequential::SequentialLR;
