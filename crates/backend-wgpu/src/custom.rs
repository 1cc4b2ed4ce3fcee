//! Kernels of the user's own: their WGSL, looked at before it is compiled so that no mistake in it stays silent; or the host.

use crate::copy;
use crate::element::{Elem, stored_size};
use crate::gpu::{Gpu, target};
use crate::pipelines::Source;
use crate::stream::{Grid, Params};
use orkest_core::{DType, Error, Kernel, Layout, Output, Result, Shader, View};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use wgpu::naga;

/// Where buffers may be bound from, on any device: offsets are multiples of this.
const OFFSET: usize = 256;

/// What is known of a text.
struct Program {
    text: Arc<str>,
    /// Invocations of a workgroup; `None` if an `override` says how many.
    workgroup: Option<[u32; 3]>,
    /// It takes `num_workgroups`, so it can find its way in a folded grid.
    folds: bool,
    buffers: Vec<Declared>,
    /// Bytes of `params`.
    params: usize,
}

/// A storage buffer as the text declares it.
struct Declared {
    name: String,
    binding: u32,
    writable: bool,
    /// The WGSL type of its elements, if that is a number or a vector of them.
    element: Option<String>,
}

/// The texts that were run, by themselves.
#[derive(Default)]
pub(crate) struct Programs(Mutex<HashMap<Arc<str>, Arc<Program>>>);

impl Programs {
    fn get(&self, name: &str, source: &str) -> Result<Arc<Program>, String> {
        let mut programs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = programs.get(source) {
            return Ok(program.clone());
        }
        let program = Arc::new(Program::read(name, source)?);
        programs.insert(program.text.clone(), program.clone());
        Ok(program)
    }
}

impl Program {
    fn read(name: &str, source: &str) -> Result<Program, String> {
        let module = naga::front::wgsl::parse_str(source)
            .map_err(|e| e.emit_to_string_with_path(source, &format!("{name}.wgsl")))?;
        let [entry] = &module.entry_points[..] else {
            return Err(format!("it has {} entry points instead of one", module.entry_points.len()));
        };
        if entry.stage != naga::ShaderStage::Compute {
            return Err(format!("{} is no @compute entry point", entry.name));
        }
        let is_count = |binding: &Option<naga::Binding>| {
            matches!(binding, Some(naga::Binding::BuiltIn(naga::BuiltIn::NumWorkGroups)))
        };
        let folds = entry.function.arguments.iter().any(|argument| {
            is_count(&argument.binding)
                || matches!(&module.types[argument.ty].inner, naga::TypeInner::Struct { members, .. }
                    if members.iter().any(|m| is_count(&m.binding)))
        });
        let mut program = Program {
            text: source.into(),
            workgroup: entry.workgroup_size_overrides.is_none().then_some(entry.workgroup_size),
            folds,
            buffers: Vec::new(),
            params: 0,
        };
        for (_, variable) in module.global_variables.iter() {
            let name = variable.name.clone().unwrap_or_default();
            let inner = &module.types[variable.ty].inner;
            match (variable.space, &variable.binding) {
                (
                    naga::AddressSpace::Storage { access },
                    Some(naga::ResourceBinding { group: 0, binding }),
                ) => {
                    program.buffers.push(Declared {
                        name,
                        binding: *binding,
                        writable: access.contains(naga::StorageAccess::STORE),
                        element: element(&module, inner),
                    });
                }
                (naga::AddressSpace::Immediate, _) => {
                    if !source.lines().any(|line| line.trim_start().starts_with("var<immediate>")) {
                        return Err("`var<immediate> ..;` must stand on a line of its own".into());
                    }
                    program.params = inner.size(module.to_ctx()) as usize;
                }
                (naga::AddressSpace::WorkGroup | naga::AddressSpace::Private, _) => {}
                _ => return Err(format!("{name} is neither a storage buffer of group 0 nor var<immediate>")),
            }
        }
        Ok(program)
    }

