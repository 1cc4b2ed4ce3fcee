//! The GPU beside the CPU: every primitive on random operands, and the operands that random ones leave out: the ends of the ranges of
//! floats and integers, tensors without elements, grids too long for one dimension.

use orkest_core::op::{Binary, Compare, Unary};
use orkest_core::{DType, Device, Error, Tensor};
use orkest_tests::compare::{Allowed, compare};
use orkest_tests::conformance::{primitives_beside, turn, unary_functions};

/// The first adapter. With `ORKEST_REQUIRE_GPU=1` there must be one.
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

#[test]
fn primitives_equal_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    primitives_beside(&gpu, &Device::cpu(), 101).assert();
}

// ---- floats at the ends of their range -----------------------------------------------------------------------------------

/// Numbers at which functions change their ways, both signs of each.
fn odd_floats() -> Vec<f32> {
    let sizes = [
        0.0,
        1e-45,
        1e-40,
        f32::MIN_POSITIVE,
        1e-30,
        1e-4,
        0.25,
        0.5,
        1.0,
        1.5,
        2.5,
        3.0,
        10.0,
        88.5,
        89.0,
        103.0,
        105.0,
        4_194_303.5,
        16_777_216.0,
        1e10,
        1e19,
        1e30,
        f32::MAX,
        f32::INFINITY,
    ];
    sizes.into_iter().flat_map(|x| [x, -x]).chain([f32::NAN]).collect()
}

/// A number as it is, and as a GPU may take it that flushes denormal ones.
fn readings(x: f32) -> Vec<f32> {
    if x.is_subnormal() { vec![x, 0.0f32.copysign(x)] } else { vec![x] }
}

/// Relative to the number, and to no less than 0.05; what is smaller than the normal numbers may be zero.
fn close(a: f32, b: f32, limit: f32) -> bool {
    a == b
        || (a.is_nan() && b.is_nan())
        || (a - b).abs() <= (limit * b.abs().max(0.05)).max(f32::MIN_POSITIVE)
}

