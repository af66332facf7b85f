"""From a job to its result: cut, evaluate, time, save, reopen and verify."""

from __future__ import annotations

import copy
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from faster_pruner.api import latency, warnings
from faster_pruner.api.distilling import distilled, forget
from faster_pruner.api.job import Job
from faster_pruner.api.smallest import smallest
from faster_pruner.checkpoint.saving import round_weights, verify, weight_bytes, write_checkpoint
from faster_pruner.checkpoint.sentence import write_head
from faster_pruner.checkpoint.sizes import mark_as_pruned, opens_with_stock_class
from faster_pruner.costs.budget import spendings
from faster_pruner.costs.cost import Macs, Parameters, total
from faster_pruner.errors import DataError, InputError, one_line
from faster_pruner.host.devices import environment
from faster_pruner.host.folders import Output, replacing
from faster_pruner.host.mapped import are_in_files
from faster_pruner.host.marks import FILES, MASKS_FILE, PAGE_FILE, RESULT_FILE, names_in
from faster_pruner.method.calibrated import Pruned
from faster_pruner.model.passes import device_of
from faster_pruner.model.spec import Sublayer
from faster_pruner.objectives.evaluation import confidence, evaluate, predict_rows
from faster_pruner.objectives.objective import ByRow, Objective, OfRows, Predicted
from faster_pruner.progress import Progress, StageClock
from faster_pruner.report.card import CARD_FILE, minimal_card, model_card
from faster_pruner.report.page.page import page
from faster_pruner.results import (
    Confidence,
    DistillationResult,
    Evaluation,
    Latency,
    Lengths,
    LimitResult,
    Probe,
    PruneReport,
    SizeResult,
    strict_json,
)
from faster_pruner.runtimes.timing import measure
from faster_pruner.vocabulary.measured import VOCABULARY, VocabularyReport

if TYPE_CHECKING:
    from faster_pruner.checkpoint.processors import Processor

# Batches of the calibration set that the reopened checkpoint is compared on.
BATCHES_TO_VERIFY = 2


@dataclass(frozen=True)
class PruneResult:
    """What `prune` gives back.

    Attributes:
        model: the pruned model, a stock transformers class.
        processor: its tokenizer, image processor or feature extractor.
        report: everything that was measured; the same as `result.json`.
        vocabulary: what was measured of its tokens, where those were pruned, too.
    """

    model: PreTrainedModel
    processor: Processor
    report: PruneReport
    vocabulary: VocabularyReport | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor of a text model. Raises AttributeError for any other model."""
        if not isinstance(self.processor, PreTrainedTokenizerBase):
            raise AttributeError(f"a {type(self.model).__name__} has no tokenizer; what it has is its processor")
        return self.processor


@dataclass(frozen=True)
class Outcome:
    """A pruned model in memory, and what was measured of it."""

    pruned: Pruned
    report: PruneReport


@dataclass(frozen=True)
class Cut:
    """A pruned model of which nothing has been measured yet.

    Attributes:
        job: with what was settled on the way.
        pruned: the model.
        times: limits that were measured, and what is to be said of them.
        probes: sizes that were tried.
        processes: seconds by stage that each process took, where several shared the work.
    """

    job: Job
    pruned: Pruned
    times: latency.Measured
    probes: list[Probe]
    processes: list[dict[str, float]]


def cut_and_measure(job: Job, clock: StageClock) -> Outcome:
    """Cut to the job's budget; evaluate and time the dense and the pruned model.

    Raises:
        InputError: see `method.algorithm.cut`.
    """
    return measured(cut_to(job, clock), clock)


def cut_to(job: Job, clock: StageClock) -> Cut:
    """Cut to the job's budget. Raises InputError, see `method.algorithm.cut`."""
    found = Cut(*_cut(job, clock), processes=[])
    ranks = job.calibrated.data.ranks
    if ranks.alone:
        return found
    own = {stage: round(seconds, 3) for stage, seconds in (*clock.seconds.items(), ("waiting", ranks.waited))}
    return replace(found, processes=ranks.gather(own))


def completed(cut: Cut) -> None:
    """Give the weights the precision, and the config the sizes, that the checkpoint has."""
    round_weights(cut.pruned.model, cut.job.calibrated.subject.dtype)
    mark_as_pruned(cut.pruned.model, cut.pruned.sublayers)


def measured(cut: Cut, clock: StageClock) -> Outcome:
    """Evaluate and time the dense and the pruned model."""
    job, pruned, times = cut.job, cut.pruned, cut.times
    measured = _Measured()
    measured.warnings += times.warnings
    distillation, recovered = (None, None) if job.training is None else _distil(job, pruned, measured, clock)
    completed(cut)
    with clock.stage("evaluation", total=(2 if recovered is None else 3) * len(job.splits)):
        for split in job.splits:
            with measured.unless_it_fails(f"split {split!r} could not be evaluated"):
                _evaluate(job, pruned.model, split, measured, recovered=recovered, progress=clock.progress)
    _time(job, pruned, measured, clock)
    report = replace(
        _report(job, pruned, times.limits),
        before=measured.before,
        after=measured.after,
        confidence=measured.confidence,
        latency=measured.latency,
        probes=cut.probes,
        processes=cut.processes,
        distillation=None if distillation is None else replace(distillation, recovered=measured.recovered),
        seconds=clock.seconds,
        resumed=list(job.journal.taken_over),
    )
    said = [*warnings.of_the_result(report), *warnings.of_the_rows(job), *report.warnings, *measured.warnings]
    said += warnings.of_the_journal(job.journal)
    return Outcome(pruned, replace(report, warnings=said))


