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
    #[track_caller]
    fn forward_owned(&self, input: Tensor) -> Tensor {
        input.into_dropout(self.p, self.mode.is_training())
    }
}

macro_rules! channel_dropouts {
    ($($(#[$doc:meta])* $name:ident, $ranks:pat, $input:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Module, Clone, Debug)]
        #[module(extra_repr)]
        pub struct $name {
            p: f64,
            mode: Mode,
        }

        impl $name {
            /// In training mode.
            ///
            /// # Panics
            /// If `p` lies outside `[0, 1]`.
            #[track_caller]
            pub fn new(p: f64) -> $name {
                assert!((0.0..=1.0).contains(&p), concat!(stringify!($name), ": p must lie between 0 and 1, not {}"), p);
                $name { p, mode: Mode::new() }
            }

            fn extra_repr(&self) -> String {
                format!("p={}", self.p)
            }
        }

        impl Layer for $name {
            #[track_caller]
            fn forward(&self, input: &Tensor) -> Tensor {
                if !matches!(input.rank(), $ranks) {
                    panic!(
                        concat!(stringify!($name), ": an input of ", $input, " is needed. input: {}"),
                        input.describe()
                    );
                }
                if !self.mode.is_training() || self.p == 0.0 {
                    return input.clone();
                }
                let channels = usize::min(input.rank() - 1, 2);
                let mut shape = *input.shape();
                for d in channels..input.rank() {
                    shape = shape.with(d, 1);
                }
                input * Tensor::ones(shape, (input.dtype(), input.device())).dropout(self.p, true)
            }
        }
    )*};
}

channel_dropouts! {
    /// Zeroes whole channels with probability `p` and scales the others by `1 / (1 - p)` in training mode, else does nothing:
    /// PyTorch's [`Dropout2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout2d.html).
    ///
    /// # Shapes
    /// - input and output: `[batch, channels, height, width]`
    Dropout2d, 4, "[batch, channels, height, width]";

    /// Zeroes whole channels with probability `p` and scales the others by `1 / (1 - p)` in training mode, else does nothing:
    /// PyTorch's [`Dropout1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout1d.html).
    ///
    /// # Shapes
    /// - input and output: `[batch, channels, length]`, the batch may be left out
    Dropout1d, 2 | 3, "[batch, channels, length] (batch optional)";
}

/// Dropout for [`SELU`](crate::SELU): sets elements to its negative limit with probability `p`, and scales and moves all so that mean
/// and variance stay: PyTorch's [`AlphaDropout`](https://docs.pytorch.org/docs/stable/generated/torch.nn.AlphaDropout.html).
///
/// # Shapes
/// - input and output: any
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct AlphaDropout {
    p: f64,
    mode: Mode,
}

impl AlphaDropout {
    /// In training mode.
    ///
    /// # Panics
    /// If `p` lies outside `[0, 1]`.
    #[track_caller]
    pub fn new(p: f64) -> AlphaDropout {
        assert!((0.0..=1.0).contains(&p), "AlphaDropout: p must lie between 0 and 1, not {p}");
        AlphaDropout { p, mode: Mode::new() }
    }

    fn extra_repr(&self) -> String {
        format!("p={}", self.p)
    }
}

impl Layer for AlphaDropout {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        if !self.mode.is_training() || self.p == 0.0 {
            return input.clone();
        }
        if self.p == 1.0 {
            return input * 0.0;
        }
        // SELU's limit at minus infinity, -scale * alpha (<https://arxiv.org/abs/1706.02515>, section 3).
        let limit = -1.758_099_340_847_376_6;
        let (p, kept) = (self.p, 1.0 - self.p);
        let scale = (kept + limit * limit * kept * p).powf(-0.5);
        let keep = Tensor::full_like(&input.detach(), kept).bernoulli();
        (input * &keep + (1.0 - keep) * limit) * scale - scale * limit * p
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

    #[test]
    fn channels_are_dropped_as_a_whole() {
        let dropout = Dropout2d::new(0.5);
        let x = Tensor::ones([20, 30, 2, 3], &Device::cpu());
        let y = dropout.forward(&x).to_vec::<f32>().unwrap();
        let kept = y.chunks(6).filter(|channel| **channel == [2.0; 6]).count();
        let dropped = y.chunks(6).filter(|channel| **channel == [0.0; 6]).count();
        assert_eq!(kept + dropped, 600);
        assert!((200..400).contains(&dropped), "{dropped} of 600 dropped at p = 0.5");
        let sequence = Dropout1d::new(0.5).forward(&Tensor::ones([300, 4], &Device::cpu()));
        let rows = sequence.to_vec::<f32>().unwrap();
        assert!(rows.chunks(4).all(|row| row.iter().all(|v| *v == row[0])));
        assert!(rows.contains(&0.0) && rows.contains(&2.0));
        dropout.eval();
        assert_eq!(dropout.forward(&x).to_vec::<f32>().unwrap(), [1.0; 3600]);
    }

    #[test]
    fn alpha_dropout_keeps_mean_and_variance() {
        orkest_core::manual_seed(3);
        let dropout = AlphaDropout::new(0.3);
        let x = Tensor::randn(20_000, &Device::cpu());
        let y = dropout.forward(&x);
        let (mean, variance) = (y.mean(..).item().unwrap(), y.var(.., 1.0).item().unwrap());
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "mean {mean}, variance {variance}");
        dropout.eval();
        assert_eq!(dropout.forward(&x).to_vec::<f32>().unwrap(), x.to_vec::<f32>().unwrap());
    }
}
