//! The GPU backend of Orkest: the kernels of `orkest-shaders` through wgpu, on Vulkan, Metal and DX12.
//!
//! Linking this crate is enough for `Device::wgpu(0)` to find it; programs depend on the facade crate `orkest` with its feature
//! `wgpu` for that. Environment: `WGPU_BACKEND` and `WGPU_ADAPTER_NAME` limit the adapters, `ORKEST_CHECKED=1` compiles shaders
//! with bounds and loop checks, `ORKEST_WGPU_FEATURES=base` does without every optional device feature, `ORKEST_WGPU_HARDWARE=1`
//! treats a software adapter like hardware when kernels are chosen, `ORKEST_CACHE_DIR` is where compiled pipelines are kept
//! between runs (empty: nowhere), `ORKEST_FUSE` fuses adjacent elementwise operations never (`0`) or at once (`1`) instead of when they
//! come together for the third time.
//!
//! | file | what it has |
//! |---|---|
//! | `device` | adapters, features, limits |
//! | `memory` | buffers: one per tensor, recycled |
//! | `stream` | recording and submission |
//! | `pipelines`, `variant`, `trim` | compiled kernels; one file, several programs; what a program does not need |
//! | `element` | how dtypes are stored |
//! | `fault` | errors that wait for the next read |
//! | `read` | reading back, blocking or not |
//! | `process` | no use of a device after `fork` |
//! | `cache` | compiled pipelines on disk |
//! | `timing` | the GPU's own times for `ORKEST_PROFILE=1` |
//! | `gpu` | all of that together: what the kernel files below are written against |
//! | `copy`, `elementwise`, `unary`, `random` | one element at a time |
//! | `matmul`, `windows` | matrix products; patches, convolution, pooling |
//! | `reduce`, `sort`, `indexing` | reductions and scans; sorting; gather, scatter and their kin |
//! | `wrapped` | i64 results that do not fit into 32 bits |
//! | `rows` | softmax, normalisation, cross-entropy |
//! | `attention` | attention by tiles, on software adapters by blocks |
//! | `recurrent` | recurrent layers, a launch or two per step |
//! | `optim` | optimizer steps |
//! | `custom` | kernels of the user's own |
//! | `fuse`, `program` | adjacent elementwise launches as one kernel; its text |
//! | `pieces` | tensors too large to be bound: the same kernels, part by part |
//!
//! # Adding a kernel
//!
//! 1. **The file**: `shaders/<family>/<name>.wgsl`, named in `FILES` of `shaders/src/lib.rs`. It is valid WGSL as it stands. It
//!    opens with a comment (what it computes, bindings, what one workgroup does, workgroup memory), then the *variant block*
//!    between the lines `// variant` and `// end variant`: one declaration per line, only `alias`, `const` (`u32` or `bool`) and
//!    the functions `load_<alias>` and `store_<alias>`, which turn a stored element into what is computed with (f32, or i32 for
//!    integers) and back. For `alias elem = f32;` write `fn load_elem(x: elem) -> f32 { return x; }` and
//!    `fn store_elem(x: f32) -> elem { return x; }`.
//! 2. **Bindings**: `@group(0) @binding(i) var<storage, read>` for the inputs in order, then `var<storage, read_write>` for the
//!    outputs, each declaration on one line. An input that is also an output (in place) is made writable by the backend.
//! 3. **Parameters**: `var<immediate> params: Params;` on one line, a struct of scalars and `vec4`s of at most 128 bytes, no arrays
//!    (it becomes a uniform where there are no immediates), no f16. On the Rust side `stream::Params` in the same order.
//! 4. **Sizes** of workgroups and workgroup arrays are `override`s, set through `constants`.
//! 5. **Grid**: `Grid::linear` folds long rows of workgroups; the kernel gets its number back as
//!    `group.x + groups.x * (group.y + groups.y * group.z)` (`workgroup_id`, `num_workgroups`) and leaves when it is past the end.
//! 6. **The launch**: `gpu.dispatch(Call { op, file, entry, variant: variant![elem: gpu.elem(dtype), OP: 3u32], constants, reads,
//!    writes, params, grid })`. Elementwise kernels go through `elementwise::run`, which does strides and in-place outputs.
//! 7. **Strides**: `gpu::strided([..])` collapses layouts to four dimensions, or says that it cannot: then `gpu.contiguous(view)`.
//!    Offsets and strides are in elements.
//! 8. **Scratch memory**: `gpu.temp(shape, dtype)`, dropped when the launch is recorded: reuse is ordered by the queue.
//! 9. **Indices that can be out of range**: bind `gpu.fault()` last, pass `gpu.site(op)`, and report as those methods say.
//! 10. **NaN and infinity**: test bits (`(bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u`), never `x != x`; make infinity from a
//!     `var` by `bitcast`; `max` and `min` drop NaN.
//! 11. **Sums over lanes**: as `row_sum` does it, with `const SUBGROUP: u32 = 1u;` and `fn shuffled` in the variant block and
//!     `variant::shuffles` at the launch: fewer barriers where there are subgroups, the same order of additions everywhere.
//! 12. **Shared text**: blocks between `// shared NAME` and `// end shared` must be the same in all files (a test compares them).
//! 13. **What can be fused**: the files named in `program.rs` have a function `element`, which computes one element of the result.
//! 14. **Tests**: `variants()` in the kernel's Rust file is called by `testing::all_variants`, whose test validates them without a device; results are
//!     compared with the reference device through public tensor operations.

