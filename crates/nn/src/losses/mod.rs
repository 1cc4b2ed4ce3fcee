//! Losses, PyTorch's names and defaults.

mod classification;
mod ctc;
mod distance;
mod focal;
mod likelihood;
mod margin;
mod options;
mod reduction;
mod regression;

pub use classification::{BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, KLDivLoss, NLLLoss};
pub use ctc::CTCLoss;
pub use distance::{
    CosineEmbeddingLoss, CosineSimilarity, PairwiseDistance, TripletMarginLoss, TripletMarginWithDistanceLoss,
};
pub use focal::SigmoidFocalLoss;
pub use likelihood::{GaussianNLLLoss, PoissonNLLLoss};
pub use margin::{
    HingeEmbeddingLoss, MarginRankingLoss, MultiLabelMarginLoss, MultiLabelSoftMarginLoss, MultiMarginLoss,
    SoftMarginLoss,
};
pub use reduction::Reduction;
pub use regression::{HuberLoss, L1Loss, MSELoss, SmoothL1Loss};
