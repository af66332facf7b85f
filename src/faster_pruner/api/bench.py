"""Time checkpoints on this machine."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from faster_pruner.api.run import Run
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.costs.cost import Macs, total
from faster_pruner.errors import OptionError
from faster_pruner.model.limits import longest_row
from faster_pruner.model.spec import Sublayer
from faster_pruner.options import one_of
from faster_pruner.results import Timing
from faster_pruner.runtimes import RUNTIMES
from faster_pruner.runtimes.comparison import Entry, compare


def bench(
    models: Sequence[str | Path],
    *,
    runtimes: Sequence[str] = ("torch",),
    batches: Sequence[int] = (1, 8, 32),
    sequences: Sequence[int] = (32, 128, 384),
    run: Run | None = None,
) -> list[Timing]:
    """Time checkpoints on this machine; the first one is the reference for speed-ups.

    Args:
        models: local folders or hub ids.
        runtimes: of `RUNTIMES`.
        batches: rows per forward.
        sequences: tokens per row; longer ones than the models take are left out.
        run: device and listener.

    Raises:
        InputError: see its subclasses.
    """
    if min([*batches, *sequences], default=0) < 1:
        raise OptionError("batches and sequences must be at least 1")
    for runtime in runtimes:
        one_of("runtime", runtime, RUNTIMES)
    run = run or Run()
    device = run.on()
    clock = run.clock(device)
    entries: list[Entry] = []
    with clock.stage("load", total=len(models)):
        for place in models:
            opened = open_checkpoint(str(place), device=device)
            name = str(place)
            while name in {entry.name for entry in entries}:
                name += " (again)"
            entries.append(Entry(name, opened.model, functools.partial(_macs, opened.sublayers)))
            clock.progress.step()
    longest = min(longest_row(entry.model) for entry in entries)
    shapes = [(b, s) for s in sequences if s <= longest for b in batches]
    if not shapes:
        raise OptionError(f"no sequence of {list(sequences)} fits: these models take at most {longest} tokens")
    with clock.stage("bench", total=len(shapes)):
        return compare(entries, runtimes=runtimes, shapes=shapes, progress=clock.progress)


def _macs(sublayers: Sequence[Sublayer], length: int) -> float:
    """MACs of one row of `length` tokens."""
    return total(Macs({s.stack.name: float(length) for s in sublayers}), sublayers)
