"""Cases for layers that work on planes and channels; tests/src/layers/convolution.rs has the other side."""

import torch
from torch import nn

from draw import Case, registry
from op_cases import both, fits, pair
from random_cases import EXACT, seeded

CASES, case = registry()


def with_parameters(layer, **tensors):
    """The layer with these tensors, which may be inputs of the case, as its parameters."""
    for name, tensor in tensors.items():
        delattr(layer, name)
        setattr(layer, name, tensor)
    return layer


# ---- convolutions: x, weight, bias if there is one ---------------------------------------------------------------------------


def convolution(name, rank, transposed=False):
    @case(name)
    def _(d):
        groups, kernel = d.choice([1, 1, 2]), [d.int(1, 3) for _ in range(rank)]
        channels, out = groups * d.int(1, 2), groups * d.int(1, 2)
        args = {"stride": d.int(1, 2), "dilation": d.int(1, 2), "groups": groups}
        if transposed:
            args["padding"] = d.int(0, 1) if min(kernel) == 3 else 0
            args["output_padding"] = d.int(0, max(args["stride"], args["dilation"]) - 1)
            size = [d.int(2, 4) for _ in kernel]
            weight = d.tensor([channels, out // groups, *kernel], strided=False)
        else:
            args["padding"] = d.choice([0, 1, "same", "valid"])
            if args["padding"] == "same":
                args["stride"] = 1
            pad = args["padding"] if isinstance(args["padding"], int) else 0
            args["padding_mode"] = d.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
            size = [fits(d.int(3, 6), k, args["dilation"], pad) for k in kernel]
            weight = d.tensor([out, channels // groups, *kernel], strided=False)
        bias = [d.tensor([out], strided=False)] * d.flag(0.7)
        x = d.tensor([d.int(1, 3)] * d.flag(0.8) + [channels, *size])

        def run(x, w, b=None):
            layer = getattr(nn, name)(channels, out, kernel, bias=b is not None, **args)
            return with_parameters(layer, weight=w, **({"bias": b} if b is not None else {}))(x)

        return Case([x, weight, *bias], run, args)


convolution("Conv1d", 1)
convolution("Conv2d", 2)
convolution("ConvTranspose1d", 1, transposed=True)
convolution("ConvTranspose2d", 2, transposed=True)


# ---- pools -------------------------------------------------------------------------------------------------------------------


def pool(name, rank, average=False):
    @case(name)
    def _(d):
        kernel = d.int(1, 3) if rank == 1 else pair(d, 1, 3)
        args = {"kernel_size": kernel, "stride": d.choice([None, d.int(1, 3)]), "padding": d.int(0, min(both(kernel)) // 2)}
        args["ceil_mode"] = d.flag(0.4)
        if average:
            args["count_include_pad"] = d.flag()
            if rank == 2:
                args["divisor_override"] = d.choice([None, None, 3])
        else:
            args["dilation"] = d.int(1, 2)
        size = [fits(d.int(2, 6), k, args.get("dilation", 1), 0) for k in both(kernel)[:rank]]
        x = d.tensor([d.int(1, 2)] * d.flag(0.8) + [d.int(1, 2), *size], distinct=not average)
        return Case([x], lambda x: getattr(nn, name)(**args)(x), args)


pool("MaxPool1d", 1)
pool("MaxPool2d", 2)
pool("AvgPool1d", 1, average=True)
pool("AvgPool2d", 2, average=True)


def adaptive(name, rank):
    @case(name)
    def _(d):
        size = d.int(1, 4) if rank == 1 else pair(d, 1, 4)
        x = d.tensor([d.int(1, 2), d.int(1, 2), *(d.int(2, 6) for _ in range(rank))], distinct=True)
        return Case([x], lambda x: getattr(nn, name)(size)(x), {"output_size": size})


for kind in ("Avg", "Max"):
    adaptive(f"Adaptive{kind}Pool1d", 1)
    adaptive(f"Adaptive{kind}Pool2d", 2)


# ---- norms: several batches in training, then one in evaluation ----------------------------------------------------------------


def tracked(name, low, high, defaults):
    """Inputs: batches `[steps, n, c, ..]`, weight and bias if there are any. Outputs: what the layer gives for each batch, then for
    the first in evaluation, then its running statistics, if it has any."""

    @case(name)
    def _(d):
        d.wide()
        steps, c = d.int(2, 4), d.int(1, 3)
        x = d.tensor([steps, d.int(3, 4), c, *(d.int(3, 4) for _ in range(d.int(low, high)))], strided=False, distinct=True)
        affine, track = d.flag(0.7), d.flag(0.7)
        bias = affine and (d.flag(0.8) or not defaults)
        momentum = d.choice([0.1, 0.3, None] if defaults else [0.1, 0.3])
        args = {"affine": affine, "bias": bias, "track_running_stats": track, "momentum": momentum, "eps": d.choice([1e-5, 1e-3])}
        parameters = [d.tensor([c], strided=False) for there in (affine, bias) if there]

        def run(x, *p):
            layer = getattr(nn, name)(c, **args).to(x.dtype)
            layer = with_parameters(layer, **dict(zip(("weight", "bias"), p)))
            out = [layer(batch) for batch in x]
            layer.eval()
            out.append(layer(x[0]))
            # Buffers are changed in place by later runs.
            return out + [b.clone() for b in layer.buffers()]

        return Case([x, *parameters], run, {"num_features": c, "steps": steps} | args)


tracked("BatchNorm1d", 0, 1, True)
tracked("BatchNorm2d", 2, 2, True)
tracked("InstanceNorm1d", 1, 1, False)
tracked("InstanceNorm2d", 2, 2, False)


@case("GroupNorm")
def _(d):
    groups = d.int(1, 3)
    c = groups * d.int(3, 4)  # of two values nothing but the order is left
    x = d.tensor([d.int(1, 3), c, *(d.int(2, 3) for _ in range(d.int(0, 2)))], distinct=True)
    affine = d.flag(0.7)
    args = {"affine": affine, "bias": affine and d.flag(0.8), "eps": d.choice([1e-5, 1e-2])}
    parameters = [d.tensor([c], strided=False) for there in (affine, args["bias"]) if there]

    def run(x, *p):
        return with_parameters(nn.GroupNorm(groups, c, **args), **dict(zip(("weight", "bias"), p)))(x)

    return Case([x, *parameters], run, {"num_groups": groups, "num_channels": c} | args)


# ---- sizes -------------------------------------------------------------------------------------------------------------------


@case("Upsample")
def _(d):
    mode = d.choice(["nearest", "bilinear", "bicubic"])
    args = {"mode": mode} | d.choice([{"size": [d.int(1, 7), d.int(1, 7)]}, {"size": d.int(1, 7)}, {"scale_factor": 2.0}])
    if mode != "nearest":
        args["align_corners"] = d.flag()
    return Case([d.tensor([1, d.int(1, 2), d.int(1, 4), d.int(1, 4)])], lambda x: nn.Upsample(**args)(x), args)


@case("PixelShuffle")
def _(d):
    r = d.int(1, 3)
    return Case([d.tensor([2, r * r, d.int(1, 3), 2])], nn.PixelShuffle(r), {"factor": r})


@case("PixelUnshuffle")
def _(d):
    r = d.int(1, 3)
    return Case([d.tensor([2, 2, d.int(1, 3) * r, 2 * r])], nn.PixelUnshuffle(r), {"factor": r})


@case("Unflatten")
def _(d):
    sizes = [d.int(1, 3), d.int(1, 3)]
    return Case(
        [d.tensor([2, sizes[0] * sizes[1], 2])], nn.Unflatten(1, sizes), {"dim": d.choice([1, -2]), "sizes": sizes}
    )


def channel_dropout(name, rank):
    @case(name)
    def _(d):
        """In evaluation, and training with p = 0: what does not depend on the mask."""
        p, training = d.choice([(0.5, False), (0.0, True)])
        layer = getattr(nn, name)(p).train(training)
        return Case([d.tensor([2, 3, *([2] * rank)])], layer, {"p": p, "training": training})


channel_dropout("Dropout1d", 1)
channel_dropout("Dropout2d", 2)


# ---- initial values ------------------------------------------------------------------------------------------------------------


@case("fresh_convolution")
def _(d):
    """Several layers in the order of construction."""
    groups, bias, kernel = d.choice([1, 2]), d.flag(), [d.int(1, 3), d.int(1, 3)]
    channels, out = groups * d.int(1, 3), groups * d.int(1, 3)
    args = {"in": channels, "out": out, "groups": groups, "bias": bias, "kernel": kernel}

    def run():
        options = {"groups": groups, "bias": bias}
        layers = [
            nn.Conv2d(channels, out, kernel, **options),
            nn.Conv1d(channels, out, kernel[0], **options),
            nn.BatchNorm2d(out),
            nn.ConvTranspose2d(channels, out, kernel, **options),
            nn.ConvTranspose1d(channels, out, kernel[1], **options),
        ]
        return [p.detach() for layer in layers for p in layer.parameters()]

    return seeded(d, run, args, EXACT)
