"""The rows of a run: calibration rows from the train split only, evaluation rows from the others."""

from __future__ import annotations

from faster_pruner.checkpoint.opening import Opened
from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.glue import GLUE
from faster_pruner.data.sources import Source, load_split, sample
from faster_pruner.data.tasks import Data, Task
from faster_pruner.errors import DataError
from faster_pruner.model.limits import longest_row
from faster_pruner.objectives.encoding import encode
from faster_pruner.objectives.objective import Objective
from faster_pruner.objectives.registry import GENERIC_TASK, objective_of
from faster_pruner.options import CalibrationOptions

_TRAIN_SPLITS = ("train", "training")
_FEWEST_ROWS = 8


def describe(data: Data) -> Task:
    """The task that data are for. Raises OptionError."""
    return data.describe(GLUE, GENERIC_TASK)


def objective_for(opened: Opened, task: Task | None) -> Objective:
    """The objective of a checkpoint, judged by the task's metrics where it has them."""
    objective = objective_of(opened.model)
    return objective if task is None else objective.judged_by(task.metrics)


def calibration_rows(
    source: Source, task: Task, opened: Opened, options: CalibrationOptions, *, labelled: bool
) -> EncodedRows:
    """The calibration set: training rows only, drawn without replacement. Raises DataError."""
    rows = load_split(source, _TRAIN_SPLITS)
    if len(rows) < _FEWEST_ROWS:
        raise DataError(
            f"the train split of {source.description} has {len(rows)} rows; at least {_FEWEST_ROWS} are needed"
        )
    drawn = sample(rows, options.rows, options.seed)
    limit = min(options.max_length, longest_row(opened.model))
    return encode(drawn, task, opened.tokenizer, config=opened.model.config, limit=limit, labelled=labelled)


def evaluation_splits(source: Source, task: Task, opened: Opened, max_length: int) -> dict[str, EncodedRows]:
    """The tokenised evaluation splits that exist; the first one must. Raises DataError."""
    splits: dict[str, EncodedRows] = {}
    limit = min(max_length, longest_row(opened.model))
    for place, (name, names) in enumerate(task.evaluation):
        try:
            rows = load_split(source, names)
        except DataError:
            if place == 0:
                raise
            continue
        splits[name] = encode(rows, task, opened.tokenizer, config=opened.model.config, limit=limit)
    return splits
