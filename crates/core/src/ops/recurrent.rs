//! Recurrent layers: what PyTorch's `rnn`, `lstm` and `gru` do in one layer and one direction.

use super::lowering::by_lowering_of_many;
use crate::autocast::low_precision;
use crate::autograd::{Context, Gradients, Rule, Save, is_grad_enabled, record};
use crate::dispatch::run_fused_list;
use crate::dtype::DType;
use crate::op::{Op, Recurrence, RecurrentCell};
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;

/// The weights of a recurrent layer in one direction, `g` being 4 for an LSTM, 3 for a GRU, else 1.
#[derive(Clone, Copy)]
pub struct RecurrentWeights<'a> {
    /// `[g * hidden, input]`
    pub ih: &'a Tensor,
    /// `[g * hidden, hidden]`, or `[g * hidden, projection]`
    pub hh: &'a Tensor,
    /// Both `[g * hidden]`: of the input and of the state.
    pub bias: Option<(&'a Tensor, &'a Tensor)>,
    /// `[projection, hidden]`: an LSTM's output is `hr` times what it would be without.
    pub hr: Option<&'a Tensor>,
}

impl Tensor {
    /// A recurrent layer in one direction: the output of every step, and the state after the last.
    ///
    /// The rows of all steps lie one after the other, those of step 0 first: `recurrence.batch_sizes` says how many each step has. Row
    /// `i` of a step belongs to text `i`; a text that is over has no rows in later steps, and its state stays as it is. In reverse each
    /// text starts at its own end. The layers `RNN`, `LSTM` and `GRU` of `orkest-nn` are made of this.
    ///
    /// # Shapes
    /// - `self`: `[rows of all steps, input]`
    /// - `state`: `h [batch, hidden]`, for an LSTM also `c [batch, hidden]`
    /// - outputs: `y [rows of all steps, hidden]`, then the last state, shaped as the first; with a projection `y` and `h` have its size
    ///
    /// # Panics
    /// If the shapes do not fit, or a dtype is not a float.
    #[track_caller]
    pub fn recurrent(
        &self,
        recurrence: &Recurrence,
        weights: RecurrentWeights<'_>,
        state: &[Tensor],
    ) -> Vec<Tensor> {
        let op = recurrence.cell.name();
        check(op, self, recurrence, weights, state);
        let biases = weights.bias.map(|(ih, hh)| [ih, hh]);
        let operands =
            [self, weights.ih, weights.hh].into_iter().chain(biases.into_iter().flatten()).chain(state);
        let dtypes = operands.clone().map(|t| low_precision(t.dtype()));
        let dtype = dtypes.reduce(DType::promote).unwrap_or(DType::F32);
        // Row-major, so that no kernel has to make it so again for the gradient.
        let inputs: Operands = operands.map(|t| t.as_dtype(dtype).contiguous()).collect();
        if let Some(hr) = weights.hr {
            return lowering(recurrence, &inputs, Some(&hr.to_dtype(dtype)));
        }
        fused(recurrence, &inputs).unwrap_or_else(|| lowering(recurrence, &inputs, None))
    }
}

#[track_caller]
fn check(op: &str, x: &Tensor, recurrence: &Recurrence, weights: RecurrentWeights<'_>, state: &[Tensor]) {
    let cell = recurrence.cell;
    let wanted = |what: &str, t: &Tensor, shape: &[usize]| {
        t.require_float(op);
        if *t.shape() != *shape {
            panic!(
                "{op}: {what} must have shape {}, not {}. input: {}",
                Shape::new(shape),
                t.shape(),
                x.describe()
            );
        }
    };
    assert_eq!(state.len(), cell.states(), "{op}: the number of states is wrong");
    if weights.ih.rank() != 2 || !weights.ih.size(0).is_multiple_of(cell.gates()) {
        panic!(
            "{op}: weight_ih must be [{} * hidden, input]. it is: {}",
            cell.gates(),
            weights.ih.describe()
        );
    }
    let sizes = &recurrence.batch_sizes;
    assert!(!sizes.is_empty(), "{op}: there is no step. input: {}", x.describe());
    assert!(sizes.is_sorted_by(|a, b| a >= b), "{op}: a step has more rows than the one before: {sizes:?}");
    let (rows, hidden) = (weights.ih.size(0), weights.ih.size(0) / cell.gates());
    let output = weights.hr.map_or(hidden, |hr| hr.size(0));
    wanted("the input", x, &[recurrence.rows(), weights.ih.size(1)]);
    wanted("weight_hh", weights.hh, &[rows, output]);
    for bias in weights.bias.into_iter().flat_map(|(ih, hh)| [ih, hh]) {
        wanted("a bias", bias, &[rows]);
    }
    if let Some(hr) = weights.hr {
        assert!(cell == RecurrentCell::Lstm, "{op}: only an LSTM has a projection");
        wanted("weight_hr", hr, &[output, hidden]);
    }
    wanted("the state", &state[0], &[sizes[0], output]);
    state[1..].iter().for_each(|c| wanted("the cell state", c, &[sizes[0], hidden]));
}

