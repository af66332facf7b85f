"""How large a checkpoint is, before any of it is opened."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

from huggingface_hub import get_safetensors_metadata, try_to_load_from_cache

from faster_pruner.checkpoint.opening import located
from faster_pruner.checkpoint.screening import INDEX, WEIGHTS, shapes_in
from faster_pruner.errors import CheckpointError


def numbers_in(place: str) -> int:
    """How many numbers the weights of a local folder, or of a repository of the hub, are; 0 where nobody says."""
    try:
        where, _ = located(place)
        if Path(where).is_dir():
            return _numbers_in_files(Path(where))
    except CheckpointError:
        return 0
    for name in (WEIGHTS, INDEX):
        cached = try_to_load_from_cache(where, name)
        if isinstance(cached, str):
            with suppress(CheckpointError):
                return _numbers_in_files(Path(cached).parent)
    try:
        return sum(get_safetensors_metadata(where).parameter_count.values())
    except Exception:  # no network, no such repository, no safetensors in it: opening says which
        return 0


def _numbers_in_files(folder: Path) -> int:
    """From the headers of a folder's weights files. Raises CheckpointError."""
    return sum(math.prod(shape) for shape in shapes_in(folder).values())
