"""The real checkpoints and rows, where they are present: one quick run each; the figures live in benchmarks/."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from faster_pruner import CalibrationOptions, Data, prune

# The first of the validation rows that a model is judged by.
ROWS = 400


@pytest.mark.parametrize(
    ("task", "preset", "macs", "least"),
    [("sst2", "default", 0.5, 88.0), ("mrpc", "kwon2022", 0.6, 76.0)],
)
def test_accuracy_survives(shared: Path, task: str, preset: str, macs: float, least: float, tmp_path: Path) -> None:
    glue = shared / "data" / "glue" / task
    (tmp_path / task).mkdir()
    shutil.copy(glue / "train.jsonl.gz", tmp_path / task)
    with gzip.open(glue / "validation.jsonl.gz", "rt") as file:
        (tmp_path / task / "validation.jsonl").write_text("".join(file.readlines()[:ROWS]))
    result = prune(
        shared / "models" / f"minilm-l6-{task}",
        Data(task=task, folder=tmp_path),
        macs=macs,
        method=preset,
        calibration=CalibrationOptions(rows=256),
    )
    assert result.report.macs_kept <= macs
    assert result.report.after["validation"].rows == ROWS
    assert result.report.after["validation"].value > least
    assert result.report.latency[-1].speed_up > 1.1
