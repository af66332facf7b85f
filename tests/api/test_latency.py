"""Budgets in time, on machines that are made up: what a forward takes there is a function of sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from command import run
from faster_pruner import Budget, CalibrationOptions, Data, LatencyLimit, Limit, load, prune, sweep
from faster_pruner.api import latency
from faster_pruner.costs.latency import TimeTable
from faster_pruner.errors import BudgetError
from faster_pruner.host import cache
from faster_pruner.results import LimitResult, PruneReport
from faster_pruner.runtimes import layers
from machine import Machine

pytestmark = pytest.mark.usefixtures("quick_latency")
FEW = CalibrationOptions(rows=60)


def rows(data: Path) -> Data:
    return Data(task="sst2", folder=data, judged=0)


def of_latency(report: PruneReport) -> LimitResult:
    (found,) = (limit for limit in report.limits if limit.cost == "latency")
    return found


@pytest.mark.parametrize("surplus", [0.0, 0.3, -0.2])
@pytest.mark.parametrize("times", [1.3, 2.0])
def test_a_speed_up_is_delivered(
    checkpoint: Path, data: Path, machine: Machine, surplus: float, times: float, tmp_path: Path
) -> None:
    """Also where whole models take more, or less, than the table of their sublayers says."""
    machine.surplus = surplus
    budget = Budget(latency=LatencyLimit(share=1 / times), round_to=1)
    result = prune(checkpoint, rows(data), macs=budget, calibration=FEW, output=tmp_path / "out")
    found, own = of_latency(result.report), machine.seconds(result.model)
    whole = machine.seconds(load(checkpoint))
    assert found.measured == pytest.approx(own)
    assert found.dense == pytest.approx(whole)
    assert own / (whole / times) == pytest.approx(1.0, abs=0.07)
    assert found.where == "1 x 128, torch"
    # what the table alone says is off by what it cannot know
    assert found.pruned == pytest.approx(own, rel=0.02 if surplus == 0 else 0.35)
    if surplus > 0:
        assert found.pruned < own
    kept = json.loads((tmp_path / "out" / "result.json").read_text())
    assert kept["options"]["budget"]["latency"]["share"] == 1 / times
    assert not any("ms were asked for" in warning for warning in result.report.warnings)


def test_a_time_is_delivered_while_the_machine_slows_down(checkpoint: Path, data: Path, machine: Machine) -> None:
    whole = machine.seconds(load(checkpoint))
    machine.slow = 0.01
    budget = Budget(latency=LatencyLimit(seconds=0.6 * whole, batch=2, tokens=8), round_to=1)
    result = prune(checkpoint, rows(data), macs=budget, calibration=FEW)
    found = of_latency(result.report)
    assert found.asked == 0.6 * whole
    assert found.measured == pytest.approx(0.6 * whole, rel=0.07)
    assert found.where == "2 x 8, torch"


def test_of_several_budgets_all_are_met(checkpoint: Path, data: Path, machine: Machine) -> None:
    """A latency that another limit meets already is not used up."""
    loose = LatencyLimit(share=0.9)
    both = Budget(macs=0.3, latency=loose, limits=(Limit(cost="parameters", share=0.95),))
    result = prune(checkpoint, rows(data), macs=both, calibration=FEW)
    found = of_latency(result.report)
    assert result.report.macs_kept <= 0.3
    assert found.measured is not None
    assert found.measured < 0.8 * found.asked
    alone = prune(checkpoint, rows(data), macs=0.3, calibration=FEW)
    assert all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), result.model.parameters(), strict=True))


def test_the_table_is_measured_once_for_a_machine(
    checkpoint: Path, data: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept, by all that it depends on; a damaged or foreign one is measured again."""

    def timed(**changes: Any) -> int:
        before = machine.timed
        prune(checkpoint, rows(data), macs=Budget(latency=LatencyLimit(share=0.6, **changes)), calibration=FEW)
        return machine.timed - before

    first = timed()
    assert timed() < 0.5 * first
    assert timed(tokens=16) > 0.9 * first
    (file, *others) = sorted((cache.cache_folder() / "latency").iterdir())
    assert len(others) == 1
    for each in (file, *others):
        each.write_text("{")
    assert timed() > 0.9 * first
    monkeypatch.setattr(latency, "environment", lambda device: {"torch": "99"})
    assert timed() > 0.9 * first


