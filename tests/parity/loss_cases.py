"""Cases for the losses that are not in nn_cases.py; tests/src/layers/losses.rs has the other side."""

import torch
import torch.nn.functional as F

from draw import Case, Input, registry

CASES, case = registry()

REDUCTIONS = ["mean", "sum", "none"]


def constant(x):
    """An operand without gradient and strides of its own."""
    return Input(x, x, [], False)


def signs(d, shape):
    """Targets of 1 and -1."""
    return constant((torch.rand(shape, generator=d.generator) < 0.5).to(d.dtype) * 2 - 1)


@case("CosineSimilarity")
def _(d):
    d.wide()
    shape = d.shape(1, 3, empty=0)
    dim = d.int(-len(shape), len(shape) - 1)
    shape[dim] = max(shape[dim], 2)  # the angle between numbers is 0: its gradient is nothing but rounding
    last = dim in (-1, len(shape) - 1)  # a vector of one number, broadcast, gets a gradient of nothing but rounding
    other = shape if not last or d.flag(0.7) else [1] * (len(shape) - 1) + shape[-1:]
    args = {"dim": dim, "eps": d.choice([1e-8, 0.1])}
    return Case([d.tensor(shape), d.tensor(other)], lambda x, y: F.cosine_similarity(x, y, **args), dict(args))


@case("PairwiseDistance")
def _(d):
    d.wide()
    shape = d.shape(1, 3, empty=0)
    args = {"p": d.choice([2.0, 1.0, 3.0]), "eps": d.choice([1e-6, 0.01]), "keepdim": d.flag()}
    return Case([d.tensor(shape), d.tensor(shape)], lambda x, y: F.pairwise_distance(x, y, **args), dict(args))


@case("CosineEmbeddingLoss")
def _(d):
    d.wide()
    shape = d.shape(1, 2, empty=0)
    shape[-1] = max(shape[-1], 2)  # the angle between numbers is 0: its gradient is nothing but rounding
    args = {"margin": d.choice([0.0, -0.5, 0.3]), "reduction": d.choice(REDUCTIONS)}
    inputs = [d.tensor(shape), d.tensor(shape), signs(d, shape[:-1])]
    return Case(inputs, lambda x, y, t: F.cosine_embedding_loss(x, y, t, **args), dict(args))


@case("TripletMarginWithDistanceLoss")
def _(d):
    d.wide()
    shape = d.shape(1, 3, empty=0)
    args = {"margin": d.choice([1.0, 3.0]), "swap": d.flag(), "reduction": d.choice(REDUCTIONS)}
    distance = lambda a, b: ((a - b) * (a + 0.5 * b)).sum(-1)
    run = lambda a, p, n: F.triplet_margin_with_distance_loss(a, p, n, distance_function=distance, **args)
    return Case([d.tensor(shape) for _ in range(3)], run, dict(args))


@case("MultiMarginLoss")
def _(d):
    d.wide()
    classes, batch = d.int(1, 5), [d.int(1, 5)] * d.flag(0.8)
    args = {"p": d.int(1, 2), "margin": d.choice([1.0, 0.3]), "reduction": d.choice(REDUCTIONS)}
    inputs = [d.tensor([*batch, classes]), d.index(batch, classes)]
    inputs += [d.tensor([classes], 0.2, 2, grad=False, strided=False)] * d.flag(0.4)
    return Case(inputs, lambda x, t, w=None: F.multi_margin_loss(x, t, weight=w, **args), dict(args))


@case("MultiLabelMarginLoss")
def _(d):
    d.wide()
    classes, batch = d.int(1, 5), [d.int(1, 5)] * d.flag(0.8)
    args = {"reduction": d.choice(REDUCTIONS)}
    rows = []
    for _ in range(batch[0] if batch else 1):
        chosen = d.rng.sample(range(classes), d.int(0, classes))
        rows.append(chosen + [-1] * (classes - len(chosen)))
    target = constant(torch.tensor(rows if batch else rows[0]))
    return Case([d.tensor([*batch, classes]), target], lambda x, t: F.multilabel_margin_loss(x, t, **args), dict(args))


@case("TripletMarginLoss")
def _(d):
    d.wide()
    shape = d.shape(1, 3, empty=0)
    args = {
        "margin": d.choice([1.0, 3.0]),
        "p": d.choice([2.0, 1.0, 3.0]),
        "eps": 1e-6,
        "swap": d.flag(),
        "reduction": d.choice(REDUCTIONS),
    }
    return Case([d.tensor(shape) for _ in range(3)], lambda a, p, n: F.triplet_margin_loss(a, p, n, **args), dict(args))


@case("MarginRankingLoss")
def _(d):
    shape = d.wide().shape(1, 3, empty=0)
    args = {"margin": d.choice([0.0, 0.5]), "reduction": d.choice(REDUCTIONS)}
    inputs = [d.tensor(shape), d.tensor(shape), signs(d, shape)]
    return Case(inputs, lambda x, y, t: F.margin_ranking_loss(x, y, t, **args), dict(args))


@case("HingeEmbeddingLoss")
def _(d):
    shape = d.wide().shape(1, 3, empty=0)
    args = {"margin": d.choice([1.0, 0.5]), "reduction": d.choice(REDUCTIONS)}
    return Case([d.tensor(shape), signs(d, shape)], lambda x, t: F.hinge_embedding_loss(x, t, **args), dict(args))


