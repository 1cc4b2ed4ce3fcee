//! Operations on the rows of the last dimension: softmax, normalisation, cross-entropy, and their gradients.

use crate::element::Elem;
use crate::gpu::{Gpu, Temp, target};
use crate::memory::Memory;
use crate::pipelines::Constants;
use crate::stream::{Call, Grid, Params};
use crate::variant::{Variant, shuffles, variant};
use orkest_core::{DType, Output, Result, Shape, View};
use smallvec::smallvec;

/// How many invocations work on a row, and how many make a workgroup.
struct Lanes {
    lanes: usize,
    workgroup: usize,
}

impl Lanes {
    /// A workgroup for a long row, part of one for a short row. On a CPU barriers cost more than scattered reads: as many invocations
    /// as its vectors have elements, and no sharing of rows that one of them can do.
    fn new(gpu: &Gpu, op: &str, cols: usize) -> Result<Lanes> {
        let (lanes, workgroup) = match (gpu.capabilities.software, cols) {
            (true, ..=64) => (1, 8),
            (true, ..=100_000) => (8, 8),
            // As many rounds of loops as a software driver runs.
            (true, _) => (256, 256),
            (false, ..=16) => (4, 256),
            (false, ..=256) => (32, 256),
            (false, _) => (256, 256),
        };
        // A row is walked over three times.
        gpu.check_rounds(op, 3 * cols.div_ceil(lanes))?;
        Ok(Lanes { lanes, workgroup })
    }

    fn constants(&self) -> Constants {
        smallvec![("LANES", self.lanes as u32), ("WORKGROUP", self.workgroup as u32)]
    }

    fn grid(&self, rows: usize) -> Grid {
        Grid::linear(rows.div_ceil(self.workgroup / self.lanes))
    }

    /// With sums within subgroups where the adapter has them.
    fn variant(&self, gpu: &Gpu, variant: Variant) -> Variant {
        shuffles(variant, gpu.capabilities.subgroup(self.workgroup))
    }
}

/// A tensor as rows of its last dimension, row-major.
struct Rows {
    temp: Temp,
    rows: usize,
    cols: usize,
}

impl Rows {
    fn new(gpu: &Gpu, view: &View<'_>) -> Result<Rows> {
        let cols = view.layout.shape().last().copied().unwrap_or(1);
        Ok(Rows { temp: gpu.contiguous(view)?, rows: view.layout.numel() / cols, cols })
    }

    fn memory(&self) -> &Memory {
        self.temp.memory()
    }

    fn offset(&self) -> usize {
        self.temp.layout.offset()
    }
}

fn logarithm_variant(elem: Elem, log: bool) -> Variant {
    variant![elem: elem, LOG: log]
}

/// [`orkest_core::Op::Softmax`]
pub(crate) fn softmax(gpu: &Gpu, log: bool, x: &View<'_>, y: &Output) -> Result<()> {
    let x = Rows::new(gpu, x)?;
    let op = if log { "log_softmax" } else { "softmax" };
    let lanes = Lanes::new(gpu, op, x.cols)?;
    gpu.dispatch(Call {
        op,
        file: "rows/softmax.wgsl",
        entry: "main",
        variant: lanes.variant(gpu, logarithm_variant(gpu.elem(y.dtype), log)),
        constants: lanes.constants(),
        reads: &[x.memory()],
        writes: &[target(y)],
        params: Params::new().usize(x.rows).usize(x.cols).usize(x.offset()).usize(y.layout.offset()),
        grid: lanes.grid(x.rows),
    })
}

/// [`orkest_core::Op::SoftmaxGrad`]
pub(crate) fn softmax_grad(gpu: &Gpu, log: bool, y: &View<'_>, g: &View<'_>, dx: &Output) -> Result<()> {
    let (y, g) = (Rows::new(gpu, y)?, Rows::new(gpu, g)?);
    let op = if log { "log_softmax_grad" } else { "softmax_grad" };
    let lanes = Lanes::new(gpu, op, y.cols)?;
    gpu.dispatch(Call {
        op,
        file: "rows/softmax_grad.wgsl",
        entry: "main",
        variant: lanes.variant(gpu, logarithm_variant(gpu.elem(dx.dtype), log)),
        constants: lanes.constants(),
        reads: &[y.memory(), g.memory()],
        writes: &[target(dx)],
        params: Params::new()
            .usize(y.rows)
            .usize(y.cols)
            .usize(y.offset())
            .usize(g.offset())
            .usize(dx.layout.offset()),
        grid: lanes.grid(y.rows),
    })
}

/// The parts that cross-entropy and its gradient share.
#[derive(Clone, Copy)]
pub(crate) struct Targets {
    pub(crate) ignore_index: i64,
    pub(crate) label_smoothing: f64,
}

