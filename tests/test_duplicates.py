from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed import duplicates, signatures
from mmembed.duplicates import Twin, exact, near, repeated

Medium = tuple[str, str, bytes | None]
"""Modality, content hash, signature."""


def table(records: list[list[Medium]]) -> pa.Table:
    """Media of records 0, 1, …"""
    rows = [
        {"record": number, "modality": modality, "content_hash": content_hash, "signature": signature}
        for number, media in enumerate(records)
        for modality, content_hash, signature in media
    ]
    schema = [("record", pa.int64()), ("modality", pa.string()), ("content_hash", pa.string())]
    return pa.Table.from_pylist(rows, pa.schema([*schema, ("signature", pa.binary())]))


def hash_of(name: str) -> str:
    return name.encode().hex().ljust(32, "0")[:32]


def image(name: str, bits: int, colour: int = 100) -> Medium:
    return "image", hash_of(name), bits.to_bytes(8, "big") + bytes([colour]) * 48


def text(words: str) -> Medium:
    return "text", hashlib.blake2b(words.encode(), digest_size=16).hexdigest(), signatures.of_text(words)


def sound(name: str, bits: int, seconds: float) -> Medium:
    return "audio", hash_of(name), bits.to_bytes(32, "big") + np.float32(seconds).tobytes()


def test_ids_that_came_before_are_found_with_their_first_place() -> None:
    assert repeated(pa.chunked_array([["a", "b", "a"], ["c", "b", "a"]])) == [(2, 0), (4, 1), (5, 0)]
    assert repeated(pa.chunked_array([], pa.string())) == []


@settings(max_examples=100)
@given(st.lists(st.sampled_from("abcdefgh\ud83d"), max_size=40).filter(lambda ids: "\ud83d" not in ids))
def test_repeated_ids_are_those_of_a_slow_loop(ids: list[str]) -> None:
    slow = [(row, ids.index(id)) for row, id in enumerate(ids) if id in ids[:row]]
    assert repeated(pa.chunked_array([ids], pa.string())) == slow


def test_a_record_is_a_copy_where_all_of_it_is_in_another() -> None:
    records = [
        [image("a", 0), text("a frog")],
        [image("a", 0), text("a frog")],
        [image("a", 0), text("a toad")],  # another caption of the same picture
        [image("a", 0)],  # fewer modalities
        [text("a frog"), text("a toad")],
        [text("a toad"), text("a frog")],
        [],
        [],
    ]
    assert exact(table(records)) == [
        Twin(1, 0, "the same image and text"),
        Twin(5, 4, "the same text"),
    ]


def test_a_medium_of_another_modality_is_no_copy() -> None:
    assert exact(table([[("text", hash_of("a"), b"")], [("audio", hash_of("a"), b"")]])) == []


def test_a_near_copy_is_near_in_all_modalities() -> None:
    records = [
        [image("a", 0), text("Three red stars on the left side.")],
        [image("b", 0b111), text("three red stars on the left side")],
        [image("c", 0b111), text("two green moons")],
        [image("d", 0xFFFF), text("Three red stars on the left side.")],
        [image("e", 0, colour=200), text("Three red stars on the left side.")],
        [image("a", 0), text("three red stars  on the left side!")],
    ]
    assert near(table(records)) == [
        Twin(1, 0, "nearly the same image and text"),
        Twin(5, 0, "nearly the same image and text"),
    ]


def test_what_is_near_to_a_copy_alone_stays() -> None:
    chain = [[image(str(number), (1 << (3 * number)) - 1)] for number in range(3)]  # 3 bits apart, 6 from end to end
    assert near(table(chain)) == [Twin(1, 0, "nearly the same image")]


def test_exact_copies_are_told_as_such_among_near_ones() -> None:
    records = [[image("a", 0)], [image("b", 1)], [image("a", 0)]]
    assert near(table(records)) == [Twin(1, 0, "nearly the same image"), Twin(2, 0, "the same image")]


@pytest.mark.parametrize("others", [[], [text("a frog")]])
def test_the_twin_that_is_named_stays(others: list[Medium]) -> None:
    records = [[image("a", 0), *others], [image("b", 1), *others], [image("b", 1), *others]]
    same = "image and text" if others else "image"
    assert near(table(records)) == [Twin(1, 0, f"nearly the same {same}"), Twin(2, 0, f"nearly the same {same}")]


def test_each_of_several_captions_needs_a_like_one_in_any_order() -> None:
    one, two, three = "Three red stars.", "A blue moon and its light.", "Nine green hills."
    records = [
        [text(one), text(two)],
        [text("a blue moon and its light"), text("three red stars!")],
        [text(one), text(three)],
        [text(one), text(two), text(three)],  # more than the first
        [text(one.upper()), text("three red stars")],  # as many, and nothing that the first lacks
    ]
    assert near(table(records)) == [Twin(1, 0, "nearly the same text"), Twin(4, 0, "nearly the same text")]


def test_media_without_a_signature_are_compared_by_content() -> None:
    bare = ("audio", hash_of("hum"), None)
    records: list[list[Medium]] = [
        [image("a", 0), bare],
        [image("b", 1), bare],
        [image("c", 1), ("audio", hash_of("click"), None)],
        [bare],
        [bare],
    ]
    assert [(twin.record, twin.of) for twin in near(table(records))] == [(1, 0), (4, 3)]


