//! Layers that work on planes and channels by name; `parity/convolution_cases.py` has the other side.

use super::{one, values};
use crate::operations::{Call, Operation, seeded};
use orkest_core::{Param, Tensor};
use orkest_nn::*;
use serde_json::Value;

pub(super) const CONVOLUTION: &[(&str, Operation)] = &[
    ("Conv1d", |c| {
        let conv = Conv1d::from_params(c.param(1), bias(c, 2), c.size("groups"));
        let conv = conv.padding_mode(c.args["padding_mode"].as_str().unwrap_or("zeros"));
        one(conv.stride(c.size("stride")).padding(padding(c)).dilation(c.size("dilation")).forward(c.x(0)))
    }),
    ("Conv2d", |c| {
        let conv = Conv2d::from_params(c.param(1), bias(c, 2), c.size("groups"));
        let conv = conv.padding_mode(c.args["padding_mode"].as_str().unwrap_or("zeros"));
        one(conv.stride(c.size("stride")).padding(padding(c)).dilation(c.size("dilation")).forward(c.x(0)))
    }),
    ("ConvTranspose1d", |c| {
        let conv = ConvTranspose1d::from_params(c.param(1), bias(c, 2), c.size("groups"))
            .stride(c.size("stride"))
            .padding(c.size("padding"))
            .output_padding(c.size("output_padding"))
            .dilation(c.size("dilation"));
        one(conv.forward(c.x(0)))
    }),
    ("ConvTranspose2d", |c| {
        let conv = ConvTranspose2d::from_params(c.param(1), bias(c, 2), c.size("groups"))
            .stride(c.size("stride"))
            .padding(c.size("padding"))
            .output_padding(c.size("output_padding"))
            .dilation(c.size("dilation"));
        one(conv.forward(c.x(0)))
    }),
    ("MaxPool1d", |c| {
        let pool = MaxPool1d::new(c.size("kernel_size")).padding(c.size("padding"));
        let pool = pool.dilation(dilation(c)).ceil_mode(c.flag("ceil_mode"));
        one(if given(c, "stride") { pool.stride(c.size("stride")) } else { pool }.forward(c.x(0)))
    }),
    ("MaxPool2d", |c| {
        let pool = MaxPool2d::new(c.size2("kernel_size")).padding(c.size2("padding"));
        let pool = pool.dilation(dilation(c)).ceil_mode(c.flag("ceil_mode"));
        one(if given(c, "stride") { pool.stride(c.size2("stride")) } else { pool }.forward(c.x(0)))
    }),
    ("AvgPool1d", |c| {
        let pool = AvgPool1d::new(c.size("kernel_size")).padding(c.size("padding"));
        let pool = pool.count_include_pad(c.flag("count_include_pad")).ceil_mode(c.flag("ceil_mode"));
        one(if given(c, "stride") { pool.stride(c.size("stride")) } else { pool }.forward(c.x(0)))
    }),
    ("AvgPool2d", |c| {
        let pool = AvgPool2d::new(c.size2("kernel_size")).padding(c.size2("padding"));
        let pool = pool.count_include_pad(c.flag("count_include_pad")).ceil_mode(c.flag("ceil_mode"));
        let pool = pool.divisor_override(c.args["divisor_override"].as_u64().map(|n| n as usize));
        one(if given(c, "stride") { pool.stride(c.size2("stride")) } else { pool }.forward(c.x(0)))
    }),
    ("AdaptiveAvgPool1d", |c| one(AdaptiveAvgPool1d::new(c.size("output_size")).forward(c.x(0)))),
    ("AdaptiveAvgPool2d", |c| one(AdaptiveAvgPool2d::new(c.size2("output_size")).forward(c.x(0)))),
    ("AdaptiveMaxPool1d", |c| one(AdaptiveMaxPool1d::new(c.size("output_size")).forward(c.x(0)))),
    ("AdaptiveMaxPool2d", |c| one(AdaptiveMaxPool2d::new(c.size2("output_size")).forward(c.x(0)))),
    ("BatchNorm1d", |c| {
        let mut norm = BatchNorm1d::new(c.size("num_features"))
            .eps(c.float("eps"))
            .momentum(momentum(c))
            .track_running_stats(c.flag("track_running_stats"));
        (norm.weight, norm.bias) = affine(c);
        batches(c, &norm)
    }),
    ("BatchNorm2d", |c| {
        let mut norm = BatchNorm2d::new(c.size("num_features"))
            .eps(c.float("eps"))
            .momentum(momentum(c))
            .track_running_stats(c.flag("track_running_stats"));
        (norm.weight, norm.bias) = affine(c);
        batches(c, &norm)
    }),
    ("InstanceNorm1d", |c| {
        let mut norm = InstanceNorm1d::new(c.size("num_features"))
            .eps(c.float("eps"))
            .momentum(c.float("momentum"))
            .track_running_stats(c.flag("track_running_stats"));
        (norm.weight, norm.bias) = affine(c);
        batches(c, &norm)
    }),
    ("InstanceNorm2d", |c| {
        let mut norm = InstanceNorm2d::new(c.size("num_features"))
            .eps(c.float("eps"))
            .momentum(c.float("momentum"))
            .track_running_stats(c.flag("track_running_stats"));
        (norm.weight, norm.bias) = affine(c);
        batches(c, &norm)
    }),
    ("GroupNorm", |c| {
        let mut norm = GroupNorm::new(c.size("num_groups"), c.size("num_channels")).eps(c.float("eps"));
        (norm.weight, norm.bias) = affine(c);
        one(norm.forward(c.x(0)))
    }),
    ("Upsample", |c| one(Upsample::new(c.resize()).mode(c.interpolation()).forward(c.x(0)))),
    ("PixelShuffle", |c| one(PixelShuffle::new(c.size("factor")).forward(c.x(0)))),
    ("PixelUnshuffle", |c| one(PixelUnshuffle::new(c.size("factor")).forward(c.x(0)))),
    ("Unflatten", |c| one(Unflatten::new(c.int("dim"), &c.sizes("sizes")).forward(c.x(0)))),
    ("Dropout1d", |c| {
        let dropout = Dropout1d::new(c.float("p"));
        dropout.set_training(c.flag("training"));
        one(dropout.forward(c.x(0)))
    }),
    ("Dropout2d", |c| {
        let dropout = Dropout2d::new(c.float("p"));
        dropout.set_training(c.flag("training"));
        one(dropout.forward(c.x(0)))
    }),
    ("fresh_convolution", |c| {
        let (inputs, out, groups, bias) = (c.size("in"), c.size("out"), c.size("groups"), c.flag("bias"));
        let [height, width] = [c.sizes("kernel")[0], c.sizes("kernel")[1]];
        seeded(c, || {
            let mut all = values(&Conv2d::grouped(inputs, out, [height, width], groups, bias));
            all.extend(values(&Conv1d::grouped(inputs, out, height, groups, bias)));
            all.extend(values(&BatchNorm2d::new(out)));
            all.extend(values(&ConvTranspose2d::grouped(inputs, out, [height, width], groups, bias)));
            all.extend(values(&ConvTranspose1d::grouped(inputs, out, width, groups, bias)));
            all
        })
    }),
];

