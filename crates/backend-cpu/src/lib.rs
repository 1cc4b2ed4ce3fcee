//! The CPU backend of Orkest: vectorised, multi-threaded kernels behind [`orkest_core::Backend`].
//!
//! Linking this crate is enough for `Device::cpu()` to find it; programs depend on the facade crate `orkest` for that. Two
//! environment variables are read once: `ORKEST_NUM_THREADS` (threads per operation, the caller included; default: physical
//! cores) and `ORKEST_SIMD` (`baseline`, `avx2`, `avx512`: the most that may be used).
//!
//! ```
//! use orkest_core::{Device, Tensor};
//! use orkest_cpu as _; // linking it is enough
//!
//! let device = Device::cpu();
//! assert_eq!(device.backend().name(), "cpu");
//! let x = Tensor::new([[1.0f32, 2.0], [3.0, 4.0]], &device);
//! assert_eq!((&x * 2.0).sum(1).to_vec::<f32>().unwrap(), [6.0, 14.0]);
//! ```
//!
//! | file | what it has |
//! |---|---|
//! | `memory` | buffers: aligned, recycled, counted |
//! | `parallel` | the thread pool |
//! | `simd`, `math` | one source for several instruction sets; elementary functions that vectorise |
//! | `chunks` | strided tensors as short contiguous slices, which is all that most kernels see |
//! | `transpose` | square tiles turned over in registers, for `copy` |
//! | `copy`, `elementwise`, `unary`, `random` | one element at a time |
//! | `reduce`, `cumulative` | sums, extrema, running sums |
//! | `rows`, `softmax`, `norm`, `batch_norm`, `loss`, `element_loss`, `optim` | fused operations, one pass over memory |
//! | `matmul`, `conv`, `convolution`, `pool`, `attention` | products and windows |
//! | `resample`, `adaptive_pool` | planes of another size |
//! | `recurrent` | whole recurrent layers, forwards and backwards through time |
//! | `indexing`, `sort` | elements by position |
//!
//! Results do not depend on the number of threads: work is cut into pieces of fixed size wherever the cut could be seen.

#[cfg(test)]
mod accuracy;
mod adaptive_pool;
mod attention;
mod batch_norm;
mod chunks;
mod conv;
mod convolution;
mod copy;
mod cumulative;
mod element_loss;
mod elementwise;
mod gemm;
#[cfg(test)]
mod ieee;
mod indexing;
mod loss;
mod math;
mod matmul;
mod memory;
mod norm;
mod optim;
#[cfg(test)]
mod oracle;
pub mod parallel;
mod pool;
mod random;
mod recurrent;
mod reduce;
mod resample;
mod rows;
pub mod simd;
mod softmax;
mod sort;
#[cfg(test)]
mod testing;
mod transpose;
mod unary;

pub use memory::{CpuBuffer, memory_stats};

use orkest_core::{
    Backend, Buffer, DType, DeviceInfo, DeviceType, Kernel, Layout, MemoryStats, Op, Output, Result, View,
    register_backend,
};
use std::sync::Arc;

/// The CPU.
pub struct Cpu;

register_backend!("cpu", open, || vec![about()]);

fn open(_index: usize) -> Result<Box<dyn Backend>> {
    parallel::requested_threads()?;
    Ok(Box::new(Cpu))
}

