//! Layers, one file each.

mod activation;
mod attention;
mod batch_norm;
mod conv;
mod conv_transpose;
mod dropout;
mod embedding;
mod group_norm;
mod linear;
mod norm;
mod pool;
mod position;
mod recurrent;
mod resample;
mod sequential;
mod swiglu;
mod transformer;

pub use activation::{
    ELU, Flatten, GELU, Identity, LeakyReLU, LogSigmoid, LogSoftmax, ReLU, SiLU, Sigmoid, Softmax, Softplus,
    Tanh,
};
pub use attention::{AttentionOptions, KvCache, MultiheadAttention, MultiheadAttentionOptions};
pub use batch_norm::{BatchNorm1d, BatchNorm2d};
pub use conv::{Conv1d, Conv2d, Padding};
pub use conv_transpose::{ConvTranspose1d, ConvTranspose2d};
pub use dropout::{Dropout, Dropout1d, Dropout2d};
pub use embedding::Embedding;
pub use group_norm::{GroupNorm, InstanceNorm1d, InstanceNorm2d};
pub use linear::Linear;
pub use norm::{LayerNorm, RMSNorm};
pub use pool::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveMaxPool1d, AdaptiveMaxPool2d, AvgPool1d, AvgPool2d,
    MaxPool1d, MaxPool2d,
};
pub use position::{PositionalEncoding, RotaryEmbedding};
pub use recurrent::{
    GRU, GRUCell, LSTM, LSTMCell, Lengths, PackedSequence, RNN, RNNCell, RecurrentInput, RecurrentOptions,
    RnnNonlinearity, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence,
};
pub use resample::{PixelShuffle, PixelUnshuffle, Unflatten, Upsample, ZeroPad2d};
pub use sequential::{AnyLayer, Sequential};
pub use swiglu::SwiGLU;
pub use transformer::{
    Transformer, TransformerDecoder, TransformerDecoderLayer, TransformerEncoder, TransformerEncoderLayer,
    TransformerMasks, TransformerOptions,
};
