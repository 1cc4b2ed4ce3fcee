//! What a model is: a tree of parameters, buffers and switches that can be walked.
//!
//! [`derive(Module)`](derive@crate::Module) writes the two methods that need to know the fields, [`Module::visit`] and
//! [`Module::rebuild`]; everything else follows from them.

use crate::{Buffer, IncompatibleKeys, Mode, StateDict};
use orkest_core::{DType, Device, Error, Param, Result, Tensor};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// A model or a part of one: PyTorch's `nn.Module`.
///
/// Derive it; fields are parameters ([`Param`]), buffers ([`Buffer`]), other modules, containers of those (`Option`, `Vec`, arrays,
/// tuples, `BTreeMap`, `Box`, `Arc`) and plain settings. Names in state dicts are the field names joined by dots, elements of
/// containers count from 0, as in PyTorch.
///
/// ```
/// use orkest_core::Tensor;
/// use orkest_nn::{Layer, Linear, Module};
///
/// #[derive(Module)]
/// struct Mlp {
///     layers: Vec<Linear>,
///     head: Option<Linear>,
///     scale: f64,
/// }
///
/// let mlp = Mlp { layers: vec![Linear::new(2, 3), Linear::new(3, 3)], head: None, scale: 0.5 };
/// let names: Vec<String> = mlp.named_parameters().into_iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]);
/// ```
///
/// `forward` is a method of your own, with whatever arguments the model takes. A model of one tensor may implement [`Layer`] instead
/// and can then be part of a [`Sequential`](crate::Sequential).
///
/// Parameters are shared: a clone of a module (and what [`Module::to`] returns) is another handle to the same parameters, and an
/// optimizer holds the same ones. [`Module::deep_clone`] copies.
pub trait Module {
    /// The name of the type, as it is printed.
    fn type_name(&self) -> &str;

    /// What is printed between the parentheses: `in_features=128, out_features=256`.
    fn extra_repr(&self) -> String {
        String::new()
    }

