//! Adam (<https://arxiv.org/abs/1412.6980>) and AdamW (<https://arxiv.org/abs/1711.05101>).

use super::group::Groups;
use super::state::{self, OptimizerState};
use super::{Memory, Optimizer, ParamGroup, ParamGroups, Prepare, batches, follow};
use orkest_core::op::AdamStep;
use orkest_core::{GradMode, Op, Result, Tensor};

/// What Adam remembers about one parameter.
#[derive(Debug)]
struct Moments {
    step: u64,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// With `amsgrad` only.
    max_exp_avg_sq: Option<Tensor>,
}

impl Moments {
    fn new(value: &Tensor) -> Moments {
        Moments { step: 0, exp_avg: value.zeros_like(), exp_avg_sq: value.zeros_like(), max_exp_avg_sq: None }
    }
}

impl Memory for Moments {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        let mut tensors = vec![
            ("step", state::count(self.step)),
            ("exp_avg", self.exp_avg.clone()),
            ("exp_avg_sq", self.exp_avg_sq.clone()),
        ];
        tensors.extend(self.max_exp_avg_sq.clone().map(|max| ("max_exp_avg_sq", max)));
        tensors
    }

    fn from_tensors(saved: &mut state::Saved<'_>, group: &ParamGroup) -> Moments {
        Moments {
            step: saved.count("step"),
            exp_avg: saved.tensor("exp_avg"),
            exp_avg_sq: saved.tensor("exp_avg_sq"),
            max_exp_avg_sq: (group.flag("amsgrad") || saved.has("max_exp_avg_sq"))
                .then(|| saved.tensor("max_exp_avg_sq")),
        }
    }
}

impl Prepare for Moments {
    fn prepare(slot: &mut Option<Moments>, value: &Tensor, group: &ParamGroup) -> u64 {
        let moments = slot.get_or_insert_with(|| Moments::new(value));
        follow("adam_step", &mut moments.exp_avg, value);
        follow("adam_step", &mut moments.exp_avg_sq, value);
        if group.flag("amsgrad") {
            follow("adam_step", moments.max_exp_avg_sq.get_or_insert_with(|| value.zeros_like()), value);
        }
        moments.step += 1;
        moments.step
    }
}

/// What [`Adam`] and [`AdamW`] share.
#[derive(Debug)]
struct Family {
    groups: Groups,
    /// In the order of the groups and their parameters; made when a parameter gets its first gradient.
    moments: Vec<Option<Moments>>,
    decoupled: bool,
}

impl Family {
    #[track_caller]
    fn new(name: &'static str, params: ParamGroups, lr: f64, weight_decay: f64, decoupled: bool) -> Family {
        let groups = Groups::new(
            name,
            params,
            &[
                ("lr", lr.into()),
                ("betas", (0.9, 0.999).into()),
                ("eps", 1e-8.into()),
                ("weight_decay", weight_decay.into()),
                ("amsgrad", false.into()),
                ("maximize", false.into()),
            ],
        );
        let moments = (0..groups.num_params()).map(|_| None).collect();
        Family { groups, moments, decoupled }
    }

    #[track_caller]
    fn step(&mut self) {
        let _off = GradMode::set(false);
        let mut rest = &mut self.moments[..];
        for group in self.groups.list() {
            let (moments, others) = rest.split_at_mut(group.params().len());
            rest = others;
            step_group(group, moments, self.decoupled);
        }
    }
}

#[track_caller]
fn step_group(group: &ParamGroup, moments: &mut [Option<Moments>], decoupled: bool) {
    let (beta1, beta2) = group.pair("betas");
    let amsgrad = group.flag("amsgrad");
    for mut batch in batches("adam_step", group, moments) {
        let step = AdamStep {
            lr: group.lr(),
            beta1,
            beta2,
            eps: group.number("eps"),
            weight_decay: group.weight_decay(),
            decoupled,
            amsgrad,
            maximize: group.flag("maximize"),
            step: batch.key,
        };
        let fields = if amsgrad { with_max } else { without_max };
        batch.run("adam_step", Op::AdamStep(step), fields, |grad, value, state| {
            lowering(&step, grad, value, state);
        });
    }
}

fn without_max(m: &mut Moments) -> [Option<&mut Tensor>; 3] {
    [Some(&mut m.exp_avg), Some(&mut m.exp_avg_sq), None]
}

fn with_max(m: &mut Moments) -> [Option<&mut Tensor>; 3] {
    [Some(&mut m.exp_avg), Some(&mut m.exp_avg_sq), m.max_exp_avg_sq.as_mut()]
}

