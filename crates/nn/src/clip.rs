//! Limits on gradients, between `backward()` and the optimizer's step.

use orkest_core::{DType, Device, Error, GradMode, Param, Result, Tensor};
use std::collections::HashSet;

/// Scales all gradients together so that their 2-norm is at most `max_norm`. Gives the norm before that, as a tensor without
/// dimensions, so that nothing waits for the device unless you read it.
///
/// ```
/// # use orkest_core::{Device, Param, Tensor, tensor};
/// # use orkest_nn::clip_grad_norm;
/// let weight = Param::new(tensor![1.0, 1.0]);
/// (weight.tensor() * tensor![3.0, 4.0]).sum(..).backward();
/// assert_eq!(clip_grad_norm(&[weight.clone()], 1.0).item()?, 5.0);
/// assert!((weight.grad().unwrap().norm(2.0, ..).item()? - 1.0).abs() < 1e-6);
/// # Ok::<(), orkest_core::Error>(())
/// ```
#[track_caller]
pub fn clip_grad_norm(params: &[Param], max_norm: f64) -> Tensor {
    clip_grad_norm_with(params, max_norm, 2.0)
}

/// As [`clip_grad_norm`] with another norm: 1, 2, `f64::INFINITY` (the largest element), or any other p.
#[track_caller]
pub fn clip_grad_norm_with(params: &[Param], max_norm: f64, norm_type: f64) -> Tensor {
    let params = with_grad(params);
    let total = total_norm(&params, norm_type);
    scale(&params, max_norm, &total);
    total
}

/// As [`clip_grad_norm_with`], but refuses gradients whose norm is infinite or NaN (`error_if_nonfinite` in PyTorch).
///
/// # Errors
/// If the norm is not finite; the gradients have not changed then. And whatever the device reports.
#[track_caller]
pub fn try_clip_grad_norm(params: &[Param], max_norm: f64, norm_type: f64) -> Result<Tensor> {
    let params = with_grad(params);
    let total = total_norm(&params, norm_type);
    let norm = total.item()?;
    if !norm.is_finite() {
        return Err(Error::Data(format!(
            "clip_grad_norm: the norm of the gradients of {} parameters is {norm}, they cannot be clipped",
            params.len()
        )));
    }
    scale(&params, max_norm, &total);
    Ok(total)
}

/// Limits every element of every gradient to `[-limit, limit]`.
#[track_caller]
pub fn clip_grad_value(params: &[Param], limit: f64) {
    let _off = GradMode::set(false);
    for param in with_grad(params) {
        if let Some(grad) = param.grad() {
            param.set_grad(Some(grad.detach().clamp(-limit, limit)));
        }
    }
}

/// The norm of all gradients together: the norm of their norms.
#[track_caller]
fn total_norm(params: &[Param], norm_type: f64) -> Tensor {
    let _off = GradMode::set(false);
    let grads: Vec<Tensor> = params.iter().filter_map(Param::grad).filter(|g| g.numel() > 0).collect();
    let Some(first) = grads.first() else { return Tensor::zeros((), &Device::cpu()) };
    // Half precision would overflow in the sum of squares.
    let dtype = grads.iter().map(Tensor::dtype).fold(DType::F32, DType::promote);
    let mut norms = Vec::with_capacity(grads.len());
    for grad in &grads {
        norms.push(grad.detach().to_dtype(dtype).norm(norm_type, ..).to(first.device()));
    }
    Tensor::stack(&norms, 0).norm(norm_type, ..)
}

#[track_caller]
fn scale(params: &[Param], max_norm: f64, total: &Tensor) {
    let _off = GradMode::set(false);
    let factor = (max_norm / (total + 1e-6)).clamp_max(1.0);
    for param in params {
        let Some(grad) = param.grad() else { continue };
        param.set_grad(None);
        let mut grad = grad.detach();
        grad.mul_(&factor.to(grad.device()));
        param.set_grad(Some(grad));
    }
}

/// The parameters that have a gradient, each once.
fn with_grad(params: &[Param]) -> Vec<Param> {
    let mut seen = HashSet::new();
    params.iter().filter(|p| seen.insert(p.id()) && p.grad().is_some()).cloned().collect()
}

