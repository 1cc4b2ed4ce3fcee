//! Recording: one command encoder with one open compute pass, submitted in batches.
//!
//! Nothing here waits for the device except when too many batches are under way.

use crate::cache::Cache;
use crate::device::Capabilities;
use crate::fuse::{Alone, Compiled, Fused, Fusing, Group, Launch, Programs, Slot, Waiting};
use crate::memory::{Memory, Pool};
use crate::pipelines::{Bindings, Constants, Key, MAX_PARAMS, Pipeline, Pipelines, Source};
use crate::process::Process;
use crate::timing::{Timed, Timing};
use crate::variant::Variant;
use orkest_core::{Caller, Error, Result, caller};
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

/// Dispatches per submission.
pub(crate) const BATCH: u32 = 128;
/// Batches under way before the next submission waits for the oldest.
pub(crate) const IN_FLIGHT: usize = 4;
/// Uploaded bytes after which a batch is submitted: wgpu keeps a copy of each until then.
pub(crate) const UPLOAD_BATCH: u64 = 64 << 20;
/// Bind groups kept; far more than a model uses, few enough not to matter.
const BIND_GROUPS: usize = 8192;
/// Distance of parameter blocks in the uniform buffer that stands in for immediates.
const UNIFORM_STEP: u32 = 256;

/// Number of workgroups along each dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid(pub(crate) [u32; 3]);

impl Grid {
    /// Most workgroups along one dimension, everywhere.
    pub(crate) const MAX: u32 = 65535;

    /// `count` workgroups in a row, folded where they are too many. Kernels recover the number as
    /// `group.x + groups.x * (group.y + groups.y * group.z)` and must ignore numbers past their end.
    pub(crate) fn linear(count: usize) -> Grid {
        let max = Grid::MAX as usize;
        if count <= max {
            return Grid([count as u32, 1, 1]);
        }
        let rows = count.div_ceil(max);
        if rows <= max {
            return Grid([count.div_ceil(rows) as u32, rows as u32, 1]);
        }
        let planes = rows.div_ceil(max);
        Grid([max as u32, rows.div_ceil(planes) as u32, planes as u32])
    }
}

/// One kernel launch.
pub(crate) struct Call<'a> {
    /// The public operation, for messages.
    pub(crate) op: &'a str,
    /// The file in `shaders/`.
    pub(crate) file: &'static str,
    pub(crate) entry: &'static str,
    pub(crate) variant: Variant,
    pub(crate) constants: Constants,
    /// Bindings 0.. in order; an input that is an output too is taken care of.
    pub(crate) reads: &'a [&'a Memory],
    /// The bindings after the inputs.
    pub(crate) writes: &'a [&'a Memory],
    pub(crate) params: Params,
    pub(crate) grid: Grid,
}

/// The parameter block of a launch, laid out as WGSL lays out a struct of scalars and `vec4`s in the same order.
#[derive(Clone, Default, Debug)]
pub(crate) struct Params {
    words: SmallVec<[u32; MAX_PARAMS / 4]>,
    vectors: bool,
    /// A size that 32 bits do not hold.
    beyond: Option<usize>,
}

impl Params {
    pub(crate) fn new() -> Params {
        Params::default()
    }

    pub(crate) fn u32(mut self, value: u32) -> Params {
        self.words.push(value);
        self
    }

    /// What lies in device memory has a size of 32 bits, but a view may repeat it more often than that: the launch is an error then.
    pub(crate) fn usize(mut self, value: usize) -> Params {
        if u32::try_from(value).is_err() {
            self.beyond = Some(value);
        }
        self.u32(value as u32)
    }

    pub(crate) fn i32(self, value: i32) -> Params {
        self.u32(value as u32)
    }

    pub(crate) fn f32(self, value: f32) -> Params {
        self.u32(value.to_bits())
    }

    /// A `vec4<u32>`, or with the bits of something else a `vec4` of that.
    pub(crate) fn vec4(mut self, value: [u32; 4]) -> Params {
        self.align();
        self.words.extend_from_slice(&value);
        self.vectors = true;
        self
    }

    fn align(&mut self) {
        self.words.resize(self.words.len().next_multiple_of(4), 0);
    }

    fn bytes(&mut self) -> &[u8] {
        if self.vectors {
            self.align();
        }
        bytemuck::cast_slice(&self.words)
    }
}

/// Parameters of a batch, for devices without immediates.
struct Uniforms {
    buffer: wgpu::Buffer,
    group: wgpu::BindGroup,
    bytes: Vec<u8>,
}

