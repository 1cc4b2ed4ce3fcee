//! Reductions over one, several or all dimensions.

use super::index::inverse_order;
use super::lowering::wide;
use crate::autograd::{Save, is_grad_enabled};
use crate::device::Device;
use crate::dispatch::run;
use crate::dtype::{Category, DType};
use crate::grads;
use crate::op::{ArgReduce, Op, Reduce};
use crate::shape::{DimSet, ReduceDims, Shape};
use crate::tensor::Tensor;

macro_rules! reduce_methods {
    ($($(#[$doc:meta])* $name:ident, $keepdim:ident => $reduce:expr;)*) => {
        impl Tensor {$(
            $(#[$doc])*
            ///
            /// `dims` is one dimension (`-1`), several (`[0, 2]`) or all (`..`); an empty list reduces nothing.
            ///
            /// # Panics
            /// If a dimension is out of range or named twice.
            #[track_caller]
            pub fn $name(&self, dims: impl ReduceDims) -> Tensor {
                let set = self.dim_set($reduce.name(), &dims);
                self.reduced($reduce, set, false)
            }

            #[doc = concat!("As [`Tensor::", stringify!($name), "`], with the reduced dimensions kept at size 1.")]
            #[track_caller]
            pub fn $keepdim(&self, dims: impl ReduceDims) -> Tensor {
                self.reduce($reduce, self.dim_set($reduce.name(), &dims))
            }
        )*}
    };
}

reduce_methods! {
    /// Sum; of bools and integers in i64.
    sum, sum_keepdim => Reduce::Sum;
    /// Mean of floats.
    mean, mean_keepdim => Reduce::Mean;
    /// Product; of bools and integers in i64.
    prod, prod_keepdim => Reduce::Prod;
    /// Largest value, NaN if there is one. Equal maxima share the gradient (PyTorch's `amax`).
    max, max_keepdim => Reduce::Max;
    /// Smallest value, NaN if there is one. Equal minima share the gradient (PyTorch's `amin`).
    min, min_keepdim => Reduce::Min;
    /// bool: is some element not zero?
    any, any_keepdim => Reduce::Any;
    /// bool: is no element zero?
    all, all_keepdim => Reduce::All;
}

impl Tensor {
    #[track_caller]
    pub(crate) fn dim_set(&self, op: &str, dims: &impl ReduceDims) -> DimSet {
        let Some(dims) = dims.dims() else { return DimSet::all(self.rank()) };
        let mut set = DimSet::default();
        for &d in dims {
            // A scalar tensor has the dimensions 0 and -1 as far as reductions go, as in PyTorch.
            if self.rank() == 0 && (d == 0 || d == -1) {
                continue;
            }
            if !set.insert(self.dim_index(op, d)) {
                panic!("{op}: dimension {d} is named twice. tensor: {}", self.describe());
            }
        }
        set
    }

    /// Without the (size 1) dimensions of `set`.
    #[track_caller]
    pub(crate) fn drop_dims(self, set: DimSet) -> Tensor {
        if set.is_empty() { self } else { self.with_shape(set.remove(self.shape())) }
    }

    /// With the reduced dimensions kept at size 1.
    #[track_caller]
    pub(crate) fn reduce(&self, kind: Reduce, set: DimSet) -> Tensor {
        self.reduced(kind, set, true)
    }

    #[track_caller]
    fn reduced(&self, kind: Reduce, set: DimSet, keepdim: bool) -> Tensor {
        let name = kind.name();
        if kind == Reduce::Mean {
            self.require_float(name);
        }
        let x = match kind {
            Reduce::Sum | Reduce::Prod => &self.in_full_precision(),
            _ => self,
        };
        let dtype = match kind {
            Reduce::Sum | Reduce::Prod if x.dtype().category() != Category::Float => DType::I64,
            Reduce::Any | Reduce::All => DType::Bool,
            _ => x.dtype(),
        };
        if set.is_empty() && dtype == x.dtype() && !matches!(kind, Reduce::Any | Reduce::All) {
            return x.clone();
        }
        let kept = set.keep(*x.shape());
        let mut y = run(name, Op::Reduce(kind, set), &[x], kept, dtype);
        if !keepdim {
            y.relay(set.remove(&kept));
        }
        let save: &[Save<'_>] = match kind {
            Reduce::Sum | Reduce::Mean => &[],
            _ => &[Save::Input(0), Save::Output(0)],
        };
        if !dtype.is_float() {
            return y;
        }
        y.recorded(name, &[x], save, move |c| {
            let (g, shape) = (&c.grad().with_shape(set.keep(*c.input_shape(0))), *c.input_shape(0));
            grads![match kind {
                Reduce::Sum => g.broadcast_to(&shape),
                Reduce::Mean => (g / set.count(&shape) as f64).broadcast_to(&shape),
                Reduce::Prod => {
                    let (x, y) = (c.saved(0), c.saved(1).with_shape(set.keep(shape)));
                    if !is_grad_enabled() && divides(&y) {
                        (g * y) / x
                    } else {
                        g * product_of_others(x, set)
                    }
                }
                Reduce::Max | Reduce::Min => {
                    let (x, y) = (c.saved(0), c.saved(1).with_shape(set.keep(shape)));
                    // A NaN has the gradient where all is reduced; else the gradient of its row is NaN, as in PyTorch.
                    let all = set == DimSet::all(shape.rank());
                    shared(g, if all { is_extreme(x, &y) } else { x.eq(y) }, set)
                }
                Reduce::Any | Reduce::All => unreachable!("bool outputs are not recorded"),
            }]
        })
    }

    /// Position of the first largest element along one dimension (`-1`), or (`..`) in the row-major order of all elements; i64.
    /// NaN counts as the largest.
    ///
    /// # Panics
    /// If `dim` is out of range, has no elements, or is more than one dimension.
    #[track_caller]
    pub fn argmax(&self, dim: impl ReduceDims) -> Tensor {
        self.arg_reduce("argmax", ArgReduce::Max, &dim, false)
    }

    /// As [`Tensor::argmax`], with the dimensions kept at size 1.
    #[track_caller]
    pub fn argmax_keepdim(&self, dim: impl ReduceDims) -> Tensor {
        self.arg_reduce("argmax", ArgReduce::Max, &dim, true)
    }

    /// Position of the first smallest element along one dimension (`-1`), or (`..`) in the row-major order of all elements; i64.
    /// NaN counts as the smallest.
    ///
    /// # Panics
    /// If `dim` is out of range, has no elements, or is more than one dimension.
    #[track_caller]
    pub fn argmin(&self, dim: impl ReduceDims) -> Tensor {
        self.arg_reduce("argmin", ArgReduce::Min, &dim, false)
    }

    /// As [`Tensor::argmin`], with the dimensions kept at size 1.
    #[track_caller]
    pub fn argmin_keepdim(&self, dim: impl ReduceDims) -> Tensor {
        self.arg_reduce("argmin", ArgReduce::Min, &dim, true)
    }

    #[track_caller]
    fn arg_reduce(
        &self,
        name: &'static str,
        kind: ArgReduce,
        dims: &impl ReduceDims,
        keepdim: bool,
    ) -> Tensor {
        let set = self.dim_set(name, dims);
        let (x, dim) = match (dims.dims(), set.iter().next()) {
            (Some(dims), Some(dim)) if dims.len() == 1 => (self.clone(), dim),
            (Some(dims), _) if dims.len() != 1 => {
                panic!(
                    "{name}: one dimension or all (..) are expected, not {dims:?}. tensor: {}",
                    self.describe()
                )
            }
            _ => (self.reshape(-1isize), 0),
        };
        if x.shape()[dim] == 0 {
            panic!("{name}: dimension {dim} has no elements. tensor: {}", self.describe());
        }
        let y = run(name, Op::ArgReduce(kind, dim), &[&x], x.shape().with(dim, 1), DType::I64);
        y.reshape(if keepdim { set.keep(*self.shape()) } else { set.remove(self.shape()) })
    }

    /// The largest values along `dim` and their i64 positions; the gradient goes to those positions.
    #[track_caller]
    pub fn max_with_indices(&self, dim: isize) -> (Tensor, Tensor) {
        if self.rank() == 0 {
            return (self.clone(), self.argmax(dim));
        }
        let index = self.argmax_keepdim(dim);
        (self.gather(dim, &index).squeeze(dim), index.squeeze(dim))
    }

    /// The smallest values along `dim` and their i64 positions; the gradient goes to those positions.
    #[track_caller]
    pub fn min_with_indices(&self, dim: isize) -> (Tensor, Tensor) {
        if self.rank() == 0 {
            return (self.clone(), self.argmin(dim));
        }
        let index = self.argmin_keepdim(dim);
        (self.gather(dim, &index).squeeze(dim), index.squeeze(dim))
    }

    /// Variance over `dims`: squared distances from the mean, over `count - correction`. PyTorch's default correction is 1.
    #[track_caller]
    pub fn var(&self, dims: impl ReduceDims, correction: f64) -> Tensor {
        let set = self.dim_set("var", &dims);
        self.variance(set, correction).drop_dims(set).to_dtype(self.dtype())
    }

    /// As [`Tensor::var`], with the reduced dimensions kept at size 1.
    #[track_caller]
    pub fn var_keepdim(&self, dims: impl ReduceDims, correction: f64) -> Tensor {
        self.variance(self.dim_set("var", &dims), correction).to_dtype(self.dtype())
    }

    /// Standard deviation: the root of [`Tensor::var`]. Where it is 0 its gradient is 0.
    #[track_caller]
    pub fn std(&self, dims: impl ReduceDims, correction: f64) -> Tensor {
        let set = self.dim_set("std", &dims);
        deviation(&self.variance(set, correction)).drop_dims(set).to_dtype(self.dtype())
    }

    /// As [`Tensor::std`], with the reduced dimensions kept at size 1.
    #[track_caller]
    pub fn std_keepdim(&self, dims: impl ReduceDims, correction: f64) -> Tensor {
        deviation(&self.variance(self.dim_set("std", &dims), correction)).to_dtype(self.dtype())
    }

    /// In f32 for half precision, where squares soon leave the range.
    #[track_caller]
    fn variance(&self, set: DimSet, correction: f64) -> Tensor {
        self.require_float("var");
        let x = self.to_dtype(wide(self.dtype()));
        let freedom = set.count(x.shape()) as f64 - correction;
        let detached = x.detach();
        let centred = &detached - detached.reduce(Reduce::Mean, set);
        let y = centred.square().reduce(Reduce::Sum, set) / freedom.max(0.0);
        // The mean itself has no part in it: distances from the mean add up to 0.
        y.recorded("var", &[&x], &[Save::Input(0)], move |c| {
            let x = c.saved(0);
            grads![(c.grad() * (2.0 / freedom)) * (x - x.reduce(Reduce::Mean, set))]
        })
    }

    /// The p-norm over `dims`: `(Σ|x|ᵖ)^(1/p)`; p may be 0 (how many are not zero), 1, 2 (the usual one) or ±∞.
    #[track_caller]
    pub fn norm(&self, p: f64, dims: impl ReduceDims) -> Tensor {
        let set = self.dim_set("norm", &dims);
        self.p_norm(p, set).drop_dims(set)
    }

    /// As [`Tensor::norm`], with the reduced dimensions kept at size 1.
    #[track_caller]
    pub fn norm_keepdim(&self, p: f64, dims: impl ReduceDims) -> Tensor {
        self.p_norm(p, self.dim_set("norm", &dims))
    }

    #[track_caller]
    fn p_norm(&self, p: f64, set: DimSet) -> Tensor {
        self.require_float("norm");
        let x = self.in_full_precision();
        let dtype = x.dtype();
        // Squares of half precision soon leave its range.
        let x = &x.to_dtype(wide(dtype));
        let y = match p {
            0.0 => x.ne(0).to_dtype(x.dtype()).reduce(Reduce::Sum, set),
            1.0 => x.abs().reduce(Reduce::Sum, set),
            f64::INFINITY => extreme_norm(x, Reduce::Max, set),
            f64::NEG_INFINITY => extreme_norm(x, Reduce::Min, set),
            2.0 => euclidean(x, set),
            _ => general_norm(x, p, set),
        };
        y.to_dtype(dtype)
    }

    /// `ln Σ eˣ` over `dims`, without overflow; of nothing -∞. Integers become f32 first.
    #[track_caller]
    pub fn logsumexp(&self, dims: impl ReduceDims) -> Tensor {
        let set = self.dim_set("logsumexp", &dims);
        self.log_sum_exp(set).drop_dims(set)
    }

    /// As [`Tensor::logsumexp`], with the reduced dimensions kept at size 1.
    #[track_caller]
    pub fn logsumexp_keepdim(&self, dims: impl ReduceDims) -> Tensor {
        self.log_sum_exp(self.dim_set("logsumexp", &dims))
    }

    #[track_caller]
    fn log_sum_exp(&self, set: DimSet) -> Tensor {
        let x = if self.dtype().is_float() { self.in_full_precision() } else { self.as_dtype(DType::F32) };
        let dtype = x.dtype();
        let x = &x.to_dtype(wide(dtype));
        if set.count(x.shape()) == 0 {
            return x.exp().reduce(Reduce::Sum, set).log().to_dtype(dtype);
        }
        // An infinite maximum would give inf - inf: shift by 0 there.
        let max = x.detach().reduce(Reduce::Max, set);
        let shift = max.masked_fill(&max.isinf(), 0);
        ((x - &shift).exp().reduce(Reduce::Sum, set).log() + shift).to_dtype(dtype)
    }

    /// Summed until the shape is `shape`: the adjoint of broadcasting to this tensor's shape.
    ///
    /// # Panics
    /// If `shape` does not broadcast to this tensor's shape.
    #[track_caller]
    pub fn sum_to(&self, shape: &Shape) -> Tensor {
        if self.shape() == shape {
            return self.clone();
        }
        let lead = self.rank().checked_sub(shape.rank());
        let Some(lead) = lead.filter(|_| shape.broadcast(self.shape()).as_ref() == Some(self.shape())) else {
            panic!(
                "sum_to: shape {shape} does not broadcast to {}. tensor: {}",
                self.shape(),
                self.describe()
            );
        };
        let mut set = DimSet::default();
        for d in 0..self.rank() {
            // Of one element there is nothing to sum.
            if self.shape()[d] != 1 && (d < lead || shape[d - lead] != self.shape()[d]) {
                set.insert(d);
            }
        }
        self.reduce(Reduce::Sum, set).with_shape(*shape)
    }
}

/// True if a product of all can be divided by one factor to get that of the others: none is zero, nothing overflows or loses digits.
/// Where looking at it means to wait, nothing is divided.
fn divides(products: &Tensor) -> bool {
    if products.device() != &Device::cpu() || !matches!(products.dtype(), DType::F32 | DType::F64) {
        return false;
    }
    let size = products.abs();
    matches!(size.ge(1e-20).logical_and(size.le(1e20)).all(..).item(), Ok(1.0))
}

/// For every element the product of all the others it is multiplied with: right also where there are zeros.
#[track_caller]
fn product_of_others(x: &Tensor, set: DimSet) -> Tensor {
    // Reduced dimensions last and joined, then products of what comes before times what comes after.
    let mut order: Vec<isize> = (0..x.rank()).filter(|&d| !set.contains(d)).map(|d| d as isize).collect();
    order.extend(set.iter().filter(|&d| d < x.rank()).map(|d| d as isize));
    let moved = x.permute(&order[..]);
    let n = set.count(x.shape());
    let kept = moved.numel() / n.max(1);
    let rows = moved.reshape((kept, n));
    let ones = Tensor::ones([kept, 1], (x.dtype(), x.device()));
    let before = Tensor::cat(&[&ones, &rows], 1).narrow(1, 0, n).cumprod(1);
    let after = Tensor::cat(&[&rows, &ones], 1).narrow(1, 1, n).flip(&[1]).cumprod(1).flip(&[1]);
    (before * after).reshape(moved.shape()).permute(&inverse_order(&order)[..])
}

/// The root of a variance; where nothing varies the gradient is 0.
#[track_caller]
fn deviation(variance: &Tensor) -> Tensor {
    let y = variance.detach().sqrt();
    y.recorded("std", &[variance], &[Save::Output(0)], |c| {
        let y = c.saved(0);
        grads![(c.grad() / (y * 2)).masked_fill(&y.eq(0), 0)]
    })
}

/// The p-norm for any p; elements that are 0 have the gradient 0.
#[track_caller]
fn general_norm(x: &Tensor, p: f64, set: DimSet) -> Tensor {
    let y = x.detach().abs().pow(p).reduce(Reduce::Sum, set).pow(1.0 / p);
    y.recorded("norm", &[x], &[Save::Input(0), Save::Output(0)], move |c| {
        // d|x| = (|x| / norm)^(p - 1), a ratio that neither overflows nor vanishes
        let (x, y) = (c.saved(0), c.saved(1));
        let zero = x.eq(0);
        let ratio = (x.abs() / y).masked_fill(&zero, 1).pow(p - 1.0);
        grads![(c.grad() * x.sign() * ratio).masked_fill(&zero, 0)]
    })
}

/// The largest or smallest absolute value.
#[track_caller]
fn extreme_norm(x: &Tensor, kind: Reduce, set: DimSet) -> Tensor {
    let y = x.detach().abs().reduce(kind, set);
    y.recorded("norm", &[x], &[Save::Input(0), Save::Output(0)], move |c| {
        let (x, y) = (c.saved(0), c.saved(1));
        grads![shared(c.grad(), is_extreme(&x.abs(), y), set) * x.sign()]
    })
}

/// Where the largest (smallest) value is, or a NaN.
#[track_caller]
fn is_extreme(x: &Tensor, extreme: &Tensor) -> Tensor {
    x.eq(extreme).logical_or(x.isnan())
}

/// A gradient in equal parts for those that are hit.
#[track_caller]
fn shared(grad: &Tensor, hit: Tensor, set: DimSet) -> Tensor {
    let hit = hit.to_dtype(grad.dtype());
    (grad / hit.reduce(Reduce::Sum, set)) * hit
}

/// The 2-norm; at 0 its gradient is 0.
#[track_caller]
fn euclidean(x: &Tensor, set: DimSet) -> Tensor {
    let squares = x.detach().square().reduce(Reduce::Sum, set);
    let y = squares.sqrt();
    y.recorded("norm", &[x], &[Save::Input(0), Save::Output(0)], move |c| {
        let (x, y) = (c.saved(0), c.saved(1));
        grads![x * (c.grad() / y).masked_fill(&y.eq(0), 0)]
    })
}
