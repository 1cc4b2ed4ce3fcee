//! The table of vectors for tokens.

use crate::{Layer, Module};
use orkest_core::{Device, Function, Param, Tensor};

/// A vector for each of `num_embeddings` tokens: PyTorch's
/// [`Embedding`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html).
///
/// The table starts standard normal, with PyTorch's numbers for the same `manual_seed`.
///
/// # Shapes
/// - input: i64, any, e.g. `[batch, seq]`, values below `num_embeddings`
/// - output: input shape followed by `embedding_dim`
/// - `weight`: `[num_embeddings, embedding_dim]`
///
/// ```
/// use orkest_core::tensor;
/// use orkest_nn::{Embedding, Layer};
/// let embedding = Embedding::new(10, 4).padding_idx(0);
/// let y = embedding.forward(&tensor![[3, 1, 0], [5, 0, 0]]);
/// assert_eq!(y.shape(), &[2, 3, 4]);
/// ```
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct Embedding {
    /// `[num_embeddings, embedding_dim]`
    pub weight: Param,
    padding_idx: Option<usize>,
    max_norm: Option<f64>,
    norm_type: f64,
}

impl Embedding {
    /// On the CPU, without a padding token.
    #[track_caller]
    pub fn new(num_embeddings: usize, embedding_dim: usize) -> Embedding {
        Embedding::from_param(Param::new(Tensor::randn([num_embeddings, embedding_dim], &Device::cpu())))
    }

    /// With this table `[num_embeddings, embedding_dim]`.
    pub fn from_param(weight: Param) -> Embedding {
        Embedding { weight, padding_idx: None, max_norm: None, norm_type: 2.0 }
    }

    /// Makes a token the padding: its vector is set to zero, and its gradient is always zero. Negative counts from the end.
    ///
    /// # Panics
    /// If there is no such token.
    #[track_caller]
    pub fn padding_idx(mut self, index: isize) -> Embedding {
        let rows = self.weight.shape()[0] as isize;
        let row = if index < 0 { index + rows } else { index };
        assert!((0..rows).contains(&row), "Embedding: padding_idx {index} is not one of the {rows} tokens");
        self.weight.update(|w| zero_row(w, row as usize));
        self.padding_idx = Some(row as usize);
        self
    }

    /// Shortens the vectors that are looked up to this norm, in the table.
    pub fn max_norm(mut self, max_norm: impl Into<Option<f64>>) -> Embedding {
        self.max_norm = max_norm.into();
        self
    }

    /// Which norm `max_norm` is about; 2 at first.
    pub fn norm_type(mut self, norm_type: f64) -> Embedding {
        self.norm_type = norm_type;
        self
    }

    fn extra_repr(&self) -> String {
        let shape = self.weight.shape();
        let mut text = format!("{}, {}", shape[0], shape[1]);
        if let Some(row) = self.padding_idx {
            text += &format!(", padding_idx={row}");
        }
        if let Some(max_norm) = self.max_norm {
            text += &format!(", max_norm={max_norm:?}");
        }
        if self.norm_type != 2.0 {
            text += &format!(", norm_type={:?}", self.norm_type);
        }
        text
    }
}

impl Layer for Embedding {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        if let Some(max_norm) = self.max_norm {
            limit_norms(&self.weight, input, max_norm, self.norm_type);
        }
        let weight = self.weight.tensor();
        match self.padding_idx {
            Some(row) => Tensor::apply(PaddedLookup { row }, &[&weight, input]),
            None => weight.rows(input),
        }
    }
}

/// Shortens the rows that `index` names to `max_norm`, where they are longer.
#[track_caller]
pub(super) fn limit_norms(table: &Param, index: &Tensor, max_norm: f64, norm_type: f64) {
    table.update(|table| {
        let index = index.flatten(0, -1);
        let rows = table.rows(&index);
        let norms = rows.norm_keepdim(norm_type, 1);
        let short = rows.clone() * (max_norm / (&norms + 1e-7));
        let rows = norms.gt(max_norm).where_(short, rows);
        let places = index.unsqueeze(1).broadcast_to(rows.shape());
        table.scatter_(0, &places, &rows);
    });
}

