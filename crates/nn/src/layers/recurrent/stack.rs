//! What RNN, LSTM and GRU have in common: weights of several layers and directions, and the way of a sequence through them.

use super::PackedSequence;
use crate::repr::python_bool;
use crate::{Member, Mode, Param, Rebuild, Tensors, Visitor};
use orkest_core::op::{Recurrence, RecurrentCell};
use orkest_core::{Device, RecurrentWeights, Tensor};
use std::sync::Arc;

/// How a recurrent layer is built: PyTorch's keyword arguments, with its defaults.
///
/// ```
/// use orkest_nn::{LSTM, RecurrentOptions};
/// let options = RecurrentOptions { num_layers: 2, bidirectional: true, ..RecurrentOptions::default() };
/// let lstm = LSTM::with_options(64, 128, options);
/// assert_eq!(lstm.to_string(), "LSTM(64, 128, num_layers=2, bidirectional=True)");
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RecurrentOptions {
    /// Layers on top of each other. Default: 1.
    pub num_layers: usize,
    /// Are there biases? Default: yes.
    pub bias: bool,
    /// Inputs and outputs are `[batch, steps, features]` instead of `[steps, batch, features]`. States are not touched by this.
    /// Default: no.
    pub batch_first: bool,
    /// Probability of a zero in what one layer gives to the next, in training. Default: 0.
    pub dropout: f64,
    /// A second direction, from the last step to the first; the outputs of both stand side by side. Default: no.
    pub bidirectional: bool,
    /// Size that an LSTM's output is projected to, 0 for none. Default: 0.
    pub proj_size: usize,
}

impl Default for RecurrentOptions {
    fn default() -> RecurrentOptions {
        RecurrentOptions {
            num_layers: 1,
            bias: true,
            batch_first: false,
            dropout: 0.0,
            bidirectional: false,
            proj_size: 0,
        }
    }
}

/// What a recurrent layer reads and writes: a [`Tensor`] of equally long sequences, or a [`PackedSequence`].
pub trait RecurrentInput: Tensors + Clone + private::Sealed {
    /// The rows of all steps.
    #[doc(hidden)]
    fn unroll(&self, layer: &str, batch_first: bool) -> Unrolled;

    /// What it is, for messages.
    #[doc(hidden)]
    fn described(&self) -> String;

    /// A sequence like this one with other rows.
    #[doc(hidden)]
    fn roll(&self, rows: Tensor, batch_first: bool) -> Self;
}

mod private {
    pub trait Sealed {}
    impl Sealed for orkest_core::Tensor {}
    impl Sealed for super::PackedSequence {}
}

/// A sequence as a recurrent layer walks through it.
#[doc(hidden)]
pub struct Unrolled {
    /// `[rows of all steps, features]`
    pub rows: Tensor,
    pub batch_sizes: Arc<[usize]>,
    /// Do states have a dimension for the batch?
    pub batched: bool,
    /// The order of the texts, and back.
    pub sorted: Option<(Tensor, Tensor)>,
}

impl RecurrentInput for Tensor {
    fn described(&self) -> String {
        self.describe()
    }

    #[track_caller]
    fn unroll(&self, layer: &str, batch_first: bool) -> Unrolled {
        let steps_first = match self.rank() {
            2 => self.unsqueeze(1),
            3 if batch_first => self.transpose(0, 1),
            3 => self.clone(),
            rank => panic!(
                "{layer}: an input of 2 or 3 dimensions is needed, not of {rank}. input: {}",
                self.describe()
            ),
        };
        let [steps, batch, features] = steps_first.dims();
        assert!(steps > 0, "{layer}: the input has no steps. input: {}", self.describe());
        Unrolled {
            rows: steps_first.reshape([steps * batch, features]),
            batch_sizes: vec![batch; steps].into(),
            batched: self.rank() == 3,
            sorted: None,
        }
    }

