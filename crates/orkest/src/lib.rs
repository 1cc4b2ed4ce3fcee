//! Deep learning in Rust with PyTorch's names, defaults and file formats.
//!
//! A text classifier, from definition to trained:
//!
//! ```
//! use orkest::prelude::*;
//!
//! #[derive(Module)]
//! struct SentimentClassifier {
//!     embedding: Embedding,
//!     fc1: Linear,
//!     fc2: Linear,
//!     dropout: Dropout,
//! }
//!
//! impl SentimentClassifier {
//!     fn new(vocab_size: usize, embed_dim: usize, hidden_dim: usize, output_dim: usize) -> Self {
//!         SentimentClassifier {
//!             embedding: Embedding::new(vocab_size, embed_dim),
//!             fc1: Linear::new(embed_dim, hidden_dim),
//!             fc2: Linear::new(hidden_dim, output_dim),
//!             dropout: Dropout::new(0.3),
//!         }
//!     }
//!
//!     fn forward(&self, x: &Tensor) -> Tensor {
//!         let embedded = self.embedding.forward(x).mean(1); // [batch, seq] -> [batch, embed_dim]
//!         let hidden = self.dropout.forward(&self.fc1.forward(&embedded).relu());
//!         self.fc2.forward(&hidden)
//!     }
//! }
//!
//! # fn main() -> orkest::Result<()> {
//! manual_seed(0);
//! let device = Device::best();
//! let model = SentimentClassifier::new(100, 16, 32, 2).to(&device);
//! // Texts with a token above 50 are positive.
//! let inputs = Tensor::randint(0, 100, [128, 1], &device).repeat([1, 6]);
//! let labels = inputs.select(1, 0).gt(50).to_dtype(DType::I64);
//! let train_loader = DataLoader::new(TensorDataset::new((inputs, labels))).batch_size(16).shuffle(true);
//!
//! let criterion = CrossEntropyLoss::new();
//! let mut optimizer = Adam::new(model.parameters(), 1e-2);
//! let mut losses = Vec::new();
//! for epoch in 0..10 {
//!     let mut last = 0.0;
//!     for (inputs, labels) in &train_loader {
//!         optimizer.zero_grad();
//!         let loss = criterion.forward(&model.forward(&inputs), &labels);
//!         loss.backward();
//!         optimizer.step();
//!         last = loss.item()?;
//!     }
//!     println!("Epoch {}, Loss: {last:.4}", epoch + 1);
//!     losses.push(last);
//! }
//! assert!(losses[9] < 0.5 * losses[0], "{losses:?}");
//!
//! model.eval();
//! let texts = tensor![[7, 7, 7, 7, 7, 7], [77, 77, 77, 77, 77, 77]].to(&device);
//! let probabilities = no_grad(|| model.forward(&texts).softmax(-1));
//! assert_eq!(probabilities.shape(), &[2, 2]);
//! # Ok(())
//! # }
//! ```
//!
//! | to read about | see |
//! |---|---|
//! | tensors and their operations | [`Tensor`] |
//! | models, layers, losses, weight files | [`nn`] |
//! | data sets, batches, readers | [`data`] |
//! | optimizers and their schedules | [`optim`], [`nn::scheduler`] |
//! | gradients | [`Tensor::backward`], [`grad`], [`no_grad`], [`Param`] |
//! | operations of your own | [`Function`] (a gradient), [`Kernel`] (Rust and WGSL) |
//! | where things run | [`Device`] |
//! | random numbers | [`manual_seed`] |
//!
//! # Features
//!
//! - `cpu` (default): the vectorised, multi-threaded CPU backend. Without it [`Device::cpu`] is a plain interpreter.
//! - `data` (default): [`data`].
//! - `ndarray` (default): conversions to and from `ndarray` arrays.
//! - `wgpu`: the GPU backend: [`Device::wgpu`] on Vulkan, Metal and DX12.

// Backends announce themselves when they are linked, and only crates that are named are linked.
#[cfg(feature = "cpu")]
extern crate orkest_cpu as _;
#[cfg(feature = "wgpu")]
extern crate orkest_wgpu as _;

pub use orkest_core::*;
#[cfg(feature = "data")]
#[doc(inline)]
pub use orkest_data as data;

/// Modules, layers, losses and weight files.
pub mod nn {
    pub use orkest_macros::FacadeModule as Module;
    pub use orkest_nn::*;
}

pub use orkest_nn::{load_pytorch, load_safetensors, optim};

/// The number of threads that one operation on the CPU may use: `ORKEST_NUM_THREADS`, else the number of cores.
pub fn num_threads() -> usize {
    #[cfg(feature = "cpu")]
    let threads = orkest_cpu::parallel::num_threads();
    #[cfg(not(feature = "cpu"))]
    let threads = 1; // the interpreter
    threads
}

/// Everything a model and its training loop usually name: `use orkest::prelude::*;`
pub mod prelude {
    pub use crate::nn::Module;
    pub use crate::{
        BackwardOptions, DType, Device, Function, Index, Interpolation, Shape, Tensor, autocast, checkpoint,
        grad, manual_seed, no_grad, slice, tensor,
    };
    #[cfg(feature = "data")]
    pub use orkest_data::{DataLoader, Dataset, TensorDataset, random_split};
    pub use orkest_nn::prelude::*;
}

/// The README's example, run by the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
