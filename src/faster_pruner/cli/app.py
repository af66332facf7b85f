"""The application: its commands, and how errors and interruptions end it."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from faster_pruner.cli import commands
from faster_pruner.cli.groups import expanded
from faster_pruner.errors import FasterPrunerError
from faster_pruner.host.folders import finished

_INTERRUPTED = 130

app = typer.Typer(
    name="faster-pruner",
    help="Make a fine-tuned transformer physically smaller and faster, without retraining.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn our exceptions and Ctrl-C into one line on standard error and an exit code."""

    @functools.wraps(command)
    def wrapped(**given: object) -> None:
        finished.clear()
        try:
            command(**given)
        except FasterPrunerError as error:
            print(f"faster-pruner: error: {_with_flag(error)}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            written = ", ".join(map(str, finished))
            there = f"written before that, and complete: {written}" if written else "nothing was written"
            print(f"faster-pruner: interrupted; {there}", file=sys.stderr)
            raise typer.Exit(_INTERRUPTED) from error

    return wrapped


def _with_flag(error: FasterPrunerError) -> str:
    """The message on one line, with the flag of the setting that would help."""
    line = " ".join(str(error).split())
    return f"{line} (--{error.option.replace('_', '-')})" if error.option else line


def _version(show: bool) -> None:
    if show:
        print(version("faster-pruner"))
        raise typer.Exit


@app.callback()
def _root(  # pyright: ignore[reportUnusedFunction]
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make a fine-tuned transformer physically smaller and faster, without retraining."""


for _command in (
    commands.prune,
    commands.cut,
    commands.evaluate,
    commands.export,
    commands.bench,
    commands.demo,
):
    _wrapped = _one_line_errors(expanded(_command))
    app.command(name=_command.__name__)(_wrapped)


def _terminate(signal_number: int, frame: object) -> None:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: temporary folders go, what was there stays."""
    del signal_number, frame
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the `faster-pruner` command."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _terminate)
    app()
