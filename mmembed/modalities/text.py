"""Texts: decoded from UTF-8, cut into chunks of whole sentences, brought to one plain form."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from mmembed.errors import DecodeError, FilteredError, ReadError, UsageError
from mmembed.modalities import option
from mmembed.types import Media, Span

LONGEST_WORD = 64
"""A longer run of characters without a blank counts as several words, so that every chunk is bounded."""

MAX_BYTES = 64 << 20
"""Of a text file, at most."""

MAX_SEGMENT = 1_000_000
"""Characters of a segment, at most: it is shown, stored and encoded as a whole."""

PARTS, LEAST_PARTS, PART_CHARACTERS = 64, 8, 1 << 17
"""Of a text, explanations tell at most 64 parts apart. Each costs some encodings of the whole text, so that of long
texts they are fewer: parts times characters are at most 2^17, but 8 parts there are."""

LEAST_LETTERS = 30
"""A text with fewer letters may be of any language; those of a script that few languages share count thrice. Of the
captions of stamps in 64 languages, the language is told right of 97 in 100 that have so many, of 63 in 100 others. What
is wrong is mostly a near relative (Bosnian for Croatian, Malay for Indonesian)."""

_OWN_SCRIPT = re.compile("[\u0531-\u05ff\u0980-\u1dff\u2e80-\ua63f\uac00-\ud7af\U00020000-\U0003ffff]")
"""Letters that few languages share: Armenian, Hebrew, India's without Devanagari, Georgian, Thai, Han, Hangul, …"""

