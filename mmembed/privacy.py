"""What of a record may go out: which are kept out, ids as pseudonyms, values that are redacted. Applied where records
are read, so that nothing behind that has ever seen what was taken out."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmembed import filters
from mmembed.errors import ReadError, RecordError, UsageError
from mmembed.fetch import Fetcher
from mmembed.modalities.text import Text
from mmembed.redaction import Redactor
from mmembed.secret import Secret
from mmembed.shards import fingerprint
from mmembed.tables import embeddings_schema, metadata_column, metadata_kinds
from mmembed.types import Dropped, Failure, Media, Record, content_id

KEPT_OUT = "require"
"""The kind of a row of dropped/ that tells of a whole record that a condition kept out."""

_TAKES_JSON = re.compile(r"json_extract|->>|list_contains")
_LEAST_NUMBER = 10**6  # below it a number is neither a phone nor a card

Each = Callable[[str, Any], Any]
"""Gives what stands in the place of a text or number, by the key that it stands under."""


@dataclass(frozen=True)
class Read:
    """What was read of a unit.

    Attributes:
        dropped: of records that were kept out.
        redacted: how many values of which type were taken out.
    """

    records: list[Record]
    failures: list[Failure]
    dropped: list[Dropped] = field(default_factory=list)
    redacted: Mapping[str, int] = field(default_factory=dict)

    @property
    def items(self) -> list[Record | Failure | Dropped]:
        """All of it."""
        return [*self.records, *self.failures, *self.dropped]

    def without(self, sources: Collection[str]) -> Read:
        """But for what was read at some places."""
        return replace(
            self,
            records=[record for record in self.records if record.source not in sources],
            failures=[failure for failure in self.failures if failure.source not in sources],
            dropped=[item for item in self.dropped if item.source not in sources],
        )


@dataclass(frozen=True)
class Privacy:
    """What of records may go out; picklable.

    Attributes:
        require: an SQL condition over metadata and id that a record must fulfil; "" for none.
        secret: of the pseudonyms of ids; None: ids stay.
        redactor: of texts, metadata and names; None: they stay.
        text: how files of texts are read.
        fetcher: of such files that lie elsewhere.
    """

    require: str = ""
    secret: Secret | None = None
    redactor: Redactor | None = None
    text: Text = Text()
    fetcher: Fetcher = Fetcher()

    @property
    def hides_names(self) -> bool:
        """Whether names of files must not go out as they are."""
        return bool(self.secret or self.redactor)

    @property
    def mark(self) -> str:
        """Of all that decides what goes out; the same secret under another name is the same."""
        redactor = self.redactor
        return fingerprint(
            self.require,
            self.secret.name if self.secret else "",
            redactor.version if redactor else "",
            redactor.secret.name if redactor and redactor.how == "pseudonyms" else "",
        )

    def check(self, read: Read) -> None:
        """Refuse what can't work before anything is done.

        Args:
            read: the input's first records, as they are.

        Raises:
            UsageError: the secret or a package is missing, or the condition is none, or names a key of no record.
        """
        _ = self.mark  # which reads the secret, where it is needed
        if self.redactor:
            self.redactor.check()
        if self.require:
            names = filters.names_of(self.require)
            known = {key.lower() for record in read.records for key in record.metadata} | {"id", "metadata"}
            missing = [name for name in names if name.lower() not in known]
            if missing and read.records:
                raise UsageError(
                    f"require = {self.require!r}: none of the first {len(read.records)} records has the key "
                    f"{missing[0]!r}; they have {', '.join(sorted(known - {'metadata'}))}"
                )
            filters.kept_by(self.require, _columns([Record("id", {})], names))

    def applied(self, read: Read) -> Read:
        """What may go out of what was read of a unit."""
        return self.veiled(self.admitted(read))

    def veiled(self, read: Read) -> Read:
        """With pseudonyms in the place of ids, and with what is found redacted."""
        if not self.hides_names:
            return read
        before = read
        if self.secret:
            read = replace(read, records=[self._with_pseudonym(record) for record in read.records])
        if self.redactor:
            read = self._with_redacted_content(read)
        ids, sources = self._ids(before, read.records), self._sources(before)
        messages = self._redact([_without_id(f.message, f.id, self._id(f.id)) for f in read.failures])
        return replace(
            read,
            records=[replace(record, id=ids[record.source], source=sources[record.source]) for record in read.records],
            failures=[
                replace(failure, id=ids[failure.source], source=sources[failure.source], message=message)
                for failure, message in zip(read.failures, messages, strict=True)
            ],
            dropped=[replace(item, id=ids[item.source], source=sources[item.source]) for item in read.dropped],
        )

    def cleaned(self, failures: Sequence[Failure]) -> list[Failure]:
        """Failures whose messages may go out: what decoders and servers say may quote what they met."""
        messages = self._redact([failure.message for failure in failures])
        return [replace(failure, message=message) for failure, message in zip(failures, messages, strict=True)]

    def shown(self, name: str) -> str:
        """The name of a file of the input, as it may go out."""
        return self._redact([name])[0]

    def _redact(self, texts: Sequence[str]) -> list[str]:
        return [text for text, _ in self.redactor.redact(texts)] if self.redactor and texts else list(texts)

    def _id(self, id: str) -> str:
        return self.secret.pseudonym(id) if self.secret and id else id

    def admitted(self, read: Read) -> Read:
        """Without the records that don't fulfil the condition; one for which it has no answer is a failure."""
        if not self.require:
            return read
        kept, broken = self._judged(read.records)
        out = [record for record, keep in zip(read.records, kept, strict=True) if not keep]
        without = {record.source for record in out}
        wrong = [
            Failure(record.id, "", None, "read", ReadError.__name__, broken[record.source], record.source)
            for record in out
            if record.source in broken
        ]
        return Read(
            [record for record in read.records if record.source not in without],
            [failure for failure in read.failures if failure.source not in without] + wrong,
            [Dropped(r.id, "", KEPT_OUT, f"not {self.require}", "", r.source) for r in out if r.source not in broken],
        )

    def _judged(self, records: Sequence[Record]) -> tuple[NDArray[np.bool_], dict[str, str]]:
        """Which records fulfil the condition, bool (n,), and of those for which it has no answer why, by source.

        Records whose values are of other kinds are asked apart: none is judged by what its neighbours are.
        """
        names = filters.names_of(self.require)
        groups: dict[tuple[tuple[str, str | None], ...], list[int]] = {}
        for row, record in enumerate(records):
            groups.setdefault(tuple(metadata_kinds([_asked(record, names)]).items()), []).append(row)
        kept, broken = np.zeros(len(records), bool), {}
        for kinds, rows in groups.items():
            answers = self._answers([records[row] for row in rows], names, dict(kinds))
            for row, answer in zip(rows, answers, strict=True):
                kept[row] = answer is True
                if isinstance(answer, str):
                    broken[records[row].source] = (
                        f"--require {self.require!r} has no answer for this record: {answer}; mend its values"
                    )
        return kept, broken

    def _answers(
        self, records: Sequence[Record], names: Sequence[str], kinds: Mapping[str, str | None]
    ) -> list[bool | str]:
        """What the condition says of records whose values are of the same kinds: true, false, or why nothing."""
        nested = [key for key, kind in kinds.items() if kind == "json"]
        if nested and not _TAKES_JSON.search(self.require):
            return [f"{nested[0]} holds a list, an object or a number too large"] * len(records)
        try:
            return list(filters.kept_by(self.require, _columns(records, names)).tolist())
        except UsageError as error:
            if len(records) > 1:
                return [answer for record in records for answer in self._answers([record], names, kinds)]
            return [str(error).partition(" can't be used: ")[2].partition("; columns are")[0] or str(error)]

    def _with_redacted_content(self, read: Read) -> Read:
        """With what is found in the texts, the metadata and the paths of records replaced."""
        assert self.redactor
        records = self._with_texts(read.records)
        asked: list[str] = []

        def ask(key: str, value: Any) -> Any:
            asked.append(f"{key}: {value}" if key else str(value))  # what a value is may be said by its key
            return value

        for record in records:
            _mapped(record, ask, partial(ask, ""))
        found = iter(self.redactor.redact(asked))
        counts: Counter[str] = Counter()

        def answer(key: str, value: Any) -> Any:
            text, types = next(found)
            if types and key and not text.startswith(f"{key}: "):  # what is found begins in the key
                [(text, types)] = self.redactor.redact([str(value)])  # type: ignore[union-attr]
                key = ""
            counts.update(types)
            return (text.removeprefix(f"{key}: ") if key else text) if types else value

        return replace(
            read, records=[_mapped(record, answer, partial(answer, "")) for record in records], redacted=counts
        )

    def _with_pseudonym(self, record: Record) -> Record:
        """Without its id in the names of its files."""
        id = self._id(record.id)
        return _mapped(record, lambda _, value: value, lambda name: _without_id(name, record.id, id))

    def _with_texts(self, records: Sequence[Record]) -> list[Record]:
        """With the content of texts that are files: what is in them must be found here. One that can't be read is told
        where it is decoded."""
        of_files = [
            media for record in records for media in record.media.get("text", ()) if not isinstance(media.content, str)
        ]
        plain = replace(self.text, min_words=0, max_words=0, languages=())  # a filter judges what goes out
        texts: dict[int, Media] = {}
        for media, fetched in zip(of_files, self.fetcher.prefetched(of_files), strict=True):
            with suppress(RecordError):
                if not isinstance(fetched, RecordError):
                    texts[id(media)] = replace(media, content=plain.decode(fetched), part=None)
        return [
            replace(
                record, media={name: tuple(texts.get(id(m), m) for m in items) for name, items in record.media.items()}
            )
            for record in records
        ]

    def _ids(self, before: Read, records: Sequence[Record]) -> dict[str, str]:
        """By source, the ids that may go out."""
        raw = _ids_of(before)
        if self.secret:
            return {source: self._id(id) for source, id in raw.items()}
        ids = dict(zip(raw, self._redact(list(raw.values())), strict=True))
        # Tags would make ids equal that are not: instead it gets that of a record without an id.
        return ids | {r.source: content_id(r.media) for r in records if ids[r.source] != r.id}

    def _sources(self, before: Read) -> dict[str, str]:
        """By source, what may go out of it; no two become the same."""
        raw = _ids_of(before)
        renamed = [_with_pseudonym(source, id, self._id(id)) for source, id in raw.items()]
        shown = self._redact(renamed)
        return dict(zip(raw, _distinct(shown), strict=True))


