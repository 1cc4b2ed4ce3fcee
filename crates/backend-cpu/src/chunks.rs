//! Strided tensors seen as short contiguous slices.
//!
//! An elementwise kernel here is a function of slices. Where an operand really is contiguous the slice is the tensor's own
//! memory; everything else (strides, broadcasting, half precision, an input that the output overwrites) is copied chunk by
//! chunk through a buffer that stays in the first-level cache, which costs little next to the memory traffic. So each kernel
//! exists once per instruction set and dtype, not once per combination of layouts.

use crate::copy;
use crate::memory::{self, Scratch, SyncPtr};
use crate::parallel;
use crate::simd::simd_fn;
use half::slice::HalfFloatSliceExt;
use orkest_core::{Element, Layout, MAX_RANK, Output, Result, View, bf16, f16};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Elements in a chunk: three chunks of f64 fill less than half of a first-level cache.
pub(crate) const CHUNK: usize = 1024;

/// Elements below which work is not shared, for loops that wait for memory (measured: two threads break even near 20k).
pub(crate) const GRAIN_MEMORY: usize = 32 << 10;
/// The same for loops of some ten instructions per element.
pub(crate) const GRAIN_MATH: usize = 8 << 10;
/// The same for loops that call a library function per element.
pub(crate) const GRAIN_CALL: usize = 2 << 10;

/// How elements of a dtype are computed with: half precision as f32, everything else as itself.
pub(crate) trait Stored: Element {
    /// The type that kernels see.
    type Compute: Element;
    /// `Compute` is `Self`.
    const DIRECT: bool = true;

    fn widen(from: &[Self], to: &mut [Self::Compute]);
    fn narrow(from: &[Self::Compute], to: &mut [Self]);
}

macro_rules! stored_as_itself {
    ($($t:ty),*) => {$(
        impl Stored for $t {
            type Compute = $t;
            #[inline(always)]
            fn widen(from: &[$t], to: &mut [$t]) {
                to.copy_from_slice(from);
            }
            #[inline(always)]
            fn narrow(from: &[$t], to: &mut [$t]) {
                to.copy_from_slice(from);
            }
        }
    )*};
}
stored_as_itself!(bool, u8, i32, i64, f32, f64);

impl Stored for f16 {
    type Compute = f32;
    const DIRECT: bool = false;
    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    fn narrow(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }
}

impl Stored for bf16 {
    type Compute = f32;
    const DIRECT: bool = false;
    fn widen(from: &[bf16], to: &mut [f32]) {
        widen_bf16(from, to);
    }
    fn narrow(from: &[f32], to: &mut [bf16]) {
        narrow_bf16(from, to);
    }
}

simd_fn! {
    fn widen_bf16<S: Simd>(from: &[bf16], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits((from.to_bits() as u32) << 16);
        }
    }

    fn narrow_bf16<S: Simd>(from: &[f32], to: &mut [bf16]) {
        for (to, from) in to.iter_mut().zip(from) {
            let bits = from.to_bits();
            // To the nearest, halves to even; a NaN keeps its sign and becomes quiet.
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            let nan = bits >> 16 | 0x40;
            *to = bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded } as u16);
        }
    }
}

/// Room for a chunk, on the stack.
#[repr(C, align(64))]
pub(crate) struct Space<T>([MaybeUninit<T>; CHUNK]);

impl<T: Copy> Space<T> {
    #[inline(always)]
    pub fn new() -> Space<T> {
        Space([const { MaybeUninit::uninit() }; CHUNK])
    }

    #[inline(always)]
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.0.as_mut_ptr().cast()
    }

    /// The first `len` elements, to be written before they are read.
    #[inline(always)]
    pub fn slice(&mut self, len: usize) -> &mut [T] {
        assert!(len <= CHUNK);
        // SAFETY: within bounds; every user writes the slice before reading it, and T is a plain number.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), len) }
    }
}

impl<T> Space<T> {
    /// The first `len` elements.
    ///
    /// # Safety
    /// They have been written.
    #[inline(always)]
    pub unsafe fn filled(&self, len: usize) -> &[T] {
        assert!(len <= CHUNK);
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), len) }
    }
}

// ---- walking -----------------------------------------------------------------------------------------------------------

