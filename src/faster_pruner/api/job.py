"""A calibrated model on its way to a smaller one: what every cut needs beside its statistics."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from faster_pruner.checkpoint.companions import NONE, Companions
from faster_pruner.checkpoint.opening import Opened
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import EncodedRows
from faster_pruner.host.heap import give_back
from faster_pruner.host.mapped import are_in_files
from faster_pruner.method.calibrated import Calibrated, Subject
from faster_pruner.method.journal import NO_JOURNAL, Journal
from faster_pruner.method.lesson import Unlabelled
from faster_pruner.model.head import Head
from faster_pruner.model.limits import made_up_inputs, shapes_for
from faster_pruner.model.passes import device_of
from faster_pruner.model.staging import stage
from faster_pruner.objectives.objective import Objective, Predicted
from faster_pruner.options import AttentionUnit, CalibrationOptions, Distillation, Method
from faster_pruner.progress import StageClock
from faster_pruner.runtimes.timing import SHAPES, fastest_multiple
from faster_pruner.vocabulary.measured import VocabularyReport

if TYPE_CHECKING:
    from faster_pruner.checkpoint.processors import Processor


@dataclass(frozen=True, kw_only=True)
class Dense:
    """What a pruned model is compared with.

    Attributes:
        model: as it was given.
        objective: what it is for.
        splits: rows to evaluate on, as it takes them.
        timed_on: inputs on which it is timed.
        new_ids: by its own ids of tokens those of the pruned model, where that has fewer tokens; else empty.
    """

    model: nn.Module
    objective: Objective
    splits: Mapping[str, EncodedRows]
    timed_on: Sequence[dict[str, Tensor]]
    new_ids: Mapping[int, int] = field(default_factory=dict[int, int])


@dataclass(frozen=True, kw_only=True)
class Training:
    """A distillation to come.

    Attributes:
        how: the options.
        unlabelled: rows for it.
        file: where an interrupted one goes on from; None keeps nothing.
    """

    how: Distillation
    unlabelled: Unlabelled
    file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cut.

    Attributes:
        name: of the dense model, as others may read it.
        place: where it was opened; empty for a model in memory.
        task: what it is pruned for, in words.
        calibrated: the dense model and its statistics.
        budget: what may be left; `round_to` is a number or None.
        method: how.
        options: of the calibration.
        calibration_hash: of its rows.
        truncated: calibration rows that were cut because they were too long; None where nobody knows.
        timed_on: inputs on which dense and pruned model are timed.
        processor: tokenizer, image processor or feature extractor that goes with the model, if any.
        companions: files that go with it unchanged.
        head: what makes one vector of what the model returns, of an embedding model.
        splits: rows to evaluate on.
        licence: of the dense model, where it is known.
        given: the model with all its tokens, where its vocabulary was pruned before it was calibrated.
        vocabulary: what was measured of that.
        training: what comes after the recovery, if anything.
        judges: training rows that nothing is calibrated on, where the smallest model within a drop is asked for.
        said: what the dense model predicts, by split: asked once, whatever is cut from it.
        score_keys: by split, what these predictions are kept under; empty where they are not kept.
        journal: what an earlier, interrupted run has done of it, and what this one does.
    """

    name: str
    task: str
    calibrated: Calibrated
    budget: Budget
    method: Method
    options: CalibrationOptions
    calibration_hash: str
    timed_on: list[dict[str, Tensor]]
    truncated: int | None = None
    processor: Processor | None = None
    companions: Companions = NONE
    head: Head | None = None
    splits: dict[str, EncodedRows] = field(default_factory=dict[str, EncodedRows])
    licence: str | None = None
    place: str = ""
    given: Dense | None = None
    vocabulary: VocabularyReport | None = None
    training: Training | None = None
    judges: EncodedRows | None = None
    said: dict[str, Predicted] = field(default_factory=dict[str, Predicted])
    score_keys: dict[str, str] = field(default_factory=dict[str, str])
    journal: Journal = NO_JOURNAL

    @property
    def dense(self) -> Dense:
        """What the pruned model is compared with: the model as it was given."""
        subject = self.calibrated.subject
        own = Dense(model=subject.model, objective=subject.objective, splits=self.splits, timed_on=self.timed_on)
        return self.given or own

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The processor of a text model; None for any other."""
        return self.processor if isinstance(self.processor, PreTrainedTokenizerBase) else None


def subject_of(opened: Opened, objective: Objective, attention_unit: AttentionUnit = "group") -> Subject:
    """A checkpoint as something to prune, with units as in `Method`. Raises UnsupportedModelError."""
    found = opened.describe(attention_unit)
    if are_in_files():
        # what is looked at stays on the CPU; what computes the rest may be a GPU that has no room for all layers
        stage(opened.model, [s.prefix.removesuffix(".") for s in found.sublayers], opened.device)
        # every layer was copied and cut several times: some of it is in cycles, and gaps are left
        gc.collect()
        give_back()
    return Subject(opened.model, found.sublayers, objective, opened.dtype, dict(found.left))


def with_measured_multiple(budget: Budget, subject: Subject, clock: StageClock) -> Budget:
    """A budget that asks for it gets the multiple of neurons that this device runs fastest."""
    if budget.round_to != "auto":
        return budget
    rounded = [s for s in subject.sublayers if s.spec.rounded]
    if not rounded:
        return replace(budget, round_to=1)
    device = device_of(subject.model)
    dtype = subject.dtype if device.type == "cuda" else torch.float32
    with clock.stage("measure multiples"):
        most = max(s.units for s in rounded)
        found = fastest_multiple(rounded[0].width, most, device=device, dtype=dtype)
    return replace(budget, round_to=found)


def usual_inputs(opened: Opened, rows: EncodedRows | None = None) -> list[dict[str, Tensor]]:
    """Inputs of the shapes that reports are about, as far as the model takes them: images and sounds of the data's own
    size, where there are `rows` of them, and else made-up ones.
    """
    if rows is not None and rows.arrays:
        device, chosen = device_of(opened.model), [torch.arange(batch) % len(rows) for batch, _ in SHAPES]
        return [{key: array[each].to(device) for key, array in rows.arrays.items()} for each in chosen]
    return [made_up_inputs(opened.model, batch, tokens) for batch, tokens in shapes_for(opened.model, SHAPES)]
