//! Batch normalisation: every channel by the mean and variance it has over the whole batch.

use super::lowering::{by_lowering, wide};
use crate::autograd::{Gradients, Save, is_grad_enabled, no_grad};
use crate::dispatch::run_fused;
use crate::grads;
use crate::op::Op;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;

impl Tensor {
    /// Batch normalisation, `(x - mean) / sqrt(var + eps) * weight + bias` per channel, as PyTorch's
    /// [`batch_norm`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.batch_norm.html). Usual values: momentum 0.1,
    /// eps 1e-5.
    ///
    /// While `training`, mean and (biased) variance are those of the batch, and the running ones move towards them:
    /// `running = (1 - momentum) running + momentum batch`, with the unbiased variance. Else the running ones are used.
    ///
    /// # Shapes
    /// - input and output: `[batch, channels, ..]`
    /// - `running_mean`, `running_var`, `weight`, `bias`: `[channels]`
    ///
    /// # Panics
    /// If a shape does not fit, only one of the running statistics is given or none outside of training, a channel has a single
    /// value in training, or a dtype is not a float.
    #[track_caller]
    pub fn batch_norm(
        &self,
        running_mean: Option<&mut Tensor>,
        running_var: Option<&mut Tensor>,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        training: bool,
        momentum: f64,
        eps: f64,
    ) -> Tensor {
        let op = "batch_norm";
        let mut running = Running::new(op, self, running_mean, running_var);
        check(op, self, 2, [("weight", weight), ("bias", bias)]);
        if self.numel() == 0 {
            return self.clone();
        }
        let x = self.flatten_planes();
        if !training {
            let Some(running) = running else {
                panic!(
                    "{op}: running_mean and running_var are needed outside of training. input: {}",
                    self.describe()
                )
            };
            return by_running(&x, &running, weight, bias, eps).reshape(self.shape());
        }
        let count = x.size(0) * x.size(2);
        if count == 1 {
            panic!(
                "{op}: the batch has one value per channel, which has no variance; call eval() to use the running statistics. input: {}",
                self.describe()
            );
        }
        let (y, mean, var) = by_batch(&x, weight, bias, eps);
        if let Some(running) = &mut running {
            running.update(&mean, &(var * (count as f64 / (count - 1) as f64)), momentum);
        }
        y.reshape(self.shape())
    }

    /// `[n, c, ..]` → `[n, c, s]`
    #[track_caller]
    pub(super) fn flatten_planes(&self) -> Tensor {
        let (n, channels) = (self.size(0), self.size(1));
        self.reshape([n, channels, self.shape()[2..].iter().product()])
    }
}

/// Checks an input of `[n, c, ..]` with at least `rank` dimensions, and parameters of `[c]`.
#[track_caller]
pub(super) fn check<const N: usize>(
    op: &str,
    x: &Tensor,
    rank: usize,
    parameters: [(&str, Option<&Tensor>); N],
) {
    x.require_float(op);
    if x.rank() < rank {
        let sizes = if rank > 2 { ", .." } else { "" };
        panic!("{op}: an input of at least [batch, channels{sizes}] is needed. input: {}", x.describe());
    }
    for (name, parameter) in parameters {
        let Some(p) = parameter else { continue };
        p.require_float(op);
        if *p.shape() != [x.size(1)] {
            panic!(
                "{op}: {name} must have shape [{}], one number per channel. {name}: {}; input: {}",
                x.size(1),
                p.describe(),
                x.describe()
            );
        }
    }
}

/// The statistics that are used outside of training.
pub(super) struct Running<'a> {
    mean: &'a mut Tensor,
    var: &'a mut Tensor,
}

