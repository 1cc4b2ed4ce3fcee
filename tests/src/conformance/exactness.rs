//! How exact every primitive has to be, in one table; `docs/numerics.md` shows it.

use crate::compare::{Allowed, tolerances};
use orkest_core::{DType, Op};

/// How a result may differ from the interpreter's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// Not at all.
    Exact,
    /// Every element by the tolerance of its dtype, see [`Allowed::Each`].
    Each,
    /// Every element by the tolerance of its dtype, but where the tensor has larger ones, by a part of those: see
    /// [`Allowed::Relative`].
    Sum,
}

use Exactness::{Each, Exact, Sum};

/// Primitives by name, and how exact they are on processors with IEEE arithmetic and on a GPU, whose division may be off by 2.5 ulp.
pub const TABLE: &[(&str, Exactness, Exactness)] = &[
    ("copy fill arange random where", Exact, Exact),
    ("eq ne lt le gt ge isnan isinf isfinite logical_not", Exact, Exact),
    ("add sub mul maximum minimum", Exact, Exact),
    ("neg abs sign relu floor ceil round trunc", Exact, Exact),
    ("div", Exact, Each),
    ("pow remainder atan2", Each, Each),
    ("exp expm1 log log1p log2 log10 sqrt rsqrt reciprocal square", Each, Each),
    ("sin cos tan atan tanh sigmoid logsigmoid erf", Each, Each),
    ("gelu gelu_tanh silu softplus leaky_relu elu clamp", Each, Each),
    ("max min any all argmax argmin sort topk max_pool2d", Exact, Exact),
    ("gather index_select scatter unfold", Exact, Exact),
    ("sum mean prod cumsum cumprod matmul", Sum, Sum),
    ("scatter_add index_add fold avg_pool2d avg_pool2d_grad", Sum, Sum),
];

/// What is allowed for a primitive's result of this dtype on a device.
///
/// # Panics
/// If the table lacks it.
pub(super) fn allowed(op: &Op, dtype: DType, on_gpu: bool) -> Allowed {
    let row = TABLE.iter().find(|(names, ..)| names.split(' ').any(|name| name == op.name()));
    let (_, cpu, gpu) = row.unwrap_or_else(|| panic!("{} is not in the table of exactness", op.name()));
    match if on_gpu { gpu } else { cpu } {
        Exact => Allowed::Relative(0.0),
        Each => Allowed::Each(tolerances(dtype).0),
        Sum => Allowed::Relative(tolerances(dtype).0),
    }
}

/// The table as `docs/numerics.md` has it.
pub fn exactness_table() -> String {
    let word = |e: Exactness| match e {
        Exact => "exact",
        Each => "each",
        Sum => "sum",
    };
    let mut out = String::from("| primitives | CPU | GPU |\n|---|---|---|\n");
    for (names, cpu, gpu) in TABLE {
        let names: Vec<String> = names.split(' ').map(|name| format!("`{name}`")).collect();
        out += &format!("| {} | {} | {} |\n", names.join(" "), word(*cpu), word(*gpu));
    }
    out
}
