//! Recurrent layers: all steps of one layer in one direction, one launch per step or two.
//!
//! What does not depend on the state is one product over the rows of all steps: the inputs' part of the gates, and backwards the
//! gradients of the weights and of the input. A step multiplies the states with the weight and computes its gates in one kernel; where
//! that product is large, it is one of its own.

use crate::copy::{self, copy};
use crate::element::Elem;
use crate::gpu::{Gpu, Temp, target};
use crate::matmul::{Bias, Factor, Product};
use crate::memory::Memory;
use crate::reduce;
use crate::stream::{Call, Grid, Params};
use crate::variant::{Variant, variant};
use orkest_core::op::{Recurrence, RecurrentCell, Reduce};
use orkest_core::{Buffer, DType, DimSet, Layout, Output, Result, Scalar, Shape, View};
use smallvec::{SmallVec, smallvec};
use std::ops::Range;

/// Multiplications up to which a step's kernel makes its product itself. Beyond, the tiles of a real product are worth their launch.
const OWN_PRODUCT: usize = 1 << 24;
/// Texts of a workgroup.
const TEXTS: usize = 4;

pub(crate) fn supports(inputs: &[View<'_>]) -> bool {
    inputs[0].dtype.is_float() && inputs.iter().all(|v| v.dtype == inputs[0].dtype)
}

/// A factor of a product: where it begins, and the strides of its lines (rows of the left one, columns of the right one) and along k.
struct Matrix<'a> {
    memory: &'a Memory,
    offset: usize,
    line: usize,
    along_k: usize,
}

impl<'a> Matrix<'a> {
    /// Lines are the rows of `of` from `row` on.
    fn rows(of: &'a Temp, row: usize) -> Matrix<'a> {
        let width = of.layout.shape()[1];
        Matrix { memory: of.memory(), offset: of.layout.offset() + row * width, line: width, along_k: 1 }
    }

    /// Lines are the columns of `of` from `column` on.
    fn columns(of: &'a Temp, column: usize) -> Matrix<'a> {
        let width = of.layout.shape()[1];
        Matrix { memory: of.memory(), offset: of.layout.offset() + column, line: 1, along_k: width }
    }

    fn factor(self, elem: Elem) -> Factor<'a> {
        let Matrix { memory, offset, line, along_k } = self;
        Factor { memory, elem, offset, strides: [0, 0, line as isize, along_k as isize] }
    }
}

/// What the launches of a layer have in common.
struct Walk<'a> {
    gpu: &'a Gpu,
    op: &'static str,
    cell: RecurrentCell,
    dtype: DType,
    hidden: usize,
    /// First row and number of rows of each step, in the order in which the steps are walked.
    steps: Vec<(usize, usize)>,
    /// All steps have the same number of rows.
    uniform: bool,
    rows: usize,
    batch: usize,
}

