//! New tensors: from values, patterns and random numbers.

use crate::device::Device;
use crate::dispatch::run_source;
use crate::dtype::{DType, Element, Scalar};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::op::Op;
use crate::random::with_default_generator;
use crate::shape::Shape;
use crate::tensor::{Tensor, empty_buffer};

/// Where a new tensor lives and what it holds: `&device`, `DType::I64` or `(DType::I64, &device)`.
///
/// Without a device it is the CPU; without a dtype each function has PyTorch's default.
#[derive(Clone, Debug, Default)]
pub struct TensorOptions {
    /// The element type, if given.
    pub dtype: Option<DType>,
    /// The device; the CPU by default.
    pub device: Device,
}

impl From<&Device> for TensorOptions {
    fn from(device: &Device) -> Self {
        TensorOptions { dtype: None, device: device.clone() }
    }
}

impl From<Device> for TensorOptions {
    fn from(device: Device) -> Self {
        TensorOptions { dtype: None, device }
    }
}

impl From<DType> for TensorOptions {
    fn from(dtype: DType) -> Self {
        TensorOptions { dtype: Some(dtype), device: Device::cpu() }
    }
}

impl From<(DType, &Device)> for TensorOptions {
    fn from((dtype, device): (DType, &Device)) -> Self {
        TensorOptions { dtype: Some(dtype), device: device.clone() }
    }
}

impl From<(DType, Device)> for TensorOptions {
    fn from((dtype, device): (DType, Device)) -> Self {
        TensorOptions { dtype: Some(dtype), device }
    }
}

impl From<()> for TensorOptions {
    fn from((): ()) -> Self {
        TensorOptions::default()
    }
}

/// Values that a tensor can be made of: scalars, slices, vectors and nested arrays of numbers or bools.
pub trait TensorData {
    /// The Rust type at the bottom.
    type Item: Element;
    /// The sizes, outermost first.
    ///
    /// # Panics
    /// If nested vectors have different lengths.
    #[track_caller]
    fn shape(&self) -> Vec<usize>;
    /// Appends all elements in row-major order.
    fn collect_into(&self, out: &mut Vec<Self::Item>);
}

macro_rules! scalar_data {
    ($($t:ty),*) => {$(
        impl TensorData for $t {
            type Item = $t;
            fn shape(&self) -> Vec<usize> { Vec::new() }
            fn collect_into(&self, out: &mut Vec<$t>) { out.push(*self); }
        }
    )*};
}
scalar_data!(f32, f64, crate::f16, crate::bf16, i64, i32, u8, bool);

impl<T: TensorData> TensorData for [T] {
    type Item = T::Item;
    fn shape(&self) -> Vec<usize> {
        let inner = if let Some(first) = self.first() { first.shape() } else { Vec::new() };
        for (i, row) in self.iter().enumerate() {
            let shape = row.shape();
            assert!(shape == inner, "new: row {i} has shape {shape:?}, the first row {inner:?}");
        }
        std::iter::once(self.len()).chain(inner).collect()
    }
    fn collect_into(&self, out: &mut Vec<T::Item>) {
        self.iter().for_each(|row| row.collect_into(out));
    }
}

macro_rules! sequence_data {
    ($({$($generics:tt)*} $t:ty),*) => {$(
        impl<$($generics)*> TensorData for $t {
            type Item = T::Item;
            fn shape(&self) -> Vec<usize> { self[..].shape() }
            fn collect_into(&self, out: &mut Vec<T::Item>) { self[..].collect_into(out); }
        }
    )*};
}
sequence_data!({T: TensorData, const N: usize} [T; N], {T: TensorData} Vec<T>);

impl<T: TensorData + ?Sized> TensorData for &T {
    type Item = T::Item;
    fn shape(&self) -> Vec<usize> {
        (**self).shape()
    }
    fn collect_into(&self, out: &mut Vec<T::Item>) {
        (**self).collect_into(out);
    }
}