    /// Whether it fits what it is run on: an input's or the result's number, dtype and stored type for each binding.
    fn check(&self, shader: &Shader<'_>, bound: &[(DType, Elem)]) -> Result<(), String> {
        let result = bound.len() as u32 - 1;
        for Declared { name, binding, writable, element } in &self.buffers {
            let what = match binding {
                b if *b == result => "the result".to_string(),
                b if *b < result => format!("input {b}"),
                b => {
                    return Err(format!(
                        "{name} has binding {b}, but the result, the last one, has {result}"
                    ));
                }
            };
            if *writable != (*binding == result) {
                let access = if *writable { "var<storage, read>" } else { "var<storage, read_write>" };
                return Err(format!("{name} is {what}: declare it as {access}"));
            }
            let (dtype, elem) = bound[*binding as usize];
            if let Some(element) = element
                && element != elem.stored()
            {
                return Err(format!(
                    "{name} has elements of type {element}, but {what} is {dtype}, stored as {} on this device",
                    elem.stored()
                ));
            }
        }
        let given = 4 * shader.params.len();
        if self.params != given {
            return Err(format!(
                "its parameters have {} bytes, those given to .param(..) {given}",
                self.params
            ));
        }
        Ok(())
    }

    /// The workgroups to run.
    fn grid(&self, shader: &Shader<'_>, elements: usize) -> Result<Grid, String> {
        let max = Grid::MAX as usize;
        if let Some(count) = shader.workgroups {
            return match count.iter().all(|n| (1..=max).contains(n)) {
                true => Ok(Grid(count.map(|n| n as u32))),
                false => {
                    Err(format!("it cannot run in {count:?} workgroups: 1 to {max} along each dimension"))
                }
            };
        }
        let Some([size, 1, 1]) = self.workgroup else {
            return Err(
                "say in how many .workgroups(..) it runs: that follows from the result's size only for a \
                        @workgroup_size of one literal number"
                    .into(),
            );
        };
        let count = elements.div_ceil(size as usize);
        if count > max && !self.folds {
            return Err(format!(
                "{elements} elements are {count} workgroups of {size}, and {max} is the most in a row; let it take \
                 @builtin(num_workgroups) and compute its number from that, or say how many .workgroups(..)"
            ));
        }
        Ok(Grid::linear(count))
    }
}

/// The type of a buffer's numbers.
fn element(module: &naga::Module, buffer: &naga::TypeInner) -> Option<String> {
    let base = match buffer {
        naga::TypeInner::Array { base, .. } => &module.types[*base].inner,
        other => other,
    };
    let (naga::TypeInner::Scalar(scalar)
    | naga::TypeInner::Vector { scalar, .. }
    | naga::TypeInner::Atomic(scalar)) = base
    else {
        return None;
    };
    let kind = match scalar.kind {
        naga::ScalarKind::Float => "f",
        naga::ScalarKind::Sint => "i",
        naga::ScalarKind::Uint => "u",
        _ => return None,
    };
    Some(format!("{kind}{}", 8 * scalar.width))
}

