//! Running sums and products along a dimension.

use crate::autograd::{Save, is_grad_enabled};
use crate::device::Device;
use crate::dispatch::run;
use crate::dtype::DType;
use crate::op::{Cumulative, Op};
use crate::tensor::Tensor;
use std::borrow::Cow;

impl Tensor {
    /// Running sum along `dim`: `y[i] = x[0] + .. + x[i]`. Integers and bools give i64.
    ///
    /// # Shapes
    /// - input and output: any; a tensor without dimensions has dimension 0 only
    ///
    /// # Panics
    /// If `dim` is out of range.
    #[track_caller]
    pub fn cumsum(&self, dim: isize) -> Tensor {
        if self.rank() == 0 {
            return self.unsqueeze(0).cumsum(dim).squeeze(0);
        }
        let dim = self.dim_index("cumsum", dim);
        let x = self.widened();
        let y = run("cumsum", Op::Cumulative(Cumulative::Sum, dim), &[&x], *x.shape(), x.dtype());
        // x[i] is part of every y[j] with j >= i.
        y.recorded("cumsum", &[&x], &[], move |c| crate::grads![c.grad().sum_from_here_on(dim)])
    }

    /// Running product along `dim`: `y[i] = x[0] * .. * x[i]`. Integers and bools give i64.
    ///
    /// # Shapes
    /// - input and output: any; a tensor without dimensions has dimension 0 only
    ///
    /// # Panics
    /// If `dim` is out of range.
    #[track_caller]
    pub fn cumprod(&self, dim: isize) -> Tensor {
        if self.rank() == 0 {
            return self.unsqueeze(0).cumprod(dim).squeeze(0);
        }
        let dim = self.dim_index("cumprod", dim);
        let x = self.widened();
        let y = run("cumprod", Op::Cumulative(Cumulative::Prod, dim), &[&x], *x.shape(), x.dtype());
        y.recorded("cumprod", &[&x], &[Save::Input(0), Save::Output(0)], move |c| {
            let (x, y, g) = (c.saved(0), c.saved(1), c.grad());
            crate::grads![if is_grad_enabled() {
                cumprod_grad_steps(x, y, g, dim)
            } else {
                cumprod_grad(x, y, g, dim)
            }]
        })
    }

    /// Running maximum along `dim` and the (i64) position of each, of equals the last; NaN stays once it is met. The gradient goes
    /// to those positions.
    ///
    /// # Panics
    /// If `dim` is out of range.
    #[track_caller]
    pub fn cummax(&self, dim: isize) -> (Tensor, Tensor) {
        self.running_extreme("cummax", dim, |new, old| new.ge(old))
    }

    /// Running minimum along `dim` and the (i64) position of each, of equals the last; NaN stays once it is met. The gradient goes
    /// to those positions.
    ///
    /// # Panics
    /// If `dim` is out of range.
    #[track_caller]
    pub fn cummin(&self, dim: isize) -> (Tensor, Tensor) {
        self.running_extreme("cummin", dim, |new, old| new.le(old))
    }

    #[track_caller]
    fn running_extreme(
        &self,
        op: &str,
        dim: isize,
        better: impl Fn(&Tensor, &Tensor) -> Tensor,
    ) -> (Tensor, Tensor) {
        if self.rank() == 0 {
            let (values, indices) = self.unsqueeze(0).running_extreme(op, dim, better);
            return (values.squeeze(0), indices.squeeze(0));
        }
        let d = self.dim_index(op, dim);
        let mut sizes = vec![1; self.rank()];
        sizes[d] = self.shape()[d];
        let places = Tensor::arange(0, sizes[d], 1, self.device());
        let places = places.reshape(sizes).broadcast_to(self.shape());
        let (values, places) = scan((self.detach(), places), d, |(new, at), (old, old_at)| {
            let mut wins = better(new, old);
            if new.dtype().is_float() {
                wins = wins
                    .logical_or(new.isnan())
                    .logical_and(old.isnan().logical_not().logical_or(new.isnan()));
            }
            (wins.where_(new, old), wins.where_(at, old_at))
        });
        let values = if self.requires_grad() { self.gather(d as isize, &places) } else { values };
        (values, places)
    }

    /// Running `ln Σ eˣ` along `dim`, without overflow.
    ///
    /// # Panics
    /// If `dim` is out of range or the dtype is not a float.
    #[track_caller]
    pub fn logcumsumexp(&self, dim: isize) -> Tensor {
        self.require_float("logcumsumexp");
        if self.rank() == 0 {
            return self.unsqueeze(0).logcumsumexp(dim).squeeze(0);
        }
        let d = self.dim_index("logcumsumexp", dim);
        scan((self.in_full_precision().into_owned(), ()), d, |(new, ()), (old, ())| {
            (old.log_add_exp(new), ())
        })
        .0
    }

