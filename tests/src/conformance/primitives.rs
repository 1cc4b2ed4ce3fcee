//! Every primitive on random operands: device against interpreter, or one device against another.

use super::draw::{Draw, Operand, Values};
use super::exactness::allowed;
use super::{Report, dtypes, seed};
use crate::compare::compare;
use orkest_core::op::{ArgReduce, Binary, Compare, Cumulative, RandomKind, Reduce, Unary, Window};
use orkest_core::{Category, DType, Device, DimSet, Op, Output, Result, Scalar, Shape, Tensor, View};

/// How often every operation is tried with every dtype it has.
const ROUNDS: usize = 8;

/// Where a trial's result goes.
#[derive(Clone)]
enum Target {
    /// To new memory.
    New(Shape, DType),
    /// Over an operand's elements; what lies between them must stay.
    InPlace(Operand),
    /// Over the elements of this input.
    Input(usize),
}

/// One execution to compare.
struct Trial {
    op: Op,
    inputs: Vec<Operand>,
    targets: Vec<Target>,
}

/// Executes every primitive on `device` and on the interpreter.
pub fn primitives(device: &Device) -> Report {
    suite(device, Some(Device::reference()), seed())
}

/// Executes every primitive on `device` and on `other`, on operands drawn from `seed`.
pub fn primitives_beside(device: &Device, other: &Device, seed: u64) -> Report {
    suite(device, Some(other.clone()), seed)
}

/// Executes every primitive on `device`, whatever comes out.
pub fn launched_primitives(device: &Device) -> Report {
    suite(device, None, seed())
}

fn suite(device: &Device, expected: Option<Device>, seed: u64) -> Report {
    Suite { device, expected, draw: Draw(seed), dtypes: dtypes(device), report: Report::default() }.run_all()
}

struct Suite<'a> {
    device: &'a Device,
    /// What the results are compared with; else they are not looked at.
    expected: Option<Device>,
    draw: Draw,
    dtypes: Vec<DType>,
    report: Report,
}

