"""Values and gradients where functions bend or end: at limits, zeros of both signs, infinities and NaN.

Points at which PyTorch's vectorised and plain kernels disagree with each other, or f32 with f64, are left out."""

import math

import torch
import torch.nn.functional as F

import numeric_cases
import op_cases
from draw import Case, Input, registry

CASES, case = registry()

SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0]
ORDINARY = 0.3
"""Stands where a point had to go; inside the domain of nearly every function here."""


def leaf(x, grad=True):
    return Input(x, x, [], grad)


def same(a, b):
    return (a.isnan() & b.isnan()) | torch.isclose(a.double(), b.double(), 1e-3, 1e-6)


def value_and_gradients(function, inputs):
    inputs = [x.detach().clone().requires_grad_(True) for x in inputs]
    y = function(*inputs)
    if not y.requires_grad:
        return [y]
    return [y.detach(), *torch.autograd.grad(y, inputs, torch.full_like(y, 1.5), allow_unused=True)]


def agreed(function, *points):
    """Where PyTorch gives one answer, whichever kernel and precision it takes."""
    n = len(points[0])
    many = value_and_gradients(function, [p.repeat(64) for p in points])
    wide = value_and_gradients(function, [p.double() for p in points])
    keep = torch.ones(n, dtype=torch.bool)
    for i in range(n):
        one = value_and_gradients(function, [p[i : i + 1] for p in points])
        for of_one, of_many, of_wide in zip(one, many, wide):
            if of_one is not None:
                keep[i] &= bool(same(of_one[0], of_many[i]) & same(of_one[0], of_wide[i]))
    return keep


WITHOUT = {
    "acosh": [-math.inf],  # PyTorch has a gradient there, although there is no value
    "hardswish": [-math.inf],
}


def unary(name, function, args, points, ordinary=ORDINARY):
    # PyTorch's gradient has a sixth in f32, and nine digits of digamma's derivative.
    tolerance = {"backward": 1e-7} if name in ("hardsigmoid", "hardswish", "digamma") else None

    @case(f"{name}/kinks")
    def _(d):
        picked = [p for p in [*SPECIAL, *points] if p not in WITHOUT.get(name, []) for _ in range(1 if d.plain else d.int(0, 2))]
        x = torch.tensor(picked + [ordinary] * d.int(1, 9), dtype=d.dtype)
        x[~agreed(function, x)] = ordinary
        x = x[torch.randperm(len(x), generator=d.generator)]
        return Case([leaf(x)], function, args, tolerance=tolerance)


ENDS = {
    # name: points beyond the special ones
    "log": [-1.0, 1.0],
    "log1p": [-1.0, -2.0],
    "log2": [-1.0, 1.0],
    "log10": [-1.0, 1.0],
    "sqrt": [-1.0, 1.0],
    "rsqrt": [-1.0, 1.0],
    "floor": [2.0, -2.0, 2.5, -2.5],
    "ceil": [2.0, -2.0, 2.5, -2.5],
    "round": [0.5, 1.5, 2.5, -0.5, -1.5, -2.5],
    "trunc": [2.0, -2.0, 2.5, -2.5],
    "asin": [1.0, -1.0, 1.5, -1.5],
    "acos": [1.0, -1.0, 1.5, -1.5],
    "acosh": [1.0, 0.5],
    "atanh": [1.0, -1.0, 1.5, -1.5],
    "frac": [2.0, -2.0, 2.5, -2.5],
    "digamma": [1.0, 2.5, -1.5],  # at -1 PyTorch's gradient is some large number
}
for _name, (_function, *_) in (op_cases.UNARY | numeric_cases.UNARY).items():
    unary(_name, _function, {}, ENDS.get(_name, [1.0, -1.0]), 1.3 if _name == "acosh" else ORDINARY)

