//! Dropout as a layer.

use crate::{Layer, Mode, Module};
use orkest_core::Tensor;

/// Zeroes each element with probability `p` and scales the others by `1 / (1 - p)` in training mode, else does nothing: PyTorch's
/// [`Dropout`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout.html).
///
/// # Shapes
/// - input and output: any
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct Dropout {
    p: f64,
    mode: Mode,
}

impl Dropout {
    /// In training mode.
    ///
    /// # Panics
    /// If `p` lies outside `[0, 1]`.
    #[track_caller]
    pub fn new(p: f64) -> Dropout {
        assert!((0.0..=1.0).contains(&p), "Dropout: p must lie between 0 and 1, not {p}");
        Dropout { p, mode: Mode::new() }
    }

    fn extra_repr(&self) -> String {
        format!("p={}", self.p)
    }
}

impl Layer for Dropout {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        input.dropout(self.p, self.mode.is_training())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::Device;

    #[test]
    fn it_drops_in_training_only() {
        let dropout = Dropout::new(0.25);
        let x = Tensor::ones([1000], &Device::cpu());
        let y = dropout.forward(&x).to_vec::<f32>().unwrap();
        let kept = y.iter().filter(|&&v| v == 1.0 / 0.75).count();
        let dropped = y.iter().filter(|&&v| v == 0.0).count();
        assert_eq!(kept + dropped, 1000);
        assert!((150..350).contains(&dropped), "{dropped} of 1000 dropped at p = 0.25");
        dropout.eval();
        assert_eq!(dropout.forward(&x).to_vec::<f32>().unwrap(), [1.0; 1000]);
        dropout.train();
        assert!(dropout.is_training());
    }
}
