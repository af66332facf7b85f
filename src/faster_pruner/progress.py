"""Progress of long work, told to whoever listens. The maths and the passes only know the protocol."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """A listener for stages and steps."""

    def start(self, stage: str, total: int | None) -> None:
        """A stage begins; `total` steps are expected, None when nobody knows."""
        ...

    def step(self) -> None:
        """One step of the present stage is done."""
        ...

    def end(self, seconds: float) -> None:
        """The present stage is over."""
        ...


class Silent:
    """Says nothing."""

    def start(self, stage: str, total: int | None) -> None:
        """Nothing."""

    def step(self) -> None:
        """Nothing."""

    def end(self, seconds: float) -> None:
        """Nothing."""


class PlainLines:
    """One line when a stage starts, one when it ends, one every ten seconds between, on standard error.

    A thread of its own says that a long step is still at it.
    """

    def __init__(self) -> None:
        self._stage, self._total, self._done, self._began = "", None, 0, 0.0
        self._over = threading.Event()

    def start(self, stage: str, total: int | None) -> None:
        """Print the stage's name."""
        self._stage, self._total, self._done, self._began = stage, total, 0, time.perf_counter()
        print(f"{stage} ...", file=sys.stderr, flush=True)
        self._over.set()
        self._over = threading.Event()
        threading.Thread(target=self._beat, args=(self._over,), daemon=True).start()

    def _beat(self, over: threading.Event) -> None:
        """How far the stage is, until it is over."""
        while not over.wait(_SECONDS_BETWEEN_LINES):
            passed = time.perf_counter() - self._began
            counted = f"{self._done}{f' of {self._total}' if self._total else ''}, " if self._done else ""
            left = passed / self._done * (self._total - self._done) if self._done and self._total else 0.0
            more = f", about {left:.0f} s left" if left > 0 else ""
            print(f"{self._stage}: {counted}{passed:.0f} s{more}", file=sys.stderr, flush=True)

    def step(self) -> None:
        """Count it."""
        self._done += 1

    def end(self, seconds: float) -> None:
        """Print the stage's time."""
        self._over.set()
        print(f"{self._stage}: done in {seconds:.1f} s", file=sys.stderr, flush=True)


class StageClock:
    """Times the stages of a run and passes them on to a listener.

    Args:
        progress: the listener.
        synchronise: waits for the device, before every reading of the time.
    """

    def __init__(self, progress: Progress, *, synchronise: Callable[[], None] | None = None) -> None:
        self.progress = progress
        self._synchronise = synchronise or (lambda: None)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None, note: str = "") -> Generator[None]:
        """Time one stage; the same name twice adds up. The listener is told the note, too."""
        started = time.perf_counter()
        self.progress.start(f"{name}: {note}" if note else name, total)
        try:
            yield
        finally:
            self._synchronise()
            seconds = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            self.progress.end(seconds)


def counted(items: Iterable[T], progress: Progress) -> Iterator[T]:
    """Iterate, telling `progress` after each item."""
    for item in items:
        yield item
        progress.step()
