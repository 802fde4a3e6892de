"""Train a captioner on a data set of mmembed: python train.py OUT MODEL.pt [flags]. The same command goes on."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import Form, Inputs, Statistics, Vocabulary, captioned, divided, metadata_text, open_captions, run, tensors
from mmembed.shards import replacing
from model import Captioner, loss


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("out", type=Path, help="a data set that mmembed has built")
    parser.add_argument("model", type=Path, help="the checkpoint; one that is there goes on")
    parser.add_argument("--inputs", nargs="+", default=["image"], help="modalities that are captioned")
    parser.add_argument("--columns", nargs="+", default=["feature", "embedding"], help="feature, embedding or both")
    parser.add_argument("--metadata", nargs="+", default=[], help="keys of the metadata whose words are read as well")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3, help="Adam's learning rate; it falls to 0 as a cosine")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2, help="of self-attention over the segments")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--longest", type=int, default=30, help="words of a caption")
    parser.add_argument("--least", type=int, default=2, help="how often a word must occur")
    parser.add_argument("--save", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--validate", type=float, default=0.05, help="share of the training records for validation")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if "image" not in args.inputs:
        parser.error("--inputs must name image: captions are of pictures")
    return args


def flags(args: argparse.Namespace) -> dict[str, Any]:
    """Those that a run can't change where it goes on."""
    return {name: value for name, value in vars(args).items() if name not in ("out", "model", "save")}


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """What a run starts from: vocabulary, sizes, and a model that knows the statistics of the training data."""
    form = Form(args.inputs, args.columns, args.metadata, args.longest, {})
    reader = open_captions(args.out, form, "train", 256, captions="stack")
    form = form._replace(spaces=dict(reader.spaces))
    vectors_alone = form._replace(metadata=[])
    statistics, segments = {name: Statistics() for name in form.inputs}, dict.fromkeys(form.inputs, 0)
    texts: list[str] = []
    for batch in reader:
        rows, _ = divided(batch, form, args.validate)
        texts += [" ".join([*batch["text.media"][row], metadata_text(batch, form, row)]) for row in rows]
        for name, (vectors, mask) in tensors(batch, vectors_alone, Vocabulary([]), rows).items():
            statistics[name].add(vectors, mask)
            segments[name] = vectors.shape[1]
    if not texts:
        raise SystemExit(f"{args.out} has no training record with a caption and with {' or '.join(args.inputs)}")
    vocabulary = Vocabulary.of(texts, args.least)
    sizes: dict[str, Any] = {"words": len(vocabulary.words), "segments": segments}
    sizes |= {"dims": {name: len(found.result()[0]) for name, found in statistics.items()}}
    sizes |= {"width": args.width, "layers": args.layers, "dropout": args.dropout}
    torch.manual_seed(args.seed)
    weights = Captioner(**sizes).state_dict()
    for name, found in statistics.items():
        weights[f"encoder.scale.{name}.mean"], weights[f"encoder.scale.{name}.deviation"] = found.result()
    state = {
        "step": 0,
        "flags": flags(args),
        "form": form._asdict(),
        "words": vocabulary.words,
        "sizes": sizes,
        "model": weights,
    }
    return {**state, "optimizer": None, "random": torch.get_rng_state(), "reader": None}


def kept_out(args: argparse.Namespace, form: Form, vocabulary: Vocabulary) -> list[tuple[Inputs, Tensor]]:
    """The training records that are kept for validation, in batches: inputs and words."""
    batches = (
        (batch, divided(batch, form, args.validate)[1]) for batch in open_captions(args.out, form, "train", 1024)
    )
    return [captioned(batch, form, vocabulary, rows) for batch, rows in batches if rows]


def validation(model: Captioner, kept: Sequence[tuple[Inputs, Tensor]]) -> float:
    """Mean cross-entropy of records, by batches of their inputs and words."""
    model.eval()
    with torch.no_grad():
        total = sum(len(words) * float(loss(model(inputs, words), words)) for inputs, words in kept)
    model.train()
    return total / max(sum(len(words) for _, words in kept), 1)


def train(args: argparse.Namespace) -> None:
    """Train, from the checkpoint on if there is one."""
    state = torch.load(args.model, weights_only=True) if args.model.exists() else begin(args)
    if state["flags"] != flags(args):
        began = {name: value for name, value in state["flags"].items() if value != flags(args)[name]}
        raise SystemExit(f"{args.model} was begun with {began}: give the same flags, or another file")
    if state["step"]:
        print(f"{args.model} has {state['step']} of {args.steps} steps: going on from there", flush=True)
    form, vocabulary, step = Form(**state["form"]), Vocabulary(state["words"]), state["step"]
    model = Captioner(**state["sizes"]).train()
    model.load_state_dict(state["model"])
    optimizer = torch.optim.Adam(model.parameters(), args.rate)
    reader = open_captions(args.out, form, "train", args.batch, shuffle=True, seed=args.seed)
    if step:
        optimizer.load_state_dict(state["optimizer"])
        reader.load_state_dict(state["reader"])
    kept = kept_out(args, form, vocabulary)
    torch.set_rng_state(state["random"])
    begun, errors = time.monotonic(), list[float]()
    while step < args.steps:
        for batch in reader:
            rows, _ = divided(batch, form, args.validate)
            if rows:
                inputs, words = captioned(batch, form, vocabulary, rows)
                for group in optimizer.param_groups:
                    group["lr"] = args.rate * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * step / args.steps)) / 2
                error = loss(model(inputs, words), words)
                optimizer.zero_grad()
                error.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                errors.append(error.item())
            step += 1
            if step % args.save == 0 or step == args.steps:
                state |= {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"random": torch.get_rng_state(), "reader": reader.state_dict()}
                with replacing(args.model) as beside:
                    torch.save(state, beside)
                mean, unseen = sum(errors) / max(len(errors), 1), validation(model, kept)
                seconds = time.monotonic() - begun
                print(f"step {step}: cross-entropy {mean:.3f}, validation {unseen:.3f}, {seconds:.0f} s", flush=True)
                errors.clear()
            if step == args.steps:
                return


if __name__ == "__main__":
    run(lambda: train(parse()))
