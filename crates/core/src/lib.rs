//! The tensor, the autograd graph and the backend interface of Orkest.
//!
//! Most programs depend on the facade crate `orkest` instead, which adds the backends and the neural-network layers.
//!
//! | to read about | see |
//! |---|---|
//! | tensors and their operations | [`Tensor`] |
//! | gradients | [`Tensor::backward`], [`grad`], [`no_grad`], [`Param`], [`Function`], [`checkpoint`], [`Tensor::register_hook`], [`detect_anomaly`] |
//! | mixed precision | [`autocast()`] |
//! | kernels of your own | [`Kernel`] |
//! | where things run | [`Device`], [`backend::Backend`], [`Op`] |
//! | random numbers | [`manual_seed`], [`Generator`] |

mod autocast;
pub mod autograd;
pub mod backend;
mod caller;
mod decompose;
mod device;
mod dispatch;
mod display;
mod dtype;
mod error;
mod files;
mod kernel;
mod layout;
pub mod op;
mod ops;
pub mod profile;
pub mod random;
pub mod reference;
mod sampling;
mod shape;
pub mod special;
mod tensor;

pub use autocast::{autocast, autocast_dtype, no_autocast};
pub use autograd::{
    BackwardOptions, Context, Function, GradMode, Gradients, HookHandle, Hooks, Outputs, Param, Rule,
    checkpoint, detect_anomaly, enable_grad, grad, gradcheck, gradgradcheck, is_grad_enabled, joint_hook,
    no_grad,
};
pub use backend::{Backend, Buffer, Download, MemoryStats, Output, RawBuffer, View};
pub use caller::{Caller, caller};
pub use device::{Device, DeviceInfo, DeviceType, Registration, devices};
pub use dispatch::run_in_place;
pub use dtype::{Category, DType, Element, Scalar};
pub use error::{Error, Result};
pub use files::{output_folder, write_file};
pub use half::{bf16, f16};
#[doc(hidden)]
pub use inventory;
pub use kernel::{Elements, Kernel, Shader, Word};
pub use layout::{Layout, Positions};
pub use op::Op;
pub use ops::{
    AvgPoolOptions, GridMode, GridPadding, Index, IndexList, Interpolation, MaxPoolOptions, Operand, PadMode,
    PoolStride, RecurrentWeights, Resize, ScatterReduce, Size2, Slice, TensorData, TensorOptions, einsum,
    meshgrid, slice, tril_indices, triu_indices,
};
pub use random::{Generator, manual_seed, rng_state, set_rng_state, with_generator};
pub use shape::{DimSet, IntoDim, IntoDims, MAX_RANK, ReduceDims, Shape};
pub use tensor::Tensor;
