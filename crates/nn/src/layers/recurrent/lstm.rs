//! Long short-term memory.

use super::stack::{RecurrentInput, RecurrentOptions, Stack, recurrent_layer};
use crate::{Module, Rebuild, Visitor};
use orkest_core::Tensor;
use orkest_core::op::RecurrentCell;

/// Long short-term memory: PyTorch's [`LSTM`](https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html).
///
/// In every step, with the gates `i, f, g, o` in this order along the rows of the weights:
///
/// ```text
/// i = σ(W_ii x + b_ii + W_hi h + b_hi)     c' = f c + i g
/// f = σ(W_if x + b_if + W_hf h + b_hf)     h' = o tanh(c')
/// g = tanh(W_ig x + b_ig + W_hg h + b_hg)
/// o = σ(W_io x + b_io + W_ho h + b_ho)
/// ```
///
/// Parameters are called `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0` (and `weight_hr_l0` with a projection), then
/// `.._l0_reverse`, then `.._l1`, as in PyTorch. All start uniform in ±1/√hidden_size, with PyTorch's numbers for the same
/// `manual_seed`.
///
/// # Shapes
/// - input: `[steps, batch, input_size]`, `[batch, steps, input_size]` if `batch_first`, `[steps, input_size]`, or a
///   [`PackedSequence`](crate::PackedSequence)
/// - output: as the input, with `directions * hidden_size` features (`proj_size` instead of `hidden_size` if there is one)
/// - states `h` and `c`: `[layers * directions, batch, hidden_size]`; `h` with `proj_size` if there is one; without a batch
///   `[layers * directions, hidden_size]`
/// - `weight_ih`: `[4 * hidden_size, features]`, `weight_hh`: `[4 * hidden_size, hidden_size]`, biases: `[4 * hidden_size]`
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::LSTM;
/// let lstm = LSTM::new(64, 128).batch_first();
/// let (output, (hidden, cell)) = lstm.forward(&Tensor::zeros([32, 100, 64], &Device::cpu()), None);
/// assert_eq!(output.shape(), &[32, 100, 128]);
/// assert_eq!((hidden.dims(), cell.dims()), ([1, 32, 128], [1, 32, 128]));
/// ```
#[derive(Clone, Debug)]
pub struct LSTM {
    stack: Stack,
}

recurrent_layer!(LSTM,);

impl LSTM {
    /// On the CPU.
    ///
    /// # Panics
    /// If a size is 0, `dropout` lies outside `[0, 1]`, or `proj_size` is not smaller than `hidden_size`.
    #[track_caller]
    pub fn with_options(input_size: usize, hidden_size: usize, options: RecurrentOptions) -> LSTM {
        LSTM { stack: Stack::new("LSTM", RecurrentCell::Lstm.gates(), input_size, hidden_size, options) }
    }

    /// The outputs of the last layer in every step, and the last states `(h, c)` of all layers. Starts from `state`, else from zeros.
    ///
    /// # Panics
    /// If the shapes do not fit.
    #[track_caller]
    pub fn forward<S: RecurrentInput>(
        &self,
        input: &S,
        state: Option<(&Tensor, &Tensor)>,
    ) -> (S, (Tensor, Tensor)) {
        let state = state.map(|(h, c)| [h, c]);
        let (output, last) = self.stack.forward(RecurrentCell::Lstm, input, state.as_ref().map(|s| &s[..]));
        let [h, c] = last.try_into().unwrap_or_else(|_| unreachable!("an LSTM has two states"));
        (output, (h, c))
    }
}
