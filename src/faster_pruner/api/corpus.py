"""Texts for what needs nothing but texts: from files, or from memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from faster_pruner.api.rows import describe
from faster_pruner.checks import made_of, shown
from faster_pruner.data.files import Rows
from faster_pruner.data.sources import TRAIN_SPLITS, load_split, rows_of_file
from faster_pruner.data.tasks import Data
from faster_pruner.errors import OptionError
from faster_pruner.objectives.encoding import check_texts, require_columns

_USUAL = "text"


def as_corpus(given: Iterable[str] | Data | Sequence[Data]) -> list[str | Data]:
    """What a corpus consists of, texts and data. Raises OptionError where something else was given."""
    if isinstance(given, Data):
        return [given]
    made_of("texts", given, (Iterable,))
    parts: list[Any] = [] if isinstance(given, str) else list(given)
    if not parts or not all(isinstance(each, str | Data) for each in parts):
        raise OptionError(f"texts are {shown(given)}; they must be a list of texts, or a Data, or several of them")
    return parts


def places_of(corpus: Sequence[str | Data]) -> list[Path]:
    """Folders and files that it is read from."""
    places = [each.folder or each.file for each in corpus if isinstance(each, Data)]
    return [Path(place) for place in places if place is not None]


def texts_of(corpus: Sequence[str | Data]) -> list[str]:
    """All texts of a corpus: those that are given as they are, and of data the training rows' or a whole file's.

    Raises:
        DataError: a file or a column is missing, or holds no texts.
    """
    found: list[str] = []
    for each in corpus:
        found += _texts_in(each) if isinstance(each, Data) else [each]
    check_texts(Rows([{_USUAL: text} for text in found], place="texts"), _USUAL, found)
    return found


def _texts_in(data: Data) -> list[str]:
    """The texts of its training rows, or of all rows of a single file; of rows of words their words."""
    task = describe(data)
    source = data.source(task)
    rows = load_split(source, TRAIN_SPLITS) if source.file is None else rows_of_file(source.file, split="corpus")
    columns = [task.text_column or _USUAL, *([task.pair_column] if task.pair_column else [])]
    require_columns(rows, columns)
    found: list[str] = []
    for column in columns:
        texts: list[Any] = [_joined(row[column]) for row in rows]
        check_texts(rows, column, texts)
        found += texts
    return found


def _joined(value: Any) -> Any:
    """A text; words with spaces between them."""
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in cast("list[Any]", value)):
        return " ".join(cast("list[str]", value))
    return value
