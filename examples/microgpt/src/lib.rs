//! What the two programs share: the command line, the names to learn from, and Python's random numbers.

pub mod dataset;
pub mod random;

pub use dataset::Dataset;
pub use random::{Random, Seed};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::time::Duration;

/// What both programs can be asked for.
#[derive(Args)]
pub struct Options {
    /// Text with one name per line [default: names that are part of the program]
    #[arg(long, value_name = "FILE")]
    pub names: Option<PathBuf>,
    /// Steps of training, one name each
    #[arg(long, value_name = "N", default_value_t = 1000, allow_negative_numbers = true)]
    pub steps: usize,
    /// Seed of everything random: any integer, with the meaning it has for Python's random.seed
    #[arg(long, value_name = "N", default_value = "42", allow_hyphen_values = true)]
    pub seed: Seed,
    /// Print the loss of every step with all its digits
    #[arg(long)]
    pub trace: bool,
    /// Print a line of JSON at the end
    #[arg(long)]
    pub json: bool,
}

/// What a run printed, for programs.
pub struct Summary {
    /// The loss of every step.
    pub losses: Vec<f64>,
    /// The names that it made up.
    pub samples: Vec<String>,
    /// Time that training took.
    pub training: Duration,
}

impl Summary {
    /// One line of JSON.
    pub fn json(&self) -> String {
        let seconds = self.training.as_secs_f64();
        serde_json::json!({
            "steps": self.losses.len(),
            "loss": self.losses.last(),
            "seconds": seconds,
            "samples": self.samples,
        })
        .to_string()
    }
}

/// Shows how training goes on: every loss in full, or a line that rewrites itself.
pub struct Progress {
    bar: Option<ProgressBar>,
    steps: usize,
}

impl Progress {
    /// For `options.steps` steps.
    pub fn new(options: &Options) -> Progress {
        let bar = (!options.trace).then(|| {
            let bar = ProgressBar::new(options.steps as u64);
            let style = ProgressStyle::with_template("step {pos:>4} / {len:>4} | loss {msg}");
            if let Ok(style) = style { bar.with_style(style) } else { bar }
        });
        Progress { bar, steps: options.steps }
    }

    /// After step `step`, counted from 0.
    pub fn step(&self, step: usize, loss: f64) {
        let Some(bar) = &self.bar else {
            println!("step {} loss {loss:.17}", step + 1);
            return;
        };
        bar.set_message(format!("{loss:.4}"));
        bar.inc(1);
        if step + 1 == self.steps {
            bar.finish_and_clear();
            println!("step {0:4} / {0:4} | loss {loss:.4}", self.steps);
        }
    }
}

/// `pow` of the C library, as Python calls it. The compiler may replace a power whose exponent it knows by a multiplication, a
/// division or a root, which round differently once in a while; so it must not know.
pub fn pow(base: f64, exponent: f64) -> f64 {
    base.powf(std::hint::black_box(exponent))
}
