//! Devices, and the table of backends that announced themselves.

use crate::backend::{Backend, MemoryStats};
use crate::error::{Error, Result};
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

/// A place where tensors live and operations run. Free to clone: what has been opened stays open until the program ends.
#[derive(Clone)]
pub struct Device(&'static Opened);

// Backends keep their state behind locks; a panic in one operation leaves the others usable.
impl std::panic::UnwindSafe for Device {}
impl std::panic::RefUnwindSafe for Device {}

struct Opened {
    kind: &'static str,
    index: usize,
    backend: Box<dyn Backend>,
}

/// How a backend makes itself known: a name, and how to open its `index`-th device.
pub struct Registration {
    /// The name that `ORKEST_DEVICE` and [`Device::open`] know: `"cpu"`, `"wgpu"`.
    pub name: &'static str,
    /// Opens a device.
    pub open: fn(index: usize) -> Result<Box<dyn Backend>>,
    /// What devices there are, by index, without opening them.
    pub devices: fn() -> Vec<DeviceInfo>,
}

inventory::collect!(Registration);

/// Announces a backend to [`Device`]: `register_backend!("name", open_function, devices_function)`.
///
/// The last function lists the [`DeviceInfo`]s of the backend's devices; without it there is one, of type
/// [`DeviceType::Other`]. Takes effect at link time, in every program that links the announcing crate.
#[macro_export]
macro_rules! register_backend {
    ($name:literal, $open:path) => {
        $crate::register_backend!($name, $open, || vec![$crate::DeviceInfo::new(
            $name,
            $crate::DeviceType::Other
        )]);
    };
    ($name:literal, $open:path, $devices:expr) => {
        $crate::inventory::submit! {
            $crate::Registration { name: $name, open: $open, devices: $devices }
        }
    };
}

/// What kind of thing a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DeviceType {
    /// A GPU with memory of its own.
    DiscreteGpu,
    /// A GPU that shares the CPU's memory.
    IntegratedGpu,
    /// A part of a GPU, or a GPU seen from a virtual machine.
    VirtualGpu,
    /// The CPU.
    Cpu,
    /// A GPU interface that the CPU answers, such as lavapipe.
    Software,
    /// Anything else.
    Other,
}

impl DeviceType {
    /// The order in which [`Device::best`] tries devices; what does not appear is only taken when asked for by name.
    const PREFERRED: [DeviceType; 3] =
        [DeviceType::DiscreteGpu, DeviceType::IntegratedGpu, DeviceType::VirtualGpu];
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DeviceType::DiscreteGpu => "discrete GPU",
            DeviceType::IntegratedGpu => "integrated GPU",
            DeviceType::VirtualGpu => "virtual GPU",
            DeviceType::Cpu => "CPU",
            DeviceType::Software => "software",
            DeviceType::Other => "other",
        })
    }
}

/// A device that a program could use, as [`devices`] lists them.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// What [`Device::parse`] takes: `cpu`, `wgpu`, `wgpu:1`.
    pub name: String,
    /// What the maker calls it: `NVIDIA H200`.
    pub description: String,
    /// What kind of thing it is.
    pub device_type: DeviceType,
    /// The interface it is reached through: `vulkan`, `metal`, `dx12`; `native` for the CPU.
    pub interface: String,
    /// The driver with its version; may be empty.
    pub driver: String,
    /// Its memory in bytes, where that can be found out.
    pub memory: Option<u64>,
    /// Most bytes of one tensor, where there is a limit.
    pub max_tensor_bytes: Option<u64>,
    /// What else the backend has to say, as names and values: features, limits, the kernels it chooses.
    pub details: Vec<(&'static str, String)>,
}

impl DeviceInfo {
    /// A device of this name and type; the rest is unknown.
    pub fn new(name: impl Into<String>, device_type: DeviceType) -> DeviceInfo {
        let name = name.into();
        DeviceInfo {
            description: name.clone(),
            name,
            device_type,
            interface: "native".into(),
            driver: String::new(),
            memory: None,
            max_tensor_bytes: None,
            details: Vec::new(),
        }
    }
}

/// In one line: `wgpu: NVIDIA H200 (discrete GPU, vulkan, driver NVIDIA 580.95)`.
impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({}, {}", self.name, self.description, self.device_type, self.interface)?;
        if !self.driver.is_empty() {
            write!(f, ", driver {}", self.driver)?;
        }
        f.write_str(")")
    }
}

