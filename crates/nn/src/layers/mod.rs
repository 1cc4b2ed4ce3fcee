//! Layers, one file each.

mod activation;
mod dropout;
mod embedding;
mod linear;
mod norm;
mod sequential;

pub use activation::{
    ELU, Flatten, GELU, Identity, LeakyReLU, LogSigmoid, LogSoftmax, ReLU, SiLU, Sigmoid, Softmax, Softplus,
    Tanh,
};
pub use dropout::Dropout;
pub use embedding::Embedding;
pub use linear::Linear;
pub use norm::{LayerNorm, RMSNorm};
pub use sequential::{AnyLayer, Sequential};
