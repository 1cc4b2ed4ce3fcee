//! Sliding windows: patches, convolution and pooling.

use crate::element::Elem;
use crate::elementwise;
use crate::gpu::{Gpu, memories, target};
use crate::matmul::{Bias, Factor, Product};
use crate::memory::Memory;
use crate::stream::{Call, Grid, Params};
use crate::variant::{Value, Variant, variant};
use orkest_core::op::Window;
use orkest_core::{Error, Layout, Output, Result, Shape, View};
use smallvec::smallvec;

/// Invocations per workgroup, one element each.
const WORKGROUP: usize = 256;
/// Most elements of patches that a convolution writes down at once.
const PATCHES: usize = 1 << 24;

/// Launches a kernel over the elements of the row-major `writes`, `n` of them each, which read `x` with these strides.
fn run(
    gpu: &Gpu,
    op: &'static str,
    file: &'static str,
    variant: Variant,
    w: &Window,
    channels: usize,
    x: &View<'_>,
    strides: [isize; 4],
    writes: &[&Memory],
    n: usize,
) -> Result<()> {
    gpu.check_rounds(op, w.kernel.iter().product())?;
    let pair = |[height, width]: [usize; 2]| [height as u32, width as u32];
    let two = |a: [usize; 2], b: [usize; 2]| [pair(a)[0], pair(a)[1], pair(b)[0], pair(b)[1]];
    let (constants, grid) = match file {
        UNFOLD => elementwise::share(gpu, n),
        _ => (smallvec![("WORKGROUP", WORKGROUP as u32)], Grid::linear(n.div_ceil(WORKGROUP))),
    };
    gpu.dispatch(Call {
        op,
        file,
        entry: "main",
        variant,
        constants,
        reads: &memories(&[*x]),
        writes,
        params: Params::new()
            .vec4(strides.map(|s| s as i32 as u32))
            .vec4(two(w.input, w.output()))
            .vec4(two(w.kernel, w.stride))
            .vec4(two(w.padding, w.dilation))
            .usize(n)
            .usize(channels)
            .usize(x.layout.offset()),
        grid,
    })
}

const UNFOLD: &str = "windows/unfold.wgsl";

fn four(layout: &Layout) -> [isize; 4] {
    std::array::from_fn(|d| layout.strides()[d])
}

fn float(gpu: &Gpu, op: &str, x: &View<'_>) -> Result<Elem> {
    let elem = gpu.elem(x.dtype);
    if elem.is_float() {
        Ok(elem)
    } else {
        Err(Error::Unsupported { op: op.into(), dtype: x.dtype, device: gpu.name.clone() })
    }
}

/// [`orkest_core::Op::Unfold`]
pub(crate) fn unfold(gpu: &Gpu, w: &Window, x: &View<'_>, y: &Output) -> Result<()> {
    unfold_to(gpu, "unfold", w, x, target(y))
}

fn unfold_to(gpu: &Gpu, op: &'static str, w: &Window, x: &View<'_>, y: &Memory) -> Result<()> {
    let [images, channels] = [x.layout.shape()[0], x.layout.shape()[1]];
    let [height, width] = w.output();
    let n = images * channels * w.kernel[0] * w.kernel[1] * height * width;
    let variant = variant![elem: Value::Bits(gpu.elem(x.dtype))];
    run(gpu, op, UNFOLD, variant, w, channels, x, four(x.layout), &[y], n)
}

/// [`orkest_core::Op::Fold`]
pub(crate) fn fold(gpu: &Gpu, w: &Window, x: &View<'_>, y: &Output) -> Result<()> {
    let elem = gpu.elem(x.dtype);
    let &[image, patch_row, step] = x.layout.strides() else { unreachable!("patches have 3 dimensions") };
    let strides = [image, patch_row, step * w.output()[1] as isize, step];
    let (channels, n) = (y.layout.shape()[1], y.layout.numel());
    let variant = variant![elem: elem, num: Value::Computed(elem)];
    run(gpu, "fold", "windows/fold.wgsl", variant, w, channels, x, strides, &[target(y)], n)
}

/// [`orkest_core::Op::MaxPool`]
pub(crate) fn max_pool(gpu: &Gpu, w: &Window, x: &View<'_>, y: &Output, at: &Output) -> Result<()> {
    let variant = max_pool_variant(gpu.elem(x.dtype));
    let (channels, n) = (x.layout.shape()[1], y.layout.numel());
    let writes = [target(y), target(at)];
    run(gpu, "max_pool2d", "windows/max_pool.wgsl", variant, w, channels, x, four(x.layout), &writes, n)
}

