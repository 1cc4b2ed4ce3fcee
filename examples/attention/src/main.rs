//! Compares attention as one writes it down with the fused operation, and draws which word attends to which.

mod attention;
mod heatmap;

use anyhow::{Result, ensure};
use attention::{attention_weights, compute_attention};
use clap::Parser;
use orkest::prelude::*;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// The most elements that a tensor may have: 2 GiB of f32.
const LARGEST: usize = 1 << 29;

/// Compares attention written out with the fused operation, and draws the attention weights of a text.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Words to draw the attention weights of
    #[arg(long, value_name = "TEXT", default_value = "the cat sat on the mat and the dog sat by the cat")]
    text: String,
    /// Lets each position see itself and earlier ones only
    #[arg(long)]
    causal: bool,
    /// Sequences to compare with
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: usize,
    /// Positions in each of them
    #[arg(long, value_name = "N", default_value_t = 256)]
    seq_len: usize,
    /// Features of queries, keys and values
    #[arg(long, value_name = "N", default_value_t = 64)]
    d_model: usize,
    /// How often each is timed; the shortest time counts
    #[arg(long, value_name = "N", default_value_t = 10)]
    repeats: usize,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Where to compute: cpu, wgpu, wgpu:1
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Where the picture goes
    #[arg(long, value_name = "FILE", default_value = "attention.png")]
    output: PathBuf,
    /// Print a line of JSON at the end
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    sigpipe::reset(); // `.. | head` ends the program, as it does others
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Cli) -> Result<()> {
    for (name, value) in [
        ("--batch", args.batch),
        ("--seq-len", args.seq_len),
        ("--d-model", args.d_model),
        ("--repeats", args.repeats),
    ] {
        ensure!(value >= 1, "{name} must be at least 1");
    }
    let sizes = [args.batch, args.seq_len, args.seq_len.max(args.d_model)];
    let largest = sizes.into_iter().try_fold(1usize, usize::checked_mul);
    ensure!(
        largest.is_some_and(|n| n <= LARGEST),
        "a tensor of {sizes:?} is too large: it has more than {LARGEST} elements"
    );
    let words: Vec<&str> = args.text.split_whitespace().collect();
    ensure!(!words.is_empty(), "--text has no words");
    let device = Device::parse(&args.device)?;
    if device != Device::cpu() {
        eprintln!("{}", device.info());
    }
    manual_seed(args.seed);

    let comparison = no_grad(|| compare(args, &device))?;
    println!(
        "[{}, {}, {}]{}: written out {:.3} ms, fused {:.3} ms ({:.1} times as fast), largest difference {:.1e}",
        args.batch,
        args.seq_len,
        args.d_model,
        if args.causal { " causal" } else { "" },
        comparison.literal_ms,
        comparison.fused_ms,
        comparison.literal_ms / comparison.fused_ms,
        comparison.difference,
    );
    if device != Device::cpu() {
        println!("largest difference from the CPU {:.1e}", comparison.cpu_difference);
    }

    let weights = no_grad(|| picture(args, &words, &device))?;
    heatmap::save(&args.output, &weights, words.len())?;
    for (row, word) in weights.chunks(words.len()).zip(&words) {
        let strongest = (0..words.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or_default();
        println!("{word:>12} -> {:12} {:.2}", words[strongest], row[strongest]);
    }
    println!("Saved to {}", args.output.display());

    if args.json {
        let Comparison { difference, cpu_difference, literal_ms, fused_ms } = comparison;
        println!(
            r#"{{"difference":{difference:e},"cpu_difference":{cpu_difference:e},"literal_ms":{literal_ms:.4},"fused_ms":{fused_ms:.4},"device":"{device}"}}"#
        );
    }
    Ok(())
}

struct Comparison {
    /// Between the two ways.
    difference: f64,
    /// Between this device and the CPU, the larger of both ways.
    cpu_difference: f64,
    literal_ms: f64,
    fused_ms: f64,
}

fn compare(args: &Cli, device: &Device) -> Result<Comparison> {
    let cpu = Device::cpu();
    let qkv = [(); 3].map(|()| Tensor::randn([args.batch, args.seq_len, args.d_model], &cpu));
    let both = |device: &Device| {
        let [q, k, v] = qkv.each_ref().map(|t| t.to(device));
        let mask = causal_mask(args, args.seq_len, device);
        let literal = move || compute_attention(&q, &k, &v, mask.as_ref());
        let ([q, k, v], causal) = (qkv.each_ref().map(|t| t.to(device)), args.causal);
        let fused = move || q.scaled_dot_product_attention(&k, &v, None, 0.0, causal, None);
        (literal, fused)
    };
    let (literal, fused) = both(device);
    let (cpu_literal, cpu_fused) = both(&cpu);
    Ok(Comparison {
        difference: largest_difference(&literal(), &fused())?,
        cpu_difference: largest_difference(&literal(), &cpu_literal())?
            .max(largest_difference(&fused(), &cpu_fused())?),
        literal_ms: shortest_ms(args.repeats, device, literal)?,
        fused_ms: shortest_ms(args.repeats, device, fused)?,
    })
}

fn causal_mask(args: &Cli, seq_len: usize, device: &Device) -> Option<Tensor> {
    args.causal.then(|| Tensor::ones([seq_len, seq_len], (DType::Bool, device)).tril(0))
}

/// NaN if there is one on either side.
fn largest_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    let cpu = Device::cpu();
    Ok((a.try_to(&cpu)? - b.try_to(&cpu)?).abs().max(..).item()?)
}

