//! Fused operations through the methods that use them: device against the interpreter, which runs their lowerings.

use super::draw::Draw;
use super::{Report, dtypes, seed};
use crate::compare::{Allowed, compare, tolerances};
use crate::parity::message;
use orkest_core::op::{Recurrence, RecurrentCell};
use orkest_core::{BackwardOptions, DType, Device, Param, RecurrentWeights, Shape, Tensor, manual_seed};
use orkest_nn::optim::{Adam, AdamW, Optimizer, SGD};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The fused variants of `Op` that these checks drive, with the method that does it.
pub const FUSED: &[(&str, &str)] = &[
    ("UnaryGrad", "the gradient of every function of one element"),
    ("Softmax", "softmax, log_softmax"),
    ("SoftmaxGrad", "their gradients"),
    ("LayerNorm", "layer_norm"),
    ("LayerNormGrad", "its gradient"),
    ("RmsNorm", "rms_norm"),
    ("RmsNormGrad", "its gradient"),
    ("BatchNorm", "batch_norm"),
    ("BatchNormGrad", "its gradient"),
    ("ScaleChannels", "group_norm, batch_norm with running statistics"),
    ("ScaleChannelsGrad", "their gradients"),
    ("Triangle", "tril, triu"),
    ("ElementLoss", "element_loss"),
    ("ElementLossGrad", "its gradient"),
    ("Resample", "interpolate and its gradient, adaptive_avg_pool2d"),
    ("AdaptiveMaxPool", "adaptive_max_pool2d"),
    ("CrossEntropy", "cross_entropy_rows"),
    ("CrossEntropyGrad", "its gradient"),
    ("Linear", "linear, linear_act"),
    ("Dropout", "dropout"),
    ("Attention", "scaled_dot_product_attention"),
    ("AttentionGrad", "its gradient"),
    ("Conv2d", "conv2d"),
    ("Conv2dInputGrad", "the gradient of its input, conv_transpose2d"),
    ("Conv2dWeightGrad", "the gradient of its weight"),
    ("Recurrent", "recurrent"),
    ("RecurrentGrad", "its gradient"),
    ("AdamStep", "Adam, AdamW"),
    ("SgdStep", "SGD"),
    ("Custom", "see the tests of kernels in core and in the backends"),
];

/// A function of tensors, its operands (shape and range), and integer operands with the number of positions they name.
struct Case {
    name: String,
    shapes: Vec<(Shape, f64, f64)>,
    classes: Option<(Shape, usize)>,
    mask: Option<Shape>,
    /// By how much more results and gradients of halves may differ: where rounded results are fed back (docs/numerics.md).
    feedback: (f64, f64),
    /// Whether gradients of halves can be compared: not where rounding decides on which side of a kink a sum lies.
    smooth: bool,
    run: Box<dyn Fn(&[Tensor]) -> Tensor>,
}

impl Case {
    fn new(
        name: impl Into<String>,
        shapes: &[&[usize]],
        run: impl Fn(&[Tensor]) -> Tensor + 'static,
    ) -> Case {
        let shapes = shapes.iter().map(|s| (Shape::new(s), -2.0, 2.0)).collect();
        Case {
            name: name.into(),
            shapes,
            classes: None,
            mask: None,
            feedback: (1.0, 1.0),
            smooth: true,
            run: Box::new(run),
        }
    }

    fn between(mut self, low: f64, high: f64) -> Case {
        self.shapes.iter_mut().for_each(|s| (s.1, s.2) = (low, high));
        self
    }
}

/// Every fused operation, forward and backward, on contiguous and strided operands.
pub fn fused(device: &Device) -> Report {
    run(device, true)
}

/// Runs all of that on `device`, whatever comes out.
pub fn launched_fused(device: &Device) -> Report {
    run(device, false)
}

fn run(device: &Device, values: bool) -> Report {
    let variants = FUSED.iter().map(|(name, _)| name.to_string()).filter(|name| name != "Custom").collect();
    let mut report = Report { variants, ..Report::default() };
    let mut draw = Draw(seed());
    for dtype in dtypes(device).into_iter().filter(|d| d.is_float()) {
        for case in cases(&mut draw) {
            for strided in [false, true] {
                let result = equals_lowering(&case, device, values, dtype, strided, &mut draw);
                let lay = if strided { "strided" } else { "contiguous" };
                report.check(|| format!("{} {dtype}, {lay}", case.name), result);
            }
        }
    }
    optimizers(device, values, &mut report);
    report
}

