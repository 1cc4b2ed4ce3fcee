//! Attention on software adapters: block by block, as products of matrices and what lies between them.
//!
//! On a CPU the kernels for products are several times as fast as tiles in workgroup memory, whose barriers and copies cost more than
//! they save. The scores of a block are stored, those of no more than a block at a time.

use super::{Mask, Rest, dtypes};
use crate::element::Elem;
use crate::elementwise;
use crate::gpu::{Gpu, Temp, target};
use crate::matmul::{Factor, Product};
use crate::memory::Memory;
use crate::stream::{Call, Grid, Params};
use crate::variant::{Variant, variant};
use orkest_core::{DType, Output, Result, Shape, View};
use smallvec::smallvec;
use std::ops::Range;

/// Most scores of a block: what the caches hold.
const BLOCK: usize = 1 << 20;
/// Invocations that share a row of scores.
const LANES: usize = 8;

pub(super) fn supports(gpu: &Gpu, mask: bool, inputs: &[View<'_>]) -> bool {
    // A row is walked over three times.
    dtypes(mask, inputs) && 3 * inputs[1].layout.shape()[2].div_ceil(LANES) <= gpu.capabilities.rounds
}

/// A tensor `[b, h, rows, columns]`.
struct Operand<'a> {
    memory: &'a Memory,
    elem: Elem,
    offset: usize,
    strides: [isize; 4],
}

/// Part of the scores: heads, queries and keys. Either whole heads, or parts of one.
#[derive(Clone)]
struct Block {
    /// Batches, and heads of each of them.
    batch: [usize; 2],
    /// Where they begin.
    start: [usize; 2],
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Block {
    fn scores(&self) -> usize {
        self.batch[0] * self.batch[1] * self.queries.len() * self.keys.len()
    }
}

impl<'a> Operand<'a> {
    fn new(gpu: &Gpu, view: &'a View<'a>) -> Operand<'a> {
        let strides = view.layout.strides();
        Operand {
            memory: Memory::of(view.buffer),
            elem: gpu.elem(view.dtype),
            offset: view.layout.offset(),
            strides: [0, 1, 2, 3].map(|i| strides[i]),
        }
    }

    /// What is row-major.
    fn dense(memory: &'a Memory, elem: Elem, offset: usize, [h, rows, columns]: [usize; 3]) -> Operand<'a> {
        let strides = [h * rows * columns, rows * columns, columns, 1].map(|s| s as isize);
        Operand { memory, elem, offset, strides }
    }

    /// The rows of some heads.
    fn of(&self, block: &Block, rows: &Range<usize>) -> Operand<'a> {
        let start = [block.start[0], block.start[1], rows.start];
        let steps: isize = (0..3).map(|i| start[i] as isize * self.strides[i]).sum();
        Operand { offset: (self.offset as isize + steps) as usize, ..*self }
    }

    /// As a factor whose lines are the rows.
    fn rows(&self) -> Factor<'a> {
        Factor { memory: self.memory, elem: self.elem, offset: self.offset, strides: self.strides }
    }

    /// As a factor whose lines are the columns.
    fn columns(&self) -> Factor<'a> {
        let [b, h, row, column] = self.strides;
        Factor { memory: self.memory, elem: self.elem, offset: self.offset, strides: [b, h, column, row] }
    }
}

/// What an attention consists of.
struct Attention<'a> {
    gpu: &'a Gpu,
    op: &'static str,
    q: Operand<'a>,
    k: Operand<'a>,
    v: Operand<'a>,
    mask: Mask,
    causal: bool,
    scale: f64,
    /// `[b, h, t, s]`
    sizes: [usize; 4],
    /// Columns of q and k, and of v.
    d: usize,
    e: usize,
}

