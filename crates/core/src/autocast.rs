//! Mixed precision: which operations run in half precision while everything else stays as it is.
//!
//! Inside [`autocast`], the operations that profit from half precision and bear it convert their f32 operands on the way in, and
//! those that need f32 convert half precision back. The conversions are recorded operations, so gradients of f32 parameters are f32.

use crate::dtype::DType;
use crate::tensor::Tensor;
use std::borrow::Cow;
use std::cell::Cell;

thread_local! {
    static LOW: Cell<Option<DType>> = const { Cell::new(None) };
}

/// Runs `f` in mixed precision, per thread: PyTorch's
/// [`torch.autocast`](https://docs.pytorch.org/docs/stable/amp.html), with its lists for GPUs on every device.
///
/// | operations | run in |
/// |---|---|
/// | `matmul`, `dot`, `einsum`, `linear`, convolutions, `scaled_dot_product_attention`, recurrent layers | `dtype` |
/// | `exp`, `expm1`, `log`, `log1p`, `log2`, `log10`, `pow`, `square`, `reciprocal`, `rsqrt`, `tan`, `softplus`, `sum`, `prod`, `cumsum`, `cumprod`, `norm`, `logsumexp`, `softmax`, `log_softmax`, `layer_norm`, `rms_norm`, `group_norm`, the losses | f32 |
/// | everything else | the dtype of the operands; of mixed ones, the wider |
///
/// f64 stays f64. Call it around the forward pass and the loss; `backward` runs each operation in the dtype of its forward pass,
/// wherever it is called. With f16, small gradients vanish unless the loss is scaled: see `GradScaler`. bf16 needs none.
///
/// ```
/// use orkest_core::{DType, Device, Tensor, autocast};
/// let weight = Tensor::randn([4, 8], &Device::cpu()).requires_grad_(true);
/// let loss = autocast(DType::BF16, || {
///     let y = Tensor::ones([2, 8], &Device::cpu()).linear(&weight, None);
///     assert_eq!(y.dtype(), DType::BF16);
///     y.softmax(-1).square().sum(..)
/// });
/// assert_eq!(loss.dtype(), DType::F32);
/// loss.backward();
/// assert_eq!(weight.grad().unwrap().dtype(), DType::F32);
/// ```
///
/// # Panics
/// If `dtype` is neither f16 nor bf16.
#[track_caller]
pub fn autocast<R>(dtype: DType, f: impl FnOnce() -> R) -> R {
    assert!(
        matches!(dtype, DType::F16 | DType::BF16),
        "autocast: the dtype must be f16 or bf16, not {dtype}"
    );
    let _mode = Autocast::set(Some(dtype));
    f()
}

/// Runs `f` in the dtypes of its operands, inside an [`autocast`]: `torch.autocast(.., enabled=False)`.
pub fn no_autocast<R>(f: impl FnOnce() -> R) -> R {
    let _mode = Autocast::set(None);
    f()
}

/// The half precision of the [`autocast`] around this, if there is one.
pub fn autocast_dtype() -> Option<DType> {
    LOW.with(Cell::get)
}

/// Sets the mode until it is dropped, also by a panic.
pub(crate) struct Autocast {
    before: Option<DType>,
}

impl Autocast {
    #[must_use]
    pub fn set(dtype: Option<DType>) -> Autocast {
        Autocast { before: LOW.replace(dtype) }
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        LOW.set(self.before);
    }
}

/// The dtype that an operand of `dtype` has in an operation that runs in half precision under [`autocast`].
pub(crate) fn low_precision(dtype: DType) -> DType {
    match autocast_dtype() {
        Some(low) if matches!(dtype, DType::F32 | DType::F16 | DType::BF16) => low,
        _ => dtype,
    }
}

