from __future__ import annotations

from itertools import product

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed import signatures
from mmembed.duplicates import Twin, exact, near, repeated

Medium = tuple[str, str, bytes]
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
    return name.encode().hex().ljust(32, "0")


def image(name: str, bits: int, colour: int = 100) -> Medium:
    return "image", hash_of(name), bits.to_bytes(8, "big") + bytes([colour]) * 48


def text(words: str) -> Medium:
    return "text", hash_of(words[:16]), signatures.of_text(words)


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


PICTURES = st.tuples(st.integers(0, 7), st.integers(0, 3)).map(
    lambda pair: image(f"{pair}", (1 << pair[0]) - 1 << 20, 40 * pair[1])
)
CAPTIONS = st.sampled_from(["one red star", "One red star!", "two red stars", "a dog"]).map(text)
RECORDS = st.lists(st.one_of(st.tuples(PICTURES), st.tuples(CAPTIONS), st.tuples(PICTURES, CAPTIONS)), max_size=14)


def alike(left: Medium, right: Medium) -> bool:
    """A slow reference for two media of one modality."""
    if left[1] == right[1]:
        return True
    if left[0] == "text":
        return float((np.frombuffer(left[2], "<u4") == np.frombuffer(right[2], "<u4")).mean()) >= 0.8
    bits = (int.from_bytes(left[2][:8], "big") ^ int.from_bytes(right[2][:8], "big")).bit_count()
    return bits <= 4 and max(abs(a - b) for a, b in zip(left[2][8:], right[2][8:])) <= 20


@settings(deadline=None, max_examples=150)
@given(RECORDS)
def test_near_copies_are_those_of_a_slow_loop(records: list[tuple[Medium, ...]]) -> None:
    gone: dict[int, int] = {}
    for later, earlier in product(range(len(records)), repeat=2):  # exact ones first: they stay near to what they equal
        same = [m[:2] for m in records[later]] == [m[:2] for m in records[earlier]]
        if earlier < later and same and later not in gone:
            gone[later] = earlier
    for later in range(len(records)):
        if later in gone:
            continue
        for earlier in range(later):
            kinds = [m[0] for m in records[earlier]] == [m[0] for m in records[later]]
            if earlier not in gone and kinds and all(map(alike, records[earlier], records[later])):
                gone[later] = earlier
                break
    assert {twin.record: twin.of for twin in near(table([list(record) for record in records]))} == gone


def test_many_equal_media_are_no_burden() -> None:
    logo = [[image("logo", 5), text(f"page {number} of this long and winding book")] for number in range(2000)]
    assert len(near(table([*logo, *logo]))) >= 2000
