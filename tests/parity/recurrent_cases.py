"""Cases for recurrent layers and packed sequences; tests/src/layers/recurrent.rs has the other side."""

import torch
from torch import nn
from torch.nn.utils import rnn as packing

from draw import Case, registry

CASES, case = registry()

CELLS = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}


def batch_sizes_of(lengths):
    return [sum(n > t for n in lengths) for t in range(max(lengths))]


@case("recurrent")
def _(d):
    # One direction of PyTorch's packed function: backwards is the second half of both directions with the same weights.
    d.wide()
    cell = d.choice(CELLS)
    features, hidden, batch = d.int(1, 5), d.int(1, 6), d.int(1, 11)
    lengths = [d.int(1, 4)] * batch if d.flag() else sorted((d.int(1, 5) for _ in range(batch)), reverse=True)
    sizes, reverse, bias = batch_sizes_of(lengths), d.flag(), d.flag(0.7)
    small = {"low": -1.0, "high": 1.0}
    rows, states = CELLS[cell] * hidden, 2 if cell == "lstm" else 1
    weights = [d.tensor([rows, features], **small), d.tensor([rows, hidden], **small)]
    weights += [d.tensor([rows], **small), d.tensor([rows], **small)] if bias else []
    state = [d.tensor([batch, hidden], **small) for _ in range(states)]

    def run(x, *tensors):
        flat, hx = tensors[: len(weights)], tensors[len(weights) :]
        sides = 2 if reverse else 1
        hx = [h.expand(sides, -1, -1).contiguous() for h in hx]
        function = getattr(torch._VF, cell)
        arguments = (list(flat) * sides, bias, 1, 0.0, False, reverse)
        y, *last = function(x, torch.tensor(sizes), hx if cell == "lstm" else hx[0], *arguments)
        return [y[:, hidden:] if reverse else y] + [h[-1] for h in last]

    return Case(
        [d.tensor([sum(sizes), features], **small), *weights, *state],
        run,
        {"cell": cell, "reverse": reverse, "batch_sizes": sizes, "bias": bias},
    )


def layer(name, make):
    @case(name)
    def _(d):
        d.wide()
        options = {
            "num_layers": d.choice([1, 1, 2, 3]),
            "bias": d.flag(0.8),
            "batch_first": d.flag(),
            "bidirectional": d.flag(0.4),
        }
        features, hidden = d.int(1, 4), d.int(2, 5)
        if name == "LSTM" and d.flag(0.25):
            options["proj_size"] = d.int(1, hidden - 1)
        extra = {"nonlinearity": d.choice(["tanh", "relu"])} if name == "RNN" else {}
        # Dropout is for training only.
        module = make(features, hidden, dropout=0.5 if options["num_layers"] > 1 else 0.0, **options, **extra).eval()
        names = [n for n, _ in module.named_parameters()]
        batch, steps = d.int(1, 9), d.int(1, 5)
        batched, packed = d.flag(0.85), d.flag(0.4)
        first = [batch, steps] if options["batch_first"] else [steps, batch]
        x = d.tensor([*(first if batched else [steps]), features], low=-1.5, high=1.5)
        weights = [d.tensor(list(p.shape), low=-1.0, high=1.0, strided=False) for p in module.parameters()]
        directions = options["num_layers"] * (2 if options["bidirectional"] else 1)
        sizes = [options.get("proj_size", hidden), hidden][: 2 if name == "LSTM" else 1]
        state = []
        if d.flag():
            state = [d.tensor([directions, *([batch] if batched else []), size], low=-1.0, high=1.0) for size in sizes]
        pack = None
        if batched and packed:
            lengths = [d.int(1, steps) for _ in range(batch)]
            pack = {"enforce_sorted": d.flag(), "padding_value": d.choice([0.0, 2.5])}
            pack["lengths"] = sorted(lengths, reverse=True) if pack["enforce_sorted"] else lengths
            pack["total_length"] = d.choice([None, steps])

        def run(x, *tensors):
            parameters = dict(zip(names, tensors[: len(names)]))
            hx = tensors[len(names) :]
            hx = () if not hx else (tuple(hx),) if name == "LSTM" else (hx[0],)
            if pack:
                x = packing.pack_padded_sequence(x, pack["lengths"], options["batch_first"], pack["enforce_sorted"])
            y, last = torch.func.functional_call(module, parameters, (x, *hx))
            if pack:
                y, lengths = packing.pad_packed_sequence(
                    y, options["batch_first"], pack["padding_value"], pack["total_length"]
                )
                y = [y, lengths]
            return [y, last]

        arguments = {"input_size": features, "hidden_size": hidden, "names": names, **options, **extra, "pack": pack}
        return Case([x, *weights, *state], run, arguments)


