#!/usr/bin/env python3
"""Time PyTorch on the operations that `orkest-bench --operations` has timed, and print both in a table.

    orkest-bench --operations > lines.json
    operations.py lines.json

PyTorch uses as many threads as the lines say. Ratios above 1 mean that Orkest is faster.
"""

import argparse
import json
import math

import torch
import torch.nn.functional as F
from convolutions import both
from torch import nn


def normal(*shape):
    return torch.randn(shape)


def positive(*shape):
    return torch.rand(shape) * 0.9 + 0.1


def below(limit, *shape):
    return torch.randint(0, limit, shape)


def truth(*shape):
    return torch.rand(shape) < 0.5


SQUARE = (1024, 1024)
HEADS = (4, 8, 256, 64)


def unary(function, draw=normal):
    return lambda: [draw(*SQUARE)], function


def binary(function, second=None):
    return lambda: [normal(*SQUARE), second() if second else normal(*SQUARE)], function


def linear(n, k, m):
    return lambda: [normal(n, k), normal(m, k), normal(m)], F.linear


def product(a, b, function=torch.matmul):
    return lambda: [normal(*a), normal(*b)], function


def layer(make, shape, run=lambda layer, x: layer(x)):
    def build():
        built = make()
        return [normal(*shape)], lambda x: run(built, x), list(built.parameters())

    return build


def first(layer, x):
    return layer(x)[0]


