//! Limited-memory BFGS (Liu & Nocedal 1989), with PyTorch's stopping rules.

use super::group::Groups;
use super::line_search::{Point, strong_wolfe};
use super::state::{self, OptimizerState};
use super::{Memory, Optimizer, OptionValue, ParamGroup, ParamGroups};
use orkest_core::{GradMode, Param, Result, Tensor, enable_grad};
use std::collections::VecDeque;

/// L-BFGS: steps along the gradient, bent by an estimate of the curvature from the last steps.
///
/// It evaluates the loss several times per step, so [`LBFGS::step`] takes a closure. For smooth problems whose loss is not noisy.
///
/// ```
/// # use orkest_core::{Device, Param, Tensor, tensor};
/// # use orkest_nn::optim::{LBFGS, LineSearch};
/// # fn main() -> orkest_core::Result<()> {
/// // Rosenbrock's valley
/// let xy = Param::new(tensor![-1.5, 2.0]);
/// let mut optimizer = LBFGS::new([xy.clone()], 1.0).line_search_fn(LineSearch::StrongWolfe);
/// for _ in 0..5 {
///     optimizer.step(|| {
///         xy.zero_grad();
///         let (x, y) = (xy.tensor().select(0, 0), xy.tensor().select(0, 1));
///         let loss = (1.0 - &x).square() + 100.0 * (y - x.square()).square();
///         loss.backward();
///         loss
///     })?;
/// }
/// assert!(xy.value().allclose(&tensor![1.0, 1.0], 1e-3, 1e-3, false)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LBFGS {
    groups: Groups,
    /// One entry per parameter; all there is to remember is in the first, as in PyTorch.
    history: Vec<Option<History>>,
    max_eval_given: bool,
}

/// How far [`LBFGS`] goes along its direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineSearch {
    /// Until the strong Wolfe conditions hold.
    StrongWolfe,
}

/// What L-BFGS remembers; all tensors hold all parameters, one after the other.
#[derive(Debug, Default)]
struct History {
    func_evals: u64,
    n_iter: u64,
    last: Option<Last>,
    /// How gradients changed, by which steps, the oldest first.
    pairs: VecDeque<Pair>,
}

/// The last iteration.
#[derive(Debug)]
struct Last {
    direction: Tensor,
    t: f64,
    /// The scale of the curvature.
    h_diag: Tensor,
    grad: Tensor,
    loss: f64,
}

#[derive(Debug)]
struct Pair {
    /// The gradient's change.
    y: Tensor,
    /// The parameters' change.
    s: Tensor,
    /// `1 / (y · s)`
    ro: Tensor,
}

impl Memory for History {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        let mut tensors =
            vec![("func_evals", state::count(self.func_evals)), ("n_iter", state::count(self.n_iter))];
        if let Some(last) = &self.last {
            tensors.extend([
                ("d", last.direction.clone()),
                ("t", state::scalar(last.t)),
                ("H_diag", last.h_diag.clone()),
                ("prev_flat_grad", last.grad.clone()),
                ("prev_loss", state::scalar(last.loss)),
            ]);
        }
        if !self.pairs.is_empty() {
            let stack = |part: fn(&Pair) -> &Tensor| {
                Tensor::stack(&self.pairs.iter().map(part).collect::<Vec<_>>(), 0)
            };
            tensors.extend([
                ("old_dirs", stack(|pair| &pair.y)),
                ("old_stps", stack(|pair| &pair.s)),
                ("ro", stack(|pair| &pair.ro)),
            ]);
        }
        tensors
    }

    fn from_tensors(saved: &mut state::Saved<'_>, _: &ParamGroup) -> History {
        let (func_evals, n_iter) = (saved.count("func_evals"), saved.count("n_iter"));
        let last = saved.has("d").then(|| {
            let (t, loss) = (saved.scalar("t"), saved.scalar("prev_loss"));
            let [direction, h_diag, grad] = ["d", "H_diag", "prev_flat_grad"]
                .map(|name| saved.any(name).unwrap_or_else(|| state::scalar(0.0)));
            Last { direction, t, h_diag, grad, loss }
        });
        let pairs = if saved.has("old_dirs") {
            let [y, s, ro] = ["old_dirs", "old_stps", "ro"]
                .map(|name| saved.any(name).map_or(Vec::new(), |t| t.unbind(0)));
            let rows = y.into_iter().zip(s).zip(ro);
            rows.map(|((y, s), ro)| Pair { y, s, ro }).collect()
        } else {
            VecDeque::new()
        };
        History { func_evals, n_iter, last, pairs }
    }
}

