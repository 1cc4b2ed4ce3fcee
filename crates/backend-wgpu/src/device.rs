//! Adapters: which there are, which one is meant, and what it can do.

use crate::process::Process;
use orkest_core::{DeviceInfo, Error, Result};
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
    /// Most rounds of loops that an invocation may take. Software drivers of some age (Mesa 22's) end all loops of an invocation after
    /// 65535 rounds together, and say nothing.
    pub rounds: usize,
}

impl Capabilities {
    /// Neighbouring invocations that are surely in one subgroup, of workgroups of this size; 1 where kernels must do without. Subgroups
    /// may be larger: what kernels exchange stays within groups of this many. Vulkan, Metal and DX12 fill subgroups with the invocations
    /// of a workgroup in order.
    pub(crate) fn subgroup(&self, workgroup: usize) -> u32 {
        let least = if self.subgroups { self.subgroup_size[0] } else { 1 };
        match least {
            0 => 1,
            // The largest power of two that is not larger.
            least => (1 << least.ilog2()).min(1 << workgroup.max(1).ilog2()),
        }
    }

    /// Which kernels are chosen, in words.
    fn tier(&self) -> String {
        let mut tier = vec![match self.software {
            true => "register tiles (software adapter)".to_string(),
            false => "workgroup tiles".to_string(),
        }];
        if self.subgroups {
            tier.push(match self.subgroup_size {
                [least, most] if least == most => format!("subgroups of {least}"),
                [least, most] => format!("subgroups of {least} to {most}"),
            });
        }
        if self.f16 {
            tier.push("f16".into());
        }
        if self.matrix_f16 > 0 {
            tier.push(format!("cooperative matrices {0}x{0}", self.matrix_f16));
        }
        if self.checked {
            tier.push("runtime checks".into());
        }
        tier.join(", ")
    }
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
    /// Its memory in bytes, where the driver says.
    pub memory: Option<u64>,
}

/// Most bytes that a kernel gets of a buffer on any device: it counts elements in 32 bits.
pub(crate) const LARGEST_BINDING: u64 = 1 << 32;

fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|v| !v.is_empty() && v != "0")
}

fn look(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = backends;
    // Not the defaults: the check of indirect calls limits buffers to 4 GiB and costs a pipeline.
    desc.flags = wgpu::InstanceFlags::empty().with_env();
    // For tests: the backend that validates everything and does nothing.
    desc.backend_options.noop = wgpu::NoopBackendOptions::from_env_or_default();
    let instance = wgpu::Instance::new(desc);
    pollster::block_on(instance.enumerate_adapters(backends))
}

/// All adapters that the environment admits, hardware first.
fn found() -> &'static [wgpu::Adapter] {
    &found_by().0
}

/// The same, and the process that looked for them, once.
fn found_by() -> &'static (Vec<wgpu::Adapter>, Process) {
    static FOUND: OnceLock<(Vec<wgpu::Adapter>, Process)> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut adapters = look(wgpu::Backends::PRIMARY.with_env());
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
        (adapters, Process::current())
    })
}

/// The adapters that `Device::wgpu(0)`, `Device::wgpu(1)` .. open, hardware before software.
///
/// `WGPU_BACKEND` (`vulkan`, `metal`, `dx12`) and `WGPU_ADAPTER_NAME` (part of a name) limit the choice.
pub fn adapters() -> Vec<Adapter> {
    found()
        .iter()
        .map(|a| Adapter {
            info: a.get_info(),
            limits: a.limits(),
            features: a.features(),
            memory: memory(a),
        })
        .collect()
}

/// The adapters as the facade lists devices.
pub(crate) fn list() -> Vec<DeviceInfo> {
    let base = wants_base().unwrap_or(false); // opening says what is wrong with it
    let describe = |(index, adapter): (usize, &wgpu::Adapter)| {
        let wgpu::AdapterInfo { name, device_type, backend, driver, driver_info, .. } = adapter.get_info();
        let (features, limits, capabilities) = offers(adapter, base);
        let mut info = DeviceInfo::new(
            if index == 0 { "wgpu".into() } else { format!("wgpu:{index}") },
            match device_type {
                DeviceType::DiscreteGpu => orkest_core::DeviceType::DiscreteGpu,
                DeviceType::IntegratedGpu => orkest_core::DeviceType::IntegratedGpu,
                DeviceType::VirtualGpu => orkest_core::DeviceType::VirtualGpu,
                DeviceType::Cpu => orkest_core::DeviceType::Software,
                DeviceType::Other => orkest_core::DeviceType::Other,
            },
        );
        info.description = name;
        info.interface = backend.to_string();
        info.driver = format!("{driver} {driver_info}").trim().to_string();
        info.memory = memory(adapter);
        info.max_tensor_bytes = Some(limits.max_buffer_size);
        info.details = vec![
            ("kernels", capabilities.tier()),
            (
                "features",
                features.iter_names().map(|(name, _)| name.to_lowercase()).collect::<Vec<_>>().join(", "),
            ),
            ("workgroup", format!("{} invocations", limits.max_compute_invocations_per_workgroup)),
            ("workgroup memory", format!("{} KiB", limits.max_compute_workgroup_storage_size >> 10)),
            ("bound at once", format!("{} MiB of a buffer", limits.max_storage_buffer_binding_size >> 20)),
            ("buffers per kernel", limits.max_storage_buffers_per_shader_stage.to_string()),
        ];
        info
    };
    found().iter().enumerate().map(describe).collect()
}

