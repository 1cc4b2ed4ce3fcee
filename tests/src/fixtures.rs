//! Reading what `parity/generate.py` wrote.

use orkest_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// The cases of a folder and the tensors they mention.
pub struct Fixtures {
    /// In the order of the file.
    pub cases: Vec<Case>,
    tensors: HashMap<String, Tensor>,
}

/// One expected result of PyTorch's.
pub struct Case {
    /// The operation and a number.
    pub name: String,
    /// What to call: an entry of [`crate::operations`], followed by `/` and more words where there are several tables of cases.
    pub op: String,
    /// The arguments that are no tensors.
    pub args: Value,
    /// The operands.
    pub inputs: Vec<Input>,
    /// What comes out.
    pub outputs: Vec<Expected>,
    /// The gradient of every input, if gradients are part of the case; `None` is zero.
    pub grads: Vec<Option<String>>,
    /// What this case is allowed beyond the table.
    pub tolerance: Value,
}

/// An operand.
pub struct Input {
    key: String,
    view: Vec<Value>,
    /// Whether it collects a gradient.
    pub grad: bool,
}

/// An expected output.
pub struct Expected {
    /// Its value.
    pub key: String,
    /// The gradient that the backward pass starts from.
    pub from: Option<String>,
}

impl Case {
    /// The entry of [`crate::operations`].
    pub fn base_op(&self) -> &str {
        self.op.split('/').next().unwrap_or_default()
    }
}

impl Fixtures {
    /// Reads a folder.
    ///
    /// # Errors
    /// If a file is missing or not what `generate.py` writes.
    pub fn read(dir: &Path) -> Result<Fixtures, String> {
        let read = |name: &str| {
            std::fs::read(dir.join(name)).map_err(|e| format!("{}: {e}", dir.join(name).display()))
        };
        let cases: Vec<Value> =
            serde_json::from_slice(&read("cases.json")?).map_err(|e| format!("cases.json: {e}"))?;
        let bytes = read("tensors.safetensors")?;
        let stored = SafeTensors::deserialize(&bytes).map_err(|e| format!("tensors.safetensors: {e}"))?;
        let host = Device::reference();
        let mut tensors = HashMap::new();
        for (key, view) in stored.iter() {
            let tensor = Tensor::from_bytes(view.data(), view.shape(), dtype(view.dtype())?, &host)
                .map_err(|e| format!("tensor {key}: {e}"))?;
            tensors.insert(key.to_string(), tensor);
        }
        Ok(Fixtures {
            cases: cases.iter().map(case).collect::<Option<_>>().ok_or("cases.json: malformed")?,
            tensors,
        })
    }

    /// A stored tensor, on the reference device.
    ///
    /// # Panics
    /// If there is none: the folder is damaged.
    pub fn tensor(&self, key: &str) -> Tensor {
        self.tensors.get(key).unwrap_or_else(|| panic!("fixtures: no tensor {key}")).clone()
    }

    /// An operand on `device`, with its strides, as a leaf if it collects a gradient.
    ///
    /// # Errors
    /// If the device cannot hold it.
    pub fn input(&self, input: &Input, device: &Device) -> Result<Tensor, orkest_core::Error> {
        let mut x = self.tensor(&input.key).try_to(device)?;
        for view in &input.view {
            x = apply_view(&x, view);
        }
        Ok(if input.grad { x.detach().requires_grad_(true) } else { x })
    }
}

/// `DIR/cases.json`'s `["permute", [1, 0]]` and its kind.
fn apply_view(x: &Tensor, view: &Value) -> Tensor {
    let numbers = |v: &Value| -> Vec<isize> {
        v.as_array().unwrap().iter().map(|n| n.as_i64().unwrap() as isize).collect()
    };
    let n = |i: usize| view[i].as_i64().unwrap() as usize;
    match view[0].as_str() {
        Some("permute") => x.permute(&numbers(&view[1])[..]),
        Some("flip") => x.flip(&numbers(&view[1])),
        Some("expand") => x.expand(&numbers(&view[1])[..]),
        Some("slice") => x.slice_dim(n(1) as isize, n(2), n(3), n(4)),
        other => panic!("fixtures: unknown view {other:?}"),
    }
}

fn case(v: &Value) -> Option<Case> {
    let text = |v: &Value| v.as_str().map(str::to_string);
    let input = |v: &Value| {
        let view = v["view"].as_array().cloned().unwrap_or_default();
        Some(Input { key: text(&v["key"])?, view, grad: v["grad"].as_bool().unwrap_or(false) })
    };
    let output = |v: &Value| Some(Expected { key: text(&v["key"])?, from: text(&v["from"]) });
    Some(Case {
        name: text(&v["name"])?,
        op: text(&v["op"])?,
        args: v["args"].clone(),
        inputs: v["inputs"].as_array()?.iter().map(input).collect::<Option<_>>()?,
        outputs: v["outputs"].as_array()?.iter().map(output).collect::<Option<_>>()?,
        grads: v["grads"].as_array().map(|g| g.iter().map(text).collect()).unwrap_or_default(),
        tolerance: v["tolerance"].clone(),
    })
}

fn dtype(dtype: Dtype) -> Result<DType, String> {
    Ok(match dtype {
        Dtype::BOOL => DType::Bool,
        Dtype::U8 => DType::U8,
        Dtype::I32 => DType::I32,
        Dtype::I64 => DType::I64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        other => return Err(format!("dtype {other:?} is not one of ours")),
    })
}
