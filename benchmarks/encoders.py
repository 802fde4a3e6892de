"""Extraction with ONNX encoders against a loop written by hand over the same sessions.

    python benchmarks/encoders.py MANIFEST.jsonl IMAGE.onnx TEXT.onnx [--rounds 3]

CPU seconds of all processes, start-up included, taking turns: the loop opens each picture with Pillow, brings it to a
square of 224 pixels, encodes 16 at once, then the texts one by one, and keeps the features in memory; `mmembed extract`
also checks, hashes, resumes and writes. The models are those of examples/encoders.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE, BATCH = 224, 16
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def bare(manifest: Path, image: Path, text: Path) -> None:
    """The loop."""
    import onnxruntime
    from tokenizers import Tokenizer

    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(path, options) for path in (image, text)]
    pictures = [manifest.parent / row["image"] for row in rows if row.get("image")]
    features = [
        sessions[0].run(None, {"pixel_values": np.stack([pixels(path) for path in pictures[start : start + BATCH]])})[0]
        for start in range(0, len(pictures), BATCH)
    ]
    tokenizer = Tokenizer.from_file(str(text.parent / "tokenizer.json"))
    tokenizer.no_padding()
    for row in rows:
        ids = np.array([tokenizer.encode(row["text"]).ids[:256]])
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        features.append(sessions[1].run(None, feed)[0].mean(axis=1))
    print(f"{len(pictures):,} pictures, {len(rows):,} texts", file=sys.stderr)


def pixels(path: Path) -> NDArray[np.float32]:
    """A picture over white, letterboxed and scaled, float32 (3, 224, 224)."""
    from PIL import Image

    with Image.open(path) as file:
        layer = file.convert("RGBA")
    square = Image.new("RGB", (SIDE, SIDE), "white")
    scale = SIDE / max(layer.size)
    small = layer.resize((max(1, round(layer.width * scale)), max(1, round(layer.height * scale))))
    square.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2), small)
    return (np.asarray(square, np.float32).transpose(2, 0, 1) - np.float32(127)) / np.float32(128)


def cpu_seconds(command: list[str]) -> float:
    """Of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, **ONE_THREAD}


def main() -> None:
    """Print the CPU seconds of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("manifest", "image", "text"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    models = (options.manifest, options.image, options.text)
    if options.bare:
        bare(*models)
        return
    loop = [sys.executable, __file__, *map(str, models), "--bare"]
    ratios = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as out:
            words = ["extract", str(options.manifest), f"{out}/out", "--workers", "1"]
            encoders = ["--image-encoder", f"onnx:{options.image}", "--text-encoder", f"onnx:{options.text}"]
            by_hand, ours = cpu_seconds(loop), cpu_seconds([sys.executable, "-m", "mmembed", *words, *encoders])
        ratios.append(by_hand / ours)
        print(f"loop {by_hand:.1f} s, mmembed extract {ours:.1f} s: {ratios[-1]:.2f} of the loop's speed", flush=True)
    print(f"median {np.median(ratios):.2f}")


if __name__ == "__main__":
    main()
