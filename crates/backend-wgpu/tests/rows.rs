//! Softmax, normalisation and cross-entropy on the GPU against their lowerings on the reference interpreter.

use orkest_core::autograd::BackwardOptions;
use orkest_core::{DType, Device, Generator, Tensor};
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

/// Normal numbers times `scale`, on the reference device.
fn normal(shape: &[usize], scale: f64, seed: u64) -> Tensor {
    let mut out = vec![0.0; shape.iter().product()];
    Generator::new(seed).fill_normal_f32(&mut out, 0.0, scale);
    Tensor::from_slice(&out, shape, &Device::reference())
}

fn floats(t: &Tensor) -> Vec<f64> {
    t.to(&Device::reference()).to_dtype(DType::F64).to_vec::<f64>().unwrap()
}

/// Both hold the same up to `tolerance` times the largest finite element; NaN and infinities in the same places.
#[track_caller]
fn assert_close(what: &str, gpu: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!((gpu.dtype(), gpu.shape()), (expected.dtype(), expected.shape()), "{what}");
    let (got, expected) = (floats(gpu), floats(expected));
    let largest = expected.iter().filter(|x| x.is_finite()).fold(1e-30, |m: f64, x| m.max(x.abs()));
    for (i, (a, b)) in got.into_iter().zip(expected).enumerate() {
        let close = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * largest;
        assert!(close, "{what}: element {i} is {a}, not {b} (largest {largest})");
    }
}

fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 3e-3,
        DType::BF16 => 2e-2,
        _ => 1e-5,
    }
}

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Runs `f` on copies of the inputs on both devices, and backward from `g`; compares the result and the gradients of the float inputs.
/// The reference device computes in f32 from the same numbers.
#[track_caller]
fn compare(
    what: &str,
    device: &Device,
    dtype: DType,
    inputs: &[Tensor],
    g: &Tensor,
    f: impl Fn(&[Tensor]) -> Tensor,
) {
    let run = |device: &Device, compute: DType| {
        let inputs: Vec<Tensor> = inputs
            .iter()
            .map(|t| match t.dtype().is_float() {
                true => t.to_dtype(dtype).to_dtype(compute).to(device).requires_grad_(true),
                false => t.to(device),
            })
            .collect();
        let y = f(&inputs);
        let g = g.to_dtype(dtype).to_dtype(compute).to(device);
        y.backward_with(Some(&g), BackwardOptions::default());
        let mut all = vec![y.detach().to_dtype(dtype)];
        all.extend(inputs.iter().filter_map(Tensor::grad).map(|t| t.to_dtype(dtype)));
        all
    };
    let (got, expected) = (run(device, dtype), run(&Device::reference(), DType::F32));
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
        let part = if i == 0 { "result".into() } else { format!("gradient {i}") };
        assert_close(&format!("{what} {dtype}: {part}"), a, b, tolerance(dtype));
    }
}

const COLUMNS: [usize; 12] = [1, 2, 3, 16, 17, 64, 65, 255, 256, 257, 1000, 5000];

#[test]
fn softmax_agrees_on_rows_of_every_length() {
    let Some(gpu) = gpu() else { return };
    for cols in COLUMNS {
        for dtype in FLOATS {
            let shape = [3, cols];
            let (x, g) = (normal(&shape, 3.0, cols as u64), normal(&shape, 1.0, 7));
            compare(&format!("softmax {cols}"), &gpu, dtype, std::slice::from_ref(&x), &g, |t| {
                t[0].softmax(-1)
            });
            compare(&format!("log_softmax {cols}"), &gpu, dtype, &[x], &g, |t| t[0].log_softmax(-1));
        }
    }
}

