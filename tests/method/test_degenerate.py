"""Models and rows that leave little or nothing to estimate: untrained weights, rows that are all alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

import tiny
from badness import bad_input
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import EncodedRows
from faster_pruner.errors import OptionError
from faster_pruner.linalg.solve import Status
from faster_pruner.method import recovery
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.objectives.evaluation import predict
from faster_pruner.options import PRESETS, CalibrationOptions

DEFAULT = PRESETS["default"]
UNKNOWN, START, END = 1, 2, 3


def untrained(seed: int) -> PreTrainedModel:
    """As transformers makes it, weights of 0.02: first tokens hardly differ between rows."""
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        vocab_size=tiny.VOCABULARY,
        hidden_dropout_prob=0.0,
    )
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()


def rows_of(kind: str, seed: int, count: int = 32) -> EncodedRows:
    rows = tiny.make_rows(count, seed=seed)
    if kind == "alike":
        return replace(rows, tokens=[rows.tokens[0]] * count)
    if kind == "unknown":
        unknown = [{"input_ids": [START, *[UNKNOWN] * (length - 2), END]} for length in rows.lengths]
        return replace(rows, tokens=unknown)
    return rows


def calibrated(kind: str, seed: int, *, precision: str = "float32", count: int = 32) -> Calibrated:
    options = CalibrationOptions(precision=precision)
    return calibrate(tiny.make_subject(untrained(seed)), rows_of(kind, seed, count), DEFAULT, options)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["random", "alike", "unknown"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_untrained_model_is_pruned_and_recovered(kind: str, seed: int, precision: str) -> None:
    """Mean squared over variance of the last layer's neurons is near 1e6 here."""
    found = calibrated(kind, seed, precision=precision)
    for share in (0.5, 0.15):
        pruned = cut(found, Budget(macs=share), DEFAULT)
        assert all(torch.isfinite(value).all() for value in pruned.model.state_dict().values())
        for result in pruned.results:
            assert result.status == "converged", result
            assert result.residual_after <= result.residual_before + 1e-3


@pytest.mark.parametrize("count", [5, 32, 33, 77])
def test_rows_that_are_all_alike_are_matched_by_the_bias(count: int) -> None:
    """The last sublayers read one token per row, always the same: nothing varies, but the bias is still fitted."""
    found = calibrated("alike", 0, count=count)
    pruned = cut(found, Budget(macs=0.3), replace(DEFAULT, rounds=replace(DEFAULT.rounds, count=1)))
    last = pruned.results[-2:]
    assert all(result.units < result.units_before for result in last[1:])
    assert all(result.residual_after < 1e-5 for result in last)
    dense = predict(found.subject.model, found.subject.objective, found.data.batches).values
    kept = predict(pruned.model, found.subject.objective, found.data.batches).values
    assert abs(kept - dense).max() < 1e-4


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("kind", ["alike", "unknown"])
def test_rows_without_variety_are_pruned_by_every_preset(preset: str, kind: str) -> None:
    """Trained or not, at a mild and at a strong budget."""
    bad_input(f"rows that are {kind}, {preset}")
    method = PRESETS[preset]
    for model in (untrained(0), tiny.make_model()):
        rows = rows_of(kind, 0)
        found = calibrate(tiny.make_subject(model), rows, method, CalibrationOptions(precision="float32"))
        for share in (0.5, 0.2):
            pruned = cut(found, Budget(macs=share), method)
            assert all(torch.isfinite(value).all() for value in pruned.model.state_dict().values())
            assert any(result.units < result.units_before for result in pruned.results)


@pytest.mark.parametrize("taken", sorted(PRESETS))
@pytest.mark.parametrize("wanted", sorted(PRESETS))
def test_a_method_whose_statistics_were_not_taken_is_refused(taken: str, wanted: str) -> None:
    found = calibrate(tiny.make_subject(untrained(0)), tiny.make_rows(12), PRESETS[taken], CalibrationOptions())
    if {taken, wanted} == {"default"} or "default" not in (taken, wanted):
        # the published presets need the same
        assert cut(found, Budget(macs=0.5), PRESETS[wanted]).results
        return
    bad_input(f"calibrated for {taken}, cut with {wanted}")
    with pytest.raises(OptionError, match=f"the method '{wanted}' needs .*, which were not taken") as caught:
        cut(found, Budget(macs=0.5), PRESETS[wanted])
    assert ("mask gradients" in str(caught.value)) == (wanted != "default")


def test_an_alignment_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sublayer is recovered all the same, and its note says what was left out."""
    real = recovery.fit_alignment

    def fails(moments: Any, *, ridge: float, offset: bool) -> Any:
        fitted = real(moments, ridge=ridge, offset=offset)
        return replace(fitted, solution=replace(fitted.solution, status=Status.BREAKDOWN))

    monkeypatch.setattr(recovery, "fit_alignment", fails)
    results = cut(calibrated("random", 0), Budget(macs=0.5), DEFAULT).results
    told = [result for result in results if "alignment: breakdown" in result.note]
    assert [result.name for result in told] == [result.name for result in results[1:]]
    assert all("producers left as they were" in result.note for result in told)
    assert all(result.status == "converged" for result in told)
    assert all(result.drift_after == result.drift_before for result in told)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_one_row_is_enough_to_end_properly(preset: str) -> None:
    found = calibrate(
        tiny.make_subject(untrained(0)), tiny.make_rows(1), PRESETS[preset], CalibrationOptions(precision="float32")
    )
    pruned = cut(found, Budget(macs=0.5), PRESETS[preset])
    assert all(torch.isfinite(value).all() for value in pruned.model.state_dict().values())
