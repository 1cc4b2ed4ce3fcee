//! Scattering where what falls on one place is joined: the aggregation of graph networks.

use super::creation::ok;
use crate::autograd::{Save, is_grad_enabled};
use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::grads;
use crate::tensor::Tensor;

/// How [`Tensor::scatter_reduce`] joins the values that fall on one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScatterReduce {
    /// Their sum.
    Sum,
    /// Their mean; of integers rounded down.
    Mean,
    /// Their product, computed on the host.
    Prod,
    /// The largest, NaN if there is one. Equal ones share the gradient.
    AMax,
    /// The smallest, NaN if there is one. Equal ones share the gradient.
    AMin,
}

impl Tensor {
    /// This tensor with the elements of `source` joined where [`Tensor::scatter_add`] would add them: `y[index[i][j]][j]` becomes
    /// the sum, mean, product, largest or smallest of all `source[i][j]` that fall there and, if `include_self` (PyTorch's default), of what
    /// is there already. Places on which nothing falls stay as they are.
    ///
    /// ```
    /// # use orkest_core::{ScatterReduce, Tensor, tensor};
    /// let (messages, receiver) = (tensor![1.0, 5.0, 3.0], tensor![0, 0, 2]);
    /// let nodes = Tensor::zeros([3], ()).scatter_reduce(0, &receiver, &messages, ScatterReduce::Mean, false);
    /// assert_eq!(nodes.to_vec::<f32>().unwrap(), [3.0, 0.0, 3.0]);
    /// ```
    ///
    /// # Panics
    /// As [`Tensor::scatter_add`]. A product with two zeros on one place has no second gradient.
    #[track_caller]
    pub fn scatter_reduce(
        &self,
        dim: isize,
        index: &Tensor,
        source: &Tensor,
        reduce: ScatterReduce,
        include_self: bool,
    ) -> Tensor {
        let d = self.check_scatter("scatter_reduce", dim, index, source);
        let source = self.accepts("scatter_reduce", source).corner(index.shape());
        match reduce {
            ScatterReduce::Sum => self.scatter_sum(d, index, &source, include_self),
            ScatterReduce::Mean => {
                let sum = self.scatter_sum(d, index, &source, include_self);
                let counts = self.scatter_counts(d, index) + include_self as i64;
                let counts = counts.clamp_min(1);
                if self.dtype().is_float() {
                    sum / counts
                } else {
                    sum.floor_divide(&counts).to_dtype(self.dtype())
                }
            }
            ScatterReduce::Prod => self.scatter_product(d, index, &source, include_self),
            ScatterReduce::AMax | ScatterReduce::AMin => {
                let largest = reduce == ScatterReduce::AMax;
                self.scatter_extreme(d, index, &source, largest, include_self)
            }
        }
    }

    #[track_caller]
    fn scatter_sum(&self, d: usize, index: &Tensor, source: &Tensor, include_self: bool) -> Tensor {
        let dim = d as isize;
        let base = if include_self { self.clone() } else { self.scatter(dim, index, &source.zeros_like()) };
        base.scatter_add(dim, index, source)
    }

    /// How many elements fall on each place; i64.
    #[track_caller]
    fn scatter_counts(&self, d: usize, index: &Tensor) -> Tensor {
        let zeros = Tensor::zeros(*self.shape(), (DType::I64, self.device()));
        zeros.scatter_add(d as isize, index, &index.ones_like())
    }

    #[track_caller]
    fn scatter_product(&self, d: usize, index: &Tensor, source: &Tensor, include_self: bool) -> Tensor {
        let (x, s) = (self.detach(), source.detach());
        // In half precision only the end is rounded.
        let y = match self.dtype() {
            DType::F64 => x.products(d, index, &s, include_self, |a: f64, b| a * b),
            t if t.is_float() => x.products(d, index, &s, include_self, |a: f32, b| a * b),
            _ => x.products(d, index, &s, include_self, i64::wrapping_mul),
        };
        let saved = [Save::Input(0), Save::Input(1), Save::Input(2), Save::Output(0)];
        y.recorded("scatter_reduce", &[self, index, source], &saved, move |c| {
            let (x, index, source, y, g) = (c.saved(0), c.saved(1), c.saved(2), c.saved(3), c.grad());
            let dim = d as isize;
            let product =
                |x: &Tensor, s: &Tensor| x.scatter_reduce(dim, index, s, ScatterReduce::Prod, include_self);
            let of_self = || {
                let x = x.masked_fill(&x.eq(0), 1);
                let others = product(&x, source) / &x;
                let kept =
                    if include_self { others } else { others.scatter(dim, index, &source.zeros_like()) };
                g * kept
            };
            let of_source = || {
                // Only where it is the one zero on its place is there anything left of the others.
                let zero = source.eq(0);
                let zeros = Tensor::zeros(*x.shape(), (DType::I64, x.device()));
                let zeros = zeros.scatter_add(dim, index, &zero.to_dtype(DType::I64)).gather(dim, index);
                let alone = zero.logical_and(zeros.eq(1));
                let others = product(x, &source.masked_fill(&alone, 1)).gather(dim, index);
                let rest = y.gather(dim, index) / source.masked_fill(&zero, 1);
                let grad = g.gather(dim, index) * alone.where_(others, rest);
                let differentiable =
                    !is_grad_enabled() || ok("scatter_reduce", zeros.gt(1).any(..).item()) == 0.0;
                if differentiable { grad } else { without_gradient(&grad) }
            };
            grads![c.needs(0).then(of_self), None, c.needs(2).then(of_source)]
        })
    }

