//! Unit tests of the basic kernels against the interpreter of `core`, over dtypes, memory layouts and SIMD levels.

use crate::simd::for_each_level;
use crate::testing::{Data, Draw, LAYS, Lay, run, run_in_place};
use orkest_core::op::{ArgReduce, Binary, Compare, Cumulative, RandomKind, Reduce, Unary, Window};
use orkest_core::reference::Reference;
use orkest_core::{Backend, DType, DimSet, Layout, Op, Output, Scalar, Shape, View, with_dtype};

/// What the interpreter makes of the same inputs.
fn expected(op: &Op, inputs: &[&Data], outputs: &[(&[usize], DType)]) -> Vec<Vec<f64>> {
    let uploaded: Vec<_> =
        inputs.iter().map(|d| (upload(d), Layout::contiguous(*d.layout.shape()))).collect();
    let views: Vec<View<'_>> = uploaded
        .iter()
        .zip(inputs)
        .map(|((buffer, layout), d)| View { buffer, layout, dtype: d.dtype })
        .collect();
    let mut out: Vec<Output> = outputs.iter().map(|(s, d)| Output::new(Shape::new(s), *d)).collect();
    Reference.execute(op, &views, &mut out).unwrap();
    out.iter()
        .map(|o| {
            let view = View { buffer: o.buffer.as_ref().unwrap(), layout: &o.layout, dtype: o.dtype };
            let bytes = Reference.download(view).unwrap();
            with_dtype!(o.dtype, T => {
                <T as orkest_core::Element>::from_bytes(&bytes).unwrap().iter()
                    .map(|x| orkest_core::Element::to_f64(*x)).collect()
            })
        })
        .collect()
}

fn upload(data: &Data) -> orkest_core::Buffer {
    let values = data.values();
    with_dtype!(data.dtype, T => {
        let elements: Vec<T> = values.iter().map(|v| <T as orkest_core::Element>::from_f64(*v)).collect();
        let size = size_of_val(&elements[..]);
        // SAFETY: plain numbers (or bools), seen as bytes.
        let bytes = unsafe { std::slice::from_raw_parts(elements.as_ptr().cast::<u8>(), size) };
        Reference.upload(bytes, data.dtype).unwrap()
    })
}

/// What one step of rounding in a dtype amounts to, with some room for functions that are not rounded exactly.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-14,
        _ => 3.0 * dtype.epsilon(),
    }
}

#[track_caller]
fn assert_near(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let near = g == w || g.is_nan() && w.is_nan() || (g - w).abs() <= tolerance * w.abs().max(1e-2);
        assert!(near, "{what}: element {i} is {g:e}, not {w:e}");
    }
}

#[track_caller]
pub(crate) fn check(op: &Op, inputs: &[&Data], outputs: &[(&[usize], DType)], tolerance: f64) {
    let lays: Vec<_> = inputs.iter().map(|d| format!("{} {:?}", d.dtype, d.layout)).collect();
    let got = run(op, inputs, outputs).unwrap();
    for (got, want) in got.iter().zip(expected(op, inputs, outputs)) {
        assert_near(&got.values(), &want, tolerance, &format!("{op:?} of {lays:?}"));
    }
}

const SHAPES: [&[usize]; 6] = [&[], &[1], &[7], &[3, 1, 5], &[2, 37, 61], &[1, 1100]];

/// Numbers that suit the dtype: integers of both signs where there are any.
fn numbers(draw: &mut Draw, dtype: DType, count: usize) -> Vec<f64> {
    let range =
        |draw: &mut Draw, low: i64, high: i64| (low + draw.below((high - low) as usize) as i64) as f64;
    (0..count)
        .map(|_| match dtype {
            DType::Bool => range(draw, 0, 2),
            DType::U8 => range(draw, 0, 256),
            DType::I32 | DType::I64 => range(draw, -1000, 1000),
            _ => draw.value() * 4.0,
        })
        .collect()
}

fn tensor(draw: &mut Draw, lay: Lay, dtype: DType, shape: &[usize]) -> Data {
    let values = numbers(draw, dtype, shape.iter().product());
    Data::laid(lay, dtype, shape, &values)
}

