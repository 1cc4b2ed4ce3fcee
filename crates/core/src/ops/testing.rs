//! What the tests of this folder share.

use crate::{BackwardOptions, Device, Shape, Tensor, autograd};

/// The leaf `sin(1.7 i + phase)`, f64: inputs that are easy to write down again in PyTorch.
pub fn wave(shape: impl Into<Shape>, phase: f64) -> Tensor {
    let shape = shape.into();
    let values: Vec<f64> = (0..shape.numel()).map(|i| (1.7 * i as f64 + phase).sin()).collect();
    Tensor::from_slice(&values, shape, &Device::reference()).requires_grad_(true)
}

/// Literals have six decimals.
#[track_caller]
pub fn assert_close(actual: &Tensor, expected: &[f64]) {
    let values = actual.to_dtype(crate::DType::F64).to_vec::<f64>().unwrap();
    assert_eq!(values.len(), expected.len(), "{}", actual.describe());
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
    assert!(values.iter().zip(expected).all(|(&a, &b)| close(a, b)), "{values:?} instead of {expected:?}");
}

/// Compares a result, and the gradients of its inputs given `wave(.., 0.5)` for its own.
#[track_caller]
pub fn assert_with_gradients(y: &Tensor, inputs: &[&Tensor], expected: &[f64], gradients: &[&[f64]]) {
    assert_close(y, expected);
    let upstream = wave(*y.shape(), 0.5).detach();
    let actual = autograd::grad_from(&[y], &[Some(&upstream)], inputs, BackwardOptions::default());
    for (i, (a, e)) in actual.iter().zip(gradients).enumerate() {
        let a = a.as_ref().unwrap_or_else(|| panic!("input {i} has no gradient"));
        assert_eq!(a.shape(), inputs[i].shape());
        assert_close(a, e);
    }
}
