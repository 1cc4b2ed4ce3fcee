//! Parameter groups: which parameters an optimizer trains, and with which options.

use orkest_core::Param;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// One option of a parameter group.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum OptionValue {
    /// A number, e.g. `lr`.
    Number(f64),
    /// Two numbers, e.g. `betas`.
    Pair(f64, f64),
    /// Three numbers, e.g. `ns_coefficients`.
    Triple(f64, f64, f64),
    /// On or off, e.g. `nesterov`.
    Flag(bool),
    /// One of several ways to do something, e.g. `line_search_fn`, by PyTorch's name for it.
    Name(&'static str),
}

/// What an [`OptionValue::Name`] can be.
const NAMES: [&str; 5] = ["none", "original", "match_rms_adamw", "spectral_unclamped", "strong_wolfe"];

impl OptionValue {
    /// The option with this name, if it is one that an optimizer knows.
    pub fn from_name(name: &str) -> Option<OptionValue> {
        NAMES.iter().find(|known| **known == name).map(|known| OptionValue::Name(known))
    }

    fn kind(self) -> &'static str {
        match self {
            OptionValue::Number(_) => "a number",
            OptionValue::Pair(..) => "a pair of numbers",
            OptionValue::Triple(..) => "three numbers",
            OptionValue::Name(_) => "a name",
            OptionValue::Flag(_) => "true or false",
        }
    }
}

impl From<f64> for OptionValue {
    fn from(value: f64) -> Self {
        OptionValue::Number(value)
    }
}

impl From<(f64, f64)> for OptionValue {
    fn from((first, second): (f64, f64)) -> Self {
        OptionValue::Pair(first, second)
    }
}

impl From<(f64, f64, f64)> for OptionValue {
    fn from((first, second, third): (f64, f64, f64)) -> Self {
        OptionValue::Triple(first, second, third)
    }
}

impl From<bool> for OptionValue {
    fn from(value: bool) -> Self {
        OptionValue::Flag(value)
    }
}

impl fmt::Display for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptionValue::Number(value) => write!(f, "{value}"),
            OptionValue::Pair(first, second) => write!(f, "({first}, {second})"),
            OptionValue::Triple(first, second, third) => write!(f, "({first}, {second}, {third})"),
            OptionValue::Flag(value) => write!(f, "{value}"),
            OptionValue::Name(name) => f.write_str(name),
        }
    }
}

/// Parameters that are trained with the same options.
///
/// What a group does not say itself, the optimizer's options say:
///
/// ```
/// # use orkest_core::{Device, Param, Tensor};
/// # use orkest_nn::optim::{AdamW, Optimizer, ParamGroup};
/// # let (weight, bias) = (Param::new(Tensor::ones([2, 2], &Device::cpu())), Param::new(Tensor::ones(2, &Device::cpu())));
/// let groups = [ParamGroup::new([weight]), ParamGroup::new([bias]).with("weight_decay", 0.0)];
/// let optimizer = AdamW::new(groups, 1e-3).weight_decay(0.1);
/// assert_eq!(optimizer.param_groups()[0].weight_decay(), 0.1);
/// assert_eq!(optimizer.param_groups()[1].weight_decay(), 0.0);
/// ```
#[derive(Clone, Debug)]
pub struct ParamGroup {
    params: Vec<Param>,
    /// What was said about this group.
    own: BTreeMap<String, OptionValue>,
    /// What the optimizer says about all groups.
    defaults: BTreeMap<String, OptionValue>,
}

impl ParamGroup {
    /// A group of these parameters. A parameter given twice (tied weights) counts once.
    pub fn new(params: impl IntoIterator<Item = Param>) -> ParamGroup {
        let mut seen = HashSet::new();
        let params = params.into_iter().filter(|p| seen.insert(p.id())).collect();
        ParamGroup { params, own: BTreeMap::new(), defaults: BTreeMap::new() }
    }

    /// The group with an option of its own: `lr`, `weight_decay`, `momentum`, `betas` and so on, as the optimizer names them.
    pub fn with(mut self, name: &str, value: impl Into<OptionValue>) -> ParamGroup {
        self.set(name, value);
        self
    }

    /// The parameters.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// An option, if the group or its optimizer has it.
    pub fn get(&self, name: &str) -> Option<OptionValue> {
        self.own.get(name).or_else(|| self.defaults.get(name)).copied()
    }

    /// Sets an option for this group. Schedulers do this between steps.
    pub fn set(&mut self, name: &str, value: impl Into<OptionValue>) {
        self.own.insert(name.to_owned(), value.into());
    }

