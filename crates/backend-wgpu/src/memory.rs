//! Device memory: one `wgpu::Buffer` per tensor, recycled through free lists by size class.
//!
//! There is one queue and it runs in order, so a buffer that is dropped on the host can be handed out again at once: whatever
//! was recorded earlier reads it earlier.

use crate::process::Process;
use orkest_core::{Buffer, Error, MemoryStats, RawBuffer, Result};
use std::any::Any;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Free memory that is kept beyond what is in use.
const SLACK: usize = 256 << 20;

/// A buffer of the device with a number of its own.
struct Raw {
    buffer: wgpu::Buffer,
    id: u32,
    /// The batch that last used it.
    batch: u64,
}

/// A buffer while it is in use. Goes back to the pool when dropped.
struct Lease {
    raw: Option<Raw>,
    batch: AtomicU64,
    pool: Arc<Pool>,
}

/// The memory of one tensor, or a window of it. It is in use as long as there is one of these.
pub(crate) struct Memory {
    lease: Arc<Lease>,
    size: usize,
    /// Where the window starts, if it is one.
    window: Option<u64>,
}

/// Memory that may be in use no more.
pub(crate) struct Former {
    lease: Weak<Lease>,
    size: usize,
}

impl Former {
    /// Whether it was this memory.
    pub(crate) fn shares(&self, memory: &Memory) -> bool {
        std::ptr::eq(self.lease.as_ptr(), Arc::as_ptr(&memory.lease))
    }

    /// The memory, if it is in use.
    pub(crate) fn memory(&self) -> Option<Memory> {
        Some(Memory { lease: self.lease.upgrade()?, size: self.size, window: None })
    }
}

impl RawBuffer for Memory {
    fn size(&self) -> usize {
        self.size
    }
}

impl Memory {
    pub(crate) fn of(buffer: &Buffer) -> &Memory {
        let any: &dyn Any = &**buffer;
        any.downcast_ref().expect("core hands a backend only its own buffers")
    }

    /// The bytes of a buffer that a kernel gets to see as a whole.
    pub(crate) fn window(of: &Buffer, bytes: Range<u64>) -> Memory {
        Memory {
            lease: Memory::of(of).lease.clone(),
            size: (bytes.end - bytes.start) as usize,
            window: Some(bytes.start),
        }
    }

    /// The same memory once more, which keeps it in use.
    pub(crate) fn again(&self) -> Memory {
        Memory { lease: self.lease.clone(), size: self.size, window: self.window }
    }

    /// The same memory, without keeping it in use.
    pub(crate) fn former(&self) -> Former {
        Former { lease: Arc::downgrade(&self.lease), size: self.size }
    }

    /// Whether this is all that keeps the memory in use.
    pub(crate) fn is_last(&self) -> bool {
        Arc::strong_count(&self.lease) == 1
    }

    /// Whether both are in the same buffer at the same time.
    pub(crate) fn shares(&self, other: &Memory) -> bool {
        Arc::ptr_eq(&self.lease, &other.lease)
    }

    fn raw(&self) -> &Raw {
        self.lease.raw.as_ref().expect("taken only when dropped")
    }

    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        &self.raw().buffer
    }

    pub(crate) fn id(&self) -> u32 {
        self.raw().id
    }

    pub(crate) fn is_window(&self) -> bool {
        self.window.is_some()
    }

    /// What a kernel is given.
    pub(crate) fn binding(&self) -> wgpu::BindingResource<'_> {
        match self.window {
            None => self.buffer().as_entire_binding(),
            Some(start) => wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: self.buffer(),
                offset: start,
                size: NonZeroU64::new(self.size as u64),
            }),
        }
    }

    /// Bytes that a kernel would have to bind.
    pub(crate) fn bound(&self) -> u64 {
        if self.is_window() { self.size as u64 } else { self.buffer().size() }
    }

    /// Notes that commands of this batch use the memory.
    pub(crate) fn used_in(&self, batch: u64) {
        self.lease.batch.store(batch, Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(mut raw) = self.raw.take() {
            raw.batch = *self.batch.get_mut();
            self.pool.give_back(raw);
        }
    }
}

pub(crate) struct Pool {
    device: wgpu::Device,
    name: String,
    /// Bytes of the largest buffer, and of the largest part of one that a kernel can bind.
    largest: u64,
    bindable: u64,
    process: Process,
    state: Mutex<State>,
    /// Grows whenever buffers are destroyed: what refers to buffers by number must be forgotten then.
    destroyed: AtomicU64,
}

