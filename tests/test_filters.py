from __future__ import annotations

import contextlib
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
        (
            "metadata.year = 2019 and Metadata.License = 'by'",
            lambda year, license, **_: (year, license) == (2019, "by"),
        ),
        ("not (year > 2018)", lambda year, **_: year == 2018),  # neither it nor its contrary is true of null
        ("split = 'heldout' and segment < 9", lambda split, segment, **_: split == "heldout" and segment < 9),
        ("id in ('r3', 'r30')", lambda id, **_: id in ("r3", "r30")),
        ("media like '1%.png'", lambda media, **_: media.startswith("1")),
        ("true", lambda **_: True),
        (
            "year in (2018, 2020) or license in ('by')",
            lambda year, license, **_: year in (2018, 2020) or license == "by",
        ),
        ("year not in (2018)", lambda year, **_: year not in (2018, None)),
        ("year between 2019 and 2020", lambda year, **_: year in (2019, 2020)),
        ("year not between 2019 and 2020", lambda year, **_: year == 2018),
        ("license is not null", lambda license, **_: license is not None),
        ("license is distinct from 'by'", lambda license, **_: license != "by"),
        ("media not like '%1%'", lambda media, **_: "1" not in media),
        ("media like '_.PNG'", lambda **_: False),
        ("media ilike '_.PNG'", lambda media, **_: len(media) == 5),
        ("media not ilike '_.PNG'", lambda media, **_: len(media) != 5),
        (
            "case when year = 2018 then segment < 9 else segment > 30 end",
            lambda year, segment, **_: segment < 9 if year == 2018 else segment > 30,
        ),
        ("case license when 'cc0' then true end", lambda license, **_: license == "cc0"),
        ("cast(segment as varchar) = '7'", lambda segment, **_: segment == 7),
        ("segment::double < 2.5", lambda segment, **_: segment < 3),
        ("try_cast(license as int) is null", lambda **_: True),
        ("-segment + 2 * 3 - 1 > 0", lambda segment, **_: segment < 5),
        (
            "segment / 2 = 1.5 or segment // 4 = 9 or segment % 7 = 1",
            lambda segment, **_: segment == 3 or segment // 4 == 9 or segment % 7 == 1,
        ),
        ("upper(license) = 'BY' or lower('CC0') = license", lambda license, **_: license is not None),
        ("trim(license, 'c') = '0'", lambda license, **_: license == "cc0"),
        ("length(media) = 5 and substring(media, 1, 1) = '7'", lambda segment, **_: segment == 7),
        ("starts_with(media, '3') and ends_with(media, '5.png')", lambda segment, **_: segment == 35),
        ("prefix(media, '3') and suffix(media, '5.png') and contains(media, '35')", lambda segment, **_: segment == 35),
        (r"regexp_matches(media, '^\d{2}\.')", lambda segment, **_: segment > 9),
        ("abs(segment - 20) < 2 and round(segment / 3, 0) = 7", lambda segment, **_: segment in (20, 21)),
        ("floor(segment / 2) = 3 or ceil(segment / 2) = 3", lambda segment, **_: segment in (5, 6, 7)),
        ("coalesce(year, 1) = 1", lambda year, **_: year is None),
        ("greatest(segment, 3) = 3 or least(segment, 39) = 39", lambda segment, **_: segment in (0, 1, 2, 3, 39)),
        (
            "year(d) = 2020 and month(d) = 2 and day(d) = 1 + segment".replace("d)", "'2020-02-03'::date)"),
            lambda segment, **_: segment == 2,
        ),
        ("json_extract_string('{\"a\": [7]}', '$.a[0]') = segment::varchar", lambda segment, **_: segment == 7),
        (
            "json_extract('{\"a\": 7}', 'a') = segment or '{\"a\": 8}' ->> 'a' = segment::varchar",
            lambda segment, **_: segment in (7, 8),
        ),
        (
            "YEAR = 2018 and Segment < 9 -- any case, and a remark",
            lambda year, segment, **_: year == 2018 and segment < 9,
        ),
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


def test_metadata_with_keys_that_differ_in_case_only_is_no_column() -> None:
    rows = pa.table({"id": ["a", "b"], "metadata": [{"year": 1, "Year": 2}, {"year": 2, "Year": 1}]})
    assert kept_by("Year = 2", rows).tolist() == [True, False]
    with pytest.raises(UsageError, match="no column metadata"):
        kept_by("metadata.Year = 2", rows)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("nope = 3", r"nope.*columns are license \(string\), year \(int64\), id \(string\)"),
        ("year", "true or false for each row, but this one is a int64"),
        ("year >", "can't be used"),
        ("count(*) > 3", "count_star is not allowed; a condition holds columns"),
        ("current_user = 'root'", "no column current_user"),
        ("true and " * 2000 + "true", "too long: it may have 10,000"),
        ("(" * 9000, "200 brackets"),
        ("lower(" * 60 + "media" + ")" * 60 + " = 'a'", "60 functions"),
        (" or ".join(["regexp_matches(media, 'a')"] * 5), "5 regexp_matches"),
        (" - ".join(["year"] * 1100) + " = 1", "can't be used"),
        ("true; drop table x", "more than one condition is not allowed"),
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


