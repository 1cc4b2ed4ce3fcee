//! Optimizer steps, in place: up to eight parameters per launch where enough buffers can be bound, else one.

use crate::element::Elem;
use crate::gpu::{Gpu, Temp, target};
use crate::memory::Memory;
use crate::stream::{Call, Grid, Params};
use crate::variant::{Variant, variant};
use orkest_core::op::{AdamStep, SgdStep};
use orkest_core::{DType, Output, Result, Shape, View};
use smallvec::{SmallVec, smallvec};

const WORKGROUP: usize = 256;
/// Elements per workgroup, as in the kernels.
const CHUNK: usize = 4 * WORKGROUP;
/// Parameters per launch of the kernels for many.
const SLOTS: usize = 8;

pub(crate) fn supports(inputs: &[View<'_>]) -> bool {
    inputs.iter().all(|v| v.dtype.is_float() && v.dtype == inputs[0].dtype)
}

/// One parameter: its gradient and the tensors to update, in the order of the bindings.
struct Slot<'a> {
    grad: &'a Temp,
    targets: SmallVec<[&'a Output; 4]>,
}

impl Slot<'_> {
    fn len(&self) -> usize {
        self.grad.layout.numel()
    }

    fn offsets(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.grad.layout.offset()).chain(self.targets.iter().map(|t| t.layout.offset()))
    }
}