    /// Differences between neighbours along `dim`: `y[i] = x[i + 1] - x[i]`.
    ///
    /// # Shapes
    /// - input: `[.., n, ..]`
    /// - output: `[.., n - 1, ..]`
    ///
    /// # Panics
    /// If `dim` is out of range or the dtype is bool.
    #[track_caller]
    pub fn diff(&self, dim: isize) -> Tensor {
        let d = self.dim_index("diff", dim);
        let n = self.shape()[d].saturating_sub(1);
        self.narrow(dim, self.shape()[d] - n, n) - self.narrow(dim, 0, n)
    }

    /// Integers and bools as i64, the type their sums and products have.
    #[track_caller]
    fn widened(&self) -> Cow<'_, Tensor> {
        if self.dtype().is_float() { self.in_full_precision() } else { self.as_dtype(DType::I64) }
    }

    /// `y[i] = x[i] + x[i + 1] + ..`
    fn sum_from_here_on(&self, dim: usize) -> Tensor {
        let dim = dim as isize;
        self.flip(&[dim]).cumsum(dim).flip(&[dim])
    }
}

/// What a running computation carries along: tensors of one shape.
trait Carried: Sized {
    fn stretch(&self, dim: usize, start: usize, len: usize) -> Self;
    fn joined(first: &Self, rest: &Self, dim: usize) -> Self;
}

impl Carried for Tensor {
    fn stretch(&self, dim: usize, start: usize, len: usize) -> Tensor {
        self.narrow(dim as isize, start, len)
    }
    fn joined(first: &Tensor, rest: &Tensor, dim: usize) -> Tensor {
        Tensor::cat(&[first, rest], dim as isize)
    }
}

impl Carried for () {
    fn stretch(&self, _: usize, _: usize, _: usize) {}
    fn joined((): &(), (): &(), _: usize) {}
}

/// Combines every element along `dim` with all before it, in as many passes as its size has bits. `combine` is given the later
/// elements and the earlier ones.
fn scan<A: Carried>(
    mut x: (Tensor, A),
    dim: usize,
    combine: impl Fn((&Tensor, &A), (&Tensor, &A)) -> (Tensor, A),
) -> (Tensor, A) {
    let n = x.0.shape()[dim];
    let mut step = 1;
    while step < n {
        let part = |start, len| (x.0.stretch(dim, start, len), x.1.stretch(dim, start, len));
        let (first, later, earlier) = (part(0, step), part(step, n - step), part(0, n - step));
        let rest = combine((&later.0, &later.1), (&earlier.0, &earlier.1));
        x = (Tensor::joined(&first.0, &rest.0, dim), A::joined(&first.1, &rest.1, dim));
        step *= 2;
    }
    x
}

/// The gradient of a running product in a fixed number of passes.
///
/// `dx[i]` is the sum over `j >= i` of `g[j] * y[j] / x[i]`. At the first zero, the products that skip it take the place of
/// `y / x`; they end where the next zero comes. Behind the first zero every product contains it, so the gradient vanishes.
fn cumprod_grad(x: &Tensor, y: &Tensor, g: &Tensor, dim: usize) -> Tensor {
    let along = dim as isize;
    let zero = x.eq(0);
    // Worth a look where that does not mean to wait.
    if x.device() == &Device::cpu() && matches!(zero.any(..).item(), Ok(0.0)) {
        return (g * y).sum_from_here_on(dim) / x;
    }
    let zeros_so_far = zero.cumsum(along);
    let before = zeros_so_far.eq(0);
    let up_to_second = zeros_so_far.eq(1);
    let first = zero.logical_and(&up_to_second);
    let skipping = x.masked_fill(&first, 1);
    let ordinary = (g * y).sum_from_here_on(dim) / &skipping;
    let at_first =
        (g * skipping.cumprod(along)).masked_fill(&up_to_second.logical_not(), 0).sum_from_here_on(dim);
    before.where_(&ordinary, first.where_(&at_first, 0))
}

/// The same as a recurrence without division, so that its own gradient is right at zeros too:
/// `dx[i] = (x[0] * .. * x[i - 1]) * s[i]` with `s[i] = g[i] + x[i + 1] * s[i + 1]`.
fn cumprod_grad_steps(x: &Tensor, y: &Tensor, g: &Tensor, dim: usize) -> Tensor {
    let (len, dim) = (x.shape()[dim], dim as isize);
    if x.numel() == 0 {
        return g.clone();
    }
    let mut s = g.narrow(dim, len - 1, 1);
    let mut steps = vec![s.clone()];
    for i in (0..len - 1).rev() {
        s = g.narrow(dim, i, 1) + x.narrow(dim, i + 1, 1) * s;
        steps.push(s.clone());
    }
    steps.reverse();
    let left = Tensor::cat(&[x.narrow(dim, 0, 1).ones_like(), y.narrow(dim, 0, len - 1)], dim);
    left * Tensor::cat(&steps, dim)
}

