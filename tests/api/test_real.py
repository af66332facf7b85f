"""The real checkpoints and rows, where they are present: one quick run each; the figures live in benchmarks/."""

from __future__ import annotations

from pathlib import Path

import pytest

from faster_pruner import CalibrationOptions, Data, prune


@pytest.mark.parametrize(
    ("task", "preset", "macs", "least"),
    [("sst2", "default", 0.5, 87.5), ("mrpc", "default", 0.5, 76.5), ("mrpc", "kwon2022", 0.6, 76.0)],
)
def test_accuracy_survives(shared: Path, task: str, preset: str, macs: float, least: float) -> None:
    result = prune(
        shared / "models" / f"minilm-l6-{task}",
        Data(task=task, folder=shared / "data" / "glue"),
        macs=macs,
        method=preset,
        calibration=CalibrationOptions(rows=256),
    )
    assert result.report.macs_kept <= macs
    assert result.report.after["validation"].value > least
    assert result.report.latency[-1].speed_up > 1.1
