//! A complete backend in one file: the plain interpreter of the primitives.
//!
//! It is the host device that is always there, the yardstick the other backends are tested against, and the worked example of
//! "write a backend". So it does one thing at a time: read every operand as row-major `f64` or `i64` numbers, compute with
//! those, write the results rounded to the output's dtype. It knows no fused operation: `core` runs their lowerings.

use crate::backend::{Backend, Buffer, Output, RawBuffer, View};
use crate::dtype::{DType, Element, Scalar};
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::layout::Layout;
use crate::op::{ArgReduce, Binary, Compare, Cumulative, Op, RandomKind, Reduce, Unary, Window};
use crate::random::philox;
use crate::shape::Shape;
use crate::special::erf;
use crate::with_dtype;
use Scalar::{Bool, Float, Int};
use std::any::Any;
use std::cmp::Ordering;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The plain, single-threaded interpreter.
pub struct Reference;

impl Backend for Reference {
    fn name(&self) -> &str {
        "reference"
    }

    fn upload(&self, bytes: &[u8], dtype: DType) -> Result<Buffer> {
        let mut memory = Memory::zeroed(bytes.len())?;
        memory.bytes_mut().copy_from_slice(bytes);
        with_dtype!(dtype, T => T::from_bytes(memory.bytes()).map(|_| ()))?;
        Ok(memory.into_buffer())
    }

    fn allocate(&self, len: usize, dtype: DType) -> Result<Buffer> {
        Ok(Memory::zeroed(len.saturating_mul(dtype.size()))?.into_buffer())
    }

    fn download(&self, view: View<'_>) -> Result<Vec<u8>> {
        Ok(row_major(&view)?.bytes().to_vec())
    }

    fn execute(&self, op: &Op, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
        for output in outputs.iter_mut().filter(|o| o.buffer.is_none()) {
            output.buffer = Some(self.allocate(output.layout.numel(), output.dtype)?);
        }
        if let Op::Custom(kernel) = op {
            return custom(kernel, inputs, outputs);
        }
        // Everything is read before anything is written, so an output may well be one of the inputs.
        let results = compute(op, inputs, outputs)?;
        for (output, values) in outputs.iter().zip(results) {
            write(output, &values);
        }
        Ok(())
    }
}

// ---- memory --------------------------------------------------------------------------------------------------------------

/// Zeroed bytes, aligned for every dtype.
struct Memory {
    words: Vec<u64>,
    len: usize,
}

impl Memory {
    fn zeroed(len: usize) -> Result<Memory> {
        let count = len.div_ceil(size_of::<u64>());
        let mut words = Vec::new();
        if words.try_reserve_exact(count).is_err() {
            return Err(Error::OutOfMemory { bytes: len, device: "reference".into() });
        }
        words.resize(count, 0);
        Ok(Memory { words, len })
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }

    fn into_buffer(self) -> Buffer {
        Arc::new(HostBuffer { size: self.len, memory: RwLock::new(self) })
    }
}

/// What this backend puts behind [`Buffer`].
struct HostBuffer {
    memory: RwLock<Memory>,
    size: usize,
}

impl RawBuffer for HostBuffer {
    fn size(&self) -> usize {
        self.size
    }
}

impl HostBuffer {
    fn of(buffer: &Buffer) -> &HostBuffer {
        let any: &dyn Any = &**buffer;
        any.downcast_ref().expect("core hands a backend only its own buffers")
    }

    fn lock(buffer: &Buffer) -> RwLockReadGuard<'_, Memory> {
        HostBuffer::of(buffer).memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_mut(buffer: &Buffer) -> RwLockWriteGuard<'_, Memory> {
        HostBuffer::of(buffer).memory.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The elements of a view in row-major order: floats as `Float`, integers and truth values as `Int`.
fn read(view: &View<'_>) -> Result<Vec<Scalar>> {
    let memory = HostBuffer::lock(view.buffer);
    let positions = view.layout.positions();
    with_dtype!(view.dtype, T => {
        let elements = T::from_bytes(memory.bytes())?;
        Ok(match T::DTYPE.is_float() {
            true => positions.map(|i| Float(elements[i].to_f64())).collect(),
            false => positions.map(|i| Int(elements[i].to_i64())).collect(),
        })
    })
}

/// Writes row-major values into an output, rounded to its dtype.
fn write(output: &Output, values: &[Scalar]) {
    let mut memory = HostBuffer::lock_mut(allocated(output));
    let bytes = memory.bytes_mut();
    with_dtype!(output.dtype, T => {
        for (i, value) in output.layout.positions().zip(values) {
            bytes[i * size_of::<T>()..][..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value.to::<T>()));
        }
    });
}

/// The elements of a view as bytes in row-major order.
fn row_major(view: &View<'_>) -> Result<Memory> {
    let size = view.dtype.size();
    let memory = HostBuffer::lock(view.buffer);
    let mut out = Memory::zeroed(view.layout.numel() * size)?;
    for (to, i) in out.bytes_mut().chunks_exact_mut(size).zip(view.layout.positions()) {
        to.copy_from_slice(&memory.bytes()[i * size..][..size]);
    }
    Ok(out)
}

fn allocated(output: &Output) -> &Buffer {
    output.buffer.as_ref().expect("outputs are allocated before anything runs")
}

/// What an output given in place holds now.
fn current(output: &Output) -> Result<Vec<Scalar>> {
    read(&View { buffer: allocated(output), layout: &output.layout, dtype: output.dtype })
}

// ---- the operations ------------------------------------------------------------------------------------------------------

