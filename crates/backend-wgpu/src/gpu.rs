//! An opened device with its memory, its stream and its error state: what kernels are written against.

use crate::custom::Programs;
use crate::device::{self, Capabilities};
use crate::element::{self, Elem, check_dtype, stored_size};
use crate::memory::{Memory, Pool};
use crate::pipelines::Source;
use crate::stream::{self, Call, Grid, Params, Stream};
use orkest_core::{Buffer, DType, Error, Layout, MemoryStats, Output, Result, Shape, View};
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

/// A device reached through wgpu.
pub struct Gpu {
    pub(crate) name: String,
    pub(crate) info: wgpu::AdapterInfo,
    pub(crate) capabilities: Capabilities,
    device: wgpu::Device,
    pool: Arc<Pool>,
    stream: Mutex<Stream>,
    /// Where kernels report a bad index: `{ state, op, index, size }`; state 0 is "none".
    fault: Memory,
    fault_possible: AtomicBool,
    error: Arc<ErrorSlot>,
    /// The user's own.
    pub(crate) programs: Programs,
}

/// The first thing that went wrong on the device; every read reports it until it is cleared.
#[derive(Default)]
struct ErrorSlot(Mutex<Option<Error>>);

impl ErrorSlot {
    fn lock(&self) -> MutexGuard<'_, Option<Error>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, error: Error) {
        self.lock().get_or_insert(error);
    }

    fn check(&self) -> Result<()> {
        self.lock().clone().map_or(Ok(()), Err)
    }
}

/// Operations whose kernels check indices; the number travels to the device and back.
pub(crate) const INDEXING_OPS: [&str; 8] = [
    "none",
    "gather",
    "scatter",
    "scatter_add",
    "index_select",
    "index_add",
    "cross_entropy",
    "cross_entropy_grad",
];

/// The number that a kernel reports for `op`.
pub(crate) fn fault_code(op: &str) -> u32 {
    INDEXING_OPS.iter().position(|&name| name == op).unwrap_or(0) as u32
}

/// A row-major tensor that a kernel needs for itself.
pub(crate) struct Temp {
    pub(crate) buffer: Buffer,
    pub(crate) layout: Layout,
    pub(crate) dtype: DType,
}

impl Temp {
    pub(crate) fn view(&self) -> View<'_> {
        View { buffer: &self.buffer, layout: &self.layout, dtype: self.dtype }
    }

    pub(crate) fn memory(&self) -> &Memory {
        Memory::of(&self.buffer)
    }
}