def _ids_of(read: Read) -> dict[str, str]:
    """By source, the id of all that was read; "" of what has none."""
    return {item.source: item.id for item in read.items}


def _with_pseudonym(source: str, id: str, pseudonym: str) -> str:
    """A source without the id, where that is the name of its files; numbers of lines stay."""
    if not id or id == pseudonym or id not in source:
        return source
    return re.sub(rf"(?<![^/]){re.escape(id)}(?![^./])", pseudonym, source)


def _without_id(text: str, id: str, pseudonym: str) -> str:
    """A name, or a message, without an id that stands in it as a word: files are often called as what is in them."""
    if not id or id == pseudonym or id not in text:
        return text
    return re.sub(rf"(?<![^\W_]){re.escape(id)}(?![^\W_])", pseudonym, text)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of which those that are equal have a number."""
    times = Counter(names)
    return [f"{name} ({number})" if times[name] > 1 else name for number, name in enumerate(names)]


def _mapped(record: Record, content: Each, name: Callable[[str], str]) -> Record:
    """A record with other texts, values of metadata, and names of files."""
    media = {
        modality: tuple(_with_content(_with_name(item, name), content) for item in items)
        for modality, items in record.media.items()
    }
    return replace(record, media=media, metadata=_value("", dict(record.metadata), content))


def _with_content(media: Media, content: Each) -> Media:
    return replace(media, content=content("", media.content)) if isinstance(media.content, str) else media


def _with_name(media: Media, name: Callable[[str], str]) -> Media:
    """A medium under another name; it is still read where it lies."""
    if not media.path or (shown := name(media.path)) == media.path:
        return media
    return replace(media, path=shown, hidden=media.location)


def _value(key: str, value: Any, content: Each) -> Any:
    """A value of the metadata with what is in it replaced, at any depth."""
    if isinstance(value, dict):
        keys = _distinct([_value("", inner, content) for inner in value])
        return dict(zip(keys, [_value(inner, item, content) for inner, item in value.items()], strict=True))
    if isinstance(value, list):
        return [_value(key, item, content) for item in value]
    if isinstance(value, int | float) and _LEAST_NUMBER <= abs(value) < math.inf and value == int(value):
        whole = int(value)  # tables with holes have numbers of phones and cards as floats
        return value if (found := content(key, whole)) == whole else found
    return content(key, value) if isinstance(value, str) else value


def _asked(record: Record, names: Sequence[str]) -> Mapping[str, Any]:
    """What of a record's metadata a condition names."""
    lower = {name.lower() for name in names}
    return record.metadata if "metadata" in lower else {k: v for k, v in record.metadata.items() if k.lower() in lower}


def _columns(records: Sequence[Record], names: Sequence[str]) -> pa.Table:
    """What a condition names of records whose values are of the same kinds, and their ids. What none of them has is
    null and of no type, so that it can be compared with anything."""
    rows = [_asked(record, names) for record in records]
    kinds = metadata_kinds(rows)
    there = {key.lower() for key in kinds} | {"id", "metadata"}
    kinds |= {name: None for name in names if name.lower() not in there}
    typed = {key: kind for key, kind in kinds.items() if kind}
    fields = {key: pa.nulls(len(records)) for key in kinds}
    if typed:
        column = metadata_column(rows, embeddings_schema(1, "float32", typed).field("metadata").type, typed)
        fields |= {key: column.field(key) for key in typed}
    table = pa.table({"id": pa.array([record.id for record in records], pa.string())})
    if not fields:
        return table
    return table.append_column("metadata", pa.StructArray.from_arrays(list(fields.values()), list(fields)))
