"""Filters of a search: which rows of an index a condition over their metadata keeps."""

from __future__ import annotations

import threading
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed.errors import UsageError

Filter: TypeAlias = Any
"""An SQL condition (str), or an expression of pyarrow (pyarrow.compute.Expression), over `columns_of`."""

SECONDS, _MEGABYTES = 10.0, 1000
"""What a condition may take: it may come from a stranger."""

_OWN = ("id", "segment", "media", "split")


def columns_of(rows: pa.Table) -> pa.Table:
    """What a condition may name: the keys of the metadata, and id, segment, media and split where no key has their
    name. No value is copied."""
    metadata = rows.column("metadata") if "metadata" in rows.column_names else None
    names = [field.name for field in metadata.type] if metadata is not None else []
    columns = {name: rows.column(name) for name in _OWN if name not in names}
    return pa.table({**{name: pc.struct_field(metadata, [place]) for place, name in enumerate(names)}, **columns})


def kept_by(condition: Filter, rows: pa.Table) -> NDArray[np.bool_]:
    """Which rows a condition is true for, bool (n,); where it is null, it is not.

    Args:
        rows: of an index, as they lie in index/<modality>.arrow.

    Raises:
        UsageError: it is no condition over these columns, or takes longer than SECONDS.
    """
    columns = columns_of(rows)
    try:
        kept = _by_sql(condition, columns) if isinstance(condition, str) else _by_arrow(condition, columns)
    except UsageError:
        raise
    except Exception as error:  # of two libraries, which share no class of their errors
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"the filter {str(condition)!r} can't be used: {message}; columns are {', '.join(columns.column_names)}"
        ) from error
    if len(kept) != rows.num_rows:
        raise UsageError(f"the filter {str(condition)!r} is of all rows together: compare values of a row")
    return kept


def _by_arrow(condition: pc.Expression, columns: pa.Table) -> NDArray[np.bool_]:
    import pyarrow.dataset  # which loads pandas where it is installed

    kept = pyarrow.dataset.dataset(columns).to_table(columns={"kept": condition}, use_threads=False)["kept"]
    return _as_mask(kept)


def _by_sql(condition: str, columns: pa.Table) -> NDArray[np.bool_]:
    import duckdb

    with duckdb.connect(":memory:") as connection:
        # The condition sees the rows that it is given, and no file, variable or network.
        connection.execute(f"SET threads = 1; SET memory_limit = '{_MEGABYTES}MB'")
        connection.execute("SET python_enable_replacements = false; SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        expression = duckdb.SQLExpression(condition)
        timer = threading.Timer(SECONDS, connection.interrupt)
        timer.start()
        try:
            found = connection.from_arrow(columns).select(expression.alias("kept")).to_arrow_table()  # in their order
        except duckdb.InterruptException as error:
            raise UsageError(f"the filter {condition!r} takes more than {SECONDS:g} s: simplify it") from error
        finally:
            timer.cancel()
        return _as_mask(found["kept"])


def _as_mask(kept: Any) -> NDArray[np.bool_]:
    if not pa.types.is_boolean(kept.type):
        raise UsageError(f"a filter is true or false for each row, but this one is a {kept.type}: compare something")
    mask: NDArray[np.bool_] = pc.fill_null(kept, False).to_numpy().astype(bool)
    return mask
