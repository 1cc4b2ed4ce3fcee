"""Cases for every tensor operation. The names are those of Orkest's methods; tests/src/operations.rs calls them by these names."""

import math
import operator

import torch
import torch.nn.functional as F

from draw import DTYPES, NAMES, Case, Input, registry

CASES, case = registry()

INTEGERS = [torch.int64, torch.int32, torch.uint8]


# ---- functions of one element ------------------------------------------------------------------------------------------------

UNARY = {
    # name: (function, low, high); None for normal values
    "neg": (torch.neg, None, None),
    "abs": (torch.abs, None, None),
    "sign": (torch.sign, None, None),
    "exp": (torch.exp, -4, 4),
    "expm1": (torch.expm1, -3, 3),
    "log": (torch.log, 0.05, 6),
    "log1p": (torch.log1p, -0.9, 6),
    "log2": (torch.log2, 0.05, 6),
    "log10": (torch.log10, 0.05, 6),
    "sqrt": (torch.sqrt, 0.01, 6),
    "rsqrt": (torch.rsqrt, 0.05, 6),
    "reciprocal": (torch.reciprocal, 0.1, 6),
    "square": (torch.square, None, None),
    "sin": (torch.sin, -8, 8),
    "cos": (torch.cos, -8, 8),
    "tan": (torch.tan, -1.3, 1.3),
    "atan": (torch.atan, None, None),
    "tanh": (torch.tanh, None, None),
    "sigmoid": (torch.sigmoid, -8, 8),
    "log_sigmoid": (F.logsigmoid, -8, 8),
    "erf": (torch.erf, None, None),
    "relu": (torch.relu, None, None),
    "gelu": (F.gelu, -2, 6),  # far below 0 what is left of 1 + erf is rounding
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), None, None),
    "silu": (F.silu, None, None),
    "floor": (torch.floor, -5, 5),
    "ceil": (torch.ceil, -5, 5),
    "round": (torch.round, -5, 5),
    "trunc": (torch.trunc, -5, 5),
}
KEEPS_INTEGERS = {"neg", "abs", "sign", "square", "relu", "floor", "ceil", "round", "trunc"}
NO_INTEGERS = {"log_sigmoid", "gelu", "gelu_tanh", "silu"}  # in PyTorch


def unary(name, function, low, high):
    @case(name)
    def _(d):
        if not d.plain and name not in NO_INTEGERS and d.flag(0.15):
            dtype = d.choice(INTEGERS)
            x = d.ints(d.shape(), 1 if dtype == torch.uint8 or low is not None else -5, 6, dtype, strided=True)
            return Case([x], function)
        if not d.plain and d.flag(0.15):
            # NaN, infinities, zeros and values out of the domain; PyTorch differs from itself in its gradients there.
            d.wide()
            x = d.special(d.shape(1, 2, size=8))
            if name in ("gelu", "gelu_tanh"):
                # PyTorch's vectorised and plain kernels disagree about infinities.
                x.base = x.value = x.value.nan_to_num(math.nan, 9.0, -9.0)
            return Case([x], function, backward=False)
        return Case([d.tensor(d.shape(), low, high)], function)


for _name, (_function, _low, _high) in UNARY.items():
    unary(_name, _function, _low, _high)


@case("softplus")
def _(d):
    beta, threshold = d.float(0.3, 3), d.choice([20.0, 2.0, 5.0])
    return Case(
        [d.tensor(d.shape(), -6, 6)],
        lambda x: F.softplus(x, beta, threshold),
        {"beta": beta, "threshold": threshold},
    )


@case("leaky_relu")
def _(d):
    slope = d.float(0, 0.5)
    return Case([d.tensor(d.shape())], lambda x: F.leaky_relu(x, slope), {"negative_slope": slope})


@case("elu")
def _(d):
    alpha = d.float(0.2, 2)
    return Case([d.tensor(d.shape())], lambda x: F.elu(x, alpha), {"alpha": alpha})


def activation(name, draw_args=lambda d: {}, shape=lambda d: d.shape(), tolerance=None):
    @case(name)
    def _(d):
        args = draw_args(d)
        return Case([d.tensor(shape(d))], lambda x: getattr(F, name)(x, **args), args, tolerance=tolerance)


for name in ("relu6", "hardswish", "softsign", "mish", "selu"):
    activation(name)
# PyTorch's gradient has a sixth in f32.
activation("hardsigmoid", tolerance={"backward": 1e-7})
activation("celu", draw_args=lambda d: {"alpha": d.choice([1.0, 0.5, 2.0])})
activation("hardtanh", draw_args=lambda d: {"min_val": d.float(-2, 0), "max_val": d.float(0, 2)})
activation("hardshrink", draw_args=lambda d: {"lambd": d.choice([0.5, 1.0])})
activation("softshrink", draw_args=lambda d: {"lambd": d.choice([0.5, 1.0])})
activation("threshold", draw_args=lambda d: {"threshold": d.float(-1, 1), "value": d.float(-5, 5)})
activation("softmin", draw_args=lambda d: {"dim": -1}, shape=lambda d: d.shape(1, 3, empty=0))
activation(
    "glu",
    draw_args=lambda d: {"dim": d.choice([0, -1])},
    shape=lambda d: [2 * d.int(1, 3), d.int(1, 3), 2 * d.int(1, 2)],
)


@case("tanhshrink")
def _(d):
    """Away from 0, where nothing but the rounding of tanh is left."""
    return Case([d.tensor(d.shape(), 0.5, 4)], lambda x: [F.tanhshrink(x), F.tanhshrink(-x)])


@case("prelu")
def _(d):
    shape = d.shape(1, 4, empty=0)
    channels = shape[1] if len(shape) > 1 and d.flag() else 1
    return Case([d.tensor(shape), d.tensor([channels])], F.prelu)


@case("clamp")
def _(d):
    low, high = d.float(-2, 0), d.float(0, 2)
    x = d.tensor(d.shape()) if d.plain or d.flag(0.8) else d.special([8])
    return Case([x], lambda x: x.clamp(low, high), {"min": low, "max": high})


@case("clamp_min")
def _(d):
    low = d.float(-2, 2)
    return Case([d.tensor(d.shape())], lambda x: x.clamp_min(low), {"min": low})


@case("clamp_max")
def _(d):
    high = d.float(-2, 2)
    return Case([d.tensor(d.shape())], lambda x: x.clamp_max(high), {"max": high})


for _name, _function in {
    "isnan": torch.isnan,
    "isinf": torch.isinf,
    "isfinite": torch.isfinite,
    "logical_not": torch.logical_not,
}.items():

    @case(_name)
    def _(d, function=_function):
        if not d.plain and d.flag(0.3):
            return Case([d.ints(d.shape(), 0, 2, d.choice(INTEGERS + [torch.bool]), strided=True)], function)
        return Case([d.special(d.shape(1, 3))], function)


# ---- two operands ------------------------------------------------------------------------------------------------------------


OPERATORS = {
    torch.add: operator.add,
    torch.sub: operator.sub,
    torch.mul: operator.mul,
    torch.div: operator.truediv,
    torch.pow: operator.pow,
}


def scalar_operand(d, function, low, high):
    """A number as the other operand, on either side."""
    number = d.int(math.ceil(low), math.floor(high)) if d.flag(0.4) else d.float(low, high)
    swapped = d.flag(0.4)
    plain = OPERATORS.get(function)

    def run(x):
        other = number if plain else torch.full((), number, dtype=x.dtype)
        return (plain or function)(*((other, x) if swapped else (x, other)))

    return run, {"scalar": number, "swapped": swapped}


