//! Tensors as text, in PyTorch's number format: aligned columns, four decimals, scientific notation where sizes differ much, and
//! the middle of large tensors left out.

use crate::autograd::no_grad;
use crate::error::Result;
use crate::tensor::Tensor;
use crate::with_dtype;
use std::fmt::{self, Write};

/// Columns of a line.
const LINE_WIDTH: usize = 80;
/// Tensors with more elements are summarised.
const THRESHOLD: usize = 1000;
/// How many elements a summary shows at each end of a dimension.
const EDGE: usize = 3;
/// The opening of every tensor; values are aligned behind it.
const OPENING: &str = "tensor(";

/// Values, shape, dtype, device, and how gradients reach the tensor. Reads the values from the device; if it reports an error, that
/// is shown in their place.
///
/// ```
/// # use orkest_core::{Device, Tensor};
/// let x = Tensor::new([[1.0f32, 2.5], [-3.0, 4.0]], &Device::cpu()).requires_grad_(true);
/// let text = x.tanh().to_string();
/// assert!(text.starts_with("tensor([[ 0.7616,  0.9866],\n        [-0.9951,  0.9993]], shape=[2, 2], dtype=f32"));
/// assert!(text.ends_with("grad_op=tanh)"));
/// ```
impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::from(OPENING);
        match values(self) {
            Ok(values) => text += &values,
            Err(error) => write!(text, "<{error}>")?,
        }
        let mut facts = vec![
            format!("shape={}", self.shape()),
            format!("dtype={}", self.dtype()),
            format!("device={}", self.device()),
        ];
        match self.grad_op() {
            Some(op) => facts.push(format!("grad_op={op}")),
            None if self.requires_grad() => facts.push("requires_grad=true".into()),
            None => {}
        }
        for fact in facts {
            let column = text.len() - text.rfind('\n').map_or(0, |newline| newline + 1);
            // ", " before it, and "," or ")" behind.
            let separator =
                if column + fact.len() + 3 > LINE_WIDTH { line_break(1, OPENING.len()) } else { ", ".into() };
            text += &separator;
            text += &fact;
        }
        text.push(')');
        f.write_str(&text)
    }
}

/// As [`Display`](fmt::Display).
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The values alone.
fn values(t: &Tensor) -> Result<String> {
    if t.numel() == 0 {
        return Ok("[]".into());
    }
    let summarised = t.numel() > THRESHOLD;
    let shown = if summarised { no_grad(|| edges(&t.detach())) } else { t.detach() };
    let table = if t.dtype().is_float() {
        Table::of_floats(&with_dtype!(t.dtype(), T => {
            shown.to_vec::<T>()?.into_iter().map(crate::Element::to_f64).collect::<Vec<f64>>()
        }))
    } else {
        Table::of_whole(with_dtype!(t.dtype(), T => {
            shown.to_vec::<T>()?.iter().map(ToString::to_string).collect::<Vec<String>>()
        }))
    };
    let mut out = String::new();
    table.write(&mut out, shown.shape(), t.shape(), 0, OPENING.len());
    Ok(out)
}

/// The first and last few elements along every long dimension.
fn edges(t: &Tensor) -> Tensor {
    let mut t = t.clone();
    for dim in 0..t.rank() as isize {
        let size = t.size(dim);
        if size > 2 * EDGE {
            t = Tensor::cat(&[t.narrow(dim, 0, EDGE), t.narrow(dim, size - EDGE, EDGE)], dim);
        }
    }
    t
}

/// Numbers as text, with the width that columns have.
struct Table {
    cells: Vec<String>,
    width: usize,
}

impl Table {
    fn of_whole(cells: Vec<String>) -> Table {
        let width = cells.iter().map(String::len).max().unwrap_or(0);
        Table { cells, width }
    }

