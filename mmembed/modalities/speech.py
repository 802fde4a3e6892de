"""Where somebody speaks: voice activity, frame by frame, and the stretches that it makes."""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.errors import UsageError

RATE = 16_000
"""Hz that voice activity is told at."""

FRAME = 512
"""Samples of a frame: 32 ms."""

GAP, PAD, LEAST = 10, 3, 8
"""Frames: a shorter gap (0.3 s) is no gap, so much (0.1 s) is added at both ends, less (0.25 s) is no speech."""

SHORTEST = 0.5
"""Seconds that stretches may be cut at, at least: longer than padding and a gap, so that each piece holds speech."""

_CONTEXT = 64  # samples before a frame that the model sees too
_BEGINS, _ENDS = 0.5, 0.35  # probabilities, as silero-vad's own iterator has them
_ABOVE_FLOOR = 4.0  # times the floor's energy, 6 dB
_FLOOR_RISE = 1.01  # a frame: the floor follows a louder room within seconds, and a quieter one at once
_LEAST_ENERGY = 1e-7  # -70 dBFS

Samples = NDArray[np.float32]
Gate = Callable[[Samples], bool]
"""Tells for one frame after the other, float32 (FRAME,), whether it is speech."""


def energy_gate() -> Gate:
    """Frames whose energy stands out of the sound's own floor, which is followed from frame to frame."""
    floor = np.inf

    def speaks(frame: Samples) -> bool:
        nonlocal floor
        energy = max(float(np.mean(np.square(frame, dtype=np.float64))), _LEAST_ENERGY)
        floor = min(energy, floor * _FLOOR_RISE)
        return energy > _ABOVE_FLOOR * floor

    return speaks


def silero_gate() -> Gate:
    """What silero-vad's model (Silero Team, 2021; MIT licence) takes for speech."""
    session = _session()
    state, context, speaking = np.zeros((2, 1, 128), np.float32), np.zeros(_CONTEXT, np.float32), False

    def speaks(frame: Samples) -> bool:
        nonlocal state, context, speaking
        input = np.concatenate([context, frame])[np.newaxis]
        probability, state = session.run(None, {"input": input, "state": state, "sr": np.array(RATE, np.int64)})
        context = frame[-_CONTEXT:]
        speaking = float(probability[0, 0]) >= (_ENDS if speaking else _BEGINS)
        return speaking

    return speaks


GATES = {"energy": energy_gate, "silero": silero_gate}


def check_gate(name: str) -> None:
    """Raise UsageError for a gate that isn't there, or whose packages aren't."""
    if name not in GATES:
        raise UsageError(f"speech is {name!r}: it must be {', '.join(GATES)}, or nothing")
    if name == "silero" and (_model() is None or importlib.util.find_spec("onnxruntime") is None):
        raise UsageError(
            "speech = 'silero' needs two packages: `pip install onnxruntime` and `pip install --no-deps silero-vad` "
            "(it wants torch, which is not needed for its model); or take 'energy'"
        )


def stretches(blocks: Iterator[tuple[int, Samples]], speaks: Gate, longest: int) -> Iterator[tuple[int, Samples]]:
    """Stretches of speech with their first samples, of at most so many samples; a longer one is cut.

    Args:
        blocks: one after the other, each with its first sample, at RATE Hz.
        longest: at least SHORTEST. No more than that, and a block, is in memory.
    """
    before: deque[Samples] = deque(maxlen=PAD)
    held: list[Samples] = []
    active, first, spoken, silent = False, 0, 0, 0
    for number, (offset, frame) in enumerate(_frames(blocks)):
        spoke = speaks(frame if len(frame) == FRAME else np.pad(frame, (0, FRAME - len(frame))))
        if not active and not spoke:
            before.append(frame)
            continue
        if not active:
            active, first = True, offset + (number - len(before)) * FRAME
            held, spoken, silent = [*before, frame], 1, 0
            before.clear()
        else:
            held.append(frame)
            spoken, silent = (spoken + 1, 0) if spoke else (spoken, silent + 1)
        if silent >= GAP:
            if (kept := held[: max(0, len(held) - silent + PAD)]) and spoken >= LEAST:
                yield first, np.concatenate(kept)
            before.extend(held[len(kept) :])
            active, held = False, []
        elif (len(held) + 1) * FRAME > longest:
            yield first, np.concatenate(held)
            held, first, spoken = [], first + len(held) * FRAME, LEAST - 1  # one more frame of speech is enough
    if (kept := held[: len(held) - max(0, silent - PAD)]) and spoken >= LEAST:
        yield first, np.concatenate(kept)


def _frames(blocks: Iterator[tuple[int, Samples]]) -> Iterator[tuple[int, Samples]]:
    """Frames of FRAME samples, the last one of fewer, with the first sample of all."""
    first, rest = 0, np.zeros(0, np.float32)
    for number, (start, block) in enumerate(blocks):
        first = start if number == 0 else first
        rest = np.concatenate([rest, block])
        count = len(rest) // FRAME
        for frame in rest[: count * FRAME].reshape(count, FRAME):
            yield first, frame
        rest = rest[count * FRAME :]
    if len(rest):
        yield first, rest


def _model() -> Path | None:
    """The model in silero-vad's wheel; the package itself is not imported, for it wants torch."""
    found = importlib.util.find_spec("silero_vad")
    path = Path(found.origin).parent / "data" / "silero_vad.onnx" if found and found.origin else None
    return path if path and path.exists() else None


@cache  # once a process
def _session() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(_model()), options, providers=["CPUExecutionProvider"])
