//! Several elementwise launches as the text of one kernel.
//!
//! Every step calls the function `element` of a kernel's own file, so a fused kernel computes what the kernels do one by one. The
//! frame around the steps is `elementwise/fused.wgsl`.

use crate::element::Elem;
use crate::pipelines::{Constants, MAX_PARAMS};
use crate::variant::{Variant, expand};
use smallvec::SmallVec;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;

/// The frame of all programs.
pub(crate) const FRAME: &str = "elementwise/fused.wgsl";

/// The kernels that can be steps: whose files have a function `element` of elements of the inputs and then the last parameters, and
/// which report no faults. Its parameter `i` is the number of the element.
const STEPS: [&str; 9] = [
    "elementwise/binary.wgsl",
    "elementwise/cast.wgsl",
    "elementwise/compare.wgsl",
    "elementwise/copy.wgsl",
    "elementwise/dropout.wgsl",
    "elementwise/test.wgsl",
    "elementwise/unary.wgsl",
    "elementwise/unary_grad.wgsl",
    "elementwise/where.wgsl",
];

/// Whether a kernel can be a step.
pub(crate) fn can_be_step(file: &str) -> bool {
    STEPS.contains(&file)
}

/// What a fused kernel is made from, without the sizes and numbers that it gets as parameters.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Program {
    /// The sizes of workgroups.
    pub(crate) constants: Constants,
    /// In the order of their bindings: those that are only read, then those that are written.
    pub(crate) buffers: SmallVec<[Bound; 8]>,
    pub(crate) steps: Vec<Step>,
}

/// A buffer that a program binds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Bound {
    pub(crate) elem: Elem,
    /// How its elements are read, if they are.
    pub(crate) read: Option<Walk>,
    /// The step whose result it gets.
    pub(crate) written: Option<usize>,
}

/// Which element of a buffer belongs to an element of the result.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Walk {
    /// Its own.
    Each,
    /// Always the same.
    Same,
    /// Of so many elements the next, each repeated in a row, again and again: what is added to every row, or to every channel.
    Repeated,
}

/// One of the fused launches.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Step {
    pub(crate) file: &'static str,
    /// Without what it says of strides.
    pub(crate) variant: Variant,
    pub(crate) inputs: SmallVec<[Source; 3]>,
    /// Which of its parameters are not zero. The others need no room.
    pub(crate) given: SmallVec<[bool; 6]>,
    pub(crate) result: Elem,
}

/// Where a step finds an operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Source {
    /// In the buffer with this number, as it was before.
    Buffer(usize),
    /// In the result of the step with this number.
    Step(usize),
}

/// Most words of parameters: the number of elements and a zero; where each buffer begins, and its period if it is repeated; what the steps
/// need, in this order.
pub(crate) const MAX_WORDS: usize = MAX_PARAMS / 4;

/// `kept_f32` of the frame for a type that not every shader has.
const KEPT_F16: &str = "\
fn kept_f16(x: f16) -> f16 {
    return f16(unpack2x16float(pack2x16float(vec2<f32>(f32(x), 0.0)) ^ params.zero).x);
}
";

