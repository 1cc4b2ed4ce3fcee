//! The cyclical schedule.

use super::{At, Formula, LrScheduler, Progress, pick};
use crate::optim::{Optimizer, OptionValue, ParamGroup};
use orkest_core::Result;
use serde_json::Value;

/// How the cycles of a [`CyclicLR`] become smaller.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub enum CyclicMode {
    /// Not at all.
    #[default]
    Triangular,
    /// Each is half as high as the one before.
    Triangular2,
    /// By this factor in every step.
    ExpRange(f64),
}

/// What [`CyclicLR`] can be told; the defaults are PyTorch's.
///
/// Lists have one value for all parameter groups, or one for each.
#[derive(Clone, Debug)]
pub struct CyclicOptions {
    /// The lowest rates.
    pub base_lr: Vec<f64>,
    /// The highest rates.
    pub max_lr: Vec<f64>,
    /// How many steps the rate rises; 2000.
    pub step_size_up: usize,
    /// How many steps it falls; as many as it rises if `None`.
    pub step_size_down: Option<usize>,
    /// How cycles become smaller; not at all.
    pub mode: CyclicMode,
    /// Whether the momentum (or beta1) falls while the rate rises; true.
    pub cycle_momentum: bool,
    /// The lowest momenta; 0.8.
    pub base_momentum: Vec<f64>,
    /// The highest momenta; 0.9.
    pub max_momentum: Vec<f64>,
}

impl CyclicOptions {
    /// The defaults.
    pub fn new(base_lr: f64, max_lr: f64) -> CyclicOptions {
        CyclicOptions {
            base_lr: vec![base_lr],
            max_lr: vec![max_lr],
            step_size_up: 2000,
            step_size_down: None,
            mode: CyclicMode::Triangular,
            cycle_momentum: true,
            base_momentum: vec![0.8],
            max_momentum: vec![0.9],
        }
    }
}

scheduler! {
    /// Up and down between two rates, again and again, with the momentum (or beta1) in the opposite direction
    /// (<https://arxiv.org/abs/1506.01186>). Call `step` after every batch.
    CyclicLR(Cyclic);
}

impl CyclicLR {
    /// With PyTorch's default options.
    ///
    /// # Panics
    /// As [`CyclicLR::with_options`].
    #[track_caller]
    pub fn new(optimizer: &mut dyn Optimizer, base_lr: f64, max_lr: f64) -> CyclicLR {
        CyclicLR::with_options(optimizer, CyclicOptions::new(base_lr, max_lr))
    }

    /// With these options.
    ///
    /// # Panics
    /// If a number of steps is 0, a list is neither for one group nor for all, or the momentum is to be cycled and the optimizer has
    /// none.
    #[track_caller]
    pub fn with_options(optimizer: &mut dyn Optimizer, options: CyclicOptions) -> CyclicLR {
        let o = &options;
        assert!(o.step_size_up > 0 && o.step_size_down != Some(0), "CyclicLR: step sizes must be at least 1");
        let groups = optimizer.param_groups().len();
        let lists = [
            ("base_lr", &o.base_lr),
            ("max_lr", &o.max_lr),
            ("base_momentum", &o.base_momentum),
            ("max_momentum", &o.max_momentum),
        ];
        for (name, list) in lists {
            assert!(
                [1, groups].contains(&list.len()),
                "CyclicLR: {} values of {name} for {groups} parameter groups",
                list.len()
            );
        }
        for (i, group) in optimizer.param_groups_mut().iter_mut().enumerate() {
            let has_momentum = group.get("betas").is_some() || group.get("momentum").is_some();
            assert!(!o.cycle_momentum || has_momentum, "CyclicLR: the optimizer has no momentum to cycle");
            group.set_lr(pick(&o.base_lr, i));
            group.set("initial_lr", pick(&o.base_lr, i));
        }
        CyclicLR::start(optimizer, Cyclic(options))
    }
}

#[derive(Debug)]
struct Cyclic(CyclicOptions);

impl Cyclic {
    /// How far a step is from the lowest rate, as a part of the way to the highest.
    fn height(&self, step: usize) -> f64 {
        let up = self.0.step_size_up as f64;
        let total = up + self.0.step_size_down.map_or(up, |down| down as f64);
        let (turn, ratio) = (step as f64 / total, up / total);
        let cycle = (1.0 + turn).floor();
        let done = 1.0 + turn - cycle;
        let height = if done <= ratio { done / ratio } else { (done - 1.0) / (ratio - 1.0) };
        height
            * match self.0.mode {
                CyclicMode::Triangular => 1.0,
                CyclicMode::Triangular2 => 1.0 / 2f64.powf(cycle - 1.0),
                CyclicMode::ExpRange(gamma) => gamma.powf(step as f64),
            }
    }
}

impl Formula for Cyclic {
    fn next(&self, at: &At) -> f64 {
        let (base, max) = (pick(&self.0.base_lr, at.group), pick(&self.0.max_lr, at.group));
        base + (max - base) * self.height(at.epoch)
    }
    fn jump(&self, at: &At) -> f64 {
        self.next(at)
    }
    fn adjust(&self, epoch: usize, group: usize, options: &mut ParamGroup) {
        if !self.0.cycle_momentum {
            return;
        }
        let (base, max) = (pick(&self.0.base_momentum, group), pick(&self.0.max_momentum, group));
        let momentum = max - (max - base) * self.height(epoch);
        match options.get("betas") {
            Some(OptionValue::Pair(_, beta2)) => options.set("betas", (momentum, beta2)),
            _ => options.set("momentum", momentum),
        }
    }
    fn name(&self) -> &'static str {
        "CyclicLR"
    }
}
