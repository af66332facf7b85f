"""A calibrated model on its way to a smaller one: what every cut needs beside its statistics."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from faster_pruner.checkpoint.opening import Opened
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import EncodedRows
from faster_pruner.method.calibrated import Calibrated, Subject
from faster_pruner.model.limits import longest_row, made_up_inputs
from faster_pruner.model.passes import device_of
from faster_pruner.objectives.objective import Objective
from faster_pruner.options import CalibrationOptions, Method
from faster_pruner.progress import StageClock
from faster_pruner.runtimes.timing import SHAPES, fastest_multiple


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
        timed_on: inputs on which dense and pruned model are timed.
        tokenizer: that goes with the model, if any.
        splits: rows to evaluate on.
        licence: of the dense model, where it is known.
    """

    name: str
    task: str
    calibrated: Calibrated
    budget: Budget
    method: Method
    options: CalibrationOptions
    calibration_hash: str
    timed_on: list[dict[str, Tensor]]
    tokenizer: PreTrainedTokenizerBase | None = None
    splits: dict[str, EncodedRows] = field(default_factory=dict[str, EncodedRows])
    licence: str | None = None
    place: str = ""


def subject_of(opened: Opened, objective: Objective) -> Subject:
    """A checkpoint as something to prune."""
    return Subject(opened.model, opened.sublayers, objective, opened.dtype)


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


def usual_inputs(opened: Opened) -> list[dict[str, Tensor]]:
    """Made-up inputs of the shapes that reports are about, as far as the model takes them."""
    longest = longest_row(opened.model)
    return [made_up_inputs(opened.model, batch, min(sequence, longest)) for batch, sequence in SHAPES]
