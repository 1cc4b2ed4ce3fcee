//! Operations that are composed of others, by name; `parity/numeric_cases.py` has the other side of each line.

use crate::operations::{Call, Operation};
use orkest_core::{Scalar, ScatterReduce, Tensor, tril_indices, triu_indices};

fn one(t: Tensor) -> Vec<Tensor> {
    vec![t]
}

fn two((a, b): (Tensor, Tensor)) -> Vec<Tensor> {
    vec![a, b]
}

/// The second operand, or the argument `scalar` in its place.
fn other(
    c: &Call<'_>,
    tensors: fn(&Tensor, &Tensor) -> Tensor,
    scalar: fn(&Tensor, Scalar) -> Tensor,
) -> Vec<Tensor> {
    one(match c.maybe(1) {
        Some(b) => tensors(c.x(0), b),
        None => scalar(c.x(0), c.scalar("scalar")),
    })
}

/// A number that may be null.
fn maybe_float(c: &Call<'_>, name: &str) -> Option<f64> {
    (!c.args[name].is_null()).then(|| c.float(name))
}

macro_rules! unary {
    ($($name:ident),*) => { [$((stringify!($name), |c| one(c.x(0).$name()))),*] };
}

const UNARY: [(&str, Operation); 13] =
    unary!(asin, acos, sinh, cosh, asinh, acosh, atanh, frac, exp2, lgamma, digamma, erfinv, bitwise_not);

