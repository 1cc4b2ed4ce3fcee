//! State dicts as [safetensors](https://github.com/huggingface/safetensors) files: 8 bytes of header length, a JSON header, the
//! bytes of the tensors.
//!
//! A file may come from anywhere: every number in its header is checked against the size of the file before memory is taken.

use crate::StateDict;
use crate::pytorch::is_pytorch;
use memmap2::Mmap;
use orkest_core::{DType, Device, Error, MAX_RANK, Result, Tensor, write_file};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// The format's own limit on its header.
const MAX_HEADER: usize = 100_000_000;

/// The fewest bytes that describe a tensor: `"":{"dtype":"U8","shape":[],"data_offsets":[0,1]}`.
const MIN_ENTRY: usize = 48;

/// Reads a safetensors file onto the CPU: [`StateDict::load`].
///
/// # Errors
/// If the file cannot be read or is no valid safetensors file.
pub fn load_safetensors(path: impl AsRef<Path>) -> Result<StateDict> {
    StateDict::load(path)
}

impl StateDict {
    /// Reads a safetensors file onto the CPU, tensors in the order of the file. The file is mapped into memory, not read as a whole.
    ///
    /// # Errors
    /// If the file cannot be read, is no valid safetensors file, or holds dtypes that tensors here cannot have. The message names
    /// the file, and the tensor where there is one.
    pub fn load(path: impl AsRef<Path>) -> Result<StateDict> {
        let path = path.as_ref();
        let in_file = |e: &dyn std::fmt::Display| Error::Io(format!("{}: {e}", path.display()));
        let file = File::open(path).map_err(|e| in_file(&e))?;
        let metadata = file.metadata().map_err(|e| in_file(&e))?;
        if !metadata.is_file() {
            return Err(in_file(&"not a regular file"));
        }
        if metadata.len() == 0 {
            return Err(in_file(&"the file is empty, not a safetensors file"));
        }
        // SAFETY: the map is read-only and gone when this function returns. Another process that cuts the file short meanwhile can
        // end this one with SIGBUS, as with every memory-mapped file; `save` here never does that, it replaces files whole.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| in_file(&e))?;
        if is_pytorch(&map) {
            return Err(in_file(
                &"this is a file of torch.save, not a safetensors file; load_pytorch reads it",
            ));
        }
        StateDict::from_safetensors(&map).map_err(|e| in_file(&e))
    }

    /// From the bytes of a safetensors file, onto the CPU.
    ///
    /// # Errors
    /// If they are no valid safetensors file, or hold dtypes that tensors here cannot have.
    pub fn from_safetensors(bytes: &[u8]) -> Result<StateDict> {
        let (header, data) = split(bytes)?;
        let mut entries = parse_header(header)?;
        let mut state = StateDict::new();
        state.metadata = take_metadata(&mut entries)?;
        let mut infos = entries.into_iter().map(tensor_info).collect::<Result<Vec<_>>>()?;
        infos.sort_by_key(|(_, info)| info.data_offsets);
        let mut end = 0;
        for (name, info) in &infos {
            check_place(name, info, end, data.len())?;
            end = info.data_offsets.1;
        }
        if end != data.len() {
            return Err(invalid(format!("{} bytes after the last tensor belong to none", data.len() - end)));
        }
        for (name, info) in infos {
            let dtype = dtype_of(&name, info.dtype)?;
            let (start, end) = info.data_offsets;
            let tensor = Tensor::from_bytes(&data[start..end], info.shape, dtype, &Device::cpu())
                .map_err(|e| Error::Data(format!("tensor {name:?}: {e}")))?;
            state.insert(name, tensor);
        }
        Ok(state)
    }

    /// Writes a safetensors file, which PyTorch's `safetensors.torch.load_file` opens. An existing file is replaced at once: whoever
    /// reads it sees the old or the new one, also after a crash.
    ///
    /// Tensors that share memory are written under each of their names.
    ///
    /// # Errors
    /// If the file cannot be written, or a device reports what went wrong in an earlier operation. An existing file is kept then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_file(path, |out| self.write(out))
    }

    /// The bytes of a safetensors file.
    ///
    /// # Errors
    /// If a device reports what went wrong in an earlier operation.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write(&mut bytes).map_err(|e| Error::Io(e.to_string()))?;
        Ok(bytes)
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        // Wide elements first, as the format's own writer does it: then every tensor is aligned for whoever maps the file.
        let mut entries: Vec<(&str, &Tensor)> = self.iter().collect();
        entries.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size()));

        let mut metadata = self.metadata.clone();
        metadata.entry("format".into()).or_insert_with(|| "pt".into());
        let mut header = format!("{{\"__metadata__\":{}", serde_json::to_string(&metadata)?);
        let mut offset = 0;
        for (name, tensor) in &entries {
            if *name == "__metadata__" {
                return Err(io::Error::other("a tensor cannot be called __metadata__ in a safetensors file"));
            }
            let end = offset + tensor.numel() * tensor.dtype().size();
            let info = TensorInfo {
                dtype: file_dtype(tensor.dtype()),
                shape: tensor.shape().to_vec(),
                data_offsets: (offset, end),
            };
            header += &format!(",{}:{}", serde_json::to_string(name)?, serde_json::to_string(&info)?);
            offset = end;
        }
        header.push('}');
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        for (_, tensor) in entries {
            out.write_all(&tensor.to_bytes().map_err(io::Error::other)?)?;
        }
        Ok(())
    }
}

