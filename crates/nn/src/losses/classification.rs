//! Losses for classes and probabilities.

#![allow(clippy::upper_case_acronyms)]

use super::reduction::{Reduction, same_shape};
use crate::{Buffer, Module};
use orkest_core::op::ElementLoss;
use orkest_core::{DType, Shape, Tensor};

/// The distance of logits from the right classes: PyTorch's
/// [`CrossEntropyLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html).
///
/// With class indices, per row: `-w[y] ((1 - s) log p[y]) - s / C Σ w[c] log p[c]` with `p = softmax(x)`, class weights `w` (1 by
/// default) and label smoothing `s` (0 by default). The mean is over the rows that are not ignored, weighted by `w[y]`; NaN if all
/// are. With class probabilities: `-Σ w[c] q[c] log p[c]`, and the mean is over all rows.
///
/// # Shapes
/// - input: `[classes]`, `[batch, classes]` or `[batch, classes, d1, ..]`, logits
/// - target: i64 class indices `[]`, `[batch]` or `[batch, d1, ..]`, or float class probabilities in the shape of the input
/// - output: a scalar, or the shape of the indices with [`Reduction::None`]
///
/// ```
/// use orkest_core::tensor;
/// use orkest_nn::CrossEntropyLoss;
/// let loss = CrossEntropyLoss::new().forward(&tensor![[0.0, 0.0], [0.0, 0.0]], &tensor![0, 1]);
/// assert_eq!(loss.item().unwrap(), 2f32.ln() as f64);
/// ```
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct CrossEntropyLoss {
    weight: Option<Buffer>,
    ignore_index: i64,
    label_smoothing: f64,
    reduction: Reduction,
}

impl CrossEntropyLoss {
    /// Without class weights and smoothing; targets of -100 are ignored; the mean.
    pub fn new() -> CrossEntropyLoss {
        CrossEntropyLoss {
            weight: None,
            ignore_index: -100,
            label_smoothing: 0.0,
            reduction: Reduction::Mean,
        }
    }

    /// How much each class counts: `[classes]`.
    pub fn weight(mut self, weight: &Tensor) -> CrossEntropyLoss {
        self.weight = Some(Buffer::new(weight.clone()));
        self
    }

    /// The target value that counts for nothing.
    pub fn ignore_index(mut self, index: i64) -> CrossEntropyLoss {
        self.ignore_index = index;
        self
    }

    /// The share of the target that is spread evenly over all classes.
    ///
    /// # Panics
    /// If it lies outside `[0, 1]`.
    #[track_caller]
    pub fn label_smoothing(mut self, smoothing: f64) -> CrossEntropyLoss {
        assert!(
            (0.0..=1.0).contains(&smoothing),
            "CrossEntropyLoss: label_smoothing must lie in [0, 1], not {smoothing}"
        );
        self.label_smoothing = smoothing;
        self
    }

    /// [`Reduction::Mean`] unless this says otherwise.
    pub fn reduction(mut self, reduction: Reduction) -> CrossEntropyLoss {
        self.reduction = reduction;
        self
    }

