"""Cases for what surrounds a training step: mixed precision, checkpoints, hooks, averaged weights; tests/src/layers/training.rs has
the other side."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint

from draw import Case, DTYPES, TOLERANCES, registry

CASES, case = registry()


# ---- autocast ----------------------------------------------------------------------------------------------------------------


def low_precision(d):
    d.dtype = torch.float32
    return d.choice(["f16", "bf16"])


def allowed(name, results, gradients):
    """What the low precision leaves: in f32 the same case would have errors of 1e-6, but another dtype."""
    forward, backward = TOLERANCES[DTYPES[name]]
    return {"forward": results * forward, "backward": gradients * backward}


def autocast(name, draw):
    """Inputs and a function of them, which runs under PyTorch's autocast: operands and gradients are f32."""

    @case(f"autocast/{name}")
    def _(d):
        dtype = low_precision(d)
        inputs, function, args = draw(d)

        def run(*x):
            with torch.autocast("cpu", DTYPES[dtype]):
                return function(*x)

        return Case(inputs, run, args | {"dtype": dtype}, reference=False, tolerance=allowed(dtype, 2, 2))


def drawn_linear(d):
    n, k = d.int(1, 6), d.int(1, 6)
    bias = [d.tensor([n], -1, 1)] if d.flag() else []
    return [d.tensor([*d.shape(1, 2, empty=0), k], -1, 1), d.tensor([n, k], -1, 1), *bias], F.linear, {}


def drawn_matmul(d):
    m, k, n = d.int(1, 6), d.int(1, 6), d.int(1, 6)
    batch = d.choice([[], [3]])
    return [d.tensor([*batch, m, k], -1, 1), d.tensor([*batch, k, n], -1, 1)], torch.matmul, {}


def drawn_convolution(d):
    inputs = [d.tensor([2, 3, 5, 4], -1, 1), d.tensor([4, 3, 3, 2], -1, 1)]
    inputs += [d.tensor([4], -1, 1)] if d.flag() else []
    return inputs, lambda x, w, b=None: F.conv2d(x, w, b, padding=1), {}


def drawn_attention(d):
    t, s, causal = d.int(2, 4), d.int(2, 4), d.flag()
    # Equal keys would leave nothing of a gradient but its rounding.
    inputs = [d.tensor([2, 2, n, 4], -1, 1, strided=False) for n in (t, s, s)]
    return inputs, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal), {"is_causal": causal}


autocast("linear", drawn_linear)
autocast("matmul", drawn_matmul)
autocast("conv2d", drawn_convolution)
autocast("scaled_dot_product_attention", drawn_attention)


@case("autocast/mlp")
def _(d):
    """Both lists in one model: the linear maps are low, exponential and loss are f32."""
    dtype = low_precision(d)
    n, k, h, out = d.int(1, 5), d.int(1, 6), d.int(1, 6), d.int(1, 4)
    inputs = [d.tensor([n, k], -1, 1), d.tensor([h, k], -0.5, 0.5), d.tensor([out, h], -1, 1), d.tensor([n, out], 30, 40, grad=False)]

    def run(x, first, second, target):
        with torch.autocast("cpu", DTYPES[dtype]):
            # Exponential and loss are f32 on PyTorch's list for GPUs only.
            y = F.linear(F.linear(x, first).float().exp(), second)
            return [y, F.mse_loss(y.float(), target)]

    return Case(inputs, run, {"dtype": dtype}, reference=False, tolerance=allowed(dtype, 2, 2))


RECURRENT = {"RNN": (nn.RNN, 1), "GRU": (nn.GRU, 3), "LSTM": (nn.LSTM, 4)}