fn invalid(what: impl std::fmt::Display) -> Error {
    Error::Data(format!("not a valid safetensors file: {what}"))
}

fn invalid_tensor(name: &str, what: impl std::fmt::Display) -> Error {
    invalid(format!("tensor {name:?}: {what}"))
}

/// Header and data.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(invalid(format!("it has {} bytes, the header length alone takes 8", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > rest.len() as u64 {
        return Err(invalid(format!("a header of {length} bytes is announced, {} follow", rest.len())));
    }
    if length > MAX_HEADER as u64 {
        return Err(invalid(format!("a header of {length} bytes is over the limit of {MAX_HEADER}")));
    }
    Ok(rest.split_at(length as usize))
}

/// The header's entries. What can be seen without building anything is checked first, so that a small file cannot become a large
/// structure in memory.
fn parse_header(header: &[u8]) -> Result<BTreeMap<String, Value>> {
    let header = std::str::from_utf8(header).map_err(|e| invalid(format!("the header is not UTF-8: {e}")))?;
    let (mut depth, mut entries, mut items) = (0usize, 0usize, 0usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in header.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => (depth, items) = (depth + 1, 0),
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == 3 => items += 1,
            b':' if depth == 1 => entries += 1,
            _ => {}
        }
        if depth > 3 {
            return Err(invalid("the header is nested deeper than tensors need"));
        }
        if items >= MAX_RANK {
            return Err(invalid(format!(
                "a shape has more than {MAX_RANK} sizes, the most a tensor can have here"
            )));
        }
    }
    if entries > header.len() / MIN_ENTRY + 1 {
        return Err(invalid(format!("{entries} entries do not fit into a header of {} bytes", header.len())));
    }
    serde_json::from_str(header).map_err(|e| invalid(format!("the header is not what it should be: {e}")))
}

fn take_metadata(entries: &mut BTreeMap<String, Value>) -> Result<BTreeMap<String, String>> {
    match entries.remove("__metadata__") {
        None => Ok(BTreeMap::new()),
        Some(value) => serde_json::from_value(value).map_err(|e| invalid(format!("__metadata__: {e}"))),
    }
}

fn tensor_info((name, value): (String, Value)) -> Result<(String, TensorInfo)> {
    let info: TensorInfo = serde_json::from_value(value).map_err(|e| invalid_tensor(&name, e))?;
    if info.shape.len() > MAX_RANK {
        return Err(invalid_tensor(
            &name,
            format!("{} dimensions, the most here is {MAX_RANK}", info.shape.len()),
        ));
    }
    Ok((name, info))
}

/// Every tensor begins where the one before ends, lies in the file, and has as many bytes as its shape says.
fn check_place(name: &str, info: &TensorInfo, previous_end: usize, data: usize) -> Result<()> {
    let (start, end) = info.data_offsets;
    if end < start {
        return Err(invalid_tensor(name, format!("it ends at {end}, before its start at {start}")));
    }
    if end > data {
        return Err(invalid_tensor(name, format!("it ends at {end}, the file has {data} bytes of data")));
    }
    if start != previous_end {
        let what =
            if start < previous_end { "it overlaps the one before" } else { "there is a gap before it" };
        return Err(invalid_tensor(
            name,
            format!("{what}, which ends at {previous_end}: it starts at {start}"),
        ));
    }
    let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &d| n.checked_mul(d));
    if bits != (end - start).checked_mul(8) {
        let (dtype, shape) = (info.dtype, &info.shape);
        return Err(invalid_tensor(name, format!("{} bytes cannot be {dtype} {shape:?}", end - start)));
    }
    Ok(())
}

fn file_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::Bool => Dtype::BOOL,
        DType::U8 => Dtype::U8,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
    }
}

fn dtype_of(name: &str, dtype: Dtype) -> Result<DType> {
    DType::ALL.into_iter().find(|&d| file_dtype(d) == dtype).ok_or_else(|| {
        let known: Vec<String> = DType::ALL.into_iter().map(|d| file_dtype(d).to_string()).collect();
        Error::Data(format!(
            "tensor {name:?} is of dtype {dtype}, which cannot be read: known are {}",
            known.join(", ")
        ))
    })
}
