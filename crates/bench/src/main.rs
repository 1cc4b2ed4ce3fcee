//! Times Orkest on single operations, training steps and inference, or measures their memory, and prints one JSON line per case.

mod cases;
mod convolutions;
mod floor;
mod models;
mod operations;
mod overhead;
mod repeat;

use anyhow::{Result, bail, ensure};
use cases::{CASES, Case};
use clap::Parser;
use floor::{Machine, Work};
use orkest::prelude::*;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Times Orkest; one JSON line per case: peer, case, device, threads, median_s, min_s, runs.
///
/// With --memory: peer, case, device, tensor_peak_bytes (what tensors use at most) and process_peak_bytes (how far the process grows
/// beyond what it is before the case; Linux only), each case in a process of its own.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where to run: cpu, wgpu, wgpu:1
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Seconds per case; at least five repetitions are made
    #[arg(long, default_value_t = 4.0)]
    budget: f64,
    /// Measure peak memory instead of time
    #[arg(long)]
    memory: bool,
    /// Print what the CPU could do at best instead: from its measured bandwidth and multiply-add rate, seconds per case
    #[arg(long, conflicts_with = "memory")]
    floors: bool,
    /// Time operations on a handful of numbers instead: nanoseconds of each, nearly all of them overhead. Parts of names choose
    #[arg(long, conflicts_with_all = ["memory", "floors"])]
    overhead: bool,
    /// Time convolutions of usual networks instead, forwards and with gradients. Parts of names choose
    #[arg(long, conflicts_with_all = ["memory", "floors", "overhead"])]
    convolutions: bool,
    /// Time operations and layers one by one instead, forwards and with gradients. Parts of names choose
    #[arg(long, conflicts_with_all = ["memory", "floors", "overhead", "convolutions"])]
    operations: bool,
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
    if cli.overhead {
        overhead::measure(&device, &cli.cases, |op, ns| {
            println!("{}", serde_json::json!({ "op": op, "ns": ns.round() }));
        });
        return Ok(());
    }
    if cli.convolutions {
        return convolutions::measure(&device, &cli.cases, |line| println!("{line}"));
    }
    if cli.operations {
        return operations::measure(&device, &cli.cases, |line| println!("{line}"));
    }
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
    if cli.floors {
        floors(&chosen);
        return Ok(());
    }
    if cli.memory {
        return chosen.iter().try_for_each(|case| memory(case, cli, chosen.len() > 1));
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

fn floors(chosen: &[&Case]) {
    let machine = Machine::measure(orkest::num_threads());
    let rate = machine.flops.map(|rate| rate / 1e9);
    println!("{}", serde_json::json!({ "bandwidth_gb_s": machine.bandwidth / 1e9, "gflop_s": rate }));
    for case in chosen {
        let Work { flops, bytes } = case.work;
        let line = serde_json::json!({ "case": case.name, "flops": flops, "bytes": bytes, "floor_s": machine.floor(case.work) });
        println!("{line}");
    }
}

/// The most memory that setting up a case and running it five times takes. `apart`: in a process of its own, so that nothing of another
/// case is still there.
fn memory(case: &Case, cli: &Cli, apart: bool) -> Result<()> {
    if apart {
        let arguments = ["--memory", "--device", &cli.device, case.name];
        let status = std::process::Command::new(std::env::current_exe()?).args(arguments).status()?;
        ensure!(status.success(), "{}: {status}", case.name);
        return Ok(());
    }
    let device = Device::parse(&cli.device)?;
    manual_seed(0);
    drop(Tensor::rand([64, 64], &device).matmul(&Tensor::rand([64, 64], &device))); // threads and pools are there now
    device.synchronize()?;
    let before = resident("VmRSS:");
    let mut run = (case.build)(&device)?;
    for _ in 0..5 {
        run()?;
        device.synchronize()?;
    }
    let line = serde_json::json!({
        "peer": "orkest",
        "case": case.name,
        "device": device.backend().name(),
        "tensor_peak_bytes": device.memory_stats().peak_bytes,
        "process_peak_bytes": resident("VmHWM:").zip(before).map(|(peak, before)| peak.saturating_sub(before)),
    });
    println!("{line}");
    Ok(())
}

/// A line of `/proc/self/status` that is a number of KiB, in bytes.
fn resident(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
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
