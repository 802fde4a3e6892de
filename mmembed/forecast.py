"""What a build would read and do, and about how long it would take, from a few records."""

from __future__ import annotations

import time
from collections import Counter

from mmembed.config import Config
from mmembed.extraction import Extraction
from mmembed.files import Place
from mmembed.steps import encode_segments, normalize_segments, segment_records
from mmembed.types import Batch, Record

TRIED = 24
"""Records that are really read, segmented and encoded for the estimate."""


def forecast(input: str, root: Place, config: Config, workers: int) -> str:
    """What would be read, in how many units, and estimates of the time of extraction and of the size of its results.

    Nothing is written. The records tried are the first ones of the unit in the middle of the input.

    Raises:
        UsageError: as of `Extraction.of`.
    """
    extraction = Extraction.of(input, root, config.extract)
    units = extraction.units
    rows = sum(unit.records for unit in units)
    todo = extraction.stale(retry_errors=False) if root.is_dir() else list(units)
    forms = Counter(unit.form for unit in units)
    lines = [
        f"{input}: {rows:,} records in {len({unit.file for unit in units}):,} files "
        f"({', '.join(f'{count:,} units of {form}' for form, count in forms.items())})",
        f"{len(todo):,} of {len(units):,} units are to be done, {sum(unit.records for unit in todo):,} records",
    ]
    middle = units[len(units) // 2]
    records, failures = extraction.source.read(middle)
    tried = records[:TRIED]
    if (share := config.extract.sample) < 1:
        lines.append(f"of those, a sample of {share:.1%}, about {share * rows:,.0f} records")
    if not tried:
        return "\n".join([*lines, *(f"{failure.source}: {failure.message}" for failure in failures[:3])])
    for encoder in extraction.encoders.values():
        encoder.setup()
    _extract(extraction, tried[:1])  # what is loaded once is no matter of the records
    start = time.monotonic()
    batches = _extract(extraction, tried)
    seconds = (time.monotonic() - start) / len(tried) * sum(unit.records for unit in todo) * share
    lines.append(f"of {len(tried)} records tried, from {tried[0].source} on:")
    size = 0
    for name, encoder in extraction.encoders.items():
        segments = [item for batch in batches if batch.modality == name for item in batch.items]
        media = sum(len(record.media.get(name, ())) for record in tried)
        lines.append(f"  {name}: {media} media, {len(segments)} segments")
        # a feature, an embedding, and the index's copy of it
        size += len(segments) * 4 * (encoder.space.dim + 2 * min(config.fit.dim, encoder.space.dim))
    wrong = config.extract.privacy.cleaned([failure for batch in batches for failure in batch.failures])
    lines += [f"  {failure.source}: {failure.message}" for failure in wrong[:3]]
    megabytes = size / len(tried) * rows * share / 1e6
    lines.append(
        f"about {_duration(seconds / workers)} of extraction with {workers} workers, and {megabytes:,.1f} MB of "
        "features, embeddings and indexes"
    )
    return "\n".join(lines)


def _extract(extraction: Extraction, records: list[Record]) -> list[Batch]:
    """Batches of encoded segments, and what became of the others."""
    pieces = segment_records(Batch(tuple(records)), extraction.modalities, extraction.config.fetcher)
    return [
        encode_segments(normalize_segments(batch, extraction.modalities), extraction.encoders)
        for batch in pieces
        if batch.modality
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
