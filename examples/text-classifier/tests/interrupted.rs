//! Ctrl-C during training: what was saved before stays, and nothing is left half written.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

fn train(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_text-classifier"));
    command.current_dir(folder).args(["--save", "model"]).args(more);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// Every file of a folder with its content.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn an_interrupted_training_leaves_the_files_of_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    assert!(train(folder.path(), &["--epochs", "1"]).output().unwrap().status.success());
    let saved = files(&folder.path().join("model"));
    assert!(!saved.is_empty());

    let mut run =
        train(folder.path(), &["--epochs", "1000000", "--seed", "7"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(run.stdout.take().unwrap()).lines();
    let mut epochs = lines.map_while(Result::ok).filter(|line| line.starts_with("Epoch "));
    assert!(epochs.nth(1).is_some(), "it trains until it is interrupted");
    // A shell that runs tests in the background lets them ignore SIGINT: then the second signal ends the run.
    for signal in ["-INT", "-TERM"] {
        assert!(Command::new("kill").args([signal, &run.id().to_string()]).status().unwrap().success());
    }
    assert!(run.wait().unwrap().signal().is_some(), "whoever started it sees that it was interrupted");
    assert_eq!(files(&folder.path().join("model")), saved);
}