/// How one kind of step is launched.
struct Step<'a> {
    op: &'static str,
    /// The kernel for one parameter, and a buffer it binds in place of one it does not use.
    one: (&'static str, Variant),
    unused: Option<&'a Memory>,
    /// The kernel for eight, and how many buffers it writes for each: those of states that there are not are not used.
    many: Option<(&'static str, Variant, usize)>,
    /// What both get after sizes and offsets.
    constants: SmallVec<[u32; 9]>,
}

impl Step<'_> {
    fn run(&self, gpu: &Gpu, slots: &[Slot<'_>]) -> Result<()> {
        let (together, single): (Vec<&Slot<'_>>, Vec<_>) =
            slots.iter().partition(|s| self.many.is_some() && s.offsets().all(|o| o == 0));
        single.into_iter().try_for_each(|slot| self.run_one(gpu, slot))?;
        for group in together.chunks(SLOTS) {
            match (&self.many, group) {
                (Some((file, variant, kinds)), [_, _, ..]) => {
                    self.run_many(gpu, file, variant, *kinds, group)?;
                }
                _ => group.iter().try_for_each(|slot| self.run_one(gpu, slot))?,
            }
        }
        Ok(())
    }

    fn run_one(&self, gpu: &Gpu, slot: &Slot<'_>) -> Result<()> {
        let mut params = Params::new().usize(slot.len());
        for offset in slot.offsets() {
            params = params.usize(offset);
        }
        if self.unused.is_some() {
            params = params.u32(0);
        }
        let (file, variant) = &self.one;
        let writes: SmallVec<[&Memory; 4]> =
            slot.targets.iter().map(|t| target(t)).chain(self.unused).collect();
        self.dispatch(gpu, file, variant.clone(), &[slot.grad.memory()], &writes, params, chunks(slot))
    }

    fn run_many(
        &self,
        gpu: &Gpu,
        file: &'static str,
        variant: &Variant,
        kinds: usize,
        group: &[&Slot<'_>],
    ) -> Result<()> {
        // Places without a parameter have no workgroups. What they write must be memory of its own, or writers would share it.
        let spare: Vec<Temp> = (0..kinds * SLOTS - group[0].targets.len() * group.len())
            .map(|_| gpu.temp(Shape::from(1), DType::F32))
            .collect::<Result<_>>()?;
        let mut spare = spare.iter();
        let mut ends = [0u32; SLOTS];
        let mut sizes = [0u32; SLOTS];
        let mut end = 0;
        for i in 0..SLOTS {
            if let Some(slot) = group.get(i) {
                end += chunks(slot);
                sizes[i] = slot.len() as u32;
            }
            ends[i] = end as u32;
        }
        let quarter = |all: &[u32; SLOTS], i: usize| [all[i], all[i + 1], all[i + 2], all[i + 3]];
        let params = Params::new()
            .vec4(quarter(&ends, 0))
            .vec4(quarter(&ends, 4))
            .vec4(quarter(&sizes, 0))
            .vec4(quarter(&sizes, 4));
        let reads: SmallVec<[&Memory; SLOTS]> =
            (0..SLOTS).map(|i| group.get(i).unwrap_or(&group[0]).grad.memory()).collect();
        let mut writes: SmallVec<[&Memory; 32]> = SmallVec::new();
        for k in 0..kinds {
            writes.extend(group.iter().filter_map(|slot| slot.targets.get(k)).map(|output| target(output)));
            writes.extend(spare.by_ref().take((k + 1) * SLOTS - writes.len()).map(Temp::memory));
        }
        self.dispatch(gpu, file, variant.clone(), &reads, &writes, params, end)
    }

    fn dispatch(
        &self,
        gpu: &Gpu,
        file: &'static str,
        variant: Variant,
        reads: &[&Memory],
        writes: &[&Memory],
        mut params: Params,
        workgroups: usize,
    ) -> Result<()> {
        for &word in &self.constants {
            params = params.u32(word);
        }
        gpu.dispatch(Call {
            op: self.op,
            file,
            entry: "main",
            variant,
            constants: smallvec![("WORKGROUP", WORKGROUP as u32)],
            reads,
            writes,
            params,
            grid: Grid::linear(workgroups),
        })
    }
}

fn chunks(slot: &Slot<'_>) -> usize {
    slot.len().div_ceil(CHUNK)
}

/// How parameters, gradients and states are stored, and whether that is as the kernels for many have it.
fn elem(gpu: &Gpu, inputs: &[View<'_>]) -> (Elem, bool) {
    (gpu.elem(inputs[0].dtype), inputs[0].dtype == DType::F32)
}

/// Gradients, row-major.
fn gradients(gpu: &Gpu, inputs: &[View<'_>]) -> Result<Vec<Temp>> {
    inputs.iter().map(|v| gpu.contiguous(v)).collect()
}

/// The parameters with their gradients and states; `outputs` holds all parameters, then all first states, and so on.
fn slots<'a>(grads: &'a [Temp], outputs: &'a [Output]) -> Vec<Slot<'a>> {
    let n = grads.len();
    let states = |i: usize| outputs.iter().skip(i).step_by(n).collect();
    grads.iter().enumerate().map(|(i, grad)| Slot { grad, targets: states(i) }).collect()
}

fn bits(values: &[f64]) -> SmallVec<[u32; 9]> {
    values.iter().map(|&v| (v as f32).to_bits()).collect()
}

/// [`orkest_core::Op::AdamStep`]
pub(crate) fn adam(gpu: &Gpu, step: &AdamStep, inputs: &[View<'_>], outputs: &[Output]) -> Result<()> {
    let grads = gradients(gpu, inputs)?;
    let t = step.step as f64;
    let (decay, shrink) = match step.decoupled {
        true => (0.0, 1.0 - step.lr * step.weight_decay),
        false => (step.weight_decay, 1.0),
    };
    let unused = (!step.amsgrad).then(|| gpu.temp(Shape::from(1), DType::F32)).transpose()?;
    let (elem, plain) = elem(gpu, inputs);
    let many = plain && !step.amsgrad && gpu.capabilities.storage_buffers as usize >= 4 * SLOTS;
    Step {
        op: "adam_step",
        one: ("optim/adam.wgsl", variant![elem: elem, AMSGRAD: step.amsgrad]),
        unused: unused.as_ref().map(Temp::memory),
        many: many.then(|| ("optim/adam_many.wgsl", Variant::new(), 3)),
        constants: bits(&[
            decay,
            shrink,
            if step.maximize { -1.0 } else { 1.0 },
            step.beta2,
            1.0 - step.beta1,
            1.0 - step.beta2,
            step.lr / (1.0 - step.beta1.powf(t)),
            (1.0 - step.beta2.powf(t)).sqrt(),
            step.eps,
        ]),
    }
    .run(gpu, &slots(&grads, outputs))
}

/// [`orkest_core::Op::SgdStep`]
pub(crate) fn sgd(gpu: &Gpu, step: &SgdStep, inputs: &[View<'_>], outputs: &[Output]) -> Result<()> {
    let grads = gradients(gpu, inputs)?;
    let momentum = step.momentum != 0.0;
    let unused = (!momentum).then(|| gpu.temp(Shape::from(1), DType::F32)).transpose()?;
    let (elem, plain) = elem(gpu, inputs);
    let many = plain && gpu.capabilities.storage_buffers as usize >= 3 * SLOTS;
    let mut constants = bits(&[
        step.lr,
        if step.maximize { -1.0 } else { 1.0 },
        step.weight_decay,
        step.momentum,
        1.0 - step.dampening,
    ]);
    constants.extend([u32::from(step.nesterov), u32::from(step.first)]);
    Step {
        op: "sgd_step",
        one: ("optim/sgd.wgsl", variant![elem: elem, MOMENTUM: momentum]),
        unused: unused.as_ref().map(Temp::memory),
        many: many.then(|| ("optim/sgd_many.wgsl", variant![MOMENTUM: momentum], 2)),
        constants,
    }
    .run(gpu, &slots(&grads, outputs))
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = vec![("optim/adam_many.wgsl", Variant::new())];
    all.extend([false, true].map(|momentum| ("optim/sgd_many.wgsl", variant![MOMENTUM: momentum])));
    for elem in Elem::ALL.into_iter().filter(|e| e.is_float()) {
        for flag in [false, true] {
            all.push(("optim/adam.wgsl", variant![elem: elem, AMSGRAD: flag]));
            all.push(("optim/sgd.wgsl", variant![elem: elem, MOMENTUM: flag]));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::tests::there;
    use orkest_core::{Backend, Layout, Op};

    /// A step of twenty parameters is three launches where enough buffers can be bound.
    #[test]
    fn a_step_of_many_parameters_is_few_launches() {
        let Some(gpu) = there(Gpu::open(0)) else { return };
        let adam = AdamStep {
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
            decoupled: true,
            amsgrad: false,
            maximize: false,
            step: 1,
        };
        let plain = SgdStep {
            lr: 0.5,
            momentum: 0.0,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
            maximize: false,
            first: true,
        };
        let steps = [
            (Op::AdamStep(adam), 2, 4, 0.9),
            (Op::SgdStep(plain), 0, 3, 0.5),
            (Op::SgdStep(SgdStep { momentum: 0.9, ..plain }), 1, 3, 0.5),
        ];
        const PARAMETERS: usize = 20;
        let layout = Layout::contiguous(Shape::new(&[1500]));
        for (op, states, buffers, expected) in steps {
            let ones = gpu.upload(bytemuck::cast_slice(&[1.0f32; 1500]), DType::F32).unwrap();
            let views = vec![View { buffer: &ones, layout: &layout, dtype: DType::F32 }; PARAMETERS];
            // The first step compiles, and what is compiled is submitted at once.
            for compiled in [false, true] {
                let mut outputs: Vec<Output> = (0..PARAMETERS * (1 + states))
                    .map(|i| {
                        let start = if i < PARAMETERS { 1.0f32 } else { 0.0 };
                        let buffer = gpu.upload(bytemuck::cast_slice(&[start; 1500]), DType::F32).unwrap();
                        Output { layout, dtype: DType::F32, buffer: Some(buffer) }
                    })
                    .collect();
                let before = gpu.recorded();
                gpu.execute(&op, &views, &mut outputs).unwrap();
                if compiled {
                    let enough = gpu.capabilities.storage_buffers as usize >= buffers * SLOTS;
                    let launches = if enough { PARAMETERS.div_ceil(SLOTS) } else { PARAMETERS };
                    assert_eq!((gpu.recorded() - before) as usize, launches, "{op:?}");
                }
                for (i, output) in outputs.iter().take(PARAMETERS).enumerate() {
                    let buffer = output.buffer.as_ref().expect("it was given");
                    let bytes = gpu.download(&View { buffer, layout: &layout, dtype: DType::F32 }).unwrap();
                    let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
                    let right = values.iter().all(|v| (v - expected).abs() < 1e-6);
                    assert!(right, "{op:?}, parameter {i}: {}", values[0]);
                }
            }
        }
    }
}