def binary(name, function, a_range=(None, None), b_range=(None, None), integer_low=-4, bools=True):
    @case(name)
    def _(d):
        a_shape, b_shape = d.broadcast(2)
        kind = "plain" if d.plain else d.choice(["plain"] * 8 + ["scalar", "scalar", "integers", "mixed"])
        if kind == "scalar":
            low, high = b_range if b_range[0] is not None else (-3, 3)
            swapped_low, swapped_high = a_range if a_range[0] is not None else (-3, 3)
            low, high = max(low, swapped_low), min(high, swapped_high)
            x_low, x_high = (low, high) if a_range[0] is not None or b_range[0] is not None else (None, None)
            run, args = scalar_operand(d, function, low, high)
            return Case([d.tensor(a_shape, x_low, x_high)], run, args)
        if kind == "integers":
            types = [d.choice(INTEGERS + [torch.bool] * bools) for _ in range(2)]
            if torch.bool in types and not bools:
                types = [torch.int64, torch.int32]
            shapes = zip((a_shape, b_shape), types)
            low = lambda t: 0 if t == torch.uint8 and integer_low < 0 else integer_low
            return Case([d.ints(s, 0 if t == torch.bool else low(t), 1 if t == torch.bool else 5, t, True) for s, t in shapes], function)
        a, b = d.tensor(a_shape, *a_range), d.tensor(b_shape, *b_range)
        if kind == "mixed":
            b = d.tensor(b_shape, *b_range, dtype=d.choice([torch.float64, torch.float32]))
        return Case([a, b], function)


binary("add", torch.add)
binary("mul", torch.mul)
binary("sub", torch.sub, bools=False)
binary("div", torch.div, b_range=(0.3, 4), bools=False, integer_low=1)
binary("pow", torch.pow, a_range=(0.2, 3), b_range=(-2, 3), bools=False, integer_low=0)
binary("remainder", torch.remainder, a_range=(0.1, 6), b_range=(0.4, 2.5), bools=False, integer_low=1)
binary("maximum", torch.maximum)
binary("minimum", torch.minimum)
binary("atan2", torch.atan2, a_range=(0.2, 3), b_range=(0.2, 3), bools=False, integer_low=1)


@case("pow/scalar")
def _(d):
    """Whole exponents of any sign of base, the special exponents, and a number to the power of a tensor."""
    if d.flag(0.3):
        base = d.choice([2, 0.5, 3.0, 1])
        return Case([d.tensor(d.shape(), -2, 3)], lambda x: torch.pow(base, x), {"scalar": base, "swapped": True})
    p = d.choice([0, 1, 2, 3, 0.5, -1, -2, 2.0, 3.0, 1.5])
    low, high = (0.3, 3) if p in (0.5, 1.5, -1, -2) else (None, None)
    return Case([d.tensor(d.shape(), low, high)], lambda x: torch.pow(x, p), {"scalar": p, "swapped": False})


@case("remainder/signs")
def _(d):
    """The sign of the divisor, as in Python, also for integers."""
    if d.flag(0.4):
        dtype = d.choice([torch.int64, torch.int32])
        b = d.ints([3, 4], 1, 4, dtype)
        b = Input(b.value * d.choice([1, -1]), b.value * 1, [], False)
        b.value = b.base
        return Case([d.ints([3, 4], -9, 9, dtype), b], torch.remainder)
    b = d.choice([1.5, -1.5, 2, -2])
    return Case([d.tensor([4, 3])], lambda x: torch.remainder(x, b), {"scalar": b, "swapped": False})


@case("div/zero")
def _(d):
    """IEEE, not an error."""
    return Case([d.special([10]), d.special([10])], torch.div, backward=False)


@case("maximum/nan")
def _(d):
    return Case([d.special([12]), d.special([12])], torch.maximum, backward=False)


@case("minimum/nan")
def _(d):
    return Case([d.special([12]), d.special([12])], torch.minimum, backward=False)


@case("maximum/ties")
def _(d):
    """Equal operands share the gradient."""
    a = d.tensor([3, 4], values=d.ints([3, 4], 0, 2).value)
    b = d.tensor([3, 4], values=d.ints([3, 4], 0, 2).value)
    return Case([a, b], torch.maximum)


@case("minimum/ties")
def _(d):
    a = d.tensor([3, 4], values=d.ints([3, 4], 0, 2).value)
    b = d.tensor([3, 4], values=d.ints([3, 4], 0, 2).value)
    return Case([a, b], torch.minimum)


for _name in ["eq", "ne", "lt", "le", "gt", "ge"]:

    @case(_name)
    def _(d, function=getattr(torch, _name)):
        kind = d.choice(["special", "integers", "scalar", "mixed"])
        a_shape, b_shape = d.broadcast(2)
        if kind == "scalar":
            number = d.choice([0, 1, 1.5, -0.5])
            x = d.special(a_shape) if d.flag() else d.ints(a_shape, -2, 2)
            return Case([x], lambda x: function(x, number), {"scalar": number})
        if kind == "integers":
            return Case([d.ints(a_shape, 0, 2, torch.int64, True), d.ints(b_shape, 0, 2, torch.uint8, True)], function)
        if kind == "mixed":
            return Case([d.ints(a_shape, -2, 2, strided=True), d.tensor(b_shape)], function)
        return Case([d.special(a_shape), d.special(b_shape)], function)


for _name in ["logical_and", "logical_or", "logical_xor"]:

    @case(_name)
    def _(d, function=getattr(torch, _name)):
        a_shape, b_shape = d.broadcast(2)
        if d.flag(0.4):
            return Case([d.ints(a_shape, 0, 2, strided=True), d.special(b_shape)], function)
        return Case([d.mask(a_shape), d.mask(b_shape)], function)


@case("where_")
def _(d):
    c, a, b = d.broadcast(3)
    if not d.plain and d.flag(0.25):
        number = d.choice([0, 1.5, -2])
        return Case([d.mask(c), d.tensor(a)], lambda c, a: torch.where(c, a, number), {"scalar": number})
    return Case([d.mask(c), d.tensor(a), d.tensor(b)], torch.where)


@case("masked_fill")
def _(d):
    x, m = d.broadcast(2)
    value = d.choice([0, -1.5, math.inf, -math.inf, 2])
    return Case(
        [d.tensor(x), d.mask(m)],
        lambda x, m: x.masked_fill(m, value),
        {"value": value if math.isfinite(value) else str(value)},
    )


@case("lerp")
def _(d):
    if d.flag():
        a, b = d.broadcast(2)
        w = d.float(0, 1)
        return Case([d.tensor(a), d.tensor(b)], lambda a, b: torch.lerp(a, b, w), {"weight": w})
    a, b, w = d.broadcast(3)
    return Case([d.tensor(a), d.tensor(b), d.tensor(w, 0, 1)], torch.lerp)


@case("allclose")
def _(d):
    a = d.special([6]) if d.flag() else d.tensor([6])
    off = d.choice([0.0, 1e-6, 1e-3])
    b = Input(a.value * (1 + off), a.value * (1 + off), [], False)
    rtol, atol, equal_nan = d.choice([1e-5, 1e-2]), d.choice([1e-8, 0.0]), d.flag()
    return Case(
        [a, b],
        lambda a, b: torch.tensor(torch.allclose(a, b, rtol, atol, equal_nan)),
        {"rtol": rtol, "atol": atol, "equal_nan": equal_nan},
        backward=False,
    )


# ---- reductions --------------------------------------------------------------------------------------------------------------


def reduction(name, function, integers=True, low=None, high=None, empty=0.05, shrink=4, **options):
    """`function(x, dims, keepdim)`, where dims is a list."""

    @case(name)
    def _(d):
        shape = d.shape(0, shrink, empty=empty)
        dims, keepdim = d.dims(shape), d.odd
        if not d.early and integers and d.flag(0.2):
            dtype = d.choice(INTEGERS + [torch.bool])
            if name in ("any", "all") and dtype == torch.uint8:
                dtype = torch.bool  # PyTorch gives u8 there, for old times' sake; Orkest gives bool
            x = d.ints(shape, 0, 1 if dtype == torch.bool else 3, dtype, strided=True)
        else:
            x = d.tensor(shape, low, high, **options)
        listed = list(range(len(shape))) if dims is None else [dims] if isinstance(dims, int) else dims
        return Case([x], lambda x: function(x, listed, keepdim), {"dims": dims, "keepdim": keepdim})


def prod(x, dims, keepdim):
    for dim in sorted((d % x.dim() for d in dims), reverse=True):
        x = torch.prod(x, dim, keepdim=keepdim)
    return x if dims else torch.prod(x)


def summed(x, dims, keepdim):
    return torch.sum(x, dims, keepdim=keepdim) if dims else torch.sum(x)


