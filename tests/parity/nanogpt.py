#!/usr/bin/env python3
"""examples/nanogpt in PyTorch: the same model, recipe, random numbers and options, to compare losses and times.

    nanogpt.py [--data FILE] [--steps N] [--trace] ..

prints what the example prints with --json, and with --trace a line for the loss of every step.
"""

import argparse
import json
import math
import pathlib
import time

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.c_attn = nn.Linear(o.width, 3 * o.width, bias=o.bias)
        self.c_proj = nn.Linear(o.width, o.width, bias=o.bias)
        self.heads, self.p = o.heads, o.dropout

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (z.view(b, t, self.heads, c // self.heads).transpose(1, 2) for z in self.c_attn(x).split(c, 2))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0, is_causal=True)
        return F.dropout(self.c_proj(y.transpose(1, 2).reshape(b, t, c)), self.p, self.training)


class FeedForward(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.c_fc = nn.Linear(o.width, 4 * o.width, bias=o.bias)
        self.c_proj = nn.Linear(4 * o.width, o.width, bias=o.bias)
        self.p = o.dropout

    def forward(self, x):
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x))), self.p, self.training)


class Block(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(o.width, bias=o.bias), Attention(o)
        self.ln_2, self.mlp = nn.LayerNorm(o.width, bias=o.bias), FeedForward(o)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, o, vocabulary):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, o.width), nn.Embedding(o.block, o.width)
        self.h = nn.ModuleList(Block(o) for _ in range(o.layers))
        self.ln_f = nn.LayerNorm(o.width, bias=o.bias)
        self.lm_head = nn.Linear(o.width, vocabulary, bias=False)
        self.wte.weight = self.lm_head.weight
        self.p = o.dropout
        for module in self.modules():  # parents first, but only leaves draw, and they come in the order of declaration
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(p, 0.0, 0.02 / math.sqrt(2 * o.layers))

    def loss(self, x, y):
        h = F.dropout(self.wte(x) + self.wpe(torch.arange(x.shape[1])), self.p, self.training)
        for block in self.h:
            h = block(h)
        logits = self.lm_head(self.ln_f(h))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.reshape(-1))


def rate(step, o):
    if step < o.warmup:
        return o.lr * (step + 1) / (o.warmup + 1)
    ratio = min((step - o.warmup) / (o.steps - o.warmup), 1)
    return o.min_lr + 0.5 * (1 + math.cos(math.pi * ratio)) * (o.lr - o.min_lr)


def options():
    own = pathlib.Path(__file__).parents[2] / "examples/nanogpt/data/sonnets.txt"
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=pathlib.Path, default=own)
    whole = {"layers": 4, "heads": 4, "width": 128, "block": 64, "batch-size": 12, "accumulate": 1, "steps": 2000}
    for name, default in (whole | {"warmup": 100, "seed": 1337, "threads": 0}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"dropout": 0.0, "lr": 1e-3, "min-lr": None, "weight-decay": 0.1, "beta2": 0.99, "clip": 1.0}.items():
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--bias", action="store_true")
    parser.add_argument("--trace", action="store_true")
    o = parser.parse_args()
    o.min_lr = 0.1 * o.lr if o.min_lr is None else o.min_lr
    return o


def main():
    o = options()
    if o.threads:
        torch.set_num_threads(o.threads)
    text = o.data.read_text(encoding="utf-8")
    place = {c: i for i, c in enumerate(sorted(set(text)))}
    tokens = torch.tensor([place[c] for c in text])
    train, validation = tokens[: int(len(tokens) * 0.9)], tokens[int(len(tokens) * 0.9) :]

    torch.manual_seed(o.seed)
    model = GPT(o, len(place))
    decay, rest = ([p for p in model.parameters() if (p.dim() >= 2) == matrix] for matrix in (True, False))
    groups = [{"params": decay, "weight_decay": o.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=(0.9, o.beta2))
    start = time.perf_counter()
    losses = []
    for step in range(o.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, o)
        optimizer.zero_grad()
        total = 0.0
        for _ in range(o.accumulate):
            at = torch.randint(len(train) - o.block, (o.batch_size,))
            x = torch.stack([train[i : i + o.block] for i in at])
            y = torch.stack([train[i + 1 : i + 1 + o.block] for i in at])
            loss = model.loss(x, y) / o.accumulate
            loss.backward()
            total += loss.item()
        if o.clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), o.clip)
        optimizer.step()
        losses.append(total)
        if o.trace:
            print(f"step {step + 1} loss {total:.17f}")
    seconds = time.perf_counter() - start

    model.eval()
    total = 0.0
    with torch.no_grad():
        for i in range(0, len(validation) - 1, o.block):
            x, y = validation[i : i + o.block][None], validation[i + 1 : i + 1 + o.block][None]
            total += model.loss(x[:, : y.shape[1]], y).item() * y.numel()
    result = {"train_loss": sum(losses[-20:]) / len(losses[-20:]), "val_loss": total / (len(validation) - 1)}
    print(json.dumps(result | {"steps": o.steps, "seconds": round(seconds, 3), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
