//! The [`Tensor`]: a shared, typed, strided view of memory on a device, with the history that leads to it.
//!
//! A tensor is a value. Clones and views share memory; methods that end in `_` and take `&mut self` change this tensor only:
//! they write in place when nobody shares the memory and copy it first when somebody does. So no view, saved graph or other
//! thread ever sees a change, and a graph cannot be corrupted.

use crate::autograd::{History, Leaf, Node};
use crate::backend::{Buffer, Download, RawBuffer, View};
use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::shape::Shape;
use std::panic::Location;
use std::sync::{Arc, OnceLock};

/// An n-dimensional array on a device. Cheap to clone, `Send` and `Sync`.
///
/// ```
/// use orkest_core::{Device, Tensor};
/// let x = Tensor::new([[1.0f32, 2.0], [3.0, 4.0]], &Device::cpu());
/// let y = (&x * 2.0 + 1.0).sum(1);
/// assert_eq!(y.to_vec::<f32>().unwrap(), [8.0, 16.0]);
/// ```
#[derive(Clone)]
pub struct Tensor(pub(crate) Arc<Inner>);

// A tensor is a value: a panic elsewhere cannot leave one half changed.
impl std::panic::UnwindSafe for Tensor {}
impl std::panic::RefUnwindSafe for Tensor {}

pub(crate) struct Inner {
    pub buffer: Buffer,
    pub layout: Layout,
    pub dtype: DType,
    pub device: Device,
    pub history: History,
    /// What made this tensor, and the line of the user's program that asked for it.
    pub op: &'static str,
    pub at: &'static Location<'static>,
}

/// The memory of every tensor without elements.
struct NoMemory;

impl RawBuffer for NoMemory {
    fn size(&self) -> usize {
        0
    }
}

pub(crate) fn empty_buffer() -> Buffer {
    static EMPTY: OnceLock<Buffer> = OnceLock::new();
    EMPTY.get_or_init(|| Arc::new(NoMemory)).clone()
}

/// Row-major bytes as elements.
fn elements<T: Element>(bytes: &[u8]) -> Vec<T> {
    // The backend's byte vector may be aligned for bytes only: go through an element vector.
    let mut out = vec![T::default(); bytes.len() / T::DTYPE.size()];
    if T::DTYPE == DType::Bool {
        out.iter_mut().zip(bytes).for_each(|(o, &b)| *o = T::from_i64(b as i64));
    } else {
        // SAFETY: every bit pattern is a value of the remaining element types, and the lengths agree.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), out.as_mut_ptr().cast::<u8>(), bytes.len());
        };
    }
    out
}

impl Tensor {
    /// A tensor over memory that the device's backend made.
    #[track_caller]
    pub(crate) fn from_buffer(
        buffer: Buffer,
        layout: Layout,
        dtype: DType,
        device: Device,
        op: &'static str,
    ) -> Tensor {
        Tensor(Arc::new(Inner {
            buffer,
            layout,
            dtype,
            device,
            history: History::None,
            op,
            at: Location::caller(),
        }))
    }

    /// The same memory under another layout, without history.
    #[track_caller]
    pub(crate) fn with_layout(&self, layout: Layout, op: &'static str) -> Tensor {
        Tensor::from_buffer(self.0.buffer.clone(), layout, self.0.dtype, self.0.device.clone(), op)
    }

    /// The same tensor with another history.
    pub(crate) fn with_history(&self, history: History) -> Tensor {
        Tensor(Arc::new(Inner {
            buffer: self.0.buffer.clone(),
            layout: self.0.layout,
            dtype: self.0.dtype,
            device: self.0.device.clone(),
            history,
            op: self.0.op,
            at: self.0.at,
        }))
    }

    pub(crate) fn set_history(&mut self, history: History) {
        match Arc::get_mut(&mut self.0) {
            Some(inner) => inner.history = history,
            None => *self = self.with_history(history),
        }
    }

    #[inline]
    pub(crate) fn history(&self) -> &History {
        &self.0.history
    }

