"""Cases for tensor operations that are composed of others; tests/src/numerics.rs has the other side."""

import math

import torch
import torch.nn.functional as F

from draw import Case, Input, registry

CASES, case = registry()

UNARY = {
    "asin": (torch.asin, -0.95, 0.95),
    "acos": (torch.acos, -0.95, 0.95),
    "sinh": (torch.sinh, -5, 5),
    "cosh": (torch.cosh, -5, 5),
    "asinh": (torch.asinh, -9, 9),
    "acosh": (torch.acosh, 1.1, 9),
    "atanh": (torch.atanh, -0.95, 0.95),
    "frac": (torch.frac, -5, 5),
    "exp2": (torch.exp2, -4, 4),
    "lgamma": (torch.lgamma, 0.1, 9),
    "digamma": (torch.digamma, 0.1, 9),
    "erfinv": (torch.erfinv, -0.98, 0.98),
}

for _name, (_function, _low, _high) in UNARY.items():

    @case(_name)
    def _(d, name=_name, function=_function, low=_low, high=_high):
        if not d.plain and name != "frac" and d.flag(0.15):
            return Case([d.ints(d.shape(), 1 if name in ("acosh", "digamma") else 0, 1, d.choice([torch.int64, torch.uint8]))], function)
        if not d.plain and d.flag(0.15):
            d.wide()
            return Case([d.special(d.shape(1, 2, size=8))], function, backward=False)
        # PyTorch's derivative of digamma has nine digits.
        tolerance = {"backward": 1e-8} if name == "digamma" and d.dtype == torch.float64 else None
        return Case([d.tensor(d.shape(), low, high)], function, tolerance=tolerance)


@case("lgamma/negative")
def _(d):
    x = d.wide().tensor(d.shape(1), 0.1, 0.9).value - d.int(1, 6)
    return Case([Input(x, x, [], True)], torch.lgamma)


@case("polygamma")
def _(d):
    n = d.int(0, 4)
    x = d.wide().tensor(d.shape(1), 0.3, 6).value
    if n >= 2 and not d.plain and d.flag():
        x = d.tensor(d.shape(1), 0.15, 0.85).value - d.int(1, 4)
    # PyTorch's first derivative of digamma has nine digits.
    tolerance = {"forward": 1e-8, "backward": 1e-8} if n < 2 and d.dtype == torch.float64 else None
    return Case([Input(x, x, [], True)], lambda x: torch.polygamma(n, x), {"n": n}, tolerance=tolerance)


for _name, _shifts in {"and": 0, "or": 0, "xor": 0, "left_shift": 1, "right_shift": 1}.items():

    @case(f"bitwise_{_name}")
    def _(d, function=getattr(torch, f"bitwise_{_name}"), shifts=_shifts):
        a_shape, b_shape = d.broadcast(2)
        dtypes = [torch.int64, torch.int32, torch.uint8] + [torch.bool] * (not shifts)
        dtype, other = (torch.int64, torch.int64) if d.plain else (d.choice(dtypes), d.choice(dtypes))
        sign = lambda t: 0 if t in (torch.uint8, torch.bool) else -100
        a = d.ints(a_shape, sign(dtype), 1 if dtype == torch.bool else 100, dtype, True)
        low, high = (-1, 40) if shifts else (sign(other), 1 if other == torch.bool else 100)
        if not d.plain and d.flag(0.3):
            number = d.int(0, 9)
            return Case([a], lambda x: function(x, number), {"scalar": number})
        return Case([a, d.ints(b_shape, max(low, sign(other)), high, other, True)], function)


@case("bitwise_not")
def _(d):
    dtype = torch.int64 if d.plain else d.choice([torch.int64, torch.int32, torch.uint8, torch.bool])
    return Case([d.ints(d.shape(), 0, 1 if dtype == torch.bool else 200, dtype, True)], torch.bitwise_not)


