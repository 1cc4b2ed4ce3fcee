//! Layers, losses, optimizers and schedules by name, as [`crate::operations`] has the tensor operations; a family of layers has a
//! file here and one of the same name under `parity/` (`nn_cases.py` for this one).

mod attention;
mod convolution;
mod losses;
mod modules;
mod optimizers;
mod recurrent;
mod training;

use crate::operations::{Call, Operation, seeded};
use orkest_core::{Device, Param, Tensor, no_grad};
use orkest_nn::optim::{Adam, AdamW, Optimizer, OptimizerState, OptionValue, ParamGroup, SGD};
use orkest_nn::scheduler::*;
use orkest_nn::*;
use serde_json::Value;

/// Everything in this folder.
pub(crate) fn all() -> Vec<(&'static str, Operation)> {
    [
        LAYERS,
        LOSSES,
        OPTIMIZERS,
        SCHEDULES,
        FRESH,
        attention::ATTENTION,
        recurrent::RECURRENT,
        convolution::CONVOLUTION,
        optimizers::ALL,
        losses::ALL,
        training::TRAINING,
        modules::MODULES,
    ]
    .concat()
}

fn one(t: Tensor) -> Vec<Tensor> {
    vec![t]
}

fn reduction(c: &Call<'_>) -> Reduction {
    match c.text("reduction") {
        "none" => Reduction::None,
        "sum" => Reduction::Sum,
        "batchmean" => Reduction::BatchMean,
        _ => Reduction::Mean,
    }
}

const LAYERS: &[(&str, Operation)] = &[
    ("Linear", |c| {
        let bias = (c.inputs.len() > 2).then(|| c.param(2));
        one(Linear::from_params(c.param(1), bias).forward(c.x(0)))
    }),
    ("Embedding", |c| {
        let mut embedding = Embedding::from_param(c.param(1));
        if !c.args["padding_idx"].is_null() {
            embedding = embedding.padding_idx(c.int("padding_idx"));
        }
        if c.args["max_norm"].is_null() {
            return one(embedding.forward(c.x(0)));
        }
        let embedding = embedding.max_norm(c.float("max_norm")).norm_type(c.float("norm_type"));
        vec![embedding.forward(c.x(0)), embedding.weight.value()]
    }),
    ("LayerNorm", |c| {
        let mut norm = LayerNorm::new(c.size("width")).eps(c.float("eps"));
        norm.weight = c.flag("weight").then(|| c.param(1));
        norm.bias = c.flag("bias").then(|| c.param(2));
        one(norm.forward(c.x(0)))
    }),
    ("RMSNorm", |c| {
        let mut norm = RMSNorm::new(c.size("width"));
        norm.weight = c.flag("weight").then(|| c.param(1));
        if !c.args["eps"].is_null() {
            norm = norm.eps(c.float("eps"));
        }
        one(norm.forward(c.x(0)))
    }),
    ("activations", |c| {
        let apply = |name: &Value| -> Tensor {
            let x = c.x(0);
            match name.as_str().unwrap() {
                "ReLU" => ReLU.forward(x),
                "Sigmoid" => Sigmoid.forward(x),
                "Tanh" => Tanh.forward(x),
                "SiLU" => SiLU.forward(x),
                "LogSigmoid" => LogSigmoid.forward(x),
                "Identity" => Identity.forward(x),
                "GELU" => GELU::new().forward(x),
                "GELU(tanh)" => GELU::tanh().forward(x),
                "LeakyReLU" => LeakyReLU::new(0.2).forward(x),
                "ELU" => ELU::new(1.3).forward(x),
                "Softplus" => Softplus::new(2.0, 5.0).forward(x),
                "Softmax" => Softmax::new(-1).forward(x),
                "LogSoftmax" => LogSoftmax::new(-1).forward(x),
                "Flatten" => Flatten::new().forward(x),
                "ReLU6" => ReLU6.forward(x),
                "Hardsigmoid" => Hardsigmoid.forward(x),
                "Hardswish" => Hardswish.forward(x),
                "Tanhshrink" => Tanhshrink.forward(x),
                "Softsign" => Softsign.forward(x),
                "Mish" => Mish.forward(x),
                "SELU" => SELU.forward(x),
                "CELU" => CELU::new(1.3).forward(x),
                "Hardtanh" => Hardtanh::new(-0.7, 0.9).forward(x),
                "Hardshrink" => Hardshrink::new(0.4).forward(x),
                "Softshrink" => Softshrink::new(0.4).forward(x),
                "Threshold" => Threshold::new(0.2, -3.0).forward(x),
                "GLU" => GLU::new(-1).forward(x),
                "Softmin" => Softmin::new(-1).forward(x),
                other => panic!("no layer {other}"),
            }
        };
        c.list("names").iter().map(apply).collect()
    }),
    ("Dropout", |c| {
        let dropout = Dropout::new(c.float("p"));
        if c.flag("training") {
            dropout.train();
        } else {
            dropout.eval();
        }
        one(dropout.forward(c.x(0)))
    }),
    ("Sequential", |c| {
        let net = sequential![
            Linear::from_params(c.param(1), Some(c.param(2))),
            Tanh,
            Linear::from_params(c.param(3), Some(c.param(4))),
        ];
        one(net.forward(c.x(0)))
    }),
];

