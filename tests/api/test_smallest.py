"""How small can it be, within a drop?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from badness import bad_input
from command import run
from faster_pruner import Budget, CalibrationOptions, Data, LatencyLimit, Limit, load, prune, prune_model, sweep
from faster_pruner.api import smallest
from faster_pruner.errors import BudgetError, DataError, FasterPrunerError, OptionError
from faster_pruner.objectives.objective import Predicted

pytestmark = pytest.mark.usefixtures("quick_latency")
FEW = CalibrationOptions(rows=40)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows enough to calibrate and to judge."""
    return tiny.save_rows(tmp_path_factory.mktemp("many"), "sst2", train=400)


def rows(folder: Path) -> Data:
    return Data(task="sst2", folder=folder, judged=0)


def test_it_is_the_smallest_that_was_within(checkpoint: Path, many: Path, tmp_path: Path) -> None:
    """By bisection; with the bits of a run that asks for its MACs; what it was chosen by is in the report."""
    budget = Budget(max_drop=0.9, round_to=1)
    found = prune(checkpoint, rows(many), macs=budget, calibration=FEW, output=tmp_path / "out")
    probes = found.report.probes
    assert [probe.macs for probe in probes][:2] == [0.5, 0.25]
    assert all(probe.within == (probe.low >= -90) for probe in probes)
    chosen = min(probe.macs for probe in probes if probe.within)
    assert found.report.macs_kept <= chosen
    alone = prune(checkpoint, rows(many), macs=Budget(macs=chosen, round_to=1), calibration=FEW)
    own = load(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), alone.model.cpu().parameters(), strict=True))
    assert probes[0].metric == "accuracy"


def quality(monkeypatch: pytest.MonkeyPatch, least: float) -> list[int]:
    """A world in which models of fewer than so many parameters get every third row wrong; what judged them."""
    seen: list[int] = []
    original = smallest.predict_rows
    whole: list[int] = []

    def predict(model: nn.Module, objective: Any, given: Any) -> Predicted:
        found = original(model, objective, given)
        seen.append(len(given))
        whole.append(sum(parameter.numel() for name, parameter in model.named_parameters() if "layer." in name))
        labels = found.labels
        assert labels is not None
        right = torch.nn.functional.one_hot(torch.as_tensor(labels).long(), 2).float().numpy() * 10
        if whole[-1] < least * whole[0]:
            right[::3] = 10 - right[::3]
        return replace(found, values=right)

    monkeypatch.setattr(smallest, "predict_rows", predict)
    return seen


@pytest.mark.parametrize("least", [0.2, 0.4, 0.7])
def test_bisection_finds_the_size_where_it_breaks(
    checkpoint: Path, many: Path, monkeypatch: pytest.MonkeyPatch, least: float
) -> None:
    seen = quality(monkeypatch, least)
    found = prune(checkpoint, rows(many), macs=Budget(max_drop=0.05, round_to=1), calibration=FEW)
    probes = found.report.probes
    assert seen == [360] * (1 + len(probes))
    within = min(probe.macs for probe in probes if probe.within)
    without = max((probe.macs for probe in probes if not probe.within), default=0.0)
    assert within - without <= 1 / 32 + 1e-9
    assert found.report.macs_kept == pytest.approx(within, abs=0.05)
    for probe in probes:
        assert probe.within == (probe.low == 0)


def test_where_nothing_is_good_enough_it_says_so(
    checkpoint: Path, many: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quality(monkeypatch, 0.999)
    with pytest.raises(BudgetError, match=r"within 5 points for certain: at 97% of the MACs accuracy changes by -"):
        prune(checkpoint, rows(many), macs=Budget(max_drop=0.05), calibration=FEW, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_that_calibrate_do_not_judge(
    checkpoint: Path, many: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of few rows a third is left to judge, and the calibration set is the smaller one."""
    seen = quality(monkeypatch, 0.2)
    found = prune(checkpoint, rows(many), macs=Budget(max_drop=0.05), calibration=CalibrationOptions(rows=4000))
    assert found.report.calibration_rows == 400 - 133
    assert set(seen) == {133}
    few = tiny.save_rows(tmp_path, "sst2", train=20)
    with pytest.raises(DataError, match="has 20 rows; at least .* are needed to calibrate and to judge a drop"):
        prune(checkpoint, rows(few), macs=Budget(max_drop=0.05), calibration=FEW)


@pytest.mark.parametrize(
    "others",
    [{"macs": 0.5}, {"limits": (Limit(cost="bytes", share=0.5),)}, {"latency": LatencyLimit(share=0.5)}],
)
def test_nothing_else_is_limited(others: dict[str, Any]) -> None:
    bad_input(f"a drop with {others}")
    with pytest.raises(BudgetError, match="limit nothing else"):
        Budget(max_drop=0.01, **others)


@pytest.mark.parametrize("drop", [0, 1, -0.1, "1%", float("nan"), True])
def test_what_is_no_drop(drop: Any) -> None:
    bad_input(f"drop of {drop!r}")
    with pytest.raises(FasterPrunerError):
        Budget(max_drop=drop)


def test_where_no_rows_judge_it_is_refused_at_once(checkpoint: Path, many: Path) -> None:
    model = load(checkpoint)
    with pytest.raises(OptionError, match="found on training rows that judge"):
        prune_model(model, [{"input_ids": torch.ones(2, 4, dtype=torch.long)}], macs=Budget(max_drop=0.01))
    with pytest.raises(OptionError, match="found on training rows that judge"):
        sweep(checkpoint, rows(many), macs=[Budget(max_drop=0.01)])


def test_on_the_command_line(checkpoint: Path, many: Path, tmp_path: Path) -> None:
    options = ("--task", "sst2", "--data", many / "sst2", "--calibration-rows", "40", "--no-eval", "--max-drop", "90%")
    code, text, errors = run("prune", checkpoint, *options, "-o", tmp_path / "out")
    assert code == 0, errors
    assert "tried 50.0% of the MACs: accuracy " in text
    assert all(len(line) <= 80 for line in text.splitlines() if line.startswith("tried"))
