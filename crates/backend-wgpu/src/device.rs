//! Adapters: which there are, which one is meant, and what it can do.

use orkest_core::{Error, Result};
use std::sync::OnceLock;
use wgpu::{DeviceType, Features, Limits};

/// What kernels may rely on beyond plain WebGPU.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// f16 in shaders and in memory.
    pub f16: bool,
    /// 16-bit integers in shaders and in memory (bf16 is stored as such).
    pub i16: bool,
    /// Subgroup operations.
    pub subgroups: bool,
    /// Smallest and largest subgroup.
    pub subgroup_size: [u32; 2],
    /// Parameters travel with the dispatch instead of through a uniform buffer.
    pub immediates: bool,
    /// GPU timestamps at pass boundaries.
    pub timestamps: bool,
    /// A software adapter: its "shared memory" and barriers are slow, registers are free.
    pub software: bool,
    /// Runtime checks in shaders (`ORKEST_CHECKED=1`).
    pub checked: bool,
    /// Side of the square cooperative matrices that multiply f16 into f32 sums; 0 without.
    pub matrix_f16: u32,
    /// The same for f32 into f32.
    pub matrix_f32: u32,
    /// Most bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Most invocations in a workgroup.
    pub workgroup_size: u32,
    /// Most storage buffers that one dispatch may bind.
    pub storage_buffers: u32,
}

/// An adapter that wgpu found.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Its name, driver, backend and kind.
    pub info: wgpu::AdapterInfo,
    /// Its limits.
    pub limits: Limits,
    /// Its features.
    pub features: Features,
}

struct Found {
    adapters: Vec<wgpu::Adapter>,
}

fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|v| !v.is_empty() && v != "0")
}

/// All adapters, hardware first. Looked for once per process.
fn found() -> &'static Found {
    static FOUND: OnceLock<Found> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
        desc.backends = wgpu::Backends::PRIMARY.with_env();
        // Not the defaults: the check of indirect calls limits buffers to 4 GiB and costs a pipeline.
        desc.flags = wgpu::InstanceFlags::empty().with_env();
        let backends = desc.backends;
        let instance = wgpu::Instance::new(desc);
        let mut adapters = pollster::block_on(instance.enumerate_adapters(backends));
        if let Ok(wanted) = std::env::var("WGPU_ADAPTER_NAME")
            && !wanted.is_empty()
        {
            let wanted = wanted.to_lowercase();
            adapters.retain(|a| a.get_info().name.to_lowercase().contains(&wanted));
        }
        // Stable: within a kind, the driver's order stays.
        adapters.sort_by_key(|a| match a.get_info().device_type {
            DeviceType::DiscreteGpu => 0,
            DeviceType::IntegratedGpu => 1,
            DeviceType::Other => 2,
            DeviceType::VirtualGpu => 3,
            DeviceType::Cpu => 4,
        });
        Found { adapters }
    })
}

/// The adapters that `Device::wgpu(0)`, `Device::wgpu(1)` .. open, hardware before software.
///
/// `WGPU_BACKEND` (`vulkan`, `metal`, `dx12`) and `WGPU_ADAPTER_NAME` (part of a name) limit the choice.
pub fn adapters() -> Vec<Adapter> {
    found()
        .adapters
        .iter()
        .map(|a| Adapter { info: a.get_info(), limits: a.limits(), features: a.features() })
        .collect()
}

/// Whether there is such an adapter and it is hardware.
pub(crate) fn is_hardware(index: usize) -> bool {
    found().adapters.get(index).is_some_and(|a| {
        matches!(
            a.get_info().device_type,
            DeviceType::DiscreteGpu | DeviceType::IntegratedGpu | DeviceType::VirtualGpu
        )
    })
}

/// An opened device.
pub(crate) struct Opened {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: wgpu::AdapterInfo,
    pub(crate) capabilities: Capabilities,
}

/// What may be used if the adapter has it.
fn optional_features() -> Features {
    Features::SHADER_F16
        | Features::SHADER_I16
        | Features::SUBGROUP
        | Features::IMMEDIATES
        | Features::TIMESTAMP_QUERY
        | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
        | Features::TIMESTAMP_QUERY_INSIDE_PASSES
        | Features::PIPELINE_CACHE
        | Features::EXPERIMENTAL_COOPERATIVE_MATRIX
}