mod attention;
mod cache;
mod copy;
mod custom;
mod device;
mod element;
mod elementwise;
mod fault;
mod fuse;
mod gpu;
mod indexing;
mod matmul;
mod memory;
mod optim;
mod pieces;
mod pipelines;
mod process;
mod program;
mod random;
mod read;
mod recurrent;
mod reduce;
mod rows;
mod sort;
mod stream;
#[cfg(test)]
mod testing;
mod timing;
mod trim;
mod unary;
mod variant;
mod windows;
mod wrapped;

pub use device::{Adapter, Capabilities, adapters};
pub use gpu::Gpu;

use orkest_core::op::Unary;
use orkest_core::{
    Backend, Buffer, DType, Download, Error, MemoryStats, Op, Output, Result, View, register_backend,
};

register_backend!("wgpu", open, device::list);

fn open(index: usize) -> Result<Box<dyn Backend>> {
    Ok(Box::new(Gpu::open(index)?))
}

impl Gpu {
    /// What the adapter is called, its driver and kind.
    pub fn adapter_info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }

    /// What kernels may use here.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Records the kernels of an operation whose tensors can be bound.
    fn launch(&self, op: &Op, inputs: &[View<'_>], outputs: &[Output]) -> Result<()> {
        match (op, inputs, outputs) {
            (Op::Copy, [x], [y]) => copy::copy(self, x, y),
            (&Op::Fill(value), [], [y]) => copy::fill(self, value, y),
            (&Op::Arange { start, step }, [], [y]) => copy::arange(self, start, step, y),
            (&Op::Random { kind, seed, offset }, [], [y]) => random::random(self, kind, seed, offset, y),

            (&Op::Unary(f), [x], [y]) => unary::unary(self, f, x, y),
            (&Op::UnaryGrad(f), [v, g], [dx]) => unary::unary_grad(self, f, v, g, dx),
            (&Op::Binary(f), [a, b], [y]) => elementwise::binary(self, f, a, b, y),
            (&Op::BinaryScalar { op, scalar, swapped }, [a], [y]) => {
                elementwise::binary_scalar(self, op, scalar, swapped, a, y)
            }
            (&Op::Compare(f), [a, b], [y]) => elementwise::compare(self, f, a, b, y),
            (&Op::CompareScalar(f, scalar), [a], [y]) => elementwise::compare_scalar(self, f, scalar, a, y),
            (Op::Where, [condition, a, b], [y]) => elementwise::where_(self, condition, a, b, y),
            (&Op::Dropout { p, seed, offset }, [x], [y]) => random::dropout(self, p, seed, offset, x, y),

            (&Op::Softmax { log }, [x], [y]) => rows::softmax(self, log, x, y),
            (&Op::SoftmaxGrad { log }, [y, g], [dx]) => rows::softmax_grad(self, log, y, g, dx),
            (&Op::LayerNorm { eps, weight, bias }, [x, rest @ ..], [y, mean, rstd]) => {
                let weight = weight.then(|| &rest[0]);
                let bias = if bias { rest.last() } else { None };
                rows::norm(self, eps, x, weight, bias, [y, rstd], Some(mean))
            }
            (&Op::RmsNorm { eps, .. }, [x, weight @ ..], [y, rrms]) => {
                rows::norm(self, eps, x, weight.first(), None, [y, rrms], None)
            }
            (Op::LayerNormGrad { .. }, [x, mean, rstd, weight @ .., g], [dx, parameters @ ..]) => {
                let inputs = rows::NormGrad { x, mean: Some(mean), rstd, weight: weight.first(), g };
                rows::norm_grad(self, &inputs, dx, parameters.first(), parameters.last())
            }
            (Op::RmsNormGrad { .. }, [x, rstd, weight @ .., g], [dx, parameters @ ..]) => {
                let inputs = rows::NormGrad { x, mean: None, rstd, weight: weight.first(), g };
                rows::norm_grad(self, &inputs, dx, parameters.first(), None)
            }
            (&Op::CrossEntropy { ignore_index, label_smoothing }, [x, target], [loss, lse]) => {
                let targets = rows::Targets { ignore_index, label_smoothing };
                rows::cross_entropy(self, targets, x, target, loss, lse)
            }
            (&Op::CrossEntropyGrad { ignore_index, label_smoothing }, [x, target, lse, g], [dx]) => {
                let targets = rows::Targets { ignore_index, label_smoothing };
                rows::cross_entropy_grad(self, targets, [x, target, lse, g], dx)
            }

            (&Op::Reduce(kind, dims), [x], [y]) => wrapped::reduce(self, kind, dims, x, y),
            (&Op::ArgReduce(kind, dim), [x], [y]) => reduce::arg_reduce(self, kind, dim, x, y),
            (&Op::Cumulative(kind, dim), [x], [y]) => wrapped::cumulative(self, kind, dim, x, y),
            (&Op::Gather { dim }, [x, index], [y]) => indexing::gather(self, dim.into(), x, index, y),
            (&Op::IndexSelect { dim }, [x, index], [y]) => {
                indexing::index_select(self, dim.into(), x, index, y)
            }
            (&Op::Scatter { dim, add }, [index, src], [y]) => {
                indexing::scatter(self, dim.into(), add, index, src, y)
            }
            (&Op::IndexAdd { dim }, [index, src], [y]) => {
                indexing::index_add(self, dim.into(), index, src, y)
            }
            (&Op::Sort { dim, descending }, [x], [y, at]) => {
                sort::sort(self, "sort", dim, descending, x, y, at)
            }
            (&Op::TopK { dim, largest, .. }, [x], [y, at]) => {
                sort::sort(self, "topk", dim, largest, x, y, at)
            }

            (Op::Matmul, [a, b], [y]) => wrapped::matmul(self, a, b, y),
            (&Op::Linear { activation, .. }, [x, weight, bias @ ..], [y]) => {
                matmul::linear(self, activation, x, weight, bias.first(), y)
            }
            (Op::Unfold(window), [x], [y]) => windows::unfold(self, window, x, y),
            (Op::Fold(window), [x], [y]) => wrapped::fold(self, window, x, y),
            (Op::MaxPool(window), [x], [y, at]) => windows::max_pool(self, window, x, y, at),
            (&Op::AvgPool(ref window, count), [x], [y]) => windows::avg_pool(self, window, count, x, y),
            (&Op::AvgPoolGrad(ref window, count), [g], [dx]) => {
                windows::avg_pool_grad(self, window, count, g, dx)
            }
            (&Op::Conv2d { ref window, groups, .. }, [x, weight, bias @ ..], [y]) => {
                windows::conv2d(self, window, groups, x, weight, bias.first(), y)
            }

            (&Op::Attention { scale, causal, mask }, inputs, [y, lse]) => {
                attention::attention(self, scale, causal, mask, inputs, y, lse)
            }
            (&Op::AttentionGrad { scale, causal, mask }, inputs, [dq, dk, dv]) => {
                attention::attention_grad(self, scale, causal, mask, inputs, [dq, dk, dv])
            }

            (Op::Recurrent { recurrence, bias }, inputs, outputs) => {
                recurrent::recurrent(self, recurrence, *bias, inputs, outputs)
            }
            (Op::RecurrentGrad { recurrence, bias, output, input }, inputs, outputs) => {
                recurrent::recurrent_grad(self, recurrence, [*bias, *output, *input], inputs, outputs)
            }

            (Op::AdamStep(step), grads, outputs) => optim::adam(self, step, grads, outputs),
            (Op::SgdStep(step), grads, outputs) => optim::sgd(self, step, grads, outputs),

            (Op::Custom(kernel), inputs, [y]) => custom::custom(self, kernel, inputs, y),
            _ => Err(Error::Unsupported {
                op: op.name().into(),
                dtype: outputs[0].dtype,
                device: self.name.clone(),
            }),
        }
    }
}