@pytest.mark.parametrize(
    ("condition", "named"),
    [
        ("len(range(100000000)) > 0", "len|range"),
        ("(select count(*) from range(1000000000000)) > 1", "subquery"),
        ("exists(select 1 from duckdb_settings())", "subquery"),
        ("year in (select 1)", "subquery"),
        ("year = any([2018])", "subquery"),
        ("current_setting('threads') = 1", "current_setting"),
        ("row_number() over () = 1", "window"),
        ("sum(year) > 1", "sum"),
        ("unnest([true])", "unnest"),
        ("[year] = [2018]", "list_value"),
        ("{'a': year} = {'a': 2018}", "struct_pack"),
        ("list_filter(license, lambda q: q > 'a') is null", "list_filter|lambda"),
        ("license[1] = 'c'", "array extract"),
        ("license || media = 'a'", r"\|\|"),
        ("repeat(license, 1000000000) = 'a'", "repeat"),
        ("#1", "positional reference"),
        ("*", "star"),
        ("columns(*) = 1", "star"),
        ("$1 = 3", "parameter"),
        ("license collate nocase = 'CC0'", "collate"),
        ("cast(license as int[]) is null", "the type"),
        ("year::bignum = 2018", "the type BIGNUM"),
        ("try(year = 2018)", "operator try"),
        ("random() > 0.5", "random"),
        ("sleep_ms(1000) is null", "sleep_ms"),
        ("license like media", "like of a pattern that is no text"),
        ("license like '%_a%_a%b'", "a pattern of like with _ and more than two %"),
        ("license like 'a' escape '!'", "like_escape"),
        ("regexp_matches(media, license)", "regexp_matches of a pattern that is no text"),
        ("regexp_matches(media, '((a{100}){10}){0,1}b')", "a regular expression of more than 300"),
        ("json_extract(license, '$..*') is null", "a path with"),
        ("true as kept", "more than one condition"),
        ("true, true", "more than one condition"),
        ("true from range(3)", "more than one condition"),
        ("true where true", "more than one condition"),
        ("true order by 1", "more than one condition"),
        ("true limit 1", "more than one condition"),
        ("distinct true", "more than one condition"),
        ("true union all select true", "more than one condition"),
        ("true; select true", "more than one condition"),
    ],
)
def test_what_is_not_known_to_be_harmless_is_refused_by_name(condition: str, named: str) -> None:
    with pytest.raises(UsageError, match=f"can't be used: ({named}).* is not allowed; a condition holds columns"):
        kept_by(condition, ROWS)


@settings(deadline=None, max_examples=60)
@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    st.text("a';-\"()", max_size=9),
)
def test_a_text_in_quotes_is_a_text_whatever_it_holds(one: str, other: str) -> None:
    rows = rows_of([{"license": one, "year": 1}, {"license": other, "year": 2}])
    for text in (one, other):
        kept = kept_by(f"license = '{text.replace(chr(39), chr(39) * 2)}'", rows)
        assert kept.tolist() == [one == text, other == text]


@settings(deadline=None, max_examples=60)
@given(st.text("ab'\"(),;-*/ =01", max_size=30))
def test_no_condition_does_more_than_keep_rows_or_be_refused(condition: str) -> None:
    with contextlib.suppress(UsageError):
        assert kept_by(condition, ROWS).shape == (40,)


def test_case_of_a_key_is_of_no_account() -> None:
    ours = {"id": ["a", "b"], "segment": [0, 0], "media": ["x", "y"], "split": ["train", "train"]}
    rows = pa.table({**ours, "metadata": [{"ID": 1, "Tone": 2, "tone": 3}, {"ID": 4, "Tone": 5, "tone": 6}]})
    assert kept_by("id = 1", rows).tolist() == [True, False]
    assert kept_by("Tone = 5", rows).tolist() == [False, True]
    assert kept_by("tone = 3", rows).tolist() == [True, False]
    assert kept_by("TONE = 5", rows).tolist() == [False, True]  # the first
    with pytest.raises(UsageError, match="differ in case only"):
        kept_by("tone = 3 and Tone = 2", rows)


def test_a_condition_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "SECONDS", 0.5)
    texts = pa.array(["ab" * 500] * 200_000).dictionary_encode().cast(pa.string())
    rows = pa.table({"id": texts, "segment": texts, "media": texts, "split": texts})
    start = time.monotonic()
    with pytest.raises(UsageError, match="more than 0.5 s"):
        kept_by(f"regexp_matches(id, '(a|b)*a{'.' * 90}c')", rows)
    assert time.monotonic() - start < 30
