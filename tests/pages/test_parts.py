"""Text that can't become markup."""

from __future__ import annotations

import html_page
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmembed.pages import parts


def whole(text: str) -> str:
    """A page in which a text stands wherever one may."""
    body = [
        parts.escape(text),
        parts.label(text),
        parts.isolated(text),
        parts.text_block(text, dict.fromkeys(parts.words(text), 0.5)),
        parts.table(["a", text], [[parts.escape(text), parts.isolated(text)]], [0]),
        parts.facts({text: text, f"{text} again": [text]}, 1),
        parts.card(parts.isolated(text), text, parts.gone(text)),
        f'<img alt="{parts.label(text)}" src="data:,">',
        parts.sections([(text, "<p></p>"), ("empty", "")]),
    ]
    return parts.page(text, "".join(body))


PLAIN = html_page.read(whole("plain"))


@pytest.mark.parametrize("text", html_page.HOSTILE)
def test_what_looks_like_markup_stays_text(text: str) -> None:
    page = html_page.read(whole(text))
    assert [tag for tag in page.tags if tag != "mark"] == [tag for tag in PLAIN.tags if tag != "mark"]
    assert parts.clean(text).split()[0] in page.text


@given(st.text(st.characters(codec=None), min_size=1))
def test_any_text_makes_a_well_formed_page(text: str) -> None:
    page = html_page.read(whole(text))
    assert [tag for tag in page.tags if tag != "mark"] == [tag for tag in PLAIN.tags if tag != "mark"]


def test_control_characters_become_visible_and_blanks_stay() -> None:
    assert parts.clean("a\x00b\x1bc\td\ne\ud800") == "a\u2400b\u241bc\td\ne\ufffd"


def test_an_attribute_has_no_marks_of_direction_and_one_line() -> None:
    assert parts.label("a\u202eb\u2066c\nd") == "abc d"


def test_long_texts_are_cut() -> None:
    assert len(parts.label("x" * 1000)) == parts.LABEL_SHOWN
    assert html_page.read(parts.text_block("x" * 10_000)).text == "x" * (parts.TEXT_SHOWN - 1) + "…"


def test_words_are_marked_by_strength_whatever_their_case() -> None:
    page = html_page.read(parts.text_block("Red stars, RED: <star>", {"red": 1.0, "star": 0.0, "stars": 0.5}))
    assert page.tags == ["bdi", "mark", "mark", "mark"]
    assert [style.split(")")[1].split(",")[0] for style in page.values("mark", "style")] == [" 100%", " 60%", " 100%"]
    assert "".join(page.texts) == "Red stars, RED: <star>"


def test_a_page_loads_and_runs_nothing() -> None:
    (policy,) = (value for value in PLAIN.values("meta", "content") if "default-src" in value)
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy and "script" not in policy
    assert "url(" not in whole("plain") and "@import" not in whole("plain")


def test_sections_without_a_body_are_left_out() -> None:
    page = html_page.read(parts.sections([("One", "<p>1</p>"), ("Two", ""), ("Three", "<p>3</p>")]))
    assert page.values("a", "href") == [f"#{name}" for name in page.values("h2", "id")]
    assert "Two" not in page.text
