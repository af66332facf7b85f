"""What a run has done so far: told to whoever keeps it, so that another run can go on where this one is interrupted.

Statistics are taken over as they are. The recovery is brought past the sublayers that were done: the suspended forwards
come through the same stops, and find the same weights there, as in the run that did them; so they hold the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from faster_pruner.costs.budget import Bound
from faster_pruner.method.calibration_set import CalibrationSet
from faster_pruner.method.selecting import Sizes
from faster_pruner.method.statistics import Statistics
from faster_pruner.model.lockstep import Lockstep
from faster_pruner.model.spec import Sublayer
from faster_pruner.results import SublayerResult
from faster_pruner.selection.search import Selection


@dataclass(frozen=True)
class Parameters:
    """Of one sublayer, by name.

    Attributes:
        aimed: of its producers, after their alignment; empty without.
        fitted: all that were fitted afterwards.
    """

    aimed: dict[str, Tensor]
    fitted: dict[str, Tensor]


@dataclass(frozen=True)
class Done:
    """What the recovery made of one sublayer.

    Attributes:
        result: what is told of it.
        renewed: whether the forwards went on with what the branch made with its new parameters.
        read: those; one sublayer's at a time is in memory.
    """

    result: SublayerResult
    renewed: bool
    read: Callable[[], Parameters]

    def put(self, model: nn.Module) -> None:
        """Give a model the parameters as they were in the end."""
        own = self.read()
        _write(model, {**own.aimed, **own.fitted})

    def go_past(
        self, run: Lockstep, model: nn.Module, sublayer: Sublayer, skip: Callable[[Sublayer], None], *, entries: bool
    ) -> None:
        """Bring suspended forwards past the sublayer, as the recovery did.

        Args:
            run: forwards of the model, that stand before it.
            model: it gets the parameters.
            sublayer: of it.
            skip: lets the targets go past it, too.
            entries: whether the forwards stop at its producers.
        """
        own = self.read()
        if entries:
            run.skip_entry(sublayer)
        _write(model, own.aimed)
        run.skip(sublayer)
        skip(sublayer)
        _write(model, own.fitted)
        if self.renewed:
            run.renew(sublayer)


class Round(Protocol):
    """One round of a cut: a selection, and the recovery of what it leaves."""

    def selection(self) -> Selection | None:
        """What an earlier run chose; None where it did not come so far."""
        ...

    def chosen(self, selection: Selection) -> None:
        """Keep it."""
        ...

    def earlier(self, sublayers: Sequence[Sublayer]) -> list[Done]:
        """What an earlier run did of the recovery: of the first sublayers, none or several."""
        ...

    def aimed(self, model: nn.Module, sublayer: Sublayer) -> None:
        """The producers of a sublayer were aligned; what they are now is kept with the rest."""
        ...

    def fitted(self, model: nn.Module, sublayer: Sublayer, result: SublayerResult, *, renewed: bool) -> None:
        """A sublayer is done: keep its parameters and its result."""
        ...


class CutJournal(Protocol):
    """A cut to some limits."""

    def share(self) -> float | None:
        """How strong an earlier run found the limits (`selecting.share_left`); None where it did not come so far."""
        ...

    def shared(self, share: float) -> None:
        """Keep it."""
        ...

    def round(self, place: int) -> Round:
        """One of its rounds."""
        ...


class Journal(Protocol):
    """What a run has done so far."""

    @property
    def taken_over(self) -> Sequence[str]:
        """What of it was done by an earlier run, in words."""
        ...

    @property
    def problems(self) -> Sequence[str]:
        """What could not be kept or read, and why."""
        ...

    def statistics(self, sublayers: Sequence[Sublayer], data: CalibrationSet) -> Statistics | None:
        """Those that an earlier run took; None where it did not come so far."""
        ...

    def taken(self, statistics: Statistics) -> None:
        """Keep them."""
        ...

    def cut(self, sublayers: Sequence[Sublayer], bounds: Sequence[Bound], sizes: Sizes) -> CutJournal:
        """A cut of these dense sublayers to these limits: others have a place of their own."""
        ...


class _NoRound:
    """Begins anew, and keeps nothing."""

    def selection(self) -> Selection | None:
        """None."""

    def chosen(self, selection: Selection) -> None:
        """Nothing."""

    def earlier(self, sublayers: Sequence[Sublayer]) -> list[Done]:
        """None."""
        del sublayers
        return []

    def aimed(self, model: nn.Module, sublayer: Sublayer) -> None:
        """Nothing."""

    def fitted(self, model: nn.Module, sublayer: Sublayer, result: SublayerResult, *, renewed: bool) -> None:
        """Nothing."""


# For whoever keeps nothing.
NO_ROUND = _NoRound()


class _NoCut:
    """Begins anew, and keeps nothing."""

    def share(self) -> float | None:
        """None."""

    def shared(self, share: float) -> None:
        """Nothing."""

    def round(self, place: int) -> Round:
        """One that keeps nothing."""
        del place
        return NO_ROUND


@dataclass(frozen=True)
class _NoJournal:
    """Begins anew, and keeps nothing."""

    taken_over: Sequence[str] = ()
    problems: Sequence[str] = ()

    def statistics(self, sublayers: Sequence[Sublayer], data: CalibrationSet) -> Statistics | None:
        """None."""

    def taken(self, statistics: Statistics) -> None:
        """Nothing."""

    def cut(self, sublayers: Sequence[Sublayer], bounds: Sequence[Bound], sizes: Sizes) -> CutJournal:
        """One that keeps nothing."""
        del sublayers, bounds, sizes
        return _NoCut()


NO_JOURNAL = _NoJournal()


@torch.no_grad()
def _write(model: nn.Module, parameters: dict[str, Tensor]) -> None:
    """Put parameters, by name, where they belong."""
    for name, value in parameters.items():
        model.get_parameter(name).copy_(value)
