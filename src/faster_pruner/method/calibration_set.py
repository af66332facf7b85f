"""The calibration rows, packed, and how passes over them are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from faster_pruner.data.batches import MASK_KEY, Batch
from faster_pruner.errors import OptionError
from faster_pruner.host.ranks import ALONE, Ranks
from faster_pruner.model.passes import PassSetting


def row_lengths(batch: Batch, mask: str = MASK_KEY) -> list[int]:
    """Real tokens of each row, as far as a batch tells: by this mask, by the usual one, or by its first input."""
    found = batch.inputs.get(mask, batch.mask)
    if found is not None:
        return found.bool().reshape(found.shape[0], -1).sum(dim=1).tolist()
    first = next(iter(batch.inputs.values()))
    return [first.shape[1] if first.ndim == 2 else 1] * batch.rows.numel()


# A batch that is differentiated takes about as long as so many that are not.
_BACKWARD = 3


def dealt(batches: Sequence[Batch], count: int) -> list[list[int]]:
    """Which of the batches each of `count` ranks passes through, in their order: about equal work.

    Each goes to the rank that has least to do so far, so that the first one goes to the first rank, and none goes
    without if there are enough.
    """
    hands = [list[int]() for _ in range(count)]
    work = [0] * count
    for place, batch in enumerate(batches):
        rank = work.index(min(work))
        hands[rank].append(place)
        padded = next(iter(batch.inputs.values()))
        tokens = padded.numel() if padded.ndim == 2 else padded.shape[0]
        work[rank] += max(1, tokens) * (_BACKWARD if batch.differentiated else 1)
    return hands


@dataclass(frozen=True)
class CalibrationSet:
    """The calibration rows, packed.

    Attributes:
        batches: of all processes, those that are differentiated first.
        lengths: mean real tokens per row, by stack; MACs are counted for these.
        seed: of everything random that is computed on them.
        setting: precision and storage of every pass over them.
        ranks: the processes that share them.
    """

    batches: list[Batch]
    lengths: Mapping[str, float]
    seed: int
    setting: PassSetting = field(default_factory=PassSetting)
    ranks: Ranks = ALONE

    @property
    def places(self) -> list[int]:
        """Which of the batches this process passes through."""
        return dealt(self.batches, self.ranks.count)[self.ranks.rank]

    @property
    def own(self) -> list[Batch]:
        """The batches that this process passes through: all of them when there is no other."""
        return [self.batches[place] for place in self.places]

    def check_enough(self) -> None:
        """Raise OptionError unless there is a batch for every process."""
        if len(self.batches) < self.ranks.count:
            raise OptionError(
                f"the calibration set makes {len(self.batches)} batches, which {self.ranks.count} processes cannot "
                "share: start fewer, or take more rows or fewer tokens per batch"
            )

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(batch.rows.numel() for batch in self.batches)
