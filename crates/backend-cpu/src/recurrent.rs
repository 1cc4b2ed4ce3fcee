//! Recurrent layers: all steps of one layer in one direction, forwards and backwards.
//!
//! What does not depend on the state is one product over the rows of all steps: the inputs' part of the gates, and backwards the
//! gradients of the weights and of the input. In between, each group of [`GROUP`] texts walks through time on its own, its state in the
//! first-level cache and the transposed weight in the second, so threads meet only once per layer. Groups do not depend on the number
//! of threads, and sums over them are made in order.

use crate::chunks::GRAIN_MATH;
use crate::copy;
use crate::gemm::{Gemm, PARALLEL, Real, Source, Target, workspace};
use crate::math::Float;
use crate::memory::{Scratch, SyncPtr};
use crate::parallel;
use crate::rows::{Dense, RowsMut, add_into};
use crate::simd::simd_fn;
use orkest_core::op::{Recurrence, RecurrentCell};
use orkest_core::{DType, Layout, Output, Result, View};

/// Texts that go through time together: enough to hide what it takes to read the weight, few enough that small batches make
/// several groups.
const GROUP: usize = 8;
/// A weight larger than this does not stay in a second-level cache while a group walks. Then all texts go together, and threads share
/// each step's product.
const WEIGHT_BYTES: usize = 768 << 10;

pub(crate) fn recurrent(
    recurrence: &Recurrence,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => forward::<f64>(recurrence, bias, inputs, outputs),
        _ => forward::<f32>(recurrence, bias, inputs, outputs),
    }
}

pub(crate) fn recurrent_grad(
    recurrence: &Recurrence,
    bias: bool,
    output: bool,
    input: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => backward::<f64>(recurrence, bias, output, input, inputs, outputs),
        _ => backward::<f32>(recurrence, bias, output, input, inputs, outputs),
    }
}

/// The sizes of a problem, and how its gates lie in memory.
///
/// A row of gates is as in the weights, except for a GRU's: `r, z, q, n` with `q` the state's part of `n`, so that the products with the
/// state stay together.
struct Plan {
    cell: RecurrentCell,
    input: usize,
    hidden: usize,
    /// Length of a row of gates.
    width: usize,
    /// How many of its columns come from the state.
    from_state: usize,
    /// Texts.
    batch: usize,
    /// Rows of all steps.
    rows: usize,
    /// First row and number of rows of each step, in the order in which the steps are walked.
    steps: Vec<(usize, usize)>,
    /// All steps have the same number of rows.
    uniform: bool,
    reverse: bool,
    /// Texts of a group.
    group: usize,
}

impl Plan {
    fn new<T>(recurrence: &Recurrence, input: usize, hidden: usize) -> Plan {
        let (cell, sizes) = (recurrence.cell, &recurrence.batch_sizes);
        let starts: Vec<usize> =
            sizes.iter().scan(0, |sum, n| Some(std::mem::replace(sum, *sum + n))).collect();
        let batch = sizes[0];
        let from_state = cell.gates() * hidden;
        let fits = from_state * hidden * size_of::<T>() <= WEIGHT_BYTES;
        Plan {
            cell,
            input,
            hidden,
            width: if cell == RecurrentCell::Gru { 4 * hidden } else { from_state },
            from_state,
            batch,
            rows: recurrence.rows(),
            steps: recurrence.order().map(|t| (starts[t], sizes[t])).collect(),
            uniform: sizes.iter().all(|n| *n == batch),
            reverse: recurrence.reverse,
            group: if fits { GROUP } else { batch },
        }
    }

    fn groups(&self) -> usize {
        self.batch.div_ceil(self.group)
    }

    /// Runs `walk` for the first text and the number of texts of each group.
    fn for_each_group(&self, walk: impl Fn(usize, usize) + Sync) {
        let one = |g: usize| walk(g * self.group, self.group.min(self.batch - g * self.group));
        if self.rows * self.from_state * self.hidden < PARALLEL {
            (0..self.groups()).for_each(one);
        } else {
            parallel::for_each(self.groups(), one);
        }
    }

