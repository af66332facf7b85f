"""Progress on a terminal (rich) and elsewhere (plain lines)."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars

from faster_pruner.progress import PlainLines, Progress


class Bars:
    """One bar per stage on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: RichBars | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def start(self, stage: str, total: int | None) -> None:
        """Show a bar, or a spinner when the number of steps is unknown."""
        count = (BarColumn(bar_width=24), MofNCompleteColumn()) if total is not None else ()
        left = (TextColumn("[dim]left[/dim]"), TimeRemainingColumn(compact=True)) if total is not None else ()
        self._bars = RichBars(
            SpinnerColumn(),
            TextColumn("{task.description:<28}"),
            *count,
            TimeElapsedColumn(),
            *left,
            console=self._console,
            transient=True,
        )
        self._stage = stage
        self._bars.start()
        self._task = self._bars.add_task(stage, total=total)

    def step(self) -> None:
        """Advance the bar."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task)

    def end(self, seconds: float) -> None:
        """Replace the bar by one line."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._console.print(f"[green]✓[/green] {self._stage:<28} [dim]{seconds:6.1f} s[/dim]")


def make_progress(console: Console | None = None) -> Progress:
    """Bars on a terminal, plain lines elsewhere; both on standard error."""
    console = console or Console(stderr=True)
    return Bars(console) if console.is_terminal else PlainLines()
