"""One file that is written beside and renamed: it is there as a whole, or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from faster_pruner.errors import OutputError
from faster_pruner.host.folders import finished
from faster_pruner.host.places import resolved


@contextmanager
def beside(file: Path) -> Generator[Path]:
    """A temporary file beside `file` that takes its place when the block ends well, with whatever lies next to it.

    A link is followed, and stays.

    Raises:
        OutputError: the file cannot be written.
    """
    target = resolved(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=target.parent) as folder:
            staging = Path(folder) / target.name
            yield staging
            for extra in Path(folder).iterdir():
                if extra != staging:
                    extra.replace(target.parent / extra.name)
            staging.replace(target)
            finished.append(file)
    except OSError as error:
        raise OutputError(f"cannot write {str(file)!r}: {error.strerror or error}") from error
