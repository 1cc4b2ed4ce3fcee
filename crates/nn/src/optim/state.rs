//! The state of an optimizer as data: what `state_dict()` gives, and how it lies in a file.

use super::group::{Groups, OptionValue};
use super::{Memory, mismatch};
use crate::StateDict;
use orkest_core::{DType, Device, Error, Param, Result, Shape, Tensor};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Everything an optimizer needs to continue, structured as PyTorch's `optimizer.state_dict()`.
#[derive(Clone, Debug, Default)]
pub struct OptimizerState {
    /// For each parameter that has been stepped, by its number: `step`, `exp_avg` and so on.
    pub state: BTreeMap<usize, BTreeMap<String, Tensor>>,
    /// The groups with their options.
    pub param_groups: Vec<GroupState>,
}

/// The options of a group, and the numbers of its parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupState {
    /// The options by name.
    pub options: BTreeMap<String, OptionValue>,
    /// Keys of [`OptimizerState::state`].
    pub params: Vec<usize>,
}

/// Where a file's metadata holds the groups.
const GROUPS: &str = "param_groups";

/// Options of PyTorch's optimizers that choose an implementation and change no number.
const IMPLEMENTATION: [&str; 4] = ["foreach", "capturable", "differentiable", "fused"];

/// Adam's, where it is redundant, but also NAdam's and RAdam's.
const DECOUPLED: &str = "decoupled_weight_decay";

impl OptimizerState {
    /// Writes one safetensors file: tensors `state.{number}.{name}`, and the groups as JSON in the metadata.
    ///
    /// # Errors
    /// If the file cannot be written; a file that was there before is left alone then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.to_state_dict().save(path)
    }

    /// Reads a file that [`OptimizerState::save`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read or holds something else.
    pub fn load(path: impl AsRef<Path>) -> Result<OptimizerState> {
        let path = path.as_ref();
        let named = |e| data(format!("{}: {e}", path.display()));
        OptimizerState::from_state_dict(&StateDict::load(path)?).map_err(named)
    }

    /// The state as named tensors with the groups in the metadata.
    pub fn to_state_dict(&self) -> StateDict {
        let mut dict = StateDict::new();
        for (i, entries) in &self.state {
            for (name, tensor) in entries {
                dict.insert(format!("state.{i}.{name}"), tensor.clone());
            }
        }
        let groups = Value::Array(self.param_groups.iter().map(GroupState::to_json).collect());
        dict.metadata.insert(GROUPS.to_owned(), groups.to_string());
        dict
    }

    /// The state from what [`OptimizerState::to_state_dict`] gave.
    ///
    /// # Errors
    /// If the groups are missing or something is not understood.
    pub fn from_state_dict(dict: &StateDict) -> Result<OptimizerState> {
        let text = dict
            .metadata
            .get(GROUPS)
            .ok_or_else(|| data("no state of an optimizer: there are no param_groups"))?;
        let groups: Vec<Value> =
            serde_json::from_str(text).map_err(|e| data(format!("param_groups: {e}")))?;
        let param_groups = groups.iter().map(GroupState::from_json).collect::<Result<_>>()?;
        let mut state: BTreeMap<usize, BTreeMap<String, Tensor>> = BTreeMap::new();
        for (key, tensor) in dict.iter() {
            let place = key.strip_prefix("state.").and_then(|place| place.split_once('.'));
            let place = place.and_then(|(i, name)| Some((i.parse().ok()?, name)));
            let (i, name) =
                place.ok_or_else(|| data(format!("tensor {key:?} is no state of a parameter")))?;
            state.entry(i).or_default().insert(name.to_owned(), tensor.clone());
        }
        Ok(OptimizerState { state, param_groups })
    }
}

impl GroupState {
    fn to_json(&self) -> Value {
        let value = |option: &OptionValue| match *option {
            OptionValue::Number(x) => number(x),
            OptionValue::Pair(a, b) => Value::Array(vec![number(a), number(b)]),
            OptionValue::Triple(a, b, c) => Value::Array(vec![number(a), number(b), number(c)]),
            OptionValue::Name(name) => Value::String(name.to_owned()),
            OptionValue::Flag(flag) => Value::Bool(flag),
        };
        let mut json: Map<String, Value> =
            self.options.iter().map(|(name, v)| (name.clone(), value(v))).collect();
        json.insert("params".to_owned(), Value::from(self.params.clone()));
        Value::Object(json)
    }

