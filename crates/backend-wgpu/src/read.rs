//! Reading back: a copy into pooled staging memory, which is then waited for or awaited.

use crate::element::{self, Elem};
use crate::fault::{Checked, ErrorSlot, RECORD, Sites};
use crate::process::Process;
use crate::stream;
use orkest_core::{Caller, DType, Error, Result};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Bytes of idle staging memory that are kept.
const KEPT: u64 = 64 << 20;
/// How long to wait for another thread that is about to report what we wait for, before looking again.
const PATIENCE: Duration = Duration::from_millis(1);

/// How long a device that has failed may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What all reads of a device share. Futures hold on to it, so it must not hold on to the device's memory.
pub(crate) struct Reader {
    device: wgpu::Device,
    process: Process,
    name: String,
    pub(crate) error: ErrorSlot,
    pub(crate) sites: Sites,
    pub(crate) checked: Checked,
    /// The operation before the last read: what the device did when it was lost, as far as that is known.
    last: Mutex<Option<Caller>>,
    staging: Mutex<Vec<wgpu::Buffer>>,
    /// Wakes futures; started by the first that has to wait.
    waiter: OnceLock<Option<mpsc::Sender<(wgpu::SubmissionIndex, Arc<Mapped>)>>>,
}

/// Whether staging memory can be read yet.
#[derive(Default)]
struct Mapped {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    result: Option<Result<(), String>>,
    waker: Option<Waker>,
}

impl Mapped {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, result: Result<(), String>) {
        let mut state = self.lock();
        state.result.get_or_insert(result);
        let waker = state.waker.take();
        drop(state);
        self.done.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The result, if it comes within the patience of another look.
    fn soon(&self) -> Option<Result<(), String>> {
        let state = self.lock();
        let waiting = |s: &mut State| s.result.is_none();
        let (state, _) =
            self.done.wait_timeout_while(state, PATIENCE, waiting).unwrap_or_else(PoisonError::into_inner);
        state.result.clone()
    }

    /// The result; if there is none yet, the waker is called when there is.
    fn poll(&self, waker: &Waker) -> Option<Result<(), String>> {
        let mut state = self.lock();
        if state.result.is_none() {
            state.waker = Some(waker.clone());
        }
        state.result.clone()
    }

    /// Drives the device until there is a result.
    fn wait(&self, device: &wgpu::Device, index: wgpu::SubmissionIndex) -> Result<(), String> {
        let mut waited = stream::wait(device, index);
        loop {
            // Another thread that drives the device may have taken our callback and be about to call it.
            if let Some(result) = self.soon() {
                return result;
            }
            waited.map_err(|e| e.to_string())?;
            waited = match device.poll(wgpu::PollType::Poll) {
                Ok(_) => Ok(()),
                Err(e) => Err(Error::Device(e.to_string())),
            };
        }
    }
}

/// What is wanted of the bytes that were copied.
pub(crate) struct Part {
    /// Where the elements lie among them.
    pub(crate) bytes: Range<usize>,
    pub(crate) dtype: DType,
    pub(crate) elem: Elem,
    /// Where the fault record lies, and how many launches it speaks of.
    pub(crate) fault: Option<(usize, u64)>,
}

/// A read under way: wait for it or await it.
pub(crate) struct Reading {
    reader: Arc<Reader>,
    staging: wgpu::Buffer,
    index: wgpu::SubmissionIndex,
    mapped: Arc<Mapped>,
    part: Part,
    /// The waiter knows of it.
    awaited: bool,
}

impl Reader {
    pub(crate) fn new(device: &wgpu::Device, name: &str) -> Reader {
        Reader {
            device: device.clone(),
            process: Process::current(),
            name: name.into(),
            error: ErrorSlot::default(),
            sites: Sites::default(),
            checked: Checked::default(),
            last: Mutex::default(),
            staging: Mutex::default(),
            waiter: OnceLock::new(),
        }
    }

