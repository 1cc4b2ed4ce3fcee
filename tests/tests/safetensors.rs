//! The reader of weight files under attack: whatever the bytes, a clear error or a state dict, never a crash or a huge allocation.

use orkest::nn::StateDict;
use orkest::prelude::*;
use orkest_tests as _;

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn refusal(bytes: &[u8]) -> String {
    match StateDict::from_safetensors(bytes) {
        Err(e) => e.to_string(),
        Ok(state) => panic!("accepted: {:?}", state.keys().collect::<Vec<_>>()),
    }
}

fn valid() -> Vec<u8> {
    let mut state = StateDict::new();
    state.insert("weight", Tensor::new([[1.0f32, -2.0], [3.5, 0.0]], &Device::cpu()));
    state.insert("ids", tensor![1, 2, 3]);
    state.insert("flags", Tensor::new([true, false], &Device::cpu()));
    state.insert("empty", Tensor::zeros([0, 4], &Device::cpu()));
    state.to_safetensors().unwrap()
}

#[test]
fn every_dtype_comes_back() {
    let x = Tensor::new([0.0f64, 1.0, 100.0], &Device::cpu());
    let mut state = StateDict::new();
    let all =
        [DType::Bool, DType::U8, DType::I32, DType::I64, DType::F16, DType::BF16, DType::F32, DType::F64];
    for dtype in all {
        state.insert(dtype.name(), x.to_dtype(dtype));
    }
    let back = StateDict::from_safetensors(&state.to_safetensors().unwrap()).unwrap();
    for dtype in all {
        let tensor = back.get(dtype.name()).unwrap();
        assert_eq!(tensor.dtype(), dtype);
        assert_eq!(tensor.to_bytes().unwrap(), x.to_dtype(dtype).to_bytes().unwrap(), "{dtype}");
    }
}

#[test]
fn lies_in_the_header_are_named() {
    let cases: [(&str, usize, &str); 10] = [
        (r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4, "\"w\""),
        (r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8, "\"w\""),
        (r#"{"w":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#, 8, "w"),
        (r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "\"w\""),
        (
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
            6,
            "\"b\"",
        ),
        (r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#, 6, "\"w\""),
        (r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 9, "5 bytes"),
        (r#"{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#, 8, "\"w\""),
        (r#"{"w":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#, 1, "more than 8 sizes"),
        (r#"{"w":[1,2,3]}"#, 0, "w"),
    ];
    for (header, data, named) in cases {
        let message = refusal(&file(header, &vec![0; data]));
        assert!(message.contains("safetensors") || message.contains("tensor"), "{header}: {message}");
        assert!(message.contains(named), "{header}: {message}");
    }
    let message = refusal(&file(r#"{"b":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}"#, &[7]));
    assert!(message.contains("\"b\""), "{message}");
}

#[test]
fn bombs_do_not_go_off() {
    refusal(&[]);
    refusal(&[0; 7]);
    refusal(&u64::MAX.to_le_bytes());
    refusal(&file("not json", &[]));
    refusal(&file(&"[".repeat(1 << 20), &[]));
    refusal(&file(&format!("{{\"w\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000)), &[]));
    let shape = vec!["1"; 200_000].join(",");
    refusal(&file(&format!(r#"{{"w":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}}}"#), &[0]));
    let many = vec![r#""w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#; 50_000].join(",");
    let _ = StateDict::from_safetensors(&file(&format!("{{{many}}}"), &[])); // the same name over and over: either answer is fine
}

#[test]
fn every_truncation_is_refused() {
    let bytes = valid();
    assert_eq!(StateDict::from_safetensors(&bytes).unwrap().keys().count(), 4);
    for len in 0..bytes.len() {
        refusal(&bytes[..len]);
    }
}

#[test]
fn random_damage_never_crashes_the_reader() {
    let (clean, mut seed) = (valid(), 1u64);
    let mut random = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize
    };
    let (mut refused, rounds) = (0, 20_000);
    for _ in 0..rounds {
        let mut bytes = clean.clone();
        for _ in 0..1 + random() % 4 {
            let at = random() % bytes.len();
            match random() % 4 {
                0 => bytes[at] = random() as u8,
                1 => bytes[at] ^= 1 << (random() % 8),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"0123456789[]{},:\""[random() % 17]),
            }
        }
        refused += usize::from(StateDict::from_safetensors(&bytes).is_err());
    }
    // Damage to the numbers themselves cannot be noticed; damage to the header nearly always is.
    assert!(refused > rounds / 2 && refused < rounds, "{refused}");
}

#[test]
fn a_failed_save_keeps_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    std::fs::write(&path, "old").unwrap();
    let mut state = StateDict::new();
    state.insert("__metadata__", tensor![1]);
    assert!(state.save(&path).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left behind");
    let message = state.save(folder.path().join("no/such/folder/w.safetensors")).unwrap_err().to_string();
    assert!(message.contains("no/such/folder"), "{message}");
    assert!(orkest::load_safetensors(folder.path()).unwrap_err().to_string().contains("not a regular file"));
}
