"""Cut another budget from kept statistics: no calibration data, no statistics pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from faster_pruner.api.dense_scores import keys_of, remembered
from faster_pruner.api.distilling import training_for
from faster_pruner.api.job import Job, Training, subject_of, usual_inputs, with_measured_multiple
from faster_pruner.api.latency import check_runtime
from faster_pruner.api.outcome import PruneResult, stored_bytes
from faster_pruner.api.prune import carried_out
from faster_pruner.api.resuming import bytes_to_keep, going_on, journal_for, with_scores
from faster_pruner.api.rows import describe, evaluation_splits, objective_for, unlabelled_rows
from faster_pruner.api.run import Run
from faster_pruner.api.smallest import check_judged
from faster_pruner.api.weights import check_in_files, memory_for
from faster_pruner.checkpoint.companions import NONE, read_companions
from faster_pruner.checkpoint.opening import Opened, check_there, open_checkpoint
from faster_pruner.checkpoint.saving import check_savable
from faster_pruner.checkpoint.screening import as_place
from faster_pruner.checks import whole_number
from faster_pruner.costs.budget import Budget, as_budget
from faster_pruner.data.sources import Source
from faster_pruner.data.tasks import Data, Task, as_data
from faster_pruner.errors import CheckpointError, OptionError
from faster_pruner.host.folders import Output, as_output
from faster_pruner.host.launch import only_one
from faster_pruner.host.marks import KEPT_FILE
from faster_pruner.host.places import public_name
from faster_pruner.host.working import digest_of
from faster_pruner.method.kept import About, load_statistics, read_about, read_method
from faster_pruner.model.precision import usual_torch
from faster_pruner.objectives.registry import KINDS
from faster_pruner.options import CalibrationOptions, Distillation, as_distillation
from faster_pruner.progress import StageClock
from faster_pruner.report.card import read_licence


@usual_torch()
def cut_again(
    statistics: str | Path,
    *,
    macs: float | Budget,
    output: str | Path | Output | None = None,
    data: str | Data | None = None,
    model: str | Path | None = None,
    memory_limit: int | None = None,
    run: Run | None = None,
    distillation: Distillation | int | str | None = None,
) -> PruneResult:
    """Cut another budget from kept statistics.

    Args:
        statistics: folder that `prune` kept (`Output.statistics`).
        macs: as in `prune`.
        output: as in `prune`.
        data: evaluate on these; None evaluates nothing. Where the run that kept the statistics evaluated on the same
            rows, the dense model is not asked again.
        model: the dense checkpoint; by default where it was then.
        memory_limit: as in `CalibrationOptions`.
        run: as in `prune`.
        distillation: as in `prune`, on training rows of `data`.

    Raises:
        InputError: see its subclasses in `errors`.
        VerificationError: the saved checkpoint did not reproduce the model in memory.
    """
    only_one("a cut from kept statistics")
    whole_number("memory limit", memory_limit, 0, optional=True)
    run, folder = run or Run(), Path(statistics)
    budget, target, how_to_train = as_budget(macs), as_output(output), as_distillation(distillation)
    given = None if data is None else as_data(data)
    task = None if given is None else describe(given)
    source = None if given is None or task is None else given.source(task)
    about = read_about(folder)
    asked = _as_it_was(task, about)
    name = _where_it_was(about) if model is None else as_place(model)
    target.check(reads=[name, folder], rows=None if given is None else given.folder)
    device = run.on()
    check_runtime(budget, device)
    check_judged(budget)
    with memory_for(CalibrationOptions(memory_limit=memory_limit), name, device):
        check_in_files(budget, how_to_train)
        with (clock := run.clock(device)).stage("load"):
            how = given or Data()
            opened = open_checkpoint(name, device=device, pooling=how.pooling, dims=how.dims)
            objective = objective_for(opened, asked)
            subject = subject_of(opened, objective, read_method(folder).attention_unit)
            kept = load_statistics(folder, subject, memory_limit=memory_limit)
            splits = {} if source is None else evaluation_splits(source, asked, opened, kept.options.max_length)
            training = _training(how_to_train, source, asked, opened, options=kept.options, target=target)
            licence = read_licence(name)
            companions = NONE if target.path is None else read_companions(name)
            if target.path is not None:
                check_savable(opened.model, opened.processor)
        size = stored_bytes(opened.model, opened.dtype) + companions.bytes
        target.check_space(folder=size, kept=bytes_to_keep(opened.model))
        keys = keys_of(opened, objective, splits)
        job = Job(
            name=public_name(name),
            place=name,
            task=about.task if task is None else task.name or about.task,
            calibrated=kept.calibrated,
            budget=with_measured_multiple(budget, subject, clock),
            method=kept.method,
            options=kept.options,
            calibration_hash=about.calibration_hash,
            truncated=about.truncated,
            timed_on=usual_inputs(opened, next(iter(splits.values()), None)),
            processor=opened.processor,
            companions=companions,
            head=opened.head,
            splits=splits,
            licence=licence,
            training=training,
            said=remembered(kept.scores, keys, splits) if kept.scores else {},
            score_keys=keys if target.resume else {},
        )
        return _carried_out(job, opened, folder, target, clock)


def _carried_out(job: Job, opened: Opened, statistics: Path, target: Output, clock: StageClock) -> PruneResult:
    """Carry it out, or go on where an earlier run was interrupted."""
    with going_on(target) as folder:
        known = digest_of(statistics / KEPT_FILE)
        subject = job.calibrated.subject
        journal = journal_for(folder, opened, subject, job.method, job.options, calibrated_on=known)
        job = replace(job, journal=journal)
        with_scores(job, clock)
        return carried_out(job, target, clock)


def _training(
    how: Distillation | None,
    source: Source | None,
    task: Task,
    opened: Opened,
    *,
    options: CalibrationOptions,
    target: Output,
) -> Training | None:
    """The distillation to come, if any. Raises OptionError where nobody says where its rows are."""
    if how is None:
        return None
    if source is None:
        raise OptionError("a distillation needs rows to train on; say where they are", option="data")
    return training_for(how, unlabelled_rows(source, task, opened, options, how), target)


def _as_it_was(task: Task | None, about: About) -> Task:
    """A task, of the kind that the statistics were taken for where it says nothing else: some models can be for two."""
    found = task or Task(name="")
    return replace(found, kind=found.kind or (about.task if about.task in KINDS else ""))


def _where_it_was(about: About) -> str:
    """The dense checkpoint, if it is still where it was when the statistics were taken. Raises CheckpointError."""
    try:
        place = as_place(about.model)
        check_there(place)
    except CheckpointError as error:
        raise CheckpointError(
            f"the dense model is not where it was when the statistics were taken: {error}; say where it is now",
            option="model",
        ) from error
    return place
