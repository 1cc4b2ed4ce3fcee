//! Optimizer steps on the GPU against their formulas on the reference interpreter.

use orkest_core::op::{AdamStep, SgdStep};
use orkest_core::{DType, Device, Generator, Op, Tensor, run_in_place};
use orkest_wgpu as _;

/// The first adapter, or `None` with a word about it.
fn gpu() -> Option<Device> {
    match Device::wgpu(0) {
        Ok(device) => Some(device),
        Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(_) => {
            println!("skipped: no adapter");
            None
        }
    }
}

/// Normal numbers on the reference device.
fn normal(n: usize, seed: u64) -> Tensor {
    let mut out = vec![0.0; n];
    Generator::new(seed).fill_normal_f32(&mut out, 0.0, 1.0);
    Tensor::from_slice(&out, [n], &Device::reference())
}

#[track_caller]
fn assert_close(what: &str, gpu: &Tensor, expected: &Tensor) {
    let (got, expected) = (gpu.to_vec::<f32>().unwrap(), expected.to_vec::<f32>().unwrap());
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
    for (i, (a, b)) in got.into_iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-5 * largest, "{what}: element {i} is {a}, not {b}");
    }
}

/// Gradients as optimizers meet them: some row-major, some not, some the piece of something larger.
fn gradient(n: usize, kind: usize, seed: u64) -> Tensor {
    match kind {
        0 => normal(n, seed),
        1 => normal(n, seed).flip(&[0]),
        2 => normal(3 * n, seed).narrow(0, n, n),
        _ => normal(1, seed).expand([n as isize]),
    }
}

/// Three steps of `op` over parameters of these sizes with `states` state tensors each, compared with `formula` on each parameter,
/// which gets the number of the step, the gradient, and the parameter with its states.
fn compare(
    what: &str,
    gpu: &Device,
    sizes: &[usize],
    states: usize,
    op: impl Fn(u64) -> Op,
    formula: impl Fn(u64, &Tensor, &mut [Tensor]),
) {
    // Squares are not negative.
    let start = |k: usize, i: usize, n: usize| normal(n, (100 * k + i) as u64).square();
    let mut expected: Vec<Vec<Tensor>> =
        (0..=states).map(|k| sizes.iter().enumerate().map(|(i, &n)| start(k, i, n)).collect()).collect();
    let mut got: Vec<Tensor> = expected.iter().flatten().map(|t| t.to(gpu)).collect();
    for t in 1..=3 {
        let grads: Vec<Tensor> = sizes
            .iter()
            .enumerate()
            .map(|(i, &n)| gradient(n, (i + t as usize) % 4, 1000 * t + i as u64))
            .collect();
        let on_gpu: Vec<Tensor> = grads.iter().map(|g| g.to(gpu)).collect();
        let inputs: Vec<&Tensor> = on_gpu.iter().collect();
        let mut targets: Vec<&mut Tensor> = got.iter_mut().collect();
        assert!(run_in_place("step", op(t), &inputs, &mut targets), "{what}: there is a kernel");
        for (i, g) in grads.iter().enumerate() {
            let mut all: Vec<Tensor> = expected.iter().map(|column| column[i].clone()).collect();
            formula(t, g, &mut all);
            for (column, value) in expected.iter_mut().zip(all) {
                column[i] = value;
            }
        }
    }
    for (i, (a, b)) in got.iter().zip(expected.iter().flatten()).enumerate() {
        assert_close(&format!("{what}: tensor {} of parameter {}", i / sizes.len(), i % sizes.len()), a, b);
    }
}

const SIZES: [&[usize]; 4] =
    [&[1], &[5, 1023], &[3000, 1, 1024, 1025, 7, 2, 100, 4096], &[300, 20, 1, 1, 5, 2000, 9, 10, 11, 12, 13]];