    #[track_caller]
    fn roll(&self, rows: Tensor, batch_first: bool) -> Tensor {
        let features = rows.size(-1);
        match self.rank() {
            2 => rows,
            _ if batch_first => rows.reshape([self.size(1), self.size(0), features]).transpose(0, 1),
            _ => rows.reshape([self.size(0), self.size(1), features]),
        }
    }
}

impl RecurrentInput for PackedSequence {
    fn described(&self) -> String {
        self.data().describe()
    }

    #[track_caller]
    fn unroll(&self, layer: &str, _batch_first: bool) -> Unrolled {
        let rows = self.data().clone();
        assert!(rows.rank() == 2, "{layer}: packed rows of features are needed. data: {}", rows.describe());
        Unrolled {
            rows,
            batch_sizes: self.batch_sizes.clone(),
            batched: true,
            sorted: self.sorted_indices().cloned().zip(self.unsorted_indices().cloned()),
        }
    }

    fn roll(&self, rows: Tensor, _batch_first: bool) -> PackedSequence {
        self.with_data(rows)
    }
}

/// The weights of one layer in one direction.
#[derive(Clone, Debug)]
struct Direction {
    weight_ih: Param,
    weight_hh: Param,
    bias: Option<(Param, Param)>,
    weight_hr: Option<Param>,
}

impl Direction {
    /// Members under PyTorch's names, in its order.
    fn members(&self) -> impl Iterator<Item = (&'static str, &Param)> {
        let bias = self.bias.as_ref();
        [
            Some(("weight_ih", &self.weight_ih)),
            Some(("weight_hh", &self.weight_hh)),
            bias.map(|(ih, _)| ("bias_ih", ih)),
            bias.map(|(_, hh)| ("bias_hh", hh)),
            self.weight_hr.as_ref().map(|hr| ("weight_hr", hr)),
        ]
        .into_iter()
        .flatten()
    }
}

/// All layers and directions.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    name: &'static str,
    input_size: usize,
    hidden_size: usize,
    pub options: RecurrentOptions,
    /// Layer by layer, forwards before backwards.
    directions: Vec<Direction>,
    mode: Mode,
}

impl Stack {
    /// Uniform in ±1/√hidden_size, drawn in PyTorch's order.
    #[track_caller]
    pub fn new(
        name: &'static str,
        gates: usize,
        input_size: usize,
        hidden_size: usize,
        options: RecurrentOptions,
    ) -> Stack {
        let RecurrentOptions { num_layers, bias, dropout, bidirectional, proj_size, .. } = options;
        assert!(hidden_size > 0, "{name}: hidden_size must be at least 1");
        assert!(num_layers > 0, "{name}: num_layers must be at least 1");
        assert!((0.0..=1.0).contains(&dropout), "{name}: dropout must lie between 0 and 1, not {dropout}");
        assert!(
            proj_size < hidden_size,
            "{name}: proj_size {proj_size} must be smaller than hidden_size {hidden_size}"
        );
        let output = if proj_size > 0 { proj_size } else { hidden_size };
        let sides = 1 + bidirectional as usize;
        let bound = 1.0 / (hidden_size as f64).sqrt();
        let draw = |shape: &[usize]| Param::new(Tensor::uniform(shape, -bound, bound, &Device::cpu()));
        let directions = (0..num_layers * sides)
            .map(|i| Direction {
                weight_ih: draw(&[gates * hidden_size, if i < sides { input_size } else { sides * output }]),
                weight_hh: draw(&[gates * hidden_size, output]),
                bias: bias.then(|| (draw(&[gates * hidden_size]), draw(&[gates * hidden_size]))),
                weight_hr: (proj_size > 0).then(|| draw(&[proj_size, hidden_size])),
            })
            .collect();
        Stack { name, input_size, hidden_size, options, directions, mode: Mode::new() }
    }

    fn sides(&self) -> usize {
        1 + self.options.bidirectional as usize
    }