reduction("sum", summed)
reduction("mean", lambda x, dims, keepdim: torch.mean(x, dims, keepdim=keepdim) if dims else x.mean(), integers=False)
reduction("prod", prod, low=0.5, high=1.6)
reduction("max", lambda x, dims, keepdim: torch.amax(x, dims, keepdim=keepdim), empty=0)
reduction("min", lambda x, dims, keepdim: torch.amin(x, dims, keepdim=keepdim), empty=0)
reduction("any", lambda x, dims, keepdim: torch.any(x, dims, keepdim=keepdim) if dims else x.any())
reduction("all", lambda x, dims, keepdim: torch.all(x, dims, keepdim=keepdim) if dims else x.all())
reduction("logsumexp", lambda x, dims, keepdim: torch.logsumexp(x, dims or 0, keepdim=keepdim), integers=False, empty=0)


@case("sum/long")
def _(d):
    """Rounding errors that grow with the length would show."""
    d.dtype = torch.float32
    return Case([d.tensor([1, 2500], 0, 1, strided=False)], lambda x: x.sum(1), {"dims": 1, "keepdim": False})


@case("prod/zeros")
def _(d):
    """The gradient is right where a factor is zero."""
    x = d.tensor([3, 4], values=d.ints([3, 4], 0, 2).value, strided=False)
    return Case([x], lambda x: x.prod(1), {"dims": 1, "keepdim": False})


@case("max/ties")
def _(d):
    x = d.tensor([3, 5], values=d.ints([3, 5], 0, 2).value, strided=False)
    return Case([x], lambda x: x.amax(1), {"dims": 1, "keepdim": False})


@case("max/nan")
def _(d):
    return Case([d.special([4, 3])], lambda x: x.amax(1), {"dims": 1, "keepdim": False}, backward=False)


@case("min/nan")
def _(d):
    return Case([d.special([4, 3])], lambda x: x.amin(0), {"dims": 0, "keepdim": False}, backward=False)


@case("logsumexp/infinite")
def _(d):
    x = torch.tensor([[-math.inf, -math.inf], [math.inf, 1.0], [-math.inf, 2.0], [1e3, 1e3], [-1e3, -1e3]])
    return Case([Input(x, x, [], False)], lambda x: x.logsumexp(1), {"dims": 1, "keepdim": False}, backward=False)


for _name in ["argmax", "argmin"]:

    @case(_name)
    def _(d, function=getattr(torch, _name)):
        shape = d.shape(0, 4, empty=0)
        dim, keepdim = d.choice([None, d.dim(shape)]) if d.flag(0.5) else d.dim(shape), d.odd
        x = d.special(shape) if d.flag(0.2) else d.ints(shape, 0, 2) if d.flag(0.3) else d.tensor(shape, distinct=True)
        return Case([x], lambda x: function(x, dim, keepdim), {"dim": dim, "keepdim": keepdim})


for _name, _function in {"max_with_indices": torch.max, "min_with_indices": torch.min}.items():

    @case(_name)
    def _(d, function=_function):
        shape = d.shape(1, 4, empty=0)
        dim = d.dim(shape)
        return Case([d.tensor(shape, distinct=True)], lambda x: tuple(function(x, dim)), {"dim": dim})


for _name, _function in {"var": torch.var, "std": torch.std}.items():

    @case(_name)
    def _(d, function=_function):
        d.wide()
        shape = d.shape(1, 4, empty=0, ones=0)
        dims, keepdim, correction = d.dims(shape), d.odd, d.choice([1, 0, 1, 0.5])
        x = d.tensor(shape, distinct=True)
        return Case(
            [x],
            lambda x: function(x, dims, correction=correction, keepdim=keepdim),
            {"dims": dims, "keepdim": keepdim, "correction": correction},
        )


@case("norm")
def _(d):
    shape = d.shape(1, 3, empty=0)
    dims, keepdim, p = d.dims(shape), d.odd, d.choice([2, 2, 1, 3, 0.5, "inf", "-inf", 0])
    listed = list(range(len(shape))) if dims is None else dims
    x = d.tensor(shape, 0.2, 3)
    flip = torch.where(torch.rand(x.base.shape, generator=d.generator) < 0.5, -1.0, 1.0).to(x.base.dtype)
    x = d.tensor(shape, values=x.value * flip if x.base.shape == x.value.shape else x.value)
    return Case(
        [x],
        lambda x: torch.linalg.vector_norm(x, float(p), listed, keepdim=keepdim),
        {"dims": dims, "keepdim": keepdim, "p": p},
    )


@case("norm/zero")
def _(d):
    """The gradient at zero is zero."""
    x = torch.zeros(2, 3, dtype=d.dtype)
    x[0] = 1.5
    return Case(
        [Input(x, x, [], True)], lambda x: torch.linalg.vector_norm(x, 2, 1), {"dims": 1, "keepdim": False, "p": 2}
    )


@case("sum_to")
def _(d):
    small, large = d.broadcast(2)
    whole = list(torch.broadcast_shapes(small, large))
    return Case([d.tensor(whole)], lambda x: x.sum_to_size(small), {"shape": small})


@case("cumsum")
def _(d):
    shape = d.shape(1, 3)
    dim = d.dim(shape)
    x = d.ints(shape, -3, 3, strided=True) if not d.plain and d.flag(0.2) else d.tensor(shape)
    return Case([x], lambda x: x.cumsum(dim), {"dim": dim})


@case("cumprod")
def _(d):
    shape = d.shape(1, 3)
    dim = d.dim(shape)
    if not d.plain and d.flag(0.3):
        return Case([d.tensor(shape, values=d.ints(shape, 0, 2).value, strided=False)], lambda x: x.cumprod(dim), {"dim": dim})
    return Case([d.tensor(shape, 0.5, 1.6)], lambda x: x.cumprod(dim), {"dim": dim})


# ---- softmax and norms -------------------------------------------------------------------------------------------------------

for _name, _function in {"softmax": torch.softmax, "log_softmax": torch.log_softmax}.items():

    @case(_name)
    def _(d, function=_function):
        shape = d.shape(1, 4)
        dim = d.dim(shape)
        return Case([d.tensor(shape, -5, 5)], lambda x: function(x, dim), {"dim": dim})


@case("softmax/infinite")
def _(d):
    x = torch.tensor([[-math.inf, 0.0, 1.0], [-math.inf, -math.inf, -math.inf], [1e4, 1e4, 0.0], [math.nan, 0.0, 0.0]])
    return Case([Input(x, x, [], False)], lambda x: x.softmax(-1), {"dim": -1}, backward=False)


def normalized(d):
    shape = d.shape(1, 4, empty=0, ones=0.05)
    shape[-1] = max(shape[-1], 3)
    k = d.int(1, min(2, len(shape)))
    return shape, shape[-k:]


@case("layer_norm")
def _(d):
    shape, last = normalized(d)
    weight, bias = d.choice([(True, True), (False, False), (True, False), (True, True)])
    eps = d.choice([1e-5, 1e-3])
    x = d.tensor(shape, distinct=True)
    parameters = [d.tensor(last) for wanted in (weight, bias) if wanted]

    def run(x, *p):
        return F.layer_norm(x, last, p[0] if weight else None, p[-1] if bias else None, eps)

    return Case([x, *parameters], run, {"shape": last, "weight": weight, "bias": bias, "eps": eps})


@case("rms_norm")
def _(d):
    shape, last = normalized(d)
    weight, eps = d.flag(0.7), d.choice([1e-5, 1e-3, None])
    if math.prod(last) == 1:
        eps = 1e-3  # without one the gradient is a difference of equal numbers
    parameters = [d.tensor(last)] if weight else []
    return Case(
        [d.tensor(shape), *parameters],
        lambda x, *p: F.rms_norm(x, last, p[0] if p else None, eps),
        {"shape": last, "weight": weight, "eps": eps},
    )


# ---- views -------------------------------------------------------------------------------------------------------------------


def factors(d, n):
    """Sizes whose product is `n`."""
    out = []
    while n > 1 and len(out) < 3:
        f = d.choice([k for k in range(1, n + 1) if n % k == 0])
        out.append(f)
        n //= f
    return out + [n]


def new_shape(d, shape):
    n = math.prod(shape)
    if n == 0:
        return [0, 3]
    sizes = factors(d, n)
    d.rng.shuffle(sizes)
    if d.flag():
        sizes[d.rng.randrange(len(sizes))] = -1
    return sizes


@case("reshape")
def _(d):
    shape = d.shape()
    sizes = new_shape(d, shape)
    return Case([d.tensor(shape)], lambda x: x.reshape(sizes), {"shape": sizes})