impl<'a> Walk<'a> {
    fn new(gpu: &'a Gpu, op: &'static str, recurrence: &Recurrence, hidden: usize, dtype: DType) -> Walk<'a> {
        let sizes = &recurrence.batch_sizes;
        let starts: Vec<usize> =
            sizes.iter().scan(0, |sum, n| Some(std::mem::replace(sum, *sum + n))).collect();
        Walk {
            gpu,
            op,
            cell: recurrence.cell,
            dtype,
            hidden,
            steps: recurrence.order().map(|t| (starts[t], sizes[t])).collect(),
            uniform: sizes.iter().all(|n| *n == sizes[0]),
            rows: recurrence.rows(),
            batch: sizes[0],
        }
    }

    /// Columns of gates that come from the state.
    fn from_state(&self) -> usize {
        self.cell.gates() * self.hidden
    }

    /// Columns of the rows of gates: a GRU keeps `r, z, q, n`, with `q` the state's part of `n`.
    fn width(&self) -> usize {
        match self.cell {
            RecurrentCell::Gru => 4 * self.hidden,
            _ => self.from_state(),
        }
    }

    /// Rows of step `s` in walking order; 0 where there is no such step.
    fn rows_of(&self, s: Option<usize>) -> usize {
        s.and_then(|s| self.steps.get(s)).map_or(0, |step| step.1)
    }

    /// Whether a step's kernel multiplies by itself. On a CPU lanes that read different elements are what costs, and large tiles
    /// have fewer of them.
    fn multiplies(&self, texts: usize) -> bool {
        !self.gpu.capabilities.software && texts * self.from_state() * self.hidden <= OWN_PRODUCT
    }

    /// Units of a workgroup and invocations that share a sum.
    fn shares(&self, product: bool, slices: u32) -> [u32; 2] {
        match (self.gpu.capabilities.software, product) {
            (true, _) => [8, 1],
            (false, true) => [32, slices],
            (false, false) => [64, 1],
        }
    }

    fn grid(&self, texts: usize, units: u32) -> Grid {
        Grid::linear(texts.div_ceil(TEXTS) * self.hidden.div_ceil(units as usize))
    }

    /// Some rows of a matrix.
    fn narrow<'b>(&self, matrix: &'b Temp, rows: Range<usize>) -> (Layout, &'b Buffer) {
        (matrix.layout.slice(0, rows.start, rows.len(), 1), &matrix.buffer)
    }

    /// Copies rows of one matrix to rows of another.
    fn copy_rows(&self, from: &Temp, rows: Range<usize>, to: &Temp, at: usize) -> Result<()> {
        let (layout, buffer) = self.narrow(to, at..at + rows.len());
        let to = Output { layout, dtype: to.dtype, buffer: Some(buffer.clone()) };
        let (layout, buffer) = self.narrow(from, rows);
        copy(self.gpu, &View { buffer, layout: &layout, dtype: from.dtype }, &to)
    }

    /// The texts of step `s` in ranges that agree about being in the step before and in the step after.
    fn ranges(&self, s: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.steps[s].1;
        let mut cuts =
            [0, self.rows_of(s.checked_sub(1)).min(rows), self.rows_of(Some(s + 1)).min(rows), rows];
        cuts.sort_unstable();
        (0..3).map(move |i| cuts[i]..cuts[i + 1]).filter(|texts| !texts.is_empty())
    }

    /// `a b + bias`, row-major from the offset of `y` on.
    fn product(
        &self,
        [m, n, k]: [usize; 3],
        a: Matrix<'_>,
        b: Matrix<'_>,
        bias: Option<&Temp>,
        y: (&Memory, usize),
    ) -> Result<()> {
        let elem = self.gpu.elem(self.dtype);
        Product {
            op: self.op,
            batch: [1, 1],
            m,
            n,
            k,
            a: a.factor(elem),
            b: b.factor(elem),
            bias: bias.map(|bias| Bias {
                memory: bias.memory(),
                offset: bias.layout.offset(),
                strides: [0, 0, 1],
            }),
            activation: None,
            y: y.0,
            y_elem: elem,
            y_offset: y.1,
        }
        .run(self.gpu)
    }
}

/// An output as something that later launches read.
fn written(output: &Output) -> Temp {
    let buffer = output.buffer.clone().expect("outputs are allocated before anything runs");
    Temp { buffer, layout: output.layout, dtype: output.dtype }
}

fn step_variant(
    elem: Elem,
    cell: RecurrentCell,
    bias: bool,
    product: bool,
    [units, slices]: [u32; 2],
) -> Variant {
    variant![elem: elem, CELL: code(cell), BIAS: bias, PRODUCT: product, UNITS: units, SLICES: slices]
}

fn grad_variant(
    elem: Elem,
    cell: RecurrentCell,
    [output, product, finish]: [bool; 3],
    [units, slices]: [u32; 2],
) -> Variant {
    variant![
        elem: elem,
        CELL: code(cell),
        OUTPUT: output,
        PRODUCT: product,
        FINISH: finish,
        UNITS: units,
        SLICES: slices,
    ]
}

/// The number by which the kernels know a cell.
fn code(cell: RecurrentCell) -> u32 {
    match cell {
        RecurrentCell::RnnTanh => 0,
        RecurrentCell::RnnRelu => 1,
        RecurrentCell::Lstm => 2,
        RecurrentCell::Gru => 3,
    }
}

