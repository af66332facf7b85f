"""Other runtimes and timing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tiny
from command import run
from faster_pruner import CalibrationOptions, Data, prune
from faster_pruner.api.export import export
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.errors import OptionError, VerificationError
from faster_pruner.model.passes import inference
from faster_pruner.model.shrink import shrink
from faster_pruner.model.table import FAMILIES
from faster_pruner.runtimes import comparison, onnx
from faster_pruner.runtimes.onnx import OnnxModel, export_onnx, quantise


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_FEWEST_TURNS", 3)
    monkeypatch.setattr(comparison, "_SECONDS_PER_SHAPE", 0.0)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, data: Path) -> Path:
    """A pruned folder with a layer of every kind of size."""
    folder = tmp_path_factory.mktemp("pruned") / "small"
    rows = Data(task="sst2", folder=data)
    prune(checkpoint, rows, macs=0.3, output=folder, calibration=CalibrationOptions(rows=32))
    return folder


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_export_agrees_on_shapes_that_it_was_not_traced_with(family: str, tmp_path: Path) -> None:
    model = tiny.make_model(family, attn_implementation="sdpa")
    exported = export_onnx(model, tmp_path / "model.onnx")
    assert exported.parity <= 1e-4
    assert (2, 16) not in exported.shapes
    assert list(tmp_path.iterdir()) == [exported.file]
    runtime = OnnxModel(exported.file)
    for batch in tiny.make_batches(tiny.make_rows()):
        with inference(model):
            expected = model(**batch.inputs).logits
        assert torch.allclose(runtime(batch.inputs).logits, expected, atol=1e-4)


def test_an_export_that_disagrees_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    (tmp_path / "model.onnx").write_text("old")
    with pytest.raises(VerificationError, match="nothing was written"):
        export_onnx(tiny.make_model(), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_export_from_the_command_line(pruned: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.onnx"
    code, text, _ = run("export", pruned, "-o", out, "--int8", "--task", "sst2", "--data", data)
    assert code == 0
    for word in ("PyTorch", "ONNX int8", "accuracy", "difference", "1 x 32 tokens", str(out)):
        assert word in text
    assert out.is_file()
    assert out.with_suffix(".int8.onnx").stat().st_size < out.stat().st_size
    code, _, errors = run("export", pruned, "--format", "gguf")
    assert code == 2
    assert "choose one of: onnx, openvino" in errors


def test_missing_packages_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(OptionError, match=r"pip install 'faster-pruner\[onnx\]'"):
        export_onnx(tiny.make_model(), tmp_path / "model.onnx")


def test_openvino_where_installed(pruned: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    steps = export(pruned, output=tmp_path / "x.onnx", to="openvino")
    assert [step.name for step in steps] == ["PyTorch", "ONNX", "OpenVINO"]
    assert steps[-1].parity is not None
    assert steps[-1].parity <= 1e-4
    assert (tmp_path / "x.bin").is_file()


def test_bench_compares_models_and_runtimes(checkpoint: Path, pruned: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    code, text, _ = run(
        "bench",
        checkpoint,
        pruned,
        "--runtime",
        "torch,onnx,onnx-int8",
        "--batch",
        "1,2",
        "--seq",
        "8,9999",
        "--json-file",
        file,
    )
    assert code == 0
    assert "speed-up" in text
    found = json.loads(file.read_text())["timings"]
    assert len(found) == 2 * 3 * 2
    dense = [t for t in found if t["model"] == str(checkpoint)]
    assert all(t["speed_up"] == 1.0 and t["ideal"] == 1.0 for t in dense)
    assert all(t["ideal"] > 2 for t in found if t["model"] == str(pruned))
    assert all(t["low"] <= t["ms"] <= t["high"] for t in found)
    # one short row of a tiny model has nothing to do with arithmetic
    assert any(t["launch_bound"] for t in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--runtime", "tensorrt"), "choose one of: torch, compile, onnx, onnx-int8"),
        (("--batch", "a"), "numbers with commas"),
        (("--batch", "0"), "at least 1"),
        (("--seq", "9999"), "at most 64 tokens"),
    ],
)
def test_bad_bench_options_are_one_line(options: tuple[str, str], message: str, checkpoint: Path) -> None:
    code, _, errors = run("bench", checkpoint, *options)
    assert code == 2
    assert message in errors.splitlines()[-1]


def test_int8_of_a_model_with_emptied_branches_stays_close(tmp_path: Path) -> None:
    """Nothing in it has zero columns, which quantisers turn into garbage."""
    model = tiny.make_model(attn_implementation="sdpa")
    for s in sublayers_of(model):
        keep = torch.arange(0) if s.name in ("layers.0.ffn", "layers.1.attention") else torch.arange(s.units)
        shrink(model, s.parts, keep)
    exported = export_onnx(model, tmp_path / "model.onnx")
    quantised = OnnxModel(quantise(exported.file, tmp_path / "model.int8.onnx"))
    for batch in tiny.make_batches(tiny.make_rows()):
        with inference(model):
            expected = model(**batch.inputs).logits
        assert (quantised(batch.inputs).logits - expected).abs().max() < 0.3 * expected.abs().max()