/// A literal as `torch.tensor` reads it: floats become f32, integers i64, unless an element says otherwise by its type.
///
/// ```
/// # use orkest_core::{tensor, DType};
/// assert_eq!(tensor![[1.0, 2.0], [3.0, 4.0]].dtype(), DType::F32);
/// assert_eq!(tensor![1, 2, 3].dtype(), DType::I64);
/// ```
#[macro_export]
macro_rules! tensor {
    ($($values:tt)*) => { $crate::Tensor::literal([$($values)*], &$crate::Device::cpu()) };
}

impl Tensor {
    /// From numbers: a scalar, a slice, a vector or nested arrays. The dtype is that of the numbers, unless `options` names one.
    ///
    /// ```
    /// # use orkest_core::{Device, DType, Tensor};
    /// let x = Tensor::new([[1.0f32, 2.0], [3.0, 4.0]], &Device::cpu());
    /// assert_eq!(x.shape(), &[2, 2]);
    /// let ids = Tensor::new(vec![1i64, 2, 3], &Device::cpu());
    /// assert_eq!(ids.dtype(), DType::I64);
    /// ```
    ///
    /// # Panics
    /// If nested vectors have different lengths, or the device cannot hold the tensor.
    #[track_caller]
    pub fn new(data: impl TensorData, options: impl Into<TensorOptions>) -> Tensor {
        let shape = Shape::new(&data.shape());
        let mut values = Vec::with_capacity(shape.numel());
        data.collect_into(&mut values);
        Tensor::from_slice(&values, shape, options)
    }

    /// Behind [`tensor!`](crate::tensor!): untyped Rust literals (f64, i32) as PyTorch reads them (f32, i64).
    #[doc(hidden)]
    #[track_caller]
    pub fn literal<D: TensorData>(data: D, device: &Device) -> Tensor {
        let dtype = match D::Item::DTYPE {
            DType::F64 => DType::F32,
            DType::I32 => DType::I64,
            other => other,
        };
        Tensor::new(data, (dtype, device))
    }

    /// From numbers in row-major order.
    ///
    /// # Panics
    /// If the shape has another number of elements, or the device cannot hold the tensor.
    #[track_caller]
    pub fn from_slice<T: Element>(
        values: &[T],
        shape: impl Into<Shape>,
        options: impl Into<TensorOptions>,
    ) -> Tensor {
        let (shape, options) = (shape.into(), options.into());
        assert!(
            shape.checked_numel() == Some(values.len()),
            "from_slice: {} values do not fill shape {shape}",
            values.len()
        );
        let dtype = options.dtype.unwrap_or(T::DTYPE);
        let bytes = bytemuck::cast_slice(values);
        if dtype == T::DTYPE {
            return ok("from_slice", Tensor::from_bytes(bytes, shape, dtype, &options.device));
        }
        // Converted on the host: the device may not know the type of the values.
        let host = ok("from_slice", Tensor::from_bytes(bytes, shape, T::DTYPE, &Device::cpu()));
        let converted = host.to_dtype(dtype).to(&options.device);
        let buffer = converted.view_of().buffer.clone();
        Tensor::from_buffer(buffer, Layout::contiguous(shape), dtype, options.device, "new")
    }

    /// From bytes of `dtype` in row-major order and native byte order.
    ///
    /// # Errors
    /// If the length does not fit the shape, a bool byte is neither 0 nor 1, or the device cannot hold the tensor.
    #[track_caller]
    pub fn from_bytes(
        bytes: &[u8],
        shape: impl Into<Shape>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let shape = shape.into();
        let expected = shape.checked_numel().and_then(|n| n.checked_mul(dtype.size()));
        if expected != Some(bytes.len()) {
            return Err(Error::Data(format!(
                "from_bytes: {} bytes do not fill a {dtype} tensor of shape {shape}",
                bytes.len()
            )));
        }
        if dtype == DType::Bool && bytes.iter().any(|&b| b > 1) {
            return Err(Error::Data("from_bytes: a bool is stored as 0 or 1, found another byte".into()));
        }
        let buffer = if bytes.is_empty() { empty_buffer() } else { device.backend().upload(bytes, dtype)? };
        Ok(Tensor::from_buffer(buffer, Layout::contiguous(shape), dtype, device.clone(), "new"))
    }