impl Program {
    /// The kernel as WGSL.
    ///
    /// # Errors
    /// If a file is not written as a step's must be.
    pub(crate) fn text(&self, immediates: bool) -> Result<String, String> {
        let mut kinds: HashMap<(&str, &Variant), Kind> = HashMap::new();
        let mut functions = Functions::default();
        for step in &self.steps {
            let number = kinds.len();
            if let Entry::Vacant(unknown) = kinds.entry((step.file, &step.variant)) {
                unknown.insert(functions.add(step.file, &step.variant, number)?);
            }
        }
        let mut members = String::from("    n: u32,\n    zero: u32,\n");
        let mut bindings = String::new();
        let mut places = String::new();
        let mut steps = String::new();
        for (i, buffer) in self.buffers.iter().enumerate() {
            functions.extensions.extend(buffer.elem.extension());
            let access = if buffer.written.is_some() { "read_write" } else { "read" };
            let stored = buffer.elem.stored();
            let _ = writeln!(members, "    at_{i}: u32,");
            let _ = writeln!(
                bindings,
                "@group(0) @binding({i}) var<storage, {access}> buffer_{i}: array<{stored}>;"
            );
            let place = match buffer.read {
                None => continue,
                Some(Walk::Each) => " + i",
                Some(Walk::Same) => "",
                Some(Walk::Repeated) => {
                    let _ = writeln!(members, "    run_{i}: u32,\n    period_{i}: u32,");
                    let _ = writeln!(
                        places,
                        "    let period_{i} = vec2<u32>(params.run_{i}, params.period_{i});"
                    );
                    let _ = writeln!(places, "    let step_{i} = repeated(WORKGROUP, period_{i});");
                    let _ = writeln!(places, "    var place_{i} = repeated(first + local, period_{i});");
                    &format!(" + place_{i}.y")
                }
            };
            let _ = writeln!(steps, "        let x_{i} = buffer_{i}[params.at_{i}{place}];");
            if buffer.read == Some(Walk::Repeated) {
                let _ = writeln!(steps, "        place_{i} = stepped(place_{i}, step_{i}, period_{i});");
            }
        }
        for (number, step) in self.steps.iter().enumerate() {
            let kind = &kinds[&(step.file, &step.variant)];
            let mut words = step.given.iter().enumerate();
            let mut inputs = step.inputs.iter();
            let mut arguments = Vec::new();
            for (name, wanted) in &kind.parameters {
                if name == "i" {
                    arguments.push("i".to_string());
                } else if let Some(input) = inputs.next() {
                    let (value, stored) = match *input {
                        Source::Buffer(i) => (format!("x_{i}"), self.buffers[i].elem.stored()),
                        Source::Step(i) => (format!("y_{i}"), self.steps[i].result.stored()),
                    };
                    arguments.push(converted(value, stored, wanted));
                } else {
                    match words.next() {
                        Some((word, true)) => {
                            let _ = writeln!(members, "    word_{number}_{word}: {wanted},");
                            arguments.push(format!("params.word_{number}_{word}"));
                        }
                        Some((_, false)) => arguments.push(converted("params.zero".into(), "u32", wanted)),
                        None => return Err(format!("{}: nothing for {name}", step.file)),
                    }
                }
            }
            if words.next().is_some() {
                return Err(format!("{}: `element` takes fewer parameters", step.file));
            }
            let stored = step.result.stored();
            let call = format!("{}({})", kind.function, arguments.join(", "));
            let value = converted(call, &kind.result, stored);
            let value = match stored {
                "f32" | "f16" => format!("kept_{stored}({value})"),
                _ => value,
            };
            let _ = writeln!(steps, "        let y_{number} = {value};");
        }
        for (i, buffer) in self.buffers.iter().enumerate() {
            if let Some(step) = buffer.written {
                let _ = writeln!(steps, "        buffer_{i}[params.at_{i} + i] = y_{step};");
            }
        }
        if functions.extensions.contains("f16") {
            functions.text.push_str(KEPT_F16);
        }
        let frame = orkest_shaders::source(FRAME).ok_or_else(|| format!("there is no {FRAME}"))?;
        let bindings = format!("struct Params {{\n{members}}}\n\n{bindings}");
        let marked =
            [("bindings", bindings), ("functions", functions.text), ("places", places), ("steps", steps)];
        let text = filled(frame, &marked);
        let text = expand(&text, &Variant::new(), 0, immediates)?;
        let enabled: String = functions.extensions.iter().map(|e| format!("enable {e};\n")).collect();
        Ok(enabled + &text)
    }
}

/// A value of one type as the bits of another.
fn converted(value: String, from: &str, to: &str) -> String {
    if from == to { value } else { format!("bitcast<{to}>({value})") }
}

