from __future__ import annotations

import json
import re
import sys
import time
import unicodedata
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmembed.modalities.text
from mmembed.errors import DecodeError, FilteredError, ReadError, UsageError
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


@pytest.mark.parametrize(
    "text, chunks",
    [
        ("吾輩は猫である。名前はまだ無い。どこで", ["吾輩は猫である。", "名前はまだ無い。", "どこで"]),
        ("他说：「好！」然后她笑着走了。", ["他说：「好！」", "然后她笑着走了。"]),  # noqa: RUF001
        ("GPT模型很好！真的。Yes, it is.", ["GPT模型很好！真的。", "Yes, it is."]),  # noqa: RUF001
    ],
)
def test_ideographs_and_kana_are_words_and_their_sentences_end_without_a_blank(text: str, chunks: list[str]) -> None:
    assert pieces(text, words=8) == chunks


@pytest.mark.parametrize(
    "text",
    [
        "สวัสดีครับผมชื่อสมชายและนี่คือนกสีดำในน้ำลำธาร",
        "ខ្ញុំស្រឡាញ់ប្រទេសកម្ពុជា។ខ្ញុំរស់នៅទីនេះ",
        "မြန်မာစာသည်လှပသောဗုဒ္ဓစာဖြစ်သည်။",
        "ສະບາຍດີທຸກຄົນທີ່ຢູ່ນີ້",
        "စက္က" * 9,
    ],
    ids=["Thai", "Khmer", "Burmese", "Lao", "stacked"],
)
def test_scripts_without_blanks_are_cut_and_never_within_a_syllables_marks(text: str) -> None:
    chunks = pieces(text, words=1)
    assert len(chunks) > 3
    assert "".join(chunks) == text
    assert not any(unicodedata.category(chunk[0])[0] == "M" or chunk[0] in "\u0e33\u0eb3" for chunk in chunks)
    assert not any(chunk.endswith(("\u17d2", "\u1039")) for chunk in chunks)


@pytest.mark.parametrize(
    "text", ["漢" + "\u0301" * 1000, "ក" + "\u17d2ក" * 500, "ကျ" * 9 + "ျ" * 999, "「" * 99 + "。" * 99]
)
def test_a_run_of_marks_is_cut_as_any_long_word(text: str) -> None:
    chunks = pieces(text, 1)
    assert "".join(chunks) == text
    assert max(map(len, chunks)) <= LONGEST_WORD


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\xef\xbb\xbfab\xff", "is not UTF-8 at byte 5, though it begins with its byte order mark: mend it"),
        ("frog".encode("utf-16")[:-1], "is not UTF-16 at byte 8, though"),
        (b"\xff\xfe\0\0a\0\0\1", "is not UTF-32 at byte 4, though"),
    ],
)
def test_what_breaks_its_byte_order_marks_promise_is_damaged(content: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        Text(encoding="latin-1").decode(Media("a.txt", content))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(encoding: str) -> None:
    assert Text().decode(Media(content="Grüße 青蛙".encode(encoding))) == "Grüße 青蛙"
    assert Text(encoding="latin-1").decode(Media(content="Grüße".encode(encoding))) == "Grüße"


def test_latin_1_is_never_guessed_but_read_where_it_is_named() -> None:
    media = Media("a.txt", "Grüße".encode("latin-1"))
    with pytest.raises(
        DecodeError, match=r"a.txt is not UTF-8 at byte 2: convert it .*, or .* --text-encoding latin-1"
    ):
        Text().decode(media)
    assert Text(encoding="latin-1").decode(media) == "Grüße"


@pytest.mark.parametrize("encoding", ["klingon", "", "hex", "zip", "undefined", "a\0b"])
def test_an_encoding_that_is_none_of_text_is_a_usage_error(encoding: str) -> None:
    with pytest.raises(UsageError, match=r"encoding is .*, which Python doesn't know: try utf-8 or latin-1"):
        Text(encoding=encoding)


def test_a_text_of_50_megabytes_is_cut_or_refused_as_one_segment() -> None:
    text = "Lorem ipsum dolor sit amet. " * 1_900_000
    decoded = Text().decode(Media(content=text.encode()))
    with pytest.raises(DecodeError, match=r"a segment of 53,200,000 characters, more than 1,000,000: .*--text-words"):
        list(Text().segment(decoded))
    spans = [span for span, _ in islice(Text(words=100).segment(decoded), 50)]
    assert len(spans) == 50 and spans[0] == (0, 20 * 28 - 1)


def test_a_file_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmembed.modalities.text, "MAX_BYTES", 100)
    assert Text().decode(Media(content=b"a" * 100))
    with pytest.raises(DecodeError, match="has more than 100 bytes: split it"):
        Text().decode(Media("a.txt", b"a" * 101))


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("one two", {"min_words": 3}, "2 words are fewer than min_words = 3"),
        ("one two three", {"max_words": 2}, "3 words are more than max_words = 2"),
        ("青蛙在池塘里", {"max_words": 5}, "6 words are more than max_words = 5"),
        (
            "Die Katze sitzt auf der Matte und schaut aus dem Fenster.",
            {"languages": ("en", "fr")},
            "its language is de, not one of languages = en, fr",
        ),
        ("吾輩は猫である。名前は", {"languages": ("en",)}, "its language is ja"),  # of few letters, but its own
    ],
)
def test_a_text_that_is_not_wanted_is_left_out_with_its_reason(
    text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(FilteredError, match=message):
        Text(**options).decode(Media(content=text))


@pytest.mark.parametrize(
    "text, options",
    [
        ("one two three", {"min_words": 3, "max_words": 3}),
        ("The cat sits on the mat and looks out of the window.", {"languages": ("en",)}),
        ("Katze", {"languages": ("en",)}),  # too short to tell
    ],
)
def test_a_text_that_is_wanted_stays(text: str, options: dict[str, Any]) -> None:
    assert Text(**options).decode(Media(content=text)) == text


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(UsageError, match=r"languages has tlh, xx, but known are .*en, "):
        Text(languages=("en", "xx", "tlh"))
