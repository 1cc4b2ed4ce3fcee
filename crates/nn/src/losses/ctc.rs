//! Connectionist temporal classification (<https://www.cs.toronto.edu/~graves/icml_2006.pdf>).

use super::reduction::Reduction;
use crate::Module;
use orkest_core::{DType, Device, Function, Tensor, is_grad_enabled};

/// The negative log-probability of a sequence of labels, whatever their alignment with the (longer) sequence of predictions: PyTorch's
/// [`CTCLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.CTCLoss.html).
///
/// In an alignment every label may last several steps, and blanks may come between labels; between equal ones they must.
///
/// # Shapes
/// - `log_probs`: `[steps, batch, classes]` logarithms of probabilities, from `log_softmax`, or `[steps, classes]` for one sequence
/// - `targets`: i64 `[batch, longest]`, padded with anything, or all sequences one after the other in one dimension
/// - output: a scalar, or `[batch]` with [`Reduction::None`]
///
/// ```
/// use orkest_core::{Device, Tensor, tensor};
/// use orkest_nn::CTCLoss;
/// // Two steps, three classes, all as likely: "1" is 1-, -1 or 11, three of nine paths.
/// let log_probs = Tensor::zeros([2, 1, 3], &Device::cpu()).log_softmax(-1);
/// let loss = CTCLoss::new().forward(&log_probs, &tensor![[1]], &[2], &[1]);
/// assert!((loss.item().unwrap() - 3f64.ln()).abs() < 1e-6);
/// ```
///
/// The gradient is PyTorch's, which assumes that `log_probs` come from `log_softmax`: it is that of the logits.
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct CTCLoss {
    blank: usize,
    zero_infinity: bool,
    reduction: Reduction,
}

impl CTCLoss {
    /// With class 0 as the blank, and the mean of the losses, each divided by the length of its target.
    pub fn new() -> CTCLoss {
        CTCLoss { blank: 0, zero_infinity: false, reduction: Reduction::Mean }
    }

    /// The class between labels.
    pub fn blank(mut self, blank: usize) -> CTCLoss {
        self.blank = blank;
        self
    }

    /// Ignore targets that are too long for their input, whose loss is infinite.
    pub fn zero_infinity(mut self, zero_infinity: bool) -> CTCLoss {
        self.zero_infinity = zero_infinity;
        self
    }

    /// [`Reduction::Mean`] unless this says otherwise.
    pub fn reduction(mut self, reduction: Reduction) -> CTCLoss {
        self.reduction = reduction;
        self
    }

    /// The loss. `input_lengths` and `target_lengths` say how many steps and labels of each sequence count.
    ///
    /// # Panics
    /// If shapes or lengths do not fit, or a label is the blank or no class.
    #[track_caller]
    pub fn forward(
        &self,
        log_probs: &Tensor,
        targets: &Tensor,
        input_lengths: &[usize],
        target_lengths: &[usize],
    ) -> Tensor {
        let batched = match log_probs.rank() {
            2 => log_probs.unsqueeze(1),
            3 => log_probs.clone(),
            _ => panic!(
                "CTCLoss: log_probs must be [steps, batch, classes] or [steps, classes], got {}",
                log_probs.describe()
            ),
        };
        let alignment = self.alignment(&batched, targets, input_lengths, target_lengths);
        let losses = Tensor::apply(alignment, &[&batched]);
        match self.reduction {
            Reduction::None if log_probs.rank() == 2 => losses.squeeze(0),
            Reduction::Mean => {
                let lengths: Vec<f64> = target_lengths.iter().map(|n| (*n).max(1) as f64).collect();
                let lengths = Tensor::new(lengths, (losses.dtype(), losses.device()));
                (losses / lengths).mean(..)
            }
            other => other.apply(&losses),
        }
    }

