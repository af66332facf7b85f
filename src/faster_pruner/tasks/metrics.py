"""Metrics from logits [N, C] and labels [N]: scikit-learn and scipy do the computing.

Scores are in percent (accuracy, F1, Matthews, correlations, expected calibration error); `loss` is in nats or squared
units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef, mean_squared_error

Array = np.ndarray
_BINS = 15


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _f1(logits: Array, labels: Array) -> float:
    """F1 of class 1 for two classes (GLUE's), macro average for more."""
    average = "binary" if logits.shape[1] == 2 else "macro"
    score: Any = f1_score
    return float(score(labels, logits.argmax(axis=1), average=average, zero_division=0))


def _correlation(function: Callable[[Array, Array], object]) -> Callable[[Array, Array], float]:
    def metric(logits: Array, labels: Array) -> float:
        scores = logits[:, 0]
        if np.ptp(scores) == 0 or np.ptp(labels) == 0:
            return 0.0
        return float(function(scores, labels).statistic)  # pyright: ignore[reportAttributeAccessIssue]

    return metric


def expected_calibration_error(logits: Array, labels: Array) -> float:
    """Mean gap between confidence and accuracy over 15 equal-width bins of confidence (Guo et al. 2017), 0 to 1."""
    p = _softmax(logits)
    confidence, hit = p.max(axis=1), p.argmax(axis=1) == labels
    place = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [
        abs(confidence[place == b].mean() - hit[place == b].mean()) * (place == b).mean()
        for b in range(_BINS)
        if (place == b).any()
    ]
    return float(sum(gaps))


def _cross_entropy(logits: Array, labels: Array) -> float:
    return float(log_loss(labels, _softmax(logits.astype(np.float64)), labels=list(range(logits.shape[1]))))


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": lambda logits, labels: 100 * float(accuracy_score(labels, logits.argmax(axis=1))),
    "f1": lambda logits, labels: 100 * _f1(logits, labels),
    "matthews": lambda logits, labels: 100 * float(matthews_corrcoef(labels, logits.argmax(axis=1))),
    "pearson": lambda logits, labels: 100 * _correlation(pearsonr)(logits, labels),
    "spearman": lambda logits, labels: 100 * _correlation(spearmanr)(logits, labels),
    "calibration_error": lambda logits, labels: 100 * expected_calibration_error(logits, labels),
    "loss": _cross_entropy,
    "squared_error": lambda logits, labels: float(mean_squared_error(labels, logits[:, 0])),
}


def compute_metrics(names: Sequence[str], logits: Array, labels: Array) -> dict[str, float]:
    """The named metrics."""
    return {name: METRICS[name](logits, labels) for name in names}
