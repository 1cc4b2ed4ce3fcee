//! How items become a batch: PyTorch's `default_collate` as a trait of the items.

use crate::Result;
use orkest_core::{Tensor, bf16, f16};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Items that can be joined into a batch.
///
/// Tensors are stacked, numbers and bools become a tensor of their type (`usize` becomes i64), strings a vector of strings, a
/// tuple of items a tuple of batches, and lists and maps of items are turned inside out. For everything else, implement
/// this trait or give the loader a function: [`DataLoader::with_collate`](crate::DataLoader::with_collate).
///
/// ```
/// use orkest_data::Collate;
/// let (numbers, names) = Collate::collate(vec![(1.5f32, "a"), (2.5, "b")])?;
/// assert_eq!(numbers.to_vec::<f32>()?, [1.5, 2.5]);
/// assert_eq!(names, ["a", "b"]);
/// # Ok::<(), orkest_data::BoxError>(())
/// ```
pub trait Collate: Sized {
    /// Several items in one.
    type Batch;

    /// Joins items into a batch.
    ///
    /// # Errors
    /// If they do not fit together, such as tensors of different shapes.
    fn collate(items: Vec<Self>) -> Result<Self::Batch>;
}

impl Collate for Tensor {
    type Batch = Tensor;

    fn collate(items: Vec<Tensor>) -> Result<Tensor> {
        let first = items.first().ok_or("a batch needs at least one tensor")?;
        if let Some(other) = items.iter().find(|t| t.shape() != first.shape()) {
            return Err(format!(
                "tensors of shapes {} and {} cannot be stacked into a batch; pad_collate pads sequences",
                first.shape(),
                other.shape()
            )
            .into());
        }
        if let Some(other) = items.iter().find(|t| t.dtype() != first.dtype() || t.device() != first.device())
        {
            return Err(format!(
                "a batch of {} on {} and {} on {}",
                first.dtype(),
                first.device(),
                other.dtype(),
                other.device()
            )
            .into());
        }
        Ok(Tensor::stack(&items, 0))
    }
}

macro_rules! numbers {
    ($($t:ty),*) => {$(
        impl Collate for $t {
            type Batch = Tensor;
            fn collate(items: Vec<$t>) -> Result<Tensor> {
                Ok(Tensor::from_slice(&items, items.len(), ()))
            }
        }
    )*};
}
numbers!(f32, f64, f16, bf16, i64, i32, u8, bool);

impl Collate for usize {
    type Batch = Tensor;

    fn collate(items: Vec<usize>) -> Result<Tensor> {
        let numbers: Vec<i64> = items.into_iter().map(i64::try_from).collect::<Result<_, _>>()?;
        Collate::collate(numbers)
    }
}

impl Collate for String {
    type Batch = Vec<String>;

    fn collate(items: Vec<String>) -> Result<Vec<String>> {
        Ok(items)
    }
}

impl Collate for &'static str {
    type Batch = Vec<&'static str>;

    fn collate(items: Vec<&'static str>) -> Result<Vec<&'static str>> {
        Ok(items)
    }
}

macro_rules! tuples {
    ($(($($t:ident $column:ident $batch:ident),*)),*) => {$(
        impl<$($t: Collate),*> Collate for ($($t,)*) {
            type Batch = ($($t::Batch,)*);
            fn collate(items: Vec<Self>) -> Result<Self::Batch> {
                $(let mut $column = Vec::with_capacity(items.len());)*
                for ($($batch,)*) in items {
                    $($column.push($batch);)*
                }
                Ok(($($t::collate($column)?,)*))
            }
        }
    )*};
}
tuples!(
    (A a x),
    (A a x, B b y),
    (A a x, B b y, C c z),
    (A a x, B b y, C c z, D d w),
    (A a x, B b y, C c z, D d w, E e v),
    (A a x, B b y, C c z, D d w, E e v, F f u)
);

impl<T: Collate, const N: usize> Collate for [T; N] {
    type Batch = [T::Batch; N];

    fn collate(items: Vec<[T; N]>) -> Result<[T::Batch; N]> {
        let columns = items.into_iter().map(Vec::from).collect();
        let batches: Vec<T::Batch> = if N == 0 { Vec::new() } else { Collate::collate(columns)? };
        batches.try_into().map_err(|_| "a batch needs at least one item".into())
    }
}

