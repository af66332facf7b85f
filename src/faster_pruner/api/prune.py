"""The main job: a checkpoint and rows in, a verified pruned checkpoint and its report out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from faster_pruner.api.job import Job, subject_of, usual_inputs, with_measured_multiple
from faster_pruner.api.outcome import PruneResult, cut_and_measure, save, stored_bytes
from faster_pruner.api.rows import calibration_rows, describe, evaluation_splits, objective_for
from faster_pruner.api.run import Run
from faster_pruner.checkpoint.companions import NONE, read_companions
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.checkpoint.saving import check_savable
from faster_pruner.checkpoint.screening import as_place
from faster_pruner.costs.budget import Budget, as_budget
from faster_pruner.data.tasks import Data, as_data
from faster_pruner.host.folders import Output, as_output, replacing
from faster_pruner.host.places import public_name
from faster_pruner.method.algorithm import calibrate
from faster_pruner.method.kept import About, kept_bytes, save_statistics
from faster_pruner.model.precision import choose_precision, usual_torch
from faster_pruner.options import CalibrationOptions, Method, as_calibration, as_method
from faster_pruner.progress import StageClock
from faster_pruner.report.card import read_licence


@usual_torch()
def prune(
    model: str | Path,
    data: str | Data,
    *,
    macs: float | Budget,
    output: str | Path | Output | None = None,
    method: Method | str = "default",
    calibration: CalibrationOptions | None = None,
    run: Run | None = None,
) -> PruneResult:
    """Prune a fine-tuned checkpoint to a budget; evaluate, time, save, reopen and verify it.

    Args:
        model: local folder or hub id of a fine-tuned model.
        data: what it is calibrated and evaluated on: a known task by name (its rows come from the hub), or a `Data`
            that says where rows lie and which columns hold what.
        macs: share of the encoder's MACs to keep, inside (0, 1), or a `Budget`, which may limit other costs, too, and
            says which sizes are allowed.
        output: folder for the pruned checkpoint and `result.json`, or an `Output` that may also keep the statistics;
            None keeps the result in memory only.
        method: a preset by name, or a `Method`.
        calibration: size and seed of the calibration set, precision and memory of the passes.
        run: device and listener.

    Raises:
        InputError: see its subclasses in `errors`.
        VerificationError: the saved checkpoint did not reproduce the model in memory.
    """
    place = as_place(model)
    run, options, how = run or Run(), as_calibration(calibration), as_method(method)
    budget, target, given = as_budget(macs), as_output(output), as_data(data)
    task = describe(given)
    source = given.source(task)
    target.check(reads=[place], rows=given.folder)
    device = run.on()
    clock = run.clock(device)
    with clock.stage("load"):
        opened = open_checkpoint(place, device=device, pooling=given.pooling, dims=given.dims)
        objective = objective_for(opened, task)
        rows = calibration_rows(source, task, opened, options, labelled=how.labels)
        splits = evaluation_splits(source, task, opened, options.max_length)
        licence = read_licence(place)
        companions = NONE if target.path is None else read_companions(place)
        if target.path is not None:
            check_savable(opened.model, opened.processor)
        subject = subject_of(opened, objective)
    precision = choose_precision(options.precision, device)
    target.check_space(
        folder=stored_bytes(opened.model, opened.dtype) + companions.bytes,
        statistics=kept_bytes(rows, subject.sublayers, how, precision),
    )
    budget = with_measured_multiple(budget, subject, clock)
    calibrated = calibrate(subject, rows, how, options, clock=clock)
    job = Job(
        name=public_name(place),
        place=place,
        task=task.name or objective.pipeline_tag or objective.name,
        calibrated=calibrated,
        budget=budget,
        method=how,
        options=options,
        calibration_hash=rows.digest(),
        timed_on=usual_inputs(opened, rows),
        processor=opened.processor,
        companions=companions,
        head=opened.head,
        splits=splits,
        licence=licence,
    )
    keep_statistics(job, target, clock)
    return carried_out(job, target, clock)


def keep_statistics(job: Job, output: Output, clock: StageClock) -> None:
    """Save the statistics for later cuts, where they are asked for."""
    if output.statistics_path is None:
        return
    about = About(model=job.place, task=job.task, calibration_hash=job.calibration_hash)
    with clock.stage("keep statistics"), replacing(output.statistics_path, overwrite=False) as staging:
        save_statistics(staging, job.calibrated, job.method, job.options, about)


def carried_out(job: Job, output: Output, clock: StageClock) -> PruneResult:
    """Cut and measure, and save where that is asked for."""
    outcome = cut_and_measure(job, clock)
    report = outcome.report if output.path is None else save(job, outcome, output, clock)
    model: Any = outcome.pruned.model
    assert job.processor is not None
    return PruneResult(model, job.processor, report)