fn shortest_ms(repeats: usize, device: &Device, f: impl Fn() -> Tensor) -> Result<f64> {
    let mut shortest = f64::INFINITY;
    for _ in 0..repeats {
        let start = Instant::now();
        let y = f();
        device.synchronize()?;
        drop(y);
        shortest = shortest.min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(shortest)
}

/// The attention weights among words, `[words, words]` row by row. Equal words have equal random vectors, so they attend to each
/// other; sines that tell the position let neighbours attend to each other too.
fn picture(args: &Cli, words: &[&str], device: &Device) -> Result<Vec<f32>> {
    let mut vocabulary: Vec<&str> = words.to_vec();
    vocabulary.sort_unstable();
    vocabulary.dedup();
    let numbers: Vec<i64> =
        words.iter().map(|w| vocabulary.binary_search(w).map_or(0, |place| place as i64)).collect();
    let embedding = Embedding::new(vocabulary.len(), args.d_model).try_to(device)?;
    let positions = PositionalEncoding::new(args.d_model, words.len()).try_to(device)?;
    let tokens = Tensor::new(numbers, device);
    let x = positions.forward(&embedding.forward(&tokens)).unsqueeze(0); // [1, words, d_model]
    let mask = causal_mask(args, words.len(), device);
    Ok(attention_weights(&x, &x, mask.as_ref()).to_vec::<f32>()?)
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;

    #[test]
    fn the_gpu_computes_what_the_cpu_computes() {
        let device = match Device::wgpu(0) {
            Ok(device) => device,
            Err(e) => return assert!(std::env::var_os("ORKEST_REQUIRE_GPU").is_none(), "{e}"),
        };
        for options in [&[][..], &["--causal"]] {
            let sizes = ["attention", "--batch", "2", "--seq-len", "48", "--d-model", "32", "--repeats", "1"];
            let args = Cli::parse_from(sizes.iter().chain(options));
            manual_seed(args.seed);
            let comparison = compare(&args, &device).unwrap();
            let (between_ways, from_cpu) = (comparison.difference, comparison.cpu_difference);
            assert!(between_ways <= 1e-5 && from_cpu <= 1e-5, "{between_ways} {from_cpu}");
        }
    }
}
