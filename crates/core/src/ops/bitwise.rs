//! Integers and bools as rows of bits. Computed on the host, one number after the other: made for flags and masks, not for speed.

use super::arithmetic::promote_pair;
use super::creation::ok;
use super::elementwise::{Operand, broadcast_shape};
use crate::device::Device;
use crate::dtype::{DType, Scalar};
use crate::tensor::Tensor;

impl Tensor {
    /// Bit by bit "and"; of bools [`Tensor::logical_and`]. `x & y` is the same.
    ///
    /// # Panics
    /// If an operand is a float, the shapes do not broadcast or the devices differ.
    #[track_caller]
    pub fn bitwise_and<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor {
        self.bitwise("bitwise_and", &other.into(), |a, b, _| a & b)
    }

    /// Bit by bit "or"; of bools [`Tensor::logical_or`]. `x | y` is the same.
    ///
    /// # Panics
    /// As [`Tensor::bitwise_and`].
    #[track_caller]
    pub fn bitwise_or<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor {
        self.bitwise("bitwise_or", &other.into(), |a, b, _| a | b)
    }

    /// Bit by bit "either, not both"; of bools [`Tensor::logical_xor`]. `x ^ y` is the same.
    ///
    /// # Panics
    /// As [`Tensor::bitwise_and`].
    #[track_caller]
    pub fn bitwise_xor<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor {
        self.bitwise("bitwise_xor", &other.into(), |a, b, _| a ^ b)
    }

    /// Every bit turned; of bools [`Tensor::logical_not`]. `!x` is the same.
    ///
    /// # Panics
    /// If the tensor holds floats.
    #[track_caller]
    pub fn bitwise_not(&self) -> Tensor {
        match self.dtype() {
            DType::Bool => self.logical_not(),
            _ => self.bitwise("bitwise_not", &self.into(), |a, _, _| !a),
        }
    }

    /// Bits moved by `other` places to the left, zeros from the right: `x * 2ⁿ`. Where there are not as many places, or fewer than
    /// none, nothing is left.
    ///
    /// # Panics
    /// As [`Tensor::bitwise_and`]; also if both operands are bools.
    #[track_caller]
    pub fn bitwise_left_shift<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor {
        self.bitwise(
            "bitwise_left_shift",
            &other.into(),
            |a, n, bits| if (0..bits).contains(&n) { a << n } else { 0 },
        )
    }

    /// Bits moved by `other` places to the right; negative numbers stay negative: `x / 2ⁿ` rounded down. Where there are not as many
    /// places, or fewer than none, 0 or -1 is left.
    ///
    /// # Panics
    /// As [`Tensor::bitwise_left_shift`].
    #[track_caller]
    pub fn bitwise_right_shift<'a>(&self, other: impl Into<Operand<'a>>) -> Tensor {
        let last = |n: i64, bits: i64| if (0..bits).contains(&n) { n } else { 63 };
        self.bitwise("bitwise_right_shift", &other.into(), |a, n, bits| a >> last(n, bits))
    }

    /// `function` of two numbers and how many bits they have.
    #[track_caller]
    fn bitwise(
        &self,
        name: &'static str,
        other: &Operand<'_>,
        function: impl Fn(i64, i64, i64) -> i64,
    ) -> Tensor {
        let b = match other.tensor() {
            Ok(b) => b.clone(),
            // As PyTorch: what does not fit wraps around, so that -1 has all bits of any dtype.
            Err(Scalar::Int(n)) => {
                let number = Tensor::full((), n, (DType::I64, self.device()));
                number.to_dtype(Scalar::Int(n).promote(self.dtype()))
            }
            Err(s) => Tensor::full((), s, (s.promote(self.dtype()), self.device())),
        };
        if self.dtype().is_float() || b.dtype().is_float() {
            panic!("{name}: floats have no bits to work on; {} and {}", self.describe(), b.describe());
        }
        let (a, b) = promote_pair(name, self, &b);
        if a.dtype() == DType::Bool && name.ends_with("shift") {
            panic!(
                "{name}: bools have no places; convert one with .to_dtype(DType::I64). {}",
                self.describe()
            );
        }
        if a.device() != b.device() {
            panic!(
                "{name}: operands on different devices: {} on {}, {} on {}",
                a.describe(),
                a.device(),
                b.describe(),
                b.device()
            );
        }
        let shape = broadcast_shape(name, &a, &b);
        let read = |t: &Tensor| {
            ok(name, t.broadcast_view(&shape).to(&Device::cpu()).to_dtype(DType::I64).to_vec::<i64>())
        };
        let bits = 8 * a.dtype().size() as i64;
        let values: Vec<i64> =
            read(&a).into_iter().zip(read(&b)).map(|(a, b)| function(a, b, bits)).collect();
        let host = Tensor::from_slice(&values, shape, &Device::cpu());
        host.to_dtype(a.dtype()).to(a.device())
    }
}

#[cfg(test)]
mod tests {
    use crate::{DType, Device, Tensor, tensor};

    /// Expected numbers are those of torch.bitwise_* (2.15).
    #[test]
    fn bits_are_pytorchs() {
        let (x, y) = (tensor![12, -7, 255, 0], tensor![10, 3, -1, 5]);
        let i64s = |t: Tensor| t.to_vec::<i64>().unwrap();
        assert_eq!(i64s(&x & &y), [8, 1, 255, 0]);
        assert_eq!(i64s(&x | &y), [14, -5, -1, 5]);
        assert_eq!(i64s(&x ^ &y), [6, -6, -256, 5]);
        assert_eq!(i64s(!&x), [-13, 6, -256, -1]);
        assert_eq!(i64s(x.bitwise_left_shift(2)), [48, -28, 1020, 0]);
        assert_eq!(i64s(x.bitwise_right_shift(&tensor![1, 1, 64, -1])), [6, -4, 0, 0]);
        assert_eq!(i64s(tensor![1, 1, -1].bitwise_left_shift(&tensor![63, 64, -1])), [i64::MIN, 0, 0]);
        let bytes = Tensor::new([200u8, 7], &Device::cpu());
        assert_eq!((!&bytes).to_vec::<u8>().unwrap(), [55, 248]);
        assert_eq!((&bytes & -2).to_vec::<u8>().unwrap(), [200, 6]);
        assert_eq!((&bytes & 15).to_vec::<u8>().unwrap(), [8, 7]);
        assert_eq!(bytes.bitwise_left_shift(1).to_vec::<u8>().unwrap(), [144, 14]);
        // A number that is no bool makes integers of bools: True & 2 is 0.
        let mixed = tensor![true, false] & 2;
        assert_eq!((mixed.dtype(), i64s(mixed)), (DType::I64, vec![0, 0]));
        assert_eq!(i64s(tensor![true, false] & tensor![3, 3]), [1, 0]);
        assert_eq!((&x & &tensor![[1], [2]]).shape(), &[2, 4]);
    }

    #[test]
    #[should_panic(expected = "bitwise_and: floats have no bits to work on")]
    fn floats_are_refused() {
        let _ = tensor![1.0] & tensor![1];
    }
}
