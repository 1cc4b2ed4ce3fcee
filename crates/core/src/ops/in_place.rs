//! Changing a tensor: in place where nobody else sees its memory, else on a copy of its own.
//!
//! A tensor is a value (see `tensor.rs`), so these methods take `&mut self` and are differentiable like any other operation: the
//! changed tensor gets a new history.

use super::index::IndexList;
use crate::autograd::{History, is_grad_enabled};
use crate::dispatch::run_into;
use crate::dtype::Scalar;
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
    #[track_caller]
    pub fn fill_(&mut self, value: impl Into<Scalar>) {
        self.make_unique();
        run_into("fill_", Op::Fill(value.into()), &[], self, *self.layout());
    }

    /// Sets every element to zero.
    #[track_caller]
    pub fn zero_(&mut self) {
        self.fill_(0);
    }

    /// Adds `other`, broadcast and cast to this shape and dtype.
    #[track_caller]
    pub fn add_(&mut self, other: &Tensor) {
        self.update("add_", other, Binary::Add);
    }

    /// Subtracts `other`, broadcast and cast to this shape and dtype.
    #[track_caller]
    pub fn sub_(&mut self, other: &Tensor) {
        self.update("sub_", other, Binary::Sub);
    }

    /// Multiplies with `other`, broadcast and cast to this shape and dtype.
    #[track_caller]
    pub fn mul_(&mut self, other: &Tensor) {
        self.update("mul_", other, Binary::Mul);
    }

    /// Overwrites the part of this tensor that `index` names with `source`, broadcast to it: `x[1, 2..4] = source`.
    ///
    /// ```
    /// # use orkest_core::{Device, Tensor, tensor};
    /// let mut x = Tensor::zeros([2, 3], &Device::cpu());
    /// x.slice_assign((0, 1..), &tensor![7.0, 8.0]);
    /// assert_eq!(x.to_vec::<f32>().unwrap(), [0.0, 7.0, 8.0, 0.0, 0.0, 0.0]);
    /// ```
    ///
    /// # Panics
    /// If the index does not fit this tensor or `source` not the part, or they live on different devices.
    #[track_caller]
    pub fn slice_assign(&mut self, index: impl IndexList, source: &Tensor) {
        let dense = Layout::contiguous(*self.shape());
        let part = index.apply("slice_assign", &dense);
        self.overwrite("slice_assign", source, part);
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
    fn update(&mut self, name: &'static str, other: &Tensor, op: Binary) {
        let shape = *self.shape();
        let fits = other.shape().broadcast(&shape) == Some(shape);
        if !fits {
            panic!(
                "{name}: {} does not broadcast to {}. operand: {}",
                other.shape(),
                shape,
                other.describe()
            );
        }
        if is_grad_enabled() && (self.requires_grad() || other.requires_grad()) {
            let other = other.to_dtype(self.dtype());
            *self = match op {
                Binary::Add => &*self + other,
                Binary::Sub => &*self - other,
                _ => &*self * other,
            };
            return;
        }
        let other = other.as_dtype(self.dtype());
        let other = other.broadcast_view(&shape);
        self.make_unique();
        // The same view is input and output.
        run_into(name, Op::Binary(op), &[self, &other], self, *self.layout());
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
