//! Operations on one element at a time, and the launch that they share.

use crate::element::{Elem, narrow, round_float, scalar_bits};
use crate::fuse::{Alone, Launch, Operand};
use crate::gpu::{Gpu, Temp, memories, strided, target};
use crate::pipelines::Constants;
use crate::program;
use crate::stream::{Call, Grid, Params};
use crate::variant::{Value, Variant, variant};
use orkest_core::op::{Binary, Compare};
use orkest_core::{DType, Error, Output, Result, Scalar, View, caller};
use smallvec::{SmallVec, smallvec};

/// How `n` elements are shared out: the constants of the kernel and its grid. An invocation takes several elements, a workgroup apart, where
/// there are enough to keep the device busy all the same. On a CPU a workgroup is one vector that goes along memory, as its prefetcher
/// expects, and starting one costs as much as several elements, however few there are.
pub(crate) fn share(gpu: &Gpu, n: usize) -> (Constants, Grid) {
    let (workgroup, items) = match (gpu.capabilities.software, n) {
        (true, _) => (8, 256),
        (false, ..1_000_000) => (256, 1),
        (false, _) => (256, 4),
    };
    (
        smallvec![("WORKGROUP", workgroup as u32), ("ITEMS", items as u32)],
        Grid::linear(n.div_ceil(workgroup * items)),
    )
}