    /// Checks everything.
    #[track_caller]
    fn alignment(
        &self,
        log_probs: &Tensor,
        targets: &Tensor,
        inputs: &[usize],
        lengths: &[usize],
    ) -> Alignment {
        let [steps, batch, classes] = log_probs.dims();
        assert!(
            log_probs.dtype().is_float(),
            "CTCLoss: log_probs must be floats, got {}",
            log_probs.describe()
        );
        assert!(
            inputs.len() == batch && lengths.len() == batch,
            "CTCLoss: {batch} sequences need as many lengths, got {} of inputs and {} of targets",
            inputs.len(),
            lengths.len()
        );
        assert!(self.blank < classes, "CTCLoss: the blank {} is none of {classes} classes", self.blank);
        if let Some(n) = inputs.iter().find(|n| **n > steps) {
            panic!(
                "CTCLoss: an input length is {n}, but there are {steps} steps. log_probs: {}",
                log_probs.describe()
            );
        }
        assert!(targets.dtype() == DType::I64, "CTCLoss: targets must be i64, got {}", targets.describe());
        let labels = match targets.to_vec::<i64>() {
            Ok(labels) => labels,
            Err(e) => panic!("CTCLoss: the targets cannot be read: {e}"),
        };
        // Where each sequence begins, and how many labels there are for it.
        let mut next = 0;
        let rows: Vec<(usize, usize)> = match targets.rank() {
            2 if targets.size(0) == batch => {
                let longest = targets.size(1);
                (0..batch).map(|i| (i * longest, longest)).collect()
            }
            1 => lengths
                .iter()
                .map(|n| {
                    next += n;
                    (next - n, labels.len().saturating_sub(next - n))
                })
                .collect(),
            _ => panic!(
                "CTCLoss: targets must be [{batch}, longest] or in one row, got {}",
                targets.describe()
            ),
        };
        assert!(
            targets.rank() == 2 || next == labels.len(),
            "CTCLoss: the target lengths add up to {next}, but there are {} labels",
            labels.len()
        );
        let mut targets = Vec::with_capacity(batch);
        for ((start, available), &n) in rows.into_iter().zip(lengths) {
            assert!(n <= available, "CTCLoss: a target length is {n}, but there are {available} labels");
            let mut classes_of = Vec::with_capacity(n);
            for &label in &labels[start..start + n] {
                match usize::try_from(label) {
                    Ok(class) if class < classes && class != self.blank => classes_of.push(class),
                    _ => panic!(
                        "CTCLoss: label {label} is the blank ({}) or none of {classes} classes",
                        self.blank
                    ),
                }
            }
            targets.push(classes_of);
        }
        Alignment { targets, inputs: inputs.to_vec(), blank: self.blank, zero_infinity: self.zero_infinity }
    }

    fn extra_repr(&self) -> String {
        let zero_infinity = crate::repr::python_bool(self.zero_infinity);
        format!("blank={}, zero_infinity={zero_infinity}, reduction='{}'", self.blank, self.reduction.name())
    }
}

impl Default for CTCLoss {
    fn default() -> CTCLoss {
        CTCLoss::new()
    }
}

/// The losses of a batch, one step of the recursion after the other: on the host, in f64.
struct Alignment {
    targets: Vec<Vec<usize>>,
    inputs: Vec<usize>,
    blank: usize,
    zero_infinity: bool,
}

/// The log-probabilities of one sequence, `[steps][classes]`, and the states of its alignments: blank, label, blank, ..., label, blank.
struct Sequence<'a> {
    steps: Vec<&'a [f64]>,
    states: Vec<usize>,
}

impl Alignment {
    #[track_caller]
    fn host(log_probs: &Tensor) -> Vec<f64> {
        match log_probs.detach().to(&Device::cpu()).to_dtype(DType::F64).to_vec() {
            Ok(values) => values,
            Err(e) => panic!("CTCLoss: log_probs cannot be read: {e}"),
        }
    }

    fn sequence<'a>(&self, i: usize, values: &'a [f64], classes: usize) -> Sequence<'a> {
        let batch = self.targets.len();
        let row = |t: usize| &values[(t * batch + i) * classes..][..classes];
        let labels = self.targets[i].iter().flat_map(|label| [*label, self.blank]);
        let states = [self.blank].into_iter().chain(labels).collect();
        Sequence { steps: (0..self.inputs[i]).map(row).collect(), states }
    }
}