impl LBFGS {
    /// For a model's parameters; PyTorch's `lr` is 1.
    ///
    /// # Panics
    /// If there are no parameters, more than one group of them, or `lr` is negative or NaN.
    #[track_caller]
    pub fn new(params: impl Into<ParamGroups>, lr: f64) -> LBFGS {
        let options = [
            ("lr", lr.into()),
            ("max_iter", 20.0.into()),
            ("max_eval", 25.0.into()),
            ("tolerance_grad", 1e-7.into()),
            ("tolerance_change", 1e-9.into()),
            ("history_size", 100.0.into()),
            ("line_search_fn", OptionValue::Name("none")),
            ("maximize", false.into()),
        ];
        let groups = Groups::new("LBFGS", params.into(), &options);
        assert!(groups.list().len() == 1, "LBFGS: there can be only one group of parameters");
        let history = (0..groups.num_params()).map(|_| None).collect();
        LBFGS { groups, history, max_eval_given: false }
    }

    /// Iterations per step; 20 by default.
    pub fn max_iter(mut self, max_iter: usize) -> LBFGS {
        if !self.max_eval_given {
            self.groups.set_default("max_eval", (max_iter * 5 / 4) as f64);
        }
        self.with("max_iter", max_iter as f64)
    }

    /// Evaluations of the loss per step; `max_iter · 5 / 4` by default.
    pub fn max_eval(mut self, max_eval: usize) -> LBFGS {
        self.max_eval_given = true;
        self.with("max_eval", max_eval as f64)
    }

    /// No number of the gradient is larger when it stops; 1e-7 by default.
    ///
    /// # Panics
    /// If it is negative or NaN.
    #[track_caller]
    pub fn tolerance_grad(self, tolerance: f64) -> LBFGS {
        self.with("tolerance_grad", tolerance)
    }

    /// It stops when the loss or all parameters change by less; 1e-9 by default.
    ///
    /// # Panics
    /// If it is negative or NaN.
    #[track_caller]
    pub fn tolerance_change(self, tolerance: f64) -> LBFGS {
        self.with("tolerance_change", tolerance)
    }

    /// How many steps the estimate of the curvature comes from; 100 by default. Each takes the memory of two gradients.
    pub fn history_size(self, history_size: usize) -> LBFGS {
        self.with("history_size", history_size as f64)
    }

    /// Search along the direction, instead of steps of `lr` times it.
    pub fn line_search_fn(self, line_search_fn: LineSearch) -> LBFGS {
        let LineSearch::StrongWolfe = line_search_fn;
        self.with("line_search_fn", OptionValue::Name("strong_wolfe"))
    }

    /// Ascend instead of descend.
    pub fn maximize(self, maximize: bool) -> LBFGS {
        self.with("maximize", maximize)
    }

    #[track_caller]
    fn with(mut self, name: &str, value: impl Into<OptionValue>) -> LBFGS {
        self.groups.set_default(name, value);
        self
    }

    /// Takes a step of up to `max_iter` iterations. The closure clears the gradients, computes the loss, calls `backward` on it and
    /// returns it; the result is the loss before the step.
    ///
    /// # Errors
    /// If the device reports what went wrong while the loss is read.
    #[track_caller]
    pub fn step(&mut self, mut closure: impl FnMut() -> Tensor) -> Result<Tensor> {
        let group = &self.groups.list()[0];
        let mut problem = Problem { group, closure: || enable_grad(&mut closure) };
        let history = self.history[0].get_or_insert_default();
        let _off = GradMode::set(false);
        problem.step(history)
    }
}

/// The loss as a function of all parameters in one row.
struct Problem<'a, F> {
    group: &'a ParamGroup,
    closure: F,
}