@case("view")
def _(d):
    shape = d.shape()
    sizes = new_shape(d, shape)
    return Case([d.tensor(shape, strided=False)], lambda x: x.view(sizes), {"shape": sizes})


def dim_pair(name, function):
    @case(name)
    def _(d):
        shape = d.shape(1, 4)
        a, b = d.dim(shape), d.dim(shape)
        return Case([d.tensor(shape)], lambda x: function(x, a, b), {"a": a, "b": b})


dim_pair("transpose", torch.transpose)
dim_pair("movedim", torch.movedim)


@case("diagonal")
def _(d):
    shape = d.shape(2, 4)
    a, b = d.rng.sample(range(len(shape)), 2)
    offset, b = d.int(-2, 2), b - len(shape) if d.flag() else b
    return Case([d.tensor(shape)], lambda x: torch.diagonal(x, offset, a, b), {"offset": offset, "a": a, "b": b})


@case("t")
def _(d):
    return Case([d.tensor(d.shape(0, 2))], torch.t)


@case("permute")
def _(d):
    shape = d.shape(1, 5)
    order = d.rng.sample(range(len(shape)), len(shape))
    order = [i - len(shape) if d.flag(0.2) else i for i in order]
    return Case([d.tensor(shape)], lambda x: x.permute(order), {"dims": order})


@case("squeeze")
def _(d):
    shape = d.shape(1, 4, ones=0.5)
    dim = d.dim(shape)
    return Case([d.tensor(shape)], lambda x: x.squeeze(dim), {"dim": dim})


@case("squeeze_all")
def _(d):
    return Case([d.tensor(d.shape(0, 4, ones=0.5))], torch.squeeze)


@case("unsqueeze")
def _(d):
    shape = d.shape()
    dim = d.int(-len(shape) - 1, len(shape))
    return Case([d.tensor(shape)], lambda x: x.unsqueeze(dim), {"dim": dim})


@case("expand")
def _(d):
    shape = d.shape(1, 3, ones=0.6)
    sizes = [d.int(1, 4) if s == 1 else d.choice([s, -1]) for s in shape]
    sizes = [d.int(1, 3) for _ in range(d.int(0, 2))] + sizes
    return Case([d.tensor(shape)], lambda x: x.expand(sizes), {"shape": sizes})


@case("broadcast_to")
def _(d):
    small, large = d.broadcast(2)
    whole = list(torch.broadcast_shapes(small, large))
    return Case([d.tensor(small)], lambda x: x.broadcast_to(whole), {"shape": whole})


@case("flatten")
def _(d):
    shape = d.shape(1, 5)
    a, b = sorted([d.int(0, len(shape) - 1), d.int(0, len(shape) - 1)])
    b = b - len(shape) if d.flag() else b
    return Case([d.tensor(shape)], lambda x: x.flatten(a, b), {"start": a, "end": b})


@case("unflatten")
def _(d):
    shape = d.shape(1, 3, empty=0.2)
    dim = d.dim(shape)
    sizes = factors(d, shape[dim])
    if d.flag():
        sizes[d.rng.randrange(len(sizes))] = -1
    return Case([d.tensor(shape)], lambda x: x.unflatten(dim, sizes), {"dim": dim, "sizes": sizes})


@case("narrow")
def _(d):
    shape = d.shape(1, 4)
    dim = d.dim(shape)
    start = d.int(0, shape[dim])
    length = d.int(0, shape[dim] - start)
    return Case([d.tensor(shape)], lambda x: x.narrow(dim, start, length), {"dim": dim, "start": start, "len": length})


