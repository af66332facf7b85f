"""Evaluation: logits of a model on rows, and the task's metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from faster_pruner.batches import Batch, EncodedRows, pack
from faster_pruner.capture import inference
from faster_pruner.progress import Progress, Silent, counted
from faster_pruner.results import Evaluation
from faster_pruner.tasks import Task, compute_metrics
from faster_pruner.tasks.task import CLASSIFICATION_METRICS, REGRESSION_METRICS


def predict(model: nn.Module, batches: Sequence[Batch], *, progress: Progress | None = None) -> Tensor:
    """Logits [N, C] in the original order of the rows, float32 on the CPU."""
    found: Tensor | None = None
    count = sum(batch.rows.numel() for batch in batches)
    with inference(model):
        for batch in counted(batches, progress or Silent()):
            logits = model(**batch.inputs).logits.float().cpu()
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


def evaluate_rows(
    model: nn.Module,
    rows: EncodedRows,
    task: Task,
    *,
    split: str,
    tokens_per_batch: int = 4096,
    progress: Progress | None = None,
) -> Evaluation:
    """Metrics of `model` on labelled rows."""
    assert rows.labels is not None
    batches = pack(rows, tokens_per_batch=tokens_per_batch, device=next(model.parameters()).device)
    logits = predict(model, batches, progress=progress).numpy()
    names = task_metrics(task, logits.shape[1])
    metrics = compute_metrics(names, logits, np.asarray(rows.labels))
    return Evaluation(split=split, rows=len(rows), metrics=metrics, primary=names[0])
