"""Runs that go on where an earlier one was interrupted: what their working folder belongs to, and what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from faster_pruner.api.dense_scores import asked, keys_of, remembered
from faster_pruner.api.job import Job
from faster_pruner.api.outcome import stored_bytes
from faster_pruner.checkpoint.opening import Opened
from faster_pruner.data.batches import EncodedRows
from faster_pruner.host.devices import environment
from faster_pruner.host.folders import Output
from faster_pruner.host.working import WorkingFolder, working
from faster_pruner.method.calibrated import Subject
from faster_pruner.method.journal import NO_JOURNAL, Journal
from faster_pruner.method.journal_on_disk import STATISTICS, JournalOnDisk
from faster_pruner.method.kept import weights_digest
from faster_pruner.model.passes import device_of
from faster_pruner.options import CalibrationOptions, Method
from faster_pruner.progress import StageClock

# Where in a config a checkpoint came from, and who wrote it: the same model may have been moved.
_NOT_THE_MODEL = ("_name_or_path", "name_or_path", "transformers_version")


@contextmanager
def going_on(output: Output) -> Generator[WorkingFolder | None]:
    """The working folder of an output; None where nothing is kept for an interruption. Raises OutputError."""
    if not output.resume or output.path is None:
        yield None
        return
    with working(output.path) as folder:
        yield folder


def journal_for(
    folder: WorkingFolder | None,
    opened: Opened,
    subject: Subject,
    method: Method,
    options: CalibrationOptions,
    *,
    calibrated_on: EncodedRows | str,
) -> Journal:
    """What has been done of a run, in its working folder.

    The budget is no part of what the folder belongs to: with another one the statistics are taken over, and every cut
    has a place of its own.

    Args:
        folder: None for a run that keeps nothing.
        opened: the checkpoint that is pruned.
        subject: the same as something to prune.
        method: how.
        options: of the calibration.
        calibrated_on: its rows; or a digest of its statistics, where they were kept.

    Raises:
        OutputError: the folder belongs to another run.
    """
    if folder is None:
        return NO_JOURNAL
    rows = calibrated_on
    if isinstance(rows, EncodedRows):
        rows = keys_of(opened, subject.objective, {"": rows})[""]
    folder.claim(
        {
            "model": f"{weights_digest(subject.model)} {_config_digest(opened)} {subject.dtype}",
            "calibration rows": rows,
            "method": method.to_dict(),
            # the limit makes no difference to what is computed
            "calibration": {**asdict(options), "memory_limit": None},
            **environment(device_of(subject.model)),
        }
    )
    return JournalOnDisk(folder)


def bytes_to_keep(model: nn.Module, statistics: int = 0, folder: WorkingFolder | None = None) -> int:
    """About what is to be written into a working folder: statistics, and what the recovery makes of a model.

    Args:
        model: that is pruned; producers may be kept as they were aligned, and as they were in the end.
        statistics: bytes of those.
        folder: where they may be already.
    """
    there = folder is not None and folder.has(STATISTICS)
    return 2 * stored_bytes(model, torch.float32) + (0 if there else statistics)


def _config_digest(opened: Opened) -> str:
    """SHA-256 of a config, wherever its checkpoint lies."""
    config: Any = opened.model.config
    told = {key: value for key, value in config.to_dict().items() if key not in _NOT_THE_MODEL}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def with_scores(job: Job, clock: StageClock) -> None:
    """The dense model's predictions as an earlier run has kept them, or asked for now, ahead of the recovery."""
    journal = job.journal
    if not isinstance(journal, JournalOnDisk) or job.score_keys.keys() <= job.said.keys():
        return
    job.said.update(remembered(journal.scores(), job.score_keys, job.splits))
    if job.score_keys.keys() <= job.said.keys():
        journal.taken_over.append("evaluation of the dense model")
        return
    with clock.stage("evaluation"):
        scores = asked(job)
    if scores:
        journal.keep_scores(scores)