const LOSSES: &[(&str, Operation)] = &[
    ("CrossEntropyLoss", |c| {
        let mut loss = CrossEntropyLoss::new()
            .ignore_index(c.int("ignore_index") as i64)
            .label_smoothing(c.float("label_smoothing"))
            .reduction(reduction(c));
        if let Some(weight) = c.maybe(2) {
            loss = loss.weight(weight);
        }
        one(loss.forward(c.x(0), c.x(1)))
    }),
    ("NLLLoss", |c| {
        let mut loss = NLLLoss::new().ignore_index(c.int("ignore_index") as i64).reduction(reduction(c));
        if let Some(weight) = c.maybe(2) {
            loss = loss.weight(weight);
        }
        one(loss.forward(c.x(0), c.x(1)))
    }),
    ("BCELoss", |c| {
        let mut loss = BCELoss::new().reduction(reduction(c));
        if let Some(weight) = c.maybe(2) {
            loss = loss.weight(weight);
        }
        one(loss.forward(c.x(0), c.x(1)))
    }),
    ("BCEWithLogitsLoss", |c| {
        let mut loss = BCEWithLogitsLoss::new().reduction(reduction(c));
        if c.flag("weight") {
            loss = loss.weight(c.x(2));
        }
        if c.flag("pos_weight") {
            loss = loss.pos_weight(c.x(c.inputs.len() - 1));
        }
        one(loss.forward(c.x(0), c.x(1)))
    }),
    ("MSELoss", |c| one(MSELoss::new().reduction(reduction(c)).forward(c.x(0), c.x(1)))),
    ("L1Loss", |c| one(L1Loss::new().reduction(reduction(c)).forward(c.x(0), c.x(1)))),
    ("SmoothL1Loss", |c| {
        one(SmoothL1Loss::new(c.float("beta")).reduction(reduction(c)).forward(c.x(0), c.x(1)))
    }),
    ("HuberLoss", |c| one(HuberLoss::new(c.float("delta")).reduction(reduction(c)).forward(c.x(0), c.x(1)))),
    ("KLDivLoss", |c| {
        let loss = KLDivLoss::new().log_target(c.flag("log_target")).reduction(reduction(c));
        one(loss.forward(c.x(0), c.x(1)))
    }),
];

/// The parameters after each step, with the gradients of the case; after each cycle of them where there are several. Before the
/// step `reload` the optimizer is made anew from its saved state.
fn steps(c: &Call<'_>, make: impl Fn(Vec<ParamGroup>, f64) -> Box<dyn Optimizer>) -> Vec<Tensor> {
    let params = [Param::new(c.x(0).copy()), Param::new(c.x(1).copy())];
    let mut optimizer = with_options(c, &params, &make);
    let (count, cycles) = (c.x(2).size(0), c.args["cycles"].as_u64().unwrap_or(1) as usize);
    let mut after = [Vec::new(), Vec::new()];
    for step in 0..count * cycles {
        if c.args["reload"].as_u64() == Some(step as u64) {
            let saved = optimizer.state_dict().to_state_dict();
            optimizer = make(optimizer.param_groups().to_vec(), 7.0);
            optimizer.load_state_dict(&OptimizerState::from_state_dict(&saved).unwrap()).unwrap();
        }
        let t = step % count;
        for (i, param) in params.iter().enumerate() {
            let skipped = i == 1 && c.args["skipped"].as_u64() == Some(t as u64);
            param.set_grad((!skipped).then(|| c.x(2 + i).select(0, t as isize)));
        }
        optimizer.step();
        if cycles == 1 || t + 1 == count {
            for (values, param) in after.iter_mut().zip(&params) {
                values.push(param.value().copy());
            }
        }
    }
    after.iter().map(|values| Tensor::stack(values, 0)).collect()
}