@case("slice_dim")
def _(d):
    shape = d.shape(1, 4, empty=0)
    dim, step = d.dim(shape), d.int(1, 3)
    start = d.int(0, shape[dim] - 1)
    length = d.int(1, (shape[dim] - start - 1) // step + 1)
    at = dim % len(shape)
    where = (slice(None),) * at + (slice(start, start + (length - 1) * step + 1, step),)
    return Case([d.tensor(shape)], lambda x: x[where], {"dim": dim, "start": start, "len": length, "step": step})


@case("select")
def _(d):
    shape = d.shape(1, 4, empty=0)
    dim = d.dim(shape)
    index = d.int(-shape[dim], shape[dim] - 1)
    return Case([d.tensor(shape)], lambda x: x.select(dim, index), {"dim": dim, "index": index})


@case("split")
def _(d):
    shape = d.shape(1, 4, empty=0)
    dim, size = d.dim(shape), d.int(1, 4)
    return Case([d.tensor(shape)], lambda x: x.split(size, dim), {"size": size, "dim": dim})


@case("split_sizes")
def _(d):
    shape = d.shape(1, 4, empty=0)
    dim = d.dim(shape)
    cut = d.int(0, shape[dim])
    sizes = [cut, shape[dim] - cut]
    return Case([d.tensor(shape)], lambda x: x.split(sizes, dim), {"sizes": sizes, "dim": dim})


@case("chunk")
def _(d):
    shape = d.shape(1, 4, empty=0)
    dim, n = d.dim(shape), d.int(1, 4)
    return Case([d.tensor(shape)], lambda x: x.chunk(n, dim), {"n": n, "dim": dim})


@case("chunks")
def _(d):
    shape = d.shape(1, 4, empty=0)
    dim = d.dim(shape)
    shape[dim] = d.choice([3, 6])
    return Case([d.tensor(shape)], lambda x: x.chunk(3, dim), {"dim": dim})


@case("unbind")
def _(d):
    shape = d.shape(1, 4, empty=0)
    dim = d.dim(shape)
    return Case([d.tensor(shape)], lambda x: x.unbind(dim), {"dim": dim})


@case("flip")
def _(d):
    shape = d.shape(1, 4)
    dims = d.rng.sample(range(len(shape)), d.int(1, len(shape)))
    return Case([d.tensor(shape)], lambda x: x.flip(dims), {"dims": dims})


@case("roll")
def _(d):
    shape = d.shape(1, 4)
    dim, shift = d.dim(shape), d.int(-7, 7)
    return Case([d.tensor(shape)], lambda x: x.roll(shift, dim), {"shift": shift, "dim": dim})


@case("repeat")
def _(d):
    shape = d.shape(0, 3, size=3)
    repeats = [d.int(0 if d.flag(0.1) else 1, 3) for _ in range(len(shape) + d.int(0, 1))]
    return Case([d.tensor(shape)], lambda x: x.repeat(repeats), {"repeats": repeats})


@case("repeat_interleave")
def _(d):
    shape = d.shape(1, 3)
    dim, n = d.dim(shape), d.int(1, 3)
    return Case([d.tensor(shape)], lambda x: x.repeat_interleave(n, dim), {"repeats": n, "dim": dim})


for _name in ["tril", "triu"]:

    @case(_name)
    def _(d, function=getattr(torch, _name)):
        k = d.int(-2, 2)
        return Case([d.tensor(d.shape(2, 4))], lambda x: function(x, k), {"k": k})


@case("pad")
def _(d):
    shape = d.shape(1, 4, empty=0)
    pairs = []
    for size in reversed(shape[-d.int(1, min(3, len(shape))) :]):
        before = d.int(-1 if size > 1 else 0, 2)
        pairs.append([before, d.int(-(size + min(before, 0) - 1) if size > 1 and d.flag(0.3) else 0, 2)])
    value = d.choice([0.0, 1.5])
    flat = [p for pair in pairs for p in pair]
    return Case([d.tensor(shape)], lambda x: F.pad(x, flat, value=value), {"pairs": pairs, "value": value})


@case("pad_mode")
def _(d):
    rank = d.int(1, 2)
    sizes = [d.int(2, 5) for _ in range(rank)]
    mode = d.choice(["reflect", "replicate", "circular"])
    pairs = []
    for size in reversed(sizes):
        most = {"reflect": size - 1, "replicate": 4, "circular": size}[mode]
        pairs.append([d.int(0, most), d.int(0, most)])
    flat = [p for pair in pairs for p in pair]
    x = d.tensor([d.int(1, 2)] * d.flag() + [d.int(1, 2), *sizes])
    return Case([x], lambda x: F.pad(x, flat, mode=mode), {"pairs": pairs, "mode": mode})


@case("i")
def _(d):
    """Python's slicing: the index is a list of [kind, numbers]."""
    shape = d.shape(1, 4)
    entries, where = [], []
    for size in shape[: d.int(1, len(shape))]:
        kind = d.choice(["select", "slice", "slice", "all", "new"])
        if kind == "select" and size:
            at = d.int(-size, size - 1)
            entries.append(["select", at])
            where.append(at)
        elif kind == "slice":
            start, end = [None if d.flag(0.3) else d.int(-size - 1, size + 1) for _ in range(2)]
            step = d.int(1, 3)
            entries.append(["slice", start, end, step])
            where.append(slice(start, end, step))
        else:
            entries.append(["slice", None, None, 1])
            where.append(slice(None))
        if kind == "new":
            entries.append(["new"])
            where.append(None)
    if d.flag(0.3):
        taken = sum(e[0] != "new" for e in entries)
        if taken < len(shape):
            at = d.int(-shape[-1], shape[-1] - 1) if shape[-1] else None
            entries.append(["ellipsis"])
            where.append(Ellipsis)
            if at is not None:
                entries.append(["select", at])
                where.append(at)
    where = tuple(where)
    return Case([d.tensor(shape)], lambda x: x[where], {"index": entries})


@case("cat")
def _(d):
    shape = d.shape(1, 4)
    dim = d.dim(shape)
    shapes = []
    for _ in range(d.int(1, 3)):
        own = list(shape)
        own[dim] = d.int(0 if d.flag(0.1) else 1, 3)
        shapes.append(own)
    parts = [d.tensor(s) for s in shapes]
    if not d.plain and d.flag(0.15):
        parts[0] = d.tensor(shapes[0], dtype=torch.float64)
    return Case(parts, lambda *x: torch.cat(x, dim), {"dim": dim})


@case("stack")
def _(d):
    shape = d.shape(0, 3)
    dim = d.int(-len(shape) - 1, len(shape))
    return Case([d.tensor(shape) for _ in range(d.int(1, 3))], lambda *x: torch.stack(x, dim), {"dim": dim})


# ---- changing a tensor -------------------------------------------------------------------------------------------------------


def in_place(name, function):
    @case(name)
    def _(d):
        b, large = d.broadcast(2)
        a = list(torch.broadcast_shapes(b, large))
        return Case([d.tensor(a), d.tensor(b)], function)


in_place("copy_", lambda a, b: a.clone().copy_(b))
in_place("add_", lambda a, b: a.clone().add_(b))
in_place("sub_", lambda a, b: a.clone().sub_(b))
in_place("mul_", lambda a, b: a.clone().mul_(b))


@case("fill_")
def _(d):
    value = d.choice([0, 2.5, -1])
    return Case([d.tensor(d.shape())], lambda x: x.clone().fill_(value), {"value": value}, backward=False)


@case("zero_")
def _(d):
    return Case([d.tensor(d.shape())], lambda x: x.clone().zero_(), backward=False)


@case("slice_assign")
def _(d):
    shape = d.shape(1, 3, empty=0)
    start = d.int(0, shape[0] - 1)
    end = d.int(start + 1, shape[0])
    step = d.int(1, 2)
    part = [len(range(start, end, step)), *shape[1:]]
    source = part[d.int(0, len(part)) if d.flag(0.3) else 0 :]

    def run(x, y):
        x = x.clone()
        x[start:end:step] = y
        return x

    return Case([d.tensor(shape), d.tensor(source)], run, {"index": [["slice", start, end, step]]})


# ---- positions ---------------------------------------------------------------------------------------------------------------


def index_shape(d, shape, dim):
    """The shape of an index for gather and scatter: at most the tensor's outside `dim`."""
    out = [d.int(1, s) if d.flag(0.3) else s for s in shape]
    out[dim] = d.int(1, 5)
    return out


@case("gather")
def _(d):
    shape = d.shape(1, 3, empty=0)
    dim = d.dim(shape)
    index = d.index(index_shape(d, shape, dim), shape[dim])
    return Case([d.tensor(shape), index], lambda x, i: x.gather(dim, i), {"dim": dim})


def distinct_index(d, shape, size, dim):
    """No position twice along `dim`: what overlapping writes give is undefined in PyTorch."""
    keys = torch.rand([*shape[:dim], size, *shape[dim + 1 :]], generator=d.generator)
    x = keys.argsort(dim).narrow(dim, 0, shape[dim]).contiguous()
    return Input(x, x, [], False)


def cut(source, index):
    """A source may be larger than the index; PyTorch's backward wants equal sizes."""
    return source[tuple(slice(n) for n in index.shape)]


def scatter(d):
    shape = d.shape(1, 3, empty=0)
    dim = d.rng.randrange(len(shape))
    own = index_shape(d, shape, dim)
    own[dim] = d.int(1, shape[dim])
    source = [s + d.int(0, 1) for s in own]
    return Case(
        [d.tensor(shape), distinct_index(d, own, shape[dim], dim), d.tensor(source)],
        lambda x, i, s: x.scatter(dim, i, cut(s, i)),
        {"dim": dim},
    )


CASES["scatter"] = CASES["scatter_"] = (scatter, False)


def scatter_add(d):
    shape = d.shape(1, 3, empty=0)
    dim = d.rng.randrange(len(shape))
    own = index_shape(d, shape, dim)
    source = [s + d.int(0, 1) for s in own]
    return Case(
        [d.tensor(shape), d.index(own, shape[dim]), d.tensor(source)],
        lambda x, i, s: x.scatter_add(dim, i, cut(s, i)),
        {"dim": dim},
    )


CASES["scatter_add"] = CASES["scatter_add_"] = (scatter_add, False)


@case("take_along_dim")
def _(d):
    shape = d.shape(1, 3, empty=0)
    dim = d.rng.randrange(len(shape))
    own = [1 if d.flag(0.3) else s for s in shape]
    own[dim] = d.int(1, 4)
    return Case(
        [d.tensor(shape), d.index(own, shape[dim])], lambda x, i: torch.take_along_dim(x, i, dim), {"dim": dim}
    )


@case("index_select")
def _(d):
    shape = d.shape(1, 4, empty=0)
    dim = d.dim(shape)
    n = d.int(0 if d.flag(0.1) else 1, 6)
    return Case([d.tensor(shape), d.index([n], shape[dim])], lambda x, i: x.index_select(dim, i), {"dim": dim})


def index_add(d):
    shape = d.shape(1, 4, empty=0)
    dim = d.dim(shape)
    n = d.int(1, 6)
    source = list(shape)
    source[dim] = n
    return Case(
        [d.tensor(shape), d.index([n], shape[dim]), d.tensor(source)],
        lambda x, i, s: x.index_add(dim, i, s),
        {"dim": dim},
    )


CASES["index_add"] = CASES["index_add_"] = (index_add, False)


@case("rows")
def _(d):
    shape = d.shape(1, 3, empty=0)
    return Case([d.tensor(shape), d.index(d.shape(0, 3), shape[0])], lambda x, i: x[i])


@case("index")
def _(d):
    """Index tensors at some dimensions; `at` says which."""
    shape = d.shape(1, 4, empty=0)
    at = sorted(d.rng.sample(range(len(shape)), d.int(1, min(3, len(shape)))))
    shapes = d.broadcast(len(at), 0, 2, empty=0)
    indices = [d.ints(s, -shape[a], shape[a] - 1) for s, a in zip(shapes, at)]

    def run(x, *indices):
        where = [slice(None)] * (at[-1] + 1)
        for a, i in zip(at, indices):
            where[a] = i
        return x[tuple(where)]

    return Case([d.tensor(shape), *indices], run, {"at": at})


@case("nonzero")
def _(d):
    return Case([d.ints(d.shape(1, 3), 0, 1, d.choice(INTEGERS + [torch.bool]), strided=True)], torch.nonzero)


@case("masked_select")
def _(d):
    x, m = d.broadcast(2)
    return Case([d.tensor(x), d.mask(m)], torch.masked_select)


@case("one_hot")
def _(d):
    n = d.int(1, 6)
    return Case([d.index(d.shape(0, 3), n)], lambda x: F.one_hot(x, n), {"num_classes": n})


@case("unique")
def _(d):
    x = d.ints(d.shape(0, 3), -3, 3, strided=True) if d.flag(0.6) else d.tensor([9], values=d.ints([9], 0, 4).value, grad=False)
    return Case([x], lambda x: torch.unique(x, return_inverse=True, return_counts=True), backward=False)


# ---- order -------------------------------------------------------------------------------------------------------------------


@case("sort")
def _(d):
    shape = d.shape(1, 3)
    dim, descending = d.dim(shape), d.flag()
    x = d.tensor(shape, distinct=True) if d.flag(0.6) else d.tensor(shape, values=d.ints(shape, 0, 3).value)
    return Case(
        [x],
        lambda x: tuple(torch.sort(x, dim=dim, descending=descending, stable=True)),
        {"dim": dim, "descending": descending},
    )


@case("argsort")
def _(d):
    shape = d.shape(1, 3)
    dim, descending = d.dim(shape), d.flag()
    x = d.special(shape) if d.flag(0.3) else d.tensor(shape, distinct=True, grad=False)
    return Case(
        [x],
        lambda x: torch.argsort(x, dim=dim, descending=descending, stable=True),
        {"dim": dim, "descending": descending},
    )


@case("topk")
def _(d):
    shape = d.shape(1, 3, empty=0)
    dim, largest = d.dim(shape), d.flag()
    k = d.int(1, shape[dim])
    return Case(
        [d.tensor(shape, distinct=True)],
        lambda x: tuple(torch.topk(x, k, dim, largest)),
        {"k": k, "dim": dim, "largest": largest},
    )


@case("median")
def _(d):
    shape = d.shape(1, 3, empty=0)
    dim = d.dim(shape)
    return Case([d.tensor(shape, distinct=True)], lambda x: tuple(torch.median(x, dim)), {"dim": dim})


# ---- products ----------------------------------------------------------------------------------------------------------------


@case("matmul")
def _(d):
    k = d.int(0 if d.flag(0.05) and not d.plain else 1, 9)
    a_lead, b_lead = d.broadcast(2, 0, 2)
    a, b = [*a_lead, d.int(1, 6), k], [*b_lead, k, d.int(1, 6)]
    form = 0 if d.plain else d.int(0, 8)
    if form == 1:
        a = [k]
    elif form == 2:
        b = [k]
    elif form == 3:
        a, b = [k], [k]
    return Case([d.tensor(a), d.tensor(b)], torch.matmul)


@case("matmul/large")
def _(d):
    """Sizes beyond a tile in every direction."""
    d.dtype = torch.float32
    m, k, n = d.int(17, 24), d.int(20, 40), d.int(17, 24)
    return Case([d.tensor([m, k]), d.tensor([k, n])], torch.matmul)


@case("dot")
def _(d):
    n = d.int(1, 12)
    return Case([d.tensor([n]), d.tensor([n])], torch.dot)


@case("outer")
def _(d):
    return Case([d.tensor([d.int(1, 6)]), d.tensor([d.int(1, 6)])], torch.outer)


EINSUM = {
    "ij,jk->ik": "ab,bc",
    "bij,bjk->bik": "xab,xbc",
    "i,j->ij": "a,b",
    "ij->ji": "ab",
    "ii->i": "aa",
    "ii": "aa",
    "ij,ij->": "ab,ab",
    "bhid,bhjd->bhij": "xyab,xycb",
    "bij,ij->b": "xab,ab",
    "...ij,...jk->...ik": "xab,xbc",
    "ij,jk,kl->il": "ab,bc,cd",
    "i,i->": "a,a",
    "ij->": "ab",
    "ij,j": "ab,b",
}


@case("einsum")
def _(d):
    equation = d.choice(EINSUM)
    sizes = {c: d.int(1, 4) for c in "abcdxy"}
    operands = [d.tensor([sizes[c] for c in names]) for names in EINSUM[equation].split(",")]
    return Case(operands, lambda *x: torch.einsum(equation, *x), {"equation": equation})


@case("meshgrid")
def _(d):
    return Case([d.tensor([d.int(1, 4)]) for _ in range(d.int(1, 3))], lambda *x: torch.meshgrid(*x, indexing="ij"))


def linear_operands(d):
    k, n = d.int(1, 8), d.int(1, 6)
    bias = d.flag(0.7)
    x = d.tensor([*d.shape(0, 3, empty=0), k])
    return [x, d.tensor([n, k])] + [d.tensor([n])] * bias


@case("linear")
def _(d):
    return Case(linear_operands(d), F.linear)


@case("linear_act")
def _(d):
    name = d.choice(["relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"])
    return Case(linear_operands(d), lambda *x: UNARY[name][0](F.linear(*x)), {"activation": name})


@case("scaled_dot_product_attention")
def _(d):
    d.wide()
    t, s, width, e = d.int(1, 4), d.int(1, 4), d.int(1, 4), d.int(1, 4)
    lead = d.shape(0, 2, size=2, empty=0)
    kind = d.choice(["none", "causal", "bool", "float"])
    scale = d.choice([None, None, 0.3])
    inputs = [d.tensor([*lead, t, width]), d.tensor([*lead, s, width]), d.tensor([*lead, s, e])]
    if kind == "bool":
        inputs.append(d.mask([*lead, t, s] if d.flag() else [t, s], 0.6))
    elif kind == "float":
        inputs.append(d.tensor([t, s], grad=d.flag(0.3)))

    def run(q, k, v, mask=None):
        scores = q @ k.transpose(-2, -1) * (scale or q.shape[-1] ** -0.5)
        if kind == "bool" and not mask.any(-1).all():
            # A query that sees nothing: PyTorch's own kernels give zeros, and gradients without NaN.
            blind = ~mask.any(-1, keepdim=True)
            weights = scores.masked_fill(~mask, -math.inf).masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
            return weights @ v
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=kind == "causal", scale=scale)

    return Case(inputs, run, {"causal": kind == "causal", "scale": scale})


