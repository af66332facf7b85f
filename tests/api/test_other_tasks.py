"""Token classification and question answering through the public interface, on rows that the tests make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

import tiny
from command import run
from faster_pruner import (
    CalibrationOptions,
    Columns,
    Data,
    Output,
    cut_again,
    evaluate,
    load,
    prune,
    prune_model,
)
from faster_pruner.api.export import export
from faster_pruner.errors import DataError, OptionError

SMALL = CalibrationOptions(rows=32)
pytestmark = pytest.mark.usefixtures("quick_latency")


@pytest.fixture(scope="module")
def tagging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token classifier, and rows whose training part has no labels."""
    folder = tmp_path_factory.mktemp("tagging")
    train = [{"tokens": row["tokens"]} for row in tiny.make_tagged(40, 0)]
    tiny.save_task(folder, tiny.make_tagger(), train, tiny.make_tagged(24, 1))
    return folder


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers questions, and rows whose training part has no answers."""
    folder = tmp_path_factory.mktemp("answering")
    model = tiny.make_model(auto=AutoModelForQuestionAnswering)
    train = [{key: row[key] for key in ("question", "context")} for row in tiny.make_questions(40, 0)]
    tiny.save_task(folder, model, train, tiny.make_questions(24, 1, unanswerable=True))
    return folder


@pytest.mark.parametrize("task", [None, "token-classification"])
def test_a_token_classifier_is_pruned_without_labels(task: str | None, tagging: Path, tmp_path: Path) -> None:
    data, out = Data(task=task, folder=tagging / "data"), tmp_path / "out"
    result = prune(tagging / "model", data, macs=0.5, output=out, calibration=SMALL)
    report = result.report
    assert 0.3 < report.macs_kept <= 0.5
    assert report.task == "token-classification"
    assert list(report.after["validation"].metrics) == ["f1", "precision", "recall", "accuracy", "loss"]
    assert report.confidence["validation"].metric == "f1"
    assert not any("could not" in said for said in report.warnings)
    assert "bit-equal" in report.verified
    assert evaluate(out, data) == report.after
    dense = evaluate(tagging / "model", data)["validation"]
    assert dense == report.before["validation"]
    assert dense.rows == 24
    assert type(load(out)).__name__ == "BertForTokenClassification"
    opened = AutoModelForTokenClassification.from_pretrained(tagging / "model")
    assert opened.config.id2label == dict(enumerate(tiny.ENTITY_CLASSES))
    assert "AutoModelForTokenClassification" in (out / "README.md").read_text()


def test_words_that_are_cut_off_are_said_to_be(tagging: Path) -> None:
    options = CalibrationOptions(rows=32, max_length=7)
    report = prune(tagging / "model", Data(folder=tagging / "data"), macs=0.5, calibration=options).report
    words = [len(tiny.make_tokenizer()(" ".join(row["tokens"]))["input_ids"]) for row in tiny.make_tagged(24, 1)]
    longer = sum(count > 7 for count in words)
    assert 0 < longer < 24
    assert any(f"{longer} of 24 validation rows are longer than a row may be" in said for said in report.warnings)


@pytest.mark.parametrize("preset", ["default", "kwon2022"])
def test_labels_are_used_where_the_method_wants_them(
    preset: str, tagging: Path, answering: Path, tmp_path: Path
) -> None:
    for folder, rows in ((tagging, tiny.make_tagged(40, 0)), (answering, tiny.make_questions(40, 0))):
        tiny.write_jsonl(tmp_path / folder.name / "train.jsonl", rows)
        tiny.write_jsonl(tmp_path / folder.name / "validation.jsonl", rows[:12])
        data = Data(folder=tmp_path / folder.name)
        assert prune(folder / "model", data, macs=0.6, method=preset, calibration=SMALL).report.macs_kept <= 0.6
        if preset == "kwon2022":
            with pytest.raises(DataError, match="no column '(ner_tags|answers)'"):
                prune(folder / "model", Data(folder=folder / "data"), macs=0.6, method=preset, calibration=SMALL)


@pytest.mark.parametrize("task", [None, "question-answering"])
def test_a_model_that_answers_questions_is_pruned_without_answers(
    task: str | None, answering: Path, tmp_path: Path
) -> None:
    data, out = Data(task=task, folder=answering / "data"), tmp_path / "out"
    options = CalibrationOptions(rows=32, max_length=20)
    result = prune(answering / "model", data, macs=0.5, output=out, calibration=options)
    report = result.report
    assert 0.3 < report.macs_kept <= 0.5
    assert list(report.after["validation"].metrics) == ["f1", "exact_match"]
    # several windows each, but so many questions
    assert report.after["validation"].rows == 24
    low, high = report.confidence["validation"].before
    assert low <= report.before["validation"].value <= high
    assert evaluate(out, data, max_length=20) == report.after
    assert type(result.model).__name__ == "BertForQuestionAnswering"
    assert "AutoModelForQuestionAnswering" in (out / "README.md").read_text()


def test_other_columns_than_the_usual_ones(tagging: Path, answering: Path, tmp_path: Path) -> None:
    renamed = [{"words": row["tokens"], "gold": row["ner_tags"]} for row in tiny.make_tagged(24, 1)]
    tiny.write_jsonl(tmp_path / "tags" / "validation.jsonl", renamed)
    columns = Columns(text="words", label="gold")
    found = evaluate(tagging / "model", Data(folder=tmp_path / "tags", columns=columns))
    assert found == evaluate(tagging / "model", Data(folder=tagging / "data"))
    asked = [
        {"q": row["question"], "text": row["context"], "a": row["answers"]}
        for row in tiny.make_questions(24, 1, unanswerable=True)
    ]
    tiny.write_jsonl(tmp_path / "questions" / "validation.jsonl", asked)
    columns = Columns(text="q", text_pair="text", label="a")
    found = evaluate(answering / "model", Data(folder=tmp_path / "questions", columns=columns))
    assert found == evaluate(answering / "model", Data(folder=answering / "data"))


@pytest.mark.parametrize("kind", ["tagging", "answering"])
def test_other_budgets_are_cut_from_kept_statistics(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(kind)
    data, kept = Data(folder=folder / "data"), tmp_path / "statistics"
    output = Output(folder=tmp_path / "out", statistics=kept)
    first = prune(folder / "model", data, macs=0.5, output=output, calibration=SMALL)
    again = cut_again(kept, macs=0.5, data=data)
    assert again.report.after == first.report.after
    expected = first.model.state_dict()
    for name, tensor in again.model.state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name


def test_from_the_command_line(tagging: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("--task", "token-classification", "--data", tagging / "data")
    code, text, _ = run("prune", tagging / "model", *common, "--macs", "0.5", "--output", out)
    assert code == 0
    assert "f1" in text
    code, text, _ = run("evaluate", out, *common)
    assert code == 0
    assert "recall" in text
    assert json.loads((out / "result.json").read_text())["task"] == "token-classification"
    code, _, errors = run("evaluate", out, "--task", "question-answering", "--data", tagging / "data")
    assert code == 2
    assert "made for token-classification" in errors
    assert "Traceback" not in errors


def test_what_does_not_fit_is_one_clear_error(tagging: Path, answering: Path, checkpoint: Path) -> None:
    cases: list[tuple[Path, Data, Any, str]] = [
        (tagging / "model", Data(task="sst2", folder=tagging / "data"), OptionError, "made for token-classification"),
        (checkpoint, Data(task="token-classification", folder=tagging / "data"), OptionError, "text-classification"),
        (checkpoint, Data(folder=tagging / "data"), DataError, "no column 'text'; it has: id, tokens, ner_tags"),
        (tagging / "model", Data(folder=answering / "data"), DataError, "no column 'tokens'"),
    ]
    for model, data, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            evaluate(model, data)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "problem", "made", "primary"),
    [
        (3, "multi_label_classification", lambda i: [int(i % 2 == 0), int(i % 3 == 0), 0], "micro_f1"),
        (3, "multi_label_classification", lambda i: ["LABEL_1", "label_2"][: i % 3], "micro_f1"),
        (1, None, lambda i: i / 7, "pearson"),
        (2, "regression", lambda i: [i / 7, -i], "pearson"),
        (3, None, lambda i: i % 3, "accuracy"),
    ],
)
def test_every_classification_head_takes_rows_by_their_columns(
    labels: int, problem: str | None, made: Any, primary: str, tmp_path: Path
) -> None:
    model = tiny.make_model(labels=labels, problem_type=problem)
    texts = [row["sentence"] for row in tiny.make_texts("sst2", 60, 0)]
    rows = [{"body": text, "gold": made(i)} for i, text in enumerate(texts)]
    tiny.save_task(tmp_path, model, rows[:40], rows[40:])
    data = Data(folder=tmp_path / "data", columns=Columns(text="body", label="gold"))
    report = prune(tmp_path / "model", data, macs=0.5, output=tmp_path / "out", calibration=SMALL).report
    assert report.task == "text-classification"
    assert report.after["validation"].primary == primary
    assert evaluate(tmp_path / "out", data) == report.after
    # the usual names of the columns need not be given
    plain = [{"text": row["body"], "label": row["gold"]} for row in rows[40:]]
    tiny.write_jsonl(tmp_path / "plain" / "validation.jsonl", plain)
    assert evaluate(tmp_path / "out", Data(folder=tmp_path / "plain")) == report.after


@pytest.mark.parametrize("kind", ["tagging", "answering"])
def test_models_in_memory_take_the_batches_of_transformers_collators(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    tokenizer = tiny.make_tokenizer()
    if kind == "tagging":
        model: Any = AutoModelForTokenClassification.from_pretrained(folder / "model")
        collate: Any = DataCollatorForTokenClassification(tokenizer)
        rows = [
            {"input_ids": own["input_ids"], "labels": [-100, *[i % 5 for i in own["input_ids"][1:-1]], -100]}
            for own in (tokenizer(" ".join(row["tokens"])) for row in tiny.make_tagged(16, 0))
        ]
    else:
        model, collate = (
            AutoModelForQuestionAnswering.from_pretrained(folder / "model"),
            DataCollatorWithPadding(tokenizer),
        )
        rows = [
            {**tokenizer(row["question"], row["context"]), "start_positions": 4 + i % 3, "end_positions": 6}
            for i, row in enumerate(tiny.make_questions(16, 0))
        ]
    batches = [collate(rows[i : i + 4]) for i in range(0, 16, 4)]
    for method in ("default", "kwon2022"):
        pruned = prune_model(model, batches, macs=0.6, method=method)
        assert pruned.report.macs_kept <= 0.6
        assert type(pruned.model) is type(model)


@pytest.mark.on_the_cpu
@pytest.mark.parametrize("kind", ["tagging", "answering"])
def test_onnx_gives_the_same_figures(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder: Path = request.getfixturevalue(kind)
    data = Data(folder=folder / "data")
    torch_step, onnx_step = export(folder / "model", output=tmp_path / "m.onnx", data=data)
    assert onnx_step.metrics == pytest.approx(torch_step.metrics, abs=1e-3)
    assert torch_step.metrics == evaluate(folder / "model", data)["validation"].metrics
