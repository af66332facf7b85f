"""What a report warns of: rows that prove less than they seem to, large losses, budgets, and what was emptied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from faster_pruner.api.prune import prune
from faster_pruner.api.warnings import of_the_result
from faster_pruner.data.tasks import Data
from faster_pruner.results import Confidence, Evaluation, LimitResult, PruneReport, SizeResult, SublayerResult

pytestmark = pytest.mark.usefixtures("quick_latency")


def warnings_on(checkpoint: Path, folder: Path, splits: dict[str, list[dict[str, Any]]]) -> list[str]:
    for split, rows in splits.items():
        tiny.write_jsonl(folder / f"{split}.jsonl", rows)
    return prune(checkpoint, Data(task="sst2", folder=folder), macs=0.6).report.warnings


def test_test_rows_in_place_of_validation_rows_are_told(checkpoint: Path, tmp_path: Path) -> None:
    rows, others = tiny.make_texts("sst2", 24, 0), tiny.make_texts("sst2", 24, 1)
    said = "there is no validation split: what is called validation here are the rows of the test split"
    assert said in warnings_on(checkpoint, tmp_path / "a", {"train": rows, "test": others})
    assert said not in warnings_on(checkpoint, tmp_path / "b", {"train": rows, "test": others, "dev": others})


def test_rows_that_are_calibrated_on_and_judged_by_are_told(checkpoint: Path, tmp_path: Path) -> None:
    rows, others = tiny.make_texts("sst2", 24, 0), tiny.make_texts("sst2", 24, 1)
    found = warnings_on(checkpoint, tmp_path / "a", {"train": rows, "validation": rows[:6] + others[:18]})
    assert any("6 of 24 validation rows (25%) are calibration rows, too" in each for each in found)
    found = warnings_on(checkpoint, tmp_path / "b", {"train": rows, "validation": others})
    assert not any("calibration rows" in each for each in found)


@pytest.mark.parametrize(("known", "told"), [(0, "100%"), (2, "60%"), (3, "")])
def test_texts_that_the_tokenizer_does_not_know_are_told(
    known: int, told: str, checkpoint: Path, tmp_path: Path
) -> None:
    rows = [{"sentence": " ".join(["w1"] * known + ["zzz"] * (5 - known)), "label": i % 2} for i in range(16)]
    found = warnings_on(checkpoint, tmp_path, {"train": rows, "validation": tiny.make_texts("sst2", 8, 1)})
    assert [each[: len(told)] for each in found if "[UNK]" in each] == ([told] if told else [])


SIZE = SizeResult(macs=1, encoder_parameters=1, parameters=1)
REPORT = PruneReport(
    model="m",
    task="t",
    preset="p",
    options={},
    mean_length=9,
    macs_asked=0.5,
    macs_kept=0.5,
    dense=SIZE,
    pruned=SIZE,
    sublayers=[],
    seconds={},
)


def judged(metric: str, before: float, after: float, change: tuple[float, float] | None) -> PruneReport:
    old, new = (Evaluation(split="v", rows=9, metrics={metric: value}, primary=metric) for value in (before, after))
    sure = {} if change is None else {"v": Confidence(metric=metric, before=(0, 0), after=(0, 0), change=change)}
    return replace(REPORT, before={"v": old}, after={"v": new}, confidence=sure)


@pytest.mark.parametrize(
    ("report", "large"),
    [
        (judged("accuracy", 90, 80, (-12, -8)), True),
        (judged("accuracy", 90, 80, None), True),
        (judged("accuracy", 90, 80, (-21, 1)), False),
        (judged("accuracy", 90, 87, (-4, -2)), False),
        (judged("accuracy", 90, 99, (8, 10)), False),
        (judged("loss", 0.3, 0.6, (0.2, 0.4)), True),
        (judged("loss", 0.6, 0.3, (-0.4, -0.2)), False),
        (judged("accuracy", 90, float("nan"), (-1, 1)), False),
    ],
)
def test_a_large_loss_is_one_beyond_chance_and_a_twentieth(report: PruneReport, large: bool) -> None:
    assert [("a large loss" in each) for each in of_the_result(report)] == [True] * large


@pytest.mark.parametrize(
    ("spent", "said"),
    [
        ([(100, 50, 50)], []),
        ([(100, 50, 45)], []),
        ([(100, 50, 60)], ["macs: 60 are left where at most 50 were asked for"]),
        ([(100, 50, 30)], ["only 60% of the budget is used"]),
        ([(100, 50, 30), (100, 80, 79)], []),
        ([(100, 1e9, 90)], []),
    ],
)
def test_budgets_that_are_overshot_or_not_used_are_told(spent: list[tuple[float, ...]], said: list[str]) -> None:
    limits = [LimitResult(cost="macs", dense=d, asked=a, pruned=p) for d, a, p in spent]
    found = of_the_result(replace(REPORT, limits=limits))
    assert len(found) == len(said)
    assert all(each.startswith(start) for each, start in zip(found, said, strict=True))


def test_emptied_sublayers_are_named() -> None:
    def report(*units: int) -> PruneReport:
        return replace(
            REPORT, sublayers=[SublayerResult(name=f"layers.{i}", units_before=4, units=n) for i, n in enumerate(units)]
        )

    assert of_the_result(report(1, 4)) == []
    assert of_the_result(report(0, 4)) == ["1 of 2 sublayers have no unit left, only their bias: layers.0"]
    assert of_the_result(report(0, 0, 0, 0, 0, 0, 1))[0].endswith("layers.3 and 2 more")
    assert "nothing is left of any sublayer" in of_the_result(report(0, 0))[0]
