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
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
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
        #[cfg(target_arch = "x86_64")]
        if crate::simd::level() == crate::simd::Level::Avx512 {
            // SAFETY: `level` has found these instructions on this machine.
            return unsafe { widen_f16(from, to) };
        }
        from.convert_to_f32_slice(to);
    }
    fn narrow(from: &[f32], to: &mut [f16]) {
        #[cfg(target_arch = "x86_64")]
        if crate::simd::level() == crate::simd::Level::Avx512 {
            // SAFETY: `level` has found these instructions on this machine.
            return unsafe { narrow_f16(from, to) };
        }
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

/// Sixteen at a time, where the library's conversion takes four or eight.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn widen_f16(from: &[f16], to: &mut [f32]) {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<16>(), to.as_chunks_mut::<16>());
    for (from, to) in from.iter().zip(to) {
        // SAFETY: both hold sixteen.
        unsafe {
            _mm512_storeu_ps(to.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())));
        };
    }
    from_rest.convert_to_f32_slice(to_rest);
}

/// To the nearest, halves to even.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn narrow_f16(from: &[f32], to: &mut [f16]) {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<16>(), to.as_chunks_mut::<16>());
    for (from, to) in from.iter().zip(to) {
        // SAFETY: both hold sixteen.
        unsafe {
            let narrow = _mm512_cvtps_ph::<NEAREST>(_mm512_loadu_ps(from.as_ptr()));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
        }
    }
    to_rest.convert_from_f32_slice(from_rest);
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

/// An input as a sequence of elements in row-major order, as they are computed with. How they are stored is behind a function
/// pointer, so that loops are compiled per type of number and not per dtype.
pub(crate) struct Source<C> {
    base: SyncPtr<u8>,
    layout: Layout,
    kind: Kind,
    load: unsafe fn(*const u8, &Layout, usize, &mut [C]),
    /// The row-major copy that was cheaper to make than walking a large transposed tensor chunk by chunk.
    _copy: Option<Scratch<u8>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// The tensor's own memory can be used as it is.
    Direct,
    /// One element, repeated.
    Constant,
    /// Rows of neighbours as long as [`Source::row`], of which a part can be used as it is.
    Rows,
    /// The same number all along rows of that length, for kernels that take one number for many.
    Steady,
    /// To be copied.
    Strided,
}

/// Rows that are shorter are copied: a kernel is called for each part of a row.
const SHORTEST_ROW: usize = 128;

impl<C: Element> Source<C> {
    /// `outputs` are those written while this is read: elements that one of them overwrites are copied before.
    pub fn new<T: Stored<Compute = C>>(view: &View<'_>, outputs: &[Output]) -> Result<Source<C>> {
        let base: *const T = memory::input_ptr(view);
        let numel = view.layout.numel();
        let layout = match view.layout.is_contiguous() {
            true => Layout::new(numel.into(), &[1], view.layout.offset()),
            false => view.layout.collapse(),
        };
        let source = |base: *const T, layout, kind, copy| {
            Ok(Source {
                base: SyncPtr::new(base.cast_mut().cast()),
                layout,
                kind,
                load: load::<T>,
                _copy: copy,
            })
        };
        if copy::is_transposed(&layout) {
            let scratch = Scratch::<u8>::new(numel * size_of::<T>())?;
            let copy = scratch.as_ptr().cast::<T>();
            // SAFETY: the scratch is as large as the layout, which `core` has checked against the buffer.
            unsafe { copy::copy_raw(base, &layout, copy, &Layout::contiguous(*layout.shape())) };
            let kind = if T::DIRECT { Kind::Direct } else { Kind::Strided };
            return source(copy, Layout::new(numel.into(), &[1], 0), kind, Some(scratch));
        }
        let overwritten = outputs.iter().any(|o| std::ptr::eq(memory::output_ptr::<T>(o), base));
        let kind = match layout.strides() {
            _ if numel == 1 => Kind::Constant,
            [0] => Kind::Constant,
            [1] if T::DIRECT && !overwritten => Kind::Direct,
            [.., 1] if T::DIRECT && !overwritten && layout.shape()[layout.rank() - 1] >= SHORTEST_ROW => {
                Kind::Rows
            }
            _ => Kind::Strided,
        };
        source(base, layout, kind, None)
    }

