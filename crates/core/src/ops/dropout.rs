//! Dropout.

use super::elementwise::place;
use crate::autograd::GradMode;
use crate::backend::Output;
use crate::dispatch::{run_fused_over, run_source};
use crate::grads;
use crate::op::{Op, RandomKind};
use crate::random::with_default_generator;
use crate::tensor::Tensor;
use std::borrow::Cow;

impl Tensor {
    /// While `training`, zeroes each element with probability `p` and scales the others by `1 / (1 - p)`; else does nothing.
    ///
    /// The mask is a function of the generator's seed and a running offset, the same on every backend; nothing of it is stored:
    /// the backward pass draws it again. See PyTorch's
    /// [`dropout`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html).
    ///
    /// # Shapes
    /// - input and output: any
    ///
    /// # Panics
    /// If `p` lies outside `[0, 1]` or the dtype is not a float.
    #[track_caller]
    pub fn dropout(&self, p: f64, training: bool) -> Tensor {
        dropout(Cow::Borrowed(self), p, training)
    }

    /// As [`Tensor::dropout`], for a tensor that nobody needs afterwards: where its memory belongs to it alone, the result takes its
    /// place.
    ///
    /// # Panics
    /// As [`Tensor::dropout`].
    #[track_caller]
    pub fn into_dropout(self, p: f64, training: bool) -> Tensor {
        dropout(Cow::Owned(self), p, training)
    }
}

#[track_caller]
fn dropout(x: Cow<'_, Tensor>, p: f64, training: bool) -> Tensor {
    assert!(
        (0.0..=1.0).contains(&p),
        "dropout: p must lie between 0 and 1, not {p}. input: {}",
        x.describe()
    );
    x.require_float("dropout");
    if !training || p == 0.0 || x.numel() == 0 {
        return x.into_owned();
    }
    if p == 1.0 {
        // Nothing is left to scale, and 1 / (1 - p) is no number.
        return x.zeros_like().recorded("dropout", &[&x], &[], |c| grads![c.grad().zeros_like()]);
    }
    let (seed, offset) = with_default_generator(|g| g.philox_offset(x.numel()));
    masked(x, p, seed, offset)
}

/// `x * mask / (1 - p)` with the mask of this seed and offset: linear in `x`, so its gradient is itself.
#[track_caller]
fn masked(mut x: Cow<'_, Tensor>, p: f64, seed: u64, offset: u64) -> Tensor {
    let mut output = Output::new(*x.shape(), x.dtype());
    output.buffer = place(output.layout.shape(), x.dtype(), &[], &mut [&mut x]);
    let fused = run_fused_over("dropout", Op::Dropout { p, seed, offset }, &[&x], &mut [output]);
    let y = match fused {
        Some([y]) => y,
        None => {
            let _off = GradMode::set(false);
            let random = Op::Random { kind: RandomKind::Bernoulli(1.0 - p), seed, offset };
            let mask = run_source("dropout", random, *x.shape(), x.dtype(), x.device());
            &*x * mask * (1.0 / (1.0 - p))
        }
    };
    y.recorded("dropout", &[&x], &[], move |c| grads![masked(Cow::Borrowed(c.grad()), p, seed, offset)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::wave;
    use super::masked;
    use crate::random::philox;
    use crate::{Device, Tensor, grad, gradcheck, gradgradcheck};
    use std::borrow::Cow;

    fn values(t: &Tensor) -> Vec<f64> {
        t.to_vec().unwrap()
    }

    #[test]
    fn the_mask_is_that_of_the_counter_based_generator() {
        let x = wave(9, 0.5);
        let y = values(&masked(Cow::Borrowed(&x), 0.25, 7, 3));
        let kept = |i: usize| philox::uniform(philox::word(7, 3, i)) < 0.75;
        let expected: Vec<f64> =
            values(&x).iter().enumerate().map(|(i, x)| if kept(i) { x / 0.75 } else { 0.0 }).collect();
        assert!(expected.contains(&0.0) && expected.iter().any(|&v| v != 0.0), "the case decides nothing");
        assert!(y.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "{y:?} instead of {expected:?}");
    }

    #[test]
    fn the_backward_pass_draws_the_same_mask() {
        let x = Tensor::ones(1000, (crate::DType::F64, &Device::reference())).requires_grad_(true);
        let y = x.dropout(0.3, true);
        let dx = grad(&[&y.sum(..)], &[&x], Default::default())[0].clone().unwrap();
        assert_eq!(values(&dx), values(&y));
        let kept = values(&y).iter().filter(|&&v| v != 0.0).count();
        assert!((600..800).contains(&kept), "{kept} of 1000 kept"); // 700 ± 6.9 standard deviations
    }

    #[test]
    fn the_limits_are_exact() {
        let x = Tensor::new([f64::NAN, f64::INFINITY, 1.0], Device::reference()).requires_grad_(true);
        let y = x.dropout(1.0, true);
        assert_eq!(values(&y), [0.0; 3]);
        assert_eq!(values(grad(&[&y.sum(..)], &[&x], Default::default())[0].as_ref().unwrap()), [0.0; 3]);
        for same in [x.dropout(0.0, true), x.dropout(0.5, false)] {
            assert_eq!(values(&same)[1..], values(&x)[1..]);
        }
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        let dropout = |t: &[Tensor]| masked(Cow::Borrowed(&t[0]), 0.25, 7, 3).square();
        gradcheck(dropout, &[wave(9, 0.5)]).unwrap();
        gradgradcheck(dropout, &[wave(9, 0.5)]).unwrap();
    }

    #[test]
    #[should_panic(expected = "dropout: p must lie between 0 and 1, not 1.5. input: f64 [3]")]
    fn an_impossible_probability_is_refused() {
        wave(3, 0.0).dropout(1.5, false);
    }
}