CASES = {
    "matmul 512, A B": product((512, 512), (512, 512)),
    "matmul 512, A Bᵀ": product((512, 512), (512, 512), lambda a, b: a @ b.t()),
    "matmul 512, Aᵀ B": product((512, 512), (512, 512), lambda a, b: a.t() @ b),
    "matmul 1000x999x1001": product((1000, 999), (999, 1001)),
    "matmul 64x4096x64": product((64, 4096), (4096, 64)),
    "matmul 4096x64x64": product((4096, 64), (64, 64)),
    "matmul 4096x16x4096": product((4096, 16), (16, 4096)),
    "matmul 32x32x32": product((32, 32), (32, 32)),
    "matmul 128x128x128": product((128, 128), (128, 128)),
    "matrix 4096 times vector": product((4096, 4096), (4096,)),
    "bmm 4096 of 8x8x8": product((4096, 8, 8), (4096, 8, 8)),
    "bmm 64 of 64x64x64": product((64, 64, 64), (64, 64, 64)),
    "matmul [64, 32, 128] [128, 128]": product((64, 32, 128), (128, 128)),
    "linear 1x768x3072": linear(1, 768, 3072),
    "linear 16x768x768": linear(16, 768, 768),
    "linear 128x768x3072": linear(128, 768, 3072),
    "linear 2048x128x10": linear(2048, 128, 10),
    "outer of 2048": product((2048,), (2048,), torch.outer),
    "einsum bhtd,bhsd->bhts": product((4, 8, 128, 64), (4, 8, 128, 64), lambda a, b: torch.einsum("bhtd,bhsd->bhts", a, b)),
    "exp": unary(torch.exp),
    "log": unary(torch.log, positive),
    "sqrt": unary(torch.sqrt, positive),
    "sin": unary(torch.sin),
    "tanh": unary(torch.tanh),
    "sigmoid": unary(torch.sigmoid),
    "relu": unary(torch.relu),
    "gelu": unary(F.gelu),
    "silu": unary(F.silu),
    "softplus": unary(F.softplus),
    "erf": unary(torch.erf),
    "pow(3)": unary(lambda x: x.pow(3.0), positive),
    "pow(tensor)": (lambda: [positive(*SQUARE), normal(*SQUARE)], torch.pow),
    "clamp": unary(lambda x: x.clamp(-1.0, 1.0)),
    "a + b": binary(torch.add),
    "a * row": binary(torch.mul, lambda: normal(1024)),
    "a * column": binary(torch.mul, lambda: normal(1024, 1)),
    "a / b": binary(torch.div, lambda: positive(*SQUARE)),
    "a + bᵀ": binary(lambda a, b: a + b.t()),
    "maximum": binary(torch.maximum),
    "a > b": binary(torch.gt),
    "where": (lambda: [truth(*SQUARE), normal(*SQUARE), normal(*SQUARE)], torch.where),
    "masked_fill": binary(lambda x, mask: x.masked_fill(mask, 0.0), lambda: truth(*SQUARE)),
    "to f16": unary(lambda x: x.to(torch.float16)),
    "to bf16": unary(lambda x: x.to(torch.bfloat16)),
    "i64 to f32": (lambda: [below(1000, *SQUARE)], lambda x: x.to(torch.float32)),
    "i64 a + b": (lambda: [below(1000, *SQUARE), below(1000, *SQUARE)], torch.add),
    "dropout": unary(lambda x: F.dropout(x, 0.5, True)),
    "rand_like": unary(torch.rand_like),
    "randn_like": unary(torch.randn_like),
    "sum(..)": unary(torch.sum),
    "sum(0)": unary(lambda x: x.sum(0)),
    "sum(-1)": unary(lambda x: x.sum(-1)),
    "sum(1) of [64, 128, 128]": (lambda: [normal(64, 128, 128)], lambda x: x.sum(1)),
    "mean(-1) of [32, 100, 128]": (lambda: [normal(32, 100, 128)], lambda x: x.mean(-1)),
    "var(-1)": unary(lambda x: x.var(-1)),
    "amax(0)": unary(lambda x: x.amax(0)),
    "amax(-1)": unary(lambda x: x.amax(-1)),
    "argmax(-1)": unary(lambda x: x.argmax(-1)),
    "argmax(0)": unary(lambda x: x.argmax(0)),
    "prod(-1)": unary(lambda x: x.prod(-1), positive),
    "norm": unary(torch.norm),
    "logsumexp(-1)": unary(lambda x: x.logsumexp(-1)),
    "cumsum(-1)": unary(lambda x: x.cumsum(-1)),
    "cumsum(0)": unary(lambda x: x.cumsum(0)),
    "cumprod(-1)": unary(lambda x: x.cumprod(-1), positive),
    "sort": unary(lambda x: x.sort(-1)[0]),
    "sort of a million": (lambda: [normal(1_048_576)], lambda x: x.sort()[0]),
    "topk(10)": unary(lambda x: x.topk(10)[0]),
    "topk(50) of [4, 50257]": (lambda: [normal(4, 50257)], lambda x: x.topk(50)[0]),
    "median(-1)": unary(lambda x: x.median(-1)[0]),
    "softmax(-1) of [256, 1024]": (lambda: [normal(256, 1024)], lambda x: x.softmax(-1)),
    "softmax(1) of [64, 128, 128]": (lambda: [normal(64, 128, 128)], lambda x: x.softmax(1)),
    "log_softmax(-1) of [64, 50257]": (lambda: [normal(64, 50257)], lambda x: x.log_softmax(-1)),
    "layer_norm of [2048, 768]": (lambda: [normal(2048, 768), normal(768), normal(768)], lambda x, w, b: F.layer_norm(x, (768,), w, b)),
    "rms_norm of [2048, 768]": (lambda: [normal(2048, 768), normal(768)], lambda x, w: F.rms_norm(x, (768,), w, 1e-6)),
    "batch_norm of [32, 64, 28, 28]": (lambda: [normal(32, 64, 28, 28), normal(64), normal(64)], lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
    "batch_norm of [512, 256]": (lambda: [normal(512, 256), normal(256), normal(256)], lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
    "group_norm of [8, 64, 28, 28]": (lambda: [normal(8, 64, 28, 28), normal(64), normal(64)], lambda x, w, b: F.group_norm(x, 8, w, b)),
    "batch_norm of [32, 64, 28, 28], running": (
        lambda: [normal(32, 64, 28, 28), normal(64), normal(64), positive(64)],
        lambda x, w, b, s: F.batch_norm(x, s.detach(), s.detach(), w, b),
    ),
    "instance_norm of [8, 64, 28, 28]": (
        lambda: [normal(8, 64, 28, 28), normal(64), normal(64)],
        lambda x, w, b: F.instance_norm(x, None, None, w, b),
    ),
    "cross_entropy of [2048, 1000]": (lambda: [normal(2048, 1000), below(1000, 2048)], F.cross_entropy),
    "cross_entropy of [64, 50257]": (lambda: [normal(64, 50257), below(50257, 64)], F.cross_entropy),
    "mse_loss": binary(F.mse_loss),
    "bce_with_logits": binary(F.binary_cross_entropy_with_logits, lambda: positive(*SQUARE)),
    "smooth_l1_loss": binary(F.smooth_l1_loss),
    "huber_loss": binary(F.huber_loss),
    "l1_loss": binary(F.l1_loss),
    "mse_loss, each": binary(lambda x, y: F.mse_loss(x, y, reduction="none")),
    "binary_cross_entropy": (
        lambda: [positive(*SQUARE), positive(*SQUARE)],
        lambda x, y: F.binary_cross_entropy(x, y.detach()),
    ),
    "kl_div": binary(lambda x, y: F.kl_div(x, y.detach(), reduction="batchmean"), lambda: positive(*SQUARE)),
    "poisson_nll_loss": binary(lambda x, y: F.poisson_nll_loss(x, y.detach()), lambda: positive(*SQUARE)),
    "gaussian_nll_loss": (
        lambda: [normal(*SQUARE), normal(*SQUARE), positive(*SQUARE)],
        lambda x, y, v: F.gaussian_nll_loss(x, y.detach(), v),
    ),
    "nll_loss of [2048, 1000]": (lambda: [normal(2048, 1000), below(1000, 2048)], F.nll_loss),
    "triplet_margin_loss of [4096, 256]": (
        lambda: [normal(4096, 256), normal(4096, 256), normal(4096, 256)],
        F.triplet_margin_loss,
    ),
    "cosine_similarity of [4096, 256]": (lambda: [normal(4096, 256), normal(4096, 256)], F.cosine_similarity),
    "embedding of [32, 100] in [10000, 128]": (lambda: [normal(10000, 128), below(10000, 32, 100)], lambda w, i: F.embedding(i, w)),
    "index_select of columns": (lambda: [normal(*SQUARE), below(1024, 512)], lambda x, i: x.index_select(1, i)),
    "gather": (lambda: [normal(*SQUARE), below(1024, 1024, 256)], lambda x, i: x.gather(-1, i)),
    "scatter_add": (lambda: [normal(*SQUARE), below(1024, 1024, 256), normal(1024, 256)], lambda x, i, s: x.scatter_add(-1, i, s)),
    "index_add": (lambda: [normal(1024, 256), below(1024, 4096), normal(4096, 256)], lambda x, i, s: x.index_add(0, i, s)),
    "masked_select": binary(torch.masked_select, lambda: truth(*SQUARE)),
    "nonzero": (lambda: [truth(*SQUARE)], torch.nonzero),
    "one_hot": (lambda: [below(100, 4096)], lambda x: F.one_hot(x, 100)),
    "cat": product((512, 512), (512, 512), lambda a, b: torch.cat([a, b], -1)),
    "stack": product((512, 512), (512, 512), lambda a, b: torch.stack([a, b])),
    "transpose, copied": unary(lambda x: x.t().contiguous()),
    "heads to the front, copied": (lambda: [normal(8, 128, 12, 64)], lambda x: x.transpose(1, 2).contiguous()),
    "channels to the end, copied": (lambda: [normal(8, 64, 56, 56)], lambda x: x.permute(0, 2, 3, 1).contiguous()),
    "flip": unary(lambda x: x.flip(-1)),
    "roll": unary(lambda x: x.roll(3, -1)),
    "repeat": (lambda: [normal(256, 256)], lambda x: x.repeat(4, 4)),
    "repeat_interleave": (lambda: [normal(256, 1024)], lambda x: x.repeat_interleave(4, 0)),
    "pad": (lambda: [normal(32, 16, 28, 28)], lambda x: F.pad(x, (1, 1, 1, 1))),
    "tril": unary(torch.tril),
    "unfold 3x3": (lambda: [normal(8, 16, 28, 28)], lambda x: F.unfold(x, 3, padding=1)),
    "max_pool2d(2)": (lambda: [normal(32, 32, 56, 56)], lambda x: F.max_pool2d(x, 2)),
    "max_pool2d(3, 2, 1)": (lambda: [normal(8, 64, 56, 56)], lambda x: F.max_pool2d(x, 3, 2, 1)),
    "avg_pool2d(2)": (lambda: [normal(32, 32, 56, 56)], lambda x: F.avg_pool2d(x, 2)),
    "adaptive_avg_pool2d(1)": (lambda: [normal(32, 512, 7, 7)], lambda x: F.adaptive_avg_pool2d(x, 1)),
    "adaptive_avg_pool2d(3)": (lambda: [normal(32, 128, 14, 14)], lambda x: F.adaptive_avg_pool2d(x, 3)),
    "adaptive_max_pool2d(1)": (lambda: [normal(32, 512, 7, 7)], lambda x: F.adaptive_max_pool2d(x, 1)),
    "adaptive_max_pool2d(3)": (lambda: [normal(32, 128, 14, 14)], lambda x: F.adaptive_max_pool2d(x, 3)),
    "interpolate, nearest by 2": (lambda: [normal(8, 32, 28, 28)], lambda x: F.interpolate(x, (56, 56))),
    "interpolate, bilinear by 2": (lambda: [normal(8, 32, 28, 28)], lambda x: F.interpolate(x, (56, 56), mode="bilinear")),
    "interpolate, bicubic by 2": (lambda: [normal(8, 32, 28, 28)], lambda x: F.interpolate(x, (56, 56), mode="bicubic")),
    "interpolate, bilinear to a half": (lambda: [normal(8, 32, 56, 56)], lambda x: F.interpolate(x, (28, 28), mode="bilinear")),
    "interpolate, photograph to 224": (lambda: [normal(1, 3, 480, 640)], lambda x: F.interpolate(x, (224, 224), mode="bilinear")),
    "attention, causal [4, 8, 256, 64]": (
        lambda: [normal(*HEADS), normal(*HEADS), normal(*HEADS)],
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    ),
    "attention, masked [4, 8, 256, 64]": (
        lambda: [normal(*HEADS), normal(*HEADS), normal(*HEADS), truth(4, 1, 256, 256)],
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
    ),
    "attention, one query [1, 12, 1, 64]": (
        lambda: [normal(1, 12, 1, 64), normal(1, 12, 1024, 64), normal(1, 12, 1024, 64)],
        F.scaled_dot_product_attention,
    ),
    "attention, small [32, 4, 16, 16]": (
        lambda: [normal(32, 4, 16, 16), normal(32, 4, 16, 16), normal(32, 4, 16, 16)],
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    ),
    "attention, small [64, 8, 64, 32]": (
        lambda: [normal(64, 8, 64, 32), normal(64, 8, 64, 32), normal(64, 8, 64, 32)],
        F.scaled_dot_product_attention,
    ),
    "LSTM 128, 32 texts of 100": layer(lambda: nn.LSTM(128, 128), (100, 32, 128), first),
    "LSTM 128, 2 layers both ways, 8 texts of 50": layer(
        lambda: nn.LSTM(128, 128, num_layers=2, bidirectional=True), (50, 8, 128), first
    ),
    "LSTM 512, 1 text of 100": layer(lambda: nn.LSTM(512, 512), (100, 1, 512), first),
    "GRU 128, 32 texts of 100": layer(lambda: nn.GRU(128, 128), (100, 32, 128), first),
    "RNN 128, 32 texts of 100": layer(lambda: nn.RNN(128, 128), (100, 32, 128), first),
    "MultiheadAttention 256, 128 of 8 texts": layer(
        lambda: nn.MultiheadAttention(256, 8), (128, 8, 256), lambda layer, x: layer(x, x, x)[0]
    ),
    "TransformerEncoderLayer 256, 128 of 8 texts": layer(lambda: nn.TransformerEncoderLayer(256, 8), (128, 8, 256)),
    "MLP 784-512-10 of 64": layer(lambda: nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)), (64, 784)),
    "ResNet-18 of [8, 3, 112, 112]": layer(lambda: ResNet(), (8, 3, 112, 112)),
}


