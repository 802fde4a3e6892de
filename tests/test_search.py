from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast
from unittest.mock import Mock

import numpy as np
import pyarrow.compute as pc
import pytest
from dataset_builder import Row, build, index, input_space, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import mmembed.search
from mmembed import filters, kinds
from mmembed.config import ExtractConfig, IndexConfig
from mmembed.dataset import Dataset
from mmembed.encoders.input import Input
from mmembed.errors import DatasetError, DecodeError, SpaceError, UsageError
from mmembed.index import open_modality
from mmembed.inputs import Source
from mmembed.linear import normalize_rows
from mmembed.search import Query, Searcher
from mmembed.tables import vectors_from_arrow
from mmembed.types import Media, Neighbour, Space, Span, Unit

DIM = 6


@dataclass(frozen=True)
class Numbers:
    """A medium of numbers: a line is a segment."""

    name: ClassVar[str] = "text"
    version: ClassVar[str] = "1"

    def decode(self, media: Media) -> list[str]:
        with media.open() as file:
            return file.read().decode().splitlines()

    @property
    def by_content(self) -> bool:
        return True

    def segment(self, decoded: list[str], metadata: Mapping[str, Any]) -> Iterator[tuple[Span, str]]:
        for number, line in enumerate(decoded):
            yield (float(number), number + 1.0), line

    def parts(self, content: Any) -> list[Span]:
        return [(0.0, float(len(content)))]

    def masked(self, content: Any, spans: Sequence[Span]) -> Any:
        return content[:0] if spans else content

    def normalize(self, piece: str) -> NDArray[np.float32]:
        try:
            return np.array(piece.split(), np.float32)
        except ValueError as error:
            raise DecodeError(f"no numbers: {piece}") from error


@dataclass(frozen=True)
class Pictures(Numbers):
    name: ClassVar[str] = "image"
    version: ClassVar[str] = "1"


