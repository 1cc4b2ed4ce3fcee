#!/usr/bin/env python3
"""Train the network of examples/mnist in PyTorch by the same recipe, to compare accuracy, time and memory.

    mnist.py DIR [--epochs N] [--seed N]

DIR has MNIST's files, as for `mnist --data`. The same seed gives the same first weights and the same batches in both; dropout draws
other masks.
"""

import argparse
import gzip
import json
import pathlib
import resource
import time

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

HELD_OUT = 1000


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.fc1 = nn.Linear(32 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, 10)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.25)

    def forward(self, x):
        x = self.pool(self.bn1(self.conv1(x)).relu())
        x = self.pool(self.bn2(self.conv2(x)).relu())
        x = self.fc1(x.flatten(1)).relu()
        return self.fc2(self.dropout(x))


def idx(path, header):
    """The bytes of an IDX file, gzipped or not, after its header."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as f:
        return torch.frombuffer(bytearray(f.read()[header:]), dtype=torch.uint8)


def pictures(folder, name):
    """Pictures and labels of one of the two sets, or None."""
    found = [sorted(folder.glob(f"{name}-{kind}*")) for kind in ("images", "labels")]
    if not all(found):
        return None
    return idx(found[0][0], 16).view(-1, 28, 28), idx(found[1][0], 8).long()


def dataset(ink, labels):
    return TensorDataset(((ink.float() / 255.0 - 0.1307) / 0.3081).unsqueeze(1), labels)


def accuracy(model, held_out):
    model.eval()
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in DataLoader(held_out, batch_size=500))
    return right / len(held_out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="Needs torch.")
    parser.add_argument("data", metavar="DIR", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    training, held_out = pictures(args.data, "train"), pictures(args.data, "t10k")
    if training is None or held_out is None:
        ink, labels = training or held_out
        rest = len(ink) - HELD_OUT
        training, held_out = (ink[:rest], labels[:rest]), (ink[rest:], labels[rest:])
    held_out = dataset(*held_out)
    loader = DataLoader(dataset(*training), batch_size=args.batch_size, shuffle=True, drop_last=True)

    model = Cnn()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    start = time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        model.train()
        total_loss = torch.zeros(())
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            total_loss += loss.detach()
        train_loss = total_loss.item() / len(loader)
        print(f"Epoch {epoch}, Loss: {train_loss:.4f}, Accuracy: {accuracy(model, held_out):.4f}")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    result = {"train_loss": train_loss, "accuracy": accuracy(model, held_out), "epochs": args.epochs}
    print(json.dumps(result | {"seconds": round(seconds, 3), "peak_mb": peak, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
