"""The main job: a checkpoint and rows in, a verified pruned checkpoint and its report out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from torch import nn

from faster_pruner.api.corpus import Corpus, Texts, Vocabulary, as_vocabulary
from faster_pruner.api.dense_scores import asked as asked_of_dense
from faster_pruner.api.dense_scores import keys_of
from faster_pruner.api.distilling import training_for
from faster_pruner.api.job import Dense, Job, subject_of, usual_inputs, with_measured_multiple
from faster_pruner.api.latency import check_runtime
from faster_pruner.api.outcome import PruneResult, completed, cut_to, measured, save, stored_bytes
from faster_pruner.api.resuming import bytes_to_keep, going_on, journal_for, with_scores
from faster_pruner.api.rows import (
    calibration_rows,
    describe,
    evaluation_splits,
    objective_for,
    rows_to_judge,
    unlabelled_rows,
)
from faster_pruner.api.run import Run
from faster_pruner.api.smaller_vocabulary import Smaller, choose_tokens, smaller_in_memory
from faster_pruner.api.vocabulary import VocabularyResult, tokens_pruned
from faster_pruner.api.weights import check_in_files, memory_for
from faster_pruner.checkpoint.companions import NONE, read_companions
from faster_pruner.checkpoint.opening import Opened, open_checkpoint
from faster_pruner.checkpoint.saving import check_savable
from faster_pruner.checkpoint.screening import as_place
from faster_pruner.costs.budget import Budget, as_any_budget, in_amounts, spendings
from faster_pruner.data.sources import Source
from faster_pruner.data.tasks import Data, Task, as_data
from faster_pruner.errors import BudgetError, DataError, OptionError, OutputError
from faster_pruner.host.folders import Output, as_output, replacing
from faster_pruner.host.marks import KEPT_FILE
from faster_pruner.host.places import public_name
from faster_pruner.host.ranks import Ranks, joined
from faster_pruner.host.working import WorkingFolder
from faster_pruner.method.algorithm import calibrate
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.method.kept import About, Kept, are_kept, kept_bytes, save_statistics
from faster_pruner.model.precision import choose_precision, usual_torch
from faster_pruner.options import CalibrationOptions, Distillation, Method, as_calibration, as_distillation, as_method
from faster_pruner.progress import StageClock
from faster_pruner.report.card import read_licence
from faster_pruner.results import PruneReport


@overload
def prune(
    model: str | Path,
    data: str | Data | None = None,
    *,
    macs: float | Budget,
    output: str | Path | Output | None = None,
    method: Method | str = "default",
    calibration: CalibrationOptions | None = None,
    run: Run | None = None,
    vocabulary: None = None,
    distillation: Distillation | int | str | None = None,
) -> PruneResult: ...


@overload
def prune(
    model: str | Path,
    data: str | Data | None = None,
    *,
    macs: float | Budget,
    output: str | Path | Output | None = None,
    method: Method | str = "default",
    calibration: CalibrationOptions | None = None,
    run: Run | None = None,
    vocabulary: Texts | Vocabulary | None = None,
    distillation: Distillation | int | str | None = None,
) -> PruneResult | VocabularyResult: ...


@usual_torch()
def prune(
    model: str | Path,
    data: str | Data | None = None,
    *,
    macs: float | Budget,
    output: str | Path | Output | None = None,
    method: Method | str = "default",
    calibration: CalibrationOptions | None = None,
    run: Run | None = None,
    vocabulary: Texts | Vocabulary | None = None,
    distillation: Distillation | int | str | None = None,
) -> PruneResult | VocabularyResult:
    """Prune a fine-tuned checkpoint to a budget; evaluate, time, save, reopen and verify it.

    Args:
        model: local folder or hub id of a fine-tuned model.
        data: what it is calibrated and evaluated on: a known task by name (its rows come from the hub), or a `Data`
            that says where rows lie and which columns hold what. None will do where only the vocabulary is pruned.
        macs: share of the encoder's MACs to keep, inside (0, 1), or a `Budget`, which may limit other costs, too, and
            says which sizes are allowed. 1 with a vocabulary prunes nothing else: no rows are read, and what comes back
            is a `VocabularyResult`.
        output: folder for the pruned checkpoint and `result.json`, or an `Output` that may also keep the statistics,
            and what is done, for a run that goes on after an interruption; None keeps the result in memory only.
        method: a preset by name, or a `Method`.
        calibration: size and seed of the calibration set, precision and memory of the passes.
        run: device and listener.
        vocabulary: texts, or a `Vocabulary`: tokens that they do not need are removed first, as by `prune_vocabulary`.
            Whatever is measured is compared with the model as it was given, with all its tokens.
        distillation: after the recovery, train towards the dense model on so many rows without labels (16384), or for
            so long ("5min"), or a `Distillation`; None for none. It never makes the model worse on rows that are held
            out. An interrupted run that is started again goes on with it where it was.

    Where a launcher (torchrun, accelerate) has started several processes, all of them call this alike and share the
    calibration; the first one evaluates and writes, and all return the same.

    Raises:
        InputError: see its subclasses in `errors`.
        ProcessError: another process of the run failed or is gone.
        VerificationError: the saved checkpoint did not reproduce the model in memory.
    """
    run = run or Run()
    with joined(run.device) as ranks:
        asked = Asked(
            place=as_place(model),
            data=Data() if data is None else as_data(data),
            budget=as_any_budget(macs),
            output=as_output(output),
            method=as_method(method),
            calibration=as_calibration(calibration),
            vocabulary=None if vocabulary is None else as_vocabulary(vocabulary),
            distillation=as_distillation(distillation),
        )
        asked.check()
        asked.check_shared(ranks)
        if asked.vocabulary is not None and not asked.budget.prunes:
            return tokens_pruned(asked.place, asked.vocabulary, asked.output, run)
        shared = run.shared_by(ranks)
        with memory_for(asked.calibration, asked.place, shared.on(), ranks):
            return _pruned(asked, shared)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What `prune` is asked for; see there."""

    place: str
    data: Data
    budget: Budget
    output: Output
    method: Method
    calibration: CalibrationOptions
    vocabulary: Vocabulary | None = None
    distillation: Distillation | None = None

    def check(self) -> None:
        """Before any work. Raises BudgetError, OptionError, OutputError."""
        if self.vocabulary is not None:
            self.vocabulary.check(self.output, reads=self.place)
            if not self.budget.prunes:
                self.output.check_anew("pruning the vocabulary alone")
        elif not self.budget.prunes:
            raise BudgetError(
                "the share of the encoder's MACs to keep is 1, and no vocabulary is given, so that nothing would be "
                "pruned; it must be between 0 and 1, for instance 0.5 for half, or give texts whose tokens are to stay",
                option="vocabulary",
            )

    def check_shared(self, ranks: Ranks) -> None:
        """Raise OptionError where several processes are to share what one must do."""
        parts = (
            ("pruning the vocabulary", "vocabulary", self.vocabulary is not None),
            ("keeping the statistics", "keep_statistics", self.output.statistics is not None),
            ("a run that goes on after an interruption", "resume", self.output.resume),
            ("a distillation", "distill", self.distillation is not None),
            ("a budget in time", "latency", self.budget.latency is not None),
            ("a budget by what may be lost", "max_drop", self.budget.max_drop is not None),
        )
        for what, option, wanted in parts:
            if wanted and not ranks.alone:
                raise OptionError(
                    f"{what} takes one process, and {ranks.count} were started: start one, or leave it out",
                    option=option,
                )


