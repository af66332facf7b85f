"""Metrics from predictions [P, C] and labels.

What confidence intervals compute hundreds of times per run is counted here: scikit-learn takes a millisecond to look at
what it is given, whatever the number of rows. The rest is computed by scikit-learn and scipy.

Scores are in percent (accuracy, F1, Matthews, correlations, expected calibration error); losses are in nats or squared
units.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import expit
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import log_loss, mean_squared_error

Array = np.ndarray
_BINS = 15

# Metrics in natural units; all others are percents.
IN_NATURAL_UNITS = frozenset({"loss", "squared_error", "perplexity"})


def _softmax(values: Array) -> Array:
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _accuracy(values: Array, labels: Array) -> float:
    return float((values.argmax(axis=1) == labels).mean())


def _counts(values: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Of every class [C]: how often it was predicted rightly, how often predicted, how often it is there."""
    predicted, truth = values.argmax(axis=1), labels.astype(np.int64)
    classes = max(values.shape[1], int(truth.max()) + 1)
    drawn = (truth[predicted == truth], predicted, truth)
    right, said, there = (np.bincount(each, minlength=classes) for each in drawn)
    return right, said, there


def _f1_of_counts(right: Array, said: Array, there: Array) -> Array:
    """F1 of every class; 0 of those that are neither predicted nor there."""
    return 2 * right / np.maximum(said + there, 1)


def _f1(values: Array, labels: Array) -> float:
    """F1 of class 1 for two classes (GLUE's), macro average over those that are predicted or there for more."""
    right, said, there = _counts(values, labels)
    scores = _f1_of_counts(right, said, there)
    return float(scores[1] if values.shape[1] == 2 else scores[said + there > 0].mean())


def _matthews(values: Array, labels: Array) -> float:
    """Correlation of predicted and true classes (Gorodkin 2004, eq. 8); 0 where one of the two is constant."""
    right, said, there = _counts(values, labels)
    rows = int(there.sum())
    spread = (rows**2 - int(said @ said)) * (rows**2 - int(there @ there))
    return (rows * int(right.sum()) - int(said @ there)) / math.sqrt(spread) if spread else 0.0


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


def _counts_by_label(values: Array, labels: Array) -> tuple[Array, Array, Array]:
    """As `_counts`, of every label that a row may or may not have."""
    predicted, truth = expit(values) > 0.5, labels.astype(int) == 1
    return (predicted & truth).sum(axis=0), predicted.sum(axis=0), truth.sum(axis=0)


def _micro_f1(values: Array, labels: Array) -> float:
    right, said, there = (each.sum() for each in _counts_by_label(values, labels))
    return 100 * float(_f1_of_counts(right, said, there))


def _macro_f1(values: Array, labels: Array) -> float:
    return 100 * float(_f1_of_counts(*_counts_by_label(values, labels)).mean())


CLASSIFICATION: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": lambda values, labels: 100 * _accuracy(values, labels),
    "f1": lambda values, labels: 100 * _f1(values, labels),
    "loss": _cross_entropy,
    "calibration_error": lambda values, labels: 100 * expected_calibration_error(values, labels),
    "matthews": lambda values, labels: 100 * _matthews(values, labels),
}

REGRESSION: dict[str, Callable[[Array, Array], float]] = {
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
    "squared_error": lambda values, labels: float(mean_squared_error(labels.reshape(values.shape), values)),
}

MULTI_LABEL: dict[str, Callable[[Array, Array], float]] = {
    "micro_f1": _micro_f1,
    "macro_f1": _macro_f1,
    "all_correct": lambda values, labels: 100 * float(((values > 0) == (labels > 0.5)).all(axis=1).mean()),
    "loss": _binary_cross_entropy,
}
