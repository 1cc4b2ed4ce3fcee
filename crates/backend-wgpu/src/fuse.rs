//! Elementwise launches that follow each other become one kernel, which reads and writes memory once.
//!
//! The stream keeps such launches waiting until something else is recorded; then they are recorded where they would have been, as one
//! kernel or one by one. Nothing moves past anything, so there is no more to think about than who still wants which result: a result that
//! a later launch of the group has read, and that no tensor holds any more, stays in a register.
//!
//! A kernel is compiled when its program comes for the third time, so that nothing is compiled for what happens once. Its results are
//! those of the launches one by one, to the last bit (`fused.wgsl` has the reason).

use crate::element::Elem;
use crate::memory::{Former, Memory};
use crate::pipelines::{Constants, Pipeline};
use crate::program::{Bound, MAX_WORDS, Program, Source, Step, Walk};
use crate::stream::{Grid, Params};
use crate::variant::Variant;
use orkest_core::{Layout, Output, RawBuffer, View};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;

/// Most launches that become one.
const MOST: usize = 16;
/// Programs that are remembered: far more than a model has.
const PROGRAMS: usize = 4096;

/// An elementwise launch that can wait for more.
pub(crate) struct Launch {
    pub(crate) alone: Alone,
    /// Its kernel's variant, without what it says of strides, and its parameters.
    pub(crate) variant: Variant,
    pub(crate) words: SmallVec<[u32; 6]>,
    pub(crate) elements: usize,
    pub(crate) inputs: SmallVec<[Operand; 3]>,
    pub(crate) output: Operand,
}

/// What a launch by itself needs besides its operands.
pub(crate) struct Alone {
    /// The public operation, for the profile.
    pub(crate) op: &'static str,
    /// The operation of the backend, for messages.
    pub(crate) kernel: &'static str,
    pub(crate) file: &'static str,
    pub(crate) variant: Variant,
    pub(crate) params: Params,
    pub(crate) constants: Constants,
    pub(crate) grid: Grid,
}

/// A tensor that a launch reads or writes.
pub(crate) struct Operand {
    memory: Memory,
    place: Place,
}

/// Where its elements lie.
#[derive(Clone, Copy, PartialEq)]
struct Place {
    elem: Elem,
    walk: Walk,
    offset: u32,
    /// Of a repeated one: how often each element comes in a row, and how many there are.
    period: [u32; 2],
}

impl Operand {
    /// `None` if its elements lie in another order than the result's, or only part of its buffer is bound.
    pub(crate) fn of(view: &View<'_>, elem: Elem) -> Option<Operand> {
        let memory = Memory::of(view.buffer);
        let (walk, period) = walk(view.layout)?;
        let place = Place { elem, walk, offset: u32::try_from(view.layout.offset()).ok()?, period };
        (!memory.is_window()).then(|| Operand { memory: memory.again(), place })
    }

    /// `None` if its elements do not lie side by side in row-major order, or only part of its buffer is bound.
    pub(crate) fn written(output: &Output, elem: Elem) -> Option<Operand> {
        let buffer = output.buffer.as_ref()?;
        let view = View { buffer, layout: &output.layout, dtype: output.dtype };
        Operand::of(&view, elem).filter(|operand| operand.place.walk == Walk::Each)
    }

    /// Both are in one buffer, but not element for element the same.
    pub(crate) fn overlaps(&self, other: &Operand) -> bool {
        self.memory.shares(&other.memory) && self.place != other.place
    }
}

/// How a layout of the result's shape walks through its elements, and the period if it repeats them.
fn walk(layout: &Layout) -> Option<(Walk, [u32; 2])> {
    if layout.is_contiguous() {
        return Some((Walk::Each, [0; 2]));
    }
    let collapsed = layout.collapse();
    let size = |d: usize| u32::try_from(collapsed.shape()[d]).ok();
    match collapsed.strides() {
        [0] => Some((Walk::Same, [0; 2])),
        [0, 1] => Some((Walk::Repeated, [1, size(1)?])),
        [1, 0] => Some((Walk::Repeated, [size(1)?, size(0)?])),
        [0, 1, 0] => Some((Walk::Repeated, [size(2)?, size(1)?])),
        _ => None,
    }
}

