//! The program as a user runs it.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn mnist(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mnist")).current_dir(folder).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(text(output).lines().last().unwrap()).unwrap()
}

#[test]
fn it_learns_saves_and_judges_what_it_saved() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--samples", "1024", "--epochs", "2", "--save", "model", "--json"];
    let trained = mnist(folder.path(), &args);
    let result = json(&trained);
    let accuracy = result["accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.6, "{result}");
    assert!(folder.path().join("model/misread.png").is_file());
    let judged = text(&mnist(folder.path(), &["eval", "--model", "model"]));
    assert!(judged.starts_with(&format!("Accuracy: {accuracy:.4}\n")), "{judged}");
    let matrix =
        |text: &str| text.lines().filter(|line| line.contains(" | ")).map(String::from).collect::<Vec<_>>();
    assert_eq!(matrix(&judged), matrix(&text(&trained)));
}

#[test]
fn mistakes_of_the_user_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    for (args, message) in [
        (&["--data", "nowhere"][..], "error: nowhere: is no folder; one with MNIST's files is expected"),
        (&["--data", "."], "error: .: has neither train-images-idx3-ubyte nor t10k-images-idx3-ubyte"),
        (&["--samples", "10"], "error: --samples must lie between a batch, 64, and all pictures, 3000"),
        (&["--device", "abacus"], "error: "),
        (&["eval", "--model", "."], "error: "),
    ] {
        let output = mnist(folder.path(), args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.starts_with(message), "{args:?}: {error}");
    }
}

/// The same seed on both devices: the first epoch's loss agrees.
#[cfg(feature = "wgpu")]
#[test]
fn devices_agree() {
    let folder = tempfile::tempdir().unwrap();
    let loss = |device: &str| {
        let args = ["--samples", "256", "--epochs", "1", "--device", device, "--json"];
        json(&mnist(folder.path(), &args))["train_loss"].as_f64().unwrap()
    };
    let (cpu, gpu) = (loss("cpu"), loss("wgpu"));
    assert!((cpu - gpu).abs() <= 1e-3, "loss of the first epoch: {cpu} on the CPU, {gpu} on the GPU");
}
