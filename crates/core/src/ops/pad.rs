//! Padding with what is there: mirrored, repeated, or from the other end. Constant padding is a view's business, in `view.rs`.

use crate::tensor::Tensor;

/// What padding consists of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum PadMode {
    /// One value.
    Constant(f64),
    /// The elements next to the edge in reverse, without the one at the edge: `c b [a b c] b a`.
    Reflect,
    /// The element at the edge: `a a [a b c] c c`.
    Replicate,
    /// The elements of the other end: `b c [a b c] a b`.
    Circular,
}

impl From<&str> for PadMode {
    /// # Panics
    /// If the text is none of `"zeros"`, `"constant"`, `"reflect"`, `"replicate"` and `"circular"`.
    #[track_caller]
    fn from(name: &str) -> PadMode {
        match name {
            "zeros" | "constant" => PadMode::Constant(0.0),
            "reflect" => PadMode::Reflect,
            "replicate" => PadMode::Replicate,
            "circular" => PadMode::Circular,
            _ => panic!(
                "padding mode {name:?} is not known; it can be \"zeros\", \"reflect\", \"replicate\" or \"circular\""
            ),
        }
    }
}

impl Tensor {
    /// Wider by `(before, after)` in the last dimensions, the pair of the last dimension first, as PyTorch's
    /// [`pad`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.pad.html) with a mode: `PadMode::Reflect`, or its
    /// name `"reflect"`. Negative amounts cut.
    ///
    /// ```
    /// # use orkest_core::{PadMode, tensor};
    /// let x = tensor![1, 2, 3];
    /// assert_eq!(x.pad_mode(&[(2, 1)], "reflect").to_vec::<i64>().unwrap(), [3, 2, 1, 2, 3, 2]);
    /// assert_eq!(x.pad_mode(&[(2, 1)], PadMode::Circular).to_vec::<i64>().unwrap(), [2, 3, 1, 2, 3, 1]);
    /// ```
    ///
    /// # Panics
    /// If there are more pairs than dimensions, a cut is larger than the size, or there is too little to pad with: reflection needs
    /// one element more than it adds, the circular mode as many.
    #[track_caller]
    pub fn pad_mode(&self, pairs: &[(isize, isize)], mode: impl Into<PadMode>) -> Tensor {
        let mode = mode.into();
        if let PadMode::Constant(value) = mode {
            return self.pad(pairs, value);
        }
        // What is cut does not serve as padding.
        let cuts: Vec<(isize, isize)> = pairs.iter().map(|&(a, b)| (a.min(0), b.min(0))).collect();
        let mut out = self.pad(&cuts, 0);
        for (i, &(before, after)) in pairs.iter().enumerate() {
            let dim = self.rank() - 1 - i;
            out = widened(&out, dim, before.max(0) as usize, after.max(0) as usize, mode);
        }
        out
    }
}

#[track_caller]
fn widened(x: &Tensor, dim: usize, before: usize, after: usize, mode: PadMode) -> Tensor {
    if before == 0 && after == 0 {
        return x.clone();
    }
    let (d, size) = (dim as isize, x.shape()[dim]);
    let most = match mode {
        PadMode::Reflect => size.saturating_sub(1),
        PadMode::Replicate if size > 0 => usize::MAX,
        _ => size,
    };
    if before > most || after > most {
        panic!(
            "pad: ({before}, {after}) is too much for size {size} in mode {mode:?}. tensor: {}",
            x.describe()
        );
    }
    let copies = |at: usize, n: usize| {
        let edge = x.narrow(d, at, 1);
        edge.broadcast_to(&edge.shape().with(dim, n))
    };
    let (left, right) = match mode {
        PadMode::Reflect => {
            (x.narrow(d, 1, before).flip(&[d]), x.narrow(d, size.saturating_sub(1 + after), after).flip(&[d]))
        }
        PadMode::Replicate => (copies(0, before), copies(size - 1, after)),
        PadMode::Circular | PadMode::Constant(_) => {
            (x.narrow(d, size - before, before), x.narrow(d, 0, after))
        }
    };
    Tensor::cat(&[left, x.clone(), right], d)
}

#[cfg(test)]
mod tests {
    use super::PadMode;
    use crate::{Device, Tensor, gradcheck};

    #[test]
    fn gradients_agree_with_differences() {
        let x =
            Tensor::arange(0.0f64, 12.0, 1.0, Device::reference()).reshape([1, 3, 4]).requires_grad_(true);
        for mode in [PadMode::Reflect, PadMode::Replicate, PadMode::Circular] {
            gradcheck(|x| x[0].pad_mode(&[(2, 3), (1, -1)], mode).square(), std::slice::from_ref(&x))
                .unwrap();
        }
    }

    #[test]
    fn modes_are_pytorchs() {
        // torch.nn.functional.pad(torch.arange(3.).view(1, 3), (2, 1), mode)
        let x = Tensor::new([[0.0f32, 1.0, 2.0]], Device::reference());
        let padded = |mode: &str| x.pad_mode(&[(2, 1)], mode).to_vec::<f32>().unwrap();
        assert_eq!(padded("reflect"), [2.0, 1.0, 0.0, 1.0, 2.0, 1.0]);
        assert_eq!(padded("replicate"), [0.0, 0.0, 0.0, 1.0, 2.0, 2.0]);
        assert_eq!(padded("circular"), [1.0, 2.0, 0.0, 1.0, 2.0, 0.0]);
        assert_eq!(padded("zeros"), [0.0, 0.0, 0.0, 1.0, 2.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "pad: (3, 0) is too much for size 3 in mode Reflect")]
    fn too_much_reflection_is_refused() {
        Tensor::ones(3, Device::reference()).pad_mode(&[(3, 0)], "reflect");
    }
}
