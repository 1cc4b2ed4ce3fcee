//! Every public operation by name, called with arguments that come from a file.
//!
//! The names are those of the methods; `parity/op_cases.py` has the other side of each line.

use crate::{layers, linalg, numerics};
use orkest_core::op::Unary;
use orkest_core::{
    AvgPoolOptions, DType, Device, Index, Interpolation, MaxPoolOptions, Param, ReduceDims, Resize, Scalar,
    Shape, Size2, Tensor, einsum, manual_seed, meshgrid, slice,
};
use serde_json::Value;
use std::cell::RefCell;

/// One call: operands and arguments.
pub struct Call<'a> {
    /// The name of the case's operation.
    pub op: &'a str,
    /// The operands.
    pub inputs: &'a [Tensor],
    /// The arguments that are no tensors.
    pub args: &'a Value,
    /// Where new tensors are to be made.
    pub device: &'a Device,
    /// The operands that became parameters of a layer, which collect their gradients themselves.
    pub params: RefCell<Vec<(usize, Param)>>,
}

/// Calls an operation; all tensors among its results in order.
pub type Operation = fn(&Call<'_>) -> Vec<Tensor>;

/// The operation of this name.
pub fn operation(name: &str) -> Option<Operation> {
    OPERATIONS.iter().find(|(n, _)| *n == name).map(|(_, f)| *f)
}

/// Which dimensions a case reduces.
pub struct Dims(Option<Vec<isize>>);

impl ReduceDims for Dims {
    fn dims(&self) -> Option<&[isize]> {
        self.0.as_deref()
    }
}

impl Call<'_> {
    /// Operand `i`.
    pub fn x(&self, i: usize) -> &Tensor {
        &self.inputs[i]
    }

    /// Operand `i`, if there is one.
    pub fn maybe(&self, i: usize) -> Option<&Tensor> {
        self.inputs.get(i)
    }

    /// Operand `i` as a parameter.
    pub fn param(&self, i: usize) -> Param {
        let param = Param::new(self.x(i).clone());
        self.params.borrow_mut().push((i, param.clone()));
        param
    }

    /// An integer argument.
    pub fn int(&self, name: &str) -> isize {
        self.args[name].as_i64().unwrap_or_else(|| panic!("argument {name} of {}: {}", self.op, self.args))
            as isize
    }

    /// A size.
    pub fn size(&self, name: &str) -> usize {
        self.int(name) as usize
    }

    /// A number; `"inf"` and `"-inf"` stand for the infinities.
    pub fn float(&self, name: &str) -> f64 {
        self.scalar(name).as_f64()
    }

    /// A number, or a default where the argument is not given or null.
    pub fn float_or(&self, name: &str, default: f64) -> f64 {
        if self.args[name].is_null() { default } else { self.float(name) }
    }

    /// A truth value; false where it is not given.
    pub fn flag(&self, name: &str) -> bool {
        self.args[name].as_bool().unwrap_or(false)
    }

    /// A text.
    pub fn text(&self, name: &str) -> &str {
        self.args[name].as_str().unwrap_or_else(|| panic!("argument {name} of {}: {}", self.op, self.args))
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Vec<isize> {
        self.list(name).iter().map(|v| v.as_i64().unwrap() as isize).collect()
    }

    /// A list of sizes.
    pub fn sizes(&self, name: &str) -> Vec<usize> {
        self.ints(name).into_iter().map(|v| v as usize).collect()
    }

    /// A list.
    pub fn list(&self, name: &str) -> &[Value] {
        self.args[name].as_array().unwrap_or_else(|| panic!("argument {name} of {}: {}", self.op, self.args))
    }

    /// Dimensions to reduce: all (null), one, or several.
    pub fn dims(&self) -> Dims {
        match &self.args["dims"] {
            Value::Null => Dims(None),
            Value::Number(_) => Dims(Some(vec![self.int("dims")])),
            _ => Dims(Some(self.ints("dims"))),
        }
    }

    /// A number or truth value with its kind.
    pub fn scalar(&self, name: &str) -> Scalar {
        let value = &self.args[name];
        match value {
            Value::Bool(b) => Scalar::Bool(*b),
            Value::Number(n) if n.is_i64() => Scalar::Int(n.as_i64().unwrap()),
            Value::Number(n) => Scalar::Float(n.as_f64().unwrap()),
            Value::String(s) => Scalar::Float(s.parse().unwrap()),
            _ => panic!("argument {name} of {}: {}", self.op, self.args),
        }
    }

    /// A dtype by name, if one is given.
    pub fn dtype(&self) -> Option<DType> {
        self.args["dtype"].as_str().map(dtype)
    }

    /// One size for both dimensions, or two.
    pub fn size2(&self, name: &str) -> Size2 {
        self.optional_size2(name).unwrap_or_else(|| panic!("argument {name} of {}: {}", self.op, self.args))
    }

    /// One size for both dimensions, two, or none.
    pub fn optional_size2(&self, name: &str) -> Option<Size2> {
        match &self.args[name] {
            Value::Null => None,
            Value::Number(_) => Some(self.size(name).into()),
            _ => Some([self.sizes(name)[0], self.sizes(name)[1]].into()),
        }
    }

    /// The size or the factor of an interpolation.
    pub fn resize(&self) -> Resize {
        match (&self.args["size"], &self.args["scale_factor"]) {
            (Value::Array(_), _) => [self.sizes("size")[0], self.sizes("size")[1]].into(),
            (Value::Number(_), _) => self.size("size").into(),
            (_, Value::Array(list)) => [list[0].as_f64().unwrap(), list[1].as_f64().unwrap()].into(),
            _ => self.float("scale_factor").into(),
        }
    }

    /// The mode of an interpolation.
    pub fn interpolation(&self) -> Interpolation {
        let align_corners = self.flag("align_corners");
        match self.text("mode") {
            "nearest" => Interpolation::Nearest,
            "nearest-exact" => Interpolation::NearestExact,
            "linear" => Interpolation::Linear { align_corners },
            "bilinear" => Interpolation::Bilinear { align_corners },
            _ => Interpolation::Bicubic { align_corners },
        }
    }

    /// Sizes of a window over planes or, a single one, over sequences; `None` for null.
    fn window_size(&self, name: &str) -> Option<Size2> {
        let sizes: Vec<usize> =
            self.args[name].as_array()?.iter().map(|n| n.as_u64().unwrap() as usize).collect();
        Some(match sizes[..] {
            [height, width] => Size2([height, width]),
            _ => Size2([sizes[0]; 2]),
        })
    }

    fn index(&self) -> Vec<Index> {
        let entry = |v: &Value| {
            let n = |i: usize| v[i].as_i64().map(|n| n as isize);
            match v[0].as_str().unwrap() {
                "select" => Index::from(n(1).unwrap()),
                "new" => Index::NewAxis,
                "ellipsis" => Index::Ellipsis,
                _ => {
                    let range = match (n(1), n(2)) {
                        (None, None) => Index::from(..),
                        (Some(a), None) => Index::from(a..),
                        (None, Some(b)) => Index::from(..b),
                        (Some(a), Some(b)) => Index::from(a..b),
                    };
                    slice(range, n(3).unwrap() as usize)
                }
            }
        };
        self.list("index").iter().map(entry).collect()
    }

    /// `a op b`, `a op number`, or `number op a` where the number becomes a tensor without dimensions.
    fn two(
        &self,
        tensors: fn(&Tensor, &Tensor) -> Tensor,
        scalar: fn(&Tensor, Scalar) -> Tensor,
    ) -> Vec<Tensor> {
        one(match self.maybe(1) {
            Some(b) => tensors(self.x(0), b),
            None if self.flag("swapped") => {
                let scalar = self.scalar("scalar");
                let number = Tensor::full((), scalar, (scalar.promote(self.x(0).dtype()), self.device));
                tensors(&number, self.x(0))
            }
            None => scalar(self.x(0), self.scalar("scalar")),
        })
    }

    /// As [`Call::two`], with operators of their own for a number on the left.
    fn operator(
        &self,
        tensors: fn(&Tensor, &Tensor) -> Tensor,
        scalar: fn(&Tensor, Scalar) -> Tensor,
        float: fn(f64, &Tensor) -> Tensor,
        integer: fn(i64, &Tensor) -> Tensor,
    ) -> Vec<Tensor> {
        if !self.flag("swapped") {
            return self.two(tensors, scalar);
        }
        one(match self.scalar("scalar") {
            Scalar::Float(number) => float(number, self.x(0)),
            number => integer(number.as_i64(), self.x(0)),
        })
    }

    fn changed(&self, change: fn(&mut Tensor, &Tensor)) -> Vec<Tensor> {
        let mut x = self.x(0).clone();
        change(&mut x, self.x(1));
        one(x)
    }
}

/// A dtype by its short name.
///
/// # Panics
/// If there is none of this name.
pub fn dtype(name: &str) -> DType {
    use DType::{BF16, Bool, F16, F32, F64, I32, I64, U8};
    let all = [Bool, U8, I32, I64, F16, BF16, F32, F64];
    let names = ["bool", "u8", "i32", "i64", "f16", "bf16", "f32", "f64"];
    names.iter().position(|n| *n == name).map_or_else(|| panic!("no dtype {name}"), |i| all[i])
}

fn one(t: Tensor) -> Vec<Tensor> {
    vec![t]
}

fn two((a, b): (Tensor, Tensor)) -> Vec<Tensor> {
    vec![a, b]
}

fn activation(name: &str) -> Unary {
    match name {
        "relu" => Unary::Relu,
        "gelu" => Unary::Gelu,
        "gelu_tanh" => Unary::GeluTanh,
        "silu" => Unary::Silu,
        "tanh" => Unary::Tanh,
        "sigmoid" => Unary::Sigmoid,
        _ => panic!("no activation {name}"),
    }
}

macro_rules! unary {
    ($($name:ident),*) => { [$((stringify!($name), |c| one(c.x(0).$name()))),*] };
}

macro_rules! two_operands {
    ($name:ident) => {
        (stringify!($name), |c| c.two(|a, b| a.$name(b), |a, s| a.$name(s)))
    };
    ($name:ident, $operator:tt) => {
        (stringify!($name), |c| {
            c.operator(|a, b| a.$name(b), |a, s| a.$name(s), |s, a| s $operator a, |s, a| s $operator a)
        })
    };
}

macro_rules! reduction {
    ($name:ident, $keepdim:ident $(, $arg:ident)*) => {
        (stringify!($name), |c| {
            let x = c.x(0);
            one(if c.flag("keepdim") { x.$keepdim($(c.float(stringify!($arg)),)* c.dims()) } else { x.$name($(c.float(stringify!($arg)),)* c.dims()) })
        })
    };
}

macro_rules! spread {
    ($name:ident, $keepdim:ident) => {
        (stringify!($name), |c| {
            let (x, correction) = (c.x(0), c.float("correction"));
            one(if c.flag("keepdim") {
                x.$keepdim(c.dims(), correction)
            } else {
                x.$name(c.dims(), correction)
            })
        })
    };
}

macro_rules! arg_reduction {
    ($name:ident, $keepdim:ident) => {
        (stringify!($name), |c| {
            let x = c.x(0);
            one(match (c.args["dim"].is_null(), c.flag("keepdim")) {
                (true, true) => x.$keepdim(..),
                (true, false) => x.$name(..),
                (false, true) => x.$keepdim(c.int("dim")),
                (false, false) => x.$name(c.int("dim")),
            })
        })
    };
}

const ELEMENTWISE: [(&str, Operation); 33] = unary!(
    neg,
    abs,
    sign,
    exp,
    expm1,
    log,
    log1p,
    log2,
    log10,
    sqrt,
    rsqrt,
    reciprocal,
    square,
    sin,
    cos,
    tan,
    atan,
    tanh,
    sigmoid,
    log_sigmoid,
    erf,
    relu,
    gelu,
    gelu_tanh,
    silu,
    floor,
    ceil,
    round,
    trunc,
    isnan,
    isinf,
    isfinite,
    logical_not
);

const FUNCTIONS: &[(&str, Operation)] = &[
    ("softplus", |c| one(c.x(0).softplus(c.float("beta"), c.float("threshold")))),
    ("leaky_relu", |c| one(c.x(0).leaky_relu(c.float("negative_slope")))),
    ("elu", |c| one(c.x(0).elu(c.float("alpha")))),
    ("relu6", |c| one(c.x(0).relu6())),
    ("hardsigmoid", |c| one(c.x(0).hardsigmoid())),
    ("hardswish", |c| one(c.x(0).hardswish())),
    ("tanhshrink", |c| vec![c.x(0).tanhshrink(), (-c.x(0)).tanhshrink()]),
    ("softsign", |c| one(c.x(0).softsign())),
    ("mish", |c| one(c.x(0).mish())),
    ("selu", |c| one(c.x(0).selu())),
    ("celu", |c| one(c.x(0).celu(c.float("alpha")))),
    ("hardtanh", |c| one(c.x(0).hardtanh(c.float("min_val"), c.float("max_val")))),
    ("hardshrink", |c| one(c.x(0).hardshrink(c.float("lambd")))),
    ("softshrink", |c| one(c.x(0).softshrink(c.float("lambd")))),
    ("threshold", |c| one(c.x(0).threshold(c.float("threshold"), c.float("value")))),
    ("softmin", |c| one(c.x(0).softmin(c.int("dim")))),
    ("glu", |c| one(c.x(0).glu(c.int("dim")))),
    ("prelu", |c| one(c.x(0).prelu(c.x(1)))),
    ("clamp", |c| one(c.x(0).clamp(c.float("min"), c.float("max")))),
    ("clamp_min", |c| one(c.x(0).clamp_min(c.float("min")))),
    ("clamp_max", |c| one(c.x(0).clamp_max(c.float("max")))),
    // two operands
    two_operands!(add, +),
    two_operands!(sub, -),
    two_operands!(mul, *),
    two_operands!(div, /),
    two_operands!(remainder, %),
    two_operands!(pow),
    two_operands!(maximum),
    two_operands!(minimum),
    two_operands!(atan2),
    two_operands!(eq),
    two_operands!(ne),
    two_operands!(lt),
    two_operands!(le),
    two_operands!(gt),
    two_operands!(ge),
    two_operands!(logical_and),
    two_operands!(logical_or),
    two_operands!(logical_xor),
    ("where_", |c| {
        one(match c.maybe(2) {
            Some(b) => c.x(0).where_(c.x(1), b),
            None => c.x(0).where_(c.x(1), c.scalar("scalar")),
        })
    }),
    ("masked_fill", |c| one(c.x(0).masked_fill(c.x(1), c.scalar("value")))),
    ("lerp", |c| {
        one(match c.maybe(2) {
            Some(weight) => c.x(0).lerp(c.x(1), weight),
            None => c.x(0).lerp(c.x(1), c.float("weight")),
        })
    }),
    ("allclose", |c| {
        let close = c.x(0).allclose(c.x(1), c.float("rtol"), c.float("atol"), c.flag("equal_nan"));
        one(Tensor::full((), close.unwrap(), c.device))
    }),
    // reductions
    reduction!(sum, sum_keepdim),
    reduction!(mean, mean_keepdim),
    reduction!(prod, prod_keepdim),
    reduction!(max, max_keepdim),
    reduction!(min, min_keepdim),
    reduction!(any, any_keepdim),
    reduction!(all, all_keepdim),
    reduction!(logsumexp, logsumexp_keepdim),
    reduction!(norm, norm_keepdim, p),
    spread!(var, var_keepdim),
    spread!(std, std_keepdim),
    arg_reduction!(argmax, argmax_keepdim),
    arg_reduction!(argmin, argmin_keepdim),
    ("max_with_indices", |c| two(c.x(0).max_with_indices(c.int("dim")))),
    ("min_with_indices", |c| two(c.x(0).min_with_indices(c.int("dim")))),
    ("sum_to", |c| one(c.x(0).sum_to(&Shape::new(&c.sizes("shape"))))),
    ("cumsum", |c| one(c.x(0).cumsum(c.int("dim")))),
    ("cumprod", |c| one(c.x(0).cumprod(c.int("dim")))),
    // softmax and norms
    ("softmax", |c| one(c.x(0).softmax(c.int("dim")))),
    ("log_softmax", |c| one(c.x(0).log_softmax(c.int("dim")))),
    ("layer_norm", |c| {
        let weight = c.flag("weight").then(|| c.x(1));
        let bias = c.flag("bias").then(|| c.x(c.inputs.len() - 1));
        one(c.x(0).layer_norm(c.sizes("shape"), weight, bias, c.float("eps")))
    }),
    ("rms_norm", |c| {
        let eps = (!c.args["eps"].is_null()).then(|| c.float("eps"));
        one(c.x(0).rms_norm(c.sizes("shape"), c.maybe(1), eps))
    }),
];

const VIEWS: &[(&str, Operation)] = &[
    ("reshape", |c| one(c.x(0).reshape(&c.ints("shape")[..]))),
    ("view", |c| one(c.x(0).view(&c.ints("shape")[..]))),
    ("transpose", |c| one(c.x(0).transpose(c.int("a"), c.int("b")))),
    ("movedim", |c| one(c.x(0).movedim(c.int("a"), c.int("b")))),
    ("diagonal", |c| one(c.x(0).diagonal(c.int("offset"), c.int("a"), c.int("b")))),
    ("t", |c| one(c.x(0).t())),
    ("permute", |c| one(c.x(0).permute(&c.ints("dims")[..]))),
    ("squeeze", |c| one(c.x(0).squeeze(c.int("dim")))),
    ("squeeze_all", |c| one(c.x(0).squeeze_all())),
    ("unsqueeze", |c| one(c.x(0).unsqueeze(c.int("dim")))),
    ("expand", |c| one(c.x(0).expand(&c.ints("shape")[..]))),
    ("broadcast_to", |c| one(c.x(0).broadcast_to(&Shape::new(&c.sizes("shape"))))),
    ("flatten", |c| one(c.x(0).flatten(c.int("start"), c.int("end")))),
    ("unflatten", |c| one(c.x(0).unflatten(c.int("dim"), &c.ints("sizes")[..]))),
    ("narrow", |c| one(c.x(0).narrow(c.int("dim"), c.size("start"), c.size("len")))),
    ("slice_dim", |c| one(c.x(0).slice_dim(c.int("dim"), c.size("start"), c.size("len"), c.size("step")))),
    ("select", |c| one(c.x(0).select(c.int("dim"), c.int("index")))),
    ("split", |c| c.x(0).split(c.size("size"), c.int("dim"))),
    ("split_sizes", |c| c.x(0).split_sizes(&c.sizes("sizes"), c.int("dim"))),
    ("chunk", |c| c.x(0).chunk(c.size("n"), c.int("dim"))),
    ("chunks", |c| c.x(0).chunks::<3>(c.int("dim")).into()),
    ("unbind", |c| c.x(0).unbind(c.int("dim"))),
    ("flip", |c| one(c.x(0).flip(&c.ints("dims")))),
    ("roll", |c| one(c.x(0).roll(c.int("shift"), c.int("dim")))),
    ("repeat", |c| one(c.x(0).repeat(c.sizes("repeats")))),
    ("repeat_interleave", |c| one(c.x(0).repeat_interleave(c.size("repeats"), c.int("dim")))),
    ("tril", |c| one(c.x(0).tril(c.int("k")))),
    ("triu", |c| one(c.x(0).triu(c.int("k")))),
    ("pad", |c| {
        let pair = |v: &Value| (v[0].as_i64().unwrap() as isize, v[1].as_i64().unwrap() as isize);
        let pairs: Vec<_> = c.list("pairs").iter().map(pair).collect();
        one(c.x(0).pad(&pairs, c.scalar("value")))
    }),
    ("pad_mode", |c| {
        let pair = |v: &Value| (v[0].as_i64().unwrap() as isize, v[1].as_i64().unwrap() as isize);
        let pairs: Vec<_> = c.list("pairs").iter().map(pair).collect();
        one(c.x(0).pad_mode(&pairs, c.text("mode")))
    }),
    ("i", |c| one(c.x(0).i(&c.index()[..]))),
    ("cat", |c| one(Tensor::cat(c.inputs, c.int("dim")))),
    ("stack", |c| one(Tensor::stack(c.inputs, c.int("dim")))),
    // changes
    ("copy_", |c| c.changed(|x, y| x.copy_(y))),
    ("add_", |c| c.changed(|x, y| x.add_(y))),
    ("sub_", |c| c.changed(|x, y| x.sub_(y))),
    ("mul_", |c| c.changed(|x, y| x.mul_(y))),
    ("fill_", |c| {
        let mut x = c.x(0).clone();
        x.fill_(c.scalar("value"));
        one(x)
    }),
    ("zero_", |c| {
        let mut x = c.x(0).clone();
        x.zero_();
        one(x)
    }),
    ("slice_assign", |c| {
        let mut x = c.x(0).clone();
        x.slice_assign(&c.index()[..], c.x(1));
        one(x)
    }),
    // positions
    ("gather", |c| one(c.x(0).gather(c.int("dim"), c.x(1)))),
    ("scatter", |c| one(c.x(0).scatter(c.int("dim"), c.x(1), c.x(2)))),
    ("scatter_add", |c| one(c.x(0).scatter_add(c.int("dim"), c.x(1), c.x(2)))),
    ("scatter_", |c| {
        let mut x = c.x(0).clone();
        x.scatter_(c.int("dim"), c.x(1), c.x(2));
        one(x)
    }),
    ("scatter_add_", |c| {
        let mut x = c.x(0).clone();
        x.scatter_add_(c.int("dim"), c.x(1), c.x(2));
        one(x)
    }),
    ("index_add_", |c| {
        let mut x = c.x(0).clone();
        x.index_add_(c.int("dim"), c.x(1), c.x(2));
        one(x)
    }),
    ("take_along_dim", |c| one(c.x(0).take_along_dim(c.x(1), c.int("dim")))),
    ("index_select", |c| one(c.x(0).index_select(c.int("dim"), c.x(1)))),
    ("index_add", |c| one(c.x(0).index_add(c.int("dim"), c.x(1), c.x(2)))),
    ("rows", |c| one(c.x(0).rows(c.x(1)))),
    ("index", |c| {
        let at = c.sizes("at");
        let last = at.last().map_or(0, |n| n + 1);
        let entry = |d: usize| at.iter().position(|&a| a == d).map(|i| c.x(i + 1));
        one(c.x(0).index(&(0..last).map(entry).collect::<Vec<_>>()))
    }),
    ("nonzero", |c| one(c.x(0).nonzero().unwrap())),
    ("masked_select", |c| one(c.x(0).masked_select(c.x(1)).unwrap())),
    ("one_hot", |c| one(c.x(0).one_hot(c.size("num_classes")))),
    ("unique", |c| {
        let (values, inverse, counts) = c.x(0).unique().unwrap();
        vec![values, inverse, counts]
    }),
    // order
    ("sort", |c| two(c.x(0).sort(c.int("dim"), c.flag("descending")))),
    ("argsort", |c| one(c.x(0).argsort(c.int("dim"), c.flag("descending")))),
    ("topk", |c| two(c.x(0).topk(c.size("k"), c.int("dim"), c.flag("largest")))),
    ("median", |c| two(c.x(0).median(c.int("dim")))),
];

const PRODUCTS: &[(&str, Operation)] = &[
    ("matmul", |c| one(c.x(0).matmul(c.x(1)))),
    ("dot", |c| one(c.x(0).dot(c.x(1)))),
    ("outer", |c| one(c.x(0).outer(c.x(1)))),
    ("einsum", |c| one(einsum(c.text("equation"), &c.inputs.iter().collect::<Vec<_>>()))),
    ("meshgrid", |c| meshgrid(&c.inputs.iter().collect::<Vec<_>>())),
    ("linear", |c| one(c.x(0).linear(c.x(1), c.maybe(2)))),
    ("linear_act", |c| one(c.x(0).linear_act(c.x(1), c.maybe(2), activation(c.text("activation"))))),
    ("scaled_dot_product_attention", |c| {
        let scale = (!c.args["scale"].is_null()).then(|| c.float("scale"));
        one(c.x(0).scaled_dot_product_attention(c.x(1), c.x(2), c.maybe(3), 0.0, c.flag("causal"), scale))
    }),
    ("conv2d", |c| {
        let (stride, padding, dilation) = (c.size2("stride"), c.size2("padding"), c.size2("dilation"));
        one(c.x(0).conv2d(c.x(1), c.maybe(2), stride, padding, dilation, c.size("groups")))
    }),
    ("conv1d", |c| {
        let (stride, padding, dilation) = (c.size("stride"), c.size("padding"), c.size("dilation"));
        one(c.x(0).conv1d(c.x(1), c.maybe(2), stride, padding, dilation, c.size("groups")))
    }),
    ("unfold", |c| {
        one(c.x(0).unfold(c.size2("kernel_size"), c.size2("dilation"), c.size2("padding"), c.size2("stride")))
    }),
    ("fold", |c| {
        let [h, w] = [c.sizes("output_size")[0], c.sizes("output_size")[1]];
        one(c.x(0).fold(
            [h, w],
            c.size2("kernel_size"),
            c.size2("dilation"),
            c.size2("padding"),
            c.size2("stride"),
        ))
    }),
    ("max_pool2d", |c| {
        one(c.x(0).max_pool2d(c.size2("kernel_size"), c.optional_size2("stride"), c.size2("padding")))
    }),
    ("max_pool2d_with_indices", |c| {
        two(c.x(0).max_pool2d_with_indices(
            c.size2("kernel_size"),
            c.optional_size2("stride"),
            c.size2("padding"),
        ))
    }),
    ("avg_pool2d", |c| {
        let (kernel, stride, padding) =
            (c.size2("kernel_size"), c.optional_size2("stride"), c.size2("padding"));
        one(c.x(0).avg_pool2d(kernel, stride, padding, c.flag("count_include_pad")))
    }),
    ("max_pool1d", |c| one(c.x(0).max_pool1d(c.size("kernel_size"), optional_size(c), c.size("padding")))),
    ("max_pool1d_with_indices", |c| {
        two(c.x(0).max_pool1d_with_indices(c.size("kernel_size"), optional_size(c), c.size("padding")))
    }),
    ("avg_pool1d", |c| {
        one(c.x(0).avg_pool1d(
            c.size("kernel_size"),
            optional_size(c),
            c.size("padding"),
            c.flag("count_include_pad"),
        ))
    }),
    ("max_pool2d_with", |c| {
        two(c.x(0).max_pool2d_with(c.window_size("kernel_size").unwrap(), &max_pool_options(c)))
    }),
    ("max_pool1d_with", |c| two(c.x(0).max_pool1d_with(c.sizes("kernel_size")[0], &max_pool_options(c)))),
    ("avg_pool2d_with", |c| {
        one(c.x(0).avg_pool2d_with(c.window_size("kernel_size").unwrap(), &avg_pool_options(c)))
    }),
    ("avg_pool1d_with", |c| one(c.x(0).avg_pool1d_with(c.sizes("kernel_size")[0], &avg_pool_options(c)))),
    ("conv_transpose2d", |c| {
        let [stride, padding, more, dilation] =
            ["stride", "padding", "output_padding", "dilation"].map(|name| c.size2(name));
        one(c.x(0).conv_transpose2d(c.x(1), c.maybe(2), stride, padding, more, c.size("groups"), dilation))
    }),
    ("conv_transpose1d", |c| {
        let [stride, padding, more, groups, dilation] =
            ["stride", "padding", "output_padding", "groups", "dilation"].map(|name| c.size(name));
        one(c.x(0).conv_transpose1d(c.x(1), c.maybe(2), stride, padding, more, groups, dilation))
    }),
    ("adaptive_avg_pool1d", |c| one(c.x(0).adaptive_avg_pool1d(c.size("output_size")))),
    ("adaptive_avg_pool2d", |c| one(c.x(0).adaptive_avg_pool2d(c.size2("output_size")))),
    ("adaptive_max_pool1d", |c| one(c.x(0).adaptive_max_pool1d(c.size("output_size")))),
    ("adaptive_max_pool2d", |c| one(c.x(0).adaptive_max_pool2d(c.size2("output_size")))),
    ("interpolate", |c| one(c.x(0).interpolate(c.resize(), c.interpolation()))),
    ("grid_sample", |c| {
        one(c.x(0).grid_sample(c.x(1), c.text("mode"), c.text("padding_mode"), c.flag("align_corners")))
    }),
    ("affine_grid", |c| one(c.x(0).affine_grid(&c.sizes("size"), c.flag("align_corners")))),
    ("pixel_shuffle", |c| one(c.x(0).pixel_shuffle(c.size("factor")))),
    ("pixel_unshuffle", |c| one(c.x(0).pixel_unshuffle(c.size("factor")))),
    ("batch_norm", |c| {
        channel_norm(c, |[mean, var], weight, bias| {
            let (momentum, eps) = (c.float("momentum"), c.float("eps"));
            c.x(0).batch_norm(mean, var, weight, bias, c.flag("training"), momentum, eps)
        })
    }),
    ("instance_norm", |c| {
        channel_norm(c, |[mean, var], weight, bias| {
            let (momentum, eps) = (c.float("momentum"), c.float("eps"));
            c.x(0).instance_norm(mean, var, weight, bias, c.flag("use_input_stats"), momentum, eps)
        })
    }),
    ("group_norm", |c| {
        let weight = c.flag("weight").then(|| c.x(1));
        let bias = c.flag("bias").then(|| c.x(c.inputs.len() - 1));
        one(c.x(0).group_norm(c.size("num_groups"), weight, bias, c.float("eps")))
    }),
    ("cross_entropy_rows", |c| {
        let ignored = c.int("ignore_index") as i64;
        one(c.x(0).cross_entropy_rows(c.x(1), ignored, c.float("label_smoothing")))
    }),
    ("dropout", |c| one(c.x(0).dropout(c.float("p"), c.flag("training")))),
    ("to_dtype", |c| one(c.x(0).to_dtype(c.dtype().unwrap()))),
    ("copy", |c| one(c.x(0).copy())),
    ("contiguous", |c| one(c.x(0).contiguous())),
];

/// Weight and bias if there are any, then running statistics if there are any, which are results too.
fn channel_norm(
    c: &Call<'_>,
    norm: impl FnOnce([Option<&mut Tensor>; 2], Option<&Tensor>, Option<&Tensor>) -> Tensor,
) -> Vec<Tensor> {
    let mut rest = c.inputs[1..].iter();
    let weight = c.flag("weight").then(|| rest.next().unwrap());
    let bias = c.flag("bias").then(|| rest.next().unwrap());
    let mut running: Vec<Tensor> = rest.cloned().collect();
    let mut statistics = running.iter_mut();
    let y = norm([statistics.next(), statistics.next()], weight, bias);
    [vec![y], running].concat()
}

fn max_pool_options(c: &Call<'_>) -> MaxPoolOptions {
    MaxPoolOptions {
        stride: c.window_size("stride"),
        padding: c.window_size("padding").unwrap(),
        dilation: c.window_size("dilation").unwrap(),
        ceil_mode: c.flag("ceil_mode"),
    }
}

fn avg_pool_options(c: &Call<'_>) -> AvgPoolOptions {
    AvgPoolOptions {
        stride: c.window_size("stride"),
        padding: c.window_size("padding").unwrap(),
        ceil_mode: c.flag("ceil_mode"),
        count_include_pad: c.flag("count_include_pad"),
        divisor_override: c.args["divisor_override"].as_u64().map(|n| n as usize),
    }
}

fn optional_size(c: &Call<'_>) -> Option<usize> {
    (!c.args["stride"].is_null()).then(|| c.size("stride"))
}

const CREATION: &[(&str, Operation)] = &[
    ("arange", |c| {
        let (start, end, step) = (c.scalar("start"), c.scalar("end"), c.scalar("step"));
        one(match c.dtype() {
            Some(dtype) => Tensor::arange(start, end, step, (dtype, c.device)),
            None => Tensor::arange(start, end, step, c.device),
        })
    }),
    ("linspace", |c| one(Tensor::linspace(c.float("start"), c.float("end"), c.size("steps"), c.device))),
    ("eye", |c| one(Tensor::eye(c.size("n"), c.device))),
    ("full", |c| {
        one(match c.dtype() {
            Some(dtype) => Tensor::full(c.sizes("shape"), c.scalar("value"), (dtype, c.device)),
            None => Tensor::full(c.sizes("shape"), c.scalar("value"), c.device),
        })
    }),
    ("zeros", |c| {
        one(match c.dtype() {
            Some(dtype) => Tensor::zeros(c.sizes("shape"), (dtype, c.device)),
            None => Tensor::zeros(c.sizes("shape"), c.device),
        })
    }),
    ("ones", |c| {
        one(match c.dtype() {
            Some(dtype) => Tensor::ones(c.sizes("shape"), (dtype, c.device)),
            None => Tensor::ones(c.sizes("shape"), c.device),
        })
    }),
    ("zeros_like", |c| one(c.x(0).zeros_like())),
    ("ones_like", |c| one(c.x(0).ones_like())),
    ("full_like", |c| one(c.x(0).full_like(c.scalar("value")))),
    ("promotion", |c| {
        let code = |t: Tensor, names: &[Value]| {
            names.iter().position(|n| dtype(n.as_str().unwrap()) == t.dtype()).unwrap() as i64
        };
        let names = c.list("names");
        let ones = |name: &Value, rank: &Value| {
            let shape = vec![1; rank.as_u64().unwrap() as usize];
            Tensor::ones(shape, (dtype(name.as_str().unwrap()), c.device))
        };
        let mut codes = Vec::new();
        for row in c.list("rows") {
            let a = ones(&row[0], &row[1]);
            let results = match &row[2] {
                Value::String(_) => {
                    let b = ones(&row[2], &row[3]);
                    [&a + &b, &a / &b]
                }
                Value::Bool(b) => [&a + *b, &a / *b],
                Value::Number(n) if n.is_i64() => [&a + n.as_i64().unwrap(), &a / n.as_i64().unwrap()],
                n => [&a + n.as_f64().unwrap(), &a / n.as_f64().unwrap()],
            };
            codes.extend(results.map(|t| code(t, names)));
        }
        one(Tensor::from_slice(&codes, [codes.len() / 2, 2], c.device))
    }),
    ("reduced_dtype", |c| {
        let names: Vec<DType> = c.list("names").iter().map(|n| dtype(n.as_str().unwrap())).collect();
        let code = |t: Tensor| names.iter().position(|n| *n == t.dtype()).unwrap() as i64;
        let row = |&d: &DType| {
            let x = Tensor::ones(2, (d, c.device));
            [code(x.sum(..)), code(x.prod(..))]
        };
        let codes: Vec<i64> = names.iter().flat_map(row).collect();
        one(Tensor::from_slice(&codes, [names.len(), 2], c.device))
    }),
];

/// The numbers of the default generator, whose state is shared: one case at a time.
static SEEDED: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Draws after `manual_seed`.
pub(crate) fn seeded<R>(c: &Call<'_>, draw: impl FnOnce() -> R) -> R {
    let _alone = SEEDED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    manual_seed(c.args["seed"].as_u64().unwrap());
    draw()
}

/// Draws one tensor of the case's shape, or one of each of its lengths, joined.
fn drawn(c: &Call<'_>, draw: impl Fn(Shape, (DType, &Device)) -> Tensor) -> Vec<Tensor> {
    let options = || (c.dtype().unwrap(), c.device);
    seeded(c, || {
        if !c.args["lengths"].is_null() {
            let parts: Vec<Tensor> =
                c.sizes("lengths").into_iter().map(|n| draw(n.into(), options())).collect();
            return one(Tensor::cat(&parts, 0));
        }
        let all = draw(c.sizes("shape").into(), options());
        match c.args["last"].as_u64() {
            Some(n) => one(all.narrow(0, all.numel() - n as usize, n as usize)),
            None => one(all),
        }
    })
}

const RANDOM: &[(&str, Operation)] = &[
    ("rand", |c| drawn(c, |shape, options| Tensor::rand(shape, options))),
    ("randn", |c| drawn(c, |shape, options| Tensor::randn(shape, options))),
    ("uniform", |c| {
        drawn(c, |shape, options| Tensor::uniform(shape, c.float("low"), c.float("high"), options))
    }),
    ("normal", |c| {
        drawn(c, |shape, options| Tensor::normal(shape, c.float("mean"), c.float("std"), options))
    }),
    ("randperm", |c| seeded(c, || one(Tensor::randperm(c.size("n"), c.device)))),
    ("randint", |c| {
        let (low, high) = (c.int("low") as i64, c.int("high") as i64);
        seeded(c, || one(Tensor::randint(low, high, c.sizes("shape"), c.device)))
    }),
    ("mixed_draws", |c| {
        seeded(c, || {
            let draw = |(kind, n): (&Value, usize)| match kind.as_str().unwrap() {
                "rand" => Tensor::rand(n, c.device),
                "randn" => Tensor::randn(n, c.device),
                _ => Tensor::randperm(n, c.device),
            };
            c.list("kinds").iter().zip(c.sizes("sizes")).map(draw).collect()
        })
    }),
];

/// Every operation by name.
pub static OPERATIONS: std::sync::LazyLock<Vec<(&'static str, Operation)>> = std::sync::LazyLock::new(|| {
    [
        &[&ELEMENTWISE[..], FUNCTIONS, VIEWS, PRODUCTS, CREATION, RANDOM].concat()[..],
        linalg::OPERATIONS,
        &numerics::all(),
        &layers::all(),
    ]
    .concat()
});
