"""Reads a page as a browser does and holds it to what a page of ours promises."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "]]></title></style></svg><b>",
    "<!-- ",
    "&lt;b&gt; &amp",
    "a\x00b\x1b[31mc\x85\x9f",
    "\ud800half a pair\udfff",
    "\u202eright to left\u2066 \u05d0\u05d1",
    "\ufffe\uffff",
    "javascript:alert(1) https://example.org/x.png",
]
"""What may stand in data, and must not become markup."""

_VOID = {"meta", "img", "br"}


@dataclass
class Page:
    """What is in a page.

    Attributes:
        tags: of all elements, in order.
        attributes: (tag, name, value) of all.
        texts: between tags, in order.
    """

    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def values(self, tag: str, name: str) -> list[str]:
        return [value for of, key, value in self.attributes if (of, key) == (tag, name)]


class _Walk(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page, self.open = Page(), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.append(tag)
        self.page.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element, at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.page.texts.append(data)


def read(markup: str) -> Page:
    """A page, or a part of one: well-formed, without scripts, forms or anything that is loaded from elsewhere."""
    walk = _Walk()
    walk.feed(markup)
    walk.close()
    assert not walk.open, f"never closed: {walk.open}"
    page = walk.page
    assert not {"script", "iframe", "object", "embed", "form", "link", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("srcset", "xlink:href", "action"), (tag, name)
        if name in ("src", "href"):
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
        if name == "style":
            assert "url(" not in value
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", markup)
    markup.encode()
    return page
