"""Rows of text to tokens and labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from faster_pruner.data.batches import TOKEN_KEYS, EncodedRows, Label
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError
from faster_pruner.objectives.classification import MULTI_LABEL, REGRESSION, objective_for


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
        DataError: a missing column, an empty text, or a label that the model does not have.
    """
    columns = [task.text_column] + ([task.pair_column] if task.pair_column else [])
    _require(rows, columns + ([task.label_column] if labelled else []))
    texts = [[row[column] for row in rows] for column in columns]
    for column, values in zip(columns, texts, strict=True):
        bad = next((i for i, value in enumerate(values) if not isinstance(value, str)), None)
        if bad is not None:
            raise DataError(f"row {bad} has no text in column {column!r}: {values[bad]!r}")
    encoded: Any = tokenizer(
        texts[0], text_pair=texts[1] if task.pair_column else None, truncation=True, max_length=limit
    )
    keys = [key for key in TOKEN_KEYS if key in encoded]
    return EncodedRows(
        tokens=[{key: encoded[key][i] for key in keys} for i in range(len(rows))],
        labels=_labels([row[task.label_column] for row in rows], task, config) if labelled else None,
        padding={"input_ids": _padding_id(tokenizer), "token_type_ids": 0},
        left_padded=tokenizer.padding_side == "left",
    )


def _require(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Raise DataError when a column is missing."""
    for column in columns:
        if column not in rows[0]:
            raise DataError(f"the data has no column {column!r}; it has: {', '.join(map(str, rows[0]))}")


def _padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token's id, 0 where there is none (padding is masked out)."""
    return tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0


def _labels(values: list[Any], task: Task, config: Any) -> list[Label]:
    """Class indices of the model, targets, or one number per class."""
    objective = objective_for(config)
    if objective is REGRESSION:
        return [_targets(value, i, task, config) for i, value in enumerate(values)]
    order = _class_order(task, config)
    if objective is MULTI_LABEL:
        return [_several(value, i, order, config, task) for i, value in enumerate(values)]
    return [_class_index(value, i, order, config, task) for i, value in enumerate(values)]


def _targets(value: Any, row: int, task: Task, config: Any) -> Label:
    """One target, or one per output of the model."""
    count = int(config.num_labels)
    if count == 1:
        return _target(value, row, task)
    if not isinstance(value, list | tuple) or len(value) != count:
        raise DataError(f"row {row}: label {value!r} in column {task.label_column!r} is not a list of {count} numbers")
    return [_target(each, row, task) for each in value]


def _target(value: Any, row: int, task: Task) -> float:
    """A regression target."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"row {row}: label {value!r} in column {task.label_column!r} is not a number")
    return number


def _several(value: Any, row: int, order: list[int] | None, config: Any, task: Task) -> list[float]:
    """Zeros and ones per class of the model: from such a list, or from a list of classes by index or name."""
    count = int(config.num_labels)
    if not isinstance(value, list | tuple):
        raise DataError(
            f"row {row}: label {value!r} in column {task.label_column!r} is not a list; the model gives each of its "
            f"{count} classes a yes or no, so a row's label is {count} zeros and ones, or a list of classes"
        )
    given: list[Any] = list(value)
    if len(given) == count and all(each in (0, 1) for each in given):
        chosen = [i for i, each in enumerate(given) if each]
    else:
        chosen = [_class_index(each, row, order, config, task) for each in given]
    return [float(i in chosen) for i in range(count)]


def _class_order(task: Task, config: Any) -> list[int] | None:
    """Model class of each class index of the data, when both sides have the same names; None when names do not tell."""
    by_name = {str(name).lower(): int(index) for name, index in config.label2id.items()}
    if task.label_names and all(name in by_name for name in task.label_names):
        return [by_name[name] for name in task.label_names]
    return None


def _class_index(value: Any, row: int, order: list[int] | None, config: Any, task: Task) -> int:
    """The model's class for one label: an index, or a name that the model's config lists."""
    if isinstance(value, str) and not value.lstrip("-").isdigit():
        by_name = {str(name).lower(): int(index) for name, index in config.label2id.items()}
        if value.lower() not in by_name:
            raise DataError(
                f"row {row}: label {value!r} in column {task.label_column!r} is not one of the model's: "
                f"{', '.join(by_name)}"
            )
        return by_name[value.lower()]
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not number.is_integer() or not 0 <= number < int(config.num_labels):
        raise DataError(
            f"row {row}: label {value!r} in column {task.label_column!r} is not a class of the model, "
            f"which has {config.num_labels} (0 to {config.num_labels - 1})"
        )
    index = int(number)
    return order[index] if order is not None and index < len(order) else index
