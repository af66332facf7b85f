"""A vocabulary before and after."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from faster_pruner.report.summary import plain_table
from faster_pruner.vocabulary.measured import VocabularyReport


def print_vocabulary(report: VocabularyReport, console: Console) -> None:
    """What is left, what it saves, and what that does to texts not seen."""
    console.print(Text(_headline(report), style="bold"))
    table = plain_table(f"{report.model}: {report.algorithm}, tokens that {report.texts} texts use, and what they need")
    for column in ("", "before", "after", "change"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=bool(column))
    counts = (("tokens", report.tokens_before, report.tokens), ("embeddings", report.rows_before, report.rows))
    for what, before, after in counts:
        table.add_row(what, str(before), str(after), f"{after / before:.1%}")
    sizes = [f"{size / 1e6:.1f} MB" for size in (report.bytes_before, report.bytes)]
    table.add_row("weights with these tokens", *sizes, f"{report.bytes / max(1, report.bytes_before):.1%}")
    console.print(table)
    if (unseen := report.held_out) is not None:
        console.print(
            f"of {unseen.texts} texts that had no say: {_share(unseen.affected_words, unseen.words)} of the words are "
            f"in smaller pieces or unknown, in {_share(unseen.affected_texts, unseen.texts)} of the texts"
        )
    for name in report.left_out:
        console.print(Text.assemble(("note", "yellow"), f": {name} is left out; tokenizer.json holds the vocabulary"))
    for warning in report.warnings:
        console.print(Text.assemble(("note", "yellow"), f": {warning}"))
    console.print(Text.assemble(("verified", "green"), f": {report.verified}"))


def _headline(report: VocabularyReport) -> str:
    return (
        f"{report.tokens} of {report.tokens_before} tokens, {report.bytes_saved / 1e6:.1f} MB saved "
        f"({report.bytes_saved / max(1, report.bytes_before):.0%} of the weights)"
    )


def _share(part: int, whole: int) -> str:
    return f"{part / max(1, whole):.1%}"
