"""What a run will take, and what it will leave: foreseen in seconds, from a rehearsal on a few rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from faster_pruner.api.job import subject_of, usual_inputs, with_measured_multiple
from faster_pruner.api.outcome import BATCHES_TO_VERIFY, stored_bytes
from faster_pruner.api.rows import Few, describe, few_calibration_rows, few_evaluation_rows, objective_for
from faster_pruner.api.run import Run
from faster_pruner.api.weights import memory_for
from faster_pruner.checkpoint.opening import Opened, open_checkpoint
from faster_pruner.checkpoint.saving import check_savable, round_weights, verify, write_checkpoint
from faster_pruner.checkpoint.screening import as_place
from faster_pruner.costs.budget import Budget, as_budget, spendings
from faster_pruner.costs.cost import Bytes, Macs, Parameters, total
from faster_pruner.data.batches import padded_tokens
from faster_pruner.data.tasks import Data, as_data
from faster_pruner.errors import BudgetError, DataError
from faster_pruner.host.devices import MOST_WORKERS, environment
from faster_pruner.host.mapped import are_in_files
from faster_pruner.host.places import public_name
from faster_pruner.host.temporary import temporary_folder
from faster_pruner.method.calibrated import Calibrated, Subject
from faster_pruner.method.memory import memory_in_files, memory_staged, peak_in_files
from faster_pruner.method.rehearsal import Rehearsed, rehearse
from faster_pruner.method.selecting import bounds_for, sizes_allowed, uniform_units
from faster_pruner.model.precision import usual_torch
from faster_pruner.objectives import language
from faster_pruner.objectives.evaluation import RESAMPLES, TOKENS_PER_BATCH, confidence, evaluate, predict_rows
from faster_pruner.objectives.objective import Objective, Predicted
from faster_pruner.options import CalibrationOptions, Method, as_calibration, as_method
from faster_pruner.planned import PlannedSublayer, PlanReport
from faster_pruner.progress import Silent, StageClock
from faster_pruner.results import SizeResult
from faster_pruner.runtimes.timing import seconds_of_measuring

# A model that is written and opened again for the rehearsal is no larger than this; of a larger one the time is that of
# its opening, twice.
_MOST_BYTES_WRITTEN = 256 * 2**20
_IN_FILES = (
    "weights are kept in files: the memory is what the run holds of its own, beside which the system keeps pages of "
    "the files, and times hang on the disk"
)
# How often predictions are repeated to see how the time of their metrics grows.
_TIMES = 4
# One in so many of the samples that their intervals are taken from are drawn.
_FEWER = 10


@usual_torch()
def plan(
    model: str | Path,
    data: str | Data,
    *,
    macs: float | Budget,
    method: Method | str = "default",
    calibration: CalibrationOptions | None = None,
    run: Run | None = None,
) -> PlanReport:
    """Foresee what `prune` will take, in time and memory, and what sizes a budget means; nothing is kept.

    The method is rehearsed on a few thousand tokens of the calibration rows, and what that takes is scaled to all of
    them. Sizes are those of the budget without any data: the same share is left of every sublayer.

    Args:
        model: as in `prune`.
        data: as in `prune`.
        macs: as in `prune`; a budget in time, or of a drop, can only be met by measuring.
        method: as in `prune`.
        calibration: as in `prune`.
        run: as in `prune`.

    Raises:
        BudgetError: it can only be measured, or not be met.
        InputError: as of `prune`; see its subclasses in `errors`.
    """
    budget, how, options = as_budget(macs), as_method(method), as_calibration(calibration)
    _check_counted(budget)
    run = run or Run()
    device = run.on()
    place, given = as_place(model), as_data(data)
    with memory_for(options, place, device):
        return _planned(place, given, budget, device=device, how=how, options=options, clock=run.clock(device))


def _planned(
    place: str,
    given: Data,
    budget: Budget,
    *,
    device: torch.device,
    how: Method,
    options: CalibrationOptions,
    clock: StageClock,
) -> PlanReport:
    """The plan, with weights where the run will have them. Raises as `plan` does."""
    ahead = _looked_at(place, given, device=device, how=how, options=options, clock=clock)
    subject, few = ahead.subject, ahead.few
    budget = with_measured_multiple(budget, subject, clock)
    with clock.stage("rehearse"):
        found = rehearse(subject, few.rows, few.all, method=how, budget=budget, options=options)
        seconds = _seconds(ahead, found, clock.seconds)
    calibrated = found.calibrated
    units = _units(calibrated, budget, how)
    sublayers, lengths = calibrated.sublayers, calibrated.data.lengths
    return PlanReport(
        model=public_name(place),
        task=ahead.task,
        preset=how.name,
        options={"budget": budget.to_dict(), "method": how.to_dict(), "calibration": asdict(options)},
        sublayers=[
            PlannedSublayer(name=s.name, unit=s.spec.unit, units_before=s.units, units=units[s.name]) for s in sublayers
        ],
        dense=_size(calibrated, {}),
        pruned=_size(calibrated, units),
        limits=spendings(budget, subject.model, sublayers, units, lengths, bytes_each=subject.dtype.itemsize),
        seconds=seconds,
        memory=_held_in_files(calibrated, options, device) if are_in_files() else found.peak,
        spilled=found.spilled,
        calibration_rows=few.all,
        calibration_tokens=found.tokens.real,
        evaluation_rows={split: each.all for split, each in ahead.splits.items()},
        took=sum(clock.seconds.values()),
        environment=environment(device),
        notes=[
            *(f"{name} stays as it is: {why}" for name, why in calibrated.whole.items()),
            *([_IN_FILES] if are_in_files() else []),
        ],
    )


@dataclass(frozen=True, kw_only=True)
class _Ahead:
    """What the run will work on.

    Attributes:
        opened: the checkpoint.
        subject: the same, as something to prune.
        task: in words.
        few: of the calibration set.
        splits: of the evaluation rows.
    """

    opened: Opened
    subject: Subject
    task: str
    few: Few
    splits: dict[str, Few]


def _looked_at(
    place: str, given: Data, *, device: torch.device, how: Method, options: CalibrationOptions, clock: StageClock
) -> _Ahead:
    """Open the checkpoint, and look at some of the rows. Raises as `prune` does."""
    task = describe(given)
    source = given.source(task)
    with clock.stage("load"):
        opened = open_checkpoint(place, device=device, pooling=given.pooling, dims=given.dims)
        check_savable(opened.model, opened.processor)
    with clock.stage("rows"):
        objective = objective_for(opened, task)
        few = few_calibration_rows(source, task, opened, options, labelled=how.labels)
        splits = few_evaluation_rows(source, task, opened, options.max_length)
    return _Ahead(
        opened=opened,
        subject=subject_of(opened, objective, how.attention_unit),
        task=task.name or objective.pipeline_tag or objective.name,
        few=few,
        splits=splits,
    )


def _seconds(ahead: _Ahead, found: Rehearsed, spent: Mapping[str, float]) -> dict[str, float]:
    """Seconds of every stage of the run, in their order; `spent` are those of the plan so far."""
    multiples = "measure multiples"
    seconds = {"load": spent["load"], "rows": ahead.few.seconds + sum(each.seconds for each in ahead.splits.values())}
    seconds |= {multiples: spent[multiples]} if multiples in spent else {}
    seconds |= found.seconds
    seconds["evaluation"] = sum(_evaluation(found, ahead.subject.objective, each) for each in ahead.splits.values())
    if not are_in_files():
        inputs = usual_inputs(ahead.opened, ahead.few.rows)
        seconds["latency"] = seconds_of_measuring(ahead.subject.model, found.pruned.model, inputs)
    seconds["save and verify"] = _saving(ahead.opened, found, seconds["load"])
    return seconds


def _held_in_files(calibrated: Calibrated, options: CalibrationOptions, device: torch.device) -> int:
    """Bytes that the run holds, beside the pages of its files that the system keeps for it."""
    subject, limit = calibrated.subject, calibrated.data.setting.shelf.limit
    per_token = subject.objective.name == language.OBJECTIVE
    terms = {
        "batch": options.tokens_per_batch,
        "vocabulary": int(getattr(subject.model.config, "vocab_size", 0)) if per_token else 0,
        "limit": limit,
    }
    if device.type == "cpu":
        at_once = min(torch.get_num_threads(), MOST_WORKERS)
        return peak_in_files(memory_in_files(calibrated.sublayers, **terms, at_once=at_once))
    return peak_in_files(memory_staged(subject.model, calibrated.sublayers, **terms))


def _check_counted(budget: Budget) -> None:
    """Raise BudgetError for a budget that says what a forward may take, or what may be lost."""
    if budget.latency is not None or budget.max_drop is not None:
        raise BudgetError(
            "a plan counts what a budget leaves; a time, or what may be lost, can only be measured: plan for a share "
            "of the MACs, of the parameters or of the weights file, for instance half of the MACs",
            option="macs",
        )


def _units(calibrated: Calibrated, budget: Budget, method: Method) -> dict[str, int]:
    """What the budget leaves of every sublayer, without any data. Raises BudgetError."""
    sizes = sizes_allowed(calibrated.sublayers, budget, method)
    return uniform_units(calibrated.sublayers, bounds_for(calibrated, budget), sizes)


def _size(calibrated: Calibrated, units: Mapping[str, int]) -> SizeResult:
    """Size of a model with so many units; of those that are not named, all."""
    model, sublayers, cost = calibrated.model, calibrated.sublayers, Bytes(calibrated.subject.dtype.itemsize)
    encoder = total(Parameters(), sublayers, units)
    return SizeResult(
        macs=total(Macs(calibrated.data.lengths), sublayers, units),
        encoder_parameters=round(encoder),
        parameters=round(encoder + Parameters().fixed(model, sublayers)),
        bytes=round(total(cost, sublayers, units) + cost.fixed(model, sublayers)),
    )


def _evaluation(found: Rehearsed, objective: Objective, few: Few) -> float:
    """Seconds of evaluating both models on all rows of a split, from some of them."""
    clock, times = StageClock(Silent()), few.all / len(few.rows)
    with clock.stage("predict"):
        said = [predict_rows(each, objective, few.rows) for each in (found.calibrated.model, found.pruned.model)]
    judged = few.rows.judged
    once = _scoring(objective, said, judged)
    lengths = few.rows.lengths
    some, whole = (
        padded_tokens([lengths[i % len(lengths)] for i in range(count)], tokens_per_batch=TOKENS_PER_BATCH)
        for count in (len(lengths), few.all)
    )
    seconds = clock.seconds["predict"] * whole / some
    if times <= 1 or once is None:
        return seconds + (once or 0.0)
    # what does not depend on the number of rows is told apart by more of the same
    more = None if few.rows.context is not None else _scoring(objective, [_more(each) for each in said], judged)
    return seconds + (times * once if more is None else once + (times - 1) * max(0.0, more - once) / (_TIMES - 1))


def _scoring(objective: Objective, said: Sequence[Predicted], rows: int) -> float | None:
    """Seconds of metrics and their intervals; None where these few rows have none."""
    clock = StageClock(Silent())
    try:
        with clock.stage("score"):
            found = [evaluate(each, objective, split="", rows=rows, dense=said[0]) for each in said]
        with clock.stage("draw"):
            confidence(found[1].primary, objective, said[0], said[1], resamples=RESAMPLES // _FEWER)
    except (DataError, ArithmeticError, LookupError, ValueError):
        return None
    return clock.seconds["score"] + _FEWER * clock.seconds["draw"]


def _more(said: Predicted) -> Predicted:
    """The same predictions several times."""
    step = int(said.rows.max()) + 1
    labels = None if said.labels is None else np.concatenate([said.labels] * _TIMES)
    rows = np.concatenate([said.rows + step * i for i in range(_TIMES)])
    return Predicted(np.concatenate([said.values] * _TIMES), rows, labels, said.context)


def _saving(opened: Opened, found: Rehearsed, loading: float) -> float:
    """Seconds of writing the checkpoint, opening it again and comparing it."""
    model, batches = found.pruned.model, found.calibrated.data.batches
    size = stored_bytes(model, opened.dtype)
    if size > _MOST_BYTES_WRITTEN:
        return 2 * loading * size / stored_bytes(opened.model, opened.dtype)
    clock = StageClock(Silent())
    with clock.stage("save"), temporary_folder() as folder:
        round_weights(model, opened.dtype)
        write_checkpoint(folder, model, found.pruned.sublayers, opened.processor, dtype=opened.dtype)
        verify(folder, model, batches[-BATCHES_TO_VERIFY:])
    return clock.seconds["save"]
