//! The one-cycle schedule.

use super::{At, Formula, LrScheduler, Progress, pick};
use crate::optim::{Optimizer, OptionValue, ParamGroup};
use orkest_core::Result;
use serde_json::Value;
use std::f64::consts::PI;

/// How [`OneCycleLR`] goes from one value to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Anneal {
    /// Along half a cosine.
    #[default]
    Cos,
    /// Along a straight line.
    Linear,
}

impl Anneal {
    fn between(self, start: f64, end: f64, done: f64) -> f64 {
        match self {
            Anneal::Cos => end + (start - end) / 2.0 * ((PI * done).cos() + 1.0),
            Anneal::Linear => (end - start) * done + start,
        }
    }
}

/// What [`OneCycleLR`] can be told; the defaults are PyTorch's.
///
/// Lists have one value for all parameter groups, or one for each.
#[derive(Clone, Debug)]
pub struct OneCycleOptions {
    /// The highest rates.
    pub max_lr: Vec<f64>,
    /// How many steps the cycle has.
    pub total_steps: usize,
    /// The part of the cycle in which the rate rises; 0.3.
    pub pct_start: f64,
    /// The shape of the curve; cosine.
    pub anneal_strategy: Anneal,
    /// Whether the momentum (or beta1) falls while the rate rises; true.
    pub cycle_momentum: bool,
    /// The lowest momenta; 0.85.
    pub base_momentum: Vec<f64>,
    /// The highest momenta; 0.95.
    pub max_momentum: Vec<f64>,
    /// The first rate is `max_lr / div_factor`; 25.
    pub div_factor: f64,
    /// The last rate is the first one divided by this; 1e4.
    pub final_div_factor: f64,
    /// Whether the rate falls as it rose, before it falls to the last one; false.
    pub three_phase: bool,
}

impl OneCycleOptions {
    /// The defaults.
    pub fn new(max_lr: f64, total_steps: usize) -> OneCycleOptions {
        OneCycleOptions {
            max_lr: vec![max_lr],
            total_steps,
            pct_start: 0.3,
            anneal_strategy: Anneal::Cos,
            cycle_momentum: true,
            base_momentum: vec![0.85],
            max_momentum: vec![0.95],
            div_factor: 25.0,
            final_div_factor: 1e4,
            three_phase: false,
        }
    }
}

scheduler! {
    /// Up to a maximal rate and down again in one run, with the momentum (or beta1) in the opposite direction
    /// (<https://arxiv.org/abs/1708.07120>). Call `step` after every batch.
    OneCycleLR(OneCycle);
}

impl OneCycleLR {
    /// With PyTorch's default options.
    ///
    /// # Panics
    /// As [`OneCycleLR::with_options`].
    #[track_caller]
    pub fn new(optimizer: &mut dyn Optimizer, max_lr: f64, total_steps: usize) -> OneCycleLR {
        OneCycleLR::with_options(optimizer, OneCycleOptions::new(max_lr, total_steps))
    }

