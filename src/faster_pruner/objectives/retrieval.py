"""Queries against documents: what a search finds, and how good that is.

Definitions are trec_eval's: the gain of a document is its relevance, its discount log2(rank + 1), the ideal order that
of all judged documents; queries without a relevant document do not count. As in BEIR a document with the query's own
id is no answer (in some collections queries are documents themselves).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.retrieval import JudgedCollection
from faster_pruner.objectives.neighbours import NONE, nearest, shared
from faster_pruner.objectives.objective import Predicted

_GAIN_AT, _RECALL_AT, _NEIGHBOURS, _PAIRS = 10, 100, 10, 10_000
# Rankings that are remembered: the dense and the pruned model's.
_REMEMBERED = 2


@dataclass(frozen=True, eq=False)
class Ranking:
    """How rows make a search: documents first, then queries.

    Attributes:
        ids: of the documents, as many as the first rows.
        query_ids: of the other rows.
        relevance: of each query its relevant documents by id, and how relevant each is, above 0. Some of them may not
            be there: those are missed.
    """

    ids: Sequence[str]
    query_ids: Sequence[str]
    relevance: Sequence[Mapping[str, float]]
    _last: list[tuple[weakref.ref[np.ndarray], np.ndarray]] = field(default_factory=list, repr=False)

    def found(self, predicted: Predicted) -> np.ndarray:
        """[Q, <= 100]: places of the documents that each query finds, best first; `NONE` where there are no more."""
        for known, places in self._last:
            if known() is predicted.values:
                return places
        documents, queries = self.parts(predicted)
        by_id = {name: place for place, name in enumerate(self.ids)}
        itself = np.array([by_id.get(name, NONE) for name in self.query_ids])
        places = nearest(queries, documents, _RECALL_AT, without=itself)
        self._last[:] = [*self._last, (weakref.ref(predicted.values), places)][-_REMEMBERED:]
        return places

    def parts(self, predicted: Predicted) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the documents and of the queries."""
        return predicted.values[: len(self.ids)], predicted.values[len(self.ids) :]

    def gains(self, predicted: Predicted, query: int, depth: int) -> np.ndarray:
        """Relevance of the first documents that a query finds."""
        own = self.relevance[query]
        places: list[int] = self.found(predicted)[query, :depth].tolist()
        return np.array([own.get(self.ids[place], 0.0) for place in places if place != NONE])


def discounted_gains(predicted: Predicted, dense: Predicted) -> np.ndarray | None:
    """[Q, 1]: nDCG of the first 10 documents; None where there are no queries."""
    del dense
    if not isinstance(ranking := predicted.context, Ranking):
        return None
    lines = [
        _discounted(ranking.gains(predicted, i, _GAIN_AT)) / _discounted(np.sort(list(own.values()))[::-1][:_GAIN_AT])
        for i, own in enumerate(ranking.relevance)
    ]
    return np.array(lines)[:, None]


def _discounted(gains: np.ndarray) -> float:
    """Their sum, each divided by log2(rank + 1), ranks from 1."""
    return float((gains / np.log2(np.arange(len(gains)) + 2)).sum())


def recalls(predicted: Predicted, dense: Predicted) -> np.ndarray | None:
    """[Q, 1]: share of the relevant documents among the first 100; None where there are no queries."""
    del dense
    if not isinstance(ranking := predicted.context, Ranking):
        return None
    lines = [(ranking.gains(predicted, i, _RECALL_AT) > 0).sum() / len(own) for i, own in enumerate(ranking.relevance)]
    return np.array(lines)[:, None]


def found_again(ranking: Ranking, predicted: Predicted, dense: Predicted) -> np.ndarray:
    """[Q, 1]: share of the first 10 documents of each query that it finds in the dense model, too."""
    return shared(ranking.found(dense)[:, :_NEIGHBOURS], ranking.found(predicted)[:, :_NEIGHBOURS])


def similarities(ranking: Ranking, predicted: Predicted, dense: Predicted) -> np.ndarray:
    """[M, 2]: similarities of the same random queries and documents in both models."""
    generator = np.random.default_rng(0)
    one = generator.integers(0, len(ranking.query_ids), _PAIRS)
    other = generator.integers(0, len(ranking.ids), _PAIRS)
    both = [ranking.parts(each) for each in (predicted, dense)]
    return np.stack([(queries[one] * documents[other]).sum(axis=1) for documents, queries in both], axis=1)


def searched(collection: JudgedCollection, documents: EncodedRows, queries: EncodedRows) -> EncodedRows:
    """A test collection as rows: its documents, then its queries, which are what is judged."""
    ranking = Ranking(collection.ids, collection.query_ids, collection.relevance)
    return replace(joined(documents, queries), split=collection.split, examples=len(queries), context=ranking)


def joined(first: EncodedRows, second: EncodedRows) -> EncodedRows:
    """Rows of text without labels, one after the other."""
    return replace(first, tokens=[*first.tokens, *second.tokens], truncated=first.truncated + second.truncated)
