"""One score for a query and a text, by which the texts of a query are ordered.

What is kept is the score itself, without labels: the likelihood is Gaussian. Rows with the same query belong together;
they are judged by the order that the scores give them, against labels where there are any, and always against the
order that the dense model gives them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.metrics import ndcg_score
from transformers import PreTrainedTokenizerBase

from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.files import Rows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import OptionError
from faster_pruner.model.scoring import Scoring
from faster_pruner.objectives import classification
from faster_pruner.objectives.encoding import NotALabel, as_number, as_rows, not_a_label, require_columns
from faster_pruner.objectives.likelihoods import Gaussian
from faster_pruner.objectives.metrics import REGRESSION, mean_percent
from faster_pruner.objectives.objective import Metric, Objective, OfRows, Predicted

TASK = "text-ranking"
AUTO_CLASS = classification.AUTO_CLASS
COLUMNS = ("query", "text", "label")

# Texts at the top of the order that nDCG looks at, and the fewest that have an order.
_TOP, _FEWEST = 10, 2


@dataclass(frozen=True)
class Queries:
    """Which rows belong together.

    Attributes:
        numbers: [N], the number of each row's query.
    """

    numbers: np.ndarray


def objective_for(config: Any) -> Objective:
    """The objective of a sequence classifier with one logit. Raises OptionError where it has several."""
    count = int(config.num_labels)
    if count != 1:
        raise OptionError(
            f"this model gives {count} scores a row; {TASK} needs one score for a query and a text: give a reranker, "
            f"or name the task {classification.TASK}",
            option="task",
        )
    return scored(Scoring())


def scored(scoring: Scoring) -> Objective:
    """The objective of a reranker, from what its folder says of the score."""
    return Objective(
        name="reranking",
        readout=classification.per_row,
        likelihood=Gaussian(),
        metrics=_metrics(scoring),
        auto_class=AUTO_CLASS,
        pipeline_tag=TASK,
        library="sentence-transformers",
        opener="CrossEncoder",
    )


def _metrics(scoring: Scoring) -> dict[str, Metric]:
    """By labels first; then by the dense model, whose own scores are the labels."""
    return {
        "ndcg@10": OfRows(_gains_of_labels, mean_percent),
        "spearman": OfRows(_scores_and_labels, _correlation),
        "dense_ndcg@10": OfRows(partial(_gains_of_dense, scoring), mean_percent, compares=True),
        "dense_spearman": OfRows(_both_scores, _correlation, compares=True),
    }


def _gains_of_labels(predicted: Predicted, dense: Predicted) -> np.ndarray | None:
    """[Q, 1]: nDCG of each query with something relevant; a label below 0 is worth nothing, as for trec_eval."""
    del dense
    if predicted.labels is None:
        return None
    return _ndcg(predicted, predicted.labels.ravel().clip(min=0))


def _gains_of_dense(scoring: Scoring, predicted: Predicted, dense: Predicted) -> np.ndarray | None:
    """[Q, 1]: nDCG of each query, where the dense model says what is relevant.

    The sigmoid of a score is a relevance. A score that is used as it is has no zero: it counts from the lowest of its
    query.
    """
    scores = dense.values.ravel().astype(np.float64)
    if not scoring.identity:
        return _ndcg(predicted, expit(scores))
    gains = np.empty_like(scores)
    for rows in _by_query(predicted):
        gains[rows] = scores[rows] - scores[rows].min()
    return _ndcg(predicted, gains)


def _ndcg(predicted: Predicted, gains: np.ndarray) -> np.ndarray | None:
    """[Q, 1]: nDCG@10 of the queries with several texts and something to gain; None where there are none."""
    scores, score = predicted.values.ravel(), ndcg_score
    found = [
        float(score(gains[rows][None], scores[rows][None], k=_TOP))
        for rows in _by_query(predicted)
        if len(rows) >= _FEWEST and gains[rows].max() > 0
    ]
    return np.array(found)[:, None] if found else None


def _scores_and_labels(predicted: Predicted, dense: Predicted) -> np.ndarray | None:
    """[Q]: see `_lines`; scores and labels."""
    del dense
    return None if predicted.labels is None else _lines(predicted, predicted.labels)


def _both_scores(predicted: Predicted, dense: Predicted) -> np.ndarray | None:
    """[Q]: see `_lines`; scores of both models."""
    return _lines(predicted, dense.values)


def _lines(predicted: Predicted, others: np.ndarray) -> np.ndarray | None:
    """[Q] of arrays [n, 2], the rows of each query: they are drawn together, and no two queries need have equally many.

    None where there is no order.
    """
    pairs = np.stack([predicted.values.ravel(), others.ravel()], axis=1).astype(np.float64)
    if len(pairs) < _FEWEST:
        return None
    parts = [pairs[rows] for rows in _by_query(predicted)]
    found = np.empty(len(parts), dtype=object)
    for i, part in enumerate(parts):
        found[i] = part
    return found


def _by_query(predicted: Predicted) -> Iterator[np.ndarray]:
    """Places of the predictions of each query."""
    assert isinstance(predicted.context, Queries)
    numbers = predicted.context.numbers[predicted.rows]
    order = numbers.argsort(kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _correlation(lines: np.ndarray) -> float:
    """Spearman's, of all rows of these queries."""
    scores, others = np.concatenate(list(lines)).T
    return REGRESSION["spearman"](scores, others)


def encode(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: Any,
    limit: int,
    labelled: bool = True,
) -> EncodedRows:
    """Tokenise pairs of a query and a text; rows with the same query belong together, wherever they stand.

    Args:
        rows: as loaded.
        task: columns of the query, the text and the label (how relevant the text is); where no row has the usual one
            of the label, the rows have none.
        tokenizer: of the model.
        config: of the model.
        limit: most tokens of a pair.
        labelled: read the labels.

    Raises:
        DataError: a missing column, no text, or a label that is no number.
    """
    given = as_rows(rows)
    found = classification.encode(given, task, tokenizer, config=config, limit=limit, labelled=False)
    numbers: dict[str, int] = {}
    queries = Queries(np.array([numbers.setdefault(row[task.text_column], len(numbers)) for row in given]))
    return replace(found, labels=_labels(given, task.label_column) if labelled else None, context=queries)


def _labels(rows: Rows, column: str) -> list[float] | None:
    """How relevant each text is; None where nobody says. Raises DataError."""
    if column == COLUMNS[2] and not any(column in row for row in rows):
        return None
    require_columns(rows, [column])
    found: list[float] = []
    for i, row in enumerate(rows):
        value = row[column]
        # yes and no are relevances, too
        found.append(float(value) if isinstance(value, bool) else as_number(value))
        if math.isnan(found[-1]):
            raise not_a_label(rows, i, column, NotALabel(value, "a number that says how relevant the text is"))
    return found
