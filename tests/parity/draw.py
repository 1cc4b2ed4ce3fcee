"""Random shapes, strides and values, and what a case is made of."""

import dataclasses
import math
from typing import Callable

import torch

DTYPES = {
    "bool": torch.bool,
    "u8": torch.uint8,
    "i32": torch.int32,
    "i64": torch.int64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
}
NAMES = {v: k for k, v in DTYPES.items()}

# Forward and backward, relative: the table of tests/src/compare.rs.
TOLERANCES = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (5e-3, 3e-2),
    torch.bfloat16: (2e-2, 1e-1),
}


def tolerance_for(dtype):
    return TOLERANCES[dtype]


@dataclasses.dataclass
class Input:
    """A tensor to store and the views that turn it into the operand."""

    base: torch.Tensor
    value: torch.Tensor
    views: list
    grad: bool

    def describe(self, key, backward):
        out = {"key": key}
        if self.views:
            out["view"] = self.views
        if self.grad and backward and self.value.is_floating_point():
            out["grad"] = True
        return out


@dataclasses.dataclass
class Case:
    inputs: list
    run: Callable
    args: dict = dataclasses.field(default_factory=dict)
    backward: bool = True
    """Whether gradients are part of the case."""
    reference: bool = True
    """Whether the same function in f64 tells how exact the f32 result is."""
    tolerance: dict | None = None
    dtype: torch.dtype = torch.float32
    seed: int = 0


def apply_view(x, view):
    """A view operation as in the fixtures."""
    kind, *p = view
    if kind == "permute":
        return x.permute(p[0])
    if kind == "slice":
        dim, start, length, step = p
        return x.narrow(dim, start, (length - 1) * step + 1 if length else 0)[
            (slice(None),) * dim + (slice(None, None, step),)
        ]
    if kind == "flip":
        return x.flip(p[0])
    if kind == "expand":
        return x.expand(p[0])
    raise ValueError(kind)


