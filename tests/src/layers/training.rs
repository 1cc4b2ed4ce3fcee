//! What surrounds a training step, by name; `parity/training_cases.py` has the other side.

use super::one;
use crate::operations::{Call, Operation, dtype};
use orkest_core::{DType, HookHandle, Param, Tensor, autocast, checkpoint, no_grad};
use orkest_nn::optim::SGD;
use orkest_nn::*;
use std::sync::{Arc, Mutex};

pub(super) const TRAINING: &[(&str, Operation)] = &[
    ("autocast", autocasted),
    ("GradScaler", grad_scaler),
    ("checkpoint", |c| {
        let nested = c.flag("nested");
        let whole = move |t: &[Tensor]| match nested {
            true => half(&checkpoint(|t| half(&t[0], &t[1]), &[&t[0], &t[1]]), &t[2]),
            false => half(&half(&t[0], &t[1]), &t[2]),
        };
        let (x, a, b) = (c.x(0), c.x(1), c.x(2));
        one(checkpoint(whole, &[&checkpoint(whole, &[x, a, b]), a, b]))
    }),
    ("hooks", hooks),
    ("AveragedModel", averaged),
];

fn half(x: &Tensor, weight: &Tensor) -> Tensor {
    x.linear(weight, None).tanh() * x.sum_keepdim(-1)
}

fn autocasted(c: &Call<'_>) -> Vec<Tensor> {
    let bias = (c.inputs.len() > 2).then(|| c.x(2));
    autocast(dtype(c.text("dtype")), || match c.op {
        "autocast/linear" => one(c.x(0).linear(c.x(1), bias)),
        "autocast/matmul" => one(c.x(0).matmul(c.x(1))),
        "autocast/conv2d" => one(c.x(0).conv2d(c.x(1), bias, 1, 1, 1, 1)),
        "autocast/scaled_dot_product_attention" => {
            let causal = c.flag("is_causal");
            one(c.x(0).scaled_dot_product_attention(c.x(1), c.x(2), None, 0.0, causal, None))
        }
        "autocast/mlp" => {
            let y = c.x(0).linear(c.x(1), None).exp().linear(c.x(2), None);
            let loss = MSELoss::new().forward(&y, c.x(3));
            vec![y, loss]
        }
        "autocast/recurrent" => recurrent(c),
        other => panic!("no case {other}"),
    })
}

/// The layer with the case's weights, and its outputs and states.
fn recurrent(c: &Call<'_>) -> Vec<Tensor> {
    let (input, hidden) = (c.size("input_size"), c.size("hidden_size"));
    let options = RecurrentOptions {
        num_layers: c.size("num_layers"),
        bidirectional: c.flag("bidirectional"),
        ..RecurrentOptions::default()
    };
    let state = &c.inputs[1 + c.list("names").len()..];
    let with_one_state = |(y, h): (Tensor, Tensor)| vec![y, h];
    match c.text("kind") {
        "RNN" => {
            let rnn = with_weights(c, 1, RNN::with_options(input, hidden, options));
            with_one_state(rnn.forward(c.x(0), state.first()))
        }
        "GRU" => {
            let gru = with_weights(c, 1, GRU::with_options(input, hidden, options));
            with_one_state(gru.forward(c.x(0), state.first()))
        }
        _ => {
            let lstm = with_weights(c, 1, LSTM::with_options(input, hidden, options));
            let (y, (h, s)) = lstm.forward(c.x(0), state.first().zip(state.get(1)));
            vec![y, h, s]
        }
    }
}

/// The module with the operands from number `first` on in place of its parameters.
fn with_weights<M: Module>(c: &Call<'_>, first: usize, module: M) -> M {
    let names: Vec<String> = module.named_parameters().into_iter().map(|(name, _)| name).collect();
    let expected: Vec<&str> = c.list("names").iter().map(|n| n.as_str().unwrap()).collect();
    assert_eq!(names, expected);
    for (i, param) in (first..).zip(module.parameters()) {
        param.set_value(c.x(i));
        c.params.borrow_mut().push((i, param));
    }
    module
}

