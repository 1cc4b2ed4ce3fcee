//! Copies and conversions between dtypes.

use crate::dispatch::run;
use crate::dtype::DType;
use crate::op::Op;
use crate::tensor::Tensor;
use std::borrow::Cow;

impl Tensor {
    /// Converted to `dtype`; itself if it has it already. Floats become integers by cutting towards zero, anything becomes bool by
    /// `!= 0`. Gradients flow between float dtypes.
    #[track_caller]
    pub fn to_dtype(&self, dtype: DType) -> Tensor {
        if dtype == self.dtype() {
            return self.clone();
        }
        let out = run("to_dtype", Op::Copy, &[self], *self.shape(), dtype);
        if !dtype.is_float() {
            return out;
        }
        // The engine converts gradients to the dtype of the input they belong to.
        out.recorded("to_dtype", &[self], &[], |c| crate::grads![c.grad().clone()])
    }

    /// As [`Tensor::to_dtype`], for an operation's own use: no other handle where there is nothing to convert.
    #[track_caller]
    pub(crate) fn as_dtype(&self, dtype: DType) -> Cow<'_, Tensor> {
        if dtype == self.dtype() { Cow::Borrowed(self) } else { Cow::Owned(self.to_dtype(dtype)) }
    }

    /// A row-major copy in memory of its own. Gradients flow back.
    #[track_caller]
    pub fn copy(&self) -> Tensor {
        let out = run("copy", Op::Copy, &[self], *self.shape(), self.dtype());
        out.recorded("copy", &[self], &[], |c| crate::grads![c.grad().clone()])
    }
}
