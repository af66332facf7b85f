"""One prediction per word: its class. Read at the first token of each word, as every fine-tuning script does.

Entities are judged by CoNLL's F1 in seqeval's strict mode for IOB2: an entity starts with its B- and counts when its
type and both its ends are right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from seqeval.scheme import IOB2, Entities, Entity
from transformers import PreTrainedTokenizerBase

from faster_pruner.checks import shown
from faster_pruner.data.batches import Batch, EncodedRows
from faster_pruner.data.files import Rows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError, UnsupportedModelError
from faster_pruner.objectives import metrics
from faster_pruner.objectives.encoding import (
    Classes,
    NotALabel,
    as_rows,
    check_texts,
    cut_off,
    encoded_texts,
    not_a_label,
    require_columns,
)
from faster_pruner.objectives.likelihoods import Categorical
from faster_pruner.objectives.objective import ByRow, Metric, Objective, Predicted, Predictions

TASK = "token-classification"
AUTO_CLASS = "AutoModelForTokenClassification"
COLUMNS = ("tokens", None, "ner_tags")

_OUTSIDE, _PREFIXES = "O", ("B-", "I-")


def per_word(returned: Any, batch: Batch) -> Predictions:
    """One prediction where the batch says so, at every real token where it says nothing: logits [P, C]."""
    logits = returned.logits
    chosen = batch.positions if batch.positions is not None else batch.mask
    if chosen is None:
        chosen = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    rows = batch.rows[:, None].expand(chosen.shape)[chosen]
    return Predictions(logits[chosen], rows, None if batch.labels is None else batch.labels[chosen])


def objective_for(config: Any) -> Objective:
    """The objective of a token classifier: judged by entities where the names of its classes are IOB2's."""
    names = [str(config.id2label[i]) for i in range(int(config.num_labels))]
    known: dict[str, Metric] = {name: metrics.CLASSIFICATION[name] for name in ("accuracy", "loss")}
    return Objective(
        name="token classification",
        readout=per_word,
        likelihood=Categorical(),
        metrics={**_entity_metrics(names), **known} if _are_iob2(names) else known,
        auto_class=AUTO_CLASS,
        pipeline_tag=TASK,
    )


def _are_iob2(names: Sequence[str]) -> bool:
    """Whether classes are named as in IOB2: outside, and for every type of entity a B- and maybe an I-."""
    tags = set(names) - {_OUTSIDE}
    begins = {tag[2:] for tag in tags if tag.startswith("B-")}
    return bool(tags) and all(tag.startswith(_PREFIXES) and tag[2:] in begins for tag in tags)


def _entity_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """F1, precision and recall of entities, in percent; of none at all they are 0, as in seqeval."""

    def counts(predicted: Predicted) -> np.ndarray:
        return _entities(predicted, names)

    def of(chosen: Callable[[np.ndarray], tuple[float, float]]) -> ByRow:
        def value(sums: np.ndarray) -> float:
            part, whole = chosen(sums)
            return 100 * float(part / whole) if whole else 0.0

        return ByRow(counts, value)

    return {
        "f1": of(lambda sums: (2 * sums[0], sums[1] + sums[2])),
        "precision": of(lambda sums: (sums[0], sums[1])),
        "recall": of(lambda sums: (sums[0], sums[2])),
    }


def _entities(predicted: Predicted, names: Sequence[str]) -> np.ndarray:
    """[R, 3]: per row the entities that are right, those that the model says, and those that there are."""
    assert predicted.labels is not None
    said = _by_row(predicted.values.argmax(axis=1), predicted.rows, names)
    true = _by_row(predicted.labels.astype(int), predicted.rows, names)
    pairs = zip(said, true, strict=True)
    return np.array([[len(one & other), len(one), len(other)] for one, other in pairs], dtype=np.int64).reshape(-1, 3)


def _by_row(classes: np.ndarray, rows: np.ndarray, names: Sequence[str]) -> list[set[Entity]]:
    """The entities that classes [P] of sorted rows [P] name, row by row."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    sequences = [[str(names[int(i)]) for i in part] for part in np.split(classes, starts[1:])] if len(starts) else []
    found = cast("list[list[Entity]]", Entities(sequences, IOB2).entities)
    return [set(entities) for entities in found]


def encode(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: Any,
    limit: int,
    labelled: bool = True,
) -> EncodedRows:
    """Tokenise rows of words, and find the first token and the label of each word.

    Args:
        rows: as loaded.
        task: its text column holds lists of words, its label column lists as long, of class indices or names.
        tokenizer: a fast one.
        config: the model's config: number and names of its labels.
        limit: rows are truncated to this many tokens; the words behind are neither predicted nor judged.
        labelled: read the label column.

    Raises:
        DataError: a missing column, no words, or labels that the model does not have.
        UnsupportedModelError: the tokenizer cannot tell which word a token belongs to.
    """
    given = as_rows(rows)
    require_columns(given, [task.text_column] + ([task.label_column] if labelled else []))
    words = [_words(given, i, task.text_column) for i in range(len(given))]
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"a {type(tokenizer).__name__} cannot tell which word a token belongs to; a fast tokenizer "
            "(tokenizer.json) is needed"
        )
    encoded: Any = tokenizer(words, is_split_into_words=True, truncation=True, max_length=limit)
    # the first token of each word that has one
    firsts = [_first_tokens(encoded.word_ids(i)) for i in range(len(given))]
    if not any(firsts):
        raise DataError(f"no row has a word that the tokenizer makes a token of in column {task.text_column!r}")
    labels = None
    if labelled:
        classes = Classes.of(task, config)
        given_labels = [_labels(given, i, task, classes, len(words[i])) for i in range(len(given))]
        labels = [[own[word] for word in first] for own, first in zip(given_labels, firsts, strict=True)]
    return replace(
        encoded_texts(given, encoded, tokenizer, task.text_column),
        labels=labels,
        positions=[list(first.values()) for first in firsts],
        truncated=cut_off(encoded, limit),
    )


def _words(rows: Rows, i: int, column: str) -> list[str]:
    """The words of a row. Raises DataError."""
    value = rows[i][column]
    if not isinstance(value, list | tuple):
        raise DataError(f"{rows.where(i)} has no list of words in column {column!r}: {shown(value)}")
    words = list(cast("Sequence[Any]", value))
    for word in words:
        check_texts(rows.chosen([i]), column, [word])
    return words


def _first_tokens(words: Sequence[int | None]) -> dict[int, int]:
    """Word -> its first token, in the order of the words."""
    found: dict[int, int] = {}
    for place, word in enumerate(words):
        if word is not None:
            found.setdefault(word, place)
    return found


def _labels(rows: Rows, i: int, task: Task, classes: Classes, count: int) -> list[int]:
    """The class of each of a row's words. Raises DataError."""
    value = rows[i][task.label_column]
    if not isinstance(value, list | tuple):
        raise DataError(
            f"{rows.where(i)} has no list of labels in column {task.label_column!r}, one per word: {shown(value)}"
        )
    labels = list(cast("Sequence[Any]", value))
    if len(labels) != count:
        raise DataError(
            f"{rows.where(i)} has {count} words in column {task.text_column!r}, but {len(labels)} labels in column "
            f"{task.label_column!r}; every word needs one"
        )
    try:
        return [classes.one(label) for label in labels]
    except NotALabel as error:
        raise not_a_label(rows, i, task.label_column, error) from error