/// Launches a kernel over the elements of `y`. Its parameters are, in this order:
///
/// ```wgsl
/// struct Params {
///     shape: vec4<u32>,
///     y_strides: vec4<i32>,          // then a_strides, b_strides, c_strides: one per input
///     n: u32,
///     y_offset: u32,                 // then a_offset, b_offset, c_offset: one per input
///     ..                             // then `extra`, one word each
/// }
/// ```
///
/// and `const STRIDED: bool` says whether shape and strides mean anything; bindings are the inputs, then `y`.
pub(crate) fn run<const N: usize, const E: usize>(
    gpu: &Gpu,
    op: &'static str,
    file: &'static str,
    variant: Variant,
    inputs: [&View<'_>; N],
    y: &Output,
    extra: [u32; E],
) -> Result<()> {
    launch(gpu, Kernel { op, file, variant, site: None }, inputs, y, extra)
}

/// The same for a kernel that reports faults: it has the fault record as its last binding and the number of the site as its last
/// parameter.
pub(crate) fn run_reporting<const N: usize, const E: usize>(
    gpu: &Gpu,
    op: &'static str,
    file: &'static str,
    variant: Variant,
    inputs: [&View<'_>; N],
    y: &Output,
    extra: [u32; E],
) -> Result<()> {
    launch(gpu, Kernel { op, file, variant, site: Some(gpu.site(op)) }, inputs, y, extra)
}

/// What is launched, and the number of the site for a kernel that reports faults.
struct Kernel {
    op: &'static str,
    file: &'static str,
    variant: Variant,
    site: Option<u32>,
}

fn launch<const N: usize, const E: usize>(
    gpu: &Gpu,
    kernel: Kernel,
    inputs: [&View<'_>; N],
    y: &Output,
    extra: [u32; E],
) -> Result<()> {
    let layouts: SmallVec<[_; 4]> = std::iter::once(&y.layout).chain(inputs.map(|v| v.layout)).collect();
    let parts = match layouts[..] {
        [y] => strided([y]).map(parts),
        [y, a] => strided([y, a]).map(parts),
        [y, a, b] => strided([y, a, b]).map(parts),
        [y, a, b, c] => strided([y, a, b, c]).map(parts),
        _ => unreachable!("elementwise kernels have at most three inputs"),
    };
    let Some(Parts { shape, strides, offsets, contiguous }) = parts else {
        return launch_contiguous(gpu, kernel, inputs, y, extra);
    };
    let n = y.layout.numel();
    let operands = match kernel.site {
        None if gpu.fuses() && program::can_be_step(kernel.file) => operands(gpu, &inputs, y),
        _ => None,
    };
    let mut params = Params::new().vec4(shape);
    for s in strides {
        params = params.vec4(s);
    }
    params = params.usize(n);
    for o in offsets {
        params = params.u32(o);
    }
    for e in extra.into_iter().chain(kernel.site) {
        params = params.u32(e);
    }
    let Kernel { op, file, mut variant, site } = kernel;
    let plain = operands.is_some().then(|| variant.clone());
    variant.push(("STRIDED", Value::Bool(!contiguous)));
    let (constants, grid) = share(gpu, n);
    if let (Some((inputs, output)), Some(plain)) = (operands, plain) {
        let alone =
            Alone { op: caller().map_or(op, |c| c.op), kernel: op, file, variant, params, constants, grid };
        let words = extra.into_iter().collect();
        gpu.elementwise(Launch { alone, variant: plain, words, elements: n, inputs, output });
        return Ok(());
    }
    let writes = [target(y), gpu.fault()];
    gpu.dispatch(Call {
        op,
        file,
        entry: "main",
        variant,
        constants,
        reads: &memories(&inputs.map(|v| *v)),
        writes: &writes[..1 + usize::from(site.is_some())],
        params,
        grid,
    })
}

/// The operands of a launch that can wait for more: it writes row-major, and what it reads lies in that order or is repeated.
fn operands(gpu: &Gpu, inputs: &[&View<'_>], y: &Output) -> Option<(SmallVec<[Operand; 3]>, Operand)> {
    u32::try_from(y.layout.numel()).ok()?;
    let output = Operand::written(y, gpu.elem(y.dtype))?;
    let inputs: SmallVec<[Operand; 3]> =
        inputs.iter().map(|view| Operand::of(view, gpu.elem(view.dtype))).collect::<Option<_>>()?;
    let apart = inputs.iter().all(|input| !input.overlaps(&output));
    apart.then_some((inputs, output))
}

struct Parts {
    shape: [u32; 4],
    strides: SmallVec<[[u32; 4]; 4]>,
    offsets: SmallVec<[u32; 4]>,
    contiguous: bool,
}

fn parts<const N: usize>(s: crate::gpu::Strided<N>) -> Parts {
    Parts {
        shape: s.shape,
        strides: SmallVec::from_slice(&s.strides),
        offsets: SmallVec::from_slice(&s.offsets),
        contiguous: s.contiguous,
    }
}

/// More than four dimensions: everything is made row-major first, and the result copied to where it belongs.
fn launch_contiguous<const N: usize, const E: usize>(
    gpu: &Gpu,
    kernel: Kernel,
    inputs: [&View<'_>; N],
    y: &Output,
    extra: [u32; E],
) -> Result<()> {
    let temps: Vec<Temp> = inputs.iter().map(|v| gpu.contiguous(v)).collect::<Result<_>>()?;
    let views: [View<'_>; N] = std::array::from_fn(|i| temps[i].view());
    if y.layout.is_contiguous() {
        return launch::<N, E>(gpu, kernel, std::array::from_fn(|i| &views[i]), y, extra);
    }
    let result = gpu.temp(*y.layout.shape(), y.dtype)?;
    let out = Output { layout: result.layout, dtype: result.dtype, buffer: Some(result.buffer.clone()) };
    launch::<N, E>(gpu, kernel, std::array::from_fn(|i| &views[i]), &out, extra)?;
    crate::copy::copy(gpu, &result.view(), y)
}

/// The number by which `binary.wgsl` and `binary_int.wgsl` know an operation.
fn binary_code(f: Binary) -> u32 {
    Binary::ALL.iter().position(|&g| g == f).expect("ALL has all") as u32
}

/// The number by which `compare.wgsl` knows a comparison.
fn compare_code(f: Compare) -> u32 {
    Compare::ALL.iter().position(|&g| g == f).expect("ALL has all") as u32
}

/// With `check`, integer results that need more than 32 bits are reported.
fn binary_variant(f: Binary, elem: Elem, scalar: u32, check: bool) -> (&'static str, Variant) {
    let mut variant = variant![elem: elem, OP: binary_code(f), SCALAR: scalar];
    if elem.is_float() {
        return ("elementwise/binary.wgsl", variant);
    }
    variant.push(("CHECK", Value::Bool(check)));
    ("elementwise/binary_int.wgsl", variant)
}

/// Launches the kernel for a dtype; integers are i64 to the user where their results must fit.
fn launch_binary(
    gpu: &Gpu,
    f: Binary,
    scalar: u32,
    inputs: [&View<'_>; 2],
    y: &Output,
    bits: u32,
) -> Result<()> {
    let elem = gpu.elem(y.dtype);
    let (file, variant) = binary_variant(f, elem, scalar, y.dtype == DType::I64);
    match elem.is_float() {
        true => run(gpu, f.name(), file, variant, inputs, y, [bits]),
        false => run_reporting(gpu, f.name(), file, variant, inputs, y, [bits]),
    }
}

fn check_int(f: Binary, dtype: DType, gpu: &Gpu) -> Result<()> {
    if !dtype.is_float() && f == Binary::Atan2 {
        return Err(Error::Unsupported { op: f.name().into(), dtype, device: gpu.name.clone() });
    }
    Ok(())
}

/// [`orkest_core::Op::Binary`]
pub(crate) fn binary(gpu: &Gpu, f: Binary, a: &View<'_>, b: &View<'_>, y: &Output) -> Result<()> {
    check_int(f, a.dtype, gpu)?;
    launch_binary(gpu, f, 0, [a, b], y, 0)
}

/// [`orkest_core::Op::BinaryScalar`]
pub(crate) fn binary_scalar(
    gpu: &Gpu,
    f: Binary,
    scalar: Scalar,
    swapped: bool,
    a: &View<'_>,
    y: &Output,
) -> Result<()> {
    check_int(f, a.dtype, gpu)?;
    let elem = gpu.elem(y.dtype);
    if matches!(f, Binary::Div | Binary::Remainder) && !elem.is_float() && !swapped && scalar.as_i64() == 0 {
        return Err(Error::Data("division by zero".into()));
    }
    let bits = match elem.is_float() {
        true => scalar_bits(scalar, elem)?,
        false => narrow(scalar.as_i64())? as u32,
    };
    // The kernel reads its second operand only when there is one; the first stands in for it.
    launch_binary(gpu, f, if swapped { 2 } else { 1 }, [a, a], y, bits)
}

/// [`orkest_core::Op::Compare`]
pub(crate) fn compare(gpu: &Gpu, f: Compare, a: &View<'_>, b: &View<'_>, y: &Output) -> Result<()> {
    let variant = compare_variant(f, gpu.elem(a.dtype), false);
    run(gpu, f.name(), "elementwise/compare.wgsl", variant, [a, b], y, [0])
}

/// [`orkest_core::Op::CompareScalar`]
pub(crate) fn compare_scalar(gpu: &Gpu, f: Compare, scalar: Scalar, a: &View<'_>, y: &Output) -> Result<()> {
    let elem = gpu.elem(a.dtype);
    let bits = if elem.is_float() {
        round_float(scalar.as_f64(), a.dtype).to_bits()
    } else {
        match integer_bound(f, scalar) {
            Ok(bound) => bound as u32,
            Err(always) => return crate::copy::fill(gpu, Scalar::Bool(always), y),
        }
    };
    let variant = compare_variant(f, elem, true);
    run(gpu, f.name(), "elementwise/compare.wgsl", variant, [a, a], y, [bits])
}

/// The scalar as a 32-bit integer, or the answer for every element if it is out of their range.
fn integer_bound(f: Compare, scalar: Scalar) -> Result<i32, bool> {
    let value = scalar.as_i64();
    i32::try_from(value).map_err(|_| match f {
        Compare::Eq => false,
        Compare::Ne => true,
        Compare::Lt | Compare::Le => value > 0,
        Compare::Gt | Compare::Ge => value < 0,
    })
}

fn compare_variant(f: Compare, elem: Elem, scalar: bool) -> Variant {
    variant![elem: elem, num: Value::Computed(elem), IS_FLOAT: elem.is_float(), OP: compare_code(f), SCALAR: scalar]
}

/// [`orkest_core::Op::Where`]
pub(crate) fn where_(gpu: &Gpu, condition: &View<'_>, a: &View<'_>, b: &View<'_>, y: &Output) -> Result<()> {
    let variant = variant![elem: Value::Bits(gpu.elem(y.dtype))];
    run(gpu, "where", "elementwise/where.wgsl", variant, [condition, a, b], y, [])
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = Vec::new();
    for elem in Elem::ALL {
        for strided in [false, true] {
            let with = |mut v: Variant| {
                v.push(("STRIDED", Value::Bool(strided)));
                v
            };
            for &f in Binary::ALL {
                for (scalar, check) in [(0, true), (0, false), (1, true), (2, true)] {
                    let (file, v) = binary_variant(f, elem, scalar, check);
                    all.push((file, with(v)));
                }
            }
            for &f in Compare::ALL {
                for scalar in [false, true] {
                    all.push(("elementwise/compare.wgsl", with(compare_variant(f, elem, scalar))));
                }
            }
            all.push(("elementwise/where.wgsl", with(variant![elem: Value::Bits(elem)])));
        }
    }
    all
}
