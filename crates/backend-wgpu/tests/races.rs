//! The hunt for races: every kernel that shares memory among invocations, many times on large shapes, must give the same bits.
//!
//! Software adapters run workgroups in one fixed order, so this says something on hardware only; `ORKEST_HUNT_RACES=N` runs it `N` times
//! on any adapter.

use orkest_core::{DType, Device, Generator, Tensor, einsum};

/// The first adapter, if it is hardware or asked for, and how often everything runs.
fn hardware() -> Option<(Device, usize)> {
    let asked = std::env::var("ORKEST_HUNT_RACES").ok().and_then(|n| n.parse().ok());
    match orkest_wgpu::adapters().first() {
        Some(adapter) if asked.is_some() || adapter.info.device_type != wgpu::DeviceType::Cpu => {
            Some((Device::wgpu(0).unwrap(), asked.unwrap_or(30)))
        }
        Some(adapter) => {
            println!("skipped: {} is software", adapter.info.name);
            None
        }
        None => {
            println!("skipped: no adapter");
            None
        }
    }
}

fn normal(shape: &[usize], seed: u64, device: &Device) -> Tensor {
    let mut out = vec![0.0; shape.iter().product()];
    Generator::new(seed).fill_normal_f32(&mut out, 0.0, 1.0);
    Tensor::from_slice(&out, shape, device)
}

/// Numbers below `n`, most of them many times.
fn positions(shape: &[usize], n: usize, device: &Device) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<i64> = (0..count).map(|i| ((i * 7919 + i / 3) % n) as i64).collect();
    Tensor::from_slice(&values, shape, device)
}

/// The result of `f` and the gradients of its inputs.
fn with_gradients(f: impl Fn(&[Tensor]) -> Tensor, inputs: &[Tensor]) -> Vec<Tensor> {
    let inputs: Vec<Tensor> = inputs.iter().map(|x| x.detach().requires_grad_(true)).collect();
    let y = f(&inputs);
    (y.square().sum(..) * 0.5).backward();
    inputs.iter().map(|x| x.grad().expect("every input has a gradient")).chain([y.detach()]).collect()
}

