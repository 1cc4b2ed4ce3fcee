//! i64 on a device that computes in 32 bits: operations that add up or multiply many numbers are done once more in f32, and a
//! result that does not fit is an error at the next read. Operations on one element at a time compare with an estimate in their own kernels.

use crate::gpu::{Gpu, Temp, target};
use crate::stream::{Call, Grid, Params};
use crate::variant::variant;
use crate::{copy, matmul, reduce, windows};
use orkest_core::op::{Cumulative, Reduce, Window};
use orkest_core::{DType, DimSet, Output, Result, View};
use smallvec::smallvec;

/// Invocations per workgroup.
const WORKGROUP: usize = 256;

/// [`orkest_core::Op::Reduce`]
pub(crate) fn reduce(gpu: &Gpu, kind: Reduce, dims: DimSet, x: &View<'_>, y: &Output) -> Result<()> {
    reduce::reduce(gpu, kind, dims, x, y)?;
    let adds = match kind {
        Reduce::Sum => !counts(x, y),
        Reduce::Prod => x.dtype != DType::Bool,
        _ => false,
    };
    if adds && y.dtype == DType::I64 {
        return check(gpu, kind.name(), y, |y| reduce::reduce(gpu, kind, dims, x, y));
    }
    Ok(())
}

/// Small numbers, and so few of them that no sum gets anywhere near the limit: counting what is true.
fn counts(x: &View<'_>, y: &Output) -> bool {
    let largest = match x.dtype {
        DType::Bool => 1,
        DType::U8 => 255,
        _ => return false,
    };
    x.layout.numel() / y.layout.numel() * largest < 1 << 31
}

/// [`orkest_core::Op::Cumulative`]
pub(crate) fn cumulative(gpu: &Gpu, kind: Cumulative, dim: usize, x: &View<'_>, y: &Output) -> Result<()> {
    reduce::cumulative(gpu, kind, dim, x, y)?;
    if y.dtype == DType::I64 {
        let op = if kind == Cumulative::Sum { "cumsum" } else { "cumprod" };
        return check(gpu, op, y, |y| reduce::cumulative(gpu, kind, dim, x, y));
    }
    Ok(())
}

/// [`orkest_core::Op::Matmul`]
pub(crate) fn matmul(gpu: &Gpu, a: &View<'_>, b: &View<'_>, y: &Output) -> Result<()> {
    matmul::matmul(gpu, a, b, y)?;
    if y.dtype != DType::I64 {
        return Ok(());
    }
    check(gpu, "matmul", y, |y| {
        let (a, b) = (rounded(gpu, a)?, rounded(gpu, b)?);
        matmul::matmul(gpu, &a.view(), &b.view(), y)
    })
}

/// [`orkest_core::Op::Fold`]
pub(crate) fn fold(gpu: &Gpu, w: &Window, x: &View<'_>, y: &Output) -> Result<()> {
    windows::fold(gpu, w, x, y)?;
    if y.dtype == DType::I64 {
        return check(gpu, "fold", y, |y| windows::fold(gpu, w, &rounded(gpu, x)?.view(), y));
    }
    Ok(())
}

/// A tensor in f32.
fn rounded(gpu: &Gpu, x: &View<'_>) -> Result<Temp> {
    let temp = gpu.temp(*x.layout.shape(), DType::F32)?;
    copy::copy(gpu, x, &temp.output())?;
    Ok(temp)
}

/// Compares `y` with what `again` computes in f32.
fn check(gpu: &Gpu, op: &'static str, y: &Output, again: impl FnOnce(&Output) -> Result<()>) -> Result<()> {
    let rounded = gpu.temp(*y.layout.shape(), DType::F32)?;
    again(&rounded.output())?;
    debug_assert!(y.layout.is_contiguous(), "only elementwise operations write elsewhere");
    let n = y.layout.numel();
    gpu.dispatch(Call {
        op,
        file: "reduce/wrapped.wgsl",
        entry: "main",
        variant: variant![],
        constants: smallvec![("WORKGROUP", WORKGROUP as u32)],
        reads: &[target(y), rounded.memory()],
        writes: &[gpu.fault()],
        params: Params::new().usize(n).usize(y.layout.offset()).u32(gpu.site(op)),
        grid: Grid::linear(n.div_ceil(WORKGROUP)),
    })
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, crate::variant::Variant)> {
    vec![("reduce/wrapped.wgsl", variant![])]
}