impl<'a> Attention<'a> {
    fn new(
        gpu: &'a Gpu,
        op: &'static str,
        scale: f64,
        causal: bool,
        mask: bool,
        inputs: &'a [View<'a>],
    ) -> Attention<'a> {
        let [q, k, v] = [&inputs[0], &inputs[1], &inputs[2]];
        let &[b, h, t, d] = &q.layout.shape()[..] else { unreachable!("core hands over four dimensions") };
        let (s, e) = (k.layout.shape()[2], v.layout.shape()[3]);
        Attention {
            gpu,
            op,
            q: Operand::new(gpu, q),
            k: Operand::new(gpu, k),
            v: Operand::new(gpu, v),
            mask: Mask::new(gpu, mask, inputs, [b, h, t, s]),
            causal,
            scale,
            sizes: [b, h, t, s],
            d,
            e,
        }
    }

    /// The number of a block's first head among all of them.
    fn head(&self, block: &Block) -> usize {
        block.start[0] * self.sizes[1] + block.start[1]
    }

    /// All scores by blocks. Where a head is too large, it is cut along its queries, or with `by_keys` along its keys.
    fn blocks(&self, by_keys: bool) -> Vec<Block> {
        let [b, h, t, s] = self.sizes;
        let heads = (BLOCK / (t * s)).max(1);
        let (batches, heads) = if heads >= h { (heads / h, h) } else { (1, heads) };
        let (queries, keys) = match (t * s > BLOCK, by_keys) {
            (false, _) => (t, s),
            (true, false) => ((BLOCK / s).max(1), s),
            (true, true) => (t, (BLOCK / t).max(1)),
        };
        let mut all = Vec::new();
        for (batch, head) in (0..b).step_by(batches).flat_map(|i| (0..h).step_by(heads).map(move |j| (i, j)))
        {
            for (query, key) in
                (0..t).step_by(queries).flat_map(|i| (0..s).step_by(keys).map(move |j| (i, j)))
            {
                all.push(Block {
                    batch: [batches.min(b - batch), heads.min(h - head)],
                    start: [batch, head],
                    queries: query..t.min(query + queries),
                    keys: key..s.min(key + keys),
                });
            }
        }
        all
    }

    /// Memory for the scores of any of these blocks.
    fn room(&self, blocks: &[&[Block]]) -> Result<Temp> {
        let most = blocks.iter().flat_map(|blocks| blocks.iter()).map(Block::scores).max().unwrap_or(1);
        self.gpu.temp(Shape::from(most), DType::F32)
    }

    /// The products of a block's rows of `left` with the rows of `right`: queries with keys.
    fn products(
        &self,
        block: &Block,
        left: &Operand<'_>,
        right: &Operand<'_>,
        k: usize,
        to: &Temp,
    ) -> Result<()> {
        Product {
            op: self.op,
            batch: block.batch,
            m: block.queries.len(),
            n: block.keys.len(),
            k,
            a: left.of(block, &block.queries).rows(),
            b: right.of(block, &block.keys).rows(),
            bias: None,
            activation: None,
            y: to.memory(),
            y_elem: Elem::F32,
            y_offset: 0,
        }
        .run(self.gpu)
    }

    /// Weights of a block times rows of `right`, to the rows of `y` (row-major in all) that belong to the lines of the weights.
    fn weighted(
        &self,
        block: &Block,
        weights: &Temp,
        transposed: bool,
        right: &Operand<'_>,
        n: usize,
        y: &Output,
    ) -> Result<()> {
        let sizes = [block.batch[1], block.queries.len(), block.keys.len()];
        let weights = Operand::dense(weights.memory(), Elem::F32, 0, sizes);
        let (mut lines, mut along, mut total, mut a) =
            (&block.queries, &block.keys, self.sizes[2], weights.rows());
        if transposed {
            (lines, along, total, a) = (along, lines, self.sizes[3], weights.columns());
        }
        Product {
            op: self.op,
            batch: block.batch,
            m: lines.len(),
            n,
            k: along.len(),
            a,
            b: right.of(block, along).columns(),
            bias: None,
            activation: None,
            y: target(y),
            y_elem: self.gpu.elem(y.dtype),
            y_offset: y.layout.offset() + (self.head(block) * total + lines.start) * n,
        }
        .run(self.gpu)
    }

    fn mask(&self) -> &Memory {
        self.mask.temp.as_ref().map_or(self.q.memory, Temp::memory)
    }

    fn variant(&self) -> Variant {
        variant![seen: self.mask.seen, MASK: self.mask.kind, CAUSAL: self.causal]
    }
}