_LANGUAGE_CHARACTERS = 2000  # tell the language of the longest text
_MARKS = (  # the longer ones first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

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
_WIDE = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
"""Kana and ideographs, as the inside of a regular expression's set: each counts as a word."""

_SYLLABLES = "\u0e01-\u0eff\u1000-\u1049\u104c-\u109f\u1780-\u17d3\u17d6-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"
"""Thai, Lao, Burmese, Khmer, likewise: every SYLLABLES signs with their marks count as a word."""

_MARKED = (  # marks of those scripts, and of any: none is torn off what it stands with
    "\u0e31\u0e33-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb3-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059\u105e-\u1060"
    "\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u108f\u109a-\u109d\u17b4-\u17d3\u17dd"
    "\u0300-\u036f\u200c\u200d\u3099\u309a\ufe00-\ufe0f\uff9e\uff9f\U000e0100-\U000e01ef"
)
SYLLABLES = 4

_OPENING, _CLOSING = "「『（〈《【〔［“‘(\\[", "。！？｡．、，；：…។៕။၊」』）〉》】〕］”’»›)\\].!?,;:\"'"  # noqa: RUF001
_STACKED = "\u17d2[\u1780-\u17a2]|\u1039[\u1000-\u1021]"  # a consonant below another: Khmer, Burmese
_CLUSTER = rf"(?:[{_SYLLABLES}](?:{_STACKED}|[{_MARKED}]){{0,6}})"  # bounded, so that a word has LONGEST_WORD signs
_WORD = re.compile(
    rf"[{_OPENING}]{{0,4}}(?:[{_WIDE}][{_MARKED}]{{0,32}}|{_CLUSTER}{{1,{SYLLABLES}}})[{_CLOSING}]{{0,4}}"
    rf"|[^\s{_WORD_SPACE}{_WIDE}{_SYLLABLES}]{{1,{LONGEST_WORD}}}"
)
_WIDE_END = re.compile(r"[。！？｡។៕။][\"'”’»›)\]）」』】〉》]*$")  # noqa: RUF001 (no blank follows these)
_SENTENCE_END = re.compile(r"[.!?…。！？｡।॥؟۔։።។៕။][\"'”’»›)\]）」』]*$")  # noqa: RUF001 (look-alikes are meant)


@dataclass(frozen=True)
class Text:
    """How texts are cut; the fields are flags.

    Attributes:
        words: the most words of a segment, which ends with a sentence where one ends in it; 0: a text is one segment.
        overlap: how many words a segment repeats of the one before it.
        min_words: a text of fewer words is left out.
        max_words: a text of more words is left out; 0: none is.
        languages: a text of another language is left out, by ISO 639-1 codes; one with fewer than LEAST_LETTERS stays,
            for its language can't be told.
        encoding: of text files. One that begins with the byte order mark of UTF-8, UTF-16 or UTF-32 goes by that.
            What is in Latin-1 can't be told from its relatives, and is never guessed.
    """

    name: ClassVar[str] = "text"
    version: ClassVar[str] = "2"

    words: int = option(0, "the most words of a segment, cut on sentence borders; 0: a text is one segment")
    overlap: int = option(0, "how many words a segment repeats of the one before it")
    min_words: int = option(0, "leave out texts of fewer words")
    max_words: int = option(0, "leave out texts of more words; 0: none")
    languages: tuple[str, ...] = option((), "leave out texts of other languages than these (en, fr, …); repeatable")
    encoding: str = option("utf-8", "of text files, like latin-1; one that begins with a byte order mark goes by it")

    def __post_init__(self) -> None:
        if min(self.min_words, self.max_words) < 0:
            raise UsageError(f"min_words and max_words are {self.min_words} and {self.max_words}: 0 (any) or more")
        try:
            "a".encode(self.encoding)
        except (LookupError, ValueError) as error:  # codecs that are none of text, like hex, are not found either
            raise UsageError(
                f"encoding is {self.encoding!r}, which Python doesn't know: try utf-8 or latin-1"
            ) from error
        if wrong := set(self.languages) - _known_languages() if self.languages else set():
            known = ", ".join(sorted(_known_languages()))
            raise UsageError(f"languages has {', '.join(sorted(wrong))}, but known are {known}")
        if self.words < 0:
            raise UsageError(f"words is {self.words}, but must be 0 (a text is one segment) or more: change it")
        if not 0 <= self.overlap < max(self.words, 1):
            raise UsageError(
                f"overlap is {self.overlap}, but must be at least 0 and less than words, {self.words} "
                "(0 where a text is one segment): give fewer words of overlap, or more words"
            )

    @property
    def by_content(self) -> bool:
        """Segments depend on the medium alone."""
        return True

    def decode(self, media: Media) -> str:
        """The text.

        Raises:
            ReadError: its file can't be read.
            DecodeError: it isn't in its encoding, holds half a surrogate pair, shows nothing, or is larger than
                MAX_BYTES.
            FilteredError: its length or language is not what is wanted.
        """
        text = media.content if isinstance(media.content, str) else _read(media, self.encoding)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON's "\ud800" gives one
            raise DecodeError(f"the text holds half a surrogate pair at character {error.start}") from error
        _check_visible(text)
        self._filter(text)
        return text

    def _filter(self, text: str) -> None:
        """Raise FilteredError for a text that is not wanted."""
        if self.min_words or self.max_words:
            words = sum(1 for _ in _words(text))
            if words < self.min_words:
                raise FilteredError(f"{words} words are fewer than min_words = {self.min_words}")
            if self.max_words and words > self.max_words:
                raise FilteredError(f"{words} words are more than max_words = {self.max_words}")
        if self.languages:
            language = _language(text)
            if language and language not in self.languages:
                raise FilteredError(f"its language is {language}, not one of languages = {', '.join(self.languages)}")

    def segment(self, text: str, metadata: Mapping[str, Any] = MappingProxyType({})) -> Iterator[tuple[Span, str]]:
        """Chunks with their (start, end) in characters of `text`: piece == text[start:end]. Linear in time.

        A chunk that shows nothing (control characters) is left out.

        Raises:
            DecodeError: the text shows nothing, or a chunk is longer than MAX_SEGMENT.
        """
        _check_visible(text)
        for start, end in _chunks(text, self.words, self.overlap) if self.words else [(0, len(text))]:
            if end - start > MAX_SEGMENT:
                raise DecodeError(
                    f"a segment of {end - start:,} characters, more than {MAX_SEGMENT:,}: cut texts with --text-words"
                )
            if _VISIBLE.search(text, start, end):
                yield (start, end), text[start:end]

    def normalize(self, piece: str) -> str:
        """Unicode NFC, without characters that no reader sees; runs of blanks are one space, none at the ends."""
        return unicodedata.normalize("NFC", " ".join(_DROP.sub("", piece).replace(_WORD_SPACE, " ").split()))

    def parts(self, content: str) -> list[tuple[float, ...]]:
        """The words of a normalized text, in characters; of more than PARTS (fewer where the text is longer than
        PART_CHARACTERS / PARTS), as many groups of neighbours."""
        words = list(_words(content))
        count = min(len(words), PARTS, max(LEAST_PARTS, PART_CHARACTERS // max(len(content), 1)))
        edges = [len(words) * place // max(count, 1) for place in range(count + 1)]
        return [(words[first].start, words[end - 1].end) for first, end in pairwise(edges)]

    def masked(self, content: str, spans: Sequence[tuple[float, ...]]) -> str:
        """Without some of the parts; "" where none is left, for between them there are only blanks."""
        ends = [0, *(int(place) for span in sorted(spans) for place in span), len(content)]
        return self.normalize("".join(content[start:end] for start, end in zip(ends[::2], ends[1::2], strict=True)))


class _Word(NamedTuple):
    start: int
    end: int
    ends_sentence: bool


def _read(media: Media, encoding: str) -> str:
    """The text of bytes or of a file."""
    label = media.path or "the text"
    with media.open() as file:
        try:
            data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ReadError(f"can't read {media.path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise DecodeError(f"{label} has more than {MAX_BYTES:,} bytes: split it")
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), "")
    try:
        return data.decode(marked or encoding).removeprefix("\ufeff")  # what is left of the mark
    except UnicodeError as error:
        place = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        remedy = (
            ", though it begins with its byte order mark: mend it"
            if marked
            else ": convert it to UTF-8, or name its own, as with --text-encoding latin-1"
        )
        raise DecodeError(f"{label} is not {(marked or encoding).upper()}{place}{remedy}") from error


@cache
def _identifier() -> Any:
    """The model in the wheel of py3langid (Lui and Baldwin, 2012); it tells 97 languages."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def _known_languages() -> set[str]:
    return set(_identifier().labels)


def _language(text: str) -> str:
    """The language of a text, "" where it is too short to tell."""
    head = text[:_LANGUAGE_CHARACTERS]
    if sum(3 if _OWN_SCRIPT.match(sign) else 1 for sign in head if sign.isalpha()) < LEAST_LETTERS:
        return ""
    return str(_identifier().classify(head)[0])


def _check_visible(text: str) -> None:
    if not _VISIBLE.search(text):
        raise DecodeError("the text is empty" + (": it holds no visible character" if text.strip() else ""))


def _words(text: str) -> Iterator[_Word]:
    """Runs without a blank, and in scripts that are written without blanks, ideographs, kana and groups of syllables.

    A sentence ends with its mark, before an empty line, and where the text ends."""
    ahead = _WORD.finditer(text)
    match = next(ahead, None)
    while match is not None:
        following = next(ahead, None)
        start, end = match.span()
        gap_end = following.start() if following else len(text)
        marked = bool(_SENTENCE_END.search(text, start, end) if gap_end > end else _WIDE_END.search(text, start, end))
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
