//! One optimizer step over all parameters: one pass over memory, shared among the threads.

use crate::math::Float;
use crate::parallel;
use crate::rows::{Dense, RowsMut};
use crate::simd::simd_fn;
use orkest_core::op::{AdamStep, SgdStep};
use orkest_core::{DType, Output, Result, View};

/// Elements that one task updates: large enough that claiming it costs nothing, small enough to share out evenly.
const PIECE: usize = 16 << 10;

pub(crate) fn adam_step(step: &AdamStep, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => adam_as::<f64>(step, inputs, outputs),
        _ => adam_as::<f32>(step, inputs, outputs),
    }
}

pub(crate) fn sgd_step(step: &SgdStep, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => sgd_as::<f64>(step, inputs, outputs),
        _ => sgd_as::<f32>(step, inputs, outputs),
    }
}

/// Calls `f(parameter, first element, number of elements)` for all pieces of all parameters.
fn for_each_piece(sizes: &[usize], f: impl Fn(usize, usize, usize) + Sync) {
    let mut pieces = Vec::new();
    for (k, &size) in sizes.iter().enumerate() {
        pieces.extend((0..size).step_by(PIECE).map(|start| (k, start, PIECE.min(size - start))));
    }
    let run = |&(k, start, len): &(usize, usize, usize)| f(k, start, len);
    if sizes.iter().sum::<usize>() <= PIECE {
        pieces.iter().for_each(run); // all together they are no more than one task
    } else {
        parallel::for_each(pieces.len(), |i| run(&pieces[i]));
    }
}

struct Adam<T> {
    decay: T,
    shrink: T,
    sign: T,
    one_minus_beta1: T,
    beta2: T,
    one_minus_beta2: T,
    step_size: T,
    root_correction: T,
    eps: T,
}

fn adam_as<T: Float>(step: &AdamStep, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let n = inputs.len();
    let grads = inputs.iter().map(Dense::<T>::new).collect::<Result<Vec<_>>>()?;
    let targets: Vec<RowsMut<T>> = outputs.iter().map(RowsMut::new).collect();
    let t = step.step as f64;
    let (decay, shrink) = match step.decoupled {
        true => (0.0, 1.0 - step.lr * step.weight_decay),
        false => (step.weight_decay, 1.0),
    };
    let constants = Adam {
        decay: T::from_f64(decay),
        shrink: T::from_f64(shrink),
        sign: if step.maximize { -T::ONE } else { T::ONE },
        one_minus_beta1: T::from_f64(1.0 - step.beta1),
        beta2: T::from_f64(step.beta2),
        one_minus_beta2: T::from_f64(1.0 - step.beta2),
        step_size: T::from_f64(step.lr / (1.0 - step.beta1.powf(t))),
        root_correction: T::from_f64((1.0 - step.beta2.powf(t)).sqrt()),
        eps: T::from_f64(step.eps),
    };
    let sizes: Vec<usize> = inputs.iter().map(|v| v.layout.numel()).collect();
    for_each_piece(&sizes, |k, start, len| {
        let g = &grads[k].all()[start..start + len];
        // SAFETY: pieces do not overlap, and neither do the outputs.
        let [p, m, v] = [0, 1, 2].map(|i| unsafe { targets[i * n + k].part(start, len) });
        if step.amsgrad {
            // SAFETY: as above.
            adam_max(&constants, g, p, m, v, unsafe { targets[3 * n + k].part(start, len) });
        } else {
            adam(&constants, g, p, m, v);
        }
    });
    Ok(())
}

/// The moments after gradient `g`, and the parameter before its step.
#[inline(always)]
fn moments<T: Float>(c: &Adam<T>, g: T, p: T, m: T, v: T) -> (T, T, T) {
    let g = g * c.sign + c.decay * p;
    let m = m + (g - m) * c.one_minus_beta1;
    let v = v * c.beta2 + c.one_minus_beta2 * g * g;
    (m, v, p * c.shrink)
}

simd_fn! {
    fn adam<S: Simd, T: Float>(c: &Adam<T>, g: &[T], p: &mut [T], m: &mut [T], v: &mut [T]) {
        for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let param;
            (*m, *v, param) = moments(c, g, *p, *m, *v);
            *p = param - c.step_size * *m / (v.sqrt() / c.root_correction + c.eps);
        }
    }

    fn adam_max<S: Simd, T: Float>(c: &Adam<T>, g: &[T], p: &mut [T], m: &mut [T], v: &mut [T], max: &mut [T]) {
        for ((((p, m), v), max), &g) in p.iter_mut().zip(m).zip(v).zip(max).zip(g) {
            let param;
            (*m, *v, param) = moments(c, g, *p, *m, *v);
            *max = if *v > *max { *v } else { *max };
            *p = param - c.step_size * *m / (max.sqrt() / c.root_correction + c.eps);
        }
    }
}

struct Sgd<T> {
    lr: T,
    sign: T,
    decay: T,
    momentum: T,
    undamped: T,
    nesterov: bool,
    first: bool,
}