    /// The rows of step `s` (in walking order) that belong to a group: the first one, and how many.
    fn part(&self, s: usize, text: usize, texts: usize) -> (usize, usize) {
        let (start, rows) = self.steps[s];
        (start + text, rows.saturating_sub(text).min(texts))
    }

    /// Calls `run` for all of `0..rows` of a step, on several threads where that pays and they are free.
    fn for_each_row(&self, rows: usize, run: impl Fn(usize) + Sync) {
        parallel::ranges(rows, (GRAIN_MATH / self.width).max(1), |range| range.for_each(&run));
    }

    /// Row of the step before step `s` that has the state of `text`; `None` where that is the initial one.
    fn before(&self, s: usize, text: usize) -> Option<usize> {
        let (start, rows) = *self.steps.get(s.checked_sub(1)?)?;
        (text < rows).then_some(start + text)
    }

    /// Pieces of the rows of gates that the input takes part in, as columns of gates and rows of the weight: `(column, row, length)`.
    fn from_input(&self) -> Vec<(usize, usize, usize)> {
        let h = self.hidden;
        match self.cell {
            RecurrentCell::Gru => vec![(0, 0, 2 * h), (3 * h, 2 * h, h)],
            _ => vec![(0, 0, self.width)],
        }
    }
}

/// The state of a group of texts: row `i` is text `i`'s, the cell states of an LSTM follow after all others.
#[derive(Clone, Copy)]
struct Local<T> {
    start: SyncPtr<T>,
    texts: usize,
    hidden: usize,
}

impl<T> Local<T> {
    /// `h` of text `i`, or its gradient.
    ///
    /// # Safety
    /// Nobody else has it at the same time.
    #[inline(always)]
    unsafe fn h<'a>(self, i: usize) -> &'a mut [T] {
        debug_assert!(i < self.texts);
        // SAFETY: a row of the group's memory, and the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.at((i * self.hidden) as isize), self.hidden) }
    }

    /// `c` of text `i` of an LSTM, or its gradient.
    ///
    /// # Safety
    /// As for `h`.
    #[inline(always)]
    unsafe fn c<'a>(self, i: usize) -> &'a mut [T] {
        debug_assert!(i < self.texts);
        let at = (self.texts + i) * self.hidden;
        // SAFETY: as for `h`.
        unsafe { std::slice::from_raw_parts_mut(self.start.at(at as isize), self.hidden) }
    }
}