    /// The loss.
    ///
    /// # Panics
    /// If the shapes do not fit, or a target is no class (on host devices; others report it at the next read).
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        let weight = class_weight("CrossEntropyLoss", self.weight.as_ref(), input);
        if target.dtype().is_float() {
            return self.with_probabilities(input, target, weight);
        }
        let rows = Rows::new("CrossEntropyLoss", input, target);
        let (losses, counted) = match weight {
            None => {
                let losses =
                    rows.input.cross_entropy_rows(&rows.target, self.ignore_index, self.label_smoothing);
                (losses, None)
            }
            Some(w) => {
                let log_p = rows.input.log_softmax(1);
                let (nll, counted) = negative_log_likelihood(&log_p, &rows.target, &w, self.ignore_index);
                let mut losses = nll * (1.0 - self.label_smoothing);
                if self.label_smoothing > 0.0 {
                    let spread = (log_p * &w).sum(1).masked_fill(&rows.target.eq(self.ignore_index), 0);
                    losses -= spread * (self.label_smoothing / w.numel() as f64);
                }
                (losses, Some(counted))
            }
        };
        rows.reduce(&losses, counted, self.ignore_index, self.reduction)
    }

    #[track_caller]
    fn with_probabilities(&self, input: &Tensor, target: &Tensor, weight: Option<Tensor>) -> Tensor {
        assert!(
            input.shape() == target.shape(),
            "CrossEntropyLoss: a float target holds class probabilities in the shape of the input; class indices are i64, convert them \
             with .to_dtype(DType::I64). input: {}; target: {}",
            input.describe(),
            target.describe()
        );
        let class_dim = class_dim("CrossEntropyLoss", input);
        let classes = input.size(class_dim) as f64;
        let mut target = target.clone();
        if self.label_smoothing > 0.0 {
            target = target * (1.0 - self.label_smoothing) + self.label_smoothing / classes;
        }
        let mut terms = input.log_softmax(class_dim) * target;
        if let Some(weight) = weight {
            terms = terms.movedim(class_dim, -1) * weight;
            return self.reduction.apply(&-terms.sum(-1));
        }
        self.reduction.apply(&-terms.sum(class_dim))
    }

    fn extra_repr(&self) -> String {
        let smoothing = self.label_smoothing;
        format!(
            "ignore_index={}, label_smoothing={smoothing:?}, reduction='{}'",
            self.ignore_index,
            self.reduction.name()
        )
    }
}

/// The negative log-likelihood of the right classes, from log-probabilities: PyTorch's
/// [`NLLLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.NLLLoss.html).
///
/// # Shapes
/// - input: `[classes]`, `[batch, classes]` or `[batch, classes, d1, ..]`, log-probabilities
/// - target: i64 class indices `[]`, `[batch]` or `[batch, d1, ..]`
/// - output: a scalar, or the shape of the target with [`Reduction::None`]
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct NLLLoss {
    weight: Option<Buffer>,
    ignore_index: i64,
    reduction: Reduction,
}

impl NLLLoss {
    /// Without class weights; targets of -100 are ignored; the mean.
    pub fn new() -> NLLLoss {
        NLLLoss { weight: None, ignore_index: -100, reduction: Reduction::Mean }
    }

    /// How much each class counts: `[classes]`.
    pub fn weight(mut self, weight: &Tensor) -> NLLLoss {
        self.weight = Some(Buffer::new(weight.clone()));
        self
    }

    /// The target value that counts for nothing.
    pub fn ignore_index(mut self, index: i64) -> NLLLoss {
        self.ignore_index = index;
        self
    }

    /// [`Reduction::Mean`] unless this says otherwise: the mean over the targets that are not ignored, weighted by their classes.
    pub fn reduction(mut self, reduction: Reduction) -> NLLLoss {
        self.reduction = reduction;
        self
    }

    /// The loss.
    ///
    /// # Panics
    /// If the shapes do not fit, or (on host devices) a target is no class.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        let rows = Rows::new("NLLLoss", input, target);
        let (losses, counted) = match class_weight("NLLLoss", self.weight.as_ref(), input) {
            Some(weight) => {
                let (losses, counted) =
                    negative_log_likelihood(&rows.input, &rows.target, &weight, self.ignore_index);
                (losses, Some(counted))
            }
            None => {
                let ignored = rows.target.eq(self.ignore_index);
                let class = rows.target.masked_fill(&ignored, 0).unsqueeze(1);
                (-rows.input.gather(1, &class).squeeze(1).masked_fill(&ignored, 0), None)
            }
        };
        rows.reduce(&losses, counted, self.ignore_index, self.reduction)
    }

    fn extra_repr(&self) -> String {
        format!("ignore_index={}, reduction='{}'", self.ignore_index, self.reduction.name())
    }
}

/// Input and class indices with the classes last and everything else in one dimension.
struct Rows {
    /// `[n, classes]`
    input: Tensor,
    /// `[n]`
    target: Tensor,
    /// The shape that the indices came in.
    shape: Shape,
}

