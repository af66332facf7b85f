"""How a command is carried out: on which device, and who listens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from faster_pruner.host.devices import pick_device
from faster_pruner.host.ranks import ALONE, Ranks
from faster_pruner.progress import Progress, Silent, StageClock


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a command is carried out.

    Attributes:
        device: torch device; None for cuda when there is one, else the CPU.
        progress: a listener.
        ranks: the processes that share it: found by `prune`, nothing to set.
    """

    device: str | None = None
    progress: Progress = field(default_factory=Silent)
    ranks: Ranks = ALONE

    def on(self) -> torch.device:
        """The device. Raises OptionError when it cannot be used."""
        return self.ranks.device or pick_device(self.device)

    def shared_by(self, ranks: Ranks) -> Run:
        """The same by several processes, of which the first one alone shows something."""
        return replace(self, ranks=ranks, progress=self.progress if ranks.first else Silent())

    def clock(self, device: torch.device | None = None) -> StageClock:
        """A clock that tells the listener, and waits for a GPU before it reads the time."""
        on_gpu = device is not None and device.type == "cuda"
        return StageClock(self.progress, synchronise=torch.cuda.synchronize if on_gpu else None)
