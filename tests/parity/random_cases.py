"""The numbers that follow `manual_seed`: PyTorch's CPU generator, bit for bit where nothing but exact arithmetic is involved.

Normal numbers go through log, sine and cosine, which libraries round differently: 2 units in the last place.
"""

import torch

from draw import DTYPES, Case, registry

CASES, case = registry()

EXACT = {"ulp": 0}
CLOSE = {"ulp": 2}


def seeded(d, run, args, tolerance):
    """A case without operands: the seed is drawn here and set before PyTorch draws."""
    seed = d.choice([0, 1, 42, d.int(0, 2**31), d.int(0, 2**40)])
    torch.manual_seed(seed)
    values = run()
    values = values if isinstance(values, (list, tuple)) else [values]
    return Case([], lambda: values, {"seed": seed} | args, backward=False, tolerance=tolerance)


def float_dtype(d):
    return "f32" if d.plain else d.choice(["f32", "f32", "f64"])


@case("rand")
def _(d):
    shape, dtype = d.shape(), float_dtype(d)
    return seeded(d, lambda: torch.rand(shape, dtype=DTYPES[dtype]), {"shape": shape, "dtype": dtype}, EXACT)


@case("uniform")
def _(d):
    n, dtype, low, high = d.int(1, 40), float_dtype(d), d.float(-3, 0), d.float(0.1, 3)
    return seeded(
        d,
        lambda: torch.empty(n, dtype=DTYPES[dtype]).uniform_(low, high),
        {"shape": [n], "dtype": dtype, "low": low, "high": high},
        EXACT,
    )


@case("randn/sizes", once=True)
def _(d):
    """Every length up to 40, one after the other: short ones, blocks of 16, and what is left over."""
    lengths = list(range(1, 41))
    return seeded(d, lambda: torch.cat([torch.randn(n) for n in lengths]), {"lengths": lengths, "dtype": "f32"}, CLOSE)


@case("randn/sizes_f64", once=True)
def _(d):
    lengths = list(range(1, 41))
    run = lambda: torch.cat([torch.randn(n, dtype=torch.float64) for n in lengths])
    return seeded(d, run, {"lengths": lengths, "dtype": "f64"}, CLOSE)


@case("randn")
def _(d):
    shape, dtype = d.shape(0, 3), float_dtype(d)
    return seeded(d, lambda: torch.randn(shape, dtype=DTYPES[dtype]), {"shape": shape, "dtype": dtype}, CLOSE)


@case("randn/large", once=True)
def _(d):
    """A length that is no multiple of anything: the last numbers of it."""
    n = 3001
    return seeded(d, lambda: torch.randn(n)[-64:].clone(), {"shape": [n], "last": 64, "dtype": "f32"}, CLOSE)


@case("rand/large", once=True)
def _(d):
    n = 5003
    return seeded(d, lambda: torch.rand(n)[-64:].clone(), {"shape": [n], "last": 64, "dtype": "f32"}, EXACT)


@case("normal")
def _(d):
    n, mean, std = d.int(1, 40), d.float(-2, 2), d.float(0.1, 3)
    run = lambda: torch.empty(n).normal_(mean, std)
    return seeded(d, run, {"shape": [n], "dtype": "f32", "mean": mean, "std": std}, {"forward": 1e-6})


@case("randperm")
def _(d):
    n = d.int(0, 50)
    return seeded(d, lambda: torch.randperm(n), {"n": n}, EXACT)


@case("randint")
def _(d):
    low = d.int(-10, 10)
    high = low + d.choice([1, 2, 10, 1000, 2**33])
    return seeded(d, lambda: torch.randint(low, high, (20,)), {"low": low, "high": high, "shape": [20]}, EXACT)


@case("mixed_draws")
def _(d):
    """Different kinds of draws in turn share one stream, with its cached normal number."""
    kinds = [d.choice(["rand", "randn", "randperm", "randn"]) for _ in range(6)]
    sizes = [d.int(1, 20) for _ in kinds]
    draws = {"rand": torch.rand, "randn": torch.randn, "randperm": torch.randperm}
    return seeded(d, lambda: [draws[k](n) for k, n in zip(kinds, sizes)], {"kinds": kinds, "sizes": sizes}, CLOSE)


# ---- layers and initialisers: what a fresh model starts from -------------------------------------------------------------------


@case("fresh_linear")
def _(d):
    k, n = d.int(1, 12), d.int(1, 12)
    return seeded(d, lambda: [p.detach() for p in torch.nn.Linear(k, n).parameters()], {"in": k, "out": n}, EXACT)


@case("fresh_embedding")
def _(d):
    n, width = d.int(1, 12), d.int(1, 8)
    padding = d.choice([None, 0])
    return seeded(
        d,
        lambda: torch.nn.Embedding(n, width, padding_idx=padding).weight.detach(),
        {"n": n, "width": width, "padding_idx": padding},
        CLOSE,
    )


@case("fresh_model")
def _(d):
    """Several layers in the order of construction."""
    n, width, hidden = d.int(3, 9), d.int(2, 6), d.int(2, 6)

    def run():
        layers = [torch.nn.Embedding(n, width), torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, 2)]
        return [p.detach() for layer in layers for p in layer.parameters()]

    return seeded(d, run, {"n": n, "width": width, "hidden": hidden}, CLOSE)


INITS = {
    "uniform_": lambda w: torch.nn.init.uniform_(w, -0.5, 2.0),
    "normal_": lambda w: torch.nn.init.normal_(w, 0.5, 2.0),
    "xavier_uniform_": lambda w: torch.nn.init.xavier_uniform_(w, 1.5),
    "xavier_normal_": lambda w: torch.nn.init.xavier_normal_(w, 1.5),
    "kaiming_uniform_": lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    "kaiming_uniform_(fan_out)": lambda w: torch.nn.init.kaiming_uniform_(w, 0.2, mode="fan_out"),
    "kaiming_normal_": lambda w: torch.nn.init.kaiming_normal_(w, nonlinearity="tanh"),
    "eye_": torch.nn.init.eye_,
    "constant_": lambda w: torch.nn.init.constant_(w, 0.3),
}


@case("init")
def _(d):
    shape = [d.int(1, 9), d.int(1, 9)]

    def run():
        out = []
        for name, f in INITS.items():
            w = torch.empty(shape)
            f(w)
            out.append(w)
        return out

    # Normal numbers are scaled after the logarithm and the sine: a relative error, not a number of ulps.
    return seeded(d, run, {"shape": shape, "names": list(INITS)}, {"forward": 1e-6})
