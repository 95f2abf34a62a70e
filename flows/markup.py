"""Pieces of HTML that our pages are put together from, in one style (flows/report.css); one file, nothing loaded.

Whoever calls these escapes what comes from outside with `text`; everything else is HTML already.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from flows.wording import public


def document(title: str, body: str, footer: str) -> str:
    """A whole page; title is plain text, body and footer are HTML."""
    style = Path(__file__).with_name("report.css").read_text()
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n<footer>{footer}</footer>\n</main>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Escaped for HTML, without the user:password@ of an address."""
    return escape(public(str(value)))


def section(title: str, body: str, note: str = "") -> str:
    reading = f'<p class="note"><b>How to read this.</b> {note}</p>' if note else ""
    return f"<section>\n<h2>{title}</h2>\n{body}\n{reading}\n</section>"


def table(columns: Sequence[tuple[str, str]], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Columns (heading, class) and rows (class, cells); cells are HTML already. Scrolls in a box of its own."""
    head = "".join(f'<th class="{kind}">{name}</th>' for name, kind in columns)
    lines = []
    for kind, cells in rows:
        data = "".join(f'<td class="{c}">{cell}</td>' for (_, c), cell in zip(columns, cells, strict=True))
        lines.append(f'<tr class="{kind}">{data}</tr>')
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def card(caption: str, small: str, content: str) -> str:
    return f"<figure><figcaption>{caption}<small>{small}</small></figcaption>{content}</figure>"


def image(content: bytes, alt: str) -> str:
    return f'<img alt="{text(alt)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def moving(summary: str, content: bytes | None, alt: str) -> str:
    """A film that the reader opens, so that nothing moves unasked."""
    return f"<details><summary>{text(summary)}</summary>{image(content, alt)}</details>" if content else ""


def cards(content: Sequence[str]) -> str:
    return f'<div class="cards">{"".join(content)}</div>'


def short_digest(value: object) -> str:
    """Twelve digits of a digest, the whole one as the tooltip."""
    return f'<code title="{text(value)}">{text(str(value)[:12])}</code>' if value else "–"