def _pruned(asked: Asked, run: Run) -> PruneResult:
    """Open, calibrate, cut, measure and save. Raises as `prune` does."""
    clock = run.clock(run.on())
    asked.output.check(reads=[asked.place], rows=asked.data.folder)
    with going_on(asked.output) as folder:
        job = prepared(asked, run, clock, folder)
        with_scores(job, clock)
        keep_statistics(job, asked.output, clock)
        return carried_out(job, asked.output, clock)


def prepared(asked: Asked, run: Run, clock: StageClock, folder: WorkingFolder | None = None) -> Job:
    """Open, and calibrate, for an output that was checked. Raises as `prune` does.

    Args:
        asked: what for.
        run: device and listener.
        clock: told about the stages.
        folder: where what is done is kept for another run, and what an earlier one has done.
    """
    place, given, how, options, target = asked.place, asked.data, asked.method, asked.calibration, asked.output
    task = describe(given)
    source = given.source(task)
    device = run.on()
    check_in_files(asked.budget, asked.distillation)
    with clock.stage("load"):
        corpus = None if asked.vocabulary is None else asked.vocabulary.read()
        dense = open_checkpoint(place, device=device, pooling=given.pooling, dims=given.dims)
        licence = read_licence(place)
        if target.path is not None:
            check_savable(dense.model, dense.processor)
    smaller = None if corpus is None else _with_fewer_tokens(place, dense, corpus, clock)
    # from here on it is the smaller one that is pruned: it returns the same for the texts of the corpus
    opened = dense if smaller is None else smaller.opened
    with clock.stage("rows"):
        objective = objective_for(opened, task)
        judges = None
        if asked.budget.max_drop is not None:
            options, judges = rows_to_judge(source, task, opened, options)
        rows = calibration_rows(source, task, opened, options, labelled=how.labels)
        splits = evaluation_splits(source, task, opened, options.max_length)
        subject = subject_of(opened, objective, how.attention_unit)
        before = None if smaller is None else _as_given(dense, smaller, source, task, options)
        training = None
        if asked.distillation is not None:
            unlabelled = unlabelled_rows(source, task, opened, options, asked.distillation)
            training = training_for(asked.distillation, unlabelled, target)
        companions = NONE if target.path is None else read_companions(place) if smaller is None else smaller.companions
    # with fewer tokens it is another model that is compared with
    scored = target.statistics_path is not None or (target.resume and before is None)
    journal = journal_for(folder, opened, subject, how, options, calibrated_on=rows)
    statistics = kept_bytes(rows, subject, how, choose_precision(options.precision, device))
    target.check_space(
        folder=stored_bytes(opened.model, opened.dtype) + companions.bytes,
        statistics=statistics,
        kept=bytes_to_keep(opened.model, statistics, folder),
    )
    check_runtime(asked.budget, device)
    _check_alike(rows.digest(), run.ranks)
    budget = run.ranks.lead(lambda: with_measured_multiple(asked.budget, subject, clock))
    calibrated = calibrate(subject, rows, how, options, clock=clock, ranks=run.ranks, journal=journal)
    if before is not None:
        budget = _of_the_whole(budget, before.model, calibrated)
    return Job(
        name=public_name(place),
        place=place,
        task=task.name or objective.pipeline_tag or objective.name,
        calibrated=calibrated,
        budget=budget,
        method=how,
        options=options,
        calibration_hash=rows.digest(),
        truncated=rows.truncated,
        timed_on=usual_inputs(opened, rows),
        judges=judges,
        processor=opened.processor,
        companions=companions,
        head=opened.head,
        splits=splits,
        licence=licence,
        given=before,
        vocabulary=None if smaller is None else smaller.report,
        training=training,
        score_keys=keys_of(opened, objective, splits) if scored else {},
        journal=journal,
    )