/// Calls `f(positions in the buffers, offset within the range, length)` for every run along the last dimension that elements
/// `start..start + len` consist of, in row-major order. The layouts have one shape.
#[inline(always)]
pub(crate) fn for_each_run<const N: usize>(
    layouts: [&Layout; N],
    start: usize,
    len: usize,
    mut f: impl FnMut([isize; N], usize, usize),
) {
    let shape = layouts[0].shape();
    let mut at = layouts.map(|l| l.offset() as isize);
    let Some(last) = shape.rank().checked_sub(1) else { return f(at, 0, len) };
    let mut index = [0; MAX_RANK];
    let mut rest = start;
    for d in (0..=last).rev() {
        (rest, index[d]) = (rest / shape[d], rest % shape[d]);
        (0..N).for_each(|i| at[i] += index[d] as isize * layouts[i].strides()[d]);
    }
    let mut done = 0;
    while done < len {
        let run = (shape[last] - index[last]).min(len - done);
        f(at, done, run);
        done += run;
        index[last] += run;
        (0..N).for_each(|i| at[i] += run as isize * layouts[i].strides()[last]);
        for d in (1..=last).rev() {
            if index[d] < shape[d] {
                break;
            }
            index[d] = 0;
            index[d - 1] += 1;
            (0..N).for_each(|i| {
                at[i] += layouts[i].strides()[d - 1] - shape[d] as isize * layouts[i].strides()[d];
            });
        }
    }
}

/// Copies elements `start..start + len` of a strided tensor, in row-major order, to `to`.
///
/// # Safety
/// The layout lies within the memory at `base`, and `to` has room for `len` elements that do not overlap it.
pub(crate) unsafe fn gather<T: Copy>(base: *const T, layout: &Layout, start: usize, len: usize, to: *mut T) {
    let stride = layout.strides().last().copied().unwrap_or(0);
    for_each_run([layout], start, len, |[at], offset, run| {
        // SAFETY: the caller's promise; `for_each_run` stays within the layout and within `len`.
        unsafe {
            let (from, to) = (base.offset(at), to.add(offset));
            match stride {
                1 => from.copy_to_nonoverlapping(to, run),
                0 => {
                    let value = *from;
                    (0..run).for_each(|i| *to.add(i) = value);
                }
                _ => (0..run).for_each(|i| *to.add(i) = *from.offset(i as isize * stride)),
            }
        }
    });
}

/// The reverse of [`gather`].
///
/// # Safety
/// The layout lies within the memory at `base`, which nobody else uses, and `from` has `len` elements elsewhere.
pub(crate) unsafe fn scatter<T: Copy>(
    from: *const T,
    base: *mut T,
    layout: &Layout,
    start: usize,
    len: usize,
) {
    let stride = layout.strides().last().copied().unwrap_or(0);
    for_each_run([layout], start, len, |[at], offset, run| {
        // SAFETY: the caller's promise; `for_each_run` stays within the layout and within `len`.
        unsafe {
            let (from, to) = (from.add(offset), base.offset(at));
            match stride {
                1 => from.copy_to_nonoverlapping(to, run),
                _ => (0..run).for_each(|i| *to.offset(i as isize * stride) = *from.add(i)),
            }
        }
    });
}

// ---- sources -----------------------------------------------------------------------------------------------------------

/// An input as a sequence of elements in row-major order.
pub(crate) struct Source<T: Stored> {
    base: SyncPtr<T>,
    layout: Layout,
    kind: Kind,
    /// The row-major copy that was cheaper to make than walking a large transposed tensor chunk by chunk.
    _copy: Option<Scratch<T>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// The tensor's own memory can be used as it is.
    Direct,
    /// One element, repeated.
    Constant,
    /// To be copied.
    Strided,
}

impl<T: Stored> Source<T> {
    /// `outputs` are those written while this is read: elements that one of them overwrites are copied before.
    pub fn new(view: &View<'_>, outputs: &[Output]) -> Result<Source<T>> {
        let base: *const T = memory::input_ptr(view);
        let numel = view.layout.numel();
        let layout = match view.layout.is_contiguous() {
            true => Layout::new(numel.into(), &[1], view.layout.offset()),
            false => view.layout.collapse(),
        };
        if copy::is_transposed(&layout) {
            let scratch = Scratch::<T>::new(numel)?;
            // SAFETY: the scratch is as large as the layout, which `core` has checked against the buffer.
            unsafe { copy::copy_raw(base, &layout, scratch.as_ptr(), &Layout::contiguous(*layout.shape())) };
            let kind = if T::DIRECT { Kind::Direct } else { Kind::Strided };
            let layout = Layout::new(numel.into(), &[1], 0);
            return Ok(Source { base: scratch.sync_ptr(), layout, kind, _copy: Some(scratch) });
        }
        let overwritten = outputs.iter().any(|o| std::ptr::eq(memory::output_ptr::<T>(o), base));
        let kind = match layout.strides() {
            _ if numel == 1 => Kind::Constant,
            [0] => Kind::Constant,
            [1] if T::DIRECT && !overwritten => Kind::Direct,
            _ => Kind::Strided,
        };
        Ok(Source { base: SyncPtr::new(base.cast_mut()), layout, kind, _copy: None })
    }