@case("autocast/recurrent")
def _(d):
    """As on PyTorch's list for GPUs: operands, weights and states are low. (Its CPU list has no recurrent layer but one of oneDNN.)

    Expected is what is exact for the rounded operands: in half precision PyTorch on the CPU rounds in other places.
    """
    dtype = low_precision(d)
    kind = d.choice(RECURRENT)
    make, gates = RECURRENT[kind]
    steps, batch, features, hidden = d.int(1, 4), d.int(1, 3), d.int(1, 4), d.int(2, 5)
    layers, bidirectional = d.int(1, 2), d.flag(0.4)
    module = make(features, hidden, layers, bidirectional=bidirectional)
    names = [name for name, _ in module.named_parameters()]
    weights = [d.tensor(list(p.shape), -0.7, 0.7, strided=False) for p in module.parameters()]
    sides = layers * (2 if bidirectional else 1)
    state = [d.tensor([sides, batch, hidden], -1, 1) for _ in range(1 + (kind == "LSTM"))] if d.flag() else []

    def run(x, *rest):
        low = [t.to(DTYPES[dtype]).float() for t in (x, *rest)]
        x, parameters, state = low[0], dict(zip(names, low[1:])), low[1 + len(names) :]
        hx = (tuple(state) if kind == "LSTM" else state[0]) if state else None
        y, last = torch.func.functional_call(module, parameters, (x, hx))
        return [t.to(DTYPES[dtype]) for t in (y, *(last if kind == "LSTM" else [last]))]

    args = {
        "dtype": dtype,
        "kind": kind,
        "input_size": features,
        "hidden_size": hidden,
        "num_layers": layers,
        "bidirectional": bidirectional,
        "names": names,
    }
    x = d.tensor([steps, batch, features], -1, 1)
    # A state is rounded in every step, and from one layer to the next: docs/numerics.md has the reason.
    return Case([x, *weights, *state], run, args, reference=False, tolerance=allowed(dtype, 5, 3))


# ---- the scaler --------------------------------------------------------------------------------------------------------------

STEPS = 8


@case("GradScaler")
def _(d):
    """Given gradients, of which some overflow. Outputs: the parameter after every step, and the scale after every update."""
    d.dtype = torch.float32
    shape = d.shape(1, 2, empty=0)
    overflows = sorted(d.rng.sample(range(STEPS), d.int(0, 4)))
    args = {
        "init_scale": d.choice([4.0, 1024.0]),
        "growth_factor": d.choice([2.0, 4.0]),
        "backoff_factor": d.choice([0.5, 0.25]),
        "growth_interval": d.int(1, 3),
        "overflows": overflows,
        "max_norm": d.choice([None, 0.5]),
        "enabled": d.flag(0.85),
    }
    param = d.tensor(shape, strided=False, grad=False)
    grads = d.tensor([STEPS, *shape], strided=False, grad=False)

    def run(param, grads):
        p = nn.Parameter(param.clone())
        optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
        names = ["init_scale", "growth_factor", "backoff_factor", "growth_interval", "enabled"]
        scaler = torch.amp.GradScaler("cpu", **{name: args[name] for name in names})
        after, scales = [], []
        for t in range(STEPS):
            p.grad = scaler.scale(torch.ones((), dtype=grads.dtype)) * grads[t]
            if t in overflows and args["enabled"]:
                p.grad.view(-1)[-1] = float("inf") if t % 2 else float("nan")
            if args["max_norm"] is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_([p], args["max_norm"])
            scaler.step(optimizer)
            scaler.update()
            after.append(p.detach().clone())
            scales.append(scaler.get_scale())
        return [torch.stack(after), torch.tensor(scales, dtype=param.dtype)]

    return Case([param, grads], run, args, backward=False, reference=False)


# ---- checkpoints -------------------------------------------------------------------------------------------------------------


@case("checkpoint")
def _(d):
    d.wide()
    n, k, h = d.int(1, 4), d.int(1, 4), d.int(1, 5)
    nested = d.flag()
    inputs = [d.tensor(s, -1, 1, strided=False) for s in ([n, k], [h, k], [k, h])]

    def half(x, w):
        return torch.tanh(F.linear(x, w)) * x.sum(-1, keepdim=True)

    def whole(x, a, b):
        if nested:
            return half(checkpoint(half, x, a, use_reentrant=False), b)
        return half(half(x, a), b)

    def run(x, a, b):
        y = checkpoint(whole, x, a, b, use_reentrant=False)
        return checkpoint(whole, y, a, b, use_reentrant=False)

    return Case(inputs, run, {"nested": nested})


# ---- hooks -------------------------------------------------------------------------------------------------------------------


class Flat(nn.Module):
    """A module whose arguments and results are tensors: PyTorch's backward hooks see no others."""

    def __init__(self, inner, call):
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, *inputs):
        return self.call(self.inner, *inputs)


def lstm_call(lstm, x, *state):
    y, (h, c) = lstm(x, state or None)
    return y, h, c


HOOKED = {
    "Linear": lambda w: (nn.Linear(w, 3), lambda m, x: m(x)),
    "LSTM": lambda w: (nn.LSTM(w, w), lstm_call),
    "GRU": lambda w: (nn.GRU(w, w), lambda m, x, *h: m(x, *h)),
    "MultiheadAttention": lambda w: (nn.MultiheadAttention(w, 1), lambda m, q, k, v: m(q, k, v)),
    "product": lambda w: (nn.Linear(w, 3), lambda m, a, b: (m(a) * m(b), a + b, b.detach())),
}


