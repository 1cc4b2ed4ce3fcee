//! Copies and casts, fills, ranges.

use crate::element::{Elem, scalar_bits};
use crate::elementwise;
use crate::gpu::{Gpu, Strided, strided, target};
use crate::memory::Memory;
use crate::stream::{Call, Grid, Params};
use crate::variant::{Value, Variant, variant};
use orkest_core::{DType, Layout, Output, Result, Scalar, View};
use smallvec::smallvec;

/// The variant of `cast.wgsl` that turns elements stored as `from` into `to`.
fn casting(from: Elem, to: Elem) -> Variant {
    variant![
        src: from,
        dst: to,
        src_num: Value::Computed(from),
        dst_num: Value::Computed(to),
        TO_BOOL: to == Elem::Bool,
        TO_INT: from.is_float() && !to.is_float(),
    ]
}

/// [`orkest_core::Op::Copy`]
pub(crate) fn copy(gpu: &Gpu, x: &View<'_>, y: &Output) -> Result<()> {
    let (from, to) = (gpu.elem(x.dtype), gpu.elem(y.dtype));
    if from.is_float() && y.dtype == DType::I64 {
        let variant = variant![src: from];
        return elementwise::run_reporting(gpu, "copy", "elementwise/to_i64.wgsl", variant, [x], y, []);
    }
    if from != to {
        return elementwise::run(gpu, "copy", "elementwise/cast.wgsl", casting(from, to), [x], y, []);
    }
    let variant = variant![elem: Value::Bits(from)];
    let Some(walk) = strided([&y.layout, x.layout]) else { return copy_nd(gpu, variant, x, y) };
    match turned(walk) {
        Ok(walk) => {
            let tiles = if gpu.capabilities.software { Tiles::Lines } else { Tiles::Shared };
            transpose(gpu, tiles, variant, &walk, [target(y), Memory::of(x.buffer)])
        }
        Err(_) => elementwise::run(gpu, "copy", "elementwise/copy.wgsl", variant, [x], y, []),
    }
}

/// Fewest rows and columns that are worth a tile.
const LEAST: u32 = 16;

/// A copy between layouts that differ in which dimension lies side by side, in an order of dimensions that has the result's last and the
/// other's before it. Else the walk as it was: then there is nothing to gain from tiles.
fn turned(mut walk: Strided<2>) -> Result<Strided<2>, Strided<2>> {
    let [to, from] = walk.strides.map(|strides| strides.map(|stride| (stride as i32).unsigned_abs()));
    let columns = to[3] == 1 && from[3] > 1 && walk.shape[3] >= LEAST;
    match (0..3).find(|&d| from[d] == 1 && walk.shape[d] >= LEAST).filter(|_| columns) {
        Some(d) => {
            walk.shape.swap(d, 2);
            walk.strides.iter_mut().for_each(|strides| strides.swap(d, 2));
            Ok(walk)
        }
        None => Err(walk),
    }
}

/// The ways to walk through a tile.
#[derive(Clone, Copy, Debug)]
enum Tiles {
    /// Through workgroup memory.
    Shared,
    /// Line by line.
    Lines,
}

/// The copy between the layouts of [`turned`].
fn transpose(
    gpu: &Gpu,
    tiles: Tiles,
    variant: Variant,
    walk: &Strided<2>,
    [y, x]: [&Memory; 2],
) -> Result<()> {
    let (entry, rows, columns, constants) = match tiles {
        Tiles::Shared => ("tiles", 32, 32, smallvec![("WORKGROUP", 256)]),
        Tiles::Lines => ("lines", 32, 16, smallvec![("WORKGROUP", 8)]),
    };
    let [outer, inner, z, w] = walk.shape.map(|size| size as usize);
    gpu.dispatch(Call {
        op: "copy",
        file: "elementwise/transpose.wgsl",
        entry,
        variant,
        constants,
        reads: &[x],
        writes: &[y],
        params: Params::new()
            .vec4(walk.shape)
            .vec4(walk.strides[0])
            .vec4(walk.strides[1])
            .u32(walk.offsets[0])
            .u32(walk.offsets[1]),
        grid: Grid::linear(outer * inner * z.div_ceil(rows) * w.div_ceil(columns)),
    })
}

