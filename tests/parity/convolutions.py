#!/usr/bin/env python3
"""Time PyTorch on the convolutions that `orkest-bench --convolutions` has timed, and print both in a table.

    orkest-bench --convolutions > lines.json
    convolutions.py lines.json

PyTorch uses as many threads as the lines say. Ratios above 1 mean that Orkest is faster.
"""

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F

BUDGET = 0.2
FEWEST_RUNS = 7


def fastest(run):
    for _ in range(2):
        run()
    start, times = time.perf_counter(), []
    while len(times) < FEWEST_RUNS or time.perf_counter() - start < BUDGET:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def both(function, inputs, parameters=()):
    """Seconds forwards, and with the gradients of inputs and parameters; None if there are none."""

    def forward():
        with torch.no_grad():
            return function(*inputs)

    once = fastest(forward)
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
    y = function(*inputs)
    if not y.requires_grad:
        return once, None
    grad = torch.randn_like(y)

    def training():
        function(*inputs).backward(grad)
        for leaf in (*inputs, *parameters):
            leaf.grad = None

    return once, fastest(training)


def measure(case):
    x, weight = torch.randn(case["x"]), torch.randn(case["weight"])
    options = {name: case[name] for name in ("stride", "padding", "dilation", "groups")}
    channels = weight.shape[1] * case["groups"] if case["transposed"] else weight.shape[0]
    bias = torch.randn(channels)
    function = F.conv_transpose2d if case["transposed"] else F.conv1d if x.dim() == 3 else F.conv2d

    return both(lambda *operands: function(*operands, **options), [x, weight, bias])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="Needs torch.")
    parser.add_argument("lines", metavar="LINES", help="what orkest-bench --convolutions printed")
    args = parser.parse_args()
    torch.manual_seed(0)
    with open(args.lines, encoding="utf-8") as f:
        cases = [json.loads(line) for line in f]
    torch.set_num_threads(cases[0]["threads"])
    print("| | input | weight | stride | forward, ms | PyTorch | ratio | with gradients, ms | PyTorch | ratio |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    logs = []
    for case in cases:
        ours, theirs = (case["forward_s"], case["training_s"]), measure(case)
        sizes = ("x".join(map(str, case[name])) for name in ("x", "weight"))
        columns = [case["case"], *sizes, str(case["stride"])]
        for own, peer in zip(ours, theirs):
            columns += [f"{own * 1e3:.3f}", f"{peer * 1e3:.3f}", f"{peer / own:.2f}"]
        logs.append([math.log(peer / own) for own, peer in zip(ours, theirs)])
        print("| " + " | ".join(columns) + " |", flush=True)
    means = [math.exp(sum(column) / len(logs)) for column in zip(*logs)]
    print(f"| **geometric mean** | | | | | | **{means[0]:.2f}** | | | **{means[1]:.2f}** |")


if __name__ == "__main__":
    main()