impl Tensor {
    /// This operand of an operation that runs in half precision under [`autocast`].
    #[track_caller]
    pub(crate) fn in_low_precision(&self) -> Cow<'_, Tensor> {
        self.as_dtype(low_precision(self.dtype()))
    }

    /// This operand of an operation that runs in f32 under [`autocast`].
    #[track_caller]
    pub(crate) fn in_full_precision(&self) -> Cow<'_, Tensor> {
        match autocast_dtype() {
            Some(_) if matches!(self.dtype(), DType::F16 | DType::BF16) => self.as_dtype(DType::F32),
            _ => Cow::Borrowed(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn the_mode_nests_and_survives_a_panic() {
        autocast(DType::BF16, || {
            autocast(DType::F16, || assert_eq!(autocast_dtype(), Some(DType::F16)));
            no_autocast(|| assert_eq!(autocast_dtype(), None));
            let _ = std::panic::catch_unwind(|| autocast(DType::F16, || panic!("inside")));
            assert_eq!(autocast_dtype(), Some(DType::BF16));
        });
        assert_eq!(autocast_dtype(), None);
    }

    #[test]
    fn operations_have_the_dtypes_of_the_table() {
        let device = Device::reference();
        let x = Tensor::ones([2, 2], &device);
        let half = x.to_dtype(DType::F16);
        autocast(DType::F16, || {
            let low = [
                x.matmul(&x),
                x.linear(&half, None),
                crate::einsum("ij,jk->ik", &[&x, &x]),
                x.view((1, 1, 2, 2)).conv2d(&x.view((1, 1, 2, 2)), None, 1, 0, 1, 1),
                x.view((1, 1, 2, 2)).conv_transpose2d(&x.view((1, 1, 2, 2)), None, 1, 0, 0, 1, 1),
                x.scaled_dot_product_attention(&x, &x, None, 0.0, false, None),
                half.relu(),
                &half + &half,
            ];
            for y in low {
                assert_eq!(y.dtype(), DType::F16, "{}", y.origin().0);
            }
            let full = [
                half.exp(),
                half.log(),
                half.square(),
                half.pow(2.0),
                half.sum(..),
                half.cumsum(0),
                half.softmax(-1),
                half.log_softmax(-1),
                half.logsumexp(-1),
                half.norm(2.0, ..),
                half.layer_norm([2], None, None, 1e-5),
                half.view((1, 2, 2)).group_norm(1, None, None, 1e-5),
                half.rms_norm([2], Some(&x.select(0, 0)), None),
                half.cross_entropy_rows(&Tensor::zeros(2, (DType::I64, &device)), -100, 0.0),
                &half + &x,
            ];
            for y in full {
                assert_eq!(y.dtype(), DType::F32, "{}", y.origin().0);
            }
            let double = x.to_dtype(DType::F64);
            assert_eq!(double.matmul(&double).dtype(), DType::F64);
            assert_eq!(x.to_dtype(DType::I64).matmul(&x.to_dtype(DType::I64)).dtype(), DType::I64);
        });
        assert_eq!(half.exp().dtype(), DType::F16);
    }

    #[test]
    fn backward_keeps_the_dtypes_of_the_forward_pass() {
        let device = Device::reference();
        let x = Tensor::new([[1.0f32, 2.0]], &device).requires_grad_(true);
        let w = Tensor::new([[3.0f32, 1.0 + 1.0 / 1024.0]], &device).requires_grad_(true);
        autocast(DType::BF16, || x.linear(&w, None).sum(..).backward());
        // 1 + 2⁻¹⁰ is 1 in bf16: the gradient is that of what was computed.
        assert_eq!(x.grad().unwrap().to_vec::<f32>().unwrap(), [3.0, 1.0]);
        assert_eq!(w.grad().unwrap().to_vec::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(w.grad().unwrap().dtype(), DType::F32);
    }

    #[test]
    #[should_panic = "autocast: the dtype must be f16 or bf16, not f32"]
    fn only_half_precision_is_low() {
        autocast(DType::F32, || ());
    }
}
