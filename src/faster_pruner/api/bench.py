"""Time checkpoints on this machine."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import nn

from faster_pruner.api.run import Run
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.checks import one_of
from faster_pruner.costs.cost import Macs, total
from faster_pruner.errors import OptionError
from faster_pruner.host import places
from faster_pruner.host.devices import environment
from faster_pruner.host.files import beside
from faster_pruner.model.limits import longest_row, main_input, shapes_for
from faster_pruner.model.spec import Sublayer
from faster_pruner.results import Timing, strict_json
from faster_pruner.runtimes import RUNTIMES
from faster_pruner.runtimes.comparison import Entry, check_runs, compare

# Keys of the file that takes the figures.
_ENVIRONMENT, _TIMINGS = "environment", "timings"


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
    for runtime in runtimes:
        check_runs(runtime, device)
    clock = run.clock(device)
    entries: list[Entry] = []
    with clock.stage("load", total=len(models)):
        for place in models:
            opened = open_checkpoint(str(place), device=device)
            name = str(place)
            while name in {entry.name for entry in entries}:
                name += " (again)"
            entries.append(Entry(name, opened.model, functools.partial(_macs, opened.describe().sublayers)))
            clock.progress.step()
    shapes = _shapes([entry.model for entry in entries], batches, sequences)
    with clock.stage("bench", total=len(shapes)):
        return compare(entries, runtimes=runtimes, shapes=shapes, progress=clock.progress)


def _shapes(models: Sequence[nn.Module], batches: Sequence[int], sequences: Sequence[int]) -> list[tuple[int, int]]:
    """(batch, tokens) pairs that all models take; of an image, tokens are what they are. Raises OptionError."""
    takes = sorted({main_input(model) for model in models})
    if len(takes) > 1:
        raise OptionError(f"these models take different things ({', '.join(takes)}); compare those that take the same")
    if takes != ["input_ids"]:
        return shapes_for(models[0], [(batch, 0) for batch in batches])
    longest = min(longest_row(model) for model in models)
    shapes = [(b, s) for s in sequences if s <= longest for b in batches]
    if not shapes:
        raise OptionError(f"no sequence of {list(sequences)} fits: these models take at most {longest} tokens")
    return shapes


def _macs(sublayers: Sequence[Sublayer], length: int) -> float:
    """MACs of one row of `length` tokens."""
    return total(Macs({s.stack.name: float(length) for s in sublayers}), sublayers)


def check_json(file: Path) -> None:
    """Before any work: a file may take the figures. Raises OutputError."""
    places.check_json(file, {_ENVIRONMENT, _TIMINGS})


def write_json(file: Path, timings: Sequence[Timing], run: Run) -> None:
    """The figures, and what they depend on. Raises OutputError."""
    found = {_ENVIRONMENT: environment(run.on()), _TIMINGS: [asdict(timing) for timing in timings]}
    with beside(file) as staging:
        staging.write_text(strict_json(found), encoding="utf-8")