class Draw:
    """The random source of one case. Repeat 0 is the plain one: f32, contiguous, not empty."""

    nasty = False
    """More dtypes, views of views, dimensions of no and of one element."""

    def __init__(self, rng, repeat):
        self.rng = rng
        self.plain = repeat == 0
        self.odd = repeat % 2 == 1
        self.early = repeat < 2
        self.generator = torch.Generator().manual_seed(rng.getrandbits(60))
        names = ["f32"] * (4 if self.nasty else 14) + ["f64"] * 3 + ["f16", "bf16"]
        self.dtype = torch.float32 if self.plain else DTYPES[rng.choice(names)]

    # ---- numbers

    def int(self, low, high):
        """Both ends included."""
        return self.rng.randint(low, high)

    def choice(self, options):
        return self.rng.choice(list(options))

    def flag(self, p=0.5):
        return self.rng.random() < p

    def float(self, low, high):
        return round(self.rng.uniform(low, high), 3)

    def wide(self):
        """Restrict to f32 and f64: for compositions whose half-precision roundings differ legitimately."""
        if self.dtype not in (torch.float32, torch.float64):
            self.dtype = torch.float32
        return self

    # ---- shapes

    def shape(self, low=0, high=4, size=5, empty=0.03, ones=0.15):
        low = max(low, 1) if self.plain else low
        if self.nasty:
            empty, ones = 5 * empty, 2 * ones
        rank = self.rng.randint(low, max(low, high))
        biggest = {0: size, 1: size * 4, 2: size + 2}.get(rank, size)
        dims = [1 if self.flag(ones) else self.rng.randint(2, max(2, biggest)) for _ in range(rank)]
        while math.prod(dims) > 80:
            at = max(range(rank), key=lambda i: dims[i])
            dims[at] = dims[at] // 2
        if rank and not self.plain and self.flag(empty):
            dims[self.rng.randrange(rank)] = 0
        return dims

    def broadcast(self, n=2, low=0, high=4, empty=0.03):
        """`n` shapes that broadcast to each other."""
        whole = self.shape(low, high, empty=empty)
        out = []
        for _ in range(n):
            shape = [1 if self.flag(0.25) else s for s in whole]
            out.append(shape[self.rng.randint(0, len(shape)) if self.flag(0.3) else 0 :])
        return out

    def dim(self, shape):
        """A dimension of `shape`, sometimes counted from the end."""
        d = self.rng.randrange(max(len(shape), 1))
        return d - len(shape) if self.flag(0.4) and shape else d

    def dims(self, shape):
        """None (all), one dimension, or several different ones."""
        if not shape or self.flag(0.2):
            return None
        if self.flag(0.4):
            return self.dim(shape)
        chosen = self.rng.sample(range(len(shape)), self.rng.randint(1, len(shape)))
        return [d - len(shape) if self.flag(0.4) else d for d in chosen]

    # ---- tensors

    def tensor(self, shape, low=None, high=None, dtype=None, grad=True, strided=True, distinct=False, values=None, expand=True):
        """Normal values, or even ones between `low` and `high`; often strided."""
        dtype = dtype or self.dtype
        if values is not None:
            x = values.to(dtype)
        elif distinct:
            n = math.prod(shape)
            x = torch.randperm(n, generator=self.generator).double().reshape(shape) / max(n, 1) * 8 - 4
        elif low is None:
            x = torch.randn(shape, generator=self.generator, dtype=torch.float64) * 1.5
        else:
            x = torch.rand(shape, generator=self.generator, dtype=torch.float64) * (high - low) + low
        x = x.to(dtype)
        if self.plain or not strided or not shape or x.numel() == 0 or not self.flag(0.9 if self.nasty else 0.45):
            return Input(x, x, [], grad)
        return self.strided(x, grad, expand=expand and not distinct)

    def strided(self, x, grad=True, expand=True):
        """`x` as views of another tensor (with `expand`, sometimes made constant along a dimension)."""
        views = []
        base = x
        for _ in range(self.rng.randint(1, 4 if self.nasty else 2)):
            kind = self.choice(["permute", "slice", "flip", "permute", "slice"] + ["expand"] * expand)
            if kind == "permute":
                order = self.rng.sample(range(base.dim()), base.dim())
                views.insert(0, ["permute", order])
                base = base.permute([order.index(i) for i in range(base.dim())])
            elif kind == "flip":
                dims = self.rng.sample(range(base.dim()), self.rng.randint(1, base.dim()))
                views.insert(0, ["flip", dims])
                base = base.flip(dims)
            elif kind == "slice":
                dim, start, step = self.rng.randrange(base.dim()), self.rng.randint(0, 2), self.rng.randint(1, 3)
                n = base.shape[dim]
                views.insert(0, ["slice", dim, start, n, step])
                sizes = list(base.shape)
                sizes[dim] = start + (n - 1) * step + 1 + self.rng.randint(0, 1)
                wide = torch.ones(sizes, dtype=base.dtype)
                wide.narrow(dim, start, (n - 1) * step + 1)[(slice(None),) * dim + (slice(None, None, step),)] = base
                base = wide
            elif not views:
                dim = self.rng.randrange(base.dim())
                views.insert(0, ["expand", list(base.shape)])
                base = base.narrow(dim, 0, 1)
        base = base.contiguous()
        value = base
        for v in views:
            value = apply_view(value, v)
        return Input(base, value, views, grad)

    def ints(self, shape, low, high, dtype=torch.int64, strided=False):
        """Integers, both ends included."""
        x = torch.randint(low, high + 1, shape, generator=self.generator).to(dtype)
        if strided and shape and x.numel() and self.flag(0.4):
            return self.strided(x, grad=False)
        return Input(x, x, [], False)

    def index(self, shape, size):
        """Positions below `size`."""
        return self.ints(shape, 0, size - 1)

    def mask(self, shape, p=0.5):
        x = torch.rand(shape, generator=self.generator) < p
        if shape and x.numel() and self.flag(0.4):
            return self.strided(x, grad=False)
        return Input(x, x, [], False)

    def special(self, shape, dtype=None):
        """Values with NaN, infinities, zeros of both signs and extremes among them."""
        dtype = dtype or self.dtype
        odd = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 30.0, -30.0]
        x = torch.tensor([self.choice(odd) if self.flag(0.7) else self.rng.gauss(0, 2) for _ in range(math.prod(shape))])
        return Input(x.reshape(shape).to(dtype), x.reshape(shape).to(dtype), [], False)


def registry():
    """An empty table of cases and the decorator that fills it."""
    cases = {}

    def case(name, once=False):
        def add(build):
            assert name not in cases, name
            cases[name] = (build, once)
            return build

        return add

    return cases, case
