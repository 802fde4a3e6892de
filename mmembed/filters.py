"""Filters of a search: which rows of an index a condition over their metadata keeps."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed.errors import UsageError

Filter: TypeAlias = Any
"""An SQL condition (str), or an expression of pyarrow (pyarrow.compute.Expression), over `columns_of`."""

SECONDS, _MEGABYTES = 10.0, 1000
"""What a condition may take: it may come from a stranger. The second line: values inside one expression are neither
counted nor interrupted, so what a condition may hold is bounded first."""

LENGTH, _BRACKETS, _CALLS, _PATTERNS, _PATTERN = 10_000, 200, 50, 4, 300
"""Bounds of a condition: its characters; its opening brackets (DuckDB's parser takes minutes for 9,000); its functions
and casts (each holds its values of up to 2,048 rows); its regular expressions; the size of one."""

_BATCH = 128
"""Rows at a time where there is a regular expression: an interrupt is heard between batches only."""

_OWN = ("id", "segment", "media", "split", "metadata")

_CLASSES = {"COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "BETWEEN", "CASE", "CAST", "FUNCTION", "OPERATOR"}
_OPERATORS = {"OPERATOR_NOT", "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL", "OPERATOR_COALESCE"}
_OPERATORS |= {"COMPARE_IN", "COMPARE_NOT_IN"}
_LIKE = {"~~", "!~~", "~~*", "!~~*"}
# fmt: off
_FUNCTIONS = [
    "lower", "upper", "trim", "length", "substring", "starts_with", "ends_with", "contains",
    "prefix", "suffix", "regexp_matches", "abs", "round", "floor", "ceil", "coalesce",
    "greatest", "least", "year", "month", "day", "list_contains", "json_extract", "json_extract_string",
]
# fmt: on
_SYMBOLS = {"+", "-", "*", "/", "//", "%", "^@", "->>"} | _LIKE
_JSON = {"json_extract", "json_extract_string", "->>"}
_TYPES = {"BOOLEAN", "BOOL", "TINYINT", "SMALLINT", "INTEGER", "INT", "BIGINT", "FLOAT", "REAL", "DOUBLE", "VARCHAR"}
_TYPES |= {"TEXT", "STRING", "DATE", "TIMESTAMP", "TIME"}
_ALLOWED = (
    "a condition holds columns, constants, comparisons, and, or, not, in, between, is null, like, ilike, case, cast, "
    f"+ - * / // %, and {', '.join(_FUNCTIONS)}"
)


def columns_of(rows: pa.Table) -> pa.Table:
    """What a condition may name: the keys of the metadata, and id, segment, media, split and metadata itself (whose
    keys are then `metadata.key`, as in the Parquet files) where no key has their name, in whichever case: SQL ignores
    it. No value is copied."""
    metadata = rows.column("metadata") if "metadata" in rows.column_names else None
    names = [field.name for field in metadata.type] if metadata is not None else []
    taken = {name.lower() for name in names}
    own = [name for name in _OWN if name in rows.column_names and name not in taken]
    if len(taken) < len(names):  # of two keys that differ in case only, SQL would take the first within the metadata
        own.remove("metadata")
    columns = {name: rows.column(name) for name in own}
    return pa.table({**{name: pc.struct_field(metadata, [place]) for place, name in enumerate(names)}, **columns})


def kept_by(condition: Filter, rows: pa.Table) -> NDArray[np.bool_]:
    """Which rows a condition is true for, bool (n,); where it is null, it is not.

    Args:
        rows: of an index, as they lie in index/<modality>.arrow.

    Raises:
        UsageError: it is no condition over these columns, holds what is not allowed, or takes longer than SECONDS.
    """
    columns = columns_of(rows)
    try:
        kept = _by_sql(condition, columns) if isinstance(condition, str) else _by_arrow(condition, columns)
    except UsageError:
        raise
    except Exception as error:  # of two libraries, which share no class of their errors
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        known = ", ".join(f"{name} ({_kind(type)})" for name, type in zip(columns.column_names, columns.schema.types))
        raise UsageError(f"the filter {str(condition)!r} can't be used: {message}; columns are {known}") from error
    assert len(kept) == rows.num_rows
    return kept


def names_of(condition: str) -> list[str]:
    """The columns that an SQL condition names, each once.

    Raises:
        UsageError: it is no condition.
    """
    import duckdb

    try:
        with duckdb.connect(":memory:") as connection:
            nodes = _nodes_of(condition, connection)
    except (duckdb.Error, ValueError) as error:
        raise UsageError(f"the filter {condition!r} can't be used: {str(error).strip().splitlines()[0]}") from error
    return list(dict.fromkeys(node["column_names"][0] for node in nodes if node["class"] == "COLUMN_REF"))


def _kind(type: pa.DataType) -> str:
    return "struct" if pa.types.is_struct(type) else str(type)


def _by_arrow(condition: pc.Expression, columns: pa.Table) -> NDArray[np.bool_]:
    import pyarrow.dataset  # which loads pandas where it is installed

    kept = pyarrow.dataset.dataset(columns).to_table(columns={"kept": condition}, use_threads=False)["kept"]
    return _as_mask(kept)


def _by_sql(condition: str, columns: pa.Table) -> NDArray[np.bool_]:
    import duckdb

    if len(condition) > LENGTH or sum(map(condition.count, "([{")) > _BRACKETS:
        raise UsageError(
            f"the filter of {len(condition):,} characters is too long: it may have {LENGTH:,}, and {_BRACKETS} brackets"
        )
    with duckdb.connect(":memory:") as connection:
        # The condition sees the rows that it is given, and no file, variable or network.
        connection.execute(f"SET threads = 1; SET memory_limit = '{_MEGABYTES}MB'")
        connection.execute("SET python_enable_replacements = false; SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        timer = threading.Timer(SECONDS, connection.interrupt)
        timer.start()
        try:
            nodes = _nodes_of(condition, connection)
            _check(condition, nodes)
            named = columns.select(_named(nodes, columns.column_names))
            batches = named.to_batches(max_chunksize=_BATCH if any(map(_is_regular, nodes)) else None)
            relation = connection.from_arrow(pa.Table.from_batches(batches, named.schema))
            found = relation.select(duckdb.SQLExpression(condition).alias("kept")).to_arrow_table()  # in their order
        except duckdb.InterruptException as error:
            raise UsageError(f"the filter {condition!r} takes more than {SECONDS:g} s: simplify it") from error
        finally:
            timer.cancel()
        return _as_mask(found["kept"])


def _nodes_of(condition: str, connection: Any) -> list[dict[str, Any]]:
    """The nodes of a condition's syntax tree, as json_serialize_sql gives them: each has a `class` and a `type`.

    It is parsed as duckdb.SQLExpression parses it: after SELECT, and without brackets, which a condition could close.
    """
    [(text,)] = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [f"SELECT {condition}"]).fetchall()
    tree = json.loads(text)
    if tree["error"]:
        if tree["error_type"] == "not implemented":  # a statement of another kind, behind a semicolon
            raise _refused(condition, "more than one condition")
        raise ValueError(tree["error_message"])
    statement = tree["statements"][0]["node"]
    selected = statement.get("select_list") or []
    clauses = ("modifiers", "where_clause", "group_expressions", "group_sets", "having", "qualify", "sample")
    alone = len(tree["statements"]) == len(selected) == 1 and not selected[0].get("alias")
    if not alone or statement["from_table"]["type"] != "EMPTY" or any(map(statement.get, clauses)):
        raise _refused(condition, "more than one condition")
    if (statement.get("cte_map") or {}).get("map"):
        raise _refused(condition, "WITH")
    return list(_below(selected))


def _below(value: Any) -> Iterator[dict[str, Any]]:
    """Every node in a part of the tree, whatever member it lies in: DuckDB's releases name the members differently."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class" in value:
                yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _named(nodes: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """The columns that a condition names; the first one where it names none, for a table has at least one.

    Only these are given to DuckDB: two keys that differ in case only would be one name to it.
    """
    lower: dict[str, str] = {}
    for name in columns:
        lower.setdefault(name.lower(), name)
    found: dict[str, str] = {}
    for node in nodes:
        if node["class"] != "COLUMN_REF":
            continue
        name = node["column_names"][0]
        column = name if name in columns else lower.get(name.lower())
        if column is None:  # it might be a value of the session, such as current_user
            raise ValueError(f"there is no column {name}")
        if found.setdefault(column.lower(), column) != column:
            raise ValueError(f"{column} and {found[column.lower()]} differ in case only, which SQL ignores: name one")
    return list(found.values()) or list(columns[:1])


def _check(condition: str, nodes: Sequence[dict[str, Any]]) -> None:
    """Refuses what is not known to be harmless.

    A value that a row does not hold (a range, a list, a concatenation) may be of any size; a subquery runs for any
    time; a function may answer about the machine.
    """
    for node in nodes:
        name = _name(node)
        if node["class"] == "TYPE":  # DuckDB 2: the type of a cast is a node
            known = node["type_name"].upper() in _TYPES and not node.get("children")
        elif node["class"] == "CAST" and "cast_type" in node:  # DuckDB 1
            known = node["cast_type"]["id"] in _TYPES and not node["cast_type"].get("type_info")
        elif node["class"] == "FUNCTION":
            known = name in _FUNCTIONS or name in _SYMBOLS
        else:
            known = node["class"] in _CLASSES and (node["class"] != "OPERATOR" or node["type"] in _OPERATORS)
        if not known:
            raise _refused(condition, name)
        if node["class"] == "FUNCTION" and (name in _LIKE | _JSON or _is_regular(node)):
            _check_pattern(condition, node)
    calls = sum(_name(node) in _FUNCTIONS or node["class"] == "CAST" for node in nodes)
    patterns = sum(map(_is_regular, nodes))
    if calls > _CALLS or patterns > _PATTERNS:
        limit = f"{_CALLS} functions and casts, {_PATTERNS} of them regexp_matches"
        raise UsageError(f"the filter {condition[:80]!r}… has {calls} functions, {patterns} regexp_matches: {limit} do")


def _check_pattern(condition: str, node: dict[str, Any]) -> None:
    """A pattern is a constant, and small: its cost is its own size times that of the text."""
    arguments = node.get("arguments") or node["children"]  # DuckDB 2, 1
    pattern, *options = [argument.get("expression", argument) for argument in arguments][1:] or [{"class": "none"}]
    text = _text(pattern)
    if text is None or any(_text(option) is None for option in options):
        name = "like" if _name(node) in _LIKE else _name(node)
        raise _refused(condition, f"{name} of a pattern that is no text in quotes")
    if _name(node) in _LIKE and "_" in text and text.count("%") > 2:  # DuckDB 1 tries every place for each %
        raise _refused(condition, f"a pattern of like with _ and more than two %, {text[:80]!r},")
    if _name(node) in _JSON and ("*" in text or ".." in text):
        raise _refused(condition, f"a path with * or .., {text[:80]!r},")
    repeated = [max(int(n) for n in re.findall(r"\d+", found)) for found in re.findall(r"\{(\d[\d, ]*)\}", text)]
    if _is_regular(node) and len(text) * math.prod(max(n, 1) for n in repeated) > _PATTERN:
        raise _refused(condition, f"a regular expression of more than {_PATTERN} characters times its repetitions")


def _text(node: dict[str, Any]) -> str | None:
    """The value of a node that is a constant text."""
    literal = node.get("literal") or {}  # DuckDB 2
    value = node.get("value") or {}  # DuckDB 1
    if literal.get("kind") == "STRING":
        return str(literal["text"])
    return str(value["value"]) if (value.get("type") or {}).get("id") == "VARCHAR" and not value["is_null"] else None


def _is_regular(node: dict[str, Any]) -> bool:
    return _name(node) == "regexp_matches"


def _name(node: dict[str, Any]) -> str:
    """What a node is called where it is refused."""
    if node["class"] == "FUNCTION":
        return str(node["function_name"]).lower()
    if node["class"] == "TYPE":
        return f"the type {node['type_name'].upper()}"
    if node["class"] == "CAST" and "cast_type" in node:
        return f"the type {node['cast_type']['id']}"
    return str(node["type"] if node["class"] == "OPERATOR" else node["class"]).lower().replace("_", " ")


def _refused(condition: str, what: str) -> UsageError:
    return UsageError(f"the filter {condition!r} can't be used: {what} is not allowed; {_ALLOWED}")


def _as_mask(kept: Any) -> NDArray[np.bool_]:
    if not pa.types.is_boolean(kept.type):
        raise UsageError(f"a filter is true or false for each row, but this one is a {kept.type}: compare something")
    mask: NDArray[np.bool_] = pc.fill_null(kept, False).to_numpy().astype(bool)
    return mask
