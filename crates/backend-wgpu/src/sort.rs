//! Sorting and the largest elements.

use crate::element::Elem;
use crate::gpu::{Gpu, strided, target};
use crate::memory::Memory;
use crate::stream::{Call, Grid, Params};
use crate::variant::{Value, Variant, variant};
use orkest_core::{DType, Layout, Output, Result, Shape, View};
use smallvec::smallvec;

/// Invocations per workgroup.
const WORKGROUP: usize = 256;
/// Elements that a workgroup sorts in its memory, at most.
const TILE: usize = 1024;

fn sort_variant(elem: Elem, descending: bool) -> Variant {
    variant![elem: elem, num: Value::Computed(elem), IS_FLOAT: elem.is_float(), DESCENDING: descending]
}

/// The first `count` elements along `dim` in sorted order, and their positions.
///
/// [`orkest_core::Op::Sort`] and [`orkest_core::Op::TopK`]
pub(crate) fn sort(
    gpu: &Gpu,
    op: &'static str,
    dim: usize,
    descending: bool,
    x: &View<'_>,
    values: &Output,
    positions: &Output,
) -> Result<()> {
    let shape = *x.layout.shape();
    let others = without(x.layout, dim);
    let Some(others) = strided([&others]) else {
        return sort(gpu, op, dim, descending, &gpu.contiguous(x)?.view(), values, positions);
    };
    let (n, count) = (shape[dim], values.layout.shape()[dim]);
    let inner: usize = shape[dim + 1..].iter().product();
    let lines = shape.numel() / n;
    let padded = n.next_power_of_two();
    let long = padded > TILE;
    let scratch = if long { padded * lines } else { 1 };
    let keys = gpu.temp(Shape::new(&[scratch]), DType::I32)?;
    let places = gpu.temp(Shape::new(&[scratch]), DType::I32)?;
    let tile = if long { TILE } else { padded.max(2 * WORKGROUP) };
    let launch = |entry, stage: usize, distance: usize, grid| {
        gpu.dispatch(Call {
            op,
            file: "sort/sort.wgsl",
            entry,
            variant: sort_variant(gpu.elem(x.dtype), descending),
            constants: smallvec![("WORKGROUP", WORKGROUP as u32), ("TILE", tile as u32)],
            reads: &[Memory::of(x.buffer)],
            writes: &[target(values), target(positions), keys.memory(), places.memory()],
            params: Params::new()
                .vec4(others.shape)
                .vec4(others.strides[0])
                .usize(lines)
                .usize(n)
                .usize(padded)
                .usize(count)
                .usize(inner)
                .u32(others.offsets[0])
                .i32(x.layout.strides()[dim] as i32)
                .usize(stage)
                .usize(distance),
            grid,
        })
    };
    let tiles = Grid::linear((lines * padded).div_ceil(tile));
    if !long {
        return launch("rows", 0, 0, tiles);
    }
    launch("tiles", 0, 0, tiles)?;
    let mut stage = 2 * TILE;
    while stage <= padded {
        let mut distance = stage / 2;
        while distance >= TILE {
            launch("exchange", stage, distance, Grid::linear(scratch / 2 / WORKGROUP))?;
            distance /= 2;
        }
        launch("merge", stage, 0, tiles)?;
        stage *= 2;
    }
    launch("write", 0, 0, Grid::linear((lines * count).div_ceil(WORKGROUP)))
}

/// A layout without one of its dimensions, whatever its size.
pub(crate) fn without(layout: &Layout, dim: usize) -> Layout {
    layout.slice(dim, 0, 1, 1).squeeze(dim)
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    Elem::ALL
        .into_iter()
        .flat_map(|elem| [false, true].map(|descending| ("sort/sort.wgsl", sort_variant(elem, descending))))
        .collect()
}
