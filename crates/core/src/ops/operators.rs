//! `+ - * / %` and unary `-` for tensors, references and numbers, `+= -= *= /=`, which keep shape and dtype, and `& | ^ !` for bools.
//!
//! The right operand is anything that is an [`Operand`]: one generic implementation, so that the compiler knows the result of
//! `(x * 2.0)` whatever type the literal turns out to have. On the left only f64 and i64 are numbers, for the same reason: with
//! one float and one integer type, `(2.0 * x).exp()` has one meaning.

use super::elementwise::{Operand, binary_scalar};
use crate::dtype::DType;
use crate::op::Binary;
use crate::tensor::Tensor;
use std::ops::{
    Add, AddAssign, BitAnd, BitOr, BitXor, Div, DivAssign, Mul, MulAssign, Neg, Not, Rem, Sub, SubAssign,
};

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

macro_rules! bool_operator {
    ($($trait:ident, $name:ident, $method:ident, $sign:literal;)*) => {$(
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
                require_bool($sign, self);
                if let Ok(other) = other.tensor() {
                    require_bool($sign, other);
                }
                self.$method(other)
            }
        }
    )*};
}

bool_operator! {
    BitAnd, bitand, logical_and, "&";
    BitOr, bitor, logical_or, "|";
    BitXor, bitxor, logical_xor, "^";
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
        require_bool("!", self);
        self.logical_not()
    }
}

/// PyTorch's operators of integers work on their bits, which is another thing than their truth.
#[track_caller]
fn require_bool(sign: &str, t: &Tensor) {
    if t.dtype() != DType::Bool {
        panic!("{sign}: bools are needed, as comparisons give them; see .ne(0). tensor: {}", t.describe());
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

    #[test]
    #[should_panic(expected = "&: bools are needed, as comparisons give them; see .ne(0). tensor: i64 [2]")]
    fn integers_have_no_truth() {
        let _ = tensor![true, false] & tensor![1, 2];
    }
}
