"""What a search finds before and after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from faster_pruner.report.summary import plain_table


@dataclass(frozen=True)
class Hit:
    """A text that a search finds.

    Attributes:
        text: it.
        before: its rank in the dense model, from 1.
        after: in the pruned model.
    """

    text: str
    before: int
    after: int


@dataclass(frozen=True)
class Search:
    """A query, and the first texts that it finds in either model."""

    query: str
    hits: tuple[Hit, ...]


def print_searches(searches: Iterable[Search], console: Console) -> None:
    """A table for each query, with a line for each text; long texts are cut."""
    for search in searches:
        table = plain_table(f"query: {search.query}")
        for column in ("dense", "pruned"):
            table.add_column(column, justify="right", no_wrap=True)
        # a column that may be narrowed, of texts that are one line each: the ranks keep their room
        table.add_column("found")
        for hit in search.hits:
            table.add_row(str(hit.before), str(hit.after), Text(hit.text, no_wrap=True, overflow="ellipsis"))
        console.print(table)
    console.print(Text("dense, pruned: rank among all texts that the models were not calibrated on", style="dim"))
