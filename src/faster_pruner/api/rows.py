"""The rows of a run: calibration rows from the train split only, evaluation rows from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from faster_pruner.checkpoint.opening import Opened
from faster_pruner.data.batches import EncodedRows, part_of, rows_of, rows_with
from faster_pruner.data.files import Rows
from faster_pruner.data.retrieval import TEXT, is_retrieval_folder, read_collection, texts_to_calibrate
from faster_pruner.data.sources import TRAIN_SPLITS, Source, load_split, rows_of_file, sample, some_of
from faster_pruner.data.tasks import Data, Task
from faster_pruner.errors import DataError, OptionError, UnsupportedModelError
from faster_pruner.method.lesson import Unlabelled
from faster_pruner.model.limits import longest_row
from faster_pruner.objectives.objective import Objective
from faster_pruner.objectives.registry import KINDS, TASKS, kind_for, kind_of
from faster_pruner.objectives.retrieval import joined, searched
from faster_pruner.options import CalibrationOptions, Distillation
from faster_pruner.progress import Silent, StageClock

_FEWEST_ROWS = 8
# Rows that a distillation of a given time chooses from, and those that judge it.
_MOST_ROWS, _MOST_HELD_OUT = 65_536, 1024
# Training rows that judge a drop.
_MOST_JUDGES, _FEWEST_JUDGES = 4096, 16
# Rows of a split that are encoded where only the time that all of them take is asked for; and tokens that are judged.
_FEW, _FEW_TO_JUDGE, _TOKENS_TO_JUDGE = 256, 96, 2048


def describe(data: Data) -> Task:
    """The task that data are for; what it leaves open, the model decides. Raises OptionError."""
    return data.describe(TASKS, KINDS)


def objective_for(opened: Opened, task: Task | None) -> Objective:
    """The objective of a checkpoint, judged by the task's metrics where it has them.

    Raises:
        UnsupportedModelError: none is known for the model.
        OptionError: the task is of another kind.
    """
    kind = kind_of(opened.model, opened.scoring) if task is None else kind_for(opened.model, task, opened.scoring)
    if kind.headed is not None and opened.head is not None:
        found = kind.headed(opened.head)
    elif kind.scored is not None and opened.scoring is not None:
        found = kind.scored(opened.scoring)
    else:
        found = kind.objective(opened.model.config)
    return found if task is None else found.judged_by(task.metrics)


def encoded(
    rows: Sequence[Mapping[str, Any]], task: Task, opened: Opened, max_length: int, *, labelled: bool = True
) -> EncodedRows:
    """Rows as a checkpoint takes them. Raises DataError, OptionError, UnsupportedModelError."""
    kind, config = kind_for(opened.model, task, opened.scoring), opened.model.config
    limit, own = min(max_length, longest_row(opened.model)), kind.completed(task)
    if isinstance(rows, Rows) and not own.label_names:
        # what the data themselves call their classes
        own = replace(own, label_names=tuple(name.lower() for name in rows.class_names.get(own.label_column, ())))
    if opened.head is not None:
        # newer folders state it as their tokenizer's
        limit = min(limit, opened.head.longest or getattr(opened.processor, "model_max_length", limit))
        rows = _with_prompt(rows, [own.text_column, own.pair_column], opened.head.prompt)
    if opened.scoring is not None:
        limit = min(limit, opened.scoring.longest or getattr(opened.processor, "model_max_length", limit))
        # the query alone gets it, as sentence-transformers does it
        rows = _with_prompt(rows, [own.text_column], opened.scoring.prompt)
    return kind.encode(rows, own, opened.processor, config=config, limit=limit, labelled=labelled)


def _drawn(
    rows: Rows, task: Task, opened: Opened, options: CalibrationOptions, count: int, *, labelled: bool = False
) -> EncodedRows:
    """The first rows of a split in the order of the seed, encoded. Raises DataError."""
    kind = kind_for(opened.model, task, opened.scoring)
    if kind.draw is None:
        return encoded(sample(rows, count, options.seed), task, opened, options.max_length, labelled=labelled)
    limit = min(options.max_length, longest_row(opened.model))
    return kind.draw(rows, kind.completed(task), opened.processor, limit=limit, count=count, seed=options.seed)


def _draws(task: Task, opened: Opened) -> bool:
    """Whether rows are made of the texts of a split, so that nobody knows how many there are."""
    return kind_for(opened.model, task, opened.scoring).draw is not None


def _with_prompt(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str | None], prompt: str
) -> Sequence[Mapping[str, Any]]:
    """Rows with a prompt in front of the texts of these columns."""
    if not prompt:
        return rows
    own = rows if isinstance(rows, Rows) else Rows([dict(row) for row in rows])

    def put(row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: prompt + v if key in columns and isinstance(v, str) else v for key, v in row.items()}

    return Rows([put(row) for row in own], numbers=own.numbers, place=own.place, split=own.split)


def _loaded(source: Source, task: Task, opened: Opened, names: Sequence[str]) -> Rows:
    """The rows of a split; those that belong together are not torn apart. Raises DataError."""
    own = replace(source, together=_together(task, opened), running=_draws(task, opened))
    return load_split(own, names)


def _together(task: Task, opened: Opened) -> str:
    """Column whose equal values belong together; empty for none."""
    kind = kind_for(opened.model, task, opened.scoring)
    return kind.completed(task).text_column if kind.together else ""


def calibration_rows(
    source: Source, task: Task, opened: Opened, options: CalibrationOptions, *, labelled: bool
) -> EncodedRows:
    """The calibration set: training rows only, drawn without replacement. Raises DataError."""
    folder = _retrieval_folder(source, task, opened)
    if folder is not None:
        return _documents_and_queries(folder, opened, options)
    rows = _loaded(source, task, opened, TRAIN_SPLITS)
    made = _drawn(rows, task, opened, options, options.rows) if _draws(task, opened) else None
    count = len(rows) if made is None else len(made)
    if count < _FEWEST_ROWS and made is not None:
        raise DataError(
            f"the text to calibrate on, of {source.description}, makes {count} block{'' if count == 1 else 's'} of "
            f"{made.lengths[0]} tokens; at least {_FEWEST_ROWS} are needed: give more text, or a smaller length",
            option="max_length",
        )
    if count < _FEWEST_ROWS:
        raise DataError(f"the train split of {source.description} has {count} rows; at least {_FEWEST_ROWS} are needed")
    return made or _drawn(rows, task, opened, options, options.rows, labelled=labelled)


def unlabelled_rows(
    source: Source, task: Task, opened: Opened, options: CalibrationOptions, how: Distillation
) -> Unlabelled:
    """Rows for a distillation: training rows, those first that come after the calibration set in the same draw.

    Of a split that has too few, the calibration rows are distilled on, too, and rows that judge are taken from their
    end: never from what is trained on.

    Args:
        source: of the rows; `Source.unlabelled` in place of its training rows, where it is given.
        task: its columns.
        opened: the model.
        options: that the calibration set was drawn with.
        how: how many rows.

    Raises:
        DataError: there are too few rows.
    """
    most = how.rows or _MOST_ROWS
    wanted = min(_MOST_HELD_OUT, most) if how.held_out is None else how.held_out
    folder = _retrieval_folder(source, task, opened)
    if folder is not None:
        # another draw: queries and documents are drawn apart
        own = replace(options, rows=most + wanted, seed=options.seed + 1)
        texts = _documents_and_queries(folder, opened, own)
        held = min(wanted, len(texts) // 4)
        return Unlabelled(rows=part_of(texts, held, len(texts)), held_out=part_of(texts, 0, held))
    rows = _loaded(source, task, opened, TRAIN_SPLITS)
    if _draws(task, opened):
        drawn = _drawn(rows, task, opened, options, options.rows + wanted + most)
        held = min(wanted, len(drawn) // 4)
        start = min(options.rows, len(drawn) - held)
        trained = joined(part_of(drawn, start + held, len(drawn)), part_of(drawn, 0, start))
        if source.unlabelled is not None:
            given = rows_of_file(source.unlabelled, split="unlabelled", running=True)
            trained = _drawn(given, task, opened, options, most)
        return Unlabelled(rows=part_of(trained, 0, most), held_out=part_of(drawn, start, start + held))
    mixed, held = sample(rows, len(rows), options.seed), min(wanted, len(rows) // 4)
    start = min(options.rows, len(mixed) - held)
    if source.unlabelled is None:
        others = range(start + held, len(mixed))
        trained = mixed.chosen([*others, *range(start)][:most])
    else:
        given = rows_of_file(source.unlabelled, split="unlabelled")
        trained = sample(given, most, options.seed)
    if not held or not len(trained):
        raise DataError(
            f"{source.description} has {len(rows)} rows to train on, which are too few to distil: some of them judge"
        )
    judges = mixed.chosen(list(range(start, start + held)))
    return Unlabelled(
        rows=encoded(trained, task, opened, options.max_length, labelled=False),
        held_out=encoded(judges, task, opened, options.max_length, labelled=False),
    )


def rows_to_judge(
    source: Source, task: Task, opened: Opened, options: CalibrationOptions
) -> tuple[CalibrationOptions, EncodedRows]:
    """Training rows with labels that judge, the next ones of the draw that the calibration set is the beginning of.

    Returns:
        The options of the calibration, with no more rows than leave a third of them to judge; and those that do.

    Raises:
        DataError: there are too few.
        OptionError: a retrieval folder has none.
    """
    if _retrieval_folder(source, task, opened) is not None:
        raise OptionError("a retrieval folder has no rows that could judge a drop; say what may be left", option="macs")
    rows = _loaded(source, task, opened, TRAIN_SPLITS)
    made = _drawn(rows, task, opened, options, options.rows + _MOST_JUDGES) if _draws(task, opened) else None
    count = len(rows) if made is None else len(made)
    if count < _FEWEST_ROWS + _FEWEST_JUDGES:
        raise DataError(
            f"the train split of {source.description} has {count} rows; at least {_FEWEST_ROWS + _FEWEST_JUDGES} "
            "are needed to calibrate and to judge a drop"
        )
    options = replace(options, rows=min(options.rows, count - max(_FEWEST_JUDGES, count // 3)))
    stop = min(options.rows + _MOST_JUDGES, count)
    if made is not None:
        return options, part_of(made, options.rows, stop)
    mixed = sample(rows, len(rows), options.seed).chosen(list(range(options.rows, stop)))
    return options, encoded(mixed, task, opened, options.max_length)


def evaluation_splits(source: Source, task: Task, opened: Opened, max_length: int) -> dict[str, EncodedRows]:
    """The encoded evaluation splits that exist; the first one must. Raises DataError, OptionError."""
    if source.judged == 0:
        return {}
    folder = _retrieval_folder(source, task, opened)
    if folder is not None:
        return _search(folder, source, opened, max_length)
    splits: dict[str, EncodedRows] = {}
    for place, (name, names) in enumerate(task.evaluation):
        try:
            rows = _loaded(source, task, opened, names)
        except DataError:
            if place == 0:
                raise
            continue
        if source.judged is not None and not _draws(task, opened):
            rows = some_of(rows, source.judged, together=_together(task, opened))
        found = encoded(rows, task, opened, max_length)
        splits[name] = _spread(found, source.judged or len(found)) if _draws(task, opened) else found
    return splits


def _spread(rows: EncodedRows, most: int) -> EncodedRows:
    """At most so many rows, at equal distances: of blocks of a text each has the same to say."""
    return rows if len(rows) <= most else rows_of(rows, [i * len(rows) // most for i in range(most)])


@dataclass(frozen=True, kw_only=True)
class Few:
    """The first rows of a split, and what is known of all of them.

    Attributes:
        rows: encoded.
        all: how many encoded rows there will be, about.
        seconds: to read and encode them all, about.
    """

    rows: EncodedRows
    all: int
    seconds: float


def few_calibration_rows(
    source: Source, task: Task, opened: Opened, options: CalibrationOptions, *, labelled: bool
) -> Few:
    """The first rows of the calibration set. Raises DataError."""
    clock, folder = StageClock(Silent()), _retrieval_folder(source, task, opened)
    with clock.stage("read"):
        if folder is not None:
            asked = min(options.rows, sum(map(len, texts_to_calibrate(folder, options.rows, seed=options.seed))))
            drawn = None
        elif _draws(task, opened):
            drawn = calibration_rows(source, task, opened, options, labelled=labelled)
            asked = len(drawn)
        else:
            rows = _loaded(source, task, opened, TRAIN_SPLITS)
            asked, drawn = min(options.rows, len(rows)), sample(rows, options.rows, options.seed)
    count = min(_FEW, asked)
    with clock.stage("encode"):
        if drawn is None:
            found = calibration_rows(source, task, opened, replace(options, rows=count), labelled=labelled)
        elif isinstance(drawn, EncodedRows):
            found = part_of(drawn, 0, count)
        else:
            found = encoded(drawn[:count], task, opened, options.max_length, labelled=labelled)
    return _few(found, asked / count, clock)


def few_evaluation_rows(source: Source, task: Task, opened: Opened, max_length: int) -> dict[str, Few]:
    """Some rows of each split that `evaluation_splits` gives, those of one query together. Raises as it does."""
    if source.judged == 0:
        return {}
    folder, found = _retrieval_folder(source, task, opened), dict[str, Few]()
    if folder is not None:
        clock = StageClock(Silent())
        with clock.stage("read"):
            count = len(read_collection(folder, most_documents=source.documents).documents)
        with clock.stage("encode"):
            splits = _search(folder, replace(source, documents=min(_FEW_TO_JUDGE, count)), opened, max_length)
        return {split: _few(rows, max(1.0, count / len(rows)), clock) for split, rows in splits.items()}
    for place, (name, names) in enumerate(task.evaluation):
        clock = StageClock(Silent())
        try:
            with clock.stage("read"):
                rows = _loaded(source, task, opened, names)
        except DataError:
            if place == 0:
                raise
            continue
        draws = _draws(task, opened)
        wanted = min(len(rows), len(rows) if draws else source.judged or len(rows))
        few = some_of(rows, min(_FEW_TO_JUDGE, wanted), together=_together(task, opened))
        with clock.stage("encode"):
            own = encoded(few, task, opened, max_length)
        all_of_them = _few(own, max(1.0, wanted / len(few)), clock)
        if draws and source.judged is not None:
            all_of_them = replace(all_of_them, all=min(all_of_them.all, source.judged))
        # a text may be many rows
        part = rows_with(own.lengths, _TOKENS_TO_JUDGE) if own.context is None else len(own)
        found[name] = replace(all_of_them, rows=own if part == len(own) else part_of(own, 0, part))
    return found


def _few(rows: EncodedRows, times: float, clock: StageClock) -> Few:
    """Of rows of which there are so many times as many."""
    seconds = clock.seconds["read"] + times * clock.seconds["encode"]
    return Few(rows=rows, all=max(len(rows), round(times * len(rows))), seconds=seconds)


def _retrieval_folder(source: Source, task: Task, opened: Opened) -> Path | None:
    """The folder, if it is one of documents, queries and judgements.

    Raises:
        DataError: the model makes no embeddings.
        OptionError: columns are named.
        UnsupportedModelError: the model's prompts are no part of its embeddings.
    """
    if source.folder is None or not is_retrieval_folder(source.folder):
        return None
    kind = kind_for(opened.model, task, opened.scoring)
    if kind.headed is None or opened.head is None:
        raise DataError(
            f"{str(source.folder)!r} is a retrieval folder (corpus, queries, qrels), which is for embeddings; a model "
            f"for {kind.name} needs rows: a file for each split"
        )
    if task.text_column or task.pair_column or task.label_column:
        raise OptionError("the columns of a retrieval folder have names of their own (title, text); name none")
    head = opened.head
    pooled = all(getattr(module, "include_prompt", True) for module in head.modules)
    if not pooled and (head.prompt or head.query_prompt or head.document_prompt):
        raise UnsupportedModelError(
            "the pooling of this model leaves its prompts out, which is not supported for queries and documents; give "
            "rows of texts, which all get the default prompt"
        )
    return source.folder


def _documents_and_queries(folder: Path, opened: Opened, options: CalibrationOptions) -> EncodedRows:
    """The calibration set of a retrieval folder, mixed. Raises DataError."""
    assert opened.head is not None
    documents, queries = texts_to_calibrate(folder, options.rows, seed=options.seed)
    count = len(documents) + len(queries)
    if count < _FEWEST_ROWS:
        raise DataError(f"{str(folder)!r} has {count} texts to calibrate on; at least {_FEWEST_ROWS} are needed")
    found = _texts(documents, opened, opened.head.document_prompt, options.max_length)
    if queries:
        found = joined(found, _texts(queries, opened, opened.head.query_prompt, options.max_length))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed)).tolist()
    return replace(found, tokens=[found.tokens[i] for i in order])


def _search(folder: Path, source: Source, opened: Opened, max_length: int) -> dict[str, EncodedRows]:
    """Documents and queries of the judged split of a retrieval folder. Raises DataError, OptionError."""
    assert opened.head is not None
    if source.judged is not None:
        raise OptionError("a retrieval folder is evaluated with all of its queries, or not at all", option="no_eval")
    collection = read_collection(folder, most_documents=source.documents)
    documents = _texts(collection.documents, opened, opened.head.document_prompt, max_length)
    queries = _texts(collection.queries, opened, opened.head.query_prompt, max_length)
    return {collection.split: searched(collection, documents, queries)}


def _texts(rows: Rows, opened: Opened, prompt: str, max_length: int) -> EncodedRows:
    """Texts with a prompt of their own. Raises DataError."""
    assert opened.head is not None
    own = replace(opened, head=replace(opened.head, prompt=prompt))
    return encoded(rows, Task(name="", text_column=TEXT, label_column=""), own, max_length, labelled=False)
