"""Statistics on disk: the same cut as from memory, and damage is one clear error."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from command import run
from faster_pruner import Budget, CalibrationOptions, Data, Output, cut_again, load, prune
from faster_pruner.api import dense_scores, outcome
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.errors import DataError, OutputError
from faster_pruner.method.calibrated import Subject
from faster_pruner.method.kept import load_statistics
from faster_pruner.objectives.evaluation import predict_rows
from faster_pruner.objectives.registry import objective_of

pytestmark = pytest.mark.usefixtures("quick_latency")


ROWS = CalibrationOptions(rows=48)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def kept(checkpoint: Path, data: Path, tmp_path: Path) -> Path:
    """Statistics of the default preset."""
    output = Output(folder=tmp_path / "first", statistics=tmp_path / "kept")
    prune(checkpoint, Data(task="sst2", folder=data), macs=0.7, output=output, calibration=ROWS)
    return tmp_path / "kept"


@pytest.mark.parametrize("preset", ["default", "kwon2022", "li2024"])
@pytest.mark.parametrize("macs", [0.5, 0.2])
def test_a_later_cut_is_the_one_that_a_run_of_its_own_would_have_made(
    preset: str, macs: float, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    rows = Data(task="sst2", folder=data)
    prune(checkpoint, rows, macs=0.7, output=Output(statistics=tmp_path / "kept"), calibration=ROWS, method=preset)
    result = cut_again(tmp_path / "kept", macs=macs, output=tmp_path / "later")
    assert result.report.preset == preset
    assert result.report.before == {}
    assert "bit-equal" in result.report.verified
    prune(checkpoint, rows, macs=macs, output=tmp_path / "own", method=preset, calibration=ROWS)
    later, own = weights(tmp_path / "later"), weights(tmp_path / "own")
    assert later.keys() == own.keys()
    assert all(torch.equal(later[name], own[name]) for name in own)


def test_the_dense_model_is_not_evaluated_again(
    kept: Path, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its predictions are kept with the statistics; they are of use for the very rows alone."""
    asked: list[torch.nn.Module] = []
    original = outcome.predict_rows
    monkeypatch.setattr(outcome, "predict_rows", lambda model, *rest: (asked.append(model), original(model, *rest))[1])
    rows = Data(task="sst2", folder=data)
    again = cut_again(kept, macs=0.5, data=rows)
    assert [module is again.model for module in asked] == [True]
    asked.clear()
    own = prune(checkpoint, rows, macs=0.5, calibration=ROWS)
    assert [module is own.model for module in asked] == [False, True]
    assert again.report.before == own.report.before
    assert again.report.after == own.report.after
    assert again.report.confidence == own.report.confidence
    # other rows, or the same ones under other labels, are predicted
    asked.clear()
    few = cut_again(kept, macs=0.5, data=replace(rows, judged=10))
    assert [module is few.model for module in asked] == [False, True]
    assert few.report.before["validation"].rows == 10
    turned = [{**row, "label": 1 - row["label"]} for row in tiny.make_texts("sst2", 24, 1)]
    tiny.write_jsonl(tmp_path / "turned" / "validation.jsonl", turned)
    asked.clear()
    other = cut_again(kept, macs=0.5, data=Data(task="sst2", folder=tmp_path / "turned"))
    assert len(asked) == 2
    assert other.report.before["validation"].value == pytest.approx(100 - own.report.before["validation"].value)


def test_a_run_that_keeps_statistics_asks_the_dense_model_once(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.nn.Module] = []
    original = predict_rows

    def predict(model: torch.nn.Module, *rest: Any) -> Any:
        asked.append(model)
        return original(model, *rest)

    monkeypatch.setattr(outcome, "predict_rows", predict)
    monkeypatch.setattr(dense_scores, "predict_rows", predict)
    output = Output(statistics=tmp_path / "kept")
    result = prune(checkpoint, Data(task="sst2", folder=data), macs=0.7, output=output, calibration=ROWS)
    assert [module is result.model for module in asked] == [False, True]
    # without evaluation there is nothing to keep
    bare = Output(statistics=tmp_path / "bare")
    prune(checkpoint, Data(task="sst2", folder=data, judged=0), macs=0.7, output=bare, calibration=ROWS)
    assert not (tmp_path / "bare" / "scores.safetensors").exists()
    assert (tmp_path / "kept" / "scores.safetensors").exists()