#[test]
fn large_launches_give_the_same_bits_every_time() {
    let Some((device, times)) = hardware() else { return };
    let d = &device;
    let n = |shape: &[usize], seed: u64| normal(shape, seed, d);
    let half = |shape: &[usize], seed: u64| normal(shape, seed, d).to_dtype(DType::F16);
    let (a, b) = (n(&[517, 1030], 1), n(&[1030, 777], 2));
    let (skinny_a, skinny_b) = (n(&[16, 20000], 3), n(&[20000, 24], 4));
    let (a16, b16) = (half(&[512, 1024], 5), half(&[1024, 768], 6));
    let rows = n(&[3000, 1111], 7);
    let (weight, bias) = (n(&[1111], 8), n(&[1111], 9));
    let classes = positions(&[3000], 1111, d);
    let [q, k, v] = [10, 11, 12].map(|seed| n(&[4, 8, 300, 64], seed));
    let image = n(&[8, 16, 60, 60], 13);
    let kernel = n(&[32, 16, 3, 3], 14);
    let table = n(&[500, 96], 15);
    let words = positions(&[64, 200], 500, d);
    let long = n(&[1 << 21], 16);
    let few = positions(&[200_000], 11, d);
    let spread = n(&[200_000, 3], 17);
    type Case<'a> = (&'a str, Box<dyn Fn() -> Vec<Tensor> + 'a>);
    let cases: Vec<Case<'_>> = vec![
        ("matmul", Box::new(|| with_gradients(|x| x[0].matmul(&x[1]), &[a.clone(), b.clone()]))),
        ("matmul by parts", Box::new(|| vec![skinny_a.matmul(&skinny_b)])),
        ("matmul f16", Box::new(|| vec![a16.matmul(&b16)])),
        (
            "matmul of transposed factors",
            Box::new(|| vec![a.t().matmul(&b.t().narrow(0, 0, 517)), a.matmul(&a.t()), a16.t().matmul(&a16)]),
        ),
        (
            "linear with activation",
            Box::new(|| with_gradients(|x| x[0].linear(&x[1], None).gelu(), &[a.clone(), b.t().copy()])),
        ),
        (
            "matrix times vector",
            Box::new(|| vec![a.matmul(&b.narrow(1, 5, 1)), a.narrow(0, 3, 1).matmul(&b)]),
        ),
        ("transposed copies", Box::new(|| vec![a.t().contiguous(), q.transpose(2, 3).contiguous()])),
        ("einsum", Box::new(|| vec![einsum("bhtd,bhsd->bhts", &[&q, &k])])),
        ("softmax", Box::new(|| with_gradients(|x| x[0].softmax(-1), std::slice::from_ref(&rows)))),
        ("log_softmax", Box::new(|| with_gradients(|x| x[0].log_softmax(-1), std::slice::from_ref(&rows)))),
        (
            "layer_norm",
            Box::new(|| {
                let norm = |x: &[Tensor]| x[0].layer_norm(1111, Some(&x[1]), Some(&x[2]), 1e-5);
                with_gradients(norm, &[rows.clone(), weight.clone(), bias.clone()])
            }),
        ),
        (
            "rms_norm",
            Box::new(|| {
                with_gradients(|x| x[0].rms_norm(1111, Some(&x[1]), None), &[rows.clone(), weight.clone()])
            }),
        ),
        (
            "rows in halves",
            Box::new(|| {
                let halves = rows.to_dtype(DType::F16);
                vec![halves.softmax(-1), halves.log_softmax(-1), halves.layer_norm(1111, None, None, 1e-5)]
            }),
        ),
        (
            "short rows",
            Box::new(|| {
                let short = rows.reshape([-1, 11]);
                with_gradients(|x| x[0].softmax(-1).layer_norm(11, None, None, 1e-5), &[short])
            }),
        ),
        (
            "cross_entropy",
            Box::new(|| {
                with_gradients(|x| x[0].cross_entropy_rows(&classes, -100, 0.1), std::slice::from_ref(&rows))
            }),
        ),
        (
            "attention",
            Box::new(|| {
                let attend = |x: &[Tensor]| {
                    Tensor::scaled_dot_product_attention(&x[0], &x[1], &x[2], None, 0.0, true, None)
                };
                with_gradients(attend, &[q.clone(), k.clone(), v.clone()])
            }),
        ),
        (
            "attention with masks",
            Box::new(|| {
                let seen = a.narrow(0, 0, 300).narrow(1, 0, 300).gt(-1.0);
                let added = a.narrow(0, 0, 300).narrow(1, 0, 300).copy();
                let attend = |mask: &Tensor| {
                    let f = |x: &[Tensor]| {
                        Tensor::scaled_dot_product_attention(
                            &x[0],
                            &x[1],
                            &x[2],
                            Some(mask),
                            0.0,
                            false,
                            None,
                        )
                    };
                    with_gradients(f, &[q.clone(), k.clone(), v.clone()])
                };
                [attend(&seen), attend(&added)].concat()
            }),
        ),
        (
            "conv2d",
            Box::new(|| {
                let convolve = |x: &[Tensor]| x[0].conv2d(&x[1], None, 1, 1, 1, 1);
                with_gradients(convolve, &[image.clone(), kernel.clone()])
            }),
        ),
        (
            "max_pool2d",
            Box::new(|| with_gradients(|x| x[0].max_pool2d(3, 2, 1), std::slice::from_ref(&image))),
        ),
        ("sums", Box::new(|| vec![rows.sum(0), rows.sum(1), rows.sum(..), long.sum(..), long.argmax(0)])),
        (
            "reductions of every kind",
            Box::new(|| {
                let whole = long.mul(100.0).to_dtype(DType::I64).remainder(7);
                vec![
                    rows.max(0),
                    rows.max(1),
                    rows.argmin(0),
                    rows.argmax(1),
                    (&rows * 0.01 + 1.0).prod(1),
                    rows.gt(3.0).any(0),
                    rows.to_dtype(DType::F16).mean(0),
                    whole.sum(0),
                    whole.reshape([1 << 10, 1 << 11]).sum(0),
                    image.sum([0, 2, 3]),
                ]
            }),
        ),
        ("cumsum", Box::new(|| vec![long.cumsum(0), rows.cumsum(0), rows.cumsum(1), rows.cumprod(1)])),
        ("topk", Box::new(|| vec![rows.topk(9, -1, true).1, long.topk(100, 0, false).0])),
        ("sort", Box::new(|| vec![rows.sort(-1, false).1, long.narrow(0, 0, 70_000).sort(0, true).1])),
        ("embedding", Box::new(|| with_gradients(|x| x[0].rows(&words), std::slice::from_ref(&table)))),
        ("index_add", Box::new(|| vec![Tensor::zeros([11, 3], d).index_add(0, &few, &spread)])),
        (
            "scatter_add",
            Box::new(|| {
                let index = few.unsqueeze(1).expand([200_000, 3]);
                vec![Tensor::zeros([11, 3], d).scatter_add(0, &index, &spread)]
            }),
        ),
    ];
    for (name, run) in cases {
        let bytes = || -> Vec<Vec<u8>> { run().iter().map(|t| t.to_bytes().unwrap()).collect() };
        let first = bytes();
        for repeat in 1..times {
            assert!(bytes() == first, "{name}: repeat {repeat} gave other bits");
        }
    }
}
