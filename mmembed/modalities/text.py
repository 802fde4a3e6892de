"""Texts: decoded from UTF-8, cut into chunks of whole sentences, brought to one plain form."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, NamedTuple

from mmembed.errors import DecodeError, ReadError, UsageError
from mmembed.modalities import option
from mmembed.types import Media, Span

LONGEST_WORD = 64
"""A longer run of characters without a blank counts as several words, so that every chunk is bounded."""

_JOINERS = "\u200c\u200d"
"""ZWNJ and ZWJ: scripts of India and Iran, and emoji, are written with them; kept, but nothing to read alone."""

_WORD_SPACE = "\u200b"
"""The zero width space, a word border in Khmer and Thai: a blank."""

_IGNORED = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # Cc without the blanks \t \n \v \f \r \x1c-\x1f \x85
    "\xad\u061c\u180e\u200e\u200f\u202a-\u202e\u2066-\u206f"  # soft hyphen, marks of direction, of shaping
    "\u2060-\u2064\ufeff\ufff9-\ufffb"  # word joiner, invisible operators, byte order mark, annotation
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f"  # shorthand, music, tags
)
"""Control (Cc) and format (Cf) characters that no reader sees, as the inside of a regular expression's set.
The other Cf are kept: the joiners, the signs that enclose numbers, the controls of hieroglyphs."""

_DROP = re.compile(f"[{_IGNORED}]+")
_VISIBLE = re.compile(rf"[^\s{_IGNORED}{_WORD_SPACE}{_JOINERS}]")
_WORD = re.compile(rf"[^\s{_WORD_SPACE}]{{1,{LONGEST_WORD}}}")
_SENTENCE_END = re.compile(r"[.!?…。！？｡।॥؟۔։።][\"'”’»›)\]）」』]*$")  # noqa: RUF001 (look-alikes are meant)


@dataclass(frozen=True)
class Text:
    """How texts are cut; the fields are flags.

    Attributes:
        words: the most words of a segment, which ends with a sentence where one ends in it; 0: a text is one segment.
        overlap: how many words a segment repeats of the one before it.
    """

    name: ClassVar[str] = "text"
    version: ClassVar[str] = "1"

    words: int = option(0, "the most words of a segment, cut on sentence borders; 0: a text is one segment")
    overlap: int = option(0, "how many words a segment repeats of the one before it")

    def __post_init__(self) -> None:
        if self.words < 0:
            raise UsageError(f"words is {self.words}, but must be 0 (a text is one segment) or more: change it")
        if not 0 <= self.overlap < max(self.words, 1):
            raise UsageError(
                f"overlap is {self.overlap}, but must be at least 0 and less than words, {self.words} "
                "(0 where a text is one segment): give fewer words of overlap, or more words"
            )

    def decode(self, media: Media) -> str:
        """The text.

        Raises:
            ReadError: its file can't be read.
            DecodeError: it isn't UTF-8, holds half a surrogate pair, or shows nothing.
        """
        text = media.content if isinstance(media.content, str) else _read(media)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON's "\ud800" gives one
            raise DecodeError(f"the text holds half a surrogate pair at character {error.start}") from error
        _check_visible(text)
        return text

    def segment(self, text: str) -> Iterator[tuple[Span, str]]:
        """Chunks with their (start, end) in characters of `text`: piece == text[start:end]. Linear in time.

        A chunk that shows nothing (control characters) is left out.

        Raises:
            DecodeError: the text shows nothing.
        """
        _check_visible(text)
        for start, end in _chunks(text, self.words, self.overlap) if self.words else [(0, len(text))]:
            if _VISIBLE.search(text, start, end):
                yield (start, end), text[start:end]

    def normalize(self, piece: str) -> str:
        """Unicode NFC, without characters that no reader sees; runs of blanks are one space, none at the ends."""
        return unicodedata.normalize("NFC", " ".join(_DROP.sub("", piece).replace(_WORD_SPACE, " ").split()))


class _Word(NamedTuple):
    start: int
    end: int
    ends_sentence: bool


def _read(media: Media) -> str:
    """The UTF-8 text of bytes or of a file."""
    with media.open() as file:
        try:
            return file.read().decode()
        except OSError as error:
            raise ReadError(f"can't read {media.path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            label = media.path or "the text"
            raise DecodeError(f"{label} is not UTF-8 at byte {error.start}: {error.reason}; convert it") from error


def _check_visible(text: str) -> None:
    if not _VISIBLE.search(text):
        raise DecodeError("the text is empty" + (": it holds no visible character" if text.strip() else ""))


def _words(text: str) -> Iterator[_Word]:
    """Runs without a blank. A sentence ends with its mark, before an empty line, and where the text ends."""
    ahead = _WORD.finditer(text)
    match = next(ahead, None)
    while match is not None:
        following = next(ahead, None)
        start, end = match.span()
        gap_end = following.start() if following else len(text)
        marked = gap_end > end and bool(_SENTENCE_END.search(text, start, end))
        yield _Word(start, end, not following or marked or text.count("\n", end, gap_end) > 1)
        match = following


def _chunks(text: str, words: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Spans of at most `words` words; only they are held. Each takes at least one word that none before it had."""
    ahead = _words(text)
    window: deque[_Word] = deque(islice(ahead, words))
    taken = 0  # how many words of the window the chunk before has
    while len(window) > taken:
        cut = len(window)
        if cut == words:  # else the text ends here
            ends = (i for i in range(cut, taken, -1) if window[i - 1].ends_sentence)
            cut = next(ends, cut)
        yield window[0].start, window[cut - 1].end
        taken = min(overlap, cut)
        for _ in range(cut - taken):
            window.popleft()
        window.extend(islice(ahead, words - len(window)))
