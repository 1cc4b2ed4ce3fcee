//! `+ - * / %` and unary `-` for tensors, references and numbers, and `+= -= *= /=`, which keep shape and dtype.
//!
//! The right operand is anything that is an [`Operand`]: one generic implementation, so that the compiler knows the result of
//! `(x * 2.0)` whatever type the literal turns out to have. On the left only f64 and i64 are numbers, for the same reason: with
//! one float and one integer type, `(2.0 * x).exp()` has one meaning.

use super::elementwise::{Operand, binary_scalar};
use crate::op::Binary;
use crate::tensor::Tensor;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Rem, Sub, SubAssign};

macro_rules! operator {
    ($($trait:ident, $name:ident, $method:ident, $binary:expr;)*) => {$(
        impl<'a, T: Into<Operand<'a>>> $trait<T> for Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $name(self, other: T) -> Tensor { Tensor::$method(&self, other) }
        }
        impl<'a, T: Into<Operand<'a>>> $trait<T> for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $name(self, other: T) -> Tensor { Tensor::$method(self, other) }
        }
        operator!(@left $trait, $name, $binary, f64, Tensor);
        operator!(@left $trait, $name, $binary, f64, &Tensor);
        operator!(@left $trait, $name, $binary, i64, Tensor);
        operator!(@left $trait, $name, $binary, i64, &Tensor);
    )*};
    (@left $trait:ident, $name:ident, $binary:expr, $scalar:ty, $tensor:ty) => {
        impl $trait<$tensor> for $scalar {
            type Output = Tensor;
            #[track_caller]
            fn $name(self, tensor: $tensor) -> Tensor { binary_scalar($binary, &tensor, self.into(), true) }
        }
    };
}

operator! {
    Add, add, add, Binary::Add;
    Sub, sub, sub, Binary::Sub;
    Mul, mul, mul, Binary::Mul;
    Div, div, div, Binary::Div;
    Rem, rem, remainder, Binary::Remainder;
}

macro_rules! assign_operator {
    ($($trait:ident, $name:ident, $method:ident;)*) => {$(
        impl<'a, T: Into<Operand<'a>>> $trait<T> for Tensor {
            #[track_caller]
            fn $name(&mut self, other: T) { Tensor::$method(self, other); }
        }
    )*};
}

assign_operator! {
    AddAssign, add_assign, add_;
    SubAssign, sub_assign, sub_;
    MulAssign, mul_assign, mul_;
    DivAssign, div_assign, div_;
}

impl Neg for Tensor {
    type Output = Tensor;
    #[track_caller]
    fn neg(self) -> Tensor {
        Tensor::neg(&self)
    }
}

impl Neg for &Tensor {
    type Output = Tensor;
    #[track_caller]
    fn neg(self) -> Tensor {
        Tensor::neg(self)
    }
}
