//! Loss scaling for training in f16.

use crate::optim::{Optimizer, ParamGroup, as_number, check_gradients, number};
use orkest_core::{DType, Device, Error, GradMode, Param, Result, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Keeps small gradients from vanishing in f16: PyTorch's
/// [`GradScaler`](https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling).
///
/// The loss is multiplied by a large number, and the gradients are divided by it before the step. A step whose gradients overflowed is
/// left out and the scale halved; after 2000 steps without overflow it is doubled.
///
/// ```
/// use orkest_core::{DType, Device, Tensor, autocast};
/// use orkest_nn::optim::{Optimizer, SGD};
/// use orkest_nn::{GradScaler, Layer, Linear, MSELoss, Module};
///
/// let model = Linear::new(4, 1);
/// let mut optimizer = SGD::new(model.parameters(), 0.1);
/// let mut scaler = GradScaler::new().init_scale(1024.0);
/// let (x, y) = (Tensor::ones([8, 4], &Device::cpu()), Tensor::ones([8, 1], &Device::cpu()));
/// for _ in 0..3 {
///     optimizer.zero_grad();
///     let loss = autocast(DType::F16, || MSELoss::new().forward(&model.forward(&x), &y));
///     scaler.scale(&loss).backward();
///     scaler.step(&mut optimizer)?;
///     scaler.update();
/// }
/// assert_eq!(scaler.get_scale(), 1024.0); // nothing overflowed
/// # Ok::<(), orkest_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GradScaler {
    scale: f64,
    growth_factor: f64,
    backoff_factor: f64,
    growth_interval: usize,
    growth_tracker: usize,
    enabled: bool,
    /// What has happened since the last `update`, by optimizer.
    optimizers: HashMap<usize, Stage>,
}

#[derive(Clone, Copy, Debug)]
struct Stage {
    found_inf: bool,
    stepped: bool,
}

impl Default for GradScaler {
    fn default() -> GradScaler {
        GradScaler::new()
    }
}

impl GradScaler {
    /// With PyTorch's settings: scale 65536, doubled after 2000 good steps, halved after a bad one.
    pub fn new() -> GradScaler {
        GradScaler {
            scale: 65536.0,
            growth_factor: 2.0,
            backoff_factor: 0.5,
            growth_interval: 2000,
            growth_tracker: 0,
            enabled: true,
            optimizers: HashMap::new(),
        }
    }

    /// The scale to begin with.
    ///
    /// # Panics
    /// If it is not a finite number above 0.
    #[track_caller]
    pub fn init_scale(mut self, init_scale: f64) -> GradScaler {
        assert!(
            init_scale.is_finite() && init_scale > 0.0,
            "GradScaler: init_scale must be a finite number above 0, not {init_scale}"
        );
        self.scale = init_scale;
        self
    }

    /// What the scale is multiplied by after `growth_interval` good steps in a row.
    ///
    /// # Panics
    /// Unless it is above 1.
    #[track_caller]
    pub fn growth_factor(mut self, growth_factor: f64) -> GradScaler {
        assert!(growth_factor > 1.0, "GradScaler: growth_factor must be above 1, not {growth_factor}");
        self.growth_factor = growth_factor;
        self
    }

    /// What the scale is multiplied by after a bad step.
    ///
    /// # Panics
    /// Unless it is between 0 and 1.
    #[track_caller]
    pub fn backoff_factor(mut self, backoff_factor: f64) -> GradScaler {
        assert!(
            backoff_factor > 0.0 && backoff_factor < 1.0,
            "GradScaler: backoff_factor must lie between 0 and 1, not {backoff_factor}"
        );
        self.backoff_factor = backoff_factor;
        self
    }

    /// How many good steps in a row it takes for the scale to grow.
    ///
    /// # Panics
    /// If it is 0.
    #[track_caller]
    pub fn growth_interval(mut self, growth_interval: usize) -> GradScaler {
        assert!(growth_interval > 0, "GradScaler: growth_interval must be at least 1");
        self.growth_interval = growth_interval;
        self
    }

    /// With `false` everything passes through unchanged, so that one loop serves f32, bf16 and f16.
    pub fn enabled(mut self, enabled: bool) -> GradScaler {
        self.enabled = enabled;
        self
    }

    /// The loss times the scale: call `backward` on this.
    #[track_caller]
    pub fn scale(&self, loss: &Tensor) -> Tensor {
        if self.enabled { loss * self.scale } else { loss.clone() }
    }

