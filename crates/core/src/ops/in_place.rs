//! Changing a tensor: in place where nobody else sees its memory, else on a copy of its own.
//!
//! A tensor is a value (see `tensor.rs`), so these methods take `&mut self` and are differentiable like any other operation: the
//! changed tensor gets a new history. Under `no_grad` a leaf stays a leaf with the gradient it has collected, so that
//! `no_grad(|| w -= w.grad() * lr)` is a step of gradient descent.

use super::creation::require_fit;
use super::elementwise::{Operand, binary, operand_dtype};
use super::index::IndexList;
use crate::autograd::{History, is_grad_enabled};
use crate::dispatch::run_into;
use crate::dtype::{DType, Scalar};
use crate::grads;
use crate::layout::Layout;
use crate::op::{Binary, Op};
use crate::shape::Shape;
use crate::tensor::Tensor;

impl Tensor {
    /// Overwrites this tensor with `source`, broadcast and cast to its shape and dtype.
    ///
    /// # Panics
    /// If `source` does not broadcast to this shape or lives on another device.
    #[track_caller]
    pub fn copy_(&mut self, source: &Tensor) {
        let layout = Layout::contiguous(*self.shape());
        self.overwrite("copy_", source, layout);
    }

    /// Overwrites every element with `value`.
    ///
    /// # Panics
    /// If the dtype does not have this number.
    #[track_caller]
    pub fn fill_(&mut self, value: impl Into<Scalar>) {
        let value = value.into();
        require_fit("fill_", value, self.dtype());
        self.make_unique();
        run_into("fill_", Op::Fill(value), &[], self, *self.layout());
    }

    /// Sets every element to zero.
    #[track_caller]
    pub fn zero_(&mut self) {
        self.fill_(0);
    }

    /// Adds `other`, a tensor that broadcasts to this shape or a number; `x += other` is the same.
    ///
    /// # Panics
    /// If `other` does not broadcast to this shape, lives on another device, or the sum is of a higher kind than this tensor (a float
    /// does not fit into integers).
    #[track_caller]
    pub fn add_<'a>(&mut self, other: impl Into<Operand<'a>>) {
        self.update("add_", &other.into(), Binary::Add);
    }

    /// Subtracts `other`; see [`Tensor::add_`].
    ///
    /// # Panics
    /// As [`Tensor::add_`].
    #[track_caller]
    pub fn sub_<'a>(&mut self, other: impl Into<Operand<'a>>) {
        self.update("sub_", &other.into(), Binary::Sub);
    }

    /// Multiplies with `other`; see [`Tensor::add_`].
    ///
    /// # Panics
    /// As [`Tensor::add_`].
    #[track_caller]
    pub fn mul_<'a>(&mut self, other: impl Into<Operand<'a>>) {
        self.update("mul_", &other.into(), Binary::Mul);
    }

    /// Divides by `other`; see [`Tensor::add_`].
    ///
    /// # Panics
    /// As [`Tensor::add_`]; also if this tensor holds integers, whose quotients are floats.
    #[track_caller]
    pub fn div_<'a>(&mut self, other: impl Into<Operand<'a>>) {
        self.update("div_", &other.into(), Binary::Div);
    }

    /// Overwrites the part of this tensor that `index` names with `source`, a tensor that broadcasts to it or a number:
    /// `x[1, 2..4] = source`.
    ///
    /// ```
    /// # use orkest_core::{Device, Tensor, tensor};
    /// let mut x = Tensor::zeros([2, 3], &Device::cpu());
    /// x.slice_assign((0, 1..), &tensor![7.0, 8.0]);
    /// x.slice_assign((.., 0), 1.0);
    /// assert_eq!(x.to_vec::<f32>().unwrap(), [1.0, 7.0, 8.0, 1.0, 0.0, 0.0]);
    /// ```
    ///
    /// # Panics
    /// If the index does not fit this tensor or `source` not the part, or they live on different devices.
    #[track_caller]
    pub fn slice_assign<'a>(&mut self, index: impl IndexList, source: impl Into<Operand<'a>>) {
        let dense = Layout::contiguous(*self.shape());
        let part = self.part_of(&dense, "slice_assign", index);
        let source = source.into();
        let source = source.to_tensor(self.dtype(), self.device());
        self.overwrite("slice_assign", &source, part);
    }

    /// Adds a gradient: in place where nobody else sees this one and nothing is being recorded.
    #[track_caller]
    pub(crate) fn accumulate(&mut self, other: &Tensor) {
        let plain = !(is_grad_enabled() && (self.requires_grad() || other.requires_grad()));
        if plain
            && self.dtype() == other.dtype()
            && self.shape() == other.shape()
            && self.is_contiguous()
            && self.is_unique()
        {
            self.set_history(History::None);
            run_into("accumulate_grad", Op::Binary(Binary::Add), &[self, other], self, *self.layout());
        } else {
            *self = &*self + other;
        }
    }

    #[track_caller]
    fn update(&mut self, name: &'static str, other: &Operand<'_>, op: Binary) {
        let (shape, dtype) = (*self.shape(), self.dtype());
        let result = operand_dtype(op, self, other);
        if result.category() > dtype.category() {
            self.does_not_fit(name, result);
        }
        if let Ok(t) = other.tensor()
            && t.shape().broadcast(&shape) != Some(shape)
        {
            panic!("{name}: {} does not broadcast to {shape}. operand: {}", t.shape(), t.describe());
        }
        let differentiable = self.requires_grad() || other.tensor().is_ok_and(Tensor::requires_grad);
        if is_grad_enabled() && differentiable {
            *self = binary(op, self, other).to_dtype(dtype);
            return;
        }
        if result != dtype {
            let value = binary(op, self, other);
            return self.overwrite(name, &value, Layout::contiguous(shape));
        }
        self.make_unique();
        // The same view is input and output.
        match other.tensor() {
            Ok(other) => {
                let other = other.as_dtype(dtype);
                let other = other.broadcast_view(&shape);
                run_into(name, Op::Binary(op), &[self, &other], self, *self.layout());
            }
            Err(scalar) => {
                let op = Op::BinaryScalar { op, scalar, swapped: false };
                run_into(name, op, &[self], self, *self.layout());
            }
        }
    }

    #[cold]
    #[track_caller]
    fn does_not_fit(&self, name: &str, result: DType) -> ! {
        panic!(
            "{name}: the result is {result}, which does not fit into {}; convert the tensor with .to_dtype(DType::{result:?}) \
             first. tensor: {}",
            self.dtype(),
            self.describe()
        )
    }

    /// Writes `source` to the elements `part` (a layout within the row-major form of this tensor).
    #[track_caller]
    fn overwrite(&mut self, name: &'static str, source: &Tensor, part: Layout) {
        let shape = *part.shape();
        if source.shape().broadcast(&shape) != Some(shape) {
            panic!("{name}: {} does not broadcast to {shape}. source: {}", source.shape(), source.describe());
        }
        let source = source.as_dtype(self.dtype());
        let view = source.broadcast_view(&shape);
        if !(is_grad_enabled() && (self.requires_grad() || source.requires_grad())) {
            self.make_unique();
            run_into(name, Op::Copy, &[&view], self, part);
            return;
        }
        let out = self.detach().copy();
        run_into(name, Op::Copy, &[&view], &out, part);
        *self = out.recorded(name, &[self, &source], &[], move |c| {
            grads![
                c.needs(0).then(|| c.grad().with_part_zeroed(part)),
                c.needs(1).then(|| c.grad().part(part))
            ]
        });
    }

    /// The elements at `part`, a layout within the row-major form of this tensor.
    #[track_caller]
    pub(crate) fn part(&self, part: Layout) -> Tensor {
        let out = self.detach().contiguous();
        let at = Layout::new(*part.shape(), part.strides(), part.offset() + out.layout().offset());
        let out = out.with_layout(at, "slice");
        out.recorded("slice", &[self], &[], move |c| grads![c.grad().placed(c.input_shape(0), part)])
    }

    /// Zeros of `shape` with this tensor at `part`, a layout within their row-major form: the adjoint of [`Tensor::part`].
    #[track_caller]
    pub(crate) fn placed(&self, shape: &Shape, part: Layout) -> Tensor {
        let out = Tensor::zeros(*shape, (self.dtype(), self.device()));
        run_into("slice_grad", Op::Copy, &[self], &out, part);
        out.recorded("slice_grad", &[self], &[], move |c| grads![c.grad().part(part)])
    }

    #[track_caller]
    fn with_part_zeroed(&self, part: Layout) -> Tensor {
        let out = self.detach().copy();
        run_into("slice_grad", Op::Fill(Scalar::Int(0)), &[], &out, part);
        out.recorded("slice_grad", &[self], &[], move |c| grads![c.grad().with_part_zeroed(part)])
    }
}

