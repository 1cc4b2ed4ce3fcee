//! One kernel file, several programs: the lines of its variant block are replaced.
//!
//! A kernel file is valid on its own and has, before anything else but comments, a block
//!
//! ```wgsl
//! // variant
//! alias elem = f32;
//! fn load_elem(x: elem) -> f32 { return x; }
//! fn store_elem(x: f32) -> elem { return x; }
//! alias num = f32;
//! const OP: u32 = 0u;
//! // end variant
//! ```
//!
//! whose lines (one declaration each) are the default variant. A [`Variant`] names what differs.

use crate::element::Elem;
use smallvec::SmallVec;
use std::fmt::Write;

/// What a name of the variant block stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Value {
    /// A stored element type: replaces `alias NAME`, `fn load_NAME` and `fn store_NAME`, where the block has them.
    Elem(Elem),
    /// The type that an element type computes in: replaces `alias NAME`.
    Computed(Elem),
    /// A type as wide as an element type, for kernels that only move elements: replaces `alias NAME`.
    Bits(Elem),
    /// Four stored elements at once: replaces `alias NAME` and `fn load_NAME`, with `vec4`s on both sides.
    Wide(Elem),
    /// Cooperative matrices of this side and element type, in the role of the left factor (`A`), the right one (`B`) or sums (`C`):
    /// replaces `alias NAME`.
    Matrix(u32, Elem, char),
    /// The function with this number of the shared block `math`: replaces `fn NAME`, from f32 to f32.
    Function(u32),
    /// What the invocation with this bit of its number flipped has: replaces the body of `fn NAME`.
    Shuffle,
    /// Replaces `const NAME: u32`.
    U32(u32),
    /// Replaces `const NAME: bool`.
    Bool(bool),
}

