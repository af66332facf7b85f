"""How a command is carried out: on which device, and who listens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from faster_pruner.host.devices import pick_device
from faster_pruner.progress import Progress, Silent, StageClock


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a command is carried out.

    Attributes:
        device: torch device; None for cuda when there is one, else the CPU.
        progress: a listener.
    """

    device: str | None = None
    progress: Progress = field(default_factory=Silent)

    def on(self) -> torch.device:
        """The device. Raises OptionError when it cannot be used."""
        return pick_device(self.device)

    def clock(self, device: torch.device | None = None) -> StageClock:
        """A clock that tells the listener, and waits for a GPU before it reads the time."""
        on_gpu = device is not None and device.type == "cuda"
        return StageClock(self.progress, synchronise=torch.cuda.synchronize if on_gpu else None)
