"""What a task is, and how one is found by name or by columns."""

from __future__ import annotations

from dataclasses import dataclass, replace

from faster_pruner.errors import OptionError

CLASSIFICATION_METRICS = ("accuracy", "f1", "loss", "calibration_error")
REGRESSION_METRICS = ("pearson", "spearman", "squared_error")
GENERIC = "text-classification"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A text classification or regression task.

    Attributes:
        name: how it is asked for.
        text_column: first or only text.
        pair_column: second text, or None.
        label_column: class index, class name, or target.
        metrics: names in `metrics.METRICS`; the first one judges.
        label_names: class names in the order of the data's class indices; empty when indices are all there is.
        evaluation: split name in reports -> names to look for, first match wins.
        hub: data set id on the hub.
        hub_config: its configuration.
    """

    name: str
    text_column: str
    pair_column: str | None = None
    label_column: str = "label"
    metrics: tuple[str, ...] = CLASSIFICATION_METRICS
    label_names: tuple[str, ...] = ()
    evaluation: tuple[tuple[str, tuple[str, ...]], ...] = (("validation", ("validation", "dev", "val", "test")),)
    hub: str = ""
    hub_config: str | None = None

    @property
    def primary(self) -> str:
        """The metric that judges."""
        return self.metrics[0]


def find_task(
    name: str | None,
    known: dict[str, Task],
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> Task:
    """A known task by name, its columns replaced where others are given; or a generic one by its columns.

    Raises:
        OptionError: an unknown name, or neither a name nor a text column.
    """
    if name is None or name == GENERIC:
        if text_column is None:
            raise OptionError(
                f"say what the data holds: --task with one of {', '.join(known)}, or --text-column (and --label-column)"
            )
        task = Task(name=GENERIC, text_column=text_column)
    elif name in known:
        task = known[name]
    else:
        raise OptionError(
            f"task {name!r} is not known; known are {', '.join(known)}; "
            "for other data use --text-column and --label-column"
        )
    if text_column is not None:
        # other columns than the task's own: the task's second text goes with its first
        task = replace(task, text_column=text_column, pair_column=None)
    if pair_column is not None:
        task = replace(task, pair_column=pair_column)
    if label_column is not None:
        task = replace(task, label_column=label_column)
    return task
