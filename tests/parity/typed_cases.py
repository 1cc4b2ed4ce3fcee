"""Integers, truth values and mixed dtypes: what promotes, what wraps around, and what the dtype of a result is."""

import torch
import torch.nn.functional as F

from draw import Case, Input, registry

CASES, case = registry()

INTEGERS = [torch.int64, torch.int32, torch.uint8]
HALVES = [torch.float16, torch.bfloat16]
FLOATS = [torch.float32, torch.float64, *HALVES]


def whole(d, shape, dtype=None, low=-4, high=5, strided=True):
    """Integers (or truth values) of any dtype, with many that are equal."""
    dtype = dtype or d.choice([*INTEGERS, torch.bool])
    low, high = (0, 1) if dtype == torch.bool else (max(low, 0) if dtype == torch.uint8 else low, high)
    return d.ints(shape, low, high, dtype, strided=strided)


def anything(d, shape):
    return whole(d, shape) if d.flag() else d.tensor(shape, dtype=d.choice(FLOATS), grad=False)


def typed(name, build):
    CASES[f"{name}/typed"] = (build, False)


def along(name, function, high=3, dtypes=None, low=1, **draw):
    """`function(x, dim)` of integers."""

    def build(d):
        shape = d.shape(low, high, **draw)
        dim = d.dim(shape)
        x = whole(d, shape, d.choice(dtypes or INTEGERS))
        return Case([x], lambda x: function(x, dim), {"dim": dim})

    typed(name, build)


along("cumsum", torch.cumsum, dtypes=[*INTEGERS, torch.bool])
along("cumprod", torch.cumprod, dtypes=[*INTEGERS, torch.bool])
along("cummax", lambda x, dim: tuple(torch.cummax(x, dim)), empty=0)
along("cummin", lambda x, dim: tuple(torch.cummin(x, dim)), empty=0)
along("diff", lambda x, dim: torch.diff(x, dim=dim), empty=0)
along("max_with_indices", lambda x, dim: tuple(torch.max(x, dim)), empty=0)
along("min_with_indices", lambda x, dim: tuple(torch.min(x, dim)), empty=0)


def sorting(d):
    shape = d.shape(1, 3)
    dim, descending = d.dim(shape), d.flag()
    run = lambda x: tuple(torch.sort(x, dim=dim, descending=descending, stable=True))
    return Case([whole(d, shape)], run, {"dim": dim, "descending": descending})


typed("sort", sorting)


def two(name, function, dtypes=None, low=-4):
    """Operands of dtypes of their own, floats among them; small whole numbers, so that half precision is exact."""

    def build(d):
        a_shape, b_shape = d.broadcast(2)
        operands = []
        for shape in (a_shape, b_shape):
            dtype = d.choice(dtypes or [*INTEGERS, torch.bool, *FLOATS])
            if dtype.is_floating_point:
                x = d.ints(shape, low, 5).value.to(dtype)
                operands.append(Input(x, x, [], False))
            else:
                operands.append(whole(d, shape, dtype, low))
        return Case(operands, function, backward=False)

    typed(name, build)


for _name in ["add", "mul", "maximum", "minimum", "eq", "lt", "ge", "logical_and", "logical_or", "logical_xor"]:
    two(_name, getattr(torch, _name))
two("sub", torch.sub, [*INTEGERS, *FLOATS])
two("div", torch.div, low=1)
two("remainder", torch.remainder, [*INTEGERS, *FLOATS], low=1)
two("fmod", torch.fmod, [*INTEGERS, *FLOATS], low=1)
two("floor_divide", torch.floor_divide, [*INTEGERS, *FLOATS], low=1)
two("atan2", torch.atan2, low=1)
two("isin", lambda a, b: torch.isin(a.contiguous(), b.contiguous()), INTEGERS)


def power(d):
    a, b = whole(d, [3, 4], d.choice(INTEGERS)), whole(d, [4], d.choice(INTEGERS), low=0, high=4)
    return Case([a, b], torch.pow)


typed("pow", power)


def number(d):
    """A tensor and a number of another kind."""
    x = whole(d, d.shape())
    value = d.choice([True, 2, 2.5, 3])
    return Case([x], lambda x: x * value, {"scalar": value, "swapped": False})


typed("mul/number", number)


