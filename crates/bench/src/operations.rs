//! Operations one by one, forwards and with gradients; `tests/parity/operations.py` times PyTorch on the same under the same names.

use crate::models::ResNet;
use crate::repeat::fastest;
use anyhow::Result;
use orkest::prelude::*;
use serde_json::{Value, json};

/// What goes in.
enum Input {
    /// Normally distributed f32 of a shape.
    Normal(&'static [usize]),
    /// Uniform in 0.1 to 1.
    Positive(&'static [usize]),
    /// Whole numbers below a limit.
    Below(i64, &'static [usize]),
    /// Truth values, half of them true.
    Truth(&'static [usize]),
}
use Input::{Below, Normal, Positive, Truth};

impl Input {
    fn tensor(&self, device: &Device) -> Tensor {
        match *self {
            Normal(shape) => Tensor::randn(shape, device),
            Positive(shape) => Tensor::rand(shape, device) * 0.9 + 0.1,
            Below(limit, shape) => Tensor::randint(0, limit, shape, device),
            Truth(shape) => Tensor::rand(shape, device).lt(0.5),
        }
    }
}

/// What is timed, and the parameters it has of its own.
struct Built {
    run: Box<dyn Fn(&[Tensor]) -> Tensor>,
    parameters: Vec<Param>,
}

struct Case {
    name: &'static str,
    inputs: &'static [Input],
    build: fn(&Device) -> Built,
}

macro_rules! cases {
    ($($name:literal: [$($input:expr),*] => |$x:ident| $run:expr;)*) => {
        const OPERATIONS: &[Case] = &[$(Case {
            name: $name,
            inputs: &[$($input),*],
            build: |_| Built { run: Box::new(|$x: &[Tensor]| $run), parameters: Vec::new() },
        }),*];
    };
}

macro_rules! layers {
    ($($name:literal: [$($input:expr),*] => $layer:expr, $run:expr;)*) => {
        const LAYERS: &[Case] = &[$(Case {
            name: $name,
            inputs: &[$($input),*],
            build: |device| {
                let layer = $layer.to(device);
                let parameters = layer.parameters();
                let run = $run;
                Built { run: Box::new(move |x: &[Tensor]| run(&layer, &x[0])), parameters }
            },
        }),*];
    };
}

cases! {
    // Products, in every way operands can lie.
    "matmul 512, A B": [Normal(&[512, 512]), Normal(&[512, 512])] => |x| x[0].matmul(&x[1]);
    "matmul 512, A Bᵀ": [Normal(&[512, 512]), Normal(&[512, 512])] => |x| x[0].matmul(&x[1].t());
    "matmul 512, Aᵀ B": [Normal(&[512, 512]), Normal(&[512, 512])] => |x| x[0].t().matmul(&x[1]);
    "matmul 1000x999x1001": [Normal(&[1000, 999]), Normal(&[999, 1001])] => |x| x[0].matmul(&x[1]);
    "matmul 64x4096x64": [Normal(&[64, 4096]), Normal(&[4096, 64])] => |x| x[0].matmul(&x[1]);
    "matmul 4096x64x64": [Normal(&[4096, 64]), Normal(&[64, 64])] => |x| x[0].matmul(&x[1]);
    "matmul 4096x16x4096": [Normal(&[4096, 16]), Normal(&[16, 4096])] => |x| x[0].matmul(&x[1]);
    "matmul 32x32x32": [Normal(&[32, 32]), Normal(&[32, 32])] => |x| x[0].matmul(&x[1]);
    "matmul 128x128x128": [Normal(&[128, 128]), Normal(&[128, 128])] => |x| x[0].matmul(&x[1]);
    "matrix 4096 times vector": [Normal(&[4096, 4096]), Normal(&[4096])] => |x| x[0].matmul(&x[1]);
    "bmm 4096 of 8x8x8": [Normal(&[4096, 8, 8]), Normal(&[4096, 8, 8])] => |x| x[0].matmul(&x[1]);
    "bmm 64 of 64x64x64": [Normal(&[64, 64, 64]), Normal(&[64, 64, 64])] => |x| x[0].matmul(&x[1]);
    "matmul [64, 32, 128] [128, 128]": [Normal(&[64, 32, 128]), Normal(&[128, 128])] => |x| x[0].matmul(&x[1]);
    "linear 1x768x3072": [Normal(&[1, 768]), Normal(&[3072, 768]), Normal(&[3072])] => |x| x[0].linear(&x[1], Some(&x[2]));
    "linear 16x768x768": [Normal(&[16, 768]), Normal(&[768, 768]), Normal(&[768])] => |x| x[0].linear(&x[1], Some(&x[2]));
    "linear 128x768x3072": [Normal(&[128, 768]), Normal(&[3072, 768]), Normal(&[3072])] => |x| x[0].linear(&x[1], Some(&x[2]));
    "linear 2048x128x10": [Normal(&[2048, 128]), Normal(&[10, 128]), Normal(&[10])] => |x| x[0].linear(&x[1], Some(&x[2]));
    "outer of 2048": [Normal(&[2048]), Normal(&[2048])] => |x| x[0].outer(&x[1]);
    "einsum bhtd,bhsd->bhts": [Normal(&[4, 8, 128, 64]), Normal(&[4, 8, 128, 64])] => |x| orkest::einsum("bhtd,bhsd->bhts", &[&x[0], &x[1]]);
    // Elements.
    "exp": [Normal(&[1024, 1024])] => |x| x[0].exp();
    "log": [Positive(&[1024, 1024])] => |x| x[0].log();
    "sqrt": [Positive(&[1024, 1024])] => |x| x[0].sqrt();
    "sin": [Normal(&[1024, 1024])] => |x| x[0].sin();
    "tanh": [Normal(&[1024, 1024])] => |x| x[0].tanh();
    "sigmoid": [Normal(&[1024, 1024])] => |x| x[0].sigmoid();
    "relu": [Normal(&[1024, 1024])] => |x| x[0].relu();
    "gelu": [Normal(&[1024, 1024])] => |x| x[0].gelu();
    "silu": [Normal(&[1024, 1024])] => |x| x[0].silu();
    "softplus": [Normal(&[1024, 1024])] => |x| x[0].softplus(1.0, 20.0);
    "erf": [Normal(&[1024, 1024])] => |x| x[0].erf();
    "pow(3)": [Positive(&[1024, 1024])] => |x| x[0].pow(3.0);
    "pow(tensor)": [Positive(&[1024, 1024]), Normal(&[1024, 1024])] => |x| x[0].pow(&x[1]);
    "clamp": [Normal(&[1024, 1024])] => |x| x[0].clamp(-1.0, 1.0);
    "a + b": [Normal(&[1024, 1024]), Normal(&[1024, 1024])] => |x| &x[0] + &x[1];
    "a * row": [Normal(&[1024, 1024]), Normal(&[1024])] => |x| &x[0] * &x[1];
    "a * column": [Normal(&[1024, 1024]), Normal(&[1024, 1])] => |x| &x[0] * &x[1];
    "a / b": [Normal(&[1024, 1024]), Positive(&[1024, 1024])] => |x| &x[0] / &x[1];
    "a + bᵀ": [Normal(&[1024, 1024]), Normal(&[1024, 1024])] => |x| &x[0] + &x[1].t();
    "maximum": [Normal(&[1024, 1024]), Normal(&[1024, 1024])] => |x| x[0].maximum(&x[1]);
    "a > b": [Normal(&[1024, 1024]), Normal(&[1024, 1024])] => |x| x[0].gt(&x[1]);
    "where": [Truth(&[1024, 1024]), Normal(&[1024, 1024]), Normal(&[1024, 1024])] => |x| x[0].where_(&x[1], &x[2]);
    "masked_fill": [Normal(&[1024, 1024]), Truth(&[1024, 1024])] => |x| x[0].masked_fill(&x[1], 0.0);
    "to f16": [Normal(&[1024, 1024])] => |x| x[0].to_dtype(DType::F16);
    "to bf16": [Normal(&[1024, 1024])] => |x| x[0].to_dtype(DType::BF16);
    "i64 to f32": [Below(1000, &[1024, 1024])] => |x| x[0].to_dtype(DType::F32);
    "i64 a + b": [Below(1000, &[1024, 1024]), Below(1000, &[1024, 1024])] => |x| &x[0] + &x[1];
    "dropout": [Normal(&[1024, 1024])] => |x| x[0].dropout(0.5, true);
    "rand_like": [Normal(&[1024, 1024])] => |x| x[0].rand_like();
    "randn_like": [Normal(&[1024, 1024])] => |x| x[0].randn_like();
    // Reductions.
    "sum(..)": [Normal(&[1024, 1024])] => |x| x[0].sum(..);
    "sum(0)": [Normal(&[1024, 1024])] => |x| x[0].sum(0);
    "sum(-1)": [Normal(&[1024, 1024])] => |x| x[0].sum(-1);
    "sum(1) of [64, 128, 128]": [Normal(&[64, 128, 128])] => |x| x[0].sum(1);
    "mean(-1) of [32, 100, 128]": [Normal(&[32, 100, 128])] => |x| x[0].mean(-1);
    "var(-1)": [Normal(&[1024, 1024])] => |x| x[0].var(-1, 1.0);
    "amax(0)": [Normal(&[1024, 1024])] => |x| x[0].max(0);
    "amax(-1)": [Normal(&[1024, 1024])] => |x| x[0].max(-1);
    "argmax(-1)": [Normal(&[1024, 1024])] => |x| x[0].argmax(-1);
    "argmax(0)": [Normal(&[1024, 1024])] => |x| x[0].argmax(0);
    "prod(-1)": [Positive(&[1024, 1024])] => |x| x[0].prod(-1);
    "norm": [Normal(&[1024, 1024])] => |x| x[0].norm(2.0, ..);
    "logsumexp(-1)": [Normal(&[1024, 1024])] => |x| x[0].logsumexp(-1);
    "cumsum(-1)": [Normal(&[1024, 1024])] => |x| x[0].cumsum(-1);
    "cumsum(0)": [Normal(&[1024, 1024])] => |x| x[0].cumsum(0);
    "cumprod(-1)": [Positive(&[1024, 1024])] => |x| x[0].cumprod(-1);
    "sort": [Normal(&[1024, 1024])] => |x| x[0].sort(-1, false).0;
    "sort of a million": [Normal(&[1_048_576])] => |x| x[0].sort(0, false).0;
    "topk(10)": [Normal(&[1024, 1024])] => |x| x[0].topk(10, -1, true).0;
    "topk(50) of [4, 50257]": [Normal(&[4, 50257])] => |x| x[0].topk(50, -1, true).0;
    "median(-1)": [Normal(&[1024, 1024])] => |x| x[0].median(-1).0;
    // Rows.
    "softmax(-1) of [256, 1024]": [Normal(&[256, 1024])] => |x| x[0].softmax(-1);
    "softmax(1) of [64, 128, 128]": [Normal(&[64, 128, 128])] => |x| x[0].softmax(1);
    "log_softmax(-1) of [64, 50257]": [Normal(&[64, 50257])] => |x| x[0].log_softmax(-1);
    "layer_norm of [2048, 768]": [Normal(&[2048, 768]), Normal(&[768]), Normal(&[768])] => |x| x[0].layer_norm([768], Some(&x[1]), Some(&x[2]), 1e-5);
    "rms_norm of [2048, 768]": [Normal(&[2048, 768]), Normal(&[768])] => |x| x[0].rms_norm([768], Some(&x[1]), Some(1e-6));
    "batch_norm of [32, 64, 28, 28]": [Normal(&[32, 64, 28, 28]), Normal(&[64]), Normal(&[64])] => |x| x[0].batch_norm(None, None, Some(&x[1]), Some(&x[2]), true, 0.1, 1e-5);
    "batch_norm of [512, 256]": [Normal(&[512, 256]), Normal(&[256]), Normal(&[256])] => |x| x[0].batch_norm(None, None, Some(&x[1]), Some(&x[2]), true, 0.1, 1e-5);
    "group_norm of [8, 64, 28, 28]": [Normal(&[8, 64, 28, 28]), Normal(&[64]), Normal(&[64])] => |x| x[0].group_norm(8, Some(&x[1]), Some(&x[2]), 1e-5);
    "batch_norm of [32, 64, 28, 28], running": [Normal(&[32, 64, 28, 28]), Normal(&[64]), Normal(&[64]), Positive(&[64])] => |x| x[0].batch_norm(Some(&mut x[3].detach()), Some(&mut x[3].detach()), Some(&x[1]), Some(&x[2]), false, 0.1, 1e-5);
    "instance_norm of [8, 64, 28, 28]": [Normal(&[8, 64, 28, 28]), Normal(&[64]), Normal(&[64])] => |x| x[0].instance_norm(None, None, Some(&x[1]), Some(&x[2]), true, 0.1, 1e-5);
    // Losses.
    "cross_entropy of [2048, 1000]": [Normal(&[2048, 1000]), Below(1000, &[2048])] => |x| CrossEntropyLoss::new().forward(&x[0], &x[1]);
    "cross_entropy of [64, 50257]": [Normal(&[64, 50257]), Below(50257, &[64])] => |x| CrossEntropyLoss::new().forward(&x[0], &x[1]);
    "mse_loss": [Normal(&[1024, 1024]), Normal(&[1024, 1024])] => |x| MSELoss::new().forward(&x[0], &x[1]);
    "bce_with_logits": [Normal(&[1024, 1024]), Positive(&[1024, 1024])] => |x| BCEWithLogitsLoss::new().forward(&x[0], &x[1]);
    "smooth_l1_loss": [Normal(&[1024, 1024]), Normal(&[1024, 1024])] => |x| SmoothL1Loss::new(1.0).forward(&x[0], &x[1]);
    "huber_loss": [Normal(&[1024, 1024]), Normal(&[1024, 1024])] => |x| HuberLoss::new(1.0).forward(&x[0], &x[1]);
    "l1_loss": [Normal(&[1024, 1024]), Normal(&[1024, 1024])] => |x| L1Loss::new().forward(&x[0], &x[1]);
    "mse_loss, each": [Normal(&[1024, 1024]), Normal(&[1024, 1024])] => |x| MSELoss::new().reduction(Reduction::None).forward(&x[0], &x[1]);
    "binary_cross_entropy": [Positive(&[1024, 1024]), Positive(&[1024, 1024])] => |x| BCELoss::new().forward(&x[0], &x[1].detach());
    "kl_div": [Normal(&[1024, 1024]), Positive(&[1024, 1024])] => |x| KLDivLoss::new().reduction(Reduction::BatchMean).forward(&x[0], &x[1].detach());
    "poisson_nll_loss": [Normal(&[1024, 1024]), Positive(&[1024, 1024])] => |x| PoissonNLLLoss::new().forward(&x[0], &x[1].detach());
    "gaussian_nll_loss": [Normal(&[1024, 1024]), Normal(&[1024, 1024]), Positive(&[1024, 1024])] => |x| GaussianNLLLoss::new().forward(&x[0], &x[1].detach(), &x[2]);
    "nll_loss of [2048, 1000]": [Normal(&[2048, 1000]), Below(1000, &[2048])] => |x| NLLLoss::new().forward(&x[0], &x[1]);
    "triplet_margin_loss of [4096, 256]": [Normal(&[4096, 256]), Normal(&[4096, 256]), Normal(&[4096, 256])] => |x| TripletMarginLoss::new().forward(&x[0], &x[1], &x[2]);
    "cosine_similarity of [4096, 256]": [Normal(&[4096, 256]), Normal(&[4096, 256])] => |x| CosineSimilarity::new().forward(&x[0], &x[1]);
    // Places.
    "embedding of [32, 100] in [10000, 128]": [Normal(&[10000, 128]), Below(10000, &[32, 100])] => |x| x[0].rows(&x[1]);
    "index_select of columns": [Normal(&[1024, 1024]), Below(1024, &[512])] => |x| x[0].index_select(1, &x[1]);
    "gather": [Normal(&[1024, 1024]), Below(1024, &[1024, 256])] => |x| x[0].gather(-1, &x[1]);
    "scatter_add": [Normal(&[1024, 1024]), Below(1024, &[1024, 256]), Normal(&[1024, 256])] => |x| x[0].scatter_add(-1, &x[1], &x[2]);
    "index_add": [Normal(&[1024, 256]), Below(1024, &[4096]), Normal(&[4096, 256])] => |x| x[0].index_add(0, &x[1], &x[2]);
    "masked_select": [Normal(&[1024, 1024]), Truth(&[1024, 1024])] => |x| x[0].masked_select(&x[1]).expect("read on the host");
    "nonzero": [Truth(&[1024, 1024])] => |x| x[0].nonzero().expect("read on the host");
    "one_hot": [Below(100, &[4096])] => |x| x[0].one_hot(100);
    // Moving.
    "cat": [Normal(&[512, 512]), Normal(&[512, 512])] => |x| Tensor::cat(&[&x[0], &x[1]], -1);
    "stack": [Normal(&[512, 512]), Normal(&[512, 512])] => |x| Tensor::stack(&[&x[0], &x[1]], 0);
    "transpose, copied": [Normal(&[1024, 1024])] => |x| x[0].t().contiguous();
    "heads to the front, copied": [Normal(&[8, 128, 12, 64])] => |x| x[0].transpose(1, 2).contiguous();
    "channels to the end, copied": [Normal(&[8, 64, 56, 56])] => |x| x[0].permute((0, 2, 3, 1)).contiguous();
    "flip": [Normal(&[1024, 1024])] => |x| x[0].flip(&[-1]);
    "roll": [Normal(&[1024, 1024])] => |x| x[0].roll(3, -1);
    "repeat": [Normal(&[256, 256])] => |x| x[0].repeat([4, 4]);
    "repeat_interleave": [Normal(&[256, 1024])] => |x| x[0].repeat_interleave(4, 0);
    "pad": [Normal(&[32, 16, 28, 28])] => |x| x[0].pad(&[(1, 1), (1, 1)], 0.0);
    "tril": [Normal(&[1024, 1024])] => |x| x[0].tril(0);
    "unfold 3x3": [Normal(&[8, 16, 28, 28])] => |x| x[0].unfold(3, 1, 1, 1);
    // Pictures.
    "max_pool2d(2)": [Normal(&[32, 32, 56, 56])] => |x| x[0].max_pool2d(2, 2, 0);
    "max_pool2d(3, 2, 1)": [Normal(&[8, 64, 56, 56])] => |x| x[0].max_pool2d(3, 2, 1);
    "avg_pool2d(2)": [Normal(&[32, 32, 56, 56])] => |x| x[0].avg_pool2d(2, 2, 0, true);
    "adaptive_avg_pool2d(1)": [Normal(&[32, 512, 7, 7])] => |x| x[0].adaptive_avg_pool2d(1);
    "adaptive_avg_pool2d(3)": [Normal(&[32, 128, 14, 14])] => |x| x[0].adaptive_avg_pool2d(3);
    "adaptive_max_pool2d(1)": [Normal(&[32, 512, 7, 7])] => |x| x[0].adaptive_max_pool2d(1);
    "adaptive_max_pool2d(3)": [Normal(&[32, 128, 14, 14])] => |x| x[0].adaptive_max_pool2d(3);
    "interpolate, nearest by 2": [Normal(&[8, 32, 28, 28])] => |x| x[0].interpolate([56, 56], Interpolation::Nearest);
    "interpolate, bilinear by 2": [Normal(&[8, 32, 28, 28])] => |x| x[0].interpolate([56, 56], Interpolation::Bilinear { align_corners: false });
    "interpolate, bicubic by 2": [Normal(&[8, 32, 28, 28])] => |x| x[0].interpolate([56, 56], Interpolation::Bicubic { align_corners: false });
    "interpolate, bilinear to a half": [Normal(&[8, 32, 56, 56])] => |x| x[0].interpolate([28, 28], Interpolation::Bilinear { align_corners: false });
    "interpolate, photograph to 224": [Normal(&[1, 3, 480, 640])] => |x| x[0].interpolate([224, 224], Interpolation::Bilinear { align_corners: false });
    // Attention.
    "attention, causal [4, 8, 256, 64]": [Normal(&[4, 8, 256, 64]), Normal(&[4, 8, 256, 64]), Normal(&[4, 8, 256, 64])] => |x| x[0].scaled_dot_product_attention(&x[1], &x[2], None, 0.0, true, None);
    "attention, masked [4, 8, 256, 64]": [Normal(&[4, 8, 256, 64]), Normal(&[4, 8, 256, 64]), Normal(&[4, 8, 256, 64]), Truth(&[4, 1, 256, 256])] => |x| x[0].scaled_dot_product_attention(&x[1], &x[2], Some(&x[3]), 0.0, false, None);
    "attention, one query [1, 12, 1, 64]": [Normal(&[1, 12, 1, 64]), Normal(&[1, 12, 1024, 64]), Normal(&[1, 12, 1024, 64])] => |x| x[0].scaled_dot_product_attention(&x[1], &x[2], None, 0.0, false, None);
    "attention, small [32, 4, 16, 16]": [Normal(&[32, 4, 16, 16]), Normal(&[32, 4, 16, 16]), Normal(&[32, 4, 16, 16])] => |x| x[0].scaled_dot_product_attention(&x[1], &x[2], None, 0.0, true, None);
    "attention, small [64, 8, 64, 32]": [Normal(&[64, 8, 64, 32]), Normal(&[64, 8, 64, 32]), Normal(&[64, 8, 64, 32])] => |x| x[0].scaled_dot_product_attention(&x[1], &x[2], None, 0.0, false, None);
}

layers! {
    "LSTM 128, 32 texts of 100": [Normal(&[100, 32, 128])] => LSTM::new(128, 128), |layer: &LSTM, x: &Tensor| layer.forward(x, None).0;
    "LSTM 128, 2 layers both ways, 8 texts of 50": [Normal(&[50, 8, 128])] => LSTM::with_options(128, 128, RecurrentOptions { num_layers: 2, bidirectional: true, ..RecurrentOptions::default() }), |layer: &LSTM, x: &Tensor| layer.forward(x, None).0;
    "LSTM 512, 1 text of 100": [Normal(&[100, 1, 512])] => LSTM::new(512, 512), |layer: &LSTM, x: &Tensor| layer.forward(x, None).0;
    "GRU 128, 32 texts of 100": [Normal(&[100, 32, 128])] => GRU::new(128, 128), |layer: &GRU, x: &Tensor| layer.forward(x, None).0;
    "RNN 128, 32 texts of 100": [Normal(&[100, 32, 128])] => RNN::new(128, 128), |layer: &RNN, x: &Tensor| layer.forward(x, None).0;
    "MultiheadAttention 256, 128 of 8 texts": [Normal(&[128, 8, 256])] => MultiheadAttention::new(256, 8), |layer: &MultiheadAttention, x: &Tensor| layer.forward(x, x, x).0;
    "TransformerEncoderLayer 256, 128 of 8 texts": [Normal(&[128, 8, 256])] => TransformerEncoderLayer::new(256, 8), |layer: &TransformerEncoderLayer, x: &Tensor| layer.forward(x);
    "MLP 784-512-10 of 64": [Normal(&[64, 784])] => Sequential::new().push(Linear::new(784, 512)).push(ReLU).push(Linear::new(512, 10)), |layer: &Sequential, x: &Tensor| layer.forward(x);
    "ResNet-18 of [8, 3, 112, 112]": [Normal(&[8, 3, 112, 112])] => ResNet::new(), |layer: &ResNet, x: &Tensor| layer.forward(x);
}

/// Times the operations whose names contain one of `wanted` (all if there is none) on `device` and hands a line about each to `report`.
pub fn measure(device: &Device, wanted: &[String], mut report: impl FnMut(Value)) -> Result<()> {
    manual_seed(0);
    let chosen =
        |case: &&Case| wanted.is_empty() || wanted.iter().any(|part| case.name.contains(part.as_str()));
    for case in OPERATIONS.iter().chain(LAYERS).filter(chosen) {
        let mut inputs: Vec<Tensor> = case.inputs.iter().map(|input| input.tensor(device)).collect();
        let Built { run, parameters } = (case.build)(device);
        let forward = fastest(device, || drop(no_grad(|| run(&inputs))))?;
        let leaf = |x: Tensor| if x.dtype().is_float() { x.requires_grad_(true) } else { x };
        inputs = inputs.into_iter().map(leaf).collect();
        let y = run(&inputs);
        let training = match y.requires_grad() {
            false => None,
            true => {
                let grad = y.detach().randn_like();
                Some(fastest(device, || {
                    run(&inputs).backward_with(Some(&grad), BackwardOptions::default());
                    inputs.iter().for_each(Tensor::zero_grad);
                    parameters.iter().for_each(Param::zero_grad);
                })?)
            }
        };
        report(json!({
            "case": case.name, "threads": orkest::num_threads(), "forward_s": forward, "training_s": training,
        }));
    }
    Ok(())
}
