//! Trains a character-level GPT on a text and writes more of it.

mod checkpoint;
mod data;
mod model;
mod plot;
mod sample;
mod train;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use data::{Corpus, Vocabulary};
use model::GPT;
use orkest::prelude::*;
use sample::Sampling;
use std::path::PathBuf;
use std::process::ExitCode;
use train::{Settings, Surroundings};

/// Trains a GPT that predicts a text character by character.
///
/// Without --data it learns from sonnets that are part of the program. The last tenth of the text is held out. The defaults are
/// nanoGPT's for a laptop.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: Train,
}

#[derive(Subcommand)]
enum Command {
    /// Writes text with a saved model
    Sample(Sample),
}

#[derive(Args)]
struct Train {
    /// Text to learn from
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Transformer blocks
    #[arg(long, value_name = "N", default_value_t = 4)]
    layers: usize,
    /// Heads of attention in each block
    #[arg(long, value_name = "N", default_value_t = 4)]
    heads: usize,
    /// Features of each character
    #[arg(long, value_name = "N", default_value_t = 128)]
    width: usize,
    /// Characters that the model sees at once
    #[arg(long, value_name = "N", default_value_t = 64)]
    block: usize,
    /// Pieces of text per pass
    #[arg(long, value_name = "N", default_value_t = 12)]
    batch_size: usize,
    /// Passes whose gradients are added up for one step
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,
    /// Steps to take
    #[arg(long, value_name = "N", default_value_t = 2000)]
    steps: usize,
    /// Part of the features that is dropped in training
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    dropout: f64,
    /// Gives linear layers and layer norms biases
    #[arg(long)]
    bias: bool,
    /// Highest learning rate
    #[arg(long, value_name = "X", default_value_t = 1e-3, allow_negative_numbers = true)]
    lr: f64,
    /// Learning rate at the end [default: a tenth of --lr]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    min_lr: Option<f64>,
    /// Steps until the highest learning rate is reached
    #[arg(long, value_name = "N", default_value_t = 100)]
    warmup: usize,
    /// How strongly matrices are pulled to zero
    #[arg(long, value_name = "X", default_value_t = 0.1, allow_negative_numbers = true)]
    weight_decay: f64,
    /// AdamW's memory of squared gradients
    #[arg(long, value_name = "X", default_value_t = 0.99, allow_negative_numbers = true)]
    beta2: f64,
    /// Largest norm of the gradients; 0 does not clip
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    clip: f64,
    /// Seed of everything random: the same seed gives the same model
    #[arg(long, value_name = "N", default_value_t = 1337)]
    seed: u64,
    /// Where to train: cpu, wgpu, wgpu:1
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Steps between estimates of the validation loss; 0 for none
    #[arg(long, value_name = "N", default_value_t = 250)]
    eval_every: usize,
    /// Batches in such an estimate
    #[arg(long, value_name = "N", default_value_t = 20)]
    eval_batches: usize,
    /// Folder for checkpoint.safetensors, which is written at the end
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Steps between checkpoints; 0 for none but the last
    #[arg(long, value_name = "N", default_value_t = 250)]
    checkpoint_every: usize,
    /// Goes on from the checkpoint in --save, if there is one
    #[arg(long, requires = "save")]
    resume: bool,
    /// Picture of the losses [default: loss.png in the folder of --save, or here]
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Characters to write at the end
    #[arg(long, value_name = "N", default_value_t = 300)]
    tokens: usize,
    /// Print the loss of every step
    #[arg(long)]
    trace: bool,
    /// Print a line of JSON at the end
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Sample {
    /// Folder that training wrote with --save
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What the text begins with
    #[arg(long, value_name = "TEXT", default_value = "\n")]
    prompt: String,
    /// Characters to write
    #[arg(long, value_name = "N", default_value_t = 500)]
    tokens: usize,
    /// 1 writes with the model's probabilities, less is safer, 0 always takes the likeliest character
    #[arg(long, value_name = "X", default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from this many likeliest characters only
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Draw from the fewest likeliest characters whose probabilities add up to this much
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// See fewer characters at once than the model was trained with
    #[arg(long, value_name = "N")]
    block: Option<usize>,
    /// Seed of the choices
    #[arg(long, value_name = "N", default_value_t = 1337)]
    seed: u64,
    /// Where to compute: cpu, wgpu, wgpu:1
    #[arg(long, default_value = "cpu")]
    device: String,
}

fn main() -> ExitCode {
    sigpipe::reset(); // `.. | head` ends the program, as it does others
    let cli = Cli::parse();
    let done = match &cli.command {
        Some(Command::Sample(args)) => write_more(args),
        None => train(&cli.train),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn train(args: &Train) -> Result<()> {
    let settings = Settings {
        layers: args.layers,
        heads: args.heads,
        width: args.width,
        block: args.block,
        dropout: args.dropout,
        bias: args.bias,
        batch_size: args.batch_size,
        accumulate: args.accumulate,
        steps: args.steps,
        lr: args.lr,
        min_lr: args.min_lr.unwrap_or(0.1 * args.lr),
        warmup: args.warmup,
        weight_decay: args.weight_decay,
        beta2: args.beta2,
        clip: args.clip,
        seed: args.seed,
    };
    settings.check()?;
    ensure!(args.eval_batches >= 1, "--eval-batches must be at least 1");
    let device = Device::parse(&args.device)?;
    if device != Device::cpu() {
        eprintln!("{}", device.info());
    }
    let corpus = Corpus::new(&data::read(args.data.as_deref())?, args.block)?;
    println!(
        "{} characters to learn from, {} held out, {} different ones",
        corpus.train.len(),
        corpus.validation.len(),
        corpus.vocabulary.len()
    );
    let around = Surroundings {
        device: device.clone(),
        eval_every: args.eval_every,
        eval_batches: args.eval_batches,
        save: args.save.clone(),
        checkpoint_every: args.checkpoint_every,
        resume: args.resume,
        trace: args.trace,
    };

    let trained = train::train(&corpus, &settings, &around)?;
    let validation_loss = train::validation_loss(&trained.model, &corpus, &settings, &device)?;
    let train_loss = trained.progress.recent();
    println!("Training loss {train_loss:.4}, validation loss over the whole last tenth {validation_loss:.4}");

    let plot = args.plot.clone().unwrap_or_else(|| match &args.save {
        Some(folder) => folder.join("loss.png"),
        None => "loss.png".into(),
    });
    plot::save(&plot, &trained.progress.losses, &trained.progress.evaluations)?;
    println!("Loss curve in {}", plot.display());
    if let Some(folder) = &args.save {
        println!("Saved to {}", folder.display());
    }
    if args.tokens > 0 {
        let sampling = Sampling { temperature: 0.8, top_k: None, top_p: None };
        let start = corpus.vocabulary.decode(&corpus.validation[..1]);
        println!(
            "{}",
            continued(&trained.model, &corpus.vocabulary, &start, args.tokens, &sampling, &device)?
        );
    }
    if args.json {
        println!(
            r#"{{"train_loss":{train_loss:.17},"val_loss":{validation_loss:.17},"last_loss":{:.17},"steps":{},"steps_taken":{},"seconds":{:.3},"device":"{device}","threads":{}}}"#,
            trained.progress.losses[settings.steps - 1],
            settings.steps,
            trained.steps_taken,
            trained.seconds,
            orkest::num_threads(),
        );
    }
    Ok(())
}

fn write_more(args: &Sample) -> Result<()> {
    ensure!(args.temperature.is_finite() && args.temperature >= 0.0, "--temperature must be 0 or more");
    ensure!(args.top_k.is_none_or(|k| k >= 1), "--top-k must be at least 1");
    ensure!(args.top_p.is_none_or(|p| p > 0.0 && p <= 1.0), "--top-p must be above 0 and at most 1");
    ensure!(!args.prompt.is_empty(), "--prompt needs at least one character");
    let device = Device::parse(&args.device)?;
    if device != Device::cpu() {
        eprintln!("{}", device.info());
    }
    let (mut model, vocabulary) = checkpoint::load_model(&checkpoint::file_in(&args.model))?;
    if let Some(block) = args.block {
        let most = model.config.block_size;
        ensure!(
            (1..=most).contains(&block),
            "--block must lie between 1 and {most}, with which it was trained"
        );
        model.crop_block_size(block);
    }
    let model = model.try_to(&device)?;
    manual_seed(args.seed);
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    let text = continued(&model, &vocabulary, &args.prompt, args.tokens, &sampling, &device)?;
    println!("{text}");
    Ok(())
}

/// The prompt and what the model writes after it.
fn continued(
    model: &GPT,
    vocabulary: &Vocabulary,
    prompt: &str,
    tokens: usize,
    sampling: &Sampling,
    device: &Device,
) -> Result<String> {
    model.eval();
    let idx = Tensor::new([vocabulary.encode(prompt)?], device);
    let idx = model.generate(&idx, tokens, sampling)?;
    Ok(vocabulary.decode(&idx.to_vec::<i64>()?))
}
