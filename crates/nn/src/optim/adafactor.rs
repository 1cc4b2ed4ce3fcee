//! Adafactor (<https://arxiv.org/abs/1804.04235>).

use super::radam::shrink;
use super::rule::{Rule, optimizer};
use super::state;
use super::{Memory, OptionValue, ParamGroup};
use orkest_core::{Shape, Tensor};

optimizer! {
    /// Adafactor: scales by the size of gradients as [`Adam`](super::Adam) does, but for a matrix it remembers that size as a row times a
    /// column, which takes next to no memory. Steps are relative to the size of the parameter; PyTorch's `lr` of 1e-2 limits them.
    Adafactor(Factors) {
        /// The average of squares in step `t` keeps all but `t^beta2_decay` of itself; -0.8 by default.
        beta2_decay: f64 = -0.8,
        /// An update whose root mean square is larger is scaled down to this; 1 by default.
        d: f64 = 1.0,
        /// How strongly weights are pulled to zero, decoupled as in [`AdamW`](super::AdamW); 0 by default.
        weight_decay: f64 = 0.0,
        /// Ascend instead of descend.
        maximize: bool = false,
    }
    extra {
        eps = OptionValue::Pair(f64::NAN, 1e-3),
    }
}

impl Adafactor {
    /// The smallest size of a gradient (`None`, the default: the machine epsilon of the parameter's dtype), and the smallest size of a
    /// parameter that steps are relative to (1e-3).
    ///
    /// # Panics
    /// If one is negative.
    #[track_caller]
    pub fn eps(self, eps: (Option<f64>, f64)) -> Adafactor {
        self.with("eps", (eps.0.unwrap_or(f64::NAN), eps.1))
    }
}

/// What Adafactor remembers about one parameter.
#[derive(Debug)]
struct Factors {
    step: u64,
    variance: Variance,
}

/// The average of squared gradients.
#[derive(Debug)]
enum Variance {
    /// Of a matrix or more: averages over the last dimension, and over the one before it.
    Factored { row: Tensor, column: Tensor },
    /// Of a vector or a number.
    Whole(Tensor),
}

/// The shapes of the factors.
fn factors(shape: Shape) -> [Shape; 2] {
    let n = shape.rank();
    let reduced = |dim: usize| {
        let sizes: Vec<usize> =
            shape.iter().enumerate().map(|(i, s)| if i == dim { 1 } else { *s }).collect();
        Shape::new(&sizes)
    };
    [reduced(n - 1), reduced(n - 2)]
}

impl Memory for Factors {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        let mut tensors = vec![("step", state::count(self.step))];
        match &self.variance {
            Variance::Factored { row, column } => {
                tensors.extend([("row_var", row.clone()), ("col_var", column.clone())]);
            }
            Variance::Whole(variance) => tensors.push(("variance", variance.clone())),
        }
        tensors
    }

    fn from_tensors(saved: &mut state::Saved<'_>, _: &ParamGroup) -> Factors {
        let step = saved.count("step");
        let shape = saved.shape();
        if shape.rank() < 2 {
            return Factors { step, variance: Variance::Whole(saved.tensor("variance")) };
        }
        let [rows, columns] = factors(shape);
        let row = saved.shaped("row_var", rows, "the parameter's rows are");
        let column = saved.shaped("col_var", columns, "the parameter's columns are");
        let missing = || state::scalar(0.0); // reported: nothing comes of it
        let variance =
            Variance::Factored { row: row.unwrap_or_else(missing), column: column.unwrap_or_else(missing) };
        Factors { step, variance }
    }
}

impl Rule for Factors {
    fn new(value: &Tensor, _: &ParamGroup) -> Factors {
        let variance = if value.rank() < 2 {
            Variance::Whole(value.zeros_like())
        } else {
            let [row, column] = factors(*value.shape());
            let options = (value.dtype(), value.device());
            Variance::Factored { row: Tensor::zeros(row, options), column: Tensor::zeros(column, options) }
        };
        Factors { step: 0, variance }
    }

    fn like_param(&mut self) -> Vec<&mut Tensor> {
        match &mut self.variance {
            Variance::Factored { .. } => Vec::new(),
            Variance::Whole(variance) => vec![variance],
        }
    }

    #[track_caller]
    fn step(&mut self, grad: Tensor, value: &mut Tensor, group: &ParamGroup) {
        let (eps1, eps2) = group.pair("eps");
        let eps1 = if eps1.is_nan() { value.dtype().epsilon() } else { eps1 };
        self.step += 1;
        let t = self.step as f64;
        let new = t.powf(group.number("beta2_decay")); // the share of the new gradient in the averages
        let root_size = (value.numel() as f64).sqrt();
        // No step is larger than the parameter's root mean square times this.
        let relative = group.lr().min(1.0 / t.sqrt());
        let alpha = (value.norm(2.0, ..) / root_size).clamp_min(eps2) * relative;
        shrink(value, group);

        let variance = match &mut self.variance {
            Variance::Factored { row, column } => {
                for factor in [&mut *row, &mut *column] {
                    *factor = factor.to(value.device()).to_dtype(value.dtype());
                }
                let squares = grad.square();
                *row = row.lerp(&squares.mean_keepdim(-1), new);
                *column = column.lerp(&squares.mean_keepdim(-2), new);
                &*row * &*column / row.mean_keepdim(-2).clamp_min(eps1)
            }
            Variance::Whole(variance) => {
                *variance = variance.lerp(&grad.square(), new);
                variance.clone()
            }
        };
        let update = variance.clamp_min(eps1 * eps1).rsqrt() * grad;
        let too_large = (update.norm(2.0, ..) / (root_size * group.number("d"))).clamp_min(1.0);
        value.sub_(&(update * (alpha / too_large)));
    }
}
