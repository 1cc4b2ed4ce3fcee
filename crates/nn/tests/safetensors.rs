//! Safetensors files: what comes back, and what is refused.

use orkest_core::{DType, Device, Tensor, tensor};
use orkest_nn::{Linear, Module, StateDict, load_safetensors};

/// One tensor of each dtype.
fn all_dtypes() -> StateDict {
    let x = tensor![[1.0, 0.0, -2.5], [3.0, 0.5, 0.0]];
    let mut state: StateDict =
        DType::ALL.into_iter().map(|d| (format!("x.{d}"), x.abs().to_dtype(d))).collect();
    state.insert("scalar", Tensor::full((), 7, &Device::cpu()));
    state.insert("empty \"quoted\" é", Tensor::zeros([0, 3], &Device::cpu()));
    state.insert("strided", x.t());
    state
}

fn assert_equal(a: &StateDict, b: &StateDict) {
    assert_eq!(a.len(), b.len());
    for (name, x) in a.iter() {
        let y = &b[name];
        assert_eq!((x.dtype(), x.shape()), (y.dtype(), y.shape()), "{name}");
        assert_eq!(x.to_bytes().unwrap(), y.to_bytes().unwrap(), "{name}");
    }
}

#[test]
fn every_dtype_and_shape_survives_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    let mut state = all_dtypes();
    state.metadata.insert("note".into(), "\"two\"\nlines".into());
    state.save(&path).unwrap();
    let loaded = load_safetensors(&path).unwrap();
    assert_equal(&state, &loaded);
    assert_eq!(loaded.metadata["note"], state.metadata["note"]);
    assert_eq!(loaded.metadata["format"], "pt");
    // The same state gives the same bytes, and no temporary file stays behind.
    assert_eq!(std::fs::read(&path).unwrap(), loaded.to_safetensors().unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn the_layout_is_the_formats() {
    // Written by hand from the format's description: length, JSON padded to 8 bytes, data.
    let state: StateDict = [("b", tensor![1.0, 2.0])].into_iter().collect();
    let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let padded = format!("{header:<88}");
    let mut expected = 88u64.to_le_bytes().to_vec();
    expected.extend(padded.as_bytes());
    expected.extend([0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]);
    assert_eq!(state.to_safetensors().unwrap(), expected);
}

#[test]
fn a_model_is_saved_over_an_older_file_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, "something else").unwrap();
    let (a, b) = (Linear::new(3, 2), Linear::new(3, 2));
    a.save_safetensors(&path).unwrap();
    b.load_safetensors(&path, true).unwrap();
    assert_equal(&a.state_dict(), &b.state_dict());
    let error = Linear::new(4, 2).load_safetensors(&path, true).unwrap_err().to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("weight is [2, 4] in the model"),
        "{error}"
    );
}

#[test]
fn a_save_that_fails_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, "old").unwrap();
    let bad: StateDict = [("__metadata__", tensor![1.0])].into_iter().collect();
    assert!(bad.save(&path).unwrap_err().to_string().contains("model.safetensors"));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(bad.save(folder.path().join("no/such/folder/file")).is_err());
}