/// The launches that are waiting.
#[derive(Default)]
pub(crate) struct Group {
    elements: usize,
    pub(crate) launches: Vec<Waiting>,
    pub(crate) slots: Vec<Slot>,
}

/// A launch, with the numbers of its operands' slots.
pub(crate) struct Waiting {
    pub(crate) alone: Alone,
    pub(crate) inputs: SmallVec<[usize; 3]>,
    pub(crate) output: usize,
    step: Step,
    words: SmallVec<[u32; 6]>,
}

/// A tensor that launches of the group read or write.
pub(crate) struct Slot {
    held: Held,
    pub(crate) bytes: usize,
    place: Place,
    /// What it was before the group is needed.
    read: bool,
    /// The step that wrote it last, and whether none has read that.
    written: Option<usize>,
    unread: bool,
    /// The launch that needs it last.
    pub(crate) last: usize,
}

enum Held {
    /// An operand, or a result that no launch of the group has read yet: that is written even if no tensor holds it any more, as it would
    /// be without the group.
    InUse(Memory),
    /// A result that has been read. If no tensor holds it any more, its memory may serve something else.
    Former(Former),
}

impl Slot {
    fn shares(&self, operand: &Operand) -> bool {
        match &self.held {
            Held::InUse(memory) => memory.shares(&operand.memory),
            Held::Former(former) => former.shares(&operand.memory),
        }
    }

    /// Its memory, if that is still its own.
    pub(crate) fn memory(&self) -> Option<Memory> {
        match &self.held {
            Held::InUse(memory) => Some(memory.again()),
            Held::Former(former) => former.memory(),
        }
    }

    /// The step whose result must be written, and where.
    fn wanted(&self) -> Option<(usize, Memory)> {
        let step = self.written?;
        let only_here = matches!(&self.held, Held::InUse(memory) if memory.is_last());
        if only_here && !self.unread { None } else { Some((step, self.memory()?)) }
    }

    /// The words of parameters that say where its elements are.
    fn words(&self) -> usize {
        if self.place.walk == Walk::Repeated { 3 } else { 1 }
    }
}

/// Words of parameters that are not left out.
fn given(words: &[u32]) -> usize {
    words.iter().filter(|&&word| word != 0).count()
}

impl Group {
    /// Whether a launch can join the ones that wait. `most` is how many buffers a kernel can bind.
    pub(crate) fn admits(&self, launch: &Launch, most: usize) -> bool {
        if self.launches.is_empty() {
            return true;
        }
        if self.launches.len() >= MOST || self.elements != launch.elements {
            return false;
        }
        let operands = || launch.inputs.iter().map(|input| (input, false)).chain([(&launch.output, true)]);
        // Elements that another invocation writes must not be read, nor those overwritten that it reads.
        let crosses = |(operand, writes): (&Operand, bool)| {
            let mut others = self.slots.iter().filter(|slot| slot.place != operand.place);
            others.any(|slot| (writes || slot.written.is_some()) && slot.shares(operand))
        };
        if operands().any(crosses) {
            return false;
        }
        let bound = self.slots.iter().filter(|slot| slot.read || slot.memory().is_some());
        let (buffers, places) = bound.fold((0, 0), |(n, words), slot| (n + 1, words + slot.words()));
        let words: usize = self.launches.iter().map(|waiting| given(&waiting.words)).sum();
        let new = launch.inputs.len() + 1;
        buffers + new <= most && 2 + places + 3 * new + words + given(&launch.words) <= MAX_WORDS
    }