fn max_pool_variant(elem: Elem) -> Variant {
    variant![elem: elem, num: Value::Computed(elem), IS_FLOAT: elem.is_float()]
}

/// [`orkest_core::Op::AvgPool`]
pub(crate) fn avg_pool(gpu: &Gpu, w: &Window, count_padding: bool, x: &View<'_>, y: &Output) -> Result<()> {
    let variant = variant![elem: float(gpu, "avg_pool2d", x)?, COUNT_PADDING: count_padding];
    let (channels, n) = (x.layout.shape()[1], y.layout.numel());
    run(gpu, "avg_pool2d", "windows/avg_pool.wgsl", variant, w, channels, x, four(x.layout), &[target(y)], n)
}

/// [`orkest_core::Op::AvgPoolGrad`]
pub(crate) fn avg_pool_grad(
    gpu: &Gpu,
    w: &Window,
    count_padding: bool,
    g: &View<'_>,
    dx: &Output,
) -> Result<()> {
    let op = "avg_pool2d_grad";
    let variant = variant![elem: float(gpu, op, g)?, COUNT_PADDING: count_padding];
    let (channels, n) = (g.layout.shape()[1], dx.layout.numel());
    let file = "windows/avg_pool_grad.wgsl";
    run(gpu, op, file, variant, w, channels, g, four(g.layout), &[target(dx)], n)
}

/// [`orkest_core::Op::Conv2d`]: the weight times the patches, for as many images at a time as their patches may take memory.
pub(crate) fn conv2d(
    gpu: &Gpu,
    w: &Window,
    groups: usize,
    x: &View<'_>,
    weight: &View<'_>,
    bias: Option<&View<'_>>,
    y: &Output,
) -> Result<()> {
    let weight = gpu.contiguous(weight)?;
    let out = weight.layout.shape()[0];
    let k = weight.layout.numel() / out;
    let [images, channels] = [x.layout.shape()[0], x.layout.shape()[1]];
    let windows: usize = w.output().iter().product();
    let out_image = out * windows;
    let elem = gpu.elem(y.dtype);
    let product = |patches: &View<'_>, strides: [isize; 4], first: usize, count: usize| {
        Product {
            op: "conv2d",
            batch: [count, groups],
            m: out / groups,
            n: windows,
            k,
            a: Factor {
                memory: weight.memory(),
                elem,
                offset: weight.layout.offset(),
                strides: [0, (out / groups * k) as isize, k as isize, 1],
            },
            b: Factor { memory: Memory::of(patches.buffer), elem, offset: patches.layout.offset(), strides },
            bias: bias.map(|b| {
                let step = b.layout.strides()[0];
                Bias {
                    memory: Memory::of(b.buffer),
                    offset: b.layout.offset(),
                    strides: [step * (out / groups) as isize, step, 0],
                }
            }),
            activation: None,
            y: target(y),
            y_elem: elem,
            y_offset: first * out_image,
        }
        .run(gpu)
    };
    let [image, channel, row, column] = four(x.layout);
    let points_are_patches = w.kernel == [1, 1] && w.stride == [1, 1] && w.padding == [0, 0];
    if points_are_patches && row == column * w.input[1] as isize {
        return product(x, [image, (channels / groups) as isize * channel, column, channel], 0, images);
    }
    let patch = channels * w.kernel[0] * w.kernel[1] * windows;
    let at_once = (PATCHES.min(gpu.bindable as usize / elem.size()) / patch).clamp(1, images);
    for first in (0..images).step_by(at_once) {
        let count = at_once.min(images - first);
        let layout = x.layout.slice(0, first, count, 1);
        let patches = gpu.temp(Shape::new(&[count, patch]), x.dtype)?;
        unfold_to(gpu, "conv2d", w, &View { layout: &layout, ..*x }, patches.memory())?;
        let strides = [patch as isize, (k * windows) as isize, 1, windows as isize];
        product(&patches.view(), strides, first, count)?;
    }
    Ok(())
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = Vec::new();
    for elem in Elem::ALL {
        all.push((UNFOLD, variant![elem: Value::Bits(elem)]));
        all.push(("windows/fold.wgsl", variant![elem: elem, num: Value::Computed(elem)]));
        all.push(("windows/max_pool.wgsl", max_pool_variant(elem)));
        for count_padding in [false, true].into_iter().filter(|_| elem.is_float()) {
            for file in ["windows/avg_pool.wgsl", "windows/avg_pool_grad.wgsl"] {
                all.push((file, variant![elem: elem, COUNT_PADDING: count_padding]));
            }
        }
    }
    all
}
