//! Files of torch.save: what is in them, and what is refused. `pytorch/make.py` wrote them.

use orkest_core::{DType, Tensor};
use orkest_nn::{BatchNorm1d, Linear, Module, StateDict, load_pytorch, load_safetensors, sequential};
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/pytorch").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap()
}

#[test]
fn what_pytorch_wrote_comes_back() {
    let expected = load_safetensors(path("expected.safetensors")).unwrap();
    let mut seen = 0;
    for file in ["model.pth", "protocol5.pth", "before_1.6.pth", "checkpoint.pt", "views.pt"] {
        for (name, found) in load_pytorch(path(file)).unwrap() {
            let wanted = &expected[&format!("{file}/{name}")[..]];
            assert_eq!((found.dtype(), found.shape()), (wanted.dtype(), wanted.shape()), "{file}: {name}");
            assert_eq!(found.to_bytes().unwrap(), wanted.to_bytes().unwrap(), "{file}: {name}");
            seen += 1;
        }
    }
    assert_eq!(seen, expected.len());
}

#[test]
fn a_state_dict_fits_the_same_model() {
    let model = sequential![Linear::new(4, 3), BatchNorm1d::new(3)];
    let state = load_pytorch(path("model.pth")).unwrap();
    assert!(model.load_state_dict(&state, true).unwrap().is_empty());
    let names: Vec<&str> = state.keys().collect();
    assert_eq!(names[..3], ["0.weight", "0.bias", "1.weight"], "in the order of the file");

    let checkpoint = load_pytorch(path("checkpoint.pt")).unwrap();
    assert!(model.load_state_dict(&checkpoint.part("model"), true).unwrap().is_empty());
    assert_eq!(checkpoint.metadata["epoch"], "3");
    assert_eq!(checkpoint.metadata["loss"], "0.25");
    assert_eq!(checkpoint.part("args").metadata["name"], "x");
    assert!(!checkpoint.metadata.contains_key("best"));
    assert_eq!(checkpoint["optimizer.state.0.exp_avg"].shape(), &[3, 4]);
}

#[test]
fn tensors_of_one_storage_share_memory() {
    let state = load_pytorch(path("views.pt")).unwrap();
    assert!(state["transposed"].shares_memory(&state["expanded"]));
    assert!(!state["transposed"].shares_memory(&state["list.0"]));
    assert_eq!(state["dtypes.bool"].dtype(), DType::Bool);
}

#[test]
fn what_cannot_be_read_says_why() {
    let message = |name: &str| load_pytorch(path(name)).unwrap_err().to_string();
    let whole = message("whole_model.pt");
    assert!(whole.contains("Python class torch.nn.modules.container.Sequential"), "{whole}");
    assert!(whole.contains("torch.save(model.state_dict(), ..)"), "{whole}");
    assert!(
        message("int16.pt")
            .ends_with("tensor \"x\": a tensor lies in a torch.ShortStorage, whose dtype there is not here")
    );
    assert!(message("sparse.pt").ends_with("tensor \"x\": what _rebuild_sparse_tensor makes cannot be read"));
    assert!(message("make.py").ends_with("not a file of torch.save"));
    assert!(message("none.pth").contains("none.pth: "));
    let swapped = load_safetensors(path("model.pth")).unwrap_err().to_string();
    assert!(swapped.ends_with("load_pytorch reads it"), "{swapped}");
}

#[test]
fn damaged_files_are_errors() {
    for name in ["model.pth", "before_1.6.pth"] {
        let whole = bytes(name);
        for len in 0..whole.len() {
            assert!(StateDict::from_pytorch(&whole[..len]).is_err(), "{name} cut to {len} bytes");
        }
        // A changed byte may be one of the numbers, a name or padding: there must be an answer, whatever it is.
        for at in 0..whole.len() {
            for change in [1, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] ^= change;
                let _ = StateDict::from_pytorch(&changed);
            }
        }
    }
}

/// How an old file begins.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// An old file around a pickle.
fn with_pickle(pickle: &[u8]) -> Result<StateDict, orkest_core::Error> {
    StateDict::from_pytorch(&[MAGIC, b"\x80\x02K\x01.", b"\x80\x02}.", pickle, b"\x80\x02]."].concat())
}

/// A dict with a tensor of these sizes and strides on a storage of one float, in a pickle of version 2.
fn with_sizes(sizes: &[u64], strides: u8) -> Result<StateDict, orkest_core::Error> {
    let tuple = |numbers: Vec<Vec<u8>>| [b"(", &numbers.concat()[..], b"t"].concat();
    let sizes = tuple(sizes.iter().map(|n| [&b"\x8a\x08"[..], &n.to_le_bytes()].concat()).collect());
    let strides = tuple(vec![b"K\0".to_vec(); strides as usize]);
    let storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ";
    let tensor =
        [b"ctorch._utils\n_rebuild_tensor_v2\n(", &storage[..], b"K\0", &sizes, &strides, b"\x89NtR"];
    let pickle = [b"\x80\x02}X\x01\0\0\0x", &tensor.concat()[..], b"s."].concat();
    let numbers = [b"\x80\x02](X\x01\0\0\x000e.", &1u64.to_le_bytes()[..], &2.5f32.to_le_bytes()].concat();
    StateDict::from_pytorch(&[MAGIC, b"\x80\x02K\x01.", b"\x80\x02}.", &pickle, &numbers].concat())
}

