"""The whole method: how often things run, and what several budgets share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from faster_pruner.costs import encoder_macs
from faster_pruner.errors import BudgetError
from faster_pruner.families import FAMILIES, resolve
from faster_pruner.options import PRESETS, Budget, CalibrationOptions, customise
from faster_pruner.pipeline import calibrate_model, cut
from tiny import make_model, make_rows


class _Counted:
    """A forward hook that counts; copies of the model share it."""

    def __init__(self, name: str, calls: Counter[str]) -> None:
        self.name, self.calls = name, calls

    def __deepcopy__(self, memo: Any) -> _Counted:
        return self

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.calls.update([self.name])


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(("preset", "models"), [("default", 1), ("li2024", 2), ("kwon2022", 2)])
def test_every_layer_of_teacher_and_student_runs_once_per_budget(family: str, preset: str, models: int) -> None:
    model = make_model(family)
    sublayers = resolve(model, FAMILIES[family])
    inside = [path for s in sublayers for path in (*s.producer_paths, s.output_path)]
    calls: Counter[str] = Counter()
    for path in inside:
        model.get_submodule(path).register_forward_hook(_Counted(path, calls))
    options = CalibrationOptions(tokens_per_batch=64)
    calibrated = calibrate_model(model, FAMILIES[family], make_rows(30), PRESETS[preset], options)
    batches = len(calibrated.data.batches)
    assert {calls[path] for path in inside} == {batches}
    for share in (0.7, 0.5):
        calls.clear()
        cut(calibrated, Budget(macs=share), PRESETS[preset])
        # one student, and for the published presets one half-pruned teacher; the stored targets need no dense forward
        assert all(calls[path] <= models * batches for path in inside)
        assert max(calls.values()) == models * batches


def test_further_budgets_find_the_curves_of_the_first_and_give_what_they_would_alone() -> None:
    model, rows, method = make_model(), make_rows(30), PRESETS["default"]
    options = CalibrationOptions(tokens_per_batch=64)
    both = calibrate_model(model, FAMILIES["bert"], rows, method, options)
    cut(both, Budget(macs=0.8), method)
    curves = dict(both.items)
    second = cut(both, Budget(macs=0.5), method).model.state_dict()
    assert all(both.items[key] is curve for key, curve in curves.items())
    alone = calibrate_model(model, FAMILIES["bert"], rows, method, options)
    expected = cut(alone, Budget(macs=0.5), method).model.state_dict()
    assert all(torch.equal(second[key], value) for key, value in expected.items())


@pytest.mark.parametrize("selection", ["second-order", "fisher"])
@pytest.mark.parametrize("allocation", ["free", "bucketed", "uniform", "stock"])
def test_allocations_give_the_sizes_they_promise(selection: str, allocation: str) -> None:
    model, method = make_model(intermediate_size=48), customise(PRESETS["default"], selection=selection)
    calibrated = calibrate_model(model, FAMILIES["bert"], make_rows(30), method, CalibrationOptions())
    share = 0.7
    budget = Budget(macs=share, allocation=allocation, round_to=4)
    pruned = cut(calibrated, budget, method)
    units = {s.name: s.units for s in pruned.sublayers}
    heads = {count for name, count in units.items() if name.endswith("attention")}
    neurons = {count for name, count in units.items() if name.endswith("ffn")}
    kept = encoder_macs(resolve(pruned.model, FAMILIES["bert"]), calibrated.data.length)
    assert kept <= share * encoder_macs(calibrated.sublayers, calibrated.data.length)
    assert all(count % 4 == 0 for count in neurons)
    if allocation == "bucketed":
        assert all(count % 8 == 0 for count in neurons)
    if allocation in ("uniform", "stock"):
        assert len(heads) == len(neurons) == 1
    if allocation == "stock":
        assert heads == {3}


def test_a_budget_that_the_stock_class_cannot_reach_is_refused() -> None:
    calibrated = calibrate_model(
        make_model(), FAMILIES["bert"], make_rows(30), PRESETS["default"], CalibrationOptions()
    )
    with pytest.raises(BudgetError, match="ask for at least"):
        cut(calibrated, Budget(macs=0.2, allocation="stock"), PRESETS["default"])


@pytest.mark.parametrize("share", [0.6, 0.2])
def test_masks_say_which_dense_units_are_left(share: float) -> None:
    model, method = make_model(), replace(PRESETS["default"], recovery="none")
    calibrated = calibrate_model(model, FAMILIES["bert"], make_rows(30), method, CalibrationOptions())
    pruned = cut(calibrated, Budget(macs=share), method)
    smaller = {s.name: s for s in resolve(pruned.model, FAMILIES["bert"])}
    for s in calibrated.sublayers:
        columns = pruned.masks[s.name].repeat_interleave(s.unit_size)
        left = s.output_of(model).weight[:, columns]
        assert torch.equal(smaller[s.name].output_of(pruned.model).weight, left)