#[test]
fn softmax_agrees_on_every_layout_and_many_rows() {
    let Some(gpu) = gpu() else { return };
    let (x, g) = (normal(&[700, 9], 3.0, 1), normal(&[9, 700], 1.0, 2));
    compare("transposed", &gpu, DType::F32, std::slice::from_ref(&x), &g, |t| t[0].t().softmax(-1));
    compare("along columns", &gpu, DType::F32, &[x.t()], &g, |t| t[0].softmax(0));
    let g = normal(&[350, 9], 1.0, 2);
    compare("sliced", &gpu, DType::F32, std::slice::from_ref(&x), &g, |t| {
        t[0].reshape([350, 2, 9]).select(1, 1).softmax(-1)
    });
    compare("flipped", &gpu, DType::F32, std::slice::from_ref(&x), &g, |t| {
        t[0].flip(&[1]).narrow(0, 11, 350).softmax(-1)
    });
    let g = normal(&[4, 1], 1.0, 2).expand([4, 300]);
    let x = normal(&[1, 300], 1.0, 3);
    compare("broadcast", &gpu, DType::F32, &[x], &g, |t| t[0].expand([4, 300]).log_softmax(-1));
}

#[test]
fn softmax_of_extreme_values_agrees() {
    let Some(gpu) = gpu() else { return };
    let inf = f32::INFINITY;
    let rows: [[f32; 5]; 10] = [
        [1e4, 1e4 - 1.0, -1e4, 0.0, 1e4],
        [-1e4, -1e4 + 2.0, -1e4, -1e4, -1e4],
        [-inf, 1.0, 2.0, -inf, 3.0],
        [-inf, -inf, -inf, -inf, 3.0],
        [-inf; 5],
        [inf, 1.0, 2.0, 3.0, 4.0],
        [inf, inf, 2.0, -inf, 4.0],
        [f32::NAN, 1.0, 2.0, 3.0, 4.0],
        [1.0, 2.0, 3.0, f32::NAN, -inf],
        [f32::MAX, f32::MIN, 0.0, 1.0, f32::MAX],
    ];
    for cols in [5, 300, 1000] {
        let mut values = Vec::new();
        for row in &rows {
            // The rest is small enough to leave the kind of the row as it is.
            values.extend(row);
            values
                .extend((5..cols).map(|i| if row[0] == -inf { -inf } else { row[4] - 1.0 - (i % 7) as f32 }));
        }
        let x = Tensor::from_slice(&values, [rows.len(), cols], &Device::reference());
        for log in [false, true] {
            let f = |x: &Tensor| if log { x.log_softmax(-1) } else { x.softmax(-1) };
            assert_close(&format!("{cols} {log}"), &f(&x.to(&gpu)), &f(&x), 1e-5);
        }
    }
}

#[test]
fn normalised_rows_agree() {
    let Some(gpu) = gpu() else { return };
    for cols in COLUMNS {
        for dtype in FLOATS {
            let shape = [2, 3, cols];
            // A mean far from zero would cost a one-pass variance its digits.
            let x = normal(&shape, 1.0, cols as u64) + 3.0;
            let (w, b) = (normal(&[cols], 1.0, 5), normal(&[cols], 1.0, 6));
            let g = normal(&shape, 1.0, 7);
            // Rows of one element have no variance, those of two always the same result.
            if cols > 2 {
                let all = [x.clone(), w.clone(), b.clone()];
                compare(&format!("layer_norm {cols}"), &gpu, dtype, &all, &g, |t| {
                    t[0].layer_norm(cols, Some(&t[1]), Some(&t[2]), 1e-5)
                });
                compare(&format!("layer_norm without bias {cols}"), &gpu, dtype, &all[..2], &g, |t| {
                    t[0].layer_norm(cols, Some(&t[1]), None, 1e-5)
                });
                compare(&format!("plain layer_norm {cols}"), &gpu, dtype, &all[..1], &g, |t| {
                    t[0].layer_norm(cols, None, None, 0.1)
                });
            }
            // The gradient of a row of one element is a difference of nearly equal numbers.
            let x = if cols == 1 { x / 8.0 } else { x };
            compare(&format!("rms_norm {cols}"), &gpu, dtype, &[x.clone(), w.clone()], &g, |t| {
                t[0].rms_norm(cols, Some(&t[1]), Some(0.1))
            });
            compare(&format!("plain rms_norm {cols}"), &gpu, dtype, &[x], &g, |t| {
                t[0].rms_norm(cols, None, Some(0.1))
            });
        }
    }
}