fn grad_scaler(c: &Call<'_>) -> Vec<Tensor> {
    let (param, grads) = (Param::new(c.x(0).copy()), c.x(1));
    let mut optimizer = SGD::new([param.clone()], 0.1).momentum(0.9);
    let enabled = c.flag("enabled");
    let mut scaler = GradScaler::new()
        .init_scale(c.float("init_scale"))
        .growth_factor(c.float("growth_factor"))
        .backoff_factor(c.float("backoff_factor"))
        .growth_interval(c.size("growth_interval"))
        .enabled(enabled);
    let overflows = c.sizes("overflows");
    let (mut after, mut scales) = (Vec::new(), Vec::new());
    for t in 0..grads.size(0) {
        let one = Tensor::ones((), (grads.dtype(), c.device));
        let mut grad = scaler.scale(&one) * grads.select(0, t as isize);
        if enabled && overflows.contains(&t) {
            let bad = if t % 2 == 1 { f64::INFINITY } else { f64::NAN };
            let (shape, n) = (*grad.shape(), grad.numel());
            let last = Tensor::full(1, bad, (grad.dtype(), c.device));
            grad = Tensor::cat(&[grad.flatten(0, -1).narrow(0, 0, n - 1), last], 0).reshape(shape);
        }
        param.set_grad(Some(grad));
        if !c.args["max_norm"].is_null() {
            scaler.unscale_(&optimizer).unwrap();
            clip_grad_norm(std::slice::from_ref(&param), c.float("max_norm"));
        }
        let stepped = scaler.step(&mut optimizer).unwrap();
        assert_eq!(stepped, !(enabled && overflows.contains(&t)));
        scaler.update();
        after.push(param.value().copy());
        scales.push(scaler.get_scale());
    }
    vec![Tensor::stack(&after, 0), Tensor::new(&scales[..], (grads.dtype(), c.device))]
}

/// `forward(a, b) = (inner(a) inner(b), a + b, b.detach())`: a module with a signature of its own.
#[derive(Module)]
struct Product {
    inner: Linear,
}

impl Product {
    fn forward(&self, a: &Tensor, b: &Tensor) -> (Tensor, Tensor, Tensor) {
        (self.inner.forward(a) * self.inner.forward(b), a + b, b.detach())
    }
}

fn hooks(c: &Call<'_>) -> Vec<Tensor> {
    let count = c.size("count");
    let wanted: Vec<bool> = c.list("wanted").iter().map(|w| w == true).collect();
    let leaves: Vec<Tensor> = (0..count).map(|i| c.x(i).detach().copy().requires_grad_(wanted[i])).collect();
    let (width, x) = (c.size("width"), &leaves);
    match c.text("kind") {
        "Linear" => watched(c, Linear::new(width, 3), &leaves, |m| vec![m.forward(&x[0])]),
        "LSTM" => watched(c, LSTM::new(width, width), &leaves, |m| {
            let (y, (h, s)) = m.forward(&x[0], x.get(1).zip(x.get(2)));
            vec![y, h, s]
        }),
        "GRU" => watched(c, GRU::new(width, width), &leaves, |m| {
            let (y, h) = m.forward(&x[0], x.get(1));
            vec![y, h]
        }),
        "MultiheadAttention" => watched(c, MultiheadAttention::new(width, 1), &leaves, |m| {
            let (y, weights) = m.forward(&x[0], &x[1], &x[2]);
            vec![y, weights]
        }),
        _ => {
            let product = Product { inner: Linear::new(width, 3) };
            watched(c, product, &leaves, |m| {
                let (a, b, c) = m.call([&x[0], &x[1]], |m, [a, b]| m.forward(a, b));
                vec![a, b, c]
            })
        }
    }
}