def divided(name, function, scalar=True, integers=True, backward=True):
    @case(name)
    def _(d):
        a_shape, b_shape = d.broadcast(2)
        sign = d.choice([1, -1])
        if not d.plain and integers and d.flag(0.4):
            dtype = d.choice([torch.int64, torch.int32])
            b = d.ints(b_shape, 1, 4, dtype).value * sign
            return Case([d.ints(a_shape, -9, 9, dtype, True), Input(b, b, [], False)], function)
        if not d.plain and scalar and d.flag(0.3):
            number = d.choice([2, -3, 0.75])
            return Case([d.tensor(a_shape)], lambda x: function(x, number), {"scalar": number}, backward=backward)
        low, high = (0.4, 3) if sign > 0 else (-3, -0.4)
        return Case([d.wide().tensor(a_shape), d.tensor(b_shape, low, high)], function, backward=backward)


divided("floor_divide", torch.floor_divide, backward=False)
divided("fmod", torch.fmod)


@case("div_")
def _(d):
    shape = d.shape(1, 3)
    if not d.plain and d.flag(0.3):
        number = d.choice([2, 0.5, -4])
        return Case([d.tensor(shape)], lambda x: x.clone().div_(number), {"scalar": number})
    return Case([d.tensor(shape), d.tensor(shape[d.int(0, len(shape)) :], 0.4, 3)], lambda a, b: a.clone().div_(b))


@case("xlogy")
def _(d):
    a, b = d.broadcast(2)
    if d.flag(0.3) and not d.plain:
        number = d.choice([2, 0.5])
        return Case([d.tensor(a)], lambda x: torch.xlogy(x, number), {"scalar": number})
    if d.flag(0.2) and not d.plain:
        return Case([d.wide().special([8]), d.special([8])], torch.xlogy, backward=False)
    return Case([d.tensor(a), d.tensor(b, 0.2, 4)], torch.xlogy)


@case("hypot")
def _(d):
    a, b = d.broadcast(2, high=3)
    return Case([d.tensor(a), d.tensor(b)], torch.hypot)


@case("logaddexp")
def _(d):
    a, b = d.broadcast(2)
    if d.flag(0.2) and not d.plain:
        return Case([d.wide().special([12]), d.special([12])], torch.logaddexp, backward=False)
    return Case([d.tensor(a), d.tensor(b)], torch.logaddexp)


for _name in ["addcmul", "addcdiv"]:

    @case(_name)
    def _(d, name=_name):
        d.wide()
        x, a, b = d.broadcast(3)
        value = d.choice([1, 2, -0.5])
        other = d.tensor(b, 0.4, 3) if name == "addcdiv" else d.tensor(b)
        return Case(
            [d.tensor(x), d.tensor(a), other],
            lambda x, a, b: getattr(torch, name)(x, a, b, value=value),
            {"value": value},
        )


@case("logit")
def _(d):
    eps = d.choice([None, 0.1])
    return Case([d.wide().tensor(d.shape(), 0.05, 0.95)], lambda x: torch.logit(x, eps), {"eps": eps})


@case("nan_to_num")
def _(d):
    nan, high, low = d.choice([0.0, 1.5]), d.choice([None, 7.0]), d.choice([None, -7.0])
    x = d.special(d.shape(1, 2))
    x.grad = True
    return Case([x], lambda x: torch.nan_to_num(x, nan, high, low), {"nan": nan, "posinf": high, "neginf": low})


@case("isclose")
def _(d):
    a = d.special([9]) if d.flag() else d.tensor([9])
    off = d.choice([0.0, 1e-6, 1e-3])
    b = Input(a.value * (1 + off), a.value * (1 + off), [], False)
    rtol, atol, equal_nan = d.choice([1e-5, 1e-2]), d.choice([1e-8, 0.0]), d.flag()
    return Case(
        [a, b],
        lambda a, b: torch.isclose(a, b, rtol, atol, equal_nan),
        {"rtol": rtol, "atol": atol, "equal_nan": equal_nan},
        backward=False,
    )


@case("isin")
def _(d):
    return Case([d.ints(d.shape(0, 3), 0, 9, strided=True), d.ints([d.int(0, 5)], 0, 9)], torch.isin)


@case("equal")
def _(d):
    a = d.ints(d.shape(0, 2), 0, 1)
    b = a if d.flag() else d.ints(list(a.value.shape), 0, 1)
    return Case([a, b], lambda a, b: torch.tensor(torch.equal(a, b)), backward=False)


# ---- running and order statistics --------------------------------------------------------------------------------------------

