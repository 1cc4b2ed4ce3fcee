//! Mixed precision, checkpointing, freezing and tying, as a training loop uses them. Numbers are PyTorch's (2.15).

use orkest_core::{DType, Device, Param, Tensor, autocast, checkpoint, manual_seed};
use orkest_nn::optim::{AdamW, Optimizer, SGD};
use orkest_nn::{
    CrossEntropyLoss, Dropout, Embedding, GELU, Layer, LayerNorm, Linear, Module, ReLU, Sequential,
    sequential,
};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Seeds belong to one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wave(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    (Tensor::arange(0.0, n as f64, 1.0, ()) * 0.7).sin().reshape(shape)
}

#[test]
fn autocast_gives_pytorchs_losses_and_gradients() {
    // torch.manual_seed(5), this net, x = sin(0.7 i), under torch.autocast("cpu", dtype)
    let _alone = alone();
    let expected = [
        (DType::BF16, 1.068_492_5, 0.687_046_56, [0.098_144_53, -0.126_953_13, 0.028_808_594], 0.004),
        (DType::F16, 1.069_205_9, 0.687_907_34, [0.098_327_64, -0.127_197_27, 0.028_656_006], 0.0005),
    ];
    for (dtype, loss_expected, norm_expected, bias_expected, tolerance) in expected {
        manual_seed(5);
        let net = sequential![Linear::new(8, 16), ReLU, LayerNorm::new(16), Linear::new(16, 3)];
        let target = Tensor::new([0i64, 1, 2, 1], &Device::cpu());
        let loss = autocast(dtype, || {
            let y = net.forward(&wave(&[4, 8]));
            assert_eq!(y.dtype(), dtype);
            CrossEntropyLoss::new().forward(&y, &target)
        });
        assert_eq!(loss.dtype(), DType::F32);
        loss.backward();
        let close = |found: f64, expected: f64| {
            assert!((found - expected).abs() < tolerance, "{dtype}: {found}, PyTorch has {expected}");
        };
        close(loss.item().unwrap(), loss_expected);
        let params = net.parameters();
        assert!(params.iter().all(|p| p.grad().unwrap().dtype() == DType::F32));
        close(params[0].grad().unwrap().norm(2.0, ..).item().unwrap(), norm_expected);
        let bias = params[5].grad().unwrap().to_vec::<f32>().unwrap();
        bias.iter().zip(bias_expected).for_each(|(&found, expected)| close(found.into(), expected));
    }
}

#[test]
fn training_in_f16_goes_pytorchs_way() {
    let _alone = alone();
    manual_seed(0);
    let net = sequential![Linear::new(8, 32), GELU::new(), Linear::new(32, 3)];
    let mut optimizer = AdamW::new(net.parameters(), 1e-2);
    let mut scaler = orkest_nn::GradScaler::new();
    let (x, target) = (wave(&[16, 8]), Tensor::arange(0, 16, 1, ()) % 3);
    let mut losses = Vec::new();
    for _ in 0..60 {
        optimizer.zero_grad();
        let loss = autocast(DType::F16, || CrossEntropyLoss::new().forward(&net.forward(&x), &target));
        scaler.scale(&loss).backward();
        scaler.step(&mut optimizer).unwrap();
        scaler.update();
        losses.push(loss.item().unwrap());
    }
    let expected =
        [(0, 1.113_321_4), (9, 1.071_175_9), (19, 1.036_631_6), (39, 0.784_842_0), (59, 0.339_531_96)];
    for (step, expected) in expected {
        assert!(
            (losses[step] - expected).abs() < 1e-3,
            "step {step}: {}, PyTorch has {expected}",
            losses[step]
        );
    }
    assert!(net.parameters().iter().all(|p| p.dtype() == DType::F32));
}

/// Runs `net` whole, or in two checkpointed halves with a checkpoint inside.
fn gradients(net: &Sequential, checkpointed: bool) -> Vec<Vec<f32>> {
    manual_seed(7);
    net.zero_grad();
    let x = wave(&[6, 8]).requires_grad_(true);
    let y = if checkpointed {
        let (inner, outer) = (net.clone(), net.clone());
        let half = checkpoint(
            move |x| {
                let inner = inner.clone();
                checkpoint(move |x| inner.forward(&x[0]), &[&x[0].tanh()])
            },
            &[&x],
        );
        checkpoint(move |x| outer.forward(&x[0]), &[&half])
    } else {
        net.forward(&net.forward(&x.tanh()))
    };
    y.square().mean(..).backward();
    let params = net.parameters().into_iter().map(|p| p.grad().unwrap());
    params.chain(x.grad()).map(|g| g.to_vec().unwrap()).collect()
}