/// [`orkest_core::Op::Custom`]
pub(crate) fn custom(gpu: &Gpu, kernel: &Kernel, inputs: &[View<'_>], y: &Output) -> Result<()> {
    let Some(shader) = kernel.shader() else { return on_host(gpu, kernel, inputs, y) };
    let fail = |what: String| Error::Device(format!("its WGSL cannot be used on {}: {what}", gpu.name));
    let program = gpu.programs.get(kernel.name(), shader.source).map_err(fail)?;
    let dtypes = inputs.iter().map(|v| v.dtype).chain([y.dtype]);
    let bound: Vec<(DType, Elem)> = dtypes.map(|dtype| (dtype, gpu.elem(dtype))).collect();
    program.check(&shader, &bound).map_err(fail)?;
    let grid = program.grid(&shader, y.layout.numel()).map_err(fail)?;
    let mut rows = Vec::with_capacity(inputs.len());
    for input in inputs {
        let mut row = gpu.contiguous(input)?;
        if !(row.layout.offset() * gpu.elem(row.dtype).size()).is_multiple_of(OFFSET) {
            let copied = gpu.temp(*row.layout.shape(), row.dtype)?;
            let out = Output { layout: copied.layout, dtype: row.dtype, buffer: Some(copied.buffer.clone()) };
            copy::copy(gpu, &row.view(), &out)?;
            row = copied;
        }
        rows.push(row);
    }
    let part = |layout: &Layout, dtype: DType| {
        let elem = gpu.elem(dtype);
        let start = layout.offset() * elem.size();
        start as u64..(start + stored_size(layout.numel(), elem)) as u64
    };
    let buffers: Vec<_> = rows
        .iter()
        .map(|row| (row.memory(), part(&row.layout, row.dtype)))
        .chain([(target(y), part(&y.layout, y.dtype))])
        .collect();
    let params = shader.params.iter().fold(Params::new(), |params, &word| params.u32(word));
    gpu.dispatch_text(
        Source::Text { name: kernel.name(), text: program.text.clone() },
        &buffers,
        params,
        grid,
    )
}

/// Runs the Rust program, between a read and an upload.
fn on_host(gpu: &Gpu, kernel: &Kernel, inputs: &[View<'_>], y: &Output) -> Result<()> {
    // Words, so that elements of every dtype are aligned.
    let words = |bytes: usize| vec![0u64; bytes.div_ceil(8)];
    let rows: Vec<(Vec<u64>, usize, DType)> = inputs
        .iter()
        .map(|input| {
            let bytes = gpu.download(&gpu.contiguous(input)?.view())?;
            let mut aligned = words(bytes.len());
            bytemuck::cast_slice_mut(&mut aligned)[..bytes.len()].copy_from_slice(&bytes);
            Ok((aligned, bytes.len(), input.dtype))
        })
        .collect::<Result<_>>()?;
    let bytes: Vec<(&[u8], DType)> =
        rows.iter().map(|(row, len, dtype)| (&bytemuck::cast_slice(row)[..*len], *dtype)).collect();
    let len = y.layout.numel() * y.dtype.size();
    let mut result = words(len);
    let result: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut result)[..len];
    kernel.host(&bytes, result, y.dtype)?;
    let buffer = gpu.upload(result, y.dtype)?;
    let layout = Layout::contiguous(*y.layout.shape());
    copy::copy(gpu, &View { buffer: &buffer, layout: &layout, dtype: y.dtype }, y)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQUARE: &str = "@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
struct Params { factor: f32, n: u32 }
var<immediate> params: Params;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) { y[id.x] = vec4(params.factor * f32(x[id.x])); }";

    fn refused(source: &str, params: &[u32], workgroups: Option<[usize; 3]>, elements: usize) -> String {
        let shader = Shader { source, params, workgroups };
        Program::read("square", source)
            .and_then(|program| {
                program.check(&shader, &[(DType::F32, Elem::F32), (DType::F32, Elem::F32)])?;
                program.grid(&shader, elements).map(|grid| format!("{grid:?}"))
            })
            .unwrap_or_else(|e| e)
    }

    #[test]
    fn a_right_program_runs_one_invocation_per_element() {
        assert_eq!(refused(SQUARE, &[0, 0], None, 65), "Grid([2, 1, 1])");
        assert_eq!(refused(SQUARE, &[0, 0], Some([3, 4, 5]), 65), "Grid([3, 4, 5])");
        let folding =
            SQUARE.replace("id: vec3<u32>)", "id: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>)");
        assert_eq!(refused(&folding, &[0, 0], None, 64 * 65536), "Grid([32768, 2, 1])");
    }

    #[test]
    fn mistakes_are_told() {
        let changed = |from: &str, to: &str| {
            assert!(SQUARE.contains(from));
            refused(&SQUARE.replace(from, to), &[0, 0], None, 64)
        };
        let cases = [
            (changed("vec4(params", "vec5(params"), "square.wgsl:6"),
            (changed("array<f32>", "array<i32>"), "x has elements of type i32, but input 0 is f32"),
            (changed("read_write", "read"), "y is the result: declare it as var<storage, read_write>"),
            (changed("read>", "read_write>"), "x is input 0: declare it as var<storage, read>"),
            (changed("binding(1)", "binding(2)"), "y has binding 2, but the result, the last one, has 1"),
            (
                changed("group(0) @binding(0)", "group(1) @binding(0)"),
                "x is neither a storage buffer of group 0",
            ),
            (changed("workgroup_size(64)", "workgroup_size(8, 8)"), "say in how many .workgroups(..)"),
            (changed("var<immediate>", "@group(0) @binding(7) var<uniform>"), "params is neither"),
            (changed("\nvar<immediate>", " var<immediate>"), "on a line of its own"),
            (changed("@compute @workgroup_size(64)\nfn main", "fn main"), "0 entry points instead of one"),
            (refused(SQUARE, &[0], None, 64), "its parameters have 8 bytes, those given to .param(..) 4"),
            (refused(SQUARE, &[0, 0], None, 64 * 65536), "65536 workgroups of 64, and 65535 is the most"),
            (refused(SQUARE, &[0, 0], Some([1, 0, 1]), 64), "cannot run in [1, 0, 1] workgroups"),
        ];
        for (message, expected) in cases {
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }
}
