//! Elementwise operations on the GPU against the reference interpreter.

use orkest_core::op::{Binary, Compare, Unary};
use orkest_core::{DType, Device, Generator, Tensor, bf16, f16};
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

const SPECIAL: [f32; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -2.5,
    3.0,
    1e-6,
    -1e-3,
    30.0,
    -30.0,
    90.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    1e30,
];

/// Values of all sizes, and special ones.
fn values(n: usize, seed: u64) -> Tensor {
    let mut out = vec![0.0; n];
    Generator::new(seed).fill_normal_f32(&mut out, 0.0, 2.0);
    for (i, x) in SPECIAL.iter().enumerate() {
        out[i * 7 % n] = *x;
    }
    Tensor::from_slice(&out, [n], &Device::reference())
}

fn floats(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).to_vec::<f64>().unwrap()
}

/// Both tensors hold the same up to `tolerance` (relative, with a floor of the same size).
#[track_caller]
fn assert_same(what: &str, gpu: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!((gpu.dtype(), gpu.shape()), (expected.dtype(), expected.shape()), "{what}");
    let back = gpu.to(&Device::reference());
    for (i, (a, b)) in floats(&back).into_iter().zip(floats(expected)).enumerate() {
        let close =
            a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * b.abs().max(tolerance);
        assert!(close, "{what}: element {i} is {a}, not {b}");
    }
}

/// One tensor as it is, transposed, sliced with steps, flipped, expanded and of six dimensions that do not merge.
fn views(t: &Tensor) -> Vec<Tensor> {
    let n = t.numel();
    let six = t.reshape([2, 2, 3, 2, 2, n as isize / 48]);
    vec![
        t.clone(),
        t.reshape([6, -1]).transpose(0, 1),
        t.reshape([-1, 2]).select(1, 1).flip(&[0]),
        t.reshape([1, 4, -1]).expand([3, 4, n as isize / 4]),
        six.permute([5, 2, 1, 4, 3, 0]),
    ]
}

#[test]
fn unary_functions_agree_on_every_layout() {
    let Some(gpu) = gpu() else { return };
    let x = values(960, 1);
    let functions = [
        Unary::Neg,
        Unary::Abs,
        Unary::Sign,
        Unary::Exp,
        Unary::Expm1,
        Unary::Log,
        Unary::Log1p,
        Unary::Log2,
        Unary::Log10,
        Unary::Sqrt,
        Unary::Rsqrt,
        Unary::Reciprocal,
        Unary::Square,
        Unary::Sin,
        Unary::Cos,
        Unary::Tan,
        Unary::Atan,
        Unary::Tanh,
        Unary::Sigmoid,
        Unary::LogSigmoid,
        Unary::Erf,
        Unary::Relu,
        Unary::Gelu,
        Unary::GeluTanh,
        Unary::Silu,
        Unary::Softplus { beta: 2.0, threshold: 3.0 },
        Unary::LeakyRelu(0.1),
        Unary::Elu(0.7),
        Unary::Clamp { min: -0.5, max: 1.5 },
        Unary::Floor,
        Unary::Ceil,
        Unary::Round,
        Unary::Trunc,
        Unary::IsNan,
        Unary::IsInf,
        Unary::IsFinite,
        Unary::LogicalNot,
    ];
    for f in functions {
        // Arguments of 1e30 have no meaningful sine in f32.
        let x = match f {
            Unary::Sin | Unary::Cos | Unary::Tan => x.where_lt_1e6(),
            _ => x.clone(),
        };
        for (i, view) in views(&x).iter().enumerate() {
            let what = format!("{} of view {i}", f.name());
            let on_gpu = views(&x.to(&gpu))[i].unary(f);
            assert_same(&what, &on_gpu, &view.unary(f), 4e-6);
        }
        for dtype in [DType::F16, DType::BF16] {
            let low = x.to_dtype(dtype);
            let tolerance = 1.01 * dtype.epsilon();
            assert_same(&format!("{} {dtype}", f.name()), &low.to(&gpu).unary(f), &low.unary(f), tolerance);
        }
        if f.keeps_integers() {
            for dtype in [DType::I32, DType::I64, DType::U8, DType::Bool] {
                let whole = Tensor::arange(-20, 20, 1, &Device::reference()).to_dtype(dtype);
                if dtype == DType::Bool && matches!(f, Unary::Neg) {
                    continue;
                }
                assert_same(&format!("{} {dtype}", f.name()), &whole.to(&gpu).unary(f), &whole.unary(f), 0.0);
            }
        }
    }
}

