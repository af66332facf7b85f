"""Evaluation: a model's predictions on rows, batch by batch, and what they are worth."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from faster_pruner.data.batches import Batch, EncodedRows, pack
from faster_pruner.errors import DataError
from faster_pruner.model.passes import device_of, inference
from faster_pruner.objectives.objective import Objective
from faster_pruner.progress import Progress, Silent, counted
from faster_pruner.results import Confidence, Evaluation

_RESAMPLES, _SEED, _PERCENTILES = 300, 0, (2.5, 97.5)
_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class Predicted:
    """What a model predicts for a split, sorted by row.

    Attributes:
        values: [P, k], as the objective keeps predictions.
        rows: [P], the row of each.
        labels: [P] or [P, C]; None without.
    """

    values: np.ndarray
    rows: np.ndarray
    labels: np.ndarray | None


def predict(
    model: nn.Module, objective: Objective, batches: Sequence[Batch], *, progress: Progress | None = None
) -> Predicted:
    """Predictions of a model; of each batch only what the objective keeps stays in memory."""
    with inference(model):
        return gather(lambda inputs: model(**inputs), objective, batches, progress=progress)


def gather(
    call: Callable[[dict[str, Any]], Any],
    objective: Objective,
    batches: Sequence[Batch],
    *,
    progress: Progress | None = None,
) -> Predicted:
    """Predictions of anything that can be called with a batch's inputs and returns what the model would."""
    values: list[torch.Tensor] = []
    rows: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    for batch in counted(batches, progress or Silent()):
        predictions = objective.readout(call(batch.inputs), batch)
        # a copy: a part that is kept as a view would hold on to the whole
        values.append(objective.keep(predictions).detach().to("cpu", torch.float32, copy=True))
        rows.append(predictions.rows.cpu())
        if predictions.labels is not None:
            labels.append(predictions.labels.cpu())
    if not values:
        raise DataError("there are no rows to predict")
    order = torch.cat(rows).argsort(stable=True)
    labelled = torch.cat(labels)[order].numpy() if labels else None
    return Predicted(torch.cat(values)[order].numpy(), torch.cat(rows)[order].numpy(), labelled)


def predict_rows(
    model: nn.Module, objective: Objective, rows: EncodedRows, *, progress: Progress | None = None
) -> Predicted:
    """Predictions of a model on rows."""
    batches = pack(rows, tokens_per_batch=_TOKENS_PER_BATCH, device=device_of(model))
    return predict(model, objective, batches, progress=progress)


def evaluate(predicted: Predicted, objective: Objective, *, split: str, rows: int) -> Evaluation:
    """Metrics of labelled predictions."""
    assert predicted.labels is not None
    metrics = objective.score(predicted.values, predicted.labels)
    return Evaluation(split=split, rows=rows, metrics=metrics, primary=next(iter(metrics)))


def confidence(
    metric: str, objective: Objective, before: Predicted, after: Predicted, *, resamples: int = _RESAMPLES
) -> Confidence:
    """95 % bootstrap intervals of one metric before and after, and of its change on the same rows (paired).

    Args:
        metric: its name.
        objective: that has it.
        before: of the dense model.
        after: of the pruned model, on the same rows.
        resamples: bootstrap samples of the rows (percentile method, seeded). Those that the metric is not defined on
            are left out.

    Raises:
        DataError: the metric is defined on none of the samples.
    """
    labels = before.labels
    assert labels is not None
    compute = objective.metrics[metric]
    # predictions of a row go together
    starts = np.flatnonzero(np.diff(before.rows, prepend=-1))
    counts = np.diff(starts, append=before.rows.size)
    generator = np.random.default_rng(_SEED)
    found: list[tuple[float, float, float]] = []
    with warnings.catch_warnings():
        # what a metric says of the whole split it has said before
        warnings.simplefilter("ignore")
        for _ in range(resamples):
            chosen = generator.integers(0, starts.size, starts.size)
            ends = counts[chosen].cumsum()
            places = np.arange(ends[-1]) + np.repeat(starts[chosen] - ends + counts[chosen], counts[chosen])
            # some metrics do not exist on a sample that holds one class only
            with suppress(ValueError, ArithmeticError):
                old = compute(before.values[places], labels[places])
                new = compute(after.values[places], labels[places])
                found.append((old, new, new - old))
    finite = [sample for sample in found if np.isfinite(sample).all()]
    if not finite:
        raise DataError(f"{metric} is defined on no sample of the rows")
    low, high = np.percentile(finite, _PERCENTILES, axis=0)
    intervals = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    return Confidence(metric=metric, before=intervals[0], after=intervals[1], change=intervals[2])
