//! Weights from files of `torch.save`.
//!
//! Such a file is a zip archive with a pickle, which names the tensors, and the numbers of each storage; before PyTorch 1.6 it was a
//! row of pickles with the numbers behind. Both may come from anywhere: nothing in a pickle is executed, and sizes are checked
//! against the file before memory is taken.

mod pickle;
mod zip;

use crate::StateDict;
use memmap2::Mmap;
use orkest_core::{DType, Device, Error, MAX_RANK, Result, Tensor};
use pickle::{Pickle, Value};
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::Path;

/// Reads a file of `torch.save` onto the CPU: a state dict, or a checkpoint with state dicts inside (`.pt`, `.pth`, `.bin`).
///
/// Names within dicts and lists are joined by dots: `checkpoint["model"]["fc.weight"]` is `model.fc.weight` here, and
/// [`StateDict::part`] takes a dict out. Numbers and texts of a checkpoint are in the [metadata](StateDict::metadata). Tensors that
/// share memory in the file share it here. Classes are not needed and not run.
///
/// ```no_run
/// use orkest_nn::{Linear, Module, load_pytorch};
/// let model = Linear::new(4, 2);
/// model.load_state_dict(&load_pytorch("model.pth")?, true)?; // of torch.save(model.state_dict(), "model.pth")
///
/// let checkpoint = load_pytorch("checkpoint.pt")?; // of torch.save({"model": model.state_dict(), "epoch": 3}, ..)
/// model.load_state_dict(&checkpoint.part("model"), true)?;
/// assert_eq!(checkpoint.metadata["epoch"], "3");
/// # Ok::<(), orkest_core::Error>(())
/// ```
///
/// # Errors
/// If the file cannot be read, is no file of `torch.save` or is damaged, holds a whole model instead of its state dict, or a tensor
/// of a kind that there is not here.
pub fn load_pytorch(path: impl AsRef<Path>) -> Result<StateDict> {
    let path = path.as_ref();
    let in_file = |e: &dyn fmt::Display| Error::Io(format!("{}: {e}", path.display()));
    let file = File::open(path).map_err(|e| in_file(&e))?;
    let metadata = file.metadata().map_err(|e| in_file(&e))?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err(in_file(&"not a file of torch.save"));
    }
    // SAFETY: the map is read-only and gone when this function returns. Another process that cuts the file short meanwhile can end
    // this one with SIGBUS, as with every memory-mapped file.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| in_file(&e))?;
    StateDict::from_pytorch(&map).map_err(|e| in_file(&e))
}

/// How a file of `torch.save` begins: as a zip archive, or as a pickle of version 2 with a number of 10 bytes.
pub(crate) fn is_pytorch(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(MAGIC)
}

/// The first pickle of an old file, the number 0x1950a86a20f9469cfc6c.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

impl StateDict {
    /// From the bytes of a file of `torch.save`, onto the CPU: see [`load_pytorch`].
    ///
    /// # Errors
    /// As [`load_pytorch`].
    pub fn from_pytorch(bytes: &[u8]) -> Result<StateDict> {
        let mut pickle = Pickle::default();
        let (root, storages) = match bytes {
            zip if zip.starts_with(b"PK\x03\x04") => archive(zip, &mut pickle)?,
            old if old.starts_with(MAGIC) => row_of_pickles(old, &mut pickle)?,
            _ => return Err(Error::Data("not a file of torch.save".into())),
        };
        Reader {
            pickle: &pickle,
            storages,
            tensors: HashMap::new(),
            waiting: Vec::new(),
            values: bytes.len(),
            letters: bytes.len().saturating_mul(LONGEST_NAMES),
            unreadable: None,
            state: StateDict::new(),
        }
        .read(root)
    }
}

fn invalid(what: impl fmt::Display) -> Error {
    Error::Data(format!("not a valid file of torch.save: {what}"))
}

