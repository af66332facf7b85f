"""The application: its commands, and how errors and interruptions end it."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from faster_pruner.cli import commands, pages
from faster_pruner.cli.config import reproducible
from faster_pruner.cli.expanding import expanded, with_more
from faster_pruner.cli.printing import Voice, voice
from faster_pruner.errors import FasterPrunerError
from faster_pruner.host.folders import finished, unfinished
from faster_pruner.host.launch import only_one, several, speaks

_USAGE, _UNFORESEEN, _INTERRUPTED = 2, 70, 130

# What every command has.
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and nothing else on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _say(text: str, error: BaseException | None = None) -> None:
    """One line on standard error, of the one process that speaks where several share a run."""
    if not speaks(error):
        return
    print(f"faster-pruner: {' '.join(text.split())}", file=sys.stderr)


class _OneLine(TyperGroup):
    """Wrong usage is one line, too."""

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> NoReturn:
        """Run a command line and exit."""
        del standalone_mode
        try:
            code = super().main(*args, standalone_mode=False, **kwargs)
        except (typer.Abort, KeyboardInterrupt):
            _interrupted()
        except Exception as error:
            # click's own class, which typer carries under another name in some versions
            if not hasattr(error, "format_message"):
                raise
            _wrong_usage(error)
        sys.exit(code if isinstance(code, int) else 0)


def _wrong_usage(error: Any) -> NoReturn:
    """Say what is wrong with a command line, and exit."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        command = context.command_path if context is not None else "faster-pruner"
        _say(f"error: {error.format_message().rstrip('.')} (see {command} --help)")
    sys.exit(_USAGE)


app = typer.Typer(
    name="faster-pruner",
    help="Make a fine-tuned transformer physically smaller and faster, without retraining.",
    cls=_OneLine,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _interrupted() -> NoReturn:
    """Say what is there, and exit."""
    written, going_on = (", ".join(map(str, places)) for places in (finished, unfinished))
    _say(
        f"interrupted; {f'written before that, and complete: {written}' if written else 'nothing was written'}"
        + (f"; the same command goes on where it was ({going_on})" if going_on else "")
    )
    sys.exit(_INTERRUPTED)


def _one_line_errors(command: Callable[..., None], name: str) -> Callable[..., None]:
    """Turn exceptions and Ctrl-C into one line on standard error and an exit code; --debug shows the traceback."""

    def wrapped(*, json: bool, quiet: bool, debug: bool, **given: object) -> None:
        shown = speaks()
        voice.set(Voice(json=json and shown, quiet=(quiet and not json) or not shown))
        finished.clear()
        unfinished.clear()
        try:
            if name != commands.prune.__name__:
                only_one(name)
            command(**given)
        except KeyboardInterrupt:
            _interrupted()
        except typer.Exit:
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            if isinstance(error, FasterPrunerError):
                _say(f"error: {_with_flag(error)}", error)
                sys.exit(error.exit_code)
            _say(
                f"unforeseen error: {type(error).__name__}: {str(error)[:300]}; this is a bug, please report it "
                "with what --debug shows"
            )
            sys.exit(_UNFORESEEN)

    return with_more(wrapped, command, json=(Json, False), quiet=(Quiet, False), debug=(Debug, False))


def _with_flag(error: FasterPrunerError) -> str:
    """The message with the flag of the setting that would help."""
    return f"{error} (--{error.option.replace('_', '-')})" if error.option else str(error)


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


# Their options can be read from a file, and are kept in one.
_REPRODUCIBLE = (commands.prune, commands.cut, commands.sweep, commands.vocabulary)

for _command, _example in (
    (commands.prune, "faster-pruner prune my-bert --task sst2 --macs 0.5 -o smaller"),
    (commands.plan, "faster-pruner plan my-bert --task sst2 --macs 0.5"),
    (commands.cut, "faster-pruner cut kept --macs 0.3 -o third"),
    (commands.sweep, "faster-pruner sweep my-bert --task sst2 --macs 0.9:0.1:0.1"),
    (commands.vocabulary, "faster-pruner vocabulary my-model --corpus texts.txt -o smaller"),
    (commands.inspect, "faster-pruner inspect my-model"),
    (commands.evaluate, "faster-pruner evaluate smaller --task sst2"),
    (commands.export, "faster-pruner export smaller --int8 -o smaller.onnx"),
    (commands.bench, "faster-pruner bench my-bert smaller --batch 1,32 --seq 128"),
    (pages.report, "faster-pruner report smaller"),
    (commands.demo, "faster-pruner demo"),
):
    _flat = expanded(_command)
    _whole = reproducible(_flat) if _command in _REPRODUCIBLE else _flat
    app.command(name=_command.__name__, epilog=f"Example: {_example}")(_one_line_errors(_whole, _command.__name__))


def _terminate(signal_number: int, frame: object) -> None:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: temporary folders go, what was there stays."""
    del signal_number, frame
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the `faster-pruner` command."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _terminate)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a terminal that lacks a character shows another one; it does not end a run
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        app()
    except SystemExit as ending:
        if ending.code and several():
            _leave(ending.code if isinstance(ending.code, int) else _UNFORESEEN)
        raise


def _leave(code: int) -> NoReturn:
    """Exit, even where torch would wait for another process of the run that has hung."""
    # temporary folders go
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
