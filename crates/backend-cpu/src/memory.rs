//! Memory for tensors: aligned, recycled, counted.
//!
//! A page that the system has just handed out costs more to touch than most kernels cost to run, so freed buffers are kept
//! and given out again. Small ones go through a cache per thread that needs no lock, the others through one pool for all
//! threads. Sizes are rounded up to four classes per power of two: at most a quarter of a buffer is slack.
//!
//! Large buffers begin at a huge page and ask for more of them: a system call less for every 4 KiB that is touched first, and a
//! table of addresses that the processor can hold when a kernel jumps through the buffer.
//!
//! Idle memory is bounded by the larger of 256 MiB and half of the most that was ever live at once; what was idle longest
//! goes back to the system first.

use orkest_core::{Buffer, Error, MemoryStats, Output, RawBuffer, Result, View};
use std::alloc::{Layout, alloc, dealloc};
use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One cache line, and the widest vector register.
pub(crate) const ALIGN: usize = 64;
/// A huge page of x86-64 and of most 64-bit Arm systems.
const HUGE_PAGE: usize = 2 << 20;
/// Buffers from this size on get huge pages.
const HUGE_FROM: usize = 2 * HUGE_PAGE;
/// The most that one thread keeps to itself in one small class.
const CACHED_BYTES: usize = 256 << 10;
const CACHED_BUFFERS: usize = 32;
const MIN_IDLE: usize = 256 << 20;

/// Bytes that a thread has taken or given back before it tells the others: counting each buffer where all threads count would cost
/// more than most small operations compute.
const UNTOLD: isize = 64 << 10;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static POOL: Mutex<Pool> = Mutex::new(Pool::new());

thread_local! {
    static CACHE: RefCell<Cache> = const { RefCell::new(Cache::new()) };
}

/// How much memory tensors on the CPU use now, used at most, and how much is kept for reuse. Of what other threads have done, up to
/// 64 KiB each may not be counted yet.
///
/// ```
/// let before = orkest_cpu::memory_stats().live_bytes;
/// let buffer = orkest_cpu::CpuBuffer::new(1 << 20)?;
/// assert_eq!(orkest_cpu::memory_stats().live_bytes - before, 1 << 20);
/// # Ok::<(), orkest_core::Error>(())
/// ```
pub fn memory_stats() -> MemoryStats {
    MemoryStats { live_bytes: live_bytes(), peak_bytes: PEAK.load(Relaxed), idle_bytes: pool().idle }
}

pub(crate) fn reset_peak_memory() {
    PEAK.store(live_bytes(), Relaxed);
}

fn live_bytes() -> usize {
    let _ = CACHE.try_with(|cache| cache.borrow_mut().balance.settle());
    LIVE.load(Relaxed).max(0) as usize
}

/// What this thread has taken and not yet given back, as far as `LIVE` does not know it.
struct Balance {
    bytes: isize,
    /// The most that it was since it was last settled.
    most: isize,
}

impl Balance {
    const fn new() -> Balance {
        Balance { bytes: 0, most: 0 }
    }

    #[inline]
    fn change(&mut self, bytes: isize) {
        self.bytes += bytes;
        self.most = self.most.max(self.bytes);
        if self.bytes.unsigned_abs() > UNTOLD.unsigned_abs() {
            self.settle();
        }
    }

    fn settle(&mut self) {
        let before = LIVE.fetch_add(self.bytes, Relaxed);
        PEAK.fetch_max((before + self.most).max(0) as usize, Relaxed);
        *self = Balance::new();
    }
}

/// Memory of one tensor (or several views of one).
pub struct CpuBuffer {
    start: NonNull<u8>,
    size: usize,
    class: usize,
}

// SAFETY: the buffer owns its memory; kernels write through raw pointers only where `core` guarantees a single owner.
unsafe impl Send for CpuBuffer {}
// SAFETY: as above; shared buffers are only read.
unsafe impl Sync for CpuBuffer {}

