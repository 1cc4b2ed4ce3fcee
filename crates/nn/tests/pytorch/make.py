#!/usr/bin/env python3
"""Writes the files of torch.save beside this script, and expected.safetensors with what is in them."""

import pathlib

import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent
EXPECTED = {}


def flat(prefix, value):
    """Every tensor with its name, as load_pytorch names it."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {name: t for key, inner in items for name, t in flat(f"{prefix}.{key}" if prefix else str(key), inner).items()}


def save(name, value, **options):
    torch.save(value, FOLDER / name, **options)
    for key, tensor in flat("", value).items():
        EXPECTED[f"{name}/{key}"] = tensor.detach().clone().contiguous()


torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
model(torch.randn(5, 4)).square().sum().backward()
optimizer.step()

save("model.pth", model.state_dict())
save("protocol5.pth", model.state_dict(), pickle_protocol=5)
save("before_1.6.pth", model.state_dict(), _use_new_zipfile_serialization=False)
save(
    "checkpoint.pt",
    {"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "loss": 0.25, "best": None, "args": {"name": "x", "amp": True}},
)
x = torch.arange(24.0).reshape(4, 6)
views = {
    "transposed": x.t(),
    "steps": x[:, ::2],
    "expanded": x[1:2].expand(3, 6),
    "row": x[1],
    "parameter": torch.nn.Parameter(x[:2] + 0.5),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "list": [x + 1, (x - 1,)],
    "dtypes": {str(t).removeprefix("torch."): x[0].to(t) for t in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)},
}
save("views.pt", views)
# Not readable, each for a reason of its own.
torch.save(model, FOLDER / "whole_model.pt")
torch.save({"x": torch.zeros(2, dtype=torch.int16)}, FOLDER / "int16.pt")
torch.save({"x": torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 2), check_invariants=True)}, FOLDER / "sparse.pt")
save_file(EXPECTED, FOLDER / "expected.safetensors")