for _name, _function, _args, _points in [
    ("softplus", lambda x: F.softplus(x, 2.0, 5.0), {"beta": 2.0, "threshold": 5.0}, [2.5, 2.0, 3.0]),
    ("leaky_relu", lambda x: F.leaky_relu(x, 0.25), {"negative_slope": 0.25}, [1.0, -1.0]),
    ("elu", lambda x: F.elu(x, 0.5), {"alpha": 0.5}, [1.0, -1.0]),
    ("selu", F.selu, {}, [1.0, -1.0]),
    ("celu", lambda x: F.celu(x, 0.5), {"alpha": 0.5}, [1.0, -1.0]),
    ("relu6", F.relu6, {}, [6.0, 7.0, -1.0]),
    ("hardsigmoid", F.hardsigmoid, {}, [3.0, -3.0, 4.0, -4.0]),
    ("hardswish", F.hardswish, {}, [3.0, -3.0, 4.0, -4.0]),
    ("softsign", F.softsign, {}, [1.0, -1.0]),
    ("mish", F.mish, {}, [1.0, -1.0]),
    ("hardtanh", lambda x: F.hardtanh(x, -0.5, 2.0), {"min_val": -0.5, "max_val": 2.0}, [-0.5, 2.0, -1.0, 3.0]),
    ("hardshrink", lambda x: F.hardshrink(x, 0.5), {"lambd": 0.5}, [0.5, -0.5, 1.0, -1.0]),
    ("softshrink", lambda x: F.softshrink(x, 0.5), {"lambd": 0.5}, [0.5, -0.5, 1.0, -1.0]),
    ("threshold", lambda x: F.threshold(x, 1.5, 4.0), {"threshold": 1.5, "value": 4.0}, [1.5, 2.0]),
    ("clamp", lambda x: x.clamp(-0.5, 2.0), {"min": -0.5, "max": 2.0}, [-0.5, 2.0, -1.0, 3.0]),
    ("clamp_min", lambda x: x.clamp_min(-0.5), {"min": -0.5}, [-0.5, 1.0, -1.0]),
    ("clamp_max", lambda x: x.clamp_max(2.0), {"max": 2.0}, [2.0, 1.0, 3.0]),
    ("logit", lambda x: torch.logit(x, 0.25), {"eps": 0.25}, [0.25, 0.75, 1.0, 2.0, -1.0, 0.5]),
    ("logit/unlimited", lambda x: torch.logit(x), {"eps": None}, [0.5, 1.0, 2.0, -1.0]),
    ("nan_to_num", lambda x: x.nan_to_num(1.5, 7.0, -7.0), {"nan": 1.5, "posinf": 7.0, "neginf": -7.0}, [1.0]),
]:
    unary(_name, _function, _args, _points)


# ---- two operands ------------------------------------------------------------------------------------------------------------

PAIRED = [*SPECIAL, 1.0, -1.0, 2.5, -2.5, 49.0, 2.0]


def binary(name, function):
    @case(f"{name}/kinks")
    def _(d):
        if d.dtype == torch.bfloat16:
            d.dtype = torch.float32  # 49 / 49 would be all that fits
        n = 24
        a, b = (torch.tensor([d.choice(PAIRED) for _ in range(n)], dtype=d.dtype) for _ in range(2))
        bad = ~agreed(function, a, b)
        a[bad], b[bad] = 1.5, 0.7
        return Case([leaf(a), leaf(b)], function)


for _name in ["add", "sub", "mul", "div", "pow", "remainder", "maximum", "minimum", "atan2", "fmod", "xlogy", "hypot", "logaddexp"]:
    binary(_name, getattr(torch, _name))


@case("floor_divide/kinks")
def _(d):
    d.wide()
    a, b = (torch.tensor([d.choice([*PAIRED, 6.0, 0.1, 1e-10]) for _ in range(24)], dtype=d.dtype) for _ in range(2))
    bad = ~agreed(lambda a, b: torch.floor_divide(a.detach(), b.detach()), a, b)
    a[bad], b[bad] = 1.5, 0.7
    return Case([leaf(a), leaf(b)], torch.floor_divide, backward=False)


def scalar(name, function, numbers):
    @case(f"{name}/scalar_kinks")
    def _(d):
        d.wide()
        number, swapped = d.choice(numbers), d.flag()
        run = lambda x: function(*((torch.full((), number, dtype=x.dtype), x) if swapped else (x, number)))
        if name in ("maximum", "minimum", "atan2"):
            run = lambda x: function(*((torch.full_like(x, number), x)[:: 1 if swapped else -1]))
        x = torch.tensor([d.choice(PAIRED) for _ in range(14)], dtype=d.dtype)
        x[~agreed(run, x)] = 1.5
        if number == -0.5 and not swapped:
            x[x.signbit()] = 1.5  # PyTorch takes another function for the gradient than for the value
        return Case([leaf(x)], run, {"scalar": number, "swapped": swapped})


for _name, _numbers in {
    "div": [49.0, 2.0, -1.0, 3],
    "pow": [2.0, 3.0, 0.5, -1.0, 1.0, 0.0, -2.0, 2, 3, 1.5, -0.5],
    "remainder": [49.0, 2.0, -2.5, 3],
    "maximum": [1.0, 0.0, -2.5],
    "minimum": [1.0, 0.0, -2.5],
    "atan2": [1.0, 0.0, -2.5],
}.items():
    scalar(_name, getattr(torch, _name), _numbers)


