"""Rerankers: which models are some, rows of one query, and the metrics against scikit-learn and brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score

import tiny
from faster_pruner.data.files import Rows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError, OptionError
from faster_pruner.model.scoring import Scoring
from faster_pruner.objectives.evaluation import confidence, evaluate, predict_rows
from faster_pruner.objectives.objective import Cotangents, Objective, OfRows, Predicted
from faster_pruner.objectives.registry import KINDS, TASKS, kind_for, kind_of, objective_of
from faster_pruner.objectives.reranking import Queries, encode, objective_for, scored

RANKING = Task(name="", kind="text-ranking", label_column="")
NAMES = ["ndcg@10", "spearman", "dense_ndcg@10", "dense_spearman"]


def predicted(scores: Any, queries: Any, labels: Any = None) -> Predicted:
    values = np.asarray(scores, dtype=np.float32)[:, None]
    own = None if labels is None else np.asarray(labels, dtype=np.float32)
    return Predicted(values, np.arange(len(values)), own, Queries(np.asarray(queries)))


def made_up(seed: int, *, labelled: bool = True) -> tuple[Predicted, Predicted]:
    """Scores of a dense and of another model: 12 queries with 1 to 15 texts each, in any order."""
    generator = np.random.default_rng(seed)
    queries = generator.permutation(np.repeat(np.arange(12), [1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 14, 15]))
    dense = generator.normal(0, 4, len(queries))
    labels = generator.integers(0, 4, len(queries)) if labelled else None
    if labels is not None:
        # something is relevant of all queries but one
        labels[np.unique(queries, return_index=True)[1]] = 2
        labels[queries == 3] = 0
    other = dense + generator.normal(0, 2, len(queries))
    return predicted(dense, queries, labels), predicted(other, queries, labels)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    found: Any = spearmanr(one, other)
    return float(found.statistic)


def objective(*, identity: bool = False) -> Objective:
    return scored(Scoring(identity=identity))


def test_one_logit_is_a_reranker_where_the_task_or_the_folder_says_so() -> None:
    model = tiny.make_model(labels=1)
    ranking, usual = KINDS["text-ranking"], KINDS["text-classification"]
    assert kind_of(model) is usual
    assert kind_of(model, Scoring()) is ranking
    assert kind_for(model, RANKING) is ranking
    assert kind_for(model, Task(name="")) is usual
    assert kind_for(model, Task(name=""), Scoring()) is ranking
    # a task by name is what it is, whatever the folder says
    assert kind_for(model, TASKS["stsb"], Scoring()) is usual
    assert objective_of(model).pipeline_tag == "text-classification"
    assert ranking.objective(model.config).pipeline_tag == "text-ranking"


def test_what_is_no_reranker_is_one_clear_error() -> None:
    with pytest.raises(OptionError, match="gives 3 scores a row; text-ranking needs one") as caught:
        KINDS["text-ranking"].objective(tiny.make_model(labels=3).config)
    assert caught.value.option == "task"
    with pytest.raises(OptionError, match="made for token-classification; task 'text-ranking'.*SequenceClassif"):
        kind_for(tiny.make_tagger(), RANKING)


def test_gradients_are_those_of_the_score_without_labels() -> None:
    found = predict_rows(tiny.make_model(labels=1), objective(), tiny.make_rows(labels=1))
    assert found.values.shape == (12, 1)
    model, batch = tiny.make_model(labels=1), tiny.make_batches(tiny.make_rows(labels=1))[0]
    predictions = objective().readout(model(**batch.inputs), batch)
    signs = Cotangents(objective().likelihood, labelled=False, rows=12, seed=0).of(predictions)
    assert torch.equal(signs.abs(), torch.ones(len(batch.rows), 1))


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_are_those_of_brute_force(seed: int, identity: bool) -> None:
    dense, own = made_up(seed)
    found = objective(identity=identity).score(own, dense)
    assert list(found) == NAMES
    assert isinstance(own.context, Queries)
    assert own.labels is not None
    queries, scores, theirs = own.context.numbers, own.values[:, 0], dense.values[:, 0].astype(np.float64)
    by_label: list[float] = []
    by_dense: list[float] = []
    for query in range(12):
        rows = np.flatnonzero(queries == query)
        if len(rows) < 2:
            continue
        # the first ten by score, each worth its label over log2 of its place + 1, against the best order
        top = rows[np.argsort(-scores[rows])][:10]
        discount = 1 / np.log2(np.arange(2, 12))
        best = np.sort(own.labels[rows])[::-1][:10]
        if best.max() > 0:
            by_label.append((own.labels[top] * discount[: len(top)]).sum() / (best * discount[: len(best)]).sum())
        gains = theirs[rows] - theirs[rows].min() if identity else expit(theirs[rows])
        score: Any = ndcg_score
        by_dense.append(score(gains[None], scores[rows][None], k=10))
    assert (len(by_label), len(by_dense)) == (10, 11)
    assert found["ndcg@10"] == pytest.approx(100 * np.mean(by_label))
    assert found["dense_ndcg@10"] == pytest.approx(100 * np.mean(by_dense))
    assert found["spearman"] == pytest.approx(100 * spearman(scores, own.labels))
    assert found["dense_spearman"] == pytest.approx(100 * spearman(scores, theirs))


def test_the_dense_model_agrees_with_itself() -> None:
    dense, _ = made_up(0, labelled=False)
    assert objective().score(dense, dense) == pytest.approx({"dense_ndcg@10": 100.0, "dense_spearman": 100.0})


def test_labels_below_zero_are_worth_nothing() -> None:
    queries, scores = [0, 0, 0], [3.0, 2.0, 1.0]
    found = objective().score(predicted(scores, queries, [-1, 1, -2]))
    assert found["ndcg@10"] == pytest.approx(100 / np.log2(3))


def test_what_the_rows_do_not_allow_for_is_left_out() -> None:
    """One text a query: no order inside a query, but one of all; and no label at all needs the dense model."""
    apart = predicted([1.0, 2.0, 3.0], [0, 1, 2], [0.1, 0.3, 0.2])
    found = evaluate(apart, objective(), split="validation", rows=3, dense=apart)
    assert list(found.metrics) == ["spearman", "dense_spearman"]
    assert found.primary == "spearman"
    assert found.value == pytest.approx(50.0)
    alone = predicted([1.0, 2.0], [0, 0])
    with pytest.raises(DataError, match="nothing to judge a model by"):
        evaluate(alone, objective(), split="validation", rows=2)
    assert list(objective().score(predicted([1.0], [0]), predicted([1.0], [0]))) == []


@pytest.mark.parametrize("name", NAMES)
def test_queries_are_what_intervals_are_over(name: str) -> None:
    dense, own = made_up(2)
    metric = objective().metrics[name]
    assert isinstance(metric, OfRows)
    table = metric.table(own, dense)
    assert table is not None
    assert len(table) == {"ndcg@10": 10, "dense_ndcg@10": 11}.get(name, 12)
    found, value = confidence(name, objective(), dense, own), objective().score(own, dense)[name]
    assert found.after[0] < value < found.after[1]
    if name.startswith("dense"):
        assert found.before == pytest.approx((100.0, 100.0))


def test_rows_of_one_query_are_found_in_any_order_and_are_pairs() -> None:
    tokenizer, task = tiny.make_tokenizer(), KINDS["text-ranking"].completed(RANKING)
    rows = [
        {"query": "w1 w2", "text": "w3", "label": 2},
        {"query": "w4", "text": "w5 w6", "label": "0.5"},
        {"query": "w1 w2", "text": "w7", "label": False},
    ]
    found = encode(rows, task, tokenizer, config=None, limit=12)
    assert isinstance(found.context, Queries)
    assert found.context.numbers.tolist() == [0, 1, 0]
    assert found.labels == [2.0, 0.5, 0.0]
    assert found.tokens[1] == {key: tokenizer("w4", text_pair="w5 w6")[key] for key in ("input_ids", "token_type_ids")}
    # predictions come sorted by row, whatever the batches were
    assert encode(rows, task, tokenizer, config=None, limit=12, labelled=False).labels is None
    assert [len(row["input_ids"]) for row in encode(rows, task, tokenizer, config=None, limit=5).tokens] == [5, 5, 5]


def test_labels_are_only_read_where_there_are_some() -> None:
    tokenizer, task = tiny.make_tokenizer(), KINDS["text-ranking"].completed(RANKING)
    bare = {"query": "w1", "text": "w2"}
    assert encode([bare, bare], task, tokenizer, config=None, limit=9).labels is None
    bad: list[tuple[Any, str]] = [
        ([bare, {**bare, "label": 1}], "row 1 .* has no column 'label'"),
        ([{**bare, "label": "much"}], "label 'much' in column 'label' is not a number that says how relevant"),
        ([{**bare, "label": None}], "label None in column 'label' is not a number"),
        ([{**bare, "label": [1]}], "is not a number"),
        ([{"text": "w2"}], "no column 'query'; it has: text"),
        ([{**bare, "query": 3}], "no text in column 'query'"),
        ([], "there are no rows"),
    ]
    for rows, message in bad:
        with pytest.raises(DataError, match=message):
            encode(Rows(rows), task, tokenizer, config=None, limit=9)
    named = KINDS["text-ranking"].completed(Task(name="", kind="text-ranking", label_column="grade"))
    with pytest.raises(DataError, match="the data has no column 'grade'"):
        encode([bare], named, tokenizer, config=None, limit=9)


def test_objectives_of_configs_use_the_sigmoid() -> None:
    dense, own = made_up(3)
    config = tiny.make_model(labels=1).config
    assert objective_for(config).score(own, dense) == objective().score(own, dense)
    assert objective_for(config).score(own, dense) != objective(identity=True).score(own, dense)