#[test]
fn adam_steps_follow_the_formula() {
    let Some(gpu) = gpu() else { return };
    let plain = AdamStep {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
        decoupled: false,
        amsgrad: false,
        maximize: false,
        step: 1,
    };
    let cases = [
        ("adam", plain),
        ("adam with decay", AdamStep { weight_decay: 0.1, ..plain }),
        ("adamw", AdamStep { weight_decay: 0.1, decoupled: true, ..plain }),
        ("amsgrad", AdamStep { amsgrad: true, ..plain }),
        ("maximize", AdamStep { maximize: true, weight_decay: 0.1, ..plain }),
    ];
    for (what, s) in cases {
        for sizes in SIZES {
            let states = if s.amsgrad { 3 } else { 2 };
            compare(
                what,
                &gpu,
                sizes,
                states,
                |step| Op::AdamStep(AdamStep { step, ..s }),
                |t, g, all| {
                    let mut p = all[0].clone();
                    let mut g = if s.maximize { -g } else { g.clone() };
                    if s.decoupled {
                        p *= 1.0 - s.lr * s.weight_decay;
                    } else {
                        g += &p * s.weight_decay;
                    }
                    all[1] = &all[1] * s.beta1 + &g * (1.0 - s.beta1);
                    all[2] = &all[2] * s.beta2 + g.square() * (1.0 - s.beta2);
                    if s.amsgrad {
                        all[3] = all[3].maximum(&all[2]);
                    }
                    let (first, second) = (1.0 - s.beta1.powi(t as i32), 1.0 - s.beta2.powi(t as i32));
                    let root = (all[all.len() - 1].clone() / second).sqrt() + s.eps;
                    all[0] = p - &all[1] / first / root * s.lr;
                },
            );
        }
    }
}

#[test]
fn sgd_steps_follow_the_formula() {
    let Some(gpu) = gpu() else { return };
    let plain = SgdStep {
        lr: 0.1,
        momentum: 0.0,
        dampening: 0.0,
        weight_decay: 0.0,
        nesterov: false,
        maximize: false,
        first: false,
    };
    let cases = [
        ("sgd", plain),
        ("decay", SgdStep { weight_decay: 0.1, maximize: true, ..plain }),
        ("momentum", SgdStep { momentum: 0.9, dampening: 0.3, ..plain }),
        ("nesterov", SgdStep { momentum: 0.9, nesterov: true, weight_decay: 0.1, ..plain }),
    ];
    for (what, s) in cases {
        for sizes in SIZES {
            let momentum = s.momentum != 0.0;
            let op = |step| Op::SgdStep(SgdStep { first: step == 1, ..s });
            compare(what, &gpu, sizes, usize::from(momentum), op, |t, g, all| {
                let g = if s.maximize { -g } else { g.clone() } + &all[0] * s.weight_decay;
                let mut direction = g.clone();
                if momentum {
                    all[1] = if t == 1 { g.clone() } else { &all[1] * s.momentum + &g * (1.0 - s.dampening) };
                    direction = if s.nesterov { &g + &all[1] * s.momentum } else { all[1].clone() };
                }
                all[0] = &all[0] - direction * s.lr;
            });
        }
    }
}

/// Half precision is computed in f32 and rounded once: what an f32 step makes of the same numbers, rounded.
#[test]
fn steps_of_half_precision_are_rounded_f32_steps() {
    let Some(gpu) = gpu() else { return };
    let adam = AdamStep {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-3,
        weight_decay: 0.1,
        decoupled: true,
        amsgrad: true,
        maximize: false,
        step: 3,
    };
    let sgd = SgdStep {
        lr: 0.1,
        momentum: 0.9,
        dampening: 0.0,
        weight_decay: 0.01,
        nesterov: true,
        maximize: false,
        first: false,
    };
    for dtype in [DType::F16, DType::BF16] {
        for (op, states) in [(Op::AdamStep(adam), 3), (Op::SgdStep(sgd), 1)] {
            let steps = |as_f32: bool| -> Vec<Vec<f32>> {
                let place = |x: Tensor| {
                    let rounded = x.to_dtype(dtype);
                    (if as_f32 { rounded.to_dtype(DType::F32) } else { rounded }).to(&gpu)
                };
                let grads = [place(normal(700, 1)), place(normal(5, 2))];
                let mut targets: Vec<Tensor> = (0..=states)
                    .flat_map(|k| [place(normal(700, 3 + k).square()), place(normal(5, 30 + k).square())])
                    .collect();
                let mut borrowed: Vec<&mut Tensor> = targets.iter_mut().collect();
                assert!(run_in_place("step", op.clone(), &[&grads[0], &grads[1]], &mut borrowed));
                let read = |t: &Tensor| t.to_dtype(dtype).to_dtype(DType::F32).to_vec::<f32>().unwrap();
                targets.iter().map(read).collect()
            };
            assert_eq!(steps(false), steps(true), "{dtype} {}", op.name());
        }
    }
}