fn with_options(
    c: &Call<'_>,
    params: &[Param; 2],
    make: impl Fn(Vec<ParamGroup>, f64) -> Box<dyn Optimizer>,
) -> Box<dyn Optimizer> {
    let lr = c.float("lr");
    let groups = match c.args["second_lr"].as_f64() {
        None => vec![ParamGroup::new(params.clone())],
        Some(second) => {
            vec![
                ParamGroup::new([params[0].clone()]),
                ParamGroup::new([params[1].clone()]).with("lr", second),
            ]
        }
    };
    let mut optimizer = make(groups, lr);
    for group in optimizer.param_groups_mut() {
        for (name, value) in c.args["options"].as_object().unwrap() {
            let value = match value {
                Value::Bool(b) => OptionValue::from(*b),
                // None stands for the machine epsilon.
                Value::Array(numbers) => {
                    match numbers.iter().map(|x| x.as_f64().unwrap_or(f64::NAN)).collect::<Vec<_>>()[..] {
                        [a, b] => OptionValue::from((a, b)),
                        [a, b, c] => OptionValue::from((a, b, c)),
                        _ => panic!("no option has {} numbers", numbers.len()),
                    }
                }
                Value::String(text) => OptionValue::from_name(text).unwrap(),
                number => OptionValue::from(number.as_f64().unwrap()),
            };
            group.set(name, value);
        }
    }
    optimizer
}

fn with_grads(c: &Call<'_>) -> Vec<Param> {
    let param = |g: &Tensor| {
        let p = Param::new(g.zeros_like());
        p.set_grad(Some(g.clone()));
        p
    };
    c.inputs.iter().map(param).collect()
}

const OPTIMIZERS: &[(&str, Operation)] = &[
    ("SGD", |c| steps(c, |groups, lr| Box::new(SGD::new(groups, lr)))),
    ("Adam", |c| steps(c, |groups, lr| Box::new(Adam::new(groups, lr)))),
    ("AdamW", |c| steps(c, |groups, lr| Box::new(AdamW::new(groups, lr)))),
    ("clip_grad_norm", |c| {
        let params = with_grads(c);
        let total = clip_grad_norm_with(&params, c.float("max_norm"), c.float("p"));
        [total].into_iter().chain(params.iter().map(|p| p.grad().unwrap())).collect()
    }),
    ("clip_grad_value", |c| {
        let params = with_grads(c);
        clip_grad_value(&params, c.float("limit"));
        params.iter().map(|p| p.grad().unwrap()).collect()
    }),
];

