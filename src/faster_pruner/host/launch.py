"""What a launcher (torchrun, accelerate) tells a process of the others that it has started."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from faster_pruner.errors import OptionError

# What a launcher tells a process.
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launched:
    """What a launcher says of this process.

    Attributes:
        rank: number of this process.
        count: of all processes.
        local_rank: number among those of this machine.
        local_count: of those.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1


def launched() -> Launched:
    """What the environment says; one process where it says nothing. Raises OptionError."""
    if not all(os.environ.get(name) for name in _NEEDED):
        return Launched()
    rank, count = (number(name) for name in _NEEDED[:2])
    if not 0 <= rank < count:
        raise OptionError(f"RANK is {rank} and WORLD_SIZE {count}; ranks count from 0 to WORLD_SIZE - 1")
    local = number("LOCAL_RANK") if os.environ.get("LOCAL_RANK") else rank
    locals_ = number("LOCAL_WORLD_SIZE") if os.environ.get("LOCAL_WORLD_SIZE") else count
    return Launched(rank, count, local, locals_)


def number(name: str) -> int:
    """A whole number in the environment. Raises OptionError."""
    text = os.environ[name]
    if not text.strip().isdecimal():
        raise OptionError(f"the environment variable {name} is {text!r}; a launcher sets it to a whole number")
    return int(text)


def grouped() -> bool:
    """Whether somebody's program has joined its processes itself: then each of them may do what it likes."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def several() -> bool:
    """Whether a launcher has started others beside this process."""
    try:
        return launched().count > 1
    except OptionError:
        return False


def speaks(error: BaseException | None = None) -> bool:
    """Whether this process is the one that shows things: the first one, or the first that is left."""
    try:
        return launched().rank == getattr(error, "speaker", 0)
    except OptionError:
        return True


def only_one(what: str) -> None:
    """Raise OptionError where a launcher started several processes for something that they cannot share."""
    count = launched().count
    if count > 1 and not grouped():
        raise OptionError(f"{what} runs in one process, and {count} were started: only pruning is shared by several")
