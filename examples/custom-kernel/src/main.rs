//! Runs an operation of one's own, compares it with the same in tensor operations, and checks its gradients.

mod snake;

use anyhow::{Error, Result, ensure};
use clap::Parser;
use orkest::prelude::*;
use orkest::{gradcheck, gradgradcheck};
use snake::Snake;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The most elements: 2 GiB of f32.
const LARGEST: usize = 1 << 29;

/// Runs an operation of one's own, compares it with the same in tensor operations, and checks its gradients.
///
/// The operation is in src/snake.rs, its kernel for a GPU in src/snake.wgsl.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where to run: cpu, wgpu, wgpu:1 (with --features wgpu)
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Elements
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    size: usize,
    /// Print a line of JSON at the end
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    sigpipe::reset(); // `.. | head` ends the program, as it does others
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    ensure!((1..=LARGEST).contains(&args.size), "--size must lie between 1 and {LARGEST}");
    let device = Device::parse(&args.device)?;
    if device != Device::cpu() {
        eprintln!("{}", device.info());
    }
    let a = 0.7;
    let one_kernel = |x: &Tensor| Tensor::apply(Snake { a }, &[x]);
    let tensor_operations = |x: &Tensor| x + (x * a).sin().square() / a;

    manual_seed(0);
    let x = Tensor::randn([args.size], &device);
    let apart = (one_kernel(&x) - tensor_operations(&x)).abs().max(..).item()?;
    println!("largest difference to tensor operations: {apart:.1e}");
    let gradient_apart = (gradient(one_kernel, &x) - gradient(tensor_operations, &x)).abs().max(..).item()?;
    println!("largest difference of their gradients:   {gradient_apart:.1e}");
    ensure!(apart < 1e-5 && gradient_apart < 1e-5, "they differ");

    // Finite differences need f64, so the CPU.
    let few = Tensor::randn([2, 3], &Device::cpu());
    gradcheck(|x| one_kernel(&x[0]), std::slice::from_ref(&few)).map_err(Error::msg)?;
    gradgradcheck(|x| one_kernel(&x[0]), &[few]).map_err(Error::msg)?;
    println!("gradcheck and gradgradcheck: right");

    let (fused, composed) = (fastest(one_kernel, &x)?, fastest(tensor_operations, &x)?);
    println!("{} elements on {device}: one kernel {fused:?}, tensor operations {composed:?}", args.size);
    if args.json {
        let (fused, composed) = (fused.as_secs_f64(), composed.as_secs_f64());
        println!(
            r#"{{"difference":{apart:e},"gradient_difference":{gradient_apart:e},"fused_seconds":{fused},"composed_seconds":{composed}}}"#
        );
    }
    Ok(())
}

fn gradient(f: impl Fn(&Tensor) -> Tensor, x: &Tensor) -> Tensor {
    let x = x.detach().requires_grad_(true);
    f(&x).sum(..).backward();
    x.grad().expect("x requires one")
}

/// The shortest of 20 runs.
fn fastest(f: impl Fn(&Tensor) -> Tensor, x: &Tensor) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let start = Instant::now();
        let y = f(x);
        x.device().synchronize()?;
        best = best.min(start.elapsed());
        drop(y);
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_formula() {
        let x = Tensor::new([0.0f32, 1.0, -2.0], &Device::cpu());
        let y = Tensor::apply(Snake { a: 0.5 }, &[&x]).to_vec::<f32>().unwrap();
        // x + 2 sin²(x / 2) = x + 1 - cos(x)
        for (y, x) in y.into_iter().zip([0.0f32, 1.0, -2.0]) {
            assert!((y - (x + 1.0 - x.cos())).abs() < 1e-6, "{y} at {x}");
        }
    }

    #[test]
    fn the_manual_shows_these_programs() {
        let page = include_str!("../../../docs/custom-kernels.md").replace('\r', "");
        let operation = include_str!("snake.rs");
        let shown =
            &operation[operation.find("impl Function").unwrap()..operation.find("fn snake<").unwrap()];
        assert!(page.contains(shown.trim_end()), "docs/custom-kernels.md shows another snake.rs");
        assert!(page.contains(include_str!("snake.wgsl")), "docs/custom-kernels.md shows another snake.wgsl");
    }
}
