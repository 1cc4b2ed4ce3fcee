//! The public operations of [`Tensor`](crate::Tensor), a family per file, each with its gradient beside it.

mod activation;
mod adaptive_pool;
mod attention;
mod batch_norm;
mod cast;
mod concat;
mod conv;
mod conv_transpose;
mod creation;
mod cumulative;
mod dropout;
mod einsum;
mod elementwise;
mod group_norm;
mod in_place;
mod index;
mod linear;
mod loss;
mod lowering;
mod matmul;
mod ndarray;
mod norm;
mod operators;
mod pad;
mod pool;
mod recurrent;
mod reduce;
mod resample;
mod softmax;
mod sort;
#[cfg(test)]
mod testing;
mod view;

pub use conv::Size2;
pub use creation::meshgrid;
pub use creation::{TensorData, TensorOptions};
pub use einsum::einsum;
pub use elementwise::Operand;
pub use index::{Index, IndexList, Slice, slice};
pub use pad::PadMode;
pub use pool::{AvgPoolOptions, MaxPoolOptions, PoolStride};
pub use recurrent::RecurrentWeights;
pub use resample::{Interpolation, Resize};