impl Targets {
    /// The ignored class and whether a target on this device can be it: they are 32-bit integers here.
    fn ignored(self) -> (i32, u32) {
        i32::try_from(self.ignore_index).map_or((0, 0), |i| (i, 1))
    }
}

/// [`orkest_core::Op::CrossEntropy`]
pub(crate) fn cross_entropy(
    gpu: &Gpu,
    targets: Targets,
    x: &View<'_>,
    target_class: &View<'_>,
    loss: &Output,
    lse: &Output,
) -> Result<()> {
    let (x, class) = (Rows::new(gpu, x)?, gpu.contiguous(target_class)?);
    let lanes = Lanes::new(gpu, "cross_entropy", x.cols)?;
    let (ignored, can_ignore) = targets.ignored();
    gpu.dispatch(Call {
        op: "cross_entropy",
        file: "rows/cross_entropy.wgsl",
        entry: "main",
        variant: lanes.variant(gpu, variant![elem: gpu.elem(loss.dtype)]),
        constants: lanes.constants(),
        reads: &[x.memory(), class.memory()],
        writes: &[target(loss), target(lse), gpu.fault()],
        params: Params::new()
            .usize(x.rows)
            .usize(x.cols)
            .usize(x.offset())
            .usize(class.layout.offset())
            .usize(loss.layout.offset())
            .usize(lse.layout.offset())
            .i32(ignored)
            .u32(can_ignore)
            .f32((1.0 - targets.label_smoothing) as f32)
            .f32(targets.label_smoothing as f32)
            .u32(gpu.site("cross_entropy")),
        grid: lanes.grid(x.rows),
    })
}

/// [`orkest_core::Op::CrossEntropyGrad`]
pub(crate) fn cross_entropy_grad(
    gpu: &Gpu,
    targets: Targets,
    [x, target_class, lse, g]: [&View<'_>; 4],
    dx: &Output,
) -> Result<()> {
    const WORKGROUP: usize = 256;
    let x = Rows::new(gpu, x)?;
    let (class, lse, g) = (gpu.contiguous(target_class)?, gpu.contiguous(lse)?, gpu.contiguous(g)?);
    let (ignored, can_ignore) = targets.ignored();
    gpu.dispatch(Call {
        op: "cross_entropy_grad",
        file: "rows/cross_entropy_grad.wgsl",
        entry: "main",
        variant: variant![elem: gpu.elem(dx.dtype)],
        constants: smallvec![("WORKGROUP", WORKGROUP as u32)],
        reads: &[x.memory(), class.memory(), lse.memory(), g.memory()],
        writes: &[target(dx), gpu.fault()],
        params: Params::new()
            .usize(x.rows)
            .usize(x.cols)
            .usize(x.offset())
            .usize(class.layout.offset())
            .usize(lse.layout.offset())
            .usize(g.layout.offset())
            .usize(dx.layout.offset())
            .i32(ignored)
            .u32(can_ignore)
            .f32((1.0 - targets.label_smoothing) as f32)
            .f32((targets.label_smoothing / x.cols as f64) as f32)
            .u32(gpu.site("cross_entropy_grad")),
        grid: Grid::linear((x.rows * x.cols).div_ceil(WORKGROUP)),
    })
}

fn norm_variant(elem: Elem, mean: bool, weight: bool, bias: bool) -> Variant {
    variant![elem: elem, MEAN: mean, WEIGHT: weight, BIAS: bias]
}

/// [`orkest_core::Op::LayerNorm`] (with `mean`) and [`orkest_core::Op::RmsNorm`] (without).
pub(crate) fn norm(
    gpu: &Gpu,
    eps: f64,
    x: &View<'_>,
    weight: Option<&View<'_>>,
    bias: Option<&View<'_>>,
    [y, rstd]: [&Output; 2],
    mean: Option<&Output>,
) -> Result<()> {
    let x = Rows::new(gpu, x)?;
    let weight = weight.map(|v| gpu.contiguous(v)).transpose()?;
    let bias = bias.map(|v| gpu.contiguous(v)).transpose()?;
    let unused = mean.is_none().then(|| gpu.temp(Shape::from(1), DType::F32)).transpose()?;
    let op = if mean.is_some() { "layer_norm" } else { "rms_norm" };
    let lanes = Lanes::new(gpu, op, x.cols)?;
    let offset = |t: &Option<Temp>| t.as_ref().map_or(0, |t| t.layout.offset());
    gpu.dispatch(Call {
        op,
        file: "rows/norm.wgsl",
        entry: "main",
        variant: lanes
            .variant(gpu, norm_variant(gpu.elem(y.dtype), mean.is_some(), weight.is_some(), bias.is_some())),
        constants: lanes.constants(),
        reads: &[
            x.memory(),
            weight.as_ref().map_or(x.memory(), Temp::memory),
            bias.as_ref().map_or(x.memory(), Temp::memory),
        ],
        writes: &[
            target(y),
            unused.as_ref().map_or_else(|| target(mean.unwrap_or(rstd)), Temp::memory),
            target(rstd),
        ],
        params: Params::new()
            .usize(x.rows)
            .usize(x.cols)
            .usize(x.offset())
            .usize(offset(&weight))
            .usize(offset(&bias))
            .usize(y.layout.offset())
            .usize(mean.map_or(0, |m| m.layout.offset()))
            .usize(rstd.layout.offset())
            .f32(eps as f32),
        grid: lanes.grid(x.rows),
    })
}

/// What a gradient of normalised rows is computed from; `mean` is there for layer normalisation only.
pub(crate) struct NormGrad<'a> {
    pub(crate) x: &'a View<'a>,
    pub(crate) mean: Option<&'a View<'a>>,
    pub(crate) rstd: &'a View<'a>,
    pub(crate) weight: Option<&'a View<'a>>,
    pub(crate) g: &'a View<'a>,
}

