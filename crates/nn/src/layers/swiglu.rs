//! The gated feed-forward layer of today's language models.

use crate::{Layer, Linear, Module};
use orkest_core::Tensor;

/// `down_proj(silu(gate_proj(x)) * up_proj(x))` (<https://arxiv.org/abs/2002.05202>), with the names of LLaMA's checkpoints.
///
/// With a hidden width of 2/3 of the usual one it has as many parameters as a feed-forward layer without gate.
///
/// # Shapes
/// - input and output: `[.., dim]`
/// - `gate_proj.weight`, `up_proj.weight`: `[hidden_dim, dim]`, `down_proj.weight`: `[dim, hidden_dim]`
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{Layer, SwiGLU};
/// assert_eq!(SwiGLU::new(8, 20).forward(&Tensor::zeros([2, 8], &Device::cpu())).shape(), &[2, 8]);
/// ```
#[derive(Module, Clone, Debug)]
pub struct SwiGLU {
    /// What opens the gate.
    pub gate_proj: Linear,
    /// What passes through the gate.
    pub up_proj: Linear,
    /// Back to the width of the input.
    pub down_proj: Linear,
}

impl SwiGLU {
    /// Without biases, as the models that use it; weights start as those of [`Linear`].
    #[track_caller]
    pub fn new(dim: usize, hidden_dim: usize) -> SwiGLU {
        SwiGLU {
            gate_proj: Linear::without_bias(dim, hidden_dim),
            up_proj: Linear::without_bias(dim, hidden_dim),
            down_proj: Linear::without_bias(hidden_dim, dim),
        }
    }
}

impl Layer for SwiGLU {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        self.down_proj.forward(&(self.gate_proj.forward(input).silu() * self.up_proj.forward(input)))
    }
}
