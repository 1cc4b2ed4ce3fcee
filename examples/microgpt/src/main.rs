//! A GPT that learns to make up names, with tensors.
//!
//! This is the algorithm of Karpathy's microgpt.py, in its order: data, parameters, model, training, sampling. All positions of a
//! name go through the model at once, and gradients are the framework's; `bin/scalar.rs` does both one number at a time.

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use microgpt::{Dataset, Options, Progress, Random, Summary};
use orkest::nn::Param;
use orkest::prelude::*;
use std::process::ExitCode;
use std::time::Instant;

const N_EMBD: usize = 16; // width of the vectors
const N_HEAD: usize = 4;
const N_LAYER: usize = 1;
const BLOCK_SIZE: usize = 16; // longest sequence
const HEAD_DIM: usize = N_EMBD / N_HEAD;

/// Trains a GPT on names, one per step, and lets it make up new ones.
///
/// With the names.txt of makemore it is Karpathy's microgpt.py, number for number.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// Where to train: cpu, wgpu, wgpu:1
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Precision of the numbers [default: f64 on the CPU as in Python, f32 elsewhere]
    #[arg(long)]
    dtype: Option<Precision>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Precision {
    F64,
    F32,
}

fn main() -> ExitCode {
    sigpipe::reset(); // `.. | head` ends the program, as it does others
    match run(&Cli::parse()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Module)]
struct Block {
    attn_wq: Linear,
    attn_wk: Linear,
    attn_wv: Linear,
    attn_wo: Linear,
    mlp_fc1: Linear,
    mlp_fc2: Linear,
}

impl Block {
    /// `[n, N_EMBD]` → `[n, N_EMBD]`
    fn forward(&self, x: &Tensor) -> Tensor {
        // 1) multi-head attention: every position looks at itself and those before it
        let n = x.size(0);
        let h = rmsnorm(x);
        let [q, k, v] = [&self.attn_wq, &self.attn_wk, &self.attn_wv]
            .map(|w| w.forward(&h).view([n, N_HEAD, HEAD_DIM]).transpose(0, 1)); // [N_HEAD, n, HEAD_DIM]
        let h = q.scaled_dot_product_attention(&k, &v, None, 0.0, true, None);
        let x = self.attn_wo.forward(&h.transpose(0, 1).reshape([n, N_EMBD])) + x;
        // 2) MLP
        let h = self.mlp_fc1.forward(&rmsnorm(&x)).relu();
        self.mlp_fc2.forward(&h) + x
    }
}

#[derive(Module)]
struct Gpt {
    wte: Embedding,
    wpe: Embedding,
    lm_head: Linear,
    layers: Vec<Block>,
}

impl Gpt {
    fn new(vocab_size: usize, random: &mut Random, dtype: DType) -> Gpt {
        let mut matrix = |nout: usize, nin: usize| {
            let values: Vec<f64> = (0..nout * nin).map(|_| random.gauss(0.0, 0.08)).collect();
            Param::new(Tensor::from_slice(&values, [nout, nin], &Device::cpu()).to_dtype(dtype))
        };
        let wte = Embedding::from_param(matrix(vocab_size, N_EMBD));
        let wpe = Embedding::from_param(matrix(BLOCK_SIZE, N_EMBD));
        let mut linear = |nout, nin| Linear::from_params(matrix(nout, nin), None);
        let lm_head = linear(vocab_size, N_EMBD);
        let block = |_| Block {
            attn_wq: linear(N_EMBD, N_EMBD),
            attn_wk: linear(N_EMBD, N_EMBD),
            attn_wv: linear(N_EMBD, N_EMBD),
            attn_wo: linear(N_EMBD, N_EMBD),
            mlp_fc1: linear(4 * N_EMBD, N_EMBD),
            mlp_fc2: linear(N_EMBD, 4 * N_EMBD),
        };
        Gpt { wte, wpe, lm_head, layers: (0..N_LAYER).map(block).collect() }
    }

    /// `[n]` tokens → `[n, vocab_size]` logits of the tokens that follow
    fn forward(&self, tokens: &Tensor) -> Tensor {
        let position = self.wpe.weight.tensor().narrow(0, 0, tokens.size(0));
        let mut x = rmsnorm(&(self.wte.forward(tokens) + position)); // [n, N_EMBD]
        for layer in &self.layers {
            x = layer.forward(&x);
        }
        self.lm_head.forward(&x)
    }
}

fn rmsnorm(x: &Tensor) -> Tensor {
    x.rms_norm(N_EMBD, None, Some(1e-5))
}

fn run(cli: &Cli) -> Result<Summary> {
    let options = &cli.options;
    ensure!(options.steps >= 1, "--steps must be at least 1");
    let device = Device::parse(&cli.device)?;
    if device != Device::cpu() {
        eprintln!("{}", device.info());
    }
    let dtype = match cli.dtype {
        Some(Precision::F64) => DType::F64,
        Some(Precision::F32) => DType::F32,
        None if device == Device::cpu() => DType::F64,
        None => DType::F32,
    };
    let mut random = Random::new(&options.seed);
    let data = Dataset::new(options.names.as_deref(), &mut random)?;
    println!("num docs: {}", data.docs.len());
    println!("vocab size: {}", data.vocab_size());
    let model = Gpt::new(data.vocab_size(), &mut random, dtype).try_to(&device)?;
    println!("num params: {}", model.parameters().iter().map(Param::numel).sum::<usize>());

    let start = Instant::now();
    let losses = train(&model, &data, options, &device)?;
    let training = start.elapsed();
    println!("--- inference (new, hallucinated names) ---");
    let samples = sample(&model, &data, &mut random, &device)?;
    let summary = Summary { losses, samples, training };
    if options.json {
        println!("{}", summary.json());
    }
    Ok(summary)
}

