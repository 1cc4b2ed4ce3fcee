//! Gather, scatter and their kin.

use crate::copy;
use crate::gpu::{Gpu, Temp, strided, target};
use crate::memory::Memory;
use crate::sort::{self, without};
use crate::stream::{Call, Grid, Params};
use crate::variant::{Value, variant};
use orkest_core::{DType, Layout, Output, Result, Shape, View};
use smallvec::smallvec;

/// Invocations per workgroup.
const WORKGROUP: usize = 256;
/// Indices per lane up to which one invocation per lane is fast enough on any device.
const SHORT: usize = 64;

/// The part of a tensor along the indexed dimension that a kernel gets to see.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) first: usize,
    /// Of the whole tensor.
    pub(crate) size: usize,
}

/// The dimension that indices are about, and which part of it the tensor is, if it is not all of one.
#[derive(Clone, Copy)]
pub(crate) struct Axis {
    pub(crate) dim: usize,
    pub(crate) part: Option<Rows>,
}

impl Axis {
    /// The part, of a tensor with `size` positions along the dimension.
    fn rows(self, size: usize) -> Rows {
        self.part.unwrap_or(Rows { first: 0, size })
    }
}

impl From<usize> for Axis {
    fn from(dim: usize) -> Axis {
        Axis { dim, part: None }
    }
}

/// A vector's layout expanded to `shape`, so that it runs along `dim`.
fn along(vector: &Layout, shape: &Shape, dim: usize) -> Layout {
    let mut strides = [0; 8];
    strides[dim] = vector.strides()[0];
    Layout::new(*shape, &strides[..shape.rank()], vector.offset())
}

/// A layout limited to what an index of `shape` can reach along the other dimensions.
fn within(layout: &Layout, shape: &Shape, dim: usize) -> Layout {
    (0..shape.rank()).filter(|&d| d != dim).fold(*layout, |l, d| l.slice(d, 0, shape[d], 1))
}

/// [`orkest_core::Op::Gather`]
pub(crate) fn gather(gpu: &Gpu, axis: Axis, x: &View<'_>, index: &View<'_>, y: &Output) -> Result<()> {
    take(gpu, "gather", axis, x, index, y)
}

/// [`orkest_core::Op::IndexSelect`]
pub(crate) fn index_select(gpu: &Gpu, axis: Axis, x: &View<'_>, index: &View<'_>, y: &Output) -> Result<()> {
    if let Some(row) = wide_rows(gpu, axis.dim, x) {
        return select_rows(gpu, axis, row, x, index, y);
    }
    let layout = along(index.layout, y.layout.shape(), axis.dim);
    take(gpu, "index_select", axis, x, &View { layout: &layout, ..*index }, y)
}

/// How many times 16 bytes a slice of a row-major tensor along `dim` has, if that comes out even.
fn wide_rows(gpu: &Gpu, dim: usize, x: &View<'_>) -> Option<usize> {
    let size = gpu.elem(x.dtype).size();
    let bytes = x.layout.shape()[dim + 1..].iter().product::<usize>() * size;
    let even = bytes.is_multiple_of(16) && (x.layout.offset() * size).is_multiple_of(16);
    (even && x.layout.is_contiguous()).then_some(bytes / 16)
}

fn select_rows(gpu: &Gpu, axis: Axis, row: usize, x: &View<'_>, index: &View<'_>, y: &Output) -> Result<()> {
    let (count, bytes) = (x.layout.shape()[axis.dim], gpu.elem(x.dtype).size());
    let Rows { first, size } = axis.rows(count);
    let n = y.layout.numel() * bytes / 16;
    gpu.dispatch(Call {
        op: "index_select",
        file: "index/rows.wgsl",
        entry: "main",
        variant: variant![],
        constants: smallvec![("WORKGROUP", WORKGROUP as u32)],
        reads: &[Memory::of(x.buffer), Memory::of(index.buffer)],
        writes: &[target(y), gpu.fault()],
        params: Params::new()
            .usize(n)
            .usize(row)
            .usize(index.layout.numel())
            .usize(x.layout.offset() * bytes / 16)
            .usize(index.layout.offset())
            .i32(index.layout.strides()[0] as i32)
            .usize(size)
            .u32(gpu.site("index_select"))
            .usize(first)
            .usize(count),
        grid: Grid::linear(n.div_ceil(WORKGROUP)),
    })
}

