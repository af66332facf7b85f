"""The main job end to end, on generated rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tiny
from faster_pruner import Budget, CalibrationOptions, Columns, Data, Limit, Output, Run, evaluate, load, prune
from faster_pruner.data.glue import GLUE
from faster_pruner.errors import BudgetError, DataError, OptionError, OutputError
from faster_pruner.model.table import FAMILIES
from faster_pruner.options import PRESETS

SMALL = CalibrationOptions(rows=32)


def sst2(folder: Path) -> Data:
    """The rows of SST-2 in a folder."""
    return Data(task="sst2", folder=folder)


pytestmark = pytest.mark.usefixtures("quick_latency")


@pytest.mark.parametrize("task", sorted(GLUE))
def test_every_glue_task_runs_end_to_end(task: str, tmp_path: Path) -> None:
    described = GLUE[task]
    labels = len(described.label_names) or 1
    model = tiny.save_checkpoint(tmp_path / "model", labels=labels)
    data = tiny.save_rows(tmp_path / "data", task)
    if task == "mnli":
        tiny.write_jsonl(data / "mnli" / "validation_mismatched.jsonl", tiny.make_texts("mnli", 16, 2))
    result = prune(model, Data(task=task, folder=data), macs=0.5, output=tmp_path / "out", calibration=SMALL)
    splits = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    assert list(result.report.after) == splits
    assert result.report.after[splits[0]].primary == described.metrics[0]
    assert set(result.report.after[splits[0]].metrics) == set(described.metrics)
    again = evaluate(tmp_path / "out", Data(task=task, folder=data))
    assert again == result.report.after


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_family_and_preset_runs_end_to_end(family: str, preset: str, data: Path, tmp_path: Path) -> None:
    model = tiny.save_checkpoint(tmp_path / "model", family)
    out = tmp_path / "out"
    result = prune(model, sst2(data), macs=0.5, output=out, method=preset, calibration=SMALL)
    saved = json.loads((out / "result.json").read_text())
    assert saved["preset"] == preset
    assert "bit-equal" in saved["verified"]
    assert 0.3 < saved["macs_kept"] <= 0.5
    assert saved["pruned"]["bytes"] == (out / "model.safetensors").stat().st_size
    assert saved["pruned"]["parameters"] < saved["dense"]["parameters"]
    assert [(row["batch"], row["sequence"]) for row in saved["latency"]] == [
        (1, 32),
        (32, 64 if family != "roberta" else 63),
    ]
    assert {row["name"] for row in saved["sublayers"]} == {
        f"layers.{i}.{k}" for i in (0, 1) for k in ("attention", "ffn")
    }
    assert {"load", "statistics", "selection", "recovery", "evaluation", "latency", "save and verify"} <= set(
        saved["seconds"]
    )
    masks = json.loads((out / "masks.json").read_text())
    assert {s["name"]: (s["units"], s["units_before"]) for s in saved["sublayers"]} == {
        name: (bits.count("1"), len(bits)) for name, bits in masks.items()
    }
    inputs = {"input_ids": torch.tensor([[2, 9, 11, 3]])}
    assert torch.equal(load(out)(**inputs).logits, result.model.cpu()(**inputs).logits)


def test_same_inputs_and_seed_give_the_same_bytes(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prune(checkpoint, sst2(data), macs=0.5, output=tmp_path / name, calibration=SMALL)
    for file in ("model.safetensors", "config.json", "tokenizer.json", "modeling_faster_pruner.py", "masks.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    other = CalibrationOptions(rows=32, seed=1)
    prune(checkpoint, sst2(data), macs=0.5, output=tmp_path / "c", calibration=other)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (tmp_path / "c" / "model.safetensors").read_bytes()


def test_half_precision_is_kept_and_verified(data: Path, tmp_path: Path) -> None:
    model = tiny.save_checkpoint(tmp_path / "model", dtype=torch.float16)
    result = prune(model, sst2(data), macs=0.5, output=tmp_path / "out", calibration=SMALL)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert "bit-equal" in result.report.verified
    assert load(tmp_path / "out", dtype=torch.float16).dtype is torch.float16


def test_a_pruned_model_can_be_pruned_again(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    prune(checkpoint, sst2(data), macs=0.7, output=tmp_path / "once", calibration=SMALL)
    twice = prune(tmp_path / "once", sst2(data), macs=0.7, output=tmp_path / "twice", calibration=SMALL)
    assert twice.report.macs_kept <= 0.7
    assert "bit-equal" in twice.report.verified
    once = json.loads((tmp_path / "once" / "result.json").read_text())
    assert twice.report.dense.macs == pytest.approx(once["pruned"]["macs"], rel=1e-6)
    assert load(tmp_path / "twice").num_parameters() < load(tmp_path / "once").num_parameters()


def test_any_text_classification_by_columns(checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"body": "w1 w2 w3", "gold": "LABEL_1"}, {"body": "w5 w6", "gold": "LABEL_0"}] * 12
    for split in ("train", "validation"):
        tiny.write_jsonl(tmp_path / "data" / f"{split}.jsonl", rows)
    rows_at = Data(folder=tmp_path / "data", columns=Columns(text="body", label="gold"))
    result = prune(checkpoint, rows_at, macs=0.5, calibration=SMALL)
    assert result.report.task == "text-classification"
    assert result.report.verified == ""


def test_label_free_calibration_needs_no_label_in_the_train_split(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    rows = [{"sentence": row["sentence"]} for row in tiny.make_texts("sst2", 40, 0)]
    tiny.write_jsonl(tmp_path / "sst2" / "train.jsonl", rows)
    tiny.write_jsonl(tmp_path / "sst2" / "validation.jsonl", tiny.make_texts("sst2", 20, 1))
    assert prune(checkpoint, sst2(tmp_path), macs=0.5).report.macs_kept <= 0.5
    with pytest.raises(DataError, match="no column 'label'"):
        prune(checkpoint, sst2(tmp_path), macs=0.5, method="kwon2022")


def test_bad_requests_are_refused_before_any_work(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    for macs in (0.0, 1.0, -1.0, 50.0, float("nan")):
        with pytest.raises(BudgetError, match="between 0 and 1"):
            prune(checkpoint, sst2(data), macs=macs)
    with pytest.raises(OptionError, match="preset 'best' does not exist"):
        prune(checkpoint, sst2(data), macs=0.5, method="best")
    with pytest.raises(OptionError, match="device 'quantum'"):
        prune(checkpoint, sst2(data), macs=0.5, run=Run(device="quantum"))
    with pytest.raises(DataError, match="give a local folder"):
        prune(checkpoint, Data(columns=Columns(text="x")), macs=0.5)
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="not empty and holds what this program did not write"):
        prune(checkpoint, sst2(data), macs=0.5, output=tmp_path / "keep")
    tiny.write_jsonl(tmp_path / "few" / "train.jsonl", tiny.make_texts("sst2", 3, 0))
    with pytest.raises(DataError, match="has 3 rows"):
        prune(checkpoint, sst2(tmp_path / "few"), macs=0.5)


def test_several_limits_are_met_together_and_reported(checkpoint: Path, data: Path) -> None:
    budget = Budget(macs=0.7, limits=(Limit(cost="bytes", amount=30_000), Limit(cost="parameters", share=0.9)))
    report = prune(checkpoint, sst2(data), macs=budget, calibration=SMALL).report
    assert [limit.cost for limit in report.limits] == ["macs", "bytes", "parameters"]
    for limit in report.limits:
        assert limit.pruned <= limit.asked <= limit.dense
    # and the table of contents of the file
    assert 0 < report.limits[1].pruned - 4 * report.pruned.parameters < 8000


def test_output_and_statistics_must_lie_apart(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """Statistics inside the output would be replaced with it."""
    for inside in ("out", "out/kept", "out/../out"):
        output = Output(folder=tmp_path / "out", overwrite=True, statistics=tmp_path / inside)
        with pytest.raises(OutputError, match="none lies inside the other"):
            prune(checkpoint, sst2(data), macs=0.5, output=output)
    with pytest.raises(OutputError, match="none lies inside the other"):
        prune(checkpoint, sst2(data), macs=0.5, output=Output(folder=tmp_path / "a" / "b", statistics=tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_does_not_need_the_models_card(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card that is no YAML, and a hub that hangs up: neither may sink a run, and saving asks nobody."""
    import shutil

    from faster_pruner.report import card

    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    (model / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    prune(model, sst2(data), macs=0.5, output=tmp_path / "out", calibration=SMALL)
    assert "see the base model" in (tmp_path / "out" / "README.md").read_text()

    def hang_up(*arguments: object, **options: object) -> None:
        raise ConnectionResetError("the hub hung up")

    monkeypatch.setattr(card, "hf_hub_download", hang_up)
    assert card.read_licence("somebody/some-model") is None


def test_multi_label_from_rows_to_report(tmp_path: Path) -> None:
    model = tiny.make_model(labels=3, problem_type="multi_label_classification")
    model.save_pretrained(tmp_path / "model")
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"text": f"w{i} w{i + 1} w{2 * i}", "label": [i % 2, int(i % 3 == 0), 1]} for i in range(40)]
    for split in ("train", "validation"):
        tiny.write_jsonl(tmp_path / "data" / f"{split}.jsonl", rows)
    data = Data(folder=tmp_path / "data", columns=Columns(text="text"))
    for method in ("default", "kwon2022"):
        report = prune(tmp_path / "model", data, macs=0.5, method=method, output=tmp_path / method).report
        found = report.after["validation"]
        assert set(found.metrics) == {"micro_f1", "macro_f1", "all_correct", "loss"}
        assert found.primary == "micro_f1"
        assert "bit-equal" in report.verified
