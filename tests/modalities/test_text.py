from __future__ import annotations

import json
import re
import sys
import time
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed.errors import DecodeError, ReadError, UsageError
from mmembed.modalities.text import LONGEST_WORD, Text
from mmembed.types import Media

STORY = "A frog sat here. It was green! Was it big? Nobody knew that day\n\nThe end came soon"
KEPT = {"\u200c", "\u200d", *"\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"}
texts = st.text(st.one_of(st.sampled_from(' \t\n\n.!?"\x00\u200b\u200d\xade\u0301漢。'), st.characters(codec="utf-8")))


def pieces(text: str, words: int = 0, overlap: int = 0) -> list[str]:
    return [piece for _, piece in Text(words, overlap).segment(text)]


def test_decodes_a_string_bytes_and_a_file_alike(tmp_path: Path) -> None:
    text = "Żaba, 青蛙,\r\n🐸"
    (tmp_path / "frog.txt").write_bytes(text.encode())
    for media in (Media(content=text), Media(content=text.encode()), Media("frog.txt", folder=str(tmp_path))):
        assert Text().decode(media) == text


def test_bytes_that_are_not_utf8_are_named_by_their_offset(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\u00e9 noir".encode("latin-1"))
    with pytest.raises(DecodeError, match=r"latin\.txt is not UTF-8 at byte 3"):
        Text().decode(Media("latin.txt", folder=str(tmp_path)))
    with pytest.raises(DecodeError, match="the text is not UTF-8 at byte 1"):
        Text().decode(Media(content=b"a\xff"))


def test_a_file_that_can_not_be_read_is_a_read_error(tmp_path: Path) -> None:
    for path in ("absent.txt", "."):
        with pytest.raises(ReadError):
            Text().decode(Media(path, folder=str(tmp_path)))


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000\u200b", "\x00\x01", "\ufeff", "\u200d \u200c", "\xad\n\x7f"])
def test_a_text_that_shows_nothing_is_a_decode_error(text: str) -> None:
    with pytest.raises(DecodeError, match="the text is empty"):
        Text().decode(Media(content=text))
    for words in (0, 3):
        with pytest.raises(DecodeError, match="the text is empty"):
            pieces(text, words)


def test_half_a_surrogate_pair_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="character 2"):
        Text().decode(Media(content=json.loads('"a \\ud83d"')))


@pytest.mark.parametrize(("words", "overlap"), [(-1, 0), (0, 1), (5, 5), (5, 9), (5, -1)])
def test_settings_that_can_not_work_are_usage_errors(words: int, overlap: int) -> None:
    with pytest.raises(UsageError, match=r"change it|give fewer"):
        Text(words, overlap)


def test_without_a_limit_the_whole_text_is_the_segment() -> None:
    assert list(Text().segment(STORY)) == [((0, len(STORY)), STORY)]


def test_chunks_end_with_sentences_and_paragraphs() -> None:
    assert pieces(STORY, 8) == [
        "A frog sat here. It was green!",
        "Was it big? Nobody knew that day",
        "The end came soon",
    ]
    assert pieces('He said "go." Then (he left.) 3.5 is a number', 6) == [
        'He said "go." Then (he left.)',
        "3.5 is a number",
    ]


def test_a_sentence_that_is_too_long_is_cut_between_words() -> None:
    assert pieces("one two three four five. six", 3) == ["one two three", "four five. six"]
    assert pieces("a" * (3 * LONGEST_WORD + 1), 2) == ["a" * 2 * LONGEST_WORD, "a" * (LONGEST_WORD + 1)]


def test_chunks_overlap_by_the_words_asked_for() -> None:
    assert pieces("a b c d e f g", 4, 2) == ["a b c d", "c d e f", "e f g"]
    assert pieces("a b. c d e f g", 4, 1) == ["a b.", "b. c d e", "e f g"]
    assert pieces("a b", 4, 2) == ["a b"]


def test_a_chunk_of_control_characters_is_left_out() -> None:
    assert pieces("a \x00 b", 1) == ["a", "b"]


def test_a_long_text_is_cut_lazily_and_in_linear_time() -> None:
    text = "Frogs leap, quite far. " * 10_000 + "x" * 200_000 + "\n" * 200_000 + "y. " * 50_000
    start = time.process_time()
    chunks = Text(50, 10).segment(text)
    assert next(chunks)[0] == (0, 275)
    longest = max(len(piece) for _, piece in chunks)
    assert longest <= 50 * (LONGEST_WORD + 1) + 200_000
    assert Text().normalize(text).count("\n") == 0
    assert time.process_time() - start < 5  # it takes 0.2 s; quadratic steps would take minutes


@settings(deadline=None, max_examples=200)
@given(text=texts, words=st.integers(1, 6), overlap=st.integers(0, 5))
def test_chunks_are_slices_that_leave_no_visible_character_out(text: str, words: int, overlap: int) -> None:
    overlap = min(overlap, words - 1)
    modality = Text(words, overlap)
    if not modality.normalize(text).strip("\u200c\u200d "):
        with pytest.raises(DecodeError):
            list(modality.segment(text))
        return
    chunks = list(modality.segment(text))
    covered = set()
    for span, piece in chunks:
        start, end = map(int, span)
        assert piece == text[start:end]
        assert modality.normalize(piece)
        assert len(re.findall(rf"[^\s\u200b]{{1,{LONGEST_WORD}}}", piece)) <= words
        covered |= set(range(start, end))
    assert all(a[0] < b[0] and a[1] < b[1] for (a, _), (b, _) in pairwise(chunks))
    assert not [c for i, c in enumerate(text) if i not in covered and Text().normalize(c).strip("\u200c\u200d")]


def test_normalizing_composes_and_drops_what_is_not_seen() -> None:
    assert Text().normalize("\ufeff  cafe\u0301\r\n\tnoir\x00 ") == "caf\u00e9 noir"
    assert Text().normalize("co\xadop\u202eerate e\u200e\u0301") == "cooperate \u00e9"
    assert Text().normalize("សេក\u200bអូស") == "សេក អូស"
    for joined in ("می\u200cرود", "👩\u200d🔬"):
        assert Text().normalize(joined) == joined


def test_every_control_and_format_character_is_dropped_a_blank_or_kept_on_purpose() -> None:
    """A newer Unicode may add a format character; then the lists want a look."""
    for character in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(character) in ("Cc", "Cf") and not "\U00013430" <= character <= "\U0001343f":
            blank = character.isspace() or character == "\u200b"
            expected = "a b" if blank else f"a{character}b" if character in KEPT else "ab"
            assert Text().normalize(f"a{character}b") == expected, hex(ord(character))


@settings(deadline=None, max_examples=200)
@given(texts)
def test_normalizing_twice_changes_nothing(text: str) -> None:
    once = Text().normalize(text)
    assert Text().normalize(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once == " ".join(once.split())
