"""Small measurements that are kept between runs, in the user's cache folder. Losing one costs its time, no more."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_KEY, _VALUE = "key", "value"


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/faster-pruner`, or `~/.cache/faster-pruner`."""
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path("~/.cache").expanduser()) / "faster-pruner"


def recall(kind: str, key: Mapping[str, Any]) -> Any | None:
    """What was kept under exactly this key; None where nothing was, or what is there cannot be read.

    Args:
        kind: folder inside the cache.
        key: everything that the value depends on, JSON-ready.
    """
    try:
        found = json.loads(_file(kind, key).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return None
    known = isinstance(found, dict) and found.get(_KEY) == json.loads(json.dumps(key))
    return found.get(_VALUE) if known else None


def keep(kind: str, key: Mapping[str, Any], value: Any) -> None:
    """Keep a JSON-ready value; where that is not possible, nothing happens."""
    with suppress(OSError, RuntimeError), _written(kind, key, value) as (partial, file):
        partial.replace(file)


def keep_first(kind: str, key: Mapping[str, Any], value: Any) -> Any | None:
    """Keep a JSON-ready value where none is: of processes that come at once, all go on with one value.

    Returns:
        What is kept now, this value or an earlier one; None where that is not possible.
    """
    try:
        with _written(kind, key, value) as (partial, file):
            try:
                file.hardlink_to(partial)
            except OSError:
                # somebody was here before, or the file system has no links
                if recall(kind, key) is None:
                    partial.replace(file)
    except (OSError, RuntimeError):
        return None
    return recall(kind, key)


@contextmanager
def _written(kind: str, key: Mapping[str, Any], value: Any) -> Generator[tuple[Path, Path]]:
    """A temporary file with a value, and the file whose place it may take. Raises OSError, RuntimeError."""
    file = _file(kind, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".partial", delete=False, encoding="utf-8") as out:
        json.dump({_KEY: key, _VALUE: value}, out, indent=1)
    partial = Path(out.name)
    try:
        yield partial, file
    finally:
        partial.unlink(missing_ok=True)


def _file(kind: str, key: Mapping[str, Any]) -> Path:
    """Where a value is kept. Raises RuntimeError where there is no home."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / kind / f"{name}.json"
