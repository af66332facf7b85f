"""Texts for what needs nothing but texts: from files, or from memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from faster_pruner.api.rows import describe
from faster_pruner.checks import LARGEST_SEED, at_least, made_of, shown, whole_number
from faster_pruner.data.files import Rows
from faster_pruner.data.sources import TRAIN_SPLITS, load_split, rows_of_file
from faster_pruner.data.tasks import Data
from faster_pruner.errors import OptionError
from faster_pruner.host.folders import Output
from faster_pruner.objectives.encoding import check_texts, require_columns

_USUAL = "text"

Texts = Iterable[str] | Data | Sequence[Data]


@dataclass(frozen=True)
class Corpus:
    """Texts that say which tokens stay, and others that tell what that does to texts not seen."""

    voting: list[str]
    held_out: list[str]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Which tokens of a vocabulary stay: those that texts use, and what every other text needs.

    Attributes:
        texts: the corpus; of `Data` the training rows, or all rows of a single file.
        held_out: share of the texts that has no say, and shows how much of unseen texts is encoded in another way.
        seed: of which texts those are.
    """

    texts: Texts
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        # what can be read only once is read here
        object.__setattr__(self, "texts", tuple(as_corpus(self.texts)))
        at_least("held_out", self.held_out, 0.0)
        if self.held_out >= 1:
            raise OptionError(
                f"held_out is {self.held_out:g}; it must be below 1: the other texts say which tokens stay"
            )
        whole_number("seed", self.seed, 0, LARGEST_SEED)

    def check(self, output: Output, *, reads: str) -> None:
        """Before any work: the output may be written. Raises OptionError, OutputError.

        Args:
            output: of the run.
            reads: the model.
        """
        if output.statistics_path is not None:
            raise OptionError(
                "a vocabulary is pruned without statistics; leave out the folder for them, or prune the vocabulary "
                "alone and keep the statistics of what comes out"
            )
        for rows in [None, *places_of(as_corpus(self.texts))]:
            output.check(reads=[reads], rows=rows)

    def read(self) -> Corpus:
        """The corpus, in the order in which it came; a share of the texts, drawn, is held out. Raises DataError."""
        texts = texts_of(as_corpus(self.texts))
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(self.seed)).tolist()
        chosen = set(order[: int(self.held_out * len(texts))])
        return Corpus(
            [text for i, text in enumerate(texts) if i not in chosen],
            [text for i, text in enumerate(texts) if i in chosen],
        )


def as_vocabulary(given: Texts | Vocabulary) -> Vocabulary:
    """Texts as a vocabulary with the usual options; a vocabulary as it is. Raises OptionError."""
    return given if isinstance(given, Vocabulary) else Vocabulary(texts=given)


def as_corpus(given: Texts) -> list[str | Data]:
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
