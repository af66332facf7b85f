"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
# The tests' models are tiny: threads would only wait for each other (five times as long, on two busy cores).
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import accelerator
import badness
import machine as machines
import tiny

SHARED = Path(os.environ.get("FASTER_PRUNER_SHARED", Path(__file__).parents[2] / "shared"))


# What is not told a device runs on the tests' own (`make test-elsewhere`).
ELSEWHERE = os.environ.get("FASTER_PRUNER_TESTS_ELSEWHERE") == "1"
# Of few tests that take long: begun last, they would leave all cores but one idle.
LONGEST = ("test_real.py", "test_real_tasks.py", "test_documented.py", "test_demo.py", "test_wheel.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first; elsewhere, those that compare with the CPU's bits are left out."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    if ELSEWHERE:
        for item in items:
            if item.get_closest_marker("on_the_cpu"):
                item.add_marker(pytest.mark.skip(reason="compares with another process, or to the last bit"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many bad inputs were tried."""
    different = len(set(badness.tried))
    terminalreporter.write_line(f"bad inputs tried: {len(badness.tried)}, {different} of them different")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of several says which bad inputs it tried."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tried"] = badness.tried


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Gather them from one of several processes."""
    badness.tried += getattr(node, "workeroutput", {}).get("tried", [])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the caches of the datasets library and of this one out of the user's home."""
    import datasets

    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")


@pytest.fixture(scope="session", autouse=True)
def _elsewhere() -> Iterator[None]:
    """The tests' own device is there from the beginning; where the environment says so, it is the usual one."""
    if not accelerator.why_not():
        accelerator.start()
    if not ELSEWHERE:
        yield
        return
    from faster_pruner.host import devices

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "usual_device", lambda: torch.device(accelerator.NAME))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting() -> Iterator[None]:
    """Runtimes are run here, not compared: the cores need not come to rest in between."""
    from faster_pruner.api import export
    from faster_pruner.runtimes import comparison

    with pytest.MonkeyPatch.context() as patch:
        for module in (export, comparison):
            patch.setattr(module, "SECONDS_BETWEEN_RUNTIMES", 0.0)
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny two-class BERT with a tokenizer, saved."""
    return tiny.save_checkpoint(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated SST-2-like rows: <folder>/sst2/{train,validation}.jsonl."""
    return tiny.save_rows(tmp_path_factory.mktemp("data"), "sst2")


@pytest.fixture
def shared() -> Path:
    """Real models and rows; tests that need them are skipped elsewhere.

    On one core as all others: two threads took three times the processor time, as they wait for cores that another
    process of tests has.
    """
    if not (SHARED / "models").is_dir():
        pytest.skip(f"the real models and GLUE rows are not at {SHARED} (set FASTER_PRUNER_SHARED)")
    return SHARED


@pytest.fixture
def quick_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs per shape are enough to test the plumbing."""
    from faster_pruner.runtimes import timing

    monkeypatch.setattr(timing, "_FEWEST_PAIRS", 2)
    monkeypatch.setattr(timing, "_SECONDS_PER_SHAPE", 0.0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> machines.Machine:
    """A machine that is made up, to change; nothing is known of it yet."""
    from faster_pruner.runtimes import layers

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = machines.Machine()
    monkeypatch.setattr(layers, "time_in_turn", own.in_turn)
    # what is called is a function that knows its model
    monkeypatch.setattr(layers, "runner", lambda model, runtime, file: partial(lambda model, inputs: None, model))
    return own


@pytest.fixture
def own_temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary folders go where they can be counted: none is left behind."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []
