"""WebDataset: tar archives whose members of one key, one after the other, are a record."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any, BinaryIO, NamedTuple

from mmembed import files
from mmembed.errors import ReadError
from mmembed.inputs import Plan
from mmembed.inputs.jsonl import parse_object
from mmembed.inputs.rows import FILE_COLUMNS, Row
from mmembed.shards import fingerprint
from mmembed.types import Media, Part

COLUMNS = FILE_COLUMNS

MAX_MEMBER_BYTES = 4 << 30
"""Of a member, at most; no medium is as large."""

MAX_JSON_BYTES = 16 << 20
"""Of a .json or .cls member, at most: they are held in memory."""


_NUMBER = re.compile(r"-?[0-9]{1,18}")


class _Member(NamedTuple):
    """A member as its header says: where its headers begin, where its content is, or what is wrong with it."""

    name: str
    header: int
    start: int
    bytes: int
    modified: float
    wrong: str


def plan(location: str, records: int) -> Iterator[Plan]:
    """Units of at most `records` records; place: the byte of the first header, and how many records.

    Only headers are read. The fingerprint is of the members' names, sizes, times and places.
    """
    groups = _records(location, 0)
    while block := list(islice(groups, records)):
        yield len(block), fingerprint(block), (block[0][0].header, len(block))


def rows(location: str, name: str, place: tuple[int, int]) -> Iterator[Row]:
    """Some records: their key, media by ending as parts of the archive, and their metadata. Nothing is unpacked."""
    start, count = place
    with files.open_binary(location) as file:
        for members in islice(_records(location, start), count):
            key = _key(members[0].name)
            shown = key.encode("utf-8", "backslashreplace").decode()
            yield f"{name}/{shown}", _values(file, location, name, key, members)


def _records(location: str, start: int) -> Iterator[list[_Member]]:
    """The members of each record, from some header on; what can't be read is a record of its own."""
    for _, members in groupby(_members(location, start), lambda member: member.wrong or _key(member.name)):
        yield list(members)


def _members(location: str, start: int) -> Iterator[_Member]:
    """The members of an archive from some header on, folders left out.

    Raises:
        ReadError: there is no archive at its beginning.
    """
    with files.open_binary(location) as file:
        size = file.seek(0, 2)
        file.seek(start)
        place = start
        try:
            archive = tarfile.TarFile(fileobj=file, errorlevel=2)  # closes nothing: `file` is ours
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it keeps all headers otherwise
                place = archive.offset
                if member.isdir():
                    continue
                wrong = _wrong(member, size)
                yield _Member(member.name, member.offset, member.offset_data, member.size, member.mtime, wrong)
                if wrong and place > size:
                    return
            file.seek(place)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # it takes what is no header for the end
                raise tarfile.ReadError("there is no header of a member")
        except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
            if place == 0:
                raise ReadError(f"{location} is no tar archive: {error}") from error
            yield _Member("", place, 0, 0, 0, f"the archive can't be read from its byte {place:,} on: {error}")


def _wrong(member: tarfile.TarInfo, size: int) -> str:
    """Why a member can't be used; "" if it can."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return f"the name of the member {member.name!r} leads out of the archive"
    if not member.isreg() or member.issparse():
        return f"the member {member.name!r} is no regular file, but a link, a device or the like"
    if member.size > MAX_MEMBER_BYTES or member.size < 0:
        return f"the member {member.name!r} claims {member.size:,} bytes, more than {MAX_MEMBER_BYTES:,}"
    if member.offset_data + member.size > size:
        return f"the archive is cut off within the member {member.name!r}"
    return ""


def _values(file: BinaryIO, location: str, name: str, key: str, members: list[_Member]) -> dict[str, Any] | ReadError:
    if members[0].wrong:
        return ReadError(members[0].wrong.encode("utf-8", "backslashreplace").decode())
    values: dict[str, Any] = {"__key__": key}
    metadata: dict[str, Any] = {}
    try:
        for member in members:
            if not files.is_text(member.name):
                return ReadError(f"the name {member.name!a} is no UTF-8: make the archive again")
            ending = _ending(member.name)
            if ending in values:
                raise ReadError(f"the archive holds {member.name} twice")
            if ending in ("json", "cls"):
                file.seek(member.start)
                data = file.read(min(member.bytes, MAX_JSON_BYTES))
                metadata |= _metadata(member.name, ending, data)
            elif ending:
                part = Part(location, member.start, member.bytes)
                values[ending] = Media(f"{name}/{member.name}", part=part)
    except ReadError as error:
        return error
    return metadata | values


def _metadata(name: str, ending: str, data: bytes) -> dict[str, Any]:
    """What a .json or .cls member says: keys and values, or the number (or text) of a class."""
    if ending == "cls":
        text = data.decode("utf-8", "replace").strip()
        return {"cls": int(text) if _NUMBER.fullmatch(text) else text}
    return parse_object(data, name)


def _key(name: str) -> str:
    folder, slash, leaf = name.removeprefix("./").rpartition("/")
    return folder + slash + leaf.partition(".")[0]


def _ending(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()
