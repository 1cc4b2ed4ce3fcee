//! Files that are never seen half written.

use crate::error::{Error, Result};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Writes a file as a whole: whoever reads it sees the old one or the new one, also after a crash.
///
/// `write` fills another file in the same folder, which then takes the place of `path` (of the file that it leads to, if it is a
/// link). What is no regular file, such as a pipe or `/dev/stdout`, is written to directly.
///
/// ```
/// # use std::io::Write;
/// # let folder = std::env::temp_dir().join(format!("write_file_{}", std::process::id()));
/// # std::fs::create_dir_all(&folder).unwrap();
/// # let path = folder.join("losses.txt");
/// orkest_core::write_file(&path, |out| writeln!(out, "0.69 0.31 0.18"))?;
/// # assert_eq!(std::fs::read_to_string(&path).unwrap(), "0.69 0.31 0.18\n");
/// # std::fs::remove_dir_all(&folder).unwrap();
/// # Ok::<(), orkest_core::Error>(())
/// ```
///
/// # Errors
/// If the file cannot be written or `write` fails. A file that was there is kept then.
pub fn write_file(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    replace(path, write).map_err(|e| Error::Io(format!("{}: cannot be written: {e}", path.display())))
}

/// Makes a folder, and those that it lies in, and sees to it that files can be written there: what cannot be stored is to be known
/// before it is computed.
///
/// ```
/// # let model = std::env::temp_dir().join(format!("output_folder_{}", std::process::id())).join("model");
/// orkest_core::output_folder(&model)?; // then train for hours
/// # std::fs::remove_dir_all(model.parent().unwrap()).unwrap();
/// # Ok::<(), orkest_core::Error>(())
/// ```
///
/// # Errors
/// If the folder cannot be made or written to.
pub fn output_folder(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let probe = || {
        fs::create_dir_all(path)?;
        let name = beside(&path.join("probe")).ok_or_else(|| io::Error::other("is no file name"))?;
        File::create_new(&name)?;
        fs::remove_file(&name)
    };
    probe().map_err(|e| Error::Io(format!("{}: no files can be written there: {e}", path.display())))
}

fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let target = match fs::metadata(path) {
        Ok(there) if there.is_dir() => return Err(io::Error::other("is a directory")),
        Ok(there) if !there.is_file() => return fill(&File::create(path)?, write),
        Ok(_) => fs::canonicalize(path)?,
        Err(_) if path.is_symlink() => return fill(&File::create(path)?, write), // leads to a file that is not there yet
        Err(_) => path.to_path_buf(),
    };
    let temporary = beside(&target).ok_or_else(|| io::Error::other("is no file name"))?;
    let written = File::create_new(&temporary).and_then(|file| {
        fill(&file, write)?;
        file.sync_all()?;
        fs::rename(&temporary, &target)
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // It may not exist; the error that matters is the first one.
        return written;
    }
    // The new name is on disk only when its folder is. Not every system can open one, and the file itself is safe already.
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

fn fill(file: &File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out)?;
    out.flush()
}

/// A name in the same folder (so that renaming is one step) that no other write uses.
fn beside(path: &Path) -> Option<PathBuf> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    name.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    Some(path.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("orkest-files-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = folder("failed");
        let path = folder.join("a");
        write_file(&path, |out| out.write_all(b"old")).unwrap();
        let error = write_file(&path, |out| {
            out.write_all(b"half of the n")?;
            Err(io::Error::other("no space"))
        });
        assert!(error.unwrap_err().to_string().ends_with("a: cannot be written: no space"));
        assert_eq!((fs::read(&path).unwrap(), names(&folder)), (b"old".to_vec(), vec!["a".to_string()]));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_output_folder_is_made_and_left_empty() {
        let folder = folder("output");
        let path = folder.join("a/b");
        for _ in 0..2 {
            output_folder(&path).unwrap();
            assert!(names(&path).is_empty());
        }
        fs::write(folder.join("file"), "").unwrap();
        let error = output_folder(folder.join("file")).unwrap_err().to_string();
        assert!(error.contains("file: no files can be written there: "), "{error}");
        #[cfg(target_os = "linux")]
        assert!(output_folder("/proc").is_err(), "it is there, but takes no files");
        fs::remove_dir_all(folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links_and_devices_stay_devices() {
        let folder = folder("links");
        let (file, link) = (folder.join("epoch3"), folder.join("latest"));
        std::os::unix::fs::symlink("epoch3", &link).unwrap();
        for text in ["first", "second"] {
            write_file(&link, |out| out.write_all(text.as_bytes())).unwrap();
            assert!(link.is_symlink() && fs::read_to_string(&file).unwrap() == text);
        }
        write_file("/dev/null", |out| out.write_all(b"gone")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        assert!(write_file(&folder, |_| Ok(())).unwrap_err().to_string().ends_with("is a directory"));
        fs::remove_dir_all(folder).unwrap();
    }
}