trait Tame {
    fn where_lt_1e6(&self) -> Tensor;
}

impl Tame for Tensor {
    fn where_lt_1e6(&self) -> Tensor {
        self.masked_fill(&self.abs().gt(1e6).logical_and(&self.isfinite()), 2.0)
    }
}

#[test]
fn unary_gradients_agree() {
    let Some(gpu) = gpu() else { return };
    let x = values(480, 2);
    let x = x.masked_fill(&x.abs().le(50.0).logical_not(), 0.7);
    let run = |x: &Tensor, f: &dyn Fn(&Tensor) -> Tensor| {
        let x = x.detach().requires_grad_(true);
        let weight = Tensor::arange(0, 480, 1, x.device()).to_dtype(DType::F32) / 100.0;
        (f(&x) * &weight).backward_with(Some(&Tensor::ones([480], x.device())), Default::default());
        x.grad().unwrap()
    };
    let functions: [(&str, fn(&Tensor) -> Tensor); 12] = [
        ("tanh", |x| x.tanh()),
        ("sigmoid", |x| x.sigmoid()),
        ("gelu", |x| x.unary(Unary::Gelu)),
        ("gelu_tanh", |x| x.unary(Unary::GeluTanh)),
        ("silu", |x| x.silu()),
        ("softplus", |x| x.softplus(2.0, 3.0)),
        ("elu", |x| x.elu(0.7)),
        ("leaky_relu", |x| x.leaky_relu(0.1)),
        ("relu", |x| x.relu()),
        ("erf", |x| x.erf()),
        ("sin", |x| x.sin()),
        ("clamp", |x| x.clamp(-0.5, 1.5)),
    ];
    for (name, f) in functions {
        // Where a function is flat, f32 has lost the digits of its slope before the gradient sees them: an absolute floor.
        let difference = run(&x.to(&gpu), &f).to(&Device::reference()) - run(&x, &f);
        let worst = floats(&difference).into_iter().map(f64::abs).fold(0.0, f64::max);
        assert!(worst < 3e-6, "gradient of {name}: off by {worst}");
    }
}

#[test]
fn binary_functions_agree_on_every_layout() {
    let Some(gpu) = gpu() else { return };
    let (a, b) = (values(960, 3), values(960, 4).flip(&[0]));
    for &f in Binary::ALL {
        let apply = |a: &Tensor, b: &Tensor| match f {
            Binary::Add => a.add(b),
            Binary::Sub => a.sub(b),
            Binary::Mul => a.mul(b),
            Binary::Div => a.div(b),
            Binary::Pow => a.pow(b),
            Binary::Remainder => a.remainder(b),
            Binary::Maximum => a.maximum(b),
            Binary::Minimum => a.minimum(b),
            Binary::Atan2 => a.atan2(b),
        };
        for i in 0..5 {
            let what = format!("{} of view {i}", f.name());
            let on_gpu = apply(&views(&a.to(&gpu))[i], &views(&b.to(&gpu))[i]);
            assert_same(&what, &on_gpu, &apply(&views(&a)[i], &views(&b)[i]), 4e-6);
        }
        for scalar in [2.0, -0.5, 3.0] {
            let f = |a: &Tensor| match f {
                Binary::Add => a.add(scalar),
                Binary::Sub => a.sub(scalar),
                Binary::Mul => a.mul(scalar),
                Binary::Div => a.div(scalar),
                Binary::Pow => a.pow(scalar),
                Binary::Remainder => a.remainder(scalar),
                Binary::Maximum => a.maximum(scalar),
                Binary::Minimum => a.minimum(scalar),
                Binary::Atan2 => a.atan2(scalar),
            };
            assert_same(&format!("scalar {scalar}"), &f(&a.to(&gpu)), &f(&a), 4e-6);
        }
        if matches!(f, Binary::Div | Binary::Atan2) {
            continue;
        }
        let whole = Tensor::arange(-24, 24, 1, &Device::reference());
        let other = Tensor::arange(-12, 36, 1, &Device::reference()).remainder(5).add(1);
        for dtype in [DType::I64, DType::I32, DType::U8] {
            let (a, b) = (whole.to_dtype(dtype), other.to_dtype(dtype));
            assert_same(
                &format!("{} {dtype}", f.name()),
                &apply(&a.to(&gpu), &b.to(&gpu)),
                &apply(&a, &b),
                0.0,
            );
        }
    }
}

