//! Checks of all kernels without a device, and of their results with one.

use crate::trim::trimmed;
use crate::variant::{Variant, expand};
use crate::{
    attention, copy, elementwise, indexing, matmul, optim, program, random, recurrent, reduce, rows, sort,
    unary, windows, wrapped,
};
use naga::back::pipeline_constants::process_overrides;
use naga::back::{PipelineConstants, hlsl, msl};
use naga::valid::{Capabilities, ModuleInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Every program that the backend can ask for: a file and a variant.
fn all_variants() -> Vec<(&'static str, Variant)> {
    [
        copy::variants(),
        matmul::variants(),
        windows::variants(),
        wrapped::variants(),
        elementwise::variants(),
        unary::variants(),
        random::variants(),
        recurrent::variants(),
        reduce::variants(),
        indexing::variants(),
        sort::variants(),
        rows::variants(),
        attention::variants(),
        optim::variants(),
    ]
    .concat()
}

/// Parses a program and validates it as wgpu would on a device with these capabilities.
fn validate(name: &str, text: &str, capabilities: Capabilities) -> (naga::Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(text)
        .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string_with_path(text, name)));
    let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string_with_path(text, name)));
    (module, info)
}

/// The text of every program, each once, with what it comes from: the bindings that alias, and parameters in a uniform or not.
fn all_texts() -> BTreeMap<String, (&'static str, String)> {
    let mut texts = BTreeMap::new();
    for (file, variant) in all_variants() {
        let source = orkest_shaders::source(file).unwrap_or_else(|| panic!("{file} is not embedded"));
        for (aliased, immediates) in [(0, true), (1, true), (0, false)] {
            let text = expand(source, &variant, aliased, immediates)
                .unwrap_or_else(|e| panic!("{file} {variant:?}: {e}"));
            let text = trimmed(&text);
            texts.entry(text).or_insert_with(|| (file, format!("{file} {variant:?}")));
        }
    }
    for program in program::programs() {
        for immediates in [true, false] {
            let text = program.text(immediates).unwrap_or_else(|e| panic!("{program:?}: {e}"));
            let text = trimmed(&text);
            texts.entry(text).or_insert_with(|| (program::FRAME, format!("{program:?}")));
        }
    }
    texts
}

#[test]
fn every_file_is_valid_as_it_stands() {
    for (file, text) in orkest_shaders::FILES {
        validate(file, text, Capabilities::all());
    }
}

#[test]
fn every_variant_is_valid() {
    let texts = all_texts();
    for (text, (_, name)) in &texts {
        validate(name, text, Capabilities::all());
    }
    for (file, _) in orkest_shaders::FILES {
        assert!(texts.values().any(|(f, _)| f == file), "no variant of {file} is checked");
    }
}

/// What a driver gets: sizes are numbers by then.
fn without_overrides(name: &str, text: &str, capabilities: Capabilities) -> (naga::Module, ModuleInfo) {
    let (module, info) = validate(name, text, capabilities);
    let (module, info) = process_overrides(&module, &info, None, &PipelineConstants::default())
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    (module.into_owned(), info.into_owned())
}

