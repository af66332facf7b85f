"""What `inspect` shows: stack by stack, what can be pruned, and what stays whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from faster_pruner.inspected import Inspection, StackFound, SublayerFound, ranges

_ORIGINS = {
    "table": "described by the family table",
    "detected": "found by running it, and proved on a batch",
    "recorded": "described by the checkpoint itself",
}
_MOST_PATHS = 6


def print_inspection(found: Inspection, console: Console) -> None:
    """Everything, at 80 columns."""
    for text, style in _lines(found):
        console.print(Text(text, style=style), soft_wrap=False)


def _lines(found: Inspection) -> Iterator[tuple[str, str]]:
    task = found.task or "no task that is known here: prune it in memory, with an objective of your own"
    yield f"{found.model}: {found.model_class}", "bold"
    yield f"  {task}{'; pruned before' if found.pruned else ''}", ""
    share = found.prunable / max(1, found.parameters)
    yield f"  {_short(found.parameters)} parameters, {_short(found.prunable)} of them prunable ({share:.0%})", ""
    yield f"  {_ORIGINS.get(found.origin, found.origin)}", ""
    for stack in found.stacks:
        yield "", ""
        yield from _stack(stack, found.length)
    if found.left:
        yield "", ""
        yield "left whole", "bold"
    for reason, paths in found.left.items():
        yield f"  {reason}:", ""
        for path in paths[:_MOST_PATHS]:
            yield f"    {path}", "dim"
        if len(paths) > _MOST_PATHS:
            yield f"    and {len(paths) - _MOST_PATHS} more", "dim"


def _stack(stack: StackFound, length: int) -> Iterator[tuple[str, str]]:
    again = f", each runs {stack.calls} times" if stack.calls > 1 else ""
    yield f"{stack.name}: {stack.layers} layer{'' if stack.layers == 1 else 's'} at {stack.path}{again}", "bold"
    for sublayer in stack.sublayers:
        yield from _sublayer(sublayer, stack, length)


def _sublayer(found: SublayerFound, stack: StackFound, length: int) -> Iterator[tuple[str, str]]:
    layers = "layer" if len(found.layers) == 1 else "layers"
    some = "" if len(found.layers) == stack.layers else f" in {layers} {ranges(found.layers)}"
    columns = "" if found.columns == 1 else f" of {found.columns} columns"
    before = f" of {_counts(found.dense)}" if found.dense else ""
    yield f"  {found.kind}{some}: {_counts(found.units)}{before} {found.unit}s{columns}", "cyan"
    if found.dense:
        gone = 1 - sum(found.units) / max(1, sum(found.dense))
        empty = [layer for layer, units in zip(found.layers, found.units, strict=True) if not units]
        nothing = f", all of layer{'' if len(empty) == 1 else 's'} {ranges(empty)}" if empty else ""
        yield f"    {gone:.0%} removed{nothing}", ""
    yield f"    {found.projection}, {found.join}", ""
    width = max(len(path) for path in found.producers)
    for path, rows in found.producers.items():
        yield f"      {path:<{width}}  {rows}", "dim"
    if found.follows:
        yield f"    with it: {', '.join(found.follows)}", "dim"
    notes = [f"{_short(round(found.macs))} MACs for {length} tokens"]
    notes += [f"at least {found.least} {found.unit} stays"] if found.least else []
    notes += ["one size everywhere opens in plain transformers"] if found.stock else []
    yield f"    {'; '.join(notes)}", "dim"


def _counts(units: Sequence[int]) -> str:
    """Units per layer: one number when all are alike, else runs of the same."""
    if len(set(units)) == 1:
        return str(units[0])
    runs = [(value, len(list(group))) for value, group in groupby(units)]
    return ", ".join(f"{value}" if count == 1 else f"{count} x {value}" for value, count in runs)


def _short(number: int) -> str:
    """1234567 -> 1.2 M."""
    for size, letter in ((1_000_000_000, " G"), (1_000_000, " M"), (1_000, " k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)