/// [`orkest_core::Op::Recurrent`]
pub(crate) fn recurrent(
    gpu: &Gpu,
    recurrence: &Recurrence,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &[Output],
) -> Result<()> {
    let dense: Vec<Temp> = inputs.iter().map(|v| gpu.contiguous(v)).collect::<Result<_>>()?;
    let (parameters, first) = dense.split_at(3 + 2 * usize::from(bias));
    let [x, w_ih, w_hh, biases @ ..] = parameters else { unreachable!("input and weights are always there") };
    let (cell, hidden, dtype) = (recurrence.cell, w_hh.layout.shape()[1], w_hh.dtype);
    let walk = Walk::new(gpu, cell.name(), recurrence, hidden, dtype);
    let states = cell.states();
    let y = written(&outputs[0]);
    let unused = gpu.temp(Shape::from([1, 1]), dtype)?;
    let [gates, cells] = [1 + states, 2 + states].map(|i| outputs.get(i).map_or(unused.clone(), written));

    let projected = match cell {
        RecurrentCell::Lstm => gates.clone(),
        RecurrentCell::Gru => gpu.temp(Shape::from([walk.rows, walk.from_state()]), dtype)?,
        RecurrentCell::RnnTanh | RecurrentCell::RnnRelu => y.clone(),
    };
    let input = x.layout.shape()[1];
    let from_input = Matrix::rows(x, 0);
    let sizes = [walk.rows, walk.from_state(), input];
    walk.product(sizes, from_input, Matrix::rows(w_ih, 0), biases.first(), (projected.memory(), 0))?;

    let transposed = match walk.multiplies(walk.batch) {
        true => {
            let layout = w_hh.layout.transpose(0, 1);
            Some(gpu.contiguous(&View { buffer: &w_hh.buffer, layout: &layout, dtype })?)
        }
        false => None,
    };
    for (s, &(row, _)) in walk.steps.iter().enumerate() {
        for texts in walk.ranges(s) {
            let count = texts.len();
            // The states before: of the step before, or the first ones.
            let (state, old, offset) = match texts.start < walk.rows_of(s.checked_sub(1)) {
                true => (&y, &cells, walk.steps[s - 1].0 * hidden),
                false => (&first[0], first.last().unwrap_or(&first[0]), 0),
            };
            let [state_offset, cell_offset] = [state, old].map(|t| t.layout.offset() + offset);
            let product = match &transposed {
                Some(_) => None,
                None => {
                    let product = gpu.temp(Shape::from([count, walk.from_state()]), dtype)?;
                    let before = Matrix {
                        memory: state.memory(),
                        offset: state_offset + texts.start * hidden,
                        line: hidden,
                        along_k: 1,
                    };
                    let sizes = [count, walk.from_state(), hidden];
                    walk.product(sizes, before, Matrix::rows(w_hh, 0), None, (product.memory(), 0))?;
                    Some(product)
                }
            };
            let shares = walk.shares(product.is_none(), 4);
            let factor = product.as_ref().or(transposed.as_ref()).unwrap_or(w_hh);
            gpu.dispatch(Call {
                op: walk.op,
                file: "recurrent/step.wgsl",
                entry: "main",
                variant: step_variant(gpu.elem(dtype), cell, bias, product.is_none(), shares),
                constants: smallvec![],
                reads: &[
                    projected.memory(),
                    factor.memory(),
                    biases.get(1).unwrap_or(w_hh).memory(),
                    state.memory(),
                    old.memory(),
                ],
                writes: &[y.memory(), gates.memory(), cells.memory()],
                params: Params::new()
                    .usize(hidden)
                    .usize(texts.start)
                    .usize(texts.end)
                    .usize(row)
                    .usize(state_offset)
                    .usize(cell_offset)
                    .usize(biases.get(1).map_or(0, |b| b.layout.offset())),
                grid: walk.grid(count, shares[0]),
            })?;
        }
    }
    // The last state of a text is that of its last step.
    for (s, &(row, rows)) in walk.steps.iter().enumerate() {
        let end = walk.rows_of(Some(s + 1)).min(rows)..rows;
        if end.is_empty() {
            continue;
        }
        for (from, to) in [&y, &cells].into_iter().zip(&outputs[1..=states]) {
            walk.copy_rows(from, row + end.start..row + end.end, &written(to), end.start)?;
        }
    }
    Ok(())
}