    /// The same, for a kernel that takes a slice of one element as that element for all of the others'.
    fn broadcasting<T: Stored<Compute = C>>(view: &View<'_>, outputs: &[Output]) -> Result<Source<C>> {
        let mut source = Source::new::<T>(view, outputs)?;
        let steady = match source.layout.strides() {
            [.., 0] => source.layout.shape()[source.layout.rank() - 1] >= SHORTEST_ROW,
            _ => false,
        };
        if source.kind == Kind::Constant || steady {
            source.kind = Kind::Steady;
        }
        Ok(source)
    }

    /// How much of it can be read at once.
    fn limit(&self) -> usize {
        if matches!(self.kind, Kind::Strided | Kind::Constant) { CHUNK } else { usize::MAX }
    }

    /// After how many elements a piece of it must end.
    pub fn row(&self) -> usize {
        match self.kind {
            Kind::Rows | Kind::Steady => self.layout.shape().last().copied().unwrap_or(usize::MAX),
            _ => usize::MAX,
        }
    }

    /// For one thread's use.
    pub fn reader(&self) -> Reader<'_, C> {
        Reader { source: self, space: Space::new(), filled: 0 }
    }
}

/// Elements from `start` on, as they are computed with.
///
/// # Safety
/// They are within the layout, and the layout within the memory of `T` at `base`.
pub(crate) unsafe fn load<T: Stored>(
    base: *const u8,
    layout: &Layout,
    start: usize,
    wide: &mut [T::Compute],
) {
    let base = base.cast::<T>();
    if T::DIRECT {
        // SAFETY: the caller's promise; `Compute` = `T`.
        return unsafe { gather(base, layout, start, wide.len(), wide.as_mut_ptr().cast()) };
    }
    if layout.strides() == [1] {
        // SAFETY: the caller's promise.
        return T::widen(
            unsafe { std::slice::from_raw_parts(base.add(layout.offset() + start), wide.len()) },
            wide,
        );
    }
    let mut narrow = Space::<T>::new();
    let narrow = narrow.slice(wide.len());
    // SAFETY: the caller's promise.
    unsafe { gather(base, layout, start, narrow.len(), narrow.as_mut_ptr()) };
    T::widen(narrow, wide);
}

/// Reads a [`Source`] chunk by chunk.
pub(crate) struct Reader<'a, C> {
    source: &'a Source<C>,
    space: Space<C>,
    /// How much of `space` holds the constant already.
    filled: usize,
}

impl<C: Element> Reader<'_, C> {
    /// Elements `start..start + len`, no more than the source's limit; one of them for all where the source is steady.
    ///
    /// # Safety
    /// They are within the tensor and within a row, and nobody writes them while the result lives.
    #[inline]
    pub unsafe fn get(&mut self, start: usize, len: usize) -> &[C] {
        let Source { base, layout, kind, load, .. } = self.source;
        if *kind == Kind::Direct {
            // SAFETY: the caller's promise; `Direct` means contiguous and stored as `C`.
            return unsafe {
                let first = base.get().cast::<C>().wrapping_add(layout.offset() + start);
                std::slice::from_raw_parts(first, len)
            };
        }
        if *kind == Kind::Rows {
            let mut first = base.get().cast::<C>();
            for_each_run([layout], start, len, |[at], _, run| {
                debug_assert_eq!(run, len);
                first = first.wrapping_offset(at);
            });
            // SAFETY: the caller's promise; the elements of a row are neighbours, stored as `C`.
            return unsafe { std::slice::from_raw_parts(first, len) };
        }
        let len = if *kind == Kind::Steady { 1 } else { len };
        let space = self.space.slice(len);
        if matches!(kind, Kind::Strided | Kind::Steady) {
            // SAFETY: the caller's promise.
            unsafe { load(base.get(), layout, start, space) };
        } else if self.filled < len {
            // SAFETY: the only element of the tensor.
            unsafe { load(base.get(), layout, 0, &mut space[..1]) };
            let value = space[0];
            space.fill(value);
            self.filled = len;
        }
        space
    }
}