/// Every device that this program could use: those of all backends that are compiled in, the CPU first.
///
/// Nothing is opened; adapters are looked for once per process.
pub fn devices() -> Vec<DeviceInfo> {
    let mut all: Vec<DeviceInfo> = match registration("cpu") {
        Some(cpu) => (cpu.devices)(),
        None => vec![DeviceInfo::new("cpu", DeviceType::Cpu)],
    };
    let mut others: Vec<_> =
        inventory::iter::<Registration>.into_iter().filter(|r| r.name != "cpu").collect();
    others.sort_by_key(|r| r.name); // link order is nobody's choice
    all.extend(others.into_iter().flat_map(|r| (r.devices)()));
    all
}

static OPENED: Mutex<Vec<Device>> = Mutex::new(Vec::new());

impl Device {
    /// The CPU: the optimised backend if it is compiled in, else the plain interpreter of [`crate::reference`].
    ///
    /// # Panics
    /// If an environment variable that the backend reads makes no sense; [`Device::parse`] returns that as an error.
    #[track_caller]
    pub fn cpu() -> Device {
        static CPU: OnceLock<Device> = OnceLock::new();
        if let Some(device) = CPU.get() {
            return device.clone();
        }
        match Device::open(cpu_backend(), 0) {
            Ok(device) => CPU.get_or_init(|| device).clone(),
            Err(e) => panic!("the CPU device could not be opened: {e}"),
        }
    }

    /// The plain, single-threaded interpreter: slow, simple, and the yardstick for every backend.
    pub fn reference() -> Device {
        Device::open("reference", 0)
            .unwrap_or_else(|e| panic!("the reference device could not be opened: {e}"))
    }

    /// The `index`-th GPU that wgpu finds (Vulkan, Metal or DX12).
    ///
    /// # Errors
    /// If the feature `wgpu` is not compiled in or there is no such adapter.
    pub fn wgpu(index: usize) -> Result<Device> {
        Device::open("wgpu", index)
    }

    /// The `index`-th device of the backend announced as `name`. Opened once; later calls give the same device.
    ///
    /// # Errors
    /// If no such backend is compiled in, or it has no such device.
    pub fn open(name: &str, index: usize) -> Result<Device> {
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = opened.iter().find(|d| d.0.kind == name && d.0.index == index) {
            return Ok(device.clone());
        }
        let (kind, backend): (&'static str, Box<dyn Backend>) = match registration(name) {
            Some(r) => (r.name, (r.open)(index)?),
            None if name == "reference" => ("reference", Box::new(crate::reference::Reference)),
            None => {
                let known: Vec<_> = inventory::iter::<Registration>.into_iter().map(|r| r.name).collect();
                let hint = match name {
                    "cpu" | "wgpu" => format!("; it needs the cargo feature {name:?}"),
                    _ => String::new(),
                };
                return Err(Error::Device(format!(
                    "device {name:?} is not available: this program has the backends [{}]{hint}",
                    known.join(", ")
                )));
            }
        };
        let device = Device(Box::leak(Box::new(Opened { kind, index, backend })));
        opened.push(device.clone());
        Ok(device)
    }

    /// From a name as on a command line: `cpu`, `wgpu`, `wgpu:1`, `best`.
    ///
    /// # Errors
    /// If the name is malformed or the device is not there: a device asked for by name is never replaced by another.
    pub fn parse(name: &str) -> Result<Device> {
        let (kind, index) = match name.split_once(':') {
            Some((kind, index)) => match index.parse() {
                Ok(i) => (kind, i),
                Err(_) => {
                    return Err(Error::Device(format!("device {name:?}: {index:?} is not a device number")));
                }
            },
            None => (name, 0),
        };
        match kind {
            "best" => Ok(Device::best()),
            "cpu" if index > 0 => {
                Err(Error::Device(format!("device {name:?}: there is one CPU device, cpu")))
            }
            "cpu" => Device::open(cpu_backend(), 0),
            _ => Device::open(kind, index),
        }
    }