/// [`orkest_core::Op::RecurrentGrad`]
pub(crate) fn recurrent_grad(
    gpu: &Gpu,
    recurrence: &Recurrence,
    [bias, output, input]: [bool; 3],
    inputs: &[View<'_>],
    outputs: &[Output],
) -> Result<()> {
    let mut dense = inputs.iter().map(|v| gpu.contiguous(v)).collect::<Result<Vec<Temp>>>()?.into_iter();
    let mut next = |count: usize| -> SmallVec<[Temp; 3]> { dense.by_ref().take(count).collect() };
    let cell = recurrence.cell;
    let states = cell.states();
    let (parameters, first, y) = (next(3), next(states), next(1));
    let kept = next(match cell {
        RecurrentCell::Lstm => 2,
        RecurrentCell::Gru => 1,
        RecurrentCell::RnnTanh | RecurrentCell::RnnRelu => 0,
    });
    let (last, dy) = (next(states), next(usize::from(output)));
    let ([x, w_ih, w_hh], [y]) = (&parameters[..], &y[..]) else { unreachable!("they are always there") };
    let (hidden, dtype) = (w_hh.layout.shape()[1], w_hh.dtype);
    let walk = Walk::new(gpu, cell.grad_name(), recurrence, hidden, dtype);
    let (width, from_state) = (walk.width(), walk.from_state());
    let gates = kept.first().unwrap_or(y);
    debug_assert_eq!(gates.layout.offset(), 0, "what a layer kept is whole");
    let state_grads: Vec<Temp> = outputs[2 + 2 * usize::from(bias)..][..states].iter().map(written).collect();

    let grads = gpu.temp(Shape::from([walk.rows, width]), dtype)?;
    // What goes past the gates: the gradient of the cells, or of the state.
    let past = gpu.temp(Shape::from([walk.batch, hidden]), DType::F32)?;
    match cell {
        RecurrentCell::Lstm => copy(gpu, &last[1].view(), &past.output())?,
        _ => copy::fill(gpu, Scalar::Float(0.0), &past.output())?,
    }
    let launch = |incoming: (&Memory, i32),
                  old: (&Memory, usize),
                  to: &Temp,
                  texts: &Range<usize>,
                  row: usize,
                  product: bool,
                  finish: bool| {
        let shares = walk.shares(product, 8);
        gpu.dispatch(Call {
            op: walk.op,
            file: "recurrent/step_grad.wgsl",
            entry: "main",
            variant: grad_variant(gpu.elem(dtype), cell, [output, product, finish], shares),
            constants: smallvec![],
            reads: &[incoming.0, w_hh.memory(), dy.first().unwrap_or(y).memory(), gates.memory(), old.0],
            writes: &[to.memory(), past.memory()],
            params: Params::new()
                .usize(hidden)
                .usize(texts.start)
                .usize(texts.end)
                .usize(row)
                .i32(incoming.1)
                .usize(dy.first().map_or(0, |dy| dy.layout.offset()))
                .usize(old.1)
                .usize(w_hh.layout.offset()),
            grid: walk.grid(texts.len(), shares[0]),
        })
    };
    // The gradient of some texts' states from the gate gradients that begin at `row`, as a kernel finds it.
    let through = |texts: &Range<usize>, row: usize| -> Result<(Temp, i32, bool)> {
        if walk.multiplies(texts.len()) {
            return Ok((grads.clone(), (row * width) as i32, true));
        }
        let product = gpu.temp(Shape::from([texts.len(), hidden]), dtype)?;
        let sizes = [texts.len(), hidden, from_state];
        let lines = Matrix::rows(&grads, row + texts.start);
        walk.product(sizes, lines, Matrix::columns(w_hh, 0), None, (product.memory(), 0))?;
        Ok((product, -((texts.start * hidden) as i32), false))
    };
    for (s, &(row, _)) in walk.steps.iter().enumerate().rev() {
        for texts in walk.ranges(s) {
            let (incoming, offset, product) = match texts.start < walk.rows_of(Some(s + 1)) {
                true => through(&texts, walk.steps[s + 1].0)?,
                false => (last[0].clone(), last[0].layout.offset() as i32, false),
            };
            let stays = texts.start < walk.rows_of(s.checked_sub(1));
            let (old, before) = match (stays, cell) {
                (true, RecurrentCell::Lstm) => (&kept[1], walk.steps[s - 1].0 * hidden),
                (true, _) => (y, walk.steps[s - 1].0 * hidden),
                (false, _) => (first.last().unwrap_or(y), 0),
            };
            let old = (old.memory(), old.layout.offset() + before);
            launch((incoming.memory(), offset), old, &grads, &texts, row, product, false)?;
            if !stays {
                let (incoming, offset, product) = through(&texts, row)?;
                launch((incoming.memory(), offset), old, &state_grads[0], &texts, row, product, true)?;
            }
        }
    }
    if let [_, cells] = &state_grads[..] {
        copy(gpu, &past.view(), &cells.output())?;
    }

    let before = states_before(&walk, y, &first[0])?;
    // A GRU's columns are two pieces: `r, z`, and after them `q` of the state or `n` of the input.
    let pieces: SmallVec<[Range<usize>; 2]> = match cell {
        RecurrentCell::Gru => smallvec![0..2 * hidden, 2 * hidden..3 * hidden],
        _ => smallvec![0..from_state],
    };
    for (number, piece) in pieces.iter().enumerate() {
        let sizes = [piece.len(), hidden, walk.rows];
        let to = (target(&outputs[1]), piece.start * hidden);
        walk.product(sizes, Matrix::columns(&grads, piece.start), Matrix::columns(&before, 0), None, to)?;
        let input_size = x.layout.shape()[1];
        let sizes = [piece.len(), input_size, walk.rows];
        let to = (target(&outputs[0]), piece.start * input_size);
        let columns = Matrix::columns(&grads, piece.start + number * hidden);
        walk.product(sizes, columns, Matrix::columns(x, 0), None, to)?;
    }
    if bias {
        let sums = gpu.temp(Shape::from(width), dtype)?;
        reduce::reduce(gpu, Reduce::Sum, DimSet::one(0), &grads.view(), &sums.output())?;
        for (number, piece) in pieces.iter().enumerate() {
            let [of_input, of_state] = [2, 3].map(|i| written(&outputs[i]));
            walk.copy_rows(&sums, piece.clone(), &of_state, piece.start)?;
            let shift = number * hidden;
            walk.copy_rows(&sums, piece.start + shift..piece.end + shift, &of_input, piece.start)?;
        }
    }
    if input {
        if cell == RecurrentCell::Gru {
            // Side by side with `r, z`, nobody needing `q` any more.
            let columns = |start: usize| grads.layout.slice(1, start, hidden, 1);
            let (from, to) = (columns(3 * hidden), columns(2 * hidden));
            let to = Output { layout: to, dtype, buffer: Some(grads.buffer.clone()) };
            copy(gpu, &View { buffer: &grads.buffer, layout: &from, dtype }, &to)?;
        }
        let dx = target(&outputs[outputs.len() - 1]);
        let sizes = [walk.rows, x.layout.shape()[1], from_state];
        walk.product(sizes, Matrix::rows(&grads, 0), Matrix::columns(w_ih, 0), None, (dx, 0))?;
    }
    Ok(())
}

/// The states before all rows, in their order.
fn states_before(walk: &Walk<'_>, y: &Temp, first: &Temp) -> Result<Temp> {
    let before = walk.gpu.temp(Shape::from([walk.rows, walk.hidden]), walk.dtype)?;
    let (rows, batch) = (walk.rows, walk.batch);
    if walk.uniform {
        // The outputs, one step away.
        walk.copy_rows(first, 0..batch, &before, walk.steps[0].0)?;
        if rows > batch {
            let (from, to) = if walk.steps[0].0 == 0 { (0, batch) } else { (batch, 0) };
            walk.copy_rows(y, from..from + rows - batch, &before, to)?;
        }
        return Ok(before);
    }
    for (s, &(row, count)) in walk.steps.iter().enumerate() {
        let stay = walk.rows_of(s.checked_sub(1)).min(count);
        if stay > 0 {
            let from = walk.steps[s - 1].0;
            walk.copy_rows(y, from..from + stay, &before, row)?;
        }
        if stay < count {
            walk.copy_rows(first, stay..count, &before, row + stay)?;
        }
    }
    Ok(before)
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let cells = [RecurrentCell::RnnTanh, RecurrentCell::RnnRelu, RecurrentCell::Lstm, RecurrentCell::Gru];
    let mut all = Vec::new();
    for elem in Elem::ALL.into_iter().filter(|e| e.is_float()) {
        for cell in cells {
            for (product, units, slices) in [(false, 8, 1), (false, 64, 1), (true, 32, 4), (true, 32, 8)] {
                for other in [false, true] {
                    // Flags do not touch how elements are stored: one type shows them all.
                    if elem != Elem::F32 && !other {
                        continue;
                    }
                    let shares = [units, slices];
                    all.push(("recurrent/step.wgsl", step_variant(elem, cell, other, product, shares)));
                    for finish in [false, true] {
                        let grad = grad_variant(elem, cell, [other, product, finish], shares);
                        all.push(("recurrent/step_grad.wgsl", grad));
                    }
                }
            }
        }
    }
    all
}
