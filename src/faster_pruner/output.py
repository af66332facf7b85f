"""The output folder: checked before any work, and replaced as a whole or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from faster_pruner.errors import OutputError

# What tells a checkpoint from any other folder.
_CONFIG = "config.json"
# Free space asked for, as a multiple of the dense checkpoint.
_SPACE_FACTOR = 1.2
# Linux' renameat2: paths are relative to the working folder; exchange them. (2 is macOS' RENAME_SWAP, too.)
_AT_FDCWD = -100
_EXCHANGE = 2


def check_output(folder: Path, *, overwrite: bool, bytes_needed: int) -> None:
    """Before any work: the folder may be written.

    Raises:
        OutputError: it is in the way, its parent cannot be written, or the disk is too full.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"output {str(folder)!r} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise OutputError(f"output folder {str(folder)!r} is not empty; choose another or add --overwrite")
        if not (folder / _CONFIG).is_file():
            raise OutputError(f"output folder {str(folder)!r} holds no checkpoint ({_CONFIG}); it is not overwritten")
    parent = _existing_parent(folder)
    if not os.access(parent, os.W_OK):
        raise OutputError(f"cannot write into {str(parent)!r}")
    free = shutil.disk_usage(parent).free
    if free < _SPACE_FACTOR * bytes_needed:
        raise OutputError(
            f"not enough disk space for {str(folder)!r}: {free / 1e6:.0f} MB free, "
            f"about {_SPACE_FACTOR * bytes_needed / 1e6:.0f} MB needed"
        )


def _existing_parent(folder: Path) -> Path:
    """The nearest parent that exists."""
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent


@contextmanager
def replacing(folder: Path, *, overwrite: bool) -> Generator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: the disk fills up, or the folder has come into the way meanwhile.
    """
    folder = folder.absolute()
    created = _make_parents(folder.parent)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        yield staging
        mask = _umask()
        staging.chmod(0o777 & ~mask)
        for file in staging.iterdir():
            file.chmod(0o666 & ~mask)
        if folder.exists():
            if any(folder.iterdir()) and not overwrite:
                raise OutputError(f"output folder {str(folder)!r} was filled by someone else meanwhile")
            _exchange(staging, folder)
        else:
            staging.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot write {str(folder)!r}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not folder.exists():
            for parent in created:
                if parent.exists() and not any(parent.iterdir()):
                    parent.rmdir()


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