    pub fn is_direct(&self) -> bool {
        self.kind == Kind::Direct
    }

    /// For one thread's use.
    pub fn reader(&self) -> Reader<'_, T> {
        Reader { source: self, space: Space::new(), filled: 0 }
    }
}

/// Reads a [`Source`] chunk by chunk.
pub(crate) struct Reader<'a, T: Stored> {
    source: &'a Source<T>,
    space: Space<T::Compute>,
    /// How much of `space` holds the constant already.
    filled: usize,
}

impl<T: Stored> Reader<'_, T> {
    /// Elements `start..start + len`; at most [`CHUNK`] of them unless the source is direct.
    ///
    /// # Safety
    /// They are within the tensor, and nobody writes them while the result lives.
    #[inline]
    pub unsafe fn get(&mut self, start: usize, len: usize) -> &[T::Compute] {
        let source = self.source;
        match source.kind {
            // SAFETY: the caller's promise; `Direct` means contiguous and `Compute` = `T`.
            Kind::Direct => unsafe {
                let first = source.base.at(source.layout.offset() as isize + start as isize);
                std::slice::from_raw_parts(first.cast_const().cast(), len)
            },
            Kind::Constant => {
                let space = self.space.slice(len);
                if self.filled < len {
                    // SAFETY: the only element of the tensor.
                    let value = unsafe { *source.base.at(source.layout.offset() as isize) };
                    let mut wide = [T::Compute::default()];
                    T::widen(&[value], &mut wide);
                    space.fill(wide[0]);
                    self.filled = len;
                }
                space
            }
            Kind::Strided if T::DIRECT => {
                let space = self.space.slice(len);
                // SAFETY: the caller's promise; the space is our own; `Compute` = `T`.
                unsafe {
                    gather(
                        source.base.get().cast_const(),
                        &source.layout,
                        start,
                        len,
                        space.as_mut_ptr().cast(),
                    );
                }
                space
            }
            Kind::Strided => {
                let mut narrow = Space::<T>::new();
                let narrow = narrow.slice(len);
                // SAFETY: the caller's promise; `narrow` is our own.
                unsafe {
                    gather(source.base.get().cast_const(), &source.layout, start, len, narrow.as_mut_ptr())
                };
                let space = self.space.slice(len);
                T::widen(narrow, space);
                space
            }
        }
    }
}

// ---- sinks -------------------------------------------------------------------------------------------------------------

/// An output as a sequence of elements in row-major order.
pub(crate) struct Sink<T: Stored> {
    base: SyncPtr<T>,
    layout: Layout,
    direct: bool,
}

impl<T: Stored> Sink<T> {
    pub fn new(output: &Output) -> Sink<T> {
        let contiguous = output.layout.is_contiguous();
        let layout = match contiguous {
            true => Layout::new(output.layout.numel().into(), &[1], output.layout.offset()),
            false => output.layout.collapse(),
        };
        Sink { base: SyncPtr::new(memory::output_ptr(output)), layout, direct: contiguous && T::DIRECT }
    }

    /// Lets `f` write elements `start..start + len`; at most [`CHUNK`] of them unless the sink is direct.
    ///
    /// # Safety
    /// They are within the tensor, and nobody else uses them meanwhile.
    #[inline]
    pub unsafe fn put(&self, start: usize, len: usize, f: impl FnOnce(&mut [T::Compute])) {
        if self.direct {
            // SAFETY: the caller's promise; `direct` means contiguous and `Compute` = `T`.
            return f(unsafe {
                let first = self.base.at(self.layout.offset() as isize + start as isize);
                std::slice::from_raw_parts_mut(first.cast(), len)
            });
        }
        let mut space = Space::<T::Compute>::new();
        let wide = space.slice(len);
        f(wide);
        if T::DIRECT {
            // SAFETY: the caller's promise; the space is our own; `Compute` = `T`.
            return unsafe { scatter(wide.as_ptr().cast(), self.base.get(), &self.layout, start, len) };
        }
        let mut narrow = Space::<T>::new();
        let narrow = narrow.slice(len);
        T::narrow(wide, narrow);
        // SAFETY: the caller's promise; `narrow` is our own.
        unsafe { scatter(narrow.as_ptr(), self.base.get(), &self.layout, start, len) }
    }
}

