//! Losses of single elements, and their sum or mean without storing them. A loss is three formulas; the loops are common to all.

use crate::chunks::{self, CHUNK, GRAIN_MATH, GRAIN_MEMORY, Sink, Source, Space, Stored, pieces};
use crate::math::Float;
use crate::memory::{self, Scratch};
use crate::parallel;
use crate::simd::{Simd, simd_fn};
use orkest_core::op::{ElementLoss, Reduce};
use orkest_core::{DType, Output, Result, View};

/// Elements whose losses are added up together before these sums are added in order, for any number of threads.
const SEGMENT: usize = 32 * CHUNK;
/// Sums side by side, so that additions need not wait for one another.
const LANES: usize = 32;

trait Formula: Copy + Send + Sync {
    /// Elements below which work is not shared.
    const GRAIN: usize;
    fn loss<S: Simd, T: Float>(self, x: T, y: T) -> T;
    fn by_input<S: Simd, T: Float>(self, x: T, y: T) -> T;
    fn by_target<S: Simd, T: Float>(self, x: T, y: T) -> T;
}

macro_rules! formulas {
    ($($name:ident $({ $field:ident })? $grain:ident |$x:ident, $y:ident| $loss:expr; dx $by_input:expr; dy $by_target:expr;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name { $($field: f64)? }
        impl Formula for $name {
            const GRAIN: usize = $grain;
            #[inline(always)]
            fn loss<S: Simd, T: Float>(self, $x: T, $y: T) -> T {
                $(let $field = T::from_f64(self.$field);)?
                $loss
            }
            #[inline(always)]
            #[allow(unused_variables)] // some derivatives depend on one of the two
            fn by_input<S: Simd, T: Float>(self, $x: T, $y: T) -> T {
                $(let $field = T::from_f64(self.$field);)?
                $by_input
            }
            #[inline(always)]
            #[allow(unused_variables)]
            fn by_target<S: Simd, T: Float>(self, $x: T, $y: T) -> T {
                $(let $field = T::from_f64(self.$field);)?
                $by_target
            }
        }
    )*};
}

formulas! {
    Squared GRAIN_MEMORY |x, y| (x - y) * (x - y);
        dx twice(x - y);
        dy twice(y - x);
    Absolute GRAIN_MEMORY |x, y| (x - y).abs();
        dx sign(x - y);
        dy sign(y - x);
    Huber { delta } GRAIN_MEMORY |x, y| {
            let distance = (x - y).abs();
            let m = lesser(distance, delta);
            m * (distance - m * half())
        };
        dx limited(x - y, delta);
        dy limited(y - x, delta);
    SmoothL1 { beta } GRAIN_MEMORY |x, y| {
            let distance = (x - y).abs();
            let m = lesser(distance, beta);
            m * (distance - m * half()) / beta
        };
        dx limited(x - y, beta) / beta;
        dy limited(y - x, beta) / beta;
    CrossEntropy GRAIN_MATH |x, y| (y - T::ONE) * logarithm(log_rest::<S, T>(x)) - y * logarithm(x.ln::<S>());
        dx (x - y) / greater(x * (T::ONE - x), T::from_f64(1e-12f32 as f64));
        dy logarithm(log_rest::<S, T>(x)) - logarithm(x.ln::<S>());
    LogitCrossEntropy GRAIN_MATH |x, y| (T::ONE - y) * x - (lesser(x, T::ZERO) - (-x.abs()).exp::<S>().log1p::<S>());
        // Of the probabilities of both classes the smaller one is exact.
        dx {
            let e = (-x.abs()).exp::<S>();
            let smaller = e / (T::ONE + e);
            if x < T::ZERO { smaller - y } else { (T::ONE - y) - smaller }
        };
        dy -x;
    Divergence GRAIN_MATH |x, y| y * (log_or_zero::<S, T>(y) - x);
        dx -y;
        dy log_or_zero::<S, T>(y) - x + if y == T::ZERO { T::ZERO } else { T::ONE };
    LogDivergence GRAIN_MATH |x, y| y.exp::<S>() * (y - x);
        dx -y.exp::<S>();
        dy y.exp::<S>() * (y - x + T::ONE);
    Poisson GRAIN_MATH |x, y| x.exp::<S>() - y * x;
        dx x.exp::<S>() - y;
        dy -x;
}

// NaN goes through all of these, but for the sign, which is 0 as `sign`'s.

#[inline(always)]
fn half<T: Float>() -> T {
    T::from_f64(0.5)
}

#[inline(always)]
fn twice<T: Float>(x: T) -> T {
    x + x
}