#[test]
fn functions_agree_at_the_ends_of_the_range() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let values = odd_floats();
    let mut failures = Vec::new();
    for function in unary_functions() {
        // Reducing an angle of 10^10 takes more digits than a GPU has.
        let largest = match function {
            Unary::Sin | Unary::Cos | Unary::Tan => 1e5,
            _ => f32::INFINITY,
        };
        let run = |x: &[f32], device: &Device| -> Vec<f32> {
            let y = Tensor::from_slice(x, x.len(), device).unary(function);
            y.to(&Device::cpu()).to_dtype(DType::F32).to_vec().unwrap()
        };
        let actual = run(&values, &gpu);
        for (&x, &y) in values.iter().zip(&actual).filter(|(x, _)| x.abs() <= largest || !x.is_finite()) {
            let allowed: Vec<f32> = run(&readings(x), &Device::cpu());
            if !allowed.iter().any(|&e| close(y, e, 1e-5)) {
                failures.push(format!("{function:?} of {x:e} is {y:e}, not {allowed:?}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn operations_of_two_agree_at_the_ends_of_the_range() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let values = odd_floats();
    let (a, b): (Vec<f32>, Vec<f32>) =
        values.iter().flat_map(|&a| values.iter().map(move |&b| (a, b))).unzip();
    let tensors = |device: &Device| [&a, &b].map(|v| Tensor::from_slice(v, v.len(), device));
    type Op<'a> = (String, Box<dyn Fn(&Tensor, &Tensor) -> Tensor + 'a>);
    let mut operations: Vec<Op<'_>> = Vec::new();
    for &f in Binary::ALL {
        operations.push((
            format!("{f:?}"),
            Box::new(move |a, b| match f {
                Binary::Add => a + b,
                Binary::Sub => a - b,
                Binary::Mul => a * b,
                Binary::Div => a / b,
                Binary::Pow => a.pow(b),
                Binary::Remainder => a % b,
                Binary::Maximum => a.maximum(b),
                Binary::Minimum => a.minimum(b),
                Binary::Atan2 => a.atan2(b),
            }),
        ));
    }
    for &f in Compare::ALL {
        operations.push((
            format!("{f:?}"),
            Box::new(move |a, b| match f {
                Compare::Eq => a.eq(b),
                Compare::Ne => a.ne(b),
                Compare::Lt => a.lt(b),
                Compare::Le => a.le(b),
                Compare::Gt => a.gt(b),
                Compare::Ge => a.ge(b),
            }),
        ));
    }
    let mut failures = Vec::new();
    for (name, f) in &operations {
        let read = |t: Tensor| -> Vec<f32> { t.to(&Device::cpu()).to_dtype(DType::F32).to_vec().unwrap() };
        let [x, y] = tensors(&gpu);
        let actual = read(f(&x, &y));
        let [x, y] = tensors(&Device::cpu());
        let expected = read(f(&x, &y));
        for i in 0..actual.len() {
            if close(actual[i], expected[i], 1e-5) {
                continue;
            }
            let allowed: Vec<f32> = readings(a[i])
                .into_iter()
                .flat_map(|a| readings(b[i]).into_iter().map(move |b| (a, b)))
                .flat_map(|(a, b)| {
                    read(f(&Tensor::new([a], &Device::cpu()), &Tensor::new([b], &Device::cpu())))
                })
                .collect();
            if !allowed.iter().any(|&e| close(actual[i], e, 1e-5)) {
                failures
                    .push(format!("{name} of {:e} and {:e} is {:e}, not {allowed:?}", a[i], b[i], actual[i]));
            }
        }
    }
    let (count, shown) = (failures.len(), &failures[..failures.len().min(60)]);
    assert!(failures.is_empty(), "{count}:\n{}", shown.join("\n"));
}

#[test]
fn remainders_of_very_different_numbers_are_exact() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let mut state = 9u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 + 0.5
    };
    let (a, b): (Vec<f32>, Vec<f32>) =
        (0..4000).map(|i| (random() * 2f32.powi(i % 61 - 30), random() * 2f32.powi(i % 37 - 18))).unzip();
    let on = |v: &[f32]| Tensor::from_slice(v, v.len(), &gpu);
    let actual = (on(&a) % on(&b)).to_vec::<f32>().unwrap();
    for i in 0..a.len() {
        assert_eq!(actual[i], a[i] % b[i], "{:e} % {:e}", a[i], b[i]);
    }
}

#[test]
fn powers_with_large_exponents_keep_their_digits() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let (a, b): (Vec<f32>, Vec<f32>) = (0..2000)
        .map(|i| {
            let base = 0.3 + 3.0 * ((i as f32 * 0.618_034).fract());
            // Results from 1e-37 to 1e37, by way of exponents up to thousands.
            let result = -85.0 + 170.0 * ((i as f32 * 0.754_877).fract());
            (base, result / base.ln())
        })
        .unzip();
    let on = |v: &[f32]| Tensor::from_slice(v, v.len(), &gpu);
    let actual = on(&a).pow(on(&b)).to_vec::<f32>().unwrap();
    for i in 0..a.len() {
        let exact = f64::from(a[i]).powf(f64::from(b[i]));
        let error = (f64::from(actual[i]) - exact).abs() / exact;
        assert!(error < 5e-7, "{} to the power of {} is {}, not {exact}: {error:e}", a[i], b[i], actual[i]);
    }
}

// ---- integers at the ends of theirs --------------------------------------------------------------------------------------

const MOST: i64 = i32::MAX as i64;
const LEAST: i64 = i32::MIN as i64;

/// A result on the GPU is the exact one, or where that needs more than 32 bits an error at the read.
#[track_caller]
fn exact_or_error(what: &str, actual: &Tensor, exact: Option<i128>) {
    let read = actual.to_vec::<i64>();
    match exact.filter(|e| (i128::from(LEAST)..=i128::from(MOST)).contains(e)) {
        Some(exact) => assert_eq!(read.map(|v| i128::from(v[0])), Ok(exact), "{what}"),
        None => {
            let error = read.expect_err(what).to_string();
            assert!(error.contains("does not fit") && error.contains("gpu_beside_cpu.rs"), "{what}: {error}");
            actual.device().clear_error();
        }
    }
}

