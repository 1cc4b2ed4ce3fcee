//! Plain text files.

use crate::file;
use orkest_core::{Error, Result};
use std::path::Path;

/// A text file as it is, without a byte order mark; gzipped or not.
///
/// # Errors
/// If the file cannot be read or is not UTF-8.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let bytes = file::read(path)?;
    match std::str::from_utf8(file::without_bom(&bytes)) {
        Ok(text) => Ok(text.to_owned()),
        Err(e) => {
            let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            Err(Error::Data(format!("{}, line {line}: is not valid UTF-8 text", path.display())))
        }
    }
}

/// The lines of a text file, without their ends (`\n` or `\r\n`); gzipped or not.
///
/// # Errors
/// If the file cannot be read or is not UTF-8.
pub fn read_lines(path: impl AsRef<Path>) -> Result<Vec<String>> {
    Ok(read_text(path)?.lines().map(str::to_owned).collect())
}
