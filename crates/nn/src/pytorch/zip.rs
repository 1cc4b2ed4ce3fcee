//! Zip archives as `torch.save` writes them: entries that are stored, not compressed.

use std::collections::HashMap;

/// The entries of an archive by name, without copying.
///
/// # Errors
/// What is wrong with the archive.
pub(super) fn entries(file: &[u8]) -> Result<HashMap<&str, &[u8]>, String> {
    let (count, directory) = directory(file)?;
    let mut at = directory;
    let mut entries = HashMap::new();
    for _ in 0..count {
        let head = slice(file, at, 46)?;
        if !head.starts_with(b"PK\x01\x02") {
            return Err("its directory is damaged".into());
        }
        let [name_len, extra_len, comment_len] = [28, 30, 32].map(|i| u16_at(head, i) as usize);
        let name = std::str::from_utf8(slice(file, at + 46, name_len)?)
            .map_err(|_| "the name of an entry is not UTF-8".to_string())?;
        if u16_at(head, 10) != 0 {
            return Err(format!("entry {name:?} is compressed, which torch.save never does"));
        }
        let sizes = [24, 42].map(|i| u64::from(u32_at(head, i)));
        let [size, offset] = wide(sizes, u32_at(head, 20), slice(file, at + 46 + name_len, extra_len)?)?;
        entries.insert(name, content(file, name, size, offset)?);
        at += 46 + name_len + extra_len + comment_len;
    }
    Ok(entries)
}

/// The number of entries, and where the list of them begins.
fn directory(file: &[u8]) -> Result<(u64, usize), String> {
    const END: usize = 22;
    // The archive may end in a comment of up to 64 KiB.
    let first = file.len().saturating_sub(END + 0xffff);
    let end = (first..=file.len().saturating_sub(END))
        .rev()
        .find(|&at| file[at..].starts_with(b"PK\x05\x06"))
        .ok_or("its directory is missing: the file is cut short")?;
    let end_record = slice(file, end, END)?;
    let (count, offset) = (u16_at(end_record, 10), u32_at(end_record, 16));
    if count != u16::MAX && offset != u32::MAX {
        return Ok((u64::from(count), offset as usize));
    }
    // Too large for these fields: a record of 64-bit numbers stands before.
    let locator = slice(file, end.checked_sub(20).ok_or("its directory is damaged")?, 20)?;
    let record = slice(file, index(u64_at(locator, 8))?, 56)?;
    if !locator.starts_with(b"PK\x06\x07") || !record.starts_with(b"PK\x06\x06") {
        return Err("its directory is damaged".into());
    }
    Ok((u64_at(record, 32), index(u64_at(record, 48))?))
}

/// Size and offset of an entry, from its extra field where they do not fit in 32 bits.
fn wide(sizes: [u64; 2], packed: u32, mut extra: &[u8]) -> Result<[u64; 2], String> {
    if sizes.iter().all(|&n| n != u64::from(u32::MAX)) {
        return Ok(sizes);
    }
    while extra.len() >= 4 {
        let (id, len) = (u16_at(extra, 0), u16_at(extra, 2) as usize);
        let field = slice(extra, 4, len)?;
        extra = &extra[4 + len..];
        if id != 1 {
            continue;
        }
        // Only the numbers that do not fit are there, in this order: size, packed size, offset.
        let mut numbers = field.chunks_exact(8).map(|n| u64_at(n, 0));
        let mut next = |n: u64| if n == u64::from(u32::MAX) { numbers.next() } else { Some(n) };
        let (size, _, offset) = (next(sizes[0]), next(u64::from(packed)), next(sizes[1]));
        return Ok([size.ok_or("its directory is damaged")?, offset.ok_or("its directory is damaged")?]);
    }
    Err("its directory is damaged".into())
}

fn content<'a>(file: &'a [u8], name: &str, size: u64, offset: u64) -> Result<&'a [u8], String> {
    let cut = |e: String| format!("entry {name:?}: {e}");
    let offset = index(offset).map_err(cut)?;
    let head = slice(file, offset, 30).map_err(cut)?;
    if !head.starts_with(b"PK\x03\x04") {
        return Err(cut("it is not where the directory says".into()));
    }
    let skipped = 30 + u16_at(head, 26) as usize + u16_at(head, 28) as usize;
    slice(file, offset + skipped, index(size).map_err(cut)?).map_err(cut)
}

fn slice(bytes: &[u8], start: usize, len: usize) -> Result<&[u8], String> {
    let end = start.checked_add(len);
    end.and_then(|end| bytes.get(start..end)).ok_or_else(|| {
        format!(
            "{len} bytes are expected at {start}, but there are {} in all: the file is cut short",
            bytes.len()
        )
    })
}

fn index(n: u64) -> Result<usize, String> {
    usize::try_from(n).map_err(|_| format!("{n} is no place in this file"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