    fn from_json(json: &Value) -> Result<GroupState> {
        let json = json.as_object().ok_or_else(|| data(format!("param_groups: {json} is no group")))?;
        let mut group = GroupState::default();
        for (name, value) in json {
            let option = match value {
                Value::Array(ids) if name == "params" => {
                    let ids = ids.iter().map(|id| id.as_u64().and_then(|id| usize::try_from(id).ok()));
                    group.params =
                        ids.collect::<Option<_>>().ok_or_else(|| data(format!("params: {value}")))?;
                    continue;
                }
                Value::Null => continue,
                _ if IMPLEMENTATION.contains(&name.as_str()) => continue,
                Value::Bool(flag) => Some(OptionValue::Flag(*flag)),
                Value::Array(list) => match list.iter().map(as_number).collect::<Option<Vec<_>>>().as_deref()
                {
                    Some(&[a, b]) => Some(OptionValue::Pair(a, b)),
                    Some(&[a, b, c]) => Some(OptionValue::Triple(a, b, c)),
                    _ => None,
                },
                Value::String(name) if OptionValue::from_name(name).is_some() => OptionValue::from_name(name),
                other => as_number(other).map(OptionValue::Number),
            };
            let option = option.ok_or_else(|| data(format!("param_groups: {name} is {value}")))?;
            group.options.insert(name.clone(), option);
        }
        Ok(group)
    }
}

/// A number as JSON, which has no infinities: they are text.
pub(crate) fn number(x: f64) -> Value {
    serde_json::Number::from_f64(x).map_or_else(|| Value::String(x.to_string()), Value::Number)
}

/// A number that [`number`] wrote.
pub(crate) fn as_number(json: &Value) -> Option<f64> {
    json.as_f64().or_else(|| json.as_str()?.parse().ok())
}

fn data(message: impl Into<String>) -> Error {
    Error::Data(message.into())
}

/// A count of steps, as it is stored.
pub(super) fn count(steps: u64) -> Tensor {
    Tensor::full((), steps as i64, (DType::I64, &Device::cpu()))
}

/// A number, as it is stored.
pub(super) fn scalar(x: f64) -> Tensor {
    Tensor::full((), x, (DType::F64, &Device::cpu()))
}

/// What is saved about one parameter, while it is taken over.
pub(super) struct Saved<'a> {
    param: &'a Param,
    number: usize,
    tensors: &'a BTreeMap<String, Tensor>,
    used: BTreeSet<&'static str>,
    problems: &'a mut Vec<String>,
}

impl Saved<'_> {
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor like the parameter, on its device and in its dtype.
    pub fn tensor(&mut self, name: &'static str) -> Tensor {
        let value = self.param.value();
        let tensor = self.shaped(name, *value.shape(), "the parameter");
        tensor.unwrap_or(value)
    }

    /// A tensor of this shape, on the parameter's device and in its dtype. `whose` shape that is goes into the message.
    pub fn shaped(&mut self, name: &'static str, shape: Shape, whose: &str) -> Option<Tensor> {
        let value = self.param.value();
        match self.find(name) {
            Some(t) if *t.shape() == shape && t.dtype().is_float() => {
                match t.detach().to_dtype(value.dtype()).try_to(value.device()) {
                    Ok(t) => return Some(t),
                    Err(e) => self.problem(name, &e.to_string()),
                }
            }
            Some(t) => self
                .problem(name, &format!("is {} {}, {whose} {} {shape}", t.dtype(), t.shape(), value.dtype())),
            None => self.problem(name, "is missing"),
        }
        None
    }

    /// The sizes of the parameter.
    pub fn shape(&self) -> Shape {
        self.param.shape()
    }

    /// A tensor of any shape and dtype, on the parameter's device.
    pub fn any(&mut self, name: &'static str) -> Option<Tensor> {
        let moved = self.find(name).map(|t| t.detach().try_to(self.param.value().device()));
        match moved {
            Some(Ok(tensor)) => return Some(tensor),
            Some(Err(e)) => self.problem(name, &e.to_string()),
            None => self.problem(name, "is missing"),
        }
        None
    }

    /// A number.
    pub fn scalar(&mut self, name: &'static str) -> f64 {
        match self.find(name).map(|t| t.item()) {
            Some(Ok(x)) => return x,
            Some(Err(e)) => self.problem(name, &e.to_string()),
            None => self.problem(name, "is missing"),
        }
        0.0
    }

    /// A count of steps; PyTorch stores it as f32.
    pub fn count(&mut self, name: &'static str) -> u64 {
        let Some(tensor) = self.find(name) else {
            self.problem(name, "is missing");
            return 0;
        };
        let count = match tensor.dtype() {
            DType::I64 => tensor.item_as::<i64>().ok().and_then(|n| u64::try_from(n).ok()),
            _ => tensor.item().ok().filter(|n| *n >= 0.0 && n.fract() == 0.0).map(|n| n as u64),
        };
        count.unwrap_or_else(|| {
            self.problem(name, "is no count");
            0
        })
    }

    fn find(&mut self, name: &'static str) -> Option<Tensor> {
        self.used.insert(name);
        self.tensors.get(name).cloned()
    }

    fn problem(&mut self, name: &str, what: &str) {
        self.problems.push(format!("state.{}.{name} {what} ({:?})", self.number, self.param));
    }

    fn report_unused(&mut self) {
        for name in
            self.tensors.keys().filter(|name| !self.used.contains(name.as_str())).cloned().collect::<Vec<_>>()
        {
            self.problem(&name, "means nothing to this optimizer");
        }
    }
}

