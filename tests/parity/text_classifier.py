#!/usr/bin/env python3
"""Train the text classifier in PyTorch by the recipe of examples/text-classifier, to compare accuracy and time.

    text_classifier.py DATA.tsv [--epochs N] [--seed N] [--literal]

The same seed gives the same split, the same first weights and the same batches in both.
"""

import argparse
import csv
import json
import time
from collections import Counter

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from training_runs import TextClassifier


def build_vocab(texts, max_vocab=5000):
    word_counts = Counter()
    for text in texts:
        word_counts.update(text.lower().split())
    vocab = {word: idx + 2 for idx, (word, _) in enumerate(word_counts.most_common(max_vocab))}
    vocab["<PAD>"] = 0
    vocab["<UNK>"] = 1
    return vocab


def encode_texts(texts, vocab, max_len=100):
    encoded = []
    for text in texts:
        tokens = [vocab.get(w, 1) for w in text.lower().split()]
        tokens = tokens[:max_len]
        tokens += [0] * (max_len - len(tokens))
        encoded.append(tokens)
    return torch.tensor(encoded)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="Needs torch.")
    parser.add_argument("data", metavar="DATA.tsv")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--literal", action="store_true", help="run the LSTM over the padding too")
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    with open(args.data, encoding="utf-8") as f:
        rows = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
    samples = [(row["sentence"], int(row["label"])) for row in rows]
    training, held_out = random_split(samples, [0.9, 0.1])
    vocab = build_vocab(text for text, _ in training)

    def dataset(part):
        return TensorDataset(encode_texts([t for t, _ in part], vocab), torch.tensor([label for _, label in part]))

    train_loader = DataLoader(dataset(training), batch_size=args.batch_size, shuffle=True)
    eval_loader = DataLoader(dataset(held_out), batch_size=256)

    model = TextClassifier(len(vocab))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    start = time.perf_counter()
    for epoch in range(args.epochs):
        total_loss, correct, total = 0, 0, 0
        for inputs, labels in train_loader:
            optimizer.zero_grad()
            outputs = model(inputs, args.literal)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            total_loss += loss.item()
            correct += (outputs.argmax(1) == labels).sum().item()
            total += labels.size(0)
        print(f"Epoch {epoch+1}/{args.epochs} - Loss: {total_loss:.4f}, Accuracy: {correct / total:.3f}")
    seconds = time.perf_counter() - start

    with torch.no_grad():
        correct = sum((model(x, args.literal).argmax(1) == y).sum().item() for x, y in eval_loader)
    print(json.dumps({"train_loss": total_loss / len(train_loader), "accuracy": correct / len(held_out), "seconds": seconds}))


if __name__ == "__main__":
    main()
