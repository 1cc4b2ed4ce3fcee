//! `ORKEST_PROFILE=1`: a table of calls, time and bytes per operation, on any backend.
//!
//! A backend that has finished when `execute` returns is timed here. One that only records work then (a GPU) measures on the
//! device and hands the times in with [`record`].

use crate::backend::{Output, View};
use crate::device::Device;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default, Clone, Copy, Debug)]
struct Row {
    calls: u64,
    time: Duration,
    bytes: u64,
}

type Table = BTreeMap<(String, &'static str), Row>;

static TABLE: Mutex<Table> = Mutex::new(Table::new());

/// True if the environment asks for a profile.
pub fn enabled() -> bool {
    static ENABLED: OnceLock<bool> = OnceLock::new();
    *ENABLED.get_or_init(|| {
        let on = std::env::var("ORKEST_PROFILE").is_ok_and(|v| !v.is_empty() && v != "0");
        if on {
            print_at_exit();
        }
        on
    })
}

/// Adds time that a device has measured to the row of `op`, the name that [`caller`](crate::caller) gave while it was recorded.
/// `device` is the device as [`Device`] prints it.
pub fn record(device: &str, op: &'static str, time: Duration) {
    change(device.to_string(), op, |row| row.time += time);
}

/// Adds a call that a backend has timed, of something that is not an operation: compiling a kernel, say.
pub fn record_call(device: &str, what: &'static str, time: Duration) {
    change(device.to_string(), what, |row| {
        row.calls += 1;
        row.time += time;
    });
}

fn change(device: String, op: &'static str, f: impl FnOnce(&mut Row)) {
    f(TABLE.lock().unwrap_or_else(PoisonError::into_inner).entry((device, op)).or_default());
}

pub(crate) fn timed<R>(
    op: &'static str,
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
    let time = if device.backend().times_itself() { Duration::ZERO } else { start.elapsed() };
    change(device.to_string(), op, |row| {
        row.calls += 1;
        row.time += time;
        row.bytes += bytes as u64;
    });
    result
}

/// The profile so far: one line per operation, slowest first. Empty unless `ORKEST_PROFILE=1`.
///
/// Bytes are what the operation must at least read and write. On a GPU the time is the device's own, of what has been submitted:
/// read something or call [`Device::synchronize`] first. Work that nothing waited for is not in it.
pub fn report() -> String {
    table(&TABLE.lock().unwrap_or_else(PoisonError::into_inner))
}

fn table(table: &Table) -> String {
    let mut rows: Vec<_> = table.iter().collect();
    if rows.is_empty() {
        return String::new();
    }
    rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.time));
    let total: Duration = rows.iter().map(|(_, r)| r.time).sum();
    let mut out = format!(
        "{:<36} {:>10} {:>12} {:>10} {:>12} {:>10} {:>7}\n",
        "op", "calls", "total ms", "us/call", "MB", "GB/s", "share"
    );
    for ((device, op), row) in rows {
        let seconds = row.time.as_secs_f64();
        let _ = writeln!(
            out,
            "{:<36} {:>10} {:>12.3} {:>10.2} {:>12.3} {:>10.2} {:>6.1}%",
            format!("{device} {op}"),
            row.calls,
            seconds * 1e3,
            seconds * 1e6 / row.calls.max(1) as f64,
            row.bytes as f64 / 1e6,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_comes_first_with_its_share_and_bandwidth() {
        let row = |calls, ms, bytes| Row { calls, time: Duration::from_millis(ms), bytes };
        let rows = Table::from([
            (("cpu".to_string(), "add"), row(2, 1, 3_000_000)),
            (("wgpu".to_string(), "matmul"), row(4, 3, 6_000_000)),
        ]);
        let text = table(&rows);
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["wgpu", "matmul", "4", "3.000", "750.00", "6.000", "2.00", "75.0%"]);
        assert_eq!(lines[2], ["cpu", "add", "2", "1.000", "500.00", "3.000", "3.00", "25.0%"]);
        assert_eq!(table(&Table::new()), "");
    }
}
