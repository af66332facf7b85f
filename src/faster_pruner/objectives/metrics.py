"""Metrics from predictions [P, C] and labels; scikit-learn and scipy do the computing.

Scores are in percent (accuracy, F1, Matthews, correlations, expected calibration error); losses are in nats or squared
units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef, mean_squared_error

Array = np.ndarray
_BINS = 15

# Metrics in natural units; all others are percents.
IN_NATURAL_UNITS = frozenset({"loss", "squared_error", "perplexity"})


def _softmax(values: Array) -> Array:
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _f1(values: Array, labels: Array) -> float:
    """F1 of class 1 for two classes (GLUE's), macro average for more."""
    average = "binary" if values.shape[1] == 2 else "macro"
    score: Any = f1_score
    return float(score(labels, values.argmax(axis=1), average=average, zero_division=0))


def _correlation(function: Callable[[Array, Array], object]) -> Callable[[Array, Array], float]:
    def metric(values: Array, labels: Array) -> float:
        scores, targets = values.ravel(), labels.ravel()
        if np.ptp(scores) == 0 or np.ptp(targets) == 0:
            return 0.0
        return 100 * float(function(scores, targets).statistic)  # pyright: ignore[reportAttributeAccessIssue]

    return metric


def mean_percent(lines: Array) -> float:
    """Mean of a table of shares, in percent."""
    return 100 * float(lines.mean())


def expected_calibration_error(values: Array, labels: Array) -> float:
    """Mean gap between confidence and accuracy over 15 equal-width bins of confidence (Guo et al. 2017), 0 to 1."""
    p = _softmax(values)
    confidence, hit = p.max(axis=1), p.argmax(axis=1) == labels
    place = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [
        abs(confidence[place == b].mean() - hit[place == b].mean()) * (place == b).mean()
        for b in range(_BINS)
        if (place == b).any()
    ]
    return float(sum(gaps))


def _cross_entropy(values: Array, labels: Array) -> float:
    return float(log_loss(labels, _softmax(values.astype(np.float64)), labels=list(range(values.shape[1]))))


def _binary_cross_entropy(values: Array, labels: Array) -> float:
    # log(1 + exp(x)) - x y, without overflow
    wide = values.astype(np.float64)
    return float((np.logaddexp(0, wide) - wide * labels).mean())


def _multi_label_f1(average: str) -> Callable[[Array, Array], float]:
    def metric(values: Array, labels: Array) -> float:
        score: Any = f1_score
        return 100 * float(score(labels.astype(int), expit(values) > 0.5, average=average, zero_division=0))

    return metric


CLASSIFICATION: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": lambda values, labels: 100 * float(accuracy_score(labels, values.argmax(axis=1))),
    "f1": lambda values, labels: 100 * _f1(values, labels),
    "loss": _cross_entropy,
    "calibration_error": lambda values, labels: 100 * expected_calibration_error(values, labels),
    "matthews": lambda values, labels: 100 * float(matthews_corrcoef(labels, values.argmax(axis=1))),
}

REGRESSION: dict[str, Callable[[Array, Array], float]] = {
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
    "squared_error": lambda values, labels: float(mean_squared_error(labels.reshape(values.shape), values)),
}

MULTI_LABEL: dict[str, Callable[[Array, Array], float]] = {
    "micro_f1": _multi_label_f1("micro"),
    "macro_f1": _multi_label_f1("macro"),
    "all_correct": lambda values, labels: 100 * float(((values > 0) == (labels > 0.5)).all(axis=1).mean()),
    "loss": _binary_cross_entropy,
}
