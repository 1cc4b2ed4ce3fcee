//! Vectors of several tokens as one.

use super::embedding::{limit_norms, zero_row};
use crate::{Field, Module, Rebuild, Visitor};
use orkest_core::{Device, Param, Tensor};

/// How the vectors of a bag become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BagMode {
    /// Their sum, weighted if weights are given.
    Sum,
    /// Their mean.
    #[default]
    Mean,
    /// The largest of each component.
    Max,
}

impl Field for BagMode {
    fn visit_field<'a>(&'a self, _name: &str, _visitor: &mut Visitor<'_, 'a>) {}
    fn rebuild_field(&self, _rebuild: &mut Rebuild) -> BagMode {
        *self
    }
}

/// One vector for each bag of tokens: PyTorch's
/// [`EmbeddingBag`](https://docs.pytorch.org/docs/stable/generated/torch.nn.EmbeddingBag.html). An empty bag gives zeros.
///
/// The table starts standard normal, with PyTorch's numbers for the same `manual_seed`.
///
/// # Shapes
/// - input: i64, `[bags, tokens]`, or `[tokens of all bags]` with the place where each bag begins as offsets `[bags]`
/// - output: `[bags, embedding_dim]`
/// - `weight`: `[num_embeddings, embedding_dim]`
///
/// ```
/// use orkest_core::tensor;
/// use orkest_nn::EmbeddingBag;
/// let bag = EmbeddingBag::new(10, 4);
/// assert_eq!(bag.forward(&tensor![[1, 2], [4, 5]], None).shape(), &[2, 4]);
/// assert_eq!(bag.forward(&tensor![1, 2, 4, 5, 4], Some(&[0, 2])).shape(), &[2, 4]);
/// ```
#[derive(Module, Clone, Debug)]
#[module(extra_repr)]
pub struct EmbeddingBag {
    /// `[num_embeddings, embedding_dim]`
    pub weight: Param,
    mode: BagMode,
    padding_idx: Option<usize>,
    max_norm: Option<f64>,
    norm_type: f64,
    include_last_offset: bool,
}

impl EmbeddingBag {
    /// The mean, on the CPU.
    #[track_caller]
    pub fn new(num_embeddings: usize, embedding_dim: usize) -> EmbeddingBag {
        EmbeddingBag::from_param(Param::new(Tensor::randn([num_embeddings, embedding_dim], &Device::cpu())))
    }

    /// With this table `[num_embeddings, embedding_dim]`.
    pub fn from_param(weight: Param) -> EmbeddingBag {
        EmbeddingBag {
            weight,
            mode: BagMode::Mean,
            padding_idx: None,
            max_norm: None,
            norm_type: 2.0,
            include_last_offset: false,
        }
    }

    /// How the vectors of a bag become one; their mean at first.
    pub fn mode(mut self, mode: BagMode) -> EmbeddingBag {
        self.mode = mode;
        self
    }

    /// Makes a token the padding, which does not count in any bag: its vector is set to zero. Negative counts from the end.
    ///
    /// # Panics
    /// If there is no such token.
    #[track_caller]
    pub fn padding_idx(mut self, index: isize) -> EmbeddingBag {
        let rows = self.weight.shape()[0] as isize;
        let row = if index < 0 { index + rows } else { index };
        assert!(
            (0..rows).contains(&row),
            "EmbeddingBag: padding_idx {index} is not one of the {rows} tokens"
        );
        self.weight.update(|w| zero_row(w, row as usize));
        self.padding_idx = Some(row as usize);
        self
    }

    /// Shortens the vectors that are used to this norm, in the table.
    pub fn max_norm(mut self, max_norm: impl Into<Option<f64>>) -> EmbeddingBag {
        self.max_norm = max_norm.into();
        self
    }

    /// Which norm `max_norm` is about; 2 at first.
    pub fn norm_type(mut self, norm_type: f64) -> EmbeddingBag {
        self.norm_type = norm_type;
        self
    }

    /// With `true`, offsets have one number more, the end of the last bag.
    pub fn include_last_offset(mut self, include: bool) -> EmbeddingBag {
        self.include_last_offset = include;
        self
    }

