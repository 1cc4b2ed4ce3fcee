//! Reductions, scans, sorting and indexing on the GPU against the reference interpreter.

use orkest_core::{DType, Device, Error, Generator, Tensor};
use orkest_wgpu as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A bad index stops every read of the device until it is cleared, so the tests of this file take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

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

/// Normally distributed numbers.
fn normal(shape: &[usize], seed: u64) -> Tensor {
    let mut out = vec![0.0; shape.iter().product()];
    Generator::new(seed).fill_normal_f32(&mut out, 0.0, 1.0);
    Tensor::from_slice(&out, shape, &Device::reference())
}

/// Integers from 0 to `below`, an even mix.
fn whole(shape: &[usize], below: usize, seed: u64) -> Tensor {
    let mut out = vec![0.0f32; shape.iter().product()];
    Generator::new(seed).fill_normal_f32(&mut out, 0.0, 1000.0);
    let out: Vec<i64> = out.iter().map(|x| x.abs() as i64 % below as i64).collect();
    Tensor::from_slice(&out, shape, &Device::reference())
}

fn floats(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).to_vec::<f64>().unwrap()
}

/// Both tensors hold the same up to `tolerance` times the largest finite element. Numbers below the smallest normal f32 may be zero:
/// GPUs are free to flush them.
#[track_caller]
fn assert_same(what: &str, gpu: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!((gpu.dtype(), gpu.shape()), (expected.dtype(), expected.shape()), "{what}");
    let expected = floats(expected);
    let largest = expected.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in floats(&gpu.to(&Device::reference())).into_iter().zip(expected).enumerate() {
        let close = a == b
            || (a.is_nan() && b.is_nan())
            || (a - b).abs() <= (tolerance * largest).max(f32::MIN_POSITIVE.into());
        assert!(close, "{what}: element {i} is {a}, not {b}");
    }
}

/// A four-dimensional tensor as it is, permuted, sliced with a step, flipped and expanded.
fn views(t: &Tensor) -> Vec<Tensor> {
    let wide = t.narrow(1, 0, 1).expand([t.size(0), 4, t.size(2), t.size(3)]);
    vec![
        t.clone(),
        t.permute([2, 0, 3, 1]),
        t.permute([3, 2, 1, 0]),
        t.narrow(2, 1, t.size(2) - 1).flip(&[0, 3]),
        wide,
    ]
}

/// Sets of dimensions of a tensor with four.
const DIMS: [&[isize]; 8] = [&[0], &[1], &[3], &[0, 1], &[2, 3], &[0, 2], &[1, 3], &[0, 1, 2, 3]];

type Method = fn(&Tensor, &[isize]) -> Tensor;

const REDUCTIONS: [(&str, Method); 7] = [
    ("sum", |x, d| x.sum(d)),
    ("mean", |x, d| x.mean(d)),
    ("prod", |x, d| x.prod(d)),
    ("max", |x, d| x.max(d)),
    ("min", |x, d| x.min(d)),
    ("any", |x, d| x.any(d)),
    ("all", |x, d| x.all(d)),
];

#[test]
fn reductions_agree_over_every_set_of_dimensions() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    let x = normal(&[5, 3, 7, 33], 1);
    let with_nan = x.masked_fill(&x.gt(2.5), f64::NAN).masked_fill(&x.lt(-2.8), f64::NEG_INFINITY);
    for (name, f) in REDUCTIONS {
        for (values, t) in [("normal", &x), ("special", &with_nan), ("sparse", &x.masked_fill(&x.lt(1.0), 0))]
        {
            for (i, (on_gpu, host)) in views(&t.to(&gpu)).iter().zip(views(t)).enumerate() {
                for dims in DIMS {
                    let what = format!("{name} of {values} view {i} over {dims:?}");
                    assert_same(&what, &f(on_gpu, dims), &f(&host, dims), 1e-5);
                }
            }
        }
        for dtype in [DType::F16, DType::BF16, DType::I32, DType::I64, DType::U8, DType::Bool] {
            let t = if dtype.is_float() {
                x.to_dtype(dtype)
            } else {
                whole(&[5, 3, 7, 33], 3, 2).to_dtype(dtype)
            };
            if name == "mean" && !dtype.is_float() {
                continue;
            }
            for dims in [&[3isize] as &[_], &[0], &[1, 2]] {
                let tolerance = if dtype.is_float() { dtype.epsilon() } else { 0.0 };
                let what = format!("{name} {dtype} over {dims:?}");
                // Products of 99 factors of up to 2 leave 32 bits.
                let t = if name == "prod" {
                    t.narrow(0, 0, 2).narrow(2, 0, 5).narrow(3, 0, 9)
                } else {
                    t.clone()
                };
                assert_same(&what, &f(&t.to(&gpu), dims), &f(&t, dims), tolerance);
            }
        }
    }
}

