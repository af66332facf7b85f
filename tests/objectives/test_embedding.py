"""Embeddings: what a head makes of hidden states, what is compared, and the metrics against brute force."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import tiny
from faster_pruner.data.batches import Batch
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError, UnsupportedModelError
from faster_pruner.model.head import Head
from faster_pruner.objectives.embedding import METRICS, Pairs, encode, objective_for
from faster_pruner.objectives.evaluation import confidence, evaluate
from faster_pruner.objectives.objective import OfRows, Predicted
from faster_pruner.objectives.registry import KINDS, kind_of, objective_of


class Mean(nn.Module):
    """Mean pooling, as a module of sentence-transformers."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        mask = features["attention_mask"][:, :, None].float()
        return {**features, "sentence_embedding": (features["token_embeddings"] * mask).sum(1) / mask.sum(1)}


def batch() -> Batch:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    return Batch(
        inputs={"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": mask},
        rows=torch.arange(2),
        labels=None,
    )


def returned(seed: int = 0) -> Any:
    return SimpleNamespace(last_hidden_state=torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_prediction_is_the_vector_as_it_is_compared(similarity: str) -> None:
    head, state = Head((Mean(),), similarity=similarity), returned()
    found = objective_for(head).readout(state, batch()).values
    means = torch.stack([state.last_hidden_state[0].mean(0), state.last_hidden_state[1, :2].mean(0)])
    expected = means / means.norm(dim=1, keepdim=True) if similarity == "cosine" else means
    assert torch.allclose(found, expected, atol=1e-6)


def test_prefixes_are_predictions_too_and_only_the_whole_is_kept() -> None:
    objective, state = objective_for(Head((Mean(),), dims=(2, 4))), returned()
    found = objective.readout(state, batch())
    assert found.values.shape == (2, 6 + 2 + 4)
    assert torch.allclose(found.values[:, 6:8].norm(dim=1), torch.ones(2))
    assert torch.equal(objective.keep(found), found.values[:, :6])


def test_along_the_vector_nothing_counts_for_the_cosine() -> None:
    """The Fisher direction of a normalised vector lies in the tangent space of the sphere."""
    head = Head((Mean(),))
    state = returned()
    tokens: Tensor = state.last_hidden_state.requires_grad_()
    values = objective_for(head).readout(state, batch()).values
    values.backward(torch.ones_like(values))
    assert tokens.grad is not None
    pooled = torch.stack([tokens[0].mean(0), tokens[1, :2].mean(0)])
    along = (torch.stack([tokens.grad[0].sum(0), tokens.grad[1, :2].sum(0)]) * pooled).sum(dim=1)
    assert torch.allclose(along, torch.zeros(2), atol=1e-5)


def predicted(values: np.ndarray, context: object = None) -> Predicted:
    return Predicted(values, np.arange(len(values)), None, context)


def test_metrics_are_those_of_brute_force() -> None:
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(40, 8))
    own = dense + 0.4 * generator.normal(size=(40, 8))
    scores = generator.normal(size=20)
    found = objective_for(Head((Mean(),))).score(predicted(own, Pairs(scores)), predicted(dense, Pairs(scores)))

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    pairs = [float(unit(own)[2 * i] @ unit(own)[2 * i + 1]) for i in range(20)]
    assert np.isclose(found["spearman"], 100 * spearmanr(pairs, scores).statistic)
    shared = 0
    for i in range(40):
        nearest = [
            np.argsort([-np.inf if j == i else unit(x)[i] @ unit(x)[j] for j in range(40)])[-10:] for x in (own, dense)
        ]
        shared += len(set(nearest[0]) & set(nearest[1]))
    assert np.isclose(found["neighbours"], 100 * shared / 400)
    assert np.isclose(found["cosine"], 100 * (unit(own) * unit(dense)).sum(axis=1).mean())
    assert 0 < found["similarities"] < 100


def test_the_dense_model_agrees_with_itself() -> None:
    dense = predicted(np.random.default_rng(0).normal(size=(30, 5)))
    assert objective_for(Head((Mean(),))).score(dense, dense) == pytest.approx(
        {"neighbours": 100.0, "similarities": 100.0, "cosine": 100.0}
    )


def test_what_cannot_be_judged_is_said() -> None:
    alone = predicted(np.eye(4))
    with pytest.raises(DataError, match="nothing to judge a model by"):
        evaluate(alone, objective_for(Head((Mean(),))), split="validation", rows=4)


def test_intervals_are_over_lines_of_the_table() -> None:
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(60, 8))
    own = predicted(dense + 0.5 * generator.normal(size=dense.shape))
    objective = objective_for(Head((Mean(),)))
    value = objective.score(own, predicted(dense))["neighbours"]
    found = confidence("neighbours", objective, predicted(dense), own)
    assert found.before == (100.0, 100.0)
    assert found.after[0] < value < found.after[1]
    assert all(isinstance(metric, OfRows) for metric in METRICS.values())


def test_pairs_are_two_rows_each_and_blank_texts_are_left_out() -> None:
    tokenizer = tiny.make_tokenizer()
    rows = [{"a": "w1 w2", "b": "w3", "s": 4.0}, {"a": "w4", "b": "w5 w6", "s": "1.5"}]
    found = encode(
        rows, Task(name="", text_column="a", pair_column="b", label_column="s"), tokenizer, config=None, limit=9
    )
    alone = [tokenizer(text)["input_ids"] for text in ("w1 w2", "w3", "w4", "w5 w6")]
    assert [list(row["input_ids"]) for row in found.tokens] == alone
    assert isinstance(found.context, Pairs)
    assert found.context.scores.tolist() == [4.0, 1.5]
    single = encode(
        [{"a": "w1"}, {"a": " "}], Task(name="", text_column="a", label_column=""), tokenizer, config=None, limit=9
    )
    assert len(single) == 1
    with pytest.raises(DataError, match="is no score"):
        encode(
            [{**rows[0], "s": "many"}],
            Task(name="", text_column="a", pair_column="b", label_column="s"),
            tokenizer,
            config=None,
            limit=9,
        )


def test_an_encoder_without_a_head_needs_one() -> None:
    model = tiny.make_model().base_model
    assert kind_of(model) is KINDS["embedding"]
    with pytest.raises(UnsupportedModelError, match="nothing says how they become one"):
        objective_of(model)
