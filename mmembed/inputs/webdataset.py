"""WebDataset: tar archives whose members of one key, one after the other, are a record."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from functools import partial
from itertools import groupby, islice
from typing import Any, BinaryIO, NamedTuple

from mmembed import files
from mmembed.errors import ReadError
from mmembed.inputs import UNIT_BYTES, Plan
from mmembed.inputs.jsonl import parse_object
from mmembed.inputs.rows import FILE_COLUMNS, Row
from mmembed.shards import fingerprint
from mmembed.types import Media, Part

COLUMNS = FILE_COLUMNS

MAX_MEMBER_BYTES = 4 << 30
"""Of a member, at most; no medium is as large."""

MAX_JSON_BYTES = 16 << 20
"""Of a .json or .cls member, at most: they are held in memory."""

MAX_HEADER_BYTES = 1 << 20
"""Of all headers of one member, at most: long names and what pax adds are held in memory."""

_HELD = ("json", "cls")

_NUMBER = re.compile("-?[0-9]{1,18}")  # within 64 bits


class _Member(NamedTuple):
    """A member as its header says: where its headers begin, where its content is, or what is wrong with it."""

    name: str
    header: int
    start: int
    bytes: int
    modified: float
    wrong: str


def plan(location: str, records: int) -> Iterator[Plan]:
    """Units of at most `records` records and, but for a larger record, UNIT_BYTES of metadata; place: the byte of the
    first header, and how many records.

    Only headers are read. The fingerprint is of the members' names, sizes, times and places.
    """
    block: list[list[_Member]] = []
    size = 0
    for members in _records(location, 0):
        held = sum(min(member.bytes, MAX_JSON_BYTES) for member in members if _ending(member.name) in _HELD)
        if block and (len(block) == records or size + held > UNIT_BYTES):
            yield _plan(block)
            block, size = [], 0
        block.append(members)
        size += held
    if block:
        yield _plan(block)


def rows(location: str, name: str, place: tuple[int, int]) -> Iterator[Row]:
    """Some records: their key, media by ending as parts of the archive, and their metadata. Nothing is unpacked."""
    start, count = place
    with files.open_binary(location) as file:
        for members in islice(_records(location, start), count):
            key = _key(members[0].name)
            shown = key.encode("utf-8", "backslashreplace").decode()
            yield f"{name}/{shown}" if key else name, _values(file, location, name, key, members)


def _plan(block: list[list[_Member]]) -> Plan:
    return len(block), fingerprint(block), (block[0][0].header, len(block))


def _records(location: str, start: int) -> Iterator[list[_Member]]:
    """The members of each record, from some header on; what can't be read is a record of its own."""
    for _, members in groupby(_members(location, start), lambda member: member.wrong or _key(member.name)):
        yield list(members)


class _Headers:
    """A file as tarfile reads headers from it: of one member no more than MAX_HEADER_BYTES, whatever they claim."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.left = file, MAX_HEADER_BYTES
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"the headers of a member claim more than {MAX_HEADER_BYTES:,} bytes")
        self.left -= size
        return self._file.read(size)


def _members(location: str, start: int) -> Iterator[_Member]:
    """The members of an archive from some header on, folders and hidden ones left out.

    Raises:
        ReadError: there is no archive at its beginning.
    """
    with files.open_binary(location) as file:
        size = file.seek(0, 2)
        file.seek(start)
        headers, place = _Headers(file), start
        try:
            archive = tarfile.TarFile(fileobj=headers, encoding="utf-8")  # type: ignore[arg-type]
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it keeps all headers otherwise
                if member.size < 0 or archive.offset <= place:  # or it would go round for ever
                    raise tarfile.ReadError(f"the member {member.name!r} claims {member.size:,} bytes")
                headers.left, place = MAX_HEADER_BYTES, archive.offset
                wrong = _wrong(member, size)
                if not member.isdir() and (wrong or not _is_hidden(member.name)):
                    yield _Member(member.name, member.offset, member.offset_data, member.size, member.mtime, wrong)
                if wrong and place > size:
                    return
            file.seek(place)
            if place >= size:
                raise tarfile.ReadError("it is cut off: what marks the end of an archive is missing")
            if any(block.strip(b"\0") for block in iter(partial(file.read, 1 << 16), b"")):  # taken for the end
                raise tarfile.ReadError("there is no header of a member")
        except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
            if place == 0:
                raise ReadError(f"{location} is no tar archive: {error}") from error
            reason = "it is cut off" if place > size else error  # within the blanks that fill the last block
            yield _Member("", place, 0, 0, 0, f"the archive can't be read from its byte {place:,} on: {reason}")


def _wrong(member: tarfile.TarInfo, size: int) -> str:
    """Why a member can't be used; "" if it can."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return f"the name of the member {member.name!r} leads out of the archive"
    if not member.isreg() or member.issparse():
        return f"the member {member.name!r} is no regular file, but a link, a device or the like"
    if member.size > MAX_MEMBER_BYTES:
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
            if ending in values or (ending == "json" and metadata):
                raise ReadError(f"the archive holds {member.name} twice")
            if ending == "json":
                metadata = parse_object(_content(file, member), member.name)
            elif ending == "cls":
                values[ending] = _class(_content(file, member))
            elif ending:
                part = Part(location, member.start, member.bytes)
                values[ending] = Media(f"{name}/{member.name}", part=part)
    except ReadError as error:
        return error
    return metadata | values


def _content(file: BinaryIO, member: _Member) -> bytes:
    if member.bytes > MAX_JSON_BYTES:
        raise ReadError(f"{member.name} has {member.bytes:,} bytes: metadata have at most {MAX_JSON_BYTES:,}")
    file.seek(member.start)
    return file.read(member.bytes)


def _class(data: bytes) -> int | str:
    """The number, or else the text, that a .cls member holds."""
    text = data.decode("utf-8", "replace").strip()
    return int(text) if _NUMBER.fullmatch(text) else text


def _key(name: str) -> str:
    folder, slash, leaf = name.removeprefix("./").rpartition("/")
    return folder + slash + leaf.partition(".")[0]


def _ending(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _is_hidden(name: str) -> bool:
    """Whether a name is one that folders leave out as well, such as the ._files of macOS."""
    return any(part.startswith(".") and part != "." for part in name.split("/"))
