"""Temporary folders: gone when they are no longer needed; those of processes that were killed, when the next is made.

A folder's name carries the number of its process, which holds a lock on it where the system has such locks: a process
in another container looks dead from here.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from faster_pruner.host.places import check_space

_PREFIX = "faster-pruner-"
_OURS = re.compile(rf"{_PREFIX}(?P<process>\d+)-[^-]+")


@contextmanager
def temporary_folder(*, size: int = 0) -> Generator[Path]:
    """A folder that vanishes when the block ends.

    Args:
        size: bytes that it must have room for.

    Raises:
        OutputError: there is no such room.
    """
    folder, remove = make_temporary(size=size)
    try:
        yield folder
    finally:
        remove()


def make_temporary(*, size: int = 0) -> tuple[Path, Callable[[], None]]:
    """A folder, and what removes it. Raises OutputError as `temporary_folder` does."""
    parent = Path(tempfile.gettempdir())
    remove_abandoned(parent, f"{_PREFIX}*", _OURS)
    check_space([(parent, size)] if size else [])
    # letters and digits follow, and no hyphen
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
    return folder, partial(_remove, folder, _lock(folder))


def _remove(folder: Path, handle: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if handle is not None:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold a lock on a folder, where the system has such locks: it tells others that its process is alive."""
    handle = _lock(folder)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """An open, locked handle of a folder; None where it is locked by another process, or cannot be."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def remove_abandoned(parent: Path, pattern: str, name: re.Pattern[str]) -> None:
    """Remove folders whose process is dead: neither alive here nor holding its lock elsewhere.

    Args:
        parent: in which they lie.
        pattern: of their names, with wildcards.
        name: the same exactly, with the number of the `process`.
    """
    for place in parent.glob(pattern):
        match = name.fullmatch(place.name)
        if match is None or _alive(int(match["process"])):
            continue
        handle = _lock(place)
        if handle is not None:
            _remove(place, handle)


def _alive(process: int) -> bool:
    """Whether a process of that number exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
