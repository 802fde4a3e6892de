"""The page in a real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command import wait_for

from mmembed.search import Searcher
from mmembed.serve.settings import Settings

CHROMIUM = shutil.which("chromium") or ""
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Debian's chromium: apt-get install chromium")

FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page of its own, wide; what the browser complains of fails the test."""
    with complaining(browser.new_context(viewport={"width": 1280, "height": 900}, base_url=address)) as page:
        yield page


@contextmanager
def complaining(context: Any, but: str = "$^") -> Iterator[Any]:
    """A page of a browser's context; its errors, and requests to other machines, fail the test."""
    wrong: list[str] = []
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.extend([line.text] if line.type in ("error", "warning") else []))
    page.on(
        "request", lambda r: wrong.extend([] if re.match(r"(http://127\.0\.0\.1:|blob:|data:)", r.url) else [r.url])
    )
    yield page
    context.close()
    assert not [line for line in wrong if not re.search(but, line)]


def until(page: Any, script: str, *given: Any) -> None:
    """Until a script says so. (playwright's own way evaluates it on the page, whose policy forbids that.)"""
    wait_for(lambda: bool(page.evaluate(script, *given)), 20, script)


def settled(page: Any) -> None:
    """Until an answer is there."""
    page.wait_for_selector("#results:not(.busy) .card")
    until(page, "document.querySelector('#status').textContent.includes('answer')")


def ask(page: Any, text: str) -> None:
    page.goto("/")
    page.wait_for_selector(".starts button")
    page.fill("#text", text)
    page.press("#text", "Enter")
    settled(page)


def focused(page: Any) -> Any:
    """Of the card that has the focus, its place among all; None where none has it."""
    return page.evaluate("(() => { const i = [...document.querySelectorAll('.card')].indexOf(document.activeElement);"
                         "return i < 0 ? null : i; })()")  # fmt: skip


def test_a_text_finds_all_modalities(page: Any, searcher: Searcher) -> None:
    ask(page, "three red stars")
    assert page.locator("section h2").all_inner_texts() == ["Pictures\n12", "Texts\n12", "Sounds\n12"]
    first = searcher.search(text="three red stars", to="image", k=1)[0]
    card = page.locator(".card.image").first
    assert first.id in card.inner_text() and f"{first.score:.3f}" in card.inner_text()
    until(page, "document.querySelector('.card.image img').naturalWidth > 0")
    until(page, "document.querySelector('.card.audio audio').duration > 0")
    assert page.title().startswith("three red stars")


def test_a_target_can_be_chosen_and_the_address_says_what_was_asked(page: Any) -> None:
    ask(page, "blue circle")
    page.get_by_text("Texts", exact=True).first.click()
    until(page, "document.querySelectorAll('section').length === 1")
    assert page.url.endswith("/?text=blue+circle&to=text")
    address = page.url
    page.fill("#text", "green square")
    page.press("#text", "Enter")
    page.wait_for_url("**/?text=green+square&to=text")
    page.go_back()
    until(page, "document.querySelector('#text').value === 'blue circle'")
    assert page.url == address
    page.goto(address)
    settled(page)
    assert page.input_value("#text") == "blue circle" and page.locator("section").count() == 1


def test_keys_lead_through_the_results(page: Any, searcher: Searcher) -> None:
    ask(page, "blue circle")
    page.press("#text", "ArrowDown")
    assert focused(page) == 0
    page.keyboard.press("ArrowRight")
    assert focused(page) == 1
    page.keyboard.press("ArrowDown")
    below = focused(page)
    assert below > 2
    page.keyboard.press("ArrowUp")
    assert focused(page) == 1
    page.keyboard.press("w")
    page.wait_for_selector("#why .picture i")
    page.keyboard.press("Escape")
    assert page.locator("#why").is_hidden() and focused(page) == 1
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("ArrowDown")
    id = page.evaluate("document.activeElement.hit.id")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/?id={id}")
    settled(page)
    assert f"like {id}" in page.inner_text("#chips")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()


