"""Evaluation: logits of a model on rows, and the task's metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor, nn

from faster_pruner.batches import Batch, EncodedRows, pack
from faster_pruner.capture import inference
from faster_pruner.progress import Progress, Silent, counted
from faster_pruner.results import Confidence, Evaluation
from faster_pruner.tasks import Task, compute_metrics
from faster_pruner.tasks.metrics import METRICS
from faster_pruner.tasks.task import CLASSIFICATION_METRICS, REGRESSION_METRICS

_RESAMPLES = 300


def predict(model: nn.Module, batches: Sequence[Batch], *, progress: Progress | None = None) -> Tensor:
    """Logits [N, C] in the original order of the rows, float32 on the CPU."""
    with inference(model):
        return gather(lambda inputs: model(**inputs).logits, batches, progress=progress)


def gather(
    logits_of: Callable[[dict[str, Tensor]], Tensor], batches: Sequence[Batch], *, progress: Progress | None = None
) -> Tensor:
    """Logits [N, C] of anything that gives them for a batch's inputs, in the original order of the rows."""
    found: Tensor | None = None
    count = sum(batch.rows.numel() for batch in batches)
    for batch in counted(batches, progress or Silent()):
        logits = logits_of(batch.inputs).float().cpu()
        if found is None:
            found = torch.zeros(count, logits.shape[-1])
        found[batch.rows.cpu()] = logits
    assert found is not None, "nothing to predict"
    return found


def task_metrics(task: Task, classes: int) -> tuple[str, ...]:
    """The task's metrics, or the generic ones of its kind when the model's output does not suit them."""
    regression = task.primary in REGRESSION_METRICS
    if (classes == 1) == regression:
        return task.metrics
    return REGRESSION_METRICS if classes == 1 else CLASSIFICATION_METRICS


def predict_rows(
    model: nn.Module, rows: EncodedRows, *, tokens_per_batch: int = 4096, progress: Progress | None = None
) -> np.ndarray:
    """Logits [N, C] of `model` on rows."""
    batches = pack(rows, tokens_per_batch=tokens_per_batch, device=next(model.parameters()).device)
    return predict(model, batches, progress=progress).numpy()


def score(logits: np.ndarray, rows: EncodedRows, task: Task, *, split: str) -> Evaluation:
    """Metrics of logits [N, C] on labelled rows."""
    assert rows.labels is not None
    names = task_metrics(task, logits.shape[1])
    metrics = compute_metrics(names, logits, np.asarray(rows.labels))
    return Evaluation(split=split, rows=len(rows), metrics=metrics, primary=names[0])


def evaluate_rows(
    model: nn.Module, rows: EncodedRows, task: Task, *, split: str, progress: Progress | None = None
) -> Evaluation:
    """Metrics of `model` on labelled rows."""
    return score(predict_rows(model, rows, progress=progress), rows, task, split=split)


def confidence(
    metric: str, before: np.ndarray, after: np.ndarray, rows: EncodedRows, *, resamples: int = _RESAMPLES
) -> Confidence:
    """95 % bootstrap intervals of one metric, and of its change on the same rows (paired).

    Args:
        metric: name in `tasks.metrics`.
        before: logits [N, C] of the dense model.
        after: logits [N, C] of the pruned model.
        rows: labelled rows.
        resamples: bootstrap samples (percentile method, seeded).
    """
    labels = np.asarray(rows.labels)
    compute = METRICS[metric]

    def of(statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
        found: Any = bootstrap(
            (np.arange(len(rows)),),
            statistic,
            n_resamples=resamples,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        return float(found.confidence_interval.low), float(found.confidence_interval.high)

    return Confidence(
        metric=metric,
        before=of(lambda i: compute(before[i], labels[i])),
        after=of(lambda i: compute(after[i], labels[i])),
        change=of(lambda i: compute(after[i], labels[i]) - compute(before[i], labels[i])),
    )