impl<'a> Running<'a> {
    #[track_caller]
    pub(super) fn new(
        op: &str,
        x: &Tensor,
        mean: Option<&'a mut Tensor>,
        var: Option<&'a mut Tensor>,
    ) -> Option<Running<'a>> {
        match (mean, var) {
            (None, None) => None,
            (Some(mean), Some(var)) => {
                check(op, x, 2, [("running_mean", Some(&*mean)), ("running_var", Some(&*var))]);
                Some(Running { mean, var })
            }
            _ => panic!("{op}: running_mean and running_var belong together. input: {}", x.describe()),
        }
    }

    /// Towards the statistics of a batch, both `[c]`.
    #[track_caller]
    pub(super) fn update(&mut self, mean: &Tensor, var: &Tensor, momentum: f64) {
        no_grad(|| {
            for (running, batch) in [(&mut *self.mean, mean), (&mut *self.var, var)] {
                *running = running.detach() * (1.0 - momentum) + batch.to_dtype(running.dtype()) * momentum;
            }
        });
    }
}

/// `x [n, c, s]` with the running statistics: a factor and a summand per channel.
#[track_caller]
pub(super) fn by_running(
    x: &Tensor,
    running: &Running<'_>,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Tensor {
    let wide = wide(x.dtype());
    let rstd = (running.var.to_dtype(wide) + eps).rsqrt();
    let scale = weight.map_or(rstd.clone(), |w| rstd * w.to_dtype(wide));
    let shift = -(running.mean.to_dtype(wide) * &scale);
    let shift = bias.map_or(shift.clone(), |b| shift + b.to_dtype(wide));
    scale_channels(&x.to_dtype(wide), Some(&scale), Some(&shift)).to_dtype(x.dtype())
}

/// `x [n, c, s] * weight [c] + bias [c]`
#[track_caller]
pub(super) fn scale_channels(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>) -> Tensor {
    if let (Some(scale), Some(shift)) = (weight, bias) {
        let (scale, shift) = (&scale.to_dtype(x.dtype()), &shift.to_dtype(x.dtype()));
        let output = [(*x.shape(), x.dtype())];
        if let Some([y]) = run_fused("scale_channels", Op::ScaleChannels, &[x, scale, shift], output) {
            return y.recorded(
                "scale_channels",
                &[x, scale, shift],
                &[Save::Input(0), Save::Input(1)],
                |c| {
                    let (x, scale, g) = (c.saved(0), c.saved(1), c.grad());
                    if !is_grad_enabled() && (0..3).all(|i| c.needs(i)) {
                        let channels = (*scale.shape(), scale.dtype());
                        let outputs = [(*x.shape(), x.dtype()), channels, channels];
                        let op = Op::ScaleChannelsGrad;
                        if let Some(all) = run_fused("scale_channels_grad", op, &[x, scale, g], outputs) {
                            return Gradients::from_vec(all.map(Some).into());
                        }
                    }
                    Gradients::from_vec(vec![
                        c.needs(0).then(|| g * scale.unsqueeze(1)),
                        c.needs(1).then(|| (g * x).sum([0, 2])),
                        c.needs(2).then(|| g.sum([0, 2])),
                    ])
                },
            );
        }
    }
    let mut y = x.clone();
    if let Some(weight) = weight {
        y *= weight.to_dtype(x.dtype()).unsqueeze(1);
    }
    if let Some(bias) = bias {
        y += bias.to_dtype(x.dtype()).unsqueeze(1);
    }
    y
}