impl Rows {
    #[track_caller]
    fn new(loss: &str, input: &Tensor, target: &Tensor) -> Rows {
        let class_dim = class_dim(loss, input);
        let mut expected = input.shape().to_vec();
        let classes = expected.remove(class_dim as usize);
        if target.dtype() != DType::I64 || **target.shape() != expected[..] {
            panic!(
                "{loss}: for input {} the target must hold i64 class indices {expected:?}. input: {}; target: {}",
                input.shape(),
                input.describe(),
                target.describe()
            );
        }
        let last =
            if class_dim + 1 == input.rank() as isize { input.clone() } else { input.movedim(class_dim, -1) };
        Rows {
            input: last.reshape((target.numel(), classes)),
            target: target.reshape(target.numel()),
            shape: *target.shape(),
        }
    }

    /// `counted` is how much each row counts in the mean; `None`: 1 where the target is not ignored.
    #[track_caller]
    fn reduce(
        &self,
        losses: &Tensor,
        counted: Option<Tensor>,
        ignore_index: i64,
        reduction: Reduction,
    ) -> Tensor {
        if reduction != Reduction::Mean {
            return reduction.apply(&losses.reshape(self.shape));
        }
        let counted = counted.unwrap_or_else(|| self.target.ne(ignore_index)).sum(..);
        losses.sum(..) / counted.to_dtype(losses.dtype())
    }
}

/// Where the classes are: dimension 1, or the only one.
#[track_caller]
fn class_dim(loss: &str, input: &Tensor) -> isize {
    match input.rank() {
        0 => panic!("{loss}: the input needs a dimension of classes. input: {}", input.describe()),
        1 => 0,
        _ => 1,
    }
}

/// The class weights, in the dtype of the input.
#[track_caller]
fn class_weight(loss: &str, weight: Option<&Buffer>, input: &Tensor) -> Option<Tensor> {
    let weight = weight?.tensor();
    let classes = input.size(class_dim(loss, input));
    if *weight.shape() != [classes] {
        panic!(
            "{loss}: {classes} class weights are needed. weight: {}; input: {}",
            weight.describe(),
            input.describe()
        );
    }
    Some(weight.to_dtype(input.dtype()))
}

/// `-w[y] log p[y]` and `w[y]` per row, both 0 where the target is ignored.
#[track_caller]
fn negative_log_likelihood(
    log_p: &Tensor,
    target: &Tensor,
    weight: &Tensor,
    ignore_index: i64,
) -> (Tensor, Tensor) {
    let ignored = target.eq(ignore_index);
    let class = target.masked_fill(&ignored, 0);
    let counted = weight.index_select(0, &class).masked_fill(&ignored, 0);
    let losses = -(log_p.gather(1, &class.unsqueeze(1)).squeeze(1) * &counted).masked_fill(&ignored, 0);
    (losses, counted)
}

/// The distance of probabilities from truths between 0 and 1: PyTorch's
/// [`BCELoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.BCELoss.html).
///
/// `-w (y log x + (1 - y) log(1 - x))`, logarithms no less than -100. [`BCEWithLogitsLoss`] is the better choice where the input
/// comes from a sigmoid.
///
/// # Shapes
/// - input and target: any, the same; `weight` broadcasts to it
/// - output: a scalar, or the input's shape with [`Reduction::None`]
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct BCELoss {
    weight: Option<Buffer>,
    reduction: Reduction,
}

impl BCELoss {
    /// Without weights; the mean.
    pub fn new() -> BCELoss {
        BCELoss { weight: None, reduction: Reduction::Mean }
    }

    /// How much each element counts.
    pub fn weight(mut self, weight: &Tensor) -> BCELoss {
        self.weight = Some(Buffer::new(weight.clone()));
        self
    }

    /// [`Reduction::Mean`] unless this says otherwise.
    pub fn reduction(mut self, reduction: Reduction) -> BCELoss {
        self.reduction = reduction;
        self
    }

    /// The loss. Inputs outside `[0, 1]` give NaN.
    ///
    /// # Panics
    /// If the shapes differ.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        same_shape("BCELoss", input, target);
        let target = target.to_dtype(input.dtype());
        weighted_loss(input, &target, ElementLoss::CrossEntropy, self.weight.as_ref(), self.reduction)
    }

    fn extra_repr(&self) -> String {
        format!("reduction='{}'", self.reduction.name())
    }
}