/// Calls `f` with a tensor of every dtype, layout and shape.
fn for_each_tensor(seed: u64, mut f: impl FnMut(&mut Draw, Data)) {
    let mut draw = Draw(seed);
    for dtype in DType::ALL {
        for shape in SHAPES {
            for lay in LAYS {
                let x = tensor(&mut draw, lay, dtype, shape);
                f(&mut draw, x);
            }
        }
    }
}

const UNARY: [Unary; 39] = [
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
    Unary::Softplus { beta: 2.0, threshold: 5.0 },
    Unary::LeakyRelu(0.1),
    Unary::Elu(0.7),
    Unary::Clamp { min: -1.5, max: 0.5 },
    Unary::Clamp { min: f64::NEG_INFINITY, max: 3.0 },
    Unary::Clamp { min: 2.0, max: 1.0 },
    Unary::Floor,
    Unary::Ceil,
    Unary::Round,
    Unary::Trunc,
    Unary::IsNan,
    Unary::IsInf,
    Unary::IsFinite,
    Unary::LogicalNot,
];

/// Half precision and cancellation (gelu of -3, log near 1) need an absolute part.
fn unary_tolerance(kind: Unary, dtype: DType) -> f64 {
    match (kind, dtype) {
        (_, DType::F64) => 1e-12,
        (Unary::Gelu, DType::F32) => 8e-5,
        (_, DType::F32) => 2e-5,
        _ => 2.0 * dtype.epsilon(),
    }
}

#[test]
fn unary_functions_are_those_of_the_interpreter() {
    for_each_level(|_| {
        let mut case = 0;
        for_each_tensor(1, |_, x| {
            let kinds = UNARY.iter().filter(|k| x.dtype.is_float() || k.keeps_integers());
            for (i, &kind) in kinds.enumerate() {
                // All functions on two shapes, every third on the others.
                case += 1;
                if x.layout.rank() != 3 && (i + case) % 3 != 0 {
                    continue;
                }
                let dtype = if kind.is_test() { DType::Bool } else { x.dtype };
                let shape = x.layout.shape().to_vec();
                check(&Op::Unary(kind), &[&x], &[(&shape, dtype)], unary_tolerance(kind, x.dtype));
            }
        });
    });
}

#[test]
fn special_values_pass_through_unary_functions() {
    let values = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1e30, -1e30, 1e-40, 100.0, -100.0];
    for_each_level(|_| {
        for dtype in [DType::F32, DType::F64] {
            let x = Data::new(dtype, &[values.len()], &values);
            for kind in UNARY {
                let out = if kind.is_test() { DType::Bool } else { dtype };
                check(&Op::Unary(kind), &[&x], &[(&[values.len()], out)], unary_tolerance(kind, dtype));
            }
        }
    });
}