#[cfg(test)]
mod tests {
    //! Expected numbers are those of `torch.nn.utils.clip_grad_norm_` (2.15).

    use super::*;
    use orkest_core::tensor;

    fn params() -> Vec<Param> {
        let [a, b] =
            [Param::new(Tensor::zeros(4, &Device::cpu())), Param::new(Tensor::zeros([2, 2], &Device::cpu()))];
        a.set_grad(Some(tensor![3.0, -4.0, 0.5, 12.0]));
        b.set_grad(Some(tensor![[1.0, 2.0], [-7.0, 0.25]]));
        // A parameter without gradient, and a tied one.
        vec![a.clone(), b, Param::new(tensor![1.0]), a]
    }

    fn grads(params: &[Param]) -> Vec<f32> {
        params[..2].iter().flat_map(|p| p.grad().unwrap().to_vec::<f32>().unwrap()).collect()
    }

    #[track_caller]
    fn close(found: &[f32], expected: &[f32]) {
        assert!(
            found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6),
            "{found:?}"
        );
    }

    #[test]
    fn norms() {
        let two = [
            0.50188553,
            -0.66918075,
            0.083647594,
            2.0075421,
            0.16729519,
            0.33459038,
            -1.1710663,
            0.041823797,
        ];
        let one = [
            0.25210083,
            -0.33613443,
            0.042016804,
            1.0084033,
            0.08403361,
            0.16806722,
            -0.58823526,
            0.021008402,
        ];
        let max =
            [0.62499994, -0.83333325, 0.10416666, 2.4999998, 0.20833331, 0.41666663, -1.4583333, 0.05208333];
        let three =
            [0.5792043, -0.77227247, 0.09653406, 2.3168173, 0.19306812, 0.38613623, -1.3514768, 0.04826703];
        for (norm_type, norm, expected) in [
            (2.0, 14.943644523620605, two),
            (1.0, 29.75, one),
            (f64::INFINITY, 12.0, max),
            (3.0, 12.948796272277832, three),
        ] {
            let params = params();
            let total = clip_grad_norm_with(&params, 2.5, norm_type);
            assert!((total.item().unwrap() - norm).abs() < 2e-6);
            close(&grads(&params), &expected);
            assert!(params[2].grad().is_none());
        }
        let params = params();
        assert!((clip_grad_norm(&params, 2.5).item().unwrap() - 14.943644523620605).abs() < 2e-6);
        close(&grads(&params), &two);
    }

    #[test]
    fn small_gradients_stay() {
        let params = params();
        let before = grads(&params);
        try_clip_grad_norm(&params, 15.0, 2.0).unwrap();
        assert_eq!(grads(&params), before);
        assert_eq!(clip_grad_norm(&[], 1.0).item().unwrap(), 0.0);
    }

    #[test]
    fn infinite_norms_are_refused_on_request() {
        let params = params();
        params[1].set_grad(Some(tensor![[1.0, f32::INFINITY], [0.0, 0.0]]));
        let before = grads(&params);
        let error = try_clip_grad_norm(&params, 1.0, 2.0).unwrap_err().to_string();
        assert!(error.contains("2 parameters is inf"), "{error}");
        assert_eq!(grads(&params), before);
        // PyTorch scales by 0 and makes NaN of the infinity.
        assert_eq!(clip_grad_norm(&params, 1.0).item().unwrap(), f64::INFINITY);
        assert!(grads(&params)[5].is_nan() && grads(&params)[0] == 0.0);
    }

    #[test]
    fn half_precision_does_not_overflow() {
        let param = Param::new(Tensor::zeros(2, DType::F16));
        param.set_grad(Some(Tensor::new([300.0f32, 400.0], DType::F16)));
        assert_eq!(clip_grad_norm(std::slice::from_ref(&param), 5.0).item().unwrap(), 500.0);
        assert_eq!(param.grad().unwrap().to_dtype(DType::F32).to_vec::<f32>().unwrap(), [3.0, 4.0]);
    }

    #[test]
    fn values_are_limited() {
        let params = params();
        clip_grad_value(&params, 2.0);
        assert_eq!(grads(&params), [2.0, -2.0, 0.5, 2.0, 1.0, 2.0, -2.0, 0.25]);
    }
}
