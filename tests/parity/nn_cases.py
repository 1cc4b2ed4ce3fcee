"""Cases for layers, losses, optimizers, gradient clipping and learning-rate schedules; tests/src/layers.rs has the other side."""


import torch
import torch.nn.functional as F
from torch import nn

from draw import Case, Input, registry

CASES, case = registry()

REDUCTIONS = ["mean", "sum", "none"]


# ---- layers: the first input is the layer's, the others are its parameters ---------------------------------------------------


@case("Linear")
def _(d):
    k, n = d.int(1, 9), d.int(1, 7)
    bias = [d.tensor([n], strided=False)] if d.flag(0.7) else []
    x = d.tensor([*d.shape(0, 3, empty=0.05), k])
    return Case([x, d.tensor([n, k], strided=False), *bias], F.linear)


@case("Embedding")
def _(d):
    n, width = d.int(2, 8), d.int(1, 6)
    weight = d.tensor([n, width], strided=False)
    padding = d.choice([None, d.int(-n, n - 1)])
    if padding is not None:
        weight.base[padding] = 0
    # The padding token turns up, and its row gets no gradient.
    return Case(
        [d.index(d.shape(1, 2), n), weight],
        lambda x, w: F.embedding(x, w, padding),
        {"padding_idx": padding},
    )


@case("LayerNorm")
def _(d):
    width = d.int(3, 8)  # of two values nothing but the order is left, and gradients are differences of equal numbers
    eps = d.choice([1e-5, 1e-3])
    weight, bias = d.choice([(True, True), (True, False), (False, False)])
    x = d.tensor([*d.shape(1, 3, empty=0), width], distinct=True)
    parameters = [d.tensor([width], strided=False) for wanted in (weight, bias) if wanted]

    def run(x, *p):
        return F.layer_norm(x, [width], p[0] if weight else None, p[1] if bias else None, eps)

    return Case([x, *parameters], run, {"width": width, "weight": weight, "bias": bias, "eps": eps})


@case("RMSNorm")
def _(d):
    width, weight = d.int(2, 8), d.flag(0.7)
    eps = d.choice([None, 1e-6, 1e-3])
    x = d.tensor([*d.shape(1, 3, empty=0), width])
    parameters = [d.tensor([width], strided=False)] * weight
    return Case(
        [x, *parameters],
        lambda x, *p: F.rms_norm(x, [width], p[0] if p else None, eps),
        {"width": width, "weight": weight, "eps": eps},
        reference=eps is not None,
    )