def wrapping(name, function):
    """Results beyond the dtype wrap around."""

    def build(d):
        dtype = d.choice(INTEGERS)
        info = torch.iinfo(dtype)
        ends = [info.min, info.max, info.max - 1, info.max // 2 + 1, 3, 1]
        a, b = (torch.tensor([d.choice(ends) for _ in range(10)], dtype=dtype) for _ in range(2))
        return Case([Input(a, a, [], False), Input(b, b, [], False)], function)

    CASES[f"{name}/wrapping"] = (build, False)


for _name in ["add", "sub", "mul", "maximum"]:
    wrapping(_name, getattr(torch, _name))


def choice(d):
    c, a, b = d.broadcast(3)
    return Case([d.mask(c), anything(d, a), anything(d, b)], torch.where)


typed("where_", choice)


def fill(d):
    x, m = d.broadcast(2)
    return Case([whole(d, x, d.choice(INTEGERS)), d.mask(m)], lambda x, m: x.masked_fill(m, 3), {"value": 3})


typed("masked_fill", fill)


def joined(d):
    shape = d.shape(1, 3, empty=0.2)
    dim = d.dim(shape)
    return Case([anything(d, shape) for _ in range(d.int(2, 3))], lambda *x: torch.cat(x, dim), {"dim": dim})


typed("cat", joined)


def limited(d):
    """Integers with whole limits and with broken ones."""
    x = whole(d, d.shape(), d.choice(INTEGERS))
    low, high = d.choice([(0, 3), (-1, 2), (1, 1)]) if d.flag() else d.choice([(0.5, 2.5), (-1.5, 1.5)])
    # The operation reads its limits as floats.
    return Case([x], lambda x: x.clamp(float(low), float(high)), {"min": low, "max": high})


typed("clamp", limited)


def picked(d):
    shape = d.shape(1, 3, empty=0)
    dim = d.dim(shape)
    own = [d.int(1, s) for s in shape]
    own[dim] = d.int(1, 6)
    return Case([whole(d, shape), d.index(own, shape[dim])], lambda x, i: x.gather(dim, i), {"dim": dim})


typed("gather", picked)


def added(d):
    shape = d.shape(1, 3, empty=0)
    dim, dtype = d.dim(shape), d.choice(INTEGERS)
    own = [d.int(1, s) for s in shape]
    own[dim] = d.int(1, 6)
    inputs = [whole(d, shape, dtype), d.index(own, shape[dim]), whole(d, own, dtype)]
    return Case(inputs, lambda x, i, s: x.scatter_add(dim, i, s), {"dim": dim})


typed("scatter_add", added)


def index_added(d):
    shape = d.shape(1, 3, empty=0)
    dim, dtype, n = d.dim(shape), d.choice(INTEGERS), d.int(1, 6)
    source = list(shape)
    source[dim] = n
    inputs = [whole(d, shape, dtype), d.index([n], shape[dim]), whole(d, source, dtype)]
    return Case(inputs, lambda x, i, s: x.index_add(dim, i, s), {"dim": dim})


typed("index_add", index_added)


def product(d):
    dtype = d.choice(INTEGERS)
    m, k, n = d.int(1, 5), d.int(1, 6), d.int(1, 5)
    a, b = ([m, k], [k, n]) if d.flag() else ([2, m, k], [k, n])
    return Case([whole(d, a, dtype), whole(d, b, dtype)], torch.matmul)


typed("matmul", product)


def reduced(name, function):
    def build(d):
        shape = d.shape(0, 4, empty=0)
        dims, keepdim = d.dims(shape), d.odd
        listed = list(range(len(shape))) if dims is None else [dims] if isinstance(dims, int) else dims
        return Case([whole(d, shape, d.choice(INTEGERS))], lambda x: function(x, listed, keepdim), {"dims": dims, "keepdim": keepdim})

    typed(name, build)


reduced("max", lambda x, dims, keepdim: torch.amax(x, dims, keepdim=keepdim))
reduced("min", lambda x, dims, keepdim: torch.amin(x, dims, keepdim=keepdim))
reduced("logsumexp", lambda x, dims, keepdim: torch.logsumexp(x, dims or 0, keepdim=keepdim))


def padded(d):
    x = whole(d, [d.int(1, 4), d.int(1, 4)], d.choice(INTEGERS))
    pairs = [[d.int(0, 2), d.int(0, 2)] for _ in range(d.int(1, 2))]
    flat = [p for pair in pairs for p in pair]
    return Case([x], lambda x: F.pad(x, flat, value=3), {"pairs": pairs, "value": 3})


typed("pad", padded)


def simple(name, function, dtypes=(*INTEGERS, torch.bool), rank=(0, 3)):
    typed(name, lambda d: Case([whole(d, d.shape(*rank), d.choice(dtypes))], function))


simple("unique", lambda x: torch.unique(x, return_inverse=True, return_counts=True))
simple("neg", torch.neg, INTEGERS)
simple("abs", torch.abs, INTEGERS)
simple("square", torch.square, INTEGERS)
simple("relu", torch.relu, INTEGERS)
simple("isfinite", torch.isfinite)
simple("isnan", torch.isnan)
simple("sigmoid", torch.sigmoid)
simple("sqrt", lambda x: torch.sqrt(x.abs() if x.dtype != torch.bool else x), [torch.uint8, torch.bool])
simple("trace", torch.trace, INTEGERS, (2, 2))


def converted(d):
    """Between all dtypes; floats beyond an integer's range are left out, they differ by machine in PyTorch."""
    names = {"bool": torch.bool, "u8": torch.uint8, "i32": torch.int32, "i64": torch.int64}
    names |= {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
    target = d.choice(names)
    if d.flag():
        x = whole(d, [3, 5], low=-300 if target not in ("u8",) else 0, high=255)
    else:
        x = d.tensor([3, 5], 0, 250, dtype=d.choice(FLOATS), grad=False)
    return Case([x], lambda x: x.to(names[target]), {"dtype": target})


typed("to_dtype", converted)


def in_place(name, function, low=-4):
    """The dtype stays."""

    def build(d):
        b, large = d.broadcast(2)
        a = list(torch.broadcast_shapes(b, large))
        dtype = d.choice([*INTEGERS, *FLOATS])
        x = whole(d, a, dtype, low) if not dtype.is_floating_point else d.tensor(a, dtype=dtype, grad=False)
        other = d.choice([dtype, torch.uint8, torch.bool] if not dtype.is_floating_point else [dtype, torch.int64, *FLOATS])
        if name == "sub_" and other == torch.bool:
            other = dtype
        y = whole(d, b, other, low) if not other.is_floating_point else d.tensor(b, dtype=other, grad=False)
        return Case([x, y], function, backward=False)

    typed(name, build)


in_place("add_", lambda a, b: a.clone().add_(b))
in_place("sub_", lambda a, b: a.clone().sub_(b))
in_place("mul_", lambda a, b: a.clone().mul_(b))
in_place("copy_", lambda a, b: a.clone().copy_(b))
