//! Layers in a row, and a layer whose type is forgotten.

use crate::{Layer, Member, Module, Rebuild, Visitor};
use orkest_core::Tensor;
use std::fmt;

/// Any layer, for lists of different ones.
///
/// ```
/// use orkest_nn::{AnyLayer, Linear, Module, ReLU};
///
/// #[derive(Module)]
/// struct Net {
///     layers: Vec<AnyLayer>,
/// }
///
/// let net = Net { layers: vec![AnyLayer::new(Linear::new(2, 3)), AnyLayer::new(ReLU)] };
/// assert!(net.state_dict().contains("layers.0.weight"));
/// ```
pub struct AnyLayer(Box<dyn Stored>);

/// [`Layer`] with a [`Module::rebuild`] that does not name the type.
trait Stored: Layer + Send + Sync {
    fn rebuild_stored(&self, rebuild: &mut Rebuild) -> AnyLayer;
}

impl<L: Layer + Send + Sync + 'static> Stored for L {
    fn rebuild_stored(&self, rebuild: &mut Rebuild) -> AnyLayer {
        AnyLayer::new(self.rebuild(rebuild))
    }
}

impl AnyLayer {
    /// Forgets the type of a layer.
    pub fn new(layer: impl Layer + Send + Sync + 'static) -> AnyLayer {
        AnyLayer(Box::new(layer))
    }
}

impl Module for AnyLayer {
    fn type_name(&self) -> &str {
        self.0.type_name()
    }
    fn extra_repr(&self) -> String {
        self.0.extra_repr()
    }
    fn visit<'a>(&'a self, visitor: &mut Visitor<'_, 'a>) {
        self.0.visit(visitor);
    }
    fn rebuild(&self, rebuild: &mut Rebuild) -> AnyLayer {
        (*self.0).rebuild_stored(rebuild)
    }
}

impl Layer for AnyLayer {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        self.0.forward(input)
    }
    #[track_caller]
    fn forward_owned(&self, input: Tensor) -> Tensor {
        self.0.forward_owned(input)
    }
}

/// Layers one after the other, each on the output of the one before: PyTorch's
/// [`Sequential`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Sequential.html).
///
/// In state dicts they are called `0`, `1`, .. or as they were named. [`sequential!`](crate::sequential!) makes one of a list:
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{Layer, Linear, Module, ReLU, Sequential, sequential};
///
/// let net = sequential![Linear::new(2, 8), ReLU, Linear::new(8, 1)];
/// assert_eq!(net.forward(&Tensor::zeros([5, 2], &Device::cpu())).shape(), &[5, 1]);
/// assert_eq!(net.state_dict().keys().collect::<Vec<_>>(), ["0.weight", "0.bias", "2.weight", "2.bias"]);
///
/// let deep = (0..4).fold(Sequential::new(), |net, _| net.push(Linear::new(8, 8)).push(ReLU));
/// assert_eq!(deep.len(), 8);
/// ```
#[derive(Default)]
pub struct Sequential {
    layers: Vec<(String, AnyLayer)>,
}

impl Sequential {
    /// Without layers; its output is its input.
    pub fn new() -> Sequential {
        Sequential::default()
    }

    /// With one more layer at the end, named by its position.
    #[must_use]
    pub fn push(self, layer: impl Layer + Send + Sync + 'static) -> Sequential {
        let name = self.layers.len().to_string();
        self.push_named(name, layer)
    }

    /// With one more layer at the end, under a name of its own.
    ///
    /// # Panics
    /// If there is a layer of this name.
    #[must_use]
    #[track_caller]
    pub fn push_named(
        mut self,
        name: impl Into<String>,
        layer: impl Layer + Send + Sync + 'static,
    ) -> Sequential {
        let name = name.into();
        assert!(
            self.layers.iter().all(|(n, _)| *n != name),
            "Sequential: there is a layer called {name:?} already"
        );
        self.layers.push((name, AnyLayer::new(layer)));
        self
    }

    /// The number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// True if there are no layers.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The layers in order.
    pub fn iter(&self) -> impl Iterator<Item = &AnyLayer> {
        self.layers.iter().map(|(_, layer)| layer)
    }
}

impl Module for Sequential {
    fn type_name(&self) -> &str {
        "Sequential"
    }
    fn visit<'a>(&'a self, visitor: &mut Visitor<'_, 'a>) {
        for (name, layer) in &self.layers {
            visitor(name, Member::Module(layer));
        }
    }
    fn rebuild(&self, rebuild: &mut Rebuild) -> Sequential {
        Sequential {
            layers: self.layers.iter().map(|(name, layer)| (name.clone(), layer.rebuild(rebuild))).collect(),
        }
    }
}

impl Layer for Sequential {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        let mut layers = self.iter();
        let Some(first) = layers.next() else { return input.clone() };
        layers.fold(first.forward(input), |x, layer| layer.forward_owned(x))
    }
    #[track_caller]
    fn forward_owned(&self, input: Tensor) -> Tensor {
        self.iter().fold(input, |x, layer| layer.forward_owned(x))
    }
}

macro_rules! as_a_handle {
    ($($t:ident),*) => {$(
        /// Another handle to the same parameters, as for every module.
        impl Clone for $t {
            fn clone(&self) -> $t {
                self.rebuild(&mut Rebuild::shared())
            }
        }

        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&crate::repr(self))
            }
        }

        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}
as_a_handle!(AnyLayer, Sequential);

/// A [`Sequential`](crate::Sequential) of the given layers: `sequential![Linear::new(2, 8), ReLU, Linear::new(8, 1)]`.
#[macro_export]
macro_rules! sequential {
    ($($layer:expr),* $(,)?) => { $crate::Sequential::new()$(.push($layer))* };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dropout, Linear, ReLU};
    use orkest_core::{Device, Param};

    #[test]
    fn copies_are_independent_and_moved_handles_are_not() {
        let net = sequential![Linear::new(2, 3), Dropout::new(0.5), ReLU];
        let (moved, handle, copy) = (net.to(&Device::cpu()), net.clone(), net.deep_clone());
        net.eval();
        assert!(!moved.is_training() && !handle.is_training() && copy.is_training());
        net.parameters()[0].update(|w| w.fill_(7.0));
        let first = |m: &Sequential| m.parameters()[0].value().to_vec::<f32>().unwrap()[0];
        assert_eq!((first(&moved), first(&handle)), (7.0, 7.0));
        assert_ne!(first(&copy), 7.0);
        assert!(net.parameters().iter().zip(&moved.parameters()).all(|(a, b)| a.is(b)));
    }

    #[test]
    fn layers_can_have_names() {
        let net = Sequential::new().push_named("up", Linear::without_bias(2, 4)).push(ReLU);
        assert_eq!(net.state_dict().keys().collect::<Vec<_>>(), ["up.weight"]);
        assert_eq!(net.parameters().iter().map(Param::numel).sum::<usize>(), 8);
    }
}