ACTIVATIONS = {
    "ReLU": nn.ReLU(),
    "Sigmoid": nn.Sigmoid(),
    "Tanh": nn.Tanh(),
    "SiLU": nn.SiLU(),
    "LogSigmoid": nn.LogSigmoid(),
    "Identity": nn.Identity(),
    "GELU": nn.GELU(),
    "GELU(tanh)": nn.GELU(approximate="tanh"),
    "LeakyReLU": nn.LeakyReLU(0.2),
    "ELU": nn.ELU(1.3),
    "Softplus": nn.Softplus(2.0, 5.0),
    "Softmax": nn.Softmax(-1),
    "LogSoftmax": nn.LogSoftmax(-1),
    "Flatten": nn.Flatten(),
    "ReLU6": nn.ReLU6(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Hardswish": nn.Hardswish(),
    "Tanhshrink": nn.Tanhshrink(),
    "Softsign": nn.Softsign(),
    "Mish": nn.Mish(),
    "SELU": nn.SELU(),
    "CELU": nn.CELU(1.3),
    "Hardtanh": nn.Hardtanh(-0.7, 0.9),
    "Hardshrink": nn.Hardshrink(0.4),
    "Softshrink": nn.Softshrink(0.4),
    "Threshold": nn.Threshold(0.2, -3.0),
    "GLU": nn.GLU(),
    "Softmin": nn.Softmin(-1),
}


@case("activations", once=True)
def _(d):
    """Each as a layer, with options that are not the defaults."""
    x = d.tensor([3, 4, 2])
    return Case([x], lambda x: [layer(x) for layer in ACTIVATIONS.values()], {"names": list(ACTIVATIONS)})


@case("Dropout")
def _(d):
    """In evaluation, and training with p = 0: what does not depend on the mask."""
    p, training = d.choice([(0.5, False), (0.0, True)])
    return Case([d.tensor(d.shape())], lambda x: F.dropout(x, p, training), {"p": p, "training": training})


@case("Sequential")
def _(d):
    d.wide()
    a, b, c = d.int(1, 5), d.int(1, 5), d.int(1, 5)
    inputs = [d.tensor([d.int(1, 4), a])] + [d.tensor(s, -0.5, 0.5, strided=False) for s in ([b, a], [b], [c, b], [c])]
    return Case(inputs, lambda x, w, v, y, z: F.linear(torch.tanh(F.linear(x, w, v)), y, z))


# ---- losses ------------------------------------------------------------------------------------------------------------------


def logits_shape(d):
    """[n, classes], [classes], or with more dimensions behind the classes."""
    kind = d.choice(["rows", "rows", "one", "more"])
    classes = d.int(1, 6)
    if kind == "one":
        return [classes], 0
    rest = [d.int(1, 3) for _ in range(d.int(1, 2))] if kind == "more" else []
    return [d.int(1, 6), classes, *rest], 1


@case("CrossEntropyLoss")
def _(d):
    d.wide()
    shape, at = logits_shape(d)
    classes = shape[at]
    args = {
        "ignore_index": d.choice([-100, 0]),
        "label_smoothing": d.choice([0.0, 0.1, 0.3]),
        "reduction": d.choice(REDUCTIONS),
    }
    x = d.tensor(shape)
    if d.flag(0.25):
        p = torch.rand(shape, generator=d.generator).softmax(at).to(d.dtype)
        target = Input(p, p, [], d.flag(0.3))
        args["ignore_index"] = -100
    else:
        target = d.ints([s for i, s in enumerate(shape) if i != at], 0, classes - 1)
        if d.flag(0.4) and target.base.numel() > 1:
            target.base.view(-1)[0] = args["ignore_index"]
            target.base.view(-1)[1] = classes - 1  # something counts
    weight = [d.tensor([classes], 0.2, 2, grad=False, strided=False)] if d.flag(0.4) else []
    if target.base.dtype == torch.int64 and (target.base == args["ignore_index"]).all():
        args["ignore_index"] = -100  # the mean of nothing is NaN: see the case of its own
    return Case([x, target, *weight], lambda x, t, w=None: F.cross_entropy(x, t, w, **args), dict(args))


@case("CrossEntropyLoss/nothing_counts", once=True)
def _(d):
    x, t = d.tensor([3, 4]), torch.full((3,), -100)
    args = {"ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean"}
    return Case([x, Input(t, t, [], False)], lambda x, t: F.cross_entropy(x, t), args, backward=False)


@case("NLLLoss")
def _(d):
    d.wide()
    shape, at = logits_shape(d)
    classes = shape[at]
    args = {"ignore_index": d.choice([-100, -1]), "reduction": d.choice(REDUCTIONS)}
    target = d.ints([s for i, s in enumerate(shape) if i != at], 0, classes - 1)
    if d.flag(0.4) and target.base.numel() > 1:
        target.base.view(-1)[0] = args["ignore_index"]
    weight = [d.tensor([classes], 0.2, 2, grad=False, strided=False)] if d.flag(0.4) else []
    return Case([d.tensor(shape, -4, 0), target, *weight], lambda x, t, w=None: F.nll_loss(x.contiguous(), t, w, **args), dict(args))


@case("BCELoss")
def _(d):
    d.wide()
    shape, reduction = d.shape(1, 3, empty=0), d.choice(REDUCTIONS)
    inputs = [d.tensor(shape, 0.02, 0.98), d.tensor(shape, 0, 1, grad=False)]
    if d.flag(0.3):
        inputs.append(d.tensor(shape[-1:], 0.2, 2, grad=False, strided=False))
    return Case(
        inputs, lambda x, t, w=None: F.binary_cross_entropy(x, t, w, reduction=reduction), {"reduction": reduction}
    )


@case("BCELoss/certain", once=True)
def _(d):
    """Probabilities of 0 and 1: the logarithm is cut at -100."""
    x, t = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])
    return Case(
        [Input(x, x, [], False), Input(t, t, [], False)],
        lambda x, t: F.binary_cross_entropy(x, t, reduction="none"),
        {"reduction": "none"},
    )