    pub fn visit<'a>(&'a self, visitor: &mut Visitor<'_, 'a>) {
        for (i, direction) in self.directions.iter().enumerate() {
            let (layer, side) = (i / self.sides(), if i % self.sides() == 0 { "" } else { "_reverse" });
            for (name, param) in direction.members() {
                visitor(&format!("{name}_l{layer}{side}"), Member::Param(param));
            }
        }
        visitor("mode", Member::Mode(&self.mode));
    }

    pub fn rebuild(&self, rebuild: &mut Rebuild) -> Stack {
        let directions = self.directions.iter().map(|d| Direction {
            weight_ih: rebuild.param(&d.weight_ih),
            weight_hh: rebuild.param(&d.weight_hh),
            bias: d.bias.as_ref().map(|(ih, hh)| (rebuild.param(ih), rebuild.param(hh))),
            weight_hr: d.weight_hr.as_ref().map(|hr| rebuild.param(hr)),
        });
        Stack { directions: directions.collect(), mode: rebuild.mode(&self.mode), ..self.clone() }
    }

    pub fn extra_repr(&self) -> String {
        let RecurrentOptions { num_layers, bias, batch_first, dropout, bidirectional, proj_size } =
            self.options;
        let mut text = format!("{}, {}", self.input_size, self.hidden_size);
        let mut add = |shown: bool, option: String| {
            if shown {
                text.push_str(", ");
                text.push_str(&option);
            }
        };
        add(proj_size != 0, format!("proj_size={proj_size}"));
        add(num_layers != 1, format!("num_layers={num_layers}"));
        add(!bias, format!("bias={}", python_bool(bias)));
        add(batch_first, format!("batch_first={}", python_bool(batch_first)));
        add(dropout != 0.0, format!("dropout={dropout}"));
        add(bidirectional, format!("bidirectional={}", python_bool(bidirectional)));
        text
    }

    /// Outputs of the last layer, and the last states of all layers and directions.
    #[track_caller]
    pub fn forward<S: RecurrentInput>(
        &self,
        cell: RecurrentCell,
        input: &S,
        state: Option<&[&Tensor]>,
    ) -> (S, Vec<Tensor>) {
        let (name, batch_first) = (self.name, self.options.batch_first);
        let sequence = input.unroll(name, batch_first);
        if sequence.rows.size(1) != self.input_size {
            let (features, expected) = (sequence.rows.size(1), self.input_size);
            panic!(
                "{name}: the input has {features} features, input_size is {expected}. input: {}",
                input.described()
            );
        }
        let first = self.first_states(cell, &sequence, state);
        let mut rows = sequence.rows.clone();
        let mut last = vec![Vec::with_capacity(self.directions.len()); cell.states()];
        for (layer, directions) in self.directions.chunks(self.sides()).enumerate() {
            if layer > 0 {
                rows = rows.dropout(self.options.dropout, self.mode.is_training());
            }
            let mut outputs = Vec::with_capacity(directions.len());
            for (side, direction) in directions.iter().enumerate() {
                let recurrence =
                    Recurrence { cell, reverse: side == 1, batch_sizes: sequence.batch_sizes.clone() };
                let start = &first[(layer * self.sides() + side) % first.len()];
                let mut results = direction.walk(&recurrence, &rows, start).into_iter();
                outputs.extend(results.next());
                last.iter_mut().zip(results).for_each(|(last, state)| last.push(state));
            }
            rows = if outputs.len() == 1 { outputs.remove(0) } else { Tensor::cat(&outputs, 1) };
        }
        let last = last.into_iter().map(|states| {
            let all = if states.len() == 1 { states[0].unsqueeze(0) } else { Tensor::stack(&states, 0) };
            match &sequence.sorted {
                Some((_, back)) => all.index_select(1, back),
                None if sequence.batched => all,
                None => all.squeeze(1),
            }
        });
        let last = last.collect();
        (input.roll(rows, batch_first), last)
    }

    /// The states to start with, of each layer and direction; a single entry of zeros is for all.
    #[track_caller]
    fn first_states(
        &self,
        cell: RecurrentCell,
        sequence: &Unrolled,
        state: Option<&[&Tensor]>,
    ) -> Vec<Vec<Tensor>> {
        let batch = sequence.batch_sizes[0];
        let projected = if self.options.proj_size > 0 { self.options.proj_size } else { self.hidden_size };
        let sizes = [projected, self.hidden_size];
        let Some(state) = state else {
            let options = (sequence.rows.dtype(), sequence.rows.device());
            let zeros = |size: &usize| Tensor::zeros([batch, *size], options);
            return vec![sizes[..cell.states()].iter().map(zeros).collect()];
        };
        let count = self.directions.len();
        let mut states = Vec::with_capacity(state.len());
        for (s, size) in state.iter().zip(sizes) {
            let wanted: &[usize] = if sequence.batched { &[count, batch, size] } else { &[count, size] };
            if *s.shape() != *wanted {
                panic!(
                    "{}: the initial state must have shape {wanted:?} (layers and directions, batch, size). it is: {}",
                    self.name,
                    s.describe()
                );
            }
            let sorted = match &sequence.sorted {
                Some((order, _)) => s.index_select(1, order),
                None if sequence.batched => (*s).clone(),
                None => s.unsqueeze(1),
            };
            states.push(sorted.unbind(0));
        }
        (0..count).map(|i| states.iter().map(|s| s[i].clone()).collect()).collect()
    }
}