impl Suite<'_> {
    fn run_all(mut self) -> Report {
        self.data();
        self.elementwise();
        self.reductions();
        self.products();
        self.indexing();
        self.order();
        self.windows();
        self.report
    }

    fn floats(&self) -> Vec<DType> {
        self.dtypes.iter().copied().filter(|d| d.is_float()).collect()
    }

    fn numbers(&self) -> Vec<DType> {
        self.dtypes.iter().copied().filter(|d| *d != DType::Bool).collect()
    }

    fn operand(&mut self, shape: Shape, dtype: DType) -> Operand {
        self.with(shape, dtype, Values::of(dtype))
    }

    fn with(&mut self, shape: Shape, dtype: DType, values: Values) -> Operand {
        Operand::random(&mut self.draw, shape, dtype, values, false)
    }

    /// A new output, mostly; sometimes given memory with any layout.
    fn elementwise_target(&mut self, shape: Shape, dtype: DType) -> Target {
        match self.draw.flag(3) {
            true => Target::InPlace(Operand::random(&mut self.draw, shape, dtype, Values::of(dtype), true)),
            false => Target::New(shape, dtype),
        }
    }

    /// Over one of the inputs, where the dtype allows it and no two elements share memory.
    fn maybe_over_input(&mut self, inputs: &[Operand], target: Target) -> Target {
        let dtype = match &target {
            Target::New(_, dtype) => *dtype,
            _ => return target,
        };
        let i = self.draw.below(inputs.len());
        let shares = inputs[i]
            .layout
            .strides()
            .iter()
            .zip(inputs[i].layout.shape().iter())
            .any(|(s, n)| *s == 0 && *n > 1);
        if inputs[i].dtype == dtype && !shares && self.draw.flag(4) { Target::Input(i) } else { target }
    }

    fn run(&mut self, trial: Trial) {
        let variant: String = format!("{:?}", trial.op).chars().take_while(|c| c.is_alphanumeric()).collect();
        self.report.variants.insert(variant);
        let result = self.differences(&trial);
        self.report.check(|| describe(&trial), result);
    }

    fn differences(&self, trial: &Trial) -> std::result::Result<(), String> {
        let Some(other) = &self.expected else {
            return execute(self.device, trial).map(drop).map_err(|e| {
                self.device.clear_error();
                e.to_string()
            });
        };
        let expected = execute(other, trial).map_err(|e| format!("{} says: {e}", other.backend().name()))?;
        let actual = execute(self.device, trial).map_err(|e| e.to_string())?;
        let on_gpu = self.device.backend().name().starts_with("wgpu");
        for (i, (a, b)) in actual.iter().zip(&expected).enumerate() {
            compare(a, b, allowed(&trial.op, a.dtype(), on_gpu)).map_err(|e| format!("output {i}: {e}"))?;
        }
        Ok(())
    }

    // ---- data ------------------------------------------------------------------------------------------------------------

    fn data(&mut self) {
        for from in self.dtypes.clone() {
            for to in self.dtypes.clone() {
                for _ in 0..3 {
                    let shape = self.draw.shape();
                    // What a negative number becomes without a sign, or a large one in a small dtype, is not defined.
                    let values = if to == DType::U8 || from == DType::U8 {
                        Values::Between(0.0, 100.0)
                    } else {
                        Values::of(from)
                    };
                    let special = from.is_float() && to.is_float() && self.draw.flag(3);
                    let inputs = vec![self.with(shape, from, if special { Values::Special } else { values })];
                    let target = self.elementwise_target(shape, to);
                    self.run(Trial { op: Op::Copy, inputs, targets: vec![target] });
                }
            }
        }
        for dtype in self.dtypes.clone() {
            for value in [Scalar::Int(0), Scalar::Int(1), Scalar::Bool(true)] {
                let shape = self.draw.shape();
                let target = self.elementwise_target(shape, dtype);
                self.run(Trial { op: Op::Fill(value), inputs: vec![], targets: vec![target] });
            }
            if dtype == DType::Bool {
                continue;
            }
            let n = self.draw.int(1, 30) as usize;
            let (start, step) = match dtype.category() {
                Category::Float => (Scalar::Float(-1.5), Scalar::Float(0.25)),
                _ => (Scalar::Int(3), Scalar::Int(2)),
            };
            let targets = vec![Target::New(n.into(), dtype)];
            self.run(Trial { op: Op::Arange { start, step }, inputs: vec![], targets });
        }
        for dtype in self.floats() {
            for kind in [RandomKind::Uniform, RandomKind::Bernoulli(0.3)] {
                let op = Op::Random { kind, seed: self.draw.0, offset: self.draw.below(100) as u64 };
                let targets = vec![Target::New(self.draw.shape(), dtype)];
                self.run(Trial { op, inputs: vec![], targets });
            }
        }
    }

    // ---- elementwise -----------------------------------------------------------------------------------------------------

    fn elementwise(&mut self) {
        for function in unary_functions() {
            for dtype in self.dtypes.clone() {
                if dtype.is_float()
                    || function.keeps_integers() && (dtype != DType::Bool || function.is_test())
                {
                    for _ in 0..ROUNDS {
                        self.unary(function, dtype);
                    }
                }
            }
        }
        for &op in Binary::ALL {
            for dtype in self.dtypes.clone() {
                let defined = match op {
                    Binary::Div | Binary::Atan2 => dtype.is_float(),
                    Binary::Sub | Binary::Pow | Binary::Remainder => dtype != DType::Bool,
                    _ => true,
                };
                for _ in 0..if defined { ROUNDS } else { 0 } {
                    self.binary(op, dtype);
                    self.binary_scalar(op, dtype);
                }
            }
        }
        for &op in Compare::ALL {
            for dtype in self.dtypes.clone() {
                for _ in 0..ROUNDS / 2 {
                    let shape = self.draw.shape();
                    let values = if dtype.is_float() { Values::Special } else { Values::Positions(2) };
                    let inputs = vec![self.with(shape, dtype, values), self.with(shape, dtype, values)];
                    let targets = vec![self.elementwise_target(shape, DType::Bool)];
                    self.run(Trial { op: Op::Compare(op), inputs: inputs.clone(), targets: targets.clone() });
                    let scalar = if dtype.is_float() { Scalar::Float(0.5) } else { Scalar::Int(1) };
                    let op = Op::CompareScalar(op, scalar);
                    self.run(Trial { op, inputs: inputs[..1].to_vec(), targets });
                }
            }
        }
        for dtype in self.dtypes.clone() {
            for _ in 0..ROUNDS {
                let shape = self.draw.shape();
                let inputs = vec![
                    self.operand(shape, DType::Bool),
                    self.operand(shape, dtype),
                    self.operand(shape, dtype),
                ];
                let targets = vec![self.elementwise_target(shape, dtype)];
                self.run(Trial { op: Op::Where, inputs, targets });
            }
        }
    }

    fn unary(&mut self, function: Unary, dtype: DType) {
        let shape = self.draw.shape();
        // Implementations of gelu differ at infinity, also within PyTorch.
        let special =
            dtype.is_float() && !matches!(function, Unary::Gelu | Unary::GeluTanh) && self.draw.flag(3);
        let inputs = vec![self.with(shape, dtype, if special { Values::Special } else { Values::of(dtype) })];
        let out = if function.is_test() { DType::Bool } else { dtype };
        let target = self.elementwise_target(shape, out);
        let target = self.maybe_over_input(&inputs, target);
        self.run(Trial { op: Op::Unary(function), inputs, targets: vec![target] });
    }

    fn binary(&mut self, op: Binary, dtype: DType) {
        let shape = self.draw.shape();
        let (a, b) = self.ranges(op, dtype);
        let inputs = vec![self.with(shape, dtype, a), self.with(shape, dtype, b)];
        let target = self.elementwise_target(shape, dtype);
        let target = self.maybe_over_input(&inputs, target);
        self.run(Trial { op: Op::Binary(op), inputs, targets: vec![target] });
    }

    fn binary_scalar(&mut self, op: Binary, dtype: DType) {
        if dtype == DType::Bool {
            return; // a truth value promotes to something else, or is a tensor
        }
        let shape = self.draw.shape();
        let swapped = self.draw.flag(2);
        let (a, b) = self.ranges(op, dtype);
        let inputs = vec![self.with(shape, dtype, if swapped { b } else { a })];
        let scalar = match dtype.is_float() {
            true => Scalar::Float(self.draw.pick(&[0.5, 1.25, 2.0, 3.0])),
            false => Scalar::Int(self.draw.int(1, 3)),
        };
        let target = self.elementwise_target(shape, dtype);
        let target = self.maybe_over_input(&inputs, target);
        self.run(Trial { op: Op::BinaryScalar { op, scalar, swapped }, inputs, targets: vec![target] });
    }

    /// Values for which the result is defined (and not lost in cancellation).
    fn ranges(&mut self, op: Binary, dtype: DType) -> (Values, Values) {
        let (floats, own) = (dtype.is_float(), Values::of(dtype));
        match op {
            Binary::Pow if floats => (Values::Between(0.1, 3.0), Values::Between(-2.0, 3.0)),
            Binary::Pow => (own, Values::Positions(4)),
            Binary::Remainder if floats => (Values::Between(-6.0, 6.0), Values::Between(0.7, 2.5)),
            Binary::Remainder if self.draw.flag(2) && dtype != DType::U8 => {
                (own, Values::Between(-5.9, -1.1))
            }
            Binary::Remainder => (own, Values::Between(1.1, 5.9)),
            _ if floats && self.draw.flag(3) => (Values::Special, Values::Special),
            _ => (own, own),
        }
    }

    // ---- reductions ------------------------------------------------------------------------------------------------------

    fn dims(&mut self, shape: &Shape) -> DimSet {
        let mut set = DimSet::default();
        for d in 0..shape.rank() {
            if self.draw.flag(2) {
                set.insert(d);
            }
        }
        if set.is_empty() { DimSet::all(shape.rank()) } else { set }
    }

    fn reductions(&mut self) {
        for &kind in Reduce::ALL {
            for dtype in self.dtypes.clone() {
                if kind == Reduce::Mean && !dtype.is_float() {
                    continue;
                }
                for _ in 0..ROUNDS {
                    let mut shape = self.draw.shape();
                    if kind == Reduce::Prod && !dtype.is_float() {
                        // Of numbers up to 15: a device may hold i64 in 32 bits, where larger products wrap around.
                        shape = Shape::new(&[3, 1, 2]);
                    }
                    let set = self.dims(&shape);
                    let out = match kind {
                        Reduce::Sum | Reduce::Prod if dtype.category() != Category::Float => DType::I64,
                        Reduce::Any | Reduce::All => DType::Bool,
                        _ => dtype,
                    };
                    let values = match kind {
                        Reduce::Max | Reduce::Min if dtype.is_float() && self.draw.flag(3) => Values::Special,
                        Reduce::Prod if dtype.is_float() => Values::Between(0.95, 1.06),
                        Reduce::Sum | Reduce::Mean if dtype.is_float() => Values::Between(0.0, 2.0),
                        Reduce::Any | Reduce::All => Values::Positions(self.draw.pick(&[1, 2, 100])),
                        _ => Values::of(dtype),
                    };
                    let inputs = vec![self.with(shape, dtype, values)];
                    let targets = vec![Target::New(set.keep(shape), out)];
                    self.run(Trial { op: Op::Reduce(kind, set), inputs, targets });
                }
            }
        }
        for dtype in self.numbers() {
            for round in 0..ROUNDS * 2 {
                let shape = self.draw.shape();
                if shape.rank() == 0 {
                    continue;
                }
                let dim = self.draw.below(shape.rank());
                let values =
                    if dtype.is_float() && self.draw.flag(2) { Values::Special } else { Values::of(dtype) };
                let inputs = vec![self.with(shape, dtype, values)];
                let kind = if round % 2 == 0 { ArgReduce::Max } else { ArgReduce::Min };
                let targets = vec![Target::New(shape.with(dim, 1), DType::I64)];
                self.run(Trial { op: Op::ArgReduce(kind, dim), inputs, targets });

                let kind = if round % 2 == 0 { Cumulative::Sum } else { Cumulative::Prod };
                // Core runs integer sums in i64; products of many integers overflow, which wraps.
                let dtype = if dtype.is_float() { dtype } else { DType::I64 };
                let values = match kind {
                    Cumulative::Prod if dtype.is_float() => Values::Between(0.97, 1.03),
                    _ if dtype.is_float() => Values::Between(0.0, 1.0),
                    _ => Values::Between(-2.9, 2.9),
                };
                // Short lines where rounding would add up, or products leave the 32 bits that a device may hold i64 in.
                let short = matches!(dtype, DType::F16 | DType::BF16)
                    || kind == Cumulative::Prod && !dtype.is_float();
                let shape = if short { Shape::new(&[4, 6]) } else { shape };
                let dim = self.draw.below(shape.rank());
                let inputs = vec![self.with(shape, dtype, values)];
                let targets = vec![Target::New(shape, dtype)];
                self.run(Trial { op: Op::Cumulative(kind, dim), inputs, targets });
            }
        }
    }

    // ---- products --------------------------------------------------------------------------------------------------------

    fn products(&mut self) {
        for dtype in self.floats() {
            for round in 0..ROUNDS * 4 {
                let large = round % 8 == 0;
                let mut size = || self.draw.int(1, if large { 90 } else { 9 }) as usize;
                let (m, k, n) = (size(), size(), size());
                // Single rows and columns often have kernels of their own.
                let (m, n) = match round % 8 {
                    1 => (1, n),
                    2 => (m, 1),
                    _ => (m, n),
                };
                let lead: Vec<usize> =
                    (0..self.draw.below(3)).map(|_| self.draw.int(1, 3) as usize).collect();
                let shape = |rows: usize, columns: usize| Shape::new(&[&lead[..], &[rows, columns]].concat());
                let values = Values::Between(0.1, 1.0);
                let inputs =
                    vec![self.with(shape(m, k), dtype, values), self.with(shape(k, n), dtype, values)];
                let targets = vec![Target::New(shape(m, n), dtype)];
                self.run(Trial { op: Op::Matmul, inputs, targets });
            }
        }
    }

    // ---- indexing --------------------------------------------------------------------------------------------------------

    fn indexing(&mut self) {
        for dtype in self.dtypes.clone() {
            // Small whole numbers where sums are made: halves are exact then, whether a backend rounds after each step or at the end.
            let values = if matches!(dtype, DType::F16 | DType::BF16) {
                Values::Positions(4)
            } else {
                Values::of(dtype)
            };
            for _ in 0..ROUNDS {
                let shape = self.draw.small_shape(1, 4);
                let dim = self.draw.below(shape.rank());
                let mut index = shape;
                for d in 0..shape.rank() {
                    index[d] = if d == dim {
                        self.draw.int(1, 9) as usize
                    } else {
                        self.draw.int(1, shape[d] as i64) as usize
                    };
                }
                let positions = Values::Positions(shape[dim]);
                let inputs = vec![self.operand(shape, dtype), self.with(index, DType::I64, positions)];
                let targets = vec![Target::New(index, dtype)];
                self.run(Trial { op: Op::Gather { dim }, inputs, targets });

                let n = self.draw.int(1, 40) as usize;
                let inputs = vec![self.operand(shape, dtype), self.with(n.into(), DType::I64, positions)];
                let targets = vec![Target::New(shape.with(dim, n), dtype)];
                self.run(Trial { op: Op::IndexSelect { dim }, inputs, targets });

                for add in [false, true] {
                    if add && dtype == DType::Bool {
                        continue;
                    }
                    let target = Operand::random(&mut self.draw, shape, dtype, values, true);
                    let inputs =
                        vec![self.with(index, DType::I64, positions), self.with(index, dtype, values)];
                    let op = Op::Scatter { dim, add };
                    self.run(Trial { op, inputs, targets: vec![Target::InPlace(target)] });
                }
                if dtype != DType::Bool {
                    let target = Operand::random(&mut self.draw, shape, dtype, values, true);
                    let inputs = vec![
                        self.with(n.into(), DType::I64, positions),
                        self.with(shape.with(dim, n), dtype, values),
                    ];
                    let targets = vec![Target::InPlace(target)];
                    self.run(Trial { op: Op::IndexAdd { dim }, inputs, targets });
                }
            }
        }
    }

    // ---- order -----------------------------------------------------------------------------------------------------------

    fn order(&mut self) {
        for dtype in self.dtypes.clone() {
            for round in 0..ROUNDS {
                let shape = if round == 0 { Shape::new(&[2, 500]) } else { self.draw.small_shape(1, 4) };
                let dim = self.draw.below(shape.rank());
                // Equal values and NaN among them.
                let values = match dtype.is_float() {
                    true => self.draw.pick(&[Values::Special, Values::of(dtype), Values::Positions(3)]),
                    false => Values::of(dtype),
                };
                let inputs = vec![self.with(shape, dtype, values)];
                let (up, k) = (self.draw.flag(2), self.draw.int(1, shape[dim] as i64) as usize);
                let both = |s: Shape| vec![Target::New(s, dtype), Target::New(s, DType::I64)];
                let op = Op::Sort { dim, descending: up };
                self.run(Trial { op, inputs: inputs.clone(), targets: both(shape) });
                let op = Op::TopK { k, dim, largest: up };
                self.run(Trial { op, inputs, targets: both(shape.with(dim, k)) });
            }
        }
    }

    // ---- windows ---------------------------------------------------------------------------------------------------------

    fn windows(&mut self) {
        for dtype in self.floats() {
            for _ in 0..ROUNDS * 3 {
                let mut draw = |low: i64, high: i64| [0; 2].map(|_| self.draw.int(low, high) as usize);
                let (kernel, stride, padding, dilation) = (draw(1, 3), draw(1, 3), draw(0, 2), draw(1, 2));
                let extra = draw(0, 6);
                let input = [0, 1].map(|i| {
                    let reach = dilation[i] * (kernel[i] - 1) + 1;
                    reach.saturating_sub(2 * padding[i]).max(1) + extra[i]
                });
                let window = Window { input, kernel, stride, padding, dilation };
                let [n, c] = draw(1, 3);
                let [oh, ow] = window.output();
                let image = Shape::new(&[n, c, input[0], input[1]]);
                let columns = Shape::new(&[n, c * kernel[0] * kernel[1], oh * ow]);
                let positive = Values::Between(0.0, 2.0);

                let inputs = vec![self.operand(image, dtype)];
                self.run(Trial {
                    op: Op::Unfold(window),
                    inputs,
                    targets: vec![Target::New(columns, dtype)],
                });
                let inputs = vec![self.with(columns, dtype, positive)];
                self.run(Trial { op: Op::Fold(window), inputs, targets: vec![Target::New(image, dtype)] });

                // A pool's padding is at most half its kernel, so that no window lies in it altogether.
                let padding = [0, 1].map(|i| padding[i].min(kernel[i] / 2));
                let input = [0, 1].map(|i| input[i].max(dilation[i] * (kernel[i] - 1) + 1));
                let window = Window { input, padding, ..window };
                let [oh, ow] = window.output();
                let (image, out) = (Shape::new(&[n, c, input[0], input[1]]), Shape::new(&[n, c, oh, ow]));
                let values = if self.draw.flag(3) { Values::Special } else { Values::of(dtype) };
                let inputs = vec![self.with(image, dtype, values)];
                let targets = vec![Target::New(out, dtype), Target::New(out, DType::I64)];
                self.run(Trial { op: Op::MaxPool(window), inputs, targets });

                let window = Window { dilation: [1, 1], ..window };
                let [oh, ow] = window.output();
                let out = Shape::new(&[n, c, oh, ow]);
                let count = self.draw.flag(2);
                let inputs = vec![self.with(image, dtype, positive)];
                let op = Op::AvgPool(window, count);
                self.run(Trial { op, inputs, targets: vec![Target::New(out, dtype)] });
                let inputs = vec![self.with(out, dtype, positive)];
                let op = Op::AvgPoolGrad(window, count);
                self.run(Trial { op, inputs, targets: vec![Target::New(image, dtype)] });
            }
        }
    }
}