/// What the hooks see, then the gradients of the leaves that want one and of the first parameter.
fn watched<M: Module>(
    c: &Call<'_>,
    module: M,
    leaves: &[Tensor],
    forward: impl FnOnce(&Hooked<M>) -> Vec<Tensor>,
) -> Vec<Tensor> {
    for (i, param) in (leaves.len()..).zip(module.parameters()) {
        param.set_value(c.x(i));
        param.set_requires_grad(i == leaves.len());
    }
    let module = Hooked::new(module);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let nothing = Tensor::zeros(1, (c.x(0).dtype(), c.device));
    let see = |seen: Arc<Mutex<Vec<Tensor>>>| {
        move |tensors: &[Tensor]| seen.lock().unwrap().extend(tensors.iter().map(|t| t.detach().copy()))
    };
    let replace = c.text("replace");
    let (inputs, outputs, gradients) = (replace == "inputs", replace == "outputs", replace == "gradients");
    let times = |tensors: &[Tensor], factor: f64| tensors.iter().map(|t| t * factor).collect::<Vec<_>>();

    let list = see(seen.clone());
    let pre = module.register_forward_pre_hook(move |x| {
        list(x);
        inputs.then(|| times(x, 2.0))
    });
    let list = see(seen.clone());
    let post = module.register_forward_hook(move |x, y| {
        list(x);
        list(y);
        outputs.then(|| times(y, 3.0))
    });
    let list = see(seen.clone());
    let backward = module.register_full_backward_hook(move |grad_inputs, grad_outputs| {
        let shown = |g: &Option<Tensor>| g.clone().unwrap_or_else(|| nothing.clone());
        list(&grad_inputs.iter().chain(grad_outputs).map(shown).collect::<Vec<_>>());
        gradients.then(|| grad_inputs.iter().map(|g| g.as_ref().map(|g| g * 0.5)).collect())
    });
    let results = forward(&module);
    let used = if c.text("used") == "all" { &results[..] } else { &results[..1] };
    let losses = used.iter().enumerate().filter(|(_, y)| y.requires_grad());
    let loss = losses.map(|(i, y)| (y * (i as f64 + 1.0)).square().sum(..)).reduce(|a, b| a + b);
    loss.unwrap().backward();
    [pre, post, backward].into_iter().for_each(HookHandle::remove);
    let mut all = seen.lock().unwrap().clone();
    let grad = |x: &Tensor| x.grad().unwrap_or_else(|| x.zeros_like()).detach();
    all.extend(leaves.iter().filter(|x| x.requires_grad()).map(grad));
    all.extend(module.parameters()[0].grad());
    all
}

fn averaged(c: &Call<'_>) -> Vec<Tensor> {
    let model = BatchNorm1d::new(c.size("num_features")).to_dtype(c.x(0).dtype()).to(c.device);
    let average = match c.args["decay"].as_f64() {
        Some(decay) => AveragedModel::ema(&model, decay),
        None => AveragedModel::new(&model),
    };
    let average = average.use_buffers(c.flag("use_buffers"));
    let count = model.num_batches_tracked.clone().unwrap();
    let values = |m: &BatchNorm1d| {
        let mut all: Vec<Tensor> = m.parameters().iter().map(Param::value).collect();
        all.extend([&m.running_mean, &m.running_var].map(|b| b.as_ref().unwrap().tensor()));
        Tensor::stack(&all, 0)
    };
    let rows: Vec<Tensor> = (0..c.x(0).size(0) as isize)
        .map(|t| {
            let value = |i: usize| c.x(i).select(0, t).copy();
            model.parameters().iter().enumerate().for_each(|(i, p)| p.set_value(&value(i)));
            let statistics = [&model.running_mean, &model.running_var];
            statistics.iter().zip(2..).for_each(|(b, i)| b.as_ref().unwrap().set(&value(i)));
            count.set(&(count.tensor() + 1));
            average.update_parameters(&model);
            no_grad(|| values(average.module()))
        })
        .collect();
    let n = Tensor::full((), average.n_averaged() as i64, (DType::I64, c.device));
    let mut out = vec![Tensor::stack(&rows, 0), n];
    if !c.flag("use_buffers") {
        out.push(average.module().num_batches_tracked.as_ref().unwrap().tensor());
    }
    out
}
