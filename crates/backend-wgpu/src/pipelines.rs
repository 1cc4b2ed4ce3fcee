//! Compiled kernels, cached by file, entry point, variant and constants.

use crate::cache::Cache;
use crate::device::Capabilities;
use crate::process::Process;
use crate::program::{FRAME, Program};
use crate::trim::trimmed;
use crate::variant::{Variant, expand};
use orkest_core::{Error, Result, profile};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Values of `override` constants: sizes of workgroups and of workgroup arrays.
pub(crate) type Constants = SmallVec<[(&'static str, u32); 2]>;

/// What a pipeline is compiled from.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    pub(crate) source: Source,
    pub(crate) entry: &'static str,
    pub(crate) variant: Variant,
    pub(crate) constants: Constants,
    pub(crate) bindings: Bindings,
}

/// Where a kernel's text is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Source {
    /// In this file of `shaders/`.
    File(&'static str),
    /// Written for a group of elementwise launches.
    Fused(Arc<str>),
    /// A user's own, with the one entry point it has: compiled with all checks.
    Text { name: &'static str, text: Arc<str> },
}

/// How many buffers a kernel binds: inputs first, outputs after them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Bindings {
    pub(crate) reads: u8,
    pub(crate) writes: u8,
    /// Inputs that are outputs too, and so are bound like them: wgpu refuses one buffer both read-only and writable.
    pub(crate) aliased: u32,
}

pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

pub(crate) struct Pipelines {
    device: wgpu::Device,
    process: Process,
    capabilities: Capabilities,
    layouts: HashMap<Bindings, (wgpu::BindGroupLayout, wgpu::PipelineLayout)>,
    compiled: HashMap<Key, Arc<Pipeline>>,
    uniform_layout: Option<wgpu::BindGroupLayout>,
    cache: Option<Cache>,
    /// The device as the profile names it, if there is one.
    profiled: Option<String>,
}

impl Pipelines {
    pub(crate) fn new(
        device: wgpu::Device,
        capabilities: Capabilities,
        uniform_layout: Option<wgpu::BindGroupLayout>,
        cache: Option<Cache>,
        profiled: Option<String>,
    ) -> Pipelines {
        Pipelines {
            device,
            process: Process::current(),
            capabilities,
            layouts: HashMap::new(),
            compiled: HashMap::new(),
            uniform_layout,
            cache,
            profiled,
        }
    }

    /// The pipeline, and whether it has just been compiled.
    pub(crate) fn get(&mut self, key: &Key) -> Result<(Arc<Pipeline>, bool)> {
        if let Some(pipeline) = self.compiled.get(key) {
            return Ok((pipeline.clone(), false));
        }
        let start = Instant::now();
        let pipeline = Arc::new(self.compile(key)?);
        if let Some(device) = &self.profiled {
            profile::record_call(device, "(compile)", start.elapsed());
        }
        self.compiled.insert(key.clone(), pipeline.clone());
        Ok((pipeline, true))
    }

    /// Compiles a kernel for a group of elementwise launches that bind so many buffers.
    pub(crate) fn fused(&mut self, program: &Program, bindings: Bindings) -> Result<Arc<Pipeline>> {
        let start = Instant::now();
        let text = program.text(self.capabilities.immediates).map_err(Error::Device)?;
        let key = Key {
            source: Source::Fused(text.into()),
            entry: "main",
            variant: Variant::new(),
            constants: program.constants.clone(),
            bindings,
        };
        let pipeline = Arc::new(self.compile(&key)?);
        if let Some(device) = &self.profiled {
            profile::record_call(device, "(compile)", start.elapsed());
        }
        Ok(pipeline)
    }

    fn compile(&mut self, key: &Key) -> Result<Pipeline> {
        self.process.check()?;
        let label = match key.source {
            Source::File(name) | Source::Text { name, .. } => name,
            Source::Fused(_) => FRAME,
        };
        let fail = |what: String| Error::Device(format!("kernel {label}:{}: {what}", key.entry));
        let own = !matches!(key.source, Source::Text { .. });
        let source = match &key.source {
            Source::File(file) => {
                orkest_shaders::source(file).ok_or_else(|| fail("there is no such file".into()))?
            }
            Source::Fused(text) | Source::Text { text, .. } => text,
        };
        let text =
            expand(source, &key.variant, key.bindings.aliased, self.capabilities.immediates).map_err(fail)?;
        let text = if own { trimmed(&text) } else { text };
        let (bind_group_layout, pipeline_layout) = self.layout(key.bindings);
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Wgsl(text.into()),
        };
        let module = if self.capabilities.checked || !own {
            self.device.create_shader_module(descriptor)
        } else {
            // SAFETY: the shaders are this project's own; they stay within their buffers and their loops end, which the
            // test runs with ORKEST_CHECKED=1 compare against.
            unsafe {
                self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
            }
        };
        let constants: Vec<(&str, f64)> =
            key.constants.iter().map(|&(name, value)| (name, f64::from(value))).collect();
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: own.then_some(key.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // WGSL promises it to users; our kernels do without.
                zero_initialize_workgroup_memory: !own,
            },
            cache: self.cache.as_ref().map(Cache::get),
        });
        match pollster::block_on(scope.pop()) {
            Some(e) => Err(fail(e.to_string())),
            None => {
                if let Some(cache) = &self.cache {
                    cache.grown();
                }
                Ok(Pipeline { pipeline, layout: bind_group_layout })
            }
        }
    }

    fn layout(&mut self, bindings: Bindings) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
        let Pipelines { device, layouts, uniform_layout, .. } = self;
        layouts
            .entry(bindings)
            .or_insert_with(|| {
                let entries: Vec<_> = (0..u32::from(bindings.reads) + u32::from(bindings.writes))
                    .map(|binding| wgpu::BindGroupLayoutEntry {
                        binding,
                        visibility: wgpu::ShaderStages::COMPUTE,
                        ty: wgpu::BindingType::Buffer {
                            ty: wgpu::BufferBindingType::Storage {
                                read_only: binding < u32::from(bindings.reads)
                                    && bindings.aliased >> binding & 1 == 0,
                            },
                            has_dynamic_offset: false,
                            min_binding_size: None,
                        },
                        count: None,
                    })
                    .collect();
                let group = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                    label: None,
                    entries: &entries,
                });
                let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                    label: None,
                    bind_group_layouts: &[Some(&group), uniform_layout.as_ref()]
                        [..1 + usize::from(uniform_layout.is_some())],
                    immediate_size: if uniform_layout.is_some() { 0 } else { MAX_PARAMS as u32 },
                });
                (group, pipeline)
            })
            .clone()
    }
}

/// Most bytes of parameters: what DX12 and lavapipe have as immediates.
pub(crate) const MAX_PARAMS: usize = 128;
