"""What the encodings of all kinds of tasks have in common: columns, texts, and classes by name or index."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from faster_pruner.checks import shown
from faster_pruner.data.batches import TOKEN_KEYS, EncodedRows
from faster_pruner.data.files import Rows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError

# Classes that an error lists.
_NAMED = 20
# Labels become float32.
_LARGEST = 3.4e38


def as_rows(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Rows that know where they stand."""
    return rows if isinstance(rows, Rows) else Rows([dict(row) for row in rows])


def require_columns(rows: Rows, columns: Sequence[str]) -> None:
    """Raise DataError when a column is missing, from all rows or from one."""
    if not rows:
        raise DataError("there are no rows")
    for column in columns:
        lacking = next((i for i, row in enumerate(rows) if column not in row), None)
        if lacking is not None:
            everywhere = all(column not in row for row in rows)
            where = "the data has" if everywhere else f"{rows.where(lacking)} has"
            raise DataError(f"{where} no column {column!r}; it has: {', '.join(map(str, rows[lacking]))}")


def check_texts(rows: Rows, column: str, values: Sequence[Any]) -> None:
    """Raise DataError at the first value that is no text."""
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{rows.where(i)} has no text in column {column!r}: {shown(value)}")
        if any("\ud800" <= letter <= "\udfff" for letter in value if not value.isascii()):
            raise DataError(f"{rows.where(i)}, column {column!r}: {shown(value)} holds half a character")


def encoded_texts(rows: Rows, encoded: Any, tokenizer: PreTrainedTokenizerBase, column: str) -> EncodedRows:
    """What a tokenizer made of the rows, without labels. Raises DataError where it made no token at all.

    Args:
        rows: one for each entry of `encoded`.
        encoded: what the tokenizer returned, lists by key.
        tokenizer: for its padding.
        column: that the texts come from.
    """
    keys = [key for key in TOKEN_KEYS if key in encoded]
    empty = next((i for i, tokens in enumerate(encoded["input_ids"]) if not tokens), None)
    if empty is not None:
        raise DataError(
            f"{rows.where(empty)}: the tokenizer makes no token of {shown(rows[empty][column])} in column "
            f"{column!r}; leave such rows out"
        )
    return EncodedRows(
        tokens=[{key: encoded[key][i] for key in keys} for i in range(len(encoded["input_ids"]))],
        labels=None,
        padding={"input_ids": _padding_id(tokenizer), "token_type_ids": 0},
        left_padded=tokenizer.padding_side == "left",
        split=rows.split,
    )


def cut_off(encoded: Any, limit: int) -> int:
    """Texts that a tokenizer truncated to `limit` tokens; of one that does not say, those that reach the limit."""
    if encoded.encodings is None:
        return sum(len(tokens) >= limit for tokens in encoded["input_ids"])
    return sum(bool(encoding.overflowing) for encoding in encoded.encodings)


def _padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token's id, 0 where there is none (padding is masked out)."""
    return tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0


def _some(names: Sequence[str]) -> str:
    """The first names of possibly very many."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


class NotALabel(Exception):
    """A value that is no label of the model, and what it is not."""

    def __init__(self, value: Any, what: str) -> None:
        super().__init__(what)
        self.value = value


def not_a_label(rows: Rows, i: int, column: str, error: NotALabel) -> DataError:
    """What is wrong with the label of the i-th row, as an error for the user."""
    return DataError(f"{rows.where(i)}: label {shown(error.value)} in column {column!r} is not {error}")


def as_number(value: Any) -> float:
    """A finite number that float32 has, from a number or its text; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if abs(number) <= _LARGEST else math.nan


@dataclass(frozen=True)
class Classes:
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
    def of(cls, task: Task, config: Any) -> Classes:
        """Those of a model's config."""
        by_name = {str(name).lower(): int(index) for name, index in config.label2id.items()}
        known = bool(task.label_names) and all(name in by_name for name in task.label_names)
        return cls(int(config.num_labels), by_name, [by_name[name] for name in task.label_names] if known else None)

    def one(self, value: Any) -> int:
        """The model's class for one label: an index, or a name that the model's config lists."""
        if isinstance(value, str) and value.lower() in self.by_name:
            return self.by_name[value.lower()]
        # yes and no are classes where there are two
        number = float(value) if isinstance(value, bool) and self.count == 2 else as_number(value)
        if isinstance(value, str) and math.isnan(number):
            raise NotALabel(value, f"one of the model's: {_some(list(self.by_name))}")
        if not number.is_integer() or not 0 <= number < self.count:
            raise NotALabel(value, f"a class of the model, which has {self.count} (0 to {self.count - 1})")
        index = int(number)
        return self.order[index] if self.order is not None and index < len(self.order) else index

    def several(self, value: Any) -> list[float]:
        """Zeros and ones per class of the model: from such a list, or from a list of classes by index or name."""
        if not isinstance(value, list | tuple):
            raise NotALabel(
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
