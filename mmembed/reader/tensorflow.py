"""A reader's batches as a `tf.data.Dataset`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from mmembed.errors import UsageError
from mmembed.reader.reader import Reader


def dataset(reader: Reader) -> Any:
    """One epoch for each pass; texts are tf.string, "" where there is none. What it prefetches counts as given out.

    Raises:
        UsageError: a column is neither of numbers nor of texts, one for each sample.
    """
    first = next(reader.batches(0, 0))
    texts = {column.name for column in reader.columns if column.kind == "text"}
    signature = {name: _spec(name, value, name in texts) for name, value in first.items()}

    def epoch() -> Iterator[dict[str, Any]]:
        for batch in reader:
            yield {name: _plain(value) for name, value in batch.items()}

    return tf.data.Dataset.from_generator(epoch, output_signature=signature)


def _plain(value: Any) -> Any:
    return value if isinstance(value, np.ndarray) else [text or "" for text in value]


def _spec(name: str, value: Any, is_text: bool) -> Any:
    if isinstance(value, np.ndarray):
        return tf.TensorSpec((None, *value.shape[1:]), value.dtype)
    if name == "neighbors.id":
        return tf.TensorSpec((None, len(value[0])), tf.string)
    if is_text and not isinstance(value[0], list):
        return tf.TensorSpec((None,), tf.string)
    raise UsageError(f"{name} can't be a tensor: leave it out of the columns")
