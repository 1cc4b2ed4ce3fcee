//! What goes wrong on the device while nobody is looking, kept until the next read.

use orkest_core::{Caller, Error, Result, caller};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of the fault record that kernels write: `{ state, site, index, size }`, all 32 bits. State 0 is "none". The upper bits of the
/// site say what went wrong: none of them an index out of range, else one of the following.
pub(crate) const RECORD: usize = 16;
/// An integer that needs more than 32 bits.
const OVERFLOW: u32 = 1 << 30;
/// A division of integers by zero.
const DIVISION: u32 = 1 << 31;

/// The first thing that went wrong; every read reports it until it is cleared. The loss of the device stays.
#[derive(Default)]
pub(crate) struct ErrorSlot(Mutex<Slot>);

#[derive(Default)]
struct Slot {
    first: Option<Error>,
    lost: Option<Error>,
}

impl ErrorSlot {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record(&self, error: Error) {
        self.lock().first.get_or_insert(error);
    }

    pub(crate) fn record_loss(&self, error: Error) {
        self.lock().lost.get_or_insert(error);
    }

    pub(crate) fn clear(&self) {
        self.lock().first = None;
    }

    pub(crate) fn check(&self) -> Result<()> {
        let slot = self.lock();
        // What follows from the loss of the device says less than the loss itself.
        slot.lost.as_ref().or(slot.first.as_ref()).map_or(Ok(()), |e| Err(e.clone()))
    }

    /// What wgpu reports about something that was asked of it without a wish to hear about errors.
    pub(crate) fn record_uncaptured(&self, device: &str, error: &wgpu::Error) {
        let noticed = caller().map_or_else(String::new, |c| format!(" (noticed during {c})"));
        self.record(match error {
            wgpu::Error::OutOfMemory { .. } => {
                Error::OutOfMemory { bytes: 0, device: format!("{device}{noticed}") }
            }
            e => Error::Device(format!("{device}: {e}{noticed}")),
        });
    }
}

/// Who launched kernels that check indices. A kernel carries the number of its site, and hands it back when an index is bad.
#[derive(Default)]
pub(crate) struct Sites(Mutex<Table>);

/// Grows with the lines of the program that index, not with its steps.
#[derive(Default)]
struct Table {
    sites: Vec<(&'static str, Option<Caller>)>,
    numbers: HashMap<(&'static str, Option<Caller>), u32>,
}

impl Sites {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the operation that this thread is running, `op` to the backend.
    pub(crate) fn number(&self, op: &'static str) -> u32 {
        let mut table = self.lock();
        let Table { sites, numbers } = &mut *table;
        let site = (op, caller());
        *numbers.entry(site).or_insert_with(|| {
            sites.push(site);
            sites.len() as u32 - 1
        })
    }

    /// The error that a kernel's record describes.
    pub(crate) fn error(&self, record: [u32; 4]) -> Option<Error> {
        let [state, site, index, size] = record;
        if state == 0 {
            return None;
        }
        let number = site & (OVERFLOW - 1);
        let (op, caller) =
            self.lock().sites.get(number as usize).copied().unwrap_or(("an indexing operation", None));
        let name = || caller.map_or_else(|| op.to_string(), |c| c.to_string());
        if site & OVERFLOW != 0 {
            return Some(Error::Data(format!(
                "{}: a result does not fit: i64 tensors are held as 32-bit integers on a wgpu device; \
                 convert with .to_dtype(DType::F32) or move to the CPU first",
                name()
            )));
        }
        if site & DIVISION != 0 {
            return Some(Error::Data(format!("{}: division by zero", name())));
        }
        Some(Error::IndexOutOfRange {
            op: caller.map_or(op, |c| c.op),
            index: i64::from(index as i32),
            size: size as usize,
            at: caller.map(|c| c.at),
        })
    }
}

/// How many launches could have recorded a fault, and how many of those a read has seen the outcome of.
#[derive(Default)]
pub(crate) struct Checked(AtomicU64);

impl Checked {
    pub(crate) fn all_of(&self, launches: u64) -> bool {
        self.0.load(Relaxed) >= launches
    }

    pub(crate) fn now(&self, launches: u64) {
        self.0.fetch_max(launches, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> Error {
        Error::Device(text.into())
    }

    #[test]
    fn the_first_error_stays_until_it_is_cleared_and_a_loss_for_ever() {
        let slot = ErrorSlot::default();
        assert_eq!(slot.check(), Ok(()));
        slot.record(device("first"));
        slot.record(device("second"));
        assert_eq!(slot.check(), Err(device("first")));
        slot.clear();
        assert_eq!(slot.check(), Ok(()));
        slot.record(device("a consequence"));
        slot.record_loss(device("lost"));
        assert_eq!(slot.check(), Err(device("lost")));
        slot.clear();
        assert_eq!(slot.check(), Err(device("lost")));
    }

    #[test]
    fn a_site_has_one_number_and_gives_its_name_back() {
        let sites = Sites::default();
        let (gather, scatter) = (sites.number("gather"), sites.number("scatter"));
        assert_eq!(sites.number("gather"), gather);
        assert_ne!(gather, scatter);
        assert_eq!(sites.error([0, scatter, 7, 3]), None);
        let expected = Error::IndexOutOfRange { op: "scatter", index: -1, size: 3, at: None };
        assert_eq!(sites.error([1, scatter, u32::MAX, 3]), Some(expected));
        let text = sites.error([1, gather | OVERFLOW, 0, 0]).unwrap().to_string();
        assert!(text.starts_with("gather: a result does not fit"), "{text}");
        let text = sites.error([1, gather | DIVISION, 0, 0]).unwrap().to_string();
        assert_eq!(text, Error::Data("gather: division by zero".into()).to_string());
    }
}
