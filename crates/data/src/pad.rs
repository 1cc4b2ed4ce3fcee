//! Batches of sequences of different lengths: padded to the longest of the batch.

use crate::{Collate, Result};
use orkest_core::{Element, Scalar, Tensor};

/// Pads the sequences of each batch to its longest one, and adds their lengths. For
/// [`DataLoader::with_collate`](crate::DataLoader::with_collate).
///
/// An item is a sequence, or a tuple whose first element is one; what comes after it is joined as by default.
///
/// ```
/// use orkest_data::{DataLoader, ListDataset, pad_collate};
/// let reviews = ListDataset::new([(vec![4i64, 2, 9], 1i64), (vec![7], 0)]);
/// let loader = DataLoader::with_collate(reviews, pad_collate(0)).batch_size(2);
/// for (tokens, lengths, labels) in &loader {
///     assert_eq!(tokens.to_vec::<i64>()?, [4, 2, 9, 7, 0, 0]);
///     assert_eq!(lengths.to_vec::<i64>()?, [3, 1]);
///     assert_eq!(labels.to_vec::<i64>()?, [1, 0]);
/// }
/// # Ok::<(), orkest_data::BoxError>(())
/// ```
///
/// # Shapes
/// - sequences: `[length, ..]`, of any lengths
/// - batch: `[batch, longest, ..]`, lengths `[batch]` as i64
pub fn pad_collate(padding_value: impl Into<Scalar>) -> PadCollate {
    PadCollate { padding_value: padding_value.into() }
}

/// What [`pad_collate`] makes.
#[derive(Clone, Copy, Debug)]
pub struct PadCollate {
    padding_value: Scalar,
}

impl PadCollate {
    /// The sequences in one tensor, and their lengths.
    fn pad<S: Sequence>(&self, sequences: Vec<S>) -> Result<(Tensor, Tensor)> {
        let sequences: Vec<Tensor> = sequences.into_iter().map(Sequence::into_tensor).collect();
        let first = sequences.first().ok_or("a batch needs at least one sequence")?;
        if first.rank() == 0 {
            return Err("a tensor without dimensions is no sequence and cannot be padded".into());
        }
        let dtype = first.dtype();
        let rest = |t: &Tensor| (t.rank() > 0).then(|| t.shape()[1..].to_vec());
        if let Some(other) = sequences
            .iter()
            .find(|t| rest(t) != rest(first) || t.dtype() != dtype || t.device() != first.device())
        {
            return Err(format!(
                "sequences {} {} and {} {} differ in more than their length",
                dtype,
                first.shape(),
                other.dtype(),
                other.shape()
            )
            .into());
        }
        let lengths: Vec<i64> = sequences.iter().map(|t| t.size(0) as i64).collect();
        let longest = sequences.iter().map(|t| t.size(0)).max().unwrap_or(0);
        let mut shape = first.shape().to_vec();
        shape[0] = longest;
        shape.insert(0, sequences.len());
        let mut batch = Tensor::full(&shape[..], self.padding_value, (dtype, first.device()));
        for (row, sequence) in sequences.iter().enumerate() {
            batch.slice_assign((row, ..sequence.size(0)), sequence);
        }
        Ok((batch, Tensor::from_slice(&lengths, lengths.len(), first.device())))
    }
}

/// Something with a length that can be padded: a tensor, or a vector of numbers.
pub trait Sequence {
    /// `[length, ..]`
    fn into_tensor(self) -> Tensor;
}

impl Sequence for Tensor {
    fn into_tensor(self) -> Tensor {
        self
    }
}

impl<T: Element> Sequence for Vec<T> {
    fn into_tensor(self) -> Tensor {
        Tensor::from_slice(&self, self.len(), ())
    }
}

/// How a loader makes batches of `Batch` from items: [`PadCollate`], or any function from a vector of items to a result.
pub trait CollateFn<Item> {
    /// Several items in one.
    type Batch;

    /// Joins items into a batch.
    ///
    /// # Errors
    /// If they do not fit together.
    fn collate(&self, items: Vec<Item>) -> Result<Self::Batch>;
}

impl<Item, B, F: Fn(Vec<Item>) -> Result<B>> CollateFn<Item> for F {
    type Batch = B;

    fn collate(&self, items: Vec<Item>) -> Result<B> {
        self(items)
    }
}

macro_rules! padded {
    ($s:ident $(, $t:ident $column:ident $x:ident)*) => {
        impl<$s: Sequence $(, $t: Collate)*> CollateFn<($s, $($t,)*)> for PadCollate {
            type Batch = (Tensor, Tensor $(, $t::Batch)*);
            fn collate(&self, items: Vec<($s, $($t,)*)>) -> Result<Self::Batch> {
                let mut sequences = Vec::with_capacity(items.len());
                $(let mut $column = Vec::with_capacity(items.len());)*
                for (sequence, $($x,)*) in items {
                    sequences.push(sequence);
                    $($column.push($x);)*
                }
                let (batch, lengths) = self.pad(sequences)?;
                Ok((batch, lengths $(, $t::collate($column)?)*))
            }
        }
    };
}
padded!(S);
padded!(S, A a x);
padded!(S, A a x, B b y);
padded!(S, A a x, B b y, C c z);

impl CollateFn<Tensor> for PadCollate {
    type Batch = (Tensor, Tensor);

    fn collate(&self, items: Vec<Tensor>) -> Result<(Tensor, Tensor)> {
        self.pad(items)
    }
}

impl<T: Element> CollateFn<Vec<T>> for PadCollate {
    type Batch = (Tensor, Tensor);

    fn collate(&self, items: Vec<Vec<T>>) -> Result<(Tensor, Tensor)> {
        self.pad(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_of_vectors_are_padded_along_time() {
        let item = |len: usize| Tensor::ones([len, 2], ());
        let (batch, lengths) = pad_collate(-1.0).collate(vec![item(1), item(0), item(2)]).unwrap();
        assert_eq!(batch.shape(), &[3, 2, 2]);
        assert_eq!(batch.to_vec::<f32>().unwrap(), [1., 1., -1., -1., -1., -1., -1., -1., 1., 1., 1., 1.]);
        assert_eq!(lengths.to_vec::<i64>().unwrap(), [1, 0, 2]);
    }

    #[test]
    fn what_cannot_be_padded_is_an_error() {
        let pad = pad_collate(0);
        assert!(pad.collate(vec![Tensor::zeros([2, 2], ()), Tensor::zeros([2, 3], ())]).is_err());
        assert!(pad.collate(vec![Tensor::zeros((), ())]).is_err());
        assert!(pad.collate(vec![Tensor::zeros(2, ()), Tensor::zeros((), ())]).is_err());
        assert!(pad.collate(Vec::<Tensor>::new()).is_err());
    }
}