    fn of_floats(values: &[f64]) -> Table {
        // Only finite numbers other than zero decide on the notation and the width.
        let counts = |v: f64| v.is_finite() && v != 0.0;
        let deciding = || values.iter().copied().filter(|&v| counts(v));
        let largest = deciding().fold(0.0, |m: f64, v| m.max(v.abs()));
        let smallest = deciding().fold(f64::INFINITY, |m, v| m.min(v.abs()));
        let whole = deciding().all(|v| v.fract() == 0.0);
        let notation: fn(f64) -> String =
            if largest > 0.0 && (largest / smallest > 1000.0 || largest > 1e8 || smallest < 1e-4) {
                scientific
            } else if whole {
                |v: f64| if v.is_finite() { format!("{v:.0}.") } else { special(v) }
            } else {
                |v: f64| if v.is_finite() { format!("{v:.4}") } else { special(v) }
            };
        let cells: Vec<String> = values.iter().map(|&v| notation(v)).collect();
        let width =
            values.iter().zip(&cells).filter(|(v, _)| counts(**v)).map(|(_, c)| c.len()).max().unwrap_or(1);
        Table { cells, width }
    }

    /// Writes the cells from `start` on as nested lists of sizes `shown`; sizes that differ from those in `full` were summarised.
    /// The list begins at column `indent`. Returns the next cell.
    fn write(&self, out: &mut String, shown: &[usize], full: &[usize], start: usize, indent: usize) -> usize {
        let width = self.width;
        let ([size, inner @ ..], [whole, inner_full @ ..]) = (shown, full) else {
            out.push_str(&self.cells[start]);
            return start + 1;
        };
        let summarised = size != whole;
        let mut next = start;
        out.push('[');
        if inner.is_empty() {
            let mut items: Vec<String> =
                self.cells[start..start + size].iter().map(|c| format!("{c:>width$}")).collect();
            if summarised {
                items.insert(EDGE, " ...".into());
            }
            let per_line = (LINE_WIDTH.saturating_sub(indent) / (width + 2)).max(1);
            let lines: Vec<String> = items.chunks(per_line).map(|line| line.join(", ")).collect();
            out.push_str(&lines.join(&line_break(1, indent + 1)));
            next += size;
        } else {
            // Matrices are set apart by an empty line, stacks of them by two ...
            let separator = line_break(inner.len(), indent + 1);
            for i in 0..*size {
                if i > 0 {
                    out.push_str(&separator);
                }
                if summarised && i == EDGE {
                    out.push_str("...");
                    out.push_str(&separator);
                }
                next = self.write(out, inner, inner_full, next, indent + 1);
            }
        }
        out.push(']');
        next
    }
}

fn line_break(lines: usize, indent: usize) -> String {
    format!(",{}{}", "\n".repeat(lines), " ".repeat(indent))
}

