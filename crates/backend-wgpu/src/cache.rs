//! Compiled pipelines on disk, for drivers that hand them out (Vulkan): the next start of a program compiles less.
//!
//! A file that is damaged, foreign or too large is as good as none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// The largest file. Kernels change with versions and the driver forgets nothing: when it gets larger, it starts over.
const LARGEST: usize = 64 << 20;
/// How long nothing must have been compiled before the file is written.
const QUIET: Duration = Duration::from_millis(200);
/// The first bytes of a file; eight bytes of checksum follow.
const MAGIC: &[u8; 8] = b"orkestp1";

/// The driver's cache, written to disk in the background whenever it has grown.
pub(crate) struct Cache {
    cache: wgpu::PipelineCache,
    grown: Sender<()>,
}

impl Cache {
    /// The cache of this adapter, with what earlier runs left. `None` where there are no such caches or none is wanted.
    pub(crate) fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo) -> Option<Cache> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let path = folder()?.join(wgpu::util::pipeline_cache_key(info)?);
        let data = read(&path);
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
        // SAFETY: the data was written by `write` below and is whole, as its checksum says; that it fits this adapter and driver
        // is checked by wgpu and the driver, from the headers that they put in front.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        let (grown, news) = channel();
        let kept = cache.clone();
        let known = data.map_or(0, |data| checksum(&data));
        let keep = move || keep(&path, &news, known, || kept.get_data());
        std::thread::Builder::new().name("orkest pipelines".into()).spawn(keep).ok()?;
        Some(Cache { cache, grown })
    }

    pub(crate) fn get(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// A pipeline was compiled.
    pub(crate) fn grown(&self) {
        // Without the thread nothing is written, and nothing else is amiss.
        let _ = self.grown.send(());
    }
}

/// Writes the file each time that news has come and no more comes for a while.
fn keep(path: &Path, news: &Receiver<()>, mut known: u64, data: impl Fn() -> Option<Vec<u8>>) {
    while news.recv().is_ok() {
        while news.recv_timeout(QUIET).is_ok() {}
        let Some(data) = data() else { continue };
        let sum = checksum(&data);
        // A cache that cannot be written makes the next start slower, nothing else.
        if sum != known && write(path, &data).is_ok() {
            known = sum;
        }
    }
}

/// `ORKEST_CACHE_DIR`, where empty means none, or the user's folder for such things.
fn folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(chosen) = std::env::var_os("ORKEST_CACHE_DIR") {
        return (!chosen.is_empty()).then(|| chosen.into());
    }
    let base = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_vendor = "apple") {
        variable("HOME").map(|home| home.join("Library/Caches"))
    } else {
        variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))
    };
    Some(base?.join("orkest"))
}

/// The data of a file that is whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    if fs::metadata(path).ok()?.len() > (LARGEST + 16) as u64 {
        return None;
    }
    let file = fs::read(path).ok()?;
    let (magic, rest) = file.split_first_chunk::<8>()?;
    let (sum, data) = rest.split_first_chunk::<8>()?;
    (magic == MAGIC && u64::from_le_bytes(*sum) == checksum(data)).then(|| data.to_vec())
}

/// Replaces the file as a whole; readers see the old one or the new one. Too much data removes it.
fn write(path: &Path, data: &[u8]) -> io::Result<()> {
    if data.len() > LARGEST {
        return fs::remove_file(path);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let file = [MAGIC, &checksum(data).to_le_bytes()[..], data].concat();
    let done = fs::write(&temporary, file).and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done
}

/// FNV-1a over words of eight bytes.
fn checksum(data: &[u8]) -> u64 {
    data.chunks(8).fold(0xcbf2_9ce4_8422_2325, |hash: u64, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x100_0000_01b3)
    }) ^ data.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_it_was_written_and_ignored_when_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/pipelines");
        assert_eq!(read(&path), None);
        let data: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        write(&path, &data).unwrap();
        assert_eq!(read(&path), Some(data));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "the temporary file is gone");
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[500] ^= 1;
        let longer = [&whole[..], &[0]].concat();
        for damaged in [&whole[..999], &flipped, &longer, b"", b"short", b"orkestp1", &[0; 4000]] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(read(&path), None, "{} bytes", damaged.len());
        }
    }

    #[test]
    fn what_has_grown_too_large_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipelines");
        write(&path, b"small").unwrap();
        write(&path, &vec![1; LARGEST + 1]).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn news_that_come_together_are_written_once_and_only_if_something_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipelines");
        let run = |known| {
            let (sender, receiver) = channel();
            (0..5).for_each(|_| sender.send(()).unwrap());
            drop(sender);
            let asked = std::cell::Cell::new(0);
            keep(&path, &receiver, known, || {
                asked.set(asked.get() + 1);
                Some(b"compiled".to_vec())
            });
            asked.get()
        };
        assert_eq!(run(checksum(b"compiled")), 1);
        assert!(!path.exists(), "nothing new");
        assert_eq!(run(0), 1);
        assert_eq!(read(&path).as_deref(), Some(&b"compiled"[..]));
    }
}