def _cut(job: Job, clock: StageClock) -> tuple[Job, Pruned, latency.Measured, list[Probe]]:
    """Cut to what may be counted, measured or lost; the job with what was settled on the way."""
    if job.budget.max_drop is not None:
        found = smallest(job, clock)
        return found.job, found.pruned, latency.Measured([], []), found.probes
    job, _ = latency.with_times(job, clock)
    return job, *latency.cut_in_time(job, clock), []


@dataclass
class _Measured:
    """What could be measured of a model that is pruned already: a measurement that fails costs no more than itself."""

    before: dict[str, Evaluation] = field(default_factory=dict[str, Evaluation])
    after: dict[str, Evaluation] = field(default_factory=dict[str, Evaluation])
    recovered: dict[str, Evaluation] = field(default_factory=dict[str, Evaluation])
    confidence: dict[str, Confidence] = field(default_factory=dict[str, Confidence])
    latency: list[Latency] = field(default_factory=list[Latency])
    warnings: list[str] = field(default_factory=list[str])

    @contextmanager
    def unless_it_fails(self, what: str) -> Generator[None]:
        """An error inside becomes a warning that starts with `what`."""
        try:
            yield
        except Exception as error:  # metrics, objectives and devices are other people's: anything can be wrong
            self.warnings.append(f"{what}: {one_line(error)}")


def _distil(
    job: Job, pruned: Pruned, measured: _Measured, clock: StageClock
) -> tuple[DistillationResult | None, nn.Module | None]:
    """Train what was cut, if that works; gives back the recovered model, too, where it is another one."""
    recovered = copy.deepcopy(pruned.model)
    try:
        found = distilled(job, pruned, clock)
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:  # out of memory, or a device's own: the recovered model is there
        pruned.model.load_state_dict(recovered.state_dict())
        measured.warnings.append(f"the distillation failed, and nothing of it was kept: {one_line(error)}")
        return None, None
    round_weights(recovered, job.calibrated.subject.dtype)
    return found, recovered if found.kept else None


def _time(job: Job, pruned: Pruned, measured: _Measured, clock: StageClock) -> None:
    """How long the dense and the pruned model take."""
    if are_in_files():
        measured.warnings.append(
            "speed was not measured: weights were kept in files, where a forward waits for the disk; measure it where "
            "the model fits into memory (faster_pruner.bench)"
        )
        return
    with clock.stage("latency", total=len(job.timed_on)), measured.unless_it_fails("latency could not be measured"):
        measured.latency = measure(
            job.dense.model,
            pruned.model,
            job.timed_on,
            dense_inputs=job.dense.timed_on,
            tokens=round(next(iter(job.calibrated.data.lengths.values()))),
            progress=clock.progress,
        )


def _evaluate(
    job: Job, pruned: nn.Module, split: str, measured: _Measured, *, recovered: nn.Module | None, progress: Progress
) -> None:
    """Metrics of one split before and after, with their confidence; of the recovered model where that was trained."""
    dense, objective = job.dense, job.calibrated.subject.objective
    sides = (
        (dense.model, dense.objective, dense.splits[split]),
        (pruned, objective, job.splits[split]),
    )
    predicted, found = list[Predicted](), list[Evaluation]()
    for model, own, rows in sides:
        known = job.said.get(split) if model is dense.model else None
        predicted.append(predict_rows(model, own, rows) if known is None else known)
        found.append(evaluate(predicted[-1], own, split=split, rows=rows.judged, dense=predicted[0]))
        progress.step()
    job.said[split] = predicted[0]
    # both or neither: a metric is read against the other one
    measured.before[split], measured.after[split] = found
    if recovered is not None:
        with measured.unless_it_fails(f"split {split!r} could not be evaluated before the distillation"):
            rows = job.splits[split]
            own = predict_rows(recovered, objective, rows)
            measured.recovered[split] = evaluate(own, objective, split=split, rows=rows.judged, dense=predicted[0])
        progress.step()
    primary = found[1].primary
    with measured.unless_it_fails(f"split {split!r}: {primary} has no confidence interval"):
        _check_pairs(objective, primary, *predicted)
        measured.confidence[split] = confidence(primary, objective, *predicted)


def _check_pairs(objective: Objective, metric: str, before: Predicted, after: Predicted) -> None:
    """Raise DataError where a metric of single predictions finds no pairs: another tokenizer may make more of a row."""
    by_row = isinstance(objective.metrics[metric], ByRow | OfRows)
    if not by_row and not np.array_equal(before.rows, after.rows):
        raise DataError("with its new tokens the pruned model makes other numbers of predictions of a row")