#[test]
fn long_reductions_are_split_and_stay_exact_enough() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    for shape in [[1, 300_001], [3, 70_000], [40_000, 5], [65_537, 3], [2, 4097]] {
        let x = normal(&shape, 3) + 0.5;
        let on_gpu = x.to(&gpu);
        for (name, f) in REDUCTIONS {
            if name == "prod" {
                continue;
            }
            for dims in [&[0isize] as &[_], &[1], &[0, 1]] {
                let what = format!("{name} of {shape:?} over {dims:?}");
                assert_same(&what, &f(&on_gpu, dims), &f(&x, dims), 1e-6);
            }
        }
        for dim in [0, 1] {
            let what = format!("argmax of {shape:?} along {dim}");
            assert_same(&what, &on_gpu.argmax(dim), &x.argmax(dim), 0.0);
            assert_same(&what, &on_gpu.cumsum(dim), &x.cumsum(dim), 1e-5);
        }
    }
}

#[test]
fn a_sum_of_ones_in_half_precision_does_not_stall() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    // Adding one by one in f16 would end at 2048; 50000 itself lies between two values.
    let ones = Tensor::ones([50_000], (DType::F16, &gpu));
    assert_eq!(ones.sum(..).item().unwrap(), 49984.0);
    assert_eq!(ones.to_dtype(DType::Bool).sum(..).item().unwrap(), 50_000.0);
}

#[test]
fn positions_of_extremes_are_the_first_and_nan_wins() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    let few = whole(&[5, 3, 7, 33], 4, 4).to_dtype(DType::F32) - 1.5;
    let nans = few.masked_fill(&normal(&[5, 3, 7, 33], 5).gt(2.0), f64::NAN);
    let zeros = few.mul(0.0);
    for (name, t) in [("few values", &few), ("nan", &nans), ("zeros of both signs", &zeros)] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let t = t.to_dtype(dtype);
            for (i, (on_gpu, host)) in views(&t.to(&gpu)).iter().zip(views(&t)).enumerate() {
                for dim in 0..4 {
                    let what = format!("{name} {dtype} view {i} along {dim}");
                    assert_same(&what, &on_gpu.argmax(dim), &host.argmax(dim), 0.0);
                    assert_same(&what, &on_gpu.argmin(dim), &host.argmin(dim), 0.0);
                }
            }
        }
    }
    let t = (whole(&[4, 600], 9, 6) - 4).to_dtype(DType::I64);
    assert_same("argmin i64", &t.to(&gpu).argmin(1), &t.argmin(1), 0.0);
    assert_same("argmax i64", &t.to(&gpu).argmax(0), &t.argmax(0), 0.0);
}

#[test]
fn running_sums_and_products_agree() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    let x = normal(&[5, 3, 7, 33], 7);
    for (i, (on_gpu, host)) in views(&x.to(&gpu)).iter().zip(views(&x)).enumerate() {
        for dim in 0..4 {
            assert_same(
                &format!("cumsum view {i} along {dim}"),
                &on_gpu.cumsum(dim),
                &host.cumsum(dim),
                1e-6,
            );
            assert_same(
                &format!("cumprod view {i} along {dim}"),
                &on_gpu.cumprod(dim),
                &host.cumprod(dim),
                1e-6,
            );
        }
    }
    // One block, several, and a second level of blocks.
    for shape in [[3, 257], [2, 2049], [1, 600_000], [9000, 2]] {
        let x = whole(&shape, 7, 8) - 3;
        for dim in [0, 1] {
            assert_same(&format!("cumsum {shape:?}"), &x.to(&gpu).cumsum(dim), &x.cumsum(dim), 0.0);
        }
        let signs = x.gt(0).to_dtype(DType::F32) * 2.0 - 1.0;
        assert_same(&format!("cumprod {shape:?}"), &signs.to(&gpu).cumprod(1), &signs.cumprod(1), 0.0);
    }
    for dtype in [DType::F16, DType::BF16] {
        let x = (x.abs() + 0.1).to_dtype(dtype);
        assert_same("cumsum", &x.to(&gpu).cumsum(3), &x.cumsum(3), dtype.epsilon());
    }
    for dtype in [DType::U8, DType::Bool, DType::I32] {
        let x = whole(&[3, 300], 2, 9).to_dtype(dtype);
        assert_same("cumsum", &x.to(&gpu).cumsum(1), &x.cumsum(1), 0.0);
    }
}

