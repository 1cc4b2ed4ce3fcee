//! Convolutions of usual networks, forwards and with gradients; `tests/parity/convolutions.py` times PyTorch on the same.

use crate::repeat::fastest;
use anyhow::Result;
use orkest::prelude::*;
use serde_json::{Value, json};

/// What is convolved. A height of 0 means sequences.
struct Case {
    name: &'static str,
    /// Batch, channels, height, width.
    x: [usize; 4],
    out_channels: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
    groups: usize,
    transposed: bool,
}

const fn case(
    name: &'static str,
    x: [usize; 4],
    out_channels: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Case {
    Case { name, x, out_channels, kernel, stride, padding, dilation: 1, groups: 1, transposed: false }
}

const fn depthwise(name: &'static str, x: [usize; 4], kernel: usize, stride: usize) -> Case {
    Case { groups: x[1], ..case(name, x, x[1], kernel, stride, kernel / 2) }
}

const fn transposed(
    name: &'static str,
    x: [usize; 4],
    out_channels: usize,
    kernel: usize,
    padding: usize,
) -> Case {
    Case { transposed: true, ..case(name, x, out_channels, kernel, 2, padding) }
}

const CASES: &[Case] = &[
    case("ResNet, first layer", [1, 3, 224, 224], 64, 7, 2, 3),
    case("ResNet, first layer", [8, 3, 112, 112], 64, 7, 2, 3),
    case("ResNet, 3x3", [1, 64, 56, 56], 64, 3, 1, 1),
    case("ResNet, 3x3", [8, 64, 56, 56], 64, 3, 1, 1),
    case("ResNet, 3x3", [1, 128, 28, 28], 128, 3, 1, 1),
    case("ResNet, 3x3", [8, 128, 28, 28], 128, 3, 1, 1),
    case("ResNet, 3x3", [1, 256, 14, 14], 256, 3, 1, 1),
    case("ResNet, 3x3", [8, 256, 14, 14], 256, 3, 1, 1),
    case("ResNet, 3x3", [1, 512, 7, 7], 512, 3, 1, 1),
    case("ResNet, 3x3", [8, 512, 7, 7], 512, 3, 1, 1),
    case("ResNet, 3x3 by 2", [8, 64, 56, 56], 128, 3, 2, 1),
    case("ResNet, 3x3 by 2", [8, 256, 14, 14], 512, 3, 2, 1),
    case("ResNet, 1x1 by 2", [8, 64, 56, 56], 128, 1, 2, 0),
    case("ResNet, 1x1 by 2", [8, 256, 14, 14], 512, 1, 2, 0),
    depthwise("MobileNet, depthwise", [1, 32, 112, 112], 3, 1),
    depthwise("MobileNet, depthwise", [8, 32, 112, 112], 3, 1),
    depthwise("MobileNet, depthwise by 2", [8, 64, 112, 112], 3, 2),
    depthwise("MobileNet, depthwise", [1, 512, 14, 14], 3, 1),
    depthwise("MobileNet, depthwise", [8, 512, 14, 14], 3, 1),
    depthwise("MobileNet, depthwise by 2", [8, 512, 14, 14], 3, 2),
    depthwise("EfficientNet, depthwise", [8, 240, 28, 28], 5, 1),
    depthwise("EfficientNet, depthwise by 2", [8, 144, 56, 56], 5, 2),
    depthwise("ConvNeXt, depthwise", [4, 96, 56, 56], 7, 1),
    case("MobileNet, pointwise", [1, 32, 112, 112], 64, 1, 1, 0),
    case("MobileNet, pointwise", [8, 128, 56, 56], 128, 1, 1, 0),
    case("MobileNet, pointwise", [1, 512, 14, 14], 512, 1, 1, 0),
    case("MobileNet, pointwise", [8, 512, 14, 14], 512, 1, 1, 0),
    case("transformer, patches", [4, 3, 224, 224], 384, 16, 16, 0),
    case("ConvNeXt, by 2", [4, 96, 56, 56], 192, 2, 2, 0),
    case("U-Net, 3x3", [1, 64, 128, 128], 64, 3, 1, 1),
    case("digits", [64, 1, 28, 28], 16, 3, 1, 1),
    case("digits", [64, 16, 14, 14], 32, 3, 1, 1),
    case("small pictures", [32, 3, 32, 32], 32, 3, 1, 1),
    case("small pictures", [32, 32, 32, 32], 64, 3, 1, 1),
    case("text", [32, 128, 0, 100], 100, 3, 1, 0),
    case("text", [16, 300, 0, 60], 100, 5, 1, 2),
    case("speech, first layer", [4, 1, 0, 16000], 64, 80, 4, 38),
    case("speech", [1, 80, 0, 1500], 384, 3, 1, 1),
    case("speech by 2", [1, 384, 0, 1500], 384, 3, 2, 1),
    Case { groups: 32, ..case("ResNeXt, 32 groups", [8, 128, 28, 28], 128, 3, 1, 1) },
    Case { dilation: 2, ..case("dilated by 2", [4, 64, 56, 56], 64, 3, 1, 2) },
    transposed("transposed by 2", [8, 128, 14, 14], 64, 4, 1),
    transposed("transposed by 2", [8, 64, 28, 28], 32, 2, 0),
    transposed("transposed by 2", [16, 512, 4, 4], 256, 4, 1),
    transposed("transposed by 2", [1, 128, 64, 64], 64, 3, 1),
];

/// Times the cases whose names or inputs, as in `8x64x56x56`, contain one of `wanted` (all if there is none) on `device` and hands a line about each to `report`.
pub fn measure(device: &Device, wanted: &[String], mut report: impl FnMut(Value)) -> Result<()> {
    manual_seed(0);
    let chosen = |case: &&Case| {
        let name = format!("{} {}", case.name, case.x.map(|size| size.to_string()).join("x"));
        wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()))
    };
    for case in CASES.iter().filter(chosen) {
        let [n, c, h, w] = case.x;
        let sequences = h == 0;
        let shape = |first: usize, second: usize, rest: [usize; 2]| match sequences {
            true => vec![first, second, rest[1]],
            false => vec![first, second, rest[0], rest[1]],
        };
        let (o, k, g) = (case.out_channels, case.kernel, case.groups);
        let weight_shape = if case.transposed { shape(c, o / g, [k, k]) } else { shape(o, c / g, [k, k]) };
        let x = Tensor::randn(&shape(n, c, [h, w])[..], device);
        let weight = Tensor::randn(&weight_shape[..], device);
        let bias = Tensor::randn([o], device);
        let run = |x: &Tensor, weight: &Tensor, bias: &Tensor| {
            let &Case { stride: s, padding: p, dilation: d, groups: g, .. } = case;
            match (sequences, case.transposed) {
                (true, _) => x.conv1d(weight, Some(bias), s, p, d, g),
                (false, false) => x.conv2d(weight, Some(bias), s, p, d, g),
                (false, true) => x.conv_transpose2d(weight, Some(bias), s, p, 0, g, d),
            }
        };
        let forward = fastest(device, || drop(no_grad(|| run(&x, &weight, &bias))))?;
        let grad = Tensor::randn(no_grad(|| run(&x, &weight, &bias)).shape().to_vec().as_slice(), device);
        let leaves = [x, weight, bias].map(|t| t.requires_grad_(true));
        let training = fastest(device, || {
            let y = run(&leaves[0], &leaves[1], &leaves[2]);
            y.backward_with(Some(&grad), BackwardOptions::default());
            leaves.iter().for_each(Tensor::zero_grad);
        })?;
        report(json!({
            "case": case.name, "x": shape(n, c, [h, w]), "weight": weight_shape, "stride": case.stride,
            "padding": case.padding, "dilation": case.dilation, "groups": case.groups,
            "transposed": case.transposed, "threads": orkest::num_threads(), "forward_s": forward, "training_s": training,
        }));
    }
    Ok(())
}
