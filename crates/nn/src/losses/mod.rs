//! Losses, PyTorch's names and defaults.

mod classification;
mod reduction;
mod regression;

pub use classification::{BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, KLDivLoss, NLLLoss};
pub use reduction::Reduction;
pub use regression::{HuberLoss, L1Loss, MSELoss, SmoothL1Loss};