/// The step of one parameter in tensor operations, in PyTorch's order of rounding.
#[track_caller]
fn lowering(s: &AdamStep, grad: &Tensor, value: &mut Tensor, state: [Option<&mut Tensor>; 3]) {
    let [Some(exp_avg), Some(exp_avg_sq), max_exp_avg_sq] = state else { return };
    let mut grad = if s.maximize { -grad } else { grad.clone() };
    let mut start = None;
    if s.weight_decay != 0.0 && s.decoupled {
        start = Some(&*value * (1.0 - s.lr * s.weight_decay));
    } else if s.weight_decay != 0.0 {
        grad += &*value * s.weight_decay;
    }
    let averaged = &*exp_avg + (&grad - &*exp_avg) * (1.0 - s.beta1);
    exp_avg.copy_(&averaged);
    let averaged = &*exp_avg_sq * s.beta2 + grad.square() * (1.0 - s.beta2);
    exp_avg_sq.copy_(&averaged);
    let second = match max_exp_avg_sq {
        Some(max) => {
            let largest = max.maximum(&*exp_avg_sq);
            max.copy_(&largest);
            largest
        }
        None => averaged,
    };
    // Steps beyond 2^31 have no bias left to correct.
    let t = s.step.min(i32::MAX as u64) as i32;
    let step_size = s.lr / (1.0 - s.beta1.powi(t));
    let root = second.sqrt() / (1.0 - s.beta2.powi(t)).sqrt() + s.eps;
    let end = start.as_ref().unwrap_or(value) - &*exp_avg / root * step_size;
    value.copy_(&end);
}

macro_rules! adam {
    ($(#[$doc:meta])* $name:ident, $weight_decay:literal, decoupled: $decoupled:literal) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(Family);

        impl $name {
            /// For a model's parameters or several groups of them.
            ///
            /// # Panics
            /// If there are no parameters, one is in two groups, or `lr` is negative or NaN.
            #[track_caller]
            pub fn new(params: impl Into<ParamGroups>, lr: f64) -> $name {
                $name(Family::new(stringify!($name), params.into(), lr, $weight_decay, $decoupled))
            }

            /// How much of the running averages of the gradient and its square stays from step to step; (0.9, 0.999) by default.
            ///
            /// # Panics
            /// If one is outside `[0, 1)`.
            #[track_caller]
            pub fn betas(self, betas: (f64, f64)) -> $name {
                self.with("betas", betas)
            }

            /// Added to the denominator; 1e-8 by default.
            ///
            /// # Panics
            /// If it is negative or NaN.
            #[track_caller]
            pub fn eps(self, eps: f64) -> $name {
                self.with("eps", eps)
            }

            #[doc = concat!("How strongly weights are pulled to zero; ", stringify!($weight_decay), " by default.")]
            ///
            /// # Panics
            /// If it is negative or NaN.
            #[track_caller]
            pub fn weight_decay(self, weight_decay: f64) -> $name {
                self.with("weight_decay", weight_decay)
            }

            /// Divide by the largest average of squares so far (<https://arxiv.org/abs/1904.09237>).
            pub fn amsgrad(self, amsgrad: bool) -> $name {
                self.with("amsgrad", amsgrad)
            }

            /// Ascend instead of descend.
            pub fn maximize(self, maximize: bool) -> $name {
                self.with("maximize", maximize)
            }

            #[track_caller]
            fn with(mut self, name: &str, value: impl Into<super::OptionValue>) -> $name {
                self.0.groups.set_default(name, value);
                self
            }
        }

        impl Optimizer for $name {
            #[track_caller]
            fn step(&mut self) {
                self.0.step();
            }

            fn param_groups(&self) -> &[ParamGroup] {
                self.0.groups.list()
            }

            fn param_groups_mut(&mut self) -> &mut [ParamGroup] {
                self.0.groups.list_mut()
            }

            #[track_caller]
            fn add_param_group(&mut self, group: ParamGroup) {
                self.0.groups.add(group);
                self.0.moments.resize_with(self.0.groups.num_params(), || None);
            }

            fn state_dict(&self) -> OptimizerState {
                state::collect(&self.0.groups, &self.0.moments)
            }

            fn load_state_dict(&mut self, state: &OptimizerState) -> Result<()> {
                self.0.moments = state::restore(&mut self.0.groups, state)?;
                Ok(())
            }
        }
    };
}

adam! {
    /// Adam: `p ← p - lr · m̂ / (√v̂ + eps)`, where `m̂` and `v̂` are running averages of the gradient and its square without the
    /// bias of their start. Weight decay is added to the gradient (L2).
    ///
    /// ```
    /// # use orkest_core::{Device, Param, Tensor};
    /// # use orkest_nn::optim::{Adam, Optimizer};
    /// let weight = Param::new(Tensor::ones(3, &Device::cpu()));
    /// let mut optimizer = Adam::new([weight.clone()], 1e-3).betas((0.9, 0.95));
    /// optimizer.zero_grad();
    /// weight.tensor().square().sum(..).backward();
    /// optimizer.step();
    /// ```
    Adam, 0.0, decoupled: false
}

adam! {
    /// AdamW: as [`Adam`](super::Adam), with weight decay that does not pass through the averages: `p ← p (1 - lr · weight_decay)`
    /// before the step.
    AdamW, 1e-2, decoupled: true
}
