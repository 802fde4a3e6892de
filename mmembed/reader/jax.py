"""A reader's batches as arrays of JAX."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmembed.reader.reader import Reader


def batches(reader: Reader) -> Iterator[dict[str, Any]]:
    """One epoch; arrays of numbers lie on JAX's device, lists stay lists. With `drop_last` all have the same shape."""
    for batch in reader:
        yield {name: jnp.asarray(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()}
