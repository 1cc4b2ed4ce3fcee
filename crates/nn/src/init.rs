//! Initial values for parameters, with PyTorch's names and, after the same `manual_seed`, PyTorch's numbers.
//!
//! ```
//! use orkest_core::{Device, Param, Tensor, manual_seed};
//! use orkest_nn::init::{self, FanMode, Nonlinearity};
//!
//! manual_seed(0);
//! let weight = Param::new(Tensor::zeros([256, 128], &Device::cpu()));
//! init::kaiming_normal_(&weight, FanMode::FanIn, Nonlinearity::Relu);
//! let std = weight.value().std(.., 1.0).item().unwrap();
//! assert!((std - (2.0f64 / 128.0).sqrt()).abs() < 0.002);
//! ```

use orkest_core::random::with_default_generator;
use orkest_core::special::erf;
use orkest_core::{DType, Device, Param, Result, Scalar, Tensor, no_grad};

/// Even random numbers from `[a, b)`.
#[track_caller]
pub fn uniform_(param: &Param, a: f64, b: f64) {
    let value = param.value();
    param.set_value(&Tensor::uniform(*value.shape(), a, b, (value.dtype(), value.device())));
}

/// Normal random numbers.
#[track_caller]
pub fn normal_(param: &Param, mean: f64, std: f64) {
    let value = param.value();
    param.set_value(&Tensor::normal(*value.shape(), mean, std, (value.dtype(), value.device())));
}

/// One value everywhere.
#[track_caller]
pub fn constant_(param: &Param, value: impl Into<Scalar>) {
    param.set_value(&param.value().full_like(value));
}

/// Ones.
#[track_caller]
pub fn ones_(param: &Param) {
    constant_(param, 1);
}

/// Zeros.
#[track_caller]
pub fn zeros_(param: &Param) {
    constant_(param, 0);
}

/// Ones on the diagonal of a matrix, zeros elsewhere.
///
/// # Panics
/// If the parameter is no matrix.
#[track_caller]
pub fn eye_(param: &Param) {
    let value = param.value();
    let [rows, columns] = matrix("eye_", param);
    let ones = (0..rows * columns).map(|i| if i / columns == i % columns { 1.0 } else { 0.0 }).collect();
    set(param, ones, &value);
}

/// Normal random numbers cut off at `a` and `b`; PyTorch's defaults are 0, 1, -2 and 2.
///
/// Numbers outside are drawn again; where few would be inside, even numbers are drawn and rejected by the bell's height instead.
///
/// # Panics
/// If `std` is not positive or `a` not below `b`.
#[track_caller]
pub fn trunc_normal_(param: &Param, mean: f64, std: f64, a: f64, b: f64) {
    assert!(std > 0.0 && a < b, "trunc_normal_: std {std} must be positive and [{a}, {b}] an interval");
    let value = param.value();
    let cpu = Device::cpu();
    let options = (value.dtype(), &cpu);
    let below = |x: f64| (1.0 + erf((x - mean) / std / 2f64.sqrt())) / 2.0;
    let any = |t: &Tensor| ok("trunc_normal_", t.any(..).item()) != 0.0;
    let drawn = no_grad(|| {
        if below(b) - below(a) > 0.3 {
            let draw = || Tensor::normal(*value.shape(), mean, std, options);
            let mut drawn = draw();
            loop {
                let outside = drawn.lt(a).logical_or(drawn.gt(b));
                if !any(&outside) {
                    return drawn;
                }
                drawn = outside.where_(draw(), drawn);
            }
        }
        let peak = -0.5 * ((mean.clamp(a, b) - mean) / std).powi(2);
        let draw = || Tensor::uniform(*value.shape(), a, b, options);
        let rejected = |x: &Tensor| {
            let height = ((x - mean) / std).square() * -0.5 - peak;
            Tensor::uniform(*value.shape(), 0.0, 1.0, options).log().gt(height)
        };
        let mut drawn = draw();
        let mut pending = rejected(&drawn);
        while any(&pending) {
            let candidates = draw();
            drawn = pending.where_(&candidates, drawn);
            pending = pending.logical_and(rejected(&candidates));
        }
        drawn
    });
    param.set_value(&drawn.to(value.device()));
}