#[inline(always)]
fn sign<T: Float>(x: T) -> T {
    let positive = if x > T::ZERO { T::ONE } else { T::ZERO };
    if x < T::ZERO { -T::ONE } else { positive }
}

#[inline(always)]
fn lesser<T: Float>(x: T, limit: T) -> T {
    if x > limit { limit } else { x }
}

#[inline(always)]
fn greater<T: Float>(x: T, limit: T) -> T {
    if x < limit { limit } else { x }
}

#[inline(always)]
fn limited<T: Float>(x: T, limit: T) -> T {
    greater(lesser(x, limit), -limit)
}

#[inline(always)]
fn logarithm<T: Float>(x: T) -> T {
    greater(x, T::from_f64(-100.0))
}

#[inline(always)]
fn log_rest<S: Simd, T: Float>(x: T) -> T {
    (-x).log1p::<S>()
}

#[inline(always)]
fn log_or_zero<S: Simd, T: Float>(x: T) -> T {
    (if x == T::ZERO { T::ONE } else { x }).ln::<S>()
}

simd_fn! {
    fn losses<S: Simd, T: Float, F: Formula>(f: F, x: &[T], y: &[T], to: &mut [T]) {
        for ((to, &x), &y) in to.iter_mut().zip(x).zip(y) {
            *to = f.loss::<S, T>(x, y);
        }
    }

    fn sum_of_losses<S: Simd, T: Float, F: Formula>(f: F, x: &[T], y: &[T], space: &mut [T]) -> f64 {
        for ((to, &x), &y) in space.iter_mut().zip(x).zip(y) {
            *to = f.loss::<S, T>(x, y);
        }
        let mut lanes = [0.0; LANES];
        let (blocks, rest) = space.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                lanes[lane] += block[lane].to_f64();
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += x.to_f64();
        }
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
        }
        lanes[0]
    }

    fn input_grads<S: Simd, T: Float, F: Formula>(f: F, x: &[T], y: &[T], g: &[T], factor: T, to: &mut [T]) {
        for (((to, &x), &y), &g) in to.iter_mut().zip(x).zip(y).zip(g) {
            *to = f.by_input::<S, T>(x, y) * (g * factor);
        }
    }

    fn target_grads<S: Simd, T: Float, F: Formula>(f: F, x: &[T], y: &[T], g: &[T], factor: T, to: &mut [T]) {
        for (((to, &x), &y), &g) in to.iter_mut().zip(x).zip(y).zip(g) {
            *to = f.by_target::<S, T>(x, y) * (g * factor);
        }
    }
}

macro_rules! with_formula {
    ($loss:expr, $dtype:expr, $function:ident($($arg:expr),*)) => {{
        macro_rules! of {
            ($formula:expr) => {
                match $dtype {
                    DType::F64 => $function::<f64, _>($formula, $($arg),*),
                    _ => $function::<f32, _>($formula, $($arg),*),
                }
            };
        }
        match $loss {
            ElementLoss::Squared => of!(Squared {}),
            ElementLoss::Absolute => of!(Absolute {}),
            ElementLoss::Huber { delta } => of!(Huber { delta }),
            ElementLoss::SmoothL1 { beta } => of!(SmoothL1 { beta }),
            ElementLoss::CrossEntropy => of!(CrossEntropy {}),
            ElementLoss::LogitCrossEntropy => of!(LogitCrossEntropy {}),
            ElementLoss::Divergence => of!(Divergence {}),
            ElementLoss::LogDivergence => of!(LogDivergence {}),
            ElementLoss::Poisson => of!(Poisson {}),
        }
    }};
}

/// [`orkest_core::Op::ElementLoss`]
pub(crate) fn element_loss(
    loss: ElementLoss,
    reduce: Option<Reduce>,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    with_formula!(loss, inputs[0].dtype, forward(reduce, inputs, outputs))
}

/// [`orkest_core::Op::ElementLossGrad`]
pub(crate) fn element_loss_grad(
    loss: ElementLoss,
    reduce: Option<Reduce>,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    with_formula!(loss, inputs[0].dtype, backward(reduce, inputs, outputs))
}

