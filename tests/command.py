"""Runs the command line inside the test's process."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from faster_pruner.cli import app

_runner = CliRunner()


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    result = _runner.invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