@case("BCEWithLogitsLoss")
def _(d):
    d.wide()
    shape, reduction = d.shape(1, 3, empty=0), d.choice(REDUCTIONS)
    weight, pos_weight = d.flag(0.3), d.flag(0.3)
    inputs = [d.tensor(shape, -6, 6), d.tensor(shape, 0, 1, grad=False)]
    inputs += [d.tensor(shape[-1:], 0.2, 2, grad=False, strided=False) for wanted in (weight, pos_weight) if wanted]

    def run(x, t, *w):
        first = w[0] if weight else None
        return F.binary_cross_entropy_with_logits(x, t, first, reduction=reduction, pos_weight=w[-1] if pos_weight else None)

    return Case(inputs, run, {"reduction": reduction, "weight": weight, "pos_weight": pos_weight})


def regression(name, function, *options):
    @case(name)
    def _(d):
        d.wide()
        shape, reduction = d.shape(1, 3, empty=0), d.choice(REDUCTIONS)
        values = {option: d.float(0.3, 2) for option in options}
        return Case(
            [d.tensor(shape), d.tensor(shape)],
            lambda x, y: function(x, y, reduction=reduction, **values),
            {"reduction": reduction} | values,
        )


regression("MSELoss", F.mse_loss)
regression("L1Loss", F.l1_loss)
regression("SmoothL1Loss", F.smooth_l1_loss, "beta")
regression("HuberLoss", F.huber_loss, "delta")


@case("KLDivLoss")
def _(d):
    d.wide()
    shape, log_target = d.shape(1, 3, empty=0), d.flag()
    reduction = d.choice([*REDUCTIONS, "batchmean"])
    x = d.tensor(shape, -4, 0)
    y = d.tensor(shape, -4, 0) if log_target else d.tensor(shape, 0.05, 1)
    return Case(
        [x, y],
        lambda x, y: F.kl_div(x, y, reduction=reduction, log_target=log_target),
        {"reduction": reduction, "log_target": log_target},
    )


# ---- optimizers: 20 steps with given gradients -------------------------------------------------------------------------------

STEPS = 20


def optimizer(name, make, draw_options, case=case, rank=None, tolerance=None):
    """Inputs: two parameters, then their gradients `[steps, ..]`. Outputs: the parameters after every step.

    The long case goes through the same gradients 25 times, some of them zero, huge or tiny; its outputs are the parameters after each time."""

    @case(name)
    def _(d):
        return drawn(d, {})

    @case(f"{name}/long", once=True)
    def _(d):
        d.dtype = d.choice([torch.float32, torch.float64])
        return drawn(d, {"cycles": 25, "reload": d.int(1, 25 * STEPS - 1)})

    def drawn(d, more):
        d.wide()
        options = draw_options(d)
        cycles = more.get("cycles", 1)
        args = {"lr": d.choice([1e-3, 0.01, 0.1]), "options": options} | more
        if d.flag(0.3):
            args["second_lr"] = 0.02  # the second parameter in a group of its own
        if d.flag(0.3):
            args["skipped"] = d.int(0, STEPS - 1)  # the second parameter has no gradient in this step
        low, high = rank or (1, 2)
        shapes = [d.shape(low, high, size=3, empty=0), d.shape(*(rank or (0, 1)), size=3, empty=0)]
        params = [d.tensor(s, strided=False, grad=False) for s in shapes]
        grads = [d.tensor([STEPS, *s], strided=False, grad=False) for s in shapes]
        if more:
            for scale in (0.0, 0.0, 100.0, 1e-3, 1e-12):
                for g in grads:
                    g.base[d.int(0, STEPS - 1)] *= scale

        def run(*inputs):
            p = [nn.Parameter(x.clone()) for x in inputs[:2]]
            groups = [{"params": p[:1]}, {"params": p[1:], "lr": args["second_lr"]}] if "second_lr" in args else p
            made = make(groups, lr=args["lr"], **options)
            after = []
            for t in list(range(STEPS)) * cycles:
                for i in range(2):
                    p[i].grad = None if i == 1 and args.get("skipped") == t else inputs[2 + i][t].clone()
                made.step()
                if cycles == 1 or t + 1 == STEPS:
                    after.append([x.detach().clone() for x in p])
            return [torch.stack([a[i] for a in after]) for i in range(2)]

        return Case(params + grads, run, args, backward=False, tolerance=tolerance)