/// [`orkest_core::Op::Attention`]
pub(super) fn attention(
    gpu: &Gpu,
    scale: f64,
    causal: bool,
    mask: bool,
    inputs: &[View<'_>],
    y: &Output,
    lse: &Output,
) -> Result<()> {
    let all = Attention::new(gpu, "attention", scale, causal, mask, inputs);
    let [_, h, t, s] = all.sizes;
    let blocks = all.blocks(false);
    let weights = all.room(&[&blocks])?;
    for block in &blocks {
        all.products(block, &all.q, &all.k, all.d, &weights)?;
        let rows = block.scores() / s;
        gpu.dispatch(Call {
            op: all.op,
            file: WEIGHTS,
            entry: "main",
            variant: all.variant(),
            constants: smallvec![("LANES", LANES as u32), ("WORKGROUP", LANES as u32)],
            reads: &[all.mask()],
            writes: &[weights.memory(), target(lse)],
            params: Params::new()
                .vec4(all.mask.strides)
                .usize(all.mask.offset)
                .usize(h)
                .usize(t)
                .usize(s)
                .f32(scale as f32)
                .usize(all.head(block))
                .usize(block.queries.start)
                .usize(block.queries.len())
                .usize(rows),
            grid: Grid::linear(rows),
        })?;
        all.weighted(block, &weights, false, &all.v, all.e, y)?;
    }
    Ok(())
}

/// [`orkest_core::Op::AttentionGrad`]
pub(super) fn attention_grad(
    gpu: &Gpu,
    scale: f64,
    causal: bool,
    mask: bool,
    inputs: &[View<'_>],
    [dq, dk, dv]: [&Output; 3],
) -> Result<()> {
    let all = Attention::new(gpu, "attention_grad", scale, causal, mask, inputs);
    let Rest { g, statistics } = Rest::new(gpu, mask, inputs)?;
    let [_, h, t, _] = all.sizes;
    let g = Operand::dense(g.memory(), gpu.elem(g.dtype), g.layout.offset(), [h, t, all.e]);
    let blocks = all.blocks(false);
    // What belongs to a key is summed up over all queries at once, so heads in parts are computed once more, cut the other way.
    let whole = blocks[0].queries.len() == t;
    let by_keys = if whole { Vec::new() } else { all.blocks(true) };
    let (weights, changes) = (all.room(&[&blocks, &by_keys])?, all.room(&[&blocks, &by_keys])?);
    // The weights of a block and the gradients of its scores.
    let compute = |block: &Block| {
        all.products(block, &all.q, &all.k, all.d, &weights)?;
        all.products(block, &g, &all.v, all.e, &changes)?;
        let n = block.scores();
        let (constants, grid) = elementwise::share(gpu, n);
        gpu.dispatch(Call {
            op: all.op,
            file: WEIGHTS_GRAD,
            entry: "main",
            variant: all.variant(),
            constants,
            reads: &[all.mask(), statistics.memory()],
            writes: &[weights.memory(), changes.memory()],
            params: Params::new()
                .vec4(all.mask.strides)
                .usize(all.mask.offset)
                .usize(h)
                .usize(t)
                .f32(all.scale as f32)
                .usize(all.head(block))
                .usize(block.queries.start)
                .usize(block.queries.len())
                .usize(block.keys.start)
                .usize(block.keys.len())
                .usize(n),
            grid,
        })
    };
    let of_keys = |block: &Block| {
        all.weighted(block, &changes, true, &all.q, all.d, dk)?;
        all.weighted(block, &weights, true, &g, all.e, dv)
    };
    for block in &blocks {
        compute(block)?;
        all.weighted(block, &changes, false, &all.k, all.d, dq)?;
        if whole {
            of_keys(block)?;
        }
    }
    for block in &by_keys {
        compute(block)?;
        of_keys(block)?;
    }
    Ok(())
}

const WEIGHTS: &str = "attention/weights.wgsl";
const WEIGHTS_GRAD: &str = "attention/weights_grad.wgsl";

/// The variants that tests check without a device.
#[cfg(test)]
pub(super) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = Vec::new();
    for elem in Elem::ALL.into_iter().filter(|e| e.is_float()) {
        for (seen, mask) in [(elem, 0), (Elem::Bool, 1), (elem, 2)] {
            for causal in [false, true] {
                let variant = variant![seen: seen, MASK: mask as u32, CAUSAL: causal];
                all.extend([WEIGHTS, WEIGHTS_GRAD].map(|file| (file, variant.clone())));
            }
        }
    }
    all
}