    /// Uninitialised memory that the caller overwrites completely.
    #[track_caller]
    pub(crate) fn uninit(name: &'static str, shape: Shape, dtype: DType, device: &Device) -> Tensor {
        ok(name, Tensor::try_uninit(name, shape, dtype, device))
    }

    #[track_caller]
    fn try_uninit(name: &'static str, shape: Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        let too_large = || {
            Error::Data(format!(
                "{name}: a {dtype} tensor of shape {shape} does not fit in the address space"
            ))
        };
        let numel = shape.checked_numel().ok_or_else(too_large)?;
        numel.checked_mul(dtype.size()).filter(|&b| b <= isize::MAX as usize).ok_or_else(too_large)?;
        let buffer = if numel == 0 { empty_buffer() } else { device.backend().allocate(numel, dtype)? };
        Ok(Tensor::from_buffer(buffer, Layout::contiguous(shape), dtype, device.clone(), name))
    }

    /// Filled with zeros; f32 unless `options` names a dtype.
    ///
    /// # Panics
    /// If the device has no memory for it; [`Tensor::try_zeros`] returns that as an error.
    #[track_caller]
    pub fn zeros(shape: impl Into<Shape>, options: impl Into<TensorOptions>) -> Tensor {
        let options = options.into();
        fill("zeros", shape.into(), Scalar::Int(0), options.dtype.unwrap_or(DType::F32), &options.device)
    }

    /// Filled with zeros; f32 unless `options` names a dtype.
    ///
    /// # Errors
    /// If the shape is too large or the device has no memory for it.
    #[track_caller]
    pub fn try_zeros(shape: impl Into<Shape>, options: impl Into<TensorOptions>) -> Result<Tensor> {
        let options = options.into();
        let mut out =
            Tensor::try_uninit("zeros", shape.into(), options.dtype.unwrap_or(DType::F32), &options.device)?;
        out.fill_(0);
        Ok(out)
    }

    /// Filled with ones; f32 unless `options` names a dtype.
    #[track_caller]
    pub fn ones(shape: impl Into<Shape>, options: impl Into<TensorOptions>) -> Tensor {
        let options = options.into();
        fill("ones", shape.into(), Scalar::Int(1), options.dtype.unwrap_or(DType::F32), &options.device)
    }

    /// Filled with `value`; bool, i64 or f32 by the value's kind unless `options` names a dtype.
    #[track_caller]
    pub fn full(
        shape: impl Into<Shape>,
        value: impl Into<Scalar>,
        options: impl Into<TensorOptions>,
    ) -> Tensor {
        let (value, options) = (value.into(), options.into());
        fill("full", shape.into(), value, options.dtype.unwrap_or(value.default_dtype()), &options.device)
    }

    /// Zeros of this tensor's shape, dtype and device.
    #[track_caller]
    pub fn zeros_like(&self) -> Tensor {
        fill("zeros_like", *self.shape(), Scalar::Int(0), self.dtype(), self.device())
    }

    /// Ones of this tensor's shape, dtype and device.
    #[track_caller]
    pub fn ones_like(&self) -> Tensor {
        fill("ones_like", *self.shape(), Scalar::Int(1), self.dtype(), self.device())
    }

    /// `value` in this tensor's shape, dtype and device.
    #[track_caller]
    pub fn full_like(&self, value: impl Into<Scalar>) -> Tensor {
        fill("full_like", *self.shape(), value.into(), self.dtype(), self.device())
    }

    /// Even random numbers from `[0, 1)` in this tensor's shape, dtype and device.
    #[track_caller]
    pub fn rand_like(&self) -> Tensor {
        Tensor::rand(*self.shape(), (self.dtype(), self.device()))
    }

    /// Standard normal random numbers in this tensor's shape, dtype and device.
    #[track_caller]
    pub fn randn_like(&self) -> Tensor {
        Tensor::randn(*self.shape(), (self.dtype(), self.device()))
    }

    /// `start, start + step, ..` up to but not including `end`. i64 if all three are integers, else f32.
    ///
    /// # Panics
    /// If `step` is zero or leads away from `end`, or a bound is not finite.
    #[track_caller]
    pub fn arange(
        start: impl Into<Scalar>,
        end: impl Into<Scalar>,
        step: impl Into<Scalar>,
        options: impl Into<TensorOptions>,
    ) -> Tensor {
        let (start, end, step, options) = (start.into(), end.into(), step.into(), options.into());
        let natural = if [start, end, step].iter().any(|s| matches!(s, Scalar::Float(_))) {
            DType::F32
        } else {
            DType::I64
        };
        let (a, b, s) = (start.as_f64(), end.as_f64(), step.as_f64());
        assert!(
            a.is_finite() && b.is_finite() && s.is_finite() && s != 0.0,
            "arange: from {start} to {end} by {step}"
        );
        assert!((b - a) * s >= 0.0, "arange: step {step} leads away from {end} (start {start})");
        let len = match (start, end, step) {
            (Scalar::Int(a), Scalar::Int(b), Scalar::Int(s)) => {
                (b as i128 - a as i128).unsigned_abs().div_ceil(s.unsigned_abs() as u128) as f64
            }
            _ => ((b - a) / s).ceil(),
        };
        assert!(len < isize::MAX as f64, "arange: {len} elements are too many");
        let dtype = options.dtype.unwrap_or(natural);
        run_source("arange", Op::Arange { start, step }, Shape::new(&[len as usize]), dtype, &options.device)
    }

    /// `steps` evenly spaced numbers from `start` to `end`, both included; f32 unless `options` names a dtype.
    #[track_caller]
    pub fn linspace(start: f64, end: f64, steps: usize, options: impl Into<TensorOptions>) -> Tensor {
        let options = options.into();
        require_host_memory::<f64>("linspace", steps.into());
        let step = if steps > 1 { (end - start) / (steps - 1) as f64 } else { 0.0 };
        // From both ends towards the middle, so that the last number is exactly `end`.
        let values: Vec<f64> = (0..steps)
            .map(|i| {
                if i < steps.div_ceil(2) {
                    start + i as f64 * step
                } else {
                    end - (steps - 1 - i) as f64 * step
                }
            })
            .collect();
        let dtype = options.dtype.unwrap_or(DType::F32);
        Tensor::from_slice(&values, steps, (dtype, &options.device))
    }

    /// The `n x n` identity matrix; f32 unless `options` names a dtype.
    #[track_caller]
    pub fn eye(n: usize, options: impl Into<TensorOptions>) -> Tensor {
        let options = options.into();
        let rows = Tensor::arange(0, n, 1, &options.device).unsqueeze(1);
        let columns = Tensor::arange(0, n, 1, &options.device).unsqueeze(0);
        rows.eq(&columns).to_dtype(options.dtype.unwrap_or(DType::F32))
    }

    /// Even random numbers from `[0, 1)`: PyTorch's CPU numbers for the same [`manual_seed`](crate::manual_seed).
    ///
    /// # Panics
    /// If `options` names a dtype that is not a float.
    #[track_caller]
    pub fn rand(shape: impl Into<Shape>, options: impl Into<TensorOptions>) -> Tensor {
        Tensor::uniform(shape, 0.0, 1.0, options)
    }

    /// Even random numbers from `[low, high)`, as PyTorch's `uniform_`.
    ///
    /// # Panics
    /// If `options` names a dtype that is not a float.
    #[track_caller]
    pub fn uniform(
        shape: impl Into<Shape>,
        low: f64,
        high: f64,
        options: impl Into<TensorOptions>,
    ) -> Tensor {
        host_random(
            "rand",
            shape.into(),
            options.into(),
            |out| with_default_generator(|g| g.fill_uniform_f32(out, low as f32, high as f32)),
            |out| with_default_generator(|g| g.fill_uniform_f64(out, low, high)),
        )
    }

    /// Standard normal random numbers: PyTorch's CPU numbers for the same [`manual_seed`](crate::manual_seed).
    ///
    /// # Panics
    /// If `options` names a dtype that is not a float.
    #[track_caller]
    pub fn randn(shape: impl Into<Shape>, options: impl Into<TensorOptions>) -> Tensor {
        Tensor::normal(shape, 0.0, 1.0, options)
    }

    /// Normal random numbers with this mean and standard deviation, as PyTorch's `normal_`.
    ///
    /// # Panics
    /// If `options` names a dtype that is not a float.
    #[track_caller]
    pub fn normal(shape: impl Into<Shape>, mean: f64, std: f64, options: impl Into<TensorOptions>) -> Tensor {
        host_random(
            "randn",
            shape.into(),
            options.into(),
            |out| with_default_generator(|g| g.fill_normal_f32(out, mean, std)),
            |out| with_default_generator(|g| g.fill_normal_f64(out, mean, std)),
        )
    }

    /// Random integers from `low` to `high - 1`; i64 unless `options` names a dtype.
    ///
    /// # Panics
    /// If the range is empty.
    #[track_caller]
    pub fn randint(
        low: i64,
        high: i64,
        shape: impl Into<Shape>,
        options: impl Into<TensorOptions>,
    ) -> Tensor {
        assert!(low < high, "randint: the range {low}..{high} is empty");
        let (shape, options) = (shape.into(), options.into());
        let numel = require_host_memory::<i64>("randint", shape);
        let values = with_default_generator(|g| g.randint(low, high, numel));
        Tensor::from_slice(&values, shape, (options.dtype.unwrap_or(DType::I64), &options.device))
    }

    /// The numbers `0..n` in random order; i64.
    #[track_caller]
    pub fn randperm(n: usize, options: impl Into<TensorOptions>) -> Tensor {
        let options = options.into();
        require_host_memory::<i64>("randperm", n.into());
        let values = with_default_generator(|g| g.randperm(n));
        Tensor::from_slice(&values, n, (options.dtype.unwrap_or(DType::I64), &options.device))
    }

    /// Ones with the probabilities in this tensor, else zeros; same dtype, no gradient.
    ///
    /// # Panics
    /// If the dtype is not a float or a probability lies outside `[0, 1]`.
    #[track_caller]
    pub fn bernoulli(&self) -> Tensor {
        self.require_float("bernoulli");
        let p = ok("bernoulli", self.detach().to(&Device::cpu()).to_dtype(DType::F64).to_vec::<f64>());
        if let Some(p) = p.iter().find(|p| !(0.0..=1.0).contains(*p)) {
            panic!("bernoulli: {p} is no probability. tensor: {}", self.describe());
        }
        let values: Vec<f64> =
            with_default_generator(|g| p.iter().map(|&p| if g.bernoulli(p) { 1.0 } else { 0.0 }).collect());
        Tensor::from_slice(&values, *self.shape(), (self.dtype(), self.device()))
    }

    /// `num_samples` positions drawn from the last dimension, with the values there as weights; i64 `[.., num_samples]`.
    ///
    /// # Errors
    /// If a weight is negative or not finite, all weights of a row are zero, or fewer than `num_samples` are positive when drawing
    /// without replacement.
    ///
    /// # Panics
    /// If the tensor does not have 1 or 2 dimensions or is not a float.
    #[track_caller]
    pub fn multinomial(&self, num_samples: usize, replacement: bool) -> Result<Tensor> {
        self.require_float("multinomial");
        assert!(
            matches!(self.rank(), 1 | 2),
            "multinomial: weights must have 1 or 2 dimensions. tensor: {}",
            self.describe()
        );
        let classes = self.size(-1);
        let weights = self.detach().to(&Device::cpu()).to_dtype(DType::F64).to_vec::<f64>()?;
        let mut drawn = Vec::with_capacity(weights.len() / classes.max(1) * num_samples);
        for row in weights.chunks(classes.max(1)) {
            drawn.extend(with_default_generator(|g| {
                draw(row, num_samples, replacement, || g.uniform_f64(0.0, 1.0))
            })?);
        }
        let rows = self.shape().without(self.rank() - 1);
        Ok(Tensor::from_slice(&drawn, rows.inserted(rows.rank(), num_samples), self.device()))
    }
}