def _check_alike(digest: str, ranks: Ranks) -> None:
    """Raise DataError where processes have read different rows."""
    differ = [rank for rank, found in enumerate(ranks.gather(digest)) if found != digest]
    if differ:
        raise DataError(f"process {ranks.rank} has read other calibration rows than {differ}; give all the same data")


def _with_fewer_tokens(place: str, dense: Opened, corpus: Corpus, clock: StageClock) -> Smaller:
    """The checkpoint with the tokens of a corpus, proved. Raises InputError, VerificationError."""
    with clock.stage("vocabulary"):
        return smaller_in_memory(choose_tokens(place, dense, corpus))


def _as_given(dense: Opened, smaller: Smaller, source: Source, task: Task, options: CalibrationOptions) -> Dense:
    """The model with all its tokens, and the rows as its own tokenizer encodes them. Raises DataError."""
    return Dense(
        model=dense.model,
        objective=objective_for(dense, task),
        splits=evaluation_splits(source, task, dense, options.max_length),
        timed_on=usual_inputs(dense),
        new_ids=smaller.choice.new_ids,
    )


def _of_the_whole(budget: Budget, dense: nn.Module, calibrated: Calibrated) -> Budget:
    """A budget whose shares are those of the model with all its tokens. Raises BudgetError where that meets it."""
    size, lengths, sublayers = calibrated.subject.dtype.itemsize, calibrated.data.lengths, calibrated.sublayers
    found = in_amounts(budget, dense, sublayers, lengths, bytes_each=size)
    whole = {s.name: s.units for s in sublayers}
    limits = spendings(found, calibrated.model, sublayers, whole, lengths, bytes_each=size)
    if all(limit.pruned <= limit.asked for limit in limits):
        raise BudgetError(
            "with fewer tokens the model meets this budget already: ask for less, or prune the vocabulary alone"
        )
    return found


def keep_statistics(job: Job, output: Output, clock: StageClock) -> None:
    """Save the statistics for later cuts, where they are asked for."""
    if output.statistics_path is None:
        return
    about = About(model=job.place, task=job.task, calibration_hash=job.calibration_hash, truncated=job.truncated)
    with clock.stage("evaluation"):
        scores = asked_of_dense(job)
    kept = Kept(job.calibrated, job.method, job.options, scores)
    if (output.statistics_path / KEPT_FILE).is_file():
        # an interrupted run has come so far
        if not are_kept(output.statistics_path, kept, about):
            raise OutputError(
                f"folder {str(output.statistics_path)!r} holds statistics of another run, and statistics replace "
                "nothing; choose another"
            )
        return
    with clock.stage("keep statistics"), replacing(output.statistics_path, overwrite=False) as staging:
        save_statistics(staging, kept, about)


def carried_out(job: Job, output: Output, clock: StageClock) -> PruneResult:
    """Cut and measure, and save where that is asked for."""
    ranks = job.calibrated.data.ranks
    done = cut_to(job, clock)

    def measured_and_saved() -> PruneReport:
        outcome = measured(done, clock)
        return outcome.report if output.path is None else save(done.job, outcome, output, clock)

    report = ranks.finish(measured_and_saved)
    if not ranks.first:
        completed(done)
    model: Any = done.pruned.model
    assert job.processor is not None
    return PruneResult(model, job.processor, report, job.vocabulary)