    #[inline]
    pub(crate) fn view_of(&self) -> View<'_> {
        View { buffer: &self.0.buffer, layout: &self.0.layout, dtype: self.0.dtype }
    }

    // ---- what it is ------------------------------------------------------------------------------------------------------

    /// The sizes of all dimensions.
    #[inline]
    pub fn shape(&self) -> &Shape {
        self.0.layout.shape()
    }

    /// The sizes of all dimensions as an array, to take apart: `let [batch, seq] = x.dims();`
    ///
    /// # Panics
    /// If the tensor does not have `N` dimensions.
    #[track_caller]
    pub fn dims<const N: usize>(&self) -> [usize; N] {
        match <[usize; N]>::try_from(&**self.shape()) {
            Ok(dims) => dims,
            Err(_) => panic!("dims: expected {N} dimensions, got {}", self.describe()),
        }
    }

    /// The size of one dimension; negative `dim` counts from the end.
    ///
    /// # Panics
    /// If there is no such dimension.
    #[track_caller]
    pub fn size(&self, dim: isize) -> usize {
        self.shape()[self.dim_index("size", dim)]
    }

    /// The number of dimensions.
    #[inline]
    pub fn rank(&self) -> usize {
        self.0.layout.rank()
    }

    /// The number of elements.
    #[inline]
    pub fn numel(&self) -> usize {
        self.0.layout.numel()
    }

    /// The element type.
    #[inline]
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// The device that holds the elements.
    #[inline]
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Shape, strides and offset.
    #[inline]
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// True if the elements lie in row-major order without gaps. No operation asks for it; this is for the curious.
    pub fn is_contiguous(&self) -> bool {
        self.0.layout.is_contiguous()
    }

    /// What made this tensor: the operation's name, and the line of the program that asked for it.
    pub fn origin(&self) -> (&'static str, &'static Location<'static>) {
        (self.0.op, self.0.at)
    }

    /// One line for messages: `f32 [32, 128], from relu at src/main.rs:41`.
    pub fn describe(&self) -> String {
        let origin = match self.history() {
            History::Leaf(leaf) if leaf.name().is_some() => {
                format!("parameter {}", leaf.name().unwrap_or_default())
            }
            _ => format!("from {} at {}:{}", self.0.op, self.0.at.file(), self.0.at.line()),
        };
        format!("{} {}, {origin}", self.dtype(), self.shape())
    }

    /// True if `self` and `other` are views of one and the same memory.
    pub fn shares_memory(&self, other: &Tensor) -> bool {
        self.numel() > 0 && Arc::ptr_eq(&self.0.buffer, &other.0.buffer)
    }

    // ---- reading ---------------------------------------------------------------------------------------------------------

    /// The elements in row-major order.
    ///
    /// # Errors
    /// If `T` is not the tensor's type, or the device reports what went wrong in an earlier operation.
    #[track_caller]
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.require_type::<T>()?;
        Ok(elements(&self.to_bytes()?))
    }

    /// As [`Tensor::to_vec`], without blocking the thread while the device is busy.
    ///
    /// The read is asked for by this call, not when the future is first polled: several can be under way at once. Later changes
    /// to the tensor are not seen. Needs no particular executor; on the CPU the future is ready at once.
    ///
    /// ```
    /// # use orkest_core::{Device, Tensor};
    /// # async fn example() -> orkest_core::Result<()> {
    /// let x = Tensor::new([1.0f32, 2.0], &Device::best());
    /// let (sum, max) = (x.sum(..).item_async(), x.max(0).to_vec_async::<f32>());
    /// println!("{} {:?}", sum.await?, max.await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Tensor::to_vec`].
    #[track_caller]
    pub fn to_vec_async<T: Element>(&self) -> impl Future<Output = Result<Vec<T>>> + Send + use<T> {
        let bytes = self.require_type::<T>().map(|()| self.start_reading());
        async move { Ok(elements(&bytes?.await?)) }
    }

    fn require_type<T: Element>(&self) -> Result<()> {
        if T::DTYPE == self.dtype() {
            return Ok(());
        }
        Err(Error::Data(format!(
            "to_vec: the tensor holds {}, not {}; convert it with .to_dtype(DType::{:?}) first",
            self.dtype(),
            T::DTYPE,
            T::DTYPE
        )))
    }

    /// The elements in row-major order as bytes of the tensor's dtype.
    ///
    /// # Errors
    /// If the device reports what went wrong in an earlier operation.
    #[track_caller]
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        if self.numel() == 0 {
            return Ok(Vec::new());
        }
        let dense = self.detach().contiguous();
        dense.device().backend().download(dense.view_of())
    }

    #[track_caller]
    fn start_reading(&self) -> Download {
        if self.numel() == 0 {
            return Box::pin(std::future::ready(Ok(Vec::new())));
        }
        let dense = self.detach().contiguous();
        dense.device().backend().download_async(dense.view_of())
    }

    /// The only element, as a float.
    ///
    /// # Errors
    /// If the tensor does not have exactly one element, or the device reports what went wrong in an earlier operation.
    #[track_caller]
    pub fn item(&self) -> Result<f64> {
        Ok(crate::with_dtype!(self.dtype(), T => self.item_as::<T>()?.to_f64()))
    }

    /// The only element in its own type; exact for large integers, where [`Tensor::item`] rounds.
    ///
    /// # Errors
    /// As [`Tensor::item`], and if `T` is not the tensor's type.
    #[track_caller]
    pub fn item_as<T: Element>(&self) -> Result<T> {
        self.require_one()?;
        Ok(self.to_vec::<T>()?[0])
    }

    /// As [`Tensor::item`], without blocking the thread; see [`Tensor::to_vec_async`].
    ///
    /// # Errors
    /// As [`Tensor::item`].
    #[track_caller]
    pub fn item_async(&self) -> impl Future<Output = Result<f64>> + Send + use<> {
        let dtype = self.dtype();
        let bytes = self.require_one().map(|()| self.start_reading());
        async move {
            let bytes = bytes?.await?;
            Ok(crate::with_dtype!(dtype, T => elements::<T>(&bytes)[0].to_f64()))
        }
    }

    fn require_one(&self) -> Result<()> {
        if self.numel() == 1 {
            return Ok(());
        }
        Err(Error::Data(format!("item: a tensor of one element was expected, got {}", self.describe())))
    }

    // ---- moving ----------------------------------------------------------------------------------------------------------

    /// This tensor on `device`; itself if it is there already. Gradients flow back.
    ///
    /// # Panics
    /// If the device cannot hold the dtype or has no memory left: [`Tensor::try_to`] returns that as an error.
    #[track_caller]
    pub fn to(&self, device: &Device) -> Tensor {
        match self.try_to(device) {
            Ok(t) => t,
            Err(e) => panic!("to({device}): {e}; tensor: {}", self.describe()),
        }
    }

    /// This tensor on `device`; itself if it is there already. Gradients flow back.
    ///
    /// # Errors
    /// If the device cannot hold the dtype or has no memory left.
    #[track_caller]
    pub fn try_to(&self, device: &Device) -> Result<Tensor> {
        if self.device() == device {
            return Ok(self.clone());
        }
        let buffer = if self.numel() == 0 {
            empty_buffer()
        } else {
            device.backend().upload(&self.to_bytes()?, self.dtype())?
        };
        let out = Tensor::from_buffer(
            buffer,
            Layout::contiguous(*self.shape()),
            self.dtype(),
            device.clone(),
            "to",
        );
        // The engine brings a gradient back to the device of the input it belongs to.
        Ok(out.recorded("to", &[self], &[], |c| crate::grads![c.grad().clone()]))
    }

    /// Itself if row-major, else a row-major copy. Operations take any layout: this is for timing and interchange.
    #[track_caller]
    pub fn contiguous(&self) -> Tensor {
        if self.is_contiguous() { self.clone() } else { self.copy() }
    }

    // ---- history ---------------------------------------------------------------------------------------------------------

    /// True if gradients flow through this tensor.
    #[inline]
    pub fn requires_grad(&self) -> bool {
        !matches!(self.history(), History::None)
    }

    /// True for a tensor that collects its own gradient: made by [`Tensor::requires_grad_`] or read from a parameter.
    pub fn is_leaf(&self) -> bool {
        !matches!(self.history(), History::Node(..))
    }

    /// This tensor as a leaf that collects its gradient (or, with `false`, as a constant).
    ///
    /// ```
    /// # use orkest_core::{Device, Tensor};
    /// let x = Tensor::new([3.0f32], &Device::cpu()).requires_grad_(true);
    /// (&x * &x).sum(..).backward();
    /// assert_eq!(x.grad().unwrap().item().unwrap(), 6.0);
    /// ```
    ///
    /// # Panics
    /// If the dtype is not a float, or the tensor is the result of a recorded operation (`detach()` it first).
    #[track_caller]
    pub fn requires_grad_(self, requires_grad: bool) -> Tensor {
        if let History::Node(..) = self.history() {
            panic!(
                "requires_grad_: only leaves can change this; detach() first. tensor: {}",
                self.describe()
            );
        }
        if !requires_grad {
            return self.detach();
        }
        if self.requires_grad() {
            return self; // with the gradient that it has, and its place in a model
        }
        assert!(
            self.dtype().is_float(),
            "requires_grad_: only float tensors have gradients. tensor: {}",
            self.describe()
        );
        self.with_history(History::Leaf(Arc::new(Leaf::new())))
    }

    /// The same memory without history: gradients stop here.
    pub fn detach(&self) -> Tensor {
        match self.history() {
            History::None => self.clone(),
            _ => self.with_history(History::None),
        }
    }

    /// The gradient collected by [`Tensor::backward`]: of a leaf, or of a result after [`Tensor::retain_grad`].
    pub fn grad(&self) -> Option<Tensor> {
        self.grad_slot()?.grad()
    }

    /// Forgets the collected gradient.
    pub fn zero_grad(&self) {
        if let Some(slot) = self.grad_slot() {
            slot.set_grad(None);
        }
    }

    /// Lets [`Tensor::backward`] collect the gradient of this result too, not only those of leaves. [`Tensor::grad`] gives it, as
    /// the hooks leave it.
    ///
    /// ```
    /// # use orkest_core::tensor;
    /// let x = tensor![1.0, 2.0].requires_grad_(true);
    /// let hidden = &x * 3.0;
    /// hidden.retain_grad();
    /// hidden.square().sum(..).backward();
    /// assert_eq!(hidden.grad().unwrap().to_vec::<f32>().unwrap(), [6.0, 12.0]);
    /// ```
    ///
    /// # Panics
    /// If the tensor does not require a gradient.
    #[track_caller]
    pub fn retain_grad(&self) {
        match self.history() {
            History::None => {
                panic!("retain_grad: this tensor requires no gradient. tensor: {}", self.describe())
            }
            History::Leaf(_) => {} // which collects it anyway
            History::Node(node, output) => node.retain_grad(*output),
        }
    }

    fn grad_slot(&self) -> Option<&Leaf> {
        match self.history() {
            History::None => None,
            History::Leaf(leaf) => Some(leaf),
            History::Node(node, output) => node.retained(*output),
        }
    }

    /// The name of the recorded operation behind this tensor, as printed: `MulBackward`-like information without the suffix.
    pub fn grad_op(&self) -> Option<&'static str> {
        match self.history() {
            History::Node(node, _) => Some(node.op()),
            _ => None,
        }
    }

    pub(crate) fn node(&self) -> Option<(&Arc<Node>, u32)> {
        match self.history() {
            History::Node(node, output) => Some((node, *output)),
            _ => None,
        }
    }

    // ---- checks that operations share ------------------------------------------------------------------------------------

    /// `dim` as a position, counted from the end if negative.
    #[track_caller]
    pub(crate) fn dim_index(&self, op: &str, dim: isize) -> usize {
        let rank = self.rank() as isize;
        let index = if dim < 0 { dim + rank } else { dim };
        if index < 0 || index >= rank {
            panic!(
                "{op}: dimension {dim} is out of range for {rank} dimensions. tensor: {}",
                self.describe()
            );
        }
        index as usize
    }

    #[track_caller]
    pub(crate) fn require_float(&self, op: &str) {
        if !self.dtype().is_float() {
            panic!(
                "{op}: a float tensor is needed; convert with .to_dtype(DType::F32). tensor: {}",
                self.describe()
            );
        }
    }

    #[track_caller]
    pub(crate) fn require_index(&self, op: &str) {
        if self.dtype() == DType::Bool {
            panic!(
                "{op}: a bool mask is not a list of positions; use masked_select, or nonzero() to get positions. tensor: {}",
                self.describe()
            );
        }
        if self.dtype() != DType::I64 {
            panic!(
                "{op}: indices must be i64; convert with .to_dtype(DType::I64). tensor: {}",
                self.describe()
            );
        }
    }
}
