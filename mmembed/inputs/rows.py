"""Rows of any form of input to records: which columns hold what, which paths may be read, what an id is."""

from __future__ import annotations

import base64
import datetime
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmembed import files
from mmembed.errors import ReadError, RepeatedIdError
from mmembed.types import Failure, Media, Record, content_id

Row = tuple[str, "dict[str, Any] | ReadError"]
"""Where a row was read, and its values by column, or why it can't be read."""

TEXT_MODALITIES = ("text",)
"""Modalities whose columns hold the content itself; those of the others hold a path, or {bytes, path}."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a row hold what; all others are metadata.

    Attributes:
        id: of the record's id.
        media: by modality, the columns of its media.
    """

    id: str
    media: Mapping[str, tuple[str, ...]]

    def chosen(self, id: str, media: Mapping[str, tuple[str, ...]]) -> Columns:
        """These columns, but for those that the user named."""
        return Columns(id or self.id, {name: media.get(name) or columns for name, columns in self.media.items()})


MANIFEST_COLUMNS = Columns("id", {"image": ("image",), "text": ("text",), "audio": ("audio",)})
"""Of a manifest, where the user names the columns."""

SUFFIXES = {
    "image": ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "ppm"),
    "text": ("txt",),
    "audio": ("wav", "flac", "mp3", "ogg", "opus", "aif", "aiff", "m4a"),
}
"""By modality, the endings of its files where files themselves are the input. What can't be decoded is an error row."""

_MEDIUM = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|(RIFF|RF64|FORM)....(WEBP|WAVE|AIF[FC])|GIF8[79]a|BM....\0\0\0\0|II\*\0|MM\0\*|P[1-6]\s"
    rb"|....ftyp|fLaC|OggS|ID3|\xff[\xf2\xf3\xfa\xfb]|\.snd|caff",
    re.DOTALL,
)
"""How files of pictures and sounds begin."""

_ENDINGS = [ending for several in SUFFIXES.values() for ending in several]

FILE_COLUMNS = Columns("__key__", {**SUFFIXES, "text": ("txt", "text")})
"""Of folders and archives, where a column is an ending; a metadata file beside them may give a text as well."""