fn take(gpu: &Gpu, op: &'static str, axis: Axis, x: &View<'_>, index: &View<'_>, y: &Output) -> Result<()> {
    let (dim, shape) = (axis.dim, *index.layout.shape());
    let reach = within(x.layout, &shape, dim);
    let mut strides = [0; 8];
    strides[..shape.rank()].copy_from_slice(reach.strides());
    strides[dim] = 0;
    let base = Layout::new(shape, &strides[..shape.rank()], reach.offset());
    let Some(s) = strided([index.layout, &base]) else {
        let x = gpu.contiguous(&View { layout: &reach, ..*x })?;
        let index = gpu.contiguous(index)?;
        return take(gpu, op, axis, &x.view(), &index.view(), y);
    };
    let (n, count) = (shape.numel(), reach.shape()[dim]);
    let Rows { first, size } = axis.rows(count);
    gpu.dispatch(Call {
        op,
        file: "index/gather.wgsl",
        entry: "main",
        variant: variant![elem: Value::Bits(gpu.elem(x.dtype))],
        constants: smallvec![("WORKGROUP", WORKGROUP as u32)],
        reads: &[Memory::of(x.buffer), Memory::of(index.buffer)],
        writes: &[target(y), gpu.fault()],
        params: Params::new()
            .vec4(s.shape)
            .vec4(s.strides[0])
            .vec4(s.strides[1])
            .usize(n)
            .u32(s.offsets[0])
            .u32(s.offsets[1])
            .i32(reach.strides()[dim] as i32)
            .usize(size)
            .u32(gpu.site(op))
            .usize(first)
            .usize(count),
        grid: Grid::linear(n.div_ceil(WORKGROUP)),
    })
}

/// [`orkest_core::Op::Scatter`]
pub(crate) fn scatter(
    gpu: &Gpu,
    axis: Axis,
    add: bool,
    index: &View<'_>,
    src: &View<'_>,
    y: &Output,
) -> Result<()> {
    let (dim, op) = (axis.dim, if add { "scatter_add" } else { "scatter" });
    let (lanes, n) = (index.layout.numel() / index.layout.shape()[dim], index.layout.shape()[dim]);
    if n > gpu.capabilities.rounds {
        return in_pieces(gpu, n, |start, len| {
            let piece = |layout: &Layout| layout.slice(dim, start, len, 1);
            let (index_part, src_part) = (piece(index.layout), piece(src.layout));
            let (index, src) = (View { layout: &index_part, ..*index }, View { layout: &src_part, ..*src });
            scatter(gpu, axis, add, &index, &src, y)
        });
    }
    if by_lane(gpu, add, lanes, n, y.dtype) {
        return put(gpu, Put { op, entry: "lanes", axis, add }, index, None, src, y);
    }
    let (sorted, order) = sorted(gpu, op, dim, index)?;
    put(gpu, Put { op, entry: "segments", axis, add }, &sorted.view(), Some(&order), src, y)
}

/// [`orkest_core::Op::IndexAdd`]
pub(crate) fn index_add(gpu: &Gpu, axis: Axis, index: &View<'_>, src: &View<'_>, y: &Output) -> Result<()> {
    let (dim, shape) = (axis.dim, src.layout.shape());
    let n = shape[dim];
    if n > gpu.capabilities.rounds {
        return in_pieces(gpu, n, |start, len| {
            let (index_part, src_part) =
                (index.layout.slice(0, start, len, 1), src.layout.slice(dim, start, len, 1));
            let (index, src) = (View { layout: &index_part, ..*index }, View { layout: &src_part, ..*src });
            index_add(gpu, axis, &index, &src, y)
        });
    }
    let spread = |index: &View<'_>, order: Option<&Temp>, entry| {
        let layout = along(index.layout, shape, dim);
        let put_at = Put { op: "index_add", entry, axis, add: true };
        put(gpu, put_at, &View { layout: &layout, ..*index }, order, src, y)
    };
    if by_lane(gpu, true, shape.numel() / n, n, y.dtype) {
        return spread(index, None, "lanes");
    }
    let (sorted, order) = sorted(gpu, "index_add", 0, index)?;
    spread(&sorted.view(), Some(&order), "segments")
}

/// Pieces of the indices one after the other, none longer than an invocation can walk over.
fn in_pieces(gpu: &Gpu, n: usize, run: impl Fn(usize, usize) -> Result<()>) -> Result<()> {
    let piece = gpu.capabilities.rounds;
    (0..n).step_by(piece).try_for_each(|start| run(start, piece.min(n - start)))
}