fn cases(draw: &mut Draw) -> Vec<Case> {
    let mut list = Vec::new();
    for function in super::primitives::unary_functions().into_iter().filter(|f| !f.is_test()) {
        let case = Case::new(format!("{function:?}"), &[&[3, 1, 7]], move |x| x[0].unary(function));
        let positive =
            matches!(function.name(), "log" | "log1p" | "log2" | "log10" | "sqrt" | "rsqrt" | "reciprocal");
        list.push(match function.name() {
            _ if positive => case.between(0.3, 3.0),
            "tan" => case.between(-1.2, 1.2),
            _ => case.between(-1.3, 2.5),
        });
    }
    for width in [1, 7, 33, 260] {
        let rows = draw.int(1, 5) as usize;
        list.push(Case::new("softmax", &[&[rows, 2, width]], |x| x[0].softmax(-1)));
        list.push(Case::new("softmax of dim 0", &[&[width, rows]], |x| x[0].softmax(0)));
        list.push(Case::new("log_softmax", &[&[rows, width]], |x| x[0].log_softmax(-1)));
    }
    for width in [3, 33, 260] {
        list.push(Case::new("layer_norm", &[&[4, width], &[width], &[width]], move |x| {
            x[0].layer_norm(width, Some(&x[1]), Some(&x[2]), 1e-5)
        }));
        list.push(Case::new("layer_norm, weight", &[&[4, width], &[width]], move |x| {
            x[0].layer_norm(width, Some(&x[1]), None, 1e-5)
        }));
        list.push(Case::new("layer_norm, plain", &[&[2, 3, width]], move |x| {
            x[0].layer_norm(width, None, None, 1e-3)
        }));
        list.push(Case::new("rms_norm", &[&[4, width], &[width]], move |x| {
            x[0].rms_norm(width, Some(&x[1]), Some(1e-5))
        }));
        list.push(Case::new("rms_norm, plain", &[&[2, 3, width]], move |x| {
            x[0].rms_norm(width, None, Some(1e-5))
        }));
    }
    for plane in [1, 6, 90] {
        let [full, plain]: [&[usize]; 2] = [&[5, 3, plane], &[4, 2, plane, 1]];
        list.push(Case::new("batch_norm", &[full, &[3], &[3]], |x| {
            x[0].batch_norm(None, None, Some(&x[1]), Some(&x[2]), true, 0.1, 1e-5)
        }));
        list.push(Case::new("batch_norm, plain", &[plain], |x| {
            x[0].batch_norm(None, None, None, None, true, 0.1, 1e-3)
        }));
    }
    list.push(Case::new("batch_norm of features", &[&[70, 19], &[19], &[19]], |x| {
        x[0].batch_norm(None, None, Some(&x[1]), Some(&x[2]), true, 0.1, 1e-5)
    }));
    for k in [-9, -1, 0, 2, 9] {
        list.push(Case::new(format!("tril({k})"), &[&[2, 5, 7]], move |x| x[0].tril(k)));
        list.push(Case::new(format!("triu({k})"), &[&[7, 5]], move |x| x[0].triu(k)));
    }
    for (classes, smoothing) in [(2, 0.0), (10, 0.1), (130, 0.0)] {
        let case = Case::new("cross_entropy", &[&[6, classes]], move |x| {
            x[0].cross_entropy_rows(&x[1], 1, smoothing)
        });
        list.push(Case { classes: Some((Shape::new(&[6]), classes)), ..case });
    }
    for (m, k, n) in [(1, 5, 3), (4, 1, 6), (9, 17, 20), (40, 33, 70)] {
        use orkest_core::op::Unary;
        list.push(
            Case::new("linear", &[&[m, k], &[n, k], &[n]], |x| x[0].linear(&x[1], Some(&x[2])))
                .between(-1.0, 2.0),
        );
        list.push(
            Case::new("linear, no bias", &[&[2, m, k], &[n, k]], |x| x[0].linear(&x[1], None))
                .between(-1.0, 2.0),
        );
        for activation in [Unary::Relu, Unary::Gelu] {
            // Without a graph this is one fused pass.
            list.push(
                Case::new(format!("linear, {activation:?}"), &[&[m, k], &[n, k], &[n]], move |x| {
                    orkest_core::no_grad(|| x[0].linear_act(&x[1], Some(&x[2]), activation))
                })
                .between(-1.0, 2.0),
            );
        }
    }
    list.push(Case::new("dropout", &[&[7, 33]], |x| {
        manual_seed(5);
        x[0].dropout(0.4, true)
    }));
    for (t, s, d, e) in [(1, 5, 4, 4), (6, 6, 8, 3), (20, 37, 16, 16)] {
        let shapes: [&[usize]; 3] = [&[2, 3, t, d], &[2, 3, s, d], &[2, 3, s, e]];
        let attend = |x: &[Tensor], mask: Option<&Tensor>, causal: bool| {
            x[0].scaled_dot_product_attention(&x[1], &x[2], mask, 0.0, causal, None)
        };
        list.push(Case::new("attention", &shapes, move |x| attend(x, None, false)));
        if t > 1 {
            // A single query would see one key: its gradient is zero but for rounding.
            list.push(Case::new("attention, causal", &shapes, move |x| attend(x, None, true)));
        }
        let masked = Case::new("attention, masked", &shapes, move |x| attend(x, Some(&x[3]), false));
        list.push(Case { mask: Some(Shape::new(&[2, 1, t, s])), ..masked });
    }
    for (groups, stride, padding, dilation) in [(1, 1, 0, 1), (1, 2, 1, 1), (2, 1, 2, 2)] {
        list.push(
            Case::new("conv2d", &[&[2, 4, 7, 8], &[6, 4 / groups, 3, 2], &[6]], move |x| {
                x[0].conv2d(&x[1], Some(&x[2]), stride, padding, dilation, groups)
            })
            .between(-1.0, 2.0),
        );
        list.push(
            Case::new("conv_transpose2d", &[&[2, 4, 5, 6], &[4, 6 / groups, 3, 2], &[6]], move |x| {
                x[0].conv_transpose2d(&x[1], Some(&x[2]), stride, padding, 0, groups, dilation)
            })
            .between(-1.0, 2.0),
        );
    }
    for (channels, stride) in [(5, 1), (3, 2)] {
        list.push(
            Case::new("conv2d, depthwise", &[&[2, channels, 9, 20], &[channels, 1, 3, 3]], move |x| {
                x[0].conv2d(&x[1], None, stride, 1, 1, channels)
            })
            .between(-1.0, 2.0),
        );
    }
    list.push(
        Case::new("conv2d, many channels", &[&[2, 12, 5, 5], &[48, 12, 3, 3]], |x| {
            x[0].conv2d(&x[1], None, 1, 1, 1, 1)
        })
        .between(-1.0, 2.0),
    );
    list.extend(element_losses());
    list.extend(resampled());
    list.extend(recurrent());
    list
}

