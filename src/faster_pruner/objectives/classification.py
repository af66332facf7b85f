"""One prediction per row: a class, several labels at once, or a target."""

from __future__ import annotations

from typing import Any

from faster_pruner.data.batches import Batch
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.objectives import metrics
from faster_pruner.objectives.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from faster_pruner.objectives.objective import Metric, Objective, Predictions

TASK = "text-classification"
AUTO_CLASS = "AutoModelForSequenceClassification"

_MULTI_LABEL = "multi_label_classification"
_REGRESSION = "regression"


def per_row(returned: Any, batch: Batch) -> Predictions:
    """One prediction per row: the logits [B, C]."""
    return Predictions(returned.logits, batch.rows, batch.labels)


def _objective(name: str, likelihood: Likelihood, known: dict[str, Metric], reported: tuple[str, ...]) -> Objective:
    return Objective(
        name=name,
        readout=per_row,
        likelihood=likelihood,
        metrics=known,
        reported=reported,
        auto_class=AUTO_CLASS,
        pipeline_tag=TASK,
    )


CLASSIFICATION = _objective(
    "classification", Categorical(), metrics.CLASSIFICATION, ("accuracy", "f1", "loss", "calibration_error")
)
MULTI_LABEL = _objective("multi-label classification", Bernoulli(), metrics.MULTI_LABEL, ())
REGRESSION = _objective("regression", Gaussian(), metrics.REGRESSION, ())


def objective_for(config: Any) -> Objective:
    """The objective that a model's head was trained for, from its config. Raises UnsupportedModelError."""
    problem, labels = getattr(config, "problem_type", None), int(config.num_labels)
    if problem == _MULTI_LABEL:
        return MULTI_LABEL
    if problem == _REGRESSION or labels == 1:
        return REGRESSION
    if problem not in (None, "single_label_classification"):
        raise UnsupportedModelError(
            f"the config's problem_type is {problem!r}; supported are {_REGRESSION}, single_label_classification and "
            f"{_MULTI_LABEL}"
        )
    return CLASSIFICATION
