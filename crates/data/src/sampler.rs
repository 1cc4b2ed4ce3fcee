//! Which items an epoch has, and in which order.

use orkest_core::{Generator, Tensor, with_generator};

/// Chooses the items of an epoch. For [`DataLoader::sampler`](crate::DataLoader::sampler).
#[allow(clippy::len_without_is_empty)]
pub trait Sampler: Send + Sync {
    /// How many items an epoch has.
    fn len(&self) -> usize;

    /// The indices of an epoch's items. All random numbers must come from `generator`: that makes an epoch repeatable.
    fn sample(&self, generator: &mut Generator) -> Vec<usize>;
}

/// All items in order.
#[derive(Clone, Debug)]
pub struct SequentialSampler {
    len: usize,
}

impl SequentialSampler {
    /// The items `0..len`.
    pub fn new(len: usize) -> SequentialSampler {
        SequentialSampler { len }
    }
}

impl Sampler for SequentialSampler {
    fn len(&self) -> usize {
        self.len
    }

    fn sample(&self, _generator: &mut Generator) -> Vec<usize> {
        (0..self.len).collect()
    }
}

/// Items in random order, without or with replacement: PyTorch's `RandomSampler`, with its numbers.
#[derive(Clone, Debug)]
pub struct RandomSampler {
    len: usize,
    num_samples: usize,
    replacement: bool,
}

impl RandomSampler {
    /// All of the items `0..len` in random order.
    pub fn new(len: usize) -> RandomSampler {
        RandomSampler { len, num_samples: len, replacement: false }
    }

    /// Draws every item anew, so that some may come twice and others not at all.
    pub fn replacement(mut self, replacement: bool) -> RandomSampler {
        self.replacement = replacement;
        self
    }

    /// How many items an epoch has; the length of the data set by default.
    pub fn num_samples(mut self, num_samples: usize) -> RandomSampler {
        self.num_samples = num_samples;
        self
    }
}

impl Sampler for RandomSampler {
    fn len(&self) -> usize {
        if self.len == 0 { 0 } else { self.num_samples }
    }

    fn sample(&self, generator: &mut Generator) -> Vec<usize> {
        if self.len == 0 {
            return Vec::new();
        }
        let drawn: Vec<i64> = if self.replacement {
            generator.randint(0, self.len as i64, self.num_samples)
        } else {
            // PyTorch draws a last order even where none of it is needed; a generator that is used again shows it.
            let orders = self.num_samples / self.len + 1;
            let mut drawn: Vec<i64> = (0..orders).flat_map(|_| generator.randperm(self.len)).collect();
            drawn.truncate(self.num_samples);
            drawn
        };
        drawn.into_iter().map(|i| i as usize).collect()
    }
}

/// Items with given probabilities: to see rare classes more often.
#[derive(Clone, Debug)]
pub struct WeightedRandomSampler {
    weights: Vec<f64>,
    num_samples: usize,
    replacement: bool,
}

impl WeightedRandomSampler {
    /// Draws `num_samples` items with replacement, item `i` with a probability in proportion to `weights[i]`.
    ///
    /// # Panics
    /// If a weight is negative or not finite, or all are zero.
    #[track_caller]
    pub fn new(weights: impl Into<Vec<f64>>, num_samples: usize) -> WeightedRandomSampler {
        let weights = weights.into();
        assert!(
            weights.iter().all(|w| w.is_finite() && *w >= 0.0) && weights.iter().any(|w| *w > 0.0),
            "WeightedRandomSampler: weights must be finite, not negative, and not all zero"
        );
        WeightedRandomSampler { weights, num_samples, replacement: true }
    }

    /// With `false` no item comes twice.
    ///
    /// # Panics
    /// If fewer than `num_samples` items have a positive weight.
    #[track_caller]
    pub fn replacement(mut self, replacement: bool) -> WeightedRandomSampler {
        let positive = self.weights.iter().filter(|w| **w > 0.0).count();
        assert!(
            replacement || positive >= self.num_samples,
            "WeightedRandomSampler: {} different items cannot be drawn from {positive} with a positive weight",
            self.num_samples
        );
        self.replacement = replacement;
        self
    }
}

impl Sampler for WeightedRandomSampler {
    fn len(&self) -> usize {
        self.num_samples
    }

    fn sample(&self, generator: &mut Generator) -> Vec<usize> {
        let weights = Tensor::from_slice(&self.weights, self.weights.len(), ());
        let drawn = with_generator(generator, || weights.multinomial(self.num_samples, self.replacement));
        let drawn = drawn.and_then(|d| d.to_vec::<i64>()).expect("the weights were checked");
        drawn.into_iter().map(|i| i as usize).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacement_and_long_epochs_are_pytorchs() {
        // Generator().manual_seed(9), list(RandomSampler(range(5), .., generator=g))
        let mut generator = Generator::new(9);
        let sampler = RandomSampler::new(5).replacement(true).num_samples(40);
        assert_eq!(sampler.sample(&mut generator)[..12], [0, 3, 4, 2, 2, 3, 2, 3, 3, 1, 3, 4]);
        assert_eq!(
            RandomSampler::new(5).num_samples(12).sample(&mut generator),
            [2, 4, 3, 1, 0, 4, 0, 3, 2, 1, 2, 0]
        );
        assert_eq!(generator.randint(0, 1_000_000, 1), [495_821]);
    }

    #[test]
    fn weights_are_pytorchs_with_replacement() {
        let sampler = WeightedRandomSampler::new([0.1, 0.9, 0.4, 0.7, 3.0, 0.6], 20);
        assert_eq!(
            sampler.sample(&mut Generator::new(9)),
            [3, 4, 3, 1, 1, 4, 1, 1, 1, 4, 4, 3, 4, 3, 4, 0, 1, 4, 5, 4]
        );
        let mut all = sampler.clone();
        all.num_samples = 6;
        let mut drawn = all.replacement(false).sample(&mut Generator::new(9));
        drawn.sort_unstable();
        assert_eq!(drawn, [0, 1, 2, 3, 4, 5]);
    }
}
