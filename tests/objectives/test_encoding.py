"""Rows of text to tokens and labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BatchEncoding

import tiny
from faster_pruner.data.batches import Label
from faster_pruner.data.glue import GLUE
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError
from faster_pruner.objectives.classification import encode
from faster_pruner.objectives.encoding import cut_off

TEXT = Task(name="t", text_column="text")
MULTI_LABEL = "multi_label_classification"


def config(labels: int = 2, **changes: Any) -> Any:
    return tiny.make_model(labels=labels, **changes).config


def labels_of(values: list[Any], of: Any, task: Task = TEXT) -> list[Label]:
    rows = [{"text": "w1", task.label_column: value} for value in values]
    found = encode(rows, task, tiny.make_tokenizer(), config=of, limit=9).labels
    assert found is not None
    return list(found)


def test_pairs_are_joined_and_truncated() -> None:
    task = Task(name="t", text_column="text", pair_column="other")
    rows = [{"text": "w1 w2 w3 w4", "other": "w5 w6", "label": 1}]
    tokenizer = tiny.make_tokenizer()
    full = encode(rows, task, tokenizer, config=config(), limit=64)
    assert full.lengths == [9]
    assert full.tokens[0]["token_type_ids"] == [0] * 6 + [1] * 3
    assert encode(rows, task, tokenizer, config=config(), limit=6).lengths == [6]
    assert encode(rows, task, tokenizer, config=config(), limit=64, labelled=False).labels is None


def test_padding_goes_where_the_tokenizer_puts_it() -> None:
    tokenizer = tiny.make_tokenizer()
    assert not encode([{"text": "w1"}], TEXT, tokenizer, config=config(), limit=9, labelled=False).left_padded
    tokenizer.padding_side = "left"
    assert encode([{"text": "w1"}], TEXT, tokenizer, config=config(), limit=9, labelled=False).left_padded


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "w1"}], "no column 'label'; it has: text"),
        ([{"words": "w1", "label": 0}], "no column 'text'"),
        ([{"text": "w1", "label": 7}], "label 7 .* is not a class of the model, which has 2"),
        ([{"text": "w1", "label": -1}], "is not a class"),
        ([{"text": "w1", "label": None}], "is not a class"),
        ([{"text": "w1", "label": 0.5}], "is not a class"),
        ([{"text": "w1", "label": [0, 1]}], r"label \[0, 1\] .* is not a class"),
        ([{"text": "w1", "label": float("nan")}], "label nan .* is not a class"),
        ([{"text": "w1", "label": float("inf")}], "label inf .* is not a class"),
        ([{"text": "w1", "label": "²"}], "label '²' .* is not one of the model's"),
        ([{"text": "w1", "label": "unknown"}], "'unknown' .* is not one of the model's: label_0, label_1"),
        ([{"text": None, "label": 0}], "row 1 .* has no text in column 'text'"),
    ],
)
def test_bad_rows_are_one_clear_error(rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        encode(rows, TEXT, tiny.make_tokenizer(), config=config(), limit=16)
    assert "\n" not in str(caught.value)


def test_classes_come_as_numbers_or_as_text() -> None:
    assert labels_of([0, 1, 1.0, True, "0", "LABEL_1", "label_0"], config()) == [0, 1, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("value", ["high", None, [1.0], float("nan"), float("inf")])
def test_targets_must_be_numbers(value: object) -> None:
    with pytest.raises(DataError, match="row 1 .*: label .* is not a number"):
        labels_of([value], config(1))


def test_targets_are_numbers_one_per_output() -> None:
    assert labels_of([2, "0.5", -1.0], config(1)) == [2.0, 0.5, -1.0]
    assert labels_of([[2, "0.5"], (0, 1.5)], config(2, problem_type="regression")) == [[2.0, 0.5], [0.0, 1.5]]
    for value in (0.5, [0.5], [1.0, 2.0, 3.0]):
        with pytest.raises(DataError, match="is not a list of 2 numbers"):
            labels_of([value], config(2, problem_type="regression"))


def test_labels_by_name_follow_the_model() -> None:
    """MNLI checkpoints disagree on the order of their classes: names decide where both sides have them."""
    rows = [{"premise": "w1", "hypothesis": "w2", "label": label} for label in (0, 1, 2)]
    made = config(3)
    made.id2label = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    made.label2id = {name: index for index, name in made.id2label.items()}
    tokenizer = tiny.make_tokenizer()
    assert encode(rows, GLUE["mnli"], tokenizer, config=made, limit=9).labels == [2, 1, 0]
    named = [{**row, "label": name} for row, name in zip(rows, ("entailment", "Neutral", "CONTRADICTION"), strict=True)]
    assert encode(named, GLUE["mnli"], tokenizer, config=made, limit=9).labels == [2, 1, 0]
    assert encode(rows, GLUE["mnli"], tokenizer, config=config(3), limit=9).labels == [0, 1, 2]


def named_config() -> Any:
    made = config(3, problem_type=MULTI_LABEL)
    made.id2label = {0: "Sport", 1: "News", 2: "Art"}
    made.label2id = {name: index for index, name in made.id2label.items()}
    return made


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0, 1, 1], [0.0, 1.0, 1.0]),
        ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        ([True, False, True], [1.0, 0.0, 1.0]),
        (["art", "Sport"], [1.0, 0.0, 1.0]),
        ([2], [0.0, 0.0, 1.0]),
        ([1, 2], [0.0, 1.0, 1.0]),
        (["1", "2"], [0.0, 1.0, 1.0]),
        ([2, 0, 1], [1.0, 1.0, 1.0]),
        ([], [0.0, 0.0, 0.0]),
    ],
)
def test_several_labels_come_as_zeros_and_ones_or_as_lists_of_classes(value: list[Any], expected: list[float]) -> None:
    assert labels_of([value], named_config()) == [expected]


def test_several_labels_by_index_follow_the_names_of_the_data() -> None:
    task = Task(name="t", text_column="text", label_names=("art", "news", "sport"))
    assert labels_of([[0], [2, 1]], named_config(), task) == [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1, "label 1 in column 'label' is not a list; the model gives each of its 3 classes a yes or no"),
        ("art", "label 'art' .* is not a list"),
        (None, "label None .* is not a list"),
        ([3], "label 3 .* is not a class of the model, which has 3"),
        ([0, 0, 0.5], "label 0.5 .* is not a class"),
        ([0, None, 1], "label None .* is not a class"),
        (["music"], "label 'music' .* is not one of the model's: sport, news, art"),
        ([[0]], r"label \[0\] .* is not a class"),
    ],
)
def test_bad_lists_of_labels_are_one_clear_error(value: object, message: str) -> None:
    with pytest.raises(DataError, match=f"row 2 .*: {message}") as caught:
        labels_of([[0], value], named_config())
    assert "\n" not in str(caught.value)


def test_several_labels_reach_the_batches_as_numbers() -> None:
    rows = [{"text": "w1", "label": [0, 1, 1]}, {"text": "w1 w2", "label": ["news"]}]
    encoded = encode(rows, TEXT, tiny.make_tokenizer(), config=named_config(), limit=9)
    labels = torch.cat([batch.labels for batch in tiny.make_batches(encoded, 4) if batch.labels is not None])
    assert labels.dtype == torch.float32
    assert sorted(labels.tolist()) == [[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]]


def test_rows_that_were_cut_are_counted() -> None:
    rows = [{"text": " ".join(["w1"] * count), "label": 0} for count in (3, 6, 7, 8, 20)]
    found = encode(rows, TEXT, tiny.make_tokenizer(), config=config(), limit=9)
    # with [CLS] and [SEP]: seven words just fit
    assert found.lengths == [5, 8, 9, 9, 9]
    assert found.truncated == 2
    # of a tokenizer that does not say, it is those that reach the limit
    assert cut_off(BatchEncoding({"input_ids": [[1] * length for length in found.lengths]}), 9) == 3
