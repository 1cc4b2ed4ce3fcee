//! The process that uses the GPU. One that is forked from it has none of the driver's threads: what it asked for would never come.

use orkest_core::{Error, Result};

/// A process, by its number.
#[derive(Clone, Copy)]
pub(crate) struct Process(u32);

impl Process {
    /// The one that runs this.
    pub(crate) fn current() -> Process {
        Process(std::process::id())
    }

    /// An error anywhere else. Asked where the driver is about to be, which takes far longer than asking.
    pub(crate) fn check(self) -> Result<()> {
        match Process::current() {
            Process(current) if current != self.0 => Err(Error::Device(format!(
                "process {current} cannot use the GPU: it was forked from process {} when that had looked for adapters already, and \
                 has none of the driver's threads; fork before anything asks for a GPU, or start a program or threads instead",
                self.0
            ))),
            _ => Ok(()),
        }
    }
}