/// What the pickle is about and the bytes of each storage, of a zip archive.
fn archive<'a>(bytes: &'a [u8], pickle: &mut Pickle<'a>) -> Result<(Value<'a>, HashMap<&'a str, &'a [u8]>)> {
    let entries = zip::entries(bytes).map_err(invalid)?;
    // All entries lie in one folder, which is called as the file was when it was written.
    let find = |name: &str| {
        entries.iter().find_map(|(path, content)| {
            let folder = path.strip_suffix(name)?.strip_suffix('/')?;
            (!folder.contains('/')).then_some((folder, *content))
        })
    };
    let (folder, program) = find("data.pkl").ok_or_else(|| invalid("the archive has no data.pkl"))?;
    if find("byteorder").is_some_and(|(_, order)| order.trim_ascii() != b"little") {
        return Err(invalid("its numbers are big-endian"));
    }
    let (root, _) = pickle::parse(program, pickle).map_err(invalid)?;
    let key = |path: &'a str| path.strip_prefix(folder)?.strip_prefix("/data/");
    let storages = entries.iter().filter_map(|(path, content)| Some((key(path)?, *content))).collect();
    Ok((root, storages))
}

/// The same of a file from before PyTorch 1.6.
fn row_of_pickles<'a>(
    bytes: &'a [u8],
    pickle: &mut Pickle<'a>,
) -> Result<(Value<'a>, HashMap<&'a str, &'a [u8]>)> {
    let mut rest = &bytes[MAGIC.len()..];
    let mut next = |pickle: &mut Pickle<'a>| {
        let (value, len) = pickle::parse(rest, pickle).map_err(invalid)?;
        rest = &rest[len..];
        Ok::<_, Error>(value)
    };
    next(pickle)?; // the version
    next(pickle)?; // byte order and sizes of the machine, which are the same everywhere
    let root = next(pickle)?;
    let Value::List(keys) = next(pickle)? else { return Err(invalid("the list of storages is missing")) };
    let mut sizes = HashMap::new();
    for &id in &pickle.outside {
        let id = storage_id(pickle, id)?;
        sizes.insert(id.key, id.dtype.size());
    }
    let mut storages = HashMap::new();
    for &key in &pickle.lists[keys] {
        let Value::Text(key) = key else { return Err(invalid("the list of storages is damaged")) };
        let size = *sizes.get(key).ok_or_else(|| invalid(format!("storage {key:?} is used by no tensor")))?;
        let cut = || invalid(format!("storage {key:?} is cut short"));
        let (count, numbers) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let len = usize::try_from(u64::from_le_bytes(*count)).ok().and_then(|n| n.checked_mul(size));
        let (content, behind) = len.and_then(|len| numbers.split_at_checked(len)).ok_or_else(cut)?;
        storages.insert(key, content);
        rest = behind;
    }
    Ok((root, storages))
}

/// What a tensor says about the storage it lies in.
struct StorageId<'a> {
    dtype: DType,
    key: &'a str,
    numel: usize,
}

/// From `("storage", torch.FloatStorage, "0", "cpu", 1024)`.
fn storage_id<'a>(pickle: &Pickle<'a>, id: Value<'a>) -> Result<StorageId<'a>> {
    let damaged = || invalid("a storage is not described as one");
    let Value::List(list) = id else { return Err(damaged()) };
    // Behind these an old file has what part of another storage this one is: none has been written since PyTorch 0.4.
    let [_, Value::Name(class), Value::Text(key), _, Value::Int(numel), ref part @ ..] =
        pickle.lists[list][..]
    else {
        return Err(damaged());
    };
    if !matches!(part, [] | [Value::None]) {
        return Err(Error::Data(format!(
            "storage {key:?} is part of another, as PyTorch before 0.4 wrote it"
        )));
    }
    let (_, class) = pickle.names[class];
    let dtype = match class {
        "FloatStorage" => DType::F32,
        "DoubleStorage" => DType::F64,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ByteStorage" => DType::U8,
        "BoolStorage" => DType::Bool,
        _ => {
            return Err(Error::Data(format!(
                "a tensor lies in a torch.{class}, whose dtype there is not here"
            )));
        }
    };
    Ok(StorageId { dtype, key, numel: usize::try_from(numel).map_err(|_| damaged())? })
}

/// How many dicts and lists there may be inside each other.
const DEEPEST: usize = 64;

/// How many bytes of names a byte of a file may become: a name repeats those of all dicts around it.
const LONGEST_NAMES: usize = 64;