#[cfg(test)]
mod tests {
    use crate::{BackwardOptions, DType, Device, Tensor, grad, gradcheck, gradgradcheck};

    fn f64s(values: &[f64], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::reference())
    }

    #[test]
    fn running_sums_and_products_follow_the_definition() {
        let x = f64s(&[1., 2., 3., 4., 5., 6.], &[2, 3]);
        assert_eq!(x.cumsum(0).to_vec::<f64>().unwrap(), [1., 2., 3., 5., 7., 9.]);
        assert_eq!(x.cumsum(-1).to_vec::<f64>().unwrap(), [1., 3., 6., 4., 9., 15.]);
        assert_eq!(x.transpose(0, 1).cumprod(0).to_vec::<f64>().unwrap(), [1., 4., 2., 20., 6., 120.]);
        assert_eq!(f64s(&[], &[0, 2]).cumsum(0).shape(), &[0, 2]);
    }

    #[test]
    fn running_extremes_and_sums_of_exponentials_agree_with_pytorch() {
        let x = f64s(&[1.0, 3.0, 3.0, f64::NAN, 5.0, 2.0], &[6]);
        let (values, places) = x.cummax(0);
        assert_eq!(places.to_vec::<i64>().unwrap(), [0, 1, 2, 3, 3, 3]);
        assert_eq!(values.to_vec::<f64>().unwrap()[..3], [1.0, 3.0, 3.0]);
        assert_eq!(x.narrow(0, 0, 3).cummin(0).1.to_vec::<i64>().unwrap(), [0, 0, 0]);
        let sums = f64s(&[0.0, 0.0, f64::NEG_INFINITY, 1000.0], &[4]).logcumsumexp(0);
        assert_eq!(sums.to_vec::<f64>().unwrap(), [0.0, 2f64.ln(), 2f64.ln(), 1000.0]);
        assert_eq!(f64s(&[1.0, 4.0, 2.0], &[3]).diff(0).to_vec::<f64>().unwrap(), [3.0, -2.0]);
        assert_eq!(f64s(&[], &[0]).diff(0).shape(), &[0]);
    }

    #[test]
    fn integers_and_bools_become_i64() {
        let device = Device::reference();
        let x = Tensor::new([200u8, 100, 2], &device);
        assert_eq!(x.cumsum(0).to_vec::<i64>().unwrap(), [200, 300, 302]);
        assert_eq!(x.cumprod(0).to_vec::<i64>().unwrap(), [200, 20000, 40000]);
        assert_eq!(Tensor::new([true, false, true], &device).cumsum(0).to_vec::<i64>().unwrap(), [1, 1, 2]);
        let scalar = Tensor::new(3i32, &device).cumsum(-1);
        assert_eq!((scalar.dtype(), scalar.rank(), scalar.item().unwrap()), (DType::I64, 0, 3.0));
    }

    #[test]
    fn cumprod_gradients_at_zeros_are_pytorchs() {
        // From torch.autograd in f64, with these weights on the products.
        let cases: [(&[f64], &[f64]); 2] =
            [(&[2., 0., 3., 0., 4.], &[1., 22., 0., 0., 0.]), (&[2., 0., 3., 5.], &[1., 142., 0., 0.])];
        for (values, expected) in cases {
            for create_graph in [false, true] {
                let x = f64s(values, &[values.len()]).requires_grad_(true);
                let weight =
                    Tensor::arange(1.0, values.len() as f64 + 1.0, 1.0, (DType::F64, &Device::reference()));
                let loss = (x.cumprod(0) * weight).sum(..);
                let options = BackwardOptions { create_graph, ..Default::default() };
                let dx = grad(&[&loss], &[&x], options)[0].clone().unwrap();
                assert_eq!(dx.to_vec::<f64>().unwrap(), expected, "create_graph: {create_graph}");
            }
        }
    }

    #[test]
    fn gradients_and_their_gradients_agree_with_differences() {
        let cases: [&[f64]; 3] =
            [&[1.5, -2., 0.5, 3., -1., 2.], &[1.5, 0., 0.5, 3., 0., 0.], &[0., 2., 0., 1., 4., 5.]];
        for values in cases {
            for dim in [0, 1] {
                let x = [f64s(values, &[2, 3])];
                gradcheck(|x| x[0].cumprod(dim), &x).unwrap();
                gradgradcheck(|x| x[0].cumprod(dim), &x).unwrap();
                gradcheck(|x| x[0].cumsum(dim).square(), &x).unwrap();
                gradgradcheck(|x| x[0].cumsum(dim).square(), &x).unwrap();
            }
        }
        gradcheck(|x| x[0].cumprod(0), &[f64s(&[3.0], &[])]).unwrap();
    }
}
