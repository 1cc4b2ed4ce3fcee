"""Cases for the optimizers that are not in nn_cases.py; tests/src/layers/optimizers.rs has the other side."""

import torch

from draw import Case, registry
from nn_cases import optimizer

CASES, case = registry()


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of https://arxiv.org/abs/2302.06675, which PyTorch does not have."""

    def __init__(self, params, lr, betas=(0.9, 0.99), weight_decay=0.0, maximize=False):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = -p.grad if group["maximize"] else p.grad
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * (beta1 * m + (1 - beta1) * g).sign())
                m.mul_(beta2).add_((1 - beta2) * g)


def common(d):
    return {"weight_decay": d.choice([0.0, 0.01, 0.1]), "maximize": d.flag(0.2)}


def rmsprop_options(d):
    return common(d) | {
        "alpha": d.choice([0.99, 0.9]),
        "eps": d.choice([1e-8, 1e-4]),
        "momentum": d.choice([0.0, 0.9]),
        "centered": d.flag(),
    }


def adagrad_options(d):
    return common(d) | {
        "lr_decay": d.choice([0.0, 0.1]),
        "initial_accumulator_value": d.choice([0.0, 0.5]),
        "eps": d.choice([1e-10, 1e-4]),
    }


def betas(d):
    return {"betas": d.choice([(0.9, 0.999), (0.8, 0.95)]), "eps": d.choice([1e-8, 1e-4])}


optimizer("RMSprop", torch.optim.RMSprop, rmsprop_options, case)
optimizer("Adagrad", torch.optim.Adagrad, adagrad_options, case)
optimizer(
    "Adadelta",
    torch.optim.Adadelta,
    lambda d: common(d) | {"rho": d.choice([0.9, 0.5]), "eps": d.choice([1e-6, 1e-3])},
    case,
)
optimizer(
    "ASGD",
    torch.optim.ASGD,
    lambda d: common(d) | {"lambd": d.choice([1e-4, 0.1]), "alpha": d.choice([0.75, 0.5]), "t0": d.choice([1e6, 5.0])},
    case,
)
optimizer("Adamax", torch.optim.Adamax, lambda d: common(d) | betas(d), case)
optimizer(
    "NAdam",
    torch.optim.NAdam,
    lambda d: common(d) | betas(d) | {"momentum_decay": d.choice([4e-3, 0.1]), "decoupled_weight_decay": d.flag()},
    case,
)
optimizer("RAdam", torch.optim.RAdam, lambda d: common(d) | betas(d) | {"decoupled_weight_decay": d.flag()}, case)
optimizer(
    "Rprop",
    torch.optim.Rprop,
    lambda d: {
        "etas": d.choice([(0.5, 1.2), (0.3, 1.5)]),
        "step_sizes": d.choice([(1e-6, 50.0), (0.01, 0.05)]),
        "maximize": d.flag(0.2),
    },
    case,
)
optimizer("Lion", Lion, lambda d: common(d) | {"betas": d.choice([(0.9, 0.99), (0.8, 0.95)])}, case)


def adafactor_options(d):
    return common(d) | {
        "beta2_decay": d.choice([-0.8, -0.5]),
        "eps": d.choice([(None, 1e-3), (1e-4, 0.1)]),
        "d": d.choice([1.0, 2.0]),
    }


# Without a given epsilon it depends on the dtype: f64 says nothing about f32.
optimizer("Adafactor", torch.optim.Adafactor, adafactor_options, case)
optimizer("Adafactor/batched", torch.optim.Adafactor, adafactor_options, case, rank=(3, 4))


def muon_options(d):
    return {
        "weight_decay": d.choice([0.0, 0.1]),
        "momentum": d.choice([0.95, 0.8]),
        "nesterov": d.flag(0.7),
        "ns_steps": d.choice([5, 3]),
        "ns_coefficients": d.choice([(3.4445, -4.775, 2.0315), (2.0, -1.5, 0.5)]),
        "adjust_lr_fn": d.choice(["original", "match_rms_adamw", "spectral_unclamped"]),
    }


# The iteration has the precision of bf16, where a rounding that falls the other way is 0.4 %.
optimizer("Muon", torch.optim.Muon, muon_options, case, rank=(2, 2), tolerance={"forward": 1e-2, "backward": 1e-2})


@case("LBFGS")
def _(d):
    """Some steps of a regression whose loss is not quadratic: the parameters and the loss after each."""
    d.wide()
    args = {
        "lr": d.choice([1.0, 0.3]),
        "max_iter": d.int(1, 5 if d.dtype == torch.float64 else 3),
        "history_size": d.choice([100, 2]),
        "strong_wolfe": d.flag(0.6),
        "maximize": d.flag(0.2),
    }
    n, k = d.int(4, 8), d.int(2, 4)
    inputs = [
        d.tensor([n, k], strided=False, grad=False),
        d.tensor([n], strided=False, grad=False),
        d.tensor([k], strided=False, grad=False),
        d.tensor([1], strided=False, grad=False),
    ]

    def run(x, y, *start):
        weight, bias = (torch.nn.Parameter(p.clone()) for p in start)
        search = "strong_wolfe" if args["strong_wolfe"] else None
        made = torch.optim.LBFGS(
            [weight, bias],
            lr=args["lr"],
            max_iter=args["max_iter"],
            history_size=args["history_size"],
            line_search_fn=search,
            maximize=args["maximize"],
        )

        def closure():
            made.zero_grad()
            error = x @ weight + bias - y
            loss = (error.square() + 1).sqrt().mean() + 0.1 * weight.square().sum()
            loss = -loss if args["maximize"] else loss
            loss.backward()
            return loss

        rows = []
        for _ in range(4):
            loss = made.step(closure)
            rows.append(torch.cat([weight.detach(), bias.detach(), loss.detach().reshape(1)]))
        return torch.stack(rows)

    # A line search magnifies roundings: what f32 can promise is the way, not every digit of it.
    tolerance = None if d.dtype == torch.float64 else {"forward": 2e-2, "backward": 2e-2}
    return Case(inputs, run, args, backward=False, tolerance=tolerance)
