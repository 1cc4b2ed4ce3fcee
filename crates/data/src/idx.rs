//! IDX, the format of MNIST and its relatives: a type, the sizes, the numbers.

use crate::file;
use flate2::read::MultiGzDecoder;
use orkest_core::{DType, Device, Error, Result, Tensor};
use std::io::Read;
use std::path::Path;

/// Reads an IDX file, gzipped or not: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte.gz` and so on.
///
/// Bytes become u8, signed bytes and 16-bit integers i32, everything else its own type.
///
/// ```no_run
/// use orkest_core::DType;
/// use orkest_data::{TensorDataset, read_idx};
/// let images = read_idx("train-images-idx3-ubyte.gz")?.to_dtype(DType::F32) / 255.0; // [60000, 28, 28]
/// let labels = read_idx("train-labels-idx1-ubyte.gz")?.to_dtype(DType::I64); // [60000]
/// let dataset = TensorDataset::new((images, labels));
/// # Ok::<(), orkest_core::Error>(())
/// ```
///
/// # Errors
/// If the file cannot be read, is no IDX file, or is shorter or longer than its sizes say.
pub fn read_idx(path: impl AsRef<Path>) -> Result<Tensor> {
    let path = path.as_ref();
    parse_idx(&file::read_raw(path)?, &path.display().to_string())
}

/// Deflate packs at most this many bytes into one.
const MOST_PER_BYTE: usize = 1032;

/// The tensor in the bytes of an IDX file, gzipped or not; `name` is for messages.
///
/// # Errors
/// If they are no IDX file, or fewer or more than the sizes say.
pub fn parse_idx(bytes: &[u8], name: &str) -> Result<Tensor> {
    let error = |problem: String| Error::Data(format!("{name}: {problem}"));
    let gzip = file::is_gzip(bytes);
    let mut reader: Box<dyn Read + '_> = match gzip {
        true => Box::new(MultiGzDecoder::new(bytes)),
        false => Box::new(bytes),
    };
    let mut read = |buffer: &mut [u8]| {
        reader.read_exact(buffer).map_err(|e| error(format!("no IDX file: its head cannot be read: {e}")))
    };

    let mut magic = [0; 4];
    read(&mut magic)?;
    let [0, 0, kind, rank] = magic else {
        return Err(error("no IDX file: it does not begin with two zero bytes".into()));
    };
    let (dtype, width) = match kind {
        0x08 => (DType::U8, 1),
        0x09 => (DType::I32, 1),
        0x0b => (DType::I32, 2),
        0x0c => (DType::I32, 4),
        0x0d => (DType::F32, 4),
        0x0e => (DType::F64, 8),
        _ => return Err(error(format!("no IDX file: there is no element type {kind:#04x}"))),
    };
    if usize::from(rank) > orkest_core::MAX_RANK {
        return Err(error(format!("{rank} dimensions; at most {} are possible", orkest_core::MAX_RANK)));
    }
    let mut shape = Vec::new();
    for _ in 0..rank {
        let mut size = [0; 4];
        read(&mut size)?;
        shape.push(u32::from_be_bytes(size) as usize);
    }

    // No memory is taken on the word of a damaged file.
    let expected = shape.iter().try_fold(width, |product: usize, &n| product.checked_mul(n));
    let head = 4 + 4 * shape.len();
    let most = if gzip { bytes.len().saturating_mul(MOST_PER_BYTE) } else { bytes.len() - head };
    let misfit = |found: String| {
        error(format!("sizes {shape:?} of {width} bytes each do not match the file, which has {found}"))
    };
    let Some(expected) = expected.filter(|&n| n <= most) else {
        let at_most = if gzip { "at most " } else { "" };
        return Err(misfit(format!("{at_most}{most} bytes of data")));
    };
    let mut data = Vec::with_capacity(expected);
    let mut rest = reader.take(expected as u64 + 1);
    rest.read_to_end(&mut data).map_err(|e| error(format!("damaged gzip file: {e}")))?;
    if data.len() != expected {
        let found = if data.len() > expected { "more".into() } else { format!("{} bytes", data.len()) };
        return Err(misfit(found));
    }
    native(&mut data, kind, width);
    Tensor::from_bytes(&data, &shape[..], dtype, &Device::cpu())
}

/// From big-endian numbers to those of this machine, widened where no dtype is as narrow.
fn native(data: &mut Vec<u8>, kind: u8, width: usize) {
    match kind {
        0x09 => *data = data.iter().flat_map(|&b| i32::from(b as i8).to_ne_bytes()).collect(),
        0x0b => {
            let wide = |pair: &[u8]| i32::from(i16::from_be_bytes([pair[0], pair[1]])).to_ne_bytes();
            *data = data.chunks_exact(2).flat_map(wide).collect();
        }
        _ if cfg!(target_endian = "little") => data.chunks_exact_mut(width).for_each(<[u8]>::reverse),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    const BYTES: [u8; 18] = [0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255];

    #[test]
    fn sizes_then_numbers() {
        for bytes in [BYTES.to_vec(), gzip(&BYTES)] {
            let x = parse_idx(&bytes, "x").unwrap();
            assert_eq!((x.shape(), x.dtype()), (&[2, 3].into(), DType::U8));
            assert_eq!(x.to_vec::<u8>().unwrap(), [1, 2, 3, 4, 5, 255]);
        }
    }

    #[test]
    fn numbers_are_big_endian() {
        let file = |kind: u8, data: &[u8], n: u8| [&[0, 0, kind, 1, 0, 0, 0, n], data].concat();
        let ints = |bytes: Vec<u8>| parse_idx(&bytes, "x").unwrap().to_vec::<i32>().unwrap();
        assert_eq!(ints(file(0x09, &[255, 1], 2)), [-1, 1]);
        assert_eq!(ints(file(0x0b, &[255, 254, 1, 0], 2)), [-2, 256]);
        assert_eq!(ints(file(0x0c, &[0, 0, 1, 2], 1)), [258]);
        let x = parse_idx(&file(0x0d, &1.5f32.to_be_bytes(), 1), "x").unwrap();
        assert_eq!(x.to_vec::<f32>().unwrap(), [1.5]);
        let x = parse_idx(&file(0x0e, &(-2.5f64).to_be_bytes(), 1), "x").unwrap();
        assert_eq!(x.to_vec::<f64>().unwrap(), [-2.5]);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_takes_no_memory() {
        let message = |bytes: &[u8]| parse_idx(bytes, "x").unwrap_err().to_string();
        assert!(message(&BYTES[..17]).contains("[2, 3] of 1 bytes each do not match the file, which has 5"));
        assert!(message(&[&BYTES[..], &[0]].concat()).contains("which has more"));
        assert!(message(&gzip(&BYTES[..17])).contains("which has 5 bytes"));
        assert!(message(b"PK\x03\x04").contains("two zero bytes"));
        assert!(message(&[0, 0, 7, 1, 0, 0, 0, 0]).contains("no element type 0x07"));
        assert!(message(&[0, 0]).contains("head"));
        let huge = [0, 0, 8, 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255];
        assert!(message(&huge).contains("do not match"));
        assert!(message(&gzip(&[0, 0, 8, 2, 0, 255, 255, 255, 0, 0, 255, 255])).contains("at most"));
    }
}