for _name in ["cummax", "cummin"]:

    @case(_name)
    def _(d, function=getattr(torch, _name)):
        shape = d.shape(1, 3, empty=0)
        dim = d.dim(shape)
        if d.flag(0.3):
            return Case([d.special(shape) if d.flag() else d.ints(shape, 0, 3)], lambda x: tuple(function(x, dim)), {"dim": dim}, backward=False)
        return Case([d.tensor(shape, distinct=True)], lambda x: tuple(function(x, dim)), {"dim": dim})


@case("logcumsumexp")
def _(d):
    d.wide()
    shape = d.shape(1, 3, empty=0)
    dim = d.dim(shape)
    return Case([d.tensor(shape)], lambda x: torch.logcumsumexp(x, dim), {"dim": dim})


@case("diff")
def _(d):
    shape = d.shape(1, 3, empty=0)
    dim = d.dim(shape)
    return Case([d.tensor(shape)], lambda x: torch.diff(x, dim=dim), {"dim": dim})


@case("quantile")
def _(d):
    d.wide()
    shape = d.shape(1, 3, empty=0)
    dim, keepdim, q = d.choice([None, d.dim(shape)]), d.odd, d.choice([0.0, 0.25, 0.5, 0.9, 1.0])
    args = {"q": q, "dims": dim, "keepdim": keepdim}
    run = lambda x: torch.quantile(x, q, dim, keepdim)
    if d.flag(0.2) and not d.plain:
        x = d.special(shape).value.nan_to_num(math.nan, 50, -50)
        return Case([Input(x, x, [], False)], run, args, backward=False)
    return Case([d.tensor(shape, distinct=True)], run, args)


@case("kthvalue")
def _(d):
    shape = d.shape(1, 3, empty=0)
    dim = d.dim(shape)
    k = d.int(1, shape[dim])
    return Case([d.tensor(shape, distinct=True)], lambda x: tuple(torch.kthvalue(x, k, dim)), {"k": k, "dim": dim})


for _name in ["var_mean", "std_mean"]:

    @case(_name)
    def _(d, function=getattr(torch, _name)):
        d.wide()
        shape = d.shape(1, 4, empty=0, ones=0)
        dims, correction = d.dims(shape), d.choice([1, 0])
        return Case(
            [d.tensor(shape, distinct=True)],
            lambda x: function(x, dims, correction=correction),
            {"dims": dims, "correction": correction},
        )


@case("count_nonzero")
def _(d):
    shape = d.shape(1, 3)
    dims = d.dims(shape)
    x = d.ints(shape, 0, 2, strided=True) if d.flag() else d.special(shape)
    return Case([x], lambda x: torch.count_nonzero(x, dims), {"dims": dims})


for _name in ["nansum", "nanmean"]:

    @case(_name)
    def _(d, function=getattr(torch, _name)):
        d.wide()
        shape = d.shape(1, 3, empty=0)
        dims = d.dims(shape)
        x = d.tensor(shape, strided=False)
        x.value[torch.rand(shape, generator=d.generator) < 0.3] = math.nan
        run = lambda x: function(x) if dims is None else function(x, dims)
        # The mean of nothing has no gradient to speak of.
        return Case([x], run, {"dims": dims}, backward=not run(x.value).isnan().any())


@case("bincount")
def _(d):
    n = d.int(0, 5)
    return Case([d.ints([d.int(0, 9)], 0, 6)], lambda x: torch.bincount(x, minlength=n), {"minlength": n})


@case("searchsorted")
def _(d):
    right = d.flag()
    if d.flag():
        edges = torch.sort(d.ints([d.int(1, 6)], 0, 9).value).values
        values = d.ints(d.shape(0, 3), -1, 10)
    else:
        lead = d.shape(1, 2, empty=0)
        edges = torch.sort(d.tensor([*lead, d.int(1, 6)], grad=False).value).values.contiguous()
        values = d.tensor([*lead, d.int(1, 4)], grad=False, strided=False)
    return Case(
        [Input(edges, edges, [], False), values],
        lambda e, v: torch.searchsorted(e, v, right=right),
        {"right": right},
        backward=False,
    )


# ---- products and distances --------------------------------------------------------------------------------------------------


def sizes(d):
    return d.int(1, 5), d.int(1, 6), d.int(1, 5)


@case("mm")
def _(d):
    m, k, n = sizes(d)
    return Case([d.tensor([m, k]), d.tensor([k, n])], torch.mm)