#[test]
fn comparisons_and_choices_agree() {
    let Some(gpu) = gpu() else { return };
    let (a, b) = (values(960, 5), values(960, 5).flip(&[0]));
    let compare = |f: Compare, a: &Tensor, b: &Tensor| match f {
        Compare::Eq => a.eq(b),
        Compare::Ne => a.ne(b),
        Compare::Lt => a.lt(b),
        Compare::Le => a.le(b),
        Compare::Gt => a.gt(b),
        Compare::Ge => a.ge(b),
    };
    for &f in Compare::ALL {
        for i in 0..5 {
            let on_gpu = compare(f, &views(&a.to(&gpu))[i], &views(&b.to(&gpu))[i]);
            assert_same(f.name(), &on_gpu, &compare(f, &views(&a)[i], &views(&b)[i]), 0.0);
        }
    }
    let whole = Tensor::arange(-5, 5, 1, &Device::reference());
    for limit in [0i64, 3, 1 << 40, -(1 << 40)] {
        assert_same("lt", &whole.to(&gpu).lt(limit), &whole.lt(limit), 0.0);
        assert_same("ne", &whole.to(&gpu).ne(limit), &whole.ne(limit), 0.0);
    }
    let chosen = |a: &Tensor, b: &Tensor| a.gt(0.0).where_(a, b);
    assert_same("where", &chosen(&a.to(&gpu), &b.to(&gpu)), &chosen(&a, &b), 0.0);
    for dtype in DType::ALL.into_iter().filter(|&d| d != DType::F64) {
        let (a, b) = (a.to_dtype(dtype), b.to_dtype(dtype));
        if dtype.is_float() {
            assert_same("where", &chosen(&a.to(&gpu), &b.to(&gpu)), &chosen(&a, &b), 0.0);
        }
    }
}

#[test]
fn every_cast_agrees() {
    let Some(gpu) = gpu() else { return };
    let x = Tensor::from_slice(
        &[
            0.0f32,
            -0.0,
            0.4,
            -0.4,
            1.0,
            2.5,
            255.0,
            200.7,
            1000.0,
            -3.9,
            65504.0,
            1e-7,
            f32::NAN,
            f32::INFINITY,
        ],
        [14],
        &Device::reference(),
    );
    for from in DType::ALL.into_iter().filter(|&d| d != DType::F64) {
        // What is out of range for an integer is undefined in PyTorch, and i64 has 32 bits here.
        let x = if from.is_float() || from == DType::Bool {
            x.clone()
        } else {
            x.masked_fill(&x.isfinite().logical_not(), 1.0)
        };
        let x = x.to_dtype(from);
        assert_same(&format!("{from}"), &x.to(&gpu), &x, 0.0);
        for to in DType::ALL.into_iter().filter(|&d| d != DType::F64) {
            let x = if to.is_float() || to == DType::Bool || from == DType::Bool {
                x.clone()
            } else {
                x.masked_fill(&x.to_dtype(DType::F32).isfinite().logical_not(), 1)
            };
            assert_same(&format!("{from} -> {to}"), &x.to(&gpu).to_dtype(to), &x.to_dtype(to), 0.0);
        }
    }
}

#[test]
fn values_survive_the_way_there_and_back() {
    let Some(gpu) = gpu() else { return };
    let halves: Vec<f16> = (0..7).map(|i| f16::from_f32(i as f32 * 0.3)).collect();
    assert_eq!(Tensor::from_slice(&halves, [7], &gpu).to_vec::<f16>().unwrap(), halves);
    let brains: Vec<bf16> = (0..7).map(|i| bf16::from_f32(i as f32 * 0.3)).collect();
    let t = Tensor::from_slice(&brains, [7], &gpu);
    assert_eq!(t.to_vec::<bf16>().unwrap(), brains);
    assert_eq!(t.narrow(0, 3, 2).to_vec::<bf16>().unwrap(), brains[3..5]);
    assert_eq!(Tensor::from_slice(&[1u8, 2, 255], [3], &gpu).to_vec::<u8>().unwrap(), [1, 2, 255]);
    assert_eq!(
        Tensor::from_slice(&[true, false, true], [3], &gpu).to_vec::<bool>().unwrap(),
        [true, false, true]
    );
    assert_eq!(Tensor::from_slice(&[-1i64, 1 << 30], [2], &gpu).to_vec::<i64>().unwrap(), [-1, 1 << 30]);
}

