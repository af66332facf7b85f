"""Several labels per row, from the rows of a file to the metrics of the pruned model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import oracles
import tiny
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.tasks import Task
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.objectives.classification import MULTI_LABEL, encode
from faster_pruner.objectives.evaluation import confidence, evaluate, predict_rows
from faster_pruner.options import PRESETS, CalibrationOptions, Fisher

CLASSES = 4
OPTIONS = CalibrationOptions(precision="float32", tokens_per_batch=60)


def make_model() -> Any:
    return tiny.make_model(labels=CLASSES, problem_type="multi_label_classification")


def make_rows(model: Any, count: int = 60) -> EncodedRows:
    """Rows with what the model itself says, by name."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = tiny.make_tokenizer()
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        words = torch.randint(0, len(tiny.WORDS), (int(torch.randint(2, 9, (), generator=generator)),))
        text = " ".join(tiny.WORDS[word] for word in words.tolist())
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        rows.append({"text": text, "label": [f"label_{c}" for c in (logits > 0).nonzero().flatten().tolist()]})
    return encode(rows, Task(name="t", text_column="text"), tokenizer, config=model.config, limit=16)


def test_labelled_mask_gradients_are_those_of_binary_cross_entropy() -> None:
    model = make_model()
    rows = make_rows(model, 10)
    # labels that the model gets wrong here and there
    rows = replace(rows, labels=[[1.0 - label[0], *label[1:]] for label in rows.labels or []])
    method = replace(PRESETS["default"], labels=True, selection=Fisher())
    found = calibrate(tiny.make_subject(model), rows, method, OPTIONS)
    assert found.subject.objective is MULTI_LABEL
    for i, (row, label) in enumerate(zip(rows.tokens, rows.labels or [], strict=True)):
        inputs = {key: torch.tensor([value]) for key, value in row.items()}

        def loss(inputs: dict[str, Tensor] = inputs, label: Any = label) -> Tensor:
            logits = model(**inputs).logits
            return functional.binary_cross_entropy_with_logits(logits, torch.tensor([label]), reduction="sum")

        traced = oracles.trace(model, found.subject.sublayers, loss, torch.tensor(1.0))
        for name, own in found.statistics.sublayers.items():
            assert own.mask_gradients is not None
            assert torch.allclose(own.mask_gradients[i], traced[name].mask_gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("labels", [False, True])
def test_every_preset_prunes_and_the_metrics_tell(preset: str, labels: bool) -> None:
    model = make_model()
    rows = make_rows(model)
    method = replace(PRESETS[preset], labels=labels)
    given = rows if labels else replace(rows, labels=None)
    found = calibrate(tiny.make_subject(model), given, method, OPTIONS)
    pruned = cut(found, Budget(macs=0.7), method)
    before, after = predict_rows(model, MULTI_LABEL, rows), predict_rows(pruned.model, MULTI_LABEL, rows)
    dense = evaluate(before, MULTI_LABEL, split="s", rows=len(rows))
    assert dense.primary == "micro_f1"
    assert (dense.metrics["micro_f1"], dense.metrics["all_correct"]) == (100.0, 100.0)
    assert dense.metrics["macro_f1"] > 0
    kept = evaluate(after, MULTI_LABEL, split="s", rows=len(rows))
    assert kept.metrics["loss"] > dense.metrics["loss"]
    assert 30 < kept.metrics["micro_f1"] <= 100
    change = confidence("micro_f1", MULTI_LABEL, before, after).change
    assert change[0] <= kept.metrics["micro_f1"] - 100 <= change[1]
