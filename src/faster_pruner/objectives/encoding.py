"""Rows of text to tokens and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from faster_pruner.checks import shown
from faster_pruner.data.batches import TOKEN_KEYS, EncodedRows, Label
from faster_pruner.data.files import Rows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError
from faster_pruner.objectives.classification import MULTI_LABEL, REGRESSION, objective_for

# Labels become float32.
_LARGEST = 3.4e38


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
    given = rows if isinstance(rows, Rows) else Rows([dict(row) for row in rows])
    columns = [task.text_column] + ([task.pair_column] if task.pair_column else [])
    _require(given, columns + ([task.label_column] if labelled else []))
    texts = [[row[column] for row in given] for column in columns]
    for column, values in zip(columns, texts, strict=True):
        _check_texts(given, column, values)
    encoded: Any = tokenizer(
        texts[0], text_pair=texts[1] if task.pair_column else None, truncation=True, max_length=limit
    )
    keys = [key for key in TOKEN_KEYS if key in encoded]
    empty = next((i for i, tokens in enumerate(encoded["input_ids"]) if not tokens), None)
    if empty is not None:
        raise DataError(
            f"{given.where(empty)}: the tokenizer makes no token of {shown(texts[0][empty])} in column "
            f"{task.text_column!r}; leave such rows out"
        )
    return EncodedRows(
        tokens=[{key: encoded[key][i] for key in keys} for i in range(len(given))],
        labels=_labels(given, task, config) if labelled else None,
        padding={"input_ids": _padding_id(tokenizer), "token_type_ids": 0},
        left_padded=tokenizer.padding_side == "left",
        split=given.split,
    )


def _require(rows: Rows, columns: Sequence[str]) -> None:
    """Raise DataError when a column is missing, from all rows or from one."""
    if not rows:
        raise DataError("there are no rows")
    for column in columns:
        lacking = next((i for i, row in enumerate(rows) if column not in row), None)
        if lacking is not None:
            everywhere = all(column not in row for row in rows)
            where = "the data has" if everywhere else f"{rows.where(lacking)} has"
            raise DataError(f"{where} no column {column!r}; it has: {', '.join(map(str, rows[lacking]))}")


def _check_texts(rows: Rows, column: str, values: Sequence[Any]) -> None:
    """Raise DataError at the first value that is no text."""
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{rows.where(i)} has no text in column {column!r}: {shown(value)}")
        if any("\ud800" <= letter <= "\udfff" for letter in value if not value.isascii()):
            raise DataError(f"{rows.where(i)}, column {column!r}: {shown(value)} holds half a character")


def _padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token's id, 0 where there is none (padding is masked out)."""
    return tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0


# One label as it is written -> as the model's loss takes it. Raises _NoLabel.
_Reader = Callable[[Any], Label]


class _NoLabel(Exception):
    """A value that is no label of the model, and what it is not."""

    def __init__(self, value: Any, what: str) -> None:
        super().__init__(what)
        self.value = value


def _labels(rows: Rows, task: Task, config: Any) -> list[Label]:
    """Class indices of the model, targets, or one number per class."""
    read = _reader(task, config)
    found: list[Label] = []
    for i, row in enumerate(rows):
        try:
            found.append(read(row[task.label_column]))
        except _NoLabel as error:
            column = f"in column {task.label_column!r}"
            raise DataError(f"{rows.where(i)}: label {shown(error.value)} {column} is not {error}") from error
    return found


def _reader(task: Task, config: Any) -> _Reader:
    """How the labels of a task are read for a model."""
    objective, count = objective_for(config), int(config.num_labels)
    if objective is REGRESSION:
        return _target if count == 1 else partial(_targets, count=count)
    classes = _Classes.of(task, config)
    return classes.several if objective is MULTI_LABEL else classes.one


def _number(value: Any) -> float:
    """A finite number that float32 has, from a number or its text; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if abs(number) <= _LARGEST else math.nan


def _target(value: Any) -> float:
    """A regression target."""
    number = _number(value)
    if math.isnan(number):
        raise _NoLabel(value, "a number")
    return number


def _targets(value: Any, *, count: int) -> Label:
    """One target per output of the model."""
    if not isinstance(value, list | tuple) or len(cast("list[Any]", value)) != count:
        raise _NoLabel(value, f"a list of {count} numbers")
    return [_target(each) for each in cast("list[Any]", value)]


@dataclass(frozen=True)
class _Classes:
    """The classes of a model, and how a task's data number them.

    Attributes:
        count: of classes.
        by_name: the model's class of each name, in lower case.
        order: the model's class of each class index of the data, where both sides have the same names; else None.
    """

    count: int
    by_name: dict[str, int]
    order: list[int] | None

    @classmethod
    def of(cls, task: Task, config: Any) -> _Classes:
        """Those of a model's config."""
        by_name = {str(name).lower(): int(index) for name, index in config.label2id.items()}
        known = bool(task.label_names) and all(name in by_name for name in task.label_names)
        return cls(int(config.num_labels), by_name, [by_name[name] for name in task.label_names] if known else None)

    def one(self, value: Any) -> int:
        """The model's class for one label: an index, or a name that the model's config lists."""
        if isinstance(value, str) and value.lower() in self.by_name:
            return self.by_name[value.lower()]
        # yes and no are classes where there are two
        number = float(value) if isinstance(value, bool) and self.count == 2 else _number(value)
        if isinstance(value, str) and math.isnan(number):
            raise _NoLabel(value, f"one of the model's: {', '.join(self.by_name)}")
        if not number.is_integer() or not 0 <= number < self.count:
            raise _NoLabel(value, f"a class of the model, which has {self.count} (0 to {self.count - 1})")
        index = int(number)
        return self.order[index] if self.order is not None and index < len(self.order) else index

    def several(self, value: Any) -> list[float]:
        """Zeros and ones per class of the model: from such a list, or from a list of classes by index or name."""
        if not isinstance(value, list | tuple):
            raise _NoLabel(
                value,
                f"a list; the model gives each of its {self.count} classes a yes or no, so a row's label is "
                f"{self.count} zeros and ones, or a list of classes",
            )
        given: list[Any] = list(cast("list[Any]", value))
        if len(given) == self.count and all(isinstance(each, int | float) and each in (0, 1) for each in given):
            chosen = [i for i, each in enumerate(given) if each]
        else:
            chosen = [self.one(each) for each in given]
        return [float(i in chosen) for i in range(self.count)]
