//! An opened device with its memory, its stream and its error state: what kernels are written against.

use crate::cache::Cache;
use crate::custom::Programs;
use crate::device::{self, Capabilities};
use crate::element::{self, Elem, check_dtype, stored_size};
use crate::fault::RECORD;
use crate::fuse::{Fusing, Launch};
use crate::memory::{Memory, Pool};
use crate::pipelines::Source;
use crate::read::{Part, Reader, Reading};
use crate::stream::{self, Call, Grid, Params, Stream};
use orkest_core::{Buffer, DType, Error, Layout, MemoryStats, Output, Result, Shape, View};
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device reached through wgpu.
pub struct Gpu {
    pub(crate) name: String,
    pub(crate) info: wgpu::AdapterInfo,
    pub(crate) capabilities: Capabilities,
    /// Bytes of the largest part of a buffer that a kernel can bind.
    pub(crate) bindable: u64,
    device: wgpu::Device,
    pool: Arc<Pool>,
    stream: Mutex<Stream>,
    fusing: Fusing,
    /// Where kernels report a bad index.
    fault: Memory,
    reader: Arc<Reader>,
    /// The user's own.
    pub(crate) programs: Programs,
}

/// A row-major tensor that a kernel needs for itself.
#[derive(Clone)]
pub(crate) struct Temp {
    pub(crate) buffer: Buffer,
    pub(crate) layout: Layout,
    pub(crate) dtype: DType,
}

impl Temp {
    pub(crate) fn view(&self) -> View<'_> {
        View { buffer: &self.buffer, layout: &self.layout, dtype: self.dtype }
    }

    /// As something to be written.
    pub(crate) fn output(&self) -> Output {
        Output { layout: self.layout, dtype: self.dtype, buffer: Some(self.buffer.clone()) }
    }

    pub(crate) fn memory(&self) -> &Memory {
        Memory::of(&self.buffer)
    }
}

impl Gpu {
    pub(crate) fn open(index: usize) -> Result<Gpu> {
        Gpu::open_with(index, u64::MAX, Fusing::from_env())
    }

    /// With a limit to what a kernel binds, if that is less than the device's own.
    pub(crate) fn open_with(index: usize, bindable: u64, fusing: Fusing) -> Result<Gpu> {
        let opened = device::open(index)?;
        let device::Opened { device, queue, info, capabilities } = opened;
        let limits = device.limits();
        let bindable = (bindable.min(limits.max_storage_buffer_binding_size))
            .min(limits.max_buffer_size)
            .min(device::LARGEST_BINDING);
        let name = format!("wgpu: {}", info.name);
        let reader = Arc::new(Reader::new(&device, &name));
        let (slot, text) = (Arc::downgrade(&reader), name.clone());
        device.on_uncaptured_error(Arc::new(move |e| {
            if let Some(reader) = slot.upgrade() {
                reader.error.record_uncaptured(&text, &e);
            }
        }));
        let slot = Arc::downgrade(&reader);
        device.set_device_lost_callback(move |_, message| {
            if let Some(reader) = slot.upgrade() {
                reader.error.record_loss(reader.lost(&message));
            }
        });
        let pool = Arc::new(Pool::new(device.clone(), name.clone(), bindable));
        let fault = pool.allocate(RECORD, None)?;
        let cache = Cache::open(&device, &info);
        let profiled = orkest_core::profile::enabled()
            .then(|| if index == 0 { "wgpu".to_string() } else { format!("wgpu:{index}") });
        let mut stream =
            Stream::new(&device, &queue, pool.clone(), capabilities, &fault, cache, profiled, fusing);
        stream.write(&fault, &[0; RECORD])?;
        Ok(Gpu {
            name,
            info,
            capabilities,
            bindable,
            device,
            pool,
            stream: Mutex::new(stream),
            fusing,
            fault,
            reader,
            programs: Programs::default(),
        })
    }