fn forward<T: Float + Stored<Compute = T>, F: Formula>(
    f: F,
    reduce: Option<Reduce>,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let Some(reduce) = reduce else {
        return chunks::map2::<T, T, T>(&inputs[0], &inputs[1], outputs, F::GRAIN, |x, y, to| {
            losses(f, x, y, to);
        });
    };
    let (x, y) = (Source::new::<T>(&inputs[0], outputs)?, Source::new::<T>(&inputs[1], outputs)?);
    let numel = inputs[0].layout.numel();
    let sum = |segment: usize| {
        let row = x.row().min(y.row());
        let (mut x, mut y, mut space) = (x.reader(), y.reader(), Space::new());
        let mut sum = 0.0;
        pieces(segment * SEGMENT..numel.min((segment + 1) * SEGMENT), CHUNK, row, |start, len| {
            // SAFETY: within the tensors, which nobody writes meanwhile.
            let (x, y) = unsafe { (x.get(start, len), y.get(start, len)) };
            sum += sum_of_losses(f, x, y, space.slice(len));
        });
        sum
    };
    let segments = numel.div_ceil(SEGMENT);
    let total = if segments == 1 {
        sum(0)
    } else {
        let sums = Scratch::<f64>::new(segments)?;
        let at = sums.sync_ptr();
        // SAFETY: every task writes a sum of its own.
        parallel::for_each(segments, |segment| unsafe { *at.at(segment as isize) = sum(segment) });
        // SAFETY: all of them have been written.
        unsafe { std::slice::from_raw_parts(at.get(), segments) }.iter().sum()
    };
    let result = if reduce == Reduce::Mean { total / numel as f64 } else { total };
    // SAFETY: the only element of a new output.
    unsafe { *memory::output_ptr::<T>(&outputs[0]) = T::from_f64(result) };
    Ok(())
}

