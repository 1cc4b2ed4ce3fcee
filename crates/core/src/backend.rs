//! What a device must be able to do: the [`Backend`] trait and the values that cross it.
//!
//! To write a backend, implement [`Backend`] for the primitives of [`Op`] (see that enum: it is the specification), announce
//! it with [`register_backend!`](crate::register_backend), and run the conformance suite. [`crate::reference`] is a complete example.

use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Layout;
use crate::op::Op;
use crate::shape::Shape;
use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;

/// Memory on a device. Each backend brings its own type and gets it back through [`Any`].
pub trait RawBuffer: Any + Send + Sync {
    /// Bytes held.
    fn size(&self) -> usize;
}

/// Shared memory on a device. The backend frees or recycles it when the last clone goes.
pub type Buffer = Arc<dyn RawBuffer>;

/// A tensor as a backend sees it: where the elements lie and what they are.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The memory, made by the same backend.
    pub buffer: &'a Buffer,
    /// Shape, strides and offset, in elements. Any strides can occur, also 0 (broadcast) and negative.
    pub layout: &'a Layout,
    /// The element type.
    pub dtype: DType,
}

/// A tensor that an operation writes.
pub struct Output {
    /// Where to write. Row-major from offset 0 when `buffer` is `None`.
    pub layout: Layout,
    /// The element type.
    pub dtype: DType,
    /// `None`: the backend allocates and fills this in. `Some`: written in place, elements outside the layout stay.
    ///
    /// Only `core` fills this in, and only with a buffer that no other tensor shares (an input of the same operation may be
    /// the very same view, element for element, when the operation is elementwise).
    pub buffer: Option<Buffer>,
}

impl Output {
    /// A new row-major tensor.
    pub fn new(shape: impl Into<Shape>, dtype: DType) -> Output {
        Output { layout: Layout::contiguous(shape.into()), dtype, buffer: None }
    }
}

/// How much memory tensors use on a device, in bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct MemoryStats {
    /// In buffers that are in use, rounded up to the sizes that the backend hands out.
    pub live_bytes: usize,
    /// The largest value that `live_bytes` has had, since [`Device::reset_peak_memory`](crate::Device::reset_peak_memory) if that
    /// was called.
    pub peak_bytes: usize,
    /// Kept for reuse.
    pub idle_bytes: usize,
}

/// Elements that are on their way to the host.
pub type Download = Pin<Box<dyn Future<Output = Result<Vec<u8>>> + Send>>;

/// A device that holds buffers and executes operations.
///
/// Neither inputs nor outputs with zero elements reach a backend: `core` answers those itself. Shapes, dtypes and broadcasting
/// have been checked: inputs of elementwise operations arrive expanded to the output's shape and cast to one dtype.
pub trait Backend: Send + Sync + 'static {
    /// The device's name as in `Device::cpu()`'s messages: `"cpu"`, `"wgpu: NVIDIA H200"`.
    fn name(&self) -> &str;

    /// New memory holding `bytes`, the elements of a tensor of `dtype` in row-major order.
    ///
    /// # Errors
    /// If the memory cannot be had or the device cannot hold `dtype`.
    fn upload(&self, bytes: &[u8], dtype: DType) -> Result<Buffer>;

    /// New memory for `len` elements with unspecified contents.
    ///
    /// # Errors
    /// If the memory cannot be had or the device cannot hold `dtype`.
    fn allocate(&self, len: usize, dtype: DType) -> Result<Buffer>;

    /// The elements of `view`, which is row-major, as bytes.
    ///
    /// # Errors
    /// Whatever went wrong on the device since the last read.
    fn download(&self, view: View<'_>) -> Result<Vec<u8>>;

    /// As [`Backend::download`], without waiting: the future is ready once the device has come that far. It may be polled on any
    /// thread by any executor, and sees the elements as they are when this is called.
    fn download_async(&self, view: View<'_>) -> Download {
        Box::pin(std::future::ready(self.download(view)))
    }

    /// Computes `op`. [`caller`](crate::caller) tells on whose behalf, for errors that the device finds later.
    ///
    /// # Errors
    /// If the device fails, lacks memory, or finds an index out of range.
    fn execute(&self, op: &Op, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()>;

    /// Whether a fused operation has a kernel here for these inputs. Primitives are not asked about.
    fn supports(&self, op: &Op, inputs: &[View<'_>]) -> bool {
        let _ = (op, inputs);
        false
    }

    /// True if the result of `a * b` should take the place of an operand that nobody needs any more, where it fits. That saves a
    /// device memory traffic that runs each operation for itself; one that puts them together has nothing to gain.
    fn reuses_operands(&self) -> bool {
        false
    }

    /// True if the device reports the time of operations itself, through [`profile::record`](crate::profile::record), because
    /// they run after `execute` has returned.
    fn times_itself(&self) -> bool {
        false
    }

    /// Waits until everything submitted is done.
    ///
    /// # Errors
    /// Whatever went wrong on the device since the last read.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Memory in use, the most that ever was, and what is kept for reuse; zeros where nobody counts.
    fn memory_stats(&self) -> MemoryStats {
        MemoryStats::default()
    }

    /// Lets `peak_bytes` start again from what is live now.
    fn reset_peak_memory(&self) {}

    /// Forgets a recorded error, so that the device can be used again.
    fn clear_error(&self) {}
}