    /// The next read comes after this operation.
    pub(crate) fn comes_after(&self, last: Option<Caller>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    /// The error after which there is no other.
    pub(crate) fn lost(&self, message: &str) -> Error {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.map_or_else(String::new, |c| format!(" (the last operation was {c})"));
        let text = format!("{} was lost, and with it every tensor on it{last}: {message}", self.name);
        Error::Device(text.trim_end_matches([':', ' ']).to_string())
    }

    fn free(&self) -> MutexGuard<'_, Vec<wgpu::Buffer>> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory to copy `size` bytes and a fault record into.
    pub(crate) fn staging(&self, size: usize) -> Result<wgpu::Buffer> {
        self.process.check()?;
        let bytes = (size + RECORD) as u64;
        let class = if bytes > KEPT { bytes.next_multiple_of(4) } else { bytes.next_power_of_two().max(256) };
        {
            let mut free = self.free();
            if let Some(i) = free.iter().rposition(|buffer| buffer.size() == class) {
                return Ok(free.swap_remove(i));
            }
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read-back"),
            size: class,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        match pollster::block_on(scope.pop()) {
            Some(_) => Err(Error::OutOfMemory { bytes: size, device: self.name.clone() }),
            None => Ok(buffer),
        }
    }

    /// Keeps staging memory for the next read, and little of it.
    fn keep(&self, buffer: wgpu::Buffer) {
        let mut free = self.free();
        if free.iter().map(wgpu::Buffer::size).sum::<u64>() + buffer.size() <= KEPT {
            free.push(buffer);
        }
    }

    /// Gives idle staging memory back to the driver.
    pub(crate) fn trim(&self) {
        self.free().clear();
    }

    /// The read of staging memory that the submission `index` fills.
    pub(crate) fn start(
        self: &Arc<Reader>,
        staging: wgpu::Buffer,
        index: wgpu::SubmissionIndex,
        part: Part,
    ) -> Reading {
        let mapped = Arc::new(Mapped::default());
        let done = mapped.clone();
        staging.map_async(wgpu::MapMode::Read, .., move |result| done.set(result.map_err(|e| e.to_string())));
        Reading { reader: self.clone(), staging, index, mapped, part, awaited: false }
    }

    /// What lies behind an error: the device may have more to say than that something failed, above all that it is lost.
    pub(crate) fn cause(&self, error: Error) -> Error {
        // A loss is reported when the device is asked next and has nothing left to do.
        let asked = match error {
            Error::Device(_) => wgpu::PollType::Wait { submission_index: None, timeout: Some(LAST_WORDS) },
            _ => wgpu::PollType::Poll,
        };
        let _ = self.device.poll(asked);
        self.error.check().err().unwrap_or(error)
    }

    /// The thread that drives the device for futures. `None` if the system gives no thread.
    fn waiter(&self) -> Option<&mpsc::Sender<(wgpu::SubmissionIndex, Arc<Mapped>)>> {
        let start = || {
            let (sender, receiver) = mpsc::channel::<(wgpu::SubmissionIndex, Arc<Mapped>)>();
            let device = self.device.clone();
            let wait = move || {
                // One queue in order: the first to be asked for is the first to be ready.
                for (index, mapped) in receiver {
                    let result = mapped.wait(&device, index);
                    mapped.set(result);
                }
            };
            std::thread::Builder::new().name("orkest reads".into()).spawn(wait).ok()?;
            Some(sender)
        };
        self.waiter.get_or_init(start).as_ref()
    }
}

impl Reading {
    /// The elements, waiting for them.
    pub(crate) fn wait(self) -> Result<Vec<u8>> {
        self.reader.process.check()?;
        let result = self.mapped.wait(&self.reader.device, self.index.clone());
        self.finish(result)
    }

    /// The elements; reports what went wrong on the device until they were copied.
    fn finish(&self, mapped: Result<(), String>) -> Result<Vec<u8>> {
        let Reading { reader, staging, part, .. } = self;
        let failed = |what: String| Error::Device(format!("reading from {} failed: {what}", reader.name));
        let range = mapped
            .map_err(failed)
            .and_then(|()| staging.get_mapped_range(..).map_err(|e| failed(e.to_string())));
        let bytes = match range {
            Ok(bytes) => bytes,
            Err(e) => return Err(reader.cause(e)),
        };
        if let Some((at, launches)) = part.fault {
            let words: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes[at..at + RECORD]);
            if let Some(error) = words.try_into().ok().and_then(|record| reader.sites.error(record)) {
                reader.error.record(error);
            }
            reader.checked.now(launches);
        }
        let result =
            reader.error.check().map(|()| element::decode(&bytes[part.bytes.clone()], part.dtype, part.elem));
        drop(bytes);
        staging.unmap();
        reader.keep(staging.clone());
        result.map_err(|e| reader.cause(e))
    }
}

impl Future for Reading {
    type Output = Result<Vec<u8>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Err(e) = self.reader.process.check() {
            return Poll::Ready(Err(e));
        }
        // It may be done, and nobody may have asked the device yet; errors show in the result.
        let _ = self.reader.device.poll(wgpu::PollType::Poll);
        if let Some(result) = self.mapped.poll(context.waker()) {
            return Poll::Ready(self.finish(result));
        }
        if !self.awaited {
            self.awaited = true;
            let wanted = (self.index.clone(), self.mapped.clone());
            if self.reader.waiter().is_none_or(|waiter| waiter.send(wanted).is_err()) {
                let result = self.mapped.wait(&self.reader.device, self.index.clone());
                return Poll::Ready(self.finish(result));
            }
        }
        Poll::Pending
    }
}
