//! Muon (<https://kellerjordan.github.io/posts/muon/>).

use super::radam::shrink;
use super::rule::{Rule, optimizer};
use super::state;
use super::{Memory, OptionValue, ParamGroup};
use orkest_core::{DType, Tensor};

optimizer! {
    /// Muon: momentum whose step is replaced by the nearest orthogonal matrix, so that all directions are learned equally fast. For the
    /// weight matrices inside a network; embeddings, heads and biases are better left to [`AdamW`](super::AdamW).
    ///
    /// ```
    /// # use orkest_core::{Device, Param, Tensor};
    /// # use orkest_nn::optim::{AdjustLr, Muon, Optimizer};
    /// let weight = Param::new(Tensor::ones([3, 4], &Device::cpu()));
    /// let mut optimizer = Muon::new([weight.clone()], 1e-3).adjust_lr_fn(AdjustLr::MatchRmsAdamW);
    /// weight.tensor().square().sum(..).backward();
    /// optimizer.step();
    /// ```
    Muon(Momentum) {
        /// How strongly weights are pulled to zero, decoupled as in [`AdamW`](super::AdamW); 0.1 by default.
        weight_decay: f64 = 0.1,
        /// How much of the gradient's average stays from step to step; 0.95 by default.
        momentum: f64 = 0.95,
        /// Nesterov's momentum; on by default.
        nesterov: bool = true,
        /// The polynomial `a x + b x³ + c x⁵` of the Newton-Schulz iteration; (3.4445, -4.775, 2.0315) by default.
        ns_coefficients: (f64, f64, f64) = (3.4445, -4.775, 2.0315),
        /// The smallest norm that a step is divided by; 1e-7 by default.
        eps: f64 = 1e-7,
    }
    extra {
        ns_steps = 5.0,
        adjust_lr_fn = AdjustLr::Original,
    }
}

/// How the learning rate depends on the shape `[rows, columns]` of a matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdjustLr {
    /// Times `√max(1, rows / columns)`.
    Original,
    /// Times `0.2 √max(rows, columns)`: steps as large as those of AdamW, whose `lr` and decay then fit.
    MatchRmsAdamW,
    /// Times `√(rows / columns)`.
    SpectralUnclamped,
}

impl From<AdjustLr> for OptionValue {
    fn from(adjust: AdjustLr) -> OptionValue {
        OptionValue::Name(match adjust {
            AdjustLr::Original => "original",
            AdjustLr::MatchRmsAdamW => "match_rms_adamw",
            AdjustLr::SpectralUnclamped => "spectral_unclamped",
        })
    }
}

impl Muon {
    /// How often the polynomial is applied; 5 by default.
    pub fn ns_steps(self, steps: usize) -> Muon {
        self.with("ns_steps", steps as f64)
    }

    /// How the learning rate depends on the shape of a matrix.
    pub fn adjust_lr_fn(self, adjust: AdjustLr) -> Muon {
        self.with("adjust_lr_fn", adjust)
    }
}

/// What Muon remembers about one parameter.
#[derive(Debug)]
struct Momentum {
    buffer: Tensor,
}

impl Memory for Momentum {
    fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        vec![("momentum_buffer", self.buffer.clone())]
    }

    fn from_tensors(saved: &mut state::Saved<'_>, _: &ParamGroup) -> Momentum {
        Momentum { buffer: saved.tensor("momentum_buffer") }
    }
}

impl Rule for Momentum {
    fn new(value: &Tensor, _: &ParamGroup) -> Momentum {
        Momentum { buffer: value.zeros_like() }
    }

    fn like_param(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.buffer]
    }

    /// # Panics
    /// If the parameter is no matrix.
    #[track_caller]
    fn step(&mut self, grad: Tensor, value: &mut Tensor, group: &ParamGroup) {
        assert!(
            value.rank() == 2,
            "Muon: only matrices can be made orthogonal; give a parameter of shape {} to AdamW",
            value.shape()
        );
        let momentum = group.number("momentum");
        self.buffer = self.buffer.lerp(&grad, 1.0 - momentum);
        let direction =
            if group.flag("nesterov") { grad.lerp(&self.buffer, momentum) } else { self.buffer.clone() };
        let steps = group.number("ns_steps") as usize;
        let update = orthogonal(&direction, group.triple("ns_coefficients"), steps, group.number("eps"));

        let [rows, columns] = value.dims().map(|size: usize| size as f64);
        let ratio = match group.name("adjust_lr_fn") {
            "match_rms_adamw" => 0.2 * rows.max(columns).sqrt(),
            "spectral_unclamped" => (rows / columns).sqrt(),
            _ => (rows / columns).max(1.0).sqrt(),
        };
        shrink(value, group);
        value.sub_(&(update.to_dtype(value.dtype()) * (group.lr() * ratio)));
    }
}

/// The matrix with its singular values moved towards 1 (into about 0.7 to 1.2), by a Newton-Schulz iteration.
///
/// As in PyTorch the iteration has the precision of bf16. Products are taken in f32 and rounded, as a bf16 unit does it.
fn orthogonal(matrix: &Tensor, [a, b, c]: [f64; 3], steps: usize, eps: f64) -> Tensor {
    let rounded = |x: Tensor| x.to_dtype(DType::BF16).to_dtype(DType::F32);
    let [rows, columns] = matrix.dims();
    let x = rounded(if rows > columns { matrix.t() } else { matrix.clone() });
    let norm = rounded(x.norm(2.0, ..)).clamp_min(eps);
    let mut x = rounded(x / norm);
    for _ in 0..steps {
        let gram = rounded(x.matmul(&x.t()));
        let polynomial = rounded(&gram * b + gram.matmul(&gram) * c);
        x = rounded(&x * a + polynomial.matmul(&x));
    }
    if rows > columns { x.t() } else { x }
}
