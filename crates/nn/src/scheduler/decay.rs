//! Schedules that multiply the rate by simple factors.

use super::{At, Formula, LrScheduler, Progress};
use crate::optim::Optimizer;
use orkest_core::Result;
use serde_json::Value;
use std::fmt;

scheduler! {
    /// The rate times a function of the epoch: `base_lr · f(epoch)`.
    ///
    /// ```
    /// # use orkest_core::{Device, Param, Tensor};
    /// # use orkest_nn::optim::{Optimizer, SGD};
    /// # use orkest_nn::scheduler::{LambdaLR, LrScheduler};
    /// # let mut optimizer = SGD::new([Param::new(Tensor::ones(2, &Device::cpu()))], 1.0);
    /// let mut scheduler = LambdaLR::new(&mut optimizer, |step| (1.0 - step as f64 / 4.0).max(0.0));
    /// scheduler.step(&mut optimizer);
    /// assert_eq!(optimizer.lr(), 0.75);
    /// ```
    LambdaLR(Lambda);
}

impl LambdaLR {
    /// With one function for all parameter groups.
    #[track_caller]
    pub fn new(optimizer: &mut dyn Optimizer, f: impl Fn(usize) -> f64 + Send + Sync + 'static) -> LambdaLR {
        LambdaLR::start(optimizer, Lambda(vec![Box::new(f)]))
    }

    /// With a function for each parameter group.
    ///
    /// # Panics
    /// If there are more or fewer functions than groups.
    #[track_caller]
    pub fn per_group(
        optimizer: &mut dyn Optimizer,
        f: Vec<Box<dyn Fn(usize) -> f64 + Send + Sync>>,
    ) -> LambdaLR {
        let groups = optimizer.param_groups().len();
        assert!(f.len() == groups, "LambdaLR: {} functions for {groups} parameter groups", f.len());
        LambdaLR::start(optimizer, Lambda(f))
    }
}

struct Lambda(Vec<Box<dyn Fn(usize) -> f64 + Send + Sync>>);

impl fmt::Debug for Lambda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lambda({} functions)", self.0.len())
    }
}

impl Lambda {
    fn factor(&self, group: usize, epoch: usize) -> f64 {
        self.0[group % self.0.len()](epoch)
    }
}

impl Formula for Lambda {
    fn next(&self, at: &At) -> f64 {
        at.base * self.factor(at.group, at.epoch)
    }
    fn jump(&self, at: &At) -> f64 {
        self.next(at)
    }
    fn name(&self) -> &'static str {
        "LambdaLR"
    }
}

scheduler! {
    /// The rate before, times a function of the epoch.
    MultiplicativeLR(Multiplicative);
}

impl MultiplicativeLR {
    /// With one function for all parameter groups.
    #[track_caller]
    pub fn new(
        optimizer: &mut dyn Optimizer,
        f: impl Fn(usize) -> f64 + Send + Sync + 'static,
    ) -> MultiplicativeLR {
        MultiplicativeLR::start(optimizer, Multiplicative(Lambda(vec![Box::new(f)])))
    }

    /// With a function for each parameter group.
    ///
    /// # Panics
    /// If there are more or fewer functions than groups.
    #[track_caller]
    pub fn per_group(
        optimizer: &mut dyn Optimizer,
        f: Vec<Box<dyn Fn(usize) -> f64 + Send + Sync>>,
    ) -> MultiplicativeLR {
        let groups = optimizer.param_groups().len();
        assert!(f.len() == groups, "MultiplicativeLR: {} functions for {groups} parameter groups", f.len());
        MultiplicativeLR::start(optimizer, Multiplicative(Lambda(f)))
    }
}

#[derive(Debug)]
struct Multiplicative(Lambda);

