//! Lower rates when a metric stops improving.

use super::{as_count, from_numbers, numbers, pick, rates};
use crate::optim::{Optimizer, as_number, number};
use orkest_core::{Error, Result};
use serde_json::{Value, json};

/// Whether a metric should fall or rise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PlateauMode {
    /// A loss: lower is better.
    #[default]
    Min,
    /// An accuracy: higher is better.
    Max,
}

/// How the threshold of [`ReduceLROnPlateau`] is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ThresholdMode {
    /// As a part of the best value.
    #[default]
    Rel,
    /// As a difference.
    Abs,
}

/// The rate times `factor` when a metric has not improved for more than `patience` epochs. The defaults are PyTorch's.
///
/// ```
/// # use orkest_core::{Device, Param, Tensor};
/// # use orkest_nn::optim::{Optimizer, SGD};
/// # use orkest_nn::scheduler::ReduceLROnPlateau;
/// # let mut optimizer = SGD::new([Param::new(Tensor::ones(2, &Device::cpu()))], 1.0);
/// let mut scheduler = ReduceLROnPlateau::new(&mut optimizer).factor(0.5).patience(1);
/// for validation_loss in [1.0, 1.0, 1.0] {
///     scheduler.step(validation_loss, &mut optimizer);
/// }
/// assert_eq!(optimizer.lr(), 0.5);
/// ```
#[derive(Clone, Debug)]
pub struct ReduceLROnPlateau {
    mode: PlateauMode,
    factor: f64,
    patience: usize,
    threshold: f64,
    threshold_mode: ThresholdMode,
    cooldown: usize,
    min_lrs: Vec<f64>,
    eps: f64,
    best: Option<f64>,
    bad_epochs: usize,
    cooldown_left: usize,
    epoch: usize,
    last_lr: Vec<f64>,
}

impl ReduceLROnPlateau {
    /// For a metric that should fall; factor 0.1, patience 10.
    pub fn new(optimizer: &mut dyn Optimizer) -> ReduceLROnPlateau {
        ReduceLROnPlateau {
            mode: PlateauMode::Min,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            threshold_mode: ThresholdMode::Rel,
            cooldown: 0,
            min_lrs: vec![0.0],
            eps: 1e-8,
            best: None,
            bad_epochs: 0,
            cooldown_left: 0,
            epoch: 0,
            last_lr: rates(optimizer),
        }
    }

    /// Whether the metric should fall (the default) or rise.
    pub fn mode(mut self, mode: PlateauMode) -> ReduceLROnPlateau {
        self.mode = mode;
        self
    }

    /// What the rate is multiplied by.
    ///
    /// # Panics
    /// If it is not below 1.
    #[track_caller]
    pub fn factor(mut self, factor: f64) -> ReduceLROnPlateau {
        assert!(factor < 1.0, "ReduceLROnPlateau: factor must be below 1, got {factor}");
        self.factor = factor;
        self
    }

    /// How many epochs without improvement are borne.
    pub fn patience(mut self, patience: usize) -> ReduceLROnPlateau {
        self.patience = patience;
        self
    }

    /// By how much the best value must be beaten; 1e-4, relative.
    pub fn threshold(mut self, threshold: f64, mode: ThresholdMode) -> ReduceLROnPlateau {
        (self.threshold, self.threshold_mode) = (threshold, mode);
        self
    }

    /// For how many epochs after a reduction nothing is counted; 0.
    pub fn cooldown(mut self, cooldown: usize) -> ReduceLROnPlateau {
        self.cooldown = cooldown;
        self
    }

    /// The lowest rate, one for all parameter groups or one for each; 0.
    ///
    /// # Panics
    /// If there are neither one nor as many as groups.
    #[track_caller]
    pub fn min_lr(mut self, min_lr: &[f64]) -> ReduceLROnPlateau {
        let groups = self.last_lr.len();
        assert!(
            [1, groups].contains(&min_lr.len()),
            "ReduceLROnPlateau: {} lowest rates for {groups} parameter groups",
            min_lr.len()
        );
        self.min_lrs = min_lr.to_vec();
        self
    }

    /// Reductions by no more than this are left out; 1e-8.
    pub fn eps(mut self, eps: f64) -> ReduceLROnPlateau {
        self.eps = eps;
        self
    }

    /// Takes note of an epoch's metric, and reduces the rates if it has not improved for too long.
    pub fn step(&mut self, metric: f64, optimizer: &mut dyn Optimizer) {
        self.epoch += 1;
        if self.is_better(metric) {
            self.best = Some(metric);
            self.bad_epochs = 0;
        } else {
            self.bad_epochs += 1;
        }
        if self.cooldown_left > 0 {
            self.cooldown_left -= 1;
            self.bad_epochs = 0;
        }
        if self.bad_epochs > self.patience {
            for (i, group) in optimizer.param_groups_mut().iter_mut().enumerate() {
                let lr = (group.lr() * self.factor).max(pick(&self.min_lrs, i));
                if group.lr() - lr > self.eps {
                    group.set_lr(lr);
                }
            }
            self.cooldown_left = self.cooldown;
            self.bad_epochs = 0;
        }
        self.last_lr = rates(optimizer);
    }

    fn is_better(&self, metric: f64) -> bool {
        let sign = if self.mode == PlateauMode::Min { -1.0 } else { 1.0 };
        let best = self.best.unwrap_or(-sign * f64::INFINITY);
        let limit = match self.threshold_mode {
            ThresholdMode::Rel => best * (1.0 + sign * self.threshold),
            ThresholdMode::Abs => best + sign * self.threshold,
        };
        sign * metric > sign * limit
    }

    /// The best metric so far.
    pub fn best(&self) -> Option<f64> {
        self.best
    }

    /// The rates set last, one per parameter group.
    pub fn last_lr(&self) -> Vec<f64> {
        self.last_lr.clone()
    }

    /// What is needed to continue later, as JSON.
    pub fn state_dict(&self) -> Value {
        json!({
            "last_epoch": self.epoch,
            "_last_lr": numbers(&self.last_lr),
            "best": self.best.map(number),
            "num_bad_epochs": self.bad_epochs,
            "cooldown_counter": self.cooldown_left,
        })
    }

    /// Continues from a saved state.
    ///
    /// # Errors
    /// If something is missing or belongs to other parameter groups; then nothing has changed.
    pub fn load_state_dict(&mut self, state: &Value) -> Result<()> {
        let wrong = |what: &str| Error::Data(format!("ReduceLROnPlateau: {what} is missing or does not fit"));
        let count = |key: &str| as_count(&state[key]).ok_or_else(|| wrong(key));
        let last_lr = from_numbers(&state["_last_lr"]).filter(|l| l.len() == self.last_lr.len());
        let best = match &state["best"] {
            Value::Null => None,
            best => Some(as_number(best).ok_or_else(|| wrong("best"))?),
        };
        *self = ReduceLROnPlateau {
            last_lr: last_lr.ok_or_else(|| wrong("_last_lr"))?,
            best,
            bad_epochs: count("num_bad_epochs")?,
            cooldown_left: count("cooldown_counter")?,
            epoch: count("last_epoch")?,
            ..self.clone()
        };
        Ok(())
    }
}