/// The adapter's own memory in bytes, where its driver says.
#[cfg(not(target_vendor = "apple"))]
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: nothing is done to the adapter but reading the properties of its memory.
    let heaps = unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = vulkan.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(vulkan.raw_physical_device())
    };
    const DEVICE_LOCAL: u32 = 1; // VK_MEMORY_HEAP_DEVICE_LOCAL_BIT
    let heaps = &heaps.memory_heaps[..heaps.memory_heap_count as usize];
    Some(heaps.iter().filter(|h| h.flags.as_raw() & DEVICE_LOCAL != 0).map(|h| h.size).sum())
}

#[cfg(target_vendor = "apple")]
fn memory(_: &wgpu::Adapter) -> Option<u64> {
    None
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

fn wants_base() -> Result<bool> {
    match std::env::var("ORKEST_WGPU_FEATURES").as_deref() {
        Err(_) | Ok("" | "all") => Ok(false),
        Ok("base") => Ok(true),
        Ok(other) => {
            Err(Error::Device(format!("ORKEST_WGPU_FEATURES={other}: expected \"base\" or \"all\"")))
        }
    }
}

/// What of an adapter is used. With `base`, nothing that it could do without.
fn offers(adapter: &wgpu::Adapter, base: bool) -> (Features, Limits, Capabilities) {
    let info = adapter.get_info();
    let features = if base { Features::empty() } else { adapter.features() & optional_features() };
    let mut limits = adapter.limits();
    if base {
        limits.max_immediate_size = 0;
    }
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
        rounds: if info.device_type == DeviceType::Cpu { 60_000 } else { usize::MAX },
    };
    (features, limits, capabilities)
}

/// Opens the `index`-th adapter.
///
/// `ORKEST_WGPU_FEATURES=base` does without every optional feature, to test what the plainest device runs.
pub(crate) fn open(index: usize) -> Result<Opened> {
    let base = wants_base()?;
    found_by().1.check()?;
    let adapter = found().get(index).ok_or_else(|| missing(index))?;
    let info = adapter.get_info();
    let name = info.name.clone();
    let (features, limits, capabilities) = offers(adapter, base);
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
    Ok(Opened { device, queue, info, capabilities })
}

/// Names of the interfaces that this library is built with.
const INTERFACES: &[&str] = if cfg!(target_vendor = "apple") {
    &["metal"]
} else if cfg!(windows) {
    &["vulkan", "dx12"]
} else {
    &["vulkan"]
};

fn missing(index: usize) -> Error {
    let describe = |info: wgpu::AdapterInfo| {
        format!(
            "{} ({}, {:?}, {} {})",
            info.name, info.backend, info.device_type, info.driver, info.driver_info
        )
    };
    let admitted: Vec<String> =
        found().iter().enumerate().map(|(i, a)| format!("wgpu:{i} {}", describe(a.get_info()))).collect();
    let chosen = |names: &[&str]| -> Vec<String> {
        names
            .iter()
            .filter_map(|name| {
                Some(format!("{name}={}", std::env::var(name).ok().filter(|v| !v.is_empty())?))
            })
            .collect()
    };
    let filters = chosen(&["WGPU_BACKEND", "WGPU_ADAPTER_NAME"]);
    let drivers = chosen(&["VK_DRIVER_FILES", "VK_ICD_FILENAMES"]);
    let mut message = format!("device wgpu:{index} is not available: ");
    if !admitted.is_empty() {
        message += &format!("found {}", admitted.join("; "));
    } else if !filters.is_empty() {
        let all: Vec<String> =
            look(wgpu::Backends::PRIMARY).into_iter().map(|a| describe(a.get_info())).collect();
        let all = if all.is_empty() {
            "there is none anyway".into()
        } else {
            format!("without it: {}", all.join("; "))
        };
        message += &format!(
            "no GPU adapter with {} (this program knows {}); {all}",
            filters.join(", "),
            INTERFACES.join(", ")
        );
    } else {
        message += "no GPU adapter was found";
    }
    if !drivers.is_empty() {
        message += &format!(" (drivers: {})", drivers.join(", "));
    }
    if admitted.is_empty() {
        message += if cfg!(target_os = "linux") {
            ". Install the GPU vendor's Vulkan driver, or a software one: \
             `apt-get install mesa-vulkan-drivers libvulkan1`"
        } else {
            ". Update the graphics driver or the system"
        };
    }
    Error::Device(message)
}