pub(crate) struct Stream {
    device: wgpu::Device,
    queue: wgpu::Queue,
    process: Process,
    pool: Arc<Pool>,
    pipelines: Pipelines,
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    /// The number of the batch being recorded.
    batch: u64,
    dispatches: u32,
    uploaded: u64,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
    groups: HashMap<(Bindings, SmallVec<[u32; 8]>), wgpu::BindGroup>,
    groups_generation: u64,
    uniforms: Option<Uniforms>,
    /// The memory that kernels report bad indices in, and how many launches could have.
    fault: u32,
    fault_launches: u64,
    /// Who launched last.
    last: Option<Caller>,
    timing: Option<Timing>,
    /// Elementwise launches that may become one, the programs of such groups, and what failed with them.
    waiting: Group,
    fusing: Fusing,
    programs: Programs,
    most_buffers: usize,
    failure: Option<Error>,
}

impl Stream {
    pub(crate) fn new(
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        pool: Arc<Pool>,
        capabilities: Capabilities,
        fault: &Memory,
        cache: Option<Cache>,
        profiled: Option<String>,
        fusing: Fusing,
    ) -> Stream {
        let (uniform_layout, uniforms) = if capabilities.immediates {
            (None, None)
        } else {
            let (layout, uniforms) = uniforms(device);
            (Some(layout), Some(uniforms))
        };
        let timed = profiled.clone().filter(|_| capabilities.timestamps);
        let timing = timed.map(|name| Timing::new(device, queue, name, BATCH));
        Stream {
            device: device.clone(),
            queue: queue.clone(),
            process: Process::current(),
            pool,
            pipelines: Pipelines::new(device.clone(), capabilities, uniform_layout, cache, profiled),
            encoder: None,
            pass: None,
            batch: 1,
            dispatches: 0,
            uploaded: 0,
            in_flight: VecDeque::new(),
            groups: HashMap::new(),
            groups_generation: 0,
            uniforms,
            fault: fault.id(),
            fault_launches: 0,
            last: None,
            timing,
            waiting: Group::default(),
            fusing,
            programs: Programs::default(),
            most_buffers: capabilities.storage_buffers as usize,
            failure: None,
        }
    }

    /// How many launches could have reported a bad index.
    pub(crate) fn fault_launches(&self) -> u64 {
        self.fault_launches
    }

    /// The operation that was recorded last.
    pub(crate) fn last(&self) -> Option<Caller> {
        self.last
    }

    /// The number of the batch being recorded: memory last used in an earlier one is not touched by anything unsubmitted.
    pub(crate) fn batch(&self) -> u64 {
        self.batch
    }

    /// Lets an elementwise launch wait for others, or records those that wait first. What fails then is reported by the next read.
    pub(crate) fn elementwise(&mut self, launch: Launch) {
        self.last = caller().or(self.last);
        if !self.waiting.admits(&launch, self.most_buffers) {
            self.flush();
        }
        self.waiting.push(launch);
    }

    /// Records the launches that wait.
    pub(crate) fn flush(&mut self) {
        let group = std::mem::take(&mut self.waiting);
        let result = match group.launches.len() {
            0 => return,
            1 => self.one_by_one(group),
            _ => self.as_one(group),
        };
        if let Err(e) = result {
            self.failed(e);
        }
    }

    /// Notes what went wrong when there was nobody to tell.
    pub(crate) fn failed(&mut self, error: Error) {
        self.failure.get_or_insert(error);
    }

    /// What went wrong with launches that had waited.
    pub(crate) fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Records a group as one launch if its kernel is there.
    fn as_one(&mut self, group: Group) -> Result<()> {
        let Fusing::FromTime(first) = self.fusing else { return self.one_by_one(group) };
        let Fused { program, reads, writes, mut params, grid } = group.fused();
        let bindings = Bindings { reads: reads.len() as u8, writes: writes.len() as u8, aliased: 0 };
        let Stream { programs, pipelines, .. } = self;
        let compiled = programs.get(&program, first, || match pipelines.fused(&program, bindings) {
            Ok(pipeline) => Compiled::Kernel { pipeline, name: group.name().leak() },
            Err(e) => {
                debug_assert!(false, "{e}");
                Compiled::Refused
            }
        });
        let Some(Compiled::Kernel { pipeline, name }) = compiled else { return self.one_by_one(group) };
        #[cfg(test)]
        crate::fuse::tests::LAUNCHES.fetch_add(group.launches.len(), std::sync::atomic::Ordering::Relaxed);
        drop(group);
        let reads: SmallVec<[&Memory; 8]> = reads.iter().collect();
        let writes: SmallVec<[&Memory; 8]> = writes.iter().collect();
        let buffers = self.group(&pipeline.layout, bindings, &reads, &writes);
        for memory in reads.iter().chain(&writes) {
            memory.used_in(self.batch);
        }
        self.record(Timed { op: name, call: true }, &pipeline, &buffers, &mut params, grid)
    }