/// A scheduler from its name and arguments.
fn scheduler(name: &str, a: &Value, optimizer: &mut SGD) -> Box<dyn LrScheduler + Send + Sync> {
    let n = |key: &str| a[key].as_u64().unwrap() as usize;
    let f = |key: &str| a[key].as_f64().unwrap();
    match name {
        "LambdaLR" => match a["function"].as_str().unwrap() {
            "inverse" => Box::new(LambdaLR::new(optimizer, |t| 1.0 / (1.0 + t as f64))),
            _ => Box::new(LambdaLR::new(optimizer, |t| 0.9f64.powi(t as i32))),
        },
        "MultiplicativeLR" => match a["function"].as_str().unwrap() {
            "inverse" => Box::new(MultiplicativeLR::new(optimizer, |t| 1.0 / (1.0 + t as f64))),
            _ => Box::new(MultiplicativeLR::new(optimizer, |t| 0.9f64.powi(t as i32))),
        },
        "CyclicLR" => {
            let mode = match a["mode"].as_str().unwrap() {
                "triangular" => CyclicMode::Triangular,
                "triangular2" => CyclicMode::Triangular2,
                _ => CyclicMode::ExpRange(f("gamma")),
            };
            let options = CyclicOptions {
                step_size_up: n("step_size_up"),
                step_size_down: a["step_size_down"].as_u64().map(|n| n as usize),
                mode,
                base_momentum: vec![f("base_momentum")],
                max_momentum: vec![f("max_momentum")],
                ..CyclicOptions::new(f("base_lr"), f("max_lr"))
            };
            Box::new(CyclicLR::with_options(optimizer, options))
        }
        "ChainedScheduler" => {
            let parts = a["schedulers"].as_array().unwrap();
            let parts = parts.iter().map(|p| scheduler(p[0].as_str().unwrap(), &p[1], optimizer)).collect();
            Box::new(ChainedScheduler::new(optimizer, parts))
        }
        "StepLR" => Box::new(StepLR::new(optimizer, n("step_size"), f("gamma"))),
        "MultiStepLR" => {
            let milestones: Vec<usize> =
                a["milestones"].as_array().unwrap().iter().map(|m| m.as_u64().unwrap() as usize).collect();
            Box::new(MultiStepLR::new(optimizer, &milestones, f("gamma")))
        }
        "ConstantLR" => Box::new(ConstantLR::new(optimizer, f("factor"), n("total_iters"))),
        "LinearLR" => {
            Box::new(LinearLR::new(optimizer, f("start_factor"), f("end_factor"), n("total_iters")))
        }
        "ExponentialLR" => Box::new(ExponentialLR::new(optimizer, f("gamma"))),
        "PolynomialLR" => Box::new(PolynomialLR::new(optimizer, n("total_iters"), f("power"))),
        "CosineAnnealingLR" => Box::new(CosineAnnealingLR::new(optimizer, n("T_max"), f("eta_min"))),
        "CosineAnnealingWarmRestarts" => {
            Box::new(CosineAnnealingWarmRestarts::new(optimizer, n("T_0"), n("T_mult"), f("eta_min")))
        }
        "OneCycleLR" => {
            let anneal_strategy = if a["anneal_strategy"] == "linear" { Anneal::Linear } else { Anneal::Cos };
            let options = OneCycleOptions {
                pct_start: f("pct_start"),
                anneal_strategy,
                three_phase: a["three_phase"].as_bool().unwrap(),
                div_factor: f("div_factor"),
                final_div_factor: f("final_div_factor"),
                ..OneCycleOptions::new(f("max_lr"), n("total_steps"))
            };
            Box::new(OneCycleLR::with_options(optimizer, options))
        }
        "SequentialLR" => {
            let parts = a["schedulers"].as_array().unwrap();
            let parts = parts.iter().map(|p| scheduler(p[0].as_str().unwrap(), &p[1], optimizer)).collect();
            let milestones: Vec<usize> =
                a["milestones"].as_array().unwrap().iter().map(|m| m.as_u64().unwrap() as usize).collect();
            Box::new(SequentialLR::new(optimizer, parts, &milestones))
        }
        other => panic!("no scheduler {other}"),
    }
}

fn fresh_optimizer(c: &Call<'_>) -> SGD {
    let group = |lr: &Value| {
        ParamGroup::new([Param::new(Tensor::ones(1, &Device::cpu()))]).with("lr", lr.as_f64().unwrap())
    };
    SGD::new(c.list("rates").iter().map(group).collect::<Vec<_>>(), 1.0).momentum(0.9)
}

fn rates(optimizer: &SGD, momentum: bool) -> Vec<f64> {
    let groups = optimizer.param_groups();
    let mut row: Vec<f64> = groups.iter().map(ParamGroup::lr).collect();
    if momentum {
        row.extend(groups.iter().map(|g| g.number("momentum")));
    }
    row
}

fn table(rows: Vec<Vec<f64>>, c: &Call<'_>) -> Vec<Tensor> {
    let flat: Vec<f64> = rows.iter().flatten().copied().collect();
    one(Tensor::from_slice(&flat, [rows.len(), flat.len() / rows.len()], c.device))
}

