"""The dataset card of OUT/: what is in it, and how it loads, in the form that Hugging Face reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmembed.dataset import Dataset

_CARD = """\
---
configs:
{configs}
---
# Embeddings of {records:,} records

Made by mmembed. A row is a segment of a record: a picture or a tile, a text or a
chunk, a window of a sound. `embedding` is of space `{space}`. {scoring}

{counts}

| column | what it holds |
|---|---|
| `id` | of the record |
| `segment` | number of the segment within its record and modality |
| `span` | where it lies: pixels (left, top, right, bottom), characters (start, end), or seconds (start, end) |
| `media` | the piece of text, or the path of the file, relative to the manifest of the input |
| `split` | `train`, or `heldout`: not used to learn the maps |
| `metadata` | what else the input said of the record |
| `embedding` | {dim} x {dtype} |

    datasets.load_dataset("DIRECTORY", "{first}")
    pyarrow.dataset.dataset("DIRECTORY/embeddings/{first}", format="parquet")
    duckdb.sql("select id, split from 'DIRECTORY/embeddings/{first}/*.parquet'")
{evaluation}"""


_COSINE = "It is L2-normalized: the inner product of any two rows, of whichever modality, is their similarity."
_PMI = (
    "The similarity of a query's z and a candidate's is their inner product less half of sum_k s_k z_k^2 of the "
    "candidate, s being `spectrum` in `maps/fit.json`."
)


def dataset_card(dataset: Dataset, table: str) -> str:
    """The card as Markdown; `table` is what the evaluation found, as plain text."""
    summary = dataset.stage("project").summary
    spaces = dataset.modalities("project")
    first, space = next(iter(spaces.items()))
    configs = "\n".join(f"- config_name: {name}\n  data_files: embeddings/{name}/*.parquet" for name in spaces)
    return _CARD.format(
        configs=configs,
        records=dataset.stage("extract").summary["records"],
        space=space,
        scoring=_COSINE if dataset.stage("fit").summary.get("spectrum") is None else _PMI,
        counts=_counts(summary["segments"]),
        dim=space.dim,
        dtype=summary["dtype"],
        first=first,
        evaluation=f"\nRetrieval on held-out records:\n\n```\n{table}\n```\n" if table else "",
    )


def _counts(segments: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {count:,} |" for name, count in segments.items())
    return f"| modality | segments |\n|---|---|\n{rows}"
