"""Texts to numbers of tokens, by a tokenizer.json of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmembed.encoders.loading import once
from mmembed.errors import EncodeError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokenize(path: str, texts: Sequence[str], most: int) -> list[NDArray[np.int64]]:
    """The tokens of each text, int64 (tokens,), with the special ones and without padding.

    Args:
        path: of a tokenizer.json.
        most: longer texts are cut so that, with the special tokens, they have so many; 0: none is.

    Raises:
        UsageError: the file is no tokenizer.
        EncodeError: a text has no tokens.
    """
    encoded = _tokenizer(path, most).encode_batch(list(texts))
    for row, tokens in enumerate(encoded):
        if not tokens.ids:
            raise EncodeError(f"text {row} of the batch has no tokens")
    return [np.array(tokens.ids, np.int64) for tokens in encoded]


def _tokenizer(path: str, most: int) -> Tokenizer:
    return once(("tokenizer", path, most), lambda: _open(path, most))


def _open(path: str, most: int) -> Tokenizer:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it starts threads, and warns when a worker forks
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing narrower
        raise UsageError(f"can't read the tokenizer {path}: {error}") from error
    tokenizer.no_padding()
    if most:
        tokenizer.enable_truncation(most)
    else:
        tokenizer.no_truncation()
    return tokenizer