/// The learning rates (and for the one-cycle schedule the momenta) of all groups, epoch by epoch.
fn schedule(c: &Call<'_>) -> Vec<Tensor> {
    let mut optimizer = fresh_optimizer(c);
    let momentum = matches!(c.op, "OneCycleLR" | "CyclicLR");
    let mut made = scheduler(c.op, &c.args["schedule"], &mut optimizer);
    let mut rows = vec![rates(&optimizer, momentum)];
    for _ in 0..c.size("epochs") {
        made.step(&mut optimizer);
        rows.push(rates(&optimizer, momentum));
    }
    table(rows, c)
}

fn plateau(c: &Call<'_>) -> Vec<Tensor> {
    let a = &c.args["schedule"];
    let f = |key: &str| a[key].as_f64().unwrap();
    let mut optimizer = fresh_optimizer(c);
    let threshold = if a["threshold_mode"] == "abs" { ThresholdMode::Abs } else { ThresholdMode::Rel };
    let mut made = ReduceLROnPlateau::new(&mut optimizer)
        .mode(if a["mode"] == "max" { PlateauMode::Max } else { PlateauMode::Min })
        .factor(f("factor"))
        .patience(a["patience"].as_u64().unwrap() as usize)
        .threshold(f("threshold"), threshold)
        .cooldown(a["cooldown"].as_u64().unwrap() as usize)
        .min_lr(&[f("min_lr")]);
    let mut rows = vec![rates(&optimizer, false)];
    for metric in a["metrics"].as_array().unwrap() {
        made.step(metric.as_f64().unwrap(), &mut optimizer);
        rows.push(rates(&optimizer, false));
    }
    table(rows, c)
}

const SCHEDULES: &[(&str, Operation)] = &[
    ("MultiplicativeLR", schedule),
    ("CyclicLR", schedule),
    ("ChainedScheduler", schedule),
    ("LambdaLR", schedule),
    ("StepLR", schedule),
    ("MultiStepLR", schedule),
    ("ConstantLR", schedule),
    ("LinearLR", schedule),
    ("ExponentialLR", schedule),
    ("PolynomialLR", schedule),
    ("CosineAnnealingLR", schedule),
    ("CosineAnnealingWarmRestarts", schedule),
    ("OneCycleLR", schedule),
    ("SequentialLR", schedule),
    ("ReduceLROnPlateau", plateau),
];

fn values(module: &impl Module) -> Vec<Tensor> {
    module.parameters().iter().map(Param::value).collect()
}

const FRESH: &[(&str, Operation)] = &[
    ("fresh_linear", |c| seeded(c, || values(&Linear::new(c.size("in"), c.size("out"))))),
    ("fresh_embedding", |c| {
        seeded(c, || {
            let embedding = Embedding::new(c.size("n"), c.size("width"));
            values(&if c.args["padding_idx"].is_null() {
                embedding
            } else {
                embedding.padding_idx(c.int("padding_idx"))
            })
        })
    }),
    ("fresh_model", |c| {
        let (n, width, hidden) = (c.size("n"), c.size("width"), c.size("hidden"));
        seeded(c, || {
            let mut all = values(&Embedding::new(n, width));
            all.extend(values(&Linear::new(width, hidden)));
            all.extend(values(&Linear::new(hidden, 2)));
            all
        })
    }),
    ("init", |c| {
        use init::{FanMode, Nonlinearity};
        let fill = |name: &Value| {
            let p = Param::new(Tensor::zeros(c.sizes("shape"), c.device));
            match name.as_str().unwrap() {
                "uniform_" => init::uniform_(&p, -0.5, 2.0),
                "normal_" => init::normal_(&p, 0.5, 2.0),
                "xavier_uniform_" => init::xavier_uniform_(&p, 1.5),
                "xavier_normal_" => init::xavier_normal_(&p, 1.5),
                "kaiming_uniform_" => init::kaiming_uniform_(&p, FanMode::FanIn, Nonlinearity::Relu),
                "kaiming_uniform_(fan_out)" => {
                    init::kaiming_uniform_(&p, FanMode::FanOut, Nonlinearity::LeakyRelu(0.2));
                }
                "kaiming_normal_" => init::kaiming_normal_(&p, FanMode::FanIn, Nonlinearity::Tanh),
                "eye_" => init::eye_(&p),
                "constant_" => init::constant_(&p, 0.3),
                other => panic!("no initialiser {other}"),
            }
            p.value()
        };
        seeded(c, || no_grad(|| c.list("names").iter().map(fill).collect()))
    }),
];
