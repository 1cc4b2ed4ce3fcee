//! Schedulers one after the other.

use super::chained::load_all;
use super::{LrScheduler, as_count, from_numbers, initial_lr, numbers};
use crate::optim::Optimizer;
use orkest_core::{Error, Result};
use serde_json::{Value, json};

/// One scheduler after the other: each begins at its milestone, at its own epoch 0.
///
/// ```
/// # use orkest_core::{Device, Param, Tensor};
/// # use orkest_nn::optim::{Optimizer, SGD};
/// # use orkest_nn::scheduler::{CosineAnnealingLR, LinearLR, LrScheduler, SequentialLR};
/// # let mut optimizer = SGD::new([Param::new(Tensor::ones(2, &Device::cpu()))], 1.0);
/// let warmup = LinearLR::new(&mut optimizer, 0.1, 1.0, 10);
/// let cosine = CosineAnnealingLR::new(&mut optimizer, 90, 0.0);
/// let mut scheduler = SequentialLR::new(&mut optimizer, vec![Box::new(warmup), Box::new(cosine)], &[10]);
/// assert_eq!(optimizer.lr(), 0.1);
/// # scheduler.step(&mut optimizer);
/// ```
pub struct SequentialLR {
    schedulers: Vec<Box<dyn LrScheduler + Send + Sync>>,
    milestones: Vec<usize>,
    epoch: usize,
    last_lr: Vec<f64>,
}

impl SequentialLR {
    /// Schedulers of this optimizer, and the epochs at which the second, the third .. begins.
    ///
    /// # Panics
    /// If there is not one milestone less than schedulers, or the milestones do not rise.
    #[track_caller]
    pub fn new(
        optimizer: &mut dyn Optimizer,
        schedulers: Vec<Box<dyn LrScheduler + Send + Sync>>,
        milestones: &[usize],
    ) -> SequentialLR {
        assert!(
            schedulers.len() == milestones.len() + 1,
            "SequentialLR: {} schedulers need {} milestones, got {}",
            schedulers.len(),
            schedulers.len().saturating_sub(1),
            milestones.len()
        );
        assert!(milestones.is_sorted(), "SequentialLR: the milestones {milestones:?} do not rise");
        let mut all =
            SequentialLR { schedulers, milestones: milestones.to_vec(), epoch: 0, last_lr: Vec::new() };
        all.restart(optimizer);
        all
    }

    /// The scheduler whose turn it is.
    fn current(&self) -> usize {
        self.milestones.partition_point(|&m| m <= self.epoch)
    }
}

impl LrScheduler for SequentialLR {
    #[track_caller]
    fn step(&mut self, optimizer: &mut dyn Optimizer) {
        self.epoch += 1;
        let i = self.current();
        if i > 0 && self.milestones[i - 1] == self.epoch {
            self.schedulers[i].restart(optimizer);
        } else {
            self.schedulers[i].step(optimizer);
        }
        self.last_lr = self.schedulers[i].last_lr();
    }

    #[track_caller]
    fn restart(&mut self, optimizer: &mut dyn Optimizer) {
        self.epoch = 0;
        for group in optimizer.param_groups_mut() {
            initial_lr(group);
            group.set_lr(group.number("initial_lr"));
        }
        let i = self.current();
        self.schedulers[i].restart(optimizer);
        self.last_lr = self.schedulers[i].last_lr();
    }

    fn last_lr(&self) -> Vec<f64> {
        self.last_lr.clone()
    }

    fn state_dict(&self) -> Value {
        let schedulers: Vec<Value> = self.schedulers.iter().map(LrScheduler::state_dict).collect();
        json!({ "last_epoch": self.epoch, "_last_lr": numbers(&self.last_lr), "_schedulers": schedulers })
    }

    fn load_state_dict(&mut self, state: &Value) -> Result<()> {
        let wrong = |what: &str| Error::Data(format!("SequentialLR: {what} is missing or does not fit"));
        let epoch = as_count(&state["last_epoch"]).ok_or_else(|| wrong("last_epoch"))?;
        let last_lr = from_numbers(&state["_last_lr"]).filter(|l| l.len() == self.last_lr.len());
        let last_lr = last_lr.ok_or_else(|| wrong("_last_lr"))?;
        load_all(&mut self.schedulers, state, wrong)?;
        (self.epoch, self.last_lr) = (epoch, last_lr);
        Ok(())
    }
}
