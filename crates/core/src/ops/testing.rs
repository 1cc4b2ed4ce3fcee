//! What the tests of this folder share: inputs, comparisons, and a device with fused kernels.

use crate::backend::{Backend, Buffer, Output, View};
use crate::op::Op;
use crate::reference::Reference;
use crate::{BackwardOptions, DType, Device, Result, Shape, Tensor, autograd, no_grad};
use std::cell::RefCell;

thread_local! {
    static DEVICE: RefCell<Device> = RefCell::new(Device::reference());
    static LAUNCHED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Runs a test on the interpreter, which takes the lowerings, and on a device that has the fused kernels.
pub fn everywhere(test: impl Fn()) {
    for device in [Device::reference(), Device::open("kernels", 0).unwrap()] {
        DEVICE.set(device);
        test();
    }
    DEVICE.set(Device::reference());
}

/// The device of the pass of [`everywhere`] that is running.
pub fn device() -> Device {
    DEVICE.with_borrow(Clone::clone)
}

/// The leaf `sin(1.7 i + phase)`, f64: inputs that are easy to write down again in PyTorch.
pub fn wave(shape: impl Into<Shape>, phase: f64) -> Tensor {
    let shape = shape.into();
    let values: Vec<f64> = (0..shape.numel()).map(|i| (1.7 * i as f64 + phase).sin()).collect();
    Tensor::from_slice(&values, shape, device()).requires_grad_(true)
}

/// Literals have six decimals.
#[track_caller]
pub fn assert_close(actual: &Tensor, expected: &[f64]) {
    let values = actual.to_dtype(DType::F64).to_vec::<f64>().unwrap();
    assert_eq!(values.len(), expected.len(), "{}", actual.describe());
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
    assert!(values.iter().zip(expected).all(|(&a, &b)| close(a, b)), "{values:?} instead of {expected:?}");
}

/// Compares a result, and the gradients of its inputs given `wave(.., 0.5)` for its own.
#[track_caller]
pub fn assert_with_gradients(y: &Tensor, inputs: &[&Tensor], expected: &[f64], gradients: &[&[f64]]) {
    assert_close(y, expected);
    let upstream = wave(*y.shape(), 0.5).detach();
    let actual = autograd::grad_from(&[y], &[Some(&upstream)], inputs, BackwardOptions::default());
    for (i, (a, e)) in actual.iter().zip(gradients).enumerate() {
        let a = a.as_ref().unwrap_or_else(|| panic!("input {i} has no gradient"));
        assert_eq!(a.shape(), inputs[i].shape());
        assert_close(a, e);
    }
}

/// The fused kernels that `test` launches on the device that has them.
pub fn launched(test: impl Fn()) -> Vec<String> {
    DEVICE.set(Device::open("kernels", 0).unwrap());
    LAUNCHED.take();
    test();
    DEVICE.set(Device::reference());
    LAUNCHED.take()
}

/// The interpreter, and fused kernels that compute their defining formulas with it.
struct Kernels;

crate::register_backend!("kernels", open);

fn open(_: usize) -> Result<Box<dyn Backend>> {
    Ok(Box::new(Kernels))
}

impl Backend for Kernels {
    fn name(&self) -> &str {
        "kernels"
    }

    fn upload(&self, bytes: &[u8], dtype: DType) -> Result<Buffer> {
        Reference.upload(bytes, dtype)
    }

    fn allocate(&self, len: usize, dtype: DType) -> Result<Buffer> {
        Reference.allocate(len, dtype)
    }

    fn download(&self, view: View<'_>) -> Result<Vec<u8>> {
        Reference.download(view)
    }

    fn execute(&self, op: &Op, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
        if !self.supports(op, inputs) {
            return Reference.execute(op, inputs, outputs);
        }
        LAUNCHED.with_borrow_mut(|l| l.push(op.name().to_string()));
        let as_tensor = |v: &View<'_>| {
            Tensor::from_buffer(v.buffer.clone(), *v.layout, v.dtype, Device::reference(), "view")
        };
        let inputs: Vec<Tensor> = inputs.iter().map(as_tensor).collect();
        for (output, value) in outputs.iter_mut().zip(no_grad(|| compute(op, &inputs))) {
            let value = value.to_dtype(output.dtype).reshape(output.layout.shape()).copy();
            output.buffer = Some(value.view_of().buffer.clone());
        }
        Ok(())
    }

    fn supports(&self, op: &Op, inputs: &[View<'_>]) -> bool {
        let fused = matches!(
            op,
            Op::LayerNorm { .. }
                | Op::LayerNormGrad { .. }
                | Op::RmsNorm { .. }
                | Op::RmsNormGrad { .. }
                | Op::BatchNorm { .. }
                | Op::BatchNormGrad { .. }
                | Op::CrossEntropy { .. }
                | Op::CrossEntropyGrad { .. }
                | Op::Linear { .. }
                | Op::Attention { .. }
                | Op::AttentionGrad { .. }
        );
        fused && matches!(inputs[0].dtype, DType::F32 | DType::F64)
    }
}

fn compute(op: &Op, t: &[Tensor]) -> Vec<Tensor> {
    let rows = |t: &Tensor| t.reshape([t.numel() / t.size(-1), t.size(-1)]);
    match *op {
        Op::LayerNorm { eps, weight, bias } => {
            let mean = t[0].mean_keepdim(-1);
            let rstd = (t[0].var_keepdim(-1, 0.0) + eps).rsqrt();
            let mut y = (&t[0] - &mean) * &rstd;
            if weight {
                y *= &t[1];
            }
            if bias {
                y += &t[1 + weight as usize];
            }
            vec![y, mean, rstd]
        }
        Op::LayerNormGrad { weight } => {
            let (x, rstd, g) = ((&t[0] - &t[1]) * &t[2], &t[2], t.last().unwrap());
            let gw = if weight { g * &t[3] } else { g.clone() };
            let dx = rstd * (&gw - gw.mean_keepdim(-1) - &x * (&gw * &x).mean_keepdim(-1));
            vec![dx, rows(&(g * &x)).sum(0), rows(g).sum(0)]
        }
        Op::RmsNorm { eps, weight } => {
            let rrms = (t[0].square().mean_keepdim(-1) + eps).rsqrt();
            let y = &t[0] * &rrms;
            vec![if weight { y * &t[1] } else { y }, rrms]
        }
        Op::RmsNormGrad { weight } => {
            let (x, rrms, g) = (&t[0] * &t[1], &t[1], t.last().unwrap());
            let gw = if weight { g * &t[2] } else { g.clone() };
            vec![rrms * (&gw - &x * (&gw * &x).mean_keepdim(-1)), rows(&(g * &x)).sum(0)]
        }
        Op::BatchNorm { eps, weight, bias } => {
            let (mean, var) = (t[0].mean([0, 2]), t[0].var([0, 2], 0.0));
            let mut y = (&t[0] - mean.unsqueeze(1)) * (&var + eps).rsqrt().unsqueeze(1);
            if weight {
                y *= t[1].unsqueeze(1);
            }
            if bias {
                y += t[1 + weight as usize].unsqueeze(1);
            }
            vec![y, mean, var]
        }
        Op::BatchNormGrad { eps, weight } => {
            let (rstd, g) = ((&t[2] + eps).rsqrt().unsqueeze(1), t.last().unwrap());
            let x = (&t[0] - t[1].unsqueeze(1)) * &rstd;
            let dx = rstd * (g - g.mean_keepdim([0, 2]) - &x * (g * &x).mean_keepdim([0, 2]));
            let dx = if weight { dx * t[3].unsqueeze(1) } else { dx };
            vec![dx, (g * &x).sum([0, 2]), g.sum([0, 2])]
        }
        Op::CrossEntropy { ignore_index, label_smoothing: s } => {
            let lse = t[0].logsumexp(-1);
            let counts = t[1].ne(ignore_index).to_dtype(t[0].dtype());
            vec![(&lse - (&t[0] * goal(t, s)).sum(-1)) * counts, lse]
        }
        Op::CrossEntropyGrad { ignore_index, label_smoothing: s } => {
            let counts = t[1].ne(ignore_index).to_dtype(t[0].dtype());
            vec![((&t[0] - t[2].unsqueeze(1)).exp() - goal(t, s)) * (&t[3] * counts).unsqueeze(1)]
        }
        Op::Linear { activation, .. } => {
            let y = t[0].matmul(&t[1].t());
            let y = if t.len() > 2 { y + &t[2] } else { y };
            vec![activation.map_or(y.clone(), |a| y.unary(a))]
        }
        Op::Attention { scale, causal, mask } => {
            let scores = scores(t, scale, causal, mask);
            let lse = scores.logsumexp(-1);
            vec![weights(&scores, &lse).matmul(&t[2]), lse]
        }
        Op::AttentionGrad { scale, causal, mask } => {
            let [q, k, v] = [0, 1, 2].map(|i| &t[i]);
            let (y, lse, g) = (&t[t.len() - 3], &t[t.len() - 2], &t[t.len() - 1]);
            let p = weights(&scores(t, scale, causal, mask), lse);
            let ds = &p * (g.matmul(&v.transpose(-2, -1)) - (g * y).sum_keepdim(-1)) * scale;
            vec![ds.matmul(k), ds.transpose(-2, -1).matmul(q), p.transpose(-2, -1).matmul(g)]
        }
        _ => unreachable!("{op:?} is not supported"),
    }
}

/// The distribution that cross-entropy compares with.
fn goal(t: &[Tensor], smoothing: f64) -> Tensor {
    let classes = t[0].size(1);
    let target = t[1].unsqueeze(1).eq(Tensor::arange(0, classes, 1, t[0].device())).to_dtype(t[0].dtype());
    target * (1.0 - smoothing) + smoothing / classes as f64
}

fn scores(t: &[Tensor], scale: f64, causal: bool, mask: bool) -> Tensor {
    let mut scores = t[0].matmul(&t[1].transpose(-2, -1)) * scale;
    if causal {
        let visible = Tensor::ones([t[0].size(2), t[1].size(2)], t[0].device()).tril(0);
        scores = scores.masked_fill(&visible.eq(0), f64::NEG_INFINITY);
    }
    match mask.then(|| &t[3]) {
        Some(m) if m.dtype() == DType::Bool => scores.masked_fill(&m.logical_not(), f64::NEG_INFINITY),
        Some(m) => scores + m,
        None => scores,
    }
}

fn weights(scores: &Tensor, lse: &Tensor) -> Tensor {
    let hidden = scores.eq(f64::NEG_INFINITY);
    (scores - lse.unsqueeze(-1)).exp().masked_fill(&hidden, 0.0)
}
