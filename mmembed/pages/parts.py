"""What pages are made of: text that can't become markup, the shell around a page, tables, marked words.

All that comes from data goes through `escape` (or `text_block`, which does); what these functions give is markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Mapping, Sequence

TEXT_SHOWN = 600
"""Characters of a text that a page shows, at most."""

LABEL_SHOWN = 120
"""Characters of a label (an id, a path, what a tooltip says), at most."""

POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
"""Of a page: whatever got into it loads nothing, runs nothing, and sends nothing."""

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BLANKS = re.compile(r"[\t\n\r]+")
_NO_CHARACTER = re.compile("[\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_WORD = re.compile(r"\w+")

_STYLE = """
:root{color-scheme:light dark;--paper:#fcfcfb;--card:#fff;--ink:#1a1a19;--soft:#5f5e5a;--line:#dddcd6;--grid:#ebeae5;
--c0:#2a6fb5;--c1:#c2560a;--c2:#10865f;--c3:#8a4fa8;--c4:#b03060;--c5:#7d6608;--mark:#ffd75e;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--paper:#161615;--card:#1f1f1d;--ink:#ecebe6;--soft:#a5a49d;--line:#3a3a37;
--grid:#2b2b29;--c0:#6db0f2;--c1:#f0924c;--c2:#4cc79b;--c3:#c597e0;--c4:#f080a8;--c5:#d4bd50;--mark:#80620f;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 64px}
h1{font-size:26px;line-height:1.25;margin:0 0 10px;overflow-wrap:anywhere}
h2{font-size:19px;margin:40px 0 10px;padding-top:14px;border-top:1px solid var(--line)}
h3{font-size:15px;margin:18px 0 6px}
p{margin:6px 0;max-width:76ch;overflow-wrap:anywhere}
.soft,figcaption,th{color:var(--soft)}
.small,figcaption{font-size:13px}
a{color:var(--c0)}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:12px 0}
.scroll{overflow-x:auto;margin:8px 0}
table{border-collapse:collapse;font-size:14px}
th,td{padding:5px 14px 5px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
th{font-weight:500;white-space:nowrap;border-bottom-color:var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td bdi{overflow-wrap:anywhere}td:has(bdi){min-width:14em}
.tiles{display:flex;flex-wrap:wrap;gap:10px 34px;margin:16px 0}
.tiles b{display:block;font-size:24px;font-weight:600;line-height:1.2}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,280px),1fr));gap:16px;margin:14px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;min-width:0}
.card h3{margin:0 0 8px;display:flex;gap:8px;justify-content:space-between;align-items:baseline}
.card h3 bdi{overflow-wrap:anywhere;min-width:0}
.tag{font-size:12px;font-weight:500;color:var(--soft);border:1px solid var(--line);border-radius:10px;padding:0 8px;
white-space:nowrap}
figure{margin:8px 0}
.pic{position:relative;display:inline-block;max-width:100%;line-height:0}
.pic img{max-width:100%;height:auto;border-radius:4px;outline:1px solid var(--grid)}
.pic span{position:absolute;border:2px solid var(--c1);box-shadow:0 0 0 1px #fff8}
.pic:has(span+span) span{border-width:1px;box-shadow:none}
audio{width:100%;height:36px;display:block;margin:4px 0}
.text{display:block;white-space:pre-wrap;overflow-wrap:anywhere;margin:6px 0;padding:6px 10px;background:var(--paper);
border-left:3px solid var(--line)}
mark{background:var(--mark);color:inherit;border-radius:3px;padding:0 1px}
.gone{color:var(--bad);font-size:13px;overflow-wrap:anywhere}
.charts{display:flex;flex-wrap:wrap;gap:12px 28px;align-items:flex-start}
.charts figure{flex:1 1 320px;min-width:0}
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--soft)}
svg .grid{stroke:var(--grid)}svg .axis{stroke:var(--line)}svg .guide{stroke:var(--soft);stroke-dasharray:5 4}
svg.interval{width:100px;margin:1px 0 1px auto}svg .chance{stroke:var(--soft)}
svg .line{fill:none;stroke-width:2}svg .here{fill:none;stroke:var(--ink);stroke-width:2}
.s0{fill:var(--c0);stroke:var(--c0)}.s1{fill:var(--c1);stroke:var(--c1)}.s2{fill:var(--c2);stroke:var(--c2)}
.s3{fill:var(--c3);stroke:var(--c3)}.s4{fill:var(--c4);stroke:var(--c4)}.s5{fill:var(--c5);stroke:var(--c5)}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;font-size:13px;color:var(--soft);margin:4px 0}
.legend svg{display:inline-block;width:14px;height:14px;vertical-align:-2px;margin-right:4px}
dl{display:grid;grid-template-columns:auto minmax(0,1fr);gap:0 12px;margin:8px 0 0;font-size:13px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media(max-width:560px){main{padding:18px 12px 48px}h1{font-size:21px}th,td{padding-right:10px}}
@media print{.card{break-inside:avoid}}
""".strip()


def clean(text: str) -> str:
    """A text of characters that HTML may hold and UTF-8 can write: control characters become their pictures (U+2400
    and on), halves of surrogate pairs and what is no character U+FFFD."""
    shown = _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])) if ord(found[0]) < 32 else "\ufffd", text)
    return _NO_CHARACTER.sub("\ufffd", shown)


def shorten(text: str, most: int) -> str:
    """A text of at most so many characters; of a longer one the beginning and an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def escape(value: object) -> str:
    """A value as text between tags or in a quoted attribute, whatever is in it."""
    return html.escape(clean(str(value)))


def label(value: object, most: int = LABEL_SHOWN) -> str:
    """A value as one short line of text, for an attribute too. Marks of direction are left out: where nothing isolates
    them, they would turn round what stands behind them."""
    line = _BLANKS.sub(" ", _DIRECTION.sub("", str(value)))
    return escape(shorten(line, most))


def isolated(value: object, most: int = LABEL_SHOWN) -> str:
    """A value as a short line in its own direction, which stays within it."""
    return f'<bdi dir="auto">{label(value, most)}</bdi>'


def text_block(text: str, weights: Mapping[str, float] | None = None, most: int = TEXT_SHOWN) -> str:
    """A text as a block in its own direction, with some of its words marked.

    Args:
        weights: by word in lower case, how strongly it is marked: above 0, to 1.
    """
    shown = shorten(text, most)
    return f'<bdi class="text" dir="auto">{_marked(shown, weights or {})}</bdi>'


def _marked(text: str, weights: Mapping[str, float]) -> str:
    pieces, end = [], 0
    for word in _WORD.finditer(text):
        if weight := weights.get(word[0].casefold(), 0.0):
            strength = round(20 + 80 * min(max(weight, 0.0), 1.0))
            style = f"background:color-mix(in srgb,var(--mark) {strength}%,transparent)"
            pieces += [escape(text[end : word.start()]), f'<mark style="{style}">{escape(word[0])}</mark>']
            end = word.end()
    return "".join([*pieces, escape(text[end:])])


def words(text: str) -> list[str]:
    """The words of a text as marks know them: runs of letters and digits, in lower case."""
    return [word.casefold() for word in _WORD.findall(text)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """A table; it scrolls by itself where it is wider than the page.

    Args:
        header: plain text.
        rows: of cells that are markup.
        numbers: columns to be set right-aligned.
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="n">{cell}</{tag}>' if place in numbers else f"<{tag}>{cell}</{tag}>"
            for place, cell in enumerate(cells)
        )

    head = line("th", [escape(name) for name in header])
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(values: Mapping[str, object], most: int) -> str:
    """The first so many keys and values as a list of definitions; "" for none."""
    shown = [f"<dt>{isolated(key, 40)}</dt><dd>{isolated(value)}</dd>" for key, value in list(values.items())[:most]]
    more = f'<dt class="soft">…</dt><dd class="soft">{len(values) - most:,} more</dd>' if len(values) > most else ""
    return f"<dl>{''.join(shown)}{more}</dl>" if shown else ""


def card(head: str, tag: str, body: str) -> str:
    """A box with a line at its head.

    Args:
        head: markup.
        tag: plain text at the right of it, "" for none.
        body: markup.
    """
    badge = f'<span class="tag">{escape(tag)}</span>' if tag else ""
    return f'<article class="card"><h3>{head}{badge}</h3>{body}</article>'


GONE = '<p class="gone">'
"""How `gone` begins. No text of data can hold it."""


def gone(what: str) -> str:
    """In the place of a medium that can't be shown."""
    return f"{GONE}{label(what, 240)}</p>"


def page(title: str, body: str) -> str:
    """A whole page.

    Args:
        title: plain text.
        body: markup.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{label(title)}</title><style>\n{_STYLE}\n</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def sections(parts: Sequence[tuple[str, str]]) -> str:
    """Sections with their headings, and links to them before them; those without a body are left out.

    Args:
        parts: heading in plain text, and body as markup.
    """
    there = [(f"s{number}", head, body) for number, (head, body) in enumerate(parts) if body]
    links = "".join(f'<a href="#{name}">{escape(head)}</a>' for name, head, _ in there)
    return f"<nav>{links}</nav>\n" + "\n".join(
        f'<section><h2 id="{name}">{escape(head)}</h2>\n{body}\n</section>' for name, head, body in there
    )
