#!/usr/bin/env python3
"""Train the sentiment classifier in PyTorch by the recipe of examples/sentiment, to compare accuracy, time and memory.

    sentiment.py DATA.tsv [--epochs N] [--seed N] [--no-dropout]

The same seed gives the same split, the same first weights and the same batches in both; dropout draws other masks.
"""

import argparse
import csv
import json
import resource
import time
from collections import Counter

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

from training_runs import SentimentClassifier

VOCABULARY_SIZE = 10_000
MAX_LEN = 100


def words(text):
    for word in text.split():
        start, end = 0, len(word)
        while start < end and not word[start].isalnum():
            start += 1
        while end > start and not word[end - 1].isalnum():
            end -= 1
        yield (word[start:end] or word).lower()


def encode(texts, numbers, max_len):
    encoded = []
    for text in texts:
        tokens = [numbers.get(word, 1) for word in words(text)][:max_len]
        encoded.append(tokens + [0] * (max_len - len(tokens)))
    return torch.tensor(encoded)


def accuracy(model, loader):
    model.eval()
    with torch.no_grad():
        correct = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
    return correct / len(loader.dataset)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="Needs torch.")
    parser.add_argument("data", metavar="DATA.tsv")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--no-dropout", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    with open(args.data, encoding="utf-8") as f:
        rows = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
    shuffled = [rows[i] for i in torch.randperm(len(rows)).tolist()]
    count = -(-len(rows) // 10)
    held_out, training = shuffled[:count], shuffled[count:]

    max_len = min(max(len(row["sentence"].split()) for row in training), MAX_LEN)
    counts = Counter(word for row in training for word in words(row["sentence"]))
    numbers = {word: i + 2 for i, (word, _) in enumerate(counts.most_common(VOCABULARY_SIZE - 2))}

    def dataset(part):
        labels = torch.tensor([int(row["label"]) for row in part])
        return TensorDataset(encode([row["sentence"] for row in part], numbers, max_len), labels)

    train_loader = DataLoader(dataset(training), batch_size=args.batch_size, shuffle=True)
    eval_loader = DataLoader(dataset(held_out), batch_size=256)

    model = SentimentClassifier(len(numbers) + 2, 128, 256, 2)
    if args.no_dropout:
        model.dropout.p = 0.0
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    start = time.perf_counter()
    for epoch in range(args.epochs):
        total_loss = 0.0
        model.train()
        for inputs, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            total_loss += loss.item()
        train_loss = total_loss / len(train_loader)
        print(f"Epoch {epoch + 1}, Loss: {train_loss:.4f}, Accuracy: {accuracy(model, eval_loader):.4f}")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    result = {"train_loss": train_loss, "accuracy": accuracy(model, eval_loader), "epochs": args.epochs}
    print(json.dumps(result | {"seconds": round(seconds, 3), "peak_mb": peak, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
