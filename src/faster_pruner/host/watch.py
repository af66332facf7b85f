"""Whether the other processes of a run are still there: heartbeats in the store that they met at.

A thread of each process tells that it lives, and looks at the others: at what one says that failed, and at one that
says nothing any more. What it finds interrupts the main thread, whatever that is at.
"""

from __future__ import annotations

import _thread
import json
import math
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from faster_pruner.errors import FasterPrunerError, ProcessError, one_line

# Seconds between two signs of life; without any for so long a process is gone; and so long where there is reason to
# believe it, because a connection broke or a launcher ends this process.
_BETWEEN, _SILENCE, _SHORT_SILENCE = 1.0, 15.0, 4.0
# Seconds that a process which ends waits for the others to hear of it.
_FAREWELL = 6.0


class Watch:
    """Over the other processes of a run.

    Args:
        store: that all of them have.
        rank: of this one.
        count: of all.
    """

    def __init__(self, store: dist.Store, rank: int, count: int) -> None:
        self._store, self._rank, self._count = store, rank, count
        self._others = [other for other in range(count) if other != rank]
        # by process, its latest beat, and when that was seen
        self._seen: dict[int, tuple[bytes, float]] = {other: (b"", time.monotonic()) for other in self._others}
        self._cause: ProcessError | None = None
        self._over = threading.Event()
        self._looking, self._telling = threading.Lock(), threading.Lock()
        self._told_main = False
        self._silence = _SILENCE
        self._thread = threading.Thread(target=self._run, daemon=True, name="faster-pruner watch")

    def start(self) -> None:
        """Begin to beat."""
        self._store.set(f"beat/{self._rank}", "0")
        self._thread.start()

    def stop(self) -> None:
        """Beat and look no more."""
        self._over.set()
        self._thread.join()

    def patient(self) -> None:
        """Nobody is missed from here on who is only silent: writing a large file may keep a process from its beat."""
        self._silence = math.inf

    def check(self) -> None:
        """Raise ProcessError where another process is known to be gone."""
        if self._cause is not None and self._tells():
            raise self._cause

    def _tells(self) -> bool:
        """Whether whoever asks is the first to tell the main thread, which is told once."""
        with self._telling:
            told, self._told_main = self._told_main, True
        return not told

    def reason(self, *, lost: bool = False) -> ProcessError | None:
        """Why this process was interrupted, as soon as that is known; None where all others are well.

        Args:
            lost: a connection broke, so that somebody must be gone.
        """
        self._tells()
        with self._store_lost():
            # beats until now may be those of a process that is gone since
            self._look(_SILENCE)
        began = time.monotonic()
        while self._cause is None and time.monotonic() < began + _SHORT_SILENCE + 2 * _BETWEEN:
            with self._store_lost():
                self._look(_SHORT_SILENCE)
                if not lost and all(at > began or self._says(other) for other, (_, at) in self._seen.items()):
                    break
            time.sleep(_BETWEEN / 4)
        if self._cause is None and lost:
            said = f"process {self._rank} of {self._count} lost the connection to another one; nothing was written"
            return ProcessError(said, speaker=0)
        return self._cause

    def failed(self, error: BaseException | None, *, interrupted: bool = False) -> None:
        """Tell the others that this process ends before its work is done, and wait until they know."""
        said: dict[str, Any] = {"interrupted": interrupted}
        if isinstance(error, FasterPrunerError) and not isinstance(error, ProcessError):
            said |= {"message": str(error), "exit_code": error.exit_code, "option": error.option}
        elif isinstance(error, Exception) and not isinstance(error, ProcessError):
            said |= {"message": f"{type(error).__name__}: {one_line(error)}"}
        self._say_last(json.dumps(said))

    def left(self) -> None:
        """Tell the others that this process is done; the first one waits until all are."""
        self._say_last("")

    def _say_last(self, text: str) -> None:
        """Leave a word, and wait for that of the others: the store may go with the process that it belongs to."""
        self._tells()
        end = time.monotonic() + _FAREWELL
        try:
            self._store.set(f"last/{self._rank}", text or "done")
            while time.monotonic() < end and not all(map(self._is_over, self._others)):
                time.sleep(_BETWEEN / 20)
        except RuntimeError:
            return

    def _is_over(self, other: int) -> bool:
        """Whether another process has left its last word, or leaves none any more."""
        return self._says(other) or time.monotonic() - self._seen[other][1] > _SHORT_SILENCE

    def _says(self, other: int) -> bool:
        """Whether another process has left its last word."""
        return self._store.check([f"last/{other}"])

    def _run(self) -> None:
        """Beat, and look at the others."""
        beats = 0
        while not self._over.wait(_BETWEEN):
            beats += 1
            with self._store_lost():
                self._store.set(f"beat/{self._rank}", str(beats))
                self._look(self._silence)
            if self._cause is not None:
                if self._tells():
                    _thread.interrupt_main()
                break
        while not self._over.wait(_BETWEEN):
            beats += 1
            with self._store_lost():
                self._store.set(f"beat/{self._rank}", str(beats))

    @contextmanager
    def _store_lost(self) -> Generator[None]:
        """A store that does not answer is gone with the process that it belongs to: the first one, or its launcher."""
        try:
            yield
        except RuntimeError:
            if not self._over.is_set():
                self._found(ProcessError(self._gone(0), speaker=1))

    def _look(self, silence: float) -> None:
        """See who has failed, or has said nothing for so many seconds."""
        with self._looking:
            now = time.monotonic()
            for other in self._others:
                if self._says(other):
                    said = self._store.get(f"last/{other}").decode()
                    if said != "done":
                        self._found(self._heard(other, json.loads(said)))
                    continue
                beat = self._store.get(f"beat/{other}") if self._store.check([f"beat/{other}"]) else b""
                if beat != self._seen[other][0]:
                    self._seen[other] = (beat, now)
            silent = [other for other in self._others if not self._says(other) and now - self._seen[other][1] > silence]
            if silent:
                speaker = min(rank for rank in range(self._count) if rank not in silent)
                self._found(ProcessError(self._gone(*silent), speaker=speaker))

    def _heard(self, other: int, said: dict[str, Any]) -> ProcessError | None:
        """What another process said when it failed, as an error here; None where it only followed somebody else."""
        where = f"process {other} of {self._count}"
        if said["interrupted"]:
            return ProcessError(f"{where} was interrupted; nothing was written")
        if "message" not in said:
            return None
        found = ProcessError(f"in {where}: {said['message']}", option=said.get("option", ""))
        found.exit_code = said.get("exit_code", found.exit_code)
        return found

    def _found(self, cause: ProcessError | None) -> None:
        """Keep the first cause."""
        self._cause = self._cause or cause

    def _gone(self, *ranks: int) -> str:
        """What is said of processes that are gone."""
        which = " and ".join(map(str, ranks))
        return (
            f"process {which} of {self._count} ended, or has hung for long, before the run was done, which ends it; "
            "nothing was written (a process that runs out of memory is ended so by the system)"
        )