#[test]
fn sorting_is_stable_and_knows_nan() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    for shape in [[1, 1], [3, 2], [300, 5], [7, 64], [5, 1000], [3, 1024], [2, 1025], [3, 5000], [1, 70_000]]
    {
        let x = normal(&shape, 10);
        let many_equal = whole(&shape, 5, 11).to_dtype(DType::F32) * -0.5 + 1.0;
        let special = x.masked_fill(&x.gt(1.5), f64::NAN).masked_fill(&x.lt(-1.5), f64::NEG_INFINITY);
        for t in [x, many_equal, special] {
            for descending in [false, true] {
                for dim in [0, 1] {
                    let what = format!("sort {shape:?} along {dim}, descending {descending}");
                    let ((v, i), (ev, ei)) = (t.to(&gpu).sort(dim, descending), t.sort(dim, descending));
                    assert_same(&what, &v, &ev, 0.0);
                    assert_same(&what, &i, &ei, 0.0);
                }
            }
        }
    }
    for dtype in [DType::F16, DType::BF16, DType::I32, DType::I64, DType::U8, DType::Bool] {
        let mut t = whole(&[4, 100], 200, 12);
        if dtype != DType::U8 {
            t -= 100;
        }
        let t = t.to_dtype(dtype);
        for descending in [false, true] {
            let ((v, i), (ev, ei)) = (t.to(&gpu).sort(1, descending), t.sort(1, descending));
            assert_same(&format!("sort {dtype}"), &v, &ev, 0.0);
            assert_same(&format!("sort {dtype}"), &i, &ei, 0.0);
        }
    }
    let x = normal(&[5, 3, 7, 33], 13);
    for (i, (on_gpu, host)) in views(&x.to(&gpu)).iter().zip(views(&x)).enumerate() {
        for dim in 0..4 {
            let k = host.size(dim).div_ceil(2);
            for largest in [false, true] {
                let ((v, at), (ev, eat)) = (on_gpu.topk(k, dim, largest), host.topk(k, dim, largest));
                assert_same(&format!("topk view {i} along {dim}"), &v, &ev, 0.0);
                assert_same(&format!("topk view {i} along {dim}"), &at, &eat, 0.0);
            }
        }
    }
    let x = normal(&[2, 5000], 14);
    let ((v, at), (ev, eat)) = (x.to(&gpu).topk(17, 1, true), x.topk(17, 1, true));
    assert_same("topk of many", &v, &ev, 0.0);
    assert_same("topk of many", &at, &eat, 0.0);
}

#[test]
fn gathering_and_scattering_agree() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    let x = normal(&[5, 3, 7, 33], 15);
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I64, DType::U8, DType::Bool] {
        let t = match dtype {
            DType::I64 | DType::U8 | DType::Bool => whole(&[5, 3, 7, 33], 5, 16).to_dtype(dtype),
            _ => x.to_dtype(dtype),
        };
        let tolerance = if dtype.is_float() { dtype.epsilon() } else { 0.0 };
        for (i, (on_gpu, host)) in views(&t.to(&gpu)).iter().zip(views(&t)).enumerate() {
            for dim in 0..4usize {
                let mut shape = host.shape().to_vec();
                let size = shape[dim];
                shape[dim] = 40;
                // Smaller than the tensor elsewhere.
                shape[(dim + 1) % 4] -= 1;
                let index = whole(&shape, size, 17).permute([0, 1, 2, 3]);
                let what = format!("{dtype} view {i} along {dim}");
                let d = dim as isize;
                let picked = host.gather(d, &index);
                assert_same(&format!("gather {what}"), &on_gpu.gather(d, &index.to(&gpu)), &picked, 0.0);
                let set = on_gpu.scatter(d, &index.to(&gpu), &picked.to(&gpu));
                assert_same(&format!("scatter {what}"), &set, &host.scatter(d, &index, &picked), 0.0);
                let list = whole(&[90], size, 18);
                let rows = host.index_select(d, &list);
                assert_same(
                    &format!("index_select {what}"),
                    &on_gpu.index_select(d, &list.to(&gpu)),
                    &rows,
                    0.0,
                );
                if dtype == DType::Bool {
                    continue;
                }
                let added = on_gpu.scatter_add(d, &index.to(&gpu), &picked.to(&gpu));
                let expected = host.scatter_add(d, &index, &picked);
                assert_same(&format!("scatter_add {what}"), &added, &expected, tolerance.max(1e-6));
                let added = on_gpu.index_add(d, &list.to(&gpu), &rows.to(&gpu));
                let expected = host.index_add(d, &list, &rows);
                assert_same(&format!("index_add {what}"), &added, &expected, tolerance.max(1e-6));
            }
        }
    }
}

