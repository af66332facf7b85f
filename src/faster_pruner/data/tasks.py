"""What a task is, and how one is found by name or by columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from faster_pruner.checks import made_of, whole_number
from faster_pruner.data.sources import Source
from faster_pruner.errors import DataError, OptionError


@dataclass(frozen=True, kw_only=True)
class Task:
    """Which columns hold what, which metrics judge, and where the rows are on the hub.

    Attributes:
        name: how it is asked for; empty for one that is described by its kind or its columns alone.
        text_column: first or only text, or whatever the model's main input is made of; empty for the usual one of the
            kind.
        pair_column: second text; None for the usual one of the kind, if it has one.
        label_column: class index, class name, target, or a list of them; empty for the usual one of the kind.
        kind: what is predicted, by the hub's name for such tasks; empty for whatever the model was made for.
        metrics: by name, the first one judges; empty for those of the objective.
        label_names: class names in the order of the data's class indices; empty when indices are all there is.
        evaluation: split name in reports -> names to look for, first match wins.
        hub: data set id on the hub.
        hub_config: its configuration.
    """

    name: str
    text_column: str = ""
    pair_column: str | None = None
    label_column: str = "label"
    kind: str = ""
    metrics: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    evaluation: tuple[tuple[str, tuple[str, ...]], ...] = (("validation", ("validation", "dev", "val", "test")),)
    hub: str = ""
    hub_config: str | None = None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns to read in place of the task's own; None leaves them.

    Attributes:
        text: first or only text, or whatever the model's main input is made of.
        text_pair: second text.
        label: class index, class name, target, or a list of them.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        for what in ("text", "text_pair", "label"):
            made_of(f"column of the {what.replace('_', ' ')}", getattr(self, what), (str, type(None)))


@dataclass(frozen=True, kw_only=True)
class Data:
    """What rows a run works on.

    Attributes:
        task: a task by name, or a kind of task by the hub's name; None for whatever the model was made for.
        folder: local folder with one file per split, or a retrieval folder as BEIR has them; None for the hub.
        columns: in place of the task's own.
        file: a single file of rows in place of a folder; a part of it is held back to judge by.
        hub: a data set on the hub in place of a folder, "owner/name" or "owner/name:configuration"; where it has rows
            to train on alone, a part of them is held back to judge by.
        pooling: how an encoder without a head makes one vector of many: mean, cls, max or lasttoken.
        dims: lengths of prefixes of an embedding that are embeddings, too (Matryoshka).
        documents: most documents of a retrieval folder that queries are evaluated against: of a larger corpus the
            judged ones, and a sample of the others.
        unlabelled: a single file of rows to distil on, in place of training rows; it needs no labels.
        judged: how many rows of each split are evaluated on, the same ones every time: 0 for none, None for all. Rows
            that belong together (the texts of a query) are all taken or none.
    """

    task: str | None = None
    folder: str | Path | None = None
    columns: Columns = Columns()
    file: str | Path | None = None
    hub: str | None = None
    pooling: str | None = None
    dims: tuple[int, ...] = ()
    documents: int = 100_000
    unlabelled: str | Path | None = None
    judged: int | None = None

    def __post_init__(self) -> None:
        made_of("task", self.task, (str, type(None)))
        made_of("folder of the data", self.folder, (str, Path, type(None)))
        made_of("columns", self.columns, (Columns,))
        made_of("file of the data", self.file, (str, Path, type(None)))
        made_of("file of unlabelled rows", self.unlabelled, (str, Path, type(None)))
        made_of("pooling", self.pooling, (str, type(None)))
        for size in self.dims:
            whole_number("dims", size, 1)
        whole_number("documents", self.documents, 1)
        whole_number("rows to evaluate on", self.judged, 0, optional=True)
        made_of("data set on the hub", self.hub, (str, type(None)))
        if sum(each is not None for each in (self.file, self.folder, self.hub)) > 1:
            raise OptionError(
                "more than one of a folder of rows, a single file of rows and a data set on the hub was given; one of "
                "them is enough"
            )

    @property
    def described(self) -> bool:
        """Whether it says anything, where it may be left out."""
        return any(each is not None for each in (self.task, self.columns.text, self.folder, self.file, self.hub))

    def describe(self, known: Mapping[str, Task], kinds: Collection[str]) -> Task:
        """A known task by name, or any of a kind; with the columns that are given in place of the usual ones.

        Args:
            known: tasks by name.
            kinds: names of the kinds of tasks.

        Raises:
            OptionError: an unknown name, or nothing that says where rows are and what they hold.
        """
        columns = self.columns
        if not self.described:
            raise OptionError(
                f"say what the data holds: a task by name ({', '.join(known)}), or a local folder of rows and the "
                "column of the text (and that of the label)",
                option="task",
            )
        if self.task is None or self.task in kinds:
            task = Task(name="", kind=self.task or "", label_column="")
        elif self.task in known:
            task = known[self.task]
        else:
            raise OptionError(
                f"task {self.task!r} is not known; known are {', '.join(known)}, and for data of your own "
                f"{', '.join(kinds)}; other data are described by the columns of text and label",
                option="text_column",
            )
        if columns.text is not None:
            # other columns than the task's own: the task's second text goes with its first
            task = replace(task, text_column=columns.text, pair_column=None)
        if columns.text_pair is not None:
            task = replace(task, pair_column=columns.text_pair)
        if columns.label is not None:
            task = replace(task, label_column=columns.label)
        return task

    def source(self, task: Task) -> Source:
        """Where the rows of a task come from. Raises DataError when nothing says so."""
        own, _, configuration = (self.hub or "").partition(":")
        if self.folder is None and self.file is None and not (own or task.hub):
            raise DataError("say where the rows are: give a local folder", option="data")
        return Source(
            folder=None if self.folder is None else Path(self.folder),
            subfolder=task.name,
            hub=own or task.hub,
            hub_config=(configuration or None) if own else task.hub_config,
            shared=bool(own),
            file=None if self.file is None else Path(self.file),
            documents=self.documents,
            unlabelled=None if self.unlabelled is None else Path(self.unlabelled),
            judged=self.judged,
        )


def as_data(given: str | Data) -> Data:
    """A task's name as data from the hub; data as they are. Raises OptionError."""
    made_of("data", given, (str, Data))
    return given if isinstance(given, Data) else Data(task=given)
