"""How long sublayers of each kind take at each size, in the runtime that they will run in.

Whole models are timed, since no runtime is asked about a part: one in which every sublayer is as small as it can be,
and ones in which those of one kind have a certain size. What the second takes more is what they take. At small shapes,
where weights come from memory, all sublayers of the kind take part, as they will in the end; at large ones, which are
arithmetic, as few as do.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from faster_pruner.costs.latency import LatencyLimit, Times, TimeTable, kind_of
from faster_pruner.host.temporary import temporary_folder
from faster_pruner.model.limits import made_up_inputs, shapes_for
from faster_pruner.model.network import Network
from faster_pruner.model.passes import device_of
from faster_pruner.model.spec import Sublayer
from faster_pruner.progress import Progress, Silent
from faster_pruner.runtimes.comparison import runner
from faster_pruner.runtimes.timing import time_in_turn

# Sizes that a kind is timed at, in eighths of its units; and where building a model is slow, or running it.
_EIGHTHS = (0.5, 1, 2, 3, 4, 6, 8)
_FEW_EIGHTHS = (1, 3, 8)
# Seconds that one turn through all models may take; a turn that takes longer has fewer sizes in it.
_TURN, _LONG_TURN = 2.0, 5.0
_WARM_UP, _FEWEST, _MOST, _ENOUGH = 1, 4, 25, 15.0
# Of the dense and of the smallest model.
_FEWEST_WHOLE, _ENOUGH_WHOLE = 2, 6.0
# Of a candidate and the dense model.
_FEWEST_PAIRS, _MOST_PAIRS, _ENOUGH_PAIRS = 7, 60, 4.0
# How much of a model's sublayers is left in the mean over the sizes.
_MEAN_SIZE = 0.45


@dataclass(frozen=True)
class Pair:
    """A model against the dense one, run in turn.

    Attributes:
        dense: seconds, median.
        own: seconds, median.
        share: median of the ratios of a turn.
    """

    dense: float
    own: float
    share: float


@dataclass(frozen=True)
class Bench:
    """Runs models of a network at one shape in one runtime.

    Attributes:
        network: the dense one; left as it is.
        limit: shape and runtime.
        multiple: by sublayer, what sizes are rounded to.
    """

    network: Network
    limit: LatencyLimit
    multiple: Mapping[str, int]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Made-up rows of the shape, as far as the model takes it."""
        model = self.network.model
        ((batch, tokens),) = shapes_for(model, [(self.limit.batch, self.limit.tokens)])
        return made_up_inputs(model, batch, tokens)

    def table(self, progress: Progress | None = None) -> TimeTable:
        """Measure all kinds of sublayers.

        Args:
            progress: told after each turn.
        """
        progress = progress or Silent()
        members = _members(self.network.sublayers)
        sizes = {s.name: s.units for s in self.network.sublayers}
        floor = {s.name: min(s.units, s.spec.least) for s in self.network.sublayers}
        with temporary_folder() as folder:
            # built models stay until all are timed: compiled ones are compiled at their first run
            run = _Runs(self, folder)
            calls = {key: run.of(at) for key, at in (("dense", sizes), ("floor", floor))}
            whole = run.timed(calls, _FEWEST_WHOLE, _MOST, _ENOUGH_WHOLE, progress)
            dense, least = (statistics.median(whole[key]) for key in ("dense", "floor"))
            taking_part, eighths = self._plan(members, dense, least)
            grids = {kind: _grid(own[0], eighths, self.multiple[own[0].name]) for kind, own in members.items()}
            calls = {"floor": calls["floor"]}
            for kind, keeps in grids.items():
                own = members[kind][: taking_part[kind]]
                for keep in keeps[1:]:
                    calls[f"{kind} {keep}"] = run.of({**floor, **{s.name: min(keep, s.units) for s in own}})
            seconds = run.timed(calls, _FEWEST, _MOST, _ENOUGH, progress)
        kinds: dict[str, Times] = {}
        for kind, keeps in grids.items():
            calls_each = taking_part[kind] * members[kind][0].stack.calls
            more = [0.0] + [_more(seconds[f"{kind} {keep}"], seconds["floor"]) / calls_each for keep in keeps[1:]]
            kinds[kind] = Times(tuple(keeps), tuple(_rising(more)))
        return _through(TimeTable(kinds=kinds, rest=least), self.network.sublayers, dense)

    def candidate(self, selection: Mapping[str, Tensor]) -> Pair:
        """Time a network with the selected units [k] of every sublayer, against the dense one."""
        return self.pair(self.network.thin().shrunk(selection))

    def pair(self, network: Network) -> Pair:
        """Time a network against the dense one."""
        inputs = self.inputs
        with temporary_folder() as folder, torch.no_grad():
            models = {"dense": self.network.model, "own": network.model}
            calls = {
                name: functools.partial(runner(model, self.limit.runtime, folder / f"{name}.onnx"), inputs)
                for name, model in models.items()
            }
            found = time_in_turn(
                calls,
                device_of(network.model),
                warm_up=2,
                fewest=_FEWEST_PAIRS,
                most=_MOST_PAIRS,
                enough=_ENOUGH_PAIRS,
            )
        shares = [own / dense for own, dense in zip(found["own"], found["dense"], strict=True)]
        return Pair(statistics.median(found["dense"]), statistics.median(found["own"]), statistics.median(shares))

    def _plan(
        self, members: Mapping[str, Sequence[Sublayer]], dense: float, least: float
    ) -> tuple[dict[str, int], Sequence[float]]:
        """How many sublayers of each kind take part, and at which sizes, so that a turn does not take too long."""
        eighths = _EIGHTHS if self.limit.runtime == "torch" else _FEW_EIGHTHS
        each = max(0.0, dense - least) / max(1, sum(len(own) for own in members.values()))

        def turn(part: Callable[[int], int], sizes: int) -> float:
            return sum(sizes * (least + part(len(own)) * each * _MEAN_SIZE) for own in members.values())

        most = max(len(own) for own in members.values())
        for count in range(most, 0, -1):
            if turn(lambda n, count=count: min(n, count), len(eighths)) <= _TURN:
                break
        else:
            count = 1
        if turn(lambda n: min(n, count), len(eighths)) > _LONG_TURN:
            eighths = _FEW_EIGHTHS
        return {kind: min(len(own), count) for kind, own in members.items()}, eighths