    pub(crate) fn push(&mut self, launch: Launch) {
        let Launch { alone, variant, words, elements, inputs, output } = launch;
        let number = self.launches.len();
        self.elements = elements;
        let mut step = Step {
            file: alone.file,
            variant,
            inputs: SmallVec::new(),
            given: words.iter().map(|&word| word != 0).collect(),
            result: output.place.elem,
        };
        let mut slots: SmallVec<[usize; 3]> = SmallVec::new();
        for input in inputs {
            let at = self.slot(input, number);
            let slot = &mut self.slots[at];
            step.inputs.push(match slot.written {
                None => {
                    slot.read = true;
                    Source::Buffer(at)
                }
                Some(step) => {
                    slot.unread = false;
                    if let (false, Held::InUse(memory)) = (slot.read, &slot.held) {
                        slot.held = Held::Former(memory.former());
                    }
                    Source::Step(step)
                }
            });
            slots.push(at);
        }
        let memory = output.memory.again();
        let at = self.slot(output, number);
        let slot = &mut self.slots[at];
        (slot.held, slot.written, slot.unread) = (Held::InUse(memory), Some(number), true);
        self.launches.push(Waiting { alone, inputs: slots, output: at, step, words });
    }

    /// The slot of an operand of this launch.
    fn slot(&mut self, operand: Operand, launch: usize) -> usize {
        let found = self.slots.iter().position(|slot| slot.place == operand.place && slot.shares(&operand));
        let at = found.unwrap_or_else(|| {
            self.slots.push(Slot {
                bytes: operand.memory.size(),
                place: operand.place,
                held: Held::InUse(operand.memory),
                read: false,
                written: None,
                unread: false,
                last: launch,
            });
            self.slots.len() - 1
        });
        self.slots[at].last = launch;
        at
    }

    /// The launches as one.
    pub(crate) fn fused(&self) -> Fused {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for (at, slot) in self.slots.iter().enumerate() {
            match slot.wanted() {
                Some((step, memory)) => writes.push((at, Some(step), memory)),
                None if slot.read => reads.extend(slot.memory().map(|memory| (at, None, memory))),
                None => {}
            }
        }
        let split = reads.len();
        let mut binding = vec![usize::MAX; self.slots.len()];
        let mut program = Program {
            constants: self.launches[0].alone.constants.clone(),
            buffers: SmallVec::new(),
            steps: Vec::new(),
        };
        let mut params = Params::new().usize(self.elements).u32(0);
        let mut memories = Vec::new();
        for (i, (at, written, memory)) in reads.into_iter().chain(writes).enumerate() {
            let Slot { place, read, .. } = self.slots[at];
            binding[at] = i;
            program.buffers.push(Bound { elem: place.elem, read: read.then_some(place.walk), written });
            params = params.u32(place.offset);
            if place.walk == Walk::Repeated {
                params = params.u32(place.period[0]).u32(place.period[1]);
            }
            memories.push(memory);
        }
        for waiting in &self.launches {
            let mut step = waiting.step.clone();
            for input in &mut step.inputs {
                if let Source::Buffer(at) = input {
                    *at = binding[*at];
                }
            }
            program.steps.push(step);
            params = waiting
                .words
                .iter()
                .filter(|&&word| word != 0)
                .fold(params, |params, &word| params.u32(word));
        }
        let writes = memories.split_off(split);
        Fused { program, reads: memories, writes, params, grid: self.launches[0].alone.grid }
    }

    /// What the profile calls the launches as one.
    pub(crate) fn name(&self) -> String {
        let ops: Vec<&str> = self.launches.iter().map(|waiting| waiting.alone.op).collect();
        format!("fused({})", ops.join("+"))
    }
}

/// A launch of a fused kernel.
pub(crate) struct Fused {
    pub(crate) program: Program,
    pub(crate) reads: Vec<Memory>,
    pub(crate) writes: Vec<Memory>,
    pub(crate) params: Params,
    pub(crate) grid: Grid,
}

/// How often a program must come before it is compiled.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fusing {
    Never,
    FromTime(u32),
}

impl Fusing {
    /// As `ORKEST_FUSE` says: 0 never, 1 at once.
    pub(crate) fn from_env() -> Fusing {
        match std::env::var("ORKEST_FUSE").as_deref() {
            Ok("0") => Fusing::Never,
            Ok("1") => Fusing::FromTime(1),
            _ => Fusing::FromTime(3),
        }
    }
}