// ---- sinks -------------------------------------------------------------------------------------------------------------

/// An output as a sequence of elements in row-major order.
pub(crate) struct Sink<C> {
    base: SyncPtr<u8>,
    layout: Layout,
    direct: bool,
    save: unsafe fn(&[C], *mut u8, &Layout, usize),
}

impl<C: Element> Sink<C> {
    pub fn new<T: Stored<Compute = C>>(output: &Output) -> Sink<C> {
        let contiguous = output.layout.is_contiguous();
        let layout = match contiguous {
            true => Layout::new(output.layout.numel().into(), &[1], output.layout.offset()),
            false => output.layout.collapse(),
        };
        let base = SyncPtr::new(memory::output_ptr(output));
        Sink { base, layout, direct: contiguous && T::DIRECT, save: save::<T> }
    }

    /// Lets `f` write elements `start..start + len`; at most [`CHUNK`] of them unless the sink is direct.
    ///
    /// # Safety
    /// They are within the tensor, and nobody else uses them meanwhile.
    #[inline]
    pub unsafe fn put(&self, start: usize, len: usize, f: impl FnOnce(&mut [C])) {
        if self.direct {
            // SAFETY: the caller's promise; `direct` means contiguous and stored as `C`.
            return f(unsafe {
                let first = self.base.get().cast::<C>().wrapping_add(self.layout.offset() + start);
                std::slice::from_raw_parts_mut(first, len)
            });
        }
        let mut space = Space::<C>::new();
        let wide = space.slice(len);
        f(wide);
        // SAFETY: the caller's promise.
        unsafe { (self.save)(wide, self.base.get(), &self.layout, start) };
    }
}

impl<C: Element> Sink<C> {
    /// How much of it can be written at once.
    fn limit(&self) -> usize {
        if self.direct { usize::MAX } else { CHUNK }
    }

    /// Writes elements from `start` on.
    ///
    /// # Safety
    /// As for [`Sink::put`].
    unsafe fn store(&self, start: usize, from: &[C]) {
        if self.direct {
            // SAFETY: the caller's promise.
            return unsafe { self.put(start, from.len(), |to| to.copy_from_slice(from)) };
        }
        // SAFETY: the caller's promise.
        unsafe { (self.save)(from, self.base.get(), &self.layout, start) };
    }
}

/// The reverse of [`load`].
///
/// # Safety
/// As there, and nobody else uses the elements.
unsafe fn save<T: Stored>(wide: &[T::Compute], base: *mut u8, layout: &Layout, start: usize) {
    let base = base.cast::<T>();
    if T::DIRECT {
        // SAFETY: the caller's promise; `Compute` = `T`.
        return unsafe { scatter(wide.as_ptr().cast(), base, layout, start, wide.len()) };
    }
    if layout.strides() == [1] {
        // SAFETY: the caller's promise.
        return T::narrow(wide, unsafe {
            std::slice::from_raw_parts_mut(base.add(layout.offset() + start), wide.len())
        });
    }
    let mut narrow = Space::<T>::new();
    let narrow = narrow.slice(wide.len());
    T::narrow(wide, narrow);
    // SAFETY: the caller's promise; `narrow` is our own.
    unsafe { scatter(narrow.as_ptr(), base, layout, start, narrow.len()) }
}

// ---- elementwise drivers -----------------------------------------------------------------------------------------------

/// A problem small enough for one thread with an output that kernels can write where it lies, so that the kernel runs once: what most
/// operations of small models are.
struct Whole<'a> {
    outputs: &'a [Output],
    start: *mut u8,
    numel: usize,
}

