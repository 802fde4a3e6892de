"""From a data set of mmembed to tensors: words and their numbers, inputs and their masks, statistics."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmembed.errors import MmembedError
from mmembed.reader import Reader, open_dataset
from model import END, METADATA, PAD, START, UNKNOWN, Captioner

SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
Inputs = dict[str, tuple[Tensor, Tensor]]


class Form(NamedTuple):
    """What a captioner sees of a record.

    Attributes:
        inputs: modalities that are captioned, all segments of each.
        columns: "feature", "embedding", or both side by side.
        metadata: keys whose words it reads as well.
        longest: words of a text, at most.
        spaces: of the vectors; others are refused.
    """

    inputs: list[str]
    columns: list[str]
    metadata: list[str]
    longest: int
    spaces: dict[str, str]


def open_captions(
    root: Path | str,
    form: Form,
    split: str,
    batch_size: int,
    captions: str = "random",
    shuffle: bool = False,
    seed: int = 0,
) -> Reader:
    """Records of a split with what the form says, and one caption at random, or all with "stack"."""
    wanted = [f"{name}.{column}" for name in form.inputs for column in form.columns]
    return open_dataset(
        root,
        modalities=(*form.inputs, "text"),
        columns=(*wanted, *(f"metadata.{key}" for key in form.metadata), "text.media", "id"),
        segments={**dict.fromkeys(form.inputs, "stack"), "text": captions},
        missing="mask",
        split=split,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        spaces=form.spaces,
    )


def usable(batch: Mapping[str, Any], form: Form) -> list[int]:
    """Which rows of a batch have a caption, and something to caption."""
    some = np.any([batch[f"{name}.mask"].any(1) for name in form.inputs], 0)
    has_caption = batch["text.mask"].reshape(len(some), -1).any(1)
    found: list[int] = np.flatnonzero(has_caption & some).tolist()
    return found


def validates(id: str, share: float) -> bool:
    """Whether a training record is kept out of training, to choose by it how to train: by a hash of its id. It may look
    better than held-out records do, for near twins of it may be trained on."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=4).digest()) < share * 2**32


def divided(batch: Mapping[str, Any], form: Form, share: float) -> tuple[list[int], list[int]]:
    """The usable rows of a batch of training records: those to train on, and the share kept for validation."""
    kept = {row: validates(batch["id"][row], share) for row in usable(batch, form)}
    return [row for row, is_kept in kept.items() if not is_kept], [row for row, is_kept in kept.items() if is_kept]


def captioned(
    batch: Mapping[str, Any], form: Form, vocabulary: Vocabulary, rows: Sequence[int]
) -> tuple[Inputs, Tensor]:
    """What a captioner sees of rows, and the words that it is to say of them, see `Vocabulary.encode`."""
    words = vocabulary.encode([batch["text.media"][row] for row in rows], form.longest)
    return tensors(batch, form, vocabulary, rows), words


def tensors(batch: Mapping[str, Any], form: Form, vocabulary: Vocabulary, rows: Sequence[int]) -> Inputs:
    """Of each input its columns of vectors side by side, float32 (B, S, dim), of the metadata words, int64 (B, L); and
    which segments or words are there."""
    found = {}
    for name in form.inputs:
        columns = [batch[f"{name}.{column}"][rows] for column in form.columns]
        vectors = np.concatenate(columns, -1, dtype=np.float32)
        found[name] = (torch.from_numpy(vectors), torch.from_numpy(batch[f"{name}.mask"][rows]))
    if form.metadata:
        words = vocabulary.encode([metadata_text(batch, form, row) for row in rows], form.longest)
        found[METADATA] = (words, words != PAD)
    return found


def metadata_text(batch: Mapping[str, Any], form: Form, row: int) -> str:
    """The words of a record's metadata."""
    values = (batch[f"metadata.{key}"][row] for key in form.metadata)
    return " ".join(str(value) for value in values if value is not None)


def split_words(text: str) -> list[str]:
    """Lower-case words, with their hyphens and apostrophes, and signs."""
    return re.findall(r"[^\W_]+(?:[-'\u2019][^\W_]+)*|[^\w\s]", text.lower())


def join_words(words: Iterable[str]) -> str:
    """Words as a text."""
    return re.sub(r" ([.,:;!?)])", r"\1", " ".join(words))


class Vocabulary:
    """Words and their numbers; the first four are special."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.number = {word: number for number, word in enumerate(self.words)}

    @classmethod
    def of(cls, texts: Iterable[str], least: int) -> Vocabulary:
        """The words that occur at least so often."""
        counts = Counter(word for text in texts for word in split_words(text))
        return cls([*SPECIAL, *sorted(word for word, count in counts.items() if count >= least)])

    def encode(self, texts: Sequence[str], longest: int) -> Tensor:
        """int64 (len(texts), L), from START to END, padded."""
        rows = [[self.number.get(word, UNKNOWN) for word in split_words(text)[: longest - 1]] for text in texts]
        rows = [[START, *row, END] for row in rows]
        width = max(map(len, rows))
        return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])

    def decode(self, numbers: Iterable[int]) -> str:
        """The text that numbers of words stand for."""
        return join_words(self.words[number] for number in numbers)


def rows_of(inputs: Inputs, rows: Tensor) -> Inputs:
    """Some of the records."""
    return {name: (vectors[rows], mask[rows]) for name, (vectors, mask) in inputs.items()}


class Statistics:
    """Mean and deviation of each dimension over all segments seen."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def add(self, vectors: Tensor, mask: Tensor) -> None:
        """Vectors (B, S, dim), and which of them are there (B, S)."""
        values = vectors[mask].double()
        self.count, self.sum = self.count + len(values), self.sum + values.sum(0)
        self.squares = self.squares + (values**2).sum(0)

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation, (dim,) each."""
        mean = self.sum / self.count
        deviation = (self.squares / self.count - mean**2).clamp(min=0).sqrt()
        return mean.float(), deviation.clamp(min=1e-3).float()


def load(path: Path | str) -> tuple[Captioner, Vocabulary, Form]:
    """The model of a checkpoint, ready to caption; its vocabulary; what it sees of a record."""
    saved = torch.load(path, weights_only=True)
    model = Captioner(**saved["sizes"])
    model.load_state_dict(saved["model"])
    return model.eval(), Vocabulary(saved["words"]), Form(**saved["form"])


def run(program: Callable[[], None]) -> None:
    """Run a program on one core; what mmembed refuses ends it with one line."""
    torch.set_num_threads(1)
    try:
        program()
    except MmembedError as error:
        raise SystemExit(f"error: {error}") from error