/// [`BCELoss`] of the sigmoid of the input, without its rounding: PyTorch's
/// [`BCEWithLogitsLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html).
///
/// `-w (p y log σ(x) + (1 - y) log(1 - σ(x)))` with weights `w` and weights of the positive targets `p`.
///
/// # Shapes
/// - input (logits) and target: any, the same; `weight` and `pos_weight` broadcast to it
/// - output: a scalar, or the input's shape with [`Reduction::None`]
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct BCEWithLogitsLoss {
    weight: Option<Buffer>,
    pos_weight: Option<Buffer>,
    reduction: Reduction,
}

impl BCEWithLogitsLoss {
    /// Without weights; the mean.
    pub fn new() -> BCEWithLogitsLoss {
        BCEWithLogitsLoss { weight: None, pos_weight: None, reduction: Reduction::Mean }
    }

    /// How much each element counts.
    pub fn weight(mut self, weight: &Tensor) -> BCEWithLogitsLoss {
        self.weight = Some(Buffer::new(weight.clone()));
        self
    }

    /// How much positive targets count, usually one weight per class.
    pub fn pos_weight(mut self, pos_weight: &Tensor) -> BCEWithLogitsLoss {
        self.pos_weight = Some(Buffer::new(pos_weight.clone()));
        self
    }

    /// [`Reduction::Mean`] unless this says otherwise.
    pub fn reduction(mut self, reduction: Reduction) -> BCEWithLogitsLoss {
        self.reduction = reduction;
        self
    }

    /// The loss.
    ///
    /// # Panics
    /// If the shapes differ.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        same_shape("BCEWithLogitsLoss", input, target);
        let target = target.to_dtype(input.dtype());
        let Some(positive) = &self.pos_weight else {
            let (loss, weight) = (ElementLoss::LogitCrossEntropy, self.weight.as_ref());
            return weighted_loss(input, &target, loss, weight, self.reduction);
        };
        let log_sigmoid =
            input.log_sigmoid() * (&target * (positive.tensor().to_dtype(input.dtype()) - 1.0) + 1.0);
        let losses = (1.0 - &target) * input - log_sigmoid;
        self.reduction.apply(&weighted(losses, self.weight.as_ref()))
    }

    fn extra_repr(&self) -> String {
        format!("reduction='{}'", self.reduction.name())
    }
}

#[track_caller]
fn weighted_loss(
    input: &Tensor,
    target: &Tensor,
    loss: ElementLoss,
    weight: Option<&Buffer>,
    reduction: Reduction,
) -> Tensor {
    match weight {
        None => reduction.element_loss(input, target, loss),
        weight => reduction.apply(&weighted(input.element_loss(target, loss, None), weight)),
    }
}

#[track_caller]
fn weighted(losses: Tensor, weight: Option<&Buffer>) -> Tensor {
    match weight {
        Some(weight) => &losses * weight.tensor().to_dtype(losses.dtype()),
        None => losses,
    }
}

/// The Kullback-Leibler divergence of probabilities `y` from log-probabilities `x`, `y (log y - x)`: PyTorch's
/// [`KLDivLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.KLDivLoss.html).
///
/// As in PyTorch the default mean is over all elements; the divergence proper is [`Reduction::BatchMean`].
///
/// # Shapes
/// - input (log-probabilities) and target: any, the same, e.g. `[batch, classes]`
/// - output: a scalar, or the input's shape with [`Reduction::None`]
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct KLDivLoss {
    log_target: bool,
    reduction: Reduction,
}

impl KLDivLoss {
    /// Of probabilities; the mean over all elements.
    pub fn new() -> KLDivLoss {
        KLDivLoss { log_target: false, reduction: Reduction::Mean }
    }

    /// With `true`, the target holds log-probabilities too.
    pub fn log_target(mut self, log_target: bool) -> KLDivLoss {
        self.log_target = log_target;
        self
    }

    /// [`Reduction::Mean`] unless this says otherwise.
    pub fn reduction(mut self, reduction: Reduction) -> KLDivLoss {
        self.reduction = reduction;
        self
    }

    /// The loss.
    ///
    /// # Panics
    /// If the shapes differ.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        same_shape("KLDivLoss", input, target);
        let loss = if self.log_target { ElementLoss::LogDivergence } else { ElementLoss::Divergence };
        self.reduction.element_loss(input, target, loss)
    }

    fn extra_repr(&self) -> String {
        format!(
            "log_target={}, reduction='{}'",
            crate::repr::python_bool(self.log_target),
            self.reduction.name()
        )
    }
}

