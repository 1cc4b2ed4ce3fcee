//! The benchmark's cases: what is measured, under which name.

use crate::floor::Work;
use crate::models::{Bert, Gpt, LstmClassifier, Sentiment};
use anyhow::{Result, ensure};
use orkest::prelude::*;

/// One repetition of a case.
pub type Run = Box<dyn FnMut() -> Result<()>>;

/// A case: builds its data once and returns what is timed.
pub struct Case {
    pub name: &'static str,
    pub work: Work,
    pub build: fn(&Device) -> Result<Run>,
}

macro_rules! cases {
    ($($name:ident: $work:expr => $build:expr;)*) => {
        /// All cases, in the order in which they are run.
        pub const CASES: &[Case] = &[$(Case { name: stringify!($name), work: $work, build: |device| $build(device) }),*];
    };
}

cases! {
    tiny_add_10k: Work::moved(10_000 * 3 * 8) => |d| tiny(d, |x| no_grad(|| x + x));
    tiny_add_grad_10k: Work::moved(10_000 * 3 * 8) => |d| tiny(d, |x| x + x);
    matmul_512: Work::matmul(1, 512, 512, 512) => |d| op(|[a, b]| a.matmul(b), [rn(&[512, 512], d), rn(&[512, 512], d)]);
    matmul_1024: Work::matmul(1, 1024, 1024, 1024) => |d| op(|[a, b]| a.matmul(b), [rn(&[1024, 1024], d), rn(&[1024, 1024], d)]);
    matmul_2048: Work::matmul(1, 2048, 2048, 2048) => |d| op(|[a, b]| a.matmul(b), [rn(&[2048, 2048], d), rn(&[2048, 2048], d)]);
    bmm_96x128x64x128: Work::matmul(96, 128, 64, 128) => |d| op(|[a, b]| a.matmul(b), [rn(&[96, 128, 64], d), rn(&[96, 64, 128], d)]);
    linear_gelu_1024x768x3072: Work::matmul(1, 1024, 768, 3072) => |d| op(
        |[x, w, b]| x.linear_act(w, Some(b), orkest::op::Unary::Gelu),
        [rn(&[1024, 768], d), rn(&[3072, 768], d), rn(&[3072], d)],
    );
    elementwise_chain_4m: Work::moved(4 << 22) => |d| op(
        |[a, b, c]| (a * b + c).gelu() * 0.5 - a,
        [rn(&[2048, 2048], d), rn(&[2048, 2048], d), rn(&[2048, 2048], d)],
    );
    add_16m: Work::moved(3 << 24) => |d| op(|[a, b]| a + b, [rn(&[4096, 4096], d), rn(&[4096, 4096], d)]);
    softmax_4096x1024: Work::moved(2 * 4096 * 1024) => |d| op(|[x]| x.softmax(-1), [rn(&[4096, 1024], d)]);
    layer_norm_4096x768: Work::moved(2 * 4096 * 768) => |d| op(
        |[x, w, b]| x.layer_norm(&[768], Some(w), Some(b), 1e-5),
        [rn(&[4096, 768], d), rn(&[768], d), rn(&[768], d)],
    );
    sum_all_16m: Work::moved(1 << 24) => |d| op(|[x]| x.sum(..), [rn(&[4096, 4096], d)]);
    sum_rows_4096x4096: Work::moved(1 << 24) => |d| op(|[x]| x.sum(0), [rn(&[4096, 4096], d)]);
    transpose_copy_4096: Work::moved(2 << 24) => |d| op(|[x]| x.t().contiguous(), [rn(&[4096, 4096], d)]);
    embedding_10000x128_32x100: Work::moved(2 * 3200 * 128) => |d| op(|[w, ids]| w.rows(ids), [rn(&[10000, 128], d), ids(10000, &[32, 100], d)]);
    attention_8x12x128x64: Work::attention(96, 128, 64) => |d| op(
        |[q, k, v]| (q.matmul(&k.transpose(-2, -1)) / 8.0).softmax(-1).matmul(v),
        [rn(&[8, 12, 128, 64], d), rn(&[8, 12, 128, 64], d), rn(&[8, 12, 128, 64], d)],
    );
    sdpa_8x12x512x64: Work::attention(96, 512, 64) => |d| op(
        |[q, k, v]| Tensor::scaled_dot_product_attention(q, k, v, None, 0.0, false, None),
        [rn(&[8, 12, 512, 64], d), rn(&[8, 12, 512, 64], d), rn(&[8, 12, 512, 64], d)],
    );
    conv2d_32x16x28x28_32x3x3: Work { flops: 2.0 * (32 * 32 * 28 * 28 * 16 * 9) as f64, ..Work::moved(32 * 28 * 28 * (16 + 32)) } => |d| op(
        |[x, w]| x.conv2d(w, None, 1, 1, 1, 1),
        [rn(&[32, 16, 28, 28], d), rn(&[32, 16, 3, 3], d)],
    );
    train_sentiment_32x100: Work::matmul(1, 32, 128, 256).training(1_313_538) => |d: &Device| {
        let (model, x, y) = (Sentiment::new().to(d), ids(10000, &[32, 100], d), ids(2, &[32], d));
        let optimizer = Adam::new(model.parameters(), 1e-3);
        training(optimizer, move || CrossEntropyLoss::new().forward(&model.forward(&x), &y))
    };
    train_lstm_32x100: Work::matmul(1, 3200, 192, 512).training(419_970) => |d: &Device| {
        let (model, x, y) = (LstmClassifier::new().to(d), ids(5002, &[32, 100], d), ids(2, &[32], d));
        let optimizer = Adam::new(model.parameters(), 1e-3);
        training(optimizer, move || CrossEntropyLoss::new().forward(&model.forward(&x), &y))
    };
    train_microgpt_1x16: Work::transformer(1, 16, 27 * 16, 1, 16).training(4_512) => |d| gpt_training(27, 16, 16, 4, 1, 1, d);
    train_nanogpt_4x256: Work::transformer(6, 384, 65 * 384, 4, 256).training(10_791_000) => |d| gpt_training(65, 256, 384, 6, 6, 4, d);
    distilbert_infer_1x128: Work::transformer(6, 768, 0, 1, 128) => |d| bert_inference(1, d);
    distilbert_infer_8x128: Work::transformer(6, 768, 0, 8, 128) => |d| bert_inference(8, d);
    distilbert_train_8x128: Work::transformer(6, 768, 0, 8, 128).training(66_955_010) => |d: &Device| {
        let (model, x, y) = (Bert::new().to(d), ids(30522, &[8, 128], d), ids(2, &[8], d));
        let optimizer = AdamW::new(model.parameters(), 2e-5);
        training(optimizer, move || CrossEntropyLoss::new().forward(&model.forward(&x), &y))
    };
    gpt2_generate_16_plus_32: Work::transformer(12, 768, 50257 * 768, 1, 1).times(32) => |d: &Device| {
        let (model, prompt) = (Gpt::new(50257, 1024, 768, 12, 12).to(d), ids(50257, &[1, 16], d));
        let run: Run = Box::new(move || no_grad(|| {
            let mut past = model.empty_past();
            let last = |logits: Tensor| logits.i((.., -1..)).argmax(-1);
            let mut next = last(model.forward(&prompt, 0, Some(&mut past)));
            for i in 0..31 {
                next = last(model.forward(&next, 16 + i, Some(&mut past)));
            }
            next.item()?;
            Ok(())
        }));
        Ok(run)
    };
}

