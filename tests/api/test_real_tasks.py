"""A real token classifier on its real rows, where they are present."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from faster_pruner import CalibrationOptions, Data, prune


def test_entities_survive(shared: Path, tmp_path: Path, quick_latency: None) -> None:
    """NCBI disease mentions. By seqeval's default, which is not strict, the dense model's F1 on test is 82.7."""
    rows = shared / "data" / "ner" / "ncbi_disease"
    model = shared / "models" / "minilm-l6-ncbi"
    if not rows.is_dir() or not model.is_dir():
        pytest.skip(f"the entities and their model are not at {shared}")
    shutil.copy(rows / "train.jsonl.gz", tmp_path)
    shutil.copy(rows / "test.jsonl.gz", tmp_path / "validation.jsonl.gz")
    report = prune(model, Data(folder=tmp_path), macs=0.5, calibration=CalibrationOptions(rows=256)).report
    dense = report.before["validation"]
    assert (dense.rows, dense.primary) == (940, "f1")
    assert dense.value == pytest.approx(83.79, abs=0.1)
    assert report.macs_kept <= 0.5
    assert report.after["validation"].value > 81.5
