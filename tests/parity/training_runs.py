#!/usr/bin/env python3
"""Write the losses of PyTorch's first training steps, for Orkest to repeat from the seed alone.

    training_runs.py [FILE]          default: training_runs.json beside this script

A run seeds the generator with 0, builds its model as PyTorch does by default, and draws its batches from the same generator, so that
no weights have to be exchanged; dropout is off. tests/tests/training.rs has the other side of each run.
"""

import argparse
import json
import pathlib

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

STEPS = 20
RUNS = {}


def run(name):
    def add(build):
        RUNS[name] = build
        return build

    return add


class SentimentClassifier(nn.Module):
    def __init__(self, vocab_size, embed_dim, hidden_dim, output_dim):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        embedded = self.embedding(x).mean(dim=1)
        return self.fc2(self.dropout(torch.relu(self.fc1(embedded))))


@run("SentimentClassifier")
def _():
    model = SentimentClassifier(10000, 128, 256, 2)

    def loss():
        x, y = torch.randint(0, 10000, (32, 100)), torch.randint(0, 2, (32,))
        return nn.functional.cross_entropy(model(x), y)

    return model, torch.optim.Adam(model.parameters(), lr=1e-3), loss


class TextClassifier(nn.Module):
    def __init__(self, vocab_size, embed_dim=64, hidden_dim=128):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim, padding_idx=0)
        self.lstm = nn.LSTM(embed_dim, hidden_dim, batch_first=True)
        self.classifier = nn.Linear(hidden_dim, 2)

    def forward(self, x, literal):
        if literal:
            _, (hidden, _) = self.lstm(self.embedding(x))
        else:
            words = pack_padded_sequence(x, (x != 0).sum(1), batch_first=True, enforce_sorted=False)
            embedded = PackedSequence(self.embedding(words.data), *words[1:])
            _, (hidden, _) = self.lstm(embedded)
        return self.classifier(hidden.squeeze(0))


def text_classifier(literal):
    model = TextClassifier(5002)

    def loss():
        x, y = torch.randint(1, 5002, (32, 40)), torch.randint(0, 2, (32,))
        lengths = torch.randint(1, 41, (32,))
        x = x * (torch.arange(40) < lengths[:, None])
        return nn.functional.cross_entropy(model(x, literal), y)

    return model, torch.optim.Adam(model.parameters(), lr=1e-3), loss


@run("TextClassifier")
def _():
    return text_classifier(literal=False)


@run("TextClassifier, literal")
def _():
    return text_classifier(literal=True)


class GPT(nn.Module):
    def __init__(self, vocab_size, width, block):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(block, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, x):
        t = x.shape[1]
        x = self.tokens(x) + self.positions(torch.arange(t))
        mask = nn.Transformer.generate_square_subsequent_mask(t)
        return self.head(self.blocks(x, mask=mask, is_causal=True))


@run("GPT")
def _():
    model = GPT(65, 64, 32)

    def loss():
        tokens = torch.randint(0, 65, (8, 33))
        logits = model(tokens[:, :-1])
        return nn.functional.cross_entropy(logits.reshape(-1, 65), tokens[:, 1:].reshape(-1))

    return model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss


def losses(build):
    torch.manual_seed(0)
    model, optimizer, loss_of_next_batch = build()
    model.eval()  # dropout off
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of_next_batch()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="Needs torch.")
    default = pathlib.Path(__file__).with_name("training_runs.json")
    parser.add_argument("file", nargs="?", metavar="FILE", type=pathlib.Path, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = {name: losses(build) for name, build in RUNS.items()}
    with open(args.file, "w", encoding="utf-8") as f:
        json.dump({"torch": torch.__version__, "runs": runs}, f, indent=1)
        f.write("\n")
    print(f"{len(runs)} runs of {STEPS} steps, torch {torch.__version__} -> {args.file}")


if __name__ == "__main__":
    main()