fn sgd_as<T: Float>(step: &SgdStep, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let n = inputs.len();
    let grads = inputs.iter().map(Dense::<T>::new).collect::<Result<Vec<_>>>()?;
    let targets: Vec<RowsMut<T>> = outputs.iter().map(RowsMut::new).collect();
    let constants = Sgd {
        lr: T::from_f64(step.lr),
        sign: if step.maximize { -T::ONE } else { T::ONE },
        decay: T::from_f64(step.weight_decay),
        momentum: T::from_f64(step.momentum),
        undamped: T::from_f64(1.0 - step.dampening),
        nesterov: step.nesterov,
        first: step.first,
    };
    let sizes: Vec<usize> = inputs.iter().map(|v| v.layout.numel()).collect();
    for_each_piece(&sizes, |k, start, len| {
        let g = &grads[k].all()[start..start + len];
        // SAFETY: pieces do not overlap, and neither do the outputs.
        let p = unsafe { targets[k].part(start, len) };
        if step.momentum == 0.0 {
            sgd(&constants, g, p);
        } else {
            // SAFETY: as above.
            sgd_momentum(&constants, g, p, unsafe { targets[n + k].part(start, len) });
        }
    });
    Ok(())
}

simd_fn! {
    fn sgd<S: Simd, T: Float>(c: &Sgd<T>, g: &[T], p: &mut [T]) {
        for (p, &g) in p.iter_mut().zip(g) {
            *p = *p - c.lr * (g * c.sign + c.decay * *p);
        }
    }

    fn sgd_momentum<S: Simd, T: Float>(c: &Sgd<T>, g: &[T], p: &mut [T], buffer: &mut [T]) {
        for ((p, buffer), &g) in p.iter_mut().zip(buffer).zip(g) {
            let g = g * c.sign + c.decay * *p;
            *buffer = if c.first { g } else { c.momentum * *buffer + c.undamped * g };
            let direction = if c.nesterov { g + c.momentum * *buffer } else { *buffer };
            *p = *p - c.lr * direction;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Cpu;
    use crate::testing::{Data, Lay, assert_close};
    use orkest_core::op::{AdamStep, SgdStep};
    use orkest_core::{Backend, DType, Op, Output, View};

    fn update(op: &Op, grads: &[&Data], targets: &[&Data]) {
        let views: Vec<View<'_>> = grads.iter().map(|g| g.view()).collect();
        let mut outputs: Vec<Output> = targets
            .iter()
            .map(|t| Output { layout: t.layout, dtype: t.dtype, buffer: Some(t.buffer.clone()) })
            .collect();
        Cpu.execute(op, &views, &mut outputs).unwrap();
    }

    fn scalar(value: f64) -> Data {
        Data::new(DType::F64, &[1], &[value])
    }

    const ADAM: AdamStep = AdamStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        decoupled: false,
        amsgrad: false,
        maximize: false,
        step: 1,
    };

    #[test]
    fn adam_is_pytorchs() {
        // torch.optim.Adam, p = 1, gradients 0.1, -0.2, 0.3.
        let (p, m, v) = (scalar(1.0), scalar(0.0), scalar(0.0));
        for (i, (g, expected)) in [(0.1, 0.9990000001), (-0.2, 0.9993661036038849), (0.3, 0.9990228625394775)]
            .into_iter()
            .enumerate()
        {
            update(&Op::AdamStep(AdamStep { step: i as u64 + 1, ..ADAM }), &[&scalar(g)], &[&p, &m, &v]);
            assert_close(&p.values(), &[expected], 1e-13, "adam");
        }
    }

    #[test]
    fn adamw_is_pytorchs() {
        // torch.optim.AdamW, weight decay 0.01, lr falling from 2e-5 to 0 over three steps.
        let (p, m, v) = (scalar(1.0), scalar(0.0), scalar(0.0));
        let expected = [0.999979800002, 0.9999845480514118, 0.9999821931120126];
        for i in 0..3 {
            let lr = 2e-5 * (3 - i) as f64 / 3.0;
            let step = AdamStep { lr, weight_decay: 0.01, decoupled: true, step: i as u64 + 1, ..ADAM };
            update(&Op::AdamStep(step), &[&scalar([0.1, -0.2, 0.3][i])], &[&p, &m, &v]);
            assert_close(&p.values(), &[expected[i]], 1e-13, "adamw");
        }
    }

    #[test]
    fn parameters_of_all_sizes_are_updated_once() {
        let sizes = [1, 3, 40_000, 100];
        let step = SgdStep {
            lr: 0.5,
            momentum: 0.9,
            dampening: 0.5,
            weight_decay: 0.0,
            nesterov: false,
            maximize: false,
            first: false,
        };
        let make = |n: usize, value: f64| Data::laid(Lay::Contiguous, DType::F32, &[n], &vec![value; n]);
        let params: Vec<Data> = sizes.iter().map(|&n| make(n, 1.0)).collect();
        let buffers: Vec<Data> = sizes.iter().map(|&n| make(n, 2.0)).collect();
        let grads: Vec<Data> =
            sizes.iter().map(|&n| Data::laid(Lay::Flipped, DType::F32, &[n], &vec![4.0; n])).collect();
        let targets: Vec<&Data> = params.iter().chain(&buffers).collect();
        update(&Op::SgdStep(step), &grads.iter().collect::<Vec<_>>(), &targets);
        // buffer = 0.9 * 2 + 0.5 * 4 = 3.8, parameter = 1 - 0.5 * 3.8
        for (p, b) in params.iter().zip(&buffers) {
            assert!(p.values().iter().all(|v| (v + 0.9).abs() < 1e-6));
            assert!(b.values().iter().all(|v| (v - 3.8).abs() < 1e-6));
        }
    }
}