/// The state of an optimizer. Parameters are numbered in the order of the groups.
pub(super) fn collect<M: Memory>(groups: &Groups, memories: &[Option<M>]) -> OptimizerState {
    let entries =
        |m: &M| m.to_tensors().into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    let state: BTreeMap<usize, BTreeMap<String, Tensor>> =
        memories.iter().enumerate().filter_map(|(i, m)| Some((i, entries(m.as_ref()?)))).collect();
    let mut next = 0..;
    let param_groups = groups.list().iter().map(|group| GroupState {
        options: group.options(),
        params: next.by_ref().take(group.params().len()).collect(),
    });
    let param_groups = param_groups.collect();
    OptimizerState {
        state: state.into_iter().filter(|(_, entries)| !entries.is_empty()).collect(),
        param_groups,
    }
}

/// The memories from a state; the groups take over its options. Changes nothing if anything does not fit.
pub(super) fn restore<M: Memory>(groups: &mut Groups, saved: &OptimizerState) -> Result<Vec<Option<M>>> {
    let mut problems = Vec::new();
    let known = |options: &BTreeMap<String, OptionValue>| {
        let mut options = options.clone();
        if !groups.knows(DECOUPLED) {
            options.remove(DECOUPLED);
        }
        options
    };
    let (found, expected) = (saved.param_groups.len(), groups.list().len());
    if found != expected {
        problems.push(format!("it has {found} parameter groups, the optimizer {expected}"));
    }
    for (i, (from, to)) in saved.param_groups.iter().zip(groups.list()).enumerate() {
        let (found, expected) = (from.params.len(), to.params().len());
        if found != expected {
            problems.push(format!("group {i} has {found} parameters, the optimizer's {expected}"));
        }
        if let Err(message) = groups.check(&known(&from.options)) {
            problems.push(format!("group {i}: {message}"));
        }
    }
    let numbers: BTreeSet<usize> = saved.param_groups.iter().flat_map(|g| g.params.iter().copied()).collect();
    if numbers.len() != saved.param_groups.iter().map(|g| g.params.len()).sum::<usize>() {
        problems.push("a parameter is listed twice".to_owned());
    }
    problems.extend(
        saved
            .state
            .keys()
            .filter(|i| !numbers.contains(i))
            .map(|i| format!("state.{i} belongs to no group's parameter")),
    );
    if !problems.is_empty() {
        return Err(mismatch(&problems));
    }

    let mut next_groups = Vec::new();
    let mut memories = Vec::new();
    for (from, to) in saved.param_groups.iter().zip(groups.list()) {
        let mut group = to.clone();
        group.replace_options(known(&from.options));
        for (&number, param) in from.params.iter().zip(to.params()) {
            memories.push(saved.state.get(&number).map(|tensors| {
                let used = BTreeSet::new();
                let mut saved = Saved { param, number, tensors, used, problems: &mut problems };
                let memory = M::from_tensors(&mut saved, &group);
                saved.report_unused();
                memory
            }));
        }
        next_groups.push(group);
    }
    if !problems.is_empty() {
        return Err(mismatch(&problems));
    }
    groups.list_mut().clone_from_slice(&next_groups);
    Ok(memories)
}
