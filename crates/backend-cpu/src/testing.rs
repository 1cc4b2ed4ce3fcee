//! For unit tests: tensors of every dtype and memory layout from plain numbers, and operations on them.

use crate::Cpu;
use crate::memory;
use orkest_core::{
    Backend, Buffer, DType, Element, Layout, Op, Output, Result, Scalar, Shape, View, with_dtype,
};

/// Varying numbers (SplitMix64).
pub(crate) struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 27)
    }

    /// An integer in `0..limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 16) % limit as u64) as usize
    }

    /// A number in `[-1, 1)` that f32 holds exactly.
    pub fn value(&mut self) -> f64 {
        (self.next() >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    }

    pub fn values(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lay {
    Contiguous,
    /// The first dimension varies fastest.
    Reversed,
    /// Gaps between elements, an offset at the start.
    Sparse,
    /// Negative strides.
    Flipped,
    /// Columns of a wider tensor: rows of neighbours, with gaps between them.
    Narrow,
}

pub(crate) const LAYS: [Lay; 5] = [Lay::Contiguous, Lay::Reversed, Lay::Sparse, Lay::Flipped, Lay::Narrow];

/// A tensor.
pub(crate) struct Data {
    pub buffer: Buffer,
    pub layout: Layout,
    pub dtype: DType,
}

fn pointer(buffer: &Buffer, layout: &Layout, dtype: DType) -> *mut u8 {
    memory::output_ptr(&Output { layout: *layout, dtype, buffer: Some(buffer.clone()) })
}

impl Data {
    /// Row-major.
    pub fn new(dtype: DType, shape: &[usize], values: &[f64]) -> Data {
        Data::laid(Lay::Contiguous, dtype, shape, values)
    }

    pub fn laid(lay: Lay, dtype: DType, shape: &[usize], values: &[f64]) -> Data {
        let rank = shape.len();
        let row_major = Layout::contiguous(Shape::new(shape));
        assert_eq!(row_major.numel(), values.len());
        let (len, layout) = match lay {
            Lay::Contiguous => (row_major.numel(), row_major),
            Lay::Reversed => {
                let backwards: Vec<usize> = (0..rank).rev().collect();
                let sizes: Vec<usize> = shape.iter().rev().copied().collect();
                (row_major.numel(), Layout::contiguous(Shape::new(&sizes)).permute(&backwards))
            }
            Lay::Sparse => {
                let sizes: Vec<usize> = shape.iter().map(|s| 2 * s + 1).collect();
                let mut layout = Layout::contiguous(Shape::new(&sizes));
                let len = layout.numel();
                for d in 0..rank {
                    layout = layout.slice(d, 1, shape[d], 2);
                }
                (len, layout)
            }
            Lay::Flipped => (row_major.numel(), (0..rank).fold(row_major, |l, d| l.flip(d))),
            Lay::Narrow => {
                let mut sizes = shape.to_vec();
                sizes.last_mut().into_iter().for_each(|size| *size += 3);
                let wide = Layout::contiguous(Shape::new(&sizes));
                let layout = if rank > 0 { wide.slice(rank - 1, 1, shape[rank - 1], 1) } else { wide };
                (wide.numel(), layout)
            }
        };
        let buffer = Cpu.allocate(len, dtype).unwrap();
        with_dtype!(dtype, T => {
            let start = pointer(&buffer, &layout, dtype).cast::<T>();
            for i in 0..len {
                // SAFETY: the buffer holds `len` elements; 77 marks memory outside the layout.
                unsafe { *start.add(i) = T::from_i64(77) };
            }
            for (position, value) in layout.positions().zip(values) {
                let value = if dtype.is_float() { Scalar::Float(*value) } else { Scalar::Int(*value as i64) };
                // SAFETY: positions of the layout lie within the buffer.
                unsafe { *start.add(position) = value.to::<T>() };
            }
        });
        Data { buffer, layout, dtype }
    }

    pub fn view(&self) -> View<'_> {
        View { buffer: &self.buffer, layout: &self.layout, dtype: self.dtype }
    }

    /// In row-major order.
    pub fn values(&self) -> Vec<f64> {
        with_dtype!(self.dtype, T => {
            let start = pointer(&self.buffer, &self.layout, self.dtype).cast::<T>();
            // SAFETY: positions of the layout lie within the buffer.
            self.layout.positions().map(|p| unsafe { *start.add(p) }.to_f64()).collect()
        })
    }

    /// The elements of the buffer that the layout does not touch are still what `laid` put there.
    pub fn surroundings_are_untouched(&self) -> bool {
        with_dtype!(self.dtype, T => {
            let len = self.buffer.size() / self.dtype.size();
            let mut inside = vec![false; len];
            self.layout.positions().for_each(|p| inside[p] = true);
            let start = pointer(&self.buffer, &self.layout, self.dtype).cast::<T>();
            // SAFETY: elements of the buffer.
            (0..len).all(|i| inside[i] || unsafe { *start.add(i) } == T::from_i64(77))
        })
    }
}

/// Runs an operation with new outputs.
pub(crate) fn run(op: &Op, inputs: &[&Data], outputs: &[(&[usize], DType)]) -> Result<Vec<Data>> {
    let views: Vec<View<'_>> = inputs.iter().map(|d| d.view()).collect();
    let mut out: Vec<Output> =
        outputs.iter().map(|(shape, dtype)| Output::new(Shape::new(shape), *dtype)).collect();
    Cpu.execute(op, &views, &mut out)?;
    Ok(out
        .into_iter()
        .map(|o| Data { buffer: o.buffer.unwrap(), layout: o.layout, dtype: o.dtype })
        .collect())
}

/// Runs an operation in place on one tensor.
pub(crate) fn run_in_place(op: &Op, inputs: &[&Data], target: &Data) -> Result<()> {
    let views: Vec<View<'_>> = inputs.iter().map(|d| d.view()).collect();
    let output = Output { layout: target.layout, dtype: target.dtype, buffer: Some(target.buffer.clone()) };
    Cpu.execute(op, &views, &mut [output])
}

/// Asserts that two lists agree within `tolerance` of the larger of 1 and the expected value; NaN equals NaN.
#[track_caller]
pub(crate) fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let close = (a - e).abs() <= tolerance * e.abs().max(1.0) || a == e || (a.is_nan() && e.is_nan());
        assert!(close, "{what}: element {i} is {a}, expected {e}");
    }
}
