"""Distillation through the public interface: which rows, what is reported, and what is left of an interruption."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import tiny
from command import run
from faster_pruner import CalibrationOptions, Columns, Data, Distillation, Output, cut_again, prune, prune_model
from faster_pruner.api.rows import calibration_rows, unlabelled_rows
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.glue import GLUE
from faster_pruner.errors import DataError, OptionError
from faster_pruner.method import distillation
from faster_pruner.method.lesson import Unlabelled, rows_in
from faster_pruner.report import print_summary

pytestmark = pytest.mark.usefixtures("quick_latency")
SMALL = CalibrationOptions(rows=16)
HOW = Distillation(rows=64, epochs=3, learning_rate=1e-3, rows_per_step=8, held_out=24)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More rows than are calibrated on."""
    return tiny.save_rows(tmp_path_factory.mktemp("many"), "sst2", train=160)


def drawn(
    checkpoint: Path, data: Data, rows: int, how: Distillation = HOW, seed: int = 0
) -> tuple[EncodedRows, Unlabelled]:
    """Calibration rows, and those to distil on."""
    opened = open_checkpoint(str(checkpoint), device=torch.device("cpu"))
    task, options = GLUE["sst2"], CalibrationOptions(rows=rows, seed=seed)
    source = data.source(task)
    return (
        calibration_rows(source, task, opened, options, labelled=False),
        unlabelled_rows(source, task, opened, options, how),
    )


def texts(rows: Any) -> list[tuple[int, ...]]:
    return [tuple(row["input_ids"]) for row in rows.tokens]


def test_the_rows_that_judge_are_trained_on_by_nobody(checkpoint: Path, many: Path) -> None:
    calibration, found = drawn(checkpoint, Data(task="sst2", folder=many), 32)
    judges, trained = set(texts(found.held_out)), texts(found.rows)
    assert len(texts(found.held_out)) == 24
    assert len(trained) == 64
    assert not judges & set(trained)
    assert not judges & set(texts(calibration))
    # fresh rows first: there are enough
    assert not set(trained) & set(texts(calibration))
    assert found.rows.labels is None  # pyright: ignore


def test_where_there_are_few_rows_those_of_the_calibration_are_trained_on_too(checkpoint: Path, many: Path) -> None:
    calibration, found = drawn(checkpoint, Data(task="sst2", folder=many), 150)
    judges, trained = texts(found.held_out), texts(found.rows)
    # all rows are there; the last ones judge, though they were calibrated on
    assert len(judges) == 24
    assert set(trained) <= set(texts(calibration))
    assert not set(judges) & set(trained)
    _, everything = drawn(checkpoint, Data(task="sst2", folder=many), 150, Distillation(rows=10_000))
    assert (rows_in(everything.rows), rows_in(everything.held_out)) == (120, 40)


def test_a_file_of_rows_without_labels_takes_the_place_of_training_rows(
    checkpoint: Path, many: Path, tmp_path: Path
) -> None:
    lines = [{"sentence": f"w{i} w{i + 1} w{i + 2}"} for i in range(50)]
    tiny.write_jsonl(tmp_path / "more.jsonl", lines)
    data = Data(task="sst2", folder=many, unlabelled=tmp_path / "more.jsonl")
    calibration, found = drawn(checkpoint, data, 32, Distillation(rows=40, held_out=24))
    same, without = drawn(checkpoint, Data(task="sst2", folder=many), 32)
    assert texts(calibration) == texts(same)
    assert texts(found.held_out) == texts(without.held_out)
    assert len(set(texts(found.rows))) == 40
    assert all(len(row) == 5 for row in texts(found.rows))


def test_the_report_says_what_it_gained_and_cost(checkpoint: Path, many: Path, tmp_path: Path) -> None:
    data, out = Data(task="sst2", folder=many), tmp_path / "out"
    report = prune(checkpoint, data, macs=0.5, calibration=SMALL, output=out, distillation=HOW).report
    found = report.distillation
    assert found is not None
    assert found.kept
    assert found.after < found.before
    assert (found.rows, found.held_out, found.steps) == (64, 24, 24)
    # 88 rows of the dense model; of the small one 192 to train on, 9 times 24 that judge; over 16 rows there and back
    assert found.fb == pytest.approx((88 + (3 * 192 + 9 * 24) * report.macs_kept) / 32, rel=1e-6)
    alone = prune(checkpoint, data, macs=0.5, calibration=SMALL).report
    assert alone.distillation is None
    assert found.recovered == alone.after
    assert report.after != alone.after
    assert report.sublayers == alone.sublayers
    assert "bit-equal" in report.verified
    told = json.loads((out / "result.json").read_text())
    assert told["distillation"]["after"] == found.after
    assert told["options"]["distillation"]["rows"] == 64
    card = (out / "README.md").read_text()
    assert "trained towards the dense model on 64 rows without labels" in card
    assert "No retraining" not in card
    assert not list(tmp_path.glob(".*"))