/// Adam with a learning rate that falls to zero. The losses of all steps.
fn train(model: &Gpt, data: &Dataset, options: &Options, device: &Device) -> Result<Vec<f64>> {
    let learning_rate = 0.01;
    let mut optimizer = Adam::new(model.parameters(), learning_rate).betas((0.85, 0.99)).eps(1e-8);
    let criterion = CrossEntropyLoss::new();
    let progress = Progress::new(options);
    let mut losses = Vec::with_capacity(options.steps);
    for step in 0..options.steps {
        let tokens = data.tokens(step);
        let n = BLOCK_SIZE.min(tokens.len() - 1);
        let (inputs, targets) = (Tensor::new(&tokens[..n], device), Tensor::new(&tokens[1..=n], device));

        optimizer.zero_grad();
        let loss = criterion.forward(&model.forward(&inputs), &targets);
        loss.backward();
        optimizer.set_lr(learning_rate * (1.0 - step as f64 / options.steps as f64));
        optimizer.step();

        losses.push(loss.item()?);
        progress.step(step, losses[step]);
    }
    Ok(losses)
}

/// Twenty names, letter by letter.
fn sample(model: &Gpt, data: &Dataset, random: &mut Random, device: &Device) -> Result<Vec<String>> {
    let temperature = 0.5; // in (0, 1]: low is careful, high is creative
    let mut samples = Vec::new();
    for sample in 1..=20 {
        let (mut tokens, mut name) = (vec![data.bos() as i64], String::new());
        while tokens.len() <= BLOCK_SIZE {
            let logits = no_grad(|| model.forward(&Tensor::new(&tokens, device))).select(0, -1);
            let probs = (logits / temperature).softmax(0).to(&Device::cpu()).to_dtype(DType::F64).to_vec()?;
            let token = random.choice(&probs);
            let Some(letter) = data.letters.get(token) else { break };
            tokens.push(token as i64);
            name.push(*letter);
        }
        println!("sample {sample:2}: {name}");
        samples.push(name);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    fn cli(steps: usize, seed: &str, device: &str, dtype: Option<Precision>) -> Cli {
        let seed = seed.parse().unwrap();
        let options = Options { names: None, steps, seed, trace: true, json: false };
        Cli { options, device: device.into(), dtype }
    }

    /// What the Python program prints with 12 steps and the names in data/names.txt.
    #[test]
    fn losses_and_samples_are_pythons() {
        for (seed, trace) in
            [("42", include_str!("../tests/traces/42.txt")), ("-7", include_str!("../tests/traces/-7.txt"))]
        {
            let found = run(&cli(12, seed, "cpu", None)).unwrap();
            let mut lines = trace.lines().map(|line| line.rsplit(' ').next().unwrap());
            for (step, loss) in found.losses.iter().enumerate() {
                let expected: f64 = lines.next().unwrap().parse().unwrap();
                let tolerance = if step == 0 { 1e-12 } else { 1e-9 };
                assert!(
                    (loss - expected).abs() <= tolerance,
                    "seed {seed}, step {}: {loss} {expected}",
                    step + 1
                );
            }
            assert_eq!(found.samples, lines.collect::<Vec<_>>(), "seed {seed}");
        }
    }

    /// The published run. It needs the names.txt of makemore: `MICROGPT_NAMES=names.txt cargo test -p microgpt -- --ignored`
    #[test]
    #[ignore = "needs the original names"]
    fn the_original_run() {
        let mut cli = cli(1000, "42", "cpu", None);
        cli.options.names = Some(std::env::var_os("MICROGPT_NAMES").expect("MICROGPT_NAMES: a file").into());
        let found = run(&cli).unwrap();
        let published = [
            (1, 3.3659669475848504, 1e-12),
            (10, 3.2228882401182624, 1e-9),
            (100, 3.366930921178914, 1e-6),
            (500, 2.0644662067274577, 1e-6),
            (1000, 2.6496944697407585, 1e-6),
        ];
        for (step, loss, tolerance) in published {
            assert!(
                (found.losses[step - 1] - loss).abs() <= tolerance,
                "step {step}: {}",
                found.losses[step - 1]
            );
        }
        let names = "kamon ann karai jaire vialan karia yeran anna areli kaina konna keylen liole alerin earan lenne \
                     kana lara alela anton";
        assert_eq!(found.samples, names.split_whitespace().collect::<Vec<_>>());
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn a_gpu_learns_the_same() {
        let on_gpu = match run(&cli(20, "42", "wgpu", None)) {
            Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
            Err(_) => return, // no adapter
            Ok(found) => found,
        };
        let on_cpu = run(&cli(20, "42", "cpu", Some(Precision::F32))).unwrap();
        for (a, b) in on_gpu.losses.iter().zip(&on_cpu.losses) {
            assert!((a - b).abs() <= 1e-3, "{a} {b}");
        }
    }
}