/// A file with this header (its true length in front) and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn damaged_files_are_refused_with_the_reason() {
    let one = |info: &str| format!(r#"{{"w":{{{info}}}}}"#);
    let two = |b: &str| format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"b":{{{b}}}}}"#);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "it has 0 bytes"),
        (vec![1, 2, 3], "it has 3 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "a header of 18446744073709551615 bytes is announced, 0 follow"),
        (
            [20u64.to_le_bytes().to_vec(), b"{}".to_vec()].concat(),
            "a header of 20 bytes is announced, 2 follow",
        ),
        (file("", 0), "the header is not what it should be"),
        (file("[]", 0), "the header is not what it should be"),
        (file("{\"w\":", 0), "the header is not what it should be"),
        ([2u64.to_le_bytes().to_vec(), vec![0xff, 0xfe]].concat(), "not UTF-8"),
        (file("{}", 3), "3 bytes after the last tensor"),
        (
            file(&one(r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#), 7),
            "\"w\": it ends at 8, the file has 7 bytes",
        ),
        (file(&one(r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#), 9), "1 bytes after the last tensor"),
        (
            file(&one(r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#), 8),
            "\"w\": 8 bytes cannot be F32 [3]",
        ),
        (
            file(&one(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#), 8),
            "\"w\": it ends at 0, before its start",
        ),
        (
            file(&one(r#""dtype":"F32","shape":[1],"data_offsets":[4,8]"#), 8),
            "\"w\": there is a gap before it",
        ),
        (file(&one(r#""dtype":"F33","shape":[2],"data_offsets":[0,8]"#), 8), "\"w\": unknown variant `F33`"),
        (
            file(&one(r#""dtype":"U16","shape":[4],"data_offsets":[0,8]"#), 8),
            "\"w\" is of dtype U16, which cannot be read",
        ),
        (
            file(&one(r#""dtype":"BOOL","shape":[1],"data_offsets":[0,1]"#), 0),
            "\"w\": it ends at 1, the file has 0",
        ),
        (
            file(&one(r#""dtype":"F32","shape":[-2],"data_offsets":[0,8]"#), 8),
            "\"w\": invalid value: integer `-2`",
        ),
        (file(&one(r#""dtype":"F32","shape":[2]"#), 8), "\"w\": missing field `data_offsets`"),
        (
            file(&one(r#""dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]"#), 8),
            "more than 8 sizes",
        ),
        (file(&one(r#""dtype":"F32","shape":[[2]],"data_offsets":[0,8]"#), 8), "nested deeper"),
        (
            file(&two(r#""dtype":"F32","shape":[2],"data_offsets":[4,12]"#), 12),
            "\"b\": it overlaps the one before",
        ),
        (
            file(&two(r#""dtype":"F32","shape":[2],"data_offsets":[12,20]"#), 20),
            "\"b\": there is a gap before it",
        ),
        (
            file(&one(r#""dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]"#), 8),
            "\"w\": 8 bytes cannot be F32",
        ),
        (
            file(&one(r#""dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]"#), 8),
            "\"w\": it ends at 1844",
        ),
        (file(r#"{"__metadata__":{"format":1}}"#, 0), "__metadata__: invalid type"),
        (file(&format!("{{{}}}", vec!["\"\":1"; 1000].join(",")), 0), "1000 entries do not fit"),
        (file(&format!("{{\"w\":{}", "[".repeat(100_000)), 0), "nested deeper"),
    ];
    for (bytes, reason) in cases {
        let error = StateDict::from_safetensors(&bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
    }
    let mut truth = file(r#"{"w":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}"#, 1);
    assert!(StateDict::from_safetensors(&truth).is_ok());
    *truth.last_mut().unwrap() = 2;
    assert!(StateDict::from_safetensors(&truth).unwrap_err().to_string().contains("tensor \"w\""));
}

#[test]
fn cut_and_altered_files_never_panic() {
    let bytes = all_dtypes().to_safetensors().unwrap();
    for end in 0..bytes.len() {
        assert!(StateDict::from_safetensors(&bytes[..end]).is_err(), "cut at {end}");
    }
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        for flip in [1, 0x20, 0x80] {
            let mut altered = bytes.clone();
            altered[at] ^= flip;
            let _ = StateDict::from_safetensors(&altered); // An altered name may be fine; a crash is not.
        }
    }
}

#[test]
fn what_is_no_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    for (path, reason) in [
        (folder.path().into(), "not a regular file"),
        (empty, "empty"),
        (folder.path().join("none"), "No such"),
    ] {
        let error = load_safetensors(&path).unwrap_err().to_string();
        assert!(error.starts_with(&path.display().to_string()) && error.contains(reason), "{error}");
    }
}
