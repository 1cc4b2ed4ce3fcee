//! Lists the devices that this program could compute on.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use orkest::prelude::*;
use orkest::{DeviceInfo, devices};
use serde_json::json;
use std::process::ExitCode;

/// Lists the devices that Orkest can compute on; a star marks the one that `Device::best()` takes.
///
/// ORKEST_DEVICE chooses another, WGPU_BACKEND (vulkan, metal, dx12) and WGPU_ADAPTER_NAME (part of a name) limit which GPUs are
/// seen.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Open each device and compute something on it
    #[arg(long)]
    check: bool,
    /// Print a line of JSON instead of the table
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
    if let Ok(asked) = std::env::var("ORKEST_DEVICE")
        && !asked.is_empty()
    {
        Device::parse(&asked).context("ORKEST_DEVICE")?; // `best` would panic
    }
    let best = Device::best().to_string();
    let found = devices();
    if args.json {
        let all: Vec<_> = found.iter().map(|info| as_json(info, info.name == best)).collect();
        println!("{}", json!({ "devices": all }));
    } else {
        for info in &found {
            print!("{}", as_table(info, info.name == best));
        }
        if found.len() == 1 {
            // What was looked for, and what to install.
            if let Err(e) = Device::wgpu(0) {
                println!("\n{e}");
            }
        }
    }
    if args.check {
        for info in &found {
            check(&info.name).with_context(|| info.name.clone())?;
            eprintln!("{} computes", info.name);
        }
    }
    Ok(())
}

fn as_table(info: &DeviceInfo, best: bool) -> String {
    let size = |bytes: Option<u64>| bytes.map(|b| format!("{:.1} GiB", b as f64 / (1u64 << 30) as f64));
    let mut rows = vec![
        ("type", Some(info.device_type.to_string())),
        ("interface", Some(info.interface.clone())),
        ("driver", Some(info.driver.clone()).filter(|d| !d.is_empty())),
        ("memory", size(info.memory)),
        ("largest tensor", size(info.max_tensor_bytes)),
    ];
    rows.extend(info.details.iter().map(|(name, value)| (*name, Some(value.clone()))));
    let star = if best { '*' } else { ' ' };
    let mut table = format!("{star} {:<8} {}\n", info.name, info.description);
    for (name, value) in rows {
        if let Some(value) = value {
            table += &format!("    {name:<20} {value}\n");
        }
    }
    table
}

fn as_json(info: &DeviceInfo, best: bool) -> serde_json::Value {
    let details: serde_json::Map<_, _> =
        info.details.iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
    json!({
        "name": info.name,
        "best": best,
        "description": info.description,
        "type": info.device_type.to_string(),
        "interface": info.interface,
        "driver": info.driver,
        "memory": info.memory,
        "max_tensor_bytes": info.max_tensor_bytes,
        "details": details,
    })
}

/// A small product with a known result.
fn check(name: &str) -> Result<()> {
    let device = Device::parse(name)?;
    let x = Tensor::arange(0, 64, 1, &device).to_dtype(DType::F32).reshape([8, 8]);
    let trace = x.matmul(&Tensor::eye(8, &device)).diagonal(0, 0, 1).sum(..).item()?;
    ensure!(trace == 252.0, "the trace of a product is {trace}, not 252");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_is_described_and_the_cpu_computes() {
        let found = devices();
        assert_eq!(found[0].name, "cpu");
        check("cpu").unwrap();
        for info in &found {
            let table = as_table(info, true);
            assert!(
                table.starts_with(&format!("* {}", info.name)) && table.contains(&info.description),
                "{table}"
            );
            let json = as_json(info, false);
            assert_eq!((&json["name"], &json["best"]), (&json!(info.name), &json!(false)));
            assert_eq!(json["memory"].as_u64(), info.memory);
        }
        let adapters: Vec<_> = found.iter().filter(|d| d.name.starts_with("wgpu")).collect();
        for info in adapters {
            assert!(info.max_tensor_bytes.is_some_and(|b| b >= 128 << 20), "{info:?}");
            assert!(as_table(info, false).contains("kernels"));
        }
    }
}
