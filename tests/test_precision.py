"""bfloat16 passes: chosen where the hardware has them, close to float32, and never leaking out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from faster_pruner.families import FAMILIES
from faster_pruner.linalg.gram import SecondMoment, reduced_products
from faster_pruner.options import PRESETS, Budget, CalibrationOptions
from faster_pruner.pipeline import calibrate_model, cut
from faster_pruner.precision import choose_precision, forward_in
from tiny import make_model, make_rows

CPU = torch.device("cpu")


def test_auto_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda: False)
    assert choose_precision("auto", CPU) == "float32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_precision("auto", CPU) == "bfloat16"
    assert choose_precision("float32", CPU) == "float32"
    assert choose_precision("auto", torch.device("mps")) == "float32"


def test_products_are_bfloat16_and_attention_is_float32() -> None:
    x, linear = torch.randn(2, 3, 8), torch.nn.Linear(8, 8)
    q = torch.randn(1, 2, 3, 4)
    with forward_in("bfloat16", CPU):
        assert linear(x).dtype == torch.bfloat16
        assert functional.scaled_dot_product_attention(q.bfloat16(), q, value=q).dtype == torch.float32
    assert linear(x).dtype == torch.float32
    with forward_in("float32", CPU):
        assert linear(x).dtype == torch.float32


def test_reduced_products_are_put_back_and_the_gram_stays_semi_definite() -> None:
    before = torch.get_float32_matmul_precision()
    x = torch.randn(600, 500) * torch.logspace(0, -2, 500)
    moment = SecondMoment(500, CPU)
    moment.add(x[:350])
    middle = moment.gram.clone()
    moment.add(x[350:])
    assert torch.get_float32_matmul_precision() == before
    exact = x.double().T @ x.double()
    scale = exact.diagonal().sqrt()
    assert ((moment.gram.double() - exact) / torch.outer(scale, scale)).abs().max() < 2e-3
    assert torch.equal(moment.gram, moment.gram.T)
    assert not torch.equal(middle, moment.gram)
    assert torch.linalg.eigvalsh(moment.gram.double()).min() > -1e-5 * exact.diagonal().mean()
    with pytest.raises(ZeroDivisionError), reduced_products():
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_cut_in_bfloat16_is_close_to_one_in_float32(family: str) -> None:
    model, rows, method = make_model(family), make_rows(60), PRESETS["default"]
    pruned = {}
    for precision in ("float32", "bfloat16"):
        calibrated = calibrate_model(model, FAMILIES[family], rows, method, CalibrationOptions(precision=precision))
        pruned[precision] = cut(calibrated, Budget(macs=0.6), method)
        assert {p.dtype for p in pruned[precision].model.parameters()} == {torch.float32}
    errors = {precision: sum(s.residual_after or 0.0 for s in found.sublayers) for precision, found in pruned.items()}
    assert errors["bfloat16"] == pytest.approx(errors["float32"], rel=0.1, abs=0.05)
