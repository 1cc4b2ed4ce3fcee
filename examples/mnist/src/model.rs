//! The network, and how it is stored.

use anyhow::{Result, bail};
use orkest::prelude::*;
use std::path::Path;

/// Two convolutions with batch norm, each halving the picture, then two linear layers.
#[derive(Module)]
pub struct Cnn {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    conv2: Conv2d,
    bn2: BatchNorm2d,
    fc1: Linear,
    fc2: Linear,
    pool: MaxPool2d,
    dropout: Dropout,
}

impl Cnn {
    pub fn new() -> Self {
        Self {
            // Batch norm subtracts whatever a bias would add.
            conv1: Conv2d::without_bias(1, 16, 3).padding(1),
            bn1: BatchNorm2d::new(16),
            conv2: Conv2d::without_bias(16, 32, 3).padding(1),
            bn2: BatchNorm2d::new(32),
            fc1: Linear::new(32 * 7 * 7, 128),
            fc2: Linear::new(128, 10),
            pool: MaxPool2d::new(2),
            dropout: Dropout::new(0.25),
        }
    }

    /// `[batch, 1, 28, 28]` pictures → `[batch, 10]` logits.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.pool.forward(&self.bn1.forward(&self.conv1.forward(x)).relu()); // [batch, 16, 14, 14]
        let x = self.pool.forward(&self.bn2.forward(&self.conv2.forward(&x)).relu()); // [batch, 32, 7, 7]
        let x = self.fc1.forward(&x.flatten(1, -1)).relu();
        self.fc2.forward(&self.dropout.forward(&x))
    }
}

/// Writes `model.safetensors` into `folder`: weights and running statistics.
pub fn save(model: &Cnn, folder: &Path) -> Result<()> {
    model.save_safetensors(folder.join("model.safetensors"))?;
    Ok(())
}

/// Reads what [`save`] wrote.
pub fn load(folder: &Path) -> Result<Cnn> {
    let weights = folder.join("model.safetensors");
    let model = Cnn::new();
    if let Err(e) = model.load_state_dict(&orkest::nn::load_safetensors(&weights)?, true) {
        bail!("{}: {e}", weights.display());
    }
    Ok(model)
}
