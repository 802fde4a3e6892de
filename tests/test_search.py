from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from dataset_builder import Row, build, input_space, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import mmembed.search
from mmembed.config import ExtractConfig
from mmembed.dataset import Dataset
from mmembed.encoders.input import Input
from mmembed.errors import DatasetError, DecodeError, SpaceError, UsageError
from mmembed.index import open_modality
from mmembed.linear import normalize_rows
from mmembed.search import Query, Searcher
from mmembed.tables import vectors_from_arrow
from mmembed.types import Media, Neighbour, Space, Span

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
    assert names(Searcher.open(dataset.root).search(Query.of(text="1 0 0 0 0 0"), k=1))
    assert seen == [ExtractConfig()]


def test_importing_what_answers_queries_is_light() -> None:
    code = "import sys, mmembed.search, mmembed.evaluate, mmembed.verify, mmembed.index; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"apache_beam", "faiss", "librosa", "torch", "scipy", "PIL", "soundfile"} & set(loaded)
