"""Usage, errors and exit codes of the command line itself."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from badness import bad_input
from command import run
from faster_pruner.api import evaluate as evaluate_module

COMMANDS = ("prune", "cut", "sweep", "vocabulary", "evaluate", "export", "bench", "demo")

WRONG: list[tuple[tuple[str, ...], str]] = [
    (("prune",), "Missing argument"),
    (("prune", "model", "--macs", "0.5"), "Missing option '--output'"),
    (("prune", "--nope"), "No such option"),
    (("prune", "a", "b", "--macs", "0.5", "-o", "x"), "unexpected extra argument"),
    (("evaluate", "model", "--max-length", "long"), "'--max-length'"),
    (("cut", "kept", "--macs", "0.5"), "'--output'"),
    (("nope",), "No such command"),
    (("--nope",), "No such option"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_wrong_usage_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    bad_input(" ".join(arguments))
    code, text, errors = run(*arguments)
    assert code == 2
    assert text == ""
    assert len(errors.splitlines()) == 1
    assert errors.startswith("faster-pruner: error: ")
    assert message in errors
    assert "--help)" in errors


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns_and_ends_with_an_example(command: str) -> None:
    for flag in ("-h", "--help"):
        code, text, _ = run(command, flag)
        assert code == 0
        assert max(map(len, text.splitlines())) <= 80
        assert f"Example: faster-pruner {command}" in text


def test_options_are_grouped() -> None:
    text = run("prune", "--help")[1]
    for heading in ("Budget", "Rows", "Method and calibration"):
        assert f"─ {heading} ─" in text


def fails(*arguments: object, **options: object) -> None:
    """A bug of ours."""
    raise RuntimeError("something\nthat nobody thought of")


def test_what_nobody_foresaw_is_one_line_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evaluate_module, "evaluate", fails)
    code, text, errors = run("evaluate", tmp_path)
    assert (code, text) == (70, "")
    assert len(errors.splitlines()) == 1
    assert "RuntimeError: something that nobody thought of" in errors
    assert "report" in errors
    code, _, errors = run("evaluate", tmp_path, "--debug")
    assert code == 70
    assert "Traceback" in errors
    assert 'raise RuntimeError("something' in errors


def test_debug_shows_where_an_expected_error_comes_from(tmp_path: Path) -> None:
    code, _, errors = run("evaluate", tmp_path / "none", "--task", "sst2", "--debug")
    assert code == 2
    assert "Traceback" in errors
    assert errors.splitlines()[-1].startswith("faster-pruner: error: ")


def test_the_version_is_quick() -> None:
    """Nothing heavy is imported for it (the best of three, since machines are busy)."""
    seconds: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "faster_pruner", "--version"], check=True, capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - started)
        assert done.stdout == "0.1.0\n"
    assert min(seconds) < 0.5
