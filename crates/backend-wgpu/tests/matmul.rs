//! Matrix products, convolution and pooling on the GPU against the reference interpreter.

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

fn normal(shape: &[usize], seed: u64) -> Tensor {
    let mut out = vec![0.0; shape.iter().product()];
    Generator::new(seed).fill_normal_f32(&mut out, 0.0, 1.0);
    Tensor::from_slice(&out, shape, &Device::reference())
}

/// Small whole numbers of any dtype.
fn whole(shape: &[usize], seed: u64, dtype: DType) -> Tensor {
    let x = (normal(shape, seed) * 4.0).round();
    if dtype == DType::U8 { x.abs().to_dtype(dtype) } else { x.to_dtype(dtype) }
}

fn floats(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).to_vec::<f64>().unwrap()
}

/// The same on both devices, up to `tolerance` of the largest element.
#[track_caller]
fn assert_close(what: &str, gpu: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!((gpu.dtype(), gpu.shape()), (expected.dtype(), expected.shape()), "{what}");
    let expected = floats(expected);
    let largest = expected.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in floats(&gpu.to(&Device::reference())).into_iter().zip(expected).enumerate() {
        let close = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * largest;
        assert!(close, "{what}: element {i} is {a}, not {b}");
    }
}

/// Runs `f` on both devices.
#[track_caller]
fn compare(what: &str, device: &Device, inputs: &[Tensor], tolerance: f64, f: &dyn Fn(&[Tensor]) -> Tensor) {
    let moved: Vec<Tensor> = inputs.iter().map(|t| t.to(device)).collect();
    assert_close(what, &f(&moved), &f(inputs), tolerance);
}

#[test]
fn products_agree_on_every_layout() {
    let Some(gpu) = gpu() else { return };
    for (i, (m, n, k)) in
        [(1, 1, 1), (65, 31, 17), (8, 64, 4), (1, 70, 33), (70, 1, 33), (33, 129, 5), (9, 3, 40)]
            .into_iter()
            .enumerate()
    {
        let seed = i as u64;
        let (a, b) = (normal(&[m, k], seed), normal(&[k, n], seed + 50));
        let (at, bt) = (normal(&[k, m], seed), normal(&[n, k], seed + 50));
        compare("NN", &gpu, &[a.clone(), b.clone()], 1e-5, &|x| x[0].matmul(&x[1]));
        compare("NT", &gpu, &[a, bt.clone()], 1e-5, &|x| x[0].matmul(&x[1].t()));
        compare("TN", &gpu, &[at.clone(), b], 1e-5, &|x| x[0].t().matmul(&x[1]));
        compare("TT", &gpu, &[at, bt], 1e-5, &|x| x[0].t().matmul(&x[1].t()));
    }
    let (a, b) = (normal(&[2, 3, 1, 9, 14], 1), normal(&[3, 4, 14, 11], 2));
    compare("broadcast batches", &gpu, &[a, b], 1e-5, &|x| x[0].matmul(&x[1]));
    let (a, b) = (normal(&[2, 3, 2, 5, 6], 1), normal(&[2, 3, 2, 6, 7], 2));
    compare("batches that do not merge", &gpu, &[a, b], 1e-5, &|x| {
        x[0].permute([2, 0, 1, 3, 4]).matmul(&x[1].flip(&[1]).permute([2, 0, 1, 3, 4]))
    });
    let (a, b) = (normal(&[40, 24], 1), normal(&[24, 36], 2));
    compare("flipped and cut", &gpu, &[a, b], 1e-5, &|x| {
        x[0].narrow(0, 3, 20).flip(&[0, 1]).matmul(&x[1].narrow(1, 2, 30).flip(&[1]))
    });
    let heads = normal(&[2, 10, 3, 8], 4);
    compare("attention scores", &gpu, &[heads], 1e-5, &|x| {
        let q = x[0].transpose(1, 2);
        q.matmul(&q.transpose(-2, -1))
    });
}

