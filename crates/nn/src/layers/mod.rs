//! Layers, one file each.

mod activation;
mod dropout;
mod embedding;
mod linear;
mod norm;
mod recurrent;
mod sequential;

pub use activation::{
    ELU, Flatten, GELU, Identity, LeakyReLU, LogSigmoid, LogSoftmax, ReLU, SiLU, Sigmoid, Softmax, Softplus,
    Tanh,
};
pub use dropout::Dropout;
pub use embedding::Embedding;
pub use linear::Linear;
pub use norm::{LayerNorm, RMSNorm};
pub use recurrent::{
    GRU, GRUCell, LSTM, LSTMCell, Lengths, PackedSequence, RNN, RNNCell, RecurrentInput, RecurrentOptions,
    RnnNonlinearity, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence,
};
pub use sequential::{AnyLayer, Sequential};
