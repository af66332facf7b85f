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
from faster_pruner.host.spill import Shelf

# Smaller tensors stay where they are.
_SMALL = 1 << 16


def _in_a_file(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """A copy of a storage in a file."""
    found = from_file((storage.nbytes(),), torch.uint8)
    found.copy_(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage))
    return found.untyped_storage()


class _Held:
    """One storage: in memory, counted by the shelf, or in a file."""

    def __init__(self, storage: torch.UntypedStorage, shelf: Shelf) -> None:
        self.shelf, self.size = shelf, storage.nbytes()
        self.counted = shelf.reserve(self.size)
        self.storage = storage if self.counted else _in_a_file(storage)
        if not self.counted:
            shelf.spilled += self.size

    def __del__(self) -> None:
        if self.counted:
            self.shelf.release(self.size)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A tensor that is kept: where its storage is, and how it lies in it."""

    held: _Held
    device: torch.device
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    def unpacked(self) -> Tensor:
        """The tensor, on the device where it was."""
        storage = self.held.storage
        if storage.device != self.device:
            storage = storage.to(device=self.device)
        empty = torch.empty(0, dtype=self.dtype, device=self.device)
        return empty.set_(storage, self.offset, self.shape, self.stride)


class Saved:
    """Keeps tensors of one forward; each storage once.

    Args:
        shelf: says how much may stay in memory.
        shared: tensors that are somewhere else already: the weights.
    """

    def __init__(self, shelf: Shelf, shared: Iterable[Tensor]) -> None:
        self._shelf = shelf
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
        return kept.unpacked() if isinstance(kept, Packed) else kept

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
        held = _Held(storage, self._shelf)
        self._known[place] = StorageWeakRef(storage), version, ref(held)
        return held