#[test]
fn integer_arithmetic_is_exact_or_an_error() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let values = [
        LEAST,
        LEAST + 1,
        -1_073_741_824,
        -65_537,
        -46_341,
        -46_340,
        -7,
        -2,
        -1,
        0,
        1,
        2,
        3,
        46_340,
        46_341,
        65_536,
        1_073_741_824,
        MOST - 1,
        MOST,
    ];
    let one = |x: i64| Tensor::new([x], &gpu);
    for a in values {
        let x = one(a);
        let wide = i128::from(a);
        exact_or_error(&format!("-{a}"), &-&x, Some(-wide));
        exact_or_error(&format!("|{a}|"), &x.abs(), Some(wide.abs()));
        exact_or_error(&format!("{a} squared"), &x.square(), Some(wide * wide));
        exact_or_error(&format!("sign of {a}"), &x.sign(), Some(wide.signum()));
        for b in values {
            let (y, other) = (one(b), i128::from(b));
            exact_or_error(&format!("{a} + {b}"), &(&x + &y), Some(wide + other));
            exact_or_error(&format!("{a} - {b}"), &(&x - b), Some(wide - other));
            exact_or_error(&format!("{a} * {b}"), &(&x * &y), Some(wide * other));
            exact_or_error(&format!("max({a}, {b})"), &x.maximum(&y), Some(wide.max(other)));
            if b != 0 {
                let floored = wide - other * wide.div_euclid(other);
                let exact = if floored != 0 && other < 0 { floored + other } else { floored };
                exact_or_error(&format!("{a} % {b}"), &(&x % &y), Some(exact));
            }
        }
        for exponent in [0, 1, 2, 3, 5, 30, 31, 32, 63] {
            let exact = wide.checked_pow(exponent);
            exact_or_error(&format!("{a} to the {exponent}"), &x.pow(&one(i64::from(exponent))), exact);
        }
    }
}

#[test]
fn a_remainder_of_a_division_by_zero_is_an_error() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    for dtype in [DType::I64, DType::I32, DType::U8] {
        let x = Tensor::new([7i64, 5], &gpu).to_dtype(dtype);
        let zero = Tensor::new([2i64, 0], &gpu).to_dtype(dtype);
        let line = line!() + 1;
        let error = (&x % &zero).to_bytes().unwrap_err();
        gpu.clear_error();
        let text = error.to_string();
        assert!(matches!(error, Error::Data(_)), "{error:?}");
        assert!(
            text.contains("division by zero") && text.contains(&format!("gpu_beside_cpu.rs:{line}")),
            "{text}"
        );
    }
}

#[test]
fn floats_that_no_integer_of_32_bits_has_are_errors() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    for (x, exact) in [
        (2_147_483_520.0f32, Some(2_147_483_520)),
        (2_147_483_648.0, None),
        (-2_147_483_648.0, Some(LEAST)),
        (-2_147_483_904.0, None),
        (1e20, None),
        (f32::INFINITY, None),
        (f32::NEG_INFINITY, None),
        (-0.9, Some(0)),
        (16_777_215.0, Some(16_777_215)),
        (
            f32::NAN,
            Tensor::new([f32::NAN], &Device::cpu()).to_dtype(DType::I64).to_vec::<i64>().ok().map(|v| v[0]),
        ),
    ] {
        // Row-major, with strides, and in more dimensions than a kernel walks.
        let t = Tensor::new([x, x, x, x], &gpu);
        let views = [t.clone(), t.slice_dim(0, 0, 2, 2), t.reshape([2, 1, 1, 1, 2, 1]).transpose(0, 4)];
        for t in views {
            exact_or_error(&format!("{x} as an integer"), &t.to_dtype(DType::I64), exact.map(i128::from));
        }
    }
}

