//! The article's project from end to end: trains an LSTM on labelled sentences, saves it, and judges new ones with it.

mod data;
mod model;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use orkest::prelude::*;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// The most frequent words that get a number of their own.
const MAX_VOCAB: usize = 5000;
/// Longer texts are cut to this many words.
const MAX_LEN: usize = 100;

/// Trains an LSTM that tells positive sentences from negative ones.
///
/// Without --data it learns from sentences about films that are part of the program.
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
    /// Judges texts with a saved model
    Predict(Predict),
}

#[derive(Args)]
struct Train {
    /// Training data: .tsv with the columns sentence and label (0 or 1)
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Data to measure the accuracy on [default: a random tenth of the training data, held out]
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// How often to go through the training data
    #[arg(long, value_name = "N", default_value_t = 5, allow_negative_numbers = true)]
    epochs: usize,
    /// Texts per step
    #[arg(long, value_name = "N", default_value_t = 32, allow_negative_numbers = true)]
    batch_size: usize,
    /// Adam's learning rate
    #[arg(long, value_name = "X", default_value_t = 1e-3, allow_negative_numbers = true)]
    lr: f64,
    /// Seed of everything random: the same seed gives the same model
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Where to train: cpu, wgpu, wgpu:1
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Folder for text_classifier.safetensors and vocabulary.json
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Run the LSTM over the padding too, as the article's code does; short texts are then forgotten
    #[arg(long)]
    literal: bool,
    /// Print a line of JSON at the end
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Predict {
    /// Folder that training wrote with --save
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Texts to judge
    #[arg(required = true)]
    text: Vec<String>,
}

fn main() -> ExitCode {
    sigpipe::reset(); // `.. | head` ends the program, as it does others
    let cli = Cli::parse();
    let done = match &cli.command {
        Some(Command::Predict(args)) => predict(args),
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
    ensure!(args.epochs >= 1, "--epochs must be at least 1");
    ensure!(args.batch_size >= 1, "--batch-size must be at least 1");
    ensure!(args.lr.is_finite() && args.lr > 0.0, "--lr must be a finite number above 0, not {}", args.lr);
    let device = Device::parse(&args.device)?;
    if device != Device::cpu() {
        eprintln!("{}", device.info());
    }
    if let Some(folder) = &args.save {
        orkest::output_folder(folder)?;
    }
    manual_seed(args.seed);

    // --- Step 1: Build a vocabulary from training text ---
    let samples = match &args.data {
        Some(path) => data::read(path)?,
        None => data::embedded()?,
    };
    let (training, held_out) = match &args.eval {
        Some(path) => (samples, data::read(path)?),
        None => data::hold_out_a_tenth(samples)?,
    };
    let vocab = data::build_vocab(training.iter().map(|(text, _)| text.as_str()), MAX_VOCAB);
    println!("{} texts to learn from, {} to judge, {} words", training.len(), held_out.len(), vocab.len());

    // --- Step 2: Encode text as integer sequences ---
    let train_loader = data::loader(&training, &vocab, MAX_LEN, args.batch_size, &device).shuffle(true);
    let eval_loader = data::loader(&held_out, &vocab, MAX_LEN, 256, &device);

    // --- Step 3: Define the model ---
    let model = model::build(&vocab, args.literal).try_to(&device)?;
    println!("{model}");

    // --- Step 4: Train it ---
    let start = Instant::now();
    let train_loss = model::train_model(&model, &train_loader, args.epochs, args.lr)?;
    let seconds = start.elapsed().as_secs_f64();
    let accuracy = model::accuracy(&model, &eval_loader)?;
    println!("Held out: accuracy {accuracy:.4}");

    // --- Step 5: Save the trained model ---
    if let Some(folder) = &args.save {
        model::save(&model, &vocab, MAX_LEN, folder)?;
        println!("Saved to {}", folder.display());
    }
    if args.json {
        println!(
            r#"{{"train_loss":{train_loss:.17},"accuracy":{accuracy:.17},"epochs":{},"seconds":{seconds:.3},"device":"{device}","threads":{}}}"#,
            args.epochs,
            orkest::num_threads(),
        );
    }
    Ok(())
}

fn predict(args: &Predict) -> Result<()> {
    let (model, vocab, max_len) = model::load(&args.model)?;
    model.eval();
    let inputs = data::encode_texts(args.text.iter().map(String::as_str), &vocab, max_len);
    let (confidence, label) = no_grad(|| model.forward(&inputs).softmax(-1)).max_with_indices(1);
    let judged = confidence.to_vec::<f32>()?.into_iter().zip(label.to_vec::<i64>()?);
    for (text, (confidence, label)) in args.text.iter().zip(judged) {
        let label = if label == 1 { "POSITIVE" } else { "NEGATIVE" };
        println!("'{text}' -> {label} (confidence: {confidence:.3})");
    }
    Ok(())
}