def test_an_explanation_shows_what_each_part_adds(page: Any) -> None:
    ask(page, "three small red stars")
    page.locator(".card.image").first.get_by_text("Why?").click()
    page.wait_for_selector("#why .picture i")
    assert page.locator("#why .shaded span").all_inner_texts() == ["three", "small", "red", "stars"]
    assert page.locator("#why .picture i").count() == 64
    assert page.locator("#why .picture img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    page.locator("#why-close").click()
    page.locator(".card.audio").first.get_by_text("Why?").click()
    page.wait_for_selector("#why .over i")


def test_a_picture_is_dropped_and_combined_with_words(page: Any, picture: Path, searcher: Searcher) -> None:
    page.goto("/")
    page.wait_for_selector(".starts button")
    page.set_input_files("#file", picture)
    settled(page)
    until(page, "document.querySelector('.chip img').naturalWidth > 0")
    alone = page.locator(".card.image .id").all_inner_texts()
    assert alone == [hit.id for hit in searcher.search(image=picture, to="image", k=12, fold=True)]
    page.fill("#text", "blue")
    page.press("#text", "Enter")
    until(
        page,
        "ids => [...document.querySelectorAll('.card.image .id')].map(e => e.textContent).join() != ids",
        ",".join(alone),
    )
    page.click("#more-button")
    assert page.locator("#weights input").count() == 2
    page.go_back()  # the picture comes back, though no address holds it
    until(page, "document.querySelector('#text').value === ''")
    settled(page)
    assert page.locator(".card.image .id").all_inner_texts() == alone
    page.click(".chip button")
    page.wait_for_selector(".starts button")


def test_a_picture_is_pasted(page: Any) -> None:
    page.goto("/")
    page.wait_for_selector(".starts button")
    page.evaluate(
        """async () => {
          const canvas = document.createElement('canvas');
          const blob = await new Promise((done) => canvas.toBlob(done));
          const held = new DataTransfer();
          held.items.add(new File([blob], 'a.png', { type: 'image/png' }));
          dispatchEvent(new ClipboardEvent('paste', { clipboardData: held }));
        }"""
    )
    settled(page)
    assert page.locator(".chip img").count() == 1


def test_a_sound_is_recorded(page: Any, browser: Any) -> None:
    page.goto("/")
    page.wait_for_selector(".starts button")
    page.click("#record")
    until(page, "parseFloat(document.querySelector('#clock').textContent) > 1.5")  # the browser beeps once a second
    page.click("#stop")
    settled(page)
    assert page.locator(".chip audio").count() == 1 and page.locator("#recording").is_hidden()
    until(page, "document.querySelector('.chip audio').duration > 1")


def test_a_sound_that_the_server_does_not_read_is_read_by_the_browser(page: Any) -> None:
    page.goto("/")
    page.wait_for_selector(".starts button")
    page.evaluate(
        """async () => {
          const context = new AudioContext();
          const tone = context.createOscillator();
          const target = context.createMediaStreamDestination();
          tone.connect(target);
          tone.start();
          const recorder = new MediaRecorder(target.stream);
          const parts = [];
          recorder.ondataavailable = ({ data }) => parts.push(data);
          recorder.start();
          await new Promise((done) => setTimeout(done, 700));
          await new Promise((done) => { recorder.onstop = done; recorder.stop(); });
          const held = new DataTransfer();
          held.items.add(new File(parts, 'a.webm', { type: 'audio/webm' }));
          dispatchEvent(new DragEvent('drop', { dataTransfer: held }));
        }"""
    )
    settled(page)
    assert page.locator(".chip audio").count() == 1


def test_what_is_wrong_is_said_on_the_page(browser: Any, address: str, tmp_path: Path) -> None:
    with complaining(browser.new_context(base_url=address), "status of 400") as page:
        page.goto("/?text=a&filter=nokey+%3D+1")
        page.wait_for_selector("#status.bad")
        assert "nokey" in page.inner_text("#status")
        (tmp_path / "a.png").write_bytes(b"no picture")
        page.fill("#filter", "")
        page.set_input_files("#file", tmp_path / "a.png")
        until(page, "document.querySelector('#status').textContent.includes('none of JPEG')")


def test_a_chunk_is_marked_in_its_text(page: Any, records: dict[str, Any]) -> None:
    def chunked(route: Any) -> None:
        route.fulfill(json={**route.fetch().json(), "chunked": True})

    def pieces(route: Any) -> None:
        answer = route.fetch().json()
        for hit in answer["hits"]:
            hit.update(span=[2, 9])
        route.fulfill(json=answer)

    page.route("**/api/info", chunked)
    page.route("**/api/search*to=text*", pieces)
    ask(page, "star")
    page.wait_for_selector(".card.text mark")
    card = page.locator(".card.text").first
    text = records[card.locator(".id").inner_text()]["text"]
    assert card.locator("mark").text_content() == text[2:9]
    assert card.locator(".words").text_content() == text


def test_filters_are_hinted_at(page: Any) -> None:
    ask(page, "star")
    page.click("#more-button")
    page.locator("#hints").get_by_text("color", exact=True).click()
    page.locator("#hints").get_by_text("blue", exact=True).click()
    page.wait_for_url("**filter=color*")
    settled(page)
    assert page.input_value("#filter") == "color = 'blue'"
    until(
        page, "[...document.querySelectorAll('.card.image .tags li:first-child')].every(e => e.textContent === 'blue')"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1600])
