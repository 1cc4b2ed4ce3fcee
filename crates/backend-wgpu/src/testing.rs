//! Checks of all kernels without a device, and of their results with one.

use crate::variant::{Variant, expand};
use crate::{
    attention, copy, elementwise, indexing, matmul, optim, random, reduce, rows, sort, unary, windows,
    wrapped,
};
use std::collections::{BTreeMap, BTreeSet};

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
        reduce::variants(),
        indexing::variants(),
        sort::variants(),
        rows::variants(),
        attention::variants(),
        optim::variants(),
    ]
    .concat()
}

/// Parses and validates a program as wgpu would.
fn validate(name: &str, text: &str) {
    let module = naga::front::wgsl::parse_str(text)
        .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string_with_path(text, name)));
    naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string_with_path(text, name)));
}

#[test]
fn every_file_is_valid_as_it_stands() {
    for (file, text) in orkest_shaders::FILES {
        validate(file, text);
    }
}

#[test]
fn every_variant_is_valid() {
    let mut seen = BTreeSet::new();
    let mut files = BTreeSet::new();
    for (file, variant) in all_variants() {
        let source = orkest_shaders::source(file).unwrap_or_else(|| panic!("{file} is not embedded"));
        files.insert(file);
        for (aliased, immediates) in [(0, true), (1, true), (0, false)] {
            let text = expand(source, &variant, aliased, immediates)
                .unwrap_or_else(|e| panic!("{file} {variant:?}: {e}"));
            if seen.insert((file, text.clone())) {
                validate(&format!("{file} {variant:?}"), &text);
            }
        }
    }
    for (file, _) in orkest_shaders::FILES {
        assert!(files.contains(file), "no variant of {file} is checked");
    }
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
