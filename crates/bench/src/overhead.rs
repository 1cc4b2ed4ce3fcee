//! What an operation costs besides computing: the time of one on a handful of numbers.

use orkest::prelude::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long each is repeated, in this many rounds, of which the fastest counts: everything that disturbs makes it slower.
const BUDGET: Duration = Duration::from_millis(40);
const ROUNDS: u32 = 10;

/// Times operations on a few numbers on `device`, those whose names contain one of `wanted` (all if there is none), and hands each name
/// and its nanoseconds to `report`.
pub fn measure(device: &Device, wanted: &[String], mut report: impl FnMut(&str, f64)) {
    manual_seed(0);
    let (x, y) = (Tensor::randn([8], device), Tensor::randn([8], device));
    let (m, w, b) =
        (Tensor::randn([2, 8], device), Tensor::randn([8, 8], device), Tensor::randn([8], device));
    let (scalar, ids) = (Tensor::ones((), device), Tensor::randint(0, 2, [4], device));
    let [leaf, grad_m, grad_w, grad_b] = [&x, &m, &w, &b].map(|t| t.clone().requires_grad_(true));
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let mut time = |name: &str, f: &dyn Fn()| {
        if chosen(name) {
            report(name, nanoseconds(f));
        }
    };
    macro_rules! time {
        ($($name:literal: $value:expr;)*) => {$( time($name, &|| drop(black_box($value))); )*};
    }
    time! {
        "clone of a tensor": x.clone();
        "add": &x + &y;
        "add scalar": &x + 1.0;
        "add, broadcast": &m + &x;
        "relu": x.relu();
        "exp": x.exp();
        "sum": x.sum(..);
        "softmax": m.softmax(-1);
        "layer_norm": m.layer_norm([8], Some(&b), Some(&b), 1e-5);
        "matmul": m.matmul(&w);
        "linear": m.linear(&w, Some(&b));
        "embedding": m.rows(&ids);
        "cat": Tensor::cat(&[&x, &y], 0);
        "zeros": Tensor::zeros([8], device);
        "reshape": m.reshape((4, 4));
        "transpose": m.transpose(0, 1);
        "unsqueeze": x.unsqueeze(0);
        "narrow": x.narrow(0, 2, 4);
        "select": m.select(0, 1);
        "item": scalar.item();
        "to_vec": x.to_vec::<f32>();
        "add, recorded": &leaf + &y;
        "relu, recorded": leaf.relu();
        "reshape, recorded": grad_m.reshape((4, 4));
        "linear, recorded": grad_m.linear(&grad_w, Some(&grad_b));
    }
    // The slope between a long chain and a short one is one operation, forward and backward.
    let chain = |steps: usize| {
        let loss = (0..steps).fold(leaf.clone(), |x, _| &x * 0.5);
        loss.backward_with(Some(&y), BackwardOptions::default());
        leaf.zero_grad();
    };
    if chosen("mul scalar, recorded and backward") {
        let (short, long) = (nanoseconds(&|| chain(10)), nanoseconds(&|| chain(110)));
        report("mul scalar, recorded and backward", (long - short) / 100.0);
    }
    let step = |count: usize| {
        let parameters: Vec<Param> = (0..count).map(|_| Param::new(x.clone())).collect();
        parameters.iter().for_each(|p| p.set_grad(Some(y.clone())));
        let optimizer = std::cell::RefCell::new(AdamW::new(parameters, 1e-3));
        nanoseconds(&|| optimizer.borrow_mut().step())
    };
    if chosen("AdamW, one parameter") {
        let (few, many) = (step(10), step(110));
        report("AdamW, one parameter", (many - few) / 100.0);
    }
}

fn nanoseconds(f: &dyn Fn()) -> f64 {
    let times = |n: u32| {
        let start = Instant::now();
        (0..n).for_each(|_| f());
        start.elapsed()
    };
    times(100);
    let one = times(1000).max(Duration::from_nanos(1000)) / 1000;
    let n = (BUDGET.as_nanos() / u128::from(ROUNDS) / one.as_nanos().max(1)).clamp(10, 1_000_000) as u32;
    let best = (0..ROUNDS).map(|_| times(n)).min().unwrap_or_default();
    best.as_nanos() as f64 / f64::from(n)
}
