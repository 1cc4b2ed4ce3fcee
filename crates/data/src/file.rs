//! Files, gzipped or not.

use flate2::read::MultiGzDecoder;
use orkest_core::{Error, Result};
use std::io::Read;
use std::path::Path;

/// The content of a file; gzip is recognised by its first bytes.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = read_raw(path)?;
    if !is_gzip(&bytes) {
        return Ok(bytes);
    }
    let mut content = Vec::new();
    let unpacked = MultiGzDecoder::new(&bytes[..]).read_to_end(&mut content);
    unpacked.map_err(|e| Error::Io(format!("{}: damaged gzip file: {e}", path.display())))?;
    Ok(content)
}

/// The bytes as they lie there.
pub(crate) fn read_raw(path: &Path) -> Result<Vec<u8>> {
    if path.is_dir() {
        return Err(Error::Io(format!("{}: is a directory; a file is expected", path.display())));
    }
    std::fs::read(path).map_err(|e| Error::Io(format!("{}: cannot be read: {e}", path.display())))
}

pub(crate) fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// Without a byte order mark, which is no part of the text.
pub(crate) fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}
