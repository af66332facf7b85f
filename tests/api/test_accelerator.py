"""Runs on a device that is not the CPU: everything that is computed is there, and nothing that should not be."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import accelerator
import kinds
from faster_pruner import (
    Budget,
    CalibrationOptions,
    Output,
    Run,
    cut_again,
    evaluate,
    load,
    prune,
    prune_model,
    sweep,
)
from faster_pruner.costs.latency import LatencyLimit
from faster_pruner.host import mapped, saved
from faster_pruner.linalg import gram
from faster_pruner.options import PRESETS, Weights

pytestmark = [
    pytest.mark.skipif(bool(accelerator.why_not()), reason=str(accelerator.why_not())),
    pytest.mark.usefixtures("quick_latency"),
]
FLOAT32 = CalibrationOptions(rows=24, max_length=16, tokens_per_batch=64, precision="float32")


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> accelerator.Device:
    """Where tiny tensors are kept in files, too, if any are."""
    for module in (mapped, saved):
        monkeypatch.setattr(module, "_SMALL", 1)
    return accelerator.start()


def on(name: str) -> Run:
    return Run(device=name)


def masks_of(folder: Path) -> Any:
    return json.loads((folder / "masks.json").read_text())


def check_alike(one: Path, other: Path, tolerance: float = 2e-3) -> None:
    """Two checkpoints differ by what sums differ by that are added up in another order."""
    assert masks_of(one) == masks_of(other)
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        scale = max(1e-3, float(tensor.float().norm()))
        assert float((tensor.float() - second[name].float()).norm()) <= tolerance * scale, name


@pytest.mark.parametrize(
    ("kind", "macs"), [*((kind, 0.5) for kind in kinds.KINDS), ("classifier", 0.2), ("decoder", 0.2), ("images", 0.2)]
)
def test_every_kind_is_pruned_as_on_the_cpu(kind: str, macs: float, tmp_path: Path) -> None:
    """In memory there, and from files here (half precision rounds what was made of the same sums alike)."""
    model, data = kinds.KINDS[kind](tmp_path)
    reports: dict[str, Any] = {}
    for name, where, weights in (("cpu", "cpu", "memory"), ("there", "fake", "memory"), ("staged", "fake", "files")):
        options = replace(FLOAT32, weights=weights)
        reports[name] = prune(model, data, macs=macs, output=tmp_path / name, calibration=options, run=on(where)).report
        assert "bit-equal" in reports[name].verified
    for name in ("there", "staged"):
        if macs > 0.25:
            check_alike(tmp_path / "cpu", tmp_path / name)
        else:
            # a descent goes its own way from the last bit on, to a place as good
            own, expected = ([s.residual_after or 0.0 for s in reports[n].sublayers] for n in (name, "cpu"))
            assert own == pytest.approx(expected, abs=0.03)
        assert masks_of(tmp_path / "cpu") == masks_of(tmp_path / name)
        assert reports[name].macs_kept == reports["cpu"].macs_kept
    assert reports["there"].environment["device"].startswith("fake")
    assert {p.device.type for p in load(tmp_path / "staged").parameters()} == {"cpu"}


@pytest.mark.parametrize("method", ["li2024", "kwon2022"])
def test_the_references_run_there(method: str, tmp_path: Path) -> None:
    model, data = kinds.classifier(tmp_path)
    for name in ("cpu", "fake"):
        prune(model, data, macs=0.5, method=method, output=tmp_path / name, calibration=FLOAT32, run=on(name))
    check_alike(tmp_path / "cpu", tmp_path / "fake")


@pytest.mark.parametrize("weights", ["memory", "files"])
def test_later_cuts_and_sweeps_run_there(weights: Any, tmp_path: Path) -> None:
    model, data = kinds.classifier(tmp_path)
    options = replace(FLOAT32, weights=weights)
    out = Output(folder=tmp_path / "out", statistics=tmp_path / "kept")
    prune(model, data, macs=0.5, output=out, calibration=options, run=on("fake"))
    sweep(model, data, macs=[0.6, 0.4], output=tmp_path / "sweep", calibration=options, run=on("fake"))
    cut_again(tmp_path / "kept", macs=0.4, output=tmp_path / "cut", run=on("fake"))
    prune(model, data, macs=0.4, output=tmp_path / "alone", calibration=FLOAT32, run=on("cpu"))
    for name in ("cut", "sweep/macs-0.4"):
        check_alike(tmp_path / "alone", tmp_path / name)
    assert evaluate(tmp_path / "cut", data, run=on("fake")).keys() == evaluate(tmp_path / "cut", data).keys()


def test_budgets_in_time_and_a_distillation(tmp_path: Path) -> None:
    model, data = kinds.classifier(tmp_path)
    found = prune(
        model, data, macs=0.4, output=tmp_path / "out", calibration=FLOAT32, distillation=16, run=on("fake")
    ).report
    assert found.distillation is not None
    budget = Budget(macs=0.9, latency=LatencyLimit(share=0.99, batch=1, tokens=8))
    timed = prune(model, data, macs=budget, calibration=FLOAT32, run=on("fake"))
    assert timed.report.limits


def test_a_model_in_memory_stays_where_it_is(tmp_path: Path) -> None:
    opened = load(kinds.classifier(tmp_path)[0], dtype=torch.float32).to("fake")
    inputs: dict[str, Any] = {"input_ids": torch.randint(4, 90, (8, 9)), "attention_mask": torch.ones(8, 9).long()}
    batches = [{key: value.to("fake") for key, value in inputs.items()}]
    found = prune_model(opened, batches, macs=0.5)
    assert {p.device.type for p in found.model.parameters()} == {"fake"}
    found.model(**batches[0])


def test_layers_come_and_go(tmp_path: Path, device: accelerator.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model of many layers, the device holds what is outside of them, and little else at a time."""
    monkeypatch.setattr(gram, "_TOKENS_ELSEWHERE", 64)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 5}
    model, data = kinds.save_llama(tmp_path / "model", **sizes), kinds.save_text(tmp_path / "text.txt")
    usual = PRESETS["default"]
    assert isinstance(usual.recovery, Weights)
    method = replace(usual, recovery=replace(usual.recovery, descent=None))
    held: dict[str, int] = {}
    for weights in ("memory", "files"):
        gc.collect()
        before = device.memory_allocated()
        device.reset_peak_memory_stats()
        options = CalibrationOptions(
            rows=8, max_length=16, tokens_per_batch=64, memory_limit=0, precision="float32", weights=weights
        )
        prune(model, data, macs=0.5, method=method, output=tmp_path / weights, calibration=options, run=on("fake"))
        held[weights] = device.max_memory_allocated() - before
    assert held["memory"] > 3 * (model / "model.safetensors").stat().st_size
    assert held["files"] < held["memory"] / 5
    check_alike(tmp_path / "memory", tmp_path / "files")