def test_what_gains_nothing_leaves_the_recovered_model(checkpoint: Path, many: Path, tmp_path: Path) -> None:
    data, nothing = Data(task="sst2", folder=many), Distillation(rows=32, learning_rate=0.0)
    report = prune(checkpoint, data, macs=0.5, calibration=SMALL, output=tmp_path / "a", distillation=nothing).report
    prune(checkpoint, data, macs=0.5, calibration=SMALL, output=tmp_path / "b")
    assert report.distillation is not None
    assert not report.distillation.kept
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "No retraining" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype: torch.dtype, many: Path, tmp_path: Path) -> None:
    dense = tiny.save_checkpoint(tmp_path / "dense", dtype=dtype)
    report = prune(
        dense, Data(task="sst2", folder=many), macs=0.5, calibration=SMALL, output=tmp_path / "out", distillation=HOW
    ).report
    assert "bit-equal" in report.verified
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}


def test_an_interrupted_run_goes_on(
    checkpoint: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(task="sst2", folder=many)
    prune(checkpoint, data, macs=0.5, calibration=SMALL, output=tmp_path / "whole", distillation=HOW)
    original, looks = distillation._look, list[int]()

    def interrupted(course: Any, *args: Any, **kwargs: Any) -> None:
        looks.append(course.step)
        if len(looks) == 5:
            raise KeyboardInterrupt
        original(course, *args, **kwargs)

    monkeypatch.setattr(distillation, "_look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(checkpoint, data, macs=0.5, calibration=SMALL, output=tmp_path / "out", distillation=HOW)
    assert not (tmp_path / "out").exists()
    assert [file.name for file in tmp_path.glob(".*")] == [".out.distillation.safetensors"]
    report = prune(checkpoint, data, macs=0.5, calibration=SMALL, output=tmp_path / "out", distillation=HOW).report
    # the fifth look was not kept: it is the first one of this run
    assert looks[5:] == [*looks[4:5], 18, 21, 24]
    assert report.distillation is not None
    assert report.distillation.steps == 24
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list(tmp_path.glob(".*"))


def test_the_same_command_with_other_rows_does_not_go_on(
    checkpoint: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(task="sst2", folder=many)

    def fails(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("faster_pruner.api.outcome.round_weights", fails)
        with pytest.raises(KeyboardInterrupt):
            prune(checkpoint, data, macs=0.5, calibration=SMALL, output=tmp_path / "out", distillation=HOW)
    seen = list[int]()
    original = distillation._look
    monkeypatch.setattr(
        distillation, "_look", lambda course, *a, **k: (seen.append(course.step), original(course, *a, **k))[1]
    )
    other = CalibrationOptions(rows=16, seed=1)
    prune(checkpoint, data, macs=0.5, calibration=other, output=tmp_path / "out", distillation=HOW)
    assert seen[0] == 3


def test_a_failure_of_the_training_costs_no_more_than_itself(
    checkpoint: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(task="sst2", folder=many)
    original = distillation._look

    def fails(course: Any, *args: Any, **kwargs: Any) -> None:
        original(course, *args, **kwargs)
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(distillation, "_look", fails)
    report = prune(checkpoint, data, macs=0.5, calibration=SMALL, output=tmp_path / "a", distillation=HOW).report
    assert report.distillation is None
    assert any("the distillation failed" in said and "out of memory" in said for said in report.warnings)
    prune(checkpoint, data, macs=0.5, calibration=SMALL, output=tmp_path / "b")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_cut_from_kept_statistics_is_distilled_on_rows_of_the_data(
    checkpoint: Path, many: Path, tmp_path: Path
) -> None:
    data = Data(task="sst2", folder=many)
    prune(checkpoint, data, macs=0.7, calibration=SMALL, output=Output(statistics=tmp_path / "kept"))
    with pytest.raises(OptionError, match="needs rows to train on"):
        cut_again(tmp_path / "kept", macs=0.5, distillation=HOW)
    later = cut_again(tmp_path / "kept", macs=0.5, data=data, output=tmp_path / "later", distillation=HOW).report
    own = prune(checkpoint, data, macs=0.5, calibration=SMALL, output=tmp_path / "own", distillation=HOW).report
    assert later.distillation == own.distillation
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("later", "own"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_in_memory_is_distilled_on_batches() -> None:
    def batches(count: int, seed: int) -> list[Mapping[str, torch.Tensor]]:
        return [dict(batch.inputs) for batch in tiny.make_batches(tiny.make_rows(count, seed=seed))]

    model, given, more = tiny.make_model(), batches(48, 0), batches(160, 1)
    alone = prune_model(model, given, macs=0.5)
    report = prune_model(model, given, macs=0.5, distillation=HOW, unlabelled=more).report
    assert report.distillation is not None
    assert (report.distillation.rows, report.distillation.held_out) == (62, 20)
    assert report.sublayers == alone.report.sublayers
    own = prune_model(model, given, macs=0.5, distillation=HOW).report.distillation
    assert own is not None
    assert own.rows + own.held_out <= 48
    with pytest.raises(DataError, match="a single batch"):
        prune_model(model, given, macs=0.5, distillation=HOW, unlabelled=more[:1])
    with pytest.raises(OptionError, match="nothing is distilled"):
        prune_model(model, given, macs=0.5, unlabelled=more)


def test_from_the_command_line(checkpoint: Path, many: Path, tmp_path: Path) -> None:
    common = ("prune", checkpoint, "--task", "sst2", "--data", many, "--macs", "0.5", "--calibration-rows", "16")
    code, shown, _ = run(*common, "-o", tmp_path / "out", "--distill", "64")
    assert code == 0
    assert "distillation: " in shown
    assert "64 rows, 4 steps" in " ".join(shown.split())
    code, _, said = run(*common, "-o", tmp_path / "other", "--distill", "soon")
    assert code == 2
    assert "a number of rows, like 16384, or a time" in said
    assert "--distill" in said
    code, _, said = run(*common, "-o", tmp_path / "other", "--unlabelled", many / "sst2" / "train.jsonl")
    assert code == 2
    assert "give --distill, too" in said
    code, _, said = run(*common, "-o", tmp_path / "other", "--distill", "64", "--unlabelled", tmp_path / "none.jsonl")
    assert code == 2
    assert "none.jsonl" in said
    tiny.write_jsonl(tmp_path / "wrong.jsonl", [{"words": "w1 w2"}] * 9)
    code, _, said = run(*common, "-o", tmp_path / "other", "--distill", "64", "--unlabelled", tmp_path / "wrong.jsonl")
    assert code == 2
    assert "sentence" in said
    assert not (tmp_path / "other").exists()


def test_a_time_from_the_command_line(checkpoint: Path, many: Path, tmp_path: Path) -> None:
    common = ("prune", checkpoint, "--task", "sst2", "--data", many, "--macs", "0.5", "--calibration-rows", "16")
    code, _, _ = run(*common, "-o", tmp_path / "out", "--distill", "1min")
    assert code == 0
    told = json.loads((tmp_path / "out" / "result.json").read_text())
    assert told["options"]["distillation"]["seconds"] == 60.0
    # all that there are
    assert told["distillation"]["rows"] == 120


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16384", (16384, None)),
        ("90s", (None, 90.0)),
        ("5min", (None, 300.0)),
        ("1.5 h", (None, 5400.0)),
        ("2m", (None, 120.0)),
    ],
)
def test_rows_and_times_are_told_apart(text: str, expected: tuple[int | None, float | None]) -> None:
    found = Distillation.parse(text)
    assert (found.rows, found.seconds) == expected


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "five", "5 weeks", "0s", "1e9", "nan", "16384 rows", "5min 3s"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(OptionError):
        Distillation.parse(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"rows": 5, "seconds": 5.0},
        {"rows": 0},
        {"rows": 5, "epochs": 0},
        {"rows": 5, "learning_rate": -1.0},
        {"rows": True},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Distillation(**wrong)


def test_too_few_rows_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    data = tiny.save_rows(tmp_path, "sst2", train=9)
    found = prune(checkpoint, Data(task="sst2", folder=data), macs=0.5, calibration=SMALL, distillation=8).report
    assert found.distillation is not None
    assert found.distillation.held_out == 2


def test_an_embedding_model_and_one_for_tokens_are_distilled(tmp_path: Path) -> None:
    train, judged = (
        [{"text": row["sentence"]} for row in tiny.make_texts("sst2", n, seed)] for n, seed in ((120, 0), (24, 1))
    )
    tiny.save_task(tmp_path, tiny.make_model().base_model, train, judged)
    data = Data(task="embedding", folder=tmp_path / "data", pooling="mean", columns=Columns(text="text"))
    report = prune(tmp_path / "model", data, macs=0.5, calibration=SMALL, distillation=HOW).report
    assert report.distillation is not None
    assert report.distillation.kept
    # what compares with the dense model is told of the recovered one, too
    alone = prune(tmp_path / "model", data, macs=0.5, calibration=SMALL).report
    assert report.distillation.recovered == alone.after
    console = Console(width=80, file=io.StringIO())
    print_summary(report, console)
    assert "neighbours, not distilled" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    rows = [{"tokens": row["tokens"]} for row in tiny.make_tagged(120, 0)]
    tiny.save_task(tmp_path / "b", tiny.make_tagger(), rows, tiny.make_tagged(24, 1))
    report = prune(
        tmp_path / "b" / "model", Data(folder=tmp_path / "b" / "data"), macs=0.5, calibration=SMALL, distillation=HOW
    ).report
    assert report.distillation is not None
    assert report.distillation.kept
