"""Linear maps into the shared space: z = Wx + b, then L2-normalized."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from mmembed.errors import DatasetError
from mmembed.types import Space

_METADATA_KEY = "mmembed"  # one key: safetensors writes several in no fixed order


def normalize_rows(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (n, d) scaled to unit L2 norm; a row of zeros stays zero."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0))


@dataclass(frozen=True, eq=False)
class LinearMap:
    """z = Wx + b from the space of an encoder into the shared space.

    Attributes:
        weight: W, float32 (k, d). Row j is direction j; the first rows matter most.
        bias: b, float32 (k,).
        input: the space of x, of dimension d.
        output: the space of z, of dimension k.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    input: Space
    output: Space

    def __post_init__(self) -> None:
        if self.weight.shape != (self.output.dim, self.input.dim) or self.bias.shape != (self.output.dim,):
            raise ValueError(f"W {self.weight.shape} and b {self.bias.shape} don't map {self.input} to {self.output}")

    def apply(self, features: NDArray[np.float32], space: Space) -> NDArray[np.float32]:
        """L2-normalized embeddings, float32 (n, k), of features (n, d).

        Raises:
            SpaceError: the features are of another space than this map takes.
        """
        self.input.check(space, "the features")
        return normalize_rows(features @ self.weight.T + self.bias)

    def to_bytes(self) -> bytes:
        """As safetensors: W, b, and both spaces in the header."""
        from safetensors.numpy import save

        spaces = {"input": asdict(self.input), "output": asdict(self.output)}
        # safetensors writes the memory of an array as it lies: a transposed one would come back scrambled
        return save(
            {"W": np.ascontiguousarray(self.weight), "b": np.ascontiguousarray(self.bias)},
            {_METADATA_KEY: json.dumps(spaces, sort_keys=True)},
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> LinearMap:
        """The inverse of `to_bytes`.

        Raises:
            DatasetError: these are not the bytes of a map.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # safetensors: length, then JSON
            spaces = json.loads(header["__metadata__"][_METADATA_KEY])
            return cls(tensors["W"], tensors["b"], Space(**spaces["input"]), Space(**spaces["output"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"this is no map that mmembed wrote: {error}") from error
