//! A model as text, in the manner of PyTorch's `print(model)`.

use crate::Module;

/// The tree of a module, and the number of its parameters if it has others inside.
pub fn repr<M: Module + ?Sized>(module: &M) -> String {
    let tree = tree(module);
    if module.children().is_empty() {
        return tree;
    }
    let parameters = module.parameters();
    let (mut all, mut trained) = (0, 0);
    for p in &parameters {
        all += p.numel();
        trained += if p.requires_grad() { p.numel() } else { 0 };
    }
    let frozen =
        if trained < all { format!(", {} of them trained", grouped(trained)) } else { String::new() };
    format!("{tree}\n{} parameters{frozen}", grouped(all))
}

fn tree<M: Module + ?Sized>(module: &M) -> String {
    let (name, extra) = (module.type_name(), module.extra_repr());
    let children: Vec<(String, String)> =
        module.children().into_iter().map(|(name, child)| (name, tree(child))).collect();
    if children.is_empty() {
        return format!("{name}({extra})");
    }
    let mut lines = vec![format!("{name}({extra}")];
    let mut rest = &children[..];
    while let Some((name, body)) = rest.first() {
        let run = run_length(rest);
        let label = match run {
            1 => format!("({name}): {body}"),
            _ => format!("({name}-{}): {run} x {body}", number_of(&rest[run - 1].0).unwrap_or_default()),
        };
        lines.extend(label.lines().map(|line| format!("  {line}")));
        rest = &rest[run..];
    }
    lines.push(")".into());
    lines.join("\n")
}

/// How many children at the beginning are equal elements of one list: `layers.0`, `layers.1`, ..
fn run_length(children: &[(String, String)]) -> usize {
    let (first, body) = &children[0];
    let Some(start) = number_of(first) else { return 1 };
    let list = first.trim_end_matches(char::is_numeric);
    let same =
        |(i, (name, b)): &(usize, &(String, String))| *name == format!("{list}{}", start + i) && b == body;
    children.iter().enumerate().take_while(same).count()
}

/// The position at the end of `layers.12` or `12`.
fn number_of(name: &str) -> Option<usize> {
    name.rsplit('.').next()?.parse().ok()
}

/// 1313538 as 1,313,538.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let start = digits.len() % 3;
    let mut out = digits[..start].to_string();
    for chunk in digits.as_bytes()[start..].chunks(3) {
        if !out.is_empty() {
            out.push(',');
        }
        out.extend(chunk.iter().map(|&b| b as char));
    }
    out
}

/// A truth value as Python prints it, which is how these texts read elsewhere.
pub(crate) fn python_bool(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// A number as Python prints it: 0.1, 1.0, 1e-05.
pub(crate) fn python_float(value: f64) -> String {
    if value != 0.0 && value.is_finite() && !(1e-4..1e16).contains(&value.abs()) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{value:?}")
}

/// Sizes as Python prints a tuple: (3,), (3, 5).
pub(crate) fn python_tuple(sizes: &[usize]) -> String {
    match sizes {
        [one] => format!("({one},)"),
        _ => format!("({})", sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Height and width as 3 or (3, 5).
pub(crate) fn one_or_two([height, width]: [usize; 2]) -> String {
    if height == width { height.to_string() } else { python_tuple(&[height, width]) }
}

#[cfg(test)]
mod tests {
    use crate::*;

    #[derive(Module)]
    struct Classifier {
        embedding: Embedding,
        fc1: Linear,
        dropout: Dropout,
    }

    #[derive(Module)]
    struct Stack {
        layers: Vec<Linear>,
        last: Linear,
    }

    #[test]
    fn a_model_prints_as_in_pytorch() {
        let model = Classifier {
            embedding: Embedding::new(10000, 128),
            fc1: Linear::new(128, 256),
            dropout: Dropout::new(0.3),
        };
        // torch prints `Dropout(p=0.3, inplace=False)`: nothing is in place here.
        let expected = "Classifier(\n  (embedding): Embedding(10000, 128)\n  (fc1): Linear(in_features=128, out_features=256, \
                        bias=True)\n  (dropout): Dropout(p=0.3)\n)\n1,313,024 parameters";
        assert_eq!(model.to_string(), expected);
    }

    #[test]
    fn numbers_print_as_in_python() {
        let texts = [0.1, 1.0, 0.0, 1e-4, 1e-5, 1.5e-12, 1e15, 1e16].map(super::python_float);
        assert_eq!(texts, ["0.1", "1.0", "0.0", "0.0001", "1e-05", "1.5e-12", "1000000000000000.0", "1e+16"]);
    }

    #[test]
    fn equal_elements_of_a_list_are_one_line() {
        let linear = || Linear::new(2, 2);
        let stack = Stack { layers: vec![linear(), linear(), Linear::new(2, 3), linear()], last: linear() };
        stack.last.requires_grad_(false);
        let body = "Linear(in_features=2, out_features=2, bias=True)";
        let expected = format!(
            "Stack(\n  (layers.0-1): 2 x {body}\n  (layers.2): Linear(in_features=2, out_features=3, bias=True)\n  \
             (layers.3): {body}\n  (last): {body}\n)\n33 parameters, 27 of them trained"
        );
        assert_eq!(stack.to_string(), expected);
        assert_eq!(linear().to_string(), body);
    }
}