#[track_caller]
pub(super) fn zero_row(table: &mut Tensor, row: usize) {
    let zero = Tensor::zeros((), (table.dtype(), table.device()));
    table.slice_assign(row, &zero);
}

/// A lookup that gives one row no gradient. Zeroing that row of the table's gradient costs nothing next to masking the gradients
/// of all tokens.
struct PaddedLookup {
    row: usize,
}

impl Function for PaddedLookup {
    fn name(&self) -> &'static str {
        "embedding"
    }

    #[track_caller]
    fn forward(&self, inputs: &[Tensor]) -> Tensor {
        inputs[0].rows(&inputs[1])
    }

    fn backward(&self, inputs: &[Tensor], _output: &Tensor, grad: &Tensor) -> Vec<Option<Tensor>> {
        let (table, index) = (&inputs[0], &inputs[1]);
        let mut table_grad = Tensor::zeros(*table.shape(), (grad.dtype(), grad.device()));
        table_grad.index_add_(0, &index.flatten(0, -1), &grad.reshape([index.numel(), table.size(1)]));
        zero_row(&mut table_grad, self.row);
        vec![Some(table_grad), None]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::{BackwardOptions, grad, tensor};

    #[test]
    fn repeated_tokens_add_their_gradients_and_padding_has_none() {
        let embedding = Embedding::new(4, 2).padding_idx(-1);
        let y = embedding.forward(&tensor![[0, 3, 0], [3, 2, 3]]);
        assert_eq!(y.select(0, 0).select(0, 1).to_vec::<f32>().unwrap(), [0.0, 0.0]);
        (y * tensor![[1.0, 2.0]]).sum(..).backward();
        let g = embedding.weight.grad().unwrap().to_vec::<f32>().unwrap();
        assert_eq!(g, [2.0, 4.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0]);
    }

    #[test]
    fn a_gradient_of_the_gradient_leaves_the_padding_out_too() {
        let embedding = Embedding::new(3, 1).padding_idx(0);
        embedding.weight.set_value(&tensor![[0.0], [2.0], [3.0]]);
        let weight = embedding.weight.tensor();
        let y = embedding.forward(&tensor![0, 1, 2]);
        let options = BackwardOptions { create_graph: true, ..BackwardOptions::default() };
        let first = grad(&[&(&y * &y * &y).sum(..)], &[&weight], options).remove(0).unwrap();
        assert_eq!(first.to_vec::<f32>().unwrap(), [0.0, 12.0, 27.0]);
        first.sum(..).backward();
        assert_eq!(embedding.weight.grad().unwrap().to_vec::<f32>().unwrap(), [0.0, 12.0, 18.0]);
    }

    #[test]
    fn long_vectors_are_shortened_where_they_are_used() {
        // torch: nn.Embedding.from_pretrained(.., max_norm=1.0), then its weight after a lookup of 0 and 2
        let embedding =
            Embedding::from_param(Param::new(tensor![[3.0, 4.0], [3.0, 4.0], [0.3, 0.4]])).max_norm(1.0);
        embedding.forward(&tensor![0, 2, 0]);
        let table = embedding.weight.value().to_vec::<f32>().unwrap();
        for (found, expected) in table.iter().zip([0.6, 0.8, 3.0, 4.0, 0.3, 0.4]) {
            assert!((found - expected).abs() < 1e-6, "{table:?}");
        }
        assert_eq!(embedding.to_string(), "Embedding(3, 2, max_norm=1.0)");
    }

    #[test]
    #[should_panic(expected = "padding_idx 4 is not one of the 4 tokens")]
    fn the_padding_must_be_a_token() {
        let _ = Embedding::new(4, 2).padding_idx(4);
    }
}
