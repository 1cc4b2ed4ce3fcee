//! Einstein summation: products and sums named by letters.
//!
//! Operands are contracted pair by pair, each pair by one matrix product (or an elementwise product where nothing is summed). It is
//! built from differentiable operations, so gradients of any order follow.

use crate::shape::MAX_RANK;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// Multiplies the operands and sums over every letter that the output lacks, as `torch.einsum`.
///
/// Each operand's dimensions are named by letters; `...` stands for any further ones, which broadcast. Without `->` the output has
/// the `...` dimensions, then every letter that occurs once, in alphabetical order. A letter twice in one operand takes its
/// diagonal. Sizes of 1 broadcast. Spaces are ignored.
///
/// ```
/// # use orkest_core::{Device, Tensor, einsum};
/// let q = Tensor::ones([2, 4, 5, 8], &Device::cpu());
/// let k = Tensor::ones([2, 4, 6, 8], &Device::cpu());
/// assert_eq!(einsum("b h i d, b h j d -> b h i j", &[&q, &k]).shape(), &[2, 4, 5, 6]);
/// assert_eq!(einsum("...ij -> ...ji", &[&q]).shape(), &[2, 4, 8, 5]);
/// ```
///
/// # Panics
/// If the equation is malformed or does not fit the operands' shapes.
#[track_caller]
pub fn einsum(equation: &str, operands: &[&Tensor]) -> Tensor {
    let (terms, output, sizes) = match understand(equation, operands) {
        Ok(understood) => understood,
        Err(problem) => refuse(equation, &problem, operands),
    };
    let operands: Vec<Tensor> = operands.iter().map(|t| t.in_low_precision().into_owned()).collect();
    let dtype = operands[1..].iter().fold(operands[0].dtype(), |d, t| d.promote(t.dtype()));
    let mut factors: Vec<Factor> =
        operands.iter().zip(terms).map(|(t, labels)| Factor::new(t.to_dtype(dtype), labels)).collect();
    while factors.len() > 1 {
        let (i, j) = cheapest_pair(&factors, &output, &sizes);
        let right = factors.remove(j);
        let left = factors.remove(i);
        let needed = |l: Label| output.contains(&l) || factors.iter().any(|f| f.labels.contains(&l));
        let product = contract(left, right, &needed, &sizes);
        factors.insert(i, product);
    }
    factors.remove(0).arranged(&output)
}

/// The name of a dimension. Dimensions under `...` are numbered from the outermost; they come first in sorted order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Label {
    Ellipsis(usize),
    Letter(u8),
}

type Sizes = BTreeMap<Label, usize>;

/// One symbol of a term as written.
#[derive(Clone, Copy, PartialEq)]
enum Symbol {
    Dots,
    Letter(u8),
}

fn symbols(term: &str, place: &str) -> Result<Vec<Symbol>, String> {
    let mut found = Vec::new();
    let mut rest = term.trim_start();
    while let Some(c) = rest.chars().next() {
        if c.is_ascii_alphabetic() {
            found.push(Symbol::Letter(c as u8));
            rest = &rest[1..];
        } else if let Some(after) = rest.strip_prefix("...") {
            if found.contains(&Symbol::Dots) {
                return Err(format!("{place} has more than one ellipsis '...'"));
            }
            found.push(Symbol::Dots);
            rest = after;
        } else if c == '.' {
            return Err(format!("{place} has a '.' that is not part of an ellipsis '...'"));
        } else {
            return Err(format!("{place} contains {c:?}; subscripts are the letters a-z and A-Z"));
        }
        rest = rest.trim_start();
    }
    Ok(found)
}

