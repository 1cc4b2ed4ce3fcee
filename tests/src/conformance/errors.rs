//! Bad indices, memory in and out, and several threads at once.

use super::{Report, dtypes};
use orkest_core::{DType, Device, Error, Layout, Shape, Tensor, View};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a device does with bad indices, with bytes, and with threads.
pub fn errors(device: &Device) -> Report {
    let mut report = Report::default();
    for index in [3, -1, i64::from(i32::MAX)] {
        let bad = |name: &str, f: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
            let table = Tensor::zeros([3, 2], device);
            let index = Tensor::from_slice(&[0, index], 2, device);
            (format!("{name} with index {index}"), refuses(device, || f(&table, &index)))
        };
        let results = [
            bad("index_select", &|t, i| t.index_select(0, i)),
            bad("rows", &|t, i| t.rows(i)),
            bad("gather", &|t, i| t.gather(0, &i.reshape([2, 1]))),
            bad("scatter_add", &|t, i| {
                t.scatter_add(0, &i.reshape([2, 1]), &Tensor::ones([2, 1], t.device()))
            }),
            bad("index_add", &|t, i| t.index_add(0, i, &Tensor::ones([2, 2], t.device()))),
        ];
        for (what, result) in results {
            report.check(|| what, result);
        }
    }
    for dtype in dtypes(device) {
        let mut bytes: Vec<u8> = (0..40 * dtype.size())
            .map(|i| if dtype == DType::Bool { i as u8 % 2 } else { i as u8 % 64 })
            .collect();
        if dtype == DType::I64 && matches!(device.backend().upload(&bytes, dtype), Err(Error::Data(_))) {
            // A device may hold i64 in 32 bits, if it says so when a number does not fit.
            bytes = (0..40).flat_map(|i| (i64::from(i) - 20).to_le_bytes()).collect();
        }
        report
            .check(|| format!("bytes of {dtype} come back as they went"), round_trip(device, &bytes, dtype));
    }
    report.check(|| "threads share the device".into(), threads(device));
    report
}

/// The operation panics, or reading its result is an error, after which the device works again.
fn refuses(device: &Device, f: impl Fn() -> Tensor) -> Result<(), String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| f().to_bytes()));
    if matches!(outcome, Ok(Ok(_))) {
        return Err("no error was reported".into());
    }
    device.clear_error();
    match Tensor::ones(3, device).sum(0).item() {
        Ok(3.0) => Ok(()),
        other => Err(format!("after the error 1 + 1 + 1 is {other:?}")),
    }
}

fn round_trip(device: &Device, bytes: &[u8], dtype: DType) -> Result<(), String> {
    let backend = device.backend();
    let buffer = backend.upload(bytes, dtype).map_err(|e| e.to_string())?;
    let read = |layout: Layout| {
        backend.download(View { buffer: &buffer, layout: &layout, dtype }).map_err(|e| e.to_string())
    };
    if read(Layout::contiguous(Shape::new(&[8, 5])))? != bytes {
        return Err("they changed".into());
    }
    // A row-major part that does not begin at the start.
    let part = Layout::contiguous(Shape::new(&[8, 5])).slice(0, 3, 2, 1);
    if read(part)? != bytes[15 * dtype.size()..25 * dtype.size()] {
        return Err("a part of them is not the right part".into());
    }
    Ok(())
}

fn threads(device: &Device) -> Result<(), String> {
    let work = |n: usize| -> f64 {
        let mut x = Tensor::full([64, 64], n as f32 / 64.0, device);
        for _ in 0..20 {
            x = x.matmul(&Tensor::eye(64, device)) + Tensor::zeros([64], device);
        }
        x.sum(..).item().unwrap_or(f64::NAN)
    };
    let found: Vec<f64> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..8).map(|n| scope.spawn(move || work(n))).collect();
        handles.into_iter().map(|h| h.join().unwrap_or(f64::NAN)).collect()
    });
    let expected: Vec<f64> = (0..8).map(|n| f64::from(n) * 64.0).collect();
    if found == expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) }
}
