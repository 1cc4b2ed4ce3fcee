//! Attention, forward and backward, without storing the scores.

mod blocks;

use crate::element::Elem;
use crate::gpu::{Gpu, Temp, target};
use crate::memory::Memory;
use crate::stream::{Call, Grid, Params};
use crate::variant::{Variant, variant};
use orkest_core::{DType, Layout, Output, Result, Shape, View};
use smallvec::smallvec;

/// Largest size of a query, key or value: accumulators of a row lie in registers.
const MOST_COLUMNS: usize = 128;

pub(crate) fn supports(gpu: &Gpu, mask: bool, inputs: &[View<'_>]) -> bool {
    let size = |v: &View<'_>| v.layout.shape()[3];
    if gpu.capabilities.software {
        return blocks::supports(gpu, mask, inputs);
    }
    // Four rows of the other side at a time, and vectors of four columns, in two loops over each of both sizes.
    let walked = inputs[..2].iter().map(|v| v.layout.shape()[2]).max().unwrap_or(0);
    let vectors = 8 * (chunks(size(&inputs[0])) + chunks(size(&inputs[2]))) as usize;
    if walked.div_ceil(4).saturating_mul(2 * vectors + 6) > gpu.capabilities.rounds {
        return false;
    }
    dtypes(mask, inputs) && size(&inputs[0]) <= MOST_COLUMNS && size(&inputs[2]) <= MOST_COLUMNS
}

/// Whether the operands have one dtype. A bool mask is the only other one.
fn dtypes(mask: bool, inputs: &[View<'_>]) -> bool {
    let dtype = inputs[0].dtype;
    let same = inputs[..3].iter().all(|v| v.dtype == dtype);
    dtype.is_float() && same && (!mask || inputs[3].dtype == DType::Bool || inputs[3].dtype == dtype)
}

/// What all kernels of an attention have in common.
struct Heads {
    q: Temp,
    k: Temp,
    v: Temp,
    mask: Option<Temp>,
    variant: Variant,
    params: Params,
    /// Batches times heads.
    count: usize,
    t: usize,
    s: usize,
}

impl Heads {
    fn new(gpu: &Gpu, scale: f64, causal: bool, mask: bool, inputs: &[View<'_>]) -> Result<Heads> {
        let [q, k, v] = [0, 1, 2].map(|i| with_dense_rows(gpu, &inputs[i]));
        let (q, k, v) = (q?, k?, v?);
        let &[b, h, t, d] = &q.layout.shape()[..] else { unreachable!("core hands over four dimensions") };
        let (s, e) = (k.layout.shape()[2], v.layout.shape()[3]);
        let elem = gpu.elem(q.dtype);
        let mask = Mask::new(gpu, mask, inputs, [b, h, t, s]);
        let params = Params::new()
            .vec4(row_strides(&q.layout))
            .vec4(row_strides(&k.layout))
            .vec4(row_strides(&v.layout))
            .vec4(mask.strides)
            .usize(mask.offset)
            .usize(h)
            .usize(t)
            .usize(s)
            .usize(d)
            .usize(e)
            .f32(scale as f32)
            .usize(b);
        let variant = variant_of(elem, mask.seen, mask.kind, causal, chunks(d), chunks(e));
        Ok(Heads { q, k, v, mask: mask.temp, variant, params, count: b * h, t, s })
    }

    fn mask(&self) -> &Memory {
        self.mask.as_ref().map_or(self.q.memory(), Temp::memory)
    }

    /// Launches a kernel: one workgroup per tile of `rows` rows of every head.
    fn dispatch(
        &self,
        gpu: &Gpu,
        kernel: Kernel,
        rows: usize,
        reads: &[&Memory],
        writes: &[&Memory],
        params: Params,
    ) -> Result<()> {
        gpu.dispatch(Call {
            op: kernel.op,
            file: kernel.file,
            entry: "main",
            variant: self.variant.clone(),
            constants: smallvec![("ROWS", TILE as u32), ("WORKGROUP", 2 * TILE as u32)],
            reads,
            writes,
            params,
            grid: Grid::linear(rows.div_ceil(TILE) * self.count),
        })
    }
}

/// A mask as kernels get it.
struct Mask {
    temp: Option<Temp>,
    seen: Elem,
    kind: u32,
    strides: [u32; 4],
    offset: usize,
}

impl Mask {
    /// `sizes` are those of the scores. Without a mask, one that no kernel reads.
    fn new(gpu: &Gpu, mask: bool, inputs: &[View<'_>], sizes: [usize; 4]) -> Mask {
        let view = if mask { &inputs[3] } else { &inputs[0] };
        let seen = gpu.elem(view.dtype);
        if !mask {
            return Mask { temp: None, seen, kind: 0, strides: [0; 4], offset: 0 };
        }
        let full = view.layout.broadcast_to(&Shape::from(sizes)).unwrap_or(*view.layout);
        Mask {
            temp: Some(Temp { buffer: view.buffer.clone(), layout: *view.layout, dtype: view.dtype }),
            seen,
            kind: if view.dtype == DType::Bool { 1 } else { 2 },
            strides: [0, 1, 2, 3].map(|i| full.strides()[i] as i32 as u32),
            offset: full.offset(),
        }
    }
}

/// Rows of a tile.
const TILE: usize = 32;
/// One computation by tiles in workgroup memory.
#[derive(Clone, Copy)]
struct Kernel {
    op: &'static str,
    file: &'static str,
}

const FORWARD: Kernel = Kernel { op: "attention", file: "attention/attention.wgsl" };
const QUERIES_GRAD: Kernel = Kernel { op: "attention_grad", file: "attention/queries_grad.wgsl" };
const KEYS_GRAD: Kernel = Kernel { op: "attention_grad", file: "attention/keys_grad.wgsl" };
const DELTA: &str = "attention/delta.wgsl";

/// Tiles of 32 columns; of these 1, 2 or 4, so that few programs are compiled.
fn chunks(columns: usize) -> u32 {
    columns.div_ceil(32).next_power_of_two() as u32
}

fn variant_of(elem: Elem, seen: Elem, mask: u32, causal: bool, d: u32, e: u32) -> Variant {
    variant![elem: elem, seen: seen, MASK: mask, CAUSAL: causal, D_CHUNKS: d, E_CHUNKS: e]
}

/// Batch, head and row strides, and the offset; what wraps around as unsigned is right all the same.
fn row_strides(layout: &Layout) -> [u32; 4] {
    let stride = |i: usize| layout.strides()[i] as i32 as u32;
    [stride(0), stride(1), stride(2), layout.offset() as u32]
}

/// The view as it is if its rows are contiguous, else a copy.
fn with_dense_rows(gpu: &Gpu, view: &View<'_>) -> Result<Temp> {
    if view.layout.strides()[3] == 1 || view.layout.shape()[3] == 1 {
        return Ok(Temp { buffer: view.buffer.clone(), layout: *view.layout, dtype: view.dtype });
    }
    gpu.contiguous(view)
}

/// [`orkest_core::Op::Attention`]
pub(crate) fn attention(
    gpu: &Gpu,
    scale: f64,
    causal: bool,
    mask: bool,
    inputs: &[View<'_>],
    y: &Output,
    lse: &Output,
) -> Result<()> {
    if gpu.capabilities.software {
        return blocks::attention(gpu, scale, causal, mask, inputs, y, lse);
    }
    let heads = Heads::new(gpu, scale, causal, mask, inputs)?;
    let reads = [heads.q.memory(), heads.k.memory(), heads.v.memory(), heads.mask()];
    heads.dispatch(gpu, FORWARD, heads.t, &reads, &[target(y), target(lse)], heads.params.clone())
}

/// [`orkest_core::Op::AttentionGrad`]
pub(crate) fn attention_grad(
    gpu: &Gpu,
    scale: f64,
    causal: bool,
    mask: bool,
    inputs: &[View<'_>],
    [dq, dk, dv]: [&Output; 3],
) -> Result<()> {
    if gpu.capabilities.software {
        return blocks::attention_grad(gpu, scale, causal, mask, inputs, [dq, dk, dv]);
    }
    let heads = Heads::new(gpu, scale, causal, mask, inputs)?;
    let Rest { g, statistics } = Rest::new(gpu, mask, inputs)?;
    let reads =
        [heads.q.memory(), heads.k.memory(), heads.v.memory(), heads.mask(), g.memory(), statistics.memory()];
    let params = heads.params.clone().usize(g.layout.offset());
    heads.dispatch(gpu, QUERIES_GRAD, heads.t, &reads, &[target(dq)], params.clone())?;
    heads.dispatch(gpu, KEYS_GRAD, heads.s, &reads, &[target(dk), target(dv)], params)
}

/// What a gradient is computed from beside the operands.
struct Rest {
    g: Temp,
    /// Log-sum-exp and delta of every row.
    statistics: Temp,
}

impl Rest {
    fn new(gpu: &Gpu, mask: bool, inputs: &[View<'_>]) -> Result<Rest> {
        const WORKGROUP: usize = 64;
        let rest = &inputs[3 + usize::from(mask)..];
        let (y, lse, g) = (gpu.contiguous(&rest[0])?, gpu.contiguous(&rest[1])?, gpu.contiguous(&rest[2])?);
        let rows = lse.layout.numel();
        let statistics = gpu.temp(Shape::from([rows, 2]), DType::F32)?;
        gpu.dispatch(Call {
            op: "attention_grad",
            file: DELTA,
            entry: "main",
            variant: variant![elem: gpu.elem(y.dtype)],
            constants: smallvec![("WORKGROUP", WORKGROUP as u32)],
            reads: &[y.memory(), g.memory(), lse.memory()],
            writes: &[statistics.memory()],
            params: Params::new()
                .usize(rows)
                .usize(y.layout.shape()[3])
                .usize(y.layout.offset())
                .usize(g.layout.offset())
                .usize(lse.layout.offset()),
            grid: Grid::linear(rows.div_ceil(WORKGROUP)),
        })?;
        Ok(Rest { g, statistics })
    }
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = Vec::new();
    for elem in Elem::ALL.into_iter().filter(|e| e.is_float()) {
        all.push((DELTA, variant![elem: elem]));
        for (seen, mask) in [(elem, 0), (Elem::Bool, 1), (elem, 2)] {
            for (d, e) in [(1, 1), (2, 2), (4, 4), (1, 4), (4, 1)] {
                let variant = variant_of(elem, seen, mask, mask == 0, d, e);
                all.extend([FORWARD, QUERIES_GRAD, KEYS_GRAD].map(|kernel| (kernel.file, variant.clone())));
            }
        }
    }
    all.extend(blocks::variants());
    all
}
