//! Layers, one file each.

mod activation;
mod attention;
mod batch_norm;
mod bilinear;
mod conv;
mod conv_transpose;
mod dropout;
mod embedding;
mod embedding_bag;
mod group_norm;
mod linear;
mod norm;
mod pad;
mod patches;
mod pool;
mod position;
mod recurrent;
mod resample;
mod sequential;
mod swiglu;
mod transformer;
mod unpool;

pub use activation::{
    CELU, ELU, Flatten, GELU, GLU, Hardshrink, Hardsigmoid, Hardswish, Hardtanh, Identity, LeakyReLU,
    LogSigmoid, LogSoftmax, Mish, PReLU, RReLU, ReLU, ReLU6, SELU, SiLU, Sigmoid, Softmax, Softmax2d,
    Softmin, Softplus, Softshrink, Softsign, Tanh, Tanhshrink, Threshold,
};
pub use attention::{AttentionOptions, KvCache, MultiheadAttention, MultiheadAttentionOptions};
pub use batch_norm::{BatchNorm1d, BatchNorm2d};
pub use bilinear::Bilinear;
pub use conv::{Conv1d, Conv2d, Padding};
pub use conv_transpose::{ConvTranspose1d, ConvTranspose2d};
pub use dropout::{AlphaDropout, Dropout, Dropout1d, Dropout2d};
pub use embedding::Embedding;
pub use embedding_bag::{BagMode, EmbeddingBag};
pub use group_norm::{GroupNorm, InstanceNorm1d, InstanceNorm2d};
pub use linear::Linear;
pub use norm::{LayerNorm, LocalResponseNorm, RMSNorm};
pub use pad::{
    CircularPad1d, CircularPad2d, ConstantPad1d, ConstantPad2d, ReflectionPad1d, ReflectionPad2d,
    ReplicationPad1d, ReplicationPad2d, Sides, ZeroPad1d, ZeroPad2d,
};
pub use patches::{Fold, Unfold};
pub use pool::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveMaxPool1d, AdaptiveMaxPool2d, AvgPool1d, AvgPool2d,
    MaxPool1d, MaxPool2d,
};
pub use position::{PositionalEncoding, RotaryEmbedding};
pub use recurrent::{
    GRU, GRUCell, LSTM, LSTMCell, Lengths, PackedSequence, RNN, RNNCell, RecurrentInput, RecurrentOptions,
    RnnNonlinearity, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence,
};
pub use resample::{ChannelShuffle, PixelShuffle, PixelUnshuffle, Unflatten, Upsample};
pub use sequential::{AnyLayer, Sequential};
pub use swiglu::SwiGLU;
pub use transformer::{
    Transformer, TransformerDecoder, TransformerDecoderLayer, TransformerEncoder, TransformerEncoderLayer,
    TransformerMasks, TransformerOptions,
};
pub use unpool::{MaxUnpool1d, MaxUnpool2d};