#[test]
fn whole_rows_are_selected_sixteen_bytes_at_a_time() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::I64] {
        let table = whole(&[4, 30, 2, 8], 1000, 28).to_dtype(dtype);
        for (host, on_gpu) in [
            (table.clone(), table.to(&gpu)),
            (table.narrow(0, 1, 2), table.to(&gpu).narrow(0, 1, 2)),
            (table.flip(&[1]), table.to(&gpu).flip(&[1])),
        ] {
            for dim in 0..3 {
                let index = whole(&[300], host.size(dim), 29);
                for index in [index.clone(), index.flip(&[0])] {
                    let rows = on_gpu.index_select(dim, &index.to(&gpu));
                    assert_same("index_select", &rows, &host.index_select(dim, &index), 0.0);
                }
            }
        }
    }
}

#[test]
fn scattering_along_one_long_dimension_goes_through_sorting() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    for (n, size) in [(65, 3), (5000, 7), (5000, 4000), (70_000, 100)] {
        let (index, src, x) = (whole(&[n], size, 19), normal(&[n], 20), normal(&[size], 21));
        let (i, s, on_gpu) = (index.to(&gpu), src.to(&gpu), x.to(&gpu));
        assert_same("scatter", &on_gpu.scatter(0, &i, &s), &x.scatter(0, &index, &src), 0.0);
        assert_same("scatter_add", &on_gpu.scatter_add(0, &i, &s), &x.scatter_add(0, &index, &src), 1e-5);
        assert_same("index_add", &on_gpu.index_add(0, &i, &s), &x.index_add(0, &index, &src), 1e-5);
    }
}

#[test]
fn six_dimensions_that_do_not_merge() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    let x = normal(&[2, 3, 2, 3, 2, 4], 22);
    let order = [5, 2, 4, 1, 3, 0];
    let (host, on_gpu) = (x.permute(order), x.to(&gpu).permute(order));
    for dim in 0..6usize {
        let d = dim as isize;
        let size = host.size(d);
        let index = whole(&[4, 2, 2, 3, 3, 2], size, 23).narrow(d, 0, size.min(2));
        let picked = host.gather(d, &index);
        assert_same("gather", &on_gpu.gather(d, &index.to(&gpu)), &picked, 0.0);
        let set = on_gpu.scatter_add(d, &index.to(&gpu), &picked.to(&gpu));
        assert_same("scatter_add", &set, &host.scatter_add(d, &index, &picked), 1e-6);
        assert_same("sum", &on_gpu.sum(d), &host.sum(d), 1e-6);
        assert_same("argmin", &on_gpu.argmin(d), &host.argmin(d), 0.0);
        assert_same("sort", &on_gpu.sort(d, true).1, &host.sort(d, true).1, 0.0);
        assert_same("cumsum", &on_gpu.cumsum(d), &host.cumsum(d), 1e-6);
        let list = whole(&[5], size, 24);
        assert_same(
            "index_select",
            &on_gpu.index_select(d, &list.to(&gpu)),
            &host.index_select(d, &list),
            0.0,
        );
    }
}

