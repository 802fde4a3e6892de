"""Texts to features: word vectors for what an English text means, hashed n-grams for how any text is written."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmembed.encoders.input import Input, unit_rows
from mmembed.errors import EncodeError, UsageError
from mmembed.types import Space

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VECTORS = 256
"""Dimensions of the word vectors."""

NGRAMS = 512
"""Dimensions of the hashed n-grams."""

SIZES = (2, 3, 4, 5)
"""Characters of an n-gram, the borders of its word among them."""

BLOCK = 1 << 14
"""Characters worked on at once: bounds the memory, whatever the batch, and fits the processor's cache."""

_PACKAGE = "wordllama==0.4.0.post1"
_WEIGHTS = ("weights/l2_supercat_256.safetensors", "8ca0090ec476a033f1b86907875f5a5e")
_TOKENIZER = ("tokenizers/l2_supercat_tokenizer_config.json", "6ee8ea253f9f082348e9f5207c6c2b1d")
"""Files and their BLAKE2b-128: other weights would give other features under the name of the same space."""

_BORDERS = (  # first and last code point; what lies between words, in one table so that no text is read by a loop
    *((0x00, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0xBF)),  # ASCII and Latin-1 without letters and digits
    *((0x055A, 0x055F), (0x0589, 0x0589), (0x05BE, 0x05BE), (0x05F3, 0x05F4)),  # Armenian, Hebrew
    *((0x060C, 0x060C), (0x061B, 0x061B), (0x061F, 0x061F), (0x066A, 0x066D), (0x06D4, 0x06D4)),  # Arabic
    *((0x0964, 0x0965), (0x1361, 0x1368)),  # Devanagari, Ethiopic
    *((0x2000, 0x206F), (0x3000, 0x3004), (0x3008, 0x3020)),  # general punctuation, CJK
    *((0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65)),  # full width
)
_IS_BORDER = np.zeros(0x10000, bool)
for _first, _last in _BORDERS:
    _IS_BORDER[_first : _last + 1] = True

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64; its bits are those of the golden ratio
_INVERSE = pow(_BASE, -1, 1 << 64)


@dataclass(frozen=True)
class WordVectors:
    """The mean of a text's static token vectors, of unit length: what an English text means.

    The vectors are those of WordLlama (from the token embeddings of Llama 2; MIT licence), which lie in the wheel of
    the package `wordllama`.
    """

    modality: ClassVar[str] = "text"
    space: ClassVar[Space] = Space("wordllama", "1", VECTORS)
    input: ClassVar[Input] = Input()

    def setup(self) -> None:
        """Load the weights.

        Raises:
            UsageError: the package that holds them is missing or of another version.
        """
        _load()

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        """Features, float32 (len(batch), 256); a text's are the same bits in any batch.

        Raises:
            EncodeError: a text is empty.
        """
        return unit_rows(_summed(batch, token_sums, np.zeros((len(batch), VECTORS), np.float32)))


@dataclass(frozen=True)
class HashedNgrams:
    """Hashed n-grams of characters, of unit length: they tell names apart, and any language's spelling. A text that
    holds nothing but punctuation has zeros."""

    modality: ClassVar[str] = "text"
    space: ClassVar[Space] = Space("ngrams", "1", NGRAMS)
    input: ClassVar[Input] = Input()

    def setup(self) -> None:
        """There are no weights."""

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        """Features, float32 (len(batch), 512); a text's are the same bits in any batch.

        Raises:
            EncodeError: a text is empty.
        """
        sums = _summed(batch, ngram_sums, np.zeros((len(batch), NGRAMS)))
        return unit_rows(np.sign(sums) * np.sqrt(np.abs(sums)))  # the tenth use of a word says less than the first


def _summed(batch: Sequence[str], sums: Callable[[Sequence[str]], NDArray[Any]], found: NDArray[Any]) -> NDArray[Any]:
    """The sums of each text's pieces, added to the rows of `found`.

    Raises:
        EncodeError: a text is empty.
    """
    if "" in batch:
        raise EncodeError(f"text {list(batch).index('')} of the batch is empty")
    for rows, texts in _blocks(batch):
        found[rows] += sums(texts)
    return found


