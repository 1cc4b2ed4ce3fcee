//! Schedules that follow a cosine.

use super::{At, Formula, LrScheduler, Progress};
use crate::optim::Optimizer;
use orkest_core::Result;
use serde_json::Value;
use std::f64::consts::PI;

scheduler! {
    /// The rate falls along half a cosine from `base_lr` to `eta_min` in `t_max` epochs (and rises again after that).
    CosineAnnealingLR(Cosine);
}

impl CosineAnnealingLR {
    /// PyTorch's default `eta_min` is 0.
    ///
    /// # Panics
    /// If `t_max` is 0.
    #[track_caller]
    pub fn new(optimizer: &mut dyn Optimizer, t_max: usize, eta_min: f64) -> CosineAnnealingLR {
        assert!(t_max > 0, "CosineAnnealingLR: t_max must be at least 1");
        CosineAnnealingLR::start(optimizer, Cosine { t_max, eta_min })
    }
}

#[derive(Debug)]
struct Cosine {
    t_max: usize,
    eta_min: f64,
}

impl Cosine {
    fn wave(&self, epoch: usize) -> f64 {
        1.0 + (PI * epoch as f64 / self.t_max as f64).cos()
    }
}

impl Formula for Cosine {
    fn next(&self, at: &At) -> f64 {
        if at.first {
            return at.lr;
        }
        let after_the_bottom =
            at.epoch > self.t_max && (at.epoch - 1 - self.t_max).is_multiple_of(2 * self.t_max);
        if after_the_bottom {
            // The factor below would divide by zero.
            return at.lr + (at.base - self.eta_min) * (1.0 - (PI / self.t_max as f64).cos()) / 2.0;
        }
        self.wave(at.epoch) / self.wave(at.epoch - 1) * (at.lr - self.eta_min) + self.eta_min
    }
    fn jump(&self, at: &At) -> f64 {
        self.eta_min + (at.base - self.eta_min) * self.wave(at.epoch) / 2.0
    }
    fn name(&self) -> &'static str {
        "CosineAnnealingLR"
    }
}

scheduler! {
    /// Half a cosine from `base_lr` to `eta_min`, again and again: the first takes `t_0` epochs, each further one `t_mult` times
    /// as many as the one before (<https://arxiv.org/abs/1608.03983>).
    CosineAnnealingWarmRestarts(Restarts);
}

impl CosineAnnealingWarmRestarts {
    /// PyTorch's defaults are `t_mult` 1 and `eta_min` 0.
    ///
    /// # Panics
    /// If `t_0` or `t_mult` is 0.
    #[track_caller]
    pub fn new(
        optimizer: &mut dyn Optimizer,
        t_0: usize,
        t_mult: usize,
        eta_min: f64,
    ) -> CosineAnnealingWarmRestarts {
        assert!(
            t_0 > 0 && t_mult > 0,
            "CosineAnnealingWarmRestarts: t_0 and t_mult must be at least 1, got {t_0} and {t_mult}"
        );
        CosineAnnealingWarmRestarts::start(optimizer, Restarts { t_0, t_mult, eta_min })
    }
}

#[derive(Debug)]
struct Restarts {
    t_0: usize,
    t_mult: usize,
    eta_min: f64,
}

impl Restarts {
    /// How far into which length of cosine an epoch is.
    fn place(&self, epoch: usize) -> (usize, usize) {
        if self.t_mult == 1 {
            return (epoch % self.t_0, self.t_0);
        }
        let (mut into, mut length) = (epoch, self.t_0);
        while into >= length {
            into -= length;
            length *= self.t_mult;
        }
        (into, length)
    }
}

impl Formula for Restarts {
    fn next(&self, at: &At) -> f64 {
        let (into, length) = self.place(at.epoch);
        self.eta_min + (at.base - self.eta_min) * (1.0 + (PI * into as f64 / length as f64).cos()) / 2.0
    }
    fn jump(&self, at: &At) -> f64 {
        self.next(at)
    }
    fn name(&self) -> &'static str {
        "CosineAnnealingWarmRestarts"
    }
}
