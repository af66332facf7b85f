"""Images and sounds: folders of them, and what a row's column holds of one.

A row holds an image or a sound as the hub's data sets do, `{"bytes": ..., "path": ...}` with one of both; rows in a
file may also just name it, relative to their own file. Nothing is opened before it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from faster_pruner.checks import shown
from faster_pruner.data.files import Row, Rows
from faster_pruner.errors import DataError

# Letters of a file's path that an error shows.
_LONGEST_NAME = 300
# Columns of the rows of a folder.
IMAGE, AUDIO, LABEL = "image", "audio", "label"
_COLUMNS = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"), IMAGE),
    **dict.fromkeys((".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".au", ".m4a"), AUDIO),
}


def rows_of_folder(folder: Path) -> list[Row]:
    """A row per image or sound below a folder, in the order of their paths; other files are no matter.

    The folder that a file lies in, directly below this one, is its class; what lies in none has no label.

    Raises:
        DataError: there are both images and sounds, or the folder cannot be read.
    """
    try:
        files = sorted(file for file in _below(folder) if file.suffix.lower() in _COLUMNS and file.is_file())
    except OSError as error:
        raise DataError(f"{str(folder)!r} cannot be read: {error.strerror}") from error
    rows: list[Row] = []
    for file in files:
        inside = file.relative_to(folder).parts
        label = {LABEL: inside[0]} if len(inside) > 1 else {}
        rows.append({_COLUMNS[file.suffix.lower()]: {"bytes": None, "path": str(file)}, **label})
    if len({next(iter(row)) for row in rows}) > 1:
        raise DataError(f"{str(folder)!r} holds images and sounds; a model takes one of them: move the others away")
    return rows


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones (some systems leave hidden copies beside every image).

    Links are followed, as subsets of large data sets are made of them; not into a folder that the path lies in already.
    """

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        here = Path(place)
        above = {parent.resolve() for parent in (here, *here.parents)}
        folders[:] = [name for name in folders if name[0] != "." and (here / name).resolve() not in above]
        yield from (here / name for name in names if name[0] != ".")


def content(rows: Rows, i: int, column: str) -> Path | bytes:
    """Where the image or sound of the i-th row lies: a file, or bytes that are a file. Raises DataError."""
    value: Any = rows[i][column]
    if isinstance(value, Mapping):
        cell = cast("Mapping[str, Any]", value)
        value = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if isinstance(value, bytes | bytearray) and value:
        return bytes(value)
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise DataError(
            f"{rows.where(i)} has nothing to open in column {column!r}: {shown(rows[i][column])}; a file's name, its "
            "bytes, or an object with bytes or path is needed"
        )
    file = Path(value) if rows.folder is None else rows.folder / value
    try:
        there = file.is_file()
    except OSError:  # no name that a file could have
        there = False
    if not there:
        name = str(file) if len(str(file)) <= _LONGEST_NAME else f"...{str(file)[-_LONGEST_NAME:]}"
        raise DataError(f"{rows.where(i)}, column {column!r}: there is no file {name!r}")
    return file