fn backward<T: Float + Stored<Compute = T>, F: Formula>(
    f: F,
    reduce: Option<Reduce>,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let [x, y, g] = [0, 1, 2].map(|i| Source::new::<T>(&inputs[i], outputs));
    let (x, y, g) = (x?, y?, g?);
    let (dx, dy) = (Sink::new::<T>(&outputs[0]), outputs.get(1).map(Sink::new::<T>));
    let numel = inputs[0].layout.numel();
    let factor = T::from_f64(if reduce == Some(Reduce::Mean) { 1.0 / numel as f64 } else { 1.0 });
    let row = x.row().min(y.row()).min(g.row());
    parallel::ranges(numel, F::GRAIN, |range| {
        let (mut x, mut y, mut g) = (x.reader(), y.reader(), g.reader());
        pieces(range, CHUNK, row, |start, len| {
            // SAFETY: ranges are disjoint and within the tensors, which have one shape; the outputs are new.
            unsafe {
                let (x, y, g) = (x.get(start, len), y.get(start, len), g.get(start, len));
                dx.put(start, len, |to| input_grads(f, x, y, g, factor, to));
                if let Some(dy) = &dy {
                    dy.put(start, len, |to| target_grads(f, x, y, g, factor, to));
                }
            }
        });
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::SEGMENT;
    use crate::simd::for_each_level;
    use crate::testing::{Data, Draw, LAYS, assert_close, run};
    use orkest_core::op::{ElementLoss, Reduce};
    use orkest_core::{DType, Op};

    /// The loss and its derivatives, from the textbook.
    fn definition(loss: ElementLoss, x: f64, y: f64) -> [f64; 3] {
        let d = x - y;
        match loss {
            ElementLoss::Squared => [d * d, 2.0 * d, -2.0 * d],
            ElementLoss::Absolute => [d.abs(), d.signum(), -d.signum()],
            ElementLoss::Huber { delta } if d.abs() > delta => {
                [delta * (d.abs() - delta / 2.0), delta * d.signum(), -delta * d.signum()]
            }
            ElementLoss::Huber { .. } => [d * d / 2.0, d, -d],
            ElementLoss::SmoothL1 { beta } if d.abs() > beta => {
                [d.abs() - beta / 2.0, d.signum(), -d.signum()]
            }
            ElementLoss::SmoothL1 { beta } => [d * d / (2.0 * beta), d / beta, -d / beta],
            ElementLoss::CrossEntropy => {
                let (yes, no) = (x.ln().max(-100.0), (1.0 - x).ln().max(-100.0));
                [-(y * yes + (1.0 - y) * no), d / (x * (1.0 - x)).max(1e-12f32 as f64), no - yes]
            }
            ElementLoss::LogitCrossEntropy => {
                let p = 1.0 / (1.0 + (-x).exp());
                [-(y * p.ln() + (1.0 - y) * (1.0 - p).ln()), p - y, -x]
            }
            ElementLoss::Divergence if y == 0.0 => [0.0, 0.0, -x],
            ElementLoss::Divergence => [y * (y.ln() - x), -y, y.ln() - x + 1.0],
            ElementLoss::LogDivergence => [y.exp() * (y - x), -y.exp(), y.exp() * (y - x + 1.0)],
            ElementLoss::Poisson => [x.exp() - y * x, x.exp() - y, -x],
        }
    }

    #[test]
    fn losses_sums_and_gradients_follow_their_definitions() {
        let mut draw = Draw(7);
        for loss in ElementLoss::EACH {
            for shape in [[1, 1], [3, 5], [40, 61], [12, 130]] {
                let count = shape[0] * shape[1];
                // Within 0 to 1, both included, where probabilities are asked for.
                let unit = |v: f64, i: usize| if i % 7 == 3 { (v > 0.0) as u8 as f64 } else { 0.5 + v / 2.0 };
                let mut x = draw.values(count);
                if loss == ElementLoss::CrossEntropy {
                    x = x.iter().enumerate().map(|(i, &v)| unit(v, i)).collect();
                }
                let y: Vec<f64> =
                    draw.values(count).iter().enumerate().map(|(i, &v)| unit(v, i + 2)).collect();
                let g = draw.values(count);
                let expected: Vec<[f64; 3]> =
                    x.iter().zip(&y).map(|(&x, &y)| definition(loss, x, y)).collect();
                let of = |i: usize| -> Vec<f64> { expected.iter().map(|e| e[i]).collect() };
                let total: f64 = of(0).iter().sum();
                for lay in LAYS {
                    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 3e-6)] {
                        let what = format!("{loss:?} {shape:?} {dtype} {lay:?}");
                        let [x, y, g] = [&x, &y, &g].map(|v| Data::laid(lay, dtype, &shape, v));
                        let op = |reduce| Op::ElementLoss { loss, reduce };
                        let each = run(&op(None), &[&x, &y], &[(&shape, dtype)]).unwrap();
                        assert_close(&each[0].values(), &of(0), tolerance, &what);
                        let sum = run(&op(Some(Reduce::Sum)), &[&x, &y], &[(&[], dtype)]).unwrap();
                        assert_close(&sum[0].values(), &[total], tolerance, &what);
                        let mean = run(&op(Some(Reduce::Mean)), &[&x, &y], &[(&[], dtype)]).unwrap();
                        assert_close(&mean[0].values(), &[total / count as f64], tolerance, &what);
                        for target in [false, true] {
                            let op = Op::ElementLossGrad { loss, reduce: Some(Reduce::Mean), target };
                            let outputs: [(&[usize], DType); 2] = [(&shape, dtype); 2];
                            let got = run(&op, &[&x, &y, &g], &outputs[..1 + target as usize]).unwrap();
                            for (i, got) in got.iter().enumerate() {
                                let by: Vec<f64> = of(1 + i)
                                    .iter()
                                    .zip(g.values())
                                    .map(|(d, g)| d * g / count as f64)
                                    .collect();
                                assert_close(&got.values(), &by, tolerance, &format!("gradient {i}, {what}"));
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn long_sums_are_exact_but_for_their_last_rounding() {
        let count = 3 * SEGMENT + 77;
        let mut draw = Draw(9);
        let (x, y) = (draw.values(count), draw.values(count));
        let expected: f64 = x.iter().zip(&y).map(|(x, y)| ((x - y) as f32 as f64).powi(2)).sum();
        let [x, y] = [x, y].map(|v| Data::new(DType::F32, &[count], &v));
        for_each_level(|level| {
            let op = Op::ElementLoss { loss: ElementLoss::Squared, reduce: Some(Reduce::Sum) };
            let sum = run(&op, &[&x, &y], &[(&[], DType::F32)]).unwrap()[0].values()[0];
            // Every square is rounded once, and these errors cancel.
            assert!((sum / expected - 1.0).abs() < 1.2e-7, "{level:?}: {sum} instead of {expected}");
        });
    }

    #[test]
    fn nan_is_not_lost() {
        let x = Data::new(DType::F32, &[3], &[f64::NAN, 0.5, 2.0]);
        let y = Data::new(DType::F32, &[3], &[0.5, f64::NAN, 0.5]);
        for loss in ElementLoss::EACH {
            let found =
                run(&Op::ElementLoss { loss, reduce: None }, &[&x, &y], &[(&[3], DType::F32)]).unwrap();
            let values = found[0].values();
            assert!(values[0].is_nan() && values[1].is_nan(), "{loss:?}: {values:?}");
            // No probability is 2.
            assert_eq!(values[2].is_nan(), loss == ElementLoss::CrossEntropy, "{loss:?}: {values:?}");
        }
    }
}