/// `x [n, c, s]` with the statistics of the batch; also these, `[c]` each and without history.
#[track_caller]
fn by_batch(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> (Tensor, Tensor, Tensor) {
    let wide = wide(x.dtype());
    let parameters = [weight, bias].into_iter().flatten().map(|p| p.to_dtype(wide));
    let inputs: SmallVec<[Tensor; 3]> = std::iter::once(x.clone()).chain(parameters).collect();
    let (weight, bias, count) = (weight.is_some(), bias.is_some(), inputs.len());
    let lowering = move |inputs: &[Tensor]| batch_norm_lowering(inputs, weight, bias, eps);
    let references: SmallVec<[&Tensor; 3]> = inputs.iter().collect();
    let channels = Shape::from(x.size(1));
    let outputs = [(*x.shape(), x.dtype()), (channels, wide), (channels, wide)];
    let fused = run_fused("batch_norm", Op::BatchNorm { eps, weight, bias }, &references, outputs);
    let Some([y, mean, var]) = fused else {
        return lowering(&inputs);
    };
    let mut save: SmallVec<[Save<'_>; 5]> = (0..count).map(Save::Input).collect();
    save.extend([Save::Other(&mean), Save::Other(&var)]);
    let y = y.recorded("batch_norm", &references, &save, move |c| {
        let (x, mean, var) = (c.saved(0), c.saved(count), c.saved(count + 1));
        if !is_grad_enabled() {
            let mut inputs: SmallVec<[&Tensor; 5]> = SmallVec::from_slice(&[x, mean, var]);
            inputs.extend(weight.then(|| c.saved(1)));
            inputs.push(c.grad());
            let channels = (*mean.shape(), mean.dtype());
            let outputs = [(*x.shape(), x.dtype()), channels, channels];
            let op = Op::BatchNormGrad { eps, weight };
            if let Some([dx, dw, db]) = run_fused("batch_norm_grad", op, &inputs, outputs) {
                let mut gradients = grads![dx];
                gradients.extend(weight.then_some(Some(dw)));
                gradients.extend(bias.then_some(Some(db)));
                return gradients;
            }
        }
        let inputs: SmallVec<[&Tensor; 3]> = (0..count).map(|i| c.saved(i)).collect();
        Gradients::from_vec(by_lowering(&inputs, |inputs| lowering(inputs).0, c.grad()))
    });
    drop(save);
    (y, mean, var)
}

#[track_caller]
fn batch_norm_lowering(inputs: &[Tensor], weight: bool, bias: bool, eps: f64) -> (Tensor, Tensor, Tensor) {
    let x = inputs[0].to_dtype(wide(inputs[0].dtype()));
    let mean = x.mean_keepdim([0, 2]);
    let centred = &x - &mean;
    let var = centred.square().mean_keepdim([0, 2]);
    let y = centred * (&var + eps).rsqrt();
    let y = scale_channels(&y, weight.then(|| &inputs[1]), bias.then(|| &inputs[1 + weight as usize]));
    (y.to_dtype(inputs[0].dtype()), mean.detach().flatten(0, -1), var.detach().flatten(0, -1))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, assert_with_gradients, device, everywhere, wave};
    use crate::{DType, Tensor, gradcheck, gradgradcheck};
    /// Running mean and variance to start from.
    fn running() -> [Tensor; 2] {
        [[0.5f64, -0.5], [1.5, 0.5]].map(|values| Tensor::new(values, device()))
    }

    #[test]
    fn training_is_pytorchs_and_moves_the_running_statistics() {
        everywhere(|| {
            let (x, w, b) = (wave([3, 2, 2], 0.0), wave(2, 1.0), wave(2, 2.0));
            let [mut mean, mut var] = running();
            let y = x.batch_norm(Some(&mut mean), Some(&mut var), Some(&w), Some(&b), true, 0.3, 1e-2);
            assert_eq!(*y.shape(), [3, 2, 2]);
            assert_with_gradients(
                &y,
                &[&x, &w, &b],
                &[
                    -0.512257, 1.876961, -0.073051, -0.957718, 0.67821, 1.411538, -0.659509, -0.551627,
                    1.557722, 0.44361, -1.004683, 0.06757,
                ],
                &[
                    &[
                        0.41316, 0.119258, -0.645319, 0.230437, 0.765555, -0.624038, -0.469072, 0.477277,
                        0.72419, -1.398126, -0.181537, 0.588214,
                    ],
                    &[0.953161, 1.759501],
                    &[3.45788, -3.073583],
                ],
            );
            assert_close(&mean, &[0.527008, -0.530488]);
            assert_close(&var, &[1.090314, 0.384146]);
            assert!(!mean.requires_grad() && !var.requires_grad());
            let x = wave([4, 2], 0.0);
            let y = x.batch_norm(None, None, None, Some(&b), true, 0.3, 1e-2);
            assert_eq!(*y.shape(), [4, 2]);
            assert_with_gradients(
                &y,
                &[&x, &b],
                &[1.169448, 0.565354, 0.593001, -1.692437, 2.284063, 0.337892, -0.409321, -1.330153],
                &[
                    &[0.852059, 0.147163, -0.879466, -0.146093, -0.053987, -0.178315, 0.081394, 0.177245],
                    &[-0.314539, 0.423744],
                ],
            );
        });
    }

    #[test]
    fn evaluation_is_pytorchs_and_leaves_the_running_statistics() {
        everywhere(|| {
            let (x, w, b) = (wave([3, 2, 2], 0.0), wave(2, 1.0), wave(2, 2.0));
            let [mut mean, mut var] = running();
            let y = x.batch_norm(Some(&mut mean), Some(&mut var), Some(&w), Some(&b), false, 0.3, 1e-2);
            assert_eq!(*y.shape(), [3, 2, 2]);
            assert_with_gradients(
                &y,
                &[&x, &w, &b],
                &[
                    0.566908, 1.245979, -0.383539, -0.784666, 0.905266, 1.113695, -0.649451, -0.600535,
                    1.155244, 0.838588, -0.80596, -0.319779,
                ],
                &[
                    &[
                        0.328301, 0.553642, -0.411595, -0.377782, 0.582361, 0.28221, -0.5725, -0.099106,
                        0.684306, -0.062936, -0.583865, 0.205457,
                    ],
                    &[0.524248, 1.235185],
                    &[3.45788, -3.073583],
                ],
            );
            assert_close(&mean, &[0.5, -0.5]);
            assert_close(&var, &[1.5, 0.5]);
        });
    }

    #[test]
    fn bf16_rounds_once_at_the_end() {
        everywhere(|| {
            let [x, w, b] =
                [wave([3, 2, 2], 0.0), wave(2, 1.0), wave(2, 2.0)].map(|t| t.to_dtype(DType::BF16));
            let y = x.batch_norm(None, None, Some(&w), Some(&b), true, 0.1, 1e-5);
            assert_eq!(y.dtype(), DType::BF16);
            // F.batch_norm of these inputs in f64, rounded.
            assert_close(
                &y,
                &[
                    -0.570312, 1.921875, -0.051025, -0.980469, 0.671875, 1.429688, -0.667969, -0.554688,
                    1.585938, 0.425781, -1.03125, 0.097168,
                ],
            );
        });
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        everywhere(|| {
            let inputs = [wave([3, 2, 2], 0.0), wave(2, 1.0), wave(2, 2.0)];
            let f = |t: &[Tensor]| t[0].batch_norm(None, None, Some(&t[1]), Some(&t[2]), true, 0.1, 1e-2);
            gradcheck(f, &inputs).unwrap();
            gradgradcheck(f, &inputs).unwrap();
        });
    }

    #[test]
    #[should_panic(expected = "batch_norm: the batch has one value per channel, which has no variance")]
    fn a_single_value_is_refused() {
        wave([1, 3], 0.0).batch_norm(None, None, None, None, true, 0.1, 1e-5);
    }

    #[test]
    #[should_panic(
        expected = "batch_norm: weight must have shape [3], one number per channel. weight: f64 [2]"
    )]
    fn a_weight_of_another_shape_is_named() {
        wave([2, 3], 0.0).batch_norm(None, None, Some(&wave(2, 0.0)), None, true, 0.1, 1e-5);
    }

    #[test]
    #[should_panic(expected = "batch_norm: running_mean and running_var are needed outside of training")]
    fn evaluation_without_statistics_is_refused() {
        wave([2, 3], 0.0).batch_norm(None, None, None, None, false, 0.1, 1e-5);
    }
}
