"""HTML and SVG as text: whatever is not markup of our own is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

# Elements without content.
_EMPTY = frozenset({"meta", "link", "rect", "line", "circle", "path"})
# Characters that neither HTML nor XML may hold, and those that turn the text around them about.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")


class Markup(str):
    """Text that is markup already; any other text is escaped where it becomes content."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """Text as content or as the value of an attribute."""
    return text if isinstance(text, Markup) else Markup(escape(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)))


def tag(element: str, *content: str, **attributes: str | float | None) -> Markup:
    """One element.

    Args:
        element: its name.
        content: text, which is escaped, or markup.
        attributes: by name, `_` for `-`, a last one left off (`class_`); None for none.
    """
    own = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if element in _EMPTY:
        return Markup(f"<{element}{own}/>")
    return Markup(f"<{element}{own}>{joined(content)}</{element}>")


def joined(parts: Iterable[str], between: str = "") -> Markup:
    """Texts and markup, one after the other."""
    return Markup(escaped(between).join(escaped(part) for part in parts))


def breakable(path: str) -> Markup:
    """A path with dots, which may go on in the next line after each of them."""
    return joined(path.split("."), Markup(".<wbr/>"))


def _value(value: str | float) -> str:
    """The value of an attribute; lengths with two digits."""
    return escaped(value) if isinstance(value, str) else number(value)


def number(value: float) -> str:
    """A length with at most two digits."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[str] = ()) -> Markup:
    """A table that scrolls by itself where it is wider than the page.

    Args:
        caption: what it shows.
        head: titles of the columns.
        rows: cells; the first one names the row.
        text: titles of further columns that hold text; all others hold numbers.
    """
    sides = ["t", *("t" if title in text else "n" for title in head[1:])]
    titles = joined(tag("th", title, scope="col", class_=side) for title, side in zip(head, sides, strict=True))
    body = joined(
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", c, class_=s) for c, s in zip(row[1:], sides[1:], strict=True)),
        )
        for row in rows
    )
    found = tag("table", tag("caption", tag("span", caption)), tag("thead", tag("tr", titles)), tag("tbody", body))
    return tag("div", found, class_="scroll", tabindex="0", role="region", aria_label=caption)


def pairs(caption: str, rows: Iterable[tuple[str, str]]) -> Markup:
    """A table of names and values, as texts."""
    body = joined(tag("tr", tag("th", name, scope="row"), tag("td", value, class_="v")) for name, value in rows)
    return tag("table", tag("caption", caption), tag("tbody", body), class_="pairs")
