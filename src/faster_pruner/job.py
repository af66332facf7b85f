"""The main job: a checkpoint and rows in, a verified pruned checkpoint and its report out.

load -> calibration sample -> prune (`pipeline`) -> evaluation and latency before and after -> save -> reopen and verify
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from faster_pruner import archive, checkpoint, latency, surgery
from faster_pruner.batches import EncodedRows
from faster_pruner.costs import encoder_macs, encoder_parameters
from faster_pruner.evaluate import confidence, evaluate_rows, predict_rows, score
from faster_pruner.families import FamilySpec, resolve
from faster_pruner.inputs import Columns, calibration_rows, describe_task, evaluation_splits, names_a_task, source_of
from faster_pruner.machine import environment, pick_device
from faster_pruner.options import Budget, CalibrationOptions, Method, PruneOptions, preset
from faster_pruner.output import check_output, replacing
from faster_pruner.pipeline import Calibrated, Pruned, calibrate_model, cut
from faster_pruner.progress import Progress, Silent, StageClock
from faster_pruner.report.card import CARD_FILE, model_card, read_licence
from faster_pruner.results import Evaluation, PruneReport, SizeResult, SublayerResult
from faster_pruner.tasks import Task

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


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """Everything a run needs beside the calibration."""

    name: str
    task: Task
    opened: checkpoint.Opened
    splits: dict[str, EncodedRows]
    calibration_hash: str


def prune(
    model: str | Path,
    *,
    macs: float | Budget,
    task: str | None = None,
    data: str | Path | None = None,
    columns: Columns | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    method: Method | str = "default",
    calibration: CalibrationOptions | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Prune a fine-tuned checkpoint to a share of its encoder's MACs; evaluate, time, save, reopen and verify it.

    Args:
        model: local folder or hub id of a fine-tuned text classification or regression model.
        macs: share of the encoder's MACs to keep, inside (0, 1), or a `Budget` that also says which sizes are allowed.
        task: a GLUE task by name; other data is described by `columns`.
        data: local folder with one file per split; None for the hub.
        columns: in place of the task's own.
        output: folder for the pruned checkpoint and `result.json`; None keeps the result in memory only.
        overwrite: replace a checkpoint that is already in `output`.
        method: a preset by name, or a `Method`.
        calibration: size and seed of the calibration set.
        device: torch device; by default cuda when there is one, else the CPU.
        progress: a listener.

    Raises:
        InputError: see its subclasses in `errors`.
        VerificationError: the saved checkpoint did not reproduce the model in memory.
    """
    options = PruneOptions(
        budget=macs if isinstance(macs, Budget) else Budget(macs=macs),
        method=preset(method) if isinstance(method, str) else method,
        calibration=calibration or CalibrationOptions(),
    )
    described = describe_task(task, columns)
    source = source_of(described, data)
    clock = StageClock(progress or Silent())
    folder = None if output is None else Path(output)
    if folder is not None:
        check_output(folder, overwrite=overwrite, bytes_needed=0)
    with clock.stage("load"):
        opened = checkpoint.open_checkpoint(str(model), device=pick_device(device))
        rows = calibration_rows(source, described, opened, options.calibration, labelled=options.method.labels)
        prepared = _Prepared(
            name=str(model),
            task=described,
            opened=opened,
            splits=evaluation_splits(source, described, opened, options.calibration.max_length),
            calibration_hash=rows.digest(),
        )
    if folder is not None:
        check_output(folder, overwrite=overwrite, bytes_needed=stored_bytes(opened.model, opened.dtype))
    if options.calibration.keep is not None:
        check_output(Path(options.calibration.keep), overwrite=False, bytes_needed=0)
    options = replace(options, budget=_with_measured_multiple(options.budget, opened, clock))
    calibrated = calibrate_model(opened.model, opened.family, rows, options.method, options.calibration, clock=clock)
    if options.calibration.keep is not None:
        _keep(calibrated, prepared, options, clock)
    return _run(prepared, calibrated, options, clock, folder, overwrite=overwrite)


def _keep(calibrated: Calibrated, prepared: _Prepared, options: PruneOptions, clock: StageClock) -> None:
    """Save the statistics for later cuts."""
    about = {
        "model": prepared.name,
        "task": prepared.task.name,
        "calibration": {**asdict(options.calibration), "keep": None, "memory_limit": None},
        "calibration_hash": prepared.calibration_hash,
    }
    with (
        clock.stage("keep statistics"),
        replacing(Path(str(options.calibration.keep)), overwrite=False) as staging,
    ):
        archive.save_statistics(staging, calibrated, prepared.opened, about=about, method=options.method)