def test_an_empty_table_has_no_copies() -> None:
    assert exact(table([])) == near(table([])) == []


def test_chunks_of_the_table_and_gaps_between_records_change_nothing() -> None:
    records = [[image("a", 0), text("a frog")], [], [image("b", 1), text("A frog!")], [image("a", 0), text("a frog")]]
    whole = table(records)
    parts = pa.concat_tables([whole.slice(row, 1) for row in range(whole.num_rows)])
    assert (
        near(parts)
        == near(whole)
        == [Twin(2, 0, "nearly the same image and text"), Twin(3, 0, "the same image and text")]
    )
    assert exact(parts) == exact(whole) == [Twin(3, 0, "the same image and text")]


PICTURES = st.tuples(st.integers(0, 7), st.integers(0, 3)).map(
    lambda pair: image(f"{pair}", (1 << pair[0]) - 1 << 20, 10 * pair[1])
)
CAPTIONS = st.sampled_from(["one red star", "One red star!", "two red stars", "a dog"]).map(text)
SOUNDS = st.tuples(st.integers(0, 5), st.integers(0, 2)).map(
    lambda pair: sound(f"{pair}", (1 << 12 * pair[0]) - 1, 1 + pair[1] / 16)  # 12 bits apart: found for sure
)
RECORDS = st.lists(
    st.one_of(
        st.tuples(PICTURES),
        st.tuples(SOUNDS),
        st.tuples(PICTURES, CAPTIONS),
        st.tuples(PICTURES, CAPTIONS, SOUNDS),
        st.tuples(CAPTIONS, CAPTIONS),
        st.tuples(PICTURES, PICTURES, CAPTIONS),
    ),
    max_size=14,
)


def alike(left: Medium, right: Medium) -> bool:
    """A slow reference for two media."""
    if left[0] != right[0]:
        return False
    if left[1] == right[1]:
        return True
    assert left[2] is not None and right[2] is not None
    if left[0] == "text":
        return sum(left[2][i : i + 4] == right[2][i : i + 4] for i in range(0, 256, 4)) >= 56
    size, most = (8, 4) if left[0] == "image" else (32, 40)
    bits = (int.from_bytes(left[2][:size], "big") ^ int.from_bytes(right[2][:size], "big")).bit_count()
    if left[0] == "image":
        return bits <= most and max(abs(a - b) for a, b in zip(left[2][8:], right[2][8:])) <= 12
    return bits <= most and abs(np.frombuffer(left[2][32:], "<f4")[0] - np.frombuffer(right[2][32:], "<f4")[0]) <= 0.1


def slow(records: Sequence[Sequence[Medium]]) -> dict[int, int]:
    """Each record that is left out, with the first one that stays and that it is near to."""
    gone: dict[int, int] = {}
    for later, media in enumerate(records):
        for earlier in range(later):
            others = records[earlier]
            kinds = sorted(m[0] for m in others) == sorted(m[0] for m in media)
            if earlier not in gone and kinds and all(any(alike(m, other) for other in others) for m in media):
                gone[later] = earlier
                break
    return gone


@settings(deadline=None, max_examples=150)
@given(RECORDS, st.booleans())
def test_near_copies_are_those_of_a_slow_loop(records: list[tuple[Medium, ...]], halves: bool) -> None:
    media = table([list(record) for record in records])
    with pytest.MonkeyPatch.context() as patch:
        if halves:  # as where very many pairs may be near
            patch.setattr(duplicates, "_FEW_PAIRS", 3)
            patch.setattr(duplicates, "_PAIRS_AT_ONCE", 2)
        assert {twin.record: twin.of for twin in near(media)} == slow(records)


@settings(deadline=None, max_examples=100)
@given(RECORDS)
def test_exact_copies_are_those_of_a_slow_loop_and_near_ones_too(records: list[tuple[Medium, ...]]) -> None:
    media = table([list(record) for record in records])
    contents = [sorted(m[:2] for m in record) for record in records]
    found = exact(media)
    assert {t.record: t.of for t in found} == {
        row: contents.index(content) for row, content in enumerate(contents) if content in contents[:row]
    }
    assert {t.record for t in found} <= {t.record for t in near(media)}


def near_looks(count: int) -> list[list[Medium]]:
    """Records of one picture that was saved in many ways: no two signatures the same, all within 4 bits."""
    return [
        [image(str(n), (n & 1) | (n & 2) << 8, 100), ("audio", hash_of(str(n)), sound(str(n), n, 2)[2])]
        for n in range(count)
    ]


def test_many_that_look_nearly_the_same_are_no_burden() -> None:
    start = time.monotonic()
    twins = near(table(near_looks(20_000)))
    assert [(twin.record, twin.of) for twin in twins] == [(row, 0) for row in range(1, 20_000)]
    assert time.monotonic() - start < 60  # all pairs would take hours


def test_many_equal_media_are_no_burden() -> None:
    pages = [
        [image("logo", 5), text(hashlib.md5(bytes([number % 256, number // 256])).hexdigest())]
        for number in range(3000)
    ]
    plain = [[image(f"photo {number}", number * 0x9E3779B97F4A7C15 % 2**64), text("n/a")] for number in range(3000)]
    start = time.monotonic()
    assert near(table([*pages, *plain])) == []
    assert {twin.of for twin in near(table([*pages, *pages]))} == set(range(3000))
    assert time.monotonic() - start < 60
