//! Cleans product reviews, trains the article's sentiment classifier on them, and judges new texts with it.

mod data;
mod model;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use data::{Review, Vocabulary};
use model::SentimentClassifier;
use orkest::data::progress;
use orkest::prelude::*;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Numbers for words, with padding and the unknown word, as in the article.
const VOCABULARY_SIZE: usize = 10_000;
/// Longer texts are cut to this many words.
const MAX_LEN: usize = 100;

/// Trains a classifier that tells positive texts from negative ones.
///
/// Without --data it learns from product reviews that are part of the program.
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
    /// Training data: .csv with the columns review_text and rating, or .tsv with sentence and label (0 or 1)
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Data to measure the accuracy on [default: a random tenth of the training data, held out]
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// How often to go through the training data
    #[arg(long, value_name = "N", default_value_t = 20, allow_negative_numbers = true)]
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
    /// Folder for model.safetensors and vocabulary.json
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
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

    let reviews = match &args.data {
        Some(path) => data::read(path)?,
        None => data::embedded()?,
    };
    println!("{}", data::summary(&reviews));
    let evaluation = args.eval.as_deref().map(data::read).transpose()?;
    let (training, held_out) = match &evaluation {
        Some(evaluation) => (reviews.iter().collect(), evaluation.iter().collect()),
        None => hold_out_a_tenth(&reviews)?,
    };
    let vocabulary = Vocabulary::build(&training, VOCABULARY_SIZE, MAX_LEN);
    let train_data = data::dataset(&training, &vocabulary, &device);
    let train_loader = DataLoader::new(train_data).batch_size(args.batch_size).shuffle(true);
    let eval_loader = DataLoader::new(data::dataset(&held_out, &vocabulary, &device)).batch_size(256);

    let model = model::build(&vocabulary).try_to(&device)?;
    println!("{model}");
    let criterion = CrossEntropyLoss::new();
    let mut optimizer = Adam::new(model.parameters(), args.lr);

    let start = Instant::now();
    let mut train_loss = 0.0;
    for epoch in 0..args.epochs {
        let mut total_loss = 0.0;
        model.train();
        for (inputs, labels) in progress(&train_loader, format!("Epoch {}/{}", epoch + 1, args.epochs)) {
            optimizer.zero_grad();
            let loss = criterion.forward(&model.forward(&inputs), &labels);
            loss.backward();
            optimizer.step();
            total_loss += loss.item()?;
        }
        train_loss = total_loss / train_loader.len() as f64;
        ensure!(
            train_loss.is_finite(),
            "the loss became {train_loss} in epoch {}; a smaller --lr may help",
            epoch + 1
        );
        println!(
            "Epoch {}, Loss: {train_loss:.4}, Accuracy: {:.4}",
            epoch + 1,
            accuracy(&model, &eval_loader)?
        );
    }
    let seconds = start.elapsed().as_secs_f64();
    let accuracy = accuracy(&model, &eval_loader)?;

    if let Some(folder) = &args.save {
        model::save(&model, &vocabulary, folder)?;
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

/// Splits at random: nine tenths to learn from, one to be judged on.
fn hold_out_a_tenth(reviews: &[Review]) -> Result<(Vec<&Review>, Vec<&Review>)> {
    ensure!(reviews.len() >= 2, "one review cannot be split into training and held-out data; give --eval");
    let order = Tensor::randperm(reviews.len(), &Device::cpu()).to_vec::<i64>()?;
    let mut shuffled: Vec<&Review> = order.iter().map(|&i| &reviews[i as usize]).collect();
    let training = shuffled.split_off(reviews.len().div_ceil(10));
    Ok((training, shuffled))
}

/// The share of reviews that the model judges right.
fn accuracy(model: &SentimentClassifier, loader: &DataLoader) -> Result<f64> {
    model.eval();
    let mut correct = 0.0;
    for (inputs, labels) in loader {
        let outputs = no_grad(|| model.forward(&inputs));
        correct += outputs.argmax(1).eq(&labels).sum(..).item()?;
    }
    Ok(correct / loader.dataset_len() as f64)
}

fn predict(args: &Predict) -> Result<()> {
    let (model, vocabulary) = model::load(&args.model)?;
    model.eval();
    for text in &args.text {
        let input = Tensor::new([vocabulary.encode(text)], &Device::cpu());
        let probabilities = no_grad(|| model.forward(&input).softmax(-1)).to_vec::<f32>()?;
        let (label, confidence) = match probabilities[1] > probabilities[0] {
            true => ("POSITIVE", probabilities[1]),
            false => ("NEGATIVE", probabilities[0]),
        };
        println!("'{text}' -> {label} (confidence: {confidence:.3})");
    }
    Ok(())
}