    /// Products on the host of what falls on each place, in the order of `source`.
    #[track_caller]
    fn products<T: Element>(
        &self,
        d: usize,
        index: &Tensor,
        source: &Tensor,
        include_self: bool,
        times: impl Fn(T, T) -> T,
    ) -> Tensor {
        const OP: &str = "scatter_reduce";
        let cpu = Device::cpu();
        let mut values = ok(OP, self.to(&cpu).to_dtype(T::DTYPE).to_vec::<T>());
        let factors = ok(OP, source.to(&cpu).to_dtype(T::DTYPE).to_vec::<T>());
        let positions = ok(OP, index.to_vec::<i64>());
        let mut fresh = vec![!include_self; values.len()];
        let (shape, sizes) = (*self.shape(), *index.shape());
        for (i, (&factor, &position)) in factors.iter().zip(&positions).enumerate() {
            if !(0..shape[d] as i64).contains(&position) {
                panic!(
                    "scatter_reduce: index {position} is out of range for dimension {d} of size {}. tensor: {}; index: {}",
                    shape[d],
                    self.describe(),
                    index.describe()
                );
            }
            let (mut rest, mut place, mut stride) = (i, 0, 1);
            for e in (0..shape.rank()).rev() {
                let along = if e == d { position as usize } else { rest % sizes[e] };
                rest /= sizes[e];
                place += along * stride;
                stride *= shape[e];
            }
            let before = std::mem::take(&mut fresh[place]);
            values[place] = if before { factor } else { times(values[place], factor) };
        }
        Tensor::from_slice(&values, shape, &cpu).to_dtype(self.dtype()).to(self.device())
    }

    #[track_caller]
    fn scatter_extreme(
        &self,
        d: usize,
        index: &Tensor,
        source: &Tensor,
        largest: bool,
        include_self: bool,
    ) -> Tensor {
        let won = self.detach().last_in_order(d, index, &source.detach(), largest);
        let y = match (include_self, largest) {
            (false, _) => won,
            (true, true) => self.detach().maximum(won),
            (true, false) => self.detach().minimum(won),
        };
        let saved = [Save::Input(0), Save::Input(1), Save::Input(2), Save::Output(0)];
        y.recorded("scatter_reduce", &[self, index, source], &saved, move |c| {
            let (x, index, source, y, dim) = (c.saved(0), c.saved(1), c.saved(2), c.saved(3), d as isize);
            // What is there already takes its share, as in PyTorch, also where it was not asked; then the share is lost.
            let equal = x.eq(y);
            let hits = source.eq(y.gather(dim, index));
            let sharing = equal.to_dtype(x.dtype()).scatter_add(dim, index, &hits.to_dtype(x.dtype()));
            let share = c.grad() / sharing.clamp_min(1);
            let stays = || match include_self {
                true => equal.clone(),
                false => x.scatter_counts(d, index).eq(0),
            };
            grads![
                c.needs(0).then(|| share.masked_fill(&stays().logical_not(), 0)),
                None,
                c.needs(2).then(|| share.gather(dim, index).masked_fill(&hits.logical_not(), 0))
            ]
        })
    }

    /// This tensor with the largest (smallest) of the elements of `source` that fall on a place. Scattering lets the last one win:
    /// they are scattered in order.
    #[track_caller]
    fn last_in_order(&self, d: usize, index: &Tensor, source: &Tensor, largest: bool) -> Tensor {
        // NaN is the last when ascending. Negative numbers turn the order around and leave NaN where it is; u8 has none.
        let keys = match (largest, source.dtype().is_float()) {
            (false, true) => -source,
            _ => source.clone(),
        };
        let descending = !largest && !source.dtype().is_float();
        let order = keys.reshape(-1isize).argsort(0, descending);
        // The number of each place in row-major order. A bad position must not become a good one in another row.
        let bad = index.lt(0).logical_or(index.ge(self.shape()[d]));
        let mut places = index.zeros_like();
        let mut stride = 1;
        for e in (0..self.rank()).rev() {
            let mut sizes = vec![1; self.rank()];
            sizes[e] = index.shape()[e];
            let along = if e == d {
                index.clone()
            } else {
                Tensor::arange(0, sizes[e], 1, self.device()).reshape(sizes)
            };
            places += along * stride;
            stride *= self.shape()[e];
        }
        let places = places.masked_fill(&bad, -1);
        let places = places.reshape(-1isize).index_select(0, &order);
        let values = source.reshape(-1isize).index_select(0, &order);
        self.reshape(-1isize).scatter(0, &places, &values).reshape(self.shape())
    }
}