fn forward<T: Real + Float>(
    recurrence: &Recurrence,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let dense = inputs.iter().map(Dense::<T>::new).collect::<Result<Vec<_>>>()?;
    let (parameters, state) = dense.split_at(3 + 2 * bias as usize);
    let [x, w_ih, w_hh, biases @ ..] = parameters else { unreachable!("input and weights are always there") };
    let plan = Plan::new::<T>(recurrence, inputs[0].layout.shape()[1], inputs[2].layout.shape()[1]);
    let Plan { cell, hidden, width, from_state, .. } = plan;
    let states = cell.states();
    let y = RowsMut::<T>::new(&outputs[0]);
    let last: Vec<RowsMut<T>> = outputs[1..=states].iter().map(RowsMut::new).collect();
    // The only gate of an RNN is its state.
    let gates = RowsMut::<T>::new(outputs.get(1 + states).unwrap_or(&outputs[0]));
    let cells = outputs.get(2 + states).map(RowsMut::<T>::new);
    let biases = join_biases(&plan, biases);
    project(&plan, x, w_ih, &biases, &gates);

    // Rows of the transposed weight are read in order; one that lies across memory would have to be packed in every step.
    let transposed = Scratch::<T>::new(from_state * hidden)?;
    let [from, to] = [[from_state, hidden], [hidden, from_state]].map(|s| Layout::contiguous(s.into()));
    // SAFETY: the weight has these elements, the scratch memory room for them.
    unsafe { copy::copy_raw(w_hh.all().as_ptr(), &from.transpose(0, 1), transposed.as_ptr(), &to) };
    let transposed = transposed.sync_ptr();

    plan.for_each_group(|text, texts| {
        workspace(texts * hidden * states, |local: *mut T| {
            let local = Local { start: SyncPtr::new(local), texts, hidden };
            // SAFETY: the group's rows of all matrices and its local memory; every row is used by one call at a time.
            unsafe {
                for i in 0..texts {
                    local.h(i).copy_from_slice(state[0].row(text + i, hidden));
                    if states > 1 {
                        local.c(i).copy_from_slice(state[1].row(text + i, hidden));
                    }
                }
                for s in 0..plan.steps.len() {
                    let (row, count) = plan.part(s, text, texts);
                    if count == 0 {
                        continue;
                    }
                    if cell == RecurrentCell::Gru {
                        let q = &biases[2 * hidden..3 * hidden];
                        (row..row + count)
                            .for_each(|r| gates.row(r, width)[2 * hidden..3 * hidden].copy_from_slice(q));
                    }
                    let gemm = Gemm {
                        m: count,
                        n: from_state,
                        k: hidden,
                        a: Source { at: local.start.get(), row: hidden as isize, col: 1 },
                        b: Source { at: transposed.get(), row: from_state as isize, col: 1 },
                        c: Target { at: gates.row(row, width).as_mut_ptr(), row: width as isize, col: 1 },
                        accumulate: true,
                        parallel: true,
                        finish: None,
                    };
                    gemm.run();
                    plan.for_each_row(count, |i| {
                        let (gates, h) = (gates.row(row + i, width), local.h(i));
                        match cell {
                            RecurrentCell::RnnTanh => rnn_tanh(gates, h),
                            RecurrentCell::RnnRelu => rnn_relu(gates, h),
                            RecurrentCell::Gru => gru(gates, h),
                            RecurrentCell::Lstm => lstm(gates, local.c(i), h),
                        }
                        if states > 1 || cell == RecurrentCell::Gru {
                            y.row(row + i, hidden).copy_from_slice(h);
                        }
                        if let Some(cells) = &cells {
                            cells.row(row + i, hidden).copy_from_slice(local.c(i));
                        }
                    });
                }
                for i in 0..texts {
                    last[0].row(text + i, hidden).copy_from_slice(local.h(i));
                    if states > 1 {
                        last[1].row(text + i, hidden).copy_from_slice(local.c(i));
                    }
                }
            }
        });
    });
    Ok(())
}

/// Biases as a row of gates.
fn join_biases<T: Float>(plan: &Plan, biases: &[Dense<T>]) -> Vec<T> {
    let [of_input, of_state] = biases else { return vec![T::ZERO; plan.width] };
    let (of_input, of_state) = (of_input.all(), of_state.all());
    let sum = of_input.iter().zip(of_state).map(|(a, b)| *a + *b);
    match plan.cell {
        RecurrentCell::Gru => {
            let n = 2 * plan.hidden;
            sum.take(n).chain(of_state[n..].iter().copied()).chain(of_input[n..].iter().copied()).collect()
        }
        _ => sum.collect(),
    }
}

/// The inputs' part of the gates of all steps, with the biases.
fn project<T: Real + Float>(plan: &Plan, x: &Dense<T>, w_ih: &Dense<T>, biases: &[T], gates: &RowsMut<T>) {
    let Plan { input, width, .. } = *plan;
    for (column, row, len) in plan.from_input() {
        let add_bias = |_: usize, from: usize, values: &mut [T]| {
            add_into(&biases[column + from..][..values.len()], values);
        };
        // SAFETY: `gates` has `rows` rows of `width`, and nobody else uses it yet.
        unsafe {
            let to = &mut gates.part(0, plan.rows * width)[column..];
            let gemm = Gemm {
                m: plan.rows,
                n: len,
                k: input,
                a: Source { at: x.all().as_ptr(), row: input as isize, col: 1 },
                b: Source { at: w_ih.all()[row * input..].as_ptr(), row: 1, col: input as isize },
                c: Target { at: to.as_mut_ptr(), row: width as isize, col: 1 },
                accumulate: false,
                parallel: true,
                finish: Some(&add_bias),
            };
            gemm.run();
        }
    }
}

