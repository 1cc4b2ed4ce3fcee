//! Devices, and the table of backends that announced themselves.

use crate::backend::{Backend, MemoryStats};
use crate::error::{Error, Result};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A place where tensors live and operations run. Cheap to clone.
#[derive(Clone)]
pub struct Device(Arc<Opened>);

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
    /// Whether the device with this index exists and is worth preferring to the CPU: a hardware GPU.
    pub is_accelerator: fn(index: usize) -> bool,
}

inventory::collect!(Registration);

/// Announces a backend to [`Device`]: `register_backend!("name", open_function, is_accelerator_function)`.
///
/// Takes effect at link time, in every program that links the announcing crate.
#[macro_export]
macro_rules! register_backend {
    ($name:literal, $open:path, $is_accelerator:expr) => {
        $crate::inventory::submit! {
            $crate::Registration { name: $name, open: $open, is_accelerator: $is_accelerator }
        }
    };
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
                    "cpu" | "wgpu" => format!("; the cargo feature {name:?} of orkest is its place"),
                    _ => String::new(),
                };
                return Err(Error::Device(format!(
                    "device {name:?} is not available: this program has the backends [{}]{hint}",
                    known.join(", ")
                )));
            }
        };
        let device = Device(Arc::new(Opened { kind, index, backend }));
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

    /// A hardware GPU if there is one, else the CPU. Never fails.
    ///
    /// The environment variable `ORKEST_DEVICE` (`cpu`, `wgpu`, `wgpu:1`) overrides the choice.
    ///
    /// # Panics
    /// If `ORKEST_DEVICE` names a device that is not there.
    pub fn best() -> Device {
        if let Ok(name) = std::env::var("ORKEST_DEVICE")
            && !name.is_empty()
            && name != "best"
        {
            return Device::parse(&name).unwrap_or_else(|e| panic!("ORKEST_DEVICE={name}: {e}"));
        }
        inventory::iter::<Registration>
            .into_iter()
            .filter(|r| (r.is_accelerator)(0))
            .find_map(|r| Device::open(r.name, 0).ok())
            .unwrap_or_else(Device::cpu)
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
    pub fn backend(&self) -> &dyn Backend {
        &*self.0.backend
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
    fn eq(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
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