    /// A vector for each bag.
    ///
    /// # Panics
    /// If offsets are missing, superfluous, or do not rise from 0 to at most the number of tokens.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, offsets: Option<&[usize]>) -> Tensor {
        self.forward_weighted(input, offsets, None)
    }

    /// A vector for each bag, of tokens times `per_sample_weights` (of the input's shape).
    ///
    /// # Panics
    /// As [`EmbeddingBag::forward`]; also if weights are given and the mode is not [`BagMode::Sum`].
    #[track_caller]
    pub fn forward_weighted(
        &self,
        input: &Tensor,
        offsets: Option<&[usize]>,
        per_sample_weights: Option<&Tensor>,
    ) -> Tensor {
        let bags = self.bags(input, offsets);
        if let Some(weights) = per_sample_weights
            && (self.mode != BagMode::Sum || weights.shape() != input.shape())
        {
            panic!(
                "EmbeddingBag: weights of the input's shape are for the sum. mode: {:?}; weights: {}; input: {}",
                self.mode,
                weights.describe(),
                input.describe()
            );
        }
        if let Some(max_norm) = self.max_norm {
            limit_norms(&self.weight, input, max_norm, self.norm_type);
        }
        let (tokens, weight) = (input.flatten(0, -1), self.weight.tensor());
        let count = bags.len() - 1;
        let owner: Vec<i64> = (0..count).flat_map(|b| vec![b as i64; bags[b + 1] - bags[b]]).collect();
        let owner = Tensor::from_slice(&owner, owner.len(), input.device());
        // A padding token stays in the list with nothing to give: what is in a bag need not be read by the host.
        let counted = self.padding_idx.map(|row| tokens.ne(row as i64).to_dtype(weight.dtype()));
        let mut vectors = weight.rows(&tokens);
        if self.mode == BagMode::Max {
            return self.largest(&vectors, &bags, counted.as_ref());
        }
        for factors in [per_sample_weights.map(|w| w.flatten(0, -1)), counted.clone()].into_iter().flatten() {
            vectors *= factors.unsqueeze(1);
        }
        let empty = |shape: &[usize]| Tensor::zeros(shape, (vectors.dtype(), vectors.device()));
        let sums = empty(&[count, weight.size(1)]).index_add(0, &owner, &vectors);
        if self.mode == BagMode::Sum {
            return sums;
        }
        let ones = counted.unwrap_or_else(|| empty(&[tokens.numel()]) + 1.0);
        sums / empty(&[count]).index_add(0, &owner, &ones).clamp_min(1.0).unsqueeze(1)
    }

    /// Where bags begin, and where the last one ends.
    #[track_caller]
    fn bags(&self, input: &Tensor, offsets: Option<&[usize]>) -> Vec<usize> {
        let n = input.numel();
        let mut bags = match (input.rank(), offsets) {
            (2, None) => return (0..=input.size(0)).map(|i| i * input.size(1)).collect(),
            (1, Some(offsets)) => offsets.to_vec(),
            _ => panic!(
                "EmbeddingBag: an input [bags, tokens] without offsets or [tokens] with offsets is needed. input: {}; offsets: {}",
                input.describe(),
                if offsets.is_some() { "given" } else { "none" }
            ),
        };
        if !self.include_last_offset {
            bags.push(n);
        }
        let fits = bags.first() == Some(&0) && bags.is_sorted() && bags.last().is_some_and(|&last| last <= n);
        assert!(
            fits,
            "EmbeddingBag: offsets must rise from 0 to at most the {n} tokens. offsets: {offsets:?}"
        );
        bags
    }

    /// The largest components of every bag, 0 if it is empty.
    #[track_caller]
    fn largest(&self, vectors: &Tensor, bags: &[usize], counted: Option<&Tensor>) -> Tensor {
        let vectors = match counted {
            Some(counted) => vectors.masked_fill(&counted.eq(0).unsqueeze(1), f64::NEG_INFINITY),
            None => vectors.clone(),
        };
        let largest = bags.windows(2).map(|bag| match bag[1] - bag[0] {
            0 => Tensor::zeros(vectors.size(1), (vectors.dtype(), vectors.device())),
            n => vectors.narrow(0, bag[0], n).max_with_indices(0).0,
        });
        let largest: Vec<Tensor> = largest.collect();
        let largest = Tensor::stack(&largest, 0);
        match counted {
            Some(_) => largest.masked_fill(&largest.eq(f64::NEG_INFINITY), 0.0),
            None => largest,
        }
    }

    fn extra_repr(&self) -> String {
        let shape = self.weight.shape();
        let mut text = format!("{}, {}", shape[0], shape[1]);
        if let Some(max_norm) = self.max_norm {
            text += &format!(", max_norm={max_norm:?}");
        }
        if self.norm_type != 2.0 {
            text += &format!(", norm_type={:?}", self.norm_type);
        }
        text += &format!(", mode='{}'", format!("{:?}", self.mode).to_lowercase());
        if let Some(row) = self.padding_idx {
            text += &format!(", padding_idx={row}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::tensor;

    #[test]
    fn texts_are_pytorchs() {
        assert_eq!(EmbeddingBag::new(10, 3).to_string(), "EmbeddingBag(10, 3, mode='mean')");
        assert_eq!(
            EmbeddingBag::new(10, 3).mode(BagMode::Sum).max_norm(1.0).padding_idx(0).to_string(),
            "EmbeddingBag(10, 3, max_norm=1.0, mode='sum', padding_idx=0)"
        );
    }

    #[test]
    fn a_bag_can_be_empty() {
        let bag = EmbeddingBag::from_param(Param::new(tensor![[1.0, 2.0], [3.0, 5.0]]));
        let y = bag.forward(&tensor![0, 1, 1], Some(&[0, 0, 2]));
        assert_eq!(y.to_vec::<f32>().unwrap(), [0.0, 0.0, 2.0, 3.5, 3.0, 5.0]);
    }

    #[test]
    #[should_panic(expected = "EmbeddingBag: offsets must rise from 0 to at most the 2 tokens")]
    fn offsets_must_rise() {
        EmbeddingBag::new(3, 2).forward(&tensor![0, 1], Some(&[0, 2, 1]));
    }
}