/// A frame with the lines between its marks replaced.
fn filled(frame: &str, marked: &[(&str, String)]) -> String {
    let mut out = String::new();
    let mut inside = false;
    for line in frame.lines() {
        let mark = line.trim_start().strip_prefix("// ");
        if let Some(name) = mark.and_then(|mark| mark.strip_prefix("begin ")) {
            inside = true;
            out.extend(marked.iter().filter(|(n, _)| *n == name).map(|(_, text)| text.as_str()));
        } else if mark.is_some_and(|mark| mark.starts_with("end ")) {
            inside = false;
        } else if !inside {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// The function `element` of a file in a variant.
struct Kind {
    function: String,
    /// Names and types.
    parameters: Vec<(String, String)>,
    result: String,
}

/// What the steps of a program call.
#[derive(Default)]
struct Functions {
    text: String,
    /// Shared blocks that are there already.
    shared: BTreeSet<String>,
    extensions: BTreeSet<&'static str>,
}

impl Functions {
    /// Adds what a file declares, under names that end with `number`; shared blocks, which are the same in all files, once as they are.
    fn add(&mut self, file: &'static str, variant: &Variant, number: usize) -> Result<Kind, String> {
        let source = orkest_shaders::source(file).ok_or_else(|| format!("there is no {file}"))?;
        let text = expand(source, variant, 0, true)?;
        let mut own = String::new();
        let mut types = HashMap::new();
        let mut block: Option<String> = None;
        let mut item = false;
        for line in text.lines() {
            if let Some(extension) = line.strip_prefix("enable ").and_then(|rest| rest.strip_suffix(';')) {
                self.extensions.extend(["f16", "wgpu_int16"].into_iter().find(|e| *e == extension));
            } else if let Some(name) = line.strip_prefix("// shared ") {
                block = Some(name.into());
            } else if line == "// end shared" {
                self.shared.extend(block.take());
            } else if let Some(block) = &block {
                if !self.shared.contains(block) {
                    self.text.push_str(line);
                    self.text.push('\n');
                }
            } else if item || ["alias ", "const ", "fn "].iter().any(|keyword| line.starts_with(keyword)) {
                if !item && line.starts_with("fn main") {
                    break;
                }
                // A declaration ends on its line, or with a brace below its first letter.
                item = if item { line != "}" } else { !line.ends_with([';', '}']) };
                own.push_str(line);
                own.push('\n');
            }
        }
        for line in own.lines() {
            if let Some((name, of)) = line.strip_prefix("alias ").and_then(|rest| rest.split_once(" = ")) {
                types.insert(name.to_string(), of.trim_end_matches(';').to_string());
            }
        }
        let named = |of: &str| types.get(of).cloned().unwrap_or_else(|| of.to_string());
        let missing = || format!("{file} has no function `element`");
        let (_, signature) = own.split_once("fn element(").ok_or_else(missing)?;
        let (parameters, rest) = signature.split_once(')').ok_or_else(missing)?;
        let result = rest.strip_prefix(" -> ").and_then(|rest| rest.split_once(' ')).ok_or_else(missing)?.0;
        let parameters = parameters
            .split(',')
            .filter_map(|parameter| parameter.trim().split_once(": "))
            .map(|(name, of)| (name.to_string(), named(of)))
            .collect();
        let result = named(result);
        self.text.push_str(&renamed(&own, number));
        Ok(Kind { function: format!("element_{number}"), parameters, result })
    }
}

/// A text whose declared names end with `number` wherever they stand.
fn renamed(text: &str, number: usize) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let declared: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| ["alias ", "const ", "fn "].iter().find_map(|keyword| line.strip_prefix(keyword)))
        .filter_map(|rest| rest.split(|c| !is_word(c)).next())
        .collect();
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        let word = rest[start..].split(|c| !is_word(c)).next().unwrap_or_default();
        out.push_str(&rest[..start + word.len()]);
        if declared.contains(word) {
            let _ = write!(out, "_{number}");
        }
        rest = &rest[start + word.len()..];
    }
    out + rest
}

/// Programs with every step that there is, for the tests that need no device: it reads its operands in all ways, and both it and a step
/// after it are written.
#[cfg(test)]
pub(crate) fn programs() -> Vec<Program> {
    use crate::variant::{Value, variant};
    use crate::{copy, elementwise, random, unary};
    let all = [copy::variants(), elementwise::variants(), unary::variants(), random::variants()].concat();
    let steps = all
        .into_iter()
        .filter(|(file, variant)| can_be_step(file) && variant.contains(&("STRIDED", Value::Bool(false))));
    let of = |variant: &Variant, name: &str| {
        variant.iter().find_map(|&(n, value)| match value {
            Value::Elem(e) | Value::Bits(e) if n == name => Some(e),
            _ => None,
        })
    };
    let program = |(file, mut variant): (&'static str, Variant)| {
        variant.retain(|(name, _)| *name != "STRIDED");
        let elem = of(&variant, "elem").or(of(&variant, "src")).expect("every step has operands");
        let (inputs, words, result): (&[Elem], usize, Elem) = match file.trim_start_matches("elementwise/") {
            "binary.wgsl" => (&[elem, elem], 1, elem),
            "cast.wgsl" => (&[elem], 0, of(&variant, "dst").expect("a cast has a result")),
            "compare.wgsl" => (&[elem, elem], 1, Elem::Bool),
            "copy.wgsl" => (&[elem], 0, elem),
            "dropout.wgsl" => (&[elem], 6, elem),
            "test.wgsl" => (&[elem], 0, Elem::Bool),
            "unary.wgsl" => (&[elem], 2, elem),
            "unary_grad.wgsl" => (&[elem, elem], 2, elem),
            "where.wgsl" => (&[Elem::Bool, elem, elem], 0, elem),
            other => panic!("{other} is a step"),
        };
        let walks = [Walk::Each, Walk::Repeated, Walk::Same];
        let read = |(i, &elem): (usize, &Elem)| Bound { elem, read: Some(walks[i]), written: None };
        let written = |step| Bound { elem: result, read: None, written: Some(step) };
        let first = Step {
            file,
            variant,
            inputs: (0..inputs.len()).map(Source::Buffer).collect(),
            given: (0..words).map(|i| i != 1).collect(),
            result,
        };
        let second = Step {
            file: "elementwise/copy.wgsl",
            variant: variant![elem: Value::Bits(result)],
            inputs: SmallVec::from_slice(&[Source::Step(0)]),
            given: SmallVec::new(),
            result,
        };
        Program {
            constants: Constants::new(),
            buffers: inputs.iter().enumerate().map(read).chain([0, 1].map(written)).collect(),
            steps: vec![first, second],
        }
    };
    steps.map(program).collect()
}