/// A copy between layouts that do not collapse to four dimensions: sizes and strides lie in memory.
fn copy_nd(gpu: &Gpu, variant: Variant, x: &View<'_>, y: &Output) -> Result<()> {
    let [from, to] = Layout::collapse_all([x.layout, &y.layout]);
    let mut words = Vec::with_capacity(3 * from.rank());
    for d in 0..from.rank() {
        words.extend([
            from.shape()[d] as u32,
            from.strides()[d] as i32 as u32,
            to.strides()[d] as i32 as u32,
        ]);
    }
    let words = gpu.words(&words)?;
    let n = from.numel();
    let (constants, grid) = elementwise::share(gpu, n);
    gpu.dispatch(Call {
        op: "copy",
        file: "elementwise/copy_nd.wgsl",
        entry: "main",
        variant,
        constants,
        reads: &[Memory::of(x.buffer), &words],
        writes: &[target(y)],
        params: Params::new().usize(n).usize(from.rank()).usize(from.offset()).usize(to.offset()),
        grid,
    })
}

/// [`orkest_core::Op::Fill`]
pub(crate) fn fill(gpu: &Gpu, value: Scalar, y: &Output) -> Result<()> {
    let elem = gpu.elem(y.dtype);
    let variant = variant![elem: elem, num: Value::Computed(elem)];
    elementwise::run(gpu, "fill", "elementwise/fill.wgsl", variant, [], y, [scalar_bits(value, elem)?])
}

/// [`orkest_core::Op::Arange`]
pub(crate) fn arange(gpu: &Gpu, start: Scalar, step: Scalar, y: &Output) -> Result<()> {
    let elem = gpu.elem(y.dtype);
    let n = y.layout.numel();
    let variant = variant![elem: elem, num: Value::Computed(elem)];
    let last = start.as_f64() + step.as_f64() * (n - 1) as f64;
    if elem.is_float()
        && let (Some(start), Some(step), Some(_)) = (whole(start.as_f64()), whole(step.as_f64()), whole(last))
    {
        return elementwise::run(gpu, "arange", "elementwise/arange.wgsl", variant, [], y, [start, step]);
    }
    if elem.is_float() {
        // start + i * step in f64: the device has none, and such ranges are made once.
        let values: Vec<f64> = (0..n).map(|i| start.as_f64() + i as f64 * step.as_f64()).collect();
        let bytes: Vec<u8> = orkest_core::with_dtype!(y.dtype, T => {
            values.iter().flat_map(|&v| bytemuck::bytes_of(&<T as orkest_core::Element>::from_f64(v)).to_vec()).collect()
        });
        let buffer = gpu.upload(&bytes, y.dtype)?;
        let layout = Layout::contiguous(*y.layout.shape());
        return copy(gpu, &View { buffer: &buffer, layout: &layout, dtype: y.dtype }, y);
    }
    let last = start.as_i64().wrapping_add(step.as_i64().wrapping_mul(n as i64 - 1));
    crate::element::narrow(last)?;
    let words = [crate::element::narrow(start.as_i64())? as u32, step.as_i64() as i32 as u32];
    elementwise::run(gpu, "arange", "elementwise/arange.wgsl", variant, [], y, words)
}