simd_fn! {
    /// `gates`: the sums; they and `h` become the new state.
    fn rnn_tanh<S: Simd, T: Float>(gates: &mut [T], h: &mut [T]) {
        for (h, gate) in h.iter_mut().zip(gates) {
            *gate = gate.tanh::<S>();
            *h = *gate;
        }
    }

    /// As `rnn_tanh`.
    fn rnn_relu<S: Simd, T: Float>(gates: &mut [T], h: &mut [T]) {
        for (h, gate) in h.iter_mut().zip(gates) {
            *gate = if *gate <= T::ZERO { T::ZERO } else { *gate };
            *h = *gate;
        }
    }

    /// `gates i, f, g, o`: the sums, which become what they are after their functions.
    fn lstm<S: Simd, T: Float>(gates: &mut [T], c: &mut [T], h: &mut [T]) {
        let n = h.len();
        for v in &mut gates[..2 * n] {
            *v = v.sigmoid::<S>();
        }
        for v in &mut gates[2 * n..3 * n] {
            *v = v.tanh::<S>();
        }
        for v in &mut gates[3 * n..4 * n] {
            *v = v.sigmoid::<S>();
        }
        let (i, f, g, o) = (&gates[..n], &gates[n..2 * n], &gates[2 * n..3 * n], &gates[3 * n..4 * n]);
        let c = &mut c[..n];
        for j in 0..n {
            c[j] = f[j].mul_add::<S>(c[j], i[j] * g[j]);
            h[j] = o[j] * c[j].tanh::<S>();
        }
    }

    /// `gates r, z, q, n`: the sums, which become what they are after their functions; `q` stays.
    fn gru<S: Simd, T: Float>(gates: &mut [T], h: &mut [T]) {
        let n = h.len();
        for v in &mut gates[..2 * n] {
            *v = v.sigmoid::<S>();
        }
        let (rzq, new) = gates.split_at_mut(3 * n);
        let (r, q) = (&rzq[..n], &rzq[2 * n..3 * n]);
        let new = &mut new[..n];
        for j in 0..n {
            new[j] = r[j].mul_add::<S>(q[j], new[j]).tanh::<S>();
        }
        let (z, new) = (&gates[n..2 * n], &gates[3 * n..4 * n]);
        for j in 0..n {
            h[j] = z[j].mul_add::<S>(h[j] - new[j], new[j]);
        }
    }
}

