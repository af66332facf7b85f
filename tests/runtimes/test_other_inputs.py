"""Export and timing of models of images and sounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import colours
import sounds
import tiny
from badness import bad_input
from faster_pruner import Data
from faster_pruner.api.bench import bench
from faster_pruner.api.export import export
from faster_pruner.errors import OptionError, UnsupportedModelError, VerificationError
from faster_pruner.runtimes import comparison, onnx

pytest.importorskip("onnxruntime")


def test_a_model_of_images(tmp_path: Path) -> None:
    model, images = colours.save_checkpoint(tmp_path / "model"), colours.save_images(tmp_path / "images", train=9)
    steps = export(model, int8=True, data=Data(folder=images))
    assert [step.name for step in steps] == ["PyTorch", "ONNX", "ONNX int8"]
    assert steps[1].parity is not None
    assert steps[1].parity < 1e-4
    assert all(step.metrics["accuracy"] == 100 for step in steps)
    assert all(set(step.ms) == {(1, 5), (32, 5)} for step in steps)


@pytest.mark.parametrize("spectrograms", [False, True], ids=["samples", "spectrograms"])
def test_a_model_of_sounds(tmp_path: Path, spectrograms: bool) -> None:
    """The file takes sounds of other lengths than the exporter saw, where the model does."""
    model = (sounds.make_spectrograms if spectrograms else sounds.make_waves)()
    exported = onnx.export_onnx(model, tmp_path / "model.onnx")
    assert exported.parity < 1e-4
    given = torch.randn(3, 48, 16) if spectrograms else torch.randn(3, 611)
    found = onnx.OnnxModel(tmp_path / "model.onnx")({"input_values": given})
    assert torch.allclose(found.logits, model(input_values=given).logits, atol=1e-4)


def test_parity_is_checked_on_sounds_of_several_lengths() -> None:
    seen = {tuple(onnx.example(sounds.make_waves(), (2, 16), seed)["input_values"].shape) for seed in range(3)}
    assert len(seen) == 3


def test_what_cannot_be_exported_or_run_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **options: Any) -> Any:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(onnx.OnnxModel, "__call__", fail)
    bad_input("an export that cannot be run")
    with pytest.raises(VerificationError, match=r"cannot run what PyTorch runs \(first second\); nothing was written"):
        onnx.export_onnx(colours.make_vit(), tmp_path / "model.onnx")
    monkeypatch.setattr(torch.onnx, "export", fail)
    bad_input("a model that torch cannot export")
    with pytest.raises(UnsupportedModelError, match="cannot export a ViTForImageClassification to ONNX: first second"):
        onnx.export_onnx(colours.make_vit(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_SECONDS_PER_SHAPE", 0.0)
    model = colours.save_checkpoint(tmp_path / "model")
    timings = bench([model, model], batches=(1, 2), sequences=(7, 9), runtimes=("torch", "onnx"))
    assert {(timing.batch, timing.sequence) for timing in timings} == {(1, 5), (2, 5)}
    assert len(timings) == 8
    assert {timing.ideal for timing in timings} == {1.0}
    bad_input("models of different things side by side")
    with pytest.raises(OptionError, match=r"take different things \(input_ids, pixel_values\); compare those that"):
        bench([model, tiny.save_checkpoint(tmp_path / "text")])