/// Glorot's initialisation: even random numbers from `±gain · √(6 / (fan_in + fan_out))`
/// (<https://proceedings.mlr.press/v9/glorot10a.html>).
///
/// # Panics
/// If the parameter has fewer than two dimensions.
#[track_caller]
pub fn xavier_uniform_(param: &Param, gain: f64) {
    let bound = 3f64.sqrt() * xavier_std("xavier_uniform_", param, gain);
    uniform_(param, -bound, bound);
}

/// Glorot's initialisation: normal random numbers with `std = gain · √(2 / (fan_in + fan_out))`.
///
/// # Panics
/// If the parameter has fewer than two dimensions.
#[track_caller]
pub fn xavier_normal_(param: &Param, gain: f64) {
    normal_(param, 0.0, xavier_std("xavier_normal_", param, gain));
}

#[track_caller]
fn xavier_std(name: &str, param: &Param, gain: f64) -> f64 {
    let (fan_in, fan_out) = fans(name, param);
    gain * (2.0 / (fan_in + fan_out) as f64).sqrt()
}

/// He's initialisation: even random numbers from `±√3 · gain / √fan` (<https://arxiv.org/abs/1502.01852>).
///
/// PyTorch's defaults are [`FanMode::FanIn`] and `Nonlinearity::LeakyRelu(0.0)`.
///
/// # Panics
/// If the parameter has fewer than two dimensions.
#[track_caller]
pub fn kaiming_uniform_(param: &Param, mode: FanMode, nonlinearity: Nonlinearity) {
    let bound = 3f64.sqrt() * kaiming_std("kaiming_uniform_", param, mode, nonlinearity);
    uniform_(param, -bound, bound);
}

/// He's initialisation: normal random numbers with `std = gain / √fan`.
///
/// # Panics
/// If the parameter has fewer than two dimensions.
#[track_caller]
pub fn kaiming_normal_(param: &Param, mode: FanMode, nonlinearity: Nonlinearity) {
    normal_(param, 0.0, kaiming_std("kaiming_normal_", param, mode, nonlinearity));
}

#[track_caller]
fn kaiming_std(name: &str, param: &Param, mode: FanMode, nonlinearity: Nonlinearity) -> f64 {
    let (fan_in, fan_out) = fans(name, param);
    let fan = if mode == FanMode::FanIn { fan_in } else { fan_out };
    // Nothing is drawn for a parameter without elements: any finite value will do.
    calculate_gain(nonlinearity) / (fan.max(1) as f64).sqrt()
}

/// A random matrix with orthonormal rows (or columns, if it is taller than wide), times `gain`. Further dimensions count as
/// columns (<https://arxiv.org/abs/1312.6120>).
///
/// # Panics
/// If the parameter has fewer than two dimensions.
#[track_caller]
pub fn orthogonal_(param: &Param, gain: f64) {
    let value = param.value();
    let shape = *value.shape();
    assert!(shape.rank() >= 2, "orthogonal_: at least two dimensions are needed. parameter: {param:?}");
    if shape.numel() == 0 {
        return;
    }
    let (rows, columns) = (shape[0], shape.numel() / shape[0]);
    let drawn = Tensor::normal(shape, 0.0, 1.0, (value.dtype(), &Device::cpu())).to_dtype(DType::F64);
    let drawn = ok("orthogonal_", drawn.to_vec::<f64>());
    let (long, short) = (rows.max(columns), rows.min(columns));
    // The vectors to be made orthonormal, one after another: rows of a wide matrix, columns of a tall one.
    let place =
        |vector: usize, i: usize| if rows < columns { vector * columns + i } else { i * columns + vector };
    let mut basis: Vec<f64> = (0..short * long).map(|k| drawn[place(k / long, k % long)]).collect();
    orthonormalise(&mut basis, long);
    let mut values = vec![0.0; drawn.len()];
    for (k, x) in basis.iter().enumerate() {
        values[place(k / long, k % long)] = x * gain;
    }
    set(param, values, &value);
}