fn backward<T: Real + Float>(
    recurrence: &Recurrence,
    bias: bool,
    output: bool,
    input: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let plan = Plan::new::<T>(recurrence, inputs[0].layout.shape()[1], inputs[2].layout.shape()[1]);
    let Plan { cell, hidden, width, from_state, .. } = plan;
    let states = cell.states();
    let mut dense = inputs.iter().map(Dense::<T>::new).collect::<Result<Vec<_>>>()?.into_iter();
    let mut next = |count: usize| -> Vec<Dense<T>> { dense.by_ref().take(count).collect() };
    let (parameters, state, y) = (next(3), next(states), next(1));
    let kept = next(match cell {
        RecurrentCell::Lstm => 2,
        RecurrentCell::Gru => 1,
        RecurrentCell::RnnTanh | RecurrentCell::RnnRelu => 0,
    });
    let (last, dy) = (next(states), next(output as usize));
    let ([x, w_ih, w_hh], [y]) = (&parameters[..], &y[..]) else { unreachable!("they are always there") };
    let first: Vec<RowsMut<T>> =
        outputs[2 + 2 * bias as usize..][..states].iter().map(RowsMut::new).collect();

    let gate_grads = Scratch::<T>::new(plan.rows * width)?;
    let bias_grads = Scratch::<T>::new(plan.groups() * width)?;
    let (gate_grads, bias_grads) = (gate_grads.sync_ptr(), bias_grads.sync_ptr());
    // SAFETY: rows of the two scratch matrices; callers use a row at a time, each from one thread.
    let gate_row =
        |r: usize| unsafe { std::slice::from_raw_parts_mut(gate_grads.at((r * width) as isize), width) };
    // SAFETY: as above.
    let bias_row =
        |g: usize| unsafe { std::slice::from_raw_parts_mut(bias_grads.at((g * width) as isize), width) };
    let before = |s: usize, text: usize, of: &Dense<T>, first: &Dense<T>| -> *const [T] {
        plan.before(s, text).map_or(first.row(text, hidden), |row| of.row(row, hidden))
    };
    plan.for_each_group(|text, texts| {
        workspace(texts * hidden * states, |local: *mut T| {
            let local = Local { start: SyncPtr::new(local), texts, hidden };
            let bias_grad = bias_row(text / plan.group);
            bias_grad.fill(T::ZERO);
            // SAFETY: the group's rows of all matrices and its local memory; every row is used by one call at a time.
            unsafe {
                for i in 0..texts {
                    local.h(i).copy_from_slice(last[0].row(text + i, hidden));
                    if states > 1 {
                        local.c(i).copy_from_slice(last[1].row(text + i, hidden));
                    }
                }
                for s in (0..plan.steps.len()).rev() {
                    let (row, count) = plan.part(s, text, texts);
                    if count == 0 {
                        continue;
                    }
                    plan.for_each_row(count, |i| {
                        let (dh, dg) = (local.h(i), gate_row(row + i));
                        if output {
                            add_into(dy[0].row(row + i, hidden), dh);
                        }
                        match cell {
                            RecurrentCell::RnnTanh => rnn_tanh_grad(y.row(row + i, hidden), dh, dg),
                            RecurrentCell::RnnRelu => rnn_relu_grad(y.row(row + i, hidden), dh, dg),
                            RecurrentCell::Gru => {
                                let h = &*before(s, text + i, y, &state[0]);
                                gru_grad(kept[0].row(row + i, width), h, dh, dg);
                            }
                            RecurrentCell::Lstm => {
                                let old = &*before(s, text + i, &kept[1], &state[1]);
                                let (gates, c) = (kept[0].row(row + i, width), kept[1].row(row + i, hidden));
                                lstm_grad(gates, c, old, dh, local.c(i), dg);
                            }
                        }
                    });
                    if bias {
                        (0..count).for_each(|i| add_into(gate_row(row + i), bias_grad));
                    }
                    let gemm = Gemm {
                        m: count,
                        n: hidden,
                        k: from_state,
                        a: Source { at: gate_row(row).as_ptr(), row: width as isize, col: 1 },
                        b: Source { at: w_hh.all().as_ptr(), row: hidden as isize, col: 1 },
                        c: Target { at: local.start.get(), row: hidden as isize, col: 1 },
                        // A GRU's state also goes straight into the next one.
                        accumulate: cell == RecurrentCell::Gru,
                        parallel: true,
                        finish: None,
                    };
                    gemm.run();
                }
                for i in 0..texts {
                    first[0].row(text + i, hidden).copy_from_slice(local.h(i));
                    if states > 1 {
                        first[1].row(text + i, hidden).copy_from_slice(local.c(i));
                    }
                }
            }
        });
    });

    let all = Source { at: gate_grads.get().cast_const(), row: width as isize, col: 1 };
    input_weight_grad(&plan, all, x, &RowsMut::new(&outputs[0]));
    state_weight_grad(&plan, all, y, &state[0], &RowsMut::new(&outputs[1]))?;
    if bias {
        let sum = bias_row(0);
        (1..plan.groups()).for_each(|g| add_into(bias_row(g), sum));
        let n = 2 * hidden;
        let [of_input, of_state] = [2, 3].map(|i| RowsMut::<T>::new(&outputs[i]));
        // SAFETY: two outputs that nobody else uses.
        let (of_input, of_state) = unsafe { (of_input.part(0, from_state), of_state.part(0, from_state)) };
        of_state.copy_from_slice(&sum[..from_state]);
        of_input.copy_from_slice(of_state);
        if cell == RecurrentCell::Gru {
            of_input[n..].copy_from_slice(&sum[3 * hidden..]);
        }
    }
    if input {
        input_grad(&plan, all, w_ih, &RowsMut::new(&outputs[outputs.len() - 1]));
    }
    Ok(())
}

