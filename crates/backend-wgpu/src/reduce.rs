//! Reductions, positions of extremes, running sums and products.

use crate::copy;
use crate::element::Elem;
use crate::gpu::{Gpu, Temp, strided, target};
use crate::memory::Memory;
use crate::stream::{Call, Grid, Params};
use crate::variant::{Value, Variant, shuffles, variant};
use orkest_core::DimSet;
use orkest_core::op::{ArgReduce, Cumulative, Reduce};
use orkest_core::{DType, Layout, Output, Result, Shape, View};
use smallvec::{SmallVec, smallvec};

/// Most invocations of a workgroup.
const WORKGROUP: usize = 256;
/// Workgroups that keep a large device busy; with fewer outputs, long reductions are split.
const BUSY: usize = 1024;
/// Elements per invocation under which splitting does not pay.
const LEAST_WORK: usize = 16;

/// The dimensions that stay and those that are reduced, each collapsed to four.
struct Sides {
    shape: [u32; 4],
    strides: [u32; 4],
    inner_shape: [u32; 4],
    inner_strides: [u32; 4],
    offset: u32,
    outputs: usize,
    n: usize,
    /// The reduced elements of one output have one stride.
    flat: bool,
    /// Neighbouring outputs lie closer together than the elements of one.
    columns: bool,
}

/// The layout of some dimensions of another.
fn part(layout: &Layout, keep: impl Fn(usize) -> bool) -> Layout {
    let dims: SmallVec<[usize; 8]> = (0..layout.rank()).filter(|&d| keep(d)).collect();
    let sizes: SmallVec<[usize; 8]> = dims.iter().map(|&d| layout.shape()[d]).collect();
    let strides: SmallVec<[isize; 8]> = dims.iter().map(|&d| layout.strides()[d]).collect();
    Layout::new(Shape::new(&sizes), &strides, layout.offset())
}

/// `None` if a side has more than four dimensions.
fn sides(layout: &Layout, dims: DimSet) -> Option<Sides> {
    let outer = part(layout, |d| !dims.contains(d)).collapse();
    let inner = part(layout, |d| dims.contains(d)).collapse();
    let (a, b) = (strided([&outer])?, strided([&inner])?);
    let closest = inner.strides().iter().map(|s| s.unsigned_abs()).min();
    let neighbour = outer.strides().last().map_or(0, |s| s.unsigned_abs());
    Some(Sides {
        shape: a.shape,
        strides: a.strides[0],
        inner_shape: b.shape,
        inner_strides: b.strides[0],
        offset: a.offsets[0],
        outputs: outer.numel(),
        n: inner.numel(),
        flat: inner.rank() <= 1,
        columns: neighbour > 0 && closest.is_some_and(|c| neighbour < c),
    })
}

/// How the work of a reduction is shared out.
#[derive(Clone, Copy)]
struct Shares {
    workgroup: usize,
    lanes: usize,
    splits: usize,
    chunk: usize,
    grid: Grid,
}

/// Shares for `outputs` results of `n` elements each.
fn shares(gpu: &Gpu, outputs: usize, n: usize, columns: bool) -> Shares {
    if gpu.capabilities.software {
        return software_shares(outputs, n, columns, gpu.capabilities.rounds);
    }
    let most =
        if columns { (WORKGROUP / outputs.next_power_of_two().clamp(8, 64)).max(1) } else { WORKGROUP };
    let lanes = n.div_ceil(4).next_power_of_two().min(most);
    // Small grids of large workgroups leave a device idle; few outputs need no 256 invocations.
    let workgroup = (lanes * outputs.next_power_of_two()).clamp(lanes.max(32), WORKGROUP);
    let blocks = outputs.div_ceil(workgroup / lanes);
    let splits = BUSY.div_ceil(blocks).min(n / (lanes * LEAST_WORK)).max(1);
    let chunk = n.div_ceil(splits);
    let splits = n.div_ceil(chunk);
    Shares { workgroup, lanes, splits, chunk, grid: Grid::linear(blocks * splits) }
}