impl Sequence<'_> {
    /// Whether the label of a state may follow that of the state two before it, without the blank in between.
    fn skips(&self, s: usize) -> bool {
        s >= 2 && self.states[s] != self.states[s - 2]
    }

    /// The log-probability of being in each state after each step.
    fn forward(&self) -> Vec<Vec<f64>> {
        let mut alphas: Vec<Vec<f64>> = Vec::with_capacity(self.steps.len());
        for (t, row) in self.steps.iter().enumerate() {
            let reached = |s: usize| match alphas.last() {
                None if s < 2 => 0.0,
                None => f64::NEG_INFINITY,
                Some(last) => {
                    let before = |back: usize| if s >= back { last[s - back] } else { f64::NEG_INFINITY };
                    let skipped = if self.skips(s) { before(2) } else { f64::NEG_INFINITY };
                    log_sum([last[s], before(1), skipped])
                }
            };
            let alpha = (0..self.states.len()).map(|s| reached(s) + row[self.states[s]]).collect();
            debug_assert_eq!(alphas.len(), t);
            alphas.push(alpha);
        }
        alphas
    }

    /// The log-probability of what is left to do from each state, that step included.
    fn backward(&self) -> Vec<Vec<f64>> {
        let n = self.states.len();
        let mut betas: Vec<Vec<f64>> = Vec::with_capacity(self.steps.len());
        for row in self.steps.iter().rev() {
            let left = |s: usize| match betas.last() {
                None if s + 2 >= n => 0.0,
                None => f64::NEG_INFINITY,
                Some(next) => {
                    let after = |on: usize| next.get(s + on).copied().unwrap_or(f64::NEG_INFINITY);
                    let skipped = if s + 2 < n && self.skips(s + 2) { after(2) } else { f64::NEG_INFINITY };
                    log_sum([next[s], after(1), skipped])
                }
            };
            let beta = (0..n).map(|s| left(s) + row[self.states[s]]).collect();
            betas.push(beta);
        }
        betas.reverse();
        betas
    }

    /// The negative log-probability of all alignments, from [`Sequence::forward`].
    fn loss(&self, alphas: &[Vec<f64>]) -> f64 {
        let n = self.states.len();
        match alphas.last() {
            None if n == 1 => 0.0,
            None => f64::INFINITY,
            Some(last) if n == 1 => -last[0],
            Some(last) => -log_sum([last[n - 1], last[n - 2], f64::NEG_INFINITY]),
        }
    }
}

impl Function for Alignment {
    fn name(&self) -> &'static str {
        "ctc_loss"
    }

    #[track_caller]
    fn forward(&self, inputs: &[Tensor]) -> Tensor {
        let log_probs = &inputs[0];
        let (values, classes) = (Alignment::host(log_probs), log_probs.size(2));
        let loss = |i: usize| {
            let sequence = self.sequence(i, &values, classes);
            let loss = sequence.loss(&sequence.forward());
            if self.zero_infinity && loss == f64::INFINITY { 0.0 } else { loss }
        };
        let losses: Vec<f64> = (0..self.targets.len()).map(loss).collect();
        Tensor::new(losses, (log_probs.dtype(), log_probs.device()))
    }

    /// `p - q`: the predicted probabilities, less those of the classes given the target.
    #[track_caller]
    fn backward(&self, inputs: &[Tensor], _output: &Tensor, grad: &Tensor) -> Vec<Option<Tensor>> {
        assert!(!is_grad_enabled(), "CTCLoss: its gradient cannot be differentiated again");
        let log_probs = &inputs[0];
        let [_, batch, classes] = log_probs.dims();
        let values = Alignment::host(log_probs);
        let mut gradient = vec![0.0f64; values.len()];
        for i in 0..batch {
            let sequence = self.sequence(i, &values, classes);
            let (alphas, betas) = (sequence.forward(), sequence.backward());
            let loss = sequence.loss(&alphas);
            if self.zero_infinity && loss == f64::INFINITY {
                continue;
            }
            for (t, row) in sequence.steps.iter().enumerate() {
                let mut joint = vec![f64::NEG_INFINITY; classes];
                for (s, class) in sequence.states.iter().enumerate() {
                    joint[*class] = log_sum([joint[*class], alphas[t][s] + betas[t][s], f64::NEG_INFINITY]);
                }
                let out = &mut gradient[(t * batch + i) * classes..][..classes];
                for ((g, p), joint) in out.iter_mut().zip(*row).zip(joint) {
                    // The step counts in both factors of the joint probability. An impossible class has none.
                    let posterior = if joint == f64::NEG_INFINITY && loss.is_finite() {
                        0.0
                    } else {
                        (joint + loss - p).exp()
                    };
                    *g = p.exp() - posterior;
                }
            }
        }
        let gradient =
            Tensor::from_slice(&gradient, *log_probs.shape(), (log_probs.dtype(), log_probs.device()));
        vec![Some(gradient * grad.reshape([1, batch, 1]))]
    }
}