impl<T: Collate> Collate for Vec<T> {
    type Batch = Vec<T::Batch>;

    fn collate(items: Vec<Vec<T>>) -> Result<Vec<T::Batch>> {
        let len = items.first().map_or(0, Vec::len);
        let mut columns: Vec<Vec<T>> = (0..len).map(|_| Vec::with_capacity(items.len())).collect();
        for item in items {
            if item.len() != len {
                return Err(format!(
                    "lists of {len} and {} items cannot be joined into a batch; pad_collate pads sequences",
                    item.len()
                )
                .into());
            }
            columns.iter_mut().zip(item).for_each(|(column, x)| column.push(x));
        }
        columns.into_iter().map(T::collate).collect()
    }
}

/// Every map must have the first one's keys.
fn collate_maps<K: Eq + Hash + Ord + Clone, T: Collate>(
    items: Vec<impl IntoIterator<Item = (K, T)>>,
) -> Result<Vec<(K, T::Batch)>> {
    let count = items.len();
    let mut columns: BTreeMap<K, Vec<T>> = BTreeMap::new();
    for (i, item) in items.into_iter().enumerate() {
        for (key, value) in item {
            match columns.get_mut(&key) {
                Some(column) => column.push(value),
                None if i == 0 => drop(columns.insert(key, vec![value])),
                None => return Err("the maps of a batch have different keys".into()),
            }
        }
    }
    if columns.values().any(|column| column.len() != count) {
        return Err("the maps of a batch have different keys".into());
    }
    columns.into_iter().map(|(key, column)| Ok((key, T::collate(column)?))).collect()
}

impl<K: Eq + Hash + Ord + Clone, T: Collate> Collate for BTreeMap<K, T> {
    type Batch = BTreeMap<K, T::Batch>;

    fn collate(items: Vec<Self>) -> Result<Self::Batch> {
        Ok(collate_maps(items)?.into_iter().collect())
    }
}

impl<K: Eq + Hash + Ord + Clone, T: Collate> Collate for HashMap<K, T> {
    type Batch = HashMap<K, T::Batch>;

    fn collate(items: Vec<Self>) -> Result<Self::Batch> {
        Ok(collate_maps(items)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::DType;

    #[test]
    fn numbers_keep_their_type_and_usize_becomes_i64() {
        assert_eq!(Collate::collate(vec![1.0f64]).unwrap().dtype(), DType::F64);
        assert_eq!(Collate::collate(vec![true]).unwrap().dtype(), DType::Bool);
        assert_eq!(Collate::collate(vec![1usize, 2]).unwrap().to_vec::<i64>().unwrap(), [1, 2]);
    }

    #[test]
    fn lists_and_maps_are_turned_inside_out() {
        let batch = Collate::collate(vec![[(1i64, "a"), (2, "b")], [(3, "c"), (4, "d")]]).unwrap();
        assert_eq!(batch[1].0.to_vec::<i64>().unwrap(), [2, 4]);
        assert_eq!(batch[1].1, ["b", "d"]);
        let item = |x: i64| HashMap::from([("x", x), ("y", -x)]);
        let batch = Collate::collate(vec![item(1), item(2)]).unwrap();
        assert_eq!(batch["y"].to_vec::<i64>().unwrap(), [-1, -2]);
    }

    #[test]
    fn what_does_not_fit_together_is_an_error() {
        let tensors = vec![Tensor::zeros(2, ()), Tensor::zeros(3, ())];
        assert!(Tensor::collate(tensors).unwrap_err().to_string().contains("[2] and [3]"));
        let dtypes = vec![Tensor::zeros(2, ()), Tensor::zeros(2, DType::I64)];
        assert!(Tensor::collate(dtypes).unwrap_err().to_string().contains("a batch of f32"));
        assert!(Collate::collate(vec![vec![1i64], vec![]]).is_err());
        let maps = vec![BTreeMap::from([(1, 1i64)]), BTreeMap::from([(2, 1)])];
        assert!(Collate::collate(maps).is_err());
        let maps = vec![BTreeMap::from([(1, 1i64), (2, 1)]), BTreeMap::from([(2, 1)])];
        assert!(Collate::collate(maps).is_err());
    }
}
