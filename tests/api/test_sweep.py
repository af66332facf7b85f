"""One calibration, a family of budgets."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from badness import bad_input
from command import run
from faster_pruner import Budget, CalibrationOptions, Data, Limit, load, prune, sweep
from faster_pruner.api import outcome
from faster_pruner.api.sweep import name_of
from faster_pruner.costs.amounts import several
from faster_pruner.errors import BudgetError, FasterPrunerError, OptionError

pytestmark = pytest.mark.usefixtures("quick_latency")
FEW = CalibrationOptions(rows=60)


def rows(data: Path) -> Data:
    return Data(task="sst2", folder=data)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_each_point_is_what_a_run_of_its_own_gives(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits and figures; the dense model is evaluated once for all of them."""
    asked: list[object] = []
    original = outcome.predict_rows
    monkeypatch.setattr(outcome, "predict_rows", lambda model, *rest: (asked.append(model), original(model, *rest))[1])
    by_bytes = Budget(limits=(Limit(cost="bytes", share=0.8),), allocation="uniform")
    found = sweep(checkpoint, rows(data), macs=[0.7, by_bytes, 0.2], output=tmp_path / "family", calibration=FEW)
    assert [point.name for point in found.points] == ["macs-0.7", "bytes-0.8", "macs-0.2"]
    assert len(asked) == 4
    for point, budget in zip(found.points, (0.7, by_bytes, 0.2), strict=True):
        alone = prune(checkpoint, rows(data), macs=budget, output=tmp_path / "alone" / point.name, calibration=FEW)
        assert point.folder == tmp_path / "family" / point.name
        assert weights(point.folder) == weights(tmp_path / "alone" / point.name)
        assert point.report is not None
        assert point.report.after == alone.report.after
        assert point.report.before == alone.report.before
        assert point.report.confidence == alone.report.confidence
        assert point.report.verified
        # what it took itself: the calibration is told by none
        assert "structure" not in point.report.seconds
        assert load(point.folder).num_parameters() == point.report.pruned.parameters


def test_a_budget_that_cannot_be_met_costs_no_more_than_itself(checkpoint: Path, data: Path) -> None:
    tight = Budget(limits=(Limit(cost="bytes", amount=500.0),))
    bad_input("a sweep with a budget that cannot be met")
    found = sweep(checkpoint, rows(data), macs=[tight, 0.5], calibration=FEW)
    assert "what cannot be pruned takes" in found.points[0].failed
    assert [report.macs_asked for report in found.reports] == [0.5]
    bad_input("a sweep of budgets that cannot be met")
    with pytest.raises(BudgetError, match="none of these budgets can be met"):
        sweep(checkpoint, rows(data), macs=[tight], calibration=FEW)
    with pytest.raises(OptionError, match="a sweep needs budgets"):
        sweep(checkpoint, rows(data), macs=[])