/// What is known of the processor, for lists of devices.
fn about() -> DeviceInfo {
    let mut info = DeviceInfo::new("cpu", DeviceType::Cpu);
    let file = |path| std::fs::read_to_string(path).unwrap_or_default(); // Linux has these
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    info.description =
        field(&file("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    info.details = vec![
        ("kernels", format!("{:?}", simd::level()).to_lowercase()),
        ("threads", parallel::num_threads().to_string()),
    ];
    info.memory = field(&file("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.strip_suffix("kB")?.trim().parse().ok())
        .map(|kib: u64| kib * 1024);
    info
}

impl Backend for Cpu {
    fn name(&self) -> &str {
        "cpu"
    }

    fn memory_stats(&self) -> MemoryStats {
        memory::memory_stats()
    }

    fn reset_peak_memory(&self) {
        memory::reset_peak_memory();
    }

    fn upload(&self, bytes: &[u8], _dtype: DType) -> Result<Buffer> {
        let buffer = CpuBuffer::new(bytes.len())?;
        // SAFETY: the new buffer has room for the bytes and nobody else knows it.
        unsafe { buffer.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(Arc::new(buffer))
    }

    fn allocate(&self, len: usize, dtype: DType) -> Result<Buffer> {
        Ok(Arc::new(CpuBuffer::new(len.saturating_mul(dtype.size()))?))
    }

    fn download(&self, view: View<'_>) -> Result<Vec<u8>> {
        let size = view.dtype.size();
        let start = view.layout.offset() * size;
        // SAFETY: the view is row-major and lies within its buffer, whose elements have been written.
        let bytes = unsafe {
            std::slice::from_raw_parts(memory::input_ptr::<u8>(&view).add(start), view.layout.numel() * size)
        };
        Ok(bytes.to_vec())
    }

    fn execute(&self, op: &Op, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
        memory::allocate_outputs(outputs)?;
        match *op {
            Op::Copy => copy::copy(inputs, outputs),
            Op::Fill(value) => copy::fill(value, outputs),
            Op::Arange { start, step } => copy::arange(start, step, outputs),
            Op::Random { kind, seed, offset } => random::random(kind, seed, offset, outputs),

            Op::Unary(kind) => unary::unary(kind, inputs, outputs),
            Op::UnaryGrad(kind) => unary::unary_grad(kind, inputs, outputs),
            Op::Binary(kind) => elementwise::binary(kind, inputs, outputs),
            Op::BinaryScalar { op, scalar, swapped } => {
                elementwise::binary_scalar(op, scalar, swapped, inputs, outputs)
            }
            Op::Compare(kind) => elementwise::compare(kind, inputs, outputs),
            Op::CompareScalar(kind, scalar) => elementwise::compare_scalar(kind, scalar, inputs, outputs),
            Op::Where => elementwise::where_(inputs, outputs),
            Op::Dropout { p, seed, offset } => random::dropout(p, seed, offset, inputs, outputs),

            Op::Reduce(kind, dims) => reduce::reduce(kind, dims, inputs, outputs),
            Op::ArgReduce(kind, dim) => reduce::arg_reduce(kind, dim, inputs, outputs),
            Op::Cumulative(kind, dim) => cumulative::cumulative(kind, dim, inputs, outputs),

            Op::Matmul => matmul::matmul(inputs, outputs),
            Op::Linear { bias, activation } => matmul::linear(bias, activation, inputs, outputs),
            Op::Attention { scale, causal, mask } => {
                attention::attention(scale, causal, mask, inputs, outputs)
            }
            Op::AttentionGrad { scale, causal, mask } => {
                attention::attention_grad(scale, causal, mask, inputs, outputs)
            }

            Op::Gather { dim } => indexing::gather(dim, inputs, outputs),
            Op::Scatter { dim, add } => indexing::scatter(dim, add, inputs, outputs),
            Op::IndexSelect { dim } => indexing::index_select(dim, inputs, outputs),
            Op::IndexAdd { dim } => indexing::index_add(dim, inputs, outputs),
            Op::Sort { dim, descending } => sort::sort(dim, descending, inputs, outputs),
            Op::TopK { k, dim, largest } => sort::top_k(k, dim, largest, inputs, outputs),

            Op::Unfold(window) => conv::unfold(&window, inputs, outputs),
            Op::Fold(window) => conv::fold(&window, inputs, outputs),
            Op::Conv2d { window, groups, bias } => {
                convolution::conv2d(&window, groups, bias, inputs, outputs)
            }
            Op::Conv2dInputGrad { window, groups } => {
                convolution::conv2d_input_grad(&window, groups, inputs, outputs)
            }
            Op::Conv2dWeightGrad { window, groups } => {
                convolution::conv2d_weight_grad(&window, groups, inputs, outputs)
            }
            Op::MaxPool(window) => pool::max_pool(&window, inputs, outputs),
            Op::AvgPool(window, count_padding) => pool::avg_pool(&window, count_padding, inputs, outputs),
            Op::AvgPoolGrad(window, count_padding) => {
                pool::avg_pool_grad(&window, count_padding, inputs, outputs)
            }

            Op::AdaptiveMaxPool { output } => adaptive_pool::adaptive_max_pool(output, inputs, outputs),
            Op::Resample { ref axes, adjoint } => resample::resample(axes, adjoint, inputs, outputs),

            Op::Softmax { log } => softmax::softmax(log, inputs, outputs),
            Op::SoftmaxGrad { log } => softmax::softmax_grad(log, inputs, outputs),
            Op::LayerNorm { eps, weight, bias } => norm::layer_norm(eps, weight, bias, inputs, outputs),
            Op::LayerNormGrad { weight } => norm::layer_norm_grad(weight, inputs, outputs),
            Op::RmsNorm { eps, weight } => norm::rms_norm(eps, weight, inputs, outputs),
            Op::RmsNormGrad { weight } => norm::rms_norm_grad(weight, inputs, outputs),
            Op::BatchNorm { eps, weight, bias } => batch_norm::batch_norm(eps, weight, bias, inputs, outputs),
            Op::BatchNormGrad { eps, weight } => batch_norm::batch_norm_grad(eps, weight, inputs, outputs),
            Op::ScaleChannels => batch_norm::scale_channels(inputs, outputs),
            Op::ScaleChannelsGrad => batch_norm::scale_channels_grad(inputs, outputs),
            Op::Triangle { diagonal, upper } => copy::triangle(diagonal, upper, inputs, outputs),
            Op::CrossEntropy { ignore_index, label_smoothing } => {
                loss::cross_entropy(ignore_index, label_smoothing, inputs, outputs)
            }
            Op::CrossEntropyGrad { ignore_index, label_smoothing } => {
                loss::cross_entropy_grad(ignore_index, label_smoothing, inputs, outputs)
            }
            Op::ElementLoss { loss, reduce } => element_loss::element_loss(loss, reduce, inputs, outputs),
            Op::ElementLossGrad { loss, reduce, .. } => {
                element_loss::element_loss_grad(loss, reduce, inputs, outputs)
            }
            Op::Recurrent { ref recurrence, bias } => recurrent::recurrent(recurrence, bias, inputs, outputs),
            Op::RecurrentGrad { ref recurrence, bias, output, input } => {
                recurrent::recurrent_grad(recurrence, bias, output, input, inputs, outputs)
            }
            Op::AdamStep(step) => optim::adam_step(&step, inputs, outputs),
            Op::SgdStep(step) => optim::sgd_step(&step, inputs, outputs),

            Op::Custom(ref kernel) => custom(kernel, inputs, outputs),
            _ => Err(orkest_core::Error::Unsupported {
                op: op.name().into(),
                dtype: outputs[0].dtype,
                device: self.name().into(),
            }),
        }
    }

    fn reuses_operands(&self) -> bool {
        true
    }

    fn supports(&self, op: &Op, inputs: &[View<'_>]) -> bool {
        let float = matches!(inputs[0].dtype, DType::F32 | DType::F64);
        match op {
            Op::UnaryGrad(_) | Op::Dropout { .. } => inputs[0].dtype.is_float(),
            Op::Softmax { .. }
            | Op::SoftmaxGrad { .. }
            | Op::LayerNorm { .. }
            | Op::LayerNormGrad { .. }
            | Op::RmsNorm { .. }
            | Op::RmsNormGrad { .. }
            | Op::BatchNorm { .. }
            | Op::BatchNormGrad { .. }
            | Op::CrossEntropy { .. }
            | Op::CrossEntropyGrad { .. }
            | Op::ElementLoss { .. }
            | Op::ElementLossGrad { .. }
            | Op::ScaleChannels
            | Op::ScaleChannelsGrad
            | Op::AdaptiveMaxPool { .. }
            | Op::Resample { .. } => float,
            Op::Recurrent { .. } | Op::RecurrentGrad { .. } | Op::AdamStep(_) | Op::SgdStep(_) => {
                inputs.iter().all(|v| v.dtype == inputs[0].dtype) && float
            }
            Op::Linear { .. } => matmul::supports_linear(inputs),
            Op::Conv2d { .. } | Op::Conv2dInputGrad { .. } | Op::Conv2dWeightGrad { .. } => {
                convolution::supports(inputs)
            }
            Op::Attention { .. } | Op::AttentionGrad { .. } => attention::supports_attention(inputs),
            Op::Triangle { .. } | Op::Custom(_) => true,
            _ => false,
        }
    }
}

/// Runs a user's kernel on its inputs, made row-major where they are not.
fn custom(kernel: &Kernel, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let mut copies = Vec::with_capacity(inputs.len());
    for input in inputs {
        let layout = Layout::contiguous(*input.layout.shape());
        let mut out = [Output { layout, dtype: input.dtype, buffer: None }];
        if input.layout.is_contiguous() {
            out[0] = Output { layout: *input.layout, dtype: input.dtype, buffer: Some(input.buffer.clone()) };
        } else {
            memory::allocate_outputs(&mut out)?;
            copy::copy(&[*input], &mut out)?;
        }
        let [out] = out;
        copies.push(out);
    }
    let bytes: Vec<(&[u8], DType)> = copies
        .iter()
        .map(|row| {
            let size = row.dtype.size();
            // SAFETY: a row-major layout lies within its buffer, whose elements have been written.
            let bytes = unsafe {
                let start = memory::output_ptr::<u8>(row).add(row.layout.offset() * size);
                std::slice::from_raw_parts(start, row.layout.numel() * size)
            };
            (bytes, row.dtype)
        })
        .collect();
    let size = outputs[0].layout.numel() * outputs[0].dtype.size();
    let start = memory::output_ptr::<u8>(&outputs[0]);
    // SAFETY: a new output is row-major from the start of its own buffer; zeroed, it may be seen as a slice.
    let result = unsafe {
        start.write_bytes(0, size);
        std::slice::from_raw_parts_mut(start, size)
    };
    kernel.host(&bytes, result, outputs[0].dtype)
}
