"""Tables of what a search finds, as a terminal of 80 columns shows them."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from faster_pruner.report import print_searches
from faster_pruner.report.search import Hit, Search

LONG = "turtle: Draw a dot [bold]with[/bold] diameter size, " * 4


@pytest.mark.parametrize("width", [80, 60])
def test_ranks_are_never_cut_and_long_texts_are(width: int) -> None:
    stream = StringIO()
    hits = (Hit(LONG, 1, 1204), Hit("short", 12, 2))
    print_searches([Search("draw a circle", hits)], Console(file=stream, width=width, markup=False, highlight=False))
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    assert lines[0] == "query: draw a circle"
    rows = [line.split(maxsplit=2) for line in lines if line]
    assert ["dense", "pruned", "found"] in rows
    assert ["12", "2", "short"] in rows
    cut = next(row for row in rows if row[:2] == ["1", "1204"])[2]
    assert cut.endswith("…")
    assert LONG.startswith(cut[:-1])