#[test]
fn sums_of_scattered_integers_are_exact_or_an_error() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    // Few positions are walked over one by one, many are sorted first.
    for n in [3usize, 200] {
        let index = Tensor::zeros([n], &gpu).to_dtype(DType::I64);
        let each = MOST / n as i64;
        let zero = Tensor::zeros([1], &gpu).to_dtype(DType::I64);
        for (value, start) in
            [(each, 0), (each, MOST - each * n as i64), (each, MOST), (-each, LEAST), (each + 1, 0)]
        {
            let exact = i128::from(start) + i128::from(value) * n as i128;
            let values = Tensor::full([n], value, &gpu);
            let begin = &zero + start;
            exact_or_error(
                &format!("{n} times {value} on {start}"),
                &begin.scatter_add(0, &index, &values),
                Some(exact),
            );
            exact_or_error(
                &format!("{n} times {value} on {start}"),
                &begin.index_add(0, &index, &values),
                Some(exact),
            );
        }
    }
}

/// PyTorch's 32-bit and 8-bit integers wrap around, and so do these.
#[test]
fn narrow_integers_wrap_around_as_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    for device in [&gpu, &Device::cpu()] {
        let x = Tensor::new([i32::MAX, i32::MIN, 65_536], device);
        assert_eq!((&x + 1).to_vec::<i32>().unwrap(), [i32::MIN, i32::MIN + 1, 65_537], "{device}");
        assert_eq!((&x * &x).to_vec::<i32>().unwrap(), [1, 0, 0], "{device}");
        assert_eq!((-&x).to_vec::<i32>().unwrap(), [-i32::MAX, i32::MIN, -65_536], "{device}");
        let x = Tensor::new([250u8, 3], device);
        assert_eq!((&x + 10).to_vec::<u8>().unwrap(), [4, 13], "{device}");
        assert_eq!((&x * &x).to_vec::<u8>().unwrap(), [36, 9], "{device}");
    }
}

// ---- sizes ---------------------------------------------------------------------------------------------------------------

/// Both devices compute `f` of the same operands.
#[track_caller]
fn beside(gpu: &Device, what: &str, operands: &[Tensor], f: impl Fn(&[Tensor]) -> Tensor) {
    let expected = f(operands);
    let there: Vec<Tensor> = operands.iter().map(|t| t.to(gpu)).collect();
    let actual = f(&there).to(&Device::cpu());
    compare(&actual, &expected, Allowed::Relative(1e-5)).unwrap_or_else(|e| panic!("{what}: {e}"));
}

#[test]
fn tensors_without_elements_go_through_every_family() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let cpu = Device::cpu();
    let none = Tensor::zeros([0, 3], &cpu);
    let index = Tensor::zeros([0], &cpu).to_dtype(DType::I64);
    let three = Tensor::ones([3], &cpu);
    let matrix = Tensor::ones([3, 2], &cpu);
    let x = [none.clone(), index, three, matrix, Tensor::zeros([4, 0], &cpu)];
    type Case = (&'static str, fn(&[Tensor]) -> Tensor);
    let cases: &[Case] = &[
        ("exp", |x| x[0].exp()),
        ("add", |x| &x[0] + &x[2]),
        ("compare", |x| x[0].gt(0.0)),
        ("where", |x| x[0].gt(0.0).where_(&x[0], &x[2])),
        ("sum of nothing", |x| x[0].sum(0)),
        ("sums of none", |x| x[0].sum(1)),
        ("mean", |x| x[0].mean(0)),
        ("prod", |x| x[0].prod(0)),
        ("any", |x| x[0].gt(0.0).any(0)),
        ("cumsum", |x| x[0].cumsum(0)),
        ("argmax", |x| x[0].argmax(1)),
        ("sort", |x| x[0].sort(1, false).0),
        ("sort along nothing", |x| x[0].sort(0, false).1),
        ("matmul", |x| x[0].matmul(&x[3])),
        ("matmul over nothing", |x| x[4].matmul(&x[0])),
        ("linear", |x| x[0].linear(&x[3].t(), None)),
        ("index_select", |x| x[3].index_select(0, &x[1])),
        ("gather", |x| x[0].gather(0, &x[0].to_dtype(DType::I64))),
        ("index_add", |x| x[3].index_add(0, &x[1], &x[3].narrow(0, 0, 0))),
        ("scatter_add", |x| x[2].scatter_add(0, &x[1], &x[1].to_dtype(DType::F32))),
        ("cat", |x| Tensor::cat(&[&x[0], &x[0]], 0)),
        ("softmax", |x| x[0].softmax(1)),
        ("softmax over nothing", |x| x[0].softmax(0)),
        ("log_softmax", |x| x[0].log_softmax(-1)),
        ("layer_norm", |x| x[0].layer_norm(3, Some(&x[2]), Some(&x[2]), 1e-5)),
        ("rms_norm", |x| x[0].rms_norm(3, Some(&x[2]), Some(1e-5))),
        ("cross_entropy", |x| x[0].cross_entropy_rows(&x[1], -100, 0.1)),
        ("conv2d", |x| x[0].reshape([0, 1, 1, 3]).conv2d(&x[3].reshape([2, 1, 1, 3]), None, 1, 0, 1, 1)),
        ("max_pool2d", |x| x[0].reshape([0, 1, 1, 3]).max_pool2d(1, 1, 0)),
        ("attention", |x| {
            let q = x[0].reshape([1, 1, 0, 3]);
            Tensor::scaled_dot_product_attention(&q, &q, &q, None, 0.0, false, None)
        }),
        ("to_dtype", |x| x[0].to_dtype(DType::F16)),
        ("flip", |x| x[0].flip(&[0, 1])),
    ];
    for (name, f) in cases {
        beside(&gpu, name, &x, f);
    }
    // Gradients, too.
    beside(&gpu, "gradients of nothing", &x, |x| {
        let w = x[3].detach().requires_grad_(true);
        x[0].matmul(&w).softmax(1).sum(..).backward();
        w.grad().unwrap()
    });
}

