//! The public operations of `Tensor` as `crates/core/src/ops` declares them.

use std::collections::BTreeSet;
use std::path::Path;

/// Public functions that have no gradient, and why.
pub const NOT_DIFFERENTIABLE: &[(&str, &str)] = &[
    ("zeros", "a constant"),
    ("try_zeros", "a constant"),
    ("ones", "a constant"),
    ("full", "a constant"),
    ("zeros_like", "a constant"),
    ("ones_like", "a constant"),
    ("full_like", "a constant"),
    ("arange", "a constant"),
    ("linspace", "a constant"),
    ("eye", "a constant"),
    ("new", "a constant"),
    ("literal", "a constant"),
    ("from_slice", "a constant"),
    ("from_bytes", "a constant"),
    ("from_ndarray", "a constant"),
    ("to_ndarray", "leaves the tensors"),
    ("rand", "random numbers"),
    ("rand_like", "random numbers"),
    ("randn", "random numbers"),
    ("randn_like", "random numbers"),
    ("uniform", "random numbers"),
    ("normal", "random numbers"),
    ("randint", "random numbers"),
    ("randperm", "random numbers"),
    ("bernoulli", "random numbers"),
    ("multinomial", "random positions"),
    ("gumbel_softmax", "random numbers; its gradient is tested beside it"),
    ("bitwise_and", "integers"),
    ("bitwise_or", "integers"),
    ("bitwise_xor", "integers"),
    ("bitwise_not", "integers"),
    ("bitwise_left_shift", "integers"),
    ("bitwise_right_shift", "integers"),
    ("fill_", "the value is a number, and what was there is gone"),
    ("zero_", "what was there is gone"),
    ("eq", "bool"),
    ("ne", "bool"),
    ("lt", "bool"),
    ("le", "bool"),
    ("gt", "bool"),
    ("ge", "bool"),
    ("isnan", "bool"),
    ("isinf", "bool"),
    ("isfinite", "bool"),
    ("logical_not", "bool"),
    ("logical_and", "bool"),
    ("logical_or", "bool"),
    ("logical_xor", "bool"),
    ("any", "bool"),
    ("all", "bool"),
    ("allclose", "bool"),
    ("isclose", "bool"),
    ("isin", "bool"),
    ("equal", "bool"),
    ("count_nonzero", "a count"),
    ("bincount", "counts"),
    ("searchsorted", "positions"),
    ("tril_indices", "positions"),
    ("triu_indices", "positions"),
    ("floor_divide", "flat between its steps, as in PyTorch without gradient"),
    ("argmax", "positions"),
    ("argmin", "positions"),
    ("argsort", "positions"),
    ("nonzero", "positions"),
    ("one_hot", "from positions"),
    ("unique", "looks at the data on the host; documented as without gradient"),
    ("slice", "makes an index, not a tensor"),
];

/// Public functions without a fixture of PyTorch's, and why. `unary` is what all functions of one element go through.
pub const WITHOUT_FIXTURE: &[(&str, &str)] = &[
    ("new", "copies what it is given"),
    ("literal", "copies what it is given"),
    ("from_slice", "copies what it is given"),
    ("from_bytes", "copies what it is given"),
    ("from_ndarray", "PyTorch has no ndarray"),
    ("to_ndarray", "PyTorch has no ndarray"),
    ("try_zeros", "zeros with an error instead of a panic"),
    ("rand_like", "rand with the shape of a tensor"),
    ("randn_like", "randn with the shape of a tensor"),
    ("bernoulli", "PyTorch's numbers depend on the library it is built with"),
    ("multinomial", "PyTorch's numbers depend on its version"),
    ("gumbel_softmax", "PyTorch's numbers depend on the library it is built with"),
    ("unary", "every function of one element has a case under its own name"),
    ("into_unary", "unary, at the place of its operand"),
    ("into_dropout", "dropout, at the place of its operand"),
    ("element_loss", "the losses of orkest-nn have cases, which are made of it"),
    ("slice", "makes an index, not a tensor"),
];

/// The function that a `_keepdim` twin belongs to.
pub fn base_name(name: &str) -> &str {
    name.strip_suffix("_keepdim").unwrap_or(name)
}

/// The names of all public functions of the operations' sources, those that macros make included.
///
/// # Panics
/// If the sources cannot be read.
pub fn public_methods() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/core/src/ops");
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).expect("the sources of core are next to this package") {
        let path = entry.expect("the folder can be listed").path();
        // ops/testing.rs is for core's own unit tests.
        if path.extension().is_some_and(|e| e == "rs") && path.file_stem().is_some_and(|s| s != "testing") {
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
        } else if let Some(rest) = text.strip_prefix("pub fn ").or_else(|| text.strip_prefix("pub const fn "))
        {
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
        for expected in [
            "exp",
            "add",
            "eq",
            "sum",
            "sum_keepdim",
            "softmax",
            "where_",
            "matmul",
            "i",
            "einsum",
            "cat",
            "conv2d",
        ] {
            assert!(names.contains(expected), "{expected} was not found");
        }
        assert!(!names.contains("accumulate"), "pub(crate) is not public");
        assert!(names.len() > 150, "only {} methods were found", names.len());
    }
}