/// The labels of every operand's dimensions, those of the output, and the size of each label.
fn understand(equation: &str, operands: &[&Tensor]) -> Result<(Vec<Vec<Label>>, Vec<Label>, Sizes), String> {
    if operands.is_empty() {
        return Err("at least one operand is needed".into());
    }
    let (inputs, output) = match equation.split_once("->") {
        Some((inputs, output)) => (inputs, Some(symbols(output, "the output")?)),
        None => (equation, None),
    };
    let terms: Vec<&str> = inputs.split(',').collect();
    if terms.len() != operands.len() {
        return Err(format!("the equation has {} terms for {} operands", terms.len(), operands.len()));
    }
    let terms: Vec<Vec<Symbol>> = terms
        .iter()
        .enumerate()
        .map(|(i, t)| symbols(t, &format!("operand {i}")))
        .collect::<Result<_, _>>()?;

    // How many dimensions `...` stands for: the most any operand puts there; the others align at the right.
    let mut hidden = Vec::with_capacity(terms.len());
    for (i, (term, t)) in terms.iter().zip(operands).enumerate() {
        let dots = term.contains(&Symbol::Dots);
        let named = term.len() - dots as usize;
        match t.rank().checked_sub(named) {
            Some(n) if dots || n == 0 => hidden.push(n),
            _ => return Err(format!("operand {i} has {named} subscripts for {} dimensions", t.rank())),
        }
    }
    let dots = hidden.iter().copied().max().unwrap_or(0);

    let mut sizes = Sizes::new();
    let mut labelled = Vec::with_capacity(terms.len());
    for (i, ((term, t), &n)) in terms.iter().zip(operands).zip(&hidden).enumerate() {
        let labels = spelled_out(term, dots - n..dots);
        for (d, (&label, &size)) in labels.iter().zip(t.shape().iter()).enumerate() {
            if let Some(first) = labels[..d].iter().position(|&l| l == label)
                && t.shape()[first] != size
            {
                return Err(format!(
                    "operand {i} repeats {} for sizes {} and {size}",
                    label.name(),
                    t.shape()[first]
                ));
            }
            let known = sizes.entry(label).or_insert(size);
            match (*known, size) {
                (a, b) if a == b || b == 1 => {}
                (1, b) => *known = b,
                (a, b) => return Err(format!("{} has size {b} in operand {i} and {a} before", label.name())),
            }
        }
        labelled.push(labels);
    }

    let output = match output {
        Some(symbols) => spelled_out(&symbols, 0..dots),
        // Labels come in order: `...` first, then letters.
        None => sizes
            .keys()
            .copied()
            .filter(|&l| matches!(l, Label::Ellipsis(_)) || occurs_once(l, &labelled))
            .collect(),
    };
    for (d, label) in output.iter().enumerate() {
        if !sizes.contains_key(label) {
            return Err(format!("the output has {}, which no operand has", label.name()));
        }
        if output[..d].contains(label) {
            return Err(format!("the output has {} more than once", label.name()));
        }
    }
    if output.len() > MAX_RANK {
        return Err(format!("the output has {} dimensions, at most {MAX_RANK} are possible", output.len()));
    }
    Ok((labelled, output, sizes))
}

fn spelled_out(term: &[Symbol], dots: std::ops::Range<usize>) -> Vec<Label> {
    let mut labels = Vec::new();
    for symbol in term {
        match symbol {
            Symbol::Dots => labels.extend(dots.clone().map(Label::Ellipsis)),
            Symbol::Letter(c) => labels.push(Label::Letter(*c)),
        }
    }
    labels
}

fn occurs_once(label: Label, terms: &[Vec<Label>]) -> bool {
    terms.iter().flatten().filter(|&&l| l == label).count() == 1
}

impl Label {
    fn name(self) -> String {
        match self {
            Label::Ellipsis(i) => format!("dimension {i} of the ellipsis"),
            Label::Letter(c) => format!("subscript {}", c as char),
        }
    }
}

#[cold]
#[track_caller]
fn refuse(equation: &str, problem: &str, operands: &[&Tensor]) -> ! {
    let shapes: Vec<String> = operands.iter().map(|t| t.shape().to_string()).collect();
    let described: Vec<String> = operands.iter().map(|t| t.describe()).collect();
    panic!(
        "einsum({equation:?}): {problem}: shapes {}; operands: [{}]",
        shapes.join(", "),
        described.join("; ")
    );
}

/// A tensor whose dimensions have names, all different. Dimensions of size 1 are left out: they broadcast anyway.
struct Factor {
    tensor: Tensor,
    labels: Vec<Label>,
}

impl Factor {
    #[track_caller]
    fn new(mut tensor: Tensor, mut labels: Vec<Label>) -> Factor {
        for d in (0..labels.len()).rev() {
            if tensor.shape()[d] == 1 {
                tensor = tensor.squeeze(d as isize);
                labels.remove(d);
            }
        }
        let mut d = 0;
        while d < labels.len() {
            match labels[d + 1..].iter().position(|&l| l == labels[d]) {
                Some(behind) => {
                    let twin = d + 1 + behind;
                    tensor = tensor.diagonal(0, d as isize, twin as isize); // its dimension comes last
                    labels.remove(twin);
                    let label = labels.remove(d);
                    labels.push(label);
                }
                None => d += 1,
            }
        }
        Factor { tensor, labels }
    }

