//! NaN, infinities, zeros of both signs and denormal numbers: what PyTorch and IEEE 754 make of them, at every instruction level and
//! in rows of every length around that of a vector, with the odd number in the first, a middle and the last place.

use crate::oracle::check;
use crate::simd::for_each_level;
use crate::testing::{Data, Draw, Lay, run};
use orkest_core::op::{ArgReduce, Binary, Compare, Cumulative, Reduce, Unary, Window};
use orkest_core::{DType, DimSet, Op, Scalar};

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;
const LENGTHS: [usize; 14] = [1, 2, 3, 5, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130];
const FLOATS: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::BF16];

/// A denormal number that the dtype holds exactly.
fn denormal(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::from_bits(3),
        DType::F16 => 3.0 * 2f64.powi(-24),
        DType::BF16 => 3.0 * 2f64.powi(-133),
        _ => 3.0 * 2f64.powi(-149),
    }
}

/// Small multiples of 1/4, which all dtypes hold and whose sums are exact.
fn quarters(draw: &mut Draw, count: usize) -> Vec<f64> {
    (0..count).map(|_| draw.below(17) as f64 / 4.0 - 2.0).collect()
}

/// Calls `f` with rows of every length and dtype that hold one or two odd numbers, at every level.
fn for_each_row(mut f: impl FnMut(DType, &[f64])) {
    for_each_level(|_| {
        let mut draw = Draw(51);
        for dtype in FLOATS {
            for n in LENGTHS {
                for odd in
                    [&[NAN][..], &[INF], &[-INF], &[INF, -INF], &[-INF, NAN], &[-0.0], &[denormal(dtype)]]
                {
                    for place in [0, n / 2, n - 1] {
                        let mut row = quarters(&mut draw, n);
                        for (i, odd) in odd.iter().enumerate() {
                            row[(place + i) % n] = *odd;
                        }
                        f(dtype, &row);
                    }
                }
            }
        }
    });
}

#[test]
fn elementwise_operations() {
    for_each_row(|dtype, row| {
        let shape = [row.len()];
        let x = Data::new(dtype, &shape, row);
        let other: Vec<f64> = row.iter().rev().copied().collect();
        let y = Data::laid(Lay::Flipped, dtype, &shape, &other);
        let kept: &[(&[usize], DType)] = &[(&shape, dtype)];
        for kind in [Unary::Neg, Unary::Abs, Unary::Relu, Unary::Clamp { min: -1.0, max: 0.5 }] {
            check(&Op::Unary(kind), &[&x], kept, 0.0);
        }
        for kind in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Maximum, Binary::Minimum] {
            check(&Op::Binary(kind), &[&x, &y], kept, 0.0);
        }
        let condition: Vec<f64> = (0..row.len()).map(|i| (i % 3 == 0) as u8 as f64).collect();
        let condition = Data::new(DType::Bool, &shape, &condition);
        check(&Op::Where, &[&condition, &x, &y], kept, 0.0);
        check(&Op::Copy, &[&x], kept, 0.0);
        let truth: &[(&[usize], DType)] = &[(&shape, DType::Bool)];
        for kind in [Compare::Eq, Compare::Ne, Compare::Lt, Compare::Le, Compare::Gt, Compare::Ge] {
            check(&Op::Compare(kind), &[&x, &y], truth, 0.0);
            for number in [0.0, INF, NAN] {
                check(&Op::CompareScalar(kind, Scalar::Float(number)), &[&x], truth, 0.0);
            }
        }
        for kind in [Unary::IsNan, Unary::IsInf, Unary::IsFinite, Unary::LogicalNot] {
            check(&Op::Unary(kind), &[&x], truth, 0.0);
        }
    });
}