/// `dweight_ih`: the gate gradients of all steps times the inputs.
fn input_weight_grad<T: Real + Float>(plan: &Plan, gates: Source<T>, x: &Dense<T>, dw: &RowsMut<T>) {
    for (column, row, len) in plan.from_input() {
        // SAFETY: gradients and inputs have `rows` rows; these rows of the weight's gradient are written here alone.
        unsafe {
            let to = dw.part(row * plan.input, len * plan.input);
            let gates = gates.from(0, column);
            product_of_rows(plan.rows, len, plan.input, gates, x.all(), to, false);
        }
    }
}

/// `dweight_hh`: the gate gradients of all steps times the states before them.
fn state_weight_grad<T: Real + Float>(
    plan: &Plan,
    gates: Source<T>,
    y: &Dense<T>,
    h0: &Dense<T>,
    dw: &RowsMut<T>,
) -> Result<()> {
    let Plan { hidden, from_state, rows, batch, .. } = *plan;
    // SAFETY: the gradients have `rows` rows, the states before them as many; nobody else writes the output.
    unsafe {
        let to = dw.part(0, from_state * hidden);
        if plan.uniform {
            // The states before are the outputs, one step away.
            let (later, earlier) = if plan.reverse { (0, batch) } else { (batch, 0) };
            let states = &y.all()[earlier * hidden..][..(rows - batch) * hidden];
            product_of_rows(rows - batch, from_state, hidden, gates.from(later, 0), states, to, false);
            let first = gates.from(plan.steps[0].0, 0);
            product_of_rows(batch, from_state, hidden, first, h0.all(), to, true);
            return Ok(());
        }
        let states = Scratch::<T>::new(rows * hidden)?;
        let states = std::slice::from_raw_parts_mut(states.as_ptr(), rows * hidden);
        for (s, &(start, count)) in plan.steps.iter().enumerate() {
            for text in 0..count {
                let from = plan.before(s, text).map_or(h0.row(text, hidden), |row| y.row(row, hidden));
                states[(start + text) * hidden..][..hidden].copy_from_slice(from);
            }
        }
        product_of_rows(rows, from_state, hidden, gates, states, to, false);
    }
    Ok(())
}

/// `dx`: the gate gradients of all steps through the input's weight.
fn input_grad<T: Real + Float>(plan: &Plan, gates: Source<T>, w_ih: &Dense<T>, dx: &RowsMut<T>) {
    let Plan { input, rows, .. } = *plan;
    for (i, (column, row, len)) in plan.from_input().into_iter().enumerate() {
        // SAFETY: the gradients have `rows` rows; nobody else writes the output.
        unsafe {
            let gemm = Gemm {
                m: rows,
                n: input,
                k: len,
                a: gates.from(0, column),
                b: Source { at: w_ih.all()[row * input..].as_ptr(), row: input as isize, col: 1 },
                c: Target { at: dx.part(0, rows * input).as_mut_ptr(), row: input as isize, col: 1 },
                accumulate: i > 0,
                parallel: true,
                finish: None,
            };
            gemm.run();
        }
    }
}