impl Direction {
    #[track_caller]
    fn walk(&self, recurrence: &Recurrence, rows: &Tensor, state: &[Tensor]) -> Vec<Tensor> {
        let (ih, hh) = (self.weight_ih.tensor(), self.weight_hh.tensor());
        let bias = self.bias.as_ref().map(|(ih, hh)| (ih.tensor(), hh.tensor()));
        let hr = self.weight_hr.as_ref().map(Param::tensor);
        let weights = RecurrentWeights {
            ih: &ih,
            hh: &hh,
            bias: bias.as_ref().map(|(ih, hh)| (ih, hh)),
            hr: hr.as_ref(),
        };
        rows.recurrent(recurrence, weights, state)
    }
}

/// The constructors, options and the module of a layer `struct $name { stack: Stack, .. }`.
macro_rules! recurrent_layer {
    ($name:ident, $($field:ident),*) => {
        impl Module for $name {
            fn type_name(&self) -> &str {
                stringify!($name)
            }
            fn extra_repr(&self) -> String {
                self.stack.extra_repr()
            }
            fn visit<'a>(&'a self, visitor: &mut Visitor<'_, 'a>) {
                self.stack.visit(visitor);
            }
            fn rebuild(&self, rebuild: &mut Rebuild) -> $name {
                $name { stack: self.stack.rebuild(rebuild), $($field: self.$field),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(&crate::repr(self))
            }
        }

        impl $name {
            /// One layer in one direction with biases, on the CPU. See [`RecurrentOptions`] for more.
            ///
            /// # Panics
            /// If `hidden_size` is 0.
            #[track_caller]
            pub fn new(input_size: usize, hidden_size: usize) -> $name {
                $name::with_options(input_size, hidden_size, RecurrentOptions::default())
            }

            /// Takes and gives `[batch, steps, features]` instead of `[steps, batch, features]`, as
            /// [`RecurrentOptions::batch_first`].
            #[must_use]
            pub fn batch_first(mut self) -> $name {
                self.stack.options.batch_first = true;
                self
            }
        }
    };
}
pub(super) use recurrent_layer;

#[cfg(test)]
mod tests {
    use crate::{GRU, LSTM, Module, Param, RNN, RecurrentOptions, pack_padded_sequence};
    use orkest_core::{Device, Tensor, manual_seed};

    const TWO: RecurrentOptions = RecurrentOptions {
        num_layers: 2,
        bias: true,
        batch_first: true,
        dropout: 0.5,
        bidirectional: true,
        proj_size: 0,
    };