fn rn(shape: &[usize], device: &Device) -> Tensor {
    Tensor::randn(shape, device)
}

fn ids(high: i64, shape: &[usize], device: &Device) -> Tensor {
    Tensor::randint(0, high, shape, device)
}

/// Ten thousand operations on eight numbers: what one costs before it computes anything. A millisecond here is 100 ns for each.
fn tiny(device: &Device, f: fn(&Tensor) -> Tensor) -> Result<Run> {
    let x = rn(&[8], device).requires_grad_(true);
    Ok(Box::new(move || {
        for _ in 0..10_000 {
            std::hint::black_box(f(&x));
        }
        Ok(())
    }))
}

/// One operation without a graph.
fn op<const N: usize>(f: impl Fn([&Tensor; N]) -> Tensor + 'static, inputs: [Tensor; N]) -> Result<Run> {
    Ok(Box::new(move || {
        no_grad(|| f(inputs.each_ref()));
        Ok(())
    }))
}

/// Training steps on one batch. The loss must have fallen by the tenth step, or the time means nothing.
fn training(mut optimizer: impl Optimizer + 'static, loss: impl Fn() -> Tensor + 'static) -> Result<Run> {
    let (mut steps, mut first) = (0, 0.0);
    Ok(Box::new(move || {
        optimizer.zero_grad();
        let loss = loss();
        loss.backward();
        optimizer.step();
        steps += 1;
        if steps == 1 {
            first = loss.item()?;
        } else if steps == 10 {
            let now = loss.item()?;
            ensure!(now < first, "the loss did not fall: {first} at first, {now} after 10 steps");
        }
        Ok(())
    }))
}

fn gpt_training(
    vocab: usize,
    block: usize,
    d: usize,
    heads: usize,
    layers: usize,
    batch: usize,
    device: &Device,
) -> Result<Run> {
    let (model, ids) =
        (Gpt::new(vocab, block, d, heads, layers).to(device), ids(vocab as i64, &[batch, block + 1], device));
    let optimizer = AdamW::new(model.parameters(), 1e-3);
    training(optimizer, move || {
        let logits = model.forward(&ids.i((.., ..-1)), 0, None).flatten(0, 1);
        CrossEntropyLoss::new().forward(&logits, &ids.i((.., 1..)).flatten(0, 1))
    })
}

fn bert_inference(batch: usize, device: &Device) -> Result<Run> {
    let (model, ids) = (Bert::new().to(device), ids(30522, &[batch, 128], device));
    model.eval();
    Ok(Box::new(move || {
        no_grad(|| model.forward(&ids));
        Ok(())
    }))
}
