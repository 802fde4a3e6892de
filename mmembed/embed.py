"""Records of anybody's own pipeline to embeddings, by the encoders and the maps of a data set that was built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmembed.encoders.loading import once
from mmembed.errors import FilteredError
from mmembed.inputs.rows import MANIFEST_COLUMNS, Rows
from mmembed.search import Searcher
from mmembed.steps import encode_segments, normalize_segments, segment_records
from mmembed.types import Batch, Failure, Segment


@dataclass(frozen=True)
class Embedder:
    """Embeds rows as a data set's records were embedded; a picklable value, called on workers.

    Attributes:
        out: the data set, a folder or a URL.
        folder: what relative paths of media are relative to, a folder or a URL; paths may not leave it.
    """

    out: str
    folder: str

    def setup(self) -> None:
        """Read the maps and load the encoders, once a process.

        Raises:
            UsageError: there is no such data set, no maps were fitted, or an encoder can't be had.
            SpaceError: an encoder is not what the data set was made with.
        """
        searcher = self._searcher()
        for modality in searcher.dataset.modalities("fit"):
            searcher.map_of(modality)
            searcher.encoders[modality][1].setup()

    def embed(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, Segment]], list[Failure]]:
        """Segments of rows by modality, whose data are L2-normalized embeddings, float32 (k,); and what could not be
        used, or was left out by a filter of the data set.

        Args:
            rows: as of a manifest: an id, a text, the path, the URL or the bytes of an image or audio; else metadata.
        """
        searcher = self._searcher()
        names = list(searcher.dataset.modalities("fit"))
        modalities = {name: searcher.encoders[name][0] for name in names}
        encoders = {name: searcher.encoders[name][1] for name in names}
        blur = searcher.config.extract.image.blur_boxes
        parser = Rows(MANIFEST_COLUMNS, self.folder, id_needed=True, blur=blur)
        # Each for itself, for a stream may bring an id again.
        parsed = [parser.parse([(str(row.get(MANIFEST_COLUMNS.id) or ""), dict(row))]) for row in rows]
        failures = [failure for _, failed in parsed for failure in failed]
        embedded: list[tuple[str, Segment]] = []
        for batch in segment_records(Batch(tuple(record for found, _ in parsed for record in found)), modalities):
            encoded = encode_segments(normalize_segments(batch, modalities), encoders)
            failures += encoded.failures
            failures += [
                Failure(item.id, item.modality, None, item.kind, FilteredError.__name__, item.reason, item.source)
                for item in encoded.dropped
            ]
            if encoded.modality and encoded.items:
                features = np.stack([segment.data for segment in encoded.items])
                vectors = searcher.map_of(encoded.modality).apply(features, encoders[encoded.modality].space)
                items = zip(encoded.items, vectors, strict=True)
                embedded += [(encoded.modality, replace(segment, data=vector)) for segment, vector in items]
        return embedded, failures

    def _searcher(self) -> Searcher:
        return once(("embedder", self.out), lambda: Searcher.open(self.out))