#[test]
fn every_variant_can_be_written_for_metal() {
    let options = msl::Options { lang_version: (2, 4), ..Default::default() };
    for (text, (_, name)) in all_texts() {
        let (module, info) = without_overrides(&name, &text, msl::supported_capabilities());
        let (_, entries) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        for entry in entries.entry_point_names {
            entry.unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

#[test]
fn every_variant_can_be_written_for_dx12() {
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_2,
        immediates_target: Some(hlsl::BindTarget { space: 2, ..Default::default() }),
        special_constants_binding: Some(hlsl::BindTarget { space: 3, ..Default::default() }),
        ..Default::default()
    };
    let pipeline = hlsl::PipelineOptions::default();
    for (text, (file, name)) in all_texts() {
        if tier(&text) == MATRICES {
            continue; // HLSL has none, so the backend does not choose them there.
        }
        let (module, info) = without_overrides(&name, &text, hlsl::supported_capabilities());
        let mut out = String::new();
        let written = hlsl::Writer::new(&mut out, &options, &pipeline)
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        for entry in written.entry_point_names {
            entry.unwrap_or_else(|e| panic!("{file}: {e}"));
        }
    }
}

const MATRICES: &str = "cooperative matrices";

/// What a program needs beyond plain WebGPU, but for f16 and 16-bit integers, which are variants.
fn tier(text: &str) -> &'static str {
    if text.contains("coop_mat") {
        MATRICES
    } else if text.lines().any(|line| !line.starts_with("//") && line.contains("subgroup")) {
        "subgroups"
    } else {
        "WebGPU"
    }
}

/// The line of `shaders/README.md` for a file, from the file.
fn described(file: &str, text: &str) -> String {
    let (module, info) = without_overrides(file, text, Capabilities::all());
    let names = |list: Vec<String>| if list.is_empty() { "none".into() } else { list.join("; ") };
    let entries: Vec<String> = module.entry_points.iter().map(|e| format!("`{}`", e.name)).collect();
    let (mut reads, mut writes, mut bytes, mut shared) = (0, 0, 0, Vec::new());
    for (_, variable) in module.global_variables.iter() {
        match variable.space {
            naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => {
                writes += 1;
            }
            naga::AddressSpace::Storage { .. } => reads += 1,
            naga::AddressSpace::WorkGroup => {
                bytes += module.types[variable.ty].inner.size(module.to_ctx());
                shared.push(format!("`{}`", variable.name.as_deref().unwrap_or_default()));
            }
            _ => {}
        }
    }
    drop(info);
    let tier = tier(text);
    if tier != MATRICES {
        assert!(bytes <= 16 << 10, "{file} takes {bytes} bytes of workgroup memory");
        for entry in &module.entry_points {
            let size: u32 = entry.workgroup_size.iter().product();
            assert!(size <= 256, "{file}: {} has {size} invocations", entry.name);
        }
    }
    let sizes: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("@compute @workgroup_size(")?.strip_suffix(')'))
        .collect();
    let sizes: Vec<&str> = sizes.into_iter().collect();
    let first = text.lines().next().and_then(|line| line.strip_prefix("// ")).unwrap_or_default();
    format!(
        "| {file} | {} | {reads} + {writes} | {} | {} | {tier} | {} |",
        entries.join(", "),
        sizes.join(", "),
        names(shared),
        first.replace('|', "\\|")
    )
}

#[test]
fn the_table_of_kernels_is_right() {
    let page = include_str!("../../../shaders/README.md");
    let mut files: Vec<_> = orkest_shaders::FILES.to_vec();
    files.sort_by_key(|(file, _)| *file);
    let expected: Vec<String> = files.iter().map(|(file, text)| described(file, text)).collect();
    let found: Vec<&str> = page.lines().filter(|line| line.contains(".wgsl | `")).collect();
    assert!(found == expected, "shaders/README.md should have:\n{}", expected.join("\n"));
}

/// Arrays in variables that an index chooses from are a tree of branches per access to llvmpipe: of the time that its drivers take to
/// compile a kernel, and so of a program's first step, they have been nine tenths.
#[test]
fn kernels_that_software_adapters_run_have_no_arrays_in_variables() {
    // Those of workgroup tiles.
    let hardware = [
        "attention/attention.wgsl",
        "attention/keys_grad.wgsl",
        "attention/queries_grad.wgsl",
        "matmul/coop.wgsl",
        "matmul/tile.wgsl",
    ];
    for (file, text) in orkest_shaders::FILES.iter().filter(|(file, _)| !hardware.contains(file)) {
        let (module, _) = validate(file, text, Capabilities::all());
        let functions =
            module.functions.iter().map(|(_, f)| f).chain(module.entry_points.iter().map(|e| &e.function));
        for (_, variable) in functions.flat_map(|f| f.local_variables.iter()) {
            let array = matches!(module.types[variable.ty].inner, naga::TypeInner::Array { .. });
            assert!(!array, "{file}: {:?} is an array", variable.name);
        }
    }
}

/// The folder and the list are the same.
#[test]
fn every_file_of_the_folder_is_embedded() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shaders"));
    let mut found = BTreeSet::new();
    for family in std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).filter(|p| p.is_dir()) {
        for file in std::fs::read_dir(&family).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_some_and(|e| e == "wgsl") {
                let name = file.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                found.insert(name);
            }
        }
    }
    let embedded: BTreeSet<String> = orkest_shaders::FILES.iter().map(|(file, _)| file.to_string()).collect();
    assert_eq!(found, embedded);
}

#[test]
fn shared_text_is_the_same_in_all_files() {
    let mut blocks: BTreeMap<&str, (&str, Vec<&str>)> = BTreeMap::new();
    for (file, text) in orkest_shaders::FILES {
        let mut open: Option<(&str, Vec<&str>)> = None;
        for line in text.lines() {
            match (line.strip_prefix("// shared "), &mut open) {
                (Some(name), None) => open = Some((name, Vec::new())),
                (Some(name), Some(_)) => panic!("{file}: shared {name} begins within another shared block"),
                (None, Some((name, lines))) if line == "// end shared" => {
                    let (first, expected) = blocks.entry(name).or_insert_with(|| (file, lines.clone()));
                    assert_eq!(expected, lines, "shared {name} differs between {first} and {file}");
                    open = None;
                }
                (None, Some((_, lines))) => lines.push(line),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{file}: a shared block has no end");
    }
}
