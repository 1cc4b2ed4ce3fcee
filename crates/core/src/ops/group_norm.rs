//! Group and instance normalisation: channels by the statistics of one sample.

use super::batch_norm::{Running, by_running, check, scale_channels};
use super::lowering::wide;
use crate::autograd::no_grad;
use crate::tensor::Tensor;

impl Tensor {
    /// Normalisation of groups of channels, each by its mean and (biased) variance in one sample, then times `weight` plus `bias` per
    /// channel, as PyTorch's
    /// [`group_norm`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.group_norm.html). Usual `eps`: 1e-5.
    ///
    /// # Shapes
    /// - input and output: `[batch, channels, ..]`
    /// - `weight`, `bias`: `[channels]`
    ///
    /// # Panics
    /// If a shape does not fit, the channels cannot be divided into `num_groups`, a group has a single value, or a dtype is not a
    /// float.
    #[track_caller]
    pub fn group_norm(
        &self,
        num_groups: usize,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Tensor {
        let op = "group_norm";
        check(op, self, 2, [("weight", weight), ("bias", bias)]);
        let (n, channels) = (self.size(0), self.size(1));
        if num_groups == 0 || !channels.is_multiple_of(num_groups) {
            panic!(
                "{op}: {channels} channels cannot be divided into {num_groups} groups. input: {}",
                self.describe()
            );
        }
        let x = self.in_full_precision();
        if self.numel() == 0 {
            return x.into_owned();
        }
        let width = self.numel() / (n * num_groups);
        if width == 1 {
            panic!("{op}: groups of one value have no variance. input: {}", self.describe());
        }
        let y =
            x.to_dtype(wide(x.dtype())).reshape([n * num_groups, width]).layer_norm(width, None, None, eps);
        let y = scale_channels(&y.reshape([n, channels, self.numel() / (n * channels)]), weight, bias);
        y.reshape(self.shape()).to_dtype(x.dtype())
    }

    /// Normalisation of every channel of every sample by its own mean and variance, as PyTorch's
    /// [`instance_norm`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.instance_norm.html). Usual values: momentum
    /// 0.1, eps 1e-5.
    ///
    /// With `use_input_stats` running statistics, if given, move towards the batch's averages of mean and unbiased variance; without,
    /// they are what is used.
    ///
    /// # Shapes
    /// - input and output: `[batch, channels, ..]` with at least one dimension more
    /// - `running_mean`, `running_var`, `weight`, `bias`: `[channels]`
    ///
    /// # Panics
    /// If a shape does not fit, only one of the running statistics is given or none without `use_input_stats`, a channel has a single
    /// value with it, or a dtype is not a float.
    #[track_caller]
    pub fn instance_norm(
        &self,
        running_mean: Option<&mut Tensor>,
        running_var: Option<&mut Tensor>,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        use_input_stats: bool,
        momentum: f64,
        eps: f64,
    ) -> Tensor {
        let op = "instance_norm";
        let mut running = Running::new(op, self, running_mean, running_var);
        check(op, self, 3, [("weight", weight), ("bias", bias)]);
        if self.numel() == 0 {
            return self.clone();
        }
        let x = self.flatten_planes();
        if !use_input_stats {
            let Some(running) = running else {
                panic!(
                    "{op}: running_mean and running_var are needed without use_input_stats. input: {}",
                    self.describe()
                )
            };
            return by_running(&x, &running, weight, bias, eps).reshape(self.shape());
        }
        let size = x.size(2);
        if size == 1 {
            panic!("{op}: channels of one value have no variance. input: {}", self.describe());
        }
        let x = x.to_dtype(wide(x.dtype()));
        if let Some(running) = &mut running {
            no_grad(|| running.update(&x.mean(2).mean(0), &x.var(2, 1.0).mean(0), momentum));
        }
        let y = scale_channels(&x.layer_norm(size, None, None, eps), weight, bias);
        y.reshape(self.shape()).to_dtype(self.dtype())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, assert_with_gradients, everywhere, wave};
    use crate::{Tensor, gradcheck, gradgradcheck};
    #[test]
    fn group_norm_is_pytorchs() {
        everywhere(|| {
            let (x, w, b) = (wave([2, 4, 2], 0.0), wave(4, 1.0), wave(4, 2.0));
            let y = x.group_norm(2, Some(&w), Some(&b), 1e-2);
            assert_eq!(*y.shape(), [2, 4, 2]);
            assert_with_gradients(
                &y,
                &[&x, &w, &b],
                &[
                    0.966644, 2.165833, -0.657659, -1.069329, -1.483996, -1.916553, 0.917638, 0.895402,
                    1.920066, 1.351995, -1.152384, -0.645499, -1.992869, -0.538971, 0.990455, 0.65629,
                ],
                &[
                    &[
                        0.356887, 0.001219, -0.451086, 0.09298, -0.477972, 0.362896, 0.13587, -0.020794,
                        0.373719, -0.58809, 0.028392, 0.185979, -0.411584, 0.730951, -0.434114, 0.114748,
                    ],
                    &[2.39198, 2.330809, 2.40896, 2.50827],
                    &[2.195324, -1.951344, 1.577787, -1.099459],
                ],
            );
        });
    }

    #[test]
    fn instance_norm_is_pytorchs() {
        everywhere(|| {
            let (x, w, b) = (wave([2, 4, 3], 0.0), wave(4, 1.0), wave(4, 2.0));
            let mut mean = Tensor::new([0.5f64, -0.5, 0.0, 1.0], x.device());
            let mut var = Tensor::new([1.5f64, 0.5, 1.0, 2.0], x.device());
            let y = x.instance_norm(Some(&mut mean), Some(&mut var), Some(&w), Some(&b), true, 0.3, 1e-2);
            assert_eq!(*y.shape(), [2, 4, 3]);
            assert_with_gradients(
                &y,
                &[&x, &w, &b],
                &[
                    0.531922, 2.057058, 0.138912, -1.120713, -0.320197, -0.148599, -0.053302, -0.160825,
                    -2.104166, 0.525043, 0.961457, 0.700407, 1.971736, 0.824694, -0.068537, -0.431436,
                    -0.06966, -1.088412, 0.542355, -1.604951, -1.255698, 0.920512, 0.779732, 0.486663,
                ],
                &[
                    &[
                        0.778538, -0.125316, -0.653222, -0.043869, 0.208024, -0.164155, 0.465919, -0.464274,
                        -0.001645, 0.095382, 0.07242, -0.167802, 0.177214, -0.374747, 0.197532, 0.333275,
                        -0.199936, -0.133339, -0.07617, -0.508079, 0.584249, 0.058978, -0.08225, 0.023272,
                    ],
                    &[3.554729, 3.597699, 3.545781, 3.447637],
                    &[0.175609, 1.034568, 0.606478, -0.576097],
                ],
            );
            assert_close(&mean, &[0.382774, -0.299026, 0.00576, 0.65338]);
            assert_close(&var, &[1.261626, 0.559777, 0.912889, 1.610293]);
            let y = x.instance_norm(Some(&mut mean), Some(&mut var), Some(&w), Some(&b), false, 0.3, 1e-2);
            assert_eq!(*y.shape(), [2, 4, 3]);
            assert_with_gradients(
                &y,
                &[&x, &w, &b],
                &[
                    0.623669, 1.363656, 0.432982, -0.884717, -0.080769, 0.091564, -0.073791, -0.154757,
                    -1.61811, 0.765696, 0.960056, 0.843795, 1.369721, 0.542603, -0.101494, -0.157236,
                    0.137304, -0.692112, -0.045574, -1.533086, -1.291147, 0.952653, 0.864642, 0.681426,
                ],
                &[
                    &[
                        0.357751, 0.603306, -0.513216, -0.357416, 0.481508, 0.233337, 0.947604, 0.164041,
                        -0.989875, 0.013153, 0.139619, -0.049131, 0.662003, -0.426775, -0.552028, 0.431752,
                        0.307597, -0.511017, 0.307764, -0.973341, -0.056945, 0.14274, -0.028556, -0.135381,
                    ],
                    &[2.286419, 3.872553, 2.751791, 2.362843],
                    &[0.175609, 1.034568, 0.606478, -0.576097],
                ],
            );
            assert_close(&mean, &[0.382774, -0.299026, 0.00576, 0.65338]);
        });
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        everywhere(|| {
            let inputs = [wave([2, 4, 2], 0.0), wave(4, 1.0), wave(4, 2.0)];
            let f = |t: &[Tensor]| t[0].group_norm(2, Some(&t[1]), Some(&t[2]), 1e-2);
            gradcheck(f, &inputs).unwrap();
            gradgradcheck(f, &inputs).unwrap();
        });
    }

    #[test]
    #[should_panic(expected = "group_norm: 4 channels cannot be divided into 3 groups. input: f64 [2, 4, 2]")]
    fn groups_that_do_not_fit_are_named() {
        wave([2, 4, 2], 0.0).group_norm(3, None, None, 1e-5);
    }

    #[test]
    #[should_panic(expected = "instance_norm: channels of one value have no variance. input: f64 [2, 4, 1]")]
    fn single_values_are_refused() {
        wave([2, 4, 1], 0.0).instance_norm(None, None, None, None, true, 0.1, 1e-5);
    }
}
