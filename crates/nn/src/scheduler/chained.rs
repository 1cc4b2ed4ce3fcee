//! Schedulers together.

use super::{LrScheduler, initial_lr, rates};
use crate::optim::Optimizer;
use orkest_core::{Error, Result};
use serde_json::{Value, json};

/// Several schedulers at once: each changes the rate that the one before it has left, in every epoch.
///
/// ```
/// # use orkest_core::{Device, Param, Tensor};
/// # use orkest_nn::optim::{Optimizer, SGD};
/// # use orkest_nn::scheduler::{ChainedScheduler, ConstantLR, ExponentialLR, LrScheduler};
/// # let mut optimizer = SGD::new([Param::new(Tensor::ones(2, &Device::cpu()))], 1.0);
/// let warmup = ConstantLR::new(&mut optimizer, 0.5, 1);
/// let decay = ExponentialLR::new(&mut optimizer, 0.9);
/// let mut scheduler = ChainedScheduler::new(&mut optimizer, vec![Box::new(warmup), Box::new(decay)]);
/// assert_eq!(optimizer.lr(), 0.5);
/// scheduler.step(&mut optimizer);
/// assert_eq!(optimizer.lr(), 0.9);
/// ```
pub struct ChainedScheduler {
    schedulers: Vec<Box<dyn LrScheduler + Send + Sync>>,
    last_lr: Vec<f64>,
}

impl ChainedScheduler {
    /// Schedulers of this optimizer, in the order in which they act.
    ///
    /// # Panics
    /// If there are none.
    #[track_caller]
    pub fn new(
        optimizer: &mut dyn Optimizer,
        schedulers: Vec<Box<dyn LrScheduler + Send + Sync>>,
    ) -> ChainedScheduler {
        assert!(!schedulers.is_empty(), "ChainedScheduler: there are no schedulers");
        ChainedScheduler { schedulers, last_lr: rates(optimizer) }
    }
}

impl LrScheduler for ChainedScheduler {
    #[track_caller]
    fn step(&mut self, optimizer: &mut dyn Optimizer) {
        self.schedulers.iter_mut().for_each(|scheduler| scheduler.step(optimizer));
        self.last_lr = rates(optimizer);
    }

    /// Each scheduler begins again with a multiple of the initial rate; all of these together make the rate.
    #[track_caller]
    fn restart(&mut self, optimizer: &mut dyn Optimizer) {
        for group in optimizer.param_groups_mut() {
            initial_lr(group);
        }
        let initial: Vec<f64> = optimizer.param_groups().iter().map(|g| g.number("initial_lr")).collect();
        let mut factors = vec![1.0; initial.len()];
        for scheduler in &mut self.schedulers {
            scheduler.restart(optimizer);
            for ((factor, lr), initial) in factors.iter_mut().zip(rates(optimizer)).zip(&initial) {
                *factor *= if *initial == 0.0 { 1.0 } else { lr / initial };
            }
        }
        for ((group, factor), initial) in optimizer.param_groups_mut().iter_mut().zip(factors).zip(initial) {
            group.set_lr(initial * factor);
        }
        self.last_lr = rates(optimizer);
    }

    fn last_lr(&self) -> Vec<f64> {
        self.last_lr.clone()
    }

    fn state_dict(&self) -> Value {
        let schedulers: Vec<Value> = self.schedulers.iter().map(LrScheduler::state_dict).collect();
        json!({ "_last_lr": super::numbers(&self.last_lr), "_schedulers": schedulers })
    }

    fn load_state_dict(&mut self, state: &Value) -> Result<()> {
        let wrong = |what: &str| Error::Data(format!("ChainedScheduler: {what} is missing or does not fit"));
        let last_lr = super::from_numbers(&state["_last_lr"]).filter(|l| l.len() == self.last_lr.len());
        let last_lr = last_lr.ok_or_else(|| wrong("_last_lr"))?;
        load_all(&mut self.schedulers, state, wrong)?;
        self.last_lr = last_lr;
        Ok(())
    }
}

/// Loads the states of several schedulers, or of none.
pub(super) fn load_all(
    schedulers: &mut [Box<dyn LrScheduler + Send + Sync>],
    state: &Value,
    wrong: impl Fn(&str) -> Error,
) -> Result<()> {
    let saved = state["_schedulers"].as_array().filter(|s| s.len() == schedulers.len());
    let saved = saved.ok_or_else(|| wrong("_schedulers"))?;
    let before: Vec<Value> = schedulers.iter().map(LrScheduler::state_dict).collect();
    for (i, state) in saved.iter().enumerate() {
        if let Err(e) = schedulers[i].load_state_dict(state) {
            for (scheduler, state) in schedulers.iter_mut().zip(&before) {
                scheduler.load_state_dict(state)?;
            }
            return Err(e);
        }
    }
    Ok(())
}