    /// Summed over the labels that `keep` does not want.
    #[track_caller]
    fn summed(mut self, keep: impl Fn(Label) -> bool) -> Factor {
        let dims: Vec<isize> =
            (0..self.labels.len()).filter(|&d| !keep(self.labels[d])).map(|d| d as isize).collect();
        if !dims.is_empty() {
            self.tensor = self.tensor.sum(&dims[..]);
            self.labels.retain(|&l| keep(l));
        }
        self
    }

    /// The tensor with its dimensions in this order, which names all of them.
    #[track_caller]
    fn ordered(&self, order: impl Iterator<Item = Label>) -> Tensor {
        let dims: Vec<isize> =
            order.filter_map(|l| self.labels.iter().position(|&m| m == l)).map(|d| d as isize).collect();
        self.tensor.permute(&dims[..])
    }

    /// The tensor with exactly the dimensions of the output.
    #[track_caller]
    fn arranged(self, output: &[Label]) -> Tensor {
        let factor = self.summed(|l| output.contains(&l));
        let mut tensor = factor.ordered(output.iter().copied());
        for (d, label) in output.iter().enumerate() {
            if !factor.labels.contains(label) {
                tensor = tensor.unsqueeze(d as isize);
            }
        }
        tensor
    }
}

/// The pair whose product adds least to the memory in use; the leftmost of equals.
fn cheapest_pair(factors: &[Factor], output: &[Label], sizes: &Sizes) -> (usize, usize) {
    let mut best = (0, 1);
    let mut least = f64::INFINITY;
    for j in 1..factors.len() {
        for i in 0..j {
            let (a, b) = (&factors[i], &factors[j]);
            let elsewhere = |l: &Label| {
                output.contains(l)
                    || (0..factors.len()).any(|k| k != i && k != j && factors[k].labels.contains(l))
            };
            let new = b.labels.iter().filter(|l| !a.labels.contains(l));
            let result: f64 =
                a.labels.iter().chain(new).filter(|l| elsewhere(l)).map(|l| sizes[l] as f64).product();
            let cost = result - a.tensor.numel() as f64 - b.tensor.numel() as f64;
            if cost < least {
                (best, least) = ((i, j), cost);
            }
        }
    }
    best
}

