//! A program without what its variant does not use.
//!
//! A kernel file has the functions and the cases of all its variants. Of a variant's text only what its entry points reach is kept:
//! parsing, checking and translating the rest is most of what compiling a small kernel takes, for wgpu and for the driver, which puts
//! all of it into one function before it looks what is needed.
//!
//! The text is ours, so this knows how it is written: functions begin at the start of a line and end with a brace there, a `switch`
//! ends with a brace below its first letter, and `op: u32` as a function's first parameter means that callers name one of its cases.

use std::collections::{HashMap, HashSet};

/// A function that is selected by the number in its first argument.
const SELECTED: &str = "(op: u32, ";

/// The text without comments, functions that nothing calls, and cases of a `switch` over a constant that do not apply.
pub(crate) fn trimmed(text: &str) -> String {
    let (functions, mut out) = split(text);
    let constants = constants(text);
    let mut wanted: Vec<(&str, Option<u32>)> =
        functions.iter().filter(|(_, body)| body.starts_with('@')).map(|(&name, _)| (name, None)).collect();
    wanted.sort_unstable(); // files may have several entry points
    let mut seen: HashSet<_> = wanted.iter().copied().collect();
    // Called by what is outside of functions, such as the value of a constant: kept as they are.
    for (_, word) in words(&out).filter(|(_, word)| functions.contains_key(word)) {
        let (name, _) = functions.get_key_value(word).expect("just found");
        if seen.insert((name, None)) {
            wanted.push((name, None));
        }
    }
    while let Some((name, op)) = wanted.pop() {
        let known = |subject: &str| match (subject, op) {
            ("op", Some(op)) => Some(op),
            _ => constants.get(subject).copied().or_else(|| subject.strip_suffix('u')?.parse().ok()),
        };
        let mut body = one_case(functions[name], known);
        if let Some(op) = op {
            let parameters = format!("fn {name}_{op}(");
            body = body.replacen(&format!("fn {name}{SELECTED}"), &parameters, 1);
            body = body.replacen(" {\n", &format!(" {{\n    const op = {op}u;\n"), 1);
        }
        let mut rest = 0;
        for (at, word) in words(&body) {
            // A function's own name, where it is defined, is no call.
            let Some((&callee, text)) = functions.get_key_value(word).filter(|_| at >= rest) else {
                continue;
            };
            if body[..at].ends_with("fn ") {
                continue;
            }
            let selected = body[at + word.len()..].strip_prefix('(').filter(|_| text.contains(SELECTED));
            let number = selected.and_then(|call| known(call.split_once(", ")?.0));
            out.push_str(&body[rest..at]);
            rest = at + word.len();
            match (number, selected) {
                (Some(op), Some(call)) => {
                    out.push_str(&format!("{word}_{op}("));
                    rest += "(, ".len() + call.find(", ").unwrap_or_default();
                }
                _ => out.push_str(word),
            }
            if seen.insert((callee, number)) {
                wanted.push((callee, number));
            }
        }
        out.push_str(&body[rest..]);
    }
    out
}

/// The functions by name, entry points with their attributes, and what lies outside of them; no comments.
fn split(text: &str) -> (HashMap<&str, &str>, String) {
    let mut functions = HashMap::new();
    let mut outside = String::with_capacity(text.len() / 4);
    let mut open: Option<usize> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let (start, shown) = (at, line.trim_end());
        at += line.len();
        if open.is_none() && (shown.starts_with("fn ") || shown.starts_with("@compute")) {
            open = Some(start);
        }
        match open {
            Some(first) if shown == "}" || (shown.starts_with("fn ") && shown.ends_with('}')) => {
                let function = &text[first..at];
                let name = function.split_once("fn ").and_then(|(_, rest)| rest.split_once('('));
                functions.insert(name.map_or("", |(name, _)| name), function);
                open = None;
            }
            None if !shown.starts_with("//") && !shown.is_empty() => outside.push_str(line),
            _ => {}
        }
    }
    (functions, outside)
}

