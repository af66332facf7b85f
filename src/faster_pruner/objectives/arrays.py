"""What rows of images and rows of sounds have in common: arrays of one size for every row, and one label each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from faster_pruner.data.batches import EncodedRows, Label
from faster_pruner.data.files import Rows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError
from faster_pruner.host.spill import room
from faster_pruner.objectives import classification
from faster_pruner.objectives.encoding import as_rows, require_columns
from faster_pruner.objectives.objective import Objective

# Other names that many data sets give to the usual columns.
_ALSO_CALLED = {"image": ("img", "images"), "label": ("labels",)}


def judged(config: Any, *, auto_class: str, task: str) -> Objective:
    """The objective of a classifier of anything but text. Raises UnsupportedModelError."""
    found = classification.objective_for(config)
    # the F1 of one of two classes is a matter of the tasks that ask for it
    reported = tuple(name for name in found.reported if name != "f1")
    return replace(found, reported=reported, auto_class=auto_class, pipeline_tag=task)


def with_columns(rows: Sequence[Mapping[str, Any]], task: Task, *, labelled: bool) -> tuple[Rows, Task]:
    """Rows that have the columns of a task, whose classes are called what the data say. Raises DataError."""
    given = as_rows(rows)
    first, label = _there(given, task.text_column), _there(given, task.label_column)
    require_columns(given, [first, label] if labelled else [first])
    names = task.label_names or given.class_names.get(label, ())
    return given, replace(
        task, text_column=first, label_column=label, label_names=tuple(name.lower() for name in names)
    )


def _there(rows: Rows, column: str) -> str:
    """The name under which the rows have a column."""
    names = (column, *_ALSO_CALLED.get(column, ()))
    return next((name for name in names if rows and name in rows[0]), column)


def stacked(values: Iterator[Tensor], count: int, *, of: str) -> Tensor:
    """[N, ...] from chunks [n, ...] of it, which are held once only.

    Args:
        values: the chunks; they are taken one after the other.
        count: N.
        of: what makes them, for the error.

    Raises:
        DataError: the rows are not of one size.
    """
    found, filled = torch.empty(0), 0
    for chunk in values:
        if not filled:
            found = room((count, *chunk.shape[1:]), chunk.dtype)
        if chunk.shape[1:] != found.shape[1:]:
            raise DataError(
                f"the {of} makes rows of different sizes, {list(found.shape[1:])} and {list(chunk.shape[1:])}; "
                "set it to one size, or bring the data to one size before"
            )
        found[filled : filled + chunk.shape[0]] = chunk
        filled += chunk.shape[0]
    return found


def encoded_arrays(
    rows: Rows, arrays: Mapping[str, Tensor], *, labels: Sequence[Label] | None, tokens: int
) -> EncodedRows:
    """Rows whose inputs are arrays, and of which the model makes so many tokens each."""
    return EncodedRows(
        tokens=[{} for _ in rows.numbers],
        labels=labels,
        padding={},
        split=rows.split,
        arrays=arrays,
        row_tokens=tokens,
    )