#[test]
fn gradients_of_norm_parameters_add_up_many_rows() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in [(1, 40), (63, 5), (64, 33), (65, 70), (1000, 31), (2500, 7)] {
        let (x, w) = (normal(&[rows, cols], 1.0, 1), normal(&[cols], 1.0, 2));
        let (b, g) = (normal(&[cols], 1.0, 3), normal(&[cols, rows], 1.0, 4).t());
        compare(&format!("{rows} x {cols}"), &gpu, DType::F32, &[x.clone(), w.clone(), b], &g, |t| {
            t[0].layer_norm(cols, Some(&t[1]), Some(&t[2]), 1e-5)
        });
        compare(&format!("rms {rows} x {cols}"), &gpu, DType::F32, &[x, w], &g, |t| {
            t[0].rms_norm(cols, Some(&t[1]), None)
        });
    }
}

fn targets(n: usize, classes: usize) -> Tensor {
    let values: Vec<i64> =
        (0..n).map(|i| if i % 5 == 3 { -100 } else { (i * 7919 % classes) as i64 }).collect();
    Tensor::from_slice(&values, [n], &Device::reference())
}

#[test]
fn cross_entropy_agrees() {
    let Some(gpu) = gpu() else { return };
    for cols in COLUMNS {
        for (rows, smoothing) in [(7, 0.0), (33, 0.1), (4, 1.0)] {
            for dtype in FLOATS {
                let (x, g) = (normal(&[rows, cols], 4.0, 1), normal(&[rows], 1.0, 2));
                compare(
                    &format!("{rows} x {cols}, {smoothing}"),
                    &gpu,
                    dtype,
                    &[x, targets(rows, cols)],
                    &g,
                    |t| t[0].cross_entropy_rows(&t[1], -100, smoothing),
                );
            }
        }
    }
    let (x, g) = (normal(&[6, 20], 4.0, 1), normal(&[1], 1.0, 2).expand([20]));
    let classes = targets(40, 6).clamp(0, 99);
    compare("strided", &gpu, DType::F32, &[x, classes], &g, |t| {
        t[0].t().cross_entropy_rows(&t[1].reshape([20, 2]).select(1, 0), i64::MIN + 1, 0.0)
    });
}

#[test]
fn cross_entropy_of_extreme_logits_agrees() {
    let Some(gpu) = gpu() else { return };
    let inf = f32::INFINITY;
    let rows: [[f32; 3]; 7] = [
        [1e4, -1e4, 0.0],
        [-1e4, -1e4, -1e4],
        [0.0, -inf, 1.0],
        [-inf, 5.0, -inf],
        [-inf, -inf, -inf],
        [f32::NAN, 0.0, 1.0],
        [0.0, inf, 1.0],
    ];
    let x = Tensor::new(rows, &Device::reference());
    for class in 0..3i64 {
        for smoothing in [0.0, 0.1] {
            let target = Tensor::from_slice(&[class; 7], [7], &Device::reference());
            let expected = x.cross_entropy_rows(&target, -100, smoothing);
            let got = x.to(&gpu).cross_entropy_rows(&target.to(&gpu), -100, smoothing);
            assert_close(&format!("class {class}, {smoothing}"), &got, &expected, 1e-5);
        }
    }
}

#[test]
fn results_have_the_same_bits_every_time() {
    let Some(gpu) = gpu() else { return };
    let x = normal(&[300, 257], 2.0, 1).to(&gpu);
    let (w, g) = (normal(&[257], 1.0, 2).to(&gpu), normal(&[300, 257], 1.0, 3).to(&gpu));
    let run = || {
        let (x, w) = (x.detach().requires_grad_(true), w.detach().requires_grad_(true));
        let y = x.layer_norm(257, Some(&w), None, 1e-5).softmax(-1);
        y.backward_with(Some(&g), BackwardOptions::default());
        [y.detach(), x.grad().unwrap(), w.grad().unwrap()]
            .map(|t| t.to_vec::<f32>().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>())
    };
    let first = run();
    for _ in 0..5 {
        assert_eq!(run(), first);
    }
}