/// Walks through what a pickle made and collects the tensors.
struct Reader<'a, 'p> {
    pickle: &'p Pickle<'a>,
    storages: HashMap<&'a str, &'a [u8]>,
    /// Each storage once, so that tensors share it.
    tensors: HashMap<&'a str, Tensor>,
    /// Names and values that are still to be looked at, and how deep they lie.
    waiting: Vec<(String, Value<'a>, usize)>,
    /// How many values may still be met: a few lists inside each other could make a small file endless.
    values: usize,
    /// How long the names of all that are still to come may be.
    letters: usize,
    /// The first object of a Python class, by the number of its call.
    unreadable: Option<usize>,
    state: StateDict,
}

impl<'a> Reader<'a, '_> {
    fn read(mut self, root: Value<'a>) -> Result<StateDict> {
        let name = match root {
            Value::Dict(_) | Value::List(_) => String::new(),
            Value::Call(call) if self.is_tensor(call) => "tensor".into(),
            Value::Call(call) => return Err(self.object(call)),
            _ => return Err(invalid("there are no tensors in it")),
        };
        self.wait(name, root, 0)?;
        while let Some((name, value, depth)) = self.waiting.pop() {
            self.collect(name, value, depth)?;
        }
        match self.unreadable {
            Some(call) if self.state.is_empty() => Err(self.object(call)),
            _ => Ok(self.state),
        }
    }

    fn object(&self, call: usize) -> Error {
        let (module, class) = self.pickle.names[self.pickle.calls[call].0];
        Error::Data(format!(
            "the file holds an object of the Python class {module}.{class}; only its code could read it. Write its weights in \
             Python: torch.save(model.state_dict(), ..)"
        ))
    }

    fn is_tensor(&self, call: usize) -> bool {
        matches!(self.pickle.names[self.pickle.calls[call].0], ("torch._utils" | "torch._tensor", _))
    }

    fn wait(&mut self, name: String, value: Value<'a>, depth: usize) -> Result<()> {
        self.values = self.values.checked_sub(1).ok_or_else(|| invalid("it refers to itself"))?;
        self.letters =
            self.letters.checked_sub(name.len()).ok_or_else(|| invalid("its names are far too long"))?;
        if depth > DEEPEST {
            return Err(invalid(format!("it has more than {DEEPEST} dicts and lists inside each other")));
        }
        self.waiting.push((name, value, depth));
        Ok(())
    }

    /// Takes over a value; what is in it waits, the first on top.
    fn collect(&mut self, name: String, value: Value<'a>, depth: usize) -> Result<()> {
        let pickle = self.pickle;
        let inner =
            |key: &dyn fmt::Display| if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
        match value {
            Value::Dict(dict) => {
                for &(key, value) in pickle.dicts[dict].iter().rev() {
                    let key = match key {
                        Value::Text(key) => inner(&key),
                        Value::Int(key) => inner(&key),
                        _ => return Err(Error::Data(format!("{name}: a key is neither text nor a number"))),
                    };
                    self.wait(key, value, depth + 1)?;
                }
            }
            Value::List(list) => {
                for (i, &value) in pickle.lists[list].iter().enumerate().rev() {
                    self.wait(inner(&i), value, depth + 1)?;
                }
            }
            Value::Call(call) if self.is_tensor(call) => {
                let tensor = self.tensor(value).map_err(|e| Error::Data(format!("tensor {name:?}: {e}")))?;
                if self.state.contains(&name) {
                    return Err(Error::Data(format!("two tensors have the name {name:?}")));
                }
                self.state.insert(name, tensor);
            }
            Value::Bool(b) => self.note(name, b.to_string()),
            Value::Int(n) => self.note(name, n.to_string()),
            Value::Float(x) => self.note(name, x.to_string()),
            Value::Text(text) => self.note(name, text.to_string()),
            Value::Name(class) => {
                let (module, class) = pickle.names[class];
                self.note(name, format!("{module}.{class}"));
            }
            Value::Call(call) => {
                // torch.device, torch.Size and the like hold no tensors.
                if pickle.names[pickle.calls[call].0].0 != "torch" {
                    self.unreadable.get_or_insert(call);
                }
            }
            Value::None | Value::Other | Value::Outside(_) => {}
        }
        Ok(())
    }