/// Gram and Schmidt's process on vectors of this length: the Q of a QR decomposition whose R has a positive diagonal.
fn orthonormalise(vectors: &mut [f64], length: usize) {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    for k in 0..vectors.len() / length {
        let (done, rest) = vectors.split_at_mut(k * length);
        let vector = &mut rest[..length];
        // Once more removes what rounding left in the first pass.
        for _ in 0..2 {
            for other in done.chunks_exact(length) {
                let part = dot(other, vector);
                vector.iter_mut().zip(other).for_each(|(x, y)| *x -= part * y);
            }
        }
        let norm = dot(vector, vector).sqrt();
        if norm > 0.0 {
            vector.iter_mut().for_each(|x| *x /= norm);
        }
    }
}

/// Normal random numbers, with the part `sparsity` of every column set to zero.
///
/// # Panics
/// If the parameter is no matrix or `sparsity` not in `[0, 1]`.
#[track_caller]
pub fn sparse_(param: &Param, sparsity: f64, std: f64) {
    let [rows, columns] = matrix("sparse_", param);
    assert!((0.0..=1.0).contains(&sparsity), "sparse_: sparsity must lie in [0, 1], got {sparsity}");
    let zeros = (sparsity * rows as f64).ceil() as usize;
    let value = param.value();
    let drawn =
        Tensor::normal(*value.shape(), 0.0, std, (value.dtype(), &Device::cpu())).to_dtype(DType::F64);
    let mut drawn = ok("sparse_", drawn.to_vec::<f64>());
    for column in 0..columns {
        let order = with_default_generator(|g| g.randperm(rows));
        for &row in &order[..zeros] {
            drawn[row as usize * columns + column] = 0.0;
        }
    }
    set(param, drawn, &value);
}

/// Which side of a weight keeps the variance that [`kaiming_uniform_`] and [`kaiming_normal_`] aim at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FanMode {
    /// The forward pass: the number of inputs.
    #[default]
    FanIn,
    /// The backward pass: the number of outputs.
    FanOut,
}

/// What comes after a layer, for [`calculate_gain`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Nonlinearity {
    /// Nothing.
    Linear,
    /// `1 / (1 + e⁻ˣ)`
    Sigmoid,
    /// tanh
    Tanh,
    /// `max(x, 0)`
    Relu,
    /// `x` if positive, else `slope · x`
    LeakyRelu(f64),
    /// The self-normalising unit.
    Selu,
}

/// The factor by which weights should be larger because of what follows them.
pub fn calculate_gain(nonlinearity: Nonlinearity) -> f64 {
    match nonlinearity {
        Nonlinearity::Linear | Nonlinearity::Sigmoid => 1.0,
        Nonlinearity::Tanh => 5.0 / 3.0,
        Nonlinearity::Relu => 2f64.sqrt(),
        Nonlinearity::LeakyRelu(slope) => (2.0 / (1.0 + slope * slope)).sqrt(),
        Nonlinearity::Selu => 0.75,
    }
}

/// How many inputs an output has, and how many outputs an input.
#[track_caller]
fn fans(name: &str, param: &Param) -> (usize, usize) {
    let shape = param.shape();
    assert!(shape.rank() >= 2, "{name}: at least two dimensions are needed. parameter: {param:?}");
    let window: usize = shape[2..].iter().product();
    (shape[1] * window, shape[0] * window)
}

#[track_caller]
fn matrix(name: &str, param: &Param) -> [usize; 2] {
    match param.shape()[..] {
        [rows, columns] => [rows, columns],
        _ => panic!("{name}: a matrix is needed. parameter: {param:?}"),
    }
}

/// Values of the parameter's shape, put where and as what it is.
#[track_caller]
fn set(param: &Param, values: Vec<f64>, like: &Tensor) {
    param.set_value(&Tensor::from_slice(&values, *like.shape(), (like.dtype(), like.device())));
}

#[track_caller]
fn ok<T>(name: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{name}: {e}"))
}
