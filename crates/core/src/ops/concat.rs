//! Joining tensors: [`Tensor::cat`] along a dimension, [`Tensor::stack`] along a new one.

use crate::autograd::{Context, Gradients};
use crate::dispatch::run_into;
use crate::op::Op;
use crate::shape::{MAX_RANK, Shape};
use crate::tensor::Tensor;
use std::borrow::Borrow;

impl Tensor {
    /// The tensors one after the other along `dim`. Dtypes are promoted to a common one.
    ///
    /// As in PyTorch, 1-D tensors without elements are passed over, whatever the rank of the others.
    ///
    /// ```
    /// # use orkest_core::{Device, Tensor};
    /// let a = Tensor::new([[1.0f32, 2.0]], &Device::cpu());
    /// let b = Tensor::new([[3.0f32, 4.0]], &Device::cpu());
    /// assert_eq!(Tensor::cat(&[&a, &b], 0).to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    /// assert_eq!(Tensor::cat(&vec![a, b], 1).shape(), &[1, 4]);
    /// ```
    ///
    /// # Shapes
    /// - inputs: the same sizes except along `dim`
    /// - output: the sum of the sizes along `dim`
    ///
    /// # Panics
    /// If there are no tensors, the shapes do not fit together, `dim` is out of range, or devices differ.
    #[track_caller]
    pub fn cat<T: Borrow<Tensor>>(tensors: &[T], dim: isize) -> Tensor {
        let tensors: Vec<&Tensor> = tensors.iter().map(Borrow::borrow).collect();
        join("cat", &tensors, dim)
    }

    /// The tensors side by side along a new dimension at position `dim`. Dtypes are promoted to a common one.
    ///
    /// ```
    /// # use orkest_core::{Device, Tensor};
    /// let a = Tensor::new([1.0f32, 2.0], &Device::cpu());
    /// let b = Tensor::new([3.0f32, 4.0], &Device::cpu());
    /// assert_eq!(Tensor::stack(&[&a, &b], 1).to_vec::<f32>().unwrap(), [1.0, 3.0, 2.0, 4.0]);
    /// ```
    ///
    /// # Shapes
    /// - inputs: all the same
    /// - output: one dimension more, whose size is the number of tensors
    ///
    /// # Panics
    /// If there are no tensors, shapes or devices differ, or `dim` is out of range.
    #[track_caller]
    pub fn stack<T: Borrow<Tensor>>(tensors: &[T], dim: isize) -> Tensor {
        let tensors: Vec<&Tensor> = tensors.iter().map(Borrow::borrow).collect();
        assert!(!tensors.is_empty(), "stack: at least one tensor is needed");
        if tensors.iter().any(|t| t.shape() != tensors[0].shape()) {
            misfit("stack", "shapes differ", &tensors);
        }
        let rank = tensors[0].rank() as isize + 1;
        if dim < -rank || dim >= rank {
            misfit(
                "stack",
                &format!("dimension {dim} is out of range for a result of {rank} dimensions"),
                &tensors,
            );
        }
        let dim = dim.rem_euclid(rank);
        if rank as usize > MAX_RANK {
            misfit("stack", &format!("a tensor has at most {MAX_RANK} dimensions"), &tensors);
        }
        let rows: Vec<Tensor> = tensors.iter().map(|t| t.unsqueeze(dim)).collect();
        join("stack", &rows.iter().collect::<Vec<_>>(), dim)
    }
}

/// A tensor that `cat` passes over: 1-D and empty, the "nothing yet" that loops start from.
fn is_nothing(shape: &Shape) -> bool {
    *shape == [0]
}

#[track_caller]
fn join(name: &'static str, tensors: &[&Tensor], dim: isize) -> Tensor {
    assert!(!tensors.is_empty(), "{name}: at least one tensor is needed");
    if tensors.iter().any(|t| t.rank() == 0) {
        misfit(name, "a tensor without dimensions cannot be concatenated (stack can)", tensors);
    }
    let device = tensors[0].device();
    if let Some(other) = tensors.iter().find(|t| t.device() != device) {
        misfit(name, &format!("operands on different devices: {device} and {}", other.device()), tensors);
    }
    let dtype = tensors[1..].iter().fold(tensors[0].dtype(), |d, t| d.promote(t.dtype()));
    let Some(model) = tensors.iter().find(|t| !is_nothing(t.shape())) else {
        return Tensor::zeros([0], (dtype, device)).recorded(name, tensors, &[], move |c| pieces(c, 0));
    };
    let dim = model.dim_index(name, dim);
    let mut shape = model.shape().with(dim, 0);
    for t in tensors.iter().filter(|t| !is_nothing(t.shape())) {
        if t.rank() != shape.rank() {
            misfit(name, "numbers of dimensions differ", tensors);
        }
        if t.shape().with(dim, 0) != shape.with(dim, 0) {
            misfit(name, &format!("sizes differ in other dimensions than {dim}"), tensors);
        }
        shape[dim] += t.shape()[dim];
    }
    let out = Tensor::uninit(name, shape, dtype, device);
    let layout = *out.layout();
    let mut start = 0;
    for t in tensors.iter().filter(|t| !is_nothing(t.shape())) {
        let len = t.shape()[dim];
        run_into(name, Op::Copy, &[t], &out, layout.slice(dim, start, len, 1));
        start += len;
    }
    out.recorded(name, tensors, &[], move |c| pieces(c, dim))
}

