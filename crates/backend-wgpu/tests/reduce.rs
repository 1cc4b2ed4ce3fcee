//! Reductions on the GPU against the reference interpreter: every way of sharing them out.

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

fn floats(t: &Tensor) -> Vec<f64> {
    t.to(&Device::reference()).to_dtype(DType::F64).to_vec::<f64>().unwrap()
}

/// Sums of `n` normal numbers may be off by their rounding; what only chooses an element must have that element.
#[track_caller]
fn compare(what: &str, gpu: &Device, x: &Tensor, tolerance: f64, f: impl Fn(&Tensor) -> Tensor) {
    let (got, expected) = (f(&x.to(gpu)), f(x));
    assert_eq!((got.dtype(), got.shape()), (expected.dtype(), expected.shape()), "{what}");
    for (i, (a, b)) in floats(&got).into_iter().zip(floats(&expected)).enumerate() {
        assert!((a - b).abs() <= tolerance, "{what} of {:?}: element {i} is {a}, not {b}", x.shape());
    }
}

/// Few and many results, of few and many elements, that lie side by side or apart; long ones are cut into parts.
const SIZES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [3, 31, 1],
    [5, 33, 2],
    [2, 7, 9],
    [1, 5000, 1],
    [1, 70_001, 1],
    [300, 40, 1],
    [2, 1030, 17],
    [1, 9000, 8],
];

#[test]
fn sums_and_extremes_of_one_dimension_agree() {
    let Some(gpu) = gpu() else { return };
    for size in SIZES {
        let x = normal(&size, 1);
        let sum = 1e-6 * size[1] as f64 + 1e-6;
        compare("sum", &gpu, &x, sum, |x| x.sum(1));
        compare("mean", &gpu, &x, 1e-6, |x| x.mean(1));
        compare("max", &gpu, &x, 0.0, |x| x.max(1));
        compare("argmin", &gpu, &x, 0.0, |x| x.argmin(1));
        compare("sum of a transposed view", &gpu, &x, sum, |x| x.transpose(0, 2).sum(1));
    }
}

#[test]
fn sums_of_several_dimensions_and_of_all_agree() {
    let Some(gpu) = gpu() else { return };
    for size in [[2, 3, 4], [40, 6, 50], [1, 300, 33], [129, 1, 65]] {
        let x = normal(&size, 2);
        let sum = 1e-6 * (size[0] * size[1] * size[2]) as f64;
        compare("sum of the outer ones", &gpu, &x, sum, |x| x.sum([0, 2]));
        compare("sum of the last ones", &gpu, &x, sum, |x| x.sum([1, 2]));
        compare("sum of all", &gpu, &x, sum, |x| x.sum(..));
        let n = x.numel().div_ceil(3);
        compare("sum of every third", &gpu, &x, sum, |x| x.flatten(0, 2).slice_dim(0, 0, n, 3).sum(..));
    }
}
