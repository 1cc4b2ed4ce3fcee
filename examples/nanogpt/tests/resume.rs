//! The program as a user runs it: killed at any moment and resumed, it ends where an uninterrupted run ends.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Instant;

fn nanogpt(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nanogpt"));
    command
        .args("--layers 1 --heads 2 --width 16 --block 16 --batch-size 4 --steps 60 --warmup 5".split(' '));
    command.args("--dropout 0.1 --eval-every 20 --eval-batches 2 --checkpoint-every 1 --tokens 0".split(' '));
    command.args(["--trace", "--json", "--save"]).arg(folder);
    command.stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The losses of all steps that a run printed, and what it printed about the result, without the times.
#[track_caller]
fn result(output: &Output) -> (Vec<String>, String) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    let is_trace = |line: &&str| line.starts_with("step ") && !line.contains("train loss");
    let steps = out.lines().filter(is_trace).map(String::from).collect();
    let last = out.lines().last().unwrap_or_default();
    (steps, last.split(r#","steps":"#).next().unwrap_or_default().to_string())
}

#[test]
fn killing_it_at_any_moment_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let whole = nanogpt(&folder.path().join("whole")).output().unwrap();
    let duration = start.elapsed();
    let (losses, expected) = result(&whole);
    assert_eq!(losses.len(), 60);

    let pieces = folder.path().join("pieces");
    let mut kills = 0;
    // Moments that have nothing to do with the rhythm of the steps, at least one of them before the end.
    for i in 0..6 {
        let mut run =
            nanogpt(&pieces).arg("--resume").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(duration.mul_f64(0.15 + 0.07 * f64::from(i)));
        kills += usize::from(run.try_wait().unwrap().is_none());
        run.kill().unwrap(); // SIGKILL
        run.wait().unwrap();
    }
    assert!(kills >= 1, "every run came to its end before it was killed");
    let resumed = nanogpt(&pieces).arg("--resume").output().unwrap();
    let (rest, found) = result(&resumed);
    assert_eq!(found, expected, "the resumed run ends elsewhere");
    assert_eq!(losses[losses.len() - rest.len()..], rest);
    // Once more: there is nothing left to do, and the result is the same.
    let again = nanogpt(&pieces).arg("--resume").output().unwrap();
    assert_eq!(result(&again), (Vec::new(), expected));
    let mut files: Vec<_> = fs::read_dir(&pieces).unwrap().map(|e| e.unwrap().file_name()).collect();
    files.retain(|name| !name.to_string_lossy().ends_with(".tmp")); // of a run that was killed while writing
    files.sort_unstable();
    assert_eq!(files, ["checkpoint.safetensors", "loss.png"]);
}

#[test]
fn a_damaged_or_foreign_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(nanogpt(folder.path()).output().unwrap().status.success());
    let file = folder.path().join("checkpoint.safetensors");
    let good = fs::read(&file).unwrap();

    let refused = |bytes: &[u8], message: &str| {
        fs::write(&file, bytes).unwrap();
        let output = nanogpt(folder.path()).arg("--resume").output().unwrap();
        let error = text(&output.stderr);
        assert!(!output.status.success() && error.contains("cannot resume from"), "{error}");
        assert!(error.contains(message), "{error}");
        assert_eq!(fs::read(&file).unwrap(), bytes, "the file is left alone");
    };
    refused(&good[..good.len() / 2], "not a valid safetensors file");
    refused(&good[..100], "not a valid safetensors file");
    refused(b"", "empty");
    for place in [good.len() - 5, good.len() / 2] {
        let mut flipped = good.clone();
        flipped[place] ^= 1;
        refused(&flipped, "damaged");
    }

    fs::write(&file, &good).unwrap();
    let mut other = Command::new(env!("CARGO_BIN_EXE_nanogpt"));
    let other = other.args(["--layers", "3", "--resume", "--save"]).arg(folder.path()).output().unwrap();
    assert!(text(&other.stderr).contains("it was made with --"), "{}", text(&other.stderr));

    let mut sample = Command::new(env!("CARGO_BIN_EXE_nanogpt"));
    let sample = sample.args([
        "sample", "--tokens", "40", "--top-k", "5", "--top-p", "0.9", "--prompt", "Shall I", "--model",
    ]);
    let sample = sample.arg(folder.path()).output().unwrap();
    assert!(sample.status.success(), "{}", text(&sample.stderr));
    assert!(
        text(&sample.stdout).starts_with("Shall I") && text(&sample.stdout).chars().count() == 7 + 40 + 1
    );
}
