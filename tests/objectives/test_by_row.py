"""Metrics that are functions of sums over rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from faster_pruner.objectives.classification import CLASSIFICATION
from faster_pruner.objectives.evaluation import confidence, evaluate
from faster_pruner.objectives.objective import ByRow, Predicted


def hits(predicted: Predicted) -> np.ndarray:
    """[R, 2]: right predictions of a row, and all of them."""
    assert predicted.labels is not None
    right = predicted.values.argmax(axis=1) == predicted.labels
    rows = np.unique(predicted.rows)
    return np.array([[right[predicted.rows == row].sum(), (predicted.rows == row).sum()] for row in rows])


ACCURACY = ByRow(hits, lambda sums: 100 * float(sums[0] / sums[1]))


def made(seed: int) -> Predicted:
    generator = np.random.default_rng(seed)
    rows = np.repeat(np.arange(50), np.random.default_rng(7).integers(1, 5, 50))
    labels = np.random.default_rng(8).integers(0, 3, rows.size)
    return Predicted(generator.normal(size=(rows.size, 3)).astype(np.float32), rows, labels)


def test_it_is_what_the_same_metric_of_all_predictions_is() -> None:
    """The same samples of rows, too: intervals agree to the last digits."""
    by_row = replace(CLASSIFICATION, metrics={"accuracy": ACCURACY}, reported=())
    before, after = made(0), made(1)
    expected = CLASSIFICATION.judged_by(("accuracy",)).score(before)
    assert by_row.score(before) == pytest.approx(expected)
    assert evaluate(before, by_row, split="s", rows=50).metrics == pytest.approx(expected)
    found, plain = (confidence("accuracy", each, before, after) for each in (by_row, CLASSIFICATION))
    for one, other in zip(
        (*found.before, *found.after, *found.change), (*plain.before, *plain.after, *plain.change), strict=True
    ):
        assert one == pytest.approx(other)


def test_metrics_that_share_their_counts_count_once() -> None:
    seen: list[object] = []

    def counts(predicted: Predicted) -> np.ndarray:
        seen.append(predicted.context)
        return np.array([[1.0, 2.0], [3.0, 4.0]])

    metrics = {"one": ByRow(counts, lambda sums: sums[0]), "two": ByRow(counts, lambda sums: sums[1])}
    objective = replace(CLASSIFICATION, metrics=metrics, reported=())
    assert objective.score(replace(made(0), labels=None, context="known")) == {"one": 4.0, "two": 6.0}
    assert seen == ["known"]