// ---- elementwise drivers -----------------------------------------------------------------------------------------------

/// Cuts `range` into chunks, or leaves it whole.
#[inline(always)]
fn pieces(range: Range<usize>, whole: bool, mut f: impl FnMut(usize, usize)) {
    if whole {
        return f(range.start, range.len());
    }
    for start in range.clone().step_by(CHUNK) {
        f(start, CHUNK.min(range.end - start));
    }
}

/// `y = kernel(position of the first element)`.
pub(crate) fn map0<Y: Stored>(
    y: &Output,
    grain: usize,
    kernel: impl Fn(usize, &mut [Y::Compute]) + Sync,
) -> Result<()> {
    let sink = Sink::<Y>::new(y);
    parallel::ranges(y.layout.numel(), grain, |range| {
        pieces(range, sink.direct, |start, len| {
            // SAFETY: ranges are disjoint and within the tensor.
            unsafe { sink.put(start, len, |y| kernel(start, y)) };
        });
    });
    Ok(())
}

/// `y = kernel(position, x)`.
pub(crate) fn map1_at<X: Stored, Y: Stored>(
    x: &View<'_>,
    y: &[Output],
    grain: usize,
    kernel: impl Fn(usize, &[X::Compute], &mut [Y::Compute]) + Sync,
) -> Result<()> {
    let x = Source::<X>::new(x, y)?;
    let sink = Sink::<Y>::new(&y[0]);
    let whole = sink.direct && x.is_direct();
    parallel::ranges(y[0].layout.numel(), grain, |range| {
        let mut x = x.reader();
        pieces(range, whole, |start, len| {
            // SAFETY: ranges are disjoint and within the tensors, which have one shape; what a sink overwrites, its
            // reader has copied.
            unsafe {
                let x = x.get(start, len);
                sink.put(start, len, |y| kernel(start, x, y));
            }
        });
    });
    Ok(())
}

/// `y = kernel(x)`.
pub(crate) fn map1<X: Stored, Y: Stored>(
    x: &View<'_>,
    y: &[Output],
    grain: usize,
    kernel: impl Fn(&[X::Compute], &mut [Y::Compute]) + Sync,
) -> Result<()> {
    map1_at::<X, Y>(x, y, grain, |_, x, y| kernel(x, y))
}

/// `y = kernel(a, b)`.
pub(crate) fn map2<A: Stored, B: Stored, Y: Stored>(
    a: &View<'_>,
    b: &View<'_>,
    y: &[Output],
    grain: usize,
    kernel: impl Fn(&[A::Compute], &[B::Compute], &mut [Y::Compute]) + Sync,
) -> Result<()> {
    let (a, b) = (Source::<A>::new(a, y)?, Source::<B>::new(b, y)?);
    let sink = Sink::<Y>::new(&y[0]);
    let whole = sink.direct && a.is_direct() && b.is_direct();
    parallel::ranges(y[0].layout.numel(), grain, |range| {
        let (mut a, mut b) = (a.reader(), b.reader());
        pieces(range, whole, |start, len| {
            // SAFETY: as in `map1_at`.
            unsafe {
                let (a, b) = (a.get(start, len), b.get(start, len));
                sink.put(start, len, |y| kernel(a, b, y));
            }
        });
    });
    Ok(())
}

/// `y = kernel(a, b, c)`.
pub(crate) fn map3<A: Stored, B: Stored, C: Stored, Y: Stored>(
    inputs: [&View<'_>; 3],
    y: &[Output],
    grain: usize,
    kernel: impl Fn(&[A::Compute], &[B::Compute], &[C::Compute], &mut [Y::Compute]) + Sync,
) -> Result<()> {
    let [a, b, c] = inputs;
    let (a, b, c) = (Source::<A>::new(a, y)?, Source::<B>::new(b, y)?, Source::<C>::new(c, y)?);
    let sink = Sink::<Y>::new(&y[0]);
    let whole = sink.direct && a.is_direct() && b.is_direct() && c.is_direct();
    parallel::ranges(y[0].layout.numel(), grain, |range| {
        let (mut a, mut b, mut c) = (a.reader(), b.reader(), c.reader());
        pieces(range, whole, |start, len| {
            // SAFETY: as in `map1_at`.
            unsafe {
                let (a, b, c) = (a.get(start, len), b.get(start, len), c.get(start, len));
                sink.put(start, len, |y| kernel(a, b, c, y));
            }
        });
    });
    Ok(())
}
