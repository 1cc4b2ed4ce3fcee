//! Averages of weights along the training.

use crate::{Buffer, Module};
use orkest_core::{DType, Device, Error, GradMode, Result, Tensor};

/// A copy of a model whose weights are the average of the model's weights at every call of
/// [`update_parameters`](AveragedModel::update_parameters): PyTorch's
/// [`AveragedModel`](https://docs.pytorch.org/docs/stable/generated/torch.optim.swa_utils.AveragedModel.html).
///
/// [`AveragedModel::new`] weighs all calls alike (stochastic weight averaging), [`AveragedModel::ema`] forgets exponentially. State dicts
/// have PyTorch's names: `n_averaged`, `module.fc1.weight` and so on.
///
/// ```
/// use orkest_nn::{AveragedModel, Linear, Module};
/// let model = Linear::new(4, 2);
/// let average = AveragedModel::ema(&model, 0.999);
/// for _step in 0..3 {
///     // .. an optimizer step ..
///     average.update_parameters(&model);
/// }
/// average.module().eval(); // evaluate with the averaged weights
/// average.swap(&model)?; // or put them into the model, and the model's here
/// # Ok::<(), orkest_core::Error>(())
/// ```
#[derive(Module)]
pub struct AveragedModel<M> {
    n_averaged: Buffer,
    module: M,
    decay: Option<f64>,
    average_buffers: bool,
}

impl<M: Module> AveragedModel<M> {
    /// The mean of all calls.
    pub fn new(model: &M) -> AveragedModel<M> {
        let module = model.deep_clone();
        module.zero_grad();
        AveragedModel {
            n_averaged: Buffer::new(Tensor::zeros((), (DType::I64, &Device::cpu()))),
            module,
            decay: None,
            average_buffers: false,
        }
    }

    /// An exponential moving average: `average = decay * average + (1 - decay) * weight`, from the weights of the first call on.
    ///
    /// # Panics
    /// If `decay` lies outside `[0, 1]`.
    #[track_caller]
    pub fn ema(model: &M, decay: f64) -> AveragedModel<M> {
        assert!((0.0..=1.0).contains(&decay), "AveragedModel: decay must lie between 0 and 1, not {decay}");
        AveragedModel { decay: Some(decay), ..AveragedModel::new(model) }
    }

    /// Averages float buffers (running statistics) too, instead of copying them. Counts are copied all the same.
    pub fn use_buffers(mut self, use_buffers: bool) -> AveragedModel<M> {
        self.average_buffers = use_buffers;
        self
    }

    /// Takes the model's weights as they are now into the average.
    ///
    /// # Panics
    /// If the model is built differently.
    #[track_caller]
    pub fn update_parameters(&self, model: &M) {
        let n = self.n_averaged();
        let (mine, theirs) = (self.module.parameters(), model.parameters());
        let (my_buffers, their_buffers) = (self.module.named_buffers(), model.named_buffers());
        assert!(
            mine.len() == theirs.len() && my_buffers.len() == their_buffers.len(),
            "AveragedModel: the model has {} parameters and {} buffers, its average {} and {}",
            theirs.len(),
            their_buffers.len(),
            mine.len(),
            my_buffers.len()
        );
        let _off = GradMode::set(false);
        for (average, param) in mine.iter().zip(&theirs) {
            let value = param.value();
            self.take(&mut average.write(), &value, n);
        }
        for ((_, average), (_, buffer)) in my_buffers.iter().zip(&their_buffers) {
            let value = buffer.tensor();
            let n = if self.average_buffers && value.dtype().is_float() { n } else { 0 };
            average.update(|average| self.take(average, &value, n));
        }
        self.n_averaged.update(|count| *count = Tensor::full((), n as i64 + 1, (DType::I64, count.device())));
    }

    /// One more value into the average of `n`.
    #[track_caller]
    fn take(&self, average: &mut Tensor, value: &Tensor, n: usize) {
        let value = value.to(average.device()).to_dtype(average.dtype());
        *average = match self.decay {
            _ if n == 0 => value.copy(),
            Some(decay) => average.lerp(&value, 1.0 - decay),
            None => &*average + (value - &*average) / (n as f64 + 1.0),
        };
    }

    /// How many times weights were taken.
    pub fn n_averaged(&self) -> usize {
        self.n_averaged.tensor().to_vec::<i64>().map_or(0, |n| n[0].max(0) as usize)
    }

    /// The model with the averaged weights.
    pub fn module(&self) -> &M {
        &self.module
    }