#[test]
fn reductions_and_running_sums() {
    for_each_row(|dtype, row| {
        let n = row.len();
        let ordinary = vec![0.5; n];
        // The row beside others, along the last dimension and across it: NaN must not reach them.
        let rows: Vec<f64> = [&ordinary, row, &ordinary].concat();
        let columns: Vec<f64> = (0..n).flat_map(|i| [0.5, row[i], 0.5]).collect();
        for (shape, values, dim) in [([3, n], rows, 1), ([n, 3], columns, 0)] {
            let x = Data::new(dtype, &shape, &values);
            let mut reduced = shape;
            reduced[dim] = 1;
            for kind in [Reduce::Max, Reduce::Min, Reduce::Sum, Reduce::Mean] {
                // Sums of quarters are exact, but where a denormal number is among them; the mean is rounded once.
                let exact = matches!(kind, Reduce::Max | Reduce::Min);
                let tolerance = if exact { 0.0 } else { 2.0 * dtype.epsilon() };
                check(&Op::Reduce(kind, DimSet::one(dim)), &[&x], &[(&reduced, dtype)], tolerance);
            }
            for kind in [Reduce::Any, Reduce::All] {
                check(&Op::Reduce(kind, DimSet::one(dim)), &[&x], &[(&reduced, DType::Bool)], 0.0);
            }
            for kind in [ArgReduce::Max, ArgReduce::Min] {
                check(&Op::ArgReduce(kind, dim), &[&x], &[(&reduced, DType::I64)], 0.0);
            }
            check(&Op::Cumulative(Cumulative::Sum, dim), &[&x], &[(&shape, dtype)], 2.0 * dtype.epsilon());
            let sorted: &[(&[usize], DType)] = &[(&shape, dtype), (&shape, DType::I64)];
            for flag in [false, true] {
                check(&Op::Sort { dim, descending: flag }, &[&x], sorted, 0.0);
                let k = n.div_ceil(2);
                let mut best = shape;
                best[dim] = k;
                check(
                    &Op::TopK { k, dim, largest: flag },
                    &[&x],
                    &[(&best, dtype), (&best, DType::I64)],
                    0.0,
                );
            }
        }
    });
}

#[test]
fn windows() {
    for_each_row(|dtype, row| {
        let n = row.len();
        let w = Window { input: [1, n], kernel: [1, 3], stride: [1, 1], padding: [0, 1], dilation: [1, 1] };
        let shape = [1, 1, 1, n];
        let x = Data::new(dtype, &shape, row);
        check(&Op::MaxPool(w), &[&x], &[(&shape, dtype), (&shape, DType::I64)], 0.0);
        for all in [false, true] {
            check(&Op::AvgPool(w, all), &[&x], &[(&shape, dtype)], dtype.epsilon());
        }
    });
}

/// Softmax by its definition, in f64.
fn softmax(row: &[f64], log: bool) -> Vec<f64> {
    // NaN loses against numbers in `f64::max`, but comes back through the sum.
    let max = row.iter().copied().fold(-INF, f64::max);
    let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
    row.iter().map(|x| if log { x - max - sum.ln() } else { (x - max).exp() / sum }).collect()
}

#[track_caller]
fn near(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g == w || g.is_nan() && w.is_nan() || (g - w).abs() <= tolerance * w.abs().max(1.0);
        assert!(same, "{what}: element {i} is {g:e}, not {w:e}");
    }
}

#[test]
fn softmax_and_cross_entropy() {
    for_each_row(|dtype, row| {
        if !matches!(dtype, DType::F32 | DType::F64) {
            return; // there are no kernels for half precision
        }
        let n = row.len();
        let ordinary = vec![0.5; n];
        let blind = vec![-INF; n];
        let rows = [&ordinary[..], row, &blind, &ordinary].concat();
        let (x, shape) = (Data::new(dtype, &[4, n], &rows), [4, n]);
        for log in [false, true] {
            let y = run(&Op::Softmax { log }, &[&x], &[(&shape, dtype)]).unwrap();
            let want: Vec<f64> = rows.chunks(n).flat_map(|row| softmax(row, log)).collect();
            near(&y[0].values(), &want, 4.0 * dtype.epsilon(), &format!("{dtype} {log} {row:?}"));
        }
        // Without infinities among the logits that are not meant: those have the probability 0 only if nothing is smoothed.
        for (target, label_smoothing) in [(0, 0.0), (n - 1, 0.0), (n / 2, 0.1)] {
            let targets = Data::new(DType::I64, &[4], &[target as f64; 4]);
            let op = Op::CrossEntropy { ignore_index: -100, label_smoothing };
            let y = run(&op, &[&x, &targets], &[(&[4], dtype), (&[4], dtype)]).unwrap();
            let want: Vec<f64> = rows
                .chunks(n)
                .map(|row| {
                    let log_p = softmax(row, true);
                    let spread = log_p.iter().sum::<f64>() / n as f64;
                    match label_smoothing {
                        0.0 => -log_p[target],
                        s => -(1.0 - s) * log_p[target] - s * spread,
                    }
                })
                .collect();
            near(&y[0].values(), &want, 8.0 * dtype.epsilon(), &format!("{dtype} {label_smoothing} {row:?}"));
        }
    });
}