impl<F: FnMut() -> Tensor> Problem<'_, F> {
    #[track_caller]
    fn step(&mut self, history: &mut History) -> Result<Tensor> {
        let group = self.group;
        let number = |name| group.number(name);
        let (max_iter, max_eval) = (number("max_iter") as usize, number("max_eval") as usize);
        let tolerance = number("tolerance_change");
        let optimal = |grad: &Tensor| Ok(grad.abs().max(..).item()? <= number("tolerance_grad"));

        let first_loss = (self.closure)();
        let mut loss = self.sign() * first_loss.item()?;
        let mut evaluations = 1;
        history.func_evals += 1;
        let mut grad = self.gradient();
        if optimal(&grad)? {
            return Ok(first_loss);
        }
        for iteration in 1..=max_iter {
            history.n_iter += 1;
            let (direction, h_diag) = history.direction(&grad, number("history_size") as usize)?;
            let mut t = match history.n_iter {
                1 => (1.0 / grad.abs().sum(..).item()?).min(1.0) * group.lr(),
                _ => group.lr(),
            };
            let slope = grad.dot(&direction).item()?;
            let (before, before_grad) = (loss, grad.clone());
            let mut moved = 0.0;
            let descends = slope <= -tolerance;
            if descends {
                let reach = direction.abs().max(..).item()?;
                let mut used = 0;
                if group.name("line_search_fn") == "strong_wolfe" {
                    let origin: Vec<Tensor> = group.params().iter().map(Param::value).collect();
                    let start = Point { t: 0.0, loss, grad, slope };
                    let evaluate = |t| {
                        self.advance(t, &direction);
                        let point = self.point(t, &direction);
                        group.params().iter().zip(&origin).for_each(|(param, value)| param.set_value(value));
                        point
                    };
                    let remaining = max_eval.saturating_sub(evaluations);
                    let (point, count) = strong_wolfe(evaluate, &start, t, reach, remaining)?;
                    (t, loss, grad, used) = (point.t, point.loss, point.grad, count);
                    self.advance(t, &direction);
                } else {
                    self.advance(t, &direction);
                    // After the last iteration nobody asks.
                    if iteration < max_iter {
                        let point = self.point(t, &direction)?;
                        (loss, grad, used) = (point.loss, point.grad, 1);
                    }
                }
                evaluations += used;
                history.func_evals += used as u64;
                moved = reach * t.abs();
            }
            history.last = Some(Last { direction, t, h_diag, grad: before_grad, loss: before });
            if !descends
                || evaluations >= max_eval
                || moved <= tolerance
                || (loss - before).abs() < tolerance
                || optimal(&grad)?
            {
                break;
            }
        }
        Ok(first_loss)
    }

    fn sign(&self) -> f64 {
        if self.group.flag("maximize") { -1.0 } else { 1.0 }
    }

    /// The gradients of all parameters in one row.
    #[track_caller]
    fn gradient(&self) -> Tensor {
        let flat = |param: &Param| match param.grad() {
            Some(grad) => grad.detach().flatten(0, -1),
            None => param.value().zeros_like().flatten(0, -1),
        };
        let rows: Vec<Tensor> = self.group.params().iter().map(flat).collect();
        let row = Tensor::cat(&rows, 0);
        if self.group.flag("maximize") { -row } else { row }
    }

    #[track_caller]
    fn point(&mut self, t: f64, direction: &Tensor) -> Result<Point> {
        let loss = self.sign() * (self.closure)().item()?;
        let grad = self.gradient();
        let slope = grad.dot(direction).item()?;
        Ok(Point { t, loss, grad, slope })
    }

    /// Adds `t · direction` to the parameters.
    #[track_caller]
    fn advance(&self, t: f64, direction: &Tensor) {
        let mut start = 0;
        for param in self.group.params() {
            let part = direction.narrow(0, start, param.numel()).reshape(param.shape());
            start += param.numel();
            param.update(|value| value.add_(&(part * t)));
        }
    }
}

impl History {
    /// Takes the last step into the memory and gives the next direction, and the scale of the curvature.
    fn direction(&mut self, grad: &Tensor, history_size: usize) -> Result<(Tensor, Tensor)> {
        let Some(last) = &self.last else {
            return Ok((-grad, Tensor::ones((), (grad.dtype(), grad.device()))));
        };
        let mut h_diag = last.h_diag.clone();
        let y = grad - &last.grad;
        let s = &last.direction * last.t;
        let ys = y.dot(&s);
        if ys.item()? > 1e-10 {
            if self.pairs.len() >= history_size {
                self.pairs.pop_front();
            }
            h_diag = &ys / y.dot(&y);
            self.pairs.push_back(Pair { ro: ys.reciprocal(), y, s });
        }
        // The two loops of L-BFGS: the inverse of the curvature times the gradient, without a matrix.
        let mut direction = -grad;
        let mut weights = Vec::with_capacity(self.pairs.len());
        for pair in self.pairs.iter().rev() {
            let weight = pair.s.dot(&direction) * &pair.ro;
            direction -= &pair.y * &weight;
            weights.push(weight);
        }
        direction *= &h_diag;
        for (pair, weight) in self.pairs.iter().zip(weights.iter().rev()) {
            let correction = pair.y.dot(&direction) * &pair.ro;
            direction += &pair.s * (weight - correction);
        }
        Ok((direction, h_diag))
    }
}

impl Optimizer for LBFGS {
    /// # Panics
    /// Always: the loss must be evaluated several times, with [`LBFGS::step`].
    #[track_caller]
    fn step(&mut self) {
        panic!("LBFGS: a step evaluates the loss several times; call optimizer.step(|| ...) with a closure");
    }

    fn param_groups(&self) -> &[ParamGroup] {
        self.groups.list()
    }

    fn param_groups_mut(&mut self) -> &mut [ParamGroup] {
        self.groups.list_mut()
    }

    /// # Panics
    /// Always: there can be only one group.
    #[track_caller]
    fn add_param_group(&mut self, _: ParamGroup) {
        panic!("LBFGS: there can be only one group of parameters");
    }

    fn state_dict(&self) -> OptimizerState {
        state::collect(&self.groups, &self.history)
    }

    fn load_state_dict(&mut self, state: &OptimizerState) -> Result<()> {
        self.history = state::restore(&mut self.groups, state)?;
        Ok(())
    }
}
