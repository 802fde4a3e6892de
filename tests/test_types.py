from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from mmembed.errors import ReadError, SpaceError
from mmembed.types import Media, Record, Segment, Space


@pytest.mark.parametrize("values", [("", "1", 4), ("a", "", 4), ("a", "1", 0)])
def test_a_space_needs_a_name_a_version_and_a_dimension(values: tuple[str, str, int]) -> None:
    with pytest.raises(ValueError, match="a space needs"):
        Space(*values)


@pytest.mark.parametrize("other", [Space("b", "1", 4), Space("a", "2", 4), Space("a", "1", 5)])
def test_a_space_is_no_other_that_differs_in_anything(other: Space) -> None:
    here = Space("a", "1", 4)
    here.check(Space("a", "1", 4), "the features")
    with pytest.raises(SpaceError) as raised:
        here.check(other, "the features")
    assert all(part in str(raised.value) for part in ("the features", str(other), "a@1[4]"))


def test_media_need_a_path_or_a_content() -> None:
    with pytest.raises(ValueError, match="a path or a content"):
        Media()
    assert Media(content="").content == ""


def test_media_in_memory_and_in_a_file_are_the_same_bytes_and_hash(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # more than one block
    (tmp_path / "a.bin").write_bytes(content)
    for media in (Media(content=content), Media("a.bin", folder=str(tmp_path)), Media(str(tmp_path / "a.bin"))):
        with media.open() as file:
            assert file.seekable() and file.read() == content
        assert media.content_hash == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_an_absolute_path_stands_for_itself(tmp_path: Path) -> None:
    assert Media("/x/a.png", folder=str(tmp_path)).location == "/x/a.png"
    assert Media("a.png", folder=str(tmp_path)).location == str(tmp_path / "a.png")


def test_a_person_is_shown_the_text_or_the_path() -> None:
    assert Media(content="Frosch").name == "Frosch"
    assert Media("a.png", b"...").name == "a.png"
    assert Media(content=b"...").name == ""


@pytest.mark.parametrize("path", ["missing.png", "."])
def test_a_file_that_cannot_be_opened_is_a_read_error_in_the_users_words(path: str, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=f"can't open {path}: ") as raised:
        Media(path, folder=str(tmp_path)).open()
    assert str(tmp_path) not in str(raised.value)


def test_what_is_no_file_on_this_machine_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer for ever
    for path in ("pipe.png", "/dev/zero"):
        with pytest.raises(ReadError, match=f"can't open {path}: it is no regular file"):
            assert Media(path, folder=str(tmp_path)).content_hash
    with pytest.raises(ReadError, match="can't open https://example.org/a.png: web addresses are fetched where media"):
        Media("https://example.org/a.png", folder=str(tmp_path)).open()


def test_a_text_with_half_a_surrogate_pair_can_still_be_opened_and_hashed() -> None:
    media = Media(content="a\ud800")
    assert media.open().read() == b"a\xed\xa0\x80"
    assert len(media.content_hash) == 32


@pytest.mark.parametrize("id", ["", None, 7, b"a"])
def test_a_record_needs_an_id_that_is_a_string(id: object) -> None:
    with pytest.raises(ReadError, match="a record needs an id"):
        Record(id, {})  # type: ignore[arg-type]


def test_values_are_frozen_and_travel_to_workers() -> None:
    segment = Segment("a", 0, (0.0, 1.0), "text", "hash", "data")
    with pytest.raises(FrozenInstanceError):
        segment.number = 1  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(segment)) == segment