/// `x, weight_ih, weight_hh, bias_ih?, bias_hh?, h0, c0 (LSTM)`, of one dtype.
type Operands = SmallVec<[Tensor; 7]>;

/// Outputs and last state by the backend's kernel, if it has one.
#[track_caller]
fn fused(recurrence: &Recurrence, inputs: &[Tensor]) -> Option<Vec<Tensor>> {
    let (cell, states) = (recurrence.cell, recurrence.cell.states());
    let bias = inputs.len() > 3 + states;
    let (rows, dtype, state) = (inputs[0].size(0), inputs[0].dtype(), *inputs[inputs.len() - 1].shape());
    let hidden = state[1];
    let mut shapes: SmallVec<[Shape; 5]> = SmallVec::new();
    shapes.push([rows, hidden].into());
    shapes.extend(std::iter::repeat_n(state, states));
    if matches!(cell, RecurrentCell::Lstm | RecurrentCell::Gru) {
        shapes.push([rows, 4 * hidden].into());
    }
    if cell == RecurrentCell::Lstm {
        shapes.push([rows, hidden].into());
    }
    let shapes: SmallVec<[(Shape, DType); 5]> = shapes.into_iter().map(|s| (s, dtype)).collect();
    let op = Op::Recurrent { recurrence: recurrence.clone(), bias };
    let inputs: SmallVec<[&Tensor; 7]> = inputs.iter().collect();
    let mut outputs = run_fused_list(cell.name(), op, &inputs, &shapes)?;
    let kept = outputs.split_off(1 + states);
    let mut save: SmallVec<[Save<'_>; 10]> = (0..inputs.len()).map(Save::Input).collect();
    save.push(Save::Output(0));
    save.extend(kept.iter().map(Save::Other));
    let rule = Gradient { recurrence: recurrence.clone(), bias };
    record(&mut outputs, cell.name(), &inputs, &save, rule);
    Some(outputs)
}

/// The rule of the fused operation. It holds the sizes of all steps, which no closure could copy.
struct Gradient {
    recurrence: Recurrence,
    bias: bool,
}

impl Rule for Gradient {
    fn backward(&self, c: &Context<'_>) -> Gradients {
        let inputs: SmallVec<[&Tensor; 7]> = (0..c.input_count()).map(|i| c.saved(i)).collect();
        if !is_grad_enabled()
            && let Some(gradients) = self.by_kernel(c, &inputs)
        {
            return gradients;
        }
        let grads: SmallVec<[Option<&Tensor>; 3]> = (0..c.output_count()).map(|i| c.grad_of(i)).collect();
        Gradients::from_vec(by_lowering_of_many(&inputs, |t| lowering(&self.recurrence, t, None), &grads))
    }
}

impl Gradient {
    fn by_kernel(&self, c: &Context<'_>, inputs: &[&Tensor]) -> Option<Gradients> {
        let states = self.recurrence.cell.states();
        let parameters = inputs.len() - 1 - states;
        let state_grads: SmallVec<[Tensor; 2]> = (1..=states).map(|i| c.grad_or_zeros(i)).collect();
        let mut given: SmallVec<[&Tensor; 11]> = inputs[..3].iter().copied().collect();
        given.extend(inputs[1 + parameters..].iter().copied());
        let kept = 1 + match self.recurrence.cell {
            RecurrentCell::Lstm => 2,
            RecurrentCell::Gru => 1,
            RecurrentCell::RnnTanh | RecurrentCell::RnnRelu => 0,
        };
        given.extend((0..kept).map(|i| c.saved(inputs.len() + i)));
        given.extend(&state_grads);
        given.extend(c.grad_of(0));
        let input = c.needs(0);
        let op = Op::RecurrentGrad {
            recurrence: self.recurrence.clone(),
            bias: self.bias,
            output: c.grad_of(0).is_some(),
            input,
        };
        let wanted = inputs[1..].iter().chain(inputs[..1].iter().filter(|_| input));
        let shapes: SmallVec<[(Shape, DType); 7]> = wanted.map(|t| (*t.shape(), t.dtype())).collect();
        let mut gradients = run_fused_list(self.recurrence.cell.grad_name(), op, &given, &shapes)?;
        let dx = if input { gradients.pop() } else { None };
        Some(std::iter::once(dx).chain(gradients.into_iter().map(Some)).collect())
    }
}

/// The same in tensor operations: all inputs projected at once, then one product with the state per step.
#[track_caller]
fn lowering(recurrence: &Recurrence, inputs: &[Tensor], hr: Option<&Tensor>) -> Vec<Tensor> {
    let (cell, sizes) = (recurrence.cell, &*recurrence.batch_sizes);
    let (parameters, first) = inputs.split_at(inputs.len() - cell.states());
    let [x, ih, hh, bias @ ..] = parameters else { unreachable!("input and weights are always there") };
    // The gate of a GRU that multiplies its part of the state with `r` needs that part's bias inside.
    let (outer, inner) = match (cell, bias) {
        (_, []) => (None, None),
        (RecurrentCell::Gru, [b_ih, b_hh]) => (Some(b_ih.clone()), Some(b_hh)),
        (_, biases) => (Some(&biases[0] + &biases[1]), None),
    };
    let projected = x.linear(ih, outer.as_ref()).split_sizes(sizes, 0);
    let transposed = hh.t();

    // States of the texts that take part in the current step, and of those that are over, in the order in which they ended.
    let mut state: Vec<Tensor> = Vec::new();
    let mut over: Vec<Vec<Tensor>> = vec![Vec::new(); cell.states()];
    let mut outputs: Vec<Option<Tensor>> = vec![None; sizes.len()];
    for t in recurrence.order() {
        let rows = sizes[t];
        state = match state.first().map_or(0, |h| h.size(0)) {
            0 => first.iter().map(|s| s.narrow(0, 0, rows)).collect(),
            active if active < rows => {
                let joined =
                    |(s, s0): (&Tensor, &Tensor)| Tensor::cat(&[s, &s0.narrow(0, active, rows - active)], 0);
                state.iter().zip(first).map(joined).collect()
            }
            active if active > rows => {
                let stay = |(s, over): (&Tensor, &mut Vec<Tensor>)| {
                    let [on, off] = s
                        .split_sizes(&[rows, active - rows], 0)
                        .try_into()
                        .unwrap_or_else(|_| unreachable!());
                    over.push(off);
                    on
                };
                state.iter().zip(&mut over).map(stay).collect()
            }
            _ => state,
        };
        state = match cell {
            RecurrentCell::RnnTanh => vec![(&projected[t] + state[0].matmul(&transposed)).tanh()],
            RecurrentCell::RnnRelu => vec![(&projected[t] + state[0].matmul(&transposed)).relu()],
            RecurrentCell::Lstm => lstm_step(&projected[t] + state[0].matmul(&transposed), &state[1], hr),
            RecurrentCell::Gru => vec![gru_step(&projected[t], &state[0].linear(hh, inner), &state[0])],
        };
        outputs[t] = Some(state[0].clone());
    }
    let outputs: Vec<Tensor> = outputs.into_iter().flatten().collect();
    let last = state.into_iter().zip(over).map(|(on, mut over)| {
        over.push(on);
        over.reverse();
        if over.len() == 1 { over.remove(0) } else { Tensor::cat(&over, 0) }
    });
    std::iter::once(Tensor::cat(&outputs, 0)).chain(last).collect()
}

#[track_caller]
fn lstm_step(gates: Tensor, c: &Tensor, hr: Option<&Tensor>) -> Vec<Tensor> {
    let hidden = c.size(1);
    let pieces = gates.split_sizes(&[2 * hidden, hidden, hidden], 1);
    let [i, f] = pieces[0].sigmoid().chunks(1);
    let c = f * c + i * pieces[1].tanh();
    let h = pieces[2].sigmoid() * c.tanh();
    vec![hr.map_or(h.clone(), |hr| h.linear(hr, None)), c]
}

#[track_caller]
fn gru_step(from_input: &Tensor, from_state: &Tensor, h: &Tensor) -> Tensor {
    let hidden = h.size(1);
    let [x, s] = [from_input, from_state].map(|t| t.split_sizes(&[2 * hidden, hidden], 1));
    let [r, z] = (&x[0] + &s[0]).sigmoid().chunks(1);
    let n = (&x[1] + r * &s[1]).tanh();
    &n + z * (h - &n)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_with_gradients, everywhere, wave};
    use super::*;

    fn weights(t: &[Tensor]) -> RecurrentWeights<'_> {
        RecurrentWeights { ih: &t[0], hh: &t[1], bias: Some((&t[2], &t[3])), hr: None }
    }

    /// Weights and biases of a cell of size 1 for inputs of size 2, and its first states for two texts.
    fn operands(cell: RecurrentCell) -> (Vec<Tensor>, Vec<Tensor>) {
        let g = cell.gates();
        let weights = vec![wave([g, 2], 1.0), wave([g, 1], 2.0), wave(g, 3.0), wave(g, 4.0)];
        (weights, (0..cell.states()).map(|i| wave([2, 1], 5.0 + i as f64)).collect())
    }

    #[test]
    fn an_lstm_walks_backwards_from_the_end_of_each_text() {
        everywhere(|| {
            let recurrence =
                Recurrence { cell: RecurrentCell::Lstm, reverse: true, batch_sizes: [2, 1].into() };
            let (x, (w, state)) = (wave([3, 2], 0.0), operands(RecurrentCell::Lstm));
            let all = Tensor::cat(&x.recurrent(&recurrence, weights(&w), &state), 0);
            let inputs: Vec<&Tensor> = [&x].into_iter().chain(&w).chain(&state).collect();
            assert_with_gradients(
                &all,
                &inputs,
                &[0.298552, 0.272456, 0.157041, 0.298552, 0.272456, 0.367241, 0.344382],
                &[
                    &[0.119144, 0.011552, -0.03742, 0.025232, -0.036173, -0.048986],
                    &[-0.043533, -0.033467, -0.004118, -0.018218, -0.017915, 0.019421, -0.04319, -0.117796],
                    &[0.090072, 0.00575, 0.041842, 0.075425],
                    &[0.001142, 0.064476, 0.133258, 0.027696],
                    &[0.001142, 0.064476, 0.133258, 0.027696],
                    &[-0.10416, 0.013994],
                    &[-0.055988, 0.052877],
                ],
            );
        });
    }

    #[test]
    fn a_gru_keeps_the_state_of_a_text_that_is_over() {
        everywhere(|| {
            let recurrence =
                Recurrence { cell: RecurrentCell::Gru, reverse: false, batch_sizes: [2, 1].into() };
            let (x, (w, state)) = (wave([3, 2], 0.0), operands(RecurrentCell::Gru));
            let all = Tensor::cat(&x.recurrent(&recurrence, weights(&w), &state), 0);
            let inputs: Vec<&Tensor> = [&x].into_iter().chain(&w).chain(&state).collect();
            assert_with_gradients(
                &all,
                &inputs,
                &[0.115984, 0.166552, 0.700351, 0.700351, 0.166552],
                &[
                    &[0.447944, 0.035516, 1.359008, -0.044515, -0.650851, -0.018625],
                    &[-0.089724, -0.14176, 0.016311, -0.12117, -0.578698, -1.331634],
                    &[-0.029154, 0.143962, 0.057247],
                    &[0.146553, 0.049374, 1.081341],
                    &[0.146553, 0.049374, 0.1796],
                    &[0.179567, 0.142899],
                ],
            );
        });
    }

    #[test]
    fn a_batch_without_texts_has_no_rows() {
        everywhere(|| {
            let recurrence =
                Recurrence { cell: RecurrentCell::Gru, reverse: false, batch_sizes: [0, 0].into() };
            let (w, _) = operands(RecurrentCell::Gru);
            let out = wave([0, 2], 0.0).recurrent(&recurrence, weights(&w), &[wave([0, 1], 0.0)]);
            assert_eq!((out[0].shape(), out[1].shape()), (&[0, 1].into(), &[0, 1].into()));
        });
    }

    #[test]
    #[should_panic(expected = "gru: the state must have shape [2, 1], not [3, 1]")]
    fn a_state_of_another_batch_is_refused() {
        let recurrence = Recurrence { cell: RecurrentCell::Gru, reverse: false, batch_sizes: [2, 1].into() };
        let (w, _) = operands(RecurrentCell::Gru);
        wave([3, 2], 0.0).recurrent(&recurrence, weights(&w), &[wave([3, 1], 0.0)]);
    }

    #[test]
    #[should_panic(expected = "lstm: a step has more rows than the one before: [1, 2]")]
    fn steps_that_grow_are_refused() {
        let recurrence = Recurrence { cell: RecurrentCell::Lstm, reverse: false, batch_sizes: [1, 2].into() };
        let (w, state) = operands(RecurrentCell::Lstm);
        wave([3, 2], 0.0).recurrent(&recurrence, weights(&w), &state);
    }
}