/// Gradients of an embedding and of a gather with heavy collisions: the same bits every time.
#[test]
fn collisions_give_the_same_bits_every_time() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    let index = whole(&[3000], 5, 25).to(&gpu);
    let grad = normal(&[3000, 17], 26).to(&gpu);
    let narrow = normal(&[3000, 1], 27).to(&gpu);
    let spread = index.reshape([3000, 1]).expand([3000, 17]);
    let embedding_gradient = |index: &Tensor, grad: &Tensor| {
        let table = Tensor::zeros([5, 17], &gpu).requires_grad_(true);
        (table.rows(index) * grad).sum(..).backward();
        table.grad().expect("the table requires one")
    };
    let run = || -> Vec<u32> {
        let zeros = Tensor::zeros([5, 17], &gpu);
        let parts = [
            zeros.index_add(0, &index, &grad),
            zeros.narrow(1, 0, 1).index_add(0, &index, &narrow),
            zeros.scatter_add(0, &spread, &grad),
            embedding_gradient(&index, &grad),
            grad.sum(0),
            grad.sum(..),
        ];
        parts.iter().flat_map(|t| t.to_vec::<f32>().unwrap()).map(f32::to_bits).collect()
    };
    let first = run();
    for repeat in 1..50 {
        assert_eq!(run(), first, "repeat {repeat}");
    }
}

#[test]
fn a_bad_index_is_reported_at_the_next_read_until_it_is_cleared() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    let x = Tensor::arange(0, 12, 1, &gpu).to_dtype(DType::F32).reshape([4, 3]);
    let list = |values: &[i64]| Tensor::from_slice(values, [values.len()], &gpu);
    let grid = |values: &[i64]| list(values).reshape([values.len(), 1]);
    let src = |n: usize| Tensor::ones([n, 3], &gpu);
    let one = |n: usize| Tensor::ones([n, 1], &gpu);
    let long: Vec<i64> = (0..200).map(|i| if i == 150 { 9 } else { i % 4 }).collect();
    type Case<'a> = (&'static str, i64, Box<dyn Fn() -> Tensor + 'a>);
    let cases: Vec<Case<'_>> = vec![
        ("index_select", 7, Box::new(|| x.index_select(0, &list(&[1, 7, 2])))),
        ("index_select", 100, Box::new(|| Tensor::ones([4, 8], &gpu).index_select(0, &list(&[1, 100])))),
        ("index_select", -1, Box::new(|| x.index_select(0, &list(&[-1])))),
        ("gather", 4, Box::new(|| x.gather(0, &grid(&[0, 4])))),
        ("scatter", 4, Box::new(|| x.scatter(0, &grid(&[0, 4]), &one(2)))),
        ("scatter_add", -3, Box::new(|| x.scatter_add(0, &grid(&[-3, 1]), &one(2)))),
        ("index_add", 5, Box::new(|| x.index_add(0, &list(&[5, 0]), &src(2)))),
        ("index_add", 9, Box::new(|| x.index_add(0, &list(&long), &src(200)))),
        ("scatter", 9, Box::new(|| x.scatter(0, &grid(&long), &one(200)))),
    ];
    for (op, index, run) in cases {
        let y = run();
        let expected = Error::IndexOutOfRange { op, index, size: 4, at: Some(y.origin().1) };
        assert_eq!(y.to_vec::<f32>().unwrap_err(), expected, "{op} {index}");
        assert_eq!(x.to_vec::<f32>().unwrap_err(), expected, "{op} {index}: not cleared yet");
        gpu.clear_error();
        let sum = x.index_select(0, &list(&[1, 3])).sum(..);
        assert_eq!(sum.item().unwrap(), 42.0, "{op} {index}: cleared");
    }
}

#[test]
fn memory_that_cannot_be_had_is_an_error_and_smaller_work_goes_on() {
    let Some(gpu) = gpu() else { return };
    let _turn = alone();
    let error = Tensor::try_zeros([1 << 42], &gpu).unwrap_err();
    assert!(error.to_string().contains("too large") || matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert!(Tensor::try_zeros([usize::MAX / 16], &gpu).is_err());
    // The result of an operation, too; the panic leaves nothing behind.
    let (column, row) = (Tensor::ones([1 << 16, 1], &gpu), Tensor::ones([1 << 16], &gpu));
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| &column + &row)).unwrap_err();
    let text = panic.downcast_ref::<String>().expect("a formatted message");
    assert!(text.contains("17179869184 bytes"), "{text}");
    let x = Tensor::ones([1000], &gpu);
    assert_eq!(x.sum(..).item().unwrap(), 1000.0);
}
