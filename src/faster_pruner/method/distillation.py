"""Distillation: the pruned and recovered model is trained towards the dense one, on many rows without labels.

What the dense model says is computed once and kept; the loss is the divergence of the objective's likelihood (for
classes ``KL(dense || pruned)``). Rows that neither are trained on judge: the state with the smallest loss on them is
what stays, and that may be the one before the first step. The optimiser is AdamW without weight decay, the learning
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
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.checkpoint.saving import round_weights
from faster_pruner.data.batches import Batch, EncodedRows, pack_evenly, part_of
from faster_pruner.errors import OptionError
from faster_pruner.host.spill import HiddenStates
from faster_pruner.method.training_state import Course, StateFile
from faster_pruner.model.gradients import streams
from faster_pruner.model.passes import PassSetting, by_row, called, device_of, inference, training
from faster_pruner.model.precision import forward_in
from faster_pruner.model.reading import real_tokens
from faster_pruner.model.spec import Sublayer
from faster_pruner.objectives.objective import Objective
from faster_pruner.options import Distillation
from faster_pruner.progress import Progress, Silent, StageClock, counted
from faster_pruner.results import DistillationResult

# Share of the steps over which the learning rate rises; longest gradient.
_WARM_UP, _LONGEST_GRADIENT = 0.06, 1.0
# How often the held-out rows are looked at; after so many looks in a row, each worse than the one before, training
# stops, but not in its first half: while the learning rate is high, it is usual to be worse for a while.
LOOKS, _PATIENCE = 8, 3
# Steps that are timed to find out how many rows a time allows; share of it that is planned for.
_TIMED_STEPS, _PLANNED = 6, 0.95


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """Rows for a distillation.

    Attributes:
        rows: to train on, in random order; or batches that somebody else made.
        held_out: to judge by; never trained on.
    """

    rows: EncodedRows | Sequence[Batch]
    held_out: EncodedRows | Sequence[Batch]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What is trained, towards what, and how.

    Attributes:
        teacher: the dense model; left as it is.
        student: the pruned one, in float32; trained in place.
        objective: of both.
        how: the options.
        seed: of the order of the rows.
        dtype: that the student will be stored in: it is judged as it will be then.
        setting: precision of the forwards, and where the dense model's predictions are kept.
        layers: sublayers after which the streams of both models are matched; none to match their predictions.
    """

    teacher: nn.Module
    student: nn.Module
    objective: Objective
    how: Distillation
    seed: int
    dtype: torch.dtype = torch.float32
    setting: PassSetting = field(default_factory=PassSetting)
    layers: Sequence[Sublayer] = ()

    def predictions(self, model: nn.Module, batch: Batch) -> Tensor:
        """[P, C] float32: what a model says."""
        with forward_in(self.setting.precision, batch.rows.device):
            returned = called(model, batch.inputs)
        return self.objective.values(returned, batch).float()

    def loss(self, model: nn.Module, batch: Batch, aim: Tensor) -> Tensor:
        """Mean divergence of a model's predictions from what is kept of the dense model's."""
        return self.objective.likelihood.divergence(self.predictions(model, batch), aim).mean()

    def aims(self, batches: Sequence[Batch], progress: Progress) -> HiddenStates:
        """What is kept of the dense model's predictions, [P, K] for every batch."""
        found = HiddenStates(self.setting.shelf)
        with inference(self.teacher):
            for batch in counted(batches, progress):
                found.append(self.objective.likelihood.kept(self.predictions(self.teacher, batch)))
        return found

    def streams_of(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """[T, d] float32 for each of the layers: the stream of a batch's real tokens after it."""
        found: list[Tensor] = []
        with streams(model, self.layers) as seen:
            self.predictions(model, batch)
        for layer in self.layers:
            x = by_row(seen[layer.name], batch.rows.numel())
            found.append(x[real_tokens(layer, batch, x)].float())
        return found


class _Predictions:
    """What is matched is what the dense model says."""

    def __init__(self, lesson: Lesson, batches: Sequence[Batch]) -> None:
        self._lesson, self._batches, self._aims = lesson, batches, lesson.aims(batches, Silent())

    def loss(self, model: nn.Module, place: int) -> Tensor:
        """Of one batch, with its graph."""
        return self._lesson.loss(model, self._batches[place], self._aims[place])


class _Streams:
    """What is matched are the dense model's streams: the mean over the layers of their squared error, by their size."""

    def __init__(self, lesson: Lesson, batches: Sequence[Batch]) -> None:
        self._lesson, self._batches = lesson, batches
        self._aims = HiddenStates(lesson.setting.shelf)
        self._scales: list[float] = []
        with inference(lesson.teacher):
            for batch in batches:
                found = lesson.streams_of(lesson.teacher, batch)
                if not self._scales:
                    sizes = [float(own.square().mean()) for own in found]
                    self._scales = [max(size, torch.finfo(torch.float32).tiny) ** -0.5 for size in sizes]
                self._aims.append(self._scaled(found).bfloat16())

    def loss(self, model: nn.Module, place: int) -> Tensor:
        """Of one batch, with its graph."""
        found = self._scaled(self._lesson.streams_of(model, self._batches[place]))
        return (found - self._aims[place].float()).square().mean()

    def _scaled(self, found: Sequence[Tensor]) -> Tensor:
        """[sum of T d]: all layers, each of about the size 1."""
        return torch.cat([scale * own.flatten() for own, scale in zip(found, self._scales, strict=True)])


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
    held_out = _batches(unlabelled.held_out, lesson)
    with clock.stage("dense predictions"):
        earlier = None if keep is None else keep.read_course()
        count = earlier.rows if earlier is not None else _affordable(lesson, unlabelled, rows_in(held_out))
        batches = _batches(_first(unlabelled.rows, count), lesson)
        judge = _Judge(lesson, held_out, lesson.aims(held_out, Silent()))
        matched = _Streams(lesson, batches) if lesson.layers else _Predictions(lesson, batches)
    planned = lesson.how.epochs * len(batches)
    with clock.stage("distillation", total=planned):
        before = judge.loss() if earlier is None else earlier.before
        course = earlier or Course(rows=rows_in(batches), before=before, best_loss=before)
        _train(lesson, matched, judge, planned, course=course, keep=keep, progress=clock.progress)
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
    matched: _Predictions | _Streams,
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
        schedule: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, _ramp(steps), last_epoch=course.step - 1)
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
        for name, weight in _weights(judge.lesson.student).items():
            best[name] = weight
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


