"""Where hidden states are kept between the passes: in memory up to a limit, beyond it in temporary files.

Files are safetensors in a folder of their own, which goes when the shelf does.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from faster_pruner.host.mapped import from_file
from faster_pruner.host.temporary import make_temporary

# Share of the free memory that hidden states may take when no limit is given.
_SHARE_OF_FREE_MEMORY = 0.5
_KEY = "hidden"
# Free memory where the system does not tell.
_WITHOUT_AN_ANSWER = 8 * 2**30


class Shelf:
    """Counts what is kept in memory and hands out files for the rest.

    What is parked comes and goes with every sublayer; what is kept is written once and read once. So a byte of memory
    saves far more where something is parked, and a part of it may be set aside for that.

    Attributes:
        limit: most bytes kept in memory.
        aside: of these, bytes that only what is parked may take.
        spilled: bytes that went to files so far.
    """

    def __init__(self, limit: int, *, aside: int = 0) -> None:
        self.limit, self.aside = limit, min(aside, limit)
        self.spilled = 0
        self._kept, self._parked = 0, 0
        self._folder: Path | None = None
        self._files = 0

    @property
    def held(self) -> int:
        """Bytes in memory now."""
        return self._kept + self._parked

    def reserve(self, size: int) -> bool:
        """Whether `size` more bytes that are kept fit into memory; counts them when they do."""
        fits = self._kept + size <= self.limit - max(self.aside, self._parked)
        self._kept += size if fits else 0
        return fits

    def release(self, size: int) -> None:
        """`size` bytes that were reserved are free again."""
        self._kept -= size

    def park(self, size: int) -> bool:
        """Whether `size` more bytes that are parked fit into memory; counts them when they do."""
        fits = self.held + size <= self.limit
        self._parked += size if fits else 0
        return fits

    def fetch(self, size: int) -> None:
        """`size` bytes that were parked in memory are in use again."""
        self._parked -= size

    def write(self, tensor: Tensor) -> Path:
        """A new file that holds `tensor`."""
        if self._folder is None:
            self._folder, remove = make_temporary()
            weakref.finalize(self, remove)
        self._files += 1
        file = self._folder / f"{self._files}.safetensors"
        save_file({_KEY: tensor.contiguous()}, file)
        self.spilled += tensor.nbytes
        return file


def tensors_of(file: Path, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on any device that torch knows of (safetensors itself knows some)."""
    return {name: tensor.to(device) for name, tensor in load_file(file).items()}


def read(file: Path, device: torch.device) -> Tensor:
    """The tensor in a file of a shelf."""
    return tensors_of(file, device)[_KEY]


class HiddenStates(Sequence[Tensor]):
    """A list of tensors on a shelf: each is in memory or in a file, and looks the same from outside."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._kept: list[tuple[Tensor | Path, torch.device]] = []

    def append(self, tensor: Tensor) -> None:
        """Keep one more."""
        kept = tensor if self._shelf.reserve(tensor.nbytes) else self._shelf.write(tensor)
        self._kept.append((kept, tensor.device))

    def clear(self) -> None:
        """Let go of all of them."""
        for kept, _ in self._kept:
            if isinstance(kept, Path):
                kept.unlink(missing_ok=True)
            else:
                self._shelf.release(kept.nbytes)
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        kept, device = self._kept[index]
        return read(kept, device) if isinstance(kept, Path) else kept

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))


class Parking:
    """Puts the storage of tensors that others still refer to into files, and brings it back."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._in_memory: dict[int, int] = {}
        self._in_files: dict[int, list[tuple[torch.UntypedStorage, Path]]] = {}

    def park(self, place: int, size: int, tensors: Callable[[], Sequence[Tensor]]) -> None:
        """Free the memory of tensors if the shelf is full; nobody may look at them until `fetch(place)`.

        Args:
            place: a number that `fetch` is given later.
            size: how many bytes they are, about.
            tensors: finds them, which is asked for only when they go to files.
        """
        if self._shelf.park(size):
            self._in_memory[place] = size
            return
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors()}
        parked = self._in_files.setdefault(place, [])
        for storage in storages.values():
            if storage.nbytes():
                parked.append((storage, self._shelf.write(bytes_of(storage))))
                storage.resize_(0)

    def fetch(self, place: int) -> None:
        """Bring back what was parked at `place`."""
        self._shelf.fetch(self._in_memory.pop(place, 0))
        for storage, file in self._in_files.pop(place, []):
            saved = read(file, storage.device)
            storage.resize_(saved.numel())
            bytes_of(storage).copy_(saved)
            file.unlink()

    def clear(self) -> None:
        """Forget all that is parked: nobody looks at it again."""
        self._shelf.fetch(sum(self._in_memory.values()))
        for _, file in (each for parked in self._in_files.values() for each in parked):
            file.unlink(missing_ok=True)
        self._in_memory.clear()
        self._in_files.clear()


def bytes_of(storage: torch.UntypedStorage) -> Tensor:
    """[bytes] uint8: a view of a storage."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def room(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU: in memory, or in a temporary file that goes with it where it is too large.

    Raises:
        OutputError: the disk has no room for it.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= default_limit(torch.device("cpu")) or not hasattr(os, "posix_fallocate"):
        return torch.empty(tuple(shape), dtype=dtype)
    return from_file(shape, dtype)


def free_memory(device: torch.device) -> int:
    """Bytes of memory that this process may still take on `device`: of the machine, or of the container it runs in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_left_on_machine(), *_left_in_cgroups()])


def _left_on_machine(memory: Path = Path("/proc/meminfo")) -> int:
    """What the machine can still give: on Linux with the file cache, which it gives up for whoever needs memory."""
    try:
        entries = dict(line.split(":", 1) for line in memory.read_text().splitlines())
        return int(entries["MemAvailable"].removesuffix("kB")) * 1024
    except (OSError, ValueError, KeyError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return _WITHOUT_AN_ANSWER


def _left_in_cgroups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What is left of the memory limits of this process's control groups, from its own one up to the root."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    found: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, limit, used = root / path.lstrip("/"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            folder = root / "memory" / path.lstrip("/")
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # a container sees its own group as the root
        for place in (folder, *folder.parents):
            if place.is_relative_to(root):
                found += _left(place / limit, place / used, place / "memory.stat")
    return found


def _left(limit: Path, used: Path, stat: Path) -> list[int]:
    """Limit minus use of one control group, its file cache not counted; nothing where there is no limit."""
    try:
        most, now = int(limit.read_text()), int(used.read_text())
    except (OSError, ValueError):
        return []
    try:
        entries = dict(line.split(" ", 1) for line in stat.read_text().splitlines())
        now -= int(entries.get("inactive_file", entries.get("total_inactive_file", "0")))
    except (OSError, ValueError):
        pass
    return [max(0, most - now)]


def default_limit(device: torch.device) -> int:
    """How many bytes of hidden states are kept in memory when nobody says."""
    return int(_SHARE_OF_FREE_MEMORY * free_memory(device))