@case("bmm")
def _(d):
    (m, k, n), b = sizes(d), d.int(1, 3)
    return Case([d.tensor([b, m, k]), d.tensor([b, k, n])], torch.bmm)


@case("mv")
def _(d):
    m, k, _ = sizes(d)
    return Case([d.tensor([m, k]), d.tensor([k])], torch.mv)


for _name in ["addmm", "baddbmm"]:

    @case(_name)
    def _(d, name=_name):
        d.wide()
        (m, k, n), lead = sizes(d), [d.int(1, 3)] if name == "baddbmm" else []
        beta, alpha = d.choice([1, 0.5]), d.choice([1, -2])
        whole = [*lead, m, n]
        shape = d.choice([whole, [n], [m, 1]])
        return Case(
            [d.tensor(shape), d.tensor([*lead, m, k]), d.tensor([*lead, k, n])],
            lambda x, a, b: getattr(torch, name)(x, a, b, beta=beta, alpha=alpha),
            {"beta": beta, "alpha": alpha},
        )


@case("tensordot")
def _(d):
    d.wide()
    shared = [d.int(1, 4) for _ in range(d.int(0, 2))]
    a, b = [d.int(1, 3)] + shared, shared + [d.int(1, 3)]
    left, right = list(range(1, 1 + len(shared))), list(range(len(shared)))
    if d.flag():
        left = [n - len(a) for n in left]
    return Case(
        [d.tensor(a), d.tensor(b)], lambda a, b: torch.tensordot(a, b, dims=(left, right)), {"left": left, "right": right}
    )


@case("kron")
def _(d):
    return Case([d.tensor(d.shape(0, 3, size=3)), d.tensor(d.shape(0, 3, size=3))], lambda a, b: torch.kron(a.contiguous(), b.contiguous()))


@case("cross")
def _(d):
    d.wide()
    shape = d.shape(1, 3, empty=0)
    dim = d.dim(shape)
    shape[dim] = 3
    return Case([d.tensor(shape), d.tensor(shape)], lambda a, b: torch.linalg.cross(a, b, dim=dim), {"dim": dim})


@case("normalize")
def _(d):
    d.wide()
    shape = d.shape(1, 3, empty=0)
    dim, p = d.dim(shape), d.choice([2, 1, 3])
    return Case([d.tensor(shape)], lambda x: F.normalize(x, p, dim, 1e-12), {"p": p, "dim": dim, "eps": 1e-12})


@case("cdist")
def _(d):
    d.wide()
    lead_a, lead_b = d.broadcast(2, 0, 1, empty=0)
    m, k, n = sizes(d)
    p = d.choice([2, 1, 3])
    return Case(
        [d.tensor([*lead_a, m, k]), d.tensor([*lead_b, n, k])],
        lambda a, b: torch.cdist(a, b, p, compute_mode="donot_use_mm_for_euclid_dist"),
        {"p": p},
    )


# ---- places ------------------------------------------------------------------------------------------------------------------


@case("diag")
def _(d):
    k = d.int(-2, 2)
    return Case([d.tensor(d.shape(1, 2, empty=0))], lambda x: torch.diag(x, k), {"k": k})


@case("diag_embed")
def _(d):
    offset = d.int(-2, 2)
    return Case([d.tensor(d.shape(1, 3))], lambda x: torch.diag_embed(x, offset), {"offset": offset})


@case("trace")
def _(d):
    d.wide()
    return Case([d.tensor(d.shape(2, 2))], torch.trace)


for _name in ["tril_indices", "triu_indices"]:

    @case(_name)
    def _(d, function=getattr(torch, _name)):
        rows, columns, offset = d.int(0, 5), d.int(0, 5), d.int(-3, 3)
        return Case([], lambda: function(rows, columns, offset), {"rows": rows, "columns": columns, "offset": offset})


@case("rot90")
def _(d):
    shape = d.shape(2, 4)
    a, b = d.rng.sample(range(len(shape)), 2)
    k = d.int(-5, 5)
    return Case([d.tensor(shape)], lambda x: torch.rot90(x, k, [a, b]), {"k": k, "a": a, "b": b})


