"""The calibration rows, packed, and how passes over them are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from faster_pruner.data.batches import Batch
from faster_pruner.model.passes import PassSetting


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