@case("prelu/kinks")
def _(d):
    x = torch.tensor([*SPECIAL, 1.0, -1.0, 2.0] * 2, dtype=d.dtype).reshape(8, 2)
    x = x[torch.isfinite(x).all(1)]
    return Case([leaf(x), d.tensor([2], strided=False)], F.prelu)


@case("lerp/kinks")
def _(d):
    """Weights of 0 and 1 give the ends exactly, also of numbers of very different size."""
    d.wide()
    a = torch.tensor([1e8, 1.0, -3.0, 1e8], dtype=d.dtype)
    b = torch.tensor([1.0, 1e8, 1e8, -1e8], dtype=d.dtype)
    w = torch.tensor([1.0, 0.0, 1.0, 0.5], dtype=d.dtype)
    if d.flag() or d.plain:
        return Case([leaf(a), leaf(b), leaf(w)], torch.lerp)
    weight = d.choice([0.0, 1.0])
    return Case([leaf(a), leaf(b)], lambda a, b: torch.lerp(a, b, weight), {"weight": weight})


# ---- reductions --------------------------------------------------------------------------------------------------------------

ROWS = [
    [math.nan, 1.0, 2.0, 3.0],
    [math.inf, 1.0, 2.0, -1.0],
    [-math.inf, 1.0, 2.0, -1.0],
    [-math.inf] * 4,
    [math.inf] * 4,
    [math.inf, -math.inf, 0.0, 1.0],
    [math.inf, math.nan, -math.inf, 1.0],
    [0.0, -0.0, 0.0, -0.0],
    [2.0, 1.0, 2.0, 1.0],
    [0.0, 3.0, 0.0, -2.0],
    [0.0, 3.0, 1.0, -2.0],
    [5.0, 5.0, 5.0, 5.0],
]


def finite(row):
    return bool(row.isfinite().all())


def rows(name, function, args, gradient=True, allowed=lambda row: True):
    """Rows of 4 along the last dimension; a column of them must not differ."""

    @case(f"{name}/rows")
    def _(d):
        if name == "quantile":
            d.wide()
        usable = [row for row in ROWS if allowed(torch.tensor(row))]
        x = torch.tensor(usable if d.plain else [d.choice(usable) for _ in range(d.int(1, 9))], dtype=d.dtype)
        wide = value_and_rows(function, x.double(), gradient)
        keep = torch.ones(len(x), dtype=torch.bool)
        for other in (x, x.t().contiguous().t(), x.repeat(8, 1)):
            for a, b in zip(wide, value_and_rows(function, other, gradient)):
                a, b = a.double(), b[: len(x)].double()
                differs = ~((a.isnan() & b.isnan()) | torch.isclose(a, b, 1e-2, 1e-4))
                keep &= ~(differs.reshape(len(x), -1).any(1))
        x[~keep] = torch.tensor([0.5, -1.0, 2.0, 1.5], dtype=d.dtype)
        if not d.plain and d.flag():
            base = x.t().contiguous()
            return Case([Input(base, base.t(), [["permute", [1, 0]]], gradient)], function, args, backward=gradient)
        return Case([leaf(x, gradient)], function, args, backward=gradient)


def value_and_rows(function, x, gradient):
    x = x.detach().requires_grad_(gradient)
    ys = function(x)
    ys = [ys] if isinstance(ys, torch.Tensor) else list(ys)
    out = [y.detach() for y in ys]
    roots = [y for y in ys if y.requires_grad]
    if roots:
        out += torch.autograd.grad(roots, [x], [torch.full_like(y, 1.5) for y in roots])
    return [t.detach() for t in out]


