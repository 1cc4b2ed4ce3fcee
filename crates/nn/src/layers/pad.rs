//! Padding layers.

use crate::repr::python_float;
use crate::{Field, Layer, Module, Rebuild, Visitor};
use orkest_core::{PadMode, Tensor};

/// Amounts of padding: one number for all sides, or left, right (, top, bottom), as PyTorch orders them. Negative ones cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sides<const N: usize>(pub [isize; N]);

impl<const N: usize> From<isize> for Sides<N> {
    fn from(size: isize) -> Sides<N> {
        Sides([size; N])
    }
}

impl<const N: usize> From<[isize; N]> for Sides<N> {
    fn from(sizes: [isize; N]) -> Sides<N> {
        Sides(sizes)
    }
}

impl<const N: usize> Field for Sides<N> {
    fn visit_field<'a>(&'a self, _name: &str, _visitor: &mut Visitor<'_, 'a>) {}
    fn rebuild_field(&self, _rebuild: &mut Rebuild) -> Sides<N> {
        *self
    }
}

impl<const N: usize> Sides<N> {
    /// `(left, right, ..)`
    fn text(&self) -> String {
        format!("({})", self.0.map(|side| side.to_string()).join(", "))
    }
}

/// Checks the rank: the planes or sequences, their channels, and perhaps a batch.
#[track_caller]
fn pad<const N: usize>(layer: &str, x: &Tensor, sides: Sides<N>, mode: PadMode) -> Tensor {
    if x.rank() < N / 2 {
        panic!("{layer}: an input of at least {} dimensions is needed. input: {}", N / 2, x.describe());
    }
    let pairs: Vec<(isize, isize)> = sides.0.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    x.pad_mode(&pairs, mode)
}

macro_rules! pad_layers {
    ($($(#[$doc:meta])* $name:ident, $sides:literal, $mode:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Module, Clone, Copy, Debug)]
        #[module(extra_repr)]
        pub struct $name {
            padding: Sides<$sides>,
        }

        impl $name {
            /// This much on every side, or left, right, and in planes top and bottom.
            pub fn new(padding: impl Into<Sides<$sides>>) -> $name {
                $name { padding: padding.into() }
            }

            fn extra_repr(&self) -> String {
                self.padding.text()
            }
        }

        impl Layer for $name {
            #[track_caller]
            fn forward(&self, input: &Tensor) -> Tensor {
                pad(stringify!($name), input, self.padding, $mode)
            }
        }
    )*};
}

pad_layers! {
    /// Zeros around planes: PyTorch's [`ZeroPad2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.ZeroPad2d.html), with
    /// [`Tensor::pad`]. Negative amounts cut.
    ///
    /// # Shapes
    /// - input: `[.., height, width]`
    /// - output: `[.., height + top + bottom, width + left + right]`
    ZeroPad2d, 4, PadMode::Constant(0.0);

    /// Zeros around sequences: PyTorch's [`ZeroPad1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.ZeroPad1d.html), with
    /// [`Tensor::pad`]. Negative amounts cut.
    ///
    /// # Shapes
    /// - input: `[.., length]`, output: `[.., length + left + right]`
    ZeroPad1d, 2, PadMode::Constant(0.0);

    /// Planes with their mirror images around them: PyTorch's
    /// [`ReflectionPad2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.ReflectionPad2d.html), with
    /// [`Tensor::pad_mode`].
    ///
    /// # Shapes
    /// As [`ZeroPad2d`]; each amount is less than the size.
    ReflectionPad2d, 4, PadMode::Reflect;

    /// Sequences with their mirror images at both ends: PyTorch's
    /// [`ReflectionPad1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.ReflectionPad1d.html), with
    /// [`Tensor::pad_mode`].
    ///
    /// # Shapes
    /// As [`ZeroPad1d`]; each amount is less than the length.
    ReflectionPad1d, 2, PadMode::Reflect;

    /// Planes whose edges go on: PyTorch's
    /// [`ReplicationPad2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.ReplicationPad2d.html), with
    /// [`Tensor::pad_mode`].
    ///
    /// # Shapes
    /// As [`ZeroPad2d`].
    ReplicationPad2d, 4, PadMode::Replicate;

    /// Sequences whose ends go on: PyTorch's
    /// [`ReplicationPad1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.ReplicationPad1d.html), with
    /// [`Tensor::pad_mode`].
    ///
    /// # Shapes
    /// As [`ZeroPad1d`].
    ReplicationPad1d, 2, PadMode::Replicate;

    /// Planes that begin again at their edges: PyTorch's
    /// [`CircularPad2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.CircularPad2d.html), with [`Tensor::pad_mode`].
    ///
    /// # Shapes
    /// As [`ZeroPad2d`]; each amount is at most the size.
    CircularPad2d, 4, PadMode::Circular;

    /// Sequences that begin again at their ends: PyTorch's
    /// [`CircularPad1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.CircularPad1d.html), with [`Tensor::pad_mode`].
    ///
    /// # Shapes
    /// As [`ZeroPad1d`]; each amount is at most the length.
    CircularPad1d, 2, PadMode::Circular;
}

macro_rules! constant_pads {
    ($($(#[$doc:meta])* $name:ident, $sides:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Module, Clone, Copy, Debug)]
        #[module(extra_repr)]
        pub struct $name {
            padding: Sides<$sides>,
            value: f64,
        }

        impl $name {
            /// This much of `value` on every side, or left, right, and in planes top and bottom.
            pub fn new(padding: impl Into<Sides<$sides>>, value: f64) -> $name {
                $name { padding: padding.into(), value }
            }

            fn extra_repr(&self) -> String {
                format!("padding={}, value={}", self.padding.text(), python_float(self.value))
            }
        }

        impl Layer for $name {
            #[track_caller]
            fn forward(&self, input: &Tensor) -> Tensor {
                pad(stringify!($name), input, self.padding, PadMode::Constant(self.value))
            }
        }
    )*};
}

constant_pads! {
    /// One value around planes: PyTorch's
    /// [`ConstantPad2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.ConstantPad2d.html), with [`Tensor::pad`].
    ///
    /// # Shapes
    /// As [`ZeroPad2d`].
    ConstantPad2d, 4;

    /// One value around sequences: PyTorch's
    /// [`ConstantPad1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.ConstantPad1d.html), with [`Tensor::pad`].
    ///
    /// # Shapes
    /// As [`ZeroPad1d`].
    ConstantPad1d, 2;
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::Device;

    #[test]
    fn left_and_right_come_before_top_and_bottom() {
        let x = Tensor::ones([1, 1, 2, 3], &Device::cpu());
        assert_eq!(ZeroPad2d::new([1, 0, 2, -1]).forward(&x).shape(), &[1, 1, 3, 4]);
        assert_eq!(ReplicationPad2d::new(1).forward(&x).shape(), &[1, 1, 4, 5]);
    }

    #[test]
    fn texts_are_pytorchs() {
        let texts = [
            ZeroPad2d::new([1, 2, 3, 4]).to_string(),
            ReplicationPad1d::new(2).to_string(),
            CircularPad2d::new(1).to_string(),
            ConstantPad2d::new(1, 3.5).to_string(),
        ];
        let expected = [
            "ZeroPad2d((1, 2, 3, 4))",
            "ReplicationPad1d((2, 2))",
            "CircularPad2d((1, 1, 1, 1))",
            "ConstantPad2d(padding=(1, 1, 1, 1), value=3.5)",
        ];
        assert_eq!(texts, expected);
    }
}