/// d/dx by central differences of the interpreter's f64 function.
#[test]
fn unary_gradients_are_derivatives() {
    let mut draw = Draw(2);
    // Away from kinks and poles.
    let x: Vec<f64> = (0..1500)
        .map(|_| draw.value() * 3.0)
        .filter(|x| (x * 2.0 - (x * 2.0).round()).abs() > 1e-3)
        .collect();
    let g = draw.values(x.len());
    let n = x.len();
    let at = |kind, x: &[f64]| {
        expected(&Op::Unary(kind), &[&Data::new(DType::F64, &[n], x)], &[(&[n], DType::F64)]).remove(0)
    };
    for kind in UNARY.into_iter().filter(|k| !k.is_test()) {
        let positive = matches!(
            kind,
            Unary::Log | Unary::Log1p | Unary::Log2 | Unary::Log10 | Unary::Sqrt | Unary::Rsqrt
        );
        let x: Vec<f64> = x
            .iter()
            .map(|&x| if positive || kind == Unary::Reciprocal { x.abs() + 0.2 } else { x })
            .collect();
        if matches!(kind, Unary::Clamp { min, max } if min > max) {
            continue;
        }
        let x: Vec<f64> = if kind == Unary::Tan { x.iter().map(|x| x / 3.0).collect() } else { x };
        let h = 1e-6;
        let (low, high) = (
            at(kind, &x.iter().map(|x| x - h).collect::<Vec<_>>()),
            at(kind, &x.iter().map(|x| x + h).collect::<Vec<_>>()),
        );
        let want: Vec<f64> = (0..n).map(|i| (high[i] - low[i]) / (2.0 * h) * g[i]).collect();
        let v = if kind.grad_uses_output() { at(kind, &x) } else { x };
        for_each_level(|level| {
            for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::F64, 1e-7), (DType::BF16, 0.1)] {
                for lay in [Lay::Contiguous, Lay::Sparse] {
                    let (v, g) = (Data::laid(lay, dtype, &[n], &v), Data::laid(lay, dtype, &[n], &g));
                    let got = run(&Op::UnaryGrad(kind), &[&v, &g], &[(&[n], dtype)]).unwrap()[0].values();
                    for i in 0..n {
                        let near = (got[i] - want[i]).abs() <= tolerance * want[i].abs().max(1.0);
                        // Rounding the argument to bf16 may carry it over a kink.
                        assert!(
                            near || dtype == DType::BF16,
                            "{kind:?} {dtype} {level:?}: {} not {}",
                            got[i],
                            want[i]
                        );
                    }
                }
            }
        });
    }
}

const BINARY: [Binary; 9] = [
    Binary::Add,
    Binary::Sub,
    Binary::Mul,
    Binary::Div,
    Binary::Pow,
    Binary::Remainder,
    Binary::Maximum,
    Binary::Minimum,
    Binary::Atan2,
];

fn suits(kind: Binary, dtype: DType) -> bool {
    dtype.is_float() || kind != Binary::Atan2
}

#[test]
fn binary_functions_are_those_of_the_interpreter() {
    for_each_level(|_| {
        for_each_tensor(3, |draw, a| {
            let shape = a.layout.shape().to_vec();
            for (i, lay) in LAYS.into_iter().enumerate() {
                let mut b = numbers(draw, a.dtype, a.layout.numel());
                // Divisors and exponents that exist; equal elements for the comparisons.
                b.iter_mut().for_each(|b| *b = if *b == 0.0 { 1.0 } else { *b });
                if let (Some(b), Some(a)) = (b.first_mut(), a.values().first()) {
                    *b = if *a == 0.0 { 1.0 } else { *a };
                }
                let b = Data::laid(lay, a.dtype, &shape, &b);
                for kind in BINARY.into_iter().filter(|k| suits(*k, a.dtype)) {
                    let tolerance = if kind == Binary::Remainder { 1e-3 } else { tolerance(a.dtype) };
                    check(&Op::Binary(kind), &[&a, &b], &[(&shape, a.dtype)], tolerance);
                }
                let kind = Compare::ALL[(i + shape.len()) % 6];
                check(&Op::Compare(kind), &[&a, &b], &[(&shape, DType::Bool)], 0.0);
                let mask = tensor(draw, lay, DType::Bool, &shape);
                check(&Op::Where, &[&mask, &a, &b], &[(&shape, a.dtype)], 0.0);
            }
        });
    });
}

#[test]
fn scalars_are_operands() {
    for_each_tensor(4, |_, x| {
        let shape = x.layout.shape().to_vec();
        for scalar in [3.0, 2.0, 0.5, -1.0, 0.3] {
            let scalar =
                if x.dtype.is_float() { Scalar::Float(scalar) } else { Scalar::Int((scalar as i64).max(1)) };
            let scalar = if x.dtype == DType::Bool { Scalar::Bool(true) } else { scalar };
            for kind in BINARY.into_iter().filter(|k| suits(*k, x.dtype)) {
                for swapped in [false, true] {
                    if swapped && matches!(kind, Binary::Div | Binary::Remainder) && !x.dtype.is_float() {
                        continue; // some divisors are zero
                    }
                    let tolerance = if kind == Binary::Remainder { 1e-2 } else { 2.0 * tolerance(x.dtype) };
                    let op = Op::BinaryScalar { op: kind, scalar, swapped };
                    check(&op, &[&x], &[(&shape, x.dtype)], tolerance);
                }
            }
            for &kind in Compare::ALL {
                check(&Op::CompareScalar(kind, scalar), &[&x], &[(&shape, DType::Bool)], 0.0);
            }
        }
    });
}

