//! The plain recurrent layer.

use super::stack::{RecurrentInput, RecurrentOptions, Stack, recurrent_layer};
use crate::{Module, Rebuild, Visitor};
use orkest_core::Tensor;
use orkest_core::op::RecurrentCell;

/// What a plain recurrent layer applies to its sums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RnnNonlinearity {
    /// PyTorch's default.
    Tanh,
    /// `max(x, 0)`
    Relu,
}

impl RnnNonlinearity {
    pub(super) fn cell(self) -> RecurrentCell {
        match self {
            RnnNonlinearity::Tanh => RecurrentCell::RnnTanh,
            RnnNonlinearity::Relu => RecurrentCell::RnnRelu,
        }
    }
}

/// The Elman network, `h' = tanh(W_ih x + b_ih + W_hh h + b_hh)`: PyTorch's
/// [`RNN`](https://docs.pytorch.org/docs/stable/generated/torch.nn.RNN.html).
///
/// Names, order and start of the parameters are those of [`LSTM`](crate::LSTM).
///
/// # Shapes
/// - input: `[steps, batch, input_size]`, `[batch, steps, input_size]` if `batch_first`, `[steps, input_size]`, or a
///   [`PackedSequence`](crate::PackedSequence)
/// - output: as the input, with `directions * hidden_size` features
/// - state: `[layers * directions, batch, hidden_size]`, without a batch `[layers * directions, hidden_size]`
/// - `weight_ih`: `[hidden_size, features]`, `weight_hh`: `[hidden_size, hidden_size]`, biases: `[hidden_size]`
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{RNN, RnnNonlinearity};
/// let rnn = RNN::new(3, 5).nonlinearity(RnnNonlinearity::Relu);
/// let (output, hidden) = rnn.forward(&Tensor::zeros([7, 2, 3], &Device::cpu()), None);
/// assert_eq!((output.dims(), hidden.dims()), ([7, 2, 5], [1, 2, 5]));
/// ```
#[derive(Clone, Debug)]
pub struct RNN {
    stack: Stack,
    nonlinearity: RnnNonlinearity,
}

recurrent_layer!(RNN, nonlinearity);

impl RNN {
    /// On the CPU.
    ///
    /// # Panics
    /// If a size is 0, `dropout` lies outside `[0, 1]`, or there is a `proj_size`.
    #[track_caller]
    pub fn with_options(input_size: usize, hidden_size: usize, options: RecurrentOptions) -> RNN {
        assert!(options.proj_size == 0, "RNN: only an LSTM has a proj_size");
        let stack = Stack::new("RNN", RecurrentCell::RnnTanh.gates(), input_size, hidden_size, options);
        RNN { stack, nonlinearity: RnnNonlinearity::Tanh }
    }

    /// What is applied to the sums. Default: the hyperbolic tangent.
    #[must_use]
    pub fn nonlinearity(mut self, nonlinearity: RnnNonlinearity) -> RNN {
        self.nonlinearity = nonlinearity;
        self
    }

    /// The outputs of the last layer in every step, and the last state of all layers. Starts from `state`, else from zeros.
    ///
    /// # Panics
    /// If the shapes do not fit.
    #[track_caller]
    pub fn forward<S: RecurrentInput>(&self, input: &S, state: Option<&Tensor>) -> (S, Tensor) {
        let cell = self.nonlinearity.cell();
        let (output, mut last) = self.stack.forward(cell, input, state.as_ref().map(std::slice::from_ref));
        (output, last.remove(0))
    }
}