/// The same for a CPU: workgroups of one vector, since barriers cost more than sums. All of them on one output, or where its elements are
/// few or those of neighbours lie side by side, one on each.
fn software_shares(outputs: usize, n: usize, columns: bool, rounds: usize) -> Shares {
    const VECTOR: usize = 8;
    const BUSY: usize = 32;
    let alone = columns && outputs >= VECTOR || n < 4 * VECTOR;
    let lanes = if alone { 1 } else { VECTOR };
    let blocks = outputs.div_ceil(VECTOR / lanes);
    let splits = BUSY.div_ceil(blocks).min(n / (64 * LEAST_WORK)).max(n.div_ceil(lanes * rounds)).max(1);
    let chunk = n.div_ceil(splits);
    let splits = n.div_ceil(chunk);
    Shares { workgroup: VECTOR, lanes, splits, chunk, grid: Grid::linear(blocks * splits) }
}

fn kind_code(kind: Reduce) -> u32 {
    match kind {
        Reduce::Sum => 0,
        Reduce::Mean => 1,
        Reduce::Prod => 2,
        Reduce::Max => 3,
        Reduce::Min => 4,
        Reduce::Any => 5,
        Reduce::All => 6,
    }
}

/// What changes nothing, as the bits of a word.
fn neutral(kind: Reduce, float: bool) -> u32 {
    match kind {
        Reduce::Sum | Reduce::Mean | Reduce::Any => 0,
        Reduce::Prod if float => 1.0f32.to_bits(),
        Reduce::Prod | Reduce::All => 1,
        Reduce::Max if float => f32::NEG_INFINITY.to_bits(),
        Reduce::Max => i32::MIN as u32,
        Reduce::Min if float => f32::INFINITY.to_bits(),
        Reduce::Min => i32::MAX as u32,
    }
}

fn reduce_variant(kind: Reduce, src: Elem, dst: Elem, columns: bool, flat: bool) -> Variant {
    variant![
        src: src,
        num: Value::Computed(src),
        acc: Value::Computed(dst),
        dst: dst,
        KIND: kind_code(kind),
        IS_FLOAT: src.is_float(),
        COLUMNS: columns,
        FLAT: flat,
    ]
}

/// The dtype that partial results have.
fn partial_dtype(dtype: DType) -> DType {
    if dtype.is_float() { DType::F32 } else { DType::I32 }
}

fn as_output(temp: &Temp) -> Output {
    Output { layout: temp.layout, dtype: temp.dtype, buffer: Some(temp.buffer.clone()) }
}

/// [`orkest_core::Op::Reduce`]
pub(crate) fn reduce(gpu: &Gpu, kind: Reduce, dims: DimSet, x: &View<'_>, y: &Output) -> Result<()> {
    let Some(sides) = sides(x.layout, dims) else {
        return reduce(gpu, kind, dims, &gpu.contiguous(x)?.view(), y);
    };
    let shares = shares(gpu, sides.outputs, sides.n, sides.columns);
    if shares.splits == 1 {
        return launch(gpu, kind, &sides, shares, sides.n, x, y);
    }
    let partial = gpu.temp(Shape::new(&[sides.outputs, shares.splits]), partial_dtype(y.dtype))?;
    let first = if kind == Reduce::Mean { Reduce::Sum } else { kind };
    launch(gpu, first, &sides, shares, 1, x, &as_output(&partial))?;
    let rows = self::sides(&partial.layout, DimSet::one(1)).expect("two dimensions");
    let combine = Shares { splits: 1, chunk: rows.n, ..self::shares(gpu, rows.outputs, rows.n, false) };
    let blocks = rows.outputs.div_ceil(combine.workgroup / combine.lanes);
    let combine = Shares { grid: Grid::linear(blocks), ..combine };
    launch(gpu, kind, &rows, combine, sides.n, &partial.view(), y)
}