    /// Puts the average into the model.
    ///
    /// # Errors
    /// If the model is built differently, or its device cannot hold the values.
    pub fn copy_to(&self, model: &M) -> Result<()> {
        model.load_state_dict(&self.module.state_dict(), true).map(drop)
    }

    /// Exchanges the average and the model's weights: to evaluate or save the model in the middle of training, and swap back.
    ///
    /// # Errors
    /// If the model is built differently, or a device cannot hold the values.
    pub fn swap(&self, model: &M) -> Result<()> {
        let theirs = model.state_dict();
        self.copy_to(model)?;
        let taken = self.module.load_state_dict(&theirs, true);
        taken.map(drop).map_err(|e| Error::Data(format!("AveragedModel: swap: {e}")))
    }
}

#[cfg(test)]
mod tests {
    //! Expected numbers are those of `torch.optim.swa_utils.AveragedModel` (2.15).

    use super::*;
    use orkest_core::{Param, tensor};

    #[derive(Module)]
    struct Scale {
        weight: Param,
        running_mean: Buffer,
        num_batches_tracked: Buffer,
    }

    fn model() -> Scale {
        Scale {
            weight: Param::new(tensor![1.0, 2.0]),
            running_mean: Buffer::new(tensor![0.0, 0.0]),
            num_batches_tracked: Buffer::new(Tensor::zeros((), DType::I64)),
        }
    }

    fn train(model: &Scale, average: &AveragedModel<Scale>) -> Vec<(Vec<f32>, f32, i64)> {
        (1..=3)
            .map(|i| {
                let i = f64::from(i);
                model.weight.update(|w| *w = &*w + tensor![0.5, -1.0] * i);
                model.running_mean.update(|m| *m = &*m + i);
                model.num_batches_tracked.update(|n| *n = &*n + 3);
                average.update_parameters(model);
                let module = average.module();
                (
                    module.weight.value().to_vec().unwrap(),
                    module.running_mean.tensor().to_vec::<f32>().unwrap()[0],
                    module.num_batches_tracked.tensor().to_vec::<i64>().unwrap()[0],
                )
            })
            .collect()
    }

    fn assert_close(found: &[(Vec<f32>, f32, i64)], expected: [([f32; 2], f32, i64); 3]) {
        for ((w, mean, n), (we, me, ne)) in found.iter().zip(expected) {
            assert!(w.iter().zip(we).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
            assert!((mean - me).abs() < 1e-6 && *n == ne, "{found:?}");
        }
    }

    #[test]
    fn the_mean_is_pytorchs() {
        let model = model();
        assert_close(
            &train(&model, &AveragedModel::new(&model)),
            [([1.5, 1.0], 1.0, 3), ([2.0, 0.0], 3.0, 6), ([2.666_666_7, -1.333_333_4], 6.0, 9)],
        );
    }

    #[test]
    fn the_exponential_average_is_pytorchs() {
        let (model, other) = (model(), model());
        assert_close(
            &train(&model, &AveragedModel::ema(&model, 0.9)),
            [([1.5, 1.0], 1.0, 3), ([1.6, 0.8], 3.0, 6), ([1.84, 0.32], 6.0, 9)],
        );
        let average = AveragedModel::ema(&other, 0.9).use_buffers(true);
        assert_close(
            &train(&other, &average),
            [([1.5, 1.0], 1.0, 3), ([1.6, 0.8], 1.2, 6), ([1.84, 0.32], 1.68, 9)],
        );
        assert_eq!(average.n_averaged(), 3);
    }

    #[test]
    fn weights_can_be_swapped_and_saved() {
        let model = model();
        let average = AveragedModel::new(&model);
        model.weight.set_value(&tensor![5.0, 5.0]);
        average.swap(&model).unwrap();
        assert_eq!(model.weight.value().to_vec::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(average.module().weight.value().to_vec::<f32>().unwrap(), [5.0, 5.0]);
        average.copy_to(&model).unwrap();
        assert_eq!(model.weight.value().to_vec::<f32>().unwrap(), [5.0, 5.0]);

        average.update_parameters(&model);
        let state = average.state_dict();
        assert_eq!(
            state.keys().collect::<Vec<_>>(),
            ["n_averaged", "module.weight", "module.running_mean", "module.num_batches_tracked"]
        );
        let other = AveragedModel::new(&model);
        other.load_state_dict(&state, true).unwrap();
        assert_eq!(other.n_averaged(), 1);
    }
}