/// Four decimals and an exponent of at least two digits with its sign, as C and Python print it.
fn scientific(v: f64) -> String {
    if !v.is_finite() {
        return special(v);
    }
    let text = format!("{v:.4e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    format!("{mantissa}e{sign}{digits:0>2}")
}

fn special(v: f64) -> String {
    if v.is_nan() {
        "nan"
    } else if v > 0.0 {
        "inf"
    } else {
        "-inf"
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Reference;
    use crate::{Backend, Buffer, DType, Device, Error, Op, Output, View};

    fn d() -> Device {
        Device::reference()
    }

    fn iota(end: f64, shape: &[usize]) -> Tensor {
        Tensor::arange(0.0, end, 1.0, &d()).reshape(shape)
    }

    #[track_caller]
    fn shows(t: &Tensor, torch: &str) {
        assert_eq!(values(t).unwrap(), torch);
    }

    // The expected texts are what PyTorch 2.15 prints for the same values, from behind "tensor(" to before ")" or ", dtype".

    #[test]
    fn floats_choose_their_notation_as_torch_does() {
        const NAN: f32 = f32::NAN;
        const INF: f32 = f32::INFINITY;
        let cases: &[(&[f32], &str)] = &[
            (&[1.5, -2.25, 1000.0], "[   1.5000,   -2.2500, 1000.0000]"),
            (&[1e-5, 1.0], "[1.0000e-05, 1.0000e+00]"),
            (&[1e9, 1.0], "[1.0000e+09, 1.0000e+00]"),
            (&[1.5, NAN, INF, -INF], "[1.5000,    nan,    inf,   -inf]"),
            (&[1.0, NAN, INF, -INF], "[1., nan, inf, -inf]"),
            (&[NAN], "[nan]"),
            (&[1e8, 2e8], "[1.0000e+08, 2.0000e+08]"),
            (&[1e8, 2.5], "[1.0000e+08, 2.5000e+00]"),
            (&[0.0001, 0.0002], "[1.0000e-04, 2.0000e-04]"),
            (&[-0.0, 0.0], "[-0., 0.]"),
            (&[16777216.0, 33554432.0], "[16777216., 33554432.]"),
            (&[1e-38, 1e38], "[1.0000e-38, 1.0000e+38]"),
            (&[1e-45], "[1.4013e-45]"),
            (&[1e10, INF, -1.0], "[ 1.0000e+10,         inf, -1.0000e+00]"),
        ];
        for (values, torch) in cases {
            shows(&Tensor::new(*values, &d()), torch);
        }
        let cases: &[(&[f64], &str)] = &[
            (&[1e300, 1e-300], "[1.0000e+300, 1.0000e-300]"),
            (&[1.0, 1e-3], "[1.0000, 0.0010]"),
            (&[1.0, 9.9e-4], "[1.0000e+00, 9.9000e-04]"),
            (&[999.5, 1.0001], "[999.5000,   1.0001]"),
            (&[0.03125, 0.09375, 2.5], "[0.0312, 0.0938, 2.5000]"),
        ];
        for (values, torch) in cases {
            shows(&Tensor::new(*values, &d()), torch);
        }
        shows(&Tensor::new([60000.0f32, 0.5], (DType::F16, &d())), "[6.0000e+04, 5.0000e-01]");
        shows(&Tensor::new([1.7f32, 2.5], (DType::BF16, &d())), "[1.7031, 2.5000]");
    }

    #[test]
    fn scalars_and_empty_tensors() {
        for (value, torch) in [(1e10f32, "1.0000e+10"), (3.0, "3."), (2.71934, "2.7193"), (f32::NAN, "nan")] {
            shows(&Tensor::new(value, &d()), torch);
        }
        shows(&Tensor::new(true, &d()), "true");
        shows(&Tensor::zeros([2, 0, 3], &d()), "[]");
    }

    #[test]
    fn integers_and_bools_are_aligned() {
        shows(&Tensor::new([1i64, -20, 300], &d()), "[  1, -20, 300]");
        // PyTorch capitalises them.
        shows(
            &Tensor::new([[true, false], [false, true]], &d()),
            "[[ true, false],\n        [false,  true]]",
        );
    }

    #[test]
    fn long_rows_are_broken() {
        shows(
            &(iota(30.0, &[30]) / 7.0),
            "[0.0000, 0.1429, 0.2857, 0.4286, 0.5714, 0.7143, 0.8571, 1.0000, 1.1429,
        1.2857, 1.4286, 1.5714, 1.7143, 1.8571, 2.0000, 2.1429, 2.2857, 2.4286,
        2.5714, 2.7143, 2.8571, 3.0000, 3.1429, 3.2857, 3.4286, 3.5714, 3.7143,
        3.8571, 4.0000, 4.1429]",
        );
        shows(
            &(Tensor::arange(0, 40, 1, &d()).reshape([2, 20]) * 1_000_000),
            "[[       0,  1000000,  2000000,  3000000,  4000000,  5000000,  6000000,
          7000000,  8000000,  9000000, 10000000, 11000000, 12000000, 13000000,
         14000000, 15000000, 16000000, 17000000, 18000000, 19000000],
        [20000000, 21000000, 22000000, 23000000, 24000000, 25000000, 26000000,
         27000000, 28000000, 29000000, 30000000, 31000000, 32000000, 33000000,
         34000000, 35000000, 36000000, 37000000, 38000000, 39000000]]",
        );
    }

    #[test]
    fn matrices_are_set_apart() {
        shows(
            &iota(24.0, &[2, 3, 4]),
            "[[[ 0.,  1.,  2.,  3.],
         [ 4.,  5.,  6.,  7.],
         [ 8.,  9., 10., 11.]],

        [[12., 13., 14., 15.],
         [16., 17., 18., 19.],
         [20., 21., 22., 23.]]]",
        );
        assert!(values(&iota(2.0, &[2, 1, 1, 1])).unwrap().contains("]]],\n\n\n        [[["));
    }

    #[test]
    fn large_tensors_are_summarised() {
        shows(&Tensor::zeros([1001], &d()), "[0., 0., 0.,  ..., 0., 0., 0.]");
        shows(
            &iota(2000.0, &[2000]),
            "[0.0000e+00, 1.0000e+00, 2.0000e+00,  ..., 1.9970e+03, 1.9980e+03,
        1.9990e+03]",
        );
        shows(
            &Tensor::arange(0, 1100, 1, &d()).reshape([100, 11]).transpose(0, 1),
            "[[   0,   11,   22,  ..., 1067, 1078, 1089],
        [   1,   12,   23,  ..., 1068, 1079, 1090],
        [   2,   13,   24,  ..., 1069, 1080, 1091],
        ...,
        [   8,   19,   30,  ..., 1075, 1086, 1097],
        [   9,   20,   31,  ..., 1076, 1087, 1098],
        [  10,   21,   32,  ..., 1077, 1088, 1099]]",
        );
        // What lies in the part left out plays no role in the notation.
        let tiny_inside = Tensor::cat(
            &[Tensor::ones([700], &d()), Tensor::full([700], 1e-9, &d()), Tensor::ones([3], &d())],
            0,
        );
        shows(&tiny_inside, "[1., 1., 1.,  ..., 1., 1., 1.]");
        // A short dimension is shown whole: 2 of 2.
        let text = values(&Tensor::zeros([2, 600], &d())).unwrap();
        assert_eq!(text, "[[0., 0., 0.,  ..., 0., 0., 0.],\n        [0., 0., 0.,  ..., 0., 0., 0.]]");
    }

    /// The reference device, except that every read fails.
    struct Poisoned;

    impl Backend for Poisoned {
        fn name(&self) -> &str {
            "poisoned"
        }
        fn upload(&self, bytes: &[u8], dtype: DType) -> Result<Buffer> {
            Reference.upload(bytes, dtype)
        }
        fn allocate(&self, len: usize, dtype: DType) -> Result<Buffer> {
            Reference.allocate(len, dtype)
        }
        fn download(&self, _: View<'_>) -> Result<Vec<u8>> {
            Err(Error::IndexOutOfRange { op: "gather", index: 7, size: 3, at: None })
        }
        fn execute(&self, op: &Op, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
            Reference.execute(op, inputs, outputs)
        }
    }

    crate::register_backend!("poisoned", open_poisoned);

    fn open_poisoned(_: usize) -> Result<Box<dyn Backend>> {
        Ok(Box::new(Poisoned))
    }

    #[test]
    fn an_error_of_the_device_stands_in_place_of_the_values() {
        let device = Device::open("poisoned", 0).unwrap();
        for size in [2, 2000] {
            let text = Tensor::zeros([size], &device).to_string();
            assert!(
                text.starts_with("tensor(<gather: index 7 is out of range for a dimension of size 3>,"),
                "{text}"
            );
            assert!(
                text.contains(&format!("shape=[{size}]")) && text.ends_with("device=poisoned)"),
                "{text}"
            );
        }
    }

    #[test]
    fn facts_follow_the_values() {
        let x = Tensor::new([1.5f32, 2.0], &d()).requires_grad_(true);
        assert_eq!(
            x.to_string(),
            "tensor([1.5000, 2.0000], shape=[2], dtype=f32, device=reference,\n       requires_grad=true)"
        );
        let y = (&x * 2.0).to_string();
        assert_eq!(y, "tensor([3., 4.], shape=[2], dtype=f32, device=reference, grad_op=mul)");
        assert_eq!(format!("{:?}", x.detach()), x.detach().to_string());
        let wide = iota(14.0, &[14]).to_string();
        assert!(wide.ends_with("13.],\n       shape=[14], dtype=f32, device=reference)"), "{wide}");
        assert!(wide.lines().all(|line| line.len() <= LINE_WIDTH), "{wide}");
    }
}
