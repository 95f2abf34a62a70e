"""What is nearest, as HTML: the page that `strata search --serve` answers with, and the one that `--out` writes.

Cards of pictures or a table of documents, each with its distance; what stands in a form is what was asked. What is NOT
here: who asks, how answers come about (flows/searching.py, flows/search_server.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from conf.errors import show
from flows.items import Item
from flows.markup import cards, document, section, table, text

Picture = Callable[[Item], str]  # HTML of an item's picture; "" where there is none
Link = Callable[[Item], str]  # where an item leads to: what is nearest to it; "" for nowhere


@dataclass(frozen=True)
class Nearest:
    """One answer: what was looked for, and what was found, nearest first. within: how many, of a radius."""

    asked: str
    item: Item | None
    found: Sequence[tuple[int, Item]]
    within: int | None

    def headline(self) -> str:
        """How many, and of how many it can be said that they are of the asked item's class."""
        how_many = f"{len(self.found):,} nearest" if self.within is None else f"{self.within:,} within the radius"
        if self.within is not None and self.within > len(self.found):
            how_many += f", {len(self.found):,} of them here"
        if self.item is None or not self.item.label or not self.found:
            return how_many
        same = sum(item.label == self.item.label for _, item in self.found)
        return f"{how_many}; {same:,} of {len(self.found):,} of its class, {self.item.label}"


def searched(about: Mapping[str, Any]) -> str:
    """What is searched, in words."""
    codes = f"{about['num_codes']:,} codes of {about['num_bits']} bits"
    if about["kind"] == "flat":
        return f"{codes}, each compared"
    if about["kind"] == "tables":
        return f"{codes}, looked up in {about['tables']:,} tables"
    share = f"{about['probed']:,} of {about['centers']:,} buckets"
    return f"{codes}, in buckets: {share} are looked into, which found {about['recall']:.1%} of the ten nearest"


def quoted(words: str) -> str:
    """A text that was looked for, as one line."""
    return f"“{show(' '.join(words.split()), 80)}”"


def page(about: Mapping[str, Any], body: str, home: str = "") -> str:
    """home: where the title leads to."""
    title = f'<a href="{home}">Nearest by code</a>' if home else "Nearest by code"
    return document(
        "Nearest by code · strata search",
        f'<header>\n<h1>{title}</h1>\n<p class="about">{text(searched(about))}</p>\n</header>\n{body}',
        "A distance is the number of bits in which two codes differ. Drawn by strata.",
    )


def nowhere(item: Item) -> str:
    return ""


def answers(found: Sequence[Nearest], picture: Picture, link: Link = nowhere) -> str:
    """A section for each answer."""
    return "\n".join(_answer(each, picture, link) for each in found)


def _answer(nearest: Nearest, picture: Picture, link: Link) -> str:
    title = f"Nearest to {text(nearest.asked)}"
    asked = ""
    if nearest.item is not None and picture(nearest.item):
        asked = f'<div class="asked">{_card(nearest.item, "asked for", picture, nowhere)}</div>'
    elif nearest.item is not None:
        said = " · ".join(filter(None, (nearest.item.label, nearest.item.key, nearest.item.title)))
        asked = f'<p class="about">{text(said)}</p>'
    count = f"<p>{text(nearest.headline())}.</p>"
    return section(title, asked + count + _listed(nearest.found, picture, link))


def _listed(found: Sequence[tuple[int, Item]], picture: Picture, link: Link) -> str:
    if not found:
        return "<p>Nothing so near.</p>"
    if picture(found[0][1]):
        shown = [_card(item, f"{distance} bit{'s' * (distance != 1)}", picture, link) for distance, item in found]
        return f'<div class="near">{cards(shown)}</div>'
    columns = [("rank", "number"), ("bits apart", "number"), ("item", "tight"), ("class", ""), ("key", ""),
               ("title or words", "text")]  # fmt: skip
    rows = [
        ("", [str(rank), str(distance), _linked(item, text(item.place or item.number), link), text(item.label),
              f"<code>{text(item.key)}</code>", _linked(item, text(item.title), link)])
        for rank, (distance, item) in enumerate(found, start=1)
    ]  # fmt: skip
    return table(columns, rows)


def _card(item: Item, said: str, picture: Picture, link: Link) -> str:
    label = f"<b>{text(item.label)}</b> " if item.label else ""
    caption = f"<figcaption>{label}{text(said)}<small>{text(item.place)}</small></figcaption>"
    return f'<figure title="{text(item.key)}">{_linked(item, picture(item) + caption, link)}</figure>'


def _linked(item: Item, content: str, link: Link) -> str:
    return f'<a href="{text(where)}">{content}</a>' if (where := link(item)) else content


# --- only of the page that is served ---------------------------------------------------------------------------------


def form(given: Mapping[str, str], *, documents: bool) -> str:
    """Where a person types. given: what was asked, as it stood there."""

    def field(name: str, label: str, hint: str, more: str = "") -> str:
        value = text(given.get(name, ""))
        return f'<label>{label} <input name="{name}" value="{value}" placeholder="{hint}" {more}></label>'

    numbers = field("k", "how many", "10", 'inputmode="numeric" size="4"')
    numbers += field("radius", "at most so many bits apart", "any", 'inputmode="numeric" size="4"')
    words = ""
    if documents:
        typed = text(given.get("text", ""))
        words = (
            '<form action="/" method="get"><label>A document, or some words of one'
            f'<textarea name="text" rows="4" maxlength="15000" placeholder="orbit shuttle launch">{typed}</textarea>'
            f"</label>{numbers}<button>Find the nearest</button></form>"
        )
    item = field("item", "An item", "17 or test/17", 'size="14"')
    return f'{words}<form action="/" method="get">{item}{numbers}<button>Find the nearest</button></form>'


def links(given: Mapping[str, str]) -> Link:
    """To the same question about another item."""
    kept = {name: given[name] for name in ("k", "radius") if given.get(name)}
    return lambda item: "/?" + urlencode({"item": item.place or item.number} | kept, safe="/")


def picks(items: Sequence[Item], picture: Picture) -> str:
    """Some items to begin with."""
    link = links({})
    if items and picture(items[0]):
        shown = cards([_card(item, "", picture, link) for item in items])
        return section("Or pick one", f'<div class="near">{shown}</div>')
    columns = [("item", "tight"), ("class", ""), ("key", ""), ("title or words", "text")]
    rows = [
        (
            "",
            [
                _linked(item, text(item.place), link),
                text(item.label),
                f"<code>{text(item.key)}</code>",
                _linked(item, text(item.title), link),
            ],
        )
        for item in items
    ]
    return section("Or pick one", table(columns, rows))
