"""The output folder: checked before any work, and replaced as a whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faster_pruner.checks import made_of, yes_or_no
from faster_pruner.errors import OptionError, OutputError
from faster_pruner.host.marks import KEPT_FILE, strangers
from faster_pruner.host.places import check_apart, check_folder, check_space, resolved
from faster_pruner.host.temporary import locked, remove_abandoned

# Linux' renameat2: paths are relative to the working folder; exchange them. (2 is macOS' RENAME_SWAP, too.)
_AT_FDCWD = -100
_EXCHANGE = 2


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a run writes.

    Attributes:
        folder: for the checkpoint and its report; None leaves the result in memory.
        overwrite: replace a checkpoint that is already there.
        statistics: folder in which the statistics are kept, to cut other budgets from later; None keeps none.
        resume: keep what is done beside the folder, and go on there where an earlier run was interrupted. What was
            kept goes when the run ends well.
    """

    folder: str | Path | None = None
    overwrite: bool = False
    statistics: str | Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for what, given in (("output", self.folder), ("folder for the statistics", self.statistics)):
            made_of(what, given, (str, Path, type(None)))
        yes_or_no("overwrite", self.overwrite)
        yes_or_no("resume", self.resume)
        if self.resume and self.folder is None:
            raise OptionError("an interrupted run goes on beside its output, and there is none", option="output")

    @property
    def path(self) -> Path | None:
        """The folder."""
        return None if self.folder is None else Path(self.folder)

    @property
    def statistics_path(self) -> Path | None:
        """The folder for the statistics."""
        return None if self.statistics is None else Path(self.statistics)

    def check(self, *, reads: Sequence[str | Path] = (), rows: str | Path | None = None) -> None:
        """Before any work: raise OutputError unless both folders may be written.

        Args:
            reads: folders that the run reads (names that are no folders here do no harm); see `check_folder`.
            rows: folder of the rows, if any.
        """
        read, rows = [Path(place) for place in reads], None if rows is None else Path(rows)
        if self.path is not None:
            check_folder(self.path, overwrite=self.overwrite, reads=read, rows=rows)
        if self.statistics_path is not None:
            if self.path is not None:
                check_apart(self.path, self.statistics_path)
            # an interrupted run may have kept its statistics: whether these are the same is asked when they are there
            if not (self.resume and (self.statistics_path / KEPT_FILE).is_file()):
                check_folder(self.statistics_path, overwrite=None, reads=read, rows=rows)

    def check_anew(self, what: str) -> None:
        """Raise OptionError where something that always begins anew is to go on."""
        if self.resume:
            raise OptionError(f"{what} does not go on after an interruption; leave that out", option="resume")

    def check_space(self, *, folder: int = 0, statistics: int = 0, kept: int = 0) -> None:
        """Before any work: raise OutputError unless that many bytes fit into the folders, and beside the output."""
        beside = self.path if self.resume else None
        wanted = ((self.path, folder), (self.statistics_path, statistics), (beside, kept))
        check_space((path, size) for path, size in wanted if path is not None)


def as_output(given: str | Path | Output | None) -> Output:
    """A path as an output; an output as it is; None for nowhere."""
    return given if isinstance(given, Output) else Output(folder=given)


# What this process has finished writing: an interruption later on says so.
finished: list[Path] = []
# What it has kept of work that another run goes on with.
unfinished: list[Path] = []


@contextmanager
def replacing(folder: Path, *, overwrite: bool) -> Generator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well, and vanishes when it does not.

    A link is followed, and stays. Temporary folders that processes left which were killed are removed.

    Raises:
        OutputError: the disk fills up, or something that is not ours has come into the way meanwhile: then what was
            written lies beside it, and the message says where.
    """
    target = resolved(folder)
    try:
        created = _make_parents(target.parent)
        # temporary folders of this very output
        ours = re.compile(rf"\.{re.escape(target.name)}\.(?P<process>\d+)-[^.]+\.partial")
        remove_abandoned(target.parent, f".{_escaped(target.name)}.*.partial", ours)
        prefix = f".{target.name}.{os.getpid()}-"
        staging = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=target.parent))
    except OSError as error:
        raise _unwritable(folder, error) from error
    identity = _identity(staging)
    try:
        with locked(staging):
            yield staging
            _open_to_readers(staging)
            if not _put(staging, target, overwrite=overwrite):
                aside = _put_beside(staging, target)
                finished.append(aside)
                raise OutputError(
                    f"output folder {str(folder)!r} was filled by someone else meanwhile; the result lies in "
                    f"{str(aside)!r}"
                )
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        if _identity(target) == identity:
            # asked of the system, so that an interruption right after the swap knows, too
            finished.append(folder.absolute())
        shutil.rmtree(staging, ignore_errors=True)
        if not target.exists():
            for parent in created:
                if parent.exists() and not any(parent.iterdir()):
                    parent.rmdir()


def _open_to_readers(folder: Path) -> None:
    """Permissions as the user's umask has them; those of temporary folders are narrower."""
    mask = _umask()
    folder.chmod(0o777 & ~mask)
    for inside in folder.rglob("*"):
        inside.chmod((0o777 if inside.is_dir() else 0o666) & ~mask)


def _put(staging: Path, target: Path, *, overwrite: bool) -> bool:
    """Move a folder to its place; False where that is taken by what must not be replaced."""
    if overwrite and target.exists() and any(target.iterdir()):
        if strangers(target):
            return False
        _exchange(staging, target)
        return True
    try:
        # onto an empty folder or none: of two processes that get here at once, one is refused
        staging.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and target.exists():
            # another process of ours may have been quicker; it may be replaced like what was there before
            return overwrite and target.is_dir() and _put(staging, target, overwrite=True)
        raise
    return True


def _put_beside(staging: Path, target: Path) -> Path:
    """Move a folder to the first free name beside its place: what is finished is never thrown away."""
    number = 1
    while True:
        aside = target.with_name(f"{target.name}-{number}")
        if not aside.exists():
            try:
                staging.rename(aside)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            else:
                return aside
        number += 1


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from all others, under whatever name; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _unwritable(folder: Path, error: OSError) -> OutputError:
    """What the system said, as an error of ours."""
    return OutputError(f"cannot write {str(folder)!r}: {error.strerror or error}")


def _escaped(name: str) -> str:
    """A name in which nothing is a wildcard."""
    return re.sub(r"([*?[])", r"[\1]", name)


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
