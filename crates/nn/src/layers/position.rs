//! Where in a sequence a token stands: rotated queries and keys, or sines that are added to embeddings.

use crate::{Buffer, Dropout, Layer, Module};
use orkest_core::{Device, Tensor};

/// Rotary position embedding (<https://arxiv.org/abs/2104.09864>): pairs of features turn by an angle that grows with the position,
/// so that the product of a query and a key depends on their distance only.
///
/// Pair `i` of `dim / 2` turns by `position / base^(2 i / dim)`. Which features make a pair is a convention that a checkpoint's
/// weights depend on:
///
/// | convention | pair `i` | models |
/// |---|---|---|
/// | half-split (default) | features `i` and `i + dim / 2` | GPT-NeoX, and LLaMA, Mistral, Qwen as Hugging Face stores them |
/// | [`interleaved`](RotaryEmbedding::interleaved) | features `2 i` and `2 i + 1` | the paper, GPT-J, LLaMA as Meta stores it |
///
/// Features beyond `dim` are left alone (GPT-NeoX turns a quarter of each head). The angles are computed in f32, as the models that
/// were trained with them did.
///
/// # Shapes
/// - input and output: `[.., seq, features]` with `features >= dim`, e.g. `[batch, heads, seq, head_dim]`
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::RotaryEmbedding;
/// let rope = RotaryEmbedding::new(8, 128);
/// let q = Tensor::randn([1, 2, 5, 8], &Device::cpu());
/// let rotated = rope.forward(&q, 0); // positions 0 to 4
/// let next = rope.forward(&q.narrow(2, 0, 1), 5); // position 5, with a cache of the first five
/// # assert_eq!((rotated.shape(), next.size(2)), (q.shape(), 1));
/// ```
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct RotaryEmbedding {
    /// `[max_seq_len, dim / 2]`
    cos: Buffer,
    /// `[max_seq_len, dim / 2]`
    sin: Buffer,
    dim: usize,
    max_seq_len: usize,
    base: f64,
    interleaved: bool,
}

impl RotaryEmbedding {
    /// For positions below `max_seq_len`, half-split, with a base of 10,000.
    ///
    /// # Panics
    /// If `dim` is odd.
    #[track_caller]
    pub fn new(dim: usize, max_seq_len: usize) -> RotaryEmbedding {
        assert!(dim.is_multiple_of(2), "RotaryEmbedding: features turn in pairs, and {dim} is odd");
        let empty = || Buffer::non_persistent(Tensor::zeros([0, 0], &Device::cpu()));
        let rope =
            RotaryEmbedding { cos: empty(), sin: empty(), dim, max_seq_len, base: 0.0, interleaved: false };
        rope.base(10_000.0)
    }