    /// Shows every member to `visitor`, with its name, in the order of declaration.
    fn visit<'a>(&'a self, visitor: &mut Visitor<'_, 'a>);

    /// The same module with every member as `rebuild` gives it back.
    fn rebuild(&self, rebuild: &mut Rebuild) -> Self
    where
        Self: Sized;

    /// All parameters in the order of declaration, each once. This is what an optimizer takes.
    fn parameters(&self) -> Vec<Param> {
        self.named_parameters().into_iter().map(|(_, param)| param).collect()
    }

    /// All parameters with their names; a shared parameter is listed once, under its first name.
    ///
    /// Each parameter learns its name, which messages about wrong shapes then use.
    fn named_parameters(&self) -> Vec<(String, Param)> {
        let mut seen = HashSet::new();
        let mut parameters = Vec::new();
        walk(self, "", &mut |name, leaf| {
            if let Member::Param(param) = leaf
                && seen.insert(param.id())
            {
                param.set_name(&name);
                parameters.push((name, param.clone()));
            }
        });
        parameters
    }

    /// All buffers with their names; a shared buffer is listed once, under its first name.
    fn named_buffers(&self) -> Vec<(String, Buffer)> {
        let mut seen = HashSet::new();
        let mut buffers = Vec::new();
        walk(self, "", &mut |name, leaf| {
            if let Member::Buffer(buffer) = leaf
                && seen.insert(buffer.id())
            {
                buffers.push((name, buffer.clone()));
            }
        });
        buffers
    }

    /// The modules directly inside this one.
    fn children(&self) -> Vec<(String, &dyn Module)> {
        let mut children = Vec::new();
        self.visit(&mut |name, member| {
            if let Member::Module(child) = member {
                children.push((name.to_string(), child));
            }
        });
        children
    }

    /// All modules inside this one, however deep, each before those inside it.
    fn named_modules(&self) -> Vec<(String, &dyn Module)> {
        let mut modules = Vec::new();
        for (name, child) in self.children() {
            modules.push((name.clone(), child));
            modules
                .extend(child.named_modules().into_iter().map(|(inner, m)| (format!("{name}.{inner}"), m)));
        }
        modules
    }

    /// The number of elements of all parameters, shared ones counted once.
    fn num_parameters(&self) -> usize {
        self.parameters().iter().map(Param::numel).sum()
    }

    /// Forgets all gradients.
    fn zero_grad(&self) {
        self.parameters().iter().for_each(Param::zero_grad);
    }

    /// Freezes (`false`) or unfreezes all parameters.
    fn requires_grad_(&self, requires_grad: bool) {
        self.parameters().iter().for_each(|p| p.set_requires_grad(requires_grad));
    }

    /// Switches all layers inside to training mode, which is how they start.
    fn train(&self) {
        self.set_training(true);
    }

    /// Switches all layers inside to evaluation mode: dropout does nothing, normalisation uses what it has learned.
    fn eval(&self) {
        self.set_training(false);
    }

    /// [`Module::train`] or [`Module::eval`].
    fn set_training(&self, training: bool) {
        walk(self, "", &mut |_, leaf| {
            if let Member::Mode(mode) = leaf {
                mode.set_training(training);
            }
        });
    }

    /// True unless a layer inside was switched to evaluation mode.
    fn is_training(&self) -> bool {
        let mut training = true;
        walk(self, "", &mut |_, leaf| {
            if let Member::Mode(mode) = leaf {
                training &= mode.is_training();
            }
        });
        training
    }

    /// Moves all parameters, their gradients and all buffers to a device, in place, and returns the module for chaining:
    /// `let model = Net::new().to(&device);` and `model.to(&device);` do the same.
    ///
    /// An optimizer that was built before stays valid.
    ///
    /// # Panics
    /// If the device cannot hold the values; [`Module::try_to`] returns that as an error.
    #[track_caller]
    fn to(&self, device: &Device) -> Self
    where
        Self: Sized,
    {
        match self.try_to(device) {
            Ok(module) => module,
            Err(e) => panic!("to({device}): {e}"),
        }
    }

    /// [`Module::to`], with what can go wrong as an error.
    ///
    /// # Errors
    /// If the device cannot hold the values. Nothing has moved then.
    fn try_to(&self, device: &Device) -> Result<Self>
    where
        Self: Sized,
    {
        convert(self, &mut |tensor| tensor.try_to(device))?;
        Ok(self.rebuild(&mut Rebuild::shared()))
    }

    /// Converts all float parameters, their gradients and all float buffers, in place, and returns the module for chaining.
    ///
    /// # Panics
    /// If `dtype` is not a float.
    #[track_caller]
    fn to_dtype(&self, dtype: DType) -> Self
    where
        Self: Sized,
    {
        assert!(dtype.is_float(), "to_dtype: the parameters of a module are floats, not {dtype}");
        let mut to_dtype = |t: &Tensor| Ok(if t.dtype().is_float() { t.to_dtype(dtype) } else { t.clone() });
        match convert(self, &mut to_dtype) {
            Ok(()) => self.rebuild(&mut Rebuild::shared()),
            Err(e) => panic!("to_dtype({dtype}): {e}"),
        }
    }

    /// A model with parameters, buffers and switches of its own, equal to these. What is shared inside stays shared inside.
    fn deep_clone(&self) -> Self
    where
        Self: Sized,
    {
        self.rebuild(&mut Rebuild::copied())
    }

    /// The values of all parameters and buffers as they are now, in the order of declaration.
    ///
    /// A shared parameter appears under each of its names, its memory once. Training afterwards does not change the state dict.
    fn state_dict(&self) -> StateDict {
        slots(self).into_iter().map(|(name, slot)| (name, slot.value())).collect()
    }

    /// Takes over the values of a state dict, converted to the dtype and device of each parameter and buffer.
    ///
    /// With `strict`, the names must be exactly those of this module; otherwise the names that one side lacks are returned. A shared
    /// parameter is not missing if it is there under one of its names.
    ///
    /// # Errors
    /// If shapes differ or (with `strict`) names do, naming all of them. Nothing is changed then.
    fn load_state_dict(&self, state: &StateDict, strict: bool) -> Result<IncompatibleKeys> {
        let slots = slots(self);
        let found: HashSet<usize> =
            slots.iter().filter(|(name, _)| state.contains(name)).map(|(_, s)| s.id()).collect();
        let names: HashSet<&str> = slots.iter().map(|(name, _)| name.as_str()).collect();
        let missing =
            slots.iter().filter(|(_, slot)| !found.contains(&slot.id())).map(|(name, _)| name.clone());
        let unexpected = state.keys().filter(|key| !names.contains(key)).map(str::to_string);
        let keys = IncompatibleKeys { missing: missing.collect(), unexpected: unexpected.collect() };

        let pairs: Vec<_> =
            slots.iter().filter_map(|(name, slot)| Some((name, slot, state.get(name)?))).collect();
        let wrong: Vec<String> = pairs
            .iter()
            .filter(|(_, slot, value)| slot.value().shape() != value.shape())
            .map(|(name, slot, value)| {
                format!(
                    "{name} is {} in the model, {} in the state dict",
                    slot.value().shape(),
                    value.shape()
                )
            })
            .collect();
        if !wrong.is_empty() || strict && !keys.is_empty() {
            let mut message =
                format!("load_state_dict: the state dict does not fit the model {}:", self.type_name());
            for (what, list) in
                [("missing", &keys.missing), ("unexpected", &keys.unexpected), ("wrong shape", &wrong)]
            {
                if !list.is_empty() {
                    message += &format!("\n  {what}: {}", list.join(", "));
                }
            }
            return Err(Error::Data(message));
        }

        let fit = |(_, slot, value): &(&String, &Slot<'_>, &Tensor)| {
            let old = slot.value();
            value.detach().to_dtype(old.dtype()).try_to(old.device())
        };
        let fitted: Vec<Tensor> = pairs.iter().map(fit).collect::<Result<_>>()?;
        pairs.iter().zip(&fitted).for_each(|((_, slot, _), value)| slot.set(value));
        Ok(keys)
    }

    /// Writes the state dict to a safetensors file, see [`StateDict::save`].
    ///
    /// # Errors
    /// If the file cannot be written.
    fn save_safetensors(&self, path: impl AsRef<Path>) -> Result<()>
    where
        Self: Sized,
    {
        self.state_dict().save(path)
    }

    /// Reads a safetensors file into this module, see [`StateDict::load`] and [`Module::load_state_dict`].
    ///
    /// # Errors
    /// If the file cannot be read or does not fit. Nothing is changed then.
    fn load_safetensors(&self, path: impl AsRef<Path>, strict: bool) -> Result<IncompatibleKeys>
    where
        Self: Sized,
    {
        let state = StateDict::load(&path)?;
        self.load_state_dict(&state, strict)
            .map_err(|e| Error::Data(format!("{}: {e}", path.as_ref().display())))
    }
}