impl<'a> Whole<'a> {
    fn new<Y: Stored>(outputs: &'a [Output], grain: usize) -> Option<Whole<'a>> {
        let layout = &outputs[0].layout;
        let numel = layout.numel();
        let fits = numel <= grain && Y::DIRECT && layout.is_contiguous();
        fits.then(|| Whole { outputs, start: memory::output_ptr(&outputs[0]), numel })
    }

    /// An input: where it lies, if it is contiguous, stored as it is computed with and not overwritten; else, if there is room, in `space`.
    fn input<'s, T: Stored>(
        &self,
        view: &View<'s>,
        space: &'s mut Space<T::Compute>,
    ) -> Option<&'s [T::Compute]> {
        let start = memory::input_ptr::<T>(view);
        let overwritten = std::ptr::eq(self.start, start.cast())
            || self.outputs[1..].iter().any(|o| std::ptr::eq(memory::output_ptr::<T>(o), start));
        if T::DIRECT && !overwritten && view.layout.is_contiguous() {
            // SAFETY: a contiguous layout lies within its buffer, whose elements have been written and are stored as `Compute`;
            // nobody writes them while the operation runs.
            return Some(unsafe {
                std::slice::from_raw_parts(start.add(view.layout.offset()).cast(), self.numel)
            });
        }
        if self.numel > CHUNK {
            return None;
        }
        let space = space.slice(self.numel);
        // SAFETY: all elements of the tensor, which `core` has checked against the buffer.
        unsafe { load::<T>(start.cast(), view.layout, 0, space) };
        Some(space)
    }

    /// The first output, for the `Y` that it was made for; after the inputs, which it may overwrite.
    fn output<Y: Stored>(self) -> &'a mut [Y::Compute] {
        let start = self.start.cast::<Y>().wrapping_add(self.outputs[0].layout.offset());
        // SAFETY: contiguous and stored as `Compute`, as `new` has seen; `core` sees to it that nobody else uses it, and `input` has
        // copied what is the same memory.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), self.numel) }
    }
}

/// `y = kernel(position of the first element)`.
pub(crate) fn map0<Y: Stored>(
    y: &Output,
    grain: usize,
    kernel: impl Fn(usize, &mut [Y::Compute]) + Sync,
) -> Result<()> {
    if let Some(whole) = Whole::new::<Y>(std::slice::from_ref(y), grain) {
        kernel(0, whole.output::<Y>());
        return Ok(());
    }
    drive0(&Sink::new::<Y>(y), y.layout.numel(), grain, &kernel);
    Ok(())
}