impl Gpu {
    pub(crate) fn open(index: usize) -> Result<Gpu> {
        let opened = device::open(index)?;
        let device::Opened { device, queue, info, capabilities } = opened;
        let name = format!("wgpu: {}", info.name);
        let error = Arc::new(ErrorSlot::default());
        let slot = error.clone();
        let text = name.clone();
        device.on_uncaptured_error(Arc::new(move |e| {
            slot.record(match e {
                wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { bytes: 0, device: text.clone() },
                e => Error::Device(format!("{text}: {e}")),
            });
        }));
        let slot = error.clone();
        let text = name.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                slot.record(Error::Device(format!("{text} was lost: {message}")));
            }
        });
        let pool = Arc::new(Pool::new(device.clone(), name.clone()));
        let fault = pool.allocate(16, None)?;
        let mut stream = Stream::new(&device, &queue, pool.clone(), capabilities);
        stream.write(&fault, &[0; 16])?;
        Ok(Gpu {
            name,
            info,
            capabilities,
            device,
            pool,
            stream: Mutex::new(stream),
            fault,
            fault_possible: AtomicBool::new(false),
            error,
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

    /// Where a kernel that checks indices reports: its last output. The kernel's struct is
    /// `Fault { state: atomic<u32>, op: u32, index: i32, size: u32 }`; it writes the rest after winning `state` from 0 to 1.
    pub(crate) fn fault(&self) -> &Memory {
        self.fault_possible.store(true, Relaxed);
        &self.fault
    }

    /// New memory for `len` elements, contents unspecified.
    pub(crate) fn allocate(&self, len: usize, dtype: DType) -> Result<Buffer> {
        check_dtype(dtype, &self.name)?;
        Ok(Arc::new(self.memory(stored_size(len, self.elem(dtype)), None)?))
    }

    /// A row-major tensor for a kernel's own use.
    pub(crate) fn temp(&self, shape: Shape, dtype: DType) -> Result<Temp> {
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
                // Everything that is only kept for reuse goes back to the driver, and what is under way finishes first.
                self.pool.trim();
                let index = {
                    let mut stream = self.stream();
                    stream.forget_groups();
                    stream.submit()?
                };
                stream::wait(&self.device, index)?;
                self.pool.allocate(bytes, idle_since)
            }
            result => result,
        }
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
        let elem = self.elem(view.dtype);
        let start = view.layout.offset() * elem.size();
        let end = start + view.layout.numel() * elem.size();
        // Copies are of whole words.
        let word = start & !3;
        let stored = self.read(Memory::of(view.buffer), word, end.next_multiple_of(4) - word)?;
        Ok(element::decode(&stored[start - word..end - word], view.dtype, elem))
    }

    /// Bytes of memory, after everything recorded so far; reports what went wrong until then.
    fn read(&self, memory: &Memory, at: usize, size: usize) -> Result<Vec<u8>> {
        let faults = self.fault_possible.swap(false, Relaxed);
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read-back"),
            size: (size + 16) as u64,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        if pollster::block_on(scope.pop()).is_some() {
            return Err(Error::OutOfMemory { bytes: size, device: self.name.clone() });
        }
        let index = {
            let mut stream = self.stream();
            if size > 0 {
                stream.copy(memory.buffer(), at as u64, &staging, 0, size as u64);
            }
            if faults {
                stream.copy(self.fault.buffer(), 0, &staging, size as u64, 16);
            }
            stream.submit()?
        };
        let (sender, receiver) = mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone if waiting failed; then nobody wants to know.
            let _ = sender.send(result);
        });
        let failed = |what: String| Error::Device(format!("reading from {} failed: {what}", self.name));
        let mut waited = stream::wait(&self.device, index);
        let mapped = loop {
            // What the device itself reported says more than that waiting or mapping failed.
            self.error.check()?;
            waited?;
            // Another thread that polls may have taken our callback and be about to call it.
            match receiver.recv_timeout(Duration::from_millis(1)) {
                Ok(result) => break result,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(failed("the buffer was dropped".into()));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    waited =
                        self.device.poll(wgpu::PollType::Poll).map(drop).map_err(|e| failed(e.to_string()));
                }
            }
        };
        mapped.map_err(|e| failed(e.to_string()))?;
        let bytes = staging.get_mapped_range(..).map_err(|e| failed(e.to_string()))?;
        if faults {
            self.check_fault(bytemuck::pod_collect_to_vec(&bytes[size..]));
        }
        self.error.check()?;
        Ok(bytes[..size].to_vec())
    }

    fn check_fault(&self, words: Vec<u32>) {
        if let [state, op, index, size] = words[..]
            && state != 0
        {
            let op = INDEXING_OPS.get(op as usize).copied().unwrap_or(INDEXING_OPS[0]);
            self.error.record(Error::IndexOutOfRange {
                op,
                index: i64::from(index as i32),
                size: size as usize,
            });
        }
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        self.read(&self.fault, 0, 0).map(drop)
    }

    pub(crate) fn memory_stats(&self) -> MemoryStats {
        self.pool.stats()
    }

    pub(crate) fn reset_peak_memory(&self) {
        self.pool.reset_peak();
    }

    pub(crate) fn clear_error(&self) {
        *self.error.lock() = None;
        self.stream().clear(self.fault.buffer());
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