/// Whether one invocation per lane is the better way. Sums of f16 and bf16 must not be rounded at every step.
fn by_lane(gpu: &Gpu, add: bool, lanes: usize, n: usize, dtype: DType) -> bool {
    let exact = !add || !matches!(dtype, DType::F16 | DType::BF16);
    exact && (n <= SHORT || lanes >= 1 << 16 || (gpu.capabilities.software && lanes >= 16))
}

/// The index sorted along `dim`, and the positions that its entries come from.
fn sorted(gpu: &Gpu, op: &'static str, dim: usize, index: &View<'_>) -> Result<(Temp, Temp)> {
    let shape = *index.layout.shape();
    let (values, order) = (gpu.temp(shape, DType::I64)?, gpu.temp(shape, DType::I64)?);
    let output = |t: &Temp| Output { layout: t.layout, dtype: t.dtype, buffer: Some(t.buffer.clone()) };
    sort::sort(gpu, op, dim, false, index, &output(&values), &output(&order))?;
    Ok((values, order))
}

/// How something is put where indices say.
#[derive(Clone, Copy)]
struct Put {
    op: &'static str,
    /// One invocation per lane, or per segment of sorted indices.
    entry: &'static str,
    axis: Axis,
    add: bool,
}

fn put(
    gpu: &Gpu,
    how: Put,
    index: &View<'_>,
    order: Option<&Temp>,
    src: &View<'_>,
    y: &Output,
) -> Result<()> {
    let Put { op, entry, axis, add } = how;
    let dim = axis.dim;
    let shape = *index.layout.shape();
    let reach = within(&y.layout, &shape, dim);
    let layouts = [index.layout, src.layout, &reach].map(|l| without(l, dim));
    let Some(s) = strided(layouts.each_ref()) else {
        // More than four other dimensions: everything is made row-major, which leaves two.
        let temp = gpu.temp(*reach.shape(), y.dtype)?;
        let row_major = Output { layout: temp.layout, dtype: temp.dtype, buffer: Some(temp.buffer.clone()) };
        let target = y.buffer.as_ref().expect("outputs are allocated before anything runs");
        copy::copy(gpu, &View { buffer: target, layout: &reach, dtype: y.dtype }, &row_major)?;
        let order = order.map(|o| gpu.contiguous(&View { layout: index.layout, ..o.view() })).transpose()?;
        let (index, src) = (gpu.contiguous(index)?, gpu.contiguous(src)?);
        put(gpu, how, &index.view(), order.as_ref(), &src.view(), &row_major)?;
        let back = Output { layout: reach, dtype: y.dtype, buffer: y.buffer.clone() };
        return copy::copy(gpu, &temp.view(), &back);
    };
    let (n, count) = (shape[dim], reach.shape()[dim]);
    let Rows { first, size } = axis.rows(count);
    let lanes = shape.numel() / n;
    let invocations = if order.is_some() { lanes * n } else { lanes };
    gpu.dispatch(Call {
        op,
        file: "index/scatter.wgsl",
        entry,
        variant: variant![elem: gpu.elem(y.dtype), ADD: add, CHECK: add && y.dtype == DType::I64],
        constants: smallvec![("WORKGROUP", WORKGROUP as u32)],
        reads: &[
            Memory::of(index.buffer),
            Memory::of(src.buffer),
            order.map_or(Memory::of(index.buffer), Temp::memory),
        ],
        writes: &[target(y), gpu.fault()],
        params: Params::new()
            .vec4(s.shape)
            .vec4(s.strides[0])
            .vec4(s.strides[1])
            .vec4(s.strides[2])
            .usize(lanes)
            .usize(n)
            .u32(s.offsets[0])
            .u32(s.offsets[1])
            .u32(s.offsets[2])
            .i32(index.layout.strides()[dim] as i32)
            .i32(src.layout.strides()[dim] as i32)
            .i32(reach.strides()[dim] as i32)
            .usize(size)
            .u32(gpu.site(op))
            .usize(first)
            .usize(count),
        grid: Grid::linear(invocations.div_ceil(WORKGROUP)),
    })
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, crate::variant::Variant)> {
    let mut all = vec![("index/rows.wgsl", variant![])];
    for elem in crate::element::Elem::ALL {
        all.push(("index/gather.wgsl", variant![elem: Value::Bits(elem)]));
        for add in [false, true] {
            for check in [false, add] {
                all.push(("index/scatter.wgsl", variant![elem: elem, ADD: add, CHECK: check]));
            }
        }
    }
    all
}