    /// With another base, e.g. 500,000 for LLaMA 3.
    pub fn base(mut self, base: f64) -> RotaryEmbedding {
        let half = self.dim / 2;
        let speed: Vec<f32> =
            (0..half).map(|i| 1.0 / base.powf(2.0 * i as f64 / self.dim as f64) as f32).collect();
        let angles: Vec<f32> = (0..self.max_seq_len)
            .flat_map(|position| speed.iter().map(move |s| position as f32 * s))
            .collect();
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&a| f(f64::from(a)) as f32).collect();
            Tensor::from_slice(&values, [self.max_seq_len, half], &Device::cpu())
        };
        self.cos = Buffer::non_persistent(table(f64::cos));
        self.sin = Buffer::non_persistent(table(f64::sin));
        self.base = base;
        self
    }

    /// With `true`: neighbouring features make a pair.
    pub fn interleaved(mut self, interleaved: bool) -> RotaryEmbedding {
        self.interleaved = interleaved;
        self
    }

    /// Turns queries or keys whose first position is `start`.
    ///
    /// # Panics
    /// If a position is not below `max_seq_len`, or there are fewer than `dim` features.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, start: usize) -> Tensor {
        self.check(x);
        let seq = x.size(-2);
        assert!(
            start + seq <= self.max_seq_len,
            "RotaryEmbedding: positions {start} to {} are beyond max_seq_len {}. input: {}",
            start + seq,
            self.max_seq_len,
            x.describe()
        );
        let table = |buffer: &Buffer| buffer.tensor().narrow(0, start, seq);
        self.rotate(x, &table(&self.cos), &table(&self.sin))
    }

    /// Turns queries or keys at these positions: i64, `[seq]` or `[batch, seq]` for `x` of `[batch, .., seq, features]` (sequences
    /// that are padded on the left begin at different ones).
    ///
    /// # Panics
    /// If there are fewer than `dim` features. A position that is not below `max_seq_len` is an index out of range.
    #[track_caller]
    pub fn forward_at(&self, x: &Tensor, positions: &Tensor) -> Tensor {
        self.check(x);
        let seq = x.size(-2);
        let fits = positions.rank() > 0
            && positions.size(-1) == seq
            && (positions.rank() == 1
                || positions.rank() == 2 && x.rank() > 2 && positions.size(0) == x.size(0));
        assert!(
            fits,
            "RotaryEmbedding: positions must be [seq] or [batch, seq]. input: {}; positions: {}",
            x.describe(),
            positions.describe()
        );
        let table = |buffer: &Buffer| {
            let rows = buffer.tensor().rows(positions); // [.., seq, dim / 2]
            let between = if positions.rank() == 2 { x.rank() - 3 } else { 0 };
            (0..between).fold(rows, |rows, _| rows.unsqueeze(1))
        };
        self.rotate(x, &table(&self.cos), &table(&self.sin))
    }

    #[track_caller]
    fn check(&self, x: &Tensor) {
        assert!(
            x.rank() >= 2 && x.size(-1) >= self.dim,
            "RotaryEmbedding: [.., seq, features] with at least {} features is needed. input: {}",
            self.dim,
            x.describe()
        );
    }

    #[track_caller]
    fn rotate(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
        let [cos, sin] = [cos, sin].map(|t| t.to_dtype(x.dtype()));
        let rest = x.size(-1) - self.dim;
        let turning = if rest > 0 { x.narrow(-1, 0, self.dim) } else { x.clone() };
        let turned = if self.interleaved {
            let pairs = turning.unflatten(-1, [self.dim / 2, 2]);
            let (a, b) = (pairs.select(-1, 0), pairs.select(-1, 1));
            Tensor::stack(&[&a * &cos - &b * &sin, &b * &cos + &a * &sin], -1).flatten(-2, -1)
        } else {
            let [a, b] = turning.chunks(-1);
            Tensor::cat(&[&a * &cos - &b * &sin, &b * &cos + &a * &sin], -1)
        };
        if rest > 0 { Tensor::cat(&[turned, x.narrow(-1, self.dim, rest)], -1) } else { turned }
    }

    fn extra_repr(&self) -> String {
        let RotaryEmbedding { dim, max_seq_len, base, interleaved, .. } = self;
        let interleaved = crate::repr::python_bool(*interleaved);
        format!("{dim}, max_seq_len={max_seq_len}, base={base:?}, interleaved={interleaved}")
    }
}

/// Adds the sines and cosines of "Attention Is All You Need" (<https://arxiv.org/abs/1706.03762>, section 3.5) to embeddings, then
/// drops some: the `PositionalEncoding` of PyTorch's tutorials.
///
/// Feature `2 i` gets `sin(position / 10000^(2 i / d_model))`, feature `2 i + 1` the cosine of the same.
///
/// # Shapes
/// - input and output: `[seq, batch, d_model]` or `[seq, d_model]`; with `batch_first` `[batch, seq, d_model]`
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{Layer, PositionalEncoding};
/// let encoding = PositionalEncoding::new(4, 100).dropout(0.1).batch_first(true);
/// assert_eq!(encoding.forward(&Tensor::zeros([2, 7, 4], &Device::cpu())).shape(), &[2, 7, 4]);
/// ```
#[derive(Module, Clone, Debug)]
pub struct PositionalEncoding {
    dropout: Dropout,
    /// `[max_len, d_model]`
    pe: Buffer,
    batch_first: bool,
}