#[test]
fn an_integer_division_by_zero_is_an_error() {
    let (a, zero) = (Data::new(DType::I64, &[2], &[1.0, 2.0]), Data::new(DType::I64, &[2], &[3.0, 0.0]));
    for kind in [Binary::Div, Binary::Remainder] {
        let error = run(&Op::Binary(kind), &[&a, &zero], &[(&[2], DType::I64)]).err().unwrap();
        assert_eq!(error.to_string(), "division by zero");
    }
}

#[test]
fn extrema_propagate_nan() {
    let (a, b) = ([f64::NAN, 1.0, f64::NAN], [1.0, f64::NAN, f64::NAN]);
    let (a, b) = (Data::new(DType::F32, &[3], &a), Data::new(DType::F32, &[3], &b));
    for kind in [Binary::Maximum, Binary::Minimum] {
        let y = run(&Op::Binary(kind), &[&a, &b], &[(&[3], DType::F32)]).unwrap();
        assert!(y[0].values().iter().all(|y| y.is_nan()), "{kind:?}");
    }
}

#[test]
fn an_output_may_be_its_own_input() {
    for dtype in [DType::F32, DType::F16, DType::I64] {
        for lay in LAYS {
            let mut draw = Draw(5);
            let (a, b) = (
                tensor(&mut draw, lay, dtype, &[5, 700]),
                tensor(&mut draw, Lay::Contiguous, dtype, &[5, 700]),
            );
            let op = Op::Binary(Binary::Sub);
            let want = expected(&op, &[&b, &a], &[(&[5, 700], dtype)]).remove(0);
            run_in_place(&op, &[&b, &a], &a).unwrap();
            assert_near(&a.values(), &want, 0.0, &format!("{dtype} {lay:?}"));
            assert!(a.surroundings_are_untouched());
            let want = expected(&Op::Unary(Unary::Abs), &[&a], &[(&[5, 700], dtype)]).remove(0);
            run_in_place(&Op::Unary(Unary::Abs), &[&a], &a).unwrap();
            assert_near(&a.values(), &want, 0.0, &format!("{dtype} {lay:?}"));
        }
    }
}

#[test]
fn what_is_overwritten_is_read_before() {
    let mut draw = Draw(7);
    let shape = &[7, 600][..];
    let out = [(shape, DType::F32)];
    let fresh = |draw: &mut Draw| tensor(draw, Lay::Contiguous, DType::F32, shape);
    let row = tensor(&mut draw, Lay::Contiguous, DType::F32, &[600]);
    let wide = row.layout.broadcast_to(&Shape::new(shape)).unwrap();
    let row = Data { buffer: row.buffer, layout: wide, dtype: DType::F32 };
    let mut same = |op: Op, inputs: &dyn Fn(&Data) -> Vec<Data>| {
        let x = fresh(&mut draw);
        let operands = inputs(&x);
        let operands: Vec<&Data> = operands.iter().collect();
        // By the same kernels, which other tests hold against the reference.
        let want = run(&op, &operands, &out).unwrap()[0].values();
        run_in_place(&op, &operands, &x).unwrap();
        assert!(x.values().iter().zip(&want).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())), "{op:?}");
    };
    let handle = |x: &Data| Data { buffer: x.buffer.clone(), layout: x.layout, dtype: x.dtype };
    let other = handle(&tensor(&mut Draw(8), Lay::Contiguous, DType::F32, shape));
    for kind in [
        Binary::Add,
        Binary::Sub,
        Binary::Mul,
        Binary::Div,
        Binary::Maximum,
        Binary::Minimum,
        Binary::Pow,
        Binary::Remainder,
    ] {
        let op = || Op::Binary(kind);
        same(op(), &|x| vec![handle(x), handle(&other)]);
        same(op(), &|x| vec![handle(&other), handle(x)]);
        same(op(), &|x| vec![handle(x), handle(x)]);
        same(op(), &|x| vec![handle(x), handle(&row)]);
        same(op(), &|x| vec![handle(&row), handle(x)]);
        for swapped in [false, true] {
            let op = Op::BinaryScalar { op: kind, scalar: Scalar::Float(1.75), swapped };
            same(op, &|x| vec![handle(x)]);
        }
    }
    for kind in [Unary::Relu, Unary::Gelu, Unary::Sin, Unary::Clamp { min: -0.5, max: 0.25 }] {
        same(Op::Unary(kind), &|x| vec![handle(x)]);
    }
    same(Op::Dropout { p: 0.3, seed: 5, offset: 9 }, &|x| vec![handle(x)]);
}

