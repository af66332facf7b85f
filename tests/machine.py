"""A machine that is made up: what a forward takes there is a function of sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn


def linears(model: nn.Module) -> list[int]:
    """Parameters of the Linears of the layers."""
    return [
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "layer" in name
    ]


class Machine:
    """Takes a microsecond for each weight and a millisecond beside; a whole model that is not the dense one takes more.

    Attributes:
        surplus: how much more, relatively, which no table of single sublayers can know.
        slow: by how much everything is slowed from one turn to the next.
        timed: how many models were run.
    """

    def __init__(self, surplus: float = 0.0, slow: float = 0.0) -> None:
        self.surplus, self.slow, self.timed = surplus, slow, 0
        self.whole = 0

    def seconds(self, model: nn.Module) -> float:
        weights = sum(linears(model))
        self.whole = max(self.whole, weights)
        shares = weights / self.whole
        return 1e-3 + 1e-6 * weights * (1 + self.surplus * 4 * shares * (1 - shares))

    def in_turn(
        self, calls: Mapping[str, Callable[[], Any]], device: torch.device, **options: Any
    ) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {key: [] for key in calls}
        for turn in range(options["fewest"]):
            for key, call in calls.items():
                assert isinstance(call, partial)
                self.timed += 1
                found[key].append(self.seconds(call.args[0]) * (1 + self.slow * turn))
        return found
