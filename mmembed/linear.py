"""Linear maps into the shared space, z = Wx + b, and how embeddings there are compared."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.errors import DatasetError
from mmembed.types import Space

_METADATA_KEY = "mmembed"  # one key: safetensors writes several in no fixed order

Array = NDArray[np.float32]


def normalize_rows(matrix: Array) -> Array:
    """Rows (n, d) scaled to unit L2 norm; a row of zeros stays zero."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0))


@dataclass(frozen=True, eq=False)
class Scoring:
    """How a query's embedding is compared with a candidate's, beside their inner product.

    Attributes:
        spectrum: None: embeddings are L2-normalized, and the inner product is their cosine. Else correlations s of
            canonical variates u, float32 (k,), and z = u sqrt(s / (1 - s^2)): the inner product of two embeddings less
            half of sum_k s_k z_k^2 of the candidate is, up to what is the same for all candidates, the log-ratio
            log p(u, v) / p(u) p(v) of jointly Gaussian variates (Bach and Jordan 2005 have the model).
    """

    spectrum: Array | None = None

    @classmethod
    def from_json(cls, values: list[float] | None) -> Scoring:
        """The inverse of `to_json`."""
        return cls(None if values is None else np.array(values, np.float32))

    def to_json(self) -> list[float] | None:
        """The spectrum as JSON values."""
        return None if self.spectrum is None else [float(value) for value in self.spectrum]

    def first(self, size: int) -> Scoring:
        """Of embeddings that are cut after so many dimensions."""
        return self if self.spectrum is None else Scoring(self.spectrum[:size])

    def embeddings(self, z: Array) -> Array:
        """Values (n, k) of maps as embeddings."""
        return normalize_rows(z) if self.spectrum is None else z

    def means(self, embeddings: Array, starts: NDArray[np.int64]) -> Array:
        """One embedding for each run of rows that begins at `starts` (m,): float32 (m, k)."""
        counts = np.append(starts[1:], len(embeddings)) - starts
        sums = np.add.reduceat(embeddings, starts)
        return self.embeddings(np.asarray(sums / counts[:, np.newaxis], np.float32))

    def terms(self, embeddings: Array) -> Array | None:
        """What a candidate's score has beside the inner product, float32 (n,); None: nothing."""
        return None if self.spectrum is None else np.asarray(embeddings**2 @ self.spectrum / np.float32(-2))


@dataclass(frozen=True, eq=False)
class Lift:
    """Random Fourier features, which follow the features themselves: a map stays linear in both together.

    phi(x) = cos(F x + g), whose inner products approximate a Gaussian kernel (Rahimi and Recht 2007, "Random features
    for large-scale kernel machines").

    Attributes:
        frequencies: F, float32 (D, d).
        phases: g, float32 (D,).
    """

    frequencies: Array
    phases: Array

    def apply(self, features: Array) -> Array:
        """x and phi(x), float32 (n, d + D), of features (n, d)."""
        waves = np.cos(features @ self.frequencies.T + self.phases)
        return np.concatenate([features, waves], axis=1, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class LinearMap:
    """z = Wx + b from the space of an encoder into the shared space.

    Attributes:
        weight: W, float32 (k, d), or (k, d + D) with a lift. Row j is direction j; the first rows matter most.
        bias: b, float32 (k,).
        input: the space of x, of dimension d.
        output: the space of z, of dimension k.
        scoring: how embeddings are compared.
        lift: what is appended to x.
    """

    weight: Array
    bias: Array
    input: Space
    output: Space
    scoring: Scoring = Scoring()
    lift: Lift | None = None

    def __post_init__(self) -> None:
        dim = self.input.dim + (len(self.lift.phases) if self.lift else 0)
        if self.weight.shape != (self.output.dim, dim) or self.bias.shape != (self.output.dim,):
            raise ValueError(f"W {self.weight.shape} and b {self.bias.shape} don't map {self.input} to {self.output}")
        if self.lift and self.lift.frequencies.shape != (len(self.lift.phases), self.input.dim):
            raise ValueError(f"a lift of frequencies {self.lift.frequencies.shape} doesn't take {self.input}")
        if self.scoring.spectrum is not None and self.scoring.spectrum.shape != (self.output.dim,):
            raise ValueError(f"a spectrum {self.scoring.spectrum.shape} doesn't score {self.output}")

    def apply(self, features: Array, space: Space) -> Array:
        """Embeddings, float32 (n, k), of features (n, d): L2-normalized, unless `scoring` has a spectrum.

        Raises:
            SpaceError: the features are of another space than this map takes.
        """
        return self.scoring.embeddings(self.values(features, space))

    def values(self, features: Array, space: Space) -> Array:
        """z = Wx + b as it is, float32 (n, k), of features (n, d).

        Raises:
            SpaceError: the features are of another space than this map takes.
        """
        self.input.check(space, "the features")
        lifted = self.lift.apply(features) if self.lift else features
        return np.asarray(lifted @ self.weight.T + self.bias)

    def to_bytes(self) -> bytes:
        """As safetensors: W, b, what else there is, and both spaces in the header."""
        from safetensors.numpy import save

        spaces = {"input": asdict(self.input), "output": asdict(self.output)}
        tensors = {"W": self.weight, "b": self.bias}
        if self.lift:
            tensors |= {"lift.frequencies": self.lift.frequencies, "lift.phases": self.lift.phases}
        if self.scoring.spectrum is not None:
            tensors["spectrum"] = self.scoring.spectrum
        # safetensors writes the memory of an array as it lies: a transposed one would come back scrambled
        return save(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
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
            tensors: dict[str, Any] = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # safetensors: length, then JSON
            spaces = json.loads(header["__metadata__"][_METADATA_KEY])
            lift = Lift(tensors["lift.frequencies"], tensors["lift.phases"]) if "lift.phases" in tensors else None
            return cls(
                tensors["W"],
                tensors["b"],
                Space(**spaces["input"]),
                Space(**spaces["output"]),
                Scoring(tensors.get("spectrum")),
                lift,
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"this is no map that mmembed wrote: {error}") from error