impl Formula for Multiplicative {
    fn next(&self, at: &At) -> f64 {
        if at.first { at.lr } else { at.lr * self.0.factor(at.group, at.epoch) }
    }
    fn jump(&self, at: &At) -> f64 {
        (1..=at.epoch).fold(at.base, |lr, epoch| lr * self.0.factor(at.group, epoch))
    }
    fn name(&self) -> &'static str {
        "MultiplicativeLR"
    }
}

scheduler! {
    /// The rate times `gamma` every `step_size` epochs.
    StepLR(Steps);
}

impl StepLR {
    /// PyTorch's default `gamma` is 0.1.
    ///
    /// # Panics
    /// If `step_size` is 0.
    #[track_caller]
    pub fn new(optimizer: &mut dyn Optimizer, step_size: usize, gamma: f64) -> StepLR {
        assert!(step_size > 0, "StepLR: step_size must be at least 1");
        StepLR::start(optimizer, Steps { step_size, gamma })
    }
}

#[derive(Debug)]
struct Steps {
    step_size: usize,
    gamma: f64,
}

impl Formula for Steps {
    fn next(&self, at: &At) -> f64 {
        if at.epoch > 0 && at.epoch.is_multiple_of(self.step_size) { at.lr * self.gamma } else { at.lr }
    }
    fn jump(&self, at: &At) -> f64 {
        at.base * self.gamma.powf((at.epoch / self.step_size) as f64)
    }
    fn name(&self) -> &'static str {
        "StepLR"
    }
}

scheduler! {
    /// The rate times `gamma` at every milestone.
    MultiStepLR(Milestones);
}

impl MultiStepLR {
    /// PyTorch's default `gamma` is 0.1. A milestone given twice counts twice.
    #[track_caller]
    pub fn new(optimizer: &mut dyn Optimizer, milestones: &[usize], gamma: f64) -> MultiStepLR {
        MultiStepLR::start(optimizer, Milestones { milestones: milestones.to_vec(), gamma })
    }
}

#[derive(Debug)]
struct Milestones {
    milestones: Vec<usize>,
    gamma: f64,
}

impl Milestones {
    fn decay(&self, counts: impl Fn(usize) -> bool) -> f64 {
        self.gamma.powf(self.milestones.iter().filter(|&&m| counts(m)).count() as f64)
    }
}

impl Formula for Milestones {
    fn next(&self, at: &At) -> f64 {
        at.lr * self.decay(|m| m == at.epoch)
    }
    fn jump(&self, at: &At) -> f64 {
        at.base * self.decay(|m| m <= at.epoch)
    }
    fn name(&self) -> &'static str {
        "MultiStepLR"
    }
}

scheduler! {
    /// The rate times `factor`, until epoch `total_iters`.
    ConstantLR(Constant);
}

impl ConstantLR {
    /// PyTorch's defaults are `factor` 1/3 and 5 epochs.
    ///
    /// # Panics
    /// If `factor` is not in `[0, 1]`.
    #[track_caller]
    pub fn new(optimizer: &mut dyn Optimizer, factor: f64, total_iters: usize) -> ConstantLR {
        assert!((0.0..=1.0).contains(&factor), "ConstantLR: factor must lie in [0, 1], got {factor}");
        ConstantLR::start(optimizer, Constant { factor, total_iters })
    }
}

#[derive(Debug)]
struct Constant {
    factor: f64,
    total_iters: usize,
}

impl Formula for Constant {
    fn next(&self, at: &At) -> f64 {
        match at.epoch {
            0 => at.lr * self.factor,
            epoch if epoch == self.total_iters => at.lr / self.factor,
            _ => at.lr,
        }
    }
    fn jump(&self, at: &At) -> f64 {
        if at.epoch >= self.total_iters { at.base } else { at.base * self.factor }
    }
    fn name(&self) -> &'static str {
        "ConstantLR"
    }
}

scheduler! {
    /// The rate times a factor that goes from `start_factor` to `end_factor` in `total_iters` epochs: a warm-up.
    LinearLR(Linear);
}