    fn note(&mut self, name: String, text: String) {
        self.state.metadata.insert(name, text);
    }

    /// A tensor, from the call that would make it.
    fn tensor(&mut self, mut value: Value<'a>) -> Result<Tensor> {
        // A parameter is a call around that of its tensor; more than a few are none.
        for _ in 0..4 {
            let Value::Call(call) = value else { break };
            let (function, arguments) = self.pickle.calls[call];
            let Value::List(arguments) = arguments else { break };
            let arguments = &self.pickle.lists[arguments][..];
            match (self.pickle.names[function].1, arguments) {
                ("_rebuild_tensor" | "_rebuild_tensor_v2", [storage, offset, sizes, strides, ..]) => {
                    return self.view(*storage, *offset, *sizes, *strides);
                }
                ("_rebuild_parameter" | "_rebuild_parameter_with_state", [tensor, ..]) => value = *tensor,
                (name, _) => return Err(Error::Data(format!("what {name} makes cannot be read"))),
            }
        }
        Err(invalid("it is not described as a tensor"))
    }

    fn view(
        &mut self,
        storage: Value<'a>,
        offset: Value<'a>,
        sizes: Value<'a>,
        strides: Value<'a>,
    ) -> Result<Tensor> {
        let Value::Outside(id) = storage else { return Err(invalid("it has no storage")) };
        let id = storage_id(self.pickle, self.pickle.outside[id])?;
        let (sizes, strides) = (self.sizes(sizes)?, self.sizes(strides)?);
        let Value::Int(offset) = offset else { return Err(invalid("its offset is no number")) };
        if sizes.len() > MAX_RANK {
            return Err(invalid(format!("{} dimensions, the most here is {MAX_RANK}", sizes.len())));
        }
        // Sizes with strides of 0 need no memory, however large they are.
        let numel =
            sizes.iter().filter(|&&n| n > 0).try_fold(id.dtype.size(), |bytes, &n| bytes.checked_mul(n));
        if numel.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
            return Err(invalid(format!("sizes {sizes:?} are too large for any memory")));
        }
        if sizes.contains(&0) {
            return Ok(Tensor::zeros(sizes, id.dtype));
        }
        // Where the last element lies.
        let reach = sizes
            .iter()
            .zip(&strides)
            .try_fold(usize::try_from(offset).unwrap_or(usize::MAX), |at, (&n, &s)| {
                at.checked_add((n - 1).checked_mul(s)?)
            });
        if sizes.len() != strides.len() || reach.is_none_or(|last| last >= id.numel) {
            return Err(invalid(format!(
                "sizes {sizes:?} with strides {strides:?} from {offset} on do not fit a storage of {}",
                id.numel
            )));
        }
        Ok(self.storage(&id)?.as_strided(sizes, &strides, offset as usize))
    }

    fn storage(&mut self, id: &StorageId<'a>) -> Result<Tensor> {
        if let Some(tensor) = self.tensors.get(id.key) {
            if tensor.dtype() == id.dtype && tensor.numel() == id.numel {
                return Ok(tensor.clone());
            }
            return Err(Error::Data(format!("storage {:?} is used with different dtypes", id.key)));
        }
        let bytes =
            *self.storages.get(id.key).ok_or_else(|| invalid(format!("storage {:?} is missing", id.key)))?;
        let tensor = Tensor::from_bytes(bytes, id.numel, id.dtype, &Device::cpu())
            .map_err(|e| invalid(format!("storage {:?}: {e}", id.key)))?;
        self.tensors.insert(id.key, tensor.clone());
        Ok(tensor)
    }

    fn sizes(&self, value: Value<'a>) -> Result<Vec<usize>> {
        let size = |value: &Value<'a>| match *value {
            Value::Int(n) => usize::try_from(n).ok(),
            _ => None,
        };
        let sizes = match value {
            Value::List(list) => self.pickle.lists[list].iter().map(size).collect(),
            _ => None,
        };
        sizes.ok_or_else(|| invalid("its sizes are no numbers"))
    }
}
