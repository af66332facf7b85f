"""Which objective goes with a model, and what it is judged by."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

import tiny
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.objectives.classification import CLASSIFICATION, MULTI_LABEL, REGRESSION
from faster_pruner.objectives.registry import objective_of


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_the_head_decides(family: str) -> None:
    assert objective_of(tiny.make_model(family)) is CLASSIFICATION
    assert objective_of(tiny.make_model(family, labels=3)) is CLASSIFICATION
    assert objective_of(tiny.make_model(family, labels=1)) is REGRESSION


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        ("single_label_classification", CLASSIFICATION),
        ("multi_label_classification", MULTI_LABEL),
        ("regression", REGRESSION),
    ],
)
def test_the_problem_type_decides(problem: str, expected: object) -> None:
    assert objective_of(tiny.make_model(labels=3, problem_type=problem)) is expected


def test_other_problem_types_and_other_classes_are_refused() -> None:
    model = tiny.make_model()
    model.config.__dict__["problem_type"] = "ranking"
    with pytest.raises(UnsupportedModelError, match="problem_type is 'ranking'; supported are regression"):
        objective_of(model)
    bare = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    with pytest.raises(UnsupportedModelError, match="gives a vector for every token.* an objective of your own"):
        objective_of(bare)


def test_a_module_that_is_no_transformers_model_is_refused_the_same_way() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match="this is a Linear"):
        objective_of(model)


def test_a_task_may_name_other_metrics_but_only_those_that_the_objective_has() -> None:
    assert CLASSIFICATION.judged_by(()) is CLASSIFICATION
    assert CLASSIFICATION.judged_by(("matthews", "loss")).reported == ("matthews", "loss")
    assert CLASSIFICATION.judged_by(("pearson",)) is CLASSIFICATION