@dataclass(frozen=True)
class Same:
    """The numbers themselves as features."""

    modality: str
    version: str = "1"

    @property
    def space(self) -> Space:
        return replace(input_space(self.modality, DIM), version=self.version)

    @property
    def input(self) -> Input:
        return Input()

    def setup(self) -> None: ...

    def encode(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        return np.stack(batch)


ENCODERS: Any = {"text": (Numbers(), Same("text")), "image": (Pictures(), Same("image"))}


def searcher(dataset: Dataset) -> Searcher:
    return Searcher(dataset, ENCODERS)


def every(searcher: Searcher, query: Query, to: str = "any", k: int = 10) -> list[Neighbour]:
    """All segments that answer, not only the best of each record."""
    return searcher.search(query, to, k, segments="all")


def line(vector: NDArray[np.float32]) -> str:
    return " ".join(map(repr, map(float, vector)))


def slow(dataset: Dataset, vector: NDArray[np.float32], modalities: Sequence[str]) -> list[tuple[float, str, str, int]]:
    """All rows, best first, ties by modality and row number."""
    found = []
    for modality in modalities:
        for _, table in dataset.tables(f"embeddings/{modality}"):
            scores = vectors_from_arrow(table["embedding"]) @ vector
            found += list(
                zip(
                    scores, [modality] * len(scores), table["id"].to_pylist(), table["segment"].to_pylist(), strict=True
                )
            )
    return sorted(found, key=lambda row: -row[0])


def names(answers: Sequence[Neighbour]) -> list[tuple[str, str, int]]:
    return [(answer.modality, answer.id, answer.segment) for answer in answers]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    rows = random_rows(13, ["image", "text"], DIM, seed=7)
    metadata = [{"year": 1900 + i, "tags": ["a", i] if i % 2 else "plain"} for i in range(12)]
    return [replace(row, metadata=values) for row, values in zip(rows, [*metadata, {}], strict=True)]


@pytest.fixture(scope="module")
def dataset(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(tmp_path_factory.mktemp("data"), rows)


@pytest.mark.parametrize(("to", "modalities"), [("text", ["text"]), ("image", ["image"]), ("any", ["image", "text"])])
@pytest.mark.parametrize("k", [1, 7, 1000])
def test_answers_are_those_of_a_comparison_with_every_row(
    dataset: Dataset, to: str, modalities: list[str], k: int
) -> None:
    vector = normalize_rows(np.random.default_rng(8).normal(size=(1, DIM)).astype(np.float32))[0]
    answers = every(searcher(dataset), Query.of(text=line(3 * vector)), to, k)
    expected = slow(dataset, vector, modalities)[:k]
    assert names(answers) == [row[1:] for row in expected]
    assert [answer.rank for answer in answers] == list(range(1, len(expected) + 1))
    np.testing.assert_allclose([answer.score for answer in answers], [row[0] for row in expected], rtol=1e-5, atol=1e-6)


def test_an_answer_says_what_its_row_says(dataset: Dataset, rows: list[Row]) -> None:
    segment = len(rows[3].vectors["image"]) - 1
    (answer,) = every(searcher(dataset), Query.of(text=line(rows[3].vectors["image"][segment])), "image", 1)
    assert answer == Neighbour(
        1,
        answer.score,
        "image",
        "r003",
        segment,
        (segment, segment + 1.0),
        "image/r003",
        {"year": 1903, "tags": ["a", 3]},
    )
    assert answer.score == pytest.approx(1)
    (last,) = every(searcher(dataset), Query.of(text=line(rows[12].vectors["image"][0])), "image", 1)
    assert last.id == "r012" and last.metadata == {}


def test_segments_of_a_query_are_averaged(dataset: Dataset) -> None:
    vectors = np.random.default_rng(9).normal(size=(3, DIM)).astype(np.float32)
    mean = normalize_rows(normalize_rows(vectors).mean(axis=0, keepdims=True))[0]
    answers = every(searcher(dataset), Query.of(text="\n".join(map(line, vectors))), "image", 5)
    assert names(answers) == [row[1:] for row in slow(dataset, mean, ["image"])[:5]]


def test_a_file_is_a_query_too(dataset: Dataset, rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_text(line(rows[5].vectors["text"][0]))
    assert names(every(searcher(dataset), Query.of(image=path), "text", 1)) == [("text", "r005", 0)]


def test_a_record_is_a_query_and_not_among_its_answers(dataset: Dataset, rows: list[Row]) -> None:
    row = rows[6]
    means = [normalize_rows(normalize_rows(row.vectors[name]).mean(axis=0, keepdims=True)) for name in row.vectors]
    vector = normalize_rows(np.concatenate(means).mean(axis=0, keepdims=True))[0]
    expected = [found[1:] for found in slow(dataset, vector, ["image", "text"]) if found[2] != "r006"]
    assert names(every(searcher(dataset), Query.of(id="r006"), "any", 20)) == expected[:20]
    assert names(every(searcher(dataset), Query.of(id="r006"), "any", 1000)) == expected


def test_a_record_of_many_segments_leaves_room_for_its_only_answer(tmp_path: Path) -> None:
    near = np.eye(DIM, dtype=np.float32)[[0] * 9]
    near[:, 1] = np.linspace(0, 0.1, 9)  # no ties: those make the search look further
    rows = [Row("many", {"text": near}), Row("other", {"text": np.ones((1, DIM), np.float32)})]
    rows += [Row(f"far{i}", {"text": -near[:1]}) for i in range(9)]
    answers = every(searcher(build(tmp_path, rows, ["text"])), Query.of(id="many"), "text", 1)
    assert names(answers) == [("text", "other", 0)]


def test_a_record_of_one_modality_finds_the_other(tmp_path: Path) -> None:
    rows = random_rows(6, ["image", "text"], DIM)
    rows[5] = Row("lone", {"text": rows[1].vectors["image"][:1]})
    answers = every(searcher(build(tmp_path, rows)), Query.of(id="lone"), "image", 1)
    assert names(answers) == [("image", "r001", 0)]


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_ties_come_in_row_order_wherever_they_are_cut(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    choices = np.eye(DIM, dtype=np.float32)[:2]
    drawn = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=30))
    rows = [Row(f"r{i:02d}", {"text": choices[[choice]]}) for i, choice in enumerate(drawn)]
    dataset = build(tmp_path_factory.mktemp("ties"), rows, ["text"], unit=7)
    k = data.draw(st.integers(1, 32))
    answers = every(searcher(dataset), Query.of(text=line(choices[0])), "text", k)
    assert [answer.id for answer in answers] == [
        row.id for _, row in sorted(zip(drawn, rows, strict=True), key=lambda x: x[0])
    ][:k]


def test_better_rows_that_come_late_do_not_push_out_the_first_of_a_tie(tmp_path: Path) -> None:
    best, tied = np.eye(DIM, dtype=np.float32)[:1], np.ones((1, DIM), np.float32)
    rows = [Row(f"r{i:02d}", {"text": best if i >= 48 else tied}) for i in range(50)]
    answers = every(searcher(build(tmp_path, rows, ["text"], unit=20)), Query.of(text=line(best[0])), "text", 4)
    assert [answer.id for answer in answers] == ["r48", "r49", "r00", "r01"]


def test_half_precision_is_searched_like_single(rows: list[Row], tmp_path: Path) -> None:
    dataset = build(tmp_path, rows, dtype="float16")
    (answer,) = every(searcher(dataset), Query.of(text=line(rows[3].vectors["image"][0])), "image", 1)
    assert (answer.id, answer.segment) == ("r003", 0)
    assert answer.score == pytest.approx(1, abs=2e-3)


def test_an_index_is_opened_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def watched(dataset: Dataset, modality: str) -> Any:
        opened.append(modality)
        return open_modality(dataset, modality)

    monkeypatch.setattr(mmembed.search, "open_modality", watched)
    again = searcher(dataset)
    for _ in range(2):
        every(again, Query.of(text="1 0 0 0 0 0"))
    assert opened == ["image", "text"]


def test_answers_need_no_embeddings_files(rows: list[Row], tmp_path: Path) -> None:
    dataset = build(tmp_path, rows)
    for path in [*dataset.below("embeddings/image"), *dataset.below("embeddings/text")]:
        (tmp_path / path).unlink()
    query = Query.of(text=line(rows[5].vectors["image"][0]))
    assert names(every(searcher(dataset), query, "image", 1)) == [("image", "r005", 0)]
    assert len(every(searcher(dataset), Query.of(id="r005"), "image", 1000)) > 1


def test_a_query_is_something() -> None:
    with pytest.raises(UsageError, match="a query needs a text, an image, an audio, an id or a vector"):
        Query.of()


@pytest.mark.parametrize(
    ("query", "to", "k", "message"),
    [
        (Query.of(text="1 0 0 0 0 0"), "any", 0, "k = 0: must be at least 1"),
        (Query.of(text="1 0 0 0 0 0"), "video", 1, "no embeddings of 'video': ask for image, text, any"),
        (Query.of(audio=Path("a.wav")), "any", 1, "no map of audio queries: ask with image, text"),
        (Query.of(id="nobody"), "any", 1, "no embeddings of a record with the id 'nobody'"),
        (Query.of(id="\udcff"), "any", 1, "no embeddings of a record with the id"),  # no UTF-8 on the command line
        (Query.of(text="one two"), "any", 1, "the text query can't be used: no numbers: one two"),
        (Query.of(text=""), "any", 1, "the text query can't be used: nothing of it is left to be encoded"),
        (Query.of(text="nan 0 0 0 0 0"), "any", 1, "not finite"),
        (Query.of(image=Path("/nowhere/a.png")), "any", 1, "can't open /nowhere/a.png: No such file"),
        (Query.of(image=Path("/")), "any", 1, "can't open /: it is no regular file"),
    ],
)
def test_a_wrong_question_is_answered_with_what_exists(
    dataset: Dataset, query: Query, to: str, k: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        every(searcher(dataset), query, to, k)


def test_a_modality_that_no_record_has_is_not_offered(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(4, ["text"], DIM), ["image", "text"])
    with pytest.raises(UsageError, match="no embeddings of 'image': ask for text, any"):
        every(searcher(dataset), Query.of(text="1 0 0 0 0 0"), "image")


def test_an_encoder_of_another_version_is_refused(dataset: Dataset) -> None:
    changed = Searcher(dataset, {**ENCODERS, "text": (Numbers(), Same("text", "2"))})
    with pytest.raises(SpaceError, match=r"test-text@2\[6\]"):
        every(changed, Query.of(text="1 0 0 0 0 0"))


def test_a_data_set_without_index_says_how_to_make_one(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(3, ["image", "text"], DIM), until="project")
    with pytest.raises(UsageError, match="mmembed index"):
        every(searcher(dataset), Query.of(text="1 0 0 0 0 0"))


@pytest.mark.parametrize("name", ["image.faiss", "image.arrow", "index.json"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], lambda data: b""]
)
def test_a_damaged_file_of_the_index_is_named(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    dataset = build(tmp_path, random_rows(9, ["image", "text"], DIM))
    path = tmp_path / "index" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=f"index/{name}"):
        every(searcher(dataset), Query.of(id="r001"))


def test_open_takes_the_configuration_of_the_data_set(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def resolved(config: ExtractConfig) -> Any:
        seen.append(config)
        return ENCODERS

    monkeypatch.setattr(mmembed.config, "Parts", resolved)
    assert names(Searcher.open(dataset.folder).search(Query.of(text="1 0 0 0 0 0"), k=1))
    assert seen == [ExtractConfig()]


def test_importing_what_answers_queries_is_light() -> None:
    code = "import sys, mmembed.search, mmembed.evaluate, mmembed.verify, mmembed.index; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"apache_beam", "faiss", "librosa", "torch", "scipy", "PIL", "soundfile"} & set(loaded)


def embedding_of(row: Row, modality: str) -> NDArray[np.float32]:
    """Of a record with one modality: the mean of its segments."""
    mean: NDArray[np.float32] = normalize_rows(normalize_rows(row.vectors[modality]).mean(axis=0, keepdims=True))[0]
    return mean


def test_the_parts_of_a_query_are_added_by_their_weights(dataset: Dataset, rows: list[Row]) -> None:
    one, two, three = (embedding_of(rows[place], "text") for place in (1, 2, 3))
    query = Query.of(text=line(one)) + 0.5 * Query.of(image=line(two).encode()) - 2 * Query.of(vector=3 * three)
    mixed = normalize_rows((one + 0.5 * two - 2 * three)[np.newaxis])[0]
    assert names(every(searcher(dataset), query, "image", 9)) == [
        row[1:] for row in slow(dataset, mixed, ["image"])[:9]
    ]
    assert [clause.weight for clause in query.clauses] == [1, 0.5, -2]
    embedded = searcher(dataset).embed(query)
    np.testing.assert_allclose(embedded.vector, mixed, atol=1e-5)
    assert embedded.shares == pytest.approx({"text": 1 / 3.5, "image": 0.5 / 3.5})


def test_what_is_given_by_name_is_one_query(dataset: Dataset, rows: list[Row]) -> None:
    one, two = (embedding_of(rows[place], "text") for place in (1, 2))
    by_name = searcher(dataset).search(text=line(one), vector=two, to="image", k=5)
    together = searcher(dataset).search(Query.of(text=line(one)) + Query.of(vector=two), "image", 5)
    assert by_name == together


def test_records_that_are_asked_with_are_no_answers(dataset: Dataset) -> None:
    query = Query.of(id="r001") - Query.of(id="r002")
    answers = every(searcher(dataset), query, "any", 1000)
    assert not {"r001", "r002"} & {answer.id for answer in answers}
    assert {"r000", "r003"} <= {answer.id for answer in answers}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query.of(text="1 0 0 0 0 0") - Query.of(text="2 0 0 0 0 0"), "cancel each other out"),
        (0 * Query.of(text="1 0 0 0 0 0"), "cancel each other out"),
        (Query(()), "a query needs a text"),
        (np.inf * Query.of(text="1 0 0 0 0 0"), r"must be finite numbers, not \[inf\]"),
        ("a red star", r"'a red star' is no query: make one, as by Query\.of\(text=…\)"),
        (
            Query.of(vector=np.ones(5, np.float32)),
            r"must be 6 finite values of space test-shared@1\[6\], not of shape \(5,\)",
        ),
        (Query.of(vector=np.full(6, np.nan, np.float32)), "6 finite values"),
        (Query.of(vector=np.zeros(6, np.float32)), "6 finite values"),
    ],
)
def test_a_query_that_points_nowhere_is_refused(dataset: Dataset, query: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        searcher(dataset).search(query)


@pytest.mark.parametrize("to", ["text", "any"])
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_the_best_segment_of_each_record(dataset: Dataset, to: str, k: int) -> None:
    vector = normalize_rows(np.random.default_rng(3).normal(size=(1, DIM)).astype(np.float32))[0]
    best: dict[tuple[str, str], tuple[str, str, int]] = {}
    for _, modality, id, segment in slow(dataset, vector, ["image", "text"] if to == "any" else [to]):
        best.setdefault((modality, id), (modality, id, segment))
    answers = searcher(dataset).search(Query.of(text=line(vector)), to, k)
    assert names(answers) == list(best.values())[:k]


def test_several_queries_at_once_have_the_answers_that_they_have_alone(dataset: Dataset, rows: list[Row]) -> None:
    queries = [Query.of(text=line(embedding_of(row, "image"))) for row in rows[:4]] + [Query.of(id="r005")]
    together = searcher(dataset).search_many(queries, "any", 4)
    assert together == [searcher(dataset).search(query, "any", 4) for query in queries]
    assert searcher(dataset).search_many([]) == []


def test_near_duplicates_are_folded_into_the_best(tmp_path: Path) -> None:
    near = np.eye(DIM, dtype=np.float32)[[0, 0, 1, 0, 1]]
    near[1, 2], near[3, 3], near[4, 4] = 0.05, 0.06, 0.9
    rows = [Row(f"r{place}", {"text": vector[np.newaxis]}) for place, vector in enumerate(near)]
    dataset = build(tmp_path, rows, ["text"])
    vector = line(np.array([1, 0.5, 0, 0, 0, 0], np.float32))
    plain = searcher(dataset).search(Query.of(text=vector), "text")
    folded = searcher(dataset).search(Query.of(text=vector), "text", fold=True)
    assert [answer.id for answer in plain] == ["r0", "r1", "r3", "r2", "r4"]
    assert [(answer.id, answer.twins) for answer in folded] == [("r0", ("r1", "r3")), ("r2", ()), ("r4", ())]
    assert [answer.id for answer in searcher(dataset).search(Query.of(text=vector), "text", 2, fold=True)] == [
        "r0",
        "r2",
    ]
    segments = [Row("a", {"text": near[[0, 1, 1]]}), Row("b", {"text": near[[0, 2]]})]
    several = build(tmp_path / "several", segments, ["text"])
    (only, other) = searcher(several).search(Query.of(text=vector), "text", segments="all", fold=True)
    assert (only.id, only.twins, other.id) == ("a", ("b",), "b")


@settings(deadline=None, max_examples=15)
@given(year=st.integers(1898, 1914), k=st.integers(1, 30), to=st.sampled_from(["image", "any"]))
def test_a_filter_keeps_exactly_the_rows_that_it_names(
    year: int, k: int, to: str, dataset: Dataset, rows: list[Row]
) -> None:
    kept = {row.id for row in rows if row.metadata.get("year", 0) > year}
    vector = normalize_rows(np.random.default_rng(year).normal(size=(1, DIM)).astype(np.float32))[0]
    modalities = ["image", "text"] if to == "any" else [to]
    expected = [row[1:] for row in slow(dataset, vector, modalities) if row[2] in kept]
    found = searcher(dataset).search(text=line(vector), to=to, k=k, filter=f"year > {year}", segments="all")
    assert names(found) == expected[:k]


def test_a_filter_goes_with_folding_and_best_segments(dataset: Dataset, rows: list[Row]) -> None:
    found = searcher(dataset).search(id="r003", to="text", k=50, filter="year < 1906 and split = 'train'")
    assert {answer.id for answer in found} == {f"r00{place}" for place in (0, 1, 2, 4, 5)}
    assert len(found) == 5
    with pytest.raises(UsageError, match="columns are"):
        searcher(dataset).search(id="r003", filter="colour = 1")


def test_two_conditions_that_read_alike_are_two(dataset: Dataset) -> None:
    ids = [f"r{place:03d}" for place in range(13)]
    conditions = [pc.field("id").isin([*(["x"] * 30), id, *(["x"] * 30)]) for id in ids[:2]]
    assert str(conditions[0]) == str(conditions[1])
    shared = searcher(dataset)
    found = [shared.search(vector=np.ones(6, np.float32), filter=condition) for condition in conditions]
    assert {answer.id for answer in found[0]} == {"r000"} and {answer.id for answer in found[1]} == {"r001"}


def test_the_last_conditions_are_remembered(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = searcher(dataset)
    counted = Mock(wraps=filters.kept_by)
    monkeypatch.setattr(mmembed.search, "kept_by", counted)
    for _ in range(2):
        for year in range(32):
            shared.search(vector=np.ones(6, np.float32), to="image", filter=f"year > {1880 + year}")
    assert counted.call_count == 32


def test_weights_are_of_any_size(dataset: Dataset) -> None:
    query = Query.of(text="1 0 0 0 0 0") + 0.5 * Query.of(text="0 1 0 0 0 0")
    for weight in (1e-300, 1e300, 2):
        assert searcher(dataset).search(weight * query, k=20) == searcher(dataset).search(query, k=20)


def test_a_slow_filter_holds_nobody_else_up(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, begun, go_on = searcher(dataset), threading.Event(), threading.Event()
    real = filters.kept_by

    def slow_one(condition: Any, rows: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return real(condition, rows)

    monkeypatch.setattr(mmembed.search, "kept_by", slow_one)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shared.search, Query.of(text="1 0 0 0 0 0"), filter="year > 1900")
        assert begun.wait(60)
        assert shared.search(Query.of(text="1 0 0 0 0 0"), "text")
        assert not waiting.done()
        go_on.set()
        assert waiting.result()


def test_wrong_choices_are_refused(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="segments = 'some': must be best or all"):
        searcher(dataset).search(id="r003", segments="some")


@pytest.mark.parametrize("name", ["SQ8", "IVF"])
def test_a_compressed_index_gives_exact_scores(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_EXACT_ROWS", 0)
    real = kinds.tiers

    def only(rows: int, dim: int) -> list[list[kinds.Kind]]:
        return [[kind for kind in tier if kind.name.startswith(name)] for tier in real(rows, dim)]

    monkeypatch.setattr(kinds, "tiers", only)
    rows = [
        replace(row, metadata={"even": place % 2 == 0})
        for place, row in enumerate(random_rows(400, ["image", "text"], DIM))
    ]
    dataset = index(build(tmp_path, rows, unit=100), IndexConfig(recall=0.9, memory="42KB"))
    assert searcher(dataset).index("image").entry["kind"].startswith(name)
    hits = expected = 0
    for seed in range(20):
        vector = normalize_rows(np.random.default_rng(seed).normal(size=(1, DIM)).astype(np.float32))[0]
        truth = {row[1:]: row[0] for row in slow(dataset, vector, ["image"])}
        found = every(searcher(dataset), Query.of(vector=vector), "image", 10)
        np.testing.assert_allclose([answer.score for answer in found], [truth[row] for row in names(found)], rtol=1e-4)
        hits += len(set(names(found)) & set(list(truth)[:10]))
        expected += 10
        kept = [row for row in truth if int(row[1][1:]) % 2 == 0]
        filtered = searcher(dataset).search(vector=vector, to="image", filter="even", segments="all", k=5)
        assert all(row in kept for row in names(filtered)) and len(filtered) == 5
    assert hits / expected >= 0.9


def test_threads_may_ask_at_once(dataset: Dataset, rows: list[Row]) -> None:
    shared = searcher(dataset)
    queries = [Query.of(text=line(embedding_of(row, "image"))) for row in rows[:12]]
    alone = [searcher(dataset).search(query, filter="year > 1903") for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: shared.search(query, filter="year > 1903"), queries * 4)) == alone * 4


def test_media_are_those_of_the_input_and_nothing_else(tmp_path: Path) -> None:
    lines = [
        {"id": f"r{place}", "text": [f"{place} 1 0 0 0 0", "0 0 0 1 0 0"], "image": f"{place}.png"}
        for place in range(3)
    ]
    (tmp_path / "in").mkdir()
    manifest = tmp_path / "in/manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    for place in range(3):
        (tmp_path / f"in/{place}.png").write_bytes(b"picture %d" % place)
    (tmp_path / "in/secret.png").write_bytes(b"secret")
    rows = [Row(f"r{place}", {"text": np.eye(DIM, dtype=np.float32)[[place]]}) for place in range(4)]
    dataset = replace(build(tmp_path / "out", rows, ["text"], unit=2), input=str(manifest))
    asked = searcher(dataset)
    with asked.media("r1", "image").open() as file:
        assert file.read() == b"picture 1"
    assert asked.media("r1", "text", "0 0 0 1 0 0").content == "0 0 0 1 0 0"
    assert asked.media("r1", "text", "0 0 0").content == "0 0 0 1 0 0"  # a long text is known by its beginning
    assert asked.media("r1", "text").content == "1 1 0 0 0 0"
    assert asked.media("r2", "image", "../secret.png").path == "2.png"  # what is no medium of it is not opened
    for id, modality, message in [
        ("r1", "audio", "has no audio"),
        ("nobody", "image", "no embeddings of a record"),
        ("r3", "image", "no longer in .*manifest.jsonl: its media are needed"),
    ]:
        with pytest.raises(UsageError, match=message):
            asked.media(id, modality)


def test_a_unit_is_read_once_and_others_only_to_explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(json.dumps({"id": f"r{place}", "text": f"{place} 1"}) for place in range(20)))
    rows = [Row(f"r{place}", {"text": np.ones((1, DIM), np.float32)}) for place in range(20)]
    dataset = replace(build(tmp_path / "out", rows, ["text"], unit=2), input=str(manifest))
    asked = searcher(dataset)
    asked = replace(asked, config=replace(asked.config, extract=replace(asked.config.extract, unit_records=2)))
    read: list[int] = []
    reading = Source.read

    def counted(self: Source, unit: Unit) -> Any:
        read.append(unit.number)
        return reading(self, unit)

    monkeypatch.setattr(Source, "read", counted)
    with ThreadPoolExecutor(4) as pool:
        assert [media.content for media in pool.map(lambda id: asked.media(id, "text"), ["r2", "r3"] * 20)]
    assert set(read) == {1} and len(read) <= 4
    for place in range(20):
        assert asked.media(f"r{place}", "text").content == f"{place} 1"
    assert cast(Any, asked._records).cache_info().currsize == 4
    manifest.write_text("\n".join(json.dumps({"id": f"r{(place + 2) % 20}", "text": "moved"}) for place in range(20)))
    moved = replace(asked)
    read.clear()
    for _ in range(3):
        with pytest.raises(UsageError, match="no longer in"):
            moved.media("r0", "text", anywhere=False)
    assert read == [0]
    assert moved.record("r0").media["text"][0].content == moved.media("r0", "text").content == "moved"
    assert read == [0, *range(1, 10), *range(1, 10)]
