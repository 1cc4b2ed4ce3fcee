//! The losses of single elements, and their sum or mean, in one pass where the backend has a kernel for it.

use super::lowering::by_lowering;
use crate::autograd::{Gradients, Save, is_grad_enabled, no_grad};
use crate::dispatch::run_fused;
use crate::grads;
use crate::op::{ElementLoss, Op, Reduce};
use crate::shape::Shape;
use crate::tensor::Tensor;

impl Tensor {
    /// What the elements cost, given their targets: all losses, or their sum or mean. This is what the layers for
    /// [regression](https://docs.pytorch.org/docs/stable/nn.functional.html#loss-functions), probabilities and counts are made of.
    ///
    /// ```
    /// # use orkest_core::op::{ElementLoss, Reduce};
    /// # use orkest_core::{Device, Tensor};
    /// let device = Device::cpu();
    /// let (x, y) = (Tensor::new([1.0f32, 2.0], &device), Tensor::new([1.5f32, 0.0], &device));
    /// let losses = x.element_loss(&y, ElementLoss::Squared, None);
    /// assert_eq!(losses.to_vec::<f32>().unwrap(), [0.25, 4.0]);
    /// assert_eq!(x.element_loss(&y, ElementLoss::Squared, Some(Reduce::Sum)).item().unwrap(), 4.25);
    /// ```
    ///
    /// # Shapes
    /// - input and target: any, the same
    /// - output: theirs, or none with `Sum` or `Mean`
    ///
    /// # Panics
    /// If the shapes differ, or the reduction is another one.
    #[track_caller]
    pub fn element_loss(&self, target: &Tensor, loss: ElementLoss, reduce: Option<Reduce>) -> Tensor {
        let name = loss.name();
        if self.shape() != target.shape() {
            panic!(
                "{name}: input and target must have one shape. input: {}; target: {}",
                self.describe(),
                target.describe()
            );
        }
        assert!(
            matches!(reduce, None | Some(Reduce::Sum | Reduce::Mean)),
            "{name}: losses are summed or averaged, not {reduce:?}"
        );
        let (x, y) = (self.in_full_precision(), target.in_full_precision());
        let dtype = x.dtype().promote(y.dtype());
        let (x, y) = (&x.to_dtype(dtype), &y.to_dtype(dtype));
        let shape = if reduce.is_some() { Shape::new(&[]) } else { *x.shape() };
        let op = Op::ElementLoss { loss, reduce };
        let Some([losses]) = run_fused(name, op, &[x, y], [(shape, dtype)]) else {
            return lowering(x, y, loss, reduce);
        };
        losses.recorded(name, &[x, y], &[Save::Input(0), Save::Input(1)], move |c| {
            let (x, y) = (c.saved(0), c.saved(1));
            if !is_grad_enabled() {
                let (target, grad) = (c.needs(1), c.grad().broadcast_to(x.shape()));
                let op = Op::ElementLossGrad { loss, reduce, target };
                let (inputs, like) = ([x, y, &grad], (*x.shape(), x.dtype()));
                if target {
                    if let Some([dx, dy]) = run_fused(loss.grad_name(), op, &inputs, [like, like]) {
                        return grads![dx, dy];
                    }
                } else if let Some([dx]) = run_fused(loss.grad_name(), op, &inputs, [like]) {
                    return Gradients::from_vec(vec![Some(dx), None]);
                }
            }
            let lowering = |t: &[Tensor]| lowering(&t[0], &t[1], loss, reduce);
            Gradients::from_vec(by_lowering(&[x, y], lowering, c.grad()))
        })
    }
}

#[track_caller]
fn lowering(x: &Tensor, y: &Tensor, loss: ElementLoss, reduce: Option<Reduce>) -> Tensor {
    let losses = match loss {
        ElementLoss::Squared => (x - y).square(),
        ElementLoss::Absolute => (x - y).abs(),
        ElementLoss::Huber { delta } => huber(&(x - y), delta),
        ElementLoss::SmoothL1 { beta } => huber(&(x - y), beta) / beta,
        ElementLoss::CrossEntropy => cross_entropy(x, y),
        ElementLoss::LogitCrossEntropy => (1.0 - y) * x - x.log_sigmoid(),
        // y ln y is 0 at 0
        ElementLoss::Divergence => y * (y.masked_fill(&y.eq(0), 1).log() - x),
        ElementLoss::LogDivergence => y.exp() * (y - x),
        ElementLoss::Poisson => x.exp() - y * x,
    };
    match reduce {
        None => losses,
        Some(Reduce::Mean) => losses.mean(..),
        Some(_) => losses.sum(..),
    }
}

/// `m (|d| - m / 2)` with `m = min(|d|, delta)`: both cases of Huber's formula, and their gradients, in one.
#[track_caller]
fn huber(d: &Tensor, delta: f64) -> Tensor {
    let distance = d.abs();
    let m = distance.clamp_max(delta);
    &m * (distance - &m * 0.5)
}

