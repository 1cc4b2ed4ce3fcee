//! Batches that can be moved to a device.

use orkest_core::{Device, Result, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A batch whose tensors can be moved: for [`DataLoader::device`](crate::DataLoader::device).
pub trait ToDevice: Sized {
    /// The same with every tensor on `device`.
    ///
    /// # Errors
    /// If the device has no memory left or cannot hold a dtype.
    fn to_device(self, device: &Device) -> Result<Self>;
}

impl ToDevice for Tensor {
    fn to_device(self, device: &Device) -> Result<Tensor> {
        self.try_to(device)
    }
}

macro_rules! stays {
    ($($t:ty),*) => {$(
        impl ToDevice for $t {
            fn to_device(self, _device: &Device) -> Result<$t> {
                Ok(self)
            }
        }
    )*};
}
stays!(String, &'static str, f32, f64, i64, i32, u8, usize, bool, ());

impl<T: ToDevice> ToDevice for Vec<T> {
    fn to_device(self, device: &Device) -> Result<Vec<T>> {
        self.into_iter().map(|x| x.to_device(device)).collect()
    }
}

impl<T: ToDevice, const N: usize> ToDevice for [T; N] {
    fn to_device(self, device: &Device) -> Result<[T; N]> {
        let mut moved = self.map(Some);
        for x in &mut moved {
            *x = x.take().map(|x| x.to_device(device)).transpose()?;
        }
        Ok(moved.map(|x| x.expect("every element was put back")))
    }
}

impl<T: ToDevice> ToDevice for Option<T> {
    fn to_device(self, device: &Device) -> Result<Option<T>> {
        self.map(|x| x.to_device(device)).transpose()
    }
}

impl<K: Ord, T: ToDevice> ToDevice for BTreeMap<K, T> {
    fn to_device(self, device: &Device) -> Result<Self> {
        self.into_iter().map(|(key, x)| Ok((key, x.to_device(device)?))).collect()
    }
}

impl<K: Eq + Hash, T: ToDevice> ToDevice for HashMap<K, T> {
    fn to_device(self, device: &Device) -> Result<Self> {
        self.into_iter().map(|(key, x)| Ok((key, x.to_device(device)?))).collect()
    }
}

macro_rules! tuples {
    ($(($($t:ident $x:ident),*)),*) => {$(
        impl<$($t: ToDevice),*> ToDevice for ($($t,)*) {
            fn to_device(self, device: &Device) -> Result<Self> {
                let ($($x,)*) = self;
                Ok(($($x.to_device(device)?,)*))
            }
        }
    )*};
}
tuples!(
    (A a),
    (A a, B b),
    (A a, B b, C c),
    (A a, B b, C c, D d),
    (A a, B b, C c, D d, E e),
    (A a, B b, C c, D d, E e, F f)
);