/// `ln Σ exp`
fn log_sum(terms: [f64; 3]) -> f64 {
    let max = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + terms.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::{gradcheck, manual_seed, tensor};

    fn logits(shape: [usize; 3]) -> Tensor {
        manual_seed(3);
        Tensor::randn(shape, (DType::F64, &Device::cpu()))
    }

    /// All paths of length `steps`, collapsed as the paper says.
    fn by_enumeration(probs: &[f64], steps: usize, classes: usize, target: &[usize]) -> f64 {
        let mut total = 0.0;
        for path in 0..classes.pow(steps as u32) {
            let at = |t: usize| path / classes.pow(t as u32) % classes;
            let mut labels: Vec<usize> = (0..steps).map(at).collect();
            let p: f64 = (0..steps).map(|t| probs[t * classes + at(t)]).product();
            labels.dedup();
            labels.retain(|label| *label != 0);
            total += if labels == target { p } else { 0.0 };
        }
        -total.ln()
    }

    #[test]
    fn all_alignments_count() {
        let x = logits([5, 1, 3]).log_softmax(-1);
        let probs = x.exp().to_vec::<f64>().unwrap();
        for target in [vec![], vec![1], vec![1, 2], vec![1, 1], vec![2, 2, 1], vec![1, 1, 1]] {
            let labels: Vec<i64> = target.iter().map(|label| *label as i64).collect();
            let labels = Tensor::from_slice(&labels, [1, target.len()], &Device::cpu());
            let loss = CTCLoss::new().reduction(Reduction::Sum).forward(&x, &labels, &[5], &[target.len()]);
            let expected = by_enumeration(&probs, 5, 3, &target);
            assert!((loss.item().unwrap() - expected).abs() < 1e-10, "{target:?}: {loss} {expected}");
        }
    }

    #[test]
    fn gradients_are_right() {
        let x = logits([6, 3, 4]).requires_grad_(true);
        let targets = tensor![[1, 2, 2], [3, 3, 0], [1, 0, 0]];
        let loss = CTCLoss::new();
        gradcheck(|x| loss.forward(&x[0].log_softmax(-1), &targets, &[6, 5, 4], &[3, 2, 1]), &[x]).unwrap();
    }

    #[test]
    fn what_cannot_be_aligned_is_infinite_or_ignored() {
        let x = logits([2, 2, 3]).requires_grad_(true);
        let log_probs = x.log_softmax(-1);
        let targets = tensor![1, 1, 2]; // two equal labels need a blank between them, so three steps
        let loss = CTCLoss::new().reduction(Reduction::None);
        let losses = loss.clone().forward(&log_probs, &targets, &[2, 2], &[2, 1]).to_vec::<f64>().unwrap();
        assert!(losses[0] == f64::INFINITY && losses[1].is_finite(), "{losses:?}");
        let losses = loss.zero_infinity(true).forward(&log_probs, &targets, &[2, 2], &[2, 1]);
        losses.sum(..).backward();
        assert_eq!(losses.to_vec::<f64>().unwrap()[0], 0.0);
        let grad = x.grad().unwrap();
        assert_eq!(grad.select(1, 0).abs().max(..).item().unwrap(), 0.0);
        assert!(grad.select(1, 1).abs().max(..).item().unwrap() > 0.0);
    }

    #[test]
    #[should_panic(expected = "label 0 is the blank (0) or none of 3 classes")]
    fn blanks_are_no_labels() {
        CTCLoss::new().forward(&logits([2, 1, 3]), &tensor![[0]], &[2], &[1]);
    }

    #[test]
    #[should_panic(expected = "an input length is 3, but there are 2 steps")]
    fn lengths_fit() {
        CTCLoss::new().forward(&logits([2, 1, 3]), &tensor![[1]], &[3], &[1]);
    }
}
