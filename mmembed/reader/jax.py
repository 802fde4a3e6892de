"""A reader's batches as arrays of JAX."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmembed.errors import UsageError
from mmembed.reader.reader import Reader


def batches(reader: Reader) -> Iterator[dict[str, Any]]:
    """One epoch; arrays of numbers lie on JAX's device, lists stay lists. With `drop_last` all have the same shape.

    Unless `jax_enable_x64` is set, JAX has numbers of 32 bits: float64 becomes float32, int64 int32.

    Raises:
        UsageError: a whole number does not fit into them.
    """
    for batch in reader:
        yield {name: _array(name, value) for name, value in batch.items()}


def _array(name: str, value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.int64 and value.size and not jax.config.jax_enable_x64:
        limits = np.iinfo(np.int32)
        if value.min() < limits.min or value.max() > limits.max:
            raise UsageError(f"{name} has numbers of more than 32 bits: set jax_enable_x64, or leave the column out")
    return jnp.asarray(value)
