//! The public operations of `Tensor` as `crates/core/src/ops` declares them.

use std::collections::BTreeSet;
use std::path::Path;

/// The names of all public functions of the operations' sources, those that macros make included.
///
/// # Panics
/// If the sources cannot be read.
pub fn public_methods() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/core/src/ops");
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).expect("the sources of core are next to this package") {
        let path = entry.expect("the folder can be listed").path();
        if path.extension().is_some_and(|e| e == "rs") {
            let source = std::fs::read_to_string(&path).expect("sources are text");
            names.extend(methods_of(&source));
        }
    }
    names
}

/// `pub fn name(`, and the entries of the `.._methods! { name => ..; name, name_keepdim => ..; }` macros.
fn methods_of(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut in_table = false;
    for line in source.split("#[cfg(test)]").next().unwrap_or_default().lines() {
        let text = line.trim();
        if text.ends_with("_methods! {") && !text.starts_with("macro_rules!") {
            in_table = true;
        } else if line == "}" {
            in_table = false;
        } else if let Some(rest) = text.strip_prefix("pub fn ").or_else(|| text.strip_prefix("pub const fn ")) {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !name.is_empty() {
                names.push(name);
            }
        } else if in_table
            && !text.starts_with("//")
            && let Some((left, _)) = text.split_once(" => ")
        {
            names.extend(left.split(", ").map(str::to_string));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_to_declare_a_method_are_seen() {
        let names = public_methods();
        for expected in ["exp", "add", "eq", "sum", "sum_keepdim", "softmax", "where_", "matmul", "i", "einsum", "cat", "conv2d"] {
            assert!(names.contains(expected), "{expected} was not found");
        }
        assert!(!names.contains("accumulate"), "pub(crate) is not public");
        assert!(names.len() > 150, "only {} methods were found", names.len());
    }
}
