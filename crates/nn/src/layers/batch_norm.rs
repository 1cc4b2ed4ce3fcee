//! Batch normalisation, with the running statistics it uses in evaluation.

use crate::repr::{python_bool, python_float};
use crate::{Buffer, Layer, Mode, Module};
use orkest_core::{DType, Device, Param, Tensor};

macro_rules! batch_norms {
    ($($(#[$doc:meta])* $name:ident, $ranks:pat, $input:literal;)*) => {$(
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
            /// How many batches the running statistics have seen, i64 `[]`.
            pub num_batches_tracked: Option<Buffer>,
            num_features: usize,
            eps: f64,
            momentum: Option<f64>,
            mode: Mode,
        }

        impl $name {
            /// With weight, bias and running statistics, an `eps` of 1e-5 and a momentum of 0.1, on the CPU.
            #[track_caller]
            pub fn new(num_features: usize) -> $name {
                let cpu = Device::cpu();
                let (ones, zeros) = (Tensor::ones(num_features, &cpu), Tensor::zeros(num_features, &cpu));
                $name {
                    weight: Some(Param::new(ones.clone())),
                    bias: Some(Param::new(zeros.clone())),
                    running_mean: Some(Buffer::new(zeros)),
                    running_var: Some(Buffer::new(ones)),
                    num_batches_tracked: Some(Buffer::new(Tensor::zeros((), (DType::I64, &cpu)))),
                    num_features,
                    eps: 1e-5,
                    momentum: Some(0.1),
                    mode: Mode::new(),
                }
            }

            /// What is added to the variance.
            pub fn eps(mut self, eps: f64) -> $name {
                self.eps = eps;
                self
            }

            /// The part of each batch in the running statistics; `None` makes them the average of all batches.
            pub fn momentum(mut self, momentum: impl Into<Option<f64>>) -> $name {
                self.momentum = momentum.into();
                self
            }

            /// With `false`: neither weight nor bias.
            #[track_caller]
            pub fn affine(self, affine: bool) -> $name {
                if affine { self } else { $name { weight: None, bias: None, ..self } }
            }

            /// With `false`: no bias.
            pub fn bias(self, bias: bool) -> $name {
                if bias { self } else { $name { bias: None, ..self } }
            }

            /// With `false`: no running statistics; evaluation too uses those of the batch.
            pub fn track_running_stats(self, track: bool) -> $name {
                if track {
                    return self;
                }
                $name { running_mean: None, running_var: None, num_batches_tracked: None, ..self }
            }

            fn extra_repr(&self) -> String {
                let momentum = self.momentum.map_or("None".into(), python_float);
                format!(
                    "{}, eps={}, momentum={momentum}, affine={}, bias={}, track_running_stats={}",
                    self.num_features,
                    python_float(self.eps),
                    python_bool(self.weight.is_some()),
                    python_bool(self.bias.is_some()),
                    python_bool(self.running_mean.is_some()),
                )
            }
        }

        impl Layer for $name {
            #[track_caller]
            fn forward(&self, input: &Tensor) -> Tensor {
                if !matches!(input.rank(), $ranks) || input.size(1) != self.num_features {
                    panic!(
                        concat!(stringify!($name), ": an input of ", $input, " with {} channels is needed. input: {}"),
                        self.num_features,
                        input.describe()
                    );
                }
                let (weight, bias) = (self.weight.as_ref().map(Param::tensor), self.bias.as_ref().map(Param::tensor));
                let (weight, bias, training) = (weight.as_ref(), bias.as_ref(), self.mode.is_training());
                let (Some(mean), Some(var)) = (&self.running_mean, &self.running_var) else {
                    return input.batch_norm(None, None, weight, bias, true, 0.0, self.eps);
                };
                let (mut m, mut v) = (mean.tensor(), var.tensor());
                if !training {
                    return input.batch_norm(Some(&mut m), Some(&mut v), weight, bias, false, 0.0, self.eps);
                }
                let count = self.num_batches_tracked.as_ref().map(|count| count.tensor() + 1);
                let momentum = self.momentum.unwrap_or_else(|| 1.0 / batches(count.as_ref()));
                let y = input.batch_norm(Some(&mut m), Some(&mut v), weight, bias, true, momentum, self.eps);
                mean.set(&m);
                var.set(&v);
                if let (Some(tracked), Some(count)) = (&self.num_batches_tracked, &count) {
                    tracked.set(count);
                }
                y
            }
        }
    )*};
}