def sgd_options(d):
    options = {"weight_decay": d.choice([0.0, 0.01]), "maximize": d.flag(0.2)}
    if d.flag(0.7):
        options["momentum"] = d.choice([0.9, 0.5])
        kind = d.choice(["plain", "nesterov", "dampening"])
        if kind == "nesterov":
            options["nesterov"] = True
        elif kind == "dampening":
            options["dampening"] = 0.3
    return options


def adam_options(d):
    return {
        "betas": d.choice([(0.9, 0.999), (0.8, 0.95)]),
        "eps": d.choice([1e-8, 1e-4]),
        "weight_decay": d.choice([0.0, 0.01, 0.1]),
        "amsgrad": d.flag(0.3),
        "maximize": d.flag(0.2),
    }


optimizer("SGD", torch.optim.SGD, sgd_options)
optimizer("Adam", torch.optim.Adam, adam_options)
optimizer("AdamW", torch.optim.AdamW, adam_options)


@case("clip_grad_norm")
def _(d):
    d.wide()
    limit, p = d.choice([0.5, 1.0, 100.0]), d.choice([2, 1, "inf"])
    shapes = [d.shape(1, 2, empty=0), d.shape(0, 2, empty=0)]
    grads = [d.tensor(s, strided=False, grad=False) for s in shapes]
    if d.flag(0.3) and not d.plain:
        grads[0].base.view(-1)[-1] = d.choice([float("inf"), float("-inf"), float("nan")])
    elif d.flag(0.1):
        grads[0].base.zero_(), grads[1].base.zero_()

    def run(*grads):
        params = [nn.Parameter(torch.zeros_like(g)) for g in grads]
        for x, g in zip(params, grads):
            x.grad = g.clone()
        total = nn.utils.clip_grad_norm_(params, limit, float(p))
        return [total, *(x.grad for x in params)]

    return Case(grads, run, {"max_norm": limit, "p": p}, backward=False)


@case("clip_grad_value")
def _(d):
    limit = d.choice([0.3, 1.0])
    return Case([d.tensor(d.shape(), grad=False)], lambda g: g.clamp(-limit, limit), {"limit": limit}, backward=False)


# ---- schedules: the learning rates of two groups over some epochs -------------------------------------------------------------

EPOCHS = 24
RATES = [0.1, 0.03]
LAMBDAS = {"inverse": lambda t: 1 / (1 + t), "power": lambda t: 0.9**t}


def fresh_optimizer():
    return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in RATES], lr=1.0, momentum=0.9)


def build(optimizer, name, args):
    """A scheduler from its name and arguments, as the Rust side does it."""
    a = dict(args)
    if name == "LambdaLR":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, LAMBDAS[a["function"]])
    if name == "MultiplicativeLR":
        return torch.optim.lr_scheduler.MultiplicativeLR(optimizer, LAMBDAS[a["function"]])
    if name == "ChainedScheduler":
        return torch.optim.lr_scheduler.ChainedScheduler([build(optimizer, n, p) for n, p in a["schedulers"]])
    if name == "SequentialLR":
        parts = [build(optimizer, n, p) for n, p in a["schedulers"]]
        return torch.optim.lr_scheduler.SequentialLR(optimizer, parts, a["milestones"])
    return getattr(torch.optim.lr_scheduler, name)(optimizer, **a)


def rates(optimizer):
    return [float(g["lr"]) for g in optimizer.param_groups]


def schedule(name, draw_args, momentum=False):
    @case(name)
    def _(d):
        args = draw_args(d)
        optimizer = fresh_optimizer()
        scheduler = build(optimizer, name, args)
        row = lambda: rates(optimizer) + [g["momentum"] for g in optimizer.param_groups] * momentum
        rows = [row()]
        for t in range(EPOCHS):
            optimizer.step()
            scheduler.step(*([args["metrics"][t]] if "metrics" in args else []))
            rows.append(row())
        table = torch.tensor(rows, dtype=torch.float64)
        return Case([], lambda: table, {"rates": RATES, "epochs": EPOCHS, "schedule": args}, backward=False)


def step_args(d):
    return {"step_size": d.int(1, 8), "gamma": d.choice([0.1, 0.5])}


def linear_args(d):
    return {"start_factor": d.choice([1 / 3, 0.1]), "end_factor": d.choice([1.0, 0.8]), "total_iters": d.int(1, 12)}


def cosine_args(d):
    return {"T_max": d.int(2, 20), "eta_min": d.choice([0.0, 1e-3])}


