"""Distillation: the pruned and recovered model is trained towards the dense one, on many rows without labels.

What is matched are the streams after every layer, or the predictions (`lesson`). Rows that are held out judge, by the
divergence of the objective's likelihood (for classes ``KL(dense || pruned)``): the state where it is smallest is what
stays, and that may be the one before the first step. The optimiser is AdamW without weight decay, the learning
rate rises over the first steps and falls linearly (as in Devlin et al. 2019); nothing is dropped out.

The order of the rows follows from the seed. What a run has done so far can be kept (`training_state`), so that
another one goes on where it was interrupted, to the same bits.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.checkpoint.saving import round_weights
from faster_pruner.data.batches import Batch
from faster_pruner.errors import OptionError
from faster_pruner.method.lesson import (
    Lesson,
    PredictionMatch,
    StreamMatch,
    Unlabelled,
    batches_of,
    first_of,
    rows_in,
)
from faster_pruner.method.training_state import Course, StateFile
from faster_pruner.model.passes import device_of, inference, training
from faster_pruner.progress import Progress, Silent, StageClock
from faster_pruner.results import DistillationResult

# Share of the steps over which the learning rate rises; longest gradient.
_WARM_UP, _LONGEST_GRADIENT = 0.06, 1.0
# How often the held-out rows are looked at; after so many looks in a row, each worse than the one before, training
# stops, but not in its first half: while the learning rate is high, it is usual to be worse for a while.
LOOKS, _PATIENCE = 8, 3
# Steps that are timed to find out how many rows a time allows; share of it that is planned for.
_TIMED_STEPS, _PLANNED = 6, 0.95


@dataclass(frozen=True)
class _Judge:
    """The rows that are held out.

    Attributes:
        lesson: that is judged.
        batches: of these rows.
        aims: of each batch.
    """

    lesson: Lesson
    batches: Sequence[Batch]
    aims: Sequence[Tensor]

    def loss(self) -> float:
        """Mean divergence of the student as it would be stored."""
        model = self.lesson.student
        if self.lesson.dtype != torch.float32:
            model = copy.deepcopy(model)
            round_weights(model, self.lesson.dtype)
        total, count = 0.0, 0
        with inference(model):
            for batch, aim in zip(self.batches, self.aims, strict=True):
                total += float(self.lesson.loss(model, batch, aim)) * len(aim)
                count += len(aim)
        return total / count


def distil(
    lesson: Lesson, unlabelled: Unlabelled, *, keep: StateFile | None = None, clock: StageClock | None = None
) -> DistillationResult:
    """Train the pruned model towards the dense one; what stays is its best state, or the one that it was in.

    Args:
        lesson: whose student is trained in place.
        unlabelled: rows to train on, and those that judge.
        keep: where an interrupted run goes on from; None keeps nothing.
        clock: told about the stages.

    Raises:
        OptionError: accelerate is not installed.
        DataError: the model cannot be run on the rows.
    """
    clock = clock or StageClock(Silent())
    held_out = batches_of(unlabelled.held_out, lesson)
    with clock.stage("dense predictions"):
        earlier = None if keep is None else keep.read_course()
        count = earlier.rows if earlier is not None else _affordable(lesson, unlabelled, rows_in(held_out))
        batches = batches_of(first_of(unlabelled.rows, count), lesson)
        judge = _Judge(lesson, held_out, lesson.aims(held_out))
        matched = lesson.match(batches)
    planned = lesson.how.epochs * len(batches)
    with clock.stage("distillation", total=planned):
        course = earlier
        if course is None:
            before = judge.loss()
            course = Course(rows=rows_in(batches), before=before, best_loss=before)
        try:
            _train(lesson, matched, judge, planned, course=course, keep=keep, progress=clock.progress)
        finally:
            matched.release()
    return DistillationResult(
        rows=course.rows,
        held_out=rows_in(held_out),
        planned=planned,
        steps=course.step,
        best_step=course.best_step,
        before=course.before,
        after=course.best_loss,
        history=course.history,
        status=course.status,
        note=course.note,
    )


def _train(
    lesson: Lesson,
    matched: PredictionMatch | StreamMatch,
    judge: _Judge,
    steps: int,
    *,
    course: Course,
    keep: StateFile | None,
    progress: Progress,
) -> None:
    """Take the steps that are left of a course; the student ends in the best state of it."""
    student, epochs = lesson.student, lesson.how.epochs
    best = _weights(student)
    looks = {math.ceil(steps * look / LOOKS) for look in range(1, LOOKS + 1)}
    with training(student) as trained, accelerated(trained[0].device) as accelerator:
        optimizer: Any = _adam(trained, lesson.how.learning_rate)
        if course.step:
            assert keep is not None
            best = keep.read_tensors(student, optimizer)
        for group in optimizer.param_groups:
            group["initial_lr"] = lesson.how.learning_rate
        schedule: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, ramp(steps), last_epoch=course.step - 1)
        model, optimizer, schedule = accelerator.prepare(student, optimizer, schedule)
        for number, place in enumerate(_order(steps // epochs, epochs, lesson.seed)):
            if course.status or number < course.step:
                # taken by the run that this one goes on from
                progress.step()
                continue
            loss = matched.loss(model, place)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained, _LONGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            course.step = number + 1
            progress.step()
            if course.step in looks:
                _look(course, judge, best, final=course.step == steps)
                if keep is not None:
                    course.note = keep.write(course, student, optimizer, best)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.copy_(best[name])


def _look(course: Course, judge: _Judge, best: dict[str, Tensor], *, final: bool) -> None:
    """See how good the student is now, keep its weights if it never was better, and say whether it goes on."""
    found = judge.loss()
    course.history.append((course.step, found))
    if found < course.best_loss:
        course.best_loss, course.best_step = found, course.step
        best.update(_weights(judge.lesson.student))
    last = [loss for _, loss in course.history[-_PATIENCE - 1 :]]
    rising = len(course.history) > LOOKS / 2 and all(now > before for before, now in pairwise(last))
    if not math.isfinite(found):
        course.status = "stopped: its loss was not finite"
    elif final:
        course.status = "finished"
    elif rising:
        course.status = "stopped: it got worse and worse on the held-out rows"


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _adam(parameters: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
    """AdamW without weight decay: what gets no gradient (tokens that no row has) stays as it is."""
    # one pass over the memory, not sixteen: embeddings make up most of a small model
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=fused or None)


def ramp(steps: int) -> Callable[[int], float]:
    """Share of the learning rate at a step: up over the first steps, then down to 0."""
    warm_up = max(1, round(_WARM_UP * steps))

    def share(step: int) -> float:
        return min((step + 1) / warm_up, max(0.0, (steps - step) / max(1, steps - warm_up)))

    return share


def _order(batches: int, epochs: int, seed: int) -> Iterator[int]:
    """Places of the batches, mixed anew for every epoch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(batches, generator=generator).tolist()


