//! Attention, forward and backward, without storing the scores.

use crate::element::Elem;
use crate::gpu::{Gpu, Temp, target};
use crate::memory::Memory;
use crate::pipelines::Constants;
use crate::stream::{Call, Grid, Params};
use crate::variant::{Value, Variant, variant};
use orkest_core::{DType, Layout, Output, Result, Shape, View};
use smallvec::smallvec;

/// Largest size of a query, key or value: accumulators of a row lie in registers.
const MOST_COLUMNS: usize = 128;

pub(crate) fn supports(gpu: &Gpu, mask: bool, inputs: &[View<'_>]) -> bool {
    let dtype = inputs[0].dtype;
    let size = |v: &View<'_>| v.layout.shape()[3];
    // Four rows of the other side at a time, and vectors of four columns, in two loops over each of both sizes.
    let walked = inputs[..2].iter().map(|v| v.layout.shape()[2]).max().unwrap_or(0);
    let vectors = 8 * (chunks(size(&inputs[0])) + chunks(size(&inputs[2]))) as usize;
    if walked.div_ceil(4).saturating_mul(2 * vectors + 6) > gpu.capabilities.rounds {
        return false;
    }
    // A bool mask is the only other dtype.
    let same = inputs[..3].iter().all(|v| v.dtype == dtype)
        && (!mask || inputs[3].dtype == DType::Bool || inputs[3].dtype == dtype);
    dtype.is_float() && same && size(&inputs[0]) <= MOST_COLUMNS && size(&inputs[2]) <= MOST_COLUMNS
}

/// What all kernels of an attention have in common.
struct Heads {
    q: Temp,
    k: Temp,
    v: Temp,
    mask: Option<(Temp, Layout)>,
    variant: Variant,
    /// Rows of q and v fill the chunks of the variant.
    full: bool,
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
        let mask = mask.then(|| {
            let view = &inputs[3];
            let full = view.layout.broadcast_to(&Shape::from([b, h, t, s])).unwrap_or(*view.layout);
            let temp = Temp { buffer: view.buffer.clone(), layout: *view.layout, dtype: view.dtype };
            (temp, full)
        });
        let seen = mask.as_ref().map_or(elem, |(temp, _)| gpu.elem(temp.dtype));
        let (kind, strides, offset) = match &mask {
            None => (0, [0; 4], 0),
            Some((temp, full)) => {
                let strides = [0, 1, 2, 3].map(|i| full.strides()[i] as i32 as u32);
                (if temp.dtype == DType::Bool { 1 } else { 2 }, strides, full.offset())
            }
        };
        let params = Params::new()
            .vec4(row_strides(&q.layout))
            .vec4(row_strides(&k.layout))
            .vec4(row_strides(&v.layout))
            .vec4(strides)
            .usize(offset)
            .usize(h)
            .usize(t)
            .usize(s)
            .usize(d)
            .usize(e)
            .f32(scale as f32)
            .usize(b);
        let variant = variant_of(elem, seen, kind, causal, chunks(d), chunks(e));
        let full = [d, e].iter().all(|&columns| columns == 32 * chunks(columns) as usize);
        Ok(Heads { q, k, v, mask, variant, full, params, count: b * h, t, s })
    }

    fn mask(&self) -> &Memory {
        self.mask.as_ref().map_or(self.q.memory(), |(temp, _)| temp.memory())
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
        let mut variant = self.variant.clone();
        let (file, tile, constants): (_, _, Constants) = if gpu.capabilities.software {
            variant.push(("FULL", Value::Bool(self.full)));
            (kernel.lanes, LANES, smallvec![("WORKGROUP", LANES as u32)])
        } else {
            (kernel.tiles, TILE, smallvec![("ROWS", TILE as u32), ("WORKGROUP", 2 * TILE as u32)])
        };
        gpu.dispatch(Call {
            op: kernel.op,
            file,
            entry: "main",
            variant,
            constants,
            reads,
            writes,
            params,
            grid: Grid::linear(rows.div_ceil(tile) * self.count),
        })
    }
}

/// Rows of a tile.
const TILE: usize = 32;
/// Rows of a workgroup without tiles: a vector of a CPU.
const LANES: usize = 8;

/// One computation, by tiles in workgroup memory, or a row per invocation: on a CPU barriers and copies cost more than they save.
#[derive(Clone, Copy)]
struct Kernel {
    op: &'static str,
    tiles: &'static str,
    lanes: &'static str,
}

const FORWARD: Kernel =
    Kernel { op: "attention", tiles: "attention/attention.wgsl", lanes: "attention/lanes.wgsl" };
const QUERIES_GRAD: Kernel = Kernel {
    op: "attention_grad",
    tiles: "attention/queries_grad.wgsl",
    lanes: "attention/lanes_queries_grad.wgsl",
};
const KEYS_GRAD: Kernel = Kernel {
    op: "attention_grad",
    tiles: "attention/keys_grad.wgsl",
    lanes: "attention/lanes_keys_grad.wgsl",
};
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
    const WORKGROUP: usize = 64;
    let heads = Heads::new(gpu, scale, causal, mask, inputs)?;
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
    let reads =
        [heads.q.memory(), heads.k.memory(), heads.v.memory(), heads.mask(), g.memory(), statistics.memory()];
    let params = heads.params.clone().usize(g.layout.offset());
    heads.dispatch(gpu, QUERIES_GRAD, heads.t, &reads, &[target(dq)], params.clone())?;
    heads.dispatch(gpu, KEYS_GRAD, heads.s, &reads, &[target(dk), target(dv)], params)
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = Vec::new();
    for elem in Elem::ALL.into_iter().filter(|e| e.is_float()) {
        all.push((DELTA, variant![elem: elem]));
        for (seen, mask) in [(elem, 0), (Elem::Bool, 1), (elem, 2)] {
            for (d, e) in [(1, 1), (2, 2), (4, 4), (1, 4), (4, 1)] {
                let causal = mask == 0;
                for kernel in [FORWARD, QUERIES_GRAD, KEYS_GRAD] {
                    let variant = variant_of(elem, seen, mask, causal, d, e);
                    for full in [false, true] {
                        let mut variant = variant.clone();
                        variant.push(("FULL", Value::Bool(full)));
                        all.push((kernel.lanes, variant));
                    }
                    all.push((kernel.tiles, variant));
                }
            }
        }
    }
    all
}