    /// Records the launches of a group as if they had not waited. Results that have given their memory back get some for as long as others
    /// need them.
    fn one_by_one(&mut self, group: Group) -> Result<()> {
        let Group { launches, slots, .. } = group;
        let mut memories: Vec<Option<Memory>> = slots.iter().map(Slot::memory).collect();
        let needs: Vec<(usize, usize)> = slots.into_iter().map(|slot| (slot.bytes, slot.last)).collect();
        for (number, Waiting { alone, inputs, output, .. }) in launches.into_iter().enumerate() {
            if memories[output].is_none() {
                memories[output] = Some(self.room(needs[output].0)?);
            }
            let memory =
                |at: usize| memories[at].as_ref().expect("what is read is an operand or has been written");
            let Alone { op, kernel, file, variant, params, constants, grid } = alone;
            self.dispatch_for(
                op,
                Call {
                    op: kernel,
                    file,
                    entry: "main",
                    variant,
                    constants,
                    reads: &inputs.iter().map(|&at| memory(at)).collect::<SmallVec<[&Memory; 3]>>(),
                    writes: &[memory(output)],
                    params,
                    grid,
                },
            )?;
            for (memory, (_, last)) in memories.iter_mut().zip(&needs) {
                if *last == number {
                    *memory = None;
                }
            }
        }
        Ok(())
    }

    /// Memory for a result that only other launches need.
    fn room(&mut self, bytes: usize) -> Result<Memory> {
        match self.pool.allocate(bytes, None) {
            Err(Error::OutOfMemory { .. }) => {
                self.pool.trim();
                self.forget_groups();
                let index = self.submit()?;
                wait(&self.device, index)?;
                self.pool.allocate(bytes, None)
            }
            result => result,
        }
    }

    /// Records a launch.
    pub(crate) fn dispatch(&mut self, call: Call<'_>) -> Result<()> {
        self.last = caller().or(self.last);
        self.flush();
        self.dispatch_for(caller().map_or("upload", |c| c.op), call)
    }

    /// Records a launch for an operation that the profile knows by this name.
    fn dispatch_for(&mut self, op: &'static str, mut call: Call<'_>) -> Result<()> {
        if let Some(size) = call.params.beyond {
            return Err(Error::Device(format!(
                "{}: {size} elements are more than kernels count, which do it in 32 bits; split the tensor",
                call.op
            )));
        }
        if call.grid.0.iter().any(|&n| n > Grid::MAX) {
            return Err(Error::Device(format!(
                "{}: kernel {}:{} would need a grid of {:?} workgroups",
                call.op, call.file, call.entry, call.grid.0
            )));
        }
        debug_assert!(call.params.words.len() * 4 <= MAX_PARAMS, "{}: too many parameters", call.file);
        let aliased = (0..call.reads.len())
            .filter(|&i| call.writes.iter().any(|w| w.id() == call.reads[i].id()))
            .fold(0, |mask, i| mask | 1 << i);
        let bindings = Bindings { reads: call.reads.len() as u8, writes: call.writes.len() as u8, aliased };
        let key = Key {
            source: Source::File(call.file),
            entry: call.entry,
            variant: std::mem::take(&mut call.variant),
            constants: std::mem::take(&mut call.constants),
            bindings,
        };
        let (pipeline, new) = self.pipelines.get(&key)?;
        let group = self.group(&pipeline.layout, bindings, call.reads, call.writes);
        for memory in call.reads.iter().chain(call.writes) {
            memory.used_in(self.batch);
        }
        if call.writes.last().is_some_and(|w| w.id() == self.fault) {
            self.fault_launches += 1;
        }
        self.record(Timed { op, call: false }, &pipeline, &group, &mut call.params, call.grid)?;
        if new {
            // Drivers may compile, too, and they do it when the kernel is launched first: while the next one is compiled here.
            self.hand_over()?;
        }
        Ok(())
    }