fn element_losses() -> Vec<Case> {
    use orkest_core::op::{ElementLoss, Reduce};
    let mut list = Vec::new();
    for loss in ElementLoss::EACH {
        for reduce in [None, Some(Reduce::Sum), Some(Reduce::Mean)] {
            let case = Case::new(format!("{loss:?}, {reduce:?}"), &[&[5, 3, 41], &[5, 3, 41]], move |x| {
                x[0].element_loss(&x[1], loss, reduce)
            });
            // Rounding decides on which side of a kink halves lie.
            list.push(Case { smooth: loss != ElementLoss::Absolute, ..case.between(0.1, 0.9) });
        }
    }
    list
}

/// Planes of another size, and channels that are scaled.
fn resampled() -> Vec<Case> {
    use orkest_core::Interpolation;
    let planes: &[&[usize]] = &[&[2, 3, 7, 10]];
    let mut list = Vec::new();
    for (name, mode) in [
        ("nearest", Interpolation::Nearest),
        ("nearest-exact", Interpolation::NearestExact),
        ("bilinear", Interpolation::Bilinear { align_corners: false }),
        ("bilinear, corners", Interpolation::Bilinear { align_corners: true }),
        ("bicubic", Interpolation::Bicubic { align_corners: false }),
    ] {
        for size in [[14, 20], [5, 3], [9, 1]] {
            list.push(Case::new(format!("interpolate, {name} to {size:?}"), planes, move |x| {
                x[0].interpolate(size, mode)
            }));
        }
    }
    for size in [[1, 1], [3, 4], [7, 10], [9, 12]] {
        list.push(Case::new(format!("adaptive_avg_pool2d to {size:?}"), planes, move |x| {
            x[0].adaptive_avg_pool2d(size)
        }));
        list.push(Case::new(format!("adaptive_max_pool2d to {size:?}"), planes, move |x| {
            x[0].adaptive_max_pool2d(size)
        }));
    }
    for plane in [1, 70] {
        let shapes: &[&[usize]] = &[&[3, 6, plane], &[6], &[6]];
        if plane > 1 {
            list.push(Case::new("group_norm", shapes, |x| {
                x[0].group_norm(3, Some(&x[1]), Some(&x[2]), 1e-5)
            }));
        }
        list.push(Case::new("batch_norm, running statistics", shapes, |x| {
            let (mut mean, mut var) = (x[1].detach() * 0.5, x[2].detach().square() + 0.5);
            let (mean, var) = (Some(&mut mean), Some(&mut var));
            x[0].batch_norm(mean, var, Some(&x[1]), Some(&x[2]), false, 0.1, 1e-5)
        }));
    }
    list
}

