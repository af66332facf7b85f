"""One vector per text: the embedding itself is what is kept, without labels.

What a model returns for the tokens goes through a head (pooling, maybe a Dense layer, normalisation), which is that of
the sentence-transformers folder. Two embeddings are compared by their cosine or their dot product; for the cosine the
vector is normalised first, so that only changes along the unit sphere count. The likelihood is Gaussian, in a metric
of the vectors and their similarities (`likelihoods.Compared`).

Of Matryoshka models shorter prefixes are embeddings, too: each, normalised by itself, is a part of the prediction.

What a search finds, of queries and documents, is judged in `retrieval`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from faster_pruner.data.batches import Batch, EncodedRows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError, UnsupportedModelError
from faster_pruner.model.head import Head
from faster_pruner.objectives.encoding import (
    as_number,
    as_rows,
    check_texts,
    cut_off,
    encoded_texts,
    require_columns,
)
from faster_pruner.objectives.likelihoods import Compared
from faster_pruner.objectives.metrics import REGRESSION, mean_percent
from faster_pruner.objectives.neighbours import nearest, shared, unit
from faster_pruner.objectives.objective import Metric, Objective, OfRows, Predicted, Predictions
from faster_pruner.objectives.retrieval import Ranking, discounted_gains, found_again, recalls, similarities

TASK = "embedding"
AUTO_CLASS = "AutoModel"
COLUMNS = ("text", None, "")

_PIPELINE_TAG = "sentence-similarity"
# Measured in docs/embeddings.md: about a point more of the neighbours at half the MACs.
_MOMENT_FACTOR = 4
# Neighbours that are compared, and pairs of texts whose similarities are.
_NEAREST, _PAIRS = 10, 10_000


def without_head(config: Any) -> Objective:
    """There is no objective without a head. Raises UnsupportedModelError."""
    raise UnsupportedModelError(
        f"this {getattr(config, 'model_type', 'model')} gives a vector for every token, and nothing says how they "
        "become one; give a folder of sentence-transformers, or a pooling, or from Python an objective of your own"
    )


@dataclass(frozen=True)
class Pairs:
    """Rows that belong together: the texts 2 i and 2 i + 1 are the i-th pair.

    Attributes:
        scores: [N], how similar people found them.
    """

    scores: np.ndarray


def objective_for(head: Head) -> Objective:
    """The objective of an encoder with its head."""

    def vectors(returned: Any, batch: Batch) -> Predictions:
        whole = head(returned, batch.inputs)
        return Predictions(
            torch.cat([whole, *(head.compared(whole[:, :size]) for size in head.dims)], dim=-1), batch.rows
        )

    def keep(predictions: Predictions) -> Tensor:
        """The whole vector, which comes first."""
        return predictions.values[:, : predictions.values.shape[-1] - sum(head.dims)]

    return Objective(
        name=f"embedding ({head.similarity})",
        readout=vectors,
        likelihood=Compared(),
        metrics=METRICS,
        keep=keep,
        auto_class=AUTO_CLASS,
        pipeline_tag=_PIPELINE_TAG,
        library="sentence-transformers",
        opener="SentenceTransformer",
        moment_factor=_MOMENT_FACTOR,
    )


def _of_pairs(predicted: Predicted, dense: Predicted) -> np.ndarray | None:
    """[N, 2]: similarity of the texts of each pair, and what people said."""
    del dense
    if not isinstance(predicted.context, Pairs):
        return None
    similarity = (unit(predicted.values[0::2]) * unit(predicted.values[1::2])).sum(axis=1)
    return np.stack([similarity, predicted.context.scores], axis=1)


def _similarities(predicted: Predicted, dense: Predicted) -> np.ndarray | None:
    """[M, 2]: similarities of the same random pairs of texts in both models; of queries and documents in a search."""
    if isinstance(predicted.context, Ranking):
        return similarities(predicted.context, predicted, dense)
    count = len(predicted.values)
    if count < 3:
        return None
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, count, (2, _PAIRS))
    chosen = one != other
    pairs = [(unit(p.values)[one] * unit(p.values)[other]).sum(axis=1)[chosen] for p in (predicted, dense)]
    return np.stack(pairs, axis=1)


def _neighbours(predicted: Predicted, dense: Predicted) -> np.ndarray | None:
    """[N, 1]: share of each text's nearest neighbours that it has in the dense model, too; in a search, of each query's
    first documents.
    """
    if isinstance(predicted.context, Ranking):
        return found_again(predicted.context, predicted, dense)
    count = min(_NEAREST, len(predicted.values) - 1)
    if count < 1:
        return None
    theirs = _nearest(dense.values, count)
    return shared(theirs, theirs if predicted is dense else _nearest(predicted.values, count))


def _nearest(values: np.ndarray, count: int) -> np.ndarray:
    """[N, count]: the other texts with the largest cosine."""
    vectors = unit(values)
    return nearest(vectors, vectors, count, without=np.arange(len(vectors)))


def _cosines(predicted: Predicted, dense: Predicted) -> np.ndarray:
    """[N, 1]: cosine of each text's embeddings in both models."""
    return (unit(predicted.values) * unit(dense.values)).sum(axis=1, keepdims=True)


def _correlation(lines: np.ndarray) -> float:
    """Spearman's correlation of two columns, in percent."""
    return REGRESSION["spearman"](lines[:, 0], lines[:, 1])


METRICS: dict[str, Metric] = {
    "ndcg@10": OfRows(discounted_gains, mean_percent),
    "recall@100": OfRows(recalls, mean_percent),
    "spearman": OfRows(_of_pairs, _correlation),
    "neighbours": OfRows(_neighbours, mean_percent, compares=True),
    "similarities": OfRows(_similarities, _correlation, compares=True),
    "cosine": OfRows(_cosines, mean_percent, compares=True),
}


def encode(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: Any,
    limit: int,
    labelled: bool = True,
) -> EncodedRows:
    """Tokenise texts; of pairs both, one after the other.

    Args:
        rows: as loaded; blank texts are left out where they are no part of a pair.
        task: its columns of one text or two, and of the score of a pair, if any.
        tokenizer: of the model.
        config: not used.
        limit: most tokens of a text.
        labelled: read the scores of pairs.

    Raises:
        DataError: a missing column, no text, or a score that is no number.
    """
    del config
    given = as_rows(rows)
    columns = [task.text_column, *([task.pair_column] if task.pair_column else [])]
    scored = bool(labelled and task.pair_column and task.label_column)
    require_columns(given, [*columns, *([task.label_column] if scored else [])])
    for column in columns:
        check_texts(given, column, [row[column] for row in given])
    if len(columns) == 1:
        given = given.chosen([i for i, row in enumerate(given) if row[columns[0]].strip()])
        if not given:
            raise DataError(f"no row has any text in column {columns[0]!r}")
    texts = [row[column] for row in given for column in columns]
    encoded: Any = tokenizer(texts, truncation=True, max_length=limit)
    several = given.chosen([i for i in range(len(given)) for _ in columns])
    found = replace(encoded_texts(several, encoded, tokenizer, task.text_column), truncated=cut_off(encoded, limit))
    return replace(found, context=Pairs(_scores(given, task.label_column))) if scored else found


def _scores(rows: Any, column: str) -> np.ndarray:
    """[N]: the scores of pairs. Raises DataError."""
    found = np.array([as_number(row[column]) for row in rows])
    wrong = np.flatnonzero(np.isnan(found))
    if wrong.size:
        raise DataError(
            f"{rows.where(int(wrong[0]))}: {rows[int(wrong[0])][column]!r} in column {column!r} is no score"
        )
    return found