def test_where_nothing_can_be_kept_it_is_measured_again(
    checkpoint: Path, data: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    result = prune(checkpoint, rows(data), macs=Budget(latency=LatencyLimit(share=0.6)), calibration=FEW)
    assert of_latency(result.report).measured


def test_what_cannot_be_had_is_said_with_what_can(checkpoint: Path, data: Path, machine: Machine) -> None:
    with pytest.raises(BudgetError, match=r"latency of 50x at 1 x 128, torch cannot be had .* of .* ms \(it is .*x"):
        prune(checkpoint, rows(data), macs=Budget(latency=LatencyLimit(share=0.02)), calibration=FEW)
    with pytest.raises(BudgetError, match="as it is"):
        prune(checkpoint, rows(data), macs=Budget(latency=LatencyLimit(seconds=100)), calibration=FEW)


def test_a_request_that_is_missed_is_said(
    checkpoint: Path, data: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads alone can go, and the same number everywhere: the closest model is kept, and is not the request."""
    budget = Budget(latency=LatencyLimit(share=0.8), allocation="uniform", round_to=10**6)
    result = prune(checkpoint, rows(data), macs=budget, calibration=FEW)
    found = of_latency(result.report)
    assert found.measured is not None
    assert abs(found.measured / found.asked - 1) > 0.07
    assert any("ms were asked for at 1 x 128, torch; the closest" in warning for warning in result.report.warnings)


def test_a_family_of_speed_ups(checkpoint: Path, data: Path, machine: Machine) -> None:
    found = sweep(
        checkpoint,
        rows(data),
        macs=[Budget(latency=LatencyLimit(share=1 / times), round_to=1) for times in (1.2, 1.6, 2.0)],
        calibration=FEW,
    )
    assert [point.name for point in found.points] == ["speed-up-1.2", "speed-up-1.6", "speed-up-2"]
    for point, times in zip(found.points, (1.2, 1.6, 2.0), strict=True):
        assert point.report is not None
        limit = of_latency(point.report)
        assert limit.measured is not None
        assert limit.dense / limit.measured == pytest.approx(times, rel=0.07)


def test_the_table_adds_up(checkpoint: Path, machine: Machine) -> None:
    """On a machine without surplus it is exact at the sizes that were timed, for whole models of any of them."""
    from faster_pruner.checkpoint.sizes import sublayers_of
    from faster_pruner.model.network import Network

    model = load(checkpoint)
    network = Network(model, sublayers_of(model))
    bench = layers.Bench(network, LatencyLimit(share=0.5), {s.name: 1 for s in network.sublayers})
    table = bench.table()
    assert isinstance(table, TimeTable)
    assert table.total(network.sublayers) == pytest.approx(machine.seconds(model))

    def checked(keeps: Sequence[int]) -> None:
        small = network.thin().shrunk(
            {s.name: torch.arange(keep) for s, keep in zip(network.sublayers, keeps, strict=True)}
        )
        assert table.total(small.sublayers) == pytest.approx(machine.seconds(small.model), rel=0.02)

    checked([0 for _ in network.sublayers])
    checked([s.units if i % 2 else 0 for i, s in enumerate(network.sublayers)])
    checked([s.units // 2 for s in network.sublayers])
    # the dense model has not been touched
    assert [s.units for s in network.sublayers] == [s.units for s in sublayers_of(model)]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load(checkpoint).parameters(), strict=True))


def test_on_the_command_line(checkpoint: Path, data: Path, machine: Machine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--data", str(data / "sst2"), "--calibration-rows", "60", "--no-eval", "--round-to", "1"]
    arguments = ["prune", str(checkpoint), "--task", "sst2", "--speedup", "1.5x", "--batch", "4", "--seq", "16"]
    code, text, _ = run(*arguments, *options, "-o", out)
    assert code == 0, text
    assert "latency, 4 x 16, torch: " in text
    assert " asked, " in text
    assert (out / "model.safetensors").is_file()