class Block(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample = nn.Identity()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class ResNet(nn.Module):
    """ResNet-18."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        stages = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        blocks = [(Block(before, after, stride), Block(after, after, 1)) for before, after, stride in stages]
        self.blocks = nn.Sequential(*(block for pair in blocks for block in pair))
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))


def measure(case):
    inputs, function, *parameters = case() if callable(case) else (case[0](), case[1])
    return both(function, inputs, *parameters)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="Needs torch.")
    parser.add_argument("lines", metavar="LINES", help="what orkest-bench --operations printed")
    args = parser.parse_args()
    torch.manual_seed(0)
    with open(args.lines, encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    torch.set_num_threads(lines[0]["threads"])
    print("| | forward, ms | PyTorch | ratio | with gradients, ms | PyTorch | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    logs = ([], [])
    for line in lines:
        columns = [line["case"]]
        for own, peer, log in zip((line["forward_s"], line["training_s"]), measure(CASES[line["case"]]), logs):
            if own is None or peer is None:
                columns += ["", "", ""]
                continue
            columns += [f"{own * 1e3:.4f}", f"{peer * 1e3:.4f}", f"{peer / own:.2f}"]
            log.append(math.log(peer / own))
        print("| " + " | ".join(columns) + " |", flush=True)
    forward, training = (math.exp(sum(log) / max(len(log), 1)) for log in logs)
    print(f"| **geometric mean** | | | **{forward:.2f}** | | | **{training:.2f}** |")


if __name__ == "__main__":
    main()