/// Every cell in both directions, over texts of one length and of several, fewer and more than a kernel takes together.
fn recurrent() -> Vec<Case> {
    use RecurrentCell::{Gru, Lstm, RnnRelu, RnnTanh};
    let mut list = Vec::new();
    for (cell, reverse) in [RnnTanh, RnnRelu, Gru, Lstm].into_iter().flat_map(|c| [(c, false), (c, true)]) {
        // A weight that is too large for all but the last cache is walked another way.
        let large = (cell == Lstm).then_some((vec![9, 9, 2], 3, 230));
        for (sizes, input, hidden) in
            [(vec![3; 4], 5, 7), (vec![19, 12, 12, 3, 1], 3, 33)].into_iter().chain(large)
        {
            let (rows, batch) = (cell.gates() * hidden, sizes[0]);
            let recurrence = Recurrence { cell, reverse, batch_sizes: sizes.into() };
            let mut shapes: Vec<Vec<usize>> = vec![
                vec![recurrence.rows(), input],
                vec![rows, input],
                vec![rows, hidden],
                vec![rows],
                vec![rows],
            ];
            shapes.extend(vec![vec![batch, hidden]; cell.states()]);
            let shapes: Vec<&[usize]> = shapes.iter().map(|s| &s[..]).collect();
            let name = format!("{}{}", cell.name(), if reverse { ", reverse" } else { "" });
            let run = move |x: &[Tensor]| {
                let weights = RecurrentWeights { ih: &x[1], hh: &x[2], bias: Some((&x[3], &x[4])), hr: None };
                Tensor::cat(&x[0].recurrent(&recurrence, weights, &x[5..]), 0)
            };
            let smooth = cell != RnnRelu;
            let case = Case::new(name, &shapes, run).between(-0.5, 0.6);
            list.push(Case { feedback: (8.0, 4.0), smooth, ..case });
        }
    }
    list
}

fn equals_lowering(
    case: &Case,
    device: &Device,
    values: bool,
    dtype: DType,
    strided: bool,
    draw: &mut Draw,
) -> Result<(), String> {
    let mut operands: Vec<(Tensor, Option<(isize, isize)>)> = Vec::new();
    let host = Device::reference();
    for &(shape, low, high) in &case.shapes {
        // Stored with the outer dimensions swapped, and read back through a transposed view.
        let swap = (strided && shape.rank() >= 2).then_some((0, -1));
        let stored = match swap {
            None => shape,
            Some(_) => shape.with(0, shape[shape.rank() - 1]).with(shape.rank() - 1, shape[0]),
        };
        let values: Vec<f64> = (0..shape.numel()).map(|_| draw.float(low, high)).collect();
        operands.push((Tensor::from_slice(&values, stored, (dtype, &host)), swap));
    }
    if let Some((shape, classes)) = case.classes {
        let values: Vec<i64> = (0..shape.numel()).map(|_| draw.below(classes) as i64).collect();
        operands.push((Tensor::from_slice(&values, shape, &host), None));
    }
    if let Some(shape) = case.mask {
        let values: Vec<bool> = (0..shape.numel()).map(|_| !draw.flag(3)).collect();
        operands.push((Tensor::from_slice(&values, shape, &host), None));
    }
    let seed = draw.0;
    if !values {
        return evaluate(case, &operands, device, seed).and_then(|_| launched(device));
    }
    let expected = evaluate(case, &operands, &host, seed)?;
    let actual = evaluate(case, &operands, device, seed)?;
    let (forward, backward) = tolerances(dtype);
    let half = matches!(dtype, DType::F16 | DType::BF16);
    let feedback = if half { case.feedback } else { (1.0, 1.0) };
    let compared = if half && !case.smooth { 1 } else { actual.len() };
    for (i, (a, b)) in actual.iter().zip(&expected).enumerate().take(compared) {
        // Twice: both may be off.
        let allowed =
            Allowed::Relative(2.0 * if i == 0 { feedback.0 * forward } else { feedback.1 * backward });
        let what = if i == 0 { "output".into() } else { format!("gradient of input {}", i - 1) };
        compare(a, b, allowed).map_err(|e| format!("{what}: {e}"))?;
    }
    Ok(())
}

