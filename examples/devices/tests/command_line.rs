//! The program as a user runs it.

use serde_json::Value;
use std::process::{Command, Output};

fn devices(args: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_devices")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn every_device_that_is_listed_computes() {
    let output = devices(&["--json", "--check"]);
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> =
        listed["devices"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    let said = String::from_utf8(output.stderr).unwrap();
    for name in &names {
        assert!(said.contains(&format!("{name} computes\n")), "{name}: {said}");
    }
    assert_eq!(names[0], "cpu");
    if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") {
        assert!(names.contains(&"wgpu"), "{names:?}");
    }
}

#[test]
fn the_table_marks_the_best_device() {
    let table = String::from_utf8(devices(&[]).stdout).unwrap();
    assert_eq!(table.lines().filter(|line| line.starts_with("* ")).count(), 1, "{table}");
}

#[cfg(unix)]
#[test]
fn a_reader_that_has_gone_ends_the_program_without_a_panic() {
    use std::os::unix::process::ExitStatusExt;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut program = Command::new(env!("CARGO_BIN_EXE_devices"));
    let output = program.stdout(writer).output().unwrap();
    assert_eq!(output.status.signal(), Some(13), "SIGPIPE");
    let said = String::from_utf8(output.stderr).unwrap(); // a driver may have something to say
    assert!(!said.contains("panicked"), "{said}");
}