    fn stream(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- for kernels -----------------------------------------------------------------------------------------------------

    /// How elements of `dtype` are stored.
    pub(crate) fn elem(&self, dtype: DType) -> Elem {
        Elem::of(dtype, &self.capabilities)
    }

    /// Records a launch.
    pub(crate) fn dispatch(&self, call: Call<'_>) -> Result<()> {
        self.stream().dispatch(call)
    }

    /// Whether elementwise launches can become one.
    pub(crate) fn fuses(&self) -> bool {
        self.fusing != Fusing::Never
    }

    /// Records an elementwise launch, or lets it wait for others.
    pub(crate) fn elementwise(&self, launch: Launch) {
        self.stream().elementwise(launch);
    }

    /// Launches in the batch that is being recorded.
    #[cfg(test)]
    pub(crate) fn recorded(&self) -> u32 {
        self.stream().recorded()
    }

    /// Groups of elementwise launches that have a kernel.
    #[cfg(test)]
    pub(crate) fn compiled_groups(&self) -> usize {
        self.stream().compiled_groups()
    }

    /// Records a launch of a user's program: its buffers with the bytes that are bound, the result last.
    pub(crate) fn dispatch_text(
        &self,
        source: Source,
        buffers: &[(&Memory, Range<u64>)],
        params: Params,
        grid: Grid,
    ) -> Result<()> {
        self.stream().dispatch_text(source, buffers, params, grid)
    }

    /// Where a kernel that checks indices or results reports: its last output. The kernel's struct is
    /// `Fault { state: atomic<u32>, op: u32, index: i32, size: u32 }`; it writes the rest after setting `state` from 0 to 1.
    pub(crate) fn fault(&self) -> &Memory {
        &self.fault
    }

    /// What such a kernel gets as a parameter and writes to `op`: a number for the user's line and the operation, which is `op`
    /// where there is no user.
    pub(crate) fn site(&self, op: &'static str) -> u32 {
        self.reader.sites.number(op)
    }

    /// An error if an invocation would take so many rounds of loops that the driver may end them early.
    pub(crate) fn check_rounds(&self, op: &str, rounds: usize) -> Result<()> {
        if rounds <= self.capabilities.rounds {
            return Ok(());
        }
        Err(Error::Device(format!(
            "{op}: loops of {rounds} rounds are longer than a software driver such as {} may run; use the CPU or another adapter",
            self.name
        )))
    }

    /// New memory for `len` elements, contents unspecified.
    pub(crate) fn allocate(&self, len: usize, dtype: DType) -> Result<Buffer> {
        check_dtype(dtype, &self.name)?;
        Ok(Arc::new(self.memory(stored_size(len, self.elem(dtype)), None)?))
    }

    /// A row-major tensor for a kernel's own use.
    pub(crate) fn temp(&self, shape: Shape, dtype: DType) -> Result<Temp> {
        let bytes = stored_size(shape.numel(), self.elem(dtype)) as u64;
        if bytes > self.bindable {
            return Err(crate::pieces::too_large(self, "an intermediate result", bytes));
        }
        Ok(Temp { buffer: self.allocate(shape.numel(), dtype)?, layout: Layout::contiguous(shape), dtype })
    }

    /// Gives every new output its memory.
    pub(crate) fn allocate_outputs(&self, outputs: &mut [Output]) -> Result<()> {
        for output in outputs.iter_mut().filter(|o| o.buffer.is_none()) {
            output.buffer = Some(self.allocate(output.layout.numel(), output.dtype)?);
        }
        Ok(())
    }

    /// The view if it is row-major, else a row-major copy.
    pub(crate) fn contiguous(&self, view: &View<'_>) -> Result<Temp> {
        if view.layout.is_contiguous() {
            return Ok(Temp { buffer: view.buffer.clone(), layout: *view.layout, dtype: view.dtype });
        }
        let temp = self.temp(*view.layout.shape(), view.dtype)?;
        let out = Output { layout: temp.layout, dtype: temp.dtype, buffer: Some(temp.buffer.clone()) };
        crate::copy::copy(self, view, &out)?;
        Ok(temp)
    }

    /// Words in device memory, for kernels whose parameters do not fit in [`stream::Params`].
    pub(crate) fn words(&self, words: &[u32]) -> Result<Memory> {
        self.upload_bytes(bytemuck::cast_slice(words))
    }

    // ---- memory ----------------------------------------------------------------------------------------------------------

    fn memory(&self, bytes: usize, idle_since: Option<u64>) -> Result<Memory> {
        match self.pool.allocate(bytes, idle_since) {
            Err(Error::OutOfMemory { .. }) => {
                self.make_room()?;
                self.pool.allocate(bytes, idle_since)
            }
            result => result,
        }
    }

    /// Gives everything that is only kept for reuse back to the driver, once what is under way has finished.
    fn make_room(&self) -> Result<()> {
        self.stream().flush();
        self.pool.trim();
        self.reader.trim();
        let index = {
            let mut stream = self.stream();
            stream.forget_groups();
            stream.submit()?
        };
        stream::wait(&self.device, index)
    }

    fn upload_bytes(&self, bytes: &[u8]) -> Result<Memory> {
        let batch = self.stream().batch();
        let memory = self.memory(bytes.len(), Some(batch))?;
        // Another thread may have submitted since; then the memory is all the more idle.
        self.stream().write(&memory, bytes)?;
        Ok(memory)
    }

    pub(crate) fn upload(&self, bytes: &[u8], dtype: DType) -> Result<Buffer> {
        check_dtype(dtype, &self.name)?;
        Ok(Arc::new(self.upload_bytes(&element::encode(bytes, dtype, self.elem(dtype))?)?))
    }

    /// Reads a row-major view.
    pub(crate) fn download(&self, view: &View<'_>) -> Result<Vec<u8>> {
        self.start_download(view)?.wait()
    }

    /// Asks for the elements of a row-major view.
    pub(crate) fn start_download(&self, view: &View<'_>) -> Result<Reading> {
        let elem = self.elem(view.dtype);
        let start = view.layout.offset() * elem.size();
        let end = start + view.layout.numel() * elem.size();
        // Copies are of whole words.
        let word = start & !3;
        self.read(
            Memory::of(view.buffer),
            word..end.next_multiple_of(4),
            start - word..end - word,
            view.dtype,
        )
    }

    /// Asks for elements that lie at `part` of the `bytes` of memory, after everything recorded so far.
    fn read(
        &self,
        memory: &Memory,
        bytes: Range<usize>,
        part: Range<usize>,
        dtype: DType,
    ) -> Result<Reading> {
        let size = bytes.len();
        let staging = match self.reader.staging(size) {
            Err(Error::OutOfMemory { .. }) => {
                self.make_room()?;
                self.reader.staging(size)?
            }
            result => result?,
        };
        let (index, fault) = {
            let mut stream = self.stream();
            self.reader.comes_after(stream.last());
            if size > 0 {
                stream.copy(memory.buffer(), bytes.start as u64, &staging, 0, size as u64);
            }
            let launches = stream.fault_launches();
            let fault = (!self.reader.checked.all_of(launches)).then_some((size, launches));
            if fault.is_some() {
                stream.copy(self.fault.buffer(), 0, &staging, size as u64, RECORD as u64);
            }
            let index = stream.submit().map_err(|e| self.reader.cause(e))?;
            if let Some(e) = stream.failure() {
                self.reader.error.record(e);
            }
            (index, fault)
        };
        Ok(self.reader.start(staging, index, Part { bytes: part, dtype, elem: self.elem(dtype), fault }))
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        self.read(&self.fault, 0..0, 0..0, DType::F32)?.wait().map(drop)
    }

    pub(crate) fn memory_stats(&self) -> MemoryStats {
        self.pool.stats()
    }

    pub(crate) fn reset_peak_memory(&self) {
        self.pool.reset_peak();
    }

    pub(crate) fn clear_error(&self) {
        let mut stream = self.stream();
        stream.clear(self.fault.buffer());
        stream.failure();
        self.reader.error.clear();
    }

    /// While profiling a device without timestamps: waits, when dropped, for what was recorded meanwhile, so that the time of
    /// the call is the time of the work.
    pub(crate) fn wait_when_done(&self) -> Option<impl Drop> {
        struct Wait<'a>(&'a Gpu);
        impl Drop for Wait<'_> {
            fn drop(&mut self) {
                let submitted = self.0.stream().submit();
                // An error shows at the next read.
                let _ = submitted.and_then(|index| stream::wait(&self.0.device, index));
            }
        }
        (orkest_core::profile::enabled() && !self.capabilities.timestamps).then(|| Wait(self))
    }
}