/// The programs that have come.
#[derive(Default)]
pub(crate) struct Programs(HashMap<Program, Known>);

struct Known {
    times: u32,
    compiled: Option<Compiled>,
}

#[derive(Clone)]
pub(crate) enum Compiled {
    Kernel {
        pipeline: Arc<Pipeline>,
        name: &'static str,
    },
    /// A driver that does not compile it gets its launches one by one.
    Refused,
}

impl Programs {
    /// How many have a kernel.
    #[cfg(test)]
    pub(crate) fn compiled(&self) -> usize {
        self.0.values().filter(|known| matches!(known.compiled, Some(Compiled::Kernel { .. }))).count()
    }

    /// What a program was compiled to, by `compile` if it comes for the `first` time that is worth it.
    pub(crate) fn get(
        &mut self,
        program: &Program,
        first: u32,
        compile: impl FnOnce() -> Compiled,
    ) -> Option<Compiled> {
        if self.0.len() >= PROGRAMS && !self.0.contains_key(program) {
            self.0.clear();
        }
        if !self.0.contains_key(program) {
            self.0.insert(program.clone(), Known { times: 0, compiled: None });
        }
        let known = self.0.get_mut(program)?;
        known.times = known.times.saturating_add(1);
        if known.times >= first && known.compiled.is_none() {
            known.compiled = Some(compile());
        }
        known.compiled.clone()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Gpu;
    use crate::gpu::tests::there;
    use orkest_core::op::{Binary, Unary};
    use orkest_core::{
        Backend, Buffer, DType, Device, Generator, Op, Result, Shape, Tensor, no_grad, with_generator,
    };
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::sync::{Mutex, PoisonError};

    /// How many launches have become part of one.
    pub(crate) static LAUNCHES: AtomicUsize = AtomicUsize::new(0);

    orkest_core::register_backend!("wgpu-fused", open_fused);
    orkest_core::register_backend!("wgpu-one-by-one", open_one_by_one);

    fn open_fused(index: usize) -> Result<Box<dyn Backend>> {
        Ok(Box::new(Gpu::open_with(index, u64::MAX, Fusing::FromTime(1))?))
    }

    fn open_one_by_one(index: usize) -> Result<Box<dyn Backend>> {
        Ok(Box::new(Gpu::open_with(index, u64::MAX, Fusing::Never)?))
    }

    /// Two devices that differ in nothing but whether they fuse, and that no other test uses meanwhile.
    fn devices() -> Option<[Device; 2]> {
        Some([there(Device::open("wgpu-fused", 0))?, there(Device::open("wgpu-one-by-one", 0))?])
    }

    static TURN: Mutex<()> = Mutex::new(());

    /// The bits of all elements; of what is not a number only that.
    fn bits(t: &Tensor) -> Vec<u32> {
        let t = t.to(&Device::reference());
        let float = t.dtype().is_float();
        let values = t.to_dtype(if float { DType::F32 } else { DType::I64 });
        match float {
            true => values
                .to_vec::<f32>()
                .unwrap()
                .iter()
                .map(|v| if v.is_nan() { f32::NAN } else { *v }.to_bits())
                .collect(),
            false => values.to_vec::<i64>().unwrap().iter().map(|&v| v as u32).collect(),
        }
    }

    /// Numbers from 0 to `below`, the same on every device.
    struct Dice(Generator);

    impl Dice {
        fn below(&mut self, below: usize) -> usize {
            self.0.random_u32() as usize % below
        }

        fn one<'a>(&mut self, of: &'a [Tensor], fits: impl Fn(&Tensor) -> bool) -> &'a Tensor {
            let fitting: Vec<&Tensor> = of.iter().filter(|t| fits(t)).collect();
            fitting[self.below(fitting.len())]
        }
    }

    const SHAPE: [usize; 3] = [5, 30, 40];

    /// What every script starts with: all float types, bool and integers; whole tensors, rows, columns, planes, single elements.
    fn operands(device: &Device) -> Vec<Tensor> {
        let special = [0.0, -0.0, 1.0, -1.0, 1e-40, 3e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 100.0];
        let normal = |shape: &[usize], seed, scale: f64| {
            let mut values = vec![0.0f32; shape.iter().product()];
            Generator::new(seed).fill_normal_f32(&mut values, 0.0, scale);
            values
        };
        let mut x = normal(&SHAPE, 1, 2.0);
        for (i, value) in special.iter().enumerate() {
            for j in 0..30 {
                x[(i * 31 + j * 199) % 6000] = *value;
            }
        }
        let tensor = |values: Vec<f32>, shape: &[usize]| Tensor::from_slice(&values, shape, device);
        let x = tensor(x, &SHAPE);
        let mut all = vec![tensor(normal(&SHAPE, 2, 1.0), &SHAPE), tensor(normal(&SHAPE, 3, 30.0), &SHAPE)];
        for (seed, shape) in [(4, &[40][..]), (5, &[30, 1]), (6, &[5, 1, 1]), (7, &[1]), (8, &[1, 30, 40])] {
            all.push(tensor(normal(shape, seed, 1.0), shape));
        }
        all.extend([DType::F16, DType::BF16].map(|dtype| x.to_dtype(dtype)));
        all.push(x.gt(0.5));
        all.push((&all[1] * 3.0).to_dtype(DType::I64));
        all.push(x);
        all
    }

    /// A random program; its results are what it keeps, and what it has read on the way.
    fn script(device: &Device, seed: u64) -> Vec<Vec<u32>> {
        let mut dice = Dice(Generator::new(seed));
        let mut live = operands(device);
        let first = live.len();
        let mut read = Vec::new();
        let whole = |t: &Tensor| t.shape()[..] == SHAPE;
        for _ in 0..60 {
            let a = dice.one(&live, |t| t.dtype().is_float() && whole(t)).clone();
            let b = dice.one(&live, |t| t.dtype().is_float()).clone();
            let mask = dice.one(&live, |t| t.dtype() == DType::Bool).clone();
            let number = [0.0, 0.5, -2.0, 3.0, f64::INFINITY][dice.below(5)];
            let made = match dice.below(20) {
                0..=3 => a.unary(crate::unary::ALL[dice.below(crate::unary::ALL.len())]),
                4 => &a + &b,
                5 => &a - &b,
                6 | 7 => &a * &b,
                8 => &a / &b,
                9 => [a.maximum(&b), a.minimum(&b), a.pow(&b), a.remainder(&b), a.atan2(&b)][dice.below(5)]
                    .clone(),
                10 => {
                    [&a + number, &a * number, number - &a, number / &a, a.pow(number)][dice.below(5)].clone()
                }
                11 => [a.gt(&b), a.le(&b), a.eq(number), a.ne(&b), mask.logical_not()][dice.below(5)].clone(),
                12 => mask.where_(&a, &b),
                13 => a.to_dtype([DType::F32, DType::F16, DType::BF16, DType::Bool][dice.below(4)]),
                14 => {
                    // In place, on memory of its own or shared.
                    let at = dice.below(live.len());
                    if live[at].dtype().is_float() && whole(&live[at]) && at >= first {
                        drop(a);
                        let b = b.to_dtype(live[at].dtype());
                        live[at] += &b;
                        live[at] *= 0.5;
                    }
                    continue;
                }
                15 => {
                    // Where others are between the elements.
                    let mut y = a.clone();
                    y.slice_assign((1..4, .., 3), number);
                    y
                }
                16 => no_grad(|| {
                    let x = a.to_dtype(DType::F32).requires_grad_(true);
                    orkest_core::enable_grad(|| {
                        let y = x.unary(
                            [Unary::Gelu, Unary::Silu, Unary::Tanh, Unary::Relu, Unary::Log1p][dice.below(5)],
                        );
                        (y * &b).sum(..).backward();
                    });
                    x.grad().expect("it was asked for")
                }),
                17 => with_generator(&mut Generator::new(seed), || a.dropout(0.4, true)),
                18 => {
                    read.push(bits(&a.sum(1)));
                    continue;
                }
                _ => {
                    // Forgotten: an operand of what still waits, perhaps.
                    if live.len() > first + 2 {
                        live.swap_remove(first + dice.below(live.len() - first));
                    }
                    continue;
                }
            };
            live.push(if whole(&made) { made } else { made.expand(SHAPE).contiguous() });
        }
        read.extend(live.iter().map(bits));
        read
    }

    #[test]
    fn fused_or_not_the_bits_are_the_same() {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let Some([fused, one_by_one]) = devices() else { return };
        for seed in 0..12 {
            let before = LAUNCHES.load(Relaxed);
            let [got, wanted] = [&fused, &one_by_one].map(|device| script(device, seed));
            let together = LAUNCHES.load(Relaxed) - before;
            assert!(together > 30, "{together} launches became part of one");
            assert_eq!(got.len(), wanted.len());
            for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
                let differs = got.iter().zip(wanted).position(|(g, w)| g != w);
                let at = differs.unwrap_or_default();
                assert!(
                    differs.is_none(),
                    "script {seed}, result {i}[{at}]: {:#x}, not {:#x}",
                    got[at],
                    wanted[at]
                );
            }
        }
    }

    #[test]
    fn a_kernel_is_compiled_when_its_program_comes_for_the_third_time() {
        let Some(gpu) = there(Gpu::open_with(0, u64::MAX, Fusing::FromTime(3))) else { return };
        let layout = Layout::contiguous(Shape::new(&[1000]));
        let upload = |value: f32| gpu.upload(bytemuck::cast_slice(&[value; 1000]), DType::F32).unwrap();
        let (a, b) = (upload(3.0), upload(4.0));
        let run = |op: Op, inputs: &[&Buffer]| {
            let view = |buffer| View { buffer, layout: &layout, dtype: DType::F32 };
            let views: Vec<View<'_>> = inputs.iter().map(|&buffer| view(buffer)).collect();
            let mut outputs = [Output::new(*layout.shape(), DType::F32)];
            gpu.execute(&op, &views, &mut outputs).unwrap();
            outputs[0].buffer.take().unwrap()
        };
        for (round, compiled) in [(1, 0), (2, 0), (3, 1), (4, 1)] {
            // What is between is gone before anything runs, and its memory serves the sum.
            let product = run(Op::Binary(Binary::Mul), &[&a, &b]);
            let root = run(Op::Unary(Unary::Sqrt), &[&product]);
            drop(product);
            let sum = run(Op::Binary(Binary::Add), &[&root, &b]);
            let bytes = gpu.download(&View { buffer: &sum, layout: &layout, dtype: DType::F32 }).unwrap();
            let expected = 12f32.sqrt() + 4.0;
            assert!(
                bytemuck::pod_collect_to_vec::<u8, f32>(&bytes).iter().all(|&v| (v - expected).abs() < 1e-6)
            );
            assert_eq!(gpu.compiled_groups(), compiled, "round {round}");
        }
    }

    #[test]
    fn rows_columns_and_planes_are_repeated_and_transposed_operands_are_not() {
        let whole = Shape::new(&[5, 30, 40]);
        let of = |shape: &[usize]| Layout::contiguous(Shape::new(shape)).broadcast_to(&whole).unwrap();
        assert_eq!(walk(&of(&[5, 30, 40])), Some((Walk::Each, [0; 2])));
        assert_eq!(walk(&of(&[1])), Some((Walk::Same, [0; 2])));
        assert_eq!(walk(&of(&[40])), Some((Walk::Repeated, [1, 40])));
        assert_eq!(walk(&of(&[30, 40])), Some((Walk::Repeated, [1, 1200])));
        assert_eq!(walk(&of(&[30, 1])), Some((Walk::Repeated, [40, 30])));
        assert_eq!(walk(&of(&[5, 1, 1])), Some((Walk::Repeated, [1200, 5])));
        assert_eq!(walk(&of(&[5, 1, 40])), None);
        assert_eq!(walk(&Layout::contiguous(whole).transpose(1, 2)), None);
    }
}