/// Draws positions of `weights` by walking the running sum.
fn draw(weights: &[f64], n: usize, replacement: bool, mut uniform: impl FnMut() -> f64) -> Result<Vec<i64>> {
    if let Some(w) = weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
        return Err(Error::Data(format!("multinomial: {w} is no weight (finite and not negative)")));
    }
    let positive = weights.iter().filter(|&&w| w > 0.0).count();
    if positive == 0 || !replacement && positive < n {
        return Err(Error::Data(format!(
            "multinomial: {n} samples cannot be drawn from {positive} positive weights"
        )));
    }
    let mut weights = weights.to_vec();
    let mut drawn = Vec::with_capacity(n);
    for _ in 0..n {
        let mut left = uniform() * weights.iter().sum::<f64>();
        let mut chosen = 0;
        for (i, &w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            chosen = i;
            left -= w;
            if left < 0.0 {
                break;
            }
        }
        drawn.push(chosen as i64);
        if !replacement {
            weights[chosen] = 0.0;
        }
    }
    Ok(drawn)
}

/// Coordinate grids from 1-D tensors, with the first one varying along the first dimension (`indexing="ij"`).
///
/// # Panics
/// If a tensor does not have one dimension.
#[track_caller]
pub fn meshgrid(tensors: &[&Tensor]) -> Vec<Tensor> {
    let sizes: Vec<usize> = tensors.iter().map(|t| t.dims::<1>()[0]).collect();
    let place = |(i, t): (usize, &&Tensor)| {
        let mut shape = vec![1; sizes.len()];
        shape[i] = sizes[i];
        t.reshape(shape).expand(sizes.clone())
    };
    tensors.iter().enumerate().map(place).collect()
}

