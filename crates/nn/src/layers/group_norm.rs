//! Group and instance normalisation.

use crate::repr::{python_bool, python_float};
use crate::{Buffer, Layer, Mode, Module};
use orkest_core::{DType, Device, Param, Tensor};

/// Groups of channels normalised by their mean and variance in each sample: PyTorch's
/// [`GroupNorm`](https://docs.pytorch.org/docs/stable/generated/torch.nn.GroupNorm.html), with [`Tensor::group_norm`].
///
/// # Shapes
/// - input and output: `[batch, num_channels, ..]`
/// - `weight` (starts at 1), `bias` (starts at 0): `[num_channels]`
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct GroupNorm {
    /// `[num_channels]`
    pub weight: Option<Param>,
    /// `[num_channels]`
    pub bias: Option<Param>,
    num_groups: usize,
    num_channels: usize,
    eps: f64,
}

impl GroupNorm {
    /// With weight and bias and an `eps` of 1e-5, on the CPU.
    ///
    /// # Panics
    /// If the channels cannot be divided into the groups.
    #[track_caller]
    pub fn new(num_groups: usize, num_channels: usize) -> GroupNorm {
        assert!(
            num_groups > 0 && num_channels.is_multiple_of(num_groups),
            "GroupNorm: {num_channels} channels cannot be divided into {num_groups} groups"
        );
        GroupNorm {
            weight: Some(Param::new(Tensor::ones(num_channels, &Device::cpu()))),
            bias: Some(Param::new(Tensor::zeros(num_channels, &Device::cpu()))),
            num_groups,
            num_channels,
            eps: 1e-5,
        }
    }

    /// What is added to the variance.
    pub fn eps(mut self, eps: f64) -> GroupNorm {
        self.eps = eps;
        self
    }

    /// With `false`: neither weight nor bias.
    #[track_caller]
    pub fn affine(self, affine: bool) -> GroupNorm {
        if affine { self } else { GroupNorm { weight: None, bias: None, ..self } }
    }

    /// With `false`: no bias.
    pub fn bias(self, bias: bool) -> GroupNorm {
        if bias { self } else { GroupNorm { bias: None, ..self } }
    }

    fn extra_repr(&self) -> String {
        format!(
            "{}, {}, eps={}, affine={}, bias={}",
            self.num_groups,
            self.num_channels,
            python_float(self.eps),
            python_bool(self.weight.is_some()),
            python_bool(self.bias.is_some()),
        )
    }
}

impl Layer for GroupNorm {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        let (weight, bias) = (self.weight.as_ref().map(Param::tensor), self.bias.as_ref().map(Param::tensor));
        input.group_norm(self.num_groups, weight.as_ref(), bias.as_ref(), self.eps)
    }
}