/// A whole number that f32 holds exactly, as the bits of an i32.
fn whole(value: f64) -> Option<u32> {
    (value.fract() == 0.0 && value.abs() <= f64::from(1 << 24)).then_some(value as i32 as u32)
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = Vec::new();
    for from in Elem::ALL {
        for to in Elem::ALL {
            for strided in [false, true] {
                let mut v = casting(from, to);
                v.push(("STRIDED", Value::Bool(strided)));
                all.push(("elementwise/cast.wgsl", v));
            }
        }
        for strided in [false, true].into_iter().filter(|_| from.is_float()) {
            all.push(("elementwise/to_i64.wgsl", variant![src: from, STRIDED: strided]));
        }
        all.push(("elementwise/copy_nd.wgsl", variant![elem: Value::Bits(from)]));
        all.push(("elementwise/transpose.wgsl", variant![elem: Value::Bits(from)]));
        for strided in [false, true] {
            let num = Value::Computed(from);
            all.push(("elementwise/copy.wgsl", variant![elem: Value::Bits(from), STRIDED: strided]));
            all.push(("elementwise/fill.wgsl", variant![elem: from, num: num, STRIDED: strided]));
            all.push(("elementwise/arange.wgsl", variant![elem: from, num: num, STRIDED: strided]));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::tests::there;
    use orkest_core::Shape;

    /// Both ways through a tile, whatever the adapter, element by element.
    #[test]
    fn tiles_move_every_element_to_its_place() {
        let Some(gpu) = there(Gpu::open(0)) else { return };
        // Sizes around those of tiles; dimensions in all orders, one of them backwards.
        for (shape, order, flipped) in [
            ([1, 1, 32, 32], [0, 1, 3, 2], None),
            ([1, 1, 33, 65], [0, 1, 3, 2], None),
            ([1, 2, 16, 17], [0, 1, 3, 2], Some(2)),
            ([2, 3, 31, 40], [1, 0, 3, 2], Some(3)),
            ([3, 70, 5, 18], [3, 2, 0, 1], None),
            ([20, 3, 2, 34], [3, 1, 2, 0], Some(1)),
        ] {
            let whole = Shape::new(&shape);
            for (elem, dtype) in [(Elem::F32, DType::F32), (gpu.elem(DType::F16), DType::F16)] {
                let values: Vec<u32> = (0..whole.numel() as u32 + 3).collect();
                let bytes: Vec<u8> = match dtype.size() {
                    2 => values.iter().flat_map(|&v| (v as u16 % 31_000).to_le_bytes()).collect(),
                    _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                };
                let buffer = gpu.upload(&bytes, dtype).unwrap();
                // From the fourth element on.
                let x = Layout::new(whole, Layout::contiguous(whole).strides(), 3);
                let x = flipped.map_or(x, |d| x.flip(d)).permute(&order);
                let walk = strided([&Layout::contiguous(*x.shape()), &x]).expect("four dimensions");
                let walk = turned(walk).unwrap_or_else(|_| panic!("{shape:?} in order {order:?}"));
                for tiles in [Tiles::Shared, Tiles::Lines] {
                    let y = gpu.temp(*x.shape(), dtype).unwrap();
                    let variant = variant![elem: Value::Bits(elem)];
                    transpose(&gpu, tiles, variant, &walk, [y.memory(), Memory::of(&buffer)]).unwrap();
                    let got = gpu.download(&y.view()).unwrap();
                    let size = dtype.size();
                    let expected: Vec<u8> =
                        x.positions().flat_map(|at| bytes[at * size..][..size].to_vec()).collect();
                    assert!(got == expected, "{tiles:?}: {shape:?} in order {order:?}, {dtype}");
                }
            }
        }
    }

    #[test]
    fn only_what_lies_across_goes_by_tiles() {
        let by_tiles = |shape: &[usize], order: &[usize]| {
            let x = Layout::contiguous(Shape::new(shape)).permute(order);
            turned(strided([&Layout::contiguous(*x.shape()), &x]).unwrap()).is_ok()
        };
        assert!(by_tiles(&[64, 64], &[1, 0]));
        assert!(by_tiles(&[8, 100, 20], &[0, 2, 1]));
        assert!(!by_tiles(&[64, 64], &[0, 1]), "row-major already");
        assert!(!by_tiles(&[8, 12, 64], &[1, 0, 2]), "rows stay rows");
        assert!(!by_tiles(&[64, 3], &[1, 0]), "too narrow");
        // A column repeated: every lane reads the same element.
        let x = Layout::contiguous(Shape::new(&[64, 1])).broadcast_to(&Shape::new(&[64, 64])).unwrap();
        assert!(turned(strided([&Layout::contiguous(*x.shape()), &x]).unwrap()).is_err());
    }
}
