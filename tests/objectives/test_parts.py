"""Predictions over a vocabulary in parts: the same as all at once, and never all of them in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import stock_models as stock
from faster_pruner.data.batches import Batch
from faster_pruner.method.algorithm import calibrate
from faster_pruner.method.calibrated import Calibrated, Subject
from faster_pruner.model.passes import inference
from faster_pruner.model.tail import Tail
from faster_pruner.objectives import parts
from faster_pruner.objectives.evaluation import predict
from faster_pruner.objectives.language import objective_for
from faster_pruner.objectives.objective import Cotangents, Predictions
from faster_pruner.options import CalibrationOptions, Switches, customise, preset

pytestmark = pytest.mark.filterwarnings("ignore")

# Plain heads; a soft cap; a bias; a base of another name.
NAMES = ("llama", "gemma2", "phi", "gpt2")


def batch_of(model: Any) -> Batch:
    ids = stock.inputs_for(model)["input_ids"]
    mask = torch.ones_like(ids)
    mask[-1, 5:] = 0
    return Batch(inputs={"input_ids": ids, "attention_mask": mask}, rows=torch.arange(len(mask)), labels=None)


def calibrated(name: str) -> Calibrated:
    model, described = stock.dense(name)
    subject = Subject(model, described.sublayers, objective_for(model.config), torch.float32)
    method = customise(preset("default"), Switches(labels=True))
    return calibrate(subject, [batch_of(model)], method, CalibrationOptions(precision="float32"))


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = stock.dense(name)
    batch, objective = batch_of(model), objective_for(model.config)
    with inference(model):
        (whole,) = parts.predicted(model, objective, batch)
        monkeypatch.setattr(parts, "MOST_VALUES", 3 * stock.WORDS)
        pieces = list(parts.predicted(model, objective, batch))
        scored = predict(model, objective, [batch])
    assert [len(piece.values) for piece in pieces[:-1]] == [3] * (len(pieces) - 1)
    assert len(pieces) > 3
    for key in ("rows", "labels"):
        assert torch.equal(torch.cat([getattr(piece, key) for piece in pieces]), getattr(whole, key))
    assert torch.allclose(torch.cat([piece.values for piece in pieces]), whole.values, atol=1e-5)
    assert whole.labels is not None
    losses = nn.functional.cross_entropy(whole.values, whole.labels, reduction="none")
    assert torch.allclose(torch.tensor(scored.values[:, 0]), losses, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_statistics_are_those_of_one_backward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibrated(name)
    monkeypatch.setattr(parts, "MOST_VALUES", 3 * stock.WORDS)
    found = calibrated(name)
    assert found.reading.rules == whole.reading.rules
    for s in whole.sublayers:
        own, expected = found.statistics[s.name], whole.statistics[s.name]
        for moment, other in ((own.x, expected.x), (own.y_gradient, expected.y_gradient)):
            assert moment is not None
            assert other is not None
            assert other.plain().norm() > 0
            scale = float(other.plain().abs().max())
            assert torch.allclose(moment.plain(), other.plain(), rtol=1e-4, atol=1e-5 * scale)


class Largest(TorchDispatchMode):
    """The most numbers in the memory of any tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if isinstance(value, Tensor):
            self.numbers = max(self.numbers, value.untyped_storage().nbytes() // value.element_size())
        return value


def test_tokens_times_vocabulary_never_stand_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stock.build("llama").requires_grad_(False)
    batch, objective, width = batch_of(model), objective_for(model.config), 5000
    model.lm_head = nn.Linear(model.config.hidden_size, width, bias=False).requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    assert objective.tokens is not None
    tokens = int(objective.tokens.chosen(batch).at.sum())

    def largest() -> int:
        with Largest() as seen:
            for made in parts.predicted(model, objective, batch):
                made.values.backward(torch.ones_like(made.values))
        return seen.numbers

    assert largest() >= tokens * width
    expected = model.get_input_embeddings().weight.grad.clone()
    model.get_input_embeddings().weight.grad = None
    # what it is tried on once is as large as four tokens
    monkeypatch.setattr(parts, "MOST_VALUES", 2 * width)
    assert largest() <= max(model.lm_head.weight.numel(), 4 * width)
    assert torch.allclose(model.get_input_embeddings().weight.grad, expected, rtol=1e-4, atol=1e-4)


def test_a_model_without_a_base_inside_has_no_tail() -> None:
    model, _ = stock.dense("llama")
    assert Tail.of(model.model, stock.inputs_for(model)) is None


def test_what_is_not_the_same_by_itself_is_not_taken_apart() -> None:
    class Position(nn.Linear):
        """A head that looks at where a token stands."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.arange(x.shape[1])[:, None]

    model = stock.build("llama")
    inputs = stock.inputs_for(model)
    assert Tail.of(model, inputs) is not None
    other = stock.build("llama")
    other.lm_head = Position(model.config.hidden_size, stock.WORDS, bias=False)
    assert Tail.of(other, inputs) is None
    assert "forward" not in vars(other.base_model)


def test_parts_of_a_row_have_directions_of_their_own() -> None:
    values, labels = torch.randn(6, 40), torch.zeros(6, dtype=torch.long)
    likelihood, rows = objective_for(None).likelihood, torch.zeros(6, dtype=torch.long)

    def drawn(sizes: list[int]) -> Tensor:
        cotangents = Cotangents(likelihood, labelled=False, rows=1, seed=3)
        pieces = zip(values.split(sizes), rows.split(sizes), labels.split(sizes), strict=True)
        return torch.cat([cotangents.of(Predictions(*piece)) for piece in pieces])

    apart = drawn([3, 3])
    assert torch.equal(drawn([3, 3]), apart)
    assert torch.equal(drawn([6]), drawn([6]))
    # D = root - p sum(root) with root = sqrt(p) signs: what is left of a direction over sqrt(p) says which signs it had
    p = values.softmax(dim=-1)
    signs = ((apart - apart[:, :1] / p[:, :1] * p) / p.sqrt()).sign()[:, 1:]
    assert not torch.equal(signs[:3], signs[3:])