/// The gradient of a product with several zeros on one place, which is right but not to be differentiated: its formula takes for a
/// constant which of them is alone.
#[track_caller]
fn without_gradient(grad: &Tensor) -> Tensor {
    grad.detach().recorded("scatter_reduce_grad", &[grad], &[], |_| {
        panic!("scatter_reduce: a product with two zeros on one place has no second gradient")
    })
}

#[cfg(test)]
mod tests {
    use super::ScatterReduce::{AMax, AMin, Mean, Prod, Sum};
    use crate::{BackwardOptions, DType, Device, Tensor, grad, tensor};

    #[test]
    fn what_falls_on_one_place_is_joined() {
        let x = tensor![10.0, 20.0, 30.0];
        let (index, source) = (tensor![0, 0, 2, 0], tensor![1.0, 40.0, f32::NAN, 4.0]);
        for (reduce, include_self, expected) in [
            (Sum, true, [55.0, 20.0]),
            (Sum, false, [45.0, 20.0]),
            (Mean, true, [13.75, 20.0]),
            (Mean, false, [15.0, 20.0]),
            (Prod, true, [1600.0, 20.0]),
            (Prod, false, [160.0, 20.0]),
            (AMax, true, [40.0, 20.0]),
            (AMin, true, [1.0, 20.0]),
            (AMin, false, [1.0, 20.0]),
        ] {
            let y = x.scatter_reduce(0, &index, &source, reduce, include_self).to_vec::<f32>().unwrap();
            assert_eq!(y[..2], expected, "{reduce:?}, {include_self}");
            assert!(y[2].is_nan());
        }
        let bytes = Tensor::new([9u8, 200], &Device::cpu());
        let least = bytes.scatter_reduce(0, &tensor![1, 1], &Tensor::new([7u8, 8], ()), AMin, false);
        assert_eq!((least.dtype(), least.to_vec::<u8>().unwrap()), (DType::U8, vec![9, 7]));
    }

    #[test]
    fn equal_extremes_share_the_gradient() {
        let x = tensor![3.0, 1.0].requires_grad_(true);
        let source = tensor![3.0, 3.0, 0.0].requires_grad_(true);
        x.scatter_reduce(0, &tensor![0, 0, 1], &source, AMax, true).sum(..).backward();
        let third = 1.0 / 3.0;
        assert_eq!(x.grad().unwrap().to_vec::<f32>().unwrap(), [third, 1.0]);
        assert_eq!(source.grad().unwrap().to_vec::<f32>().unwrap(), [third, third, 0.0]);
    }

    /// torch.scatter_reduce(x, 0, [0, 0, 1], source, "amin", include_self=False): a half of the first gradient is lost.
    #[test]
    fn what_is_not_included_still_shares_the_gradient_as_in_pytorch() {
        let x = tensor![-4.0, 1.0, f32::NAN].requires_grad_(true);
        let source = tensor![0.0, -4.0, 2.0].requires_grad_(true);
        x.scatter_reduce(0, &tensor![0, 0, 1], &source, AMin, false).sum(..).backward();
        assert_eq!(x.grad().unwrap().to_vec::<f32>().unwrap(), [0.0, 0.0, 1.0]);
        assert_eq!(source.grad().unwrap().to_vec::<f32>().unwrap(), [0.0, 0.5, 1.0]);
    }

    /// As in PyTorch, where a second backward pass says "Double backward is unsupported for src when >1 zeros in src are scattered to the
    /// same position in self".
    #[test]
    #[should_panic(expected = "a product with two zeros on one place has no second gradient")]
    fn two_zeros_on_one_place_leave_a_gradient_but_no_second_one() {
        let source = tensor![0.0, 0.0, 3.0].requires_grad_(true);
        let y = tensor![2.0].scatter_reduce(0, &tensor![0, 0, 0], &source, Prod, true);
        let options = BackwardOptions { create_graph: true, ..Default::default() };
        let first = grad(&[&y], &[&source], options)[0].clone().unwrap();
        assert_eq!(first.to_vec::<f32>().unwrap(), [0.0; 3]);
        first.sum(..).backward();
    }
}
