"""A lesson: a pruned model, the dense one that it is trained towards, the rows, and what of both is matched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from faster_pruner.data.batches import Batch, EncodedRows, pack_evenly, part_of
from faster_pruner.host.spill import HiddenStates
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.model.gradients import streams
from faster_pruner.model.passes import PassSetting, by_row, called, device_of, inference
from faster_pruner.model.precision import forward_in
from faster_pruner.model.reading import real_tokens
from faster_pruner.model.spec import Sublayer
from faster_pruner.objectives.objective import Objective
from faster_pruner.options import Distillation


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

    @staticmethod
    def of(calibrated: Calibrated, student: nn.Module, how: Distillation) -> Lesson:
        """The lesson of what was cut from a calibrated model."""
        subject, data = calibrated.subject, calibrated.data
        return Lesson(
            teacher=subject.model,
            student=student,
            objective=subject.objective,
            how=how,
            seed=data.seed,
            dtype=subject.dtype,
            setting=data.setting,
            layers=last_of_layers(calibrated.sublayers) if how.match == "streams" else (),
        )

    def match(self, batches: Sequence[Batch]) -> PredictionMatch | StreamMatch:
        """What is matched of some batches."""
        return StreamMatch(self, batches) if self.layers else PredictionMatch(self, batches)

    def aims(self, batches: Sequence[Batch]) -> HiddenStates:
        """What is kept of the dense model's predictions, [P, K] for every batch."""
        found = HiddenStates(self.setting.shelf)
        with inference(self.teacher):
            for batch in batches:
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


def last_of_layers(sublayers: Sequence[Sublayer]) -> list[Sublayer]:
    """The last sublayer of every layer."""
    return list({s.prefix: s for s in sublayers}.values())


class PredictionMatch:
    """What is matched is what the dense model says."""

    def __init__(self, lesson: Lesson, batches: Sequence[Batch]) -> None:
        self._lesson, self._batches, self._aims = lesson, batches, lesson.aims(batches)

    def release(self) -> None:
        """They are small."""

    def loss(self, model: nn.Module, place: int) -> Tensor:
        """Of one batch, with its graph."""
        return self._lesson.loss(model, self._batches[place], self.aim(place))

    def aim(self, place: int) -> Tensor:
        """[P, K]: what is kept of the dense model's."""
        return self._aims[place]


class StreamMatch:
    """What is matched are the dense model's streams: the mean over the layers of their squared error, by their size.

    They are kept as far as memory goes, in bfloat16; the others are computed every time, which is cheaper than to write
    and read them.
    """

    def __init__(self, lesson: Lesson, batches: Sequence[Batch]) -> None:
        self._lesson, self._batches = lesson, batches
        self._kept: dict[int, Tensor] = {}
        with inference(lesson.teacher):
            sizes = [float(own.square().mean()) for own in lesson.streams_of(lesson.teacher, batches[0])]
        self._scales = [max(size, torch.finfo(torch.float32).tiny) ** -0.5 for size in sizes]

    def loss(self, model: nn.Module, place: int) -> Tensor:
        """Of one batch, with its graph."""
        aim = self.aim(place)
        found = self._scaled(self._lesson.streams_of(model, self._batches[place]))
        return (found - aim.float()).square().mean()

    def release(self) -> None:
        """The memory is free for others again."""
        for aim in self._kept.values():
            self._lesson.setting.shelf.release(aim.nbytes)
        self._kept.clear()

    def aim(self, place: int) -> Tensor:
        """[sum of T d] bfloat16: the dense model's."""
        if place in self._kept:
            return self._kept[place]
        with inference(self._lesson.teacher):
            found = self._scaled(self._lesson.streams_of(self._lesson.teacher, self._batches[place])).bfloat16()
        if self._lesson.setting.shelf.reserve(found.nbytes):
            self._kept[place] = found
        return found

    def _scaled(self, found: Sequence[Tensor]) -> Tensor:
        """[sum of T d]: all layers, each of about the size 1."""
        return torch.cat([scale * own.flatten() for own, scale in zip(found, self._scales, strict=True)])


def rows_in(rows: EncodedRows | Sequence[Batch]) -> int:
    """How many rows there are."""
    return len(rows) if isinstance(rows, EncodedRows) else sum(batch.rows.numel() for batch in rows)


def first_of(rows: EncodedRows | Sequence[Batch], count: int) -> EncodedRows | Sequence[Batch]:
    """The first rows, or the first batches that hold as many, at least one."""
    if isinstance(rows, EncodedRows):
        return part_of(rows, 0, count)
    found: list[Batch] = []
    for batch in rows:
        if found and rows_in([*found, batch]) > count:
            break
        found.append(batch)
    return found


def batches_of(rows: EncodedRows | Sequence[Batch], lesson: Lesson) -> list[Batch]:
    """Rows in batches of one step each; batches as they are."""
    if isinstance(rows, EncodedRows):
        return pack_evenly(rows, rows_per_batch=lesson.how.rows_per_step, device=device_of(lesson.student))
    return list(rows)
