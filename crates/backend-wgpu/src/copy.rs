//! Copies and casts, fills, ranges.

use crate::element::{Elem, scalar_bits};
use crate::elementwise;
use crate::gpu::{Gpu, strided, target};
use crate::memory::Memory;
use crate::stream::{Call, Params};
use crate::variant::{Value, Variant, variant};
use orkest_core::{DType, Layout, Output, Result, Scalar, View};

/// The variant of `cast.wgsl` that turns elements stored as `from` into `to`.
fn casting(from: Elem, to: Elem) -> Variant {
    variant![
        src: from,
        dst: to,
        src_num: Value::Computed(from),
        dst_num: Value::Computed(to),
        TO_BOOL: to == Elem::Bool,
        TO_INT: from.is_float() && !to.is_float(),
    ]
}

/// [`orkest_core::Op::Copy`]
pub(crate) fn copy(gpu: &Gpu, x: &View<'_>, y: &Output) -> Result<()> {
    let (from, to) = (gpu.elem(x.dtype), gpu.elem(y.dtype));
    if from.is_float() && y.dtype == DType::I64 {
        let variant = variant![src: from];
        return elementwise::run_reporting(gpu, "copy", "elementwise/to_i64.wgsl", variant, [x], y, []);
    }
    if from != to {
        return elementwise::run(gpu, "copy", "elementwise/cast.wgsl", casting(from, to), [x], y, []);
    }
    let variant = variant![elem: Value::Bits(from)];
    match strided([&y.layout, x.layout]) {
        Some(_) => elementwise::run(gpu, "copy", "elementwise/copy.wgsl", variant, [x], y, []),
        None => copy_nd(gpu, variant, x, y),
    }
}

/// A copy between layouts that do not collapse to four dimensions: sizes and strides lie in memory.
fn copy_nd(gpu: &Gpu, variant: Variant, x: &View<'_>, y: &Output) -> Result<()> {
    let [from, to] = Layout::collapse_all([x.layout, &y.layout]);
    let mut words = Vec::with_capacity(3 * from.rank());
    for d in 0..from.rank() {
        words.extend([
            from.shape()[d] as u32,
            from.strides()[d] as i32 as u32,
            to.strides()[d] as i32 as u32,
        ]);
    }
    let words = gpu.words(&words)?;
    let n = from.numel();
    let (constants, grid) = elementwise::share(gpu, n);
    gpu.dispatch(Call {
        op: "copy",
        file: "elementwise/copy_nd.wgsl",
        entry: "main",
        variant,
        constants,
        reads: &[Memory::of(x.buffer), &words],
        writes: &[target(y)],
        params: Params::new().usize(n).usize(from.rank()).usize(from.offset()).usize(to.offset()),
        grid,
    })
}

/// [`orkest_core::Op::Fill`]
pub(crate) fn fill(gpu: &Gpu, value: Scalar, y: &Output) -> Result<()> {
    let elem = gpu.elem(y.dtype);
    let variant = variant![elem: elem, num: Value::Computed(elem)];
    elementwise::run(gpu, "fill", "elementwise/fill.wgsl", variant, [], y, [scalar_bits(value, elem)?])
}

/// [`orkest_core::Op::Arange`]
pub(crate) fn arange(gpu: &Gpu, start: Scalar, step: Scalar, y: &Output) -> Result<()> {
    let elem = gpu.elem(y.dtype);
    let n = y.layout.numel();
    let variant = variant![elem: elem, num: Value::Computed(elem)];
    let last = start.as_f64() + step.as_f64() * (n - 1) as f64;
    if elem.is_float()
        && let (Some(start), Some(step), Some(_)) = (whole(start.as_f64()), whole(step.as_f64()), whole(last))
    {
        return elementwise::run(gpu, "arange", "elementwise/arange.wgsl", variant, [], y, [start, step]);
    }
    if elem.is_float() {
        // start + i * step in f64: the device has none, and such ranges are made once.
        let values: Vec<f64> = (0..n).map(|i| start.as_f64() + i as f64 * step.as_f64()).collect();
        let bytes: Vec<u8> = orkest_core::with_dtype!(y.dtype, T => {
            values.iter().flat_map(|&v| bytemuck::bytes_of(&<T as orkest_core::Element>::from_f64(v)).to_vec()).collect()
        });
        let buffer = gpu.upload(&bytes, y.dtype)?;
        let layout = Layout::contiguous(*y.layout.shape());
        return copy(gpu, &View { buffer: &buffer, layout: &layout, dtype: y.dtype }, y);
    }
    let last = start.as_i64().wrapping_add(step.as_i64().wrapping_mul(n as i64 - 1));
    crate::element::narrow(last)?;
    let words = [crate::element::narrow(start.as_i64())? as u32, step.as_i64() as i32 as u32];
    elementwise::run(gpu, "arange", "elementwise/arange.wgsl", variant, [], y, words)
}

/// A whole number that f32 holds exactly, as the bits of an i32.
fn whole(value: f64) -> Option<u32> {
    (value.fract() == 0.0 && value.abs() <= f64::from(1 << 24)).then_some(value as i32 as u32)
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = Vec::new();
    for from in Elem::ALL {
        for to in Elem::ALL {
            for strided in [false, true] {
                let mut v = casting(from, to);
                v.push(("STRIDED", Value::Bool(strided)));
                all.push(("elementwise/cast.wgsl", v));
            }
        }
        for strided in [false, true].into_iter().filter(|_| from.is_float()) {
            all.push(("elementwise/to_i64.wgsl", variant![src: from, STRIDED: strided]));
        }
        all.push(("elementwise/copy_nd.wgsl", variant![elem: Value::Bits(from)]));
        for strided in [false, true] {
            let num = Value::Computed(from);
            all.push(("elementwise/copy.wgsl", variant![elem: Value::Bits(from), STRIDED: strided]));
            all.push(("elementwise/fill.wgsl", variant![elem: from, num: num, STRIDED: strided]));
            all.push(("elementwise/arange.wgsl", variant![elem: from, num: num, STRIDED: strided]));
        }
    }
    all
}