#[test]
fn products_of_every_dtype_agree() {
    let Some(gpu) = gpu() else { return };
    for (m, n, k) in [(20, 36, 24), (19, 33, 7), (1, 44, 20), (12, 1, 28)] {
        let (a, b) = (normal(&[m, k], 5), normal(&[k, n], 6));
        for dtype in [DType::F16, DType::BF16] {
            let inputs = [a.to_dtype(dtype), b.to_dtype(dtype)];
            compare(&dtype.to_string(), &gpu, &inputs, dtype.epsilon(), &|x| x[0].matmul(&x[1]));
            let transposed = [a.t().contiguous().to_dtype(dtype), b.t().contiguous().to_dtype(dtype)];
            compare(&dtype.to_string(), &gpu, &transposed, dtype.epsilon(), &|x| x[0].t().matmul(&x[1].t()));
        }
        for dtype in [DType::I32, DType::I64, DType::U8] {
            let inputs = [whole(&[2, m, k], 7, dtype), whole(&[k, n], 8, dtype)];
            compare(&dtype.to_string(), &gpu, &inputs, 0.0, &|x| x[0].flip(&[1]).matmul(&x[1]));
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_rows() {
    let Some(gpu) = gpu() else { return };
    let mut values = vec![1.0f32; 70 * 10];
    values[3 * 10 + 2] = f32::NAN;
    values[65 * 10 + 9] = f32::INFINITY;
    values[69 * 10] = f32::NEG_INFINITY;
    let a = Tensor::from_slice(&values, [70, 10], &Device::reference());
    let b = normal(&[10, 67], 3);
    compare("NaN in rows", &gpu, &[a.clone(), b.clone()], 1e-5, &|x| x[0].matmul(&x[1]));
    compare("NaN in columns", &gpu, &[a, b], 1e-5, &|x| x[1].t().matmul(&x[0].t()));
}

#[test]
fn linear_layers_agree_with_their_gradients() {
    let Some(gpu) = gpu() else { return };
    let gradients = |x: &[Tensor]| {
        let leaves: Vec<Tensor> = x.iter().map(|t| t.detach().requires_grad_(true)).collect();
        let y = leaves[0].linear(&leaves[1], leaves.get(2));
        (&y * &y).sum(..).backward();
        leaves.iter().map(|t| t.grad().unwrap()).collect::<Vec<_>>()
    };
    for (shape, out) in
        [(vec![5, 7], 3), (vec![2, 17, 12], 20), (vec![1, 30], 9), (vec![8], 12), (vec![70, 16], 1)]
    {
        let features = shape[shape.len() - 1];
        let inputs = [normal(&shape, 1), normal(&[out, features], 2), normal(&[out], 3)];
        compare("with bias", &gpu, &inputs, 1e-5, &|x| x[0].linear(&x[1], Some(&x[2])));
        compare("without", &gpu, &inputs[..2], 1e-5, &|x| x[0].linear(&x[1], None));
        for count in [2, 3] {
            for i in 0..count {
                compare("gradient", &gpu, &inputs[..count], 1e-5, &|x| gradients(x).swap_remove(i));
            }
        }
        for dtype in [DType::F16, DType::BF16] {
            let inputs = inputs.clone().map(|t| t.to_dtype(dtype));
            compare("low precision", &gpu, &inputs, 2.0 * dtype.epsilon(), &|x| {
                x[0].linear(&x[1], Some(&x[2]))
            });
        }
    }
    let inputs = [normal(&[3, 4, 6, 8], 1), normal(&[10, 8], 2), normal(&[20], 3)];
    compare("rows that do not merge", &gpu, &inputs, 1e-5, &|x| {
        x[0].permute([1, 2, 0, 3]).linear(&x[1].flip(&[0]), Some(&x[2].narrow(0, 5, 10).flip(&[0])))
    });
}

#[test]
fn the_same_product_has_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let (a, b) = (normal(&[33, 2000], 1).to(&gpu), normal(&[2000, 65], 2).to(&gpu));
    let first = a.matmul(&b).to_vec::<f32>().unwrap();
    for _ in 0..5 {
        assert_eq!(a.matmul(&b).to_vec::<f32>().unwrap(), first);
    }
}

#[test]
fn convolutions_agree_with_their_gradients() {
    let Some(gpu) = gpu() else { return };
    // Input, weight, stride, padding, dilation, groups.
    type Case = ([usize; 4], [usize; 4], [usize; 2], [usize; 2], [usize; 2], usize);
    let cases: [Case; 6] = [
        ([2, 3, 9, 8], [5, 3, 3, 2], [1, 1], [0, 0], [1, 1], 1),
        ([2, 4, 7, 10], [6, 2, 3, 3], [2, 1], [1, 2], [1, 2], 2),
        ([1, 6, 5, 5], [6, 1, 3, 3], [1, 1], [1, 1], [1, 1], 6),
        ([3, 8, 6, 4], [12, 8, 1, 1], [1, 1], [0, 0], [1, 1], 1),
        ([3, 8, 6, 4], [12, 4, 1, 1], [1, 1], [0, 0], [1, 1], 2),
        ([1, 1, 1, 12], [2, 1, 1, 5], [1, 3], [0, 2], [1, 1], 1),
    ];
    for (input, weight, stride, padding, dilation, groups) in cases {
        let inputs = [normal(&input, 1), normal(&weight, 2), normal(&[weight[0]], 3)];
        let convolve = |x: &[Tensor]| x[0].conv2d(&x[1], x.get(2), stride, padding, dilation, groups);
        let what = format!("{input:?} * {weight:?}");
        compare(&what, &gpu, &inputs, 1e-5, &convolve);
        compare(&what, &gpu, &inputs[..2], 1e-5, &convolve);
        compare(&what, &gpu, &inputs, 1e-5, &|x| {
            convolve(&[x[0].flip(&[1, 3]), x[1].flip(&[0]), x[2].flip(&[0])])
        });
        compare(&what, &gpu, &inputs, 1e-5, &|x| {
            let turned = x[0].transpose(2, 3).contiguous().transpose(2, 3);
            convolve(&[turned, x[1].clone(), x[2].clone()])
        });
        for dtype in [DType::F16, DType::BF16] {
            let inputs = inputs.clone().map(|t| t.to_dtype(dtype));
            compare(&what, &gpu, &inputs, 2.0 * dtype.epsilon(), &convolve);
        }
        let gradients = |x: &[Tensor]| {
            let leaves: Vec<Tensor> = x.iter().map(|t| t.detach().requires_grad_(true)).collect();
            let y = convolve(&leaves);
            (&y * &y).sum(..).backward();
            leaves.iter().map(|t| t.grad().unwrap()).collect::<Vec<_>>()
        };
        for i in 0..3 {
            compare(&format!("gradient {i} of {what}"), &gpu, &inputs, 1e-5, &|x| {
                gradients(x).swap_remove(i)
            });
        }
    }
}

#[test]
fn a_convolution_too_large_for_its_patches_goes_by_parts() {
    let Some(gpu) = gpu() else { return };
    // 3 images of 6.5 million patch elements each: two at a time, then one.
    let (x, w) = (normal(&[3, 1, 260, 260], 1), normal(&[1, 1, 10, 10], 2));
    let x = x.to(&gpu);
    let y = x.conv2d(&w.to(&gpu), None, 1, 0, 1, 1);
    for image in 0..3 {
        let alone = x.narrow(0, image, 1).conv2d(&w.to(&gpu), None, 1, 0, 1, 1);
        assert_eq!(y.narrow(0, image, 1).to_vec::<f32>().unwrap(), alone.to_vec::<f32>().unwrap());
    }
}

#[test]
fn patches_agree_both_ways() {
    let Some(gpu) = gpu() else { return };
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I64, DType::U8] {
        let x = whole(&[2, 3, 7, 6], 1, dtype);
        compare("unfold", &gpu, &[x], 0.0, &|x| x[0].flip(&[2]).unfold([3, 2], [1, 2], [1, 0], [2, 3]));
        // (7 + 2 - 3) / 2 + 1 rows and (6 - 3) / 3 + 1 columns of windows.
        let patches = whole(&[2, 18, 8], 2, dtype);
        compare("fold", &gpu, &[patches], 0.0, &|x| {
            x[0].flip(&[2]).fold([7, 6], [3, 2], [1, 2], [1, 0], [2, 3])
        });
    }
}

#[test]
fn pools_agree_with_their_gradients() {
    let Some(gpu) = gpu() else { return };
    let x = normal(&[2, 3, 9, 7], 1);
    for (kernel, stride, padding) in
        [([2, 2], [2, 2], [0, 0]), ([3, 2], [2, 1], [1, 1]), ([5, 3], [1, 2], [2, 1])]
    {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = x.to_dtype(dtype);
            let what = format!("{kernel:?} {stride:?} {padding:?} {dtype}");
            let max = |x: &[Tensor]| x[0].flip(&[3]).max_pool2d_with_indices(kernel, stride, padding);
            compare(&format!("max of {what}"), &gpu, std::slice::from_ref(&x), 0.0, &|x| max(x).0);
            compare(&format!("its position, {what}"), &gpu, std::slice::from_ref(&x), 0.0, &|x| max(x).1);
            for include in [false, true] {
                let mean = |x: &Tensor| x.transpose(2, 3).avg_pool2d(kernel, stride, padding, include);
                let tolerance = 1e-6f64.max(dtype.epsilon());
                compare(&format!("mean {what}"), &gpu, std::slice::from_ref(&x), tolerance, &|x| mean(&x[0]));
                compare(
                    &format!("gradient of mean {what}"),
                    &gpu,
                    std::slice::from_ref(&x),
                    2.0 * tolerance,
                    &|x| {
                        let x = x[0].detach().requires_grad_(true);
                        let y = mean(&x);
                        y.backward_with(Some(&y.detach().flip(&[2])), Default::default());
                        x.grad().unwrap()
                    },
                );
            }
        }
    }
    let same = whole(&[1, 2, 6, 6], 4, DType::F32);
    compare("the first of equals", &gpu, &[same], 0.0, &|x| x[0].max_pool2d_with_indices(3, 1, 1).1);
    let mut values = floats(&x).into_iter().map(|v| v as f32).collect::<Vec<_>>();
    (values[3], values[4], values[60], values[100]) = (f32::NAN, f32::NAN, f32::NEG_INFINITY, f32::INFINITY);
    values[63..126].fill(f32::NEG_INFINITY);
    let odd = Tensor::from_slice(&values, [2, 3, 9, 7], &Device::reference());
    compare("NaN wins", &gpu, std::slice::from_ref(&odd), 0.0, &|x| x[0].max_pool2d_with_indices(3, 2, 1).0);
    compare("the last NaN wins", &gpu, &[odd], 0.0, &|x| x[0].max_pool2d_with_indices(3, 2, 1).1);
}
