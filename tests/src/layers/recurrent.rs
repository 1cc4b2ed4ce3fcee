//! Recurrent layers and packed sequences; `parity/recurrent_cases.py` has the other side.

use crate::operations::{Call, Operation, seeded};
use orkest_core::op::{Recurrence, RecurrentCell};
use orkest_core::{Param, RecurrentWeights, Tensor};
use orkest_nn::*;

pub(super) const RECURRENT: &[(&str, Operation)] = &[
    ("recurrent", recurrent),
    ("RNN", |c| {
        let rnn = with_weights(c, RNN::with_options(c.size("input_size"), c.size("hidden_size"), options(c)));
        let rnn = rnn.nonlinearity(nonlinearity(c));
        layer(
            c,
            |x, state| with_one_state(rnn.forward(x, state.first())),
            |x, state| with_one_state(rnn.forward(x, state.first())),
        )
    }),
    ("LSTM", |c| {
        let lstm =
            with_weights(c, LSTM::with_options(c.size("input_size"), c.size("hidden_size"), options(c)));
        layer(
            c,
            |x, state| with_two_states(lstm.forward(x, two(state))),
            |x, state| with_two_states(lstm.forward(x, two(state))),
        )
    }),
    ("GRU", |c| {
        let gru = with_weights(c, GRU::with_options(c.size("input_size"), c.size("hidden_size"), options(c)));
        layer(
            c,
            |x, state| with_one_state(gru.forward(x, state.first())),
            |x, state| with_one_state(gru.forward(x, state.first())),
        )
    }),
    ("RNNCell", |c| {
        let cell = if c.flag("bias") { RNNCell::new } else { RNNCell::without_bias };
        let cell =
            with_weights(c, cell(c.size("input_size"), c.size("hidden_size"))).nonlinearity(nonlinearity(c));
        vec![cell.forward(c.x(0), state(c).first())]
    }),
    ("LSTMCell", |c| {
        let cell = if c.flag("bias") { LSTMCell::new } else { LSTMCell::without_bias };
        let cell = with_weights(c, cell(c.size("input_size"), c.size("hidden_size")));
        <[Tensor; 2]>::from(cell.forward(c.x(0), two(state(c)))).to_vec()
    }),
    ("GRUCell", |c| {
        let cell = if c.flag("bias") { GRUCell::new } else { GRUCell::without_bias };
        let cell = with_weights(c, cell(c.size("input_size"), c.size("hidden_size")));
        vec![cell.forward(c.x(0), state(c).first())]
    }),
    ("pack_padded_sequence", |c| {
        let batch_first = c.flag("batch_first");
        let packed = pack_padded_sequence(c.x(0), c.sizes("lengths"), batch_first, c.flag("enforce_sorted"));
        let total = c.args["total_length"].as_u64().map(|n| n as usize);
        let (padded, lengths) = pad_packed_sequence(&packed, batch_first, c.float("padding_value"), total);
        let order = [packed.sorted_indices(), packed.unsorted_indices()].into_iter().flatten().cloned();
        [packed.data().clone(), integers(c, packed.batch_sizes())]
            .into_iter()
            .chain(order)
            .chain([padded, integers(c, &lengths)])
            .collect()
    }),
    ("pad_sequence", |c| {
        let packed = pack_sequence(c.inputs, false);
        let padded = pad_sequence(c.inputs, c.flag("batch_first"), c.float("padding_value"));
        vec![padded, packed.data().clone(), integers(c, packed.batch_sizes())]
    }),
    ("fresh_recurrent", |c| {
        let (input, hidden) = (c.size("input_size"), c.size("hidden_size"));
        seeded(c, || match (c.text("kind"), c.flag("bias")) {
            ("RNN", _) => values(&RNN::with_options(input, hidden, options(c))),
            ("LSTM", _) => values(&LSTM::with_options(input, hidden, options(c))),
            ("GRU", _) => values(&GRU::with_options(input, hidden, options(c))),
            ("RNNCell", true) => values(&RNNCell::new(input, hidden)),
            ("RNNCell", false) => values(&RNNCell::without_bias(input, hidden)),
            ("LSTMCell", true) => values(&LSTMCell::new(input, hidden)),
            ("LSTMCell", false) => values(&LSTMCell::without_bias(input, hidden)),
            ("GRUCell", true) => values(&GRUCell::new(input, hidden)),
            ("GRUCell", false) => values(&GRUCell::without_bias(input, hidden)),
            (other, _) => panic!("no layer {other}"),
        })
    }),
];

