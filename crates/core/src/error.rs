//! Errors of the world outside the program: files, devices, memory, data that must be looked at.
//!
//! Mistakes in the program itself (shapes, dtypes, devices that do not match) panic at the user's line instead.

use crate::dtype::DType;
use std::fmt;
use std::panic::Location;

/// What can go wrong at run time through no fault of the calling code.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A device that is not there, or does not work.
    Device(String),
    /// Memory for a tensor could not be had.
    OutOfMemory {
        /// Bytes asked for; 0 where the device does not say.
        bytes: usize,
        /// The device that has no more.
        device: String,
    },
    /// An index outside its dimension, found while an operation ran.
    IndexOutOfRange {
        /// The operation.
        op: &'static str,
        /// The offending index.
        index: i64,
        /// The size of the indexed dimension.
        size: usize,
        /// The line of the program that asked for the operation, where the device found out later.
        at: Option<&'static Location<'static>>,
    },
    /// The device cannot run this operation or dtype.
    Unsupported {
        /// The operation.
        op: String,
        /// The dtype it was asked for.
        dtype: DType,
        /// The device.
        device: String,
    },
    /// Values or bytes that do not fit what was asked of them.
    Data(String),
    /// A file that cannot be read, written or understood.
    Io(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Device(message) | Error::Data(message) | Error::Io(message) => f.write_str(message),
            Error::OutOfMemory { bytes: 0, device } => write!(f, "out of memory on {device}"),
            Error::OutOfMemory { bytes, device } => {
                write!(f, "out of memory: {bytes} bytes could not be allocated on {device}")
            }
            Error::IndexOutOfRange { op, index, size, at } => {
                write!(f, "{op}: index {index} is out of range for a dimension of size {size}")?;
                at.map_or(Ok(()), |at| write!(f, " (called at {}:{})", at.file(), at.line()))
            }
            Error::Unsupported { op, dtype, device } => {
                write!(f, "{op} is not available for {dtype} on {device}")
            }
        }
    }
}

/// As [`Display`](fmt::Display): this is what a `main` that returns an error prints, and `unwrap`.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

/// A [`std::result::Result`] with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
