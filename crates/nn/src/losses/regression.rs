//! Losses for numbers.

#![allow(clippy::upper_case_acronyms)]

use super::reduction::{Reduction, same_shape};
use crate::Module;
use orkest_core::Tensor;
use orkest_core::op::ElementLoss;

macro_rules! regression_losses {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $t:ty),* } |$self:ident| $loss:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Shapes
        /// - input and target: any, the same
        /// - output: a scalar, or the input's shape with [`Reduction::None`]
        #[derive(Module, Clone, Debug)]
        #[module(extra_repr)]
        pub struct $name {
            $($field: $t,)*
            reduction: Reduction,
        }

        impl $name {
            /// [`Reduction::Mean`] unless this says otherwise.
            pub fn reduction(mut self, reduction: Reduction) -> $name {
                self.reduction = reduction;
                self
            }

            /// The loss.
            ///
            /// # Panics
            /// If the shapes differ: broadcasting here is almost always a mistake, as `[n]` against `[n, 1]`.
            #[track_caller]
            pub fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
                same_shape(stringify!($name), input, target);
                self.reduction.element_loss(input, target, self.loss())
            }

            fn loss(&$self) -> ElementLoss {
                $loss
            }

            fn extra_repr(&self) -> String {
                let options = String::new() $(+ stringify!($field) + &format!("={:?}, ", self.$field))*;
                options + &format!("reduction='{}'", self.reduction.name())
            }
        }
    )*};
}

regression_losses! {
    /// `(x - y)²`: PyTorch's [`MSELoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.MSELoss.html).
    MSELoss {} |self| ElementLoss::Squared;

    /// `|x - y|`: PyTorch's [`L1Loss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.L1Loss.html).
    L1Loss {} |self| ElementLoss::Absolute;

    /// `(x - y)² / (2 beta)` where `|x - y| < beta`, else `|x - y| - beta / 2`: PyTorch's
    /// [`SmoothL1Loss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.SmoothL1Loss.html).
    SmoothL1Loss { beta: f64 } |self| match self.beta {
        0.0 => ElementLoss::Absolute,
        beta => ElementLoss::SmoothL1 { beta },
    };

    /// `(x - y)² / 2` where `|x - y| <= delta`, else `delta (|x - y| - delta / 2)`: PyTorch's
    /// [`HuberLoss`](https://docs.pytorch.org/docs/stable/generated/torch.nn.HuberLoss.html).
    HuberLoss { delta: f64 } |self| ElementLoss::Huber { delta: self.delta };
}

impl MSELoss {
    /// The mean of squares.
    pub fn new() -> MSELoss {
        MSELoss { reduction: Reduction::Mean }
    }
}

impl L1Loss {
    /// The mean of absolute differences.
    pub fn new() -> L1Loss {
        L1Loss { reduction: Reduction::Mean }
    }
}

impl SmoothL1Loss {
    /// PyTorch's default `beta` is 1.
    ///
    /// # Panics
    /// If `beta` is negative.
    #[track_caller]
    pub fn new(beta: f64) -> SmoothL1Loss {
        assert!(beta >= 0.0, "SmoothL1Loss: beta must not be negative, it is {beta}");
        SmoothL1Loss { beta, reduction: Reduction::Mean }
    }
}

impl HuberLoss {
    /// PyTorch's default `delta` is 1.
    ///
    /// # Panics
    /// If `delta` is not positive.
    #[track_caller]
    pub fn new(delta: f64) -> HuberLoss {
        assert!(delta > 0.0, "HuberLoss: delta must be positive, it is {delta}");
        HuberLoss { delta, reduction: Reduction::Mean }
    }
}

impl Default for MSELoss {
    fn default() -> MSELoss {
        MSELoss::new()
    }
}

impl Default for L1Loss {
    fn default() -> L1Loss {
        L1Loss::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::{DType, gradcheck, tensor};

    #[test]
    fn values_are_those_of_the_formulas() {
        let (x, y) = (tensor![1.0, 2.0, -1.0], tensor![1.5, 0.0, -1.0]); // differences -0.5, 2, 0
        let none = Reduction::None;
        let values = |t: Tensor| t.to_vec::<f32>().unwrap();
        assert_eq!(values(MSELoss::new().reduction(none).forward(&x, &y)), [0.25, 4.0, 0.0]);
        assert_eq!(values(L1Loss::new().reduction(none).forward(&x, &y)), [0.5, 2.0, 0.0]);
        assert_eq!(values(SmoothL1Loss::new(1.0).reduction(none).forward(&x, &y)), [0.125, 1.5, 0.0]);
        assert_eq!(values(SmoothL1Loss::new(0.0).reduction(none).forward(&x, &y)), [0.5, 2.0, 0.0]);
        assert_eq!(values(SmoothL1Loss::new(0.25).reduction(none).forward(&x, &y)), [0.375, 1.875, 0.0]);
        assert_eq!(values(HuberLoss::new(0.25).reduction(none).forward(&x, &y)), [0.09375, 0.46875, 0.0]);
        assert_eq!(MSELoss::new().reduction(Reduction::Sum).forward(&x, &y).item().unwrap(), 4.25);
        assert_eq!(MSELoss::new().forward(&x, &y).item().unwrap(), (4.25f32 / 3.0) as f64);
    }

    #[test]
    fn gradients_are_right() {
        let (x, y) =
            (tensor![1.0, 2.0, -1.0].to_dtype(DType::F64), tensor![1.5, 0.0, -1.2].to_dtype(DType::F64));
        let (x, y) = (x.requires_grad_(true), y.requires_grad_(true));
        gradcheck(|x| MSELoss::new().forward(&x[0], &x[1]), &[x.clone(), y.clone()]).unwrap();
        gradcheck(|x| L1Loss::new().forward(&x[0], &x[1]), &[x.clone(), y.clone()]).unwrap();
        gradcheck(|x| SmoothL1Loss::new(1.0).forward(&x[0], &x[1]), &[x.clone(), y.clone()]).unwrap();
        gradcheck(|x| HuberLoss::new(0.3).forward(&x[0], &x[1]), &[x, y]).unwrap();
    }

    #[test]
    #[should_panic(expected = "MSELoss: input [2, 1] and target [2] must have one shape")]
    fn shapes_are_not_broadcast() {
        MSELoss::new().forward(&tensor![[1.0], [2.0]], &tensor![1.0, 2.0]);
    }

    #[test]
    fn texts_name_the_options() {
        assert_eq!(HuberLoss::new(1.0).to_string(), "HuberLoss(delta=1.0, reduction='mean')");
        assert_eq!(L1Loss::new().reduction(Reduction::Sum).to_string(), "L1Loss(reduction='sum')");
    }
}
