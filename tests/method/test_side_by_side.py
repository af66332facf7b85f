"""Sublayers side by side: eliminations at once, and one size for all of a kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from faster_pruner.costs.budget import Budget
from faster_pruner.errors import BudgetError
from faster_pruner.host.devices import on_all_cores
from faster_pruner.method import selecting
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated, Subject
from faster_pruner.model.shrink import shrink
from faster_pruner.model.spec import parts_by_name, resolve, with_parts
from faster_pruner.model.table import FAMILIES
from faster_pruner.objectives.registry import objective_of
from faster_pruner.options import PRESETS, CalibrationOptions, SecondOrder

# Four float64 matrices of the widest sublayer of the tiny model, 40 columns.
EACH = 4 * 8 * 40 * 40


def calibrated(sizes: dict[str, int]) -> Calibrated:
    """The default method's statistics of a tiny model, some of whose sublayers may be smaller than the others."""
    model = tiny.make_model("bert")
    dense = resolve(model, FAMILIES["bert"])
    parts = {
        name: shrink(model, own, torch.arange(sizes.get(name, own.units))) for name, own in parts_by_name(dense).items()
    }
    subject = Subject(model, with_parts(dense, parts), objective_of(model))
    return calibrate(subject, tiny.make_rows(24), PRESETS["default"], CalibrationOptions(precision="float32"))


@pytest.fixture(scope="module")
def even() -> Calibrated:
    return calibrated({})


@pytest.mark.parametrize(
    ("free", "at_once"), [(0, 0), (EACH, 0), (2 * EACH, 1), (6 * EACH - 1, 2), (6 * EACH, 3), (200 * EACH, 100)]
)
def test_free_memory_bounds_the_eliminations_at_once(
    free: int, at_once: int, even: Calibrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is free is for the matrices of all of them, and the curves are the same however many run at once."""
    expected = selecting.loss_curves(even, SecondOrder())
    asked: list[int] = []

    def watched(work: Callable[[Any], Any], items: Sequence[Any], device: torch.device, *, most: int) -> list[Any]:
        asked.append(most)
        return on_all_cores(work, items, device, most=most)

    monkeypatch.setattr(selecting, "free_memory", lambda device: free)
    monkeypatch.setattr(selecting, "on_all_cores", watched)
    curves = selecting.loss_curves(replace(even, curves={}), SecondOrder())
    assert asked == [at_once]
    for name, curve in expected.items():
        assert torch.equal(curves[name].order, curve.order)
        assert torch.allclose(curves[name].loss, curve.loss)


def test_one_size_for_all_needs_sublayers_that_start_with_one() -> None:
    uneven = calibrated({"layers.1.ffn": 32})
    with pytest.raises(BudgetError, match=r"the ffn sublayers have \[32, 40\] units: the same size everywhere needs"):
        cut(uneven, Budget(macs=0.5, allocation="uniform"), PRESETS["default"])
