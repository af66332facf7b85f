"""The heap of the C library: what is freed goes back to the system at once, or is kept for the next one who asks."""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

# glibc's mallopt: what is larger than this has a mapping of its own, which ends when it is freed.
_MMAP_THRESHOLD = -3
# By default glibc raises the threshold to what was freed last, up to the second number; then hundreds of megabytes of
# activations stay with a process that needs them no more.
_AT_ONCE, _USUAL = 128 << 10, 32 << 20


@contextmanager
def freed_at_once() -> Generator[None]:
    """Large tensors that are freed inside are the system's again at once, where the library is glibc."""
    library = _glibc()
    if library is not None:
        library.mallopt(_MMAP_THRESHOLD, _AT_ONCE)
    try:
        yield
    finally:
        if library is not None:
            library.mallopt(_MMAP_THRESHOLD, _USUAL)


def give_back() -> None:
    """What is free in the heap is the system's again, also in the gaps between what is not; with glibc."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> Any | None:
    """The C library of this process, where it is glibc."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such handle
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