/// The values of every output in row-major order.
fn compute(op: &Op, inputs: &[View<'_>], outputs: &[Output]) -> Result<Vec<Vec<Scalar>>> {
    let input = |i: usize| read(&inputs[i]);
    let shape = |i: usize| *inputs[i].layout.shape();
    let out_shape = *outputs[0].layout.shape();
    let one = match *op {
        Op::Copy => input(0)?,
        Op::Fill(value) => vec![value; out_shape.numel()],
        Op::Arange { start, step } => {
            (0..out_shape.numel()).map(|i| arange(start, step, i, outputs[0].dtype)).collect()
        }
        Op::Random { kind, seed, offset } => {
            (0..out_shape.numel()).map(|i| random(kind, seed, offset, i)).collect()
        }

        Op::Unary(f) => input(0)?.into_iter().map(|x| unary(f, x)).collect(),
        Op::Binary(f) => zip(input(0)?, input(1)?, |a, b| binary(f, a, b))?,
        Op::BinaryScalar { op: f, scalar, swapped } => {
            // PyTorch computes f16 and bf16 in f32, and so keeps the scalar in f32.
            let dtype = if inputs[0].dtype == DType::F64 { DType::F64 } else { DType::F32 };
            let b = if inputs[0].dtype.is_float() { round(scalar, dtype) } else { Int(scalar.as_i64()) };
            let a = input(0)?.into_iter();
            a.map(|a| if swapped { binary(f, b, a) } else { binary(f, a, b) }).collect::<Result<_>>()?
        }
        Op::Compare(f) => zip(input(0)?, input(1)?, |a, b| Ok(Bool(compare(f, a, b))))?,
        Op::CompareScalar(f, scalar) => {
            let b = if inputs[0].dtype.is_float() { round(scalar, inputs[0].dtype) } else { scalar };
            input(0)?.into_iter().map(|a| Bool(compare(f, a, b))).collect()
        }
        Op::Where => {
            let branches = input(1)?.into_iter().zip(input(2)?);
            input(0)?.into_iter().zip(branches).map(|(c, (a, b))| if is_true(c) { a } else { b }).collect()
        }

        Op::Reduce(f, dims) => reduce(f, &input(0)?, &shape(0), &dims.keep(shape(0))),
        Op::ArgReduce(f, dim) => {
            let x = input(0)?;
            lines(&shape(0), dim).map(|line| Int(arg_reduce(f, &x, &line))).collect()
        }
        Op::Cumulative(f, dim) => cumulative(f, input(0)?, &shape(0), dim),
        Op::Matmul => matmul(&input(0)?, &input(1)?, &shape(0), &shape(1)),

        Op::Gather { dim } => {
            let x = input(0)?;
            indexed("gather", &inputs[1], &shape(0), dim)?.into_iter().map(|at| x[at]).collect()
        }
        Op::IndexSelect { dim } => {
            let (x, index) = (input(0)?, along(inputs[1].layout, &out_shape, dim));
            let index = View { layout: &index, ..inputs[1] };
            indexed("index_select", &index, &shape(0), dim)?.into_iter().map(|at| x[at]).collect()
        }
        Op::Scatter { dim, add } => {
            let at = indexed(if add { "scatter_add" } else { "scatter" }, &inputs[0], &out_shape, dim)?;
            scatter(current(&outputs[0])?, &at, &input(1)?, add)
        }
        Op::IndexAdd { dim } => {
            let index = along(inputs[0].layout, &shape(1), dim);
            let at = indexed("index_add", &View { layout: &index, ..inputs[0] }, &out_shape, dim)?;
            scatter(current(&outputs[0])?, &at, &input(1)?, true)
        }
        Op::Sort { dim, descending } => {
            return Ok(sorted(&input(0)?, &shape(0), dim, descending, shape(0)[dim]));
        }
        Op::TopK { k, dim, largest } => return Ok(sorted(&input(0)?, &shape(0), dim, largest, k)),

        Op::Unfold(window) => {
            let x = input(0)?;
            patches(window, shape(0)[0] * shape(0)[1]).map(|at| at.map_or(Int(0), |at| x[at])).collect()
        }
        Op::Fold(window) => {
            let (at, x): (Vec<usize>, Vec<Scalar>) = patches(window, out_shape[0] * out_shape[1])
                .zip(input(0)?)
                .filter_map(|(at, x)| Some((at?, x)))
                .unzip();
            scatter(vec![zero(inputs[0].dtype); out_shape.numel()], &at, &x, true)
        }
        Op::MaxPool(window) => return Ok(max_pool(window, &input(0)?)),
        Op::AvgPool(window, count_padding) => avg_pool(window, count_padding, &input(0)?),
        Op::AvgPoolGrad(window, count_padding) => avg_pool_grad(window, count_padding, &input(0)?),

        _ => {
            let dtype = outputs[0].dtype;
            return Err(Error::Unsupported { op: op.name().into(), dtype, device: "reference".into() });
        }
    };
    Ok(vec![one])
}

fn zip(a: Vec<Scalar>, b: Vec<Scalar>, f: impl Fn(Scalar, Scalar) -> Result<Scalar>) -> Result<Vec<Scalar>> {
    a.into_iter().zip(b).map(|(a, b)| f(a, b)).collect()
}

fn custom(kernel: &Kernel, inputs: &[View<'_>], outputs: &[Output]) -> Result<()> {
    let inputs: Vec<(Memory, DType)> =
        inputs.iter().map(|view| Ok((row_major(view)?, view.dtype))).collect::<Result<_>>()?;
    let inputs: Vec<(&[u8], DType)> = inputs.iter().map(|(memory, dtype)| (memory.bytes(), *dtype)).collect();
    let Output { layout, dtype, .. } = outputs[0];
    let mut out = Memory::zeroed(layout.numel() * dtype.size())?;
    kernel.host(&inputs, out.bytes_mut(), dtype)?;
    let (buffer, row_major) = (out.into_buffer(), Layout::contiguous(*layout.shape()));
    write(&outputs[0], &read(&View { buffer: &buffer, layout: &row_major, dtype })?);
    Ok(())
}

fn arange(start: Scalar, step: Scalar, i: usize, dtype: DType) -> Scalar {
    match dtype.is_float() {
        true => Float(start.as_f64() + i as f64 * step.as_f64()),
        false => Int(start.as_i64().wrapping_add(step.as_i64().wrapping_mul(i as i64))),
    }
}

fn random(kind: RandomKind, seed: u64, offset: u64, i: usize) -> Scalar {
    let x = f64::from(philox::uniform(philox::word(seed, offset, i)));
    match kind {
        RandomKind::Uniform => Float(x),
        RandomKind::Bernoulli(p) => Bool(x < p),
    }
}

// ---- elementwise ---------------------------------------------------------------------------------------------------------

fn zero(dtype: DType) -> Scalar {
    if dtype.is_float() { Float(0.0) } else { Int(0) }
}

/// The nearest value that `dtype` has.
fn round(value: Scalar, dtype: DType) -> Scalar {
    with_dtype!(dtype, T => match T::DTYPE.is_float() {
        true => Float(value.to::<T>().to_f64()),
        false => Int(value.to::<T>().to_i64()),
    })
}

fn is_true(x: Scalar) -> bool {
    x.as_f64() != 0.0
}

/// What a function of one element is, by definition; floats in f64.
pub fn unary(f: Unary, x: Scalar) -> Scalar {
    match f {
        Unary::IsNan => Bool(x.as_f64().is_nan()),
        Unary::IsInf => Bool(x.as_f64().is_infinite()),
        Unary::IsFinite => Bool(x.as_f64().is_finite()),
        Unary::LogicalNot => Bool(!is_true(x)),
        _ => match x {
            Int(x) if f.keeps_integers() => Int(unary_int(f, x)),
            x => Float(unary_float(f, x.as_f64())),
        },
    }
}

fn unary_int(f: Unary, x: i64) -> i64 {
    match f {
        Unary::Neg => x.wrapping_neg(),
        Unary::Abs => x.wrapping_abs(),
        Unary::Sign => x.signum(),
        Unary::Square => x.wrapping_mul(x),
        Unary::Relu => x.max(0),
        Unary::Clamp { max, .. } if x as f64 > max => max as i64,
        Unary::Clamp { min, max } if (x as f64) < min => min.min(max) as i64,
        // Rounding does nothing to integers.
        _ => x,
    }
}

fn unary_float(f: Unary, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match f {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign if x == 0.0 || x.is_nan() => 0.0,
        Unary::Sign => x.signum(),
        Unary::Exp => x.exp(),
        Unary::Expm1 => x.exp_m1(),
        Unary::Log => x.ln(),
        Unary::Log1p => x.ln_1p(),
        Unary::Log2 => x.log2(),
        Unary::Log10 => x.log10(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Reciprocal => 1.0 / x,
        Unary::Square => x * x,
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tan => x.tan(),
        Unary::Atan => x.atan(),
        Unary::Tanh => x.tanh(),
        Unary::Sigmoid => sigmoid(x),
        Unary::LogSigmoid if x < 0.0 => x - x.exp().ln_1p(),
        Unary::LogSigmoid => -(-x).exp().ln_1p(),
        Unary::Erf => erf(x),
        Unary::Relu if x <= 0.0 => 0.0,
        Unary::Relu => x,
        Unary::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Unary::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Unary::Silu => x * sigmoid(x),
        Unary::Softplus { beta, threshold } if beta * x > threshold => x,
        Unary::Softplus { beta, .. } => (beta * x).exp().ln_1p() / beta,
        Unary::LeakyRelu(slope) => {
            if x > 0.0 {
                x
            } else {
                slope * x
            }
        }
        Unary::Elu(alpha) => {
            if x > 0.0 {
                x
            } else {
                alpha * x.exp_m1()
            }
        }
        // The upper limit wins where the limits cross.
        Unary::Clamp { max, .. } if x > max => max,
        Unary::Clamp { min, max } if x < min => min.min(max),
        Unary::Clamp { .. } => x,
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Trunc => x.trunc(),
        Unary::IsNan | Unary::IsInf | Unary::IsFinite | Unary::LogicalNot => {
            unreachable!("{f:?} gives no float")
        }
    }
}

/// What an operation of two elements is, by definition; floats in f64.
///
/// # Errors
/// If an integer is divided by zero.
pub fn binary(f: Binary, a: Scalar, b: Scalar) -> Result<Scalar> {
    Ok(match (a, b) {
        (Int(_), Int(0)) if matches!(f, Binary::Div | Binary::Remainder) => {
            return Err(Error::Data("division by zero".into()));
        }
        (Int(a), Int(b)) if f != Binary::Atan2 => Int(binary_int(f, a, b)),
        (a, b) => Float(binary_float(f, a.as_f64(), b.as_f64())),
    })
}

/// Truth values are 0 and 1 here: their sum turns into "or" when it is written, their product into "and".
fn binary_int(f: Binary, a: i64, b: i64) -> i64 {
    match f {
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::Mul => a.wrapping_mul(b),
        Binary::Pow => pow_int(a, b),
        Binary::Remainder => {
            let r = a.wrapping_rem(b);
            if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
        }
        Binary::Maximum => a.max(b),
        Binary::Minimum => a.min(b),
        Binary::Div => {
            let (q, r) = (a.wrapping_div(b), a.wrapping_rem(b));
            if r != 0 && (r < 0) != (b < 0) { q - 1 } else { q }
        }
        Binary::Atan2 => unreachable!("{f:?} is for floats"),
    }
}

fn pow_int(base: i64, exponent: i64) -> i64 {
    match base {
        1 => 1,
        -1 => {
            if exponent % 2 == 0 {
                1
            } else {
                -1
            }
        }
        _ if exponent < 0 => 0,
        // Wrapping multiplication is associative: square and multiply gives what repeated multiplication would.
        _ => (0..i64::BITS - exponent.leading_zeros()).rev().fold(1, |power: i64, bit| {
            let square = power.wrapping_mul(power);
            if exponent >> bit & 1 == 1 { square.wrapping_mul(base) } else { square }
        }),
    }
}

fn binary_float(f: Binary, a: f64, b: f64) -> f64 {
    match f {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Pow => a.powf(b),
        Binary::Remainder => {
            let r = a % b;
            if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
        }
        Binary::Maximum | Binary::Minimum if a.is_nan() || b.is_nan() => f64::NAN,
        Binary::Maximum => a.max(b),
        Binary::Minimum => a.min(b),
        Binary::Atan2 => a.atan2(b),
    }
}

/// What a comparison of two elements is, by definition.
pub fn compare(f: Compare, a: Scalar, b: Scalar) -> bool {
    let order = match (a, b) {
        (Int(a), Int(b)) => Some(a.cmp(&b)),
        (a, b) => a.as_f64().partial_cmp(&b.as_f64()),
    };
    match f {
        Compare::Eq => order == Some(Ordering::Equal),
        Compare::Ne => order != Some(Ordering::Equal),
        Compare::Lt => order == Some(Ordering::Less),
        Compare::Le => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        Compare::Gt => order == Some(Ordering::Greater),
        Compare::Ge => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    }
}

/// Ascending order in which NaN is larger than everything.
fn ascending(a: Scalar, b: Scalar) -> Ordering {
    match (a, b) {
        (Int(a), Int(b)) => a.cmp(&b),
        (a, b) => {
            let (a, b) = (a.as_f64(), b.as_f64());
            a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
        }
    }
}

// ---- reductions ----------------------------------------------------------------------------------------------------------

/// The row-major positions of every line along `dim`, one line after the other.
fn lines(shape: &Shape, dim: usize) -> impl Iterator<Item = Vec<usize>> + use<> {
    let len = shape[dim];
    let outer: usize = shape[..dim].iter().product();
    let inner: usize = shape[dim + 1..].iter().product();
    (0..outer * inner).map(move |line| {
        let start = line / inner * len * inner + line % inner;
        (0..len).map(|k| start + k * inner).collect()
    })
}

/// Values per line put back in row-major order, where every line has `len` of them.
fn from_lines(
    values: impl Iterator<Item = Vec<Scalar>>,
    shape: &Shape,
    dim: usize,
    len: usize,
) -> Vec<Scalar> {
    let shape = shape.with(dim, len);
    let mut out = vec![Int(0); shape.numel()];
    for (line, values) in lines(&shape, dim).zip(values) {
        for (at, value) in line.into_iter().zip(values) {
            out[at] = value;
        }
    }
    out
}

fn reduce(f: Reduce, x: &[Scalar], shape: &Shape, kept: &Shape) -> Vec<Scalar> {
    // Reduced dimensions have stride 0 here: the elements that fall together have one position.
    let target = Layout::contiguous(*kept).broadcast_to(shape).expect("sizes of 1 broadcast");
    let mut groups = vec![Vec::new(); kept.numel()];
    for (group, &value) in target.positions().zip(x) {
        groups[group].push(value);
    }
    groups.iter().map(|group| reduce_group(f, group)).collect()
}

fn reduce_group(f: Reduce, x: &[Scalar]) -> Scalar {
    let fold = |f: Binary| match x[0] {
        Float(_) => Float(x[1..].iter().fold(x[0].as_f64(), |sum, x| binary_float(f, sum, x.as_f64()))),
        _ => Int(x[1..].iter().fold(x[0].as_i64(), |sum, x| binary_int(f, sum, x.as_i64()))),
    };
    match f {
        Reduce::Sum => fold(Binary::Add),
        Reduce::Mean => Float(fold(Binary::Add).as_f64() / x.len() as f64),
        Reduce::Prod => fold(Binary::Mul),
        Reduce::Max => fold(Binary::Maximum),
        Reduce::Min => fold(Binary::Minimum),
        Reduce::Any => Bool(x.iter().any(|&x| is_true(x))),
        Reduce::All => Bool(x.iter().all(|&x| is_true(x))),
    }
}

fn arg_reduce(f: ArgReduce, x: &[Scalar], line: &[usize]) -> i64 {
    let better = |a: Scalar, b: Scalar| match f {
        ArgReduce::Max => ascending(a, b).is_gt(),
        ArgReduce::Min if a.as_f64().is_nan() => !b.as_f64().is_nan(),
        ArgReduce::Min => ascending(a, b).is_lt() && !b.as_f64().is_nan(),
    };
    let best = (1..line.len()).fold(0, |best, i| if better(x[line[i]], x[line[best]]) { i } else { best });
    best as i64
}

fn cumulative(f: Cumulative, mut x: Vec<Scalar>, shape: &Shape, dim: usize) -> Vec<Scalar> {
    for line in lines(shape, dim) {
        for pair in line.windows(2) {
            x[pair[1]] = match f {
                Cumulative::Sum => plus(x[pair[0]], x[pair[1]]),
                Cumulative::Prod => times(x[pair[0]], x[pair[1]]),
            };
        }
    }
    x
}

fn plus(a: Scalar, b: Scalar) -> Scalar {
    match (a, b) {
        (Int(a), Int(b)) => Int(a.wrapping_add(b)),
        (a, b) => Float(a.as_f64() + b.as_f64()),
    }
}

fn times(a: Scalar, b: Scalar) -> Scalar {
    match (a, b) {
        (Int(a), Int(b)) => Int(a.wrapping_mul(b)),
        (a, b) => Float(a.as_f64() * b.as_f64()),
    }
}

fn matmul(a: &[Scalar], b: &[Scalar], a_shape: &Shape, b_shape: &Shape) -> Vec<Scalar> {
    let rank = a_shape.rank();
    let (m, k, n) = (a_shape[rank - 2], a_shape[rank - 1], b_shape[rank - 1]);
    let mut out = Vec::with_capacity(a.len() / k * n);
    for (a, b) in a.chunks_exact(m * k).zip(b.chunks_exact(k * n)) {
        for row in a.chunks_exact(k) {
            out.extend((0..n).map(|j| {
                let products = row.iter().enumerate().map(|(p, &a)| times(a, b[p * n + j]));
                products.reduce(plus).unwrap_or(Int(0))
            }));
        }
    }
    out
}

// ---- indexing ------------------------------------------------------------------------------------------------------------

/// For every element of `index` the row-major position it names in a tensor of `shape`: its own coordinates, with the one of
/// `dim` replaced by its value.
fn indexed(op: &'static str, index: &View<'_>, shape: &Shape, dim: usize) -> Result<Vec<usize>> {
    let size = shape[dim];
    let mut strides = Layout::contiguous(*shape).strides().to_vec();
    let step = std::mem::take(&mut strides[dim]) as usize;
    let others = Layout::new(*index.layout.shape(), &strides, 0);
    let place = |(at, index): (usize, Scalar)| match usize::try_from(index.as_i64()) {
        Ok(index) if index < size => Ok(at + index * step),
        _ => Err(Error::IndexOutOfRange { op, index: index.as_i64(), size, at: None }),
    };
    others.positions().zip(read(index)?).map(place).collect()
}

/// A vector's layout expanded to `shape`, so that it runs along `dim`.
fn along(vector: &Layout, shape: &Shape, dim: usize) -> Layout {
    let mut strides = vec![0; shape.rank()];
    strides[dim] = vector.strides()[0];
    Layout::new(*shape, &strides, vector.offset())
}

fn scatter(mut y: Vec<Scalar>, at: &[usize], src: &[Scalar], add: bool) -> Vec<Scalar> {
    for (&at, &value) in at.iter().zip(src) {
        y[at] = if add { plus(y[at], value) } else { value };
    }
    y
}

/// The first `count` values of every sorted line, and where they come from.
fn sorted(x: &[Scalar], shape: &Shape, dim: usize, descending: bool, count: usize) -> Vec<Vec<Scalar>> {
    let orders: Vec<Vec<usize>> = lines(shape, dim)
        .map(|line| {
            let mut order: Vec<usize> = (0..line.len()).collect();
            // `sort_by` is stable in both directions: what is equal keeps its order.
            order.sort_by(|&i, &j| {
                let (i, j) = (x[line[i]], x[line[j]]);
                if descending { ascending(j, i) } else { ascending(i, j) }
            });
            order.truncate(count);
            order
        })
        .collect();
    let values =
        lines(shape, dim).zip(&orders).map(|(line, order)| order.iter().map(|&i| x[line[i]]).collect());
    let positions = orders.iter().map(|order| order.iter().map(|&i| Int(i as i64)).collect());
    vec![from_lines(values, shape, dim, count), from_lines(positions, shape, dim, count)]
}

// ---- windows -------------------------------------------------------------------------------------------------------------

/// Where point `k` of the window at `out` lies along an axis of the input; `None` in the padding.
fn tap(w: &Window, axis: usize, out: usize, k: usize) -> Option<usize> {
    (out * w.stride[axis] + k * w.dilation[axis])
        .checked_sub(w.padding[axis])
        .filter(|&at| at < w.input[axis])
}

/// The input position of every element of `Unfold`'s output, over all `planes` (batch times channels).
fn patches(w: Window, planes: usize) -> impl Iterator<Item = Option<usize>> {
    let [oh, ow] = w.output();
    let order = Layout::contiguous(Shape::new(&[planes, w.kernel[0], w.kernel[1], oh, ow]));
    (0..order.numel()).map(move |i| {
        let [plane, kh, kw, oh, ow] =
            std::array::from_fn(|d| i / order.strides()[d] as usize % order.shape()[d]);
        let (h, w_) = (tap(&w, 0, oh, kh)?, tap(&w, 1, ow, kw)?);
        Some((plane * w.input[0] + h) * w.input[1] + w_)
    })
}

/// The positions in the input plane of every window's points that are not padding, window after window.
fn windows(w: &Window) -> Vec<Vec<usize>> {
    let [oh, ow] = w.output();
    let points = |i: usize| {
        let rows = (0..w.kernel[0]).filter_map(move |k| tap(w, 0, i / ow, k));
        rows.flat_map(move |h| {
            (0..w.kernel[1]).filter_map(move |k| Some(h * w.input[1] + tap(w, 1, i % ow, k)?))
        })
    };
    (0..oh * ow).map(|i| points(i).collect()).collect()
}

fn planes<'a>(w: &Window, x: &'a [Scalar]) -> std::slice::ChunksExact<'a, Scalar> {
    x.chunks_exact(w.input[0] * w.input[1])
}

fn max_pool(w: Window, x: &[Scalar]) -> Vec<Vec<Scalar>> {
    let windows = windows(&w);
    let mut out = vec![Vec::new(), Vec::new()];
    for plane in planes(&w, x) {
        for window in &windows {
            // Of equal values the first wins, but of several NaN the last, as in PyTorch.
            let wins = |a: Scalar, b: Scalar| a.as_f64().is_nan() || ascending(a, b).is_gt();
            let best = window
                .iter()
                .copied()
                .reduce(|best, at| if wins(plane[at], plane[best]) { at } else { best });
            out[0].push(best.map_or(Float(f64::NEG_INFINITY), |at| plane[at]));
            out[1].push(Int(best.unwrap_or(0) as i64));
        }
    }
    out
}

/// What the sum over a window is divided by.
fn divisor(w: &Window, count_padding: bool, window: &[usize]) -> f64 {
    (if count_padding { w.kernel[0] * w.kernel[1] } else { window.len() }) as f64
}

fn avg_pool(w: Window, count_padding: bool, x: &[Scalar]) -> Vec<Scalar> {
    let windows = windows(&w);
    let mean = |plane: &[Scalar], window: &Vec<usize>| {
        let sum: f64 = window.iter().map(|&at| plane[at].as_f64()).sum();
        Float(sum / divisor(&w, count_padding, window))
    };
    planes(&w, x).flat_map(|plane| windows.iter().map(move |window| mean(plane, window))).collect()
}

fn avg_pool_grad(w: Window, count_padding: bool, grad: &[Scalar]) -> Vec<Scalar> {
    let windows = windows(&w);
    let plane = |grad: &[Scalar]| {
        let mut out = vec![Float(0.0); w.input[0] * w.input[1]];
        for (window, grad) in windows.iter().zip(grad) {
            let share = Float(grad.as_f64() / divisor(&w, count_padding, window));
            out = scatter(out, window, &vec![share; window.len()], true);
        }
        out
    };
    grad.chunks_exact(windows.len()).flat_map(plane).collect()
}

#[cfg(test)]
mod tests {
    //! Every expected value is PyTorch's or follows from the definition by hand.
    use super::*;
    use crate::kernel::Elements;
    use crate::shape::DimSet;
    use half::{bf16, f16};

    const NAN: f64 = f64::NAN;

    /// An operand with a memory of its own.
    struct Array {
        buffer: Buffer,
        layout: Layout,
        dtype: DType,
    }

    impl Array {
        fn view(&self) -> View<'_> {
            View { buffer: &self.buffer, layout: &self.layout, dtype: self.dtype }
        }

        fn with(mut self, change: impl Fn(Layout) -> Layout) -> Array {
            self.layout = change(self.layout);
            self
        }

        fn in_place(&self) -> Output {
            Output { layout: self.layout, dtype: self.dtype, buffer: Some(self.buffer.clone()) }
        }

        /// Everything the memory holds, whatever the layout says.
        fn memory(&self) -> Vec<f64> {
            let len = self.buffer.size() / self.dtype.size();
            values(&View { layout: &Layout::contiguous(Shape::new(&[len])), ..self.view() })
        }
    }

    fn array<T: Element>(values: &[T], shape: &[usize]) -> Array {
        let buffer = Reference.upload(bytemuck::cast_slice(values), T::DTYPE).unwrap();
        Array { buffer, layout: Layout::contiguous(Shape::new(shape)), dtype: T::DTYPE }
    }

    fn values(view: &View<'_>) -> Vec<f64> {
        read(view).unwrap().into_iter().map(Scalar::as_f64).collect()
    }

    fn execute<const N: usize>(
        op: Op,
        inputs: &[&Array],
        outputs: [(&[usize], DType); N],
    ) -> Result<[Vec<f64>; N]> {
        let inputs: Vec<View<'_>> = inputs.iter().map(|a| a.view()).collect();
        let mut outputs = outputs.map(|(shape, dtype)| Output::new(shape, dtype));
        Reference.execute(&op, &inputs, &mut outputs)?;
        Ok(outputs.map(|o| current(&o).unwrap().into_iter().map(Scalar::as_f64).collect()))
    }

    #[track_caller]
    fn run(op: Op, inputs: &[&Array], shape: &[usize], dtype: DType) -> Vec<f64> {
        let [out] = execute(op, inputs, [(shape, dtype)]).unwrap();
        out
    }

    fn run_in_place(op: Op, inputs: &[&Array], target: &Array) -> Result<()> {
        let inputs: Vec<View<'_>> = inputs.iter().map(|a| a.view()).collect();
        Reference.execute(&op, &inputs, &mut [target.in_place()])
    }

    /// Equal where NaN equals NaN.
    #[track_caller]
    fn assert_same(a: &[f64], b: &[f64]) {
        let same = a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || a.is_nan() && b.is_nan());
        assert!(same, "{a:?} is not {b:?}");
    }

    #[test]
    fn copies_follow_strides_on_both_sides_and_touch_nothing_else() {
        let x = array(&[1i32, 2, 3, 4, 5, 6], &[2, 3]).with(|l| l.transpose(0, 1));
        let y = array(&[0.0f32; 12], &[3, 4]).with(|l| l.flip(0).slice(1, 1, 2, 2));
        run_in_place(Op::Copy, &[&x], &y).unwrap();
        assert_eq!(y.memory(), [0., 3., 0., 6., 0., 2., 0., 5., 0., 1., 0., 4.]);
        run_in_place(Op::Fill(Scalar::Float(7.5)), &[], &y).unwrap();
        assert_eq!(y.memory(), [0., 7.5, 0., 7.5, 0., 7.5, 0., 7.5, 0., 7.5, 0., 7.5]);
        assert_eq!(
            Reference.download(x.view()).unwrap(),
            [1, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0, 6, 0, 0, 0]
        );
    }

    #[test]
    fn casts_cut_wrap_round_and_compare_with_zero() {
        let x = array(&[1.9f32, -1.9, 300.0, -1.0], &[4]);
        assert_eq!(run(Op::Copy, &[&x], &[4], DType::I64), [1., -1., 300., -1.]);
        assert_eq!(run(Op::Copy, &[&x], &[4], DType::U8), [1., 255., 44., 255.]);
        let x = array(&[f32::NAN, 0.0, -0.0, 0.1], &[4]);
        assert_eq!(run(Op::Copy, &[&x], &[4], DType::Bool), [1., 0., 0., 1.]);
        let x = array(&[16_777_217i64, 300, -1], &[3]);
        assert_eq!(run(Op::Copy, &[&x], &[3], DType::F32), [16_777_216., 300., -1.]);
        assert_eq!(run(Op::Copy, &[&x], &[3], DType::U8), [1., 44., 255.]);
        assert_eq!(run(Op::Copy, &[&array(&[0.1f32], &[1])], &[1], DType::F16), [0.0999755859375]);
        assert_eq!(run(Op::Copy, &[&array(&[true, false], &[2])], &[2], DType::BF16), [1., 0.]);
    }

    #[test]
    fn an_elementwise_output_may_be_its_input() {
        let x = array(&[1.0f32, -2.0, 3.0, -4.0], &[2, 2]).with(|l| l.transpose(0, 1));
        run_in_place(Op::Unary(Unary::Neg), &[&x], &x).unwrap();
        run_in_place(Op::Binary(Binary::Mul), &[&x, &x], &x).unwrap();
        assert_eq!(x.memory(), [1., 4., 9., 16.]);
    }

    #[test]
    fn sources_count_and_draw() {
        let (half, two) = (Scalar::Float(0.5), Scalar::Int(2));
        assert_eq!(run(Op::Arange { start: two, step: half }, &[], &[3], DType::F32), [2., 2.5, 3.]);
        assert_eq!(
            run(Op::Arange { start: Scalar::Int(5), step: Scalar::Int(-2) }, &[], &[4], DType::I64),
            [5., 3., 1., -1.]
        );
        // Random123's known answers for key 0, counter 0; the fifth element has counter 1.
        let words =
            [0x6627e8d5u32, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8].map(|w| f64::from(w >> 8) / 16_777_216.0);
        let draw = |kind, offset, n| run(Op::Random { kind, seed: 0, offset }, &[], &[n], DType::F32);
        let five = draw(RandomKind::Uniform, 0, 5);
        assert_eq!(five[..4], words);
        assert_eq!(five[4], draw(RandomKind::Uniform, 1, 1)[0]);
        assert_eq!(draw(RandomKind::Bernoulli(0.7), 0, 4), words.map(|w| f64::from(w < 0.7)));
    }

    #[test]
    fn functions_of_one_float_are_pytorchs() {
        let x = array(&[-3.0f64, -1.0, -0.25, 0.0, 0.5, 2.0], &[6]);
        let cases = [
            (
                Unary::Gelu,
                [
                    -0.00404969409489031,
                    -0.15865525393145702,
                    -0.10032341857926907,
                    0.0,
                    0.34573123063700656,
                    1.9544997361036416,
                ],
            ),
            (
                Unary::GeluTanh,
                [
                    -0.0036373920817729943,
                    -0.15880800939172324,
                    -0.100324649298315,
                    0.0,
                    0.34571400982514394,
                    1.954597694087775,
                ],
            ),
            (
                Unary::Silu,
                [
                    -0.14227761953270035,
                    -0.2689414213699951,
                    -0.10945587477855048,
                    0.0,
                    0.3112296656009273,
                    1.7615941559557646,
                ],
            ),
            (
                Unary::Softplus { beta: 2.0, threshold: 3.0 },
                [
                    0.0012378425688652247,
                    0.06346400552148625,
                    0.23703849209005334,
                    0.34657359027997264,
                    0.6566308437591114,
                    2.0,
                ],
            ),
            (Unary::LeakyRelu(0.1), [-0.30000000000000004, -0.1, -0.025, 0.0, 0.5, 2.0]),
            (Unary::Elu(1.5), [-1.4253193974482041, -0.9481808382428365, -0.3317988253928927, 0.0, 0.5, 2.0]),
            (
                Unary::LogSigmoid,
                [
                    -3.048587351573742,
                    -1.3132616875182228,
                    -0.8259394198788436,
                    -std::f64::consts::LN_2,
                    -0.4740769841801067,
                    -0.1269280110429725,
                ],
            ),
            (
                Unary::Erf,
                [
                    -0.9999779095030014,
                    -0.8427007929497149,
                    -0.27632639016823696,
                    0.0,
                    0.5204998778130465,
                    0.9953222650189527,
                ],
            ),
            (
                Unary::Expm1,
                [
                    -0.950212931632136,
                    -0.6321205588285577,
                    -0.22119921692859512,
                    0.0,
                    0.6487212707001282,
                    6.38905609893065,
                ],
            ),
            (Unary::Clamp { min: -0.5, max: 1.0 }, [-0.5, -0.5, -0.25, 0.0, 0.5, 1.0]),
        ];
        for (f, expected) in cases {
            let y = run(Op::Unary(f), &[&x], &[6], DType::F64);
            assert!(
                y.iter().zip(expected).all(|(y, e)| (y - e).abs() <= 2e-15 * e.abs()),
                "{f:?}: {y:?} is not {expected:?}"
            );
        }
        let x = array(&[0.5f32, 1.5, 2.5, -0.5, f32::NAN], &[5]);
        assert_same(&run(Op::Unary(Unary::Round), &[&x], &[5], DType::F32), &[0., 2., 2., -0., NAN]);
        for f in [Unary::Relu, Unary::Clamp { min: 0.0, max: 9.0 }] {
            assert!(run(Op::Unary(f), &[&x], &[5], DType::F32)[4].is_nan(), "{f:?} keeps NaN");
        }
        // Where the limits cross the upper one wins.
        let limits = Unary::Clamp { min: 2.0, max: 1.0 };
        assert_same(&run(Op::Unary(limits), &[&x], &[5], DType::F32), &[1., 1., 1., 1., NAN]);
        assert_eq!(run(Op::Unary(Unary::IsNan), &[&x], &[5], DType::Bool), [0., 0., 0., 0., 1.]);
        assert_eq!(
            run(Op::Unary(Unary::LogSigmoid), &[&array(&[-200.0f32], &[1])], &[1], DType::F32),
            [-200.]
        );
    }

    #[test]
    fn integers_wrap_and_divide_like_python() {
        let binary =
            |f, a: &Array, b: &Array| execute(Op::Binary(f), &[a, b], [(&**a.layout.shape(), a.dtype)]);
        let (a, b) = (array(&[5i64, -5, 5, -5], &[4]), array(&[3i64, 3, -3, -3], &[4]));
        assert_eq!(binary(Binary::Remainder, &a, &b).unwrap()[0], [2., 1., -1., -2.]);
        let zero = array(&[0i64; 4], &[4]);
        assert_eq!(binary(Binary::Remainder, &a, &zero), Err(Error::Data("division by zero".into())));
        let (a, b) =
            (array(&[5.0f32, -5.0, 5.0, -1.0], &[4]), array(&[3.0f32, 3.0, -3.0, f32::INFINITY], &[4]));
        assert_eq!(binary(Binary::Remainder, &a, &b).unwrap()[0], [2., 1., -1., f64::INFINITY]);

        let (a, b) = (array(&[0i64, 1, -1, -1, 2, 2], &[6]), array(&[-1i64, -5, -3, -2, -1, 10], &[6]));
        assert_eq!(binary(Binary::Pow, &a, &b).unwrap()[0], [0., 1., -1., 1., 0., 1024.]);
        assert_eq!((pow_int(3, 41), pow_int(-7, 25)), (-420491770248316829, 5543697716832367161));
        assert_eq!(binary(Binary::Sub, &array(&[3u8], &[1]), &array(&[5u8], &[1])).unwrap()[0], [254.]);
        let (t, f) = (array(&[true, true, false], &[3]), array(&[true, false, false], &[3]));
        assert_eq!(binary(Binary::Add, &t, &f).unwrap()[0], [1., 1., 0.]);
        assert_eq!(binary(Binary::Mul, &t, &f).unwrap()[0], [1., 0., 0.]);
        let limits = Op::Unary(Unary::Clamp { min: -2.0, max: f64::INFINITY });
        assert_eq!(run(limits, &[&array(&[-5i32, 7], &[2])], &[2], DType::I32), [-2., 7.]);
    }

    #[test]
    fn scalars_take_the_precision_pytorch_gives_them() {
        let scalar = |op, swapped| Op::BinaryScalar { op, scalar: Scalar::Float(0.1), swapped };
        // 1023 * 0.1 in f16: with 0.1 in f32, not 0.09998 in f16, which would give 102.25.
        let x = array(&[f16::from_f32(1023.0)], &[1]);
        assert_eq!(run(scalar(Binary::Mul, false), &[&x], &[1], DType::F16), [102.3125]);
        let x = array(&[0.1f32], &[1]);
        assert_eq!(run(scalar(Binary::Sub, true), &[&x], &[1], DType::F32), [0.]);
        for equal in [array(&[f16::from_f32(0.1)], &[1]), array(&[bf16::from_f32(0.1)], &[1]), x] {
            let eq = Op::CompareScalar(Compare::Eq, Scalar::Float(0.1));
            assert_eq!(run(eq, &[&equal], &[1], DType::Bool), [1.], "{}", equal.dtype);
        }
        // torch.tensor([0.1, 1/3]) + torch.tensor([0.2, 2/3]) in bf16
        let (a, b) = ([0.1, 1.0 / 3.0].map(bf16::from_f64), [0.2, 2.0 / 3.0].map(bf16::from_f64));
        let sum = run(Op::Binary(Binary::Add), &[&array(&a, &[2]), &array(&b, &[2])], &[2], DType::BF16);
        assert_eq!(sum, [0.30078125, 1.]);
    }

    #[test]
    fn nan_is_unequal_and_spreads() {
        let (a, b) = (array(&[NAN, 1.0, 2.0], &[3]), array(&[NAN, NAN, 1.0], &[3]));
        let compared = Compare::ALL.iter().map(|&f| run(Op::Compare(f), &[&a, &b], &[3], DType::Bool));
        let expected = [[0., 0., 0.], [1., 1., 1.], [0., 0., 0.], [0., 0., 0.], [0., 0., 1.], [0., 0., 1.]];
        assert_eq!(compared.collect::<Vec<_>>(), expected);
        assert_same(&run(Op::Binary(Binary::Maximum), &[&a, &b], &[3], DType::F64), &[NAN, NAN, 2.]);
        let condition = array(&[true, false, false], &[3]);
        assert_same(&run(Op::Where, &[&condition, &a, &b], &[3], DType::F64), &[NAN, NAN, 1.]);
    }

    #[test]
    fn reductions_keep_the_other_dimensions() {
        let x =
            array(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], &[2, 2, 2]).with(|l| l.permute(&[2, 0, 1]));
        let mut dims = DimSet::one(0);
        dims.insert(2);
        assert_eq!(run(Op::Reduce(Reduce::Sum, dims), &[&x], &[1, 2, 1], DType::F32), [10., 26.]);
        assert_eq!(
            run(Op::Reduce(Reduce::Mean, DimSet::one(1)), &[&x], &[2, 1, 2], DType::F32),
            [3., 5., 4., 6.]
        );
        assert_eq!(run(Op::Reduce(Reduce::Prod, DimSet::all(3)), &[&x], &[1, 1, 1], DType::F32), [40320.]);
        assert_eq!(
            run(Op::Reduce(Reduce::Sum, DimSet::all(0)), &[&array(&[3i64], &[])], &[], DType::I64),
            [3.]
        );
        let truths = array(&[true, false, true], &[3]);
        assert_eq!(run(Op::Reduce(Reduce::Sum, DimSet::one(0)), &[&truths], &[1], DType::I64), [2.]);
        assert_eq!(run(Op::Reduce(Reduce::All, DimSet::one(0)), &[&truths], &[1], DType::Bool), [0.]);
        let nan = array(&[1.0, NAN, 3.0, NAN], &[4]);
        assert_same(&run(Op::Reduce(Reduce::Max, DimSet::one(0)), &[&nan], &[1], DType::F64), &[NAN]);
        assert_eq!(run(Op::Reduce(Reduce::Any, DimSet::one(0)), &[&nan], &[1], DType::Bool), [1.]);
    }

    #[test]
    fn arg_reductions_find_the_first_and_prefer_nan() {
        let x = array(&[1.0, NAN, 3.0, NAN, 2.0, 5.0, 5.0, 2.0], &[2, 4]);
        assert_eq!(run(Op::ArgReduce(ArgReduce::Max, 1), &[&x], &[2, 1], DType::I64), [1., 1.]);
        assert_eq!(run(Op::ArgReduce(ArgReduce::Min, 1), &[&x], &[2, 1], DType::I64), [1., 0.]);
        assert_eq!(run(Op::ArgReduce(ArgReduce::Max, 0), &[&x], &[1, 4], DType::I64), [1., 0., 1., 0.]);
    }

    #[test]
    fn running_sums_are_kept_in_more_than_f32() {
        let x = array(&[1e8f32, 1.0, 1.0, 1.0, -1e8], &[5]);
        assert_eq!(
            run(Op::Cumulative(Cumulative::Sum, 0), &[&x], &[5], DType::F32),
            [1e8, 1e8, 1e8, 1e8, 3.]
        );
        let x = array(&[1u8, 2, 3, 200, 100, 50], &[2, 3]);
        assert_eq!(
            run(Op::Cumulative(Cumulative::Sum, 0), &[&x], &[2, 3], DType::I64),
            [1., 2., 3., 201., 102., 53.]
        );
        assert_eq!(
            run(Op::Cumulative(Cumulative::Prod, 1), &[&x], &[2, 3], DType::I64),
            [1., 2., 6., 200., 2e4, 1e6]
        );
    }

    #[test]
    fn matmul_repeats_a_broadcast_batch() {
        let a = array(&[0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0], &[1, 2, 3]);
        let a = a.with(|l| l.broadcast_to(&Shape::new(&[2, 2, 3])).unwrap());
        let b: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let b = array(&b, &[2, 3, 2]);
        assert_eq!(
            run(Op::Matmul, &[&a, &b], &[2, 2, 2], DType::F32),
            [10., 13., 28., 40., 28., 31., 100., 112.]
        );
        let column = array(&[1i64, 2, 3, 4], &[2, 2]).with(|l| l.transpose(0, 1).slice(1, 0, 1, 1));
        let row = array(&[5i64, 6], &[1, 2]);
        assert_eq!(run(Op::Matmul, &[&column, &row], &[2, 2], DType::I64), [5., 6., 10., 12.]);
    }

    #[test]
    fn gathering_takes_by_coordinate_or_by_slice() {
        let x = array(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2]);
        // The index may be smaller than x: [2, 1] here.
        let index = array(&[2i64, 9, 0, 9], &[2, 2]).with(|l| l.slice(1, 0, 1, 1));
        assert_eq!(run(Op::Gather { dim: 0 }, &[&x, &index], &[2, 1], DType::F32), [5., 1.]);
        assert_eq!(
            run(Op::Gather { dim: 1 }, &[&x, &array(&[1i64, 0, 0, 1], &[2, 2])], &[2, 2], DType::F32),
            [2., 1., 3., 4.]
        );
        let index = array(&[1i64, 9, 0, 9, 1], &[5]).with(|l| l.slice(0, 0, 3, 2));
        let select = Op::IndexSelect { dim: 1 };
        assert_eq!(run(select, &[&x, &index], &[3, 3], DType::F32), [2., 1., 2., 4., 3., 4., 6., 5., 6.]);
        for bad in [3, -1] {
            let index = array(&[0, bad], &[2]);
            let found = execute(Op::IndexSelect { dim: 0 }, &[&x, &index], [(&[2, 2], DType::F32)]);
            assert_eq!(
                found,
                Err(Error::IndexOutOfRange { op: "index_select", index: bad, size: 3, at: None })
            );
        }
    }

    #[test]
    fn scattering_adds_up_or_lets_the_last_one_win() {
        let index = array(&[1i64, 1, 0, 1], &[2, 2]);
        let src = array(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2]);
        let y = array(&[10.0f32; 6], &[3, 2]).with(|l| l.flip(0));
        run_in_place(Op::Scatter { dim: 0, add: true }, &[&index, &src], &y).unwrap();
        assert_eq!(y.memory(), [10., 10., 11., 16., 13., 10.]);
        run_in_place(Op::Scatter { dim: 0, add: false }, &[&index, &src], &y).unwrap();
        assert_eq!(y.memory(), [10., 10., 1., 4., 3., 10.]);
        let bad = run_in_place(Op::Scatter { dim: 1, add: true }, &[&array(&[2i64], &[1, 1]), &src], &y);
        assert_eq!(bad, Err(Error::IndexOutOfRange { op: "scatter_add", index: 2, size: 2, at: None }));

        let y = array(&[0.0f64; 6], &[2, 3]);
        let src = array(&[1.0, 1e16, -1e16, 5.0, 6.0, 7.0], &[2, 3]);
        run_in_place(Op::IndexAdd { dim: 1 }, &[&array(&[2i64, 2, 2], &[3]), &src], &y).unwrap();
        // In ascending order the 1 is lost in 1e16; in descending order it would stay.
        assert_eq!(y.memory(), [0., 0., 0., 0., 0., 18.]);
    }

    #[test]
    fn sorting_is_stable_and_knows_where_nan_goes() {
        let x = array(&[3.0, NAN, 1.0, 3.0, -1.0, NAN, 1.0], &[7]);
        let sort = |descending| {
            execute(Op::Sort { dim: 0, descending }, &[&x], [(&[7], DType::F64), (&[7], DType::I64)]).unwrap()
        };
        let [values, positions] = sort(false);
        assert_same(&values, &[-1., 1., 1., 3., 3., NAN, NAN]);
        assert_eq!(positions, [4., 2., 6., 0., 3., 1., 5.]);
        let [values, positions] = sort(true);
        assert_same(&values, &[NAN, NAN, 3., 3., 1., 1., -1.]);
        assert_eq!(positions, [1., 5., 0., 3., 2., 6., 4.]);

        let x = array(&[1i64, 7, 2, 7, 2, 0, 9, 2], &[4, 2]);
        let top = |k, dim, largest, shape: &[usize]| {
            execute(Op::TopK { k, dim, largest }, &[&x], [(shape, DType::I64), (shape, DType::I64)]).unwrap()
        };
        assert_eq!(top(2, 0, true, &[2, 2]), [[9., 7., 2., 7.], [3., 0., 1., 1.]]);
        assert_eq!(top(1, 1, false, &[4, 1]), [[1., 2., 0., 2.], [0., 0., 1., 1.]]);
        let x = array(&[1.0, NAN, 3.0, 1.0], &[4]);
        let [values, positions] = execute(
            Op::TopK { k: 2, dim: 0, largest: true },
            &[&x],
            [(&[2], DType::F64), (&[2], DType::I64)],
        )
        .unwrap();
        assert_same(&values, &[NAN, 3.]);
        assert_eq!(positions, [1., 2.]);
    }

    #[test]
    fn unfold_lays_out_patches_and_fold_is_its_adjoint() {
        // torch.nn.functional.unfold(arange(1, 13).view(1, 1, 3, 4), 2, dilation=(1, 2), padding=(1, 0), stride=(2, 1))
        let window =
            Window { input: [3, 4], kernel: [2, 2], stride: [2, 1], padding: [1, 0], dilation: [1, 2] };
        let x: Vec<f32> = (1..13).map(|i| i as f32).collect();
        let expected = [0., 0., 5., 6., 0., 0., 7., 8., 1., 2., 9., 10., 3., 4., 11., 12.];
        assert_eq!(run(Op::Unfold(window), &[&array(&x, &[1, 1, 3, 4])], &[1, 4, 4], DType::F32), expected);

        // Overlapping windows over two channels: <unfold(x), y> = <x, fold(y)>, exact in integers.
        let window =
            Window { input: [3, 4], kernel: [2, 3], stride: [1, 1], padding: [1, 1], dilation: [1, 1] };
        let [oh, ow] = window.output();
        let (rows, columns) = (2 * 2 * 3, oh * ow);
        let x: Vec<i64> = (0..24).map(|i| i * i % 17 - 5).collect();
        let y: Vec<i64> = (0..rows * columns).map(|i| (i * 7 % 13) as i64 - 6).collect();
        let unfolded = run(Op::Unfold(window), &[&array(&x, &[1, 2, 3, 4])], &[1, rows, columns], DType::I64);
        let folded = run(Op::Fold(window), &[&array(&y, &[1, rows, columns])], &[1, 2, 3, 4], DType::I64);
        let dot = |a: &[f64], b: &[i64]| a.iter().zip(b).map(|(a, &b)| a * b as f64).sum::<f64>();
        assert_ne!(dot(&unfolded, &y), 0.0);
        assert_eq!(dot(&unfolded, &y), dot(&folded, &x));
    }

    #[test]
    fn max_pooling_never_takes_padding_and_always_nan() {
        let window =
            Window { input: [3, 3], kernel: [2, 2], stride: [2, 2], padding: [1, 1], dilation: [1, 1] };
        let x = array(&[-5.0f32, -2.0, -2.0, -3.0, -7.0, -1.0, -9.0, -8.0, -6.0], &[1, 1, 3, 3]);
        let shape: &[usize] = &[1, 1, 2, 2];
        let [values, positions] =
            execute(Op::MaxPool(window), &[&x], [(shape, DType::F32), (shape, DType::I64)]).unwrap();
        assert_eq!(values, [-5., -2., -3., -1.]);
        assert_eq!(positions, [0., 1., 3., 5.]);
        let window = Window { stride: [1, 1], padding: [0, 0], ..window };
        let x = array(&[1.0, NAN, 2.0, NAN, 5.0, 6.0, -1.0, -2.0, NAN], &[1, 1, 3, 3]);
        let [values, positions] =
            execute(Op::MaxPool(window), &[&x], [(shape, DType::F64), (shape, DType::I64)]).unwrap();
        assert_same(&values, &[NAN; 4]);
        assert_eq!(positions, [3., 1., 3., 8.]);
    }

    #[test]
    fn average_pooling_counts_padding_if_told() {
        let window =
            Window { input: [3, 3], kernel: [2, 2], stride: [2, 2], padding: [1, 1], dilation: [1, 1] };
        let x: Vec<f32> = (1..10).map(|i| i as f32).collect();
        let (x, grad) = (array(&x, &[1, 1, 3, 3]), array(&[1.0f32, 2.0, 3.0, 4.0], &[1, 1, 2, 2]));
        let pool = |count| run(Op::AvgPool(window, count), &[&x], &[1, 1, 2, 2], DType::F32);
        let back = |count| run(Op::AvgPoolGrad(window, count), &[&grad], &[1, 1, 3, 3], DType::F32);
        assert_eq!(pool(true), [0.25, 1.25, 2.75, 7.]);
        assert_eq!(pool(false), [1., 2.5, 5.5, 7.]);
        assert_eq!(back(true), [0.25, 0.5, 0.5, 0.75, 1., 1., 0.75, 1., 1.]);
        assert_eq!(back(false), [1., 1., 1., 1.5, 1., 1., 1.5, 1., 1.]);
    }

    #[test]
    fn a_users_kernel_sees_row_major_elements() {
        let swap = || {
            let reversed = |inputs: &[Elements<'_>], y: &mut [u8]| {
                y.copy_from_slice(inputs[0].of::<u8>());
                y.reverse();
            };
            Op::Custom(Arc::new(Kernel::new("swap").cpu(reversed)))
        };
        let x = array(&[1u8, 2, 3, 4, 5, 6], &[2, 3]).with(|l| l.transpose(0, 1));
        assert_eq!(run(swap(), &[&x], &[3, 2], DType::U8), [6., 3., 5., 2., 4., 1.]);
        let refused = execute(swap(), &[&array(&[1i32], &[1])], [(&[1], DType::I32)]);
        assert!(matches!(refused, Err(Error::Device(message)) if message.contains("swap")));
    }

    #[test]
    fn what_it_cannot_do_is_an_error() {
        let x = array(&[1.0f32, 2.0], &[1, 2]);
        let softmax = Op::Softmax { log: false };
        assert!(!Reference.supports(&softmax, &[x.view()]));
        let refused = execute(softmax, &[&x], [(&[1, 2], DType::F32)]);
        assert!(matches!(refused, Err(Error::Unsupported { op, .. }) if op == "softmax"));
        assert!(matches!(Reference.allocate(usize::MAX, DType::F64), Err(Error::OutOfMemory { .. })));
        assert!(Reference.upload(&[0, 1, 2], DType::Bool).is_err(), "2 is no truth value");
        assert!(DType::ALL.iter().all(|&d| Reference.allocate(3, d).unwrap().size() == 3 * d.size()));
    }
}