#[test]
fn operands_broadcast_by_stride_zero() {
    let mut draw = Draw(6);
    let x = tensor(&mut draw, Lay::Contiguous, DType::F32, &[40, 50]);
    for small in [&[50][..], &[40, 1], &[1, 1], &[]] {
        let b = tensor(&mut draw, Lay::Contiguous, DType::F32, small);
        let wide = b.layout.broadcast_to(&Shape::new(&[40, 50])).unwrap();
        let wide = Data { buffer: b.buffer, layout: wide, dtype: DType::F32 };
        check(&Op::Binary(Binary::Add), &[&x, &wide], &[(&[40, 50], DType::F32)], 0.0);
        check(&Op::Binary(Binary::Add), &[&wide, &x], &[(&[40, 50], DType::F32)], 0.0);
        check(&Op::Copy, &[&wide], &[(&[40, 50], DType::F32)], 0.0);
        check(&Op::Reduce(Reduce::Sum, DimSet::one(1)), &[&wide], &[(&[40, 1], DType::F32)], 1e-6);
    }
}

#[test]
fn copies_cast_between_all_dtypes() {
    for_each_tensor(7, |_, x| {
        let shape = x.layout.shape().to_vec();
        for dtype in DType::ALL {
            if x.dtype.is_float() && dtype == DType::U8 {
                continue; // negative floats have no defined u8
            }
            check(&Op::Copy, &[&x], &[(&shape, dtype)], 0.0);
        }
    });
}

#[test]
fn copies_transpose_and_write_in_place() {
    let mut draw = Draw(8);
    for dtype in [DType::U8, DType::BF16, DType::F32, DType::F64] {
        for shape in [&[130, 257][..], &[3, 70, 90], &[70, 3, 90], &[2, 50, 3, 60]] {
            for from in LAYS {
                let x = tensor(&mut draw, from, dtype, shape);
                check(&Op::Copy, &[&x], &[(shape, dtype)], 0.0);
                for to in LAYS {
                    let y = tensor(&mut draw, to, dtype, shape);
                    run_in_place(&Op::Copy, &[&x], &y).unwrap();
                    assert_eq!(y.values(), x.values(), "{dtype} {from:?} {to:?} {shape:?}");
                    assert!(y.surroundings_are_untouched(), "{dtype} {from:?} {to:?} {shape:?}");
                }
            }
        }
        // A batch of transposed matrices, as attention makes them.
        let x = tensor(&mut draw, Lay::Contiguous, dtype, &[4, 60, 80]);
        let x = Data { layout: x.layout.transpose(1, 2), buffer: x.buffer, dtype };
        check(&Op::Copy, &[&x], &[(&[4, 80, 60], dtype)], 0.0);
    }
}