batch_norms! {
    /// `(x - mean) / sqrt(var + eps) * weight + bias` per channel, with the statistics of the batch in training and running ones
    /// in evaluation: PyTorch's [`BatchNorm2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html), with
    /// [`Tensor::batch_norm`].
    ///
    /// # Shapes
    /// - input and output: `[batch, num_features, height, width]`
    /// - `weight` (starts at 1), `bias` (starts at 0), `running_mean` (0), `running_var` (1): `[num_features]`
    ///
    /// ```
    /// use orkest_core::{Device, Tensor};
    /// use orkest_nn::{BatchNorm2d, Layer, Module};
    /// let norm = BatchNorm2d::new(3);
    /// let x = Tensor::randn([8, 3, 5, 5], &Device::cpu());
    /// let y = norm.forward(&x); // as this batch is distributed, which is remembered
    /// norm.eval();
    /// let y = norm.forward(&x); // as the batches so far were distributed
    /// ```
    BatchNorm2d, 4, "[batch, channels, height, width]";

    /// `(x - mean) / sqrt(var + eps) * weight + bias` per channel, with the statistics of the batch in training and running ones
    /// in evaluation: PyTorch's [`BatchNorm1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm1d.html), with
    /// [`Tensor::batch_norm`].
    ///
    /// # Shapes
    /// - input and output: `[batch, num_features]` or `[batch, num_features, length]`
    /// - `weight` (starts at 1), `bias` (starts at 0), `running_mean` (0), `running_var` (1): `[num_features]`
    BatchNorm1d, 2 | 3, "[batch, channels] or [batch, channels, length]";
}

/// The number of batches, this one included.
#[track_caller]
fn batches(count: Option<&Tensor>) -> f64 {
    let count = count.expect("running statistics and the number of batches are there together");
    count.item().unwrap_or_else(|e| panic!("batch_norm: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::tensor;

    #[test]
    fn names_and_texts_are_pytorchs() {
        let norm = BatchNorm2d::new(3);
        let names: Vec<String> = norm.state_dict().keys().map(String::from).collect();
        assert_eq!(names, ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]);
        assert_eq!(
            norm.to_string(),
            "BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)"
        );
        let plain = BatchNorm1d::new(3).momentum(None).affine(false).track_running_stats(false);
        assert_eq!(plain.state_dict().keys().count(), 0);
        assert_eq!(
            plain.to_string(),
            "BatchNorm1d(3, eps=1e-05, momentum=None, affine=False, bias=False, track_running_stats=False)"
        );
    }

    #[test]
    fn running_statistics_follow_the_batches() {
        // torch.nn.BatchNorm1d(1)
        let norm = BatchNorm1d::new(1);
        norm.forward(&tensor![[1.0], [3.0]]);
        norm.forward(&tensor![[5.0], [5.0]]);
        let value = |b: &Option<Buffer>| b.as_ref().unwrap().tensor().item().unwrap();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
        near(value(&norm.running_mean), 0.1 * 2.0 * 0.9 + 0.1 * 5.0);
        near(value(&norm.running_var), (0.9 + 0.1 * 2.0) * 0.9);
        assert_eq!(value(&norm.num_batches_tracked), 2.0);
        norm.eval();
        norm.forward(&tensor![[7.0]]);
        assert_eq!(value(&norm.num_batches_tracked), 2.0);
    }

    #[test]
    fn clones_share_their_statistics_and_copies_do_not() {
        let norm = BatchNorm1d::new(1);
        let (handle, copy) = (norm.clone(), norm.deep_clone());
        norm.forward(&tensor![[1.0], [3.0]]);
        let mean = |norm: &BatchNorm1d| norm.running_mean.as_ref().unwrap().tensor().item().unwrap();
        assert_eq!(mean(&handle), mean(&norm));
        assert_eq!(mean(&copy), 0.0);
    }

    #[test]
    #[should_panic(
        expected = "BatchNorm2d: an input of [batch, channels, height, width] with 3 channels is needed. input: f32 [2, 3]"
    )]
    fn another_rank_is_refused() {
        BatchNorm2d::new(3).forward(&Tensor::ones([2, 3], &Device::cpu()));
    }
}
