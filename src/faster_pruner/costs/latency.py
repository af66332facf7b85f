"""Time as a cost: a forward takes what its sublayers take and a rest, by a table measured where it will run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from faster_pruner.checks import is_number, one_of, shown, whole_number
from faster_pruner.errors import BudgetError
from faster_pruner.model.spec import Sublayer
from faster_pruner.options import RUNTIMES, RuntimeName

# Seconds that a forward may take: a limit beyond them is a slip.
_LONGEST = 86_400.0


@dataclass(frozen=True, kw_only=True)
class LatencyLimit:
    """The most time that a forward of the pruned model may take, on the device at hand.

    Attributes:
        share: of what the dense model takes, inside (0, 1), which is 1 / speed-up; None when seconds are given.
        seconds: None when a share is given.
        batch: rows.
        tokens: per row of text; images and sounds have the length that the model makes of them.
        runtime: "torch" (eager), "compile", "onnx" or "onnx-int8".
    """

    share: float | None = None
    seconds: float | None = None
    batch: int = 1
    tokens: int = 128
    runtime: RuntimeName = "torch"

    def __post_init__(self) -> None:
        if (self.share is None) == (self.seconds is None):
            raise BudgetError("a limit on latency is a share of the dense model's or a time: give one of the two")
        if self.share is not None and not (is_number(self.share) and 0.0 < self.share < 1.0):
            faster = f"{1 / self.share:.3g}" if is_number(self.share) and self.share > 0 else shown(self.share)
            raise BudgetError(f"the speed-up is {faster}; it must be above 1, for instance 2 for half of the time")
        if self.seconds is not None and not (is_number(self.seconds) and 0.0 < self.seconds <= _LONGEST):
            raise BudgetError(
                f"the latency is {shown(self.seconds)} s; it must be above 0, for instance 0.008 for 8 ms"
            )
        whole_number("batch of the latency", self.batch, 1)
        whole_number("tokens of the latency", self.tokens, 1)
        one_of("runtime", self.runtime, RUNTIMES)

    @property
    def where(self) -> str:
        """The shape and the runtime."""
        return f"{self.batch} x {self.tokens}, {self.runtime}"

    @property
    def wanted(self) -> str:
        """What is asked for, in short: "2x" or "8 ms"."""
        return f"{1 / self.share:.4g}x" if self.share else f"{1000 * (self.seconds or 0.0):.4g} ms"


@dataclass(frozen=True)
class Times:
    """What one sublayer of a kind takes at some sizes.

    Attributes:
        keeps: units, rising; the first size is the smallest that there can be.
        seconds: more than at the first size; never falling.
    """

    keeps: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, keeps: Tensor) -> Tensor:
        """[P] float64: seconds at any sizes. The first units cost as much as the smallest size that was measured."""
        wanted = keeps.double().numpy()
        found = np.interp(wanted, self.keeps, self.seconds)
        if len(self.keeps) > 1:
            few = (wanted > self.keeps[0]) & (wanted < self.keeps[1])
            found = np.where(few, self.seconds[1], found)
        return torch.as_tensor(found, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class TimeTable:
    """Seconds of a forward: those of every sublayer at its size, and a rest. A `Cost`.

    Attributes:
        kinds: by `kind_of` a sublayer.
        rest: of a model whose sublayers are as small as they can be.
        scale: what both are multiplied with; a measured model corrects it.
    """

    kinds: Mapping[str, Times]
    rest: float
    scale: float = 1.0
    name: str = field(default="latency", init=False)

    def of(self, sublayer: Sublayer, keeps: Tensor) -> Tensor:
        """[P] float64."""
        return self.scale * sublayer.stack.calls * self.kinds[kind_of(sublayer)].at(keeps)

    def fixed(self, model: nn.Module, sublayers: Sequence[Sublayer]) -> float:
        """The rest."""
        del model, sublayers
        return self.scale * self.rest

    def total(self, sublayers: Sequence[Sublayer]) -> float:
        """Seconds of a forward at the present sizes of the sublayers, without the scale."""
        own = sum(float(self.of(s, torch.tensor([s.units]))[0]) for s in sublayers)
        return own / self.scale + self.rest

    def corrected(self, measured: float, sublayers: Sequence[Sublayer]) -> TimeTable:
        """The table that is right for sublayers that were measured to take so many seconds with all the rest."""
        return replace(self, scale=measured / self.total(sublayers))


def kind_of(sublayer: Sublayer) -> str:
    """Sublayers with the same value take the same time at the same size."""
    inputs = "/".join(str(producer.inputs) for producer in sublayer.parts.producers)
    return f"{' '.join(sublayer.alike)} {inputs} > {sublayer.unit_size} > {sublayer.width}"