    /// Records a launch of a user's program. Of every buffer, the last being the result, just the part with these bytes is bound.
    pub(crate) fn dispatch_text(
        &mut self,
        source: Source,
        buffers: &[(&Memory, Range<u64>)],
        mut params: Params,
        grid: Grid,
    ) -> Result<()> {
        self.flush();
        let bindings = Bindings { reads: buffers.len() as u8 - 1, writes: 1, aliased: 0 };
        let key =
            Key { source, entry: "main", variant: Variant::new(), constants: Constants::new(), bindings };
        let (pipeline, _) = self.pipelines.get(&key)?;
        let entries: SmallVec<[wgpu::BindGroupEntry<'_>; 8]> = buffers
            .iter()
            .zip(0..)
            .map(|((memory, part), binding)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: memory.buffer(),
                    offset: part.start,
                    size: NonZeroU64::new(part.end - part.start),
                }),
            })
            .collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.layout,
            entries: &entries,
        });
        for (memory, _) in buffers {
            memory.used_in(self.batch);
        }
        let op = caller().map_or("upload", |c| c.op);
        self.record(Timed { op, call: false }, &pipeline, &group, &mut params, grid)
    }

    fn record(
        &mut self,
        timed: Timed,
        pipeline: &Pipeline,
        group: &wgpu::BindGroup,
        params: &mut Params,
        grid: Grid,
    ) -> Result<()> {
        self.open_pass(timed);
        let pass = self.pass.as_mut().expect("just opened");
        pass.set_pipeline(&pipeline.pipeline); // which costs nothing if it is set already
        pass.set_bind_group(0, group, &[]);
        let params = params.bytes();
        match &mut self.uniforms {
            None if params.is_empty() => {}
            None => pass.set_immediates(0, params),
            Some(uniforms) => {
                let offset = uniforms.bytes.len();
                uniforms.bytes.extend_from_slice(params);
                uniforms.bytes.resize(offset + UNIFORM_STEP as usize, 0);
                pass.set_bind_group(1, &uniforms.group, &[offset as u32]);
            }
        }
        let [x, y, z] = grid.0;
        pass.dispatch_workgroups(x, y, z);
        if self.timing.is_some() {
            self.close_pass(); // one launch, one pair of timestamps
        }
        self.dispatches += 1;
        if self.dispatches >= BATCH {
            self.submit()?;
        }
        Ok(())
    }

    fn group(
        &mut self,
        layout: &wgpu::BindGroupLayout,
        bindings: Bindings,
        reads: &[&Memory],
        writes: &[&Memory],
    ) -> wgpu::BindGroup {
        let generation = self.pool.destroyed();
        if self.groups.len() >= BIND_GROUPS || generation != self.groups_generation {
            self.groups.clear();
            self.groups_generation = generation;
        }
        let memories = || reads.iter().chain(writes);
        let create = || {
            let entries: SmallVec<[wgpu::BindGroupEntry<'_>; 8]> = memories()
                .zip(0..)
                .map(|(memory, binding)| wgpu::BindGroupEntry { binding, resource: memory.binding() })
                .collect();
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout,
                entries: &entries,
            })
        };
        if memories().any(|m| m.is_window()) {
            return create(); // rarely needed, and never quite the same twice
        }
        let ids = memories().map(|m| m.id()).collect();
        self.groups.entry((bindings, ids)).or_insert_with(create).clone()
    }

    fn open_encoder(&mut self) -> &mut wgpu::CommandEncoder {
        self.encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()))
    }

    /// Opens a pass if none is. While profiling, each launch has its own.
    fn open_pass(&mut self, timed: Timed) {
        if self.pass.is_some() {
            return;
        }
        self.open_encoder();
        let encoder = self.encoder.as_mut().expect("just opened");
        let timestamp_writes = self.timing.as_mut().map(|timing| timing.launch(timed));
        let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
        self.pass = Some(encoder.begin_compute_pass(&descriptor).forget_lifetime());
    }

    /// Ends the pass, so that copies can be recorded after it.
    fn close_pass(&mut self) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        self.open_encoder()
    }

    /// Records a copy of bytes; offsets and size are multiples of 4.
    pub(crate) fn copy(&mut self, from: &wgpu::Buffer, at: u64, to: &wgpu::Buffer, to_at: u64, size: u64) {
        self.flush();
        self.close_pass().copy_buffer_to_buffer(from, at, to, to_at, size);
    }

    /// Records zeroing a buffer.
    pub(crate) fn clear(&mut self, buffer: &wgpu::Buffer) {
        self.flush();
        self.close_pass().clear_buffer(buffer, 0, None);
    }

    /// Fills memory that nothing unsubmitted uses: the write happens before everything in the batch being recorded.
    pub(crate) fn write(&mut self, memory: &Memory, bytes: &[u8]) -> Result<()> {
        self.process.check()?;
        // wgpu takes as much host memory as there are bytes.
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        self.queue.write_buffer(memory.buffer(), 0, bytes);
        if pollster::block_on(scope.pop()).is_some() {
            return Err(self.pool.exhausted(bytes.len()));
        }
        memory.used_in(self.batch);
        self.uploaded += bytes.len() as u64;
        if self.uploaded >= UPLOAD_BATCH {
            self.submit()?;
        }
        Ok(())
    }

    /// Hands what is recorded to the device, and waits while too many batches are under way.
    pub(crate) fn submit(&mut self) -> Result<wgpu::SubmissionIndex> {
        self.flush();
        let index = self.hand_over()?;
        self.in_flight.push_back(index.clone());
        if self.in_flight.len() > IN_FLIGHT
            && let Some(oldest) = self.in_flight.pop_front()
        {
            wait(&self.device, oldest)?;
        }
        Ok(index)
    }

    fn hand_over(&mut self) -> Result<wgpu::SubmissionIndex> {
        self.process.check()?;
        self.pass = None;
        if let (Some(timing), Some(encoder)) = (&self.timing, &mut self.encoder) {
            timing.resolve(encoder);
        }
        let commands = self.encoder.take().map(wgpu::CommandEncoder::finish);
        if let Some(uniforms) = &mut self.uniforms
            && !uniforms.bytes.is_empty()
        {
            self.queue.write_buffer(&uniforms.buffer, 0, &uniforms.bytes);
            uniforms.bytes.clear();
        }
        let index = self.queue.submit(commands);
        self.batch += 1;
        self.dispatches = 0;
        self.uploaded = 0;
        if let Some(timing) = &mut self.timing {
            timing.collect(&self.device, index.clone())?;
        }
        Ok(index)
    }

    /// Groups of launches that have a kernel.
    #[cfg(test)]
    pub(crate) fn compiled_groups(&self) -> usize {
        self.programs.compiled()
    }

    /// Launches in the batch that is being recorded.
    #[cfg(test)]
    pub(crate) fn recorded(&self) -> u32 {
        self.dispatches
    }

    /// Bind groups that are kept.
    #[cfg(test)]
    pub(crate) fn kept_groups(&self) -> usize {
        self.groups.len()
    }

    /// Batches that may not be finished yet.
    #[cfg(test)]
    pub(crate) fn under_way(&self) -> usize {
        self.in_flight.len()
    }

    /// Forgets everything that keeps unused buffers alive.
    pub(crate) fn forget_groups(&mut self) {
        self.groups.clear();
    }
}