fn launch(
    gpu: &Gpu,
    kind: Reduce,
    sides: &Sides,
    shares: Shares,
    divisor: usize,
    x: &View<'_>,
    y: &Output,
) -> Result<()> {
    let (src, dst) = (gpu.elem(x.dtype), gpu.elem(y.dtype));
    gpu.dispatch(Call {
        op: kind.name(),
        file: "reduce/reduce.wgsl",
        entry: "main",
        variant: shuffles(
            reduce_variant(kind, src, dst, sides.columns, sides.flat),
            if sides.columns { 1 } else { gpu.capabilities.subgroup(shares.workgroup) },
        ),
        constants: smallvec![("WORKGROUP", shares.workgroup as u32), ("LANES", shares.lanes as u32)],
        reads: &[Memory::of(x.buffer)],
        writes: &[target(y)],
        params: Params::new()
            .vec4(sides.shape)
            .vec4(sides.strides)
            .vec4(sides.inner_shape)
            .vec4(sides.inner_strides)
            .usize(sides.outputs)
            .usize(sides.n)
            .usize(shares.splits)
            .usize(shares.chunk)
            .u32(sides.offset)
            .u32(neutral(kind, dst.is_float()))
            .f32(divisor as f32),
        grid: shares.grid,
    })
}

fn arg_variant(kind: ArgReduce, src: Elem, columns: bool, second: bool) -> Variant {
    variant![
        src: src,
        num: Value::Computed(src),
        IS_FLOAT: src.is_float(),
        SMALLEST: kind == ArgReduce::Min,
        COLUMNS: columns,
        SECOND: second,
    ]
}

/// [`orkest_core::Op::ArgReduce`]
pub(crate) fn arg_reduce(gpu: &Gpu, kind: ArgReduce, dim: usize, x: &View<'_>, y: &Output) -> Result<()> {
    let Some(sides) = sides(x.layout, DimSet::one(dim)) else {
        return arg_reduce(gpu, kind, dim, &gpu.contiguous(x)?.view(), y);
    };
    let launch = |columns, second, n, shares: Shares, candidates: &Memory, y: &Memory| {
        gpu.dispatch(Call {
            op: if kind == ArgReduce::Max { "argmax" } else { "argmin" },
            file: "reduce/arg.wgsl",
            entry: "main",
            variant: arg_variant(kind, gpu.elem(x.dtype), columns, second),
            constants: smallvec![("WORKGROUP", shares.workgroup as u32), ("LANES", shares.lanes as u32)],
            reads: &[Memory::of(x.buffer), candidates],
            writes: &[y],
            params: Params::new()
                .vec4(sides.shape)
                .vec4(sides.strides)
                .usize(sides.outputs)
                .usize(n)
                .usize(shares.splits)
                .usize(shares.chunk)
                .u32(sides.offset)
                .u32(sides.inner_strides[3]),
            grid: shares.grid,
        })
    };
    let first = shares(gpu, sides.outputs, sides.n, sides.columns);
    let memory = Memory::of(x.buffer);
    if first.splits == 1 {
        return launch(sides.columns, false, sides.n, first, memory, target(y));
    }
    let candidates = gpu.temp(Shape::new(&[sides.outputs, first.splits]), DType::I32)?;
    launch(sides.columns, false, sides.n, first, memory, candidates.memory())?;
    let second = shares(gpu, sides.outputs, first.splits, false);
    let blocks = sides.outputs.div_ceil(second.workgroup / second.lanes);
    let second = Shares { splits: 1, chunk: first.splits, grid: Grid::linear(blocks), ..second };
    launch(false, true, first.splits, second, candidates.memory(), target(y))
}

// ---- running reductions --------------------------------------------------------------------------------------------------

/// Elements per invocation of a block of `scan.wgsl`.
const PER_INVOCATION: usize = 8;

fn scan_variant(kind: Cumulative, src: Elem, dst: Elem, carry: bool) -> Variant {
    variant![src: src, acc: Value::Computed(dst), dst: dst, PROD: kind == Cumulative::Prod, CARRY: carry]
}

/// [`orkest_core::Op::Cumulative`]
pub(crate) fn cumulative(gpu: &Gpu, kind: Cumulative, dim: usize, x: &View<'_>, y: &Output) -> Result<()> {
    // The kernel computes in what the output computes in.
    let cast;
    let x = if gpu.elem(x.dtype).is_float() == gpu.elem(y.dtype).is_float() {
        gpu.contiguous(x)?
    } else {
        cast = gpu.temp(*x.layout.shape(), y.dtype)?;
        copy::copy(gpu, x, &as_output(&cast))?;
        cast
    };
    let shape = x.layout.shape();
    let inner: usize = shape[dim + 1..].iter().product();
    scan(gpu, kind, inner, shape[dim], &x, y)
}

