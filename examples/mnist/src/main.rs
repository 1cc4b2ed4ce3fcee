//! Learns to read handwritten digits with a small convolutional network, and shows what it misreads.

mod data;
mod digits;
mod model;
mod report;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use data::{Pictures, Split};
use model::Cnn;
use orkest::data::progress;
use orkest::prelude::*;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Trains a network that reads handwritten digits.
///
/// Without --data it learns from digits that the program draws itself.
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
    /// Judges a saved network on held-out digits
    Eval(Eval),
}

#[derive(Args)]
struct Train {
    /// Folder with MNIST's files (train-images-idx3-ubyte, t10k-labels-idx1-ubyte.gz ..); with t10k-* alone the last 1,000 of
    /// them are held out
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How often to go through the training data
    #[arg(long, value_name = "N", default_value_t = 5, allow_negative_numbers = true)]
    epochs: usize,
    /// Pictures per step
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true)]
    batch_size: usize,
    /// Adam's learning rate
    #[arg(long, value_name = "X", default_value_t = 1e-3, allow_negative_numbers = true)]
    lr: f64,
    /// Learn from the first N pictures only
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    samples: Option<usize>,
    /// Seed of everything random: the same seed gives the same network
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Where to train: cpu, wgpu, wgpu:1
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Folder for model.safetensors
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Picture of the misread digits [default: misread.png in the folder of --save, or in the current one]
    #[arg(long, value_name = "FILE")]
    misread: Option<PathBuf>,
    /// Print a line of JSON at the end
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Eval {
    /// Folder that training wrote with --save
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// As in training; what is held out there is judged here
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Seed of the digits that are drawn without --data
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Where to run: cpu, wgpu, wgpu:1
    #[arg(long, default_value = "cpu")]
    device: String,
}

fn main() -> ExitCode {
    sigpipe::reset(); // `.. | head` ends the program, as it does others
    let cli = Cli::parse();
    let done = match &cli.command {
        Some(Command::Eval(args)) => eval(args),
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
    ensure!(
        args.batch_size >= 2,
        "--batch-size must be at least 2: batch norm compares the pictures of a batch"
    );
    ensure!(args.lr.is_finite() && args.lr > 0.0, "--lr must be a finite number above 0, not {}", args.lr);
    let device = Device::parse(&args.device)?;
    if device != Device::cpu() {
        eprintln!("{}", device.info());
    }
    if let Some(folder) = &args.save {
        orkest::output_folder(folder)?;
    }
    manual_seed(args.seed);

    let Split { mut training, held_out } = pictures(args.data.as_deref())?;
    if let Some(samples) = args.samples {
        ensure!(
            (args.batch_size..=training.len()).contains(&samples),
            "--samples must lie between a batch, {}, and all pictures, {}",
            args.batch_size,
            training.len()
        );
        training = training.part(0, samples);
    }
    println!("{} pictures to learn from, {} held out", training.len(), held_out.len());
    // A last batch of one picture would have no variance to normalise by.
    let train_loader = DataLoader::new(training.dataset())
        .batch_size(args.batch_size)
        .shuffle(true)
        .drop_last(true)
        .device(&device);
    ensure!(!train_loader.is_empty(), "--batch-size {} is more than there are pictures", args.batch_size);

    let model = Cnn::new().try_to(&device)?;
    println!("{model}");
    let criterion = CrossEntropyLoss::new();
    let mut optimizer = Adam::new(model.parameters(), args.lr);

    let start = Instant::now();
    let (mut train_loss, mut read) = (0.0, Vec::new());
    for epoch in 1..=args.epochs {
        model.train();
        let mut total_loss = Tensor::zeros((), &device);
        for (inputs, labels) in progress(&train_loader, format!("Epoch {epoch}/{}", args.epochs)) {
            optimizer.zero_grad();
            let loss = criterion.forward(&model.forward(&inputs), &labels);
            loss.backward();
            optimizer.step();
            total_loss += loss.detach(); // read once per epoch: reading waits for the device
        }
        train_loss = total_loss.item()? / train_loader.len() as f64;
        ensure!(
            train_loss.is_finite(),
            "the loss became {train_loss} in epoch {epoch}; a smaller --lr may help"
        );
        read = judge(&model, &held_out, &device)?;
        println!("Epoch {epoch}, Loss: {train_loss:.4}, Accuracy: {:.4}", accuracy(&held_out, &read)?);
    }
    let seconds = start.elapsed().as_secs_f64();

    println!("\n{}", report::confusion_matrix(&held_out.labels.to_vec::<i64>()?, &read));
    if let Some(folder) = &args.save {
        model::save(&model, folder)?;
        println!("Saved to {}", folder.display());
    }
    let picture = args.misread.clone().unwrap_or_else(|| match &args.save {
        Some(folder) => folder.join("misread.png"),
        None => "misread.png".into(),
    });
    let misread = report::save_misread(&held_out, &read, &picture)?;
    match misread {
        0 => println!("No digit was misread"),
        _ => println!("{misread} misread digits are in {}", picture.display()),
    }
    if args.json {
        println!(
            r#"{{"train_loss":{train_loss:.17},"accuracy":{:.17},"misread":{misread},"epochs":{},"seconds":{seconds:.3},"device":"{device}","threads":{}}}"#,
            accuracy(&held_out, &read)?,
            args.epochs,
            orkest::num_threads(),
        );
    }
    Ok(())
}

fn eval(args: &Eval) -> Result<()> {
    let device = Device::parse(&args.device)?;
    if device != Device::cpu() {
        eprintln!("{}", device.info());
    }
    manual_seed(args.seed);
    let held_out = pictures(args.data.as_deref())?.held_out;
    let model = model::load(&args.model)?.try_to(&device)?;
    let read = judge(&model, &held_out, &device)?;
    println!("Accuracy: {:.4}\n", accuracy(&held_out, &read)?);
    print!("{}", report::confusion_matrix(&held_out.labels.to_vec::<i64>()?, &read));
    Ok(())
}

fn pictures(folder: Option<&Path>) -> Result<Split> {
    folder.map_or_else(data::generated, data::read)
}

/// The digits that the network reads in the pictures.
fn judge(model: &Cnn, pictures: &Pictures, device: &Device) -> Result<Vec<i64>> {
    model.eval();
    let mut read = Vec::new();
    for (inputs, _) in &DataLoader::new(pictures.dataset()).batch_size(500).device(device) {
        let outputs = no_grad(|| model.forward(&inputs));
        read.extend(outputs.argmax(1).to_vec::<i64>()?);
    }
    Ok(read)
}

/// The share of pictures that were read right.
fn accuracy(pictures: &Pictures, read: &[i64]) -> Result<f64> {
    let labels = pictures.labels.to_vec::<i64>()?;
    Ok(labels.iter().zip(read).filter(|(label, digit)| label == digit).count() as f64 / labels.len() as f64)
}
