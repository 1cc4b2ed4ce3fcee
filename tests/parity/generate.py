#!/usr/bin/env python3
"""Write parity fixtures: what real PyTorch computes, for Orkest to be compared with.

    generate.py SEED DIR [--repeats N] [--only TEXT] [--nasty]

draws shapes, strides, parameters and values from SEED, runs them through PyTorch on the CPU, and writes

    DIR/cases.json          a list of cases (see below)
    DIR/tensors.safetensors every tensor they mention

The same seed, arguments and PyTorch version give the same bytes. A case is

    {"name": "add/3", "op": "add", "args": {..}, "inputs": [..], "outputs": [..], "grads": [..], "tolerance": {..}}

- an input is {"key", "view"?, "grad"?}: a stored tensor, view operations that make it strided, and whether it is a leaf;
- an output is {"key", "from"?}: the expected value, and the gradient that backward starts from, if any;
- grads holds per input the key of the expected gradient, or null for none (equal to zeros);
- tolerance is there only where the general table does not do: {"forward", "backward"} with the relative error that PyTorch
  itself makes against f64 in "torch_forward" and "torch_backward"; or {"ulp": n} for numbers that must agree to n units in
  the last place (0: bit for bit).
"""

import argparse
import importlib
import json
import pathlib
import random
import sys

import torch
from safetensors.torch import save_file

from draw import Case, Draw, tolerance_for

ATTEMPTS = 40