impl Backend for Gpu {
    fn name(&self) -> &str {
        &self.name
    }

    fn upload(&self, bytes: &[u8], dtype: DType) -> Result<Buffer> {
        self.upload(bytes, dtype)
    }

    fn allocate(&self, len: usize, dtype: DType) -> Result<Buffer> {
        self.allocate(len, dtype)
    }

    fn download(&self, view: View<'_>) -> Result<Vec<u8>> {
        self.download(&view)
    }

    fn download_async(&self, view: View<'_>) -> Download {
        match self.start_download(&view) {
            Ok(reading) => Box::pin(reading),
            Err(e) => Box::pin(std::future::ready(Err(e))),
        }
    }

    fn execute(&self, op: &Op, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
        let _profiled = self.wait_when_done();
        self.allocate_outputs(outputs)?;
        if pieces::needed(self, inputs, outputs) {
            return pieces::execute(self, op, inputs, outputs);
        }
        self.launch(op, inputs, outputs)
    }

    fn supports(&self, op: &Op, inputs: &[View<'_>]) -> bool {
        if pieces::needed(self, inputs, &[]) && !pieces::possible(op) {
            return false;
        }
        match op {
            Op::Linear { activation, .. } => {
                inputs[0].dtype.is_float() && !activation.is_some_and(Unary::is_test)
            }
            Op::UnaryGrad(_)
            | Op::Conv2d { .. }
            | Op::Dropout { .. }
            | Op::Softmax { .. }
            | Op::SoftmaxGrad { .. }
            | Op::LayerNorm { .. }
            | Op::LayerNormGrad { .. }
            | Op::RmsNorm { .. }
            | Op::RmsNormGrad { .. }
            | Op::CrossEntropy { .. }
            | Op::CrossEntropyGrad { .. } => inputs[0].dtype.is_float(),
            Op::Attention { mask, .. } | Op::AttentionGrad { mask, .. } => {
                attention::supports(self, *mask, inputs)
            }
            Op::Recurrent { .. } | Op::RecurrentGrad { .. } => recurrent::supports(inputs),
            Op::AdamStep(_) | Op::SgdStep(_) => optim::supports(inputs),
            Op::Custom(_) => true,
            _ => false,
        }
    }

    fn times_itself(&self) -> bool {
        self.capabilities.timestamps
    }

    fn synchronize(&self) -> Result<()> {
        self.synchronize()
    }

    fn memory_stats(&self) -> MemoryStats {
        self.memory_stats()
    }

    fn reset_peak_memory(&self) {
        self.reset_peak_memory();
    }

    fn clear_error(&self) {
        self.clear_error();
    }
}
