//! Layer normalisation and its cousin without a mean.

use super::lowering::{by_lowering, wide};
use crate::autograd::{Gradients, Save, is_grad_enabled};
use crate::dispatch::run_fused;
use crate::dtype::DType;
use crate::grads;
use crate::op::Op;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::borrow::Cow;

impl Tensor {
    /// Layer normalisation over the last dimensions, those of `normalized_shape`:
    /// `(x - mean) / sqrt(var + eps) * weight + bias`, with the biased variance.
    ///
    /// As PyTorch's [`layer_norm`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.layer_norm.html);
    /// usual `eps`: `1e-5`. Of the dtype of the input, with statistics in at least f32.
    ///
    /// # Shapes
    /// - input and output: `[.., normalized_shape]`
    /// - `weight`, `bias`: `normalized_shape`
    ///
    /// # Panics
    /// If a shape does not end in (or equal) `normalized_shape`, or a dtype is not a float.
    #[track_caller]
    pub fn layer_norm(
        &self,
        normalized_shape: impl Into<Shape>,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Tensor {
        let normalized = normalized_shape.into();
        let x = self.in_full_precision();
        let inputs = as_rows("layer_norm", &x, &normalized, [("weight", weight), ("bias", bias)]);
        let inputs: SmallVec<[&Tensor; 3]> = inputs.iter().map(|t| &**t).collect();
        let y = layer_norm_rows(&inputs, weight.is_some(), bias.is_some(), eps);
        y.with_shape(*self.shape())
    }

    /// Normalisation by the root mean square over the last dimensions, those of `normalized_shape`:
    /// `x / sqrt(mean(x²) + eps) * weight`.
    ///
    /// As PyTorch's [`rms_norm`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.rms_norm.html). Without an
    /// `eps` it is the distance from 1 to the next number of the dtype that the mean is computed in: that of f32 for f16, bf16 and
    /// f32, that of f64 for f64.
    ///
    /// # Shapes
    /// - input and output: `[.., normalized_shape]`
    /// - `weight`: `normalized_shape`
    ///
    /// # Panics
    /// If a shape does not end in (or equal) `normalized_shape`, or a dtype is not a float.
    #[track_caller]
    pub fn rms_norm(
        &self,
        normalized_shape: impl Into<Shape>,
        weight: Option<&Tensor>,
        eps: Option<f64>,
    ) -> Tensor {
        let normalized = normalized_shape.into();
        let x = self.in_full_precision();
        let inputs = as_rows("rms_norm", &x, &normalized, [("weight", weight)]);
        let inputs: SmallVec<[&Tensor; 3]> = inputs.iter().map(|t| &**t).collect();
        let epsilon = if self.dtype() == DType::F64 { f64::EPSILON } else { f32::EPSILON as f64 };
        let y = rms_norm_rows(&inputs, weight.is_some(), eps.unwrap_or(epsilon));
        y.with_shape(*self.shape())
    }
}

/// Checks the operands and flattens the normalised dimensions to one: `x [.., d]`, then `[d]` for every parameter that is there.
#[track_caller]
fn as_rows<'a, const N: usize>(
    op: &str,
    x: &'a Tensor,
    normalized: &Shape,
    parameters: [(&str, Option<&'a Tensor>); N],
) -> SmallVec<[Cow<'a, Tensor>; 3]> {
    x.require_float(op);
    if normalized.rank() == 0 || !x.shape().ends_with(normalized) {
        panic!("{op}: the input's shape must end in normalized_shape {normalized}. input: {}", x.describe());
    }
    let flat = |t: Cow<'a, Tensor>| match normalized.rank() {
        1 => t,
        n => Cow::Owned(t.flatten(-(n as isize), -1)),
    };
    let mut inputs = SmallVec::new();
    inputs.push(flat(Cow::Borrowed(x)));
    for (name, parameter) in parameters {
        let Some(p) = parameter else { continue };
        p.require_float(op);
        if p.shape() != normalized {
            panic!(
                "{op}: {name} must have normalized_shape {normalized}. {name}: {}; input: {}",
                p.describe(),
                x.describe()
            );
        }
        inputs.push(flat(p.as_dtype(x.dtype())));
    }
    inputs
}

/// The statistics of rows: one number each.
fn per_row(x: &Tensor) -> (Shape, DType) {
    (x.shape().with(x.rank() - 1, 1), wide(x.dtype()))
}

#[track_caller]
fn layer_norm_rows(inputs: &[&Tensor], weight: bool, bias: bool, eps: f64) -> Tensor {
    let x = inputs[0];
    let lowering = move |inputs: &[Tensor]| layer_norm_lowering(inputs, weight, bias, eps);
    let lowered = || lowering(&inputs.iter().map(|&t| t.clone()).collect::<SmallVec<[Tensor; 3]>>());
    if bias && !weight {
        return lowered(); // The kernel computes the bias's gradient along with the weight's only.
    }
    let outputs = [(*x.shape(), x.dtype()), per_row(x), per_row(x)];
    let Some([y, mean, rstd]) = run_fused("layer_norm", Op::LayerNorm { eps, weight, bias }, inputs, outputs)
    else {
        return lowered();
    };
    let mut save: SmallVec<[Save<'_>; 5]> = (0..inputs.len()).map(Save::Input).collect();
    save.extend([Save::Other(&mean), Save::Other(&rstd)]);
    let count = inputs.len();
    y.recorded("layer_norm", inputs, &save, move |c| {
        let (x, mean, rstd) = (c.saved(0), c.saved(count), c.saved(count + 1));
        if !is_grad_enabled() {
            let (op, dx) = (Op::LayerNormGrad { weight }, (*x.shape(), x.dtype()));
            if weight {
                let parameter = (Shape::from(x.size(-1)), x.dtype());
                let inputs = [x, mean, rstd, c.saved(1), c.grad()];
                if let Some(all) = run_fused("layer_norm_grad", op, &inputs, [dx, parameter, parameter]) {
                    return all.into_iter().map(Some).take(count).collect();
                }
            } else if let Some([dx]) = run_fused("layer_norm_grad", op, &[x, mean, rstd, c.grad()], [dx]) {
                return grads![dx];
            }
        }
        let inputs: SmallVec<[&Tensor; 3]> = (0..count).map(|i| c.saved(i)).collect();
        Gradients::from_vec(by_lowering(&inputs, lowering, c.grad()))
    })
}

#[track_caller]
fn layer_norm_lowering(inputs: &[Tensor], weight: bool, bias: bool, eps: f64) -> Tensor {
    let (dtype, wide) = (inputs[0].dtype(), wide(inputs[0].dtype()));
    let x = inputs[0].to_dtype(wide);
    let centred = &x - x.mean_keepdim(-1);
    let rstd = (centred.square().mean_keepdim(-1) + eps).rsqrt();
    let mut y = centred * rstd;
    if weight {
        y *= inputs[1].to_dtype(wide);
    }
    if bias {
        y += inputs[1 + weight as usize].to_dtype(wide);
    }
    y.to_dtype(dtype)
}

#[track_caller]
fn rms_norm_rows(inputs: &[&Tensor], weight: bool, eps: f64) -> Tensor {
    let x = inputs[0];
    let lowering = move |inputs: &[Tensor]| rms_norm_lowering(inputs, weight, eps);
    let outputs = [(*x.shape(), x.dtype()), per_row(x)];
    let Some([y, rrms]) = run_fused("rms_norm", Op::RmsNorm { eps, weight }, inputs, outputs) else {
        return lowering(&inputs.iter().map(|&t| t.clone()).collect::<SmallVec<[Tensor; 3]>>());
    };
    let mut save: SmallVec<[Save<'_>; 3]> = (0..inputs.len()).map(Save::Input).collect();
    save.push(Save::Other(&rrms));
    y.recorded("rms_norm", inputs, &save, move |c| {
        let (x, rrms) = (c.saved(0), c.saved(1 + weight as usize));
        if !is_grad_enabled() {
            let (op, dx) = (Op::RmsNormGrad { weight }, (*x.shape(), x.dtype()));
            if weight {
                let dw = (Shape::from(x.size(-1)), x.dtype());
                if let Some([dx, dw]) =
                    run_fused("rms_norm_grad", op, &[x, rrms, c.saved(1), c.grad()], [dx, dw])
                {
                    return grads![dx, dw];
                }
            } else if let Some([dx]) = run_fused("rms_norm_grad", op, &[x, rrms, c.grad()], [dx]) {
                return grads![dx];
            }
        }
        let inputs: SmallVec<[&Tensor; 2]> = (0..1 + weight as usize).map(|i| c.saved(i)).collect();
        Gradients::from_vec(by_lowering(&inputs, lowering, c.grad()))
    })
}

#[track_caller]
fn rms_norm_lowering(inputs: &[Tensor], weight: bool, eps: f64) -> Tensor {
    let (dtype, wide) = (inputs[0].dtype(), wide(inputs[0].dtype()));
    let x = inputs[0].to_dtype(wide);
    let mut y = &x * (x.square().mean_keepdim(-1) + eps).rsqrt();
    if weight {
        y *= inputs[1].to_dtype(wide);
    }
    y.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, assert_with_gradients, everywhere, wave};
    use crate::{DType, Tensor, gradcheck, gradgradcheck};

    #[test]
    fn layer_norm_over_two_dimensions_is_pytorchs() {
        everywhere(|| {
            let (x, w, b) = (wave([2, 2, 3], 0.0), wave([2, 3], 1.0), wave([2, 3], 2.0));
            let y = x.layer_norm([2, 3], Some(&w), Some(&b), 1e-5);
            assert_with_gradients(
                &y,
                &[&x, &w, &b],
                &[
                    0.673639, -0.003822, -0.135778, 1.036928, 1.056977, -0.950073, 0.249691, -0.810565,
                    -2.332159, 0.561352, -0.6036, -0.885116,
                ],
                &[
                    &[
                        0.025015, -0.083225, 0.412676, -0.395706, 0.694184, -0.652944, -0.46379, 0.667472,
                        -0.873973, 0.684098, -0.695987, 0.68218,
                    ],
                    &[0.615615, 1.103868, 2.097952, 0.982635, 1.563282, 0.410702],
                    &[-0.477209, 0.642892, 0.311543, -0.723173, -0.125189, 0.755433],
                ],
            );
        });
    }

    #[test]
    fn layer_norm_works_without_weight_and_without_either() {
        everywhere(|| {
            let (x, b) = (wave([2, 2, 3], 0.0), wave([2, 3], 2.0));
            assert_with_gradients(
                &x.layer_norm([2, 3], None, Some(&b), 1e-5),
                &[&x, &b],
                &[
                    0.629242, 0.700953, -1.442147, -0.961605, 1.057665, 0.056779, 0.125425, -1.186697,
                    0.86594, 1.64912, -0.605334, -0.807566,
                ],
                &[
                    &[
                        0.643614, -0.073619, -0.820637, 0.089094, 0.601684, -0.440136, -0.536754, 0.574084,
                        0.245383, -0.780752, -0.187627, 0.685666,
                    ],
                    &[-0.477209, 0.642892, 0.311543, -0.723173, -0.125189, 0.755433],
                ],
            );
            assert_with_gradients(
                &x.layer_norm(3, None, None, 0.1),
                &[&x],
                &[
                    -0.393238, 1.196005, -0.802768, -1.28555, 0.456106, 0.829445, -0.69838, -0.594007,
                    1.292387, 0.989463, -1.128048, 0.138585,
                ],
                &[&[
                    0.727231, 0.124994, -0.852225, -0.222315, 0.497604, -0.275289, -0.557478, 0.361181,
                    0.196297, -0.310556, -0.524956, 0.835512,
                ]],
            );
        });
    }

    #[test]
    fn bf16_rounds_once_at_the_end() {
        everywhere(|| {
            let [x, w, b] =
                [wave([2, 2, 3], 0.0), wave([2, 3], 1.0), wave([2, 3], 2.0)].map(|t| t.to_dtype(DType::BF16));
            let y = x.layer_norm([2, 3], Some(&w), Some(&b), 1e-5);
            assert_eq!(y.dtype(), DType::BF16);
            assert_close(
                &y,
                &[
                    0.675781, -0.004211, -0.134766, 1.039062, 1.0625, -0.949219, 0.251953, -0.8125,
                    -2.328125, 0.5625, -0.605469, -0.882812,
                ],
            );
        });
    }

    #[test]
    fn rms_norm_is_pytorchs() {
        everywhere(|| {
            let (x, w) = (wave([2, 2, 3], 0.0), wave([2, 3], 1.0));
            assert_with_gradients(
                &x.rms_norm([2, 3], Some(&w), Some(0.1)),
                &[&x, &w],
                &[
                    0.0, 0.564041, 0.323629, 0.224448, 0.656637, -0.079861, -0.79243, -0.355468, -1.100099,
                    -0.097245, -1.291729, 0.015067,
                ],
                &[
                    &[
                        0.536899, 0.27916, 0.917584, 0.321739, 1.040126, -0.186717, -0.873657, 0.08979,
                        -1.536717, -0.096227, -1.023078, 0.009883,
                    ],
                    &[0.900883, 1.204765, 1.389153, 0.728738, 1.821326, 0.369117],
                ],
            );
        });
    }

    #[test]
    fn rms_norm_takes_the_dtypes_own_epsilon() {
        everywhere(|| {
            let x = wave([2, 2, 3], 0.0).detach();
            assert_close(
                &(&x * 1e-8).rms_norm(3, None, None),
                &[
                    0.0, 0.618582, -0.159402, -0.553273, 0.295286, 0.477182, -0.421494, -0.372268, 0.517423,
                    0.246598, -0.597567, -0.092612,
                ],
            );
            assert_close(
                &(&x * 1e-4).to_dtype(DType::F32).rms_norm(3, None, None),
                &[
                    0.0, 0.283096, -0.072951, -0.261854, 0.139753, 0.225841, -0.198291, -0.175133, 0.243421,
                    0.113175, -0.27425, -0.042504,
                ],
            );
        });
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        everywhere(|| {
            let inputs = [wave([2, 2, 3], 0.0), wave([2, 3], 1.0), wave([2, 3], 2.0)];
            let layer_norm = |t: &[Tensor]| t[0].layer_norm([2, 3], Some(&t[1]), Some(&t[2]), 1e-2);
            gradcheck(layer_norm, &inputs).unwrap();
            gradgradcheck(layer_norm, &inputs).unwrap();
            let rms_norm = |t: &[Tensor]| t[0].rms_norm([2, 3], Some(&t[1]), Some(1e-2));
            gradcheck(rms_norm, &inputs[..2]).unwrap();
            gradgradcheck(rms_norm, &inputs[..2]).unwrap();
        });
    }

    #[test]
    #[should_panic(expected = "layer_norm: weight must have normalized_shape [3]. weight: f64 [2]")]
    fn a_weight_of_another_shape_is_named() {
        wave([2, 3], 0.0).layer_norm(3, Some(&wave(2, 0.0)), None, 1e-5);
    }

    #[test]
    #[should_panic(
        expected = "rms_norm: the input's shape must end in normalized_shape [4]. input: f64 [2, 3]"
    )]
    fn a_shape_that_does_not_end_in_the_normalised_one_is_named() {
        wave([2, 3], 0.0).rms_norm(4, None, None);
    }
}
