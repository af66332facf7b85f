"""Weights in files: the same bytes as in memory, and less memory than the weights take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fresh
import kinds
import tiny
from command import run
from faster_pruner import Budget, CalibrationOptions, Data, Output, cut_again, prune, sweep
from faster_pruner.api import weights
from faster_pruner.checkpoint import extent
from faster_pruner.costs.latency import LatencyLimit
from faster_pruner.errors import OptionError
from faster_pruner.host import mapped

pytestmark = pytest.mark.usefixtures("quick_latency", "all_in_files")


@pytest.fixture
def all_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny tensors, too."""
    monkeypatch.setattr(mapped, "_SMALL", 1)


def weights_of(folder: Path) -> dict[str, bytes]:
    """What a folder holds of the model."""
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json", "masks.json")}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of everything that goes to files."""
    found: list[int] = []
    from_file = torch.from_file

    def seen(*given: Any, size: int, dtype: torch.dtype, **options: Any) -> torch.Tensor:
        found.append(size * dtype.itemsize)
        return from_file(*given, size=size, dtype=dtype, **options)

    monkeypatch.setattr(torch, "from_file", seen)
    return found


@pytest.mark.on_the_cpu
@pytest.mark.parametrize("make", [kinds.classifier, kinds.decoder, kinds.images])
@pytest.mark.parametrize("macs", [0.5, 0.15])
def test_the_bytes_are_those_of_a_run_in_memory(
    make: Callable[[Path], tuple[Path, Data]], macs: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = make(tmp_path)
    found = counted(monkeypatch)
    reports = []
    for place in ("memory", "files"):
        options = CalibrationOptions(rows=24, max_length=16, tokens_per_batch=64, memory_limit=0, weights=place)
        reports.append(prune(model, data, macs=macs, output=tmp_path / place, calibration=options).report)
        assert (sum(found) > 2 * reports[0].dense.parameters * 4) == (place == "files")
    assert weights_of(tmp_path / "memory") == weights_of(tmp_path / "files")
    assert reports[1].after == reports[0].after
    assert "bit-equal" in reports[1].verified
    # a forward that waits for the disk says nothing of the model
    assert reports[0].latency
    assert not reports[1].latency
    assert any("speed was not measured" in warning for warning in reports[1].warnings)
    assert not mapped.are_in_files()


def test_cuts_and_sweeps_from_files_are_those_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = kinds.classifier(tmp_path)
    for place in ("memory", "files"):
        options = CalibrationOptions(rows=24, weights=place)
        out = Output(folder=tmp_path / place, statistics=tmp_path / f"{place}-statistics")
        prune(model, data, macs=0.5, output=out, calibration=options)
        sweep(model, data, macs=[0.6, 0.4], output=tmp_path / f"{place}-sweep", calibration=options)
        if place == "files":
            monkeypatch.setattr(weights, "free_memory", lambda device: 1000)
        cut_again(tmp_path / f"{place}-statistics", macs=0.4, output=tmp_path / f"{place}-cut")
    for name in ("", "-cut", "-sweep/macs-0.6", "-sweep/macs-0.4"):
        assert weights_of(tmp_path / f"memory{name}") == weights_of(tmp_path / f"files{name}")


@pytest.mark.parametrize(("free", "expected"), [(3 * 4 * 12, False), (3 * 4 * 12 - 1, True)])
def test_files_are_taken_where_memory_would_not_do(
    free: int, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "free_memory", lambda device: free)
    monkeypatch.setattr(weights, "numbers_in", lambda place: 12)
    assert weights.go_to_files("auto", "somewhere", torch.device("cpu")) == expected
    # two that share the machine hold twice as much
    assert weights.go_to_files("auto", "somewhere", torch.device("cpu"), holders=2)
    assert not weights.go_to_files("memory", "somewhere", torch.device("cpu"))
    assert weights.go_to_files("files", "somewhere", torch.device("cpu"))


def test_numbers_are_counted_from_the_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.make_model("bert")
    assert weights.numbers_in(str(tiny.save_checkpoint(tmp_path / "model"))) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    assert weights.numbers_in(str(tmp_path / "nothing" / "there")) == 0


def test_the_hub_is_not_asked_for_what_is_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = tiny.save_checkpoint(tmp_path / "model"), list[str]()
    monkeypatch.setattr(extent, "located", lambda place: (place, None))
    monkeypatch.setattr(extent, "try_to_load_from_cache", lambda place, name: str(folder / name))
    monkeypatch.setattr(extent, "get_safetensors_metadata", asked.append)
    assert weights.numbers_in("some/model") == weights.numbers_in(str(folder)) > 0
    assert asked == []


def test_what_files_are_no_place_for(tmp_path: Path) -> None:
    model, data = kinds.classifier(tmp_path)
    options = CalibrationOptions(rows=24, weights="files")
    with pytest.raises(OptionError, match="a distillation takes weights in memory"):
        prune(model, data, macs=0.5, calibration=options, distillation=16)
    timed = Budget(latency=LatencyLimit(share=0.8, batch=1, tokens=8))
    with pytest.raises(OptionError, match="a budget in time takes weights in memory"):
        prune(model, data, macs=timed, calibration=options)
    with pytest.raises(OptionError, match="weights 'disk' does not exist"):
        CalibrationOptions(weights="disk")  # pyright: ignore[reportArgumentType]


def test_on_the_command_line(tmp_path: Path) -> None:
    model, data = kinds.classifier(tmp_path)
    given = ["prune", str(model), "--task", "sst2", "--data", str(data.folder), "--macs", "0.5", "--json"]
    code, said, _ = run(*given, "--calibration-rows", "24", "--weights", "files", "-o", tmp_path / "out")
    assert code == 0
    assert json.loads(said)["options"]["calibration"]["weights"] == "files"


_WATCHED = (
    fresh.OWN_MEMORY
    + """
import gc, sys, threading
from dataclasses import replace
import torch
from faster_pruner import CalibrationOptions, Data, prune
from faster_pruner.api import outcome
from faster_pruner.options import PRESETS

outcome.measure = lambda *given, **options: []

def watch():
    while not done.wait(0.002):
        seen.append(own_memory())

torch.set_num_threads(1)
small, model, text, out, place = sys.argv[1:]
method = replace(PRESETS["default"], recovery=replace(PRESETS["default"].recovery, descent=None))
data = Data(file=text, judged=8)
options = CalibrationOptions(
    rows=8, max_length=32, tokens_per_batch=64, memory_limit=0, weights=place, precision="float32"
)
# what packages hold from their first use on is none of the model's
prune(small, data, macs=0.5, method=method, calibration=options)
gc.collect()
before, seen, done = own_memory(), [], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
prune(model, data, macs=0.5, method=method, output=out, calibration=options)
done.set()
watcher.join()
print(max(seen) - before)
"""
)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted as Linux does it")
def test_files_take_less_memory(tmp_path: Path) -> None:
    """Of what a process holds of its own in memory, several times the weights, less than half is left."""
    sizes = {"hidden_size": 384, "intermediate_size": 512, "num_hidden_layers": 6}
    small, model = kinds.save_llama(tmp_path / "small"), kinds.save_llama(tmp_path / "model", **sizes)
    text = kinds.save_text(tmp_path / "text.txt").file
    size = (model / "model.safetensors").stat().st_size
    held = {
        place: int(fresh.run(_WATCHED, small, model, str(text), tmp_path / place, place).stdout.split()[-1])
        for place in ("files", "memory")
    }
    assert held["files"] < held["memory"] / 2
    assert held["memory"] > 3 * size
    assert weights_of(tmp_path / "memory") == weights_of(tmp_path / "files")