LAST = {"dims": 1, "keepdim": False}
for _name, _function, _args, *_allowed in [
    ("sum", lambda x: x.sum(1), LAST),
    ("mean", lambda x: x.mean(1), LAST),
    ("prod", lambda x: x.prod(1), LAST, finite),
    ("max", lambda x: x.amax(1), LAST),
    ("min", lambda x: x.amin(1), LAST),
    ("logsumexp", lambda x: x.logsumexp(1), LAST),
    ("max_with_indices", lambda x: tuple(x.max(1)), {"dim": 1}),
    ("min_with_indices", lambda x: tuple(x.min(1)), {"dim": 1}),
    ("var", lambda x: x.var(1, correction=1), LAST | {"correction": 1}),
    ("std", lambda x: x.std(1, correction=1), LAST | {"correction": 1}),
    ("norm", lambda x: torch.linalg.vector_norm(x, 2, 1), LAST | {"p": 2}),
    ("norm/1", lambda x: torch.linalg.vector_norm(x, 1, 1), LAST | {"p": 1}),
    ("norm/3", lambda x: torch.linalg.vector_norm(x, 3, 1), LAST | {"p": 3}),
    ("norm/half", lambda x: torch.linalg.vector_norm(x, 0.5, 1), LAST | {"p": 0.5}, lambda row: finite(row) and bool(row.any())),
    ("norm/largest", lambda x: torch.linalg.vector_norm(x, math.inf, 1), LAST | {"p": "inf"}),
    ("norm/smallest", lambda x: torch.linalg.vector_norm(x, -math.inf, 1), LAST | {"p": "-inf"}),
    ("softmax", lambda x: x.softmax(1), {"dim": 1}),
    ("log_softmax", lambda x: x.log_softmax(1), {"dim": 1}),
    ("cumsum", lambda x: x.cumsum(1), {"dim": 1}),
    ("cumprod", lambda x: x.cumprod(1), {"dim": 1}, finite),
    ("cummax", lambda x: tuple(x.cummax(1)), {"dim": 1}),
    ("cummin", lambda x: tuple(x.cummin(1)), {"dim": 1}),
    ("logcumsumexp", lambda x: x.logcumsumexp(1), {"dim": 1}, finite),
    ("sort", lambda x: tuple(torch.sort(x, dim=1, stable=True)), {"dim": 1, "descending": False}),
    ("nansum", lambda x: x.nansum(1), {"dims": 1}),
]:
    rows(_name, _function, _args, True, *_allowed)
for _name, _function, _args in [
    # Which of equal elements has the gradient is open in PyTorch.
    ("quantile", lambda x: x.quantile(0.4, 1), LAST | {"q": 0.4}),
    ("argmax", lambda x: x.argmax(1), {"dim": 1, "keepdim": False}),
    ("argmin", lambda x: x.argmin(1), {"dim": 1, "keepdim": False}),
    ("argsort", lambda x: torch.argsort(x, dim=1, descending=True, stable=True), {"dim": 1, "descending": True}),
    ("any", lambda x: x.any(1), LAST),
    ("all", lambda x: x.all(1), LAST),
    ("count_nonzero", lambda x: x.count_nonzero(1), {"dims": 1}),
]:
    rows(_name, _function, _args, gradient=False)


# ---- losses ------------------------------------------------------------------------------------------------------------------


def loss(name, function, args, pairs):
    """Element by element: pairs of input and target at the bends."""

    @case(f"{name}/kinks")
    def _(d):
        d.wide()
        picked = pairs if d.plain else [d.choice(pairs) for _ in range(12)]
        x, t = (torch.tensor(column, dtype=d.dtype) for column in zip(*picked))
        return Case([leaf(x), leaf(t, False)], lambda x, t: function(x, t, reduction="none"), args | {"reduction": "none"})


BENDS = [(a, b) for a in (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, math.inf, math.nan) for b in (0.0, 1.0, 0.5)]
loss("L1Loss", F.l1_loss, {}, BENDS)
loss("MSELoss", F.mse_loss, {}, BENDS)
loss("SmoothL1Loss", lambda x, t, **o: F.smooth_l1_loss(x, t, beta=0.5, **o), {"beta": 0.5}, BENDS)
loss("SmoothL1Loss/sharp", lambda x, t, **o: F.smooth_l1_loss(x, t, beta=0.0, **o), {"beta": 0.0}, BENDS)
loss("HuberLoss", lambda x, t, **o: F.huber_loss(x, t, delta=0.5, **o), {"delta": 0.5}, BENDS)
LABELLED = [(a, b) for a in (0.0, 0.5, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan) for b in (1.0, -1.0)]
loss("HingeEmbeddingLoss", lambda x, t, **o: F.hinge_embedding_loss(x, t, margin=1.0, **o), {"margin": 1.0}, LABELLED)
loss("SoftMarginLoss", F.soft_margin_loss, {}, [(a, b) for a, b in LABELLED if math.isfinite(a)])
PROBABLE = [(a, b) for a in (0.0, 1.0, 0.5, 1e-30, 1e-5) for b in (0.0, 1.0, 0.5)]
loss("BCELoss", F.binary_cross_entropy, {}, PROBABLE)
loss(
    "BCEWithLogitsLoss",
    F.binary_cross_entropy_with_logits,
    {"weight": False, "pos_weight": False},
    [(a, b) for a in (0.0, 1.0, -90.0, 200.0, -200.0) for b in (0.0, 1.0, 0.5)],
)
loss(
    "KLDivLoss",
    lambda x, t, **o: F.kl_div(x, t, **o),
    {"log_target": False},
    [(a, b) for a in (0.0, -1.0, -200.0) for b in (0.0, 1.0, 0.5)],
)