def test_nothing_is_wider_than_the_screen(browser: Any, address: str, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, base_url=address)
    with complaining(context) as page:
        ask(page, "three small red stars")
        page.click("#more-button")
        wide = page.evaluate(
            "[...document.querySelectorAll('body *')].filter(e => e.offsetParent && !e.closest('.hidden, .skip') &&"
            " e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
        )
        assert not wide
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 200) == (scheme == "dark")
        page.locator(".card.image").first.get_by_text("Why?").click()
        page.wait_for_selector("#why .picture i")
        if folder := os.environ.get("MMEMBED_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/{width}-{scheme}.png")


def test_all_that_can_be_pressed_has_a_name(page: Any) -> None:
    ask(page, "star")
    page.click("#more-button")
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, a, input, select, audio, img')].filter(e => e.offsetParent && !("
        "e.ariaLabel || e.textContent.trim() || e.title || e.labels?.length || e.alt !== undefined))"
        ".map(e => e.outerHTML)"
    )
    assert not nameless


def test_what_the_data_hold_is_never_run(page: Any, address: str) -> None:
    evil = "<img src=x onerror=alert(1)>"

    def with_evil(route: Any) -> None:
        answer = route.fetch().json()
        for hit in answer["hits"]:
            hit.update(id=evil, media=evil, metadata={evil: evil}, twins=[evil])
        route.fulfill(json=answer)

    page.on("dialog", lambda dialog: pytest.fail("a script of the data ran"))
    page.route("**/api/search*", with_evil)
    ask(page, evil)
    assert evil in page.locator(".card.text").first.inner_text()
    assert page.locator(".card img[src=x]").count() == 0


def test_the_token_of_the_address_is_kept_and_hidden(browser: Any, listen: Any) -> None:
    with listen(Settings(token="s3cret/+=")) as address:
        with complaining(browser.new_context(base_url=address)) as page:
            page.goto("/?token=s3cret%2F%2B%3D&text=star")
            settled(page)
            assert page.url == f"{address}/?text=star"
            until(page, "document.querySelector('.card.image img').naturalWidth > 0")
            assert page.evaluate("document.cookie") == ""
            page.reload()
            settled(page)


def test_the_description_of_the_api_works_without_a_network(page: Any) -> None:
    page.goto("/docs")
    page.wait_for_selector(".opblock")
    page.locator(".opblock", has_text="/api/info").first.click()
    page.get_by_text("Try it out").first.click()
    page.get_by_text("Execute").first.click()
    page.wait_for_selector(".responses-table.live-responses-table")
