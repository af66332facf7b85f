"""What the pictures are drawn with: SVG elements, axes and bars.

Lengths are in pixels of a picture that is `WIDTH` wide. Colours come from classes (`picture.css`), so that a picture
follows the reader's light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from faster_pruner.report.page.markup import Markup, joined, number, tag

WIDTH = 400.0
# About how wide a character of a label is.
CHARACTER = 8.1
ROW = 20.0
# Around a picture that is a file of its own.
_MARGIN = 12.0
_TICKS = 5
_SPACE = "http://www.w3.org/2000/svg"
_STEPS = (1.0, 2.0, 5.0, 10.0)


def style(name: str) -> str:
    """A style sheet of this package."""
    return (files("faster_pruner.report.page") / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: as a file may be called.
        title: what it shows.
        description: the same with its figures, for those who do not see it.
        body: its elements.
        height: in pixels.
        note: how to read it.
    """

    name: str
    title: str
    description: str
    body: Markup
    height: float
    note: str = ""

    def inline(self) -> Markup:
        """As an element of a page that has the style sheet."""
        return self._svg()

    def standalone(self) -> str:
        """As a file of its own, on a ground of its own."""
        sheet = tag("style", Markup(style("picture.css")))
        wide, high = WIDTH + 2 * _MARGIN, self.height + 2 * _MARGIN
        ground = tag("rect", class_="ground", x=-_MARGIN, y=-_MARGIN, width=wide, height=high)
        return self._svg(sheet, ground, margin=_MARGIN, xmlns=_SPACE, width=wide, height=high) + "\n"

    def _svg(self, *before: Markup, margin: float = 0.0, **attributes: str | float) -> Markup:
        return tag(
            "svg",
            tag("title", self.title),
            *before,
            self.body,
            class_="picture",
            role="img",
            aria_label=f"{self.title}. {self.description}",
            viewBox=" ".join(map(number, (-margin, -margin, WIDTH + 2 * margin, self.height + 2 * margin))),
            **attributes,
        )


def text(x: float, y: float, what: str, *classes: str) -> Markup:
    """A label whose middle is at height `y`."""
    return tag("text", what, x=x, y=y + 4.4, class_=" ".join(classes) or None)


def rectangle(x: float, y: float, width: float, height: float, *classes: str) -> Markup:
    """A filled one."""
    return tag("rect", x=x, y=y, width=max(0.0, width), height=height, class_=" ".join(classes))


def line(x: float, y: float, to_x: float, to_y: float, *classes: str) -> Markup:
    """A straight one."""
    return tag("line", x1=x, y1=y, x2=to_x, y2=to_y, class_=" ".join(classes))


def dot(x: float, y: float, *classes: str) -> Markup:
    """A point."""
    return tag("circle", cx=x, cy=y, r=4.5, class_=" ".join(classes))


def group(hint: str, *parts: Markup) -> Markup:
    """Elements that say something when they are pointed at."""
    return tag("g", tag("title", hint), *parts)


def width_of(labels: Iterable[str]) -> float:
    """About how wide the longest of these labels is."""
    return CHARACTER * max((len(label) for label in labels), default=0)


@dataclass(frozen=True)
class Axis:
    """Values on a line.

    Attributes:
        low: value at its start.
        high: value at its end.
        start: where it starts, in pixels.
        stop: where it ends.
        step: between two ticks.
    """

    low: float
    high: float
    start: float
    stop: float
    step: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, stop: float, *, zero: bool = False) -> Axis:
        """One that holds all finite values, from tick to tick; from zero where that is asked for."""
        found = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(found), max(found)
        low = min(0.0, low) if zero else low
        if high - low <= 1e-9 * max(abs(high), abs(low), 1e-300):
            high, low = high + (abs(high) or 1.0) * 0.05, low if zero else low - (abs(low) or 1.0) * 0.05
        raw = (high - low) / _TICKS
        power = 10.0 ** math.floor(math.log10(raw))
        step = power * next(each for each in _STEPS if each * power >= raw * (1 - 1e-9))
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, stop, step)

    def at(self, value: float) -> float:
        """Where a value lies; what is outside lies at the end."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.stop - self.start)

    @property
    def ticks(self) -> list[float]:
        """Values that are marked."""
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]

    def label(self, value: float) -> str:
        """A tick's text."""
        if abs(value) < self.step / 2:
            return "0"
        return f"{value:.{max(0, -math.floor(math.log10(self.step) + 1e-9))}f}"


def below(axis: Axis, top: float, bottom: float, title: str = "") -> Markup:
    """The lines of a horizontal axis over a picture from `top` to `bottom`, its ticks below, and what it measures."""
    parts: list[Markup] = []
    for value in axis.ticks:
        x = axis.at(value)
        parts += [line(x, top, x, bottom, "grid"), text(x, bottom + 11, axis.label(value), "small", "middle")]
    if title:
        parts.append(text((axis.start + axis.stop) / 2, bottom + 27, title, "small", "middle"))
    return joined(parts)


def beside(axis: Axis, left: float, right: float) -> Markup:
    """The lines of a vertical axis from `left` to `right`, with its ticks on the left."""
    parts: list[Markup] = []
    for value in axis.ticks:
        y = axis.at(value)
        parts += [line(left, y, right, y, "grid"), text(left - 6, y, axis.label(value), "small", "end")]
    return joined(parts)


@dataclass(frozen=True)
class Bar:
    """One of several bars.

    Attributes:
        label: on its left.
        value: its length.
        words: its value in words, on its right.
        mark: a value that is marked on it; None for none.
    """

    label: str
    value: float
    words: str
    mark: float | None = None


def bars(rows: Sequence[Bar], *, most: float, at: float | None = None) -> tuple[Markup, float]:
    """Horizontal bars from zero, and how high they are together.

    Args:
        rows: from top to bottom.
        most: value at the right end.
        at: a value that is marked across all of them; None for none.
    """
    left = min(WIDTH * 0.45, width_of(row.label for row in rows) + 10)
    right = WIDTH - width_of(row.words for row in rows) - 10
    height = ROW * len(rows)
    # never a division by zero, where nothing has a length
    axis = Axis(0.0, most if most > 0 and math.isfinite(most) else 1.0, left, right, 1.0)
    parts: list[Markup] = []
    for place, row in enumerate(rows):
        top = place * ROW
        own: list[Markup] = [
            text(left - 8, top + ROW / 2, row.label, "end"),
            rectangle(left, top + 4, right - left, ROW - 8, "track"),
        ]
        if math.isfinite(row.value):
            own.append(rectangle(left, top + 4, axis.at(row.value) - left, ROW - 8, "pruned"))
        if row.mark is not None:
            own.append(line(axis.at(row.mark), top + 1, axis.at(row.mark), top + ROW - 1, "mark"))
        own.append(text(WIDTH, top + ROW / 2, row.words, "end"))
        parts.append(group(f"{row.label}: {row.words}", *own))
    if at is not None:
        parts.append(line(axis.at(at), 0, axis.at(at), height, "mark"))
    return joined(parts), height
