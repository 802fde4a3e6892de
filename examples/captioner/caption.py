"""Captions of held-out records, or of given ones: python caption.py OUT MODEL.pt [ID …] [--beams 4]."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from data import load, open_captions, run, tensors
from model import beam_search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("ids", nargs="*", help="of records of either side of the split; without any, held-out ones")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--limit", type=int, default=10, help="how many held-out ones")
    args = parser.parse_args()
    model, vocabulary, form = load(args.model)
    missing, left = set(args.ids), args.limit
    for batch in open_captions(args.out, form, "all" if args.ids else "heldout", 64):
        pictured = np.flatnonzero(batch["image.mask"].any(1)).tolist()
        rows = [row for row in pictured if batch["id"][row] in missing] if args.ids else pictured[:left]
        left -= len(rows)
        if not rows:
            continue
        for row, words in zip(rows, beam_search(model, tensors(batch, form, vocabulary, rows), args.beams)):
            missing.discard(batch["id"][row])
            print(batch["id"][row], vocabulary.decode(words), batch["text.media"][row] or "", sep="\t")
    if missing:
        raise SystemExit(f"no picture of {', '.join(sorted(missing))} in {args.out}")


if __name__ == "__main__":
    run(main)