macro_rules! instance_norms {
    ($($(#[$doc:meta])* $name:ident, $rank:literal, $input:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Module, Clone, Debug)]
        #[module(extra_repr)]
        pub struct $name {
            /// `[num_features]`
            pub weight: Option<Param>,
            /// `[num_features]`
            pub bias: Option<Param>,
            /// `[num_features]`
            pub running_mean: Option<Buffer>,
            /// `[num_features]`
            pub running_var: Option<Buffer>,
            /// In PyTorch's state dict, where nothing ever counts it: stays 0.
            pub num_batches_tracked: Option<Buffer>,
            num_features: usize,
            eps: f64,
            momentum: f64,
            mode: Mode,
        }

        impl $name {
            /// Without weight, bias and running statistics, with an `eps` of 1e-5, on the CPU.
            #[track_caller]
            pub fn new(num_features: usize) -> $name {
                $name {
                    weight: None,
                    bias: None,
                    running_mean: None,
                    running_var: None,
                    num_batches_tracked: None,
                    num_features,
                    eps: 1e-5,
                    momentum: 0.1,
                    mode: Mode::new(),
                }
            }

            /// What is added to the variance.
            pub fn eps(mut self, eps: f64) -> $name {
                self.eps = eps;
                self
            }

            /// The part of each batch in the running statistics.
            pub fn momentum(mut self, momentum: f64) -> $name {
                self.momentum = momentum;
                self
            }

            /// With `true`: a weight that starts at 1 and a bias that starts at 0.
            #[track_caller]
            pub fn affine(self, affine: bool) -> $name {
                let ones = Param::new(Tensor::ones(self.num_features, &Device::cpu()));
                let zeros = Param::new(Tensor::zeros(self.num_features, &Device::cpu()));
                $name { weight: affine.then_some(ones), bias: affine.then_some(zeros), ..self }
            }

            /// With `true`: running statistics, which evaluation then uses.
            pub fn track_running_stats(self, track: bool) -> $name {
                let cpu = Device::cpu();
                let buffer = |value: Tensor| track.then(|| Buffer::new(value));
                $name {
                    running_mean: buffer(Tensor::zeros(self.num_features, &cpu)),
                    running_var: buffer(Tensor::ones(self.num_features, &cpu)),
                    num_batches_tracked: buffer(Tensor::zeros((), (DType::I64, &cpu))),
                    ..self
                }
            }

            fn extra_repr(&self) -> String {
                format!(
                    "{}, eps={}, momentum={}, affine={}, bias={}, track_running_stats={}",
                    self.num_features,
                    python_float(self.eps),
                    python_float(self.momentum),
                    python_bool(self.weight.is_some()),
                    python_bool(self.bias.is_some()),
                    python_bool(self.running_mean.is_some()),
                )
            }
        }

        impl Layer for $name {
            #[track_caller]
            fn forward(&self, input: &Tensor) -> Tensor {
                let batched = input.rank() == $rank;
                if !(batched || input.rank() + 1 == $rank) || input.size(1 - $rank) != self.num_features {
                    panic!(
                        concat!(
                            stringify!($name),
                            ": an input of ", $input, " (batch optional) with {} channels is needed. input: {}"
                        ),
                        self.num_features,
                        input.describe()
                    );
                }
                let x = if batched { input.clone() } else { input.unsqueeze(0) };
                let (weight, bias) = (self.weight.as_ref().map(Param::tensor), self.bias.as_ref().map(Param::tensor));
                let (weight, bias) = (weight.as_ref(), bias.as_ref());
                let y = match (&self.running_mean, &self.running_var) {
                    (Some(mean), Some(var)) => {
                        let (mut m, mut v) = (mean.tensor(), var.tensor());
                        let (training, momentum) = (self.mode.is_training(), self.momentum);
                        let y = x.instance_norm(
                            Some(&mut m), Some(&mut v), weight, bias, training, momentum, self.eps,
                        );
                        mean.set(&m);
                        var.set(&v);
                        y
                    }
                    _ => x.instance_norm(None, None, weight, bias, true, self.momentum, self.eps),
                };
                if batched { y } else { y.squeeze(0) }
            }
        }
    )*};
}

instance_norms! {
    /// Every channel of every sample normalised by its own mean and variance: PyTorch's
    /// [`InstanceNorm2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.InstanceNorm2d.html), with
    /// [`Tensor::instance_norm`].
    ///
    /// # Shapes
    /// - input and output: `[batch, num_features, height, width]`, the batch may be left out
    /// - `weight`, `bias`, `running_mean`, `running_var`, where they are wanted: `[num_features]`
    InstanceNorm2d, 4, "[batch, channels, height, width]";

    /// Every channel of every sequence normalised by its own mean and variance: PyTorch's
    /// [`InstanceNorm1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.InstanceNorm1d.html), with
    /// [`Tensor::instance_norm`].
    ///
    /// # Shapes
    /// - input and output: `[batch, num_features, length]`, the batch may be left out
    /// - `weight`, `bias`, `running_mean`, `running_var`, where they are wanted: `[num_features]`
    InstanceNorm1d, 3, "[batch, channels, length]";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_pytorchs() {
        assert_eq!(GroupNorm::new(2, 6).to_string(), "GroupNorm(2, 6, eps=1e-05, affine=True, bias=True)");
        let plain = InstanceNorm2d::new(3);
        assert_eq!(plain.state_dict().keys().count(), 0);
        assert_eq!(
            plain.to_string(),
            "InstanceNorm2d(3, eps=1e-05, momentum=0.1, affine=False, bias=False, track_running_stats=False)"
        );
        let full = InstanceNorm1d::new(3).affine(true).track_running_stats(true);
        let names: Vec<String> = full.state_dict().keys().map(String::from).collect();
        assert_eq!(names, ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]);
    }
}