def token_sums(texts: Sequence[str]) -> NDArray[np.float32]:
    """The sum of each text's token vectors, float32 (len(texts), 256): of the direction of their mean.

    No text is padded, so none is changed by its neighbours.
    """
    tokenizer, table = _load()
    tokens = [text.ids for text in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    starts = np.cumsum([0, *(len(ids) for ids in tokens[:-1])])
    sums: NDArray[np.float32] = np.add.reduceat(table[np.concatenate(tokens)], starts, axis=0)
    return sums


def ngram_sums(texts: Sequence[str]) -> NDArray[np.float64]:
    """Hashed character n-grams, float64 (len(texts), 512): all n-grams of all texts at once.

    Of each word between its borders, case folded ("<frog>"), all pieces of `SIZES` characters; each adds
    ±1/(pieces of its word) to one of 512 places, so that words count alike, short or long.
    Pieces with borders: Bojanowski et al., "Enriching Word Vectors with Subword Information", TACL 2017; signed
    hashing: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.

    With prefix sums P of c[k] B^k modulo 2^64, the hash of the characters i … j-1 is (P[j] - P[i]) B^-i (Rabin and
    Karp's rolling hash; it doesn't depend on i), its bits then mixed. It is the same on every machine and in every run.
    """
    folded = [f"\0{text.casefold()}" for text in texts]
    codes = np.frombuffer("".join([*folded, "\0"]).encode("utf-32-le"), np.uint32)
    is_border = (codes < len(_IS_BORDER)) & _IS_BORDER[np.minimum(codes, len(_IS_BORDER) - 1)]
    starts, sizes, word = _windows(np.flatnonzero(is_border))

    prefix = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(np.where(is_border, 1, codes.astype(np.uint64) + 1) * _powers(_BASE, len(codes)), out=prefix[1:])
    hashes = _mix((prefix[starts + sizes] - prefix[starts]) * _powers(_INVERSE, len(codes))[starts])

    row = np.repeat(np.arange(len(texts)), [len(text) for text in folded])[starts]
    place = row * NGRAMS + (hashes % NGRAMS).astype(np.intp)
    weight = np.where(hashes >> np.uint64(63), -1.0, 1.0) / np.bincount(word)[word]
    sums = np.bincount(place, weight, minlength=len(texts) * NGRAMS)
    return sums.reshape(len(texts), NGRAMS).astype(np.float64, copy=False)


def _windows(borders: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Start, size and word number of every n-gram between `borders`, the first of which is 0 and begins a word."""
    lengths = np.diff(borders)  # of the words, one border included; 1: no word
    word = np.repeat(np.arange(len(lengths)), lengths)
    left = borders[1:][word] - np.arange(len(word)) + 1  # characters from here through the word's last border
    left[lengths[word] == 1] = 0
    starts = [np.flatnonzero(left >= size) for size in SIZES]
    sizes = np.repeat(SIZES, [len(s) for s in starts])
    all_starts = np.concatenate(starts)
    return all_starts, sizes, word[all_starts]


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """base^0, base^1, … modulo 2^64, uint64 (count,)."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)


def _mix(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the result depends on every bit of the hash: MurmurHash3's finalizer (Appleby, public domain)."""
    shift = np.uint64(33)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes = (hashes ^ (hashes >> shift)) * np.uint64(factor)
    return hashes ^ (hashes >> shift)


def _blocks(texts: Sequence[str]) -> Iterator[tuple[slice, Sequence[str]]]:
    """Some whole texts, or one piece of a long one, with the rows that they add to.

    How a long text is cut depends on it alone, else its sums would depend on its neighbours.
    """
    start = size = 0
    for row, text in enumerate(texts):
        if start < row and size + len(text) > BLOCK:
            yield slice(start, row), texts[start:row]
            start, size = row, 0
        size += len(text)
        if size > BLOCK:
            yield from ((slice(row, row + 1), [piece]) for piece in _pieces(text))
            start, size = row + 1, 0
    if start < len(texts):
        yield slice(start, len(texts)), texts[start:]


def _pieces(text: str) -> Iterator[str]:
    """At most BLOCK characters each, cut at a space where there is one: no token or n-gram crosses it."""
    start = 0
    while len(text) - start > BLOCK:
        space = text.rfind(" ", start + 1, start + BLOCK + 1)
        end = space if space > 0 else start + BLOCK
        yield text[start:end]
        start = end + (space > 0)
    if start < len(text):
        yield text[start:]


@cache
def _load() -> tuple[Tokenizer, NDArray[np.float32]]:
    """The tokenizer and the token vectors, float32 (32000, 256), from the files of the package, once a process.

    The package itself is not imported: that takes 0.3 s, sets up logging and loads what only downloads need.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it starts threads, and warns when a worker forks
    from safetensors.numpy import load
    from tokenizers import Tokenizer

    table = load(_file(*_WEIGHTS))["embedding.weight"].astype(np.float32)
    return Tokenizer.from_str(_file(*_TOKENIZER).decode()), table


def _file(name: str, digest: str) -> bytes:
    """One of the package's files, checked."""
    spec = importlib.util.find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"the encoder of texts needs {_PACKAGE}, which is not installed: pip install {_PACKAGE}")
    path = Path(spec.submodule_search_locations[0]) / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}; the encoder of texts needs {_PACKAGE}") from error
    if hashlib.blake2b(content, digest_size=16).hexdigest() != digest:
        raise UsageError(f"{path} is not of {_PACKAGE}, which the encoder of texts needs: pip install {_PACKAGE}")
    return content