#[test]
fn sizes_that_no_memory_holds_are_errors() {
    assert_eq!(with_sizes(&[2, 3], 2).unwrap()["x"].to_vec::<f32>().unwrap(), [2.5; 6]);
    assert_eq!(with_sizes(&[0, 1 << 40], 2).unwrap()["x"].shape(), &[0, 1 << 40]);
    let message = |sizes: &[u64]| with_sizes(sizes, sizes.len() as u8).unwrap_err().to_string();
    for sizes in [&[1 << 62][..], &[1 << 40, 1 << 40], &[1 << 40, 0, 1 << 40]] {
        assert!(message(sizes).contains("too large for any memory"), "{sizes:?}");
    }
    assert!(message(&[u64::MAX]).contains("its sizes are no numbers"));
    assert!(message(&[1; 9]).contains("9 dimensions, the most here is 8"));
    assert!(with_sizes(&[2, 3], 1).unwrap_err().to_string().contains("do not fit a storage"));
}

#[test]
fn dicts_of_collections_are_dicts() {
    // pickle.dumps({"m": Counter({30: 1})}, protocol=2): what MultiStepLR keeps.
    let counter =
        b"\x80\x02}q\0X\x01\0\0\0mq\x01ccollections\nCounter\nq\x02}q\x03K\x1eK\x01s\x85q\x04Rq\x05s.";
    assert_eq!(with_pickle(counter).unwrap().metadata["m.30"], "1");
    // OrderedDict([["a", 1]]), as Python 2 wrote it.
    let pairs = b"\x80\x02ccollections\nOrderedDict\n](](X\x01\0\0\0aK\x01ee\x85R.";
    assert_eq!(with_pickle(pairs).unwrap().metadata["a"], "1");
    // pickle.dumps([frozenset([1]), defaultdict(dict, {"a": 1})], protocol=4)
    let others = b"\x80\x04\x95G\0\0\0\0\0\0\0]\x94((K\x01\x91\x94\x8c\x0bcollections\x94\x8c\x0bdefaultdict\x94\x93\x94\x8c\
                   \x08builtins\x94\x8c\x04dict\x94\x93\x94\x85\x94R\x94\x8c\x01a\x94K\x01se.";
    assert_eq!(with_pickle(others).unwrap().metadata["1.a"], "1");
}

#[test]
fn a_model_within_a_checkpoint_is_not_passed_over() {
    // {"model": Model()}
    let model = b"\x80\x02}X\x05\0\0\0modelcyolo\nModel\n)\x81s.";
    let message = with_pickle(model).unwrap_err().to_string();
    assert!(message.contains("Python class yolo.Model"), "{message}");
}

#[test]
fn hostile_pickles_are_harmless() {
    // `os.system("touch ..")` is noted, not called.
    let call = with_pickle(b"\x80\x02cos\nsystem\nX\x01\0\0\0x\x85R.").unwrap_err().to_string();
    assert!(call.contains("Python class os.system"), "{call}");
    // A list in itself has no end.
    let endless = with_pickle(b"\x80\x02]q\0h\0a.").unwrap_err().to_string();
    assert!(endless.contains("refers to itself"), "{endless}");
    // Thirty lists, each with the one before it twice.
    let mut doubled = b"\x80\x02]q\0".to_vec();
    (0..30).for_each(|_| doubled.extend(b"]q\x01(h\0h\0eq\0"));
    doubled.push(b'.');
    assert!(with_pickle(&doubled).unwrap_err().to_string().contains("refers to itself"));
    // A long key around as many short ones as fit: their names would be far longer than the file.
    let key = [&b"X\xe8\x03\0\0"[..], &b"k".repeat(1000)].concat();
    let names = [&b"\x80\x02}"[..], &key, b"](", &b"\x88".repeat(100_000), b"es."].concat();
    assert!(with_pickle(&names).unwrap_err().to_string().contains("names are far too long"));
    // So would be a list of pairs, the same a thousand times, that becomes a thousand dicts.
    let class = b"ccollections\nOrderedDict\nq\0";
    let pairs = [&b"]q\x01("[..], &b"K\x01K\x02\x86".repeat(1000), b"e0"].concat();
    let dicts =
        [&b"\x80\x02"[..], class, b"0", &pairs, b"](", &b"h\0h\x01\x85R".repeat(1000), b"e."].concat();
    assert!(with_pickle(&dicts).unwrap_err().to_string().contains("it is too long"));
    // A million lists inside each other use up neither the stack nor the memory.
    let deep = [&b"\x80\x02]"[..], &b"\x85".repeat(1_000_000), b"."].concat();
    assert!(with_pickle(&deep).unwrap_err().to_string().contains("more than 64 dicts and lists"));
}

#[test]
fn a_part_has_what_is_behind_the_dot() {
    let mut state = StateDict::new();
    state.insert("a.b", Tensor::zeros(2, ()));
    state.insert("a.c.d", Tensor::zeros(3, ()));
    state.insert("ab.c", Tensor::zeros(4, ()));
    assert_eq!(state.part("a").keys().collect::<Vec<_>>(), ["b", "c.d"]);
    assert!(state.part("b").is_empty());
}
