//! The WGSL kernels of Orkest's GPU backend, embedded as text.
//!
//! Empty for now: the GPU backend brings its kernels here, one plain, valid `.wgsl` file per kernel family.

#![forbid(unsafe_code)]
