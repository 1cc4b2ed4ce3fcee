//! Random operands: values of every dtype in every kind of memory layout.

use orkest_core::{Buffer, DType, Device, Element, Layout, Result, Shape, View, with_dtype};

/// Pseudo-random numbers (SplitMix64): the same on every machine.
pub struct Draw(pub u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `n - 1`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// Both ends included.
    pub fn int(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as usize) as i64
    }

    /// True once in so many times.
    pub fn flag(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    /// The upper end excluded.
    pub fn float(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, options: &[T]) -> T {
        options[self.below(options.len())]
    }

    /// Up to four dimensions; mostly small, now and then large enough for vector loops and threads.
    pub fn shape(&mut self) -> Shape {
        match self.below(12) {
            0 => Shape::new(&[]),
            1 => Shape::new(&[self.int(100, 3000) as usize]),
            2 => Shape::new(&[self.int(20, 70) as usize, self.int(20, 70) as usize]),
            3 => Shape::new(&[3, self.int(1, 40) as usize, 1, self.int(1, 20) as usize]),
            _ => self.small_shape(1, 4),
        }
    }

    /// A rank from `low` to `high`, both included.
    pub fn small_shape(&mut self, low: i64, high: i64) -> Shape {
        let rank = self.int(low, high);
        let sizes: Vec<usize> = (0..rank).map(|_| self.pick(&[1, 2, 3, 4, 5, 7])).collect();
        Shape::new(&sizes)
    }
}

/// Which values an operand has.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Values {
    /// Floats in this range; integers are cut.
    Between(f64, f64),
    /// Integers from 0 to one less than this.
    Positions(usize),
    /// NaN, infinities, both zeros, numbers of all sizes.
    Special,
}

impl Values {
    /// What suits a dtype when nothing else is asked for.
    pub fn of(dtype: DType) -> Values {
        match dtype {
            DType::Bool => Values::Positions(2),
            DType::U8 => Values::Between(0.0, 15.9),
            DType::I32 | DType::I64 => Values::Between(-8.9, 8.9),
            _ => Values::Between(-4.0, 4.0),
        }
    }

    fn draw(self, draw: &mut Draw) -> f64 {
        const ODD: [f64; 12] =
            [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 30.0, -30.0];
        match self {
            Values::Between(low, high) => draw.float(low, high),
            Values::Positions(n) => draw.below(n) as f64,
            Values::Special if draw.flag(3) => draw.float(-3.0, 3.0),
            Values::Special => draw.pick(&ODD),
        }
    }
}

/// A tensor as bytes and a layout over them, to be uploaded to any device.
#[derive(Clone)]
pub struct Operand {
    pub bytes: Vec<u8>,
    pub len: usize,
    pub layout: Layout,
    pub dtype: DType,
}

impl Operand {
    /// Random values of a shape in a random layout; with `distinct` no two elements share memory.
    pub fn random(draw: &mut Draw, shape: Shape, dtype: DType, values: Values, distinct: bool) -> Operand {
        let (layout, len) = random_layout(draw, shape, distinct);
        let numbers: Vec<f64> = (0..len).map(|_| values.draw(draw)).collect();
        Operand { bytes: encode(&numbers, dtype), len, layout, dtype }
    }

    pub fn upload(&self, device: &Device) -> Result<Buffer> {
        device.backend().upload(&self.bytes, self.dtype)
    }

    pub fn view<'a>(&'a self, buffer: &'a Buffer) -> View<'a> {
        View { buffer, layout: &self.layout, dtype: self.dtype }
    }
}

fn encode(values: &[f64], dtype: DType) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * dtype.size());
    with_dtype!(dtype, T => {
        for &v in values {
            let element: T = if dtype.is_float() { T::from_f64(v) } else { T::from_i64(v as i64) };
            out.extend_from_slice(bytes_of(&element));
        }
    });
    out
}

fn bytes_of<T: Element>(value: &T) -> &[u8] {
    // SAFETY: elements have no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A layout of this shape, and how many elements the memory under it has.
fn random_layout(draw: &mut Draw, shape: Shape, distinct: bool) -> (Layout, usize) {
    let plain = (Layout::contiguous(shape), shape.numel());
    let rank = shape.rank();
    if rank == 0 {
        let offset = draw.below(3);
        return (Layout::new(shape, &[], offset), offset + 1);
    }
    match draw.below(if distinct { 6 } else { 7 }) {
        0 | 1 => plain,
        // Dimensions in another order, some reversed.
        2 | 3 => {
            let mut order: Vec<usize> = (0..rank).collect();
            for i in (1..rank).rev() {
                order.swap(i, draw.below(i + 1));
            }
            let stored: Vec<usize> = order.iter().map(|&d| shape[d]).collect();
            let mut back = vec![0; rank];
            order.iter().enumerate().for_each(|(i, &d)| back[d] = i);
            let mut layout = Layout::contiguous(Shape::new(&stored)).permute(&back);
            for d in 0..rank {
                if draw.flag(3) {
                    layout = layout.flip(d);
                }
            }
            (layout, shape.numel())
        }
        // A part of something larger, with steps, not from its start.
        4 | 5 => {
            let cuts: Vec<(usize, usize, usize)> =
                shape.iter().map(|&n| (draw.below(3), n, draw.pick(&[1, 1, 2, 3]))).collect();
            let whole: Vec<usize> = cuts
                .iter()
                .map(|&(start, n, step)| start + n.saturating_sub(1) * step + 1 + draw.below(2))
                .collect();
            let mut layout = Layout::contiguous(Shape::new(&whole));
            for (d, &(start, n, step)) in cuts.iter().enumerate() {
                layout = layout.slice(d, start, n, step);
            }
            (layout, whole.iter().product())
        }
        // Repeated along some dimensions.
        _ => {
            let stored: Vec<usize> = shape.iter().map(|&n| if draw.flag(2) { 1 } else { n }).collect();
            let stored = Shape::new(&stored);
            let layout = Layout::contiguous(stored).broadcast_to(&shape);
            layout.map_or(plain, |layout| (layout, stored.numel()))
        }
    }
}
