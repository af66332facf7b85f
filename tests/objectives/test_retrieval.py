"""What a search finds: nDCG and recall against a plain implementation of trec_eval's definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torch import nn

from faster_pruner.model.head import Head
from faster_pruner.objectives import neighbours
from faster_pruner.objectives.embedding import objective_for
from faster_pruner.objectives.evaluation import confidence
from faster_pruner.objectives.neighbours import NONE, nearest
from faster_pruner.objectives.objective import Predicted
from faster_pruner.objectives.retrieval import Ranking

DOCUMENTS, QUERIES, WIDTH = 150, 20, 6


def predicted(values: np.ndarray, ranking: Ranking) -> Predicted:
    return Predicted(values, np.arange(len(values)), None, ranking)


def made(seed: int = 0) -> tuple[Ranking, np.ndarray]:
    """A search whose relevant documents are often near, some of which are not there."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(DOCUMENTS + QUERIES, WIDTH))
    relevance: list[dict[str, float]] = []
    for query in values[DOCUMENTS:]:
        near = np.argsort(-values[:DOCUMENTS] @ query)[:30]
        chosen = generator.choice(near, 4, replace=False).tolist() + generator.integers(0, DOCUMENTS, 2).tolist()
        relevance.append({f"d{i}": float(generator.integers(1, 4)) for i in chosen} | {"gone": 1.0})
    ids = [f"d{i}" for i in range(DOCUMENTS)]
    return Ranking(ids, [f"q{i}" for i in range(QUERIES)], relevance), values


def plain(ranking: Ranking, values: np.ndarray) -> tuple[list[float], list[float]]:
    """nDCG@10 and recall@100 of each query, with dictionaries."""
    gains, recalls = [], []
    for query, own, vector in zip(ranking.query_ids, ranking.relevance, values[len(ranking.ids) :], strict=True):
        run = {d: float(values[i] @ vector) for i, d in enumerate(ranking.ids) if d != query}
        order = sorted(run, key=lambda d: -run[d])
        dcg = sum(own.get(d, 0.0) / math.log2(rank + 1) for rank, d in enumerate(order[:10], start=1))
        best = sorted(own.values(), reverse=True)[:10]
        gains.append(dcg / sum(gain / math.log2(rank + 1) for rank, gain in enumerate(best, start=1)))
        recalls.append(len(set(order[:100]) & set(own)) / len(own))
    return gains, recalls


@pytest.mark.parametrize("at_once", [2**24, 700, 1])
def test_metrics_are_those_of_dictionaries(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_AT_ONCE", at_once)
    ranking, values = made()
    found = objective_for(Head((nn.Identity(),))).score(predicted(values, ranking))
    gains, recalls = plain(ranking, values)
    assert list(found) == ["ndcg@10", "recall@100"]
    assert found["ndcg@10"] == pytest.approx(100 * np.mean(gains))
    assert found["recall@100"] == pytest.approx(100 * np.mean(recalls))
    assert 20 < found["ndcg@10"] < 90
    assert found["recall@100"] < 100


def test_a_document_with_the_id_of_the_query_is_no_answer() -> None:
    """As in ArguAna, whose queries are documents of the corpus."""
    ranking, values = made()
    own = Ranking(ranking.ids, [f"d{i}" for i in range(QUERIES)], ranking.relevance)
    values[DOCUMENTS:] = values[:QUERIES]
    found = objective_for(Head((nn.Identity(),))).score(predicted(values, own))
    gains, recalls = plain(own, values)
    assert found == pytest.approx({"ndcg@10": 100 * np.mean(gains), "recall@100": 100 * np.mean(recalls)})
    places = own.found(predicted(values, own))
    assert all(i not in places[i] for i in range(QUERIES))


def test_against_the_dense_model_what_a_query_finds_counts() -> None:
    ranking, values = made()
    own = values + 0.3 * np.random.default_rng(1).normal(size=values.shape)
    found = objective_for(Head((nn.Identity(),))).score(predicted(own, ranking), predicted(values, ranking))
    shares = []
    for i in range(DOCUMENTS, DOCUMENTS + QUERIES):
        nearest = [set(np.argsort(-x[:DOCUMENTS] @ x[i])[:10].tolist()) for x in (own, values)]
        shares.append(len(nearest[0] & nearest[1]) / 10)
    assert found["neighbours"] == pytest.approx(100 * np.mean(shares))
    assert 0 < found["similarities"] < 100
    cosines = (own * values).sum(axis=1) / np.linalg.norm(own, axis=1) / np.linalg.norm(values, axis=1)
    assert found["cosine"] == pytest.approx(100 * cosines.mean())
    itself = objective_for(Head((nn.Identity(),))).score(predicted(values, ranking), predicted(values, ranking))
    assert (itself["neighbours"], itself["similarities"], itself["cosine"]) == pytest.approx((100, 100, 100))


def test_intervals_are_over_queries() -> None:
    ranking, values = made()
    noise = np.random.default_rng(1).normal(size=values.shape)
    dense, own = predicted(values, ranking), predicted(values + noise, ranking)
    objective = objective_for(Head((nn.Identity(),)))
    found = confidence("ndcg@10", objective, dense, own)
    spread = np.std(plain(ranking, values)[0]) / math.sqrt(QUERIES)
    low, high = found.before
    assert low < objective.score(dense)["ndcg@10"] < high
    assert high - low == pytest.approx(100 * 2 * 1.96 * spread, rel=0.25)
    assert found.change[1] < 0


def test_what_is_remembered_is_what_was_found() -> None:
    """Rankings of more models than are remembered, in turn."""
    ranking, values = made()
    models = [predicted(values + i, ranking) for i in range(4)]
    first = [ranking.found(each).copy() for each in models]
    for each, expected in zip(models, first, strict=True):
        assert np.array_equal(ranking.found(each), expected)
    assert not np.array_equal(first[0], first[3])


def test_fewer_documents_than_neighbours() -> None:
    ranking = Ranking(["a", "b", "c"], ["a", "x"], [{"b": 1.0}, {"c": 2.0}])
    values = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [1, 0], [0, 1]])
    assert ranking.found(predicted(values, ranking)).tolist() == [[1, 2, NONE], [2, 1, 0]]
    found = objective_for(Head((nn.Identity(),))).score(predicted(values, ranking), predicted(values, ranking))
    assert (found["ndcg@10"], found["recall@100"], found["neighbours"]) == (100, 100, 100)


def test_the_first_of_equal_documents_comes_first() -> None:
    documents = np.array([[0.0], [3.0], [1.0], [3.0], [2.0]])
    assert nearest(np.ones((1, 1)), documents, 4, without=np.array([NONE])).tolist() == [[1, 3, 4, 2]]
