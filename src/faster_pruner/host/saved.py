"""What a forward leaves for its backward, in memory up to the limit of a shelf, beyond it in files.

A graph of all layers is the largest thing that a statistics pass holds: per token several times the width of every
layer. Where weights are kept in files it would be more than they are.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from faster_pruner.host.mapped import from_file
from faster_pruner.host.spill import Shelf, bytes_of

# Smaller tensors stay where they are.
_SMALL = 1 << 16


class _Files:
    """Storages in files, used again: graphs of batches are alike, and a new file costs more than what is written."""

    def __init__(self) -> None:
        self._free: dict[int, list[torch.UntypedStorage]] = {}

    def copy(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        """A copy of a storage."""
        size = storage.nbytes()
        free = self._free.get(size)
        found = free.pop() if free else from_file((size,), torch.uint8).untyped_storage()
        bytes_of(found).copy_(bytes_of(storage))
        return found

    def put_back(self, storage: torch.UntypedStorage) -> None:
        """Nobody looks at it again."""
        self._free.setdefault(storage.nbytes(), []).append(storage)


class _Held:
    """One storage: in memory, counted by the shelf, or in a file."""

    def __init__(self, storage: torch.UntypedStorage, shelf: Shelf, files: _Files) -> None:
        self.shelf, self.files, self.size = shelf, files, storage.nbytes()
        self.counted = shelf.reserve(self.size)
        # whether the storage is free when this is gone
        self.again = True
        self.storage = storage if self.counted else files.copy(storage)
        if not self.counted:
            shelf.spilled += self.size

    def __del__(self) -> None:
        if self.counted:
            self.shelf.release(self.size)
        elif self.again:
            self.files.put_back(self.storage)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A tensor that is kept: where its storage is, and how it lies in it."""

    held: _Held
    device: torch.device
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    def unpacked(self, *, to_keep: bool = True) -> Tensor:
        """The tensor, on the device where it was; not `to_keep` where it is looked at only while this is there."""
        storage = self.held.storage
        self.held.again = self.held.again and not to_keep
        if storage.device != self.device:
            storage = bytes_of(storage).to(self.device).untyped_storage()
        empty = torch.empty(0, dtype=self.dtype, device=self.device)
        return empty.set_(storage, self.offset, self.shape, self.stride)


class Saved:
    """Keeps tensors of one forward; each storage once.

    Args:
        shelf: says how much may stay in memory.
        shared: tensors that are somewhere else already: the weights.
    """

    def __init__(self, shelf: Shelf, shared: Iterable[Tensor]) -> None:
        self._shelf, self._files = shelf, _Files()
        self._shared = {tensor.untyped_storage().data_ptr() for tensor in shared}
        # by address: the storage that was there, in which state, and what it is kept as
        self._known: dict[int, tuple[StorageWeakRef, int, ReferenceType[_Held]]] = {}

    def pack(self, tensor: Tensor) -> Tensor | Packed:
        """Keep a tensor."""
        own = tensor.detach()
        storage = own.untyped_storage()
        if storage.nbytes() < _SMALL or storage.data_ptr() in self._shared:
            return own
        return Packed(
            held=self._held(storage, tensor._version),
            device=own.device,
            dtype=own.dtype,
            offset=int(own.storage_offset()),
            shape=own.shape,
            stride=own.stride(),
        )

    def unpack(self, kept: Tensor | Packed) -> Tensor:
        """The tensor again."""
        return kept.unpacked(to_keep=False) if isinstance(kept, Packed) else kept

    @contextmanager
    def graph(self) -> Generator[None]:
        """What autograd saves inside is kept here."""
        with torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack):
            yield

    def _held(self, storage: torch.UntypedStorage, version: int) -> _Held:
        """What a storage is kept as; it is written once for all the tensors that lie in it."""
        place = storage.data_ptr()
        if place in self._known:
            there, written, reference = self._known[place]
            held = reference()
            if held is not None and not there.expired() and written == version:
                return held
        held = _Held(storage, self._shelf, self._files)
        self._known[place] = StorageWeakRef(storage), version, ref(held)
        return held
