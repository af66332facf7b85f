"""What the dense model predicts for evaluation rows, kept with the statistics: later cuts need not ask it again.

Each split has a key of its own, made of all that its predictions depend on beside the weights, which the statistics are
bound to anyway. Predictions under another key are of no use, and are left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from faster_pruner.data.batches import EncodedRows
from faster_pruner.objectives.objective import Predicted

FILE = "scores.safetensors"
_PARTS = ("values", "rows", "labels")


@dataclass(frozen=True)
class Score:
    """Predictions for one split, and their key."""

    key: str
    said: Predicted


def score_key(rows: EncodedRows, device: torch.device, words: str, modules: tuple[nn.Module, ...] = ()) -> str:
    """SHA-256 of what predictions depend on, beside a model's weights.

    Args:
        rows: that are predicted.
        device: on which.
        words: what is made of what the model returns, in words.
        modules: that have a part in that.
    """
    found = hashlib.sha256(f"{rows.digest()} {rows.left_padded} {dict(rows.padding)} {device.type} {words}".encode())
    for module in modules:
        found.update(repr(module).encode())
        for name, tensor in sorted(module.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save_scores(file: Path, scores: Mapping[str, Score]) -> dict[str, str]:
    """Write them; returns their keys, by split, in the order in which they are numbered in the file."""
    tensors: dict[str, Tensor] = {}
    for place, each in enumerate(scores.values()):
        for part in _PARTS:
            value: np.ndarray | None = getattr(each.said, part)
            if value is not None:
                tensors[f"{place}/{part}"] = torch.from_numpy(np.ascontiguousarray(value))
    save_file(tensors, file)
    return {split: each.key for split, each in scores.items()}


def load_scores(file: Path, keys: Mapping[str, str]) -> dict[str, Score]:
    """What `save_scores` wrote, without the context of the rows. Raises KeyError, SafetensorError, ValueError."""
    stored = {name: tensor.numpy() for name, tensor in load_file(file).items()}
    found: dict[str, Score] = {}
    for place, (split, key) in enumerate(keys.items()):
        values, rows, labels = (stored.get(f"{place}/{part}") for part in _PARTS)
        if values is None or rows is None or len(values) != len(rows):
            raise ValueError(f"the predictions for {split!r} are not what was written")
        found[split] = Score(key, Predicted(values, rows, labels))
    return found
