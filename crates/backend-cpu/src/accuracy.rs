//! How far f32 results are from f64 ones, at every instruction level: the bounds that `docs/numerics.md` states.
//!
//! The reference is the same operation in f64 on the same numbers; other tests hold that against its definition.

use crate::simd::for_each_level;
use crate::testing::{Data, Draw, run};
use orkest_core::op::{Recurrence, RecurrentCell, Reduce, Unary};
use orkest_core::{DType, DimSet, Op};

/// Half the distance from 1 to the next f32.
const EPSILON: f64 = 5.960_464_477_539_063e-8;

/// A unit in the last place of an f32 next to `x`.
fn ulp(x: f64) -> f64 {
    (x.abs().max(f32::MIN_POSITIVE as f64).log2().floor() - 23.0).exp2()
}

/// Input values of shapes; `f32` holds them exactly.
type Inputs<'a> = &'a [(&'a [usize], Vec<f64>)];

/// The first output in f32 and in f64.
fn both(op: &Op, inputs: Inputs<'_>, outputs: &[&[usize]]) -> [Vec<f64>; 2] {
    [DType::F32, DType::F64].map(|dtype| {
        let inputs: Vec<Data> =
            inputs.iter().map(|(shape, values)| Data::new(dtype, shape, values)).collect();
        let outputs: Vec<(&[usize], DType)> = outputs.iter().map(|shape| (*shape, dtype)).collect();
        run(op, &inputs.iter().collect::<Vec<_>>(), &outputs).unwrap()[0].values()
    })
}

/// At every level no element is further from the f64 result than `bound` times what `unit` gives for it.
#[track_caller]
fn check(
    name: &str,
    bound: f64,
    op: &Op,
    inputs: Inputs<'_>,
    outputs: &[&[usize]],
    unit: impl Fn(usize, f64) -> f64,
) {
    for_each_level(|level| {
        let [got, want] = both(op, inputs, outputs);
        let error =
            |i: usize| if got[i] == want[i] { 0.0 } else { (got[i] - want[i]).abs() / unit(i, want[i]) };
        let worst = (0..got.len()).map(error).fold(0.0, f64::max);
        println!("{name} {level:?}: {worst:.2}");
        assert!(worst <= bound, "{name}: {worst:.2} units at {level:?}, at most {bound} are allowed");
    });
}

/// `count` normal-looking numbers of this size that f32 holds exactly.
fn spread(draw: &mut Draw, count: usize, size: f64) -> Vec<f64> {
    (0..count).map(|_| ((0..4).map(|_| draw.value()).sum::<f64>() * size) as f32 as f64).collect()
}

#[test]
fn activations() {
    let x: Vec<f64> = (-60_000..60_000).map(|i| (i as f64 * 0.00025) as f32 as f64).collect();
    let shape: &[usize] = &[x.len()];
    let inputs = [(shape, x.clone())];
    // Far to the left they are differences of nearly equal numbers: errors in units of what is multiplied, the input.
    for (name, op, bound) in
        [("gelu", Unary::Gelu, 3.0), ("gelu_tanh", Unary::GeluTanh, 2.0), ("silu", Unary::Silu, 2.5)]
    {
        check(name, bound, &Op::Unary(op), &inputs, &[shape], |i, _| ulp(x[i]));
    }
}

#[test]
fn softmax() {
    let (rows, width) = (50, 1000);
    let shape: &[usize] = &[rows, width];
    let x = spread(&mut Draw(1), rows * width, 5.0);
    let below = |i: usize| x[i / width * width..][..width].iter().fold(0.0, |max: f64, y| max.max(*y)) - x[i];
    let inputs = [(shape, x.clone())];
    // The distance from the largest is rounded once, and that error grows with it.
    check("softmax", 3.0, &Op::Softmax { log: false }, &inputs, &[shape], |i, y| ulp(y) * below(i).max(1.0));
    check("log_softmax", 2.0, &Op::Softmax { log: true }, &inputs, &[shape], |_, y| ulp(y.abs().max(1.0)));
}

#[test]
fn norms() {
    let (rows, width) = (50, 768);
    let (shape, column): (&[usize], &[usize]) = (&[rows, width], &[rows, 1]);
    let mut draw = Draw(2);
    for offset in [0.0, 10.0] {
        let x = spread(&mut draw, rows * width, 1.0).iter().map(|x| (x + offset) as f32 as f64).collect();
        let ones = vec![1.0; width];
        let parameter: &[usize] = &[width];
        let inputs = [(shape, x), (parameter, ones), (parameter, vec![0.0; width])];
        // Units of the input's size: a mean is known to half of that.
        let unit = move |_: usize, y: f64| ulp(y.abs().max(1.0).max(offset));
        let op = Op::LayerNorm { eps: 1e-5, weight: true, bias: true };
        check("layer_norm", 4.0, &op, &inputs, &[shape, column, column], unit);
        let op = Op::RmsNorm { eps: 1e-5, weight: true };
        check("rms_norm", 3.0, &op, &inputs[..2], &[shape, column], unit);
    }
    let (images, channels, size) = (16, 8, 400);
    let (shape, parameter): (&[usize], &[usize]) = (&[images, channels, size], &[channels]);
    let x = spread(&mut draw, images * channels * size, 1.0);
    let op = Op::BatchNorm { eps: 1e-5, weight: false, bias: false };
    check("batch_norm", 3.0, &op, &[(shape, x)], &[shape, parameter, parameter], |_, y| {
        ulp(y.abs().max(1.0))
    });
}

#[test]
fn sums() {
    // Rounded once, at the end.
    let x = spread(&mut Draw(3), 300_000, 1.0);
    let all: &[usize] = &[x.len()];
    let op = |dims: DimSet| Op::Reduce(Reduce::Sum, dims);
    check("sum", 0.5001, &op(DimSet::one(0)), &[(all, x.clone())], &[&[1]], |_, y| ulp(y));
    let (rows, columns): (&[usize], &[usize]) = (&[1000, 300], &[1, 300]);
    check("sum of columns", 0.5001, &op(DimSet::one(0)), &[(rows, x)], &[columns], |_, y| ulp(y));
}

/// In units of half an ulp of 1, relative to `Σ |a| |b|`.
#[test]
fn products() {
    let mut draw = Draw(4);
    for (m, k, n) in
        [(1, 4096, 64), (64, 64, 64), (70, 1000, 50), (130, 4096, 33), (3, 300, 2), (2, 2000, 300)]
    {
        let (a, b) = (spread(&mut draw, m * k, 1.0), spread(&mut draw, k * n, 1.0));
        let mut sizes = vec![0.0; m * n];
        for (i, size) in sizes.iter_mut().enumerate() {
            *size = (0..k).map(|p| (a[i / n * k + p] * b[p * n + i % n]).abs()).sum();
        }
        let (sa, sb, sc): (&[usize], &[usize], &[usize]) = (&[m, k], &[k, n], &[m, n]);
        let name = format!("matmul {m} {k} {n}");
        check(&name, 4.0, &Op::Matmul, &[(sa, a), (sb, b)], &[sc], |i, _| EPSILON * sizes[i]);
    }
}

/// In units of half an ulp of the largest value.
#[test]
fn attention() {
    let mut draw = Draw(5);
    let (t, d) = (130, 64);
    let shape: &[usize] = &[2, 3, t, d];
    let q: Vec<_> = (0..3).map(|_| (shape, spread(&mut draw, 6 * t * d, 1.0))).collect();
    let op = Op::Attention { scale: 0.125, causal: true, mask: false };
    check("attention", 8.0, &op, &q, &[shape, &[2, 3, t]], |_, _| EPSILON * 4.0);
}

/// The state after many steps, which is below 1 in size.
#[test]
fn recurrent_states() {
    let mut draw = Draw(6);
    let (steps, batch, input, hidden) = (100, 4, 64, 128);
    let rows = steps * batch;
    for (cell, gates) in [(RecurrentCell::Lstm, 4), (RecurrentCell::Gru, 3), (RecurrentCell::RnnTanh, 1)] {
        let recurrence = Recurrence { cell, reverse: false, batch_sizes: vec![batch; steps].into() };
        let wide = gates * hidden;
        let (x, wih, whh, state): (&[usize], &[usize], &[usize], &[usize]) =
            (&[rows, input], &[wide, input], &[wide, hidden], &[batch, hidden]);
        let mut inputs = vec![
            (x, spread(&mut draw, rows * input, 1.0)),
            (wih, spread(&mut draw, wide * input, 0.08)),
            (whh, spread(&mut draw, wide * hidden, 0.08)),
            (state, vec![0.0; batch * hidden]),
        ];
        let (y, all): (&[usize], &[usize]) = (&[rows, hidden], &[rows, 4 * hidden]);
        let mut outputs = vec![y, state];
        if cell == RecurrentCell::Lstm {
            inputs.push((state, vec![0.0; batch * hidden]));
            outputs.extend([state, all, y]);
        } else if cell == RecurrentCell::Gru {
            outputs.push(all);
        }
        let op = Op::Recurrent { recurrence, bias: false };
        check(cell.name(), 32.0, &op, &inputs, &outputs, |_, _| EPSILON);
    }
}

/// Infinities, NaN, zeros of both signs and denormal numbers, where more than one element counts.
#[test]
fn special_values() {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let tiny = f32::from_bits(1) as f64;
    for_each_level(|level| {
        for width in [3, 20, 100, 300] {
            let row = |first: &[f64], rest: f64| {
                let mut row = vec![rest; width];
                row[width - first.len()..].copy_from_slice(first);
                row
            };
            let shape: &[usize] = &[1, width];
            let softmax = |row: Vec<f64>, log: bool| {
                let x = Data::new(DType::F32, shape, &row);
                run(&Op::Softmax { log }, &[&x], &[(shape, DType::F32)]).unwrap()[0].values()
            };
            let what = format!("{level:?}, rows of {width}");
            // A NaN or an infinity is felt by the whole row; -∞ has no share.
            for log in [false, true] {
                assert!(softmax(row(&[nan], 1.0), log).iter().all(|y| y.is_nan()), "{what}");
                assert!(softmax(row(&[inf], 1.0), log).iter().all(|y| y.is_nan()), "{what}");
                assert!(softmax(row(&[], -inf), log).iter().all(|y| y.is_nan()), "{what}");
            }
            assert_eq!(softmax(row(&[2.0], -inf), false), row(&[1.0], 0.0), "{what}");
            assert_eq!(softmax(row(&[2.0], -inf), true), row(&[0.0], -inf), "{what}");
            // What exponentials make of denormal differences is 1.
            assert_eq!(softmax(row(&[tiny], 0.0), false), vec![(1.0 / width as f32) as f64; width], "{what}");

            let reduce = |kind: Reduce, row: &[f64]| {
                let x = Data::new(DType::F32, shape, row);
                run(&Op::Reduce(kind, DimSet::one(1)), &[&x], &[(&[1, 1], DType::F32)]).unwrap()[0].values()
                    [0]
            };
            assert_eq!(reduce(Reduce::Max, &row(&[tiny], 0.0)), tiny, "{what}");
            assert_eq!(reduce(Reduce::Min, &row(&[tiny], 1.0)), tiny, "{what}");
            assert_eq!(reduce(Reduce::Sum, &row(&[tiny, tiny], 0.0)), 2.0 * tiny, "{what}");
            assert_eq!(reduce(Reduce::Sum, &row(&[inf], 1.0)), inf, "{what}");
            assert!(reduce(Reduce::Sum, &row(&[inf, -inf], 1.0)).is_nan(), "{what}");
            assert!(reduce(Reduce::Max, &row(&[nan], inf)).is_nan(), "{what}");
        }
    });
}