const OTHERS: &[(&str, Operation)] = &[
    ("floor_divide", |c| other(c, |a, b| a.floor_divide(b), |a, s| a.floor_divide(s))),
    ("fmod", |c| other(c, |a, b| a.fmod(b), |a, s| a.fmod(s))),
    ("xlogy", |c| other(c, |a, b| a.xlogy(b), |a, s| a.xlogy(s))),
    ("div_", |c| {
        let mut x = c.x(0).clone();
        match c.maybe(1) {
            Some(b) => x.div_(b),
            None => x.div_(c.scalar("scalar")),
        }
        one(x)
    }),
    ("polygamma", |c| one(c.x(0).polygamma(c.size("n") as u32))),
    ("bitwise_and", |c| other(c, |a, b| a.bitwise_and(b), |a, s| a.bitwise_and(s))),
    ("bitwise_or", |c| other(c, |a, b| a.bitwise_or(b), |a, s| a.bitwise_or(s))),
    ("bitwise_xor", |c| other(c, |a, b| a.bitwise_xor(b), |a, s| a.bitwise_xor(s))),
    ("bitwise_left_shift", |c| other(c, |a, b| a.bitwise_left_shift(b), |a, s| a.bitwise_left_shift(s))),
    ("bitwise_right_shift", |c| other(c, |a, b| a.bitwise_right_shift(b), |a, s| a.bitwise_right_shift(s))),
    ("hypot", |c| one(c.x(0).hypot(c.x(1)))),
    ("logaddexp", |c| one(c.x(0).logaddexp(c.x(1)))),
    ("addcmul", |c| one(c.x(0).addcmul(c.x(1), c.x(2), c.scalar("value")))),
    ("addcdiv", |c| one(c.x(0).addcdiv(c.x(1), c.x(2), c.scalar("value")))),
    ("logit", |c| one(c.x(0).logit(maybe_float(c, "eps")))),
    ("nan_to_num", |c| {
        one(c.x(0).nan_to_num(c.float("nan"), maybe_float(c, "posinf"), maybe_float(c, "neginf")))
    }),
    ("isclose", |c| one(c.x(0).isclose(c.x(1), c.float("rtol"), c.float("atol"), c.flag("equal_nan")))),
    ("isin", |c| one(c.x(0).isin(c.x(1)))),
    ("equal", |c| one(Tensor::full((), c.x(0).equal(c.x(1)).unwrap(), c.device))),
    // running and order statistics
    ("cummax", |c| two(c.x(0).cummax(c.int("dim")))),
    ("cummin", |c| two(c.x(0).cummin(c.int("dim")))),
    ("logcumsumexp", |c| one(c.x(0).logcumsumexp(c.int("dim")))),
    ("diff", |c| one(c.x(0).diff(c.int("dim")))),
    ("quantile", |c| {
        let (x, q) = (c.x(0), c.float("q"));
        one(if c.flag("keepdim") { x.quantile_keepdim(q, c.dims()) } else { x.quantile(q, c.dims()) })
    }),
    ("kthvalue", |c| two(c.x(0).kthvalue(c.size("k"), c.int("dim")))),
    ("var_mean", |c| two(c.x(0).var_mean(c.dims(), c.float("correction")))),
    ("std_mean", |c| two(c.x(0).std_mean(c.dims(), c.float("correction")))),
    ("count_nonzero", |c| one(c.x(0).count_nonzero(c.dims()))),
    ("nansum", |c| one(c.x(0).nansum(c.dims()))),
    ("nanmean", |c| one(c.x(0).nanmean(c.dims()))),
    ("bincount", |c| one(c.x(0).bincount(c.size("minlength")).unwrap())),
    ("searchsorted", |c| one(c.x(0).searchsorted(c.x(1), c.flag("right")))),
    // products and distances
    ("mm", |c| one(c.x(0).mm(c.x(1)))),
    ("bmm", |c| one(c.x(0).bmm(c.x(1)))),
    ("mv", |c| one(c.x(0).mv(c.x(1)))),
    ("addmm", |c| one(c.x(0).addmm(c.x(1), c.x(2), c.float("beta"), c.float("alpha")))),
    ("baddbmm", |c| one(c.x(0).baddbmm(c.x(1), c.x(2), c.float("beta"), c.float("alpha")))),
    ("tensordot", |c| one(c.x(0).tensordot(c.x(1), &c.ints("left"), &c.ints("right")))),
    ("kron", |c| one(c.x(0).kron(c.x(1)))),
    ("cross", |c| one(c.x(0).cross(c.x(1), c.int("dim")))),
    ("normalize", |c| one(c.x(0).normalize(c.float("p"), c.int("dim"), c.float("eps")))),
    ("cdist", |c| one(c.x(0).cdist(c.x(1), c.float("p")))),
    // places
    ("diag", |c| one(c.x(0).diag(c.int("k")))),
    ("diag_embed", |c| one(c.x(0).diag_embed(c.int("offset")))),
    ("trace", |c| one(c.x(0).trace())),
    ("tril_indices", |c| one(tril_indices(c.size("rows"), c.size("columns"), c.int("offset"), c.device))),
    ("triu_indices", |c| one(triu_indices(c.size("rows"), c.size("columns"), c.int("offset"), c.device))),
    ("rot90", |c| one(c.x(0).rot90(c.int("k"), [c.int("a"), c.int("b")]))),
    ("index_copy", |c| one(c.x(0).index_copy(c.int("dim"), c.x(1), c.x(2)))),
    ("index_fill", |c| one(c.x(0).index_fill(c.int("dim"), c.x(1), c.float("value")))),
    ("index_put", |c| {
        let at = c.sizes("at");
        let last = at.last().map_or(0, |n| n + 1);
        let entry = |d: usize| at.iter().position(|&a| a == d).map(|i| c.x(i + 2));
        one(c.x(0).index_put(&(0..last).map(entry).collect::<Vec<_>>(), c.x(1), c.flag("accumulate")))
    }),
    ("masked_scatter", |c| one(c.x(0).masked_scatter(c.x(1), c.x(2)).unwrap())),
    ("scatter_reduce", |c| {
        let reduce = match c.text("reduce") {
            "sum" => ScatterReduce::Sum,
            "mean" => ScatterReduce::Mean,
            "prod" => ScatterReduce::Prod,
            "amax" => ScatterReduce::AMax,
            _ => ScatterReduce::AMin,
        };
        one(c.x(0).scatter_reduce(c.int("dim"), c.x(1), c.x(2), reduce, c.flag("include_self")))
    }),
    ("take", |c| one(c.x(0).take(c.x(1)))),
];

/// Everything in this file.
pub(crate) fn all() -> Vec<(&'static str, Operation)> {
    [&UNARY[..], OTHERS].concat()
}
