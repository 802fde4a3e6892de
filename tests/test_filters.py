from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed import filters
from mmembed.errors import UsageError
from mmembed.filters import kept_by


def rows_of(values: list[dict[str, Any]]) -> pa.Table:
    """Rows as of an index, in record batches of three."""
    table = pa.table(
        {
            "id": [f"r{row}" for row in range(len(values))],
            "segment": pa.array(range(len(values)), pa.int32()),
            "media": [f"{row}.png" for row in range(len(values))],
            "split": ["train" if row % 2 else "heldout" for row in range(len(values))],
            "metadata": pa.array(values, pa.struct([("license", pa.string()), ("year", pa.int64())])),
        }
    )
    return pa.Table.from_batches(table.to_batches(max_chunksize=3), table.schema)


ROWS = rows_of([{"license": ["cc0", "by", None][n % 3], "year": [2018, 2019, 2020, None][n % 4]} for n in range(40)])


def expected(rule: Any) -> list[int]:
    return [n for n, row in enumerate(ROWS.to_pylist()) if rule(**row["metadata"], **row)]


@pytest.mark.parametrize(
    ("condition", "rule"),
    [
        ("license = 'cc0' and year > 2019", lambda license, year, **_: license == "cc0" and (year or 0) > 2019),
        ("year is null", lambda year, **_: year is None),
        ("not (year > 2018)", lambda year, **_: year == 2018),  # neither it nor its contrary is true of null
        ("split = 'heldout' and segment < 9", lambda split, segment, **_: split == "heldout" and segment < 9),
        ("id in ('r3', 'r30')", lambda id, **_: id in ("r3", "r30")),
        ("media like '1%.png'", lambda media, **_: media.startswith("1")),
        ("true", lambda **_: True),
        (pc.field("year") > 2019, lambda year, **_: (year or 0) > 2019),
        (
            pc.field("license").isin(["by"]) & (pc.field("id") != "r1"),
            lambda license, id, **_: license == "by" and id != "r1",
        ),
    ],
    ids=lambda given: "rule" if callable(given) else str(given),
)
def test_a_condition_keeps_the_rows_that_it_is_true_for(condition: Any, rule: Any) -> None:
    kept = kept_by(condition, ROWS)
    assert kept.dtype == bool and kept.shape == (40,)
    assert np.flatnonzero(kept).tolist() == expected(rule)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.sampled_from(["cc0", "by", "'", None]), st.integers(2000, 2005)), max_size=20), st.data())
def test_both_languages_say_the_same(values: list[tuple[str | None, int]], data: st.DataObject) -> None:
    rows = rows_of([{"license": license, "year": year} for license, year in values])
    year, license = data.draw(st.integers(1999, 2006)), data.draw(st.sampled_from(["cc0", "by", "'"]))
    quoted = license.replace("'", "''")
    sql = kept_by(f"license = '{quoted}' or year < {year}", rows)
    assert (sql == kept_by((pc.field("license") == license) | (pc.field("year") < year), rows)).all()
    assert sql.tolist() == [found == license or of < year for found, of in values]


def test_a_key_of_the_user_hides_a_column_of_ours() -> None:
    ours = {"id": ["a", "b"], "segment": [0, 0], "media": ["x", "y"], "split": ["train", "train"]}
    rows = pa.table({**ours, "metadata": [{"id": "mine"}, {"id": "yours"}]})
    assert kept_by("id = 'mine'", rows).tolist() == [True, False]
    assert kept_by("id = 'a' and \"segment\" = 0", pa.table(ours)).tolist() == [True, False]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("nope = 3", "nope.*columns are license, year, id, segment, media, split"),
        ("year", "true or false for each row, but this one is a int64"),
        ("year >", "can't be used"),
        ("count(*) > 3", "of all rows together"),
        ("true; drop table x", "can't be used"),
        ("1=1) from x --", "can't be used"),
        (pc.field("nope") == 3, "columns are license"),
        (pc.field("year"), "true or false"),
    ],
    ids=str,
)
def test_what_is_no_condition_is_refused_with_the_columns_there_are(condition: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kept_by(condition, ROWS)


@pytest.mark.parametrize(
    "condition",
    [
        "id in (select content from read_text('/etc/hostname'))",
        "exists(select 1 from glob('/etc/*'))",
        "exists(select 1 from read_csv('https://localhost/x.csv'))",
        "exists(select 1 from ROWS)",  # a variable of the program
        "getenv('HOME') is not null",
    ],
)
def test_a_condition_of_a_stranger_sees_no_file_variable_or_network(condition: str) -> None:
    with pytest.raises(UsageError, match="can't be used"):
        kept_by(condition, ROWS)


def test_a_condition_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(UsageError, match="more than 0.3 s"):
        kept_by("(select count(*) from range(1000000000000) a) > 1", ROWS)
    assert time.monotonic() - start < 60