/// Up to four dimensions of layouts that are walked together, as kernels get them.
pub(crate) struct Strided<const N: usize> {
    /// Sizes, filled up with 1 from the front.
    pub(crate) shape: [u32; 4],
    /// Strides of every layout, as the bits of `i32`s.
    pub(crate) strides: [[u32; 4]; N],
    /// Where every layout starts.
    pub(crate) offsets: [u32; N],
    /// All layouts are row-major: strides can be ignored.
    pub(crate) contiguous: bool,
}

/// Layouts of one shape, collapsed together. `None` if more than four dimensions are left: copy something first.
pub(crate) fn strided<const N: usize>(layouts: [&Layout; N]) -> Option<Strided<N>> {
    let collapsed = Layout::collapse_all(layouts);
    let rank = collapsed[0].rank();
    let lead = 4usize.checked_sub(rank)?;
    let mut shape = [1; 4];
    for d in 0..rank {
        shape[lead + d] = collapsed[0].shape()[d] as u32;
    }
    let strides = std::array::from_fn(|i| {
        let mut strides = [0; 4];
        for (to, &stride) in strides[lead..].iter_mut().zip(collapsed[i].strides()) {
            *to = stride as i32 as u32;
        }
        strides
    });
    let offsets = std::array::from_fn(|i| collapsed[i].offset() as u32);
    let contiguous = collapsed.iter().all(Layout::is_contiguous);
    Some(Strided { shape, strides, offsets, contiguous })
}

