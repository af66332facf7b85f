"""What a command shows when its work is done: tables, nothing, or JSON on standard output."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_NARROWEST = 80


@dataclass(frozen=True)
class Voice:
    """How a command speaks.

    Attributes:
        json: figures as strict JSON on standard output, and nothing else there.
        quiet: neither progress nor figures, errors alone.
    """

    json: bool = False
    quiet: bool = False


voice: ContextVar[Voice] = ContextVar("voice", default=Voice())  # noqa: B039 (it is frozen)


def _console() -> Console:
    """Standard output; wide enough for the tables when it is not a terminal."""
    from rich.console import Console

    if voice.get().json or voice.get().quiet:
        return Console(file=io.StringIO(), width=_NARROWEST)
    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(width=_NARROWEST, markup=False, highlight=False)


@contextmanager
def printed(figures: Callable[[], Any], otherwise: str = "") -> Generator[Console]:
    """Standard output for what is shown when all work is done: where it cannot be shown, that is said, and is no error.

    Args:
        figures: the same as what is shown, JSON-ready: printed in its place where that is asked for.
        otherwise: what to say then.
    """
    from faster_pruner.results import strict_json

    try:
        console = _console()
        yield console
        console.file.flush()
        if voice.get().json:
            print(strict_json(figures()), flush=True)
    except (Exception, SystemExit) as error:  # rich ends the program when nobody reads
        if isinstance(error, SystemExit | BrokenPipeError):
            # nor may Python's own flush at the end find the pipe broken
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
            reason = "nobody reads it"
        else:
            reason = f"{type(error).__name__}: {error}"
        if otherwise or reason != "nobody reads it":
            print(
                f"faster-pruner: the figures could not be printed ({reason}); {otherwise}".rstrip("; "), file=sys.stderr
            )
