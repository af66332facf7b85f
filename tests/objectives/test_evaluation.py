"""Evaluation: what is predicted, what is kept of it, and how sure a metric is."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from faster_pruner.data.batches import Batch, EncodedRows
from faster_pruner.errors import DataError
from faster_pruner.objectives.classification import CLASSIFICATION, REGRESSION
from faster_pruner.objectives.evaluation import confidence, evaluate, gather, predict, predict_rows
from faster_pruner.objectives.likelihoods import Categorical
from faster_pruner.objectives.objective import Objective, Predicted, Predictions

WIDE = 500


def per_token(returned: Tensor, batch: Batch) -> Predictions:
    """One prediction per real token: its next token in the row of logits [B, S, V]."""
    mask = batch.mask
    assert mask is not None
    rows = batch.rows[:, None].expand(mask.shape)[mask]
    return Predictions(returned[mask], rows, batch.inputs["input_ids"][mask])


def right(values: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float((values[:, 0] == labels).mean())


PER_TOKEN = Objective(
    name="tokens",
    readout=per_token,
    likelihood=Categorical(),
    metrics={"accuracy": right},
    keep=lambda predictions: predictions.values.argmax(dim=-1, keepdim=True),
)


def one_hot(inputs: dict[str, Tensor]) -> Tensor:
    """[B, S, V] logits that name every token; padding would be named, too."""
    return torch.nn.functional.one_hot(inputs["input_ids"], WIDE).float()


@pytest.mark.parametrize("tokens_per_batch", [12, 40, 1000])
def test_predictions_of_tokens_come_row_by_row_without_padding(tokens_per_batch: int) -> None:
    rows = tiny.make_rows()
    found = gather(one_hot, PER_TOKEN, tiny.make_batches(rows, tokens_per_batch))
    expected = [token for row in rows.tokens for token in row["input_ids"]]
    assert found.values.shape == (sum(rows.lengths), 1)
    assert found.values[:, 0].tolist() == expected
    assert found.rows.tolist() == [i for i, length in enumerate(rows.lengths) for _ in range(length)]
    assert found.labels is not None
    assert found.labels.tolist() == expected
    assert evaluate(found, PER_TOKEN, split="s", rows=len(rows)).metrics == {"accuracy": 100.0}


@pytest.mark.parametrize(
    "keep",
    [
        lambda predictions: predictions.values.argmax(dim=-1, keepdim=True),
        # a view: it must not hold on to what it is a part of
        lambda predictions: predictions.values[:, :2],
    ],
)
def test_of_every_batch_only_what_the_objective_keeps_stays_in_memory(keep: Callable[[Predictions], Tensor]) -> None:
    given: list[weakref.ref[torch.UntypedStorage]] = []
    alive: list[int] = []

    def call(inputs: dict[str, Any]) -> Tensor:
        alive.append(sum(each() is not None for each in given))
        return one_hot(inputs)

    def readout(returned: Tensor, batch: Batch) -> Predictions:
        predictions = per_token(returned, batch)
        given.append(weakref.ref(predictions.values.untyped_storage()))
        return predictions

    objective = replace(PER_TOKEN, readout=readout, keep=keep)
    batches = tiny.make_batches(tiny.make_rows(30), 20)
    gather(call, objective, batches)
    assert len(batches) > 5
    # the last one, until the next one is there
    assert max(alive) <= 1


def test_predictions_are_those_of_every_row_alone() -> None:
    model, rows = tiny.make_model(labels=3), tiny.make_rows(labels=3)
    found = predict_rows(model, CLASSIFICATION, rows)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits for row in rows.tokens])
    assert np.allclose(found.values, alone.numpy(), atol=1e-5)
    assert found.rows.tolist() == list(range(12))
    assert found.labels is not None
    assert found.labels.tolist() == rows.labels
    assert found.values.dtype == np.float32


def test_rows_without_labels_have_predictions_and_no_rows_have_none() -> None:
    model, rows = tiny.make_model(), tiny.make_rows()
    bare = EncodedRows(tokens=rows.tokens, labels=None, padding=rows.padding)
    assert predict_rows(model, CLASSIFICATION, bare).labels is None
    with pytest.raises(DataError, match="no rows to predict"):
        predict(model, CLASSIFICATION, [])


def test_an_evaluation_has_the_reported_metrics_and_the_first_one_judges() -> None:
    model, rows = tiny.make_model(), tiny.make_rows()
    objective = CLASSIFICATION.judged_by(("matthews", "loss"))
    found = evaluate(predict_rows(model, objective, rows), objective, split="validation", rows=12)
    assert (found.split, found.rows, found.primary) == ("validation", 12, "matthews")
    assert list(found.metrics) == ["matthews", "loss"]
    assert found.value == found.metrics["matthews"]


def made(rows: list[int], seed: int = 0) -> Predicted:
    """Random predictions of two classes for the given rows."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(len(rows), 2)).astype(np.float32)
    return Predicted(values, np.array(rows), generator.integers(0, 2, len(rows)))


