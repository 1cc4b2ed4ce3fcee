//! Times Orkest on single operations, training steps and inference, and prints one JSON line per case.

mod cases;
mod models;

use anyhow::{Result, bail};
use cases::{CASES, Case};
use clap::Parser;
use orkest::prelude::*;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Times Orkest; one JSON line per case: peer, case, device, threads, median_s, min_s, runs.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where to run: cpu, wgpu, wgpu:1
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Seconds per case; at least five repetitions are made
    #[arg(long, default_value_t = 4.0)]
    budget: f64,
    /// List the cases and stop
    #[arg(long)]
    list: bool,
    /// Cases to run [default: all]
    cases: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    if cli.list {
        CASES.iter().for_each(|c| println!("{}", c.name));
        return Ok(());
    }
    let device = Device::parse(&cli.device)?;
    let mut chosen: Vec<&Case> = Vec::new();
    for name in &cli.cases {
        match CASES.iter().find(|c| c.name == name) {
            Some(case) => chosen.push(case),
            None => bail!("there is no case {name:?}; --list shows them"),
        }
    }
    if chosen.is_empty() {
        chosen = CASES.iter().collect();
    }
    for case in chosen {
        let times = time(case, &device, Duration::from_secs_f64(cli.budget.max(0.0)))?;
        let line = serde_json::json!({
            "peer": "orkest",
            "case": case.name,
            "device": device.backend().name(),
            "threads": orkest::num_threads(),
            "median_s": times[times.len() / 2],
            "min_s": times[0],
            "runs": times.len(),
        });
        println!("{line}");
    }
    Ok(())
}

/// Seconds per repetition, ascending.
fn time(case: &Case, device: &Device, budget: Duration) -> Result<Vec<f64>> {
    manual_seed(0);
    let mut run = (case.build)(device)?;
    for _ in 0..2 {
        run()?;
    }
    device.synchronize()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 5 || start.elapsed() < budget && times.len() < 200 {
        let begin = Instant::now();
        run()?;
        device.synchronize()?;
        times.push(begin.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}