@case("index_copy")
def _(d):
    shape = d.shape(1, 3, empty=0)
    dim = d.dim(shape)
    index = d.rng.sample(range(shape[dim]), d.int(1, shape[dim]))
    index = torch.tensor(index)
    source = list(shape)
    source[dim] = len(index)
    return Case(
        [d.tensor(shape), Input(index, index, [], False), d.tensor(source)],
        lambda x, i, s: torch.index_copy(x, dim, i, s),
        {"dim": dim},
    )


@case("index_fill")
def _(d):
    shape = d.shape(1, 3, empty=0)
    dim, value = d.dim(shape), d.choice([0.5, -2.0])
    return Case(
        [d.tensor(shape), d.index([d.int(1, 3)], shape[dim])],
        lambda x, i: torch.index_fill(x, dim, i, value),
        {"dim": dim, "value": value},
    )


@case("index_put")
def _(d):
    """Index tensors at some dimensions; `at` says which. Without accumulate no position occurs twice."""
    d.wide()
    shape = d.shape(1, 4, empty=0)
    at = sorted(d.rng.sample(range(len(shape)), d.int(1, min(3, len(shape)))))
    accumulate = d.flag()
    if accumulate:
        shapes = d.broadcast(len(at), 0, 2, empty=0)
        indices = [d.ints(s, -shape[a], shape[a] - 1) for s, a in zip(shapes, at)]
    else:
        n = d.int(1, min(shape[a] for a in at))
        indices = [torch.tensor(d.rng.sample(range(shape[a]), n)) for a in at]
        indices = [Input(i, i, [], False) for i in indices]
    where = [slice(None)] * (at[-1] + 1)
    for a, i in zip(at, indices):
        where[a] = i.value
    found = list(torch.zeros(shape)[tuple(where)].shape)
    values = d.tensor(found[d.int(0, len(found)) :] if d.flag(0.3) else found)

    def run(x, values, *indices):
        where = [slice(None)] * (at[-1] + 1)
        for a, i in zip(at, indices):
            where[a] = i
        x = x.clone()
        if accumulate:
            # index_put_ takes index tensors only; what is not indexed goes behind.
            place = torch.arange(x.numel()).reshape(x.shape)[tuple(where)]
            flat = x.reshape(-1).index_add(0, place.reshape(-1), values.expand(place.shape).reshape(-1))
            return flat.reshape(x.shape)
        x[tuple(where)] = values
        return x

    return Case([d.tensor(shape), values, *indices], run, {"at": at, "accumulate": accumulate})


@case("masked_scatter")
def _(d):
    x, m = d.broadcast(2)
    whole = torch.broadcast_shapes(x, m)
    return Case([d.tensor(x), d.mask(m), d.tensor(list(whole))], torch.masked_scatter)


@case("scatter_reduce")
def _(d):
    d.wide()
    shape = d.shape(1, 3, empty=0)
    dim, reduce, include_self = d.dim(shape), d.choice(["sum", "mean", "prod", "amax", "amin"]), d.flag()
    inner = [d.int(1, n) for n in shape]
    inner[dim] = d.int(1, 6)
    source = inner  # PyTorch has no gradient for a larger one
    run = lambda x, i, s: torch.scatter_reduce(x, dim, i, s, reduce, include_self=include_self)
    args = {"dim": dim, "reduce": reduce, "include_self": include_self}
    index = d.index(inner, shape[dim])
    if not d.plain and d.flag(0.2) and reduce != "mean":
        return Case([d.ints(shape, 0, 5), index, d.ints(source, 0, 5)], run, args)
    if not d.plain and d.flag(0.2) and reduce[0] == "a":
        return Case([d.special(shape), index, d.special(source)], run, args, backward=False)
    if reduce == "prod" and not d.plain and d.flag():
        x, s = ((torch.rand(n, generator=d.generator) * 4).round().to(d.dtype) for n in (shape, source))  # zeros among them
        return Case([Input(x, x, [], True), index, Input(s, s, [], True)], run, args)
    return Case([d.tensor(shape, distinct=True), index, d.tensor(source, distinct=True)], run, args)


@case("take")
def _(d):
    shape = d.shape(0, 3, empty=0)
    n = math.prod(shape)
    return Case([d.tensor(shape), d.ints(d.shape(0, 2), -n, n - 1)], torch.take)
