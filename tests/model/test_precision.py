"""bfloat16 passes: chosen where they are faster, close to float32, and never leaking out."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import stock_models
from faster_pruner import Data, prune
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.costs.budget import Budget
from faster_pruner.host.arithmetic import agreed
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Subject
from faster_pruner.model.precision import choose_precision, copy_of, forward_in, in_float32
from faster_pruner.model.table import FAMILIES
from faster_pruner.objectives.classification import CLASSIFICATION
from faster_pruner.options import CalibrationOptions, preset
from tiny import make_model, make_rows

CPU = torch.device("cpu")


def test_auto_is_what_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    for pays, expected in ((False, "float32"), (True, "bfloat16")):
        with agreed(pays):
            assert choose_precision("auto", CPU) == expected
            assert choose_precision("float32", CPU) == "float32"
            assert choose_precision("bfloat16", CPU) == "bfloat16"
    assert choose_precision("bfloat16", torch.device("mps")) == "bfloat16"
    assert choose_precision("auto", torch.device("mps")) == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert choose_precision("auto", torch.device("cuda")) == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choose_precision("auto", torch.device("cuda")) == "bfloat16"


def test_products_are_bfloat16_and_attention_is_float32() -> None:
    x, linear = torch.randn(2, 3, 8), torch.nn.Linear(8, 8)
    q = torch.randn(1, 2, 3, 4)
    with forward_in("bfloat16", CPU):
        assert linear(x).dtype == torch.bfloat16
        assert functional.scaled_dot_product_attention(q.bfloat16(), q, value=q).dtype == torch.float32
    assert linear(x).dtype == torch.float32
    with forward_in("float32", CPU):
        assert linear(x).dtype == torch.float32


def test_an_error_ends_it() -> None:
    linear, q = torch.nn.Linear(8, 8), torch.randn(1, 2, 3, 4).bfloat16()
    with pytest.raises(ZeroDivisionError), forward_in("bfloat16", CPU):
        raise ZeroDivisionError
    assert linear(torch.randn(2, 8)).dtype == torch.float32
    assert functional.scaled_dot_product_attention(q, q, q).dtype == torch.bfloat16


def test_a_run_says_what_auto_was(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """In its report, its card and its page; what was asked for stays what was asked for."""
    for pays, expected in ((False, "float32"), (True, "bfloat16")):
        out = tmp_path / expected
        with agreed(pays):
            options = CalibrationOptions(rows=16)
            found = prune(checkpoint, Data(task="sst2", folder=data), macs=0.5, output=out, calibration=options)
        result = json.loads((out / "result.json").read_text())
        assert found.report.precision == result["precision"] == expected
        assert result["options"]["calibration"]["precision"] == "auto"
        assert f"passes in {expected}" in (out / "README.md").read_text()
        assert expected in (out / "report.html").read_text()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_cut_in_bfloat16_is_close_to_one_in_float32(family: str) -> None:
    model, rows, method = make_model(family), make_rows(60), preset("default")
    subject = Subject(model, sublayers_of(model), CLASSIFICATION)
    errors: dict[str, float] = {}
    for precision in ("float32", "bfloat16"):
        calibrated = calibrate(subject, rows, method, CalibrationOptions(precision=precision))
        pruned = cut(calibrated, Budget(macs=0.6), method)
        assert {p.dtype for p in pruned.model.parameters()} == {torch.float32}
        errors[precision] = sum(result.residual_after or 0.0 for result in pruned.results)
    assert errors["bfloat16"] == pytest.approx(errors["float32"], rel=0.1, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma3", "bert", "gpt-neox"])
def test_copies_have_exactly_what_no_file_holds(name: str, dtype: torch.dtype) -> None:
    model = stock_models.build(name)
    exact = {key: buffer for key, buffer in model.named_buffers() if key not in model.state_dict()}
    assert exact
    half = copy.deepcopy(model).to(dtype)
    before = copy.deepcopy(half)
    # rounded by whoever made the model, or kept by a copy of ours
    for given in (half, copy_of(model, dtype=dtype)):
        found = in_float32(given)
        assert {tensor.dtype for tensor in found.parameters()} == {torch.float32}
        for key, value in found.state_dict().items():
            assert torch.equal(value, before.state_dict()[key].to(value.dtype)), key
        assert all(torch.equal(buffer, exact[key]) for key, buffer in found.named_buffers() if key in exact)
    assert {tensor.dtype for tensor in copy_of(model, dtype=dtype).parameters()} == {dtype}
    for (key, one), (_, other) in zip(half.named_buffers(), before.named_buffers(), strict=True):
        assert one.dtype is other.dtype, key
        assert torch.equal(one, other), key
