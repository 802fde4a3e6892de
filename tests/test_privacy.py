"""What of records may go out: conditions, pseudonyms and redaction, on records in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed.errors import UsageError
from mmembed.privacy import Privacy, Read
from mmembed.redaction import Redactor
from mmembed.secret import Secret
from mmembed.types import Failure, Media, Record

MAIL = "jane.doe@mailbox.org"


def record(metadata: dict[str, Any], number: int = 0, id: str = "") -> Record:
    return Record(id or f"r{number}", {"text": (Media(content="a text"),)}, metadata, f"in.jsonl:{number}")


def read(*several: dict[str, Any]) -> Read:
    return Read([record(metadata, number) for number, metadata in enumerate(several)], [])


@pytest.fixture
def secret(tmp_path: Path) -> Secret:
    (tmp_path / "secret").write_text("0123456789abcdef")
    return Secret(str(tmp_path / "secret"))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(-3, 3),
    st.sampled_from(["cc0", "nc", "2", ""]),
    st.lists(st.sampled_from(["nc"]), max_size=1),
    st.just({"odd": 1}),
)
CONDITIONS = ["v in ('cc0')", "v not in ('nc')", "v > 0", "v", "v is null", "coalesce(v, 'x') = 'x'", "id = 'r0' or v"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.dictionaries(st.sampled_from(["v", "w"]), VALUES), max_size=6), st.sampled_from(CONDITIONS))
def test_a_record_is_judged_by_its_own_values_alone(rows: list[dict[str, Any]], condition: str) -> None:
    privacy = Privacy(require=condition)
    together = privacy.admitted(read(*rows))
    for number, metadata in enumerate(rows):
        alone = privacy.admitted(Read([record(metadata, number)], []))
        assert alone.items == [item for item in together.items if item.source == f"in.jsonl:{number}"]
    assert len(together.items) == len(rows)


@pytest.mark.parametrize(
    ("condition", "metadata", "becomes"),
    [
        ("licence in ('cc0')", {"licence": "cc0"}, "records"),
        ("licence in ('cc0')", {"licence": "nc"}, "dropped"),
        ("licence in ('cc0')", {}, "dropped"),
        ("licence not in ('nc')", {"licence": None}, "dropped"),
        ("licence not in ('nc')", {"licence": ["nc"]}, "failures"),
        ("LICENCE = 'cc0'", {"Licence": "cc0"}, "records"),
        ("count > 0", {"count": 1}, "records"),
        ("count > 0", {"other": 1}, "dropped"),
        ("count > 0", {"count": "many"}, "failures"),
        ("json_extract_string(consent, '$.research') = 'yes'", {"consent": {"research": "yes"}}, "records"),
        ("metadata.count > 0", {"count": 1, "other": [1]}, "failures"),
    ],
)
def test_what_becomes_of_a_record(condition: str, metadata: dict[str, Any], becomes: str) -> None:
    found = Privacy(require=condition).admitted(read(metadata, {"licence": {"odd": 1}, "count": None}))
    [item] = [item for item in found.items if item.source == "in.jsonl:0"]
    assert item in getattr(found, becomes)
    if becomes == "failures":
        assert "has no answer for this record" in vars(item)["message"]


def test_ids_leave_names_and_messages_but_no_numbers_of_lines(secret: Secret) -> None:
    privacy = Privacy(secret=secret)
    hidden = secret.pseudonym("jane")
    before = Record("jane", {"image": (Media("a/jane-front.jpg"), Media("jane_2.png"))}, {}, "jane")
    wrong = Failure("jane", "image", None, "read", "ReadError", "can't open jane-side.jpg, 'jane'", "jane", medium=-1)
    found = privacy.veiled(Read([before], [wrong]))
    [after] = found.records
    assert (after.id, after.source) == (hidden, hidden)
    assert [media.path for media in after.media["image"]] == [f"a/{hidden}-front.jpg", f"{hidden}_2.png"]
    assert [media.location for media in after.media["image"]] == ["a/jane-front.jpg", "jane_2.png"]
    assert found.failures[0].message == f"can't open {hidden}-side.jpg, '{hidden}'"
    numbered = Record("7", {"text": (Media(content="a"),)}, {}, "in.jsonl:7")
    assert privacy.veiled(Read([numbered], [])).records[0].source == "in.jsonl:7"


def test_values_are_found_wherever_they_stand() -> None:
    privacy = Privacy(redactor=Redactor("tags"))
    metadata = {
        MAIL: 1,
        "nested": [{"a@mailbox.org": 1, "b@mailbox.org": 2}],
        "card": 4111111111111111,
        "card_float": 4111111111111111.0,
        "phone": "030 901820",
        "year": 2019,
        "size": 10_000_000,
        "share": 0.5,
        "flag": True,
        "none": None,
        "infinite": float("inf"),
    }
    found = privacy.veiled(read(metadata))
    assert found.records[0].metadata == {
        "<EMAIL>": 1,
        "nested": [{"<EMAIL> (0)": 1, "<EMAIL> (1)": 2}],
        "card": "<CARD>",
        "card_float": "<CARD>",
        "phone": "<PHONE>",
        "year": 2019,
        "size": 10_000_000,
        "share": 0.5,
        "flag": True,
        "none": None,
        "infinite": float("inf"),
    }
    assert found.redacted == {"EMAIL": 3, "CARD": 2, "PHONE": 1}


def test_ids_and_sources_stay_distinct() -> None:
    records = [Record(mail, {"text": (Media(content=mail),)}, {}, mail) for mail in ("a@mailbox.org", "b@mailbox.org")]
    found = Privacy(redactor=Redactor("tags")).veiled(Read(records, []))
    assert [record.source for record in found.records] == ["<EMAIL> (0)", "<EMAIL> (1)"]
    assert all(len(record.id) == 32 for record in found.records)  # hashes of content, which is the same now
    assert [record.media["text"][0].content for record in found.records] == ["<EMAIL>", "<EMAIL>"]


def test_a_condition_is_checked_before_anything_is_done() -> None:
    for condition, line in (("lisence = 1", "none of the first 1 records has the key"), ("v", "is true or false")):
        with pytest.raises(UsageError, match=line):
            Privacy(require=condition).check(read({"v": 1}))
    Privacy(require="v > 1 and id != 'x'").check(read({"v": "a word"}))
