"""A program that damages real files, lets every reader and decoder at them, and prints what that took at most.

    python fuzzing.py FOLDER SEEDS

It ends with a traceback if anything but the project's own error of a record or a file comes out.
"""

from __future__ import annotations

import csv
import io
import json
import random
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image as pillow

from mmembed.errors import ReadError, RecordError
from mmembed.inputs import arrow, delimited, jsonl, parquet, webdataset
from mmembed.modalities import Modality
from mmembed.modalities.audio import Audio
from mmembed.modalities.image import Image
from mmembed.modalities.text import Text
from mmembed.types import Media

ROWS: list[dict[str, Any]] = [
    {"id": f"r{row}", "text": f"text {row}", "image": f"{row}.png", "n": row} for row in range(40)
]
HUGE = (b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"77777777", b"\xff\xff\xff\x7f")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, put in, or made a huge number."""
    damaged = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(max(1, len(damaged)))
        kind = rng.random()
        if kind < 0.5:
            damaged[place : place + 1] = rng.randbytes(1)
        elif kind < 0.7:
            del damaged[place : place + rng.randrange(200)]
        elif kind < 0.8:
            damaged[place:place] = rng.randbytes(rng.randrange(30))
        elif kind < 0.9:
            del damaged[place:]
        else:
            damaged[place : place + 8] = rng.choice(HUGE)
    return bytes(damaged)


def packed(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def inputs() -> dict[str, tuple[ModuleType, bytes]]:
    """By file name, the reader and a whole file."""
    table = pa.Table.from_pylist(ROWS)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]))
    writer.writeheader()
    writer.writerows(ROWS)

    def archive(buffer: io.BytesIO) -> None:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for row in ROWS:
                for ending, data in (("jpg", b"x" * 600), ("json", json.dumps(row).encode())):
                    info = tarfile.TarInfo(f"{row['id']}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))

    def stream(buffer: io.BytesIO) -> None:
        with pa.ipc.new_stream(buffer, table.schema) as opened:
            opened.write_table(table, max_chunksize=15)

    return {
        "in.jsonl": (jsonl, "".join(json.dumps(row) + "\n" for row in ROWS).encode()),
        "in.csv": (delimited, text.getvalue().encode()),
        "in.parquet": (parquet, packed(lambda buffer: pq.write_table(table, buffer, row_group_size=15))),
        "in.arrow": (arrow, packed(stream)),
        "in.tar": (webdataset, packed(archive)),
    }


def media() -> dict[str, tuple[Modality, bytes]]:
    """By format, the modality and a whole file."""
    random = np.random.default_rng(0)
    picture = pillow.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8))
    sound = random.normal(scale=0.1, size=4000).astype(np.float32)
    pictures = {
        form: (Image(), packed(lambda buffer, form=form: picture.save(buffer, form)))  # type: ignore[misc]
        for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "PPM")
    }
    sounds = {
        form: (Audio(), packed(lambda buffer, form=form: soundfile.write(buffer, sound, 16_000, format=form)))  # type: ignore[misc]
        for form in ("WAV", "FLAC", "OGG", "MP3", "AIFF")
    }
    return {**pictures, **sounds, "TXT": (Text(words=3), "Grüße, ein Frosch. 青蛙。".encode() * 20)}


def read(path: Path, reader: ModuleType) -> str:
    try:
        plans = list(reader.plan(str(path), 7))
    except ReadError:
        return "refused"
    for _, _, place in plans:
        for _, values in reader.rows(str(path), path.name, place):
            assert isinstance(values, ReadError | dict) or reader is jsonl
    return "read"


def decode(data: bytes, modality: Modality) -> str:
    try:
        for _, piece in modality.segment(modality.decode(Media(content=data)), {}):
            modality.normalize(piece)
    except RecordError:
        return "refused"
    return "decoded"


def peak() -> int:
    """The most memory that this process has held, in KiB (Linux); `getrusage` counts what started it too."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def main(folder: Path, seeds: int) -> None:
    outcomes: Counter[tuple[str, str]] = Counter()
    before = peak()
    for name, (reader, whole) in inputs().items():
        for seed in range(seeds):
            path = folder / name
            path.write_bytes(damaged(whole, random.Random(seed)))
            outcomes[name, read(path, reader)] += 1
    for form, (modality, whole) in media().items():
        for seed in range(seeds):
            outcomes[form, decode(damaged(whole, random.Random(seed)), modality)] += 1
    grown = (peak() - before) // 1024
    print(json.dumps({"megabytes": grown, "outcomes": {" ".join(key): count for key, count in outcomes.items()}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