layer("RNN", nn.RNN)
layer("LSTM", nn.LSTM)
layer("GRU", nn.GRU)


def cell(name, make, states):
    @case(name)
    def _(d):
        d.wide()
        features, hidden, bias = d.int(1, 5), d.int(1, 6), d.flag(0.8)
        extra = {"nonlinearity": d.choice(["tanh", "relu"])} if name == "RNNCell" else {}
        module = make(features, hidden, bias, **extra)
        names = [n for n, _ in module.named_parameters()]
        batch = [d.int(1, 9)] if d.flag(0.8) else []
        weights = [d.tensor(list(p.shape), low=-1.0, high=1.0, strided=False) for p in module.parameters()]
        state = [d.tensor([*batch, hidden], low=-1.0, high=1.0) for _ in range(states)] if d.flag(0.7) else []

        def run(x, *tensors):
            hx = tensors[len(names) :]
            hx = () if not hx else (tuple(hx),) if states > 1 else (hx[0],)
            return torch.func.functional_call(module, dict(zip(names, tensors)), (x, *hx))

        arguments = {"input_size": features, "hidden_size": hidden, "names": names, "bias": bias, **extra}
        return Case([d.tensor([*batch, features], low=-1.5, high=1.5), *weights, *state], run, arguments)


cell("RNNCell", nn.RNNCell, 1)
cell("LSTMCell", nn.LSTMCell, 2)
cell("GRUCell", nn.GRUCell, 1)


@case("pack_padded_sequence")
def _(d):
    batch, steps, batch_first, enforce_sorted = d.int(1, 6), d.int(1, 6), d.flag(), d.flag(0.3)
    lengths = [d.int(1, steps) for _ in range(batch)]
    if enforce_sorted:
        # Of equally long ones PyTorch does not say which comes first.
        lengths = sorted(lengths, reverse=True)
    total, value = d.choice([None, steps]), d.choice([0.0, -1.0])
    sizes = [batch, steps] if batch_first else [steps, batch]

    def run(x):
        packed = packing.pack_padded_sequence(x, lengths, batch_first, enforce_sorted)
        padded, found = packing.pad_packed_sequence(packed, batch_first, value, total)
        order = [] if enforce_sorted else [packed.sorted_indices, packed.unsorted_indices]
        return [packed.data, packed.batch_sizes, *order, padded, found]

    return Case(
        [d.tensor([*sizes, *d.shape(0, 2, empty=0.0)])],
        run,
        {
            "lengths": lengths,
            "batch_first": batch_first,
            "enforce_sorted": enforce_sorted,
            "padding_value": value,
            "total_length": total,
        },
    )


@case("pad_sequence")
def _(d):
    rest, batch_first, value = d.shape(0, 2, empty=0.0), d.flag(), d.choice([0.0, 1.5])
    sequences = [d.tensor([d.int(1, 5), *rest]) for _ in range(d.int(1, 4))]

    def run(*x):
        packed = packing.pack_sequence(x, enforce_sorted=False)
        return [packing.pad_sequence(x, batch_first, value), packed.data, packed.batch_sizes]

    return Case(sequences, run, {"batch_first": batch_first, "padding_value": value})


@case("fresh_recurrent")
def _(d):
    kind = d.choice(["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
    features, hidden, bias, seed = d.int(1, 30), d.int(2, 40), d.flag(0.8), d.int(0, 10**6)
    options = {"bias": bias}
    if not kind.endswith("Cell"):
        options |= {"num_layers": d.int(1, 3), "bidirectional": d.flag()}
        if kind == "LSTM" and d.flag(0.3):
            options["proj_size"] = d.int(1, hidden - 1)

    def run():
        torch.manual_seed(seed)
        return [p.detach() for p in getattr(nn, kind)(features, hidden, **options).parameters()]

    d.dtype = torch.float32
    arguments = {"kind": kind, "input_size": features, "hidden_size": hidden, "seed": seed, **options}
    return Case([], run, arguments, backward=False, reference=False, tolerance={"ulp": 0})
