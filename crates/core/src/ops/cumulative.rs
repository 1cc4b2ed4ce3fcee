//! Running sums and products along a dimension.

use crate::autograd::{Save, is_grad_enabled};
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

/// The gradient of a running product in a fixed number of passes.
///
/// `dx[i]` is the sum over `j >= i` of `g[j] * y[j] / x[i]`. At the first zero, the products that skip it take the place of
/// `y / x`; they end where the next zero comes. Behind the first zero every product contains it, so the gradient vanishes.
fn cumprod_grad(x: &Tensor, y: &Tensor, g: &Tensor, dim: usize) -> Tensor {
    let along = dim as isize;
    let zero = x.eq(0);
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
