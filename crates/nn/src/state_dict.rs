//! Named tensors in order: the state of a model or an optimizer.

use orkest_core::Tensor;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Index;

/// Tensors by name, in the order in which they were added, and free text about them.
///
/// ```
/// use orkest_nn::{Linear, Module};
/// let state = Linear::new(4, 2).state_dict();
/// assert_eq!(state.keys().collect::<Vec<_>>(), ["weight", "bias"]);
/// assert_eq!(state["weight"].shape(), &[2, 4]);
/// ```
#[derive(Clone, Default)]
pub struct StateDict {
    entries: Vec<(String, Tensor)>,
    places: HashMap<String, usize>,
    /// Saved as the `__metadata__` of a safetensors file.
    pub metadata: BTreeMap<String, String>,
}

impl StateDict {
    /// Without tensors.
    pub fn new() -> StateDict {
        StateDict::default()
    }

    /// Adds a tensor at the end, or replaces the one of this name where it stands.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        let name = name.into();
        match self.places.get(&name) {
            Some(&place) => self.entries[place].1 = tensor,
            None => {
                self.places.insert(name.clone(), self.entries.len());
                self.entries.push((name, tensor));
            }
        }
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.places.get(name).map(|&place| &self.entries[place].1)
    }

    /// Takes the tensor of this name out.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        let place = self.places.remove(name)?;
        self.places.values_mut().filter(|p| **p > place).for_each(|p| *p -= 1);
        Some(self.entries.remove(place).1)
    }

    /// The tensors and the text whose names begin with `name` and a dot, without both: the state of a module inside, or a dict in a
    /// checkpoint.
    ///
    /// ```
    /// use orkest_nn::{Linear, Module, sequential};
    /// let state = sequential![Linear::new(4, 2), Linear::new(2, 3)].state_dict();
    /// assert_eq!(state.part("1").keys().collect::<Vec<_>>(), ["weight", "bias"]);
    /// ```
    pub fn part(&self, name: &str) -> StateDict {
        fn inner<'n>(name: &str, full: &'n str) -> Option<&'n str> {
            full.strip_prefix(name)?.strip_prefix('.')
        }
        let tensors = self.iter().filter_map(|(full, t)| Some((inner(name, full)?, t.clone())));
        let text = self.metadata.iter().filter_map(|(full, t)| Some((inner(name, full)?.into(), t.clone())));
        StateDict { metadata: text.collect(), ..tensors.collect() }
    }

    /// Is there a tensor of this name?
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// The names in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// Names and tensors in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The number of names.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<S: Into<String>> FromIterator<(S, Tensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (S, Tensor)>>(entries: I) -> StateDict {
        let mut state = StateDict::new();
        entries.into_iter().for_each(|(name, tensor)| state.insert(name, tensor));
        state
    }
}

impl IntoIterator for StateDict {
    type Item = (String, Tensor);
    type IntoIter = std::vec::IntoIter<(String, Tensor)>;
    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

impl Index<&str> for StateDict {
    type Output = Tensor;

    /// # Panics
    /// If there is no tensor of this name.
    #[track_caller]
    fn index(&self, name: &str) -> &Tensor {
        match self.get(name) {
            Some(tensor) => tensor,
            None => {
                panic!("the state dict has no tensor {name:?}; it has {:?}", self.keys().collect::<Vec<_>>())
            }
        }
    }
}

impl fmt::Debug for StateDict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |(name, tensor): (_, &Tensor)| (name, format!("{} {}", tensor.dtype(), tensor.shape()));
        f.debug_map().entries(self.iter().map(line)).finish()
    }
}

/// Names that a model and a state dict do not have in common; empty if they fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IncompatibleKeys {
    /// Parameters and buffers of the model that the state dict has no value for; they kept theirs.
    pub missing: Vec<String>,
    /// Names in the state dict that the model does not have.
    pub unexpected: Vec<String>,
}

impl IncompatibleKeys {
    /// True if all names matched.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty()
    }
}

impl fmt::Display for IncompatibleKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("all keys matched");
        }
        write!(f, "missing: [{}]; unexpected: [{}]", self.missing.join(", "), self.unexpected.join(", "))
    }
}