    /// Divides the gradients of an optimizer by the scale, to look at them or clip them before the step. Waits for the device.
    ///
    /// # Errors
    /// Whatever the device reports.
    ///
    /// # Panics
    /// If this was done since the last [`GradScaler::update`], or a gradient is f16 itself.
    #[track_caller]
    pub fn unscale_(&mut self, optimizer: &dyn Optimizer) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        let key = key(optimizer);
        assert!(
            !self.optimizers.contains_key(&key),
            "GradScaler: unscale_ has been called for this optimizer since the last update"
        );
        let found_inf = unscale(optimizer, 1.0 / self.scale)?;
        self.optimizers.insert(key, Stage { found_inf, stepped: false });
        Ok(())
    }

    /// Takes the optimizer's step, unless a gradient is infinite or NaN. Gradients are divided by the scale first if
    /// [`GradScaler::unscale_`] has not done so. True if the step was taken.
    ///
    /// # Errors
    /// Whatever the device reports.
    ///
    /// # Panics
    /// If this was done since the last [`GradScaler::update`], or a gradient is f16 itself or has not its parameter's shape.
    #[track_caller]
    pub fn step(&mut self, optimizer: &mut dyn Optimizer) -> Result<bool> {
        check_gradients("GradScaler::step", optimizer.param_groups());
        if !self.enabled {
            optimizer.step();
            return Ok(true);
        }
        let key = key(optimizer);
        if !self.optimizers.contains_key(&key) {
            self.unscale_(optimizer)?;
        }
        let stage = self.optimizers.get_mut(&key).expect("unscale_ has put it there");
        assert!(!stage.stepped, "GradScaler: step has been called for this optimizer since the last update");
        stage.stepped = true;
        if !stage.found_inf {
            optimizer.step();
        }
        Ok(!stage.found_inf)
    }

    /// Adapts the scale to what the steps since the last call found. Belongs at the end of every iteration.
    ///
    /// # Panics
    /// If no optimizer was stepped or unscaled since.
    #[track_caller]
    pub fn update(&mut self) {
        if !self.enabled {
            return;
        }
        assert!(!self.optimizers.is_empty(), "GradScaler: update needs a step (or unscale_) before it");
        if self.optimizers.drain().any(|(_, stage)| stage.found_inf) {
            self.scale *= self.backoff_factor;
            self.growth_tracker = 0;
            return;
        }
        self.growth_tracker += 1;
        if self.growth_tracker == self.growth_interval {
            self.growth_tracker = 0;
            let grown = self.scale * self.growth_factor;
            // The scale multiplies f32 losses.
            if grown <= f64::from(f32::MAX) {
                self.scale = grown;
            }
        }
    }

    /// The scale now; 1 if this is not enabled.
    pub fn get_scale(&self) -> f64 {
        if self.enabled { self.scale } else { 1.0 }
    }

    /// What is needed to continue later, under PyTorch's names; empty if this is not enabled.
    pub fn state_dict(&self) -> Value {
        if !self.enabled {
            return json!({});
        }
        json!({
            "scale": number(self.scale),
            "growth_factor": number(self.growth_factor),
            "backoff_factor": number(self.backoff_factor),
            "growth_interval": self.growth_interval,
            "_growth_tracker": self.growth_tracker,
        })
    }

    /// Continues from a saved state.
    ///
    /// # Errors
    /// If something is missing; nothing has changed then.
    pub fn load_state_dict(&mut self, state: &Value) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        let missing =
            |name: &str| Error::Data(format!("no state of a GradScaler: {name} is missing or damaged"));
        let real = |name: &str| as_number(&state[name]).ok_or_else(|| missing(name));
        let count = |name: &str| {
            state[name].as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| missing(name))
        };
        *self = GradScaler {
            scale: real("scale")?,
            growth_factor: real("growth_factor")?,
            backoff_factor: real("backoff_factor")?,
            growth_interval: count("growth_interval")?,
            growth_tracker: count("_growth_tracker")?,
            enabled: true,
            optimizers: HashMap::new(),
        };
        Ok(())
    }
}

/// Parameters belong to one optimizer, so its first one tells which it is.
fn key(optimizer: &dyn Optimizer) -> usize {
    params(optimizer).next().map_or(0, Param::id)
}

fn params(optimizer: &dyn Optimizer) -> impl Iterator<Item = &Param> {
    optimizer.param_groups().iter().flat_map(ParamGroup::params)
}