def test_which_rows_were_differentiated_is_kept(kept: Path, checkpoint: Path) -> None:
    """The second round of a strong budget takes its statistics from those rows alone."""
    opened = open_checkpoint(str(checkpoint), device=torch.device("cpu"))
    calibrated = load_statistics(kept, Subject(opened.model, opened.known, objective_of(opened.model))).calibrated
    flags = [batch.differentiated for batch in calibrated.data.batches]
    assert True in flags
    assert False in flags
    rows = sum(batch.rows.numel() for batch in calibrated.data.batches if batch.differentiated)
    assert calibrated.statistics["layers.0.ffn"].rows == rows < 48
    assert calibrated.statistics["layers.1.ffn"].rows == 48


def test_cut_from_the_command_line(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    common = ("prune", checkpoint, "--task", "sst2", "--data", data, "--macs", "0.7", "--output", tmp_path / "first")
    code, _, _ = run(*common, "--keep-statistics", tmp_path / "kept", "--calibration-rows", "48")
    assert code == 0
    code, text, _ = run("cut", tmp_path / "kept", "--macs", "0.5", "-o", tmp_path / "bare", "--memory-limit", "0")
    assert code == 0
    assert "encoder MACs" in text
    assert "accuracy" not in text
    code, text, _ = run(
        "cut", tmp_path / "kept", "--macs", "0.6", "-o", tmp_path / "b", "--task", "sst2", "--data", data
    )
    assert code == 0
    assert "accuracy" in text
    card = (tmp_path / "bare" / "README.md").read_text()
    assert "50% of the encoder" in card
    load(tmp_path / "bare")


def test_statistics_of_other_weights_are_refused(kept: Path, tmp_path: Path) -> None:
    tiny.make_model(seed=5).save_pretrained(tmp_path / "other")
    tiny.make_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(DataError, match="of other weights"):
        cut_again(kept, macs=0.5, model=tmp_path / "other")


def test_damaged_statistics_are_one_clear_error(kept: Path, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(kept, folder)
        return folder

    with pytest.raises(DataError, match="no readable statistics.json") as refused:
        cut_again(tmp_path / "nowhere", macs=0.5)
    assert refused.value.option == "keep_statistics"
    folder = damaged("cut short")
    (folder / "layers.0.ffn.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="are damaged"):
        cut_again(folder, macs=0.5)
    folder = damaged("missing")
    (folder / "batches.safetensors").unlink()
    with pytest.raises(DataError, match="are damaged"):
        cut_again(folder, macs=0.5)
    folder = damaged("swapped")
    (folder / "layers.0.ffn.safetensors").replace(folder / "layers.1.ffn.safetensors")
    with pytest.raises(DataError, match=r"layers\.0\.ffn|layers\.1\.ffn"):
        cut_again(folder, macs=0.5)
    for key, value in (("format", 99), ("method", {"name": "../x"}), ("batches", 10**9), ("precision", 7)):
        folder = damaged(f"{key}")
        index = json.loads((folder / "statistics.json").read_text())
        (folder / "statistics.json").write_text(json.dumps({**index, key: value}))
        with pytest.raises(DataError):
            cut_again(folder, macs=Budget(macs=0.5))


def test_statistics_are_not_written_over(kept: Path, checkpoint: Path, data: Path) -> None:
    with pytest.raises(OutputError, match="not empty"):
        prune(checkpoint, Data(task="sst2", folder=data), macs=0.5, output=Output(statistics=kept), calibration=ROWS)


def test_statistics_of_an_earlier_version_say_why_they_do_not_open(kept: Path) -> None:
    index = json.loads((kept / "statistics.json").read_text())
    (kept / "statistics.json").write_text(json.dumps({**index, "format": 2}))
    with pytest.raises(DataError, match="of format 2, which an earlier faster-pruner wrote"):
        cut_again(kept, macs=0.5)
