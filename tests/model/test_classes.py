"""Which class belongs to which auto class, as transformers' own tables say, and no other class is ever named."""

from __future__ import annotations

import pytest
import transformers

import tiny
from faster_pruner.model.classes import auto_classes_of, stock_class


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_tables_agree_with_the_auto_classes(family: str) -> None:
    config = tiny.CONFIGS[family]
    for auto in ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"):
        opened = type(getattr(transformers, auto).from_config(config))
        assert auto in auto_classes_of(opened.__name__, family)
        assert stock_class(opened.__name__, family) is opened


def test_auto_classes_for_a_task_come_first() -> None:
    assert auto_classes_of("BertForSequenceClassification", "bert") == ["AutoModelForSequenceClassification"]
    assert auto_classes_of("BertModel", "bert") == ["AutoModel"]
    assert auto_classes_of("T5ForConditionalGeneration", "t5")[0] != "AutoModel"


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("os.system", "bert"),
        ("BertForSequenceClassification", "roberta"),
        ("BertForSequenceClassification", ""),
        ("BertTokenizer", "bert"),
        ("AutoModel", "bert"),
        ("", "bert"),
        ("__class__", "bert"),
    ],
)
def test_other_names_are_no_class(name: str, model_type: str) -> None:
    assert auto_classes_of(name, model_type) == []
    assert stock_class(name, model_type) is None
