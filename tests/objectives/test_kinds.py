"""Kinds of tasks: which one a model is of, what it completes, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

import tiny
from faster_pruner.data.tasks import Task
from faster_pruner.errors import OptionError
from faster_pruner.objectives.registry import KINDS, TASKS, kind_for, kind_of, objective_of


@pytest.mark.parametrize(
    ("auto", "name"),
    [(AutoModelForTokenClassification, "token-classification"), (AutoModelForQuestionAnswering, "question-answering")],
)
@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_the_class_decides(family: str, auto: Any, name: str) -> None:
    model = tiny.make_model(family, auto=auto)
    assert kind_of(model) is KINDS[name]
    assert objective_of(model).pipeline_tag == name
    assert kind_for(model, Task(name="")) is KINDS[name]
    assert kind_for(model, Task(name="", kind=name)) is KINDS[name]


def test_every_kind_is_named_as_its_objective_is() -> None:
    for name, kind in KINDS.items():
        if kind.headed is not None:
            continue
        # a reranker has one score
        objective = kind.objective(tiny.make_model(labels=1 if kind.scored is not None else 2).config)
        assert (
            name
            == kind.name
            == {"text-generation": "language-modeling"}.get(objective.pipeline_tag, objective.pipeline_tag)
        )
        assert kind.auto_class == objective.auto_class


def test_columns_that_are_not_named_are_the_usual_ones() -> None:
    empty = Task(name="", label_column="")
    answering, tagging, text = (
        KINDS[name].completed(empty) for name in ("question-answering", "token-classification", "text-classification")
    )
    assert (answering.text_column, answering.pair_column, answering.label_column) == ("question", "context", "answers")
    assert (tagging.text_column, tagging.pair_column, tagging.label_column) == ("tokens", None, "ner_tags")
    assert (text.text_column, text.pair_column, text.label_column) == ("text", None, "label")
    named = KINDS["question-answering"].completed(Task(name="", text_column="q", label_column="a"))
    assert (named.text_column, named.pair_column, named.label_column) == ("q", "context", "a")
    assert KINDS["text-classification"].completed(TASKS["mrpc"]) == TASKS["mrpc"]


def test_a_task_of_another_kind_is_one_clear_error() -> None:
    model = tiny.make_tagger()
    with pytest.raises(OptionError, match="a BertForTokenClassification, made for token-classification") as caught:
        kind_for(model, TASKS["sst2"])
    assert "task 'sst2' is of the kind text-classification, for which a ...ForSequenceClassification" in str(
        caught.value
    )
    assert caught.value.option == "task"
    with pytest.raises(OptionError, match="task 'question-answering' is of the kind question-answering"):
        kind_for(model, Task(name="", kind="question-answering"))