impl LinearLR {
    /// PyTorch's defaults are from 1/3 to 1 in 5 epochs.
    ///
    /// # Panics
    /// If `start_factor` is not in `(0, 1]` or `end_factor` not in `[0, 1]`.
    #[track_caller]
    pub fn new(
        optimizer: &mut dyn Optimizer,
        start_factor: f64,
        end_factor: f64,
        total_iters: usize,
    ) -> LinearLR {
        assert!(
            start_factor > 0.0 && start_factor <= 1.0,
            "LinearLR: start_factor must lie in (0, 1], got {start_factor}"
        );
        assert!(
            (0.0..=1.0).contains(&end_factor),
            "LinearLR: end_factor must lie in [0, 1], got {end_factor}"
        );
        LinearLR::start(optimizer, Linear { start_factor, end_factor, total_iters })
    }
}

#[derive(Debug)]
struct Linear {
    start_factor: f64,
    end_factor: f64,
    total_iters: usize,
}

impl Formula for Linear {
    fn next(&self, at: &At) -> f64 {
        if at.epoch == 0 {
            return at.lr * self.start_factor;
        }
        if at.epoch > self.total_iters {
            return at.lr;
        }
        let rise = self.end_factor - self.start_factor;
        at.lr * (1.0 + rise / (self.total_iters as f64 * self.start_factor + (at.epoch - 1) as f64 * rise))
    }
    fn jump(&self, at: &At) -> f64 {
        let done = if at.epoch == 0 { 0.0 } else { (at.epoch as f64 / self.total_iters as f64).min(1.0) };
        at.base * (self.start_factor + (self.end_factor - self.start_factor) * done)
    }
    fn name(&self) -> &'static str {
        "LinearLR"
    }
}

scheduler! {
    /// The rate times `gamma` in every epoch.
    ExponentialLR(Exponential);
}

impl ExponentialLR {
    /// From the rate that the optimizer has.
    #[track_caller]
    pub fn new(optimizer: &mut dyn Optimizer, gamma: f64) -> ExponentialLR {
        ExponentialLR::start(optimizer, Exponential { gamma })
    }
}

#[derive(Debug)]
struct Exponential {
    gamma: f64,
}

impl Formula for Exponential {
    fn next(&self, at: &At) -> f64 {
        if at.first { at.lr } else { at.lr * self.gamma }
    }
    fn jump(&self, at: &At) -> f64 {
        at.base * self.gamma.powf(at.epoch as f64)
    }
    fn name(&self) -> &'static str {
        "ExponentialLR"
    }
}

scheduler! {
    /// The rate falls to zero in `total_iters` epochs: `base_lr · (1 - epoch / total_iters)^power`.
    PolynomialLR(Polynomial);
}

impl PolynomialLR {
    /// PyTorch's defaults are 5 epochs and power 1.
    ///
    /// # Panics
    /// If `total_iters` is 0.
    #[track_caller]
    pub fn new(optimizer: &mut dyn Optimizer, total_iters: usize, power: f64) -> PolynomialLR {
        assert!(total_iters > 0, "PolynomialLR: total_iters must be at least 1");
        PolynomialLR::start(optimizer, Polynomial { total_iters, power })
    }
}

#[derive(Debug)]
struct Polynomial {
    total_iters: usize,
    power: f64,
}

impl Polynomial {
    fn left(&self, epoch: usize) -> f64 {
        1.0 - epoch as f64 / self.total_iters as f64
    }
}

impl Formula for Polynomial {
    fn next(&self, at: &At) -> f64 {
        if at.first || at.epoch > self.total_iters {
            return at.lr;
        }
        at.lr * (self.left(at.epoch) / self.left(at.epoch - 1)).powf(self.power)
    }
    fn jump(&self, at: &At) -> f64 {
        at.base * self.left(at.epoch.min(self.total_iters)).powf(self.power)
    }
    fn name(&self) -> &'static str {
        "PolynomialLR"
    }
}