/// A number that is none spoils its row (or column) of a product, an infinity makes it infinite, and no other is touched: what a
/// kernel computes beyond the edge of a matrix must not come back.
#[test]
fn products() {
    for_each_level(|_| {
        let mut draw = Draw(52);
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            for (m, k, n) in
                [(1, 1, 1), (3, 5, 2), (7, 9, 17), (17, 33, 16), (1, 70, 40), (40, 70, 1), (33, 130, 37)]
            {
                for odd in [NAN, INF, -INF] {
                    for (row, at) in [(0, 0), (m / 2, k / 2), (m - 1, k - 1)] {
                        let mut a = quarters(&mut draw, m * k);
                        let b: Vec<f64> = quarters(&mut draw, k * n).iter().map(|b| b + 0.125).collect();
                        a[row * k + at] = odd;
                        let (a, b) = (Data::new(dtype, &[m, k], &a), Data::new(dtype, &[k, n], &b));
                        let tolerance = 2.0 * dtype.epsilon();
                        check(&Op::Matmul, &[&a, &b], &[(&[m, n], dtype)], tolerance);
                        let turned = |x: &Data| {
                            let layout = x.layout.permute(&[1, 0]);
                            Data { buffer: x.buffer.clone(), layout, dtype: x.dtype }
                        };
                        check(&Op::Matmul, &[&turned(&b), &turned(&a)], &[(&[n, m], dtype)], tolerance);
                    }
                }
            }
        }
    });
}

/// Denormal numbers are numbers: 0 < x, x / x = 1, x - y is 0 only if x is y.
#[test]
fn denormal_numbers_are_kept() {
    for_each_level(|level| {
        for dtype in FLOATS {
            let tiny = denormal(dtype);
            for n in LENGTHS {
                let what = format!("{dtype} {n} {level:?}");
                let shape = [n];
                let x = Data::new(dtype, &shape, &vec![tiny; n]);
                let ones = Data::new(dtype, &shape, &vec![1.0; n]);
                let kept: &[(&[usize], DType)] = &[(&shape, dtype)];
                let values = |op: Op, inputs: &[&Data]| run(&op, inputs, kept).unwrap()[0].values();
                assert_eq!(values(Op::Binary(Binary::Mul), &[&x, &ones]), vec![tiny; n], "{what}");
                assert_eq!(values(Op::Binary(Binary::Div), &[&x, &x]), vec![1.0; n], "{what}");
                assert_eq!(values(Op::Binary(Binary::Add), &[&x, &x]), vec![2.0 * tiny; n], "{what}");
                assert_eq!(values(Op::Unary(Unary::Relu), &[&x]), vec![tiny; n], "{what}");
                let sum = run(&Op::Reduce(Reduce::Sum, DimSet::one(0)), &[&x], &[(&[1], dtype)]).unwrap();
                assert_eq!(sum[0].values(), [n as f64 * tiny], "{what}");
                let (row, column) =
                    (Data::new(dtype, &[1, n], &vec![tiny; n]), Data::new(dtype, &[n, 1], &vec![1.0; n]));
                let product = run(&Op::Matmul, &[&row, &column], &[(&[1, 1], dtype)]).unwrap();
                assert_eq!(product[0].values(), [n as f64 * tiny], "{what}");
            }
        }
        // The exponential of numbers whose result is denormal.
        let x: Vec<f64> = (0..40).map(|i| -87.5 - i as f64 * 0.4).collect();
        let y = run(&Op::Unary(Unary::Exp), &[&Data::new(DType::F32, &[40], &x)], &[(&[40], DType::F32)])
            .unwrap();
        for (y, x) in y[0].values().iter().zip(&x) {
            let want = (*x as f32 as f64).exp();
            assert!((y - want).abs() <= 2f64.powi(-149), "exp({x}) is {y:e}, not {want:e}");
        }
    });
}
