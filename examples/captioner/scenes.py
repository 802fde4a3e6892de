"""What a caption of the sample data set names: its words, looked up in the tables that wrote it."""

from __future__ import annotations

import re
from typing import Any

from mmembed.sample import COLORS, NUMBERS, SHAPES

_SHAPE = {name: key for key, shape in SHAPES.items() for words in shape.words for name in words}
_COLOR = {word: key for key, color in COLORS.items() for word in color.words}
_COUNT = {
    word: count
    for count, phrases in NUMBERS.items()
    for phrase in phrases
    for word in phrase.split()
    if word not in ("a", "of", "group", "set")
}


def named(caption: str) -> dict[str, str | int | None]:
    """Shape, colour and count; None where the caption names none, or several that differ."""
    text = caption.lower()
    shapes = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _SHAPE), key=len, reverse=True)) + r")\b")
    found = [_SHAPE[name] for name in shapes.findall(text)]
    words = re.findall(r"\w+", shapes.sub(" ", text))  # without them: "five-pointed" is no number
    counts = {_COUNT[word] for word in words if word in _COUNT} or ({1} if re.search(r"\ban?\b", text) else set())
    colors = {_COLOR[word] for word in words if word in _COLOR}
    sets: dict[str, set[Any]] = {"shape": set(found), "color": colors, "count": counts}
    return {key: next(iter(values)) if len(values) == 1 else None for key, values in sets.items()}