/// One of each function of one element.
pub fn unary_functions() -> Vec<Unary> {
    use Unary::*;
    vec![
        Neg,
        Abs,
        Sign,
        Exp,
        Expm1,
        Log,
        Log1p,
        Log2,
        Log10,
        Sqrt,
        Rsqrt,
        Reciprocal,
        Square,
        Sin,
        Cos,
        Tan,
        Atan,
        Tanh,
        Sigmoid,
        LogSigmoid,
        Erf,
        Relu,
        Gelu,
        GeluTanh,
        Silu,
        Softplus { beta: 1.5, threshold: 4.0 },
        LeakyRelu(0.2),
        Elu(1.3),
        Clamp { min: -1.0, max: 2.0 },
        Floor,
        Ceil,
        Round,
        Trunc,
        IsNan,
        IsInf,
        IsFinite,
        LogicalNot,
    ]
}

/// The results of a trial as tensors of the interpreter: new outputs as they are, given ones with all the memory around them.
fn execute(device: &Device, trial: &Trial) -> Result<Vec<Tensor>> {
    let backend = device.backend();
    let buffers = trial.inputs.iter().map(|i| i.upload(device)).collect::<Result<Vec<_>>>()?;
    let views: Vec<View<'_>> = trial.inputs.iter().zip(&buffers).map(|(i, b)| i.view(b)).collect();
    let mut outputs = Vec::new();
    for target in &trial.targets {
        outputs.push(match target {
            Target::New(shape, dtype) => Output::new(*shape, *dtype),
            Target::InPlace(operand) => {
                Output { layout: operand.layout, dtype: operand.dtype, buffer: Some(operand.upload(device)?) }
            }
            Target::Input(i) => {
                let input = &trial.inputs[*i];
                Output { layout: input.layout, dtype: input.dtype, buffer: Some(buffers[*i].clone()) }
            }
        });
    }
    backend.execute(&trial.op, &views, &mut outputs)?;
    let read = |(target, output): (&Target, &Output)| {
        let shape = match target {
            Target::New(shape, _) => *shape,
            Target::InPlace(operand) => operand.len.into(),
            Target::Input(i) => trial.inputs[*i].len.into(),
        };
        let Some(buffer) = &output.buffer else {
            return Err(orkest_core::Error::Device("an output was left without memory".into()));
        };
        let layout = orkest_core::Layout::contiguous(shape);
        let bytes = backend.download(View { buffer, layout: &layout, dtype: output.dtype })?;
        Tensor::from_bytes(&bytes, shape, output.dtype, &Device::reference())
    };
    trial.targets.iter().zip(&outputs).map(read).collect()
}

fn describe(trial: &Trial) -> String {
    let inputs: Vec<String> = trial.inputs.iter().map(|i| format!("{} {:?}", i.dtype, i.layout)).collect();
    let targets: Vec<String> = trial
        .targets
        .iter()
        .map(|t| match t {
            Target::New(shape, dtype) => format!("new {dtype} {shape}"),
            Target::InPlace(o) => format!("in place {} {:?}", o.dtype, o.layout),
            Target::Input(i) => format!("over input {i}"),
        })
        .collect();
    format!("{:?} of [{}] to [{}]", trial.op, inputs.join("; "), targets.join("; "))
}