/// Each input's part of the gradient.
fn pieces(c: &Context<'_>, dim: usize) -> Gradients {
    let mut start = 0;
    let count = c.node.edges().len();
    (0..count)
        .map(|i| {
            let shape = c.input_shape(i);
            if is_nothing(shape) {
                return Some(c.grad().flatten(0, -1).narrow(0, 0, 0));
            }
            let len = shape[dim];
            start += len;
            c.needs(i).then(|| c.grad().narrow(dim as isize, start - len, len))
        })
        .collect()
}

#[cold]
#[track_caller]
fn misfit(name: &str, problem: &str, tensors: &[&Tensor]) -> ! {
    let shapes: Vec<String> = tensors.iter().map(|t| t.shape().to_string()).collect();
    let operands: Vec<String> = tensors.iter().map(|t| t.describe()).collect();
    panic!("{name}: {problem}: shapes {}; operands: [{}]", shapes.join(", "), operands.join("; "));
}

#[cfg(test)]
mod tests {
    use crate::{DType, Device, Tensor};

    fn iota(shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor::arange(0.0, n as f64, 1.0, (DType::F64, &Device::reference())).reshape(shape)
    }

    fn panics(f: impl FnOnce() -> Tensor) -> String {
        let error =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).expect_err("should have panicked");
        error.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[test]
    fn pieces_of_any_layout_are_laid_side_by_side() {
        let (a, b) = (iota(&[2, 3]), iota(&[2, 2]).transpose(0, 1));
        let joined = Tensor::cat(&[&a, &b], -1);
        assert_eq!(joined.shape(), &[2, 5]);
        assert_eq!(joined.to_vec::<f64>().unwrap(), [0., 1., 2., 0., 2., 3., 4., 5., 1., 3.]);
        let rows = Tensor::cat(&[a.clone(), a.narrow(0, 0, 0), a.narrow(0, 1, 1)], 0);
        assert_eq!(rows.to_vec::<f64>().unwrap(), [0., 1., 2., 3., 4., 5., 3., 4., 5.]);
    }

    #[test]
    fn dtypes_are_promoted_also_by_what_is_passed_over() {
        let device = Device::reference();
        let ints = Tensor::new([[1i64, 2]], &device);
        let nothing = Tensor::new(Vec::<f32>::new(), &device);
        let joined = Tensor::cat(&[&nothing, &ints, &nothing], 1);
        assert_eq!((joined.dtype(), joined.shape().to_vec()), (DType::F32, vec![1, 2]));
        assert_eq!(joined.to_vec::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(Tensor::cat(&[&nothing, &nothing], 1).shape(), &[0]);
    }

    #[test]
    fn gradients_are_the_pieces() {
        let a = iota(&[2, 1]).requires_grad_(true);
        let b = iota(&[2, 2]).requires_grad_(true);
        let nothing = Tensor::zeros([0], (DType::F32, &Device::reference())).requires_grad_(true);
        let weight = iota(&[2, 3]);
        (Tensor::cat(&[&a, &nothing, &b], 1) * &weight).sum(..).backward();
        assert_eq!(a.grad().unwrap().to_vec::<f64>().unwrap(), [0., 3.]);
        assert_eq!(b.grad().unwrap().to_vec::<f64>().unwrap(), [1., 2., 4., 5.]);
        let none = nothing.grad().unwrap();
        assert_eq!((none.shape().to_vec(), none.dtype()), (vec![0], DType::F32));
    }

    #[test]
    fn stack_adds_a_dimension_anywhere() {
        let (a, b) = (iota(&[2, 3]), iota(&[2, 3]) + 10.0);
        assert_eq!(Tensor::stack(&[&a, &b], 0).shape(), &[2, 2, 3]);
        let last = Tensor::stack(&[&a, &b], -1);
        assert_eq!(last.shape(), &[2, 3, 2]);
        assert_eq!(last.to_vec::<f64>().unwrap()[..4], [0., 10., 1., 11.]);
        let scalars = Tensor::stack(
            &[Tensor::new(1.0f32, &Device::reference()), Tensor::new(2.0f32, &Device::reference())],
            0,
        );
        assert_eq!(scalars.to_vec::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(Tensor::stack(&[Tensor::zeros([0], &Device::reference())], 0).shape(), &[1, 0]);
    }

    #[test]
    fn misfits_are_told_with_all_shapes() {
        let message = panics(|| Tensor::cat(&[iota(&[2, 3]), iota(&[3, 3]), iota(&[2, 2])], 1));
        assert!(message.contains("[2, 3], [3, 3], [2, 2]"), "{message}");
        let message = panics(|| Tensor::stack(&[iota(&[2]), iota(&[3])], 0));
        assert!(message.starts_with("stack: shapes differ: shapes [2], [3]"), "{message}");
        assert!(panics(|| Tensor::cat(&[iota(&[]), iota(&[1])], 0)).contains("without dimensions"));
        assert!(panics(|| Tensor::stack(&[iota(&[2])], 2)).contains("out of range"));
    }
}
