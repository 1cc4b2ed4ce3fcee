//! Modules, layers, losses, optimizers and weight files of Orkest.
//!
//! Most programs depend on the facade crate `orkest`, which adds the devices.
//!
//! ```
//! use orkest_core::{Device, Tensor};
//! use orkest_nn::{Layer, Linear, Module};
//!
//! #[derive(Module)]
//! struct Net {
//!     fc1: Linear,
//!     fc2: Linear,
//! }
//!
//! impl Net {
//!     fn forward(&self, x: &Tensor) -> Tensor {
//!         self.fc2.forward(&self.fc1.forward(x).relu())
//!     }
//! }
//!
//! let net = Net { fc1: Linear::new(4, 8), fc2: Linear::new(8, 2) };
//! assert_eq!(net.forward(&Tensor::zeros([3, 4], &Device::cpu())).shape(), &[3, 2]);
//! assert_eq!(net.num_parameters(), 4 * 8 + 8 + 8 * 2 + 2);
//! println!("{net}");
//! ```
//!
//! | to read about | see |
//! |---|---|
//! | models | [`Module`](trait@Module), its [derive](derive@Module), [`Layer`], [`Param`], [`Buffer`], [`Sequential`] |
//! | layers | [`Linear`], [`Bilinear`], [`Embedding`], [`EmbeddingBag`], [`Dropout`], [`LayerNorm`], [`RMSNorm`] |
//! | layers for planes | [`Conv2d`], [`ConvTranspose2d`], [`MaxPool2d`], [`AvgPool2d`], [`AdaptiveAvgPool2d`], [`MaxUnpool2d`], [`Upsample`], [`PixelShuffle`], [`Unfold`], and most with 1d |
//! | padding | [`ZeroPad2d`], [`ConstantPad2d`], [`ReflectionPad2d`], [`ReplicationPad2d`], [`CircularPad2d`], all with 1d; [`PadMode`](orkest_core::PadMode) |
//! | norms of channels | [`BatchNorm2d`], [`BatchNorm1d`], [`GroupNorm`], [`InstanceNorm2d`], [`LocalResponseNorm`], [`Dropout2d`] |
//! | recurrent layers | [`LSTM`], [`GRU`], [`RNN`], their cells, [`PackedSequence`], [`pack_padded_sequence`] |
//! | attention | [`MultiheadAttention`], [`Transformer`] and its parts, [`KvCache`], [`RotaryEmbedding`], [`PositionalEncoding`], [`SwiGLU`] |
//! | activations | [`ReLU`], [`GELU`], [`SiLU`], [`Tanh`], [`Sigmoid`], [`Softmax`], [`PReLU`], [`GLU`], [`Hardswish`], [`Mish`] and all others of PyTorch |
//! | losses | [`CrossEntropyLoss`], [`BCEWithLogitsLoss`], [`MSELoss`], [`CTCLoss`], [`TripletMarginLoss`], [`SigmoidFocalLoss`] and others |
//! | training | [`optim`], [`scheduler`], [`clip`], [`init`] |
//! | mixed precision | [`autocast`](orkest_core::autocast()), [`GradScaler`] |
//! | watching a module, averaging weights | [`Hooked`], [`AveragedModel`] |
//! | weights | [`StateDict`], [`Module::save_safetensors`], [`load_safetensors`], [`load_pytorch`] |

extern crate self as orkest_nn;

mod averaged;
mod buffer;
pub mod clip;
mod field;
mod grad_scaler;
mod hooks;
pub mod init;
mod layers;
mod losses;
mod mode;
mod module;
pub mod optim;
mod pytorch;
mod repr;
mod safetensors;
pub mod scheduler;
mod state_dict;

pub use averaged::AveragedModel;
pub use buffer::Buffer;
pub use clip::*;
pub use field::Field;
pub use grad_scaler::GradScaler;
pub use hooks::{Hooked, Tensors};
pub use layers::*;
pub use losses::*;
pub use mode::Mode;
pub use module::{Layer, Member, Module, Rebuild, Visitor};
pub use orkest_core::Param;
pub use orkest_macros::Module;
pub use pytorch::load_pytorch;
#[doc(hidden)]
pub use repr::repr;
pub use safetensors::load_safetensors;
pub use state_dict::{IncompatibleKeys, StateDict};

/// What a model and its training loop usually name.
pub mod prelude {
    pub use crate::clip::*;
    pub use crate::layers::*;
    pub use crate::losses::*;
    pub use crate::optim::*;
    pub use crate::scheduler::*;
    pub use crate::{
        AveragedModel, Buffer, GradScaler, Hooked, Layer, Mode, Module, Param, StateDict, clip, init,
        load_pytorch, load_safetensors, optim, scheduler, sequential,
    };
}

/// The README's example, run by the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