fn scan(gpu: &Gpu, kind: Cumulative, inner: usize, n: usize, x: &Temp, y: &Output) -> Result<()> {
    let lines = x.layout.numel() / n;
    let op = if kind == Cumulative::Sum { "cumsum" } else { "cumprod" };
    let (src, dst) = (gpu.elem(x.dtype), gpu.elem(y.dtype));
    let launch = |entry, variant, workgroup: usize, blocks: usize, carries: &Memory, y: &Memory, grid| {
        gpu.dispatch(Call {
            op,
            file: "reduce/scan.wgsl",
            entry,
            variant,
            constants: smallvec![("WORKGROUP", workgroup as u32)],
            reads: &[x.memory(), carries],
            writes: &[y],
            params: Params::new().usize(lines).usize(n).usize(inner).usize(blocks).usize(x.layout.offset()),
            grid,
        })
    };
    if n <= 32 || (n <= 1024 && lines >= 4096) {
        let grid = Grid::linear(lines.div_ceil(64));
        return launch("lines", scan_variant(kind, src, dst, false), 64, 1, x.memory(), target(y), grid);
    }
    // On a CPU one vector, whose barriers are nothing.
    let [least, most] = if gpu.capabilities.software { [8, 8] } else { [32, WORKGROUP] };
    let workgroup = n.div_ceil(PER_INVOCATION).next_power_of_two().clamp(least, most);
    let blocks = n.div_ceil(workgroup * PER_INVOCATION);
    let grid = Grid::linear(lines * blocks);
    if blocks == 1 {
        let variant = scan_variant(kind, src, dst, false);
        return launch("blocks", variant, workgroup, 1, x.memory(), target(y), grid);
    }
    let dtype = partial_dtype(y.dtype);
    let totals = gpu.temp(Shape::new(&[lines, blocks]), dtype)?;
    let variant = scan_variant(kind, src, gpu.elem(dtype), false);
    launch("totals", variant, workgroup, blocks, x.memory(), totals.memory(), grid)?;
    let carries = gpu.temp(*totals.layout.shape(), dtype)?;
    scan(gpu, kind, 1, blocks, &totals, &as_output(&carries))?;
    launch("blocks", scan_variant(kind, src, dst, true), workgroup, blocks, carries.memory(), target(y), grid)
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = Vec::new();
    for src in Elem::ALL {
        for (columns, flat) in [(false, true), (false, false), (true, true), (true, false)] {
            for &kind in Reduce::ALL {
                let targets: &[Elem] = match kind {
                    Reduce::Any | Reduce::All => &[Elem::Bool, Elem::I32],
                    Reduce::Mean if !src.is_float() => &[],
                    _ if src.is_float() => &[src, Elem::F32],
                    // Sums and products are taken again in f32 to see whether they wrapped.
                    Reduce::Sum | Reduce::Prod => &[src, Elem::I32, Elem::F32],
                    _ => &[src, Elem::I32],
                };
                for &dst in targets {
                    // Only neighbours along the reduced dimension exchange values.
                    for subgroup in if columns { &[1][..] } else { &[1, 32] } {
                        let v = reduce_variant(kind, src, dst, columns, flat);
                        all.push(("reduce/reduce.wgsl", shuffles(v, *subgroup)));
                    }
                }
            }
            for kind in [ArgReduce::Max, ArgReduce::Min] {
                all.push(("reduce/arg.wgsl", arg_variant(kind, src, columns, flat)));
            }
        }
        for kind in [Cumulative::Sum, Cumulative::Prod] {
            for carry in [false, true] {
                let partial = if src.is_float() { Elem::F32 } else { Elem::I32 };
                for dst in [src, partial] {
                    all.push(("reduce/scan.wgsl", scan_variant(kind, src, dst, carry)));
                }
            }
        }
    }
    all
}