@case("MarginRankingLoss/kinks")
def _(d):
    d.wide()
    x, y, t = (torch.tensor([d.choice(v) for _ in range(12)], dtype=d.dtype) for v in ([0.0, 1.0, 0.5], [0.0, 1.0, 0.5], [1.0, -1.0]))
    args = {"margin": 0.5, "reduction": "none"}
    return Case([leaf(x), leaf(y), leaf(t, False)], lambda x, y, t: F.margin_ranking_loss(x, y, t, **args), args)


@case("MultiMarginLoss/kinks")
def _(d):
    """Classes that lack exactly nothing."""
    d.wide()
    x = torch.tensor([[d.choice([0.0, 1.0, 2.0]) for _ in range(4)] for _ in range(5)], dtype=d.dtype)
    args = {"p": d.int(1, 2), "margin": 1.0, "reduction": "none"}
    return Case([leaf(x), d.index([5], 4)], lambda x, t: F.multi_margin_loss(x, t, **args), args)


@case("MultiLabelMarginLoss/kinks")
def _(d):
    d.wide()
    x = torch.tensor([[d.choice([0.0, 1.0, 2.0]) for _ in range(4)] for _ in range(3)], dtype=d.dtype)
    t = torch.tensor([[0, 2, -1, 0], [-1, 1, 2, 3], [3, 1, 0, 2]])
    return Case([leaf(x), leaf(t, False)], lambda x, t: F.multilabel_margin_loss(x, t, reduction="none"), {"reduction": "none"})


@case("CrossEntropyLoss/kinks")
def _(d):
    """Logits that are infinite or not numbers."""
    d.wide()
    x = torch.tensor(ROWS if d.plain else [d.choice(ROWS) for _ in range(6)], dtype=d.dtype)
    args = {"ignore_index": -100, "label_smoothing": 0.0, "reduction": "none"}
    return Case([leaf(x), d.index([len(x)], 4)], lambda x, t: F.cross_entropy(x, t, **args), args)


@case("CosineEmbeddingLoss/kinks")
def _(d):
    d.wide()
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0]], dtype=d.dtype)
    y = torch.tensor([[0.0, 1.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]], dtype=d.dtype)
    t = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=d.dtype)
    args = {"margin": 0.0, "reduction": "none"}
    run = lambda x, y, t: F.cosine_embedding_loss(x, y, t, **args)
    return Case([leaf(x), leaf(y), leaf(t, False)], run, args, reference=False)


@case("TripletMarginLoss/kinks")
def _(d):
    d.wide()
    a = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]], dtype=d.dtype)
    n = torch.tensor([[3.0, 0.0], [1.0, 4.0], [1.0, 0.0]], dtype=d.dtype)
    p = torch.tensor([[0.0, 2.0], [1.0, 3.0], [1.0, 0.0]], dtype=d.dtype)
    args = {"margin": 1.0, "p": 1.0, "eps": 0.0, "swap": d.flag(), "reduction": "none"}
    return Case([leaf(a), leaf(p), leaf(n)], lambda a, p, n: F.triplet_margin_loss(a, p, n, **args), args)


# ---- half precision near the end of its range --------------------------------------------------------------------------------


def large(name, function, args, *ranges):
    """f16: intermediate squares would be infinite where the result is not."""

    @case(f"{name}/large")
    def _(d):
        d.dtype = torch.float16
        inputs = [d.tensor([3, 5], *r, strided=False) for r in ranges]
        return Case(inputs, function, args, reference=False)


large("div", torch.div, {}, (300, 900), (300, 900))
large("norm", lambda x: torch.linalg.vector_norm(x, 2, 1), LAST | {"p": 2}, (300, 900))
large("std", lambda x: x.std(1, correction=1), LAST | {"correction": 1}, (-900, 900))
large("mean", lambda x: x.mean(1), LAST, (30000, 60000))
large("hypot", torch.hypot, {}, (300, 900), (300, 900))
large("softmax", lambda x: x.softmax(1), {"dim": 1}, (300, 900))
large("hardswish", F.hardswish, {}, (-900, 900))
large("gelu", F.gelu, {}, (-900, 900))
large("mish", F.mish, {}, (-900, 900))
large("silu", F.silu, {}, (-900, 900))