class _Runs:
    """Models that are built, and run."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench, self._folder, self._built = bench, folder, 0
        self._inputs, self._device = bench.inputs, device_of(bench.network.model)

    def of(self, sizes: Mapping[str, int]) -> Callable[[], Any]:
        """A function that runs one forward of the network at some sizes."""
        dense = self._bench.network
        whole = all(sizes[s.name] == s.units for s in dense.sublayers)
        keeps = {s.name: s.parts.first(sizes[s.name]) for s in dense.sublayers}
        network = dense if whole else dense.thin().shrunk(keeps)
        self._built += 1
        run = runner(network.model, self._bench.limit.runtime, self._folder / f"{self._built}.onnx")
        return functools.partial(run, self._inputs)

    def timed(
        self, calls: Mapping[str, Callable[[], Any]], fewest: int, most: int, enough: float, progress: Progress
    ) -> dict[str, list[float]]:
        """Seconds of every call, in turn."""
        with torch.no_grad():
            return time_in_turn(
                calls, self._device, warm_up=_WARM_UP, fewest=fewest, most=most, enough=enough, progress=progress
            )


def _members(sublayers: Sequence[Sublayer]) -> dict[str, list[Sublayer]]:
    """Sublayers with units, by kind, the largest first."""
    found: dict[str, list[Sublayer]] = {}
    for s in sublayers:
        if s.units:
            found.setdefault(kind_of(s), []).append(s)
    return {kind: sorted(own, key=lambda s: -s.units) for kind, own in found.items()}


def _grid(sublayer: Sublayer, eighths: Sequence[float], multiple: int) -> list[int]:
    """Sizes to time, rising; the first one is the smallest that there can be."""
    least, units = min(sublayer.units, sublayer.spec.least), sublayer.units
    rounded = [min(units, max(1, round(units * part / 8 / multiple)) * multiple) for part in eighths]
    return [least, *sorted({keep for keep in rounded if keep > least})]


def _more(seconds: Sequence[float], floor: Sequence[float]) -> float:
    """What a model takes more than the smallest one, in the median turn."""
    return statistics.median(own - other for own, other in zip(seconds, floor, strict=True))


def _rising(seconds: Sequence[float]) -> list[float]:
    """The closest values that never fall and begin at zero."""
    fitted = IsotonicRegression(y_min=0.0).fit_transform(np.arange(len(seconds)), np.asarray(seconds))
    return [0.0, *(float(value) for value in fitted[1:])]


def _through(table: TimeTable, sublayers: Sequence[Sublayer], dense: float) -> TimeTable:
    """The same table, stretched so that it says of the dense model what that took."""
    own = table.total(sublayers) - table.rest
    stretch = max(0.0, dense - table.rest) / own if own > 0 else 1.0
    kinds = {k: Times(t.keeps, tuple(stretch * seconds for seconds in t.seconds)) for k, t in table.kinds.items()}
    return TimeTable(kinds=kinds, rest=table.rest)
