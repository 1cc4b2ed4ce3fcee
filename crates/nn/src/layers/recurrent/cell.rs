//! Single steps of recurrent layers.

use super::RnnNonlinearity;
use crate::Module;
use crate::repr::python_bool;
use orkest_core::op::{Recurrence, RecurrentCell};
use orkest_core::{Device, Param, RecurrentWeights, Tensor};

/// Defines a cell: parameters, constructors and its one step.
macro_rules! cell {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $ty:ty = $default:expr),* }, $gates:expr) => {
        $(#[$meta])*
        #[derive(Module, Clone, Debug)]
        #[module(extra_repr)]
        pub struct $name {
            /// `[gates * hidden_size, input_size]`
            pub weight_ih: Param,
            /// `[gates * hidden_size, hidden_size]`
            pub weight_hh: Param,
            /// `[gates * hidden_size]`
            pub bias_ih: Option<Param>,
            /// `[gates * hidden_size]`
            pub bias_hh: Option<Param>,
            $(#[module(skip)] $field: $ty,)*
        }

        impl $name {
            /// With biases, on the CPU. All parameters start uniform in ±1/√hidden_size, with PyTorch's numbers for the same
            /// `manual_seed`.
            #[track_caller]
            pub fn new(input_size: usize, hidden_size: usize) -> $name {
                let mut cell = $name::without_bias(input_size, hidden_size);
                cell.bias_ih = Some(draw(&[$gates * hidden_size], hidden_size));
                cell.bias_hh = Some(draw(&[$gates * hidden_size], hidden_size));
                cell
            }

            /// Without biases, on the CPU. No random numbers are drawn for them.
            #[track_caller]
            pub fn without_bias(input_size: usize, hidden_size: usize) -> $name {
                $name {
                    weight_ih: draw(&[$gates * hidden_size, input_size], hidden_size),
                    weight_hh: draw(&[$gates * hidden_size, hidden_size], hidden_size),
                    bias_ih: None,
                    bias_hh: None,
                    $($field: $default,)*
                }
            }

            fn sizes(&self) -> String {
                let bias = if self.bias_ih.is_some() { String::new() } else { format!(", bias={}", python_bool(false)) };
                format!("{}, {}{bias}", self.weight_ih.shape()[1], self.weight_hh.shape()[1])
            }

            #[track_caller]
            fn step(&self, cell: RecurrentCell, input: &Tensor, state: &[&Tensor]) -> Vec<Tensor> {
                let params = [&self.weight_ih, &self.weight_hh].map(Param::tensor);
                let bias = self.bias_ih.as_ref().zip(self.bias_hh.as_ref()).map(|(a, b)| (a.tensor(), b.tensor()));
                step(cell, &params, bias.as_ref(), input, state)
            }
        }
    };
}

fn draw(shape: &[usize], hidden_size: usize) -> Param {
    let bound = if hidden_size > 0 { 1.0 / (hidden_size as f64).sqrt() } else { 0.0 };
    Param::new(Tensor::uniform(shape, -bound, bound, &Device::cpu()))
}

/// The next state.
#[track_caller]
fn step(
    cell: RecurrentCell,
    [ih, hh]: &[Tensor; 2],
    bias: Option<&(Tensor, Tensor)>,
    input: &Tensor,
    state: &[&Tensor],
) -> Vec<Tensor> {
    let batched = input.rank() == 2;
    let name = cell.name();
    assert!(
        batched || input.rank() == 1,
        "{name}: an input of 1 or 2 dimensions is needed. input: {}",
        input.describe()
    );
    let rows = |t: &Tensor| if batched { t.clone() } else { t.unsqueeze(0) };
    let input = rows(input);
    let state: Vec<Tensor> = match state {
        [] => {
            let zeros = Tensor::zeros([input.size(0), hh.size(1)], (input.dtype(), input.device()));
            vec![zeros; cell.states()]
        }
        state => state.iter().map(|s| rows(s)).collect(),
    };
    let recurrence = Recurrence { cell, reverse: false, batch_sizes: [input.size(0)].into() };
    let weights = RecurrentWeights { ih, hh, bias: bias.map(|(a, b)| (a, b)), hr: None };
    let next = input.recurrent(&recurrence, weights, &state).into_iter().skip(1);
    next.map(|s| if batched { s } else { s.squeeze(0) }).collect()
}

cell! {
    /// One step of an [`RNN`](crate::RNN): PyTorch's
    /// [`RNNCell`](https://docs.pytorch.org/docs/stable/generated/torch.nn.RNNCell.html).
    ///
    /// # Shapes
    /// - input: `[batch, input_size]` or `[input_size]`
    /// - state and result: `[batch, hidden_size]` or `[hidden_size]`
    RNNCell { nonlinearity: RnnNonlinearity = RnnNonlinearity::Tanh }, 1
}

impl RNNCell {
    /// What is applied to the sums. Default: the hyperbolic tangent.
    #[must_use]
    pub fn nonlinearity(mut self, nonlinearity: RnnNonlinearity) -> RNNCell {
        self.nonlinearity = nonlinearity;
        self
    }

    /// The next state, from `state` or zeros.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, state: Option<&Tensor>) -> Tensor {
        self.step(self.nonlinearity.cell(), input, state.as_slice()).remove(0)
    }

    fn extra_repr(&self) -> String {
        let relu = if self.nonlinearity == RnnNonlinearity::Relu { ", nonlinearity=relu" } else { "" };
        self.sizes() + relu
    }
}

