"""One prediction per row: a class, several labels at once, or a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from faster_pruner.data.batches import Batch, EncodedRows, Label
from faster_pruner.data.files import Rows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.objectives import metrics
from faster_pruner.objectives.encoding import (
    Classes,
    NotALabel,
    as_number,
    as_rows,
    check_texts,
    cut_off,
    encoded_texts,
    not_a_label,
    require_columns,
)
from faster_pruner.objectives.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from faster_pruner.objectives.objective import Metric, Objective, Predictions

TASK = "text-classification"
AUTO_CLASS = "AutoModelForSequenceClassification"
COLUMNS = ("text", None, "label")

_MULTI_LABEL = "multi_label_classification"
_REGRESSION = "regression"


def per_row(returned: Any, batch: Batch) -> Predictions:
    """One prediction per row: the logits [B, C]."""
    return Predictions(returned.logits, batch.rows, batch.labels)


def _objective(name: str, likelihood: Likelihood, known: Mapping[str, Metric], reported: tuple[str, ...]) -> Objective:
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


def encode(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: Any,
    limit: int,
    labelled: bool = True,
) -> EncodedRows:
    """Tokenise the task's texts and read its labels.

    Args:
        rows: as loaded.
        task: columns and label names.
        tokenizer: of the model.
        config: the model's config: its problem type, number of labels and their names.
        limit: rows are truncated to this many tokens.
        labelled: read the label column; without it the rows carry no labels.

    Raises:
        DataError: a missing column, no text, or a label that the model does not have.
    """
    given = as_rows(rows)
    columns = [task.text_column] + ([task.pair_column] if task.pair_column else [])
    require_columns(given, columns + ([task.label_column] if labelled else []))
    texts = [[row[column] for row in given] for column in columns]
    for column, values in zip(columns, texts, strict=True):
        check_texts(given, column, values)
    encoded: Any = tokenizer(
        texts[0], text_pair=texts[1] if task.pair_column else None, truncation=True, max_length=limit
    )
    found = replace(encoded_texts(given, encoded, tokenizer, task.text_column), truncated=cut_off(encoded, limit))
    return replace(found, labels=read_labels(given, task, config)) if labelled else found


# One label as it is written -> as the model's loss takes it. Raises NotALabel.
_Reader = Callable[[Any], Label]


def read_labels(rows: Rows, task: Task, config: Any) -> list[Label]:
    """Class indices of the model, targets, or one number per class. Raises DataError."""
    read = _reader(task, config)
    found: list[Label] = []
    for i, row in enumerate(rows):
        try:
            found.append(read(row[task.label_column]))
        except NotALabel as error:
            raise not_a_label(rows, i, task.label_column, error) from error
    return found


def _reader(task: Task, config: Any) -> _Reader:
    """How the labels of a task are read for a model."""
    objective, count = objective_for(config), int(config.num_labels)
    if objective is REGRESSION:
        return _target if count == 1 else partial(_targets, count=count)
    classes = Classes.of(task, config)
    return classes.several if objective is MULTI_LABEL else classes.one


def _target(value: Any) -> float:
    """A regression target."""
    number = as_number(value)
    if math.isnan(number):
        raise NotALabel(value, "a number")
    return number


def _targets(value: Any, *, count: int) -> Label:
    """One target per output of the model."""
    if not isinstance(value, list | tuple) or len(cast("list[Any]", value)) != count:
        raise NotALabel(value, f"a list of {count} numbers")
    return [_target(each) for each in cast("list[Any]", value)]