impl PositionalEncoding {
    /// For positions below `max_len`, without dropout.
    pub fn new(d_model: usize, max_len: usize) -> PositionalEncoding {
        let value = |k: usize| {
            let (position, feature) = (k / d_model, k % d_model);
            let angle = position as f64 / 10_000f64.powf((feature & !1) as f64 / d_model as f64);
            (if feature.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
        };
        let values: Vec<f32> = (0..max_len * d_model).map(value).collect();
        let pe = Tensor::from_slice(&values, [max_len, d_model], &Device::cpu());
        PositionalEncoding { dropout: Dropout::new(0.0), pe: Buffer::non_persistent(pe), batch_first: false }
    }

    /// The part that is dropped in training.
    ///
    /// # Panics
    /// If `p` lies outside `[0, 1]`.
    #[track_caller]
    pub fn dropout(mut self, p: f64) -> PositionalEncoding {
        self.dropout = Dropout::new(p);
        self
    }

    /// With `true`: the batch comes first.
    pub fn batch_first(mut self, batch_first: bool) -> PositionalEncoding {
        self.batch_first = batch_first;
        self
    }
}

impl Layer for PositionalEncoding {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        let pe = self.pe.tensor();
        let [max_len, d_model] = pe.dims();
        let seq_dim = isize::from(self.batch_first && input.rank() == 3);
        assert!(
            matches!(input.rank(), 2 | 3) && input.size(-1) == d_model && input.size(seq_dim) <= max_len,
            "PositionalEncoding: up to {max_len} positions with {d_model} features are needed (batch_first is {}). input: {}",
            self.batch_first,
            input.describe()
        );
        let pe = pe.narrow(0, 0, input.size(seq_dim)).to_dtype(input.dtype());
        let pe = if input.rank() == 3 && !self.batch_first { pe.unsqueeze(1) } else { pe };
        self.dropout.forward(&(input + pe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::{DType, gradcheck, tensor};

    fn random(shape: impl Into<orkest_core::Shape>) -> Tensor {
        Tensor::randn(shape, (DType::F64, &Device::cpu()))
    }

    #[test]
    fn products_depend_on_the_distance_only() {
        let (q, k) = (random([1, 6]), random([1, 6]));
        for interleaved in [false, true] {
            let rope = RotaryEmbedding::new(6, 50).interleaved(interleaved);
            let product = |i, j| (rope.forward(&q, i) * rope.forward(&k, j)).sum(..).item().unwrap();
            assert!((product(7, 3) - product(44, 40)).abs() < 1e-5);
            assert!((product(7, 3) - product(7, 4)).abs() > 1e-5);
        }
    }

    #[test]
    fn positions_can_be_given_one_by_one() {
        let rope = RotaryEmbedding::new(4, 9);
        let x = random([2, 3, 5, 6]); // two of the six features stay
        let row = |i: usize, start| rope.forward(&x.narrow(0, i, 1), start);
        let shifted = Tensor::cat(&[row(0, 2), row(1, 4)], 0);
        let positions = tensor![[2, 3, 4, 5, 6], [4, 5, 6, 7, 8]];
        assert!(rope.forward_at(&x, &positions).allclose(&shifted, 0.0, 0.0, false).unwrap());
        let straight = rope.forward_at(&x, &tensor![0, 1, 2, 3, 4]);
        assert!(straight.allclose(&rope.forward(&x, 0), 0.0, 0.0, false).unwrap());
    }

    #[test]
    fn tables_move_but_are_not_saved() {
        let rope = RotaryEmbedding::new(4, 9);
        assert!(rope.state_dict().is_empty() && rope.named_buffers().len() == 2);
        assert!(PositionalEncoding::new(4, 9).state_dict().is_empty());
    }

    #[test]
    fn gradients_agree_with_differences() {
        let x = [random([2, 3, 6])];
        let rope = RotaryEmbedding::new(4, 9);
        gradcheck(|t| rope.forward(&t[0], 2), &x).unwrap();
        let rope = rope.interleaved(true);
        gradcheck(|t| rope.forward(&t[0], 2), &x).unwrap();
    }

    #[test]
    #[should_panic(expected = "positions 7 to 10 are beyond max_seq_len 9")]
    fn positions_have_an_end() {
        RotaryEmbedding::new(4, 9).forward(&random([3, 4]), 7);
    }
}
