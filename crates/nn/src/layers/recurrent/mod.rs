//! Recurrent layers, and texts of different lengths for them.

mod cell;
mod gru;
mod lstm;
mod packed;
mod rnn;
mod stack;

pub use cell::{GRUCell, LSTMCell, RNNCell};
pub use gru::GRU;
pub use lstm::LSTM;
pub use packed::{
    Lengths, PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence,
};
pub use rnn::{RNN, RnnNonlinearity};
pub use stack::{RecurrentInput, RecurrentOptions};