@case("scaled_dot_product_attention/grouped")
def _(d):
    """Several query heads for each head of keys and values."""
    d.wide()
    t, s, width, shared, group = d.int(1, 4), d.int(1, 4), d.int(1, 4), d.int(1, 2), d.int(2, 3)
    batch, causal = d.int(1, 2), d.flag()
    inputs = [d.tensor([batch, shared * group, t, width])]
    inputs += [d.tensor([batch, shared, s, width]), d.tensor([batch, shared, s, width])]

    def run(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    return Case(inputs, run, {"causal": causal, "scale": None})


# ---- windows -----------------------------------------------------------------------------------------------------------------


def pair(d, low, high):
    """One number for both, or two."""
    return d.int(low, high) if d.flag() else [d.int(low, high), d.int(low, high)]


def both(p):
    return [p, p] if isinstance(p, int) else p


def fits(size, kernel, dilation, padding):
    return max(size, dilation * (kernel - 1) + 1 - 2 * padding, 1)


@case("conv2d")
def _(d):
    groups = d.choice([1, 1, 2])
    kernel, stride, padding, dilation = [d.int(1, 3), d.int(1, 3)], pair(d, 1, 2), pair(d, 0, 2), pair(d, 1, 2)
    size = [fits(d.int(2, 5), k, l, p) for k, l, p in zip(kernel, both(dilation), both(padding))]
    x = d.tensor([d.int(1, 2), groups * d.int(1, 2), *size])
    out = groups * d.int(1, 2)
    weight = d.tensor([out, x.value.shape[1] // groups, *kernel])
    bias = [d.tensor([out])] if d.flag(0.7) else []
    return Case(
        [x, weight, *bias],
        lambda x, w, b=None: F.conv2d(x, w, b, stride, padding, dilation, groups),
        {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
    )


@case("conv1d")
def _(d):
    groups, kernel, stride, padding, dilation = d.choice([1, 2]), d.int(1, 3), d.int(1, 3), d.int(0, 2), d.int(1, 2)
    size = fits(d.int(3, 8), kernel, dilation, padding)
    x = d.tensor([d.int(1, 2), groups * d.int(1, 2), size])
    out = groups * d.int(1, 2)
    weight = d.tensor([out, x.value.shape[1] // groups, kernel])
    bias = [d.tensor([out])] if d.flag(0.7) else []
    return Case(
        [x, weight, *bias],
        lambda x, w, b=None: F.conv1d(x, w, b, stride, padding, dilation, groups),
        {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
    )


def window(d):
    kernel, dilation, padding, stride = pair(d, 1, 3), pair(d, 1, 2), pair(d, 0, 1), pair(d, 1, 2)
    size = [fits(d.int(2, 5), k, l, p) for k, l, p in zip(both(kernel), both(dilation), both(padding))]
    return size, {"kernel_size": kernel, "dilation": dilation, "padding": padding, "stride": stride}


@case("unfold")
def _(d):
    size, args = window(d)
    return Case([d.tensor([d.int(1, 2), d.int(1, 2), *size])], lambda x: F.unfold(x, **args), args)


@case("fold")
def _(d):
    size, args = window(d)
    channels = d.int(1, 2)
    columns = F.unfold(torch.zeros(1, channels, *size), **args).shape
    x = d.tensor([d.int(1, 2), columns[1], columns[2]])
    return Case([x], lambda x: F.fold(x, size, **args), {"output_size": size} | args)


def pool(name, rank, function, indices=False, average=False):
    @case(name)
    def _(d):
        kernel = d.int(1, 3) if rank == 1 else pair(d, 1, 3)
        stride = d.choice([None, d.int(1, 3) if rank == 1 else pair(d, 1, 3)])
        half = [k // 2 for k in both(kernel)]
        padding = d.int(0, half[0]) if rank == 1 else d.choice([0, [d.int(0, half[0]), d.int(0, half[1])]])
        size = [fits(d.int(2, 6), k, 1, 0) for k in both(kernel)[:rank]]
        x = d.tensor([d.int(1, 2), d.int(1, 2), *size], distinct=not average)
        args = {"kernel_size": kernel, "stride": stride, "padding": padding}
        if average:
            args["count_include_pad"] = d.flag()
        more = {"return_indices": True} if indices else {}
        return Case([x], lambda x: function(x, **args, **more), args)


pool("max_pool2d", 2, F.max_pool2d)
pool("max_pool2d_with_indices", 2, F.max_pool2d, indices=True)
pool("avg_pool2d", 2, F.avg_pool2d, average=True)
pool("max_pool1d", 1, F.max_pool1d)
pool("max_pool1d_with_indices", 1, F.max_pool1d, indices=True)
pool("avg_pool1d", 1, F.avg_pool1d, average=True)


def pool_with(name, rank, function, average=False):
    """All of PyTorch's options."""

    @case(name)
    def _(d):
        kernel = [d.int(1, 3) for _ in range(rank)]
        args = {
            "kernel_size": kernel,
            "stride": [d.int(1, 3) for _ in range(rank)] if d.flag(0.7) else None,
            "padding": [d.int(0, k // 2) for k in kernel],
            "ceil_mode": d.flag(0.6),
        }
        if average:
            args["count_include_pad"] = d.flag()
            if rank == 2:
                args["divisor_override"] = d.choice([None, None, 3])
        else:
            args["dilation"] = [d.int(1, 2) for _ in range(rank)]
        size = [fits(d.int(2, 7), k, l, 0) for k, l in zip(kernel, args.get("dilation", [1, 1]))]
        x = d.tensor([d.int(1, 2)] * d.flag(0.8) + [d.int(1, 2), *size], distinct=not average)
        more = {} if average else {"return_indices": True}
        return Case([x], lambda x: function(x, **{k: v for k, v in args.items() if v is not None}, **more), args)


pool_with("max_pool2d_with", 2, F.max_pool2d)
pool_with("max_pool1d_with", 1, F.max_pool1d)
pool_with("avg_pool2d_with", 2, F.avg_pool2d, average=True)
pool_with("avg_pool1d_with", 1, F.avg_pool1d, average=True)


@case("conv_transpose2d")
def _(d):
    groups, kernel = d.choice([1, 1, 2]), [d.int(1, 3), d.int(1, 3)]
    stride, dilation = pair(d, 1, 3), pair(d, 1, 2)
    padding = [d.int(0, max(0, l * (k - 1) // 2)) for k, l in zip(kernel, both(dilation))]
    more = [d.int(0, max(s, l) - 1) for s, l in zip(both(stride), both(dilation))]
    x = d.tensor([d.int(1, 2), groups * d.int(1, 2), d.int(1, 4), d.int(1, 4)])
    weight = d.tensor([x.value.shape[1], d.int(1, 2), *kernel])
    bias = [d.tensor([weight.value.shape[1] * groups])] if d.flag(0.7) else []
    return Case(
        [x, weight, *bias],
        lambda x, w, b=None: F.conv_transpose2d(x, w, b, stride, padding, more, groups, dilation),
        {"stride": stride, "padding": padding, "output_padding": more, "groups": groups, "dilation": dilation},
    )


@case("conv_transpose1d")
def _(d):
    groups, kernel, stride, dilation = d.choice([1, 2]), d.int(1, 3), d.int(1, 3), d.int(1, 2)
    padding, more = d.int(0, max(0, dilation * (kernel - 1) // 2)), d.int(0, max(stride, dilation) - 1)
    x = d.tensor([d.int(1, 2), groups * d.int(1, 2), d.int(1, 6)])
    weight = d.tensor([x.value.shape[1], d.int(1, 2), kernel])
    bias = [d.tensor([weight.value.shape[1] * groups])] if d.flag(0.7) else []
    return Case(
        [x, weight, *bias],
        lambda x, w, b=None: F.conv_transpose1d(x, w, b, stride, padding, more, groups, dilation),
        {"stride": stride, "padding": padding, "output_padding": more, "groups": groups, "dilation": dilation},
    )


def adaptive(name, rank, function):
    @case(name)
    def _(d):
        x = d.tensor([d.int(1, 2)] * d.flag(0.7) + [d.int(1, 2)] + [d.int(1, 7) for _ in range(rank)], distinct=True)
        size = d.int(1, 5) if rank == 1 else pair(d, 1, 5)
        return Case([x], lambda x: function(x, size), {"output_size": size})


adaptive("adaptive_avg_pool1d", 1, F.adaptive_avg_pool1d)
adaptive("adaptive_avg_pool2d", 2, F.adaptive_avg_pool2d)
adaptive("adaptive_max_pool1d", 1, F.adaptive_max_pool1d)
adaptive("adaptive_max_pool2d", 2, F.adaptive_max_pool2d)


@case("interpolate")
def _(d):
    rank = d.choice([1, 2])
    mode = d.choice(["nearest", "nearest-exact", *(["linear"] if rank == 1 else ["bilinear", "bicubic"])])
    x = d.tensor([d.int(1, 2), d.int(1, 2), *(d.int(1, 5) for _ in range(rank))])
    args = {"mode": mode}
    if "nearest" not in mode:
        args["align_corners"] = d.flag()
    if d.flag():
        size = [d.int(1, 9) for _ in range(rank)]
        args["size"] = size if rank == 2 else size[0]
    else:
        # At least 1, so that something is left of every size. Where a factor like 2.3 happens to double a size, PyTorch's "nearest" takes
        # other elements in its gradient (and in some memory layouts) than in its forward pass.
        factors = [d.choice([1.0, 1.5, 2.0, 2.5, 3.0]) for _ in range(rank)]
        args["scale_factor"] = factors if rank == 2 else factors[0]
    return Case([x], lambda x: F.interpolate(x, **args), args)


@case("grid_sample")
def _(d):
    d.wide()
    rank = d.choice([2, 2, 3])
    mode = d.choice(["bilinear", "nearest", *(["bicubic"] if rank == 2 else [])])
    batch = d.int(1, 2)
    x = d.tensor([batch, d.int(1, 3), *(d.int(1, 5) for _ in range(rank))])
    # Where the nearest element is taken, no gradient leads to the grid; PyTorch gives zeros.
    grid = d.tensor([batch, *(d.int(1, 4) for _ in range(rank)), rank], -1.6, 1.6, grad=mode != "nearest")
    padding = d.choice(["zeros", "border", "reflection"])
    args = {"mode": mode, "padding_mode": padding, "align_corners": d.flag()}
    return Case([x, grid], lambda x, grid: F.grid_sample(x, grid, **args), args)


@case("affine_grid")
def _(d):
    d.wide()
    rank = d.choice([2, 3])
    size = [d.int(1, 3), 1, *(d.int(1, 4) for _ in range(rank))]
    corners = d.flag()
    theta = d.tensor([size[0], rank, rank + 1])
    return Case([theta], lambda theta: F.affine_grid(theta, size, align_corners=corners), {"size": size, "align_corners": corners})


@case("pixel_shuffle")
def _(d):
    r, more = d.int(1, 3), d.shape(0, 2, size=2, empty=0)
    x = d.tensor([*more, d.int(1, 2) * r * r, d.int(1, 3), d.int(1, 3)])
    return Case([x], lambda x: F.pixel_shuffle(x, r), {"factor": r})


@case("pixel_unshuffle")
def _(d):
    r, more = d.int(1, 3), d.shape(0, 2, size=2, empty=0)
    x = d.tensor([*more, d.int(1, 2), d.int(1, 3) * r, d.int(1, 3) * r])
    return Case([x], lambda x: F.pixel_unshuffle(x, r), {"factor": r})


# ---- norms of channels -------------------------------------------------------------------------------------------------------


def channel_norm(name, spatial, flag, function):
    """Inputs: x, weight and bias if there are any, running mean and variance if there are any, which are outputs too."""

    @case(name)
    def _(d):
        d.wide()
        n, c = d.int(3, 5), d.int(1, 4)
        x = d.tensor([n, c, *(d.int(3, 4) for _ in range(d.int(*spatial)))], distinct=True)
        weight, bias, running, current = d.flag(0.7), d.flag(0.7), d.flag(0.7), d.flag(0.7)
        current = current or not running
        args = {"weight": weight, "bias": bias, "running": running, flag: current}
        args |= {"momentum": d.choice([0.1, 0.3, 1.0]), "eps": d.choice([1e-5, 1e-2])}
        parameters = [d.tensor([c], strided=False) for there in (weight, bias) if there]
        statistics = [d.tensor([c], 0.5, 2, grad=False, strided=False) for _ in range(2 * running)]

        def run(x, *p):
            p = iter(p)
            w, b = next(p) if weight else None, next(p) if bias else None
            mean, var = (next(p).clone(), next(p).clone()) if running else (None, None)
            y = function(x, mean, var, w, b, current, args["momentum"], args["eps"])
            return [y, mean, var] if running else y

        return Case([x, *parameters, *statistics], run, args)


channel_norm("batch_norm", (0, 2), "training", F.batch_norm)
channel_norm("instance_norm", (1, 2), "use_input_stats", F.instance_norm)


@case("group_norm")
def _(d):
    groups = d.int(1, 3)
    c = groups * d.int(3, 4)  # of two values nothing but the order is left
    x = d.tensor([d.int(1, 3), c, *(d.int(2, 3) for _ in range(d.int(0, 2)))], distinct=True)
    weight, bias, eps = d.flag(0.7), d.flag(0.7), d.choice([1e-5, 1e-2])
    parameters = [d.tensor([c], strided=False) for there in (weight, bias) if there]

    def run(x, *p):
        return F.group_norm(x, groups, p[0] if weight else None, p[-1] if bias else None, eps)

    return Case([x, *parameters], run, {"num_groups": groups, "weight": weight, "bias": bias, "eps": eps})


# ---- loss, dropout, casts ----------------------------------------------------------------------------------------------------


@case("cross_entropy_rows")
def _(d):
    n, c = d.int(1, 6), d.int(1, 6)
    target = d.ints([n], 0, c - 1)
    ignore = d.choice([-100, 0])
    if d.flag(0.4):
        target.base[d.int(0, n - 1)] = ignore
    smoothing = d.choice([0.0, 0.0, 0.1, 0.4])
    return Case(
        [d.tensor([n, c]), target],
        lambda x, t: F.cross_entropy(x, t, ignore_index=ignore, label_smoothing=smoothing, reduction="none"),
        {"ignore_index": ignore, "label_smoothing": smoothing},
    )


@case("dropout")
def _(d):
    """What does not depend on the mask: evaluation, and the probabilities 0 and 1."""
    p, training = d.choice([(0.5, False), (0.0, True), (1.0, True)])
    return Case([d.tensor(d.shape())], lambda x: F.dropout(x, p, training), {"p": p, "training": training})


@case("to_dtype")
def _(d):
    target = d.choice(["f64", "f16", "bf16"] if d.plain else DTYPES)
    args = {"dtype": target}
    if d.plain or d.flag(0.6):
        x = d.tensor(d.shape(), -3, 100) if target != "u8" else d.tensor(d.shape(), 0, 100)
        return Case([x], lambda x: x.to(DTYPES[target]), args, reference=False)
    dtype = d.choice(INTEGERS + [torch.bool])
    return Case([d.ints(d.shape(), 0, 1 if dtype == torch.bool else 100, dtype, True)], lambda x: x.to(DTYPES[target]), args)


@case("copy")
def _(d):
    return Case([d.tensor(d.shape())], torch.clone)


@case("contiguous")
def _(d):
    return Case([d.tensor(d.shape())], torch.Tensor.contiguous)


# ---- creation ----------------------------------------------------------------------------------------------------------------


@case("arange")
def _(d):
    if d.flag():
        start, step = d.int(-5, 5), d.choice([1, 2, -1, -3])
        end = start + step * d.int(0, 6) + d.choice([0, 1 if step > 0 else -1])
    else:
        start, step = d.float(-2, 2), d.choice([0.25, 0.5, -0.5])
        end = start + step * d.int(1, 6)
    dtype = d.choice([None, "f32", "f64"])
    made = torch.arange(start, end, step, dtype=dtype and DTYPES[dtype])
    return Case([], lambda: made, {"start": start, "end": end, "step": step, "dtype": dtype})


@case("linspace")
def _(d):
    start, end, n = d.float(-3, 3), d.float(-3, 3), d.int(0, 9)
    return Case([], lambda: torch.linspace(start, end, n), {"start": start, "end": end, "steps": n}, reference=False)


@case("eye")
def _(d):
    n = d.int(0, 4)
    return Case([], lambda: torch.eye(n), {"n": n})


@case("full")
def _(d):
    value, dtype = d.choice([True, 3, 1.5]), d.choice([None, "f64", "i64"])
    shape = d.shape()
    made = torch.full(shape, value, dtype=dtype and DTYPES[dtype])
    return Case([], lambda: made, {"shape": shape, "value": value, "dtype": dtype})


for _name in ["zeros", "ones"]:

    @case(_name)
    def _(d, function=getattr(torch, _name)):
        shape, dtype = d.shape(), d.choice([None, *DTYPES])
        made = function(shape, dtype=dtype and DTYPES[dtype])
        return Case([], lambda: made, {"shape": shape, "dtype": dtype})


for _name in ["zeros_like", "ones_like", "full_like"]:

    @case(_name)
    def _(d, function=getattr(torch, _name), full=_name == "full_like"):
        x = d.ints(d.shape(), 0, 3, d.choice(INTEGERS), True) if d.flag(0.3) else d.tensor(d.shape(), grad=False)
        if full:
            return Case([x], lambda x: function(x, 2), {"value": 2})
        return Case([x], function)


# ---- dtypes ------------------------------------------------------------------------------------------------------------------


@case("promotion", once=True)
def _(d):
    """The whole table: dtypes by dimensions, and plain numbers. Outputs are codes: the position in this file's DTYPES."""
    names = list(DTYPES)
    rows = []
    results = []
    for a in names:
        for b in names:
            for ra, rb in [(1, 1), (1, 0), (0, 1), (0, 0)]:
                x, y = torch.ones([1] * ra, dtype=DTYPES[a]), torch.ones([1] * rb, dtype=DTYPES[b])
                rows.append([a, ra, b, rb])
                results.append([names.index(NAMES[t.dtype]) for t in (x + y, x / y)])
        for number in [True, 2, 2.5]:
            x = torch.ones(1, dtype=DTYPES[a])
            rows.append([a, 1, number, 0])
            results.append([names.index(NAMES[t.dtype]) for t in (x + number, x / number)])
    table = torch.tensor(results)
    return Case([], lambda: table, {"names": names, "rows": rows})


@case("reduced_dtype", once=True)
def _(d):
    """The dtype of sum and prod by dtype."""
    names = list(DTYPES)
    table = torch.tensor(
        [[names.index(NAMES[f(torch.ones(2, dtype=t)).dtype]) for f in (torch.sum, torch.prod)] for t in DTYPES.values()]
    )
    return Case([], lambda: table, {"names": names})
