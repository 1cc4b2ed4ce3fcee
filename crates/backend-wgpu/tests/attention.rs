//! Attention on the GPU against its lowering on the reference interpreter.

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

/// Normal numbers on the reference device.
fn normal(shape: &[usize], seed: u64) -> Tensor {
    let mut out = vec![0.0; shape.iter().product()];
    Generator::new(seed).fill_normal_f32(&mut out, 0.0, 1.0);
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

/// What differs between cases of [`compare`].
#[derive(Clone, Copy)]
struct Case<'a> {
    dtype: DType,
    causal: bool,
    mask: Option<&'a Tensor>,
}

const PLAIN: Case<'static> = Case { dtype: DType::F32, causal: false, mask: None };

/// Runs on both devices, forward and backward; the reference device computes in f32 from the same numbers.
#[track_caller]
fn compare(
    what: &str,
    device: &Device,
    case: Case<'_>,
    [q, k, v]: [&Tensor; 3],
    view: impl Fn(&Tensor) -> Tensor,
) {
    let run = |device: &Device, compute: DType| {
        let on = |t: &Tensor| t.to_dtype(case.dtype).to_dtype(compute).to(device);
        let leaves = [q, k, v].map(|t| on(t).requires_grad_(true));
        let [q, k, v] = [0, 1, 2].map(|i| view(&leaves[i]));
        let mask = case.mask.map(|m| if m.dtype() == DType::Bool { m.to(device) } else { on(m) });
        let y = q.scaled_dot_product_attention(&k, &v, mask.as_ref(), 0.0, case.causal, None);
        let g = on(&normal(y.shape(), 99));
        y.backward_with(Some(&g), BackwardOptions::default());
        let mut all = vec![y.detach()];
        all.extend(leaves.iter().map(|t| t.grad().unwrap()));
        all.into_iter().map(|t| t.to_dtype(case.dtype)).collect::<Vec<_>>()
    };
    let tolerance = match case.dtype {
        DType::F16 => 5e-3,
        DType::BF16 => 4e-2,
        _ => 1e-5,
    };
    let (got, expected) = (run(device, case.dtype), run(&Device::reference(), DType::F32));
    for ((part, a), b) in ["y", "dq", "dk", "dv"].iter().zip(&got).zip(&expected) {
        assert_close(&format!("{what} {}: {part}", case.dtype), a, b, tolerance);
    }
}

#[test]
fn attention_agrees_for_all_sizes() {
    let Some(gpu) = gpu() else { return };
    // b, h, t, s, d, e
    let sizes = [
        [1, 1, 1, 1, 1, 1],
        [2, 3, 5, 7, 4, 6],
        [1, 2, 31, 33, 8, 8],
        [2, 1, 32, 32, 32, 32],
        [1, 2, 33, 65, 33, 16],
        [1, 1, 70, 40, 64, 64],
        [1, 1, 17, 100, 100, 31],
        [1, 1, 40, 40, 128, 128],
        [1, 1, 3, 2, 12, 127],
        // More scores of a head than are computed at once where they are stored.
        [1, 2, 1030, 1020, 2, 3],
    ];
    for size @ [b, h, t, s, d, e] in sizes {
        let (q, k, v) = (normal(&[b, h, t, d], 1), normal(&[b, h, s, d], 2), normal(&[b, h, s, e], 3));
        for causal in [false, true] {
            let case = Case { causal, ..PLAIN };
            compare(&format!("{size:?} causal {causal}"), &gpu, case, [&q, &k, &v], Tensor::clone);
        }
    }
}