def _ramp(steps: int) -> Callable[[int], float]:
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
    sample = _batches(_first(unlabelled.rows, _TIMED_STEPS * how.rows_per_step), lesson)
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
            for batch in sample:
                started = time.perf_counter()
                matched = _Streams(trial, [batch]) if trial.layers else _Predictions(trial, [batch])
                said = _now(device)
                optimizer.zero_grad()
                matched.loss(trial.student, 0).backward()
                optimizer.step()
                if warm:
                    # the first forwards of a shape are slower than all others
                    seconds = [seconds[0] + said - started, seconds[1] + _now(device) - said]
    return seconds[0] / rows_in(sample), seconds[1] / rows_in(sample)


def _now(device: torch.device) -> float:
    """The time, when a device has done all of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def rows_in(rows: EncodedRows | Sequence[Batch]) -> int:
    """How many rows there are."""
    return len(rows) if isinstance(rows, EncodedRows) else sum(batch.rows.numel() for batch in rows)


def _first(rows: EncodedRows | Sequence[Batch], count: int) -> EncodedRows | Sequence[Batch]:
    """The first rows, or the first batches that hold as many, at least one."""
    if isinstance(rows, EncodedRows):
        return part_of(rows, 0, count)
    found: list[Batch] = []
    for batch in rows:
        if found and rows_in([*found, batch]) > count:
            break
        found.append(batch)
    return found


def _batches(rows: EncodedRows | Sequence[Batch], lesson: Lesson) -> list[Batch]:
    """Rows in batches of one step each; batches as they are."""
    if isinstance(rows, EncodedRows):
        return pack_evenly(rows, rows_per_batch=lesson.how.rows_per_step, device=device_of(lesson.student))
    return list(rows)