    /// With these options.
    ///
    /// # Panics
    /// If `total_steps` is 0, `pct_start` is not in `[0, 1]`, a list is neither for one group nor for all, or the momentum is to
    /// be cycled and the optimizer has none. A step after the last one panics too.
    #[track_caller]
    pub fn with_options(optimizer: &mut dyn Optimizer, options: OneCycleOptions) -> OneCycleLR {
        let o = &options;
        assert!(o.total_steps > 0, "OneCycleLR: total_steps must be at least 1");
        assert!(
            (0.0..=1.0).contains(&o.pct_start),
            "OneCycleLR: pct_start must lie in [0, 1], got {}",
            o.pct_start
        );
        let groups = optimizer.param_groups().len();
        let lists =
            [("max_lr", &o.max_lr), ("base_momentum", &o.base_momentum), ("max_momentum", &o.max_momentum)];
        for (name, list) in lists {
            assert!(
                [1, groups].contains(&list.len()),
                "OneCycleLR: {} values of {name} for {groups} parameter groups",
                list.len()
            );
        }
        let last = o.total_steps as f64 - 1.0;
        let rise = o.pct_start * o.total_steps as f64 - 1.0;
        let phases = if o.three_phase {
            let fall = 2.0 * o.pct_start * o.total_steps as f64 - 2.0;
            vec![
                Phase { end: rise, lr: [Lr::Initial, Lr::Max], momentum: [Momentum::Max, Momentum::Base] },
                Phase { end: fall, lr: [Lr::Max, Lr::Initial], momentum: [Momentum::Base, Momentum::Max] },
                Phase { end: last, lr: [Lr::Initial, Lr::Min], momentum: [Momentum::Max, Momentum::Max] },
            ]
        } else {
            vec![
                Phase { end: rise, lr: [Lr::Initial, Lr::Max], momentum: [Momentum::Max, Momentum::Base] },
                Phase { end: last, lr: [Lr::Max, Lr::Min], momentum: [Momentum::Base, Momentum::Max] },
            ]
        };
        for (i, group) in optimizer.param_groups_mut().iter_mut().enumerate() {
            let has_momentum = group.get("betas").is_some() || group.get("momentum").is_some();
            assert!(!o.cycle_momentum || has_momentum, "OneCycleLR: the optimizer has no momentum to cycle");
            let max = pick(&o.max_lr, i);
            group.set("initial_lr", max / o.div_factor);
            group.set("max_lr", max);
            group.set("min_lr", max / o.div_factor / o.final_div_factor);
        }
        OneCycleLR::start(optimizer, OneCycle { phases, options })
    }
}

#[derive(Debug)]
struct OneCycle {
    phases: Vec<Phase>,
    options: OneCycleOptions,
}

/// Up to the step `end`, from the first value to the second.
#[derive(Debug)]
struct Phase {
    end: f64,
    lr: [Lr; 2],
    momentum: [Momentum; 2],
}

#[derive(Clone, Copy, Debug)]
enum Lr {
    Initial,
    Max,
    Min,
}

#[derive(Clone, Copy, Debug)]
enum Momentum {
    Base,
    Max,
}

impl OneCycle {
    /// The phase of a step, and how much of it is done.
    fn phase(&self, step: usize) -> (&Phase, f64) {
        let step = step as f64;
        let last = self.phases.len() - 1;
        let i = self.phases[..last].iter().position(|p| step <= p.end).unwrap_or(last);
        let start = if i == 0 { 0.0 } else { self.phases[i - 1].end };
        (&self.phases[i], (step - start) / (self.phases[i].end - start))
    }
}

impl Formula for OneCycle {
    #[track_caller]
    fn next(&self, at: &At) -> f64 {
        let o = &self.options;
        assert!(
            at.epoch <= o.total_steps,
            "OneCycleLR: step {} of a cycle of {} steps",
            at.epoch,
            o.total_steps
        );
        let (phase, done) = self.phase(at.epoch);
        let max = pick(&o.max_lr, at.group);
        let [start, end] = phase.lr.map(|lr| match lr {
            Lr::Initial => max / o.div_factor,
            Lr::Max => max,
            Lr::Min => max / o.div_factor / o.final_div_factor,
        });
        o.anneal_strategy.between(start, end, done)
    }
    #[track_caller]
    fn jump(&self, at: &At) -> f64 {
        self.next(at)
    }
    fn adjust(&self, epoch: usize, group: usize, options: &mut ParamGroup) {
        let o = &self.options;
        if !o.cycle_momentum {
            return;
        }
        let (phase, done) = self.phase(epoch);
        let [start, end] = phase.momentum.map(|m| match m {
            Momentum::Base => pick(&o.base_momentum, group),
            Momentum::Max => pick(&o.max_momentum, group),
        });
        let momentum = o.anneal_strategy.between(start, end, done);
        match options.get("betas") {
            Some(OptionValue::Pair(_, beta2)) => options.set("betas", (momentum, beta2)),
            _ => options.set("momentum", momentum),
        }
    }
    fn name(&self) -> &'static str {
        "OneCycleLR"
    }
}
