"""The operators of an exported graph: which they are, what onnxruntime makes of them, what they compute."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

import stock_models
import tiny
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.errors import UnsupportedModelError, VerificationError
from faster_pruner.model.shrink import shrink
from faster_pruner.report import print_steps
from faster_pruner.results import ExportStep
from faster_pruner.runtimes import onnx as exporting
from faster_pruner.runtimes.lowering import attention_by_hand
from faster_pruner.runtimes.onnx import export_onnx, quiet

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def operators(file: Path) -> Counter[str]:
    """Of a file, how often each."""
    return Counter(node.op_type for node in onnx.load(str(file)).graph.node)


def operators_run(file: Path) -> Counter[str]:
    """What onnxruntime runs of a file, once it has fused what it fuses."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(file.with_suffix(".run.onnx"))
    runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return operators(file.with_suffix(".run.onnx"))


def small_bert(*, without: tuple[str, ...] = (), share: float = 1.0) -> Any:
    """Two layers with fused attention; some sublayers emptied, the others cut to a share of their units."""
    model = tiny.make_model()
    model.set_attn_implementation("sdpa")
    for s in sublayers_of(model):
        shrink(model, s.parts, torch.arange(0 if s.name in without else max(1, int(share * s.units))))
    return model


@pytest.mark.parametrize("share", [1.0, 0.6], ids=["dense", "pruned"])
def test_attention_is_five_operators_and_norms_stay_as_they_are(share: float, tmp_path: Path) -> None:
    exported = export_onnx(small_bert(share=share), tmp_path / "model.onnx")
    assert exported.note == ""
    assert exported.parity <= 1e-5
    written = operators(exported.file)
    assert written["Softmax"] == 2
    assert written["Transpose"] == 2 * 4
    assert not written["IsNaN"]
    # standard operators alone: other runtimes can read the file
    assert {entry.domain for entry in onnx.load(str(exported.file)).opset_import} == {""}
    run = operators_run(exported.file)
    assert run["LayerNormalization"] == 5
    assert not run["SkipLayerNormalization"]
    # scale and mask become part of products, biases of activations
    assert run["FusedMatMul"] == run["BiasGelu"] == 2


def test_onnxruntime_would_fuse_the_norms_of_what_torch_writes_by_itself(tmp_path: Path) -> None:
    """Once this fails, `keep_norms` may have become useless."""
    export_onnx(small_bert(), tmp_path / "model.onnx", faster=False)
    assert operators_run(tmp_path / "model.onnx")["SkipLayerNormalization"] == 4
    assert operators(tmp_path / "model.onnx")["IsNaN"] == 2


def test_layers_without_attention(tmp_path: Path) -> None:
    model = small_bert(without=("layers.0.ffn", "layers.1.attention"))
    exported = export_onnx(model, tmp_path / "model.onnx")
    assert exported.note == ""
    assert operators(exported.file)["Softmax"] == 1
    assert operators_run(exported.file)["LayerNormalization"] == 5


@pytest.mark.parametrize("name", ["llama", "modernbert", "dinov2", "deberta"])
def test_other_families(name: str, tmp_path: Path) -> None:
    """Grouped keys, windows, no mask, attention and norms that are written out."""
    model = stock_models.build(name)
    exported = export_onnx(model, tmp_path / "model.onnx")
    assert exported.note == ""
    run = operators_run(exported.file)
    assert run["Softmax"] == 2
    assert not run["IsNaN"]
    assert not run["SkipLayerNormalization"]


class _Attention(nn.Module):
    """One call of torch's attention."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.options)


def _masks(generator: torch.Generator) -> dict[str, Tensor]:
    seen = torch.rand(2, 1, 5, 5, generator=generator) > 0.4
    seen[..., 0] = True
    return {"seen": seen, "added": torch.randn(1, 4, 5, 5, generator=generator)}


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (None, {}),
        (None, {"scale": 0.3}),
        (None, {"is_causal": True}),
        (None, {"is_causal": True, "enable_gqa": True}),
        ("seen", {}),
        ("added", {"enable_gqa": True, "scale": 1.0}),
    ],
)
def test_attention_equals_torchs(mask: str | None, options: dict[str, Any], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = 2 if options.get("enable_gqa") else 4
    query, key, value = (torch.randn(2, n, 5, 8, generator=generator) for n in (4, heads, heads))
    given = (query, key, value, *((_masks(generator)[mask],) if mask else ()))
    model = _Attention(options).eval()
    with quiet():
        program = torch.onnx.export(
            model, given, dynamo=True, custom_translation_table=attention_by_hand(), verbose=False
        )
    program.save(str(tmp_path / "attention.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "attention.onnx"), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})[0]
    assert np.abs(found - model(*given).numpy()).max() < 1e-5


def _wrong(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
    """No attention at all."""
    return value


def _broken(*given: Any, **options: Any) -> Any:
    raise RuntimeError("no such operator")


@pytest.mark.parametrize(("translation", "reason"), [(_wrong, "differs from PyTorch's"), (_broken, "cannot export")])
def test_a_graph_that_is_wrong_or_fails_gives_way_to_torchs_own(
    translation: Callable[..., Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {torch.ops.aten.scaled_dot_product_attention.default: translation}
    monkeypatch.setattr(exporting, "attention_by_hand", lambda: table)
    exported = export_onnx(small_bert(), tmp_path / "model.onnx")
    assert reason in exported.note
    assert "torch's own operators" in exported.note
    assert "nothing was written" not in exported.note
    assert exported.parity <= 1e-5
    assert operators(exported.file)["IsNaN"] == 2
    assert list(tmp_path.iterdir()) == [exported.file]


def test_both_graphs_failing_is_the_error_of_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[bool] = []

    def fail(*given: Any, faster: bool) -> Any:
        kinds.append(faster)
        raise (UnsupportedModelError if faster else VerificationError)("faster" if faster else "plain")

    monkeypatch.setattr(exporting, "_export", fail)
    with pytest.raises(VerificationError, match="^plain$"):
        export_onnx(small_bert(), tmp_path / "model.onnx")
    assert kinds == [True, False]


def test_the_note_is_printed() -> None:
    step = ExportStep(name="ONNX", file=Path("x.onnx"), megabytes=1.0, note="torch's own operators")
    console = Console(file=io.StringIO(), width=100)
    print_steps([step], console)
    assert "ONNX: torch's own operators" in console.file.getvalue()  # type: ignore[attr-defined]
