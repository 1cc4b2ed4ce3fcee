//! Operations on tensors that are larger than what a kernel can bind: 128 MiB on software adapters and phones, 2 GiB elsewhere.
//!
//! Such an operation is done in pieces. Along a dimension that it treats slice by slice every tensor is cut, until the bytes that a
//! piece touches lie close enough together for a window of each buffer to be bound; then the same kernels run on every piece.
//! Lookups and scattered additions along the dimension that is too long see one window of the table after the other, and leave
//! alone what points elsewhere.

use crate::gpu::Gpu;
use crate::indexing::{self, Axis, Rows};
use crate::memory::Memory;
use orkest_core::op::{Binary, Reduce};
use orkest_core::{Buffer, DType, DimSet, Error, Layout, Op, Output, Result, Scalar, Shape, View};
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;

/// Where windows may start, on every device; a multiple of every element's size.
const ALIGN: usize = 256;

/// A way to take an operation apart: the dimension of every tensor along which it is cut, `None` for what all pieces need whole.
struct Cut {
    inputs: SmallVec<[Option<usize>; 8]>,
    outputs: SmallVec<[Option<usize>; 3]>,
}

/// Part of an operation.
struct Piece<'a> {
    inputs: SmallVec<[(Buffer, Layout, DType); 8]>,
    outputs: SmallVec<[(&'a Output, Layout); 3]>,
}

/// Whether some tensor is too large to be bound.
pub(crate) fn needed(gpu: &Gpu, inputs: &[View<'_>], outputs: &[Output]) -> bool {
    let large = |buffer: &Buffer| Memory::of(buffer).bound() > gpu.bindable;
    inputs.iter().any(|v| large(v.buffer)) || outputs.iter().filter_map(|o| o.buffer.as_ref()).any(large)
}

/// Whether a fused operation can be done in pieces; if not, the operations that it is made of can.
pub(crate) fn possible(op: &Op) -> bool {
    match op {
        Op::UnaryGrad(_) | Op::Dropout { .. } | Op::Linear { .. } | Op::Conv2d { .. } => true,
        Op::Softmax { .. } | Op::SoftmaxGrad { .. } | Op::LayerNorm { .. } | Op::RmsNorm { .. } => true,
        Op::LayerNormGrad { weight } | Op::RmsNormGrad { weight } => !weight,
        Op::CrossEntropy { .. } | Op::CrossEntropyGrad { .. } => true,
        Op::Attention { .. } | Op::AttentionGrad { .. } => true,
        Op::Custom(_) => true, // there is nothing else it could be made of
        _ => false,
    }
}

pub(crate) fn too_large(gpu: &Gpu, what: &str, bytes: u64) -> Error {
    Error::Device(format!(
        "{what} of {bytes} bytes is too large for {}, which binds at most {} bytes at once; split it",
        gpu.name, gpu.bindable
    ))
}

/// Does an operation piece by piece. All outputs have their memory.
pub(crate) fn execute(gpu: &Gpu, op: &Op, inputs: &[View<'_>], outputs: &[Output]) -> Result<()> {
    let whole = Cut { inputs: smallvec![None; inputs.len()], outputs: smallvec![None; outputs.len()] };
    let all = piece(&whole, inputs, outputs, 0, 0);
    if fits(gpu, op, &all, false) {
        return launch(gpu, op, &all);
    }
    // The first dimension along which pieces get small enough, if need be by copying what lies too far apart; else the first at all,
    // slice by slice.
    let cuts = cuts(op, inputs, outputs);
    let length = |cut: &Cut| {
        let input = cut.inputs.iter().zip(inputs).find_map(|(d, v)| d.map(|d| v.layout.shape()[d]));
        let output = || cut.outputs.iter().zip(outputs).find_map(|(d, o)| d.map(|d| o.layout.shape()[d]));
        input.or_else(output).unwrap_or(1)
    };
    let step = |cut: &Cut, copies| {
        let length = length(cut);
        let fits = |step| fits(gpu, op, &piece(cut, inputs, outputs, 0, step), copies);
        let mut step = length;
        while step > 1 && !fits(step) {
            step = step.div_ceil(2);
        }
        let step = aligned(op, outputs, length, step);
        (step < length && fits(step)).then_some((length, step))
    };
    let slices = || {
        let cut = cuts.iter().find(|cut| length(cut) > 1)?;
        let step = aligned(op, outputs, length(cut), 1);
        (step < length(cut)).then_some((cut, length(cut), step))
    };
    let small =
        |copies| cuts.iter().find_map(|cut| step(cut, copies).map(|(length, step)| (cut, length, step)));
    let mut chosen = small(false);
    if chosen.is_none()
        && let Some(rows) = rows(gpu, op, inputs, outputs)
    {
        return by_rows(gpu, op, &rows, inputs, &outputs[0]);
    }
    chosen = chosen.or_else(|| small(true)).or_else(slices);
    let Some((cut, length, step)) = chosen else {
        if let (&Op::Reduce(kind, dims), [x], [y]) = (op, inputs, outputs) {
            return in_stages(gpu, kind, dims, x, y);
        }
        let largest = |b: &Buffer| Memory::of(b).buffer().size();
        let buffers = inputs.iter().map(|v| v.buffer).chain(outputs.iter().filter_map(|o| o.buffer.as_ref()));
        return Err(too_large(
            gpu,
            &format!("{}: a tensor", op.name()),
            buffers.map(largest).max().unwrap_or(0),
        ));
    };
    for start in (0..length).step_by(step) {
        let part = piece(cut, inputs, outputs, start, step.min(length - start));
        let op = &advanced(op, outputs, length, start);
        if fits(gpu, op, &part, true) {
            launch(gpu, op, &part)?;
        } else {
            let (views, results) = (part.views(), part.results());
            execute(gpu, op, &views, &results)?;
        }
    }
    Ok(())
}

impl Piece<'_> {
    fn views(&self) -> SmallVec<[View<'_>; 8]> {
        self.inputs.iter().map(|(buffer, layout, dtype)| View { buffer, layout, dtype: *dtype }).collect()
    }

    fn results(&self) -> SmallVec<[Output; 3]> {
        let result = |(o, layout): &(&Output, Layout)| Output {
            layout: *layout,
            dtype: o.dtype,
            buffer: o.buffer.clone(),
        };
        self.outputs.iter().map(result).collect()
    }
}

/// `len` slices from `start` of everything that is cut.
fn piece<'a>(cut: &Cut, inputs: &[View<'_>], outputs: &'a [Output], start: usize, len: usize) -> Piece<'a> {
    let part = |layout: &Layout, dim: Option<usize>| dim.map_or(*layout, |d| layout.slice(d, start, len, 1));
    Piece {
        inputs: inputs
            .iter()
            .zip(&cut.inputs)
            .map(|(v, &d)| (v.buffer.clone(), part(v.layout, d), v.dtype))
            .collect(),
        outputs: outputs.iter().zip(&cut.outputs).map(|(o, &d)| (o, part(&o.layout, d))).collect(),
    }
}

/// The bytes that a layout touches, from where a window may start.
fn extent(gpu: &Gpu, buffer: &Buffer, layout: &Layout, dtype: DType) -> std::ops::Range<u64> {
    let size = gpu.elem(dtype).size();
    let (low, high) = layout.bounds().unwrap_or((0, 0));
    let end = ((high + 1) * size).next_multiple_of(16) as u64;
    (low * size / ALIGN * ALIGN) as u64..end.min(Memory::of(buffer).buffer().size())
}

/// Whether the bytes that a layout touches can be bound.
fn bindable(gpu: &Gpu, buffer: &Buffer, layout: &Layout, dtype: DType) -> bool {
    let bytes = extent(gpu, buffer, layout, dtype);
    Memory::of(buffer).bound() <= gpu.bindable || bytes.end - bytes.start <= gpu.bindable
}

/// Whether everything in a piece can be bound, inputs if need be as row-major copies.
fn fits(gpu: &Gpu, op: &Op, piece: &Piece<'_>, copies: bool) -> bool {
    let packed = |layout: &Layout, dtype| (layout.numel() * gpu.elem(dtype).size()) as u64 <= gpu.bindable;
    piece.inputs.iter().all(|(buffer, layout, dtype)| {
        bindable(gpu, buffer, layout, *dtype) || copies && packed(layout, *dtype)
    }) && piece.outputs.iter().all(|(o, layout)| {
        if writes_anywhere(op) { bindable(gpu, memory(o), layout, o.dtype) } else { packed(layout, o.dtype) }
    })
}

/// Whether the kernels of an operation write to any layout; the others write row-major tensors.
fn writes_anywhere(op: &Op) -> bool {
    matches!(
        op,
        Op::Copy
            | Op::Fill(_)
            | Op::Random { .. }
            | Op::Dropout { .. }
            | Op::Where
            | Op::Unary(_)
            | Op::UnaryGrad(_)
            | Op::Binary(_)
            | Op::BinaryScalar { .. }
            | Op::Compare(_)
            | Op::CompareScalar(..)
            | Op::Scatter { .. }
            | Op::IndexAdd { .. }
    )
}

fn memory(output: &Output) -> &Buffer {
    output.buffer.as_ref().expect("outputs are allocated before anything runs")
}

/// The same elements in a window, if their buffer is too large.
fn windowed(gpu: &Gpu, buffer: &Buffer, layout: &Layout, dtype: DType) -> (Buffer, Layout) {
    if Memory::of(buffer).bound() <= gpu.bindable {
        return (buffer.clone(), *layout);
    }
    let bytes = extent(gpu, buffer, layout, dtype);
    let first = bytes.start as usize / gpu.elem(dtype).size();
    let layout = Layout::new(*layout.shape(), layout.strides(), layout.offset() - first);
    (Arc::new(Memory::window(buffer, bytes)), layout)
}

/// Runs a piece that fits.
fn launch(gpu: &Gpu, op: &Op, piece: &Piece<'_>) -> Result<()> {
    let mut inputs: SmallVec<[(Buffer, Layout, DType); 8]> = SmallVec::new();
    for (buffer, layout, dtype) in &piece.inputs {
        let (buffer, layout) = if bindable(gpu, buffer, layout, *dtype) {
            windowed(gpu, buffer, layout, *dtype)
        } else {
            let copy = gpu.temp(*layout.shape(), *dtype)?;
            execute(gpu, &Op::Copy, &[View { buffer, layout, dtype: *dtype }], &[copy.output()])?;
            (copy.buffer, copy.layout)
        };
        inputs.push((buffer, layout, *dtype));
    }
    let views: SmallVec<[View<'_>; 8]> =
        inputs.iter().map(|(buffer, layout, dtype)| View { buffer, layout, dtype: *dtype }).collect();
    let direct = writes_anywhere(op);
    let mut results: SmallVec<[Output; 3]> = SmallVec::new();
    for (o, layout) in &piece.outputs {
        results.push(if direct {
            let (buffer, layout) = windowed(gpu, memory(o), layout, o.dtype);
            Output { layout, dtype: o.dtype, buffer: Some(buffer) }
        } else {
            gpu.temp(*layout.shape(), o.dtype)?.output()
        });
    }
    gpu.launch(op, &views, &results)?;
    if !direct {
        for (result, (o, layout)) in results.iter().zip(&piece.outputs) {
            let part = View { buffer: memory(result), layout: &result.layout, dtype: result.dtype };
            let place = Output { layout: *layout, dtype: o.dtype, buffer: o.buffer.clone() };
            execute(gpu, &Op::Copy, &[part], &[place])?;
        }
    }
    Ok(())
}

/// The ways to take an operation apart, best first.
fn cuts(op: &Op, inputs: &[View<'_>], outputs: &[Output]) -> Vec<Cut> {
    let Some(first) = outputs.first() else { return Vec::new() };
    let rank = first.layout.rank();
    // The dimension `d` of all tensors, and none of those in `whole`.
    let cut = |d: usize, whole: &[usize]| Cut {
        inputs: (0..inputs.len()).map(|i| (!whole.contains(&i)).then_some(d)).collect(),
        outputs: outputs.iter().map(|_| Some(d)).collect(),
    };
    let along =
        |dims: &mut dyn Iterator<Item = usize>, whole: &[usize]| dims.map(|d| cut(d, whole)).collect();
    let parameters: Vec<usize> = (1..inputs.len()).collect();
    match op {
        Op::Copy
        | Op::Fill(_)
        | Op::Unary(_)
        | Op::UnaryGrad(_)
        | Op::Binary(_)
        | Op::BinaryScalar { .. } => along(&mut (0..rank), &[]),
        Op::Compare(_) | Op::CompareScalar(..) | Op::Where => along(&mut (0..rank), &[]),
        // Counters run through the elements in order.
        Op::Random { .. } | Op::Dropout { .. } => {
            along(&mut (0..rank).find(|&d| first.layout.shape()[d] > 1).into_iter(), &[])
        }
        Op::Softmax { .. } | Op::SoftmaxGrad { .. } => along(&mut (0..rank - 1), &[]),
        Op::LayerNorm { .. } | Op::RmsNorm { .. } => along(&mut (0..rank - 1), &parameters),
        Op::LayerNormGrad { weight: false } | Op::RmsNormGrad { weight: false } => {
            along(&mut (0..rank - 1), &[])
        }
        Op::CrossEntropy { .. } | Op::CrossEntropyGrad { .. } => along(&mut (0..1), &[]),
        Op::Reduce(_, dims) => along(&mut (0..rank).filter(|&d| !dims.contains(d)), &[]),
        Op::ArgReduce(_, dim) | Op::Cumulative(_, dim) | Op::Sort { dim, .. } | Op::TopK { dim, .. } => {
            along(&mut (0..rank).filter(|d| d != dim), &[])
        }
        Op::Unfold(_) | Op::Fold(_) => along(&mut (0..1), &[]),
        Op::MaxPool(_) | Op::AvgPool(..) | Op::AvgPoolGrad(..) => along(&mut (0..2), &[]),
        Op::Conv2d { .. } => along(&mut (0..1), &parameters),
        Op::Attention { .. } | Op::AttentionGrad { .. } => along(&mut (0..2), &[]),
        Op::Matmul => {
            let columns = Cut { inputs: smallvec![None, Some(rank - 1)], outputs: smallvec![Some(rank - 1)] };
            let mut all: Vec<Cut> = along(&mut (0..rank - 2), &[]);
            all.extend([cut(rank - 2, &[1]), columns]);
            all
        }
        Op::Linear { .. } => {
            let mut all: Vec<Cut> = along(&mut (0..rank - 1), &parameters);
            let mut columns = cut(0, &[0]);
            columns.outputs[0] = Some(rank - 1);
            all.push(columns);
            all
        }
        Op::Gather { dim } => {
            let mut all: Vec<Cut> = along(&mut (0..rank).filter(|d| d != dim), &[]);
            all.push(cut(*dim, &[0]));
            all
        }
        Op::Scatter { dim, .. } => along(&mut (0..rank).filter(|d| d != dim), &[]),
        Op::IndexSelect { dim } => {
            let mut all: Vec<Cut> = along(&mut (0..rank).filter(|d| d != dim), &[1]);
            all.push(Cut { inputs: smallvec![None, Some(0)], outputs: smallvec![Some(*dim)] });
            all
        }
        Op::IndexAdd { dim } => along(&mut (0..rank).filter(|d| d != dim), &[0]),
        _ => Vec::new(),
    }
}

/// The step nearest to `step` for which every piece of random numbers starts with a new counter.
fn aligned(op: &Op, outputs: &[Output], length: usize, step: usize) -> usize {
    if !matches!(op, Op::Random { .. } | Op::Dropout { .. }) {
        return step;
    }
    let slice = outputs[0].layout.numel() / length;
    let least = [1, 2, 4].into_iter().find(|n| (n * slice).is_multiple_of(4)).unwrap_or(4);
    (step / least * least).max(least)
}

/// The operation for the piece that starts with this slice.
fn advanced(op: &Op, outputs: &[Output], length: usize, start: usize) -> Op {
    let counters = || (outputs[0].layout.numel() / length * start / 4) as u64;
    match *op {
        Op::Random { kind, seed, offset } => {
            Op::Random { kind, seed, offset: offset.wrapping_add(counters()) }
        }
        Op::Dropout { p, seed, offset } => Op::Dropout { p, seed, offset: offset.wrapping_add(counters()) },
        _ => op.clone(),
    }
}

/// A reduction of so many elements to so few that no other dimension helps: of parts first, then of the results.
fn in_stages(gpu: &Gpu, kind: Reduce, dims: DimSet, x: &View<'_>, y: &Output) -> Result<()> {
    let shape = x.layout.shape();
    let op = Op::Reduce(kind, dims);
    let dim = dims.iter().max_by_key(|&d| shape[d]).filter(|&d| shape[d] > 1);
    let Some(dim) = dim else {
        return Err(too_large(
            gpu,
            &format!("{}: a tensor", op.name()),
            Memory::of(x.buffer).buffer().size(),
        ));
    };
    // A mean is a sum first, so that parts of different sizes count for what they are.
    let stage = Op::Reduce(if kind == Reduce::Mean { Reduce::Sum } else { kind }, dims);
    let parts = 16.min(shape[dim]);
    let step = shape[dim].div_ceil(parts);
    let starts: Vec<usize> = (0..shape[dim]).step_by(step).collect();
    let mut sizes = y.layout.shape().to_vec();
    sizes[dim] = starts.len();
    let partial = gpu.temp(Shape::new(&sizes), y.dtype)?;
    for (i, &start) in starts.iter().enumerate() {
        let layout = x.layout.slice(dim, start, step.min(shape[dim] - start), 1);
        let result = gpu.temp(*y.layout.shape(), y.dtype)?;
        execute(gpu, &stage, &[View { layout: &layout, ..*x }], &[result.output()])?;
        let place = Output { layout: partial.layout.slice(dim, i, 1, 1), ..partial.output() };
        gpu.launch(&Op::Copy, &[result.view()], &[place])?;
    }
    let Reduce::Mean = kind else {
        return gpu.launch(&Op::Reduce(kind, DimSet::one(dim)), &[partial.view()], &[own(y)]);
    };
    let sum = gpu.temp(*y.layout.shape(), y.dtype)?;
    gpu.launch(&Op::Reduce(Reduce::Sum, DimSet::one(dim)), &[partial.view()], &[sum.output()])?;
    let scalar = Scalar::Float(x.layout.numel() as f64 / y.layout.numel() as f64);
    gpu.launch(&Op::BinaryScalar { op: Binary::Div, scalar, swapped: false }, &[sum.view()], &[own(y)])
}

fn own(y: &Output) -> Output {
    Output { layout: y.layout, dtype: y.dtype, buffer: y.buffer.clone() }
}

/// The tensor that an index points into, when that is too large, and how many of its slices can be bound at once.
struct Indexed {
    buffer: Buffer,
    layout: Layout,
    dtype: DType,
    dim: usize,
    step: usize,
    /// It is the output.
    written: bool,
}

/// Lookups and scattered writes along the dimension that is too long, if windows of whole slices and all else can be bound.
fn rows(gpu: &Gpu, op: &Op, inputs: &[View<'_>], outputs: &[Output]) -> Option<Indexed> {
    let (dim, written) = match *op {
        Op::Gather { dim } | Op::IndexSelect { dim } => (dim, false),
        Op::Scatter { dim, .. } | Op::IndexAdd { dim } => (dim, true),
        _ => return None,
    };
    let (x, y) = (&inputs[0], &outputs[0]);
    let (buffer, layout, dtype) =
        if written { (memory(y), &y.layout, y.dtype) } else { (x.buffer, x.layout, x.dtype) };
    let others = &inputs[usize::from(!written)..];
    let others_fit = others.iter().all(|v| bindable(gpu, v.buffer, v.layout, v.dtype))
        && (written || bindable(gpu, memory(y), &y.layout, y.dtype));
    let window = |step| {
        let bytes = extent(gpu, buffer, &layout.slice(dim, 0, step, 1), dtype);
        bytes.end - bytes.start + ALIGN as u64
    };
    let mut step = layout.shape()[dim];
    while step > 1 && window(step) > gpu.bindable {
        step = step.div_ceil(2);
    }
    let fits = others_fit && window(step) <= gpu.bindable;
    fits.then(|| Indexed { buffer: buffer.clone(), layout: *layout, dtype, dim, step, written })
}

/// One window of the table after the other. What does not point into it is left alone, so that everything has its value in the end.
fn by_rows(gpu: &Gpu, op: &Op, table: &Indexed, inputs: &[View<'_>], y: &Output) -> Result<()> {
    let others: SmallVec<[(Buffer, Layout, DType); 2]> = (inputs[usize::from(!table.written)..].iter())
        .map(|v| {
            let (buffer, layout) = windowed(gpu, v.buffer, v.layout, v.dtype);
            (buffer, layout, v.dtype)
        })
        .collect();
    let view = |i: usize| View { buffer: &others[i].0, layout: &others[i].1, dtype: others[i].2 };
    let size = table.layout.shape()[table.dim];
    for first in (0..size).step_by(table.step) {
        let slice = table.layout.slice(table.dim, first, table.step.min(size - first), 1);
        let (buffer, layout) = windowed(gpu, &table.buffer, &slice, table.dtype);
        let axis = Axis { dim: table.dim, part: Some(Rows { first, size }) };
        let x = View { buffer: &buffer, layout: &layout, dtype: table.dtype };
        let target = Output { layout, dtype: table.dtype, buffer: Some(buffer.clone()) };
        match *op {
            Op::Gather { .. } => indexing::gather(gpu, axis, &x, &view(0), y)?,
            Op::IndexSelect { .. } => indexing::index_select(gpu, axis, &x, &view(0), y)?,
            Op::Scatter { add, .. } => indexing::scatter(gpu, axis, add, &view(0), &view(1), &target)?,
            Op::IndexAdd { .. } => indexing::index_add(gpu, axis, &view(0), &view(1), &target)?,
            _ => unreachable!("only these have an index"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::Fusing;
    use crate::gpu::tests::there;
    use orkest_core::{Backend, Device, Generator, Tensor, with_generator};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Mutex, PoisonError};

    /// What a kernel may bind here: an eighth of the tensors below and less.
    const BINDABLE: u64 = 8192;

    orkest_core::register_backend!("wgpu-small-bindings", open_small);

    fn open_small(index: usize) -> Result<Box<dyn Backend>> {
        Ok(Box::new(Gpu::open_with(index, BINDABLE, Fusing::FromTime(1))?))
    }

    fn normal(shape: &[usize], seed: u64, device: &Device) -> Tensor {
        with_generator(&mut Generator::new(seed), || Tensor::randn(shape, device))
    }

    /// The device is one for all tests here, and so is the error that waits for its next read.
    static TURN: Mutex<()> = Mutex::new(());

    /// Computes the same on both devices and compares all that comes out.
    fn compare(what: &str, tolerance: f64, f: impl Fn(&Device) -> Vec<Tensor>) {
        let Some(device) = there(Device::open("wgpu-small-bindings", 0)) else { return };
        let wanted = f(&Device::reference());
        for (i, (got, wanted)) in f(&device).iter().zip(&wanted).enumerate() {
            assert_eq!((got.shape(), got.dtype()), (wanted.shape(), wanted.dtype()), "{what}, result {i}");
            let [got, wanted] = [got, wanted]
                .map(|t| t.to(&Device::reference()).to_dtype(DType::F64).to_vec::<f64>().unwrap());
            for (at, (g, w)) in got.iter().zip(&wanted).enumerate() {
                assert!(
                    (g - w).abs() <= tolerance * w.abs().max(1.0),
                    "{what}, result {i}[{at}]: {g}, not {w}"
                );
            }
        }
    }

    #[test]
    fn elementwise_operations_copies_and_random_numbers_are_done_in_pieces() {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        compare("elementwise", 1e-5, |device| {
            let (x, row) = (normal(&[200, 64], 1, device), normal(&[64], 2, device));
            let mut filled = x.clone();
            filled.slice_assign(3..193, &Tensor::full([190, 64], 7.0f32, device));
            let drawn = with_generator(&mut Generator::new(3), || x.dropout(0.3, true));
            vec![
                &x + &row,
                x.transpose(0, 1).exp(),
                x.gt(0.0),
                x.gt(0.0).where_(&x, &(&x * 2.0)),
                x.to_dtype(DType::F16).to_dtype(DType::I64),
                Tensor::cat(&[&x, &x], 1),
                x.reshape([50, 4, 64]).permute([1, 2, 0]).contiguous(),
                drawn,
            ]
        });
    }

    #[test]
    fn rows_and_reductions_are_done_in_pieces() {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        compare("rows", 2e-5, |device| {
            let x = normal(&[300, 40], 1, device).requires_grad_(true);
            let weight = normal(&[40], 2, device).requires_grad_(true);
            let target = (normal(&[300], 3, device).abs() * 10.0).to_dtype(DType::I64);
            let y = x.layer_norm(&[40], Some(&weight), None, 1e-5).softmax(-1);
            let loss = (&y * 10.0).cross_entropy_rows(&target, -100, 0.0).sum(..) + (&y * &y).sum(..);
            loss.backward();
            vec![y, loss, x.grad().unwrap(), weight.grad().unwrap()]
        });
        compare("reductions", 1e-5, |device| {
            let x = normal(&[7, 30, 64], 1, device);
            let long = normal(&[20_000], 2, device);
            let (sorted, order) = x.sort(1, true);
            vec![
                x.sum(0),
                x.sum(1),
                x.max(-1),
                x.argmax(2),
                x.cumsum(1),
                sorted,
                order,
                long.sum(..),
                long.mean(..),
                long.max(..),
                long.gt(5.0).any(..),
                x.mean([0, 2]),
            ]
        });
    }

    #[test]
    fn products_windows_and_attention_are_done_in_pieces() {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        compare("products", 1e-4, |device| {
            let x = normal(&[90, 50], 1, device).requires_grad_(true);
            let weight = normal(&[120, 50], 2, device).requires_grad_(true);
            let (a, b) = (normal(&[6, 33, 20], 3, device), normal(&[6, 20, 45], 4, device));
            let y = x.linear(&weight, None);
            (&y * &y).sum(..).backward();
            vec![
                y,
                x.grad().unwrap(),
                weight.grad().unwrap(),
                a.matmul(&b),
                x.select(0, 0).matmul(&weight.t()),
            ]
        });
        compare("windows", 1e-4, |device| {
            let x = normal(&[14, 3, 8, 8], 1, device).requires_grad_(true);
            let weight = normal(&[5, 3, 2, 2], 2, device).requires_grad_(true);
            let y = x.conv2d(&weight, None, 1, 0, 1, 1).max_pool2d(2, None, 0);
            y.sum(..).backward();
            vec![y, x.grad().unwrap(), weight.grad().unwrap()]
        });
        compare("attention", 1e-4, |device| {
            let [q, k, v] = [1, 2, 3].map(|s| normal(&[5, 4, 20, 16], s, device).requires_grad_(true));
            let y = q.scaled_dot_product_attention(&k, &v, None, 0.0, true, None);
            (&y * &y).sum(..).backward();
            vec![y, q.grad().unwrap(), k.grad().unwrap(), v.grad().unwrap()]
        });
    }

    #[test]
    fn tables_are_looked_up_and_added_to_window_by_window() {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        compare("tables", 1e-5, |device| {
            let table = normal(&[500, 20], 1, device).requires_grad_(true);
            let ids = (normal(&[70], 2, device).abs() * 150.0).to_dtype(DType::I64);
            let y = table.index_select(0, &ids);
            (&y * &y).sum(..).backward();
            let other = normal(&[500, 17], 3, device);
            let wide = ids.unsqueeze(1).expand([70, 17]).contiguous();
            let added = other.scatter_add(0, &wide, &normal(&[70, 17], 4, device));
            vec![y, table.grad().unwrap(), other.gather(0, &wide), added]
        });
        let Some(device) = there(Device::open("wgpu-small-bindings", 0)) else { return };
        let table = normal(&[500, 20], 1, &device);
        let error = table.index_select(0, &Tensor::new([3i64, 500], &device)).to_vec::<f32>().unwrap_err();
        assert!(error.to_string().contains("500"), "{error}");
        device.clear_error();
        // What cannot be cut says so.
        let (a, b) = (Tensor::ones([1, 30_000], &device), Tensor::ones([30_000, 1], &device));
        let refused = catch_unwind(AssertUnwindSafe(|| a.matmul(&b))).unwrap_err();
        let text = refused.downcast_ref::<String>().expect("a message");
        assert!(text.contains("matmul") && text.contains("8192 bytes at once"), "{text}");
    }
}