/// `y = kernel(position, x)`.
pub(crate) fn map1_at<X: Stored, Y: Stored>(
    x: &View<'_>,
    y: &[Output],
    grain: usize,
    kernel: impl Fn(usize, &[X::Compute], &mut [Y::Compute]) + Sync,
) -> Result<()> {
    let mut space = Space::new();
    if let Some(whole) = Whole::new::<Y>(y, grain)
        && let Some(x) = whole.input::<X>(x, &mut space)
    {
        kernel(0, x, whole.output::<Y>());
        return Ok(());
    }
    drive1(&Source::new::<X>(x, y)?, &Sink::new::<Y>(&y[0]), y[0].layout.numel(), grain, &kernel);
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

/// `y = x` in another dtype that is computed with in the same type of number.
pub(crate) fn convert<X: Stored, Y: Stored<Compute = X::Compute>>(x: &View<'_>, y: &[Output]) -> Result<()> {
    let (x, y) = (Source::new::<X>(x, y)?, Sink::new::<Y>(&y[0]));
    parallel::ranges(y.layout.numel(), GRAIN_MEMORY, |range| {
        let mut reader = x.reader();
        pieces(range, CHUNK, x.row(), |start, len| {
            // SAFETY: ranges are disjoint and within the tensors, which have one shape.
            unsafe {
                if y.direct && x.kind == Kind::Strided {
                    y.put(start, len, |to| (x.load)(x.base.get(), &x.layout, start, to));
                } else {
                    y.store(start, reader.get(start, len));
                }
            }
        });
    });
    Ok(())
}

/// `y = kernel(a, b)`.
pub(crate) fn map2<A: Stored, B: Stored, Y: Stored>(
    a: &View<'_>,
    b: &View<'_>,
    y: &[Output],
    grain: usize,
    kernel: impl Fn(&[A::Compute], &[B::Compute], &mut [Y::Compute]) + Sync,
) -> Result<()> {
    let (mut space_a, mut space_b) = (Space::new(), Space::new());
    if let Some(whole) = Whole::new::<Y>(y, grain)
        && let (Some(a), Some(b)) = (whole.input::<A>(a, &mut space_a), whole.input::<B>(b, &mut space_b))
    {
        kernel(a, b, whole.output::<Y>());
        return Ok(());
    }
    let (a, b) = (Source::new::<A>(a, y)?, Source::new::<B>(b, y)?);
    drive2(&a, &b, &Sink::new::<Y>(&y[0]), y[0].layout.numel(), grain, &kernel);
    Ok(())
}

/// `y = kernel(a, b)`; where `a` or `b` has one element, that is all of it.
pub(crate) fn map2_broadcasting<A: Stored, B: Stored, Y: Stored>(
    a: &View<'_>,
    b: &View<'_>,
    y: &[Output],
    grain: usize,
    kernel: impl Fn(&[A::Compute], &[B::Compute], &mut [Y::Compute]) + Sync,
) -> Result<()> {
    let (a, b) = (Source::broadcasting::<A>(a, y)?, Source::broadcasting::<B>(b, y)?);
    drive2(&a, &b, &Sink::new::<Y>(&y[0]), y[0].layout.numel(), grain, &kernel);
    Ok(())
}

/// `y = kernel(a, b, c)`.
pub(crate) fn map3<A: Stored, B: Stored, C: Stored, Y: Stored>(
    [a, b, c]: [&View<'_>; 3],
    y: &[Output],
    grain: usize,
    kernel: impl Fn(&[A::Compute], &[B::Compute], &[C::Compute], &mut [Y::Compute]) + Sync,
) -> Result<()> {
    let (mut space_a, mut space_b, mut space_c) = (Space::new(), Space::new(), Space::new());
    if let Some(whole) = Whole::new::<Y>(y, grain)
        && let Some(a) = whole.input::<A>(a, &mut space_a)
        && let Some(b) = whole.input::<B>(b, &mut space_b)
        && let Some(c) = whole.input::<C>(c, &mut space_c)
    {
        kernel(a, b, c, whole.output::<Y>());
        return Ok(());
    }
    let (a, b, c) = (Source::new::<A>(a, y)?, Source::new::<B>(b, y)?, Source::new::<C>(c, y)?);
    drive3(&a, &b, &c, &Sink::new::<Y>(&y[0]), y[0].layout.numel(), grain, &kernel);
    Ok(())
}

/// True if `x` is what the operation overwrites, element for element, in memory that kernels can change where it lies; and too much of
/// it to be copied first. While a chunk is copied and then computed with, memory has nothing to do.
pub(crate) fn is_update<T: Stored>(x: &View<'_>, y: &[Output]) -> bool {
    T::DIRECT
        && x.layout.numel() > CHUNK
        && y.len() == 1
        && std::ptr::eq(memory::input_ptr::<T>(x), memory::output_ptr::<T>(&y[0]))
        && *x.layout == y[0].layout
        && x.layout.is_contiguous()
}

/// `y = kernel(y)`, for what [`is_update`].
pub(crate) fn update1<T: Stored>(
    y: &Output,
    grain: usize,
    kernel: impl Fn(&mut [T::Compute]) + Sync,
) -> Result<()> {
    let sink = Sink::<T::Compute>::new::<T>(y);
    parallel::ranges(y.layout.numel(), grain, |range| {
        // SAFETY: ranges are disjoint and within the tensor, which is direct.
        unsafe { sink.put(range.start, range.len(), |y| kernel(y)) };
    });
    Ok(())
}

/// `y = kernel(y, b)`, for what [`is_update`]; where `b` has one element, that is all of it.
pub(crate) fn update2<T: Stored>(
    b: &View<'_>,
    y: &[Output],
    grain: usize,
    kernel: impl Fn(&mut [T::Compute], &[T::Compute]) + Sync,
) -> Result<()> {
    let (b, sink) = (Source::broadcasting::<T>(b, y)?, Sink::<T::Compute>::new::<T>(&y[0]));
    parallel::ranges(y[0].layout.numel(), grain, |range| {
        let mut reader = b.reader();
        pieces(range, b.limit(), b.row(), |start, len| {
            // SAFETY: as in `drive1`; the sink is direct.
            unsafe {
                let b = reader.get(start, len);
                sink.put(start, len, |y| kernel(y, b));
            }
        });
    });
    Ok(())
}

// The loops behind them take their kernels as trait objects: one call per chunk, and one loop per combination of types.

fn drive0<Y: Element>(y: &Sink<Y>, numel: usize, grain: usize, kernel: &(dyn Fn(usize, &mut [Y]) + Sync)) {
    parallel::ranges(numel, grain, |range| {
        pieces(range, y.limit(), usize::MAX, |start, len| {
            // SAFETY: ranges are disjoint and within the tensor.
            unsafe { y.put(start, len, |y| kernel(start, y)) };
        });
    });
}

fn drive1<X: Element, Y: Element>(
    x: &Source<X>,
    y: &Sink<Y>,
    numel: usize,
    grain: usize,
    kernel: &(dyn Fn(usize, &[X], &mut [Y]) + Sync),
) {
    let (limit, row) = (y.limit().min(x.limit()), x.row());
    parallel::ranges(numel, grain, |range| {
        let mut x = x.reader();
        pieces(range, limit, row, |start, len| {
            // SAFETY: ranges are disjoint and within the tensors, which have one shape; what a sink overwrites, its
            // reader has copied.
            unsafe {
                let x = x.get(start, len);
                y.put(start, len, |y| kernel(start, x, y));
            }
        });
    });
}

fn drive2<A: Element, B: Element, Y: Element>(
    a: &Source<A>,
    b: &Source<B>,
    y: &Sink<Y>,
    numel: usize,
    grain: usize,
    kernel: &(dyn Fn(&[A], &[B], &mut [Y]) + Sync),
) {
    let limit = y.limit().min(a.limit()).min(b.limit());
    let row = a.row().min(b.row());
    parallel::ranges(numel, grain, |range| {
        let (mut a, mut b) = (a.reader(), b.reader());
        pieces(range, limit, row, |start, len| {
            // SAFETY: as in `drive1`.
            unsafe {
                let (a, b) = (a.get(start, len), b.get(start, len));
                y.put(start, len, |y| kernel(a, b, y));
            }
        });
    });
}

fn drive3<A: Element, B: Element, C: Element, Y: Element>(
    a: &Source<A>,
    b: &Source<B>,
    c: &Source<C>,
    y: &Sink<Y>,
    numel: usize,
    grain: usize,
    kernel: &(dyn Fn(&[A], &[B], &[C], &mut [Y]) + Sync),
) {
    let limit = y.limit().min(a.limit()).min(b.limit()).min(c.limit());
    let row = a.row().min(b.row()).min(c.row());
    parallel::ranges(numel, grain, |range| {
        let (mut a, mut b, mut c) = (a.reader(), b.reader(), c.reader());
        pieces(range, limit, row, |start, len| {
            // SAFETY: as in `drive1`.
            unsafe {
                let (a, b, c) = (a.get(start, len), b.get(start, len), c.get(start, len));
                y.put(start, len, |y| kernel(a, b, c, y));
            }
        });
    });
}

/// Cuts `range` into pieces of at most `limit` elements that end where rows of `row` elements do.
#[inline(always)]
pub(crate) fn pieces(range: Range<usize>, limit: usize, row: usize, mut f: impl FnMut(usize, usize)) {
    let mut start = range.start;
    while start < range.end {
        let len = limit.min(row - start % row).min(range.end - start);
        f(start, len);
        start += len;
    }
}