#[test]
fn masks_of_every_kind_agree() {
    let Some(gpu) = gpu() else { return };
    let (b, h, t, s) = (2, 3, 35, 37);
    let (q, k, v) = (normal(&[b, h, t, 8], 1), normal(&[b, h, s, 8], 2), normal(&[b, h, s, 8], 3));
    for shape in [vec![b, h, t, s], vec![b, 1, 1, s], vec![1, h, t, 1], vec![t, s], vec![s], vec![1]] {
        let float = normal(&shape, 4);
        let bool_mask = float.gt(-0.5);
        let holes = float.masked_fill(&bool_mask.logical_not(), f64::NEG_INFINITY);
        for (what, mask) in [("bool", &bool_mask), ("float", &float), ("holes", &holes)] {
            let case = Case { mask: Some(mask), ..PLAIN };
            compare(&format!("{what} {shape:?}"), &gpu, case, [&q, &k, &v], Tensor::clone);
        }
    }
    let mask = normal(&[s, t], 5).gt(0.0).t();
    compare("transposed mask", &gpu, Case { mask: Some(&mask), ..PLAIN }, [&q, &k, &v], Tensor::clone);
    let nothing = Tensor::full([1, 1], false, &Device::reference());
    compare("nothing to see", &gpu, Case { mask: Some(&nothing), ..PLAIN }, [&q, &k, &v], Tensor::clone);
}

#[test]
fn layouts_and_half_precision_agree() {
    let Some(gpu) = gpu() else { return };
    let [q, k, v] = [1, 2, 3].map(|seed| normal(&[2, 34, 3, 8], seed));
    compare("heads inside", &gpu, PLAIN, [&q, &k, &v], |t| t.transpose(1, 2));
    compare("flipped", &gpu, PLAIN, [&q, &k, &v], |t| t.transpose(1, 2).flip(&[1, 2]));
    compare("columns apart", &gpu, PLAIN, [&q, &k, &v], |t| t.transpose(1, 3));
    for dtype in [DType::F16, DType::BF16] {
        let mask = normal(&[34, 34], 5);
        compare("causal", &gpu, Case { dtype, causal: true, mask: None }, [&q, &k, &v], |t| {
            t.transpose(1, 2)
        });
        let case = Case { dtype, causal: false, mask: Some(&mask) };
        compare("masked", &gpu, case, [&q, &k, &v], |t| t.transpose(1, 2));
    }
}

#[test]
fn large_scores_do_not_overflow_and_nan_stays_in_its_row() {
    let Some(gpu) = gpu() else { return };
    let (k, v) = (normal(&[1, 1, 40, 8], 2), normal(&[1, 1, 40, 8], 3));
    let q = normal(&[1, 1, 40, 8], 1);
    compare("steep", &gpu, PLAIN, [&(&q * 5.0), &k, &v], Tensor::clone);
    let q = q * 3e3;
    let y = q.to(&gpu).scaled_dot_product_attention(&k.to(&gpu), &v.to(&gpu), None, 0.0, false, None);
    assert_close("large", &y, &q.scaled_dot_product_attention(&k, &v, None, 0.0, false, None), 1e-5);
    let mut values = normal(&[1, 1, 40, 8], 1).to_vec::<f32>().unwrap();
    values[8 * 5] = f32::NAN;
    values[8 * 9 + 1] = f32::INFINITY;
    let q = Tensor::from_slice(&values, [1, 1, 40, 8], &Device::reference());
    let y = q.to(&gpu).scaled_dot_product_attention(&k.to(&gpu), &v.to(&gpu), None, 0.0, false, None);
    assert_close("not finite", &y, &q.scaled_dot_product_attention(&k, &v, None, 0.0, false, None), 1e-5);
}

#[test]
fn attention_has_the_same_bits_every_time() {
    let Some(gpu) = gpu() else { return };
    let [q, k, v] = [1, 2, 3].map(|seed| normal(&[2, 2, 100, 16], seed).to(&gpu));
    let g = normal(&[2, 2, 100, 16], 4).to(&gpu);
    let run = || {
        let leaves = [&q, &k, &v].map(|t| t.detach().requires_grad_(true));
        let y = leaves[0].scaled_dot_product_attention(&leaves[1], &leaves[2], None, 0.0, true, None);
        y.backward_with(Some(&g), BackwardOptions::default());
        let mut all = y.to_vec::<f32>().unwrap();
        all.extend(leaves.iter().flat_map(|t| t.grad().unwrap().to_vec::<f32>().unwrap()));
        all.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let first = run();
    for _ in 0..5 {
        assert_eq!(run(), first);
    }
}
