"""Records of a user's own pipeline, batch or streaming, to embeddings in the space of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from mmembed.embed import Embedder
from mmembed.engine import use_one_thread
from mmembed.errors import UsageError
from mmembed.transforms.monitoring import count, observe, timed


class Embedding(NamedTuple):
    """A segment of a record in the shared space; the fields are those of embeddings/."""

    id: str
    modality: str
    segment: int
    span: Sequence[float]
    media: str
    embedding: Sequence[float]


class EmbeddingError(NamedTuple):
    """What could not be embedded, and why; the fields are those of errors/."""

    id: str
    modality: str
    segment: int | None
    stage: str
    error: str
    message: str


for _row in (Embedding, EmbeddingError):
    beam.coders.registry.register_coder(_row, beam.coders.RowCoder)

_ERRORS = "errors"


@dataclass
class EmbedRecords(beam.PTransform):
    """Rows of records to rows of embeddings, one a segment.

    A row is a mapping, a `beam.Row` or a NamedTuple with what a record of a manifest has: `id`, and some of `text`,
    `image` and `audio` (a path, a URL, or bytes).

    Attributes:
        out: the data set whose encoders and maps are used; a folder that workers see, or a URL.
        folder: what relative paths of media are relative to; paths may not leave it.
        error_handling: {"output": NAME}: what can't be embedded is a row of this second output, and the transform gives
            both by name, the embeddings as "embeddings". Without it, such a record fails the pipeline.
        batch: rows that are encoded together, at most.
    """

    out: str
    folder: str = ""
    error_handling: Mapping[str, str] | None = None
    batch: int = 64

    def __post_init__(self) -> None:
        super().__init__()
        if self.error_handling is not None and "output" not in self.error_handling:
            raise UsageError(f"error_handling = {dict(self.error_handling)}: must name the output of errors as output")

    def expand(self, rows: beam.PCollection[Any]) -> Any:
        outputs = (
            rows
            | "Batch" >> beam.BatchElements(1, self.batch)
            | "Embed" >> beam.ParDo(_Embed(Embedder(self.out, self.folder))).with_outputs(_ERRORS, main="embeddings")
        )
        embeddings = outputs.embeddings | "Embeddings" >> beam.Map(_same).with_output_types(Embedding)
        errors = outputs[_ERRORS] | "Errors" >> beam.Map(_same).with_output_types(EmbeddingError)
        if self.error_handling is None:
            _ = errors | "Fail" >> beam.Map(_fail)
            return embeddings
        return {"embeddings": embeddings, self.error_handling["output"]: errors}


@dataclass
class _Embed(beam.DoFn):
    embedder: Embedder

    def setup(self) -> None:
        use_one_thread()
        self.embedder.setup()

    def process(self, rows: Sequence[Any]) -> Iterator[Any]:
        with timed("embed"):
            embedded, failures = self.embedder.embed([_mapping(row) for row in rows])
        observe("embed_batch_rows", len(rows))
        count("embedded_segments", len(embedded))
        for modality, item in embedded:
            yield Embedding(item.id, modality, item.number, list(item.span), item.media, item.data.tolist())
        for failure in failures:
            count(f"{failure.stage}_errors")
            fields = (getattr(failure, name) for name in EmbeddingError._fields)
            yield TaggedOutput(_ERRORS, EmbeddingError(*fields))


def _mapping(row: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = row if isinstance(row, Mapping) else row._asdict()
    return found


def _same(row: Any) -> Any:
    return row


def _fail(error: EmbeddingError) -> None:
    raise ValueError(
        f"{error.id}: {error.message} ({error.stage} of {error.modality or 'the record'}); to go on "
        "without such records, name an output for them with error_handling"
    )