@dataclass(frozen=True)
class Rows:
    """How rows become records.

    Attributes:
        columns: which hold what.
        folder: what relative paths of media are relative to.
        allow_outside: whether paths may leave that folder.
        id_needed: whether a row without an id is an error; else its id is a hash of its content.
        named_files: whether the columns file_name and *_file_name name media, as in Hugging Face's folders.
        blur: the column of boxes of pictures that nobody may see; "" for none.
    """

    columns: Columns
    folder: str
    allow_outside: bool = False
    id_needed: bool = False
    named_files: bool = False
    blur: str = ""

    def parse(self, rows: Iterable[Row]) -> tuple[list[Record], list[Failure]]:
        """Records, and failures for rows or media that are not what they should be."""
        records: list[Record] = []
        failures: list[Failure] = []
        places: dict[str, str] = {}
        for source, values in rows:
            id = ""
            try:
                if isinstance(values, ReadError):
                    raise values
                if not isinstance(values, dict):
                    raise ReadError(f"a record is an object of keys, not {type(values).__name__}")
                if self.named_files:
                    values = _with_named_files(values, self.columns, as_id=not self.id_needed)
                media, wrong = self._media(values)
                if not media and not wrong:
                    raise ReadError(f"the record has none of {', '.join(self._keys)}")
                id = self._id(values, media)
                if id in places:
                    raise RepeatedIdError.of(id, places[id])
                places[id] = source
            except ReadError as error:
                failures.append(Failure(id, "", None, "read", type(error).__name__, str(error), source))
                continue
            failures += [
                Failure(id, modality, None, "read", type(error).__name__, str(error), source, medium=number)
                for modality, number, error in wrong
            ]
            keys = {self.columns.id, *self._keys}
            metadata = {key: _plain(value) for key, value in values.items() if key not in keys}
            if "image" in media and self.blur and (boxes := _plain(values.get(self.blur))) not in (None, []):
                blur = json.dumps(boxes)  # what is wrong with them is said where the picture is decoded
                media["image"] = tuple(replace(item, blur=blur) for item in media["image"])
            records.append(Record(id, media, metadata, source))
        return records, failures

    @property
    def _keys(self) -> list[str]:
        return [column for columns in self.columns.media.values() for column in columns]

    def _id(self, values: Mapping[str, Any], media: Mapping[str, tuple[Media, ...]]) -> str:
        value = values.get(self.columns.id)
        if value is None and not self.id_needed:
            return content_id(media)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value:
            raise ReadError(f"a record needs an id ({self.columns.id}) that is a non-empty string, not {value!r}")
        return value

    def _media(
        self, values: Mapping[str, Any]
    ) -> tuple[dict[str, tuple[Media, ...]], list[tuple[str, int, ReadError]]]:
        """Media by modality, and what is wrong with others: modality, a number below 0 of their own, error."""
        media: dict[str, tuple[Media, ...]] = {}
        wrong: list[tuple[str, int, ReadError]] = []
        for modality, columns in self.columns.media.items():
            found: list[Media] = []
            given = [(column, value) for column in columns for value in _several(values.get(column))]
            for number, (column, value) in enumerate(given):
                try:
                    found.append(replace(self._medium(modality, value), column=column))
                except ReadError as error:
                    wrong.append((modality, -1 - number, error))
            if found:
                media[modality] = tuple(found)
        return media, wrong

    def _medium(self, modality: str, value: Any) -> Media:
        if isinstance(value, Media):
            return value
        if modality in TEXT_MODALITIES and not (isinstance(value, dict) and {"path", "bytes"} == value.keys()):
            if not isinstance(value, str):
                raise ReadError(f"a text is a string, not {type(value).__name__}")
            return Media(content=value)
        if isinstance(value, bytes):
            value = {"bytes": value}
        path, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (value, None)
        if not isinstance(path, str | None) or not isinstance(content, bytes | None):
            raise ReadError(f"a file is a path, or {{bytes, path}}, not {type(value).__name__}")
        if not path and content is None:
            raise ReadError("a file needs a path or bytes; leave the key out, or null, where there is none")
        if content is None:
            self._check_inside(str(path))
        return Media(path or "", content, self.folder)

    def _check_inside(self, path: str) -> None:
        """Whoever wrote a manifest must not choose which files of this machine are read."""
        if self.allow_outside or files.is_url(path):
            return
        folder = self.folder.split("://", 1)[-1] if files.is_url(self.folder) else os.path.abspath(self.folder)
        if not os.path.normpath(os.path.join(folder, path)).startswith(folder.rstrip("/") + "/"):
            raise ReadError(f"{path} lies outside the folder of its manifest: allow that with --allow-outside")


def _with_named_files(values: dict[str, Any], columns: Columns, as_id: bool) -> dict[str, Any]:
    """A row of a metadata file with the files that it names in the columns of their modalities.

    Raises:
        ReadError: a file's ending is of no modality.
    """
    named = {key: value for key, value in values.items() if key == "file_name" or key.endswith("_file_name")}
    values = {key: value for key, value in values.items() if key not in named}
    for key, value in named.items():
        if value is None:
            continue
        ending = str(value).rpartition(".")[2].lower()
        modality = next((modality for modality, endings in SUFFIXES.items() if ending in endings), None)
        if modality is None:
            raise ReadError(f"{key} is {value!r}: it must name a file that ends in one of {', '.join(_ENDINGS)}")
        column = columns.media[modality][0]
        values[column] = [*_several(values.get(column)), {"path": value, "bytes": None}]
    if as_id and named.get("file_name") and values.get(columns.id) is None:
        values[columns.id] = named["file_name"]
    return values


def _several(value: Any) -> list[Any]:
    """The media of one column: none, one, or a list of them."""
    if value is None:
        return []
    return [item for item in value if item is not None] if isinstance(value, list) else [value]


def _plain(value: Any) -> Any:
    """Metadata as JSON has them, at any depth: dates in ISO form, bytes in base64, no number that is not finite; of a
    file that is no medium of the record, its path, and of the bytes of a picture or a sound nothing, for outputs hold
    no originals."""
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, dict):
        if value.keys() == {"bytes", "path"}:
            return _plain(value["path"])
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):  # a map is a list of pairs
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        is_medium = len(value) > 64 and _MEDIUM.match(value)  # shorter ones are hashes and the like
        return None if is_medium else base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value.path if isinstance(value, Media) else str(value)
