//! Parts of a data set.

use crate::dataset::out_of_range;
use crate::{Collate, Dataset, Result};
use orkest_core::Generator;
use orkest_core::random::with_default_generator;
use std::sync::Arc;

/// Some items of a data set, by their indices.
#[derive(Clone, Debug)]
pub struct Subset<D> {
    dataset: D,
    indices: Vec<usize>,
}

impl<D: Dataset> Subset<D> {
    /// The items at `indices`, in this order; an index may appear more than once.
    ///
    /// # Panics
    /// If an index is out of range.
    #[track_caller]
    pub fn new(dataset: D, indices: impl Into<Vec<usize>>) -> Subset<D> {
        let (indices, len) = (indices.into(), dataset.len());
        if let Some(index) = indices.iter().find(|&&i| i >= len) {
            panic!("Subset: index {index} is out of range for a data set of {len} items");
        }
        Subset { dataset, indices }
    }

    /// Which items of the whole these are.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }

    /// The whole.
    pub fn dataset(&self) -> &D {
        &self.dataset
    }

    /// Which item of the whole an item is.
    fn at(&self, index: usize) -> Result<usize> {
        self.indices.get(index).copied().ok_or_else(|| out_of_range("Subset", index, self.indices.len()))
    }
}

impl<D: Dataset> Dataset for Subset<D> {
    type Item = D::Item;

    fn len(&self) -> usize {
        self.indices.len()
    }

    fn get(&self, index: usize) -> Result<D::Item> {
        self.dataset.get(self.at(index)?)
    }

    fn batch(&self, indices: &[usize]) -> Result<<D::Item as Collate>::Batch>
    where
        D::Item: Collate,
    {
        let indices: Vec<usize> = indices.iter().map(|&i| self.at(i)).collect::<Result<_>>()?;
        self.dataset.batch(&indices)
    }
}

/// Splits at random into parts of the given lengths, or of the given fractions. The parts are those of PyTorch for the same
/// [`manual_seed`](orkest_core::manual_seed).
///
/// ```
/// use orkest_core::manual_seed;
/// use orkest_data::{Dataset, ListDataset, random_split};
/// manual_seed(1);
/// let numbers: Vec<i64> = (0..10).collect();
/// let [train, test] = random_split(ListDataset::new(numbers), [0.9, 0.1]);
/// assert_eq!(train.indices(), [5, 6, 1, 2, 0, 8, 9, 3, 7]);
/// assert_eq!(test.indices(), [4]);
/// ```
///
/// # Panics
/// If the lengths do not add up to the data set's, or the fractions to 1.
#[track_caller]
pub fn random_split<D: Dataset, const N: usize>(
    dataset: D,
    lengths: impl SplitLengths<N>,
) -> [Subset<Arc<D>>; N] {
    let lengths = lengths.lengths(dataset.len());
    let order = with_default_generator(|g| g.randperm(dataset.len()));
    split(dataset, lengths, order)
}

/// [`random_split`] with a generator of its own.
///
/// # Panics
/// If the lengths do not add up to the data set's, or the fractions to 1.
#[track_caller]
pub fn random_split_with<D: Dataset, const N: usize>(
    dataset: D,
    lengths: impl SplitLengths<N>,
    generator: &mut Generator,
) -> [Subset<Arc<D>>; N] {
    let lengths = lengths.lengths(dataset.len());
    let order = generator.randperm(dataset.len());
    split(dataset, lengths, order)
}

fn split<D: Dataset, const N: usize>(
    dataset: D,
    lengths: [usize; N],
    order: Vec<i64>,
) -> [Subset<Arc<D>>; N] {
    let dataset = Arc::new(dataset);
    let mut order = order.into_iter().map(|i| i as usize);
    lengths.map(|len| Subset { dataset: dataset.clone(), indices: order.by_ref().take(len).collect() })
}

/// How [`random_split`] is told the sizes of its parts: numbers of items or fractions.
pub trait SplitLengths<const N: usize> {
    /// The numbers of items for a data set of `len`.
    ///
    /// # Panics
    /// If they do not add up.
    #[track_caller]
    fn lengths(self, len: usize) -> [usize; N];
}

impl<const N: usize> SplitLengths<N> for [usize; N] {
    #[track_caller]
    fn lengths(self, len: usize) -> [usize; N] {
        assert!(
            self.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)) == Some(len),
            "random_split: the lengths {self:?} do not add up to the {len} items of the data set"
        );
        self
    }
}

impl<const N: usize> SplitLengths<N> for [f64; N] {
    /// Each part gets its share rounded down; what is left goes to the first parts, one item each.
    #[track_caller]
    fn lengths(self, len: usize) -> [usize; N] {
        let sum: f64 = self.iter().sum();
        assert!(
            (sum - 1.0).abs() <= 1e-9 && self.iter().all(|f| (0.0..=1.0).contains(f)),
            "random_split: the fractions {self:?} must lie between 0 and 1 and add up to 1"
        );
        let mut lengths = self.map(|fraction| (len as f64 * fraction).floor() as usize);
        let left = len.saturating_sub(lengths.iter().sum());
        for i in 0..left {
            lengths[i % N] += 1;
        }
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ListDataset;
    use orkest_core::{Generator, with_generator};

    #[test]
    fn the_parts_are_pytorchs() {
        // torch.manual_seed(1), then these splits of range(10) one after the other
        with_generator(&mut Generator::new(1), || {
            let numbers = || ListDataset::new((0..10).collect::<Vec<i64>>());
            let [a, b] = random_split(numbers(), [0.9, 0.1]);
            assert_eq!((a.indices(), b.indices()), (&[5, 6, 1, 2, 0, 8, 9, 3, 7][..], &[4][..]));
            let [a, b, c] = random_split(numbers(), [0.5, 0.3, 0.2]);
            assert_eq!(a.indices(), [2, 3, 1, 8, 9]);
            assert_eq!((b.indices(), c.indices()), (&[0, 6, 7][..], &[4, 5][..]));
            let [a, b, c] = random_split(numbers(), [3, 3, 4]);
            assert_eq!(a.indices(), [2, 8, 1]);
            assert_eq!((b.indices(), c.indices()), (&[5, 6, 9][..], &[3, 7, 0, 4][..]));
            let [a, b, c] = random_split(numbers(), [1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]);
            assert_eq!(a.indices(), [2, 9, 8, 3]);
            assert_eq!((b.indices(), c.indices()), (&[6, 7, 1][..], &[0, 4, 5][..]));
            assert_eq!(a.get(1).unwrap(), 9);
        });
    }

    #[test]
    #[should_panic = "do not add up to the 3 items"]
    fn lengths_must_add_up() {
        let _ = random_split(ListDataset::new([1i64, 2, 3]), [1, 1]);
    }

    #[test]
    #[should_panic = "add up to 1"]
    fn fractions_must_add_up() {
        let _ = random_split(ListDataset::new([1i64, 2, 3]), [0.5, 0.6]);
    }

    #[test]
    fn a_subset_of_a_subset_reads_the_whole() {
        let whole = ListDataset::new([10i64, 20, 30, 40]);
        let part = Subset::new(Subset::new(whole, [3, 1, 0]), [2, 0]);
        assert_eq!(part.batch(&[0, 1]).unwrap().to_vec::<i64>().unwrap(), [10, 40]);
    }
}
