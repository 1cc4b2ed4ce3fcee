//! How often something is repeated, and what counts.

use anyhow::Result;
use orkest::Device;
use std::time::{Duration, Instant};

/// How long each is repeated, forwards and again with gradients.
const BUDGET: Duration = Duration::from_millis(200);
const FEWEST_RUNS: usize = 7;

/// Seconds of the fastest run: everything that disturbs makes it slower.
pub fn fastest(device: &Device, mut run: impl FnMut()) -> Result<f64> {
    (0..2).for_each(|_| run());
    device.synchronize()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < FEWEST_RUNS || start.elapsed() < BUDGET {
        let begin = Instant::now();
        run();
        device.synchronize()?;
        times.push(begin.elapsed().as_secs_f64());
    }
    Ok(times.into_iter().fold(f64::INFINITY, f64::min))
}