/// More workgroups than one dimension of a grid may have, of kernels that count rows, lines, heads and tiles.
#[test]
fn rows_beyond_one_dimension_of_a_grid_are_all_done() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let cpu = Device::cpu();
    let wave = |shape: &[usize]| {
        let n: usize = shape.iter().product();
        let values: Vec<f32> =
            (0..n).map(|i| ((i as f64 * 0.618_033_988_75).fract() * 4.0 - 2.0) as f32).collect();
        Tensor::from_slice(&values, shape, &cpu)
    };
    let rows = 560_000;
    let short = wave(&[rows, 2]);
    let weight = wave(&[2]);
    let classes = short.select(1, 0).gt(0.0).to_dtype(DType::I64);
    beside(&gpu, "sum", std::slice::from_ref(&short), |x| x[0].sum(1));
    beside(&gpu, "argmax", std::slice::from_ref(&short), |x| x[0].argmax(1));
    beside(&gpu, "log_softmax", std::slice::from_ref(&short), |x| x[0].log_softmax(1));
    beside(&gpu, "cross_entropy", &[short.clone(), classes], |x| x[0].cross_entropy_rows(&x[1], -100, 0.0));
    beside(&gpu, "layer_norm", &[short.clone(), weight.clone()], |x| {
        x[0].layer_norm(2, Some(&x[1]), None, 0.1)
    });
    beside(&gpu, "a product with a vector", &[short.clone(), weight], |x| x[0].matmul(&x[1]));
    beside(&gpu, "many small products", &[wave(&[70_000, 2, 2])], |x| x[0].matmul(&x[0]));
    beside(&gpu, "running sums", &[wave(&[70_000, 40])], |x| x[0].cumsum(1));
    let heads = wave(&[70_000, 1, 1, 4]);
    beside(&gpu, "attention", std::slice::from_ref(&heads), |x| {
        Tensor::scaled_dot_product_attention(&x[0], &x[0], &x[0], None, 0.0, false, None)
    });
    beside(&gpu, "gradients of attention", std::slice::from_ref(&heads), |x| {
        let q = x[0].detach().requires_grad_(true);
        let y = Tensor::scaled_dot_product_attention(&q, &q, &q, None, 0.0, false, None);
        y.square().sum(..).backward();
        q.grad().unwrap()
    });
    // One row of very many columns: the gradients of its weights are finished by 64 invocations per workgroup.
    let columns = 65_535 * 64 + 100;
    beside(&gpu, "gradients of weights", &[wave(&[1, columns])], |x| {
        let weight = Tensor::ones([columns], x[0].device()).requires_grad_(true);
        (x[0].layer_norm(columns, Some(&weight), None, 1e-5) * &x[0]).sum(..).backward();
        weight.grad().unwrap()
    });
}