/// A module that maps one tensor to one tensor, and so can stand in a [`Sequential`](crate::Sequential).
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{Layer, Linear, Module, sequential};
///
/// #[derive(Module)]
/// struct Residual {
///     inner: Linear,
/// }
///
/// impl Layer for Residual {
///     fn forward(&self, input: &Tensor) -> Tensor {
///         input + self.inner.forward(input).relu()
///     }
/// }
///
/// let net = sequential![Residual { inner: Linear::new(4, 4) }, Linear::new(4, 2)];
/// assert_eq!(net.forward(&Tensor::zeros([1, 4], &Device::cpu())).shape(), &[1, 2]);
/// ```
pub trait Layer: Module {
    /// The output for `input`.
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor;

    /// As [`Layer::forward`], for an input that nobody needs afterwards, which elementwise layers overwrite where they can. This is how
    /// a [`Sequential`](crate::Sequential) passes on what its layers compute.
    #[track_caller]
    fn forward_owned(&self, input: Tensor) -> Tensor {
        self.forward(&input)
    }
}

/// What a module shows of itself.
#[derive(Clone, Copy)]
pub enum Member<'a> {
    /// A parameter.
    Param(&'a Param),
    /// A buffer.
    Buffer(&'a Buffer),
    /// A switch between training and evaluation.
    Mode(&'a Mode),
    /// A module inside.
    Module(&'a dyn Module),
}

/// What [`Module::visit`] calls with the name of each member.
pub type Visitor<'v, 'a> = dyn FnMut(&str, Member<'a>) + 'v;

/// How [`Module::rebuild`] gets the members of the new module: the same ones, or copies.
pub struct Rebuild {
    /// Copies made so far, so that what was shared stays shared. `None`: nothing is copied.
    copies: Option<Copies>,
}

#[derive(Default)]
struct Copies {
    params: HashMap<usize, Param>,
    buffers: HashMap<usize, Buffer>,
    modes: HashMap<usize, Mode>,
}

impl Rebuild {
    pub(crate) fn shared() -> Rebuild {
        Rebuild { copies: None }
    }

    fn copied() -> Rebuild {
        Rebuild { copies: Some(Copies::default()) }
    }

    pub(crate) fn param(&mut self, param: &Param) -> Param {
        let Some(copies) = &mut self.copies else { return param.clone() };
        let copy = || {
            let copy = Param::new(param.value());
            copy.set_requires_grad(param.requires_grad());
            copy.set_grad(param.grad());
            if let Some(name) = param.name() {
                copy.set_name(name);
            }
            copy
        };
        copies.params.entry(param.id()).or_insert_with(copy).clone()
    }

    pub(crate) fn buffer(&mut self, buffer: &Buffer) -> Buffer {
        let Some(copies) = &mut self.copies else { return buffer.clone() };
        let make = if buffer.is_persistent() { Buffer::new } else { Buffer::non_persistent };
        copies.buffers.entry(buffer.id()).or_insert_with(|| make(buffer.tensor())).clone()
    }

    pub(crate) fn mode(&mut self, mode: &Mode) -> Mode {
        let Some(copies) = &mut self.copies else { return mode.clone() };
        let copy = || {
            let copy = Mode::new();
            copy.set_training(mode.is_training());
            copy
        };
        copies.modes.entry(mode.id()).or_insert_with(copy).clone()
    }
}

// ---- walking -----------------------------------------------------------------------------------------------------------------

/// Shows everything that is not a module, however deep, with its full name.
fn walk<'a, M: Module + ?Sized>(module: &'a M, prefix: &str, see: &mut dyn FnMut(String, Member<'a>)) {
    module.visit(&mut |name, member| {
        let name = if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") };
        match member {
            Member::Module(child) => walk(child, &name, see),
            leaf => see(name, leaf),
        }
    });
}

/// A place in a model that a state dict has a value for.
#[derive(Clone, Copy)]
enum Slot<'a> {
    Param(&'a Param),
    Buffer(&'a Buffer),
}

impl Slot<'_> {
    fn id(&self) -> usize {
        match self {
            Slot::Param(p) => p.id(),
            Slot::Buffer(b) => b.id(),
        }
    }

    fn value(&self) -> Tensor {
        match self {
            Slot::Param(p) => p.value(),
            Slot::Buffer(b) => b.tensor(),
        }
    }

    fn set(&self, value: &Tensor) {
        match self {
            Slot::Param(p) => p.set_value(value),
            Slot::Buffer(b) => b.set(value),
        }
    }
}

/// Everything that is saved, under all its names.
fn slots<M: Module + ?Sized>(module: &M) -> Vec<(String, Slot<'_>)> {
    let mut slots = Vec::new();
    walk(module, "", &mut |name, leaf| match leaf {
        Member::Param(p) => slots.push((name, Slot::Param(p))),
        Member::Buffer(b) if b.is_persistent() => slots.push((name, Slot::Buffer(b))),
        _ => {}
    });
    slots
}

/// Replaces all values and gradients, or none if one cannot be converted.
fn convert(module: &impl Module, change: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<()> {
    let (params, buffers) = (module.parameters(), module.named_buffers());
    let mut values = Vec::with_capacity(params.len());
    for param in &params {
        let grad = param.grad().map(|g| change(&g.detach())).transpose()?;
        values.push((change(&param.value())?, grad));
    }
    let tables = buffers.iter().map(|(_, b)| change(&b.tensor())).collect::<Result<Vec<Tensor>>>()?;
    for (param, (value, grad)) in params.iter().zip(values) {
        param.set_value(&value);
        param.set_grad(grad);
    }
    buffers.iter().zip(&tables).for_each(|((_, buffer), table)| buffer.set(table));
    Ok(())
}

// ---- pointers ------------------------------------------------------------------------------------------------------------

macro_rules! pointer_modules {
    ($($pointer:ident),*) => {$(
        impl<M: Module> Module for $pointer<M> {
            fn type_name(&self) -> &str {
                (**self).type_name()
            }
            fn extra_repr(&self) -> String {
                (**self).extra_repr()
            }
            fn visit<'a>(&'a self, visitor: &mut Visitor<'_, 'a>) {
                (**self).visit(visitor);
            }
            fn rebuild(&self, rebuild: &mut Rebuild) -> Self {
                $pointer::new((**self).rebuild(rebuild))
            }
        }

        impl<L: Layer> Layer for $pointer<L> {
            #[track_caller]
            fn forward(&self, input: &Tensor) -> Tensor {
                (**self).forward(input)
            }
        }
    )*};
}
pointer_modules!(Box, Arc);