#[cfg(test)]
mod tests {
    use crate::{DType, Device, Tensor, no_grad, tensor};

    #[test]
    fn a_leaf_that_is_updated_under_no_grad_stays_one() {
        let mut w = tensor![1.0, 2.0].requires_grad_(true);
        let before = w.clone();
        for expected in [[0.8, 1.6], [0.64, 1.28]] {
            w.square().sum(..).backward();
            no_grad(|| w -= w.grad().unwrap() * 0.1);
            assert!(w.requires_grad() && w.is_leaf() && w.grad().is_some());
            assert!(w.allclose(&tensor![expected[0], expected[1]], 1e-6, 0.0, false).unwrap());
            w.zero_grad();
            assert!(w.grad().is_none());
        }
        // The value before has a gradient of its own: only the first step reached it.
        assert_eq!(before.to_vec::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(before.grad().unwrap().to_vec::<f32>().unwrap(), [2.0, 4.0]);
        for change in
            [Tensor::zero_, |x: &mut Tensor| x.slice_assign(0, 3), |x: &mut Tensor| x.copy_(&tensor![5.0])]
        {
            no_grad(|| change(&mut w));
            assert!(w.requires_grad() && w.is_leaf());
        }
    }

    #[test]
    fn shape_and_dtype_stay() {
        let device = Device::cpu();
        let mut half = Tensor::ones([2], (DType::F16, &device));
        half += tensor![0.5, 1.0];
        assert_eq!((half.dtype(), half.to_vec::<crate::f16>().unwrap()[1].to_f32()), (DType::F16, 2.0));
        let mut bytes = Tensor::new([1u8, 250], &device);
        bytes += tensor![300, 10]; // wraps around, as in PyTorch
        assert_eq!(bytes.to_vec::<u8>().unwrap(), [45, 4]);
        let mut x = Tensor::zeros([2, 2], &device);
        let row = x.i(0);
        x += 1.5;
        x.i(1).mul_(2); // of a view that nobody keeps
        x /= tensor![[3.0], [1.0]];
        assert_eq!(x.to_vec::<f32>().unwrap(), [0.5, 0.5, 1.5, 1.5]);
        assert_eq!(row.to_vec::<f32>().unwrap(), [0.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "add_: the result is f32, which does not fit into i64")]
    fn a_float_is_not_added_to_integers() {
        let mut x = tensor![1, 2];
        x += 0.5;
    }
}
