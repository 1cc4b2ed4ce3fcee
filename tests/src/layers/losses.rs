//! The losses of `parity/loss_cases.py`.

use super::{one, reduction};
use crate::operations::{Call, Operation};
use orkest_nn::*;

fn lengths(c: &Call<'_>, name: &str) -> Vec<usize> {
    c.ints(name).into_iter().map(|n| n as usize).collect()
}

pub(super) const ALL: &[(&str, Operation)] = &[
    ("CosineSimilarity", |c| {
        let cosine = CosineSimilarity::new().dim(c.int("dim")).eps(c.float("eps"));
        one(cosine.forward(c.x(0), c.x(1)))
    }),
    ("PairwiseDistance", |c| {
        let distance = PairwiseDistance::new().p(c.float("p")).eps(c.float("eps")).keepdim(c.flag("keepdim"));
        one(distance.forward(c.x(0), c.x(1)))
    }),
    ("CosineEmbeddingLoss", |c| {
        let loss = CosineEmbeddingLoss::new().margin(c.float("margin")).reduction(reduction(c));
        one(loss.forward(c.x(0), c.x(1), c.x(2)))
    }),
    ("TripletMarginLoss", |c| {
        let loss = TripletMarginLoss::new()
            .margin(c.float("margin"))
            .p(c.float("p"))
            .eps(c.float("eps"))
            .swap(c.flag("swap"))
            .reduction(reduction(c));
        one(loss.forward(c.x(0), c.x(1), c.x(2)))
    }),
    ("TripletMarginWithDistanceLoss", |c| {
        let loss = TripletMarginWithDistanceLoss::new(|a, b| ((a - b) * (a + 0.5 * b)).sum(-1));
        let loss = loss.margin(c.float("margin")).swap(c.flag("swap")).reduction(reduction(c));
        one(loss.forward(c.x(0), c.x(1), c.x(2)))
    }),
    ("MultiMarginLoss", |c| {
        let loss = MultiMarginLoss::new().p(c.size("p") as u32).margin(c.float("margin"));
        let loss = c.maybe(2).map_or(loss.clone(), |weight| loss.weight(weight));
        one(loss.reduction(reduction(c)).forward(c.x(0), c.x(1)))
    }),
    ("MultiLabelMarginLoss", |c| {
        one(MultiLabelMarginLoss::new().reduction(reduction(c)).forward(c.x(0), c.x(1)))
    }),
    ("MarginRankingLoss", |c| {
        let loss = MarginRankingLoss::new().margin(c.float("margin")).reduction(reduction(c));
        one(loss.forward(c.x(0), c.x(1), c.x(2)))
    }),
    ("HingeEmbeddingLoss", |c| {
        let loss = HingeEmbeddingLoss::new().margin(c.float("margin")).reduction(reduction(c));
        one(loss.forward(c.x(0), c.x(1)))
    }),
    ("SoftMarginLoss", |c| one(SoftMarginLoss::new().reduction(reduction(c)).forward(c.x(0), c.x(1)))),
    ("MultiLabelSoftMarginLoss", |c| {
        let mut loss = MultiLabelSoftMarginLoss::new().reduction(reduction(c));
        if let Some(weight) = c.maybe(2) {
            loss = loss.weight(weight);
        }
        one(loss.forward(c.x(0), c.x(1)))
    }),
    ("SigmoidFocalLoss", |c| {
        let loss = SigmoidFocalLoss::new().alpha(c.float("alpha")).gamma(c.float("gamma"));
        one(loss.reduction(reduction(c)).forward(c.x(0), c.x(1)))
    }),
    ("PoissonNLLLoss", |c| {
        let loss =
            PoissonNLLLoss::new().log_input(c.flag("log_input")).full(c.flag("full")).eps(c.float("eps"));
        one(loss.reduction(reduction(c)).forward(c.x(0), c.x(1)))
    }),
    ("GaussianNLLLoss", |c| {
        let loss = GaussianNLLLoss::new().full(c.flag("full")).eps(c.float("eps"));
        one(loss.reduction(reduction(c)).forward(c.x(0), c.x(1), c.x(2)))
    }),
    ("CTCLoss", |c| {
        let loss = CTCLoss::new()
            .blank(c.size("blank"))
            .zero_infinity(c.flag("zero_infinity"))
            .reduction(reduction(c));
        let log_probs = if c.flag("logits") { c.x(0).log_softmax(-1) } else { c.x(0).clone() };
        let (inputs, targets) = (lengths(c, "input_lengths"), lengths(c, "target_lengths"));
        one(loss.forward(&log_probs, c.x(1), &inputs, &targets))
    }),
];
