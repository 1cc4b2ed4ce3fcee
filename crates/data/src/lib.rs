//! From files to batches: data sets, the loader that shuffles and collates them, readers, progress bars.
//!
//! Names, defaults and the order of a shuffle are those of `torch.utils.data`: the same seed gives the same batches.
//!
//! ```
//! use orkest_core::{Device, Tensor, manual_seed};
//! use orkest_data::{DataLoader, TensorDataset};
//!
//! manual_seed(7);
//! let inputs = Tensor::arange(0, 10, 1, &Device::cpu());
//! let labels = &inputs % 2;
//! let train_loader = DataLoader::new(TensorDataset::new((inputs, labels))).batch_size(3).shuffle(true);
//! let mut seen = Vec::new();
//! for (inputs, _labels) in &train_loader {
//!     seen.push(inputs.to_vec::<i64>()?);
//! }
//! assert_eq!(seen, [vec![3, 2, 7], vec![8, 6, 1], vec![5, 9, 0], vec![4]]); // as in PyTorch
//! # Ok::<(), orkest_core::Error>(())
//! ```
//!
//! | to read about | see |
//! |---|---|
//! | data sets | [`Dataset`], [`TensorDataset`], [`ListDataset`], [`ConcatDataset`] |
//! | parts of data sets | [`random_split`], [`Subset`] |
//! | batches | [`DataLoader`], [`Collate`], [`pad_collate`] |
//! | which items, in which order | [`Sampler`], [`RandomSampler`], [`WeightedRandomSampler`] |
//! | files | [`Table`] (CSV, TSV), [`read_idx`], [`read_text`], [`read_lines`] |
//! | progress bars | [`progress`] |

mod collate;
mod dataset;
mod file;
mod idx;
mod loader;
mod pad;
mod position;
mod progress;
mod sampler;
mod split;
mod table;
mod tensor_dataset;
mod text;
mod to_device;
mod workers;

pub use collate::Collate;
pub use dataset::{ConcatDataset, Dataset, ListDataset, Map};
pub use idx::{parse_idx, read_idx};
pub use loader::{Batches, DataLoader, LoadError, TryBatches};
pub use pad::{CollateFn, PadCollate, Sequence, pad_collate};
pub use progress::{Progress, progress};
pub use sampler::{RandomSampler, Sampler, SequentialSampler, WeightedRandomSampler};
pub use split::{SplitLengths, Subset, random_split, random_split_with};
pub use table::{Field, Table, TableOptions};
pub use tensor_dataset::{TensorDataset, TensorRows};
pub use text::{read_lines, read_text};
pub use to_device::ToDevice;

/// Any error: what a data set may answer with, so that `?` works on every error inside [`Dataset::get`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A result with any error, for [`Dataset::get`].
pub type Result<T, E = BoxError> = std::result::Result<T, E>;
