"""Budgets in milliseconds: measure what sublayers take, choose sizes by it, time what comes out, and correct.

The table adds up what single sublayers take; a whole model takes a little more or less. So candidates are timed before
anything is recovered (their weights make no difference), then the finished model, and the table is scaled to what they
took until the request is met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from faster_pruner.api.job import Job
from faster_pruner.costs.budget import Budget
from faster_pruner.costs.latency import LatencyLimit, Times, TimeTable, kind_of
from faster_pruner.errors import BudgetError, InputError, one_line
from faster_pruner.host import cache
from faster_pruner.host.devices import environment
from faster_pruner.method.algorithm import cut
from faster_pruner.method.calibrated import Pruned
from faster_pruner.method.selecting import bounds_for, select, sizes_allowed
from faster_pruner.model.network import Network
from faster_pruner.model.passes import device_of
from faster_pruner.model.spec import Sublayer
from faster_pruner.progress import StageClock
from faster_pruner.results import LimitResult
from faster_pruner.runtimes.comparison import check_runs
from faster_pruner.runtimes.layers import Bench, Pair

_CACHE = "latency"
_STAGE = "measure latency"
# How far a finished model may be from the request before it is cut again, and a candidate before its recovery.
_CLOSE, _CLOSER = 0.07, 0.02
# Candidates that are timed, and further cuts, at most.
_CANDIDATES, _FURTHER_CUTS = 5, 2


@dataclass(frozen=True)
class Timed:
    """What a finished model takes.

    Attributes:
        limit: of the budget, as it is met.
        off: how far from the request, relatively: above 0 for too slow.
        binding: whether the latency is what limited it.
        job: with the table corrected.
    """

    limit: LimitResult
    off: float
    binding: bool
    job: Job

    @property
    def met(self) -> bool:
        """Whether it is as fast as was asked, and no smaller than it must be for that."""
        return self.off <= _CLOSE and (self.off >= -_CLOSE or not self.binding)


def check_runtime(budget: Budget, device: torch.device) -> None:
    """Before any work: the runtime of a latency can be timed here. Raises OptionError."""
    if budget.latency is not None:
        check_runs(budget.latency.runtime, device)


def with_times(job: Job, clock: StageClock) -> tuple[Job, list[Timed]]:
    """A job whose latency is a limit by a measured table, scaled to what whole models of such sizes take.

    Returns:
        It, and the candidates that were timed on the way.

    Raises:
        BudgetError: no size of the sublayers is as fast as that.
    """
    limit = job.budget.latency
    if limit is None:
        return job, []
    tried: list[Timed] = []
    check_runtime(job.budget, device_of(job.calibrated.model))
    bench = _bench(job)
    with clock.stage(_STAGE):
        table = _table(bench, clock)
    job = _with(job, table, limit)
    with clock.stage("selection"):
        selection = _selection(job)
    with clock.stage("time candidates", total=_CANDIDATES):
        for _ in range(_CANDIDATES):
            found = _timed(job, limit, bench.candidate(selection), _resized(job.calibrated.sublayers, selection))
            tried.append(found)
            job = found.job
            clock.progress.step()
            if abs(found.off) <= _CLOSER or not (found.binding or found.off > 0):
                break
            selection = _selection(job)
    return job, tried


@dataclass(frozen=True)
class Measured:
    """Limits that were measured, and what is to be said of them."""

    limits: list[LimitResult]
    warnings: list[str]


def cut_in_time(job: Job, clock: StageClock) -> tuple[Pruned, Measured]:
    """Cut, and again while the finished model is slower than was asked, or faster than it need be.

    Raises:
        InputError: see `method.algorithm.cut`.
    """
    pruned = cut(job.calibrated, job.budget, job.method, clock=clock, journal=job.journal)
    if job.budget.latency is None:
        return pruned, Measured([], [])
    best, warnings = _of_model(job, pruned, clock), list[str]()
    present = best
    for _ in range(_FURTHER_CUTS):
        if present.met:
            break
        try:
            further = cut(job.calibrated, present.job.budget, job.method, clock=clock, journal=job.journal)
        except InputError as error:
            warnings.append(f"the latency: no other sizes come closer, {one_line(error)}")
            break
        present = _of_model(present.job, further, clock)
        if present.met or abs(present.off) < abs(best.off):
            pruned, best = further, present
    # where nothing else is limited, what is left over tells that no larger size fits
    if not best.met or (best.off < -_CLOSE and len(job.budget.all_limits) == 1):
        asked, took = 1000 * best.limit.asked, 1000 * (best.limit.measured or 0.0)
        warnings.append(f"{asked:.3g} ms were asked for at {best.limit.where}; the closest model takes {took:.3g} ms")
    return pruned, Measured([best.limit], warnings)


def _of_model(job: Job, pruned: Pruned, clock: StageClock) -> Timed:
    """Time a finished model as its budget asks."""
    limit, own = job.budget.latency, {s.name: s for s in pruned.sublayers}
    assert limit is not None
    with clock.stage(_STAGE):
        found = _bench(job).pair(Network(pruned.model, pruned.sublayers))
    return _timed(job, limit, found, [own.get(s.name, s) for s in job.calibrated.sublayers])


def _with(job: Job, table: TimeTable, limit: LatencyLimit) -> Job:
    """A job that spends by this table. Raises BudgetError where no size of the sublayers is as fast as that."""
    sublayers = job.calibrated.sublayers
    # a share is one of what the table says of the dense model, whatever the scale of pruned ones
    seconds = limit.seconds if limit.share is None else limit.share * table.total(sublayers)
    assert seconds is not None
    floor, dense = table.fixed(job.calibrated.model, sublayers), table.total(sublayers)
    if seconds <= floor:
        raise BudgetError(
            f"a latency of {limit.wanted} at {limit.where} cannot be had by pruning: with all that can go gone, the "
            f"model still takes {1000 * floor:.3g} of {1000 * dense:.3g} ms (it is {dense / floor:.2f}x faster then)"
        )
    return replace(job, budget=job.budget.timed(table, seconds))


def _timed(job: Job, limit: LatencyLimit, found: Pair, sublayers: Sequence[Sublayer]) -> Timed:
    """What was measured of a model with these sublayers, and the job that knows it."""
    table, amount = job.budget.times, job.budget.time
    assert table is not None
    assert amount is not None
    dense, predicted = table.total(job.calibrated.sublayers), table.total(sublayers)
    # of a share only the ratios of a turn count: what the machine is busy with beside slows both models
    unit = found.dense / dense if limit.share is not None else 1.0
    took = found.share * dense if limit.share is not None else found.own
    result = LimitResult(
        cost=table.name,
        dense=found.dense,
        asked=amount * unit,
        pruned=predicted * unit,
        measured=took * unit,
        where=limit.where,
    )
    spent = table.scale * predicted / amount
    try:
        corrected = _with(job, table.corrected(took, sublayers), limit)
    except BudgetError:
        # the table knows better that something is left to prune
        corrected = job
    return Timed(result, took / amount - 1.0, spent > 1.0 - _CLOSE, corrected)


def _selection(job: Job) -> dict[str, Tensor]:
    """What would be kept if it were all decided at once, by sublayer."""
    calibrated, budget = job.calibrated, job.budget
    sizes = sizes_allowed(calibrated.sublayers, budget, job.method)
    return select(calibrated, job.method, bounds_for(calibrated, budget), sizes)


def _resized(sublayers: Sequence[Sublayer], selection: Mapping[str, Tensor]) -> list[Sublayer]:
    """The same sublayers with so many units, as far as a cost depends on it."""
    return [s.resized(replace(s.parts, units=selection[s.name].numel())) for s in sublayers]


def _bench(job: Job) -> Bench:
    """What times models of a job."""
    limit, calibrated = job.budget.latency, job.calibrated
    assert limit is not None
    multiple = sizes_allowed(calibrated.sublayers, job.budget, job.method).multiple
    return Bench(calibrated.network, limit, {s.name: multiple.get(s.name, 1) for s in calibrated.sublayers})


def _table(bench: Bench, clock: StageClock) -> TimeTable:
    """The table that was measured here before, or a new one."""
    key = _key(bench)
    kept = cache.recall(_CACHE, key)
    if kept is not None:
        kinds = {kind: Times(tuple(keeps), tuple(seconds)) for kind, (keeps, seconds) in kept["kinds"].items()}
        return TimeTable(kinds=kinds, rest=kept["rest"])
    found = bench.table(clock.progress)
    kinds = {kind: [list(times.keeps), list(times.seconds)] for kind, times in found.kinds.items()}
    cache.keep(_CACHE, key, {"kinds": kinds, "rest": found.rest})
    return found


def _key(bench: Bench) -> dict[str, Any]:
    """Everything that a table depends on."""
    model, runtime = bench.network.model, bench.limit.runtime
    parameter = next(model.parameters())
    sublayers = [[kind_of(s), s.units, s.spec.least, s.stack.calls] for s in bench.network.sublayers]
    return {
        "environment": environment(parameter.device),
        "runtime": [runtime, version("onnxruntime") if runtime.startswith("onnx") else ""],
        "dtype": str(parameter.dtype),
        "attention": str(getattr(model.config, "_attn_implementation", "")),
        "class": type(model).__name__,
        "parameters": sum(each.numel() for each in model.parameters()),
        "shape": [bench.limit.batch, bench.limit.tokens],
        "sublayers": sublayers,
        "multiples": sorted(set(bench.multiple.values())),
    }