def cut_again(
    statistics: str | Path,
    *,
    macs: float | Budget,
    model: str | Path | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    task: str | None = None,
    data: str | Path | None = None,
    columns: Columns | None = None,
    memory_limit: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Cut another budget from kept statistics: no calibration data, no statistics pass.

    Args:
        statistics: folder that `prune` kept (`CalibrationOptions.keep`).
        macs: as in `prune`.
        model: the dense checkpoint; by default where it was then.
        output: as in `prune`.
        overwrite: as in `prune`.
        task: evaluate on this task; without it and `columns` nothing is evaluated.
        data: as in `prune`.
        columns: as in `prune`.
        memory_limit: as in `CalibrationOptions`.
        device: as in `prune`.
        progress: a listener.

    Raises:
        InputError: see its subclasses in `errors`.
        VerificationError: the saved checkpoint did not reproduce the model in memory.
    """
    clock = StageClock(progress or Silent())
    folder = None if output is None else Path(output)
    index = archive.read_index(Path(statistics))
    about: dict[str, Any] = index.get("about", {})
    name = str(model if model is not None else about.get("model", ""))
    if folder is not None:
        check_output(folder, overwrite=overwrite, bytes_needed=0)
    with clock.stage("load"):
        opened = checkpoint.open_checkpoint(name, device=pick_device(device))
        calibrated, method, calibration = archive.load_statistics(Path(statistics), opened, memory_limit=memory_limit)
        splits: dict[str, EncodedRows] = {}
        described = Task(name=str(about.get("task", "")), text_column="")
        if names_a_task(task, columns):
            described = describe_task(task, columns)
            splits = evaluation_splits(source_of(described, data), described, opened, calibration.max_length)
    prepared = _Prepared(
        name=name,
        task=described,
        opened=opened,
        splits=splits,
        calibration_hash=str(about.get("calibration_hash", "")),
    )
    budget = _with_measured_multiple(macs if isinstance(macs, Budget) else Budget(macs=macs), opened, clock)
    options = PruneOptions(budget=budget, method=method, calibration=calibration)
    return _run(prepared, calibrated, options, clock, folder, overwrite=overwrite)


def _with_measured_multiple(budget: Budget, opened: checkpoint.Opened, clock: StageClock) -> Budget:
    """A budget that asks for it gets the multiple of neurons that this device runs fastest."""
    if budget.round_to != "auto":
        return budget
    ffn = [s for s in resolve(opened.model, opened.family) if s.kind == "ffn"]
    parameter = next(opened.model.parameters())
    dtype = opened.dtype if parameter.device.type == "cuda" else torch.float32
    with clock.stage("measure multiples"):
        found = latency.fastest_multiple(ffn[0].width, max(s.units for s in ffn), device=parameter.device, dtype=dtype)
    return replace(budget, round_to=found)


def _run(
    prepared: _Prepared,
    calibrated: Calibrated,
    options: PruneOptions,
    clock: StageClock,
    folder: Path | None,
    *,
    overwrite: bool,
) -> PruneResult:
    """Cut, measure, save."""
    opened = prepared.opened
    pruned = cut(calibrated, options.budget, options.method, clock=clock)
    surgery.round_weights(pruned.model, opened.dtype)
    with clock.stage("evaluation", total=2 * len(prepared.splits)):
        before = _predict(opened.model, prepared.splits, clock.progress)
        after = _predict(pruned.model, prepared.splits, clock.progress)
    with clock.stage("latency", total=len(latency.SHAPES)):
        longest = latency.longest_row(opened.model)
        timings = latency.measure(opened.model, pruned.model, longest=longest, progress=clock.progress)
    report = replace(
        _report(prepared, options, calibrated, pruned),
        **_quality(prepared, before, after),
        seconds=clock.seconds,
        latency=timings,
    )
    if folder is not None:
        report = _save(pruned, calibrated, opened, folder, report, clock=clock, overwrite=overwrite)
    return PruneResult(pruned.model, opened.tokenizer, report)


def _predict(model: PreTrainedModel, splits: dict[str, EncodedRows], progress: Progress) -> dict[str, np.ndarray]:
    """Logits on every split."""
    found: dict[str, np.ndarray] = {}
    for split, rows in splits.items():
        found[split] = predict_rows(model, rows)
        progress.step()
    return found


def _quality(prepared: _Prepared, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, Any]:
    """Metrics before and after with their confidence, as fields of the report."""
    task, splits = prepared.task, prepared.splits
    scores = {split: score(after[split], rows, task, split=split) for split, rows in splits.items()}
    return {
        "before": {split: score(before[split], rows, task, split=split) for split, rows in splits.items()},
        "after": scores,
        "confidence": {
            split: confidence(scores[split].primary, before[split], after[split], rows)
            for split, rows in splits.items()
        },
    }


def _report(prepared: _Prepared, options: PruneOptions, calibrated: Calibrated, pruned: Pruned) -> PruneReport:
    """What is known before anything is measured."""
    opened, length = prepared.opened, calibrated.data.length
    dense = _size(opened.model, opened, length)
    small = _size(pruned.model, opened, length)
    return PruneReport(
        model=prepared.name,
        task=prepared.task.name,
        preset=options.method.name,
        options=asdict(options),
        mean_length=length,
        macs_asked=options.budget.macs,
        macs_kept=small.macs / dense.macs,
        dense=dense,
        pruned=small,
        sublayers=pruned.sublayers,
        seconds={},
        environment=environment(next(opened.model.parameters()).device),
        calibration_hash=prepared.calibration_hash,
        opens_plain=checkpoint.opens_with_stock_class(pruned.model, opened.family),
        warnings=_warnings(pruned.sublayers),
    )


def _save(
    result: Pruned,
    calibrated: Calibrated,
    opened: checkpoint.Opened,
    folder: Path,
    report: PruneReport,
    *,
    clock: StageClock,
    overwrite: bool,
) -> PruneReport:
    """Write beside, reopen, verify, then move into place."""
    model = result.model
    with replacing(folder, overwrite=overwrite) as staging:
        with clock.stage("save and verify"):
            checkpoint.write_checkpoint(staging, model, opened.tokenizer, dtype=opened.dtype)
            verified = checkpoint.verify(staging, model, calibrated.data.batches[-_BATCHES_TO_VERIFY:])
        pruned = replace(report.pruned, bytes=checkpoint.weight_bytes(staging))
        report = replace(report, verified=verified, pruned=pruned, seconds=clock.seconds)
        bits = {name: "".join(map(str, mask.int().tolist())) for name, mask in result.masks.items()}
        (staging / MASKS_FILE).write_text(json.dumps(bits, indent=0) + "\n")
        (staging / RESULT_FILE).write_text(json.dumps(report.to_json(), indent=2) + "\n")
        auto = checkpoint.auto_class_of(model).__name__
        card = model_card(report, auto_class=auto, licence=read_licence(report.model), folder=folder.name)
        (staging / CARD_FILE).write_text(card, encoding="utf-8")
    return report


def evaluate(
    model: str | Path,
    *,
    task: str | None = None,
    data: str | Path | None = None,
    columns: Columns | None = None,
    max_length: int = 128,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Evaluation]:
    """Evaluate a dense or pruned checkpoint on a task's evaluation splits; arguments as in `prune`."""
    described = describe_task(task, columns)
    source = source_of(described, data)
    clock = StageClock(progress or Silent())
    with clock.stage("load"):
        opened = checkpoint.open_checkpoint(str(model), device=pick_device(device))
        splits = evaluation_splits(source, described, opened, max_length)
    with clock.stage("evaluation", total=len(splits)):
        return evaluate_splits(opened.model, described, splits, clock.progress)


def evaluate_splits(
    model: PreTrainedModel, task: Task, splits: dict[str, EncodedRows], progress: Progress
) -> dict[str, Evaluation]:
    """Metrics on every split."""
    found: dict[str, Evaluation] = {}
    for split, rows in splits.items():
        found[split] = evaluate_rows(model, rows, task, split=split)
        progress.step()
    return found


def stored_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes that the weights take when stored in `dtype`."""
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def _macs(model: PreTrainedModel, family: FamilySpec, length: float) -> float:
    """Encoder MACs of a model for one row of `length` tokens."""
    return encoder_macs(resolve(model, family), length)


def _size(model: PreTrainedModel, opened: checkpoint.Opened, length: float) -> SizeResult:
    """Size of a model."""
    return SizeResult(
        macs=_macs(model, opened.family, length),
        encoder_parameters=encoder_parameters(resolve(model, opened.family)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes=stored_bytes(model, opened.dtype),
    )


def _warnings(sublayers: Sequence[SublayerResult]) -> list[str]:
    """Sentences about what did not go as planned."""
    return [f"{s.name}: {s.note}" for s in sublayers if s.note and s.status not in ("skipped", "not reached")]