def test_on_the_command_line(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"sweep.{name}" for name in ("json", "csv", "png", "svg")}
    common = ("sweep", checkpoint, "--task", "sst2", "--data", data, "--calibration-rows", "60")
    code, text, _ = run(
        *common, "--macs", "0.8:0.4:0.2", "--json-file", files["json"], "--csv", files["csv"], "--plot", files["png"]
    )
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80
    names = ["macs-0.8", "macs-0.6", "macs-0.4"]
    assert all(name in text for name in ["dense", *names])
    points = json.loads(files["json"].read_text())["points"]
    assert [point["budget"] for point in points] == names
    assert all(point["report"]["after"]["validation"]["metrics"]["accuracy"] >= 0 for point in points)
    table = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert [line["budget"] for line in table] == ["dense", *names]
    for line, point in zip(table[1:], points, strict=True):
        assert float(line["macs_kept"]) == point["macs_kept"] <= float(line["budget"].removeprefix("macs-"))
        assert float(line["validation_accuracy"]) == point["validation_accuracy"]
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    # without an evaluation, what is drawn is the speed
    code, text, _ = run(*common, "--size", "90%,80%", "--no-eval", "--plot", files["svg"])
    assert code == 0
    assert "accuracy" not in text
    assert "measured speed-up" in files["svg"].read_text() or "<svg" in files["svg"].read_text()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_nothing_is_replaced_unasked(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    common = ("sweep", checkpoint, "--task", "sst2", "--data", data, "--macs", "0.5", "--calibration-rows", "60")
    (tmp_path / "figures.csv").write_text("somebody's")
    (tmp_path / "figures.json").write_text("{}")
    for option, file in (("--csv", "figures.csv"), ("--json-file", "figures.json")):
        bad_input(f"{option} of a stranger's file")
        code, _, errors = run(*common, option, tmp_path / file)
        assert code == 2
        assert "is there already" in errors
    assert (tmp_path / "figures.csv").read_text() == "somebody's"
    code, _, _ = run(*common, "-o", tmp_path / "family")
    assert code == 0
    bad_input("a sweep into a folder that is there")
    code, _, errors = run(*common, "-o", tmp_path / "family")
    assert code == 2
    assert "overwrite" in errors


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.9:0.1:0.2", ["0.9", "0.7", "0.5", "0.3", "0.1"]),
        ("0.1:0.3:0.1", ["0.1", "0.2", "0.3"]),
        ("90%:70%:10%", ["0.9", "0.8", "0.7"]),
        ("0.9:0.5:-0.2", ["0.9", "0.7", "0.5"]),
        ("0.5", ["0.5"]),
        ("40MB, 30MB", ["40MB", "30MB"]),
        ("40MB:20MB:10mb", ["40MB", "30MB", "20MB"]),
        ("12M:6M:2M", ["12M", "10M", "8M", "6M"]),
    ],
)
def test_ranges(text: str, wanted: list[str]) -> None:
    assert several(text, option="--macs") == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1.5:3:0.5", ["1.5", "2", "2.5", "3"]),
        ("3x:2x:0.5x", ["3x", "2.5x", "2x"]),
        ("20ms:5ms:5ms", ["20ms", "15ms", "10ms", "5ms"]),
    ],
)
def test_ranges_of_times(text: str, wanted: list[str]) -> None:
    assert several(text, option="--speedup", example="1.5:3:0.5", shares=False) == wanted


@pytest.mark.parametrize("text", ["3:2", "20ms:5:5ms", "20ms:10us:5ms", "0:2:1", "1:100:0", "1:2000:1"])
def test_what_is_no_range_of_times(text: str) -> None:
    bad_input(f"range {text!r}")
    with pytest.raises(FasterPrunerError, match="for instance 20ms:5ms:5ms"):
        several(text, option="--latency", example="20ms:5ms:5ms", shares=False)


@pytest.mark.parametrize(
    "text", ["", ",", "0.9:0.1", "0.9:0.1:0", "a:b:c", "2:1:0.1", "0.5:0:0.1", "nan:0.1:0.1", "::", "-0.9:0.1:0.1"]
)
def test_what_is_no_range(text: str) -> None:
    bad_input(f"range {text!r}")
    with pytest.raises(FasterPrunerError, match="0.9:0.1:0.1"):
        several(text, option="--macs")


def test_names_are_those_of_folders() -> None:
    both = Budget(macs=0.5, limits=(Limit(cost="parameters", amount=12e6),))
    assert name_of(both) == "macs-0.5-parameters-1.2e+07"
    for bad in (("--macs", "0.5", "--size", "40MB"), ()):
        bad_input(f"sweep {' '.join(bad)}")
        code, _, errors = run("sweep", "model", *bad)
        assert code == 2
        assert "give one kind of budgets" in errors
    bad_input("a plot as a text file")
    code, _, errors = run("sweep", "model", "--macs", "0.5", "--plot", "x.txt")
    assert code == 2
    assert "must end in .png" in errors


def test_the_commands_need_no_matplotlib_to_start() -> None:
    code = "import sys, faster_pruner.cli.app, faster_pruner.report; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