impl From<u32> for Value {
    fn from(value: u32) -> Value {
        Value::U32(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}

impl From<Elem> for Value {
    fn from(value: Elem) -> Value {
        Value::Elem(value)
    }
}

/// Names of the variant block and what they stand for; what is not named keeps the file's default.
pub(crate) type Variant = SmallVec<[(&'static str, Value); 6]>;

/// `variant![elem: Elem::F32, OP: 3u32, STRIDED: true]`
macro_rules! variant {
    ($($name:ident: $value:expr),* $(,)?) => {{
        #[allow(unused_mut)]
        let mut variant = $crate::variant::Variant::new();
        $(variant.push((stringify!($name), $crate::variant::Value::from($value)));)*
        variant
    }};
}
pub(crate) use variant;

/// Adds what lets kernels sum up within subgroups: neighbours of which `subgroup` can exchange values.
pub(crate) fn shuffles(mut variant: Variant, subgroup: u32) -> Variant {
    if subgroup > 1 {
        variant.extend(variant![SUBGROUP: subgroup, shuffled: Value::Shuffle]);
    }
    variant
}

const BEGIN: &str = "// variant";
const END: &str = "// end variant";

/// The text of a variant. `read_write` is the set of input bindings that alias an output and so must be declared like one.
///
/// # Errors
/// If the file has no variant block or the block lacks a name.
pub(crate) fn expand(
    source: &str,
    variant: &Variant,
    read_write: u32,
    immediates: bool,
) -> Result<String, String> {
    let extensions: SmallVec<[&str; 2]> = variant
        .iter()
        .filter_map(|(_, v)| match v {
            Value::Elem(e) | Value::Wide(e) | Value::Bits(e) => e.extension(),
            _ => None,
        })
        .collect();
    let mut out = String::with_capacity(source.len() + 256);
    for extension in ["f16", "wgpu_int16"].iter().filter(|e| extensions.contains(e)) {
        let _ = writeln!(out, "enable {extension};");
    }
    let mut used = vec![false; variant.len()];
    let mut inside = false;
    let mut seen = false;
    for line in source.lines() {
        let trimmed = line.trim();
        if trimmed == BEGIN || trimmed == END {
            inside = trimmed == BEGIN;
            seen = true;
            continue;
        }
        if inside && let Some((i, text)) = replacement(trimmed, variant) {
            used[i] = true;
            out.push_str(&text);
        } else if let Some(i) = binding(line)
            && read_write >> i & 1 == 1
        {
            out.push_str(&line.replacen("var<storage, read>", "var<storage, read_write>", 1));
        } else if !immediates && trimmed.starts_with("var<immediate>") {
            out.push_str(&line.replacen("var<immediate>", "@group(1) @binding(0) var<uniform>", 1));
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    if !seen && !variant.is_empty() {
        return Err("there is no variant block".into());
    }
    match used.iter().position(|used| !used) {
        Some(i) => Err(format!("the variant block has no {}", variant[i].0)),
        None => Ok(out),
    }
}

/// The new text of a line of the variant block, and which entry of the variant it comes from.
fn replacement(line: &str, variant: &Variant) -> Option<(usize, String)> {
    let (keyword, rest) = line.split_once(' ')?;
    let declared = rest.split([' ', ':', '(', '=']).next()?;
    variant.iter().enumerate().find_map(|(i, &(name, value))| {
        let text = match (keyword, value) {
            ("alias", Value::Elem(e)) if declared == name => format!("alias {name} = {};", e.stored()),
            ("fn", Value::Elem(e)) if declared.strip_prefix("load_") == Some(name) => {
                format!("fn load_{name}(x: {}) -> {} {{ return {}; }}", e.stored(), e.computed(), e.load())
            }
            ("fn", Value::Elem(e)) if declared.strip_prefix("store_") == Some(name) => {
                format!("fn store_{name}(x: {}) -> {} {{ {} }}", e.computed(), e.stored(), e.store())
            }
            ("alias", Value::Wide(e)) if declared == name => format!("alias {name} = vec4<{}>;", e.stored()),
            ("fn", Value::Wide(e)) if declared.strip_prefix("load_") == Some(name) => {
                let (from, to) = (e.stored(), e.computed());
                format!("fn load_{name}(x: vec4<{from}>) -> vec4<{to}> {{ return {}; }}", e.load_wide())
            }
            ("fn", Value::Function(f)) if declared == name => {
                format!("fn {name}(x: f32) -> f32 {{ return function({f}u, x, params.p, params.q); }}")
            }
            ("fn", Value::Shuffle) if declared == name => {
                format!("{} {{ return subgroupShuffleXor(x, step); }}", line.split_once(" {")?.0)
            }
            ("alias", Value::Matrix(side, e, role)) if declared == name => {
                format!("alias {name} = coop_mat{side}x{side}<{}, {role}>;", e.stored())
            }
            ("alias", Value::Computed(e)) if declared == name => format!("alias {name} = {};", e.computed()),
            ("alias", Value::Bits(e)) if declared == name => format!("alias {name} = {};", e.bits()),
            ("const", Value::U32(v)) if declared == name => format!("const {name}: u32 = {v}u;"),
            ("const", Value::Bool(v)) if declared == name => format!("const {name}: bool = {v};"),
            _ => return None,
        };
        Some((i, text))
    })
}

/// The number of the binding that a line of the form `@group(0) @binding(N) var<storage, ..` declares.
fn binding(line: &str) -> Option<u32> {
    let rest = line.trim().strip_prefix("@group(0) @binding(")?;
    let (number, rest) = rest.split_once(')')?;
    rest.trim_start().starts_with("var<storage").then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "// A file.\n// variant\nalias elem = f32;\nfn load_elem(x: elem) -> f32 { return x; }\nconst OP: u32 = 0u;\n\
        // end variant\n@group(0) @binding(0) var<storage, read> x: array<elem>;\nvar<immediate> params: Params;\n";

    #[test]
    fn only_named_lines_change() {
        let text = expand(FILE, &variant![OP: 7u32], 0, true).unwrap();
        assert!(text.contains("const OP: u32 = 7u;") && text.contains("alias elem = f32;"), "{text}");
        assert!(text.contains("var<storage, read> x") && text.contains("var<immediate>"), "{text}");
    }

    #[test]
    fn element_types_bring_their_extension_and_conversions() {
        let text = expand(FILE, &variant![elem: Elem::F16], 1, false).unwrap();
        assert!(text.starts_with("enable f16;\n"), "{text}");
        assert!(text.contains("fn load_elem(x: f16) -> f32 { return f32(x); }"), "{text}");
        assert!(text.contains("var<storage, read_write> x"), "{text}");
        assert!(text.contains("@group(1) @binding(0) var<uniform> params"), "{text}");
    }

    #[test]
    fn wide_elements_load_four_at_once() {
        let text = expand(FILE, &variant![elem: Value::Wide(Elem::BF16)], 0, true).unwrap();
        assert!(
            text.starts_with("enable wgpu_int16;\n") && text.contains("alias elem = vec4<u16>;"),
            "{text}"
        );
        assert!(text.contains("fn load_elem(x: vec4<u16>) -> vec4<f32> {"), "{text}");
    }

    #[test]
    fn shuffles_keep_their_type() {
        let file =
            "// variant\nfn shuffled(x: vec2<f32>, step: u32) -> vec2<f32> { return x; }\n// end variant\n";
        let text = expand(file, &variant![shuffled: Value::Shuffle], 0, true).unwrap();
        let expected =
            "fn shuffled(x: vec2<f32>, step: u32) -> vec2<f32> { return subgroupShuffleXor(x, step); }\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_name_that_the_block_lacks_is_an_error() {
        assert!(expand(FILE, &variant![KIND: 7u32], 0, true).unwrap_err().contains("KIND"));
    }
}
