"""Where a run may write, asked before any work: what is in the way or must not be replaced, and whether it fits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import cast

from faster_pruner.errors import OutputError
from faster_pruner.host.marks import is_our_file, strangers

# Free space asked for, as a multiple of what is to be written.
_SPACE_FACTOR = 1.2
# Longest name that every common file system takes, where this one does not tell.
_LONGEST_NAME = 255
# What the name of the temporary folder beside an output adds to its own: dots, a process number, eight letters.
_ROOM_FOR_STAGING = len(".") + len(".4194304-") + 8 + len(".partial")
_MOST_SHOWN = 3


def resolved(path: Path) -> Path:
    """Where a path really leads; links are followed, also to what is not there yet. Raises OutputError."""
    try:
        found = path.absolute().resolve()
        # names that are no text cannot be written into what a checkpoint consists of
        f"{path}{found}".encode()
        return found
    except (OSError, ValueError, RuntimeError) as error:
        raise OutputError(f"output {str(path)!r} is no path that can be written: {_why(error)}") from error


def check_folder(folder: Path, *, overwrite: bool | None, reads: Sequence[Path] = (), rows: Path | None = None) -> None:
    """Before any work: the folder may be written.

    Args:
        folder: it, or a link to it.
        overwrite: replace what we wrote; None where replacing is never offered.
        reads: folders that the run reads; the output is none of them, lies in none and holds none.
        rows: folder of the rows; the output may lie inside it, but neither is it nor hold it.

    Raises:
        OutputError: it is in the way, it must not be replaced, or its parent cannot be written.
    """
    target = resolved(folder)
    try:
        if target.exists() and not target.is_dir():
            raise OutputError(f"output {str(folder)!r} is a file; give a folder")
        _check_protected(folder, target)
        _check_reads(folder, target, reads, rows)
        if target.is_dir() and any(target.iterdir()):
            _check_contents(folder, target, overwrite)
        _check_parent(folder, target)
    except OSError as error:
        raise OutputError(f"output {str(folder)!r} cannot be written: {_why(error)}") from error


def _check_contents(folder: Path, target: Path, overwrite: bool | None) -> None:
    """A folder that is not empty is replaced only where that is asked for and all of it is ours."""
    if overwrite is None:
        raise OutputError(f"folder {str(folder)!r} is not empty, and statistics replace nothing; choose another")
    found = strangers(target)
    if found:
        more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
        what = ", ".join(repr(name) for name in found[:_MOST_SHOWN]) + more
        raise OutputError(
            f"output folder {str(folder)!r} is not empty and holds what this program did not write ({what}); it is "
            "never replaced: choose another, or move that away"
        )
    if not overwrite:
        raise OutputError(
            f"output folder {str(folder)!r} is not empty; choose another, or ask for it to be replaced",
            option="overwrite",
        )
    if not os.access(target, os.W_OK | os.X_OK):
        raise OutputError(f"cannot replace {str(folder)!r}: it cannot be written")


def _check_protected(folder: Path, target: Path) -> None:
    """Some folders are never written, whatever is asked for."""
    places = [("the working directory", Path.cwd())]
    with suppress(RuntimeError):  # somebody without a home
        places.append(("the home directory", Path.home()))
    for what, place in places:
        here = place.resolve()
        if target == here or target in here.parents:
            raise OutputError(f"output {str(folder)!r} is {what} or a parent of it; give a folder of its own")
    if os.path.ismount(target):
        raise OutputError(f"output {str(folder)!r} is where a disk is mounted; give a folder inside it")


def _check_reads(folder: Path, target: Path, reads: Sequence[Path], rows: Path | None) -> None:
    """What is read is not written."""
    for place in reads:
        if place.exists() and _overlap(target, place.resolve()):
            raise OutputError(
                f"output {str(folder)!r} is, holds or lies inside {str(place)!r}, which is read; give a folder apart "
                "from it"
            )
    if rows is not None and rows.exists() and (target == rows.resolve() or target in rows.resolve().parents):
        raise OutputError(f"output {str(folder)!r} is or holds {str(rows)!r}, whose rows are read; give another folder")


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def _check_parent(given: Path, target: Path) -> None:
    """The nearest parent that exists takes new folders, and names of this length."""
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(f"output {str(given)!r} cannot lie inside {str(parent)!r}, which is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {str(parent)!r}")
    longest = _longest_name(parent)
    for name in target.relative_to(parent).parts:
        most = longest - (_ROOM_FOR_STAGING if name == target.name else 0)
        if len(os.fsencode(name)) > most:
            raise OutputError(
                f"output name {name[:20]!r}... has {len(os.fsencode(name))} bytes; at most {most} can be written here"
            )


def _longest_name(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return _LONGEST_NAME


def check_space(needed: Iterable[tuple[Path, int]]) -> None:
    """Raise OutputError unless the bytes that are to be written fit; those on one disk are added up."""
    by_disk: dict[int, tuple[Path, Path, int]] = {}
    for path, size in needed:
        parent = resolved(path)
        while not parent.exists():
            parent = parent.parent
        disk = parent.stat().st_dev
        _, _, before = by_disk.get(disk, (path, parent, 0))
        by_disk[disk] = (path, parent, before + size)
    for path, parent, size in by_disk.values():
        free = shutil.disk_usage(parent).free
        if free < _SPACE_FACTOR * size:
            raise OutputError(
                f"not enough disk space for {str(path)!r}: {free / 1e6:.0f} MB free, "
                f"about {_SPACE_FACTOR * size / 1e6:.0f} MB needed"
            )


def check_apart(one: Path, other: Path) -> None:
    """Raise OutputError when two folders that a run writes are the same, or one lies inside the other."""
    if _overlap(resolved(one), resolved(other)):
        raise OutputError(
            f"{str(one)!r} and {str(other)!r} are both written: give two folders of which none lies inside the other"
        )


def check_file(file: Path, *, parent_exists: bool = False) -> None:
    """Before any work: a single file may be written.

    Args:
        file: it, or a link to it.
        parent_exists: a missing parent is not created.

    Raises:
        OutputError: it is a folder, its parent cannot be written, or its name is too long.
    """
    target = resolved(file)
    try:
        if target.is_dir():
            raise OutputError(f"output {str(file)!r} is a folder; give a file")
        if parent_exists and not target.parent.is_dir():
            raise OutputError(f"output {str(file)!r}: there is no folder {str(target.parent)!r}")
        _check_parent(file, target)
    except OSError as error:
        raise OutputError(f"output {str(file)!r} cannot be written: {_why(error)}") from error


def check_json(file: Path, entries: Set[str]) -> None:
    """Before any work: a JSON file may be written, and replaces only one with the same entries. Raises OutputError."""
    check_file(file, parent_exists=True)
    if not file.exists():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not entries <= cast("dict[str, object]", found).keys():
        raise OutputError(
            f"{str(file)!r} is there already, and holds no figures of an earlier run; it is not replaced: choose "
            "another name, or move it away"
        )


def check_exports(files: Sequence[Path]) -> None:
    """Before any work: files of an export may be written, and replace only exports of ours. Raises OutputError."""
    for file in files:
        check_file(file)
        if file.exists() and not is_our_file(file):
            raise OutputError(
                f"{str(file)!r} is there already, and no file that this program exported; it is not replaced: choose "
                "another name, or move it away"
            )


def _why(error: Exception) -> str:
    """What the system says, without a path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def public_name(place: str) -> str:
    """What a model is called where others read it: a hub id as it is, of a folder here the name alone."""
    here = Path(place)
    local = here.exists() or here.is_absolute() or place.startswith((".", "~")) or place.count("/") > 1
    return here.absolute().resolve().name or place if local or "\\" in place else place
