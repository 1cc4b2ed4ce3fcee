//! Conversions to and from the arrays of the crate `ndarray`.
#![cfg(feature = "ndarray")]

use super::creation::TensorOptions;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::shape::{MAX_RANK, Shape};
use crate::tensor::Tensor;
use ::ndarray::{Array, ArrayBase, ArrayD, Data, Dimension, IxDyn};

impl Tensor {
    /// A copy of an array, of any layout, with the array's element type unless `options` names a dtype.
    ///
    /// ```
    /// # use orkest_core::{Device, Tensor};
    /// let a = ndarray::arr2(&[[1.0f32, 2.0], [3.0, 4.0]]);
    /// let t = Tensor::from_ndarray(&a.t(), &Device::cpu());
    /// assert_eq!(t.to_vec::<f32>().unwrap(), [1.0, 3.0, 2.0, 4.0]);
    /// ```
    ///
    /// # Panics
    /// If the array has more than [`MAX_RANK`](crate::MAX_RANK) dimensions, or the device cannot hold the tensor.
    #[track_caller]
    pub fn from_ndarray<T, S, D>(array: &ArrayBase<S, D>, options: impl Into<TensorOptions>) -> Tensor
    where
        T: Element,
        S: Data<Elem = T>,
        D: Dimension,
    {
        assert!(
            array.ndim() <= MAX_RANK,
            "from_ndarray: a tensor has at most {MAX_RANK} dimensions, the array {}: {:?}",
            array.ndim(),
            array.shape()
        );
        let shape = Shape::new(array.shape());
        match array.as_slice() {
            Some(values) => Tensor::from_slice(values, shape, options),
            None => Tensor::from_slice(&array.iter().copied().collect::<Vec<T>>(), shape, options),
        }
    }

    /// A copy of the elements as an array.
    ///
    /// ```
    /// # use orkest_core::{Device, Tensor};
    /// let t = Tensor::new([[1.0f32, 2.0], [3.0, 4.0]], &Device::cpu());
    /// assert_eq!(t.to_ndarray::<f32>().unwrap(), ndarray::arr2(&[[1.0, 2.0], [3.0, 4.0]]).into_dyn());
    /// ```
    ///
    /// # Errors
    /// If `T` is not the tensor's type, or the device reports what went wrong in an earlier operation.
    #[track_caller]
    pub fn to_ndarray<T: Element>(&self) -> Result<ArrayD<T>> {
        let values = self.to_vec::<T>()?;
        ArrayD::from_shape_vec(IxDyn(self.shape()), values)
            .map_err(|e| Error::Data(format!("to_ndarray: {e}")))
    }
}

/// A copy on the CPU.
impl<T: Element, D: Dimension> From<&Array<T, D>> for Tensor {
    #[track_caller]
    fn from(array: &Array<T, D>) -> Tensor {
        Tensor::from_ndarray(array, ())
    }
}

/// A copy of the elements; the dtype must be that of `T`.
impl<T: Element> TryFrom<&Tensor> for ArrayD<T> {
    type Error = Error;

    #[track_caller]
    fn try_from(tensor: &Tensor) -> Result<ArrayD<T>> {
        tensor.to_ndarray()
    }
}

#[cfg(test)]
mod tests {
    use crate::{DType, Device, Tensor, bf16, f16};
    use ::ndarray::{Array, Array3, ArrayD, arr0, arr1, arr2, s};

    #[test]
    fn any_layout_keeps_its_order() {
        let a = Array3::from_shape_fn((2, 3, 4), |(i, j, k)| (100 * i + 10 * j + k) as i64);
        let view = a.slice(s![.., ..;-1, 1..;2]);
        let t = Tensor::from_ndarray(&view, &Device::reference());
        assert_eq!(t.shape(), &[2, 3, 2]);
        assert_eq!(t.to_vec::<i64>().unwrap(), [21, 23, 11, 13, 1, 3, 121, 123, 111, 113, 101, 103]);
        let wide = arr1(&[1.5f64, 2.5]);
        let t = Tensor::from_ndarray(&wide.broadcast((2, 2)).unwrap(), (DType::F32, &Device::reference()));
        assert_eq!(t.to_vec::<f32>().unwrap(), [1.5, 2.5, 1.5, 2.5]);
    }

    #[test]
    fn every_element_type_goes_both_ways() {
        fn check<T: crate::Element>(values: [T; 2]) {
            let a = arr2(&[values]).into_dyn();
            let t = Tensor::from_ndarray(&a, &Device::reference());
            assert_eq!(t.dtype(), T::DTYPE);
            assert_eq!(t.to_ndarray::<T>().unwrap(), a);
        }
        check([true, false]);
        check([1u8, 255]);
        check([1i32, i32::MIN]);
        check([1i64, i64::MAX]);
        check([f16::ONE, f16::MAX]);
        check([bf16::ONE, bf16::MIN]);
        check([1.5f32, f32::INFINITY]);
        check([1.5f64, f64::MIN_POSITIVE]);
    }

    #[test]
    fn views_scalars_and_empty_tensors_become_arrays() {
        let t = Tensor::new([[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &Device::reference());
        let a = t.transpose(0, 1).to_ndarray::<f32>().unwrap();
        assert_eq!(a, arr2(&[[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]).into_dyn());
        assert_eq!(Tensor::new(7i64, &Device::reference()).to_ndarray::<i64>().unwrap(), arr0(7).into_dyn());
        let empty = Tensor::zeros([0, 3], &Device::reference()).to_ndarray::<f32>().unwrap();
        assert_eq!(empty.shape(), [0, 3]);
        assert_eq!(Tensor::from_ndarray(&empty, &Device::reference()).shape(), &[0, 3]);
    }

    #[test]
    fn conversion_traits_check_the_type() {
        let t = Tensor::from(&Array::from_vec(vec![1.0f32, 2.0]));
        assert_eq!(t.to_vec::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(ArrayD::<f32>::try_from(&t).unwrap(), arr1(&[1.0, 2.0]).into_dyn());
        assert!(ArrayD::<f64>::try_from(&t).unwrap_err().to_string().contains("holds f32, not f64"));
    }
}
