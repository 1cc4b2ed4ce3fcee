//! Training: the schedule, one step, and what is measured on the way.

use crate::checkpoint::{self, Progress};
use crate::data::{Corpus, all_batches, get_batch};
use crate::model::{GPT, GPTConfig};
use anyhow::{Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use orkest::prelude::*;
use orkest::random::{Generator, with_default_generator};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// What decides about the result.
#[derive(Clone, Debug)]
pub struct Settings {
    pub layers: usize,
    pub heads: usize,
    pub width: usize,
    pub block: usize,
    pub dropout: f64,
    pub bias: bool,
    pub batch_size: usize,
    pub accumulate: usize,
    pub steps: usize,
    pub lr: f64,
    pub min_lr: f64,
    pub warmup: usize,
    pub weight_decay: f64,
    pub beta2: f64,
    pub clip: f64,
    pub seed: u64,
}

/// What decides about everything else.
pub struct Surroundings {
    pub device: Device,
    pub eval_every: usize,
    pub eval_batches: usize,
    pub save: Option<PathBuf>,
    pub checkpoint_every: usize,
    pub resume: bool,
    pub trace: bool,
}

impl Settings {
    pub fn check(&self) -> Result<()> {
        for (name, value) in [
            ("--layers", self.layers),
            ("--heads", self.heads),
            ("--width", self.width),
            ("--block", self.block),
            ("--batch-size", self.batch_size),
            ("--accumulate", self.accumulate),
            ("--steps", self.steps),
        ] {
            ensure!(value >= 1, "{name} must be at least 1");
        }
        ensure!(
            self.width.is_multiple_of(self.heads),
            "--width {} must be a multiple of --heads {}",
            self.width,
            self.heads
        );
        let characters = self.batch_size.checked_mul(self.block);
        ensure!(
            characters.is_some_and(|n| n <= 1 << 28),
            "--batch-size {} times --block {} is more than a pass can take",
            self.batch_size,
            self.block
        );
        ensure!((0.0..1.0).contains(&self.dropout), "--dropout must be at least 0 and below 1");
        ensure!((0.0..1.0).contains(&self.beta2), "--beta2 must be at least 0 and below 1");
        ensure!(self.lr.is_finite() && self.lr > 0.0, "--lr must be a finite number above 0");
        for (name, value) in
            [("--min-lr", self.min_lr), ("--weight-decay", self.weight_decay), ("--clip", self.clip)]
        {
            ensure!(value.is_finite() && value >= 0.0, "{name} must be a finite number, not below 0");
        }
        Ok(())
    }

    pub fn config(&self, vocab_size: usize) -> GPTConfig {
        GPTConfig {
            block_size: self.block,
            vocab_size,
            n_layer: self.layers,
            n_head: self.heads,
            n_embd: self.width,
            dropout: self.dropout,
            bias: self.bias,
        }
    }

    /// The options by their names on the command line, to be compared on resuming.
    pub fn to_json(&self) -> Map<String, Value> {
        let Value::Object(options) = json!({
            "layers": self.layers, "heads": self.heads, "width": self.width, "block": self.block,
            "dropout": self.dropout, "bias": self.bias, "batch-size": self.batch_size,
            "accumulate": self.accumulate, "steps": self.steps, "lr": self.lr, "min-lr": self.min_lr,
            "warmup": self.warmup, "weight-decay": self.weight_decay, "beta2": self.beta2,
            "clip": self.clip, "seed": self.seed,
        }) else {
            unreachable!("an object literal")
        };
        options
    }
}

/// The learning rate of a step: linear warm-up, then a half cosine down to `min_lr` at the last step.
pub fn get_lr(step: usize, s: &Settings) -> f64 {
    if step < s.warmup {
        return s.lr * (step + 1) as f64 / (s.warmup + 1) as f64;
    }
    if step >= s.steps {
        return s.min_lr;
    }
    let decay_ratio = (step - s.warmup) as f64 / (s.steps - s.warmup) as f64;
    let coeff = 0.5 * (1.0 + (std::f64::consts::PI * decay_ratio).cos()); // from 1 to 0
    s.min_lr + coeff * (s.lr - s.min_lr)
}

/// A trained model and how it came about.
pub struct Trained {
    pub model: GPT,
    pub progress: Progress,
    /// Steps that this run took; fewer than all after resuming.
    pub steps_taken: usize,
    pub seconds: f64,
}

/// Trains from the beginning, or from the last checkpoint.
pub fn train(corpus: &Corpus, settings: &Settings, around: &Surroundings) -> Result<Trained> {
    let device = &around.device;
    if let Some(folder) = &around.save {
        orkest::output_folder(folder)?;
    }
    manual_seed(settings.seed);
    let model = GPT::new(settings.config(corpus.vocabulary.len())).try_to(device)?;
    let mut optimizer = model.configure_optimizers(settings.weight_decay, settings.lr, (0.9, settings.beta2));
    let mut progress = Progress::default();
    let file = around.save.as_ref().map(|folder| checkpoint::file_in(folder));
    if let (true, Some(file)) = (around.resume, &file) {
        if file.exists() {
            progress = checkpoint::load(file, &model, &mut optimizer, settings, corpus)?;
            println!("Resuming after step {} of {}", progress.step(), settings.steps);
        } else {
            println!("No checkpoint yet in {}: starting from the beginning", file.display());
        }
    }
    println!(
        "{} parameters, {} of them no position embeddings",
        model.num_parameters(),
        model.get_num_params()
    );

    let parameters = model.parameters();
    let bar = progress_bar(settings.steps, progress.step());
    let start = std::time::Instant::now();
    let first = progress.step();
    let mut losses = Vec::new(); // of steps that nobody has looked at yet: looking makes a GPU wait
    model.train();
    for step in first..settings.steps {
        optimizer.set_lr(get_lr(step, settings));
        optimizer.zero_grad();
        let mut total = Vec::with_capacity(settings.accumulate);
        for _ in 0..settings.accumulate {
            let (x, y) = with_default_generator(|generator| {
                get_batch(&corpus.train, settings.block, settings.batch_size, generator, device)
            });
            let (_, loss) = model.forward(&x, Some(&y));
            let loss =
                loss.unwrap_or_else(|| unreachable!("targets were given")) / settings.accumulate as f64;
            loss.backward();
            total.push(loss.detach());
        }
        if settings.clip > 0.0 {
            clip_grad_norm(&parameters, settings.clip);
        }
        optimizer.step();
        losses.push(total.into_iter().reduce(|a, b| a + b).unwrap_or_else(|| unreachable!("at least one")));
        bar.inc(1);

        let done = step + 1;
        let every = |n: usize| n > 0 && done.is_multiple_of(n);
        let (measure, keep) = (every(around.eval_every), every(around.checkpoint_every));
        if measure || keep || losses.len() == 50 || done == settings.steps {
            bar.suspend(|| progress.record(&mut losses, around.trace))?;
            bar.set_message(format!("loss {:.4}", progress.losses[done - 1]));
        }
        if measure {
            let estimate = estimate_loss(&model, corpus, settings, around)?;
            progress.evaluations.push((done, estimate));
            bar.suspend(|| {
                println!("step {done}: train loss {:.4}, val loss {estimate:.4}", progress.recent());
            });
        }
        if let (true, Some(file)) = (keep || done == settings.steps, &file) {
            checkpoint::save(file, &model, &optimizer, &progress, settings, corpus)?;
        }
    }
    device.synchronize()?;
    bar.finish_and_clear();
    Ok(Trained {
        model,
        steps_taken: settings.steps - first,
        progress,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The loss on some batches of the last tenth, the same ones every time. It draws no number that training would draw.
fn estimate_loss(model: &GPT, corpus: &Corpus, settings: &Settings, around: &Surroundings) -> Result<f64> {
    let mut generator = Generator::new(settings.seed);
    let mut total = 0.0;
    model.eval();
    for _ in 0..around.eval_batches {
        let (block, batch) = (settings.block.min(corpus.validation.len() - 1), settings.batch_size);
        let (x, y) = get_batch(&corpus.validation, block, batch, &mut generator, &around.device);
        total += loss_of(model, &x, &y)?;
    }
    model.train();
    Ok(total / around.eval_batches as f64)
}

/// The mean loss over all characters of the last tenth.
pub fn validation_loss(model: &GPT, corpus: &Corpus, settings: &Settings, device: &Device) -> Result<f64> {
    let (mut total, mut count) = (0.0, 0);
    model.eval();
    for (x, y) in all_batches(&corpus.validation, settings.block, 64, device) {
        total += loss_of(model, &x, &y)? * y.numel() as f64;
        count += y.numel();
    }
    Ok(total / count as f64)
}

fn loss_of(model: &GPT, x: &Tensor, y: &Tensor) -> Result<f64> {
    let (_, loss) = no_grad(|| model.forward(x, Some(y)));
    Ok(loss.unwrap_or_else(|| unreachable!("targets were given")).item()?)
}

fn progress_bar(steps: usize, done: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("[{bar:40}] {pos}/{len} {per_sec} {eta} {msg}");
    let bar = ProgressBar::new(steps as u64).with_position(done as u64);
    bar.reset_eta();
    if let Ok(style) = style { bar.with_style(style.progress_chars("=> ")) } else { bar }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            layers: 2,
            heads: 2,
            width: 16,
            block: 16,
            dropout: 0.0,
            bias: false,
            batch_size: 4,
            accumulate: 1,
            steps: 100,
            lr: 1e-3,
            min_lr: 1e-4,
            warmup: 10,
            weight_decay: 0.1,
            beta2: 0.99,
            clip: 1.0,
            seed: 0,
        }
    }

    #[test]
    fn the_rate_warms_up_and_follows_a_cosine() {
        let s = settings();
        // nanoGPT's get_lr with warmup_iters 10, lr_decay_iters 100
        for (step, expected) in [
            (0, 1e-3 / 11.0),
            (9, 10e-3 / 11.0),
            (10, 1e-3),
            (55, 5.5e-4),
            (70, 3.25e-4),
            (100, 1e-4),
            (500, 1e-4),
        ] {
            assert!((get_lr(step, &s) - expected).abs() < 1e-12, "step {step}: {}", get_lr(step, &s));
        }
    }

    fn losses(settings: &Settings, device: &Device) -> Vec<f64> {
        let corpus = Corpus::new(&crate::data::read(None).unwrap(), settings.block).unwrap();
        let around = Surroundings {
            device: device.clone(),
            eval_every: 0,
            eval_batches: 0,
            save: None,
            checkpoint_every: 0,
            resume: false,
            trace: false,
        };
        // A generator of its own, because other tests draw at the same time.
        let train = || train(&corpus, settings, &around).unwrap().progress.losses;
        orkest::with_generator(&mut orkest::Generator::new(0), train)
    }

    #[track_caller]
    fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(actual.len(), expected.len());
        for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
            assert!((a - e).abs() <= tolerance * e, "step {}: {a} instead of {e}", i + 1);
        }
    }

    /// The losses of `tests/parity/nanogpt.py --seed 0 --layers 2 --heads 2 --width 32 --block 32 --batch-size 8 --steps 20
    /// --warmup 5`: the same model, seed and batches, and no weights were exchanged.
    const PYTORCH: [f64; 20] = [
        4.0878448, 4.0720997, 4.0733471, 4.0586276, 4.0391750, 3.9977536, 3.9563322, 3.9071660, 3.8730779,
        3.8481340, 3.8339830, 3.8132303, 3.7886999, 3.7894940, 3.7671263, 3.7738197, 3.7634931, 3.7427726,
        3.7337525, 3.7358902,
    ];

    fn as_pytorch_ran() -> Settings {
        Settings { width: 32, block: 32, batch_size: 8, steps: 20, warmup: 5, ..settings() }
    }

    #[test]
    fn losses_are_pytorchs() {
        assert_close(&losses(&as_pytorch_ran(), &Device::cpu()), &PYTORCH, 1e-4);
    }

    #[test]
    fn losses_with_biases_and_accumulated_gradients_are_pytorchs() {
        // tests/parity/nanogpt.py --seed 3 .. --batch-size 4 --accumulate 2 --bias
        let expected = [
            4.0750718, 4.0649641, 4.0394773, 4.0184770, 3.9618670, 3.9276963, 3.8713940, 3.8476036,
            3.8318778, 3.8056083, 3.7689219, 3.7511714, 3.7592777, 3.7195877, 3.6948165, 3.6883209,
            3.7030140, 3.7029133, 3.6758915, 3.6877916,
        ];
        let settings = Settings { seed: 3, batch_size: 4, accumulate: 2, bias: true, ..as_pytorch_ran() };
        assert_close(&losses(&settings, &Device::cpu()), &expected, 1e-4);
    }

    #[test]
    #[cfg(feature = "wgpu")]
    fn losses_on_the_gpu_are_those_on_the_cpu() {
        match Device::wgpu(0) {
            Ok(device) => assert_close(&losses(&as_pytorch_ran(), &device), &PYTORCH, 1e-3),
            Err(e) => assert!(std::env::var_os("ORKEST_REQUIRE_GPU").is_none(), "{e}"),
        }
    }
}
