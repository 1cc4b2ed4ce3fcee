//! Gated recurrent units.

use super::stack::{RecurrentInput, RecurrentOptions, Stack, recurrent_layer};
use crate::{Module, Rebuild, Visitor};
use orkest_core::Tensor;
use orkest_core::op::RecurrentCell;

/// Gated recurrent units: PyTorch's [`GRU`](https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html).
///
/// In every step, with the gates `r, z, n` in this order along the rows of the weights:
///
/// ```text
/// r = σ(W_ir x + b_ir + W_hr h + b_hr)
/// z = σ(W_iz x + b_iz + W_hz h + b_hz)
/// n = tanh(W_in x + b_in + r (W_hn h + b_hn))
/// h' = (1 - z) n + z h
/// ```
///
/// Names, order and start of the parameters are those of [`LSTM`](crate::LSTM).
///
/// # Shapes
/// - input: `[steps, batch, input_size]`, `[batch, steps, input_size]` if `batch_first`, `[steps, input_size]`, or a
///   [`PackedSequence`](crate::PackedSequence)
/// - output: as the input, with `directions * hidden_size` features
/// - state: `[layers * directions, batch, hidden_size]`, without a batch `[layers * directions, hidden_size]`
/// - `weight_ih`: `[3 * hidden_size, features]`, `weight_hh`: `[3 * hidden_size, hidden_size]`, biases: `[3 * hidden_size]`
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::GRU;
/// let gru = GRU::new(3, 5);
/// let (output, hidden) = gru.forward(&Tensor::zeros([7, 2, 3], &Device::cpu()), None);
/// assert_eq!((output.dims(), hidden.dims()), ([7, 2, 5], [1, 2, 5]));
/// ```
#[derive(Clone, Debug)]
pub struct GRU {
    stack: Stack,
}

recurrent_layer!(GRU,);

impl GRU {
    /// On the CPU.
    ///
    /// # Panics
    /// If a size is 0, `dropout` lies outside `[0, 1]`, or there is a `proj_size`.
    #[track_caller]
    pub fn with_options(input_size: usize, hidden_size: usize, options: RecurrentOptions) -> GRU {
        assert!(options.proj_size == 0, "GRU: only an LSTM has a proj_size");
        GRU { stack: Stack::new("GRU", RecurrentCell::Gru.gates(), input_size, hidden_size, options) }
    }

    /// The outputs of the last layer in every step, and the last state of all layers. Starts from `state`, else from zeros.
    ///
    /// # Panics
    /// If the shapes do not fit.
    #[track_caller]
    pub fn forward<S: RecurrentInput>(&self, input: &S, state: Option<&Tensor>) -> (S, Tensor) {
        let (output, mut last) =
            self.stack.forward(RecurrentCell::Gru, input, state.as_ref().map(std::slice::from_ref));
        (output, last.remove(0))
    }
}
