"""The distillation of a job: what it cuts is trained towards the dense model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from faster_pruner.api.job import Job, Training
from faster_pruner.costs.cost import Macs, total
from faster_pruner.data.batches import Batch, EncodedRows, digest
from faster_pruner.host.folders import Output, unfinished
from faster_pruner.method.calibrated import Calibrated, Pruned
from faster_pruner.method.distillation import distil
from faster_pruner.method.kept import weights_digest
from faster_pruner.method.lesson import Lesson, Unlabelled
from faster_pruner.method.training_state import StateFile
from faster_pruner.options import Distillation
from faster_pruner.progress import StageClock
from faster_pruner.results import DistillationResult

# Work in forwards of the same model: a forward and a backward of activations alone, and one of weights, too.
_FORWARD_BACKWARD, _STEP = 2, 3


def training_for(how: Distillation, unlabelled: Unlabelled, output: Output) -> Training:
    """A distillation whose state is kept beside the output, where there is one."""
    folder = output.path
    file = None if folder is None else folder.absolute().parent / f".{folder.name}.distillation.safetensors"
    return Training(how=how, unlabelled=unlabelled, file=file)


def distilled(job: Job, pruned: Pruned, clock: StageClock) -> DistillationResult:
    """Train what was cut, in place. Raises as `method.distillation.distil`."""
    assert job.training is not None
    training = job.training
    lesson = Lesson.of(job.calibrated, pruned.model, training.how)
    found = distil(lesson, training.unlabelled, keep=_state(job, pruned), clock=clock)
    return replace(found, fb=cost_in_fb(job.calibrated, pruned, found, training.how))


def forget(job: Job) -> None:
    """The run is over: what was kept for an interruption is not needed any more."""
    if job.training is not None and job.training.file is not None:
        job.training.file.unlink(missing_ok=True)
        if job.training.file in unfinished:
            unfinished.remove(job.training.file)


def _state(job: Job, pruned: Pruned) -> StateFile | None:
    """Where the distillation is kept, and what tells it from all others."""
    assert job.training is not None
    training, subject = job.training, job.calibrated.subject
    if training.file is None:
        return None
    parts = [
        weights_digest(subject.model),
        weights_digest(pruned.model),
        *(_digest(rows) for rows in (training.unlabelled.rows, training.unlabelled.held_out)),
        repr(training.how),
        job.calibrated.data.setting.precision,
        str(job.calibrated.data.seed),
        str(subject.dtype),
        subject.objective.name,
    ]
    return StateFile(training.file, hashlib.sha256("\n".join(parts).encode()).hexdigest())


def _digest(rows: EncodedRows | Sequence[Batch]) -> str:
    """SHA-256 of rows."""
    return rows.digest() if isinstance(rows, EncodedRows) else digest(rows)


def cost_in_fb(calibrated: Calibrated, pruned: Pruned, found: DistillationResult, how: Distillation) -> float:
    """What it cost in FB, by the MACs of the sublayers for rows of the calibration set's mean length."""
    cost = Macs(calibrated.data.lengths)
    taking_part = {s.name for s in calibrated.sublayers}
    dense = total(cost, calibrated.sublayers)
    small = total(cost, [s for s in pruned.sublayers if s.name in taking_part])
    trained = how.epochs * found.rows * found.steps / found.planned
    judged = (1 + len(found.history)) * found.held_out
    said = found.rows + found.held_out
    work = said * dense + (_STEP * trained + judged) * small
    return work / (_FORWARD_BACKWARD * dense * calibrated.data.rows)
