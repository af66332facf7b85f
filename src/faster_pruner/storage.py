"""Where hidden states are kept between the passes: in memory up to a limit, beyond it in temporary files.

Files are safetensors in a folder of their own, which goes when the shelf does.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import overload

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# Share of the free memory that hidden states may take when no limit is given.
_SHARE_OF_FREE_MEMORY = 0.5
_KEY = "hidden"


class Shelf:
    """Counts what is kept in memory and hands out files for the rest.

    Attributes:
        limit: most bytes kept in memory.
        held: bytes in memory now.
        spilled: bytes that went to files so far.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.spilled = 0
        self._folder: Path | None = None
        self._files = 0

    def reserve(self, size: int) -> bool:
        """Whether `size` more bytes fit into memory; counts them when they do."""
        fits = self.held + size <= self.limit
        self.held += size if fits else 0
        return fits

    def release(self, size: int) -> None:
        """`size` bytes that were reserved are free again."""
        self.held -= size

    def write(self, tensor: Tensor) -> Path:
        """A new file that holds `tensor`."""
        if self._folder is None:
            self._folder = Path(mkdtemp(prefix="faster-pruner-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._files += 1
        file = self._folder / f"{self._files}.safetensors"
        save_file({_KEY: tensor.contiguous()}, file)
        self.spilled += tensor.nbytes
        return file


def read(file: Path, device: torch.device) -> Tensor:
    """The tensor in a file of a shelf."""
    return load_file(file, device=str(device))[_KEY]


class HiddenStates(Sequence[Tensor]):
    """A list of tensors on a shelf: each is in memory or in a file, and looks the same from outside."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._kept: list[tuple[Tensor | Path, torch.device]] = []

    def append(self, tensor: Tensor) -> None:
        """Keep one more."""
        kept = tensor if self._shelf.reserve(tensor.nbytes) else self._shelf.write(tensor)
        self._kept.append((kept, tensor.device))

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

    def park(self, place: int, tensors: Sequence[Tensor]) -> None:
        """Free the memory of `tensors` if the shelf is full; nobody may look at them until `fetch(place)`."""
        storages = list({tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}.values())
        size = sum(storage.nbytes() for storage in storages)
        if self._shelf.reserve(size):
            self._in_memory[place] = size
            return
        parked = self._in_files.setdefault(place, [])
        for storage in storages:
            parked.append((storage, self._shelf.write(_bytes_of(storage))))
            storage.resize_(0)

    def fetch(self, place: int) -> None:
        """Bring back what was parked at `place`."""
        self._shelf.release(self._in_memory.pop(place, 0))
        for storage, file in self._in_files.pop(place, []):
            saved = read(file, storage.device)
            storage.resize_(saved.numel())
            _bytes_of(storage).copy_(saved)
            file.unlink()


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    """[bytes] uint8: a view of a storage."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30


def default_limit(device: torch.device) -> int:
    """How many bytes of hidden states are kept in memory when nobody says."""
    return int(_SHARE_OF_FREE_MEMORY * free_memory(device))
