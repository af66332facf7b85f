"""The output folder: checked before any work, and replaced as a whole or not at all."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faster_pruner.errors import OutputError

# What tells a checkpoint from any other folder.
_CONFIG = "config.json"
# Free space asked for, as a multiple of the dense checkpoint.
_SPACE_FACTOR = 1.2
# Linux' renameat2: paths are relative to the working folder; exchange them. (2 is macOS' RENAME_SWAP, too.)
_AT_FDCWD = -100
_EXCHANGE = 2
# Temporary folders carry the number of the process that makes them.
_PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)-[^.]+\.partial")


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a run writes.

    Attributes:
        folder: for the checkpoint and its report; None leaves the result in memory.
        overwrite: replace a checkpoint that is already there.
        statistics: folder in which the statistics are kept, to cut other budgets from later; None keeps none.
    """

    folder: str | Path | None = None
    overwrite: bool = False
    statistics: str | Path | None = None

    @property
    def path(self) -> Path | None:
        """The folder."""
        return None if self.folder is None else Path(self.folder)

    @property
    def statistics_path(self) -> Path | None:
        """The folder for the statistics."""
        return None if self.statistics is None else Path(self.statistics)

    def check(self, *, bytes_needed: int = 0) -> None:
        """Before any work: raise OutputError unless both folders may be written; see `check_folder`."""
        if self.path is not None:
            check_folder(self.path, overwrite=self.overwrite, bytes_needed=bytes_needed)
        if self.statistics_path is not None:
            check_folder(self.statistics_path, overwrite=False, bytes_needed=bytes_needed)
            if self.path is not None:
                check_apart(self.path, self.statistics_path)


def as_output(given: str | Path | Output | None) -> Output:
    """A path as an output; an output as it is; None for nowhere."""
    return given if isinstance(given, Output) else Output(folder=given)


def check_folder(folder: Path, *, overwrite: bool, bytes_needed: int) -> None:
    """Before any work: the folder may be written.

    Raises:
        OutputError: it is in the way, its parent cannot be written, or the disk is too full.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"output {str(folder)!r} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise OutputError(
                f"output folder {str(folder)!r} is not empty; choose another, or ask for it to be replaced",
                option="overwrite",
            )
        if not (folder / _CONFIG).is_file():
            raise OutputError(f"output folder {str(folder)!r} holds no checkpoint ({_CONFIG}); it is not overwritten")
    parent = _existing_parent(folder)
    if not parent.is_dir():
        raise OutputError(f"output {str(folder)!r} cannot lie inside {str(parent)!r}, which is a file")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"cannot write into {str(parent)!r}")
    free = shutil.disk_usage(parent).free
    if free < _SPACE_FACTOR * bytes_needed:
        raise OutputError(
            f"not enough disk space for {str(folder)!r}: {free / 1e6:.0f} MB free, "
            f"about {_SPACE_FACTOR * bytes_needed / 1e6:.0f} MB needed"
        )


def check_apart(one: Path, other: Path) -> None:
    """Raise OutputError when two folders that a run writes are the same, or one lies inside the other."""
    first, second = one.absolute().resolve(), other.absolute().resolve()
    if first == second or first in second.parents or second in first.parents:
        raise OutputError(
            f"{str(one)!r} and {str(other)!r} are both written: give two folders of which none lies inside the other"
        )


def _existing_parent(folder: Path) -> Path:
    """The nearest parent that exists."""
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent


# What this process has finished writing: an interruption later on says so.
finished: list[Path] = []


@contextmanager
def replacing(folder: Path, *, overwrite: bool) -> Generator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well, and vanishes when it does not.

    Temporary folders that processes left which were killed are removed.

    Raises:
        OutputError: the disk fills up, or the folder has come into the way meanwhile.
    """
    folder = folder.absolute()
    try:
        created = _make_parents(folder.parent)
        _remove_abandoned(folder)
        prefix = f".{folder.name}.{os.getpid()}-"
        staging = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        with _locked(staging):
            yield staging
            mask = _umask()
            staging.chmod(0o777 & ~mask)
            for inside in staging.rglob("*"):
                inside.chmod((0o777 if inside.is_dir() else 0o666) & ~mask)
            if folder.exists():
                if any(folder.iterdir()) and not overwrite:
                    raise OutputError(f"output folder {str(folder)!r} was filled by someone else meanwhile")
                _exchange(staging, folder)
            else:
                staging.rename(folder)
            finished.append(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not folder.exists():
            for parent in created:
                if parent.exists() and not any(parent.iterdir()):
                    parent.rmdir()


def _unwritable(folder: Path, error: OSError) -> OutputError:
    """What the system said, as an error of ours."""
    return OutputError(f"cannot write {str(folder)!r}: {error.strerror or error}")


@contextmanager
def _locked(folder: Path) -> Generator[None]:
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

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _remove_abandoned(folder: Path) -> None:
    """Remove temporary folders of `folder` whose process is dead: neither alive here nor holding its lock elsewhere."""
    for place in folder.parent.glob(f".{_escaped(folder.name)}.*.partial"):
        match = _PARTIAL.fullmatch(place.name)
        if match is None or match["name"] != folder.name or _alive(int(match["process"])):
            continue
        handle = _lock(place)
        if handle is not None:
            shutil.rmtree(place, ignore_errors=True)
            os.close(handle)


def _escaped(name: str) -> str:
    """A name in which nothing is a wildcard."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _alive(process: int) -> bool:
    """Whether a process of that number exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _exchange(staging: Path, folder: Path) -> None:
    """Swap two folders in one step, so that a process that is killed leaves either the old or the new one in place.

    Where the system cannot do that (neither Linux' renameat2 nor macOS' renamex_np), the old folder is moved aside
    first: for the moment between two renames it lies under a hidden name beside its place.
    """
    if _system_exchange(os.fsencode(staging), os.fsencode(folder)):
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    folder.rename(aside / folder.name)
    staging.rename(folder)
    shutil.rmtree(aside)


def _system_exchange(one: bytes, other: bytes) -> bool:
    """Exchange two paths atomically; False where the system or the file system cannot."""
    library = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    if hasattr(library, "renameat2"):
        return library.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _EXCHANGE) == 0
    if hasattr(library, "renamex_np"):
        return library.renamex_np(one, other, _EXCHANGE) == 0
    return False


def _make_parents(parent: Path) -> list[Path]:
    """Create the missing parents of the output; returns them, innermost first."""
    missing = [parent]
    while not missing[-1].exists():
        missing.append(missing[-1].parent)
    parent.mkdir(parents=True, exist_ok=True)
    return missing[:-1]


def _umask() -> int:
    """The process's umask (which can only be read by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
