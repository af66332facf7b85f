"""What a task is, and how one is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from faster_pruner.data.glue import GLUE
from faster_pruner.data.tasks import Columns, Data, Task, as_data
from faster_pruner.errors import DataError, OptionError
from faster_pruner.objectives.classification import CLASSIFICATION, REGRESSION

KINDS = ("text-classification", "token-classification")


def describe(task: str | None = None, **columns: str) -> Task:
    return Data(task=task, columns=Columns(**columns)).describe(GLUE, KINDS)


def test_glue_is_complete() -> None:
    assert set(GLUE) == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"}
    assert {name: task.metrics[0] for name, task in GLUE.items()} == {
        **dict.fromkeys(GLUE, "accuracy"),
        "cola": "matthews",
        "stsb": "pearson",
    }
    assert [name for name, _ in GLUE["mnli"].evaluation] == ["validation_matched", "validation_mismatched"]
    for name, task in GLUE.items():
        objective = REGRESSION if name == "stsb" else CLASSIFICATION
        assert objective.judged_by(task.metrics).reported == task.metrics
        assert task.name == task.hub_config == name


def test_a_task_by_name() -> None:
    assert describe("sst2") is GLUE["sst2"]
    assert describe("mrpc", label="gold").label_column == "gold"
    assert describe("mrpc", label="gold").pair_column == "sentence2"


def test_other_columns_take_the_place_of_the_tasks_own() -> None:
    found = describe("mrpc", text="body")
    assert (found.text_column, found.pair_column) == ("body", None)
    assert describe("mrpc", text="body", text_pair="reply").pair_column == "reply"
    assert describe("sst2", text_pair="reply").pair_column == "reply"


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_columns_alone_describe_data(kind: str | None) -> None:
    found = describe(kind, text="body")
    assert (found.name, found.kind, found.text_column, found.metrics) == ("", kind or "", "body", ())
    # what is not said is left to the kind
    assert (found.pair_column, found.label_column) == (None, "")
    assert describe(kind, text="body", label="gold").label_column == "gold"


def test_a_folder_alone_leaves_everything_to_the_model() -> None:
    found = Data(folder="rows").describe(GLUE, KINDS)
    assert (found.name, found.kind, found.text_column, found.pair_column, found.label_column) == ("", "", "", None, "")


def test_what_is_not_known_is_one_clear_error() -> None:
    with pytest.raises(OptionError, match="known are cola, sst2") as caught:
        describe("squad")
    assert caught.value.option == "text_column"
    assert all(kind in str(caught.value) for kind in KINDS)
    with pytest.raises(OptionError, match=r"a task by name \(cola, .*\), or a local folder of rows and") as caught:
        describe()
    assert caught.value.option == "task"
    assert "--" not in str(caught.value)


def test_data_may_say_nothing() -> None:
    assert not Data().described
    assert not Data(columns=Columns(label="gold")).described
    assert Data(folder="rows").described
    assert Data(task="sst2").described
    assert Data(columns=Columns(text="body")).described


def test_a_folder_goes_before_the_hub() -> None:
    task = GLUE["sst2"]
    assert Data(folder="rows").source(task).folder == Path("rows")
    assert Data(folder="rows").source(task).subfolder == "sst2"
    assert Data().source(task).hub == "nyu-mll/glue"
    with pytest.raises(DataError, match="give a local folder") as caught:
        Data().source(describe(text="body"))
    assert caught.value.option == "data"


def test_a_name_is_as_good_as_data() -> None:
    assert as_data("sst2") == Data(task="sst2")
    data = Data(folder="rows")
    assert as_data(data) is data