#[test]
fn a_checkpointed_model_has_the_same_gradients_to_the_last_bit() {
    let _alone = alone();
    manual_seed(1);
    let net = sequential![
        Linear::new(8, 32),
        GELU::new(),
        Dropout::new(0.4),
        LayerNorm::new(32),
        Linear::new(32, 8)
    ];
    assert_eq!(gradients(&net, true), gradients(&net, false));
}

/// A language model's head on its own embedding.
#[derive(Module)]
struct Tied {
    embedding: Embedding,
    head: Linear,
}

impl Tied {
    fn new() -> Tied {
        let embedding = Embedding::new(5, 4);
        let mut head = Linear::without_bias(4, 5);
        head.weight = embedding.weight.clone();
        Tied { embedding, head }
    }

    fn forward(&self, tokens: &Tensor) -> Tensor {
        self.head.forward(&self.embedding.forward(tokens))
    }
}

#[test]
fn a_tied_weight_is_one_parameter_under_two_names() {
    let _alone = alone();
    manual_seed(2);
    let model = Tied::new();
    assert_eq!((model.parameters().len(), model.num_parameters()), (1, 20));
    let state = model.state_dict();
    assert_eq!(state.keys().collect::<Vec<_>>(), ["embedding.weight", "head.weight"]);
    let mut optimizer = SGD::new(model.parameters(), 0.1);
    let tokens = Tensor::new([1i64, 3], &Device::cpu());
    model.forward(&tokens).sum(..).backward();

    // d/dW of sum(W[t] Wᵀ): the sum of the used rows everywhere, and the sum of all rows where a row is used
    let w = state["head.weight"].clone();
    let used = w.select(0, 1) + w.select(0, 3);
    let mut expected = used.unsqueeze(0).repeat([5, 1]);
    for row in [1, 3] {
        let both = expected.select(0, row) + w.sum(0);
        expected.slice_assign(row, &both);
    }
    let grad = model.embedding.weight.grad().unwrap();
    assert!((&grad - &expected).abs().max(..).item().unwrap() < 1e-6);
    optimizer.step();
    let moved = model.head.weight.value();
    assert!((&moved - (&w - &expected * 0.1)).abs().max(..).item().unwrap() < 1e-6);
    assert!(model.head.weight.is(&model.embedding.weight));

    let copy = model.deep_clone();
    assert!(copy.head.weight.is(&copy.embedding.weight) && !copy.head.weight.is(&model.head.weight));
    copy.load_state_dict(&state, true).unwrap();
    assert_eq!(copy.head.weight.value().to_vec::<f32>().unwrap(), w.to_vec::<f32>().unwrap());
}

#[test]
fn what_is_frozen_stays_as_it_is_and_is_saved() {
    let _alone = alone();
    manual_seed(3);
    let net = sequential![Linear::new(4, 4), ReLU, Linear::new(4, 2)];
    let values = || -> Vec<Vec<f32>> {
        net.parameters().iter().map(|p: &Param| p.value().to_vec().unwrap()).collect()
    };
    let backbone: Vec<Param> = net.iter().next().unwrap().parameters();
    backbone.iter().for_each(|p| p.set_requires_grad(false));
    let before = values();
    // Weight decay would move a parameter that is not skipped.
    let mut optimizer = AdamW::new(net.parameters(), 0.1);
    for _ in 0..2 {
        optimizer.zero_grad();
        net.forward(&wave(&[3, 4])).square().sum(..).backward();
        optimizer.step();
    }
    let after = values();
    assert_eq!((&after[0], &after[1]), (&before[0], &before[1]));
    assert_ne!(after[2], before[2]);
    assert!(backbone.iter().all(|p| p.grad().is_none()));
    assert_eq!(optimizer.state_dict().state.keys().collect::<Vec<_>>(), [&2, &3]);
    assert_eq!(net.state_dict().len(), 4);

    backbone.iter().for_each(|p| p.set_requires_grad(true));
    net.forward(&wave(&[3, 4])).square().sum(..).backward();
    optimizer.step();
    assert_ne!(values()[0], before[0]);
}