#[derive(Default)]
struct State {
    free: BTreeMap<u64, Vec<Raw>>,
    stats: MemoryStats,
    next_id: u32,
}

impl Pool {
    pub(crate) fn new(device: wgpu::Device, name: String, bindable: u64) -> Pool {
        let largest = device.limits().max_buffer_size;
        Pool {
            device,
            name,
            largest,
            bindable,
            process: Process::current(),
            state: Mutex::default(),
            destroyed: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stats(&self) -> MemoryStats {
        self.lock().stats
    }

    pub(crate) fn reset_peak(&self) {
        let mut state = self.lock();
        state.stats.peak_bytes = state.stats.live_bytes;
    }

    pub(crate) fn destroyed(&self) -> u64 {
        self.destroyed.load(Relaxed)
    }

    /// Memory of at least `bytes`, contents unspecified. With `idle_since`, no command of that batch or a later one uses it.
    pub(crate) fn allocate(self: &Arc<Pool>, bytes: usize, idle_since: Option<u64>) -> Result<Memory> {
        if bytes as u64 > self.largest {
            return Err(Error::Device(format!(
                "a tensor of {bytes} bytes is too large for {}, whose buffers have at most {} bytes; split it",
                self.name, self.largest
            )));
        }
        // Rounding up must not carry a size that fits past a limit.
        let limit = if bytes as u64 > self.bindable { self.largest } else { self.bindable };
        let class = size_class(bytes as u64).min(limit & !3).max(bytes.next_multiple_of(4) as u64);
        let mut state = self.lock();
        let recycled = state.free.get_mut(&class).and_then(|list| match idle_since {
            None => list.pop(),
            Some(batch) => {
                let i = list.iter().rposition(|raw| raw.batch < batch)?;
                Some(list.swap_remove(i))
            }
        });
        let raw = match recycled {
            Some(raw) => {
                state.stats.idle_bytes -= class as usize;
                raw
            }
            None => {
                self.process.check()?;
                let id = state.next_id;
                state.next_id = id.wrapping_add(1);
                let buffer = self.create(class).ok_or_else(|| self.exhausted(bytes))?;
                Raw { buffer, id, batch: 0 }
            }
        };
        state.stats.live_bytes += class as usize;
        state.stats.peak_bytes = state.stats.peak_bytes.max(state.stats.live_bytes);
        let batch = AtomicU64::new(raw.batch);
        let lease = Lease { raw: Some(raw), batch, pool: self.clone() };
        Ok(Memory { lease: Arc::new(lease), size: bytes, window: None })
    }

    /// The error when there is no memory for `bytes` more.
    pub(crate) fn exhausted(&self, bytes: usize) -> Error {
        Error::OutOfMemory { bytes, device: self.name.clone() }
    }

    fn create(&self, size: u64) -> Option<wgpu::Buffer> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        pollster::block_on(scope.pop()).is_none().then_some(buffer)
    }

    fn give_back(&self, raw: Raw) {
        let mut state = self.lock();
        let class = raw.buffer.size();
        state.stats.live_bytes -= class as usize;
        state.stats.idle_bytes += class as usize;
        state.free.entry(class).or_default().push(raw);
        if state.stats.idle_bytes > state.stats.live_bytes + SLACK {
            self.forget(&mut state);
        }
    }

    /// Gives all free memory back to the driver, once nothing refers to it any more.
    pub(crate) fn trim(&self) {
        self.forget(&mut self.lock());
    }

    fn forget(&self, state: &mut State) {
        let free = std::mem::take(&mut state.free);
        if self.process.check().is_err() {
            std::mem::forget(free); // the driver is not there to take it
        }
        state.stats.idle_bytes = 0;
        self.destroyed.fetch_add(1, Relaxed);
    }
}

/// Sizes of which at most a fifth is wasted: three significant binary digits, at least 256 bytes.
fn size_class(bytes: u64) -> u64 {
    let step = (bytes.max(256).next_power_of_two() / 8).max(256);
    bytes.max(1).next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::size_class;

    #[test]
    fn size_classes_grow_in_small_steps() {
        for bytes in [1, 4, 255, 256, 257, 1000, 4096, 4100, 1 << 20, (1 << 20) + 1, 123_456_789] {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(256), "{bytes} -> {class}");
            assert!(bytes < 4096 || class <= bytes + bytes / 4, "{bytes} -> {class}");
            assert_eq!(size_class(class), class, "a class is its own class");
        }
    }
}