@contextmanager
def accelerated(device: torch.device) -> Generator[Any]:
    """An accelerator of accelerate, whose state of the process is as it was before. Raises OptionError without it."""
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, is_initialized
    except ImportError as error:
        raise OptionError(
            "distillation trains with accelerate, which is not installed; install faster-pruner[distill]"
        ) from error
    if is_initialized():
        # somebody's own training goes on with what it has chosen
        yield Accelerator(device_placement=False)
        return
    try:
        yield Accelerator(device_placement=False, cpu=device.type == "cpu", mixed_precision="no")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage]


def _affordable(lesson: Lesson, unlabelled: Unlabelled, held_out: int) -> int:
    """How many rows to train on: as many as are asked for, or as the time allows, if there are so many."""
    there, how = rows_in(unlabelled.rows), lesson.how
    if how.seconds is None:
        return min(there, how.rows or there)
    sample = batches_of(first_of(unlabelled.rows, _TIMED_STEPS * how.rows_per_step), lesson)
    said, trained = _timed(replace(lesson, student=copy.deepcopy(lesson.student)), sample)
    # a look is a forward of the held-out rows, a third of a step's work or less
    left = _PLANNED * how.seconds - held_out * (said + LOOKS * trained / 3)
    return max(how.rows_per_step, min(there, int(left / (said + how.epochs * trained))))


def _timed(trial: Lesson, sample: Sequence[Batch]) -> tuple[float, float]:
    """Seconds per row of the dense model's predictions, and of a step of training, on a few batches."""
    device, seconds = device_of(trial.student), [0.0, 0.0]
    with training(trial.student) as trained:
        optimizer = _adam(trained, 0.0)
        for warm in (False, True):
            matched = trial.match(sample)
            for place, batch in enumerate(sample):
                # what is kept of the dense model is no part of a step
                matched.aim(place)
                started = time.perf_counter()
                trial.aims([batch])
                said = _now(device)
                optimizer.zero_grad()
                matched.loss(trial.student, place).backward()
                optimizer.step()
                if warm:
                    # the first forwards of a shape are slower than all others
                    seconds = [seconds[0] + said - started, seconds[1] + _now(device) - said]
            matched.release()
    return seconds[0] / rows_in(sample), seconds[1] / rows_in(sample)


def _now(device: torch.device) -> float:
    """The time, when a device has done all of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
