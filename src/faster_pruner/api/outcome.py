"""From a job to its result: cut, evaluate, time, save, reopen and verify."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from faster_pruner.api.job import Job
from faster_pruner.checkpoint.saving import round_weights, verify, weight_bytes, write_checkpoint
from faster_pruner.checkpoint.sizes import mark_as_pruned, opens_with_stock_class
from faster_pruner.costs.budget import spendings
from faster_pruner.costs.cost import Macs, Parameters, total
from faster_pruner.data.batches import EncodedRows
from faster_pruner.host.devices import environment
from faster_pruner.host.folders import Output, replacing
from faster_pruner.method.algorithm import cut
from faster_pruner.method.calibrated import Calibrated, Pruned
from faster_pruner.model.passes import device_of
from faster_pruner.model.spec import Sublayer
from faster_pruner.objectives.evaluation import Predicted, confidence, evaluate, predict_rows
from faster_pruner.objectives.objective import Objective
from faster_pruner.progress import Progress, StageClock
from faster_pruner.report.card import CARD_FILE, model_card
from faster_pruner.results import PruneReport, SizeResult, SublayerResult
from faster_pruner.runtimes.timing import measure

RESULT_FILE = "result.json"
# Per sublayer a string with a digit for each unit of the dense model: 1 kept, 0 removed.
MASKS_FILE = "masks.json"
# Batches of the calibration set that the reopened checkpoint is compared on.
_BATCHES_TO_VERIFY = 2


@dataclass(frozen=True)
class PruneResult:
    """What `prune` gives back.

    Attributes:
        model: the pruned model, a stock transformers class.
        tokenizer: its tokenizer.
        report: everything that was measured; the same as `result.json`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    report: PruneReport


@dataclass(frozen=True)
class Outcome:
    """A pruned model in memory, and what was measured of it."""

    pruned: Pruned
    report: PruneReport


def cut_and_measure(job: Job, clock: StageClock) -> Outcome:
    """Cut to the job's budget; evaluate and time the dense and the pruned model.

    Raises:
        InputError: see `method.algorithm.cut`.
    """
    subject = job.calibrated.subject
    pruned = cut(job.calibrated, job.budget, job.method, clock=clock)
    round_weights(pruned.model, subject.dtype)
    mark_as_pruned(pruned.model, pruned.sublayers)
    with clock.stage("evaluation", total=2 * len(job.splits)):
        before = _predict(subject.model, subject.objective, job.splits, clock.progress)
        after = _predict(pruned.model, subject.objective, job.splits, clock.progress)
    with clock.stage("latency", total=len(job.timed_on)):
        timings = measure(subject.model, pruned.model, job.timed_on, progress=clock.progress)
    quality = _quality(job, before, after)
    return Outcome(pruned, replace(_report(job, pruned), **quality, seconds=clock.seconds, latency=timings))


def _predict(
    model: nn.Module, objective: Objective, splits: Mapping[str, EncodedRows], progress: Progress
) -> dict[str, Predicted]:
    """Predictions on every split."""
    found: dict[str, Predicted] = {}
    for split, rows in splits.items():
        found[split] = predict_rows(model, objective, rows)
        progress.step()
    return found


def _quality(job: Job, before: dict[str, Predicted], after: dict[str, Predicted]) -> dict[str, Any]:
    """Metrics before and after with their confidence, as fields of the report."""
    objective = job.calibrated.subject.objective
    old = {s: evaluate(before[s], objective, split=s, rows=len(rows)) for s, rows in job.splits.items()}
    new = {s: evaluate(after[s], objective, split=s, rows=len(rows)) for s, rows in job.splits.items()}
    sure = {s: confidence(new[s].primary, objective, before[s], after[s]) for s in job.splits}
    return {"before": old, "after": new, "confidence": sure}


def _report(job: Job, pruned: Pruned) -> PruneReport:
    """What is known before anything is measured."""
    calibrated = job.calibrated
    subject, lengths = calibrated.subject, calibrated.data.lengths
    taking_part = {s.name for s in calibrated.sublayers}
    left = [s for s in pruned.sublayers if s.name in taking_part]
    dense = _size(subject.model, calibrated.sublayers, lengths, subject.dtype)
    small = _size(pruned.model, left, lengths, subject.dtype)
    keeps = {s.name: s.units for s in left}
    bytes_each = subject.dtype.itemsize
    limits = spendings(job.budget, subject.model, calibrated.sublayers, keeps, lengths, bytes_each=bytes_each)
    return PruneReport(
        model=job.name,
        task=job.task,
        preset=job.method.name,
        options={
            "budget": job.budget.to_dict(),
            "method": job.method.to_dict(),
            "calibration": asdict(job.options),
        },
        mean_length=next(iter(lengths.values())),
        macs_asked=job.budget.macs,
        macs_kept=small.macs / dense.macs,
        dense=dense,
        pruned=small,
        sublayers=pruned.results,
        seconds={},
        limits=limits,
        environment=environment(device_of(subject.model)),
        calibration_hash=job.calibration_hash,
        opens_plain=opens_with_stock_class(pruned.model, pruned.sublayers),
        warnings=_warnings(calibrated, pruned.results),
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


def _warnings(calibrated: Calibrated, results: Sequence[SublayerResult]) -> list[str]:
    """Sentences about what did not go as planned."""
    notes = [f"{s.name}: {s.note}" for s in results if s.note and s.status not in ("skipped", "not reached")]
    return notes + [f"{name} stays as it is; {why}" for name, why in calibrated.whole.items()]


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
            write_checkpoint(staging, pruned.model, pruned.sublayers, job.tokenizer, dtype=dtype)
            verified = verify(staging, pruned.model, job.calibrated.data.batches[-_BATCHES_TO_VERIFY:])
        size = replace(outcome.report.pruned, bytes=weight_bytes(staging))
        report = replace(outcome.report, verified=verified, pruned=size, seconds=clock.seconds)
        _write_reports(staging, job, pruned, report, name=folder.name)
    return report


def _write_reports(folder: Path, job: Job, pruned: Pruned, report: PruneReport, *, name: str) -> None:
    """masks.json, result.json and the model card."""
    bits = {sublayer: "".join(map(str, mask.int().tolist())) for sublayer, mask in pruned.masks.items()}
    (folder / MASKS_FILE).write_text(json.dumps(bits, indent=0) + "\n")
    (folder / RESULT_FILE).write_text(json.dumps(report.to_json(), indent=2) + "\n")
    card = model_card(report, objective=job.calibrated.subject.objective, licence=job.licence, folder=name)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
