"""Evaluation: a model's predictions on rows, batch by batch, and what they are worth."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from faster_pruner.data.batches import Batch, EncodedRows, pack
from faster_pruner.errors import DataError
from faster_pruner.model.passes import device_of, inference
from faster_pruner.objectives.objective import ByRow, Objective, OfRows, Predicted, Predictions
from faster_pruner.objectives.parts import predicted
from faster_pruner.progress import Progress, Silent, counted
from faster_pruner.results import Confidence, Evaluation

RESAMPLES, _SEED, _PERCENTILES = 300, 0, (2.5, 97.5)
TOKENS_PER_BATCH = 4096


def predict(
    model: nn.Module,
    objective: Objective,
    batches: Sequence[Batch],
    *,
    context: object = None,
    progress: Progress | None = None,
) -> Predicted:
    """Predictions of a model, as in `gather`; of each batch only what the objective keeps stays in memory."""
    with inference(model):
        return _collected(lambda batch: predicted(model, objective, batch), objective, batches, context, progress)


def gather(
    call: Callable[[dict[str, Any]], Any],
    objective: Objective,
    batches: Sequence[Batch],
    *,
    context: object = None,
    progress: Progress | None = None,
) -> Predicted:
    """Predictions of anything that can be called with a batch's inputs and returns what the model would.

    Args:
        call: it.
        objective: that reads what is returned.
        batches: in any order.
        context: of the rows, for the metrics.
        progress: told after each batch.

    Raises:
        DataError: there are no rows.
    """
    return _collected(
        lambda batch: [objective.readout(call(batch.inputs), batch)], objective, batches, context, progress
    )


def _collected(
    predict: Callable[[Batch], Iterable[Predictions]],
    objective: Objective,
    batches: Sequence[Batch],
    context: object,
    progress: Progress | None,
) -> Predicted:
    """What the objective keeps of the predictions of all batches, which come in parts. Raises DataError."""
    values: list[torch.Tensor] = []
    rows: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    for batch in counted(batches, progress or Silent()):
        for predictions in predict(batch):
            # a copy: a part that is kept as a view would hold on to the whole
            values.append(objective.keep(predictions).detach().to("cpu", torch.float32, copy=True))
            rows.append(predictions.rows.cpu())
            if predictions.labels is not None:
                labels.append(predictions.labels.cpu())
    if not values:
        raise DataError("there are no rows to predict")
    order = torch.cat(rows).argsort(stable=True)
    labelled = torch.cat(labels)[order].numpy() if labels else None
    return Predicted(torch.cat(values)[order].numpy(), torch.cat(rows)[order].numpy(), labelled, context)


def predict_rows(
    model: nn.Module, objective: Objective, rows: EncodedRows, *, progress: Progress | None = None
) -> Predicted:
    """Predictions of a model on rows."""
    batches = pack(rows, tokens_per_batch=TOKENS_PER_BATCH, device=device_of(model))
    return predict(model, objective, batches, context=rows.context, progress=progress)


def evaluate(
    predicted: Predicted, objective: Objective, *, split: str, rows: int, dense: Predicted | None = None
) -> Evaluation:
    """Metrics of predictions.

    Args:
        predicted: by the model that is judged.
        objective: that has the metrics.
        split: its name.
        rows: how many it has.
        dense: predictions of the dense model on the same rows, for metrics that compare with it.

    Raises:
        DataError: no metric can be computed of such rows.
    """
    metrics = objective.score(predicted, dense)
    if not metrics:
        raise DataError(f"the rows of {split} have nothing to judge a model by: no labels, no scores, no dense model")
    return Evaluation(split=split, rows=rows, metrics=metrics, primary=next(iter(metrics)))


def confidence(
    metric: str, objective: Objective, before: Predicted, after: Predicted, *, resamples: int = RESAMPLES
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
    chosen = objective.metrics[metric]
    if isinstance(chosen, ByRow):
        draw = _draws_of_counts(chosen, before, after)
    else:
        draw = _draws_of_lines(chosen, before, after) if isinstance(chosen, OfRows) else _draws(chosen, before, after)
    generator = np.random.default_rng(_SEED)
    found: list[tuple[float, float, float]] = []
    with warnings.catch_warnings():
        # what a metric says of the whole split it has said before
        warnings.simplefilter("ignore")
        for _ in range(resamples):
            # some metrics do not exist on a sample that holds one class only
            with suppress(ValueError, ArithmeticError):
                old, new = draw(generator)
                found.append((old, new, new - old))
    finite = [sample for sample in found if np.isfinite(sample).all()]
    if not finite:
        raise DataError(f"{metric} is defined on no sample of the rows")
    low, high = np.percentile(finite, _PERCENTILES, axis=0)
    intervals = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    return Confidence(metric=metric, before=intervals[0], after=intervals[1], change=intervals[2])


# One bootstrap sample of the rows -> the metric before and after.
_Draw = Callable[[np.random.Generator], tuple[float, float]]


def _draws(compute: Callable[[np.ndarray, np.ndarray], float], before: Predicted, after: Predicted) -> _Draw:
    """Samples of a metric that needs all predictions at once."""
    labels = before.labels
    assert labels is not None
    # predictions of a row go together
    starts = np.flatnonzero(np.diff(before.rows, prepend=-1))
    counts = np.diff(starts, append=before.rows.size)

    def draw(generator: np.random.Generator) -> tuple[float, float]:
        chosen = generator.integers(0, starts.size, starts.size)
        ends = counts[chosen].cumsum()
        places = np.arange(ends[-1]) + np.repeat(starts[chosen] - ends + counts[chosen], counts[chosen])
        return compute(before.values[places], labels[places]), compute(after.values[places], labels[places])

    return draw


def _draws_of_counts(metric: ByRow, before: Predicted, after: Predicted) -> _Draw:
    """Samples of a metric that is a function of sums over rows: only lines of counts are drawn."""
    old, new = metric.counts(before), metric.counts(after)

    def draw(generator: np.random.Generator) -> tuple[float, float]:
        chosen = generator.integers(0, len(old), len(old))
        return metric.value(old[chosen].sum(axis=0)), metric.value(new[chosen].sum(axis=0))

    return draw


def _draws_of_lines(metric: OfRows, before: Predicted, after: Predicted) -> _Draw:
    """Samples of a metric of a table: lines are drawn."""
    old, new = metric.table(before, before), metric.table(after, before)
    assert old is not None
    assert new is not None

    def draw(generator: np.random.Generator) -> tuple[float, float]:
        chosen = generator.integers(0, len(old), len(old))
        return metric.value(old[chosen]), metric.value(new[chosen])

    return draw
