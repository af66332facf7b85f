"""Prune a model in memory, on batches of your own: for people who have a training loop already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from faster_pruner.api.job import Job, Training, with_measured_multiple
from faster_pruner.api.latency import check_runtime
from faster_pruner.api.outcome import Outcome, cut_and_measure, save
from faster_pruner.api.run import Run
from faster_pruner.api.smallest import check_judged
from faster_pruner.checkpoint.sizes import family_in, sublayers_of
from faster_pruner.checks import shown
from faster_pruner.costs.budget import Budget, as_budget
from faster_pruner.data.batches import Batch, adopt, digest
from faster_pruner.errors import DataError, OptionError, UnsupportedModelError
from faster_pruner.host.folders import Output
from faster_pruner.host.launch import only_one
from faster_pruner.host.places import public_name
from faster_pruner.method.algorithm import calibrate
from faster_pruner.method.calibrated import Subject
from faster_pruner.method.lesson import Unlabelled
from faster_pruner.model.describe import Description, by_unit, describe, described
from faster_pruner.model.passes import device_of
from faster_pruner.model.precision import copy_of, in_float32, usual_torch
from faster_pruner.objectives.objective import Objective
from faster_pruner.objectives.registry import objective_of
from faster_pruner.options import (
    AttentionUnit,
    CalibrationOptions,
    Distillation,
    Method,
    as_calibration,
    as_distillation,
    as_method,
)
from faster_pruner.results import PruneReport

# Of the batches to distil on, one in so many judges.
_ONE_IN = 8
# What texts are given as; of images and the like nothing is cut.
_TOKENS = "input_ids"


@dataclass(frozen=True)
class PrunedModel:
    """What `prune_model` gives back.

    Attributes:
        model: the pruned model, of the class, dtype and device of the one that was given.
        report: everything that was measured.
    """

    model: Any
    report: PruneReport
    _job: Job
    _outcome: Outcome

    def save(self, folder: str | Path, *, overwrite: bool = False) -> PruneReport:
        """Write a checkpoint, reopen it and compare it with the model as it came out of `prune_model`, bit for bit.

        Args:
            folder: that takes the checkpoint and `result.json`.
            overwrite: replace a checkpoint that is already there.

        Returns:
            The report with what was verified.

        Raises:
            OutputError: the folder is in the way or cannot be written.
            VerificationError: the saved checkpoint did not reproduce the model.
        """
        output = Output(folder=folder, overwrite=overwrite)
        output.check(reads=[self._job.place] if self._job.place else [])
        output.check_space(folder=self.report.pruned.bytes)
        return save(self._job, self._outcome, output, Run().clock())


def _described(model: nn.Module, batch: Batch, attention_unit: AttentionUnit) -> Description:
    """What of a model can be pruned; a model that nothing is known of is looked at, on its own batch."""
    config: Any = model.config
    if family_in(config) is None:
        return describe(model, batch.inputs, attention_unit)
    return by_unit(described(config, sublayers_of(model)), attention_unit)


@usual_torch()
def prune_model(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    macs: float | Budget = 0.5,
    objective: Objective | None = None,
    method: Method | str = "default",
    calibration: CalibrationOptions | None = None,
    run: Run | None = None,
    distillation: Distillation | int | str | None = None,
    unlabelled: Iterable[Mapping[str, Any]] | None = None,
) -> PrunedModel:
    """Prune a transformers model that is in memory; nothing is read, written or evaluated.

    Args:
        model: of the transformers library, on any device and in any dtype, dense or pruned before; it is left as it
            was. Of a compiled one the model inside is taken. Where the family table has no row for it, its sublayers
            are found by running it, and proved, or it is refused.
        batches: the calibration set, anything that gives dictionaries of tensors (a DataLoader, a list): what the model
            is called with, and `labels` if the method uses them.
        macs: share of the MACs of the sublayers to keep, or a `Budget`.
        objective: what the model is for; by default what its class and config say.
        method: a preset by name, or a `Method`.
        calibration: seed, precision and memory; rows, lengths and packing are those of the batches.
        run: a listener; the device is the model's.
        distillation: as in `prune`: on `unlabelled`, of which one batch in eight judges and is not trained on.
        unlabelled: batches without labels to distil on; by default the calibration set, which is too small for much.

    Raises:
        InputError: see its subclasses in `errors`.
    """
    only_one("pruning a model in memory")
    model = _uncompiled(model)
    _check_model(model)
    options, how = as_calibration(calibration), as_method(method)
    budget, device = as_budget(macs), device_of(model)
    check_runtime(budget, device)
    check_judged(budget)
    clock = (run or Run()).clock(device)
    if not hasattr(model, "config"):
        raise UnsupportedModelError(f"a {type(model).__name__} has no config; give a model of the transformers library")
    dtype = next(model.parameters()).dtype
    # a copy is never compiled, which would run past the hooks
    as_it_is = dtype == torch.float32 and not _is_compiled(model)
    dense = model if as_it_is else in_float32(model)
    own = adopt(batches, device)
    found = _described(dense, own[0], how.attention_unit)
    subject = Subject(dense, found.sublayers, objective or objective_of(dense), dtype, dict(found.left))
    budget = with_measured_multiple(budget, subject, clock)
    place = str(getattr(model.config, "name_or_path", "") or "")
    training = None
    how_to_train = as_distillation(distillation)
    if how_to_train is not None:
        more = own if unlabelled is None else adopt(unlabelled, device)
        training = Training(how=how_to_train, unlabelled=_split(more))
    elif unlabelled is not None:
        raise OptionError("batches without labels were given, and nothing is distilled; give a distillation, too")
    job = Job(
        name=public_name(place) if place else type(model).__name__,
        place=place,
        task=subject.objective.pipeline_tag or subject.objective.name,
        calibrated=calibrate(subject, own, how, options, clock=clock),
        budget=budget,
        method=how,
        options=replace(options, rows=sum(batch.rows.numel() for batch in own)),
        calibration_hash=digest(own),
        truncated=_cut_off(own),
        timed_on=[own[0].inputs],
        training=training,
    )
    outcome = cut_and_measure(job, clock)
    pruned: Any = outcome.pruned.model
    given = pruned if dtype == torch.float32 else copy_of(pruned, dtype=dtype)
    return PrunedModel(given, outcome.report, job, outcome)


def _cut_off(batches: list[Batch]) -> int | None:
    """Rows that were cut because they were too long: none of what has no tokens; of texts, nobody says so here."""
    return 0 if not any(_TOKENS in batch.inputs for batch in batches) else None


def _split(batches: list[Batch]) -> Unlabelled:
    """Batches to train on, and those that judge. Raises DataError when there is but one."""
    judges = batches[::_ONE_IN]
    if len(batches) < 2:
        raise DataError("a single batch cannot be distilled on and judge, too; give several")
    return Unlabelled(rows=[b for i, b in enumerate(batches) if i % _ONE_IN], held_out=judges)


def _uncompiled(model: nn.Module) -> nn.Module:
    """The model inside what `torch.compile` returns; any other one as it is."""
    inside = getattr(model, "_orig_mod", None)
    return inside if isinstance(inside, nn.Module) else model


def _is_compiled(model: nn.Module) -> bool:
    """Whether `Module.compile` was called on any part of a model."""
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())


def _check_model(model: object) -> None:
    """Raise UnsupportedModelError for what is no model at all, such as a path, or one that cannot be computed with."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"{shown(model)} arrived where a model in memory belongs; open a folder with load first, or give it to "
            "prune"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"some weights of this {type(model).__name__} are on the meta device; load them first"
        )
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"this {type(model).__name__} was made under torch.inference_mode, so nothing can be differentiated "
            "through it; make or load it outside"
        )
