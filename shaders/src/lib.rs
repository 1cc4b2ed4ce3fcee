//! The WGSL kernels of Orkest's GPU backend, embedded as text.
//!
//! Every file is valid WGSL as it stands; the backend replaces lines of the marked variant block at its head to get programs for
//! other element types and operations.

#![forbid(unsafe_code)]

/// Embeds files of this folder.
macro_rules! files {
    ($($file:literal,)*) => {
        /// Every kernel file: its name as in this folder, and its text.
        pub const FILES: &[(&str, &str)] = &[$(($file, include_str!(concat!("../", $file)))),*];
    };
}

files! {
    "attention/attention.wgsl",
    "attention/delta.wgsl",
    "attention/keys_grad.wgsl",
    "attention/queries_grad.wgsl",
    "attention/weights.wgsl",
    "attention/weights_grad.wgsl",
    "elementwise/arange.wgsl",
    "elementwise/binary.wgsl",
    "elementwise/binary_int.wgsl",
    "elementwise/cast.wgsl",
    "elementwise/compare.wgsl",
    "elementwise/copy.wgsl",
    "elementwise/copy_nd.wgsl",
    "elementwise/dropout.wgsl",
    "elementwise/fill.wgsl",
    "elementwise/fused.wgsl",
    "elementwise/random.wgsl",
    "elementwise/test.wgsl",
    "elementwise/to_i64.wgsl",
    "elementwise/transpose.wgsl",
    "elementwise/unary.wgsl",
    "elementwise/unary_grad.wgsl",
    "elementwise/unary_int.wgsl",
    "elementwise/where.wgsl",
    "index/gather.wgsl",
    "index/rows.wgsl",
    "index/scatter.wgsl",
    "matmul/coop.wgsl",
    "matmul/gemv.wgsl",
    "matmul/integer.wgsl",
    "matmul/registers.wgsl",
    "matmul/split.wgsl",
    "matmul/tile.wgsl",
    "recurrent/step.wgsl",
    "recurrent/step_grad.wgsl",
    "reduce/arg.wgsl",
    "reduce/reduce.wgsl",
    "reduce/scan.wgsl",
    "reduce/wrapped.wgsl",
    "sort/sort.wgsl",
    "rows/cross_entropy.wgsl",
    "rows/cross_entropy_grad.wgsl",
    "rows/norm.wgsl",
    "rows/norm_columns.wgsl",
    "rows/norm_finish.wgsl",
    "rows/norm_grad.wgsl",
    "rows/softmax.wgsl",
    "rows/softmax_grad.wgsl",
    "windows/avg_pool.wgsl",
    "windows/avg_pool_grad.wgsl",
    "windows/fold.wgsl",
    "windows/max_pool.wgsl",
    "windows/unfold.wgsl",
    "optim/adam.wgsl",
    "optim/adam_many.wgsl",
    "optim/sgd.wgsl",
    "optim/sgd_many.wgsl",
}

/// The text of a kernel file, such as `elementwise/copy.wgsl`.
pub fn source(file: &str) -> Option<&'static str> {
    FILES.iter().find(|(name, _)| *name == file).map(|(_, text)| *text)
}
