"""Texts to numbers of tokens, by a tokenizer.json of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmembed.encoders.loading import failing
from mmembed.errors import EncodeError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """The tokens of each text, int64 (tokens,), with the special ones and without padding.

    Raises:
        EncodeError: a text has no tokens.
    """
    encoded = tokenizer.encode_batch(list(texts))
    for row, tokens in enumerate(encoded):
        if not tokens.ids:
            raise EncodeError(f"text {row} of the batch has no tokens")
    return [np.array(tokens.ids, np.int64) for tokens in encoded]


def open_tokenizer(path: str, most: int) -> Tokenizer:
    """A tokenizer that pads nothing.

    Args:
        path: of a tokenizer.json.
        most: longer texts are cut so that, with the special tokens, they have so many; 0: as the file says.

    Raises:
        UsageError: the file is no tokenizer.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it starts threads, and warns when a worker forks
    from tokenizers import Tokenizer

    with failing(UsageError, f"can't read the tokenizer {path}"):
        tokenizer = Tokenizer.from_file(path)
    tokenizer.no_padding()
    if most:
        tokenizer.enable_truncation(most)
    return tokenizer
