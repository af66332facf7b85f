"""The working folder of a run that another one goes on with where it was interrupted: hidden, beside the output.

It says what it belongs to, and is one process's at a time. Whatever is in it is there as a whole or not at all: it is
written beside and renamed. It goes when the run has ended well.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError

from faster_pruner.errors import OutputError
from faster_pruner.host.folders import unfinished
from faster_pruner.host.places import resolved

# What the folder belongs to; and what is in a sealed folder inside it.
_RUN, _SEAL = "run.json", "seal.json"
_FORMAT, _PARTIAL = 1, ".partial"
# Characters of a value that a message shows.
_LONGEST_SHOWN = 40


class Damaged(Exception):
    """What is there is not what was written."""


@dataclass
class WorkingFolder:
    """The folder of this run, as long as `working` holds it.

    Attributes:
        path: of it.
        failed: why nothing more can be kept in it; empty as long as it can.
    """

    path: Path
    failed: str = ""

    def claim(self, belongs: Mapping[str, Any]) -> None:
        """Say what the folder belongs to, or see that it does.

        Args:
            belongs: everything that what is kept depends on, by name.

        Raises:
            OutputError: it belongs to another run.
        """
        wanted: dict[str, Any] = json.loads(json.dumps({"format": _FORMAT, **belongs}))
        file = self.path / _RUN
        if set(self.inside()) <= {_RUN}:
            # nothing was kept by whoever was here
            self.keep(_RUN, lambda place: place.write_text(json.dumps(wanted, indent=2) + "\n"))
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise OutputError(f"{str(self.path)!r}: {_RUN} is damaged; remove that folder to begin anew")
        earlier = cast("dict[str, Any]", found)
        other = [_difference(key, earlier.get(key), wanted.get(key)) for key in {**wanted, **earlier}]
        told = ", ".join(filter(None, other))
        if told:
            raise OutputError(
                f"{str(self.path)!r} was left by an interrupted run that differs from this one ({told}): repeat that "
                "one, choose another output, or remove that folder to begin anew",
                option="resume",
            )

    def has(self, name: str) -> bool:
        """Whether a file or folder is there."""
        return (self.path / name).exists()

    def keep(self, name: str, write: Callable[[Path], object]) -> None:
        """Keep a file or folder under a path inside this one; what was there before is replaced.

        Where that cannot be done, the run goes on without, and nothing more is kept.

        Args:
            name: the path.
            write: makes it, at another place.
        """
        if self.failed:
            return
        target = self.path / name
        beside = target.with_name(target.name + _PARTIAL)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(beside)
            _sync(beside)
            if target.is_dir():
                _remove(target)
            beside.replace(target)
            _sync(target.parent)
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
            self.failed = f"cannot write {str(target)!r}: {reason}"
            return
        finally:
            with suppress(OSError):
                _remove(beside)
        if name != _RUN and self.path not in unfinished:
            unfinished.append(self.path)

    def keep_sealed(self, name: str, write: Callable[[Path], Mapping[str, Any]]) -> None:
        """Keep a folder of files with their SHA-256.

        Args:
            name: of the folder.
            write: puts files into an empty folder, and returns what else is to be kept, JSON-ready.
        """

        def sealed(place: Path) -> None:
            place.mkdir()
            about = dict(write(place))
            files = {file.name: digest_of(file) for file in sorted(place.iterdir())}
            (place / _SEAL).write_text(json.dumps({"files": files, "about": about}) + "\n")

        self.keep(name, sealed)

    def unseal(self, name: str) -> dict[str, Any]:
        """What was kept beside the files of a sealed folder, which are as they were written. Raises Damaged."""
        place = self.path / name
        try:
            found = json.loads((place / _SEAL).read_text(encoding="utf-8"))
            for file, digest in found["files"].items():
                if digest_of(place / file) != digest:
                    raise Damaged(f"{name}/{file} is not the file that was written")
            return dict(found["about"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Damaged(f"{name} cannot be read: {(str(error).splitlines() or [''])[0]}") from error

    def remove(self, *names: str) -> None:
        """Files and folders that are of no use any more."""
        for name in names:
            _remove(self.path / name)

    def inside(self, name: str = "") -> list[str]:
        """Names of what is in a folder."""
        place = self.path / name
        return sorted(each.name for each in place.iterdir()) if place.is_dir() else []


def place_of(output: Path) -> Path:
    """The working folder of an output. Raises OutputError."""
    target = resolved(output)
    return target.with_name(f".{target.name}.resume")


@contextmanager
def working(output: Path) -> Generator[WorkingFolder]:
    """The working folder of an output, for this process alone. It goes when the block ends well.

    Where the block ends with an error the folder stays if anything was kept in it.

    Raises:
        OutputError: another process has it, it cannot be written, or it holds what no run wrote.
    """
    place = place_of(output)
    parents = [parent for parent in place.parents if not parent.exists()]
    try:
        place.mkdir(parents=True, exist_ok=True)
        handle = _locked(place, output)
    except OSError as error:
        raise OutputError(f"cannot write {str(place)!r}: {error.strerror or error}") from error
    folder = WorkingFolder(place)
    try:
        _clean(folder)
        try:
            yield folder
            _let_go(place)
        except BaseException:
            if set(folder.inside()) <= {_RUN}:
                _let_go(place)
                for parent in parents:
                    with suppress(OSError):
                        parent.rmdir()
            raise
    finally:
        if handle is not None:
            os.close(handle)


def _clean(folder: WorkingFolder) -> None:
    """What a killed process was writing goes. Raises OutputError for a folder that is none of ours."""
    there = folder.inside()
    if folder.path.is_symlink() or (there and _RUN not in there and there != [_RUN + _PARTIAL]):
        raise OutputError(f"{str(folder.path)!r} holds what no run left there; move it away")
    for partial in list(folder.path.rglob(f"*{_PARTIAL}")):
        _remove(partial)
    if set(folder.inside()) > {_RUN}:
        unfinished.append(folder.path)


def _locked(place: Path, output: Path) -> int | None:
    """A handle that locks a folder; None where the system has no such locks. Raises OutputError, OSError."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.fstat(handle)
        # one that has ended meanwhile has taken it away
        taken = not place.exists() or (place.stat().st_dev, place.stat().st_ino) != (held.st_dev, held.st_ino)
    except BlockingIOError:
        taken = True
    except OSError:
        # a file system without locks
        taken = False
    if taken:
        os.close(handle)
        raise OutputError(f"another run writes {str(output)!r} at this moment; wait for it, or choose another output")
    return handle


def _let_go(place: Path) -> None:
    """Remove the folder: under another name first, so that nobody finds a part of it."""
    aside = place.with_name(f"{place.name.removesuffix('.resume')}.{os.getpid()}-over{_PARTIAL}")
    with suppress(OSError):
        place.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    if place in unfinished:
        unfinished.remove(place)


def _difference(key: str, earlier: Any, now: Any) -> str:
    """What is different in words; empty for the same."""
    if earlier == now:
        return ""
    told = [str(value) for value in (earlier, now)]
    plain = all(isinstance(value, str | int | float) and len(str(value)) <= _LONGEST_SHOWN for value in (earlier, now))
    return f"{key}: {told[0]} then, {told[1]} now" if plain else key


def digest_of(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(place: Path) -> None:
    """To the disk: a machine that loses its power leaves no empty file under a new name."""
    files = [*place.iterdir(), place] if place.is_dir() and place.suffix == _PARTIAL else [place]
    for file in files:
        try:
            handle = os.open(file, os.O_RDONLY)
        except OSError:  # systems that open no folders
            continue
        try:
            with suppress(OSError):
                os.fsync(handle)
        finally:
            os.close(handle)


def _remove(place: Path) -> None:
    """A file or folder, if it is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