@case("hooks")
def _(d):
    """What all hooks see, and the gradients that they leave. The backward pass is part of the case."""
    d.wide()
    kind, width, batch = d.choice(HOOKED), d.int(2, 4), d.int(1, 3)
    inner, call = HOOKED[kind](width)
    module = Flat(inner.double(), call)
    state = kind in ("LSTM", "GRU") and d.flag()
    count = {"Linear": 1, "LSTM": 1 + 2 * state, "GRU": 1 + state, "MultiheadAttention": 3, "product": 2}[kind]
    steps = d.int(1, 3)
    shapes = [[steps, batch, width]] + [[1, batch, width] if state else [steps, batch, width]] * (count - 1)
    inputs = [d.tensor(s, -1, 1, strided=False) for s in shapes]
    names = [name for name, _ in inner.named_parameters()]
    parameters = [d.tensor(list(p.shape), -0.7, 0.7, strided=False) for p in inner.parameters()]
    wanted = [d.flag(0.8) for _ in range(count)]
    args = {
        "kind": kind,
        "width": width,
        "state": state,
        "count": count,
        "names": names,
        "wanted": wanted,
        "replace": d.choice(["nothing", "inputs", "outputs", "gradients"]),
        "used": d.choice(["first", "all"]),
    }

    def run(*all):
        leaves = [x.detach().clone().requires_grad_(w) for x, w in zip(all, wanted)]
        seen, replace = [], args["replace"]

        def see(values):
            seen.extend(torch.zeros(1, dtype=all[0].dtype) if v is None else v.detach().clone() for v in values)

        def listed(outputs):
            return outputs if isinstance(outputs, tuple) else (outputs,)

        def pre(module, inputs):
            see(inputs)
            return tuple(x * 2 for x in inputs) if replace == "inputs" else None

        def forward(module, inputs, outputs):
            see(inputs)
            see(listed(outputs))
            if replace == "outputs":
                changed = tuple(y * 3 for y in listed(outputs))
                return changed if isinstance(outputs, tuple) else changed[0]

        def backward(module, grad_inputs, grad_outputs):
            see(grad_inputs)
            see(grad_outputs)
            if replace == "gradients":
                return tuple(None if g is None else g * 0.5 for g in grad_inputs)

        handles = [
            module.register_forward_pre_hook(pre),
            module.register_forward_hook(forward),
            module.register_full_backward_hook(backward),
        ]
        weights = {f"inner.{name}": p.detach() for name, p in zip(names, all[count:])}
        first = f"inner.{names[0]}"
        weights[first] = weights[first].clone().requires_grad_()  # something wants a gradient
        outputs = listed(torch.func.functional_call(module, weights, tuple(leaves)))
        used = outputs if args["used"] == "all" else outputs[:1]
        sum((y * (i + 1)).square().sum() for i, y in enumerate(used) if y.requires_grad).backward()
        for handle in handles:
            handle.remove()
        grads = [x.grad if x.grad is not None else torch.zeros_like(x) for x, w in zip(leaves, wanted) if w]
        return [*seen, *grads, weights[first].grad]

    return Case([*inputs, *parameters], run, args, backward=False)


# ---- averaged weights --------------------------------------------------------------------------------------------------------


@case("AveragedModel")
def _(d):
    """A batch norm with given weights and statistics in every step; outputs: those of its average after every step."""
    d.wide()
    n = d.int(1, 4)
    args = {"num_features": n, "decay": d.choice([None, 0.9, 0.5]), "use_buffers": d.flag()}
    values = [d.tensor([STEPS, n], 0.1, 2, strided=False, grad=False) for _ in range(4)]

    def run(*values):
        model = nn.BatchNorm1d(n).to(values[0].dtype)
        targets = [model.weight, model.bias, model.running_mean, model.running_var]
        ema = args["decay"] and swa_utils.get_ema_multi_avg_fn(args["decay"])
        average = swa_utils.AveragedModel(model, multi_avg_fn=ema, use_buffers=args["use_buffers"])
        rows = []
        for t in range(STEPS):
            with torch.no_grad():
                for target, value in zip(targets, values):
                    target.copy_(value[t])
            model.num_batches_tracked += 1
            average.update_parameters(model)
            m = average.module
            rows.append(torch.stack([m.weight, m.bias, m.running_mean, m.running_var]).detach().clone())
        # An average of counts, which PyTorch takes with the buffers, is cut to a whole number in every step.
        counts = [] if args["use_buffers"] else [average.module.num_batches_tracked]
        return [torch.stack(rows), average.n_averaged, *counts]

    return Case(values, run, args, backward=False)
