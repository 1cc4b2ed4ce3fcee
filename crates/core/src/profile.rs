//! `ORKEST_PROFILE=1`: a table of calls, time and bytes per operation, on any backend.

use crate::backend::{Output, View};
use crate::device::Device;
use crate::op::Op;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default, Clone, Copy)]
struct Row {
    calls: u64,
    time: Duration,
    bytes: u64,
}

static TABLE: Mutex<BTreeMap<String, Row>> = Mutex::new(BTreeMap::new());

/// True if the environment asks for a profile.
fn enabled() -> bool {
    static ENABLED: OnceLock<bool> = OnceLock::new();
    *ENABLED.get_or_init(|| {
        let on = std::env::var("ORKEST_PROFILE").is_ok_and(|v| !v.is_empty() && v != "0");
        if on {
            print_at_exit();
        }
        on
    })
}

pub(crate) fn timed<R>(
    op: &Op,
    device: &Device,
    inputs: &[View<'_>],
    outputs: &mut [Output],
    run: impl FnOnce(&mut [Output]) -> R,
) -> R {
    if !enabled() {
        return run(outputs);
    }
    let bytes = inputs.iter().map(|v| v.layout.numel() * v.dtype.size()).sum::<usize>()
        + outputs.iter().map(|o| o.layout.numel() * o.dtype.size()).sum::<usize>();
    let start = Instant::now();
    let result = run(outputs);
    let time = start.elapsed();
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let row = table.entry(format!("{device} {}", op.name())).or_default();
    row.calls += 1;
    row.time += time;
    row.bytes += bytes as u64;
    result
}

/// The profile so far: one line per operation, slowest first. Empty unless `ORKEST_PROFILE=1`.
///
/// Bytes are what the operation must at least read and write; on a GPU the time is that of recording, not of running.
pub fn report() -> String {
    let table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rows: Vec<_> = table.iter().collect();
    if rows.is_empty() {
        return String::new();
    }
    rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.time));
    let total: Duration = rows.iter().map(|(_, r)| r.time).sum();
    let mut out = format!(
        "{:<28} {:>10} {:>12} {:>10} {:>10} {:>7}\n",
        "op", "calls", "total ms", "us/call", "GB/s", "share"
    );
    for (name, row) in rows {
        let seconds = row.time.as_secs_f64();
        let _ = writeln!(
            out,
            "{name:<28} {:>10} {:>12.3} {:>10.2} {:>10.2} {:>6.1}%",
            row.calls,
            seconds * 1e3,
            seconds * 1e6 / row.calls as f64,
            row.bytes as f64 / seconds.max(1e-12) / 1e9,
            100.0 * seconds / total.as_secs_f64().max(1e-12),
        );
    }
    out
}

fn print_at_exit() {
    extern "C" fn print() {
        eprint!("{}", report());
    }
    unsafe extern "C" {
        fn atexit(callback: extern "C" fn()) -> std::ffi::c_int;
    }
    // SAFETY: `atexit` is part of every C runtime that Rust programs run on, and the callback takes no arguments.
    unsafe { atexit(print) };
}