fn values(module: &impl Module) -> Vec<Tensor> {
    module.parameters().iter().map(Param::value).collect()
}

fn integers(c: &Call<'_>, values: &[usize]) -> Tensor {
    let values: Vec<i64> = values.iter().map(|&n| n as i64).collect();
    Tensor::from_slice(&values, values.len(), c.device)
}

fn recurrent(c: &Call<'_>) -> Vec<Tensor> {
    let cell = match c.text("cell") {
        "rnn_tanh" => RecurrentCell::RnnTanh,
        "rnn_relu" => RecurrentCell::RnnRelu,
        "lstm" => RecurrentCell::Lstm,
        _ => RecurrentCell::Gru,
    };
    let batch_sizes = c.sizes("batch_sizes").into();
    let recurrence = Recurrence { cell, reverse: c.flag("reverse"), batch_sizes };
    let bias = c.flag("bias").then(|| (c.x(3), c.x(4)));
    let weights = RecurrentWeights { ih: c.x(1), hh: c.x(2), bias, hr: None };
    let state = &c.inputs[c.inputs.len() - cell.states()..];
    c.x(0).recurrent(&recurrence, weights, state)
}

fn options(c: &Call<'_>) -> RecurrentOptions {
    let size = |name: &str| c.args[name].as_u64().unwrap_or(0) as usize;
    RecurrentOptions {
        num_layers: size("num_layers"),
        bias: c.flag("bias"),
        batch_first: c.flag("batch_first"),
        dropout: 0.5,
        bidirectional: c.flag("bidirectional"),
        proj_size: size("proj_size"),
    }
}

fn nonlinearity(c: &Call<'_>) -> RnnNonlinearity {
    if c.text("nonlinearity") == "relu" { RnnNonlinearity::Relu } else { RnnNonlinearity::Tanh }
}

/// The module in evaluation, with the case's operands in place of its parameters, which must have PyTorch's names and order.
fn with_weights<M: Module>(c: &Call<'_>, module: M) -> M {
    module.eval();
    let names: Vec<String> = module.named_parameters().into_iter().map(|(name, _)| name).collect();
    let expected: Vec<&str> = c.list("names").iter().map(|n| n.as_str().unwrap()).collect();
    assert_eq!(names, expected);
    for (i, param) in module.parameters().into_iter().enumerate() {
        param.set_value(c.x(1 + i));
        c.params.borrow_mut().push((1 + i, param));
    }
    module
}

/// The operands after the weights.
fn state<'a>(c: &'a Call<'_>) -> &'a [Tensor] {
    &c.inputs[1 + c.list("names").len()..]
}

fn two(state: &[Tensor]) -> Option<(&Tensor, &Tensor)> {
    state.first().zip(state.get(1))
}

fn with_one_state<S>((output, h): (S, Tensor)) -> (S, Vec<Tensor>) {
    (output, vec![h])
}

fn with_two_states<S>((output, (h, c)): (S, (Tensor, Tensor))) -> (S, Vec<Tensor>) {
    (output, vec![h, c])
}

/// Runs a layer on padded or packed sequences, whichever the case asks for.
fn layer(
    c: &Call<'_>,
    padded: impl Fn(&Tensor, &[Tensor]) -> (Tensor, Vec<Tensor>),
    packed: impl Fn(&PackedSequence, &[Tensor]) -> (PackedSequence, Vec<Tensor>),
) -> Vec<Tensor> {
    let (x, state, pack) = (c.x(0), state(c), &c.args["pack"]);
    if pack.is_null() {
        let (output, last) = padded(x, state);
        return [vec![output], last].concat();
    }
    let lengths: Vec<usize> =
        pack["lengths"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
    let batch_first = c.flag("batch_first");
    let x = pack_padded_sequence(x, lengths, batch_first, pack["enforce_sorted"] == true);
    let (output, last) = packed(&x, state);
    let total = pack["total_length"].as_u64().map(|n| n as usize);
    let (output, lengths) =
        pad_packed_sequence(&output, batch_first, pack["padding_value"].as_f64().unwrap(), total);
    [vec![output, integers(c, &lengths)], last].concat()
}
