//! Stochastic gradient descent.

use super::group::Groups;
use super::state::{self, OptimizerState};
use super::{Memory, Optimizer, OptionValue, ParamGroup, ParamGroups, Prepare, batches, follow};
use orkest_core::op::SgdStep;
use orkest_core::{GradMode, Op, Result, Tensor};

/// Stochastic gradient descent: `p ← p - lr · g`, with momentum `b ← momentum · b + (1 - dampening) · g`, `p ← p - lr · b`.
///
/// The momentum starts with the first gradient. Weight decay is added to the gradient (L2).
///
/// ```
/// # use orkest_core::{Device, Param, Tensor};
/// # use orkest_nn::optim::{Optimizer, SGD};
/// let weight = Param::new(Tensor::ones(3, &Device::cpu()));
/// let mut optimizer = SGD::new([weight.clone()], 0.1).momentum(0.9).nesterov(true);
/// weight.tensor().square().sum(..).backward();
/// optimizer.step();
/// assert!((weight.value().select(0, 0).item().unwrap() - 0.62).abs() < 1e-6);
/// ```
#[derive(Debug)]
pub struct SGD {
    groups: Groups,
    /// In the order of the groups and their parameters; made when a parameter gets its first gradient.
    momenta: Vec<Option<Momentum>>,
}

/// What SGD remembers about one parameter: nothing without momentum.
#[derive(Debug, Default)]
struct Momentum {
    buffer: Option<Tensor>,
}

impl Memory for Momentum {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        self.buffer.iter().map(|b| ("momentum_buffer", b.clone())).collect()
    }

    fn from_tensors(saved: &mut state::Saved<'_>, _: &ParamGroup) -> Momentum {
        Momentum { buffer: Some(saved.tensor("momentum_buffer")) }
    }
}

impl Prepare for Momentum {
    /// The first step with momentum is another operation than the following ones.
    fn prepare(slot: &mut Option<Momentum>, value: &Tensor, group: &ParamGroup) -> u64 {
        let slot = slot.get_or_insert_default();
        if group.number("momentum") == 0.0 {
            return 0;
        }
        let first = slot.buffer.is_none();
        follow("sgd_step", slot.buffer.get_or_insert_with(|| value.zeros_like()), value);
        u64::from(first)
    }
}

impl SGD {
    /// For a model's parameters or several groups of them.
    ///
    /// # Panics
    /// If there are no parameters, one is in two groups, or `lr` is negative or NaN.
    #[track_caller]
    pub fn new(params: impl Into<ParamGroups>, lr: f64) -> SGD {
        let groups = Groups::new(
            "SGD",
            params.into(),
            &[
                ("lr", lr.into()),
                ("momentum", 0.0.into()),
                ("dampening", 0.0.into()),
                ("weight_decay", 0.0.into()),
                ("nesterov", false.into()),
                ("maximize", false.into()),
            ],
        );
        let momenta = (0..groups.num_params()).map(|_| None).collect();
        SGD { groups, momenta }
    }

    /// How much of the last step's direction stays; 0 (none) by default.
    ///
    /// # Panics
    /// If it is negative or NaN.
    #[track_caller]
    pub fn momentum(self, momentum: f64) -> SGD {
        self.with("momentum", momentum)
    }

    /// Takes `1 - dampening` of the gradient into the momentum; 0 by default.
    ///
    /// # Panics
    /// If it is NaN.
    #[track_caller]
    pub fn dampening(self, dampening: f64) -> SGD {
        self.with("dampening", dampening)
    }

    /// How strongly weights are pulled to zero; 0 by default.
    ///
    /// # Panics
    /// If it is negative or NaN.
    #[track_caller]
    pub fn weight_decay(self, weight_decay: f64) -> SGD {
        self.with("weight_decay", weight_decay)
    }

    /// Nesterov's momentum: steps along `g + momentum · b`. It needs a momentum and no dampening.
    pub fn nesterov(self, nesterov: bool) -> SGD {
        self.with("nesterov", nesterov)
    }

    /// Ascend instead of descend.
    pub fn maximize(self, maximize: bool) -> SGD {
        self.with("maximize", maximize)
    }

    #[track_caller]
    fn with(mut self, name: &str, value: impl Into<OptionValue>) -> SGD {
        self.groups.set_default(name, value);
        self
    }
}

impl Optimizer for SGD {
    /// # Panics
    /// If a group wants Nesterov's momentum without momentum or with dampening.
    #[track_caller]
    fn step(&mut self) {
        let _off = GradMode::set(false);
        let mut rest = &mut self.momenta[..];
        for group in self.groups.list() {
            let (momenta, others) = rest.split_at_mut(group.params().len());
            rest = others;
            step_group(group, momenta);
        }
    }

    fn param_groups(&self) -> &[ParamGroup] {
        self.groups.list()
    }

    fn param_groups_mut(&mut self) -> &mut [ParamGroup] {
        self.groups.list_mut()
    }

    #[track_caller]
    fn add_param_group(&mut self, group: ParamGroup) {
        self.groups.add(group);
        self.momenta.resize_with(self.groups.num_params(), || None);
    }

    fn state_dict(&self) -> OptimizerState {
        state::collect(&self.groups, &self.momenta)
    }

    fn load_state_dict(&mut self, state: &OptimizerState) -> Result<()> {
        self.momenta = state::restore(&mut self.groups, state)?;
        Ok(())
    }
}

#[track_caller]
fn step_group(group: &ParamGroup, momenta: &mut [Option<Momentum>]) {
    let (momentum, dampening) = (group.number("momentum"), group.number("dampening"));
    let nesterov = group.flag("nesterov");
    assert!(
        !nesterov || momentum > 0.0 && dampening == 0.0,
        "SGD: nesterov needs a momentum and no dampening, got momentum {momentum} and dampening {dampening}"
    );
    for mut batch in batches("sgd_step", group, momenta) {
        let step = SgdStep {
            lr: group.lr(),
            momentum,
            dampening,
            weight_decay: group.weight_decay(),
            nesterov,
            maximize: group.flag("maximize"),
            first: batch.key == 1,
        };
        let fields = if momentum != 0.0 { with_buffer } else { without_buffer };
        batch.run("sgd_step", Op::SgdStep(step), fields, |grad, value, [buffer]| {
            lowering(&step, grad, value, buffer);
        });
    }
}

fn with_buffer(m: &mut Momentum) -> [Option<&mut Tensor>; 1] {
    [m.buffer.as_mut()]
}

fn without_buffer(_: &mut Momentum) -> [Option<&mut Tensor>; 1] {
    [None]
}

/// The step of one parameter in tensor operations, in PyTorch's order of rounding.
#[track_caller]
fn lowering(s: &SgdStep, grad: &Tensor, value: &mut Tensor, buffer: Option<&mut Tensor>) {
    let mut grad = if s.maximize { -grad } else { grad.clone() };
    if s.weight_decay != 0.0 {
        grad += &*value * s.weight_decay;
    }
    if let Some(buffer) = buffer {
        let direction =
            if s.first { grad.clone() } else { &*buffer * s.momentum + &grad * (1.0 - s.dampening) };
        buffer.copy_(&direction);
        grad = if s.nesterov { grad + direction * s.momentum } else { direction };
    }
    let end = &*value - grad * s.lr;
    value.copy_(&end);
}
