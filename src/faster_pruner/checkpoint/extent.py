"""How large a checkpoint is, before any of it is opened."""

from __future__ import annotations

import math
from pathlib import Path

from huggingface_hub import get_safetensors_metadata

from faster_pruner.checkpoint.opening import located
from faster_pruner.checkpoint.screening import shapes_in
from faster_pruner.errors import CheckpointError


def numbers_in(place: str) -> int:
    """How many numbers the weights of a local folder, or of a repository of the hub, are; 0 where nobody says."""
    try:
        where, _ = located(place)
        if Path(where).is_dir():
            return sum(math.prod(shape) for shape in shapes_in(Path(where)).values())
    except CheckpointError:
        return 0
    try:
        return sum(get_safetensors_metadata(where).parameter_count.values())
    except Exception:  # no network, no such repository, no safetensors in it: opening says which
        return 0