cell! {
    /// One step of an [`LSTM`](crate::LSTM): PyTorch's
    /// [`LSTMCell`](https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTMCell.html).
    ///
    /// # Shapes
    /// - input: `[batch, input_size]` or `[input_size]`
    /// - states and results `h` and `c`: `[batch, hidden_size]` or `[hidden_size]`
    LSTMCell {}, 4
}

impl LSTMCell {
    /// The next states `(h, c)`, from `state` or zeros.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, state: Option<(&Tensor, &Tensor)>) -> (Tensor, Tensor) {
        let state: Vec<&Tensor> = state.into_iter().flat_map(|(h, c)| [h, c]).collect();
        let [h, c] = self
            .step(RecurrentCell::Lstm, input, &state)
            .try_into()
            .unwrap_or_else(|_| unreachable!("two states"));
        (h, c)
    }

    fn extra_repr(&self) -> String {
        self.sizes()
    }
}

cell! {
    /// One step of a [`GRU`](crate::GRU): PyTorch's
    /// [`GRUCell`](https://docs.pytorch.org/docs/stable/generated/torch.nn.GRUCell.html).
    ///
    /// # Shapes
    /// - input: `[batch, input_size]` or `[input_size]`
    /// - state and result: `[batch, hidden_size]` or `[hidden_size]`
    GRUCell {}, 3
}

impl GRUCell {
    /// The next state, from `state` or zeros.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, state: Option<&Tensor>) -> Tensor {
        self.step(RecurrentCell::Gru, input, state.as_slice()).remove(0)
    }

    fn extra_repr(&self) -> String {
        self.sizes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LSTM;

    #[test]
    fn a_cell_makes_the_steps_of_its_layer() {
        let (layer, cell) = (LSTM::new(3, 4), LSTMCell::new(3, 4));
        for (to, from) in cell.parameters().iter().zip(layer.parameters()) {
            to.set_value(&from.value());
        }
        let x = Tensor::randn([5, 2, 3], &Device::cpu());
        let (output, (h, c)) = layer.forward(&x, None);
        let mut state = cell.forward(&x.select(0, 0), None);
        for t in 1..5 {
            state = cell.forward(&x.select(0, t), Some((&state.0, &state.1)));
        }
        for (a, b) in
            [(&state.0, &h.squeeze(0)), (&state.1, &c.squeeze(0)), (&state.0, &output.select(0, -1))]
        {
            assert!(a.allclose(b, 1e-6, 1e-6, false).unwrap());
        }
    }

    #[test]
    fn printed_as_in_pytorch() {
        assert_eq!(LSTMCell::without_bias(3, 4).to_string(), "LSTMCell(3, 4, bias=False)");
        assert_eq!(
            RNNCell::new(3, 4).nonlinearity(RnnNonlinearity::Relu).to_string(),
            "RNNCell(3, 4, nonlinearity=relu)"
        );
    }
}
