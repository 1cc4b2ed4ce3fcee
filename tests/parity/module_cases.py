"""Cases for the activations that are more than a function, paddings and the rarer layers; tests/src/layers/modules.rs has the other side."""

import torch
import torch.nn.functional as F
from torch import nn

from convolution_cases import with_parameters
from draw import Case, registry
from op_cases import both, fits, pair
from random_cases import CLOSE, seeded

CASES, case = registry()


# ---- activations -------------------------------------------------------------------------------------------------------------


@case("Softmax2d")
def _(d):
    x = d.tensor([d.int(1, 2)] * d.flag() + [d.int(1, 4), d.int(1, 3), d.int(1, 3)])
    return Case([x], lambda x: nn.Softmax2d()(x))


@case("RReLU")
def _(d):
    """In evaluation: what does not depend on the drawn slopes."""
    args = {"lower": 0.1, "upper": d.choice([0.1, 0.4])}
    return Case([d.tensor(d.shape())], lambda x: F.rrelu(x, **args), args)


@case("PReLU")
def _(d):
    shape = d.shape(1, 4, empty=0)
    channels = shape[1] if len(shape) > 1 and d.flag() else 1
    return Case([d.tensor(shape), d.tensor([channels], strided=False)], F.prelu)


@case("AlphaDropout")
def _(d):
    p, training = d.choice([(0.5, False), (0.0, True)])
    return Case([d.tensor(d.shape())], lambda x: F.alpha_dropout(x, p, training), {"p": p, "training": training})


# ---- padding -----------------------------------------------------------------------------------------------------------------


def padding(name, rank, most=4, least=-2):
    @case(name)
    def _(d):
        sizes = [d.int(3, 6) for _ in range(rank)]
        sides = []
        for size in reversed(sizes):
            for _ in range(2):
                sides.append(d.int(least, most(size) if callable(most) else most))
            if sides[-2] + sides[-1] + size < 1 or sides[-2] < -size or sides[-1] < -size:
                sides[-2:] = [0, 1]
        args = {"padding": sides}
        if "Constant" in name:
            args["value"] = d.float(-2, 2)
        x = d.tensor([d.int(1, 2)] * d.flag(0.8) + [d.int(1, 2), *sizes])
        return Case([x], lambda x: getattr(nn, name)(tuple(sides), *([args["value"]] if "value" in args else []))(x), args)


for rank in (1, 2):
    padding(f"ZeroPad{rank}d", rank)
    padding(f"ConstantPad{rank}d", rank)
    padding(f"ReflectionPad{rank}d", rank, lambda size: size - 1, 0)
    padding(f"ReplicationPad{rank}d", rank, 4, 0)
    padding(f"CircularPad{rank}d", rank, lambda size: size, 0)


# ---- pools with their positions, and back ------------------------------------------------------------------------------------