fn given(c: &Call<'_>, name: &str) -> bool {
    !c.args[name].is_null()
}

fn dilation(c: &Call<'_>) -> usize {
    if given(c, "dilation") { c.size("dilation") } else { 1 }
}

fn bias(c: &Call<'_>, i: usize) -> Option<Param> {
    (c.inputs.len() > i).then(|| c.param(i))
}

fn padding(c: &Call<'_>) -> Padding {
    match &c.args["padding"] {
        Value::String(name) => name.as_str().into(),
        _ => c.size("padding").into(),
    }
}

fn momentum(c: &Call<'_>) -> Option<f64> {
    given(c, "momentum").then(|| c.float("momentum"))
}

/// Weight and bias after the first input, as far as there are any.
fn affine(c: &Call<'_>) -> (Option<Param>, Option<Param>) {
    (c.flag("affine").then(|| c.param(1)), c.flag("bias").then(|| c.param(2)))
}

/// What the layer gives for every batch, then for the first in evaluation, then its buffers.
fn batches(c: &Call<'_>, norm: &impl Layer) -> Vec<Tensor> {
    let norm = norm.to_dtype(c.x(0).dtype()).to(c.device);
    let mut out: Vec<Tensor> = c.x(0).unbind(0).iter().map(|batch| norm.forward(batch)).collect();
    norm.eval();
    out.push(norm.forward(&c.x(0).select(0, 0)));
    out.extend(norm.named_buffers().into_iter().map(|(_, buffer)| buffer.tensor()));
    out
}
