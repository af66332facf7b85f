"""How small can it be? The least MACs whose model stays as good as was asked for, on training rows that judge."""

from __future__ import annotations

from dataclasses import dataclass, replace

from faster_pruner.api.job import Job
from faster_pruner.costs.budget import Budget
from faster_pruner.errors import BudgetError, NumericalError, OptionError
from faster_pruner.method.algorithm import cut
from faster_pruner.method.calibrated import Pruned
from faster_pruner.objectives.evaluation import confidence, evaluate, predict_rows
from faster_pruner.objectives.metrics import IN_NATURAL_UNITS
from faster_pruner.progress import StageClock
from faster_pruner.results import Evaluation, Probe

# Shares of the MACs that are tried: halves of what is left to search, down to a step between two of them.
_LEAST, _MOST, _CUTS = 0.0, 1.0, 5
_SPLIT = "judges"


@dataclass(frozen=True)
class Smallest:
    """What was found.

    Attributes:
        job: with the budget that it is cut to.
        pruned: the smallest model that is good enough.
        probes: all that was tried, in order.
    """

    job: Job
    pruned: Pruned
    probes: list[Probe]


def check_judged(budget: Budget) -> None:
    """Raise OptionError for a budget that needs rows that judge, where there are none."""
    if budget.max_drop is not None:
        raise OptionError(
            "the smallest model within a drop is found on training rows that judge: prune from a checkpoint and its "
            "rows; here, say what may be left instead, for instance half of the MACs"
        )


def smallest(job: Job, clock: StageClock) -> Smallest:
    """Cut to several shares of the MACs, by bisection, and keep the smallest model that is within the drop.

    A model is within it when the 95 % interval of its change is, on rows that nothing is calibrated on. Five cuts find
    the share to within 1/32.

    Raises:
        BudgetError: not even the largest model that was tried is within the drop.
        DataError: the rows have nothing to judge by.
    """
    drop, rows = job.budget.max_drop, job.judges
    assert drop is not None
    assert rows is not None
    subject = job.calibrated.subject
    with clock.stage("judge"):
        dense = predict_rows(subject.model, subject.objective, rows)
        before = evaluate(dense, subject.objective, split=_SPLIT, rows=rows.judged, dense=dense)
    low, high = _LEAST, _MOST
    probes, best = list[Probe](), None
    for _ in range(_CUTS):
        share = (low + high) / 2
        own = replace(job, budget=replace(job.budget, macs=share, max_drop=None))
        try:
            pruned = cut(job.calibrated, own.budget, job.method, clock=clock, journal=job.journal)
        except (BudgetError, NumericalError):
            if probes:
                low = share
                continue
            raise
        with clock.stage("judge"):
            found = predict_rows(pruned.model, subject.objective, rows)
            after = evaluate(found, subject.objective, split=_SPLIT, rows=rows.judged, dense=dense)
            change = confidence(before.primary, subject.objective, dense, found).change
        probe = _probe(share, before, after, change, drop)
        probes.append(probe)
        if probe.within:
            best, high = Smallest(own, pruned, probes), share
        else:
            low = share
    if best is None:
        last = probes[-1]
        raise BudgetError(
            f"no smaller model is within {_points(drop, last.metric)} for certain: at {last.macs:.0%} of the MACs "
            f"{last.metric} changes by {last.low:+.3g} to {last.high:+.3g} on {len(rows)} rows that judge; allow more"
        )
    return best


def _probe(share: float, before: Evaluation, after: Evaluation, change: tuple[float, float], drop: float) -> Probe:
    """What was tried, and whether it is within the drop: losses count as relative rises, others are percents."""
    name, (low, high) = before.primary, change
    within = high <= drop * abs(before.value) if name in IN_NATURAL_UNITS else low >= -100 * drop
    return Probe(
        macs=share, metric=name, before=before.value, after=after.value, low=low, high=high, within=bool(within)
    )


def _points(drop: float, metric: str) -> str:
    """A drop in words."""
    return f"a rise of {metric} by {drop:.3g}x" if metric in IN_NATURAL_UNITS else f"{100 * drop:.3g} points"
