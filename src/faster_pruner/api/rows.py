"""The rows of a run: calibration rows from the train split only, evaluation rows from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from faster_pruner.checkpoint.opening import Opened
from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.files import Rows
from faster_pruner.data.sources import TRAIN_SPLITS, Source, load_split, sample
from faster_pruner.data.tasks import Data, Task
from faster_pruner.errors import DataError
from faster_pruner.model.limits import longest_row
from faster_pruner.objectives.objective import Objective
from faster_pruner.objectives.registry import KINDS, TASKS, kind_for, kind_of
from faster_pruner.options import CalibrationOptions

_FEWEST_ROWS = 8


def describe(data: Data) -> Task:
    """The task that data are for; what it leaves open, the model decides. Raises OptionError."""
    return data.describe(TASKS, KINDS)


def objective_for(opened: Opened, task: Task | None) -> Objective:
    """The objective of a checkpoint, judged by the task's metrics where it has them.

    Raises:
        UnsupportedModelError: none is known for the model.
        OptionError: the task is of another kind.
    """
    kind = kind_of(opened.model) if task is None else kind_for(opened.model, task)
    if kind.headed is not None and opened.head is not None:
        found = kind.headed(opened.head)
    else:
        found = kind.objective(opened.model.config)
    return found if task is None else found.judged_by(task.metrics)


def encoded(
    rows: Sequence[Mapping[str, Any]], task: Task, opened: Opened, max_length: int, *, labelled: bool = True
) -> EncodedRows:
    """Rows as a checkpoint takes them. Raises DataError, OptionError, UnsupportedModelError."""
    kind, config = kind_for(opened.model, task), opened.model.config
    limit, own = min(max_length, longest_row(opened.model)), kind.completed(task)
    if isinstance(rows, Rows) and not own.label_names:
        # what the data themselves call their classes
        own = replace(own, label_names=tuple(name.lower() for name in rows.class_names.get(own.label_column, ())))
    if opened.head is not None:
        # newer folders state it as their tokenizer's
        limit = min(limit, opened.head.longest or getattr(opened.processor, "model_max_length", limit))
        rows = _with_prompt(rows, [own.text_column, own.pair_column], opened.head.prompt)
    return kind.encode(rows, own, opened.processor, config=config, limit=limit, labelled=labelled)


def _with_prompt(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str | None], prompt: str
) -> Sequence[Mapping[str, Any]]:
    """Rows with a prompt in front of every text."""
    if not prompt:
        return rows
    own = rows if isinstance(rows, Rows) else Rows([dict(row) for row in rows])

    def put(row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: prompt + v if key in columns and isinstance(v, str) else v for key, v in row.items()}

    return Rows([put(row) for row in own], numbers=own.numbers, place=own.place, split=own.split)


def calibration_rows(
    source: Source, task: Task, opened: Opened, options: CalibrationOptions, *, labelled: bool
) -> EncodedRows:
    """The calibration set: training rows only, drawn without replacement. Raises DataError."""
    rows = load_split(source, TRAIN_SPLITS)
    if len(rows) < _FEWEST_ROWS:
        raise DataError(
            f"the train split of {source.description} has {len(rows)} rows; at least {_FEWEST_ROWS} are needed"
        )
    drawn = sample(rows, options.rows, options.seed)
    return encoded(drawn, task, opened, options.max_length, labelled=labelled)


def evaluation_splits(source: Source, task: Task, opened: Opened, max_length: int) -> dict[str, EncodedRows]:
    """The encoded evaluation splits that exist; the first one must. Raises DataError."""
    splits: dict[str, EncodedRows] = {}
    for place, (name, names) in enumerate(task.evaluation):
        try:
            rows = load_split(source, names)
        except DataError:
            if place == 0:
                raise
            continue
        splits[name] = encoded(rows, task, opened, max_length)
    return splits