impl RawBuffer for CpuBuffer {
    fn size(&self) -> usize {
        self.size
    }
}

impl CpuBuffer {
    /// `size` bytes with unspecified contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the system has no more, even after everything idle went back to it.
    pub fn new(size: usize) -> Result<CpuBuffer> {
        let out_of_memory = || Error::OutOfMemory { bytes: size, device: "cpu".into() };
        if size > isize::MAX as usize / 2 {
            return Err(out_of_memory());
        }
        let class = class_of(size);
        let start = take(class).ok_or_else(out_of_memory)?;
        Ok(CpuBuffer { start, size, class })
    }

    /// The first byte, aligned to 64.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for CpuBuffer {
    fn drop(&mut self) {
        give_back(self.class, self.start);
    }
}

// ---- size classes ------------------------------------------------------------------------------------------------------

/// Classes 0, 1, 2 .. hold 64, 128, 192, 256, then 320, 384, 448, 512, then 640 ..: four steps per power of two.
fn class_of(size: usize) -> usize {
    let units = size.div_ceil(ALIGN).max(1);
    if units <= 4 {
        return units - 1;
    }
    // units - 1 has its leading bit at `log`; the two bits after it choose the step.
    let log = (units - 1).ilog2() as usize;
    let step = ((units - 1) >> (log - 2)) & 3;
    (log - 1) * 4 + step
}

const fn class_size(class: usize) -> usize {
    if class < 4 {
        return (class + 1) * ALIGN;
    }
    let log = class / 4 + 1;
    ((1 << log) + ((class % 4 + 1) << (log - 2))) * ALIGN
}

fn system_layout(class: usize) -> Option<Layout> {
    let size = class_size(class);
    Layout::from_size_align(size, if size >= HUGE_FROM { HUGE_PAGE } else { ALIGN }).ok()
}