    #[test]
    fn parameters_have_pytorchs_names_and_shapes() {
        let lstm = LSTM::with_options(3, 5, RecurrentOptions { proj_size: 2, ..TWO });
        let found: Vec<String> =
            lstm.named_parameters().into_iter().map(|(name, p)| format!("{name} {}", p.shape())).collect();
        let expected = [
            "weight_ih_l0 [20, 3]",
            "weight_hh_l0 [20, 2]",
            "bias_ih_l0 [20]",
            "bias_hh_l0 [20]",
            "weight_hr_l0 [2, 5]",
            "weight_ih_l0_reverse [20, 3]",
            "weight_hh_l0_reverse [20, 2]",
            "bias_ih_l0_reverse [20]",
            "bias_hh_l0_reverse [20]",
            "weight_hr_l0_reverse [2, 5]",
            "weight_ih_l1 [20, 4]",
        ];
        assert_eq!(found[..expected.len()], expected);
        assert_eq!(found.len(), 20);
        assert_eq!(
            lstm.to_string(),
            "LSTM(3, 5, proj_size=2, num_layers=2, batch_first=True, dropout=0.5, bidirectional=True)"
        );
    }

    #[test]
    fn dropout_acts_between_layers_in_training_only() {
        manual_seed(0);
        let gru = GRU::with_options(4, 6, TWO);
        let x = Tensor::randn([3, 7, 4], &Device::cpu());
        let run = || gru.forward(&x, None).0.to_vec::<f32>().unwrap();
        assert_ne!(run(), run());
        gru.eval();
        assert_eq!(run(), run());
        let copy = gru.deep_clone();
        copy.train();
        assert_eq!(run(), run(), "a copy has a switch of its own");
    }

    #[test]
    fn a_text_by_itself_gives_what_it_gives_in_a_packed_batch() {
        manual_seed(0);
        let rnn = RNN::with_options(4, 6, TWO);
        rnn.eval();
        let x = Tensor::randn([3, 5, 4], &Device::cpu());
        let state = Tensor::randn([4, 3, 6], &Device::cpu());
        let (_, last) = rnn.forward(&pack_padded_sequence(&x, [2, 5, 3], true, false), Some(&state));
        for (text, length) in [(0, 2), (1, 5), (2, 3)] {
            let alone = x.select(0, text).narrow(0, 0, length);
            let (output, hidden) = rnn.forward(&alone, Some(&state.select(1, text)));
            assert_eq!((output.shape(), hidden.shape()), (&[length, 12].into(), &[4, 6].into()));
            assert!(last.select(1, text).allclose(&hidden, 1e-6, 1e-6, false).unwrap(), "text {text}");
        }
    }

    #[test]
    fn all_parameters_get_gradients() {
        let lstm = LSTM::with_options(3, 5, TWO);
        let (output, _) = lstm.forward(&Tensor::randn([2, 4, 3], &Device::cpu()), None);
        output.square().sum(..).backward();
        assert!(
            lstm.parameters().iter().all(|p| p.grad().is_some_and(|g| g.abs().sum(..).item().unwrap() > 0.0))
        );
        lstm.parameters().iter().for_each(Param::zero_grad);
    }

    #[test]
    #[should_panic(expected = "LSTM: the input has 4 features, input_size is 3")]
    fn wrong_features_are_named() {
        LSTM::new(3, 5).forward(&Tensor::zeros([2, 6, 4], &Device::cpu()), None);
    }

    #[test]
    #[should_panic(expected = "GRU: the initial state must have shape [1, 6, 5]")]
    fn a_state_with_the_batch_first_is_refused() {
        let (x, state) = (Tensor::zeros([6, 2, 3], &Device::cpu()), Tensor::zeros([6, 1, 5], &Device::cpu()));
        GRU::new(3, 5).batch_first().forward(&x, Some(&state));
    }

    #[test]
    #[should_panic(expected = "GRU: only an LSTM has a proj_size")]
    fn projections_are_for_lstms() {
        GRU::with_options(3, 5, RecurrentOptions { proj_size: 2, ..Default::default() });
    }
}
