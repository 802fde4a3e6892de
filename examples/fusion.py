"""Classify records by attention over the embeddings of their modalities, and ask what each of them adds.

python fusion.py OUT --label KEY [KEY …]: trains in seconds, prints held-out accuracy and macro F1 with 95 % intervals.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmembed.errors import MmembedError
from mmembed.metrics import classification
from mmembed.reader import open_dataset


class Records(NamedTuple):
    """Records of some modalities.

    Attributes:
        embeddings: each the mean over a record's segments, (N, M, dim).
        present: which are there, bool (N, M).
        classes: (N,).
    """

    modalities: list[str]
    embeddings: Tensor
    present: Tensor
    classes: list[str]


class Fusion(nn.Module):
    """One token a modality, and one that is always there; a learned query attends to those that are not masked."""

    def __init__(self, modalities: int, dim: int, classes: int, width: int = 128, dropout: float = 0.3) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Sequential(nn.Linear(dim, width), nn.GELU()) for _ in range(modalities))
        self.always = nn.Parameter(torch.zeros(1, 1, width))
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.output = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, classes))

    def forward(self, embeddings: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes), and how much each modality was attended to, (B, M)."""
        rows = len(embeddings)
        tokens = [project(embeddings[:, m]) for m, project in enumerate(self.project)]
        values = torch.cat((self.always.expand(rows, -1, -1), torch.stack(tokens, 1)), 1)
        empty = torch.cat((torch.zeros(rows, 1, dtype=torch.bool), ~present), 1)
        fused, shares = self.attention(self.query.expand(rows, -1, -1), values, values, empty)
        return self.output(fused[:, 0]), shares[:, 0, 1:]


def read(root: Path, labels: Sequence[str], split: str) -> Records:
    """The records of a split that have all labels; several labels are one class."""
    columns = ["embedding", *(f"metadata.{key}" for key in labels)]
    options: dict[str, Any] = {"segments": "stack", "missing": "mask", "batch_size": 1024}
    reader, parts = open_dataset(root, None, columns, split, **options), list[Records]()
    for batch in reader:
        sums = np.stack([batch[f"{name}.embedding"].sum(1) for name in reader.modalities], 1)  # zeros: none is there
        lengths = np.linalg.norm(sums, axis=2, keepdims=True)
        means = sums / np.maximum(lengths, 1e-9) * sums.shape[2] ** 0.5  # each value about 1
        masks = np.stack([batch[f"{name}.mask"].any(1) for name in reader.modalities], 1)
        names = list(zip(*(batch[f"metadata.{key}"] for key in labels)))
        rows = [row for row, name in enumerate(names) if not any(value is None or value != value for value in name)]
        classes = [" ".join(map(str, names[row])) for row in rows]
        embeddings = torch.from_numpy(means[rows].astype(np.float32))
        parts.append(Records(reader.modalities, embeddings, torch.from_numpy(masks[rows]), classes))
    embeddings, present = (torch.cat([part[place] for part in parts]) for place in (1, 2))
    found = Records(reader.modalities, embeddings, present, [name for part in parts for name in part.classes])
    if left_out := len(reader) - len(found.classes):
        print(f"{left_out} records of {split} have no {' and '.join(labels)}: left out")
    return found


def train(records: Records, classes: Tensor, names: int, epochs: int, seed: int) -> Fusion:
    """Adam; of each record in each epoch some modalities are hidden, so that the model can do without any of them."""
    torch.manual_seed(seed)
    model = Fusion(len(records.modalities), records.embeddings.shape[2], names)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(classes)).split(128):
            kept = records.present[rows] & (torch.rand(len(rows), len(records.modalities)) > 0.3)
            logits, _ = model(records.embeddings[rows], kept)
            optimizer.zero_grad()
            cross_entropy(logits, classes[rows]).backward()
            optimizer.step()
        schedule.step()
    model.eval()
    return model


def figures(found: NDArray[Any], true: NDArray[Any]) -> NDArray[np.float64]:
    """Accuracy and macro F1 over the classes that occur."""
    measured = classification(found, true)
    return np.array((measured["accuracy"], measured["macro_f1"]))


def predict(model: Fusion, records: Records, subset: Sequence[int]) -> NDArray[Any]:
    """Classes, from some of the modalities."""
    chosen = torch.tensor([m in subset for m in range(len(records.modalities))])
    with torch.no_grad():
        logits, _ = model(records.embeddings, records.present & chosen)
    found: NDArray[Any] = logits.argmax(1).numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--label", nargs="+", required=True, help="metadata that is the class; several: their product")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--samples", type=int, default=300, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    training, held = read(args.out, args.label, "train"), read(args.out, args.label, "heldout")
    names = sorted(set(training.classes))
    number = {name: n for n, name in enumerate(names)}
    classes = torch.tensor([number[name] for name in training.classes])
    model = train(training, classes, len(names), args.epochs, args.seed)
    true = np.array([number.get(name, -1) for name in held.classes])  # -1: a class without training records
    random = np.random.default_rng(args.seed)
    draws = [random.integers(len(true), size=len(true)) for _ in range(args.samples)]
    having = ", ".join(f"{count} {name}" for count, name in zip(held.present.sum(0).tolist(), held.modalities))
    print(f"{len(true)} held-out records ({having}), {len(names)} classes; all - this: accuracy, bounds of 95 %")
    numbers = range(len(held.modalities))
    subsets = [some for size in numbers[::-1] for some in itertools.combinations(numbers, size + 1)]
    found = {" + ".join(held.modalities[m] for m in subset): predict(model, held, subset) for subset in subsets}
    found["most frequent"] = np.full(len(true), int(classes.bincount().argmax()))
    sampled = {name: np.array([figures(each[draw], true[draw]) for draw in draws]) for name, each in found.items()}
    table: dict[str, Any] = {"records": len(true), "classes": len(names)}
    for name, each in found.items():
        values, (low, high) = figures(each, true), np.quantile(sampled[name], (0.025, 0.975), axis=0)
        lost = np.quantile(sampled[" + ".join(held.modalities)] - sampled[name], (0.025, 0.975), axis=0)
        table[name] = {
            key: {"value": values[k], "95 %": [low[k], high[k]], "all minus this, 95 %": lost[:, k].tolist()}
            for k, key in enumerate(("accuracy", "macro F1"))
        }
        cells = [f"{values[k]:.3f} ({low[k]:.3f}-{high[k]:.3f})" for k in (0, 1)]
        print(f"{name:22}  accuracy {cells[0]}  macro F1 {cells[1]}  all - this {lost[0, 0]:+.3f} to {lost[1, 0]:+.3f}")
    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main()
    except MmembedError as error:
        raise SystemExit(f"error: {error}") from error