/// The numbers among the constants.
fn constants(text: &str) -> HashMap<&str, u32> {
    let value = |line: &'_ str| -> Option<(usize, u32)> {
        let (name, value) = line.strip_prefix("const ")?.split_once(": u32 = ")?;
        Some((name.len(), value.strip_suffix("u;")?.parse().ok()?))
    };
    let named = |line| value(line).map(|(length, value)| (&line["const ".len()..][..length], value));
    text.lines().filter_map(named).collect()
}

/// The text with the one case of every `switch` whose subject is known.
fn one_case(text: &str, known: impl Fn(&str) -> Option<u32>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        let shown = line.trim_start();
        let subject = shown.strip_prefix("switch ").and_then(|rest| rest.strip_suffix(" {"));
        let Some(value) = subject.and_then(&known) else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let indent = line.len() - shown.len();
        let cases = lines.by_ref().take_while(|line| line.get(indent..) != Some("}"));
        // Whether the lines that follow belong to the case, and whether one has been found.
        let (mut inside, mut found) = (false, false);
        for line in cases {
            let header = line
                .get(indent + 4..)
                .filter(|case| !case.starts_with(' '))
                .and_then(|case| case.split_once(": {"));
            let chosen = header.and_then(|(case, _)| match case.strip_prefix("case ") {
                Some(values) => Some(
                    values.split(", ").any(|v| v.strip_suffix('u').is_some_and(|v| v.parse() == Ok(value))),
                ),
                None => (case == "default").then_some(!found),
            });
            match (chosen, header) {
                (Some(chosen), Some((_, rest))) => {
                    inside = chosen && !found;
                    found |= chosen;
                    if inside {
                        out.push_str(&format!("    {{{rest}\n"));
                    }
                }
                _ if inside => {
                    out.push_str(line);
                    out.push('\n');
                }
                _ => {}
            }
        }
    }
    out
}

/// The identifiers of a text, with where they begin.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        at += text[at..].find(inside)?;
        let start = at;
        at += text[start..].find(|c| !inside(c)).unwrap_or(text.len() - start);
        Some((start, &text[start..at]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
// A file.
const OP: u32 = 1u;
const KIND: u32 = 7u;

/// Not called.
fn unused(x: f32) -> f32 { return helper(x); }

fn helper(x: f32) -> f32 {
    return x;
}

/// By number.
fn function(op: u32, x: f32) -> f32 {
    if (op == 2u) {
        return 0.0;
    }
    switch op {
        case 0u: { return -x; }
        // A comment.
        case 1u, 3u: {
            let y = x;
            return y * y;
        }
        default: { return helper(x); }
    }
}

@compute @workgroup_size(1)
fn main(
    @builtin(local_invocation_index) local: u32,
) {
    // A comment.
    let y = function(OP, 1.0) + function(9u, 2.0);
    switch KIND {
        case 0u: { unused(); }
        default: { y[0] = y; }
    }
}
";

    #[test]
    fn what_is_not_called_or_does_not_apply_is_gone() {
        let expected = "\
const OP: u32 = 1u;
const KIND: u32 = 7u;
@compute @workgroup_size(1)
fn main(
    @builtin(local_invocation_index) local: u32,
) {
    let y = function_1(1.0) + function_9(2.0);
    { y[0] = y; }
}
fn function_9(x: f32) -> f32 {
    const op = 9u;
    if (op == 2u) {
        return 0.0;
    }
    { return helper(x); }
}
fn helper(x: f32) -> f32 {
    return x;
}
fn function_1(x: f32) -> f32 {
    const op = 1u;
    if (op == 2u) {
        return 0.0;
    }
    {
            let y = x;
            return y * y;
        }
}
";
        assert_eq!(trimmed(TEXT), expected);
    }

    #[test]
    fn what_is_not_known_stays() {
        let text = TEXT.replace("function(OP,", "function(params.op,").replace("const OP: u32 = 1u;\n", "");
        let out = trimmed(&text);
        assert!(out.contains("fn function(op: u32, x: f32)") && out.contains("case 1u, 3u: {"), "{out}");
        assert!(out.contains("function(params.op, 1.0) + function_9(2.0)"), "{out}");
    }
}