/// The side of the largest square cooperative matrices that the adapter multiplies from `from` into f32 sums; 0 without. Shaders
/// have 8 x 8 and 16 x 16; nothing but this list says which of them may be used.
fn matrix_side(adapter: &wgpu::Adapter, features: Features, from: wgpu::CooperativeScalarType) -> u32 {
    if !features.contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX | Features::SUBGROUP) {
        return 0;
    }
    let sums = wgpu::CooperativeScalarType::F32;
    adapter
        .cooperative_matrix_properties()
        .iter()
        .filter(|p| p.ab_type == from && p.cr_type == sums && p.m_size == p.n_size && p.m_size == p.k_size)
        .map(|p| p.m_size)
        .filter(|side| [8, 16].contains(side))
        .max()
        .unwrap_or(0)
}

/// Opens the `index`-th adapter.
///
/// `ORKEST_WGPU_FEATURES=base` does without every optional feature, to test what the plainest device runs.
pub(crate) fn open(index: usize) -> Result<Opened> {
    let base = match std::env::var("ORKEST_WGPU_FEATURES").as_deref() {
        Err(_) | Ok("" | "all") => false,
        Ok("base") => true,
        Ok(other) => {
            return Err(Error::Device(format!("ORKEST_WGPU_FEATURES={other}: expected \"base\" or \"all\"")));
        }
    };
    let adapter = found().adapters.get(index).ok_or_else(|| missing(index))?;
    let info = adapter.get_info();
    let name = info.name.clone();
    let features = if base { Features::empty() } else { adapter.features() & optional_features() };
    let mut limits = adapter.limits();
    if base {
        limits.max_immediate_size = 0;
    }
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("orkest"),
        required_features: features,
        required_limits: limits.clone(),
        experimental_features: if features.contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            // SAFETY: the one experimental feature is cooperative matrices, whose combinations of sizes and types are taken from the
            // adapter's own list; shaders that use them are this project's.
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        } else {
            wgpu::ExperimentalFeatures::disabled()
        },
        memory_hints: wgpu::MemoryHints::Performance,
        ..Default::default()
    }))
    .map_err(|e| Error::Device(format!("wgpu:{index} ({name}) could not be opened: {e}")))?;
    let capabilities = Capabilities {
        f16: features.contains(Features::SHADER_F16),
        i16: features.contains(Features::SHADER_I16),
        subgroups: features.contains(Features::SUBGROUP),
        subgroup_size: [info.subgroup_min_size, info.subgroup_max_size],
        immediates: features.contains(Features::IMMEDIATES) && limits.max_immediate_size >= 128,
        timestamps: features.contains(Features::TIMESTAMP_QUERY),
        // On request the kernels for hardware run on software too, so that they can be tested without any.
        software: info.device_type == DeviceType::Cpu && !is_set("ORKEST_WGPU_HARDWARE"),
        checked: is_set("ORKEST_CHECKED"),
        matrix_f16: if features.contains(Features::SHADER_F16) {
            matrix_side(adapter, features, wgpu::CooperativeScalarType::F16)
        } else {
            0
        },
        matrix_f32: matrix_side(adapter, features, wgpu::CooperativeScalarType::F32),
        workgroup_memory: limits.max_compute_workgroup_storage_size,
        workgroup_size: limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x),
        storage_buffers: limits.max_storage_buffers_per_shader_stage,
    };
    Ok(Opened { device, queue, info, capabilities })
}

fn missing(index: usize) -> Error {
    let list: Vec<String> = adapters()
        .iter()
        .enumerate()
        .map(|(i, a)| {
            format!(
                "wgpu:{i} {} ({:?}, {:?}, {})",
                a.info.name, a.info.backend, a.info.device_type, a.info.driver
            )
        })
        .collect();
    let variables: Vec<String> = ["WGPU_BACKEND", "WGPU_ADAPTER_NAME", "VK_DRIVER_FILES", "VK_ICD_FILENAMES"]
        .into_iter()
        .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)))
        .collect();
    let settings =
        if variables.is_empty() { String::new() } else { format!(" (with {})", variables.join(", ")) };
    Error::Device(if list.is_empty() {
        format!(
            "device wgpu:{index} is not available: no GPU adapter was found{settings}. On Linux install the vendor's Vulkan \
             driver, or a software one: `apt-get install mesa-vulkan-drivers libvulkan1`; on Windows and macOS update the \
             graphics driver or the system"
        )
    } else {
        format!("device wgpu:{index} is not available; found{settings}: {}", list.join("; "))
    })
}
