//! What a data set is, and the simple ones: lists, several one after the other, items changed on the way.

use crate::{BoxError, Collate, Result};
use orkest_core::Error;
use std::fmt;
use std::sync::Arc;

/// Numbered items: samples with their labels, pictures in a folder, lines of a file.
///
/// ```
/// use orkest_data::{DataLoader, Dataset, Result};
///
/// /// Numbers and their squares.
/// struct Squares;
///
/// impl Dataset for Squares {
///     type Item = (f32, f32);
///
///     fn len(&self) -> usize {
///         100
///     }
///
///     fn get(&self, index: usize) -> Result<(f32, f32)> {
///         let x = index as f32;
///         Ok((x, x * x))
///     }
/// }
///
/// let loader = DataLoader::new(Squares).batch_size(20);
/// let (numbers, squares) = loader.iter().next().unwrap();
/// assert_eq!((numbers.shape(), squares.shape()), (&[20].into(), &[20].into()));
/// ```
#[allow(clippy::len_without_is_empty)]
pub trait Dataset: Send + Sync {
    /// A sample.
    type Item;

    /// The number of items.
    fn len(&self) -> usize;

    /// Reads an item; `index` is less than [`Dataset::len`].
    ///
    /// # Errors
    /// Whatever may go wrong: `?` works on every error. The loader passes it on and ends the epoch.
    fn get(&self, index: usize) -> Result<Self::Item>;

    /// Reads several items as a batch. Data sets that can do so faster than one by one do.
    ///
    /// # Errors
    /// If an item cannot be read, or the items do not fit together.
    fn batch(&self, indices: &[usize]) -> Result<<Self::Item as Collate>::Batch>
    where
        Self::Item: Collate,
    {
        Collate::collate(items(self, indices)?)
    }

    /// This set with `f` applied to every item that is read.
    ///
    /// ```
    /// # use orkest_data::{Dataset, ListDataset};
    /// let doubled = ListDataset::new(vec![1i64, 2, 3]).map(|x| Ok(2 * x));
    /// assert_eq!(doubled.get(2).unwrap(), 6);
    /// ```
    fn map<T, F: Fn(Self::Item) -> Result<T>>(self, f: F) -> Map<Self, F>
    where
        Self: Sized,
    {
        Map { dataset: self, f }
    }
}

/// Reads items one by one; an error says which item it was.
pub(crate) fn items<D: Dataset + ?Sized>(dataset: &D, indices: &[usize]) -> Result<Vec<D::Item>> {
    let read =
        |&index: &usize| dataset.get(index).map_err(|source| BoxError::from(ItemError { index, source }));
    indices.iter().map(read).collect()
}

/// For an index that is not below the length: a sampler of the user's own may give one.
pub(crate) fn out_of_range(op: &'static str, index: usize, size: usize) -> BoxError {
    Error::IndexOutOfRange { op, index: index as i64, size, at: None }.into()
}

/// An item that could not be read.
#[derive(Debug)]
pub(crate) struct ItemError {
    index: usize,
    pub source: BoxError,
}

impl fmt::Display for ItemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "item {}: {}", self.index, self.source)
    }
}

impl std::error::Error for ItemError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.source()
    }
}

macro_rules! forwarded {
    ($($pointer:ty),*) => {$(
        impl<D: Dataset + ?Sized> Dataset for $pointer {
            type Item = D::Item;

            fn len(&self) -> usize {
                (**self).len()
            }

            fn get(&self, index: usize) -> Result<D::Item> {
                (**self).get(index)
            }

            fn batch(&self, indices: &[usize]) -> Result<<D::Item as Collate>::Batch>
            where
                D::Item: Collate,
            {
                (**self).batch(indices)
            }
        }
    )*};
}
forwarded!(Arc<D>, Box<D>, &D);

/// A data set whose items [`Dataset::map`] changes when they are read.
#[derive(Clone, Debug)]
pub struct Map<D, F> {
    dataset: D,
    f: F,
}

impl<D: Dataset, T, F: Fn(D::Item) -> Result<T> + Send + Sync> Dataset for Map<D, F> {
    type Item = T;

    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn get(&self, index: usize) -> Result<T> {
        (self.f)(self.dataset.get(index)?)
    }
}

/// Items in memory.
#[derive(Clone, Debug)]
pub struct ListDataset<T>(Vec<T>);

impl<T> ListDataset<T> {
    /// A data set of these items.
    pub fn new(items: impl Into<Vec<T>>) -> ListDataset<T> {
        ListDataset(items.into())
    }
}

impl<T: Clone + Send + Sync> Dataset for ListDataset<T> {
    type Item = T;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, index: usize) -> Result<T> {
        self.0.get(index).cloned().ok_or_else(|| out_of_range("ListDataset", index, self.0.len()))
    }
}

/// Several data sets one after the other.
#[derive(Clone, Debug)]
pub struct ConcatDataset<D> {
    datasets: Vec<D>,
    /// Where each set ends.
    ends: Vec<usize>,
}

impl<D: Dataset> ConcatDataset<D> {
    /// The items of the first set, then those of the second, and so on.
    pub fn new(datasets: impl Into<Vec<D>>) -> ConcatDataset<D> {
        let datasets = datasets.into();
        let ends = datasets
            .iter()
            .scan(0, |end, d| {
                *end += d.len();
                Some(*end)
            })
            .collect();
        ConcatDataset { datasets, ends }
    }
}

impl<D: Dataset> Dataset for ConcatDataset<D> {
    type Item = D::Item;

    fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn get(&self, index: usize) -> Result<D::Item> {
        if index >= self.len() {
            return Err(out_of_range("ConcatDataset", index, self.len()));
        }
        let at = self.ends.partition_point(|&end| end <= index);
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        self.datasets[at].get(index - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_concatenation_finds_the_set_of_an_index() {
        let list = |items: &[i64]| ListDataset::new(items);
        let all = ConcatDataset::new([list(&[1, 2]), list(&[]), list(&[3]), list(&[4, 5])]);
        let items: Vec<i64> = (0..all.len()).map(|i| all.get(i).unwrap()).collect();
        assert_eq!(items, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn data_sets_of_one_item_type_can_be_mixed() {
        let boxed: Vec<Box<dyn Dataset<Item = i64>>> = vec![
            Box::new(ListDataset::new([1i64, 2])),
            Box::new(ListDataset::new(["one", "three"]).map(|word| Ok(word.len() as i64))),
        ];
        let all = ConcatDataset::new(boxed);
        assert_eq!(all.batch(&[3, 0]).unwrap().to_vec::<i64>().unwrap(), [5, 1]);
    }

    #[test]
    fn an_index_beyond_the_end_is_an_error() {
        let list = ListDataset::new([1i64, 2]);
        let message = |error: BoxError| error.to_string();
        assert!(message(list.get(2).unwrap_err()).contains("ListDataset: index 2 is out of range"));
        assert!(message(ConcatDataset::new([list.clone()]).get(2).unwrap_err()).contains("ConcatDataset"));
        let part = crate::Subset::new(list, [1]);
        assert!(message(part.get(1).unwrap_err()).contains("Subset: index 1 is out of range"));
        assert!(message(part.batch(&[0, 1]).unwrap_err()).contains("Subset: index 1 is out of range"));
    }

    #[test]
    fn an_error_names_the_item() {
        let numbers = ListDataset::new(["1", "x"]).map(|text| Ok(text.parse::<i64>()?));
        let error = numbers.batch(&[0, 1]).unwrap_err().to_string();
        assert_eq!(error, "item 1: invalid digit found in string");
    }
}
