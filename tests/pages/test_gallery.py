"""The page of a query and its answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import html_page
import pytest
from command import mmembed

from mmembed import cli
from mmembed.dataset import Dataset
from mmembed.errors import UsageError
from mmembed.pages import gallery as module
from mmembed.pages import parts
from mmembed.pages.gallery import gallery
from mmembed.search import Query, Searcher
from mmembed.types import Neighbour


@pytest.fixture(scope="module")
def searcher(small: Path) -> Searcher:
    return Searcher.open(small)


def test_pictures_sounds_and_texts_are_in_the_page(searcher: Searcher) -> None:
    query = Query.of(text="a red star")
    found = [hit for to in ("image", "text", "audio") for hit in searcher.search(query, to, 3)]
    markup = gallery(searcher, query, found)
    page = html_page.read(markup)
    assert [page.tags.count(tag) for tag in ("article", "img", "audio")] == [9, 3, 3]
    assert parts.GONE not in markup and len(markup) < 1 << 20
    for hit in found:
        assert hit.id in page.texts and f"{hit.score:.3f} {hit.modality}" in page.texts
    assert "a red star" in page.texts
    assert markup == gallery(searcher, query, found)


def test_words_that_add_to_the_score_are_marked(searcher: Searcher) -> None:
    query = Query.of(text="a large red star at the left")
    found = searcher.search(query, "text", 5)
    page = html_page.read(gallery(searcher, query, found))
    assert page.tags.count("mark") >= 5
    assert "Marked in texts" in page.text


def test_beyond_the_bound_the_words_of_the_query_are_marked(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENCODINGS", 0)
    query = Query.of(text="STAR, red")
    hits = [hit(searcher, media="a red star and a Star")]
    page = html_page.read(gallery(searcher, query, hits))
    assert page.tags.count("mark") == 3


def test_without_its_encoder_a_page_still_comes(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: object) -> None:
        raise UsageError("the model is gone")

    hits = [hit(searcher, media="red star")]
    monkeypatch.setattr(Searcher, "map_of", gone)
    page = html_page.read(gallery(searcher, Query.of(text="red"), hits))
    assert page.tags.count("mark") == 1


def hit(searcher: Searcher, **changes: object) -> Neighbour:
    (found,) = searcher.search(Query.of(text="a red star"), "text", 1)
    return replace(found, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("hostile", html_page.HOSTILE)
def test_hostile_answers_and_queries_stay_text(
    searcher: Searcher, hostile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENCODINGS", 0)  # words of the query are marked then, whatever they add

    def page(text: str) -> html_page.Page:
        hits = [
            hit(searcher, id=text, media=text, metadata={text: text, "b": {text: [text]}}, twins=(text,) * 7),
            hit(searcher, id=text, media=text, modality="image", span=(0, 0, 1, 1)),
        ]
        return html_page.read(gallery(searcher, Query.of(text=text), hits))

    tags, plain = page(f"star {hostile}").tags, page("star plain").tags
    assert [tag for tag in tags if tag != "mark"] == [tag for tag in plain if tag != "mark"]


def test_media_that_are_gone_are_said_in_their_place(small: Path, tmp_path: Path) -> None:
    searcher = Searcher.open(small)
    query = Query.of(text="a red star")
    found = searcher.search(query, k=9)
    moved = replace(searcher, dataset=replace(searcher.dataset, input=str(tmp_path / "nowhere.jsonl")))
    markup = gallery(moved, query, found)
    html_page.read(markup)
    assert markup.count(parts.GONE) == sum(hit.modality != "text" for hit in found) > 0


def test_near_duplicates_are_named(searcher: Searcher) -> None:
    page = html_page.read(gallery(searcher, Query.of(text="a"), [hit(searcher, twins=tuple("abcdefg"))]))
    assert {"a", "e", " and 2 more"} <= set(page.texts) and "f" not in page.texts


def test_of_many_answers_the_last_are_a_table(searcher: Searcher) -> None:
    hits = [hit(searcher, rank=rank, id=f"r{rank}") for rank in range(1, 101)]
    page = html_page.read(gallery(searcher, Query.of(text="a"), hits))
    assert page.tags.count("article") == module.SHOWN
    assert {"r60", "r100"} <= set(page.texts)


def test_nothing_found_is_a_page(searcher: Searcher) -> None:
    assert "Nothing found" in html_page.read(gallery(searcher, Query.of(text="a"), [])).text


def test_a_query_by_record_or_file_is_shown(searcher: Searcher) -> None:
    input = Path(Dataset.open(searcher.dataset.folder).input)
    file = min((input.parent / "images").iterdir())
    page = html_page.read(gallery(searcher, Query.of(image=file), []))
    assert page.tags.count("img") == 1 and file.name in page.text and str(file.parent) not in page.text
    assert "scene-000002" in html_page.read(gallery(searcher, Query.of(id="scene-000002"), [])).texts


def test_all_that_was_asked_with_is_shown_with_its_weight(searcher: Searcher) -> None:
    vector = searcher.embed(Query.of(text="a red star")).vector
    query = Query.of(text="<b>red", id="scene-000002") - 0.5 * Query.of(vector=vector)
    page = html_page.read(gallery(searcher, query, searcher.search(query, "text", 2)))
    assert {"<b>red", "scene-000002", "not wanted, weight -0.5:", f"A vector of {len(vector)} values."} <= set(
        page.texts
    )


def test_the_command_line_writes_it_beside_the_table(small: Path, tmp_path: Path) -> None:
    result = mmembed(
        "query", small, "--text", "a red star", "--to", "image", "--html", tmp_path / "a.html", "--preview"
    )
    page = html_page.read((tmp_path / "a.html").read_text("utf-8"))
    assert page.tags.count("img") == 10
    header, *lines = result.stdout.splitlines()
    assert header.startswith("rank") and len(lines) == 10  # and no picture: this is no terminal
    assert "COLORTERM" in result.stderr
    assert all(Path(line.split()[-1]).is_file() for line in lines)


@pytest.mark.parametrize(("to", "is_shown"), [("image", True), ("text", False)])
def test_a_terminal_that_can_shows_pictures(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], to: str, is_shown: bool
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert cli.main(["query", str(small), "--text", "a red star", "--to", to, "-k", "2", "--preview"]) == 0
    printed = capsys.readouterr()
    assert ("▀" in printed.out, "no preview: none" in printed.err) == (is_shown, not is_shown)
    assert not printed.out.endswith("\n\n")