#[track_caller]
fn fill(name: &'static str, shape: Shape, value: Scalar, dtype: DType, device: &Device) -> Tensor {
    require_fit(name, value, dtype);
    run_source(name, Op::Fill(value), shape, dtype, device)
}

/// Draws on the host, in f64 for f64 and in f32 for everything narrower, as PyTorch does on the CPU.
#[track_caller]
fn host_random(
    name: &'static str,
    shape: Shape,
    options: TensorOptions,
    fill_f32: impl FnOnce(&mut [f32]),
    fill_f64: impl FnOnce(&mut [f64]),
) -> Tensor {
    let dtype = options.dtype.unwrap_or(DType::F32);
    assert!(dtype.is_float(), "{name}: a float dtype is needed, not {dtype}");
    if dtype == DType::F64 {
        let mut values = host_zeros(name, shape);
        fill_f64(&mut values);
        Tensor::from_slice(&values, shape, &options.device)
    } else {
        let mut values = host_zeros(name, shape);
        fill_f32(&mut values);
        Tensor::from_slice(&values, shape, (dtype, &options.device))
    }
}

/// The host's memory for random numbers, which `device` is to hold.
#[track_caller]
fn host_zeros<T: Element>(name: &str, shape: Shape) -> Vec<T> {
    vec![T::default(); require_host_memory::<T>(name, shape)]
}

/// The number of elements, of which the host has memory for a vector: running out of it later would end the program.
#[track_caller]
fn require_host_memory<T: Element>(name: &str, shape: Shape) -> usize {
    match shape.checked_numel() {
        Some(n) if Vec::<T>::new().try_reserve_exact(n).is_ok() => n,
        _ => panic!("{name}: there is no memory for a {} tensor of shape {shape}", T::DTYPE),
    }
}

/// # Panics
/// If `dtype` does not have the number `value`.
#[track_caller]
pub(crate) fn require_fit(name: &str, value: Scalar, dtype: DType) {
    assert!(value.fits(dtype), "{name}: {dtype} does not have the number {value}");
}

#[track_caller]
pub(super) fn ok<T>(name: &str, result: Result<T>) -> T {
    match result {
        Ok(t) => t,
        Err(e) => panic!("{name}: {e}"),
    }
}
