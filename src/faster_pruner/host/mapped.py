"""Tensors that lie in files instead of in memory, for models that memory does not hold.

Such a tensor is mapped from a file of its own that has no name any more. The system reads a page of it when somebody
looks there, and takes the page's memory back when it runs short, so what stays in memory is what was used last: of a
pass, the layers that it is at. Nothing else about it differs: the same code runs on it, and gives the same bits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import torch
from torch import Tensor

from faster_pruner.errors import OutputError

# Tensors of fewer bytes stay in memory: biases and norms, of which there are as many as matrices.
_SMALL = 1 << 16
_IN_FILES: ContextVar[bool] = ContextVar("in_files", default=False)


@contextmanager
def in_files(wanted: bool = True) -> Generator[None]:
    """Weights, their copies and statistics that are made inside lie in files (those on the CPU)."""
    token = _IN_FILES.set(wanted)
    try:
        yield
    finally:
        _IN_FILES.reset(token)


def are_in_files() -> bool:
    """Whether `in_files` is in force."""
    return _IN_FILES.get()


def home(device: torch.device) -> torch.device:
    """Where large things are kept that are used on a device: there, or on the CPU where that goes to files."""
    return torch.device("cpu") if are_in_files() else device


def zeros(shape: Sequence[int], *, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros: in a file where that is in force, else where torch puts them. Raises OutputError: no room on the disk."""
    if _goes_to_file(device, math.prod(shape) * dtype.itemsize):
        return from_file(shape, dtype)
    return torch.zeros(tuple(shape), dtype=dtype, device=device)


@torch.no_grad()
def copied(tensor: Tensor, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """A copy of a tensor: in a file where that is in force. Raises OutputError: no room on the disk."""
    where, kind = device or tensor.device, dtype or tensor.dtype
    if _goes_to_file(where, tensor.numel() * kind.itemsize):
        return from_file(tensor.shape, kind).copy_(tensor.detach())
    return tensor.detach().to(device=where, dtype=kind, copy=True)


def settled(tensor: Tensor) -> Tensor:
    """A tensor that was just made, or a copy of it in a file where that is in force. Raises OutputError: no room."""
    return copied(tensor) if _goes_to_file(tensor.device, tensor.numel() * tensor.element_size()) else tensor


def from_file(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros in a file of their own in the temporary folder; it goes with them.

    Raises:
        OutputError: the disk has no room for it.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    try:
        # it is there for a moment: no need to look whether others have left theirs
        with TemporaryDirectory(prefix="faster-pruner-") as folder:
            file = Path(folder) / "values"
            with file.open("wb") as stream:
                if hasattr(os, "posix_fallocate"):
                    # a file that only claims its size would end the process when the disk fills up
                    os.posix_fallocate(stream.fileno(), 0, size)
                else:
                    stream.truncate(size)
            # the mapping keeps the file alive when its name is gone
            return torch.from_file(str(file), shared=True, size=count, dtype=dtype).view(tuple(shape))
    except OSError as error:
        raise OutputError(
            f"{size >> 20} MB fit neither into memory nor into {gettempdir()!r}: {error.strerror}; use fewer rows, or "
            "let the environment variable TMPDIR name a folder with more room"
        ) from error


def _goes_to_file(device: torch.device, size: int) -> bool:
    """Whether a tensor of so many bytes goes to a file."""
    return size >= _SMALL and device.type == "cpu" and are_in_files()