def tensors(value):
    """The tensors among the results, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors(v)]


def evaluate(case: Case, convert):
    """Outputs, the gradients they start from, and the gradients of the inputs, with float inputs sent through `convert`."""
    leaves = []
    for i in case.inputs:
        x = i.value.detach()
        x = convert(x) if x.is_floating_point() else x
        leaves.append(x.requires_grad_(bool(i.grad and case.backward and x.is_floating_point())))
    outputs = tensors(case.run(*leaves))
    roots, starts = [], []
    for n, y in enumerate(outputs):
        start = None
        if y.requires_grad:
            generator = torch.Generator().manual_seed(case.seed + n)
            start = torch.randn(y.shape, generator=generator, dtype=torch.float64)
            start = start.to(case.dtype if case.dtype.is_floating_point else torch.float32).to(y.dtype)
            roots.append(y)
        starts.append(start)
    wanted = [x for x in leaves if x.requires_grad]
    grads = [None] * len(leaves)
    if roots and wanted:
        found = torch.autograd.grad(roots, wanted, [s for s in starts if s is not None], allow_unused=True)
        found = iter(found)
        grads = [next(found) if x.requires_grad else None for x in leaves]
    return [y.detach() for y in outputs], starts, grads


def relative_error(a, b):
    """The largest |a - b| relative to b, with a tenth of the largest |b| as the floor: as tests/src/compare.rs does it."""
    if a is None or b is None or a.numel() == 0 or not a.is_floating_point():
        return 0.0
    a, b = a.double(), b.double()
    finite = torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), finite):
        return float("inf")
    if not finite.any():
        return 0.0
    a, b = a[finite], b[finite]
    floor = b.abs().max() * 0.1
    scale = torch.maximum(b.abs(), floor)
    difference = (a - b).abs()
    return (difference / scale)[difference > 0].max().item() if (difference > 0).any() else 0.0


def judged(case: Case, results):
    """The tolerance that this case needs beyond the table, or None; False if its numbers are too ill-conditioned to be of use."""
    if case.tolerance is not None:
        return case.tolerance
    kinds = {t.dtype for t in [*results[0], *(i.value for i in case.inputs)] if t.is_floating_point()}
    if kinds <= {torch.float64} or not case.reference:
        return None
    # Where dtypes are mixed, the coarsest tells how exact gradients can be.
    forward, backward = tolerance_for(max(kinds, key=lambda t: torch.finfo(t).eps))
    exception = {"backward": backward} if len(kinds) > 1 else {}
    exact = evaluate(case, lambda x: x.double())
    # How much of a rounding of the inputs arrives at the other end: a lucky run of PyTorch's must not set the tolerance.
    generator = torch.Generator().manual_seed(case.seed)

    def rounded(x):
        direction = torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
        return x.double() * (1 + direction * torch.finfo(x.dtype).eps / 2)

    moved = [evaluate(case, rounded) for _ in range(3)]
    for at, direction, general in ((0, "forward", forward), (2, "backward", backward)):
        own, *spread = (max(map(relative_error, r[at], exact[at]), default=0.0) for r in (results, *moved))
        conditioning = max(spread)
        if own > 50 * general:
            return False
        if conditioning > 50 * general:
            conditioning = 0.0  # a step: a rounded input lies on the other side of it
        if max(own, conditioning) > general / 4:
            exception[direction] = float(f"{4 * max(own, conditioning):.3g}")
            exception[f"torch_{direction}"] = float(f"{own:.3g}")
    return exception or None


def make(op, build, seed, repeat):
    """One case and its results: draws until PyTorch takes it and its numbers mean something."""
    for attempt in range(ATTEMPTS):
        d = Draw(random.Random(f"{seed}/{op}/{repeat}/{attempt}"), repeat)
        try:
            case = build(d)
            case.dtype = d.dtype
            case.seed = d.rng.getrandbits(40)
            results = evaluate(case, lambda x: x)
        except (RuntimeError, NotImplementedError) as error:
            lacks = ["not implemented for", "not supported", "view size is not compatible", "Unsupported memory format"]
            if any(text in str(error) for text in lacks):
                continue  # PyTorch lacks this dtype, or these strides, here
            raise RuntimeError(f"{op}/{repeat}: {error}") from error
        tolerance = judged(case, results)
        if tolerance is not False:
            return case, results, tolerance
    raise RuntimeError(f"{op}/{repeat}: no usable case in {ATTEMPTS} attempts")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="Needs torch and safetensors. The format is described at the head of this file.",
    )
    parser.add_argument("seed", metavar="SEED", help="any text or number: what the cases are drawn from")
    parser.add_argument("dir", metavar="DIR", type=pathlib.Path, help="folder to write to; made if it is not there")
    parser.add_argument("--repeats", type=int, default=12, help="cases per operation (default 12; the committed set has 2)")
    parser.add_argument("--enough", type=int, metavar="BYTES", help="no further case of an operation once its cases store so much")
    parser.add_argument("--nasty", action="store_true", help="more views of views, half precision, dimensions of no and of one element")
    parser.add_argument("--only", default="", help="only operations whose name contains this")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")

    Draw.nasty = args.nasty
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    cases, stored, keys = [], {}, {}

    def store(tensor):
        """The name of the tensor in the file, where equal ones are stored once."""
        tensor = tensor.detach().contiguous().clone()
        content = (tensor.dtype, tensor.shape, bytes(tensor.untyped_storage()))
        if content not in keys:
            keys[content] = str(len(stored))
            stored[keys[content]] = tensor
        return keys[content]

    registry = {}
    for file in sorted(pathlib.Path(__file__).parent.glob("*_cases.py")):
        registry |= importlib.import_module(file.stem).CASES
    for op, (build, once) in registry.items():
        if args.only not in op:
            continue
        before = sum(t.nbytes for t in stored.values())
        for repeat in range(1 if once else args.repeats):
            if repeat and args.enough and sum(t.nbytes for t in stored.values()) - before > args.enough:
                break
            case, (outputs, starts, grads), tolerance = make(op, build, args.seed, repeat)
            entry = {"name": f"{op}/{repeat}", "op": op, "args": case.args, "inputs": [], "outputs": [], "grads": []}
            for i in case.inputs:
                entry["inputs"].append(i.describe(store(i.base), case.backward))
            for y, start in zip(outputs, starts):
                entry["outputs"].append({"key": store(y)} | ({"from": store(start)} if start is not None else {}))
            entry["grads"] = [None if g is None else store(g) for g in grads]
            if not any(entry["grads"]):
                del entry["grads"]
            if tolerance:
                entry["tolerance"] = tolerance
            cases.append(entry)

    args.dir.mkdir(parents=True, exist_ok=True)
    with open(args.dir / "cases.json", "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
    save_file(stored, args.dir / "tensors.safetensors", metadata={"source": f"seed {args.seed}, torch {torch.__version__}"})
    (args.dir / "tensors.safetensors").chmod(0o644)
    print(f"{len(cases)} cases, {len(registry)} operations, seed {args.seed}, torch {torch.__version__} -> {args.dir}")


if __name__ == "__main__":
    sys.exit(main())
