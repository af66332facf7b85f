"""Tasks, metrics and data files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from faster_pruner.data import Source, load_split, sample
from faster_pruner.errors import DataError, OptionError
from faster_pruner.tasks import GLUE, Task, compute_metrics, encode, find_task
from faster_pruner.tasks.metrics import expected_calibration_error

ROWS = [{"text": "w1 w2 w3", "label": i % 2} for i in range(6)]


def config(labels: int = 2, **changes: object) -> object:
    return tiny.make_model(labels=labels, **changes).config


def test_glue_is_complete() -> None:
    assert set(GLUE) == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"}
    assert GLUE["cola"].primary == "matthews"
    assert GLUE["stsb"].primary == "pearson"
    assert [name for name, _ in GLUE["mnli"].evaluation] == ["validation_matched", "validation_mismatched"]


def test_metrics_on_known_answers() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0], [3.0, 0.0]])
    labels = np.array([0, 1, 0, 0])
    found = compute_metrics(("accuracy", "f1", "matthews", "loss"), logits, labels)
    assert found["accuracy"] == pytest.approx(75.0)
    assert found["f1"] == pytest.approx(100 * 2 / 3)
    assert found["matthews"] == pytest.approx(100 / np.sqrt(3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert found["loss"] == pytest.approx(-np.log(p[np.arange(4), labels]).mean())
    regression = compute_metrics(
        ("pearson", "spearman", "squared_error"), np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 3.0])
    )
    assert regression["spearman"] == pytest.approx(100.0)
    assert regression["squared_error"] == pytest.approx(1 / 3)
    assert compute_metrics(("pearson",), np.ones((3, 1)), np.arange(3.0)) == {"pearson": 0.0}


def test_calibration_error_of_a_calibrated_and_an_overconfident_model() -> None:
    sure = np.tile([[0.0, 20.0]], (10, 1))
    assert expected_calibration_error(sure, np.ones(10)) == pytest.approx(0.0, abs=1e-6)
    assert expected_calibration_error(sure, np.array([1] * 7 + [0] * 3)) == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("subfolder", ["", "sst2"])
def test_local_files_of_every_kind(tmp_path: Path, suffix: str, subfolder: str) -> None:
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    file = folder / f"train.{suffix}"
    if suffix == "parquet":
        import datasets

        datasets.Dataset.from_list(ROWS).to_parquet(str(file))
    else:
        lines = (
            "".join(json.dumps(r) + "\n" for r in ROWS)
            if "json" in suffix
            else "text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in ROWS)
        )
        file.write_bytes(gzip.compress(lines.encode()) if suffix.endswith("gz") else lines.encode())
    assert load_split(Source(folder=tmp_path, subfolder="sst2"), ("train",)) == ROWS


def test_bad_data_files_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_split(Source(folder=tmp_path / "none"), ("train",))
    with pytest.raises(DataError, match="no file for the split 'train'"):
        load_split(Source(folder=tmp_path), ("train",))
    (tmp_path / "train.jsonl").write_text('{"a": 1\nnot json')
    with pytest.raises(DataError, match="cannot be read as json"):
        load_split(Source(folder=tmp_path), ("train",))


@pytest.mark.parametrize(("name", "text"), [("train.jsonl", ""), ("train.csv", "text,label\n"), ("train.csv", "")])
def test_an_empty_file_is_one_clear_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="is empty|cannot be read"):
        load_split(Source(folder=tmp_path), ("train",))


def test_without_a_folder_and_without_a_network_the_hub_error_says_what_to_do() -> None:
    with pytest.raises(DataError, match="--data"):
        load_split(Source(hub="nyu-mll/glue", hub_config="sst2"), ("train",))


def test_sample_is_seeded_and_without_replacement() -> None:
    rows = [{"i": i} for i in range(50)]
    a = sample(rows, 20, 0)
    assert a == sample(rows, 20, 0)
    assert a != sample(rows, 20, 1)
    assert len({row["i"] for row in a}) == 20
    assert len(sample(rows, 500, 0)) == 50


def test_find_task() -> None:
    assert find_task("sst2", GLUE) is GLUE["sst2"]
    assert find_task("mrpc", GLUE, label_column="gold").label_column == "gold"
    assert find_task(None, GLUE, text_column="body").name == "text-classification"
    assert find_task("mrpc", GLUE, text_column="body").pair_column is None
    with pytest.raises(OptionError, match="known are cola"):
        find_task("squad", GLUE)
    with pytest.raises(OptionError, match="--text-column"):
        find_task(None, GLUE)


def test_encode_pairs_and_truncates() -> None:
    task = Task(name="t", text_column="text", pair_column="other")
    rows = [{"text": "w1 w2 w3 w4", "other": "w5 w6", "label": 1}]
    full = encode(rows, task, tiny.make_tokenizer(), config=config(), max_length=64)
    assert full.lengths == [9]
    assert "token_type_ids" in full.tokens[0]
    assert encode(rows, task, tiny.make_tokenizer(), config=config(), max_length=6).lengths == [6]
    assert encode(rows, task, tiny.make_tokenizer(), config=config(), max_length=64, labelled=False).labels is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "w1"}], "no column 'label'; it has: text"),
        ([{"words": "w1", "label": 0}], "no column 'text'"),
        ([{"text": "w1", "label": 7}], "label 7 .* is not a class of the model, which has 2"),
        ([{"text": "w1", "label": -1}], "is not a class"),
        ([{"text": "w1", "label": None}], "is not a class"),
        ([{"text": "w1", "label": "unknown"}], "'unknown' .* is not one of the model's: label_0, label_1"),
        ([{"text": None, "label": 0}], "row 0 has no text in column 'text'"),
    ],
)
def test_bad_rows_are_one_clear_error(rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(rows, Task(name="t", text_column="text"), tiny.make_tokenizer(), config=config(), max_length=16)


def test_regression_labels_must_be_numbers() -> None:
    with pytest.raises(DataError, match="is not a number"):
        encode(
            [{"text": "w1", "label": "high"}],
            Task(name="t", text_column="text"),
            tiny.make_tokenizer(),
            config=config(1),
            max_length=9,
        )


def test_labels_by_name_follow_the_model() -> None:
    """MNLI checkpoints disagree on the order of their classes: names decide where both sides have them."""
    swapped = {
        "id2label": {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"},
        "label2id": {"CONTRADICTION": 0, "NEUTRAL": 1, "ENTAILMENT": 2},
    }
    rows = [{"premise": "w1", "hypothesis": "w2", "label": label} for label in (0, 1, 2)]
    made = tiny.make_model(labels=3).config
    made.id2label, made.label2id = swapped["id2label"], swapped["label2id"]
    assert encode(rows, GLUE["mnli"], tiny.make_tokenizer(), config=made, max_length=9).labels == [2, 1, 0]
    named = [{**row, "label": name} for row, name in zip(rows, ("entailment", "Neutral", "CONTRADICTION"), strict=True)]
    assert encode(named, GLUE["mnli"], tiny.make_tokenizer(), config=made, max_length=9).labels == [2, 1, 0]
    plain = tiny.make_model(labels=3).config
    assert encode(rows, GLUE["mnli"], tiny.make_tokenizer(), config=plain, max_length=9).labels == [0, 1, 2]