    /// An option that is a number.
    ///
    /// # Panics
    /// If there is no such number.
    #[track_caller]
    pub fn number(&self, name: &str) -> f64 {
        match self.get(name) {
            Some(OptionValue::Number(value)) => value,
            other => self.missing(name, other),
        }
    }

    /// An option that is a pair of numbers.
    ///
    /// # Panics
    /// If there is no such pair.
    #[track_caller]
    pub fn pair(&self, name: &str) -> (f64, f64) {
        match self.get(name) {
            Some(OptionValue::Pair(first, second)) => (first, second),
            other => self.missing(name, other),
        }
    }

    /// An option that is on or off.
    ///
    /// # Panics
    /// If there is no such option.
    #[track_caller]
    pub fn flag(&self, name: &str) -> bool {
        match self.get(name) {
            Some(OptionValue::Flag(value)) => value,
            other => self.missing(name, other),
        }
    }

    /// An option that is a name.
    ///
    /// # Panics
    /// If there is no such option.
    #[track_caller]
    pub fn name(&self, name: &str) -> &'static str {
        match self.get(name) {
            Some(OptionValue::Name(value)) => value,
            other => self.missing(name, other),
        }
    }

    /// An option that is three numbers.
    ///
    /// # Panics
    /// If there is no such option.
    #[track_caller]
    pub fn triple(&self, name: &str) -> [f64; 3] {
        match self.get(name) {
            Some(OptionValue::Triple(first, second, third)) => [first, second, third],
            other => self.missing(name, other),
        }
    }

    #[cold]
    #[track_caller]
    fn missing(&self, name: &str, found: Option<OptionValue>) -> ! {
        let names: Vec<_> = self.options().into_keys().collect();
        match found {
            Some(value) => panic!("param group: {name} is {}, {value}", value.kind()),
            None => panic!("param group: there is no option {name}, only {}", names.join(", ")),
        }
    }

    /// The learning rate.
    #[track_caller]
    pub fn lr(&self) -> f64 {
        self.number("lr")
    }

    /// Sets the learning rate.
    pub fn set_lr(&mut self, lr: f64) {
        self.set("lr", lr);
    }

    /// The weight decay.
    #[track_caller]
    pub fn weight_decay(&self) -> f64 {
        self.number("weight_decay")
    }

    /// All options that hold for this group, by name.
    pub fn options(&self) -> BTreeMap<String, OptionValue> {
        let mut options = self.defaults.clone();
        options.extend(self.own.iter().map(|(name, value)| (name.clone(), *value)));
        options
    }

    /// The same parameters with other options.
    pub(super) fn replace_options(&mut self, options: BTreeMap<String, OptionValue>) {
        self.own = options;
    }
}

/// What optimizers take: a model's parameters, or several groups of them.
pub struct ParamGroups(Vec<ParamGroup>);

impl From<Vec<Param>> for ParamGroups {
    fn from(params: Vec<Param>) -> Self {
        ParamGroups(vec![ParamGroup::new(params)])
    }
}

impl From<&[Param]> for ParamGroups {
    fn from(params: &[Param]) -> Self {
        params.to_vec().into()
    }
}

impl From<&Vec<Param>> for ParamGroups {
    fn from(params: &Vec<Param>) -> Self {
        params.clone().into()
    }
}

impl<const N: usize> From<[Param; N]> for ParamGroups {
    fn from(params: [Param; N]) -> Self {
        ParamGroups(vec![ParamGroup::new(params)])
    }
}

impl From<ParamGroup> for ParamGroups {
    fn from(group: ParamGroup) -> Self {
        ParamGroups(vec![group])
    }
}

impl From<Vec<ParamGroup>> for ParamGroups {
    fn from(groups: Vec<ParamGroup>) -> Self {
        ParamGroups(groups)
    }
}

impl<const N: usize> From<[ParamGroup; N]> for ParamGroups {
    fn from(groups: [ParamGroup; N]) -> Self {
        ParamGroups(groups.into())
    }
}

/// The groups of one optimizer, with checked options.
#[derive(Debug)]
pub(super) struct Groups {
    /// For messages.
    optimizer: &'static str,
    defaults: BTreeMap<String, OptionValue>,
    list: Vec<ParamGroup>,
}

