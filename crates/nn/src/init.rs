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

#[cfg(test)]
mod tests {
    //! Expected numbers are those of `torch.nn.init` (2.15) after `torch.manual_seed(7)`.

    use super::*;
    use orkest_core::{manual_seed, rng_state};
    use std::sync::{Mutex, PoisonError};

    /// The generator is shared by all tests.
    static GENERATOR: Mutex<()> = Mutex::new(());

    #[track_caller]
    fn check(shape: &[usize], dtype: DType, fill: impl Fn(&Param), tolerance: f64, expected: &[f64]) {
        let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        manual_seed(7);
        let param = Param::new(Tensor::full(shape, 9.0, (dtype, &Device::cpu())));
        fill(&param);
        assert_eq!((param.dtype(), &param.shape()[..]), (dtype, shape));
        let found: Vec<f64> = param.value().to_dtype(DType::F64).to_vec().unwrap();
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= tolerance, "found {found:?}, expected {expected:?}");
        }
        assert_eq!(found.len(), expected.len());
    }

    #[test]
    fn xavier_uniform() {
        check(
            &[3, 5],
            DType::F32,
            |p| xavier_uniform_(p, 1.5),
            2e-7,
            &[
                0.0907314196228981,
                -0.7825322151184082,
                0.41364410519599915,
                0.4076128602027893,
                -0.6943057775497437,
                -0.19469617307186127,
                -0.7610127925872803,
                0.3370649516582489,
                -0.3499188721179962,
                0.9126219153404236,
                0.9221693277359009,
                0.13233354687690735,
                -0.5538084506988525,
                -0.7630045413970947,
                -0.14265990257263184,
            ],
        );
    }

    #[test]
    fn xavier_normal() {
        check(
            &[2, 3, 2, 2],
            DType::F32,
            |p| xavier_normal_(p, 1.0),
            2e-7,
            &[
                -0.2593493163585663,
                0.12510955333709717,
                0.2842598259449005,
                -0.43905186653137207,
                -0.05280877649784088,
                0.09017233550548553,
                -0.2027309387922287,
                -0.2825986444950104,
                -0.26844847202301025,
                -0.3848268687725067,
                -0.02562127448618412,
                0.43053939938545227,
                -0.4121133089065552,
                0.0276630911976099,
                -0.43796324729919434,
                0.15924088656902313,
                -0.27407512068748474,
                -0.17835457623004913,
                -0.6503105759620667,
                -0.1128055676817894,
                0.3464529514312744,
                0.15253378450870514,
                0.4423768222332001,
                0.44456973671913147,
            ],
        );
    }

    #[test]
    fn kaiming_uniform() {
        check(
            &[2, 3, 2],
            DType::F32,
            |p| kaiming_uniform_(p, FanMode::FanIn, Nonlinearity::LeakyRelu(5f64.sqrt())),
            2e-7,
            &[
                0.028514135628938675,
                -0.245926171541214,
                0.12999580800533295,
                0.12810038030147552,
                -0.21819928288459778,
                -0.06118711084127426,
                -0.23916326463222504,
                0.10592930018901825,
                -0.10996890813112259,
                0.28680941462516785,
                0.2898098826408386,
                0.041588425636291504,
            ],
        );
    }

    #[test]
    fn kaiming_normal() {
        check(
            &[2, 3, 3],
            DType::F32,
            |p| kaiming_normal_(p, FanMode::FanOut, Nonlinearity::Relu),
            5e-7,
            &[
                -0.4735048711299896,
                0.2284177541732788,
                1.1121891736984253,
                -0.1905323565006256,
                0.11457230150699615,
                0.451529860496521,
                0.5999290943145752,
                -0.4182964563369751,
                -0.490117609500885,
                -0.702594518661499,
                -1.048311471939087,
                -0.1993255317211151,
                -1.190194845199585,
                0.38919222354888916,
                -0.7640340328216553,
                -0.7850629687309265,
                -0.5003904104232788,
                -0.32562941312789917,
            ],
        );
    }

    #[test]
    fn trunc_normal() {
        check(
            &[4, 5],
            DType::F32,
            |p| trunc_normal_(p, 0.0, 0.5, -0.4, 0.6),
            2e-7,
            &[
                0.47855108976364136,
                0.19781558215618134,
                0.44945424795150757,
                -0.30284014344215393,
                0.09922252595424652,
                0.39103633165359497,
                0.5195538401603699,
                -0.36225536465644836,
                -0.2660394310951233,
                0.14957092702388763,
                -0.040510792285203934,
                -0.08172743767499924,
                0.3450621962547302,
                0.33705034852027893,
                0.13293686509132385,
                -0.09534069150686264,
                0.1918187290430069,
                -0.28200334310531616,
                -0.031283698976039886,
                -0.17836126685142517,
            ],
        );
    }

    #[test]
    fn trunc_normal_of_a_tail() {
        check(
            &[4, 4],
            DType::F32,
            |p| trunc_normal_(p, 0.0, 1.0, 1.5, 2.5),
            5e-7,
            &[
                1.695615530014038,
                1.698803186416626,
                2.2437326908111572,
                2.156890392303467,
                1.6277543306350708,
                1.9250614643096924,
                1.874202013015747,
                1.6952581405639648,
                1.8653161525726318,
                1.7528798580169678,
                1.8826384544372559,
                1.8387572765350342,
                1.7108112573623657,
                1.7063193321228027,
                2.1685574054718018,
                1.9354575872421265,
            ],
        );
    }

    #[test]
    fn orthogonal_wide() {
        check(
            &[3, 4],
            DType::F32,
            |p| orthogonal_(p, 2.0),
            2e-6,
            &[
                -0.17615342140197754,
                0.9433655738830566,
                1.136181354522705,
                -1.3372071981430054,
                1.8680603504180908,
                -0.17058253288269043,
                0.6647504568099976,
                0.19839102029800415,
                -0.3823142647743225,
                -1.7285722494125366,
                0.7815288305282593,
                -0.5050609707832336,
            ],
        );
    }

    #[test]
    fn orthogonal_tall() {
        check(
            &[5, 2, 2],
            DType::F32,
            |p| orthogonal_(p, 1.0),
            2e-6,
            &[
                -0.3233412504196167,
                0.22489239275455475,
                0.5704739689826965,
                -0.6889275908470154,
                0.07823773473501205,
                0.45058637857437134,
                0.2399524450302124,
                0.046327754855155945,
                -0.3346855044364929,
                -0.7029150128364563,
                0.5092513561248779,
                0.2745702266693115,
                -0.8127456903457642,
                0.38098663091659546,
                -0.17286887764930725,
                0.39315545558929443,
                -0.3417004644870758,
                -0.32734501361846924,
                -0.5725046396255493,
                -0.5415464043617249,
            ],
        );
    }

    #[test]
    fn orthogonal_f64() {
        check(
            &[4, 3],
            DType::F64,
            |p| orthogonal_(p, 1.0),
            1e-12,
            &[
                -0.07146235682495017,
                0.3939887492441983,
                0.7793878636170242,
                -0.5424816730084973,
                0.52274733620165,
                -0.5431827668927736,
                -0.17312432779574452,
                0.5666179755755378,
                0.1827947688178697,
                -0.8189229103720308,
                -0.5004519534558243,
                0.2531661752486366,
            ],
        );
    }

    #[test]
    fn sparse() {
        check(
            &[5, 4],
            DType::F32,
            |p| sparse_(p, 0.4, 0.1),
            2e-7,
            &[
                -0.08201345056295395,
                0.03956311568617821,
                0.0,
                -0.13884039223194122,
                0.0,
                0.07820726931095123,
                0.10391076654195786,
                -0.07245107740163803,
                -0.08489086478948593,
                0.0,
                0.0,
                0.0,
                -0.20614778995513916,
                0.06741007417440414,
                -0.13233457505702972,
                0.0,
                0.0,
                0.0,
                -0.20564626157283783,
                -0.035672254860401154,
            ],
        );
    }

    #[test]
    fn constants() {
        check(&[2, 2], DType::F32, |p| constant_(p, 0.5), 0.0, &[0.5; 4]);
        check(&[3], DType::F64, ones_, 0.0, &[1.0; 3]);
        check(&[3], DType::F32, zeros_, 0.0, &[0.0; 3]);
        check(&[2, 3], DType::F32, eye_, 0.0, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn gains() {
        let gains =
            [Nonlinearity::Linear, Nonlinearity::Tanh, Nonlinearity::LeakyRelu(0.01), Nonlinearity::Selu];
        assert_eq!(gains.map(calculate_gain), [1.0, 5.0 / 3.0, 1.4141428569978354, 0.75]);
    }

    #[test]
    fn nothing_is_drawn_for_a_matrix_without_elements() {
        let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        let before = rng_state();
        let param = Param::new(Tensor::zeros([4, 0], &Device::cpu()));
        kaiming_uniform_(&param, FanMode::FanIn, Nonlinearity::Relu);
        orthogonal_(&param, 1.0);
        assert_eq!(rng_state(), before);
    }

    #[test]
    #[should_panic(expected = "xavier_normal_: at least two dimensions are needed")]
    fn a_vector_has_no_fans() {
        xavier_normal_(&Param::new(Tensor::zeros(3, &Device::cpu())), 1.0);
    }
}