/// The memories of some views, in order.
pub(crate) fn memories<'a>(views: &[View<'a>]) -> SmallVec<[&'a Memory; 8]> {
    views.iter().map(|v| Memory::of(v.buffer)).collect()
}

/// The memory of an output that has some.
pub(crate) fn target(output: &Output) -> &Memory {
    Memory::of(output.buffer.as_ref().expect("outputs are allocated before anything runs"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use orkest_core::op::Binary;
    use orkest_core::{Backend, Device, Op, Scalar, Tensor};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    orkest_core::register_backend!("wgpu-to-lose", open_to_lose);

    /// The device that one of the tests destroys.
    static TO_LOSE: Mutex<Option<wgpu::Device>> = Mutex::new(None);

    fn open_to_lose(index: usize) -> Result<Box<dyn Backend>> {
        let gpu = Gpu::open(index)?;
        *TO_LOSE.lock().unwrap() = Some(gpu.device.clone());
        Ok(Box::new(gpu))
    }

    /// `None`, with a word about it, where there is no adapter and none is required.
    pub(crate) fn there<T>(opened: Result<T>) -> Option<T> {
        match opened {
            Ok(device) => Some(device),
            Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
            Err(_) => {
                println!("skipped: no adapter");
                None
            }
        }
    }

    #[test]
    fn a_lost_device_is_an_error_at_every_read_and_nothing_worse() {
        let Some(device) = there(Device::open("wgpu-to-lose", 0)) else { return };
        let x = Tensor::ones([1000], &device);
        assert_eq!(x.sum(..).item().unwrap(), 1000.0);
        let line = line!() + 1;
        let recorded = &x + 1.0;
        TO_LOSE.lock().unwrap().take().expect("it has just been opened").destroy();
        let lost = |error: Error| assert!(error.to_string().contains("was lost"), "{error}");
        let error = recorded.to_vec::<f32>().unwrap_err();
        let named = format!("the last operation was add at {}:{line}", file!());
        assert!(error.to_string().contains(&named), "{error}");
        lost(error);
        lost(pollster::block_on(x.to_vec_async::<f32>()).unwrap_err());
        // More work is refused at once or at its read, for ever.
        for _ in 0..3 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let z = Tensor::from_slice(&[1.0f32, 2.0], [2], &device);
                (0..300).fold(z, |z, _| &z + 1.0).to_vec::<f32>()
            }));
            assert!(!matches!(outcome, Ok(Ok(_))), "it computed");
            device.clear_error();
            lost(device.synchronize().unwrap_err());
        }
        // Tensors can still be dropped, and other devices do not mind.
        drop((x, recorded));
        let other = Device::wgpu(0).unwrap();
        assert_eq!(Tensor::ones([1000], &other).sum(..).item().unwrap(), 1000.0);
    }

    orkest_core::register_backend!("wgpu-again", open_again);

    fn open_again(index: usize) -> Result<Box<dyn Backend>> {
        Ok(Box::new(Gpu::open(index)?))
    }

    #[test]
    fn two_devices_work_side_by_side_and_do_not_mix() {
        let Some(one) = there(Device::wgpu(0)) else { return };
        let two = Device::open("wgpu-again", 0).unwrap();
        let (mut a, mut b) = (Tensor::zeros([100], &one), Tensor::ones([100], &two));
        for i in 0..300 {
            a += 1.0;
            b += 2.0;
            if i % 100 == 0 {
                (a, b) = (b.to(&one), a.to(&two));
            }
        }
        let sum = |t: &Tensor| t.sum(..).item().unwrap();
        // 0 and 1 go back and forth: three moves, at steps 0, 100 and 200.
        let (mut x, mut y) = (0.0, 1.0);
        for i in 0..300 {
            (x, y) = (x + 1.0, y + 2.0);
            if i % 100 == 0 {
                (x, y) = (y, x);
            }
        }
        assert_eq!((sum(&a), sum(&b)), (100.0 * x, 100.0 * y));
        let mixed = catch_unwind(AssertUnwindSafe(|| &a + &b)).unwrap_err();
        let text = mixed.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(text.starts_with("add: ") && text.contains("wgpu-again"), "{text}");
        assert_eq!(sum(&a), 100.0 * x, "nothing happened to either");
    }

    #[test]
    fn tensors_and_reads_outlive_the_device_that_they_came_from() {
        let Some(gpu) = there(Gpu::open(0)) else { return };
        let layout = Layout::contiguous(Shape::new(&[1000]));
        let x = gpu.upload(bytemuck::cast_slice(&[1.0f32; 1000]), DType::F32).unwrap();
        let add = Op::BinaryScalar { op: Binary::Add, scalar: Scalar::Float(1.0), swapped: false };
        let mut y = [Output::new(*layout.shape(), DType::F32)];
        gpu.execute(&add, &[View { buffer: &x, layout: &layout, dtype: DType::F32 }], &mut y).unwrap();
        let y = y[0].buffer.take().unwrap();
        let read = || gpu.start_download(&View { buffer: &y, layout: &layout, dtype: DType::F32 }).unwrap();
        let (waited, awaited, dropped) = (read(), read(), read());
        // Something is recorded that nobody will ask for.
        let mut z = [Output::new(*layout.shape(), DType::F32)];
        gpu.execute(&add, &[View { buffer: &y, layout: &layout, dtype: DType::F32 }], &mut z).unwrap();
        drop((gpu, dropped));
        let expected = bytemuck::cast_slice(&[2.0f32; 1000]).to_vec();
        assert!(waited.wait().unwrap() == expected);
        assert!(pollster::block_on(awaited).unwrap() == expected);
        drop((x, y, z));
    }

    #[test]
    fn a_long_loop_without_reads_is_submitted_in_batches_of_which_few_are_under_way() {
        let Some(gpu) = there(Gpu::open_with(0, u64::MAX, Fusing::Never)) else { return };
        let layout = Layout::contiguous(Shape::new(&[1000]));
        let mut x = gpu.upload(&[0; 4000], DType::F32).unwrap();
        let add = Op::BinaryScalar { op: Binary::Add, scalar: Scalar::Float(1.0), swapped: false };
        // The first launch compiles, and what is compiled is submitted at once.
        let view = View { buffer: &x, layout: &layout, dtype: DType::F32 };
        gpu.execute(&add, &[view], &mut [Output::new(*layout.shape(), DType::F32)]).unwrap();
        let first = gpu.stream().batch();
        let (batches, mut most, mut early, mut late) = (20, 0, 0, 0);
        for i in 0..batches * stream::BATCH {
            let view = View { buffer: &x, layout: &layout, dtype: DType::F32 };
            let mut y = [Output::new(*layout.shape(), DType::F32)];
            gpu.execute(&add, &[view], &mut y).unwrap();
            x = y[0].buffer.take().unwrap();
            most = most.max(gpu.stream().under_way());
            let stats = gpu.memory_stats();
            let held = if i < stream::BATCH { &mut early } else { &mut late };
            *held = (stats.live_bytes + stats.idle_bytes).max(*held);
        }
        assert_eq!(gpu.stream().batch() - first, u64::from(batches));
        assert!((1..=stream::IN_FLIGHT).contains(&most), "{most} batches under way");
        // The same buffers come again, and so do their bind groups.
        let kept = gpu.stream().kept_groups();
        assert!((1..=8).contains(&kept), "{kept} bind groups");
        // A result takes the memory of the operand before it, which nothing else needs.
        assert_eq!(early, late, "bytes held");
        assert!(late < 5 * 4096, "{late} bytes held");
        let bytes = gpu.download(&View { buffer: &x, layout: &layout, dtype: DType::F32 }).unwrap();
        let expected = (batches * stream::BATCH) as f32;
        assert!(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes).iter().all(|&v| v == expected));
    }

    #[test]
    fn uploads_are_submitted_before_the_host_holds_many_of_them() {
        let Some(gpu) = there(Gpu::open(0)) else { return };
        let bytes = vec![7u8; 8 << 20];
        let first = gpu.stream().batch();
        let mut last = None;
        for _ in 0..4 * stream::UPLOAD_BATCH / bytes.len() as u64 {
            last = Some(gpu.upload(&bytes, DType::U8).unwrap());
        }
        // Bytes are words on the device: four times as much is uploaded.
        assert_eq!(gpu.stream().batch() - first, 16);
        // Every upload but those of the batch being recorded may have its memory again.
        let held = gpu.memory_stats().live_bytes + gpu.memory_stats().idle_bytes;
        assert!(held <= 3 * stream::UPLOAD_BATCH as usize, "{held} bytes held");
        let layout = Layout::contiguous(Shape::new(&[bytes.len()]));
        let view = View { buffer: &last.unwrap(), layout: &layout, dtype: DType::U8 };
        assert!(gpu.download(&view).unwrap() == bytes);
    }

    #[test]
    fn what_fails_after_it_has_waited_is_reported_by_the_next_read() {
        let Some(gpu) = there(Gpu::open(0)) else { return };
        let error = Error::OutOfMemory { bytes: 12, device: gpu.name.clone() };
        gpu.stream().failed(error.clone());
        assert_eq!(gpu.synchronize(), Err(error.clone()));
        assert_eq!(gpu.synchronize(), Err(error.clone()), "until it is cleared");
        gpu.stream().failed(error);
        gpu.clear_error();
        assert_eq!(gpu.synchronize(), Ok(()));
    }

    #[test]
    fn a_validation_error_waits_for_the_next_read_and_can_be_cleared() {
        let Some(gpu) = there(Gpu::open(0)) else { return };
        let x = gpu.upload(&[0; 16], DType::F32).unwrap();
        gpu.stream().copy(Memory::of(&x).buffer(), 0, gpu.fault.buffer(), 1 << 20, 16);
        let text = gpu.synchronize().unwrap_err().to_string();
        assert!(text.contains(&gpu.name) && text.to_lowercase().contains("copy"), "{text}");
        assert!(gpu.synchronize().is_err(), "until it is cleared");
        gpu.clear_error();
        let layout = Layout::contiguous(Shape::new(&[4]));
        assert_eq!(gpu.download(&View { buffer: &x, layout: &layout, dtype: DType::F32 }), Ok(vec![0; 16]));
    }
}
