"""The parts that every page is made of."""

from __future__ import annotations

from collections.abc import Sequence

from faster_pruner.host.marks import MARK
from faster_pruner.report.page.drawing import Picture, style
from faster_pruner.report.page.markup import Markup, tag

# Nothing is loaded, and nothing runs, whatever a name in the report may hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, *body: Markup) -> str:
    """A whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name=MARK, content="report"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup("\n" + style("picture.css") + style("style.css"))),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *body)), lang='en')}\n"


def section(title: str, *content: Markup) -> Markup:
    """A part of the page."""
    return tag("section", tag("h2", title), *content)


def figure(picture: Picture) -> Markup:
    """A picture with its title and how to read it."""
    caption = tag("figcaption", tag("strong", picture.title), picture.note)
    return tag("figure", caption, picture.inline())


def side_by_side(*content: Markup, look: str = "pair") -> Markup:
    """Things beside each other where there is room, below each other elsewhere: two, or a "row" of smaller ones."""
    return tag("div", *content, class_=look)


def tiles(each: Sequence[tuple[str, str, str]]) -> Markup:
    """What matters most: what it is, the figure, and what belongs to it."""
    return tag(
        "dl",
        *(tag("div", tag("dt", what), tag("dd", big, class_="big"), tag("dd", more)) for what, big, more in each),
        class_="tiles",
    )
