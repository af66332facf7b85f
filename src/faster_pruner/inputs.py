"""What a run is given: a task, where its rows come from, and the rows, tokenised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from faster_pruner.batches import EncodedRows
from faster_pruner.checkpoint import Opened
from faster_pruner.data import Source, load_split, sample
from faster_pruner.errors import DataError
from faster_pruner.options import CalibrationOptions
from faster_pruner.tasks import GLUE, Task, encode, find_task

_TRAIN_SPLITS = ("train", "training")
_FEWEST_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns to read in place of the task's own; None leaves them."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


def describe_task(name: str | None, columns: Columns | None) -> Task:
    """A GLUE task by name, or a generic one by its columns. Raises OptionError."""
    chosen = columns or Columns()
    return find_task(name, GLUE, text_column=chosen.text, pair_column=chosen.text_pair, label_column=chosen.label)


def names_a_task(name: str | None, columns: Columns | None) -> bool:
    """Whether a task is described at all, where it may be left out."""
    return name is not None or (columns is not None and columns.text is not None)


def source_of(task: Task, data: str | Path | None) -> Source:
    """Where a task's rows come from. Raises DataError when nothing says so."""
    if data is None and not task.hub:
        raise DataError("say where the rows are: --data with a local folder")
    return Source(
        folder=None if data is None else Path(data),
        subfolder=task.name,
        hub=task.hub,
        hub_config=task.hub_config,
    )


def calibration_rows(
    source: Source, task: Task, opened: Opened, options: CalibrationOptions, *, labelled: bool
) -> EncodedRows:
    """The calibration set: training rows only, drawn without replacement."""
    rows = load_split(source, _TRAIN_SPLITS)
    if len(rows) < _FEWEST_ROWS:
        raise DataError(
            f"the train split of {source.description} has {len(rows)} rows; at least {_FEWEST_ROWS} are needed"
        )
    return encode(
        sample(rows, options.rows, options.seed),
        task,
        opened.tokenizer,
        config=opened.model.config,
        max_length=options.max_length,
        labelled=labelled,
    )


def evaluation_splits(source: Source, task: Task, opened: Opened, max_length: int) -> dict[str, EncodedRows]:
    """The tokenised evaluation splits that exist; the first one must."""
    splits: dict[str, EncodedRows] = {}
    for place, (name, names) in enumerate(task.evaluation):
        try:
            rows = load_split(source, names)
        except DataError:
            if place == 0:
                raise
            continue
        splits[name] = encode(rows, task, opened.tokenizer, config=opened.model.config, max_length=max_length)
    return splits
