"""The calibration rows, packed, and how passes over them are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from faster_pruner.data.batches import MASK_KEY, Batch
from faster_pruner.model.passes import PassSetting


def row_lengths(batch: Batch, mask: str = MASK_KEY) -> list[int]:
    """Real tokens of each row, as far as a batch tells: by this mask, by the usual one, or by its first input."""
    found = batch.inputs.get(mask, batch.mask)
    if found is not None:
        return found.bool().reshape(found.shape[0], -1).sum(dim=1).tolist()
    first = next(iter(batch.inputs.values()))
    return [first.shape[1] if first.ndim == 2 else 1] * batch.rows.numel()


@dataclass(frozen=True)
class CalibrationSet:
    """The calibration rows, packed.

    Attributes:
        batches: those that are differentiated first.
        lengths: mean real tokens per row, by stack; MACs are counted for these.
        seed: of everything random that is computed on them.
        setting: precision and storage of every pass over them.
    """

    batches: list[Batch]
    lengths: Mapping[str, float]
    seed: int
    setting: PassSetting = field(default_factory=PassSetting)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(batch.rows.numel() for batch in self.batches)
