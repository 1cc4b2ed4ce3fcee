//! Mixed precision, checkpoints and data loaders do on the GPU what they do on the CPU.

use orkest::prelude::*;
use orkest_tests::conformance::turn;

/// The first adapter, if there is one. With `ORKEST_REQUIRE_GPU=1` there must be.
fn gpu() -> Option<Device> {
    match Device::wgpu(0) {
        Ok(device) => Some(device),
        Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(_) => None,
    }
}

fn wave(shape: &[usize], device: &Device) -> Tensor {
    let n: usize = shape.iter().product();
    (Tensor::arange(0.0, n as f64, 1.0, device) * 0.7).sin().reshape(shape)
}

fn numbers(tensors: impl IntoIterator<Item = Tensor>) -> Vec<Vec<f32>> {
    tensors.into_iter().map(|t| t.to_vec().unwrap()).collect()
}

#[test]
fn f16_training_agrees_with_the_cpu() {
    let _turn = turn();
    let Some(gpu) = gpu() else { return };
    let train = |device: &Device| {
        manual_seed(5);
        let net = sequential![Linear::new(8, 16), ReLU, LayerNorm::new(16), Linear::new(16, 3)].to(device);
        let mut optimizer = Adam::new(net.parameters(), 1e-2);
        let mut scaler = GradScaler::new();
        let dataset = TensorDataset::new((wave(&[12, 8], &Device::cpu()), Tensor::arange(0, 12, 1, ()) % 3));
        let loader = DataLoader::new(dataset).batch_size(4).shuffle(true).num_workers(2).device(device);
        let mut losses = Vec::new();
        for _ in 0..4 {
            for (x, target) in &loader {
                assert_eq!(x.device(), device);
                optimizer.zero_grad();
                let loss = autocast(DType::F16, || {
                    let y = net.forward(&x);
                    assert_eq!(y.dtype(), DType::F16);
                    CrossEntropyLoss::new().forward(&y, &target)
                });
                scaler.scale(&loss).backward();
                assert!(scaler.step(&mut optimizer).unwrap());
                scaler.update();
                losses.push(loss.item().unwrap());
            }
        }
        losses
    };
    let (expected, found) = (train(&Device::cpu()), train(&gpu));
    assert!(expected.iter().zip(&found).all(|(a, b)| (a - b).abs() < 5e-3), "{expected:?}\n{found:?}");
}

#[test]
fn checkpoints_draw_the_same_masks_again() {
    let _turn = turn();
    for device in [Some(Device::cpu()), gpu()].into_iter().flatten() {
        manual_seed(1);
        let net =
            sequential![Linear::new(8, 32), GELU::new(), Dropout::new(0.5), Linear::new(32, 8)].to(&device);
        let gradients = |checkpointed: bool| {
            manual_seed(2);
            net.zero_grad();
            let x = wave(&[6, 8], &device).requires_grad_(true);
            let twice = net.clone();
            let y = match checkpointed {
                true => checkpoint(move |x| twice.forward(&twice.forward(&x[0])), &[&x]),
                false => net.forward(&net.forward(&x)),
            };
            y.square().mean(..).backward();
            numbers(net.parameters().iter().filter_map(Param::grad).chain(x.grad()))
        };
        let plain = gradients(false);
        assert_eq!(plain.len(), 5);
        assert_eq!(gradients(true), plain, "{device}");
    }
}