#[test]
fn tensors_from_nothing() {
    for dtype in DType::ALL {
        for (kind, shape) in [(RandomKind::Uniform, &[2, 33, 41][..]), (RandomKind::Bernoulli(0.3), &[5])] {
            let op = Op::Random { kind, seed: 0x1234_5678_9abc, offset: 77 };
            check(&op, &[], &[(shape, dtype)], 0.0);
        }
        let value = if dtype.is_float() { Scalar::Float(0.3) } else { Scalar::Int(1) };
        check(&Op::Fill(value), &[], &[(&[3, 500], dtype)], 0.0);
        for lay in LAYS {
            let y = Data::laid(lay, dtype, &[3, 5], &[0.0; 15]);
            run_in_place(&Op::Fill(Scalar::Int(1)), &[], &y).unwrap();
            assert!(y.values().iter().all(|v| *v == 1.0) && y.surroundings_are_untouched());
        }
        if dtype != DType::Bool {
            let op = Op::Arange { start: Scalar::Int(3), step: Scalar::Int(2) };
            check(&op, &[], &[(&[100], dtype)], 0.0);
        }
    }
    let op = Op::Arange { start: Scalar::Float(-1.0), step: Scalar::Float(0.1) };
    check(&op, &[], &[(&[100], DType::F32)], 0.0);
}

#[test]
fn dropout_keeps_what_bernoulli_draws() {
    let mut draw = Draw(9);
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        for lay in LAYS {
            let x = tensor(&mut draw, lay, dtype, &[33, 71]);
            let shape: &[usize] = &[33, 71];
            let random = Op::Random { kind: RandomKind::Bernoulli(0.75), seed: 5, offset: 9 };
            let mask = expected(&random, &[], &[(shape, DType::F64)]).remove(0);
            let want: Vec<f64> = x.values().iter().zip(&mask).map(|(x, m)| x * m / 0.75).collect();
            let y = run(&Op::Dropout { p: 0.25, seed: 5, offset: 9 }, &[&x], &[(shape, dtype)]).unwrap();
            assert_near(&y[0].values(), &want, tolerance(dtype), &format!("{dtype} {lay:?}"));
        }
    }
}

/// Every set of dimensions of a shape.
fn dim_sets(rank: usize) -> impl Iterator<Item = DimSet> {
    (1..1usize << rank).map(move |bits| {
        let mut set = DimSet::default();
        (0..rank).filter(|d| bits >> d & 1 == 1).for_each(|d| {
            set.insert(d);
        });
        set
    })
}

