//! The loss of classification, row by row.

use super::lowering::{by_lowering, wide};
use crate::autograd::{Gradients, Save, is_grad_enabled};
use crate::dispatch::run_fused;
use crate::grads;
use crate::op::Op;
use crate::shape::Shape;
use crate::tensor::Tensor;

impl Tensor {
    /// The cross-entropy of every row of logits with its target class, not yet averaged:
    /// `logsumexp(x) - (1 - s) x[target] - s mean(x)` with `s = label_smoothing`, and 0 where the target is `ignore_index`.
    ///
    /// As PyTorch's [`cross_entropy`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html) with
    /// `reduction="none"` and no class weights.
    ///
    /// # Shapes
    /// - logits: `[n, classes]`
    /// - `target`: i64 `[n]`
    /// - output: `[n]`
    ///
    /// # Panics
    /// If the shapes do not fit, the logits are not floats, the target is not i64, `label_smoothing` lies outside `[0, 1]`, or (on
    /// host devices; others report it at the next read) a target is no class.
    #[track_caller]
    pub fn cross_entropy_rows(&self, target: &Tensor, ignore_index: i64, label_smoothing: f64) -> Tensor {
        const OP: &str = "cross_entropy";
        self.require_float(OP);
        target.require_index(OP);
        if self.rank() != 2 || target.rank() != 1 || self.size(0) != target.size(0) {
            panic!(
                "{OP}: logits [n, classes] and target [n] are needed. logits: {}; target: {}",
                self.describe(),
                target.describe()
            );
        }
        assert!(
            (0.0..=1.0).contains(&label_smoothing),
            "{OP}: label_smoothing must lie between 0 and 1, not {label_smoothing}"
        );
        check_targets(self, target, ignore_index);

        let logits = &self.in_full_precision();
        let rows = Shape::from(logits.size(0));
        let outputs = [(rows, logits.dtype()), (rows, wide(logits.dtype()))];
        let op = Op::CrossEntropy { ignore_index, label_smoothing };
        let Some([losses, lse]) = run_fused(OP, op, &[logits, target], outputs) else {
            return lowering(logits, target, ignore_index, label_smoothing);
        };
        let save = [Save::Input(0), Save::Other(target), Save::Other(&lse)];
        losses.recorded(OP, &[logits], &save, move |c| {
            let (logits, target, lse) = (c.saved(0), c.saved(1), c.saved(2));
            if !is_grad_enabled() {
                let op = Op::CrossEntropyGrad { ignore_index, label_smoothing };
                let output = [(*logits.shape(), logits.dtype())];
                if let Some([dx]) =
                    run_fused("cross_entropy_grad", op, &[logits, target, lse, c.grad()], output)
                {
                    return grads![dx];
                }
            }
            let lowering = |t: &[Tensor]| lowering(&t[0], target, ignore_index, label_smoothing);
            Gradients::from_vec(by_lowering(&[logits], lowering, c.grad()))
        })
    }
}

#[track_caller]
fn lowering(logits: &Tensor, target: &Tensor, ignore_index: i64, label_smoothing: f64) -> Tensor {
    let log_p = logits.to_dtype(wide(logits.dtype())).log_softmax(-1);
    let ignored = target.eq(ignore_index);
    let class = target.masked_fill(&ignored, 0);
    let mut losses = log_p.gather(1, &class.unsqueeze(1)).squeeze(1) * (label_smoothing - 1.0);
    if label_smoothing > 0.0 {
        losses -= log_p.mean(1) * label_smoothing;
    }
    losses.masked_fill(&ignored, 0.0).to_dtype(logits.dtype())
}

/// Names the row of a wrong target, which a backend's error does not. Only where looking costs no wait for a device.
#[track_caller]
fn check_targets(logits: &Tensor, target: &Tensor, ignore_index: i64) {
    if !matches!(target.device().kind(), "cpu" | "reference") {
        return;
    }
    let classes = logits.size(1) as i64;
    let Ok(values) = target.to_vec::<i64>() else { return };
    let wrong = values.iter().enumerate().find(|&(_, &t)| t != ignore_index && !(0..classes).contains(&t));
    if let Some((row, value)) = wrong {
        panic!(
            "cross_entropy: target {value} in row {row} is not one of the {classes} classes (0 to {}) nor ignore_index \
             {ignore_index}. logits: {}; target: {}",
            classes - 1,
            logits.describe(),
            target.describe()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, assert_with_gradients, device, everywhere, wave};
    use crate::{Tensor, gradcheck, gradgradcheck};

    fn classes(values: &[i64]) -> Tensor {
        Tensor::from_slice(values, values.len(), device())
    }

    #[test]
    fn cross_entropy_is_pytorchs_and_skips_the_ignored() {
        everywhere(|| {
            let x = wave([4, 3], 0.0);
            let losses = (&x * 3.0).cross_entropy_rows(&classes(&[2, 0, -100, 1]), -100, 0.0);
            assert_with_gradients(
                &losses,
                &[&x],
                &[3.813718, 5.514321, 0.0, 4.266292],
                &[&[
                    0.068313, 1.338226, -1.40654, -2.415718, 0.691769, 1.723949, 0.0, 0.0, 0.0, -1.563157,
                    1.867223, -0.304066,
                ]],
            );
        });
    }

    #[test]
    fn label_smoothing_is_pytorchs() {
        everywhere(|| {
            let x = wave([4, 3], 0.0);
            let losses = (&x * 3.0).cross_entropy_rows(&classes(&[2, 0, 1, 1]), 1, 0.2);
            assert_with_gradients(
                &losses,
                &[&x],
                &[3.513169, 4.885475, 0.0, 0.0],
                &[&[
                    -0.027572, 1.242341, -1.214769, -2.092319, 0.530069, 1.56225, 0.0, 0.0, 0.0, 0.0, 0.0,
                    0.0,
                ]],
            );
        });
    }

    #[test]
    fn large_logits_do_not_overflow() {
        everywhere(|| {
            let x = Tensor::new([[1000.0f32, 0.0], [-1000.0, 0.0]], device());
            assert_close(&x.cross_entropy_rows(&classes(&[0, 0]), -100, 0.0), &[0.0, 1000.0]);
        });
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        everywhere(|| {
            let loss = |t: &[Tensor]| t[0].cross_entropy_rows(&classes(&[2, 0, -100, 1]), -100, 0.1);
            gradcheck(loss, &[wave([4, 3], 0.0)]).unwrap();
            gradgradcheck(loss, &[wave([4, 3], 0.0)]).unwrap();
        });
    }

    #[test]
    #[should_panic(
        expected = "cross_entropy: target 3 in row 1 is not one of the 3 classes (0 to 2) nor ignore_index -100"
    )]
    fn a_target_that_is_no_class_is_named_with_its_row() {
        wave([2, 3], 0.0).cross_entropy_rows(&classes(&[2, 3]), -100, 0.0);
    }

    #[test]
    #[should_panic(
        expected = "cross_entropy: logits [n, classes] and target [n] are needed. logits: f64 [2, 3]"
    )]
    fn one_target_per_row_is_asked_for() {
        wave([2, 3], 0.0).cross_entropy_rows(&classes(&[1]), -100, 0.0);
    }
}
