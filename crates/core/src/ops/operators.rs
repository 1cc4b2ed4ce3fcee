//! `+ - * / %` and unary `-` for tensors, references and numbers, `+= -= *= /=`, which keep shape and dtype, and `& | ^ !` for bools and the bits of
//! integers.
//!
//! The right operand is anything that is an [`Operand`]: one generic implementation, so that the compiler knows the result of
//! `(x * 2.0)` whatever type the literal turns out to have. On the left only f64 and i64 are numbers, for the same reason: with
//! one float and one integer type, `(2.0 * x).exp()` has one meaning.

use super::elementwise::{Operand, binary_operands};
use crate::dtype::{DType, Scalar};
use crate::op::Binary;
use crate::tensor::Tensor;
use std::ops::{
    Add, AddAssign, BitAnd, BitOr, BitXor, Div, DivAssign, Mul, MulAssign, Neg, Not, Rem, Sub, SubAssign,
};

macro_rules! operator {
    ($($trait:ident, $name:ident, $binary:expr;)*) => {$(
        impl<'a, T: Into<Operand<'a>>> $trait<T> for Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $name(self, other: T) -> Tensor { binary_operands($binary, self.into(), other.into()) }
        }
        impl<'a, T: Into<Operand<'a>>> $trait<T> for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $name(self, other: T) -> Tensor { binary_operands($binary, self.into(), other.into()) }
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
            fn $name(self, tensor: $tensor) -> Tensor { binary_operands($binary, self.into(), tensor.into()) }
        }
    };
}

operator! {
    Add, add, Binary::Add;
    Sub, sub, Binary::Sub;
    Mul, mul, Binary::Mul;
    Div, div, Binary::Div;
    Rem, rem, Binary::Remainder;
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

macro_rules! bit_operator {
    ($($trait:ident, $name:ident, $logical:ident, $bitwise:ident;)*) => {$(
        impl<'a, T: Into<Operand<'a>>> $trait<T> for Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $name(self, other: T) -> Tensor { $trait::$name(&self, other) }
        }
        impl<'a, T: Into<Operand<'a>>> $trait<T> for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $name(self, other: T) -> Tensor {
                let other = other.into();
                match operand_is_bool(&other) && self.dtype() == DType::Bool {
                    true => self.$logical(other),
                    false => self.$bitwise(other),
                }
            }
        }
    )*};
}

bit_operator! {
    BitAnd, bitand, logical_and, bitwise_and;
    BitOr, bitor, logical_or, bitwise_or;
    BitXor, bitxor, logical_xor, bitwise_xor;
}

fn operand_is_bool(operand: &Operand<'_>) -> bool {
    match operand.tensor() {
        Ok(tensor) => tensor.dtype() == DType::Bool,
        Err(scalar) => matches!(scalar, Scalar::Bool(_)),
    }
}

impl Not for Tensor {
    type Output = Tensor;
    #[track_caller]
    fn not(self) -> Tensor {
        !&self
    }
}

impl Not for &Tensor {
    type Output = Tensor;
    #[track_caller]
    fn not(self) -> Tensor {
        self.bitwise_not()
    }
}

#[cfg(test)]
mod tests {
    use crate::tensor;

    #[test]
    fn masks_are_joined_by_operators() {
        let (x, y) = (tensor![1.0, 2.0, 3.0, 4.0], tensor![true, false, true, false]);
        let bools = |t: crate::Tensor| t.to_vec::<bool>().unwrap();
        assert_eq!(bools(x.gt(1) & x.lt(4)), [false, true, true, false]);
        assert_eq!(bools(x.eq(1) | &y), [true, false, true, false]);
        assert_eq!(bools(&y ^ true), [false, true, false, true]);
        assert_eq!(bools(!&y), [false, true, false, true]);
    }
}