def exponential_args(d):
    return {"gamma": d.choice([0.9, 0.5])}


def one_cycle_args(d):
    return {
        "max_lr": 0.5,
        "total_steps": EPOCHS + d.int(1, 9),
        "pct_start": d.choice([0.3, 0.5]),
        "anneal_strategy": d.choice(["cos", "linear"]),
        "three_phase": d.flag(),
        "div_factor": d.choice([25.0, 10.0]),
        "final_div_factor": d.choice([1e4, 100.0]),
    }


def cyclic_args(d):
    mode = d.choice(["triangular", "triangular2", "exp_range"])
    return {
        "base_lr": 0.01,
        "max_lr": 0.3,
        "step_size_up": d.int(1, 8),
        "step_size_down": d.choice([None, 3]),
        "mode": mode,
        "gamma": 0.95 if mode == "exp_range" else 1.0,
        "base_momentum": d.choice([0.8, 0.5]),
        "max_momentum": 0.9,
    }


def chained_args(d):
    table = {"LinearLR": linear_args, "ExponentialLR": exponential_args, "StepLR": step_args}
    return {"schedulers": [[n, table[n](d)] for n in d.rng.sample(list(table), d.int(1, 3))]}


schedule("MultiplicativeLR", lambda d: {"function": d.choice(LAMBDAS)})
schedule("CyclicLR", cyclic_args, momentum=True)
schedule("ChainedScheduler", chained_args)
schedule("LambdaLR", lambda d: {"function": d.choice(LAMBDAS)})
schedule("StepLR", step_args)
schedule("MultiStepLR", lambda d: {"milestones": sorted(d.int(1, EPOCHS) for _ in range(3)), "gamma": d.choice([0.1, 0.5])})
schedule("ConstantLR", lambda d: {"factor": d.choice([0.5, 1 / 3]), "total_iters": d.int(1, 10)})
schedule("LinearLR", linear_args)
schedule("ExponentialLR", exponential_args)
schedule("PolynomialLR", lambda d: {"total_iters": d.int(2, 20), "power": d.choice([1.0, 2.0])})
schedule("CosineAnnealingLR", cosine_args)
schedule(
    "CosineAnnealingWarmRestarts",
    lambda d: {"T_0": d.int(2, 6), "T_mult": d.int(1, 3), "eta_min": d.choice([0.0, 1e-3])},
)
schedule("OneCycleLR", one_cycle_args, momentum=True)


@case("SequentialLR")
def _(d):
    table = {
        "LinearLR": linear_args,
        "CosineAnnealingLR": cosine_args,
        "ExponentialLR": exponential_args,
        "StepLR": step_args,
    }
    names = [d.choice(table) for _ in range(d.int(2, 3))]
    parts = [[n, table[n](d)] for n in names]
    milestones = sorted(d.rng.sample(range(1, EPOCHS), len(parts) - 1))
    optimizer = fresh_optimizer()
    args = {"schedulers": parts, "milestones": milestones}
    scheduler = build(optimizer, "SequentialLR", args)
    rows = [rates(optimizer)]
    for _ in range(EPOCHS):
        optimizer.step()
        scheduler.step()
        rows.append(rates(optimizer))
    table = torch.tensor(rows, dtype=torch.float64)
    return Case([], lambda: table, {"rates": RATES, "epochs": EPOCHS, "schedule": args}, backward=False)


@case("ReduceLROnPlateau")
def _(d):
    args = {
        "mode": d.choice(["min", "max"]),
        "factor": d.choice([0.1, 0.5]),
        "patience": d.int(0, 4),
        "threshold": d.choice([1e-4, 0.1]),
        "threshold_mode": d.choice(["rel", "abs"]),
        "cooldown": d.int(0, 3),
        "min_lr": d.choice([0.0, 1e-3]),
    }
    metrics = [round(3 / (1 + 0.2 * min(t, 8)) + d.rng.uniform(-0.2, 0.2), 3) for t in range(EPOCHS)]
    optimizer = fresh_optimizer()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **args)
    rows = [rates(optimizer)]
    for metric in metrics:
        optimizer.step()
        scheduler.step(metric)
        rows.append(rates(optimizer))
    table = torch.tensor(rows, dtype=torch.float64)
    args |= {"metrics": metrics}
    return Case([], lambda: table, {"rates": RATES, "epochs": EPOCHS, "schedule": args}, backward=False)