def judged(metric: Callable[[np.ndarray, np.ndarray], float]) -> Objective:
    return replace(CLASSIFICATION, metrics={"m": metric})


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    """Accuracy of n rows: a binomial with known quantiles. The change is paired: equal predictions do not differ."""
    rows, hits = 400, 300
    values = np.tile([[0.0, 1.0]], (rows, 1))
    before = Predicted(values, np.arange(rows), np.array([1] * hits + [0] * (rows - hits)))
    found = confidence("accuracy", CLASSIFICATION, before, before, resamples=2000)
    spread = 1.96 * math.sqrt(hits / rows * (1 - hits / rows) / rows)
    assert found.before == pytest.approx((75 - 100 * spread, 75 + 100 * spread), abs=0.5)
    assert found.after == found.before
    assert found.change == (0.0, 0.0)
    again = confidence("accuracy", CLASSIFICATION, before, before, resamples=2000)
    assert again == found


def test_predictions_of_one_row_are_drawn_together() -> None:
    counts = [3, 1, 4, 2]
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    seen: list[int] = []

    def metric(values: np.ndarray, labels: np.ndarray) -> float:
        drawn = values[:, 0].astype(int)
        # whole rows, one after the other, as many as there are rows
        starts = np.flatnonzero(values[:, 1] == 0)
        assert len(starts) == len(counts)
        for start, stop in zip(starts, [*starts[1:], len(drawn)], strict=True):
            assert stop - start == counts[drawn[start]]
            assert (drawn[start:stop] == drawn[start]).all()
        assert (labels == drawn).all()
        seen.append(len(drawn))
        return 0.0

    place = [i for count in counts for i in range(count)]
    predicted = Predicted(np.array([rows, place]).T.astype(np.float32), np.array(rows), np.array(rows))
    confidence("m", judged(metric), predicted, predicted, resamples=50)
    assert len(seen) == 100
    assert len(set(seen)) > 1


def test_many_predictions_per_row_do_not_make_a_metric_surer() -> None:
    """Copies of a prediction say nothing new."""
    once = made(list(range(60)))
    copies = Predicted(*(np.repeat(part, 20, axis=0) for part in (once.values, once.rows, once.labels)))
    assert confidence("accuracy", CLASSIFICATION, copies, copies) == confidence("accuracy", CLASSIFICATION, once, once)


def test_samples_that_a_metric_is_not_defined_on_are_left_out() -> None:
    def raises(values: np.ndarray, labels: np.ndarray) -> float:
        if labels.all() or not labels.any():
            raise ValueError("only one class")
        return float(labels.mean())

    def undefined(values: np.ndarray, labels: np.ndarray) -> float:
        return math.nan if labels.all() or not labels.any() else float(labels.mean())

    predicted = replace(made([0, 1, 2]), labels=np.array([0, 1, 1]))
    found = confidence("m", judged(raises), predicted, predicted)
    # only means of 1/3 and 2/3 are left
    assert found.before == pytest.approx((1 / 3, 2 / 3))
    assert found == confidence("m", judged(undefined), predicted, predicted)


def test_a_metric_that_is_defined_nowhere_has_no_interval_and_a_constant_one_a_point() -> None:
    def never(values: np.ndarray, labels: np.ndarray) -> float:
        raise ZeroDivisionError

    predicted = made([0, 1, 2])
    with pytest.raises(DataError, match="m is defined on no sample of the rows"):
        confidence("m", judged(never), predicted, predicted)
    assert confidence("m", judged(lambda values, labels: 7.0), predicted, predicted).before == (7.0, 7.0)


@pytest.mark.parametrize("objective", [CLASSIFICATION, REGRESSION])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_every_metric_survives_samples_of_very_few_rows(objective: Objective, rows: int) -> None:
    """Warnings are errors here: samples of one class, of one row, without any variance make none."""
    predicted = made(list(range(rows)))
    if objective is REGRESSION:
        predicted = replace(predicted, values=predicted.values[:, :1])
    for metric in objective.metrics:
        low, high = confidence(metric, objective, predicted, predicted, resamples=40).before
        assert low <= high