/// `to [m, n] (+)= aᵀ b`, with `a [rows, m]` and `b [rows, n]`.
///
/// # Safety
/// `a` has these elements.
unsafe fn product_of_rows<T: Real + Float>(
    rows: usize,
    m: usize,
    n: usize,
    a: Source<T>,
    b: &[T],
    to: &mut [T],
    accumulate: bool,
) {
    assert!(b.len() >= rows * n && to.len() >= m * n);
    let gemm = Gemm {
        m,
        n,
        k: rows,
        a: Source { at: a.at, row: a.col, col: a.row },
        b: Source { at: b.as_ptr(), row: n as isize, col: 1 },
        c: Target { at: to.as_mut_ptr(), row: n as isize, col: 1 },
        accumulate,
        parallel: true,
        finish: None,
    };
    // SAFETY: the sizes were checked, and the caller's promise.
    unsafe { gemm.run() };
}

simd_fn! {
    /// `dg`: the gradients of the sums.
    fn rnn_tanh_grad<S: Simd, T: Float>(y: &[T], dh: &[T], dg: &mut [T]) {
        for ((dg, y), dh) in dg.iter_mut().zip(y).zip(dh) {
            *dg = *dh * (T::ONE - *y * *y);
        }
    }

    /// As `rnn_tanh_grad`.
    fn rnn_relu_grad<S: Simd, T: Float>(y: &[T], dh: &[T], dg: &mut [T]) {
        for ((dg, y), dh) in dg.iter_mut().zip(y).zip(dh) {
            *dg = if *y <= T::ZERO { T::ZERO } else { *dh };
        }
    }

    /// `dg`: the gradients of the sums; `dc` becomes that of the cell before, `old`.
    fn lstm_grad<S: Simd, T: Float>(gates: &[T], c: &[T], old: &[T], dh: &[T], dc: &mut [T], dg: &mut [T]) {
        let n = dh.len();
        let (i, f, g, o) = (&gates[..n], &gates[n..2 * n], &gates[2 * n..3 * n], &gates[3 * n..4 * n]);
        let (c, old, dc) = (&c[..n], &old[..n], &mut dc[..n]);
        let (di, rest) = dg[..4 * n].split_at_mut(n);
        let (df, rest) = rest.split_at_mut(n);
        let (dg, d_o) = rest.split_at_mut(n);
        for j in 0..n {
            let t = c[j].tanh::<S>();
            d_o[j] = dh[j] * t * o[j] * (T::ONE - o[j]);
            dc[j] = (dh[j] * o[j]).mul_add::<S>(T::ONE - t * t, dc[j]);
        }
        for j in 0..n {
            di[j] = dc[j] * g[j] * i[j] * (T::ONE - i[j]);
            dg[j] = dc[j] * i[j] * (T::ONE - g[j] * g[j]);
        }
        for j in 0..n {
            df[j] = dc[j] * old[j] * f[j] * (T::ONE - f[j]);
            dc[j] = dc[j] * f[j];
        }
    }

    /// `dg`: the gradients of the sums, in the order of the gates; `dh` becomes what goes straight to the state before, `h`.
    fn gru_grad<S: Simd, T: Float>(gates: &[T], h: &[T], dh: &mut [T], dg: &mut [T]) {
        let n = h.len();
        let (r, z, q, new) = (&gates[..n], &gates[n..2 * n], &gates[2 * n..3 * n], &gates[3 * n..4 * n]);
        let dh = &mut dh[..n];
        let (dr, rest) = dg[..4 * n].split_at_mut(n);
        let (dz, rest) = rest.split_at_mut(n);
        let (dq, dn) = rest.split_at_mut(n);
        for j in 0..n {
            dn[j] = dh[j] * (T::ONE - z[j]) * (T::ONE - new[j] * new[j]);
            dz[j] = dh[j] * (h[j] - new[j]) * z[j] * (T::ONE - z[j]);
        }
        for j in 0..n {
            dq[j] = dn[j] * r[j];
            dr[j] = dn[j] * q[j] * r[j] * (T::ONE - r[j]);
            dh[j] = dh[j] * z[j];
        }
    }
}
