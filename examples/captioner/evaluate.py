"""Judge a captioner on held-out records, beside baselines: python evaluate.py OUT MODEL.pt [--scenes] [--json FILE]."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu
import torch
from numpy.typing import NDArray
from pycocoevalcap.cider.cider import Cider

from data import Form, Inputs, Vocabulary, load, open_captions, rows_of, run, split_words, tensors, usable
from mmembed.reader import open_dataset
from mmembed.search import Query, Searcher
from model import PAD, Captioner, beam_search, loss
from scenes import named

Figures = dict[str, float]
KEYS = ("color", "shape", "count")


def held_out(root: Path, form: Form, vocabulary: Vocabulary) -> tuple[list[str], list[list[str]], Inputs]:
    """Ids, captions and inputs of the held-out records that have a caption and a picture."""
    [batch] = open_captions(root, form, "heldout", 1 << 30, captions="stack")
    rows = [row for row in usable(batch, form) if batch["image.mask"][row].any()]
    texts = [batch["text.media"][row] for row in rows]
    return [batch["id"][row] for row in rows], texts, tensors(batch, form, vocabulary, rows)


def forced(model: Captioner, words: torch.Tensor, inputs: Inputs) -> Figures:
    """With teacher forcing: cross-entropy in nats a word, and how often the likeliest word is the true one."""
    parts = torch.arange(len(words)).split(256)
    with torch.no_grad():
        logits = torch.cat([model(rows_of(inputs, part), words[part]) for part in parts])
    right = (logits.argmax(-1) == words[:, 1:])[words[:, 1:] != PAD]
    return {"cross-entropy": float(loss(logits, words)), "token accuracy": float(right.float().mean())}


def token_f1(found: str, true: str) -> float:
    """F1 of the words of two captions as bags, without signs and articles, as SQuAD counts."""
    first, second = (Counter(re.findall(r"\b(?!(?:an?|the)\b)\w+", text.lower())) for text in (found, true))
    return 2 * (first & second).total() / max(1, first.total() + second.total())


def compare(found: Sequence[str], true: Sequence[Sequence[str]]) -> Figures:
    """Mean token F1 with the nearest of a record's captions, BLEU-4 (sacrebleu, lower case, 0 to 100), CIDEr
    (pycocoevalcap, 0 to 10)."""
    words = [
        {n: [" ".join(split_words(text)) for text in some] for n, some in enumerate(each)}
        for each in (true, zip(found))
    ]
    references = list(zip_longest(*true))
    return {
        "F1": float(np.mean([max(token_f1(text, one) for one in some) for text, some in zip(found, true)])),
        "BLEU": sacrebleu.corpus_bleu(list(found), references, lowercase=True).score,
        "CIDEr": float(Cider().compute_score(*words)[0]),
    }


def scenes(found: Sequence[str], truth: Sequence[Any]) -> Figures:
    """Of the sample data set: how often colour, shape and count are named rightly, and all three."""
    right = np.array([[named(text)[key] == scene[key] for key in KEYS] for text, scene in zip(found, truth)])
    return {**dict(zip(KEYS, right.mean(0).tolist())), "all three": float(right.all(1).mean())}


def read(root: Path, modality: str, columns: Sequence[str], split: str, segments: str) -> dict[str, list[Any]]:
    """Columns of a modality by id."""
    reader = open_dataset(root, modality, ("id", *columns), split, segments=segments, batch_size=1024)
    rows = (row for batch in reader for row in zip(batch["id"], *(batch[name] for name in columns)))
    return {id: values for id, *values in rows}


def nearest(root: Path, vectors: Sequence[NDArray[np.float32]], texts: dict[str, str], to: str) -> list[str]:
    """For each vector the caption of the training record nearest in the index of `to` (whole pictures, or captions)."""
    queries = [Query.of(vector=vector) for vector in vectors]
    found = Searcher.open(root).search_many(queries, to=to, k=20, filter="split = 'train' and segment = 0")
    return [next((texts[one.id] for one in answers if one.id in texts), "") for answers in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--neighbours", type=Path, help="the data set whose index gives neighbours, if not OUT")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--scenes", action="store_true", help="also colour, shape and count: of the sample data set")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model, vocabulary, form = load(args.model)
    ids, texts, inputs = held_out(args.out, form, vocabulary)
    words = vocabulary.encode([captions[0] for captions in texts], form.longest)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    shuffled = rows_of(inputs, order)
    training = {id: text for id, (text,) in read(args.out, "text", ["text.media"], "train", "random").items()}
    root = args.neighbours or args.out
    whole = read(root, "image", ["image.embedding"], "heldout", "first")
    vectors = [whole[id][0] for id in ids]
    found: dict[str, list[str]] = {}
    for name, given in (("model", inputs), ("shuffled images", shuffled)):
        parts = torch.arange(len(ids)).split(128)
        rows = [row for part in parts for row in beam_search(model, rows_of(given, part), args.beams)]
        found[name] = [vocabulary.decode(row) for row in rows]
    found["most frequent"] = [Counter(training.values()).most_common(1)[0][0]] * len(ids)
    found["nearest image"] = nearest(root, vectors, training, "image")
    found["nearest text"] = nearest(root, vectors, training, "text")
    table: dict[str, Figures] = {name: compare(captions, texts) for name, captions in found.items()}
    table["model"] |= forced(model, words, inputs)
    table["shuffled images"] |= forced(model, words, shuffled)
    if args.scenes:
        known = read(args.out, "image", [f"metadata.{key}" for key in KEYS], "heldout", "first")
        truth = [dict(zip(KEYS, known[id])) for id in ids]
        for name, captions in found.items():
            table[name] |= scenes(captions, truth)
    keys = list(table["model"])
    print(f"{len(ids)} held-out records, {len(training)} captions to learn from")
    print(f"{'':16}", *(f"{key:>14}" for key in keys))
    for name, figures in table.items():
        print(f"{name:16}", *(f"{figures[key]:14.3f}" if key in figures else f"{'-':>14}" for key in keys))
    if args.json:
        args.json.write_text(json.dumps({"records": len(ids), **table}, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