    /// A hardware GPU if there is one that can be opened, a discrete one before an integrated one; else the CPU.
    ///
    /// A GPU that is only software is never chosen, but can be asked for: `Device::wgpu(n)`. The environment variable
    /// `ORKEST_DEVICE` (`cpu`, `wgpu`, `wgpu:1`) overrides the choice.
    ///
    /// # Panics
    /// If `ORKEST_DEVICE` names a device that is not there.
    #[track_caller]
    pub fn best() -> Device {
        if let Ok(name) = std::env::var("ORKEST_DEVICE")
            && !name.is_empty()
            && name != "best"
        {
            match Device::parse(&name) {
                Ok(device) => return device,
                Err(e) => panic!("ORKEST_DEVICE={name}: {e}"),
            }
        }
        let found = devices();
        preferred(&found).find_map(|info| Device::parse(&info.name).ok()).unwrap_or_else(Device::cpu)
    }

    /// The backend's short name: `cpu`, `wgpu`, `reference`.
    pub fn kind(&self) -> &'static str {
        self.0.kind
    }

    /// Which of the backend's devices this is.
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// The backend behind this device.
    #[inline]
    pub fn backend(&self) -> &dyn Backend {
        &*self.0.backend
    }

    /// What is known about it: `torch.cuda.get_device_properties`.
    ///
    /// ```
    /// # use orkest_core::Device;
    /// println!("{}", Device::cpu().info()); // a name, the maker's name for it, what kind of thing it is
    /// ```
    pub fn info(&self) -> DeviceInfo {
        let name = self.to_string();
        let listed = devices().into_iter().find(|info| info.name == name);
        listed.unwrap_or_else(|| DeviceInfo::new(name, DeviceType::Other))
    }

    /// Waits until everything asked of this device is done.
    ///
    /// # Errors
    /// Whatever went wrong on the device since the last read.
    pub fn synchronize(&self) -> Result<()> {
        self.backend().synchronize()
    }

    /// Forgets an error that this device reported, so that it can be used again.
    pub fn clear_error(&self) {
        self.backend().clear_error();
    }

    /// How much memory tensors use on this device, and the most they have used.
    ///
    /// ```
    /// # use orkest_core::{Device, Tensor};
    /// let device = Device::cpu();
    /// device.reset_peak_memory();
    /// let before = device.memory_stats();
    /// drop(Tensor::zeros([256, 1024], &device));
    /// println!("{} bytes more at the peak", device.memory_stats().peak_bytes - before.live_bytes);
    /// ```
    pub fn memory_stats(&self) -> MemoryStats {
        self.backend().memory_stats()
    }

    /// Lets the peak of [`Device::memory_stats`] start again from what is in use now.
    pub fn reset_peak_memory(&self) {
        self.backend().reset_peak_memory();
    }
}

/// The devices that are worth more than the CPU, best first; among equals the first listed.
fn preferred(found: &[DeviceInfo]) -> impl Iterator<Item = &DeviceInfo> {
    let of = |kind| found.iter().filter(move |info| info.device_type == kind);
    DeviceType::PREFERRED.into_iter().flat_map(of)
}

fn cpu_backend() -> &'static str {
    if registration("cpu").is_some() { "cpu" } else { "reference" }
}

fn registration(name: &str) -> Option<&'static Registration> {
    inventory::iter::<Registration>.into_iter().find(|r| r.name == name)
}

impl Default for Device {
    fn default() -> Device {
        Device::cpu()
    }
}

impl PartialEq for Device {
    #[inline]
    fn eq(&self, other: &Device) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Device {}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.index == 0 {
            f.write_str(self.0.kind)
        } else {
            write!(f, "{}:{}", self.0.kind, self.0.index)
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({})", self.backend().name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discrete_before_integrated_and_never_software() {
        use DeviceType::{Cpu, DiscreteGpu, IntegratedGpu, Other, Software, VirtualGpu};
        let named: Vec<DeviceInfo> =
            [Cpu, Software, VirtualGpu, IntegratedGpu, DiscreteGpu, Other, DiscreteGpu]
                .into_iter()
                .enumerate()
                .map(|(i, kind)| DeviceInfo::new(i.to_string(), kind))
                .collect();
        let order: Vec<&str> = preferred(&named).map(|info| info.name.as_str()).collect();
        assert_eq!(order, ["4", "6", "3", "2"]);
        assert_eq!(preferred(&named[..2]).count(), 0);
    }

    #[test]
    fn a_backend_that_lists_nothing_has_one_device() {
        let found = devices();
        assert_eq!(found[0].name, "cpu");
        let kernels: Vec<_> = found.iter().filter(|info| info.name == "kernels").collect();
        assert_eq!(kernels.len(), 1);
        assert_eq!(kernels[0].device_type, DeviceType::Other);
    }
}