/// Asks for huge pages where whole ones fit. What is not touched stays without memory, but for the rest of the last such page.
fn advise_huge_pages(start: NonNull<u8>, size: usize) {
    #[cfg(target_os = "linux")]
    if size >= HUGE_FROM {
        const MADV_HUGEPAGE: i32 = 14;
        unsafe extern "C" {
            fn madvise(start: *mut std::ffi::c_void, len: usize, advice: i32) -> i32;
        }
        // SAFETY: whole pages of a block that is ours, aligned by `system_layout`; the advice changes no contents, and a system that
        // does not take it goes on with small pages.
        unsafe { madvise(start.as_ptr().cast(), size / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, size);
}

// ---- free lists --------------------------------------------------------------------------------------------------------

/// Classes cached per thread: up to 64 KiB.
const SMALL_CLASSES: usize = 36;
/// How many buffers of each of them.
const ROOM: [usize; SMALL_CLASSES] = {
    let (mut room, mut class) = ([CACHED_BUFFERS; SMALL_CLASSES], 0);
    while class < SMALL_CLASSES {
        let fit = CACHED_BYTES / class_size(class);
        if fit < CACHED_BUFFERS {
            room[class] = fit;
        }
        class += 1;
    }
    room
};
/// All classes, up to half the address space.
const CLASSES: usize = 220;

/// What one thread keeps to itself.
struct Cache {
    lists: [Vec<NonNull<u8>>; SMALL_CLASSES],
    balance: Balance,
}

impl Cache {
    const fn new() -> Cache {
        Cache { lists: [const { Vec::new() }; SMALL_CLASSES], balance: Balance::new() }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.balance.settle();
        let mut pool = pool();
        for (class, list) in self.lists.iter_mut().enumerate() {
            for start in list.drain(..) {
                pool.keep(class, start);
            }
        }
    }
}

/// What all threads share: per class the idle buffers, the longest idle first, and when each was put there.
struct Pool {
    lists: [VecDeque<(u64, NonNull<u8>)>; CLASSES],
    idle: usize,
    clock: u64,
}

// SAFETY: the pointers are owned by the pool and reach one thread at a time through its lock.
unsafe impl Send for Pool {}

impl Pool {
    const fn new() -> Pool {
        Pool { lists: [const { VecDeque::new() }; CLASSES], idle: 0, clock: 0 }
    }

    fn take(&mut self, class: usize) -> Option<NonNull<u8>> {
        let (_, start) = self.lists[class].pop_back()?;
        self.idle -= class_size(class);
        Some(start)
    }

    fn keep(&mut self, class: usize, start: NonNull<u8>) {
        self.clock += 1;
        self.lists[class].push_back((self.clock, start));
        self.idle += class_size(class);
        let limit = MIN_IDLE.max(PEAK.load(Relaxed) / 2);
        while self.idle > limit {
            self.release_oldest();
        }
    }

    fn release_oldest(&mut self) {
        let oldest = (0..CLASSES).filter_map(|c| Some((self.lists[c].front()?.0, c))).min();
        let Some((_, class)) = oldest else { return };
        if let Some((_, start)) = self.lists[class].pop_front() {
            self.idle -= class_size(class);
            release(class, start);
        }
    }
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts bytes that this thread takes, or gives back if negative.
fn count(bytes: isize) {
    // `try_with`: a destructor of another thread-local may run after the cache has gone.
    if CACHE.try_with(|cache| cache.borrow_mut().balance.change(bytes)).is_err() {
        Balance { bytes, most: bytes }.settle();
    }
}

fn take(class: usize) -> Option<NonNull<u8>> {
    let cached = CACHE.try_with(|cache| {
        let Cache { lists, balance } = &mut *cache.borrow_mut();
        let start = lists.get_mut(class)?.pop()?;
        balance.change(class_size(class) as isize);
        Some(start)
    });
    if let Ok(Some(start)) = cached {
        return Some(start);
    }
    let pooled = pool().take(class);
    let start = pooled.or_else(|| take_from_system(class))?;
    count(class_size(class) as isize);
    Some(start)
}

fn take_from_system(class: usize) -> Option<NonNull<u8>> {
    let layout = system_layout(class)?;
    // SAFETY: the size is not zero.
    let fresh =
        || NonNull::new(unsafe { alloc(layout) }).inspect(|&start| advise_huge_pages(start, layout.size()));
    fresh().or_else(|| {
        let mut pool = pool();
        while pool.idle > 0 {
            pool.release_oldest();
        }
        fresh()
    })
}

fn give_back(class: usize, start: NonNull<u8>) {
    let cached = CACHE.try_with(|cache| {
        let Cache { lists, balance } = &mut *cache.borrow_mut();
        let list = lists.get_mut(class)?;
        if list.len() >= ROOM[class] {
            return None;
        }
        balance.change(-(class_size(class) as isize));
        list.push(start);
        Some(())
    });
    if cached != Ok(Some(())) {
        count(-(class_size(class) as isize));
        pool().keep(class, start);
    }
}

fn release(class: usize, start: NonNull<u8>) {
    if let Some(layout) = system_layout(class) {
        // SAFETY: `take` allocated this block with the layout of its class, and nobody else holds it.
        unsafe { dealloc(start.as_ptr(), layout) }
    }
}

// ---- access ------------------------------------------------------------------------------------------------------------

/// A pointer that may cross threads: kernels split disjoint ranges among them.
pub(crate) struct SyncPtr<T>(*mut T);

impl<T> Clone for SyncPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for SyncPtr<T> {}

// SAFETY: only a pointer; every use is an unsafe block that argues for itself.
unsafe impl<T> Send for SyncPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SyncPtr<T> {}

impl<T> SyncPtr<T> {
    pub fn new(ptr: *mut T) -> SyncPtr<T> {
        SyncPtr(ptr)
    }

    /// The pointer itself (a method, so that closures capture the wrapper and not its field).
    #[inline(always)]
    pub fn get(self) -> *mut T {
        self.0
    }

    /// The element at `position`. Only computes the address.
    #[inline(always)]
    pub fn at(self, position: isize) -> *mut T {
        self.0.wrapping_offset(position)
    }
}

fn cpu_buffer(buffer: &Buffer) -> &CpuBuffer {
    let any: &dyn Any = &**buffer;
    match any.downcast_ref() {
        Some(buffer) => buffer,
        None => panic!("a buffer of another device reached the CPU backend"),
    }
}

/// The start of a view's buffer; the layout's offset is not applied.
pub(crate) fn input_ptr<T>(view: &View<'_>) -> *const T {
    cpu_buffer(view.buffer).as_ptr().cast()
}

/// The start of an output's buffer; the layout's offset is not applied. [`allocate_outputs`] has made new ones.
pub(crate) fn output_ptr<T>(output: &Output) -> *mut T {
    match &output.buffer {
        Some(buffer) => cpu_buffer(buffer).as_ptr().cast(),
        None => panic!("an output without memory"),
    }
}

/// Gives every output that is not written in place its memory.
pub(crate) fn allocate_outputs(outputs: &mut [Output]) -> Result<()> {
    for output in outputs.iter_mut().filter(|o| o.buffer.is_none()) {
        let size = output.layout.numel().saturating_mul(output.dtype.size());
        output.buffer = Some(Arc::new(CpuBuffer::new(size)?));
    }
    Ok(())
}

/// Recycled memory for `len` elements while a kernel runs; contents unspecified.
pub(crate) struct Scratch<T> {
    buffer: CpuBuffer,
    elements: PhantomData<T>,
}

impl<T: Copy> Scratch<T> {
    pub fn new(len: usize) -> Result<Scratch<T>> {
        let size = len.saturating_mul(size_of::<T>());
        Ok(Scratch { buffer: CpuBuffer::new(size)?, elements: PhantomData })
    }

    /// The first element, aligned to 64 bytes.
    pub fn as_ptr(&self) -> *mut T {
        self.buffer.as_ptr().cast()
    }

    /// The first element, for use in several threads.
    pub fn sync_ptr(&self) -> SyncPtr<T> {
        SyncPtr::new(self.as_ptr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_promise() {
        assert_eq!(class_size(SMALL_CLASSES - 1), 64 << 10);
        assert_eq!(class_of(isize::MAX as usize / 2), CLASSES - 1);
        for size in (0..5000)
            .chain((5000..10_000_000).step_by(4099))
            .chain([usize::MAX >> 2, isize::MAX as usize / 2])
        {
            let class = class_of(size);
            assert!(class < CLASSES, "{size}");
            assert!(class_size(class) >= size, "{size}");
            assert!(class == 0 || class_size(class - 1) < size, "{size} fits a smaller class");
            assert!(class_size(class) <= (size + size / 4).max(size + ALIGN), "{size} wastes too much");
        }
    }

    #[test]
    fn small_and_large_buffers_come_back() {
        for size in [100, 40_000, 3_000_000] {
            let first = CpuBuffer::new(size).unwrap();
            let address = first.as_ptr();
            assert_eq!(address as usize % ALIGN, 0);
            drop(first);
            let again = (0..8).map(|_| CpuBuffer::new(size).unwrap()).collect::<Vec<_>>();
            // Other tests use the pool of large buffers at the same time.
            assert!(size > 64 << 10 || again.iter().any(|b| b.as_ptr() == address));
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for size in [usize::MAX, isize::MAX as usize / 2, 1 << 50] {
            assert!(matches!(CpuBuffer::new(size), Err(Error::OutOfMemory { bytes, .. }) if bytes == size));
        }
    }

    #[test]
    fn idle_memory_is_bounded() {
        // A sweep over sizes that no later allocation can use.
        for i in 0..200 {
            drop(CpuBuffer::new((8 << 20) + i * (2 << 20)).unwrap());
        }
        let stats = memory_stats();
        assert!(stats.idle_bytes <= MIN_IDLE.max(stats.peak_bytes / 2), "{stats:?}");
        assert!(stats.peak_bytes >= 406 << 20);
    }
}