/// Waits for a submission.
pub(crate) fn wait(device: &wgpu::Device, index: wgpu::SubmissionIndex) -> Result<()> {
    match device.poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: None }) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::Device(format!("waiting for the device failed: {e}"))),
    }
}

fn uniforms(device: &wgpu::Device) -> (wgpu::BindGroupLayout, Uniforms) {
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some("parameters"),
        entries: &[wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: true,
                min_binding_size: None,
            },
            count: None,
        }],
    });
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("parameters"),
        size: u64::from(BATCH * UNIFORM_STEP),
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("parameters"),
        layout: &layout,
        entries: &[wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &buffer,
                offset: 0,
                size: NonZeroU64::new(MAX_PARAMS as u64),
            }),
        }],
    });
    (layout, Uniforms { buffer, group, bytes: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_grids_fold_and_cover_every_workgroup() {
        for count in [1, 65535, 65536, 1 << 20, 65535 * 65535, 65535 * 65535 + 1, 1 << 33] {
            let Grid(grid) = Grid::linear(count);
            assert!(grid.iter().all(|&n| (1..=Grid::MAX).contains(&n)), "{count}: {grid:?}");
            let total: u64 = grid.iter().map(|&n| u64::from(n)).product();
            assert!(total >= count as u64, "{count}: {grid:?}");
        }
    }

    #[test]
    fn parameters_follow_the_layout_of_wgsl_structs() {
        let mut params = Params::new().u32(1).vec4([2, 3, 4, 5]).u32(6);
        assert_eq!(bytemuck::cast_slice::<u8, u32>(params.bytes()), [1, 0, 0, 0, 2, 3, 4, 5, 6, 0, 0, 0]);
    }
}