impl Groups {
    /// # Panics
    /// If there are no parameters, one is in two groups, or an option is invalid.
    #[track_caller]
    pub fn new(optimizer: &'static str, groups: ParamGroups, defaults: &[(&str, OptionValue)]) -> Groups {
        let defaults = defaults.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        let mut all = Groups { optimizer, defaults, list: Vec::new() };
        assert!(!groups.0.is_empty(), "{optimizer}: there are no parameters to train");
        for group in groups.0 {
            all.add(group);
        }
        all
    }

    /// # Panics
    /// As [`Groups::new`].
    #[track_caller]
    pub fn add(&mut self, mut group: ParamGroup) {
        let name = self.optimizer;
        assert!(!group.params.is_empty(), "{name}: there are no parameters to train");
        let taken: HashSet<usize> = self.list.iter().flat_map(|g| &g.params).map(Param::id).collect();
        if let Some(twice) = group.params.iter().find(|p| taken.contains(&p.id())) {
            panic!("{name}: {twice:?} is in more than one parameter group");
        }
        if let Some(wrong) = group.params.iter().find(|p| !p.dtype().is_float()) {
            panic!("{name}: {wrong:?} is no float and cannot be trained");
        }
        group.defaults = self.defaults.clone();
        if let Err(message) = self.check(&group.own).and_then(|()| self.check(&group.defaults)) {
            panic!("{name}: {message}");
        }
        self.list.push(group);
    }

    /// Sets an option for all groups that do not set it themselves.
    #[track_caller]
    pub fn set_default(&mut self, name: &str, value: impl Into<OptionValue>) {
        self.defaults.insert(name.to_owned(), value.into());
        if let Err(message) = self.check(&self.defaults) {
            panic!("{}: {message}", self.optimizer);
        }
        for group in &mut self.list {
            group.defaults = self.defaults.clone();
        }
    }

    pub fn list(&self) -> &[ParamGroup] {
        &self.list
    }

    pub fn list_mut(&mut self) -> &mut [ParamGroup] {
        &mut self.list
    }

    pub fn num_params(&self) -> usize {
        self.list.iter().map(|g| g.params.len()).sum()
    }

    /// Whether there is an option of this name.
    pub fn knows(&self, name: &str) -> bool {
        self.defaults.contains_key(name)
    }

    /// Whether these options are known, of the right kind and in their range.
    pub fn check(&self, options: &BTreeMap<String, OptionValue>) -> Result<(), String> {
        options.iter().try_for_each(|(name, &value)| {
            let like = match self.defaults.get(name) {
                Some(like) => *like,
                None if SCHEDULED.contains(&name.as_str()) => OptionValue::Number(0.0),
                None => {
                    let known: Vec<_> = self.defaults.keys().map(String::as_str).collect();
                    return Err(format!("there is no option {name}, only {}", known.join(", ")));
                }
            };
            if std::mem::discriminant(&like) != std::mem::discriminant(&value) {
                return Err(format!("{name} must be {}, got {value}", like.kind()));
            }
            in_range(name, value)
        })
    }
}

/// What schedulers remember in a group.
const SCHEDULED: [&str; 5] = ["initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"];

fn in_range(name: &str, value: OptionValue) -> Result<(), String> {
    let expected = |range: &str| Err(format!("{name} must {range}, got {value}"));
    match (name, value) {
        ("dampening", OptionValue::Number(x)) if !x.is_nan() => Ok(()),
        ("beta2_decay", OptionValue::Number(x)) if x.is_nan() || x > 0.0 => expected("be 0 or less"),
        ("beta2_decay", _) => Ok(()),
        ("d", OptionValue::Number(x)) if x.is_nan() || x < 1.0 => expected("be 1 or more"),
        (_, OptionValue::Number(x)) if x.is_nan() || x < 0.0 => expected("be 0 or more"),
        // The first may be NaN: the machine epsilon.
        ("eps", OptionValue::Pair(first, second)) if first < 0.0 || second.is_nan() || second < 0.0 => {
            expected("be 0 or more")
        }
        ("etas", OptionValue::Pair(less, more)) if !(0.0 < less && less < 1.0 && 1.0 < more) => {
            expected("lie in (0, 1) and above 1")
        }
        ("eps" | "etas", _) => Ok(()),
        ("step_sizes", OptionValue::Pair(least, most)) if !(0.0 < least && least <= most) => {
            expected("be positive and in order")
        }
        ("step_sizes", _) => Ok(()),
        (_, OptionValue::Pair(first, second)) if ![first, second].iter().all(|b| (0.0..1.0).contains(b)) => {
            expected("lie in [0, 1)")
        }
        _ => Ok(()),
    }
}