def unpool(rank):
    @case(f"MaxUnpool{rank}d")
    def _(d):
        kernel = d.int(1, 3) if rank == 1 else pair(d, 1, 3)
        args = {"kernel_size": kernel, "stride": d.int(1, 3), "padding": d.int(0, min(both(kernel)) // 2)}
        size = [fits(d.int(3, 7), k, 1, 0) for k in both(kernel)[:rank]]
        given = size if d.flag(0.7) else None
        x = d.tensor([d.int(1, 2)] * d.flag(0.8) + [d.int(1, 2), *size], distinct=True)

        def run(x):
            y, at = getattr(nn, f"MaxPool{rank}d")(**args, return_indices=True)(x)
            sizes = [(n - 1) * args["stride"] - 2 * args["padding"] + k for n, k in zip(y.shape[-rank:], both(kernel))]
            if given is None and sizes != size:
                return [y, at]  # positions may lie outside
            # One position for two windows gets one number: that of the element there.
            torch.use_deterministic_algorithms(False)
            back = getattr(nn, f"MaxUnpool{rank}d")(**args)(y, at, given)
            torch.use_deterministic_algorithms(True)
            return [y, at, back]

        return Case([x], run, args | {"size": size, "given": given is not None})


unpool(1)
unpool(2)


# ---- the rest ----------------------------------------------------------------------------------------------------------------


@case("Unfold")
def _(d):
    kernel = pair(d, 1, 3)
    args = {"kernel_size": kernel, "dilation": d.int(1, 2), "padding": d.int(0, 1), "stride": d.int(1, 2)}
    size = [fits(d.int(3, 6), k, args["dilation"], 0) for k in both(kernel)]
    return Case([d.tensor([d.int(1, 2), d.int(1, 2), *size])], lambda x: nn.Unfold(**args)(x), args)


@case("Fold")
def _(d):
    kernel = pair(d, 1, 3)
    args = {"kernel_size": kernel, "dilation": d.int(1, 2), "padding": d.int(0, 1), "stride": d.int(1, 2)}
    size = [fits(d.int(3, 6), k, args["dilation"], 0) for k in both(kernel)]
    channels, area = d.int(1, 2), both(kernel)[0] * both(kernel)[1]
    windows = nn.Unfold(**args)(torch.zeros(1, 1, *size)).shape[-1]
    x = d.tensor([d.int(1, 2), channels * area, windows])
    return Case([x], lambda x: nn.Fold(size, **args)(x), args | {"output_size": size})


@case("ChannelShuffle")
def _(d):
    groups = d.int(1, 3)
    x = d.tensor([d.int(1, 2), groups * d.int(1, 3), *(d.int(1, 3) for _ in range(d.int(1, 2)))])
    return Case([x], lambda x: nn.ChannelShuffle(groups)(x), {"groups": groups})


@case("LocalResponseNorm")
def _(d):
    d.wide()
    args = {"size": d.int(1, 4), "alpha": d.choice([1e-4, 0.5]), "beta": d.choice([0.75, 1.5]), "k": d.choice([1.0, 2.0])}
    x = d.tensor([d.int(1, 2), d.int(1, 5), *(d.int(1, 3) for _ in range(d.int(1, 2)))])
    return Case([x], lambda x: F.local_response_norm(x, **args), args)


@case("Bilinear")
def _(d):
    d.wide()
    a, b, out = d.int(1, 4), d.int(1, 4), d.int(1, 3)
    shape = d.shape(0, 2, empty=0)
    inputs = [d.tensor([*shape, a]), d.tensor([*shape, b]), d.tensor([out, a, b], strided=False)]
    inputs += [d.tensor([out], strided=False)] * d.flag(0.7)
    return Case(inputs, F.bilinear)


@case("Embedding/max_norm")
def _(d):
    """Outputs: the vectors, and the table after the lookup."""
    d.wide()
    n, width = d.int(2, 8), d.int(1, 5)
    args = {"max_norm": d.choice([0.5, 1.5]), "norm_type": d.choice([2.0, 1.0])}

    def run(x, w):
        table = w.clone()
        return [F.embedding(x, table, **args), table.detach()]

    return Case([d.index(d.shape(1, 2, empty=0), n), d.tensor([n, width], strided=False)], run, {"padding_idx": None} | args)


@case("EmbeddingBag")
def _(d):
    d.wide()
    n, width = d.int(2, 8), d.int(1, 5)
    mode = d.choice(["sum", "mean", "max"])
    args = {
        "mode": mode,
        "padding_idx": d.choice([None, d.int(0, n - 1)]),
        "max_norm": d.choice([None, None, 1.0]),
        "include_last_offset": False,
    }
    weight = d.tensor([n, width], strided=False, distinct=True)
    if args["padding_idx"] is not None:
        weight.base[args["padding_idx"]] = 0
    if d.flag():
        tokens, offsets = d.index([d.int(1, 4), d.int(1, 4)], n), None
    else:
        tokens = d.index([d.int(1, 9)], n)
        count = tokens.base.numel()
        offsets = [0, *sorted(d.int(0, count) for _ in range(d.int(0, 3)))]
        args["include_last_offset"] = d.flag(0.3)
        if args["include_last_offset"]:
            offsets.append(count)
    weighted = mode == "sum" and d.flag()
    inputs = [tokens, weight] + [d.tensor(list(tokens.base.shape), strided=False)] * weighted

    def run(x, w, s=None):
        at = None if offsets is None else torch.tensor(offsets)
        return F.embedding_bag(x, w.clone(), at, per_sample_weights=s, **args)

    return Case(inputs, run, args | {"offsets": offsets})


@case("fresh_modules")
def _(d):
    a, b, out, bias = d.int(1, 5), d.int(1, 5), d.int(1, 4), d.flag()
    args = {"in1": a, "in2": b, "out": out, "bias": bias}

    def draw():
        made = [nn.Bilinear(a, b, out, bias=bias), nn.EmbeddingBag(a, b), nn.PReLU(out)]
        return [p.detach() for m in made for p in m.parameters()]

    return seeded(d, draw, args, CLOSE)