/// Multiplies all gradients; true if one is not finite.
#[track_caller]
fn unscale(optimizer: &dyn Optimizer, factor: f64) -> Result<bool> {
    let _off = GradMode::set(false);
    let mut finite: HashMap<String, (Device, Vec<Tensor>)> = HashMap::new();
    for param in params(optimizer) {
        let Some(grad) = param.grad() else { continue };
        assert!(
            grad.dtype() != DType::F16,
            "GradScaler: the gradient of {param:?} is f16 and cannot be unscaled; keep parameters in f32, autocast does the rest"
        );
        param.set_grad(None);
        let mut grad = grad.detach();
        grad.mul_(&Tensor::full((), factor, (grad.dtype(), grad.device())));
        let device = grad.device().clone();
        let all = finite.entry(device.to_string()).or_insert_with(|| (device, Vec::new()));
        all.1.push(grad.isfinite().all(..));
        param.set_grad(Some(grad));
    }
    for (_, tests) in finite.values() {
        if Tensor::stack(tests, 0).all(..).to_vec::<bool>()? != [true] {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    //! The expected scales are those of `torch.amp.GradScaler("cpu", ..)` (2.15) in the same loops.

    use super::*;
    use crate::optim::SGD;
    use orkest_core::{autocast, tensor};

    fn run(scaler: &mut GradScaler, grads: &[f32]) -> (Vec<f64>, Vec<f32>) {
        let weight = Param::new(tensor![1.0]);
        let mut optimizer = SGD::new([weight.clone()], 0.5);
        let (mut scales, mut values) = (Vec::new(), Vec::new());
        for &g in grads {
            optimizer.zero_grad();
            scaler.scale(&(weight.tensor() * g).sum(..)).backward();
            scaler.step(&mut optimizer).unwrap();
            scaler.update();
            scales.push(scaler.get_scale());
            values.extend(weight.value().to_vec::<f32>().unwrap());
        }
        (scales, values)
    }

    #[test]
    fn the_scale_grows_and_backs_off_as_pytorchs() {
        let mut scaler = GradScaler::new().init_scale(8.0).growth_interval(2);
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let (scales, values) = run(&mut scaler, &[1.0, 0.5, inf, 0.25, nan, 0.5, 0.5, 0.5]);
        assert_eq!(scales, [8.0, 16.0, 8.0, 8.0, 4.0, 4.0, 8.0, 8.0]);
        assert_eq!(values, [0.5, 0.25, 0.25, 0.125, 0.125, -0.125, -0.375, -0.625]);
        let state = scaler.state_dict();
        assert_eq!(
            state,
            json!({"scale": 8.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2, "_growth_tracker": 1})
        );
        let mut other = GradScaler::new();
        other.load_state_dict(&state).unwrap();
        assert_eq!(run(&mut other, &[1.0]).0, [16.0]);
        assert!(other.load_state_dict(&json!({"scale": 1.0})).is_err());
        assert_eq!(other.get_scale(), 16.0);
    }

    #[test]
    fn small_gradients_survive_f16_only_when_scaled() {
        let gradient = |scaler: GradScaler| {
            let weight = Param::new(tensor![[1.0, 1.0]]);
            let mut scaler = scaler;
            let loss = autocast(DType::F16, || {
                let y = tensor![[1e-4, 2e-4]].linear(&weight.tensor(), None);
                (y.to_dtype(DType::F32) * 1e-5).sum(..)
            });
            scaler.scale(&loss).backward();
            scaler.unscale_(&SGD::new([weight.clone()], 0.1)).unwrap();
            weight.grad().unwrap().to_vec::<f32>().unwrap()
        };
        assert_eq!(gradient(GradScaler::new().enabled(false)), [0.0, 0.0]);
        let scaled = gradient(GradScaler::new());
        assert!((scaled[0] - 1e-9).abs() < 1e-11 && (scaled[1] - 2e-9).abs() < 2e-11, "{scaled:?}");
    }

    #[test]
    fn clipping_sees_unscaled_gradients_and_the_step_does_not_divide_again() {
        let weight = Param::new(tensor![1.0]);
        let mut optimizer = SGD::new([weight.clone()], 1.0);
        let mut scaler = GradScaler::new();
        scaler.scale(&(weight.tensor() * 4.0).sum(..)).backward();
        scaler.unscale_(&optimizer).unwrap();
        assert_eq!(crate::clip_grad_norm(std::slice::from_ref(&weight), 0.5).item().unwrap(), 4.0);
        assert!(scaler.step(&mut optimizer).unwrap());
        assert!((weight.value().item().unwrap() - 0.5).abs() < 1e-6);
    }

    #[test]
    #[should_panic = "unscale_ has been called for this optimizer since the last update"]
    fn unscaling_twice_is_refused() {
        let optimizer = SGD::new([Param::new(tensor![1.0])], 1.0);
        let mut scaler = GradScaler::new();
        scaler.unscale_(&optimizer).unwrap();
        let _ = scaler.unscale_(&optimizer);
    }

    #[test]
    #[should_panic = "update needs a step"]
    fn an_update_without_a_step_is_refused() {
        GradScaler::new().update();
    }
}