def _report(job: Job, pruned: Pruned, times: Sequence[LimitResult]) -> PruneReport:
    """What is known before predictions are compared; `times` are limits that were measured."""
    calibrated = job.calibrated
    subject, lengths = calibrated.subject, calibrated.data.lengths
    taking_part = {s.name for s in calibrated.sublayers}
    left = [s for s in pruned.sublayers if s.name in taking_part]
    dense = _size(job.dense.model, calibrated.sublayers, lengths, subject.dtype)
    small = _size(pruned.model, left, lengths, subject.dtype)
    keeps = {s.name: s.units for s in left}
    bytes_each = subject.dtype.itemsize
    limits = spendings(
        job.budget,
        subject.model,
        calibrated.sublayers,
        keeps,
        lengths,
        bytes_each=bytes_each,
        dense=job.dense.model,
    )
    return PruneReport(
        model=job.name,
        task=job.task,
        preset=job.method.name,
        options={
            "budget": job.budget.to_dict(),
            "method": job.method.to_dict(),
            "calibration": asdict(job.options),
            "distillation": None if job.training is None else asdict(job.training.how),
        },
        mean_length=next(iter(lengths.values())),
        macs_asked=job.budget.macs,
        macs_kept=small.macs / dense.macs,
        dense=dense,
        pruned=small,
        sublayers=pruned.results,
        seconds={},
        limits=[*limits, *times],
        environment=environment(device_of(subject.model)),
        calibration_hash=job.calibration_hash,
        calibration_rows=calibrated.data.rows,
        precision=calibrated.data.setting.precision,
        lengths=Lengths.of(calibrated.row_lengths, truncated=job.truncated),
        opens_plain=opens_with_stock_class(pruned.model, pruned.sublayers),
        opener=subject.objective.opener or subject.objective.auto_class,
        warnings=warnings.of_the_method(calibrated, pruned.results),
    )


def _size(
    model: nn.Module, sublayers: Sequence[Sublayer], lengths: Mapping[str, float], dtype: torch.dtype
) -> SizeResult:
    """Size of a model."""
    return SizeResult(
        macs=total(Macs(lengths), sublayers),
        encoder_parameters=round(total(Parameters(), sublayers)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes=stored_bytes(model, dtype),
    )


def stored_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes that the weights take when stored in `dtype`."""
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def save(job: Job, outcome: Outcome, output: Output, clock: StageClock) -> PruneReport:
    """Write beside, reopen, verify, then move into place: the report of what is there now.

    Raises:
        OutputError: the folder cannot be written.
        VerificationError: the saved checkpoint did not reproduce the model in memory.
    """
    folder = output.path
    assert folder is not None
    pruned, dtype = outcome.pruned, job.calibrated.subject.dtype
    with replacing(folder, overwrite=output.overwrite) as staging:
        with clock.stage("save and verify"):
            write_checkpoint(
                staging, pruned.model, pruned.sublayers, job.processor, dtype=dtype, companions=job.companions
            )
            if job.head is not None:
                write_head(staging, job.head)
            verified = verify(staging, pruned.model, job.calibrated.data.batches[-BATCHES_TO_VERIFY:])
        size = replace(outcome.report.pruned, bytes=weight_bytes(staging))
        report = replace(outcome.report, verified=verified, pruned=size, seconds=clock.seconds)
        written = _write_reports(staging, job, pruned, report, name=folder.name)
    forget(job)
    return written


def _write_reports(folder: Path, job: Job, pruned: Pruned, report: PruneReport, *, name: str) -> PruneReport:
    """masks.json, the card, the page, and result.json, which lists them all; returns the report that it holds."""
    bits = {sublayer: "".join(map(str, mask.int().tolist())) for sublayer, mask in pruned.masks.items()}
    (folder / MASKS_FILE).write_text(json.dumps(bits, indent=0) + "\n")
    try:
        objective = job.calibrated.subject.objective
        card = model_card(report, objective=objective, licence=job.licence, folder=name, vocabulary=job.vocabulary)
        encoded = card.encode()
    except Exception as error:  # names and licences are strangers' texts; the weights are worth more than their card
        report = replace(report, warnings=[*report.warnings, f"the model card is a short one: {one_line(error)}"])
        encoded = minimal_card(report).encode(errors="replace")
    (folder / CARD_FILE).write_bytes(encoded)
    try:
        shown = page(report, masks=bits, vocabulary=job.vocabulary).encode()
    except Exception as error:  # nor may what strangers called things cost the weights here
        report = replace(report, warnings=[*report.warnings, f"there is no {PAGE_FILE}: {one_line(error)}"])
    else:
        (folder / PAGE_FILE).write_bytes(shown)
    files = sorted({*names_in(folder), RESULT_FILE})
    found = figures(report, job.vocabulary)
    (folder / RESULT_FILE).write_text(strict_json({**found, FILES: files}), encoding="utf-8")
    return report


def figures(report: PruneReport, vocabulary: VocabularyReport | None) -> dict[str, Any]:
    """What result.json holds of a model and of its tokens, where those were pruned, too."""
    return report.to_json() | ({} if vocabulary is None else {VOCABULARY: vocabulary.to_json()})