@case("SoftMarginLoss")
def _(d):
    shape = d.wide().shape(1, 3, empty=0)
    args = {"reduction": d.choice(REDUCTIONS)}
    return Case([d.tensor(shape), signs(d, shape)], lambda x, t: F.soft_margin_loss(x, t, **args), dict(args))


@case("MultiLabelSoftMarginLoss")
def _(d):
    shape = d.wide().shape(1, 3, empty=0)
    args = {"reduction": d.choice(REDUCTIONS)}
    inputs = [d.tensor(shape, -5, 5), d.tensor(shape, 0, 1, grad=False)]
    if d.flag(0.4):
        inputs.append(d.tensor(shape[-1:], 0.2, 2, grad=False, strided=False))
    return Case(inputs, lambda x, t, w=None: F.multilabel_soft_margin_loss(x, t, w, **args), dict(args))


@case("SigmoidFocalLoss")
def _(d):
    d.wide()
    shape = d.shape(1, 3, empty=0)
    args = {"alpha": d.choice([0.25, -1.0, 0.6]), "gamma": d.choice([2.0, 0.0, 1.5]), "reduction": d.choice(REDUCTIONS)}

    def run(x, t):
        """As torchvision.ops.sigmoid_focal_loss defines it."""
        p = torch.sigmoid(x)
        missed = 1 - (p * t + (1 - p) * (1 - t))
        loss = F.binary_cross_entropy_with_logits(x, t, reduction="none") * missed ** args["gamma"]
        if args["alpha"] >= 0:
            loss = loss * (args["alpha"] * t + (1 - args["alpha"]) * (1 - t))
        return loss if args["reduction"] == "none" else getattr(loss, args["reduction"])()

    return Case([d.tensor(shape, -4, 4), d.tensor(shape, 0, 1, grad=False)], run, dict(args))


@case("PoissonNLLLoss")
def _(d):
    shape = d.wide().shape(1, 3, empty=0)
    args = {"log_input": d.flag(), "full": d.flag(), "eps": d.choice([1e-8, 0.01]), "reduction": d.choice(REDUCTIONS)}
    inputs = [d.tensor(shape, 0.1, 3), d.tensor(shape, 0, 6, grad=False)]
    return Case(inputs, lambda x, t: F.poisson_nll_loss(x, t, **args), dict(args))


@case("GaussianNLLLoss")
def _(d):
    shape = d.wide().shape(1, 3, empty=0)
    args = {"full": d.flag(), "eps": d.choice([1e-6, 0.5]), "reduction": d.choice(REDUCTIONS)}
    variance = d.choice([shape, [*shape[:-1], 1], shape[:-1]])
    inputs = [d.tensor(shape), d.tensor(shape), d.tensor(variance, 0.1, 2)]
    return Case(inputs, lambda x, t, v: F.gaussian_nll_loss(x, t, v, **args), dict(args))


@case("CTCLoss")
def _(d):
    """Of logits, and (half of the time) of log-probabilities that are inputs themselves."""
    d.wide()
    steps, batch, classes = d.int(1, 9), d.int(1, 4), d.int(2, 6)
    blank = d.choice([0, classes - 1])
    longest = d.int(1, 4)
    lengths = [d.int(0, longest) for _ in range(batch)]
    # Two steps per label are always enough.
    inputs = [min(steps, d.int(1, steps)) for _ in range(batch)]
    lengths = [min(n, (t + 1) // 2) for n, t in zip(lengths, inputs)]
    args = {
        "blank": blank,
        "input_lengths": inputs,
        "target_lengths": lengths,
        "zero_infinity": d.flag(0.3),
        "reduction": d.choice(REDUCTIONS),
        "logits": d.flag(),
        "batched": batch > 1 or d.flag(),
    }
    labels = torch.randint(0, classes - 1, (batch, longest), generator=d.generator)
    labels = labels + (labels >= blank).long()
    if d.flag():
        labels = torch.cat([row[:n] for row, n in zip(labels, lengths)])
    elif not args["batched"]:
        labels = labels[0]
        args["target_lengths"] = lengths = [min(lengths[0], labels.numel())]
        labels = labels[: lengths[0]]
    x = d.tensor([steps, batch, classes] if args["batched"] else [steps, classes])

    def run(x, targets):
        log_probs = F.log_softmax(x, -1) if args["logits"] else x
        shaped = lambda n: torch.tensor(n if args["batched"] else n[0])
        return F.ctc_loss(
            log_probs,
            targets,
            shaped(inputs),
            shaped(lengths),
            blank=blank,
            reduction=args["reduction"],
            zero_infinity=args["zero_infinity"],
        )

    return Case([x, constant(labels)], run, args)


@case("CTCLoss/too_long", once=True)
def _(d):
    x = torch.randn(3, 2, 4, generator=d.generator)
    labels = torch.tensor([[1, 1, 1], [2, 3, 1]])
    args = {
        "blank": 0,
        "input_lengths": [3, 3],
        "target_lengths": [3, 3],
        "zero_infinity": True,
        "reduction": "none",
        "logits": True,
        "batched": True,
    }

    def run(x, targets):
        lengths = torch.tensor([3, 3])
        return F.ctc_loss(F.log_softmax(x, -1), targets, lengths, lengths, reduction="none", zero_infinity=True)

    return Case([Input(x, x, [], True), constant(labels)], run, args)