/// Whether the device takes everything that it was asked since the last time.
fn launched(device: &Device) -> Result<(), String> {
    device.synchronize().map_err(|e| {
        device.clear_error();
        e.to_string()
    })
}

/// The output, and the gradients of the float operands from a random gradient of the output.
fn evaluate(
    case: &Case,
    operands: &[(Tensor, Option<(isize, isize)>)],
    device: &Device,
    seed: u64,
) -> Result<Vec<Tensor>, String> {
    let place = |(stored, swap): &(Tensor, Option<(isize, isize)>)| {
        let x = stored.to(device);
        let x = swap.map_or(x.clone(), |(a, b)| x.transpose(a, b).detach());
        if x.dtype().is_float() { x.requires_grad_(true) } else { x }
    };
    let run = || {
        let inputs: Vec<Tensor> = operands.iter().map(place).collect();
        let y = (case.run)(&inputs);
        let mut out = vec![y.detach()];
        if y.requires_grad() {
            let mut draw = Draw(seed);
            let from: Vec<f64> = (0..y.numel()).map(|_| draw.float(-1.0, 1.0)).collect();
            let from = Tensor::from_slice(&from, *y.shape(), (y.dtype(), device));
            y.backward_with(Some(&from), BackwardOptions::default());
            out.extend(
                inputs
                    .iter()
                    .filter(|x| x.requires_grad())
                    .map(|x| x.grad().unwrap_or_else(|| x.zeros_like())),
            );
        }
        out
    };
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| format!("panic on {device}: {}", message(&*panic)))
}

/// Five steps of every optimizer over parameters of several shapes.
fn optimizers(device: &Device, values: bool, report: &mut Report) {
    type Make = fn(Vec<Param>) -> Box<dyn Optimizer>;
    let kinds: [(&str, Make); 6] = [
        ("SGD", |p| Box::new(SGD::new(p, 0.1))),
        ("SGD with momentum", |p| Box::new(SGD::new(p, 0.1).momentum(0.9).weight_decay(0.01))),
        ("SGD, Nesterov", |p| Box::new(SGD::new(p, 0.1).momentum(0.9).nesterov(true))),
        ("Adam", |p| Box::new(Adam::new(p, 0.01).weight_decay(0.1))),
        ("Adam, amsgrad", |p| Box::new(Adam::new(p, 0.01).amsgrad(true))),
        ("AdamW", |p| Box::new(AdamW::new(p, 0.01))),
    ];
    for (name, make) in kinds {
        let steps = |device: &Device| {
            let mut draw = Draw(3);
            let mut drawn = |shape: Shape| {
                let v: Vec<f32> = (0..shape.numel()).map(|_| draw.float(-1.0, 1.0) as f32).collect();
                Tensor::from_slice(&v, shape, device)
            };
            let shapes = [Shape::new(&[40, 33]), Shape::new(&[1]), Shape::new(&[]), Shape::new(&[257])];
            let params: Vec<Param> = shapes.iter().map(|s| Param::new(drawn(*s))).collect();
            let mut optimizer = make(params.clone());
            for _ in 0..5 {
                params.iter().zip(&shapes).for_each(|(p, s)| p.set_grad(Some(drawn(*s))));
                optimizer.step();
            }
            params.iter().map(Param::value).collect::<Vec<_>>()
        };
        if !values {
            let result = catch_unwind(AssertUnwindSafe(|| steps(device))).map_err(|p| message(&*p));
            report.check(|| name.to_string(), result.and_then(|_| launched(device)));
            continue;
        }
        let expected = steps(&Device::reference());
        let result = catch_unwind(AssertUnwindSafe(|| steps(device)));
        let result = result.map_err(|p| format!("panic: {}", message(&*p))).and_then(|actual| {
            actual.iter().zip(&expected).try_for_each(|(a, b)| compare(a, b, Allowed::Relative(1e-5)))
        });
        report.check(|| name.to_string(), result);
    }
}
