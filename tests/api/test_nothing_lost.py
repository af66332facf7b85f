"""Finished work is never thrown away by what is not essential, and what is shared tells nothing of the machine."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from badness import bad_input
from command import run
from faster_pruner import CalibrationOptions, Data, Output, cut_again, load, prune, prune_model
from faster_pruner.api import export as export_module
from faster_pruner.api import outcome
from faster_pruner.api.bench import bench, check_json
from faster_pruner.api.export import export
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.errors import CheckpointError, OptionError, OutputError
from faster_pruner.host.marks import is_our_file
from faster_pruner.options import PRESETS
from faster_pruner.results import Timing, strict_json
from faster_pruner.runtimes import comparison, onnx

pytestmark = pytest.mark.usefixtures("quick_latency")

SMALL = CalibrationOptions(rows=32)


def sst2(folder: Path) -> Data:
    """The rows of SST-2 in a folder."""
    return Data(task="sst2", folder=folder)


def strict(file: Path) -> dict[str, Any]:
    """JSON as other readers take it."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(file.read_text(), parse_constant=refuse)


def fail(*_arguments: object, **_options: object) -> Any:
    """Raise what nobody foresaw."""
    raise ArithmeticError("this cannot\nbe computed")


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("evaluate", "split 'validation' could not be evaluated"),
        ("predict_rows", "split 'validation' could not be evaluated"),
        ("confidence", "accuracy has no confidence interval"),
        ("measure", "latency could not be measured"),
        ("model_card", "the model card is a short one"),
        ("page", "there is no report.html"),
    ],
)
def test_what_fails_after_the_work_is_a_warning(
    name: str, warning: str, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, name, fail)
    bad_input(f"{name} fails")
    options = ("--task", "sst2", "--data", data, "--macs", "0.5", "-o", tmp_path / "out", "--calibration-rows", "32")
    code, text, _ = run("prune", checkpoint, *options)
    assert code == 0
    saved = strict(tmp_path / "out" / "result.json")
    assert [each for each in saved["warnings"] if warning in each and each.endswith("this cannot be computed")]
    assert "this cannot" in text
    assert "bit-equal" in saved["verified"]
    assert set(saved["before"]) == set(saved["after"])
    load(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_folder_whose_name_is_no_text_is_refused_before_any_work(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any bytes are a good name on Linux, but no tokenizer can be saved there."""
    monkeypatch.setattr("faster_pruner.api.prune.open_checkpoint", lambda *_a, **_k: pytest.fail("opened"))
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/out\xff"))
    bad_input("output: a name that is no text")
    with pytest.raises(OutputError, match="no path that can be written"):
        prune(checkpoint, sst2(data), macs=0.5, output=folder, calibration=SMALL)


@pytest.mark.parametrize("where", ["closed", "full", "ascii"])
def test_a_summary_that_cannot_be_printed_costs_nothing(
    where: str, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "\N{SNOWMAN}"
    command = [sys.executable, "-m", "faster_pruner", "prune", str(checkpoint), "--task", "sst2", "--data", str(data)]
    command += ["--macs", "0.5", "-o", str(out), "--calibration-rows", "32"]
    reader, writer = os.pipe()
    os.close(reader)
    bad_input(f"standard output: {where}")
    with Path("/dev/full" if where == "full" else os.devnull).open("w") as sink:
        stdout = writer if where == "closed" else sink
        environment = {**os.environ, **({"PYTHONIOENCODING": "ascii"} if where == "ascii" else {})}
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if where != "ascii":
        assert "the result is complete, in " in done.stderr
    load(out)


def test_a_tokenizer_that_cannot_be_saved_is_said_before_any_work(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
    monkeypatch.setattr("faster_pruner.api.prune.calibrate", lambda *_a, **_k: pytest.fail("work has begun"))
    bad_input("a tokenizer that cannot be saved")
    with pytest.raises(CheckpointError, match="the tokenizer of this model cannot be saved: this cannot"):
        prune(checkpoint, sst2(data), macs=0.5, output=tmp_path / "out", calibration=SMALL)


def test_what_is_shared_tells_nothing_of_the_machine(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    model = tmp_path / "secret-place" / "my-model"
    shutil.copytree(checkpoint, model)
    output = Output(folder=tmp_path / "out", statistics=tmp_path / "kept")
    report = prune(model, sst2(data), macs=0.5, output=output, calibration=SMALL).report
    assert report.model == "my-model"
    # statistics are private, and a cut finds the dense model through them
    cut_again(tmp_path / "kept", macs=0.6, output=tmp_path / "third")
    prune_model(load(model), [tiny.make_batches(tiny.make_rows(16))[0].inputs]).save(tmp_path / "fourth")
    for folder in ("out", "third", "fourth"):
        for file in (tmp_path / folder).iterdir():
            assert b"secret-place" not in file.read_bytes(), file
            assert str(data).encode() not in file.read_bytes(), file
    assert "secret-place" in (tmp_path / "kept" / "statistics.json").read_text()


def test_the_card_and_the_result_say_how_many_rows_there_were(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    prune(checkpoint, sst2(data), macs=0.5, output=tmp_path / "out")
    saved = strict(tmp_path / "out" / "result.json")
    assert saved["calibration_rows"] == 48
    assert "48 training rows (of 2048 asked for)" in (tmp_path / "out" / "README.md").read_text()
    assert set(saved["files"]) == {path.name for path in (tmp_path / "out").iterdir()}


def test_results_are_json_that_everybody_reads() -> None:
    odd = {"a": [math.nan, (math.inf, 1.0)], "b": {"c": -math.inf, "d": "NaN", "e": None, "f": 2}}
    assert json.loads(strict_json(odd)) == {"a": [None, [None, 1.0]], "b": {"c": None, "d": "NaN", "e": None, "f": 2}}


READ: dict[str, Callable[[Path, Path], Path]] = {
    "the model": lambda model, _: model,
    "inside the model": lambda model, _: model / "pruned",
    "around the model": lambda model, _: model.parent,
    "the data": lambda _, data: data,
}


@pytest.mark.parametrize("what", READ)
def test_what_a_run_reads_is_never_written(
    what: str, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faster_pruner.api.prune.open_checkpoint", lambda *_a, **_k: pytest.fail("opened"))
    output = Output(folder=READ[what](checkpoint, data), overwrite=True)
    bad_input(f"prune into {what}")
    with pytest.raises(OutputError, match="which is read|rows are read|did not write"):
        prune(checkpoint, sst2(data), macs=0.5, output=output)


def test_a_cut_never_writes_into_its_statistics(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    prune(checkpoint, sst2(data), macs=0.5, output=Output(statistics=kept), calibration=SMALL)
    for place in (kept, kept / "out", checkpoint, checkpoint / "x"):
        bad_input(f"cut into {place.name}")
        with pytest.raises(OutputError, match="which is read|rows are read|did not write"):
            cut_again(kept, macs=0.5, output=Output(folder=place, overwrite=True))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_kept_statistics_are_about_as_large_as_was_said(
    preset: str, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[int] = []
    monkeypatch.setattr(Output, "check_space", lambda _, folder=0, statistics=0, kept=0: said.append(statistics))
    prune(checkpoint, sst2(data), macs=0.5, output=Output(statistics=tmp_path / "kept"), method=preset)
    files = (file for file in (tmp_path / "kept").iterdir() if file.suffix == ".safetensors")
    written = sum(len(t.numpy().tobytes()) for file in files for t in _tensors(file))
    assert 0.8 * written <= said[0] <= 2 * written


def _tensors(file: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return [t.view(torch.uint8) if t.ndim else t.reshape(1).view(torch.uint8) for t in load_file(file).values()]


def test_a_disk_too_full_for_statistics_is_said_before_the_pass(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faster_pruner.api.prune.kept_bytes", lambda *_: 10**18)
    monkeypatch.setattr("faster_pruner.api.prune.calibrate", lambda *_a, **_k: pytest.fail("work has begun"))
    bad_input("statistics larger than the disk")
    with pytest.raises(OutputError, match="not enough disk space for .*kept"):
        prune(checkpoint, sst2(data), macs=0.5, output=Output(statistics=tmp_path / "kept"), calibration=SMALL)


EXPORTS = {
    "of another suffix": "x.safetensors",
    "without a suffix": "x",
    "of an upper suffix": "x.ONNX",
    "a folder": "folder",
    "a folder with the suffix": "folder.onnx",
    "over somebody's file": "theirs.onnx",
    "over somebody's external data": "external.onnx",
    "over somebody's OpenVINO": "converted.onnx",
    "over somebody's int8": "small.onnx",
    "below a file": "theirs.onnx/x.onnx",
    "a long name": "n" * 250 + ".onnx",
    "a link to somebody's file": "link.onnx",
}


@pytest.mark.parametrize("what", EXPORTS)
def test_exports_that_would_replace_what_is_not_ours(
    what: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((export_module, "open_checkpoint"), (export_module, "require")):
        monkeypatch.setattr(module, name, lambda *_a, **_k: None)
    for name in ("folder", "folder.onnx"):
        (tmp_path / name).mkdir()
    for name in ("theirs.onnx", "external.onnx.data", "converted.bin", "small.int8.onnx", "real"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "real")
    bad_input(f"export {what}")
    with pytest.raises(OutputError):
        export(checkpoint, output=tmp_path / EXPORTS[what], to="openvino", int8=True)
    assert (tmp_path / "theirs.onnx").read_text() == "mine"


def test_what_an_export_needs_is_asked_before_the_model_is_loaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "open_checkpoint", lambda *_a, **_k: pytest.fail("opened"))
    monkeypatch.setattr("faster_pruner.api.bench.open_checkpoint", lambda *_a, **_k: pytest.fail("opened"))
    bad_input("export of a hub id without an output")
    with pytest.raises(OptionError, match="no folder 'somebody/model' here") as refused:
        export("somebody/model")
    assert refused.value.option == "output"
    for package, extra in (("openvino", "openvino"), ("onnxruntime", "onnx"), ("onnxscript", "onnx"), ("onnx", "onnx")):
        monkeypatch.setitem(sys.modules, package, None)
        bad_input(f"export without {package}")
        with pytest.raises(OptionError, match=rf"pip install 'faster-pruner\[{extra}\]'"):
            export(checkpoint, output=tmp_path / "x.onnx", to="openvino")
    with pytest.raises(OptionError, match="pip install"):
        bench([checkpoint], runtimes=["onnx"])


def test_exports_of_ours_are_known_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.onnx"
    for limit in (2**31, 0):
        monkeypatch.setattr(onnx, "_LARGEST_SINGLE_FILE", limit)
        onnx.export_onnx(tiny.make_model(), file)
        onnx.quantise(file, tmp_path / "x.int8.onnx")
        written = sorted(path.name for path in tmp_path.iterdir())
        assert all(is_our_file(tmp_path / name) for name in written), written
    assert "x.onnx.data" in written
    onnx.OnnxModel(file)


def test_a_model_without_any_unit_is_timed(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_FEWEST_TURNS", 3)
    monkeypatch.setattr(comparison, "_SECONDS_PER_SHAPE", 0.0)
    model = open_checkpoint(str(checkpoint), device=torch.device("cpu")).model
    dense, empty = (
        comparison.Entry(name, model, lambda _, m=macs: m) for name, macs in (("dense", 5.0), ("empty", 0.0))
    )
    found = comparison.compare([dense, empty], runtimes=["torch"], shapes=[(1, 8)])
    assert [timing.ideal for timing in found] == [1.0, math.inf]
    assert [timing.ideal for timing in comparison.compare([empty], runtimes=["torch"], shapes=[(1, 8)])] == [1.0]


@pytest.mark.parametrize("where", ["none/x.json", "", "theirs.json", "theirs.txt", "theirs.txt/x.json", "n" * 300])
def test_figures_that_cannot_be_written_are_refused_before_timing(
    where: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faster_pruner.api.bench.open_checkpoint", lambda *_a, **_k: pytest.fail("opened"))
    (tmp_path / "theirs.json").write_text('{"mine": 1}')
    (tmp_path / "theirs.txt").write_text("mine")
    bad_input(f"bench figures into {where[:20]!r}")
    code, _, errors = run("bench", checkpoint, "--json-file", tmp_path / where)
    assert code == 2
    assert errors.startswith("faster-pruner: error: ")
    assert (tmp_path / "theirs.json").read_text() == '{"mine": 1}'


def test_figures_replace_earlier_figures(tmp_path: Path) -> None:
    from faster_pruner.api.bench import write_json
    from faster_pruner.api.run import Run

    values: dict[str, Any] = dict.fromkeys(("ms", "low", "high", "speed_up"), 1.0)
    timing = Timing(
        model="m", runtime="torch", batch=1, sequence=8, ideal=math.inf, peak_mb=None, launch_bound=False, **values
    )
    for _ in range(2):
        check_json(tmp_path / "x.json")
        write_json(tmp_path / "x.json", [timing], Run())
    assert strict(tmp_path / "x.json")["timings"][0]["ideal"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