/// [`orkest_core::Op::LayerNormGrad`] and [`orkest_core::Op::RmsNormGrad`]: `dx`, and `dweight` and `dbias` where there are outputs for them.
pub(crate) fn norm_grad(
    gpu: &Gpu,
    inputs: &NormGrad<'_>,
    dx: &Output,
    dweight: Option<&Output>,
    dbias: Option<&Output>,
) -> Result<()> {
    let (x, g) = (Rows::new(gpu, inputs.x)?, Rows::new(gpu, inputs.g)?);
    let rstd = gpu.contiguous(inputs.rstd)?;
    let mean = inputs.mean.map(|v| gpu.contiguous(v)).transpose()?;
    let weight = inputs.weight.map(|v| gpu.contiguous(v)).transpose()?;
    let op = if mean.is_some() { "layer_norm_grad" } else { "rms_norm_grad" };
    let lanes = Lanes::new(gpu, op, x.cols)?;
    let offset = |t: &Option<Temp>| t.as_ref().map_or(0, |t| t.layout.offset());
    let mean_memory = mean.as_ref().map_or(rstd.memory(), Temp::memory);
    gpu.dispatch(Call {
        op,
        file: "rows/norm_grad.wgsl",
        entry: "main",
        variant: lanes
            .variant(gpu, variant![elem: gpu.elem(dx.dtype), MEAN: mean.is_some(), WEIGHT: weight.is_some()]),
        constants: lanes.constants(),
        reads: &[
            x.memory(),
            mean_memory,
            rstd.memory(),
            weight.as_ref().map_or(x.memory(), Temp::memory),
            g.memory(),
        ],
        writes: &[target(dx)],
        params: Params::new()
            .usize(x.rows)
            .usize(x.cols)
            .usize(x.offset())
            .usize(offset(&mean))
            .usize(rstd.layout.offset())
            .usize(offset(&weight))
            .usize(g.offset())
            .usize(dx.layout.offset()),
        grid: lanes.grid(x.rows),
    })?;

    let Some(dweight) = dweight else { return Ok(()) };
    // Enough workgroups to fill a device, and few enough chunks to add up afterwards.
    let (columns, workgroup) = if gpu.capabilities.software { (8, 8) } else { (32, 256) };
    let blocks = x.cols.div_ceil(columns);
    let most = if gpu.capabilities.software { 16 } else { 1024 }.max(blocks) / blocks;
    let chunk = x.rows.div_ceil(most).max(64).min(gpu.capabilities.rounds);
    let chunks = x.rows.div_ceil(chunk);
    let sums = gpu.temp(Shape::from([chunks, 2, x.cols]), DType::F32)?;
    gpu.dispatch(Call {
        op,
        file: "rows/norm_columns.wgsl",
        entry: "main",
        variant: variant![elem: gpu.elem(dx.dtype), MEAN: mean.is_some()],
        constants: smallvec![("COLUMNS", columns as u32), ("WORKGROUP", workgroup)],
        reads: &[x.memory(), mean_memory, rstd.memory(), g.memory()],
        writes: &[sums.memory()],
        params: Params::new()
            .usize(x.rows)
            .usize(x.cols)
            .usize(x.offset())
            .usize(offset(&mean))
            .usize(rstd.layout.offset())
            .usize(g.offset())
            .usize(chunk)
            .usize(chunks),
        grid: Grid::linear(blocks * chunks),
    })?;
    let unused = dbias.is_none().then(|| gpu.temp(Shape::from(1), DType::F32)).transpose()?;
    gpu.dispatch(Call {
        op,
        file: "rows/norm_finish.wgsl",
        entry: "main",
        variant: variant![elem: gpu.elem(dweight.dtype), BIAS: dbias.is_some()],
        constants: smallvec![("WORKGROUP", 64)],
        reads: &[sums.memory()],
        writes: &[
            target(dweight),
            unused.as_ref().map_or_else(|| target(dbias.unwrap_or(dweight)), Temp::memory),
        ],
        params: Params::new()
            .usize(x.cols)
            .usize(chunks)
            .usize(dweight.layout.offset())
            .usize(dbias.map_or(0, |d| d.layout.offset())),
        grid: Grid::linear(x.cols.div_ceil(64)),
    })
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = Vec::new();
    for (elem, subgroup) in Elem::ALL.into_iter().filter(|e| e.is_float()).flat_map(|e| [(e, 1), (e, 32)]) {
        all.push(("rows/cross_entropy.wgsl", shuffles(variant![elem: elem], subgroup)));
        all.push(("rows/cross_entropy_grad.wgsl", variant![elem: elem]));
        for a in [false, true] {
            all.push(("rows/softmax.wgsl", shuffles(logarithm_variant(elem, a), subgroup)));
            all.push(("rows/softmax_grad.wgsl", shuffles(logarithm_variant(elem, a), subgroup)));
            all.push(("rows/norm_columns.wgsl", variant![elem: elem, MEAN: a]));
            all.push(("rows/norm_finish.wgsl", variant![elem: elem, BIAS: a]));
            for b in [false, true] {
                let grad = variant![elem: elem, MEAN: a, WEIGHT: b];
                all.push(("rows/norm_grad.wgsl", shuffles(grad, subgroup)));
                for c in [false, true] {
                    all.push(("rows/norm.wgsl", shuffles(norm_variant(elem, a, b, c), subgroup)));
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reduce::reduce;
    use orkest_core::op::Reduce;
    use orkest_core::{Buffer, DimSet, Generator, Layout};

    /// What kernels that add up over lanes make of some rows, as bytes.
    fn outcomes(gpu: &Gpu, x: &Buffer, target_class: &Buffer, rows: usize, cols: usize) -> Vec<Vec<u8>> {
        let layout = Layout::contiguous(Shape::from([rows, cols]));
        let per_row = Layout::contiguous(Shape::from(rows));
        let x = View { buffer: x, layout: &layout, dtype: DType::F32 };
        let class = View { buffer: target_class, layout: &per_row, dtype: DType::I32 };
        let matrix = || gpu.temp(*layout.shape(), DType::F32).unwrap();
        let column = || gpu.temp(*per_row.shape(), DType::F32).unwrap();
        let made = [matrix(), matrix(), matrix(), column(), column(), column(), column(), column()];
        let [soft, soft_grad, normed, mean, rstd, loss, lse, sum] = made.each_ref().map(Temp::output);
        softmax(gpu, false, &x, &soft).unwrap();
        softmax_grad(gpu, true, &x, &x, &soft_grad).unwrap();
        norm(gpu, 1e-5, &x, None, None, [&normed, &rstd], Some(&mean)).unwrap();
        let targets = Targets { ignore_index: -100, label_smoothing: 0.1 };
        cross_entropy(gpu, targets, &x, &class, &loss, &lse).unwrap();
        reduce(gpu, Reduce::Sum, DimSet::one(1), &x, &sum).unwrap();
        made.iter().map(|temp| gpu.download(&temp.view()).unwrap()).collect()
    }

    #[test]
    fn sums_over_lanes_have_the_same_bits_with_subgroups_of_any_size_and_with_none() {
        let mut gpu = match Gpu::open(0) {
            Ok(gpu) => gpu,
            Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
            Err(_) => return println!("skipped: no adapter"),
        };
        let [least, most] = gpu.capabilities.subgroup_size;
        if !gpu.capabilities.subgroups {
            return println!("skipped: the adapter has no subgroups");
        }
        for (rows, cols) in [(37, 3), (9, 50), (5, 3000)] {
            let mut values = vec![0.0f32; rows * cols];
            Generator::new(cols as u64).fill_normal_f32(&mut values, 0.0, 1.0);
            let x = gpu.upload(bytemuck::cast_slice(&values), DType::F32).unwrap();
            let class = gpu.upload(bytemuck::cast_slice(&vec![1i32; rows]), DType::I32).unwrap();
            for software in [false, true] {
                gpu.capabilities.software = software;
                gpu.capabilities.subgroups = false;
                let expected = outcomes(&gpu, &x, &class, rows, cols);
                gpu.capabilities.subgroups = true;
                // What every size of at most the real one promises is true.
                for size in [2, 4, 8, 16, 32].into_iter().filter(|&size| size <= least) {
                    gpu.capabilities.subgroup_size = [size, most];
                    assert!(
                        outcomes(&gpu, &x, &class, rows, cols) == expected,
                        "{rows} x {cols}, software: {software}, subgroups of {size}"
                    );
                }
            }
        }
    }
}