#[test]
fn random_numbers_are_those_of_the_reference() {
    let Some(gpu) = gpu() else { return };
    let draw = |device: &Device| {
        orkest_core::manual_seed(11);
        let x = Tensor::ones([1003], device);
        [x.dropout(0.3, true), x.dropout(0.9, true), x.rand_like()].map(|t| t.to(&Device::reference()))
    };
    for (a, b) in draw(&gpu).iter().zip(&draw(&Device::reference())) {
        assert_same("random", a, b, 0.0);
    }
}

#[test]
fn tensors_change_in_place() {
    let Some(gpu) = gpu() else { return };
    let run = |device: &Device| {
        let mut x = Tensor::arange(0, 48, 1, device).to_dtype(DType::F32).reshape([2, 3, 2, 2, 2]);
        let y = x.copy();
        x.add_(&y);
        x.mul_(&y);
        x.select(1, 1).exp();
        let mut m = x.reshape([6, 8]);
        let n = m.copy();
        m.sub_(&n.flip(&[0]));
        m.zero_();
        m.fill_(3.5);
        m.copy_(&n.flip(&[1]));
        m
    };
    assert_same("in place", &run(&gpu), &run(&Device::reference()), 1e-6);
}

#[test]
fn an_upload_into_freed_memory_comes_after_what_was_recorded() {
    let Some(gpu) = gpu() else { return };
    let first = Tensor::full([1000], 1.0, &gpu);
    let mut kept = Vec::new();
    for i in 0..50 {
        // Recorded, not submitted; then its memory is free and the upload wants some of the same size.
        let next = Tensor::from_slice(&vec![i as f32; 1000], [1000], &gpu);
        kept.push(&first + &next);
        drop(next);
    }
    for (i, t) in kept.iter().enumerate() {
        assert_eq!(t.to_vec::<f32>().unwrap(), vec![1.0 + i as f32; 1000], "upload {i}");
    }
}

#[test]
fn unread_work_keeps_memory_flat() {
    let Some(gpu) = gpu() else { return };
    let mut x = Tensor::zeros([1 << 16], &gpu);
    for i in 0..3000 {
        x = &x * 0.5 + &Tensor::from_slice(&vec![i as f32; 1 << 16], [1 << 16], &gpu);
    }
    let expected = (0..3000).fold(0.0f32, |x, i| x * 0.5 + i as f32);
    assert_eq!(x.to_vec::<f32>().unwrap(), vec![expected; 1 << 16]);
}

#[test]
fn doubles_are_refused_with_a_way_out() {
    let Some(gpu) = gpu() else { return };
    let error = Tensor::try_zeros([2], (DType::F64, &gpu)).unwrap_err().to_string();
    assert!(error.contains(".to_dtype(DType::F32)"), "{error}");
}

#[test]
fn a_device_that_is_not_there_is_named_with_those_that_are() {
    let error = Device::wgpu(99).unwrap_err().to_string();
    assert!(error.contains("wgpu:99") && (error.contains("wgpu:0") || error.contains("install")), "{error}");
}

#[test]
fn a_tensor_beyond_the_limits_is_an_error_and_smaller_ones_still_work() {
    let Some(gpu) = gpu() else { return };
    assert!(Tensor::try_zeros([1 << 40], &gpu).is_err());
    assert_eq!(Tensor::ones([3], &gpu).to_vec::<f32>().unwrap(), [1.0; 3]);
}

/// x times the normal distribution function of x, to 9 digits: the tail must not lose those of its exponential.
#[test]
fn gelu_keeps_its_digits_in_the_lower_tail() {
    let Some(gpu) = gpu() else { return };
    let cases = [
        (-9.0, -1.015729565e-18),
        (-8.0, -4.976768459e-15),
        (-6.5, -2.610400380e-10),
        (-5.0, -1.433257859e-06),
        (-3.25, -1.875331388e-03),
        (-1.5, -1.002108019e-01),
        (-0.625, -1.662409557e-01),
        (-0.001, -4.996010578e-04),
        (0.5, 3.457312306e-01),
        (3.0, 2.995950306e+00),
    ];
    let x = Tensor::new(cases.map(|(x, _)| x as f32), &gpu);
    for ((x, expected), y) in cases.into_iter().zip(x.gelu().to_vec::<f32>().unwrap()) {
        let error = (f64::from(y) / expected - 1.0).abs();
        assert!(error < 1e-6, "gelu({x}) is {y}, not {expected}: off by {error:.1e}");
    }
}