macro_rules! default_is_new {
    ($($name:ident),*) => {$(
        impl Default for $name {
            fn default() -> $name {
                $name::new()
            }
        }
    )*};
}
default_is_new!(CrossEntropyLoss, NLLLoss, BCELoss, BCEWithLogitsLoss, KLDivLoss);

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::{Device, tensor};

    fn f64s<const N: usize, D: orkest_core::TensorData<Item = f64>>(values: [D; N]) -> Tensor {
        Tensor::new(values, &Device::cpu())
    }

    /// Four rows of logits for three classes.
    fn logits() -> Tensor {
        f64s([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0], [2.0, 2.0, -2.0], [0.3, 0.1, 0.2]])
    }

    fn probabilities() -> Tensor {
        f64s([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.25, 0.25, 0.5]])
    }

    /// Values and gradients of the sum against those of PyTorch.
    fn check(
        loss: &dyn Fn(&Tensor, &Tensor) -> Tensor,
        input: &Tensor,
        target: &Tensor,
        values: &[f64],
        grads: &[f64],
    ) {
        let input = input.detach().requires_grad_(true);
        let y = loss(&input, target);
        y.sum(..).backward();
        for (found, expected) in [(y.detach(), values), (input.grad().unwrap(), grads)] {
            let found = found.to_vec::<f64>().unwrap();
            let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-10 * b.abs().max(1.0);
            assert!(
                found.len() == expected.len() && found.iter().zip(expected).all(near),
                "{found:?}, expected {expected:?}"
            );
        }
    }

    macro_rules! loss {
        ($loss:expr) => {
            |x: &Tensor, t: &Tensor| $loss.forward(x, t)
        };
    }

    #[test]
    fn cross_entropy_of_class_indices() {
        let (x, t, w) = (logits(), tensor![1, 2, -100, 0], f64s([0.5, 1.0, 2.0]));
        let plain = CrossEntropyLoss::new;
        let weighted = || plain().weight(&w);
        check(
            &loss!(plain()),
            &x,
            &t,
            &[0.5107318453648727],
            &[
                0.07707463254071634,
                -0.12382276026274586,
                0.04674812772202949,
                0.01553754085932463,
                0.005715941848506796,
                -0.021253482707831412,
                0.0,
                0.0,
                0.0,
                -0.21094486629635817,
                0.10020320178524245,
                0.11074166451111578,
            ],
        );
        check(
            &loss!(plain().reduction(Reduction::None)),
            &x,
            &t,
            &[0.4643687841079449, 0.06588390375742911, 0.0, 1.001942848229244],
            &[
                0.23122389762214904,
                -0.37146828078823757,
                0.14024438316608848,
                0.04661262257797389,
                0.017147825545520388,
                -0.06376044812349424,
                0.0,
                0.0,
                0.0,
                -0.6328345988890745,
                0.30060960535572734,
                0.33222499353334733,
            ],
        );
        check(
            &loss!(plain().label_smoothing(0.1)),
            &x,
            &t,
            &[0.6196207342537616],
            &[
                0.06596352142960524,
                -0.10160053804052362,
                0.035637016610918386,
                0.004426429748213518,
                -0.005395169262604316,
                0.0009687395143907866,
                0.0,
                0.0,
                0.0,
                -0.18872264407413594,
                0.08909209067413135,
                0.09963055340000468,
            ],
        );
        check(
            &loss!(weighted()),
            &x,
            &t,
            &[0.31345943306783575],
            &[
                0.06606397074918544,
                -0.10613379451092501,
                0.040069823761739565,
                0.026635784330270793,
                0.009798757454583078,
                -0.03643454178485385,
                0.0,
                0.0,
                0.0,
                -0.09040494269843921,
                0.042944229336532476,
                0.047460713361906756,
            ],
        );
        check(
            &loss!(weighted().label_smoothing(0.1)),
            &x,
            &t,
            &[0.4227104838213489],
            &[
                0.062403132166433777,
                -0.08409316727658334,
                0.021690035110149514,
                0.020764055221271418,
                -0.00013333362983407158,
                -0.020630721591437376,
                0.0,
                0.0,
                0.0,
                -0.07388750648680256,
                0.03914631705759395,
                0.03474118942920862,
            ],
        );
        check(
            &loss!(weighted().label_smoothing(0.1).reduction(Reduction::Sum)),
            &x,
            &t,
            &[1.4794866933747213],
            &[
                0.21841096258251821,
                -0.29432608546804145,
                0.07591512288552331,
                0.07267419327444996,
                -0.00046666770441925506,
                -0.07220752557003059,
                0.0,
                0.0,
                0.0,
                -0.2586062727038089,
                0.13701210970157882,
                0.12159416300223015,
            ],
        );
        check(
            &loss!(plain().ignore_index(1)),
            &x,
            &tensor![1, 2, 0, 1],
            &[0.38407361259826217],
            &[
                0.0,
                0.0,
                0.0,
                0.023306311288986945,
                0.008573912772760194,
                -0.03188022406174712,
                -0.25226867871107844,
                0.24773132128892156,
                0.004537357422156873,
                0.0,
                0.0,
                0.0,
            ],
        );

        let images = (Tensor::arange(0.0, 12.0, 1.0, DType::F64).reshape([2, 3, 2])).sin();
        let t = tensor![[0, 2], [1, -100]];
        check(
            &loss!(weighted()),
            &images,
            &t,
            &[1.6305528820111586],
            &[
                -0.10670671958302932,
                0.3438933741346703,
                0.08974623567862934,
                0.1707124690434747,
                0.0169604839044,
                -0.514605843178145,
                0.05366537003101628,
                0.0,
                -0.09485400229748521,
                0.0,
                0.04118863226646888,
                0.0,
            ],
        );
        check(
            &loss!(plain().reduction(Reduction::None)),
            &images,
            &t,
            &[1.3741564725631146, 2.308203100102385, 0.40345065055272744, 0.0],
            &[
                -0.7469470370812054,
                0.601813404735673,
                0.6282236497504055,
                0.29874682082608073,
                0.11872338733080003,
                -0.9005602255617537,
                0.187828795108557,
                0.0,
                -0.33198900804119824,
                0.0,
                0.14416021293264109,
                0.0,
            ],
        );
        check(
            &loss!(plain()),
            &f64s([0.1, 0.7, -0.2]),
            &Tensor::full((), 2, &Device::cpu()),
            &[1.570585210652781],
            &[0.2806673242007126, 0.5114092080814165, -0.7920765322821293],
        );
        assert!(plain().forward(&x, &tensor![-100, -100, -100, -100]).item().unwrap().is_nan());
    }

    #[test]
    fn cross_entropy_of_probabilities() {
        let (x, q, w) = (logits(), probabilities(), f64s([0.5, 1.0, 2.0]));
        check(
            &loss!(CrossEntropyLoss::new()),
            &x,
            &q,
            &[2.0711147143834285],
            &[
                0.007805974405537257,
                0.08213292980294061,
                -0.08993890420847789,
                -0.23834684435550652,
                0.004286956386380097,
                0.23405988796912644,
                0.12386566064446078,
                -0.0011343393555392212,
                -0.12273132128892156,
                0.029291350277731373,
                0.012652401338931835,
                -0.041943751616663166,
            ],
        );
        check(
            &loss!(CrossEntropyLoss::new().weight(&w).label_smoothing(0.1)),
            &x,
            &q,
            &[2.542099762501397],
            &[
                0.05291289143162296,
                0.14048633336204824,
                -0.19339922479367122,
                -0.1100632118014537,
                -0.005904058047717945,
                0.11596726984917165,
                0.17750296894520914,
                0.06083630227854249,
                -0.23833927122375162,
                0.09200912016776124,
                0.037185543479803525,
                -0.1291946636475647,
            ],
        );
    }

    #[test]
    fn negative_log_likelihood() {
        let (x, t, w) = (logits(), tensor![1, 2, -100, 0], f64s([0.5, 1.0, 2.0]));
        check(
            &loss!(NLLLoss::new()),
            &x,
            &t,
            &[-1.7666666666666666],
            &[
                0.0,
                -0.3333333333333333,
                0.0,
                0.0,
                0.0,
                -0.3333333333333333,
                0.0,
                0.0,
                0.0,
                -0.3333333333333333,
                0.0,
                0.0,
            ],
        );
        check(
            &loss!(NLLLoss::new().weight(&w)),
            &x,
            &t,
            &[-2.3285714285714287],
            &[
                0.0,
                -0.2857142857142857,
                0.0,
                0.0,
                0.0,
                -0.5714285714285714,
                0.0,
                0.0,
                0.0,
                -0.14285714285714285,
                0.0,
                0.0,
            ],
        );
    }

    #[test]
    fn binary_cross_entropy() {
        let (x, y) = (f64s([0.0, 0.25, 1.0, 0.9]), f64s([1.0, 0.0, 1.0, 0.3]));
        let w = f64s([1.0, 2.0, 0.5, 1.0]);
        check(
            &loss!(BCELoss::new().reduction(Reduction::None)),
            &x,
            &y,
            &[100.0, 0.2876820724517809, -0.0, 1.6434177197931799],
            &[-1000000003995.8029, 1.3333333333333333, 0.0, 6.666666666666669],
        );
        check(
            &loss!(BCELoss::new().weight(&w)),
            &x,
            &y,
            &[25.554695466174184],
            &[-250000000998.9507, 0.6666666666666666, 0.0, 1.6666666666666672],
        );

        let x = f64s([-200.0, 0.25, 3.0, 0.9]);
        let positive = f64s([3.0]);
        check(
            &loss!(BCEWithLogitsLoss::new().reduction(Reduction::None)),
            &x,
            &y,
            &[200.0, 0.8259394198788436, 0.04858735157374206, 0.9711538747320878],
            &[-1.0, 0.5621765008857981, -0.047425873177566635, 0.4109495026250039],
        );
        check(
            &loss!(BCEWithLogitsLoss::new().weight(&w).pos_weight(&positive)),
            &x,
            &y,
            &[150.7251515166724],
            &[-0.75, 0.28108825044289903, -0.017784702441587474, 0.05937980105000157],
        );
    }

    #[test]
    fn kullback_leibler() {
        let (x, q) = (logits().log_softmax(1), probabilities());
        let log_q = (&q + 0.1).log();
        check(
            &loss!(KLDivLoss::new()),
            &x,
            &q,
            &[0.460161491005773],
            &[
                -0.016666666666666666,
                -0.024999999999999998,
                -0.041666666666666664,
                -0.08333333333333333,
                -0.0,
                -0.0,
                -0.0,
                -0.041666666666666664,
                -0.041666666666666664,
                -0.020833333333333332,
                -0.020833333333333332,
                -0.041666666666666664,
            ],
        );
        check(
            &loss!(KLDivLoss::new().reduction(Reduction::BatchMean)),
            &x,
            &q,
            &[1.3804844730173191],
            &[-0.05, -0.075, -0.125, -0.25, -0.0, -0.0, -0.0, -0.125, -0.125, -0.0625, -0.0625, -0.125],
        );
        check(
            &loss!(KLDivLoss::new().log_target(true).reduction(Reduction::Sum)),
            &x,
            &log_q,
            &[7.060297066445477],
            &[
                -0.30000000000000004,
                -0.4,
                -0.6,
                -1.1,
                -0.10000000000000002,
                -0.10000000000000002,
                -0.10000000000000002,
                -0.6,
                -0.6,
                -0.3499999999999999,
                -0.3499999999999999,
                -0.6,
            ],
        );
    }

    #[test]
    fn a_weight_moves_with_the_loss_and_keeps_its_name() {
        let loss = BCEWithLogitsLoss::new().pos_weight(&tensor![2.0]);
        assert_eq!(loss.named_buffers()[0].0, "pos_weight");
    }

    #[test]
    #[should_panic(expected = "for input [4, 3] the target must hold i64 class indices [4]")]
    fn a_target_of_another_shape_is_refused() {
        CrossEntropyLoss::new().forward(&logits(), &tensor![[0], [1], [2], [0]]);
    }

    #[test]
    #[should_panic(expected = "3 class weights are needed")]
    fn a_wrong_number_of_weights_is_refused() {
        CrossEntropyLoss::new().weight(&tensor![1.0, 2.0]).forward(&logits(), &tensor![0, 1, 2, 0]);
    }
}