/// With a gradient of its own at 0 and 1, where the formula's is infinite: PyTorch divides by at least 1e-12 there.
#[track_caller]
fn cross_entropy(x: &Tensor, y: &Tensor) -> Tensor {
    let logarithms = |x: &Tensor| (x.log().clamp_min(-100.0), (-x).log1p().clamp_min(-100.0));
    let losses = no_grad(|| {
        let (log_x, log_rest) = logarithms(x);
        (y - 1.0) * log_rest - y * log_x
    });
    losses.recorded("binary_cross_entropy", &[x, y], &[Save::Input(0), Save::Input(1)], move |c| {
        let (x, y) = (c.saved(0), c.saved(1));
        let slope = (x - y) / (x * (1.0 - x)).clamp_min(1e-12f32 as f64);
        let dy = c.needs(1).then(|| {
            let (log_x, log_rest) = logarithms(x);
            c.grad() * (log_rest - log_x)
        });
        Gradients::from_vec(vec![Some(c.grad() * slope), dy])
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, assert_with_gradients, wave};
    use crate::op::{ElementLoss, Reduce};
    use crate::{Tensor, gradcheck, gradgradcheck};

    #[test]
    fn losses_are_pytorchs() {
        let cases: [(ElementLoss, [f64; 4], [[f64; 4]; 2]); 9] = [
            (
                ElementLoss::Squared,
                [0.566168, 0.132097, 0.220957, 1.880096],
                [[-0.721479, 0.587697, 0.646583, 1.731143], [0.721479, -0.587697, -0.646583, -1.731143]],
            ),
            (
                ElementLoss::Absolute,
                [0.752441, 0.363451, 0.47006, 1.371166],
                [[-0.479426, 0.808496, 0.687766, 0.631267], [0.479426, -0.808496, -0.687766, -0.631267]],
            ),
            (
                ElementLoss::Huber { delta: 0.4 },
                [0.220977, 0.066048, 0.108024, 0.468466],
                [[-0.19177, 0.293849, 0.275106, 0.252507], [0.19177, -0.293849, -0.275106, -0.252507]],
            ),
            (
                ElementLoss::SmoothL1 { beta: 0.4 },
                [0.552441, 0.165121, 0.27006, 1.171166],
                [[-0.479426, 0.734622, 0.687766, 0.631267], [0.479426, -0.734622, -0.687766, -0.631267]],
            ),
            (
                ElementLoss::CrossEntropy,
                [std::f64::consts::LN_2, 0.912396, 0.596101, 0.986766],
                [[-0.193643, 0.93698, -0.210465, 0.706286], [0.0, -1.746931, -0.285223, -1.201833]],
            ),
            (
                ElementLoss::LogitCrossEntropy,
                [std::f64::consts::LN_2, 0.684197, 0.628336, 0.746073],
                [[-0.121027, 0.081822, -0.152643, 0.101998], [0.0, -0.801757, -0.175753, -0.584436]],
            ),
            (
                ElementLoss::Divergence,
                [-0.214019, -0.915018, -0.275403, 0.052072],
                [[-0.36074, -0.507909, 0.147539, 0.281135], [0.343061, -0.36911, 0.195198, -0.705076]],
            ),
            (
                ElementLoss::LogDivergence,
                [1.596812, -0.681201, 0.58253, 2.140443],
                [[-1.017425, -1.515333, 0.852325, 0.985431], [1.782977, 0.964584, -1.25297, -2.336622]],
            ),
            (
                ElementLoss::Poisson,
                [1.0, 2.072741, 0.829316, 0.808521],
                [[0.118686, 1.67157, -0.385134, 0.031022], [0.0, -0.801757, -0.175753, -0.584436]],
            ),
        ];
        assert_eq!(cases.map(|(loss, ..)| loss), ElementLoss::EACH);
        for (loss, losses, [dx, dy]) in cases {
            let (x, y) = (wave([4], 0.0), (wave([4], 1.0).detach() * 0.3 + 0.5).requires_grad_(true));
            let input = if loss == ElementLoss::CrossEntropy { &x * 0.4 + 0.5 } else { x.clone() };
            let each = input.element_loss(&y, loss, None);
            assert_with_gradients(&each, &[&x, &y], &losses, &[&dx, &dy]);
            let [sum, mean] =
                [Reduce::Sum, Reduce::Mean].map(|reduce| input.element_loss(&y, loss, Some(reduce)));
            let total: f64 = losses.iter().sum();
            assert_close(&sum, &[total]);
            assert_close(&mean, &[total / 4.0]);
        }
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        let smooth = ElementLoss::EACH
            .into_iter()
            .filter(|loss| !matches!(loss, ElementLoss::Absolute | ElementLoss::CrossEntropy));
        let (x, y) = (wave([2, 3], 0.0), (wave([2, 3], 1.0).detach() * 0.3 + 0.5).requires_grad_(true));
        for loss in smooth {
            for reduce in [None, Some(Reduce::Sum), Some(Reduce::Mean)] {
                let f = |t: &[Tensor]| t[0].element_loss(&t[1], loss, reduce);
                gradcheck(f, &[x.clone(), y.clone()]).unwrap_or_else(|e| panic!("{loss:?}: {e}"));
                gradgradcheck(f, &[x.clone(), y.clone()]).unwrap_or_else(|e| panic!("{loss:?}: {e}"));
            }
        }
        let p = (wave([2, 3], 2.0).detach() * 0.3 + 0.5).requires_grad_(true);
        let f = |t: &[Tensor]| t[0].element_loss(&t[1], ElementLoss::CrossEntropy, Some(Reduce::Mean));
        gradcheck(f, &[p.clone(), y.clone()]).unwrap();
        gradgradcheck(f, &[p, y]).unwrap();
    }

    #[test]
    #[should_panic(expected = "mse_loss: input and target must have one shape. input: f64 [2]")]
    fn shapes_are_not_broadcast() {
        wave([2], 0.0).element_loss(&wave([2, 1], 0.0), ElementLoss::Squared, None);
    }
}