/// Some software drivers end a loop after 65535 rounds, without a word.
#[test]
fn long_sums_are_taken_to_their_end() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let n = 1_200_003;
    let long =
        Tensor::arange(0, 4, 1, &Device::cpu()).to_dtype(DType::F32).repeat(&[300_001]).narrow(0, 0, n);
    let x = std::slice::from_ref(&long);
    let mut wrong = Vec::new();
    let mut check = |what: &str, x: &[Tensor], f: &dyn Fn(&[Tensor]) -> Tensor| {
        let expected = f(x);
        let actual = f(&x.iter().map(|t| t.to(&gpu)).collect::<Vec<_>>()).to(&Device::cpu());
        if let Err(e) = compare(&actual, &expected, Allowed::Relative(1e-4)) {
            wrong.push(format!("{what}: {e}"));
        }
    };
    check("sum", x, &|x| x[0].sum(0));
    check("dot", x, &|x| x[0].dot(&x[0]));
    check("matrix times vector", x, &|x| x[0].reshape([3, -1]).matmul(&x[0].narrow(0, 0, n / 3)));
    check("matmul", x, &|x| x[0].reshape([3, -1]).matmul(&x[0].reshape([3, -1]).t()));
    check("max", x, &|x| x[0].max(0));
    check("argmin", x, &|x| {
        (&x[0] - Tensor::arange(0, n as i64, 1, x[0].device()).to_dtype(DType::F32)).argmin(0)
    });
    check("softmax", x, &|x| x[0].softmax(0) * n as f64);
    check("log_softmax", x, &|x| x[0].log_softmax(0));
    check("layer_norm", x, &|x| x[0].layer_norm(n, None, None, 1e-5));
    check("cumsum", x, &|x| x[0].cumsum(0));
    check("cross_entropy", x, &|x| {
        x[0].reshape([1, -1]).cross_entropy_rows(&Tensor::full([1], n as i64 - 1, x[0].device()), -100, 0.0)
    });
    check("scatter_add", x, &|x| {
        let index = Tensor::zeros([n], x[0].device()).to_dtype(DType::I64);
        Tensor::zeros([2], x[0].device()).scatter_add(0, &index, &x[0])
    });
    let heads = (long.narrow(0, 0, 9000 * 64).reshape([1, 1, 9000, 64]) * 0.1).contiguous();
    let queries = heads.narrow(2, 0, 2).contiguous();
    check("attention", &[queries, heads], &|x| {
        Tensor::scaled_dot_product_attention(&x[0], &x[1], &x[1], None, 0.0, false, None)
    });
    check("conv2d", x, &|x| {
        x[0].narrow(0, 0, 200_000).reshape([1, 200_000, 1, 1]).conv2d(
            &x[0].narrow(0, 0, 200_000).reshape([1, 200_000, 1, 1]),
            None,
            1,
            0,
            1,
            1,
        )
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A view can have more elements than memory; what counts beyond 32 bits is refused, not cut off.
#[test]
fn views_of_more_elements_than_32_bits_count_are_refused() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let x = Tensor::ones([1, 1], &gpu).expand([1 << 17, 1 << 16]);
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| x.sum(..).item()));
    let text = match refused {
        Ok(result) => result.unwrap_err().to_string(),
        Err(panic) => orkest_tests::parity::message(&*panic),
    };
    assert!(text.contains("more than kernels count") && text.contains("8589934592"), "{text}");
    gpu.clear_error();
    let x = Tensor::ones([1, 1], &gpu).expand([1 << 10, 1 << 12]);
    assert_eq!(x.sum(..).item().unwrap(), f64::from(1 << 22));
}