/// The product of two factors, summed over the labels that nobody needs any more.
#[track_caller]
fn contract(a: Factor, b: Factor, needed: &dyn Fn(Label) -> bool, sizes: &Sizes) -> Factor {
    let a = a.summed(|l| needed(l) || b.labels.contains(&l));
    let b = b.summed(|l| needed(l) || a.labels.contains(&l));
    let (shared, left): (Vec<Label>, Vec<Label>) = a.labels.iter().partition(|l| b.labels.contains(l));
    let (batch, inner): (Vec<Label>, Vec<Label>) = shared.into_iter().partition(|&l| needed(l));
    let right: Vec<Label> = b.labels.iter().copied().filter(|l| !a.labels.contains(l)).collect();
    let labels: Vec<Label> = [&batch[..], &left, &right].concat();
    let size = |l: &Label| sizes[l];

    let tensor = if inner.is_empty() {
        // Nothing to sum: [batch, left, 1] * [batch, 1, right].
        let mut wide: Vec<usize> = batch.iter().chain(&left).map(size).collect();
        wide.resize(labels.len(), 1);
        let mut tall: Vec<usize> = batch.iter().map(size).collect();
        tall.resize(batch.len() + left.len(), 1);
        tall.extend(right.iter().map(size));
        let a = a.ordered(labels.iter().copied()).reshape(wide);
        a * b.ordered(labels.iter().copied()).reshape(tall)
    } else {
        // [batch, left, inner] @ [batch, inner, right], without the batch dimension where there is none.
        let count = |ls: &[Label]| ls.iter().map(size).product::<usize>();
        let shape = |rows: usize, columns: usize| {
            if batch.is_empty() { vec![rows, columns] } else { vec![count(&batch), rows, columns] }
        };
        let a = a
            .ordered(batch.iter().chain(&left).chain(&inner).copied())
            .reshape(shape(count(&left), count(&inner)));
        let b = b
            .ordered(batch.iter().chain(&inner).chain(&right).copied())
            .reshape(shape(count(&inner), count(&right)));
        a.matmul(&b).reshape(labels.iter().map(size).collect::<Vec<usize>>())
    };
    Factor { tensor, labels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Device, gradcheck, gradgradcheck};

    fn iota(shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor::arange(0.0, n as f64, 1.0, (DType::F64, &Device::reference())).reshape(shape)
    }

    /// Sums products over all values of all labels, straight from the definition. Sizes of 1 broadcast.
    fn by_definition(terms: &[&str], output: &str, operands: &[&Tensor]) -> Vec<f64> {
        let mut letters: Vec<char> = terms.concat().chars().collect();
        letters.sort_unstable();
        letters.dedup();
        let size_in =
            |l: char, t: usize| terms[t].chars().position(|c| c == l).map(|d| operands[t].shape()[d]);
        let size = |l: char| (0..terms.len()).filter_map(|t| size_in(l, t)).max().unwrap();
        let out_sizes: Vec<usize> = output.chars().map(size).collect();
        let mut out = vec![0.0; out_sizes.iter().product()];
        let data: Vec<Vec<f64>> = operands.iter().map(|t| t.to_vec::<f64>().unwrap()).collect();
        for mut n in 0..letters.iter().map(|&l| size(l)).product::<usize>() {
            let mut at = std::collections::HashMap::new();
            for &l in &letters {
                at.insert(l, n % size(l));
                n /= size(l);
            }
            let product: f64 = (0..terms.len())
                .map(|t| {
                    let place = terms[t].chars().zip(operands[t].shape().iter());
                    data[t][place.fold(0, |p, (l, &s)| p * s + if s == 1 { 0 } else { at[&l] })]
                })
                .product();
            out[output.chars().zip(&out_sizes).fold(0, |p, (l, &s)| p * s + at[&l])] += product;
        }
        out
    }

    #[test]
    fn sums_of_products_follow_the_definition() {
        let cases: &[(&str, &[&[usize]])] = &[
            ("ij->ji", &[&[2, 3]]),
            ("ij->", &[&[2, 3]]),
            ("ijk->k", &[&[2, 3, 4]]),
            ("ii->i", &[&[3, 3]]),
            ("ii->", &[&[3, 3]]),
            ("iji->j", &[&[3, 2, 3]]),
            ("iiji->ij", &[&[2, 2, 3, 2]]),
            ("iijj->ij", &[&[2, 2, 3, 3]]),
            ("ij,jk->ik", &[&[2, 3], &[3, 4]]),
            ("ij,kj->ki", &[&[2, 3], &[4, 3]]),
            ("ij,ij->", &[&[2, 3], &[2, 3]]),
            ("ij,ij->ij", &[&[2, 3], &[2, 3]]),
            ("i,j->ji", &[&[2], &[3]]),
            ("bij,bjk->bik", &[&[2, 3, 4], &[2, 4, 5]]),
            ("bhid,bhjd->bhij", &[&[2, 2, 3, 4], &[2, 2, 5, 4]]),
            ("bid,bjd->ijb", &[&[2, 3, 4], &[2, 5, 4]]),
            ("ik,jkl,il->ij", &[&[2, 3], &[4, 3, 5], &[2, 5]]),
            ("ab,bc,cd,de->ae", &[&[2, 3], &[3, 4], &[4, 5], &[5, 2]]),
            ("i,i,i->", &[&[3], &[3], &[3]]),
            ("ij,kj->ik", &[&[2, 3], &[4, 1]]),
            ("ij,ij->ij", &[&[1, 3], &[2, 1]]),
            ("ij,jk->k", &[&[2, 1], &[1, 3]]),
            ("ii,i->i", &[&[1, 1], &[3]]),
            ("ab,cd->", &[&[2, 3], &[4, 5]]),
            ("ab,cd->cb", &[&[2, 3], &[4, 5]]),
            ("ij,ijk->ik", &[&[2, 0], &[2, 0, 3]]),
        ];
        for &(equation, shapes) in cases {
            let operands: Vec<Tensor> = shapes.iter().enumerate().map(|(i, s)| iota(s) + i as f64).collect();
            let operands: Vec<&Tensor> = operands.iter().collect();
            let (inputs, output) = equation.split_once("->").unwrap();
            let expected = by_definition(&inputs.split(',').collect::<Vec<_>>(), output, &operands);
            let result = einsum(equation, &operands);
            assert_eq!(result.rank(), output.len(), "{equation}");
            assert_eq!(result.to_vec::<f64>().unwrap(), expected, "{equation}");
        }
    }

    #[test]
    fn implicit_outputs_ellipses_and_spaces_are_torchs() {
        // Shapes and first values from torch.einsum on the same numbers.
        let x = iota(&[3, 4]);
        let check = |equation: &str, operands: &[&Tensor], shape: &[usize], first: &[f64]| {
            let y = einsum(equation, operands);
            assert_eq!(**y.shape(), *shape, "{equation}");
            assert_eq!(&y.to_vec::<f64>().unwrap()[..first.len()], first, "{equation}");
        };
        check("ij", &[&x], &[3, 4], &[0., 1., 2.]);
        check("ji", &[&x], &[4, 3], &[0., 4., 8.]);
        check("aB", &[&x], &[4, 3], &[0., 4., 8.]);
        check("ii", &[&x.narrow(1, 0, 3)], &[], &[15.]);
        check("ij->...ij", &[&x], &[3, 4], &[0., 1.]);
        check("...ij->...", &[&x], &[], &[66.]);
        check("...->", &[&x], &[], &[66.]);
        check("...", &[&x], &[3, 4], &[0., 1.]);
        check(" i j -> j i ", &[&x], &[4, 3], &[0., 4.]);
        check("ij,jk", &[&x, &x.t()], &[3, 3], &[14., 38., 62., 38., 126., 214.]);
        check(
            "...i,...i->i",
            &[&x, &Tensor::ones([2, 3, 4], (DType::F64, x.device()))],
            &[4],
            &[24., 30., 36., 42.],
        );
        check("ij,", &[&x, &iota(&[]).add(2.0)], &[3, 4], &[0., 2., 4.]);
        check(",", &[&iota(&[]).add(2.0), &iota(&[]).add(3.0)], &[], &[6.]);
        check("", &[&iota(&[]).add(2.0)], &[], &[2.]);
        check("i...,j->...ij", &[&iota(&[1, 2]), &iota(&[3])], &[2, 1, 3], &[0., 0., 0., 0., 1., 2.]);
    }

    #[test]
    fn malformed_equations_are_refused_with_the_reason() {
        let x = iota(&[3, 4]);
        let cases: &[(&str, usize, &str)] = &[
            ("i.j", 1, "not part of an ellipsis"),
            ("ij->..", 1, "not part of an ellipsis"),
            ("...i...", 1, "more than one ellipsis"),
            ("ij->......", 1, "the output has more than one ellipsis"),
            ("i1", 1, "contains '1'"),
            ("ij->i->j", 1, "contains '-'"),
            ("ij - > ji", 1, "contains '-'"),
            ("i", 1, "operand 0 has 1 subscripts for 2 dimensions"),
            ("...ijk", 1, "operand 0 has 3 subscripts for 2 dimensions"),
            ("ij->ijk", 1, "the output has subscript k, which no operand has"),
            ("ij->ii", 1, "the output has subscript i more than once"),
            ("ij,jk", 2, "subscript j has size 3 in operand 1 and 4 before"),
            ("ii", 1, "operand 0 repeats subscript i for sizes 3 and 4"),
            ("ij", 2, "1 terms for 2 operands"),
            ("ij,ij", 1, "2 terms for 1 operands"),
            ("ij", 0, "at least one operand"),
        ];
        for &(equation, n, expected) in cases {
            let attempt = std::panic::AssertUnwindSafe(|| einsum(equation, &vec![&x; n]));
            let error = std::panic::catch_unwind(attempt).expect_err(equation);
            let message = error.downcast_ref::<String>().unwrap();
            assert!(message.contains(expected), "{equation}: {message}");
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        let cases: &[(&str, &[&[usize]])] = &[
            ("ij,jk->ki", &[&[2, 3], &[3, 2]]),
            ("iij,j->i", &[&[2, 2, 3], &[3]]),
            ("b...i,bi->...", &[&[2, 2, 3], &[1, 3]]),
            ("ik,jk,il->jl", &[&[2, 2], &[3, 2], &[2, 2]]),
        ];
        for &(equation, shapes) in cases {
            let inputs: Vec<Tensor> = shapes.iter().map(|s| (iota(s) * 0.7 + 0.5).sin()).collect();
            let f = |x: &[Tensor]| einsum(equation, &x.iter().collect::<Vec<_>>());
            gradcheck(f, &inputs).unwrap();
            gradgradcheck(f, &inputs).unwrap();
        }
    }
}