#[test]
fn reductions_are_those_of_the_interpreter() {
    let mut draw = Draw(10);
    for_each_level(|_| {
        for dtype in DType::ALL {
            for shape in [&[7][..], &[1, 2100], &[2100, 1], &[3, 40, 5], &[2, 3, 4, 70]] {
                for lay in LAYS {
                    let mut x = tensor(&mut draw, lay, dtype, shape);
                    for dims in dim_sets(shape.len()) {
                        let small = dims.keep(Shape::new(shape));
                        for &kind in Reduce::ALL {
                            let integer = matches!(kind, Reduce::Sum | Reduce::Prod) && !dtype.is_float();
                            let out = match kind {
                                Reduce::Any | Reduce::All => DType::Bool,
                                Reduce::Mean if !dtype.is_float() => continue,
                                _ if integer => DType::I64,
                                _ => dtype,
                            };
                            if kind == Reduce::Prod && dtype.is_float() {
                                let ones: Vec<f64> =
                                    draw.values(x.layout.numel()).iter().map(|v| 1.0 + v / 50.0).collect();
                                x = Data::laid(lay, dtype, shape, &ones);
                            }
                            check(
                                &Op::Reduce(kind, dims),
                                &[&x],
                                &[(&small, out)],
                                2.0 * tolerance(dtype).max(1e-9),
                            );
                        }
                    }
                    for dim in 0..shape.len() {
                        let small = DimSet::one(dim).keep(Shape::new(shape));
                        for kind in [ArgReduce::Max, ArgReduce::Min] {
                            check(&Op::ArgReduce(kind, dim), &[&x], &[(&small, DType::I64)], 0.0);
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn long_reductions_stay_accurate() {
    // Pieces for several threads, in rows and in columns.
    let mut draw = Draw(11);
    let values: Vec<f64> = draw.values(1_500_000).iter().map(|v| v + 1.0).collect();
    for (shape, dims, out) in [
        (&[1_500_000][..], 0, &[1][..]),
        (&[3, 500_000], 1, &[3, 1]),
        (&[500_000, 3], 0, &[1, 3]),
        (&[1000, 1500], 0, &[1, 1500]),
        (&[2, 250_000, 3], 1, &[2, 1, 3]),
    ] {
        let x = Data::new(DType::F32, shape, &values);
        let stored = x.values();
        let inner: usize = shape[dims + 1..].iter().product();
        let mut sums = vec![0.0; out.iter().product()];
        for (i, v) in stored.iter().enumerate() {
            sums[i / (inner * shape[dims]) * inner + i % inner] += v;
        }
        let y = run(&Op::Reduce(Reduce::Sum, DimSet::one(dims)), &[&x], &[(out, DType::F32)]).unwrap();
        assert_near(&y[0].values(), &sums, 1e-7, &format!("{shape:?}"));
    }
}

#[test]
fn nan_wins_every_reduction_of_extrema() {
    for place in [0, 5, 31, 32, 63, 1023, 1024, 1500, 2047] {
        let mut values = Draw(12).values(2048);
        values[place] = f64::NAN;
        for (shape, dim) in [(&[1, 2048][..], 1), (&[2048, 1], 0)] {
            for lay in [Lay::Contiguous, Lay::Sparse] {
                let x = Data::laid(lay, DType::F32, shape, &values);
                for kind in [Reduce::Max, Reduce::Min] {
                    let y =
                        run(&Op::Reduce(kind, DimSet::one(dim)), &[&x], &[(&[1, 1], DType::F32)]).unwrap();
                    assert!(y[0].values()[0].is_nan(), "{kind:?} {place}");
                }
                for kind in [ArgReduce::Max, ArgReduce::Min] {
                    let y = run(&Op::ArgReduce(kind, dim), &[&x], &[(&[1, 1], DType::I64)]).unwrap();
                    assert_eq!(y[0].values(), [place as f64], "{kind:?}");
                }
            }
        }
        // By columns: NaN in one of them.
        let mut table = Draw(13).values(2048);
        table[place] = f64::NAN;
        let x = Data::new(DType::F32, &[256, 8], &table);
        let y = run(&Op::ArgReduce(ArgReduce::Max, 0), &[&x], &[(&[1, 8], DType::I64)]).unwrap();
        assert_eq!(y[0].values()[place % 8], (place / 8) as f64);
    }
}

#[test]
fn running_sums_are_those_of_the_interpreter() {
    let mut draw = Draw(14);
    for dtype in DType::ALL {
        for shape in [&[50][..], &[4, 1, 9], &[3, 20, 7], &[5, 1500]] {
            for lay in LAYS {
                let x = tensor(&mut draw, lay, dtype, shape);
                let out = if dtype.is_float() { dtype } else { DType::I64 };
                for dim in 0..shape.len() {
                    check(&Op::Cumulative(Cumulative::Sum, dim), &[&x], &[(shape, out)], tolerance(dtype));
                    let x = Data::laid(
                        lay,
                        dtype,
                        shape,
                        &x.values().iter().map(|v| v / 3.0).collect::<Vec<_>>(),
                    );
                    check(&Op::Cumulative(Cumulative::Prod, dim), &[&x], &[(shape, out)], tolerance(dtype));
                }
            }
        }
    }
}

/// Not a test: prints a digest of results for `threads_do_not_change_a_bit`, which runs it in processes of its own.
#[test]
#[ignore = "run by threads_do_not_change_a_bit"]
fn print_digest() {
    let mut draw = Draw(15);
    let mut digest = 0u64;
    let mut add = |op: Op, inputs: &[&Data], outputs: &[(&[usize], DType)]| {
        for y in run(&op, inputs, outputs).unwrap() {
            for v in y.values() {
                digest = (digest ^ v.to_bits()).wrapping_mul(0x100_0000_01b3).rotate_left(17);
            }
        }
    };
    let f = DType::F32;
    let x = tensor(&mut draw, Lay::Contiguous, f, &[700, 900]);
    let w = tensor(&mut draw, Lay::Contiguous, f, &[900]);
    let wide = tensor(&mut draw, Lay::Contiguous, f, &[3, 400_000]);
    let tall = tensor(&mut draw, Lay::Contiguous, f, &[400_000, 3]);
    let g = tensor(&mut draw, Lay::Reversed, f, &[700, 900]);
    for kind in [Reduce::Sum, Reduce::Mean, Reduce::Prod] {
        add(Op::Reduce(kind, DimSet::all(2)), &[&x], &[(&[1, 1], f)]);
        add(Op::Reduce(kind, DimSet::one(0)), &[&x], &[(&[1, 900], f)]);
        add(Op::Reduce(kind, DimSet::one(1)), &[&wide], &[(&[3, 1], f)]);
        add(Op::Reduce(kind, DimSet::one(0)), &[&tall], &[(&[1, 3], f)]);
        add(Op::Reduce(kind, DimSet::one(1)), &[&g], &[(&[700, 1], f)]);
    }
    add(Op::Unary(Unary::Gelu), &[&x], &[(&[700, 900], f)]);
    add(Op::Binary(Binary::Mul), &[&x, &g], &[(&[700, 900], f)]);
    add(Op::Cumulative(Cumulative::Sum, 0), &[&x], &[(&[700, 900], f)]);
    add(Op::Dropout { p: 0.5, seed: 3, offset: 0 }, &[&x], &[(&[700, 900], f)]);
    add(Op::Softmax { log: false }, &[&x], &[(&[700, 900], f)]);
    let norm = Op::LayerNorm { eps: 1e-5, weight: true, bias: true };
    let column: (&[usize], DType) = (&[700, 1], f);
    add(norm.clone(), &[&x, &w, &w], &[(&[700, 900], f), column, column]);
    let stats = run(&norm, &[&x, &w, &w], &[(&[700, 900], f), column, column]).unwrap();
    let grads: [(&[usize], DType); 3] = [(&[700, 900], f), (&[900], f), (&[900], f)];
    add(Op::LayerNormGrad { weight: true }, &[&x, &stats[1], &stats[2], &w, &g], &grads);
    let b = tensor(&mut draw, Lay::Reversed, f, &[900, 300]);
    add(Op::Matmul, &[&x, &b], &[(&[700, 300], f)]);
    let window =
        Window { input: [20, 22], kernel: [3, 3], stride: [1, 1], padding: [1, 1], dilation: [1, 1] };
    let images = tensor(&mut draw, Lay::Contiguous, f, &[9, 12, 20, 22]);
    let above = tensor(&mut draw, Lay::Contiguous, f, &[9, 24, 20, 22]);
    for groups in [1, 12] {
        let shape = [24, 12 / groups, 3, 3];
        let kernels = tensor(&mut draw, Lay::Contiguous, f, &shape);
        let op = Op::Conv2d { window, groups, bias: false };
        add(op, &[&images, &kernels], &[(&[9, 24, 20, 22], f)]);
        add(Op::Conv2dWeightGrad { window, groups }, &[&images, &above], &[(&shape, f)]);
    }
    let heads = tensor(&mut draw, Lay::Contiguous, f, &[1, 2, 300, 32]);
    let attention = Op::Attention { scale: 0.2, causal: true, mask: false };
    add(attention, &[&heads, &heads, &heads], &[(&[1, 2, 300, 32], f), (&[1, 2, 300], f)]);
    println!("digest {digest:016x}");
}

#[test]
fn threads_do_not_change_a_bit() {
    let digest = |threads: &str| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "oracle::print_digest", "--ignored", "--nocapture", "--test-threads=1"]);
        let output = command.env("ORKEST_NUM_THREADS", threads).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .find(|l| l.contains("digest "))
            .unwrap_or_else(|| panic!("no digest in {text:?}"))
            .to_string()
    };
    let one = digest("1");
    for threads in ["2", "3", "5"] {
        assert_eq!(digest(threads), one, "{threads} threads");
    }
}
