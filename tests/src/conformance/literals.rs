//! Values written down by hand, from the definition of each operation.

use super::Report;
use orkest_core::{Device, Element, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

/// Small computations with results that anyone can check.
pub fn literals(device: &Device) -> Report {
    let mut report = Report::default();
    let t = |values: &[f32]| Tensor::from_slice(values, values.len(), device);
    let matrix =
        |values: &[f32], rows: usize| Tensor::from_slice(values, [rows, values.len() / rows], device);
    let i = |values: &[i64]| Tensor::from_slice(values, values.len(), device);

    let mut floats = |name: &str, f: &dyn Fn() -> Tensor, expected: &[f32]| {
        report.check(|| name.to_string(), equal(f, expected, |a, b| a == b || a.is_nan() && b.is_nan()));
    };
    let x = matrix(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2);
    floats("add a row", &|| &x + t(&[10.0, 20.0, 30.0]), &[11.0, 22.0, 33.0, 14.0, 25.0, 36.0]);
    floats("add a column", &|| &x + matrix(&[10.0, 20.0], 2), &[11.0, 12.0, 13.0, 24.0, 25.0, 26.0]);
    floats("a number on the left", &|| 1.0 - &x, &[0.0, -1.0, -2.0, -3.0, -4.0, -5.0]);
    floats("division by zero", &|| t(&[1.0, -1.0, 0.0]) / t(&[0.0, 0.0, 0.0]), &[INF, -INF, NAN]);
    floats(
        "remainder has the divisor's sign",
        &|| t(&[5.0, -5.0, 5.0, -5.0]) % t(&[3.0, 3.0, -3.0, -3.0]),
        &[2.0, 1.0, -1.0, -2.0],
    );
    floats("maximum keeps NaN", &|| t(&[1.0, NAN, 2.0]).maximum(t(&[NAN, 1.0, 3.0])), &[NAN, NAN, 3.0]);
    floats(
        "relu keeps NaN",
        &|| t(&[-1.0, 0.0, 2.0, NAN, -INF, INF]).relu(),
        &[0.0, 0.0, 2.0, NAN, 0.0, INF],
    );
    floats(
        "clamp keeps NaN",
        &|| t(&[-3.0, 0.5, 3.0, NAN, INF]).clamp(-1.0, 1.0),
        &[-1.0, 0.5, 1.0, NAN, 1.0],
    );
    floats("halves round to even", &|| t(&[0.5, 1.5, 2.5, -0.5, -1.5]).round(), &[0.0, 2.0, 2.0, 0.0, -2.0]);
    floats("powers", &|| t(&[2.0, 3.0, 4.0]).pow(t(&[3.0, 0.0, 0.5])), &[8.0, 1.0, 2.0]);
    floats("square root", &|| t(&[4.0, 0.0, -1.0, INF]).sqrt(), &[2.0, 0.0, NAN, INF]);
    floats("exp and log at the ends", &|| t(&[-INF, 0.0, INF]).exp(), &[0.0, 1.0, INF]);
    floats("log at the ends", &|| t(&[0.0, 1.0, INF, -1.0]).log(), &[-INF, 0.0, INF, NAN]);
    floats("sigmoid and tanh saturate", &|| t(&[-1e4, 0.0, 1e4]).sigmoid(), &[0.0, 0.5, 1.0]);
    floats("tanh saturates", &|| t(&[-1e4, 0.0, 1e4]).tanh(), &[-1.0, 0.0, 1.0]);
    floats("sum of everything", &|| x.sum(..), &[21.0]);
    floats("sum of rows", &|| x.sum(1), &[6.0, 15.0]);
    floats("sum of a transposed view", &|| x.transpose(0, 1).sum(1), &[5.0, 7.0, 9.0]);
    floats("sum of nothing", &|| Tensor::zeros([2, 0], device).sum(1), &[0.0, 0.0]);
    floats("product of nothing", &|| Tensor::zeros([0], device).prod(0), &[1.0]);
    floats("mean of nothing", &|| Tensor::zeros([0], device).mean(0), &[NAN]);
    floats("max keeps NaN", &|| matrix(&[1.0, NAN, 3.0, 2.0], 2).max(1), &[NAN, 3.0]);
    floats("min of a reversed view", &|| t(&[3.0, 1.0, 2.0]).flip(&[0]).min(0), &[1.0]);
    floats("cumsum", &|| t(&[1.0, 2.0, 3.0]).cumsum(0), &[1.0, 3.0, 6.0]);
    floats("matmul", &|| x.matmul(&x.transpose(0, 1)), &[14.0, 32.0, 32.0, 77.0]);
    floats("a row times a matrix", &|| t(&[1.0, 1.0]).matmul(&x), &[5.0, 7.0, 9.0]);
    floats(
        "an inner size of zero",
        &|| Tensor::zeros([2, 0], device).matmul(&Tensor::zeros([0, 2], device)),
        &[0.0; 4],
    );
    floats("softmax of equal numbers", &|| t(&[1e4, 1e4, 1e4, 1e4]).softmax(0), &[0.25; 4]);
    floats("softmax beside -inf", &|| t(&[-INF, 0.0, -INF]).softmax(0), &[0.0, 1.0, 0.0]);
    floats("softmax of -inf only", &|| t(&[-INF, -INF]).softmax(0), &[NAN, NAN]);
    floats("gather", &|| x.gather(1, &i(&[2, 0]).reshape([2, 1])), &[3.0, 4.0]);
    floats("index_select", &|| x.index_select(1, &i(&[2, 2, 0])), &[3.0, 3.0, 1.0, 6.0, 6.0, 4.0]);
    floats(
        "scatter_add with collisions",
        &|| t(&[0.0; 3]).scatter_add(0, &i(&[1, 1, 0]), &t(&[1.0, 2.0, 4.0])),
        &[4.0, 3.0, 0.0],
    );
    floats("where", &|| t(&[1.0, -1.0]).gt(0).where_(t(&[10.0, 10.0]), t(&[NAN, 20.0])), &[10.0, 20.0]);
    floats("sort puts NaN last", &|| t(&[2.0, NAN, -INF, 1.0]).sort(0, false).0, &[-INF, 1.0, 2.0, NAN]);
    floats(
        "average pool beside padding",
        &|| x.reshape([1, 1, 2, 3]).avg_pool2d([2, 3], 1, [1, 0], false),
        &[2.0, 3.5, 5.0],
    );
    floats("max pool", &|| x.reshape([1, 1, 2, 3]).max_pool2d([2, 2], 1, 0), &[5.0, 6.0]);
    floats(
        "a convolution that adds neighbours",
        &|| x.reshape([1, 2, 3]).conv1d(&Tensor::ones([1, 2, 2], device), None, 1, 0, 1, 1),
        &[12.0, 16.0],
    );
    floats("scalars have no dimensions", &|| Tensor::full((), 3.0, device) * 2.0, &[6.0]);

    let mut integers = |name: &str, f: &dyn Fn() -> Tensor, expected: &[i64]| {
        report.check(|| name.to_string(), equal(f, expected, |a, b| a == b));
    };
    integers("integer sums", &|| i(&[1, 2, 3]).sum(0), &[6]);
    integers("sums of bools count", &|| t(&[1.0, -1.0, 2.0]).gt(0).sum(0), &[2]);
    integers("integer remainder", &|| i(&[7, -7]) % i(&[3, 3]), &[1, 2]);
    integers("integer powers", &|| i(&[2, -3]).pow(i(&[10, 3])), &[1024, -27]);
    integers("argmax takes the first", &|| t(&[1.0, 3.0, 3.0]).argmax(0), &[1]);
    integers("argmax takes NaN", &|| t(&[1.0, NAN, 3.0]).argmax(0), &[1]);
    integers("stable argsort", &|| t(&[1.0, 0.0, 1.0, 0.0]).argsort(0, false), &[1, 3, 0, 2]);
    integers("floats are cut", &|| t(&[1.9, -1.9]).to_dtype(orkest_core::DType::I64), &[1, -1]);
    integers("large integers stay exact", &|| i(&[(1 << 30) + 1]) + 1, &[(1 << 30) + 2]);
    report
}

fn equal<T: Element>(f: &dyn Fn() -> Tensor, expected: &[T], same: fn(T, T) -> bool) -> Result<(), String> {
    let result = catch_unwind(AssertUnwindSafe(|| f().to_vec::<T>()));
    let values = match result {
        Ok(values) => values.map_err(|e| e.to_string())?,
        Err(panic) => return Err(format!("panic: {}", crate::parity::message(&*panic))),
    };
    match values.len() == expected.len() && values.iter().zip(expected).all(|(a, b)| same(*a, *b)) {
        true => Ok(()),
        false => Err(format!("{values:?} instead of {expected:?}")),
    }
}
